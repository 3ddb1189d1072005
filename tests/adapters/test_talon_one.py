"""The Talon.One adapter: the requests it makes, and what becomes of the engine's answers.

Replies here are written after the vendor's documentation; no network, no emulator.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.talon_one import TalonOne, reasons
from adapters.talon_one.effects import TABLE
from mapper.adapter import (
    Conversation,
    Cost,
    Discount,
    EngineReply,
    EngineRequest,
    Misconfigured,
    Notice,
    Outcome,
    Redeemed,
    Rejection,
    names,
)
from mapper.domain import checkout as documents
from mapper.domain import discounts, money
from mapper.domain.checkout import Checkout
from mapper.domain.errors import EngineRejected, EngineUnavailable, InvalidRequest, OrderMismatch, Problem
from mapper.domain.reasons import Reason
from mapper.engine.conversation import replay
from tests.adapters.record import granted

T = TypeVar("T")

ONE = {"BASE_URL": "https://shop.europe-west1.talon.one", "API_KEY": "0123456789abcdef"}
COSTS = {**ONE, "ADDITIONAL_COSTS": "shipping=/shipping_rate/price"}


def adapter(**options: str) -> TalonOne:
    return TalonOne({**ONE, **options})


def cart(*lines: tuple[str, int, str], codes: Iterable[str] = (), **more: Any) -> Checkout:
    items = [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]
    body = {"items": items, "promotions": {"coupon_codes": list(codes), **more.pop("promotions", {})}, **more}
    return documents.parse(json.dumps(body).encode(), "validate")


def order(*lines: tuple[str, int, str], codes: Iterable[str] = (), **more: Any) -> Checkout:
    items = [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]
    body = {"order_items": items, "promotions": {"coupon_codes": list(codes), **more.pop("promotions", {})}, **more}
    return documents.parse(json.dumps(body).encode(), "consume")


def reply(body: Any, status: int = 200) -> EngineReply:
    encode = msgspec.json.Encoder(decimal_format="number").encode
    return EngineReply(status=status, headers={}, body=body if isinstance(body, bytes) else encode(body))


def talk(conversation: Conversation[Any], *replies: EngineReply) -> tuple[list[EngineRequest], Any]:
    """Holds a conversation with these replies, in their order. All must be asked for."""
    asked = [next(conversation)]
    for number, answer in enumerate(replies, 1):
        try:
            asked.append(conversation.send(answer))
        except StopIteration as stop:
            assert number == len(replies), "an answer was not asked for"
            return asked, granted(stop.value)
    raise AssertionError(f"one more answer is asked for: {asked[-1]}")


def first(conversation: Conversation[Any]) -> EngineRequest:
    return next(conversation)


def sent(conversation: Conversation[Any]) -> dict[str, Any]:
    """The customer session of the first request, numbers exact."""
    body = msgspec.json.Decoder(float_hook=Decimal).decode(first(conversation).body)
    assert isinstance(body["customerSession"], dict)
    return body["customerSession"]


def effect(
    kind: str, props: dict[str, Any], campaign: int = 1, coupon: int | None = None, **more: Any
) -> dict[str, Any]:
    envelope = {"campaignId": campaign, "rulesetId": 73, "ruleIndex": 0, "ruleName": "Rule", **more}
    if coupon is not None:
        envelope["triggeredByCoupon"] = coupon
    return {**envelope, "effectType": kind, "props": props}


def per_item(value: Any, position: Any, name: str = "off", **more: Any) -> dict[str, Any]:
    props = {"name": f"{name}#{position}", "value": value, "position": position, "subPosition": 0}
    return effect("setDiscountPerItem", {**props, **more.pop("props", {})}, **more)


def outcome(checkout: Checkout, effects: list[Any], campaigns: Any = (), **options: str) -> Outcome:
    answer = reply({"effects": effects, "triggeredCampaigns": campaigns})
    result = talk(adapter(**options).validate(checkout, "s"), answer)[1]
    assert isinstance(result, Outcome)
    return result


def amounts(result: Outcome) -> list[tuple[int | None, int]]:
    return [(discount.line, discount.amount) for discount in result.discounts]


def only(discounts: tuple[Discount, ...]) -> Discount:
    (discount,) = discounts
    return discount


# -- Options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, {"BASE_URL", "API_KEY"}),
        ({"BASE_URL": "https://a.talon.one"}, {"API_KEY"}),
        ({"API_KEY": "k"}, {"BASE_URL"}),
        ({**ONE, "API_KEY": "ApiKey-v1 k"}, {"API_KEY"}),
        ({**ONE, "API_KEY": "k\r\nx: y"}, {"API_KEY"}),
        ({**ONE, "BASE_URL": "http://a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "http://localhost.example.com"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "ftp://a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://user@a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://:secret@a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one?x=1"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one#x"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one:port"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://[::1"}, {"BASE_URL"}),
        ({**ONE, "PROFILE_ID_PATH": "customer/id"}, {"PROFILE_ID_PATH"}),
        ({**ONE, "STORE_PATH": "/a~2b"}, {"STORE_PATH"}),
        ({**ONE, "ADDITIONAL_COSTS": "shipping"}, {"ADDITIONAL_COSTS"}),
        ({**ONE, "ADDITIONAL_COSTS": "a=/x,a=/y"}, {"ADDITIONAL_COSTS"}),
        ({**ONE, "ITEM_ATTRIBUTES": "=/x"}, {"ITEM_ATTRIBUTES"}),
        ({**ONE, "SKU_FIELD": "ean"}, {"SKU_FIELD"}),
        ({**ONE, "CURRENCY": "EURO"}, {"CURRENCY"}),
        ({**ONE, "API_KEY_EUR": "e"}, {"CURRENCY"}),
        ({**ONE, "CURRENCY": "EUR", "API_KEY_EUR": "e"}, {"CURRENCY"}),
        ({"CURRENCY": "EUR", "BASE_URL": "https://a.talon.one"}, {"API_KEY"}),
        ({"API_KEY_EUR": "e"}, {"BASE_URL"}),
        ({"BASE_URL_EUR": "https://a.talon.one"}, {"API_KEY_EUR"}),
        ({"API_KEY_EUR": "e", "BASE_URL_EUR": "http://a.b"}, {"BASE_URL_EUR"}),
        ({"SKU_FIELD": "x", "CURRENCY": "x", "STORE_PATH": "x"},
         {"BASE_URL", "API_KEY", "CURRENCY", "SKU_FIELD", "STORE_PATH"}),
    ],
)  # fmt: skip
def test_all_wrong_options_are_named_at_once(options: dict[str, str], wrong: set[str]) -> None:
    with pytest.raises(Misconfigured) as caught:
        TalonOne(options)
    names = [name for name, _ in caught.value.problems]
    assert sorted(names) == sorted(wrong)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://a.talon.one/",
        "https://a.talon.one:8443/x",
        "http://localhost:8080",
        "http://127.0.0.2",
        "http://[::1]:1",
    ],
)
def test_the_key_goes_to_https_or_to_this_very_machine(url: str) -> None:
    account = adapter(BASE_URL=url).accounts[""]
    assert account.base_url == url.rstrip("/")
    assert account.headers == (("Authorization", "ApiKey-v1 0123456789abcdef"),)


def test_every_option_has_a_known_name_and_a_misspelt_currency_has_none() -> None:
    assert {*ONE, "CURRENCY", "API_KEY_EUR", "BASE_URL_KWD", "SESSION_ATTRIBUTES"} <= names(TalonOne.options)
    assert "API_KEY_EURO" not in names(TalonOne.options)


def test_no_secret_shows_in_what_is_printed() -> None:
    talon = adapter(IDENTIFIERS_KEY="very secret", API_KEY="secret-too")
    assert "secret" not in repr((talon.accounts, talon._options))


def test_each_currency_has_its_application_and_no_other_is_served() -> None:
    many = TalonOne(
        {
            **ONE,
            "CURRENCY": "usd",
            "API_KEY_EUR": "euro",
            "API_KEY_KWD": "dinar",
            "BASE_URL_KWD": "https://kw.talon.one",
        }
    )
    served = {"USD": "", "EUR": "EUR", "KWD": "KWD"}
    for currency, account in served.items():
        assert first(many.validate(cart(currency=currency), "s")).account == account
    assert {name: account.base_url for name, account in many.accounts.items()} == {
        "": ONE["BASE_URL"], "EUR": ONE["BASE_URL"], "KWD": "https://kw.talon.one",
    }  # fmt: skip
    assert [account.headers[0][1] for account in many.accounts.values()] == [
        "ApiKey-v1 euro", "ApiKey-v1 dinar", "ApiKey-v1 0123456789abcdef",
    ]  # fmt: skip
    for other in ({"currency": "JPY"}, {}):
        for conversation in (many.validate, many.check, many.redeem, many.look_up, many.undo):
            with pytest.raises(EngineRejected, match=r"EUR, KWD, USD") as caught:
                first(conversation(cart(**other), "s"))
            assert caught.value.reason == "currency_not_served"


def test_one_application_without_a_currency_takes_any() -> None:
    for body in ({"currency": "JPY"}, {}):
        assert first(adapter().validate(cart(**body), "s")).account == ""


# -- Requests ----------------------------------------------------------------------------------------------------------


def test_a_checkout_becomes_this_request() -> None:
    options = {
        "PROFILE_PREFIX": "shop-",
        "STORE_PATH": "/store",
        "ADDITIONAL_COSTS": "shipping=/shipping_rate/price, wrap=/wrap",
        "ITEM_ADDITIONAL_COSTS": "engraving=/engraving",
        "SESSION_ATTRIBUTES": "City=/shipping_address/city,None=/nowhere",
        "ITEM_ATTRIBUTES": "size=/size,tags=/tags",
    }
    body = b"""{"customer": {"id": 4711}, "store": "Berlin 1", "shipping_rate": {"price": "15.00"}, "wrap": null,
      "shipping_address": {"city": "K\\u00f6ln", "street": "not asked for"},
      "items": [{"sku": "A", "quantity": 2, "price": "140", "size": 1.10, "tags": ["x", true], "engraving": 3.5},
                {"sku": "B", "quantity": 0, "price": "1.00"},
                {"variant_id": "C", "quantity": 1, "price": 0.05, "size": null}],
      "promotions": {"coupon_codes": ["SUMMER", "summer"], "referral_code": "FRIEND", "loyalty_card": "card-1",
                     "identifiers": ["203.0.113.7"]}}"""
    request = first(adapter(**options).validate(documents.parse(body, "validate"), "a b/ü?.."))
    assert (request.operation, request.method, request.path) == (
        "open session", "PUT", "/v2/customer_sessions/a%20b%2F%C3%BC%3F..",
    )  # fmt: skip
    assert request.headers == (("Content-Type", "application/json"),)
    assert request.body.decode() == (
        '{"customerSession":{"profileId":"shop-4711","storeIntegrationId":"Berlin 1","couponCodes":["SUMMER"],'
        '"referralCode":"FRIEND","loyaltyCards":["card-1"],"state":"open","cartItems":['
        '{"sku":"A","quantity":2,"price":140.00,"attributes":{"size":1.10,"tags":["x",true]},'
        '"additionalCosts":{"engraving":{"price":3.50}}},'
        '{"sku":"C","quantity":1,"price":0.05,"attributes":{},"additionalCosts":{}}],'
        '"additionalCosts":{"shipping":{"price":15.00}},"identifiers":["203.0.113.7"],"attributes":{"City":"Köln"}},'
        '"responseContent":["triggeredCampaigns"]}'
    )


def test_what_may_have_gone_is_always_sent_since_a_put_merges() -> None:
    session = sent(adapter().validate(cart(("A", 1, "1.00")), "s"))
    assert (session["couponCodes"], session["referralCode"], session["loyaltyCards"], session["identifiers"]) == (
        [],
        "",
        [],
        [],
    )
    assert not {"attributes", "additionalCosts", "storeIntegrationId"} & {*session, *session["cartItems"][0]}
    maps = {"ADDITIONAL_COSTS": "a=/a", "SESSION_ATTRIBUTES": "a=/a"}
    session = sent(adapter(**maps).validate(cart(("A", 1, "1.00")), "s"))
    assert (session["additionalCosts"], session["attributes"]) == ({}, {})


def test_the_engine_is_told_list_prices_when_a_reduced_cart_comes_back() -> None:
    line = {"sku": "A", "quantity": 1, "price": "105.00", "total_discount": "35.00"}
    body = {
        "items": [{**line, "discounts": [{"amount": "35.00", "meta": {"list_price": "140.00"}}]}],
        "total_discount": "35.00",
    }
    for conversation in (adapter().validate, adapter().check, adapter().redeem):
        checkout = documents.parse(json.dumps(body).encode(), "validate")
        assert [item["price"] for item in sent(conversation(checkout, "s"))["cartItems"]] == [Decimal("140.00")]


@pytest.mark.parametrize(
    ("currency", "price", "text"), [("JPY", "140", "140"), ("KWD", "1.005", "1.005"), ("USD", "7", "7.00")]
)
def test_prices_are_numbers_with_the_digits_of_the_currency(currency: str, price: str, text: str) -> None:
    body = first(adapter().validate(cart(("A", 1, price), currency=currency), "s")).body
    assert f'"price":{text}}}'.encode() in body


@pytest.mark.parametrize(
    ("codes", "couponCodes", "malformed"),
    [
        (["a", "B"], ["a", "B"], []),
        (["Summer", "SUMMER", "summer", "b"], ["Summer", "b"], []),
        (["x" * 100, "y" * 101, "Y" * 101], ["x" * 100], ["y" * 101]),
    ],
)  # fmt: skip
def test_codes_go_out_once_and_a_code_that_is_too_long_is_refused_here(
    codes: list[str],
    couponCodes: list[str],  # noqa: N803 the vendor's name
    malformed: list[str],
) -> None:
    checkout = cart(("A", 1, "1.00"), codes=codes)
    assert sent(adapter().validate(checkout, "s"))["couponCodes"] == couponCodes
    assert outcome(checkout, []).rejected == tuple(Rejection(code, Reason.MALFORMED, "") for code in malformed)


@pytest.mark.parametrize(
    ("promotions", "referral", "cards", "malformed"),
    [
        ({"referral_code": "r" * 100, "loyalty_card": "a.b_%+@-1"}, "r" * 100, ["a.b_%+@-1"], []),
        ({"referral_code": "r" * 101, "loyalty_card": "abc"}, "", [], ["r" * 101, "abc"]),
        ({"loyalty_card": "a" * 108}, "", ["a" * 108], []),
        ({"loyalty_card": "a" * 109}, "", [], ["a" * 109]),
        ({"loyalty_card": "with blank"}, "", [], ["with blank"]),
        ({"loyalty_card": "könig"}, "", [], ["könig"]),
    ],
)  # fmt: skip
def test_a_referral_code_or_card_that_cannot_be_one_is_refused_here(
    promotions: dict[str, str], referral: str, cards: list[str], malformed: list[str]
) -> None:
    checkout = cart(("A", 1, "1.00"), promotions=promotions)
    session = sent(adapter().validate(checkout, "s"))
    assert (session["referralCode"], session["loyaltyCards"]) == (referral, cards)
    assert outcome(checkout, []).rejected == tuple(Rejection(code, Reason.MALFORMED, "") for code in malformed)


def test_five_identifiers_go_out_hashed_under_the_key_and_the_rest_is_told() -> None:
    checkout = cart(("A", 1, "1.00"), promotions={"identifiers": ["Jefe", "b", "c", "d", "e", "f", "g"]})
    assert sent(adapter().validate(checkout, "s"))["identifiers"] == ["Jefe", "b", "c", "d", "e"]
    keyed = sent(adapter(IDENTIFIERS_KEY="what do ya want for nothing?").validate(checkout, "s"))["identifiers"]
    assert len(keyed) == 5
    # Computed with: printf Jefe | openssl dgst -sha256 -hmac "what do ya want for nothing?"
    assert keyed[0] == "32dc8d946def0419c52253481d2c9340a54273346c4dd2e4047184d676b0e11d"
    (notice,) = outcome(checkout, []).notices
    assert (notice.type, notice.payload) == ("identifiers_not_sent", {"sent": 5, "not_sent": 2})


@pytest.mark.parametrize(
    ("customer", "profile"),
    [
        ({"id": "c-1"}, "c-1"),
        ({"id": 7}, "7"),
        ({"id": ""}, "guest-s1"),
        ({"id": None}, "guest-s1"),
        ({}, "guest-s1"),
        (None, "guest-s1"),
    ],
)
def test_a_shopper_without_an_id_is_a_guest_of_this_checkout_alone(customer: Any, profile: str) -> None:
    assert sent(adapter().validate(cart(customer=customer), "s1"))["profileId"] == profile
    assert sent(adapter(PROFILE_PREFIX="de-").validate(cart(customer=customer), "s1"))["profileId"] == f"de-{profile}"


@pytest.mark.parametrize(
    ("options", "body", "pointer"),
    [
        ({}, {"customer": {"id": {"x": 1}}}, "/customer/id"),
        ({}, {"customer": {"id": True}}, "/customer/id"),
        ({"STORE_PATH": "/store"}, {"store": 1.5}, "/store"),
        ({"ADDITIONAL_COSTS": "shipping=/fee"}, {"fee": "cheap"}, "/fee"),
        ({"ADDITIONAL_COSTS": "shipping=/fee"}, {"fee": -1}, "/fee"),
        ({"ITEM_ADDITIONAL_COSTS": "wrap=/fee"}, {"items": [{"sku": "A", "quantity": 1, "price": "1", "fee": []}]},
         "/items/0/fee"),
        ({"SKU_FIELD": "variant_id"}, {"items": [{"sku": "A", "quantity": 1, "price": "1"}]}, "/items/0/variant_id"),
    ],
)  # fmt: skip
def test_something_unusable_at_a_configured_place_is_named(options: dict[str, str], body: Any, pointer: str) -> None:
    checkout = documents.parse(json.dumps({"items": [], **body}).encode(), "validate")
    with pytest.raises(InvalidRequest) as caught:
        first(adapter(**options).validate(checkout, "s"))
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(("field", "sku"), [("", "S"), ("sku", "S"), ("variant_id", "V"), ("product_id", "P")])
def test_the_configured_name_of_a_line_is_its_sku(field: str, sku: str) -> None:
    line = {"sku": "S", "variant_id": "V", "product_id": "P", "quantity": 1, "price": "1.00"}
    checkout = documents.parse(json.dumps({"items": [line]}).encode(), "validate")
    assert sent(adapter(SKU_FIELD=field).validate(checkout, "s"))["cartItems"][0]["sku"] == sku


def test_only_closing_and_nothing_else_is_never_repeated() -> None:
    talon, checkout = adapter(), cart(("A", 1, "1.00"))
    conversations = (talon.validate, talon.check, talon.redeem, talon.look_up, talon.undo)
    requests = [first(conversation(checkout, "s")) for conversation in conversations]
    told = [(r.operation, r.method, r.path, r.repeatable, b"closed" in r.body) for r in requests]
    assert told == [
        ("open session", "PUT", "/v2/customer_sessions/s", True, False),
        ("check session", "PUT", "/v2/customer_sessions/s?dry=true", True, True),
        ("close session", "PUT", "/v2/customer_sessions/s", False, True),
        ("read session", "GET", "/v2/customer_sessions/s", True, False),
        ("reopen session", "PUT", "/v2/customer_sessions/s/reopen", True, False),
    ]


def test_the_idempotency_key_of_a_close_says_which_session_is_closed_with_what() -> None:
    def key(checkout: Checkout, session: str) -> str:
        headers = dict(first(adapter().redeem(checkout, session)).headers)
        return headers["Idempotency-Key"]

    customer = {"id": "c"}
    one, other = (cart(("A", quantity, "1.00"), customer=customer) for quantity in (1, 2))
    assert key(one, "s") == key(cart(("A", 1, "1.00"), customer=customer), "s")
    assert len({key(one, "s"), key(other, "s"), key(one, "t")}) == 3
    assert len(key(one, "s")) == 64


# -- Effects -----------------------------------------------------------------------------------------------------------

# Every effect type of the vendor's specification of 19 August 2026 (platform 26.16), with the props of its examples,
# and what becomes of it: (line, amount), a refused code, or a notice with this text.
CART = cart(("shoes", 1, "60.00"), ("shirt", 2, "20.00"), codes=["COUP-XYZ789"], shipping_rate={"price": "15.00"},
            promotions={"referral_code": "REF-ABC123"})  # fmt: skip
EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "acceptCoupon": ({"value": "COUP-XYZ789"}, "The code COUP-XYZ789 is accepted."),
    "acceptReferral": ({"value": "REF-ABC123"}, "The referral code REF-ABC123 is accepted."),
    "addFreeItem": ({"sku": "SKU1241028", "name": "Free Gift Item", "desiredQuantity": 1},
                    "This cart earns a free item: Free Gift Item (SKU1241028)."),
    "addLoyaltyPoints": ({"name": "Points for purchase", "programId": 5, "subLedgerId": "main", "value": 100,
                          "recipientIntegrationId": "U", "transactionUUID": "8c2d"},
                         "100 loyalty points are earned: Points for purchase."),
    "addToAudience": ({"audienceId": 10, "audienceName": "My audience"}, "The customer joins an audience."),
    "awardGiveaway": ({"poolId": 2, "poolName": "My pool", "recipientIntegrationId": "U", "giveawayId": 5,
                       "code": "57638t-67439hty"}, "A giveaway is awarded: My pool."),
    "changeLoyaltyTierLevel": ({"ruleTitle": "Tier", "programId": 5, "subLedgerId": "main", "newTierName": "Gold"},
                               "The customer reaches the loyalty tier Gold."),
    "couponCreated": ({"value": "COUP-NEW123", "profileId": "p"},
                      "A new code was created for the customer: COUP-NEW123."),
    "customEffect": ({"effectId": 1, "name": "my_custom_effect", "payload": {"key": "value"}},
                     "The promotion engine returns my_custom_effect."),
    "deductLoyaltyPoints": ({"ruleTitle": "t", "programId": 5, "subLedgerId": "main", "value": 50.5,
                             "transactionUUID": "9f3e", "name": "Points deducted"},
                            "50.5 loyalty points are spent: Points deducted."),
    "error": ({"message": "internal detail"}, "A promotion rule failed; what it grants is missing."),
    "extendLoyaltyPointsExpiryDate": ({"programId": 5, "subLedgerId": "main", "extensionDuration": "12h"},
                                      "The expiry date of loyalty points changes."),
    "increaseAchievementProgress": ({"achievementId": 10, "achievementName": "Coffee", "delta": 1, "value": 7,
                                     "target": 10, "isJustCompleted": False},
                                    "Progress in the achievement Coffee: 7 of 10."),
    "redeemReferral": ({"id": 12, "value": "REF-ABC123"}, "The referral code REF-ABC123 is accepted."),
    "referralCreated": ({"value": "REF-NEW456"}, "A new referral code was created: REF-NEW456."),
    "rejectCoupon": ({"value": "COUP-XYZ789", "rejectionReason": "CouponExpired"},
                     Rejection("COUP-XYZ789", Reason.EXPIRED, "CouponExpired")),
    "rejectReferral": ({"value": "REF-ABC123", "rejectionReason": "ReferralNotFound"},
                       Rejection("REF-ABC123", Reason.NOT_FOUND, "ReferralNotFound")),
    "removeFromAudience": ({"audienceId": 10}, "The customer leaves an audience."),
    "reserveCoupon": ({"couponValue": "COUP-XYZ789", "profileIntegrationId": "p", "isNewReservation": True},
                      "The code COUP-XYZ789 is reserved for the customer."),
    "rollbackAddedLoyaltyPoints": ({"programId": 5, "value": 100}, "Loyalty points are taken back or returned."),
    "rollbackCoupon": ({"value": "COUP-XYZ789"}, "The code COUP-XYZ789 can be used again."),
    "rollbackDeductedLoyaltyPoints": ({"programId": 5, "value": 50}, "Loyalty points are taken back or returned."),
    "rollbackDiscount": ({"name": "10% Off", "value": 2.5}, "The discount 10% Off is taken back."),
    "rollbackIncreasedAchievementProgress": ({"achievementName": "Coffee", "decreaseProgressBy": 1},
                                             "Progress in the achievement Coffee is taken back."),
    "rollbackReferral": ({"value": "REF-ABC123"}, "The referral code REF-ABC123 can be used again."),
    "setDiscount": ({"name": "10% Off", "value": 2.5, "scope": "sessionTotal", "desiredValue": 2.5}, (None, 250)),
    "setDiscountPerAdditionalCost": ({"name": "Shipping discount", "additionalCostId": 1, "additionalCost": "shipping",
                                      "value": 4.99}, (None, 499)),
    "setDiscountPerAdditionalCostPerItem": ({"name": "Shipping discount on item #1", "additionalCostId": 1,
                                             "value": 4.99, "position": 1, "subPosition": 1,
                                             "additionalCost": "shipping"}, (1, 499)),
    "setDiscountPerItem": ({"name": "Discount on item #1", "value": 1.5, "position": 1, "subPosition": 1}, (1, 150)),
    "setLoyaltyPointsExpiryDate": ({"programId": 5, "newExpiryDate": "2024-07-24T14:15:22Z"},
                                   "The expiry date of loyalty points changes."),
    "showBundleMetadata": ({"description": "Buy 2 get 1 free", "bundleAttributes": [], "itemsIndices": [0]},
                           "Buy 2 get 1 free"),
    "showNotification": ({"notificationType": "info", "title": "Applied", "body": "10% off."}, "Applied: 10% off."),
    "startAchievementProgress": ({"achievementId": 10, "achievementName": "Coffee", "target": 10},
                                 "The achievement Coffee begins."),
    "triggerWebhook": ({"webhookId": 7, "webhookName": "My Webhook"}, "The promotion engine calls a webhook."),
    "updateAttribute": ({"path": "Session.Attributes.tier", "value": "Gold"},
                        "The attribute Session.Attributes.tier has a new value."),
    "willAwardGiveaway": ({"poolId": 2, "poolName": "My pool", "recipientIntegrationId": "U"},
                          "With the order comes a giveaway: My pool."),
}  # fmt: skip


def test_the_table_has_a_row_for_each_of_the_36_effect_types() -> None:
    assert len(EFFECTS) == 36
    assert set(TABLE) == set(EFFECTS)


@pytest.mark.parametrize("kind", EFFECTS)
def test_every_effect_becomes_a_discount_a_refusal_or_a_notice(kind: str) -> None:
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
def test_an_effect_that_is_no_money_never_costs_the_answer(kind: str, props: Any) -> None:
    money_off = per_item(5, 0)
    if TABLE[kind].becomes == "accept":
        with pytest.raises(EngineUnavailable):
            outcome(CART, [effect(kind, props), money_off])
    else:
        result = outcome(CART, [effect(kind, props), money_off])
        assert amounts(result) == [(0, 500)]
        assert [(n.type, n.payload) for n in result.notices if n.type != "code_not_answered"] == [(kind, props)]


def test_an_unknown_effect_is_told_with_its_payload_and_costs_nothing() -> None:
    result = outcome(CART, [effect("grantWish", {"wish": 1.10}), per_item(5, 0)])
    assert amounts(result) == [(0, 500)]
    told = next(notice for notice in result.notices if notice.type == "grantWish")
    assert told.payload == {"wish": Decimal("1.1")}


def test_the_vendors_worked_example_of_flattening() -> None:
    # https://docs.talon.one/docs/dev/tutorials/partially-returning-a-session: "$5 per item"
    units = [(0, 0), (1, 0), (1, 1)]
    effects = [per_item(5, position, props={"subPosition": unit}) for position, unit in units]
    assert amounts(outcome(CART, effects)) == [(0, 500), (1, 1000)]


def test_an_older_application_without_flattening_sends_one_effect_per_line() -> None:
    old = per_item(10, 1)
    del old["props"]["subPosition"]
    assert amounts(outcome(CART, [old])) == [(1, 1000)]


def test_positions_count_the_lines_that_were_sent() -> None:
    checkout = cart(("zero", 0, "1.00"), ("A", 1, "10.00"), ("zero", 0, "1.00"), ("A", 1, "20.00"))
    assert amounts(outcome(checkout, [per_item(1, 0), per_item(2, 1)])) == [(1, 100), (3, 200)]


@pytest.mark.parametrize(
    ("values", "digits", "minor"),
    [
        (["9.999"], "USD", 1000),  # 10 % of 99.99 as the engine sends it
        (["0.004"] * 3, "USD", 1),  # added first, rounded once
        (["0.005"], "USD", 1),
        (["0.0049999999999999999999"], "USD", 0),
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
def test_amounts_are_added_exactly_and_rounded_once_half_up(values: list[str], digits: str, minor: int) -> None:
    effects = b",".join(
        msgspec.json.encode(per_item(0, 0)).replace(b'"value":0', b'"value":' + v.encode()) for v in values
    )
    checkout = cart(("A", 1, "99"), currency=digits)
    _, result = talk(adapter().validate(checkout, "s"), reply(b'{"effects":[' + effects + b"]}"))
    assert amounts(result) == ([(0, minor)] if minor else [])


@pytest.mark.parametrize("value", [0, -5, "0.001", 0.0])
@pytest.mark.parametrize("kind", ["setDiscount", "setDiscountPerItem", "setDiscountPerAdditionalCost"])
def test_a_discount_of_nothing_or_less_is_told_instead(kind: str, value: Any) -> None:
    props = {"name": "Off", "value": value, "position": 0, "additionalCost": "shipping", "additionalCostId": 1}
    result = outcome(cart(("A", 1, "1.00")), [effect(kind, props)])
    assert result.discounts == ()
    assert [(notice.type, notice.text) for notice in result.notices] == [(kind, "The discount Off comes to no amount.")]


def test_discounts_of_one_name_from_two_campaigns_both_count() -> None:
    effects = [effect("setDiscount", {"name": "Off", "value": 1}, campaign=number) for number in (2, 1)]
    result = outcome(CART, effects)
    assert [(d.meta["campaignId"], d.amount) for d in result.discounts] == [(1, 100), (2, 100)]


@pytest.mark.parametrize(
    ("shares", "total", "by_line"),
    [
        ([(0, "3.3333333333333335"), (1, "3.3333333333333335"), (2, "3.3333333333333335")], "10", [334, 333, 333]),
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "10", [334, 333, 333]),  # shares that lost their cents
        ([(0, "3.33"), (1, "3.33"), (2, "3.33")], "20", [333, 333, 333]),  # a total of something else
        ([(0, "0.005"), (1, "0.005"), (2, "0.005")], "0.015", [1, 1, 0]),
        ([(0, "1.25"), (1, "0.625"), (1, "0.625")], "2.5", [125, 125, 0]),
        ([(0, "6.6666666666666667"), (2, "3.3333333333333333")], "10", [667, 0, 333]),
        ([(0, "-1"), (1, "1")], "0", [0, 100, 0]),  # nonsense, read like any other discount
    ],
)  # fmt: skip
def test_a_pro_rata_discount_adds_up_to_its_total(shares: list[Any], total: str, by_line: list[int]) -> None:
    effects = [
        per_item(Decimal(value), position, props={"subPosition": number, "totalDiscount": Decimal(total)})
        for number, (position, value) in enumerate(shares)
    ]
    checkout = cart(("A", 1, "20.00"), ("B", 2, "20.00"), ("C", 1, "20.00"))
    assert amounts(outcome(checkout, effects)) == [(line, off) for line, off in enumerate(by_line) if off]


def test_a_pro_rata_discount_of_nothing_is_told_once() -> None:
    effects = [per_item(0, position, props={"totalDiscount": 0}) for position in (0, 1)]
    result = outcome(cart(("A", 1, "1.00"), ("B", 1, "1.00")), effects)
    assert (result.discounts, [notice.type for notice in result.notices]) == ((), ["setDiscountPerItem"])


@pytest.mark.parametrize(
    ("title", "body", "text"), [("Hi", "there", "Hi: there"), ("", "there", "there"), ("Hi", "", "Hi")]
)
def test_a_message_without_a_title_is_its_text(title: str, body: str, text: str) -> None:
    props = {"notificationType": "Info", "title": title, "body": body}
    (notice,) = outcome(cart(("A", 1, "1.00")), [effect("showNotification", props)]).notices
    assert notice.text == text


def test_a_discount_on_shipping_names_it_and_cannot_exceed_it() -> None:
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
def test_only_what_lowers_the_item_lowers_its_price(
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
    assert discounts.settle(checkout, result).line_total(0) == off_line
    listed = settled(checkout, result)
    assert [amount for amount, _ in listed] == at_root
    for _, meta in listed:
        assert (meta.get("position"), meta.get("sku")) == ((None, None) if kind == "setDiscount" else (0, "A"))


def test_each_configured_cost_has_a_price_for_all_units_and_none_where_it_is_not_there() -> None:
    lines = [{"sku": "A", "quantity": 2, "price": "1.00", "wrap": "5.00"}, {"sku": "B", "quantity": 1, "price": "1.00"}]
    checkout = documents.parse(json.dumps({"items": lines, "shipping_rate": {"price": "15.00"}}).encode(), "validate")
    result = outcome(checkout, [], ITEM_ADDITIONAL_COSTS="wrap=/wrap", ADDITIONAL_COSTS=COSTS["ADDITIONAL_COSTS"])
    assert result.costs == (Cost("shipping", 1500), Cost("wrap", 1000, line=0), Cost("wrap", 0, line=1))


def settled(checkout: Checkout, result: Outcome) -> list[tuple[str, dict[str, Any]]]:
    """What is listed at the root: amounts and metas."""
    return [(money.text(one.amount, checkout.digits), one.meta) for one in discounts.settle(checkout, result).root]


def test_with_partial_discounts_and_bundles_the_value_counts_and_the_bundle_is_named() -> None:
    props = {"desiredValue": 9, "bundleIndex": 0, "bundleName": "Breakfast", "targetedItemPosition": 0}
    discount = only(outcome(CART, [per_item(5, 1, props=props)]).discounts)
    assert (discount.line, discount.amount, discount.meta["bundleName"]) == (1, 500, "Breakfast")


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
def test_a_shopper_reads_the_rules_name_and_the_campaigns_description(
    rule_name: Any, campaign: Any, name: str, description: str
) -> None:
    discount = only(outcome(CART, [per_item(5, 0, ruleName=rule_name)], [campaign]).discounts)
    assert (discount.name, discount.description) == (name, description)


def test_the_meta_has_the_engines_ids_and_the_code_that_earned_it() -> None:
    effects = [
        effect("acceptCoupon", {"value": "COUP-xyz789"}, coupon=9),
        per_item(5, 0, coupon=9),
        per_item(5, 1, campaign=2),
    ]
    first_line, second_line = outcome(CART, effects).discounts
    assert first_line.meta == {"campaignId": 1, "rulesetId": 73, "triggeredByCoupon": 9, "code": "COUP-XYZ789"}
    assert second_line.meta == {"campaignId": 2, "rulesetId": 73}


@pytest.mark.parametrize("position", [1, 1.0, "1", Decimal("1.000")])
def test_numbers_come_as_whole_numbers_or_with_a_point(position: Any) -> None:
    number = per_item(5, position, campaign=1, coupon=4)
    text = msgspec.json.Encoder(decimal_format="number").encode({"effects": [number]}).replace(b":4}", b":4.0}")
    _, result = talk(adapter().validate(CART, "s"), reply(text.replace(b'"campaignId":1,', b'"campaignId":1.0,')))
    assert amounts(result) == [(1, 500)]
    assert only(result.discounts).meta["campaignId"] == 1


@pytest.mark.parametrize("position", [2, -1, 0.5, None, "x", "NaN", "sNaN", 1e300, "Infinity"])
def test_a_discount_on_no_line_of_this_cart_is_refused_but_told_once_redeemed(position: Any) -> None:
    bad = per_item(5, position)
    with pytest.raises(Problem) as caught:
        outcome(CART, [bad])
    assert caught.value.reason == ("bad_reply" if position == "x" else "bad_position")
    for conversation in (adapter().check, adapter().redeem):
        _, result = talk(conversation(CART, "s"), reply({"effects": [bad, per_item(5, 0)]}))
        assert amounts(result) == [(0, 500)]
        assert "setDiscountPerItem" in [notice.type for notice in result.notices]


@pytest.mark.parametrize("value", [None, "five", [], True, "NaN", "Infinity", "1e15", "1e-60", "9" * 400])
@pytest.mark.parametrize("kind", ["setDiscount", "setDiscountPerItem"])
def test_an_amount_that_cannot_be_read_is_refused_but_told_once_redeemed(kind: str, value: Any) -> None:
    bad = effect(kind, {"name": "Off", "value": value, "position": 0})
    with pytest.raises(EngineUnavailable) as caught:
        outcome(CART, [bad])
    assert (caught.value.reason, caught.value.sent) == ("bad_reply", True)
    _, result = talk(adapter().redeem(CART, "s"), reply({"effects": [bad]}))
    assert (result.discounts, kind in [notice.type for notice in result.notices]) == ((), True)


def test_a_price_that_the_engine_chose_itself_is_told() -> None:
    told = outcome(CART, [per_item(5, 0, selectedPrice=50), per_item(5, 1, selectedPrice=20.0)]).notices
    assert [n.payload for n in told if n.type == "selectedPrice"] == [
        {"position": 0, "sku": "shoes", "selectedPrice": 50}
    ]


# -- Codes -------------------------------------------------------------------------------------------------------------

COUPON_REASONS = {
    # https://docs.talon.one/docs/dev/integration-api/api-effects#rejectcoupon, August 2026
    "CampaignLimitReached": "budget_used_up",
    "CouponExpired": "expired",
    "CouponLimitReached": "used_up",
    "CouponNotFound": "not_found",
    "CouponPartOfNotRunningCampaign": "not_active",
    "CouponRecipientDoesNotMatch": "not_yours",
    "CouponRejectedByCondition": "conditions_not_met",
    "CouponStartDateInFuture": "not_started",
    "EffectCouldNotBeApplied": "budget_used_up",
    "ProfileLimitReached": "customer_limit_reached",
    "CouponPartOfNotTriggeredCampaign": "not_combinable",
    "CouponReservationRequired": "reservation_required",
    "ProfileRequired": "sign_in_required",
    # Only in the examples of the same page.
    "CouponRejectedCondition": "conditions_not_met",
    "SomethingOfNextYear": "other",
}
REFERRAL_REASONS = {
    # https://docs.talon.one/docs/dev/integration-api/api-effects#rejectreferral, August 2026
    "AdvocateNotFound": "referrer_not_found",
    "CampaignLimitReached": "budget_used_up",
    "EffectCouldNotBeApplied": "budget_used_up",
    "ProfileLimitReached": "customer_limit_reached",
    "ReferralCustomerAlreadyReferred": "already_referred",
    "ReferralExpired": "expired",
    "ReferralLimitReached": "used_up",
    "ReferralNotFound": "not_found",
    "ReferralPartOfNotRunningCampaign": "not_active",
    "ReferralRecipientDoesNotMatch": "not_yours",
    "ReferralRecipientIdSameAsAdvocate": "own_referral",
    "ReferralRejectedByCondition": "conditions_not_met",
    "ReferralStartDateInFuture": "not_started",
    "ReferralPartOfNotTriggeredCampaign": "not_combinable",
    # Only in the examples of the same page, and in an official integration.
    "ReferralRejectedCondition": "conditions_not_met",
    "ReferralValidConditionMissing": "not_applied",
    "SomethingOfNextYear": "other",
}


@pytest.mark.parametrize(
    ("kind", "code", "word", "reason"),
    [("rejectCoupon", "COUP-XYZ789", word, reason) for word, reason in COUPON_REASONS.items()]
    + [("rejectReferral", "REF-ABC123", word, reason) for word, reason in REFERRAL_REASONS.items()],
)
def test_every_reason_has_a_word_of_ours_and_keeps_its_own(kind: str, code: str, word: str, reason: str) -> None:
    result = outcome(CART, [effect(kind, {"value": code.lower(), "rejectionReason": word}, campaign=-1)])
    assert result.rejected == (Rejection(code, Reason(reason), word),)


def test_the_reason_tables_hold_exactly_the_documented_words_and_words_of_the_catalogue() -> None:
    assert {**reasons.COUPON, "SomethingOfNextYear": "other"} == COUPON_REASONS
    assert {**reasons.REFERRAL, "SomethingOfNextYear": "other"} == REFERRAL_REASONS
    assert {*reasons.COUPON.values(), *reasons.REFERRAL.values(), *reasons.EXCLUSION.values()} <= set(Reason)


@pytest.mark.parametrize(
    ("exclusion", "reason"),
    [
        ("CampaignGaveLowerDiscount", "better_offer_applied"),
        ("CampaignIsNotFirst", "not_combinable"),
        ("CampaignNotInEvaluationSet", "not_active"),
        ("Whatever", "not_combinable"),
        (None, "not_combinable"),
    ],
)
@pytest.mark.parametrize(("kind", "code"), [("Coupon", "COUP-XYZ789"), ("Referral", "REF-ABC123")])
def test_a_campaign_that_was_excluded_says_why(kind: str, code: str, exclusion: str | None, reason: str) -> None:
    word = f"{kind}PartOfNotTriggeredCampaign"
    props = {"value": code, "rejectionReason": word, "campaignExclusionReason": exclusion}
    assert outcome(CART, [effect(f"reject{kind}", props)]).rejected == (Rejection(code, Reason(reason), word),)


@pytest.mark.parametrize("word", [None, "", "x" * 65, "<b>bold</b>", "line\nbreak", "müde"])
def test_text_that_is_no_word_is_not_passed_on_as_the_engines_reason(word: str | None) -> None:
    props = {"value": "COUP-XYZ789", "rejectionReason": word}
    assert outcome(CART, [effect("rejectCoupon", props)]).rejected == (Rejection("COUP-XYZ789", Reason.OTHER, ""),)


def test_refusals_stand_in_the_order_of_the_codes_once_each_as_the_shopper_spelled_them() -> None:
    checkout = cart(("A", 1, "1.00"), codes=["Zulu", "y" * 101, "alpha", "ok"], promotions={"referral_code": "Ref"})
    rejections = [("ALPHA", "CouponExpired", 1), ("ZULU", "CouponNotFound", 2), ("zulu", "CouponExpired", 3)]
    effects = [effect("rejectCoupon", {"value": v, "rejectionReason": r}, campaign=c) for v, r, c in rejections]
    effects += [effect("rejectReferral", {"value": "REF", "rejectionReason": "ReferralExpired"})]
    effects += [effect("acceptCoupon", {"value": "OK"})]
    assert [(r.code, r.reason) for r in outcome(checkout, effects).rejected] == [
        ("Zulu", "not_found"), ("y" * 101, "malformed"), ("alpha", "expired"), ("Ref", "expired"),
    ]  # fmt: skip


def test_a_code_that_one_campaign_accepts_works_though_another_refuses_it() -> None:
    effects = [
        effect("rejectCoupon", {"value": "coup-xyz789", "rejectionReason": "CouponExpired"}, campaign=1),
        effect("acceptCoupon", {"value": "COUP-XYZ789"}, campaign=2),
    ]
    for shuffled in (effects, effects[::-1]):
        result = outcome(CART, shuffled)
        assert result.rejected == ()
        assert {"acceptCoupon", "rejectCoupon"} <= {notice.type for notice in result.notices}


def test_a_refused_code_that_nobody_typed_and_a_code_without_an_answer_are_told() -> None:
    result = outcome(CART, [effect("rejectCoupon", {"value": "STALE", "rejectionReason": "CouponExpired"})])
    assert result.rejected == ()
    assert [(notice.type, notice.payload["value"]) for notice in result.notices] == [
        ("rejectCoupon", "STALE"), ("code_not_answered", "COUP-XYZ789"), ("code_not_answered", "REF-ABC123"),
    ]  # fmt: skip


# -- Whole answers -----------------------------------------------------------------------------------------------------


def samples() -> list[dict[str, Any]]:
    """One of each, and some that share a rule, a line, a name."""
    effects = [effect(kind, props) for kind, (props, _) in EFFECTS.items()]
    effects += [
        per_item(Decimal("3.335"), p, campaign=c, props={"subPosition": u})
        for p, u, c in [(0, 0, 2), (1, 0, 2), (1, 1, 2)]
    ]
    effects += [
        per_item(Decimal("0.335"), p, campaign=3, props={"totalDiscount": 1, "subPosition": u})
        for u, p in enumerate((0, 1, 1))
    ]
    effects += [
        per_item(70, 0, campaign=4, props={"scope": "itemTotal"}),
        per_item(80, 0, campaign=5, props={"scope": "itemTotal"}),
    ]
    effects += [
        effect("setDiscount", {"name": "Off", "value": v}, campaign=6, ruleIndex=i) for i, v in enumerate((1, 2, 2))
    ]
    return effects


@settings(deadline=None)
@given(st.permutations(samples()))
def test_the_order_of_the_effects_means_nothing(shuffled: list[dict[str, Any]]) -> None:
    assert outcome(CART, shuffled) == outcome(CART, samples())


JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, 1e308, -0.0, "", "x", "NaN", "-Infinity", "sNaN", "\u0000",
    [], {}, [[]], {"a": {}}, [None],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and junk is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], junk)
    return copy


HOSTILE = {
    "effects": [per_item(5, 0, coupon=9), effect("acceptCoupon", {"value": "COUP-XYZ789"}, coupon=9),
                effect("rejectReferral", {"value": "REF-ABC123", "rejectionReason": "ReferralExpired"}),
                effect("setDiscountPerAdditionalCost", {"name": "x", "value": 1, "additionalCost": "shipping"}),
                effect("showNotification", {"title": "t", "body": "b"}), per_item(1, 1, props={"totalDiscount": 1})],
    "triggeredCampaigns": [{"id": 1, "name": "n", "description": "d"}],
    "customerSession": {"state": "closed", "couponCodes": ["COUP-XYZ789"], "referralCode": "REF-ABC123", "cartItems": [
        {"sku": "shoes", "quantity": 1, "price": 60}, {"sku": "shirt", "quantity": 2, "price": 20.0}]},
    "message": 'Cannot move session to state "open" from state "closed"',
    "errors": [{"title": "t", "details": "d", "source": {"pointer": "/attributes/X"}}],
}  # fmt: skip
TEXTS = [
    b"", b"null", b"[]", b"{", b'{"effects":NaN}', b"\xff\xfe",
    b'{"effects":[{"effectType":"\xff","props":{"a":"\xff"}}]}', b'{"effects":' + b"[" * 100_000,
    b'{"effects":[' + b'{"effectType":"x","props":' * 5_000 + b"1" + b"}" * 5_000 + b"]}",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"\\ud800","value":1}}]}', b"<html>502 Bad Gateway</html>",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":' + b"9" * 6_000 + b"}}]}",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":1e999999999999999999999}}]}',
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":1' + b"0" * 14 + b"},"
    b'"campaignId":1},{"effectType":"setDiscount","props":{"name":"x","value":1e-40}}]}',
]  # fmt: skip


def survives(body: bytes | Any, statuses: Iterable[int] = (200,)) -> None:
    """Whatever comes, each conversation ends with an outcome or a `Problem`."""
    talon = TalonOne(COSTS)
    for status in statuses:
        for conversation in (talon.validate, talon.check, talon.redeem, talon.look_up, talon.undo):
            held: Conversation[Any] = conversation(CART, "s")
            next(held)
            with suppress(Problem):
                assert ended(held, reply(body, status)), "the conversation does not end"


def ended(held: Conversation[Any], answer: EngineReply) -> bool:
    try:
        for _ in range(4):
            held.send(answer)
    except StopIteration as stop:
        # What comes of it goes into our own answer.
        msgspec.json.Encoder(decimal_format="number").encode(stop.value)
        return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(places(HOSTILE))), st.sampled_from([*JUNK, ...]), st.sampled_from([200, 400, 404]))
def test_any_answer_ends_in_an_outcome_or_a_problem(path: tuple[Any, ...], junk: Any, status: int) -> None:
    survives(changed(HOSTILE, path, junk if path or junk is not ... else None), [status])


@pytest.mark.parametrize("body", TEXTS, ids=lambda text: text[:30])
def test_any_text_ends_in_an_outcome_or_a_problem(body: bytes) -> None:
    survives(body, (200, 204, 302, 400, 401, 404, 418))


def test_an_effect_that_cannot_be_decoded_loses_nothing_but_itself() -> None:
    good = msgspec.json.encode(per_item(5, 0))
    for bad in (b"5", b"null", b'{"effectType":5}', b'{"effectType":"newOne","props":{"text":"\xff"}}', b"99e99"):
        body = b'{"effects":[' + bad + b"," + good + b'],"triggeredCampaigns":[5,{"id":1,"name":"Summer"}]}'
        _, result = talk(adapter().validate(cart(("A", 1, "9.00")), "s"), reply(body))
        assert amounts(result) == [(0, 500)]
        assert (only(result.discounts).description, len(result.notices)) == ("Summer", 1)


# -- Conversations -----------------------------------------------------------------------------------------------------


def cannot_move(state: str = "closed", to: str = "open") -> EngineReply:
    return reply({"message": f'Cannot move session to state "{to}" from state "{state}"', "errors": None}, 400)


def stored(state: str | None = "closed", **changes: Any) -> EngineReply:
    session = {
        "state": state, "couponCodes": ["coup-xyz789"], "referralCode": "ref-abc123", "total": 100,
        "cartItems": [{"sku": "shoes", "quantity": 1.0, "price": 60, "position": 0, "attributes": {}},
                      {"sku": "shirt", "quantity": 2, "price": 20.00, "position": 1}],
    }  # fmt: skip
    return reply({"customerSession": {**session, **changes}, "effects": [per_item(5, 0)]})


@pytest.mark.parametrize(
    ("answer", "problem", "reason"),
    [
        (cannot_move(), EngineRejected, "session_closed"),
        (cannot_move("partially_returned"), EngineRejected, "session_closed"),
        (
            reply({"message": "Cannot move session to state open from state closed"}, 400),
            EngineRejected,
            "session_closed",
        ),
        (reply({"message": "The submitted data was invalid"}, 400), EngineRejected, "request_rejected"),
        (reply(b"<html>", 400), EngineRejected, "request_rejected"),
        (reply({"message": "no"}, 422), EngineRejected, "request_rejected"),
        (reply({"message": "invalid key"}, 401), EngineRejected, "engine_key"),
        (reply({"message": "no rights"}, 403), EngineRejected, "engine_key"),
        (reply({"message": "Not found"}, 404), EngineRejected, "not_found_at_engine"),
        (reply(b"", 302), EngineUnavailable, "bad_reply"),
        (reply(b"", 204), EngineUnavailable, "bad_reply"),
        (reply(b"<html>"), EngineUnavailable, "bad_reply"),
        (reply({}), EngineUnavailable, "bad_reply"),
        (reply({"effects": {}}), EngineUnavailable, "bad_reply"),
    ],
)
def test_what_a_refusal_of_validate_means(answer: EngineReply, problem: type[Problem], reason: str) -> None:
    with pytest.raises(problem) as caught:
        talk(adapter().validate(CART, "s"), answer)
    assert caught.value.reason == reason


def test_a_list_that_is_null_counts_as_empty() -> None:
    _, result = talk(
        adapter().validate(cart(("A", 1, "1.00")), "s"), reply({"effects": None, "triggeredCampaigns": None})
    )
    assert result == Outcome()


def test_of_an_error_only_the_place_is_passed_on() -> None:
    error = {"title": "Unknown", "details": "attribute of jane@example.com", "source": {"pointer": "/attributes/Color"}}
    strange = {"source": {"pointer": "/attributes/jane@example.com <script>"}}
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().validate(CART, "s"), reply({"message": "bad jane", "errors": [error, strange, {}]}, 400))
    assert caught.value.details["engine_pointers"] == ["/attributes/Color"]
    assert "/attributes/Color" in caught.value.message
    assert "jane" not in repr((caught.value.message, caught.value.details))


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(
    "body",
    [{"message": "Loyalty card not found"}, {"message": "no", "errors": [{"source": {"pointer": "/loyaltyCards/0"}}]}],
)
def test_a_card_that_the_engine_does_not_know_is_refused_and_the_rest_of_the_cart_priced(
    status: int, body: Any
) -> None:
    checkout = cart(("A", 1, "9.00"), promotions={"loyalty_card": "card-1"})
    for conversation in (adapter().validate, adapter().check):
        asked, result = talk(conversation(checkout, "s"), reply(body, status), reply({"effects": [per_item(5, 0)]}))
        assert [json.loads(request.body)["customerSession"]["loyaltyCards"] for request in asked] == [["card-1"], []]
        assert asked[0].path == asked[1].path
        assert (result.rejected, amounts(result)) == ((Rejection("card-1", Reason.NOT_FOUND, ""),), [(0, 500)])
    with pytest.raises(EngineRejected):
        talk(adapter().redeem(checkout, "s"), reply(body, status))


@pytest.mark.parametrize("state", ["closed", "partially_returned"])
@pytest.mark.parametrize("conversation", ["check", "redeem"])
def test_an_order_that_was_closed_before_is_redeemed_and_not_closed_again(conversation: str, state: str) -> None:
    asked, result = talk(getattr(adapter(), conversation)(CART, "s"), cannot_move(state, "closed"), stored(state))
    assert [request.method for request in asked] == ["PUT", "GET"]
    assert (result.redeemed, amounts(result)) == (True, [(0, 500)])


@pytest.mark.parametrize("conversation", ["check", "redeem"])
def test_a_close_that_goes_well_returns_what_it_granted(conversation: str) -> None:
    asked, result = talk(getattr(adapter(), conversation)(CART, "s"), reply({"effects": [per_item(5, 0)]}))
    assert json.loads(asked[0].body)["customerSession"]["state"] == "closed"
    assert (result.redeemed, amounts(result)) == (False, [(0, 500)])


OTHER_CONTENT: list[dict[str, Any]] = [
    {"cartItems": None},
    {"cartItems": []},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 60}]},
    {"cartItems": [{"sku": "shirt", "quantity": 2, "price": 20}, {"sku": "shoes", "quantity": 1, "price": 60}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 60}, {"sku": "shirt", "quantity": 3, "price": 20}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 55}, {"sku": "shirt", "quantity": 2, "price": 20}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1}, {"sku": "shirt", "quantity": 2, "price": 20}]},
    {
        "cartItems": [
            {"sku": "shoes", "quantity": 1, "price": 60},
            {"sku": "shirt", "quantity": 2, "price": 20},
            {"sku": "gift", "quantity": 1},
        ]
    },
    {"couponCodes": []},
    {"couponCodes": ["COUP-XYZ789", "MORE"]},
    {"referralCode": ""},
    {"loyaltyCards": ["card-1"]},
]


@pytest.mark.parametrize("changes", OTHER_CONTENT)
def test_a_session_closed_with_other_content_is_not_this_order(changes: dict[str, Any]) -> None:
    with pytest.raises(OrderMismatch):
        talk(adapter().look_up(CART, "s"), stored(**changes))
    for conversation in (adapter().check, adapter().redeem):
        with pytest.raises(OrderMismatch):
            talk(conversation(CART, "s"), cannot_move(), stored(**changes))


@pytest.mark.parametrize(
    "answer", [stored("open"), stored(None), stored(""), reply({}), reply({"customerSession": None}), reply({}, 404)]
)
def test_a_session_that_is_open_empty_or_unknown_was_not_redeemed(answer: EngineReply) -> None:
    asked, found = talk(adapter().look_up(CART, "s"), answer)
    assert ([request.method for request in asked], found.state) == (["GET"], "absent")


def test_recall_returns_what_the_closed_session_granted() -> None:
    _, found = talk(adapter().look_up(CART, "s"), stored())
    assert (found.state, amounts(found.outcome)) == ("redeemed", [(0, 500)])
    unreadable = reply({**json.loads(stored().body), "effects": [per_item(5, 99), per_item(5, 0)]})
    _, found = talk(adapter().look_up(CART, "s"), unreadable)
    assert (found.state, amounts(found.outcome)) == ("redeemed", [(0, 500)])


def test_an_engine_that_contradicts_itself_leaves_the_outcome_unknown() -> None:
    for answer in (stored("open"), reply({}, 404)):
        with pytest.raises(EngineUnavailable) as caught:
            talk(adapter().redeem(CART, "s"), cannot_move(), answer)
        assert (caught.value.reason, caught.value.sent) == ("session_state", True)


def test_a_cancelled_session_is_an_error_and_never_a_redemption() -> None:
    cancelled = stored("cancelled")
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().look_up(CART, "s"), cancelled)
    assert caught.value.reason == "session_cancelled"
    with pytest.raises(EngineRejected):
        talk(adapter().redeem(CART, "s"), cannot_move("cancelled"), cancelled)
    with pytest.raises(EngineRejected, match="cancelled"):
        talk(adapter().validate(CART, "s"), cannot_move("cancelled"))


@pytest.mark.parametrize(("status", "reason"), [(401, "engine_key"), (400, "request_rejected")])
def test_a_recall_that_is_refused_is_an_error(status: int, reason: str) -> None:
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().look_up(CART, "s"), reply({"message": "no"}, status))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "answers",
    [
        [reply({"effects": []})],
        [reply({"message": "Cannot move"}, 400), stored("open")],
        [reply({"message": "Cannot move"}, 400), stored("cancelled")],
        [reply({"message": "Cannot move"}, 400), reply({})],
        [reply({}, 404), reply({}, 404)],
    ],
)
def test_undo_reopens_the_session_or_finds_nothing_to_undo(answers: list[EngineReply]) -> None:
    asked, _ = talk(adapter().undo(CART, "s"), *answers)
    assert [request.method for request in asked] == ["PUT", "GET"][: len(answers)]
    assert not any(name == "Idempotency-Key" for request in asked for name, _ in request.headers)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([reply({"message": "no"}, 400), stored("closed")], "request_rejected"),
        ([reply({"message": "no"}, 404), stored("closed")], "not_found_at_engine"),
        ([reply({"message": "no"}, 401)], "engine_key"),
        ([reply({"message": "no"}, 400), reply(b"?")], "bad_reply"),
    ],
)
def test_undo_that_fails_says_so(answers: list[EngineReply], reason: str) -> None:
    with pytest.raises(Problem) as caught:
        talk(adapter().undo(CART, "s"), *answers)
    assert caught.value.reason == reason


def test_a_session_is_closed_once_so_there_is_nothing_to_repair() -> None:
    assert not TalonOne.capabilities.repair


def test_a_redemption_names_the_application_that_takes_it_back_when_the_order_has_been_erased() -> None:
    many = TalonOne({**ONE, "CURRENCY": "USD", "API_KEY_EUR": "euro"})
    redeemed, _ = replay(many.redeem(cart(currency="EUR"), "s"), [reply({"effects": []})])
    assert isinstance(redeemed, Redeemed)
    for order in (cart(currency="EUR"), None):
        assert first(many.undo(order, "s", redeemed.handle, final=True)).account == "EUR"
