"""Units that come back: what is rolled back of a closed session.

https://docs.talon.one/docs/dev/tutorials/partially-returning-a-session: effects on the returned units are rolled back,
those on the session stay. Which units of a line come back is not documented: here the last ones.
"""

from collections import Counter
from decimal import Decimal
from typing import Any, Final

from adapters.talon_one.sandbox.cart import DOUBLE, ZERO, Cart, number_of
from adapters.talon_one.sandbox.errors import ApiError
from adapters.talon_one.sandbox.state import Books, Session, rollbacks

Json = dict[str, Any]

_PER_UNIT: Final = ("setDiscountPerItem", "setDiscountPerAdditionalCostPerItem")


def wanted(session: Session, items: list[Json]) -> Counter[int]:
    """How many units of each line are to come back. Raises `ApiError` 400 where the session has no such units."""
    lines = session.data["cartItems"]
    found: Counter[int] = Counter()
    problems = []
    for i, item in enumerate(items):
        position, quantity = item.get("position", _position(lines, item.get("sku"))), item.get("quantity", 1)
        here = position in range(len(lines))
        if here and quantity <= lines[position]["quantity"] - session.returned[position] - found[position]:
            found[position] += quantity
            continue
        source = {"pointer": f"/return/returnedCartItems/{i}"}
        problems.append({"title": "Invalid value", "details": "the session has no such units", "source": source})
    if problems:
        raise ApiError(400, "The submitted data was invalid", problems)
    return found


def _position(lines: list[Json], sku: str | None) -> int:
    return next((i for i, line in enumerate(lines) if line["sku"] == sku), -1)


def take_back(session: Session, books: Books, units: Counter[int]) -> list[Json]:
    """Rolls back what was granted on these units; the effects that say so."""
    back: list[Json] = []
    stay: list[Json] = []
    for effect in session.effects:
        share = _share(session, effect, units)
        if share:
            value = DOUBLE.multiply(Decimal(effect["props"]["value"]), share)
            back += rollbacks([_worth(effect, value)])[0]
            _give_back(session, books, effect["campaignId"], value)
        if share < 1:
            rest = DOUBLE.multiply(Decimal(effect["props"]["value"]), 1 - share) if share else None
            stay.append(effect if rest is None else _worth(effect, rest))
    _count_sale(session, books, units)
    session.effects = stay
    session.returned.update(units)
    session.state = "partially_returned"
    return back


def _share(session: Session, effect: Json, units: Counter[int]) -> Decimal:
    """How much of an effect goes: all or nothing of one unit, a part of one on a whole line (without flattening)."""
    props = effect["props"]
    position = props.get("position")
    if effect["effectType"] not in _PER_UNIT or position not in units:
        return ZERO
    left = session.data["cartItems"][position]["quantity"] - session.returned[position]
    if "subPosition" in props:
        return Decimal(left - units[position] <= props["subPosition"] < left)
    return DOUBLE.divide(Decimal(units[position]), Decimal(left))


def _worth(effect: Json, value: Decimal) -> Json:
    return effect | {"props": effect["props"] | {"value": number_of(value)}}


def _give_back(session: Session, books: Books, campaign: int, value: Decimal) -> None:
    """To the campaign's budget; a cancel later on gives back the rest."""
    books.spent[campaign] = books.spent.get(campaign, ZERO) - value
    if session.grants is not None:
        session.grants.spent[campaign] = session.grants.spent.get(campaign, ZERO) - value


def _count_sale(session: Session, books: Books, units: Counter[int]) -> None:
    profile = books.profiles.get(session.data["profileId"])
    if profile is not None:
        profile.sales -= _value(session, units)


def value_left(session: Session) -> Decimal:
    """What the items are worth that have not come back."""
    return Cart(session.data).items_total - _value(session, session.returned)


def _value(session: Session, units: Counter[int]) -> Decimal:
    lines = session.data["cartItems"]
    return sum((Decimal(lines[position]["price"]) * count for position, count in units.items()), ZERO)
