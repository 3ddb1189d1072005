"""Talon.One's sandbox: what the vendor documents, its refusals, its states; and the vendor's own client as a judge.

The faults are tried against a real server, since most of them happen to a connection.
"""

import asyncio
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import talon_one

from adapters.talon_one.sandbox import TalonOneSandbox
from mapper.sandbox import host as sandbox
from mapper.sandbox import rulebook

Json = dict[str, Any]

DEFAULT = resources.files("mapper.sandbox").joinpath("rulebook.toml").read_text("utf-8")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
KEY = {"authorization": "ApiKey-v1 key"}


@cache
def book(*changes: tuple[str, str]) -> rulebook.RuleBook:
    """The default rule book with something changed."""
    text = DEFAULT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return rulebook.parse(text)


async def call(
    app: Any,
    path: str,
    body: bytes = b'{"customerSession": {}}',
    method: str = "PUT",
    *,
    pause: float = 0,
    **headers: Any,
) -> tuple[int, bytes]:
    """One request straight into the emulator, with the path as it stands on the wire."""
    raw_path, _, query = path.encode().partition(b"?")
    named = KEY | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": raw_path.decode(),
        "raw_path": raw_path,
        "root_path": "",
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        sandbox.PAUSE: pause,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


class Shop:
    """A shop that talks to a sandbox of its own, at a time of its own."""

    def __init__(self, *changes: tuple[str, str]) -> None:
        self.now = NOW
        self.engine = TalonOneSandbox(book(*changes), lambda: self.now)

    def request(self, path: str, body: bytes = b"", method: str = "PUT", **headers: Any) -> tuple[int, Json]:
        status, reply = asyncio.run(call(self.engine, f"/v2/customer_sessions/{path}", body, method, **headers))
        return status, json.loads(reply)

    def send(self, body: Any, id_: str = "s1", query: str = "", **headers: str) -> tuple[int, Json]:
        return self.request(id_ + query, json.dumps(body).encode(), **headers)

    def put(self, session: Json, id_: str = "s1", query: str = "", **headers: str) -> tuple[int, Json]:
        return self.send({"customerSession": session}, id_, query, **headers)

    def ok(self, session: Json, id_: str = "s1", query: str = "", *content: str, **headers: str) -> Json:
        status, reply = self.send({"customerSession": session, "responseContent": content}, id_, query, **headers)
        assert status == 200, reply
        return reply

    def get(self, id_: str = "s1") -> tuple[int, Json]:
        return self.request(id_, method="GET")

    def reopen(self, id_: str = "s1") -> tuple[int, Json]:
        return self.request(f"{id_}/reopen")

    @property
    def books(self) -> Json:
        return self.engine.books()


def items(*lines: tuple[str, int, float]) -> list[Json]:
    return [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]


def cart(*codes: str, price: float = 140, quantity: int = 1, **more: Any) -> Json:
    return {"cartItems": items(("SHIRT", quantity, price)), "couponCodes": list(codes), **more}


def of(reply: Json, kind: str) -> list[Json]:
    return [effect["props"] for effect in reply["effects"] if effect["effectType"] == kind]


def told(reply: Json) -> Counter[str]:
    """What a reply says, whatever the order: "kind value" or "kind name value", and where."""
    said = []
    for effect in reply["effects"]:
        props = effect["props"]
        spot = [str(props[name]) for name in ("position", "subPosition") if name in props]
        words = [props.get("rejectionReason") or props.get("name"), props.get("value"), "/".join(spot)]
        said.append(" ".join([effect["effectType"], *(str(word) for word in words if word not in (None, ""))]))
    return Counter(said)


# --- What a cart earns ------------------------------------------------------------------------------------------------


def test_the_cart_of_nacelles_page_earns_what_the_page_shows() -> None:
    reply = Shop().ok(cart("XMAS-2021-25", additionalCosts={"shipping": {"price": 15}}))
    assert told(reply) == {
        "acceptCoupon XMAS-2021-25": 1,
        "setDiscountPerItem 35 off every item over 100#0 35 0/0": 1,
        "setDiscountPerAdditionalCost Free shipping 15": 1,
    }
    triggered = {effect["effectType"]: effect.get("triggeredByCoupon") for effect in reply["effects"]}
    assert triggered["setDiscountPerItem"] == triggered["acceptCoupon"]
    assert triggered["setDiscountPerAdditionalCost"] is None


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (cart(), []),
        (cart(additionalCosts={"shipping": {"price": 15}}), ["setDiscountPerAdditionalCost Free shipping 15"]),
        (cart(price=100, additionalCosts={"shipping": {"price": 15}}), []),
        (cart("TEN-PERCENT", price=99.99), ["acceptCoupon TEN-PERCENT", "setDiscountPerItem 10 % off#0 9.999 0/0"]),
        # Flattening: one effect for every unit of a line.
        (
            {"cartItems": items(("A", 1, 60), ("B", 2, 20)), "couponCodes": ["TEN-PERCENT"]},
            [
                "acceptCoupon TEN-PERCENT",
                "setDiscountPerItem 10 % off#0 6 0/0",
                "setDiscountPerItem 10 % off#1 2 1/0",
                "setDiscountPerItem 10 % off#1 2 1/1",
            ],
        ),
        # Nothing is rounded: a third of ten has the digits of a double.
        (
            cart("LINE-10", quantity=3),
            [
                "acceptCoupon LINE-10",
                *(f"setDiscountPerItem 10 off the line#0 3.333333333333333 0/{sub}" for sub in range(3)),
            ],
        ),
        (cart("MIN-200", price=200), ["acceptCoupon MIN-200", "setDiscount 20 off 20"]),
        (cart("GIFT-50"), ["acceptCoupon GIFT-50", "setDiscount Gift card 50"]),
        (cart("GIFT-50", price=12.5), ["acceptCoupon GIFT-50", "setDiscount Gift card 12.5"]),
        # A gift card pays what the other codes left.
        (
            cart("GIFT-50", "WINTER-25", price=60),
            [
                "acceptCoupon GIFT-50",
                "setDiscount Gift card 45",
                "acceptCoupon WINTER-25",
                "setDiscountPerItem Winter 25 %#0 15 0/0",
            ],
        ),
        (
            cart(referralCode="friend-of-jane", profileId="joe"),
            ["acceptReferral FRIEND-OF-JANE", "setDiscount 10 off for a friend 10"],
        ),
        (cart(loyaltyCards=["CARD-COLLECT"], price=9.99), ["addLoyaltyPoints Points for your purchase 4"]),
        (
            cart(loyaltyCards=["CARD-SPEND"]),
            ["setDiscount Paid with points 10", "deductLoyaltyPoints Paid with points 200"],
        ),
        (
            cart(price=300, storeIntegrationId="berlin"),
            ["addFreeItem A mug on us", "showNotification"],
        ),
        (cart(price=300, storeIntegrationId="new-york"), []),
        (
            cart("EVERYTHING", price=10, additionalCosts={"handling": {"price": 1.5}, "shipping": {"price": 4}}),
            [
                "acceptCoupon EVERYTHING",
                "setDiscountPerItem A third off#0 3.33333 0/0",
                "setDiscountPerAdditionalCost 2 off handling 1.5",
                "setDiscount 1 off the costs 1",
                "addFreeItem Everything at once",
                "addFreeItem Everything at once",
                "showNotification",
                "customEffect crm_tag",
            ],
        ),
        (
            {
                "cartItems": [
                    {"sku": "A", "quantity": 2, "price": 5, "additionalCosts": {"gift_wrap": {"price": 3}}},
                    {"sku": "B", "quantity": 1, "price": 5, "additionalCosts": {"gift_wrap": {"price": 2}}},
                ],
                "couponCodes": ["WRAPPED"],
            },
            ["acceptCoupon WRAPPED"]
            + [
                f"setDiscountPerAdditionalCostPerItem Free wrapping#{where[0]} {value} {where}"
                for where, value in (("0/0", 3), ("0/1", 3), ("1/0", 2))
            ],
        ),
    ],
)
def test_a_cart_earns_what_the_rule_book_says(session: Json, expected: list[str]) -> None:
    assert told(Shop().ok(session)) == Counter(expected)


