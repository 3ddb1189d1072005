"""Nacelle's checkout or order: a typed, checked view over a body that is kept byte for byte.

Nacelle's own pages use three families of names (CONTRACT section 3); which one a body belongs to is told by its list of
lines. Everything an adapter or the arithmetic needs is read here once; whatever is wrong with the body is said here,
with the place as a JSON pointer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, cast

import msgspec

from mapper.domain import document, money
from mapper.domain.document import Object
from mapper.domain.errors import InvalidRequest, Operation

Family = Literal["A", "B", "C"]

MAX_LINES = 1000
MAX_CODES = 100
MAX_QUANTITY = 1_000_000
MAX_ID = 255

# Where a family keeps its total discount and its list of discounts: the first name is the one to write where none came.
# A name is taken for a total or for a list by the JSON type of its value, since "discounts" is a list on one page of
# Nacelle's and a string on another.
_TOTALS = {
    "A": ("total_discount", "discounts", "discounts_amount"),
    "B": ("discounts", "discounts_amount", "total_discount"),
}
_LISTS = {"A": ("discounts", "applied_discounts"), "B": ("applied_discounts", "discounts")}
_PRICES = {"A": ("price",), "B": ("price", "price_amount")}


@dataclass(frozen=True, slots=True)
class Names:
    """The names that an object of the body uses (or shall use) for its discounts."""

    totals: tuple[str, ...]
    """Every total that came; the family's name where none did."""
    list: str
    came: bool
    """Whether a list of discounts came."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Where a list of lines stands in the body: whose it is, what it is called, and that as a JSON pointer."""

    above: Object
    key: str
    pointer: str

    def pointer_of(self, position: int) -> str:
        return f"{self.pointer}/{position}"

    def source_of(self, position: int) -> Object:
        """A line's own text, read anew."""
        array = self.above.array(self.key)
        source = array.object(position) if array else None
        assert source is not None, "a line is an object in an array"
        return source


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of the cart. Amounts in minor units; `discount` is for the whole line, prices are for one unit."""

    index: int
    """The position among all lines of the body, those of all orders counted through."""
    within: Lines
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
    plain: Mapping[str, Any]
    """The line as `Object.plain` has it."""
    names: Names
    price_keys: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Line({self.pointer!r}, {self.name!r}, {self.quantity} x {self.list_price})"

    @property
    def pointer(self) -> str:
        return self.within.pointer_of(self.position)

    @property
    def source(self) -> Object:
        return self.within.source_of(self.position)

    @property
    def gross(self) -> int:
        return self.list_price * self.quantity

    @property
    def name(self) -> str:
        """The most exact of the three names that came."""
        return self.sku or self.variant_id or self.product_id


@dataclass(frozen=True, slots=True)
class Promotions:
    """What the shopper brings: Nacelle's `promotions` (or `promotion`) object. Texts are stripped, blanks dropped."""

    coupon_codes: tuple[str, ...] = ()
    referral_code: str = ""
    loyalty_card: str = ""
    identifiers: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[str, ...]:
        """Everything the shopper typed in that an engine can refuse."""
        return tuple(filter(None, (*self.coupon_codes, self.referral_code, self.loyalty_card)))


