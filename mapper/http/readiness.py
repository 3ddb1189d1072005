"""Whether validate and consume are served. `/readyz` answers from the last check, so that no probe waits for a disk."""

import asyncio
import logging
from typing import Final

import msgspec

from mapper.ops.metrics import Metrics
from mapper.orders.ledger import Ledger
from mapper.orders.rows import LedgerUnavailable

log = logging.getLogger("mapper")

CHECK_EVERY_S: Final = 3.0
TIMEOUT_S: Final = 2.0
"""A ledger that does not answer a check in this time cannot be used."""


class Ready(msgspec.Struct, frozen=True):
    """The body of `/readyz`. `why`: the reason if a call is not served."""

    validate: bool
    consume: bool
    why: str | None = None


DRAINING: Final = Ready(validate=False, consume=False, why="draining")


class Readiness:
    """Checks the ledger, which consume needs and validate does not. Asking the engine would use up its quota."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self.latest = Ready(validate=True, consume=False, why="starting")

    async def check_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            await self.check()

    async def check(self) -> None:
        before = self.latest
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._ledger.ping()
            self.latest = Ready(validate=True, consume=True)
        except TimeoutError:
            self.latest = Ready(validate=True, consume=False, why="ledger_hangs")
        except LedgerUnavailable as problem:
            self.latest = Ready(validate=True, consume=False, why=problem.reason)
        except Exception:
            log.exception("internal error")
            self.latest = Ready(validate=True, consume=False, why="internal")
        self._metrics.readiness(consume=self.latest.consume)
        if self.latest != before and self.latest.why:
            log.error("consume is not served", extra={"facts": {"reason": self.latest.why}})
        elif self.latest != before and before.why != "starting":
            log.info("consume is served again")
