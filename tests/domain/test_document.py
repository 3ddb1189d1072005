"""Any JSON is kept byte for byte; anything else is refused."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from mapper.domain import document
from mapper.domain.errors import InvalidRequest

samples = settings(max_examples=40, deadline=None)  # generating them takes the time; a thousand found no more


# -- Random JSON, in any spelling ------------------------------------------------------------------------------------

SPACE = st.sampled_from(["", "", " ", "\t", "\r\n  "])
CHARACTERS = [
    *("a", "0", " ", "é", "😀", "\x7f", "\u2028", "\ufeff", "/", "~", "{", "}", "[", "]", ",", ":", "'", "#"),
    *('\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"),
    *(
        "\\u0000",
        "\\u0061",
        "\\u00e9",
        "\\u00E9",
        "\\u0022",
        "\\u003a",
        "\\u003A",
        "\\u005c",
        "\\ud83d\\ude00",
        "\\uD83D\\uDE00",
        "\\uffff",
    ),
]
NUMBERS = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", "-"]),
    st.sampled_from(["0", "1", "10", "140", "9007199254740993", "12345678901234567890123456789"]),
    st.sampled_from(["", ".0", ".10", ".00", ".005", ".1234567890123456789"]),
    st.sampled_from(["", "e0", "E2", "e+3", "E-03", "e400"]),
)


def strings() -> st.SearchStrategy[str]:
    """A string's text, each character in one of its JSON spellings."""
    return st.lists(st.sampled_from(CHARACTERS), max_size=3).map(lambda characters: f'"{"".join(characters)}"')


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(strings(), max_size=4, unique_by=json.loads))
    members = [f"{draw(SPACE)}{key}{draw(SPACE)}:{draw(SPACE)}{draw(values)}{draw(SPACE)}" for key in keys]
    return "{" + (",".join(members) or draw(SPACE)) + "}"


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = [f"{draw(SPACE)}{value}{draw(SPACE)}" for value in draw(st.lists(values, max_size=3))]
    return "[" + (",".join(items) or draw(SPACE)) + "]"


SCALARS = st.one_of(strings(), NUMBERS, st.sampled_from(["true", "false", "null"]))
VALUES = st.recursive(SCALARS, lambda values: objects(values) | arrays(values), max_leaves=6)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    return f"{draw(SPACE)}{draw(objects(VALUES))}{draw(SPACE)}".encode()


