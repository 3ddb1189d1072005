"""So many calls at once; the rest waits in a queue as long as its deadline allows. Each endpoint has its own limiter.

Nobody is refused who could be answered in time. How long a call would wait is the queue's length times the recent time
of a call, divided by how many are in flight; how long it may wait is its deadline less what a call takes.
One exception (controlled delay; queue.acm.org, "Fail at Scale"): once a queue has not been empty for a second, nobody
in it waits longer than a fifth of the deadline. It is no burst then, and every call would wait as long, for nothing.

A call that waits for the engine needs no processor, so hundreds may be in flight. Calls that want the processor hold
each other up, and the event loop with them: so a few begin in each of its turns, and while there is a queue no more are
in flight than keep the engine and the processor busy.
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
BATCH: Final = 8
"""Calls that begin in one turn of the event loop."""
RUNNABLE: Final = 8
"""So many of the calls in flight may wait for the processor while there is a queue: enough to keep it busy."""


@dataclass(eq=False)
class Permit:
    """What one call occupies, from its head to its answer."""

    since: float = 0.0
    """When it was admitted; before that, when it joined the queue."""
    admitted: bool = False
    held: int = 0
    """Bytes of its body."""


class Limiter:
    """Of one endpoint, in one event loop."""

    def __init__(
        self, capacity: int, deadline_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`capacity`: the most calls at once. `max_bytes`: of the bodies of all calls that are not answered."""
        self._capacity = self._most = float(capacity)
        self.admitted = 0
        self.in_flight_bytes = 0
        self._deadline_s, self._max_bytes, self._clock = deadline_s, max_bytes, clock
        self._service_s = 0.0
        """From admission to the answer: a moving average."""
        self._spread_s = 0.0
        """How far from that a call usually is."""
        self._queue: OrderedDict[Permit, asyncio.Future[bool]] = OrderedDict()
        """First come, first served: each waits to hear whether it is admitted or shed."""
        self._beginning = 0
        """Calls that are admitted and have not begun, or that have begun in this turn of the event loop."""
        self._queued_since = 0.0
        """When the queue last ceased to be empty."""
        self._left = 0.0
        """When a call last left the queue."""
        self._timer: asyncio.TimerHandle | None = None

    def is_full(self) -> bool:
        """Whether one more call would be refused. A look that counts nothing."""
        if self.in_flight_bytes >= self._max_bytes:
            return True
        if self.admitted < self._capacity:
            return False
        now = self._clock()
        wait_s = (len(self._queue) + 1) * self._service_s / self._capacity
        return now + wait_s > self._latest(now, self._queued_since if self._queue else now)

    def check(self) -> None:
        """Raises `Overloaded` where one more call would be refused."""
        if self.is_full():
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
        now = self._clock()
        if not self.admitted or (not self._queue and now - self._left >= STANDING_S):
            self._capacity = self._most
        if self.admitted < self._capacity:
            self._admit(permit, now)
        else:
            if not self._queue:
                self._queued_since = now
            permit.since = now
            self._queue[permit] = place = asyncio.get_running_loop().create_future()
            self._advance()
            if not await place:
                raise Overloaded
        await self._begin(permit)

    async def _begin(self, permit: Permit) -> None:
        """Of calls that are admitted together some begin in each turn of the event loop: it stays awake for others."""
        turns = self._beginning // BATCH
        self._beginning += 1
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            asyncio.get_running_loop().call_soon(self._begun)
        self._adapt(self._clock() - permit.since)
        self._advance()

    def _begun(self) -> None:
        self._beginning -= 1

    def _adapt(self, late_s: float) -> None:
        """A call begins, so long after it was admitted. When the engine has answered it will wait as long again.

        The share of its time that a call waits for the processor is the share of calls that do so at any moment.
        """
        waiting = min(1.0, 2 * late_s / self._service_s) if self._service_s else 0.0
        least = RUNNABLE / 2 if self._queue else self._most / 2  # a crowd of whom none waits is let be
        self._capacity += RUNNABLE / self._capacity - waiting
        self._capacity = min(self._most, max(self._capacity, least))

    def _latest(self, joined: float, queued_since: float) -> float:
        """Until when a call that joined the queue then may wait."""
        standing = max(joined + STANDING_SHARE * self._deadline_s, queued_since + STANDING_S)
        return min(joined + self._deadline_s - self._service_s - 2 * self._spread_s, standing)

    def _admit(self, permit: Permit, now: float) -> None:
        self.admitted += 1
        permit.admitted, permit.since = True, now

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
        now = self._clock()
        while self._queue:
            permit, place = next(iter(self._queue.items()))
            latest = self._latest(permit.since, self._queued_since)
            if now < latest and self.admitted >= self._capacity:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(latest - now, self._on_time)
                return
            del self._queue[permit]
            self._left = now
            if place.done():  # cancelled
                continue
            if now < latest:
                self._admit(permit, now)
            place.set_result(permit.admitted)

    def _on_time(self) -> None:
        self._timer = None
        self._advance()
