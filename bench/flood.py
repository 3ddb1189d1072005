"""The client that goes on sending whatever happens: more than can be answered, and to an engine that hangs.

As `load.open_loop`, but it keeps every single request: when it was due, how late it went out, when and how it was
answered. How late it went out says whether the client could keep up: a client that could not has measured itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from bench import load
from bench.rounds import percentile

_ALIVE = b"GET /livez HTTP/1.1\r\nHost: mapper.example\r\n\r\n"
_OVERLOADED, _LEFT_ALONE = b'"overloaded"', b'"breaker_open"'
_READ = b"\r\nx-request-id:"
"""In the head of each answer but the prepared ones: the call had been read, and waited in the queue."""
NEVER_S = 999.0

Event = tuple[float, Callable[[], None]]


class Fate(IntEnum):
    UNANSWERED = 0
    GOOD = 1
    REFUSED = 2
    """Told that the service is full: at the door, by prepared bytes."""
    SHED = 3
    """The same, after it has waited in the queue."""
    LEFT_ALONE = 4
    """Told that the circuit breaker is open."""
    OTHER = 5


def _fate(status: int, head: bytes, body: bytes) -> Fate:
    if status == 200:
        return Fate.GOOD
    if _OVERLOADED in body:
        return Fate.SHED if _READ in head else Fate.REFUSED
    return Fate.LEFT_ALONE if _LEFT_ALONE in body else Fate.OTHER


@dataclass(frozen=True)
class Phase:
    """What became of the requests that were due in a stretch of time. Times in ms, from when each was due."""

    rate: float
    """Sent, a second."""
    goodput: float
    """Good answers that came in this stretch, a second, whenever they had been due."""
    p50_ms: float
    p99_ms: float
    refused: int
    """At the door."""
    refused_p99_ms: float
    shed: int
    """From the queue."""
    shed_p99_ms: float
    left_alone: int
    """By the circuit breaker."""
    others: int
    unanswered: int
    longest_ms: float
    """Of all answers, good or not, and from when it was sent: so long had the service."""
    late_p99_ms: float
    """How late the client itself was."""


@dataclass(frozen=True)
class Flood:
    """One entry for each request, in the order in which they were due."""

    due_s: Sequence[float]
    fates: Sequence[Fate]
    times_ns: Sequence[int]
    late_ns: Sequence[int]

    def between(self, begin: float, end: float) -> Phase:
        numbers = [number for number, due in enumerate(self.due_s) if begin <= due < end]
        by_fate = {fate: [self.times_ns[n] for n in numbers if self.fates[n] is fate] for fate in Fate}
        came = sum(
            begin <= due + ns / 1e9 < end
            for due, ns, fate in zip(self.due_s, self.times_ns, self.fates, strict=True)
            if fate is Fate.GOOD
        )
        answered = [self.times_ns[n] - self.late_ns[n] for n in numbers if self.fates[n] is not Fate.UNANSWERED]
        return Phase(
            rate=round(len(numbers) / (end - begin), 1),
            goodput=round(came / (end - begin), 1),
            p50_ms=percentile(by_fate[Fate.GOOD], 0.5),
            p99_ms=percentile(by_fate[Fate.GOOD], 0.99),
            refused=len(by_fate[Fate.REFUSED]),
            refused_p99_ms=percentile(by_fate[Fate.REFUSED], 0.99) if by_fate[Fate.REFUSED] else 0.0,
            shed=len(by_fate[Fate.SHED]),
            shed_p99_ms=percentile(by_fate[Fate.SHED], 0.99) if by_fate[Fate.SHED] else 0.0,
            left_alone=len(by_fate[Fate.LEFT_ALONE]),
            others=len(by_fate[Fate.OTHER]),
            unanswered=len(by_fate[Fate.UNANSWERED]),
            longest_ms=percentile(answered, 1.0),
            late_p99_ms=percentile([self.late_ns[n] for n in numbers], 0.99),
        )

    def settled(self, begin: float, end: float, limit_ms: float, *, window_s: float = 0.1, lasting: int = 5) -> float:
        """Seconds from `begin` until `lasting` windows in a row are normal: all is well answered, and within the limit.

        With less than 100 requests in a window its 99th percentile is its longest. `NEVER_S` if that does not happen.
        """
        count = int(round((end - begin) / window_s, 6))
        normal = [True] * count
        for due, fate, ns in zip(self.due_s, self.fates, self.times_ns, strict=True):
            if begin <= due < begin + count * window_s and (fate is not Fate.GOOD or ns > limit_ms * 1e6):
                normal[min(count - 1, int((due - begin) / window_s))] = False
        for first in range(count - lasting + 1):
            if all(normal[first : first + lasting]):
                return round(first * window_s, 3)
        return NEVER_S


async def flood(
    port: int,
    requests: Sequence[bytes],
    moments: Sequence[float],
    connections: int,
    *,
    events: Sequence[Event] = (),
    patience_s: float = 2.5,
) -> Flood:
    """Sends at `moments` (seconds, in order), on `connections`. `events` happen meanwhile, at theirs.

    Where no connection is free a request waits for one, and is late. What is not answered `patience_s` after the last
    moment counts as unanswered.
    """
    count = len(moments)
    fates, times_ns, late_ns = [Fate.UNANSWERED] * count, [0] * count, [0] * count
    free: deque[load.Connection] = deque()
    waiting: deque[int] = deque()

    def on_answer(connection: load.Connection, status: int, ns: int) -> None:
        number = connection.ticket
        if number >= 0:
            times_ns[number] = ns
            fates[number] = _fate(status, connection.head, connection.body)
        if waiting:
            launch(connection, waiting.popleft())
        else:
            free.append(connection)

    def launch(connection: load.Connection, number: int) -> None:
        due = began_ns + int(moments[number] * 1e9)
        late_ns[number] = time.perf_counter_ns() - due
        connection.ticket = number
        connection.send(requests[number % len(requests)], due)

    def next_free() -> load.Connection | None:
        """The one that was used last, as HTTP clients do (Node's agent, Go's transport): most are spare."""
        while free:
            connection = free.pop()
            if connection.open:
                return connection
        return None

    opened = await load.connect(port, connections, on_answer)
    for connection in opened:
        # Each is used once beforehand: the first request of a connection is slower everywhere.
        connection.keep = True
        connection.send(_ALIVE, 0)
        while not free or free[-1] is not connection:  # noqa: ASYNC110 - over in a moment
            await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    began_ns = time.perf_counter_ns() + 50_000_000
    for moment, action in events:
        loop.call_later(0.05 + moment, action)
    number = 0
    while number < count:
        elapsed = (time.perf_counter_ns() - began_ns) / 1e9
        while number < count and moments[number] <= elapsed:
            if (idle := next_free()) is not None:
                launch(idle, number)
            else:
                waiting.append(number)
            number += 1
        await asyncio.sleep(0)  # never at rest: who sleeps is woken late, and whoever wakes it pays for that
    until = began_ns + int((moments[-1] + patience_s) * 1e9) if moments else 0
    while Fate.UNANSWERED in fates and time.perf_counter_ns() < until:  # noqa: ASYNC110 - nothing is measured any more
        await asyncio.sleep(0.02)
    load.close(opened)
    return Flood(moments, fates, times_ns, late_ns)
