"""Shared by the tests of both emulated engines: rule books, and requests sent straight to an emulator."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from mapper.sandbox import rulebook
from mapper.sandbox.emulator import PAUSE

Json = dict[str, Any]

DEFAULT = resources.files("mapper.sandbox").joinpath("rulebook.toml").read_text("utf-8")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@cache
def book(*changes: tuple[str, str]) -> rulebook.RuleBook:
    """The default rule book with these texts replaced."""
    text = DEFAULT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return rulebook.parse(text)


def campaigns(effects: dict[str, str]) -> str:
    """One coupon for each effect, in this order; a code that starts with "promo_" is a campaign without a coupon."""
    text = ""
    for number, (code, effect) in enumerate(effects.items(), 1):
        needs = "nothing" if code.startswith("promo_") else "coupon"
        text += f"[[campaigns]]\nid = {number}\nname = '{code}'\nneeds = '{needs}'\neffects = [{effect}]\n"
        text += f"[[coupons]]\ncode = '{code}'\ncampaign = {number}\n" if needs == "coupon" else ""
    return text


async def send(
    app: Any, method: str, path: str, body: bytes, usual: Mapping[str, str], more: Mapping[str, str], pause: float = 0
) -> tuple[int, dict[str, str], bytes]:
    """Send one request, with the path as it is on the wire. Returns status, headers and body of the reply.

    Headers are the `usual` ones and `more`, in which x_app_id is x-app-id.
    """
    headers = {**usual, **{name.replace("_", "-"): value for name, value in more.items()}}
    raw_path, _, query = path.encode().partition(b"?")
    scope = {
        "type": "http",
        "method": method,
        "path": raw_path.decode(),
        "raw_path": raw_path,
        "root_path": "",
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        PAUSE: pause,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def keep(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, keep)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, sent[1]["body"]
