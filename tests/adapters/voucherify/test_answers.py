"""The Voucherify adapter: checks of an answer, and refused codes."""

import json
from typing import Any

import pytest

from adapters.voucherify.reasons import FAULTS
from mapper.adapter import Conversation, EngineReply, Reason
from mapper.domain.errors import EngineRejected, EngineUnavailable, Problem
from tests.adapters.voucherify.talk import (
    ORDER,
    SHIRT,
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
    refusals,
    replayed,
    reply,
    share,
    valid,
    validated,
)

# --- Checks of an answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "reply_not_understood"),
        (b"<html>", "reply_not_understood"),
        (b"[]", "reply_not_understood"),
        (b'{"valid":true', "reply_not_understood"),
        (b"\xff", "reply_not_understood"),
        (b"[" * 100_000, "reply_not_understood"),
        (b'{"valid":true,"order":{"total_applied_discount_amount":1e999999999999}}', "reply_not_understood"),
        ({}, "reply_not_understood"),
        ({"valid": "true", "redeemables": []}, "reply_not_understood"),
        (valid(applies("X", share(-5))), "reply_not_understood"),
        (valid(applies("X", share(0, item(-5)))), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": 1.5})), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": "5"})), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": True})), "reply_not_understood"),
        (valid(applies("X", share(10**15))), "reply_not_understood"),
        ({**valid(applies("X", share(5))), "order": {"total_applied_discount_amount": 4}}, "amounts_differ"),
        ({**valid(applies("X", share(5))), "order": None}, "amounts_differ"),
        (valid(applies("X", share(0, item(5, source_id="OTHER")))), "lines_differ"),
    ],
)
def test_malformed_or_inconsistent_answer_raises_engine_unavailable(answer: Any, reason: str) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        validated(cart(SHIRT, codes=["X"]), answer if isinstance(answer, dict) else reply(answer))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        valid({**applies("X", share(5)), "categories": 7, "metadata": [], "applicable_to": "?", "new": {}}),
        valid(applies("X", share(5), **discount("APPLY_TO_ORDER", "NEW_TYPE"))),
        valid({**applies("X", share(5)), "result": None}),
        valid({**applies("X", share(5)), "object": "new_kind"}),
        valid({**applies("x", share(5)), "name": 7}),
        valid(applies("X", {**share(5), "total_amount": "?", "status": "NEW"})),
        valid(applies("X", {**share(5), "applied_discount_amount": 5.0})),
        {**valid(applies("X", share(5))), "inapplicable_redeemables": None, "skipped_redeemables": None},
        {**valid({**applies("X", share(5)), "order": None}), "order": {**share(5), "object": "order"}},
        {**valid(applies("X", share(5))), "redeemables": [7, None, applies("X", share(5))]},
        {**valid(applies("X", share(5))), "order": {"applied_discount_amount": 5}},
        {**valid(applies("X", share(0, item(5)))), "order": {"items_applied_discount_amount": 5}},
        valid({**applies("X", share(5)), "campaign_name": "cut in an emoji \ud83d"}),
    ],
)
def test_unknown_words_and_fields_are_ignored(answer: dict[str, Any]) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), answer)
    assert [one.amount for one in outcome.discounts] == [5]
    assert not outcome.rejected


def test_null_item_keeps_its_line_position() -> None:
    answer = valid(applies("X", share(0, item(), item(5))))
    answer["redeemables"][0]["order"]["items"][0] = None
    outcome = validated(cart(SHIRT, ("B", 1, "5.00"), codes=["X"]), answer)
    assert [(one.line, one.amount) for one in outcome.discounts] == [(1, 5)]


# --- Refused codes ----------------------------------------------------------------------------------------------------