def pieces(text: bytes) -> list[tuple[str, bytes, bytes]]:
    """The members of an object by another reader than ours: (key, the text before the value, the value).

    The last piece is the text after the last value. Joined, the pieces are the whole text.
    """
    whole = text.decode()
    found: list[tuple[str, bytes, bytes]] = []
    decoder = json.JSONDecoder(strict=True)
    position = done = whole.index("{") + 1
    lead_from = 0
    while (position := _skip(whole, done)) < len(whole) and whole[position] != "}":
        key, position = decoder.raw_decode(whole, position)
        position = _skip(whole, _skip(whole, position) + 1)
        _, done = decoder.raw_decode(whole, position)
        found.append((key, whole[lead_from:position].encode(), whole[position:done].encode()))
        lead_from = done
        done = _skip(whole, done)
        done += whole[done] == ","
    return [*found, ("", whole[lead_from:].encode(), b"")]


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def exact(value: Any) -> Any:
    """Decoded JSON, such that 1, 1.0, 1.10 and true all differ."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return (type(value).__name__, str(value))


# -- Reading ---------------------------------------------------------------------------------------------------------


@samples
@given(bodies())
def test_every_member_is_found_with_its_text(body: bytes) -> None:
    found = document.parse(body)
    *members, _ = pieces(body)
    assert [(key, found.root.raw(key)) for key in found.root.members] == [(key, value) for key, _, value in members]
    plain = json.loads(body, parse_int=lambda digits: int(digits), parse_float=Decimal)  # noqa: PLW0108 - int itself would be passed by
    assert exact({key: found.root.value(key) for key in found.root.members}) == exact(plain)


@samples
@given(bodies())
def test_objects_and_arrays_are_found_at_any_depth(body: bytes) -> None:
    def compare(inside: document.Object | document.Array, plain: Any) -> None:
        places: Any = plain if isinstance(plain, dict) else range(len(plain))
        for place in places:
            key: Any = place
            kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
            assert inside.kind(key) == kinds.get(type(plain[place]), "number")
            inner = inside.object(key) or inside.array(key)
            assert (inner is not None) == isinstance(plain[place], dict | list)
            if inner is not None:
                compare(inner, plain[place])
            assert exact(inside.value(key)) == exact(plain[place])

    compare(document.parse(body).root, json.loads(body, parse_float=Decimal))


@samples
@given(bodies())
def test_decoded_body_equals_json_except_for_odd_numbers(body: bytes) -> None:
    def usual(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: usual(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [usual(inner) for inner in value]
        return value if type(value) is not float and (type(value) is not int or 0 < value < 10**19) else "odd"

    assert usual(document.parse(body).decoded) == usual(json.loads(body))


@samples
@given(bodies(), st.data())
def test_both_ways_of_writing_give_the_same_bytes(body: bytes, data: st.DataObject) -> None:
    """A body that the encoder reproduces is encoded again, any other is edited in place."""
    close_set = document.encode(document.parse(body).decoded)
    spaced = document.parse(close_set[:-1] + b" }")
    paths: list[document.Path] = [(), *places(spaced.decoded)]
    chosen = data.draw(st.lists(st.sampled_from(paths), max_size=3, unique=True))
    changes = {path: data.draw(st.dictionaries(st.sampled_from("ab/"), st.integers() | st.none())) for path in chosen}
    changes = {
        path: {k: v for k, v in members.items() if v is not None or k in members_at(spaced.decoded, path)}
        for path, members in changes.items()
    }
    apart = {
        path: {k: v for k, v in members.items() if (*path, k) not in prefixes(chosen)}
        for path, members in changes.items()
    }
    dense = document.parse(close_set)
    assert json.loads(dense.replace(apart)) == json.loads(spaced.replace(apart))
    assert dense.replace(apart) == spaced.replace(apart).replace(b" }", b"}")


def places(value: Any, path: document.Path = ()) -> list[document.Path]:
    """The paths of all objects within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        found
        for key, each in inner
        for found in [*([(*path, key)] if isinstance(each, dict) else []), *places(each, (*path, key))]
    ]


def members_at(value: Any, path: document.Path) -> Any:
    for token in path:
        value = value[token]
    return value


def prefixes(paths: list[document.Path]) -> set[document.Path]:
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


@pytest.mark.parametrize(
    ("body", "roundtrips"),
    [
        ('{"a":1,"b":[1,-2.5,true,null,"x:y",{"é":"\\n"}],"c":{}}', True),
        ('{"a" :1}', False),
        ('{"a": 1}', False),
        ('{"a":1}\n', False),
        ('{"a":1.10}', False),
        ('{"a":1e3}', False),
        ('{"\\u0061":1}', False),
        ('{"a":"\\u00e9"}', False),
        ('{"a":"\\/"}', False),
        ('{"a":"\\ud800"}', False),
        ('{"a":' + "1" * 5000 + "}", False),
    ],
)
def test_body_is_encoded_again_only_if_it_roundtrips(body: str, roundtrips: bool) -> None:
    found = document.parse(body.encode())
    assert found._roundtrips == roundtrips
    assert not roundtrips or document.encode(found.decoded) == body.encode()
    assert found.replace({(): {"new": "x"}}) == body.strip()[:-1].encode() + b',"new":"x"}'


def test_absent_members_and_items_are_none() -> None:
    found = document.parse(b'{"a":[1],"o":{}}')
    array, inner = found.root.array("a"), found.root.object("o")
    assert array is not None
    assert inner is not None
    assert (
        found.root.raw("x"),
        found.root.kind("x"),
        found.root.value("x"),
        found.root.object("x"),
        found.root.array("x"),
    ) == (
        b"",
        "",
        None,
        None,
        None,
    )
    assert (array.value(1), array.object(1), array.array(1), array.value(-1)) == (None, None, None, None)
    assert (array.kind(1), array.kind(-1)) == ("", "")
    assert "x" not in inner.members


