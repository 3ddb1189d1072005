"""Redeems each order once, whatever fails and however often the order is sent.

The ledger decides what may be done with an order. This module does it: check the order, mark the row as sent, redeem,
record the answer. If the outcome of a request is unknown, it asks the engine (`look_up`) until the outcome is known. A
redemption is never repeated on a guess.

The work runs in its own task, for which the caller only waits: a caller that disconnects or times out changes nothing.
The reconciler of any process finishes what a process leaves unfinished.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, assert_never

import msgspec

from mapper.adapter import Adapter, LookedUp
from mapper.domain import checkout as documents
from mapper.domain import discounts, document
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout
from mapper.domain.errors import (
    AmountMismatch,
    EngineRejected,
    EngineUnavailable,
    InvalidRequest,
    OrderMismatch,
    OutcomePending,
    Overloaded,
    Problem,
    Refused,
    UnknownOrder,
)
from mapper.domain.outcome import Notice, Outcome
from mapper.domain.record import Record
from mapper.engine.conversation import NOT_EXECUTED
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone, PromotionEngine
from mapper.orders.identity import VERSION, identity
from mapper.orders.ledger import PRUNE_BATCH, Ledger
from mapper.orders.rows import (
    DEGRADED,
    FINISHED,
    NO_NOTICES,
    REDEEMED,
    Absence,
    Absent,
    AfterLookUp,
    Answer,
    Ask,
    Backlog,
    CancelDecision,
    Cancelled,
    Conflict,
    Degraded,
    Fenced,
    GiveUp,
    InProgress,
    Key,
    LedgerUnavailable,
    LookUp,
    NeedsOperator,
    New,
    Replay,
    Retry,
    Row,
    State,
    Terms,
    Undo,
    Wait,
    cart_of,
    currency_of,
    notices_of,
)
from mapper.settings import Settings

log = logging.getLogger("mapper")
T = TypeVar("T")

DUPLICATE_POLL_S = 0.05
"""How often a concurrent duplicate checks whether the order is finished."""
REDEEM_SHARE = 0.6
"""The share of the remaining time that a redemption may use. The rest is for a look-up of its outcome."""
CALLER_RETRIES_S = (0.2, 0.5, 1.0)
"""The delays before the retries of a request that certainly had no effect, while its caller waits."""
MIN_ATTEMPT_S = 0.3
"""No such retry starts with less time left than this."""
RETRY_AFTER_S = (1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200)
"""The delays before the retries without a caller (MAPPER_AFTER_FAILURE=redeem_later). Then the order waits for one."""
RECONCILE_EVERY_S = 0.5
LEAD_FOR_S = 5.0
DUE_BATCH = 16
BATCH_PAUSE_S = 0.05
"""The pause of the reconciler where more rows may be due."""
PRUNE_EVERY_S = 3600.0


@dataclass
class Job:
    """One order to redeem. `record` collects what the log entry needs."""

    ask: Ask
    order: Checkout
    record: Record = field(default_factory=lambda: Record("reconcile", ""))
    has_caller: bool = True
    """False for an order that the reconciler resumes, and after `consume` has answered or raised."""
    has_hung_up: Callable[[], bool] = lambda: False
    tries: int = 0
    """The attempts of this job so far."""
    sent_at: float | None = None
    """When a redeeming request was last sent whose outcome is not recorded, on the clock of deadlines."""

    @property
    def is_waited_for(self) -> bool:
        """Whether a caller is still connected and waits for the answer."""
        return self.has_caller and not self.has_hung_up()


@dataclass(frozen=True)
class Judged:
    """What the engine grants an order, and how that differs from the discounts in the order."""

    granted: Outcome
    """As the adapter returned it."""
    outcome: Outcome
    """As the answer reports it: with the codes as the shopper entered them."""
    drift: Notice | None
    """None if the amounts are those of the order."""
    is_clamped: bool = False
    """Whether a discount was higher than the price that it reduces."""


@dataclass(frozen=True)
class Later:
    """There is no answer yet: take the next step after `wait_s` seconds."""

    wait_s: float
    row: Row


async def add_no_product_data(order: Checkout, *_of: str) -> Checkout:
    """Adds no product data."""
    return order


@dataclass
class OrderRedeemer:
    """Redeems and cancels orders. One per process."""

    settings: Settings
    promotion_engine: PromotionEngine
    ledger: Ledger
    clock: Callable[[], float]
    """The monotonic clock of deadlines; the same as the engine's."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    on_backlog: Callable[[Backlog], None] | None = None
    fill: Callable[[Checkout, str, str], Awaitable[Checkout]] = add_no_product_data
    """Adds the product data that validate added for this space and session. Without it, a discount on a category that
    has since changed would be lost."""
    _running: set[asyncio.Task[Answer]] = field(default_factory=set)
    _finished_rows: dict[State, int] = field(default_factory=dict)
    _next_count_at: float = 0.0

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    def job(
        self,
        key: Key,
        order: Checkout,
        terms: Terms | Problem,
        record: Record,
        has_hung_up: Callable[[], bool] = lambda: False,
    ) -> Job:
        return Job(self._ask(key, order, terms), order, record, has_hung_up=has_hung_up)

    async def consume(self, job: Job, deadline: float) -> Answer:
        """Returns the one answer of the order. Raises `Problem`: `OutcomePending` if there is no answer yet."""
        try:
            answer = await self._run_until(self._run_to_completion(job, deadline), deadline)
        except LedgerUnavailable as problem:
            if job.sent_at is None:
                raise
            raise OutcomePending(
                "The order was sent to the engine, but its outcome could not be recorded.",
                reason=problem.reason,
                retry_after=max(problem.retry_after or 1, self._after_quarantine(job)),
            ) from problem
        finally:
            job.has_caller = False
        if answer is None:
            raise OutcomePending(
                "The order is still being worked on; send the same order again for the answer.",
                reason="still_working",
                retry_after=self._after_quarantine(job),
            )
        return answer

    async def cancel(self, key: Key, deadline: float) -> Answer:
        """Undoes the redemption for good and returns the order as it was stored. Raises `Problem`."""
        answer = await self._run_until(self._cancel(key, deadline), deadline)
        if answer is None:
            raise _being_cancelled()
        return answer

    async def drain(self, within_s: float) -> None:
        """Waits for the running jobs, before the process ends. The reconciler finishes the others."""
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    async def _run_until(self, work: Coroutine[Any, Any, Answer], deadline: float) -> Answer | None:
        """Returns the result of the work, or None if it is not done by the deadline. The work continues then."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - self.clock()))
        return task.result() if done else None

    def _on_done(self, task: asyncio.Task[Answer]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Problem):
            log.error("internal error", exc_info=error)

    def _after_quarantine(self, job: Job) -> int:
        if job.sent_at is None:
            return 1
        return max(1, math.ceil(job.sent_at + self.ledger.quarantine_s - self.clock()))

    # -- Without a caller ------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Finishes the orders that callers, crashes and engine failures have left open. Runs until it is cancelled.

        One of the processes that share the ledger and the engine is the leader. If two take themselves for it, leases
        and fences keep the orders safe. Orders of another engine are left to a service with that engine.
        """
        prune_at, logged = self.clock(), ""
        try:
            while True:
                rows: list[Row] = []
                try:
                    if await self.ledger.lead(self.adapter.name, LEAD_FOR_S):
                        rows = await self.ledger.due(self.adapter.name, DUE_BATCH)
                        await asyncio.gather(*(self._resume(row) for row in rows))
                        if self.clock() >= prune_at:
                            pruned = await self.ledger.prune(self.settings.keep_bodies_s)
                            prune_at = self.clock() + (0 if pruned >= PRUNE_BATCH else PRUNE_EVERY_S)
                    if self.on_backlog is not None:
                        self.on_backlog(await self._backlog())
                    logged = ""
                except LedgerUnavailable as problem:
                    if problem.reason != logged:  # once per outage, not twice a second
                        logged = problem.reason
                        log.error("ledger unavailable", extra={"facts": {"reason": logged}})  # noqa: TRY400 - the reason is enough
                except Exception:
                    log.exception("internal error")
                await self.sleep(RECONCILE_EVERY_S if len(rows) < DUE_BATCH else BATCH_PAUSE_S)
        finally:
            await self._step_down()

    async def _backlog(self) -> Backlog:
        """Counts the rows by state. Counting the finished ones is slow, and may take a hundredth of the time."""
        backlog, began = await self.ledger.backlog(), self.clock()
        if began >= self._next_count_at:
            self._finished_rows = await self.ledger.finished()
            self._next_count_at = began + (self.clock() - began) * 100
        return replace(backlog, counts={**self._finished_rows, **backlog.counts})

    async def _step_down(self) -> None:
        """Lets another process lead at once, instead of when this one's lease ends."""
        try:
            await self.ledger.lead(self.adapter.name, 0)
        except LedgerUnavailable:
            log.warning("ledger unavailable", extra={"facts": {"reason": "hand_over"}})

    async def _resume(self, row: Row) -> None:
        """Takes the next step for a row, and logs its result. A row whose step fails is postponed."""
        deadline = self.clock() + self.settings.consume_deadline_s
        try:
            if row.state is State.CANCELLING:
                result = (await self._cancel(row.key, deadline)).reason
            elif row.state is State.CANCELLED:
                result = await self._undo_again(row, deadline)
            elif row.state in REDEEMED:
                result = await self._undo_duplicate(row, deadline)
            else:
                step = await self._advance(self._job_of(row), deadline)
                result = step.reason if isinstance(step, Answer) else "waiting"
        except (LedgerUnavailable, OutcomePending) as problem:
            result = problem.reason
        except Exception as error:
            result = error.reason if isinstance(error, Problem) else "internal"
            if not isinstance(error, Problem):
                log.exception("internal error", extra={"facts": {"order": row.key.order}})
            await self._postpone(row, result)
        log.info("reconcile", extra={"facts": {"order": row.key.order, "was": row.state.value, "result": result}})

    async def _undo_duplicate(self, row: Row, deadline: float) -> str:
        """Looks a redeemed order up once more, and undoes a second redemption: a request may be delivered twice."""
        if not row.order:  # the operator erased it
            await self.ledger.seen_again(row, repaired=False)
            return "erased"
        try:
            order = self._order_of(row)
            found = await self.promotion_engine.look_up(order, row.session, row.handle, deadline)
            if found.extra:
                await self.promotion_engine.repair(order, row.session, found.extra, deadline)
        except Problem as problem:
            await self.ledger.not_seen_again(row)
            return problem.reason
        if found.extra:
            self._log_repair(row, found.extra)
        return (await self.ledger.seen_again(row, repaired=bool(found.extra))).state.lower()

    async def _undo_again(self, row: Row, deadline: float) -> str:
        """Undoes a cancelled order once more: the request that redeemed it may be delivered twice."""
        try:
            await self._undo_for_good(row, deadline)
        except Problem as problem:
            await self.ledger.not_seen_again(row)
            return problem.reason
        return (await self.ledger.seen_again(row, repaired=False)).reason

    def _log_repair(self, row: Row, extra: tuple[str, ...]) -> None:
        log.error("repaired", extra={"facts": {"order": row.key.order, "rolled_back": len(extra)}})

    async def _postpone(self, row: Row, reason: str) -> None:
        """Delays a row whose step failed, before or after this process has claimed it."""
        latest = await self.ledger.show(row.key)
        is_ours = latest is not None and latest.lease_until > 0 and latest.owner == self.ledger.owner
        if latest is None or not (is_ours or latest.version == row.version):
            return  # the step has released it, or another process has claimed it
        with contextlib.suppress(Fenced):  # written since, so that no delay is needed
            if latest.state in FINISHED:
                await self.ledger.not_seen_again(latest)
            else:
                await self.ledger.postpone(latest, reason)

    def _job_of(self, row: Row) -> Job:
        """Returns the job of a stored order. Raises `InvalidRequest` if today's settings cannot read the order."""
        order = self._order_of(row)
        terms = Terms(row.session, from_receipt=False, customer=row.customer, currency=row.currency)
        return Job(self._ask(row.key, order, terms), order, has_caller=False)

    def _order_of(self, row: Row) -> Checkout:
        """Parses the order of a row, in the currency that it was first parsed in. Raises `InvalidRequest`."""
        return _addressed(self._read(row.order, currency_of(row)), row)

    def _read(self, order: bytes, currency: str | None) -> Checkout:
        default = self.settings.default_currency if currency is None else currency
        return documents.parse(order, "consume", default, self.settings.customer_path)

    def _ask(self, key: Key, order: Checkout, terms: Terms | Problem) -> Ask:
        costs = tuple(getattr(self.adapter, "cost_pointers", ()))

        def identify(version: int, customer: str, currency: str | None) -> bytes | None:
            try:
                parsed = order if currency in (None, default) else self._read(order.source.text, currency)
            except InvalidRequest:
                return None
            return identity(parsed, key, costs, customer, version)

        default = self.settings.default_currency
        return Ask(
            key=key,
            order=order.source.text,
            identity=identify,
            identity_version=VERSION,
            terms=terms,
            owner=self.ledger.owner,
            lease_s=self.ledger.lease_s,
        )

    # -- Steps: each returns the answer, or when to take the next step -----------------------------------------------

    async def _run_to_completion(self, job: Job, deadline: float) -> Answer:
        """Takes steps until there is an answer. Raises `OutcomePending` if the next step is after the deadline."""
        await self._use_former_key(job)
        while True:
            step = await self._advance(job, deadline)
            if isinstance(step, Answer):
                return step
            if step.wait_s > deadline - self.clock():
                raise await self._pending(step.row, step.wait_s)
            await self.sleep(step.wait_s)

    async def _use_former_key(self, job: Job) -> None:
        """The same bytes are the same order, also if they first came before spaces were told apart."""
        if job.ask.key.space:
            former = await self.ledger.show(replace(job.ask.key, space=""))
            if former is not None and job.ask.has_same_bytes(former):
                job.ask = replace(job.ask, key=former.key)

    async def _pending(self, row: Row, wait_s: float) -> OutcomePending:
        left_s = await self.ledger.quarantine_left_s(row)
        return OutcomePending(
            "What became of the order's redemption is not known yet; send the same order again later.",
            reason="unknown_outcome",
            retry_after=max(1, math.ceil(max(wait_s, left_s))),
        )

    async def _advance(self, job: Job, deadline: float) -> Answer | Later:
        """Claims the order and does what the ledger decides."""
        decision = await self.ledger.claim(job.ask)
        match decision:
            case New(row):
                return await self._redeem(job, row, deadline)
            case Retry(row, was_refused):
                return await self._retry(job, row, deadline, was_refused=was_refused)
            case Degraded(row):
                job.record.degraded = True
                await self._confirm(job, row)
                return Answer(200, _document(job.order, NO_NOTICES), DEGRADED)
            case LookUp(row):
                return await self._look_up(job, row, self._order_of(row), deadline)
            case Replay(row, same_bytes):
                return await self._replay(job, row, same_bytes=same_bytes)
            case InProgress(row, retry_after_s, holder):
                if holder:
                    raise await self._pending(row, retry_after_s)
                return Later(DUPLICATE_POLL_S, row)
            case Conflict(reason, holder):
                raise _conflict(reason, holder)
            case NeedsOperator(reason):
                raise _manual(reason)
            case _:
                assert_never(decision)

    async def _replay(self, job: Job, row: Row, *, same_bytes: bool) -> Answer:
        """Returns the order's bytes with the notices of its redemption."""
        await self._confirm(job, row)
        if same_bytes and row.reply is not None:
            return Answer(200, row.reply, "replayed")
        return Answer(200, _document(job.order, notices_of(row) or NO_NOTICES), "replayed")

    async def _confirm(self, job: Job, row: Row) -> None:
        if row.confirmed_at is None and job.is_waited_for:
            await self.ledger.confirm(row)

    async def _retry(self, job: Job, row: Row, deadline: float, *, was_refused: bool) -> Answer | Later:
        """Redeems an order that certainly is not redeemed, for its caller or if `after_failure` is `redeem_later`."""
        if job.is_waited_for or self.settings.after_failure == "redeem_later":
            return await self._redeem(job, row, deadline)
        if was_refused:
            # The order was refused after this request had arrived, and another request got that answer.
            await self.ledger.rejected(row, row.reason)
        else:
            await self.ledger.retry_later(row, None, row.reason or "caller_gone", answered=False)
        raise OutcomePending("The order waits for its caller.", reason="waiting", retry_after=1)

    async def _redeem(self, job: Job, row: Row, deadline: float) -> Answer | Later:
        """Checks without effect what the engine would grant, then redeems it."""
        job.tries += 1
        order, latest = await self.fill(_addressed(job.order, row), row.key.space, cart_of(row)), row

        async def may_send() -> bool:
            nonlocal latest
            permit = await self.ledger.mark_sent(latest)
            latest, job.sent_at = permit.row, self.clock()
            return permit.fresh()

        try:
            checked = await self._check(job, order, row.session, deadline)
        except (Refused, AmountMismatch, OrderMismatch) as refused:
            await self._refuse(row, refused)
            raise
        except (Fenced, LedgerUnavailable):
            raise  # this process cannot write to the row; its lease will end
        except Problem as problem:
            return await self._not_done(job, row, problem, deadline, answered=False)
        if checked is not None and checked.outcome.redeemed:
            return await self._finish(job, row, order, checked, deadline)
        now = self.clock()
        until = now + (deadline - now) * REDEEM_SHARE
        match await self.promotion_engine.redeem(order, row.session, until, may_send):
            case Done(done):
                judged = judge(order, done.outcome, checked)
                return await self._finish(job, latest, order, judged, deadline, done.handle)
            case Declined(declined, confirm):
                judged = judge(order, Outcome(rejected=declined.rejected, notices=declined.notices))
                return await self._declined(job, latest, order, judged, deadline, confirm=confirm)
            case InDoubt():
                return await self._look_up(job, await self.ledger.looking(latest), order, deadline)
            case NotDone(failure):
                return await self._not_done(job, row, failure, deadline, answered=_was_answered(failure))

    async def _check(self, job: Job, order: Checkout, session: str, deadline: float) -> Judged | None:
        """Finds a refusal before anything is redeemed, and raises it. None if the adapter has no check."""
        malformed = order.promotions.malformed
        if malformed and self.settings.on_rejected == "refuse":
            raise notes.refused(malformed, job.record.language)
        outcome = await self.promotion_engine.check(order, session, deadline)
        if outcome is None:
            return None
        judged = judge(order, outcome)
        if not outcome.redeemed:
            self._raise_refusals(job, judged)
        return judged

    async def _declined(
        self, job: Job, row: Row, order: Checkout, judged: Judged, deadline: float, *, confirm: bool
    ) -> Answer | Later:
        """Records that nothing was redeemed. `confirm`: a request was sent, so a look-up has to confirm it first."""
        if confirm:
            row = await self.ledger.looking(row)
            found = await self._ask_engine(row, order, deadline)
            if isinstance(found, Later):
                return found
            if found.state == "redeemed":
                return await self._finish(job, row, order, judge(order, found.outcome), deadline, extra=found.extra)
        try:
            self._raise_refusals(job, judged)
        except (Refused, AmountMismatch) as refused:
            await self._refuse(row, refused)
            raise
        return await self._record(job, row, order, judged, "")

    async def _look_up(self, job: Job, row: Row, order: Checkout, deadline: float) -> Answer | Later:
        """Looks an order up in the engine. The row already records that a look-up starts."""
        found = await self._ask_engine(row, order, deadline)
        if isinstance(found, Later):
            return found
        if found.state == "redeemed":
            step = await self._finish(job, row, order, judge(order, found.outcome), deadline, extra=found.extra)
            # The job's order may have other content than the stored one: the next step compares them.
            return step if isinstance(step, Later) else Later(0.0, row)
        after = await self.ledger.absent(row, 0.0 if self.settings.after_failure == "redeem_later" else None)
        return _later(after)

    async def _ask_engine(self, row: Row, order: Checkout, deadline: float) -> LookedUp | Later:
        """Returns the result of a look-up or, if it failed or was unclear, when to repeat it."""
        try:
            found = await self.promotion_engine.look_up(order, row.session, row.handle, deadline)
        except OrderMismatch as refused:
            await self._refuse(row, refused)
            raise
        except Problem as problem:
            return _later(await self.ledger.look_later(row, problem.reason))
        if found.state == "unclear":
            return _later(await self.ledger.look_later(row, "unclear"))
        return found

    async def _finish(
        self,
        job: Job,
        row: Row,
        order: Checkout,
        judged: Judged,
        deadline: float,
        handle: str = "",
        extra: tuple[str, ...] = (),
    ) -> Answer | Later:
        """Records the answer of an order that the engine has redeemed; before that, undoes what must not stay redeemed.

        `extra`: the handles of all redemptions but the first, if the engine has redeemed the order more than once.
        They are rolled back.
        """
        try:
            # A redemption from before our first request was not made here, and is not undone here.
            if not (judged.outcome.redeemed and row.sent_at is None):
                self._raise_refusals(job, judged)
        except (Refused, AmountMismatch) as refused:
            # A code was used up between the check and the redemption: the other promotions must not stay redeemed.
            if self.adapter.capabilities.undo:
                return await self._undo_refused(row, order, handle, refused, deadline)
            judged = replace(judged, outcome=_with_notice(judged.outcome, refused))
        repairs = bool(extra) and self.adapter.capabilities.repair
        if repairs:
            # Before the answer is recorded: the reconciler does not resume a finished order.
            try:
                await self.promotion_engine.repair(order, row.session, extra, deadline)
            except Problem as problem:
                row = row if row.state is State.UNKNOWN else await self.ledger.looking(row)
                return _later(await self.ledger.look_later(row, f"repair_{problem.reason}"))
        answer = await self._record(job, row, order, judged, handle)
        if repairs:
            await self.ledger.repair(row, "redeemed_twice")
            self._log_repair(row, extra)
        return answer

    async def _record(self, job: Job, row: Row, order: Checkout, judged: Judged, handle: str) -> Answer:
        job.record.drift, job.record.clamped = _drift_amounts(judged), judged.is_clamped
        notices = _notices(judged)
        may_double = self.adapter.capabilities.repair
        # A look-up redeems the stored order, and its caller may have sent another one.
        is_answer = job.is_waited_for and job.ask.is_same(row)
        await self.ledger.redeemed(row, notices, handle, "redeemed", confirmed=is_answer, may_double=may_double)
        return Answer(200, _document(order, notices), "redeemed")

    async def _undo_refused(
        self, row: Row, order: Checkout, handle: str, refused: Problem, deadline: float
    ) -> Answer | Later:
        try:
            await self.promotion_engine.undo(order, row.session, handle or row.handle, deadline, final=False)
        except Problem as problem:
            row = row if row.state is State.UNKNOWN else await self.ledger.looking(row)
            return _later(await self.ledger.look_later(row, f"undo_{problem.reason}"))
        await self._refuse(row, refused)
        raise refused

    async def _refuse(self, row: Row, problem: Problem) -> None:
        """Records the refusal. Nothing is redeemed in the engine; if the order is sent again, it is checked again."""
        await self.ledger.rejected(row, problem.reason)

    async def _not_done(self, job: Job, row: Row, problem: Problem, deadline: float, *, answered: bool) -> Later:
        """Handles a redemption that certainly had no effect: returns when to retry it, or raises `problem`.

        `row`: as it was claimed. `answered`: the engine has answered the redeeming request.
        """
        if isinstance(problem, OrderMismatch):
            await self._refuse(row, problem)
            raise problem
        is_later = self.settings.after_failure == "redeem_later" and row.attempts <= len(RETRY_AFTER_S)
        hint_s = problem.retry_after or 0
        delay_s = max(RETRY_AFTER_S[row.attempts - 1], hint_s) if is_later else None
        row = await self.ledger.retry_later(row, delay_s, problem.reason, answered=answered)
        job.sent_at = None
        if (
            isinstance(problem, EngineUnavailable | Overloaded)
            and job.is_waited_for
            and job.tries <= len(CALLER_RETRIES_S)
        ):
            soon_s = max(CALLER_RETRIES_S[job.tries - 1], hint_s)
            if soon_s + MIN_ATTEMPT_S < deadline - self.clock():
                return Later(soon_s, row)
        problem.retry_after = max(1, hint_s, delay_s or 0)
        raise problem

    def _raise_refusals(self, job: Job, judged: Judged) -> None:
        """Raises `Refused` for rejected codes and `AmountMismatch` for drift, if the settings refuse them."""
        rejected = judged.outcome.rejected
        job.record.rejected = rejected
        if rejected and self.settings.on_rejected == "refuse":
            raise notes.refused(rejected, job.record.language)
        if judged.drift is not None and self.settings.on_drift == "refuse":
            raise AmountMismatch(judged.drift.text, reason="amount_mismatch", **judged.drift.payload)

    # -- Cancelling ------------------------------------------------------------------------------------------------

    async def _cancel(self, key: Key, deadline: float) -> Answer:
        decision = await self._decide_cancel(key, deadline)
        match decision:
            case Absent():
                raise UnknownOrder
            case Cancelled(row):
                return _cancelled(row)
            case NeedsOperator():
                raise OutcomePending(_BY_HAND, reason="manual", retry_after=3600, own_status=409)
            case InProgress(row, retry_after_s):
                if row.state is State.CANCELLING:
                    raise _being_cancelled()
                pending = await self._pending(row, retry_after_s)
                pending.own_status = 409
                raise pending
            case Undo(row, is_first):
                return await self._undo(row, deadline, is_first=is_first)
            case _:
                assert_never(decision)

    async def _decide_cancel(self, key: Key, deadline: float) -> CancelDecision:
        """Decides what to do with the order; waits until the deadline for a concurrent duplicate of the cancel."""
        while True:
            decision = await self.ledger.cancel(key)
            is_duplicate = isinstance(decision, InProgress) and decision.row.state is State.CANCELLING
            if not is_duplicate or self.clock() + DUPLICATE_POLL_S > deadline:
                return decision
            await self.sleep(DUPLICATE_POLL_S)

    async def _undo(self, row: Row, deadline: float, *, is_first: bool) -> Answer:
        """Undoes a redemption for good. The row already records that the order is being cancelled."""
        may_double = self.adapter.capabilities.repair
        try:
            await self._undo_for_good(row, deadline)
        except EngineRejected as refused:
            if is_first:  # no caller has been told yet that the order will be cancelled
                await self.ledger.not_cancelled(row, row.reason, may_double=may_double)
                raise
            await self.ledger.cancel_later(row, refused.reason)
        except Problem as problem:
            await self.ledger.cancel_later(row, problem.reason)
        else:
            return _cancelled(await self.ledger.cancelled(row, may_double=may_double))
        raise _being_cancelled()

    async def _undo_for_good(self, row: Row, deadline: float) -> None:
        try:
            order = self._order_of(row) if row.order else None
        except InvalidRequest:  # by today's settings; the session and the handle suffice
            order = None
        await self.promotion_engine.undo(order, row.session, row.handle, deadline, final=True)


