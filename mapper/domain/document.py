r"""JSON that comes back byte for byte: find values in the text, change a few, leave every other byte alone.

Decoding and encoding again would not do: it turns `1.10` into `1.1`, `1e3` into `1000.0` and `"\u00e9"` into `"é"`. So
a document is never rebuilt. `Object` and `Array` know where each of their values stands in the text; what is to change
is a list of edits, put in place in one pass.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec

from mapper.domain.errors import InvalidRequest

# From the end of one value to the start of the next, over what stands between: a comma, a key. The text has been seen
# valid before these patterns are used, so they need only step over it. Group 1 is the key.
_TO_MEMBER = re.compile(rb'[\s,{]*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*')
_TO_ITEM = re.compile(rb"[\s,]*")

# One escape of a string. Group 1 is half a surrogate pair without its other half: RFC 8259 lets it pass, and JavaScript
# writes it when a text is cut in the middle of an emoji, but no Unicode text can hold it.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)

# How deep things may stand in each other is up to Python's recursion limit. So that whatever is read here can be read
# again from some calls further down, it is read here with this many arrays around it.
_HEADROOM = 100

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_raw = msgspec.json.Decoder(msgspec.Raw)
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder(decimal_format="number").encode
_exact = msgspec.json.Decoder(float_hook=Decimal)

_KINDS = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("t"): "boolean", ord("f"): "boolean",
          ord("n"): "null"}  # fmt: skip


Edit = tuple[int, int, bytes]
"""[start, end) of a text, and what is to stand there instead. Edits of one text never overlap."""


class Unreadable(ValueError):
    """A value that is JSON but cannot be worked with, such as a number of 5,000 digits. It can still be passed on."""


class Object:
    """One JSON object within a text: its members by key, in their order. Where each stands is looked up when needed."""

    __slots__ = ("_arrays", "_members", "_places", "end", "exact", "plain", "readable", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, readable: bytes) -> None:
        """`readable` is `text` as `_readable` makes it: values are read from it, and copied from `text`."""
        self.text, self.start, self.end, self.readable = text, start, end, readable
        self.plain: Mapping[str, Any] = {}
        """Of the whole body alone: what is in it as `parse` has read it, quick to look at. Numbers are not exact."""
        self.exact = False
        """Of the whole body alone: whether `encode` makes the very same bytes of `plain`."""
        self._arrays: dict[str, Array] = {}
        self._members: dict[str, msgspec.Raw] | None = None
        self._places: dict[str, tuple[int, int]] | None = None

    @property
    def members(self) -> dict[str, msgspec.Raw]:
        """The values by key."""
        if self._members is None:
            self._members = _members.decode(self.readable[self.start : self.end])
        return self._members

    def raw(self, key: str) -> bytes:
        """The value's own bytes; b"" where there is no such member."""
        value = self.members.get(key)
        if value is None:
            return b""
        if self.readable is self.text:
            return bytes(value)
        start, end = self._place(key)
        return self.text[start:end]

    def value(self, key: str) -> Any:
        """The value as Python objects, numbers exact (`int` or `Decimal`); None where there is no such member.

        Raises `Unreadable`.
        """
        value = self.members.get(key)
        return None if value is None else decode(bytes(value))

    def kind(self, key: str) -> str:
        """object, array, string, number, boolean or null; "" where there is no such member."""
        value = self.members.get(key)
        return "" if value is None else kind(memoryview(value)[0])

    def object(self, key: str) -> "Object | None":
        """The member as an object; None where it is absent or something else."""
        return Object(self.text, *self._place(key), self.readable) if self.kind(key) == "object" else None

    def array(self, key: str) -> "Array | None":
        """The member as an array; None where it is absent or something else."""
        if key not in self._arrays and self.kind(key) == "array":
            self._arrays[key] = Array(self.text, *self._place(key), self.readable)
        return self._arrays.get(key)

    def _place(self, key: str) -> tuple[int, int]:
        """Where the value of a member stands in the text: [start, end)."""
        if self._places is None:
            self._places = self._walk()
        return self._places[key]

    def _walk(self) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        position = self.start
        for key, value in self.members.items():
            step = _TO_MEMBER.match(self.text, position)
            assert step is not None, "the decoder saw a member here"
            position = step.end() + len(memoryview(value))
            places[key] = (step.end(), position)
        return places

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names, below this object; None where there is none. Raises `Unreadable`."""
        here: Object | Array | None = self
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
        if not tokens:
            return decode(self.readable[self.start : self.end])
        for token in tokens[:-1]:
            if isinstance(here, Object):
                here = here.object(token) or here.array(token)
            elif here is not None:
                here = here.object(_index(token)) or here.array(_index(token))
        if isinstance(here, Object):
            return here.value(tokens[-1])
        return here.value(_index(tokens[-1])) if here is not None else None

    def render(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The object's text with some members set and, for None, removed. New members go last."""
        return self.edited(self.edits(changes))

    def edited(self, edits: Iterable[Edit]) -> bytes:
        """The object's text with edits of its own and of what is in it."""
        return apply(self.text, edits, self.start, self.end)

    def edits(self, changes: Mapping[str, bytes | None]) -> list[Edit]:
        """What `render` does, as edits of the whole text."""
        if any(value is None and key in self.members for key, value in changes.items()):
            return self._edits_without(changes)
        edits = [(*self._place(key), value) for key, value in changes.items() if value and key in self.members]
        added = _added(self.members, changes, bool(self.members))
        last = _last(self.text, self.end) if self.members else self.start + 1
        return [*edits, (last, last, added)] if added else edits

    def _edits_without(self, changes: Mapping[str, bytes | None]) -> list[Edit]:
        """As `edits`, where members go: what is left must be joined by exactly one comma each."""
        edits: list[Edit] = []
        first = position = self.start + 1
        kept = False
        for key, (start, end) in self._walk().items():
            value = changes.get(key, b"")
            if value is None and kept:
                edits.append((position, end, b""))
            elif value is not None:
                if not kept and position > first:
                    lead = self.text[position:start].lstrip().removeprefix(b",").lstrip()
                    edits.append((first, start - len(lead), b""))
                kept = True
                edits += [(start, end, value)] if value else []
            position = end
        if not kept:
            edits.append((first, position, b""))
        added = _added(self.members, changes, kept)
        return [*edits, (position, position, added)] if added else edits


