"""The lines of a cart: read in one typed pass, or, where that refuses, one by one so that the place can be named."""

from collections.abc import Mapping
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


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of the cart. Amounts in minor units; `discount` is for the whole line, prices are for one unit."""

    index: int
    """The position among all lines of the body, those of all orders counted through."""
    within: "Lines"
    position: int
    """Which list it stands in, and at which place of it."""
    sku: str
    variant_id: str
    product_id: str
    quantity: int
    price: int
    """What the body says one unit costs, after any earlier discount of ours."""
    list_price: int
    """What one unit cost before any discount of ours: what the engine is told."""
    discount: int
    """What the body says is off this line by earlier discounts of ours."""
    decoded: Mapping[str, Any]
    """The line as `Document.decoded` has it."""
    names: Names
    price_keys: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Line({self.pointer!r}, {self.name!r}, {self.quantity} x {self.list_price})"

    @property
    def pointer(self) -> str:
        return self.within.pointer_of(self.position)

    @property
    def path(self) -> Path:
        return (*self.within.path, self.position)

    @property
    def source(self) -> Object:
        """The line's own text."""
        return self.within.source_of(self.position)

    @property
    def gross(self) -> int:
        return self.list_price * self.quantity

    @property
    def name(self) -> str:
        """The most exact of the three names that came."""
        return self.sku or self.variant_id or self.product_id


class Lines(msgspec.Struct, frozen=True):
    """A list of lines: where it stands in the body, and what it takes to read it."""

    body: Document
    path: Path
    pointer: str
    family: Family
    digits: int
    first: int
    """`Line.index` of the first."""

    def pointer_of(self, position: int) -> str:
        return f"{self.pointer}/{position}"

    def source_of(self, position: int) -> Object:
        return self.body.object((*self.path, position))

    def read(self, decoded: list[Any]) -> tuple[Line, ...]:
        """`decoded`: the list as `Document.decoded` has it. Raises `InvalidRequest`."""
        try:
            return self.read_typed(decoded)
        except (msgspec.ValidationError, money.NotMoney, _NotTyped, InvalidRequest):
            return self.read_one_by_one(decoded)

    def read_typed(self, decoded: list[Any]) -> tuple[Line, ...]:
        """Lines of the usual JSON types. Raises whatever it meets where a line is not one of these."""
        typed = msgspec.convert(decoded, list[_TypedLine])
        fresh = self.family.names({}, self.pointer)
        return tuple(
            [
                self._fresh_line(position, line, plain, fresh)
                if line.is_fresh and "price_amount" not in plain
                else self._line(position, line, plain)
                for position, (line, plain) in enumerate(zip(typed, decoded, strict=True))
            ]
        )

    def _fresh_line(self, position: int, typed: "_TypedLine", decoded: Mapping[str, Any], names: Names) -> Line:
        """A line with a price of the one name, and nothing taken off: what nearly all lines are."""
        price = _amount(typed.price, self.digits)
        return Line(
            self.first + position,
            self,
            position,
            typed.sku or "",
            typed.variant_id or "",
            typed.product_id or "",
            typed.quantity,
            price,
            price,
            0,
            decoded,
            names,
            _PRICE,
        )

    def _line(self, position: int, typed: "_TypedLine", decoded: Mapping[str, Any]) -> Line:
        digits = self.digits
        if not typed.has_name:
            raise _NotTyped
        price_keys = self.family.prices if len(self.family.prices) == 1 else typed.price_keys
        text = getattr(typed, price_keys[0]) if price_keys else None
        if text is None:
            raise _NotTyped
        list_price = price = _amount(text, digits)
        if len(price_keys) > 1 and _amount(typed.price_amount, digits) != price:
            raise _NotTyped
        names = self.family.names(decoded, self.pointer, position)
        discount, marked = 0, None
        if names.came:
            discount, marked = _listed(getattr(typed, names.list), digits)
        if (total := getattr(typed, names.totals[0])) is not None:
            discount = _amount(total, digits)
        if marked is not None:
            list_price = marked
        elif discount:
            list_price = money.list_price(price, discount, typed.quantity)
        return Line(
            self.first + position,
            self,
            position,
            typed.sku or "",
            typed.variant_id or "",
            typed.product_id or "",
            typed.quantity,
            price,
            list_price,
            discount,
            decoded,
            names,
            price_keys,
        )

    def read_one_by_one(self, decoded: list[Any]) -> tuple[Line, ...]:
        """Lines of any JSON types. Raises `InvalidRequest`."""
        return tuple([_Reader(self, position, line).line() for position, line in enumerate(decoded)])


