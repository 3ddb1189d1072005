"""Codes that the engine refuses, and the reasons."""

import pytest

from adapters.talon_one import reasons
from mapper.adapter import (
    Rejection,
)
from mapper.domain.reasons import Reason
from tests.adapters.talon_one.examples import CART
from tests.adapters.talon_one.talk import cart, effect, outcome

COUPON_REASONS = {
    # https://docs.talon.one/docs/dev/integration-api/api-effects#rejectcoupon, August 2026
    "CampaignLimitReached": "budget_used_up",
    "CouponExpired": "expired",
    "CouponLimitReached": "used_up",
    "CouponNotFound": "not_found",
    "CouponPartOfNotRunningCampaign": "not_active",
    "CouponRecipientDoesNotMatch": "not_yours",
    "CouponRejectedByCondition": "conditions_not_met",
    "CouponStartDateInFuture": "not_started",
    "EffectCouldNotBeApplied": "budget_used_up",
    "ProfileLimitReached": "customer_limit_reached",
    "CouponPartOfNotTriggeredCampaign": "not_combinable",
    "CouponReservationRequired": "reservation_required",
    "ProfileRequired": "sign_in_required",
    # Only in the examples of the same page.
    "CouponRejectedCondition": "conditions_not_met",
    "SomethingOfNextYear": "other",
}
REFERRAL_REASONS = {
    # https://docs.talon.one/docs/dev/integration-api/api-effects#rejectreferral, August 2026
    "AdvocateNotFound": "referrer_not_found",
    "CampaignLimitReached": "budget_used_up",
    "EffectCouldNotBeApplied": "budget_used_up",
    "ProfileLimitReached": "customer_limit_reached",
    "ReferralCustomerAlreadyReferred": "already_referred",
    "ReferralExpired": "expired",
    "ReferralLimitReached": "used_up",
    "ReferralNotFound": "not_found",
    "ReferralPartOfNotRunningCampaign": "not_active",
    "ReferralRecipientDoesNotMatch": "not_yours",
    "ReferralRecipientIdSameAsAdvocate": "own_referral",
    "ReferralRejectedByCondition": "conditions_not_met",
    "ReferralStartDateInFuture": "not_started",
    "ReferralPartOfNotTriggeredCampaign": "not_combinable",
    # Only in the examples of the same page, and in an official integration.
    "ReferralRejectedCondition": "conditions_not_met",
    "ReferralValidConditionMissing": "not_applied",
    "SomethingOfNextYear": "other",
}


@pytest.mark.parametrize(
    ("kind", "code", "word", "reason"),
    [("rejectCoupon", "COUP-XYZ789", word, reason) for word, reason in COUPON_REASONS.items()]
    + [("rejectReferral", "REF-ABC123", word, reason) for word, reason in REFERRAL_REASONS.items()],
)
def test_rejection_reason_is_translated_and_kept(kind: str, code: str, word: str, reason: str) -> None:
    result = outcome(CART, [effect(kind, {"value": code.lower(), "rejectionReason": word}, campaign=-1)])
    assert result.rejected == (Rejection(code, Reason(reason), word),)


def test_reason_tables_match_the_documented_reasons() -> None:
    assert {**reasons.COUPON, "SomethingOfNextYear": "other"} == COUPON_REASONS
    assert {**reasons.REFERRAL, "SomethingOfNextYear": "other"} == REFERRAL_REASONS
    assert {*reasons.COUPON.values(), *reasons.REFERRAL.values(), *reasons.EXCLUSION.values()} <= set(Reason)


@pytest.mark.parametrize(
    ("exclusion", "reason"),
    [
        ("CampaignGaveLowerDiscount", "better_offer_applied"),
        ("CampaignIsNotFirst", "not_combinable"),
        ("CampaignNotInEvaluationSet", "not_active"),
        ("Whatever", "not_combinable"),
        (None, "not_combinable"),
    ],
)
@pytest.mark.parametrize(("kind", "code"), [("Coupon", "COUP-XYZ789"), ("Referral", "REF-ABC123")])
def test_campaign_exclusion_reason_decides_the_reason(kind: str, code: str, exclusion: str | None, reason: str) -> None:
    word = f"{kind}PartOfNotTriggeredCampaign"
    props = {"value": code, "rejectionReason": word, "campaignExclusionReason": exclusion}
    assert outcome(CART, [effect(f"reject{kind}", props)]).rejected == (Rejection(code, Reason(reason), word),)


@pytest.mark.parametrize("word", [None, "", "x" * 65, "<b>bold</b>", "line\nbreak", "müde"])
def test_free_text_is_not_passed_on_as_engine_reason(word: str | None) -> None:
    props = {"value": "COUP-XYZ789", "rejectionReason": word}
    assert outcome(CART, [effect("rejectCoupon", props)]).rejected == (Rejection("COUP-XYZ789", Reason.OTHER, ""),)


def test_rejections_are_deduplicated_in_cart_order_as_typed() -> None:
    checkout = cart(("A", 1, "1.00"), codes=["Zulu", "alpha", "ok"], promotions={"referral_code": "Ref"})
    rejections = [("ALPHA", "CouponExpired", 1), ("ZULU", "CouponNotFound", 2), ("zulu", "CouponExpired", 3)]
    effects = [effect("rejectCoupon", {"value": v, "rejectionReason": r}, campaign=c) for v, r, c in rejections]
    effects += [effect("rejectReferral", {"value": "REF", "rejectionReason": "ReferralExpired"})]
    effects += [effect("acceptCoupon", {"value": "OK"})]
    assert [(r.code, r.reason) for r in outcome(checkout, effects).rejected] == [
        ("Zulu", "not_found"), ("alpha", "expired"), ("Ref", "expired"),
    ]  # fmt: skip


def test_code_accepted_by_one_campaign_is_not_rejected() -> None:
    effects = [
        effect("rejectCoupon", {"value": "coup-xyz789", "rejectionReason": "CouponExpired"}, campaign=1),
        effect("acceptCoupon", {"value": "COUP-XYZ789"}, campaign=2),
    ]
    for shuffled in (effects, effects[::-1]):
        result = outcome(CART, shuffled)
        assert result.rejected == ()
        assert {"acceptCoupon", "rejectCoupon"} <= {notice.type for notice in result.notices}


def test_rejection_by_a_running_campaign_wins() -> None:
    """Merchants reuse codes, so a code may also belong to a campaign of last year."""
    over = [("CouponExpired", 1), ("CouponPartOfNotRunningCampaign", 2)]
    effects = [
        effect("rejectCoupon", {"value": "COUP-XYZ789", "rejectionReason": word}, campaign=campaign)
        for word, campaign in [*over, ("CouponRejectedByCondition", 3)]
    ]
    for shuffled in (effects, effects[::-1]):
        result = outcome(CART, shuffled)
        assert [one.reason for one in result.rejected] == ["conditions_not_met"]
        told = [one.payload["rejectionReason"] for one in result.notices if one.type == "rejectCoupon"]
        assert told == [word for word, _ in over]


def test_rejection_of_unsent_code_and_unanswered_codes_give_notices() -> None:
    result = outcome(CART, [effect("rejectCoupon", {"value": "STALE", "rejectionReason": "CouponExpired"})])
    assert result.rejected == ()
    assert [(notice.type, notice.payload["value"]) for notice in result.notices] == [
        ("rejectCoupon", "STALE"), ("code_not_answered", "COUP-XYZ789"), ("code_not_answered", "REF-ABC123"),
    ]  # fmt: skip