@dataclass(frozen=True, slots=True)
class Order:
    """A part of the body with lines of its own: the body itself, or one of `orders` in family C."""

    source: Object = field(repr=False)
    plain: Mapping[str, Any] = field(repr=False)
    """As `Object.plain` has it."""
    pointer: str
    lines_key: str
    names: Names = field(repr=False)
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Checkout:
    """A checkout (validate) or an order (consume), whichever family it came in."""

    family: Family
    source: Object = field(repr=False)
    orders: tuple[Order, ...]
    names: Names = field(repr=False)
    currency: str
    """The ISO 4217 code; "" where the body names none and no default is configured."""
    digits: int
    id: str
    source_id: str
    promotions: Promotions
    promotions_at: tuple[str, ...]
    """The keys that lead to the promotion object that notes are written to; () where the body has none."""
    root_discount: int
    """What the body says is off beside the lines: earlier order-level discounts of ours."""
    customer: str = ""
    """The shopper's id; "" for a guest."""

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        return tuple(line for order in self.orders for line in order.lines)

    @cached_property
    def cart(self) -> tuple[Line, ...]:
        """The lines an engine is told about: those of quantity 1 and more. Engines count positions in this list."""
        return tuple(line for line in self.lines if line.quantity > 0)

    def at(self, pointer: str) -> Any:
        """The value that a JSON pointer names in the body; None where there is none. Raises `InvalidRequest`."""
        plain = document.at(self.source.plain, pointer)
        return plain if isinstance(plain, str) else _at(self.source, pointer, "")

    def at_line(self, line: Line, pointer: str) -> Any:
        """The value that a JSON pointer names within a line; None where there is none. Raises `InvalidRequest`."""
        plain = document.at(line.plain, pointer)
        return plain if plain is None or isinstance(plain, str) else _at(line.source, pointer, line.pointer)

    def amount_at(self, pointer: str, line: Line | None = None) -> int | None:
        """The amount (minor units) that a pointer names; None where it is absent or null. Raises `InvalidRequest`."""
        value = self.at_line(line, pointer) if line else self.at(pointer)
        if value is None:
            return None
        return _amount(
            str(value) if isinstance(value, int) else value, self.digits, (line.pointer if line else "") + pointer
        )

    def applied(self) -> Iterator[tuple[Line | None, dict[str, Any]]]:
        """The discounts that stand in the body: those of each line, then (with None) those at the root."""
        for line in self.lines:
            if line.names.came:
                for entry in _entries(line.source, line.names, line.pointer):
                    yield line, entry
        for entry in _entries(self.source, self.names, ""):
            yield None, entry


def parse(body: bytes, operation: Operation, default_currency: str = "", customer_path: str = "") -> Checkout:
    """The checked view over a body. `customer_path`: a JSON pointer. Raises `InvalidRequest`, which names the place."""
    root = document.parse(body)
    family = _family(root)
    if family == "A" and operation == "consume":
        raise InvalidRequest(
            "This is a checkout; an order has its lines in order_items or orders.",
            "/items",
            reason="checkout_at_consume",
        )
    currency, digits = _currency(root, default_currency)
    names = _names(root.plain, "A" if family == "A" else "B", "")
    orders = tuple(_orders(root, family, digits))
    count = sum(len(order.lines) for order in orders)
    if count > MAX_LINES:
        raise InvalidRequest(f"The cart has {count} lines; the limit is {MAX_LINES}.", _LINES_AT[family])
    promotions, promotions_at = _promotions(root, family)
    return Checkout(
        family=family,
        source=root,
        orders=orders,
        names=names,
        currency=currency,
        digits=digits,
        id=_identity(root, "id"),
        source_id=_identity(root, "source_id"),
        promotions=promotions,
        promotions_at=promotions_at,
        root_discount=_root_discount(root, names, digits, orders),
        customer=id_at(root, customer_path) if customer_path else "",
    )


_LINES_AT = {"A": "/items", "B": "/order_items", "C": "/orders"}


def _family(root: Object) -> Family:
    families: tuple[Family, ...] = ("C", "B", "A")
    for family in families:
        if isinstance(root.plain.get(_LINES_AT[family][1:]), list):
            return family
    for family in families:
        if (pointer := _LINES_AT[family])[1:] in root.plain:
            raise InvalidRequest("The list of lines is not an array.", pointer)
    raise InvalidRequest("The body has no list of lines: items, order_items or orders.", "", reason="no_lines")


def _currency(root: Object, default: str) -> tuple[str, int]:
    code = root.plain.get("currency")
    if code in (None, ""):
        return default, money.DIGITS[default] if default else money.DEFAULT_DIGITS
    if not isinstance(code, str) or code.upper() not in money.DIGITS:
        raise InvalidRequest('The currency is no ISO 4217 code such as "USD".', "/currency")
    return code.upper(), money.DIGITS[code.upper()]


