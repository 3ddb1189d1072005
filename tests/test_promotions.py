"""Validate and consume with a fake engine: requests, answers and refusals."""

import asyncio
import copy
import json
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest

from mapper import promotions
from mapper.adapter import Discount, LookedUp, Notice, NotRedeemed, Outcome, Reason, Rejection
from mapper.domain import checkout as documents
from mapper.domain import discounts
from mapper.domain.errors import EngineRejected, EngineUnavailable, Forbidden, Problem
from mapper.domain.errors import body as body_of
from mapper.engine import conversation as engine
from mapper.engine.transport import NotSent, Unknown
from mapper.orders.ledger import Ledger
from mapper.orders.rows import Answer, LedgerUnavailable, State
from mapper.promotions import Call, Service
from tests.fakes import CAPABILITIES, SECRET, settings, signed
from tests.house import CHECKOUT, ORDER, REFUSED, TEN_OFF, House, order_with_discount, reconcile, to_order


@pytest.fixture
def house() -> House:
    return House()


# -- Validate ------------------------------------------------------------------------------------------------------


def test_validate_answers_the_checkout_with_the_mapper_note(house: House) -> None:
    house.adapter.granted = Outcome(discounts=TEN_OFF.discounts, notices=(Notice("showNotification", "Hi", {"a": 1}),))
    got = house("validate", CHECKOUT)["checkout"]
    note = got["promotions"]["meta"]["mapper"]
    assert (got["items"][0]["price"], got["total_discount"]) == ("130.00", "10.00")
    assert {key: value for key, value in note.items() if key != "receipt"} == {
        "engine": "fake", "session": "c-1", "rejected": [], "degraded": False,
        "notices": [{"type": "showNotification", "text": "Hi", "payload": {"a": 1}}],
    }  # fmt: skip
    assert house.adapter.sessions == [("validate", "c-1")]


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_large_cart_is_processed_in_a_thread(house: House, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {}

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*given: Any, **named: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return original(*given, **named)

        monkeypatch.setattr(module, name, watched)

    watch(documents, "parse")
    watch(engine, "_resume")
    watch(discounts, "write")

    def threads_of(lines: int) -> dict[str, set[str]]:
        threads.clear()
        items = [{"sku": f"S{number}", "quantity": 1, "price": "1.00", "title": "t" * 160} for number in range(lines)]
        house.wire.reply = b'{"a":"%b"}' % (b"a" * 200 * lines)
        body = {"id": f"large-{lines}", "items" if operation == "validate" else "order_items": items}
        house(operation, body)
        return {name: {thread.partition(" worker")[0] for thread in found} for name, found in threads.items()}

    small, large = threads_of(10), threads_of(900)
    here = threading.current_thread().name
    assert small["parse"] == small["_resume"] == {here}
    assert large["parse"] == {"AnyIO"}
    assert large["_resume"] == {here, "AnyIO"}  # the request itself is small
    if operation == "validate":
        assert (small["write"], large["write"]) == ({here}, {"AnyIO"})


def test_validating_our_answer_again_gives_the_same_bytes(house: House) -> None:
    house.adapter.granted = TEN_OFF
    once = house.bytes("validate", CHECKOUT)
    assert house.bytes("validate", json.dumps(json.loads(once)["checkout"], separators=(",", ":")).encode()) == once


def test_refused_code_error_has_code_reason_and_message(house: House) -> None:
    house.adapter.granted = REFUSED
    problem = house.refusal("validate", CHECKOUT)
    assert (problem.category, problem.status("validate"), problem.status("consume")) == ("promotion_codes", 422, 500)
    assert problem.details["invalid-code"] == "TEN"
    assert [(code["code"], code["reason"], code["engine_reason"]) for code in problem.details["codes"]] == [
        ("TEN", "expired", "CouponExpired"),
        ("X", "other", "Odd"),
    ]
    assert all(code["message"].endswith(".") for code in problem.details["codes"])


def test_apply_rest_policy_applies_discounts_despite_refused_codes(house: House) -> None:
    house = House(MAPPER_ON_REJECTED="apply_rest")
    house.adapter.granted = Outcome(discounts=TEN_OFF.discounts, rejected=REFUSED.rejected)
    got = house("validate", CHECKOUT)["checkout"]
    assert got["total_discount"] == "10.00"
    assert [rejected["code"] for rejected in got["promotions"]["meta"]["mapper"]["rejected"]] == ["TEN", "X"]
    assert [one.reason for one in house.record.rejected] == ["expired", "other"]


def test_cost_pointer_without_value_logs_one_warning(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.adapter.cost_pointers = ("/shipping_rate/price", "/orders/*/shipping_rate/price")
    orders = {"orders": [{"order_items": [], "shipping_rate": {"price": "1"}}, {"order_items": []}], "id": "o"}

    async def twice(service: Service) -> None:
        for body in (orders, orders):
            data, headers = signed(body)
            await promotions.validate(service, Call(data, headers, house.time + 8))

    with caplog.at_level("WARNING", "mapper"):
        asyncio.run(house.within(twice))
    warned = [record.__dict__["facts"]["pointer"] for record in caplog.records if record.message == "setting"]
    assert warned == ["/shipping_rate/price"]


@pytest.mark.parametrize(("limit", "warnings"), [("1024", 1), ("4096", 0)])
def test_answer_too_large_to_come_back_logs_a_warning(
    limit: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(MAPPER_MAX_BODY_BYTES=limit)
    with caplog.at_level("WARNING", "mapper"):
        house("validate", {**CHECKOUT, "note": "n" * 1500})
    assert [record.message for record in caplog.records] == ["setting"] * warnings


TYPED = ["TEN\u200b", "a\x00b", "SAVE\ud83d", " \u2060"]


@pytest.mark.parametrize("operation", ["validate", "consume"])
@pytest.mark.parametrize("check", [True, False])
def test_malformed_code_is_refused_and_never_redeemed(house: House, operation: str, *, check: bool) -> None:
    """No engine is asked about it, and the answer spells the other codes as entered."""
    house.adapter.capabilities = msgspec.structs.replace(CAPABILITIES, check=check)
    house.adapter.granted = Outcome(rejected=(Rejection("TEN", Reason.EXPIRED, "CouponExpired"),))
    typed = TYPED if operation == "validate" else TYPED[:2]
    body = {**(CHECKOUT if operation == "validate" else ORDER), "promotions": {"coupon_codes": typed}}
    refused = house.refusal(operation, json.dumps(body).encode())
    assert (refused.category, refused.status("validate"), refused.status("consume")) == ("promotion_codes", 422, 500)
    reasons = {
        code["code"]: code["reason"] for code in json.loads(body_of(refused, "validate"))["error"]["details"]["codes"]
    }
    assert [text for text, reason in reasons.items() if reason == "malformed"] == typed[1:3]
    assert operation == "consume" or reasons.pop(TYPED[0]) == "expired"
    assert "redeem" not in house.wire.sent


def test_apply_rest_policy_leaves_out_malformed_codes() -> None:
    house = House(MAPPER_ON_REJECTED="apply_rest")
    house.adapter.granted = TEN_OFF
    body = {**CHECKOUT, "promotions": {"coupon_codes": TYPED}}
    answer = house("validate", json.dumps(body).encode())
    found = answer["checkout"]
    assert (found["total_discount"], found["promotions"]["coupon_codes"]) == ("10.00", TYPED)
    told = found["promotions"]["meta"]["mapper"]["rejected"]
    assert [(code["code"], code["reason"]) for code in told] == [(text, "malformed") for text in TYPED[1:3]]
    house("consume", json.dumps(to_order(answer)).encode())
    assert house.wire.sent[-1] == "redeem"


@pytest.mark.parametrize(
    ("policy", "codes", "answered"),
    [
        ("refuse", [], False),
        ("refuse", ["TEN"], False),
        ("no_discount", [], True),
        ("no_discount", ["TEN"], True),
        ("no_discount_without_codes", [], True),
        ("no_discount_without_codes", ["TEN"], False),
    ],
)
@pytest.mark.parametrize("failure", [NotSent("connect"), Unknown("timeout"), 503])
def test_engine_failure_policy_decides_validate(
    policy: str, codes: list[str], answered: bool, failure: Exception | int
) -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE=policy)
    house.wire.script["validate"] = [failure] * 9
    reduced = {"sku": "S", "quantity": 1, "price": "130.00", "total_discount": "10.00"}
    body = {"items": [reduced], "promotions": {"coupon_codes": codes}}
    if not answered:
        assert house.refusal("validate", body).category == "engine_unavailable"
        return
    got = house("validate", body)["checkout"]
    assert (got["items"][0]["price"], got["total_discount"]) == ("140.00", "0.00")
    assert got["promotions"]["meta"]["mapper"]["degraded"] is True
    assert house.record.degraded


def test_wrong_engine_key_is_not_an_engine_failure() -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")
    house.wire.script["validate"] = [EngineRejected("no", reason="engine_key")]
    assert house.refusal("validate", CHECKOUT).category == "engine_rejected"


# -- The session ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "session"),
    [
        ({"id": "a", "source_id": "b", "cart": "c"}, "a"),
        ({"id": "", "source_id": "b", "cart": "c"}, "b"),
        ({"id": None, "cart": "c"}, "c"),
        ({"id": 77}, "77"),
        ({"id": " 77 "}, "77"),
        ({"cart": 7}, "7"),
        ({}, "made-1"),
    ],
)
def test_session_is_the_first_id_present(ids: dict[str, Any], session: str) -> None:
    house = House(MAPPER_SESSION_ID_PATH="/metadata/cart")
    body = {**CHECKOUT, "id": ids.get("id"), "source_id": ids.get("source_id"), "metadata": {"cart": ids.get("cart")}}
    house("validate", body)
    assert house.adapter.sessions == [("validate", session)]


def test_consume_uses_the_session_of_validate(house: House) -> None:
    house.adapter.granted = TEN_OFF
    body = {key: value for key, value in CHECKOUT.items() if key != "id"}
    order = to_order(house("validate", body))
    house("consume", {**order, "id": "an id the shop gave the order"})
    assert house.adapter.sessions == [("validate", "made-1"), ("check", "made-1"), ("redeem", "made-1")]


def test_consume_without_id_gets_invalid_request(house: House) -> None:
    problem = house.refusal("consume", {**ORDER, "id": None})
    assert (problem.category, problem.details["pointer"]) == ("invalid_request", "/id")
    assert house.wire.sent == []


def to_consume_without_id(house: House, **changes: Any) -> dict[str, Any]:
    """Return the order of a checkout without an id: only the receipt names its session."""
    house.adapter.granted = TEN_OFF
    order = to_order(house("validate", {**CHECKOUT, "id": None, **changes}))
    return {key: order[key] for key in order if key != "id"}


def test_forged_receipt_is_refused_at_consume_and_ignored_at_validate(house: House) -> None:
    note = house("validate", CHECKOUT)["checkout"]["promotions"]["meta"]["mapper"] | {"session": "another's"}
    forged = {"promotions": {"meta": {"mapper": note}}}
    assert isinstance(house.refusal("consume", ORDER | forged), Forbidden)
    house("validate", CHECKOUT | forged)
    assert house.adapter.sessions == [("validate", "c-1")] * 2


def test_expired_receipt_keeps_the_session_but_not_the_price(house: House) -> None:
    order = to_consume_without_id(house)
    house.now += 86_401
    house.adapter.granted = Outcome()
    (notice,) = house("consume", order)["order"]["promotions"]["meta"]["mapper"]["notices"]
    assert (notice["type"], notice["payload"]["engine"]) == ("amount_mismatch", "0.00")
    assert house.adapter.sessions[-1] == ("redeem", "made-1")


OLDER = "the secret before it was rotated"


@pytest.mark.parametrize("known", [True, False])
def test_receipt_of_old_secret_is_valid_while_configured(known: bool) -> None:
    house = House(NACELLE_SIGNING_SECRETS=f"{OLDER},{SECRET.decode()}")
    order = to_consume_without_id(house)
    house.configured = settings(house.adapter, **({"MAPPER_OLD_RECEIPT_SECRETS": OLDER} if known else {}))
    if known:
        house("consume", order)
        assert house.adapter.sessions[-1] == ("redeem", "made-1")
    else:
        assert house.refusal("consume", order).details == {"pointer": "/id"}


@pytest.mark.parametrize(
    "change",
    [
        lambda order: order["promotions"].pop("meta"),
        lambda order: order["order_items"][0].update(price="1.00", discounts="139.00", applied_discounts=[]),
        lambda order: order["order_items"][0].update(price="1.00"),
        lambda order: order["order_items"][0].update(price="140.01"),
        lambda order: order["order_items"][0]["applied_discounts"][0].update(amount="139.00"),
        lambda order: order["order_items"][0].update(discounts_amount="139.00"),
        lambda order: order.update(discounts="139.00"),
        lambda order: order["order_items"].append({"sku": "T", "quantity": 1, "price": "1.00"}),
        lambda order: order["order_items"][0].update(quantity=2),
        lambda order: order.update(customer={"id": "somebody else"}),
    ],
)
def test_required_receipt_must_match_the_order(change: Callable[[dict[str, Any]], object]) -> None:
    house = House(MAPPER_RECEIPT="required")
    house.adapter.granted = TEN_OFF
    order = to_order(house("validate", CHECKOUT | {"customer": {"id": "jane"}}))
    changed = copy.deepcopy(order)
    change(changed)
    problem = house.refusal("consume", changed)
    assert (problem.reason, problem.details["pointer"]) == ("no_receipt", "/promotions/meta/mapper/receipt")
    assert "redeem" not in house.wire.sent
    assert "order" in house("consume", order)


TWO = Discount(name="Two", description="Two off", amount=200, effect_type="off")
THIRDS = [{"sku": "S", "quantity": 3, "price_amount": 20}, {"sku": "T", "quantity": 0, "price": "1.00"}]


@pytest.mark.parametrize(
    "body",
    [
        {"order_items": [{"sku": "S", "quantity": 3, "price": "140.00"}], "applied_discounts": []},
        {"order_items": THIRDS, "discounts": 0},
        {"orders": [{"order_items": THIRDS}, {"order_items": [{"sku": "U", "quantity": 1, "price": "9.00"}]}]},
    ],
)
def test_validate_gives_a_good_receipt_in_every_family(body: dict[str, Any]) -> None:
    house = House(MAPPER_RECEIPT="required")
    house.adapter.granted = Outcome(discounts=(*TEN_OFF.discounts, TWO))
    answer = house("validate", {"id": "c-1", "promotions": {}, **body})["checkout"]
    assert house("consume", answer)["order"] == answer
    restored = copy.deepcopy(answer)
    for order in restored.get("orders", [restored]):
        for line in order["order_items"]:
            key = "price_amount" if "price_amount" in line else "price"
            line[key] = (line.get("applied_discounts") or [{"meta": {"list_price": line[key]}}])[0]["meta"][
                "list_price"
            ]
    assert restored != answer
    assert house("consume", restored | {"id": "c-1"})["order"] == restored
    assert house.record.receipt == "good"


def test_expired_required_receipt_is_refused() -> None:
    house = House(MAPPER_RECEIPT="required")
    house.adapter.granted = TEN_OFF
    order = to_order(house("validate", CHECKOUT))
    house.now += 86_401
    assert house.refusal("consume", order).reason == "no_receipt"


@pytest.mark.parametrize(
    ("validated", "ordered", "redeemed_for"),
    [
        ("jane", "jane", "jane"),
        ("jane", None, "jane"),
        (None, "jane", "jane"),
        (None, None, ""),
        ("jane", "joan", "joan"),
        (7, None, "7"),
    ],
)
def test_consume_redeems_for_the_validated_customer(validated: object, ordered: object, redeemed_for: str) -> None:
    house = House(MAPPER_CUSTOMER_PATH="/shopper/0")
    house.adapter.granted = TEN_OFF
    order = to_order(house("validate", CHECKOUT | {"shopper": [validated]}))
    house("consume", order | {"shopper": [ordered]})
    assert house.adapter.customers[-1] == redeemed_for


def test_unpaid_order_is_refused_when_consume_requires_payment() -> None:
    house = House(MAPPER_CONSUME_REQUIRES="/payments/0")
    empty: list[object] = [None, "", False, [], {}]
    for unpaid in (ORDER, ORDER | {"payments": []}, *(ORDER | {"payments": [value]} for value in empty)):
        problem = house.refusal("consume", unpaid)
        assert (problem.category, problem.details) == ("invalid_request", {"pointer": "/payments/0"})
    assert house.wire.sent == []
    for number, paid in enumerate(({"id": "p"}, 0)):
        assert "order" in house("consume", ORDER | {"id": f"o-{number}", "payments": [paid]})


BARE = {"items": CHECKOUT["items"]}
LISTED = {"order_items": CHECKOUT["items"]}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (BARE, "promotions"),
        (LISTED, "promotion"),
        ({"orders": [LISTED]}, "promotion"),
        ({**LISTED, "promotions": None}, "promotions"),
    ],
)
@pytest.mark.parametrize("why", ["required", "notice", "degraded", ""])
def test_body_gets_a_promotion_object_only_for_a_note(body: dict[str, Any], name: str, why: str) -> None:
    policy = {"required": {"MAPPER_RECEIPT": "required"}, "degraded": {"MAPPER_ON_ENGINE_FAILURE": "no_discount"}}
    house = House(**policy.get(why, {}))
    house.adapter.granted = Outcome(notices=(Notice("n", "A notice", {}),) if why == "notice" else ())
    house.wire.script["validate"] = [503] * 9 if why == "degraded" else []
    got = house("validate", {"id": "c-1", **body})["checkout"]
    if why:
        assert set(got[name]["meta"]["mapper"]) >= {"receipt", "session", "notices", "degraded"}
    else:
        assert got.get("promotion") is None
        assert got.get("promotions") is None
    if why == "required" and "items" not in body:
        house("consume", got)
        assert house.adapter.sessions[-1] == ("redeem", "c-1")


