import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from mapper.adapter import Cost, Discount, Outcome
from mapper.domain import checkout, discounts, money
from mapper.domain.checkout import Checkout
from tests import documents


def off(amount: int, line: int | None = None, **more: Any) -> Discount:
    return Discount(name="n", description="d", amount=amount, effect_type="e", line=line, **more)


SHIPPING = Cost("shipping", 500)


def answer(body: bytes, *granted: Discount, costs: tuple[Cost, ...] = (), note: dict[str, Any] | None = None) -> bytes:
    parsed = checkout.parse(body, "validate")
    allocation = discounts.allocate(parsed, Outcome(discounts=granted, costs=costs))
    return discounts.write(parsed, allocation, note or {})


def body_a(*lines: tuple[str, int], **root: Any) -> bytes:
    items = [{"sku": f"S{i}", "quantity": quantity, "price": price} for i, (price, quantity) in enumerate(lines)]
    return json.dumps({"items": items, **root}).encode()


def test_example_of_the_contract_gets_its_documented_answer() -> None:
    body = body_a(("140.00", 1), currency="USD")
    granted = (off(3500, 0, meta={"campaignId": 1}), off(1500, cost="shipping"))
    got = json.loads(answer(body, *granted, costs=(Cost("shipping", 1500),)))
    item = got["items"][0]
    assert (item["price"], item["total_discount"], got["total_discount"]) == ("105.00", "35.00", "50.00")
    assert item["discounts"] == [
        {
            "name": "n",
            "description": "d",
            "amount": "35.00",
            "effect_type": "e",
            "meta": {"campaignId": 1, "list_price": "140.00"},
        }
    ]
    assert [entry["amount"] for entry in got["discounts"]] == ["15.00"]


@pytest.mark.parametrize(
    ("granted", "price", "line_total", "total"),
    [
        ((off(1000, 0),), "6.67", "10.00", "10.00"),  # 30.00 - 10.00 over three units does not divide
        ((off(1, 0),), "10", "0.01", "0.01"),  # rounds to the given price, which keeps its bytes
        ((off(3000, 0),), "0.00", "30.00", "30.00"),
        ((off(2000, 0), off(2000, 0)), "0.00", "30.00", "30.00"),  # beyond the price: clamped
        ((off(700, cost="shipping"),), "10", "0.00", "5.00"),
        ((off(400, cost="shipping"), off(400, cost="shipping")), "10", "0.00", "5.00"),
        ((off(9999, scope="goods"),), "10", "0.00", "30.00"),
        ((off(9999),), "10", "0.00", "35.00"),  # an order-level discount is limited to the amount to pay
        ((off(2000, 0), off(9999)), "3.33", "20.00", "35.00"),
        ((off(700, cost="handling"),), "10", "0.00", "7.00"),  # its price is unknown
    ],
)
def test_prices_never_go_below_zero_and_total_is_the_sum(
    granted: tuple[Discount, ...], price: str, line_total: str, total: str
) -> None:
    got = json.loads(answer(body_a(("10", 3)), *granted, costs=(SHIPPING,)))
    assert (got["items"][0]["price"], got["items"][0]["total_discount"], got["total_discount"]) == (
        price,
        line_total,
        total,
    )


LISTED = [{"amount": "1.00", "meta": {"list_price": "11.00"}}]


@pytest.mark.parametrize(
    "body",
    [
        {"items": [{"sku": "A", "quantity": 2, "price": "10.00"}, {"sku": "B", "quantity": 1, "price": 5}]},
        {"items": [{"sku": "A", "quantity": 2, "price": 10, "total_discount": "2.00", "discounts": LISTED}]},
        {"order_items": [{"sku": "A", "quantity": 1, "price": "11", "discounts": "1.00", "applied_discounts": LISTED}]},
        {
            "orders": [
                {"id": 1, "order_items": [{"applied_discounts": LISTED, "sku": "A", "quantity": 1, "price": "10"}]},
                {"id": 2, "order_items": [{"sku": "B", "quantity": 3, "price_amount": 7.5}], "promotions": {}},
            ]
        },
    ],
    ids=["A", "A again", "B again", "C"],
)
@pytest.mark.parametrize("granted", [(), (off(700, 0),), (off(700, 0), off(1, 1), off(300))], ids=len)
def test_white_space_does_not_change_the_answer(body: Any, granted: tuple[Discount, ...]) -> None:
    """Two ways of writing: a body without white space is encoded again, any other is edited in place."""
    dense = answer(json.dumps(body, separators=(",", ":")).encode(), *granted, note={"a": 1})
    for spaced in (json.dumps(body), json.dumps(body, indent=2)):
        got = answer(spaced.encode(), *granted, note={"a": 1})
        # Compared as text, since the order of members counts, too.
        assert json.dumps(json.loads(got, parse_float=str)) == json.dumps(json.loads(dense, parse_float=str))


