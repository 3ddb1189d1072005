"""Validate, convert, ingest, consume keep every amount and unknown field, in all three families, at any size."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from mapper.domain import discounts
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout, parse
from mapper.domain.outcome import Discount, Outcome
from mapper.nacelle.convert import order_of
from mapper.sandbox import rulebook
from mapper.sandbox.nacelle import NacelleSandbox

BOOK = rulebook.load()
CURRENCIES = {"JPY": 0, "USD": 2, "KWD": 3}
PAID = {
    "payments": [{"id": "p-1", "raw": "\u00e9"}],
    "billing_address": {"x": 1},
    "email": "a@b.c",
    "price": "1",
    "subtotal": "1",
    "tax_amount": "0",
}
# Spellings that an ordinary decoder would not reproduce.
UNKNOWN = ["1.10", "1e3", "12345678901234567890", "-0.0", '"\\u00e9"', "null", "[]", '{"b":1,"a":[1.50,{}]}', '" "']
_FAMILY = {"A": "items", "B": "order_items", "C": "order_items"}


@st.composite
def carts(draw: st.DrawFn) -> tuple[bytes, list[int], int]:
    """A body with unknown fields everywhere; the discounts on each line and the root, in minor units."""
    family = draw(st.sampled_from("ABC"))
    currency = draw(st.sampled_from(sorted(CURRENCIES)))
    digits = CURRENCIES[currency]
    count = draw(st.one_of(st.integers(0, 6), st.sampled_from([100, 1000])))
    seed = draw(st.randoms(use_true_random=False))
    price_key = "price" if family == "A" else draw(st.sampled_from(["price", "price_amount"]))
    lines, off = [], []
    for number in range(count):
        quantity, price = seed.choice([0, 1, 2, 3, 7]), seed.randint(0, 50_000)
        off.append(seed.choice([0, 1, 99, quantity * price // 3, quantity * price]) if quantity else 0)
        members = [
            f'"sku":"S{number}"',
            f'"quantity":{quantity}',
            f'"{price_key}":"{_text(price, digits)}"',
            f'"x":{seed.choice(UNKNOWN)}',
        ]
        seed.shuffle(members)
        lines.append("{" + ",".join(members) + "}")
        off[-1] = min(off[-1], quantity * price)
    listed = f"[{', '.join(lines)}]"
    key = _FAMILY[family]
    if family == "C":
        half = count // 2
        parts = [lines[:half], lines[half:]]
        listed = "[" + ",".join(f'{{"{key}":[{",".join(part)}],"y":{seed.choice(UNKNOWN)}}}' for part in parts) + "]"
        key = "orders"
    body = (
        f'{{"id":"c-1","currency":"{currency}","{key}":{listed},"z":{seed.choice(UNKNOWN)},"promotions":{{"w":1.0}}}}'
    )
    return body.encode(), off, draw(st.integers(0, 5000))


def _text(minor: int, digits: int) -> str:
    return f"{minor // 10**digits}.{minor % 10**digits:0{digits}}" if digits else str(minor)


def validated(body: bytes, off: list[int], root: int) -> bytes:
    """Validate's answer with these discounts."""
    checkout = parse(body, "validate")
    granted = [
        Discount(name="d", description="", amount=off[line.index], effect_type="e", line=line.index)
        for line in checkout.lines
        if off[line.index]
    ]
    if root:
        granted.append(Discount(name="r", description="", amount=root, effect_type="e", scope="goods"))
    allocation = discounts.allocate(checkout, Outcome(discounts=tuple(granted)))
    return discounts.write(checkout, allocation, {"session": "s", "receipt": "r"})


def with_payment(checkout: bytes) -> bytes:
    """The checkout with the other fields of an order, as `promotions-mapper ingest` accepts it."""
    return b'{"checkout":' + checkout + b"," + json.dumps(PAID).encode()[1:]


def ingested(order: bytes) -> bytes:
    """The order as Nacelle's sandbox stores it."""
    nacelle = NacelleSandbox(BOOK, lambda: datetime.now(UTC))
    answer: list[bytes] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": order, "more_body": False}

    async def send(message: Any) -> None:
        answer.append(message.get("body", b""))

    headers = [(b"authorization", b"Bearer sandbox-token"), (b"x-nacelle-space-id", b"sandbox")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/orders", "headers": headers, "query_string": b""}
    asyncio.run(nacelle(scope, receive, send))
    (stored,) = nacelle.books()["ingested"]
    assert bytes(stored["order"]) == b"".join(answer)
    return bytes(stored["order"])


def unknown(body: bytes) -> list[bytes]:
    """The unknown fields of a body as bytes: of the root, its orders, its lines, the promotions."""
    root = msgspec.json.decode(body, type=dict[str, Raw])
    found = [bytes(root["z"]), bytes(msgspec.json.decode(root["promotions"], type=dict[str, Raw])["w"])]
    parts = [root]
    if "orders" in root:
        parts = msgspec.json.decode(root["orders"], type=list[dict[str, Raw]])
        found += [bytes(part["y"]) for part in parts]
    for part in parts:
        lines = msgspec.json.decode(part.get("items") or part["order_items"], type=list[dict[str, Raw]])
        found += [bytes(line["x"]) for line in lines]
    return found


def amounts(checkout: Checkout) -> tuple[list[tuple[str, int, int, int, int]], int]:
    """Each line's name, quantity, list price, price and discount; and the root discount."""
    lines = [(line.name, line.quantity, line.list_price, line.price, line.discount) for line in checkout.lines]
    return lines, checkout.root_discount


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(carts())
def test_round_trip_keeps_amounts_and_unknown_fields(cart: tuple[bytes, list[int], int]) -> None:
    body, off, root = cart
    given = parse(body, "validate")
    checkout = validated(body, off, root)
    after = parse(checkout, "validate")
    assert [line.list_price for line in after.lines] == [line.price for line in given.lines]
    order = ingested(order_of(with_payment(checkout)).body)
    consumed = parse(order, "consume")
    assert amounts(consumed) == amounts(after)
    assert [line.discount for line in consumed.lines] == off
    assert consumed.root_discount == min(root, sum(line.gross for line in given.lines) - sum(off))
    assert unknown(body) == unknown(checkout) == unknown(order)
    assert notes.unchanged(consumed) == b'{"order":' + order + b"}", "consume answers with the order it got"
    assert json.loads(order)["payments"] == PAID["payments"]
