"""The discounts, rejections and notices that the engine's effects become."""

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from adapters.talon_one.effects import TABLE
from mapper.adapter import (
    Cost,
    Notice,
    Outcome,
    Rejection,
)
from mapper.domain import checkout as documents
from mapper.domain import discounts, money
from mapper.domain.checkout import Checkout
from mapper.domain.errors import EngineUnavailable, Problem
from tests.adapters.talon_one.examples import CART, EFFECTS
from tests.adapters.talon_one.talk import (
    COSTS,
    adapter,
    amounts,
    cart,
    closed,
    effect,
    only,
    outcome,
    per_item,
    reply,
    talk,
)


def test_effect_table_has_all_36_effect_types() -> None:
    assert len(EFFECTS) == 36
    assert set(TABLE) == set(EFFECTS)


@pytest.mark.parametrize("kind", EFFECTS)
def test_effect_becomes_discount_rejection_or_notice(kind: str) -> None:
    props, becomes = EFFECTS[kind]
    result = outcome(CART, [effect(kind, props)])
    told = [notice for notice in result.notices if notice.type != "code_not_answered"]
    if isinstance(becomes, str):
        assert told == [Notice(kind, becomes, msgspec.json.Decoder(float_hook=Decimal).decode(json.dumps(props)))]
        assert (result.discounts, result.rejected) == ((), ())
    elif isinstance(becomes, Rejection):
        assert (result.rejected, told, result.discounts) == ((becomes,), [], ())
    else:
        assert (amounts(result), told, result.rejected) == ([becomes], [], ())
        assert only(result.discounts).effect_type == kind


@pytest.mark.parametrize("kind", [k for k, (_, becomes) in EFFECTS.items() if isinstance(becomes, str)])
@pytest.mark.parametrize("props", [{}, {"value": None}, [], "text", None, {"name": {}, "title": [1]}])
def test_malformed_effect_without_money_is_a_notice_or_unavailable(kind: str, props: Any) -> None:
    money_off = per_item(5, 0)
    if TABLE[kind].kind == "accept":
        with pytest.raises(EngineUnavailable):
            outcome(CART, [effect(kind, props), money_off])
    else:
        result = outcome(CART, [effect(kind, props), money_off])
        assert amounts(result) == [(0, 500)]
        assert [(n.type, n.payload) for n in result.notices if n.type != "code_not_answered"] == [(kind, props)]


def test_unknown_effect_becomes_a_notice_with_its_payload() -> None:
    result = outcome(CART, [effect("grantWish", {"wish": 1.10}), per_item(5, 0)])
    assert amounts(result) == [(0, 500)]
    told = next(notice for notice in result.notices if notice.type == "grantWish")
    assert told.payload == {"wish": Decimal("1.1")}


@pytest.mark.parametrize("odd", ["text", 5, None, [], {"effectType": 5, "props": {"a": 1}}])
def test_unreadable_effect_becomes_a_notice(odd: Any) -> None:
    result = outcome(cart(("A", 1, "9.00")), [odd, per_item(5, 0)])
    assert amounts(result) == [(0, 500)]
    assert [(told.type, told.payload) for told in result.notices] == [("unreadable", odd)]


@pytest.mark.parametrize(("totals", "by_line"), [([10, 10], [500, 500]), ([10, 20], [333, 333])])
def test_effects_with_different_total_discounts_are_not_pro_rata(totals: list[int], by_line: list[int]) -> None:
    shares = [Decimal("4.995"), Decimal("4.995")] if totals == [10, 10] else [Decimal("3.33"), Decimal("3.33")]
    effects = [
        per_item(share, number, props={"totalDiscount": total})
        for number, (share, total) in enumerate(zip(shares, totals, strict=True))
    ]
    assert [amount for _, amount in amounts(outcome(CART, effects))] == by_line


def test_vendor_example_of_flattened_items() -> None:
    # https://docs.talon.one/docs/dev/tutorials/partially-returning-a-session: "$5 per item"
    units = [(0, 0), (1, 0), (1, 1)]
    effects = [per_item(5, position, props={"subPosition": unit}) for position, unit in units]
    assert amounts(outcome(CART, effects)) == [(0, 500), (1, 1000)]


def test_effect_without_sub_position_discounts_the_line() -> None:
    old = per_item(10, 1)
    del old["props"]["subPosition"]
    assert amounts(outcome(CART, [old])) == [(1, 1000)]


