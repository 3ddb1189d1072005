"""Money, exactly: strict text in, whole minor units inside, one rounding rule, nothing lost when a sum is split.

An amount is an `int` of minor units ("cents") together with the number of digits of its currency, from the first look
at the request to the last byte of the reply. What an engine computes may have any number of digits: that is a
`Decimal` until it is rounded here, once.
"""

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from typing import Final

# ISO 4217, list one (SIX, 2026-01-01): the active codes by the number of their minor-unit digits. Codes without a minor
# unit (gold, drawing rights, the test code) count whole units.
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

# ASCII digits only, no exponent, no underscore, bounded: what msgspec's and Python's own Decimal would let through
# ("NaN", "1_000", " 1", "1e1000000") never reaches them.
_AMOUNT = re.compile(r"(-?)(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,12}))?", re.ASCII)
_WHOLE: Final = 12

# What an engine may send: a JSON number, of a size that can still be money (below 10^15), and no finer than a rest of
# binary arithmetic (5.551115123125783e-17) is. Sums of a great many such numbers fit the precision we compute with.
_ENGINE_WHOLE: Final = 15
_ENGINE_FRACTION: Final = 44
_PRECISION: Final = 80
_EXACT = Context(prec=_PRECISION)
_ADDING = Context(prec=_PRECISION, traps=[Inexact, InvalidOperation])

# Of a minor unit. A percentage of four decimal places is exact to it, and what doubles leave behind is far below, with
# a thousand units of 10,000.00 added up.
_FINEST = Decimal("0.000001")


_REMEMBERED: Final = 2048
"""A shop has so many prices, and the same ones in cart after cart: to look one up takes a fifth of reading it."""


class NotMoney(ValueError):
    """The text is no amount of this currency; the message says why, as the end of a sentence."""


@lru_cache(_REMEMBERED)
def parse(text: str, digits: int) -> int:
    """The minor units of a decimal text such as "140.00".

    Raises `NotMoney` where the text is not a plain decimal, or has more significant digits than the currency: an amount
    that would have to be rounded is somebody's mistake, and rounding would hide it. Zeros at the end are no digits.
    """
    # What nearly all amounts look like is read without the pattern, several times as fast.
    whole, point, fraction = text.partition(".")
    figures = whole + fraction
    if figures.isdigit() and figures.isascii() and len(fraction) == digits and 0 < len(whole) <= _WHOLE:
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


@lru_cache(_REMEMBERED)
def text(minor: int, digits: int) -> str:
    """The decimal text of an amount, with all digits of its currency: 14000 at 2 digits is "140.00"."""
    if digits == 0:
        return str(minor)
    sign, figures = ("-", str(-minor)) if minor < 0 else ("", str(minor))
    if len(figures) <= digits:
        figures = figures.zfill(digits + 1)
    return f"{sign}{figures[:-digits]}.{figures[-digits:]}"


def from_engine(number: object) -> Decimal:
    """An amount that an engine sent as a JSON number, exactly as it was spelled.

    Decode engine JSON with `float_hook=Decimal`, so that 9.999 arrives here as 9.999. Raises `NotMoney`.
    """
    if isinstance(number, Decimal):
        value = number
    elif isinstance(number, int) and not isinstance(number, bool):
        value = Decimal(number)
    else:
        raise NotMoney("is not a number")
    if not value:
        return Decimal(0)
    # A short text without an exponent cannot be out of range; to look at the digits one by one takes longer.
    text = str(value)
    if (len(text) > _ENGINE_WHOLE or "E" in text or not value.is_finite()) and _is_out_of_range(value):
        raise NotMoney("is out of range")
    return value


def _is_out_of_range(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return not isinstance(exponent, int) or value.adjusted() >= _ENGINE_WHOLE or exponent < -_ENGINE_FRACTION


def to_minor(value: Decimal, digits: int) -> int:
    """Rounds an engine's amount (major units) half up to whole minor units. The one rounding rule.

    The rests of an engine's binary arithmetic do not count: 10 % of 1.15 comes as 0.11499999999999999, and is 0.115.
    """
    exact = value.scaleb(digits, _EXACT).quantize(_FINEST, ROUND_HALF_UP, _EXACT)
    return int(exact.to_integral_value(ROUND_HALF_UP, _EXACT))


@lru_cache(_REMEMBERED)
def to_major(minor: int, digits: int) -> Decimal:
    """Minor units as the exact decimal an engine expects."""
    return Decimal(f"{minor}e-{digits}")


def total(values: Sequence[Decimal]) -> Decimal:
    """The exact sum; with more digits than can be exact it raises, it never rounds silently."""
    if not values:
        return Decimal(0)
    result = values[0]
    for value in values[1:]:
        result = _ADDING.add(result, value)
    return result


def split(amount: int, weights: Sequence[Decimal]) -> list[int]:
    """Splits an amount in proportion to weights >= 0 by largest remainder: the parts always add up to the amount.

    Ties go to the earlier part. Weights that are all zero count as equal.
    """
    if not weights:
        if amount:
            raise ValueError("an amount cannot be split over nothing")
        return []
    whole = sum(weights)
    shares = [Decimal(1)] * len(weights) if whole == 0 else list(weights)
    # Integer arithmetic from here on: scale the weights to whole numbers, so that no remainder is approximate.
    exponent = min(int(share.as_tuple().exponent) for share in shares)
    units = [int(share.scaleb(-exponent, _EXACT)) for share in shares]
    sign, size, scale = (-1 if amount < 0 else 1), abs(amount), sum(units)
    parts = [size * unit // scale for unit in units]
    remainders = [size * unit % scale for unit in units]
    for position in sorted(range(len(units)), key=lambda i: (-remainders[i], i))[: size - sum(parts)]:
        parts[position] += 1
    return [sign * part for part in parts]


def unit_price(net_line: int, quantity: int) -> int:
    """The price of one unit of a discounted line, rounded half up. Not exact where the line does not divide evenly."""
    return (2 * net_line + quantity) // (2 * quantity)


def list_price(unit: int, line_discount: int, quantity: int) -> int:
    """The list price behind a reduced unit price: the inverse of `unit_price`.

    Rounded half *down*, because the reduced price was rounded half up: the true list price lies within half a minor
    unit, exclusive above and inclusive below, so this finds it for every quantity.
    """
    doubled = 2 * (unit * quantity + line_discount) - quantity
    return -(-doubled // (2 * quantity))