@pytest.mark.parametrize(
    ("granted", "costs", "clamped"),
    [
        ((off(3000),), (), 0),
        ((off(3500),), (), 500),
        ((off(3500),), (SHIPPING,), 0),  # a discount on the session's total may apply to shipping, too
        ((off(3500), off(500, cost="shipping")), (SHIPPING,), 500),
        ((off(3001, 0),), (), 1),
    ],
)
def test_clamped_amount_is_counted(granted: tuple[Discount, ...], costs: tuple[Cost, ...], clamped: int) -> None:
    parsed = checkout.parse(body_a(("10.00", 3)), "validate")
    assert discounts.allocate(parsed, Outcome(discounts=granted, costs=costs)).clamped == clamped


@pytest.mark.parametrize("space", [b" ", b""])
def test_unchanged_price_keeps_its_bytes(space: bytes) -> None:
    rest = b'{"sku":"T","quantity":1,"price":5.0}]}'
    body = b'{"currency":"JPY","items":[{"sku":"S","quantity":2,"price":"1000.00"},' + space + rest
    assert b'"price":"1000.00"' in answer(body, off(1, 1))
    assert b'"price":"850"' in (got := answer(body, off(300, 0)))
    assert b'"price":5.0' in got


FAMILY_B = [
    # (the given line, the keys of its price, total and list in the answer)
    ({"price": "10.00"}, ("price", "discounts", "applied_discounts")),
    ({"price_amount": "10.00"}, ("price_amount", "discounts_amount", "applied_discounts")),
    ({"price": "10.00", "discounts_amount": "0"}, ("price", "discounts_amount", "applied_discounts")),
    ({"price_amount": "10.00", "discounts": "0"}, ("price_amount", "discounts", "applied_discounts")),
    ({"price": "10.00", "discounts": []}, ("price", "discounts_amount", "discounts")),  # a list by its type
    ({"price": "10.00", "total_discount": "0", "discounts": []}, ("price", "total_discount", "discounts")),
]


@pytest.mark.parametrize(("line", "keys"), FAMILY_B)
def test_family_b_answer_keeps_the_given_names(line: dict[str, Any], keys: tuple[str, str, str]) -> None:
    body = json.dumps({"order_items": [{"sku": "S", "quantity": 2, **line}]}).encode()
    got = json.loads(answer(body, off(100, 0), off(50)))
    price, total, listed = keys
    item = got["order_items"][0]
    assert (item[price], item[total], [entry["amount"] for entry in item[listed]]) == ("9.50", "1.00", ["1.00"])
    assert set(item) == {"sku", "quantity", *line, price, total, listed}
    assert (got["discounts"], [entry["amount"] for entry in got["applied_discounts"]]) == ("1.50", ["0.50"])


def test_only_family_a_writes_an_empty_list() -> None:
    line = {"sku": "S", "quantity": 1, "price": "1.00"}
    old = {"applied_discounts": [{"amount": "0.50", "meta": {"list_price": "1.50"}}]}
    got_b = json.loads(answer(json.dumps({"order_items": [{**line, **old}], **old}).encode()))
    assert got_b == {"order_items": [{**line, "price": "1.50", "discounts": "0.00"}], "discounts": "0.00"}
    got_a = json.loads(answer(json.dumps({"items": [line]}).encode()))
    assert got_a == {
        "items": [{**line, "total_discount": "0.00", "discounts": []}],
        "total_discount": "0.00",
        "discounts": [],
    }


def test_family_c_is_one_cart_with_totals_per_order() -> None:
    order = {"order_items": [{"sku": "S", "quantity": 1, "price": "10.00"}], "applied_discounts": [{"amount": "9.00"}]}
    body = json.dumps({"orders": [order, order], "promotion": {}}).encode()
    got = json.loads(answer(body, off(100, 0), off(200, 1), off(400), note={"engine": "x"}))
    assert [part["discounts"] for part in got["orders"]] == ["1.00", "2.00"]
    assert [part["order_items"][0]["price"] for part in got["orders"]] == ["9.00", "8.00"]
    assert ["applied_discounts" in part for part in got["orders"]] == [False, False]
    assert (got["discounts"], [entry["amount"] for entry in got["applied_discounts"]]) == ("7.00", ["4.00"])
    assert got["promotion"] == {"meta": {"mapper": {"engine": "x"}}}