def test_positions_skip_lines_of_zero_quantity() -> None:
    checkout = cart(("zero", 0, "1.00"), ("A", 1, "10.00"), ("zero", 0, "1.00"), ("A", 1, "20.00"))
    assert amounts(outcome(checkout, [per_item(1, 0), per_item(2, 1)])) == [(1, 100), (3, 200)]


@pytest.mark.parametrize(
    ("values", "digits", "minor"),
    [
        (["9.999"], "USD", 1000),  # 10 % of 99.99 as the engine sends it
        (["0.004"] * 3, "USD", 1),  # added first, rounded once
        (["0.005"], "USD", 1),
        (["0.00499999"], "USD", 0),
        (["0.11499999999999999"], "USD", 12),  # 10 % of 1.15, as doubles have it
        (["1.115"], "USD", 112),  # as a double it is 1.1149999999999999911
        (["35.000000001"], "USD", 3500),
        (["3.3333333333333335"] * 3, "USD", 1000),
        (["0.30000000000000004", "-0.1", "-0.1", "-0.1"], "USD", 0),
        (["1e1"], "USD", 1000),
        (["1.5"], "JPY", 2),
        (["1.0005"], "KWD", 1001),
        (["5.551115123125783e-17"], "USD", 0),
    ],
)  # fmt: skip
def test_amounts_are_summed_exactly_and_rounded_half_up(values: list[str], digits: str, minor: int) -> None:
    effects = b",".join(
        msgspec.json.encode(per_item(0, 0)).replace(b'"value":0', b'"value":' + v.encode()) for v in values
    )
    checkout = cart(("A", 1, "99"), currency=digits)
    _, result = talk(adapter().validate(checkout, "s"), reply(b'{"effects":[' + effects + b"]}"))
    assert amounts(result) == ([(0, minor)] if minor else [])


@pytest.mark.parametrize("value", [0, -5, "0.001", 0.0])
@pytest.mark.parametrize("kind", ["setDiscount", "setDiscountPerItem", "setDiscountPerAdditionalCost"])
def test_zero_or_negative_discount_becomes_a_notice(kind: str, value: Any) -> None:
    props = {"name": "Off", "value": value, "position": 0, "additionalCost": "shipping", "additionalCostId": 1}
    result = outcome(cart(("A", 1, "1.00")), [effect(kind, props)])
    assert result.discounts == ()
    (notice,) = result.notices
    assert (notice.type, notice.text) == (kind, "The discount Off comes to no amount.")
    assert notice.payload["name"] == "Off"


def test_equal_discount_names_of_two_campaigns_both_count() -> None:
    effects = [effect("setDiscount", {"name": "Off", "value": 1}, campaign=number) for number in (2, 1)]
    result = outcome(CART, effects)
    assert [(d.meta["campaignId"], d.amount) for d in result.discounts] == [(1, 100), (2, 100)]


@pytest.mark.parametrize(
    ("shares", "total", "by_line"),
    [
        ([(0, "3.3333333333333335"), (1, "3.3333333333333335"), (2, "3.3333333333333335")], "10", [334, 333, 333]),
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "10", [334, 333, 333]),  # shares that lost their cents
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "20", [333, 333, 333]),  # a total of something else
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "11", [333, 333, 333]),
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "10.005", [334, 334, 333]),  # at most half a cent a share
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "10.006", [333, 333, 333]),
        ([(0, "0"), (1, "5")], "5", [0, 500, 0]),
        ([(0, "0.005"), (1, "0.005"), (2, "0.005")], "0.015", [1, 1, 0]),
        ([(0, "1.25"), (1, "0.625"), (1, "0.625")], "2.5", [125, 125, 0]),
        ([(0, "6.6666666666666667"), (2, "3.3333333333333333")], "10", [667, 0, 333]),
        ([(0, "-1"), (1, "1")], "0", [0, 100, 0]),  # nonsense, read like any other discount
    ],
)  # fmt: skip
def test_pro_rata_shares_sum_to_the_total_discount(shares: list[Any], total: str, by_line: list[int]) -> None:
    effects = [
        per_item(Decimal(value), position, props={"subPosition": number, "totalDiscount": Decimal(total)})
        for number, (position, value) in enumerate(shares)
    ]
    checkout = cart(("A", 1, "20.00"), ("B", 2, "20.00"), ("C", 1, "20.00"))
    assert amounts(outcome(checkout, effects)) == [(line, off) for line, off in enumerate(by_line) if off]


