"""Voucherify's sandbox: which codes are refused, with the vendor's error keys."""

from typing import Any

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import book, campaigns
from tests.sandbox.voucherify_shop import (
    Json,
    Shop,
    cart,
    earned,
    merged,
    off,
    redeemable,
    request,
    small_book,
)


@pytest.mark.parametrize(
    ("code", "customer", "key"),
    [
        ("NOPE-10", "", "not_found"),
        ("promo_99", "", "not_found"),
        ("EXPIRED-10", "", "voucher_expired"),
        ("SOON-10", "", "voucher_not_active"),
        ("USED-UP-10", "", "quantity_exceeded"),
        ("PAUSED-5", "", "voucher_disabled"),
        ("JANE-ONLY-10", "bob", "customer_rules_violated"),
        ("JANE-ONLY-10", "", "customer_rules_violated"),
        ("JANE-ONLY-10", "jane", None),
        ("ONCE-EACH-10", "", "missing_customer"),
        ("ONCE-EACH-10", "bob", None),
        ("MIN-200", "", "order_rules_violated"),
        ("SHOES-10", "", "order_rules_violated"),
        ("FRIEND-OF-JANE", "jane", "referrer_not_permitted_to_redeem"),
        ("FRIEND-OF-JANE", "bob", None),
        ("FRIEND-EXPIRED", "bob", "voucher_expired"),
        ("FRIEND-USED-UP", "bob", "quantity_exceeded"),
        ("GIFT-EMPTY", "", "gift_amount_exceeded"),
        ({"object": "voucher", "id": "GIFT-50", "gift": {"credits": 5001}}, "", "gift_amount_exceeded"),
        ("CARD-COLLECT", "", "missing_reward"),
        ("CARD-SPEND", "", "missing_reward"),
        ({"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_1"}}, "", "not_found"),
        (
            {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 201}},
            "",
            "loyalty_card_points_exceeded",
        ),
    ],
)
def test_code_is_refused_with_the_documented_key(code: Any, customer: str, key: str | None) -> None:
    reply = Shop().validate(code, customer=customer)
    assert reply["valid"] is (key is None)
    (entry,) = merged(reply)
    assert entry["status"] == ("APPLICABLE" if key is None else "INAPPLICABLE")
    if key is not None:
        error = entry["result"]["error"]
        assert error["key"] == key == entry["result"]["details"]["key"]
        assert error["code"] == (404 if key == "not_found" else 400)
        assert {"message", "details", "request_id"} <= error.keys()
        assert "order" not in reply


