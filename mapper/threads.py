"""Work on large carts goes to a thread, so that it holds nobody up who waits for the event loop.

A thousand lines take some milliseconds at each step, and everybody else would wait for as long. With a thread they wait
no longer than the interpreter lets one thread go on while another wants to (`SWITCH_S`). One thread is enough: large
carts wait for each other, small ones for none of them.
"""

import sys
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import anyio.to_thread
from anyio import CapacityLimiter

T = TypeVar("T")
Given = TypeVarTuple("Given")

LARGE_BYTES: Final = 128 * 1024
"""Of JSON, about 280 lines. What is smaller takes a millisecond or two."""
SWITCH_S: Final = 0.0005

_one = CapacityLimiter(1)


async def run_in_thread(size: int, work: Callable[[*Given], T], *given: *Given) -> T:
    """`work(*given)`, which is about `size` bytes of JSON. It must share nothing with others that changes."""
    if size < LARGE_BYTES:
        return work(*given)
    return await anyio.to_thread.run_sync(work, *given, limiter=_one, abandon_on_cancel=True)


def switch_often() -> None:
    """For the whole process. By itself Python lets a thread go on for 5 ms, at each turn of the event loop."""
    sys.setswitchinterval(SWITCH_S)
