"""Work on large carts goes to a thread, so that it holds nobody up who waits for the event loop.

A thousand lines take some milliseconds at each step, and everybody else would wait for as long. With a thread they wait
no longer than the interpreter lets one thread go on while another wants to (`SWITCH_S`). One thread is enough: large
carts wait for each other, small ones for none of them.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Given = TypeVarTuple("Given")

LARGE_BYTES: Final = 128 * 1024
"""Of JSON, about 280 lines. What is smaller takes a millisecond or two."""
AT_ONCE: Final = 8
"""With so many steps to be done no further large cart is begun."""
SWITCH_S: Final = 0.0005

_thread = ThreadPoolExecutor(1, thread_name_prefix="large-carts")
_steps: set[object] = set()
"""Those that wait or are being done."""


async def aside(size: int, work: Callable[[*Given], T], *given: *Given) -> T:
    """`work(*given)`, which is about `size` bytes of JSON. It must share nothing with others that changes."""
    if size < LARGE_BYTES:
        return work(*given)
    step = asyncio.get_running_loop().run_in_executor(_thread, work, *given)
    _steps.add(step)
    step.add_done_callback(_steps.discard)
    return await step


def is_full(size: int) -> bool:
    """Whether a call with a body of this size had better not be begun."""
    return size >= LARGE_BYTES and len(_steps) >= AT_ONCE


def switch_often() -> None:
    """For the whole process. By itself Python lets a thread go on for 5 ms."""
    sys.setswitchinterval(SWITCH_S)
