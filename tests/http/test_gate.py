"""Who is let in, in which order, and when the next is refused."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from mapper import promotions
from mapper import threads as aside
from mapper.domain.errors import Overloaded
from mapper.http import app
from mapper.http.limiter import BURST, LEAST, Bodies, Room, Turnstile, Visit
from mapper.orders.rows import Answer
from mapper.promotions import Call, Service
from tests import fakes, virtual_time


class Loop:
    """A turnstile in virtual time, and what has gone through it."""

    def __init__(self, patience_s: float = 1.0) -> None:
        self.turnstile = Turnstile((patience_s, patience_s), virtual_time.now)
        self.passed: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, *names: str) -> None:
        """Those whose names begin with "u" are urgent."""
        for name in names:
            self.tasks[name] = asyncio.ensure_future(self._pass(name))
        await asyncio.sleep(0)

    async def _pass(self, name: str) -> None:
        await self.turnstile.enter(urgent=name.startswith("u"))
        self.passed.append(name)

    async def turn(self) -> list[str]:
        """Those who go through in the next turn, in which no time passes."""
        before = len(self.passed)
        await asyncio.sleep(0)
        return self.passed[before:]


def story(tell: Callable[[Loop], Awaitable[None]], patience_s: float = 1.0) -> None:
    async def run() -> None:
        await tell(Loop(patience_s))

    virtual_time.run(run)


def work(seconds: float) -> None:
    """Keeps the event loop busy."""
    virtual_time.the_loop().now += seconds


def test_who_comes_alone_goes_straight_through() -> None:
    async def tell(loop: Loop) -> None:
        alone, second = (loop.turnstile.enter(urgent=False) for _ in range(2))
        with pytest.raises(StopIteration):
            alone.send(None)
        assert asyncio.isfuture(second.send(None))
        second.close()

    story(tell)


def test_of_replies_one_is_gone_on_with_in_a_turn() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("u1", "u2", "u3", "u4")
        assert loop.passed == ["u1"]
        turns = [await loop.turn() for _ in range(8)]
        assert max(map(len, turns)) == 1
        assert loop.passed == ["u1", "u2", "u3", "u4"]
        await loop.arrive("u5")
        assert loop.passed[-1] == "u5"

    story(tell)


def test_calls_begin_no_faster_than_others_are_gone_on_with() -> None:
    async def tell(loop: Loop) -> None:
        began = virtual_time.now()
        for number in range(60):  # so much does it take to go on with a call
            await loop.arrive(f"u{number}")
            work(0.004)
            await loop.turn()
        loop.passed.clear()
        await asyncio.sleep(1)
        began = virtual_time.now()
        await loop.arrive("a", "b", "c", "d", "e")
        for _ in range(5):
            await loop.turn()
        assert loop.passed == ["a"]
        await asyncio.sleep(0.003)
        assert loop.passed == ["a"]
        await asyncio.sleep(0.002)
        assert loop.passed == ["a", "b"]
        # A reply is gone on with although others pause, and once a call is done with one of them begins.
        for reply in ("u1", "u2", "u3"):
            await loop.arrive(reply)
            loop.turnstile.leave()
            await loop.turn()
            await loop.turn()
        assert loop.passed == ["a", "b", "u1", "c", "u2", "d", "u3", "e"]
        await loop.arrive("f", "g")
        await loop.turn()
        loop.turnstile.leave()  # without having been gone on with: it was refused at once
        await loop.turn()
        await loop.turn()
        assert loop.passed[-1] == "f"
        assert virtual_time.now() < began + 0.006

    story(tell)


def test_replies_come_first_and_one_turn_of_four_is_for_who_waits_to_begin() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("first", "a1", "a2", *(f"u{number}" for number in range(1, 9)))
        for _ in range(14):
            await loop.turn()
        order = "".join(name[0] for name in loop.passed[1:])
        assert order == "uuuauuuauu", order
        assert [name for name in loop.passed if name[0] == "u"] == [f"u{number}" for number in range(1, 9)]

    story(tell)


def test_a_visit_that_is_over_lets_the_next_begin() -> None:
    async def tell(loop: Loop) -> None:
        room = Room(9, Bodies(9), loop.turnstile)
        began = virtual_time.now()

        async def visit() -> None:
            with Visit(room) as visit:
                visit.go_in(1)
                await visit.begin()  # and then it is refused, for its signature

        await asyncio.gather(*(visit() for _ in range(6)))
        assert virtual_time.now() == began

    story(tell)


def test_who_has_gone_meanwhile_takes_no_turn() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("a", "b", "c", "d")
        loop.tasks["b"].cancel()
        loop.tasks["c"].cancel()
        await asyncio.sleep(0.01)
        assert loop.passed == ["a", "d"]

    story(tell)


def test_it_is_full_when_the_next_would_wait_too_long_at_the_pace_of_the_last() -> None:
    async def limit(loop: Loop, took_s: float) -> list[int]:
        """How many may wait where a call takes so long: in a burst, and in a crowd that stays."""
        await loop.arrive("first", *(f"{took_s} {number}" for number in range(400)))
        for number in range(250):
            await loop.arrive(f"u{took_s} {number}")
            work(took_s)
            await loop.turn()
        for task in loop.tasks.values():
            task.cancel()
        await asyncio.sleep(1)
        found = []
        for waits_s in (0.0, BURST * loop.turnstile.patience_s + 0.001):
            loop.turnstile._others.append(asyncio.get_running_loop().create_future())
            loop.turnstile._crowded_since = virtual_time.now() - waits_s
            while not loop.turnstile.is_full():
                loop.turnstile._others.append(asyncio.get_running_loop().create_future())
            found.append(len(loop.turnstile._others))
            loop.turnstile._others.clear()
        return found

    async def tell(loop: Loop) -> None:
        # 50 ms are 50 turns of 1 ms, or 10 of 5 ms; of 100 ms there is none, but some may always wait.
        assert await limit(loop, 0.001) in ([49, 25], [50, 25], [51, 26])
        assert await limit(loop, 0.005) in ([10, 5], [11, 6])
        assert await limit(loop, 0.100) == [LEAST, LEAST // 2]

    story(tell, patience_s=0.050)


def test_a_crowd_is_old_when_somebody_has_waited_without_a_break() -> None:
    async def tell(loop: Loop) -> None:
        turnstile = loop.turnstile
        for _ in range(3):
            await loop.arrive(*(f"n{number}" for number in range(LEAST // 2 + 2)))
            assert not turnstile.is_full()
            await asyncio.sleep(BURST * turnstile.patience_s)  # each of these crowds is gone long before
            assert not turnstile._others
        await loop.arrive("first")
        turnstile._pace_s = 1.0
        for number in range(300):
            await loop.arrive(f"m{number}", f"l{number}")
            await asyncio.sleep(0.001)
            if turnstile.is_full():
                break
        assert len(turnstile._others) == LEAST
        assert not turnstile._others[0].done()
        await asyncio.sleep(0.003)
        assert LEAST // 2 <= len(turnstile._others) < LEAST
        assert not turnstile.is_full()
        turnstile._crowded_since -= BURST * turnstile.patience_s
        assert turnstile.is_full()

    story(tell)


def test_five_times_too_much_makes_nobody_wait_who_is_let_in() -> None:
    engine_s, begin_s, go_on_s, seconds = 0.030, 0.0005, 0.001, 4.0
    took: list[float] = []
    crowds: list[int] = []
    refused = 0

    async def call(turnstile: Turnstile, arrived: float) -> None:
        nonlocal refused
        if turnstile.is_full():
            refused += 1
            return
        await turnstile.enter(urgent=False)
        work(begin_s)
        await asyncio.sleep(engine_s)
        await turnstile.enter(urgent=True)
        crowds.append(len(turnstile._urgent))
        work(go_on_s)
        turnstile.leave()
        took.append(virtual_time.now() - arrived)

    async def tell(loop: Loop) -> None:
        source, until = random.Random(1), virtual_time.now() + seconds
        tasks, arrival = [], virtual_time.now()
        while arrival < until:
            arrival += source.expovariate(5 / (begin_s + go_on_s))
            if arrival > virtual_time.now():
                await asyncio.sleep(arrival - virtual_time.now())
            tasks.append(asyncio.create_task(call(loop.turnstile, arrival)))
        await asyncio.gather(*tasks)

    story(tell, patience_s=0.030)
    took.sort()
    assert len(took) * (begin_s + go_on_s) > 0.95 * seconds  # all of the processor is made use of
    assert refused > 3 * len(took)
    assert took[int(0.95 * len(took))] < engine_s + 0.025
    assert took[-1] < 0.110  # those of the first moment, who might have been a burst
    assert max(crowds) <= 5, "a crowd of calls has come back as a crowd of replies"


def test_a_call_may_wait_for_as_long_as_the_engine_takes() -> None:
    turnstile = Turnstile((0.030, 0.150))
    found = [turnstile.patience_s]
    for engine_s in (0.010, 0.080, 0.400):
        for _ in range(600):
            turnstile.took(engine_s)
        found.append(round(turnstile.patience_s, 3))
    assert found == [0.030, 0.030, 0.080, 0.150]


def test_an_engine_that_fails_makes_nobody_more_patient() -> None:
    async def run(*statuses: int) -> float:
        configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
        wire = fakes.FakeTransport()
        wire.pause, wire.script["validate"] = 0.03, list(statuses)
        made = app.create(configured, engine_transport=wire)
        data, headers = fakes.signed({"id": "c-1", "items": [{"sku": "S", "quantity": 1, "price": "1.00"}]})

        async def receive() -> Any:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": "/promotions/validate", "headers": headers}
        async with made.router.lifespan_context(made):
            await made(scope, receive, send)
        room: Room = cast("Any", made)._calls["/promotions/validate"]._room
        return room.turnstile._engine_s

    assert asyncio.run(run(400)) > 0.03 / 64
    assert asyncio.run(run(500, 500)) == 0.0


def test_a_turnstile_that_is_full_is_full_for_validate_alone() -> None:
    turnstile = Turnstile((0.0, 0.0))
    turnstile._others.extend([None] * LEAST)  # type: ignore[list-item]
    rooms = [Room(9, Bodies(9), turnstile, urgent=urgent) for urgent in (False, True)]
    assert [(room.is_full, room.is_crowded) for room in rooms] == [(True, True), (False, False)]


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_waiting_for_a_turn_is_part_of_the_time_to_answer(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    left: list[float] = []
    waited = 0.05

    async def begin(visit: Visit) -> None:
        await asyncio.sleep(waited)

    async def tell(service: Service, call: Call) -> Answer:
        left.append(call.deadline - service.clock())
        return Answer(200, b"{}", "ok")

    async def run() -> None:
        monkeypatch.setattr(Visit, "begin", begin)
        monkeypatch.setattr(promotions, operation, tell)
        configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
        made = app.create(configured, engine_transport=fakes.FakeTransport())

        async def receive() -> Any:
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": f"/promotions/{operation}", "headers": []}
        async with made.router.lifespan_context(made):
            await made(scope, receive, send)

    asyncio.run(run())
    assert left[0] <= {"validate": 1.5, "consume": 8.0}[operation] - waited


def test_large_carts_are_refused_while_others_wait_for_their_thread() -> None:
    async def tell() -> list[bool]:
        held = threading.Event()
        steps = [asyncio.ensure_future(aside.aside(aside.LARGE_BYTES, held.wait, 5.0)) for _ in range(aside.AT_ONCE)]
        await asyncio.sleep(0)
        refused = []
        for size, urgent in ((aside.LARGE_BYTES, False), (aside.LARGE_BYTES - 1, False), (aside.LARGE_BYTES, True)):
            room = Room(9, Bodies(9), Turnstile((1.0, 1.0)), urgent=urgent)
            with Visit(room) as visit:
                try:
                    visit.go_in(size)
                    refused.append(False)
                except Overloaded:
                    refused.append(True)
        held.set()
        assert all(await asyncio.gather(*steps))
        with Visit(Room(9, Bodies(9), Turnstile((1.0, 1.0)))) as visit:
            visit.go_in(aside.LARGE_BYTES)
        return refused

    assert asyncio.run(tell()) == [True, False, False]


def test_nobody_waits_for_a_large_cart() -> None:
    async def tell() -> int:
        until = time.perf_counter() + 0.3

        def step() -> None:
            while time.perf_counter() < until:
                pass

        waited, turns = asyncio.ensure_future(aside.aside(aside.LARGE_BYTES, step)), 0
        while not waited.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    before = sys.getswitchinterval()
    try:
        aside.switch_often()
        assert sys.getswitchinterval() < 0.001
        assert asyncio.run(tell()) > 20
    finally:
        sys.setswitchinterval(before)


def test_a_large_cart_is_refused_before_it_is_read_while_others_wait_for_their_thread() -> None:
    configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
    made: Any = app.create(configured, engine_transport=fakes.FakeTransport())
    answers: list[tuple[int, str]] = []

    async def receive() -> Any:
        raise AssertionError("its body is asked for")

    async def run() -> None:
        held = threading.Event()

        async def send(message: Any) -> None:
            if "body" in message:
                answers.append((status[-1], message["body"].decode()))
            else:
                status.append(message["status"])

        status: list[int] = []
        steps = [asyncio.ensure_future(aside.aside(aside.LARGE_BYTES, held.wait, 5.0)) for _ in range(aside.AT_ONCE)]
        headers = [(b"content-length", b"%d" % aside.LARGE_BYTES)]
        scope = {"type": "http", "method": "POST", "path": "/promotions/validate", "headers": headers}
        async with made.router.lifespan_context(made):
            await asyncio.sleep(0)
            await made(scope, receive, send)
            held.set()
            await asyncio.gather(*steps)

    asyncio.run(run())
    ((status, text),) = answers
    assert (status, "overloaded" in text) == (422, True)