def apply(text: bytes, edits: Iterable[Edit], start: int, end: int) -> bytes:
    """The text from `start` to `end`, edited."""
    pieces: list[bytes] = []
    position = start
    for first, last, value in sorted(edits):
        pieces += (text[position:first], value)
        position = last
    pieces.append(text[position:end])
    return b"".join(pieces)


def _last(text: bytes, end: int) -> int:
    """Where the last member ends of an object that ends at `end` and has members."""
    position = end - 1
    while text[position - 1] in b" \t\r\n":
        position -= 1
    return position


def _added(members: Mapping[str, Any], changes: Mapping[str, bytes | None], follows: bool) -> bytes:
    """The members that are new."""
    new = [encode(key) + b":" + value for key, value in changes.items() if value and key not in members]
    return b"," + b",".join(new) if new and follows else b",".join(new)


class Array:
    """One JSON array within a text: its items. Where each stands is looked up when needed."""

    __slots__ = ("_items", "end", "readable", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, readable: bytes) -> None:
        """`readable`: as for `Object`."""
        self.text, self.start, self.end, self.readable = text, start, end, readable
        self._items: list[tuple[int, int]] | None = None

    @property
    def items(self) -> list[tuple[int, int]]:
        """[start, end) of each item."""
        if self._items is None:
            self._items = []
            position = self.start + 1
            for value in _items.decode(self.readable[self.start : self.end]):
                step = _TO_ITEM.match(self.text, position)
                assert step is not None, "this pattern matches everywhere"
                position = step.end() + len(memoryview(value))
                self._items.append((step.end(), position))
        return self._items

    def __len__(self) -> int:
        return len(self.items)

    def kind(self, index: int) -> str:
        """As `Object.kind`."""
        return kind(self.text[self.items[index][0]]) if 0 <= index < len(self.items) else ""

    def value(self, index: int) -> Any:
        """As `Object.value`; None where there is no such item."""
        if not 0 <= index < len(self.items):
            return None
        start, end = self.items[index]
        return decode(self.readable[start:end])

    def object(self, index: int) -> Object | None:
        """The item as an object; None where it is absent or something else."""
        return Object(self.text, *self.items[index], self.readable) if self.kind(index) == "object" else None

    def array(self, index: int) -> "Array | None":
        """The item as an array; None where it is absent or something else."""
        return Array(self.text, *self.items[index], self.readable) if self.kind(index) == "array" else None


def kind(first: int) -> str:
    """The JSON type of a value, from its first byte."""
    return _KINDS.get(first, "number")