BY_POINTER = b'{"":{"":1},"a":[{"b":[[2]]},3],"m~n":{"o/p":4},"a/b":5,"~1":6,"n":null,"d":{"1":7}}'


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/a/0/b/0/0", 2),
        ("/a/1", 3),
        ("/a/0/b", [[2]]),
        ("/m~0n/o~1p", 4),
        ("/a~1b", 5),
        ("/~01", 6),
        ("//", 1),
        ("/", {"": 1}),
        ("/d/1", 7),
        *(
            (absent, None)
            for absent in (
                "/n",
                "/x",
                "/x/y",
                "/a/2",
                "/a/-",
                "/a/-1",
                "/a/x",
                "/a/\u0661",
                "/a/1/0",
                "/n/x",
                "/a/" + "9" * 5000,
            )
        ),
    ],
)
def test_pointer_reads_a_value(pointer: str, value: object) -> None:
    assert document.parse(BY_POINTER).at(pointer) == value
    assert document.at(json.loads(BY_POINTER), pointer) == value


def test_empty_pointer_reads_the_whole_document() -> None:
    assert document.parse(b' {"a":1} ').at("") == document.at({"a": 1}, "") == {"a": 1}


@pytest.mark.parametrize(("key", "token"), [("a", "a"), ("a/b", "a~1b"), ("m~n", "m~0n"), ("~1", "~01"), ("", "")])
def test_key_is_escaped_as_pointer_token(key: str, token: str) -> None:
    assert document.escape(key) == token


# -- Writing ---------------------------------------------------------------------------------------------------------

CHANGES = st.dictionaries(
    st.sampled_from(["", "a", "é", "price", "/", "\\", '"', "\x00"]) | strings().map(json.loads),
    VALUES.map(str.encode) | st.none(),
    max_size=4,
)


@samples
@given(bodies())
def test_empty_change_keeps_all_bytes(body: bytes) -> None:
    found = document.parse(body)
    assert render(found, {}) == body.strip()
    for key in found.root.members:
        inner = found.root.object(key) or found.root.array(key)
        assert inner is None or document._apply(inner.text, (), inner.start, inner.end) == found.root.raw(key)


@samples
@given(bodies(), CHANGES, st.data())
def test_change_edits_only_the_bytes_of_its_value(
    body: bytes, changes: dict[str, bytes | None], data: st.DataObject
) -> None:
    found = document.parse(body)
    if found.root.members:
        changes |= data.draw(
            st.dictionaries(st.sampled_from(sorted(found.root.members)), VALUES.map(str.encode), max_size=3)
        )
    changes = {key: value for key, value in changes.items() if value is not None or key not in found.root.members}
    *members, (_, tail, _) = pieces(body.strip())
    expected = b"".join(lead + (changes.get(key) or value) for key, lead, value in members)
    added = [
        json.dumps(key, ensure_ascii=False).encode() + b":" + value
        for key, value in changes.items()
        if value and key not in found.root.members
    ]
    if not members:
        expected, tail = b"{", tail.removeprefix(b"{")
    comma = b"," if members and added else b""
    rendered = render(found, changes)
    assert spell_keys(rendered) == spell_keys(expected + comma + b",".join(added) + tail)
    assert list(document.parse(rendered).root.members) == [
        *found.root.members,
        *(k for k in changes if changes[k] and k not in found.root.members),
    ]


def render(found: document.Document, changes: Mapping[str, bytes | None]) -> bytes:
    """The document with members of its root changed."""
    return found.replace({(): {key: None if value is None else Raw(value) for key, value in changes.items()}})


def spell_keys(text: bytes) -> bytes:
    """Unescapes DEL, which may be escaped or not in a key that we add."""
    return text.replace(b"\\u007f", b"\x7f")


@samples
@given(bodies(), CHANGES, st.data())
def test_removal_keeps_the_other_members(body: bytes, changes: dict[str, bytes | None], data: st.DataObject) -> None:
    found = document.parse(body)
    gone = data.draw(st.sets(st.sampled_from(sorted(found.root.members)))) if found.root.members else set[str]()
    changes |= dict.fromkeys(gone)
    rendered = document.parse(render(found, changes))
    kept = [key for key in found.root.members if key not in changes or changes[key] is not None]
    new = [key for key, value in changes.items() if value is not None and key not in found.root.members]
    assert list(rendered.root.members) == [*kept, *new]
    for key in rendered.root.members:
        assert rendered.root.raw(key) == changes.get(key, found.root.raw(key))


