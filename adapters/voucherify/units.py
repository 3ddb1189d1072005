"""Units that come and go: what Voucherify adds to an order, takes away or replaces is not in the shopper's cart.

Voucherify adds free units to the order and takes their price off again. What was taken off for units that are not in
the cart must not make the others cheaper; a promotion's discount on the units that are in it stays, whatever another
promotion adds, replaces, or takes away.
https://docs.voucherify.io/build/discount-types-and-effects (2026-08)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.voucherify.reading import mapping, objects, text
from adapters.voucherify.replies import SHIPPING, Applied, Item
from mapper.adapter import Line

ADD_NEW_ITEMS = "ADD_NEW_ITEMS"
REPLACE_ITEMS = "REPLACE_ITEMS"


@dataclass(frozen=True, slots=True)
class Grown:
    """What one redeemable has added to one line."""

    units: int = 0
    worth: int = 0
    """At list price, in the engine's units."""


def grown(applied: Sequence[Applied], cart: Sequence[Line]) -> list[list[Grown]]:
    """For each redeemable, for each line of its answer, what it alone has added."""
    before = {index: line.quantity for index, line in enumerate(cart)}
    told = {index for one in applied for index, item in enumerate(one.amounts.items) if item.added is not None}
    found: list[list[Grown]] = []
    for one in applied:
        of_one = []
        for index, item in enumerate(one.amounts.items):
            if index in told:
                of_one.append(Grown(max(item.added or 0, 0), max(item.added_worth, 0)))
                continue
            # Older answers do not say what was added; the quantity does, which grows from redeemable to redeemable.
            units = max(item.quantity - before.get(index, 0), 0)
            before[index] = max(before.get(index, 0), item.quantity)
            of_one.append(Grown(units, units * item.price))
        found.append(of_one)
    return found


def own_share(one: Applied, item: Item, added: Grown, line: Line) -> int:
    """What a redeemable takes off the units of a line that are in the cart."""
    beyond = max(item.discount - added.worth, 0)
    if not added.units or _effect_on(one, item) != ADD_NEW_ITEMS:
        return beyond
    # ADD_NEW_ITEMS adds units whatever the cart holds. Where the storefront has put them in already, they are the free
    # ones: otherwise nothing that a shopper could do would make the gift free.
    here = min(line.quantity, added.units)
    return max(beyond, item.discount * here // added.units)


def to_add(one: Applied, growth: Sequence[Grown], cart: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines to which this redeemable grants units that the cart does not hold, as its answer shows them."""
    found = []
    for index, (item, added) in enumerate(zip(one.amounts.items, growth, strict=True)):
        if not added.units:
            continue
        here = cart[index].quantity if index < len(cart) and _effect_on(one, item) == ADD_NEW_ITEMS else 0
        if added.units > here:
            found.append(item.raw)
    return found


def gives_units(one: Applied) -> bool:
    return bool(targets(one) - SHIPPING) or one.discount.get("effect") == REPLACE_ITEMS


def targets(one: Applied) -> set[str]:
    """The products (or SKUs) that a unit discount gives away, by every id the answer has for them."""
    if one.discount.get("type") != "UNIT":
        return set()
    return {name for unit in (one.discount, *objects(one.discount.get("units"))) for name in _ids(unit)}


def _ids(unit: Mapping[str, Any]) -> Iterator[str]:
    product, sku = mapping(unit.get("product")), mapping(unit.get("sku"))
    yield from _texts([unit.get("unit_type"), product.get("id"), product.get("source_id")])
    yield from _texts([sku.get("id"), sku.get("source_id")])


def _effect_on(one: Applied, item: Item) -> str:
    """The effect by which units came to this line: with ADD_MANY_ITEMS, each kind of unit has its own."""
    units, raw = objects(one.discount.get("units")), item.raw
    product, sku = mapping(raw.get("product")), mapping(raw.get("sku"))
    called = {*_texts([raw.get("source_id"), raw.get("product_id"), raw.get("sku_id")])}
    called |= {*_texts([product.get("id"), product.get("source_id"), sku.get("id"), sku.get("source_id")])}
    for unit in units:
        if called & {*_ids(unit)}:
            return text(unit.get("effect"))
    effects = {text(unit.get("effect")) for unit in units}
    return effects.pop() if len(effects) == 1 else text(one.discount.get("effect"))


def _texts(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str) and value)