def test_a_sum_is_spread_pro_rata_with_its_total_in_every_effect() -> None:
    lines = items(("A", 1, 30), ("B", 2, 15), ("C", 1, 40))
    for line in lines[:2]:
        line["category"] = "shoes"
    given = of(Shop().ok({"cartItems": lines, "couponCodes": ["SHOES-10"]}), "setDiscountPerItem")
    assert {(p["position"], p["subPosition"]): (p["value"], p["totalDiscount"]) for p in given} == {
        (0, 0): (5, 10),
        (1, 0): (2.5, 10),
        (1, 1): (2.5, 10),
    }


def test_an_old_application_gives_one_discount_per_line() -> None:
    shop = Shop(("flatten = true", "flatten = false"))
    assert told(shop.ok(cart("TEN-PERCENT", quantity=3, price=10))) == {
        "acceptCoupon TEN-PERCENT": 1,
        "setDiscountPerItem 10 % off#0 3 0": 1,
    }


def test_cascading_discounts_compute_on_what_is_left_and_name_their_scope() -> None:
    session = cart("TEN-PERCENT", "WINTER-25", "MIN-200", price=200)
    plain = Shop().ok(session)
    assert sorted(p["value"] for p in of(plain, "setDiscountPerItem")) == [20, 50]
    assert "scope" not in of(plain, "setDiscount")[0]
    cascading = Shop(("cascading_discounts = false", "cascading_discounts = true")).ok(session)
    assert sorted(p["value"] for p in of(cascading, "setDiscountPerItem")) == [20, 45]
    assert of(cascading, "setDiscount")[0]["scope"] == "cartItems"


def test_a_budget_that_is_too_small_gives_nothing_or_what_it_has() -> None:
    for changes, third in (((), None), ((("partial_rewards = false", "partial_rewards = true"),), (20, 50))):
        shop = Shop(*changes)
        for id_ in ("a", "b"):
            shop.ok(cart("BUDGET-50", state="closed"), id_)
        reply = shop.ok(cart("BUDGET-50", state="closed"), "c")
        given = [(p["value"], p["desiredValue"]) for p in of(reply, "setDiscount")]
        assert given == ([] if third is None else [third])
        assert [p["rejectionReason"] for p in of(reply, "rejectCoupon")] == (
            [] if third else ["EffectCouldNotBeApplied"]
        )
        assert of(shop.ok(cart("BUDGET-50"), "d"), "rejectCoupon")[0]["rejectionReason"] == "EffectCouldNotBeApplied"


def test_the_order_of_effects_means_nothing_and_stays_the_same() -> None:
    session = {"cartItems": items(*((sku, 1, 140) for sku in "ABCDEFGH")), "couponCodes": ["XMAS-2021-25"]}
    orders = {id_: [p["position"] for p in of(Shop().ok(session, id_), "setDiscountPerItem")] for id_ in ("x", "y")}
    assert sorted(orders["x"]) == sorted(orders["y"]) == list(range(8))
    assert orders["x"] != list(range(8))
    assert orders["x"] != orders["y"]
    assert orders["x"] == [p["position"] for p in of(Shop().ok(session, "x"), "setDiscountPerItem")]


# --- Refused codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (cart("NO-SUCH-CODE"), "CouponNotFound"),
        (cart("CARD-COLLECT"), "CouponNotFound"),
        (cart("FRIEND-OF-JANE"), "CouponNotFound"),
        (cart("EXPIRED-10"), "CouponExpired"),
        (cart("SOON-10"), "CouponStartDateInFuture"),
        (cart("USED-UP-10"), "CouponLimitReached"),
        (cart("JANE-ONLY-10"), "CouponRecipientDoesNotMatch"),
        (cart("JANE-ONLY-10", profileId="joe"), "CouponRecipientDoesNotMatch"),
        (cart("JANE-ONLY-10", profileId="jane"), None),
        (cart("ONCE-EACH-10"), "ProfileRequired"),
        (cart("ONCE-EACH-10", profileId="joe"), None),
        (cart("MIN-200", price=199.99), "CouponRejectedByCondition"),
        (cart("XMAS-2021-25", price=100), "CouponRejectedByCondition"),
        (cart("SHOES-10"), "CouponRejectedByCondition"),
        (cart("PAUSED-5"), "CouponPartOfNotRunningCampaign"),
        (cart("ALONE-15"), None),
        (cart("ALONE-15", "GIFT-50"), None),
        (cart("TEN-PERCENT", "ALONE-15"), "CouponPartOfNotTriggeredCampaign"),
        (cart("WINTER-5", "WINTER-25"), "CouponPartOfNotTriggeredCampaign"),
        (cart("WINTER-5"), None),
        (cart("WRAPPED"), "EffectCouldNotBeApplied"),
        (cart("GIFT-EMPTY"), "EffectCouldNotBeApplied"),
        (cart(referralCode="NO-FRIEND"), "ReferralNotFound"),
        (cart(referralCode="TEN-PERCENT"), "ReferralNotFound"),
        (cart(referralCode="FRIEND-EXPIRED"), "ReferralExpired"),
        (cart(referralCode="FRIEND-USED-UP"), "ReferralLimitReached"),
        (cart(referralCode="FRIEND-OF-JANE", profileId="jane"), "ReferralRecipientIdSameAsAdvocate"),
    ],
)
def test_a_code_is_refused_in_the_words_of_the_documentation(session: Json, reason: str | None) -> None:
    reply = Shop().ok(session)
    refused = of(reply, "rejectCoupon") + of(reply, "rejectReferral")
    assert [props["rejectionReason"] for props in refused] == ([] if reason is None else [reason])


