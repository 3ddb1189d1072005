"""What is closed is what was checked; and only what says that it is closed is."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import EngineReply, EngineUnavailable, OrderMismatch, Redeemed
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
def test_a_check_and_a_close_differ_in_the_dry_flag_and_the_idempotency_key_alone(
    order: Checkout, options: dict[str, str], refused: bool
) -> None:
    talon = adapter(**options)
    questions = []
    for conversation in (talon.check(order, "s"), talon.redeem(order, "s")):
        request = first(conversation)
        while request.method == "GET":  # a close may look first at what the session holds
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


def test_an_order_whose_card_is_refused_is_closed_for_the_rest() -> None:
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
def test_a_code_that_is_used_up_may_have_been_used_up_by_this_very_order(code: str, customer: Any) -> None:
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


def test_the_key_names_order_and_attempt_session_and_content() -> None:
    one, other = (cart(("A", quantity, "1.00"), customer={"id": "c"}) for quantity in (1, 2))
    keys = [
        key(attempt(one, "77/1")), key(attempt(one, "77/2")), key(attempt(one, "78/1")), key(attempt(other, "77/1")),
        key(attempt(one, "77/1"), "t"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(attempt(one, "77/1")) == keys[0]
    assert {len(one) for one in keys} == {64}


def test_a_session_that_the_merchant_reopened_is_closed_by_a_new_attempt_and_never_by_the_memory_of_the_old() -> None:
    engine, order = Emulated(), cart(("SHIRT", 1, "140.00"), codes=["XMAS-2021-25"])
    assert isinstance(engine.hold(adapter().redeem(attempt(order, "77/1"), "s")), Redeemed)
    assert engine.reopen("s")[0] == 200
    assert isinstance(engine.hold(adapter().redeem(attempt(order, "78/1"), "s")), Redeemed)
    assert engine.sessions() == {"s": "closed"}
    assert engine.books["codes"]["XMAS-2021-25"] == 1
    # The same attempt again is answered from memory. The memory says closed; the session is what it is.
    engine.reopen("s")
    engine.hold(adapter().redeem(attempt(order, "78/1"), "s"))
    assert engine.hold(adapter().look_up(order, "s")).state == "absent"


# -- It says that it is closed -----------------------------------------------------------------------------------------


def session(state: str | None) -> EngineReply:
    return reply({"customerSession": {"state": state}, "effects": []})


@pytest.mark.parametrize("answer", [reply({"effects": [per_item(5, 0)]}), session("open"), session(None)])
def test_an_answer_that_does_not_say_closed_is_no_success_before_the_session_has_been_read(answer: EngineReply) -> None:
    asked, _ = talk(adapter().redeem(CART, "s"), answer, session("closed"))
    assert [request.method for request in asked] == ["PUT", "GET"]
    for state in ("open", "", None, "cancelled"):
        with pytest.raises(EngineUnavailable) as caught:
            talk(adapter().redeem(CART, "s"), answer, session(state))
        assert caught.value.reason == "not_closed"


@pytest.mark.parametrize("status", [200, 201, 202])
def test_any_2xx_is_done(status: int) -> None:
    answer = EngineReply(status=status, headers={}, body=closed(per_item(5, 0)).body)
    assert amounts(talk(adapter().redeem(CART, "s"), answer)[1]) == [(0, 500)]


# -- Where it was redeemed ---------------------------------------------------------------------------------------------


def test_an_order_can_be_taken_back_by_its_handle_once_its_body_is_erased() -> None:
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
def test_without_order_and_handle_every_application_is_asked(final: bool) -> None:
    talon = adapter(CURRENCY="USD", API_KEY_EUR="euro")
    asked, _ = talk(talon.undo(None, "s", "", final=final), *[reply({}, 404)] * (2 if final else 4))
    assert sorted({request.account for request in asked}) == ["", "EUR"]


@pytest.mark.parametrize(("state", "requests"), [(None, 1), ("cancelled", 1), ("open", 2), ("closed", 2),
                                                 ("partially_returned", 2)])  # fmt: skip
def test_what_is_cancelled_for_good_is_read_first(state: str | None, requests: int) -> None:
    replies = [session(state), session("cancelled")][:requests]
    asked, _ = talk(adapter().undo(CART, "s", final=True), *replies)
    assert [request.effect for request in asked] == ["none", "session"][:requests]


def test_a_cancel_that_is_not_said_to_be_one_is_in_doubt() -> None:
    with pytest.raises(EngineUnavailable, match="has not cancelled"):
        talk(adapter().undo(CART, "s", final=True), session("closed"), session("closed"))
    cannot = reply({"message": 'Cannot move session to state "cancelled" from state "cancelled"'}, 400)
    talk(adapter().undo(CART, "s", final=True), session("closed"), cannot)


def test_a_handle_leads_to_the_session_that_was_closed() -> None:
    with pytest.raises(OrderMismatch):
        talk(adapter().look_up(CART, "s", "/other"), session("closed"))
    assert first(adapter().look_up(CART, "s", "/other")).path.endswith("/other")