@pytest.mark.parametrize(
    ("text", "changes", "changed"),
    [
        ('{"a":1}', {"a": b"2"}, '{"a":2}'),
        ('{ "a" : 1 , "b" : 2 }', {"a": b"3"}, '{ "a" : 3 , "b" : 2 }'),
        ('{ "a" : 1 , "b" : 2 }', {"b": b"3"}, '{ "a" : 1 , "b" : 3 }'),
        ('{ "a" : 1 , "b" : 2 }', {"b": b"3", "a": b"4"}, '{ "a" : 4 , "b" : 3 }'),
        ('{ "a" : 1 , "b" : 2 }', {"c": b"3"}, '{ "a" : 1 , "b" : 2,"c":3 }'),
        ('{ "a" : 1 , "b" : 2 }', {"c": b"3", "d": b"4"}, '{ "a" : 1 , "b" : 2,"c":3,"d":4 }'),
        ('{ "a" : 1 , "b" : 2 }', {"c": b"3", "a": b"4"}, '{ "a" : 4 , "b" : 2,"c":3 }'),
        ('{ "a" : 1 , "b" : 2 }', {"c": b"3", "b": None}, '{ "a" : 1,"c":3 }'),
        ('{ "a" : 1 , "b" : 2 }', {"c": b"3", "a": None, "b": None}, '{"c":3 }'),
        ("{ }", {"a": b"1", "b": b"2"}, '{"a":1,"b":2 }'),
        ("{ }", {"a": None}, "{ }"),
        ('{"\\u0061":1}', {"a": b"2"}, '{"\\u0061":2}'),
    ],
)
def test_change_keeps_white_space(text: str, changes: dict[str, bytes | None], changed: str) -> None:
    assert render(document.parse(text.encode()), changes) == changed.encode()


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ('{"a":1,"b":2,"c":3}', "a", '{"b":2,"c":3}'),
        ('{"a":1,"b":2,"c":3}', "b", '{"a":1,"c":3}'),
        ('{"a":1,"b":2,"c":3}', "c", '{"a":1,"b":2}'),
        ('{"a":1,"b":2,"c":3}', "abc", "{}"),
        ('{ "a" : 1 , "b" : 2 }', "b", '{ "a" : 1 }'),
        ('{ "a" : 1 }', "a", "{ }"),
        ('{\n  "a": 1,\n  "b": 2\n}', "b", '{\n  "a": 1\n}'),
    ],
)
def test_removed_member_takes_its_comma_with_it(text: str, gone: str, left: str) -> None:
    assert render(document.parse(text.encode()), dict.fromkeys(gone)) == left.encode()


@samples
@given(st.data(), arrays(VALUES))
def test_items_of_an_array_change_one_by_one(data: st.DataObject, text: str) -> None:
    array = document.parse(b'{"v":' + text.encode() + b"}").root.array("v")
    assert array is not None
    changes = (
        data.draw(st.dictionaries(st.sampled_from(range(len(array))), VALUES.map(str.encode))) if len(array) else {}
    )

    def edited(changes: Mapping[int, bytes]) -> bytes:
        edits = [(*array.items[index], value) for index, value in changes.items()]
        return document._apply(array.text, edits, array.start, array.end)

    rendered = document.parse(b'{"v":' + edited(changes) + b"}").root.array("v")
    assert rendered is not None
    assert edited({}) == text.encode()
    assert len(rendered) == len(array)
    for index, (after, before) in enumerate(zip(rendered.items, array.items, strict=True)):
        assert rendered.text[slice(*after)] == changes.get(index, array.text[slice(*before)])


# -- Valid and invalid JSON --------------------------------------------------------------------------------------------

