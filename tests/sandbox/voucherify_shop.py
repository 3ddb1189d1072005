"""A shop that calls Voucherify's sandbox, and helpers that read the replies.

The tests copy their expected figures from the vendor's documentation and name the page.
"""

import asyncio
import itertools
import json
from typing import Any

from adapters.voucherify.sandbox import VoucherifySandbox
from mapper.sandbox import rulebook
from tests.sandbox.emulated import NOW, book, campaigns, send

Json = dict[str, Any]

HEADERS = {"x-app-id": "app", "x-app-token": "token", "content-type": "application/json"}
ALL = ('redeemables_application_mode = "PARTIAL"', 'redeemables_application_mode = "ALL"')
CASCADING = ("cascading_discounts = false", "cascading_discounts = true")


def small_book(effects: dict[str, str], settings: str = "", engine: str = "") -> rulebook.RuleBook:
    costs = "[settings.costs]\nshipping = 'both'\n"
    return rulebook.parse(f"[settings]\n{settings}\n{costs}[engines.voucherify]\n{engine}\n{campaigns(effects)}")


async def call(
    app: Any, method: str, path: str, body: bytes = b"", pause: float = 0, **headers: str
) -> tuple[int, dict[str, str], Any]:
    status, answered, reply = await send(app, method, path, body, HEADERS, headers, pause)
    return status, answered, json.loads(reply) if reply else None


class Shop:
    """A shop with its own sandbox and its own clock."""

    def __init__(self, *changes: tuple[str, str], own: rulebook.RuleBook | None = None) -> None:
        self.now = NOW
        self.engine = VoucherifySandbox(own or book(*changes), lambda: self.now)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        status, _, reply = asyncio.run(call(self.engine, method, f"/v1/{path}", data, 0, **headers))
        return status, reply

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, reply = self.call(method, path, body)
        assert status in (200, 204), reply
        return reply

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        status, reply = self.call(method, path, body)
        assert status >= 400, reply
        assert reply["code"] == status
        assert reply["request_id"].startswith("v-")
        return status, reply["key"]

    def validate(self, *redeemables: Any, **more: Any) -> Json:
        return dict(self.ok("POST", "validations", request(*redeemables, **more)))

    def redeem(self, *redeemables: Any, **more: Any) -> Json:
        return dict(self.ok("POST", "redemptions", request(*redeemables, **more)))

    @property
    def books(self) -> Json:
        return self.engine.books()


def redeemable(given: Any) -> Json:
    """From "CODE", "promo_1", "stack_x", or a redeemable in the vendor's form."""
    if isinstance(given, dict):
        return given
    kinds = {"promo": "promotion_tier", "stack": "promotion_stack"}
    return {"object": kinds.get(given.split("_")[0], "voucher"), "id": given}


def request(*redeemables: Any, order: Json | None = None, customer: str = "", **more: Any) -> Json:
    body: Json = {"redeemables": [redeemable(given) for given in redeemables]}
    body["order"] = {"items": items((14000, 1))} if order is None else order
    if customer:
        body["customer"] = {"source_id": customer}
    return body | more


def items(*lines: tuple[int, int], **more: Any) -> list[Json]:
    """Lines of (price, quantity), named SKU-0, SKU-1 and so on."""
    return [
        {"source_id": f"SKU-{i}", "related_object": "sku", "price": price, "quantity": quantity} | more
        for i, (price, quantity) in enumerate(lines)
    ]


def cart(*lines: tuple[int, int], **more: Any) -> Json:
    return {"items": items(*lines)} | more


def earned(reply: Json) -> list[str]:
    """What each redeemable takes off: "CODE order 500 #0 3500 #1+2 700 free", or why it does not apply."""
    texts = []
    for entry in merged(reply):
        words = [entry["id"]]
        if entry["status"] == "APPLICABLE":
            order = entry.get("order", {})
            words += [f"order {off}" for off in [order.get("applied_discount_amount")] if off]
            for i, line in enumerate(order.get("items", [])):
                added = f"+{line['applied_quantity']}" if "applied_quantity" in line else ""
                off = line.get("applied_discount_amount")
                if added or off:
                    words.append(f"#{i}{added} {off or 'free'}")
        else:
            result = entry["result"]
            words += ["-", result["error"]["key"] if "error" in result else result["details"]["key"]]
        texts.append(" ".join(words))
    return texts


def merged(reply: Json) -> list[Json]:
    """The redeemables of all lists of a reply."""
    lists = [reply.get(name) or [] for name in ("redeemables", "inapplicable_redeemables", "skipped_redeemables")]
    return list({(entry["object"], entry["id"]): entry for entry in itertools.chain(*lists)}.values())


def amounts(order: Json) -> dict[str, int]:
    return {name.removesuffix("_amount"): value for name, value in order.items() if name.endswith("amount")}


OFF = {kind: f'{{ kind = "off_order", {kind} = "%s" }}' for kind in ("amount", "percent")}


def off(value: str) -> str:
    """An effect on the order: "30.00" or "40%"."""
    return OFF["percent"] % value[:-1] if value.endswith("%") else OFF["amount"] % value


def lock(key: str, **more: Any) -> Json:
    return {"session": {"type": "LOCK", "key": key} | more}


TIERS = {"filters": {"resource_type": {"conditions": {"$is": ["promotion_tier"]}}}}