def _orders(root: Object, family: Family, digits: int) -> Iterator[Order]:
    if family != "C":
        yield _order(root, root.plain, family, "", digits, 0)
        return
    orders = root.array("orders")
    assert orders is not None, "the family was told by it"
    first = 0
    for index, plain in enumerate(root.plain["orders"]):
        pointer = f"/orders/{index}"
        source = orders.object(index)
        if source is None:
            raise InvalidRequest("An order is not an object.", pointer)
        order = _order(source, plain, "B", pointer, digits, first)
        first += len(order.lines)
        yield order


def _order(
    source: Object, plain: Mapping[str, Any], family: Literal["A", "B"], pointer: str, digits: int, first: int
) -> Order:
    key = _LINES_AT[family][1:]
    if not isinstance(plain.get(key), list):
        raise InvalidRequest("The order has no list of lines.", f"{pointer}/{key}")
    if (count := len(plain[key])) > MAX_LINES:
        raise InvalidRequest(f"The cart has {count} lines; the limit is {MAX_LINES}.", f"{pointer}/{key}")
    read = _Reader(Lines(source, key, f"{pointer}/{key}"), family, digits, first)
    lines = tuple([read.line(position, line) for position, line in enumerate(plain[key])])
    names = _names(plain, family, pointer)
    return Order(source=source, plain=plain, pointer=pointer, lines_key=key, names=names, lines=lines)


