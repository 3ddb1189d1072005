"""Codes, and their case: https://docs.talon.one/docs/product/applications/manage-general-settings"""

import pytest

from mapper.adapter import Misconfigured
from tests.adapters.talon_one.talk import adapter, cart, effect, outcome, sent

KAPI = "kap\N{LATIN SMALL LETTER DOTLESS I}"
TWO = ["Summer", "SUMMER"]


def rejected(codes: list[str], answered: list[str], **options: str) -> list[str]:
    effects = [effect("rejectCoupon", {"value": code, "rejectionReason": "CouponExpired"}) for code in answered]
    return [one.code for one in outcome(cart(("A", 1, "9.00"), codes=codes), effects, **options).rejected]


def test_case_sensitive_codes_are_both_sent() -> None:
    checkout = cart(("A", 1, "9.00"), codes=[*TWO, "Summer"])
    assert sent(adapter().validate(checkout, "s"))["couponCodes"] == ["Summer"]
    assert sent(adapter(CODE_CASE="insensitive").validate(checkout, "s"))["couponCodes"] == ["Summer"]
    assert sent(adapter(CODE_CASE="sensitive").validate(checkout, "s"))["couponCodes"] == TWO


def test_case_sensitive_rejection_names_the_exact_code() -> None:
    assert rejected(TWO, ["SUMMER"], CODE_CASE="sensitive") == ["SUMMER"]
    assert rejected(TWO, ["Summer"], CODE_CASE="sensitive") == ["Summer"]
    assert rejected(TWO, ["sUMMER"], CODE_CASE="sensitive") == [], "it could be either"


@pytest.mark.parametrize("case", ["insensitive", "sensitive"])
@pytest.mark.parametrize(
    ("typed", "answered"),
    [
        ("summer", "SUMMER"), ("SUMMER", "Summer"), ("İNDİRİM10", "indirim10"), ("İNDİRİM10", "INDIRIM10"),
        ("İNDİRİM10", "i̇ndi̇ri̇m10"), ("indirim10", "İNDİRİM10"), (KAPI, "KAPI"), ("KAPI", KAPI),
        ("straße", "STRASSE"), ("STRASSE", "strasse"), ("ΣΟΦΟΣ", "σοφος"), ("ÉTÉ", "été"),
    ],
)  # fmt: skip
def test_answered_code_in_another_case_is_the_typed_code(typed: str, answered: str, case: str) -> None:
    assert rejected([typed], [answered], CODE_CASE=case) == [typed]
    effects = [effect("acceptCoupon", {"value": answered}, coupon=5), effect("setDiscount", {"name": "x", "value": 1},
               coupon=5)]  # fmt: skip
    result = outcome(cart(("A", 1, "9.00"), codes=[typed]), effects, CODE_CASE=case)
    assert result.discounts[0].meta["code"] == typed
    assert [notice.type for notice in result.notices] == ["acceptCoupon"]


def test_exact_spelling_is_matched_first() -> None:
    assert rejected(["İYİ", "IYI"], ["IYI"]) == ["IYI"]
    assert rejected(["İYİ", "IYI"], ["iyi"]) == ["IYI"]


def test_unknown_code_case_option_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match="CODE_CASE"):
        adapter(CODE_CASE="upper")
