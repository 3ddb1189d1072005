"""How an adapter is held to its contract: the verdict on its redemptions, and what it may return."""

import asyncio
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from mapper.adapter import (
    Conversation,
    Diagnostic,
    Discount,
    LookedUp,
    Notice,
    NotRedeemed,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
)
from mapper.domain.checkout import Checkout, parse
from mapper.domain.errors import (
    AdapterFault,
    EngineRejected,
    EngineUnavailable,
    Forbidden,
    InvalidRequest,
    OrderMismatch,
    Problem,
)
from mapper.domain.outcome import Cost
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone, PromotionEngine, Verdict
from mapper.engine.transport import NotSent, Unknown
from tests.engine.test_engine import World, request
from tests.fakes import FakeAdapter

ORDER = parse(
    b'{"order_items": [{"sku": "A", "quantity": 0, "price": "9"}, {"sku": "B", "quantity": 1, "price": "9"}],'
    b' "promotions": {"coupon_codes": ["TEN"]}}',
    "consume",
)
TEN = Discount(name="Ten", description="Ten off", amount=100, effect_type="off", line=1)
SHIPPING = (Cost("shipping", 500),)
GRANTED = Outcome(discounts=(TEN,))
REFUSED = NotRedeemed((Rejection("TEN", Reason.EXPIRED, "Old"),))


class Scripted(FakeAdapter):
    """Every conversation sends the same requests, then raises or returns `ends`."""

    def __init__(self, ends: object, *requests: Any) -> None:
        super().__init__()
        self.ends, self.requests = ends, requests

    def _talk(self) -> Conversation[Any]:
        for one in self.requests:  # noqa: UP028 - replies are sent, and a tuple takes none
            yield one
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends

    def __getattribute__(self, name: str) -> Any:
        if name in ("validate", "check", "redeem", "look_up", "undo", "repair"):
            return lambda *_, **__: self._talk()
        return super().__getattribute__(name)


def held(adapter: Any, *script: Any) -> tuple[PromotionEngine, World]:
    world = World(*script)
    return PromotionEngine(adapter, world.engine), world


async def may_send() -> bool:
    return True


def verdict(ends: object, *script: Any, requests: tuple[Any, ...] = (request(effect="redeems"),)) -> Verdict:
    promotion_engine, world = held(Scripted(ends, *requests), *script)
    return asyncio.run(promotion_engine.redeem(ORDER, "s", world.now + 5, may_send))


KEY = EngineRejected("The key is wrong.", reason="engine_key")
MISMATCH = OrderMismatch("Another cart.", reason="other_content")
UNREADABLE = EngineUnavailable("It cannot be read.", reason="bad_reply")
UNMAPPABLE = InvalidRequest("This cannot be said.", "/x")
ANYTHING = [KEY, MISMATCH, UNREADABLE, UNMAPPABLE, KeyError("x"), Forbidden("no", reason="no"), RecursionError()]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_with_redeemed_is_done(status: int) -> None:
    assert verdict(Redeemed(GRANTED, "r_1"), status) == Done(Redeemed(GRANTED, "r_1"))


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("status", [200, 201, 204])
@pytest.mark.parametrize("ends", [*ANYTHING, None, "done", GRANTED, LookedUp("redeemed")], ids=repr)
def test_adapter_fault_after_2xx_is_in_doubt_and_not_resent(ends: object, status: int, *, repeatable: bool) -> None:
    promotion_engine, world = held(Scripted(ends, request(effect="redeems", repeatable=repeatable)), status)
    found = asyncio.run(promotion_engine.redeem(ORDER, "s", world.now + 5, may_send))
    assert isinstance(found, InDoubt)
    assert len(world.sent) == 1


@pytest.mark.parametrize("more", [["/x"], [request("no path")], [request(account="third")], [request()] * 99])
def test_failed_request_after_redemption_is_in_doubt(more: list[Any]) -> None:
    assert isinstance(verdict(Redeemed(GRANTED), requests=(request(effect="redeems"), *more)), InDoubt)
    for script in ([200, NotSent("connect"), NotSent("connect")], [200, 429, 429], [200, 503, 503]):
        assert isinstance(verdict(Redeemed(GRANTED), *script, requests=(request(effect="redeems"), request())), InDoubt)


