"""The ledger of this process: each method reads a row, has `mapper.orders.rows` decide, and writes what it says."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, assert_never

from mapper.orders.rows import (
    KEEP_BODIES_S,
    KEEP_S,
    Absent,
    AfterLookUp,
    Ask,
    Backlog,
    CancelDecision,
    Cancelled,
    Claim,
    Clock,
    Conflict,
    Decision,
    Fenced,
    GiveUp,
    InProgress,
    Key,
    LookUp,
    Moment,
    NeedsOperator,
    New,
    PassedOn,
    Permit,
    Replay,
    Retry,
    Row,
    State,
    Undo,
    UsedSession,
    Wait,
    after_absence,
    after_failed_look_up,
    after_failed_undo,
    cancelled,
    confirmed,
    decide,
    decide_cancel,
    degraded,
    extended,
    holds_session,
    hurried,
    is_nobodys,
    looking,
    next_session,
    not_cancelled,
    not_seen_again,
    postponed,
    quarantine_left_s,
    redeemed,
    rejected,
    reopened,
    repaired,
    retryable,
    seen_again,
    sent,
    sessions_of,
    trimmed,
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
    looks_at_once: bool = False
    """Whether `free_session` is a look at a file on this machine, and keeps nobody waiting."""

    async def claim(self, ask: Ask) -> Decision:
        """Asks for an order: one that comes in, or (with the row's own data) one that is due.

        Raises what `ask.terms` says against a new attempt, where there would have to be one.
        """
        while True:
            claim = await self.store.claim(ask.key, partial(sessions_of, ask=ask), partial(_claimed, ask))
            if isinstance(claim, UsedSession):
                ask = replace(ask, moved_to=next_session(claim.session))
            elif isinstance(claim, PassedOn):
                await self._pass_on(ask, claim)
            else:
                return claim

    async def _pass_on(self, ask: Ask, passed: PassedOn) -> None:
        """A redemption that no caller was told of goes over to another id; what that id had tried is forgotten."""
        own = await self.store.show(ask.key)
        if own is not None:
            await self.store.remove(own)

        def step(found: Row | None, at: Moment) -> tuple[None, Row | None]:
            return None, passed.row if found == passed.held_by else None

        await self.store.change(passed.held_by.key, step)

    async def free_session(self, key: Key, session: str) -> str:
        """The session, or where an order has finished with it the next that none has: validate never reopens one."""
        while any(_has_finished_with(row) for row in await self.store.of_session(key, session)):
            session = next_session(session)
        return session

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

    async def absent(self, row: Row, delay_s: float | None) -> AfterLookUp:
        """A look-up did not find it. `delay_s` as for `retry_later`."""

        def step(mine: Row, at: Moment) -> tuple[AfterLookUp, Row]:
            after = after_absence(mine, at, self.quarantine_s, delay_s)
            return after, after.row

        return await self._change(row, step)

    async def look_later(self, row: Row, reason: str) -> Wait | GiveUp:
        """A look-up failed."""

        def step(mine: Row, at: Moment) -> tuple[Wait | GiveUp, Row]:
            after = after_failed_look_up(mine, at, self.quarantine_s, reason)
            return after, after.row

        return await self._change(row, step)

    async def retry_later(self, row: Row, delay_s: float | None, reason: str, *, answered: bool) -> Row:
        """The engine certainly did not act: it waits for its caller, or for so many seconds."""
        return await self._write(row, lambda mine, at: retryable(mine, at, delay_s, reason, answered=answered))

    async def redeemed(
        self, row: Row, notices: bytes, handle: str, reason: str, *, confirmed: bool, may_double: bool = False
    ) -> Row:
        """It is redeemed. `confirmed`: a caller waits for the answer.

        `may_double`: the engine redeems as often as it is asked.
        """
        again_after_s = self.quarantine_s if may_double else 0

        def move(mine: Row, at: Moment) -> Row:
            return redeemed(mine, at, notices, handle, reason, confirmed=confirmed, again_after_s=again_after_s)

        return await self._write(row, move)

    async def seen_again(self, row: Row, *, repaired: bool) -> Row:
        """A redeemed order was looked for once more. It is nobody's."""
        return await self._change_any(row, lambda mine, at: (moved := seen_again(mine, at, repaired=repaired), moved))

    async def not_seen_again(self, row: Row) -> Row:
        """A redeemed order could not be looked for once more. It is nobody's."""
        return await self._change_any(row, lambda mine, at: (moved := not_seen_again(mine, at), moved))

    async def degraded(self, row: Row, notices: bytes, *, confirmed: bool) -> Row:
        """It is done, with nothing redeemed."""
        return await self._write(row, lambda mine, at: degraded(mine, at, notices, confirmed=confirmed))

    async def confirm(self, row: Row) -> Row:
        """A caller has been told of a redemption."""
        return await self._write(row, confirmed)

    async def rejected(self, row: Row, reason: str) -> Row:
        """It is refused, and nothing of it stands in the engine."""
        return await self._write(row, lambda mine, at: rejected(mine, at, reason))

    async def repair(self, row: Row, reason: str) -> Row:
        """A second redemption was found and taken back."""
        return await self._write(row, lambda mine, at: repaired(mine, at, reason))

    async def reopen(self, row: Row) -> Row:
        """From MANUAL back to being looked up."""
        return await self._write(row, reopened)

    async def hurry(self, row: Row) -> Row:
        """Has it looked up, or cancelled, now. It is nobody's: whoever comes first takes it."""
        return await self._change_any(row, lambda mine, at: (moved := hurried(mine, at), moved))

    async def postpone(self, row: Row, reason: str) -> Row:
        """It cannot be worked on now: others come first. It is nobody's."""
        return await self._change_any(row, lambda mine, at: (moved := postponed(mine, at, reason), moved))

    async def cancel(self, key: Key) -> CancelDecision:
        """Asks for an order that is to be cancelled."""

        def step(row: Row | None, at: Moment) -> tuple[CancelDecision, Row | None]:
            decision = decide_cancel(row, self.owner, self.lease_s, at)
            match decision:
                case Cancelled(mine) | Undo(mine, _):
                    return decision, mine
                case Absent() | InProgress() | NeedsOperator():
                    return decision, None
                case _:
                    assert_never(decision)

        return await self.store.change(key, step)

    async def cancelled(self, row: Row) -> Row:
        """Nothing of it stands in the engine any more."""
        return await self._write(row, cancelled)

    async def not_cancelled(self, row: Row, reason: str) -> Row:
        """The engine does not take it back."""
        return await self._write(row, lambda mine, at: not_cancelled(mine, at, reason))

    async def cancel_later(self, row: Row, reason: str) -> Wait | GiveUp:
        """What became of the undo is unknown."""

        def step(mine: Row, at: Moment) -> tuple[Wait | GiveUp, Row]:
            after = after_failed_undo(mine, at, reason)
            return after, after.row

        return await self._change(row, step)

    async def quarantine_left_s(self, row: Row) -> float:
        return quarantine_left_s(row, await self.moment(), self.quarantine_s)

    async def moment(self) -> Moment:
        return await self.store.moment()

    async def show(self, key: Key) -> Row | None:
        return await self.store.show(key)

    async def find(self, *, state: State | None = None, order: str | None = None, limit: int = 100) -> list[Row]:
        return await self.store.find(state, order, limit)

    async def unconfirmed(self, limit: int = 100) -> list[Row]:
        """Redeemed orders of which no caller was ever told."""
        return await self.store.unconfirmed(limit)

    async def due(self, limit: int) -> list[Row]:
        """What the reconciler shall claim now: rows whose time has come, or whose lease is over."""
        return await self.store.due(limit)

    async def lead(self, ttl_s: float) -> bool:
        """Whether this process is the one that reconciles, for the next `ttl_s` seconds; 0 steps down."""
        return await self.store.lead(self.owner, ttl_s)

    async def backlog(self) -> Backlog:
        return await self.store.backlog()

    async def finished(self) -> dict[State, int]:
        """How many finished orders there are, per state. It takes longer the more there are."""
        return await self.store.finished()

    async def prune(self, keep_bodies_s: float = KEEP_BODIES_S, limit: int = 500) -> int:
        """Forgets what is old: first the bodies, then the rows. Call it until it returns 0."""
        wall = (await self.moment()).wall
        old = await self.store.with_body(wall - keep_bodies_s, limit)
        await asyncio.gather(*(self.forget(row) for row in old))
        return len(old) + await self.store.prune(wall - KEEP_S, limit)

    async def forget(self, row: Row) -> Row:
        """Erases the body. Raises `WrongMove` where it may still be needed."""
        return await self._change_any(row, lambda mine, at: (moved := trimmed(mine, at), moved))

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
            if found is None or found.fence != row.fence or is_nobodys(found):
                raise Fenced
            return step(found, at)

        return await self.store.change(row.key, fenced)

    async def _change_any(self, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        """As `_change`, of a row that nobody holds, provided that nobody has written it since."""

        def unchanged(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            if found is None or found.version != row.version:
                raise Fenced
            return step(found, at)

        return await self.store.change(row.key, unchanged)


def _claimed(ask: Ask, row: Row | None, others: Sequence[Row], at: Moment) -> tuple[Claim, Row | None]:
    claim = decide(row, others, ask, at)
    match claim:
        case New(mine) | Retry(mine, _) | LookUp(mine):
            return claim, mine
        case Replay() | Conflict() | InProgress() | NeedsOperator() | UsedSession() | PassedOn():
            return claim, None
        case _:
            assert_never(claim)


def _has_finished_with(row: Row) -> bool:
    """Whether the session was closed by an order that is redeemed, or was and is cancelled."""
    return (row.state in (State.DONE, State.REPAIRED) and holds_session(row)) or row.state in (
        State.CANCELLING,
        State.CANCELLED,
    )


def system_clock() -> Clock:
    """A clock that all processes of this machine share, that nobody can set, and that goes on while it sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boottime is None or not boot_id.is_file():
        # Not Linux: good enough to develop on.
        return Clock(time.time, time.time, "wall clock")
    return Clock(lambda: time.clock_gettime(boottime), time.time, boot_id.read_text("ascii").strip())


async def open_ledger(
    url: str,
    *,
    quarantine_s: float = 60.0,
    lease_s: float = 30.0,
    clock: Clock | None = None,
    create: bool = True,
    patient: bool = False,
) -> Ledger:
    """The ledger at `sqlite:///<path>` or `postgresql://…`, its schema brought up to date. Raises `LedgerUnavailable`.

    It belongs to the event loop that opened it. `create`: where there is none, it is made. `patient`: one that is away
    now (busy, unreachable) is opened with its first use; only `LedgerUnusable` is raised. `clock` is for tests.
    """
    local = clock or system_clock()
    owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    store: Store
    if url.startswith("sqlite:///"):
        from mapper.orders.sqlite import SqliteStore  # noqa: PLC0415 -- it imports this module

        store = await SqliteStore.open(url.removeprefix("sqlite:///"), local, create=create, patient=patient)
    else:
        from mapper.orders.postgres import PostgresStore  # noqa: PLC0415 -- it imports this module

        store = await PostgresStore.open(url, clock, create=create, patient=patient)
    return Ledger(store, owner, quarantine_s, lease_s, local.now, looks_at_once=url.startswith("sqlite:///"))
