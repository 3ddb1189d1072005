"""The Voucherify adapter selects the redeemables that apply in few calls, and no tier costs the shopper a code."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import EngineRejected, NotRedeemed, Outcome, Redeemed
from tests.adapters.voucherify.project import Project
from tests.adapters.voucherify.talk import (
    ORDER,
    TIER,
    TIER_2,
    body_of,
    cart,
    engine,
    failure,
    invalid,
    order,
    redeemable_ids,
    refusals,
    replayed,
    shown_order,
    taken,
    tier_meta,
)

CART = ("A", 1, "100.00")
QUALIFY = "/v1/qualifications"
VALIDATE = "/v1/validations"
REDEEM = "/v1/redemptions"
TIERS = tuple(f"promo_{letter * 8}" for letter in "ABCDEFGH")

# Behaviours that the documents leave open.
WAYS: list[dict[str, Any]] = [
    {"spoils": spoils, "tells_all": tells} for spoils, tells in product((True, False), repeat=2)
]


def validated(project: Project, codes: Sequence[str], **options: str) -> Outcome:
    outcome = project.hold(engine(**options).validate(cart(CART, codes=codes), ORDER))
    assert isinstance(outcome, Outcome)
    return outcome


def granted(outcome: Outcome) -> list[str]:
    return [name for name, *_ in taken(outcome)]


def left_out(outcome: Outcome) -> dict[str, str]:
    """Return the promotions that a notice lists as left out, with the engine's reason."""
    notices = [one.payload["promotions"] for one in outcome.notices if one.type == "promotions_left_out"]
    return {entry["redeemable"]: entry["engine_reason"] for entries in notices for entry in entries}


# --- Mode ALL shows one bad code at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("tells_all", [True, False])
@pytest.mark.parametrize("bad", [0, 1, 2, 3, 8, 29])
def test_good_code_applies_and_every_bad_code_is_refused(*, bad: int, tells_all: bool) -> None:
    wrong = [f"BAD{number}" for number in range(bad)]
    project = Project("ALL", bad=dict.fromkeys(wrong, "voucher_expired"), tells_all=tells_all)
    outcome = validated(project, ["GOOD", *wrong])
    assert granted(outcome) == ["GOOD"]
    assert refusals(outcome) == [(code, "expired", "voucher_expired") for code in wrong]
    assert len(project.asked) == {0: 1, 1: 2, 2: 3}.get(bad, bad + 1)
    assert project.turns <= 4
    assert project.bodies(VALIDATE)[-1] == ["GOOD"]


@pytest.mark.parametrize("way", WAYS)
def test_good_codes_apply_after_bad_ones_in_mode_all(way: dict[str, Any]) -> None:
    project = Project("ALL", bad={"BAD1": "voucher_expired", "BAD2": "not_found"}, **way)
    outcome = validated(project, ["BAD1", "GOOD1", "BAD2", "GOOD2"])
    assert granted(outcome) == ["GOOD1", "GOOD2"]
    assert [code for code, *_ in refusals(outcome)] == ["BAD1", "BAD2"]


def test_unnamed_refusal_makes_each_code_be_validated_alone() -> None:
    unnamed = failure("not_found", 404, resource_type="voucher", resource_id="v_1234567890")
    good = _alone(Project(), "A")
    conversation = engine().validate(cart(CART, codes=["A", "B"]), ORDER)
    outcome, requests = replayed(conversation, unnamed, good, unnamed, good)
    assert (granted(outcome), refusals(outcome)) == (["A"], [("B", "not_found", "not_found")])
    assert [redeemable_ids(request) for request in requests] == [["A", "B"], ["A"], ["B"], ["A"]]


def _alone(project: Project, code: str) -> Any:
    return project.answer(next(engine().validate(cart(CART, codes=[code]), ORDER)))


def test_concurrent_validations_answered_busy_are_retried() -> None:
    good, busy = _alone(Project(), "A"), failure("multiple_requests")
    conversation = engine().validate(cart(CART, codes=["A", "B"]), ORDER)
    unnamed = failure("not_found", 404, resource_type="voucher", resource_id="v_1234567890")
    outcome, requests = replayed(conversation, unnamed, busy, unnamed, good, good)
    assert (granted(outcome), refusals(outcome)) == (["A"], [("B", "not_found", "not_found")])
    assert [redeemable_ids(request) for request in requests] == [["A", "B"], ["A"], ["B"], ["A"], ["A"]]


