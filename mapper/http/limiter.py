"""How many calls are let in: who comes when it is full is answered at once, before any JSON is read.

This is no limit of the server: what is answered is the contract's, per endpoint, and the server knows no endpoints.
Each endpoint has room of its own, so that a rush of validates cannot starve consume.

A call takes its room once its body is complete. Until then it costs nothing but the bytes it has sent, and those are
counted: whoever sends bodies slowly, to keep the room from others, would have to send many megabytes over and over.

**Room is no measure of time.** While an engine takes its time, hundreds of calls may be inside and harm nobody. What
harms is calls that want the processor: each waits for all before it. So behind the room there is a turnstile. In each
turn of the event loop one call is begun, or gone on with when its reply has come; all else is quick: bytes are read,
who comes when it is full is refused.

To go on with a call comes first, and takes longer than to begin one. So a call begins when another is done with, or
when so much time has passed as a whole call takes: a crowd that begins at once comes back as a crowd of replies, and
those wait for each other.

Validate is full when those who wait to begin would wait longer than they should, which is about as long as the engine
takes: so whoever is let in is answered in twice the usual time. Both are measured, so that this holds for small carts
and large ones, slow machines and fast ones. A burst is soon over, and to refuse it would be a pity; in a crowd that
stays everybody waits as long as the last one, for nothing: there half as many may wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mapper import threads as aside
from mapper.domain.errors import Overloaded

LEAST = 8
"""So many may wait in a burst, however long a turn takes."""
BURST = 1.5
"""Times patience: a crowd that has been there for longer stays. The rule is known as controlled delay: queue.acm.org,
Fail at Scale.
"""
FAIR = 4
"""Of so many turns one is for a call that waits to begin, whatever else waits."""
SPACING = 0.8
"""Of the time that a call takes, between two that begin: closer, and replies would wait; wider, and the processor."""

Places = deque[asyncio.Future[None]]


class Turnstile:
    """Of one event loop."""

    def __init__(self, patience_s: tuple[float, float], clock: Callable[[], float] = time.perf_counter) -> None:
        """`patience_s`: how long a call in a burst may have to wait before those that come after it are refused, if the
        engine takes no time, and at most.
        """
        self._least_patience_s, self._most_patience_s = patience_s
        self._engine_s = 0.0
        """What the engine takes, on average."""
        self._clock = clock
        self._urgent: Places = deque()
        self._others: Places = deque()
        self._turning = False
        """Whether there is a turn still to come."""
        self._pause: asyncio.Handle | None = None
        """That turn, where nobody is urgent and another must not begin yet."""
        self._turns = 0
        self._began = 0.0
        """When one of the others was let in."""
        self._balanced = True
        """Whether a call is done with since."""
        self._let: tuple[bool, float] | None = None
        """Who was let in for the turn that is (somebody urgent?), and when."""
        self._turn_s = {False: 0.001, True: 0.001}
        """What a turn takes on average: to begin a call, to go on with one."""
        self._crowded_since = 0.0
        """When the first of the others came who wait without a break."""
        self._left: float | None = None
        """When one of the others was let in and left some waiting."""
        self._pace_s = 0.001
        """From then until the next is let in, on average."""

    def is_full(self, expected: int = 0) -> bool:
        """Whether one more would wait too long. `expected`: so many are about to come."""
        waiting = len(self._others) + expected
        if waiting < LEAST // 2:  # so it is mostly, and this is asked for every call
            return False
        places = max(LEAST, self.patience_s / self._pace_s)
        is_burst = self._clock() < self._crowded_since + BURST * self.patience_s
        return waiting >= (places if is_burst else places / 2)

    @property
    def patience_s(self) -> float:
        return min(max(self._engine_s, self._least_patience_s), self._most_patience_s)

    def took(self, engine_s: float) -> None:
        """So long a call of the engine has taken."""
        self._engine_s += (engine_s - self._engine_s) / 64

    async def enter(self, *, urgent: bool) -> None:
        """Waits for a turn of one's own. Urgent is a call to go on with, and a consume."""
        now = self._clock()
        if urgent and self._pause is not None:
            self._pause.cancel()
            self._pause, self._turning = None, False
        if not self._turning and (urgent or self._must_pause_s(now) <= 0):
            self._let_in(now, urgent=urgent)
            return
        places = self._urgent if urgent else self._others
        if not self._others and not urgent:
            self._crowded_since = now
        place = asyncio.get_running_loop().create_future()
        places.append(place)
        if not self._turning:
            self._turn()
        await place

    def leave(self) -> None:
        """One of the others, who had been let in, is done with."""
        self._balanced = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Lets the next one in, and comes back in the next turn of the event loop, until nobody waits any more."""
        now = self._clock()
        self._pause = None
        if self._let is not None:
            urgent, since = self._let
            self._turn_s[urgent] += (now - since - self._turn_s[urgent]) / 16
            self._let = None
        self._turns += 1
        others, replies = _waiting(self._others), _waiting(self._urgent)
        if others and (self._turns % FAIR == 0 or not (replies or self._must_pause_s(now) > 0)):
            self._count(now)
            self._let_in(now, urgent=False, place=others.popleft())
        elif replies:
            self._let_in(now, urgent=True, place=replies.popleft())
        elif others:
            self._turning = True
            self._pause = asyncio.get_running_loop().call_later(self._must_pause_s(now), self._turn)
        else:
            self._turning, self._left = False, None

    def _must_pause_s(self, now: float) -> float:
        """How long none of the others may begin yet."""
        return 0.0 if self._balanced else self._began + SPACING * sum(self._turn_s.values()) - now

    def _let_in(self, now: float, *, urgent: bool, place: asyncio.Future[None] | None = None) -> None:
        self._let = urgent, now
        if not urgent:
            self._began, self._balanced = now, False
        if place is not None:
            place.set_result(None)
        self._turning = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _count(self, now: float) -> None:
        """One of the others is let in who had to wait."""
        if self._left is not None:
            self._pace_s += (now - self._left - self._pace_s) / 16
        self._left = now if len(self._others) > 1 else None


def _waiting(places: Places) -> Places:
    """Without those at its head who have gone meanwhile."""
    while places and places[0].done():
        places.popleft()
    return places


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
    expected: int = 0
    """Calls that have been let in and are about to come."""

    @property
    def is_full(self) -> bool:
        return self.is_crowded or self.bodies.held >= self.bodies.limit

    @property
    def is_crowded(self) -> bool:
        if self.taken + self.expected >= self.size:
            return True
        return not self.urgent and self.turnstile.is_full(self.expected)

    def check(self, size: int) -> None:
        """Raises `Overloaded` where a call with a body of this size had better not be begun."""
        if self.is_crowded or (not self.urgent and aside.is_full(size)):
            raise Overloaded


class Visit:
    """What one call occupies, from its head until it is answered. Raises `Overloaded` where there is no more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0
        self._inside = self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.bodies.held -= self._held
        self._room.taken -= self._inside
        if self._begun:
            self._room.turnstile.leave()

    def receive(self, size: int) -> None:
        """So many bytes of a body that is not complete."""
        self._held += size
        self._room.bodies.held += size
        if self._room.bodies.held > self._room.bodies.limit:
            raise Overloaded

    def go_in(self, size: int) -> None:
        """The body is complete, and so large."""
        self._room.check(size)  # things may have changed meanwhile
        self._inside = True
        self._room.taken += 1

    async def begin(self) -> None:
        """Waits for the turn in which work on the call may begin."""
        await self._room.turnstile.enter(urgent=self._room.urgent)
        self._begun = not self._room.urgent