CODE_REASONS = {
    "not_found": "not_found",
    "resource_not_found": "not_found",
    "voucher_expired": "expired",
    "voucher_not_active": "not_started",
    "voucher_not_active_now": "not_active",
    "voucher_disabled": "not_active",
    "quantity_exceeded": "used_up",
    "gift_amount_exceeded": "balance_too_low",
    "loyalty_card_points_exceeded": "balance_too_low",
    "order_rules_violated": "conditions_not_met",
    "customer_rules_violated": "customer_not_eligible",
    "redemption_rules_violated": "conditions_not_met",
    "promotion_inactive": "not_active",
    "promotion_not_active_now": "not_active",
    "campaign_not_active": "not_active",
    "referrer_not_permitted_to_redeem": "own_referral",
    "missing_customer": "sign_in_required",
    "missing_order": "data_missing",
    "missing_order_items": "data_missing",
    "missing_amount": "data_missing",
    "missing_order_items_amount": "data_missing",
    "missing_reward": "reward_required",
    "invalid_customer": "not_yours",
}
SKIPPED_REASONS = {
    "applicable_redeemables_limit_exceeded": "too_many_codes",
    "applicable_redeemables_per_category_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_per_category_limit_exceeded": "not_combinable",
    "exclusion_rules_not_met": "not_combinable",
    "no_effect": "no_effect",
    "preceding_validation_failed": "not_applied",
}
REQUEST_KEYS = [
    "invalid_payload", "duplicated_redeemables", "invalid_redeemables", "invalid_order", "invalid_amount",
    "invalid_gift", "invalid_product", "invalid_sku", "invalid_query_params", "query_too_large",
    "metadata_validation_failed", "ambiguous_tracking_id", "duplicate_found", "duplicate_resource_key",
    "already_rolled_back", "invalid_redemption_parent", "invalid_redemption", "invalid_rollback_params",
]  # fmt: skip
ACCOUNT_KEYS = {
    "unauthorized": 401,
    "missing_required_feature": 402,
    "forbidden": 403,
    "missing_required_permission": 403,
}


def test_fault_table_covers_every_vendor_key() -> None:
    codes = {**CODE_REASONS, **SKIPPED_REASONS, "no_applicable_redeemables": "not_applied"}
    assert {key: fault.reason for key, fault in FAULTS.items() if fault.kind == "code"} == codes
    assert set(FAULTS) == {*codes, *REQUEST_KEYS, *ACCOUNT_KEYS, "multiple_requests"}
    assert set(codes.values()) <= set(Reason)


@pytest.mark.parametrize(
    ("key", "status", "reason"),
    [
        *[(key, "INAPPLICABLE", reason) for key, reason in CODE_REASONS.items()],
        *[(key, "SKIPPED", reason) for key, reason in SKIPPED_REASONS.items()],
        # Another checkout is redeeming the code.
        ("multiple_requests", "INAPPLICABLE", "in_use"),
        ("a_new_key", "INAPPLICABLE", "other"),
        ("a_new_key", "SKIPPED", "other"),
        ("a_new_key", "A_NEW_STATUS", "other"),
        ("unauthorized", "INAPPLICABLE", "other"),
    ],
)
def test_vendor_key_is_translated_to_a_reason(key: str, status: str, reason: str) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), invalid(fails("X", key, status=status)))
    assert refusals(outcome) == [("X", reason, key)]
    assert not outcome.discounts


@pytest.mark.parametrize("text", ["<b>Hello</b>", "Ask Ms Miller", "x" * 200, 7, None])
def test_engine_text_is_not_passed_on_as_engine_reason(text: Any) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), invalid(fails("X", text)))
    assert refusals(outcome) == [("X", "other", "")]


def test_refusals_of_all_lists_are_deduplicated_in_cart_order() -> None:
    answer = valid(
        applies("OK", share(5)),
        fails("A", "", status="SKIPPED"),
        inapplicable_redeemables=[fails("b", "voucher_expired"), fails("A", "no_effect", status="SKIPPED")],
        skipped_redeemables=[fails("b", "preceding_validation_failed", status="SKIPPED"), fails("ZZ", "not_found")],
    )
    outcome = validated(cart(SHIRT, codes=["LOST", "B", "OK", "A"]), answer)
    assert refusals(outcome) == [
        ("LOST", "other", ""),
        ("B", "expired", "voucher_expired"),
        ("A", "no_effect", "no_effect"),
    ]
    assert [one.amount for one in outcome.discounts] == [5]


