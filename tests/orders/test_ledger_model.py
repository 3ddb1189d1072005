"""Property test of the ledger: random events, and invariants that hold after each.

Three processes work on two orders, get paused and killed at any point, and race; the engine acts at once, late or
never, refuses, and may not answer. Checked after every step:

- an order is redeemed once at the most, and not at all where it was rejected;
- a redeemed row never changes, except from DONE to REPAIRED, and every replay is the same;
- other content is accepted only where nothing is redeemed, and two orders never hold one session;
- a write under an old fence changes nothing.
"""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mapper.orders.ledger import Ledger
from mapper.orders.rows import (
    REDEEMED,
    Absence,
    Conflict,
    Fenced,
    GiveUp,
    InProgress,
    Key,
    LookUp,
    NeedsOperator,
    New,
    Permit,
    Replay,
    Retry,
    Row,
    State,
    Wait,
)
from tests.orders.ledgers import NOTICES, STORES, Home, claim

T = TypeVar("T")

QUARANTINE_S = 60.0
# No power is cut here, and thousands of commits to a disk would take minutes.
MEMORY = Path("/dev/shm")
KEYS = (Key("", "engine", "a"), Key("", "engine", "a"), Key("", "engine", "b"))
CONTENTS = (b"1", b"1", b"1", b"2")
PROCESSES = (0, 1, 2)
AnswerKind = Literal["done", "rejected", "not sent", "lost"]
ANSWERS: tuple[AnswerKind, ...] = ("lost", "lost", "lost", "done", "rejected", "not sent")
DELAYS = (55.0, 55.0, 20.0, 0.0, None)
"""When the engine acts on a request whose answer is lost: never later than the quarantine ends."""
PAUSES = (0.0, 0.0, 0.0, 0.0, 0.3, 1.0, 1.0, 10.0, 61.0)


@dataclass(frozen=True)
class Hand:
    """What a process holds, and its next step."""

    row: Row
    next: Literal["mark", "send", "ask", "conclude", "record"]
    permit: Permit | None = None
    found: bool | None = None
    """The result of the look-up; None if it failed."""
    outcome: Literal["done", "rejected", "not sent"] = "done"


class Engine:
    """Redeems every request that reaches it, at once or later, an order any number of times."""

    def __init__(self) -> None:
        self.acts_at: dict[Key, list[float]] = {key: [] for key in KEYS}

    def redeemed(self, key: Key, now: float) -> int:
        return sum(moment <= now for moment in self.acts_at[key])


