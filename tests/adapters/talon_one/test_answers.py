"""Any answer, in any order, ends in an outcome or a problem."""

from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.talon_one import TalonOne
from mapper.adapter import (
    Conversation,
    EngineReply,
)
from mapper.domain.errors import Problem
from tests.adapters.talon_one.examples import CART, EFFECTS
from tests.adapters.talon_one.talk import COSTS, adapter, amounts, cart, effect, only, outcome, per_item, reply, talk


def samples() -> list[dict[str, Any]]:
    """One effect of each type, and some that share a rule, a line or a name."""
    effects = [effect(kind, props) for kind, (props, _) in EFFECTS.items()]
    effects += [
        per_item(Decimal("3.335"), p, campaign=c, props={"subPosition": u})
        for p, u, c in [(0, 0, 2), (1, 0, 2), (1, 1, 2)]
    ]
    effects += [
        per_item(Decimal("0.335"), p, campaign=3, props={"totalDiscount": 1, "subPosition": u})
        for u, p in enumerate((0, 1, 1))
    ]
    effects += [
        per_item(70, 0, campaign=4, props={"scope": "itemTotal"}),
        per_item(80, 0, campaign=5, props={"scope": "itemTotal"}),
    ]
    effects += [
        effect("setDiscount", {"name": "Off", "value": v}, campaign=6, ruleIndex=i) for i, v in enumerate((1, 2, 2))
    ]
    return effects


@settings(deadline=None)
@given(st.permutations(samples()))
def test_outcome_does_not_depend_on_effect_order(shuffled: list[dict[str, Any]]) -> None:
    assert outcome(CART, shuffled) == outcome(CART, samples())


JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, 1e308, -0.0, "", "x", "NaN", "-Infinity", "sNaN", "\u0000",
    [], {}, [[]], {"a": {}}, [None],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and junk is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], junk)
    return copy


HOSTILE = {
    "effects": [per_item(5, 0, coupon=9), effect("acceptCoupon", {"value": "COUP-XYZ789"}, coupon=9),
                effect("rejectReferral", {"value": "REF-ABC123", "rejectionReason": "ReferralExpired"}),
                effect("setDiscountPerAdditionalCost", {"name": "x", "value": 1, "additionalCost": "shipping"}),
                effect("showNotification", {"title": "t", "body": "b"}), per_item(1, 1, props={"totalDiscount": 1})],
    "triggeredCampaigns": [{"id": 1, "name": "n", "description": "d"}],
    "customerSession": {"state": "closed", "couponCodes": ["COUP-XYZ789"], "referralCode": "REF-ABC123", "cartItems": [
        {"sku": "shoes", "quantity": 1, "price": 60}, {"sku": "shirt", "quantity": 2, "price": 20.0}]},
    "message": 'Cannot move session to state "open" from state "closed"',
    "errors": [{"title": "t", "details": "d", "source": {"pointer": "/attributes/X"}}],
}  # fmt: skip
TEXTS = [
    b"", b"null", b"[]", b"{", b'{"effects":NaN}', b"\xff\xfe",
    b'{"effects":[{"effectType":"\xff","props":{"a":"\xff"}}]}', b'{"effects":' + b"[" * 100_000,
    b'{"effects":[' + b'{"effectType":"x","props":' * 5_000 + b"1" + b"}" * 5_000 + b"]}",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"\\ud800","value":1}}]}', b"<html>502 Bad Gateway</html>",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":' + b"9" * 6_000 + b"}}]}",
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":1e999999999999999999999}}]}',
    b'{"effects":[{"effectType":"setDiscount","props":{"name":"x","value":1' + b"0" * 14 + b"},"
    b'"campaignId":1},{"effectType":"setDiscount","props":{"name":"x","value":1e-40}}]}',
]  # fmt: skip


def assert_ends(body: bytes | Any, statuses: Iterable[int] = (200,)) -> None:
    """Assert that each conversation ends with an outcome or a `Problem`."""
    talon = TalonOne(COSTS)
    for status in statuses:
        for conversation in (talon.validate, talon.check, talon.redeem, talon.look_up, talon.undo):
            held: Conversation[Any] = conversation(CART, "s")
            next(held)
            with suppress(Problem):
                assert ended(held, reply(body, status)), "the conversation does not end"


