"""The circuit breaker on a clock that only the test moves; then inside an engine, over a scripted wire."""

import asyncio
import contextlib
import timeit
from collections.abc import Sequence
from typing import Any

import pytest

from mapper.adapter import Conversation, EngineReply
from mapper.domain.errors import EngineUnavailable
from mapper.engine import breaker
from mapper.engine import conversation as engine
from mapper.engine.breaker import Breaker
from mapper.engine.conversation import BrokenContract, Engine, Redemption
from mapper.engine.transport import NotSent, Unknown
from tests.engine.test_engine import ACCOUNTS, ONCE, REDEEM, Step, World, ask, reply, request

GOOD, BAD, NOTHING = True, False, None
Part = tuple[float, bool | None, int]
"""So many seconds later, attempts that end like this, and how many of them."""


class Bench:
    def __init__(self, luck: float = 0.5) -> None:
        self.now, self.luck = 1000.0, luck
        self.states: list[str] = []
        self.breaker = Breaker(lambda: self.now, lambda: self.luck, self.states.append)

    def play(self, *steps: Part) -> int:
        """How many attempts were let through."""
        through = 0
        for later, good, attempts in steps:
            self.now += later
            for _ in range(attempts):
                entered = self.breaker.enter()
                if entered is not None:
                    through += 1
                    self.breaker.leave(entered, good=good)
        return through


OPENED = (0.0, BAD, 20)
"""What opens it."""


@pytest.mark.parametrize(
    ("steps", "opens"),
    [
        # At least 20 attempts.
        ([(0, BAD, 19)], False),
        ([(0, BAD, 20)], True),
        ([(0, BAD, 19), (0, GOOD, 1)], True),
        # At least half of them failed.
        ([(0, GOOD, 11), (0, BAD, 10)], False),
        ([(0, GOOD, 10), (0, BAD, 10)], True),
        ([(0, GOOD, 100), (0, BAD, 99)], False),
        ([(0, GOOD, 100), (0, BAD, 100)], True),
        # Of the last ten seconds, the present one included.
        ([(0, BAD, 10), (9, BAD, 10)], True),
        ([(0, BAD, 10), (10, BAD, 10)], False),
        ([(0, BAD, 19), (3600, BAD, 19)], False),
        ([(2, BAD, 2)] * 20, False),
        ([(2, BAD, 4)] * 5, True),
        ([(0, GOOD, 1000), (10, BAD, 20)], True),
        ([(0, GOOD, 20), (5, BAD, 19), (5, BAD, 1)], True),
        ([(0, BAD, 19), (11, BAD, 1)], False),
        ([(0, BAD, 19), (10, GOOD, 15), (0, BAD, 5)], False),
        ([(0, BAD, 19), (10, GOOD, 1), (10, BAD, 20)], True),
        # What says nothing counts as nothing.
        ([(0, NOTHING, 100), (0, BAD, 19)], False),
        ([(0, BAD, 19), (0, NOTHING, 100)], False),
    ],
)
def test_it_opens_when_half_of_twenty_attempts_in_ten_seconds_have_failed(steps: Sequence[Part], opens: bool) -> None:
    bench = Bench()
    bench.play(*steps)
    assert bench.states == (["open"] if opens else [])


