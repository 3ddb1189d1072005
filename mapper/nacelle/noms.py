"""Sends one order to Nacelle's order management (NOMS), and says what became of it.

It follows the rules of the engines' transport: one send is at most one request on the wire, and a failure says whether
Nacelle can have acted. Nacelle documents neither an idempotency key nor a look-up by our own id. So only what certainly
created nothing is sent again: no connection, and 429. Everything else that is no plain answer is *unknown*.

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
"""Before each further attempt, where the last one certainly created nothing."""
LONGEST_PAUSE_S: Final = 30.0

State = Literal["created", "refused", "not_sent", "unknown"]


@dataclass(frozen=True)
class Sent:
    """What became of an order. `reason`: one word for log and metric. `answer`: Nacelle's body, where there is one."""

    state: State
    """`created`; `refused`: Nacelle says that the order or the token is wrong; `not_sent`: nothing was created, and the
    same order may be sent again; `unknown`: it may have been created.
    """
    reason: str
    status: int = 0
    answer: bytes = b""


@dataclass(frozen=True)
class Noms:
    """Nacelle's order management, as one space sees it. Its `repr` shows no token."""

    base_url: str
    authorization: str
    space: str
    transport: Transport
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __repr__(self) -> str:
        return f"Noms({self.base_url!r}, space={self.space!r})"

    async def create(self, order: Order) -> Sent:
        """Sends the order. It never raises for what the network or Nacelle does."""
        for pause in PAUSES_S:
            sent, wait = await self._once(order)
            if sent.state != "not_sent":
                return sent
            await self.sleep(min(max(pause, wait), LONGEST_PAUSE_S))
        return (await self._once(order))[0]

    async def _once(self, order: Order) -> tuple[Sent, float]:
        """One attempt, and how long Nacelle wants to be left alone."""
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
    """What an answer of Nacelle says."""
    status, body = reply.status, reply.body
    if status in (200, 201) and _tells_of_an_order(status, body):
        return Sent("created", "created", status, body)
    if status == 429:
        return Sent("not_sent", "rate_limited", status, body)
    if status in (401, 403):
        return Sent("refused", "token_or_space_refused", status, body)
    if 400 <= status <= 499 and status != 408:
        return Sent("refused", "order_refused", status, body)
    return Sent("unknown", "server_error" if status >= 500 else "unexpected_answer", status, body)


def _tells_of_an_order(status: int, body: bytes) -> bool:
    """Whether it is Nacelle's answer, and not the page of a gateway, or of a site at a wrong address."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except msgspec.DecodeError:
        return status == 201 and not body.strip()


def _retry_after(reply: EngineReply) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
