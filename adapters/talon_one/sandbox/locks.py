"""Serialises parallel requests: https://docs.talon.one/docs/dev/getting-started/integration-tutorial#managing-parallel-requests"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from adapters.talon_one.sandbox.errors import ApiError

_PARALLEL: Final = 3


class RequestLocks:
    """For each session and profile, one request runs and two wait. Any further one gets 409."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def acquire(self, keys: list[tuple[str, str]]) -> AsyncIterator[None]:
        """`keys`: pairs of ("session" or "profile", id), always in the same order, against deadlocks."""
        names = [f"{kind}/{id_}" for kind, id_ in keys]
        for (kind, _), name in zip(keys, names, strict=True):
            if self._count[name] >= _PARALLEL:
                raise ApiError(409, f"Too many requests are updating this {kind} at the same time")
        self._count.update(names)
        held: list[asyncio.Lock] = []
        try:
            for name in names:
                lock = self._locks.setdefault(name, asyncio.Lock())
                await lock.acquire()
                held.append(lock)
            yield
        finally:
            for lock in held:
                lock.release()
            for name in names:
                self._count[name] -= 1
                if not self._count[name]:
                    del self._count[name]
                    self._locks.pop(name, None)
