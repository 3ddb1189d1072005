"""Talon.One's sandbox: a session's states, what a close redeems, and how that is rolled back."""

import asyncio
from collections.abc import Callable

import pytest

from tests.sandbox.talon_one_shop import Json, Shop, call, cart, effect_counts, items, of


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({}, {"acceptCoupon TEN-PERCENT", "setDiscountPerItem 10 % off#0 14 0/0", "acceptReferral FRIEND-OF-JANE"}),
        ({"couponCodes": []}, {"acceptReferral FRIEND-OF-JANE"}),
        ({"referralCode": ""}, {"acceptCoupon TEN-PERCENT", "setDiscountPerItem 10 % off#0 14 0/0"}),
        ({"cartItems": [], "referralCode": ""}, {"acceptCoupon TEN-PERCENT"}),
        (
            {"cartItems": items(("B", 1, 50)), "referralCode": ""},
            {"acceptCoupon TEN-PERCENT", "setDiscountPerItem 10 % off#0 5 0/0"},
        ),
    ],
)
def test_put_merges_into_the_session(second: Json, expected: set[str]) -> None:
    shop = Shop()
    shop.ok(cart("TEN-PERCENT", referralCode="FRIEND-OF-JANE", profileId="joe"))
    counted = set(effect_counts(shop.ok(second)))
    assert {text for text in counted if not text.startswith("setDiscount 10 off for a friend")} == expected


def test_put_merges_attributes_and_replaces_other_fields() -> None:
    shop = Shop()
    shop.ok({"attributes": {"ShippingCity": "Berlin", "b2b": True}, "additionalCosts": {"shipping": {"price": 1}}})
    second = {"attributes": {"b2b": False}, "additionalCosts": {"handling": {"price": 2}}}
    session = shop.ok(second, "s1", "", "customerSession")["customerSession"]
    assert session["attributes"] == {"ShippingCity": "Berlin", "b2b": False}
    assert session["additionalCosts"] == {"handling": {"price": 2}}


def test_dry_request_uses_only_its_own_fields_and_changes_nothing() -> None:
    shop = Shop()
    assert (
        effect_counts(shop.ok(cart("TEN-PERCENT", state="closed"), "new", "?dry=true"))["acceptCoupon TEN-PERCENT"] == 1
    )
    assert shop.get("new")[0] == 404
    shop.ok(cart("TEN-PERCENT", profileId="joe"))
    before = shop.get()
    assert effect_counts(shop.ok({"couponCodes": ["MIN-200"]}, "s1", "?dry=true")) == {
        "rejectCoupon CouponRejectedByCondition MIN-200": 1
    }
    shop.ok({"state": "closed"}, "s1", "?dry=true")
    assert shop.get() == before
    assert shop.books["codes"].get("TEN-PERCENT") is None


def test_testing_key_never_closes_a_session() -> None:
    shop = Shop(("testing_key = false", "testing_key = true"))
    reply = shop.ok(cart("SINGLE-0001", state="closed"), "s1", "", "customerSession")
    assert reply["customerSession"]["state"] == "closed"
    assert of(reply, "acceptCoupon")
    assert shop.get()[0] == 404
    assert shop.books["redemptions"] == []


def test_dry_request_accepts_a_time_and_campaign_ids() -> None:
    shop = Shop()
    assert of(shop.ok(cart("SOON-10"), "s1", "?dry=true&now=2099-06-01T00:00:00Z"), "acceptCoupon")
    assert of(shop.ok(cart("PAUSED-5", evaluableCampaignIds=[13]), "s1", "?dry=true"), "acceptCoupon")
    (props,) = of(shop.ok(cart("TEN-PERCENT", evaluableCampaignIds=[13]), "s1", "?dry=true"), "rejectCoupon")
    assert props["campaignExclusionReason"] == "CampaignNotInEvaluationSet"


