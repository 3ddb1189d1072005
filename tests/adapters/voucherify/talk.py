"""What the tests of the Voucherify adapter share: carts and orders, and answers as Voucherify gives them."""

import json
from collections.abc import Sequence
from typing import Any

from adapters.voucherify import Voucherify
from mapper.adapter import Conversation, EngineReply, EngineRequest, Outcome
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.engine.conversation import replay
from tests.adapters.record import granted

KEYS = {"APP_ID": "app", "APP_TOKEN": "token"}
ORDER = "order-1"


def engine(**options: str) -> Voucherify:
    return Voucherify({**KEYS, **options})


def cart(
    *lines: dict[str, Any] | tuple[str, int, str], codes: Sequence[str] = (), currency: str = "USD", **body: Any
) -> Checkout:
    """A checkout; a line is (sku, quantity, price) or the line itself."""
    promotions = {"coupon_codes": list(codes), **body.pop("promotions", {})}
    return documents.parse(
        json.dumps({"items": _lines(lines), "currency": currency, "promotions": promotions, **body}).encode(),
        "validate",
    )


def order(
    *lines: dict[str, Any] | tuple[str, int, str], codes: Sequence[str] = (), currency: str = "USD", **body: Any
) -> Checkout:
    promotions = {"coupon_codes": list(codes), **body.pop("promotions", {})}
    body = {"order_items": _lines(lines), "currency": currency, "promotions": promotions, **body}
    return documents.parse(json.dumps(body).encode(), "consume")


def _lines(lines: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"sku": line[0], "quantity": line[1], "price": line[2]} if isinstance(line, tuple) else line for line in lines
    ]


def reply(body: Any, status: int = 200) -> EngineReply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return EngineReply(status=status, headers={}, body=raw)


def failure(key: str, status: int = 400, **more: Any) -> EngineReply:
    return reply({"code": status, "key": key, "message": "SECRET TEXT", "details": "SECRET", **more}, status)


