"""Values removed from a cart do not count: a changed cart earns what it earns in a new session.

A PUT is a merge. The documents do not say how to remove an attribute, a store, a cost or a customer, nor what a null
does. So the tests try every way in which the engine may keep or drop them, and the adapter must be right in each.
"""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import EngineRejected, OrderMismatch, Outcome, Redeemed
from mapper.domain.checkout import Checkout
from tests.adapters.talon_one.emulated import Emulated
from tests.adapters.talon_one.talk import adapter, attempt, body_of, cart, closed, reply, talk

OPTIONS = {
    "STORE_PATH": "/store",
    "SESSION_ATTRIBUTES": "channel=/channel,ShippingCity=/city",
    "ADDITIONAL_COSTS": "shipping=/shipping_rate/price,handling=/handling",
    "ITEM_ATTRIBUTES": "color=/color",
    "ITEM_ADDITIONAL_COSTS": "gift_wrap=/wrap",
    "GUESTS": "anonymous",
}
# A mug for the store Berlin, free shipping for the channel app.
RULES = (
    ('conditions = { cart_at_least = "300.00", stores = ["berlin"] }', 'conditions = { stores = ["berlin"] }'),
    ('conditions = { cart_over = "100.00" }', 'conditions = { attributes = { channel = "app" } }'),
)
WAYS = [
    (*RULES, ('attributes = "merge"', f'attributes = "{one}"'), ('additional_costs = "replace"',
     f'additional_costs = "{other}"'), ('nulls = "refuse"', f'nulls = "{nulls}"'))
    for one, other, nulls in product(("merge", "replace"), ("merge", "replace"), ("refuse", "clear", "ignore"))
]  # fmt: skip


def shopping(**gone: Any) -> Checkout:
    """A cart with every value that a session can hold; None removes a value."""
    body: dict[str, Any] = {
        "store": "berlin", "channel": "app", "city": "Berlin", "shipping_rate": {"price": "5.00"}, "handling": "1.00",
        "customer": {"id": "c"}, "card": "CARD-COLLECT", "identifiers": ["id"], "codes": ["XMAS-2021-25"], **gone,
    }  # fmt: skip
    promotions = {"loyalty_card": body.pop("card"), "identifiers": body.pop("identifiers")}
    return cart(("SHIRT", 1, "140.00"), codes=body.pop("codes"), promotions=promotions, **body)


GONE: list[dict[str, Any]] = [
    {"store": None}, {"channel": None}, {"city": None}, {"shipping_rate": None}, {"handling": None},
    {"customer": None}, {"card": ""}, {"identifiers": []}, {"codes": []}, {"store": None, "channel": None},
]  # fmt: skip


def validate(engine: Emulated, checkout: Checkout, session: str, **options: str) -> tuple[Outcome, str]:
    """Validate as the core does: try the next session if one cannot be used. Return the outcome and the session."""
    for number in range(2, 7):
        try:
            outcome = engine.hold(adapter(**(options or OPTIONS)).validate(checkout, session))
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            session = f"{session.partition('~')[0]}~{number}"
        else:
            assert isinstance(outcome, Outcome)
            return outcome, session
    raise AssertionError("no session will do")


def granted(outcome: Outcome) -> Any:
    return outcome.discounts, outcome.rejected, [(notice.type, notice.text) for notice in outcome.notices]


def in_a_new_session(changes: tuple[tuple[str, str], ...], checkout: Checkout) -> Any:
    return granted(validate(Emulated(*changes), checkout, "new")[0])


@pytest.mark.parametrize("gone", GONE, ids="+".join)
@pytest.mark.parametrize("changes", WAYS, ids=lambda changes: "-".join(new.split('"')[1] for _, new in changes[2:]))
def test_removed_value_earns_nothing(changes: tuple[tuple[str, str], ...], gone: dict[str, Any]) -> None:
    engine, checkout = Emulated(*changes), shopping(**gone)
    validate(engine, shopping(), "s")
    outcome, session = validate(engine, checkout, "s")
    assert granted(outcome) == in_a_new_session(changes, checkout)
    # The receipt names the session: from now on one call is enough.
    before = len(engine.asked)
    assert validate(engine, checkout, session)[1] == session
    assert len(engine.asked) == before + 1


@pytest.mark.parametrize("gone", GONE, ids="+".join)
@pytest.mark.parametrize("changes", WAYS[:1] + WAYS[3:4], ids=("merged", "costs-merged"))
def test_order_with_removed_values_is_closed_as_checked(
    changes: tuple[tuple[str, str], ...], gone: dict[str, Any]
) -> None:
    engine, order = Emulated(*changes), attempt(shopping(**gone))
    validate(engine, shopping(), "s")
    checked = engine.hold(adapter(**OPTIONS).check(order, "s"))
    redeemed = engine.hold(adapter(**OPTIONS).redeem(order, "s"))
    assert isinstance(redeemed, Redeemed)
    assert redeemed.outcome.discounts == checked.discounts
    # A look-up finds it with the handle and (if the answer was lost) without; and it can be undone.
    for handle in (redeemed.handle, ""):
        assert engine.hold(adapter(**OPTIONS).look_up(order, "s", handle)).state == "redeemed"
    engine.hold(adapter(**OPTIONS).undo(order, "s", ""))
    assert "closed" not in engine.sessions().values()
    assert engine.hold(adapter(**OPTIONS).look_up(order, "s", "")).state == "absent"
    engine.hold(adapter(**OPTIONS).redeem(attempt(order, "2"), "s"))
    assert list(engine.sessions().values()).count("closed") == 1


