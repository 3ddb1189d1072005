"""The promotion engine as the rest of the mapper sees it: an adapter that is held to its contract.

Here a conversation begins and ends. What the adapter returns is checked (`mapper.engine.results`), what it raises that
it may not raise is a fault of ours (`AdapterFault`, category `internal`) and stands in the log with its traceback. So a
bug in an adapter is never taken for an engine that is away, and nothing is ever sold at list prices because of one.

`redeem` does not raise what became of an order, it returns a verdict:

    match await promotion_engine.redeem(order, session, deadline, permit):
        case Done(redeemed): ...                # it is redeemed; record it, with redeemed.handle
        case Declined(declined, confirm): ...   # nothing is redeemed; if `confirm`, look up once before it is believed
        case NotDone(problem): ...              # certainly not done: the problem is for the caller, who may come again
        case InDoubt(problem): ...              # something may be redeemed: look it up, never send again on a guess

Nothing that an adapter does after a redeeming request was answered, or may have been acted on, leads to `NotDone`. What
the permit raises comes out as it is.
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
from mapper.engine import results, tape
from mapper.engine.conversation import BrokenContract, Engine, Redemption, limit
from mapper.engine.results import BadResult
from mapper.engine.tape import Held

log = logging.getLogger("mapper")

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
    """A redeeming request went out: one look-up says whether it is true."""


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
    """Deadlines are moments on the engine's clock. Each method raises `Problem`, and nothing but what is said there."""

    adapter: Adapter
    engine: Engine

    async def validate(self, checkout: Checkout, session: str, deadline: float) -> Outcome:
        """What this cart earns."""
        return await self._hold("validate", deadline, checkout, results.outcome, checkout, session)

    async def check(self, order: Checkout, session: str, deadline: float) -> Outcome | None:
        """What redeeming would grant; None where the engine cannot be asked."""
        if not self.adapter.capabilities.check:
            return None
        return await self._hold("check", deadline, order, results.outcome, order, session)

    async def redeem(
        self, order: Checkout, session: str, deadline: float, permit: Callable[[], Awaitable[bool]]
    ) -> Verdict:
        """Redeems. `permit` is awaited before each attempt at a redeeming request, which goes out only at True."""
        course = Redemption(permit)
        try:
            result = await self._hold("redeem", deadline, order, results.redemption, order, session, course=course)
        except Problem as problem:
            if problem is course.stopped_by:
                raise
            return _verdict(problem, course)
        if isinstance(result, NotRedeemed):
            return Declined(result, confirm=course.sent)
        if course.may_stand or result.outcome.redeemed:
            return Done(result)
        # It was refused, or the request that redeems was not declared as one.
        return InDoubt(self._fault("redeem", BadResult("redeemed, although no request that redeems was carried out")))

    async def look_up(self, order: Checkout, session: str, handle: str, deadline: float) -> LookedUp:
        """Did it happen?"""
        return await self._hold("look_up", deadline, order, results.looked_up, order, session, handle)

    async def undo(self, order: Checkout | None, session: str, handle: str, deadline: float, *, final: bool) -> None:
        """Takes it back. Raises `EngineRejected` (`no_undo`) where the engine cannot."""
        if not self.adapter.capabilities.undo:
            raise EngineRejected("The promotion engine cannot take a redemption back.", reason="no_undo")
        await self._hold("undo", deadline, order, results.nothing, order, session, handle, final=final)

    async def repair(self, order: Checkout, session: str, extra: tuple[str, ...], deadline: float) -> None:
        """Takes back what was redeemed too much; to be called only where `Capabilities.repair` is declared."""
        await self._hold("repair", deadline, order, results.nothing, order, session, extra)

    async def _hold(
        self,
        method: str,
        deadline: float,
        cart: Checkout | None,
        read: Read[T],
        *arguments: Any,
        course: Redemption | None = None,
        **named: Any,
    ) -> T:
        """One conversation, overheard where the call is recorded."""
        held = tape.begin(method, cart, arguments[1:], named)
        if held is None:
            return await self._converse(method, deadline, cart, read, *arguments, course=course, **named)
        try:
            result = await self._converse(method, deadline, cart, read, *arguments, course=course, held=held, **named)
        except Problem as problem:
            held.end(problem=problem.reason)
            raise
        held.end(result)
        return result

    async def _converse(
        self,
        method: str,
        deadline: float,
        cart: Checkout | None,
        read: Read[T],
        *arguments: Any,
        course: Redemption | None = None,
        held: Held | None = None,
        **named: Any,
    ) -> T:
        try:
            conversation = _conversation(getattr(self.adapter, method)(*arguments, **named))
            if held is not None:
                conversation = held.listen(conversation)
            most = limit(MAX_LINES if cart is None else len(cart.cart))  # erased: it may have been the largest
            value, faults = read(await self.engine.converse(conversation, deadline, course, most=most), cart)
            if faults and not _has_happened(value):
                raise BadResult("; ".join(faults))  # noqa: TRY301 - a fault like what the adapter itself raises
        except (EngineRejected, EngineUnavailable, OrderMismatch, InvalidRequest) as problem:
            if results.encodes(problem.details):
                raise
            raise self._fault(method, problem) from problem
        except Exception as error:
            if course is not None and error is course.stopped_by:
                raise
            raise self._fault(method, error) from error
        if faults:
            self._tell(method, BadResult("; ".join(faults)))
        _diagnose(value)
        return value

    def _fault(self, method: str, error: Exception) -> AdapterFault:
        self._tell(method, error)
        return AdapterFault()

    def _tell(self, method: str, error: Exception) -> None:
        facts = {"adapter": self.adapter.name, "method": method}
        log.error("adapter error", exc_info=error, extra={"facts": facts})


def _conversation(started: object) -> Conversation[Any]:
    if not isinstance(started, Generator):
        raise BrokenContract(f"a method starts a conversation (a generator), not {type(started).__name__}")
    return started


def _diagnose(value: object) -> None:
    """Puts what the merchant should know on the line of the request."""
    outcome = value.outcome if isinstance(value, Redeemed | LookedUp) else value
    if isinstance(outcome, Outcome) and outcome.diagnostics and (record := current.get()) is not None:
        record.diagnostics = outcome.diagnostics


def _has_happened(value: object) -> bool:
    """Whether the engine has acted: what it granted then is told, as far as it can be read."""
    return isinstance(value, Redeemed | LookedUp) or (isinstance(value, Outcome) and value.redeemed)


def _verdict(problem: Problem, course: Redemption) -> NotDone | InDoubt:
    if not course.sent:
        return NotDone(problem)
    # Every redeeming request was refused. The adapter says what for, or the last of them was not even looked at; what
    # else goes wrong then (such as an answer that cannot be read) says nothing about it.
    certain = problem is course.not_carried_out or isinstance(problem, EngineRejected | InvalidRequest | OrderMismatch)
    return NotDone(problem) if certain and not course.may_stand else InDoubt(problem)
