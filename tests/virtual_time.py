"""An event loop with virtual time: waiting takes no real time, and the order of events is deterministic."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Given = TypeVarTuple("Given")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while a task is ready, and jumps to the next timer when none is.

    Work for an executor runs immediately, without threads. A wait for a real answer, of a database server, is wrapped
    in `real`, since time must not jump meanwhile.
    """

    def __init__(self) -> None:
        self.now = 5_000.0
        self.waits = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Given], T], *args: *Given
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the waiting task gets any exception
            done.set_exception(error)
        return done

    @contextmanager
    def real(self) -> Iterator[None]:
        self.waits += 1
        try:
            yield
        finally:
            self.waits -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.waits:
            ready = super().select(30)
            assert ready, "the database server does not answer"
            return ready
        assert timeout is not None, "nothing is left that could ever happen"
        self._loop.now += max(0.0, timeout)
        return []


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


def running_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def now() -> float:
    return running_loop().now
