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
from mapper.domain.checkout import Checkout
from mapper.domain.document import Changes, Path
from mapper.domain.families import Names
from mapper.domain.lines import Line
from mapper.domain.outcome import Cost, Discount, Outcome, Scope


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
    """Takes off as much of what the engine grants as there is to take off, each thing once, however it is reached.

    A line's units are part of the goods, a cost is part of all costs, both are part of the order: what is off the part
    is off the whole, too. So the narrowest discounts come first, and the widest get what is left.
    """
    granted: dict[int, list[Discount]] = {}
    others: list[Discount] = []
    for discount in outcome.discounts:
        if discount.line is not None and _scope(discount) == "goods":
            granted.setdefault(discount.line, []).append(discount)
        else:
            others.append(discount)
    by_line: dict[int, list[Discount]] = {}
    line_totals: dict[int, int] = {}
    for line in checkout.lines:
        if of_line := granted.get(line.index):
            total, gross = _total(of_line), line.gross
            if total > gross:
                of_line, total = _within(of_line, gross), gross
            if total:
                by_line[line.index], line_totals[line.index] = of_line, total

    root: list[Discount] = []
    for discount, share in zip(others, _shares(checkout, outcome.costs, others, line_totals), strict=True):
        if share.of_line and discount.line is not None:
            by_line.setdefault(discount.line, []).append(_cut(discount, share.of_line))
            line_totals[discount.line] = line_totals.get(discount.line, 0) + share.of_line
        if share.beside:
            root.append(_cut(_placed(checkout, discount), share.beside))
    root_total = _total(root)
    clamped = _total(outcome.discounts) - sum(line_totals.values()) - root_total
    return Settled(by_line=by_line, line_totals=line_totals, root=tuple(root), root_total=root_total, clamped=clamped)


def _total(discounts: Sequence[Discount]) -> int:
    return discounts[0].amount if len(discounts) == 1 else sum([discount.amount for discount in discounts])


def _within(discounts: Iterable[Discount], limit: int) -> list[Discount]:
    """The discounts, the last of them cut, so that together they take off no more than `limit`."""
    kept: list[Discount] = []
    for discount in discounts:
        amount = min(discount.amount, limit)
        limit -= amount
        if amount:
            kept.append(_cut(discount, amount))
    return kept


def _cut(discount: Discount, amount: int) -> Discount:
    return discount if discount.amount == amount else msgspec.structs.replace(discount, amount=amount)


def _placed(checkout: Checkout, discount: Discount) -> Discount:
    """As it is listed at the root: what lies on a line's own costs names the line."""
    if discount.line is None:
        return discount
    position, line = next(found for found in enumerate(checkout.cart) if found[1].index == discount.line)
    return msgspec.structs.replace(discount, meta={**discount.meta, "position": position, "sku": line.name})


_Thing = tuple[Scope, int | None, str]
"""What a discount lies on: scope, line, cost, as a `Discount` has them."""
_GOODS: _Thing = ("goods", None, "")
_COSTS: _Thing = ("costs", None, "")
_ORDER: _Thing = ("total", None, "")


def _thing(discount: Discount) -> _Thing:
    return _scope(discount), discount.line, discount.cost


def _scope(discount: Discount) -> Scope:
    if discount.scope is not None:
        return discount.scope
    return "costs" if discount.cost else "total" if discount.line is None else "goods"


@dataclass(slots=True)
class _Share:
    """What one discount takes off its thing."""

    thing: _Thing
    granted: int
    of_line: int = 0
    """Off the units of a line: listed with the line."""
    beside: int = 0
    """Off anything else: listed at the root."""

    @property
    def is_line_total(self) -> bool:
        return self.thing[0] == "total" and self.thing[1] is not None

    @property
    def width(self) -> int:
        """From a single cost to the whole order."""
        scope, line, cost = self.thing
        if cost:
            return 0
        if line is not None:
            return 3 if scope == "total" else 1
        return 4 if scope == "total" else 2


def _shares(
    checkout: Checkout, costs: Iterable[Cost], discounts: Sequence[Discount], line_totals: Mapping[int, int]
) -> list[_Share]:
    """What each of these discounts takes off: none of them lies on a line's units, and `line_totals` are off these."""
    if not discounts:
        return []
    shares = [_Share(_thing(discount), discount.amount) for discount in discounts]
    left = _Left(checkout, costs, line_totals, any_units=any(share.is_line_total for share in shares))
    line_shares: list[_Share] = []
    for share in sorted(shares, key=lambda share: share.width):
        if share.is_line_total:
            _take_line_total(share, left, line_shares)
            line_shares.append(share)
        else:
            share.beside = left.take(share.thing, share.granted)
    return shares


def _take_line_total(share: _Share, left: "_Left", earlier: Iterable[_Share]) -> None:
    """Off a line's units as far as that goes, the rest off its own costs.

    Where others have used up the goods of the order, those before it (`earlier`) that can make room for it do: they
    move from their line's units to its costs.
    """
    line = share.thing[1]
    units: _Thing = ("goods", line, "")
    share.of_line = left.take(units, share.granted)
    costs: _Thing = ("costs", line, "")
    share.beside = left.take(costs, min(share.granted - share.of_line, left.part(costs)))
    for other in earlier:
        missing = min(share.granted - share.of_line - share.beside, left.part(units))
        others_costs: _Thing = ("costs", other.thing[1], "")
        moved = left.take(others_costs, min(missing, other.of_line, left.part(others_costs)))
        left.give_back(("goods", other.thing[1], ""), moved)
        other.of_line, other.beside = other.of_line - moved, other.beside + moved
        share.of_line += left.take(units, moved)


