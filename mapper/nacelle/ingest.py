"""Order ingestion from top to bottom: convert the order, write a journal entry, send the order, write the outcome.

A crash at any point leaves an entry that tells it. An order whose outcome is unknown is never sent again.
"""

from dataclasses import dataclass
from typing import Literal

from mapper.nacelle.convert import Order, order_of
from mapper.nacelle.journal import Journal, digest_of
from mapper.nacelle.noms import Noms, Sent


@dataclass(frozen=True)
class Ingested:
    """The outcome of one order.

    `created` (now or, with `again`, earlier); `refused` by Nacelle; `not_sent`: nothing was created, so that a retry is
    safe; `unknown`: it may have been created, which the operator settles; `other_content`: another order has the key.
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
        """Converts and sends one order. Raises `DatabaseUnavailable`, and `NotAnOrder` before anything is written."""
        return await self.send(order_of(body, self.default_currency))

    async def send(self, order: Order) -> Ingested:
        """Sends one order unless the journal forbids it. Raises `DatabaseUnavailable`."""
        digest = digest_of(order.body)
        key = order.key or f"sha256:{digest.hex()}"
        entry = await self.journal.begin(self.noms.space, key, digest)
        if entry is None:
            sent = await self.noms.create(order)
            await self.journal.finish(self.noms.space, key, sent)
            return _ingested(key, sent)
        if entry.digest != digest:
            return Ingested("other_content", key, "other_content")
        reason = entry.reason or "no_answer"
        if entry.state == "created":
            return Ingested("created", key, reason, entry.status, entry.answer, again=True)
        return Ingested("unknown", key, reason, entry.status, entry.answer, again=True)


def _ingested(key: str, sent: Sent) -> Ingested:
    return Ingested(sent.state, key, sent.reason, sent.status, sent.answer)
