"""Emulates Acme. Written from Acme's documentation, not from the adapter: neither imports the other.

`promotions-mapper sandbox` serves it at /acme. Codes: SAVE-5, TEN-PERCENT, ONCE-5 (for one use), MIN-100 (from 100.00),
OLD-5 (expired).
"""

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mapper.sandbox.emulator import PAUSE, Now
from mapper.sandbox.rulebook import RuleBook

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Row(msgspec.Struct):
    sku: str
    count: int
    price: Decimal


class Question(msgspec.Struct):
    currency: str
    rows: list[Row]
    codes: list[str]


class AcmeSandbox:
    """See `mapper.sandbox.emulator.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        self.reset()

    def reset(self) -> None:
        self._orders: dict[str, dict[str, Any]] = {}
        self._used: dict[str, str] = {}
        """The order that has used each code for one use."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        await asyncio.sleep(scope.get(PAUSE, 0))
        # `raw_path` keeps quoted characters; `root_path` is where the sandbox mounts this application.
        path = scope["raw_path"].decode().partition("?")[0].removeprefix(scope.get("root_path", ""))
        status, answer = self._answer(request, path, body)
        await Response(b"" if answer is None else _encode(answer), status, media_type="application/json")(
            scope, receive, send
        )

    def _answer(self, request: Request, path: str, body: bytes) -> tuple[int, Any]:
        if not request.headers.get("authorization", "").startswith("Bearer "):
            return 401, self.error(401)
        place, _, name = path.lstrip("/").partition("/")
        match request.method, place:
            case "POST", "prices":
                return self._priced(body)
            case "PUT", "orders":
                return self._redeemed(name, body)
            case "GET", "orders":
                return (200, self._orders[name]) if name in self._orders else (404, self.error(404))
            case "DELETE", "orders":
                return self._undone(name, final=request.query_params.get("final") == "true")
            case _:
                return 404, self.error(404)

    def _priced(self, body: bytes) -> tuple[int, Any]:
        question = msgspec.json.decode(body, type=Question)
        return 200, self._price(question)

    def _redeemed(self, name: str, body: bytes) -> tuple[int, Any]:
        if name in self._orders:
            return (410, self.error(410)) if self._orders[name]["state"] == "cancelled" else (409, self.error(409))
        question = msgspec.json.decode(body, type=Question)
        price = self._price(question)
        if question.codes and len(price["refused"]) == len(question.codes):
            return 422, price
        self._used |= {code: name for code in question.codes if code == "ONCE-5" and code not in price["refused"]}
        asked = {"currency": question.currency, "rows": question.rows, "codes": question.codes}
        self._orders[name] = {"id": f"acme-{name}", "state": "redeemed", **asked, **price}
        return 201, self._orders[name]

    def _undone(self, name: str, *, final: bool) -> tuple[int, Any]:
        if name not in self._orders:
            return 404, self.error(404)
        self._used = {code: by for code, by in self._used.items() if by != name}
        if final:
            self._orders[name]["state"] = "cancelled"
        elif self._orders[name]["state"] == "redeemed":
            del self._orders[name]
        return 204, None

    # The rules.

    def _price(self, question: Question) -> dict[str, Any]:
        refused: dict[str, str] = {}
        reductions: list[dict[str, Any]] = []
        total = sum((row.price * row.count for row in question.rows), Decimal(0))
        for code in question.codes:
            match code:
                case "SAVE-5" | "ONCE-5" if code not in self._used:
                    reductions.append({"label": "5 off", "off": min(Decimal(5), total)})
                case "MIN-100" if total >= 100:
                    reductions.append({"label": "10 off", "off": Decimal(10)})
                case "TEN-PERCENT":
                    reductions += self._percent(question)
                case _:
                    words = {"OLD-5": "OUTDATED", "MIN-100": "TOO_SMALL", "ONCE-5": "GONE"}
                    refused[code] = words.get(code, "UNKNOWN")
        return {"reductions": reductions, "refused": refused}

    @staticmethod
    def _percent(question: Question) -> list[dict[str, Any]]:
        """In two halves, with all their digits, so that rounding before adding up gives a wrong cent."""
        offs = [(place, row.price * row.count / 20) for place, row in enumerate(question.rows)]
        return [{"row": place, "label": "10 % off", "off": off} for place, off in offs if off for _ in range(2)]

    # For the sandbox's host.

    def books(self) -> dict[str, Any]:
        return {"orders": {name: dict(order) for name, order in self._orders.items()}, "used": dict(self._used)}

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        return {"POST": "price", "PUT": "redeem", "GET": "read", "DELETE": "undo"}.get(method, "other")

    def error(self, status: int) -> Any:
        return {"error": f"error {status}"}

    def unknown_effect(self, reply: Any) -> Any:
        """A reduction of a kind that no integration knows."""
        return {**reply, "reductions": [*reply["reductions"], {"kind": "balloon", "label": "A balloon", "off": 0}]}
