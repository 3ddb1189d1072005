r"""JSON that is changed in some places and otherwise kept byte for byte.

Decoding and encoding alone would turn `1.10` into `1.1`, `1e3` into `1000.0` and `"\u00e9"` into `"é"`. So a `Document`
is encoded again only where that is known to give the same bytes. Otherwise `Object` and `Array` find the position of
each value in the text, and the changes are applied as edits of the text, in one pass.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec

from mapper.domain.errors import InvalidRequest

# From the end of one value to the start of the next. The text is valid JSON when these are used. Group 1 is the key.
_TO_MEMBER = re.compile(rb'[\s,{]*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*')
_TO_ITEM = re.compile(rb"[\s,]*")

# One escape of a string. Group 1 is a lone surrogate. RFC 8259 allows it, and JavaScript writes it where a text was cut
# within an emoji, but Unicode text cannot hold it.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)

# Python's recursion limit bounds the depth of a body. A body is parsed within this many extra arrays (a multiple of
# ten), so that functions further down the call stack can parse it too: those that do are less than 30 calls down.
_HEADROOM = 60

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_raw = msgspec.json.Decoder(msgspec.Raw)
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder(decimal_format="number").encode
_exact = msgspec.json.Decoder(float_hook=Decimal)

_KINDS = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("t"): "boolean", ord("f"): "boolean",
          ord("n"): "null"}  # fmt: skip


Path = tuple[str | int, ...]
"""The keys and indexes that lead from the root to a value."""

Changes = Mapping[str, Any]
"""The new members of one object by key, as `encode` takes them; None removes the member."""
NO_ITEMS: Mapping[Path, Sequence[Changes]] = {}

Edit = tuple[int, int, bytes]
"""A range of a text, [start, end), and its replacement. Edits of one text never overlap."""


class Unreadable(ValueError):
    """A value that is valid JSON but cannot be decoded, such as a number of 5,000 digits. It can be passed on."""


class Document:
    """A body, which is a JSON object. `parse` makes it; `replace` returns a changed copy of its text."""

    __slots__ = ("_roundtrips", "_visited", "decoded", "is_unicode", "root", "text")

    def __init__(self, text: bytes, sanitized: bytes, decoded: dict[str, Any], *, roundtrips: bool) -> None:
        """`sanitized`: `without_lone_surrogates(text)`. `roundtrips`: whether `encode` makes the same of `decoded`."""
        self.text = text
        self.root = Object(text, len(text) - len(text.lstrip()), len(text.rstrip()), sanitized)
        self.decoded: Mapping[str, Any] = decoded
        """The body's values. Strings and whole numbers are exact, other numbers are floats."""
        self.is_unicode = sanitized is text
        """Whether the body has no lone surrogate. `decoded` and `at` have U+FFFD in place of one."""
        self._roundtrips = roundtrips
        self._visited: dict[Path, Object | Array] = {(): self.root}

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names, numbers exact; None where there is none. Raises `Unreadable`."""
        value = at(self.decoded, pointer)
        if value is None or isinstance(value, str | int):
            return value
        if not pointer:
            return self.root.at(pointer)
        *parents, last = _tokens(pointer)
        parent = self._find(tuple(parents))
        return parent.value(last) if isinstance(parent, Object) else parent.value(_index(last))

    def raw_at(self, pointer: str) -> bytes:
        """The bytes of the value that a JSON pointer names, which must exist and not be the root."""
        *parents, last = _tokens(pointer)
        parent = self._find(tuple(parents))
        return parent.raw(last) if isinstance(parent, Object) else parent.raw(_index(last))

    def decoded_at(self, path: Path) -> Any:
        """The value in `decoded` at a path; None where there is none."""
        return _at(self.decoded, path)

    def as_written(self, path: Path, key: str) -> Any:
        """A member of the object at a path, with lone surrogates kept."""
        return json.loads(self.object(path).raw(key))

    def object(self, path: Path) -> "Object":
        """The object at a path, which must exist."""
        value = self._find(path)
        assert isinstance(value, Object), "the path leads to an object"
        return value

    def _find(self, path: Path) -> "Object | Array":
        """The object or array at a path. Kept, since the lines of a large cart share their list."""
        if path not in self._visited:
            child = self._find(path[:-1]).child(path[-1])
            assert child is not None, "the path leads to an object or an array"
            self._visited[path] = child
        return self._visited[path]

    def replace(self, changes: Mapping[Path, Changes], items: Mapping[Path, Sequence[Changes]] = NO_ITEMS) -> bytes:
        """The document's text with changed members of some objects. Every other byte is kept.

        `changes`: by the path of the object. `items`: one for each object of a list, by the path of the list. New
        members are added at the end. White space around the document is dropped.
        """
        if self._roundtrips:  # several times as fast as edits
            return encode(_changed(self.decoded, changes, items))
        of_items = {(*path, index): change for path, listed in items.items() for index, change in enumerate(listed)}
        edits: list[Edit] = []
        for path, members in {**changes, **of_items}.items():
            encoded = {key: None if value is None else encode(value) for key, value in members.items()}
            edits += self.object(path).edits(encoded)
        return _apply(self.text, edits, self.root.start, self.root.end)


def _changed(
    decoded: Mapping[str, Any], changes: Mapping[Path, Changes], items: Mapping[Path, Sequence[Changes]]
) -> dict[str, Any]:
    """A copy with the changes. Values that do not change are shared."""
    root = dict(decoded)
    copies: dict[Path, Any] = {(): root}
    for path, listed in items.items():
        parent = _copy_at(path[:-1], copies)
        parent[path[-1]] = [*map(_with, parent[path[-1]], listed)]
    for path, members in changes.items():
        changed = _copy_at(path, copies)
        changed.update(members)
        _remove(changed, members)
    return root


def _copy_at(path: Path, copies: dict[Path, Any]) -> Any:
    """The copy of the object or array at a path. It is made at the first call, within the copy of its parent."""
    if path not in copies:
        parent, token = _copy_at(path[:-1], copies), path[-1]
        parent[token] = copies[path] = parent[token].copy()
    return copies[path]


def _with(decoded: Mapping[str, Any], members: Changes) -> dict[str, Any]:
    changed = {**decoded, **members}
    if None in members.values():
        _remove(changed, members)
    return changed


def _remove(changed: dict[str, Any], members: Changes) -> None:
    for key, value in members.items():
        if value is None:
            del changed[key]


class Object:
    """A JSON object within a text. The positions of its members are found when they are needed."""

    __slots__ = ("_members", "_sanitized", "_spans", "end", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, sanitized: bytes) -> None:
        """The object is at [start, end). Values are decoded from `sanitized`, copied from `text`."""
        self.text, self.start, self.end, self._sanitized = text, start, end, sanitized
        self._members: dict[str, msgspec.Raw] | None = None
        self._spans: dict[str, tuple[int, int]] | None = None

    @property
    def members(self) -> dict[str, msgspec.Raw]:
        """The raw values by key."""
        if self._members is None:
            self._members = _members.decode(self._sanitized[self.start : self.end])
        return self._members

    def raw(self, key: str) -> bytes:
        """The bytes of a member's value; b"" where there is no such member."""
        value = self.members.get(key)
        if value is None:
            return b""
        if self._sanitized is self.text:
            return bytes(value)
        start, end = self._span(key)
        return self.text[start:end]

    def value(self, key: str) -> Any:
        """The decoded value, numbers exact (`int` or `Decimal`); None where there is no such member.

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
        return Object(self.text, *self._span(key), self._sanitized) if self.kind(key) == "object" else None

    def array(self, key: str) -> "Array | None":
        """The member as an array; None where it is absent or something else."""
        return Array(self.text, *self._span(key), self._sanitized) if self.kind(key) == "array" else None

    def child(self, token: str | int) -> "Object | Array | None":
        """The member of this name, if it is an object or an array."""
        return self.object(str(token)) or self.array(str(token))

    def _span(self, key: str) -> tuple[int, int]:
        """The range of a member's value in the text."""
        if self._spans is None:
            self._spans = self._find_spans()
        return self._spans[key]

    def _find_spans(self) -> dict[str, tuple[int, int]]:
        spans: dict[str, tuple[int, int]] = {}
        position = self.start
        for key, value in self.members.items():
            step = _TO_MEMBER.match(self.text, position)
            assert step is not None, "the decoder saw a member here"
            position = step.end() + len(memoryview(value))
            spans[key] = (step.end(), position)
        return spans

    def at(self, pointer: str) -> Any:
        """The value at a JSON pointer within this object; None where there is none. Raises `Unreadable`."""
        parent: Object | Array | None = self
        tokens = _tokens(pointer)
        if not tokens:
            return decode(self._sanitized[self.start : self.end])
        for token in tokens[:-1]:
            parent = parent.child(token) if parent is not None else None
        if isinstance(parent, Object):
            return parent.value(tokens[-1])
        return parent.value(_index(tokens[-1])) if parent is not None else None

    def edits(self, changes: Mapping[str, bytes | None]) -> list[Edit]:
        """The edits of the text that set these members and, for None, remove them. New members are added at the end."""
        if any(value is None and key in self.members for key, value in changes.items()):
            return self._edits_without(changes)
        edits = [(*self._span(key), value) for key, value in changes.items() if value and key in self.members]
        added = _added(self.members, changes, bool(self.members))
        last = _last(self.text, self.end) if self.members else self.start + 1
        return [*edits, (last, last, added)] if added else edits

    def _edits_without(self, changes: Mapping[str, bytes | None]) -> list[Edit]:
        """As `edits`, where members are removed: exactly one comma must remain between two members."""
        edits: list[Edit] = []
        first = position = self.start + 1
        kept = False
        for key, (start, end) in self._find_spans().items():
            value = changes.get(key, b"")
            if value is None and kept:
                edits.append((position, end, b""))
            elif value is not None:
                if not kept and position > first:
                    key_part = self.text[position:start].lstrip().removeprefix(b",").lstrip()
                    edits.append((first, start - len(key_part), b""))
                kept = True
                edits += [(start, end, value)] if value else []
            position = end
        if not kept:
            edits.append((first, position, b""))
        added = _added(self.members, changes, kept)
        return [*edits, (position, position, added)] if added else edits


