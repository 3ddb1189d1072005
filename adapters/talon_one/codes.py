"""Codes: which are sent, and which of these an answer means.

Whether codes that differ by case are two is a setting of the Application, and the engine may answer a code in another
case than the one that it was sent: https://docs.talon.one/docs/product/applications/manage-general-settings
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

Kind = Literal["coupon", "referral"]


def folded(code: str) -> str:
    """The code without its case, by anybody's rules: in Turkish the i with a dot and the one without are no pair, and
    elsewhere they are, so that "İNDİRİM10" may come back as "indirim10" or as "INDIRIM10".
    """
    return (
        unicodedata.normalize("NFC", code.casefold())
        .replace("i\N{COMBINING DOT ABOVE}", "i")
        .replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    )


def as_written(code: str) -> str:
    return code


def unique(codes: Iterable[str], *, case: str) -> tuple[str, ...]:
    """Each code once, as it was spelled first. `case`: the setting."""
    same = as_written if case == "sensitive" else str.casefold
    first: dict[str, str] = {}
    for code in codes:
        first.setdefault(same(code), code)
    return tuple(first.values())


class SentCodes(msgspec.Struct, frozen=True):
    """The codes of one request, as the shopper spelled them."""

    coupons: tuple[str, ...] = ()
    referral: str = ""

    def __iter__(self) -> Iterator[tuple[Kind, str]]:
        for code in self.coupons:
            yield "coupon", code
        if self.referral:
            yield "referral", self.referral

    def of(self, kind: Kind) -> tuple[str, ...]:
        return tuple(code for one, code in self if one == kind)

    def meant(self, kind: Kind, answered: str) -> str | None:
        """The code that an answer means: the one spelled like that, else the only one that differs by case alone."""
        ways: tuple[Callable[[str], str], ...] = (as_written, str.casefold, folded)
        for same in ways:
            found = [code for code in self.of(kind) if same(code) == same(answered)]
            if found:
                return found[0] if len(found) == 1 else None
        return None