def test_family_c_writes_notes_to_the_first_promotions() -> None:
    order = {"order_items": [{"sku": "S", "quantity": 1, "price": "10.00"}]}
    body = json.dumps({"orders": [order, {**order, "promotion": {"meta": {"keep": 1}}}]}).encode()
    got = json.loads(answer(body, off(100, 1), note={"engine": "x"}))
    assert got["orders"][1]["promotion"] == {"meta": {"keep": 1, "mapper": {"engine": "x"}}}
    assert got["orders"][1]["order_items"][0]["price"] == "9.00"


@pytest.mark.parametrize(
    ("line", "price"),
    [
        # (a line with a discount of an earlier answer, its price without that discount)
        (
            {
                "price": "105.00",
                "total_discount": "35.00",
                "discounts": [{"amount": "35.00", "meta": {"list_price": "140.00"}}],
            },
            "140.00",
        ),
        ({"price": "105.00", "total_discount": "35.00"}, "140.00"),
        ({"price": "105.00", "discounts": [{"amount": "35.00"}]}, "140.00"),
        ({"price": 105.0, "total_discount": "35.00"}, 140.0),  # a number stays a number
        (
            {"price": "140.00", "discounts": [{"amount": "35.00", "meta": {"list_price": "140.00"}}]},
            "140.00",
        ),  # reset by the shop
    ],
)
def test_line_without_its_earlier_discount_gets_its_list_price(line: dict[str, Any], price: object) -> None:
    body = json.dumps({"items": [{"sku": "S", "quantity": 1, **line}]}).encode()
    assert json.loads(answer(body))["items"][0]["price"] == price


@st.composite
def carts(draw: st.DrawFn) -> tuple[bytes, list[Discount], tuple[Cost, ...]]:
    """A document, discounts that an engine may grant it (sometimes more than the price), and its costs."""
    body = draw(documents.checkouts())
    lines = checkout.parse(body, "validate").lines
    costs = [
        Cost(name, draw(st.sampled_from([0, 500, 1100])), line)
        for line in [None, *(line.index for line in lines if line.quantity)]
        for name in sorted(draw(st.sets(st.sampled_from(["shipping", "wrapping"]))))
    ]
    with_costs = {cost.line for cost in costs}
    on = [(None, ""), *((line.index, "") for line in lines), *((cost.line, cost.name) for cost in costs)]
    places = [
        (line, cost, scope)
        for line, cost in on
        for scope in ("goods", "costs", "total")
        if (scope == "costs" or not cost) and (scope != "costs" or line in with_costs or (costs and line is None))
    ]
    amounts = st.one_of(st.integers(1, 3_000), st.integers(1, 60_000))
    one = st.builds(
        lambda amount, place: off(amount, place[0], cost=place[1], scope=place[2]), amounts, st.sampled_from(places)
    )
    return body, draw(st.lists(one, max_size=7)), tuple(costs)


Cart = tuple[bytes, list[Discount], tuple[Cost, ...]]
Prices = dict[tuple[str, int | None], int]
"""The price of every unit: ("", line) are a line's goods; (cost, line) and (cost, None) are costs."""

Taken = list[tuple[int, set[tuple[str, int | None]]]]
"""Amounts, and the units that each may be taken off."""


def prices_of(parsed: Checkout, costs: tuple[Cost, ...]) -> Prices:
    units: Prices = {("", line.index): line.gross for line in parsed.lines}
    return units | {(cost.name, cost.line): cost.price for cost in costs}


def reach(discount: Discount, prices: Prices, *, listed: bool = False) -> set[tuple[str, int | None]]:
    """The units that a discount may be taken off; `listed` at the root, one on a line is on that line's costs."""
    scope = "costs" if discount.cost or (listed and discount.line is not None) else discount.scope
    return {
        (cost, line)
        for cost, line in prices
        if discount.line in (None, line)
        and discount.cost in ("", cost)
        and not (discount.cost and discount.line != line)
        and {"goods": not cost, "costs": bool(cost), "total": True}[scope or "total"]
    }


