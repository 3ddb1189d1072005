"""Answers of django-oscar-api, read leniently: a new field must not lose an answer. But money is read exactly, or not
at all. Amounts are texts with two decimals.

Oscar answers with prices: what a line's costs less than its price without discounts is its discount. Which promotions
earned it stands beside, for the basket as a whole.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar

import msgspec

from mapper.adapter import (
    Checkout,
    Discount,
    EngineRejected,
    EngineReply,
    EngineUnavailable,
    Line,
    Notice,
    Outcome,
    Reason,
    Rejection,
    money,
)
from promotions_oscar import reasons

T = TypeVar("T")


class Product(msgspec.Struct, frozen=True):
    id: int
    url: str
    upc: str | None = None


class Voucher(msgspec.Struct, frozen=True):
    code: str


class Promotion(msgspec.Struct, frozen=True):
    """What one promotion takes off the basket as a whole."""

    name: str
    amount: Decimal
    voucher: Voucher | None = None


class Priced(msgspec.Struct, frozen=True):
    """A basket, or an order as it is stored."""

    url: str
    offer_discounts: list[Promotion]
    voucher_discounts: list[Promotion]
    total_incl_tax: Decimal
    id: int = 0
    number: str = ""
    currency: str | None = None


class Charge(msgspec.Struct, frozen=True):
    incl_tax: Decimal


class Shipping(msgspec.Struct, frozen=True):
    """A way of shipping; the first is the one that a checkout takes."""

    code: str
    price: Charge


class Row(msgspec.Struct, frozen=True):
    """A line of either: Oscar has one for each product. Prices are for the whole line."""

    product: str
    quantity: int
    price_incl_tax: Decimal
    price_incl_tax_excl_discounts: Decimal


class Refusal(msgspec.Struct, frozen=True):
    reason: str = ""
    detail: str = ""
    non_field_errors: list[str] = []


def read(reply: EngineReply, kind: type[T]) -> T:
    insist(reply)
    return decode(reply, kind)


def insist(reply: EngineReply) -> None:
    """Raises where the request was not accepted. Oscar's own text stays out of messages: it may tell of customers."""
    if reply.status in (401, 403):
        raise EngineRejected("Oscar's API does not accept the key or the session.", reason="engine_key")
    if not 200 <= reply.status <= 299:
        raise EngineRejected("Oscar refuses the request.", reason="request_rejected")