@pytest.mark.parametrize("script", [[200, *[NotSent("connect")] * 2], [200, *[429] * 2], [200, *[409] * 3], [200, 400]])
@pytest.mark.parametrize("ends", [KEY, UNREADABLE], ids=repr)
def test_failed_second_redeeming_request_is_in_doubt(ends: Exception, script: list[Any]) -> None:
    assert isinstance(verdict(ends, *script, requests=(request(effect="redeems"),) * 2), InDoubt)


@pytest.mark.parametrize("step", [Unknown("timeout"), Unknown("reset"), Unknown("garbled"), 500, 503, 302])
def test_request_that_may_have_arrived_is_in_doubt(step: Any) -> None:
    assert isinstance(verdict(Redeemed(GRANTED), step), InDoubt)


@pytest.mark.parametrize("script", [[NotSent("connect")] * 2, [409] * 3, [429] * 2, [NotSent("dns"), 429]])
def test_request_certainly_not_processed_is_not_done(script: list[Any]) -> None:
    found = verdict(Redeemed(GRANTED), *script)
    assert isinstance(found, NotDone)
    assert found.problem.category == "engine_unavailable"


@pytest.mark.parametrize("ends", ANYTHING, ids=repr)
def test_adapter_error_before_redeeming_request_is_not_done(ends: Exception) -> None:
    for requests in ((), (request(),)):
        assert isinstance(verdict(ends, requests=requests), NotDone)


@pytest.mark.parametrize("ends", ANYTHING, ids=repr)
def test_refusal_is_not_done_only_if_adapter_names_it(ends: Exception) -> None:
    certain = isinstance(ends, EngineRejected | OrderMismatch | InvalidRequest)
    assert type(verdict(ends, 400)) is (NotDone if certain else InDoubt)


def test_declined_redemption_needs_confirmation_after_redeeming_request() -> None:
    assert verdict(REFUSED, requests=()) == Declined(REFUSED, confirm=False)
    assert verdict(REFUSED, requests=(request(),)) == Declined(REFUSED, confirm=False)
    for status in (400, 200):
        assert verdict(REFUSED, status) == Declined(REFUSED, confirm=True)


