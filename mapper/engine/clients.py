"""Chooses the HTTP client towards the engine: each is loaded only where it is chosen."""

import logging
from typing import Literal

from mapper.engine.transport import Transport


def create(name: Literal["aiohttp", "httpx"], *, connections: int) -> Transport:
    """The client of that name, with room for as many calls at a time as `connections`."""
    # Below WARNING these write URLs (codes stand in them) and reply headers.
    for logger in ("aiohttp", "httpx2", "httpcore2"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    if name == "httpx":
        from mapper.engine.httpx_client import HttpxTransport  # noqa: PLC0415 - either takes a while to load

        return HttpxTransport(connections)
    from mapper.engine.aiohttp_client import AiohttpTransport  # noqa: PLC0415

    return AiohttpTransport(connections)
