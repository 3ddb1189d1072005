"""Codes, and their case: https://docs.talon.one/docs/product/applications/manage-general-settings"""

import pytest

from mapper.adapter import Misconfigured
from tests.adapters.talon_one.talk import adapter, cart, effect, outcome, sent

KAPI = "kap\N{LATIN SMALL LETTER DOTLESS I}"
TWO = ["Summer", "SUMMER"]


def rejected(codes: list[str], answered: list[str], **options: str) -> list[str]:
    effects = [effect("rejectCoupon", {"value": code, "rejectionReason": "CouponExpired"}) for code in answered]
    return [one.code for one in outcome(cart(("A", 1, "9.00"), codes=codes), effects, **options).rejected]


def test_where_case_counts_two_codes_that_differ_by_it_are_both_asked() -> None:
    checkout = cart(("A", 1, "9.00"), codes=[*TWO, "Summer"])
    assert sent(adapter().validate(checkout, "s"))["couponCodes"] == ["Summer"]
    assert sent(adapter(CODE_CASE="insensitive").validate(checkout, "s"))["couponCodes"] == ["Summer"]
    assert sent(adapter(CODE_CASE="sensitive").validate(checkout, "s"))["couponCodes"] == TWO


def test_where_case_counts_each_code_has_its_own_answer() -> None:
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
def test_a_code_that_is_answered_in_another_case_is_still_the_one_that_was_typed(
    typed: str, answered: str, case: str
) -> None:
    assert rejected([typed], [answered], CODE_CASE=case) == [typed]
    effects = [effect("acceptCoupon", {"value": answered}, coupon=5), effect("setDiscount", {"name": "x", "value": 1},
               coupon=5)]  # fmt: skip
    result = outcome(cart(("A", 1, "9.00"), codes=[typed]), effects, CODE_CASE=case)
    assert result.discounts[0].meta["code"] == typed
    assert [notice.type for notice in result.notices] == ["acceptCoupon"]


def test_the_exact_spelling_comes_before_any_other() -> None:
    assert rejected(["İYİ", "IYI"], ["IYI"]) == ["IYI"]
    assert rejected(["İYİ", "IYI"], ["iyi"]) == ["IYI"]


def test_another_word_for_the_case_is_no_setting() -> None:
    with pytest.raises(Misconfigured, match="CODE_CASE"):
        adapter(CODE_CASE="upper")