def test_invalid_answer_grants_no_discount_although_it_shows_orders() -> None:
    checkout = cart(SHIRT, codes=["A", "B"])
    answer = invalid(applies("A", share(500), **discount("APPLY_TO_ORDER")), fails("B", "voucher_expired"))
    outcome, requests = replayed(engine().validate(checkout, ORDER), answer, invalid(fails("A", "voucher_disabled")))
    assert outcome.discounts == ()
    assert refusals(outcome) == [("A", "not_active", "voucher_disabled"), ("B", "expired", "voucher_expired")]
    assert [[one["id"] for one in body_of(request)["redeemables"]] for request in requests] == [["A", "B"], ["A"]]


def test_other_codes_are_validated_again_without_the_bad_code() -> None:
    checkout = cart(SHIRT, codes=["BAD", "GOOD", "LATER"])
    later = fails("LATER", "preceding_validation_failed", status="SKIPPED")
    first = invalid(fails("BAD", "voucher_expired"), applies("GOOD", share(9)), later, skipped_redeemables=[later])
    second = valid(applies("GOOD", share(5)), applies("LATER", share(6)))
    outcome, _ = replayed(engine().validate(checkout, ORDER), first, second)
    assert [one.amount for one in outcome.discounts] == [5, 6]
    assert refusals(outcome) == [("BAD", "expired", "voucher_expired")]


@pytest.mark.parametrize(
    "said",
    [
        {"id": "B"},
        {"id": "b"},
        {"id": "v_24rljiUfd2ONxB9hS1bfNUMW", "redeemable_id": "B"},
        {"id": "v_24rljiUfd2ONxB9hS1bfNUMW", "code": "B"},
        {"id": "v_24rljiUfd2ONxB9hS1bfNUMW"},
    ],
)
@pytest.mark.parametrize("place", ["redeemables", "inapplicable_redeemables", "skipped_redeemables"])
def test_refusal_names_the_code_under_any_vendor_id(said: dict[str, str], place: str) -> None:
    refused = {**fails("B", "voucher_expired"), **said}
    lists: dict[str, list[Any]] = {"redeemables": [applies("A", share(5))], "inapplicable_redeemables": []}
    lists.setdefault(place, []).append(refused)
    answer = {**valid(applies("A", share(5))), **lists}
    outcome = validated(cart(SHIRT, codes=["A", "B"]), answer)
    assert refusals(outcome) == [("B", "expired", "voucher_expired")]
    assert [one.meta["code"] for one in outcome.discounts] == ["A"]


def test_refusals_by_internal_id_are_matched_by_position() -> None:
    good = applies("B", share(5))
    first = invalid(fails("v_1aaaaaaaaaa", "voucher_expired"), good, fails("v_2aaaaaaaaaa", "not_found"))
    outcome, _ = replayed(engine().validate(cart(SHIRT, codes=["A", "B", "C"]), ORDER), first, valid(good))
    assert refusals(outcome) == [("A", "expired", "voucher_expired"), ("C", "not_found", "not_found")]


def test_internal_id_is_matched_by_position_in_short_answer() -> None:
    first = invalid(applies("A", share(5)), fails("v_2aaaaaaaaaa", "not_found"))
    later = valid(applies("A", share(5)), applies("C", share(6)))
    outcome, requests = replayed(engine().validate(cart(SHIRT, codes=["A", "B", "C"]), ORDER), first, later)
    assert refusals(outcome) == [("B", "not_found", "not_found")]
    assert redeemable_ids(requests[1]) == ["A", "C"]


