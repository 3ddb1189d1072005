"""A circuit breaker: stops calls to an engine that is down, so that the shopper is answered at once.

A breaker is *closed* (calls pass) until half of at least 20 attempts in the last 10 s have failed; then *open* (none
passes) for about 5 s; then *probing*: one attempt at a time passes. A failure opens it again, three successes close it.
It is for one account of one engine, in one process. `mapper.engine.conversation` decides which attempts are failures.

Only validate uses one. Consume must look orders up even while the engine fails, and an order that was paid for is worth
the wait.
"""

from collections.abc import Callable
from typing import Literal

WINDOW_S = 10
LEAST_ATTEMPTS = 20
OPEN_S, OPEN_JITTER = 5.0, 0.2
GOOD_PROBES = 3

State = Literal["closed", "open", "probing"]


class Breaker:
    def __init__(
        self,
        clock: Callable[[], float],
        random: Callable[[], float],
        on_change: Callable[[State], object] | None = None,
    ) -> None:
        """`clock`: monotonic, in seconds. `random`: from 0 to 1. `on_change` receives each new state."""
        self._clock, self._random, self._on_change = clock, random, on_change
        self._state: State = "closed"
        self._era = 0
        """The number of state changes so far. An attempt that began in an earlier era is not counted."""
        self._clear_window()
        self._probe_at = 0.0
        self._probes_out, self._probes_good = 0, 0

    def enter(self) -> int | None:
        """Begins an attempt. Returns a number that must be passed to `leave`, or None if the attempt is not allowed."""
        if self._state != "closed":
            if self._state == "open" and self._clock() >= self._probe_at:
                self._change("probing")
            if self._state == "open" or self._probes_out:
                return None
            self._probes_out = 1
        return self._era

    def leave(self, entered: int, *, good: bool | None) -> None:
        """Ends an attempt. `good`: None if it says nothing about the engine, as when it was cancelled."""
        if entered != self._era:
            return
        self._probes_out = 0
        if good is None:
            return
        if self._state == "closed":
            self._count(good=good)
            if self._failures * 2 >= self._attempts >= LEAST_ATTEMPTS:
                self._open()
        elif not good:
            self._open()
        else:
            self._probes_good += 1
            if self._probes_good == GOOD_PROBES:
                self._clear_window()
                self._change("closed")

    def wait_s(self) -> float:
        """Returns the seconds until the next probe, 1 or more."""
        return max(self._probe_at - self._clock(), 1.0)

    def _open(self) -> None:
        self._probe_at = self._clock() + OPEN_S * (1 + OPEN_JITTER * (2 * self._random() - 1))
        self._change("open")

    def _change(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._probes_good = 0
        if self._on_change is not None:
            self._on_change(state)

    # The window has a bucket of [attempts, failures] for each of the last ten seconds, and the sums of all of them.

    def _clear_window(self) -> None:
        self._buckets = [[0, 0] for _ in range(WINDOW_S)]
        self._attempts, self._failures = 0, 0
        self._second = 0

    def _count(self, *, good: bool) -> None:
        second = int(self._clock())
        if second != self._second:
            self._expire(second)
        bucket = self._buckets[second % WINDOW_S]
        bucket[0] += 1
        self._attempts += 1
        if not good:
            bucket[1] += 1
            self._failures += 1

    def _expire(self, second: int) -> None:
        for gone in range(max(self._second, second - WINDOW_S) + 1, second + 1):
            bucket = self._buckets[gone % WINDOW_S]
            self._attempts -= bucket[0]
            self._failures -= bucket[1]
            bucket[:] = [0, 0]
        self._second = second
