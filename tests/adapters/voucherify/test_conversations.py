"""The Voucherify adapter: conversations of several requests, consume, locks."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import Conversation, Discount, EngineReply, LookedUp, NotRedeemed, Outcome, Redeemed
from mapper.domain.errors import EngineRejected, EngineUnavailable, OrderMismatch, Problem
from mapper.engine.conversation import request_limit
from tests.adapters.voucherify.talk import (
    AMOUNT,
    ORDER,
    RATE,
    SHIRT,
    TIER,
    TIER_2,
    TIER_REDEMPTION,
    UNKNOWN,
    applies,
    body_of,
    cart,
    discount,
    engine,
    fails,
    failure,
    invalid,
    item,
    order,
    redeemable_ids,
    redeemed,
    redeemed_once,
    redemption,
    refusals,
    replayed,
    replayed_raw,
    reply,
    share,
    shown_order,
    stored,
    taken,
    tier,
    tier_meta,
    unit,
    valid,
)

ROLLED_BACK = {"rollbacks": [{"id": "rr_1", "object": "redemption_rollback", "result": "SUCCESS"}]}

# --- Promotions without a code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["C"]),
        ({"PROMOTIONS": "off"}, ["C"]),
        ({"PROMOTIONS": f"{TIER}, {TIER_2}"}, ["C", TIER, TIER_2]),
        ({"PROMOTIONS": f"{TIER_2},{TIER_2}", "PROMOTIONS_ORDER": "promotions_first"}, [TIER_2, "C"]),
    ],
)
def test_configured_promotions_are_sent_in_configured_order(options: dict[str, str], expected: list[str]) -> None:
    request = next(engine(**options).validate(cart(SHIRT, codes=["C"]), ORDER))
    assert redeemable_ids(request) == expected
    kinds = ["promotion_tier" if name.startswith("promo_") else "voucher" for name in expected]
    assert [one["object"] for one in body_of(request)["redeemables"]] == kinds


def test_qualified_promotions_are_validated_before_they_apply() -> None:
    candidates = [
        {"id": TIER, "object": "promotion_tier"},
        {"id": "X", "object": "voucher"},
        {"id": "camp_1", "object": "campaign"},
        {"id": "../../orders", "object": "promotion_tier"},
        {"id": TIER_2, "object": "promotion_tier"},
        None,
    ]
    outcome, [first, second] = replayed(
        engine(PROMOTIONS="qualify").validate(cart(SHIRT, codes=["C"]), ORDER),
        {"redeemables": {"data": candidates}},
        valid(applies("C", share(1)), tier(TIER, share(2)), fails(TIER_2, "promotion_inactive", "promotion_tier")),
    )
    options = body_of(first)["options"]
    assert (first.path, first.repeatable, options["limit"]) == ("/v1/qualifications", True, 29)
    assert options["filters"]["resource_type"] == {"conditions": {"$is": ["promotion_tier"]}}
    assert "source_id" not in body_of(first)["order"]
    assert redeemable_ids(second) == ["C", TIER, TIER_2]
    assert taken(outcome) == [("C", None, 1, "APPLY_TO_ORDER"), (TIER, None, 2, "APPLY_TO_ORDER")]
    assert not outcome.rejected


def test_promotions_are_not_sent_when_codes_fill_the_limit() -> None:
    codes = [f"C{n}" for n in range(30)]
    for promotions in ("qualify", TIER):
        assert redeemable_ids(next(engine(PROMOTIONS=promotions).validate(cart(SHIRT, codes=codes), ORDER))) == codes


def test_notice_names_listed_promotions_beyond_the_limit() -> None:
    tiers = [f"promo_{n:08}" for n in range(30)]
    codes = [f"C{n}" for n in range(5)]
    answer = valid(*[applies(code, share(1)) for code in codes], *[tier(one, share(1)) for one in tiers[:25]])
    conversation = engine(PROMOTIONS=",".join(tiers)).validate(cart(SHIRT, codes=codes), ORDER)
    outcome, [request] = replayed(conversation, answer)
    assert redeemable_ids(request) == [*codes, *tiers[:25]]
    [notice] = outcome.notices
    assert [one["redeemable"] for one in notice.payload["promotions"]] == tiers[25:]


def test_inapplicable_promotion_is_dropped_without_refusing_a_code() -> None:
    conversation = engine(PROMOTIONS=f"{TIER},{TIER_2}").validate(cart(SHIRT, codes=["C"]), ORDER)
    first = invalid(applies("C", share(5)), fails(TIER, "order_rules_violated", "promotion_tier"))
    second = invalid(applies("C", share(5)), fails(TIER_2, "order_rules_violated", "promotion_tier"))
    outcome, requests = replayed(conversation, first, second, valid(applies("C", share(5))))
    assert [redeemable_ids(request) for request in requests] == [["C", TIER, TIER_2], ["C", TIER_2], ["C"]]
    assert [one.amount for one in outcome.discounts] == [5]
    assert not outcome.rejected


# --- Consume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promotions", "metas", "expected"),
    [
        ("qualify", [tier_meta(TIER, 2), tier_meta(TIER_2, 1)], ["C", TIER_2, TIER]),
        ("qualify", [tier_meta(TIER, "x"), tier_meta(TIER_2, 1), tier_meta(TIER, 2)], ["C", TIER_2, TIER]),
        (TIER_2, [tier_meta(TIER), tier_meta(TIER_2)], ["C", TIER_2]),
        ("off", [tier_meta(TIER)], ["C"]),
        (TIER, [], ["C"]),
        ("qualify", [tier_meta("../x"), tier_meta("v_1"), {"object": "promotion_tier"}], ["C"]),
        ("qualify", [{"object": "voucher", "redeemable": "STRANGE", "code": "STRANGE"}], ["C"]),
    ],
)
@pytest.mark.parametrize("call", ["check", "redeem"])
def test_consume_redeems_the_promotions_shown_to_the_shopper(
    call: str, promotions: str, metas: list[dict[str, Any]], expected: list[str]
) -> None:
    adapter, paid = engine(PROMOTIONS=promotions), shown_order(*metas, codes=["C"])
    conversation = adapter.check(paid, ORDER) if call == "check" else adapter.redeem(paid, ORDER)
    assert redeemable_ids(next(conversation)) == expected


def test_promotion_known_from_a_notice_is_redeemed() -> None:
    notices = [{"type": "units", "text": "t", "payload": tier_meta(TIER)}, {"payload": 5}, 7]
    assert redeemable_ids(next(engine(PROMOTIONS=TIER).redeem(shown_order(notices=notices), ORDER))) == [TIER]


def test_consume_reads_the_meta_written_by_validate() -> None:
    adapter = engine(PROMOTIONS=f"{TIER},{TIER_2}", PROMOTIONS_ORDER="promotions_first")
    answer = valid(
        tier(TIER, share(1)), tier(TIER_2, share(0, item(2)), **discount("APPLY_TO_ITEMS")), applies("C", share(3))
    )
    outcome, _ = replayed(adapter.validate(cart(("A", 1, "5.00"), codes=["C"]), ORDER), answer)
    paid = shown_order(*[one.meta for one in reversed(outcome.discounts)], codes=["C"])
    assert redeemable_ids(next(adapter.redeem(paid, ORDER))) == [TIER, TIER_2, "C"]


@pytest.mark.parametrize(
    ("metas", "rejected", "expected"),
    [
        ([], [{"code": "BAD"}], ["GOOD"]),
        ([{"code": "BAD"}], [{"code": "BAD"}], ["BAD", "GOOD"]),
        ([], [{"code": 7}, None, {"code": "OTHER"}], ["BAD", "GOOD"]),
    ],
)
def test_refused_code_without_discount_is_not_redeemed(
    metas: list[dict[str, Any]], rejected: list[Any], expected: list[str]
) -> None:
    assert (
        redeemable_ids(next(engine().redeem(shown_order(*metas, codes=["BAD", "GOOD"], rejected=rejected), ORDER)))
        == expected
    )


def test_refused_code_is_recognised_as_entered() -> None:
    paid = shown_order(codes=["BAD\u200b", "GOOD"], rejected=[{"code": "BAD\u200b"}])
    assert redeemable_ids(next(engine().redeem(paid, ORDER))) == ["GOOD"]


@pytest.mark.parametrize("call", ["check", "redeem"])
def test_order_without_promotions_costs_no_call(call: str) -> None:
    for paid in (order(SHIRT), order(("A", 0, "1.00"), codes=["X"])):
        outcome, requests = replayed(getattr(engine(PROMOTIONS=TIER), call)(paid, ORDER))
        assert (outcome, requests) == (Outcome(), [])


def test_redeem_and_check_return_equal_discounts() -> None:
    adapter = engine(PROMOTIONS=TIER)
    paid = shown_order(tier_meta(TIER), codes=["C", "G", "L"])
    said = {"campaign_name": "Spring", "campaign_id": "camp_1"}
    checked, _ = replayed(
        adapter.check(paid, ORDER),
        valid(
            {**applies("C", share(5), discount=AMOUNT), **said},
            {**applies("G", share(4), gift={"credits": 4}), **said},
            {**applies("L", share(3), loyalty_card={"points": 30}), **said},
            {**tier(TIER, share(2), discount=AMOUNT), "name": "Tier", "campaign_id": "camp_2"},
        ),
    )
    done, _ = replayed(
        adapter.redeem(paid, ORDER),
        valid(*[applies(code, share(1)) for code in "CGL"], tier(TIER, share(1))),
        redeemed(
            redemption("C", 5, 1),
            redemption("G", 4, 2, "GIFT_VOUCHER", gift={"amount": 4}),
            redemption("L", 3, 3, "LOYALTY_CARD", loyalty_card={"points": 30}),
            redemption(TIER, 2, 4, **TIER_REDEMPTION),
        ),
        UNKNOWN,
    )
    assert done.discounts == checked.discounts
    assert [one.effect_type for one in done.discounts] == [
        "APPLY_TO_ORDER",
        "GIFT_CARD",
        "PAY_WITH_POINTS",
        "APPLY_TO_ORDER",
    ]
    assert [(one.type, one.payload) for one in done.notices] == [("redemption", {"redemptions": ["r_0"]})]
    assert not done.redeemed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            redeemed(redemption("A", 5), inapplicable_redeemables=[fails("B", "voucher_expired")]),
            [("B", "expired", "voucher_expired")],
        ),
        (
            redeemed(redemption("A", 5), skipped_redeemables=[fails("B", "no_effect", status="SKIPPED")]),
            [("B", "no_effect", "no_effect")],
        ),
        (redeemed(redemption("A", 5)), [("B", "other", "")]),
        (redeemed(redemption("A", 5), {**redemption("B", 0, 2), "result": "FAILURE"}), [("B", "other", "")]),
        (redeemed(redemption("a", 5), redemption("B", 1, 2)), []),
        (redeemed(redemption("A", 5, voucher=None), redemption("B", 1, 2, voucher=None)), []),
        (redeemed(), [("A", "other", ""), ("B", "other", "")]),
    ],
)
def test_codes_missing_from_a_200_redemption_are_refused(
    answer: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    outcome, _ = replayed(engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), answer, UNKNOWN)
    assert refusals(outcome) == expected


def test_redeemed_amounts_that_differ_give_a_notice() -> None:
    answer = redeemed(redemption("A", 5))
    answer["order"]["total_applied_discount_amount"] = 7
    outcome, _ = replayed(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer, UNKNOWN)
    assert [one.amount for one in outcome.discounts] == [5]
    assert [one.type for one in outcome.notices] == ["amounts_differ", "redemption"]


def test_redeemed_amounts_of_unknown_lines_give_a_notice() -> None:
    about = redemption("A", 5)
    about["order"]["items"] = [item(5, source_id="OTHER")]
    outcome, _ = replayed(engine().redeem(order(SHIRT, codes=["A"]), ORDER), redeemed(about), UNKNOWN)
    assert outcome.discounts == ()
    assert outcome.notices[0].type == "lines_differ"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b'{"redemptions":{}}',
        b'{"redemptions":[{"result":"SUCCESS","order":{"items":[{"price":"?"}]}}]}',
        b'{"redemptions":[{"id":"r_1","status":"SUCCEEDED"}]}',
        b'{"redemptions":[{"id":"r_1","result":null}]}',
        b'{"redemptions":[null]}',
    ],
)
def test_unreadable_redemption_raises_engine_unavailable(answer: bytes) -> None:
    with pytest.raises(EngineUnavailable):
        replayed(engine().redeem(order(SHIRT, codes=["A"]), ORDER), reply(answer))


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (reply(stored("r_1")), "redeemed"),
        (reply(stored()), "absent"),
        (reply({"id": "ord_1"}), "absent"),
        (reply(stored(rolled_back=["r_1"])), "absent"),
        (reply(stored("r_2", rolled_back=["r_1"])), "redeemed"),
        (failure("not_found", 404), "absent"),
        (failure("resource_not_found", 404), "absent"),
        (reply(stored("r_1", total_discount_amount="?")), "redeemed"),
        (reply(b"<html>", 404), None),
        (reply(b"", 404), None),
        (reply(b"", 200), None),
        (failure("unauthorized", 401), None),
    ],
)
def test_look_up_reads_state_from_voucherify(answer: EngineReply, state: str | None) -> None:
    conversation = (engine().look_up(order(SHIRT), "a/b ?#.."),)
    if state is None:
        with pytest.raises((EngineUnavailable, EngineRejected)):
            replayed(conversation[0], answer)
        return
    found, [request] = replayed(conversation[0], answer)
    assert isinstance(found, LookedUp)
    assert found.state == state
    assert (request.method, request.path) == ("GET", "/v1/orders/a%2Fb%20%3F%23..")
    assert request.repeatable


def test_look_up_returns_the_granted_discounts() -> None:
    items = [
        {"source_id": "SHIRT-M", "quantity": 3, "price": 2000, "initial_quantity": 2, "discount_amount": 2500},
        {"product_id": "prod_5h1pp1ng", "quantity": 1, "initial_quantity": 0, "discount_quantity": 1},
    ]
    answer = stored("r_1", items=items, total_discount_amount=3000)
    found, _ = replayed(engine().look_up(order(SHIRT, **RATE), ORDER), answer)
    amounts = {(one.line, one.cost): one.amount for one in found.outcome.discounts}
    assert amounts == {(None, ""): 500, (0, ""): 500, (None, "shipping"): 1500}
    assert [one.type for one in found.outcome.notices] == ["redemption"]


@pytest.mark.parametrize(
    "items",
    [
        [{"source_id": "OTHER", "quantity": 2, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 2, "price": 1999}],
        [{"source_id": "SHIRT-M", "quantity": 3, "initial_quantity": 3, "price": 2000}],
        [],
        [{"source_id": "SHIRT-M", "price": 2000}, {"source_id": "B", "price": 1, "initial_quantity": 1}],
        [{"source_id": "SHIRT-M", "quantity": 3, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 1, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 3, "price": 2000, "applied_quantity": None, "discount_quantity": 0}],
        [{"source_id": "SHIRT-M", "quantity": 3, "initial_quantity": 1, "price": 2000, "discount_quantity": 2}],
        [{"source_id": "SHIRT-M", "quantity": 3, "initial_quantity": 3, "price": 2000, "discount_quantity": 1}],
        [{"source_id": "SHIRT-M", "quantity": 2, "price": 2000}, {"source_id": "B", "quantity": 1, "price": 1}],
    ],
)
def test_look_up_of_another_cart_raises_order_mismatch(items: list[dict[str, Any]]) -> None:
    with pytest.raises(OrderMismatch):
        replayed(engine().look_up(order(SHIRT), ORDER), stored("r_1", items=items))


@pytest.mark.parametrize(
    "items",
    [
        None,
        [{"source_id": "SHIRT-M", "quantity": 2, "price": 2000}],
        [{"source_id": "SHIRT-M"}],
        # Units that Voucherify has added, in its various notations.
        [{"source_id": "SHIRT-M", "quantity": 3, "initial_quantity": 2, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 3, "applied_quantity": 1, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 3, "discount_quantity": 1, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 2}, {"product_id": "prod_1", "quantity": 1, "initial_quantity": 0}],
        [{"source_id": "SHIRT-M", "quantity": 2}, {"product_id": "prod_1", "quantity": 1, "applied_quantity": 1}],
        [{"source_id": "SHIRT-M", "quantity": 2}, {"product_id": "prod_5h1pp1ng", "quantity": 1}],
        # Units that Voucherify has replaced.
        [{"source_id": "SHIRT-M", "quantity": 1, "applied_quantity": -1, "price": 2000}],
    ],
)
def test_items_changed_by_voucherify_raise_no_order_mismatch(items: list[dict[str, Any]] | None) -> None:
    found, _ = replayed(engine().look_up(order(SHIRT), ORDER), stored("r_1", items=items))
    assert found.state == "redeemed"


@pytest.mark.parametrize("price", ["2000", {}, True])
def test_unreadable_stored_price_raises_no_order_mismatch(price: Any) -> None:
    items = [{"source_id": "SHIRT-M", "quantity": 2, "price": price}]
    with pytest.raises(EngineUnavailable):
        replayed(engine().look_up(order(SHIRT), ORDER), stored("r_1", items=items))


def test_look_up_finds_extra_redemptions_and_repair_undoes_them() -> None:
    answer = stored(redemptions={"r_1": {"date": "2026-01-02"}, "r_3": {"date": "2026-01-03"}, "r_2": {"date": "2026"}})
    found, _ = replayed(engine().look_up(order(SHIRT), ORDER), answer)
    assert found.extra == ("r_1", "r_3")
    done = [reply(ROLLED_BACK), failure("already_rolled_back")]
    _, requests = replayed(engine().repair(order(SHIRT), ORDER, found.extra), *done)
    assert [one.path for one in requests] == [f"/v1/redemptions/{name}/rollbacks" for name in found.extra]
    assert replayed(engine().look_up(order(SHIRT), ORDER), stored("r_1"))[0].extra == ()


def test_unknown_entry_among_redemptions_is_ignored() -> None:
    strange = {"extension": {"nobody": "knows"}, "r_1": {"date": "2026-01-02"}}
    found, _ = replayed(engine().look_up(order(SHIRT), ORDER), stored(redemptions=strange))
    assert (found.state, found.extra) == ("redeemed", ())
    found, _ = replayed(engine().look_up(order(SHIRT), ORDER), stored(redemptions={"extension": {}}))
    assert found.state == "absent"
    answer = redeemed(redemption("A", 5))
    answer["order"]["redemptions"] |= {"extension": {"nobody": "knows"}}
    outcome, _ = replayed(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer, UNKNOWN)
    assert [one.amount for one in outcome.discounts] == [5]


@pytest.mark.parametrize("call", ["check", "redeem"])
def test_code_used_up_by_this_order_is_not_refused(call: str) -> None:
    refused = {"check": reply(invalid(fails("X", "quantity_exceeded"))), "redeem": failure("quantity_exceeded")}[call]
    paid = order(SHIRT, codes=["X"])
    outcome, requests = replayed(getattr(engine(), call)(paid, ORDER), refused, stored("r_1"), redemption("X", 5))
    assert (outcome.redeemed, outcome.rejected) == (True, ())
    assert requests[1].path == f"/v1/orders/{ORDER}"
    outcome, _ = replayed(getattr(engine(), call)(paid, ORDER), refused, failure("not_found", 404))
    assert (outcome.redeemed, refusals(outcome)) == (False, [("X", "used_up", "quantity_exceeded")])


@pytest.mark.parametrize(
    ("live", "read_later"),
    [
        (["r_old"], UNKNOWN),  # ours came second
        ([], stored("r_1", "r_late")),  # ours came first, and a second one before we had our answer
        ([], stored("r_early", "r_1")),
    ],
)
def test_second_redemption_of_an_order_raises_engine_unavailable(live: list[str], read_later: Any) -> None:
    paid = order(SHIRT, codes=["A"])
    with pytest.raises(EngineUnavailable) as caught:
        replayed(engine().redeem(paid, ORDER), redeemed(redemption("A", 5), live=live), read_later)
    assert caught.value.reason == "redeemed_twice"


@pytest.mark.parametrize(("handle", "extra"), [("", ("r_2",)), ("r_1", ("r_2",)), ("r_2", ("r_1",)), ("r_9", ("r_2",))])
def test_look_up_keeps_the_handles_redemption_else_the_first(handle: str, extra: tuple[str, ...]) -> None:
    answer = stored(redemptions={"r_1": {"date": "1"}, "r_2": {"date": "2"}})
    found, _ = replayed(engine().look_up(order(SHIRT), ORDER, handle), answer)
    assert (found.state, found.extra) == ("redeemed", extra)


def test_redemption_id_is_the_handle() -> None:
    one = replayed_raw(engine().redeem(order(SHIRT, codes=["A"]), ORDER), redeemed(redemption("A", 5)), UNKNOWN)
    assert isinstance(one, Redeemed)
    assert one.handle == "r_1"
    several = redeemed(redemption("A", 5), redemption("B", 5, 2))
    both = replayed_raw(engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), several, UNKNOWN)
    assert isinstance(both, Redeemed)
    assert both.handle == "r_0"


def test_redemption_without_redeemed_codes_returns_not_redeemed() -> None:
    answer = redeemed(inapplicable_redeemables=[fails("A", "voucher_expired")])
    done = replayed_raw(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer, UNKNOWN)
    assert isinstance(done, NotRedeemed)
    assert [(one.code, one.reason) for one in done.rejected] == [("A", "expired")]


def test_child_redemptions_are_not_a_second_redemption() -> None:
    answer = redeemed(redemption("A", 5), redemption("B", 5, 2))
    family = {"r_0": {"stacked": ["r_1", "r_2"]}, "r_1": {}, "r_2": {}}
    answer["order"]["redemptions"] = family
    outcome, requests = replayed(
        engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), answer, stored(redemptions=family)
    )
    assert [one.path for one in requests] == ["/v1/redemptions", f"/v1/orders/{ORDER}"]
    assert not outcome.redeemed


@pytest.mark.parametrize(
    ("answer", "children", "missing", "told"),
    [
        (redeemed_once(), {"r_1": redemption("A", 5)}, ["B"], [TIER]),
        (redeemed_once("r_2"), {"r_2": redemption("A", 5)}, ["B"], [TIER]),
        (redeemed_once("r_2", "r_3"), {"r_2": redemption("a", 5), "r_3": redemption("B", 5)}, [], [TIER]),
        (
            redeemed_once("r_2", "r_3"),
            {"r_2": redemption("B", 5), "r_3": redemption(TIER, 5, **TIER_REDEMPTION)},
            ["A"],
            [],
        ),
        (
            redeemed_once("r_2", "r_3"),
            {"r_2": redemption("A", 5), "r_3": redemption("B", 5, result="FAILURE")},
            ["B"],
            [TIER],
        ),
        (redeemed_once("r_2", "r_2"), {"r_2": redemption("A", 5)}, ["B"], [TIER]),
        (
            redeemed_once("r_2", "r_3", "r_4"),
            {"r_2": redemption("A", 5), "r_3": redemption("B", 5), "r_4": redemption(TIER, 5, **TIER_REDEMPTION)},
            [],
            [],
        ),
        # A second redemption does not count: it is rolled back.
        (
            stored(redemptions={"r_1": {"date": "1"}, "r_9": {"date": "2", "stacked": ["r_2", "r_3", "r_4"]}}),
            {"r_1": redemption("A", 5)},
            ["B"],
            [TIER],
        ),
    ],
)
def test_look_up_of_partly_redeemed_order_refuses_missing_codes(
    answer: dict[str, Any], children: dict[str, Any], missing: list[str], told: list[str]
) -> None:
    shown = [{"name": "n", "amount": "0.01", "meta": tier_meta(TIER)}]
    paid = order(SHIRT, codes=["A", "B"], applied_discounts=shown)
    found, requests = replayed(engine(PROMOTIONS=TIER).look_up(paid, ORDER), answer, *children.values())
    assert found.state == "redeemed"
    assert [(one.method, one.path) for one in requests[1:]] == [("GET", f"/v1/redemptions/{name}") for name in children]
    assert all(one.repeatable for one in requests)
    assert refusals(found.outcome) == [(code, "not_applied", "") for code in missing]
    refused = [one.payload["redeemable"] for one in found.outcome.notices if one.type == "promotion_refused"]
    assert refused == told


@pytest.mark.parametrize("lines", [(), (("A", 0, "1.00"),)])
def test_codes_of_empty_cart_give_notices_without_a_call(lines: tuple[Any, ...]) -> None:
    outcome, requests = replayed(engine().validate(cart(*lines, codes=["A", "B"]), ORDER))
    assert (requests, outcome.rejected) == ([], ())
    assert [(one.type, one.payload) for one in outcome.notices] == [
        ("code_not_answered", {"value": "A"}),
        ("code_not_answered", {"value": "B"}),
    ]
    assert not replayed(engine().validate(cart(*lines), ORDER))[0].notices


VOUCHER = {"date": "1", "related_object_type": "voucher", "related_object_id": "v_1"}


@pytest.mark.parametrize(
    ("answer", "children", "codes"),
    [
        (redeemed_once("r_2", "r_3"), ["A", "B"], ["A"]),  # a code less
        (redeemed_once("r_2", "r_3"), ["A", "B"], ["A", "C"]),  # another code
        (redeemed_once("r_2"), ["A"], ["C", "D"]),
        (redeemed_once(), ["A"], ["C"]),
        (stored(redemptions={"r_1": VOUCHER}), [], []),
    ],
)
def test_look_up_of_other_codes_raises_order_mismatch(
    answer: dict[str, Any], children: list[str], codes: list[str]
) -> None:
    replies = [redemption(code, 5) for code in children]
    with pytest.raises(OrderMismatch):
        replayed(engine().look_up(order(SHIRT, codes=codes), ORDER), answer, *replies)


@pytest.mark.parametrize("part", [failure("not_found", 404), redemption("A", 5, voucher={"id": "v_1234567890"})])
def test_redemption_without_code_raises_no_order_mismatch(part: Any) -> None:
    paid = order(SHIRT, codes=["A"])
    found, _ = replayed(engine().look_up(paid, ORDER), redeemed_once(), part)
    assert (found.state, found.outcome.rejected) == ("redeemed", ())


@pytest.mark.parametrize(
    "answer",
    [
        redemption("A", 5, voucher=None),
        redemption("A", 5, voucher={"code": None}),
        reply(b"<html>"),
        failure("not_found", 404),
    ],
)
def test_unreadable_part_of_a_redemption_raises_engine_unavailable(answer: Any) -> None:
    with pytest.raises(EngineUnavailable):
        replayed(engine().look_up(order(SHIRT, codes=["A", "B"]), ORDER), redeemed_once(), answer)


@pytest.mark.parametrize(
    ("call", "before"),
    [
        ("check", [invalid(fails("B", "quantity_exceeded")), valid(applies("A", share(5)))]),
        (
            "redeem",
            [
                failure("quantity_exceeded"),
                invalid(fails("B", "quantity_exceeded")),
                valid(applies("A", share(5))),
            ],
        ),
    ],
)
def test_check_and_redeem_report_an_earlier_partial_redemption(call: str, before: list[Any]) -> None:
    conversation = getattr(engine(), call)(order(SHIRT, codes=["A", "B"]), ORDER)
    outcome, _ = replayed(conversation, *before, redeemed_once(), redemption("A", 5))
    assert (outcome.redeemed, refusals(outcome)) == (True, [("B", "not_applied", "")])


def test_look_up_of_thirty_redemptions_stays_within_request_limit() -> None:
    codes = [f"C{number}" for number in range(30)]
    children = [redemption(code, 5, number) for number, code in enumerate(codes[:29], 2)]
    found, requests = replayed(
        engine().look_up(order(SHIRT, codes=codes), ORDER), redeemed_once(*(one["id"] for one in children)), *children
    )
    assert refusals(found.outcome) == [("C29", "not_applied", "")]
    assert len(requests) == 30 < request_limit(lines=1)


@pytest.mark.parametrize(
    ("answer", "rolled_back"),
    [
        (reply(stored("r_1", rolled_back=["r_0"])), ["r_1"]),
        (reply(stored("r_1", "r/2")), ["r%2F2", "r_1"]),
        (reply(stored("r_1", "r_2", redemptions={"r_1": {"stacked": ["r_2"]}, "r_2": {}})), ["r_1"]),
        (reply(stored()), []),
        (failure("not_found", 404), []),
    ],
)
@pytest.mark.parametrize("again", [reply(ROLLED_BACK), failure("already_rolled_back")])
def test_undo_rolls_back_all_redemptions_and_can_be_repeated(
    answer: EngineReply, rolled_back: list[str], again: EngineReply
) -> None:
    _, requests = replayed(engine().undo(order(SHIRT), ORDER, final=True), answer, *[again] * len(rolled_back))
    assert [one.path for one in requests[1:]] == [f"/v1/redemptions/{name}/rollbacks" for name in rolled_back]
    assert all(one.repeatable for one in requests)


def test_undo_without_order_uses_the_handle() -> None:
    done = reply(ROLLED_BACK)
    for final in (True, False):
        aside = [] if final else [reply({})]
        _, requests = replayed(engine().undo(None, ORDER, "r_1", final=final), stored("r_1"), done, *aside)
        assert [one.path for one in requests[:2]] == [f"/v1/orders/{ORDER}", "/v1/redemptions/r_1/rollbacks"]
        _, requests = replayed(engine().undo(None, ORDER, "r_1", final=final), UNKNOWN, done)
        assert [one.path for one in requests[1:]] == ["/v1/redemptions/r_1/rollbacks"]
        # The order is found and already undone.
        _, requests = replayed(engine().undo(None, ORDER, "r_1", final=final), stored(rolled_back=["r_1"]), *aside)
        assert [one.method for one in requests] == (["GET"] if final else ["GET", "PUT"])


@pytest.mark.parametrize("answer", [{"status": "ok", "data": [1, None]}, stored("r_1", redemptions=[{"id": "r_1"}])])
def test_answer_that_is_no_order_raises_engine_unavailable(answer: dict[str, Any]) -> None:
    for conversation in (engine().look_up(order(SHIRT), ORDER), engine().undo(None, ORDER, "r_1", final=True)):
        with pytest.raises(EngineUnavailable):
            replayed(conversation, answer)


@pytest.mark.parametrize("rollbacks", [None, [], [{"id": "rr_1", "result": "SUCCESS"}, {"result": "FAILURE"}]])
def test_answer_without_a_successful_rollback_raises_engine_unavailable(rollbacks: Any) -> None:
    with pytest.raises(EngineUnavailable):
        replayed(engine().undo(order(SHIRT), ORDER, "r_1", final=True), stored("r_1"), {"rollbacks": rollbacks})


@pytest.mark.parametrize("renamed", [reply({}), failure("not_found", 404), reply(b"", 405), reply(b"", 503)])
def test_undo_before_a_retry_renames_the_stored_order(renamed: EngineReply) -> None:
    """Voucherify redeems the order stored under a source id and ignores the cart that is sent."""
    undo = engine().undo(order(SHIRT), ORDER, "r_1", final=False)
    _, requests = replayed(undo, stored("r_1"), ROLLED_BACK, renamed)
    last = requests[-1]
    assert (last.method, last.path, body_of(last)) == ("PUT", f"/v1/orders/{ORDER}", {"source_id": f"{ORDER}~ord_1"})
    assert (last.effect, last.repeatable) == ("session", True)


def test_redemption_with_an_earlier_cart_is_rolled_back() -> None:
    other = [{"source_id": "OTHER", "quantity": 1, "price": 100}]
    reused = stored("r_1", rolled_back=["r_0"], items=other)
    paid = order(SHIRT, codes=["A"])
    conversation = engine().redeem(paid, ORDER)
    replies = [redeemed(redemption("A", 5)), reused, ROLLED_BACK, {}]
    with pytest.raises(EngineUnavailable) as caught:
        replayed(conversation, *replies)
    assert caught.value.reason == "earlier_cart"
    # The same cart again is fine.
    same = stored("r_1", rolled_back=["r_0"])
    outcome, _ = replayed(engine().redeem(paid, ORDER), redeemed(redemption("A", 5)), same)
    assert [one.amount for one in outcome.discounts] == [5]


def test_failed_undo_raises() -> None:
    with pytest.raises(EngineRejected):
        replayed(engine().undo(order(SHIRT), ORDER), stored("r_1"), failure("invalid_redemption_parent"))
    for answer in (b'{"status":"ok"}', b'{"rollbacks":[]}'):
        with pytest.raises(EngineUnavailable):
            replayed(engine().undo(order(SHIRT), ORDER), stored("r_1"), reply(answer))


def test_promotion_that_blocks_codes_is_left_out_with_a_notice() -> None:
    adapter, paid = engine(PROMOTIONS=TIER), shown_order(tier_meta(TIER), codes=["C"])
    spoiled = invalid(applies("C", share(5)), fails(TIER, "promotion_inactive", "promotion_tier"))
    good = valid(applies("C", share(5)))
    outcome, requests = replayed(adapter.redeem(paid, ORDER), spoiled, good, redeemed(redemption("C", 5)), UNKNOWN)
    assert [(one.path, redeemable_ids(one)) for one in requests[:-1]] == [
        ("/v1/validations", ["C", TIER]),
        ("/v1/validations", ["C"]),
        ("/v1/redemptions", ["C"]),
    ]
    assert [one.amount for one in outcome.discounts] == [5]
    assert {one.type: one.payload for one in outcome.notices} == {
        "redemption": {"redemptions": ["r_1"]},
        "promotion_refused": {"object": "promotion_tier", "redeemable": TIER, "engine_reason": "promotion_inactive"},
    }


@pytest.mark.parametrize(
    ("validations", "refused", "redeems"),
    [
        ([invalid(fails("A", "voucher_expired")), valid(applies("B", share(1)))], ["A"], ["B"]),
        ([valid(fails("A", "voucher_expired"), applies("B", share(1)))], ["A"], ["B"]),
        # The code applies again: the code that the redemption named is left out; without a name, nothing is redeemed.
        ([valid(applies("A", share(1)), applies("B", share(1)))], ["A", "B"], []),
    ],
)
def test_refused_redemption_is_validated_to_find_bad_codes(
    validations: list[Any], refused: list[str], redeems: list[str]
) -> None:
    replies = [failure("voucher_expired"), *validations]
    replies += [redeemed(*[redemption(code, 1) for code in redeems]), UNKNOWN] if redeems else []
    outcome, requests = replayed(engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), *replies)
    assert refusals(outcome) == [(code, "expired", "voucher_expired") for code in refused]
    assert [redeemable_ids(one) for one in requests if one.path == "/v1/redemptions"][1:] == [redeems] * bool(redeems)


def test_unredeemable_promotion_gives_a_notice_or_raises() -> None:
    adapter, paid = engine(PROMOTIONS=TIER), shown_order(tier_meta(TIER))
    refused = failure("promotion_inactive", details=TIER)
    gone = invalid(fails(TIER, "promotion_inactive", "promotion_tier"))
    outcome, _ = replayed(adapter.redeem(paid, ORDER), refused, gone)
    assert [one.type for one in outcome.notices] == ["promotion_refused"]
    checked, _ = replayed(adapter.check(paid, ORDER), gone)
    assert checked == outcome
    with pytest.raises(EngineRejected) as caught:
        replayed(adapter.redeem(paid, ORDER), refused, valid(tier(TIER, share(1))))
    assert caught.value.reason == "promotion_refused"


# --- Locks ------------------------------------------------------------------------------------------------------------

LOCKED = {"SESSION_LOCK_TTL": "900"}
KEY = "nacelle%3Aorder-1"


def voucher_meta(code: str) -> dict[str, Any]:
    return {"object": "voucher", "redeemable": code, "code": code, "position": 0}


def after_earlier_answer(
    call: str, codes: Sequence[str], *metas: dict[str, Any], notices: Sequence[Any] = (), **options: str
) -> Any:
    """Return the conversation about a body that carries an earlier answer of ours."""
    entries = [{"name": "n", "amount": "0.01", "effect_type": "e", "meta": meta} for meta in metas]
    promotions, adapter = {"meta": {"mapper": {"notices": list(notices)}}}, engine(**LOCKED, **options)
    if call == "validate":
        return adapter.validate(cart(SHIRT, codes=codes, discounts=entries, promotions=promotions), ORDER)
    paid = order(SHIRT, codes=codes, applied_discounts=entries, promotions=promotions)
    return getattr(adapter, call)(paid, ORDER)


def unlocked(requests: Sequence[Any]) -> list[str]:
    return [one.path.split("/")[3] for one in requests if one.method == "DELETE"]


@pytest.mark.parametrize("call", ["validate", "check"])
@pytest.mark.parametrize(
    ("codes", "answers", "released"),
    [
        (["A"], [valid(applies("A", share(5)))], ["GO/NE", "QUIET"]),
        ([], [], ["A", "GO/NE", "QUIET"]),
        # Refused now, applied before: it may still be locked.
        (["A", "GO/NE"], [valid(applies("A", share(5)), fails("GO/NE", "order_rules_violated"))], ["GO/NE", "QUIET"]),
        (["A", "GO/NE", "QUIET"], [valid(*[applies(code, share(5)) for code in ("A", "GO/NE", "QUIET")])], []),
    ],
)
@pytest.mark.parametrize("released_as", [reply(b"", 204), failure("not_found", 404), reply(b"", 429), reply(b"", 503)])
def test_code_removed_from_cart_is_unlocked(
    call: str, codes: list[str], answers: list[Any], released: list[str], released_as: EngineReply
) -> None:
    metas = [voucher_meta("A"), voucher_meta("GO/NE"), tier_meta(TIER)]
    notices = [{"type": "no_effect", "text": "t", "payload": voucher_meta("QUIET")}]
    conversation = after_earlier_answer(call, codes, *metas, notices=notices)
    _, requests = replayed(conversation, *answers, *[released_as] * len(released))
    freed = [one for one in requests if one.method == "DELETE"]
    assert [one.path for one in freed] == [
        f"/v1/vouchers/{code.replace('/', '%2F')}/sessions/{KEY}" for code in released
    ]
    assert all((one.effect, one.repeatable) == ("session", True) for one in freed)
    assert all({409, 429, 500, 503} <= one.answers for one in freed)


@pytest.mark.parametrize("code", [".", ".."])
def test_code_that_no_path_can_name_stays_locked(code: str) -> None:
    """A URL cannot have these as a segment, encoded or not. The lock expires."""
    _, requests = replayed(after_earlier_answer("validate", [], voucher_meta(code), voucher_meta("A")), reply(b"", 204))
    assert unlocked(requests) == ["A"]
    undo = engine(**LOCKED).undo(order(SHIRT, codes=["A", code]), ORDER, "r_1", final=True)
    _, requests = replayed(undo, stored("r_1"), ROLLED_BACK, reply(b"", 204))
    assert unlocked(requests) == ["A"]


@pytest.mark.parametrize(("options", "released"), [({}, []), ({"CODE_CASE": "sensitive"}, ["A"])])
def test_code_in_another_case_stays_locked(options: dict[str, str], released: list[str]) -> None:
    answers: list[Any] = [valid(applies("a", share(5))), *[reply(b"", 204)] * len(released)]
    _, requests = replayed(after_earlier_answer("validate", ["a"], voucher_meta("A"), **options), *answers)
    assert unlocked(requests) == released


A_ALONE = [redeemed(redemption("A", 5)), UNKNOWN]
WITHOUT_B = [
    failure("order_rules_violated", resource_type="voucher", resource_id="B"),
    invalid(applies("A", share(5)), fails("B", "order_rules_violated")),
    valid(applies("A", share(5))),
]
FREED = reply(b"", 204)


@pytest.mark.parametrize(
    ("codes", "locked", "answers", "released"),
    [
        (["A"], "A", A_ALONE, []),
        # B has left the order, or validate applied it and the redemption did not.
        (["A"], "AB", [FREED, *A_ALONE], ["B"]),
        (["A", "B"], "AB", [redeemed(redemption("A", 5), skipped_redeemables=[fails("B", "")]), UNKNOWN, FREED], ["B"]),
        # The check may have granted the code, but not an expired one.
        (["A", "B"], "", [*WITHOUT_B, FREED, *A_ALONE], ["B"]),
        (["A"], "", [failure("order_rules_violated"), FREED], ["A"]),
        (["A"], "", [failure("voucher_expired")], []),
        (["A"], "A", [failure("voucher_expired"), FREED], ["A"]),
        # The last validation leaves out a code that the one before applied.
        (
            ["A", "B"],
            "",
            [
                WITHOUT_B[0],
                valid(applies("A", share(5)), applies("B", share(5))),
                FREED,
                failure("order_rules_violated", resource_id="A"),
                FREED,
            ],
            ["B", "A"],
        ),
    ],
)
def test_codes_that_are_not_redeemed_are_unlocked(
    codes: list[str], locked: str, answers: list[Any], released: list[str]
) -> None:
    _, requests = replayed(after_earlier_answer("redeem", codes, *map(voucher_meta, locked)), *answers)
    assert unlocked(requests) == released


def test_code_left_out_is_unlocked_before_the_redemption() -> None:
    """A request that fails after the redemption leaves its outcome unknown."""
    metas = [voucher_meta("A"), voucher_meta("B"), tier_meta(TIER, 2)]
    left: dict[str, Any] = {"inapplicable_redeemables": [fails("B", "voucher_expired")]}
    selected = valid(applies("A", share(5)), tier(TIER, share(1)), **left)
    result = redeemed(redemption("A", 5), redemption(TIER, 1, 2, **TIER_REDEMPTION), **left)
    _, requests = replayed(
        after_earlier_answer("redeem", ["A", "B"], *metas, PROMOTIONS="qualify"), selected, FREED, result, UNKNOWN
    )
    assert [one.operation for one in requests] == ["validate", "release lock", "redeem", "read order"]
    assert unlocked(requests) == ["B"]


def test_no_lock_is_released_when_locks_are_off() -> None:
    entries = [{"name": "n", "amount": "0.01", "effect_type": "e", "meta": voucher_meta("GONE")}]
    _, requests = replayed(engine().validate(cart(SHIRT, discounts=entries), ORDER))
    assert requests == []


def test_final_undo_unlocks_the_codes() -> None:
    paid = order(SHIRT, codes=["A", "B"])
    replies: list[Any] = [stored("r_1"), ROLLED_BACK, reply(b"", 204), failure("not_found", 404)]
    _, requests = replayed(engine(**LOCKED).undo(paid, ORDER, "r_1", final=True), *replies)
    assert [one.path for one in requests[2:]] == [f"/v1/vouchers/{code}/sessions/{KEY}" for code in "AB"]
    # Undone before a retry: the codes stay locked for this checkout.
    _, requests = replayed(engine(**LOCKED).undo(paid, ORDER, "r_1", final=False), *replies[:2], {})
    assert not [one for one in requests if one.method == "DELETE"]


# --- Arbitrary answers ------------------------------------------------------------------------------------------------
JUNK = st.recursive(
    st.sampled_from([None, True, False, -1, 0, 7, 1.5, 10**20, "", "X", "APPLICABLE", "r_1"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["id", "order", "items", "key"]), inner, max_size=2)
    ),
    max_leaves=4,
)
GOOD: list[tuple[Any, int]] = [
    (valid(applies("X", share(5, item(5, source_id="SHIRT-M")), **unit()), fails("Y", "not_found")), 200),
    (invalid(fails("X", "quantity_exceeded"), skipped_redeemables=[fails("Y", "no_effect", status="SKIPPED")]), 200),
    (redeemed(redemption("X", 5), redemption(TIER, 5, 2, **TIER_REDEMPTION), live=["r_old"]), 200),
    (stored("r_1", "r_2", rolled_back=["r_3"]), 200),
    (redeemed_once("r_1", "r_2"), 200),
    (redemption("X", 5), 200),
    ({"redeemables": {"data": [{"id": TIER, "object": "promotion_tier"}]}}, 200),
    ({"code": 400, "key": "voucher_expired", "details": "X", "resource_type": "voucher"}, 400),
    ({"code": 404, "key": "not_found", "details": "?", "resource_id": "X"}, 404),
]


@st.composite
def hostile(draw: st.DrawFn) -> EngineReply:
    """A good answer with junk in a few of its fields."""
    body, status = draw(st.sampled_from(GOOD))
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(0, 3))):
        at, holder = body, None
        key: Any = None
        while isinstance(at, dict | list) and at and (holder is None or draw(st.booleans())):
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            holder, at = at, at[key]
        if holder is not None:
            holder[key] = draw(JUNK)
    return reply(body, draw(st.sampled_from([status, status, status, 200, 400, 404, 401, 500, 204])))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["validate", "check", "redeem", "look_up", "undo"]), st.data())
def test_any_answer_ends_in_an_outcome_or_a_problem(call: str, data: st.DataObject) -> None:
    adapter = engine(PROMOTIONS="qualify")
    promotions = {"coupon_codes": ["X", "Y"]}
    if call == "validate":
        conversation: Conversation[Any] = adapter.validate(cart(SHIRT, promotions=promotions), ORDER)
    else:
        entries = [{"name": "n", "amount": "0.01", "meta": tier_meta(TIER)}]
        conversation = getattr(adapter, call)(order(SHIRT, promotions=promotions, applied_discounts=entries), ORDER)
    try:
        asked: Any = next(conversation)
        for _ in range(20):
            several = isinstance(asked, tuple)
            answers: Any = tuple(data.draw(hostile()) for _ in asked) if several else data.draw(hostile())
            asked = conversation.send(answers)
    except StopIteration as end:
        outcome = end.value
        assert outcome is None or isinstance(outcome, Outcome | Redeemed | NotRedeemed | LookedUp)
        if isinstance(outcome, Outcome):
            assert all(isinstance(one, Discount) and one.amount > 0 for one in outcome.discounts)
    except Problem:
        pass
    else:
        pytest.fail("the conversation does not end")
