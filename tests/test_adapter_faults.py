"""A faulty adapter, seen from outside: nothing is redeemed twice, sold at list prices, or lost."""

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from mapper.adapter import LookedUp, Notice, Outcome, Reason, Rejection
from mapper.domain.errors import EngineUnavailable
from tests.house import CHECKOUT, TEN_OFF, House, order_with_discount, reconcile

PAID = order_with_discount("10.00")


def off(**changes: Any) -> Outcome:
    return Outcome(discounts=(msgspec.structs.replace(TEN_OFF.discounts[0], **changes),))


WRONG: dict[str, Any] = {
    "fractional amount": off(amount=5.25),
    "Decimal amount": off(amount=Decimal(5)),
    "zero amount": off(amount=0),
    "unknown line": off(line=9),
    "payload that is no JSON": Outcome(notices=(Notice("x", "x", object()),)),
    "unknown code": Outcome(rejected=(Rejection("OTHER", Reason.EXPIRED, ""),)),
    "no outcome": None,
    "discount instead of outcome": TEN_OFF.discounts[0],
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("policy", ["refuse", "no_discount", "no_discount_without_codes"])
def test_invalid_outcome_at_validate_is_an_internal_error(value: Any, policy: str) -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE=policy)
    house.adapter.granted = value
    for promotions in ({"coupon_codes": ["TEN"]}, {}):
        problem = house.refusal("validate", {**CHECKOUT, "promotions": promotions})
        assert (problem.category, problem.reason, problem.status("validate")) == ("internal", "adapter_error", 422)


def test_exception_of_an_adapter_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")

    def breaks(*_: object) -> Any:
        raise LookupError("a bug")

    monkeypatch.setattr(house.adapter, "validate", breaks)
    assert house.refusal("validate", CHECKOUT).category == "internal"


@pytest.mark.parametrize("value", [one for one in WRONG.values() if isinstance(one, Outcome)])
def test_invalid_outcome_after_redeem_gives_a_notice(value: Outcome) -> None:
    house = House()
    house.adapter.granted, house.adapter.on_redeem = TEN_OFF, value
    order = house("consume", PAID)["order"]
    assert "adapter_error" in [one["type"] for one in order["promotions"]["meta"]["mapper"]["notices"]]
    assert house.wire.sent.count("redeem") == 1
    sent = len(house.wire.sent)
    assert house("consume", PAID)["order"] == order
    assert len(house.wire.sent) == sent


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_an_answered_redemption(status: int) -> None:
    house = House()
    house.adapter.granted = TEN_OFF
    house.wire.script["redeem"] = [status]
    house("consume", PAID)
    assert house.wire.sent == ["check", "redeem"]


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    "bug",
    [
        KeyError("a bug"),
        EngineUnavailable("It cannot be read.", reason="bad_reply"),
        RecursionError(),
        RuntimeError("generator raised StopIteration"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("repeatable", [False, True])
def test_error_after_redeem_is_looked_up_and_never_resent(
    bug: Exception, status: int, monkeypatch: pytest.MonkeyPatch, *, repeatable: bool
) -> None:
    house = House()
    request = house.adapter._request

    def may_be_repeated(operation: str, session: str, **_: bool) -> Any:
        return request(operation, session, repeatable=repeatable or operation != "redeem")

    monkeypatch.setattr(house.adapter, "_request", may_be_repeated)
    house.adapter.granted, house.adapter.on_redeem = TEN_OFF, bug
    house.adapter.found = LookedUp("unclear")
    house.wire.script["redeem"] = [status]
    assert house.refusal("consume", PAID).category == "outcome_pending"
    for _ in range(5):
        house.time += 1
        asyncio.run(house.within(reconcile))
    assert house.wire.sent.count("redeem") == 1
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house.time += 70
    asyncio.run(house.within(reconcile))
    assert house("consume", PAID)["order"] == PAID
    assert house.wire.sent.count("redeem") == 1
