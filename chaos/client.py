"""Sends the planned orders as Nacelle would, signed, and writes down what was asked and what was answered.

The history is one JSON object per line, as Jepsen writes it: `invoke`, then `ok` (200), `fail` (a final refusal) or
`info` (nobody knows yet). An order is sent until its answer is final, each time to either replica. `waits`: when all
is over the ledger says that an order waits for its caller, who comes once more. `cancel`: the merchant was answered.
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
"""Who asks for more than this many orders at a time measures the machine, not the service."""
BACK_OFF_S = (0.3, 0.6, 1.2, 2.5, 4.0)
"""How long somebody waits who was not told how it ends; then the last of them, each time."""


class History:
    """Kept in a file, line by line: what was written survives the one who wrote it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def add(self, type_: str, **facts: Any) -> None:
        self._file.write(msgspec.json.encode({"at": time.time(), "type": type_, **facts}) + b"\n")

    def close(self) -> None:
        self._file.close()


class Client:
    def __init__(self, urls: list[str], history: History, deadline_s: float, seed: int) -> None:
        self.calm = asyncio.Event()
        """Set when the faults are over."""
        self.settled = asyncio.Event()
        """Set when nothing is open in the ledger any more."""
        self.all_sent = asyncio.Event()
        """Set when no order will be sent for the first time any more."""
        self.over = False
        """Set when nobody is to ask any more."""
        self._urls = urls
        self._history = history
        self._answer_within_s = deadline_s + 0.5
        self._dice = random.Random(seed + 1)
        self._sends = 0
        self._open = asyncio.Semaphore(OPEN_AT_ONCE)
        self._coming_back = asyncio.Semaphore(OPEN_AT_ONCE)

    async def drive(self, orders: list[Order], within_s: float) -> None:
        """Sends them at their time, or as many as there is time for; returns when all have their final answer."""
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
            for order in orders:
                await asyncio.sleep(max(0.0, started + order.at_s - time.monotonic()))
                await self._open.acquire()
                if time.monotonic() > started + within_s:
                    break  # a slow machine
                group.create_task(self._until_final(session, order, "a", order.replica, 0.0))
                if order.cancel_after_s is not None:
                    group.create_task(self._cancel(session, order, order.cancel_after_s))
                if order.twin:
                    variant = "b" if order.twin == "other" else "a"
                    await self._open.acquire()
                    group.create_task(self._until_final(session, order, variant, 1 - order.replica, order.twin_after_s))
            self.all_sent.set()

    async def come_back(self, orders: list[Order]) -> None:
        """Each is sent until its answer is final: what was certainly not done waits for nothing else."""
        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for order in orders:
                self._history.add("waits", order=order.key)
                group.create_task(self._again_and_again(session, order, "a"))

    async def _until_final(
        self, session: aiohttp.ClientSession, order: Order, variant: str, replica: int, after_s: float
    ) -> None:
        """Sends it, until it is told how it ends, or until it is over. It is counted as open from the start."""
        try:
            await asyncio.sleep(after_s)
            if await self._send(session, order, variant, replica):
                return
            if order.patience == "patient":
                await self._again_and_again(session, order, variant)
                return
        finally:
            self._open.release()
        await (self.settled if order.patience == "gone" else self.calm).wait()
        async with self._coming_back:
            await self._again_and_again(session, order, variant)

    async def _again_and_again(self, session: aiohttp.ClientSession, order: Order, variant: str) -> None:
        for wait_s in itertools.chain(BACK_OFF_S, itertools.repeat(BACK_OFF_S[-1])):
            await asyncio.sleep(wait_s * (0.5 + self._dice.random()))
            if self.over or await self._send(session, order, variant, self._dice.randrange(2)):
                return

    async def _cancel(self, session: aiohttp.ClientSession, order: Order, after_s: float) -> None:
        """Cancels it until that is done; then it comes once more."""
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
        """One request. Whether its answer was final."""
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