class _Reader:
    """Reads the lines of one list.

    A line is read from its plain values where they are texts and whole numbers, as they mostly are; its own text is
    looked at for anything else, such as a price that is a JSON number.
    """

    def __init__(self, within: Lines, family: Literal["A", "B"], digits: int, first: int) -> None:
        self.within, self.digits, self.first = within, digits, first
        self.family: Literal["A", "B"] = family
        self.price_keys = _PRICES[family]
        self.position = 0
        """Of the line that is being read."""
        self.plain: Mapping[str, Any] = {}

    @property
    def pointer(self) -> str:
        return self.within.pointer_of(self.position)

    @property
    def source(self) -> Object:
        return self.within.source_of(self.position)

    def line(self, position: int, plain: Any) -> Line:
        self.position, self.plain = position, plain
        if not isinstance(plain, dict):
            raise InvalidRequest("A line is not an object.", self.pointer)
        sku, variant_id, product_id = plain.get("sku", ""), plain.get("variant_id", ""), plain.get("product_id", "")
        sku = sku if isinstance(sku, str) else self.name("sku")
        variant_id = variant_id if isinstance(variant_id, str) else self.name("variant_id")
        product_id = product_id if isinstance(product_id, str) else self.name("product_id")
        if not (sku or variant_id or product_id):
            raise InvalidRequest(
                "A line needs one of sku, variant_id and product_id to name it.", f"{self.pointer}/sku"
            )
        quantity = plain.get("quantity")
        if type(quantity) is not int or not 0 < quantity <= MAX_QUANTITY:
            quantity = self.quantity()
        price_keys = self.price_keys if len(self.price_keys) == 1 else self.came(self.price_keys)
        list_price = price = self.price(price_keys)
        names = _names(plain, self.family, self.within.pointer, position)
        discount, marked = 0, None
        if names.came or plain.get(names.totals[0]) is not None:
            discount, marked = self.discount(names)
            if marked is not None:
                list_price = marked
            elif quantity and discount:
                list_price = money.list_price(price, discount, quantity)
        return Line(
            self.first + position,
            self.within,
            position,
            sku,
            variant_id,
            product_id,
            quantity,
            price,
            list_price,
            discount,
            plain,
            names,
            price_keys,
        )

    def name(self, key: str) -> str:
        """A name that is no string."""
        if self.plain[key] is None:
            return ""
        raw = self.source.raw(key)
        if raw.isdigit():
            return raw.decode()
        raise InvalidRequest(f"{key} is not a string.", f"{self.pointer}/{key}")

    def quantity(self) -> int:
        """A quantity that is none of the usual."""
        if self.source.raw("quantity") == b"0":
            return 0
        what = "is missing" if "quantity" not in self.plain else f"is not a whole number from 0 to {MAX_QUANTITY}"
        raise InvalidRequest(f"The quantity {what}.", f"{self.pointer}/quantity")

    def came(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple([key for key in keys if self.plain.get(key) is not None])

    def price(self, keys: tuple[str, ...]) -> int:
        if not keys or self.plain.get(keys[0]) is None:
            raise InvalidRequest("A line has no price.", f"{self.pointer}/{self.price_keys[0]}")
        price = self.amount(keys[0])
        if len(keys) > 1 and self.amount(keys[1]) != price:
            raise InvalidRequest("price and price_amount name different prices.", f"{self.pointer}/price_amount")
        return price

    def amount(self, key: str) -> int:
        value = self.plain[key]
        if isinstance(value, str):
            return _amount(value, self.digits, self.within.pointer, self.position, key)
        return _scalar_amount(self.source, key, self.pointer, self.digits)

    def discount(self, names: Names) -> tuple[int, int | None]:
        """What is off a line by the body's own account, and the list price that we noted in its discounts, if any."""
        total = names.totals[0]
        listed, marked = 0, None
        entries = _entries(self.source, names, self.pointer) if names.came and self.plain[names.list] else []
        for index, entry in enumerate(entries):
            where = f"{self.pointer}/{names.list}/{index}"
            listed += _entry_amount(entry, where, self.digits)
            meta = entry.get("meta")
            noted = meta.get("list_price") if isinstance(meta, dict) else None
            if noted is not None:
                price = _amount(noted, self.digits, f"{where}/meta/list_price")
                if marked is not None and marked != price:
                    raise InvalidRequest(
                        "The discounts of this line name different list prices.", f"{where}/meta/list_price"
                    )
                marked = price
        return self.amount(total) if self.plain.get(total) is not None else listed, marked


class _Absent:
    """What stands for a member that is not there."""


_ABSENT = _Absent()
_KINDS = {_Absent: "", type(None): "null", str: "string", int: "number", float: "number", bool: "boolean",
          list: "array", dict: "object"}  # fmt: skip


def _names(plain: Mapping[str, Any], family: Literal["A", "B"], *place: str | int) -> Names:
    """Which names stand for the total and for the list of discounts, by the type of what came. `place` of `plain`: as
    for `_amount`.
    """
    get = plain.get
    named = _named(
        family,
        _KINDS[type(get("total_discount", _ABSENT))],
        _KINDS[type(get("discounts", _ABSENT))],
        _KINDS[type(get("discounts_amount", _ABSENT))],
        _KINDS[type(get("applied_discounts", _ABSENT))],
        "price_amount" in plain,
    )
    if isinstance(named, Names):
        return named
    key, message = named
    raise InvalidRequest(message, _pointer((*place, key)))


_NAMES = ("total_discount", "discounts", "discounts_amount", "applied_discounts")


@cache
def _named(
    family: Literal["A", "B"],
    total_discount: str,
    discounts: str,
    discounts_amount: str,
    applied: str,
    price_amount: bool,
) -> Names | tuple[str, str]:
    """The names for objects whose members have these JSON types; or the member that is wrong, and why."""
    kinds: dict[str, str] = dict(zip(_NAMES, (total_discount, discounts, discounts_amount, applied), strict=True))
    for key in dict.fromkeys((*_TOTALS[family], *_LISTS[family])):
        allowed = {"", "null"}
        allowed |= {"string", "number"} if key in _TOTALS[family] else set()
        allowed |= {"array"} if key in _LISTS[family] else set()
        if kinds[key] not in allowed:
            return key, f"{key} has the wrong JSON type."
    totals = tuple(key for key in _TOTALS[family] if kinds[key] in ("string", "number"))
    lists = [key for key in _LISTS[family] if kinds[key] == "array"]
    if len(lists) > 1:
        return lists[1], "Two lists of discounts stand here."
    if not totals:
        free = [key for key in _TOTALS[family] if key not in lists]
        totals = (free[0] if family == "A" or not price_amount else "discounts_amount",)
    if lists:
        return Names(totals=totals, list=lists[0], came=True)
    return Names(totals=totals, list=next(key for key in _LISTS[family] if key not in totals), came=False)


def _root_discount(root: Object, names: Names, digits: int, orders: tuple[Order, ...]) -> int:
    if names.came:
        return sum(_entry_amount(e, f"/{names.list}/{i}", digits) for i, e in enumerate(_entries(root, names, "")))
    if root.plain.get(names.totals[0]) is not None:
        return _scalar_amount(root, names.totals[0], "", digits) - sum(
            o.discount for order in orders for o in order.lines
        )
    return 0


def _entries(source: Object, names: Names, pointer: str) -> list[dict[str, Any]]:
    if not names.came or len(source.raw(names.list)) == 2:
        return []
    entries = _value(source, names.list, pointer)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidRequest("A discount is not an object.", f"{pointer}/{names.list}/{index}")
    return cast("list[dict[str, Any]]", entries)


def _entry_amount(entry: dict[str, Any], pointer: str, digits: int) -> int:
    amount = entry.get("amount")
    if amount is None:
        raise InvalidRequest("A discount has no amount.", f"{pointer}/amount")
    return _amount(str(amount) if not isinstance(amount, bool) else amount, digits, f"{pointer}/amount")


def _scalar_amount(source: Object, key: str, pointer: str, digits: int) -> int:
    """An amount that came as a string or as a JSON number; the number is read from its own digits, never as a float."""
    kind = source.kind(key)
    text = source.value(key) if kind == "string" else source.raw(key).decode() if kind == "number" else None
    return _amount(text, digits, pointer, key)


def _amount(value: Any, digits: int, *place: str | int) -> int:
    """The minor units of an amount. `place`: a JSON pointer, and what follows it."""
    try:
        text = value if isinstance(value, str) else "" if isinstance(value, bool) else str(value)
        amount = money.parse(text, digits)
    except money.NotMoney as error:
        raise InvalidRequest(f"The amount {error}.", _pointer(place), reason="not_money") from None
    if amount < 0 or text.startswith("-"):
        raise InvalidRequest("The amount is negative.", _pointer(place), reason="negative_amount")
    return amount


def _pointer(place: Iterable[str | int]) -> str:
    return "/".join(map(str, place))


def _identity(root: Object, key: str) -> str:
    value = root.plain.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        if root.kind(key) != "number":
            raise InvalidRequest(f"{key} is not a string.", f"/{key}")
        value = root.raw(key).decode()
    return check_id(value.strip(), f"/{key}")


def id_at(root: Object, pointer: str) -> str:
    """The id that a JSON pointer names; "" where there is none. Raises `InvalidRequest`."""
    found = document.at(root.plain, pointer)
    if found is not None and not isinstance(found, str):
        found = _at(root, pointer, "")  # anew, since numbers must be exact
    if isinstance(found, str | int) and not isinstance(found, bool):
        return check_id(str(found).strip(), pointer)
    return ""


def check_id(value: str, pointer: str) -> str:
    """An id that will name a session or an order: data that must not act as a path. Raises `InvalidRequest`."""
    if len(value) > MAX_ID:
        raise InvalidRequest(f"The id is longer than {MAX_ID} characters.", pointer)
    if value in (".", "..") or not value.isprintable():
        raise InvalidRequest("This cannot be used as an id.", pointer)
    return value


def _promotions(root: Object, family: Family) -> tuple[Promotions, tuple[str, ...]]:
    found = _promotion_object(root.plain, root, ())
    if found is None and family == "C":
        return _promotions_of_orders(root)
    if found is None:
        return Promotions(), ()
    return found


def _promotions_of_orders(root: Object) -> tuple[Promotions, tuple[str, ...]]:
    """Family C with promotions per order: it is one cart, so they are taken together; notes go to the first."""
    parts: list[tuple[Promotions, tuple[str, ...]]] = []
    for index, order in enumerate(root.plain["orders"]):
        if found := _promotion_object(order, root, ("orders", str(index))):
            parts.append(found)
    if not parts:
        return Promotions(), ()
    codes = tuple(dict.fromkeys(code for part, _ in parts for code in part.coupon_codes))
    if len(codes) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", "/orders")
    return Promotions(
        coupon_codes=codes,
        referral_code=next((part.referral_code for part, _ in parts if part.referral_code), ""),
        loyalty_card=next((part.loyalty_card for part, _ in parts if part.loyalty_card), ""),
        identifiers=tuple(dict.fromkeys(i for part, _ in parts for i in part.identifiers)),
        meta=parts[0][0].meta,
    ), parts[0][1]


def _promotion_object(
    above: Mapping[str, Any], root: Object, keys: tuple[str, ...]
) -> tuple[Promotions, tuple[str, ...]] | None:
    """The promotions of the object that these keys lead to."""
    names = [key for key in ("promotions", "promotion") if above.get(key) is not None]
    if not names:
        return None
    (name, *others), pointer = names, "".join(f"/{key}" for key in keys)
    if others:
        raise InvalidRequest("Both promotions and promotion stand here.", f"{pointer}/promotion")
    here, found = f"{pointer}/{name}", above[name]
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} is not an object.", here)
    codes = _texts(found, "coupon_codes", here)
    if len(codes) > MAX_CODES:
        raise InvalidRequest(f"More than {MAX_CODES} codes are given.", f"{here}/coupon_codes")
    meta = found.get("meta")
    if meta not in (None, []) and not isinstance(meta, dict):
        raise InvalidRequest("meta is not an object.", f"{here}/meta")
    return Promotions(
        coupon_codes=codes,
        referral_code=_text(found, "referral_code", here),
        loyalty_card=_text(found, "loyalty_card", here),
        identifiers=_texts(found, "identifiers", here),
        meta=_at(root, f"{here}/meta", "") if meta else {},  # anew, since numbers in it must be exact
    ), (*keys, name)