def _apply(text: bytes, edits: Iterable[Edit], start: int, end: int) -> bytes:
    """The text from `start` to `end` with the edits applied."""
    pieces: list[bytes] = []
    position = start
    for first, last, value in sorted(edits):
        pieces += (text[position:first], value)
        position = last
    pieces.append(text[position:end])
    return b"".join(pieces)


def _last(text: bytes, end: int) -> int:
    """The end of the last member of an object that ends at `end`."""
    position = end - 1
    while text[position - 1] in b" \t\r\n":
        position -= 1
    return position


def _added(members: Mapping[str, Any], changes: Mapping[str, bytes | None], follows: bool) -> bytes:
    """The text of the new members. `follows`: whether another member precedes them."""
    new = [encode(key) + b":" + value for key, value in changes.items() if value and key not in members]
    return b"," + b",".join(new) if new and follows else b",".join(new)


class Array:
    """A JSON array within a text. The positions of its items are found when they are needed."""

    __slots__ = ("_items", "_sanitized", "end", "start", "text")

    def __init__(self, text: bytes, start: int, end: int, sanitized: bytes) -> None:
        """`sanitized`: as for `Object`."""
        self.text, self.start, self.end, self._sanitized = text, start, end, sanitized
        self._items: list[tuple[int, int]] | None = None

    @property
    def items(self) -> list[tuple[int, int]]:
        """The range of each item in the text."""
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

    def raw(self, index: int) -> bytes:
        """The bytes of an item, which must exist."""
        start, end = self.items[index]
        return self.text[start:end]

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
        """The item at this index or token of a JSON pointer, if it is an object or an array."""
        index = token if isinstance(token, int) else _index(token)
        return self.object(index) or self.array(index)

    def array(self, index: int) -> "Array | None":
        """The item as an array; None where it is absent or something else."""
        return Array(self.text, *self.items[index], self._sanitized) if self.kind(index) == "array" else None


