"""How many calls are let in: who comes when it is full is answered at once, before any JSON is read.

This is no limit of the server: what is answered is the contract's, per endpoint, and the server knows no endpoints.
Each endpoint has room of its own, so that a rush of validates cannot starve consume.

A call takes its room once its body is complete. Until then it costs nothing but the bytes it has sent, and those are
counted: whoever sends bodies slowly, to keep the room from others, would have to send many megabytes over and over.

**Room is no measure of time.** While an engine takes its time, hundreds of calls may be inside and harm nobody. What
harms is calls that want the processor: each waits for all before it. So behind the room there is a turnstile. In each
turn of the event loop one call is begun, or gone on with when its reply has come; all else is quick: bytes are read,
who comes when it is full is refused. Validate is full when those who wait to begin would wait longer than they should.
How long that is, is measured, so that it holds for small carts and large ones, on slow machines and on fast ones.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mapper.errors import Overloaded

LEAST = 8
"""So many may always wait, however long a turn takes."""


class Turnstile:
    """Of one event loop."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """`patience_s`: how long a call may have to wait before those that come after it are refused."""
        self._patience_s = patience_s
        self._clock = clock
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._turning = False
        self._turns = 0
        self._last: float | None = None
        """When one of the others went through and left some waiting."""
        self._pace_s = 0.001
        """From one of them to the next, on average."""

    @property
    def is_full(self) -> bool:
        return len(self._others) >= max(LEAST, self._patience_s / self._pace_s)

    async def enter(self, *, urgent: bool) -> None:
        """Waits for a turn of one's own. Urgent is a call to go on with, and a consume: two of three turns are theirs.

        With all of them, calls would come in bursts: a crowd begins, a crowd of replies comes. With half, those that
        wait to go on would never become fewer, since each call that begins will be one of them.
        """
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)
            return
        place = loop.create_future()
        (self._urgent if urgent else self._others).append(place)
        await place

    def _turn(self) -> None:
        self._turns += 1
        queues = (self._urgent, self._others) if self._turns % 3 else (self._others, self._urgent)
        for places in queues:
            while places:
                place = places.popleft()
                if place.done():  # it was cancelled
                    continue
                if places is self._others:
                    self._count()
                place.set_result(None)
                asyncio.get_running_loop().call_soon(self._turn)
                return
        self._turning, self._last = False, None

    def _count(self) -> None:
        now = self._clock()
        if self._last is not None:
            self._pace_s += (now - self._last - self._pace_s) / 64
        self._last = now if self._others else None


@dataclass
class Bodies:
    """All bodies that are being received, of all endpoints together; in bytes."""

    limit: int
    held: int = 0


@dataclass
class Room:
    """Of one endpoint."""

    size: int
    bodies: Bodies
    turnstile: Turnstile
    urgent: bool = False
    """Its calls go through the turnstile first, and however many wait."""
    taken: int = 0

    @property
    def is_full(self) -> bool:
        return self.is_crowded or self.bodies.held >= self.bodies.limit

    @property
    def is_crowded(self) -> bool:
        return self.taken >= self.size or (not self.urgent and self.turnstile.is_full)


class Visit:
    """What one call occupies, from its head until it is answered. Raises `Overloaded` where there is no more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0
        self._inside = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.bodies.held -= self._held
        self._room.taken -= self._inside

    def receive(self, size: int) -> None:
        """So many bytes of a body that is not complete."""
        self._held += size
        self._room.bodies.held += size
        if self._room.bodies.held > self._room.bodies.limit:
            raise Overloaded

    def go_in(self) -> None:
        """The body is complete."""
        if self._room.is_crowded:
            raise Overloaded  # it has become so meanwhile
        self._inside = True
        self._room.taken += 1

    async def begin(self) -> None:
        """Waits for the turn in which work on the call may begin."""
        await self._room.turnstile.enter(urgent=self._room.urgent)
