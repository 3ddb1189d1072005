"""Carts for an adapter: an ordinary one, and those that are easy to get wrong."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec
from hypothesis import strategies as st

from mapper.adapter import Checkout, Outcome
from mapper.domain import checkout as documents
from mapper.domain import discounts

Line = tuple[str, int, str]
"""Name (sku), quantity, list price."""

LINES: st.SearchStrategy[Line] = st.tuples(
    st.sampled_from(["SKU-1", "SKU-2", "ü/☃"]),
    st.integers(0, 5),
    st.integers(0, 5000).map(lambda cents: f"{cents // 100}.{cents % 100:02}"),
)
"""Random lines, with prices up to 50.00."""

PRICES = tuple(
    (Decimal(price), quantity)
    for price, quantity in (
        ("50", 1), ("30", 2), ("19.99", 3), ("0.10", 1), ("19.99", 1), ("2.90", 1), ("43.50", 1), ("999999.90", 1),
    )
)  # fmt: skip
"""Prices in major units, and quantities. A tenth of 2.90 or 43.50 is less, in cents, once it has been a float."""

IDS = ("a/b", "a%2Fb", "..a", "a b", "grüße-☃", "a?b#c", "'\"<&>", "x" * 200)
"""Ids of checkouts and orders, which anybody may choose."""


def body(
    lines: Iterable[Line],
    codes: Sequence[str] = (),
    *,
    family: Literal["A", "B", "C"] = "B",
    name: str = "order-1",
    currency: str = "USD",
    promotions: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The body of a checkout or order. In family C each line is in an order of its own."""
    items = [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]
    root: dict[str, Any] = {"id": name, "currency": currency, **more}
    root["promotions"] = {"coupon_codes": list(codes), **(promotions or {})}
    match family:
        case "A":
            return {**root, "items": items}
        case "B":
            return {**root, "order_items": items}
        case "C":
            return {**root, "orders": [{"order_items": [item]} for item in items]}


def parse(given: Mapping[str, Any] | bytes) -> Checkout:
    """Parses a body as the service does."""
    text = given if isinstance(given, bytes) else msgspec.json.encode(given)
    return documents.parse(text, "validate", customer_path="/customer/id")


def discounted(checkout: Checkout, outcome: Outcome) -> Checkout:
    """The checkout as validate answers it: prices reduced, discounts listed."""
    allocation = discounts.allocate(checkout, outcome)
    return parse(discounts.write(checkout, allocation, {}))


def off(checkout: Checkout, outcome: Outcome) -> int:
    """The sum of all discounts, in minor units."""
    return discounts.allocate(checkout, outcome).total


def beyond(checkout: Checkout, outcome: Outcome) -> int:
    """By how much discounts exceed the prices of what they are on, in minor units."""
    return discounts.allocate(checkout, outcome).clamped
