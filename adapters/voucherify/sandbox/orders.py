"""Orders and their arithmetic: integers in hundredths, rounded half up.

Incentives add discounts and units to an order. The `applied_...` amounts of one incentive are the difference between
the order after and before it; the other amounts are cumulative.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from adapters.voucherify.sandbox.catalog import SHIPPING, SHIPPING_SOURCE, Coin, Discount, Unit, sku_id
from mapper.domain import money
from mapper.sandbox.rulebook import Bundle, Items

Json = dict[str, Any]


@dataclass
class Line:
    sent: Json
    """The properties that identify and describe the item, as they were sent."""
    quantity: int = 0
    initial_quantity: int = 0
    price: int | None = None
    amount: int | None = None
    """None where no price is known; then no discount is possible."""
    initial_amount: int | None = None
    discount: int = 0
    discount_quantity: int = 0

    @classmethod
    def of(cls, item: Json, prices: dict[str, int]) -> "Line":
        sent: Json = {name: item[name] for name in _ECHOED if name in item}
        quantity = item.get("quantity", 1)
        line = cls(sent, quantity, quantity, discount=item.get("discount_amount", 0))
        known = next((prices[id_] for id_ in sorted(line.ids) if id_ in prices), None)
        line.price = item.get("price", known)
        line.amount = item.get("amount", None if line.price is None else line.price * quantity)
        line.initial_amount = line.amount
        return line

    @property
    def ids(self) -> set[str]:
        """All ids of the product or SKU."""
        named = [self.sent.get(name) for name in ("source_id", "product_id", "sku_id")]
        for part in ("product", "sku"):
            named += [self.sent.get(part, {}).get(name) for name in ("id", "source_id")]
        return {name for name in named if name}

    def _described(self, name: str) -> Any:
        """A value in the metadata of the item, its product or its SKU, as in the vendor's examples."""
        places = (self.sent, self.sent.get("product", {}), self.sent.get("sku", {}))
        return next((value for place in places if (value := place.get("metadata", {}).get(name))), None)

    @property
    def name(self) -> str:
        return str(self.sent.get("product", {}).get("name") or self.sent.get("sku", {}).get("sku") or "")

    @property
    def is_shipping(self) -> bool:
        return not self.ids.isdisjoint((SHIPPING, SHIPPING_SOURCE))

    @property
    def unit_price(self) -> Decimal:
        """In major units, as in the rule book."""
        if self.price is not None:
            return money.to_major(self.price, 2)
        return money.to_major(self.amount or 0, 2) / max(1, self.quantity)

    @property
    def remaining(self) -> int:
        return (self.amount or 0) - self.discount

    def matches(self, items: Items) -> bool:
        sku = next(iter(self.ids.intersection(items.skus)), "")
        # Shipping may be sent as an item, but the rules on items do not include it.
        weight = self._described("weight")
        return not self.is_shipping and items.match(
            sku,
            str(self._described("category") or ""),
            self.unit_price,
            name=self.name,
            weight=Decimal(weight) if isinstance(weight, int | Decimal) else None,
        )


# The properties of an item that replies repeat. `override` is an instruction, not a property.
_ECHOED: Final = ("source_id", "related_object", "product_id", "sku_id", "product", "sku", "metadata")


@dataclass
class Order:
    lines: list[Line] = field(default_factory=list)
    sent_amount: int | None = None
    """For an order without (priced) items."""
    discount: int = 0
    """The order-level discounts."""
    metadata: Json = field(default_factory=dict)
    head: Json = field(default_factory=dict)
    """Ids, status, dates, customer."""

    @classmethod
    def of(cls, sent: Json, prices: dict[str, int]) -> "Order":
        lines = [Line.of(item, prices) for item in sent.get("items", [])]
        head = {"source_id": sent["source_id"]} if sent.get("source_id") else {}
        return cls(lines, sent.get("amount"), sent.get("discount_amount", 0), sent.get("metadata", {}), head)

    def copy(self) -> "Order":
        return replace(self, lines=[replace(line) for line in self.lines], head=dict(self.head))

    @property
    def initial_amount(self) -> int | None:
        """The sum of the item amounts where there are any, else the amount that was sent."""
        amounts = [line.initial_amount for line in self.lines if line.initial_quantity]
        known = [amount for amount in amounts if amount is not None]
        return sum(known) if known else self.sent_amount

    @property
    def amount(self) -> int | None:
        """Including added units."""
        if self.initial_amount is None:
            return None
        return self.initial_amount + sum((line.amount or 0) - (line.initial_amount or 0) for line in self.lines)

    @property
    def items_discount(self) -> int:
        return sum(line.discount for line in self.lines)

    @property
    def total_discount(self) -> int:
        return self.discount + self.items_discount

    @property
    def remaining(self) -> int:
        return (self.amount or 0) - self.total_discount

    def roll_back(self, before: "Order", after: "Order") -> None:
        """Undoes the changes between two states of the order."""
        self.discount -= after.discount - before.discount
        for line, old, new in zip(self.lines, _padded(before, after), after.lines, strict=False):
            line.discount -= new.discount - old.discount
            line.discount_quantity -= new.discount_quantity - old.discount_quantity
            line.quantity -= new.quantity - old.quantity
            if line.amount is not None:
                line.amount -= (new.amount or 0) - (old.amount or 0)
        # A line that was sent stays even where all its units were replaced, because of the positions of the others.
        self.lines = [line for line in self.lines if line.quantity > 0 or line.initial_quantity > 0]


