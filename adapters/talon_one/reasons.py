"""Maps Talon.One's reasons for rejecting a code to the reasons of `mapper.domain.reasons`.

https://docs.talon.one/docs/dev/integration-api/api-effects#rejectcoupon and #rejectreferral, as of August 2026. The
vendor types them as free text, adds to them, and uses words in its examples that its lists do not have. A word that is
not listed here becomes `other` and is passed on.
"""

import re

from mapper.adapter import Reason

COUPON = {
    "CampaignLimitReached": "budget_used_up",
    "CouponExpired": "expired",
    "CouponLimitReached": "used_up",
    "CouponNotFound": "not_found",
    "CouponPartOfNotRunningCampaign": "not_active",
    "CouponPartOfNotTriggeredCampaign": "not_combinable",  # an exclusive campaign won, unless EXCLUSION says more
    "CouponRecipientDoesNotMatch": "not_yours",
    "CouponRejectedByCondition": "conditions_not_met",
    "CouponRejectedCondition": "conditions_not_met",  # in the vendor's examples only
    "CouponReservationRequired": "reservation_required",
    "CouponStartDateInFuture": "not_started",
    "EffectCouldNotBeApplied": "budget_used_up",  # "a limit for that effect was reached"
    "ProfileLimitReached": "customer_limit_reached",
    "ProfileRequired": "sign_in_required",
}

REFERRAL = {
    "AdvocateNotFound": "referrer_not_found",
    "CampaignLimitReached": "budget_used_up",
    "EffectCouldNotBeApplied": "budget_used_up",
    "ProfileLimitReached": "customer_limit_reached",
    "ReferralCustomerAlreadyReferred": "already_referred",
    "ReferralExpired": "expired",
    "ReferralLimitReached": "used_up",
    "ReferralNotFound": "not_found",
    "ReferralPartOfNotRunningCampaign": "not_active",
    "ReferralPartOfNotTriggeredCampaign": "not_combinable",
    "ReferralRecipientDoesNotMatch": "not_yours",
    "ReferralRecipientIdSameAsAdvocate": "own_referral",
    "ReferralRejectedByCondition": "conditions_not_met",
    "ReferralRejectedCondition": "conditions_not_met",  # in the vendor's examples only
    "ReferralStartDateInFuture": "not_started",
    "ReferralValidConditionMissing": "not_applied",  # in an official integration only: no rule asks for the code
}

# `campaignExclusionReason`, which says why a campaign was "not triggered":
# https://docs.talon.one/docs/product/applications/manage-campaign-evaluation
EXCLUSION = {
    "CampaignGaveLowerDiscount": "better_offer_applied",
    "CampaignIsNotFirst": "not_combinable",
    "CampaignNotInEvaluationSet": "not_active",  # for example archived
}

# Another campaign may have the same code: why it does not apply there says more than that it is over here.
NOT_RUNNING = frozenset({Reason.NOT_FOUND, Reason.EXPIRED, Reason.NOT_STARTED, Reason.NOT_ACTIVE})

# The engine's word goes to the shopper's browser, so free text, which may hold private data, is dropped.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9 _.:-]{0,63}", re.ASCII)


def reason(table: dict[str, str], word: str | None, exclusion: str | None) -> Reason:
    """The reason for a rejection. `word`: `rejectionReason`; `exclusion`: `campaignExclusionReason`."""
    known = table.get(word or "", "other")
    if known == "not_combinable":
        known = EXCLUSION.get(exclusion or "", known)
    return Reason(known)


def word(engine_reason: str | None) -> str:
    """Talon.One's own word; "" for free text."""
    return engine_reason if engine_reason and _WORD.fullmatch(engine_reason) else ""
