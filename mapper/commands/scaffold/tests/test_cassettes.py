"""Replays recorded replies of the engine: checks the requests of a conversation and its result.

The one in `cassettes/` is invented, like the engine. Record your own: one file for each reply that you rely on.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from promotions_acme import Acme

from mapper.adapter import EngineReply, checkout
from mapper.engine.conversation import replay

CASSETTES = sorted((Path(__file__).parent / "cassettes").glob("*.json"))
ADAPTER = Acme({"BASE_URL": "https://acme.test", "API_KEY": "key"})


@pytest.mark.parametrize("file", CASSETTES, ids=lambda file: file.stem)
def test_cassette_is_replayed_as_recorded(file: Path) -> None:
    tape: dict[str, Any] = json.loads(file.read_text("utf-8"))
    body = json.dumps(tape["checkout"]).encode()
    cart = checkout.parse(body, "validate")
    came = [
        EngineReply(status=one["reply"]["status"], headers={}, body=json.dumps(one["reply"]["body"]).encode())
        for one in tape["exchanges"]
    ]
    start = getattr(ADAPTER, tape["method"])
    result, asked = replay(start(cart, *tape["given"]), came, accounts=ADAPTER.accounts, lines=len(cart.cart))
    assert [(one.method, one.path, json.loads(one.body or b"null")) for one in asked] == [
        (one["request"]["method"], one["request"]["path"], one["request"]["body"]) for one in tape["exchanges"]
    ]
    outcome = getattr(result, "outcome", result)
    assert [(one.line, one.name, one.amount) for one in outcome.discounts] == [tuple(o) for o in tape["discounts"]]
    assert [(one.code, one.reason) for one in outcome.rejected] == [tuple(one) for one in tape["rejected"]]


def test_cassettes_exist() -> None:
    assert CASSETTES
