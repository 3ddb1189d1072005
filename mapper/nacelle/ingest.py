"""Order ingestion, told from top to bottom: convert, write down, send, write down.

A process that dies at any point leaves an entry that says so. Nobody sends an order again whose outcome is unknown.
"""

from dataclasses import dataclass
from typing import Literal

from mapper.nacelle.convert import Order, order_of
from mapper.nacelle.journal import Journal, digest_of
from mapper.nacelle.noms import Noms, Sent


@dataclass(frozen=True)
class Ingested:
    """What became of one order.

    `created` (now, or earlier: `again`), `refused` by Nacelle, `not_sent` (nothing was created; try again), `unknown`
    (it may have been created; a person says), or `other_content`: the key belongs to another order.
    """

    state: Literal["created", "refused", "not_sent", "unknown", "other_content"]
    key: str
    reason: str = ""
    status: int = 0
    answer: bytes = b""
    again: bool = False


@dataclass(frozen=True)
class Ingestion:
    noms: Noms
    journal: Journal
    default_currency: str = ""

    async def ingest(self, body: bytes) -> Ingested:
        """One order. Raises `NotAnOrder` before anything is written or sent, and `DatabaseUnavailable`."""
        return await self.send(order_of(body, self.default_currency))

    async def send(self, order: Order) -> Ingested:
        digest = digest_of(order.body)
        key = order.key or f"sha256:{digest.hex()}"
        known = await self.journal.begin(self.noms.space, key, digest)
        if known is None:
            sent = await self.noms.create(order)
            await self.journal.finish(self.noms.space, key, sent)
            return _told(key, sent)
        if known.digest != digest:
            return Ingested("other_content", key, "other_content")
        reason = known.reason or "no_answer"
        if known.state == "created":
            return Ingested("created", key, reason, known.status, known.answer, again=True)
        return Ingested("unknown", key, reason, known.status, known.answer, again=True)


def _told(key: str, sent: Sent) -> Ingested:
    return Ingested(sent.state, key, sent.reason, sent.status, sent.answer)