@pytest.mark.parametrize("bad", [".", "..", "a\nb", "x" * 256, "a\u202eb", {"a": 1}, True])
def test_id_that_is_unsafe_in_a_path_is_refused(house: House, bad: object) -> None:
    assert house.refusal("validate", {**CHECKOUT, "id": bad}).details == {"pointer": "/id"}
    house = House(MAPPER_SESSION_ID_PATH="/metadata/cart")
    if isinstance(bad, str):
        found = house.refusal("validate", {**CHECKOUT, "id": None, "metadata": {"cart": bad}})
        assert found.details == {"pointer": "/metadata/cart"}


# -- Consume -------------------------------------------------------------------------------------------------------


def test_consume_returns_the_order_byte_for_byte(house: House) -> None:
    house.adapter.granted = TEN_OFF
    body = (
        b' { "id" : "c-1", "x": 1.10, "order_items":[ {"sku":"S","quantity":1,"price":"130.00","discounts":"10.00"}] } '
    )
    assert house.bytes("consume", body) == b'{"order":' + body.strip() + b"}"
    assert house.wire.sent == ["check", "redeem"]


def test_refused_code_at_check_redeems_nothing(house: House) -> None:
    house.adapter.on_check = REFUSED
    assert house.refusal("consume", ORDER).category == "promotion_codes"
    assert house.wire.sent == ["check"]


