"""The crash matrix: 10 crash points x 13 engine behaviours x 3 follow-ups, with each adapter and store.

The cases and invariants: `chaos/crash.py` and docs/exactly_once.md. By default PostgreSQL runs only the hardest
follow-up; CRASH_MATRIX=all runs them all.
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
def slow_duplicate_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeem, "DUPLICATE_POLL_S", 4.0)


@pytest.fixture(params=STORES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(request.param, tmp_path)


def play(home: Home, engine: str, wanted: Iterable[Case], quarantine_s: float = crash.QUARANTINE_S) -> Broken:
    """The broken invariants by case. A case in which no process died is reported too: it proves little."""

    async def play_all() -> Broken:
        async with Lab.open(engine, home, quarantine_s) as lab:
            played = {str(case): await crash.play(lab, case) for case in wanted}
        return {case: broken for case, broken in played.items() if broken}

    return virtual_time.run(play_all)


def test_matrix_has_documented_size() -> None:
    assert (len(POINTS), len(BEHAVIOURS), len(FOLLOW_UPS), len(cases())) == (10, 13, 3, 390)


@pytest.mark.parametrize("engine", ENGINES)
def test_order_is_redeemed_once_at_each_crash_point(home: Home, engine: str) -> None:
    follow_ups = FOLLOW_UPS if EVERYTHING or home.store == "sqlite" else ["both at once"]
    wanted = cases(follow_ups=follow_ups)
    assert play(home, engine, wanted) == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_paused_process_changes_nothing_when_it_wakes(tmp_path: Path, engine: str) -> None:
    wanted = cases(follow_ups=["other replica"], pause=True)
    assert play(Home("sqlite", tmp_path), engine, wanted) == {}


# -- Teeth: with any of its safeguards taken out the matrix fails --------------------------------------------------


def without_looking_up(patch: pytest.MonkeyPatch) -> None:
    """After an unknown outcome the request is sent again without a look-up."""

    def look_up(*_: Any) -> Conversation[LookedUp]:
        yield from ()
        return LookedUp("absent")

    patch.setattr(Voucherify, "look_up", look_up)
    patch.setattr(TalonOne, "look_up", look_up)


def without_fence(patch: pytest.MonkeyPatch) -> None:
    """A holder writes its row even after another process has taken it over."""

    async def change(self: Ledger, row: Row, step: Callable[[Row, Moment], tuple[T, Row]]) -> T:
        def unfenced(found: Row | None, at: Moment) -> tuple[T, Row | None]:
            assert found is not None
            return step(found, at)

        return await self.store.change(row.key, unfenced)

    patch.setattr(Ledger, "_change", change)


def claiming_after_the_call(patch: pytest.MonkeyPatch) -> None:
    """The order is recorded only when its outcome is known."""
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


def no_patch(patch: pytest.MonkeyPatch) -> None:
    """For sabotage by a setting."""


SABOTAGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], float, bool]] = {
    "no look-up": (without_looking_up, crash.QUARANTINE_S, False),
    "no quarantine": (no_patch, 0.0, False),
    "no fence": (without_fence, crash.QUARANTINE_S, True),
    "claim after the call": (claiming_after_the_call, crash.QUARANTINE_S, False),
}
"""By name: the patch, the quarantine, whether processes pause instead of dying."""


# The least that each must break, by engine. A Talon.One session closes only once, so other invariants than I1 break.
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
def test_matrix_fails_without_safeguard(
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
def test_proxy_duplicate_is_rolled_back_at_each_crash_point(
    tmp_path: Path, engine: str, doubled: str, point: str
) -> None:
    wanted = [Case(point, doubled, follow_up) for follow_up in FOLLOW_UPS]
    broken = play(Home("sqlite", tmp_path), engine, wanted)
    left = {name for names in broken.values() for name in names if name != NOT_REACHED}
    # The duplicate stands for a moment before it can be seen; Talon.One accepts only one of two.
    assert left == ({"I1 for a moment"} if engine == "voucherify" else set())


@pytest.mark.parametrize("engine", ENGINES)
def test_unreadable_2xx_counts_as_redemption_at_each_crash_point(tmp_path: Path, engine: str) -> None:
    wanted = cases(["c0 before claim", "c3 reply received", "c4 recorded"], ["other replica"], behaviours=crash.GARBLED)
    broken = play(Home("sqlite", tmp_path), engine, wanted)
    assert {case: names for case, names in broken.items() if set(names) - {NOT_REACHED}} == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changed", crash.CHANGES)
def test_same_bytes_stay_same_order_after_changed_restart(tmp_path: Path, engine: str, changed: str) -> None:
    behaviours = BEHAVIOURS if EVERYTHING else ["ok", "drop after", "late commit", "code refused", "look-up fails"]
    follow_ups = ["same replica", "both at once"]
    wanted = cases(["c1 claimed", "c3 reply received", "r1 taken over", "r4 rolled back"], follow_ups,
                   behaviours=behaviours, changed=changed)  # fmt: skip
    assert play(Home("sqlite", tmp_path), engine, wanted) == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("denied", crash.DENIED)
@pytest.mark.parametrize("point", ["nowhere", "received", "rolled_back"])
def test_refused_rollback_stays_pending_and_is_never_resent(
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
    # A surplus stands until it can be rolled back; a refusal is checked again and may be worded differently (I3).
    assert set(broken) <= ({"I1 for a moment"} if denied == "surplus stays" else {"I3"})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", ["cancelling", "rolled_back", "cancelled"])
def test_interrupted_cancel_is_finished(home: Home, engine: str, point: str) -> None:
    async def story() -> tuple[list[str], bool]:
        async with Lab.open(engine, home) as lab:
            return await crash.play_cancel(lab, point)

    told, stands = virtual_time.run(story)
    assert (told[:3], stands) == (["200", "200", "order_mismatch"], False)
    assert point == "rolled_back" or told[3:] == []
