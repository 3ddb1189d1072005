"""The three families of key names on Nacelle's pages.

Whether a key holds the total or the list of discounts is decided by the JSON type of its value: "discounts" is a list
on one of Nacelle's pages and a string on another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from mapper.domain.document import Path, pointer_of
from mapper.domain.errors import InvalidRequest, Operation


@dataclass(frozen=True, slots=True)
class Names:
    """The keys of an object for its discounts: those that it has, else those to write."""

    totals: tuple[str, ...]
    """Every key that holds the total; the family's key where there is none."""
    list: str
    has_list: bool
    """Whether the object has a list of discounts."""


_KINDS: dict[type, str] = {type(None): "", str: "scalar", int: "scalar", float: "scalar", list: "array", bool: "other",
                           dict: "other"}  # fmt: skip
"""The kind of value by its decoded type; "" for null or absent."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The key names of one family. Of several names, the first is written where the object has none."""

    name: Literal["A", "B", "C"]
    root_list: str
    """The key of the list at the root by which the family is recognised: that of the lines, or of the orders."""
    lines: str
    totals: tuple[str, ...]
    lists: tuple[str, ...]
    prices: tuple[str, ...]
    writes_empty_lists: bool
    """Nacelle's order model requires at least one entry in a list of discounts; the mapper page has empty lists."""
    is_order: bool
    """Whether consume accepts it."""

    @property
    def has_orders(self) -> bool:
        return self.root_list != self.lines

    def orders(self, decoded: Mapping[str, Any]) -> list[tuple[Path, Any]]:
        """The objects with a list of lines, and their paths: the body itself, or each of its orders."""
        if not self.has_orders:
            return [((), decoded)]
        return [((self.root_list, index), order) for index, order in enumerate(decoded[self.root_list])]

    def names(self, decoded: Mapping[str, Any], *place: str | int, price_amount: bool = False) -> Names:
        """The keys for the total and for the list of discounts in an object of this family.

        `place`: the tokens of the object's JSON pointer. `price_amount`: whether it is a line that has its price there.
        Raises `InvalidRequest`.
        """
        get = decoded.get
        names = _names(
            self,
            _KINDS[type(get("total_discount"))],
            _KINDS[type(get("discounts"))],
            _KINDS[type(get("discounts_amount"))],
            _KINDS[type(get("applied_discounts"))],
            price_amount,
        )
        if isinstance(names, Names):
            return names
        key, message = names
        raise InvalidRequest(message, pointer_of(*place, key))


A = Family(
    name="A",
    root_list="items",
    lines="items",
    totals=("total_discount", "discounts", "discounts_amount"),
    lists=("discounts", "applied_discounts"),
    prices=("price",),
    writes_empty_lists=True,
    is_order=False,
)
B = Family(
    name="B",
    root_list="order_items",
    lines="order_items",
    totals=("discounts", "discounts_amount", "total_discount"),
    lists=("applied_discounts", "discounts"),
    prices=("price", "price_amount"),
    writes_empty_lists=False,
    is_order=True,
)
C = replace(B, name="C", root_list="orders")


def family_of(decoded: Mapping[str, Any], operation: Operation) -> Family:
    """The family of a body, by the list at its root that is not empty. Raises `InvalidRequest`.

    A checkout with lines in two lists has no price. An order that still has the lines of its checkout is an order.
    """
    families = (C, B, A)
    listed = [family for family in families if isinstance(decoded.get(family.root_list), list)]
    filled = [family for family in listed if decoded[family.root_list]]
    if len(filled) > 1 and operation == "validate":
        raise InvalidRequest("Two lists have lines.", f"/{filled[0].root_list}", reason="two_lists_of_lines")
    if listed:
        return (filled or listed)[0]
    for family in families:
        if family.root_list in decoded:
            raise InvalidRequest("The list of lines is not an array.", f"/{family.root_list}")
    raise InvalidRequest("The body has no list of lines: items, order_items or orders.", "", reason="no_lines")


@cache
def _names(
    family: Family,
    total_discount: str,
    discounts: str,
    discounts_amount: str,
    applied_discounts: str,
    price_amount: bool,
) -> Names | tuple[str, str]:
    """The names for an object with members of these kinds; or the key that has the wrong kind, and a message."""
    kinds = {
        "total_discount": total_discount,
        "discounts": discounts,
        "discounts_amount": discounts_amount,
        "applied_discounts": applied_discounts,
    }
    for key in dict.fromkeys((*family.totals, *family.lists)):
        allowed = {"", "scalar" if key in family.totals else "", "array" if key in family.lists else ""}
        if kinds[key] not in allowed:
            return key, f"{key} has the wrong JSON type."
    totals = tuple(key for key in family.totals if kinds[key] == "scalar")
    lists = [key for key in family.lists if kinds[key] == "array"]
    if len(lists) > 1:
        return lists[1], "The object has two lists of discounts."
    if not totals:
        free = [key for key in family.totals if key not in lists]
        totals = ("discounts_amount" if price_amount else free[0],)
    if lists:
        return Names(totals=totals, list=lists[0], has_list=True)
    return Names(totals=totals, list=next(key for key in family.lists if key not in totals), has_list=False)
