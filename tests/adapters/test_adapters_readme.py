"""The page on writing adapters: its example works, its tables are true."""

import re
from pathlib import Path
from typing import Any

import pytest

from mapper.adapter import EngineReply, Misconfigured
from mapper.domain.checkout import parse
from mapper.domain.errors import EngineRejected, EngineUnavailable
from mapper.engine.conversation import replay
from tests.adapters.record import granted

PAGE = (Path(__file__).parents[2] / "adapters" / "README.md").read_text("utf-8")


def example() -> dict[str, Any]:
    """The names that the page's Python defines, its own test included."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    return names


def test_the_example_is_a_whole_adapter() -> None:
    names = example()
    acme = names["acme"]
    order = parse(
        b'{"order_items": [{"sku": "A", "quantity": 1, "price": "9"}], "promotions": {"coupon_codes": ["X"]}}',
        "consume",
    )
    ok = EngineReply(status=200, headers={}, body=b'{"reductions": [], "refused": {"X": "OUTDATED"}}')
    for conversation in (acme.validate, acme.check, acme.redeem):
        result, (request,) = replay(conversation(order, "a/b"), [ok])
        assert [(one.code, one.reason) for one in granted(result).rejected] == [("X", "expired")]
        redeems = conversation.__name__ == "redeem"
        assert (request.effect == "redeems", request.repeatable) == (redeems, not redeems)
    assert request.path == "/orders/a%2Fb"
    assert replay(acme.look_up(order, "s", ""), [ok])[0].state == "redeemed"
    assert replay(acme.look_up(order, "s", ""), [EngineReply(status=404, headers={}, body=b"")])[0].state == "absent"
    with pytest.raises(Misconfigured, match=r"BASE_URL.*API_KEY"):
        names["Acme"]({})


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (401, b"", EngineRejected),
        (400, b"", EngineRejected),
        (200, b"<html>", EngineUnavailable),
        (200, b'{"reductions": [{"row": 7, "label": "x", "off": 1}]}', EngineUnavailable),
        (200, b'{"reductions": [{"row": -1, "label": "x", "off": 1}]}', EngineUnavailable),
        (200, b'{"reductions": [{"row": 0, "label": "x", "off": "NaN"}]}', EngineUnavailable),
    ],
)
def test_the_example_has_the_manners_that_the_page_asks_for(status: int, body: bytes, problem: type[Exception]) -> None:
    checkout = parse(b'{"items": [{"sku": "A", "quantity": 1, "price": "9"}]}', "validate")
    with pytest.raises(problem):
        replay(example()["acme"].validate(checkout, "s"), [EngineReply(status=status, headers={}, body=body)])
