"""What a merchant's cancel does, state by state."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from mapper import promotions
from mapper.adapter import LookedUp
from mapper.domain import checkout as documents
from mapper.domain.errors import InvalidRequest, Problem
from mapper.engine.transport import NotSent, Unknown
from mapper.orders.rows import Key, State
from mapper.promotions import Call, Service
from tests.fakes import SECRET, signed, signed_with
from tests.house import CANCEL_SECRET, ORDER, REFUSED, TEN_OFF, House, order_with_discount, to_order
from tests.orders.test_redeem import hold

ORDERED = order_with_discount("10.00")


@pytest.fixture
def house() -> House:
    house = House()
    house.adapter.granted = TEN_OFF
    return house


def cancelled(house: House) -> Any:
    answer = house.cancel()
    assert answer.status == 200
    return json.loads(answer.reply)["order"]


def test_cancel_undoes_redeemed_order_and_is_final(house: House) -> None:
    house("consume", ORDERED)
    answer = house.cancel()
    assert (answer.status, answer.reason, json.loads(answer.reply)["order"]) == (200, "cancelled", ORDERED)
    assert house.wire.sent == ["check", "redeem", "undo"]
    assert house.adapter.undone == [("c-1", True)]
    (order,) = house.adapter.undone_orders
    assert order is not None
    assert order.source.text == json.dumps(ORDERED, separators=(",", ":")).encode()
    assert cancelled(house) == ORDERED, "idempotent"
    assert house.wire.sent == ["check", "redeem", "undo"]
    refused = house.refusal("consume", ORDERED)
    assert (refused.category, refused.status("consume"), refused.details) == (
        "order_mismatch", 400, {"reason": "cancelled"},
    )  # fmt: skip


def test_cancel_undoes_order_whose_body_was_erased(house: House) -> None:
    house("consume", ORDERED)

    async def forget(service: Service) -> None:
        ledger = service.redeemer.ledger
        await ledger.forget((await ledger.find())[0])

    asyncio.run(house.within(forget))
    assert cancelled(house) == {}
    assert house.adapter.undone == [("c-1", True)]
    assert house.adapter.undone_orders == [None]


@pytest.mark.parametrize("state", ["refused", "not done", "degraded"])
def test_cancel_of_unredeemed_order_sends_no_undo(house: House, state: str) -> None:
    body = ORDERED
    if state == "refused":
        house.adapter.granted = REFUSED
        house.refusal("consume", body)
    elif state == "not done":
        house.wire.script["redeem"] = [NotSent("connect")] * 9
        house.refusal("consume", body)
    else:
        house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")
        house.wire.script["validate"] = [503] * 9
        body = to_order(house("validate", {"id": "c-1", "items": ORDER["order_items"], "promotions": {}}))
        house("consume", body)
    assert cancelled(house) == body
    assert "undo" not in house.wire.sent
    refused = house.refusal("consume", body)
    assert (refused.details, "cancelled" in refused.message) == ({"reason": "cancelled"}, True)


@pytest.mark.parametrize("state", ["in flight", "unknown"])
def test_cancel_with_unknown_outcome_gets_409(house: House, state: str) -> None:
    if state == "in flight":
        hold(house)
    else:
        house.wire.script["redeem"] = [Unknown("timeout")]
        house.refusal("consume", ORDERED)
    problem = house.cancel_refusal()
    assert (problem.category, problem.status("cancel")) == ("outcome_pending", 409)
    assert problem.retry_after is not None
    assert problem.retry_after >= (40 if state == "unknown" else 1)
    assert "undo" not in house.wire.sent


def test_cancel_of_manual_order_gets_409(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", ORDERED)
    house.reconcile(after_s=90_000)
    problem = house.cancel_refusal()
    assert (problem.status("cancel"), problem.category, problem.details) == (
        409,
        "outcome_pending",
        {"reason": "manual"},
    )
    assert (problem.retry_after, "by hand" in problem.message) == (3600, True)


def test_cancel_of_unknown_order_gets_404(house: House) -> None:
    problem = house.cancel_refusal("nobody")
    assert (problem.status("cancel"), problem.category) == (404, "invalid_request")


@pytest.mark.parametrize("refusal", ["no undo", "the engine refuses"])
def test_order_stays_redeemed_when_undo_is_impossible(house: House, refusal: str) -> None:
    house("consume", ORDERED)
    if refusal == "no undo":
        house.adapter.capabilities = msgspec.structs.replace(house.adapter.capabilities, undo=False)
    else:
        house.wire.script["undo"] = [403]
    problem = house.cancel_refusal()
    reason = "no_undo" if refusal == "no undo" else "engine_key"
    assert (problem.status("cancel"), problem.category, problem.reason) == (500, "engine_rejected", reason)
    assert house.row().state is State.DONE
    house.wire.sent = []
    assert house("consume", ORDERED)["order"] == ORDERED
    assert house.wire.sent == []


@pytest.mark.parametrize("failure", [Unknown("timeout"), 503])
def test_undo_with_unknown_outcome_is_finished_in_background(house: House, failure: int | Exception) -> None:
    house("consume", ORDERED)
    house.wire.script["undo"] = [failure] * 4
    problem = house.cancel_refusal()
    assert (problem.status("cancel"), problem.category, problem.retry_after) == (500, "outcome_pending", 5)
    assert house.row().state is State.CANCELLING
    began = house.time
    assert house.refusal("consume", ORDERED).category == "outcome_pending"
    assert house.time - began > 7.9, "it waits, and does not ask the ledger without a pause"
    house.wire.script = {}
    house.reconcile(after_s=60)
    assert house.row().state is State.CANCELLED
    assert cancelled(house) == ORDERED


def test_interrupted_cancel_is_finished_by_another_process(house: House) -> None:
    house("consume", ORDERED)

    async def die(service: Service) -> None:
        await service.redeemer.ledger.cancel(Key("", "fake", "c-1"))

    asyncio.run(house.within(die))
    assert house.cancel_refusal().category == "outcome_pending"
    house.reconcile(after_s=40)
    assert house.row().state is State.CANCELLED
    assert house.wire.sent == ["check", "redeem", "undo"]


def test_concurrent_cancels_get_same_answer(house: House) -> None:
    house("consume", ORDERED)
    house.wire.pause = 0.02

    async def cancel_three_times(service: Service) -> list[Any]:
        data, headers = signed_with(CANCEL_SECRET, {"cancel": {"id": "c-1"}})
        calls = [promotions.cancel(service, Call(data, headers, house.time + 3600)) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(house.within(cancel_three_times))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert house.wire.sent == ["check", "redeem", "undo"]


def test_undo_refused_after_unknown_outcome_is_retried(house: House) -> None:
    """The caller already knows that the order will be cancelled."""
    house("consume", ORDERED)
    house.wire.script["undo"] = [Unknown("timeout"), Unknown("timeout"), 403]
    house.cancel_refusal()
    house.reconcile(after_s=60)
    while house.wire.script["undo"]:
        house.reconcile(after_s=60)
    assert (house.row().state, house.row().reason) == (State.CANCELLING, "engine_key")
    house.reconcile(after_s=3600)
    assert house.row().state is State.CANCELLED


def test_cancel_that_fails_for_a_day_becomes_manual(house: House) -> None:
    house("consume", ORDERED)
    house.wire.script["undo"] = [503] * 99
    assert house.cancel_refusal().details == {"reason": "cancelling"}
    house.reconcile(after_s=90_000)
    assert house.row().state is State.MANUAL
    assert house.cancel_refusal().details == {"reason": "manual"}

    async def retry(service: Service) -> None:
        ledger = service.redeemer.ledger
        await ledger.reopen((await ledger.find())[0])

    asyncio.run(house.within(retry))
    house.wire.script = {}
    house.reconcile()
    assert house.row().state is State.CANCELLED


def test_undo_gets_handle_of_redemption(house: House) -> None:
    house.adapter.handle = "r_1"
    house("consume", ORDERED)
    house.cancel()
    assert house.adapter.handles == ["r_1"]


@pytest.mark.parametrize(
    "body",
    [
        ORDER,
        {"cancel": {"id": "c-1"}, "order_items": []},
        {"cancel": {"id": "c-1", "reason": "x"}},
        {"cancel": {}},
        {"cancel": "c-1"},
        {"cancel": {"id": None}},
        {"cancel": {"id": ""}},
        {"cancel": {"id": [1]}},
        {},
        b"[]",
        b'{"cancel": {"id": "c-1"}',
    ],
)
def test_malformed_cancel_gets_400(house: House, body: object) -> None:
    house("consume", ORDERED)
    data, headers = signed_with(CANCEL_SECRET, body)

    async def call(service: Service) -> None:
        await promotions.cancel(service, Call(data, headers, house.time + 8))

    with pytest.raises(Problem) as refusal:
        asyncio.run(house.within(call))
    assert (refusal.value.category, refusal.value.status("cancel")) == ("invalid_request", 400)
    assert house.row().state is State.DONE


@pytest.mark.parametrize("secret", [SECRET, b"somebody else's secret"])
def test_cancel_with_wrong_secret_is_refused(house: House, secret: bytes) -> None:
    house("consume", ORDERED)
    data, headers = signed_with(secret, {"cancel": {"id": "c-1"}})

    async def call(service: Service) -> None:
        await promotions.cancel(service, Call(data, headers, house.time + 8))

    with pytest.raises(Problem) as refusal:
        asyncio.run(house.within(call))
    assert refusal.value.category == "signature"


def test_log_line_of_cancel_names_order(house: House) -> None:
    house("consume", ORDERED)
    data, headers = signed_with(CANCEL_SECRET, {"cancel": {"id": "c-1"}})
    call = Call(data, headers, house.time + 8)
    asyncio.run(house.within(lambda service: promotions.cancel(service, call)))
    assert call.record.ids()["id"] == "c-1"


def test_numeric_and_padded_ids_name_same_order(house: House) -> None:
    house("consume", {**ORDERED, "id": " 77 "})
    assert house.cancel(77).status == 200


@pytest.mark.parametrize("spelled", ["7.50", "1e3", "-0", "12345678901234567890123"])
def test_numeric_id_is_kept_as_written(house: House, spelled: str) -> None:
    house.bytes("consume", json.dumps(ORDERED | {"id": "?"}).replace('"?"', spelled).encode())
    data, headers = signed_with(CANCEL_SECRET, f'{{"cancel": {{"id": {spelled}}}}}'.encode())
    answer = asyncio.run(house.within(lambda service: promotions.cancel(service, Call(data, headers, house.time + 8))))
    assert (answer.status, house.row(spelled).state) == (200, State.CANCELLED)


def test_cancel_applies_only_to_its_own_space() -> None:
    house = House(NACELLE_SPACE_IDS="one,two")
    house.adapter.granted = TEN_OFF

    async def story(service: Service) -> list[int]:
        async def call(operation: str, space: str) -> int:
            secret = CANCEL_SECRET if operation == "cancel" else SECRET
            body = {"cancel": {"id": "c-1"}} if operation == "cancel" else ORDERED
            data, headers = signed_with(secret, body, x_nacelle_space_id=space)
            try:
                answer = await getattr(promotions, operation)(service, Call(data, headers, house.time + 8))
            except Problem as problem:
                return problem.status("cancel")
            return int(answer.status)

        return [await call(*each) for each in (("consume", "one"), ("cancel", "two"), ("cancel", "one"))]

    assert asyncio.run(house.within(story)) == [200, 404, 200]


def test_cart_of_cancelled_order_is_redeemed_under_new_id(house: House) -> None:
    """The merchant edits an order: cancels it and sends the same cart and receipt under another id."""
    order = {**to_order(house("validate", {"id": "c-1", "items": ORDER["order_items"], "promotions": {}})), "id": "o-1"}
    house("consume", order)
    assert house.refusal("consume", {**order, "id": "o-2"}).category == "order_mismatch"
    house.cancel("o-1")
    assert house("consume", {**order, "id": "o-2"})["order"]["id"] == "o-2"
    assert len(set(house.adapter.attempts)) == 2
    assert house.adapter.sessions[-1] == ("redeem", "c-1~2")


def test_cancel_during_redemption_gets_409(house: House) -> None:
    house.wire.pause = 0.02

    async def both(service: Service) -> list[Any]:
        data, headers = signed(ORDERED)
        consuming = asyncio.create_task(promotions.consume(service, Call(data, headers, house.time + 8)))
        await asyncio.sleep(0.03)
        data, headers = signed_with(CANCEL_SECRET, {"cancel": {"id": "c-1"}})
        call = Call(data, headers, house.time + 8)
        early = await asyncio.gather(promotions.cancel(service, call), return_exceptions=True)
        answer = await consuming
        return [*early, answer, await promotions.cancel(service, call)]

    early, consumed, late = asyncio.run(house.within(both))
    assert isinstance(early, Problem)
    assert (early.status("cancel"), consumed.status, late.status) == (409, 200, 200)
    assert house.wire.sent == ["check", "redeem", "undo"]
    house.adapter.found = LookedUp("absent")
    assert house.row().state is State.CANCELLED


def test_cancelled_order_is_undone_again_after_quarantine(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house("consume", ORDERED)
    cancelled(house)
    house.reconcile(after_s=30)
    house.wire.sent = []
    house.wire.script["undo"] = [503] * 2
    house.reconcile(after_s=31)
    assert house.wire.sent == ["undo", "undo"], "the request may have been delivered a second time"
    house.reconcile(after_s=10)
    assert house.wire.sent == ["undo"] * 3
    house.reconcile(after_s=90_000)
    assert (house.row().state, house.wire.sent) == (State.CANCELLED, ["undo"] * 3)


def test_refused_cancel_keeps_the_further_look_up(house: House) -> None:
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house("consume", ORDERED)
    due = house.row().next_check_at
    house.wire.script["undo"] = [400]
    assert house.cancel_refusal().category == "engine_rejected"
    assert (house.row().state, house.row().next_check_at) == (State.DONE, due)


def test_cancel_undoes_order_that_cannot_be_read_any_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house("consume", ORDERED)

    def unreadable(*_: object) -> None:
        raise InvalidRequest("This version does not take it.", "/x")

    monkeypatch.setattr(documents, "parse", unreadable)
    assert cancelled(house) == ORDERED
    assert house.adapter.undone_orders == [None]
