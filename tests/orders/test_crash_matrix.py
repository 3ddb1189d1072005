"""The crash matrix: 10 points to die at x 13 ways an engine misbehaves x 3 follow-ups, with each adapter and store.

What is played and what must hold: `chaos/crash.py` and docs/exactly_once.md. By default PostgreSQL runs one of the
three follow-ups, the hardest; CRASH_MATRIX=all runs them all.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from adapters.talon_one import TalonOne
from adapters.voucherify import Voucherify
from chaos import crash
from chaos.crash import BEHAVIOURS, ENGINES, FOLLOW_UPS, NOT_REACHED, POINTS, Case, Lab, cases
from mapper.adapter import Conversation, LookedUp
from mapper.orders import redeem
from mapper.orders.ledger import Ledger
from mapper.orders.rows import Ask, Decision, Moment, New, Permit, Row, decide, sent
from tests import virtual_time
from tests.orders.ledgers import STORES, Home

T = TypeVar("T")
Broken = dict[str, list[str]]

EVERYTHING = os.environ.get("CRASH_MATRIX") == "all"


@pytest.fixture(autouse=True)
def duplicates_look_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeem, "DUPLICATE_POLL_S", 4.0)


@pytest.fixture(params=STORES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(request.param, tmp_path)


def play(home: Home, engine: str, wanted: Iterable[Case], quarantine_s: float = crash.QUARANTINE_S) -> Broken:
    """The cases that broke an invariant, and which. One in which nobody died says so: it proves little."""

    async def all_of_them() -> Broken:
        async with Lab.open(engine, home, quarantine_s) as lab:
            played = {str(case): await crash.play(lab, case) for case in wanted}
        return {case: broken for case, broken in played.items() if broken}

    return virtual_time.run(all_of_them)


def test_the_matrix_has_the_size_it_says() -> None:
    assert (len(POINTS), len(BEHAVIOURS), len(FOLLOW_UPS), len(cases())) == (10, 13, 3, 390)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_order_is_redeemed_once_wherever_a_process_dies(home: Home, engine: str) -> None:
    follow_ups = FOLLOW_UPS if EVERYTHING or home.store == "sqlite" else ["both at once"]
    wanted = cases(follow_ups=follow_ups)
    assert play(home, engine, wanted) == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_that_stood_still_and_wakes_at_the_worst_moment_changes_nothing(tmp_path: Path, engine: str) -> None:
    wanted = cases(follow_ups=["other replica"], pause=True)
    assert play(Home("sqlite", tmp_path), engine, wanted) == {}


# -- Teeth: with any of its safeguards taken out the matrix fails --------------------------------------------------


def without_looking_up(patch: pytest.MonkeyPatch) -> None:
    """After an unknown outcome it is sent again blindly."""

    def look_up(*_: Any) -> Conversation[LookedUp]:
        yield from ()
        return LookedUp("absent")

    patch.setattr(Voucherify, "look_up", look_up)
    patch.setattr(TalonOne, "look_up", look_up)


def without_fence(patch: pytest.MonkeyPatch) -> None:
    """Whoever holds a row writes it, whoever else has taken it over."""

    async def change(self: Ledger, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        def unfenced(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            assert found is not None
            return step(found, at)

        return await self.store.change(row.key, unfenced)

    patch.setattr(Ledger, "_change", change)


def claiming_after_the_call(patch: pytest.MonkeyPatch) -> None:
    """The order is written down when its outcome is known."""
    claim = Ledger.claim

    async def look(self: Ledger, ask: Ask) -> Decision:
        if await self.show(ask.key) is not None:
            return await claim(self, ask)
        decision = decide(None, (), ask, await self.moment())
        assert isinstance(decision, New)
        return decision

    async def send(self: Ledger, row: Row) -> Permit:
        return Permit(sent(row, await self.moment(), self.lease_s), self.local(), self.local)

    async def record(self: Ledger, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        return await self.store.change(row.key, lambda found, at: step(found or row, at))

    patch.setattr(Ledger, "claim", look)
    patch.setattr(Ledger, "mark_sent", send)
    patch.setattr(Ledger, "_change", record)


def as_it_is(patch: pytest.MonkeyPatch) -> None:
    """For the sabotage that is a setting."""


SABOTAGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], float, bool]] = {
    "no look-up": (without_looking_up, crash.QUARANTINE_S, False),
    "no quarantine": (as_it_is, 0.0, False),
    "no fence": (without_fence, crash.QUARANTINE_S, True),
    "claim after the call": (claiming_after_the_call, crash.QUARANTINE_S, False),
}
"""Name: what is taken out, the quarantine, whether processes stand still instead of dying."""


# What each must break at the least, by engine. A Talon.One session is closed once, so that it is not redeemed twice
# even then; other invariants break.
TEETH = [
    ("voucherify", "no look-up", {"I1 for a moment", "I6"}),
    ("voucherify", "no quarantine", {"I1", "I2"}),
    ("voucherify", "no fence", {"I8"}),
    ("voucherify", "claim after the call", {"I1", "I2", "I4"}),
    ("talon_one", "no look-up", {"I9"}),
    ("talon_one", "no quarantine", {"I2", "end"}),
    ("talon_one", "no fence", {"I8"}),
    ("talon_one", "claim after the call", {"I2", "I4", "end"}),
]


@pytest.mark.parametrize(("engine", "sabotage", "least"), TEETH)
def test_without_a_safeguard_the_matrix_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, sabotage: str, least: set[str]
) -> None:
    take_out, quarantine_s, pause = SABOTAGES[sabotage]
    take_out(monkeypatch)
    points = POINTS if engine == "voucherify" else ["c3 reply received", "r4 rolled back"]
    wanted = cases(points, ["other replica"], pause=pause)
    broken = play(Home("sqlite", tmp_path), engine, wanted, quarantine_s)
    found = Counter(name for names in broken.values() for name in names)
    assert least <= set(found), found


# -- Beyond the matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("doubled", crash.DOUBLED)
@pytest.mark.parametrize("point", ["nowhere", "received", "looked_up", "rolled_back", "finished"])
def test_what_a_proxy_sent_twice_is_taken_back_wherever_the_process_dies(
    tmp_path: Path, engine: str, doubled: str, point: str
) -> None:
    wanted = [Case(point, doubled, follow_up) for follow_up in FOLLOW_UPS]
    broken = play(Home("sqlite", tmp_path), engine, wanted)
    left = {name for names in broken.values() for name in names if name != NOT_REACHED}
    # What the proxy does is done before anybody can know of it; Talon.One takes only one of two.
    assert left == ({"I1 for a moment"} if engine == "voucherify" else set())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_2xx_that_nobody_can_read_is_a_redemption_wherever_the_process_dies(tmp_path: Path, engine: str) -> None:
    wanted = cases(["c0 before claim", "c3 reply received", "c4 recorded"], ["other replica"], behaviours=crash.GARBLED)
    broken = play(Home("sqlite", tmp_path), engine, wanted)
    assert {case: names for case, names in broken.items() if set(names) - {NOT_REACHED}} == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changed", crash.CHANGES)
def test_the_same_bytes_are_the_same_order_whatever_has_changed_when_a_process_starts_anew(
    tmp_path: Path, engine: str, changed: str
) -> None:
    behaviours = BEHAVIOURS if EVERYTHING else ["ok", "drop after", "late commit", "code refused", "look-up fails"]
    follow_ups = ["same replica", "both at once"]
    wanted = cases(["c1 claimed", "c3 reply received", "r1 taken over", "r4 rolled back"], follow_ups,
                   behaviours=behaviours, changed=changed)  # fmt: skip
    assert play(Home("sqlite", tmp_path), engine, wanted) == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("denied", crash.DENIED)
@pytest.mark.parametrize("point", ["nowhere", "received", "rolled_back"])
def test_what_the_engine_does_not_take_back_is_pending_and_never_sent_again(
    tmp_path: Path, engine: str, denied: str, point: str
) -> None:
    async def story() -> tuple[list[str], int, list[str]]:
        async with Lab.open(engine, Home("sqlite", tmp_path)) as lab:
            return await crash.play_denied(lab, Case(point, denied, "same replica"))

    told, sent_times, broken = virtual_time.run(story)
    # Talon.One closes a session once, however often it is asked: there is no surplus.
    is_done = (engine, denied) == ("talon_one", "surplus stays")
    assert set(told) == ({""} if is_done else {"outcome_pending"})
    assert sent_times == 1
    # A surplus stands until it may be taken back; what is refused is checked anew, and the words may be others (I3).
    assert set(broken) <= ({"I1 for a moment"} if denied == "surplus stays" else {"I3"})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", ["cancelling", "rolled_back", "cancelled"])
def test_a_cancel_that_dies_half_way_is_finished(home: Home, engine: str, point: str) -> None:
    async def story() -> tuple[list[str], bool]:
        async with Lab.open(engine, home) as lab:
            return await crash.play_cancel(lab, point)

    told, stands = virtual_time.run(story)
    assert (told[:3], stands) == (["200", "200", "order_mismatch"], False)
    assert point == "rolled_back" or told[3:] == []