def kind(first: int) -> str:
    """The JSON type of a value, from its first byte."""
    return _KINDS.get(first, "number")


def decode(raw: bytes) -> Any:
    """The decoded value. Numbers are exact: `int`, or `Decimal` with the same digits. Raises `Unreadable`."""
    try:
        return _exact.decode(raw)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise Unreadable("cannot be read: it is too large, too deep or no JSON") from error


def parse(body: bytes) -> Document:
    """Parses and validates a body.

    Raises `InvalidRequest` where it is not UTF-8, not JSON, nested too deeply, no object, or has duplicate keys.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}).", "", reason="not_utf8") from None
    sanitized = without_lone_surrogates(body)
    try:
        decoded, roundtrips = _read(sanitized)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", "", reason="too_deep") from None
    except _DuplicateKey:
        pointer = _duplicate_pointer(sanitized)
        raise InvalidRequest("An object has a duplicate key.", pointer, reason="duplicate_key") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", "", reason="not_json") from None
    if not isinstance(decoded, dict):
        raise InvalidRequest("The body is not a JSON object.", "", reason="not_an_object")
    return Document(body, sanitized, decoded, roundtrips=roundtrips)


def _read(sanitized: bytes) -> tuple[Any, bool]:
    """The decoded body, and whether `encode` makes the same bytes of it.

    A body that is encoded to the same bytes has no duplicate keys. For any other body, the colons are counted: each key
    has one, the decoder drops duplicate keys, and colons within strings are kept.

    Raises `_DuplicateKey`, `ValueError`, `RecursionError`.
    """
    try:
        decoded = _decode(sanitized)
        encoded = encode(_wrap(decoded))[_HEADROOM:-_HEADROOM]
    except (ValueError, ArithmeticError):  # such as a number of 5,000 digits
        return _read_exactly(sanitized), False
    if encoded == sanitized:
        return decoded, True
    escaped_colon = b"\\" in sanitized and b"\\u003" in sanitized  # \u003a
    if not escaped_colon and encoded.count(b":") == sanitized.count(b":"):
        return decoded, False
    return _read_exactly(sanitized), False


def _read_exactly(sanitized: bytes) -> Any:
    """The decoded body, which may have duplicate keys or something unusual, or be no JSON. Raises as `_read` does."""
    _raw.decode(sanitized)
    return _unwrap(_decode_with(b"[" * _HEADROOM + sanitized + b"]" * _HEADROOM, _unique, _number))


def _wrap(value: Any) -> Any:
    for _ in range(_HEADROOM // 10):
        value = ((((((((((value,),),),),),),),),),)
    return value


def _unwrap(value: Any) -> Any:
    for _ in range(_HEADROOM):
        value = value[0]
    return value


def without_lone_surrogates(body: bytes) -> bytes:
    """The body with each lone surrogate replaced by U+FFFD, which has as many bytes, so that positions are the same."""
    if b"\\" not in body or (b"\\ud" not in body and b"\\uD" not in body):
        return body
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)


def _decode_with(
    sanitized: bytes, hook: Callable[[list[tuple[str, Any]]], Any], number: Callable[[str], Any] = str
) -> Any:
    """Decodes valid JSON with Python's parser. `hook` makes the objects, `number` the numbers."""
    return json.loads(sanitized.decode(), object_pairs_hook=hook, parse_int=number, parse_float=number)