@pytest.mark.parametrize(
    "answer",
    [
        # The ids do not say which of the two codes applies.
        valid(applies("v_1aaaaaaaaaa", share(5)), inapplicable_redeemables=[fails("v_2aaaaaaaaaa", "voucher_expired")]),
        valid(applies("C", share(5)), inapplicable_redeemables=[fails("v_2aaaaaaaaaa", "voucher_expired")]),
        valid(applies("aA", share(5))),
    ],
)
def test_ambiguous_id_refuses_both_codes(answer: dict[str, Any]) -> None:
    codes = ["AA", "aa", *(["C"] if answer["redeemables"][0]["id"] == "C" else [])]
    outcome = validated(cart(SHIRT, codes=codes), answer, CODE_CASE="sensitive")
    assert refusals(outcome) == [("AA", "other", ""), ("aa", "other", "")]
    assert not {"AA", "aa"} & {one.meta["redeemable"] for one in outcome.discounts}


@pytest.mark.parametrize("answered", ["İNDİRİM10", "i̇ndi̇ri̇m10", "indirim10", "INDIRIM10", "\u0131nd\u0131r\u0131m10"])
@pytest.mark.parametrize("case", ["insensitive", "sensitive"])
def test_answered_code_matches_typed_code_ignoring_case(answered: str, case: str) -> None:
    checkout = cart(SHIRT, codes=["İNDİRİM10", "B"])
    fine = valid(applies(answered, share(5)), applies("B", share(6)))
    outcome = validated(checkout, fine, CODE_CASE=case)
    assert [(one.meta["code"], one.meta["position"]) for one in outcome.discounts] == [("İNDİRİM10", 0), ("B", 1)]
    assert not outcome.rejected
    refused = valid(fails(answered, "voucher_expired"), applies("B", share(6)))
    assert refusals(validated(checkout, refused, CODE_CASE=case)) == [("İNDİRİM10", "expired", "voucher_expired")]


def test_case_sensitive_codes_are_two_codes() -> None:
    answer = valid(applies("save", share(5)), fails("SAVE", "voucher_expired"))
    conversation = engine(CODE_CASE="sensitive").validate(cart(SHIRT, codes=["SAVE", "save", "SAVE"]), ORDER)
    outcome, [request] = replayed(conversation, answer)
    assert redeemable_ids(request) == ["SAVE", "save"]
    assert [one.meta["code"] for one in outcome.discounts] == ["save"]
    assert refusals(outcome) == [("SAVE", "expired", "voucher_expired")]


def test_internal_voucher_id_is_refused_as_code() -> None:
    """Voucherify also finds a voucher by its id, and answers with its code: the id must not reveal the code."""
    internal = "v_24rljiUfd2ONxB9hS1bfNUMW"
    answers = [valid(applies("SECRET", share(5)), applies("B", share(6))), valid(applies("B", share(6)))]
    outcome, requests = replayed(engine().validate(cart(SHIRT, codes=[internal, "B"]), ORDER), *answers)
    assert refusals(outcome) == [(internal, "not_found", "not_found")]
    assert [one.meta["code"] for one in outcome.discounts] == ["B"]
    assert redeemable_ids(requests[1]) == ["B"]
    # A code that only looks like an internal id is a code.
    outcome = validated(cart(SHIRT, codes=["v_summer2026"]), valid(applies("v_summer2026", share(5))))
    assert not outcome.rejected