def judge(order: Checkout, outcome: Outcome, known: Judged | None = None) -> Judged:
    """Compares an outcome with the discounts of an order. Returns `known` if it is of the same outcome."""
    if known is not None and known.granted == outcome:
        return known
    allocation = discounts.allocate(order, outcome)
    drift = notes.drift(order, allocation)
    return Judged(outcome, notes.complete(order, outcome), drift, is_clamped=allocation.clamped > 0)


def _notices(judged: Judged) -> bytes:
    notices = (*judged.outcome.notices, *([judged.drift] if judged.drift else []))
    return document.encode([notes.notice(notice) for notice in notices])


def _with_notice(outcome: Outcome, refused: Problem) -> Outcome:
    """Adds the notice that only a part was redeemed, for an engine that cannot undo it."""
    codes = [{"code": one.code, "reason": one.reason} for one in outcome.rejected]
    notice = Notice("redeemed_in_part", refused.message, {"rejected": codes})
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, notice))


def _document(order: Checkout, notices: bytes) -> bytes:
    """Returns the order's own bytes, annotated with the notices if there are any."""
    if notices == NO_NOTICES:
        return notes.unchanged(order)
    return b'{"order":' + discounts.annotate(order, msgspec.Raw(notices)) + b"}"


def _addressed(order: Checkout, row: Row) -> Checkout:
    """Returns the order with the customer of the row, and with the attempt that idempotency keys name."""
    return msgspec.structs.replace(
        order, customer=row.customer or order.customer, attempt=f"{row.key.space}/{row.key.order}/{row.attempt}"
    )


