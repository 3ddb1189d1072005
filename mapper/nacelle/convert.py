"""Converts a validated checkout and its payment to an order for Nacelle's order ingestion.

Nacelle's validate page writes `items`, `price`, `total_discount` and `discounts`; its order pages write `order_items`,
`price_amount`, `discounts_amount` and `applied_discounts`. The conversion is a pure function, which keeps the bytes of
every value and drops nothing. A body that is an order already (`order_items`, `orders`) keeps its names.

Source: the ingestion, the promotions mapper and the multi-order pages of docs.nacelle.com.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mapper.domain import checkout as documents
from mapper.domain import document
from mapper.domain.checkout import Checkout
from mapper.domain.document import Document, Object, Path, Unreadable, encode
from mapper.domain.errors import InvalidRequest
from mapper.nacelle.check import Fault, NotAnOrder, faults_of

# The order pages' names by the validate page's, at the root and in each line.
_ROOT: Final = {"items": "order_items", "total_discount": "discounts", "discounts": "applied_discounts"}
_LINE: Final = {"price": "price_amount", "total_discount": "discounts_amount", "discounts": "applied_discounts"}


@dataclass(frozen=True)
class Order:
    """An order that may be sent to Nacelle."""

    body: bytes
    path: str
    """Below the base URL: `/orders`, or `/multiorders` for a body with `orders`."""
    key: str
    """Identifies the order: its `id`, else its `source_id`; "" without either."""
    checkout: Checkout
    """The parsed order, with amounts in minor units."""


def order_of(body: bytes, default_currency: str = "") -> Order:
    """Returns the order of a body: a validated checkout, or `{"checkout": …, …}`. Raises `NotAnOrder` with all faults.

    The second form is validate's answer with `payments`, `customer` and the like as further members. They become
    members of the order.
    """
    try:
        checkout, further = _parts(document.parse(body).root)
        converted = _completed(document.parse(_converted(checkout, further)), default_currency)
        if faults := list(faults_of(document.parse(converted).at(""))):
            raise NotAnOrder(faults)
        order = documents.parse(converted, "consume")
    except InvalidRequest as problem:
        raise NotAnOrder([Fault(str(problem.details.get("pointer", "")), problem.message)]) from None
    except Unreadable as error:
        raise NotAnOrder([Fault("", f"The order {error}.")]) from None
    path = "/multiorders" if order.family.has_orders else "/orders"
    return Order(converted, path, order.id or order.source_id, order)


def _parts(root: Object) -> tuple[Object, dict[str, bytes]]:
    """Returns the checkout, and the other members of the body."""
    inner = root.object("checkout")
    if inner is None:
        return root, {}
    if root.value("error"):
        raise InvalidRequest("The checkout comes with an error: it was not validated.", "/error")
    return inner, {key: root.raw(key) for key in root.members if key not in ("checkout", "error")}


def _converted(checkout: Object, further: dict[str, bytes]) -> bytes:
    for key in further:
        if key in checkout.members:
            raise InvalidRequest(f"{key} stands in the checkout and beside it; which one counts is unclear.", f"/{key}")
    members = {key: checkout.raw(key) for key in checkout.members} | further
    items = checkout.array("items")
    if items is not None:
        lines = []
        for index in range(len(items)):
            line = items.object(index)
            if line is None:
                raise InvalidRequest("A line is not an object.", f"/items/{index}")
            own = {key: line.raw(key) for key in line.members}
            lines.append(_renamed(own, _LINE, f"/items/{index}"))
        members["items"] = b"[" + b",".join(lines) + b"]"
        return _renamed(members, _ROOT, "")
    return b"{" + b",".join(encode(key) + b":" + value for key, value in members.items()) + b"}"


def _renamed(members: Mapping[str, bytes], names: Mapping[str, str], pointer: str) -> bytes:
    """Returns the object with some members renamed, in the same order. Raises `InvalidRequest` if a name is taken."""
    after = {names.get(key, key) for key in members}
    if len(after) != len(members):
        taken = next(key for key, name in names.items() if key in members and name in members and name not in names)
        message = f"{taken} and {names[taken]} mean the same; an order has one of them."
        raise InvalidRequest(message, f"{pointer}/{names[taken]}")
    renamed = (encode(names.get(key, key)) + b":" + value for key, value in members.items())
    return b"{" + b",".join(renamed) + b"}"


def _completed(order: Document, default_currency: str) -> bytes:
    """Adds the currency, which Nacelle requires, and removes empty lists of discounts, which it refuses."""
    objects = list(_orders_and_lines(order.decoded))
    changes: dict[Path, dict[str, Any]] = {
        path: {"applied_discounts": None} for path, value in objects if value.get("applied_discounts") == []
    }
    currencies = [value.get("currency") for path, value in objects if path[-2:-1] != ("order_items",)]
    if not currencies[0] and (currency := next(filter(None, currencies), default_currency)):
        changes.setdefault((), {})["currency"] = currency
    return order.replace(changes)


def _orders_and_lines(order: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yields the order, its orders, and the lines of each, with their paths. Skips values that are no objects."""
    parts = [((), order), *_objects(order, (), "orders")]
    yield from parts
    for path, part in parts:
        yield from _objects(part, path, "order_items")


def _objects(parent: Mapping[str, Any], path: Path, key: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    values = parent.get(key)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, dict):
            yield (*path, key, index), value
