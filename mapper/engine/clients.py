"""Creates the configured HTTP client for calls to the engine; the other one is not loaded.

The rules and time limits of both are in `mapper.engine.transport`.
"""

import logging
from typing import Literal

from mapper.engine.transport import Transport


def create(name: Literal["aiohttp", "httpx"], *, connections: int) -> Transport:
    """`connections`: how many calls may be in flight."""
    # Below WARNING these log URLs, which hold codes, and reply headers.
    for logger in ("aiohttp", "httpx2", "httpcore2"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    if name == "httpx":
        from mapper.engine.httpx_client import HttpxTransport  # noqa: PLC0415 - slow to load

        return HttpxTransport(connections)
    from mapper.engine.aiohttp_client import AiohttpTransport  # noqa: PLC0415

    return AiohttpTransport(connections)