def test_zero_pro_rata_discount_gives_one_notice() -> None:
    effects = [per_item(0, position, props={"totalDiscount": 0}) for position in (0, 1)]
    result = outcome(cart(("A", 1, "1.00"), ("B", 1, "1.00")), effects)
    (notice,) = result.notices
    assert (result.discounts, notice.type) == ((), "setDiscountPerItem")
    assert [props["position"] for props in notice.payload] == [0, 1]


@pytest.mark.parametrize(
    ("title", "body", "text"),
    [
        ("Hi", "there", "Hi: there"),
        ("", "there?", "there?"),
        ("Hi", "", "Hi"),
        (None, "there", "there"),
        ("A", {}, "A"),
    ],
)
def test_notification_text_joins_title_and_body(title: Any, body: Any, text: str) -> None:
    props = {"notificationType": "Info", "title": title, "body": body}
    (notice,) = outcome(cart(("A", 1, "1.00")), [effect("showNotification", props)]).notices
    assert notice.text == text


def test_shipping_discount_is_capped_at_the_shipping_cost() -> None:
    checkout = cart(("A", 1, "10.00"), shipping_rate={"price": "15.00"})
    free = effect(
        "setDiscountPerAdditionalCost",
        {"name": "Free", "additionalCost": "shipping", "additionalCostId": 3, "value": 99},
    )
    result = outcome(checkout, [free], ADDITIONAL_COSTS=COSTS["ADDITIONAL_COSTS"])
    discount = only(result.discounts)
    assert (discount.line, discount.amount, discount.cost) == (None, 9900, "shipping")
    assert (discount.meta["additionalCost"], result.costs) == ("shipping", (Cost("shipping", 1500),))
    assert settled(checkout, result) == [("15.00", discount.meta)]
    assert outcome(checkout, [free]).costs == (), "a cost that was not sent has no known price"


@pytest.mark.parametrize(
    ("kind", "props", "expected", "off_line", "at_root"),  # expected: line, amount, scope, cost
    [
        ("setDiscountPerItem", {"scope": "price", "value": 25}, (0, 2500, "goods", ""), 2000, []),
        ("setDiscountPerItem", {"value": 19}, (0, 1900, "goods", ""), 1900, []),
        ("setDiscountPerItem", {"scope": "additionalCosts", "value": 2}, (0, 200, "costs", ""), 0, ["2.00"]),
        ("setDiscountPerItem", {"scope": "additionalCosts", "value": 13}, (0, 1300, "costs", ""), 0, ["12.00"]),
        ("setDiscountPerItem", {"scope": "itemTotal", "value": 19}, (0, 1900, "total", ""), 1900, []),
        ("setDiscountPerItem", {"scope": "itemTotal", "value": 25}, (0, 2500, "total", ""), 2000, ["5.00"]),
        ("setDiscountPerItem", {"scope": "someDay", "value": 1}, (0, 100, "goods", ""), 100, []),
        ("setDiscountPerAdditionalCostPerItem", {"additionalCost": "wrap", "additionalCostId": 1, "value": 13},
         (0, 1300, "costs", "wrap"), 0, ["10.00"]),
        ("setDiscount", {"scope": "cartItems", "value": 21}, (None, 2100, "goods", ""), 0, ["20.00"]),
        ("setDiscount", {"scope": "sessionTotal", "value": 48}, (None, 4800, "total", ""), 0, ["47.00"]),
        ("setDiscount", {"value": 21}, (None, 2100, "total", ""), 0, ["21.00"]),
        ("setDiscount", {"scope": "additionalCosts", "value": 28}, (None, 2800, "costs", ""), 0, ["27.00"]),
    ],
)  # fmt: skip
def test_discount_scope_decides_line_or_root(
    kind: str, props: dict[str, Any], expected: Any, off_line: int, at_root: list[str]
) -> None:
    line = {"sku": "A", "quantity": 2, "price": "10.00", "wrap": "5.00", "card": "1.00"}
    body = {"items": [line], "shipping_rate": {"price": "15.00"}}
    options = {"ITEM_ADDITIONAL_COSTS": "wrap=/wrap,card=/card", "ADDITIONAL_COSTS": COSTS["ADDITIONAL_COSTS"]}
    checkout = documents.parse(json.dumps(body).encode(), "validate")
    result = outcome(checkout, [effect(kind, {"name": "Off #0", "position": 0, **props})], **options)
    found = only(result.discounts)
    assert (found.line, found.amount, found.scope, found.cost) == expected
    assert found.meta.get("scope") == (props.get("scope") if props.get("scope") != "price" else None)
    assert discounts.allocate(checkout, result).line_total(0) == off_line
    listed = settled(checkout, result)
    assert [amount for amount, _ in listed] == at_root
    for _, meta in listed:
        assert (meta.get("position"), meta.get("sku")) == ((None, None) if kind == "setDiscount" else (0, "A"))