def any_of(taken: Taken, prices: Prices) -> Iterator[tuple[int, int, int]]:
    """For each subset of the discounts: its sum, the sum of the others, the price of all units that it reaches."""
    whole = sum(amount for amount, _ in taken)
    for count in range(len(taken) + 1):
        for chosen in itertools.combinations(taken, count):
            amount = sum(amount for amount, _ in chosen)
            yield amount, whole - amount, sum(prices[thing] for thing in set[Any]().union(*(on for _, on in chosen)))


@settings(max_examples=150, deadline=None)
@given(carts())
def test_overlapping_discounts_never_exceed_the_price_they_reach(cart: Cart) -> None:
    """Any subset takes off at most the price of all units that it reaches. (By Hall's theorem the discounts can then be
    spread over the units so that none goes below zero.)
    """
    body, granted, costs = cart
    parsed = checkout.parse(body, "validate")
    prices = prices_of(parsed, costs)
    allocation = discounts.allocate(parsed, Outcome(discounts=tuple(granted), costs=costs))
    on_lines: Taken = [(one.amount, {("", line)}) for line, listed in allocation.by_line.items() for one in listed]
    at_root = [(one.amount, reach(one, prices, listed=True)) for one in allocation.root]
    for amount, _, price in any_of([*on_lines, *at_root], prices):
        assert amount <= price


@settings(max_examples=150, deadline=None)
@given(carts())
def test_allocation_gives_the_largest_possible_discount(cart: Cart) -> None:
    """The largest possible discount is the smallest cut (max-flow, min-cut)."""
    body, granted, costs = cart
    parsed = checkout.parse(body, "validate")
    prices = prices_of(parsed, costs)
    allocation = discounts.allocate(parsed, Outcome(discounts=tuple(granted), costs=costs))
    most = min(others + price for _, others, price in any_of([(g.amount, reach(g, prices)) for g in granted], prices))
    assert allocation.total == most
    assert allocation.clamped == sum(one.amount for one in granted) - most


WRAPPED = (Cost("shipping", 1500), Cost("wrapping", 500, line=0))


@pytest.mark.parametrize(
    ("granted", "line_total", "at_root"),
    [
        # Line 0 is worth 20.00 and its wrapping 5.00, line 1 is worth 30.00, the shipping 15.00.
        ((off(500, 0, cost="wrapping"), off(500, 0, scope="costs")), 0, [500]),
        ((off(500, 0, scope="costs"), off(500, 0, cost="wrapping")), 0, [500]),
        ((off(6000, scope="goods"),), 0, [5000]),
        ((off(2000, 0), off(4000, scope="goods")), 2000, [3000]),
        ((off(2100, scope="costs"), off(1500, cost="shipping")), 0, [500, 1500]),
        ((off(9000),), 0, [7000]),
        ((off(5000, scope="goods"), off(2000, scope="costs"), off(1)), 0, [5000, 2000]),
        ((off(2600, 0, scope="total"),), 2000, [500]),
        ((off(1500, 0, scope="total"), off(800, 0)), 2000, [300]),  # it takes the rest of the line
        ((off(5000, scope="goods"), off(500, 0, scope="total")), 0, [5000, 500]),
        ((off(3100, 1, scope="total"),), 0, []),  # a line without its own costs
        ((off(100, 1, scope="costs"),), 0, [100]),  # costs whose price is unknown
        # The first moves to its costs, so that both fit.
        ((off(4800, scope="goods"), off(200, 0, scope="total"), off(200, 1, scope="total")), 0, [4800, 200]),
    ],
)
def test_overlapping_scopes_never_discount_a_price_twice(
    granted: tuple[Discount, ...], line_total: int, at_root: list[int]
) -> None:
    parsed = checkout.parse(body_a(("20.00", 1), ("30.00", 1)), "validate")
    allocation = discounts.allocate(parsed, Outcome(discounts=granted, costs=WRAPPED))
    assert (allocation.line_total(0), [one.amount for one in allocation.root]) == (line_total, at_root)


def test_discount_on_a_lines_costs_is_at_the_root_and_names_the_line() -> None:
    body = json.dumps({"items": [{"sku": "0", "quantity": 0, "price": 1}, {"sku": "W", "quantity": 1, "price": 1}]})
    got = json.loads(answer(body.encode(), off(300, 1, cost="wrap", meta={"a": 1}), costs=(Cost("wrap", 300, 1),)))
    assert [entry["meta"] for entry in got["discounts"]] == [{"a": 1, "position": 0, "sku": "W"}]
    assert got["items"][1]["total_discount"] == "0.00"