def decode(reply: EngineReply, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise unreadable() from error


def unreadable() -> EngineUnavailable:
    return EngineUnavailable("Oscar's answer cannot be read.", reason="bad_reply")


def number(url: str) -> int:
    """Oscar's own number of what the address names."""
    found = re.search(r"/([0-9]{1,18})/$", url)
    if found is None:
        raise unreadable()
    return int(found[1])


def refused(reply: EngineReply, code: str) -> Rejection | None:
    """None: the voucher is in the basket."""
    if reply.status != 406:
        read(reply, Voucher)
        return None
    refusal = decode(reply, Refusal)
    word, reason = reasons.known(" ".join([refusal.reason, *refusal.non_field_errors]))
    return Rejection(code, reason, word)


class Catalogue:
    """The cart's lines by Oscar's products."""

    def __init__(self, checkout: Checkout, products: Iterable[Product]) -> None:
        found = {product.upc: product for product in products}
        self._lines: dict[int, list[Line]] = {}
        self._urls: dict[int, str] = {}
        for line in checkout.cart:
            if (product := found.get(line.name)) is None:
                raise EngineRejected("The cart has a product that Oscar's catalogue lacks.", reason="unknown_product")
            self._lines.setdefault(product.id, []).append(line)
            self._urls[product.id] = product.url

    def quantities(self) -> dict[int, int]:
        return {product: sum(line.quantity for line in lines) for product, lines in self._lines.items()}

    def to_add(self) -> list[tuple[str, int]]:
        return [(self._urls[product], quantity) for product, quantity in self.quantities().items()]

    def lines(self, product: int) -> Sequence[Line]:
        return self._lines[product]


def same_quantities(rows: Iterable[Row], catalogue: Catalogue) -> bool:
    found: dict[int, int] = {}
    for row in rows:
        product = number(row.product)
        found[product] = found.get(product, 0) + row.quantity
    return found == catalogue.quantities()


def at_list_prices(rows: Iterable[Row], catalogue: Catalogue, checkout: Checkout) -> bool:
    """Oscar knows its own prices alone: a discount on another price would be another discount."""
    before: dict[int, Decimal] = {}
    for row in rows:
        product = number(row.product)
        before[product] = before.get(product, Decimal(0)) + amount(row.price_incl_tax_excl_discounts)
    listed = {
        product: money.to_major(
            sum(line.list_price * line.quantity for line in catalogue.lines(product)), checkout.digits
        )
        for product in before
    }
    return before == listed


def in_currency(priced: Priced, checkout: Checkout) -> bool:
    """A cart without a currency is in the shop's."""
    return not checkout.currency or priced.currency == checkout.currency


def outcome(priced: Priced, rows: Iterable[Row], catalogue: Catalogue, checkout: Checkout) -> Outcome:
    """What is off each line. `rows` have the cart's products and list prices: the caller has looked."""
    promotions = sorted([*priced.offer_discounts, *priced.voucher_discounts], key=_order)
    for one in promotions:
        amount(one.amount)
    paid = [one for one in promotions if one.amount > 0]
    name = " + ".join(dict.fromkeys(one.name for one in paid)) or "Discount"
    meta = {"offers": [_payload(one) for one in paid]}
    discounts = tuple(
        Discount(name=name, description=name, amount=off, effect_type="line_price", line=index, meta=meta)
        for index, off in sorted(_off(rows, catalogue, checkout.digits).items())
    )
    idle = [one for one in promotions if one.amount <= 0 or not discounts]
    notices = tuple(Notice("offer", "A promotion that lowers no line.", _payload(one)) for one in idle)
    return Outcome(discounts=discounts, notices=notices)


def idle_vouchers(priced: Priced, accepted: Iterable[str]) -> tuple[Notice, ...]:
    """A voucher may be for shipping, or for points: Oscar accepts it, and shows nothing of it in the basket."""
    idle = sorted(code for code in accepted if code.upper() not in codes(priced))
    return tuple(Notice("voucher", "A code that lowers no line.", {"code": code}) for code in idle)


def total(basket: Priced, shipping: Sequence[Shipping]) -> Decimal:
    return money.total([amount(basket.total_incl_tax), *(amount(one.price.incl_tax) for one in shipping[:1])])


def codes(priced: Priced) -> set[str]:
    """Those that the promotions of a basket or an order belong to; Oscar has them in capitals."""
    return {one.voucher.code.upper() for one in priced.voucher_discounts if one.voucher is not None}


def unsupported(checkout: Checkout) -> list[Rejection]:
    """Oscar knows vouchers, and nothing else that a shopper may enter."""
    known = checkout.promotions.coupon_codes
    return [Rejection(code, Reason.NOT_SUPPORTED, "") for code in checkout.promotions.codes if code not in known]


def amount(value: Decimal) -> Decimal:
    try:
        return money.from_engine(value)
    except money.NotMoney as error:
        raise unreadable() from error


def _off(rows: Iterable[Row], catalogue: Catalogue, digits: int) -> Mapping[int, int]:
    """By `Line.index`, in minor units. Lines of one product share what is off it."""
    off: dict[int, Decimal] = {}
    for row in rows:
        product = number(row.product)
        less = amount(row.price_incl_tax_excl_discounts) - amount(row.price_incl_tax)
        off[product] = off.get(product, Decimal(0)) + less
    shares: dict[int, int] = {}
    for product, value in off.items():
        if value < 0:
            raise unreadable()
        lines = catalogue.lines(product)
        weights = [Decimal(line.list_price * line.quantity) for line in lines]
        parts = money.split(money.to_minor(value, digits), weights)
        shares.update((line.index, part) for line, part in zip(lines, parts, strict=True) if part)
    return shares


def _order(promotion: Promotion) -> tuple[str, str, str]:
    return promotion.name, promotion.voucher.code if promotion.voucher else "", str(promotion.amount)


def _payload(promotion: Promotion) -> dict[str, str]:
    payload = {"name": promotion.name, "amount": str(promotion.amount)}
    return payload | ({"code": promotion.voucher.code} if promotion.voucher else {})