class _NotTyped(Exception):
    """Something that the other reader has to look at."""


class _TypedMeta(msgspec.Struct, gc=False):
    list_price: str | None = None


class _TypedEntry(msgspec.Struct, gc=False):
    amount: str
    meta: _TypedMeta | None = None


class _TypedLine(msgspec.Struct, gc=False):
    """A line whose members have the JSON types that they usually have."""

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
    def has_name(self) -> bool:
        return bool(self.sku or self.variant_id or self.product_id)

    @property
    def is_fresh(self) -> bool:
        """Whether it has a price by the one name, and no discount."""
        return (
            self.price is not None
            and self.price_amount is None
            and self.total_discount is None
            and self.discounts is None
            and self.discounts_amount is None
            and self.applied_discounts is None
            and self.has_name
        )

    @property
    def price_keys(self) -> tuple[str, ...]:
        return tuple([key for key in ("price", "price_amount") if getattr(self, key) is not None])


def _listed(entries: "list[_TypedEntry]", digits: int) -> tuple[int, int | None]:
    """What listed discounts take off, and the list price that we noted in them, if any."""
    off, marked = 0, None
    for entry in entries:
        off += _amount(entry.amount, digits)
        if entry.meta is not None and entry.meta.list_price is not None:
            mark = _amount(entry.meta.list_price, digits)
            if marked not in (None, mark):
                raise _NotTyped
            marked = mark
    return off, marked


def _amount(text: Any, digits: int) -> int:
    minor = money.parse(text, digits)
    if minor < 0 or text[0] == "-":
        raise _NotTyped
    return minor


class _Reader:
    """Reads one line, whatever it holds: its own text is looked at for all that is no text and no whole number, such as
    a price that is a JSON number.
    """

    def __init__(self, within: Lines, position: int, decoded: Any) -> None:
        self.within, self.position, self.decoded = within, position, decoded
        self.family, self.digits = within.family, within.digits
        self.pointer = within.pointer_of(position)

    @property
    def source(self) -> Object:
        return self.within.source_of(self.position)

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
        names = self.family.names(self.decoded, self.pointer)
        discount, marked = self.discount(names)
        if marked is not None:
            list_price = marked
        elif quantity and discount:
            list_price = money.list_price(price, discount, quantity)
        return Line(
            self.within.first + self.position,
            self.within,
            self.position,
            sku,
            variant_id,
            product_id,
            quantity,
            price,
            list_price,
            discount,
            self.decoded,
            names,
            price_keys,
        )

    def name(self, key: str) -> str:
        value = self.decoded.get(key)
        if value is None or isinstance(value, str):
            return value or ""
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
        """Those that came."""
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
        """What is off a line by the body's own account, and the list price that we noted in its discounts, if any."""
        listed, marked = 0, None
        found = fields.entries(self.source, names.list, self.pointer) if names.came else []
        for index, entry in enumerate(found):
            where = pointer_of(self.pointer, names.list, index)
            listed += fields.entry_amount(entry, where, self.digits)
            meta = entry.get("meta")
            noted = meta.get("list_price") if isinstance(meta, dict) else None
            if noted is not None:
                price = fields.amount(noted, self.digits, f"{where}/meta/list_price")
                if marked is not None and marked != price:
                    raise InvalidRequest(
                        "The discounts of this line name different list prices.", f"{where}/meta/list_price"
                    )
                marked = price
        total = names.totals[0]
        return self.amount(total) if self.decoded.get(total) is not None else listed, marked
