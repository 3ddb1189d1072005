"""Puts discounts onto a checkout: first the arithmetic (`settle`), then the document (`write`).

Line discounts and order-level discounts always add up to the total, no line and no cost goes below zero, and what was
written before by this service is replaced, never stacked.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mapper import money
from mapper.adapter import Discount, Outcome
from mapper.checkout import Checkout, Line, Names, Order

_encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class Settled:
    """The discounts as they will stand in the document: amounts in minor units, nothing below zero."""

    by_line: Mapping[int, tuple[Discount, ...]]
    """By `Line.index`; lines without a discount are absent."""
    root: tuple[Discount, ...]
    clamped: int
    """What was granted beyond the price of the thing it was granted on, and therefore not taken off."""

    def line_total(self, index: int) -> int:
        return sum(discount.amount for discount in self.by_line.get(index, ()))

    @property
    def root_total(self) -> int:
        return sum(discount.amount for discount in self.root)

    @property
    def total(self) -> int:
        return sum(map(self.line_total, self.by_line)) + self.root_total


def settle(checkout: Checkout, outcome: Outcome) -> Settled:
    """Clamps each line at its list price, each additional cost at its price, and the rest at what is left to pay."""
    by_line: dict[int, list[Discount]] = {}
    order_level: list[Discount] = []
    for discount in outcome.discounts:
        (order_level if discount.line is None else by_line.setdefault(discount.line, [])).append(discount)
    lines = {line.index: _within(by_line.get(line.index, []), line.gross) for line in checkout.lines}

    budget = sum(line.gross for line in checkout.lines) + outcome.costs
    budget -= sum(discount.amount for kept in lines.values() for discount in kept)
    # Costs first: what a cost is reduced by, an order-level discount can no longer take off.
    by_cost: dict[tuple[str, int], list[Discount]] = {}
    for discount in order_level:
        if discount.limit is not None:
            by_cost.setdefault((discount.cost, discount.limit), []).append(discount)
    root = [discount for cost, same in by_cost.items() for discount in _within(same, cost[1])]
    known = min(outcome.costs, sum(discount.amount for discount in root))
    # A cost whose price we were never told cannot be clamped; the goods' own discounts are, at what is left.
    root += [discount for discount in order_level if discount.limit is None and discount.cost]
    root += _within([d for d in order_level if d.limit is None and not d.cost], max(0, budget - known))

    settled = Settled(
        by_line={index: tuple(kept) for index, kept in lines.items() if kept}, root=tuple(root), clamped=0
    )
    granted = sum(discount.amount for discount in outcome.discounts)
    return dataclasses.replace(settled, clamped=granted - settled.total)


def _within(discounts: Iterable[Discount], limit: int) -> list[Discount]:
    """The discounts, the last of them cut, so that together they take off no more than `limit`."""
    kept: list[Discount] = []
    for discount in discounts:
        amount = min(discount.amount, limit)
        limit -= amount
        if amount:
            kept.append(discount if amount == discount.amount else msgspec.structs.replace(discount, amount=amount))
    return kept


def write(checkout: Checkout, settled: Settled, note: Mapping[str, Any]) -> bytes:
    """The whole document, prices reduced and discounts listed; every byte that the contract does not name as it came.

    `note` goes to `promotions.meta.mapper`, where the body has a promotion object.
    """
    orders = {index: _order(checkout, order, settled) for index, order in enumerate(checkout.orders)}
    changes: dict[str, bytes | None] = {}
    if checkout.family == "C":
        for index, order in enumerate(checkout.orders):
            own = sum(settled.line_total(line.index) for line in order.lines)
            orders[index] |= _fields(order.names, own, (), checkout.digits, always=False)
    else:
        changes |= orders[0]
    always = checkout.family == "A"
    changes |= _fields(
        checkout.names,
        settled.total,
        [_entry(d, checkout.digits) for d in settled.root],
        checkout.digits,
        always=always,
    )
    return _assemble(checkout, changes, orders if checkout.family == "C" else {}, note)


def annotate(checkout: Checkout, note: Mapping[str, Any]) -> bytes:
    """The document as it came, but for `promotions.meta.mapper`."""
    return _assemble(checkout, {}, {}, note)


def _order(checkout: Checkout, order: Order, settled: Settled) -> dict[str, bytes | None]:
    lines = {
        index: line.source.render(_line(checkout, line, settled.by_line.get(line.index, ())))
        for index, line in enumerate(order.lines)
    }
    return {order.lines_key: order.array.render(lines)}


def _line(checkout: Checkout, line: Line, discounts: tuple[Discount, ...]) -> dict[str, bytes | None]:
    digits = checkout.digits
    off = sum(discount.amount for discount in discounts)
    price = money.unit_price(line.gross - off, line.quantity) if line.quantity else line.list_price
    changes: dict[str, bytes | None] = {}
    if price != line.price:
        text = money.text(price, digits).encode()
        for key in line.price_keys:
            changes[key] = text if line.source.kind(key) == "number" else b'"' + text + b'"'
    marks = {"list_price": money.text(line.list_price, digits)}
    entries = [_entry(discount, digits, marks) for discount in discounts]
    return changes | _fields(line.names, off, entries, digits, always=checkout.family == "A")


def _fields(
    names: Names, total: int, entries: Iterable[dict[str, Any]], digits: int, *, always: bool
) -> dict[str, bytes | None]:
    """The total and the list of discounts. An empty list is left out where Nacelle's model wants at least one entry."""
    changes: dict[str, bytes | None] = {key: _encode(money.text(total, digits)) for key in names.totals}
    listed = list(entries)
    if listed or always:
        changes[names.list] = _encode(listed)
    elif names.came:
        changes[names.list] = None
    return changes


def _entry(discount: Discount, digits: int, marks: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": discount.name,
        "description": discount.description,
        "amount": money.text(discount.amount, digits),
        "effect_type": discount.effect_type,
        "meta": {**discount.meta, **(marks or {})},
    }


def _assemble(
    checkout: Checkout,
    changes: dict[str, bytes | None],
    orders: Mapping[int, dict[str, bytes | None]],
    note: Mapping[str, Any],
) -> bytes:
    """Puts the changes of root and orders, and the note, in place; each object is rendered once."""
    by_order = {index: dict(of_order) for index, of_order in orders.items()}
    if checkout.promotions_at:
        *way, key = checkout.promotions_at
        if way:
            index = int(way[1])
            by_order.setdefault(index, {})[key] = _promotions(checkout.orders[index].source, key, note)
        else:
            changes = {**changes, key: _promotions(checkout.source, key, note)}
    if by_order:
        array = checkout.source.array("orders")
        assert array is not None, "only family C has changes by order"
        changes = {
            **changes,
            "orders": array.render({i: checkout.orders[i].source.render(c) for i, c in by_order.items()}),
        }
    return checkout.source.render(changes)


def _promotions(source: Any, key: str, note: Mapping[str, Any]) -> bytes:
    promotions = source.object(key)
    meta = promotions.object("meta")
    mapper = _encode(note)
    return bytes(
        promotions.render({"meta": meta.render({"mapper": mapper}) if meta else b'{"mapper":' + mapper + b"}"})
    )