PUTS: dict[str, Callable[[Shop], tuple[int, Json]]] = {
    state: lambda shop, state=state: shop.put({"state": state})
    for state in ("open", "closed", "cancelled", "partially_returned")
} | {"return": lambda shop: shop.give_back(), "reopen": Shop.reopen, "nothing": lambda shop: shop.put({})}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["open", "open"], None),
        (["nothing", "closed"], None),
        (["closed"], None),
        (["open", "cancelled"], None),
        (["closed", "cancelled"], None),
        (["closed", "reopen", "closed", "reopen", "open"], None),
        (["closed", "open"], 'Cannot move session to state "open" from state "closed"'),
        (["closed", "nothing"], 'Cannot move session to state "open" from state "closed"'),
        (["closed", "closed"], 'Cannot move session to state "closed" from state "closed"'),
        (["closed", "partially_returned"], 'Cannot move session to state "partially_returned" from state "closed"'),
        (["closed", "cancelled", "open"], 'Cannot move session to state "open" from state "cancelled"'),
        (["closed", "cancelled", "cancelled"], 'Cannot move session to state "cancelled" from state "cancelled"'),
        (["closed", "cancelled", "reopen"], 'Cannot move session to state "open" from state "cancelled"'),
        (["open", "reopen"], 'Cannot move session to state "open" from state "open"'),
        (["open", "partially_returned"], 'Cannot move session to state "partially_returned" from state "open"'),
        (["closed", "return", "return", "cancelled"], None),
        (["closed", "return", "open"], 'Cannot move session to state "open" from state "partially_returned"'),
        (["closed", "return", "closed"], 'Cannot move session to state "closed" from state "partially_returned"'),
        (["closed", "return", "reopen"], 'Cannot move session to state "open" from state "partially_returned"'),
        (["open", "return"], 'Cannot move session to state "partially_returned" from state "open"'),
        (["closed", "cancelled", "return"], 'Cannot move session to state "partially_returned" from state "cancelled"'),
        (["cancelled"], 'Cannot move session to state "cancelled" from state ""'),
    ],
)
def test_session_allows_only_documented_state_changes(path: list[str], message: str | None) -> None:
    shop = Shop()
    *steps, last = (PUTS[step](shop) for step in path)
    assert [status for status, _ in steps] == [200] * len(steps)
    assert last[0] == (200 if message is None else 400)
    if message is not None:
        assert last[1]["message"] == message
        assert "StatusCode" not in last[1]


def test_code_is_redeemed_at_close_and_freed_by_cancel_and_reopen() -> None:
    for back, rolled in ((lambda shop: shop.put({"state": "cancelled"}), "cancelled"), (Shop.reopen, "open")):
        shop = Shop()
        shop.ok(cart("SINGLE-0042", profileId="joe"))
        assert shop.books["codes"].get("SINGLE-0042") is None
        shop.ok({"state": "closed"})
        assert shop.books["codes"]["SINGLE-0042"] == 1
        assert effect_counts(shop.ok(cart("SINGLE-0042"), "s2")) == {"rejectCoupon CouponLimitReached SINGLE-0042": 1}
        assert effect_counts(shop.ok(cart("SINGLE-0043"), "s3"))["acceptCoupon SINGLE-0043"] == 1
        status, reply = back(shop)
        assert status == 200
        assert effect_counts(reply) == {"rollbackCoupon SINGLE-0042": 1, "rollbackDiscount 10 % off#0 14": 1}
        assert shop.get()[1]["customerSession"]["state"] == rolled
        assert shop.get()[1]["effects"] == []
        assert shop.books["codes"].get("SINGLE-0042") is None
        assert [entry["what"] for entry in shop.books["redemptions"]] == ["redeemed", "rolled back"]
        assert effect_counts(shop.ok(cart("SINGLE-0042"), "s4"))["acceptCoupon SINGLE-0042"] == 1


