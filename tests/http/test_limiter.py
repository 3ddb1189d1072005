"""Which calls are admitted, queued or shed, on a virtual clock."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

import pytest

from mapper.domain.errors import Overloaded
from mapper.http.limiter import BATCH, STANDING_S, STANDING_SHARE, Limiter
from tests import virtual_time

DEADLINE_S = 1.5
"""Of a validate."""


def limiter(capacity: int = 2, max_bytes: int = 1000) -> Limiter:
    return Limiter(capacity, DEADLINE_S, max_bytes, virtual_time.now)


class Crowd:
    """Calls by name, with the seconds from arrival until each was answered or shed.

    The event loop is busy for `read_s` with the head and body of each call, and for `work_s` once it has begun.
    """

    def __init__(
        self, limited: Limiter, engine_s: float = 0.1, work_s: float = 0.0, read_s: float = 0.0, *, door: bool = False
    ) -> None:
        """`door`: check the limiter first, as the server does for all calls that it reads in one turn."""
        self.limited, self.engine_s, self.work_s, self.read_s, self.door = limited, engine_s, work_s, read_s, door
        self.began: list[str] = []
        self.good: dict[str, float] = {}
        self.shed: dict[str, float] = {}
        self.refused: list[str] = []
        """At the door."""

    async def call(self, name: str) -> None:
        if self.door and self.limited.is_full():
            self.refused.append(name)
        else:
            await self.pass_door(name)

    async def pass_door(self, name: str) -> None:
        arrived = virtual_time.now()
        try:
            with self.limited.permit() as permit:
                virtual_time.running_loop().now += self.read_s
                await self.limited.acquire(permit)
                self.began.append(name)
                virtual_time.running_loop().now += self.work_s  # the event loop is busy
                await asyncio.sleep(self.engine_s)
            self.good[name] = virtual_time.now() - arrived
        except Overloaded:
            self.shed[name] = virtual_time.now() - arrived

    async def arrive(self, moments: Iterable[float]) -> None:
        began = virtual_time.now()
        tasks = []
        for number, moment in enumerate(moments):
            if began + moment > virtual_time.now():
                await asyncio.sleep(began + moment - virtual_time.now())
            name = f"{number:05}"
            if self.door and self.limited.is_full():
                self.refused.append(name)
            else:
                tasks.append(asyncio.create_task(self.pass_door(name)))
        await asyncio.gather(*tasks)
        assert (self.limited.admitted, self.limited.in_flight_bytes) == (0, 0)


def run_scenario(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()

    virtual_time.run(run)


# None lasts longer than a second: a longer queue is a standing queue, not a burst.
BURSTS = [(256, 0.1, 200), (256, 1.0, 200), (64, 0.1, 600), (16, 0.02, 700), (2, 0.1, 18), (1, 1.4, 1)]


@pytest.mark.parametrize(("capacity", "engine_s", "calls"), BURSTS)
def test_burst_that_can_be_answered_is_never_refused(capacity: int, engine_s: float, calls: int) -> None:
    """Neither when the limiter has seen no call yet, nor when it knows how long calls take."""

    async def scenario() -> None:
        limited = limiter(capacity)
        for _ in range(2):
            crowd = Crowd(limited, engine_s)
            await crowd.arrive([0.0] * calls)
            assert crowd.shed == {}
            assert crowd.began == sorted(crowd.began), "first come, first served"
            assert max(crowd.good.values()) <= DEADLINE_S

    run_scenario(scenario)


def test_call_waits_at_most_its_deadline_less_the_usual_service_time() -> None:
    async def scenario() -> None:
        limited = limiter(8)
        await Crowd(limited, 0.6).arrive(number / 10 for number in range(64))  # the limiter learns the service time
        crowd = Crowd(limited, 0.6)
        await crowd.arrive([0.0] * 100)
        assert len(crowd.good) == 16
        assert max(crowd.good.values()) == pytest.approx(1.2)
        assert max(crowd.shed.values()) <= DEADLINE_S - 0.3

    run_scenario(scenario)


def test_call_that_cannot_be_in_time_is_refused_at_once() -> None:
    async def scenario() -> None:
        limited = limiter(8)
        await Crowd(limited, 0.6).arrive(number / 10 for number in range(64))
        crowd = Crowd(limited, 0.6)
        await crowd.arrive([0.0] * 8 + [0.1] * 20)
        late = [waited for name, waited in crowd.shed.items() if name >= "00008"]
        assert len(late) > 5
        assert 0.0 in late

    run_scenario(scenario)


def test_calls_are_shed_by_their_deadline_while_the_engine_hangs() -> None:
    async def scenario() -> None:
        crowd = Crowd(limiter(4), engine_s=DEADLINE_S)
        await crowd.arrive(number / 20 for number in range(60))
        assert crowd.shed
        assert max(crowd.shed.values()) <= DEADLINE_S
        after = Crowd(crowd.limited, engine_s=0.01)
        await after.arrive(number / 100 for number in range(200))
        assert after.shed == {}

    run_scenario(scenario)


@pytest.mark.parametrize("times", [1.3, 2, 5])
def test_standing_queue_delays_calls_at_most_a_fifth_of_the_deadline(times: float) -> None:
    """Controlled delay."""
    capacity, engine_s, seconds = 32, 0.05, 4.0

    async def scenario() -> None:
        crowd, dice, moment = Crowd(limiter(capacity), engine_s), random.Random(1), 0.0
        moments = []
        while moment < seconds:
            moments.append(moment)
            moment += dice.expovariate(times * capacity / engine_s)
        await crowd.arrive(moments)
        assert len(crowd.good) >= 0.95 * seconds * capacity / engine_s
        standing = f"{sum(moment < 2 * STANDING_S for moment in moments):05}"
        good = [waited for name, waited in crowd.good.items() if name >= standing]
        shed = [waited for name, waited in crowd.shed.items() if name >= standing]
        assert max(good) <= STANDING_SHARE * DEADLINE_S + engine_s + 0.001
        assert max(shed) <= STANDING_SHARE * DEADLINE_S + 0.001
        if times > 2:
            assert sorted(shed)[int(0.9 * len(shed))] == 0.0, "most are refused at once"
        # Afterwards a burst is queued again.
        await asyncio.sleep(0.4)
        after = Crowd(crowd.limited, engine_s)
        await after.arrive([0.0] * 10 * capacity)
        assert after.shed == {}

    run_scenario(scenario)


@pytest.mark.parametrize("times", [2, 5])
def test_queue_for_the_processor_alone_is_a_standing_queue(times: int) -> None:
    """The capacity is never reached."""
    work_s, seconds = 0.002, 4.0

    async def scenario() -> None:
        crowd = Crowd(limiter(1000), 0.03, work_s)
        await crowd.arrive(number * work_s / times for number in range(int(times * seconds / work_s)))
        standing = f"{int(times * 2 * STANDING_S / work_s):05}"
        longest = max(waited for name, waited in [*crowd.good.items(), *crowd.shed.items()] if name >= standing)
        assert longest <= STANDING_SHARE * DEADLINE_S + 0.03 + 10 * BATCH * work_s
        assert len(crowd.good) * work_s >= 0.85 * seconds

    run_scenario(scenario)


def test_queue_shed_as_a_whole_is_still_a_standing_queue() -> None:
    """The process was paused during a rush: the calls that follow are not a burst on an idle service."""
    work_s, seconds, times = 0.002, 5.0, 5

    async def scenario() -> None:
        crowd = Crowd(limiter(256), 0.03, work_s, door=True)

        async def pause() -> None:
            await asyncio.sleep(2.5)
            virtual_time.running_loop().now += 0.8

        paused = asyncio.create_task(pause())
        await crowd.arrive(number * work_s / times for number in range(int(times * seconds / work_s)))
        await paused
        late = f"{int(times * 3.5 / work_s):05}"
        longest = max(waited for name, waited in [*crowd.good.items(), *crowd.shed.items()] if name >= late)
        assert longest <= STANDING_SHARE * DEADLINE_S + 0.03 + 10 * BATCH * work_s

    run_scenario(scenario)


@pytest.mark.parametrize("times", [2, 5])
def test_most_calls_past_the_door_of_a_standing_queue_are_answered(times: int) -> None:
    """Although all calls read in one turn saw the same queue."""
    work_s, seconds, at_once = 0.002, 6.0, 10

    async def scenario() -> None:
        crowd = Crowd(limiter(256), 0.03, work_s, read_s=0.0002, door=True)
        moments = [number // at_once * at_once * work_s / times for number in range(int(times * seconds / work_s))]
        await crowd.arrive(moments)
        standing = f"{int(times * 2 * STANDING_S / work_s):05}"
        shed = sum(name >= standing for name in crowd.shed)
        good = sum(name >= standing for name in crowd.good)
        assert shed <= 0.15 * good
        assert good * work_s >= 0.8 * (seconds - 2 * STANDING_S), "the processor has idled, or refused"

    run_scenario(scenario)


def test_burst_read_in_one_turn_is_queued() -> None:
    """The turn that reads hundreds of calls does not measure the turns that answer them."""

    async def scenario() -> None:
        limited = limiter(256)
        for _ in range(3):
            crowd = Crowd(limited, 0.1, work_s=0.0015, read_s=0.0002, door=True)
            await crowd.arrive([0.0] * 300 + [0.001] * 100)
            assert (crowd.refused, crowd.shed) == ([], {})
            await asyncio.sleep(0.5)

    run_scenario(scenario)


@pytest.mark.parametrize("work_s", [0.002, 0.004])
def test_closed_loop_of_128_clients_is_never_refused(work_s: float) -> None:
    """Each client calls again when it is answered, after up to half a second. The queue is never empty."""

    async def scenario() -> None:
        crowd = Crowd(limiter(256), 0.0, work_s=work_s, door=True)

        async def client(number: int) -> None:
            for turn in range(20):
                await crowd.call(f"{number} {turn}")

        await asyncio.gather(*map(client, range(128)))
        assert (crowd.refused, crowd.shed) == ([], {})
        assert max(crowd.good.values()) > 0.9 * 128 * work_s

    run_scenario(scenario)


def test_is_full_does_not_change_the_limiter() -> None:
    async def scenario() -> None:
        limited = limiter(1)
        assert [limited.is_full() for _ in range(1000)] == [False] * 1000
        crowd = Crowd(limited)
        await crowd.arrive([0.0] * 3)
        assert len(crowd.good) == 3

    run_scenario(scenario)


async def longest_turn(busy: Awaitable[None]) -> float:
    """The longest turn of the event loop while `busy` runs, in seconds."""
    longest, working = 0.0, asyncio.ensure_future(busy)
    while not working.done():
        began = virtual_time.now()
        await asyncio.sleep(0.001)
        longest = max(longest, virtual_time.now() - began)
    await working
    return longest


@pytest.mark.parametrize("engine_s", [0.01, 0.1, 0.5])
def test_burst_does_not_block_the_event_loop(engine_s: float) -> None:
    """Two hundred calls at once, each with a millisecond of processor time to begin."""

    async def scenario() -> None:
        crowd = Crowd(limiter(256), engine_s, work_s=0.001)
        # A timer fires one turn late, and its waiter runs one turn after that.
        assert await longest_turn(crowd.arrive([0.0] * 200)) <= 3.1 * BATCH * 0.001
        assert len(crowd.good) == 200
        assert crowd.began == sorted(crowd.began)

    run_scenario(scenario)


@pytest.mark.parametrize(("engine_s", "enough"), [(0.0, 40), (0.03, 90), (0.1, 160)])
def test_queue_keeps_in_flight_calls_to_what_engine_and_processor_need(engine_s: float, enough: int) -> None:
    work_s, seconds, most = 0.001, 2.5, 256

    async def scenario() -> None:
        limited = limiter(most)
        crowd = Crowd(limited, engine_s, work_s)
        rush = asyncio.create_task(crowd.arrive(number * work_s / 2 for number in range(int(2 * seconds / work_s))))
        await asyncio.sleep(1.5)
        in_flight = []
        while not rush.done():
            in_flight.append(limited.admitted)
            await asyncio.sleep(0.05)
        in_flight.sort()
        assert in_flight[len(in_flight) // 2] < enough
        assert len(crowd.good) * work_s > 0.85 * seconds, "the processor has idled"
        await asyncio.sleep(STANDING_S)
        after = Crowd(limited, 1.0)
        await after.arrive([0.0] * most)
        assert after.shed == {}

    run_scenario(scenario)


@pytest.mark.parametrize("capacity", [1, 3, 20])
def test_permits_and_bytes_are_released_after_any_error_or_cancellation(capacity: int) -> None:
    async def call(limited: Limiter, dice: random.Random) -> None:
        with limited.permit() as permit:
            limited.reserve(permit, dice.randrange(200))
            await asyncio.sleep(dice.choice([0, 0, 0.01]))
            limited.reserve(permit, dice.randrange(200))
            await limited.acquire(permit)
            assert limited.admitted <= capacity
            await asyncio.sleep(dice.choice([0, 0.01, 0.5, 2.0]))
            if dice.random() < 0.2:
                raise KeyError

    async def scenario() -> None:
        dice = random.Random(capacity)
        for _ in range(60):
            limited = limiter(capacity, max_bytes=4000)
            tasks = [asyncio.create_task(call(limited, dice)) for _ in range(40)]
            for task in tasks:
                if dice.random() < 0.5:
                    asyncio.get_running_loop().call_later(dice.choice([0, 0, 0.01, 0.02, 0.5, 1.5]), task.cancel)
                if dice.random() < 0.3:
                    await asyncio.sleep(dice.choice([0, 0.01]))
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (limited.admitted, limited.in_flight_bytes, len(limited._queue)) == (0, 0, 0)

    run_scenario(scenario)


def test_call_cancelled_on_admission_passes_its_permit_on() -> None:
    async def scenario() -> None:
        limited = limiter(1)
        crowd = Crowd(limited)
        with limited.permit() as first:
            await limited.acquire(first)
            waiting = [asyncio.create_task(crowd.call(name)) for name in "abc"]
            await asyncio.sleep(0)
            waiting[0].cancel()  # while it waits
            await asyncio.wait([waiting[0]])
            assert len(limited._queue) == 2, "the cancelled call still counts"
        waiting[1].cancel()  # it has just been admitted
        await asyncio.gather(*waiting, return_exceptions=True)
        assert crowd.began == ["c"]
        assert limited.admitted == 0

    run_scenario(scenario)


def test_bytes_of_all_bodies_in_flight_are_limited() -> None:
    async def scenario() -> None:
        limited = limiter(max_bytes=100)
        with limited.permit() as first, limited.permit() as second:
            limited.reserve(first, 60)
            limited.reserve(first, 30)
            assert not limited.is_full()
            with pytest.raises(Overloaded):
                limited.reserve(second, 20)
            assert limited.is_full()
        limited.check()

    run_scenario(scenario)
