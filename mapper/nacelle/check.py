"""What is wrong with an order before it is sent to Nacelle: everything at once, each fault with its place.

Amounts must agree to the cent: a unit price follows from the list price and the discounts of its line, a line's total
is the sum of the discounts listed on it, and the order's total is the sum of all. Nacelle documents no such rules; an
order that breaks them would tell the shopper and the ledger two different prices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mapper.domain import money
from mapper.domain.money import NotMoney

REQUIRED: Final = ("currency", "payments")
"""What an order needs beside its lines. Nacelle's page shows `currency`, and is about paid orders; it has no list."""
REQUIRED_MULTI: Final = (
    "billing_address",
    "currency",
    "email",
    "orders",
    "payments",
    "price",
    "subtotal",
    "tax_amount",
)
"""What the reference of "Create a multi-order" marks as required."""
MAX_ORDERS: Final = 100
OBJECTS: Final = ("billing_address", "shipping_address", "customer")
AMOUNTS: Final = ("price", "subtotal", "tax_amount")
"""What they are made of is not documented, and neither is how exact they are: they have to be amounts, no more."""
_FINEST: Final = 12
TOTALS: Final = ("discounts", "discounts_amount", "total_discount")
LISTS: Final = ("applied_discounts", "discounts")
PRICES: Final = ("price", "price_amount")
NAMES: Final = ("sku", "variant_id", "product_id")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an order: where it stands (a JSON pointer), and a sentence."""

    pointer: str
    message: str


class NotAnOrder(Exception):
    """The order must not be sent. `faults`: everything that is wrong with it, not just the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.message}" for fault in faults))
        self.faults = tuple(faults)


def faults_of(order: Any) -> Iterator[Fault]:
    """Everything that is wrong with an order, decoded with exact numbers."""
    if not isinstance(order, dict):
        yield Fault("", "The order is not an object.")
        return
    multi = "orders" in order and not order.get("order_items")
    if order.get("orders") and not multi:
        yield Fault("/orders", "Lines stand in order_items and in orders; an order has one of them.")
    for key in REQUIRED_MULTI if multi else REQUIRED:
        if order.get(key) in (None, "", []):
            yield Fault(f"/{key}", f"An order needs {key}.")
    told = order.get("currency")
    currency = told.upper() if isinstance(told, str) else ""
    if told and currency not in money.DIGITS:
        yield Fault("/currency", 'The currency is no ISO 4217 code such as "USD".')
        currency = ""
    yield from _Checker(currency).order(order, multi=multi)


