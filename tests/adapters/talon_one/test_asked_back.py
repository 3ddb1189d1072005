"""Extra response content, the size limit of an answer, and diagnostics for the merchant."""

import json
import logging
from typing import Any

import pytest

from mapper.adapter import Diagnostic, EngineRejected, Outcome
from mapper.domain.checkout import Checkout
from tests.adapters.talon_one.emulated import Emulated
from tests.adapters.talon_one.talk import adapter, cart, closed, effect, first, parse, reply, talk
from tests.adapters.talon_one.test_service import LINE, shop

ALL = "ruleFailureReasons,coupons,customerProfile,loyalty"
FAILED = {
    "campaignID": 7, "campaignName": "Summer", "rulesetID": 1, "ruleIndex": 2, "ruleName": "Big carts",
    "couponID": 5, "couponValue": "SUMMER", "conditionIndex": 1, "details": "cart total: code summer needs 100",
}  # fmt: skip


def validated(checkout: Checkout, /, asked: Any = ALL, **content: Any) -> Outcome:
    result = talk(adapter(RESPONSE_CONTENT=asked).validate(checkout, "s"), reply({"effects": [], **content}))[1]
    assert isinstance(result, Outcome)
    return result


def test_rule_failure_is_a_diagnostic_not_a_notice() -> None:
    other = {**FAILED, "couponValue": None, "couponID": None}
    result = validated(cart(("A", 1, "9.00")), ruleFailureReasons=[FAILED, other, "unreadable", {"couponValue": 5}])
    assert result.diagnostics == (
        Diagnostic(
            "rule_failed", "A promotion rule did not apply.", "SUMMER",
            {"campaign": 7, "campaign_name": "Summer", "rule": "Big carts", "rule_index": 2, "condition": 1,
             "details": "cart total: code … needs 100"},
        ),
    )  # fmt: skip
    assert (result.notices, result.rejected) == ((), ())


def test_diagnostic_names_referral_code_and_failed_effect() -> None:
    failed = {"campaignID": 7, "referralValue": "REF", "effectIndex": 0, "details": ""}
    (told,) = validated(cart(("A", 1, "9.00")), ruleFailureReasons=[failed]).diagnostics
    assert (told.code, told.facts) == ("REF", {"campaign": 7, "effect": 0})


@pytest.mark.parametrize("content", [{}, {"ruleFailureReasons": None}, {"ruleFailureReasons": "?"}])
def test_answer_without_failure_reasons_gives_no_diagnostics(content: dict[str, Any]) -> None:
    assert validated(cart(("A", 1, "9.00")), **content).diagnostics == ()


def test_discount_names_the_code_from_the_engines_coupons() -> None:
    checkout = cart(("A", 1, "9.00"), codes=["Summer"])
    off = effect("setDiscount", {"name": "x", "value": 1}, coupon=5)
    result = validated(checkout, effects=[off], coupons=[{"id": 5, "value": "SUMMER"}, {"id": "?"}, None])
    assert result.discounts[0].meta["code"] == "Summer"


def test_extra_response_content_becomes_notices() -> None:
    content = {"coupons": [{"id": 5, "value": "X"}], "customerProfile": {"id": 1.5}, "loyalty": {"cards": []}}
    told = {notice.type: notice.payload for notice in validated(cart(("A", 1, "9.00")), **content).notices}
    assert json.dumps(told, default=str) == json.dumps({**content, "customerProfile": {"id": "1.5"}})
    for nothing in ({}, dict.fromkeys(content)):
        assert validated(cart(("A", 1, "9.00")), **nothing).notices == ()
    for asked in ("", "coupons"):
        unasked = validated(cart(("A", 1, "9.00")), asked, **content).notices
        assert [notice.type for notice in unasked] == list(filter(None, [asked])), "a profile is private"


def test_additional_costs_of_several_orders_are_summed() -> None:
    order = {"order_items": [{"sku": "A", "quantity": 1, "price": "9.00"}], "shipping_rate": {"price": "5.00"}}
    body = parse({"orders": [order, {**order, "shipping_rate": {"price": "2.50"}}, {"order_items": []}]})
    for pointer, price in (("/orders/*/shipping_rate/price", 7.5), ("/shipping_rate/price", None)):
        request = first(adapter(ADDITIONAL_COSTS=f"shipping={pointer}").validate(body, "s"))
        costs = json.loads(request.body)["customerSession"]["additionalCosts"]
        assert costs == ({"shipping": {"price": price}} if price else {})


# -- Log ---------------------------------------------------------------------------------------------------------------


def test_log_has_the_rule_failure_without_the_code(caplog: pytest.LogCaptureFixture) -> None:
    body = {"id": "c", "items": [LINE], "promotions": {"coupon_codes": ["MIN-200"]}}
    options = {"MAPPER_ON_REJECTED": "apply_rest", "TALON_ONE_RESPONSE_CONTENT": "ruleFailureReasons"}
    with caplog.at_level(logging.INFO, "mapper"), shop(Emulated(), **options) as ask:
        status, answer = ask("validate", body)
    assert (status, "does not hold" in json.dumps(answer)) == (200, False)
    (line,) = [getattr(one, "facts", {}) for one in caplog.records if one.message == "request"]
    (told,) = line["diagnostics"]
    assert (told["type"], told["condition"]) == ("rule_failed", 1)
    assert told["details"] == "condition 1 of the rule does not hold"
    assert told["code"] not in ("", "MIN-200")
    assert "MIN-200" not in str(line)


# -- Large carts -------------------------------------------------------------------------------------------------------


def large(lines: int, quantity: int) -> Checkout:
    return cart(*[(f"SKU-{number}", quantity, "9.00") for number in range(lines)])


def test_reply_size_limit_grows_with_the_cart() -> None:
    checkout = large(1000, 5)
    units = [(line, unit) for line in range(1000) for unit in range(5)]
    effects = [
        effect("setDiscountPerItem", {"name": f"A tenth off everything#{line}", "value": 0.9, "position": line,
                                      "subPosition": unit, "desiredValue": 0.9, "scope": "price"},
               conditionIndex=0, evaluationGroupID=3, evaluationGroupMode="stackable")
        for line, unit in units
    ]  # fmt: skip
    answer = closed(*effects)
    assert len(answer.body) > 1024 * 1024
    for conversation in (adapter().validate, adapter().check, adapter().redeem):
        (request,), outcome = talk(conversation(checkout, "s"), answer)
        assert request.reply_bytes > 10 * len(answer.body)
        assert sum(discount.amount for discount in outcome.discounts) == 450_000
    assert first(adapter().look_up(checkout, "s")).reply_bytes >= request.reply_bytes
    assert first(adapter().undo(None, "s", "/s", final=True)).reply_bytes >= request.reply_bytes


def test_reply_size_limit_is_bounded() -> None:
    small, huge = (first(adapter().validate(large(1, units), "s")).reply_bytes for units in (1, 10_000))
    assert small < 2.1 * 1024 * 1024
    assert huge < 64 * 1024 * 1024


@pytest.mark.parametrize("lines", [1, 1000])
def test_more_than_10000_units_are_rejected_without_a_call(lines: int) -> None:
    checkout = large(lines, 10_000 // lines + 1)
    for conversation in (adapter().validate, adapter().check, adapter().redeem):
        with pytest.raises(EngineRejected) as caught:
            next(conversation(checkout, "s"))
        assert caught.value.reason == "too_many_units"
