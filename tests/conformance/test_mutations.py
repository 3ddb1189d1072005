"""How the kit breaks replies: amounts wherever they stand, and effects wherever an emulator knows some."""

from typing import Any

import pytest

from mapper.adapter import EngineReply
from mapper.conformance import mutations


def reply(body: bytes) -> EngineReply:
    return EngineReply(status=200, headers={}, body=body)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"label":"5 off","off":5.00}', [("off", b'{"label":"5 off","off":1e400}')]),
        (b'{"number":"100003","off":"5.00"}', [("off", b'{"number":"100003","off":"1e400"}')]),
        (b'[{"off":"5.00"},{"off":7}]', [
            ("0/off", b'[{"off":"1e400"},{"off":7}]'),
            ("1/off", b'[{"off":"5.00"},{"off":1e400}]'),
        ]),
        (b"", []),
        (b"<html>", []),
        (b'<quote id="7"><off>5.00</off></quote>', [
            ("'5.00' at byte 19 = '1e400'", b'<quote id="7"><off>1e400</off></quote>'),
        ]),
        (b"state=ok&off=5.00", [("'5.00' at byte 13 = '1e400'", b"state=ok&off=1e400")]),
    ],
)  # fmt: skip
def test_an_amount_is_a_number_or_a_text_with_decimals(body: bytes, changed: list[tuple[str, bytes]]) -> None:
    assert [(where, other.body) for where, other in mutations.with_amounts(reply(body), b"1e400")] == changed


def test_each_value_and_each_field_of_a_text_is_changed() -> None:
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


def test_the_lists_of_a_reply_are_turned_one_by_one() -> None:
    json, xml = reply(b'{"a":[1,2],"b":[[3,4]]}'), reply(b"<q><a/><b><c/><d/></b></q>")
    assert (mutations.lists(json), mutations.lists(xml)) == ({"a", "b"}, {"q", "b"})
    assert mutations.reordered(json, {"a"}).body == b'{"a":[1,2],"b":[[4,3]]}'
    assert mutations.reordered(xml, {"q"}).body.endswith(b"<q><a /><b><d /><c /></b></q>")


def test_every_text_of_xml_is_marked() -> None:
    marked = mutations.marked(reply(b"<?xml version='1.0'?><a why='x'>gone</a>"), "M")
    assert marked.body == b"<?xml version='1.0'?><a why='M x'>M gone</a>"


def unknown(document: Any) -> Any:
    """As an emulator may have it: it changes what it is given, and leaves alone what has no effects."""
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
def test_an_unknown_effect_stands_where_the_emulator_puts_it(body: bytes, changed: bytes | None) -> None:
    found = mutations.with_unknown_effect(reply(body), unknown)
    assert (found and found.body) == changed
