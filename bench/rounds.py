"""The measuring: contenders take turns, round by round, in an order that changes.

A turn during which somebody else kept the processors busy is measured again, up to three times; the quietest counts.
"""

import asyncio
import gc
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import uvloop

from bench import load, machine
from bench.contenders import BY_KEY, Running, start, stop

NOISE = 0.15
"""Of a processor, spent by others: above this a turn is not believed."""
ATTEMPTS = 3
RATE = 150.0
"""Requests a second in the open loop."""

REFUSED_PAUSE_S = 0.05
"""After an answer other than 200, in the closed loop: a shop that is refused does not ask again at once."""

NEVER_MS = 99_999.0

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """`contenders`: who takes part, by key."""

    lines: int
    wait_ms: int
    in_flight: int
    rounds: int
    seconds: float
    contenders: tuple[str, ...]
    limit_s: float = 4.0
    """See `load.closed_loop`."""

    @property
    def name(self) -> str:
        return f"{self.lines} lines, engine {self.wait_ms} ms, {self.in_flight} in flight"


@dataclass
class Series:
    """One contender in one case: a figure for each round."""

    rps: list[float] = field(default_factory=list)
    """Good answers a second."""
    cpu_us: list[float] = field(default_factory=list)
    """The contender's own time on the processor for one good answer."""
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """The share of answers other than 200."""
    noise: list[float] = field(default_factory=list)
    """What others spent meanwhile, in processors."""


def percentile(times_ns: Sequence[int], share: float) -> float:
    """In ms, to the µs. Where nothing was answered in time: longer than anything that was."""
    ordered = sorted(times_ns)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3) if ordered else NEVER_MS


class Bench:
    def __init__(self, running: dict[str, Running], engine: "subprocess.Popen[bytes]", *, patient: bool) -> None:
        """`patient`: turns that somebody disturbs are measured again."""
        self.running, self._attempts = running, ATTEMPTS if patient else 1
        self._pids = [engine.pid, *(one.process.pid for one in running.values())]
        self._order = random.Random(0)

    def present(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key in self.running]

    def closed(self, case: Case) -> dict[str, Series]:
        """Each contender's figures with so many requests in flight."""
        found = {key: Series() for key in self.present(case.contenders)}
        for _ in range(case.rounds):
            for key in self._order.sample(list(found), len(found)):
                one = self.running[key]
                requests = one.requests(case.lines, case.wait_ms)
                self._quietest(partial(self._closed_turn, one, requests, case), found[key])
        return found

    def _quietest(self, turn: Callable[[], dict[str, float]], series: Series) -> None:
        turns: list[dict[str, float]] = []
        while len(turns) < self._attempts and (not turns or turns[-1]["noise"] > NOISE):
            turns.append(turn())
        for name, value in min(turns, key=lambda one: one["noise"]).items():
            getattr(series, name).append(value)

    def _closed_turn(self, one: Running, requests: list[bytes], case: Case) -> dict[str, float]:
        marks: list[tuple[int, machine.Others]] = []

        def mark() -> None:
            marks.append((machine.processor_ns(one.process.pid), machine.Others(self._pids)))

        turn = load.closed_loop(
            one.port, requests, case.in_flight, case.seconds, case.limit_s, mark, refused_pause_s=REFUSED_PAUSE_S
        )
        window = run(turn)
        (before, others), (after, _) = marks
        good = len(window.times_ns)
        return {
            "rps": round(good / window.seconds, 2),
            "cpu_us": round((after - before) / 1000 / max(good, 1), 1),
            "p50_ms": percentile(window.times_ns, 0.5),
            "p99_ms": percentile(window.times_ns, 0.99),
            "refused": round(window.others / max(1, good + window.others), 4),
            "noise": others.share(window.seconds),
        }

    def open(self, lines: int, wait_ms: int, rounds: int, seconds: float, keys: Iterable[str]) -> dict[str, Series]:
        """Each contender's figures with `RATE` requests a second, whether it answers or not."""
        found = {key: Series() for key in self.present(keys)}
        for number in range(rounds):
            moments = load.arrivals(RATE, seconds, number)
            for key in self._order.sample(list(found), len(found)):
                one = self.running[key]
                requests = one.requests(lines, wait_ms)
                self._quietest(partial(self._open_turn, one, requests, moments), found[key])
        return found

    def _open_turn(self, one: Running, requests: list[bytes], moments: list[float]) -> dict[str, float]:
        others, before = machine.Others(self._pids), machine.processor_ns(one.process.pid)
        started = time.perf_counter()
        window = run(load.open_loop(one.port, requests, moments, spare=32))
        good = len(window.times_ns)
        spent = machine.processor_ns(one.process.pid) - before
        return {
            "rps": round(good / window.seconds, 2),
            "cpu_us": round(spent / 1000 / max(good, 1), 1),
            "p50_ms": percentile(window.times_ns, 0.5),
            "p99_ms": percentile(window.times_ns, 0.99),
            "refused": round((window.others + window.unanswered) / max(1, len(moments)), 4),
            "noise": others.share(time.perf_counter() - started),
        }

    def holds(self, key: str, lines: int, count: int) -> list[float]:
        """For each of `count` large carts: the longest that a small request beside it had to wait, in ms."""
        one = self.running[key]
        return run(_holds(one.port, one.requests(lines, 0), count))

    def memory(self) -> dict[str, dict[str, float]]:
        return {
            key: {what: round(machine.memory_mb(one.process.pid, what), 1) for what in ("VmRSS", "VmHWM")}
            for key, one in self.running.items()
        }


