"""So many calls at once; the rest waits in a queue as long as its deadline allows. Each endpoint has its own limiter.

Nobody is refused who could be answered in time. How long a call would wait is the queue's length times the recent time
of a call, divided by how many are in flight; how long it may wait is its deadline less what a call takes.
One exception (controlled delay; queue.acm.org, "Fail at Scale"): once a queue has not been empty for a second, nobody
in it waits longer than a fifth of the deadline. It is no burst then, and every call would wait as long, for nothing.
The first hundred or so may wait twice that: clients who each wait for their answer before they ask again are no
overload. Were a few of them refused they would come back at once, and refusals would take the time of answers.

A call that waits for the engine needs no processor, so hundreds may be in flight. Calls that want the processor hold
each other up, and the event loop with them: so a few begin in each of its turns, and the others wait in the queue, too.
Measured at five times capacity: without that a refusal took 1.5 s, good answers 2.5 s; with it 0.02 and 0.4.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mapper.domain.errors import Overloaded

STANDING_S: Final = 1.0
"""A queue that has not been empty for as long is no burst."""
STANDING_SHARE: Final = 0.2
"""Of the deadline: the longest wait in such a queue."""
CROWD: Final = 128
"""So many in a queue may be clients of whom each waits for its answer before it asks again."""
CROWD_SHARE: Final = 0.4
"""Of the deadline: the longest wait of those, however long the queue stands."""
DOOR_SHARE: Final = 0.15
"""The same at the door, while calls are shed from such a queue: who joins it then is meant to be answered."""
BATCH: Final = 2
"""Calls that begin in one turn of the event loop. With 5 a refusal at the door took twice as long."""


@dataclass(eq=False)
class Permit:
    """What one call occupies, from its head to its answer."""

    since: float = 0.0
    """When it was admitted; before that, when it joined the queue."""
    admitted: bool = False
    ahead: int = 0
    """Calls that waited before it when it joined the queue."""
    held: int = 0
    """Bytes of its body."""


class Limiter:
    """Of one endpoint, in one event loop."""

    def __init__(
        self, capacity: int, deadline_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`capacity`: the most calls at once. `max_bytes`: of the bodies of all calls that are not answered."""
        self.capacity = capacity
        self._crowd = min(CROWD, capacity // 2)
        self._passed = self._crowd * 5 // 4
        """So many may have passed the door before it closes: heads that are read in one turn all pass one look."""
        self.admitted = 0
        self.in_flight_bytes = 0
        self._deadline_s, self._max_bytes, self._clock = deadline_s, max_bytes, clock
        self._service_s = 0.0
        """From admission to the answer: a moving average."""
        self._spread_s = 0.0
        """How far from that a call usually is."""
        self._queue: OrderedDict[Permit, asyncio.Future[bool]] = OrderedDict()
        """First come, first served: each waits to hear whether it is admitted or shed."""
        self._queued_since = 0.0
        """When the queue last ceased to be empty. Where all in it had to be shed, as when the whole process has paused,
        what comes right after is no new queue."""
        self._shed_at = float("-inf")
        """When a call was last refused that had passed the door."""
        self._begun = 0
        """In this turn of the event loop."""
        self._turn_at = 0.0
        """When the first of them was."""
        self._pace_s = 0.0
        """Between two calls of this queue that begin, in turns in which as many begin as may: a moving average from 0.
        So a burst's first turns, in which the whole burst is read, refuse nobody."""
        self._timer: asyncio.TimerHandle | None = None

    def is_full(self) -> bool:
        """Whether one more call is to be refused at the door. A look that counts nothing."""
        shedding = self._clock() < self._shed_at + STANDING_S
        return self._is_late(self._crowd, DOOR_SHARE if shedding else STANDING_SHARE)

    def check(self) -> None:
        """Raises `Overloaded` where one more call would be refused."""
        if self._is_late(self._passed, STANDING_SHARE):
            self._shed_at = self._clock()
            raise Overloaded

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Whatever the call takes in the block is given back at its end."""
        permit = Permit()
        try:
            yield permit
        finally:
            self._release(permit)

    def hold(self, permit: Permit, size: int) -> None:
        """So many more bytes of its body. Raises `Overloaded`."""
        permit.held += size
        self.in_flight_bytes += size
        if self.in_flight_bytes > self._max_bytes:
            raise Overloaded

    async def acquire(self, permit: Permit) -> None:
        """Waits until the call may begin. Raises `Overloaded`."""
        self.check()
        permit.since, permit.ahead = self._clock(), len(self._queue)
        if not self._queue and permit.since >= self._fair(self._shed_at):
            self._queued_since, self._pace_s = permit.since, 0.0
        self._queue[permit] = place = asyncio.get_running_loop().create_future()
        self._advance()
        if not await place:
            raise Overloaded

    def _is_late(self, crowd: int, share: float) -> bool:
        """Whether one more call would wait too long. `share`: see `_latest`; of a queue longer than `crowd`."""
        if self.in_flight_bytes >= self._max_bytes:
            return True
        room, ahead = self.capacity - self.admitted, len(self._queue) + 1
        if room > 0 and not self._queue:
            return False
        now = self._clock()
        wait_s = max(ahead * self._pace_s, (ahead - room) * self._service_s / self.capacity)
        return now + wait_s > self._latest(now, CROWD_SHARE if ahead <= crowd else share)

    def _latest(self, joined: float, share: float) -> float:
        """Until when a call that joined the queue then may wait. `share`: of the deadline, once the queue stands."""
        fair = self._fair(joined, share)
        latest = max(fair, joined + self._deadline_s - self._service_s - self._spread_s)
        return min(latest, max(fair, self._queued_since + STANDING_S))

    def _fair(self, joined: float, share: float = STANDING_SHARE) -> float:
        return joined + share * self._deadline_s

    def _release(self, permit: Permit) -> None:
        self.in_flight_bytes -= permit.held
        self._queue.pop(permit, None)
        if permit.admitted:
            self.admitted -= 1
            off_s = self._clock() - permit.since - self._service_s
            self._service_s += off_s / 16
            self._spread_s += (abs(off_s) - self._spread_s) / 16
        self._advance()

    def _advance(self) -> None:
        """Admits as many as there is room for, from the head of the queue; sheds those that have waited too long."""
        loop, now = asyncio.get_running_loop(), self._clock()
        while self._queue:
            permit, place = next(iter(self._queue.items()))
            latest = self._latest(permit.since, CROWD_SHARE if permit.ahead < self._passed else STANDING_SHARE)
            if now < latest and (self.admitted >= self.capacity or self._begun >= BATCH):
                if self._timer is None:
                    self._timer = loop.call_later(latest - now, self._on_time)
                return
            del self._queue[permit]
            if place.done():  # cancelled
                continue
            if now < latest:
                self.admitted += 1
                permit.admitted, permit.since = True, now
                if not self._begun:
                    self._turn_at = now
                    loop.call_soon(self._on_turn)
                self._begun += 1
            else:
                self._shed_at = now
            place.set_result(permit.admitted)

    def _on_turn(self) -> None:
        if self._begun >= BATCH:
            self._pace_s += ((self._clock() - self._turn_at) / BATCH - self._pace_s) / 16
        self._begun = 0
        self._advance()

    def _on_time(self) -> None:
        self._timer = None
        self._advance()