@given(carts())
def test_parts_add_up_and_are_never_negative(cart: Cart) -> None:
    body, granted, costs = cart
    parsed = checkout.parse(body, "validate")
    allocation = discounts.allocate(parsed, Outcome(discounts=tuple(granted), costs=costs))
    again = checkout.parse(discounts.write(parsed, allocation, {}), "validate")
    assert allocation.total + allocation.clamped == sum(discount.amount for discount in granted)
    for before, after in zip(parsed.lines, again.lines, strict=True):
        assert after.list_price == before.list_price
        assert after.discount == allocation.line_total(before.index) <= before.gross
        assert after.price >= 0
        if before.quantity:
            assert after.price == money.unit_price(before.gross - after.discount, before.quantity)
    listed = [(line.index if line else None, entry["amount"]) for line, entry in again.discount_entries()]
    assert sum(money.parse(amount, parsed.digits) for _, amount in listed) == allocation.total
    assert _total(again) == allocation.total


def _total(parsed: Checkout) -> int:
    return money.parse(json.loads(parsed.source.root.raw(parsed.names.totals[0])), parsed.digits)


@given(carts())
def test_validating_our_answer_again_gives_the_same_bytes(cart: Cart) -> None:
    body, granted, costs = cart
    once = answer(body, *granted, costs=costs)
    assert answer(once, *granted, costs=costs) == once


@given(carts())
def test_answer_without_its_discounts_returns_to_list_prices(cart: Cart) -> None:
    body, granted, costs = cart
    plain = checkout.parse(answer(body), "validate")
    undone = checkout.parse(answer(answer(body, *granted, costs=costs)), "validate")
    assert [line.price for line in undone.lines] == [line.price for line in plain.lines]
    assert _total(undone) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"x":1}', b'{"x":1,"notices":[1]}'),
        (b'{ "a":"f\\u00fcr \\ud83d", "notices" : [ {"b":2} ], "c\\/":1e0, "d":1.10 }',
         b'{ "a":"f\\u00fcr \\ud83d", "notices" : [1], "c\\/":1e0, "d":1.10 }'),
        (b"{ }", b'{"notices":[1] }'),
        (b"[]", b'{"notices":[1]}'),
        (b"null", b'{"notices":[1]}'),
    ],
)  # fmt: skip
def test_notices_of_consume_change_no_other_byte_of_the_note(before: bytes, after: bytes) -> None:
    body = b'{"order_items": [], "promotion": {"meta" : {"mapper":%b , "y":1.0}}}'
    order = checkout.parse(body % before, "consume")
    assert discounts.annotate(order, Raw(b"[1]")) == body % after


OURS_AT_ROOT = {'"total_discount"', '"discounts"', '"applied_discounts"', '"discounts_amount"'}
OURS_ON_LINE = OURS_AT_ROOT | {'"price"', '"price_amount"'}


@settings(max_examples=300)
@given(carts())
def test_fields_outside_the_contract_never_change(cart: Cart) -> None:
    body, granted, costs = cart
    before, after = documents.read(body), documents.read(answer(body, *granted, costs=costs, note={"engine": "x"}))
    assert without_ours(after) == without_ours(before)
    assert [key for key in after if key in before] == [key for key in before if key in after]


def without_ours(root: dict[str, Any]) -> dict[str, Any]:
    """A tree of `documents.read` without the mapper's fields."""
    kept = {key: value for key, value in root.items() if key not in OURS_AT_ROOT}
    for key in ('"items"', '"order_items"'):
        if key in kept:
            kept[key] = [
                {name: value for name, value in line.items() if name not in OURS_ON_LINE} for line in kept[key]
            ]
    if '"orders"' in kept:
        kept['"orders"'] = [without_ours(order) for order in kept['"orders"']]
    for key in ('"promotions"', '"promotion"'):
        if isinstance(kept.get(key), dict):
            meta = kept[key].get('"meta"', "null")
            meta = {name: value for name, value in meta.items() if name != '"mapper"'} if isinstance(meta, dict) else {}
            kept[key] = {name: value for name, value in kept[key].items() if name != '"meta"'} | {"meta": meta}
    return kept
