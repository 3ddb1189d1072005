"""Ledgers for tests, in either store, on a clock that the test moves."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]

from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import Ask, Clock, Decision, Key, LookUp, New, Retry, Row, Terms
from tests.orders import postgres

T = TypeVar("T")

STORES = ("sqlite", "postgres")
KEY = Key("space", "engine", "order-1")
PRINT = b"\x01" * 32
BODY = b'{"id": "order-1"}'
NOTICES = b'[{"type":"coupon"}]'


class VirtualClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self.boot = "first boot"

    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now + 1_700_000_000, self.boot)


class Home:
    """A place for a ledger. Each ledger opened here acts as one more process on it."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store = store
        self.time = VirtualClock()
        self.file = folder / f"{uuid.uuid4().hex}.db"
        self.url = f"sqlite:///{self.file}" if store == "sqlite" else _new_schema()

    async def open(self, *, quarantine_s: float = 60.0, lease_s: float = 10.0) -> Ledger:
        return await open_ledger(self.url, quarantine_s=quarantine_s, lease_s=lease_s, clock=self.time.clock())

    def run(self, story: Callable[[Ledger], Awaitable[T]]) -> T:
        """Runs `story` with an open ledger."""

        async def within() -> T:
            ledger = await self.open()
            try:
                return await story(ledger)
            finally:
                await ledger.close()

        return asyncio.run(within())


def _new_schema() -> str:
    name = f"test_{uuid.uuid4().hex}"

    async def create() -> None:
        connection = await asyncpg.connect(postgres.url())
        await connection.execute(f"CREATE SCHEMA {name}")
        await connection.close()

    asyncio.run(create())
    return postgres.url(name)


def ask(
    key: Key = KEY, content: bytes = PRINT, body: bytes = BODY, session: str | None = None, **terms: Any
) -> dict[str, Any]:
    """The fields of an `Ask` without owner and lease. Each order has its own session by default."""
    given = Terms(session or f"session of {key.order}", from_receipt=False, **terms)
    return {"key": key, "order": body, "identity": lambda *_: content, "identity_version": 2, "terms": given}


async def claim(ledger: Ledger, key: Key = KEY, content: bytes = PRINT, body: bytes = BODY, **more: Any) -> Decision:
    return await ledger.claim(Ask(**ask(key, content, body, **more), owner=ledger.owner, lease_s=ledger.lease_s))


async def claimed(ledger: Ledger, key: Key = KEY, **more: Any) -> Row:
    """Claims an order and returns its row."""
    decision = await claim(ledger, key, **more)
    assert isinstance(decision, New | Retry | LookUp), decision
    return decision.row


async def done(ledger: Ledger, key: Key = KEY, *, confirmed: bool = True) -> Row:
    """Redeems an order and returns its row."""
    return await ledger.redeemed(await claimed(ledger, key), NOTICES, "", "redeemed", confirmed=confirmed)


async def shown(ledger: Ledger, key: Key = KEY) -> Row:
    row = await ledger.show(key)
    assert row is not None
    return row
