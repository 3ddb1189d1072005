"""Voucherify's API, emulated: validations and redemptions on the sandbox's rule book. Not there yet: all is 404."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mapper.rulebook import RuleBook

Now = Callable[[], datetime]


class VoucherifySandbox:
    """The emulator; see `mapper.sandbox.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        self._book = book
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = msgspec.json.encode(self.error(404))
        await Response(body, 404, media_type="application/json")(scope, receive, send)

    def reset(self) -> None:
        pass

    def books(self) -> dict[str, Any]:
        return {}

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        return "other"

    def error(self, status: int) -> Any:
        return {"code": status, "key": "not_found", "message": "Resource not found"}

    def unknown_effect(self, reply: Any) -> Any:
        return reply