@pytest.mark.parametrize(("luck", "seconds"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_it_is_open_for_five_seconds_more_or_less(luck: float, seconds: float) -> None:
    bench = Bench(luck)
    bench.play(OPENED)
    for later in (0.0, 0.5, seconds - 0.51):
        assert bench.play((later, GOOD, 5)) == 0
    assert bench.states == ["open"]
    assert bench.play((0.02, GOOD, 1)) == 1
    assert bench.states == ["open", "probing"]


@pytest.mark.parametrize(
    ("steps", "states"),
    [
        # Three good probes, whenever they come.
        ([(5, GOOD, 2)], ["probing"]),
        ([(5, GOOD, 3)], ["probing", "closed"]),
        ([(5, GOOD, 1), (99, GOOD, 1), (99, GOOD, 1)], ["probing", "closed"]),
        # One that fails, and all begins again.
        ([(5, BAD, 1)], ["probing", "open"]),
        ([(5, GOOD, 2), (0, BAD, 1), (4.9, GOOD, 1)], ["probing", "open"]),
        ([(5, GOOD, 2), (0, BAD, 1), (5, GOOD, 2)], ["probing", "open", "probing"]),
        ([(5, GOOD, 2), (0, BAD, 1), (5, GOOD, 3)], ["probing", "open", "probing", "closed"]),
        # One that says nothing leaves everything as it was.
        ([(5, NOTHING, 9)], ["probing"]),
        ([(5, GOOD, 2), (0, NOTHING, 9), (0, GOOD, 1)], ["probing", "closed"]),
        # Closed again, it has forgotten.
        ([(5, GOOD, 3), (0, BAD, 19)], ["probing", "closed"]),
        ([(5, GOOD, 3), (0, BAD, 20)], ["probing", "closed", "open"]),
    ],
)
def test_three_good_probes_close_it_and_one_that_fails_opens_it_again(steps: Sequence[Part], states: list[str]) -> None:
    bench = Bench()
    bench.play(OPENED, *steps)
    assert bench.states == ["open", *states]


def test_there_is_one_probe_at_a_time() -> None:
    for end in (GOOD, NOTHING):
        bench = Bench()
        bench.play(OPENED)
        bench.now += 5
        probe = bench.breaker.enter()
        assert probe is not None
        assert bench.breaker.enter() is None
        bench.breaker.leave(probe, good=end)
        assert bench.breaker.enter() is not None


def test_what_began_before_a_change_says_nothing_after_it() -> None:
    bench = Bench()
    early = [bench.breaker.enter() for _ in range(5)]
    bench.play(OPENED)
    bench.now += 5
    probe = bench.breaker.enter()
    assert probe is not None
    for entered, good in zip(early, (GOOD, GOOD, GOOD, BAD, NOTHING), strict=True):
        assert entered is not None
        bench.breaker.leave(entered, good=good)
    assert bench.breaker.enter() is None, "the probe's place was given away"
    assert bench.states == ["open", "probing"]
    bench.breaker.leave(probe, good=GOOD)
    assert bench.play((0, GOOD, 1)) == 1
    assert bench.states == ["open", "probing"]


def test_it_costs_next_to_nothing_while_it_is_closed() -> None:
    bench = Bench()

    def attempt() -> None:
        entered = bench.breaker.enter()
        assert entered is not None
        bench.breaker.leave(entered, good=True)

    seconds = min(timeit.repeat(attempt, number=1000, repeat=5)) / 1000
    assert seconds < 10e-6  # about 0.6; the rest is for slow machines


# Inside an engine


class Guarded(World):
    """A world whose engine has a breaker."""

    def __init__(self, *script: Step, takes: float = 0.0, guarded: bool = True) -> None:
        self.states: list[tuple[str, str]] = []
        super().__init__(*script, takes=takes)
        self.engine = Engine(
            self,
            ACCOUNTS,
            breaker=guarded,
            clock=lambda: self.now,
            sleep=self.sleep,
            random=lambda: 0.5,
            on_attempt=self.calls.append,
            on_breaker=lambda account, state: self.states.append((account, state)),
        )

    def sends(self, conversation: Conversation[Any]) -> int:
        """How many requests went out for it, whatever came of it."""
        before = len(self.sent)
        with contextlib.suppress(EngineUnavailable):
            self.hold(conversation)
        return len(self.sent) - before


def opened() -> Guarded:
    """One whose account "" has just opened: twenty attempts have failed."""
    world = Guarded(*[503] * 20)
    for _ in range(20):
        world.failure(ask(ONCE))
    assert world.states == [("", "open")]
    return world


DOWN: list[Step] = [
    *(NotSent(reason) for reason in ("connect", "dns", "tls")),
    *(Unknown(reason) for reason in ("timeout", "reset", "truncated")),
    TimeoutError(),
    *(reply(status) for status in (500, 502, 503, 504)),
]
ANSWERED: list[Step] = [
    *(reply(status) for status in (200, 302, 400, 401, 403, 404, 409, 422, 429)),
    *(Unknown(reason) for reason in ("garbled", "undecodable", "too_large")),
]


@pytest.mark.parametrize(("steps", "opens"), [(DOWN, True), (ANSWERED, False)])
def test_what_says_that_the_engine_is_down_counts_as_a_failure_and_every_answer_does_not(
    steps: list[Step], opens: bool
) -> None:
    for step in steps:
        world = Guarded(*[step] * 25)
        attempts = 0
        while world.script and not world.states:
            attempts += world.sends(ask(ONCE))
        assert world.states == ([("", "open")] if opens else []), step
        assert attempts == (20 if opens else 25)


def test_when_it_is_open_nothing_is_sent_and_it_is_said_when_to_come_back() -> None:
    world = opened()
    calls = len(world.calls)
    for later, retry_after in ((0.0, 5), (0.4, 5), (0.7, 4), (3.5, 1)):
        world.now += later
        error = world.failure(ask(request(), request()))
        assert (error.reason, error.retry_after) == ("breaker_open", retry_after)
        assert error.message == f"{engine.MESSAGES['breaker_open']} (ask)."
    assert (len(world.sent), len(world.calls), world.pauses) == (20, calls, [])


def test_it_closes_when_the_engine_is_well_again() -> None:
    world = opened()
    world.now += 5
    world.script = [404, 429, 200]  # each an answer
    assert [world.sends(ask(ONCE)) for _ in range(5)] == [1] * 5
    assert [state for _, state in world.states] == ["open", "probing", "closed"]


def test_each_account_has_its_own() -> None:
    world = opened()
    assert world.sends(ask(request(account="second"))) == 1
    assert world.sends(ask(request())) == 0


def test_without_one_an_engine_is_asked_however_often_it_fails() -> None:
    world = Guarded(*[503] * 100, guarded=False)
    assert sum(world.sends(ask(ONCE)) for _ in range(100)) == 100
    assert world.states == []


def test_repeats_are_attempts() -> None:
    world = Guarded(*[503] * 100)
    assert [world.sends(ask(request())) for _ in range(10)] == [2] * 10
    assert world.states == [("", "open")]
    assert world.failure(ask(request())).reason == "breaker_open"
    # Open after the first attempt, there is no second.
    world = Guarded(*[503] * 100)
    assert sum(world.sends(ask(ONCE)) for _ in range(19)) == 19
    error = world.failure(ask(request()))
    assert (error.reason, len(world.sent)) == ("breaker_open", 20)


def test_it_may_open_in_the_middle_of_a_conversation() -> None:
    world = Guarded(*[503] * 19, 200, *[503] * 20)

    def talks() -> Conversation[None]:
        yield request(repeatable=False)
        yield from ask(request(repeatable=False))

    for _ in range(19):
        world.failure(ask(ONCE))
    error = world.failure(talks())
    assert world.states == [("", "open")]
    assert error.reason == "breaker_open"


def test_what_was_never_tried_or_never_ended_counts_as_nothing() -> None:
    async def cancelled(world: Guarded) -> None:
        world.script = [asyncio.CancelledError()]
        with pytest.raises(asyncio.CancelledError):
            await world.engine.converse(ask(ONCE), world.now + 1)

    async def refused(world: Guarded) -> None:
        world.script = [ValueError("header")]
        with pytest.raises(BrokenContract, match="header"):
            await world.engine.converse(ask(ONCE), world.now + 1)

    async def late(world: Guarded) -> None:
        with pytest.raises(EngineUnavailable, match="in time"):
            await world.engine.converse(ask(ONCE), world.now)

    async def paused(world: Guarded) -> None:
        async def no() -> bool:
            return False

        with pytest.raises(EngineUnavailable, match="paused"):
            await world.engine.converse(ask(REDEEM), world.now + 1, Redemption(no))

    async def story(nothing: Any, times: int) -> None:
        world = Guarded(*[503] * 19)
        for _ in range(19):
            with pytest.raises(EngineUnavailable):
                await world.engine.converse(ask(ONCE), world.now + 1)
        for _ in range(times):
            await nothing(world)
        assert world.states == [], nothing.__name__
        # As a probe, it leaves the place to the next.
        world.script = [503]
        with pytest.raises(EngineUnavailable):
            await world.engine.converse(ask(ONCE), world.now + 1)
        world.now += 5
        await nothing(world)
        world.script = []
        assert await world.engine.converse(ask(ONCE), world.now + 1) == [200]

    for nothing, times in ((cancelled, 30), (refused, 30), (late, 30), (paused, 30)):
        asyncio.run(story(nothing, times))


def test_while_a_probe_is_under_way_others_are_refused_and_cancelling_it_makes_room() -> None:
    world = opened()
    world.now += 5
    asked = world.send

    async def story() -> None:
        answer = asyncio.Event()

        async def gated(*arguments: Any) -> EngineReply:
            await answer.wait()
            return await asked(*arguments)

        world.send = gated  # type: ignore[method-assign, assignment]
        for _ in range(3):
            probe = asyncio.create_task(world.engine.converse(ask(ONCE), world.now + 1))
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(EngineUnavailable) as refused:
                    await world.engine.converse(ask(ONCE), world.now + 1)
                assert (refused.value.reason, refused.value.retry_after) == ("breaker_open", 1)
            probe.cancel()
            await asyncio.wait([probe])
        answer.set()
        assert await world.engine.converse(ask(ONCE), world.now + 1) == [200]

    asyncio.run(story())


def test_the_figures_are_those_of_the_papers() -> None:
    assert (*(10, 20, 5.0, 0.2, 3),) == (
        breaker.WINDOW_S,
        breaker.LEAST_ATTEMPTS,
        breaker.OPEN_S,
        breaker.OPEN_JITTER,
        breaker.GOOD_PROBES,
    )
