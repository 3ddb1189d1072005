"""Nacelle's checkout or order: a typed, checked view over a body that is kept byte for byte.

Everything an adapter or the arithmetic needs is read here once; whatever is wrong with the body is said here, with the
place as a JSON pointer. What is called how is in `families`; the parts are read by `lines`, `codes` and `fields`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import msgspec

from mapper.domain import codes, document, fields, money
from mapper.domain.codes import Promotions
from mapper.domain.document import Document, Path
from mapper.domain.errors import InvalidRequest, Operation
from mapper.domain.families import Family, Names, family_of
from mapper.domain.fields import Entry, check_id, id_at
from mapper.domain.lines import MAX_LINES, Line, Lines
from mapper.domain.outcome import Notice

__all__ = ["MAX_LINES", "Checkout", "Line", "Order", "Promotions", "check_id", "id_at", "parse"]


_NO_PRODUCT_DATA: Final = frozenset(
    {"sku", "variant_id", "product_id", "quantity", "price", "price_amount", "total_discount", "discounts",
     "discounts_amount", "applied_discounts"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """A part of the body with lines of its own: the body itself, or one of `orders` in family C."""

    path: Path
    """Of the object; () is the body itself."""
    names: Names = field(repr=False)
    lines: tuple[Line, ...]

    @property
    def pointer(self) -> str:
        return "".join(f"/{key}" for key in self.path)


@dataclass(frozen=True)
class Checkout:
    """A checkout (validate) or an order (consume), whichever family it came in."""

    family: Family
    source: Document = field(repr=False)
    orders: tuple[Order, ...]
    names: Names = field(repr=False)
    currency: str
    """The ISO 4217 code; "" where the body names none and no default is configured."""
    digits: int
    id: str
    source_id: str
    promotions: Promotions
    promotions_at: Path
    """The path of the promotion object that notes are written to; () where the body has none."""
    root_discount: int
    """What the body says is off beside the lines: earlier order-level discounts of ours."""
    customer: str = ""
    """The shopper's id; "" for a guest."""
    attempt: str = ""
    """Of an order that is to be redeemed: names it and the attempt, for idempotency keys."""
    remarks: tuple[Notice, ...] = ()
    """What the service itself has to say of it, beside what the engine says."""
    product_data: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """What was filled in (JSON values by name), by `Line.index`; empty for a line of which nothing is known."""

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        return tuple(line for order in self.orders for line in order.lines)

    @cached_property
    def cart(self) -> tuple[Line, ...]:
        """The lines an engine is told about: those of quantity 1 and more. Engines count positions in this list."""
        return tuple(line for line in self.lines if line.quantity > 0)

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names in the body; None where there is none. Raises `InvalidRequest`."""
        return fields.value_at(self.source, pointer)

    def at_line(self, line: Line, pointer: str) -> Any:
        """The value that a JSON pointer names within a line; None where there is none. Raises `InvalidRequest`."""
        found = document.at(line.decoded, pointer)
        if found is None or isinstance(found, str | int):
            return found
        exact = fields.value_at(self.source, line.pointer + pointer)
        return found if exact is None else exact  # product data stands in no document

    def filled(self, by_line: Mapping[int, Mapping[str, Any]], *remarks: Notice) -> "Checkout":
        """The same, with product data (JSON values by name) where a line has none of that name; by `Line.index`.

        What a line says itself wins. Names, quantities and amounts are never product data.
        """

        def line(given: Line) -> Line:
            known = by_line.get(given.index)
            if not known:
                return given
            own = {key: value for key, value in given.decoded.items() if value is not None or key not in known}
            more = {key: value for key, value in known.items() if key not in _NO_PRODUCT_DATA}
            return msgspec.structs.replace(given, decoded={**more, **own})

        orders = tuple(replace(order, lines=tuple(map(line, order.lines))) for order in self.orders)
        return replace(self, orders=orders, remarks=(*self.remarks, *remarks), product_data=by_line)

    def amount_at(self, pointer: str, line: Line | None = None) -> int | None:
        """The amount (minor units) that a pointer names; None where it is absent or null. Raises `InvalidRequest`.

        `*` in place of a position stands for every item of a list: their amounts are added up, None where no item has
        one.
        """
        whole = (line.pointer if line else "") + pointer
        found = [
            fields.amount(value, self.digits, each)
            for each in document.expand(self.source.decoded, whole)
            if (value := fields.value_at(self.source, each)) is not None
        ]
        return sum(found) if found else None

    def applied(self) -> Iterator[tuple[Line | None, Entry]]:
        """The discounts that stand in the body: those of each line, then (with None) those at the root."""
        for line in self.lines:
            if line.names.came:
                for entry in fields.entries(line.source, line.names.list, line.pointer):
                    yield line, entry
        if self.names.came:
            for entry in fields.entries(self.source.root, self.names.list, ""):
                yield None, entry


def parse(body: bytes, operation: Operation, default_currency: str = "", customer_path: str = "") -> Checkout:
    """The checked view over a body. `customer_path`: a JSON pointer. Raises `InvalidRequest`, which names the place."""
    source = document.parse(body)
    family = family_of(source.decoded, operation)
    if operation == "consume" and not family.is_order:
        raise InvalidRequest(
            "This is a checkout; an order has its lines in order_items or orders.",
            f"/{family.told_by}",
            reason="checkout_at_consume",
        )
    currency, digits = _currency(source.decoded, family, default_currency)
    names = family.names(source.decoded, "")
    orders = tuple(_orders(source, family, digits))
    count = sum(len(order.lines) for order in orders)
    if count > MAX_LINES:
        raise InvalidRequest(f"The cart has {count} lines; the limit is {MAX_LINES}.", f"/{family.told_by}")
    promotions, promotions_at = codes.read(source, family)
    return Checkout(
        family=family,
        source=source,
        orders=orders,
        names=names,
        currency=currency,
        digits=digits,
        id=fields.own_id(source, "id"),
        source_id=fields.own_id(source, "source_id"),
        promotions=promotions,
        promotions_at=promotions_at,
        root_discount=_root_discount(source, names, digits, orders),
        customer=id_at(source, customer_path) if customer_path else "",
    )


def _currency(decoded: Mapping[str, Any], family: Family, default: str) -> tuple[str, int]:
    """The code and its digits: the body's own, else that of its orders, which have one for all, else the default."""
    currency = ""
    parts = [((), decoded), *(family.orders(decoded) if family.has_orders else ())]
    for path, part in parts:
        code = part.get("currency") if isinstance(part, dict) else None
        if code in (None, ""):
            continue
        pointer = document.pointer_of("", *path, "currency")
        if not isinstance(code, str) or code.upper() not in money.DIGITS:
            raise InvalidRequest('The currency is no ISO 4217 code such as "USD".', pointer)
        if code.upper() != (currency or code.upper()):
            raise InvalidRequest("The cart has two currencies.", pointer, reason="two_currencies")
        currency = code.upper()
    currency = currency or default
    return currency, money.DIGITS[currency] if currency else money.DEFAULT_DIGITS


