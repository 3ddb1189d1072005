r"""JSON that comes back byte for byte: find values in the text, change a few, leave every other byte alone.

Decoding and encoding again would not do: it turns `1.10` into `1.1`, `1e3` into `1000.0` and `"\u00e9"` into `"é"`. So
a document is never rebuilt. `Object` and `Array` know where each of their values stands in the text; `render` copies
the text and puts the new values in place.
"""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import jiter
import msgspec

from mapper.errors import InvalidRequest

# From the end of one value to the start of the next, over what stands between: a comma, a key. The text has been seen
# valid before these patterns are used, so they need only step over it. Group 1 is the key.
_TO_MEMBER = re.compile(rb'[\s,{]*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*')
_COLON = re.compile(rb"\s*:\s*")
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
_exact = msgspec.json.Decoder(float_hook=Decimal)

_KINDS = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("t"): "boolean", ord("f"): "boolean",
          ord("n"): "null"}  # fmt: skip


class Unreadable(ValueError):
    """A value that is JSON but cannot be worked with, such as a number of 5,000 digits. It can still be passed on."""


class Object:
    """One JSON object within a text: its members by key, in their order. Where each stands is looked up when needed."""

    __slots__ = ("_places", "end", "members", "readable", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, readable: bytes) -> None:
        """`readable` is `text` as `_readable` makes it: values are read from it, and copied from `text`."""
        self.text, self.start, self.end, self.readable = text, start, end, readable
        self.members: dict[str, msgspec.Raw] = _members.decode(readable[start:end])
        self._places: dict[str, tuple[int, int]] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self.members

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
        return Array(self.text, *self._place(key), self.readable) if self.kind(key) == "array" else None

    def _place(self, key: str) -> tuple[int, int]:
        """Where the value of a member stands in the text: [start, end)."""
        if self._places is None:
            spelled = b'"' + key.encode() + b'"'
            at = self.text.find(spelled, self.start, self.end)
            once = at >= 0 and self.text.find(spelled, at + 1, self.end) < 0
            # What stands there once is the member's key, unless the key is spelled with \\u and this stands elsewhere.
            if once and self.text.find(b"\\u", self.start, self.end) < 0:
                colon = _COLON.match(self.text, at + len(spelled))
                if colon is not None:
                    return colon.end(), colon.end() + len(memoryview(self.members[key]))
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
        if any(value is None and key in self.members for key, value in changes.items()):
            return self._render_without(changes)
        pieces: list[bytes] = []
        position = self.start
        for start, end, key in sorted((*self._place(key), key) for key in changes if key in self.members):
            pieces += [self.text[position:start], changes[key] or b""]
            position = end
        last = max(position, self._last())
        pieces += [self.text[position:last], *self._added(changes, bool(self.members)), self.text[last : self.end]]
        return b"".join(pieces)

    def _last(self) -> int:
        """Where the last member ends, or, without members, where the first would begin."""
        if not self.members:
            return self.start + 1
        position = self.end - 1
        while self.text[position - 1] in b" \t\r\n":
            position -= 1
        return position

    def _render_without(self, changes: Mapping[str, bytes | None]) -> bytes:
        """As `render`, where members go: what is left must be joined by exactly one comma each."""
        kept: list[bytes] = []
        position = self.start + 1
        for key, (start, end) in self._walk().items():
            value = changes.get(key, self.text[start:end])
            if value is not None:
                lead = self.text[position:start]
                if not kept and position > self.start + 1:
                    lead = lead.lstrip().removeprefix(b",").lstrip()
                kept.append(lead + value)
            position = end
        added = self._added(changes, bool(kept))
        return b"".join([b"{", *kept, *added, self.text[position : self.end]])

    def _added(self, changes: Mapping[str, bytes | None], follows: bool) -> list[bytes]:
        pieces: list[bytes] = []
        for key, value in changes.items():
            if key not in self.members and value is not None:
                pieces += [b"," if follows else b"", msgspec.json.encode(key), b":", value]
                follows = True
        return pieces


class Array:
    """One JSON array within a text: its items, each with its place."""

    __slots__ = ("end", "items", "readable", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, readable: bytes) -> None:
        """`readable`: as for `Object`."""
        self.text, self.start, self.end, self.readable = text, start, end, readable
        self.items: list[tuple[int, int]] = []
        """[start, end) of each item."""
        position = start + 1
        for value in _items.decode(readable[start:end]):
            step = _TO_ITEM.match(text, position)
            assert step is not None, "this pattern matches everywhere"
            position = step.end() + len(memoryview(value))
            self.items.append((step.end(), position))

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

    def render(self, changes: Mapping[int, bytes]) -> bytes:
        """The array's text with some items replaced."""
        pieces: list[bytes] = []
        position = self.start
        for index in sorted(changes):
            start, end = self.items[index]
            pieces += [self.text[position:start], changes[index]]
            position = end
        pieces.append(self.text[position : self.end])
        return b"".join(pieces)


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
        try:
            jiter.from_json(readable, catch_duplicate_keys=True, allow_inf_nan=False, float_mode="lossless-float")
        except ValueError:
            # Not for good: this one reads no number of 5,000 digits. The next two decide, and say what is wrong.
            _raw.decode(readable)
            _plain(b"[" * _HEADROOM + readable + b"]" * _HEADROOM, _unique)
        start = len(body) - len(body.lstrip())
        if body[start : start + 1] != b"{":
            raise InvalidRequest("The body is not a JSON object.", "", reason="not_an_object")
        return Object(body, start, len(body.rstrip()), readable)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", "", reason="too_deep") from None
    except _Doubled:
        pointer = _place_of_double(readable)
        raise InvalidRequest("A key stands twice in one object.", pointer, reason="duplicate_key") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", "", reason="not_json") from None


def _readable(body: bytes) -> bytes:
    """The body with each half of a surrogate pair that stands alone made into U+FFFD: as many bytes, but readable."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)


def _plain(readable: bytes, hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """Valid JSON as Python's own parser reads it: numbers as they are spelled, objects as the hook makes them."""
    return json.loads(readable.decode(), object_pairs_hook=hook, parse_int=str, parse_float=str)


class _Doubled(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) != len({key for key, _ in pairs}):
        raise _Doubled


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
