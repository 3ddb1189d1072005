"""Talon.One's sandbox: which codes are refused, with the vendor's reasons."""

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import book
from tests.sandbox.talon_one_shop import Json, Shop, cart, of


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (cart("NO-SUCH-CODE"), "CouponNotFound"),
        (cart("CARD-COLLECT"), "CouponNotFound"),
        (cart("FRIEND-OF-JANE"), "CouponNotFound"),
        (cart("EXPIRED-10"), "CouponExpired"),
        (cart("SOON-10"), "CouponStartDateInFuture"),
        (cart("USED-UP-10"), "CouponLimitReached"),
        (cart("JANE-ONLY-10"), "CouponRecipientDoesNotMatch"),
        (cart("JANE-ONLY-10", profileId="joe"), "CouponRecipientDoesNotMatch"),
        (cart("JANE-ONLY-10", profileId="jane"), None),
        (cart("ONCE-EACH-10"), "ProfileRequired"),
        (cart("ONCE-EACH-10", profileId="joe"), None),
        (cart("MIN-200", price=199.99), "CouponRejectedByCondition"),
        (cart("XMAS-2021-25", price=100), "CouponRejectedByCondition"),
        (cart("SHOES-10"), "CouponRejectedByCondition"),
        (cart("PAUSED-5"), "CouponPartOfNotRunningCampaign"),
        (cart("ALONE-15"), None),
        (cart("ALONE-15", "GIFT-50"), None),
        (cart("TEN-PERCENT", "ALONE-15"), "CouponPartOfNotTriggeredCampaign"),
        (cart("WINTER-5", "WINTER-25"), "CouponPartOfNotTriggeredCampaign"),
        (cart("WINTER-5"), None),
        (cart("WRAPPED"), "CouponRejectedByCondition"),
        (cart("GIFT-EMPTY"), "CouponLimitReached"),
        (cart(referralCode="NO-FRIEND"), "ReferralNotFound"),
        (cart(referralCode="TEN-PERCENT"), "ReferralNotFound"),
        (cart(referralCode="FRIEND-EXPIRED"), "ReferralExpired"),
        (cart(referralCode="FRIEND-USED-UP"), "ReferralLimitReached"),
        (cart(referralCode="FRIEND-OF-JANE", profileId="jane"), "ReferralRecipientIdSameAsAdvocate"),
    ],
)
def test_code_is_refused_with_the_documented_reason(session: Json, reason: str | None) -> None:
    reply = Shop().ok(session)
    refused = of(reply, "rejectCoupon") + of(reply, "rejectReferral")
    assert [props["rejectionReason"] for props in refused] == ([] if reason is None else [reason])


def test_every_code_with_a_refused_note_is_refused() -> None:
    wrong = {}
    for entry in book().entries:
        if entry.note.startswith("refused"):
            code = entry.code or ""
            key = "referralCode" if isinstance(entry, rulebook.Referral) else "couponCodes"
            reply = Shop().ok(cart() | {key: code if key == "referralCode" else [code]})
            if not of(reply, "rejectCoupon") + of(reply, "rejectReferral"):
                wrong[code] = entry.note
    assert wrong == {}


def test_excluded_code_names_its_exclusion_reason() -> None:
    for codes, why in ((("TEN-PERCENT", "ALONE-15"), "CampaignIsNotFirst"), (("WINTER-5", "WINTER-25"), None)):
        (props,) = of(Shop().ok(cart(*codes)), "rejectCoupon")
        assert props["campaignExclusionReason"] == (why or "CampaignGaveLowerDiscount")


def test_codes_match_in_any_case_and_return_book_spelling() -> None:
    reply = Shop().ok(cart("ten-percent", "Ten-Percent", "nothing"))
    assert [p["value"] for p in of(reply, "acceptCoupon")] == ["TEN-PERCENT"]
    assert [p["value"] for p in of(reply, "rejectCoupon")] == ["nothing"]
    assert [e["campaignId"] for e in reply["effects"] if e["effectType"] == "rejectCoupon"] == [-1]


BY_CASE = ("case_sensitive_codes = false\n# A discount", "case_sensitive_codes = true\n# A discount")


@pytest.mark.parametrize(
    ("changes", "codes", "accepted", "refused"),
    [
        ((), ["TWIN-5", "twin-5"], ["TWIN-5"], []),
        ((), ["twin-5"], ["TWIN-5"], []),
        ((BY_CASE,), ["TWIN-5", "twin-5"], ["TWIN-5", "twin-5"], []),
        ((BY_CASE,), ["twin-5", "Twin-5"], ["twin-5"], ["Twin-5"]),
        ((BY_CASE,), ["single-0001", "SINGLE-0002"], ["SINGLE-0002"], ["single-0001"]),
    ],
)
def test_codes_that_differ_by_case_are_distinct_only_when_case_sensitive(
    changes: tuple[tuple[str, str], ...], codes: list[str], accepted: list[str], refused: list[str]
) -> None:
    reply = Shop(*changes).ok(cart(*codes))
    assert sorted(p["value"] for p in of(reply, "acceptCoupon")) == sorted(accepted)
    assert [p["value"] for p in of(reply, "rejectCoupon")] == refused


def test_referral_code_follows_the_case_setting() -> None:
    for changes, kind in (((), "acceptReferral"), ((BY_CASE,), "rejectReferral")):
        assert of(Shop(*changes).ok(cart(referralCode="friend-of-jane", profileId="joe")), kind)


def test_rule_failure_reasons_name_the_failed_condition() -> None:
    reply = Shop().ok(cart("MIN-200", "EXPIRED-10"), "s1", "", "ruleFailureReasons")
    failures = {one.get("couponValue"): one for one in reply["ruleFailureReasons"]}
    assert failures["MIN-200"]["conditionIndex"] == 1
    assert failures["MIN-200"]["details"] == "condition 1 of the rule does not hold"
    assert failures["EXPIRED-10"]["details"] == "expired"