def _number(text: str) -> int | float:
    """Whole numbers as `int`, as `_decode` has them; NaN for any other number, which nobody reads."""
    return int(text) if text.isdigit() and len(text) < 20 else math.nan


class _DuplicateKey(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateKey
    return members


def _duplicate_pointer(sanitized: bytes) -> str:
    """The JSON pointer of the first duplicate key. Slow; used for error messages alone."""

    class Pairs(list[tuple[str, Any]]):
        pass

    def search(value: Any, pointer: str) -> str | None:
        if isinstance(value, Pairs):
            seen: set[str] = set()
            for key, inner in value:
                key_pointer = f"{pointer}/{escape(key)}"
                if key in seen:
                    return key_pointer
                seen.add(key)
                if (found := search(inner, key_pointer)) is not None:
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


@lru_cache(1024)
def _tokens(pointer: str) -> tuple[str, ...]:
    return tuple([token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]])


def _index(token: str) -> int:
    """The array index that a token of a JSON pointer names; -1 where it names none."""
    return int(token) if token.isascii() and token.isdigit() and len(token) < 10 else -1


def pointer_of(*place: str | int) -> str:
    """Joins a JSON pointer and further tokens: indexes, and keys that need no escape."""
    return "/".join(map(str, place))


def expand(document: Any, pointer: str) -> list[str]:
    """The pointers that a pointer with tokens `*` matches in decoded JSON. `*` matches every index of a list."""
    before, star, after = pointer.partition("/*")
    if not star or after[:1] not in ("", "/"):
        return [pointer]
    items = at(document, before)
    if not isinstance(items, list):
        return [pointer]
    return [each for position in range(len(items)) for each in expand(document, f"{before}/{position}{after}")]


def at(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer in decoded JSON; None where there is none."""
    return _at(document, _tokens(pointer))


def _at(value: Any, path: Path) -> Any:
    for token in path:
        if isinstance(value, dict):
            value = value.get(token)
        elif isinstance(value, list):
            index = token if isinstance(token, int) else _index(token)
            value = value[index] if 0 <= index < len(value) else None
        else:
            return None
    return value
