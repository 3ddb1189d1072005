"""Work on large carts in threads, outside the event loop."""

import asyncio
import sys
import threading
import time

import pytest

from mapper import threads


def test_large_cart_does_not_block_the_event_loop() -> None:
    async def scenario() -> int:
        until = time.perf_counter() + 0.3

        def step() -> None:
            while time.perf_counter() < until:
                pass

        waited, turns = asyncio.ensure_future(threads.run_in_thread(threads.LARGE_BYTES, step)), 0
        while not waited.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    before = sys.getswitchinterval()
    try:
        threads.switch_often()
        assert sys.getswitchinterval() < 0.001
        assert asyncio.run(scenario()) > 20
    finally:
        sys.setswitchinterval(before)


def test_large_carts_run_one_by_one_and_small_ones_at_once() -> None:
    at_once: list[int] = []
    running = 0

    def step() -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        time.sleep(0.01)
        running -= 1

    async def scenario() -> None:
        waiting = [asyncio.ensure_future(threads.run_in_thread(threads.LARGE_BYTES, step)) for _ in range(4)]
        await asyncio.sleep(0.005)
        assert await threads.run_in_thread(threads.LARGE_BYTES - 1, threading.get_ident) == threading.get_ident()
        assert not any(work.done() for work in waiting)
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert at_once == [1, 1, 1, 1]


def test_thread_errors_propagate_and_cancellation_returns_immediately() -> None:
    def fail() -> None:
        raise KeyError

    async def scenario() -> None:
        with pytest.raises(KeyError):
            await threads.run_in_thread(threads.LARGE_BYTES, fail)
        waited = asyncio.ensure_future(threads.run_in_thread(threads.LARGE_BYTES, time.sleep, 0.2))
        await asyncio.sleep(0.02)
        waited.cancel()
        began = time.perf_counter()
        await asyncio.wait({waited})
        assert waited.cancelled()
        assert time.perf_counter() - began < 0.15

    asyncio.run(scenario())