# By the grammar of RFC 8259, like its public test suites: each is tested as {"v": <text>}.
JSON_TEXTS = [
    *("0", "-0", "1", "10", "-1", "0.0", "0.10", "-0.01", "1e3", "1E3", "1e+3", "1e-3", "1.50e10", "0e0", "0E+99"),
    *("123456789012345678901234567890", "0.1234567890123456789012345678901234567890", "1e400", "-1e400", "1e-400"),
    *('""', '"a"', '" "', '"é"', '"😀"', '"\x7f"', '"\u2028\u2029"', '"\ufeff"', '"\ufffe\uffff"', '"\U0010ffff"'),
    *(
        '"\\""',
        '"\\\\"',
        '"\\/"',
        '"\\b\\f\\n\\r\\t"',
        '"\\u0000"',
        '"\\u00e9"',
        '"\\u00E9"',
        '"\\ud83d\\ude00"',
        '"\\uD83D\\uDE00"',
    ),
    *(
        '"/"',
        '"\\\\u0061"',
        '"//"',
        '"/* no comment */"',
        '"]"',
        '"{\\"a\\":[}"',
        '"\\u002c"',
        '"\\uFFFF"',
        '"[\\u005d"',
    ),
    *("true", "false", "null", "[]", "{}", "[ ]", "{ }", "[1]", "[1,2]", "[[]]", "[{}]", "[[],[[]]]", '{"a":{}}'),
    *(
        "\t1\n",
        "\r[\r1\r,\r2\r]\r",
        ' {\t"a"\n:\r1 } ',
        '{"":0}',
        '{"\\u0061":1,"A":2}',
        "[1,[2,[3]],{}]",
        "[null,true]",
    ),
]

NOT_JSON = [
    *("", " ", ",", ":", "]", "}", "a", "v", "'a'", "`a`", "#", "// 1", "/**/1", "1 2", "1,", ",1", "1]", "1}", "(1)"),
    *("01", "-01", "00", "-", "+1", "--1", "1.", ".5", "-.5", "1.e1", "1e", "1e+", "1E-", "1ee1", "1e1.5", "0x1"),
    *("1_0", "1 000", "2.", "1.2.3", "0b1", "1f", "1n", "1\u00a0", "\u0661", "\uff11", "\u22121"),
    *("NaN", "nan", "-NaN", "Infinity", "-Infinity", "inf"),
    *("True", "TRUE", "tru", "truee", "nul", "None", "undefined", "nil", "fals", "t", "@"),
    *('"', '"a', 'a"', '"a""b"', '"\n"', '"\t"', '"\x00"', '"\x1f"'),
    *('"\\"', '"\\a"', '"\\x41"', '"\\\'"', '"\\ "', '"\\\n"', '"\\U0041"', '"\\ud83"', '"\\ud8zz"'),
    *('"\\u"', '"\\u1"', '"\\u12"', '"\\u123"', '"\\u123g"', '"\\u 123"', '"\\u+123"', '"\\u1_23"'),
    *("[", "[1", "[1,", "[1,]", "[,]", "[,1]", "[1,,2]", "[1 2]", "[1:2]", "[1}", "[[1]", "[1]]", "[1;2]", "[...]"),
    *("{", "{1", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{,}", '{,"a":1}', '{"a"}', '{"a",1}', '{"a" 1}'),
    *('{"a":}', "{a:1}", "{1:1}", "{null:1}", "{[]:1}", '{"a":1 "b":2}', '{"a":1,,"b":2}', '{"a":1:2}', '{"a"::1}'),
    *('{"a":1]', "{{}}", "{[]}", "\f1", "\v1", "\u00a01", "\u20281", "\ufeff1", "\u200b1", "\x001", "1\x00", "1\f"),
]


@pytest.mark.parametrize("text", JSON_TEXTS, ids=repr)
def test_valid_json_is_accepted_and_kept(text: str) -> None:
    body = f'{{"v": {text}}}'.encode()
    found = document.parse(body)
    assert found.root.raw("v") == text.strip().encode()
    assert render(found, {}) == body


@pytest.mark.parametrize("text", NOT_JSON, ids=repr)
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        document.parse(f'{{"v": {text}}}'.encode())
    assert (refused.value.reason, refused.value.pointer) == ("not_json", "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *(
            (text, "not_json")
            for text in (
                b"",
                b" ",
                b"{",
                b"}",
                b"{}}",
                b"{}{}",
                b"{} x",
                b"{},",
                b"x{}",
                b"{}\x00",
                b"\x0c{}",
                b"{}\x0c",
            )
        ),
        (b"\xef\xbb\xbf{}", "not_json"),
        *((text, "not_json") for text in (b"]", b"1],[1", b"]{}[", b"{}],[{}", b"],[")),
        *((text, "not_an_object") for text in (b"[]", b"1", b'"{}"', b"null", b"true", b"[{}]", b' "a" ')),
        *(
            (b'{"v":"' + text + b'"}', "not_utf8")
            for text in (b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe9")
        ),
        (b'{"\xff":1}', "not_utf8"),
        ('{"v":"é"}'.encode("latin-1"), "not_utf8"),
        ('{"v":1}'.encode("utf-16"), "not_utf8"),
        ('{"v":1}'.encode("utf-16-le"), "not_json"),
        ('{"v":1}'.encode("utf-32-be"), "not_json"),
    ],
)
def test_body_other_than_a_utf_8_json_object_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        document.parse(body)
    assert (refused.value.reason, refused.value.pointer) == (reason, "")


