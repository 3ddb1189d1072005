"""Closing a session: equal to the check, with an idempotency key, and confirmed by the answer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import EngineRejected, EngineReply, EngineUnavailable, OrderMismatch, Redeemed
from mapper.domain.checkout import Checkout
from tests.adapters.talon_one.emulated import Emulated
from tests.adapters.talon_one.examples import CART
from tests.adapters.talon_one.talk import (
    adapter,
    amounts,
    attempt,
    body_of,
    cart,
    closed,
    first,
    one_request,
    per_item,
    reply,
    talk,
)

CARD_UNKNOWN = reply({"message": "Loyalty card not found"}, 404)

text = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
orders = st.builds(
    lambda lines, codes, card, **more: cart(*lines, codes=codes, promotions={"loyalty_card": card}, **more),
    st.lists(st.tuples(text, st.integers(0, 3), st.sampled_from(["1.00", "9.99"])), max_size=3),
    st.lists(text, max_size=3),
    st.sampled_from(["", "card-1", "no"]),
    store=st.sampled_from(["", "berlin"]),
    city=st.sampled_from([None, "Berlin"]),
    shipping_rate=st.sampled_from([None, {"price": "5.00"}]),
    customer=st.sampled_from([None, {"id": "c"}]),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "STORE_PATH": st.just("/store"),
        "SESSION_ATTRIBUTES": st.just("City=/city"),
        "ADDITIONAL_COSTS": st.just("shipping=/shipping_rate/price"),
        "GUESTS": st.sampled_from(["anonymous", "own_profile"]),
        "RESPONSE_CONTENT": st.just("loyalty"),
    },
)


@settings(max_examples=200, deadline=None)
@given(orders, options, st.booleans())
def test_check_and_close_differ_only_in_dry_and_idempotency_key(
    order: Checkout, options: dict[str, str], refused: bool
) -> None:
    talon = adapter(**options)
    questions = []
    for conversation in (talon.check(order, "s"), talon.redeem(order, "s")):
        request = first(conversation)
        while request.method == "GET":  # a close may read the session first
            request = one_request(conversation.send(reply({}, 404)))
        asked = [request]
        if refused and body_of(request)["customerSession"]["loyaltyCards"]:
            asked.append(one_request(conversation.send(CARD_UNKNOWN)))
        with pytest.raises(StopIteration):
            conversation.send(closed())
        questions.append(asked)
    for check, close in zip(*questions, strict=True):
        assert check.body == close.body
        assert check.path == f"{close.path}?dry=true"
        assert (check.effect, close.effect) == ("none", "redeems")
        assert [name for name, _ in {*close.headers} - {*check.headers}] == ["Idempotency-Key"]


def test_order_with_refused_card_is_closed_without_it() -> None:
    engine, order = Emulated(), attempt(cart(("SHIRT", 1, "140.00"), codes=["XMAS-2021-25"],
                                             promotions={"loyalty_card": "card-of-nobody"}))  # fmt: skip
    shown, checked = (engine.hold(conversation(order, "s")) for conversation in (adapter().validate, adapter().check))
    redeemed = engine.hold(adapter().redeem(order, "s"))
    assert isinstance(redeemed, Redeemed)
    assert amounts(shown) == amounts(checked) == amounts(redeemed.outcome) != []
    for outcome in (shown, checked, redeemed.outcome):
        assert [rejected.code for rejected in outcome.rejected] == ["card-of-nobody"]
    assert engine.sessions() == {"s": "closed"}


@pytest.mark.parametrize(
    ("code", "customer"), [("SINGLE-0001", None), ("ONCE-EACH-10", {"id": "jane"}), ("ONCE-EACH-10", None)]
)
def test_code_used_up_by_this_order_is_not_refused(code: str, customer: Any) -> None:
    engine, order = Emulated(), attempt(cart(("SHIRT", 1, "140.00"), codes=[code], customer=customer))
    redeemed = engine.hold(adapter().redeem(order, "s"))
    checked = engine.hold(adapter().check(order, "s"))
    assert checked.redeemed
    assert (amounts(checked), checked.rejected) == (amounts(redeemed.outcome), ())
    with pytest.raises(OrderMismatch):
        engine.hold(adapter().check(cart(("SHIRT", 2, "140.00"), codes=[code], customer=customer), "s"))
    if code == "SINGLE-0001":
        [refused] = engine.hold(adapter().check(order, "another")).rejected
        assert refused.reason == "used_up"


# -- The idempotency key -----------------------------------------------------------------------------------------------


def key(order: Checkout, session: str = "s") -> str:
    return dict(first(adapter().redeem(order, session)).headers)["Idempotency-Key"]


def test_idempotency_key_depends_on_attempt_session_and_content() -> None:
    one, other = (cart(("A", quantity, "1.00"), customer={"id": "c"}) for quantity in (1, 2))
    keys = [
        key(attempt(one, "77/1")), key(attempt(one, "77/2")), key(attempt(one, "78/1")), key(attempt(other, "77/1")),
        key(attempt(one, "77/1"), "t"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(attempt(one, "77/1")) == keys[0]
    assert {len(one) for one in keys} == {64}


def test_reopened_session_is_closed_only_by_a_new_attempt() -> None:
    engine, order = Emulated(), cart(("SHIRT", 1, "140.00"), codes=["XMAS-2021-25"])
    assert isinstance(engine.hold(adapter().redeem(attempt(order, "77/1"), "s")), Redeemed)
    assert engine.reopen("s")[0] == 200
    assert isinstance(engine.hold(adapter().redeem(attempt(order, "78/1"), "s")), Redeemed)
    assert engine.sessions() == {"s": "closed"}
    assert engine.books["codes"]["XMAS-2021-25"] == 1
    # The same attempt again is answered from memory: the answer says closed, the session stays open.
    engine.reopen("s")
    engine.hold(adapter().redeem(attempt(order, "78/1"), "s"))
    assert engine.hold(adapter().look_up(order, "s")).state == "absent"


# -- The answer must say closed ----------------------------------------------------------------------------------------


def session(state: str | None) -> EngineReply:
    return reply({"customerSession": {"state": state}, "effects": []})


@pytest.mark.parametrize("answer", [reply({"effects": [per_item(5, 0)]}), session("open"), session(None)])
def test_close_answer_without_closed_state_is_verified_by_reading(answer: EngineReply) -> None:
    asked, _ = talk(adapter().redeem(CART, "s"), answer, session("closed"))
    assert [request.method for request in asked] == ["PUT", "GET"]
    for state in ("open", "", None, "cancelled"):
        with pytest.raises(EngineUnavailable) as caught:
            talk(adapter().redeem(CART, "s"), answer, session(state))
        assert caught.value.reason == "not_closed"


@pytest.mark.parametrize("status", [200, 201, 202])
def test_any_2xx_close_succeeds(status: int) -> None:
    answer = EngineReply(status=status, headers={}, body=closed(per_item(5, 0)).body)
    assert amounts(talk(adapter().redeem(CART, "s"), answer)[1]) == [(0, 500)]


# -- Undo --------------------------------------------------------------------------------------------------------------


def test_undo_works_by_handle_without_the_order() -> None:
    engine, order = Emulated(), attempt(cart(("SHIRT", 1, "140.00"), codes=["XMAS-2021-25"]))
    redeemed = engine.hold(adapter().redeem(order, "s"))
    engine.hold(adapter().undo(None, "s", redeemed.handle))
    assert engine.sessions() == {"s": "open"}
    engine.hold(adapter().redeem(attempt(order, "again"), "s"))
    for _ in range(2):  # repeatably
        engine.hold(adapter().undo(None, "s", redeemed.handle, final=True))
        assert engine.sessions() == {"s": "cancelled"}
    assert "XMAS-2021-25" not in engine.books["codes"]


@pytest.mark.parametrize("final", [False, True])
def test_undo_without_order_and_handle_asks_every_application(final: bool) -> None:
    talon = adapter(CURRENCY="USD", API_KEY_EUR="euro")
    asked, _ = talk(talon.undo(None, "s", "", final=final), *[reply({}, 404)] * (2 if final else 4))
    assert sorted({request.account for request in asked}) == ["", "EUR"]


@pytest.mark.parametrize("final", [False, True])
def test_undo_in_an_application_that_is_no_longer_configured_is_rejected(final: bool) -> None:
    with pytest.raises(EngineRejected) as caught:
        talk(adapter().undo(None, "s", "EUR/s", final=final), closed())
    assert caught.value.reason == "currency_not_served"


@pytest.mark.parametrize(("state", "requests"), [(None, 1), ("cancelled", 1), ("open", 2), ("closed", 2),
                                                 ("partially_returned", 2)])  # fmt: skip
def test_final_undo_reads_the_session_first(state: str | None, requests: int) -> None:
    replies = [session(state), session("cancelled")][:requests]
    asked, _ = talk(adapter().undo(CART, "s", final=True), *replies)
    assert [request.effect for request in asked] == ["none", "session"][:requests]


def test_unconfirmed_cancel_raises_engine_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="has not cancelled"):
        talk(adapter().undo(CART, "s", final=True), session("closed"), session("closed"))
    cannot = reply({"message": 'Cannot move session to state "cancelled" from state "cancelled"'}, 400)
    talk(adapter().undo(CART, "s", final=True), session("closed"), cannot)


def test_look_up_by_handle_reads_the_closed_session() -> None:
    with pytest.raises(OrderMismatch):
        talk(adapter().look_up(CART, "s", "/other"), session("closed"))
    assert first(adapter().look_up(CART, "s", "/other")).path.endswith("/other")
