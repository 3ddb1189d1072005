"""Replays recorded replies of the engine: checks the requests of a conversation and its result.

Those in `cassettes/` were recorded from the shop in `shop/` (django-oscar 4.2.1, django-oscar-api 3.3.0, 2026-11-27).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from promotions_oscar import Oscar

from mapper.adapter import EngineReply, checkout
from mapper.engine.conversation import replay

CASSETTES = sorted((Path(__file__).parent / "cassettes").glob("*.json"))
ADAPTER = Oscar({"BASE_URL": "https://oscar.test/api", "API_KEY": "key", "ACCOUNTS_SECRET": "a-secret"})


@pytest.mark.parametrize("file", CASSETTES, ids=lambda file: file.stem)
def test_cassette_is_replayed_as_recorded(file: Path) -> None:
    tape: dict[str, Any] = json.loads(file.read_text("utf-8"))
    body = json.dumps(tape["checkout"]).encode()
    cart = checkout.parse(body, "validate")
    came = [
        EngineReply(status=one["reply"]["status"], headers={}, body=_text(one["reply"])) for one in tape["exchanges"]
    ]
    start = getattr(ADAPTER, tape["method"])
    result, asked = replay(start(cart, *tape["given"]), came, accounts=ADAPTER.accounts, lines=len(cart.cart))
    assert [(one.method, one.path, json.loads(one.body or b"null")) for one in asked] == [
        (one["request"]["method"], one["request"]["path"], one["request"]["body"]) for one in tape["exchanges"]
    ]
    outcome = getattr(result, "outcome", result)
    assert [(one.line, one.name, one.amount) for one in outcome.discounts] == [tuple(o) for o in tape["discounts"]]
    assert [(one.code, one.reason) for one in outcome.rejected] == [tuple(one) for one in tape["rejected"]]


def _text(reply: dict[str, Any]) -> bytes:
    return b"" if reply["status"] == 204 else json.dumps(reply["body"]).encode()


def test_cassettes_exist() -> None:
    assert CASSETTES