@samples
@given(bodies(), st.data())
def test_changed_body_is_accepted_only_if_still_an_object(body: bytes, data: st.DataObject) -> None:
    """As judged by Python's parser in a strict setup."""
    at = data.draw(st.integers(0, len(body)))
    odd = data.draw(st.sampled_from([b"", b"}", b"{", b"]", b",", b'"', b"\\", b"0", b" ", b"u", b"\\ud83d", b"\xff"]))
    changed = body[:at] + odd + body[at + data.draw(st.integers(0, 2)) :]
    try:
        strict: Any = json.loads(
            changed.decode(),
            object_pairs_hook=no_duplicates,
            parse_int=str,
            parse_float=str,
            parse_constant=no_constant,
        )
    except ValueError:
        strict = None
    if isinstance(strict, dict):
        assert render(document.parse(changed), {}) == changed.strip()
    else:
        with pytest.raises(InvalidRequest):
            document.parse(changed)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a duplicate")
    return dict(pairs)


def no_constant(name: str) -> None:
    raise ValueError(name)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"a":1,"a":1}', "/a"),
        ('{"a":1,"b":2,"a":[1,2,3,4,5,6,7,8,9],"c":3}', "/a"),
        ('{"a":[1,2,3,4,5,6,7,8,9],"a":1,"c":3}', "/a"),
        ('{"a":1,"\\u0061":2}', "/a"),
        ('{"é":1,"\\u00e9":2}', "/é"),
        ('{"":1,"":2}', "/"),
        ('{"a/b":1,"a\\/b":2}', "/a~1b"),
        ('{"m~n":1,"m~n":2}', "/m~0n"),
        ('{"x":{"~1":1,"~1":2}}', "/x/~01"),
        ('{"items":[{"sku":"A"},{"sku":"B","price":"1","price":"2"}]}', "/items/1/price"),
        ('{"a":[[[{"b":{"c":1,"c":1}}]]]}', "/a/0/0/0/b/c"),
        ('{"a":{"x":1},"b":{"x":1,"y":{"x":1,"x":2}}}', "/b/y/x"),
        ('{"a":1,"a":{"x":1,"x":2}}', "/a"),
        ('{"n":' + "1" * 5000 + ',"m":1e9999999999999999999,"a":1,"a":1}', "/a"),
        ('{"a":"\\ud83d","x":{"b":1,"b":1}}', "/x/b"),
    ],
)
def test_duplicate_key_is_refused_with_its_pointer(body: str, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        document.parse(body.encode())
    assert (refused.value.reason, refused.value.pointer) == ("duplicate_key", pointer)


@samples
@given(bodies(), strings(), st.data())
def test_duplicate_key_is_found_at_any_place_and_spelling(body: bytes, key: str, data: st.DataObject) -> None:
    opened = [match.end() for match in re.finditer(r'"(?:[^"\\]|\\.)*"|\{', body.decode()) if match[0] == "{"]
    at = data.draw(st.sampled_from(opened))
    text = body.decode()
    comma = "" if text[at:].lstrip().startswith("}") else ","
    doubled = f"{text[:at]}{key}:1,{by_number(key)}:2{comma}{text[at:]}".encode()
    with pytest.raises(InvalidRequest) as refused:
        document.parse(doubled)
    assert refused.value.reason == "duplicate_key"
    last = document.escape(json.loads(key))
    assert refused.value.pointer.endswith("/" + last)


def by_number(key: str) -> str:
    """The same key with each character as a numeric escape."""
    units = json.loads(key).encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'


@pytest.mark.parametrize("depth", [500, 1_200, 100_000])
def test_duplicate_key_is_refused_at_any_depth(depth: int) -> None:
    body = '{"a":' * depth + '{"b":1,"b":2}' + "}" * depth
    with pytest.raises(InvalidRequest) as refused:
        document.parse(body.encode())
    assert (refused.value.reason, refused.value.pointer) in {
        ("duplicate_key", "/a" * depth + "/b"),
        ("duplicate_key", ""),
        ("too_deep", ""),
    }


def test_same_key_in_different_objects_is_accepted() -> None:
    body = b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}],"A":1}'
    assert render(document.parse(body), {}) == body


