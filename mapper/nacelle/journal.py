"""The journal of order ingestion: one entry for each order that was to be created at Nacelle.

The entry is written before the order is sent. If no answer arrives, it stays `sending`, which means `unknown`: the
order is not sent again on a guess. The operator settles it (`promotions-mapper ingest --settle`).

The journal is a table in the ledger's database (`MAPPER_LEDGER_URL`). SQLite and PostgreSQL take the same statements,
each of which is atomic.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from mapper.nacelle.database import Database, LazyDatabase
from mapper.nacelle.noms import Sent

State = Literal["sending", "created", "refused", "not_sent", "unknown"]

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS mapper_ingested (
        space TEXT NOT NULL, order_key TEXT NOT NULL, digest BYTEA NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
        status INTEGER NOT NULL, answer BYTEA NOT NULL, at DOUBLE PRECISION NOT NULL, PRIMARY KEY (space, order_key)
    )
"""
_SELECT: Final = "SELECT space, order_key, digest, state, reason, status, answer, at FROM mapper_ingested"
_BEGIN: Final = """
    INSERT INTO mapper_ingested (space, order_key, digest, state, reason, status, answer, at)
    VALUES ($1, $2, $3, 'sending', '', 0, $4, $5)
    ON CONFLICT (space, order_key) DO UPDATE SET
        digest = excluded.digest, state = 'sending', reason = '', status = 0, answer = excluded.answer, at = excluded.at
    WHERE mapper_ingested.state IN ('refused', 'not_sent')
    RETURNING order_key
"""
_FINISH: Final = """
    UPDATE mapper_ingested SET state = $3, reason = $4, status = $5, answer = $6, at = $7
    WHERE space = $1 AND order_key = $2 AND state = 'sending'
"""
_SETTLE: Final = """
    UPDATE mapper_ingested SET state = $3, reason = 'settled', at = $4
    WHERE space = $1 AND order_key = $2 AND state IN ('sending', 'unknown') RETURNING order_key
"""


@dataclass(frozen=True)
class Entry:
    """The entry of one order. `at`: when it was written (Unix time). `answer`: Nacelle's reply, or empty."""

    space: str
    key: str
    digest: bytes
    """SHA-256 of the bytes that are sent."""
    state: State
    reason: str
    status: int
    answer: bytes
    at: float


@dataclass(frozen=True)
class Journal:
    """Decides which orders may be sent, and records their outcomes. Every method may raise `DatabaseUnavailable`."""

    database: Database
    wall: Callable[[], float] = time.time

    async def begin(self, space: str, key: str, digest: bytes) -> Entry | None:
        """Marks the order as `sending`, and returns None. If it must not be sent, returns its entry instead.

        An order may be sent if it is new, was refused, or certainly was not sent.
        """
        if await self.database.run(_BEGIN, space, key, digest, b"", self.wall()):
            return None
        return await self.show(space, key)

    async def finish(self, space: str, key: str, sent: Sent) -> None:
        await self.database.run(_FINISH, space, key, sent.state, sent.reason, sent.status, sent.answer, self.wall())

    async def settle(self, space: str, key: str, *, created: bool) -> bool:
        """Records the operator's decision on an order whose outcome is unknown. False if there is no such order."""
        state: State = "created" if created else "not_sent"
        return bool(await self.database.run(_SETTLE, space, key, state, self.wall()))

    async def show(self, space: str, key: str) -> Entry | None:
        rows = await self.database.run(f"{_SELECT} WHERE space = $1 AND order_key = $2", space, key)
        return Entry(*rows[0]) if rows else None

    async def not_created(self) -> list[Entry]:
        """Returns the entries of orders that are not created, the oldest first."""
        return [Entry(*row) for row in await self.database.run(f"{_SELECT} WHERE state <> 'created' ORDER BY at")]

    async def close(self) -> None:
        await self.database.close()


def digest_of(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def journal_in(url: str) -> Journal:
    """Returns the journal at a ledger's URL. It is opened at its first use."""
    return Journal(LazyDatabase(url, _TABLE))