def test_codes_refused_without_explanation_are_rejected() -> None:
    codes = ["A", "B", "C"]
    conversation = engine().validate(cart(CART, codes=codes), ORDER)
    # All three, each alone, all three, two, one.
    outcome, _ = replayed(conversation, *[invalid()] * 6)
    assert [one.code for one in outcome.rejected] == codes
    assert not outcome.discounts


@pytest.mark.parametrize("first", ["codes_first", "promotions_first"])
def test_promotion_is_left_out_when_it_conflicts_unexplained(first: str) -> None:
    good = _alone(Project(), "C")
    one_tier = Project().answer(next(engine(PROMOTIONS=TIER).validate(cart(CART), ORDER)))
    probes = [good, one_tier] if first == "codes_first" else [one_tier, good]
    conversation = engine(PROMOTIONS=TIER, PROMOTIONS_ORDER=first).validate(cart(CART, codes=["C"]), ORDER)
    outcome, requests = replayed(conversation, invalid(), *probes, good)
    assert (granted(outcome), outcome.rejected, [*left_out(outcome)]) == (["C"], (), [TIER])
    assert redeemable_ids(requests[-1]) == ["C"]


# --- A promotion that we add never costs a code -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["codes_first", "promotions_first"])
def test_non_stackable_promotion_is_left_out_for_a_code(mode: str, way: dict[str, Any], first: str) -> None:
    project = Project(mode, exclusive=frozenset({TIER}), offers=(TIER,), worth={"FIVE": 500, TIER: 100}, **way)
    outcome = validated(project, ["FIVE"], PROMOTIONS="qualify", PROMOTIONS_ORDER=first)
    assert [(name, off) for name, _, off, _ in taken(outcome)] == [("FIVE", 500)]
    assert not outcome.rejected
    assert [*left_out(outcome)] == [TIER]
    assert len(project.asked) <= 4
    assert len(project.asked) <= 3 or way["spoils"]


def test_expired_code_is_not_validated_again() -> None:
    project = Project(bad={"BAD": "voucher_expired"}, exclusive=frozenset({TIER}), offers=(TIER,))
    outcome = validated(project, ["FIVE", "BAD"], PROMOTIONS="qualify")
    assert (granted(outcome), [code for code, *_ in refusals(outcome)]) == (["FIVE"], ["BAD"])
    assert project.bodies(VALIDATE) == [["FIVE", "BAD", TIER], ["FIVE"]]


@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
def test_stackable_promotion_joins_the_code(mode: str) -> None:
    project = Project(mode, exclusive=frozenset({TIER}), offers=(TIER, TIER_2), tells_all=True, spoils=False)
    outcome = validated(project, ["FIVE"], PROMOTIONS="qualify")
    assert granted(outcome) == ["FIVE", TIER_2]
    assert [*left_out(outcome)] == [TIER]
    assert project.paths == [QUALIFY, VALIDATE, VALIDATE, VALIDATE]


@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("promotions", ["qualify", "listed"])
@pytest.mark.parametrize("limit", ["most", "most_applied"])
@pytest.mark.parametrize("first", ["codes_first", "promotions_first"])
def test_project_limit_keeps_codes_and_drops_promotions(
    mode: str, way: dict[str, Any], promotions: str, limit: str, first: str
) -> None:
    limits: dict[str, Any] = {limit: 2}
    project = Project(mode, offers=TIERS[:2], **limits, **way)
    listed = ",".join(TIERS[:2]) if promotions == "listed" else promotions
    outcome = validated(project, ["CODE"], PROMOTIONS=listed, PROMOTIONS_ORDER=first)
    assert sorted(granted(outcome)) == sorted(["CODE", TIERS[0]])
    assert not outcome.rejected
    assert left_out(outcome) == {TIERS[1]: "applicable_redeemables_limit_exceeded"}
    assert len(project.asked) <= 4
    if promotions == "qualify" and limit == "most":
        assert project.paths == [QUALIFY, VALIDATE]


def test_codes_beyond_the_project_limit_are_refused() -> None:
    project = Project(most=2)
    outcome = validated(project, ["A", "B", "C"], PROMOTIONS=TIER)
    assert granted(outcome) == ["A", "B"]
    assert refusals(outcome) == [("C", "too_many_codes", "applicable_redeemables_limit_exceeded")]