def test_every_note_of_the_rule_book_that_says_refused_is_right() -> None:
    wrong = {}
    for entry in book().entries:
        if entry.note.startswith("refused"):
            code = entry.code or ""
            key = "referralCode" if isinstance(entry, rulebook.Referral) else "couponCodes"
            reply = Shop().ok(cart() | {key: code if key == "referralCode" else [code]})
            if not of(reply, "rejectCoupon") + of(reply, "rejectReferral"):
                wrong[code] = entry.note
    assert wrong == {}


def test_an_exclusion_says_why() -> None:
    for codes, why in ((("TEN-PERCENT", "ALONE-15"), "CampaignIsNotFirst"), (("WINTER-5", "WINTER-25"), None)):
        (props,) = of(Shop().ok(cart(*codes)), "rejectCoupon")
        assert props["campaignExclusionReason"] == (why or "CampaignGaveLowerDiscount")


def test_codes_are_the_same_in_any_case_and_answered_in_the_engines_spelling() -> None:
    reply = Shop().ok(cart("ten-percent", "Ten-Percent", "nothing"))
    assert [p["value"] for p in of(reply, "acceptCoupon")] == ["TEN-PERCENT"]
    assert [p["value"] for p in of(reply, "rejectCoupon")] == ["nothing"]
    assert [e["campaignId"] for e in reply["effects"] if e["effectType"] == "rejectCoupon"] == [-1]


# --- Sessions ---------------------------------------------------------------------------------------------------------


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
def test_put_is_a_merge(second: Json, expected: set[str]) -> None:
    shop = Shop()
    shop.ok(cart("TEN-PERCENT", referralCode="FRIEND-OF-JANE", profileId="joe"))
    said = set(told(shop.ok(second)))
    assert {word for word in said if not word.startswith("setDiscount 10 off for a friend")} == expected


def test_attributes_are_kept_one_by_one_and_other_fields_as_a_whole() -> None:
    shop = Shop()
    shop.ok({"attributes": {"ShippingCity": "Berlin", "b2b": True}, "additionalCosts": {"shipping": {"price": 1}}})
    second = {"attributes": {"b2b": False}, "additionalCosts": {"handling": {"price": 2}}}
    session = shop.ok(second, "s1", "", "customerSession")["customerSession"]
    assert session["attributes"] == {"ShippingCity": "Berlin", "b2b": False}
    assert session["additionalCosts"] == {"handling": {"price": 2}}


def test_a_dry_request_considers_only_what_it_carries_and_changes_nothing() -> None:
    shop = Shop()
    assert told(shop.ok(cart("TEN-PERCENT", state="closed"), "new", "?dry=true"))["acceptCoupon TEN-PERCENT"] == 1
    assert shop.get("new")[0] == 404
    shop.ok(cart("TEN-PERCENT", profileId="joe"))
    before = shop.get()
    assert told(shop.ok({"couponCodes": ["MIN-200"]}, "s1", "?dry=true")) == {
        "rejectCoupon CouponRejectedByCondition MIN-200": 1
    }
    shop.ok({"state": "closed"}, "s1", "?dry=true")
    assert shop.get() == before
    assert shop.books["codes"].get("TEN-PERCENT") is None


def test_a_dry_request_can_look_ahead() -> None:
    shop = Shop()
    assert of(shop.ok(cart("SOON-10"), "s1", "?dry=true&now=2099-06-01T00:00:00Z"), "acceptCoupon")
    assert of(shop.ok(cart("PAUSED-5", evaluableCampaignIds=[13]), "s1", "?dry=true"), "acceptCoupon")
    (props,) = of(shop.ok(cart("TEN-PERCENT", evaluableCampaignIds=[13]), "s1", "?dry=true"), "rejectCoupon")
    assert props["campaignExclusionReason"] == "CampaignNotInEvaluationSet"


PUTS: dict[str, Callable[[Shop], tuple[int, Json]]] = {
    state: lambda shop, state=state: shop.put({"state": state})
    for state in ("open", "closed", "cancelled", "partially_returned")
} | {"reopen": Shop.reopen, "nothing": lambda shop: shop.put({})}


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
        (["cancelled"], 'Cannot move session to state "cancelled" from state ""'),
    ],
)
def test_a_session_moves_as_documented(path: list[str], message: str | None) -> None:
    shop = Shop()
    *steps, last = (PUTS[step](shop) for step in path)
    assert [status for status, _ in steps] == [200] * len(steps)
    assert last[0] == (200 if message is None else 400)
    if message is not None:
        assert last[1]["message"] == message
        assert "StatusCode" not in last[1]


def test_a_code_is_redeemed_at_close_only_and_comes_back_with_cancel_and_reopen() -> None:
    for back, rolled in ((lambda shop: shop.put({"state": "cancelled"}), "cancelled"), (Shop.reopen, "open")):
        shop = Shop()
        shop.ok(cart("SINGLE-0042", profileId="joe"))
        assert shop.books["codes"].get("SINGLE-0042") is None
        shop.ok({"state": "closed"})
        assert shop.books["codes"]["SINGLE-0042"] == 1
        assert told(shop.ok(cart("SINGLE-0042"), "s2")) == {"rejectCoupon CouponLimitReached SINGLE-0042": 1}
        assert told(shop.ok(cart("SINGLE-0043"), "s3"))["acceptCoupon SINGLE-0043"] == 1
        status, reply = back(shop)
        assert status == 200
        assert told(reply) == {"rollbackCoupon SINGLE-0042": 1, "rollbackDiscount 10 % off#0 14": 1}
        assert shop.get()[1]["customerSession"]["state"] == rolled
        assert shop.get()[1]["effects"] == []
        assert shop.books["codes"].get("SINGLE-0042") is None
        assert [entry["what"] for entry in shop.books["redemptions"]] == ["redeemed", "rolled back"]
        assert told(shop.ok(cart("SINGLE-0042"), "s4"))["acceptCoupon SINGLE-0042"] == 1


