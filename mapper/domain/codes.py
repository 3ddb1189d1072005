"""Reads the codes of a body. They are cleaned for the engine and reported as they were entered."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from mapper.domain.document import Document, Path, pointer_of
from mapper.domain.errors import InvalidRequest
from mapper.domain.families import Family
from mapper.domain.fields import value_at
from mapper.domain.outcome import Rejection
from mapper.domain.reasons import Reason

_TEXTS = ("coupon_codes", "referral_code", "loyalty_card", "identifiers")

MAX_CODES = 100
MAX_CODE = 100

# Soft hyphen, zero-width characters, byte order mark and marks of writing direction.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_OTHER_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_ASCII_SPACES = " \t\n\v\f\r\x85"
# Control characters and surrogates.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Promotions(msgspec.Struct, frozen=True):
    """Nacelle's `promotions` (or `promotion`) object. Codes are cleaned and without duplicates."""

    coupon_codes: tuple[str, ...] = ()
    referral_code: str = ""
    loyalty_card: str = ""
    identifiers: tuple[str, ...] = ()
    meta: dict[str, Any] = {}
    codes_as_entered: Mapping[str, str] = {}
    """The cleaned code by the text as entered, in its order; "" for a malformed one."""

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes that an engine can reject: coupons, the referral code and the loyalty card."""
        return tuple(filter(None, (*self.coupon_codes, self.referral_code, self.loyalty_card)))

    @property
    def malformed(self) -> tuple[Rejection, ...]:
        """The rejections of malformed codes, which no engine is sent."""
        if all(self.codes_as_entered.values()):
            return ()
        return tuple(
            Rejection(entered, Reason.MALFORMED, "") for entered, code in self.codes_as_entered.items() if not code
        )

    def as_entered(self, rejected: Sequence[Rejection]) -> tuple[Rejection, ...]:
        """The engine's rejections and those of malformed codes, spelled and ordered as they were entered."""
        malformed = self.malformed
        if not (rejected or malformed):
            return ()
        spellings = {code: entered for entered, code in reversed([*self.codes_as_entered.items()])}
        respelled = [
            msgspec.structs.replace(rejection, code=spellings.get(rejection.code, rejection.code))
            for rejection in rejected
        ]
        place = {entered: position for position, entered in enumerate(self.codes_as_entered)}
        return tuple(sorted((*malformed, *respelled), key=lambda one: place.get(one.code, len(place))))


def clean(entered: str) -> str:
    """The code in a text as entered; "" for none."""
    if not entered.isascii():
        entered = _OTHER_SPACES.sub(" ", _INVISIBLE.sub("", entered))
    return entered.strip(_ASCII_SPACES)


def is_well_formed(code: str) -> bool:
    """Whether a cleaned text can be a code."""
    return len(code) <= MAX_CODE and not _is_forbidden(code)


def _is_forbidden(text: str) -> bool:
    """Whether the text has control characters or surrogates. Printable text, which has none, takes no pattern."""
    return not text.isprintable() and _FORBIDDEN.search(text) is not None


def as_json(entered: str) -> str | Raw:
    """The text in a form that msgspec encodes: a lone surrogate is valid JSON but not Unicode."""
    return entered if not _is_forbidden(entered) else Raw(json.dumps(entered).encode())


def read(body: Document, family: Family) -> tuple[Promotions, tuple[Path, ...]]:
    """The promotions of a body, and the paths of the objects that they were read from.

    In family C they are at the root or in the orders. An object at the root without codes hides none of the orders'.
    Raises `InvalidRequest`.
    """
    at_root = _read_object(body, (), body.decoded)
    found = [at_root]
    if family.has_orders and not (at_root and at_root[0].codes_as_entered):
        found += [_read_object(body, path, order) for path, order in family.orders(body.decoded)]
    return _merged([each for each in found if each])


