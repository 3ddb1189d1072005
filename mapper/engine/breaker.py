"""Stops asking an engine that is down: the shopper is answered at once, and the engine is left alone to come back.

A breaker is *closed* (calls pass) until half of at least 20 attempts in the last 10 s have failed; then *open* (none
passes) for about 5 s; then *probing*: one attempt at a time passes. One that fails opens it again, three good ones
close it. It knows one account of one engine, in one process, and nothing about what a failure is: `mapper.engine`
tells it what became of each attempt.

It is for validate. Consume's engine is built without one: while the engine is in trouble, an order that was sent must
still be looked up, and one that was paid for is worth the wait.
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
        """`clock` is monotonic, in seconds; `random` gives numbers from 0 to 1; `on_change` is told each new state."""
        self._clock, self._random, self._on_change = clock, random, on_change
        self._state: State = "closed"
        self._era = 0
        """Counts the changes of state: what began in an earlier era says nothing about this one."""
        self._forget_all()
        self._probe_at = 0.0
        self._probes_out, self._probes_good = 0, 0

    def enter(self) -> int | None:
        """Asks to make an attempt. None: it may not; otherwise a number to hand to `leave`, whatever happens."""
        if self._state != "closed":
            if self._state == "open" and self._clock() >= self._probe_at:
                self._turn("probing")
            if self._state == "open" or self._probes_out:
                return None
            self._probes_out = 1
        return self._era

    def leave(self, entered: int, *, good: bool | None) -> None:
        """What became of an attempt. None: nothing that would tell of the engine, such as one that was cancelled."""
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
                self._forget_all()
                self._turn("closed")

    def wait_s(self) -> float:
        """How long until the next probe, as far as that is known; above 0."""
        return max(self._probe_at - self._clock(), 1.0)

    def _open(self) -> None:
        self._probe_at = self._clock() + OPEN_S * (1 + OPEN_JITTER * (2 * self._random() - 1))
        self._turn("open")

    def _turn(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._probes_good = 0
        if self._on_change is not None:
            self._on_change(state)

    # The window: a box for each of the last ten seconds, the present one included, and the sums of all of them.

    def _forget_all(self) -> None:
        self._boxes = [[0, 0] for _ in range(WINDOW_S)]
        self._attempts, self._failures = 0, 0
        self._second = 0

    def _count(self, *, good: bool) -> None:
        second = int(self._clock())
        if second != self._second:
            self._forget_until(second)
        box = self._boxes[second % WINDOW_S]
        box[0] += 1
        self._attempts += 1
        if not good:
            box[1] += 1
            self._failures += 1

    def _forget_until(self, second: int) -> None:
        for gone in range(max(self._second, second - WINDOW_S) + 1, second + 1):
            box = self._boxes[gone % WINDOW_S]
            self._attempts -= box[0]
            self._failures -= box[1]
            box[:] = [0, 0]
        self._second = second
