"""Property test of one cart: random events, checked against the engine's own books.

Two order ids share one validated cart. They are consumed, changed, retried with and without the receipt, cancelled;
their engine loses answers, acts late, garbles, refuses, says 429, and sees requests twice; processes die before they
record; the merchant reopens sessions. After every step:

- each order and each session has at most one redemption (except for a proxy's duplicate, until it is repaired);
- an order answered with 200 has exactly one redemption, in its session, and a cancelled order has none;
- nothing is redeemed without a caller.

Each fault that this machine was built for is put back (`SABOTAGES`) and must be found.
"""

import asyncio
import dataclasses
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mapper.adapter import (
    Conversation,
    EngineReply,
    EngineRequest,
    LookedUp,
    NotRedeemed,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
)
from mapper.domain.checkout import Checkout
from mapper.domain.errors import EngineRejected, Problem
from mapper.engine import promotion_engine
from mapper.engine.promotion_engine import Declined, Done, NotDone, PromotionEngine, Verdict
from mapper.engine.transport import NotSent, Unknown
from mapper.orders import redeem, rows
from mapper.orders.ledger import Ledger
from mapper.orders.redeem import Job, Later, OrderRedeemer
from mapper.orders.rows import REDEEMED, Answer, LedgerUnavailable, Row
from mapper.promotions import Service
from tests.fakes import FakeAdapter
from tests.house import CHECKOUT, TEN_OFF, House, to_order

FAULTS = (
    *("lost before", "lost after", "500 after", "201", "garbled", "429", "not sent", "refused", "late"),
    *("twice", "partly"),
)
ORDERS = ("o-1", "o-2")
MEMORY = Path("/dev/shm")
REFUSED = (Rejection("TEN", Reason.EXPIRED, "Expired"),)


class Books:
    """The engine: what it has redeemed, by session. It answers a repeated idempotency key from memory."""

    def __init__(self, *, closes_once: bool) -> None:
        self.closes_once = closes_once
        self.stands: dict[tuple[str, str], int] = {}
        """By session and order."""
        self.by_key: dict[tuple[str, str], bytes] = {}
        self.late: list[tuple[float, str, str]] = []
        self.sent = 0
        """Redeeming requests that have arrived."""
        self.doubled: set[str] = set()
        """Sessions with a proxy's duplicate that is not repaired yet."""

    def redeem(self, session: str, key: str) -> bytes:
        """`key` names the order and the attempt: an engine that closes once answers the same key from memory."""
        order = key.split("/")[1]
        if self.closes_once and (session, key) in self.by_key:
            return self.by_key[session, key]
        if not (self.closes_once and self.of_session(session)):
            self.stands[session, order] = self.stands.get((session, order), 0) + 1
        self.by_key[session, key] = b'{"granted": true}'
        return self.by_key[session, key]

    def undo(self, session: str, left: int = 0) -> None:
        for place in self.stands:
            if place[0] == session:
                self.stands[place] = min(left, self.stands[place])

    def of_session(self, session: str) -> int:
        return sum(count for (name, _), count in self.stands.items() if name == session)

    def settle(self, now: float) -> None:
        for one in [one for one in self.late if one[0] <= now]:
            self.late.remove(one)
            self.redeem(*one[1:])