RULES: list[tuple[str, str, Json, str, str | None]] = [
    # The campaign's rule, customer, order metadata, the one line, the error key.
    ("conditions = { customers = ['jane'] }", "jane", {}, "1000 x 1", None),
    ("conditions = { customers = ['jane'] }", "bob", {}, "1000 x 1", "customer_rules_violated"),
    ("conditions = { customers = ['jane'] }", "", {}, "1000 x 1", "customer_rules_violated"),
    ("conditions = { attributes = { channel = 'web' } }", "", {"channel": "web"}, "1000 x 1", None),
    ("conditions = { attributes = { channel = 'web' } }", "", {"channel": "app"}, "1000 x 1", "order_rules_violated"),
    ("conditions = { stores = ['berlin'] }", "", {"store": "berlin"}, "1000 x 1", None),
    ("conditions = { stores = ['berlin'] }", "", {}, "1000 x 1", "order_rules_violated"),
    ("conditions = { cart_over = '10.00' }", "", {}, "500 x 2", "order_rules_violated"),
    ("conditions = { cart_over = '10.00' }", "", {}, "1001 x 1", None),
    ("conditions = { cart_at_least = '10.00' }", "", {}, "500 x 2", None),
    ("conditions = { cart_at_least = '10.00' }", "", {}, "999 x 1", "order_rules_violated"),
    ("conditions = { units_at_least = 3 }", "", {}, "1000 x 2", "order_rules_violated"),
    ("conditions = { units_at_least = 3 }", "", {}, "1000 x 3", None),
    ("conditions = { any_item = { skus = ['SKU-0'] } }", "", {}, "1000 x 1", None),
    ("conditions = { any_item = { skus = ['SKU-1'] } }", "", {}, "1000 x 1", "order_rules_violated"),
    ("limits = { redemptions_per_customer = 1 }", "", {}, "1000 x 1", "missing_customer"),
    ("limits = { redemptions_per_customer = 1 }", "bob", {}, "1000 x 1", None),
    ("limits = { redemptions_per_customer = 0 }", "bob", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { redemptions = 0 }", "", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { budget = '0.99' }", "", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { budget = '1.00' }", "", {}, "1000 x 1", None),
    ("active = false", "", {}, "1000 x 1", "promotion_inactive"),
    ("starts = 2026-11-02T00:00:00Z", "", {}, "1000 x 1", "promotion_not_active_now"),
    ("ends = 2026-11-01T12:00:00Z", "", {}, "1000 x 1", "promotion_not_active_now"),
]


@pytest.mark.parametrize(("rule", "customer", "metadata", "line", "key"), RULES)
def test_campaign_rules_decide_whether_it_applies(
    rule: str, customer: str, metadata: Json, line: str, key: str | None
) -> None:
    settings = "[settings]\nstores = ['berlin']\n[settings.session_attributes]\nchannel = 'string'\n"
    campaign = campaigns({"promo_1": off("1.00")}).replace("needs", f"{rule}\nneeds")
    shop = Shop(own=rulebook.parse(settings + campaign))
    price, quantity = line.split(" x ")
    order = cart((int(price), int(quantity)), metadata=metadata)
    expected = "promo_1 order 100" if key is None else f"promo_1 - {key}"
    assert earned(shop.validate("promo_1", order=order, customer=customer)) == [expected]


CARDS = """
    [[campaigns]]
    id = 1
    name = "Gift"
    needs = "gift_card"
    effects = [{ kind = "pay_with_balance" }]
    [[gift_cards]]
    code = "GIFT-LATE"
    campaign = 1
    balance = "50.00"
    starts = 2027-01-01T00:00:00Z
    [[campaigns]]
    id = 2
    name = "Points"
    needs = "loyalty_card"
    effects = [{ kind = "pay_with_points", value = "1.00" }]
    [[loyalty_programs]]
    id = 1
    name = "points"
    campaigns = [2]
    [[loyalty_cards]]
    code = "CARD-OFF"
    program = 1
    active = false
    [[loyalty_cards]]
    code = "CARD-JANE"
    program = 1
    points = "7"
    customer = "jane"
    [[loyalty_cards]]
    code = "CARD-EMPTY"
    program = 1
    [[campaigns]]
    id = 3
    name = "Friends"
    needs = "referral"
    effects = [{ kind = "off_order", amount = "1.00" }]
    [[referrals]]
    code = "FOR-BOB"
    campaign = 3
    advocate = "jane"
    friend = "bob"
"""


@pytest.mark.parametrize(
    ("code", "customer", "expected"),
    [
        ("GIFT-LATE", "", "- voucher_not_active"),
        ("CARD-OFF", "", "- voucher_disabled"),
        ("CARD-JANE", "", "- invalid_customer"),
        ("CARD-JANE", "bob", "- invalid_customer"),
        ("CARD-JANE", "jane", "order 700"),
        ("CARD-EMPTY", "", "- loyalty_card_points_exceeded"),
        ("FOR-BOB", "bob", "order 100"),
        ("FOR-BOB", "max", "- customer_rules_violated"),
    ],
)
def test_cards_and_referral_codes_have_their_own_rules(code: str, customer: str, expected: str) -> None:
    reward = {"reward": {"id": "rew_2"}} if code.startswith("CARD") else {}
    reply = Shop(own=rulebook.parse(CARDS)).validate({"object": "voucher", "id": code} | reward, customer=customer)
    assert earned(reply) == [f"{code} {expected}"]


def test_violated_rule_returns_the_merchants_message() -> None:
    result = Shop().validate("MIN-200")["redeemables"][0]["result"]
    assert result["error"]["error"] == {"message": "20 off the items of carts from 200."}
    assert result["details"]["message"] == "20 off the items of carts from 200."


def test_every_code_with_a_refused_note_is_refused() -> None:
    # Of two codes that exclude each other Voucherify keeps the exclusive one, or the first: their notes say refused,
    # but this engine does not refuse them.
    others = {"refused together with another code", "refused together with WINTER-25, which gives more"}
    for code, note in book().codes_to_try():
        if note.startswith("refused"):
            assert not Shop().validate(code, customer="bob")["valid"], code
        if "refused below 200" in note or note.startswith("once per customer; refused without"):
            assert not Shop().validate(code)["valid"], code
    assert all(any(other in note for _, note in book().codes_to_try()) for other in others)


def test_missing_order_data_is_named() -> None:
    shop = Shop()
    table = [("SHOES-10", {"amount": 500}, "missing_order_items"), ("MIN-200", {}, "missing_amount")]
    for code, order, key in table:
        assert earned(shop.validate(code, order=order)) == [f"{code} - {key}"]
    for code in ("MIN-200", "GIFT-50"):
        body = {"redeemables": [redeemable(code)]}
        assert earned(shop.ok("POST", "validations", body)) == [f"{code} - missing_order"]


def test_case_sensitive_setting_refuses_other_case() -> None:
    shop = Shop(("case_sensitive_codes = false", "case_sensitive_codes = true"))
    assert earned(shop.validate("ten-percent")) == ["ten-percent - not_found"]
    assert earned(shop.validate("TEN-PERCENT")) == ["TEN-PERCENT #0 1400"]


def test_voucher_is_found_by_its_internal_id() -> None:
    shop = Shop()
    id_ = shop.ok("GET", "vouchers/TEN-PERCENT")["id"]
    assert id_.startswith("v_")
    assert earned(shop.validate(id_)) == ["TEN-PERCENT #0 1400"]
    assert shop.refused("POST", "validations", request(id_, "TEN-PERCENT")) == (400, "duplicated_redeemables")
    assert earned(shop.validate("v_zz")) == ["v_zz - not_found"]


BY_CASE = ("stacks = {}\ncase_sensitive_codes = false", "stacks = {}\ncase_sensitive_codes = true")


def test_codes_that_differ_by_case_are_distinct_only_when_case_sensitive() -> None:
    assert Shop().refused("POST", "validations", request("TWIN-5", "twin-5")) == (400, "duplicated_redeemables")
    assert earned(Shop().validate("twin-5")) == ["TWIN-5 order 500"]
    shop = Shop(BY_CASE)
    assert earned(shop.validate("TWIN-5", "twin-5")) == ["TWIN-5 order 500", "twin-5 order 700"]
    assert earned(shop.validate("Twin-5")) == ["Twin-5 - not_found"]


TWIN = f"v_{b'TWIN-5'.hex()}"


@pytest.mark.parametrize(
    ("naming", "names"),
    [
        ("as_stored", ["GOOD-5", "BAD-1", "nope", "promo_2", "TWIN-5"]),
        ("as_requested", ["good-5", "bad-1", "nope", "promo_2", TWIN]),
    ],
)
def test_answer_names_a_code_as_stored_or_as_requested(naming: str, names: list[str]) -> None:
    shop = Shop(('redeemables_named = "as_stored"', f'redeemables_named = "{naming}"'))
    reply = shop.validate("good-5", "bad-1", "nope", "promo_2", {"object": "voucher", "id": TWIN})
    assert sorted(entry["id"] for entry in merged(reply)) == sorted(names)


def test_internal_id_is_case_sensitive_when_codes_are() -> None:
    shop = Shop(BY_CASE)
    for code, expected in (("twin-5", "twin-5 order 700"), ("TWIN-5", "TWIN-5 order 500")):
        assert earned(shop.validate({"object": "voucher", "id": f"v_{code.encode().hex()}"})) == [expected]
    unknown = f"v_{b'Twin-5'.hex()}"
    assert earned(shop.validate({"object": "voucher", "id": unknown})) == [f"{unknown} - not_found"]


@pytest.mark.parametrize("code", ["v_day10", "v_31323334", "promo_10", "stack_up"])
def test_code_that_looks_like_an_internal_id_is_found(code: str) -> None:
    shop = Shop(own=small_book({"CODE": off("5.00")} | {"CODE-2": off("5.00")}))
    assert earned(shop.validate({"object": "voucher", "id": code})) == [f"{code} - not_found"]
    text = campaigns({"1234": off("1.00"), "CODE": off("5.00")})
    shop = Shop(own=rulebook.parse(text.replace("code = 'CODE'", f"code = '{code}'")))
    assert earned(shop.validate({"object": "voucher", "id": code})) == [f"{code} order 500"]


@pytest.mark.parametrize(
    ("mode", "nothing", "key"),
    [
        ("PARTIAL", "first_refusal", "voucher_expired"),
        ("PARTIAL", "no_applicable_redeemables", "no_applicable_redeemables"),
        ("ALL", "no_applicable_redeemables", "voucher_expired"),
    ],
)
def test_redemption_without_applicable_codes_returns_the_configured_key(mode: str, nothing: str, key: str) -> None:
    shop = Shop(
        ('mode = "PARTIAL"', f'mode = "{mode}"'),
        ('nothing_applies = "first_refusal"', f'nothing_applies = "{nothing}"'),
    )
    assert shop.refused("POST", "redemptions", request("BAD-1", "BAD-2")) == (400, key)
    # The same validation is not an error.
    assert shop.validate("BAD-1", "BAD-2")["valid"] is False
