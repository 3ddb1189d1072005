"""Who is let in, in which order, and when the next is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mapper import app, promotions
from mapper.gate import LEAST, Bodies, Room, Turnstile, Visit
from mapper.ledger import Answer
from mapper.promotions import Call, Service
from tests import fakes


class Loop:
    """A turnstile on a clock of its own, and what has gone through it, in the turns of the event loop."""

    def __init__(self, patience_s: float = 1.0) -> None:
        self.time = 0.0
        self.turnstile = Turnstile(patience_s, lambda: self.time)
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

    async def turn(self, seconds: float = 0.0) -> list[str]:
        """Those who go through in the next turn, which takes so long."""
        before = len(self.passed)
        self.time += seconds
        await asyncio.sleep(0)
        return self.passed[before:]


def story(tell: Callable[[Loop], Awaitable[None]], patience_s: float = 1.0) -> None:
    async def run() -> None:
        await tell(Loop(patience_s))

    asyncio.run(run())


def test_who_comes_alone_goes_straight_through() -> None:
    async def tell(loop: Loop) -> None:
        alone, second = (loop.turnstile.enter(urgent=False) for _ in range(2))
        with pytest.raises(StopIteration):
            alone.send(None)
        assert asyncio.isfuture(second.send(None))
        second.close()

    story(tell)


def test_of_many_one_goes_through_in_a_turn() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("a", "b", "c", "d")
        assert loop.passed == ["a"]
        turns = [await loop.turn() for _ in range(8)]
        assert max(map(len, turns)) == 1
        assert loop.passed == ["a", "b", "c", "d"]
        await loop.arrive("e")
        assert loop.passed[-1] == "e"

    story(tell)


def test_of_three_turns_two_are_for_what_is_urgent() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("first", "a1", "a2", "a3", "u1", "u2", "u3", "u4", "u5")
        for _ in range(12):
            await loop.turn()
        order = "".join(name[0] for name in loop.passed[1:])
        assert order in ("auuauuau", "uauuauua", "uuauuaua"), order
        assert [name for name in loop.passed if name[0] == "u"] == ["u1", "u2", "u3", "u4", "u5"]

    story(tell)


def test_who_has_gone_meanwhile_takes_no_turn() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive("a", "b", "c", "d")
        loop.tasks["b"].cancel()
        loop.tasks["c"].cancel()
        for _ in range(4):
            await loop.turn()
        assert loop.passed == ["a", "d"]

    story(tell)


def test_it_is_full_when_the_next_would_wait_too_long_at_the_pace_of_the_last() -> None:
    async def tell(loop: Loop) -> None:
        await loop.arrive(*(f"n{number}" for number in range(900)))
        limits = []
        for took_s in (0.001, 0.005, 0.100):
            for _ in range(250):
                await loop.turn(took_s)
            waiting = len(loop.turnstile._others)
            loop.turnstile._others.clear()
            while not loop.turnstile.is_full:
                loop.turnstile._others.append(asyncio.get_running_loop().create_future())
            limits.append(len(loop.turnstile._others))
            for place in loop.turnstile._others:
                place.cancel()
            loop.turnstile._others.clear()
            await loop.arrive(*(f"m{took_s}{number}" for number in range(waiting)))
        # 50 ms are 50 turns of 1 ms, or 10 of 5 ms; of 100 ms there is none, but some may always wait.
        assert limits[0] in (50, 51)
        assert limits[1] in (10, 11)
        assert limits[2] == LEAST

    story(tell, patience_s=0.050)


def test_a_turnstile_that_is_full_is_full_for_validate_alone() -> None:
    turnstile = Turnstile(0.0)
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