def _was_answered(problem: Problem) -> bool:
    """Whether the engine itself said that it did nothing, which ends this attempt."""
    return problem.reason in NOT_EXECUTED.values() or isinstance(problem, EngineRejected | InvalidRequest)


def _drift_amounts(judged: Judged) -> dict[str, str] | None:
    if judged.drift is None:
        return None
    return {"order": judged.drift.payload["order"], "engine": judged.drift.payload["engine"]}


def _later(after: AfterLookUp) -> Later:
    """Returns when to take the next step. Raises `OutcomePending` if the order needs the operator."""
    match after:
        case GiveUp(row):
            raise _manual(row.reason)
        case Wait(row, wait_s):
            return Later(wait_s, row)
        case Absence(row):
            return Later(0.0, row)
        case _:
            assert_never(after)


_BY_HAND = "What became of this order has to be settled by hand: see `promotions-mapper ledger`."


def _manual(reason: str) -> OutcomePending:
    return OutcomePending(_BY_HAND, reason=f"manual_{reason}", retry_after=3600)


def _conflict(reason: str, holder: str) -> OrderMismatch:
    if holder:
        message = "The cart of this order was redeemed as another order."
        return OrderMismatch(message, reason=reason, order=holder)
    if reason == "cancelled":
        return OrderMismatch("This order has been cancelled.", reason=reason)
    return OrderMismatch("An order with this id has come before, with other content.", reason=reason)


def _cancelled(row: Row) -> Answer:
    return Answer(200, b'{"order":' + (row.order.strip() or b"{}") + b"}", "cancelled")


def _being_cancelled() -> OutcomePending:
    message = "The order is being cancelled; send the same cancel again for the answer."
    return OutcomePending(message, reason="cancelling", retry_after=5)