def run(turn: Coroutine[Any, Any, T]) -> T:
    """On a loop of its own, without the collector of garbage, whose pauses would be taken for the contender's."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(turn)
    finally:
        gc.enable()


async def _holds(port: int, requests: list[bytes], count: int) -> list[float]:
    small = b"GET /livez HTTP/1.1\r\nHost: mapper.example\r\n\r\n"
    longest = 0
    answered = asyncio.Event()

    def on_large(connection: load.Connection, status: int, ns: int) -> None:
        assert status == 200, f"a large cart is answered with {status}"
        answered.set()

    def on_small(connection: load.Connection, status: int, ns: int) -> None:
        nonlocal longest
        longest = max(longest, ns)
        connection.send(small, time.perf_counter_ns())

    (large,) = await load.connect(port, 1, on_large)
    (prober,) = await load.connect(port, 1, on_small)
    prober.send(small, time.perf_counter_ns())
    found: list[float] = []
    for number in range(count):
        await asyncio.sleep(0.01)
        longest = 0
        answered.clear()
        large.send(requests[number % len(requests)], 0)
        await asyncio.wait_for(answered.wait(), 10)
        await asyncio.sleep(0.01)  # so that the small request that waited longest is answered, too
        found.append(round(longest / 1e6, 3))
    load.close([large, prober])
    return found


def starts(key: str, engine_port: int, count: int) -> dict[str, list[float]]:
    """Seconds from the start of the process to the first good answer of /readyz, and MB held then."""
    ready, memory = [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            running = start(BY_KEY[key], engine_port, folder)
            try:
                while not _is_ready(running.port):
                    if time.perf_counter() - began > 30:
                        raise TimeoutError("the service does not get ready")
                    time.sleep(0.002)
                ready.append(round(time.perf_counter() - began, 3))
                memory.append(round(machine.memory_mb(running.process.pid), 1))
            finally:
                stop(running.process)
    return {"ready_s": ready, "memory_mb": memory}


def _is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: mapper.example\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


ALL = tuple(BY_KEY)
ASKING = tuple(key for key, contender in BY_KEY.items() if contender.asks_engine)
COMPARED = ("service", "echo", "sdk")
SIZES, FLIGHTS = (1, 10, 20, 100, 1000), (1, 8, 32, 128)

JUDGED: dict[tuple[int, int], tuple[str, ...]] = {
    **{(20, in_flight): ALL for in_flight in FLIGHTS},
    (100, 8): tuple(key for key in ALL if key not in ("nginx", "httpx")),
    (10, 8): COMPARED,
    (1000, 8): ("service", "echo"),  # a round of the SDK's would take a minute
}
"""By lines and calls in flight, with an engine that answers at once: what an aim is about, and who takes part."""


def full() -> list[Case]:
    """Eight rounds where an aim is judged, fewer where something is only shown."""
    cases: list[Case] = []
    for lines in SIZES:
        for in_flight in FLIGHTS:
            if keys := JUDGED.get((lines, in_flight)):
                cases.append(Case(lines, 0, in_flight, 8, 2.5 if lines == 1000 else 0.8, keys))
            elif lines < 1000:
                cases.append(Case(lines, 0, in_flight, 4, 0.6, COMPARED))
    return cases + [Case(20, 30, in_flight, 4, 0.8, ASKING) for in_flight in FLIGHTS]


def quick() -> list[Case]:
    """What the aims need, briefly."""
    few = ("service", "echo")
    return [
        Case(20, 0, 8, 4, 0.4, ALL, 1.5),
        Case(20, 0, 32, 4, 0.4, ALL, 1.5),
        Case(20, 0, 128, 4, 0.4, ALL, 1.5),
        Case(20, 0, 1, 3, 0.4, ALL, 1.5),
        Case(100, 0, 8, 3, 0.4, ALL, 1.5),
        Case(10, 0, 8, 3, 0.3, few, 1.5),
        Case(1000, 0, 8, 3, 0.4, few, 1.5),
    ]
