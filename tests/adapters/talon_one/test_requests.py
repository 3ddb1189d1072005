"""The requests of the Talon.One adapter."""

import json
from decimal import Decimal
from typing import Any

import pytest

from mapper.adapter import (
    Rejection,
)
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.errors import InvalidRequest
from mapper.domain.reasons import Reason
from tests.adapters.talon_one.talk import (
    adapter,
    body_of,
    cart,
    first,
    outcome,
    parse,
    sent,
)


def test_checkout_becomes_this_request() -> None:
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
    request = first(adapter(**options).validate(parse(body), "a b/ü?.."))
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
        '"responseContent":["customerSession","triggeredCampaigns"]}'
    )


def test_response_content_option_extends_the_request() -> None:
    talon = adapter(RESPONSE_CONTENT="ruleFailureReasons, loyalty,loyalty")
    for conversation in (talon.validate, talon.check, talon.redeem):
        body = body_of(first(conversation(cart(("A", 1, "1.00")), "s")))
        assert body["responseContent"] == ["customerSession", "triggeredCampaigns", "ruleFailureReasons", "loyalty"]


def test_removable_fields_are_always_sent() -> None:
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


def test_reduced_cart_is_sent_with_list_prices() -> None:
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
def test_prices_have_the_digits_of_the_currency(currency: str, price: str, text: str) -> None:
    body = first(adapter().validate(cart(("A", 1, price), currency=currency), "s")).body
    assert f'"price":{text}}}'.encode() in body


@pytest.mark.parametrize(
    ("codes", "couponCodes", "malformed"),
    [
        (["a", "B"], ["a", "B"], []),
        (["Summer", "SUMMER", "summer", "b"], ["Summer", "b"], []),
        (["x" * 100, "y" * 101], ["x" * 100], []),
    ],
)  # fmt: skip
def test_codes_are_deduplicated_and_too_long_ones_dropped(
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
        ({"loyalty_card": "abc"}, "", [], ["abc"]),
        ({"loyalty_card": "a" * 100}, "", ["a" * 100], []),
        ({"loyalty_card": "with blank"}, "", [], ["with blank"]),
        ({"loyalty_card": "könig"}, "", [], ["könig"]),
    ],
)  # fmt: skip
def test_malformed_loyalty_card_is_rejected_without_sending_it(
    promotions: dict[str, str], referral: str, cards: list[str], malformed: list[str]
) -> None:
    checkout = cart(("A", 1, "1.00"), promotions=promotions)
    session = sent(adapter().validate(checkout, "s"))
    assert (session["referralCode"], session["loyaltyCards"]) == (referral, cards)
    assert outcome(checkout, []).rejected == tuple(Rejection(code, Reason.MALFORMED, "") for code in malformed)


def test_five_identifiers_are_sent_hashed_and_the_rest_noticed() -> None:
    checkout = cart(("A", 1, "1.00"), promotions={"identifiers": ["Jefe", "b", "c", "d", "e", "f", "g"]})
    assert sent(adapter().validate(checkout, "s"))["identifiers"] == ["Jefe", "b", "c", "d", "e"]
    keyed = sent(adapter(IDENTIFIERS_KEY="what do ya want for nothing?").validate(checkout, "s"))["identifiers"]
    assert len(keyed) == 5
    # Computed with: printf Jefe | openssl dgst -sha256 -hmac "what do ya want for nothing?"
    assert keyed[0] == "32dc8d946def0419c52253481d2c9340a54273346c4dd2e4047184d676b0e11d"
    (notice,) = outcome(checkout, []).notices
    assert (notice.type, notice.payload) == ("identifiers_not_sent", {"sent": 5, "not_sent": 2})


@pytest.mark.parametrize(
    ("options", "body", "pointer"),
    [
        ({"STORE_PATH": "/store"}, {"store": 1.5}, "/store"),
        ({"ADDITIONAL_COSTS": "shipping=/fee"}, {"fee": "cheap"}, "/fee"),
        ({"ADDITIONAL_COSTS": "shipping=/fee"}, {"fee": -1}, "/fee"),
        ({"ITEM_ADDITIONAL_COSTS": "wrap=/fee"}, {"items": [{"sku": "A", "quantity": 1, "price": "1", "fee": []}]},
         "/items/0/fee"),
        ({"SKU_FIELD": "variant_id"}, {"items": [{"sku": "A", "quantity": 1, "price": "1"}]}, "/items/0/variant_id"),
    ],
)  # fmt: skip
def test_invalid_value_at_configured_path_error_names_the_field(
    options: dict[str, str], body: Any, pointer: str
) -> None:
    checkout = documents.parse(json.dumps({"items": [], **body}).encode(), "validate")
    with pytest.raises(InvalidRequest) as caught:
        first(adapter(**options).validate(checkout, "s"))
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(("field", "sku"), [("", "S"), ("sku", "S"), ("variant_id", "V"), ("product_id", "P")])
def test_configured_field_of_a_line_is_its_sku(field: str, sku: str) -> None:
    line = {"sku": "S", "variant_id": "V", "product_id": "P", "quantity": 1, "price": "1.00"}
    checkout = documents.parse(json.dumps({"items": [line]}).encode(), "validate")
    assert sent(adapter(SKU_FIELD=field).validate(checkout, "s"))["cartItems"][0]["sku"] == sku


def test_only_close_is_not_repeatable() -> None:
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


def test_idempotency_key_depends_on_session_and_content() -> None:
    def key(checkout: Checkout, session: str) -> str:
        headers = dict(first(adapter().redeem(checkout, session)).headers)
        return headers["Idempotency-Key"]

    customer = {"id": "c"}
    one, other = (cart(("A", quantity, "1.00"), customer=customer) for quantity in (1, 2))
    assert key(one, "s") == key(cart(("A", 1, "1.00"), customer=customer), "s")
    assert len({key(one, "s"), key(other, "s"), key(one, "t")}) == 3
    assert len(key(one, "s")) == 64
