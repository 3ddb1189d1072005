"""Limits how many calls run at once; the others wait in a queue. Each endpoint has a limiter of its own.

A call is refused only if it could not be answered within its deadline. Its wait is estimated as the length of the queue
times the recent duration of a call, divided by the capacity. It may wait for its deadline less that duration.

Exception (controlled delay; queue.acm.org, "Fail at Scale"): a queue that has not been empty for a second is standing.
That is an overload and no burst, and no call in it waits longer than a fifth of the deadline. The first hundred or so
may wait twice as long, since they may be a closed loop: clients who each wait for an answer before they send the next
request. That is no overload, and refused clients would come back at once.

A call that waits for the engine needs no CPU, so hundreds may be in flight. Calls that need the CPU delay each other,
and the event loop. So only a few start in each turn of the event loop, and the others stay in the queue. Measured at
five times capacity: a refusal took 1.5 s and a good answer 2.5 s without this, 0.02 s and 0.4 s with it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Self

from mapper.domain.errors import Overloaded

# Calls at once, per process. A call that waits for the engine costs only memory: if the engine takes 1.5 s, 256 calls
# at once are 170 a second. Each endpoint has its own capacity, so that validates cannot starve consume.
VALIDATE_CAPACITY = 256
CONSUME_CAPACITY = 64
CANCEL_CAPACITY = 8
LARGE_CAPACITY = 8
"""How many large carts may be in flight. A thread computes one at a time, so that more would all be late together."""

STANDING_S: Final = 1.0
"""A queue that has not been empty for this long is standing."""
STANDING_SHARE: Final = 0.2
"""The longest wait in a standing queue, as a share of the deadline."""
CLOSED_LOOP: Final = 128
"""The first calls of a queue, which may come from clients in a closed loop."""
CLOSED_LOOP_SHARE: Final = 0.4
"""The longest wait of those in a standing queue, as a share of the deadline."""
DOOR_SHARE: Final = 0.15
"""The longest wait with which the door admits a call to a standing queue that sheds calls, as a share of the deadline.
It is less than `STANDING_SHARE`, so that an admitted call is not shed later."""
BATCH: Final = 2
"""Calls that start in one turn of the event loop. With 5 a refusal at the door took twice as long."""


class Permit:
    """What one call occupies, from its head to its answer: released at the end of its `with` block."""

    def __init__(self, limiter: "Limiter") -> None:
        self._limiter = limiter
        self.since = 0.0
        """When it was admitted; before that, when it joined the queue."""
        self.admitted = False
        self.ahead = 0
        """The length of the queue when it joined."""
        self.body_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limiter.release(self)


class Limiter:
    """The limiter of one endpoint, in one event loop.

    The server asks `is_full` when it has read a head: the door. A call that has passed it has a `permit` until its
    answer, and is then refused by `check`, `reserve` or `acquire` only.
    """

    def __init__(
        self, capacity: int, deadline_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`capacity`: the most calls at once. `max_bytes`: of the bodies of all calls that are not answered yet."""
        self.capacity = capacity
        self._door_crowd = min(CLOSED_LOOP, capacity // 2)
        """The first calls of the queue, which may wait for `CLOSED_LOOP_SHARE`, as counted at the door."""
        self._queue_crowd = self._door_crowd * 5 // 4
        """The same behind the door: more, since all heads that are read in one turn pass before any of them queues."""
        self.admitted = 0
        self.in_flight_bytes = 0
        self._deadline_s, self._max_bytes, self._clock = deadline_s, max_bytes, clock
        self._service_s = 0.0
        """From admission to the answer: a moving average."""
        self._deviation_s = 0.0
        """The mean deviation from that: a moving average."""
        self._queue: OrderedDict[Permit, asyncio.Future[bool]] = OrderedDict()
        """First come, first served. The result of the future: whether the call is admitted (or shed)."""
        self._queued_since = 0.0
        """When the queue last ceased to be empty. If all its calls had to be shed, as after the process was paused, the
        next call continues the same queue."""
        self._shed_at = float("-inf")
        """When a call that had passed the door was last refused."""
        self._started = 0
        """Calls that started in this turn of the event loop."""
        self._turn_at = 0.0
        """When the first of them did."""
        self._interval_s = 0.0
        """From one start to the next, over the turns in which `BATCH` calls start: a moving average. It begins at 0, so
        that the first turns of a burst, in which all its requests are read, refuse none."""
        self._timer: asyncio.TimerHandle | None = None

    def is_full(self) -> bool:
        """Whether a new call must be refused at the door. Changes nothing."""
        shedding = self._clock() < self._shed_at + STANDING_S
        return self._would_wait_too_long(self._door_crowd, DOOR_SHARE if shedding else STANDING_SHARE)

    def check(self) -> None:
        """Raises `Overloaded` if a new call would wait too long."""
        if self._would_wait_too_long(self._queue_crowd, STANDING_SHARE):
            self._shed_at = self._clock()
            raise Overloaded

    def permit(self) -> Permit:
        """Returns the permit of a new call, for a `with` block."""
        return Permit(self)

    def reserve(self, permit: Permit, size: int) -> None:
        """Adds bytes of the call's body. Raises `Overloaded`."""
        permit.body_bytes += size
        self.in_flight_bytes += size
        if self.in_flight_bytes > self._max_bytes:
            raise Overloaded

    async def acquire(self, permit: Permit) -> None:
        """Waits until the call may start. Raises `Overloaded`."""
        self.check()
        permit.since, permit.ahead = self._clock(), len(self._queue)
        if not self._queue:
            if permit.since >= self._standing_limit(self._shed_at):
                self._queued_since, self._interval_s = permit.since, 0.0
            if self.admitted < self.capacity and self._started < BATCH:
                self._start(permit, permit.since)
                return
        self._queue[permit] = admitted = asyncio.get_running_loop().create_future()
        self._advance()
        if not await admitted:
            raise Overloaded

    def _would_wait_too_long(self, crowd: int, share: float) -> bool:
        """Whether a new call would miss its latest start. `share`: that of a call behind the first `crowd` calls."""
        if self.in_flight_bytes >= self._max_bytes:
            return True
        free, length = self.capacity - self.admitted, len(self._queue) + 1
        if free > 0 and not self._queue:
            return False
        now = self._clock()
        wait_s = max(length * self._interval_s, (length - free) * self._service_s / self.capacity)
        return now + wait_s > self._latest_start(now, CLOSED_LOOP_SHARE if length <= crowd else share)

    def _latest_start(self, joined: float, share: float) -> float:
        """Until when a call that joined at this time may wait. `share`: of the deadline, in a standing queue."""
        limit = self._standing_limit(joined, share)
        latest = max(limit, joined + self._deadline_s - self._service_s - self._deviation_s)
        return min(latest, max(limit, self._queued_since + STANDING_S))

    def _standing_limit(self, joined: float, share: float = STANDING_SHARE) -> float:
        return joined + share * self._deadline_s

    def release(self, permit: Permit) -> None:
        self.in_flight_bytes -= permit.body_bytes
        if permit.admitted:
            self.admitted -= 1
            error_s = self._clock() - permit.since - self._service_s
            self._service_s += error_s / 16
            self._deviation_s += (abs(error_s) - self._deviation_s) / 16
        else:
            self._queue.pop(permit, None)
        self._advance()

    def _advance(self) -> None:
        """Takes calls from the head of the queue: starts them while there is room, sheds those that waited too long."""
        while self._queue and self._started < BATCH:  # else `_on_next_turn` goes on
            now = self._clock()
            permit, admitted = next(iter(self._queue.items()))
            share = CLOSED_LOOP_SHARE if permit.ahead < self._queue_crowd else STANDING_SHARE
            latest = self._latest_start(permit.since, share)
            if now < latest and self.admitted >= self.capacity:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(latest - now, self._on_timer)
                return
            del self._queue[permit]
            if admitted.done():  # cancelled
                continue
            if now < latest:
                self._start(permit, now)
            else:
                self._shed_at = now
            admitted.set_result(permit.admitted)

    def _start(self, permit: Permit, now: float) -> None:
        self.admitted += 1
        permit.admitted, permit.since = True, now
        if not self._started:
            self._turn_at = now
            asyncio.get_running_loop().call_soon(self._on_next_turn)
        self._started += 1

    def _on_next_turn(self) -> None:
        if self._started >= BATCH:
            self._interval_s += ((self._clock() - self._turn_at) / BATCH - self._interval_s) / 16
        self._started = 0
        self._advance()

    def _on_timer(self) -> None:
        self._timer = None
        self._advance()
