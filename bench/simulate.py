"""One worker under load, simulated: an event loop on one processor, an engine that takes its time, room for so many.

A turn of the loop is played as it is: first all that has arrived is read, requests and the engine's answers alike, then
comes the work, then the next turn. All times are in seconds.

Several workers need no more than this: connections are shared out at random, so each worker sees random arrivals at its
share of the rate; with a balancer that goes round it sees every k-th request (`every`).
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Protocol

from mapper.http import app
from mapper.http import limiter as gate

P99 = 2.3263478740408408
"""So many standard deviations above the mean lies the 99th percentile of the normal distribution."""

Draw = Callable[[random.Random], float]


class Admission(Protocol):
    one_by_one: bool
    """Whether there is a turnstile (`mapper.http.limiter`); else whatever is ready is worked on in the same turn."""

    def is_full(self, inside: int, waiting: int, now: float) -> bool:
        """Whether a call is refused that finds so many inside (the waiting ones included)."""
        ...

    def turned(self, seconds: float) -> None:
        """So long it took from one beginning to the next, while somebody waited."""
        ...

    def took(self, engine_s: float) -> None:
        """So long the engine took."""
        ...


@dataclass
class Fixed:
    """So many may be inside, whatever becomes of their time."""

    size: int
    one_by_one: bool = False

    def is_full(self, inside: int, waiting: int, now: float) -> bool:
        return inside >= self.size

    def turned(self, seconds: float) -> None:
        pass

    def took(self, engine_s: float) -> None:
        pass


@dataclass
class Turnstile:
    """As many may wait as will have been let in while the engine takes its time, or within the least or the most of
    `patience_s`; in a crowd that stays, half as many.
    """

    patience_s: tuple[float, float] = app.PATIENCE_S
    size: int = 512
    least: int = gate.LEAST
    one_by_one: bool = True
    pace_s: float = 0.001
    crowded_since: float = 0.0
    engine_s: float = 0.0

    def is_full(self, inside: int, waiting: int, now: float) -> bool:
        if not waiting:
            self.crowded_since = now
        shortest, longest = self.patience_s
        patience_s = min(max(self.engine_s, shortest), longest)
        places = max(self.least, patience_s / self.pace_s)
        is_burst = now < self.crowded_since + gate.BURST * patience_s
        return inside >= self.size or waiting >= (places if is_burst else places / 2)

    def turned(self, seconds: float) -> None:
        self.pace_s += (seconds - self.pace_s) / 16

    def took(self, engine_s: float) -> None:
        self.engine_s += (engine_s - self.engine_s) / 64


def _always_the_same(source: random.Random) -> float:
    return 1.0


@dataclass(frozen=True)
class Worker:
    """Processor time, in seconds: of a call, and of a turn of the loop in which nothing happens."""

    before_s: float
    """Of one call until the engine is asked."""
    after_s: float
    read_s: float = 0.0
    """To read anything at all: a request, an answer of the engine."""
    refuse_s: float = 0.0
    """To refuse what has been read."""
    turn_s: float = 0.0
    vary: Draw = _always_the_same
    """By what a call's work differs from the usual one's."""

    @property
    def call_s(self) -> float:
        return self.before_s + self.after_s + 2 * self.read_s


@dataclass(frozen=True)
class Good:
    arrived: float
    took: float
    engine: float
    """Of that, what the engine took."""


@dataclass
class Outcome:
    seconds: float = 0.0
    busy_s: float = 0.0
    good: list[Good] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    """How long each refusal took."""

    def took(self, share: float) -> float:
        return quantile([one.took for one in self.good], share)

    def added(self, share: float) -> float:
        """The time that was taken beyond the engine's: its median for 0.5."""
        return quantile([one.took - one.engine for one in self.good], share)

    @property
    def shed(self) -> float:
        return len(self.refused_s) / max(1, len(self.refused_s) + len(self.good))

    @property
    def goodput(self) -> float:
        return len(self.good) / self.seconds


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.inf


@dataclass
class _Call:
    arrived: float
    vary: float
    engine: float = 0.0


def simulate(
    worker: Worker, admission: Admission, arrivals: Iterator[float], wait: Draw, seconds: float, seed: int = 0
) -> Outcome:
    """What becomes of the calls that arrive at these moments, until `seconds`."""
    source, found = random.Random(seed), Outcome(seconds)
    arriving = next(arrivals, math.inf)
    asked: list[tuple[float, int, _Call]] = []
    """Calls that the engine has, by when it answers."""
    waiting: deque[_Call] = deque()
    answered: deque[_Call] = deque()
    now, number, turns = 0.0, 0, 0
    may_begin, counted = 0.0, math.inf
    while now < seconds:
        if not answered and not (waiting and now >= may_begin):
            now = max(now, min(arriving, asked[0][0] if asked else math.inf, may_begin if waiting else math.inf))
        began, now, turns = now, now + worker.turn_s, turns + 1
        while arriving <= began:
            now += worker.read_s
            inside = len(asked) + len(answered) + len(waiting)
            if admission.is_full(inside, len(waiting), now):
                now += worker.refuse_s
                found.refused_s.append(now - arriving)
            else:
                waiting.append(_Call(arriving, worker.vary(source)))
            arriving = next(arrivals, math.inf)
        while asked and asked[0][0] <= began:
            now += worker.read_s
            answered.append(heapq.heappop(asked)[2])
        if admission.one_by_one:
            fair = turns % gate.FAIR == 0
            begin = 1 if waiting and (fair or (not answered and began >= may_begin)) else 0
            go_on = 1 if answered and not begin else 0
        else:
            begin, go_on = len(waiting), len(answered)
        for _ in range(begin):
            call = waiting.popleft()
            if counted <= began:
                admission.turned(began - counted)
            counted, may_begin = began if waiting else math.inf, began + gate.SPACING * worker.call_s
            now += worker.before_s * call.vary
            call.engine, number = wait(source), number + 1
            heapq.heappush(asked, (now + call.engine, number, call))
        for _ in range(go_on):
            call = answered.popleft()
            now += worker.after_s * call.vary
            admission.took(call.engine)
            may_begin = 0.0
            found.good.append(Good(call.arrived, now - call.arrived, call.engine))
        found.busy_s += now - began
    return found


def at_random(rate: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process."""
    source, moment = random.Random(seed), 0.0
    while True:
        moment += source.expovariate(rate)
        yield moment


def in_bursts(rate: float, seed: int, size: float = 10.0) -> Iterator[float]:
    """Bursts at random moments; in each as many requests at once as chance will have it, `size` on average."""
    source = random.Random(seed)
    for moment in at_random(rate / size, seed + 1):
        count = 1
        while source.random() > 1 / size:
            count += 1
        yield from repeat(moment, count)


def every(arrivals: Iterator[float], count: int) -> Iterator[float]:
    """What one of `count` sees when a balancer goes round."""
    return islice(arrivals, 0, None, count)


def lognormal(median_s: float, p99_s: float) -> Draw:
    """Mostly about the median, and a long tail."""
    sigma = math.log(p99_s / median_s) / P99
    return lambda source: median_s * math.exp(source.gauss(0, sigma))


def erlang_b(load: float, servers: int) -> float:
    """The share that finds all servers taken, where nobody waits."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


def waiting(rate: float, work_s: float, vary: float) -> float:
    """Pollaczek and Khinchine: the mean time in the queue before one server; `vary`: the variation of work, squared."""
    busy = rate * work_s
    return busy * work_s * (1 + vary) / (2 * (1 - busy))