@pytest.mark.parametrize("stale", [1, 3, 7])
@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("codes", [[], ["CODE"]])
def test_stale_promotions_do_not_block_the_good_one(
    stale: int, mode: str, way: dict[str, Any], codes: list[str]
) -> None:
    gone = TIERS[:stale]
    project = Project(mode, bad=dict.fromkeys(gone, "promotion_inactive"), offers=(*gone, TIERS[7]), **way)
    outcome = validated(project, codes, PROMOTIONS="qualify")
    assert granted(outcome) == [*codes, TIERS[7]]
    assert not outcome.rejected
    assert left_out(outcome) == dict.fromkeys(gone, "promotion_inactive")
    if stale == 1 or mode == "PARTIAL":
        assert len(project.asked) <= 3


def test_promotion_that_makes_the_request_fail_is_left_out() -> None:
    project = Project()
    conversation = engine(PROMOTIONS=TIER).validate(cart(CART, codes=["C"]), ORDER)
    good = _alone(project, "C")
    outcome, requests = replayed(conversation, failure("invalid_payload"), good, good)
    assert (granted(outcome), [*left_out(outcome)], len(requests)) == (["C"], [TIER], 3)


@pytest.mark.parametrize("codes", [["A"], ["A", "B"]])
def test_request_that_always_fails_raises_engine_rejected(codes: list[str]) -> None:
    with pytest.raises(EngineRejected) as caught:
        replayed(engine().validate(cart(CART, codes=codes), ORDER), *[failure("invalid_payload")] * len(codes))
    assert caught.value.reason == "invalid_payload"


@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
def test_code_refused_without_promotions_keeps_the_promotions(mode: str) -> None:
    project = Project(mode, bad={"C": "order_rules_violated"}, offers=(TIER,), tells_all=True)
    outcome = validated(project, ["C"], PROMOTIONS="qualify", PROMOTIONS_ORDER="promotions_first")
    assert granted(outcome) == [TIER]
    assert refusals(outcome) == [("C", "conditions_not_met", "order_rules_violated")]


@pytest.mark.parametrize(
    ("mode", "key", "first", "calls"),
    [
        ("PARTIAL", "voucher_expired", "codes_first", 1),
        ("PARTIAL", "voucher_expired", "promotions_first", 1),
        # The promotion may be at fault: one more call shows that the code is.
        ("PARTIAL", "order_rules_violated", "promotions_first", 2),
        ("ALL", "voucher_expired", "codes_first", 2),
        # Before any promotion has been applied, none can be to blame.
        ("ALL", "order_rules_violated", "codes_first", 2),
    ],
)
def test_refused_code_with_a_promotion_costs_few_calls(mode: str, key: str, first: str, calls: int) -> None:
    project = Project(mode, bad={"C": key})
    outcome = validated(project, ["C"], PROMOTIONS=TIER, PROMOTIONS_ORDER=first)
    assert (granted(outcome), [code for code, *_ in refusals(outcome)]) == ([TIER], ["C"])
    assert len(project.asked) == calls


@pytest.mark.parametrize("mode", ["PARTIAL", "ALL"])
@pytest.mark.parametrize("way", WAYS)
def test_two_non_stackable_promotions_are_left_out_for_a_code(mode: str, way: dict[str, Any]) -> None:
    project = Project(mode, exclusive=frozenset({TIER, TIER_2}), offers=(TIER, TIER_2), **way)
    outcome = validated(project, ["FIVE"], PROMOTIONS="qualify")
    assert (granted(outcome), outcome.rejected, {*left_out(outcome)}) == (["FIVE"], (), {TIER, TIER_2})


CODES = ("C1", "C2", "C3", "C4")
KEYS = ("voucher_expired", "order_rules_violated", "promotion_inactive", "not_found")


@st.composite
def projects(draw: st.DrawFn) -> tuple[Project, list[str], dict[str, str]]:
    """A project, the codes of a cart, and the adapter's options."""
    bad = draw(st.dictionaries(st.sampled_from((*CODES, *TIERS)), st.sampled_from(KEYS), max_size=5))
    exclusive = draw(st.frozensets(st.sampled_from((*CODES, *TIERS)), max_size=2))
    codes: list[str] = draw(st.lists(st.sampled_from(CODES), unique=True, max_size=4))
    offers = tuple(draw(st.lists(st.sampled_from(TIERS), unique=True, max_size=5)))
    project = Project(
        mode=draw(st.sampled_from(("ALL", "PARTIAL"))),
        bad=bad,
        exclusive=exclusive,
        most=draw(st.sampled_from((30, 30, 4))),
        most_applied=draw(st.sampled_from((5, 5, 2))),
        offers=offers,
        spoils=draw(st.booleans()),
        tells_all=draw(st.booleans()),
    )
    promotions = draw(st.sampled_from(("qualify", ",".join(offers) or "off")))
    return project, codes, {"PROMOTIONS": promotions, "PROMOTIONS_ORDER": draw(st.sampled_from(FIRST))}


