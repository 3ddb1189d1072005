"""Orders and their arithmetic: integers in hundredths, rounded half up.

An order only ever grows: discounts are added, units are added. What one incentive did is the difference between the
order after and before it, which is how its `applied_...` amounts are told apart from the cumulative ones.
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
    given: Json
    """What names and describes it."""
    quantity: int = 0
    initial_quantity: int = 0
    price: int | None = None
    amount: int | None = None
    """None: no price is known, and nothing can be taken off."""
    initial_amount: int | None = None
    discount: int = 0
    discount_quantity: int = 0

    @classmethod
    def of(cls, item: Json, prices: dict[str, int]) -> "Line":
        given: Json = {name: item[name] for name in _ECHOED if name in item}
        quantity = item.get("quantity", 1)
        line = cls(given, quantity, quantity, discount=item.get("discount_amount", 0))
        known = next((prices[id_] for id_ in sorted(line.ids) if id_ in prices), None)
        line.price = item.get("price", known)
        line.amount = item.get("amount", None if line.price is None else line.price * quantity)
        line.initial_amount = line.amount
        return line

    @property
    def ids(self) -> set[str]:
        """All that names the product or SKU."""
        named = [self.given.get(name) for name in ("source_id", "product_id", "sku_id")]
        for part in ("product", "sku"):
            named += [self.given.get(part, {}).get(name) for name in ("id", "source_id")]
        return {name for name in named if name}

    def _described(self, name: str) -> Any:
        """From metadata, of the line or its product, where the vendor's examples keep what rules look at."""
        places = (self.given, self.given.get("product", {}), self.given.get("sku", {}))
        return next((told for place in places if (told := place.get("metadata", {}).get(name))), None)

    @property
    def name(self) -> str:
        return str(self.given.get("product", {}).get("name") or self.given.get("sku", {}).get("sku") or "")

    @property
    def is_shipping(self) -> bool:
        return not self.ids.isdisjoint((SHIPPING, SHIPPING_SOURCE))

    @property
    def unit_price(self) -> Decimal:
        """In whole units of money, as the rule book counts."""
        if self.price is not None:
            return money.to_major(self.price, 2)
        return money.to_major(self.amount or 0, 2) / max(1, self.quantity)

    @property
    def left(self) -> int:
        return (self.amount or 0) - self.discount

    def matches(self, items: Items) -> bool:
        sku = next(iter(self.ids.intersection(items.skus)), "")
        # Shipping sent as an item is none of the items that a rule book means.
        weight = self._described("weight")
        return not self.is_shipping and items.match(
            sku,
            str(self._described("category") or ""),
            self.unit_price,
            name=self.name,
            weight=Decimal(weight) if isinstance(weight, int | Decimal) else None,
        )


# What Voucherify sends back of an item as it came. `override` is an order to the catalog and no property.
_ECHOED: Final = ("source_id", "related_object", "product_id", "sku_id", "product", "sku", "metadata")


@dataclass
class Order:
    lines: list[Line] = field(default_factory=list)
    sent_amount: int | None = None
    """For an order without (priced) items."""
    discount: int = 0
    """Order-level discounts so far."""
    metadata: Json = field(default_factory=dict)
    head: Json = field(default_factory=dict)
    """Ids, status, dates, customer."""

    @classmethod
    def of(cls, given: Json, prices: dict[str, int]) -> "Order":
        lines = [Line.of(item, prices) for item in given.get("items", [])]
        head = {"source_id": given["source_id"]} if given.get("source_id") else {}
        return cls(lines, given.get("amount"), given.get("discount_amount", 0), given.get("metadata", {}), head)

    def copy(self) -> "Order":
        return replace(self, lines=[replace(line) for line in self.lines], head=dict(self.head))

    @property
    def initial_amount(self) -> int | None:
        """Items that carry amounts are summed up; else what was sent holds."""
        amounts = [line.initial_amount for line in self.lines if line.initial_quantity]
        known = [amount for amount in amounts if amount is not None]
        return sum(known) if known else self.sent_amount

    @property
    def amount(self) -> int | None:
        """With the units that were added."""
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
    def left(self) -> int:
        return (self.amount or 0) - self.total_discount

    def take_back(self, before: "Order", after: "Order") -> None:
        """Undoes what led from one order to the other."""
        self.discount -= after.discount - before.discount
        for line, old, new in zip(self.lines, _padded(before, after), after.lines, strict=False):
            line.discount -= new.discount - old.discount
            line.discount_quantity -= new.discount_quantity - old.discount_quantity
            line.quantity -= new.quantity - old.quantity
            if line.amount is not None:
                line.amount -= (new.amount or 0) - (old.amount or 0)
        # A line that was sent stays, even if all its units were replaced: the others count their lines.
        self.lines = [line for line in self.lines if line.quantity > 0 or line.initial_quantity > 0]


