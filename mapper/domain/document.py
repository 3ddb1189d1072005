r"""JSON that comes back byte for byte: find values in the text, change a few, leave every other byte alone.

Decoding and encoding again would not do: it turns `1.10` into `1.1`, `1e3` into `1000.0` and `"\u00e9"` into `"é"`. So
a `Document` is rebuilt only where that is known to give the same bytes. Elsewhere `Object` and `Array` know where each
of their values stands in the text, and what is to change is a list of edits, put in place in one pass.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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


Path = tuple[str | int, ...]
"""The keys and positions that lead from the root to a value."""

Changes = Mapping[str, Any]
"""Members of one object by key: what is to stand there, as `encode` takes it, or None for what is to go."""
NO_ITEMS: Mapping[Path, Sequence[Changes]] = {}

Edit = tuple[int, int, bytes]
"""[start, end) of a text, and what is to stand there instead. Edits of one text never overlap."""


class Unreadable(ValueError):
    """A value that is JSON but cannot be worked with, such as a number of 5,000 digits. It can still be passed on."""


class Document:
    """A whole body, which is a JSON object. `parse` makes it; `replace` is the one way to change it."""

    __slots__ = ("_found", "_roundtrips", "decoded", "is_unicode", "root", "text")

    def __init__(self, text: bytes, sanitized: bytes, decoded: dict[str, Any], *, roundtrips: bool) -> None:
        """`sanitized`: `text` made Unicode. `roundtrips`: `encode` makes the very same bytes of `decoded`."""
        self.text = text
        self.root = Object(text, len(text) - len(text.lstrip()), len(text.rstrip()), sanitized)
        self.decoded: Mapping[str, Any] = decoded
        """What is in it, quick to look at. Texts and whole numbers are exact, other numbers are not."""
        self.is_unicode = sanitized is text
        """Whether all its texts are: else some hold half a surrogate pair, which `decoded` and `at` have as U+FFFD."""
        self._roundtrips = roundtrips
        self._found: dict[Path, Object | Array] = {(): self.root}

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names, numbers exact; None where there is none. Raises `Unreadable`."""
        found = at(self.decoded, pointer)
        if found is None or isinstance(found, str | int):
            return found
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
        if not tokens:
            return self.root.at(pointer)
        # By way of what has been found before: the lines of a large cart are all in one list.
        above = self._find(tuple(tokens[:-1]))
        return above.value(tokens[-1]) if isinstance(above, Object) else above.value(_index(tokens[-1]))

    def decoded_at(self, path: Path) -> Any:
        """The value at a path as `decoded` has it; None where there is none."""
        return at(self.decoded, "".join(f"/{escape(str(token))}" for token in path))

    def as_written(self, path: Path, key: str) -> Any:
        """A member of the object at a path, where halves of surrogate pairs that stand alone are what they were."""
        return json.loads(self.object(path).raw(key))

    def object(self, path: Path) -> "Object":
        """The object that a path leads to, in the text. There must be one."""
        found = self._find(path)
        assert isinstance(found, Object), "the path leads to an object"
        return found

    def _find(self, path: Path) -> "Object | Array":
        if path not in self._found:
            above, token = self._find(path[:-1]), path[-1]
            found = above.child(token)
            assert found is not None, "the path leads to an object or an array"
            self._found[path] = found
        return self._found[path]

    def replace(self, changes: Mapping[Path, Changes], items: Mapping[Path, Sequence[Changes]] = NO_ITEMS) -> bytes:
        """The document with members of some objects set and, for None, removed; every other byte as it came.

        `changes`: by the object's path. `items`: for each object of a list, by the list's path. New members go last.
        White space around the document goes.
        """
        if self._roundtrips:
            # Several times as fast as to look for each place in the text.
            return encode(_changed(self.decoded, changes, items))
        each = {(*path, index): change for path, listed in items.items() for index, change in enumerate(listed)}
        edits: list[Edit] = []
        for path, members in {**changes, **each}.items():
            spelled = {key: None if value is None else encode(value) for key, value in members.items()}
            edits += self.object(path).edits(spelled)
        return _apply(self.text, edits, self.root.start, self.root.end)


