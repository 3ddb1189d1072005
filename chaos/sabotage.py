"""Each function removes one safeguard of an order: each must make a run fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mapper.adapter import LookedUp, Outcome
from mapper.domain.checkout import Checkout
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone, PromotionEngine
from mapper.http import app
from mapper.orders.ledger import Ledger
from mapper.orders.redeem import Job, Later, OrderRedeemer, judge
from mapper.orders.rows import Answer, Ask, LookUp, Moment, New, Retry, Row
from mapper.settings import Settings


def look_up() -> None:
    """Orders are never looked up: after the quarantine they are sent again."""

    async def ask(self: OrderRedeemer, row: Row, order: Checkout, deadline: float) -> LookedUp:
        return LookedUp("absent")

    OrderRedeemer._ask_engine = ask  # type: ignore[method-assign]


def quarantine() -> None:
    """There is no quarantine, whatever the settings are."""
    create = app.create

    def without(configured: Settings, **more: Any) -> Any:
        return create(replace(configured, quarantine_s=0.0), **more)

    app.create = without


def fence() -> None:
    """A process that once held an order may always write it."""

    async def change(self: Ledger, row: Row, step: Callable[[Row, Moment], Any]) -> Any:
        def unchecked(found: Row | None, at: Moment) -> Any:
            assert found is not None
            return step(found, at)

        return await self.store.change(row.key, unchecked)

    Ledger._change = change  # type: ignore[method-assign]


def claim() -> None:
    """The engine is called first; then the order is claimed and the answer recorded."""
    advance = OrderRedeemer._advance

    async def late(self: OrderRedeemer, job: Job, deadline: float) -> Answer | Later:
        async def allowed() -> bool:
            return True

        assert not isinstance(job.ask.terms, Exception)
        match await self.promotion_engine.redeem(job.order, job.ask.terms.session, deadline, allowed):
            case Done(redeemed):
                outcome = redeemed.outcome
            case Declined(declined):
                outcome = Outcome(rejected=declined.rejected)
            case NotDone(problem) | InDoubt(problem):
                raise problem
        decision = await self.ledger.claim(job.ask)
        if isinstance(decision, New | Retry | LookUp):
            return await self._finish(job, decision.row, job.order, judge(job.order, outcome), deadline)
        return await advance(self, job, deadline)

    OrderRedeemer._advance = late  # type: ignore[method-assign]


def same() -> None:
    """An order is the same only if its identity is, by the current settings and rules."""

    def is_same(self: Ask, row: Row) -> bool:
        return self.identity(row.identity_version, row.customer, None) == row.identity

    Ask.is_same = is_same  # type: ignore[method-assign]


def caller() -> None:
    """A redemption that certainly failed is made in the background, whatever the settings are."""
    create = app.create

    def later(configured: Settings, **more: Any) -> Any:
        return create(replace(configured, after_failure="redeem_later"), **more)

    app.create = later


def undo() -> None:
    """Redemptions are never undone: an order counts as cancelled without a request to the engine."""

    async def nothing(self: PromotionEngine, *_: Any, final: bool) -> None:
        pass

    PromotionEngine.undo = nothing  # type: ignore[assignment,method-assign]


KINDS: dict[str, Callable[[], None]] = {
    "look-up": look_up, "quarantine": quarantine, "fence": fence, "claim": claim, "same": same, "caller": caller,
    "undo": undo,
}  # fmt: skip
