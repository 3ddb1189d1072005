"""Exact money: strict parsing, whole minor units, one rounding rule, splits without a remainder.

An amount is an `int` of minor units ("cents"), used with the number of digits of its currency. An amount that an engine
computes may have any number of digits. It is a `Decimal` until it is rounded here, once.
"""

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from typing import Final

# ISO 4217, list one (SIX, 2026-01-01): the active codes by the number of minor-unit digits; 0 for those without a minor
# unit (gold, drawing rights, the test code).
_BY_DIGITS: Final[dict[int, str]] = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF "
    "XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW "
    "CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR "
    "ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV "
    "MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD "
    "SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
DIGITS: Final[dict[str, int]] = {code: digits for digits, codes in _BY_DIGITS.items() for code in codes.split()}
DEFAULT_DIGITS: Final = 2

# ASCII digits only, no exponent, no underscore, bounded. Python's Decimal accepts "NaN", "1_000", " 1", "1e1000000".
_AMOUNT = re.compile(r"(-?)(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,12}))?", re.ASCII)
_MAX_WHOLE: Final = 12

# Limits of an engine's amounts: below 10^15, and fine enough for an error of binary arithmetic (5.551115123125783e-17).
# The sum of many such numbers is exact within `_PRECISION`.
_ENGINE_WHOLE: Final = 15
_ENGINE_FRACTION: Final = 44
_PRECISION: Final = 80
_EXACT = Context(prec=_PRECISION)
_ADDING = Context(prec=_PRECISION, traps=[Inexact, InvalidOperation])

# The finest fraction of a minor unit that counts. A percentage of four decimal places needs no finer one, and errors of
# binary arithmetic are far smaller, even in the sum of a thousand units of 10,000.00.
_FINEST = Decimal("0.000001")

# A shop's prices repeat from cart to cart, and a cached result takes a fifth of the time.
CACHE_SIZE: Final = 2048


class NotMoney(ValueError):
    """The text is no amount of this currency. The message is the end of a sentence."""


@lru_cache(CACHE_SIZE)
def parse(text: str, digits: int) -> int:
    """The minor units of a decimal text such as "140.00".

    Raises `NotMoney` where the text is not a plain decimal, or has more significant digits than the currency: rounding
    would hide a mistake. Trailing zeros are not significant.
    """
    # The common form is parsed without the pattern, which is several times as fast.
    whole, point, fraction = text.partition(".")
    figures = whole + fraction
    if figures.isdigit() and figures.isascii() and len(fraction) == digits and 0 < len(whole) <= _MAX_WHOLE:
        leading_zero = whole[0] == "0" and whole != "0"
        if not leading_zero and bool(point) == bool(digits):
            return int(figures)
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise NotMoney('is not a decimal amount such as "140.00"')
    sign, whole, fraction = match.groups(default="")
    fraction = fraction.rstrip("0")
    if len(fraction) > digits:
        raise NotMoney(f"has more than {digits} decimal places, which its currency does not have")
    minor = int(whole + fraction.ljust(digits, "0"))
    return -minor if sign else minor


@lru_cache(CACHE_SIZE)
def text(minor: int, digits: int) -> str:
    """The decimal text of an amount: 14000 with 2 digits is "140.00"."""
    if digits == 0:
        return str(minor)
    sign, figures = ("-", str(-minor)) if minor < 0 else ("", str(minor))
    if len(figures) <= digits:
        figures = figures.zfill(digits + 1)
    return f"{sign}{figures[:-digits]}.{figures[-digits:]}"


def from_engine(number: object) -> Decimal:
    """The exact amount of a JSON number from an engine, decoded with `float_hook=Decimal`. Raises `NotMoney`."""
    if isinstance(number, Decimal):
        value = number
    elif isinstance(number, int) and not isinstance(number, bool):
        value = Decimal(number)
    else:
        raise NotMoney("is not a number")
    if not value:
        return Decimal(0)
    # A short text without an exponent is in range; `_is_out_of_range` is slow.
    text = str(value)
    if (len(text) > _ENGINE_WHOLE or "E" in text or not value.is_finite()) and _is_out_of_range(value):
        raise NotMoney("is out of range")
    return value


def _is_out_of_range(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return not isinstance(exponent, int) or value.adjusted() >= _ENGINE_WHOLE or exponent < -_ENGINE_FRACTION


def to_minor(value: Decimal, digits: int) -> int:
    """Rounds an engine's amount in major units half up to minor units. `rescale` takes whole units of an engine.

    The errors of an engine's binary arithmetic are removed first: 10 % of 1.15 comes as 0.11499999999999999, for 0.115.
    """
    exact = value.scaleb(digits, _EXACT).quantize(_FINEST, ROUND_HALF_UP, _EXACT)
    return int(exact.to_integral_value(ROUND_HALF_UP, _EXACT))


@lru_cache(CACHE_SIZE)
def to_major(minor: int, digits: int) -> Decimal:
    """The exact amount in major units, as engines expect it."""
    return Decimal(f"{minor}e-{digits}")


def total(values: Sequence[Decimal]) -> Decimal:
    """The exact sum. Raises `NotMoney` rather than round."""
    if not values:
        return Decimal(0)
    result = values[0]
    try:
        for value in values[1:]:
            result = _ADDING.add(result, value)
    except (Inexact, InvalidOperation) as error:
        raise NotMoney("has more digits than can be added exactly") from error
    return result


def split(amount: int, weights: Sequence[Decimal]) -> list[int]:
    """Splits an amount in proportion to weights >= 0, by largest remainder. The parts add up to the amount.

    Of equal remainders the earlier one wins. Weights that are all zero count as equal.
    """
    if not weights:
        if amount:
            raise ValueError("an amount cannot be split over nothing")
        return []
    if sum(weights) == 0:
        weights = [Decimal(1)] * len(weights)
    # Weights as whole numbers, so that the remainders are exact.
    exponent = min(int(weight.as_tuple().exponent) for weight in weights)
    units = [int(weight.scaleb(-exponent, _EXACT)) for weight in weights]
    sign, size, scale = (-1 if amount < 0 else 1), abs(amount), sum(units)
    parts = [size * unit // scale for unit in units]
    remainders = [size * unit % scale for unit in units]
    for position in sorted(range(len(units)), key=lambda i: (-remainders[i], i))[: size - sum(parts)]:
        parts[position] += 1
    return [sign * part for part in parts]


def rescale(amounts: Sequence[int], exponent: int, digits: int) -> tuple[list[int], bool]:
    """Amounts with `exponent` decimals as minor units, which have `digits`; and whether the conversion is exact.

    Where it is not, the sum is rounded half up, once, and split by largest remainder.
    """
    if exponent <= digits:
        return [amount * 10 ** (digits - exponent) for amount in amounts], True
    size = 10 ** (exponent - digits)
    if all(amount % size == 0 for amount in amounts):
        return [amount // size for amount in amounts], True
    return split((2 * sum(amounts) + size) // (2 * size), [Decimal(amount) for amount in amounts]), False


def unit_price(net_line: int, quantity: int) -> int:
    """The unit price of a discounted line, rounded half up."""
    return (2 * net_line + quantity) // (2 * quantity)


def list_price(unit: int, line_discount: int, quantity: int) -> int:
    """The unit list price of a discounted line: the inverse of `unit_price`.

    `unit` was rounded half up. So `unit + line_discount / quantity` is at most half a minor unit above the list price,
    or less than half below it, and rounding it half down finds the list price for every quantity.
    """
    doubled = 2 * (unit * quantity + line_discount) - quantity
    return -(-doubled // (2 * quantity))
