"""Puts discounts onto a checkout: first the arithmetic (`settle`), then the document (`write`).

Line discounts and order-level discounts always add up to the total, no line and no cost goes below zero, and what was
written before by this service is replaced, never stacked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from mapper.domain import money
from mapper.domain.checkout import Checkout, Line, Names, Order
from mapper.domain.document import Edit, encode
from mapper.domain.outcome import Discount, Outcome


@dataclass(frozen=True)
class Settled:
    """The discounts as they will stand in the document: amounts in minor units, nothing below zero."""

    by_line: Mapping[int, Sequence[Discount]]
    """By `Line.index`; lines without a discount are absent."""
    line_totals: Mapping[int, int]
    """What is off each of these lines."""
    root: tuple[Discount, ...]
    root_total: int
    clamped: int
    """What was granted beyond the price of the thing it was granted on, and therefore not taken off."""

    def line_total(self, index: int) -> int:
        return self.line_totals.get(index, 0)

    @property
    def total(self) -> int:
        return sum(self.line_totals.values()) + self.root_total


def settle(checkout: Checkout, outcome: Outcome) -> Settled:
    """Clamps each line at its list price, each additional cost at its price, and the rest at what is left to pay."""
    by_line: dict[int, list[Discount]] = {}
    order_level: list[Discount] = []
    for discount in outcome.discounts:
        (order_level if discount.line is None else by_line.setdefault(discount.line, [])).append(discount)
    granted = _total(outcome.discounts)
    budget = outcome.costs
    kept: dict[int, Sequence[Discount]] = {}
    line_totals: dict[int, int] = {}
    for line in checkout.lines:
        budget += (gross := line.gross)
        if (of_line := by_line.get(line.index)) and gross > 0:
            total = _total(of_line)
            if total > gross:
                of_line, total = _within(of_line, gross), gross
            kept[line.index], line_totals[line.index] = of_line, total
            budget -= total

    # Costs first: what a cost is reduced by, an order-level discount can no longer take off.
    by_cost: dict[tuple[str, int], list[Discount]] = {}
    for discount in order_level:
        if discount.limit is not None:
            by_cost.setdefault((discount.cost, discount.limit), []).append(discount)
    root = [discount for cost, same in by_cost.items() for discount in _within(same, cost[1])]
    known = min(outcome.costs, _total(root))
    # A cost whose price we were never told cannot be clamped; the goods' own discounts are, at what is left.
    root += [discount for discount in order_level if discount.limit is None and discount.cost]
    root += _within([d for d in order_level if d.limit is None and not d.cost], max(0, budget - known))

    root_total = _total(root)
    clamped = granted - sum(line_totals.values()) - root_total
    return Settled(by_line=kept, line_totals=line_totals, root=tuple(root), root_total=root_total, clamped=clamped)


def _total(discounts: Iterable[Discount]) -> int:
    return sum([discount.amount for discount in discounts])


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
    listed = [_entry(discount, checkout.digits) for discount in settled.root]
    always = checkout.family == "A"
    changes = _fields({}, checkout.names, settled.total, listed, checkout.digits, always=always)
    by_order = [_order(checkout, order, settled) for order in checkout.orders]
    if checkout.source.exact:
        return encode(_anew(checkout, changes, by_order, note))
    edits = checkout.source.edits(_encoded(changes)) + _note(checkout, note)
    for order, (own, lines) in zip(checkout.orders, by_order, strict=True):
        edits += order.source.edits(_encoded(own))
        for line, of_line in zip(order.lines, lines, strict=True):
            edits += line.source.edits(_encoded(of_line))
    return checkout.source.edited(edits)


def _anew(
    checkout: Checkout,
    changes: "_Changes",
    by_order: list[tuple["_Changes", list["_Changes"]]],
    note: Mapping[str, Any],
) -> dict[str, Any]:
    """The document as plain values, changed. Several times as fast, where it comes out of the encoder as it went in."""
    orders = [
        _changed(order.plain, {**own, order.lines_key: [*map(_changed, order.plain[order.lines_key], lines)]})
        for order, (own, lines) in zip(checkout.orders, by_order, strict=True)
    ]
    root = _changed({**checkout.source.plain, "orders": orders} if checkout.family == "C" else orders[0], changes)
    if checkout.promotions_at:
        *way, key = checkout.promotions_at
        above = orders[int(way[1])] if way else root
        meta = above[key].get("meta")
        above[key] = {**above[key], "meta": {**(meta if isinstance(meta, dict) else {}), "mapper": note}}
    return root


def _changed(plain: Mapping[str, Any], changes: "_Changes") -> dict[str, Any]:
    changed = {**plain, **changes}
    if None in changes.values():
        for key in [key for key, value in changes.items() if value is None]:
            del changed[key]
    return changed


def annotate(checkout: Checkout, note: Mapping[str, Any]) -> bytes:
    """The document as it came, but for `promotions.meta.mapper`."""
    return checkout.source.edited(_note(checkout, note))


_Changes = dict[str, Any]
"""By key: what is to be encoded there, or None for what is to go."""


def _encoded(changes: _Changes) -> dict[str, bytes | None]:
    return {key: None if value is None else encode(value) for key, value in changes.items()}


def _order(checkout: Checkout, order: Order, settled: Settled) -> tuple[_Changes, list[_Changes]]:
    """The changes of an order itself (where it is not the whole body), and of its lines."""
    always = checkout.family == "A"
    lines = [_line(line, settled, checkout.digits, always=always) for line in order.lines]
    if checkout.family != "C":
        return {}, lines
    total = sum([settled.line_total(line.index) for line in order.lines])
    return _fields({}, order.names, total, [], checkout.digits, always=False), lines


def _line(line: Line, settled: Settled, digits: int, *, always: bool) -> _Changes:
    off = settled.line_total(line.index)
    list_price = price = line.list_price
    entries: list[_Entry] = []
    if off:
        price = money.unit_price(line.gross - off, line.quantity)
        mark = money.text(list_price, digits)
        entries = [_entry(discount, digits, mark) for discount in settled.by_line[line.index]]
    changes: _Changes = {}
    if price != line.price:
        text = money.text(price, digits)
        for key in line.price_keys:
            changes[key] = text if isinstance(line.plain[key], str) else Raw(text.encode())
    return _fields(changes, line.names, off, entries, digits, always=always)


def _fields(
    changes: _Changes, names: Names, total: int, entries: list["_Entry"], digits: int, *, always: bool
) -> _Changes:
    """With total and list of discounts. An empty list is left out where Nacelle's model wants at least one entry."""
    text = money.text(total, digits)
    for key in names.totals:
        changes[key] = text
    if entries or always:
        changes[names.list] = entries
    elif names.came:
        changes[names.list] = None
    return changes


class _Entry(msgspec.Struct):
    """How a discount stands in the document."""

    name: str
    description: str
    amount: str
    effect_type: str
    meta: Mapping[str, Any]


def _entry(discount: Discount, digits: int, list_price: str = "") -> _Entry:
    meta = {**discount.meta, "list_price": list_price} if list_price else discount.meta
    amount = money.text(discount.amount, digits)
    return _Entry(discount.name, discount.description, amount, discount.effect_type, meta)


def _note(checkout: Checkout, note: Mapping[str, Any]) -> list[Edit]:
    if not checkout.promotions_at:
        return []
    *way, key = checkout.promotions_at
    above = checkout.orders[int(way[1])].source if way else checkout.source
    promotions = above.object(key)
    assert promotions is not None, "the note has its place in it"
    meta, mapper = promotions.object("meta"), encode(note)
    return meta.edits({"mapper": mapper}) if meta else promotions.edits({"meta": b'{"mapper":%b}' % mapper})
