"""The ledger of this process: each method reads a row, has `mapper.orders.rows` decide, and writes what it says."""

import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, assert_never

from mapper.orders.rows import (
    AfterLook,
    Again,
    Answer,
    Ask,
    Backlog,
    Busy,
    Clock,
    Decision,
    Fenced,
    GiveUp,
    Key,
    LookUp,
    Manual,
    Mismatch,
    Moment,
    New,
    Permit,
    Replay,
    Row,
    State,
    Wait,
    _is_nobodys,
    after_absence,
    after_failed_look,
    decide,
    extended,
    looking,
    reopened,
    repaired,
    retryable,
    sent,
    settled,
)
from mapper.orders.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Ledger:
    """All that may happen to an order. What takes a row raises `Fenced` where the row is no longer the caller's."""

    store: Store
    owner: str
    quarantine_s: float
    lease_s: float
    """Longer than anything the holder of a row does without writing to it."""
    local: Callable[[], float]
    """This process's clock, for `Permit`."""

    async def claim(self, key: Key, fingerprint: bytes, order: bytes, session: str) -> Decision:
        """Asks for an order: one that comes in, or (with the row's own data) one that is due."""
        ask = Ask(key, fingerprint, order, session, self.owner, self.lease_s)

        def step(row: Row | None, at: Moment) -> tuple[Decision, Row | None]:
            decision = decide(row, ask, at)
            match decision:
                case New(mine) | Again(mine) | LookUp(mine):
                    return decision, mine
                case Replay() | Mismatch() | Busy() | Manual():
                    return decision, None
                case _:
                    assert_never(decision)

        return await self.store.change(key, step)

    async def mark_sent(self, row: Row) -> Permit:
        """Before every request that may have an effect. It may go out while the permit is fresh."""
        asked_at = self.local()
        marked = await self._write(row, lambda mine, at: sent(mine, at, self.lease_s))
        return Permit(marked, asked_at, self.local)

    async def extend(self, row: Row) -> Row:
        """Renews the lease."""
        return await self._write(row, lambda mine, at: extended(mine, at, self.lease_s))

    async def looking(self, row: Row) -> Row:
        """The outcome is unknown: before every look-up but the one that `LookUp` asked for."""
        return await self._write(row, lambda mine, at: looking(mine, at, self.lease_s))

    async def absent(self, row: Row) -> AfterLook:
        """A look-up did not find it."""

        def step(mine: Row, at: Moment) -> tuple[AfterLook, Row]:
            after = after_absence(mine, at, self.quarantine_s, self.lease_s)
            return after, after.row

        return await self._change(row, step)

    async def look_later(self, row: Row, reason: str) -> Wait | GiveUp:
        """A look-up failed."""

        def step(mine: Row, at: Moment) -> tuple[Wait | GiveUp, Row]:
            after = after_failed_look(mine, at, self.quarantine_s, reason)
            return after, after.row

        return await self._change(row, step)

    async def retry_later(self, row: Row, delay_s: float, reason: str) -> Row:
        """The engine certainly did not act."""
        return await self._write(row, lambda mine, at: retryable(mine, at, delay_s, reason))

    async def settle(self, row: Row, state: Literal[State.DONE, State.REJECTED], answer: Answer) -> Row:
        """The outcome is known for good."""
        return await self._write(row, lambda mine, at: settled(mine, at, state, answer))

    async def repair(self, row: Row, reason: str) -> Row:
        """A second redemption was found and taken back."""
        return await self._write(row, lambda mine, at: repaired(mine, at, reason))

    async def reopen(self, row: Row) -> Row:
        """From MANUAL back to being looked up."""
        return await self._write(row, reopened)

    async def moment(self) -> Moment:
        return await self.store.moment()

    async def show(self, key: Key) -> Row | None:
        return await self.store.show(key)

    async def find(self, *, state: State | None = None, order: str | None = None, limit: int = 100) -> list[Row]:
        return await self.store.find(state, order, limit)

    async def due(self, limit: int) -> list[Row]:
        """What the reconciler shall claim now: rows whose time has come, or whose lease is over."""
        return await self.store.due(limit)

    async def lead(self, ttl_s: float) -> bool:
        """Whether this process is the one that reconciles, for the next `ttl_s` seconds; 0 steps down."""
        return await self.store.lead(self.owner, ttl_s)

    async def backlog(self) -> Backlog:
        return await self.store.backlog()

    async def prune(self, limit: int = 500) -> int:
        """Forgets what is old; call it until it returns 0."""
        return await self.store.prune(limit)

    async def ping(self) -> None:
        """Raises `LedgerUnavailable` where nothing can be written."""
        await self.store.ping()

    async def close(self) -> None:
        await self.store.close()

    async def _write(self, row: Row, move: Callable[[Row, Moment], Row]) -> Row:
        def step(mine: Row, at: Moment) -> tuple[Row, Row]:
            moved = move(mine, at)
            return moved, moved

        return await self._change(row, step)

    async def _change(self, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        def fenced(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            if found is None or found.fence != row.fence or _is_nobodys(found):
                raise Fenced
            return step(found, at)

        return await self.store.change(row.key, fenced)


def system_clock() -> Clock:
    """A clock that all processes of this machine share, that nobody can set, and that goes on while it sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boottime is None or not boot_id.is_file():
        # Not Linux: good enough to develop on.
        return Clock(time.time, time.time, "wall clock")
    return Clock(lambda: time.clock_gettime(boottime), time.time, boot_id.read_text("ascii").strip())


async def open_ledger(
    url: str, *, quarantine_s: float = 60.0, lease_s: float = 30.0, clock: Clock | None = None
) -> Ledger:
    """The ledger at `sqlite:///<path>` or `postgresql://…`, its schema brought up to date. Raises `LedgerUnavailable`.

    It belongs to the event loop that opened it. `clock` is for tests.
    """
    local = clock or system_clock()
    owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    store: Store
    if url.startswith("sqlite:///"):
        from mapper.orders.sqlite import SqliteStore  # noqa: PLC0415 -- it imports this module

        store = await SqliteStore.open(url.removeprefix("sqlite:///"), local)
    else:
        from mapper.orders.postgres import PostgresStore  # noqa: PLC0415 -- it imports this module

        store = await PostgresStore.open(url, clock)
    return Ledger(store, owner, quarantine_s, lease_s, local.now)