def test_consume_adds_only_the_notices_of_the_redemption(house: House) -> None:
    house.adapter.granted = TEN_OFF
    order = to_order(house("validate", CHECKOUT))
    house.adapter.on_redeem = Outcome(
        discounts=TEN_OFF.discounts, notices=(Notice("couponCreated", "A coupon", {"value": "V"}),)
    )
    got = house("consume", order)["order"]
    note = got["promotions"]["meta"].pop("mapper")
    assert note["notices"] == [{"type": "couponCreated", "text": "A coupon", "payload": {"value": "V"}}]
    before = order["promotions"]["meta"].pop("mapper")
    assert {**note, "notices": []} == before
    assert got == order


def test_drift_of_a_line_gives_a_notice(house: House) -> None:
    house.adapter.granted = TEN_OFF
    got = house("consume", order_with_discount("25.00"))["order"]
    (notice,) = got["promotions"]["meta"]["mapper"]["notices"]
    assert notice["type"] == "amount_mismatch"
    assert notice["payload"] == {
        "order": "25.00", "engine": "10.00",
        "lines": [{"pointer": "/order_items/0", "order": "25.00", "engine": "10.00"}],
    }  # fmt: skip
    assert house.record.drift


@pytest.mark.parametrize(("granted", "carried"), [(1000, "7.00"), (None, "7.00"), (1000, "0.00")])
def test_drift_of_the_order_discount_gives_a_notice(house: House, granted: int | None, carried: str) -> None:
    off = Discount(name="All", description="d", amount=granted or 0, effect_type="off")
    house.adapter.granted = Outcome(discounts=(off,) if granted else ())
    order = {**ORDER, "discounts": carried}
    if carried != "0.00":
        order["applied_discounts"] = [{"name": "All", "amount": carried}]
    (notice,) = house("consume", order)["order"]["promotions"]["meta"]["mapper"]["notices"]
    assert notice["payload"] == {"order": carried, "engine": "10.00" if granted else "0.00", "lines": []}
    house.adapter.granted = Outcome(discounts=(msgspec.structs.replace(off, amount=700),))
    agreed = house("consume", {**ORDER, "id": "c-2", "discounts": "7.00",
                               "applied_discounts": [{"name": "All", "amount": "7.00"}]})["order"]  # fmt: skip
    assert "meta" not in agreed["promotions"]


