"""Mutated replies: each field of a good reply changed in turn, its arrays reordered, its effects repeated.

A reply is JSON, or a text with values between marks: XML, or a form.
"""

import re
from collections.abc import Callable, Container, Iterator
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from mapper.adapter import EngineReply
from mapper.sandbox.emulator import rewritten

GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "half a document": b'{"a": [1, 2',
    "HTML": b"<html>Bad Gateway</html>",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a number": b"7",
    "a string": b'"ok"',
    "an array of nulls": b"[null]",
    "a thousand brackets": b"[" * 1000,
    "another object": b'{"status": "ok", "data": [1, null]}',
}
"""Bodies that no engine gives as an answer."""

_VALUES: tuple[Any, ...] = (None, True, -1, 10**30, "", "x", [], {}, [None], {"x": 1})
_NUMBERS = (b"1e400", b"-0.005", b"0.1234567890123456789")
_TEXTS = (b"", b"x", b"-1", b"1e400", b"-0.005", b"NaN", "\u0661".encode())
_AMOUNT = re.compile(r"[0-9]+\.[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_VALUE = re.compile(rb"""(?<=[>"'=])[^\s<>"'&=][^<>"'&=]*(?=[<"'&]|\Z)""")
"""A value in a text: in quotes, between tags, or after an equals sign."""
_FIELD = re.compile(rb"""<[^<>/?]+/>|\s[\w:.-]+=(?:"[^"]*"|'[^']*')|(?:(?<=&)|(?<=\A))[^<>"'&=\s]+=[^<>&]*&?""")
"""A part of a text that may be missing: an element without content, an attribute, a field of a form."""
_DECLARATION = re.compile(rb"\A\s*<\?xml[^>]*>")
MOST_FIELDS = 40
"""The most fields that are changed in one reply; in a large one they are spread evenly."""


def mutated(reply: EngineReply) -> Iterator[tuple[str, EngineReply]]:
    """Each field of the reply removed, then replaced by other values; with the name of each change."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        yield from _mutated_text(reply)
        return
    paths = list(_paths(document, ()))
    step = max(1, len(paths) // MOST_FIELDS)
    for path in paths[::step]:
        where = "/".join(map(str, path))
        yield f"without {where}", _with_body(reply, msgspec.json.encode(_put(document, path, msgspec.UNSET)))
        for value in _VALUES:
            yield f"{where} = {value!r}", _with_body(reply, msgspec.json.encode(_put(document, path, value)))
        for number in _NUMBERS:
            body = msgspec.json.encode(_put(document, path, msgspec.Raw(number)))
            yield f"{where} = {number.decode()}", _with_body(reply, body)


def _mutated_text(reply: EngineReply) -> Iterator[tuple[str, EngineReply]]:
    for pattern, values in ((_FIELD, (b"",)), (_VALUE, _TEXTS)):
        found = _found(reply, pattern)
        for one in found[:: max(1, len(found) // MOST_FIELDS)]:
            for value in values:
                yield _change(one, value), _with_body(reply, _replaced(one, value))


def with_amounts(reply: EngineReply, change: Callable[[bytes], bytes]) -> Iterator[tuple[str, EngineReply]]:
    """Each number of the reply changed in turn, whether a JSON number or a text such as "12.50"; with its place."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        for one in _found(reply, _VALUE):
            if _NUMBER.fullmatch(one[0].decode(errors="replace")):
                other = change(one[0])
                yield _change(one, other), _with_body(reply, _replaced(one, other))
        return
    for path, value in _values(document):
        spelled: Any = None
        if isinstance(value, str):
            spelled = change(value.encode()).decode() if _NUMBER.fullmatch(value) else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            spelled = msgspec.Raw(change(msgspec.json.encode(value)))
        if spelled is not None:
            yield "/".join(map(str, path)), _with_body(reply, msgspec.json.encode(_put(document, path, spelled)))


def with_other_words(reply: EngineReply) -> Iterator[EngineReply]:
    """Each text that is no amount, each boolean and each integer of the reply, replaced in turn by another."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        for one in _found(reply, _VALUE):
            if not _AMOUNT.fullmatch(one[0].decode(errors="replace")):
                yield _with_body(reply, _replaced(one, b"x"))
        return
    for path, value in _values(document):
        other: Any
        match value:
            case bool():
                other = not value
            case int():
                other = value + 1000
            case str() if not _AMOUNT.fullmatch(value):
                other = "x"
            case _:
                continue
        yield _with_body(reply, msgspec.json.encode(_put(document, path, other)))


def with_repeated_items(reply: EngineReply) -> Iterator[tuple[str, str, EngineReply, list[EngineReply]]]:
    """Each item of a JSON array repeated: array, place, that reply, and the replies with other amounts in the item."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        return
    changed = dict(with_amounts(reply, lambda _: b"3"))
    for path, value in _values(document):
        if not isinstance(value, list):
            continue
        name = next((str(key) for key in reversed(path) if isinstance(key, str)), "")
        for place, item in enumerate(value):
            where = "/".join(map(str, (*path, place)))
            repeated = (
                _put(document, path, [*value[: place + 1], item, *value[place + 1 :]]) if path else [*value, item]
            )
            others = [other for at, other in changed.items() if at == where or at.startswith(f"{where}/")]
            yield name, where, _with_body(reply, msgspec.json.encode(repeated)), others


def with_unknown_effect(reply: EngineReply, unknown: Callable[[Any], Any]) -> EngineReply | None:
    """The reply after an emulator's `unknown_effect`; None where that changes nothing in this reply."""
    try:
        body, same = (rewritten(reply.body, change) for change in (unknown, lambda document: document))
    except UnicodeDecodeError:
        return None
    return None if body == same else msgspec.structs.replace(reply, status=200, headers={}, body=body)


def lists(reply: EngineReply) -> set[str]:
    """The names of its arrays with several items; in XML, of the elements with several children."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        root = _xml(reply)
        return set() if root is None else {one.tag for one in root.iter() if len(one) > 1}
    return set(_lists(document, ""))


def reordered(reply: EngineReply, ordered: Container[str]) -> EngineReply:
    """The reply with all arrays reversed, except those of these names, whose order has a meaning."""
    try:
        document = msgspec.json.decode(reply.body, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    except (msgspec.DecodeError, msgspec.ValidationError):
        root = _xml(reply)
        for one in () if root is None else root.iter():
            one[:] = one if one.tag in ordered else reversed(one)
        return reply if root is None else _with_body(reply, ET.tostring(root, "utf-8"))
    return _with_body(reply, msgspec.json.encode(_backwards(document, "", ordered)))


def marked(reply: EngineReply, marker: str) -> EngineReply:
    """The reply with `marker` before each of its texts."""
    try:
        document = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        body = reply.body
        for one in reversed(_found(reply, _VALUE)):
            body = b"%b%b %b" % (body[: one.start()], marker.encode(), body[one.start() :])
        return _with_body(reply, body)
    return _with_body(reply, msgspec.json.encode(_marked(document, marker)))


def with_status(reply: EngineReply, status: int) -> EngineReply:
    return msgspec.structs.replace(reply, status=status)


def _with_body(reply: EngineReply, body: bytes) -> EngineReply:
    return msgspec.structs.replace(reply, body=body)


def _found(reply: EngineReply, pattern: re.Pattern[bytes]) -> list[re.Match[bytes]]:
    """The matches in a text, after the XML declaration."""
    declared = _DECLARATION.match(reply.body)
    return list(pattern.finditer(reply.body, declared.end() if declared else 0))


def _change(found: re.Match[bytes], value: bytes) -> str:
    return f"{found[0].decode(errors='replace').strip()!r} at byte {found.start()} = {value.decode()!r}"


def _replaced(found: re.Match[bytes], value: bytes) -> bytes:
    return found.string[: found.start()] + value + found.string[found.end() :]


def _xml(reply: EngineReply) -> ET.Element | None:
    try:
        return ET.fromstring(reply.body)  # noqa: S314 - from an emulator in this process
    except ET.ParseError:
        return None


def _lists(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, list):
        if len(value) > 1:
            yield name
        for each in value:
            yield from _lists(each, name)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _lists(each, key)


def _paths(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, each in items:
        yield (*path, key)
        yield from _paths(each, (*path, key))


def _values(document: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """All values in a document, each with its path."""
    yield (), document
    for path in _paths(document, ()):
        value = document
        for key in path:
            value = value[key]
        yield path, value


def _put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with another value at a path; UNSET removes it."""
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        assert isinstance(key, int)
        put = [_put(value[key], rest, new)] if rest else [] if new is msgspec.UNSET else [new]
        return [*value[:key], *put, *value[key + 1 :]]
    if rest:
        return {**value, key: _put(value[key], rest, new)}
    return {name: each for name, each in value.items() if name != key} | ({} if new is msgspec.UNSET else {key: new})


def _backwards(value: Any, name: str, ordered: Container[str]) -> Any:
    """Numbers keep their spelling: only a `Raw` that contains other values is decoded."""
    if isinstance(value, msgspec.Raw):
        text = bytes(value).lstrip()
        if text[:1] not in (b"{", b"["):
            return value
        value = msgspec.json.decode(text, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    if isinstance(value, dict):
        return {key: _backwards(each, key, ordered) for key, each in value.items()}
    if isinstance(value, list):
        inner = [_backwards(each, name, ordered) for each in value]
        return inner if name in ordered else inner[::-1]
    return value


def _marked(value: Any, marker: str) -> Any:
    if isinstance(value, str):
        return f"{marker} {value}"
    if isinstance(value, dict):
        return {key: _marked(each, marker) for key, each in value.items()}
    if isinstance(value, list):
        return [_marked(each, marker) for each in value]
    return value
