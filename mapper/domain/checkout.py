"""Nacelle's checkout or order: a typed, validated view of a body that is kept byte for byte.

The body is read and validated here, once. An error names the place as a JSON pointer. `families` has the names of the
keys; `lines`, `codes` and `fields` read the parts.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from mapper.domain import codes, document, fields, money
from mapper.domain.codes import Promotions
from mapper.domain.document import Document, Path
from mapper.domain.errors import InvalidRequest, Operation
from mapper.domain.families import Family, Names, family_of
from mapper.domain.fields import Entry, check_id, id_at
from mapper.domain.lines import MAX_LINES, Line, Lines
from mapper.domain.outcome import Notice

__all__ = ["MAX_LINES", "Checkout", "Line", "Order", "Promotions", "check_id", "id_at", "parse"]


_NOT_PRODUCT_DATA: Final = frozenset(
    {"sku", "variant_id", "product_id", "quantity", "price", "price_amount", "total_discount", "discounts",
     "discounts_amount", "applied_discounts"}
)  # fmt: skip


class Order(Struct, frozen=True):
    """An object with a list of lines: the body itself, or in family C one of its `orders`."""

    path: Path
    """() for the body itself."""
    names: Names
    lines: tuple[Line, ...]

    @property
    def pointer(self) -> str:
        return document.pointer_of("", *self.path)


class Checkout(Struct, frozen=True):
    """A checkout (validate) or an order (consume), of any family."""

    family: Family
    source: Document
    orders: tuple[Order, ...]
    lines: tuple[Line, ...]
    """The lines of all orders."""
    cart: tuple[Line, ...]
    """The lines that the engine is sent: those with a quantity of 1 or more. Its positions count in this list."""
    names: Names
    currency: str
    """The ISO 4217 code; "" where the body names none and no default is configured."""
    digits: int
    id: str
    source_id: str
    promotions: Promotions
    promotion_paths: tuple[Path, ...]
    """The paths of the promotion objects: one at most, or in family C those of several orders."""
    root_discount: int
    """The order-level discounts that the body carries, in minor units. An earlier validate wrote them."""
    customer: str = ""
    """The shopper's id; "" for a guest."""
    attempt: str = ""
    """At consume: names the order and the attempt, for idempotency keys."""
    notices: tuple[Notice, ...] = ()
    """Notices of the service itself, in addition to the engine's."""
    product_data: Mapping[int, Mapping[str, Any]] = {}
    """The product data that was added (JSON values by name), by `Line.index`; empty for a line without any."""

    def __repr__(self) -> str:
        return f"Checkout({self.id!r}, {self.lines!r})"

    @property
    def promotions_at(self) -> Path:
        """The path of the promotion object that notes are written to; () where the body has none."""
        return self.promotion_paths[0] if self.promotion_paths else ()

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names in the body; None where there is none. Raises `InvalidRequest`."""
        return fields.value_at(self.source, pointer)

    def at_line(self, line: Line, pointer: str) -> Any:
        """The value that a JSON pointer names within a line; None where there is none. Raises `InvalidRequest`."""
        value = document.at(line.decoded, pointer)
        if value is None or isinstance(value, str | int):
            return value
        exact = fields.value_at(self.source, line.pointer + pointer)
        return value if exact is None else exact  # product data is not in the body

    def with_product_data(self, by_line: Mapping[int, Mapping[str, Any]], *notices: Notice) -> "Checkout":
        """Adds product data (JSON values by name, by `Line.index`) to the lines, and notices.

        A value of the line itself takes precedence. Names, quantities and amounts are never taken from product data.
        """

        def with_data(line: Line) -> Line:
            data = by_line.get(line.index)
            if not data:
                return line
            own = {key: value for key, value in line.decoded.items() if value is not None or key not in data}
            added = {key: value for key, value in data.items() if key not in _NOT_PRODUCT_DATA}
            return replace(line, decoded={**added, **own})

        orders = tuple(replace(order, lines=tuple(map(with_data, order.lines))) for order in self.orders)
        lines = _all_lines(orders)
        notices = (*self.notices, *notices)
        return replace(self, orders=orders, lines=lines, cart=_with_units(lines), notices=notices, product_data=by_line)

    def amount_at(self, pointer: str, line: Line | None = None) -> int | None:
        """The amount (minor units) at a JSON pointer; None where it is absent or null. Raises `InvalidRequest`.

        A token `*` stands for every item of a list: the amounts of all items are added up.
        """
        full_pointer = (line.pointer if line else "") + pointer
        amounts = [
            fields.amount(value, self.digits, each)
            for each in document.expand(self.source.decoded, full_pointer)
            if (value := fields.value_at(self.source, each)) is not None
        ]
        return sum(amounts) if amounts else None

    def discount_entries(self) -> Iterator[tuple[Line | None, Entry]]:
        """The discounts that the body lists: those of each line, then (with None) those at the root."""
        for line in self.lines:
            if line.names.has_list:
                for entry in fields.entries(line.source, line.names.list, line.pointer):
                    yield line, entry
        if self.names.has_list:
            for entry in fields.entries(self.source.root, self.names.list, ""):
                yield None, entry


def parse(body: bytes, operation: Operation, default_currency: str = "", customer_path: str = "") -> Checkout:
    """Reads and validates a body. `customer_path`: a JSON pointer. Raises `InvalidRequest`."""
    source = document.parse(body)
    family = family_of(source.decoded, operation)
    if operation == "consume" and not family.is_order:
        raise InvalidRequest(
            "This is a checkout; an order has its lines in order_items or orders.",
            f"/{family.root_list}",
            reason="checkout_at_consume",
        )
    currency, digits = _currency(source.decoded, family, default_currency)
    names = family.names(source.decoded, "")
    orders = _orders(source, family, names, digits)
    lines = _all_lines(orders)
    if len(lines) > MAX_LINES:
        raise InvalidRequest(f"The cart has {len(lines)} lines; the limit is {MAX_LINES}.", f"/{family.root_list}")
    promotions, promotion_paths = codes.read(source, family)
    return Checkout(
        family=family,
        source=source,
        orders=orders,
        lines=lines,
        cart=_with_units(lines),
        names=names,
        currency=currency,
        digits=digits,
        id=id_at(source, "/id", strict=True),
        source_id=id_at(source, "/source_id", strict=True),
        promotions=promotions,
        promotion_paths=promotion_paths,
        root_discount=_root_discount(source, names, digits, lines),
        customer=id_at(source, customer_path) if customer_path else "",
    )


def _currency(decoded: Mapping[str, Any], family: Family, default: str) -> tuple[str, int]:
    """The code and its digits: the body's own, else that of its orders, which have one for all, else the default."""
    currency = _currency_of(decoded)
    for path, order in family.orders(decoded) if family.has_orders else ():
        of_order = _currency_of(order, *path) if isinstance(order, dict) else ""
        if of_order and currency and of_order != currency:
            pointer = document.pointer_of("", *path, "currency")
            raise InvalidRequest("The cart has two currencies.", pointer, reason="two_currencies")
        currency = currency or of_order
    currency = currency or default
    return currency, money.DIGITS[currency] if currency else money.DEFAULT_DIGITS