def _changed(
    decoded: Mapping[str, Any], changes: Mapping[Path, Changes], items: Mapping[Path, Sequence[Changes]]
) -> dict[str, Any]:
    """Changed copies of what changes, within a copy of the whole; what does not change is shared."""
    root = dict(decoded)
    copies: dict[Path, Any] = {(): root}

    def copy_at(path: Path) -> Any:
        if path not in copies:
            above, token = copy_at(path[:-1]), path[-1]
            above[token] = copies[path] = above[token].copy()
        return copies[path]

    for path, listed in items.items():
        copy_at(path[:-1])[path[-1]] = [*map(_with, copy_at(path[:-1])[path[-1]], listed)]
    for path, members in changes.items():
        here = copy_at(path)
        here.update(members)
        _drop(here, members)
    return root


def _with(decoded: Mapping[str, Any], members: Changes) -> dict[str, Any]:
    changed = {**decoded, **members}
    _drop(changed, members)
    return changed


def _drop(changed: dict[str, Any], members: Changes) -> None:
    if None in members.values():
        for key, value in members.items():
            if value is None:
                del changed[key]


class Object:
    """One JSON object within a text: its members by key, in their order. Where each stands is looked up when needed."""

    __slots__ = ("_members", "_places", "_sanitized", "end", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, sanitized: bytes) -> None:
        """`sanitized` is `text` as `_sanitized` makes it: values are read from it, and copied from `text`."""
        self.text, self.start, self.end, self._sanitized = text, start, end, sanitized
        self._members: dict[str, msgspec.Raw] | None = None
        self._places: dict[str, tuple[int, int]] | None = None

    @property
    def members(self) -> dict[str, msgspec.Raw]:
        """The values by key."""
        if self._members is None:
            self._members = _members.decode(self._sanitized[self.start : self.end])
        return self._members

    def raw(self, key: str) -> bytes:
        """The value's own bytes; b"" where there is no such member."""
        value = self.members.get(key)
        if value is None:
            return b""
        if self._sanitized is self.text:
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
        return Object(self.text, *self._place(key), self._sanitized) if self.kind(key) == "object" else None

    def array(self, key: str) -> "Array | None":
        """The member as an array; None where it is absent or something else."""
        return Array(self.text, *self._place(key), self._sanitized) if self.kind(key) == "array" else None

    def child(self, token: str | int) -> "Object | Array | None":
        """The member of this name, where it is an object or an array."""
        return self.object(str(token)) or self.array(str(token))

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
            return decode(self._sanitized[self.start : self.end])
        for token in tokens[:-1]:
            here = here.child(token) if here is not None else None
        if isinstance(here, Object):
            return here.value(tokens[-1])
        return here.value(_index(tokens[-1])) if here is not None else None

    def edits(self, changes: Mapping[str, bytes | None]) -> list[Edit]:
        """What sets some members and, for None, removes them, as edits of the whole text. New members go last."""
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


def _apply(text: bytes, edits: Iterable[Edit], start: int, end: int) -> bytes:
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

    __slots__ = ("_items", "_sanitized", "end", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, sanitized: bytes) -> None:
        """`sanitized`: as for `Object`."""
        self.text, self.start, self.end, self._sanitized = text, start, end, sanitized
        self._items: list[tuple[int, int]] | None = None

    @property
    def items(self) -> list[tuple[int, int]]:
        """[start, end) of each item."""
        if self._items is None:
            self._items = []
            position = self.start + 1
            for value in _items.decode(self._sanitized[self.start : self.end]):
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
        return decode(self._sanitized[start:end])

    def object(self, index: int) -> Object | None:
        """The item as an object; None where it is absent or something else."""
        return Object(self.text, *self.items[index], self._sanitized) if self.kind(index) == "object" else None

    def child(self, token: str | int) -> "Object | Array | None":
        """The item at this position (or token of a JSON pointer), where it is an object or an array."""
        index = token if isinstance(token, int) else _index(token)
        return self.object(index) or self.array(index)

    def array(self, index: int) -> "Array | None":
        """The item as an array; None where it is absent or something else."""
        return Array(self.text, *self.items[index], self._sanitized) if self.kind(index) == "array" else None


