"""A shop that calls Talon.One's sandbox, and helpers that read the replies."""

import asyncio
import json
from collections import Counter
from typing import Any

from adapters.talon_one.sandbox import TalonOneSandbox
from mapper.sandbox import rulebook
from tests.sandbox.emulated import NOW, book, campaigns, send

Json = dict[str, Any]

KEY = {"authorization": "ApiKey-v1 key"}


def small_book(effects: dict[str, str], settings: str = "") -> rulebook.RuleBook:
    """A book with one coupon for each effect, in this order."""
    costs = '[settings.costs]\nshipping = "item"\ngift_wrap = "item"\n'
    return rulebook.parse(f"[settings]\n{settings}\n{costs}{campaigns(effects)}")


async def call(
    app: Any,
    path: str,
    body: bytes = b'{"customerSession": {}}',
    method: str = "PUT",
    *,
    pause: float = 0,
    **headers: Any,
) -> tuple[int, bytes]:
    status, _, reply = await send(app, method, path, body, KEY, headers, pause)
    return status, reply


class Shop:
    """A shop with its own sandbox and its own clock."""

    def __init__(self, *changes: tuple[str, str], own: rulebook.RuleBook | None = None) -> None:
        self.now = NOW
        self.engine = TalonOneSandbox(own or book(*changes), lambda: self.now)

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

    def give_back(self, *returned: Json, id_: str = "s1", **headers: str) -> tuple[int, Json]:
        body = {
            "return": {"returnedCartItems": list(returned)},
            "responseContent": ["customerSession", "customerProfile"],
        }
        return self.request(f"{id_}/returns", json.dumps(body).encode(), "POST", **headers)

    @property
    def books(self) -> Json:
        return self.engine.books()


def items(*lines: tuple[str, int, float]) -> list[Json]:
    return [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]


def cart(*codes: str, price: float = 140, quantity: int = 1, **more: Any) -> Json:
    return {"cartItems": items(("SHIRT", quantity, price)), "couponCodes": list(codes), **more}


def of(reply: Json, kind: str) -> list[Json]:
    return [effect["props"] for effect in reply["effects"] if effect["effectType"] == kind]


def effect_counts(reply: Json) -> Counter[str]:
    """Each effect of a reply as text, in no order: "kind value" or "kind name value", and its position."""
    texts = []
    for effect in reply["effects"]:
        props = effect["props"]
        spot = [str(props[name]) for name in ("position", "subPosition") if name in props]
        words = [props.get("rejectionReason") or props.get("name"), props.get("value"), "/".join(spot)]
        texts.append(" ".join([effect["effectType"], *(str(word) for word in words if word not in (None, ""))]))
    return Counter(texts)