@pytest.mark.parametrize(("amount", "clamped"), [(14_000, False), (14_001, True)])
def test_clamped_discount_is_recorded_at_both_calls(house: House, amount: int, *, clamped: bool) -> None:
    off = Discount(name="n", description="d", amount=amount, effect_type="off", line=0)
    house.adapter.granted = Outcome(discounts=(off,))
    for call, body in (("validate", CHECKOUT), ("consume", ORDER)):
        house(call, body)
        assert house.record.clamped == clamped


def test_drift_notice_is_added_without_a_promotion_object(house: House) -> None:
    house.adapter.granted = TEN_OFF
    body = {key: value for key, value in order_with_discount("25.00").items() if key != "promotions"}
    (notice,) = house("consume", body)["order"]["promotion"]["meta"]["mapper"]["notices"]
    assert notice["type"] == "amount_mismatch"


def test_drift_refuse_policy_redeems_nothing() -> None:
    house = House(MAPPER_ON_DRIFT="refuse")
    house.adapter.granted = TEN_OFF
    problem = house.refusal("consume", order_with_discount("25.00"))
    assert (problem.category, problem.status("consume"), house.wire.sent) == ("amount_mismatch", 500, ["check"])
    assert problem.details["engine"] == "10.00" in problem.message


def test_code_refused_at_redeem_undoes_the_redemption(house: House) -> None:
    house.adapter.on_check, house.adapter.on_redeem = TEN_OFF, REFUSED
    assert house.refusal("consume", ORDER).category == "promotion_codes"
    assert house.wire.sent == ["check", "redeem", "undo"]


