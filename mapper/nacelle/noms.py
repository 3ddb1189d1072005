"""Sends one order to Nacelle's order management (NOMS), and returns the outcome.

The transport is that of the engines: one send is at most one request on the wire, and a failure tells whether Nacelle
may have executed it. Nacelle documents neither an idempotency key nor a look-up by our id. So a request is retried only
if it certainly created nothing (no connection, 429). If the reply is not clear either, the outcome is *unknown*.

Documented: `POST <base>/orders` with `Authorization` and `X-Nacelle-Space-Id`, and `POST <base>/multiorders`; the
answer is 200 on one page and 201 in the OpenAPI. Not verified against a live account.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from mapper.adapter import EngineReply
from mapper.engine.transport import NotSent, Transport, Unknown
from mapper.nacelle.convert import Order

log = logging.getLogger("mapper")

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 20.0
PAUSES_S: Final = (0.5, 2.0, 5.0)
"""The delays before the retries of a request that certainly created nothing."""
MAX_PAUSE_S: Final = 30.0

State = Literal["created", "refused", "not_sent", "unknown"]


@dataclass(frozen=True)
class Sent:
    """The outcome of an order. `reason`: one word for log and metric. `answer`: Nacelle's reply, or empty."""

    state: State
    """`created`; `refused`: Nacelle says that the order or the token is wrong; `not_sent`: nothing was created, and the
    order may be sent again; `unknown`: it may have been created.
    """
    reason: str
    status: int = 0
    answer: bytes = b""


@dataclass(frozen=True)
class Noms:
    """The client of Nacelle's order management for one space. Its `repr` shows no token."""

    base_url: str
    authorization: str
    space: str
    transport: Transport
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __repr__(self) -> str:
        return f"Noms({self.base_url!r}, space={self.space!r})"

    async def create(self, order: Order) -> Sent:
        """Sends the order, with retries. Failures of the network or of Nacelle are outcomes, not exceptions."""
        for pause in PAUSES_S:
            sent, wait = await self._attempt(order)
            if sent.state != "not_sent":
                return sent
            await self.sleep(min(max(pause, wait), MAX_PAUSE_S))
        return (await self._attempt(order))[0]

    async def _attempt(self, order: Order) -> tuple[Sent, float]:
        """Makes one attempt. Returns the outcome, and the `Retry-After` of the reply in seconds."""
        headers = (
            ("Accept", "application/json"),
            ("Content-Type", "application/json"),
            ("Authorization", self.authorization),
            ("X-Nacelle-Space-Id", self.space),
        )
        url = self.base_url + order.path
        try:
            reply = await self.transport.send("POST", url, headers, order.body, TIMEOUT_S, MAX_ANSWER_BYTES)
        except NotSent as failure:
            sent, wait = Sent("not_sent", failure.reason), 0.0
        except Unknown as failure:
            sent, wait = Sent("unknown", failure.reason), 0.0
        else:
            sent, wait = judged(reply), _retry_after(reply)
        log.log(
            logging.INFO if sent.state == "created" else logging.ERROR,
            "order ingestion",
            extra={"facts": {"order": order.key, "state": sent.state, "reason": sent.reason, "status": sent.status}},
        )
        return sent, wait


def judged(reply: EngineReply) -> Sent:
    """Returns the outcome that a reply of Nacelle means."""
    status, body = reply.status, reply.body
    if status in (200, 201) and _is_from_nacelle(status, body):
        return Sent("created", "created", status, body)
    if status == 429:
        return Sent("not_sent", "rate_limited", status, body)
    if status in (401, 403):
        return Sent("refused", "token_or_space_refused", status, body)
    if 400 <= status <= 499 and status != 408:
        return Sent("refused", "order_refused", status, body)
    return Sent("unknown", "server_error" if status >= 500 else "unexpected_answer", status, body)


def _is_from_nacelle(status: int, body: bytes) -> bool:
    """Whether Nacelle sent this reply, and not a gateway or a site at a wrong address."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except msgspec.DecodeError:
        return status == 201 and not body.strip()


def _retry_after(reply: EngineReply) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