FIRST = ("codes_first", "promotions_first")


@settings(max_examples=400, deadline=None)
@given(projects())
def test_added_promotions_never_remove_a_code(case: tuple[Project, list[str], dict[str, str]]) -> None:
    project, codes, options = case
    alone = {*granted(validated(project, codes))}
    project.asked.clear()
    outcome = validated(project, codes, **options)
    given_ = granted(outcome)
    assert alone <= {*given_}
    assert {code for code in codes if code not in given_} == {one.code for one in outcome.rejected}
    assert not {*left_out(outcome)} & {*given_}
    offered = project.offers if options["PROMOTIONS"] != "off" else ()
    # A promotion that is not for this cart needs no notice.
    quiet = {one for one in offered if project.bad.get(one) == "order_rules_violated"}
    assert {*offered} - quiet <= {*left_out(outcome)} | {*given_}
    assert {*left_out(outcome)} <= {*offered}
    assert len(project.asked) <= 4 + 3 * len({*codes, *offered})
    assert not any(reason == "not_applied" for _, reason, _ in refusals(outcome))


# --- Check and redeem agree -------------------------------------------------------------------------------------------


def question(request: Any) -> dict[str, Any]:
    """Return a body without what only one of the two requests has: the order's id and state, and a lock's lifetime."""
    body = body_of(request)
    for name in ("source_id", "status"):
        body["order"].pop(name, None)
    for name in ("ttl", "ttl_unit"):
        body.get("session", {}).pop(name, None)
    return body


@settings(max_examples=200, deadline=None)
@given(projects(), st.sampled_from(("0", "900")))
def test_check_and_redeem_ask_the_same_question(case: tuple[Project, list[str], dict[str, str]], lock: str) -> None:
    project, codes, options = case
    adapter = engine(SESSION_LOCK_TTL=lock, REWARD_ID="rew_1", **options)
    metas = [tier_meta(tier, place) for place, tier in enumerate(project.offers)]
    paid = shown_order(*metas, codes=codes)
    checked = project.hold(adapter.check(paid, ORDER))
    validations = [one for one in project.asked if one.path == VALIDATE]
    project.asked.clear()
    done = project.hold(adapter.redeem(paid, ORDER))
    redemptions = [one for one in project.asked if one.path == REDEEM]
    assert all(question(one) in map(question, validations) for one in redemptions)
    if isinstance(done, NotRedeemed):
        assert not checked.discounts
        assert done.rejected == checked.rejected
    else:
        assert isinstance(done, Redeemed)
        assert taken(done.outcome) == taken(checked)
        assert done.outcome.rejected == checked.rejected


def test_check_and_redeem_both_leave_out_refused_loyalty_card() -> None:
    paid = order(CART, codes=["GOOD"], promotions={"loyalty_card": "CARD"})
    for mode in ("ALL", "PARTIAL"):
        for bad in ({"CARD": "loyalty_card_points_exceeded"}, {"CARD": "missing_reward"}):
            project = Project(mode, bad=bad)
            checked = project.hold(engine(REWARD_ID="rew_1").check(paid, ORDER))
            done = project.hold(engine(REWARD_ID="rew_1").redeem(paid, ORDER))
            assert isinstance(done, Redeemed)
            assert granted(done.outcome) == granted(checked) == ["GOOD"]
            assert refusals(done.outcome) == refusals(checked)
            assert [code for code, *_ in refusals(checked)] == ["CARD"]


@pytest.mark.parametrize("codes", [["A"], ["A", "B"]])
def test_redeem_refuses_every_code_when_nothing_applies(codes: list[str]) -> None:
    project = Project("PARTIAL", bad={"A": "voucher_expired", "B": "order_rules_violated"})
    done = project.hold(engine().redeem(order(CART, codes=codes), ORDER))
    assert isinstance(done, NotRedeemed)
    expected = [("A", "expired"), ("B", "conditions_not_met")]
    assert [(one.code, one.reason) for one in done.rejected] == expected[: len(codes)]
    assert project.bodies(REDEEM) == [codes]
