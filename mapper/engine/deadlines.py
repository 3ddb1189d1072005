"""Deadlines of many calls on one timer of the event loop.

`with deadlines.within(seconds):` does what `async with asyncio.timeout(seconds):` does. That sets a timer of its own
and takes it back again, which with uvloop costs about 20 µs: a tenth of a whole call to the engine. Calls rarely come
to their deadline, so here one timer stands for all of them: at the earliest of their deadlines, or before.
"""

import asyncio
from types import TracebackType

_EARLY_S = 0.001
"""The event loops count in milliseconds; a timer may go off that much too early."""


class Deadlines:
    """Of one event loop: that of its first use."""

    def __init__(self) -> None:
        self._open: set[_Within] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        """When the timer goes off, on the loop's clock: never later than the first deadline."""

    def within(self, seconds: float) -> "_Within":
        """Cancels what its block awaits after so many seconds. The block then ends with `TimeoutError`."""
        return _Within(self, seconds)

    def _add(self, block: "_Within") -> None:
        self._open.add(block)
        if self._timer is None or block.at < self._at:
            self._wake(block.at)

    def _wake(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time() + _EARLY_S
        for block in [block for block in self._open if block.at <= now]:
            self._open.discard(block)
            block.expire()
        if self._open:
            self._wake(min(block.at for block in self._open))


class _Within:
    __slots__ = ("_cancels", "_deadlines", "_expired", "_seconds", "_task", "at")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines, self._seconds = deadlines, seconds
        self._expired = False
        self.at = 0.0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for what a task does")
        self._task, self._cancels = task, task.cancelling()
        self.at = asyncio.get_running_loop().time() + self._seconds
        self._deadlines._add(self)  # noqa: SLF001 - two halves of one thing

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines._open.discard(self)  # noqa: SLF001
        # Where somebody else cancels the task, too, cancelled it is: `uncancel` says how often it still is to be.
        if self._expired and self._task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
            raise TimeoutError from error
