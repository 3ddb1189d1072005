"""The promotion engine as the rest of the mapper uses it: an adapter whose results and errors are checked.

What an adapter returns is checked (`mapper.engine.results`). An exception that the contract does not allow is a bug of
the adapter: it is logged with its traceback and becomes `AdapterFault` (category `internal`). So a bug is never taken
for an engine that is away, and no cart is sold at list prices because of one.

`redeem` returns what came of the order as a verdict, and raises nothing but what `may_send` raised:

    match await promotion_engine.redeem(order, session, deadline, may_send):
        case Done(redeemed): ...                # redeemed: record it, with redeemed.handle
        case Declined(declined, confirm): ...   # nothing is redeemed; if `confirm`, verify it by one look-up
        case NotDone(problem): ...              # certainly not done: the problem goes to the caller, who may try again
        case InDoubt(problem): ...              # something may be redeemed: look it up before anything is sent again

Once a redeeming request may have been executed, no error of the adapter can lead to `NotDone`.
"""

import logging
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from mapper.adapter import Adapter, Checkout, Conversation, LookedUp, NotRedeemed, Outcome, Redeemed
from mapper.domain.errors import (
    AdapterFault,
    EngineRejected,
    EngineUnavailable,
    InvalidRequest,
    OrderMismatch,
    Problem,
)
from mapper.domain.lines import MAX_LINES
from mapper.domain.record import current
from mapper.engine import results
from mapper.engine.conversation import BrokenContract, Engine, Redemption, request_limit
from mapper.engine.results import BadResult
from mapper.engine.transcript import begin_transcript

log = logging.getLogger("mapper")

ALLOWED = (EngineRejected, EngineUnavailable, OrderMismatch, InvalidRequest)
"""The exceptions that an adapter may raise."""

T = TypeVar("T")
Read = Callable[[Any, Any], tuple[T, list[str]]]


@dataclass(frozen=True)
class Done:
    """The order is redeemed."""

    redeemed: Redeemed


@dataclass(frozen=True)
class Declined:
    """The adapter says that nothing is redeemed."""

    declined: NotRedeemed
    confirm: bool
    """A redeeming request was sent: one look-up must verify that nothing is redeemed."""


@dataclass(frozen=True)
class NotDone:
    """Certainly nothing was redeemed."""

    problem: Problem


@dataclass(frozen=True)
class InDoubt:
    """Something may be redeemed: only the engine knows."""

    problem: Problem


Verdict = Done | Declined | NotDone | InDoubt


