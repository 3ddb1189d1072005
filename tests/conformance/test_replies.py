"""How the kit breaks replies: amounts wherever they stand, and effects wherever an emulator knows some."""

from typing import Any

import pytest

from mapper.adapter import EngineReply
from mapper.conformance import replies


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
    ],
)  # fmt: skip
def test_an_amount_is_a_number_or_a_text_with_decimals(body: bytes, changed: list[tuple[str, bytes]]) -> None:
    assert [(where, other.body) for where, other in replies.with_amounts(reply(body), b"1e400")] == changed


def unknown(document: Any) -> Any:
    """As an emulator may have it: it changes what it is given, and leaves alone what has no effects."""
    if isinstance(document, dict):
        document["effects"].append({"kind": "balloon"})
    return document


@pytest.mark.parametrize(
    ("body", "changed"),
    [(b'{"effects":[]}', b'{"effects":[{"kind":"balloon"}]}'), (b"[1.50]", None), (b"", None)],
)
def test_an_unknown_effect_stands_where_the_emulator_puts_it(body: bytes, changed: bytes | None) -> None:
    found = replies.with_effect(reply(body), unknown)
    assert (found and found.body) == changed