def decode(raw: bytes) -> Any:
    """A value as Python objects; numbers are exact: `int`, or `Decimal` of the very digits. Raises `Unreadable`."""
    try:
        return _exact.decode(raw)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise Unreadable("cannot be read: it is too large, too deep or no JSON") from error


def parse(body: bytes) -> Object:
    """The body as an `Object`, after every check that can be made without knowing what it is about.

    Raises `InvalidRequest` for what is not UTF-8, not JSON, nested too deeply, no object, or names a key twice.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}).", "", reason="not_utf8") from None
    readable = _readable(body)
    try:
        plain, exact = _read(readable)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", "", reason="too_deep") from None
    except _Doubled:
        pointer = _place_of_double(readable)
        raise InvalidRequest("A key stands twice in one object.", pointer, reason="duplicate_key") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", "", reason="not_json") from None
    if not isinstance(plain, dict):
        raise InvalidRequest("The body is not a JSON object.", "", reason="not_an_object")
    root = Object(body, len(body) - len(body.lstrip()), len(body.rstrip()), readable)
    root.plain, root.exact = plain, exact
    return root


def _read(readable: bytes) -> tuple[Any, bool]:
    """The body as plain values, checked for keys that stand twice, and whether `encode` makes the same bytes of them.

    A body that comes out of decoder and encoder as it went in has lost nothing. For another, colons tell: each key
    brings one, a decoder drops the key that it sees again, and a colon within a string stays what it is.

    Raises `_Doubled`, `ValueError`, `RecursionError`.
    """
    with suppress(ValueError, ArithmeticError):  # such as a number of 5,000 digits
        plain = _decode(readable)
        encoded = encode(_deeper(plain))[_HEADROOM:-_HEADROOM]
        if encoded == readable:
            return plain, True
        by_number = b"\\" in readable and b"\\u003" in readable  # so may a colon be spelled
        if not by_number and encoded.count(b":") == readable.count(b":"):
            return plain, False
    # A double, or something else that is odd, or no JSON at all: these two decide, and say what is wrong.
    _raw.decode(readable)
    return _higher(_plain(b"[" * _HEADROOM + readable + b"]" * _HEADROOM, _unique, _number)), False


def _deeper(value: Any) -> Any:
    for _ in range(_HEADROOM):
        value = [value]
    return value


def _higher(value: Any) -> Any:
    for _ in range(_HEADROOM):
        value = value[0]
    return value


def _readable(body: bytes) -> bytes:
    """The body with each half of a surrogate pair that stands alone made into U+FFFD: as many bytes, but readable."""
    if b"\\" not in body or (b"\\ud" not in body and b"\\uD" not in body):
        return body
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)


def _plain(readable: bytes, hook: Callable[[list[tuple[str, Any]]], Any], number: Callable[[str], Any] = str) -> Any:
    """Valid JSON as Python's own parser reads it: objects as the hook makes them, numbers too."""
    return json.loads(readable.decode(), object_pairs_hook=hook, parse_int=number, parse_float=number)


def _number(text: str) -> int | float:
    """Like `_decode`, whole numbers are `int`; what is beyond them both is not looked at."""
    return int(text) if text.isdigit() and len(text) < 20 else math.nan


class _Doubled(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Doubled
    return found


def _place_of_double(readable: bytes) -> str:
    """The JSON pointer of the first key that stands twice. Slow, for the error message alone."""

    class Pairs(list[tuple[str, Any]]):
        pass

    def search(value: Any, pointer: str) -> str | None:
        if isinstance(value, Pairs):
            seen: set[str] = set()
            for key, inner in value:
                here = f"{pointer}/{escape(key)}"
                if key in seen:
                    return here
                seen.add(key)
                if (found := search(inner, here)) is not None:
                    return found
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                if (found := search(inner, f"{pointer}/{index}")) is not None:
                    return found
        return None

    try:
        return search(_plain(readable, Pairs), "") or ""
    except RecursionError:
        return ""


def escape(key: str) -> str:
    """A key as a token of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _index(token: str) -> int:
    """The array position that a token of a JSON pointer names; -1 where it names none."""
    return int(token) if token.isascii() and token.isdigit() and len(token) < 10 else -1


def at(document: Any, pointer: str) -> Any:
    """The value a JSON pointer names within decoded JSON; None where there is none."""
    for escaped in pointer.split("/")[1:]:
        token = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(token)
        elif isinstance(document, list) and 0 <= _index(token) < len(document):
            document = document[_index(token)]
        else:
            return None
    return document