class Wire:
    """The way to the books, with the fault that the next redemption, or undo, meets."""

    def __init__(self, house: "Life", books: Books) -> None:
        self.house, self.books, self.fault = house, books, ""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        self.books.settle(self.house.time)
        operation, session = url.rsplit("/", 2)[1:]
        fault, status, reply = "", 200, b"{}"
        if operation in ("redeem", "undo"):
            fault = self.fault
            self.fault = fault if fault in ("429", "not sent") else ""
        if fault == "not sent":
            raise NotSent("connect")
        if operation == "redeem":
            self.books.sent += 1
            status, reply = self._redeem(session, dict(headers).get("Idempotency-Key", ""), fault)
        elif operation == "look_up":
            reply = json.dumps({"stands": self.books.of_session(session)}).encode()
        elif operation == "undo" and fault != "lost before":
            self.books.undo(session)
        elif operation == "repair":
            self.books.undo(session, left=1)
            self.books.doubled.discard(session)
        if fault in ("lost before", "lost after", "late"):
            raise Unknown("timeout")
        return EngineReply(status=500 if fault == "500 after" else status, headers={}, body=reply)

    def _redeem(self, session: str, key: str, fault: str) -> tuple[int, bytes]:
        if fault == "429":
            return 429, b"{}"
        if fault == "lost before":
            return 200, b"{}"
        if fault == "refused":
            return 200, b'{"refused": true}'
        if fault == "late":
            self.books.late.append((self.house.time + 30, session, key))
            return 200, b"{}"
        reply = self.books.redeem(session, key)
        if fault == "twice" and not self.books.closes_once:
            self.books.stands[session, key.split("/")[1]] += 1
            self.books.doubled.add(session)
            return 200, b"?"  # the adapter sees that something is wrong, and cannot mend it
        if fault == "partly":
            return 200, b'{"granted": true, "partly": true}'
        return (201 if fault == "201" else 200), (b"?" if fault == "garbled" else reply)

    async def aclose(self) -> None:
        pass