@pytest.mark.parametrize(
    "value",
    [
        *(
            "1" * 5000,
            "-" + "9" * 5000,
            "0." + "3" * 5000,
            "1e999999999",
            "-1E-999999999",
            "1e99999999999999999999",
            "0e99999999999999999999",
        ),
        *(
            '"\\ud800"',
            '"\\uDFFF"',
            '"a\\ud83d"',
            '"\\ude00\\ud83d"',
            '"\\ud83d\\ud83d\\ude00"',
            '{"\\ud800":"\\\\ud800"}',
            '["\\udc00",{}]',
        ),
        *("[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, '[{"a":' * 100 + "[]" + "}]" * 100),
    ],
    ids=lambda value: value[:20],
)
def test_unreadable_value_is_passed_on_unchanged(value: str) -> None:
    body = f'{{"before": 1, "odd": {value}, "price": "1.00"}}'.encode()
    found = document.parse(body)
    assert found.root.raw("odd") == value.encode()
    assert render(found, {"price": b'"0.50"'}) == body.replace(b'"1.00"', b'"0.50"')
    assert render(found, {"before": None}) == body.replace(b'"before": 1, ', b"")


@pytest.mark.parametrize("value", ["1" * 5000, "1e99999999999999999999", "[1e99999999999999999999]"])
def test_reading_an_unreadable_value_raises_unreadable(value: str) -> None:
    found = document.parse(f'{{"odd":{value},"fine":1}}'.encode())
    assert found.root.value("fine") == found.at("/fine") == 1
    with pytest.raises(document.Unreadable):
        found.root.value("odd")
    with pytest.raises(document.Unreadable):
        found.at("/odd")


def test_lone_surrogate_reads_as_the_replacement_character() -> None:
    found = document.parse(b'{"a":"x\\ud83d","b":"\\ud83d\\ude00","c":"\\\\ud83d","d":{"e":["\\udfff"]}}')
    assert {key: found.root.value(key) for key in found.root.members} == {
        "a": "x\ufffd",
        "b": "😀",
        "c": "\\ud83d",
        "d": {"e": ["\ufffd"]},
    }
    assert found.at("/d/e/0") == "\ufffd"


@pytest.mark.parametrize("count", [1_000, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_deep_nesting_is_accepted_or_refused_as_too_deep(opened: str, closed: str, count: int) -> None:
    body = f'{{"v":{opened * count}1{closed * count},"w":1}}'.encode()
    try:
        found = document.parse(body)
    except InvalidRequest as error:
        reason = error.reason
    else:
        assert render(found, {"w": b"2"}) == body.replace(b'"w":1', b'"w":2')
        reason = "taken"
    assert reason in ({"too_deep"} if count > 1_000 else {"too_deep", "taken"})


def test_accepted_depth_can_be_read_from_deeper_in_the_call_stack() -> None:
    def read(inside: document.Object, calls: int) -> None:
        if calls:
            read(inside, calls - 1)
        else:
            assert all((inside.object("v"), inside.array("w"), inside.value("v"), inside.value("w")))

    taken = 0
    for depth in range(100, 1100, 7):
        objects = '{"a":' * depth + "1" + "}" * depth
        try:
            found = document.parse(f'{{"v":{objects},"w":{"[" * depth}{"]" * depth}}}'.encode())
        except InvalidRequest:
            break
        read(found.root, 50)
        taken = depth
    assert taken > 500
