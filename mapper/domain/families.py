"""The three families of names on Nacelle's pages (CONTRACT section 3), each as an object: what is called how and where.

A name is taken for a total or for a list by the JSON type of its value, since "discounts" is a list on one page of
Nacelle's and a string on another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mapper.domain.document import Path, pointer_of
from mapper.domain.errors import InvalidRequest, Operation


@dataclass(frozen=True, slots=True)
class Names:
    """The names that an object of the body uses (or shall use) for its discounts."""

    totals: tuple[str, ...]
    """Every total that came; the family's name where none did."""
    list: str
    came: bool
    """Whether a list of discounts came."""


_KINDS: dict[type, str] = {type(None): "", str: "scalar", int: "scalar", float: "scalar", list: "array", bool: "other",
                           dict: "other"}  # fmt: skip
"""By the type of a decoded value; "" is null, or nothing at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Where a body of this family has its lines, and the names that its objects use. The first name is the one to write
    where none came.
    """

    name: Literal["A", "B", "C"]
    told_by: str
    """The root's list that tells the family: the lines, or the orders that have lines."""
    lines: str
    totals: tuple[str, ...]
    lists: tuple[str, ...]
    prices: tuple[str, ...]
    writes_empty_lists: bool
    """Nacelle's order model wants at least one entry in a list of discounts; the mapper page has empty ones."""
    is_order: bool
    """Whether consume takes it."""

    @property
    def has_orders(self) -> bool:
        return self.told_by != self.lines

    def orders(self, decoded: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
        """The parts of a body that have lines of their own, by path: the body itself, or each of its orders."""
        if not self.has_orders:
            yield (), decoded
            return
        for index, order in enumerate(decoded[self.told_by]):
            yield (self.told_by, index), order

    def names(self, decoded: Mapping[str, Any], *place: str | int) -> Names:
        """Which names stand for the total and for the list of discounts in an object of this family.

        `place`: where it stands. Raises `InvalidRequest`.
        """
        get = decoded.get
        named = _named(
            self,
            _KINDS[type(get("total_discount"))],
            _KINDS[type(get("discounts"))],
            _KINDS[type(get("discounts_amount"))],
            _KINDS[type(get("applied_discounts"))],
            "price_amount" in decoded,
        )
        if isinstance(named, Names):
            return named
        key, message = named
        raise InvalidRequest(message, pointer_of(*place, key))


A = Family(
    name="A",
    told_by="items",
    lines="items",
    totals=("total_discount", "discounts", "discounts_amount"),
    lists=("discounts", "applied_discounts"),
    prices=("price",),
    writes_empty_lists=True,
    is_order=False,
)
B = Family(
    name="B",
    told_by="order_items",
    lines="order_items",
    totals=("discounts", "discounts_amount", "total_discount"),
    lists=("applied_discounts", "discounts"),
    prices=("price", "price_amount"),
    writes_empty_lists=False,
    is_order=True,
)
C = Family(
    name="C",
    told_by="orders",
    lines=B.lines,
    totals=B.totals,
    lists=B.lists,
    prices=B.prices,
    writes_empty_lists=False,
    is_order=True,
)


def family_of(decoded: Mapping[str, Any], operation: Operation) -> Family:
    """The family that a body belongs to: that of the list that has something in it. Raises `InvalidRequest`.

    Lines in two lists are a cart that nobody can price. An order that still has its checkout's lines is an order.
    """
    families = (C, B, A)
    listed = [family for family in families if isinstance(decoded.get(family.told_by), list)]
    told = [family for family in listed if decoded[family.told_by]]
    if len(told) > 1 and operation == "validate":
        raise InvalidRequest("Lines stand in two lists.", f"/{told[0].told_by}", reason="two_lists_of_lines")
    if listed:
        return (told or listed)[0]
    for family in families:
        if family.told_by in decoded:
            raise InvalidRequest("The list of lines is not an array.", f"/{family.told_by}")
    raise InvalidRequest("The body has no list of lines: items, order_items or orders.", "", reason="no_lines")


@cache
def _named(
    family: Family,
    total_discount: str,
    discounts: str,
    discounts_amount: str,
    applied_discounts: str,
    price_amount: bool,
) -> Names | tuple[str, str]:
    """The names for objects whose members are of these kinds; or the member that is wrong, and why."""
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
        return lists[1], "Two lists of discounts stand here."
    if not totals:
        free = [key for key in family.totals if key not in lists]
        totals = ("discounts_amount" if price_amount and "price_amount" in family.prices else free[0],)
    if lists:
        return Names(totals=totals, list=lists[0], came=True)
    return Names(totals=totals, list=next(key for key in family.lists if key not in totals), came=False)
