"""The page on writing adapters: its example works, its tables are true."""

import re
from pathlib import Path
from typing import Any

import pytest

from mapper.adapter import Conversation, EngineReply, NotRedeemed, OrderMismatch, Redeemed
from mapper.domain.checkout import parse
from mapper.domain.errors import EngineRejected, EngineUnavailable
from mapper.engine import results
from mapper.engine.conversation import replay
from mapper.settings import InvalidSettings, load
from tests.adapters.record import granted
from tests.test_installed import install

PAGE = (Path(__file__).parents[2] / "adapters" / "README.md").read_text("utf-8")


def example() -> dict[str, Any]:
    """The names that the page's Python defines, its own test included."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    return names


NAMES = example()
ACME = NAMES["acme"]
ORDER = parse(
    b'{"order_items": [{"sku": "Z", "quantity": 0, "price": "1"}, {"sku": "A", "quantity": 1, "price": "9"}],'
    b' "promotions": {"coupon_codes": ["X"], "referral_code": "R"}}',
    "consume",
)
STORED = b'"rows": [{"sku": "A", "count": 1, "price": 9.00}], "codes": ["X"]'


def answer(status: int = 200, body: bytes = b"{}") -> EngineReply:
    return EngineReply(status=status, headers={}, body=body)


def hold(conversation: Conversation[Any], *replies: EngineReply) -> Any:
    return replay(conversation, replies, accounts=ACME.accounts, lines=len(ORDER.cart))[0]


def reductions(*offs: str) -> bytes:
    found = ", ".join(f'{{"row": 0, "label": "Sale", "off": {off}}}' for off in offs)
    return b'{"id": "r_1", "reductions": [%s], %s}' % (found.encode(), STORED)


def test_the_example_is_an_adapter_that_the_service_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, acme=NAMES["Acme"])
    environment = {"MAPPER_ENGINE": "acme", "NACELLE_SIGNING_SECRETS": "a signing secret that is not short"}
    configured = load({**environment, "ACME_BASE_URL": "https://acme.example", "ACME_API_KEY": "key"})
    assert (configured.adapter.name, configured.warnings) == ("acme", ())
    with pytest.raises(InvalidSettings, match=r"ACME_BASE_URL.*ACME_API_KEY"):
        load(environment)


def test_only_one_request_of_the_example_redeems() -> None:
    for conversation in (ACME.validate, ACME.check, ACME.redeem):
        request = next(conversation(ORDER, "a/b"))
        redeems = conversation.__name__ == "redeem"
        assert (request.effect == "redeems", request.repeatable) == (redeems, not redeems)
    assert (request.path, request.answers) == ("/orders/a%2Fb", {409})
    assert request.body == b'{"rows":[{"sku":"A","count":1,"price":9.00}],"codes":["X"]}'


def test_what_is_refused_and_what_cannot_be_said_is_told() -> None:
    refused = answer(body=b'{"refused": {"X": "OUTDATED", "R": "UNKNOWN", "OTHER": "UNKNOWN"}}')
    for conversation in (ACME.validate, ACME.check, ACME.redeem):
        outcome = granted(hold(conversation(ORDER, "s"), refused))
        assert [(one.code, one.reason) for one in outcome.rejected] == [("X", "expired"), ("R", "not_supported")]
    nothing = hold(ACME.redeem(ORDER, "s"), answer(422, b'{"refused": {"X": "SOMETHING NEW"}}'))
    assert isinstance(nothing, NotRedeemed)
    assert (nothing.rejected[0].reason, nothing.rejected[0].engine_reason) == ("other", "SOMETHING NEW")


@pytest.mark.parametrize("status", [200, 201, 204])
def test_any_2xx_is_done(status: int) -> None:
    done = hold(ACME.redeem(ORDER, "s"), answer(status, reductions("5")))
    assert isinstance(done, Redeemed)
    assert (done.handle, [one.amount for one in done.outcome.discounts]) == ("r_1", [500])


def test_what_was_redeemed_before_is_looked_up() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        hold(ACME.redeem(ORDER, "s"), answer(409))
    assert caught.value.reason == "redeemed_before"


@pytest.mark.parametrize(
    ("offs", "amounts", "notices"),
    [
        (["5.00"], [500], 0),
        (["0.004"], [], 1),
        (["0.004", "0.004"], [1], 0),
        (["-1"], [], 1),
        (["0.005", "0.01"], [2], 0),
    ],
)
def test_money_is_added_up_and_rounded_once_and_nothing_is_dropped(
    offs: list[str], amounts: list[int], notices: int
) -> None:
    for given in (offs, offs[::-1]):
        outcome = hold(ACME.validate(ORDER, "s"), answer(body=reductions(*given)))
        assert [one.amount for one in outcome.discounts] == amounts
        assert [one.line for one in outcome.discounts] == [1] * len(amounts)
        assert len(outcome.notices) == notices


@pytest.mark.parametrize(
    ("body", "state"), [(reductions("5"), "redeemed"), (reductions('"NaN"'), "redeemed"), (None, "absent")]
)
def test_a_look_up_tells_what_is_known(body: bytes | None, state: str) -> None:
    assert hold(ACME.look_up(ORDER, "s", ""), answer(404) if body is None else answer(body=body)).state == state


@pytest.mark.parametrize(
    ("here", "there"), [(b'"price": 9.00', b'"price": 9.01'), (b'"count": 1', b'"count": 2'), (b'["X"]', b'["Y"]')]
)
def test_a_look_up_compares(here: bytes, there: bytes) -> None:
    with pytest.raises(OrderMismatch):
        hold(ACME.look_up(ORDER, "s", ""), answer(body=reductions("5").replace(here, there)))


UNREADABLE = [
    b'{"reductions": [{"row": 7, "label": "x", "off": 1}]}',
    b'{"reductions": [{"row": -1, "label": "x", "off": 1}]}',
    b'{"reductions": [{"row": 0, "label": "x", "off": "NaN"}]}',
]


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (401, b"", EngineRejected),
        (400, b"", EngineRejected),
        (200, b"<html>", EngineUnavailable),
        *((200, body, EngineUnavailable) for body in UNREADABLE),
    ],
)
def test_what_cannot_be_read_is_an_error_as_long_as_it_can_be_refused(
    status: int, body: bytes, problem: type[Exception]
) -> None:
    with pytest.raises(problem):
        hold(ACME.validate(ORDER, "s"), answer(status, body))


@pytest.mark.parametrize("body", UNREADABLE)
def test_and_a_notice_once_it_has_happened(body: bytes) -> None:
    done = hold(ACME.redeem(ORDER, "s"), answer(201, body))
    assert isinstance(done, Redeemed)
    assert [one.type for one in done.outcome.notices] == ["reduction"]


@pytest.mark.parametrize("body", [reductions("5", "0.004"), b'{"refused": {"X": "OUTDATED"}}', *UNREADABLE])
def test_the_core_finds_nothing_to_mend(body: bytes) -> None:
    done = hold(ACME.redeem(ORDER, "s"), answer(201, body))
    assert results.redemption(done, ORDER) == (done, [])
