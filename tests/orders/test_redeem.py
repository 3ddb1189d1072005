"""One order under failures: what each caller gets, and what happens without a caller."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mapper import promotions
from mapper.adapter import (
    Conversation,
    EngineRequest,
    LookedUp,
    Notice,
    NotRedeemed,
    Outcome,
    Redeemed,
)
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.errors import EngineRejected, EngineUnavailable, OrderMismatch, OutcomePending
from mapper.engine.transport import NotSent, Unknown
from mapper.orders import redeem
from mapper.orders.ledger import PRUNE_BATCH, Ledger
from mapper.orders.redeem import RETRY_AFTER_S, OrderRedeemer
from mapper.orders.rows import Answer, Backlog, Fenced, Key, LedgerUnavailable, Moment, Row, State, Terms
from mapper.orders.sqlite import SqliteStore
from mapper.promotions import Call, Service
from tests.fakes import CAPABILITIES, SECRET, FakeAdapter, settings, signed
from tests.house import CHECKOUT, REFUSED, TEN_OFF, House, order_with_discount, reconcile, to_order

ORDERED = order_with_discount("10.00")
CHANGED = {**ORDERED, "order_items": [{"sku": "S", "quantity": 2, "price": "140.00"}]}


@pytest.fixture
def house() -> House:
    house = House()
    house.adapter.granted = TEN_OFF
    return house


def ordered(house: House, order: str, **changes: Any) -> dict[str, Any]:
    """An order from checkout c-1 with its receipt, under its own id."""
    return {**to_order(house("validate", CHECKOUT | changes)), "id": order}


# -- A redemption that certainly failed waits for its caller -------------------------------------------------------

NOT_DONE = [NotSent("connect"), 429, 409, 401]


def fail(house: House, failure: int | Exception, times: int = 9) -> None:
    """Makes the next redeeming requests fail; 401: the adapter reports a wrong key."""
    house.wire.script["redeem"] = [failure] * times
    house.adapter.on_redeem = EngineRejected("our key is wrong", reason="engine_key") if failure == 401 else None


def mend(house: House) -> None:
    house.wire.script, house.wire.sent, house.adapter.on_redeem = {}, [], None


@pytest.mark.parametrize("failure", NOT_DONE)
def test_failed_redemption_is_not_retried_without_caller(house: House, failure: int | Exception) -> None:
    fail(house, failure)
    problem = house.refusal("consume", ORDERED)
    assert (problem.status("consume"), problem.category in ("engine_unavailable", "engine_rejected")) == (500, True)
    assert problem.retry_after == 1
    assert house.row().state is State.RETRYABLE
    mend(house)
    for _ in range(30):
        house.reconcile(after_s=600)
    assert house.wire.sent == [], "its caller is gone, and with it the order"
    assert house("consume", CHANGED)["order"]["id"] == "c-1", "and the next may bring other content"
    assert house.wire.sent == ["check", "redeem"]


@pytest.mark.parametrize("failure", [NotSent("connect"), 429, 409])
def test_temporary_failure_is_retried_while_caller_waits(house: House, failure: int | Exception) -> None:
    fail(house, failure, times=2)
    assert house("consume", ORDERED)["order"] == ORDERED
    assert house.wire.sent.count("redeem") == 3


@pytest.mark.parametrize(("within_s", "pauses"), [(8, [0.2, 0.5, 1.0]), (1.0, [0.2]), (0.4, [])])
def test_retry_pauses_grow_and_leave_time_for_retry(house: House, within_s: float, pauses: list[float]) -> None:
    fail(house, 429, times=99)

    async def call(service: Service) -> None:
        data, headers = signed(ORDERED)
        await promotions.consume(service, Call(data, headers, house.time + within_s))

    with pytest.raises(EngineUnavailable):
        asyncio.run(house.within(call))
    assert [pause for pause in house.pauses if pause > 0.1] == pauses, "those of the engine's own retries are shorter"


def test_redeem_later_retries_by_schedule_then_waits_for_caller() -> None:
    house = House(MAPPER_AFTER_FAILURE="redeem_later")
    fail(house, 429, times=999)
    house.refusal("consume", ORDERED)
    delays: list[float] = []
    while (due_at := house.row().next_check_at) is not None:
        delays.append(round(due_at - house.time))
        if len(delays) == 5:
            assert house.refusal("consume", ORDERED).retry_after == delays[-1] == 60
        else:
            house.reconcile(after_s=due_at - house.time)
    # The first caller's last try counts; a later caller uses up none.
    assert delays == [*RETRY_AFTER_S[1:6], 60, *RETRY_AFTER_S[6:]]


def test_wrong_key_is_not_retried(house: House) -> None:
    fail(house, 401)
    house.refusal("consume", ORDERED)
    assert house.wire.sent.count("redeem") == 1


def test_redeem_later_redeems_without_caller() -> None:
    house = House(MAPPER_AFTER_FAILURE="redeem_later")
    house.adapter.granted = TEN_OFF
    fail(house, NotSent("connect"))
    assert house.refusal("consume", ORDERED).category == "engine_unavailable"
    house.wire.script = {}
    house.reconcile(after_s=60)
    house.wire.sent = []
    assert house.row().confirmed_at is None
    assert house("consume", ORDERED)["order"] == ORDERED
    assert house.wire.sent == []


def test_unsent_order_of_dead_process_waits_for_caller(house: House) -> None:
    hold(house)
    house.reconcile(after_s=40)
    assert (house.row().state, house.wire.sent) == (State.RETRYABLE, [])
    assert (house.row().reason, house.row().attempt) == ("caller_gone", 1)


@pytest.mark.parametrize(("policy", "end", "times"), [("wait", State.RETRYABLE, 1), ("redeem_later", State.DONE, 2)])
def test_absent_redemption_is_resent_only_by_redeem_later(policy: str, end: State, times: int) -> None:
    house = House(MAPPER_AFTER_FAILURE=policy)
    house.adapter.granted = TEN_OFF
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    for after_s in (61, 2, 2, 2):
        house.reconcile(after_s=after_s)
    assert (house.row().state, house.wire.sent.count("redeem")) == (end, times)
    assert end is not State.RETRYABLE or house.row().reason == "absent"


@pytest.mark.parametrize(
    ("within_s", "quarantine_s", "retry_after"),
    [(0.05, 60, 1), (0.15, 60, 60), (0.15, 0, 1)],
    ids=["unsent", "sent", "none"],
)
def test_timed_out_caller_gets_end_of_quarantine_as_retry_after(
    house: House, within_s: float, quarantine_s: float, retry_after: int
) -> None:
    house.wire.pause = 0.1

    async def call(service: Service) -> None:
        service.redeemer.ledger = dataclasses.replace(service.redeemer.ledger, quarantine_s=quarantine_s)
        data, headers = signed(ORDERED)
        await promotions.consume(service, Call(data, headers, house.time + within_s))

    with pytest.raises(OutcomePending) as raised:
        asyncio.run(house.within(call))
    assert (raised.value.reason, raised.value.retry_after) == ("still_working", retry_after)


def test_drain_stops_waiting_at_time_limit(house: House) -> None:
    house.wire.pause = 30

    async def call(service: Service) -> None:
        data, headers = signed(ORDERED)
        caller = asyncio.create_task(promotions.consume(service, Call(data, headers, house.time + 8)))
        await asyncio.sleep(0.05)
        await service.redeemer.drain(0.01)
        assert service.redeemer._running
        for task in (caller, *service.redeemer._running):
            task.cancel()

    asyncio.run(asyncio.wait_for(house.within(call), 10))


# -- Refusals are not stored as answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("again", [ORDERED, CHANGED, {**ORDERED, "promotions": {}}])
def test_refused_order_is_checked_again(house: House, again: dict[str, Any]) -> None:
    house.adapter.granted = REFUSED
    assert house.refusal("consume", ORDERED).category == "promotion_codes"
    assert house.row().state is State.REJECTED
    house.adapter.granted = Outcome() if again is CHANGED else TEN_OFF
    assert house("consume", again)["order"]["id"] == "c-1"
    assert house.wire.sent == ["check", "check", "redeem"]


def test_order_refused_for_drift_is_checked_again() -> None:
    house = House(MAPPER_ON_DRIFT="refuse")
    assert house.refusal("consume", ORDERED).category == "amount_mismatch"
    house.adapter.granted = TEN_OFF
    assert house("consume", ORDERED)["order"] == ORDERED


@pytest.mark.parametrize("was", ["refused", "not done"])
def test_request_of_gone_caller_leaves_order_unchanged(house: House, was: str) -> None:
    """The caller hung up while this process was paused; another process has answered the order since."""
    if was == "refused":
        house.adapter.granted = REFUSED
    else:
        fail(house, NotSent("connect"))
    house.refusal("consume", ORDERED)
    before = house.row()
    mend(house)

    async def call(service: Service) -> None:
        data, headers = signed(ORDERED)
        await promotions.consume(service, Call(data, headers, house.time + 8, has_hung_up=lambda: True))

    with pytest.raises(OutcomePending) as raised:
        asyncio.run(house.within(call))
    assert (raised.value.reason, house.wire.sent) == ("waiting", [])
    assert (house.row().state, house.row().reason) == (before.state, before.reason)


# -- After a 2xx to the redeeming request, nothing counts as not redeemed ------------------------------------------


class Broken(FakeAdapter):
    """Raises after the engine has redeemed; declares the request repeatable."""

    error: Exception = ValueError("a bug")

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        yield EngineRequest(operation="redeem", method="POST", path="/redeem", effect="redeems", repeatable=True)
        raise self.error


BUGS = [
    ValueError("a bug"),
    EngineRejected("the rollback of the surplus was answered 403", reason="engine_key"),
    EngineUnavailable("it says so, but it does not know", reason="adapter"),
    OrderMismatch("another cart", reason="order_mismatch"),
]


@pytest.mark.parametrize("error", BUGS)
@pytest.mark.parametrize("found", ["redeemed", "absent", "unclear"])
def test_adapter_error_after_2xx_causes_look_up_not_resend(house: House, error: Exception, found: Any) -> None:
    house.adapter = Broken()
    house.adapter.granted, house.adapter.error = TEN_OFF, error
    house.configured = dataclasses.replace(house.configured, adapter=house.adapter)
    house.adapter.found = LookedUp(found, TEN_OFF)
    if found == "redeemed":
        assert house("consume", ORDERED)["order"] == ORDERED
    else:
        assert house.refusal("consume", ORDERED).category == "outcome_pending"
    for _ in range(50):
        house.reconcile(after_s=1)
    assert house.wire.sent.count("redeem") == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_means_redeemed(house: House, status: int) -> None:
    house.wire.script["redeem"] = [status]
    assert house("consume", ORDERED)["order"] == ORDERED
    assert house.wire.sent == ["check", "redeem"]


# -- The adapter returns NotRedeemed -------------------------------------------------------------------------------


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize(
    ("found", "end"), [("absent", State.REJECTED), ("redeemed", State.DONE), ("unclear", State.UNKNOWN)]
)
def test_not_redeemed_is_confirmed_by_look_up(house: House, found: Any, end: State, undo: bool) -> None:
    house.adapter.capabilities = msgspec.structs.replace(house.adapter.capabilities, undo=undo)
    house.adapter.on_redeem = NotRedeemed(REFUSED.rejected)
    house.adapter.found = LookedUp(found, TEN_OFF)
    if end is State.DONE:
        assert house("consume", ORDERED)["order"] == ORDERED
    else:
        category = "promotion_codes" if end is State.REJECTED else "outcome_pending"
        assert house.refusal("consume", ORDERED).category == category
    assert (house.row().state, house.wire.sent[:3]) == (end, ["check", "redeem", "look_up"])
    assert house.wire.sent.count("redeem") == 1


@pytest.mark.parametrize("told_by", ["answer", "look-up"])
def test_partial_redemption_is_undone_before_any_answer(house: House, told_by: str) -> None:
    partly = Outcome(discounts=TEN_OFF.discounts, rejected=REFUSED.rejected)
    house.adapter.on_redeem, house.adapter.found = partly, LookedUp("redeemed", partly)
    house.wire.script = {"undo": [Unknown("timeout")] * 99}
    if told_by == "look-up":
        house.wire.script["redeem"] = [Unknown("timeout")]
    problem = house.refusal("consume", ORDERED)
    assert (problem.category, house.row().state, house.row().reason) == (
        "outcome_pending",
        State.UNKNOWN,
        "undo_timeout",
    )
    house.wire.script = {}
    house.reconcile(after_s=61)
    assert (house.row().state, house.wire.sent[-1], house.wire.sent.count("redeem")) == (State.REJECTED, "undo", 1)
    assert set(house.adapter.undone) == {("c-1", False)}, "not for good: the order may be sent again"


def test_partial_redemption_without_undo_is_done_with_notice(house: House) -> None:
    house.adapter.capabilities = msgspec.structs.replace(house.adapter.capabilities, undo=False)
    house.adapter.on_redeem = Outcome(discounts=TEN_OFF.discounts, rejected=REFUSED.rejected)
    (notice,) = house("consume", ORDERED)["order"]["promotions"]["meta"]["mapper"]["notices"]
    assert (notice["type"], notice["payload"]["rejected"][0]["code"]) == ("redeemed_in_part", "TEN")
    assert house.row().state is State.DONE


def test_notices_of_refused_redemption_are_returned() -> None:
    house = House(MAPPER_ON_REJECTED="apply_rest")
    house.adapter.granted = Outcome(rejected=REFUSED.rejected)
    house.adapter.on_redeem = NotRedeemed(REFUSED.rejected, (Notice("campaign", "It ends today.", {}),))
    notices = house("consume", ORDERED)["order"]["promotions"]["meta"]["mapper"]["notices"]
    assert [notice["type"] for notice in notices] == ["campaign", "amount_mismatch"]


def test_apply_rest_with_all_codes_refused_reports_drift() -> None:
    house = House(MAPPER_ON_REJECTED="apply_rest")
    house.adapter.granted = Outcome(rejected=REFUSED.rejected)
    house.adapter.on_redeem = NotRedeemed(REFUSED.rejected)
    got = house("consume", ORDERED)["order"]
    assert [notice["type"] for notice in got["promotions"]["meta"]["mapper"]["notices"]] == ["amount_mismatch"]
    assert (house.row().state, house.record.drift) == (State.DONE, {"order": "10.00", "engine": "0.00"})


# -- The same order ------------------------------------------------------------------------------------------------


def test_same_bytes_are_same_order_after_settings_change(house: House) -> None:
    bare = {**ORDERED, "id": "c-1"}
    first = house.bytes("consume", bare)
    house.configured = settings(
        house.adapter, MAPPER_DEFAULT_CURRENCY="JPY", MAPPER_CUSTOMER_PATH="/id", MAPPER_RECEIPT="required"
    )
    assert house.bytes("consume", bare) == first
    assert house.wire.sent == ["check", "redeem"]


@pytest.mark.parametrize(("before", "now"), [("", "EUR"), ("USD", ""), ("USD", "EUR"), ("USD", "JPY")])
def test_order_without_currency_matches_after_default_currency_changes(house: House, before: str, now: str) -> None:
    house.configured = dataclasses.replace(house.configured, default_currency=before)
    house("consume", ORDERED)
    house.configured = dataclasses.replace(house.configured, default_currency=now)
    assert house("consume", {**ORDERED, "note": "leave it at the door"})["order"]["note"]
    assert house.refusal("consume", {**ORDERED, "currency": now or "EUR"}).category == "order_mismatch"


def test_look_up_keeps_currency_of_first_attempt(house: House) -> None:
    house.wire.script = {"redeem": [Unknown("timeout")], "look_up": [503] * 9}
    house.refusal("consume", ORDERED)
    house.wire.script = {}
    house.configured = settings(house.adapter, MAPPER_DEFAULT_CURRENCY="EUR")
    house.reconcile(after_s=61)
    assert {(order.currency, handle) for order, handle in house.adapter.looked_up} == {("", "")}


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"shipping_address": {"street": "Elsewhere 2"}},
        {"payments": [{"id": "pay-2"}]},
        {"note": "leave it at the door"},
        {"promotions": {"identifiers": ["203.0.113.77"]}},
        {"promotions": {"meta": {"utm": "x"}}},
    ],
)
def test_replay_returns_callers_bytes_with_stored_notices(house: House, elsewhere: dict[str, Any]) -> None:
    house.adapter.granted = Outcome(discounts=TEN_OFF.discounts, notices=(Notice("coupon", "A coupon", {"v": 1.10}),))
    first = {**ORDERED, "promotions": {"identifiers": ["203.0.113.1"]}, "shipping_address": {"street": "Here 1"}}
    told = house("consume", first)["order"]["promotions"]["meta"]["mapper"]["notices"]
    house.wire.sent = []
    again = house("consume", {**first, **elsewhere})["order"]
    assert again["promotions"]["meta"]["mapper"].pop("notices") == told
    assert {key: again[key] for key in elsewhere if key != "promotions"} == {
        key: value for key, value in elsewhere.items() if key != "promotions"
    }
    assert house.wire.sent == []


@pytest.mark.parametrize(
    "change",
    [
        {"order_items": [{"sku": "S", "quantity": 2, "price": "140.00"}]},
        {"promotions": {"coupon_codes": ["OTHER"]}},
        {"promotions": {"referral_code": "R"}},
        {"promotions": {"loyalty_card": "L"}},
        {"discounts": "1.00"},
        {"currency": "EUR"},
        {"customer": {"id": "jane"}},
        {"shipping_rate": {"price": "7.00"}},
    ],
)
def test_changed_content_gets_order_mismatch(house: House, change: dict[str, Any]) -> None:
    house.adapter.cost_pointers = ("/shipping_rate/price",)
    house("consume", ORDERED)
    problem = house.refusal("consume", {**ORDERED, **change})
    assert (problem.category, problem.details) == ("order_mismatch", {"reason": "order_mismatch"})


@pytest.mark.parametrize("state", ["in flight", "unknown"])
@pytest.mark.parametrize("again", [ORDERED, CHANGED])
def test_order_with_unknown_outcome_is_pending_for_any_content(house: House, state: str, again: dict[str, Any]) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    if state == "unknown":
        house.refusal("consume", ORDERED)
    else:
        hold(house)
    problem = house.refusal("consume", again)
    assert (problem.category, problem.status("consume")) == ("outcome_pending", 500)
    assert problem.retry_after is not None
    assert problem.retry_after >= (40 if state == "unknown" else 1)
    assert house.wire.sent.count("redeem") == (1 if state == "unknown" else 0)


def hold(house: House) -> None:
    """Another process has claimed the order."""

    async def claim(service: Service) -> None:
        order = documents.parse(json.dumps(ORDERED).encode(), "consume")
        terms = Terms("c-1", from_receipt=False)
        job = service.redeemer.job(Key("", "fake", "c-1"), order, terms, house.record)
        await service.redeemer.ledger.claim(job.ask)

    asyncio.run(house.within(claim))


# -- One session, one order ----------------------------------------------------------------------------------------


def test_cart_cannot_be_redeemed_under_second_id(house: House) -> None:
    order = ordered(house, "o-1")
    house("consume", order)
    house.wire.sent = []
    problem = house.refusal("consume", {**order, "id": "o-2"})
    assert (problem.category, problem.status("consume"), house.wire.sent) == ("order_mismatch", 400, [])
    assert problem.details == {"reason": "session_of_another_order", "order": "o-1"}
    assert house("consume", order)["order"]["id"] == "o-1"


def test_unconfirmed_redemption_moves_to_new_id(house: House) -> None:
    order = ordered(house, "o-1")
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", order)
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house.reconcile(after_s=60)
    assert house.row("o-1").confirmed_at is None
    house.wire.sent = []
    other = {**order, "order_items": [{**order["order_items"][0], "quantity": 2}], "id": "o-2"}
    assert house.refusal("consume", other).details["order"] == "o-1", "only the same cart"
    assert house("consume", {**order, "id": "o-2"})["order"]["id"] == "o-2"
    assert house.row("o-2").reason == "passed_on"
    assert house.wire.sent == []
    for again in (order, {**order, "promotions": {"coupon_codes": ["TEN", "X"]}}, {**CHANGED, "id": "o-1"}):
        assert house.refusal("consume", {**again, "id": "o-1"}).details["order"] == "o-2", "it is that one's now"
    assert "redeem" not in house.wire.sent
    assert house("consume", {**order, "id": "o-2"})["order"]["id"] == "o-2"


def test_unconfirmed_redemption_moves_to_id_refused_before(house: House) -> None:
    house.adapter.granted = REFUSED
    house.refusal("consume", {**ORDERED, "id": "o-2"})
    house.adapter.granted = TEN_OFF
    test_unconfirmed_redemption_moves_to_new_id(house)


@pytest.mark.parametrize(("state", "wait_s"), [("in flight", 30), ("nearly free", 1), ("unknown", 55)])
def test_order_is_pending_while_another_holds_session(house: House, state: str, wait_s: int) -> None:
    if state == "unknown":
        house.wire.script["redeem"] = [Unknown("timeout")]
        house.refusal("consume", ORDERED)
    else:
        hold(house)
        house.time += 29.6 if state == "nearly free" else 0
    house.wire.sent = []
    note = house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]
    problem = house.refusal("consume", {**ORDERED, "id": "o-2", "promotions": {"meta": note}})
    assert (problem.category, problem.status("consume")) == ("outcome_pending", 500)
    assert (problem.reason, problem.retry_after) == ("unknown_outcome", wait_s)
    assert "redeem" not in house.wire.sent


def test_waiting_order_releases_session_to_next_order(house: House) -> None:
    order = ordered(house, "o-1")
    fail(house, NotSent("connect"))
    house.refusal("consume", order)
    house.wire.script = {}
    house("consume", {**order, "id": "o-2"})
    assert house.adapter.sessions[-1] == ("redeem", "c-1")
    assert house.refusal("consume", order).details["order"] == "o-2"


@pytest.mark.parametrize("freed", ["refused", "cancelled"])
def test_order_with_freed_session_is_redeemed_in_new_session(house: House, freed: str) -> None:
    order = ordered(house, "o-1")
    if freed == "refused":
        house.adapter.granted = REFUSED
        house.refusal("consume", order)
        house.adapter.granted = TEN_OFF
    else:
        house("consume", order)
        house.cancel("o-1")
    house("consume", {**order, "id": "o-2"})
    assert house.adapter.sessions[-2:] == [("check", "c-1~2"), ("redeem", "c-1~2")]
    assert house("consume", {**order, "id": "o-2"})["order"]["id"] == "o-2"


def refused_order(house: House) -> dict[str, Any]:
    """An order o-1 that is refused. Its cart is then free for another order."""
    order = ordered(house, "o-1")
    house.adapter.granted = REFUSED
    house.refusal("consume", order)
    house.adapter.granted, house.wire.sent = TEN_OFF, []
    return order


@pytest.mark.parametrize("receipt", [True, False])
def test_refused_order_is_not_redeemed_if_cart_was_taken(house: House, receipt: bool) -> None:
    order = refused_order(house)
    house("consume", {**order, "id": "o-2"})
    again = order if receipt else {**order, "promotions": {"coupon_codes": ["TEN", "X"]}}
    problem = house.refusal("consume", again)
    assert problem.details == {"reason": "session_of_another_order", "order": "o-2"}
    assert house.wire.sent.count("redeem") == 1


def test_shared_cart_belongs_to_first_order_that_redeems_it(house: House) -> None:
    order = refused_order(house)
    bare = {**order, "id": "o-2", "promotions": {"coupon_codes": ["TEN", "X"]}}
    fail(house, NotSent("connect"))
    house.refusal("consume", {**order, "id": "o-2"})
    mend(house)
    house("consume", order)
    for again in (bare, {**order, "id": "o-2"}):
        assert house.refusal("consume", again).details["order"] == "o-1"
    assert house.wire.sent.count("redeem") == 1


@pytest.mark.parametrize("state", ["unknown", "unconfirmed", "refused"])
def test_taken_over_cart_is_lost_only_after_confirmed_redemption(house: House, state: str) -> None:
    order = refused_order(house)
    if state == "refused":
        house.adapter.granted = REFUSED
    else:
        house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", {**order, "id": "o-2"})
    house.adapter.granted, house.wire.sent = TEN_OFF, []
    if state == "unknown":
        assert house.refusal("consume", order).category == "outcome_pending"
        return
    if state == "unconfirmed":
        house.adapter.found = LookedUp("redeemed", TEN_OFF)
        house.reconcile(after_s=60)
    assert house("consume", order)["order"]["id"] == "o-1"
    assert house.wire.sent.count("redeem") == (state == "refused")
    assert house.refusal("consume", {**order, "id": "o-2"}).details["order"] == "o-1"


def test_refused_order_may_bring_new_cart(house: House) -> None:
    order = refused_order(house)
    house("consume", {**order, "id": "o-2"})
    receipt = to_order(house("validate", CHECKOUT))["promotions"]
    assert receipt["meta"]["mapper"]["session"] == "c-1~3", "one that no order has finished with"
    house("consume", {**order, "promotions": receipt})
    assert house.adapter.sessions[-1] == ("redeem", "c-1~3")


def test_retry_keeps_rows_session(house: House) -> None:
    order = ordered(house, "o-1")
    fail(house, 429)
    house.refusal("consume", order)
    house.wire.script = {"redeem": [Unknown("timeout")]}
    bare = {**order, "promotions": {"coupon_codes": ["TEN", "X"]}}
    house.refusal("consume", bare)
    assert {session for _, session in house.adapter.sessions} == {"c-1"}
    receipt = to_order(house("validate", CHECKOUT | {"id": "c-9"}))["promotions"]
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house("consume", {**order, "promotions": receipt})
    assert house.adapter.sessions[-1] == ("look_up", "c-1")


def test_refused_order_takes_session_of_new_receipt(house: House) -> None:
    order = ordered(house, "o-1")
    house.adapter.granted = REFUSED
    house.refusal("consume", order)
    house.adapter.granted = TEN_OFF
    receipt = to_order(house("validate", CHECKOUT | {"id": "c-9"}))["promotions"]
    house("consume", {**order, "promotions": receipt})
    assert house.adapter.sessions[-1] == ("redeem", "c-9")


def test_only_one_of_concurrent_orders_with_one_session_is_redeemed(house: House) -> None:
    order = ordered(house, "o-1")
    house.wire.pause = 0.01

    async def both(service: Service) -> list[Any]:
        bodies = [signed({**order, "id": name}) for name in ("o-1", "o-2", "o-3")]
        calls = (promotions.consume(service, Call(data, headers, house.time + 1)) for data, headers in bodies)
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(house.within(both))
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert house.wire.sent.count("redeem") == 1


# -- Validate and finished sessions --------------------------------------------------------------------------------


def test_cart_gets_new_session_after_its_order(house: House) -> None:
    house("consume", ordered(house, "o-1"))
    again = house("validate", CHECKOUT)["checkout"]
    assert again["promotions"]["meta"]["mapper"]["session"] == "c-1~2"
    house("consume", {**to_order({"checkout": again}), "id": "o-2"})
    assert house.adapter.sessions[-1] == ("redeem", "c-1~2")
    assert house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c-1~3"


def test_cart_gets_new_session_if_engine_closed_it(house: House) -> None:
    house.wire.script["validate"] = [EngineRejected("completed", reason="session_closed")]
    assert house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c-1~2"


def test_cart_whose_many_orders_the_ledger_has_forgotten_gets_new_session(house: House) -> None:
    house.wire.script["validate"] = [EngineRejected("completed", reason="session_closed")] * 9
    assert house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c-1~257"
    assert [name for _, name in house.adapter.sessions][:5] == ["c-1", "c-1~2", "c-1~3", "c-1~5", "c-1~9"]
    house.wire.script["validate"] = [EngineRejected("completed", reason="session_closed")] * 10
    assert house.refusal("validate", CHECKOUT).reason == "session_closed"


def test_validate_works_without_ledger(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> str:
        raise LedgerUnavailable("unreachable")

    monkeypatch.setattr(Ledger, "free_session", away)
    assert house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c-1"


# -- Idempotency keys ----------------------------------------------------------------------------------------------


def test_resend_keeps_idempotency_key(house: House) -> None:
    fail(house, NotSent("connect"), times=2)
    house("consume", ORDERED)
    assert house.adapter.attempts == ["/c-1/1", "/c-1/1"], "nothing had arrived"


def test_rate_limit_beyond_deadline_is_returned_at_once(house: House) -> None:
    def busy(*_: object) -> Conversation[Outcome]:
        raise EngineUnavailable("over its quota", reason="rate_limited", retry_after=9)
        yield

    house.adapter.check = busy  # type: ignore[assignment,method-assign]
    began, problem = house.time, house.refusal("consume", ORDERED)
    assert (problem.reason, problem.retry_after, house.time) == ("rate_limited", 9, began)


def test_redemption_refused_before_sending_waits_for_caller(house: House) -> None:
    def refuse(*_: object) -> Conversation[Redeemed | NotRedeemed]:
        raise EngineRejected("our key is missing", reason="engine_key")
        yield

    house.adapter.redeem = refuse  # type: ignore[assignment,method-assign]
    assert house.refusal("consume", ORDERED).reason == "engine_key"
    assert (house.row().state, house.row().sent_at, house.wire.sent) == (State.RETRYABLE, None, ["check"])


@pytest.mark.parametrize("answer", ["429", "refused"])
def test_try_after_answered_attempt_has_new_idempotency_key(house: House, answer: str) -> None:
    if answer == "429":
        fail(house, 429)
    else:
        house.adapter.on_redeem = NotRedeemed(REFUSED.rejected)
    house.refusal("consume", ORDERED)
    house.wire.script, house.adapter.on_redeem = {}, None
    house("consume", ORDERED)
    assert house.adapter.attempts[0] == "/c-1/1"
    assert len(set(house.adapter.attempts)) == len(house.adapter.attempts)


def test_resend_of_unanswered_attempt_keeps_idempotency_key(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    for _ in range(80):
        house.reconcile(after_s=1)
    house("consume", ORDERED)
    assert house.adapter.attempts == ["/c-1/1", "/c-1/1"]


# -- A receipt is judged only before a new attempt -----------------------------------------------------------------


def test_replay_ignores_rotated_secret_and_expired_receipt(house: House) -> None:
    order = ordered(house, "o-1")
    first = house.bytes("consume", order)
    house.now += 200_000
    house.configured = settings(
        house.adapter, NACELLE_SIGNING_SECRETS=f"{SECRET.decode()},a new one that is long", MAPPER_RECEIPT="required"
    )
    assert house.bytes("consume", order) == first
    order["promotions"]["meta"]["mapper"]["session"] = "another's"
    assert json.loads(house.bytes("consume", order))["order"]["id"] == "o-1"
    assert house.wire.sent.count("redeem") == 1


def test_degraded_order_is_done_with_nothing_redeemed() -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")
    house.wire.script["validate"] = [503] * 9
    order = to_order(house("validate", CHECKOUT))
    first = house.bytes("consume", order)
    assert (house.row().state, house.row().reason, house.record.degraded) == (State.DONE, "degraded", True)
    house.now += 999_999
    assert house.bytes("consume", order) == first
    assert house.refusal("consume", {**order, "discounts": "1.00"}).category == "order_mismatch"
    assert set(house.wire.sent) == {"validate"}
    assert house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c-1"


def test_degraded_order_whose_write_failed_is_never_redeemed(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount", MAPPER_AFTER_FAILURE="redeem_later")
    house.wire.script["validate"] = [503] * 9
    order = to_order(house("validate", CHECKOUT))
    house.wire.sent = []
    change, writes = SqliteStore.change, 0

    async def full_after_first(self: SqliteStore, key: Key, step: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes > 1:
            raise LedgerUnavailable("full")
        return await change(self, key, step)

    with monkeypatch.context() as full:
        full.setattr(SqliteStore, "change", full_after_first)
        assert house.refusal("consume", order).reason == "ledger_full"
    house.reconcile(after_s=60)
    assert (house.row().reason, house.wire.sent) == ("degraded", [])


# -- The rest of a row ---------------------------------------------------------------------------------------------


def test_look_up_for_caller_with_other_content_confirms_nothing(house: House) -> None:
    house.wire.script = {"redeem": [Unknown("timeout")], "look_up": [503] * 9}
    house.refusal("consume", ORDERED)
    house.wire.script = {}
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house.time += 20
    assert house.refusal("consume", CHANGED).category == "order_mismatch"
    assert (house.row().state, house.row().confirmed_at) == (State.DONE, None)
    house("consume", ORDERED)
    assert house.row().confirmed_at is not None


def test_replay_to_a_caller_who_has_hung_up_confirms_nothing(house: House) -> None:
    fail(house, NotSent("connect"))
    house.refusal("consume", ORDERED)
    row = house.row()

    async def replay(service: Service) -> Answer:
        redeemer = service.redeemer
        order = documents.parse(json.dumps(ORDERED).encode(), "consume")
        job = redeemer.job(row.key, order, Terms("c-1", from_receipt=False), house.record, lambda: True)
        return await redeemer.consume(job, house.time + 8)

    mend(house)
    house.wire.script = {"redeem": [Unknown("timeout")], "look_up": [503] * 9}
    house.refusal("consume", ORDERED)
    house.wire.script = {}
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house.reconcile(after_s=20)
    assert asyncio.run(house.within(replay)).reason == "replayed"
    assert house.row().confirmed_at is None


@pytest.mark.parametrize("failing", ["check", "redeem"])
def test_unanswered_request_outlives_a_later_attempt_that_sent_nothing(house: House, failing: str) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    house.reconcile(after_s=61)
    house.reconcile(after_s=2)
    before = house.row()
    assert (before.state, before.sent_at is not None) == (State.RETRYABLE, True)
    house.wire.script[failing] = [429 if failing == "check" else NotSent("connect")] * 9
    house.refusal("consume", ORDERED)
    assert (house.row().sent_at, house.row().attempt) == (before.sent_at, before.attempt)
    mend(house)
    house.time += 600
    house.adapter.found = LookedUp("redeemed", TEN_OFF)  # it was executed late
    assert house("consume", ORDERED)["order"]["id"] == "c-1"
    assert house.wire.sent == ["look_up"]


def test_outcome_is_pending_if_it_cannot_be_recorded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> Row:
        raise LedgerUnavailable("full")

    monkeypatch.setattr(Ledger, "redeemed", full)
    problem = house.refusal("consume", ORDERED)
    assert (problem.category, problem.reason, problem.retry_after) == ("outcome_pending", "ledger_full", 60)


def test_outcome_is_not_pending_if_it_was_recorded_as_not_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, claims = Ledger.claim, 0

    async def full_after_first(self: Ledger, ask: Any) -> Any:
        nonlocal claims
        claims += 1
        if claims > 1:
            raise LedgerUnavailable("full")
        return await claim(self, ask)

    monkeypatch.setattr(Ledger, "claim", full_after_first)
    fail(house, 429, times=2)
    problem = house.refusal("consume", ORDERED)
    assert (claims, problem.category, problem.retry_after) == (2, "internal", 5)


def test_order_in_another_session_gets_the_product_data_of_its_cart(house: House) -> None:
    sessions: list[str] = []

    async def fill(order: Checkout, _space: str, session: str) -> Checkout:
        sessions.append(session)
        return order

    async def call(service: Service, body: object) -> Answer:
        service.redeemer.fill = fill
        data, headers = signed(body)
        return await promotions.consume(service, Call(data, headers, house.time + 8))

    first, second = ordered(house, "o-1"), ordered(house, "o-2")
    house.adapter.granted = REFUSED
    house.refusal("consume", first)
    house.adapter.granted = TEN_OFF
    asyncio.run(house.within(lambda service: call(service, second)))
    assert (house.row("o-2").session, sessions) == ("c-1~2", ["c-1"])


@pytest.mark.parametrize("is_told", [True, False])
def test_redemption_is_confirmed_only_by_caller_still_connected(house: House, is_told: bool) -> None:
    house.wire.pause = 0.05

    async def call(service: Service) -> None:
        data, headers = signed(ORDERED)
        caller = asyncio.create_task(promotions.consume(service, Call(data, headers, house.time + 8)))
        if not is_told:
            await asyncio.sleep(0.02)
            caller.cancel()
        await asyncio.wait({caller})
        await service.redeemer.drain(5)

    asyncio.run(house.within(call))
    row = house.row()
    assert (row.state, row.confirmed_at is not None) == (State.DONE, is_told)
    house("consume", ORDERED)
    assert house.row().confirmed_at is not None


def test_order_ends_as_done_or_repaired(house: House, caplog: pytest.LogCaptureFixture) -> None:
    answer = house.answer("consume", ORDERED)
    assert (answer.status, answer.reason, json.loads(answer.reply)["order"]) == (200, "redeemed", ORDERED)
    assert (house.row().state, house.row().reason, house.record.clamped) == (State.DONE, "redeemed", False)
    assert not caplog.records
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    began = house.time
    house("consume", {**ORDERED, "id": "c-2"})
    assert (house.row("c-2").state, house.row("c-2").reason) == (State.REPAIRED, "redeemed_twice")
    assert house.time == began, "what a look-up finds is answered at once"
    assert (house.wire.sent[-2:], house.adapter.surplus) == (["look_up", "repair"], [("r_2",)])


def test_failed_repair_is_retried_before_any_answer(house: House) -> None:
    house.wire.script = {"redeem": [Unknown("timeout")], "repair": [403, 503, Unknown("timeout")] * 30}
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    assert house.refusal("consume", ORDERED).category == "outcome_pending"
    assert house.row().reason.startswith("repair_")
    house.wire.script = {}
    house.reconcile(after_s=100)
    assert house.row().state is State.REPAIRED
    assert house.wire.sent.count("redeem") == 1


def found_by_look_up(house: House) -> bytes:
    """Redeems an order whose request got no answer and whose look-up found one redemption; a second appears later."""
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    answer = house.bytes("consume", ORDERED)
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    house.wire.sent.clear()
    return answer


def test_late_duplicate_redemption_is_repaired(house: House) -> None:
    answer = found_by_look_up(house)
    house.reconcile(after_s=58)
    assert (house.row().state, house.wire.sent) == (State.DONE, []), "the engine may still be working on it"
    house.reconcile(after_s=3)
    assert (house.row().state, house.wire.sent) == (State.REPAIRED, ["look_up", "repair"])
    assert (house.adapter.surplus, house.row().reason) == ([("r_2",)], "redeemed_twice")
    house.reconcile(after_s=90_000)
    assert (house.bytes("consume", ORDERED), len(house.wire.sent)) == (answer, 2)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ({"look_up": [503] * 9}, None),
        ({"repair": [403]}, None),
        ({"repair": [Unknown("timeout")] * 2}, None),
        ({}, LookedUp("redeemed", TEN_OFF)),
    ],
)
def test_duplicate_is_looked_up_until_its_fate_is_known(
    house: House, script: dict[str, list[int | Exception]], found: LookedUp | None
) -> None:
    found_by_look_up(house)
    house.wire.script = script
    double, house.adapter.found = house.adapter.found, found or house.adapter.found
    house.reconcile(after_s=61)
    assert (house.row().state, house.row().next_check_at is None) == (State.DONE, not script)
    house.wire.script, house.adapter.found = {}, double
    house.reconcile(after_s=300)
    assert (house.row().state, house.row().next_check_at) == (State.REPAIRED if script else State.DONE, None)


def test_duplicate_look_ups_stop_after_a_day(house: House) -> None:
    found_by_look_up(house)
    house.wire.script["look_up"] = [503] * 99
    house.reconcile(after_s=90_000)
    assert (house.row().state, house.row().next_check_at) == (State.DONE, None)


@pytest.mark.parametrize("case", ["answered", "engine redeems once", "erased"])
def test_duplicate_is_not_looked_up_if_impossible_or_erased(house: House, case: str) -> None:
    if case == "answered":
        house("consume", ORDERED)
    if case == "engine redeems once":
        house.adapter.capabilities = msgspec.structs.replace(CAPABILITIES, repair=False)
    if case != "answered":
        found_by_look_up(house)
    if case == "erased":
        row = house.row()
        asyncio.run(house.within(lambda service: service.redeemer.ledger.forget(row)))
    house.wire.sent.clear()
    house.reconcile(after_s=61)
    assert (house.row().state, house.row().next_check_at, house.wire.sent) == (State.DONE, None, [])


def test_redeeming_request_may_use_share_of_deadline(house: House) -> None:
    house("consume", ORDERED)
    (limit,) = [timeout for operation, timeout in house.wire.timeouts if operation == "redeem"]
    assert 8 * 0.5 < limit <= 8 * 0.6


def test_nothing_is_sent_if_ledger_cannot_mark_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any) -> None:
        raise LedgerUnavailable("full")

    monkeypatch.setattr(Ledger, "mark_sent", full)
    problem = house.refusal("consume", ORDERED)
    assert (problem.reason, problem.status("consume"), house.wire.sent) == ("ledger_full", 500, ["check"])


@pytest.mark.parametrize("found", ["absent", "unclear"])
def test_caller_gets_manual_reason_after_a_day_of_look_ups(house: House, found: Any) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    house.adapter.found = LookedUp(found)
    house.time += 90_000
    problem = house.refusal("consume", ORDERED)
    assert (problem.category, problem.reason, problem.retry_after) == ("outcome_pending", f"manual_{found}", 3600)
    assert house.row().state is State.MANUAL


def test_surplus_found_after_not_redeemed_is_repaired(house: House) -> None:
    house.adapter.on_redeem = NotRedeemed(REFUSED.rejected)
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    assert house("consume", ORDERED)["order"] == ORDERED
    assert (house.row().state, house.wire.sent[-1]) == (State.REPAIRED, "repair")


def test_stored_answer_of_previous_version_is_replayed(house: House) -> None:
    house("consume", ORDERED)
    stored = b'{"order":{"id":"c-1","was":"stored"}}'

    async def store(service: Service) -> None:
        def step(found: Row | None, at: Moment) -> tuple[None, Row | None]:
            assert found is not None
            return None, dataclasses.replace(found, reply=stored)

        await service.redeemer.ledger.store.change(Key("", "fake", "c-1"), step)

    asyncio.run(house.within(store))
    assert house.answer("consume", ORDERED) == Answer(200, stored, "replayed")


# -- The reconciler ------------------------------------------------------------------------------------------------


def test_fenced_postpone_after_internal_error_is_ignored(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fenced(*_: object) -> Row:
        raise Fenced

    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    monkeypatch.setattr(OrderRedeemer, "_order_of", lambda *_: 1 / 0)
    monkeypatch.setattr(Ledger, "postpone", fenced)
    house.reconcile(after_s=61)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.exc_info[0] for record in errors if record.exc_info] == [ZeroDivisionError]
    assert [(record.message, vars(record)["facts"]) for record in errors] == [("internal error", {"order": "c-1"})]


def test_orders_of_another_engine_are_left_alone(house: House) -> None:
    unknown(house)
    house.wire.sent = []
    house.adapter.name = "another"
    for _ in range(3):
        house.reconcile(after_s=61)
    assert (house.wire.sent, house.row().state) == ([], State.UNKNOWN)
    house.adapter.name = "fake"
    house.reconcile()
    assert house.wire.sent == ["look_up"]


def test_reconciler_pauses_briefly_while_more_rows_are_due(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeem, "DUE_BATCH", 2)
    for number in range(3):
        house.wire.script["redeem"] = [Unknown("timeout")]
        house.refusal("consume", {**ORDERED, "id": f"c-{number}"})
    house.time += 61
    pauses: list[float] = []

    async def rounds(service: Service) -> None:
        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                raise asyncio.CancelledError

        service.redeemer.sleep = sleep
        with pytest.raises(asyncio.CancelledError):
            await service.redeemer.reconcile()

    asyncio.run(house.within(rounds))
    assert pauses[:2] == [redeem.BATCH_PAUSE_S, redeem.RECONCILE_EVERY_S]


def test_answered_call_leaves_no_task_running(house: House) -> None:
    async def call(service: Service) -> None:
        data, headers = signed(ORDERED)
        await promotions.consume(service, Call(data, headers, house.time + 8))
        await asyncio.sleep(0)
        assert not service.redeemer._running

    asyncio.run(house.within(call))


def test_reconciler_reports_order_counts_by_state(house: House) -> None:
    house("consume", ORDERED)
    fail(house, 429)
    house.refusal("consume", {**ORDERED, "id": "c-2"})
    told: list[Backlog] = []

    async def round_(service: Service) -> None:
        service.redeemer.on_backlog = told.append
        await reconcile(service)

    asyncio.run(house.within(round_))
    assert [found.counts for found in told] == [{State.DONE: 1, State.RETRYABLE: 1}]


def test_failing_rows_do_not_block_other_rows(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")] * 10
    for number in range(10):
        house.refusal("consume", {**ORDERED, "id": f"o-{number}"})
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    look_up = FakeAdapter.look_up

    def broken(self: FakeAdapter, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        if session != "o-9":
            raise ValueError("this adapter cannot read this order")
        return look_up(self, order, session, handle)

    monkeypatch.setattr(FakeAdapter, "look_up", broken)
    for _ in range(3):
        house.reconcile(after_s=61)
    assert house.row("o-9").state is State.DONE
    assert house.row("o-1").state is State.UNKNOWN


def test_order_whose_look_up_cannot_be_finished_is_postponed_then_becomes_manual(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown(house)
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    monkeypatch.setattr(redeem, "judge", lambda *_: 1 / 0)
    for after_s in (60, 40):
        house.reconcile(after_s)
    after = house.row()
    assert (after.state, after.reason) == (State.UNKNOWN, "internal")
    assert after.next_check_at is not None
    assert after.next_check_at > house.time + 60
    house.reconcile(after_s=90_000)
    assert house.row().state is State.MANUAL


def test_redeemed_order_whose_further_look_up_fails_is_looked_up_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_by_look_up(house)
    monkeypatch.setattr(OrderRedeemer, "_order_of", lambda *_: 1 / 0)
    house.reconcile(after_s=61)
    assert house.row().state is State.DONE
    assert (house.row().next_check_at or 0) > house.time


def test_unreadable_order_is_postponed_then_becomes_manual(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)

    async def spoil(service: Service) -> None:
        row = house_row[0]
        await service.redeemer.ledger.store.change(row.key, lambda found, _: (None, _spoiled(found)))

    house_row = [house.row()]
    asyncio.run(house.within(spoil))
    house.reconcile(after_s=100)
    after = house.row()
    assert after.state is State.UNKNOWN
    assert after.next_check_at is not None
    assert after.next_check_at > house.time
    house.reconcile(after_s=90_000)
    assert house.row().state is State.MANUAL


def _spoiled(row: Row | None) -> Row:
    assert row is not None
    return dataclasses.replace(row, order=b"{}", version=row.version + 1)


def test_reconciler_logs_each_order(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    caplog.set_level("INFO")
    house.reconcile(after_s=60)
    (line,) = [entry for entry in caplog.records if entry.getMessage() == "reconcile"]
    assert line.__dict__["facts"] == {"order": "c-1", "was": "UNKNOWN", "result": "waiting"}
    assert house.row().state is State.DONE


def unknown(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)


def due_for_cancel(house: House) -> None:
    house("consume", ORDERED)
    house.wire.script["undo"] = [503] * 2
    house.cancel_refusal()


def seen_once(house: House) -> None:
    found_by_look_up(house)
    house.adapter.found = LookedUp("redeemed", TEN_OFF)


def not_seen(house: House) -> None:
    found_by_look_up(house)
    house.wire.script["look_up"] = [503] * 9


def erased(house: House) -> None:
    found_by_look_up(house)
    row = house.row()
    asyncio.run(house.within(lambda service: service.redeemer.ledger.forget(row)))


def other_order(house: House) -> None:
    unknown(house)
    house.adapter.look_up = lambda *_: raising(OrderMismatch("Another cart.", reason="other_content"))  # type: ignore[method-assign]


def raising(error: Exception) -> Conversation[Any]:
    yield EngineRequest(operation="look_up", method="GET", path="/look_up", effect="none", repeatable=True)
    raise error


@pytest.mark.parametrize(
    ("begin", "result", "state"),
    [
        (unknown, "waiting", State.UNKNOWN),
        (due_for_cancel, "cancelled", State.CANCELLED),
        (found_by_look_up, "repaired", State.REPAIRED),
        (seen_once, "done", State.DONE),
        (not_seen, "server_error", State.DONE),
        (erased, "erased", State.DONE),
        (other_order, "other_content", State.REJECTED),
        (hold, "waiting", State.RETRYABLE),
    ],
)
def test_reconcile_log_line_names_result(
    house: House, begin: Callable[[House], object], result: str, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    begin(house)
    was = house.row()
    caplog.set_level("INFO")
    house.reconcile(after_s=61)
    (line,) = [entry for entry in caplog.records if entry.message == "reconcile"]
    assert vars(line)["facts"] == {"order": "c-1", "was": was.state.value, "result": result}
    assert house.row().state is state


def test_counting_finished_orders_uses_one_percent_of_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []

    async def finished(_: Ledger) -> dict[State, int]:
        counted.append(house.time)
        house.time += 0.5
        return {State.DONE: len(counted)}

    async def rounds(service: Service) -> list[int]:
        told: list[Backlog] = []
        service.redeemer.on_backlog = told.append
        for at in (1000.0, 1001.0, 1049.75, 1050.0, 1060.0):
            house.time = at
            await reconcile(service)
        return [backlog.counts[State.DONE] for backlog in told]

    monkeypatch.setattr(Ledger, "finished", finished)
    assert asyncio.run(house.within(rounds)) == [1, 1, 1, 2, 2]
    assert counted == [1000.0, 1050.0]


def test_leader_logs_failed_hand_over(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def lead(_self: Ledger, _engine: str, for_s: float) -> bool:
        if not for_s:
            raise LedgerUnavailable("away")
        return False

    monkeypatch.setattr(Ledger, "lead", lead)
    house.reconcile()
    (line,) = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert (line.getMessage(), line.__dict__["facts"]) == ("ledger unavailable", {"reason": "hand_over"})


def test_stopping_leader_hands_over_at_once(house: House) -> None:
    async def story(service: Service) -> bool:
        await reconcile(service)
        ledger = dataclasses.replace(service.redeemer.ledger, owner="another")
        return await ledger.lead("fake", 5)

    assert asyncio.run(house.within(story))


def test_reconciler_prunes_in_batches_until_none_is_left(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    async def prune(self: Ledger, keep_bodies_s: float, limit: int = PRUNE_BATCH) -> int:
        assert keep_bodies_s == house.configured.keep_bodies_s
        limits.append(limit)
        return limit if len(limits) < 3 else 7

    monkeypatch.setattr(Ledger, "prune", prune)

    async def rounds(service: Service) -> None:
        left = 5

        async def stop(_: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise asyncio.CancelledError

        service.redeemer.sleep = stop
        with pytest.raises(asyncio.CancelledError):
            await service.redeemer.reconcile()

    asyncio.run(house.within(rounds))
    assert len(limits) == 3, "again and again while there is more, and then not for an hour"


def test_unavailable_ledger_is_logged_only_on_change(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter(["away", "away", "away", "", "away", "away", "hangs"])

    async def lead(_self: Ledger, _engine: str, _for_s: float) -> bool:
        reason = next(answers, "stop")
        if reason == "stop":
            raise asyncio.CancelledError
        if reason:
            raise LedgerUnavailable(reason)
        return False

    pauses: set[float] = set()

    async def sleep(seconds: float) -> None:
        pauses.add(seconds)

    async def rounds(service: Service) -> None:
        monkeypatch.setattr(Ledger, "lead", lead)
        service.redeemer.sleep = sleep
        with pytest.raises(asyncio.CancelledError):
            await service.redeemer.reconcile()

    asyncio.run(house.within(rounds))
    told = [(entry.message, vars(entry)["facts"]["reason"]) for entry in caplog.records if entry.levelname == "ERROR"]
    assert told == [("ledger unavailable", f"ledger_{reason}") for reason in ("away", "away", "hangs")]
    assert pauses == {0.5}


@pytest.mark.parametrize("notices", [(), (Notice("coupon", "A coupon", {"v": 1}),)])
def test_answer_is_replayed_after_body_is_erased(house: House, notices: tuple[Notice, ...]) -> None:
    house.adapter.granted = Outcome(discounts=TEN_OFF.discounts, notices=notices)
    body = {**ORDERED, "promotions": {"meta": {"mapper": {"notices": ["as it came"]}}}}
    first = house.bytes("consume", body)
    assert house.answer("consume", body) == Answer(200, first, "replayed")

    async def prune(service: Service) -> int:
        return await service.redeemer.ledger.prune(60)

    house.now += 61
    assert asyncio.run(house.within(prune)) == 1
    assert house.row().order == b""
    assert house.bytes("consume", body) == first
    assert house.refusal("consume", {**body, "discounts": "1.00"}).category == "order_mismatch"
    assert house.wire.sent.count("redeem") == 1


def test_erased_refused_order_is_checked_again(house: House) -> None:
    house.adapter.granted = REFUSED
    house.refusal("consume", ORDERED)

    async def prune(service: Service) -> int:
        return await service.redeemer.ledger.prune(60)

    house.now += 61
    assert asyncio.run(house.within(prune)) == 1
    assert house.refusal("consume", ORDERED).category == "promotion_codes"
    house.adapter.granted = TEN_OFF
    assert house("consume", ORDERED)["order"] == ORDERED


def test_repair_is_logged_as_error(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.adapter = Broken()
    house.adapter.granted = TEN_OFF
    house.configured = dataclasses.replace(house.configured, adapter=house.adapter)
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house("consume", ORDERED)
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    house("consume", {**ORDERED, "id": "c-2"})
    told = [record for record in caplog.records if record.levelname == "ERROR"][-1]
    assert (told.getMessage(), vars(told)["facts"]) == ("repaired", {"order": "c-2", "rolled_back": 1})