def test_redeemed_needs_processed_request_or_earlier_redemption(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for requests, script in (((), ()), ((request(),), (200,)), ((request(effect="redeems"),), (400,))):
        assert isinstance(verdict(Redeemed(GRANTED), *script, requests=requests), InDoubt)
        assert logged(caplog)[-1] == ("fake", "redeem")
        before = Redeemed(msgspec.structs.replace(GRANTED, redeemed=True))
        assert verdict(before, *script, requests=requests) == Done(before)


@pytest.mark.parametrize("error", [LookupError("the ledger"), Problem("The ledger is away.", reason="ledger")])
def test_error_of_permit_passes_through(error: Exception) -> None:
    async def away() -> bool:
        raise error

    promotion_engine, world = held(Scripted(Redeemed(GRANTED), request(effect="redeems")))
    with pytest.raises(type(error)) as caught:
        asyncio.run(promotion_engine.redeem(ORDER, "s", world.now + 5, away))
    assert caught.value is error
    assert world.sent == []


# Values that an adapter returns


class Text:
    """A type that the encoder does not know."""


def off(**changes: Any) -> Outcome:
    fields = {"name": "n", "description": "d", "amount": 1, "effect_type": "e", "line": 1, **changes}
    return Outcome(discounts=(Discount(**fields),))


def rejected(code: Any, reason: Any = Reason.EXPIRED, engine_reason: Any = "Old") -> Outcome:
    return Outcome(rejected=(Rejection(code, reason, engine_reason),))


BAD: dict[str, Any] = {
    "an amount with a fraction": off(amount=5.25),
    "a Decimal amount": off(amount=Decimal(5)),
    "a boolean amount": off(amount=True),
    "a zero amount": off(amount=0),
    "a negative amount": off(amount=-1),
    "no amount": off(amount=None),
    "an unknown line": off(line=7),
    "a negative line": off(line=-1),
    "a line of quantity zero": off(line=0),
    "a boolean line": off(line=True),
    "a text line": off(line="1"),
    "an unknown scope": off(scope="line"),
    "a named cost among the goods": off(line=None, cost="shipping", scope="goods"),
    "no name": off(name=None),
    "a name with a lone surrogate": off(name="\ud800"),
    "no cost": off(cost=None),
    "meta that does not encode": off(meta={"a": Text()}),
    "meta that is a list": off(meta=[1]),
    "text among the discounts": Outcome(discounts=(TEN, "x")),  # type: ignore[arg-type]
    "no discounts": Outcome(discounts=None),  # type: ignore[arg-type]
    "a code that was not in the cart": rejected("OTHER"),
    "no code": rejected(None),
    "an unknown reason": rejected("TEN", "odd"),
    "no reason": rejected("TEN", None),
    "no reason of the engine": rejected("TEN", Reason.OTHER, None),
    "a payload that does not encode": Outcome(notices=(Notice("t", "x", {"a": Text()}),)),
    "a payload with a complex key": Outcome(notices=(Notice("t", "x", {1j: 1}),)),
    "no text": Outcome(notices=(Notice("t", None, None),)),  # type: ignore[arg-type]
    "a cost with a fraction": Outcome(costs=(Cost("shipping", 1.5),)),  # type: ignore[arg-type]
    "a negative cost": Outcome(costs=(Cost("shipping", -1),)),
    "a cost of an unknown line": Outcome(costs=(Cost("shipping", 1, 7),)),
    "a cost without a name": Outcome(costs=(Cost(None, 1),)),  # type: ignore[arg-type]
    "a diagnostic without a text": Outcome(diagnostics=(Diagnostic("t", None),)),  # type: ignore[arg-type]
    "a diagnostic without a code": Outcome(diagnostics=(Diagnostic("t", "x", None),)),  # type: ignore[arg-type]
    "facts that do not encode": Outcome(diagnostics=(Diagnostic("t", "x", facts={"a": Text()}),)),
    "text among the diagnostics": Outcome(diagnostics=("x",)),  # type: ignore[arg-type]
}


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(adapter, method) of every fault in the log, each with its traceback."""
    faults = [record for record in caplog.records if record.message == "adapter error"]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in faults)
    return [(record.facts["adapter"], record.facts["method"]) for record in faults]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [*BAD.values(), None, "outcome", Redeemed(GRANTED), (GRANTED,)], ids=[*BAD, *"abcd"])
def test_wrong_value_before_redemption_is_refused_and_logged(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    promotion_engine, world = held(Scripted(value, request()))
    calls: dict[str, Callable[..., Any]] = {"validate": promotion_engine.validate, "check": promotion_engine.check}
    for method, call in calls.items():
        caplog.clear()
        with pytest.raises(AdapterFault) as caught:
            asyncio.run(call(ORDER, "s", world.now + 5))
        assert (caught.value.category, caught.value.reason) == ("internal", "adapter_error")
        assert logged(caplog) == [("fake", method)]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_wrong_value_after_redemption_becomes_notice_and_log(value: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    found = verdict(Redeemed(value, "r_1"))
    assert isinstance(found, Done)
    assert found.redeemed.handle == "r_1"
    assert found.redeemed.outcome.notices[-1].type == "adapter_error"
    assert logged(caplog) == [("fake", "redeem")]
    promotion_engine, world = held(Scripted(LookedUp("redeemed", value, ("r_2",)), request()))
    looked_up = asyncio.run(promotion_engine.look_up(ORDER, "s", "", world.now + 5))
    assert (looked_up.state, looked_up.extra) == ("redeemed", ("r_2",))
    assert looked_up.outcome.notices[-1].type == "adapter_error"
    already = msgspec.structs.replace(value, redeemed=True)
    promotion_engine, world = held(Scripted(already, request()))
    checked = asyncio.run(promotion_engine.check(ORDER, "s", world.now + 5))
    assert checked is not None
    assert checked.redeemed


def test_valid_parts_of_wrong_value_are_kept() -> None:
    sound = Notice("t", "x", {"a": Decimal("1.5")})
    value = Outcome(
        discounts=(TEN, *off(amount=0).discounts), notices=(sound, Notice("t", "x", Text())), costs=SHIPPING
    )
    found = verdict(Redeemed(value))
    assert isinstance(found, Done)
    outcome = found.redeemed.outcome
    assert (outcome.discounts, outcome.notices[0], outcome.costs) == ((TEN,), sound, SHIPPING)
    assert [notice.type for notice in outcome.notices] == ["t", "adapter_error"]


def test_valid_value_is_returned_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    value = Outcome(
        discounts=(TEN, *off(line=None, cost="shipping", scope="costs", meta={"a": [1, None]}).discounts),
        rejected=(Rejection("TEN", Reason.OTHER, ""),),
        notices=(Notice("t", "x", None),),
        costs=SHIPPING,
        diagnostics=(Diagnostic("t", "x", "TEN", {"a": 1}),),
    )
    promotion_engine, world = held(Scripted(value, request()))
    assert asyncio.run(promotion_engine.validate(ORDER, "s", world.now + 5)) is value
    plain = rejected("TEN", "expired")
    promotion_engine, world = held(Scripted(plain, request()))
    (found,) = asyncio.run(promotion_engine.validate(ORDER, "s", world.now + 5)).rejected
    assert found.reason is Reason.EXPIRED
    assert logged(caplog) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        LookedUp("perhaps"),  # type: ignore[arg-type]
        LookedUp("redeemed", extra=(1,)),  # type: ignore[arg-type]
        LookedUp("redeemed", extra="r_2"),  # type: ignore[arg-type]
        Redeemed(GRANTED),
    ],
)
def test_look_up_without_valid_state_is_adapter_fault(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    promotion_engine, world = held(Scripted(value, request()))
    with pytest.raises(AdapterFault):
        asyncio.run(promotion_engine.look_up(ORDER, "s", "", world.now + 5))
    assert logged(caplog) == [("fake", "look_up")]


def test_invalid_refusal_does_not_count_as_refusal() -> None:
    wrong = NotRedeemed((Rejection("OTHER", Reason.EXPIRED, ""),))
    assert isinstance(verdict(wrong, requests=()), NotDone)
    assert isinstance(verdict(wrong, 400), InDoubt)


# Errors that an adapter raises


@pytest.mark.parametrize("problem", [KEY, MISMATCH, UNREADABLE, UNMAPPABLE], ids=repr)
def test_allowed_errors_of_adapter_pass_through(problem: Problem, caplog: pytest.LogCaptureFixture) -> None:
    promotion_engine, world = held(Scripted(problem, request()))
    with pytest.raises(type(problem)) as caught:
        asyncio.run(promotion_engine.validate(ORDER, "s", world.now + 5))
    assert caught.value is problem
    assert logged(caplog) == []


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), Forbidden("no", reason="no"), EngineRejected("no", reason="no", detail=Text()), StopIteration()],
    ids=repr,
)
def test_other_errors_become_adapter_faults(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    promotion_engine, world = held(Scripted(error, request()))
    deadline = world.now + 5
    calls = {
        "validate": promotion_engine.validate(ORDER, "s", deadline),
        "check": promotion_engine.check(ORDER, "s", deadline),
        "look_up": promotion_engine.look_up(ORDER, "s", "", deadline),
        "undo": promotion_engine.undo(None, "s", "", deadline, final=True),
        "repair": promotion_engine.repair(ORDER, "s", (), deadline),
    }
    for method, call in calls.items():
        caplog.clear()
        with pytest.raises(AdapterFault) as caught:
            asyncio.run(call)
        assert caught.value.__cause__ is not None
        assert logged(caplog) == [("fake", method)]


def test_plain_method_instead_of_conversation_is_adapter_fault() -> None:
    class Plain(FakeAdapter):
        def validate(self, checkout: Checkout, session: str) -> Any:
            return Outcome()

    promotion_engine, world = held(Plain())
    with pytest.raises(AdapterFault):
        asyncio.run(promotion_engine.validate(ORDER, "s", world.now + 5))


def test_undeclared_capability_is_not_called(caplog: pytest.LogCaptureFixture) -> None:
    adapter = Scripted(GRANTED, request())
    adapter.capabilities = msgspec.structs.replace(adapter.capabilities, check=False, undo=False)
    promotion_engine, world = held(adapter)
    assert asyncio.run(promotion_engine.check(ORDER, "s", world.now + 5)) is None
    with pytest.raises(EngineRejected) as caught:
        asyncio.run(promotion_engine.undo(None, "s", "", world.now + 5, final=True))
    assert caught.value.reason == "no_undo"
    assert (world.sent, logged(caplog)) == ([], [])