@dataclass(frozen=True)
class PromotionEngine:
    """Deadlines are times on the engine's clock. The methods raise `Problem`."""

    adapter: Adapter
    engine: Engine

    async def validate(self, checkout: Checkout, session: str, deadline: float) -> Outcome:
        """Returns what this cart earns."""
        return await self._converse("validate", deadline, checkout, results.outcome, checkout, session)

    async def check(self, order: Checkout, session: str, deadline: float) -> Outcome | None:
        """Returns what redeeming would grant; None where the engine cannot tell."""
        if not self.adapter.capabilities.check:
            return None
        return await self._converse("check", deadline, order, results.outcome, order, session)

    async def redeem(
        self, order: Checkout, session: str, deadline: float, may_send: Callable[[], Awaitable[bool]]
    ) -> Verdict:
        """Redeems. `may_send` is awaited before each attempt at a redeeming request; False prevents the attempt."""
        redemption = Redemption(may_send)
        try:
            result = await self._converse(
                "redeem", deadline, order, results.redemption, order, session, redemption=redemption
            )
        except Problem as problem:
            if problem is redemption.stopped_by:
                raise
            return _verdict(problem, redemption)
        if isinstance(result, NotRedeemed):
            return Declined(result, confirm=redemption.sent)
        if redemption.maybe_redeemed or result.outcome.redeemed:
            return Done(result)
        # The redeeming request was refused, or it was not declared as one.
        return InDoubt(self._fault("redeem", BadResult("redeemed, although no request that redeems was carried out")))

    async def look_up(self, order: Checkout, session: str, handle: str, deadline: float) -> LookedUp:
        """Returns whether the order is redeemed at the engine."""
        return await self._converse("look_up", deadline, order, results.looked_up, order, session, handle)

    async def undo(self, order: Checkout | None, session: str, handle: str, deadline: float, *, final: bool) -> None:
        """Undoes a redemption. Raises `EngineRejected` (`no_undo`) where the engine cannot."""
        if not self.adapter.capabilities.undo:
            raise EngineRejected("The promotion engine cannot take a redemption back.", reason="no_undo")
        await self._converse("undo", deadline, order, results.nothing, order, session, handle, final=final)

    async def repair(self, order: Checkout, session: str, extra: tuple[str, ...], deadline: float) -> None:
        """Rolls back duplicate redemptions. Call it only where `Capabilities.repair` is declared."""
        await self._converse("repair", deadline, order, results.nothing, order, session, extra)

    async def _converse(
        self,
        method: str,
        deadline: float,
        cart: Checkout | None,
        read: Read[T],
        *arguments: Any,
        redemption: Redemption | None = None,
        **named: Any,
    ) -> T:
        """Runs one conversation, with a transcript where calls are recorded, and returns its result, checked."""
        transcript = begin_transcript(method, cart, arguments[1:], named)
        try:
            conversation = _conversation(getattr(self.adapter, method)(*arguments, **named))
            if transcript is not None:
                conversation = transcript.transcribe(conversation)
            # An erased order may have been the largest.
            limit = request_limit(MAX_LINES if cart is None else len(cart.cart))
            value, faults = read(await self.engine.converse(conversation, deadline, redemption, limit=limit), cart)
            if faults and not _engine_has_acted(value):
                raise BadResult("; ".join(faults))  # noqa: TRY301 - a bug like an exception of the adapter
        except Exception as error:
            problem = self._allowed(method, error, redemption)
            if transcript is not None and isinstance(problem, Problem):
                transcript.end(problem=problem.reason)
            if problem is error:
                raise
            raise problem from error
        if faults:
            self._log(method, BadResult("; ".join(faults)))
        _record_diagnostics(value)
        if transcript is not None:
            transcript.end(value)
        return value

    def _allowed(self, method: str, error: Exception, redemption: Redemption | None) -> Exception:
        """Returns the error itself if it is the caller's or the contract allows it, else `AdapterFault`."""
        if redemption is not None and error is redemption.stopped_by:
            return error
        if isinstance(error, ALLOWED) and results.encodes(error.details):
            return error
        return self._fault(method, error)

    def _fault(self, method: str, error: Exception) -> AdapterFault:
        self._log(method, error)
        return AdapterFault()

    def _log(self, method: str, error: Exception) -> None:
        facts = {"adapter": self.adapter.name, "method": method}
        log.error("adapter error", exc_info=error, extra={"facts": facts})


def _conversation(started: object) -> Conversation[Any]:
    if not isinstance(started, Generator):
        raise BrokenContract(f"a method starts a conversation (a generator), not {type(started).__name__}")
    return started


def _record_diagnostics(value: object) -> None:
    """Adds the adapter's diagnostics to the call's record, for the merchant to read in the log."""
    outcome = value.outcome if isinstance(value, Redeemed | LookedUp) else value
    if isinstance(outcome, Outcome) and outcome.diagnostics and (record := current.get()) is not None:
        record.diagnostics = outcome.diagnostics


def _engine_has_acted(value: object) -> bool:
    """Whether the order is redeemed or looked up. The valid part of such a result is used, whatever else is wrong."""
    return isinstance(value, Redeemed | LookedUp) or (isinstance(value, Outcome) and value.redeemed)


def _verdict(problem: Problem, redemption: Redemption) -> NotDone | InDoubt:
    if not redemption.sent:
        return NotDone(problem)
    # Something was sent. It is certainly not done only if every redeeming request was refused, and the adapter reports
    # that refusal. Any other error, such as an unreadable reply, says nothing about the redemption.
    refusal = problem is redemption.not_executed or isinstance(problem, EngineRejected | InvalidRequest | OrderMismatch)
    return NotDone(problem) if refusal and not redemption.maybe_redeemed else InDoubt(problem)
