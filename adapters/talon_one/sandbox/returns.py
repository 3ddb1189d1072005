"""Partial returns: https://docs.talon.one/docs/dev/tutorials/partially-returning-a-session

The effects on the returned units are rolled back, those on the session stay. Which units of a line are returned is not
documented; here the last ones.
"""

from collections import Counter
from decimal import Decimal
from typing import Any, Final

from adapters.talon_one.sandbox.cart import DOUBLE, ZERO, Cart, number_of
from adapters.talon_one.sandbox.errors import ApiError
from adapters.talon_one.sandbox.state import Books, Session, rollbacks

Json = dict[str, Any]

_PER_UNIT: Final = ("setDiscountPerItem", "setDiscountPerAdditionalCostPerItem")


def requested_units(session: Session, items: list[Json]) -> Counter[int]:
    """The number of units to return, by position. Raises `ApiError` 400 where the session does not have them."""
    lines = session.data["cartItems"]
    units: Counter[int] = Counter()
    problems = []
    for i, item in enumerate(items):
        position, quantity = item.get("position", _position(lines, item.get("sku"))), item.get("quantity", 1)
        exists = position in range(len(lines))
        if exists and quantity <= lines[position]["quantity"] - session.returned[position] - units[position]:
            units[position] += quantity
            continue
        source = {"pointer": f"/return/returnedCartItems/{i}"}
        problems.append({"title": "Invalid value", "details": "the session has no such units", "source": source})
    if problems:
        raise ApiError(400, "The submitted data was invalid", problems)
    return units


def _position(lines: list[Json], sku: str | None) -> int:
    return next((i for i, line in enumerate(lines) if line["sku"] == sku), -1)


def roll_back_units(session: Session, books: Books, units: Counter[int]) -> list[Json]:
    """Rolls back what was granted on these units. Returns the rollback effects."""
    rolled_back: list[Json] = []
    kept: list[Json] = []
    for effect in session.effects:
        share = _share(session, effect, units)
        if share:
            value = DOUBLE.multiply(Decimal(effect["props"]["value"]), share)
            rolled_back += rollbacks([_with_value(effect, value)])[0]
            _restore_budget(session, books, effect["campaignId"], value)
        if share < 1:
            rest = DOUBLE.multiply(Decimal(effect["props"]["value"]), 1 - share) if share else None
            kept.append(effect if rest is None else _with_value(effect, rest))
    _count_sale(session, books, units)
    session.effects = kept
    session.returned.update(units)
    session.state = "partially_returned"
    return rolled_back


def _share(session: Session, effect: Json, units: Counter[int]) -> Decimal:
    """The part of an effect to roll back: 0 or 1 for the effect on a unit, between them for that on a whole line."""
    props = effect["props"]
    position = props.get("position")
    if effect["effectType"] not in _PER_UNIT or position not in units:
        return ZERO
    quantity = session.data["cartItems"][position]["quantity"] - session.returned[position]
    if "subPosition" in props:
        return Decimal(quantity - units[position] <= props["subPosition"] < quantity)
    return DOUBLE.divide(Decimal(units[position]), Decimal(quantity))


def _with_value(effect: Json, value: Decimal) -> Json:
    return effect | {"props": effect["props"] | {"value": number_of(value)}}


def _restore_budget(session: Session, books: Books, campaign: int, value: Decimal) -> None:
    """Restores the campaign's budget. A later cancel restores the rest of it."""
    books.spent[campaign] = books.spent.get(campaign, ZERO) - value
    if session.grants is not None:
        session.grants.spent[campaign] = session.grants.spent.get(campaign, ZERO) - value


def _count_sale(session: Session, books: Books, units: Counter[int]) -> None:
    profile = books.profiles.get(session.data["profileId"])
    if profile is not None:
        profile.sales -= _value(session, units)


def remaining_value(session: Session) -> Decimal:
    """The value of the items that were not returned."""
    return Cart(session.data).items_total - _value(session, session.returned)


def _value(session: Session, units: Counter[int]) -> Decimal:
    lines = session.data["cartItems"]
    return sum((Decimal(lines[position]["price"]) * count for position, count in units.items()), ZERO)