@pytest.mark.parametrize("undo", [True, False])
def test_not_redeemed_order_is_looked_up_and_not_undone(house: House, *, undo: bool) -> None:
    house.adapter.capabilities = msgspec.structs.replace(house.adapter.capabilities, undo=undo)
    house.adapter.on_check, house.adapter.on_redeem = TEN_OFF, NotRedeemed(REFUSED.rejected)
    assert house.refusal("consume", ORDER).category == "promotion_codes"
    assert house.wire.sent == ["check", "redeem", "look_up"], "the engine is asked whether it is so"


def test_already_redeemed_order_is_not_redeemed_again(house: House) -> None:
    house.adapter.on_check = Outcome(discounts=TEN_OFF.discounts, redeemed=True)
    assert house("consume", order_with_discount("10.00"))["order"] == order_with_discount("10.00")
    assert house.wire.sent == ["check"]


def test_engine_without_check_is_redeemed_directly(house: House) -> None:
    house.adapter.capabilities = msgspec.structs.replace(house.adapter.capabilities, check=False)
    house.adapter.granted = TEN_OFF
    house("consume", order_with_discount("10.00"))
    assert house.wire.sent == ["redeem"]


UNKNOWN: list[int | Exception] = [Unknown("timeout"), Unknown("reset"), 500, 503, 302]


