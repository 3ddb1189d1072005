"""The cart of a session by units, and what remains of each price to take a discount off."""

from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import cached_property
from typing import Any, Final

from mapper.domain import money
from mapper.sandbox.rulebook import Items

Json = dict[str, Any]

ZERO: Final = Decimal(0)
# Talon.One computes with doubles and does not round: 10 % of 99.99 is 9.999, but 10 % of 1.15 is 0.11499999999999999.
DOUBLE: Final = Context(prec=17)


def number_of(value: Decimal) -> int | Decimal:
    """A number as the API writes it: the shortest decimal of its double."""
    double = float(value)
    return int(double) if double.is_integer() else Decimal(repr(double))


def percent_of(percent: Decimal, value: Decimal) -> Decimal:
    return Decimal(repr(float(value) * (float(percent) / 100)))


@dataclass(frozen=True, eq=False)
class Unit:
    """One unit of a cart item. Units are compared by identity."""

    position: int
    sub: int
    item: Json
    """The cart item as it was sent."""
    price: Decimal
    costs: dict[str, Decimal]

    @property
    def cost_keys(self) -> list[tuple[int, int, str]]:
        return [(self.position, self.sub, name) for name in self.costs]

    def matches(self, items: Items) -> bool:
        weight = self.item.get("weight")
        return items.match(
            self.item["sku"],
            self.item.get("category", ""),
            self.price,
            name=self.item.get("name", ""),
            weight=None if weight is None else Decimal(weight),
        )


class Cart:
    """The cart of a session: https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening"""

    def __init__(self, data: Json) -> None:
        self.profile: str = data["profileId"]
        self.store: str = data.get("storeIntegrationId", "")
        self.attributes: Json = data["attributes"]
        self.costs = costs_of(data["additionalCosts"])
        self.units = [
            Unit(
                position,
                sub,
                item,
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


def costs_of(additional_costs: Json) -> dict[str, Decimal]:
    return {name: Decimal(cost["price"]) for name, cost in additional_costs.items()}


@dataclass
class Remaining:
    """What remains of the prices of units and costs, and the discounts on the order."""

    units: dict[tuple[int, int], Decimal]
    costs: dict[str, Decimal]
    item_costs: dict[tuple[int, int, str], Decimal]
    order_discounts: dict[str, Decimal] = field(default_factory=dict)
    """By scope."""

    @classmethod
    def of(cls, cart: Cart) -> "Remaining":
        return cls(
            {(unit.position, unit.sub): unit.price for unit in cart.units},
            dict(cart.costs),
            {(unit.position, unit.sub, name): price for unit in cart.units for name, price in unit.costs.items()},
        )

    def copy(self) -> "Remaining":
        return Remaining(dict(self.units), dict(self.costs), dict(self.item_costs), dict(self.order_discounts))

    def unit(self, unit: Unit, scope: str) -> Decimal:
        """What remains of a unit: of its price, of its costs, or of both."""
        price = ZERO if scope == "costs" else max(ZERO, self.units[unit.position, unit.sub])
        costs = [] if scope == "items" else [max(ZERO, self.item_costs[key]) for key in unit.cost_keys]
        return price + money.total(costs)

    def take(self, unit: Unit, scope: str, value: Decimal) -> None:
        """Takes a discount off the price of a unit first, then off its costs in turn."""
        key_of_unit = (unit.position, unit.sub)
        keys = [] if scope == "items" else unit.cost_keys
        if scope != "costs":
            part = value if not keys else min(value, max(ZERO, self.units[key_of_unit]))
            self.units[key_of_unit] -= part
            value -= part
        for key in keys:
            part = value if key == keys[-1] else min(value, max(ZERO, self.item_costs[key]))
            self.item_costs[key] -= part
            value -= part

    def order(self, scope: str) -> Decimal:
        """What remains of the order: of its items, its costs or both. Never below zero."""
        items = money.total([max(ZERO, price) for price in self.units.values()]) if scope != "costs" else ZERO
        costs = [*self.costs.values(), *self.item_costs.values()] if scope != "items" else []
        taken = ZERO if scope == "costs" else self.order_discounts.get("items", ZERO)
        taken += ZERO if scope == "items" else self.order_discounts.get("costs", ZERO)
        taken += self.order_discounts.get("items_and_costs", ZERO)
        return max(ZERO, items + money.total(costs) - taken)