def test_discounts_are_sorted_by_line_order_then_line_costs() -> None:
    on_cost = effect(
        "setDiscountPerAdditionalCostPerItem", {"name": "w", "value": 4, "position": 0, "additionalCost": "w"}
    )
    on_order = effect("setDiscount", {"name": "Off", "value": 3})
    result = outcome(CART, [on_cost, on_order, per_item(2, 1), per_item(1, 0)])
    assert [(one.line, one.amount, one.scope) for one in result.discounts] == [
        (0, 100, "goods"), (1, 200, "goods"), (None, 300, "total"), (0, 400, "costs"),
    ]  # fmt: skip


def test_line_costs_count_all_units_and_are_zero_if_absent() -> None:
    lines = [{"sku": "A", "quantity": 2, "price": "1.00", "wrap": "5.00"}, {"sku": "B", "quantity": 1, "price": "1.00"}]
    checkout = documents.parse(json.dumps({"items": lines, "shipping_rate": {"price": "15.00"}}).encode(), "validate")
    result = outcome(checkout, [], ITEM_ADDITIONAL_COSTS="wrap=/wrap", ADDITIONAL_COSTS=COSTS["ADDITIONAL_COSTS"])
    assert result.costs == (Cost("shipping", 1500), Cost("wrap", 1000, line=0), Cost("wrap", 0, line=1))


def settled(checkout: Checkout, result: Outcome) -> list[tuple[str, dict[str, Any]]]:
    """Return the discounts at the root: amounts and metas."""
    return [(money.text(one.amount, checkout.digits), one.meta) for one in discounts.allocate(checkout, result).root]


def test_partial_bundle_discount_uses_value_and_names_bundle() -> None:
    props = {"desiredValue": 9, "bundleIndex": 0, "bundleName": "Breakfast", "targetedItemPosition": 0}
    discount = only(outcome(CART, [per_item(5, 1, props=props)]).discounts)
    assert (discount.line, discount.amount, discount.meta["bundleName"]) == (1, 500, "Breakfast")


def _shares(value: Any, total: Any, bundle: int = 0) -> list[dict[str, Any]]:
    """Return a pro rata discount on the three units of two lines, with its total in each effect."""
    props = {"totalDiscount": total, "desiredTotalDiscount": 99, "bundleName": "set", "bundleIndex": bundle}
    return [
        per_item(value, position, props={**props, "subPosition": unit}) for position, unit in ((0, 0), (1, 0), (1, 1))
    ]


def _cost(**props: Any) -> dict[str, Any]:
    return effect("setDiscountPerAdditionalCost", {"name": "off", "value": 1, **props})


@pytest.mark.parametrize(
    ("effects", "expected"),  # line, amount, scope, cost
    [
        (_shares(5, 15) + _shares(5, 15, bundle=1), [(0, 1000, "goods", ""), (1, 2000, "goods", "")]),
        (_shares(1.1117, 3.335) + _shares(1.1117, 3.335, bundle=1), [(0, 222, "goods", ""), (1, 445, "goods", "")]),
        (_shares(1.1117, 3.335), [(0, 111, "goods", ""), (1, 223, "goods", "")]),
        ([per_item(-1, 0), per_item(3, 0)], [(0, 200, "goods", "")]),
        ([per_item("1.50", "1")], [(1, 150, "goods", "")]),
        ([per_item(1.0049999999999999, 0)], [(0, 101, "goods", "")]),
        ([_cost(additionalCost="shipping")], [(None, 100, "costs", "shipping")]),
        ([_cost(additionalCost="handling")], [(None, 100, "costs", "handling")]),
        ([_cost(additionalCostId=5)], [(None, 100, "costs", "")]),
        ([_cost(), _cost(additionalCost="shipping")], [(None, 100, "costs", ""), (None, 100, "costs", "shipping")]),
    ],
)
def test_effects_give_these_discounts(effects: list[Any], expected: list[Any]) -> None:
    result = outcome(cart(("A", 1, "60.00"), ("B", 2, "20.00")), effects)
    assert [(one.line, one.amount, one.scope, one.cost) for one in result.discounts] == expected


