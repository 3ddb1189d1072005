"""Reads the lines of a cart: all in one typed pass, or one by one where that fails, to name the place of an error."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mapper.domain import fields, money
from mapper.domain.document import Document, Object, Path, pointer_of
from mapper.domain.errors import InvalidRequest
from mapper.domain.families import Family, Names

MAX_LINES = 1000
MAX_QUANTITY = 1_000_000
_PRICE = ("price",)
_OTHER_AMOUNTS = ("price_amount", "total_discount", "discounts", "discounts_amount", "applied_discounts")


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of the cart. Amounts are in minor units."""

    index: int
    """The position among all lines of the body, across its orders."""
    parent: "Lines"
    position: int
    """The position in `parent`."""
    sku: str
    variant_id: str
    product_id: str
    quantity: int
    price: int
    """The unit price in the body. An earlier validate may have reduced it."""
    list_price: int
    """The unit price before any discount, which the engine is sent."""
    gross: int
    """The line total before discounts."""
    discount: int
    """The discounts that the body carries, for the whole line. An earlier validate wrote them."""
    decoded: Mapping[str, Any]
    """The line in `Document.decoded`, with product data where that was added."""
    names: Names
    price_keys: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Line({self.pointer!r}, {self.name!r}, {self.quantity} x {self.list_price})"

    @property
    def pointer(self) -> str:
        return self.parent.pointer_of(self.position)

    @property
    def path(self) -> Path:
        return (*self.parent.path, self.position)

    @property
    def source(self) -> Object:
        """The line in the body's text."""
        return self.parent.source_of(self.position)

    @property
    def name(self) -> str:
        """The most specific of the ids that the line has."""
        return self.sku or self.variant_id or self.product_id


class Lines(msgspec.Struct, frozen=True):
    """A list of lines of the body, and what is needed to read it."""

    body: Document
    path: Path
    pointer: str
    family: Family
    digits: int
    first: int
    """`Line.index` of the first line."""

    def pointer_of(self, position: int) -> str:
        return f"{self.pointer}/{position}"

    def source_of(self, position: int) -> Object:
        return self.body.object((*self.path, position))

    def read(self, decoded: list[Any]) -> tuple[Line, ...]:
        """Reads the list in `Document.decoded`. Raises `InvalidRequest`."""
        try:
            return self.read_typed(decoded)
        except (msgspec.ValidationError, money.NotMoney, _Unusual, InvalidRequest):
            return self.read_one_by_one(decoded)

    def read_typed(self, decoded: list[Any]) -> tuple[Line, ...]:
        """Reads lines whose values have the usual JSON types. Raises any of several exceptions for other lines."""
        typed = msgspec.convert({"lines": decoded}, _TypedLines).lines
        names = self.family.names({}, self.pointer)
        return tuple(
            [
                self._undiscounted_line(position, line, values, names)
                if line.price is not None and values.keys().isdisjoint(_OTHER_AMOUNTS)
                else self._line(position, line, values)
                for position, (line, values) in enumerate(zip(typed, decoded, strict=True))
            ]
        )

    def _undiscounted_line(self, position: int, typed: "_TypedLine", decoded: Mapping[str, Any], names: Names) -> Line:
        """A line with `price` and without discounts, as most lines are."""
        price = _amount(typed.price, self.digits)
        sku, variant_id, product_id = _names(typed)
        return Line(
            self.first + position, self, position, sku, variant_id, product_id, typed.quantity, price, price,
            price * typed.quantity, 0, decoded, names, _PRICE,
        )  # fmt: skip

    def _line(self, position: int, typed: "_TypedLine", decoded: Mapping[str, Any]) -> Line:
        digits = self.digits
        price_keys = self.family.prices if len(self.family.prices) == 1 else typed.price_keys
        text = getattr(typed, price_keys[0]) if price_keys else None
        if text is None:
            raise _Unusual
        list_price = price = _amount(text, digits)
        if len(price_keys) > 1 and _amount(typed.price_amount, digits) != price:
            raise _Unusual
        names = self.family.names(decoded, self.pointer, position, price_amount="price_amount" in price_keys)
        discount, written_list_price = 0, None
        if names.has_list:
            discount, written_list_price = _sum_entries(getattr(typed, names.list), digits)
        if (total := getattr(typed, names.totals[0])) is not None:
            discount = _amount(total, digits)
        if written_list_price is not None:
            list_price = written_list_price
        elif discount:
            list_price = money.list_price(price, discount, typed.quantity)
        return Line(
            self.first + position, self, position, *_names(typed), typed.quantity, price, list_price,
            list_price * typed.quantity, discount, decoded, names, price_keys,
        )  # fmt: skip

    def read_one_by_one(self, decoded: list[Any]) -> tuple[Line, ...]:
        """Reads lines whose values have any JSON types. Raises `InvalidRequest`."""
        return tuple([_Reader(self, position, line).line() for position, line in enumerate(decoded)])


class _Unusual(Exception):
    """The line needs the reader that accepts all JSON types."""


class _TypedMeta(msgspec.Struct, gc=False):
    list_price: str | None = None


class _TypedEntry(msgspec.Struct, gc=False):
    amount: str
    meta: _TypedMeta | None = None


