"""The shopper's codes: cleaned for the engine, kept as entered for the answer, and refused if malformed."""

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper.adapter import Reason, Rejection
from mapper.domain import checkout, codes, errors, notices
from mapper.domain.codes import Promotions
from mapper.domain.errors import InvalidRequest

LINES = {"A": "items", "B": "order_items", "C": "order_items"}


def read(family: str = "A", **root: Any) -> checkout.Checkout:
    """A body of a family without lines; of C with one order."""
    return parse({"orders": [{"order_items": []}], **root} if family == "C" else {LINES[family]: [], **root})


def parse(body: Any) -> checkout.Checkout:
    return checkout.parse(json.dumps(body).encode(), "validate")


def entered(*texts: str) -> Promotions:
    return read(promotions={"coupon_codes": list(texts)}).promotions


# -- Cleaning ---------------------------------------------------------------------------------------------------------

CLEANED = [
    ("SUMMER20", "SUMMER20"),
    (" SUMMER20\t\r\n", "SUMMER20"),
    ("SUMMER20\u200b", "SUMMER20"),
    ("\ufeffSUMMER20", "SUMMER20"),
    ("SUM\u00adMER\u200d20", "SUMMER20"),
    ("\u202aSUMMER\u206620\u2069\u202c", "SUMMER20"),
    ("\u200b SUMMER20 \u2060", "SUMMER20"),
    ("SUM\u2061MER\u206420\u180e\u034f", "SUMMER20"),
    ("\u00a0SUMMER20\u3000", "SUMMER20"),
    ("SUMMER\u00a020", "SUMMER 20"),
    ("SUMMER  \u202f20", "SUMMER   20"),
    ("summer-20_%/ü İNDİRİM10 \U0001f384", "summer-20_%/ü İNDİRİM10 \U0001f384"),
    ("e\u0301", "e\u0301"),  # letters stay as entered
    ("v_day10", "v_day10"),
    ("\ufffd", "\ufffd"),
    ("x" * 100, "x" * 100),
    (" " + "x" * 100 + "\u200b", "x" * 100),
]


@pytest.mark.parametrize(("text", "code"), CLEANED)
def test_code_is_cleaned_of_spaces_and_invisible_characters(text: str, code: str) -> None:
    found = read(promotions={"coupon_codes": [text], "referral_code": text, "loyalty_card": text}).promotions
    assert (found.coupon_codes, found.referral_code, found.loyalty_card) == ((code,), code, code)
    assert (found.codes_as_entered, found.malformed) == ({text: code}, ())


IMPOSSIBLE = ["a\x00b", "a\tb", "a\nb", "a\x7fb", "a\x85b", "\x1ca", "x" * 101, "\ud800", "SAVE\ud83d", "\udfffSAVE"]


@pytest.mark.parametrize("text", IMPOSSIBLE)
@pytest.mark.parametrize("key", ["coupon_codes", "referral_code", "loyalty_card"])
def test_malformed_code_is_refused_as_entered_and_others_stay(text: str, key: str) -> None:
    given = {"coupon_codes": ["A"]} | ({key: ["A", text]} if key == "coupon_codes" else {key: text})
    found = read(promotions=given).promotions
    assert found.codes == ("A",)
    assert found.malformed == (Rejection(text, Reason.MALFORMED, ""),)


@pytest.mark.parametrize("text", ["", " ", "\t", "\u200b", "\u00a0\ufeff", "\u2060 \u00ad"])
def test_empty_code_is_ignored(text: str) -> None:
    found = read(promotions={"coupon_codes": [text], "referral_code": text, "loyalty_card": text}).promotions
    assert found == Promotions()


def test_codes_equal_after_cleaning_are_merged() -> None:
    found = entered("A", " A", "B", "A\u200b", "a")
    assert found.coupon_codes == ("A", "B", "a")


@given(st.text())
def test_cleaning_is_idempotent_and_keeps_visible_characters(text: str) -> None:
    code = codes.clean(text)
    assert codes.clean(code) == code
    assert signs(code) == signs(text)


def signs(text: str) -> list[str]:
    """The letters, digits and signs, which cleaning keeps. U+034F is invisible, although Unicode calls it a mark."""
    return [character for character in text.replace("\u034f", "") if unicodedata.category(character)[0] in "LMNPS"]


HALVES = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])
PLAIN = st.text(st.sampled_from("ABC\ufffd\U0001f384"), max_size=3)


@given(PLAIN, HALVES, PLAIN, st.sampled_from(["coupon_codes", "referral_code", "loyalty_card"]))
def test_lone_surrogate_never_becomes_another_code(before: str, half: str, after: str, key: str) -> None:
    """JavaScript writes one when it cuts a text in the middle of an emoji."""
    text = before + half + after
    others = [before + after, before + "\ufffd" + after, before + "?" + after]
    found = read(promotions={key: [text, *others] if key == "coupon_codes" else text}).promotions
    assert [one.code for one in found.malformed] == [text]
    assert set(found.codes) == ({*filter(None, others)} if key == "coupon_codes" else set())


# -- In answers -------------------------------------------------------------------------------------------------------


def test_rejections_keep_codes_and_order_as_entered() -> None:
    found = entered(" A\u200b", "a\tb", "B", "A")
    engine = (
        Rejection("B", Reason.EXPIRED, "x"),
        Rejection("A", Reason.USED_UP, "y"),
        Rejection("Z", Reason.OTHER, ""),
    )
    assert found.as_entered(engine) == (
        Rejection(" A\u200b", Reason.USED_UP, "y"),
        Rejection("a\tb", Reason.MALFORMED, ""),
        Rejection("B", Reason.EXPIRED, "x"),
        Rejection("Z", Reason.OTHER, ""),
    )