def test_everything_a_close_takes_is_counted_and_given_back() -> None:
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
def test_two_codes_of_one_campaign_in_one_cart_share_its_limits(limits: str, reason: str) -> None:
    shop = Shop(('name = "Ten percent"', f'name = "Ten percent"\nlimits = {{ {limits} }}'))
    reply = shop.ok(cart("SINGLE-0001", "SINGLE-0002", price=100))
    assert [p["value"] for p in of(reply, "setDiscountPerItem")] == [10]
    assert [p["rejectionReason"] for p in of(reply, "rejectCoupon")] == [reason]


def test_two_campaigns_never_spend_a_point_twice() -> None:
    another = '[[campaigns]]\nid = 52\nname = "Again"\nneeds = "loyalty_card"\n'
    another += 'effects = [{ kind = "pay_with_points", value = "0.01" }]\n\n[[loyalty_cards]]\ncode = "CARD-SPEND"'
    shop = Shop(("campaigns = [51]", "campaigns = [52, 51]"), ('[[loyalty_cards]]\ncode = "CARD-SPEND"', another))
    reply = shop.ok(cart(loyaltyCards=["CARD-SPEND"], state="closed"))
    assert [(p["name"], p["value"]) for p in of(reply, "setDiscount")] == [("Again", 2)]
    assert shop.books["loyalty_cards"]["CARD-SPEND"] == 0


def test_what_was_refused_or_given_for_good_is_not_rolled_back() -> None:
    shop = Shop()
    shop.ok(cart("EVERYTHING", "NO-SUCH-CODE", state="closed"))
    assert not [kind for kind in told(shop.reopen()[1]) if not kind.startswith("rollback")]
    assert {effect["effectType"] for effect in shop.get()[1]["effects"]} == {
        "addFreeItem",
        "customEffect",
        "showNotification",
    }


def test_limits_per_customer_and_per_campaign_count_closed_sessions() -> None:
    shop = Shop()
    for id_ in ("a", "b", "c"):
        shop.ok(cart("FIRST-THREE", state="closed"), id_)
    assert told(shop.ok(cart("FIRST-THREE"), "d")) == {"rejectCoupon CampaignLimitReached FIRST-THREE": 1}
    shop.ok(cart("ONCE-EACH-10", profileId="joe", state="closed"), "e")
    for profile, kind in (("joe", "rejectCoupon ProfileLimitReached"), ("jim", "acceptCoupon")):
        assert told(shop.ok(cart("ONCE-EACH-10", profileId=profile), f"f-{profile}"))[f"{kind} ONCE-EACH-10"] == 1


def test_the_last_use_goes_to_the_first_close_and_the_second_is_closed_without_it() -> None:
    shop = Shop()
    for id_ in ("first", "second"):
        assert of(shop.ok(cart("SINGLE-0001"), id_), "acceptCoupon")
    assert of(shop.ok({"state": "closed"}, "first"), "acceptCoupon")
    assert told(shop.ok({"state": "closed"}, "second")) == {"rejectCoupon CouponLimitReached SINGLE-0001": 1}
    assert shop.get("second")[1]["customerSession"]["state"] == "closed"
    assert shop.books["codes"]["SINGLE-0001"] == 1


def test_what_is_read_is_what_the_last_update_left() -> None:
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
def test_the_totals_of_a_session_are_before_any_discount(session: Json, totals: tuple[float, ...]) -> None:
    told = Shop().ok(session, "s1", "", "customerSession")["customerSession"]
    names = ("total", "cartItemTotal", "additionalCostTotal", "cartItemAdditionalCostTotal")
    assert tuple(told[name] for name in names) == totals