def _orders(source: Document, family: Family, digits: int) -> Iterator[Order]:
    first = 0
    for path, decoded in family.orders(source.decoded):
        pointer = "".join(f"/{key}" for key in path)
        if not isinstance(decoded, dict):
            raise InvalidRequest("An order is not an object.", pointer)
        lines, here = decoded.get(family.lines), f"{pointer}/{family.lines}"
        if not isinstance(lines, list):
            raise InvalidRequest("The order has no list of lines.", here)
        if len(lines) > MAX_LINES:
            raise InvalidRequest(f"The cart has {len(lines)} lines; the limit is {MAX_LINES}.", here)
        read = Lines(source, (*path, family.lines), here, family, digits, first).read(lines)
        first += len(read)
        yield Order(path, family.names(decoded, pointer), read)


def _root_discount(source: Document, names: Names, digits: int, orders: tuple[Order, ...]) -> int:
    if names.came:
        entries = fields.entries(source.root, names.list, "")
        return sum(fields.entry_amount(entry, f"/{names.list}/{i}", digits) for i, entry in enumerate(entries))
    if source.decoded.get(names.totals[0]) is not None:
        total = fields.scalar_amount(source.root, names.totals[0], "", digits)
        return total - sum(line.discount for order in orders for line in order.lines)
    return 0