def share(off: int = 0, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An order as a redeemable's answer shows it: Voucherify leaves zeros out."""
    lines = sum(item.get("applied_discount_amount", 0) for item in items)
    found = {"applied_discount_amount": off, "total_applied_discount_amount": off + lines}
    found = {key: value for key, value in found.items() if value}
    return {**found, "items": list(items), "object": "order", **more}


def item(off: int = 0, **more: Any) -> dict[str, Any]:
    return {"object": "order_item", **({"applied_discount_amount": off} if off else {}), **more}


def applies(name: str, shown: dict[str, Any], kind: str = "voucher", **result: Any) -> dict[str, Any]:
    return {"status": "APPLICABLE", "id": name, "object": kind, "order": shown, "result": result}


def fails(name: str, key: str, kind: str = "voucher", status: str = "INAPPLICABLE") -> dict[str, Any]:
    result = {"error": {"code": 400, "key": key}} if status == "INAPPLICABLE" else {"details": {"key": key}}
    return {"status": status, "id": name, "object": kind, "result": result}


def valid(*redeemables: dict[str, Any], **more: Any) -> dict[str, Any]:
    total = sum(
        one["order"].get("total_applied_discount_amount", 0)
        for one in redeemables
        if one["status"] == "APPLICABLE" and one.get("order")
    )
    return {
        "valid": True,
        "redeemables": list(redeemables),
        "order": {"total_applied_discount_amount": total, "items": [], "object": "order"},
        **more,
    }


def invalid(*redeemables: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"valid": False, "redeemables": list(redeemables), **more}


def replayed(conversation: Conversation[Any] | None, *replies: EngineReply | dict[str, Any]) -> tuple[Any, list[Any]]:
    assert conversation is not None
    result, requests = replay(conversation, [one if isinstance(one, EngineReply) else reply(one) for one in replies])
    return granted(result), requests


def replayed_raw(conversation: Conversation[Any], *replies: EngineReply | dict[str, Any]) -> Any:
    """Return the result of a conversation as the mapper gets it."""
    return replay(conversation, [one if isinstance(one, EngineReply) else reply(one) for one in replies])[0]


def validated(checkout: Checkout, *replies: EngineReply | dict[str, Any], **options: str) -> Outcome:
    outcome, _ = replayed(engine(**options).validate(checkout, ORDER), *replies)
    assert isinstance(outcome, Outcome)
    return outcome


def body_of(request: EngineRequest) -> dict[str, Any]:
    found = json.loads(request.body)
    assert isinstance(found, dict)
    return found


def taken(outcome: Outcome) -> list[tuple[str, int | None, int, str]]:
    return [(d.meta["redeemable"], d.line, d.amount, d.effect_type) for d in outcome.discounts]


def refusals(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(one.code, one.reason, one.engine_reason) for one in outcome.rejected]


AMOUNT = {"type": "AMOUNT", "effect": "APPLY_TO_ORDER"}
TIER = "promo_AAAAAAAAAAAAAAAA"
TIER_2 = "promo_BBBBBBBBBBBBBBBB"


SHIRT = {"sku": "SHIRT-M", "product_id": "SHIRT", "quantity": 2, "price": "20.00", "colour": "red"}


def discount(effect: str, kind: str = "AMOUNT", **more: Any) -> dict[str, Any]:
    return {"discount": {"type": kind, "effect": effect, **more}}


def unit(**more: Any) -> dict[str, Any]:
    return discount("ADD_MISSING_ITEMS", "UNIT", unit_type="prod_1", **more)


SHIPPING_UNIT = {
    "type": "UNIT",
    "effect": "ADD_MISSING_ITEMS",
    "unit_off": 1,
    "unit_type": "prod_5h1pp1ng",
    "product": {"id": "prod_5h1pp1ng", "source_id": "5h1pp1ng", "name": "Shipping"},
}


FREE: dict[str, Any] = {"discount": SHIPPING_UNIT}


RATE: dict[str, Any] = {"shipping_rate": {"price": "15.00"}}


def tier(name: str, shown: dict[str, Any], **result: Any) -> dict[str, Any]:
    return applies(name, shown, "promotion_tier", **(result or discount("APPLY_TO_ORDER")))


def redeemable_ids(request: EngineRequest) -> list[str]:
    return [one["id"] for one in body_of(request)["redeemables"]]


def shown_order(*metas: dict[str, Any], codes: Sequence[str] = (), **mapper: Any) -> Checkout:
    """A paid order with the discounts and notes that validate wrote."""
    entries = [{"name": "n", "amount": "0.01", "effect_type": "e", "meta": meta} for meta in metas]
    return order(("A", 1, "5.00"), codes=codes, applied_discounts=entries, promotions={"meta": {"mapper": mapper}})


def tier_meta(name: str, position: Any = 0) -> dict[str, Any]:
    return {"object": "promotion_tier", "redeemable": name, "position": position}


def redemption(name: str, off: int, number: int = 1, kind: str = "DISCOUNT_VOUCHER", **more: Any) -> dict[str, Any]:
    return {
        "id": f"r_{number}",
        "object": "redemption",
        "result": "SUCCESS",
        "status": "SUCCEEDED",
        "order": share(off),
        "voucher": {"code": name, "type": kind, "discount": AMOUNT, "campaign": "Spring", "campaign_id": "camp_1"},
        **more,
    }


def redeemed(*redemptions: dict[str, Any], live: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    parent = {"parent_redemption": {"id": "r_0", "result": "SUCCESS"}} if len(redemptions) > 1 else {}
    ids = ["r_0"] if parent else [one["id"] for one in redemptions]
    total = sum(one["order"].get("total_applied_discount_amount", 0) for one in redemptions)
    entries = {name: {"date": f"2026-01-0{n}"} for n, name in enumerate([*live, *ids], 1)}
    whole = {"id": "ord_1", "total_applied_discount_amount": total, "redemptions": entries}
    return {"redemptions": list(redemptions), **parent, "order": whole, **more}


TIER_REDEMPTION: dict[str, Any] = {
    "voucher": None,
    "promotion_tier": {"id": TIER, "name": "Tier", "campaign": {"id": "camp_2"}, "action": {"discount": AMOUNT}},
}


def stored(*live: str, rolled_back: Sequence[str] = (), off: int = 500, **more: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {name: {"date": "2026-01-02"} for name in live}
    entries |= {name: {"date": "2026-01-01", "rollback_id": "rr_1"} for name in rolled_back}
    items = [{"source_id": "SHIRT-M", "quantity": 2, "price": 2000, "discount_amount": 0}]
    return {
        "id": "ord_1",
        "source_id": ORDER,
        "discount_amount": off,
        "total_discount_amount": off,
        "items": items,
        "redemptions": entries,
        **more,
    }


def redeemed_once(*children: str) -> dict[str, Any]:
    """A stored order with one redemption, which has these child redemptions."""
    return stored(redemptions={"r_1": {"date": "2026-01-02", **({"stacked": list(children)} if children else {})}})


UNKNOWN = failure("not_found", 404)
"""The answer to a read right after a redemption: the order is not stored yet."""