@pytest.mark.parametrize("failure", UNKNOWN)
def test_unknown_redemption_is_looked_up_and_not_resent(house: House, failure: int | Exception) -> None:
    house.adapter.granted = TEN_OFF
    house.adapter.found = LookedUp("redeemed", TEN_OFF)
    house.wire.script["redeem"] = [failure]
    assert house("consume", order_with_discount("10.00"))["order"] == order_with_discount("10.00")
    assert house.wire.sent == ["check", "redeem", "look_up"]


@pytest.mark.parametrize("failure", UNKNOWN)
def test_unknown_redemption_answers_outcome_pending_with_retry_after(house: House, failure: int | Exception) -> None:
    house.adapter.granted = TEN_OFF
    house.wire.script["redeem"] = [failure]
    problem = house.refusal("consume", ORDER)
    assert (problem.category, problem.status("consume"), problem.retry_after) == ("outcome_pending", 500, 55)
    assert house.wire.sent == ["check", "redeem"] + ["look_up"] * 6
    house.wire.sent, house.wire.script = [], {"look_up": [Unknown("timeout")] * 9}
    assert house.refusal("consume", ORDER).category == "outcome_pending"
    assert set(house.wire.sent) == {"look_up"}


@pytest.mark.parametrize("failure", UNKNOWN)
def test_absent_redemption_is_sent_again_after_the_quarantine(house: House, failure: int | Exception) -> None:
    house.adapter.granted = TEN_OFF
    house.wire.script["redeem"] = [failure]
    house.refusal("consume", order_with_discount("10.00"))
    house.time, house.wire.sent = house.time + 45, []
    house.refusal("consume", order_with_discount("10.00"))
    assert "redeem" not in house.wire.sent, "the quarantine is not over"
    house.time, house.wire.sent = house.time + 60, []
    assert house("consume", order_with_discount("10.00"))["order"] == order_with_discount("10.00")
    assert house.wire.sent == ["look_up", "look_up", "check", "redeem"], "absent counts when it was seen twice"
    house.wire.sent = []
    house("consume", order_with_discount("10.00"))
    assert house.wire.sent == [], "and then it is finished"


def test_unsent_redemption_is_not_looked_up(house: House) -> None:
    house.wire.script["redeem"] = [NotSent("connect")] * 9
    problem = house.refusal("consume", ORDER)
    assert isinstance(problem, EngineUnavailable)
    assert "look_up" not in house.wire.sent


