"""The ledger: each method reads a row, lets `mapper.orders.rows` decide, and writes the row that it returns."""

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
    Degraded,
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
    extended,
    holds_session,
    hurried,
    is_released,
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

PRUNE_BATCH = 500


@dataclass(frozen=True)
class Ledger:
    """Everything that may happen to an order.

    Every method may raise `LedgerUnavailable`. A method that is given a row and writes it raises `Fenced` if the caller
    no longer has the row's claim or, for a row that needs none, if the row has changed.
    """

    store: Store
    owner: str
    quarantine_s: float
    lease_s: float
    """Longer than any time that passes between two writes to a claimed row."""
    local: Callable[[], float]
    """The monotonic clock of this process, for `Permit`."""
    answers_at_once: bool = False
    """Whether it is a local file (SQLite), so that `free_session` never waits for a server."""

    async def claim(self, ask: Ask) -> Decision:
        """Claims an order that a caller has sent or, with the row's own data, one that is due.

        Raises the `Problem` of `ask.terms` if a new attempt would be needed.
        """
        while True:
            claim = await self.store.claim(ask.key, partial(sessions_of, ask=ask), partial(_decide_claim, ask))
            if isinstance(claim, UsedSession):
                ask = replace(ask, moved_to=next_session(claim.session))
            elif isinstance(claim, PassedOn):
                await self._pass_on(claim)
            else:
                return claim

    async def _pass_on(self, passed: PassedOn) -> None:
        """Moves a redemption, whose answer no caller has received, to another key. That key's own row is removed.

        If either row has changed since, nothing is moved: the claim is decided again.
        """
        if passed.own is not None and not await self.store.remove(passed.own):
            return

        def step(found: Row | None, at: Moment) -> tuple[None, Row | None]:
            return None, passed.row if found == passed.previous else None

        await self.store.change(passed.previous.key, step)

    async def free_session(self, key: Key, session: str) -> str:
        """Returns the session or, if an order has closed it, the next free one: validate never reopens a session."""
        while any(_has_finished_with(row) for row in await self.store.of_session(key, session)):
            session = next_session(session)
        return session

    async def mark_sent(self, row: Row) -> Permit:
        """Call it before every redeeming request, which may be sent while the permit is fresh."""
        asked_at = self.local()
        marked = await self._write(row, lambda found, at: sent(found, at, self.lease_s))
        return Permit(marked, asked_at, self.local)

    async def extend(self, row: Row) -> Row:
        """Renews the lease."""
        return await self._write(row, lambda found, at: extended(found, at, self.lease_s))

    async def looking(self, row: Row) -> Row:
        """Records that a look-up starts. Not needed for the first one after a claim that returned `LookUp`."""
        return await self._write(row, lambda found, at: looking(found, at, self.lease_s))

    async def absent(self, row: Row, delay_s: float | None) -> AfterLookUp:
        """Records that a look-up did not find the order. `delay_s` as for `retry_later`."""

        def step(found: Row, at: Moment) -> tuple[AfterLookUp, Row]:
            after = after_absence(found, at, self.quarantine_s, delay_s)
            return after, after.row

        return await self._change(row, step)

    async def look_later(self, row: Row, reason: str) -> Wait | GiveUp:
        """Records that a look-up failed or was unclear."""

        def step(found: Row, at: Moment) -> tuple[Wait | GiveUp, Row]:
            after = after_failed_look_up(found, at, self.quarantine_s, reason)
            return after, after.row

        return await self._change(row, step)

    async def retry_later(self, row: Row, delay_s: float | None, reason: str, *, answered: bool) -> Row:
        """Records that the engine certainly did nothing. The order waits for this delay or, if None, for its caller.

        `row`: as it was claimed, so that a request that an earlier claim has sent is not forgotten.
        """

        def move(found: Row, at: Moment) -> Row:
            return retryable(found, at, delay_s, reason, answered=answered, unanswered_since=row.sent_at)

        return await self._write(row, move)

    async def redeemed(
        self, row: Row, notices: bytes, handle: str, reason: str, *, confirmed: bool, may_double: bool = False
    ) -> Row:
        """Records a redemption. `confirmed`: a caller waits for the answer.

        `may_double`: the engine redeems again if the same request is delivered twice.
        """
        again_after_s = self._again_after_s(may_double)

        def move(found: Row, at: Moment) -> Row:
            return redeemed(found, at, notices, handle, reason, confirmed=confirmed, again_after_s=again_after_s)

        return await self._write(row, move)

    def _again_after_s(self, may_double: bool) -> float:
        return self.quarantine_s if may_double else 0

    async def seen_again(self, row: Row, *, repaired: bool) -> Row:
        """Records that a redeemed order was looked up, or a cancelled one undone, once more. Needs no claim."""
        return await self._change_any(row, lambda found, at: (moved := seen_again(found, at, repaired=repaired), moved))

    async def not_seen_again(self, row: Row) -> Row:
        """Records that the further look-up of a redeemed order, or undo of a cancelled one, failed. Needs no claim."""
        return await self._change_any(row, lambda found, at: (moved := not_seen_again(found, at), moved))

    async def confirm(self, row: Row) -> Row:
        """Records that a caller has received the answer."""
        return await self._write(row, confirmed)

    async def rejected(self, row: Row, reason: str) -> Row:
        """Records a refusal. Nothing is redeemed in the engine."""
        return await self._write(row, lambda found, at: rejected(found, at, reason))

    async def repair(self, row: Row, reason: str) -> Row:
        """Records that a second redemption was found and undone."""
        return await self._write(row, lambda found, at: repaired(found, at, reason))

    async def reopen(self, row: Row) -> Row:
        """Moves a MANUAL row back to UNKNOWN or CANCELLING, due now."""
        return await self._write(row, reopened)

    async def hurry(self, row: Row) -> Row:
        """Makes the next look-up, or the next attempt to cancel, due now. Needs no claim."""
        return await self._change_any(row, lambda found, at: (moved := hurried(found, at), moved))

    async def postpone(self, row: Row, reason: str) -> Row:
        """Delays a row whose step failed, so that others come first. Needs no claim."""
        return await self._change_any(row, lambda found, at: (moved := postponed(found, at, reason), moved))

    async def cancel(self, key: Key) -> CancelDecision:
        """Claims an order to cancel it."""

        def step(row: Row | None, at: Moment) -> tuple[CancelDecision, Row | None]:
            decision = decide_cancel(row, self.owner, self.lease_s, at)
            match decision:
                case Cancelled(changed) | Undo(changed, _):
                    return decision, changed
                case Absent() | InProgress() | NeedsOperator():
                    return decision, None
                case _:
                    assert_never(decision)

        return await self.store.change(key, step)

    async def cancelled(self, row: Row, *, may_double: bool = False) -> Row:
        """Records that nothing is redeemed in the engine any more. `may_double`: as for `redeemed`."""
        again_after_s = self._again_after_s(may_double)
        return await self._write(row, lambda found, at: cancelled(found, at, again_after_s=again_after_s))

    async def not_cancelled(self, row: Row, reason: str, *, may_double: bool = False) -> Row:
        """Records that the engine refuses to undo the redemption. `may_double`: as for `redeemed`."""
        again_after_s = self._again_after_s(may_double)
        return await self._write(row, lambda found, at: not_cancelled(found, at, reason, again_after_s=again_after_s))

    async def cancel_later(self, row: Row, reason: str) -> Wait | GiveUp:
        """Records that the outcome of an undo is unknown."""

        def step(found: Row, at: Moment) -> tuple[Wait | GiveUp, Row]:
            after = after_failed_undo(found, at, reason)
            return after, after.row

        return await self._change(row, step)

    async def quarantine_left_s(self, row: Row) -> float:
        """Returns how long nothing may be sent again."""
        return quarantine_left_s(row, await self.moment(), self.quarantine_s)

    async def moment(self) -> Moment:
        return await self.store.moment()

    async def show(self, key: Key) -> Row | None:
        return await self.store.show(key)

    async def find(self, *, state: State | None = None, order: str | None = None, limit: int = 100) -> list[Row]:
        return await self.store.find(state, order, limit)

    async def unconfirmed(self, limit: int = 100) -> list[Row]:
        """Returns the redeemed orders whose answer no caller has received, the latest first."""
        return await self.store.unconfirmed(limit)

    async def due(self, engine: str, limit: int) -> list[Row]:
        """Returns the engine's rows that the reconciler should claim now: they are due, or their lease is over.

        Another engine knows nothing of these orders, and would say that they are not redeemed.
        """
        return await self.store.due(engine, limit)

    async def lead(self, engine: str, ttl_s: float) -> bool:
        """Whether this process is the engine's leader for the next `ttl_s` seconds; it reconciles. 0: it steps down."""
        return await self.store.lead(engine, self.owner, ttl_s)

    async def backlog(self) -> Backlog:
        return await self.store.backlog()

    async def finished(self) -> dict[State, int]:
        """Counts the finished orders by state. The time grows with their number."""
        return await self.store.finished()

    async def prune(self, keep_bodies_s: float, limit: int = PRUNE_BATCH) -> int:
        """Erases old bodies and deletes older rows: up to `limit` of each. Returns how many. Repeat until 0."""
        wall = (await self.moment()).wall
        old = await self.store.with_body(wall - keep_bodies_s, limit)
        results = await asyncio.gather(*(self.forget(row) for row in old), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Fenced):  # Fenced: it is in use again
                raise result
        return len(old) + await self.store.prune(wall - KEEP_S, limit)

    async def forget(self, row: Row) -> Row:
        """Erases the body. Raises `WrongMove` if it may still be needed."""
        return await self._change_any(row, lambda found, at: (moved := trimmed(found, at), moved))

    async def ping(self) -> None:
        """Raises `LedgerUnavailable` if the ledger cannot be written."""
        await self.store.ping()

    async def close(self) -> None:
        await self.store.close()

    async def _write(self, row: Row, move: Callable[[Row, Moment], Row]) -> Row:
        def step(found: Row, at: Moment) -> tuple[Row, Row]:
            moved = move(found, at)
            return moved, moved

        return await self._change(row, step)

    async def _change(self, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        def fenced(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            if found is None or found.fence != row.fence or is_released(found):
                raise Fenced
            return step(found, at)

        return await self.store.change(row.key, fenced)

    async def _change_any(self, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        """As `_change`, of a row that is not claimed. Raises `Fenced` if the row has been written since."""

        def unchanged(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            if found is None or found.version != row.version:
                raise Fenced
            return step(found, at)

        return await self.store.change(row.key, unchanged)


def _decide_claim(ask: Ask, row: Row | None, others: Sequence[Row], at: Moment) -> tuple[Claim, Row | None]:
    claim = decide(row, others, ask, at)
    match claim:
        case New(changed) | Retry(changed, _) | Degraded(changed) | LookUp(changed):
            return claim, changed
        case Replay() | Conflict() | InProgress() | NeedsOperator() | UsedSession() | PassedOn():
            return claim, None
        case _:
            assert_never(claim)


def _has_finished_with(row: Row) -> bool:
    """Whether this order has closed its session: it is redeemed or, after that, cancelled."""
    return (row.state in (State.DONE, State.REPAIRED) and holds_session(row)) or row.state in (
        State.CANCELLING,
        State.CANCELLED,
    )


def system_clock() -> Clock:
    """Returns a clock that all processes of this machine share, that cannot be set, and that runs during sleep."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boottime is None or not boot_id.is_file():
        # Not Linux: the wall clock is good enough for development.
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
    """Opens the ledger at `sqlite:///<path>` or `postgresql://…`, for this event loop. Raises `LedgerUnavailable`.

    `create`: makes the ledger if there is none, and migrates its schema. `patient`: a busy or unreachable ledger is
    opened at its first use, so that only `LedgerUnusable` is raised here. `clock` is for tests.
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
    return Ledger(store, owner, quarantine_s, lease_s, local.now, answers_at_once=url.startswith("sqlite:///"))