def _padded(before: Order, after: Order) -> list[Line]:
    """The lines before, with an empty one for each that was added."""
    added = [Line(line.given) for line in after.lines[len(before.lines) :]]
    return [*before.lines, *added]


# --- Bundles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """How often a bundle is in an order, and where."""

    quantity: int
    limit: int
    units: dict[int, int]
    """Units that belong to the bundles, by line."""
    ids: dict[int, str]
    """Voucherify's own, by line."""
    missing: dict[str, int]
    """Units that a first bundle lacks, by the merchant's id."""

    def json(self) -> Json:
        """As results show it."""
        identified = [
            {"id": self.ids[i], "object": "sku", "item_index": i, "item_quantity": count}
            for i, count in self.units.items()
        ]
        json: Json = {"quantity": self.quantity, "limit": self.limit, "identified": identified}
        lacking = [{"id": sku_id(sku), "object": "sku", "item_quantity": count} for sku, count in self.missing.items()]
        return json | ({"missing": lacking} if lacking else {})


def _id_of(line: Line) -> str:
    return str(line.given.get("sku_id") or sku_id(str(line.given.get("source_id", ""))))


def find_bundles(bundle: Bundle, order: "Order") -> Found:
    have = {
        part.sku: [(i, line.quantity) for i, line in enumerate(order.lines) if part.sku in line.ids]
        for part in bundle.parts
    }
    counts = {sku: sum(quantity for _, quantity in lines) for sku, lines in have.items()}
    times = min([bundle.limit, *(counts[part.sku] // part.quantity for part in bundle.parts)])
    missing = {} if times else {p.sku: p.quantity - counts[p.sku] for p in bundle.parts if counts[p.sku] < p.quantity}
    units: dict[int, int] = {}
    for part in bundle.parts:
        wanted = part.quantity * max(1, times)
        for i, quantity in have[part.sku]:
            taken = min(wanted, quantity)
            wanted -= taken
            if taken:
                units[i] = taken
    return Found(times, bundle.limit, units, {i: _id_of(order.lines[i]) for i in units}, missing)


# --- What discounts do ------------------------------------------------------------------------------------------------


class Till:
    """Applies discounts to an order, one after the other."""

    def __init__(self, order: Order, prices: dict[str, int], *, discounted: bool) -> None:
        self.order = order
        self._prices = prices
        self._discounted = discounted
        """Percentages are of what earlier discounts left; else of the initial amounts."""
        self._found: Found | None = None
        self.replaced: list[Json] = []
        """What `application_details` say."""

    def apply(self, discount: Discount) -> None:
        self._found = find_bundles(discount.bundle, self.order) if discount.bundle else None
        _APPLY[discount.effect](self, discount)

    def pay(self, amount: int) -> int:
        """Off the order, up to what is left of it; what that was."""
        paid = max(0, min(amount, self.order.left))
        self.order.discount += paid
        return paid

    def pay_with_points(self, coin: Coin, points: int) -> int:
        """The points that were used: no more than the order needs."""
        return min(points, coin.points_for(self.pay(coin.worth(points))))

    def to_order(self, discount: Discount) -> None:
        if discount.type == "AMOUNT":
            self.pay(discount.amount * self._times)
            return
        base = self.order.left if self._discounted else self.order.initial_amount or 0
        self.pay(_percent(base, discount.percent * self._times))

    def to_items(self, discount: Discount) -> None:
        for line in self._meant(discount):
            is_percent = discount.type == "PERCENT"
            wanted = _percent(self._base(line), discount.percent) if is_percent else discount.amount * self._times
            self._off(line, wanted)

    def by_quantity(self, discount: Discount) -> None:
        for line in self._meant(discount):
            self._off(line, discount.amount * self._units_of(line))

    def proportionally(self, discount: Discount) -> None:
        lines = self._meant(discount)
        bases = [self._base(line) for line in lines]
        parts = (
            money.split(min(discount.amount * self._times, sum(bases)), [Decimal(base) for base in bases])
            if lines
            else []
        )
        for line, part in zip(lines, parts, strict=True):
            self._off(line, part)

    def units(self, discount: Discount) -> None:
        for unit in discount.units:
            self._free(replace(unit, quantity=unit.quantity * self._times))

    def replace(self, discount: Discount) -> None:
        """Units of one product become units of another, for which the difference is taken off."""
        assert discount.swap is not None
        swap = discount.swap
        source = next((line for line in self.order.lines if swap.source.source_id in line.ids and line.quantity), None)
        if source is None or not source.price:
            return
        # No more than what is left of the line is worth: what was discounted away cannot be replaced.
        count = min(swap.source.quantity, source.quantity, source.left // source.price)
        if not count:
            return
        target = self._line_of(swap.target)
        if target.price is None:
            target.price, target.amount, target.initial_amount = swap.price, 0, 0
        gone, come = count * source.price, count * target.price
        source.quantity, source.amount = source.quantity - count, (source.amount or 0) - gone
        target.quantity, target.amount = target.quantity + count, (target.amount or 0) + come
        off = self._off(target, come - gone)
        self.replaced.append(
            {
                "source_index": self._index(source),
                "source_applied_quantity": -count,
                "source_applied_quantity_amount": -gone,
                "target_index": self._index(target),
                "target_applied_quantity": count,
                "target_applied_quantity_amount": come,
                "target_applied_discount_amount": off,
            }
        )

    @property
    def _times(self) -> int:
        return self._found.quantity if self._found else 1

    def _units_of(self, line: Line) -> int:
        """Those that a discount is for."""
        if self._found is None:
            return line.quantity
        return self._found.units.get(self._index(line), 0) if self._found.quantity else 0

    def _index(self, line: Line) -> int:
        return next(i for i, other in enumerate(self.order.lines) if other is line)

    def _meant(self, discount: Discount) -> list[Line]:
        """The lines a discount is for. Without an amount nothing can be taken off, and nobody says so."""
        items = discount.items or Items()
        return [
            line
            for line in self.order.lines
            if line.amount is not None
            and (line.is_shipping if discount.shipping else line.matches(items))
            and self._units_of(line)
        ]

    def _base(self, line: Line) -> int:
        """What a percentage is of: the line, or those of its units that belong to a bundle."""
        base = line.left if self._discounted else line.initial_amount or 0
        return base if self._found is None else base * self._units_of(line) // max(1, line.quantity)

    def _off(self, line: Line, wanted: int) -> int:
        taken = max(0, min(wanted, line.left, self.order.left))
        line.discount += taken
        return taken

    def _free(self, unit: Unit) -> None:
        """Makes so many units free, and adds those that are missing, or all of them."""
        line = self._line_of(unit)
        missing = max(0, unit.quantity - line.quantity)
        added = missing if unit.effect == "ADD_MISSING_ITEMS" else unit.quantity
        line.quantity += added
        line.discount_quantity = min(line.quantity, line.discount_quantity + unit.quantity)
        if line.amount is not None and line.price is not None:
            line.amount += added * line.price
            self._off(line, unit.quantity * line.price)

    def _line_of(self, unit: Unit) -> Line:
        """The line of a product that is there; else a new one at the end."""
        sku = unit.sku or {}
        wanted = {unit.source_id, unit.product["id"], sku.get("id", unit.source_id)}
        for line in self.order.lines:
            if not line.ids.isdisjoint(wanted):
                return line
        given: Json = {"product_id": unit.product["id"], "product": unit.product}
        if sku:
            given |= {"sku_id": sku["id"], "sku": {name: sku[name] for name in ("id", "source_id", "sku")}}
        price = self._prices.get(unit.source_id)
        nothing = None if price is None else 0
        line = Line(given, 0, 0, price, amount=nothing, initial_amount=nothing)
        self.order.lines.append(line)
        return line


_APPLY: Final[dict[str, Callable[[Till, Discount], None]]] = {
    "APPLY_TO_ORDER": Till.to_order,
    "APPLY_TO_ITEMS": Till.to_items,
    "APPLY_TO_ITEMS_BY_QUANTITY": Till.by_quantity,
    "APPLY_TO_ITEMS_PROPORTIONALLY": Till.proportionally,
    "ADD_NEW_ITEMS": Till.units,
    "ADD_MISSING_ITEMS": Till.units,
    "REPLACE_ITEMS": Till.replace,
}


def _percent(base: int, percent: Decimal) -> int:
    return money.to_minor(Decimal(base) * percent / 100, 0)


# --- How an order is shown --------------------------------------------------------------------------------------------


def shown(order: Order, since: Order) -> Json:
    """An order with its cumulative amounts, and as applied what came `since` another state of it.

    Amounts of 0 are left out, except those that say what is left to pay.
    """
    json = {name: value for name, value in order.head.items() if name not in _TAIL}
    if order.amount is not None:
        json["amount"] = order.amount
        if order.initial_amount != order.amount:
            json["initial_amount"] = order.initial_amount
        off, items_off = order.discount - since.discount, order.items_discount - since.items_discount
        amounts = {
            "discount_amount": order.discount,
            "items_discount_amount": order.items_discount,
            "total_discount_amount": order.total_discount,
            "applied_discount_amount": off,
            "items_applied_discount_amount": items_off,
            "total_applied_discount_amount": off + items_off,
        }
        json |= {name: amount for name, amount in amounts.items() if amount}
        json["total_amount"] = order.left
    if order.lines:
        pairs = zip(order.lines, _padded(since, order), strict=True)
        json["items"] = [_shown_line(line, old) for line, old in pairs]
    json["metadata"] = order.metadata
    return json | {"customer_id": None, "referrer_id": None, "object": "order"} | _tail(order)


def with_details(order: Json, replaced: list[Json]) -> Json:
    """The order of a whole answer says on both lines of a replacement what was replaced by what."""
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
    """An answer in which the amounts and quantities that orders leave out are null."""
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


def _shown_line(line: Line, old: Line) -> Json:
    changes = {
        "discount_quantity": line.discount_quantity,
        "applied_discount_quantity": line.discount_quantity - old.discount_quantity,
        "applied_quantity": line.quantity - old.quantity,
    }
    json: Json = {"object": "order_item"} | {name: line.given[name] for name in _NAMED if name in line.given}
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
        json["subtotal_amount"] = line.left
    if line.price is not None:
        json["price"] = line.price
    described = {name: line.given[name] for name in ("product", "sku", "metadata") if name in line.given}
    for name in ("product", "sku"):
        if name in described:
            described[name] = {key: value for key, value in described[name].items() if key != "override"}
    return json | described


_NAMED: Final = ("source_id", "related_object", "product_id", "sku_id")
