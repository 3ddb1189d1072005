"""Which of the two calls are served. `/readyz` answers from the last look, at once: probes must not wait for a disk."""

import asyncio
import logging
from typing import Final

import msgspec

from mapper.orders.ledger import Ledger
from mapper.orders.rows import LedgerUnavailable

log = logging.getLogger("mapper")

LOOK_EVERY_S: Final = 3.0
LOOK_FOR_S: Final = 2.0
"""How long a look may take. A ledger that does not answer in this time is one that cannot be used."""


class Ready(msgspec.Struct, frozen=True):
    """The body of `/readyz`; `why` is the reason where something is not served."""

    validate: bool
    consume: bool
    why: str | None = None


DRAINING: Final = Ready(validate=False, consume=False, why="draining")


class Readiness:
    """Consume needs the ledger; validate does without. The engine is not asked: that is its quota, and its weather."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.latest = Ready(validate=True, consume=False, why="starting")

    async def keep_looking(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        before = self.latest
        try:
            async with asyncio.timeout(LOOK_FOR_S):
                await self._ledger.ping()
            self.latest = Ready(validate=True, consume=True)
        except TimeoutError:
            self.latest = Ready(validate=True, consume=False, why="ledger_hangs")
        except LedgerUnavailable as problem:
            self.latest = Ready(validate=True, consume=False, why=problem.reason)
        except Exception:
            log.exception("internal error")
            self.latest = Ready(validate=True, consume=False, why="internal")
        if self.latest != before and self.latest.why:
            log.error("consume is not served", extra={"facts": {"reason": self.latest.why}})
        elif self.latest != before and before.why != "starting":
            log.info("consume is served again")