def test_frequent_retries_do_not_exhaust_attempts() -> None:
    house = House(MAPPER_AFTER_FAILURE="redeem_later")
    house.wire.script["redeem"] = [NotSent("connect")] * 999
    for _ in range(30):
        problem = house.refusal("consume", ORDER)
        assert (problem.category, problem.retry_after is not None) == ("engine_unavailable", True)
    assert house.row().attempts < 10
    house.wire.script["redeem"] = []
    assert house("consume", ORDER)["order"] == ORDER


def test_order_of_a_degraded_validate_redeems_nothing() -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")
    house.wire.script["validate"] = [503] * 9
    order = to_order(house("validate", CHECKOUT))
    assert house("consume", order)["order"] == order
    assert "redeem" not in house.wire.sent
    assert house.record.degraded


def test_degraded_order_with_a_discount_is_redeemed() -> None:
    house = House(MAPPER_ON_ENGINE_FAILURE="no_discount")
    house.wire.script["validate"] = [503] * 9
    order = to_order(house("validate", CHECKOUT))
    order["order_items"][0] |= {"price": "130.00", "discounts": "10.00"}
    house.adapter.granted = TEN_OFF
    house("consume", order)
    assert house.wire.sent[-2:] == ["check", "redeem"]


def test_checkout_at_consume_is_refused(house: House) -> None:
    problem = house.refusal("consume", CHECKOUT)
    assert (problem.category, problem.reason) == ("invalid_request", "checkout_at_consume")
    assert house.wire.sent == []


def test_signature_is_checked_before_the_body_is_parsed(house: House) -> None:
    for handler in (promotions.validate, promotions.consume):

        async def call(service: Service, handler: Any = handler) -> Answer:
            answer: Answer = await handler(service, Call(b"not json", [], house.time + 1))
            return answer

        with pytest.raises(Problem) as problem:
            asyncio.run(house.within(call))
        assert problem.value.category == "signature"


# -- Consume happens once -----------------------------------------------------------------------------------------


def test_repeated_order_gets_the_same_bytes_without_engine_calls(house: House) -> None:
    house.adapter.granted = Outcome(
        discounts=TEN_OFF.discounts, notices=(Notice("couponCreated", "A coupon", {"v": 1}),)
    )
    body = {**order_with_discount("10.00"), "promotions": {}}
    first = house.bytes("consume", body)
    house.wire.sent, house.adapter.granted = [], Outcome()
    assert house.bytes("consume", body) == first
    respelled = json.loads(house.bytes("consume", json.dumps(body, indent=2).encode()))
    assert respelled == json.loads(first), "however it is spelled"
    assert house.wire.sent == []


@pytest.mark.parametrize(
    "change",
    [
        {"order_items": [{"sku": "S", "quantity": 2, "price": "140.00"}]},
        {"promotions": {"coupon_codes": ["OTHER"]}},
        {"discounts": "1.00"},
        {"currency": "EUR"},
    ],
)
def test_repeated_order_with_other_content_is_refused(house: House, change: dict[str, Any]) -> None:
    house.adapter.granted = TEN_OFF
    house("consume", ORDER)
    house.wire.sent = []
    problem = house.refusal("consume", {**ORDER, **change})
    assert (problem.category, problem.status("consume"), house.wire.sent) == ("order_mismatch", 400, [])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"id": "a"}, {"id": "a"}, True),
        ({"id": "a"}, {"id": "b"}, False),
        ({"id": "a", "source_id": "s"}, {"id": "b", "source_id": "s"}, False),
        ({"source_id": "s"}, {"source_id": "s"}, True),
        ({"metadata": {"no": "7"}}, {"metadata": {"no": 7}}, True),
        ({"metadata": {"no": "7"}}, {"metadata": {"no": "8"}, "session": "s-2"}, False),
    ],
)
def test_order_key_is_the_first_key_present(first: dict[str, Any], second: dict[str, Any], same: bool) -> None:
    house = House(MAPPER_ORDER_KEY_PATH="/metadata/no", MAPPER_SESSION_ID_PATH="/session")
    house.adapter.granted = TEN_OFF
    base = {**order_with_discount("10.00"), "id": None, "session": "s-1"}
    house("consume", {**base, **first})
    house("consume", {**base, **second})
    assert house.wire.sent.count("redeem") == (1 if same else 2)


