"""Voucherify's sandbox: validation of requests."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.sandbox.emulated import NOW
from tests.sandbox.voucherify_shop import (
    Json,
    Shop,
    call,
    cart,
    earned,
    items,
    request,
)


@pytest.mark.parametrize(
    ("change", "details"),
    [
        ({"redeemables": []}, "Property .redeemables should NOT have fewer than 1 items"),
        (
            {"redeemables": [{"object": "voucher", "id": f"C{i}"} for i in range(31)]},
            "Property .redeemables should NOT have more than 30 items",
        ),
        # The vendor's own example of this error.
        (
            {"redeemables": [{"object": "voucher", "id": "A"}, {"object": "voucher"}]},
            "Property .redeemables[1] should have required property 'id'",
        ),
        (
            {"redeemables": [{"object": "coupon", "id": "A"}]},
            "Property .redeemables[0].object should be equal to one of",
        ),
        (
            {"redeemables": [{"object": "promotion_tier", "id": "A", "gift": {"credits": 1}}]},
            "Property .redeemables[0] should NOT have additional property 'gift'",
        ),
        (
            {"redeemables": [{"object": "voucher", "id": "A", "gift": {"credits": 1.5}}]},
            "Property .redeemables[0].gift.credits should be integer",
        ),
        ({"order": {"items": [{"price": "14000"}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": 140.5}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": True}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": -1}]}}, "Property .order.items[0].price should be >= 0"),
        ({"order": {"items": [{"quantity": 0}]}}, "Property .order.items[0].quantity should be >= 1"),
        (
            {"order": {"items": [{"source_id": "A"}]}},
            "Property .order.items[0] should have required property 'related_",
        ),
        ({"order": {"items": {}}}, "Property .order.items should be array"),
        ({"order": {"status": "OPEN"}}, "Property .order.status should be equal to one of the allowed values: CREATED"),
        ({"order": {"currency": "EUR"}}, "Property .order should NOT have additional property 'currency'"),
        ({"order": 7}, "Property .order should be object"),
        ({"customer": {"source_id": ""}}, "Property .customer.source_id should NOT be shorter than 1 characters"),
        ({"customer": {"mail": "a@b"}}, "Property .customer should NOT have additional property 'mail'"),
        ({"session": {"type": "UNLOCK"}}, "Property .session.type should be equal to one of the allowed values: LOCK"),
        ({"session": {"type": "LOCK", "ttl": "7"}}, "Property .session.ttl should be number"),
        ({"session": {"type": "LOCK", "ttl_unit": "WEEKS"}}, "Property .session.ttl_unit should be equal to one of"),
        ({"options": {"expand": ["orders"]}}, "Property .options.expand[0] should be equal to one of"),
        ({"metadata": []}, "Property .metadata should be object"),
        ({"order_id": "o1"}, "Property  should NOT have additional property 'order_id'"),
    ],
)
def test_invalid_payload_gets_the_vendors_error(change: Json, details: str) -> None:
    for path in ("validations", "redemptions"):
        status, error = Shop().call("POST", path, request("TEN-PERCENT") | change)
        assert (status, error["key"], error["message"]) == (400, "invalid_payload", "Invalid payload")
        assert error["details"].startswith(details)


@pytest.mark.parametrize(
    "change",
    [
        {"customer": None, "metadata": None, "tracking_id": None, "session": None, "options": None},
        {"session": {"type": "LOCK", "key": "k", "ttl": None, "ttl_unit": None}},
        {"options": {"expand": ["order"], "include_orders": True}},
        {"order": {"id": None, "source_id": None, "items": [items((14_000, 1))[0] | {"quantity": "1"}]}},
        {"order": {"items": [items((14_000, 1))[0] | {"product_id": None, "sku": {"id": None}, "metadata": None}]}},
        {"redeemables": [{"object": "voucher", "id": "TEN-PERCENT", "gift": None, "reward": None}]},
    ],
)
def test_nulls_and_quantities_as_strings_are_accepted(change: Json) -> None:
    assert earned(Shop().ok("POST", "validations", request("TEN-PERCENT") | change)) == ["TEN-PERCENT #0 1400"]


def test_metadata_is_stored_unchanged() -> None:
    shop = Shop()
    metadata = {"quantity": "1", "note": None}
    shop.redeem("TEN-PERCENT", order=cart((1000, 1), source_id="o1", metadata=metadata))
    assert shop.ok("GET", "orders/o1")["metadata"] == metadata


def test_setting_ignores_undocumented_fields() -> None:
    shop = Shop(('unknown_fields = "refuse"', 'unknown_fields = "ignore"'))
    assert shop.validate("TEN-PERCENT", order_id="o1")["valid"]
    assert shop.refused("POST", "validations", request("A") | {"order": []}) == (400, "invalid_payload")


DEEP = b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a": 1e999999999999999999999}', DEEP])
def test_invalid_body_is_refused(body: bytes) -> None:
    status, _, error = asyncio.run(call(Shop().engine, "POST", "/v1/validations", body))
    assert (status, error["key"]) == (400, "invalid_payload")


def test_duplicate_redeemables_are_refused() -> None:
    shop = Shop()
    for codes in (["TEN-PERCENT", "ten-percent"], ["NOPE", "NOPE"], ["promo_2", "promo_2"]):
        assert shop.refused("POST", "redemptions", request(*codes)) == (400, "duplicated_redeemables")
    assert shop.books["redemptions"] == []


@pytest.mark.parametrize(
    ("keys", "headers", "status"),
    [
        ("", {}, 200),
        ("", {"x_app_id": ""}, 401),
        ("", {"x_app_token": ""}, 401),
        ('"right"', {"x_app_token": "right"}, 200),
        ('"right"', {"x_app_token": "wrong"}, 401),
    ],
)
def test_both_api_keys_are_required(keys: str, headers: dict[str, str], status: int) -> None:
    shop = Shop(("api_keys = []", f"api_keys = [{keys}]"))
    answered, reply = shop.call("POST", "validations", request("TEN-PERCENT"), **headers)
    assert answered == status
    if status == 401:
        assert (reply["code"], reply["key"], reply["message"]) == (401, "unauthorized", "Unauthorized")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "validations", 405),
        ("DELETE", "orders/o1", 405),
        ("DELETE", "vouchers/X/sessions", 404),
        ("POST", "vouchers/X/validate", 404),
        ("GET", "orders/", 404),
        ("GET", "orders/a/b", 404),
        ("GET", "redemptions/%FF", 404),
        ("POST", "redemptions/r_1/rollbackss", 404),
        ("GET", "", 404),
    ],
)
def test_unknown_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    answered, reply = Shop().call(method, path)
    assert (answered, reply["code"]) == (status, status)
    if status == 405:
        assert "Did you mean" in reply["details"]


def test_another_media_type_is_refused() -> None:
    assert Shop().call("POST", "validations", request("A"), content_type="text/plain")[0] == 415


def test_rate_limit_counts_calls_per_minute() -> None:
    shop = Shop(("calls_per_minute = 100000", "calls_per_minute = 2"))

    def get() -> tuple[int, dict[str, str], Any]:
        return asyncio.run(call(shop.engine, "GET", "/v1/vouchers/TEN-PERCENT"))

    shop.now = NOW + timedelta(seconds=20)
    left = [headers["x-rate-limit-remaining"] for status, headers, _ in (get(), get()) if status == 200]
    assert left == ["1", "0"]
    status, headers, error = get()
    assert (status, headers["x-rate-limit-limit"], headers["retry-after"]) == (429, "2", "40")
    assert headers["x-rate-limit-retry"] == str(int((NOW + timedelta(seconds=60)).timestamp()))
    assert "key" not in error, "as the vendor's own"
    shop.now = NOW + timedelta(seconds=60)
    assert get()[0] == 200
