"""Conversations of several requests: closing, looking up, undoing, refusals."""

import json
from typing import Any

import pytest

from adapters.talon_one import TalonOne
from mapper.adapter import (
    EngineReply,
    Outcome,
    Redeemed,
    Rejection,
)
from mapper.domain.errors import EngineRejected, EngineUnavailable, OrderMismatch, Problem
from mapper.domain.reasons import Reason
from mapper.engine.conversation import replay
from tests.adapters.talon_one.examples import CART
from tests.adapters.talon_one.talk import (
    ONE,
    adapter,
    amounts,
    cart,
    closed,
    effect,
    first,
    per_item,
    reply,
    talk,
)


def cannot_move(state: str = "closed", to: str = "open") -> EngineReply:
    return reply({"message": f'Cannot move session to state "{to}" from state "{state}"', "errors": None}, 400)


_CANNOT_MOVE = 'Cannot move session to state "open" from state "closed"'


def cannot_move_in(error: dict[str, Any]) -> EngineReply:
    return reply({"message": "The submitted data was invalid", "errors": [error]}, 400)


def stored(state: str | None = "closed", **changes: Any) -> EngineReply:
    session = {
        "state": state, "couponCodes": ["coup-xyz789"], "referralCode": "ref-abc123", "total": 100,
        "cartItems": [{"sku": "shoes", "quantity": 1.0, "price": 60, "position": 0, "attributes": {}},
                      {"sku": "shirt", "quantity": 2, "price": 20.00, "position": 1}],
    }  # fmt: skip
    return reply({"customerSession": {**session, **changes}, "effects": [per_item(5, 0)]})


@pytest.mark.parametrize(
    ("answer", "problem", "reason"),
    [
        (cannot_move(), EngineRejected, "session_closed"),
        (cannot_move("partially_returned"), EngineRejected, "session_closed"),
        (
            reply({"message": "Cannot move session to state open from state closed"}, 400),
            EngineRejected,
            "session_closed",
        ),
        (cannot_move_in({"title": _CANNOT_MOVE}), EngineRejected, "session_closed"),
        (cannot_move_in({"title": "Invalid", "details": _CANNOT_MOVE}), EngineRejected, "session_closed"),
        (reply({"message": _CANNOT_MOVE, "errors": {}}, 400), EngineRejected, "session_closed"),
        (reply({"message": _CANNOT_MOVE, "errors": [{"title": 5}]}, 400), EngineRejected, "session_closed"),
        (reply({"message": "The submitted data was invalid"}, 400), EngineRejected, "request_rejected"),
        (reply(b"<html>", 400), EngineRejected, "request_rejected"),
        (reply({"message": "no"}, 422), EngineRejected, "request_rejected"),
        (reply({"message": "invalid key"}, 401), EngineRejected, "engine_key"),
        (reply({"message": "no rights"}, 403), EngineRejected, "engine_key"),
        (reply({"message": "Not found"}, 404), EngineRejected, "not_found_at_engine"),
        (reply(b"", 302), EngineUnavailable, "bad_reply"),
        (reply(b"", 204), EngineUnavailable, "bad_reply"),
        (reply(b"<html>"), EngineUnavailable, "bad_reply"),
        (reply({}), EngineUnavailable, "bad_reply"),
        (reply({"effects": {}}), EngineUnavailable, "bad_reply"),
    ],
)
def test_refused_validate_raises_this_problem(answer: EngineReply, problem: type[Problem], reason: str) -> None:
    with pytest.raises(problem) as caught:
        talk(adapter().validate(CART, "s"), answer)
    assert caught.value.reason == reason


def test_null_list_counts_as_empty() -> None:
    _, result = talk(
        adapter().validate(cart(("A", 1, "1.00")), "s"), reply({"effects": None, "triggeredCampaigns": None})
    )
    assert result == Outcome()