def test_session_closed_by_another_order_raises_order_mismatch() -> None:
    engine, order = Emulated(*WAYS[0]), attempt(shopping(store=None))
    engine.hold(adapter(**OPTIONS).redeem(shopping(codes=[]), "s"))
    with pytest.raises(OrderMismatch):
        engine.hold(adapter(**OPTIONS).redeem(order, "s"))
    assert list(engine.sessions()) == ["s"]


def test_order_with_all_configured_values_closes_in_one_request() -> None:
    engine = Emulated(*WAYS[0])
    engine.hold(adapter(**OPTIONS).redeem(shopping(), "s"))
    assert [request.operation for request in engine.asked] == ["close session"]


carts = st.builds(
    shopping,
    store=st.sampled_from([None, "berlin", "new-york"]),
    channel=st.sampled_from([None, "app", "web"]),
    shipping_rate=st.sampled_from([None, {"price": "5.00"}]),
    customer=st.sampled_from([None, {"id": "c"}]),
    card=st.just(""),
    codes=st.sampled_from([[], ["XMAS-2021-25"], ["NOPE"]]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(carts, min_size=2, max_size=5), st.sampled_from(WAYS))
def test_changed_cart_earns_what_a_new_session_earns(
    steps: list[Checkout], changes: tuple[tuple[str, str], ...]
) -> None:
    engine, session = Emulated(*changes), "s"
    for checkout in steps:
        outcome, session = validate(engine, checkout, session)
        assert granted(outcome) == in_a_new_session(changes, checkout)
    redeemed = engine.hold(adapter(**OPTIONS).redeem(attempt(steps[-1]), session))
    assert redeemed.outcome.discounts == outcome.discounts


# -- Unknown, foreign and stale values ---------------------------------------------------------------------------------


def held(**session: Any) -> dict[str, Any]:
    return {"effects": [], "customerSession": {"state": "open", "updateCount": 2, **session}}


@pytest.mark.parametrize(
    "session",
    [
        {"attributes": {"ofOthers": "x", "ShippingCity": None}, "additionalCosts": {"ofOthers": {"price": 5}}},
        {"additionalCosts": {"shipping": {"price": 0}, "handling": {}}, "storeIntegrationId": "", "profileId": ""},
        {"attributes": None, "additionalCosts": None, "loyaltyCards": None, "identifiers": None},
        {"updateCount": 1, "attributes": {"ShippingCity": "a rule has set it"}},
        {"integrationId": "another", "loyaltyCards": ["CARD"], "identifiers": ["id"], "storeIntegrationId": "berlin"},
    ],
)
def test_values_of_others_or_empty_keep_the_session(session: dict[str, Any]) -> None:
    checkout = shopping(store=None, city=None, channel=None, shipping_rate=None, handling=None, card="", identifiers=[])
    talk(adapter(**OPTIONS).validate(checkout, "s"), reply(held(**session)))


def test_null_cost_does_not_hide_a_stale_store() -> None:
    answer = reply(held(additionalCosts={"shipping": None}, storeIntegrationId="berlin"))
    with pytest.raises(EngineRejected) as caught:
        talk(adapter(**OPTIONS).validate(shopping(store=None), "s"), answer)
    assert caught.value.reason == "session_closed"


def test_answer_without_session_is_accepted() -> None:
    for session in (None, "unreadable"):
        talk(adapter(**OPTIONS).validate(shopping(store=None), "s"), reply({"effects": [], "customerSession": session}))


def test_stale_values_at_close_give_a_notice() -> None:
    order = shopping(store=None)
    answer = closed()
    holding = reply(held(state="closed", storeIntegrationId="berlin"))
    _, outcome = talk(adapter(**OPTIONS).redeem(order, "s"), reply({}, 404), holding)
    assert [(n.type, n.payload) for n in outcome.notices if n.type == "held_by_session"] == [
        ("held_by_session", {"fields": ["storeIntegrationId"]})
    ]
    _, outcome = talk(adapter(**OPTIONS).redeem(order, "s"), reply({}, 404), answer)
    assert "held_by_session" not in [notice.type for notice in outcome.notices]


def test_request_contains_no_null() -> None:
    engine = Emulated(*WAYS[0])
    engine.hold(adapter(**OPTIONS).validate(shopping(**{name: None for gone in GONE[:6] for name in gone}), "s"))
    assert b"null" not in engine.asked[0].body
    assert body_of(engine.asked[0])["customerSession"]["attributes"] == {}
