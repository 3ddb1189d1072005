"""Talon.One's sandbox: validation of requests."""

import msgspec
import pytest

from adapters.talon_one.sandbox.options import Options
from tests.sandbox.emulated import book
from tests.sandbox.talon_one_shop import Json, Shop, items


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
def test_invalid_session_gets_400_naming_every_field(session: Json, pointers: list[str]) -> None:
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
def test_invalid_body_is_refused(body: bytes, status: int) -> None:
    code, reply = Shop().request("s1", body)
    assert code == status
    assert ("message" in reply) is (status != 200)


def test_setting_ignores_undocumented_fields() -> None:
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
def test_query_is_validated(query: str, status: int) -> None:
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
def test_api_key_is_required(keys: str, header: str, status: int) -> None:
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
def test_session_id_is_one_encoded_path_segment(segment: str, id_: str | None) -> None:
    shop = Shop()
    assert shop.put({}, segment)[0] == (404 if id_ is None else 200)
    assert list(shop.books["sessions"]) == ([] if id_ is None else [id_])


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("DELETE", 405), ("PATCH", 405)])
def test_other_methods_are_not_allowed(method: str, status: int) -> None:
    assert Shop().request("s1", method=method)[0] == status


def test_default_rule_book_lists_the_default_options() -> None:
    shown = book().engines["talon_one"]
    assert shown == msgspec.to_builtins(Options())
