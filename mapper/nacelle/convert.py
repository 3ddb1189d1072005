"""A validated checkout and its payment become an order, as Nacelle's order ingestion takes it.

Nacelle's validate page writes `items`, `price`, `total_discount` and `discounts`; its order pages write `order_items`,
`price_amount`, `discounts_amount` and `applied_discounts`. Each merchant would write this conversion by hand. Here it
is a pure function: every value keeps its own bytes, and nothing is dropped.

Bodies that already are orders (`order_items`, `orders`) keep their names. What Nacelle does not document is marked so.
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

# From the names of the validate page to those of the order pages, at the root and in each line.
_ROOT: Final = {"items": "order_items", "total_discount": "discounts", "discounts": "applied_discounts"}
_LINE: Final = {"price": "price_amount", "total_discount": "discounts_amount", "discounts": "applied_discounts"}


@dataclass(frozen=True)
class Order:
    """An order that may be sent to Nacelle."""

    body: bytes
    path: str
    """Below the base URL: `/orders`, or `/multiorders` for a body with `orders`."""
    key: str
    """What makes it the same order when it comes again: its `id`, else its `source_id`; "" where it has neither."""
    checkout: Checkout
    """As this service reads it, with amounts in minor units."""


def order_of(body: bytes, default_currency: str = "") -> Order:
    """The order in a body: a validated checkout, or `{"checkout": …, …}` with what belongs beside it.

    The second form is validate's own answer with `payments`, `customer` and the like put beside `checkout`: they go
    into the order's root. Raises `NotAnOrder` with every fault.
    """
    try:
        checkout, beside = _parts(document.parse(body).root)
        converted = _completed(document.parse(_converted(checkout, beside)), default_currency)
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
    """The checkout, and what stands beside it."""
    inner = root.object("checkout")
    if inner is None:
        return root, {}
    if root.value("error"):
        raise InvalidRequest("The checkout comes with an error: it was not validated.", "/error")
    return inner, {key: root.raw(key) for key in root.members if key not in ("checkout", "error")}


def _converted(given: Object, beside: dict[str, bytes]) -> bytes:
    for key in beside:
        if key in given.members:
            raise InvalidRequest(f"{key} stands in the checkout and beside it; which one counts is unclear.", f"/{key}")
    members = {key: given.raw(key) for key in given.members} | beside
    items = given.array("items")
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
    """The object with other names for some members, in the order in which they came."""
    after = {names.get(key, key) for key in members}
    if len(after) != len(members):
        taken = next(key for key, name in names.items() if key in members and name in members and name not in names)
        message = f"{taken} and {names[taken]} mean the same; an order has one of them."
        raise InvalidRequest(message, f"{pointer}/{names[taken]}")
    renamed = (encode(names.get(key, key)) + b":" + value for key, value in members.items())
    return b"{" + b",".join(renamed) + b"}"


def _completed(order: Document, default_currency: str) -> bytes:
    """With a currency, which Nacelle requires, and without empty lists of discounts: it wants at least one entry."""
    things = list(_things(order.decoded))
    changes: dict[Path, dict[str, Any]] = {
        path: {"applied_discounts": None} for path, thing in things if thing.get("applied_discounts") == []
    }
    currencies = [thing.get("currency") for path, thing in things if path[-2:-1] != ("order_items",)]
    if not currencies[0] and (currency := next(filter(None, currencies), default_currency)):
        changes.setdefault((), {})["currency"] = currency
    return order.replace(changes)


def _things(order: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The order, the orders in it, and the lines of each; whatever else stands in their places is left out."""
    parts = [((), order), *_objects(order, (), "orders")]
    yield from parts
    for path, part in parts:
        yield from _objects(part, path, "order_items")


def _objects(above: Mapping[str, Any], path: Path, key: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    found = above.get(key)
    for index, value in enumerate(found if isinstance(found, list) else ()):
        if isinstance(value, dict):
            yield (*path, key, index), value
