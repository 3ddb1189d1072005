"""Reads single values of a body: amounts, ids, listed discounts. Errors name the place as a JSON pointer."""

from collections.abc import Mapping
from typing import Any, cast

from mapper.domain import document, money
from mapper.domain.document import Document, Object, pointer_of
from mapper.domain.errors import InvalidRequest

MAX_ID = 255

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
        text = value if isinstance(value, str) else "" if isinstance(value, bool) else str(value)
        minor = money.parse(text, digits)
    except money.NotMoney as error:
        raise InvalidRequest(f"The amount {error}.", pointer_of(*place), reason="not_money") from None
    if minor < 0 or text.startswith("-"):
        raise InvalidRequest("The amount is negative.", pointer_of(*place), reason="negative_amount")
    return minor


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


def own_id(body: Document, key: str) -> str:
    """The body's `id` or `source_id`; "" where it has none. The number 77 is "77"."""
    value = body.decoded.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        if body.root.kind(key) != "number":
            raise InvalidRequest(f"{key} is not a string.", f"/{key}")
        value = body.root.raw(key).decode()
    elif not body.is_unicode:
        value = body.as_written((), key)
    return check_id(value.strip(), f"/{key}")


def id_at(body: Document, pointer: str) -> str:
    """The id that a JSON pointer names; "" where there is none. Raises `InvalidRequest`."""
    value = value_at(body, pointer)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return check_id(str(value).strip(), pointer)
    return ""


def check_id(value: str, pointer: str) -> str:
    """Validates the id of a session or an order, which must not act as a path. Raises `InvalidRequest`."""
    if len(value) > MAX_ID:
        raise InvalidRequest(f"The id is longer than {MAX_ID} characters.", pointer)
    if value in (".", "..") or not value.isprintable():
        raise InvalidRequest("This cannot be used as an id.", pointer)
    return value
