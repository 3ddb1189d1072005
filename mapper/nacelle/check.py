"""Checks an order before it is sent to Nacelle, and reports all faults at once, each with a JSON pointer.

Amounts must agree to the cent: a unit price follows from the list price and the discounts of its line, a line's total
discount is the sum of its listed discounts, and the order's is the sum of all. Nacelle documents no such rules, but an
order that breaks them would show two different prices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mapper.domain import money
from mapper.domain.money import NotMoney

REQUIRED: Final = ("currency", "payments")
"""The members that an order needs beside its lines. Nacelle has no list: its page shows paid orders with `currency`."""
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
"""The members that the reference of "Create a multi-order" marks as required."""
MAX_ORDERS: Final = 100
OBJECTS: Final = ("billing_address", "shipping_address", "customer")
AMOUNTS: Final = ("price", "subtotal", "tax_amount")
"""Neither their parts nor their decimals are documented, so these only have to be amounts."""
_MAX_DIGITS: Final = 12
TOTALS: Final = ("discounts", "discounts_amount", "total_discount")
LISTS: Final = ("applied_discounts", "discounts")
PRICES: Final = ("price", "price_amount")
NAMES: Final = ("sku", "variant_id", "product_id")


@dataclass(frozen=True)
class Fault:
    """One fault of an order: a JSON pointer and a sentence."""

    pointer: str
    message: str


class NotAnOrder(Exception):
    """The order must not be sent. `faults`: all of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.message}" for fault in faults))
        self.faults = tuple(faults)


def faults_of(order: Any) -> Iterator[Fault]:
    """Yields all faults of a decoded order, whose numbers are `int` or `Decimal`."""
    if not isinstance(order, dict):
        yield Fault("", "The order is not an object.")
        return
    multi = "orders" in order and not order.get("order_items")
    if order.get("orders") and not multi:
        yield Fault("/orders", "Lines stand in order_items and in orders; an order has one of them.")
    for key in REQUIRED_MULTI if multi else REQUIRED:
        if order.get(key) in (None, "", []):
            yield Fault(f"/{key}", f"An order needs {key}.")
    value = order.get("currency")
    currency = value.upper() if isinstance(value, str) else ""
    if value and currency not in money.DIGITS:
        yield Fault("/currency", 'The currency is no ISO 4217 code such as "USD".')
        currency = ""
    yield from _Checker(currency).order(order, multi=multi)


class _Checker:
    """Checks amounts of one currency, in minor units. An amount that cannot be read is a fault, and counts as absent.

    Without a currency (""), amounts are not compared; all other checks are made.
    """

    def __init__(self, currency: str) -> None:
        self.currency = currency
        self.digits = money.DIGITS.get(currency, _MAX_DIGITS)
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
        """Returns the discounts of one of several orders."""
        currency = part.get("currency")
        if currency and self.currency and not (isinstance(currency, str) and currency.upper() == self.currency):
            self._fault(f"{pointer}/currency", f"The currency is not {self.currency}, which the whole is in.")
        self._details(part, pointer)
        listed, _ = self._listed(part, pointer)
        total = self._lines(part, pointer) + listed
        self._compare(part, pointer, total)
        return total

    def _details(self, part: Mapping[str, Any], pointer: str) -> None:
        """Checks the types of members that may be absent."""
        for key in OBJECTS:
            if not isinstance(part.get(key), dict | None):
                self._fault(f"{pointer}/{key}", "This is not an object.")
        if not isinstance(part.get("email"), str | None):
            self._fault(f"{pointer}/email", "The email is not a string.")
        for key in AMOUNTS:
            if part.get(key) is not None:
                self._amount(part[key], f"{pointer}/{key}", _MAX_DIGITS)

    def _lines(self, part: Mapping[str, Any], pointer: str) -> int:
        """Returns the discounts of the lines."""
        return sum(
            self._line(line, place) for place, line in self._objects(part.get("order_items"), f"{pointer}/order_items")
        )

    def _line(self, line: Mapping[str, Any], pointer: str) -> int:
        """Returns the discounts of the line."""
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
        off = self._compare(line, pointer, listed) if listed or self._has_list(line) else self._total(line, pointer)
        if off and quantity == 0:
            self._fault(f"{pointer}/quantity", "Something is off a line of no units.")
        if self.currency and price_key and price is not None and quantity and list_price is not None:
            self._unit_price(f"{pointer}/{price_key}", price, list_price * quantity - off, quantity)
        return off

    def _unit_price(self, pointer: str, price: int, net: int, quantity: int) -> None:
        if net < 0:
            self._fault(pointer, "More is off the line than it costs.")
        elif price != (expected := money.unit_price(net, quantity)):
            text = money.text(expected, self.digits)
            self._fault(pointer, f"The unit price does not follow from list price and discounts: it would be {text}.")

    def _has_list(self, owner: Mapping[str, Any]) -> bool:
        return any(isinstance(owner.get(key), list) for key in LISTS)

    def _listed(self, owner: Mapping[str, Any], pointer: str) -> tuple[int, int | None]:
        """Returns the sum of the listed discounts, and the unit list price in their `meta`."""
        total, list_price = 0, None
        for key in LISTS:
            if isinstance(owner.get(key), list):
                for place, entry in self._objects(owner[key], f"{pointer}/{key}"):
                    total += self._amount(entry.get("amount"), f"{place}/amount") or 0
                    meta = entry.get("meta")
                    if isinstance(meta, dict) and meta.get("list_price") is not None:
                        list_price = self._amount(meta["list_price"], f"{place}/meta/list_price")
        return total, list_price

    def _total(self, owner: Mapping[str, Any], pointer: str) -> int:
        """Returns the stated total discount; 0 without one."""
        for key in TOTALS:
            if owner.get(key) is not None and not isinstance(owner[key], list):
                return self._amount(owner[key], f"{pointer}/{key}") or 0
        return 0

    def _compare(self, owner: Mapping[str, Any], pointer: str, listed: int) -> int:
        """Compares the stated total discount with the sum of the listed discounts. Returns that sum."""
        for key in TOTALS:
            if owner.get(key) is None or isinstance(owner[key], list):
                continue
            total = self._amount(owner[key], f"{pointer}/{key}")
            if self.currency and total is not None and total != listed:
                stated, expected = money.text(total, self.digits), money.text(listed, self.digits)
                self._fault(f"{pointer}/{key}", f"The total is {stated}; the discounts listed come to {expected}.")
        if listed and not any(owner.get(key) is not None and not isinstance(owner[key], list) for key in TOTALS):
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
        """Yields the objects of an array with their JSON pointers. Other values are faults."""
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