@pytest.mark.parametrize("text", ["SAVE\ud83d", "a\x00b", "ü"])
def test_answer_spells_a_refused_code_as_entered(text: str) -> None:
    problem = notices.refused(entered(text).malformed or [Rejection(text, Reason.OTHER, "")])
    details = json.loads(errors.body(problem, "validate"))["error"]["details"]
    assert (details["invalid-code"], details["codes"][0]["code"]) == (text, text)


@pytest.mark.parametrize(
    ("reasons", "named"),
    [
        ((Reason.NOT_APPLIED, Reason.EXPIRED, Reason.USED_UP), "B"),
        ((Reason.EXPIRED, Reason.NOT_APPLIED, Reason.USED_UP), "A"),
        ((Reason.NOT_APPLIED, Reason.NOT_APPLIED), "A"),
    ],
)
def test_invalid_code_is_not_one_refused_only_with_another(reasons: tuple[Reason, ...], named: str) -> None:
    problem = notices.refused([Rejection(code, reason, "") for code, reason in zip("ABC", reasons, strict=False)])
    assert problem.details["invalid-code"] == named
    assert len(problem.details["codes"]) == len(reasons)


# -- The object -------------------------------------------------------------------------------------------------------

PROMOTIONS: list[tuple[Any, Promotions]] = [
    (None, Promotions()),
    ({}, Promotions()),
    ({"coupon_codes": None, "meta": None, "referral_code": None}, Promotions()),
    ({"coupon_codes": [" A ", "", " ", "B"]}, Promotions(("A", "B"), codes_as_entered={" A ": "A", "B": "B"})),
    (
        {"referral_code": " R ", "loyalty_card": "L\n"},
        Promotions((), "R", "L", codes_as_entered={" R ": "R", "L\n": "L"}),
    ),
    ({"identifiers": ["x", "y"]}, Promotions(identifiers=("x", "y"))),
    ({"meta": {"a": 1}}, Promotions(meta={"a": 1})),
    ({"meta": []}, Promotions()),
]


@pytest.mark.parametrize(
    ("family", "key"), [("A", "promotions"), ("B", "promotion"), ("B", "promotions"), ("C", "promotion")]
)
@pytest.mark.parametrize(("value", "expected"), PROMOTIONS)
def test_promotions_are_read_under_either_key(family: str, key: str, value: Any, expected: Promotions) -> None:
    found = read(family, **{key: value})
    assert found.promotions == expected
    assert found.promotions_at == ((key,) if value is not None else ())


def test_codes_include_referral_code_and_loyalty_card() -> None:
    promotions = Promotions(coupon_codes=("A", "B"), referral_code="R", loyalty_card="L")
    assert promotions.codes == ("A", "B", "R", "L")
    assert Promotions(coupon_codes=("A",)).codes == ("A",)


def test_promotions_of_several_orders_are_merged() -> None:
    orders = [
        {"order_items": []},
        {"order_items": [], "promotion": {"coupon_codes": ["A", "B"], "identifiers": ["i"], "meta": {"first": 1}}},
        {
            "order_items": [],
            "promotions": {"coupon_codes": ["B", "C"], "identifiers": ["i", "j"], "referral_code": "R"},
        },
        {"order_items": [], "promotion": {"referral_code": "S", "loyalty_card": "L", "meta": {"last": 1}}},
    ]
    found = parse({"orders": orders})
    assert found.promotions == Promotions(
        ("A", "B", "C"),
        "R",
        "L",
        ("i", "j"),
        {"first": 1, "last": 1},
        {code: code for code in "ABCRSL"},
    )
    assert found.promotions_at == ("orders", 1, "promotion")


def test_promotions_at_the_root_override_those_of_orders() -> None:
    orders = [{"order_items": [], "promotion": {"coupon_codes": ["A"]}}]
    found = parse({"orders": orders, "promotion": {"coupon_codes": ["B"]}})
    assert (found.promotions.coupon_codes, found.promotions_at) == (("B",), ("promotion",))


@pytest.mark.parametrize("at_root", [{}, {"coupon_codes": [" "]}, {"identifiers": ["i"], "meta": {"mapper": {}}}])
def test_root_promotions_without_codes_hide_no_codes_of_orders(at_root: dict[str, Any]) -> None:
    orders = [{"order_items": []}, {"order_items": [], "promotion": {"coupon_codes": ["A"], "meta": {"x": 1}}}]
    found = parse({"orders": orders, "promotion": at_root})
    assert found.promotions.codes == ("A",)
    assert found.promotions.identifiers == tuple(at_root.get("identifiers", ()))
    assert found.promotions.meta == {**at_root.get("meta", {}), "x": 1}
    assert found.promotions_at == ("promotion",)


def test_note_stays_in_the_order_that_has_it() -> None:
    with_note = {"coupon_codes": ["A"], "meta": {"mapper": {"session": "s"}}}
    orders = [{"order_items": [], "promotion": {"meta": {}}}, {"order_items": [], "promotion": with_note}]
    found = parse({"orders": orders})
    assert found.promotions_at == ("orders", 1, "promotion")
    assert found.promotions.meta == {"mapper": {"session": "s"}}


def test_100_codes_over_all_orders_are_accepted_and_101_refused() -> None:
    def orders(*codes: list[str]) -> Any:
        return {"orders": [{"order_items": [], "promotion": {"coupon_codes": each}} for each in codes]}

    first, second = [f"A{i}" for i in range(60)], [f"B{i}" for i in range(40)]
    assert len(parse(orders(first, second)).promotions.coupon_codes) == 100
    with pytest.raises(InvalidRequest) as refused:
        parse(orders(first, [*second, "C"]))
    assert refused.value.pointer == "/orders"
