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
Given = TypeVarTuple("Given")

LARGE_BYTES: Final = 128 * 1024
"""The size of JSON that counts as large: about 280 lines. Less takes a millisecond or two."""
SWITCH_S: Final = 0.0005

_one_thread = CapacityLimiter(1)


async def run_in_thread(size: int, work: Callable[[*Given], T], *given: *Given) -> T:
    """Returns `work(*given)`, which runs in the thread if its JSON has `LARGE_BYTES` or more.

    It must not use mutable state that is shared with other calls.
    """
    if size < LARGE_BYTES:
        return work(*given)
    return await anyio.to_thread.run_sync(work, *given, limiter=_one_thread, abandon_on_cancel=True)


def switch_often() -> None:
    """Sets the switch interval of the process. Python's default of 5 ms would delay each turn of the event loop."""
    sys.setswitchinterval(SWITCH_S)