@pytest.mark.parametrize(("served", "orders"), [("one,two", 2), ("", 1)])
def test_spaces_have_separate_orders_and_sessions(served: str, orders: int) -> None:
    house = House(NACELLE_SPACE_IDS=served)
    house.adapter.granted = TEN_OFF
    for space in ("one", "two"):

        async def call(service: Service, space: str = space) -> Answer:
            data, headers = signed(ORDER, x_nacelle_space_id=space)
            return await promotions.consume(service, Call(data, headers, house.time + 8))

        assert asyncio.run(house.within(call)).status == 200
    assert house.wire.sent.count("redeem") == orders
    assert {session for _, session in house.adapter.sessions} == ({"one:c-1", "two:c-1"} if served else {"c-1"})


def test_same_bytes_are_the_same_order_after_a_space_is_added() -> None:
    house = House()
    house.adapter.granted = TEN_OFF
    house("consume", ORDER)
    house.configured = settings(house.adapter, NACELLE_SPACE_IDS="one,two")

    def in_space(body: object) -> Answer:
        data, headers = signed(body, x_nacelle_space_id="one")
        return asyncio.run(
            house.within(lambda service: promotions.consume(service, Call(data, headers, house.time + 8)))
        )

    assert (in_space(ORDER).reason, house.wire.sent.count("redeem")) == ("replayed", 1)
    assert (in_space({**ORDER, "note": "of this space"}).reason, house.wire.sent.count("redeem")) == ("redeemed", 2)


def test_concurrent_equal_orders_are_redeemed_once(house: House) -> None:
    house.adapter.granted = TEN_OFF

    async def call(service: Service) -> list[Answer]:
        data, headers = signed(order_with_discount("10.00"))
        return await asyncio.gather(
            *(promotions.consume(service, Call(data, headers, house.time + 8)) for _ in range(8))
        )

    answers = asyncio.run(house.within(call))
    assert {answer.reply for answer in answers} == {answers[0].reply}
    assert house.wire.sent.count("redeem") == 1


def test_order_is_finished_after_the_caller_disconnects(house: House) -> None:
    house.adapter.granted = TEN_OFF
    house.wire.pause = 0.05

    async def call(service: Service) -> None:
        data, headers = signed(order_with_discount("10.00"))
        caller = asyncio.create_task(promotions.consume(service, Call(data, headers, house.time + 8)))
        await asyncio.sleep(0.02)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await service.redeemer.drain(5)

    asyncio.run(house.within(call))
    house.wire.sent = []
    assert house("consume", order_with_discount("10.00"))["order"] == order_with_discount("10.00")
    assert house.wire.sent == [], "it had been finished without its caller"


@pytest.mark.parametrize("found", ["redeemed", "absent"])
def test_reconciler_finishes_an_unknown_redemption(house: House, found: Literal["redeemed", "absent"]) -> None:
    house.adapter.granted = TEN_OFF
    house.wire.script["redeem"] = [Unknown("timeout")]
    house.refusal("consume", order_with_discount("10.00"))
    house.adapter.found = LookedUp(found, TEN_OFF)
    for _ in range(90):
        house.reconcile(after_s=1)
    assert house.wire.sent.count("redeem") == 1
    assert house.row().state is (State.DONE if found == "redeemed" else State.RETRYABLE)
    house.wire.sent, house.adapter.found = [], LookedUp("absent")
    assert house("consume", order_with_discount("10.00"))["order"] == order_with_discount("10.00")
    assert house.wire.sent == ([] if found == "redeemed" else ["look_up", "check", "redeem"])


def test_order_unknown_for_a_day_becomes_manual(house: House) -> None:
    house.adapter.granted = TEN_OFF
    house.wire.script = {"redeem": [Unknown("timeout")], "look_up": [Unknown("timeout")] * 999}
    house.refusal("consume", ORDER)
    for hours in (1, 12, 24, 48):
        house.time = 1000.0 + hours * 3600
        asyncio.run(house.within(reconcile))
    problem = house.refusal("consume", ORDER)
    assert (problem.reason, house.wire.sent.count("redeem")) == ("manual_timeout", 1)


def test_extra_redemption_is_rolled_back(house: House) -> None:
    house.adapter.granted = TEN_OFF
    house.adapter.found = LookedUp("redeemed", TEN_OFF, ("r_2",))
    house.wire.script["redeem"] = [Unknown("timeout")]
    house("consume", order_with_discount("10.00"))
    assert house.wire.sent == ["check", "redeem", "look_up", "repair"]


def test_full_ledger_stops_consume_before_the_engine(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any) -> None:
        raise LedgerUnavailable("full")

    monkeypatch.setattr(Ledger, "claim", full)
    problem = house.refusal("consume", ORDER)
    assert (problem.reason, problem.status("consume"), house.wire.sent) == ("ledger_full", 500, [])
    assert house.answer("validate", CHECKOUT).status == 200
