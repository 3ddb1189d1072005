"""Answers as they came from the engine, replayed: what a conversation asks, and what it makes of the answers.

The one in `cassettes/` was made up, as the engine was. Record your own: one file for each answer that you rely on.
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
    told: dict[str, Any] = json.loads(file.read_text("utf-8"))
    body = json.dumps(told["checkout"]).encode()
    cart = checkout.parse(body, "validate")
    came = [
        EngineReply(status=one["reply"]["status"], headers={}, body=json.dumps(one["reply"]["body"]).encode())
        for one in told["exchanges"]
    ]
    start = getattr(ADAPTER, told["method"])
    result, asked = replay(start(cart, *told["given"]), came, accounts=ADAPTER.accounts, lines=len(cart.cart))
    assert [(one.method, one.path, json.loads(one.body or b"null")) for one in asked] == [
        (one["request"]["method"], one["request"]["path"], one["request"]["body"]) for one in told["exchanges"]
    ]
    outcome = getattr(result, "outcome", result)
    assert [(one.line, one.name, one.amount) for one in outcome.discounts] == [tuple(o) for o in told["discounts"]]
    assert [(one.code, one.reason) for one in outcome.rejected] == [tuple(one) for one in told["rejected"]]


def test_cassettes_exist() -> None:
    assert CASSETTES