def _value(source: Object, key: str, pointer: str) -> Any:
    return _at(source, f"/{document.escape(key)}", pointer)


def _at(source: Object, pointer: str, above: str) -> Any:
    """The value that a pointer names below an object, which stands at `above` itself."""
    try:
        return source.at(pointer)
    except document.Unreadable:
        raise InvalidRequest("The value is too large or too deep to be read.", above + pointer) from None


def _text(found: Mapping[str, Any], key: str, pointer: str) -> str:
    text = found.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidRequest(f"{key} is not a string.", f"{pointer}/{key}")
    return _clean(text, f"{pointer}/{key}")


def _texts(found: Mapping[str, Any], key: str, pointer: str) -> tuple[str, ...]:
    texts = found.get(key)
    if texts is None:
        return ()
    if not isinstance(texts, list):
        raise InvalidRequest(f"{key} is not an array.", f"{pointer}/{key}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"{key} holds something that is not a string.", f"{pointer}/{key}/{index}")
    return tuple(filter(None, [_clean(text, f"{pointer}/{key}/{index}") for index, text in enumerate(texts)]))


def _clean(text: str, pointer: str) -> str:
    """A text a shopper typed: stripped; what cannot be seen on a screen has no place in a code."""
    text = text.strip()
    if not text.isprintable():
        raise InvalidRequest("The text holds control or invisible characters.", pointer, reason="invisible_characters")
    return text
