"""A service with a fake engine behind it, and the bodies that its tests send."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from mapper import promotions
from mapper.adapter import Discount, Outcome, Reason, Rejection
from mapper.domain.errors import Problem
from mapper.domain.record import Record
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import OrderRedeemer
from mapper.orders.rows import Answer, Clock, Row
from mapper.promotions import Call, Service
from tests.fakes import FakeAdapter, FakeTransport, new_ledger, settings, signed, signed_with

T = TypeVar("T")
NOW = 1_800_000_000.0
CANCEL_SECRET = b"the secret that cancels are signed with"
CHECKOUT = {
    "id": "c-1",
    "items": [{"sku": "S", "quantity": 1, "price": "140.00"}],
    "promotions": {"coupon_codes": ["TEN", "X"]},
}
ORDER = {
    "id": "c-1",
    "order_items": [{"sku": "S", "quantity": 1, "price": "140.00"}],
    "promotions": {"coupon_codes": ["TEN", "X"]},
}
TEN_OFF = Outcome(discounts=(Discount(name="Ten", description="Ten off", amount=1000, effect_type="off", line=0),))
REFUSED = Outcome(rejected=(Rejection("TEN", Reason.EXPIRED, "CouponExpired"), Rejection("X", Reason.OTHER, "Odd")))


class House:
    """A service with a fake engine behind it, and short ways to call it. Its ledger lasts as long as the object."""

    def __init__(self, **environment: str) -> None:
        self.adapter, self.wire = FakeAdapter(), FakeTransport()
        self.now, self.record = NOW, Record("", "")
        self.time = 1000.0
        """The clock of deadlines, leases and quarantines; sleeping advances it."""
        self.pauses: list[float] = []
        self.ledger_url = new_ledger()
        self.configured = settings(self.adapter, **{"MAPPER_CANCEL_SECRETS": CANCEL_SECRET.decode(), **environment})

    def __call__(self, operation: str, body: object) -> dict[str, Any]:
        got: dict[str, Any] = json.loads(self.bytes(operation, body))
        return got

    def bytes(self, operation: str, body: object) -> bytes:
        answer = self.answer(operation, body)
        assert answer.status == 200, answer
        return answer.reply

    def answer(self, operation: str, body: object) -> Answer:
        data, headers = signed(body)
        self.record = Record(operation, "r")

        async def call(service: Service) -> Answer:
            handler = promotions.validate if operation == "validate" else promotions.consume
            return await handler(service, Call(data, headers, self.time + 8, self.record))

        return asyncio.run(self.within(call))

    async def within(self, act: Callable[[Service], Awaitable[T]]) -> T:
        clock = Clock(lambda: self.time, lambda: self.now, "boot")
        ledger = await open_ledger(self.ledger_url, clock=clock)
        engine = PromotionEngine(
            self.adapter, Engine(self.wire, self.adapter.accounts, clock=lambda: self.time, sleep=self.sleep)
        )
        redeemer = OrderRedeemer(self.configured, engine, ledger, lambda: self.time, self.sleep)
        service = Service(self.configured, engine, redeemer, lambda: self.time, lambda: self.now, lambda: "made-1")
        try:
            return await act(service)
        finally:
            await redeemer.drain(1)
            await ledger.close()

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def refusal(self, operation: str, body: object) -> Problem:
        """Return the problem that the call raises."""
        with pytest.raises(Problem) as raised:
            self.answer(operation, body)
        return raised.value

    def cancel(self, order: object = "c-1") -> Answer:
        data, headers = signed_with(CANCEL_SECRET, {"cancel": {"id": order}})
        return asyncio.run(self.within(lambda service: promotions.cancel(service, Call(data, headers, self.time + 8))))

    def cancel_refusal(self, order: object = "c-1") -> Problem:
        with pytest.raises(Problem) as raised:
            self.cancel(order)
        return raised.value

    def row(self, order: str = "c-1") -> Row:
        """Return an order's row in the ledger."""

        async def find(service: Service) -> list[Row]:
            return await service.redeemer.ledger.find(order=order)

        (row,) = asyncio.run(self.within(find))
        return row

    def reconcile(self, after_s: float = 0.0) -> None:
        """Run one round of the reconciler, `after_s` seconds later."""
        self.time += after_s
        asyncio.run(self.within(reconcile))


def to_order(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the order that a shop makes of a validated checkout."""
    checkout = answer["checkout"]
    lines = [
        {"sku": item["sku"], "quantity": item["quantity"], "price": item["price"], "discounts": item["total_discount"],
         "applied_discounts": item["discounts"]}
        for item in checkout["items"]
    ]  # fmt: skip
    order = {"order_items": lines, "discounts": checkout["total_discount"], "promotions": checkout["promotions"]}
    if checkout["discounts"]:
        order["applied_discounts"] = checkout["discounts"]
    return order | ({"id": checkout["id"]} if "id" in checkout else {})


def order_with_discount(amount: str) -> dict[str, Any]:
    return {**ORDER, "order_items": [{**ORDER["order_items"][0], "price": "1", "discounts": amount}]}  # type: ignore[index]


async def reconcile(service: Service) -> None:
    """Run one round of the reconciler."""
    rounds = 0

    async def stop(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise asyncio.CancelledError

    service.redeemer.sleep = stop
    with pytest.raises(asyncio.CancelledError):
        await service.redeemer.reconcile()