def ended(held: Conversation[Any], answer: EngineReply) -> bool:
    try:
        for _ in range(4):
            held.send(answer)
    except StopIteration as stop:
        # The result goes into our own answer, so it must be encodable.
        msgspec.json.Encoder(decimal_format="number").encode(stop.value)
        return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(places(HOSTILE))), st.sampled_from([*JUNK, ...]), st.sampled_from([200, 400, 404]))
def test_any_answer_ends_in_an_outcome_or_a_problem(path: tuple[Any, ...], junk: Any, status: int) -> None:
    assert_ends(changed(HOSTILE, path, junk if path or junk is not ... else None), [status])


@pytest.mark.parametrize("body", TEXTS, ids=lambda text: text[:30])
def test_any_text_ends_in_an_outcome_or_a_problem(body: bytes) -> None:
    assert_ends(body, (200, 204, 302, 400, 401, 404, 418))


def test_undecodable_effect_does_not_lose_the_others() -> None:
    good = msgspec.json.encode(per_item(5, 0))
    for bad in (b"5", b"null", b'{"effectType":5}', b'{"effectType":"newOne","props":{"text":"\xff"}}', b"99e99"):
        body = b'{"effects":[' + bad + b"," + good + b'],"triggeredCampaigns":[5,{"id":1,"name":"Summer"}]}'
        _, result = talk(adapter().validate(cart(("A", 1, "9.00")), "s"), reply(body))
        assert amounts(result) == [(0, 500)]
        assert (only(result.discounts).description, len(result.notices)) == ("Summer", 1)


MISFITS: list[Any] = [7.5, {}, [], "x"]


@pytest.mark.parametrize(
    "more",
    [
        *[{"props": {name: junk}} for name in ("name", "bundleName", "totalDiscount") for junk in MISFITS],
        *[{name: junk} for name in ("ruleName", "triggeredByCoupon", "selectedPrice") for junk in MISFITS],
        {"ruleName": 7},
        {"rulesetId": 10**30},
    ],
)
def test_malformed_informative_field_does_not_lose_the_discount(more: dict[str, Any]) -> None:
    campaigns = [{"id": 1, "name": "Summer"}]
    result = outcome(cart(("A", 1, "9.00")), [per_item(5, 0, **more)], campaigns)
    assert amounts(result) == [(0, 500)]
    assert (only(result.discounts).meta["campaignId"], only(result.discounts).description) == (1, "Summer")


def test_malformed_prop_does_not_lose_the_other_props() -> None:
    broken = per_item(5, 0, ruleName=None, props={"name": "Five off", "bundleName": {}})
    assert only(outcome(cart(("A", 1, "9.00")), [broken]).discounts).name == "Five off"


@pytest.mark.parametrize("name", ["scope", "position", "additionalCost"])
def test_discount_with_malformed_target_raises_problem(name: str) -> None:
    with pytest.raises(Problem):
        outcome(cart(("A", 1, "9.00")), [per_item(5, 0, props={name: {}})])


@pytest.mark.parametrize("name", ["rejectionReason", "campaignExclusionReason", "details"])
def test_rejection_with_malformed_detail_still_counts(name: str) -> None:
    props = {"value": "SAVE", "rejectionReason": "CouponExpired", name: 7}
    (refused,) = outcome(cart(("A", 1, "9.00"), codes=["SAVE"]), [effect("rejectCoupon", props)]).rejected
    assert (refused.code, refused.reason) == ("SAVE", "other" if name == "rejectionReason" else "expired")


@pytest.mark.parametrize("campaigns", [{}, 7, "x", [None, 7, {"id": 2}]])
def test_unreadable_campaigns_do_not_lose_the_discount(campaigns: Any) -> None:
    assert amounts(outcome(cart(("A", 1, "9.00")), [per_item(5, 0)], campaigns)) == [(0, 500)]