def test_money_is_written_as_exact_json_numbers() -> None:
    shop = Shop()
    body = b'{"customerSession":{"cartItems":[{"sku":"A","quantity":1,"price":99.99}],"couponCodes":["TEN-PERCENT"]}}'
    _, reply = asyncio.run(call(shop.engine, "/v2/customer_sessions/s1", body))
    assert b'"value":9.999,' in reply


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "pointers"),
    [
        ({"cartItems": [{"quantity": 1, "price": 1}]}, ["/cartItems/0/sku"]),
        (
            {"cartItems": [{"sku": "A", "price": 1}, {"sku": "A", "quantity": 1}]},
            ["/cartItems/0/quantity", "/cartItems/1/price"],
        ),
        ({"cartItems": items(("", 1, 1))}, ["/cartItems/0/sku"]),
        ({"cartItems": items(("A", 0, 1))}, ["/cartItems/0/quantity"]),
        ({"cartItems": [{"sku": "A", "quantity": 1.0, "price": 1}]}, ["/cartItems/0/quantity"]),
        ({"cartItems": [{"sku": "A", "quantity": True, "price": 1}]}, ["/cartItems/0/quantity"]),
        ({"cartItems": [{"sku": "A", "quantity": 1, "price": "1"}]}, ["/cartItems/0/price"]),
        ({"cartItems": [{"sku": "A", "quantity": 1, "price": None}]}, ["/cartItems/0/price"]),
        ({"cartItems": [7]}, ["/cartItems/0"]),
        ({"cartItems": {}}, ["/cartItems"]),
        ({"cartItems": items(*[("A", 1, 1)] * 1000)}, []),
        ({"cartItems": items(*[("A", 1, 1)] * 1001)}, ["/cartItems"]),
        ({"cartItems": items(("A", 5000, 1), ("B", 5000, 1))}, []),
        ({"cartItems": items(("A", 5000, 1), ("B", 5001, 1))}, ["/cartItems"]),
        ({"cartItems": [{"sku": "A", "quantity": 1, "price": 1, "discounts": 35}]}, ["/cartItems/0/discounts"]),
        (
            {"cartItems": [{"sku": "A", "quantity": 1, "price": 1, "attributes": {"colour": "red", "color": 1}}]},
            ["/cartItems/0/attributes/colour", "/cartItems/0/attributes/color"],
        ),
        (
            {"cartItems": [{"sku": "A", "quantity": 1, "price": 1, "additionalCosts": {"handling": {"price": 1}}}]},
            ["/cartItems/0/additionalCosts/handling"],
        ),
        ({"additionalCosts": {"gift_wrap": {"price": 1}}}, ["/additionalCosts/gift_wrap"]),
        ({"additionalCosts": {"tax/vat": {"price": 1}}}, ["/additionalCosts/tax~1vat"]),
        ({"additionalCosts": {"shipping": 15}}, ["/additionalCosts/shipping"]),
        ({"additionalCosts": {"shipping": {}}}, ["/additionalCosts/shipping/price"]),
        ({"attributes": {"MyAttribute": 1}}, ["/attributes/MyAttribute"]),
        ({"attributes": {"b2b": "yes"}}, ["/attributes/b2b"]),
        ({"attributes": {"b2b": True, "ShippingCity": "Berlin"}}, []),
        ({"couponCodes": "XMAS"}, ["/couponCodes"]),
        ({"couponCodes": ["X" * 100]}, []),
        ({"couponCodes": ["X" * 101, 5]}, ["/couponCodes/0", "/couponCodes/1"]),
        ({"referralCode": "X" * 101}, ["/referralCode"]),
        ({"loyaltyCards": ["CARD-COLLECT", "CARD-SPEND"]}, ["/loyaltyCards"]),
        ({"loyaltyCards": ["abc"]}, ["/loyaltyCards/0"]),
        ({"loyaltyCards": ["card one"]}, ["/loyaltyCards/0"]),
        ({"loyaltyCards": ["CARD-UNKNOWN"]}, ["/loyaltyCards/0"]),
        ({"identifiers": ["a"] * 5}, []),
        ({"identifiers": ["a"] * 6}, ["/identifiers"]),
        ({"state": "finished"}, ["/state"]),
        ({"profileId": 5}, ["/profileId"]),
        ({"profileId": None}, ["/profileId"]),
        ({"storeIntegrationId": "rome"}, ["/storeIntegrationId"]),
        ({"cuponCodes": []}, ["/cuponCodes"]),
    ],
)
def test_a_session_is_checked_and_every_fault_is_named(session: Json, pointers: list[str]) -> None:
    status, reply = Shop().put(session)
    assert status == (400 if pointers else 200), reply
    if pointers:
        assert reply["message"] == "The submitted data was invalid"
        assert [error["source"]["pointer"] for error in reply["errors"]] == pointers
        assert all(error["title"] for error in reply["errors"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"customerSession": {}}', 200),
        (b'{"customerSession": {}, "responseContent": ["customerSession"]}', 200),
        (b'{"customerSession": {}, "responseContent": ["everything"]}', 400),
        (b'{"customerSession": []}', 400),
        (b'{"state": "open"}', 400),
        (b"[]", 400),
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"customerSession": {"attributes": {"ShippingCity": "\xff"}}}', 400),
        (b'{"customerSession": {"cartItems": [{"sku": "A", "quantity": 1, "price": 1e400}]}}', 400),
        (b'{"customerSession": {"cartItems": [{"sku": "A", "quantity": 1, "price": 1e99999999999999999999}]}}', 400),
        (b'{"customerSession": {"cartItems": [{"sku": "A", "quantity": 1, "price": NaN}]}}', 400),
        (b"[" * 100_000, 400),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, status: int) -> None:
    code, reply = Shop().request("s1", body)
    assert code == status
    assert ("message" in reply) is (status != 200)


def test_fields_that_are_not_documented_can_be_ignored() -> None:
    shop = Shop(('unknown_fields = "refuse"', 'unknown_fields = "ignore"'))
    assert shop.send({"customerSession": {"cuponCodes": []}, "more": 1})[0] == 200
    assert shop.put({"attributes": {"MyAttribute": 1}})[0] == 400


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?dry=true", 200),
        ("?dry=false", 200),
        ("?dry=1", 400),
        ("?dryrun=true", 400),
        ("?now=2099-01-01T00:00:00Z", 400),
        ("?dry=true&now=2099-01-01T00:00:00Z", 200),
        ("?dry=true&now=2020-01-01T00:00:00Z", 400),
        ("?dry=true&now=tomorrow", 400),
    ],
)
def test_a_query_is_checked(query: str, status: int) -> None:
    assert Shop().put({}, "s1", query)[0] == status


@pytest.mark.parametrize(
    ("keys", "header", "status"),
    [
        ("[]", "ApiKey-v1 anything", 200),
        ("[]", "ApiKey-v1 ", 401),
        ("[]", "Bearer anything", 401),
        ("[]", "", 401),
        ('["good"]', "ApiKey-v1 good", 200),
        ('["good"]', "ApiKey-v1 bad", 401),
    ],
)
def test_a_key_is_asked_for(keys: str, header: str, status: int) -> None:
    shop = Shop(("api_keys = []", f"api_keys = {keys}"))
    code, reply = shop.put({}, authorization=header)
    assert code == status
    if status == 401:
        assert reply == {"message": "Invalid API key", "errors": [], "StatusCode": 401}


@pytest.mark.parametrize(
    ("segment", "id_"),
    [
        ("plain-1", "plain-1"),
        ("a%2Fb", "a/b"),
        ("a%20b%3Fdry%3Dtrue%23", "a b?dry=true#"),
        ("%E2%82%AC", "€"),
        ("a%252Fb", "a%2Fb"),
        ("reopen", "reopen"),
        ("a/b", None),
        ("a/reopen/b", None),
        ("", None),
        ("..", None),
        ("%2E%2E", None),
        ("%FF", None),
    ],
)
def test_a_session_id_is_one_encoded_segment(segment: str, id_: str | None) -> None:
    shop = Shop()
    assert shop.put({}, segment)[0] == (404 if id_ is None else 200)
    assert list(shop.books["sessions"]) == ([] if id_ is None else [id_])


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("DELETE", 405), ("PATCH", 405)])
def test_other_methods_are_not_allowed(method: str, status: int) -> None:
    assert Shop().request("s1", method=method)[0] == status


# --- Parallel and repeated requests -----------------------------------------------------------------------------------


def test_the_fourth_parallel_request_of_a_session_or_a_profile_is_refused() -> None:
    async def statuses(paths: list[str], profile: str) -> list[int]:
        body = json.dumps({"customerSession": {"profileId": profile}}).encode()
        engine = Shop().engine
        calls = [call(engine, f"/v2/customer_sessions/{path}", body, pause=0.02) for path in paths]
        first = [status for status, _ in await asyncio.gather(*calls)]
        # When all is done, the place is free again.
        assert (await call(engine, "/v2/customer_sessions/a", body))[0] == 200
        return sorted(first)

    for paths, profile, expected in (
        (["a"] * 4, "", [200, 200, 200, 409]),
        (["a"] * 3, "", [200] * 3),
        (["a", "b", "c", "d"], "", [200] * 4),
        (["a", "b", "c", "d"], "joe", [200, 200, 200, 409]),
    ):
        assert asyncio.run(statuses(paths, profile)) == expected