@pytest.mark.parametrize(
    ("rule_name", "campaign", "name", "description"),
    [
        ("20% off", {"id": 1, "name": "Summer", "description": "All summer long"}, "20% off", "All summer long"),
        ("20% off", {"id": 1, "name": "Summer"}, "20% off", "Summer"),
        ("", {"id": 1, "name": "Summer", "description": ""}, "Summer", "Summer"),
        ("", {"id": 2, "name": "Winter", "description": "x"}, "off", "off"),
        (None, {"id": 1, "name": None, "description": None}, "off", "off"),
        ("Rule", {"id": "?"}, "Rule", "off"),
        (5, None, "off", "off"),
    ],
)  # fmt: skip
def test_discount_has_rule_name_and_campaign_description(
    rule_name: Any, campaign: Any, name: str, description: str
) -> None:
    discount = only(outcome(CART, [per_item(5, 0, ruleName=rule_name)], [campaign]).discounts)
    assert (discount.name, discount.description) == (name, description)


def test_unnamed_discount_is_called_discount() -> None:
    discount = only(outcome(CART, [per_item(5, 0, name="", ruleName=None)]).discounts)
    assert (discount.name, discount.description) == ("Discount", "Discount")


def test_meta_has_engine_ids_and_the_code() -> None:
    effects = [
        effect("acceptCoupon", {"value": "COUP-xyz789"}, coupon=9),
        per_item(5, 0, coupon=9),
        per_item(5, 1, campaign=2),
    ]
    first_line, second_line = outcome(CART, effects).discounts
    assert first_line.meta == {"campaignId": 1, "rulesetId": 73, "triggeredByCoupon": 9, "code": "COUP-XYZ789"}
    assert second_line.meta == {"campaignId": 2, "rulesetId": 73}


@pytest.mark.parametrize("position", [0, 0.0, -0.0, "0.0", 1, 1.0, "1", Decimal("1.000")])
def test_numbers_are_read_as_integers_or_decimals(position: Any) -> None:
    number = per_item(5, position, campaign=1, coupon=4)
    text = msgspec.json.Encoder(decimal_format="number").encode({"effects": [number]}).replace(b":4}", b":4.0}")
    _, result = talk(adapter().validate(CART, "s"), reply(text.replace(b'"campaignId":1,', b'"campaignId":1.0,')))
    assert amounts(result) == [(int(float(position)), 500)]
    assert only(result.discounts).meta["campaignId"] == 1


@pytest.mark.parametrize("position", [2, -1, 0.5, None, "x", "NaN", "sNaN", 1e300, "Infinity"])
def test_unknown_position_raises_but_is_a_notice_after_redemption(position: Any) -> None:
    bad = per_item(5, position)
    with pytest.raises(Problem) as caught:
        outcome(CART, [bad])
    assert caught.value.reason == ("bad_reply" if position == "x" else "bad_position")
    for conversation in (adapter().check, adapter().redeem):
        _, result = talk(conversation(CART, "s"), closed(bad, per_item(5, 0)))
        assert amounts(result) == [(0, 500)]
        assert "setDiscountPerItem" in [notice.type for notice in result.notices]


@pytest.mark.parametrize("value", [None, "five", [], True, "NaN", "Infinity", "1e15", "1e-60", "9" * 400])
@pytest.mark.parametrize("kind", ["setDiscount", "setDiscountPerItem"])
def test_unreadable_amount_raises_but_is_a_notice_after_redemption(kind: str, value: Any) -> None:
    bad = effect(kind, {"name": "Off", "value": value, "position": 0})
    with pytest.raises(EngineUnavailable) as caught:
        outcome(CART, [bad])
    assert caught.value.reason == "bad_reply"
    _, result = talk(adapter().redeem(CART, "s"), closed(bad))
    assert (result.discounts, kind in [notice.type for notice in result.notices]) == ((), True)


def test_changed_selected_price_gives_a_notice() -> None:
    told = outcome(CART, [per_item(5, 0, selectedPrice=50), per_item(5, 1, selectedPrice=20.0)]).notices
    assert [n.payload for n in told if n.type == "selectedPrice"] == [
        {"position": 0, "sku": "shoes", "selectedPrice": 50}
    ]
