"""What protects an order, taken away: each of these must make a run fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mapper.adapter import Outcome
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone
from mapper.http import app
from mapper.orders.ledger import Ledger
from mapper.orders.redeem import Once, Work, _wait
from mapper.orders.rows import Again, Answer, LookUp, Moment, New, Resend, Row, fingerprint
from mapper.settings import Settings


def recall() -> None:
    """The engine is never asked what became of an order: after the quarantine it is simply sent again."""

    async def look(self: Once, work: Work, row: Row, deadline: float) -> Answer | float:
        after = await self.ledger.absent(row)
        return await self._send(work, after.row, deadline) if isinstance(after, Resend) else _wait(after)

    Once._look = look  # type: ignore[method-assign]


def quarantine() -> None:
    """Whatever the settings say, there is none."""
    create = app.create

    def without(configured: Settings, **more: Any) -> Any:
        return create(replace(configured, quarantine_s=0.0), **more)

    app.create = without


def fence() -> None:
    """Whoever held an order once may write for ever."""

    async def change(self: Ledger, row: Row, step: Callable[[Row, Moment], Any]) -> Any:
        def unchecked(found: Row | None, at: Moment) -> Any:
            assert found is not None
            return step(found, at)

        return await self.store.change(row.key, unchecked)

    Ledger._change = change  # type: ignore[method-assign]


def claim() -> None:
    """The engine is called first; then the order is claimed and the answer recorded."""
    step = Once._step

    async def late(self: Once, work: Work, deadline: float) -> Answer | float:
        async def allowed() -> bool:
            return True

        match await self.promotion_engine.redeem(work.order, work.session, deadline, allowed):
            case Done(redeemed):
                outcome = redeemed.outcome
            case Declined(declined):
                outcome = Outcome(rejected=declined.rejected)
            case NotDone(problem) | InDoubt(problem):
                raise problem
        decision = await self.ledger.claim(work.key, fingerprint(work.key, work.order), work.body, work.session)
        if isinstance(decision, New | Again | LookUp):
            return await self._finish(work, decision.row, outcome, deadline)
        return await step(self, work, deadline)

    Once._step = late  # type: ignore[method-assign]


KINDS: dict[str, Callable[[], None]] = {"recall": recall, "quarantine": quarantine, "fence": fence, "claim": claim}