def test_what_is_refused_for_parallel_requests_says_so() -> None:
    async def replies() -> list[tuple[int, bytes]]:
        engine = Shop().engine
        return await asyncio.gather(*(call(engine, "/v2/customer_sessions/a", pause=0.02) for _ in range(4)))

    (refused,) = [json.loads(body) for status, body in asyncio.run(replies()) if status == 409]
    assert refused == {
        "message": "Too many requests are updating this session at the same time",
        "errors": [],
        "StatusCode": 409,
    }


def test_an_idempotency_key_replays_the_first_answer() -> None:
    shop = Shop()
    closing = cart("SINGLE-0007", state="closed")
    first = shop.put(closing, idempotency_key="k1")
    assert first[0] == 200
    assert shop.put(closing, idempotency_key="k1") == first
    assert shop.put(cart(state="closed"), idempotency_key="k1") == first
    assert shop.books["sessions"]["s1"]["closes"] == 1
    assert shop.put(closing, idempotency_key="k2")[0] == 400
    assert shop.put(closing)[0] == 400
    # A key belongs to its session; a dry request has none; a day later it is forgotten; a long one is refused.
    assert shop.put(cart(), "s2", idempotency_key="k1")[1] != first[1]
    assert shop.put(cart("TEN-PERCENT"), "s1", "?dry=true", idempotency_key="k1")[1] != first[1]
    shop.now += timedelta(hours=24)
    assert shop.put(closing, idempotency_key="k1")[0] == 400
    assert shop.put(cart(), "s3", idempotency_key="k" * 256)[0] == 400


def test_an_older_deployment_ignores_the_idempotency_key() -> None:
    shop = Shop(("idempotency_keys = true", "idempotency_keys = false"))
    closing = cart("SINGLE-0007", state="closed")
    assert shop.put(closing, idempotency_key="k1")[0] == 200
    assert shop.put(closing, idempotency_key="k1")[0] == 400


def test_reset_forgets_everything_but_the_rule_book() -> None:
    shop = Shop()
    before = shop.books
    shop.ok(cart("SINGLE-0001", "GIFT-50", profileId="joe", state="closed"), idempotency_key="k")
    assert shop.books != before
    shop.engine.reset()
    assert shop.books == before
    assert shop.put(cart(), idempotency_key="k")[1]["effects"] == []


# --- The vendor's client judges ---------------------------------------------------------------------------------------

CONTENT = [
    "customerSession",
    "customerProfile",
    "coupons",
    "triggeredCampaigns",
    "referral",
    "loyalty",
    "event",
    "awardedGiveaways",
    "ruleFailureReasons",
    "previousReturns",
]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, sandbox.Sandbox]]:
    app = sandbox.create()
    with sandbox.running(app) as url:
        yield url, app.state.sandbox


@pytest.fixture
def live(server: tuple[str, sandbox.Sandbox]) -> Iterator[tuple[str, sandbox.Sandbox]]:
    server[1].reset()
    yield server
    server[1].reset()


@pytest.fixture
def vendor(live: tuple[str, sandbox.Sandbox]) -> Iterator[Any]:
    configuration = talon_one.Configuration(
        host=f"{live[0]}/talon_one",
        api_key={"api_key_v1": "key"},
        api_key_prefix={"api_key_v1": "ApiKey-v1"},
    )
    client = talon_one.ApiClient(configuration)
    yield talon_one.IntegrationApi(client)
    client.rest_client.pool_manager.clear()


def test_the_vendors_client_opens_updates_reads_closes_reopens_and_cancels_a_session(vendor: Any) -> None:
    def put(session: Json, **options: Any) -> Any:
        request = talon_one.IntegrationRequest.from_dict({"customerSession": session, "responseContent": CONTENT})
        return vendor.update_customer_session_v2("a/b c", request, **options)

    session = cart("xmas-2021-25", "nothing", "GIFT-50", "EXPIRED-10", profileId="joe")
    session |= {"referralCode": "FRIEND-OF-JANE", "loyaltyCards": ["CARD-COLLECT"], "storeIntegrationId": "berlin"}
    session |= {"additionalCosts": {"shipping": {"price": 15}}, "attributes": {"ShippingCity": "Berlin"}}
    opened = put(session)
    assert opened.customer_session.state == "open"
    assert opened.customer_session.integration_id == "a/b c"
    assert {campaign.name for campaign in opened.triggered_campaigns} >= {"Christmas 2021", "Bring a friend"}
    assert {coupon.value for coupon in opened.coupons} == {"XMAS-2021-25", "GIFT-50", "EXPIRED-10"}
    assert opened.loyalty.cards[0].ledger.tentative_current_balance == 190
    assert opened.rule_failure_reasons[0].coupon_value == "EXPIRED-10"
    assert opened.customer_profile.integration_id == "joe"
    assert opened.referral.advocate_profile_integration_id == "jane"

    updated = put({"cartItems": items(("A", 2, 150.5))})
    assert updated.customer_session.update_count == 2
    assert updated.customer_session.cart_item_total == 301
    assert put({"state": "closed"}, dry=True).customer_session.total == 0
    assert vendor.get_customer_session("a/b c").customer_session.state == "open"

    closed = put({"state": "closed"})
    assert closed.customer_session.state == "closed"
    assert closed.customer_profile.closed_sessions == 1
    with pytest.raises(talon_one.ApiException) as refused:
        put({"state": "closed"})
    assert 'state \\"closed\\" from state \\"closed\\"' in str(refused.value.body)
    reopened = vendor.reopen_customer_session("a/b c")
    assert {effect.effect_type for effect in reopened.effects} >= {"rollbackCoupon", "rollbackDiscount"}
    assert put({"state": "cancelled"}).customer_session.state == "cancelled"


