"""How the kit breaks replies: their amounts, lists, words and effects."""

from typing import Any

import msgspec
import pytest

from mapper.adapter import EngineReply
from mapper.conformance import mutations


def reply(body: bytes) -> EngineReply:
    return EngineReply(status=200, headers={}, body=body)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"label":"5 off","off":5.00}', [("off", b'{"label":"5 off","off":1e400}')]),
        (b'{"code":"SAVE-5","off":"5.00"}', [("off", b'{"code":"SAVE-5","off":"1e400"}')]),
        (b'{"percent":"10"}', [("percent", b'{"percent":"1e400"}')]),
        (b'[{"off":"5.00"},{"off":7}]', [
            ("0/off", b'[{"off":"1e400"},{"off":7}]'),
            ("1/off", b'[{"off":"5.00"},{"off":1e400}]'),
        ]),
        (b"", []),
        (b"<html>", []),
        (b'<quote id="q"><off>5.00</off></quote>', [
            ("'5.00' at byte 19 = '1e400'", b'<quote id="q"><off>1e400</off></quote>'),
        ]),
        (b"state=ok&off=5.00", [("'5.00' at byte 13 = '1e400'", b"state=ok&off=1e400")]),
    ],
)  # fmt: skip
def test_with_amounts_replaces_numbers_and_numeric_texts(body: bytes, changed: list[tuple[str, bytes]]) -> None:
    assert [(where, other.body) for where, other in mutations.with_amounts(reply(body), lambda _: b"1e400")] == changed


def test_mutated_changes_each_value_and_field() -> None:
    bodies = {
        b"""<?xml version='1.0'?><quote><off code="A" by='5'/><why>gone</why></quote>""": [
            b"""<?xml version='1.0'?><quote><why>gone</why></quote>""",
            b"""<?xml version='1.0'?><quote><off code="A" by='-1'/><why>gone</why></quote>""",
            b"""<?xml version='1.0'?><quote><off code="A" by='5'/><why></why></quote>""",
        ],
        b'<a code="A">x</a>': [b"<a>x</a>", b'<a code="NaN">x</a>'],
        b"state=ok&off=5": [b"off=5", b"state=ok&", b"state=ok&off=1e400"],
    }
    for body, wanted in bodies.items():
        assert {*wanted} <= {other.body for _, other in mutations.mutated(reply(body))}


def test_reordered_reverses_one_list() -> None:
    json, xml = reply(b'{"a":[1,2],"b":[[3,4]]}'), reply(b"<q><a/><b><c/><d/></b></q>")
    assert (mutations.lists(json), mutations.lists(xml)) == ({"a", "b"}, {"q", "b"})
    assert mutations.reordered(json, {"a"}).body == b'{"a":[1,2],"b":[[4,3]]}'
    assert mutations.reordered(xml, {"q"}).body.endswith(b"<q><a /><b><d /><c /></b></q>")


def test_with_repeated_items_repeats_each_item() -> None:
    found = list(mutations.with_repeated_items(reply(b'{"a":[{"off":"10"},{"off":2}],"b":[["x"]]}')))
    assert [(name, at, decoded(other), [decoded(one) for one in others]) for name, at, other, others in found] == [
        ("a", "a/0", {"a": [{"off": "10"}, {"off": "10"}, {"off": 2}], "b": [["x"]]},
         [{"a": [{"off": "3"}, {"off": 2}], "b": [["x"]]}]),
        ("a", "a/1", {"a": [{"off": "10"}, {"off": 2}, {"off": 2}], "b": [["x"]]},
         [{"a": [{"off": "10"}, {"off": 3}], "b": [["x"]]}]),
        ("b", "b/0", {"a": [{"off": "10"}, {"off": 2}], "b": [["x"], ["x"]]}, []),
        ("b", "b/0/0", {"a": [{"off": "10"}, {"off": 2}], "b": [["x", "x"]]}, []),
    ]  # fmt: skip


def test_with_other_words_replaces_each_word() -> None:
    good = {"state": "done", "ok": True, "step": 2, "off": "5.00", "rate": 0.5}
    others = [decoded(other) for other in mutations.with_other_words(reply(msgspec.json.encode(good)))]
    assert others == [{**good, **other} for other in ({"state": "x"}, {"ok": False}, {"step": 1002})]
    assert [other.body for other in mutations.with_other_words(reply(b"<a state='done'>5.00</a>"))] == [
        b"<a state='x'>5.00</a>"
    ]
    assert not list(mutations.with_other_words(reply(b"")))


def decoded(one: EngineReply) -> Any:
    return msgspec.json.decode(one.body)


def test_marked_marks_every_xml_text() -> None:
    marked = mutations.marked(reply(b"<?xml version='1.0'?><a why='x'>gone</a>"), "M")
    assert marked.body == b"<?xml version='1.0'?><a why='M x'>M gone</a>"


def add_unknown_effect(document: Any) -> Any:
    """Add an unknown effect as an emulator may: in place, or to a new text. Other bodies are returned unchanged."""
    if isinstance(document, dict):
        document["effects"].append({"kind": "balloon"})
    return document.replace("<q>", "<q><balloon/>") if isinstance(document, str) else document


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"effects":[]}', b'{"effects":[{"kind":"balloon"}]}'),
        (b"[1.50]", None),
        (b"", None),
        (b"<q></q>", b"<q><balloon/></q>"),
        (b"\xff", None),
    ],
)
def test_unknown_effect_is_placed_by_the_emulator(body: bytes, changed: bytes | None) -> None:
    found = mutations.with_unknown_effect(reply(body), add_unknown_effect)
    assert (found and found.body) == changed
