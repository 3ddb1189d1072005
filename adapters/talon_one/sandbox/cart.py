"""The cart as the rules see it: lines taken apart into units, and what is left of each to take a discount off."""

from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import cached_property
from typing import Any, Final

from mapper.domain import money

Json = dict[str, Any]

ZERO: Final = Decimal(0)
# Talon.One computes with doubles and does not round: 10 % of 99.99 is 9.999, a third of 10 has 16 digits.
DOUBLE: Final = Context(prec=16)


def number_of(value: Decimal) -> int | Decimal:
    """A number as the API writes it: with the digits of a double, without trailing zeros."""
    rounded = DOUBLE.plus(value)
    return int(rounded) if rounded == rounded.to_integral_value() else rounded.normalize()


@dataclass(frozen=True, eq=False)
class Unit:
    """One unit of a line. Two units are never the same, however equal they look."""

    position: int
    sub: int
    sku: str
    category: str
    price: Decimal
    costs: dict[str, Decimal]


class Cart:
    """A session as the rules see it: lines taken apart into units."""

    def __init__(self, data: Json) -> None:
        self.profile: str = data["profileId"]
        self.store: str = data.get("storeIntegrationId", "")
        self.attributes: Json = data["attributes"]
        self.costs = costs_of(data["additionalCosts"])
        self.units = [
            Unit(
                position,
                sub,
                item["sku"],
                item.get("category", ""),
                Decimal(item["price"]),
                costs_of(item.get("additionalCosts", {})),
            )
            for position, item in enumerate(data["cartItems"])
            for sub in range(item["quantity"])
        ]

    @cached_property
    def items_total(self) -> Decimal:
        return money.total([unit.price for unit in self.units])

    @cached_property
    def item_costs_total(self) -> Decimal:
        return money.total([price for unit in self.units for price in unit.costs.values()])

    @cached_property
    def costs_total(self) -> Decimal:
        return money.total(list(self.costs.values()))


def costs_of(given: Json) -> dict[str, Decimal]:
    return {name: Decimal(cost["price"]) for name, cost in given.items()}


@dataclass
class Left:
    """What is left to take off: of each unit, each cost, and of all items after discounts on the order."""

    units: dict[tuple[int, int], Decimal]
    costs: dict[str, Decimal]
    item_costs: dict[tuple[int, int, str], Decimal]
    off_order: dict[str, Decimal] = field(default_factory=dict)
    """By scope."""

    @classmethod
    def of(cls, cart: Cart) -> "Left":
        return cls(
            {(unit.position, unit.sub): unit.price for unit in cart.units},
            dict(cart.costs),
            {(unit.position, unit.sub, name): price for unit in cart.units for name, price in unit.costs.items()},
        )

    def copy(self) -> "Left":
        return Left(dict(self.units), dict(self.costs), dict(self.item_costs), dict(self.off_order))

    def order(self, scope: str) -> Decimal:
        """What is left of the order: of its items, its costs or both. Nothing is worth less than nothing."""
        items = money.total([max(ZERO, price) for price in self.units.values()]) if scope != "costs" else ZERO
        costs = [*self.costs.values(), *self.item_costs.values()] if scope != "items" else []
        taken = ZERO if scope == "costs" else self.off_order.get("items", ZERO)
        taken += ZERO if scope == "items" else self.off_order.get("costs", ZERO)
        taken += self.off_order.get("items_and_costs", ZERO)
        return max(ZERO, items + money.total(costs) - taken)