def _padded(before: Order, after: Order) -> list[Line]:
    """The lines before, with an empty one for each added line."""
    added = [Line(line.sent) for line in after.lines[len(before.lines) :]]
    return [*before.lines, *added]


# --- Bundles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BundleMatch:
    """How often an order has a bundle, and in which lines."""

    quantity: int
    limit: int
    units: dict[int, int]
    """The number of units in bundles, by line."""
    ids: dict[int, str]
    """Voucherify's ids, by line."""
    missing: dict[str, int]
    """The units that are missing for the first bundle, by the merchant's id."""

    def json(self) -> Json:
        """As in results."""
        identified = [
            {"id": self.ids[i], "object": "sku", "item_index": i, "item_quantity": count}
            for i, count in self.units.items()
        ]
        json: Json = {"quantity": self.quantity, "limit": self.limit, "identified": identified}
        missing = [{"id": sku_id(sku), "object": "sku", "item_quantity": count} for sku, count in self.missing.items()]
        return json | ({"missing": missing} if missing else {})


def _id_of(line: Line) -> str:
    return str(line.sent.get("sku_id") or sku_id(str(line.sent.get("source_id", ""))))


def find_bundles(bundle: Bundle, order: "Order") -> BundleMatch:
    lines_of = {
        part.sku: [(i, line.quantity) for i, line in enumerate(order.lines) if part.sku in line.ids]
        for part in bundle.parts
    }
    counts = {sku: sum(quantity for _, quantity in lines) for sku, lines in lines_of.items()}
    times = min([bundle.limit, *(counts[part.sku] // part.quantity for part in bundle.parts)])
    missing = {} if times else {p.sku: p.quantity - counts[p.sku] for p in bundle.parts if counts[p.sku] < p.quantity}
    units: dict[int, int] = {}
    for part in bundle.parts:
        needed = part.quantity * max(1, times)
        for i, quantity in lines_of[part.sku]:
            taken = min(needed, quantity)
            needed -= taken
            if taken:
                units[i] = taken
    return BundleMatch(times, bundle.limit, units, {i: _id_of(order.lines[i]) for i in units}, missing)


# --- Discounts --------------------------------------------------------------------------------------------------------


class Calculator:
    """Applies discounts to an order, one after the other."""

    def __init__(self, order: Order, prices: dict[str, int], *, discounted: bool) -> None:
        self.order = order
        self._prices = prices
        self._discounted = discounted
        """Whether percentages are of the discounted amounts, or of the initial ones."""
        self._bundles: BundleMatch | None = None
        self.replaced: list[Json] = []
        """The value of `application_details`."""

    def apply(self, discount: Discount) -> None:
        self._bundles = find_bundles(discount.bundle, self.order) if discount.bundle else None
        _APPLY[discount.effect](self, discount)

    def pay(self, amount: int) -> int:
        """Takes up to `amount` off the order; returns how much."""
        paid = max(0, min(amount, self.order.remaining))
        self.order.discount += paid
        return paid

    def pay_with_points(self, coin: Coin, points: int) -> int:
        """Pays with up to `points`; returns how many were used."""
        return min(points, coin.points_for(self.pay(coin.value_of(points))))

    def to_order(self, discount: Discount) -> None:
        if discount.type == "AMOUNT":
            self.pay(discount.amount * self._times)
            return
        base = self.order.remaining if self._discounted else self.order.initial_amount or 0
        self.pay(_percent(base, discount.percent * self._times))

    def to_items(self, discount: Discount) -> None:
        for line in self._lines_for(discount):
            is_percent = discount.type == "PERCENT"
            amount = _percent(self._base(line), discount.percent) if is_percent else discount.amount * self._times
            self._discount(line, amount)

    def by_quantity(self, discount: Discount) -> None:
        for line in self._lines_for(discount):
            self._discount(line, discount.amount * self._units_of(line))

    def proportionally(self, discount: Discount) -> None:
        lines = self._lines_for(discount)
        bases = [self._base(line) for line in lines]
        parts = (
            money.split(min(discount.amount * self._times, sum(bases)), [Decimal(base) for base in bases])
            if lines
            else []
        )
        for line, part in zip(lines, parts, strict=True):
            self._discount(line, part)

    def units(self, discount: Discount) -> None:
        for unit in discount.units:
            self._free(replace(unit, quantity=unit.quantity * self._times))

    def replace(self, discount: Discount) -> None:
        """Replaces units of one product by units of another, and discounts the difference in price."""
        assert discount.swap is not None
        swap = discount.swap
        source = next((line for line in self.order.lines if swap.source.source_id in line.ids and line.quantity), None)
        if source is None or not source.price:
            return
        # Only units that are not discounted can be replaced.
        count = min(swap.source.quantity, source.quantity, source.remaining // source.price)
        if not count:
            return
        target = self._line_of(swap.target)
        if target.price is None:
            target.price, target.amount, target.initial_amount = swap.price, 0, 0
        removed, added = count * source.price, count * target.price
        source.quantity, source.amount = source.quantity - count, (source.amount or 0) - removed
        target.quantity, target.amount = target.quantity + count, (target.amount or 0) + added
        discount_amount = self._discount(target, added - removed)
        self.replaced.append(
            {
                "source_index": self._index(source),
                "source_applied_quantity": -count,
                "source_applied_quantity_amount": -removed,
                "target_index": self._index(target),
                "target_applied_quantity": count,
                "target_applied_quantity_amount": added,
                "target_applied_discount_amount": discount_amount,
            }
        )

    @property
    def _times(self) -> int:
        return self._bundles.quantity if self._bundles else 1

    def _units_of(self, line: Line) -> int:
        """The number of units of a line that the discount is for."""
        if self._bundles is None:
            return line.quantity
        return self._bundles.units.get(self._index(line), 0) if self._bundles.quantity else 0

    def _index(self, line: Line) -> int:
        return next(i for i, other in enumerate(self.order.lines) if other is line)

    def _lines_for(self, discount: Discount) -> list[Line]:
        """The lines that a discount is for. Those without an amount are left out."""
        items = discount.items or Items()
        return [
            line
            for line in self.order.lines
            if line.amount is not None
            and (line.is_shipping if discount.shipping else line.matches(items))
            and self._units_of(line)
        ]

    def _base(self, line: Line) -> int:
        """The amount that a percentage is of: that of the line, or of its units in bundles."""
        base = line.remaining if self._discounted else line.initial_amount or 0
        return base if self._bundles is None else base * self._units_of(line) // max(1, line.quantity)

    def _discount(self, line: Line, amount: int) -> int:
        taken = max(0, min(amount, line.remaining, self.order.remaining))
        line.discount += taken
        return taken

    def _free(self, unit: Unit) -> None:
        """Makes units free, after adding those that are missing, or with ADD_NEW_ITEMS all of them."""
        line = self._line_of(unit)
        missing = max(0, unit.quantity - line.quantity)
        added = missing if unit.effect == "ADD_MISSING_ITEMS" else unit.quantity
        line.quantity += added
        line.discount_quantity = min(line.quantity, line.discount_quantity + unit.quantity)
        if line.amount is not None and line.price is not None:
            line.amount += added * line.price
            self._discount(line, unit.quantity * line.price)

    def _line_of(self, unit: Unit) -> Line:
        """The line of a product; a new one at the end where there is none."""
        sku = unit.sku or {}
        ids = {unit.source_id, unit.product["id"], sku.get("id", unit.source_id)}
        for line in self.order.lines:
            if not line.ids.isdisjoint(ids):
                return line
        sent: Json = {"product_id": unit.product["id"], "product": unit.product}
        if sku:
            sent |= {"sku_id": sku["id"], "sku": {name: sku[name] for name in ("id", "source_id", "sku")}}
        price = self._prices.get(unit.source_id)
        amount = None if price is None else 0
        line = Line(sent, 0, 0, price, amount=amount, initial_amount=amount)
        self.order.lines.append(line)
        return line


_APPLY: Final[dict[str, Callable[[Calculator, Discount], None]]] = {
    "APPLY_TO_ORDER": Calculator.to_order,
    "APPLY_TO_ITEMS": Calculator.to_items,
    "APPLY_TO_ITEMS_BY_QUANTITY": Calculator.by_quantity,
    "APPLY_TO_ITEMS_PROPORTIONALLY": Calculator.proportionally,
    "ADD_NEW_ITEMS": Calculator.units,
    "ADD_MISSING_ITEMS": Calculator.units,
    "REPLACE_ITEMS": Calculator.replace,
}


def _percent(base: int, percent: Decimal) -> int:
    return money.to_minor(Decimal(base) * percent / 100, 0)


# --- JSON -------------------------------------------------------------------------------------------------------------


def order_json(order: Order, since: Order) -> Json:
    """An order with its cumulative amounts. `applied_...` amounts are those `since` an earlier state of it.

    Amounts of 0 are left out, except the remaining ones.
    """
    json = {name: value for name, value in order.head.items() if name not in _TAIL}
    if order.amount is not None:
        json["amount"] = order.amount
        if order.initial_amount != order.amount:
            json["initial_amount"] = order.initial_amount
        applied, items_applied = order.discount - since.discount, order.items_discount - since.items_discount
        amounts = {
            "discount_amount": order.discount,
            "items_discount_amount": order.items_discount,
            "total_discount_amount": order.total_discount,
            "applied_discount_amount": applied,
            "items_applied_discount_amount": items_applied,
            "total_applied_discount_amount": applied + items_applied,
        }
        json |= {name: amount for name, amount in amounts.items() if amount}
        json["total_amount"] = order.remaining
    if order.lines:
        pairs = zip(order.lines, _padded(since, order), strict=True)
        json["items"] = [_line_json(line, old) for line, old in pairs]
    json["metadata"] = order.metadata
    return json | {"customer_id": None, "referrer_id": None, "object": "order"} | _tail(order)


def with_details(order: Json, replaced: list[Json]) -> Json:
    """Adds the details of each replacement to both of its lines."""
    for details in replaced:
        for index in (details["source_index"], details["target_index"]):
            order["items"][index].setdefault("application_details", []).append(details)
    return order


_AMOUNTS: Final[dict[str, tuple[str, ...]]] = {
    "order": (
        *("initial_amount", "discount_amount", "items_discount_amount", "total_discount_amount"),
        *("applied_discount_amount", "items_applied_discount_amount", "total_applied_discount_amount"),
    ),
    "order_item": (
        *("initial_quantity", "discount_quantity", "applied_quantity", "applied_discount_quantity"),
        *("initial_amount", "discount_amount", "applied_discount_amount", "applied_quantity_amount"),
    ),
}


def with_nulls(value: Any) -> Any:
    """The reply with null for the amounts and quantities that are left out."""
    if isinstance(value, list):
        return [with_nulls(element) for element in value]
    if not isinstance(value, dict):
        return value
    absent = dict.fromkeys(_AMOUNTS.get(str(value.get("object")), ()))
    return absent | {name: with_nulls(part) for name, part in value.items()}


_TAIL: Final = ("customer", "customer_id", "redemptions")


def _tail(order: Order) -> Json:
    tail: Json = {name: order.head[name] for name in _TAIL if name in order.head}
    if "redemptions" in tail:
        tail["redemptions"] = {id_: dict(entry) for id_, entry in tail["redemptions"].items()}
    return tail


def _line_json(line: Line, old: Line) -> Json:
    changes = {
        "discount_quantity": line.discount_quantity,
        "applied_discount_quantity": line.discount_quantity - old.discount_quantity,
        "applied_quantity": line.quantity - old.quantity,
    }
    json: Json = {"object": "order_item"} | {name: line.sent[name] for name in _NAMED if name in line.sent}
    json |= {"quantity": line.quantity} | {name: count for name, count in changes.items() if count}
    if line.quantity != line.initial_quantity:
        json["initial_quantity"] = line.initial_quantity
    if line.amount is not None:
        json["amount"] = line.amount
        if line.amount != line.initial_amount:
            json["initial_amount"] = line.initial_amount
        amounts = {
            "discount_amount": line.discount,
            "applied_discount_amount": line.discount - old.discount,
            "applied_quantity_amount": line.amount - (old.amount or 0),
        }
        json |= {name: amount for name, amount in amounts.items() if amount}
        json["subtotal_amount"] = line.remaining
    if line.price is not None:
        json["price"] = line.price
    described = {name: line.sent[name] for name in ("product", "sku", "metadata") if name in line.sent}
    for name in ("product", "sku"):
        if name in described:
            described[name] = {key: value for key, value in described[name].items() if key != "override"}
    return json | described


_NAMED: Final = ("source_id", "related_object", "product_id", "sku_id")