# --- Error answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        *[(failure(key), EngineRejected, key) for key in REQUEST_KEYS],
        *[(failure(key, status), EngineRejected, key) for key, status in ACCOUNT_KEYS.items()],
        (failure("a_new_key"), EngineRejected, "unexpected_error"),
        (reply(b"<html>", 401), EngineRejected, "unauthorized"),
        (reply(b"<html>", 402), EngineRejected, "missing_required_feature"),
        (reply(b"<html>", 403), EngineRejected, "forbidden"),
        (reply(b"", 405), EngineRejected, "unexpected_error"),
        (reply(b"", 406), EngineRejected, "unexpected_error"),
        (reply(b"", 415), EngineRejected, "unexpected_error"),
        (reply(b"", 408), EngineUnavailable, "request_timeout"),
        (reply(b"", 423), EngineUnavailable, "locked"),
        (reply(b"", 204), EngineUnavailable, "unexpected_status"),
        (failure("voucher_expired", 204), EngineUnavailable, "unexpected_status"),
    ],
)
@pytest.mark.parametrize("call", ["validate", "redeem", "look_up", "undo", "qualify"])
def test_error_unrelated_to_a_code_raises_engine_problem(
    call: str, answer: EngineReply, kind: type[Problem], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        replayed(_calls()[call], answer)
    assert caught.value.reason == reason
    assert "SECRET" not in str(caught.value.message) + json.dumps(caught.value.details)


def _calls() -> dict[str, Conversation[Any]]:
    return {
        "validate": engine().validate(cart(SHIRT, codes=["X"]), ORDER),
        "redeem": engine().redeem(order(SHIRT, codes=["X"]), ORDER),
        "look_up": engine().look_up(order(SHIRT, codes=["X"]), ORDER),
        "undo": engine().undo(order(SHIRT, codes=["X"]), ORDER),
        "qualify": engine(PROMOTIONS="qualify").validate(cart(SHIRT), ORDER),
    }


@pytest.mark.parametrize("call", ["validate", "redeem", "qualify"])
@pytest.mark.parametrize("answer", [reply(b"<html>", 404), failure("not_found", 404)])
def test_404_of_a_wrong_address_refuses_no_code(call: str, answer: EngineReply) -> None:
    with pytest.raises(EngineRejected) as caught:
        replayed(_calls()[call], answer)
    assert caught.value.reason == "not_found_at_engine"


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (failure("voucher_expired", resource_id="B"), ["B"]),
        (failure("voucher_expired", details="B"), ["B"]),
        (failure("not_found", 404, details="Cannot find voucher with id B"), ["B"]),
        (failure("voucher_expired", redeemable_id="B"), ["B"]),
        (failure("voucher_expired", resource_id="b"), ["B"]),
        (failure("missing_reward"), ["CARD"]),
        (failure("a_new_key", resource_type="voucher", resource_id="A"), ["A"]),
    ],
)
def test_error_about_a_code_refuses_only_that_code(answer: EngineReply, refused: list[str]) -> None:
    checkout = cart(SHIRT, codes=["A", "B"], promotions={"loyalty_card": "CARD"})
    left = [code for code in ("A", "B", "CARD") if code not in refused]
    again = [valid(*[applies(code, share(1)) for code in left])] if left else []
    outcome, _ = replayed(engine(REWARD_ID="rew_1").validate(checkout, ORDER), answer, *again)
    assert [one.code for one in outcome.rejected] == refused
    assert [one.meta["code"] for one in outcome.discounts] == left


BUSY = failure("multiple_requests")


def test_busy_engine_is_retried_once_except_for_redeem() -> None:
    answer = reply(valid(applies("X", share(5))))
    outcome, requests = replayed(_calls()["validate"], BUSY, answer)
    assert [one.amount for one in outcome.discounts] == [5]
    assert requests[0] == requests[1]
    assert replayed(_calls()["look_up"], BUSY, failure("not_found", 404))[0].state == "absent"
    assert len(replayed(_calls()["qualify"], BUSY, reply({"redeemables": {"data": []}}))[1]) == 2
    for call, replies in {"validate": [BUSY, BUSY], "redeem": [BUSY], "undo": [BUSY, BUSY]}.items():
        with pytest.raises(EngineUnavailable) as caught:
            replayed(_calls()[call], *replies)
        assert caught.value.reason == "multiple_requests"