class _Left:
    """What there still is to take off each thing that has a price."""

    def __init__(
        self, checkout: Checkout, costs: Iterable[Cost], line_totals: Mapping[int, int], *, any_units: bool
    ) -> None:
        """`line_totals` is off the lines already. `any_units`: whether more is to be taken off their units."""
        goods = sum([line.gross for line in checkout.lines]) - sum(line_totals.values())
        self._left: dict[_Thing, int] = {_GOODS: goods, _ORDER: goods}
        for line in checkout.lines if any_units else ():
            self._left["goods", line.index, ""] = line.gross - line_totals.get(line.index, 0)
        for cost in costs:
            for thing in _with_wider(("costs", cost.line, cost.name)):
                self._left[thing] = self._left.get(thing, 0) + cost.price

    def part(self, thing: _Thing) -> int:
        """What is left of the thing itself, whatever is left of the wider ones."""
        return self._left.get(thing, 0)

    def take(self, thing: _Thing, amount: int) -> int:
        """Takes off as much as there is, and says how much that was."""
        if thing not in self._left and thing[0] == "costs":
            return amount  # a cost that the engine knows from somebody else: nobody told us its price
        taken = min(amount, *[self.part(one) for one in _with_wider(thing)])
        if taken:
            self._add(thing, -taken)
        return taken

    def give_back(self, thing: _Thing, amount: int) -> None:
        self._add(thing, amount)

    def _add(self, thing: _Thing, amount: int) -> None:
        for one in _with_wider(thing):
            self._left[one] += amount


def _with_wider(thing: _Thing) -> tuple[_Thing, ...]:
    """The thing, and all that it is a part of."""
    scope, line, cost = thing
    if scope == "goods":
        return (thing, _GOODS, _ORDER) if line is not None else (_GOODS, _ORDER)
    if scope == "total":
        return (_ORDER,)
    if line is None:
        return (thing, _COSTS, _ORDER) if cost else (_COSTS, _ORDER)
    of_line: _Thing = ("costs", line, "")
    return (thing, of_line, _COSTS, _ORDER) if cost else (of_line, _COSTS, _ORDER)


def write(checkout: Checkout, settled: Settled, note: Mapping[str, Any], *, receipt_required: bool = False) -> bytes:
    """The whole document, prices reduced and discounts listed; every byte that the contract does not name as it came.

    `note` goes to `promotions.meta.mapper`. A body without a promotion object gets one only where the note has to reach
    somebody: consume, with a required receipt, or a person.
    """
    digits, always = checkout.digits, checkout.family.writes_empty_lists
    changes: dict[Path, dict[str, Any]] = {}
    lines: dict[Path, list[Changes]] = {}
    for order in checkout.orders:
        if order.path:
            total = money.text(sum([settled.line_total(line.index) for line in order.lines]), digits)
            _set_discounts(changes.setdefault(order.path, {}), order.names, total, [], always=always)
        lines[*order.path, checkout.family.lines] = [
            _line(line, settled, digits, always=always) for line in order.lines
        ]
    listed = [_entry(discount, digits) for discount in settled.root]
    total = money.text(settled.total, digits)
    _set_discounts(changes.setdefault((), {}), checkout.names, total, listed, always=always)
    if checkout.promotions_at or receipt_required or note.get("notices") or note.get("degraded"):
        for path, members in _note(checkout, note).items():
            changes.setdefault(path, {}).update(members)
    return checkout.source.replace(changes, lines)


def annotate(checkout: Checkout, note: Mapping[str, Any]) -> bytes:
    """The document as it came, but for `promotions.meta.mapper`."""
    return checkout.source.replace(_note(checkout, note))


def _note(checkout: Checkout, note: Mapping[str, Any]) -> dict[Path, Changes]:
    if not checkout.promotions_at:
        names = ("promotions", "promotion") if checkout.family.name == "A" else ("promotion", "promotions")
        name = next((name for name in names if name in checkout.source.decoded), names[0])  # it may be null
        return {(): {name: {"meta": {"mapper": note}}}}
    meta = (*checkout.promotions_at, "meta")
    if isinstance(checkout.source.decoded_at(meta), dict):
        return {meta: {"mapper": note}}
    return {checkout.promotions_at: {"meta": {"mapper": note}}}


def _line(line: Line, settled: Settled, digits: int, *, always: bool) -> Changes:
    changes: dict[str, Any] = {}
    entries: list[_Entry] = []
    off = settled.line_totals.get(line.index, 0)
    list_price = price = line.list_price
    if off:
        price = money.unit_price(line.gross - off, line.quantity)
        mark = money.text(list_price, digits)
        entries = [_entry(discount, digits, mark) for discount in settled.by_line[line.index]]
    if price != line.price:
        text = money.text(price, digits)
        for key in line.price_keys:
            changes[key] = text if isinstance(line.decoded[key], str) else Raw(text.encode())
    _set_discounts(changes, line.names, money.text(off, digits), entries, always=always)
    return changes


def _set_discounts(changes: dict[str, Any], names: Names, total: str, entries: list["_Entry"], *, always: bool) -> None:
    """The total and the list of discounts. An empty list is left out where Nacelle's model wants at least one entry."""
    for key in names.totals:
        changes[key] = total
    if entries or always:
        changes[names.list] = entries
    elif names.came:
        changes[names.list] = None


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