def _currency_of(members: Mapping[str, Any], *path: str | int) -> str:
    """The currency that the object at a path names; "" for none."""
    code = members.get("currency")
    if code is None or code == "":
        return ""
    if not isinstance(code, str) or code.upper() not in money.DIGITS:
        pointer = document.pointer_of("", *path, "currency")
        raise InvalidRequest('The currency is no ISO 4217 code such as "USD".', pointer)
    return code.upper()


def _orders(source: Document, family: Family, root_names: Names, digits: int) -> tuple[Order, ...]:
    orders: list[Order] = []
    first = 0
    for path, decoded in family.orders(source.decoded):
        pointer = document.pointer_of("", *path)
        if not isinstance(decoded, dict):
            raise InvalidRequest("An order is not an object.", pointer)
        decoded_lines, list_pointer = decoded.get(family.lines), f"{pointer}/{family.lines}"
        if not isinstance(decoded_lines, list):
            raise InvalidRequest("The order has no list of lines.", list_pointer)
        if len(decoded_lines) > MAX_LINES:
            message = f"The cart has {len(decoded_lines)} lines; the limit is {MAX_LINES}."
            raise InvalidRequest(message, list_pointer)
        lines = Lines(source, (*path, family.lines), list_pointer, family, digits, first).read(decoded_lines)
        first += len(lines)
        orders.append(Order(path, family.names(decoded, pointer) if path else root_names, lines))
    return tuple(orders)


def _all_lines(orders: tuple[Order, ...]) -> tuple[Line, ...]:
    return orders[0].lines if len(orders) == 1 else tuple([line for order in orders for line in order.lines])


def _with_units(lines: Iterable[Line]) -> tuple[Line, ...]:
    return tuple([line for line in lines if line.quantity])


def _root_discount(source: Document, names: Names, digits: int, lines: Iterable[Line]) -> int:
    if names.has_list:
        entries = fields.entries(source.root, names.list, "")
        return sum(fields.entry_amount(entry, f"/{names.list}/{i}", digits) for i, entry in enumerate(entries))
    if source.decoded.get(names.totals[0]) is not None:
        total = fields.scalar_amount(source.root, names.totals[0], "", digits)
        return total - sum(line.discount for line in lines)
    return 0