class _TypedLine(msgspec.Struct, gc=False):
    """A line whose values have the usual JSON types."""

    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY)]
    sku: str | None = None
    variant_id: str | None = None
    product_id: str | None = None
    price: str | None = None
    price_amount: str | None = None
    total_discount: str | None = None
    discounts: str | list[_TypedEntry] | None = None
    discounts_amount: str | None = None
    applied_discounts: list[_TypedEntry] | None = None

    @property
    def price_keys(self) -> tuple[str, ...]:
        return tuple([key for key in ("price", "price_amount") if getattr(self, key) is not None])


class _TypedLines(msgspec.Struct):
    """msgspec keeps what it knows of a Struct's types, but not of those of a list."""

    lines: list[_TypedLine]


def _names(line: _TypedLine) -> tuple[str, str, str]:
    names = (line.sku or "").strip(), (line.variant_id or "").strip(), (line.product_id or "").strip()
    if not any(names):
        raise _Unusual
    return names


def _sum_entries(entries: "list[_TypedEntry]", digits: int) -> tuple[int, int | None]:
    """The sum of listed discounts, and the unit list price in their `meta`, if any."""
    discount, list_price = 0, None
    for entry in entries:
        discount += _amount(entry.amount, digits)
        if entry.meta is not None and entry.meta.list_price is not None:
            price = _amount(entry.meta.list_price, digits)
            if list_price not in (None, price):
                raise _Unusual
            list_price = price
    return discount, list_price


@lru_cache(money.CACHE_SIZE)
def _amount(text: Any, digits: int) -> int:
    minor = money.parse(text, digits)
    if minor < 0 or text[0] == "-":
        raise _Unusual
    return minor


class _Reader:
    """Reads one line of any shape. A value such as a price that is a JSON number is read from its own text."""

    def __init__(self, parent: Lines, position: int, decoded: Any) -> None:
        self.parent, self.position, self.decoded = parent, position, decoded
        self.family, self.digits = parent.family, parent.digits
        self.pointer = parent.pointer_of(position)

    @property
    def source(self) -> Object:
        return self.parent.source_of(self.position)

    def line(self) -> Line:
        if not isinstance(self.decoded, dict):
            raise InvalidRequest("A line is not an object.", self.pointer)
        sku, variant_id, product_id = self.name("sku"), self.name("variant_id"), self.name("product_id")
        if not (sku or variant_id or product_id):
            raise InvalidRequest(
                "A line needs one of sku, variant_id and product_id to name it.", f"{self.pointer}/sku"
            )
        quantity = self.quantity()
        price_keys = self.price_keys()
        list_price = price = self.price(price_keys)
        names = self.family.names(self.decoded, self.pointer, price_amount="price_amount" in price_keys)
        discount, written_list_price = self.discount(names)
        if written_list_price is not None:
            list_price = written_list_price
        elif quantity and discount:
            list_price = money.list_price(price, discount, quantity)
        return Line(
            self.parent.first + self.position, self.parent, self.position, sku, variant_id, product_id,
            quantity, price, list_price, list_price * quantity, discount, self.decoded, names, price_keys,
        )  # fmt: skip

    def name(self, key: str) -> str:
        value = self.decoded.get(key)
        if value is None or isinstance(value, str):
            return (value or "").strip()
        raw = self.source.raw(key)
        if raw.isdigit():
            return raw.decode()
        raise InvalidRequest(f"{key} is not a string.", f"{self.pointer}/{key}")

    def quantity(self) -> int:
        quantity = self.decoded.get("quantity")
        if type(quantity) is int and 0 < quantity <= MAX_QUANTITY:
            return quantity
        if self.source.raw("quantity") == b"0":
            return 0
        what = "is missing" if "quantity" not in self.decoded else f"is not a whole number from 0 to {MAX_QUANTITY}"
        raise InvalidRequest(f"The quantity {what}.", f"{self.pointer}/quantity")

    def price_keys(self) -> tuple[str, ...]:
        """The price keys that the line has."""
        return tuple([key for key in self.family.prices if self.decoded.get(key) is not None])

    def price(self, keys: tuple[str, ...]) -> int:
        if not keys:
            raise InvalidRequest("A line has no price.", f"{self.pointer}/{self.family.prices[0]}")
        price = self.amount(keys[0])
        if len(keys) > 1 and self.amount(keys[1]) != price:
            raise InvalidRequest("price and price_amount name different prices.", f"{self.pointer}/price_amount")
        return price

    def amount(self, key: str) -> int:
        value = self.decoded[key]
        if isinstance(value, str):
            return fields.amount(value, self.digits, self.pointer, key)
        return fields.scalar_amount(self.source, key, self.pointer, self.digits)

    def discount(self, names: Names) -> tuple[int, int | None]:
        """The line's discount in the body, and the unit list price in the `meta` of its discounts, if any."""
        listed, list_price = 0, None
        entries = fields.entries(self.source, names.list, self.pointer) if names.has_list else []
        for index, entry in enumerate(entries):
            pointer = pointer_of(self.pointer, names.list, index)
            listed += fields.entry_amount(entry, pointer, self.digits)
            meta = entry.get("meta")
            written = meta.get("list_price") if isinstance(meta, dict) else None
            if written is not None:
                price = fields.amount(written, self.digits, f"{pointer}/meta/list_price")
                if list_price is not None and list_price != price:
                    raise InvalidRequest(
                        "The discounts of this line name different list prices.", f"{pointer}/meta/list_price"
                    )
                list_price = price
        total = names.totals[0]
        return self.amount(total) if self.decoded.get(total) is not None else listed, list_price