def _merged(found: list[tuple[Promotions, Path]]) -> tuple[Promotions, tuple[Path, ...]]:
    """The promotions of several objects as those of one cart. Of equal members of `meta`, the first counts.

    The first path is that of the object with the note of an earlier validate, if there is one.
    """
    if len(found) <= 1:
        return (found[0][0], (found[0][1],)) if found else (Promotions(), ())
    parts = [promotions for promotions, _ in found]
    codes = tuple(dict.fromkeys(code for part in parts for code in part.coupon_codes))
    if len(codes) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", "/orders")
    entered: dict[str, str] = {}
    for part in parts:
        entered |= part.codes_as_entered
    promotions = Promotions(
        coupon_codes=codes,
        referral_code=next((part.referral_code for part in parts if part.referral_code), ""),
        loyalty_card=next((part.loyalty_card for part in parts if part.loyalty_card), ""),
        identifiers=tuple(dict.fromkeys(identifier for part in parts for identifier in part.identifiers)),
        meta={key: value for part in reversed(parts) for key, value in part.meta.items()},
        codes_as_entered=entered,
    )
    return promotions, tuple(path for _, path in sorted(found, key=lambda each: "mapper" not in each[0].meta))


def _read_object(body: Document, parent: Path, decoded: Mapping[str, Any]) -> tuple[Promotions, Path] | None:
    """The promotion object within the object at `parent`, and its path; None where there is none."""
    name = "promotion" if decoded.get("promotions") is None else "promotions"
    members = decoded.get(name)
    if members is None:
        return None
    path = (*parent, name)
    pointer = pointer_of("", *path)
    if name == "promotions" and decoded.get("promotion") is not None:
        raise InvalidRequest("The object has both promotions and promotion.", pointer_of("", *parent, "promotion"))
    if not isinstance(members, dict):
        raise InvalidRequest(f"{name} is not an object.", pointer)
    if not body.is_unicode:
        members = _as_written(body, path, members)
    coupons = [text for text in _texts(members, "coupon_codes", pointer) if clean(text)]
    if len(coupons) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", f"{pointer}/coupon_codes")
    referral, card = _text(members, "referral_code", pointer), _text(members, "loyalty_card", pointer)
    entered = {
        text: code if is_well_formed(code) else "" for text in (*coupons, referral, card) if (code := clean(text))
    }
    meta = members.get("meta")
    if meta not in (None, []) and not isinstance(meta, dict):
        raise InvalidRequest("meta is not an object.", f"{pointer}/meta")
    return Promotions(
        coupon_codes=tuple(dict.fromkeys([code for text in coupons if (code := entered[text])])),
        referral_code=entered.get(referral, ""),
        loyalty_card=entered.get(card, ""),
        identifiers=_identifiers(_texts(members, "identifiers", pointer), pointer),
        meta=value_at(body, f"{pointer}/meta") if meta else {},
        codes_as_entered=entered,
    ), path


def _identifiers(texts: list[str], pointer: str) -> tuple[str, ...]:
    identifiers: list[str] = []
    for index, text in enumerate(texts):
        if _is_forbidden(identifier := clean(text)):
            raise InvalidRequest("An identifier holds control characters.", f"{pointer}/identifiers/{index}")
        if identifier:
            identifiers.append(identifier)
    return tuple(identifiers)


def _text(members: Mapping[str, Any], key: str, pointer: str) -> str:
    text = members.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidRequest(f"{key} is not a string.", f"{pointer}/{key}")
    return text


def _texts(members: Mapping[str, Any], key: str, pointer: str) -> list[str]:
    texts = members.get(key)
    if texts is None:
        return []
    if not isinstance(texts, list):
        raise InvalidRequest(f"{key} is not an array.", f"{pointer}/{key}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"{key} holds something that is not a string.", f"{pointer}/{key}/{index}")
    return texts


def _as_written(body: Document, path: Path, members: Mapping[str, Any]) -> Mapping[str, Any]:
    """The members of the promotion object with lone surrogates, since a code that has one is malformed."""
    return {**members, **{key: body.as_written(path, key) for key in _TEXTS if _holds_texts(members.get(key))}}


def _holds_texts(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value]))
