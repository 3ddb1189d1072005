"""Applies discounts to a checkout: `allocate` does the arithmetic, `write` the document.

Line discounts and order-level discounts always add up to the total discount. No line and no cost falls below zero. The
discounts of an earlier validate are replaced.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from mapper.domain import money
from mapper.domain.checkout import Checkout
from mapper.domain.document import Changes, Path
from mapper.domain.families import Names
from mapper.domain.lines import Line
from mapper.domain.outcome import Cost, Discount, Outcome, Scope


class Allocation(Struct, frozen=True):
    """The discounts as they are written to the document. Amounts are in minor units."""

    by_line: Mapping[int, Sequence[Discount]]
    """By `Line.index`; lines without a discount are absent."""
    line_totals: Mapping[int, int]
    """The discount of each of these lines."""
    root: tuple[Discount, ...]
    root_total: int
    clamped: int
    """What was granted beyond the prices of lines, costs and order, and is not taken off."""

    def line_total(self, index: int) -> int:
        return self.line_totals.get(index, 0)

    @property
    def total(self) -> int:
        return sum(self.line_totals.values()) + self.root_total


def allocate(checkout: Checkout, outcome: Outcome) -> Allocation:
    """Allocates what the engine grants to lines and root, and clamps it to what there is to take off.

    An order's discount stays one of the order, in its root: it is not split over lines. An engine that splits discounts
    grants them per line (`adapters/<engine>/effects.py`).

    A line is part of the goods, a cost is part of all costs, and both are part of the order. So a discount on the part
    also reduces what remains of the whole. Discounts on the narrowest targets are allocated first.
    """
    on_lines: dict[int, list[Discount]] = {}
    others: list[Discount] = []
    for discount in outcome.discounts:
        if discount.line is not None and _scope(discount) == "goods":
            on_lines.setdefault(discount.line, []).append(discount)
        else:
            others.append(discount)
    by_line: dict[int, list[Discount]] = {}
    line_totals: dict[int, int] = {}
    for line in checkout.lines:
        if discounts := on_lines.get(line.index):
            total, gross = _total(discounts), line.gross
            if total > gross:
                discounts, total = _clamp(discounts, gross), gross
            if total:
                by_line[line.index], line_totals[line.index] = discounts, total

    root: list[Discount] = []
    for discount, share in zip(others, _shares(checkout, outcome.costs, others, line_totals), strict=True):
        if share.on_line and discount.line is not None:
            by_line.setdefault(discount.line, []).append(_with_amount(discount, share.on_line))
            line_totals[discount.line] = line_totals.get(discount.line, 0) + share.on_line
        if share.at_root:
            root.append(_with_amount(_root_discount(checkout, discount), share.at_root))
    root_total = _total(root)
    clamped = _total(outcome.discounts) - sum(line_totals.values()) - root_total
    return Allocation(by_line, line_totals, tuple(root), root_total, clamped)


def _total(discounts: Sequence[Discount]) -> int:
    return discounts[0].amount if len(discounts) == 1 else sum([discount.amount for discount in discounts])


def _clamp(discounts: Iterable[Discount], limit: int) -> list[Discount]:
    """The discounts, the last ones reduced or dropped, so that their total is at most `limit`."""
    kept: list[Discount] = []
    for discount in discounts:
        amount = min(discount.amount, limit)
        limit -= amount
        if amount:
            kept.append(_with_amount(discount, amount))
    return kept


def _with_amount(discount: Discount, amount: int) -> Discount:
    return discount if discount.amount == amount else msgspec.structs.replace(discount, amount=amount)


def _root_discount(checkout: Checkout, discount: Discount) -> Discount:
    """The discount as it is listed at the root: one on the costs of a line names the line in its `meta`."""
    if discount.line is None:
        return discount
    position, line = next(pair for pair in enumerate(checkout.cart) if pair[1].index == discount.line)
    return msgspec.structs.replace(discount, meta={**discount.meta, "position": position, "sku": line.name})


# ---------------------------------------------------------------------------------------------------------------------
# Discounts on the order and on costs

_Target = tuple[Scope, int | None, str]
"""What a discount is on: scope, line and cost of a `Discount`."""
_GOODS: _Target = ("goods", None, "")
_COSTS: _Target = ("costs", None, "")
_ORDER: _Target = ("total", None, "")


def _target(discount: Discount) -> _Target:
    return _scope(discount), discount.line, discount.cost


def _scope(discount: Discount) -> Scope:
    if discount.scope is not None:
        return discount.scope
    return "costs" if discount.cost else "total" if discount.line is None else "goods"


class _Share(Struct):
    """How much of one discount is taken off, and where it is listed."""

    target: _Target
    granted: int
    on_line: int = 0
    """On the units of a line; listed with the line."""
    at_root: int = 0
    """On anything else; listed at the root."""

    @property
    def is_line_total(self) -> bool:
        return self.target[0] == "total" and self.target[1] is not None


def _shares(
    checkout: Checkout, costs: Iterable[Cost], discounts: Sequence[Discount], line_totals: Mapping[int, int]
) -> list[_Share]:
    """The shares of discounts on anything but the units of a line. `line_totals` is taken off the lines already."""
    if not discounts:
        return []
    shares = [_Share(_target(discount), discount.amount) for discount in discounts]
    remaining = _Remaining(checkout, costs, line_totals, any_on_line=any(share.is_line_total for share in shares))
    line_shares: list[_Share] = []
    for share in sorted(shares, key=_width):
        if share.is_line_total:
            _take_line_total(share, remaining, line_shares)
            line_shares.append(share)
        else:
            share.at_root = remaining.take(share.target, share.granted)
    return shares


def _width(share: _Share) -> int:
    """The width of the target, from 0, one cost, to 4, the order."""
    scope, line, cost = share.target
    if cost:
        return 0
    if line is not None:
        return 3 if scope == "total" else 1
    return 4 if scope == "total" else 2


def _take_line_total(share: _Share, remaining: "_Remaining", earlier: Iterable[_Share]) -> None:
    """Takes a discount on a line's total off the line's units first, then off the line's own costs.

    Where other discounts have used up the goods of the order, the `earlier` shares on line totals make room: they move
    from the units of their line to its costs, as far as these remain.
    """
    line = share.target[1]
    units: _Target = ("goods", line, "")
    share.on_line = remaining.take(units, share.granted)
    costs: _Target = ("costs", line, "")
    share.at_root = remaining.take(costs, min(share.granted - share.on_line, remaining.of(costs)))
    for other in earlier:
        missing = min(share.granted - share.on_line - share.at_root, remaining.of(units))
        others_costs: _Target = ("costs", other.target[1], "")
        moved = remaining.take(others_costs, min(missing, other.on_line, remaining.of(others_costs)))
        remaining.restore(("goods", other.target[1], ""), moved)
        other.on_line, other.at_root = other.on_line - moved, other.at_root + moved
        share.on_line += remaining.take(units, moved)


class _Remaining:
    """What remains to be taken off each target that has a price."""

    def __init__(
        self, checkout: Checkout, costs: Iterable[Cost], line_totals: Mapping[int, int], *, any_on_line: bool
    ) -> None:
        """`line_totals` is taken off already. `any_on_line`: whether more is to be taken off the units of lines."""
        goods = sum([line.gross for line in checkout.lines]) - sum(line_totals.values())
        self._amounts: dict[_Target, int] = {_GOODS: goods, _ORDER: goods}
        for line in checkout.lines if any_on_line else ():
            self._amounts["goods", line.index, ""] = line.gross - line_totals.get(line.index, 0)
        for cost in costs:
            for target in _with_wider(("costs", cost.line, cost.name)):
                self._amounts[target] = self._amounts.get(target, 0) + cost.price

    def of(self, target: _Target) -> int:
        """What remains of the target itself, whatever remains of the wider ones."""
        return self._amounts.get(target, 0)

    def take(self, target: _Target, amount: int) -> int:
        """Takes off up to `amount`; returns how much."""
        if target not in self._amounts and target[0] == "costs":
            return amount  # a cost whose price is not known is not limited
        targets = _with_wider(target)
        taken = min([amount, *map(self.of, targets)])
        if taken:
            for each in targets:
                self._amounts[each] -= taken
        return taken

    def restore(self, target: _Target, amount: int) -> None:
        for each in _with_wider(target):
            self._amounts[each] += amount


def _with_wider(target: _Target) -> tuple[_Target, ...]:
    """The target, and all targets that it is a part of."""
    scope, line, cost = target
    if scope == "goods":
        return (target, _GOODS, _ORDER) if line is not None else (_GOODS, _ORDER)
    if scope == "total":
        return (_ORDER,)
    if line is None:
        return (target, _COSTS, _ORDER) if cost else (_COSTS, _ORDER)
    all_of_line: _Target = ("costs", line, "")
    return (target, all_of_line, _COSTS, _ORDER) if cost else (all_of_line, _COSTS, _ORDER)


# ---------------------------------------------------------------------------------------------------------------------
# The document


def write(
    checkout: Checkout, allocation: Allocation, note: Mapping[str, Any], *, receipt_required: bool = False
) -> bytes:
    """The document with reduced prices and listed discounts. All other bytes are unchanged.

    `note` goes to `promotions.meta.mapper`. A body without a promotion object gets one only where consume needs the
    receipt (`receipt_required`), or the note has notices or says `degraded`.
    """
    digits, write_empty = checkout.digits, checkout.family.writes_empty_lists
    entries = [_entry(discount, discount.meta, digits) for discount in allocation.root]
    total = money.text(allocation.total, digits)
    changes: dict[Path, Changes] = {(): _discount_changes(checkout.names, total, entries, write_empty)}
    lines: dict[Path, list[Changes]] = {}
    for order in checkout.orders:
        if order.path:
            total = money.text(sum([allocation.line_total(line.index) for line in order.lines]), digits)
            changes[order.path] = _discount_changes(order.names, total, [], write_empty)
        lines[*order.path, checkout.family.lines] = [
            _line_changes(line, allocation, digits, write_empty) for line in order.lines
        ]
    if checkout.promotions_at or receipt_required or note.get("notices") or note.get("degraded"):
        path, members = _note_change(checkout, note)
        changes[path] = {**changes.get(path, {}), **members}
    return checkout.source.replace(changes, lines)


def annotate(checkout: Checkout, notices: Raw) -> bytes:
    """The document with `notices` at `promotions.meta.mapper.notices`, otherwise unchanged."""
    note = (*checkout.promotions_at, "meta", "mapper")
    if checkout.promotions_at and isinstance(checkout.source.decoded_at(note), dict):
        return checkout.source.replace({note: {"notices": notices}})
    path, members = _note_change(checkout, {"notices": notices})
    return checkout.source.replace({path: members})


def _note_change(checkout: Checkout, note: Mapping[str, Any]) -> tuple[Path, Changes]:
    """The path of the object that gets the note, and its new member."""
    if not checkout.promotions_at:
        names = ("promotions", "promotion") if checkout.family.name == "A" else ("promotion", "promotions")
        name = next((name for name in names if name in checkout.source.decoded), names[0])  # the member may be null
        return (), {name: {"meta": {"mapper": note}}}
    meta = (*checkout.promotions_at, "meta")
    if isinstance(checkout.source.decoded_at(meta), dict):
        return meta, {"mapper": note}
    return checkout.promotions_at, {"meta": {"mapper": note}}


def _line_changes(line: Line, allocation: Allocation, digits: int, write_empty: bool) -> Changes:
    entries: list[_Entry] = []
    discount = allocation.line_totals.get(line.index, 0)
    price = line.list_price
    if discount:
        list_price = money.text(price, digits)
        price = money.unit_price(line.gross - discount, line.quantity)
        entries = [
            _entry(each, {**each.meta, "list_price": list_price}, digits) for each in allocation.by_line[line.index]
        ]
    changes = _discount_changes(line.names, money.text(discount, digits), entries, write_empty)
    if price != line.price:
        text = money.text(price, digits)
        for key in line.price_keys:
            changes[key] = text if isinstance(line.decoded[key], str) else Raw(text.encode())
    return changes


def _discount_changes(names: Names, total: str, entries: list["_Entry"], write_empty: bool) -> dict[str, Any]:
    """The total and the list of discounts. An empty list is left out unless `write_empty`."""
    changes: dict[str, Any] = dict.fromkeys(names.totals, total)
    if entries or write_empty:
        changes[names.list] = entries
    elif names.has_list:
        changes[names.list] = None
    return changes


class _Entry(Struct, gc=False):
    """A discount as the document lists it."""

    name: str
    description: str
    amount: str
    effect_type: str
    meta: Mapping[str, Any]


def _entry(discount: Discount, meta: Mapping[str, Any], digits: int) -> _Entry:
    amount = money.text(discount.amount, digits)
    return _Entry(discount.name, discount.description, amount, discount.effect_type, meta)