def test_engine_error_passes_on_only_the_pointer() -> None:
    error = {"title": "Unknown", "details": "attribute of jane@example.com", "source": {"pointer": "/attributes/Color"}}
    strange = {"source": {"pointer": "/attributes/jane@example.com <script>"}}
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().validate(CART, "s"), reply({"message": "bad jane", "errors": [error, strange, {}]}, 400))
    assert caught.value.details["engine_pointers"] == ["/attributes/Color"]
    assert "/attributes/Color" in caught.value.message
    assert "jane" not in repr((caught.value.message, caught.value.details))


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(
    "body",
    [
        {"message": "Loyalty card not found"},
        {"message": "no", "errors": [{"source": {"pointer": "/loyaltyCards/0"}}]},
        {"message": "no", "errors": [{"title": "Not found", "details": "no card 'CARD-1' in this program"}]},
    ],
)
def test_unknown_loyalty_card_is_rejected_and_the_cart_priced(status: int, body: Any) -> None:
    checkout = cart(("A", 1, "9.00"), promotions={"loyalty_card": "card-1"})
    for conversation in (adapter().validate, adapter().check, adapter().redeem):
        asked, result = talk(conversation(checkout, "s"), reply(body, status), closed(per_item(5, 0)))
        assert [json.loads(request.body)["customerSession"]["loyaltyCards"] for request in asked] == [["card-1"], []]
        assert asked[0].path == asked[1].path
        assert (result.rejected, amounts(result)) == ((Rejection("card-1", Reason.NOT_FOUND, ""),), [(0, 500)])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", EngineUnavailable),
        (b"<html>", EngineUnavailable),
        (b'{"status": "ok", "data": [1, null]}', EngineUnavailable),
        (b'{"message": "Cannot move session to state "closed" from st', EngineUnavailable),
        (b'{"message": "The submitted data was invalid"}', EngineRejected),
        (b'{"errors": [{"title": "wrong"}]}', EngineRejected),
    ],
)
def test_unexplained_400_to_a_close_raises_engine_unavailable(body: bytes, problem: type[Problem]) -> None:
    with pytest.raises(Problem) as caught:
        talk(adapter().redeem(CART, "s"), reply(body, 400))
    assert type(caught.value) is problem


@pytest.mark.parametrize("state", ["closed", "partially_returned"])
@pytest.mark.parametrize("conversation", ["check", "redeem"])
def test_already_closed_order_is_not_closed_again(conversation: str, state: str) -> None:
    asked, result = talk(getattr(adapter(), conversation)(CART, "s"), cannot_move(state, "closed"), stored(state))
    assert [request.method for request in asked] == ["PUT", "GET"]
    assert (result.redeemed, amounts(result)) == (True, [(0, 500)])


@pytest.mark.parametrize("conversation", ["check", "redeem"])
def test_successful_close_returns_its_discounts(conversation: str) -> None:
    asked, result = talk(getattr(adapter(), conversation)(CART, "s"), closed(per_item(5, 0)))
    assert json.loads(asked[0].body)["customerSession"]["state"] == "closed"
    assert (result.redeemed, amounts(result)) == (False, [(0, 500)])


MEMBER_PRICE = {"sku": "shoes", "quantity": 1, "price": 55, "selectedPriceType": "member"}
OTHER_CONTENT: list[dict[str, Any]] = [
    {"cartItems": None},
    {"cartItems": []},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 60}]},
    {"cartItems": [{"sku": "shirt", "quantity": 2, "price": 20}, {"sku": "shoes", "quantity": 1, "price": 60}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 60}, {"sku": "shirt", "quantity": 3, "price": 20}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1, "price": 55}, {"sku": "shirt", "quantity": 2, "price": 20}]},
    {"cartItems": [{"sku": "shoes", "quantity": 1}, {"sku": "shirt", "quantity": 2, "price": 20}]},
    {"cartItems": [MEMBER_PRICE, {"sku": "shirt", "quantity": 3, "price": 20}]},
    {"cartItems": [{**MEMBER_PRICE, "quantity": 2}, {"sku": "shirt", "quantity": 2, "price": 20}]},
    {
        "cartItems": [
            {"sku": "shoes", "quantity": 1, "price": 60},
            {"sku": "shirt", "quantity": 2, "price": 20},
            {"sku": "gift", "quantity": 1},
        ]
    },
    {"couponCodes": []},
    {"couponCodes": ["COUP-XYZ789", "MORE"]},
    {"referralCode": ""},
    {"loyaltyCards": ["card-1"]},
]


@pytest.mark.parametrize("changes", OTHER_CONTENT)
def test_session_closed_with_other_content_raises_order_mismatch(changes: dict[str, Any]) -> None:
    with pytest.raises(OrderMismatch):
        talk(adapter().look_up(CART, "s"), stored(**changes))
    for conversation in (adapter().check, adapter().redeem):
        with pytest.raises(OrderMismatch):
            talk(conversation(CART, "s"), cannot_move(), stored(**changes))


def test_price_that_talon_one_selected_is_no_other_content() -> None:
    items = [MEMBER_PRICE, {"sku": "shirt", "quantity": 2, "price": 20}]
    _, found = talk(adapter().look_up(CART, "s"), stored(cartItems=items))
    assert (found.state, amounts(found.outcome)) == ("redeemed", [(0, 500)])


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        ("Coupon", "COUP-XYZ789", "CouponLimitReached"),
        ("Coupon", "COUP-XYZ789", "ProfileLimitReached"),
        ("Coupon", "COUP-XYZ789", "CampaignLimitReached"),
        ("Coupon", "COUP-XYZ789", "EffectCouldNotBeApplied"),
        ("Referral", "REF-ABC123", "ReferralLimitReached"),
        ("Referral", "REF-ABC123", "ReferralCustomerAlreadyReferred"),
    ],
)
def test_limit_reached_by_this_order_itself_is_no_refusal(kind: str, code: str, reason: str) -> None:
    refused = effect(f"reject{kind}", {"value": code, "rejectionReason": reason})
    _, checked = talk(adapter().check(CART, "s"), closed(refused), stored())
    assert (checked.redeemed, amounts(checked), checked.rejected) == (True, [(0, 500)], ())
    _, checked = talk(adapter().check(CART, "s"), closed(refused), stored("open"))
    assert (checked.redeemed, [one.code for one in checked.rejected]) == (False, [code])