@pytest.mark.parametrize(
    "code", [*(code for code, _ in rulebook.load().codes_to_try() if ".." not in code), "SINGLE-0001"]
)
def test_the_vendors_models_understand_the_reply_to_every_code(code: str) -> None:
    # What of the vendor's newest specification its published client does not know yet.
    newer = {"achievements", "campaignEligibility"}
    models: dict[str, Any] = {
        "acceptCoupon": talon_one.AcceptCouponEffectProps,
        "rejectCoupon": talon_one.RejectCouponEffectProps,
        "acceptReferral": talon_one.AcceptReferralEffectProps,
        "rejectReferral": talon_one.RejectReferralEffectProps,
        "setDiscount": talon_one.SetDiscountEffectProps,
        "setDiscountPerItem": talon_one.SetDiscountPerItemEffectProps,
        "setDiscountPerAdditionalCost": talon_one.SetDiscountPerAdditionalCostEffectProps,
        "setDiscountPerAdditionalCostPerItem": talon_one.SetDiscountPerAdditionalCostPerItemEffectProps,
        "addFreeItem": talon_one.AddFreeItemEffectProps,
        "showNotification": talon_one.ShowNotificationEffectProps,
        "customEffect": talon_one.CustomEffectProps,
        "addLoyaltyPoints": talon_one.AddLoyaltyPointsEffectProps,
        "deductLoyaltyPoints": talon_one.DeductLoyaltyPointsEffectProps,
        "rollbackCoupon": talon_one.RollbackCouponEffectProps,
        "rollbackReferral": talon_one.RollbackReferralEffectProps,
        "rollbackDiscount": talon_one.RollbackDiscountEffectProps,
        "rollbackAddedLoyaltyPoints": talon_one.RollbackAddedLoyaltyPointsEffectProps,
        "rollbackDeductedLoyaltyPoints": talon_one.RollbackDeductedLoyaltyPointsEffectProps,
    }
    shop = Shop(("partial_rewards = false", "partial_rewards = true"))
    session = cart(profileId="joe", additionalCosts={"shipping": {"price": 15}, "handling": {"price": 5}})
    session["cartItems"][0] |= {"category": "shoes", "additionalCosts": {"gift_wrap": {"price": 1}}}
    key = {"FRIEND": "referralCode", "CARD": "loyaltyCards"}.get(code.partition("-")[0], "couponCodes")
    session[key] = code if key == "referralCode" else [code]
    for state in ("open", "closed", "cancelled"):
        reply = shop.ok(session | {"state": state}, "s1", "", *CONTENT, *newer)
        parsed: Any = talon_one.IntegrationStateV2.from_dict(reply)
        assert len(parsed.effects) == len(reply["effects"])
        assert set(reply) - {"createdCoupons", "createdReferrals", "effects", "referral"} == {*CONTENT, *newer} - {
            "referral"
        }
        for effect in reply["effects"]:
            model = models[effect["effectType"]]
            known = {field.alias or name for name, field in model.model_fields.items()}
            assert model.from_dict(effect["props"]) is not None
            assert set(effect["props"]) <= known, effect


# --- Faults, on a real connection -------------------------------------------------------------------------------------

CLOSE = b'{"customerSession": {"couponCodes": ["SINGLE-0001"], "state": "closed"}}'
SESSION = "/talon_one/v2/customer_sessions/s1"


def ask(
    url: str, method: str = "PUT", path: str = SESSION, body: bytes = CLOSE, **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        named = KEY | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        with connection.getresponse() as reply:
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def control(url: str, path: str, body: Any = None) -> Any:
    method = "GET" if body is None else "POST"
    status, _, reply = ask(url, method, f"/_sandbox/{path}", json.dumps(body).encode() if body is not None else b"")
    assert status == 200, reply
    return json.loads(reply)


def closes(url: str) -> int:
    return int(control(url, "books")["talon_one"]["sessions"].get("s1", {"closes": 0})["closes"])


@pytest.mark.parametrize(
    ("fault", "outcome", "committed"),
    [
        ("", 200, True),
        ("latency=20", 200, True),
        ("late_answer=20", 200, True),
        ("status", 503, False),
        ("status=409", 409, False),
        ("status=429;retry_after=2, latency=20", 429, False),
        ("redirect", 307, False),
        ("redirect=301", 301, False),
        ("status_after", 500, True),
        ("status_after=503", 503, True),
        ("reset", ConnectionResetError, False),
        ("reset_after", ConnectionResetError, True),
        ("close", http.client.RemoteDisconnected, False),
        ("close_after", http.client.RemoteDisconnected, True),
        ("truncated", http.client.IncompleteRead, True),
        ("malformed", json.JSONDecodeError, True),
        ("drip=1", 200, True),
        ("huge=100000", 200, True),
        ("unknown_effect, extra_fields", 200, True),
        ("flood", 400, False),
        ("latency=soon", 400, False),
        ("latency;often=1", 400, False),
    ],
)
def test_a_fault_fails_as_it_says_and_commits_or_not(
    live: tuple[str, sandbox.Sandbox], fault: str, outcome: int | type[Exception], committed: bool
) -> None:
    if isinstance(outcome, int):
        status, headers, body = ask(live[0], x_sandbox_fault=fault)
        assert status == outcome
        assert headers["x-sandbox"] == "promotions-mapper"
        if status in (200, 409, 429, 500, 503):
            json.loads(body)
    else:
        with pytest.raises(outcome) as failed:
            json.loads(ask(live[0], x_sandbox_fault=fault)[2])
        # RemoteDisconnected is a ConnectionResetError, too: an orderly close is not a reset.
        assert failed.type is outcome
    assert closes(live[0]) == committed


def test_a_late_commit_comes_after_the_caller_gave_up(live: tuple[str, sandbox.Sandbox]) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        ask(live[0], x_sandbox_fault="late_commit=100")
    assert closes(live[0]) == 0
    until = time.monotonic() + 5
    while not closes(live[0]) and time.monotonic() < until:
        time.sleep(0.02)
    assert closes(live[0]) == 1


def test_a_late_answer_is_committed_before_and_a_latency_after_the_wait(live: tuple[str, sandbox.Sandbox]) -> None:
    for fault, early in (("late_answer=200", 1), ("latency=200", 0)):
        control(live[0], "reset", {})
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, live[0], x_sandbox_fault=fault)
            until = time.monotonic() + 5
            while not control(live[0], "requests")["requests"] and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(0.05)
            assert closes(live[0]) == early
            assert asked.result()[0] == 200
        assert closes(live[0]) == 1


def test_a_drip_comes_byte_by_byte(live: tuple[str, sandbox.Sandbox]) -> None:
    started = time.monotonic()
    _, _, body = ask(live[0], x_sandbox_fault="drip=1")
    assert time.monotonic() - started > len(body) / 1000


def test_a_drip_ends_when_nobody_listens() -> None:
    with sandbox.running(sandbox.create()) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
        connection.request("GET", SESSION, headers=KEY | {"x-sandbox-fault": "drip=60000"})
        with connection.getresponse() as reply:
            assert reply.read(1) == b"{"
        connection.close()
        started = time.monotonic()
    # Else the server waits for it before it stops.
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("fault", "names"),
    [("status=429;retry_after=7", ("retry-after", "7")), ("redirect", ("location", "http://elsewhere.invalid/"))],
)
def test_a_fault_brings_its_header(live: tuple[str, sandbox.Sandbox], fault: str, names: tuple[str, str]) -> None:
    assert ask(live[0], x_sandbox_fault=fault)[1][names[0]] == names[1]