def test_cancel_restores_codes_balances_and_points() -> None:
    shop = Shop()
    session = cart("GIFT-50", "FIRST-THREE", profileId="joe", referralCode="FRIEND-OF-JANE", price=40)
    before = shop.books
    shop.ok(session | {"loyaltyCards": ["CARD-SPEND"], "state": "closed"}, "s1")
    shop.ok(cart(loyaltyCards=["CARD-COLLECT"], state="closed", price=9), "s2")
    after = shop.books
    assert after["gift_cards"]["GIFT-50"] == 25
    assert after["loyalty_cards"] == {"CARD-COLLECT": 124, "CARD-SPEND": 200}
    assert after["campaigns"]["14"] == {"redemptions": 1, "discount": 5}
    refused = of(shop.ok(cart(referralCode="FRIEND-OF-JANE", profileId="joe"), "s3"), "rejectReferral")
    assert [props["rejectionReason"] for props in refused] == ["ReferralCustomerAlreadyReferred"]
    for id_ in ("s1", "s2"):
        shop.ok({"state": "cancelled"}, id_)
    for kind in ("codes", "gift_cards", "loyalty_cards"):
        assert shop.books[kind] == before[kind]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [("redemptions = 1", "CampaignLimitReached"), ('budget = "15.00"', "EffectCouldNotBeApplied")],
)
def test_two_codes_of_one_campaign_share_its_limits(limits: str, reason: str) -> None:
    shop = Shop(('name = "Ten percent"', f'name = "Ten percent"\nlimits = {{ {limits} }}'))
    reply = shop.ok(cart("SINGLE-0001", "SINGLE-0002", price=100))
    assert [p["value"] for p in of(reply, "setDiscountPerItem")] == [10]
    assert [p["rejectionReason"] for p in of(reply, "rejectCoupon")] == [reason]


def test_two_campaigns_never_spend_the_same_points() -> None:
    another = '[[campaigns]]\nid = 52\nname = "Again"\nneeds = "loyalty_card"\n'
    another += 'effects = [{ kind = "pay_with_points", value = "0.01" }]\n\n[[loyalty_cards]]\ncode = "CARD-SPEND"'
    shop = Shop(("campaigns = [51]", "campaigns = [52, 51]"), ('[[loyalty_cards]]\ncode = "CARD-SPEND"', another))
    reply = shop.ok(cart(loyaltyCards=["CARD-SPEND"], state="closed"))
    assert [(p["name"], p["value"]) for p in of(reply, "setDiscount")] == [("Again", 2)]
    assert shop.books["loyalty_cards"]["CARD-SPEND"] == 0


@pytest.mark.parametrize("back", [Shop.reopen, lambda shop: shop.put({"state": "cancelled"})])
def test_rejections_and_non_monetary_effects_are_not_rolled_back(back: Callable[[Shop], tuple[int, Json]]) -> None:
    shop = Shop()
    shop.ok(cart("EVERYTHING", "NO-SUCH-CODE", state="closed"))
    assert not [kind for kind in effect_counts(back(shop)[1]) if not kind.startswith("rollback")]
    assert {effect["effectType"] for effect in shop.get()[1]["effects"]} == {
        "addFreeItem",
        "customEffect",
        "showNotification",
    }


def test_customer_and_campaign_limits_count_closed_sessions() -> None:
    shop = Shop()
    for id_ in ("a", "b", "c"):
        shop.ok(cart("FIRST-THREE", state="closed"), id_)
    assert effect_counts(shop.ok(cart("FIRST-THREE"), "d")) == {"rejectCoupon CampaignLimitReached FIRST-THREE": 1}
    shop.ok(cart("ONCE-EACH-10", profileId="joe", state="closed"), "e")
    for profile, kind in (("joe", "rejectCoupon ProfileLimitReached"), ("jim", "acceptCoupon")):
        assert (
            effect_counts(shop.ok(cart("ONCE-EACH-10", profileId=profile), f"f-{profile}"))[f"{kind} ONCE-EACH-10"] == 1
        )


def test_last_use_goes_to_the_first_close_and_the_second_closes_without() -> None:
    shop = Shop()
    for id_ in ("first", "second"):
        assert of(shop.ok(cart("SINGLE-0001"), id_), "acceptCoupon")
    assert of(shop.ok({"state": "closed"}, "first"), "acceptCoupon")
    assert effect_counts(shop.ok({"state": "closed"}, "second")) == {"rejectCoupon CouponLimitReached SINGLE-0001": 1}
    assert shop.get("second")[1]["customerSession"]["state"] == "closed"
    assert shop.books["codes"]["SINGLE-0001"] == 1


