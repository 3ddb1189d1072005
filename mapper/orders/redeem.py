"""An order is redeemed once, whatever breaks and however often it is sent.

The ledger says what may be done with an order; here it is done: check, mark, redeem, record, and, where nobody knows
what became of a request, ask the engine (`look_up`) until it is known. Nothing is ever sent again on a guess.

The work runs in a task of its own. The caller only waits for it: one that hangs up, or runs out of time, changes
nothing. What a process leaves unfinished, the reconciler of any process brings to its end.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import assert_never

from mapper.adapter import Adapter
from mapper.domain import checkout as documents
from mapper.domain import discounts, errors
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout
from mapper.domain.errors import (
    AmountMismatch,
    OrderMismatch,
    OutcomePending,
    Problem,
    Refused,
)
from mapper.domain.outcome import Outcome
from mapper.domain.record import Record
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone, PromotionEngine
from mapper.orders.ledger import Ledger
from mapper.orders.rows import (
    Again,
    Answer,
    Backlog,
    Busy,
    Fenced,
    GiveUp,
    Key,
    LedgerUnavailable,
    LookUp,
    Manual,
    Mismatch,
    New,
    Replay,
    Resend,
    Row,
    State,
    Wait,
    fingerprint,
    refusal,
)
from mapper.settings import Settings

log = logging.getLogger("mapper")

# How often a twin looks whether the one who holds the order is finished.
TWIN_POLL_S = 0.05
# Of what is left of the deadline, the share that a redemption may use: the rest is for asking what became of it.
REDEEM_SHARE = 0.6
# A request that was certainly not acted on is sent again after these; after the last, its failure becomes the answer.
RETRY_AFTER_S = (1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200)
RECONCILE_EVERY_S = 0.5
LEAD_FOR_S = 5.0
DUE_AT_ONCE = 8
PRUNE_EVERY_S = 3600.0


@dataclass(frozen=True)
class Work:
    """One order that is to be redeemed. `record` takes down what is worth logging."""

    key: Key
    order: Checkout
    session: str
    record: Record = field(default_factory=lambda: Record("reconcile", ""))

    @property
    def body(self) -> bytes:
        return self.order.source.text


@dataclass
class Once:
    """Drives orders to their end. One per process."""

    settings: Settings
    engine: Engine
    ledger: Ledger
    clock: Callable[[], float]
    """What deadlines are counted on; the engine's own."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    on_backlog: Callable[[Backlog], None] | None = None
    _running: set[asyncio.Task[Answer]] = field(default_factory=set)

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    @property
    def promotion_engine(self) -> PromotionEngine:
        return PromotionEngine(self.adapter, self.engine)

    async def consume(self, work: Work, deadline: float) -> Answer:
        """The order's one and only answer. Raises `Problem`; `OutcomePending` where there is no answer yet."""
        task = asyncio.create_task(self._to_its_end(work, deadline))
        self._running.add(task)
        task.add_done_callback(self._finished)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - self.clock()))
        if not done:
            raise OutcomePending(
                "The order is still being worked on; send the same order again for the answer.",
                reason="still_working",
                retry_after=1,
            )
        return task.result()

    def _finished(self, task: asyncio.Task[Answer]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Problem):
            log.error("internal error", exc_info=error)

    async def drain(self, within_s: float) -> None:
        """Waits for what runs, before the process ends. What is not finished then, the reconciler takes up."""
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    async def reconcile(self) -> None:
        """Brings to its end what callers, crashes and engine failures have left open; runs until it is cancelled.

        One process of all that share the ledger leads. Should two believe so, leases and fences keep them apart.
        """
        prune_at = self.clock()
        while True:
            try:
                if await self.ledger.lead(LEAD_FOR_S):
                    rows = await self.ledger.due(DUE_AT_ONCE)
                    await asyncio.gather(*(self._take_up(row) for row in rows))
                    if self.clock() >= prune_at:
                        await self.ledger.prune()
                        prune_at = self.clock() + PRUNE_EVERY_S
                if self.on_backlog is not None:
                    self.on_backlog(await self.ledger.backlog())
            except LedgerUnavailable as problem:
                log.error("ledger unavailable", extra={"facts": {"reason": problem.reason}})  # noqa: TRY400 - the word says it all
            except Exception:
                log.exception("internal error")
            await self.sleep(RECONCILE_EVERY_S)

    async def _take_up(self, row: Row) -> None:
        try:
            order = documents.parse(row.order, "consume", self.settings.default_currency)
            step = await self._step(Work(row.key, order, row.session), self.clock() + self.settings.consume_deadline_s)
            result = step.reason if isinstance(step, Answer) else "waiting"
        except Problem as problem:
            result = problem.reason
        log.info("reconcile", extra={"facts": {"order": row.key.order, "was": row.state.value, "result": result}})

    async def _to_its_end(self, work: Work, deadline: float) -> Answer:
        """Takes step after step, as long as there is time and no answer."""
        while True:
            step = await self._step(work, deadline)
            if isinstance(step, Answer):
                return step
            if step > deadline - self.clock():
                raise OutcomePending(
                    "What became of the order's redemption is not known yet; send the same order again later.",
                    reason="unknown_outcome",
                    retry_after=max(1, math.ceil(step)),
                )
            await self.sleep(step)

    # -- Steps: each returns the answer, or after how many seconds to take the next one ------------------------------

    async def _step(self, work: Work, deadline: float) -> Answer | float:
        """Claims the order and does what may be done."""
        decision = await self.ledger.claim(work.key, fingerprint(work.key, work.order), work.body, work.session)
        match decision:
            case New(row) | Again(row):
                return await self._send(work, row, deadline)
            case LookUp(row):
                return await self._look(work, row, deadline)
            case Replay(state, status, reply):
                return Answer(status, _trimmed(work, state) if reply is None else reply, "replayed")
            case Busy(retry_after_s):
                return min(TWIN_POLL_S, retry_after_s)
            case Mismatch():
                message = "An order with this id has come before, with other content."
                raise OrderMismatch(message, reason="order_mismatch")
            case Manual(reason):
                raise _manual(reason)
            case _:
                assert_never(decision)

    async def _send(self, work: Work, row: Row, deadline: float) -> Answer | float:
        """Asks without effect what would be granted, then redeems it."""
        sent = [row]

        async def mark() -> bool:
            permit = await self.ledger.mark_sent(sent[-1])
            sent.append(permit.row)
            return permit.fresh()

        try:
            outcome = await self._check(work, deadline)
            if outcome is None:
                now = self.clock()
                until = now + (deadline - now) * REDEEM_SHARE
                match await self.promotion_engine.redeem(work.order, work.session, until, mark):
                    case Done(redeemed):
                        outcome = redeemed.outcome
                    case Declined(declined):
                        outcome = Outcome(rejected=declined.rejected, notices=declined.notices)
                        self._insist(work, outcome)
                    case NotDone(problem):
                        raise problem
                    case InDoubt():
                        return await self._look(work, await self.ledger.looking(sent[-1]), deadline)
        except (Fenced, LedgerUnavailable):
            raise  # there is nothing that could be written now; the lease will end
        except (Refused, AmountMismatch, OrderMismatch) as refused:
            return await self._reject(sent[-1], refused)
        except Problem as problem:
            return await self._not_done(sent[-1], problem)
        return await self._finish(work, sent[-1], outcome, deadline)

    async def _check(self, work: Work, deadline: float) -> Outcome | None:
        """What is refused is known before anything is redeemed. An outcome only where it is redeemed already."""
        malformed = work.order.promotions.malformed
        if malformed and self.settings.on_rejected == "refuse":
            raise notes.refused(malformed)
        outcome = await self.promotion_engine.check(work.order, work.session, deadline)
        if outcome is None or outcome.redeemed:
            return outcome
        self._insist(work, outcome)
        return None

    async def _look(self, work: Work, row: Row, deadline: float) -> Answer | float:
        """Asks the engine what became of the order. The row says already that a look-up starts."""
        try:
            found = await self.promotion_engine.look_up(work.order, work.session, "", deadline)
        except OrderMismatch as refused:
            return await self._reject(row, refused)
        except Problem as problem:
            return _wait(await self.ledger.look_later(row, problem.reason))
        if found.state == "redeemed":
            return await self._finish(work, row, found.outcome, deadline, found.extra)
        if found.state == "unclear":
            return _wait(await self.ledger.look_later(row, "unclear"))
        after = await self.ledger.absent(row)
        if isinstance(after, Resend):
            return await self._send(work, after.row, deadline)
        return _wait(after)

    async def _finish(
        self, work: Work, row: Row, outcome: Outcome, deadline: float, extra: tuple[str, ...] = ()
    ) -> Answer | float:
        """It is redeemed: takes back what must not stay, and records the answer.

        `extra`: the engine has redeemed the order more than once, and all but the first are rolled back.
        """
        try:
            # What had been redeemed before we ever sent anything is not ours to take back.
            if not (outcome.redeemed and row.sent_at is None):
                self._insist(work, outcome)
        except (Refused, AmountMismatch) as refused:
            # Between check and redemption somebody else used a code up; what was redeemed beside it must not stay.
            if self.adapter.capabilities.undo:
                return await self._take_back(work, row, refused, deadline)
        repairs = bool(extra) and self.adapter.capabilities.repair
        if repairs:
            # Before the answer is recorded: nobody comes back to a finished order.
            try:
                await self.promotion_engine.repair(work.order, work.session, extra, deadline)
            except Problem as problem:
                return _wait(await self.ledger.look_later(row, f"repair_{problem.reason}"))
        answer = Answer(200, self._document(work, outcome), "redeemed")
        row = await self.ledger.settle(row, State.DONE, answer)
        if repairs:
            await self.ledger.repair(row, "redeemed_twice")
            log.error("repaired", extra={"facts": {"order": row.key.order, "rolled_back": len(extra)}})
        return answer

    async def _take_back(self, work: Work, row: Row, refused: Problem, deadline: float) -> Answer | float:
        try:
            await self.promotion_engine.undo(work.order, work.session, "", deadline, final=False)
        except Problem as problem:
            row = row if row.state is State.UNKNOWN else await self.ledger.looking(row)
            return _wait(await self.ledger.look_later(row, f"undo_{problem.reason}"))
        return await self._reject(row, refused)

    async def _reject(self, row: Row, problem: Problem) -> Answer:
        """A refusal is an answer like any other: whoever asks again is told the same."""
        answer = refusal(problem)
        await self.ledger.settle(row, State.REJECTED, answer)
        return answer

    async def _not_done(self, row: Row, problem: Problem) -> Answer:
        """The engine certainly did not act: to be sent again later, unless it has been tried for long enough."""
        if row.attempts > len(RETRY_AFTER_S):
            return await self._reject(row, problem)
        delay_s = max(RETRY_AFTER_S[row.attempts - 1], problem.retry_after or 0)
        await self.ledger.retry_later(row, delay_s, problem.reason)
        problem.retry_after = delay_s
        raise problem

    def _insist(self, work: Work, outcome: Outcome) -> None:
        """Refuses what the settings say shall be refused: codes that do not apply, amounts that are not the order's."""
        outcome = notes.as_entered(work.order, outcome)
        work.record.rejected = outcome.rejected
        if outcome.rejected and self.settings.on_rejected == "refuse":
            raise notes.refused(outcome.rejected)
        drift = notes.drift(work.order, discounts.settle(work.order, outcome))
        if drift is not None and self.settings.on_drift == "refuse":
            raise AmountMismatch(drift.text, reason="amount_mismatch", **drift.payload)

    def _document(self, work: Work, outcome: Outcome) -> bytes:
        """The order as it came; beside it what the engine has to say, and whether it granted other amounts."""
        drift = notes.drift(work.order, discounts.settle(work.order, outcome))
        work.record.drift = (
            None if drift is None else {"order": drift.payload["order"], "engine": drift.payload["engine"]}
        )
        told = [notes.notice(notice) for notice in (*outcome.notices, *([drift] if drift else []))]
        if not told:
            return notes.as_it_came(work.order)
        note = work.order.promotions.meta.get("mapper")
        annotated = discounts.annotate(work.order, {**(note if isinstance(note, dict) else {}), "notices": told})
        return b'{"order":' + annotated + b"}"


def _wait(after: Wait | GiveUp) -> float:
    if isinstance(after, GiveUp):
        raise _manual(after.row.reason)
    return after.wait_s


def _manual(reason: str) -> OutcomePending:
    return OutcomePending(
        "What became of this order has to be settled by hand: see `promotions-mapper ledger`.",
        reason=f"manual_{reason}",
        retry_after=3600,
    )


def _trimmed(work: Work, state: State) -> bytes:
    """The answer to an order so old that its stored answer has been trimmed."""
    if state is State.REJECTED:
        return errors.body(Problem("This order was refused.", reason="refused"), "consume")
    return notes.as_it_came(work.order)
