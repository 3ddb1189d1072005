"""The whole service over a lab's wire: `promotions.consume`, a ledger in a file, and a clock that the test moves."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from mapper import promotions, settings
from mapper.adapter import Adapter
from mapper.domain.errors import Problem
from mapper.domain.signature import SIGNATURE, sign
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.engine.transport import Transport
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import OrderRedeemer
from mapper.orders.rows import Clock
from mapper.promotions import Call, Service

_SECRET = "a signing secret of the conformance tests"  # noqa: S105 - it guards nothing
_DEADLINE_S = 8.0
_LATER_S = 120.0
"""Longer than a quarantine."""
_ASKED_AT_MOST = 6


class Shop:
    """A merchant's service: each call runs in a process of its own, and the ledger's file stays."""

    def __init__(self, adapter: Adapter, wire: Transport, options: Mapping[str, str], folder: Path) -> None:
        prefix = adapter.name.upper()
        environment = {
            "MAPPER_ENGINE": adapter.name,
            "NACELLE_SIGNING_SECRETS": _SECRET,
            "MAPPER_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
            **{f"{prefix}_{name}": value for name, value in options.items()},
        }
        self._settings = dataclasses.replace(settings.load(environment), adapter=adapter)
        self._wire, self.now = wire, 5_000.0

    async def consume(self, body: bytes) -> int:
        """Starts a process, sends it the order, and ends it. Returns the status of the answer."""
        headers = [(SIGNATURE, sign(body, _SECRET.encode()).encode()), (b"content-type", b"application/json")]
        async with self._process() as service:
            try:
                return (await promotions.consume(service, Call(body, headers, self.now + _DEADLINE_S))).status
            except Problem as problem:
                return problem.status("consume")

    async def consume_at_once(self, body: bytes, count: int) -> list[int]:
        """Sends the order to several processes at the same time."""
        return list(await asyncio.gather(*(self.consume(body) for _ in range(count))))

    async def consume_until_done(self, body: bytes) -> int:
        """Sends the order again and again, as Nacelle does."""
        status = 0
        for _ in range(_ASKED_AT_MOST):
            self.now += _LATER_S
            status = await self.consume(body)
            if status == 200:
                break
        return status

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[Service]:
        adapter = self._settings.adapter
        ledger = await open_ledger(
            self._settings.ledger_url, clock=Clock(lambda: self.now, lambda: self.now + 1_700_000_000, "boot")
        )
        try:
            engine = Engine(self._wire, adapter.accounts, clock=lambda: self.now, sleep=self._sleep, random=lambda: 0.5)
            promotion_engine = PromotionEngine(adapter, engine)
            redeemer = OrderRedeemer(self._settings, promotion_engine, ledger, lambda: self.now, self._sleep)
            yield Service(
                self._settings, promotion_engine, redeemer, lambda: self.now, lambda: self.now + 1_700_000_000
            )
        finally:
            await ledger.close()

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
