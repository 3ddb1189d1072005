"""Money: reading, rounding, and splitting a sum without loss."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iso4217 import Currency

from mapper.domain import money

unhurried = settings(deadline=None)  # speed does not matter here

DIGITS = st.sampled_from([0, 2, 3, 4])
AMOUNTS = st.integers(-(10**12) + 1, 10**12 - 1)
WEIGHTS = st.decimals(0, 10**9, places=4) | st.decimals(0, 10**9, allow_nan=False, allow_infinity=False)


def test_currencies_are_those_of_iso_4217() -> None:
    """Codes without a minor unit in ISO (gold, drawing rights, the test code) count in whole units."""
    assert {currency.code: currency.exponent or 0 for currency in Currency} == money.DIGITS


@pytest.mark.parametrize(
    ("text", "digits", "minor"),
    [
        ("140.00", 2, 14000),
        ("140", 2, 14000),
        ("140.5", 2, 14050),
        ("0", 2, 0),
        ("0.00", 2, 0),
        ("0.01", 2, 1),
        ("-1", 2, -100),
        ("-0.01", 2, -1),
        ("-0.00", 2, 0),
        ("999999999999.99", 2, 99999999999999),
        ("1", 0, 1),
        ("1500", 0, 1500),
        ("1.005", 3, 1005),
        ("1.5", 3, 1500),
        ("0.0001", 4, 1),
        ("1000.00", 0, 1000),  # trailing zeros do not count
        ("1.0", 0, 1),
        ("140.0000", 2, 14000),
        ("140.500", 2, 14050),
        ("0.000", 2, 0),
        ("-0.000", 2, 0),
        ("1.0050", 3, 1005),
    ],
)
def test_plain_decimal_is_read_exactly(text: str, digits: int, minor: int) -> None:
    assert money.parse(text, digits) == minor


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-", ".", "-.", "+1", "--1", "1-", "- 1"),
        *(".5", "1.", "-.5", "1..0", "1.0.0"),
        *("007", "00", "00.50", "-01"),
        *(" 1 ", "1 ", " 1", "1\n", "\n1", "1\t", "1\x00", "\ufeff1", "1\u00a0", "1 000"),
        *("1,00", "1,000.00", "1_000", "1'000", "$1", "1 USD", "1%"),
        *("1e5", "1E5", "1e-2", "0x10", "1/2", "NaN", "nan", "sNaN", "Infinity", "-Infinity", "inf", "true", "null"),
        *("٣", "１", "1.٣", "௧", "²", "−1", "1．5"),  # noqa: RUF001 - digits and signs that look like ASCII
        *("1000000000000", "-1000000000000.00", "1" * 5000, "0." + "0" * 5000),
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest.mark.parametrize("digits", [0, 2, 4])
def test_other_texts_are_not_money(text: str, digits: int) -> None:
    with pytest.raises(money.NotMoney):
        money.parse(text, digits)


@pytest.mark.parametrize(
    ("text", "digits"),
    [("1000.50", 0), ("0.5", 0), ("1.001", 2), ("1.005", 2), ("140.0010", 2), ("1.0005", 3), ("0.00001", 4)],
)
def test_more_digits_than_the_currency_are_refused_not_rounded(text: str, digits: int) -> None:
    with pytest.raises(money.NotMoney, match=f"more than {digits} decimal places"):
        money.parse(text, digits)


@unhurried
@given(AMOUNTS, DIGITS)
def test_written_amount_is_read_back(minor: int, digits: int) -> None:
    written = money.text(minor, digits)
    assert money.parse(written, digits) == minor
    assert len(written.partition(".")[2]) == digits
    assert Decimal(written) == money.to_major(minor, digits)


@unhurried
@given(st.text("0123456789.-+eE_, \n٣NaIinf", max_size=16), DIGITS)
def test_parsed_amount_equals_decimal(text: str, digits: int) -> None:
    try:
        minor = money.parse(text, digits)
    except money.NotMoney:
        return
    assert Decimal(text).scaleb(digits) == minor


@pytest.mark.parametrize(
    ("number", "digits", "minor"),
    [
        ("0.004", 2, 0),
        ("0.005", 2, 1),
        ("0.0049999", 2, 0),
        ("0.11499999999999999", 2, 12),
        ("0.115", 2, 12),
        ("2.49999999999999997", 0, 3),
        ("0.00499999", 2, 0),
        ("1.115", 2, 112),
        ("9.995", 2, 1000),
        ("-0.005", 2, -1),
        ("-0.004", 2, 0),
        ("0.5", 0, 1),
        ("1.5", 0, 2),
        ("2.5", 0, 3),
        ("1.0005", 3, 1001),
        ("1e3", 2, 100000),
        ("35", 2, 3500),
        ("33.333333333333336", 2, 3333),
    ],
)
def test_engine_amount_is_rounded_half_up_despite_float_errors(number: str, digits: int, minor: int) -> None:
    assert money.to_minor(Decimal(number), digits) == minor


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 1000))
def test_float_errors_of_an_engine_never_cost_a_cent(price: int, percent: int, units: int) -> None:
    """`price` in cents, `percent` in ten-thousandths; the discount on each unit is the nearest float."""
    each = Decimal(repr(price / 100 * (percent / 10_000 / 100)))
    exact = Fraction(price * percent * units, 10**6)
    assert money.to_minor(money.total([each] * units), 2) == int(exact + Fraction(1, 2))


@unhurried
@given(AMOUNTS, DIGITS)
def test_amount_is_unchanged_after_engine_roundtrip(minor: int, digits: int) -> None:
    assert money.to_minor(money.from_engine(money.to_major(minor, digits)), digits) == minor


@pytest.mark.parametrize(
    "number", [0, 5, -5, Decimal("9.999"), Decimal("1e3"), Decimal("5.551115123125783e-17"), 10**15 - 1]
)
def test_engine_number_is_read_exactly(number: int | Decimal) -> None:
    assert money.from_engine(number) == number


@pytest.mark.parametrize(
    "number",
    [
        *(None, True, False, "1", 1.5, [], {}),
        *(10**15, -(10**15), 10**400, Decimal("1e15"), Decimal("1e999999"), Decimal("1e-999999")),
        *(Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("0." + "1" * 100)),
    ],
    ids=lambda number: repr(number)[:30],
)
def test_invalid_engine_number_is_refused(number: object) -> None:
    with pytest.raises(money.NotMoney):
        money.from_engine(number)


def test_zero_in_any_spelling_becomes_plain_zero() -> None:
    """As a weight, `0e-999999` would turn the others into integers of a million digits."""
    assert str(money.from_engine(Decimal("0e-999999"))) == "0"
    assert str(money.from_engine(Decimal("-0e500"))) == "0"


@unhurried
@given(st.lists(st.decimals(-(10**15) + 1, 10**15 - 1, places=12), max_size=30))
def test_total_is_exact(values: list[Decimal]) -> None:
    assert Fraction(money.total(values)) == sum(map(Fraction, values))


@pytest.mark.parametrize("wrong", ["1e400", "Infinity"])
def test_total_that_cannot_be_exact_is_refused(wrong: str) -> None:
    with pytest.raises(money.NotMoney):
        money.total([Decimal(wrong), Decimal("0.01"), Decimal("-Infinity")])


def test_total_of_accepted_engine_numbers_never_fails() -> None:
    """The longest numbers that `from_engine` accepts, a thousand times."""
    widest = [money.from_engine(Decimal(f"999999999999999.{'9' * 44}")), money.from_engine(Decimal("1e-44"))] * 500
    assert Fraction(money.total(widest)) == sum(map(Fraction, widest))


@pytest.mark.parametrize(
    ("amount", "weights", "parts"),
    [
        (100, [1, 1, 1], [34, 33, 33]),
        (1000, [100, 200], [333, 667]),
        (5, [0, 0], [3, 2]),
        (5, [0, 1], [0, 5]),
        (1, [1, 1, 1], [1, 0, 0]),
        (0, [1, 2], [0, 0]),
        (-100, [1, 1, 1], [-34, -33, -33]),
        (7, [3], [7]),
        (0, [], []),
    ],
)
def test_split_uses_largest_remainder_with_ties_to_the_earlier(
    amount: int, weights: list[int], parts: list[int]
) -> None:
    assert money.split(amount, [Decimal(weight) for weight in weights]) == parts


@pytest.mark.parametrize(
    ("amounts", "exponent", "digits", "minor", "exact"),
    [
        ([5, 7], 2, 2, [5, 7], True),
        ([5, 7], 2, 3, [50, 70], True),
        ([100, 200], 2, 0, [1, 2], True),
        ([150], 2, 0, [2], False),  # half up
        ([149], 2, 0, [1], False),
        ([50, 50, 50], 2, 0, [1, 1, 0], False),  # the sum is rounded once
        ([], 2, 0, [], True),
    ],
)
def test_rescale_rounds_the_sum_once(
    amounts: list[int], exponent: int, digits: int, minor: list[int], exact: bool
) -> None:
    assert money.rescale(amounts, exponent, digits) == (minor, exact)


def test_split_over_no_weights_raises() -> None:
    with pytest.raises(ValueError, match="over nothing"):
        money.split(1, [])


@unhurried
@given(AMOUNTS, st.lists(WEIGHTS, min_size=1, max_size=40))
def test_split_parts_add_up_and_are_within_one_unit(amount: int, weights: list[Decimal]) -> None:
    parts = money.split(amount, weights)
    assert sum(parts) == amount
    whole = sum(map(Fraction, weights))
    shares = [amount * Fraction(weight) / whole if whole else Fraction(amount, len(weights)) for weight in weights]
    assert all(abs(part - share) < 1 for part, share in zip(parts, shares, strict=True))
    assert parts == money.split(amount, list(weights)), "deterministic"


@unhurried
@given(st.integers(0, 10**9), st.lists(WEIGHTS, min_size=1, max_size=10), st.integers(-9, 9))
def test_split_depends_only_on_the_proportion_of_weights(amount: int, weights: list[Decimal], shift: int) -> None:
    assert money.split(amount, weights) == money.split(amount, [weight.scaleb(shift) for weight in weights])


@pytest.mark.parametrize(
    ("net_line", "quantity", "unit"),
    [(10500, 1, 10500), (1000, 3, 333), (2000, 3, 667), (1, 2, 1), (3, 2, 2), (1, 3, 0), (0, 7, 0), (5, 1_000_000, 0)],
)
def test_unit_price_is_rounded_half_up(net_line: int, quantity: int, unit: int) -> None:
    assert money.unit_price(net_line, quantity) == unit


@unhurried
@given(st.data(), st.integers(0, 10**10), st.integers(1, 1_000_000) | st.integers(1, 12))
def test_list_price_is_recovered_from_the_reduced_price(data: st.DataObject, listed: int, quantity: int) -> None:
    discount = data.draw(st.integers(0, listed * quantity))
    reduced = money.unit_price(listed * quantity - discount, quantity)
    assert money.list_price(reduced, discount, quantity) == listed


def test_list_price_is_recovered_for_every_small_line() -> None:
    """Exhaustive: every line of up to 7 units of up to 12 cents, and every discount on it."""
    for quantity in range(1, 8):
        for listed in range(13):
            for discount in range(listed * quantity + 1):
                reduced = money.unit_price(listed * quantity - discount, quantity)
                assert money.list_price(reduced, discount, quantity) == listed, (quantity, listed, discount)
