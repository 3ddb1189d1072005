"""Runs the work on large carts in a thread, so that other calls need not wait for it.

A thousand lines take some milliseconds at each step, which would block the event loop. With a thread, the event loop
waits no longer than the interpreter's switch interval (`SWITCH_S`). There is one thread: large carts wait for each
other, small ones for none of them.
"""

import sys
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import anyio.to_thread
from anyio import CapacityLimiter

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

LARGE_BYTES: Final = 128 * 1024
"""The size of JSON that counts as large: about 280 lines. Less takes a millisecond or two."""
SWITCH_S: Final = 0.0005

_one_thread = CapacityLimiter(1)


async def run_in_thread(size: int, work: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """Returns `work(*arguments)`. It runs in the thread if `size`, the bytes of its JSON, is `LARGE_BYTES` or more.

    The work must not use mutable state that is shared with other calls.
    """
    if size < LARGE_BYTES:
        return work(*arguments)
    return await anyio.to_thread.run_sync(work, *arguments, limiter=_one_thread, abandon_on_cancel=True)


def switch_often() -> None:
    """Sets the switch interval of the process. Python's default of 5 ms would delay each turn of the event loop."""
    sys.setswitchinterval(SWITCH_S)