def test_get_returns_the_last_update() -> None:
    shop = Shop()
    assert shop.get() == (404, {"message": "Customer session not found", "errors": [], "StatusCode": 404})
    reply = shop.ok(cart("TEN-PERCENT", state="closed"), "s1", "", "customerSession")
    status, read = shop.get()
    assert status == 200
    assert read == {"customerSession": reply["customerSession"], "effects": reply["effects"]}


@pytest.mark.parametrize(
    ("session", "totals"),
    [
        ({}, (0, 0, 0, 0)),
        (cart("XMAS-2021-25", price=140.5, quantity=2), (281, 281, 0, 0)),
        (
            {
                "cartItems": [
                    {"sku": "A", "quantity": 1, "price": 99.99, "additionalCosts": {"shipping": {"price": 15}}}
                ],
                "additionalCosts": {"shipping": {"price": 20}},
            },
            (134.99, 99.99, 20, 15),
        ),
    ],
)
def test_session_totals_are_before_discounts(session: Json, totals: tuple[float, ...]) -> None:
    answered = Shop().ok(session, "s1", "", "customerSession")["customerSession"]
    names = ("total", "cartItemTotal", "additionalCostTotal", "cartItemAdditionalCostTotal")
    assert tuple(answered[name] for name in names) == totals


def test_money_is_written_as_exact_json_numbers() -> None:
    shop = Shop()
    body = b'{"customerSession":{"cartItems":[{"sku":"A","quantity":1,"price":99.99}],"couponCodes":["TEN-PERCENT"]}}'
    _, reply = asyncio.run(call(shop.engine, "/v2/customer_sessions/s1", body))
    assert b'"value":9.999,' in reply


SENT = {
    "attributes": {"b2b": True, "channel": "web"},
    "additionalCosts": {"shipping": {"price": 1}},
    "storeIntegrationId": "berlin",
}
ATTRIBUTES = ('attributes = "merge"', 'attributes = "replace"')
COSTS = ('additional_costs = "replace"', 'additional_costs = "merge"')
CLEAR, IGNORE = (('nulls = "refuse"', f'nulls = "{mode}"') for mode in ("clear", "ignore"))
HANDLING = {"handling": {"price": 2}}
NULLS = {"attributes": {"b2b": None}, "additionalCosts": None, "storeIntegrationId": None}


@pytest.mark.parametrize(
    ("change", "second", "left"),
    [
        (None, {}, SENT),
        (None, {"attributes": {"b2b": False}}, SENT | {"attributes": {"b2b": False, "channel": "web"}}),
        (ATTRIBUTES, {"attributes": {"b2b": False}}, SENT | {"attributes": {"b2b": False}}),
        (None, {"additionalCosts": HANDLING}, SENT | {"additionalCosts": HANDLING}),
        (COSTS, {"additionalCosts": HANDLING}, SENT | {"additionalCosts": {"shipping": {"price": 1}} | HANDLING}),
        (None, {"storeIntegrationId": "new-york"}, SENT | {"storeIntegrationId": "new-york"}),
        (CLEAR, NULLS, {"attributes": {"channel": "web"}, "additionalCosts": {}, "storeIntegrationId": None}),
        (IGNORE, NULLS, SENT),
        (IGNORE, {"additionalCosts": {"shipping": None}}, SENT | {"additionalCosts": {}}),
    ],
)
def test_session_keeps_each_field_until_an_update_changes_it(
    change: tuple[str, str] | None, second: Json, left: Json
) -> None:
    shop = Shop(*([change] if change else []))
    shop.ok(SENT)
    session = shop.ok(second, "s1", "", "customerSession")["customerSession"]
    assert {name: session.get(name) for name in SENT} == left


def test_null_is_refused_by_default() -> None:
    status, reply = Shop().put({"attributes": {"b2b": None}, "storeIntegrationId": None})
    assert status == 400
    assert {error["source"]["pointer"] for error in reply["errors"]} == {"/attributes/b2b", "/storeIntegrationId"}


def test_store_discount_applies_until_the_store_is_cleared() -> None:
    shop = Shop(CLEAR)
    shop.ok(cart(price=300, storeIntegrationId="berlin"))
    assert of(shop.ok(cart(price=300)), "addFreeItem")
    assert not of(shop.ok(cart(price=300, storeIntegrationId=None)), "addFreeItem")