class Machine(RuleBasedStateMachine):
    store: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.runner = asyncio.Runner()
        self.home = Home(self.store, Path(self.folder.name))
        self.booted_at = 0.0
        self.now = 5_000.0
        self.engine = Engine()
        self.hands: dict[int, Hand] = {}
        self.let_go: list[Row] = []
        """Rows as they were when their holder died or lost them to another process."""
        self.finished: dict[Key, Row] = {}
        self.ledger: Ledger

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.home.time.now = self.now - self.booted_at
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        self.ledger = self.run(self.home.open(quarantine_s=QUARANTINE_S, lease_s=10))

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.run(self.ledger.close())
        self.runner.close()
        self.folder.cleanup()

    # -- What processes do -----------------------------------------------------------------------------------------

    def free(self) -> list[int]:
        return [process for process in PROCESSES if process not in self.hands]

    def take(self, process: int, row: Row, next_step: Literal["mark", "conclude"]) -> None:
        self.drop(process)
        found = bool(self.engine.redeemed(row.key, self.now)) if next_step == "conclude" else None
        self.hands[process] = Hand(row, next_step, found=found)

    def drop(self, process: int) -> None:
        if hand := self.hands.pop(process, None):
            self.let_go.append(hand.row)

    def write(self, process: int, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of a write; None if it was fenced. Checks that the fence was right."""
        mine = self.hands[process].row
        before = self.run(self.ledger.show(mine.key))
        assert before is not None
        try:
            written = self.run(work)
        except Fenced:
            assert before.fence > mine.fence or before.lease_until == 0
            assert self.run(self.ledger.show(mine.key)) == before
            self.drop(process)
            return None
        assert before.fence == mine.fence
        return written

    def receive_order(self, data: st.DataObject) -> None:
        if self.free():
            self.claim(self.free()[0], data.draw(st.sampled_from(KEYS)), data.draw(st.sampled_from(CONTENTS)))

    def reconcile_due(self, data: st.DataObject) -> None:
        for due in self.run(self.ledger.due(KEYS[0].engine, 1)) if self.free() else []:
            assert due.state in (State.INTENT, State.UNKNOWN)
            self.claim(self.free()[0], due.key, due.identity)

    def claim(self, process: int, key: Key, content: bytes) -> None:
        before = self.run(self.ledger.show(key))
        decision = self.run(claim(self.ledger, key, content, b"body " + content, session=f"session of {key.order}"))
        match decision:
            case New(row):
                assert before is None
                self.take(process, row, "mark")
            case Retry(row):
                assert not self.engine.redeemed(key, self.now)
                self.take(process, row, "mark")
            case LookUp(row):
                assert before is not None
                assert (row.identity, row.order) == (before.identity, before.order)
                self.take(process, row, "conclude")
            case Replay(row, same_bytes):
                assert row == self.finished[key]
                assert (row.identity, same_bytes) == (content, True)
            case Conflict():
                assert before is not None
                assert (before.state in REDEEMED, before.identity != content) == (True, True)
            case InProgress(_, retry_after_s):
                assert 0 < retry_after_s <= 10
            case NeedsOperator():
                assert before is not None
                assert before.state is State.MANUAL

    def run_process(self, data: st.DataObject) -> None:
        """Runs some steps, and may pause before each."""
        process = data.draw(st.sampled_from(sorted(self.hands) or [0]))
        for _ in range(data.draw(st.integers(1, 6))):
            hand = self.hands.get(process)
            self.wait(data.draw(st.sampled_from(PAUSES)) if hand else 0)
            match hand and hand.next:
                case None:
                    return
                case "mark":
                    self.mark_sent(process)
                case "send":
                    self.send(process, data.draw(st.sampled_from(ANSWERS)), data.draw(st.sampled_from(DELAYS)))
                case "ask":
                    self.look_up(process, fails=data.draw(st.integers(0, 3)) == 0)
                case "conclude":
                    self.conclude(process)
                case "record":
                    self.record(process)
            self.check()

    def mark_sent(self, process: int) -> None:
        permit = self.write(process, self.ledger.mark_sent(self.hands[process].row))
        if permit:
            self.hands[process] = Hand(permit.row, "send", permit)

    def send(self, process: int, answer: AnswerKind, delay: float | None) -> None:
        hand = self.hands[process]
        assert hand.permit is not None
        if not hand.permit.fresh():
            self.hands[process] = replace(hand, next="mark")
            return
        acts_at = self.engine.acts_at[hand.row.key]
        if answer == "done":
            acts_at.append(self.now)
        if answer != "lost":
            self.hands[process] = replace(hand, next="record", outcome=answer)
            return
        if delay is not None:
            acts_at.append(self.now + delay)
        self.hands[process] = replace(hand, next="ask")

    def record(self, process: int) -> None:
        hand = self.hands[process]
        match hand.outcome:
            case "done":
                work = self.ledger.redeemed(hand.row, NOTICES, "", "redeemed", confirmed=True)
            case "rejected":
                work = self.ledger.rejected(hand.row, "used_up")
            case "not sent":
                work = self.ledger.retry_later(hand.row, None, "refused", answered=False)
        if self.write(process, work):
            self.drop(process)

    def look_up(self, process: int, *, fails: bool) -> None:
        row = self.write(process, self.ledger.looking(self.hands[process].row))
        if row:
            found = None if fails else bool(self.engine.redeemed(row.key, self.now))
            self.hands[process] = Hand(row, "conclude", found=found)

    def conclude(self, process: int) -> None:
        hand = self.hands[process]
        if hand.found:
            self.hands[process] = replace(hand, next="record", outcome="done")
            return
        after = self.write(
            process,
            self.ledger.absent(hand.row, None) if hand.found is False else self.ledger.look_later(hand.row, "broken"),
        )
        match after:
            case Wait() | GiveUp() | Absence():
                self.drop(process)

    # -- What happens to them --------------------------------------------------------------------------------------

    def kill_process(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.sampled_from(PROCESSES)))

    def pass_time(self, data: st.DataObject) -> None:
        """All processes pause."""
        self.wait(data.draw(st.sampled_from([1.0, 1.0, 5.0, 10.0, 10.0, 61.0, 90_000.0])))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.home.time.now = self.now - self.booted_at

    def reboot(self, data: st.DataObject) -> None:
        if self.store != "sqlite":
            return  # PostgreSQL's clock does not restart
        for process in list(self.hands):
            self.drop(process)
        self.run(self.ledger.close())
        self.booted_at = self.now
        self.now += data.draw(st.sampled_from([0.5, 30.0]))
        self.home.time.boot += "'"
        self.open()

    def write_with_old_fence(self, data: st.DataObject) -> None:
        if not self.let_go:
            return
        old = data.draw(st.sampled_from(self.let_go))
        before = self.run(self.ledger.show(old.key))
        assert before is not None
        if before.fence == old.fence:
            return  # not taken over yet: it may write
        ways: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: self.ledger.mark_sent(old),
            lambda: self.ledger.extend(old),
            lambda: self.ledger.looking(old),
            lambda: self.ledger.absent(old, None),
            lambda: self.ledger.look_later(old, "broken"),
            lambda: self.ledger.retry_later(old, None, "refused", answered=True),
            lambda: self.ledger.redeemed(old, b"stale", "", "redeemed", confirmed=True),
            lambda: self.ledger.rejected(old, "stale"),
            lambda: self.ledger.repair(old, "twice"),
        ]
        with pytest.raises(Fenced):
            self.run(data.draw(st.sampled_from(ways))())
        assert self.run(self.ledger.show(old.key)) == before

    def repair_finished(self, data: st.DataObject) -> None:
        for row in [row for row in self.finished.values() if row.state is State.DONE]:
            fixed = self.run(self.ledger.repair(row, "twice"))
            changed = {name: getattr(row, name) for name in ("state", "reason", "version", "updated_at")}
            assert replace(fixed, **changed) == row
            self.finished[row.key] = fixed

    @rule(
        event=st.sampled_from(
            [
                *(receive_order, receive_order, receive_order, reconcile_due),
                *(run_process, run_process, run_process, run_process, kill_process),
                *(pass_time, pass_time, reboot),
                *(write_with_old_fence, repair_finished),
            ]
        ),
        data=st.data(),
    )
    def run_event(self, event: Callable[..., None], data: st.DataObject) -> None:
        """One rule for all events, so that the list above sets how often each happens."""
        event(self, data)

    # -- Invariants --------------------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        for key, moments in self.engine.acts_at.items():
            assert len(moments) <= 1, f"{key.order} is redeemed at {moments}"
        for row in self.run(self.ledger.find()) if hasattr(self, "ledger") else []:
            if row.key in self.finished:
                assert row == self.finished[row.key]
            elif row.state in REDEEMED:
                self.finished[row.key] = row
                assert len(self.engine.acts_at[row.key]) == 1
            if row.state in (State.REJECTED, State.RETRYABLE):
                assert (row.held, self.engine.redeemed(row.key, self.now)) == (None, 0)


class SqliteMachine(Machine):
    store = "sqlite"


class PostgresMachine(Machine):
    store = "postgres"


MACHINES = {"sqlite": (SqliteMachine, 40), "postgres": (PostgresMachine, 10)}


@pytest.mark.parametrize("store", STORES)
def test_ledger_keeps_invariants_under_random_events(store: str) -> None:
    machine, examples = MACHINES[store]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
