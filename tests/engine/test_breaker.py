"""The circuit breaker on a test clock; then inside an engine, over a scripted wire."""

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
"""Seconds to wait, how the attempts end, and how many there are."""


class Bench:
    def __init__(self, luck: float = 0.5) -> None:
        self.now, self.luck = 1000.0, luck
        self.states: list[str] = []
        self.breaker = Breaker(lambda: self.now, lambda: self.luck, self.states.append)

    def play(self, *steps: Part) -> int:
        """Returns how many attempts were let through."""
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
"""This opens the breaker."""


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
        # Within the last ten seconds, including the current one.
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
        # Attempts without a verdict do not count.
        ([(0, NOTHING, 100), (0, BAD, 19)], False),
        ([(0, BAD, 19), (0, NOTHING, 100)], False),
    ],
)
def test_breaker_opens_when_half_of_recent_attempts_failed(steps: Sequence[Part], opens: bool) -> None:
    bench = Bench()
    bench.play(*steps)
    assert bench.states == (["open"] if opens else [])


@pytest.mark.parametrize(("luck", "seconds"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_open_time_is_five_seconds_with_jitter(luck: float, seconds: float) -> None:
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
        # Three good probes, at any time.
        ([(5, GOOD, 2)], ["probing"]),
        ([(5, GOOD, 3)], ["probing", "closed"]),
        ([(5, GOOD, 1), (99, GOOD, 1), (99, GOOD, 1)], ["probing", "closed"]),
        # One failed probe starts over.
        ([(5, BAD, 1)], ["probing", "open"]),
        ([(5, GOOD, 2), (0, BAD, 1), (4.9, GOOD, 1)], ["probing", "open"]),
        ([(5, GOOD, 2), (0, BAD, 1), (5, GOOD, 2)], ["probing", "open", "probing"]),
        ([(5, GOOD, 2), (0, BAD, 1), (5, GOOD, 3)], ["probing", "open", "probing", "closed"]),
        # A probe without a verdict changes nothing.
        ([(5, NOTHING, 9)], ["probing"]),
        ([(5, GOOD, 2), (0, NOTHING, 9), (0, GOOD, 1)], ["probing", "closed"]),
        # Once closed, it has forgotten earlier failures.
        ([(5, GOOD, 3), (0, BAD, 19)], ["probing", "closed"]),
        ([(5, GOOD, 3), (0, BAD, 20)], ["probing", "closed", "open"]),
    ],
)
def test_three_good_probes_close_breaker_and_failed_one_reopens_it(steps: Sequence[Part], states: list[str]) -> None:
    bench = Bench()
    bench.play(OPENED, *steps)
    assert bench.states == ["open", *states]


def test_only_one_probe_runs_at_a_time() -> None:
    for end in (GOOD, NOTHING):
        bench = Bench()
        bench.play(OPENED)
        bench.now += 5
        probe = bench.breaker.enter()
        assert probe is not None
        assert bench.breaker.enter() is None
        bench.breaker.leave(probe, good=end)
        assert bench.breaker.enter() is not None


def test_attempts_started_before_state_change_are_ignored() -> None:
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


def test_closed_breaker_costs_under_10_microseconds() -> None:
    bench = Bench()

    def attempt() -> None:
        entered = bench.breaker.enter()
        assert entered is not None
        bench.breaker.leave(entered, good=True)

    seconds = min(timeit.repeat(attempt, number=1000, repeat=5)) / 1000
    assert seconds < 10e-6  # about 0.6 in practice; the margin is for slow machines


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
        """Returns how many requests the conversation sent."""
        before = len(self.sent)
        with contextlib.suppress(EngineUnavailable):
            self.hold(conversation)
        return len(self.sent) - before


def opened() -> Guarded:
    """A world whose breaker for account "" has just opened: twenty attempts have failed."""
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
def test_only_failures_of_a_down_engine_open_breaker(steps: list[Step], opens: bool) -> None:
    for step in steps:
        world = Guarded(*[step] * 25)
        attempts = 0
        while world.script and not world.states:
            attempts += world.sends(ask(ONCE))
        assert world.states == ([("", "open")] if opens else []), step
        assert attempts == (20 if opens else 25)


def test_open_breaker_sends_nothing_and_returns_retry_after() -> None:
    world = opened()
    calls = len(world.calls)
    for later, retry_after in ((0.0, 5), (0.4, 5), (0.7, 4), (3.5, 1)):
        world.now += later
        error = world.failure(ask(request(), request()))
        assert (error.reason, error.retry_after) == ("breaker_open", retry_after)
        assert error.message == f"{engine.MESSAGES['breaker_open']} (ask)."
    assert (len(world.sent), len(world.calls), world.pauses) == (20, calls, [])


def test_breaker_closes_when_engine_answers_again() -> None:
    world = opened()
    world.now += 5
    world.script = [404, 429, 200]  # each an answer
    assert [world.sends(ask(ONCE)) for _ in range(5)] == [1] * 5
    assert [state for _, state in world.states] == ["open", "probing", "closed"]


def test_each_account_has_its_own_breaker() -> None:
    world = opened()
    assert world.sends(ask(request(account="second"))) == 1
    assert world.sends(ask(request())) == 0


def test_engine_without_breaker_is_always_asked() -> None:
    world = Guarded(*[503] * 100, guarded=False)
    assert sum(world.sends(ask(ONCE)) for _ in range(100)) == 100
    assert world.states == []


def test_retries_count_as_attempts() -> None:
    world = Guarded(*[503] * 100)
    assert [world.sends(ask(request())) for _ in range(10)] == [2] * 10
    assert world.states == [("", "open")]
    assert world.failure(ask(request())).reason == "breaker_open"
    # If the first attempt opens it, there is no second.
    world = Guarded(*[503] * 100)
    assert sum(world.sends(ask(ONCE)) for _ in range(19)) == 19
    error = world.failure(ask(request()))
    assert (error.reason, len(world.sent)) == ("breaker_open", 20)


def test_breaker_may_open_during_a_conversation() -> None:
    world = Guarded(*[503] * 19, 200, *[503] * 20)

    def talks() -> Conversation[None]:
        yield request(repeatable=False)
        yield from ask(request(repeatable=False))

    for _ in range(19):
        world.failure(ask(ONCE))
    error = world.failure(talks())
    assert world.states == [("", "open")]
    assert error.reason == "breaker_open"


def test_unsent_and_cancelled_attempts_do_not_count() -> None:
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
        # As a probe, it makes room for the next.
        world.script = [503]
        with pytest.raises(EngineUnavailable):
            await world.engine.converse(ask(ONCE), world.now + 1)
        world.now += 5
        await nothing(world)
        world.script = []
        assert await world.engine.converse(ask(ONCE), world.now + 1) == [200]

    for nothing, times in ((cancelled, 30), (refused, 30), (late, 30), (paused, 30)):
        asyncio.run(story(nothing, times))


def test_other_calls_are_refused_until_probe_ends() -> None:
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


def test_breaker_constants_are_as_specified() -> None:
    assert (*(10, 20, 5.0, 0.2, 3),) == (
        breaker.WINDOW_S,
        breaker.LEAST_ATTEMPTS,
        breaker.OPEN_S,
        breaker.OPEN_JITTER,
        breaker.GOOD_PROBES,
    )