@pytest.mark.parametrize(
    "answer",
    [stored("open"), stored(None), stored(""), reply({"customerSession": None, "effects": []}), reply({}, 404)],
)
def test_open_empty_or_unknown_session_is_absent(answer: EngineReply) -> None:
    asked, found = talk(adapter().look_up(CART, "s"), answer)
    assert ([request.method for request in asked], found.state) == (["GET"], "absent")


@pytest.mark.parametrize("other", [{}, {"status": "ok", "data": [1, None]}])
def test_answer_that_is_no_session_raises_engine_unavailable(other: dict[str, Any]) -> None:
    for conversation in (adapter().look_up(CART, "s"), adapter().undo(CART, "s", final=True)):
        with pytest.raises(EngineUnavailable):
            talk(conversation, reply(other))


def test_look_up_returns_discounts_of_the_closed_session() -> None:
    _, found = talk(adapter().look_up(CART, "s"), stored())
    assert (found.state, amounts(found.outcome)) == ("redeemed", [(0, 500)])
    unreadable = reply({**json.loads(stored().body), "effects": [per_item(5, 99), per_item(5, 0)]})
    _, found = talk(adapter().look_up(CART, "s"), unreadable)
    assert (found.state, amounts(found.outcome)) == ("redeemed", [(0, 500)])


def test_contradictory_session_state_raises_engine_unavailable() -> None:
    for answer in (stored("open"), reply({}, 404)):
        with pytest.raises(EngineUnavailable) as caught:
            talk(adapter().redeem(CART, "s"), cannot_move(), answer)
        assert caught.value.reason == "session_state"


def test_cancelled_session_raises_engine_rejected() -> None:
    cancelled = stored("cancelled")
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().look_up(CART, "s"), cancelled)
    assert caught.value.reason == "session_cancelled"
    with pytest.raises(EngineRejected):
        talk(adapter().redeem(CART, "s"), cannot_move("cancelled"), cancelled)
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().validate(CART, "s"), cannot_move("cancelled"))
    assert caught.value.reason == "session_closed", "another session will do"


@pytest.mark.parametrize(("status", "reason"), [(401, "engine_key"), (400, "request_rejected")])
def test_refused_look_up_raises_engine_rejected(status: int, reason: str) -> None:
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().look_up(CART, "s"), reply({"message": "no"}, status))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "answers",
    [
        [reply({"effects": []})],
        [reply({"message": "Cannot move"}, 400), stored("open")],
        [reply({"message": "Cannot move"}, 400), stored("cancelled")],
        [reply({"message": "Cannot move"}, 400), reply({"effects": []})],
        [reply({}, 404), reply({}, 404)],
    ],
)
def test_undo_reopens_the_session_or_has_nothing_to_undo(answers: list[EngineReply]) -> None:
    asked, _ = talk(adapter().undo(CART, "s"), *answers)
    assert [request.method for request in asked] == ["PUT", "GET"][: len(answers)]
    assert not any(name == "Idempotency-Key" for request in asked for name, _ in request.headers)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([reply({"message": "no"}, 400), stored("closed")], "request_rejected"),
        ([reply({"message": "no"}, 404), stored("closed")], "not_found_at_engine"),
        ([reply({"message": "no"}, 401)], "engine_key"),
        ([reply({"message": "no"}, 400), reply(b"?")], "bad_reply"),
        ([reply({"status": "ok"})], "bad_reply"),
    ],
)
def test_failed_undo_raises(answers: list[EngineReply], reason: str) -> None:
    with pytest.raises(Problem) as caught:
        talk(adapter().undo(CART, "s"), *answers)
    assert caught.value.reason == reason


def test_adapter_has_no_repair_capability() -> None:
    assert not TalonOne.capabilities.repair


def test_handle_selects_the_application_for_undo() -> None:
    many = TalonOne({**ONE, "CURRENCY": "USD", "API_KEY_EUR": "euro"})
    redeemed, _ = replay(many.redeem(cart(currency="EUR"), "s"), [closed()], accounts=many.accounts)
    assert isinstance(redeemed, Redeemed)
    for order in (cart(currency="EUR"), None):
        assert first(many.undo(order, "s", redeemed.handle, final=True)).account == "EUR"
