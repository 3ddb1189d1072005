"""The codes of a request, and which of them a reply names.

Whether case distinguishes codes is a setting of the Application, and Talon.One may return a code in another case than
it was sent: https://docs.talon.one/docs/product/applications/manage-general-settings
"""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

CodeKind = Literal["coupon", "referral"]


def fold_case(code: str) -> str:
    """The code without its case. The four Turkish letters i count as one.

    "İNDİRİM10" may come back as "indirim10" or as "INDIRIM10", depending on the language of the conversion.
    """
    return (
        unicodedata.normalize("NFC", code.casefold())
        .replace("i\N{COMBINING DOT ABOVE}", "i")
        .replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    )


def _unchanged(code: str) -> str:
    return code


def unique(codes: Iterable[str], *, case: str) -> tuple[str, ...]:
    """Each code once, in its first spelling. `case`: the setting `CODE_CASE`."""
    key = _unchanged if case == "sensitive" else str.casefold
    first: dict[str, str] = {}
    for code in codes:
        first.setdefault(key(code), code)
    return tuple(first.values())


class SentCodes(msgspec.Struct, frozen=True):
    """The codes of one request, as the shopper spelled them."""

    coupons: tuple[str, ...] = ()
    referral: str = ""

    def __iter__(self) -> Iterator[tuple[CodeKind, str]]:
        for code in self.coupons:
            yield "coupon", code
        if self.referral:
            yield "referral", self.referral

    def match(self, kind: CodeKind, value: str) -> str | None:
        """The sent code that a reply names: the same spelling first, else the only one that differs in case alone."""
        sent = self.coupons if kind == "coupon" else (self.referral,) if self.referral else ()
        if value in sent:
            return value
        for key in (str.casefold, fold_case):
            matches = [code for code in sent if key(code) == key(value)]
            if matches:
                return matches[0] if len(matches) == 1 else None
        return None