class Accountant(FakeAdapter):
    """Trusts a readable 2xx; raises at one that it cannot read."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__(options)
        self.granted = TEN_OFF

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        key = (("Idempotency-Key", order.attempt),)
        reply = yield self._ask("redeem", session, effect="redeems", headers=key)
        if reply.body == b"?":
            raise EngineRejected("The surplus could not be taken back.", reason="engine_key")
        told = json.loads(reply.body)
        if told.get("refused"):
            return NotRedeemed(REFUSED)
        return Redeemed(Outcome(rejected=REFUSED) if told.get("partly") else TEN_OFF)

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        reply = yield self._ask("look_up", session)
        stands = json.loads(reply.body)["stands"]
        return LookedUp("redeemed" if stands else "absent", TEN_OFF, ("surplus",) * (stands - 1))

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        yield self._ask("undo", session, effect="session")

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        yield self._ask("repair", session, effect="session")

    def _ask(self, operation: str, session: str, **more: Any) -> EngineRequest:
        path = f"/{operation}/{session}"
        request = EngineRequest(
            operation=operation, method="POST", path=path, effect="none", repeatable=operation != "redeem"
        )
        return msgspec.structs.replace(request, **more)


class Life(House):
    def __init__(self, books: Books, **environment: str) -> None:
        super().__init__(**environment)
        if MEMORY.is_dir():
            # No power is cut here, and thousands of commits to a disk would take minutes.
            self.ledger_url = f"sqlite:///{MEMORY}/{uuid.uuid4().hex}.db"
        self.adapter = Accountant()
        self.configured = dataclasses.replace(self.configured, adapter=self.adapter)
        self.wire = Wire(self, books)  # type: ignore[assignment]
        order = to_order(self("validate", CHECKOUT))
        self.orders = {name: {**order, "id": name} for name in ORDERS}


class Machine(RuleBasedStateMachine):
    closes_once: ClassVar[bool]
    environment: ClassVar[dict[str, str]] = {}
    among: ClassVar[tuple[str, ...]] = FAULTS

    def __init__(self) -> None:
        super().__init__()
        self.books = Books(closes_once=self.closes_once)
        self.life = Life(self.books, **self.environment)
        self.faults = [""]
        self.granted: dict[str, str] = {}
        """Orders that were answered with 200, and their sessions."""
        self.cancelled: set[str] = set()
        self.reopened: set[str] = set()
        """Sessions that the merchant has opened again, with nothing redeemed in them since."""

    @initialize(numbers=st.lists(st.integers(0, 59), min_size=1, max_size=2))
    def choose_faults(self, numbers: list[int]) -> None:
        """A few faults a run: sequences of related faults are found sooner than with another fault at each step."""
        self.faults = ["", *(self.among[number % len(self.among)] for number in numbers)]

    @rule(
        order=st.sampled_from(ORDERS),
        changed=st.sampled_from([False, False, False, True]),
        receipt=st.sampled_from([True, True, False]),
        luck=st.integers(0, 2),
        dies=st.sampled_from([False, False, False, True]),
    )
    def consume(self, order: str, changed: bool, receipt: bool, luck: int, dies: bool) -> None:
        body = json.loads(json.dumps(self.life.orders[order]))
        if changed:
            body["order_items"][0]["quantity"] = 2
        if not receipt:
            body["promotions"] = {key: value for key, value in body["promotions"].items() if key != "meta"}
        self.life.wire.fault = self.faults[luck % len(self.faults)]  # type: ignore[attr-defined]
        sent = self.books.sent
        with pytest.MonkeyPatch.context() as patch:
            if dies:
                patch.setattr(Ledger, "redeemed", _full)
            try:
                answer = self.life.answer("consume", body)
            except Problem:
                return
        assert answer.status == 200
        assert order not in self.cancelled, "a cancelled order is final"
        self.granted[order] = self.life.row(order).session
        if self.books.sent > sent:
            self.reopened.discard(self.granted[order])

    @rule(seconds=st.sampled_from([1, 31, 61, 61, 400]))
    def run_reconciler(self, seconds: int) -> None:
        before = self.books.sent
        self.life.reconcile(after_s=seconds)
        assert self.books.sent == before, "nothing is redeemed without a caller"

    @rule(order=st.sampled_from(ORDERS), fault=st.sampled_from(["", "", "lost before", "lost after", "500 after"]))
    def cancel(self, order: str, fault: str) -> None:
        self.life.wire.fault = fault  # type: ignore[attr-defined]
        try:
            self.life.cancel(order)
        except Problem:
            return
        self.granted.pop(order, None)
        self.cancelled.add(order)

    @rule(order=st.sampled_from(ORDERS))
    def reopen_session(self, order: str) -> None:
        """In the engine itself, unseen by the service: the order is edited or cancelled there."""
        session = self.granted.get(order)
        if session is not None:
            self.books.undo(session)
            self.reopened.add(session)

    @rule(seconds=st.sampled_from([31, 61, 61]))
    def pass_time(self, seconds: int) -> None:
        """No reconciler runs."""
        self.life.time += seconds

    @rule()
    def restart_with_other_settings(self) -> None:
        currency = "EUR" if not self.life.configured.default_currency else ""
        self.life.configured = dataclasses.replace(self.life.configured, default_currency=currency)

    @invariant()
    def check_books(self) -> None:
        self.life.wire.fault = ""  # type: ignore[attr-defined]
        self.books.settle(self.life.time)
        stands = {place: n for place, n in self.books.stands.items() if n and place[0] not in self.books.doubled}
        counts: Counter[str] = Counter()
        holders = self.holders() if stands else {}
        for (session, order), count in stands.items():
            # An unconfirmed redemption may have moved to the other id.
            counts.update({f"order {holders.get(session, order)}": count, f"session {session}": count})
        assert max(counts.values(), default=0) <= 1, f"more than one stands: {counts}"
        for order, session in self.granted.items():
            if session not in self.reopened and self.life.row(order).state in REDEEMED:
                assert self.books.of_session(session) == 1, f"{order} was answered with 200, but: {stands}"
        assert not any(order in self.cancelled for _, order in stands), f"was cancelled and stands: {stands}"

    def holders(self) -> dict[str, str]:
        """By session, the order that has it."""

        async def find(service: Service) -> list[Row]:
            return await service.redeemer.ledger.find()

        return {row.held: row.key.order for row in asyncio.run(self.life.within(find)) if row.held}

    def teardown(self) -> None:
        for left in MEMORY.glob(f"{Path(self.life.ledger_url.rpartition('/')[2]).stem}*"):
            left.unlink()


async def _full(*_: Any, **__: Any) -> Row:
    raise LedgerUnavailable("full")


class ClosesOnce(Machine):
    """As a session of Talon.One."""

    closes_once = True


class RedeemsEachTime(Machine):
    """As Voucherify redeems a code that works often."""

    closes_once = False


MACHINES = (ClosesOnce, RedeemsEachTime)


def run(machine: type[Machine], examples: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=phases,
        ),
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_cart_is_redeemed_at_most_once_under_random_events(
    machine: type[Machine],
) -> None:
    run(machine, 40)


# -- Known faults, put back: each must be found --------------------------------------------------------------------


def any_exception_may_mean_not_done(patch: pytest.MonkeyPatch) -> None:
    """Rows 1 and 3: the adapter's exception decides, not the answer to the redeeming request."""

    def verdict(problem: Problem, course: Any) -> Verdict:
        return NotDone(problem) if isinstance(problem, EngineRejected) else real(problem, course)

    real = promotion_engine._verdict
    patch.setattr(promotion_engine, "_verdict", verdict)


