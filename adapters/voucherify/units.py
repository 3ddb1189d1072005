"""Units that Voucherify adds to an order, takes away or replaces, and that the shopper's cart does not have.

Voucherify adds free units to the order and discounts their price. A discount on added units must not reduce the price
of the units in the cart; the discount on the units in the cart stays.
https://docs.voucherify.io/build/discount-types-and-effects (2026-08)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from adapters.voucherify.reading import REPLACE_ITEMS, Item, mapping, objects, text
from adapters.voucherify.replies import SHIPPING, Applied
from mapper.adapter import Line

ADD_NEW_ITEMS = "ADD_NEW_ITEMS"


class AddedUnits(msgspec.Struct, frozen=True, gc=False):
    """The units that one redeemable has added to one line."""

    count: int = 0
    value: int = 0
    """At list price, in the engine's units."""


NO_UNITS = AddedUnits()


def added_units(applied: Sequence[Applied], cart: Sequence[Line]) -> list[dict[int, AddedUnits]]:
    """What each redeemable has added to lines of its order, by index."""
    quantities = {index: line.quantity for index, line in enumerate(cart)}
    stated = {
        index
        for one in applied
        for index, item in enumerate(one.amounts.items)
        if item.applied_quantity is not None or item.applied_quantity_amount is not None
    }
    result: list[dict[int, AddedUnits]] = []
    for one in applied:
        added: dict[int, AddedUnits] = {}
        for index, item in enumerate(one.amounts.items):
            if index in stated:
                added[index] = _stated_units(item)
            # Older replies do not state the added units, but the quantity grows from redeemable to redeemable.
            elif (count := item.quantity - quantities.get(index, 0)) > 0:
                quantities[index] = item.quantity
                added[index] = AddedUnits(count, count * item.price)
        result.append(added)
    return result


def _stated_units(item: Item) -> AddedUnits:
    count, value = item.applied_quantity or 0, item.applied_quantity_amount
    if value is None:
        value = count * item.price
    elif item.applied_quantity is None:
        count = value // item.price if item.price else (value > 0) - (value < 0)
    return AddedUnits(max(count, 0), max(value, 0))


def cart_discount(applied: Applied, item: Item, added: AddedUnits, line: Line) -> int:
    """The part of a line's discount that is on units in the cart."""
    beyond_added = max(item.discount - added.value, 0)
    if not added.count or _effect_on(applied, item) != ADD_NEW_ITEMS:
        return beyond_added
    # ADD_NEW_ITEMS adds units even where the cart has them already. The storefront puts the gift into the cart, so the
    # units in the cart are the free ones.
    free = min(line.quantity, added.count)
    return max(beyond_added, item.discount * free // added.count)


def missing_items(applied: Applied, added: Mapping[int, AddedUnits], cart: Sequence[Line]) -> list[dict[str, Any]]:
    """The items, as in the reply, of which this redeemable grants more units than the cart has."""
    missing = []
    for index, units in added.items():
        item = applied.amounts.items[index]
        in_cart = cart[index].quantity if index < len(cart) and _effect_on(applied, item) == ADD_NEW_ITEMS else 0
        if units.count > in_cart and not _ids(item.raw) & SHIPPING:
            missing.append(item.raw)
    return missing


def frees_shipping(applied: Applied) -> bool:
    return any(ids & SHIPPING for ids in _given_away(applied))


def grants_units(applied: Applied) -> bool:
    """Whether it gives away more than shipping."""
    return any(not ids & SHIPPING for ids in _given_away(applied)) or applied.discount.get("effect") == REPLACE_ITEMS


def _given_away(applied: Applied) -> list[set[str]]:
    """The ids of each unit of a unit discount; one without ids where it adds more of what the cart has."""
    if applied.discount.get("type") != "UNIT":
        return []
    units = [applied.discount, *objects(applied.discount.get("units"))]
    return [ids for ids in map(_ids, units) if ids] or [set()]


def _ids(thing: Mapping[str, Any]) -> set[str]:
    """Every id by which a unit, or an order item, names its product or SKU."""
    product, sku = mapping(thing.get("product")), mapping(thing.get("sku"))
    ids = [thing.get(name) for name in ("unit_type", "source_id", "product_id", "sku_id")]
    ids += [product.get("id"), product.get("source_id"), sku.get("id"), sku.get("source_id")]
    return {name for name in ids if isinstance(name, str) and name}


def _effect_on(applied: Applied, item: Item) -> str:
    """The effect that added units to this item. With ADD_MANY_ITEMS each kind of unit has an effect of its own."""
    units, ids = objects(applied.discount.get("units")), _ids(item.raw)
    for unit in units:
        if ids & _ids(unit):
            return text(unit.get("effect"))
    effects = {text(unit.get("effect")) for unit in units}
    return effects.pop() if len(effects) == 1 else text(applied.discount.get("effect"))
