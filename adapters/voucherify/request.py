"""Builds the requests to Voucherify.

Amounts are whole numbers of the project's smallest unit (`Settings.exponent`, usually cents). Prices are list prices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from adapters.voucherify.options import MetadataList, Settings
from adapters.voucherify.redeemables import Redeemable
from mapper.adapter import Checkout, EngineRejected, EngineRequest, Line

MAX_ITEMS = 500

_JSON = (("Content-Type", "application/json"),)
_EXPAND = {"expand": ["order", "redeemable"]}
_encode = msgspec.json.Encoder(decimal_format="number").encode

Effect = Literal["none", "session", "redeems"]

# A reply has a copy of the order for each redeemable and two more. Each copy repeats what was sent; Voucherify adds
# about thirty fields to a line, and the merchant's metadata to a redeemable.
_LINE_BYTES, _REDEEMABLE_BYTES = 2048, 64 * 1024
MAX_REPLY_BYTES = 64 * 1024 * 1024

FAILURES = frozenset({409, 429, 500, 502, 503, 504})


def validation(
    checkout: Checkout, session: str, redeemables: Sequence[Redeemable], settings: Settings
) -> EngineRequest:
    """Validates, and locks the vouchers where a lock is configured. The same session replaces its own lock."""
    # Without order.source_id: Voucherify would price the order that it has stored under it instead of this one.
    body = _body(checkout, redeemables, settings)
    if settings.lock_ttl:
        body["session"] = {**_lock(session), "ttl": settings.lock_ttl, "ttl_unit": "SECONDS"}
    effect: Effect = "session" if settings.lock_ttl else "none"
    return _post("validate", "/v1/validations", body, effect=effect, copies=len(redeemables))


def redemption(order: Checkout, session: str, redeemables: Sequence[Redeemable], settings: Settings) -> EngineRequest:
    """Redeems. Voucherify has no idempotency keys: a request that is sent twice may redeem twice."""
    body = _body(order, redeemables, settings)
    body["order"] = {"source_id": session, "status": "PAID", **body["order"]}
    if settings.lock_ttl:
        body["session"] = _lock(session)
    return _post("redeem", "/v1/redemptions", body, effect="redeems", copies=len(redeemables))


def qualification(checkout: Checkout, count: int, settings: Settings) -> EngineRequest:
    """Asks for promotion tiers that may apply. Voucherify caches the reply and ignores some limits in it."""
    body: dict[str, Any] = {
        "scenario": "ALL",
        **_customer(checkout, settings),
        "order": _order(checkout, settings),
        "options": {
            "limit": count,
            "filters": {"junction": "and", "resource_type": {"conditions": {"$is": ["promotion_tier"]}}},
            "sorting_rule": "BEST_DEAL",
        },
    }
    if metadata := _metadata(checkout.at, settings.redemption_metadata):
        body["metadata"] = metadata
    return _post("qualify", "/v1/qualifications", body, effect="none", copies=count)


def stored_order(session: str) -> EngineRequest:
    path = f"/v1/orders/{quote(session, safe='')}"
    return _get("read order", path)


def stored_redemption(redemption_id: str) -> EngineRequest:
    path = f"/v1/redemptions/{quote(redemption_id, safe='')}"
    return _get("read redemption", path)


def release(code: str, session: str) -> EngineRequest:
    """Unlocks a voucher of this session. A failure is harmless, because the lock expires.

    https://docs.voucherify.io/guides/locking-validation-session (2026-08): one request per voucher; not for tiers.
    """
    path = f"/v1/vouchers/{quote(code, safe='')}/sessions/{quote(_lock_key(session), safe='')}"
    return EngineRequest(
        operation="release lock", method="DELETE", path=path, effect="session", repeatable=True, answers=FAILURES
    )


def rename_order(session: str, name: str) -> EngineRequest:
    """Gives the stored order another `source_id`. Not verified against a live account.

    https://docs.voucherify.io/api-reference/orders/update-order (2026-08)
    """
    path, body = f"/v1/orders/{quote(session, safe='')}", _encode({"source_id": name})
    return EngineRequest(
        operation="rename order",
        method="PUT",
        path=path,
        body=body,
        headers=_JSON,
        effect="session",
        repeatable=True,
        answers=FAILURES,
    )


def rollback(redemption_id: str) -> EngineRequest:
    """Rolls back a redemption and its children. Repeatable."""
    path = f"/v1/redemptions/{quote(redemption_id, safe='')}/rollbacks"
    return _post("roll back", path, {"reason": "Not wanted by the order"}, effect="session")


def _get(operation: str, path: str) -> EngineRequest:
    return EngineRequest(
        operation=operation,
        method="GET",
        path=path,
        effect="none",
        repeatable=True,
        reply_bytes=MAX_REPLY_BYTES,  # the stored cart may be another one
    )


def _post(operation: str, path: str, body: Mapping[str, Any], *, effect: Effect, copies: int = 1) -> EngineRequest:
    sent, lines = _encode(body), len(body.get("order", {}).get("items", ()))
    copy = len(sent) + lines * _LINE_BYTES + _REDEEMABLE_BYTES
    return EngineRequest(
        operation=operation,
        method="POST",
        path=path,
        body=sent,
        headers=_JSON,
        effect=effect,
        repeatable=effect != "redeems",
        reply_bytes=min((copies + 2) * copy, MAX_REPLY_BYTES),
    )


def _body(checkout: Checkout, redeemables: Sequence[Redeemable], settings: Settings) -> dict[str, Any]:
    body: dict[str, Any] = {
        "redeemables": [redeemable.body() for redeemable in redeemables],
        "order": _order(checkout, settings),
        **_customer(checkout, settings),
        "options": _EXPAND,
    }
    if metadata := _metadata(checkout.at, settings.redemption_metadata):
        body["metadata"] = metadata
    return body


def _lock(session: str) -> dict[str, Any]:
    return {"type": "LOCK", "key": _lock_key(session)}


def _lock_key(session: str) -> str:
    return f"nacelle:{session}"


def _order(checkout: Checkout, settings: Settings) -> dict[str, Any]:
    if len(checkout.cart) > MAX_ITEMS:
        message = f"The cart has {len(checkout.cart)} lines; Voucherify takes {MAX_ITEMS}."
        raise EngineRejected(message, reason="too_many_lines")
    items = [_item(checkout, line, settings) for line in checkout.cart]
    order: dict[str, Any] = {"amount": sum(item["amount"] for item in items), "items": items}
    if metadata := _metadata(checkout.at, settings.order_metadata):
        order["metadata"] = metadata
    return order


def _item(checkout: Checkout, line: Line, settings: Settings) -> dict[str, Any]:
    price = settings.to_engine(line.list_price, checkout.digits)
    source_id, related_object = line_name(line, settings)
    item: dict[str, Any] = {
        "source_id": source_id,
        "related_object": related_object,
        "quantity": line.quantity,
        "price": price,
        "amount": price * line.quantity,
    }
    # With both ids, rules on products and rules on SKUs match.
    if related_object == "sku" and line.product_id:
        item["product"] = {"source_id": line.product_id}
    elif related_object == "product" and (other := line.sku or line.variant_id):
        item["sku"] = {"source_id": other}
    if settings.item_metadata:
        metadata = _metadata(lambda pointer: checkout.at_line(line, pointer), settings.item_metadata)
        if metadata:
            item["metadata"] = metadata
    return item


def line_name(line: Line, settings: Settings) -> tuple[str, str]:
    """(`source_id`, `related_object`): the id of the line's product or SKU in Voucherify."""
    configured: str = getattr(line, settings.item_id)
    if configured:
        return configured, settings.related_object
    return line.name, "sku" if line.sku or line.variant_id else "product"


def _customer(checkout: Checkout, settings: Settings) -> dict[str, Any]:
    """The customer by the merchant's id. It is never sent as `customer.id`, which is Voucherify's own id."""
    value = checkout.customer or checkout.at(settings.customer_id_path)
    source_id = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not source_id.strip():
        return {}
    customer: dict[str, Any] = {"source_id": source_id.strip()}
    if metadata := _metadata(checkout.at, settings.customer_metadata):
        customer["metadata"] = metadata
    return {"customer": customer}


def _metadata(at: Callable[[str], Any], configured: MetadataList) -> dict[str, Any]:
    values = {name: at(pointer) for name, pointer in configured}
    return {name: value for name, value in values.items() if value is not None}