def kind(first: int) -> str:
    """The JSON type of a value, from its first byte."""
    return _KINDS.get(first, "number")


def decode(raw: bytes) -> Any:
    """A value as Python objects; numbers are exact: `int`, or `Decimal` of the very digits. Raises `Unreadable`."""
    try:
        return _exact.decode(raw)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise Unreadable("cannot be read: it is too large, too deep or no JSON") from error


def parse(body: bytes) -> Document:
    """The body as a `Document`, after every check that can be made without knowing what it is about.

    Raises `InvalidRequest` for what is not UTF-8, not JSON, nested too deeply, no object, or names a key twice.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}).", "", reason="not_utf8") from None
    sanitized = _sanitized(body)
    try:
        decoded, roundtrips = _read(sanitized)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", "", reason="too_deep") from None
    except _Doubled:
        pointer = _place_of_double(sanitized)
        raise InvalidRequest("A key stands twice in one object.", pointer, reason="duplicate_key") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", "", reason="not_json") from None
    if not isinstance(decoded, dict):
        raise InvalidRequest("The body is not a JSON object.", "", reason="not_an_object")
    return Document(body, sanitized, decoded, roundtrips=roundtrips)


def _read(sanitized: bytes) -> tuple[Any, bool]:
    """The body decoded, checked for keys that stand twice, and whether `encode` makes the same bytes of them.

    A body that comes out of decoder and encoder as it went in has lost nothing. For another, colons tell: each key
    brings one, a decoder drops the key that it sees again, and a colon within a string stays what it is.

    Raises `_Doubled`, `ValueError`, `RecursionError`.
    """
    with suppress(ValueError, ArithmeticError):  # such as a number of 5,000 digits
        decoded = _decode(sanitized)
        encoded = encode(_deeper(decoded))[_HEADROOM:-_HEADROOM]
        if encoded == sanitized:
            return decoded, True
        by_number = b"\\" in sanitized and b"\\u003" in sanitized  # so may a colon be spelled
        if not by_number and encoded.count(b":") == sanitized.count(b":"):
            return decoded, False
    # A double, or something else that is unusual, or no JSON at all: these two decide, and say what is wrong.
    _raw.decode(sanitized)
    return _higher(_decode_with(b"[" * _HEADROOM + sanitized + b"]" * _HEADROOM, _unique, _number)), False


def _deeper(value: Any) -> Any:
    for _ in range(_HEADROOM):
        value = [value]
    return value


def _higher(value: Any) -> Any:
    for _ in range(_HEADROOM):
        value = value[0]
    return value


def _sanitized(body: bytes) -> bytes:
    """The body with each half of a surrogate pair that stands alone made into U+FFFD: as many bytes, and Unicode."""
    if b"\\" not in body or (b"\\ud" not in body and b"\\uD" not in body):
        return body
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)


def _decode_with(
    sanitized: bytes, hook: Callable[[list[tuple[str, Any]]], Any], number: Callable[[str], Any] = str
) -> Any:
    """Valid JSON as Python's own parser reads it: objects as the hook makes them, numbers too."""
    return json.loads(sanitized.decode(), object_pairs_hook=hook, parse_int=number, parse_float=number)


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


def _place_of_double(sanitized: bytes) -> str:
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
        return search(_decode_with(sanitized, Pairs), "") or ""
    except RecursionError:
        return ""


def escape(key: str) -> str:
    """A key as a token of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _index(token: str) -> int:
    """The array position that a token of a JSON pointer names; -1 where it names none."""
    return int(token) if token.isascii() and token.isdigit() and len(token) < 10 else -1


def pointer_of(*place: str | int) -> str:
    """A JSON pointer, and what follows it: keys that need no escape, and positions."""
    return "/".join(map(str, place))


def expand(document: Any, pointer: str) -> list[str]:
    """The pointers that a pointer stands for within decoded JSON, where `*` stands for every position of a list."""
    before, star, after = pointer.partition("/*")
    if not star or after[:1] not in ("", "/"):
        return [pointer]
    found = at(document, before)
    if not isinstance(found, list):
        return [pointer]
    return [each for position in range(len(found)) for each in expand(document, f"{before}/{position}{after}")]


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
