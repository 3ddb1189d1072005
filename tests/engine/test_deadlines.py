"""Deadlines on a virtual clock: each rule holds for `asyncio.timeout`, too, which they stand in for."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from mapper.engine.deadlines import Deadlines
from tests import virtual_time

Within = Callable[[float], AbstractAsyncContextManager[None]]


@pytest.fixture(params=["deadlines", "asyncio"])
def within(request: pytest.FixtureRequest) -> Within:
    deadlines = Deadlines()

    @asynccontextmanager
    async def shared(seconds: float):  # type: ignore[no-untyped-def] # noqa: ANN202 - it is what the fixture says
        with deadlines.within(seconds):
            yield

    @asynccontextmanager
    async def own(seconds: float):  # type: ignore[no-untyped-def] # noqa: ANN202
        async with asyncio.timeout(seconds):
            yield

    return shared if request.param == "deadlines" else own


async def timed(work: Awaitable[object]) -> tuple[str, float]:
    """What became of it, and after how many seconds."""
    started = virtual_time.now()
    try:
        await work
    except (TimeoutError, asyncio.CancelledError, KeyError) as error:
        return type(error).__name__, round(virtual_time.now() - started, 2)
    return "done", round(virtual_time.now() - started, 2)


async def nap(within: Within, seconds: float, limit: float) -> None:
    async with within(limit):
        await asyncio.sleep(seconds)


def test_each_of_many_ends_at_its_own_deadline(within: Within) -> None:
    table = [
        # begun after, takes, may take, and ends
        (0.0, 1.0, 2.0, ("done", 1.0)),
        (0.0, 3.0, 2.0, ("TimeoutError", 2.0)),
        (0.1, 3.0, 0.5, ("TimeoutError", 0.5)),  # later begun, sooner over
        (0.2, 9.0, 8.0, ("TimeoutError", 8.0)),
        (0.3, 0.4, 0.2, ("TimeoutError", 0.2)),
        (0.3, 0.4, 0.2, ("TimeoutError", 0.2)),
        (5.0, 1.0, 0.0, ("TimeoutError", 0.0)),
        (20.0, 3.0, 1.0, ("TimeoutError", 1.0)),  # after a time without any
    ]

    async def one(begin: float, takes: float, limit: float) -> tuple[str, float]:
        await asyncio.sleep(begin)
        return await timed(nap(within, takes, limit))

    async def story() -> None:
        ends = await asyncio.gather(*(one(*row[:3]) for row in table))
        assert ends == [row[3] for row in table]

    virtual_time.run(story)


def test_an_own_error_is_no_timeout_and_leaves_no_deadline_behind(within: Within) -> None:
    async def fails() -> None:
        async with within(1.0):
            raise KeyError

    async def fails_late() -> None:
        async with within(1.0):
            try:
                await asyncio.sleep(9)
            except asyncio.CancelledError:
                raise KeyError from None

    async def story() -> None:
        assert await timed(fails()) == ("KeyError", 0.0)
        assert await timed(fails_late()) == ("KeyError", 1.0)
        assert await timed(asyncio.sleep(5)) == ("done", 5.0)

    virtual_time.run(story)


def test_the_inner_deadline_ends_the_inner_block_and_the_outer_one_the_outer(within: Within) -> None:
    async def both(inner: float, outer: float) -> str:
        try:
            async with within(outer):
                try:
                    async with within(inner):
                        await asyncio.sleep(9)
                except TimeoutError:
                    await asyncio.sleep(1)
                    return "inner"
        except TimeoutError:
            return "outer"
        return "none"

    async def story() -> None:
        assert [await both(1, 3), await both(3, 1), await both(2, 2)] == ["inner", "outer", "outer"]
        task = asyncio.current_task()
        assert task
        assert task.cancelling() == 0

    virtual_time.run(story)


def test_who_is_cancelled_from_outside_is_cancelled_even_at_the_deadline(within: Within) -> None:
    async def story() -> None:
        for moment in (0.5, 1.0):  # the second in one turn of the loop with the deadline
            task = asyncio.create_task(nap(within, 9, 1.0))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_at(virtual_time.now() + moment, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled()

    virtual_time.run(story)


def test_a_thousand_deadlines_that_are_kept_set_hardly_a_timer() -> None:
    """What it is for."""
    deadlines = Deadlines()
    timers = 0

    async def story() -> None:
        nonlocal timers
        loop = virtual_time.the_loop()
        call_at = loop.call_at

        def counted(*arguments: object) -> asyncio.TimerHandle:
            nonlocal timers
            timers += 1
            return call_at(*arguments)  # type: ignore[arg-type]

        loop.call_at = counted  # type: ignore[method-assign, assignment]
        for _ in range(1000):
            with deadlines.within(1.5):
                loop.now += 0.01
                await asyncio.sleep(0)

    virtual_time.run(story)
    assert timers < 20


def test_a_deadline_is_for_a_task() -> None:
    async def story() -> None:
        failed = asyncio.get_running_loop().create_future()

        def no_task() -> None:
            with pytest.raises(RuntimeError, match="task"), Deadlines().within(1):
                pass
            failed.set_result(None)

        asyncio.get_running_loop().call_soon(no_task)
        await failed

    virtual_time.run(story)
