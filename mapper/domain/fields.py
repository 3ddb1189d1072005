"""Reads single values of a body: amounts, ids, listed discounts. Errors name the place as a JSON pointer."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, cast

from mapper.domain import document, money
from mapper.domain.document import Document, Object, pointer_of
from mapper.domain.errors import InvalidRequest

MAX_ID = 255
_MAX_ZEROS: Final = 12

Entry = dict[str, Any]
"""A discount as a body lists it."""


def value_at(source: Document | Object, pointer: str, parent: str = "") -> Any:
    """The value at a pointer within `source`, which is at the pointer `parent`. None where there is none."""
    try:
        return source.at(pointer)
    except document.Unreadable:
        raise InvalidRequest("The value is too large or too deep to be read.", parent + pointer) from None


def amount(value: Any, digits: int, *place: str | int) -> int:
    """The minor units of an amount. `place`: a JSON pointer and further tokens."""
    try:
        text = value if isinstance(value, str) else "" if isinstance(value, bool) else _plain(value)
        minor = money.parse(text, digits)
    except money.NotMoney as error:
        raise InvalidRequest(f"The amount {error}.", pointer_of(*place), reason="not_money") from None
    if minor < 0 or text.startswith("-"):
        raise InvalidRequest("The amount is negative.", pointer_of(*place), reason="negative_amount")
    return minor


def _plain(number: Any) -> str:
    """The number's digits. `str` writes 0.00000000 as 0E-8, which would be refused for its exponent."""
    is_long_zero = isinstance(number, Decimal) and not number and abs(number.adjusted()) <= _MAX_ZEROS
    return f"{number:f}" if is_long_zero else str(number)


def scalar_amount(source: Object, key: str, pointer: str, digits: int) -> int:
    """An amount that is a string or a JSON number. A number is read from its digits, never as a float."""
    kind = source.kind(key)
    text = source.value(key) if kind == "string" else source.raw(key).decode() if kind == "number" else None
    return amount(text, digits, pointer, key)


def entries(source: Object, key: str, pointer: str) -> list[Entry]:
    """The discounts that the object at `pointer` lists, numbers exact."""
    if len(source.raw(key)) == 2:
        return []
    listed = value_at(source, f"/{document.escape(key)}", pointer)
    for index, entry in enumerate(listed):
        if not isinstance(entry, dict):
            raise InvalidRequest("A discount is not an object.", f"{pointer}/{key}/{index}")
    return cast("list[Entry]", listed)


def entry_amount(entry: Mapping[str, Any], pointer: str, digits: int) -> int:
    value = entry.get("amount")
    if value is None:
        raise InvalidRequest("A discount has no amount.", f"{pointer}/amount")
    return amount(value, digits, f"{pointer}/amount")


def id_at(body: Document, pointer: str, *, strict: bool = False) -> str:
    """The id that a JSON pointer names: a string, or a number as it is written; "" where there is none.

    `strict`: whether a value of another type raises `InvalidRequest`, instead of being no id.
    """
    value = document.at(body.decoded, pointer)
    if value is None:
        return ""
    if not (isinstance(value, str) and body.is_unicode):
        raw = body.raw_at(pointer)
        kind = document.kind(raw[0])
        if kind not in ("string", "number"):
            if strict:
                raise InvalidRequest(f"{pointer.rpartition('/')[2]} is neither a string nor a number.", pointer)
            return ""
        value = json.loads(raw) if kind == "string" else raw.decode()
    return check_id(value.strip(), pointer)


def check_id(value: str, pointer: str) -> str:
    """Validates the id of a session or an order, which must not act as a path. Raises `InvalidRequest`."""
    if len(value) > MAX_ID:
        raise InvalidRequest(f"The id is longer than {MAX_ID} characters.", pointer)
    if value in (".", "..") or not value.isprintable():
        raise InvalidRequest("This cannot be used as an id.", pointer)
    return value
