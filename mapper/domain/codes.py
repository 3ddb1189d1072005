"""What a shopper types or pastes: cleaned for the engine, kept as it was entered for whoever reads an answer."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from mapper.domain.document import Document, Path
from mapper.domain.errors import InvalidRequest
from mapper.domain.families import Family
from mapper.domain.fields import value_at
from mapper.domain.outcome import Rejection
from mapper.domain.reasons import Reason

MAX_CODES = 100
MAX_CODE = 100

# Soft hyphen, zero-width characters and joiners, byte order mark, and marks for the direction of writing.
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_OTHER_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_WHITE = " \t\n\v\f\r\x85"
# Control characters, and halves of surrogate pairs.
_IMPOSSIBLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Promotions:
    """What the shopper brings: Nacelle's `promotions` (or `promotion`) object. Codes are clean, each is there once."""

    coupon_codes: tuple[str, ...] = ()
    referral_code: str = ""
    loyalty_card: str = ""
    identifiers: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    codes_as_entered: Mapping[str, str] = field(default_factory=dict)
    """What was entered, in its order, and the code that it is; "" for what can be no code."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Everything the shopper entered that an engine can refuse."""
        return tuple(filter(None, (*self.coupon_codes, self.referral_code, self.loyalty_card)))

    @property
    def malformed(self) -> tuple[Rejection, ...]:
        """Refusals of what can be no code, which no engine is asked for."""
        return tuple(
            Rejection(entered, Reason.MALFORMED, "") for entered, code in self.codes_as_entered.items() if not code
        )

    def as_entered(self, rejected: Iterable[Rejection]) -> tuple[Rejection, ...]:
        """An engine's refusals and our own, the codes spelled and ordered as they were entered."""
        spelled = {code: entered for entered, code in reversed([*self.codes_as_entered.items()])}
        engines = [
            msgspec.structs.replace(one, code=spelled[one.code]) if one.code in spelled else one for one in rejected
        ]
        place = {entered: position for position, entered in enumerate(self.codes_as_entered)}
        return tuple(sorted((*self.malformed, *engines), key=lambda one: place.get(one.code, len(place))))


def clean(entered: str) -> str:
    """The code that somebody means by a text (CONTRACT section 3); "" for none."""
    if not entered.isascii():
        entered = _OTHER_SPACES.sub(" ", _UNSEEN.sub("", entered))
    return entered.strip(_WHITE)


def is_possible(code: str) -> bool:
    """Whether a clean text can be a code at all."""
    return len(code) <= MAX_CODE and (code.isprintable() or _IMPOSSIBLE.search(code) is None)


def as_json(entered: str) -> str | Raw:
    """A text as it can be encoded: half a surrogate pair is JSON, but no Unicode."""
    return entered if _IMPOSSIBLE.search(entered) is None else Raw(json.dumps(entered).encode())


def read(body: Document, family: Family) -> tuple[Promotions, Path]:
    """The promotions of a body, and the path of the object that notes are written to; () where it has none.

    Raises `InvalidRequest`.
    """
    found = _read_object(body, (), body.decoded)
    if found is None and family.has_orders:
        return _of_orders(
            [part for path, order in family.orders(body.decoded) if (part := _read_object(body, path, order))]
        )
    return found or (Promotions(), ())


def _of_orders(parts: list[tuple[Promotions, Path]]) -> tuple[Promotions, Path]:
    """Promotions by order: it is one cart, so they are taken together; notes go to the first."""
    if not parts:
        return Promotions(), ()
    given = [part for part, _ in parts]
    codes = tuple(dict.fromkeys(code for part in given for code in part.coupon_codes))
    if len(codes) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", "/orders")
    entered: dict[str, str] = {}
    for part in given:
        entered |= part.codes_as_entered
    return Promotions(
        coupon_codes=codes,
        referral_code=next((part.referral_code for part in given if part.referral_code), ""),
        loyalty_card=next((part.loyalty_card for part in given if part.loyalty_card), ""),
        identifiers=tuple(dict.fromkeys(one for part in given for one in part.identifiers)),
        meta=given[0].meta,
        codes_as_entered=entered,
    ), parts[0][1]


def _read_object(body: Document, above: Path, decoded: Mapping[str, Any]) -> tuple[Promotions, Path] | None:
    """The promotions of the object at a path."""
    names = [key for key in ("promotions", "promotion") if decoded.get(key) is not None]
    if not names:
        return None
    (name, *others), pointer = names, "".join(f"/{key}" for key in above)
    if others:
        raise InvalidRequest("Both promotions and promotion stand here.", f"{pointer}/promotion")
    path, here, found = (*above, name), f"{pointer}/{name}", decoded[name]
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} is not an object.", here)
    coupons = [text for text in _texts(body, path, found, "coupon_codes", here) if clean(text)]
    if len(coupons) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", f"{here}/coupon_codes")
    referral, card = _text(body, path, found, "referral_code", here), _text(body, path, found, "loyalty_card", here)
    texts = [text for text in (*coupons, referral, card) if clean(text)]
    entered = {text: code if is_possible(code := clean(text)) else "" for text in texts}
    meta = found.get("meta")
    if meta not in (None, []) and not isinstance(meta, dict):
        raise InvalidRequest("meta is not an object.", f"{here}/meta")
    return Promotions(
        coupon_codes=tuple(dict.fromkeys(filter(None, [entered[text] for text in coupons]))),
        referral_code=entered.get(referral, ""),
        loyalty_card=entered.get(card, ""),
        identifiers=_identifiers(_texts(body, path, found, "identifiers", here), here),
        meta=value_at(body, f"{here}/meta") if meta else {},
        codes_as_entered=entered,
    ), path


def _identifiers(texts: list[str], pointer: str) -> tuple[str, ...]:
    cleaned = [clean(text) for text in texts]
    for index, text in enumerate(cleaned):
        if _IMPOSSIBLE.search(text):
            raise InvalidRequest("An identifier holds control characters.", f"{pointer}/identifiers/{index}")
    return tuple(filter(None, cleaned))


def _text(body: Document, path: Path, found: Mapping[str, Any], key: str, pointer: str) -> str:
    text = _member(body, path, found, key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidRequest(f"{key} is not a string.", f"{pointer}/{key}")
    return text


def _texts(body: Document, path: Path, found: Mapping[str, Any], key: str, pointer: str) -> list[str]:
    texts = _member(body, path, found, key)
    if texts is None:
        return []
    if not isinstance(texts, list):
        raise InvalidRequest(f"{key} is not an array.", f"{pointer}/{key}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"{key} holds something that is not a string.", f"{pointer}/{key}/{index}")
    return texts


def _member(body: Document, path: Path, found: Mapping[str, Any], key: str) -> Any:
    """A member of the promotions at a path; texts as they were written, since what is no Unicode is no code."""
    value = found.get(key)
    texts = value if isinstance(value, list) else [value]
    if body.is_unicode or not all(isinstance(text, str) for text in texts):
        return value
    return body.as_written(path, key)
