"""The client: HTTP/1.1 over kept connections, as little as possible between the clock and the socket.

Closed loop: each connection sends its next request when the last is answered. Open loop: requests go out at moments
fixed beforehand, and their time counts from that moment, so that waiting for a slow answer counts, too.
"""

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

WARM_S = 0.15

Answered = Callable[["Connection", int, int], None]


class Lost(Exception):
    """The contender closed a connection, or speaks no HTTP that this client knows."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, on_answer: Answered) -> None:
        """`on_answer(connection, status, ns)`; ns: from `since` to the last byte."""
        self.on_answer = on_answer
        self.head, self.body = b"", b""
        """Of the last answer; kept only where `keep` is set."""
        self.keep = False
        self.open = True
        self.ticket = -1
        """For who sends to note what it was that was sent."""
        self._since = 0
        self._head = b""
        self._missing = -1
        self._status = 0
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False

    def send(self, request: bytes, since: int) -> None:
        self._since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            length = _LENGTH.search(data, 0, end + 2)
            if length is None:
                self.open = False
                raise Lost("an answer without content-length")
            self._head = b""
            self._status = int(data[9:12])
            self._missing = int(length[1])
            if self.keep:
                self.head = data[:end]
            data = data[end + 4 :]
        self._missing -= len(data)
        if self.keep:
            self._pieces.append(data)
        if self._missing == 0:
            self._missing = -1
            self.body = b"".join(self._pieces)
            self._pieces = []
            self.on_answer(self, self._status, time.perf_counter_ns() - self._since)


@dataclass
class Window:
    """What happened while it was measured: the times of good answers (200), how many others there were."""

    seconds: float = 0.0
    times_ns: list[int] = field(default_factory=list)
    others: int = 0
    unanswered: int = 0
    """Open loop: sent, and not answered by the end."""


async def connect(port: int, count: int, on_answer: Answered) -> list[Connection]:
    loop = asyncio.get_running_loop()
    # One after the other: a burst of new connections would be measured as the contender's slowness.
    return [(await loop.create_connection(lambda: Connection(on_answer), "127.0.0.1", port))[1] for _ in range(count)]


def close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.transport.abort()


async def once(port: int, request: bytes, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Status and body of one request."""
    answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_answer(connection: Connection, status: int, ns: int) -> None:
        answered.set_result(status)

    (connection,) = await connect(port, 1, on_answer)
    connection.keep = True
    try:
        connection.send(request, 0)
        return await asyncio.wait_for(answered, timeout_s), connection.body
    finally:
        close([connection])


async def closed_loop(
    port: int,
    requests: Sequence[bytes],
    in_flight: int,
    seconds: float,
    limit_s: float,
    mark: Callable[[], None],
    *,
    refused_pause_s: float = 0.0,
) -> Window:
    """Measures for `seconds`, begun when every connection has been answered once.

    With slow contenders it takes longer, up to `limit_s` for beginning and `limit_s` for measuring, until there are two
    answers per connection. `mark` is called at the beginning and at the end of what is measured. After an answer other
    than 200 a connection pauses for `refused_pause_s`: without, refusals come so fast that they are all there is.
    """
    window, measuring, stop, came = Window(), False, False, 0
    following = cycle(requests)
    loop = asyncio.get_running_loop()

    def on_answer(connection: Connection, status: int, ns: int) -> None:
        nonlocal came
        came += 1
        if measuring and status == 200:
            window.times_ns.append(ns)
        elif measuring:
            window.others += 1
        if stop:
            return
        if status == 200 or not refused_pause_s:
            send(connection)
        else:
            loop.call_later(refused_pause_s, send, connection)

    def send(connection: Connection) -> None:
        if connection.open:
            connection.send(next(following), time.perf_counter_ns())

    async def until(answers: int, least_s: float) -> None:
        began, before = time.perf_counter(), came
        await asyncio.sleep(least_s)
        while came - before < answers and time.perf_counter() - began < limit_s:  # noqa: ASYNC110 - costs an answer nothing
            await asyncio.sleep(0.02)

    connections = await connect(port, in_flight, on_answer)
    for connection in connections:
        send(connection)
    await until(in_flight, WARM_S)
    mark()
    measuring, started = True, time.perf_counter()
    await until(2 * in_flight, seconds)
    measuring, stop, window.seconds = False, True, time.perf_counter() - started
    mark()
    lost = sum(not connection.open for connection in connections)
    close(connections)
    if lost:
        raise Lost(f"{lost} of {in_flight} connections")
    return window


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments from 0 on, exponentially distributed: shoppers do not queue up in step."""
    source, moment, moments = random.Random(seed), 0.0, list[float]()
    while (moment := moment + source.expovariate(rate)) < seconds:
        moments.append(moment)
    return moments


async def open_loop(port: int, requests: Sequence[bytes], moments: Sequence[float], spare: int) -> Window:
    """Sends at `moments`, on connections that are free; `spare` are opened beforehand."""
    window = Window()
    free: list[Connection] = []

    waiting: deque[tuple[bytes, int]] = deque()

    def on_answer(connection: Connection, status: int, ns: int) -> None:
        if waiting:
            connection.send(*waiting.popleft())
        else:
            free.append(connection)
        if status == 200:
            window.times_ns.append(ns)
        else:
            window.others += 1

    connections = await connect(port, spare, on_answer)
    # Each once beforehand: the first request of a connection is slower everywhere.
    for connection, request in zip(connections, islice(cycle(requests), spare), strict=True):
        connection.send(request, time.perf_counter_ns())
    while len(free) < spare:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)
    window.times_ns.clear()
    loop = asyncio.get_running_loop()

    def send(request: bytes, due: int) -> None:
        if free:
            free.pop().send(request, due)
        else:
            waiting.append((request, due))

    began, began_ns = loop.time() + 0.05, time.perf_counter_ns() + 50_000_000
    for moment, request in zip(moments, cycle(requests), strict=False):
        loop.call_at(began + moment, send, request, began_ns + int(moment * 1e9))
    await asyncio.sleep(0.05 + (moments[-1] if moments else 0) + 0.3)
    window.seconds = moments[-1] if moments else 0.0
    window.unanswered = len(moments) - len(window.times_ns) - window.others
    close(connections)
    return window
