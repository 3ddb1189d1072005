"""Sends the planned orders, signed as by Nacelle, and records requests and answers.

The history is one JSON object per line, as Jepsen writes it: `invoke`, then `ok` (200), `fail` (a final refusal) or
`info` (not known yet). An order is sent until its answer is final, each time to either replica. `waits`: at the end an
order in the ledger waits for its caller, who sends it again. `cancel`: the merchant's cancel was answered.
"""

import asyncio
import contextlib
import hashlib
import itertools
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from chaos.plan import CANCEL_SECRET, SECRET, Order
from mapper.domain.signature import sign

FINAL_REFUSALS = {(400, "order_mismatch"), (500, "promotion_codes")}
OPEN_AT_ONCE = 60
"""With more open orders than this the machine is measured, not the service."""
BACK_OFF_S = (0.3, 0.6, 1.2, 2.5, 4.0)
"""How long a client waits after each answer that is not final; the last is repeated."""


class History:
    """Kept in a file, line by line, so that it survives its writer."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def add(self, type_: str, **facts: Any) -> None:
        self._file.write(msgspec.json.encode({"at": time.time(), "type": type_, **facts}) + b"\n")

    def close(self) -> None:
        self._file.close()


class Client:
    def __init__(self, urls: list[str], history: History, deadline_s: float, seed: int) -> None:
        self.calm = asyncio.Event()
        """Set when the faults end."""
        self.settled = asyncio.Event()
        """Set when the ledger has no open orders."""
        self.all_sent = asyncio.Event()
        """Set when every order has been sent at least once."""
        self.over = False
        """Set when clients must stop."""
        self._urls = urls
        self._history = history
        self._answer_within_s = deadline_s + 0.5
        self._dice = random.Random(seed + 1)
        self._sends = 0
        self._open = asyncio.Semaphore(OPEN_AT_ONCE)
        self._late_clients = asyncio.Semaphore(OPEN_AT_ONCE)

    async def drive(self, orders: list[Order], within_s: float) -> None:
        """Sends the orders at their times, as many as time allows; returns when all have their final answers."""
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
            for order in orders:
                await asyncio.sleep(max(0.0, started + order.at_s - time.monotonic()))
                await self._open.acquire()
                if time.monotonic() > started + within_s:
                    break  # the machine is slow
                group.create_task(self._until_final(session, order, "a", order.replica, 0.0))
                if order.cancel_after_s is not None:
                    group.create_task(self._cancel(session, order, order.cancel_after_s))
                if order.twin:
                    variant = "b" if order.twin == "other" else "a"
                    await self._open.acquire()
                    group.create_task(self._until_final(session, order, variant, 1 - order.replica, order.twin_after_s))
            self.all_sent.set()

    async def send_again(self, orders: list[Order]) -> None:
        """Sends each order until its answer is final: it waits only for its caller."""
        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for order in orders:
                self._history.add("waits", order=order.key)
                group.create_task(self._retry_until_final(session, order, "a"))

    async def _until_final(
        self, session: aiohttp.ClientSession, order: Order, variant: str, replica: int, after_s: float
    ) -> None:
        """Sends the order until its answer is final or the run is over. It counts as open from the start."""
        try:
            await asyncio.sleep(after_s)
            if await self._send(session, order, variant, replica):
                return
            if order.patience == "patient":
                await self._retry_until_final(session, order, variant)
                return
        finally:
            self._open.release()
        await (self.settled if order.patience == "gone" else self.calm).wait()
        async with self._late_clients:
            await self._retry_until_final(session, order, variant)

    async def _retry_until_final(self, session: aiohttp.ClientSession, order: Order, variant: str) -> None:
        for wait_s in itertools.chain(BACK_OFF_S, itertools.repeat(BACK_OFF_S[-1])):
            await asyncio.sleep(wait_s * (0.5 + self._dice.random()))
            if self.over or await self._send(session, order, variant, self._dice.randrange(2)):
                return

    async def _cancel(self, session: aiohttp.ClientSession, order: Order, after_s: float) -> None:
        """Sends a cancel until it is done; then sends the order once more."""
        body = msgspec.json.encode({"cancel": {"id": order.key}})
        headers = {"x-nacelle-signature-sha256": sign(body, CANCEL_SECRET), "content-type": "application/json"}
        status = None
        for wait_s in itertools.chain((after_s,), BACK_OFF_S, itertools.repeat(BACK_OFF_S[-1])):
            await asyncio.sleep(wait_s)
            if self.over:
                return
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                url = f"{self._urls[self._dice.randrange(2)]}/promotions/cancel"
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    status = response.status
                self._history.add("cancel", order=order.key, status=status)
            if status == 200:
                await self._send(session, order, "a", order.replica)
                return

    async def _send(self, session: aiohttp.ClientSession, order: Order, variant: str, replica: int) -> bool:
        """Sends one request; returns whether its answer was final."""
        body = order.body(variant)
        self._sends += 1
        facts: dict[str, Any] = {"send": self._sends, "order": order.key, "variant": variant, "replica": replica}
        self._history.add("invoke", **facts)
        headers = {"x-nacelle-signature-sha256": sign(body, SECRET), "content-type": "application/json"}
        try:
            url = f"{self._urls[replica]}/promotions/consume"
            async with session.post(url, data=body, headers=headers) as response:
                reply = await response.read()
                facts["status"] = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._history.add("info", **facts, error=type(error).__name__)
            return False
        if facts["status"] == 200:
            self._history.add("ok", **facts, reply=hashlib.sha256(reply).hexdigest())
            return True
        category = msgspec.json.decode(reply).get("error", {}).get("category", "")
        final = (facts["status"], category) in FINAL_REFUSALS
        self._history.add("fail" if final else "info", **facts, category=category)
        return final