class _Checker:
    """Checks amounts of one currency. Amounts that cannot be read are faults, and count as absent.

    Without a currency ("") nobody can say whether amounts agree; whatever else is wrong is told.
    """

    def __init__(self, currency: str) -> None:
        self.currency = currency
        self.digits = money.DIGITS.get(currency, _FINEST)
        self.faults: list[Fault] = []

    def order(self, order: Mapping[str, Any], *, multi: bool) -> list[Fault]:
        list(self._objects(order.get("payments", []), "/payments"))
        self._details(order, "")
        if not multi:
            lines_total = self._lines(order, "")
        else:
            parts = list(self._objects(order.get("orders"), "/orders"))
            if len(parts) > MAX_ORDERS:
                self._fault("/orders", f"There are {len(parts)} orders; Nacelle takes {MAX_ORDERS}.")
            lines_total = sum(self._part(part, pointer) for pointer, part in parts)
        listed, _ = self._listed(order, "")
        self._compare(order, "", lines_total + listed)
        return self.faults

    def _part(self, part: Mapping[str, Any], pointer: str) -> int:
        """What is off one of several orders."""
        currency = part.get("currency")
        if currency and self.currency and not (isinstance(currency, str) and currency.upper() == self.currency):
            self._fault(f"{pointer}/currency", f"The currency is not {self.currency}, which the whole is in.")
        self._details(part, pointer)
        listed, _ = self._listed(part, pointer)
        total = self._lines(part, pointer) + listed
        self._compare(part, pointer, total)
        return total

    def _details(self, part: Mapping[str, Any], pointer: str) -> None:
        """What has to be of a kind, where it is there."""
        for key in OBJECTS:
            if not isinstance(part.get(key), dict | None):
                self._fault(f"{pointer}/{key}", "This is not an object.")
        if not isinstance(part.get("email"), str | None):
            self._fault(f"{pointer}/email", "The email is not a string.")
        for key in AMOUNTS:
            if part.get(key) is not None:
                self._amount(part[key], f"{pointer}/{key}", _FINEST)

    def _lines(self, part: Mapping[str, Any], pointer: str) -> int:
        """What is off the lines."""
        return sum(
            self._line(line, place) for place, line in self._objects(part.get("order_items"), f"{pointer}/order_items")
        )

    def _line(self, line: Mapping[str, Any], pointer: str) -> int:
        """What is off the line."""
        if not any(line.get(name) not in (None, "") for name in NAMES):
            self._fault(f"{pointer}/sku", "A line needs one of sku, variant_id and product_id to name it.")
        quantity = line.get("quantity")
        if not isinstance(quantity, int) or isinstance(quantity, bool) or quantity < 0:
            self._fault(f"{pointer}/quantity", "The quantity is not a whole number.")
            quantity = None
        price_key = next((key for key in PRICES if line.get(key) is not None), None)
        if price_key is None:
            self._fault(f"{pointer}/{PRICES[1]}", "A line has no price.")
        price = self._amount(line[price_key], f"{pointer}/{price_key}") if price_key else None
        listed, list_price = self._listed(line, pointer)
        told = self._compare(line, pointer, listed) if listed or self._has_list(line) else self._total(line, pointer)
        if told and quantity == 0:
            self._fault(f"{pointer}/quantity", "Something is off a line of no units.")
        if self.currency and price_key and price is not None and quantity and list_price is not None:
            self._unit_price(f"{pointer}/{price_key}", price, list_price * quantity - told, quantity)
        return told

    def _unit_price(self, pointer: str, price: int, net: int, quantity: int) -> None:
        if net < 0:
            self._fault(pointer, "More is off the line than it costs.")
        elif price != (wanted := money.unit_price(net, quantity)):
            text = money.text(wanted, self.digits)
            self._fault(pointer, f"The unit price does not follow from list price and discounts: it would be {text}.")

    def _has_list(self, thing: Mapping[str, Any]) -> bool:
        return any(isinstance(thing.get(key), list) for key in LISTS)

    def _listed(self, thing: Mapping[str, Any], pointer: str) -> tuple[int, int | None]:
        """The sum of the discounts listed, and the unit list price that they tell."""
        total, list_price = 0, None
        for key in LISTS:
            if isinstance(thing.get(key), list):
                for place, entry in self._objects(thing[key], f"{pointer}/{key}"):
                    total += self._amount(entry.get("amount"), f"{place}/amount") or 0
                    meta = entry.get("meta")
                    if isinstance(meta, dict) and meta.get("list_price") is not None:
                        list_price = self._amount(meta["list_price"], f"{place}/meta/list_price")
        return total, list_price

    def _total(self, thing: Mapping[str, Any], pointer: str) -> int:
        """The total discount that is told; 0 where none is."""
        for key in TOTALS:
            if thing.get(key) is not None and not isinstance(thing[key], list):
                return self._amount(thing[key], f"{pointer}/{key}") or 0
        return 0

    def _compare(self, thing: Mapping[str, Any], pointer: str, listed: int) -> int:
        """Compares the total that is told with what is listed; returns what is listed."""
        for key in TOTALS:
            if thing.get(key) is None or isinstance(thing[key], list):
                continue
            told = self._amount(thing[key], f"{pointer}/{key}")
            if self.currency and told is not None and told != listed:
                have, want = money.text(told, self.digits), money.text(listed, self.digits)
                self._fault(f"{pointer}/{key}", f"The total is {have}; the discounts listed come to {want}.")
        if listed and not any(thing.get(key) is not None and not isinstance(thing[key], list) for key in TOTALS):
            self._fault(f"{pointer}/{TOTALS[0]}", "Discounts are listed, but no total.")
        return listed

    def _amount(self, value: Any, pointer: str, digits: int | None = None) -> int | None:
        readable = isinstance(value, str | int | Decimal) and not isinstance(value, bool)
        try:
            amount = money.parse(str(value) if readable else "", self.digits if digits is None else digits)
        except NotMoney as error:
            self._fault(pointer, f"The amount {error}.")
            return None
        if amount < 0:
            self._fault(pointer, "The amount is below zero.")
        return max(amount, 0)

    def _objects(self, values: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects in an array, each with its place; anything else is a fault."""
        if not isinstance(values, list):
            self._fault(pointer, "This is not an array.")
            return
        for index, value in enumerate(values):
            if isinstance(value, dict):
                yield f"{pointer}/{index}", value
            else:
                self._fault(f"{pointer}/{index}", "This is not an object.")

    def _fault(self, pointer: str, message: str) -> None:
        self.faults.append(Fault(pointer, message))