def not_redeemed_is_done(patch: pytest.MonkeyPatch) -> None:
    """Row 4: a refusal without a redemption is recorded as done."""

    async def done(self: PromotionEngine, *given: Any) -> Verdict:
        verdict = await real(self, *given)
        return Done(Redeemed(TEN_OFF)) if isinstance(verdict, Declined) else verdict

    real = PromotionEngine.redeem
    patch.setattr(PromotionEngine, "redeem", done)


def every_attempt_has_one_key(patch: pytest.MonkeyPatch) -> None:
    """Row 5: a reopened session is closed with the key of its first close."""
    real = redeem._addressed

    def addressed(order: Checkout, row: Row) -> Checkout:
        return msgspec.structs.replace(real(order, row), attempt=f"{row.key.space}/{row.key.order}/1")

    patch.setattr(redeem, "_addressed", addressed)


def callers_session_wins(patch: pytest.MonkeyPatch) -> None:
    """Row 8: a retry uses the session that it brings, even if the row's may hold a redemption."""

    async def look_up(self: OrderRedeemer, job: Job, row: Row, *given: Any) -> Answer | Later:
        assert not isinstance(job.ask.terms, Problem)
        return await real(self, job, dataclasses.replace(row, session=job.ask.terms.session), *given)

    def session_for(row: Row | None, ask: rows.Ask) -> str:
        return ask.moved_to or ("" if isinstance(ask.terms, Problem) else ask.terms.session)

    real = OrderRedeemer._look_up
    patch.setattr(OrderRedeemer, "_look_up", look_up)
    patch.setattr(rows, "_session_for", session_for)


def redeemed_without_caller(patch: pytest.MonkeyPatch) -> None:
    """Row 12: a redemption that certainly failed is made later without its caller."""
    for machine in MACHINES:
        patch.setattr(machine, "environment", {"MAPPER_AFTER_FAILURE": "redeem_later"})


Sabotage = Callable[[pytest.MonkeyPatch], None]
SABOTAGES: dict[Sabotage, tuple[str, ...]] = {
    any_exception_may_mean_not_done: ("garbled", "twice"),
    not_redeemed_is_done: ("refused",),
    every_attempt_has_one_key: ("partly",),
    callers_session_wins: ("lost after", "500 after"),
    redeemed_without_caller: ("429", "not sent"),
}
"""By sabotage: the engine faults that reveal it."""


@pytest.mark.parametrize(("sabotage", "faults"), SABOTAGES.items())
def test_machine_finds_each_sabotage(
    monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage, faults: tuple[str, ...]
) -> None:
    sabotage(monkeypatch)
    monkeypatch.setattr(Machine, "among", faults)
    assert any(finds(machine) for machine in MACHINES)


def finds(machine: type[Machine]) -> bool:
    try:
        run(machine, 1500, phases=(Phase.generate,))
    except (AssertionError, ExceptionGroup):
        return True
    return False