def test_errors_have_the_engines_own_body(live: tuple[str, sandbox.Sandbox]) -> None:
    message = "Too many requests are updating this session at the same time"
    reply = json.loads(ask(live[0], x_sandbox_fault="status=409")[2])
    assert reply == {"message": message, "errors": [], "StatusCode": 409}
    assert "retry-after" not in ask(live[0], x_sandbox_fault="status=429")[1]


def test_what_nobody_knows_is_added_and_what_is_known_stays(live: tuple[str, sandbox.Sandbox]) -> None:
    body = json.dumps({"customerSession": cart("TEN-PERCENT", price=99.99)}).encode()
    plain = json.loads(ask(live[0], body=body)[2])
    strange = json.loads(ask(live[0], body=body, x_sandbox_fault="unknown_effect,extra_fields,huge=1000")[2])
    assert {e["effectType"] for e in strange["effects"]} - {e["effectType"] for e in plain["effects"]} == {
        "sandboxTeleportShopper"
    }
    assert all("sandboxExtra" in effect and "sandboxExtra" in effect["props"] for effect in strange["effects"])
    assert len(strange["sandboxPadding"]) == 1000
    assert [p["value"] for p in of(strange, "setDiscountPerItem")] == [9.999]


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        ({}, "dry open close read"),
        ({"count": 2}, "dry open"),
        ({"count": 0}, ""),
        ({"operation": "close"}, "close"),
        ({"operation": "dry", "method": "put"}, "dry"),
        ({"method": "GET"}, "read"),
        ({"path": "sessions/s1$"}, "dry open close read"),
        ({"path": "sessions/s2"}, ""),
        ({"engine": "talon_one"}, "dry open close read"),
        ({"engine": "another"}, ""),
        ({"probability": 0.0}, ""),
        ({"probability": 0.5, "seed": 1}, "dry read"),
        ({"probability": 0.5, "seed": 2}, "close read"),
    ],
)
def test_a_fault_meets_the_requests_it_names(live: tuple[str, sandbox.Sandbox], fault: Json, hit: str) -> None:
    control(live[0], "faults", [{"name": "status", "value": 503, **fault}])
    requests = {
        "dry": ("PUT", f"{SESSION}?dry=true", b'{"customerSession": {}}'),
        "open": ("PUT", SESSION, b'{"customerSession": {}}'),
        "close": ("PUT", SESSION, CLOSE),
        "read": ("GET", SESSION, b""),
    }
    met = [name for name, request in requests.items() if ask(live[0], *request)[0] == 503]
    assert " ".join(met) == hit


def test_faults_that_make_no_sense_are_refused(live: tuple[str, sandbox.Sandbox]) -> None:
    for body in (
        b'[{"name":"flood"}]',
        b'[{"name":"status","often":1}]',
        b'[{"name":"status","path":"("}]',
        b"{}",
        b"[",
    ):
        assert ask(live[0], "POST", "/_sandbox/faults", body)[0] == 400
    assert control(live[0], "faults") == []


def test_the_log_tells_every_request_and_no_secret(live: tuple[str, sandbox.Sandbox]) -> None:
    ask(live[0], authorization="ApiKey-v1 canary", x_sandbox_fault="status_after=500", idempotency_key="k1")
    ask(live[0], "GET", f"{SESSION}%2Fb?x=1")
    told = control(live[0], "requests")
    assert told["counts"] == {"talon_one close": 1, "talon_one read": 1}
    first, second = told["requests"]
    assert (first["operation"], first["status"], first["faults"]) == ("close", 500, ["status_after"])
    assert (first["body"], first["headers"]["idempotency-key"]) == (CLOSE.decode(), "k1")
    assert (second["path"], second["query"], second["status"]) == (f"{SESSION}%2Fb", "x=1", 404)
    assert "canary" not in json.dumps(told)


def test_the_clock_can_be_set(live: tuple[str, sandbox.Sandbox]) -> None:
    def reason() -> list[str]:
        body = json.dumps({"customerSession": cart("EXPIRED-10", "SOON-10")}).encode()
        return sorted(p["value"] for p in of(json.loads(ask(live[0], body=body)[2]), "acceptCoupon"))

    assert reason() == []
    for moment, accepted in (("2021-12-31T12:00:00+01:00", ["EXPIRED-10"]), ("2100-01-01T00:00:00Z", ["SOON-10"])):
        control(live[0], "clock", {"now": moment})
        assert reason() == accepted
    control(live[0], "clock", {"now": None})
    assert reason() == []
    assert ask(live[0], "POST", "/_sandbox/clock", b"{}")[0] == 400


def test_reset_takes_everything_back(live: tuple[str, sandbox.Sandbox]) -> None:
    before = {page: control(live[0], page) for page in ("books", "requests", "faults")}
    control(live[0], "clock", {"now": "2021-01-01T00:00:00Z"})
    ask(live[0])
    control(live[0], "faults", [{"name": "reset"}])
    assert [page for page, told in before.items() if control(live[0], page) == told] == []
    control(live[0], "reset", {})
    assert {page: control(live[0], page) for page in before} == before
    assert live[1].clock().year > 2021


def test_the_front_page_says_what_this_is_and_what_to_try(live: tuple[str, sandbox.Sandbox]) -> None:
    status, headers, body = ask(live[0], "GET", "/")
    page = body.decode()
    assert (status, headers["x-sandbox"]) == (200, "promotions-mapper")
    assert "Nothing here is real" in page
    assert [code for code, _ in book().codes_to_try() if code not in page] == []
    assert [fault for fault in sandbox.FAULTS if fault not in page] == []
    assert ask(live[0], "GET", "/nowhere")[1]["x-sandbox"] == "promotions-mapper"


def test_a_faulty_rule_book_is_told_with_its_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "book.toml"
    path.write_text("[engines.talon_one]\nflaten = true\napplication_id = 'x'\n")
    assert sandbox.run(rulebook=path) == 2
    told = capsys.readouterr().err
    assert "engines.talon_one.flaten: is not known" in told
    assert "engines.talon_one.application_id: Expected `int`" in told


def test_without_access_to_the_connection_a_broken_one_is_an_error() -> None:
    app = sandbox.create(now=lambda: NOW)
    with pytest.raises(ConnectionResetError):
        asyncio.run(call(app, SESSION, x_sandbox_fault="reset"))
