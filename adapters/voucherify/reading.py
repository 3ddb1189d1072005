"""Decodes replies leniently.

Unknown fields and values of an unexpected type are ignored. An amount that cannot be read raises `EngineUnavailable`.

Most of a validation's reply are orders, one for each redeemable. They are decoded as `Amounts` where all of them are
well formed, else as JSON, which `read_amounts` reads value by value. Both give the same.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, NoReturn, TypedDict, TypeVar

import msgspec

from mapper.adapter import EngineReply, EngineUnavailable, money

REPLACE_ITEMS = "REPLACE_ITEMS"

T = TypeVar("T")

_SAFE_AMOUNT = 10**12
Amount = Annotated[int, msgspec.Meta(ge=0, lt=_SAFE_AMOUNT)]


class Item(msgspec.Struct, frozen=True, gc=False):
    """An order item of a reply. Voucherify leaves zeros out."""

    source_id: str = ""
    price: Amount = 0
    applied_quantity: Amount | None = None
    """How many units the engine added (negative: took away); None where the reply does not say."""
    applied_quantity_amount: Amount | None = None
    """Their value at list price; None likewise."""
    quantity: Amount = 0
    discount: Amount = msgspec.field(default=0, name="applied_discount_amount")
    raw: dict[str, Any] = {}
    """The item as it came, where units may be granted; no field of Voucherify's."""


class Amounts(msgspec.Struct, frozen=True):
    """The discounts of an order in a reply."""

    items: tuple[Item, ...]
    discount: Amount = msgspec.field(default=0, name="applied_discount_amount")
    """On the order as a whole."""
    items_discount: Amount = msgspec.field(default=0, name="items_applied_discount_amount")
    total: Amount = msgspec.field(default=0, name="total_applied_discount_amount")
    """The engine's own sum."""

    @property
    def sum(self) -> int:
        return self.discount + sum([item.discount for item in self.items])


class _Redeemable(TypedDict, total=False):
    """A redeemable in the reply to a validation: all that is read of it."""

    status: Any
    object: Any
    id: Any
    redeemable_id: Any
    code: Any
    name: Any
    campaign_name: Any
    campaign_id: Any
    result: Any
    order: Amounts | None


class _Validation(TypedDict, total=False):
    valid: Any
    redeemables: list[_Redeemable]
    inapplicable_redeemables: Any
    skipped_redeemables: Any
    order: Amounts | None
    stacking_rules: Any


class _Candidate(TypedDict, total=False):
    object: Any
    id: Any


class _Candidates(TypedDict, total=False):
    data: list[_Candidate]


class _Qualification(TypedDict, total=False):
    redeemables: _Candidates
    stacking_rules: Any


_UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)

_json = msgspec.json.Decoder(float_hook=Decimal)
_validation = msgspec.json.Decoder(_Validation, float_hook=Decimal)
_qualification = msgspec.json.Decoder(_Qualification, float_hook=Decimal)


def document(reply: EngineReply) -> dict[str, Any]:
    """The reply's JSON object, numbers exact."""
    try:
        body = _json.decode(reply.body)
    except _UNREADABLE:
        not_understood("no JSON")
    if not isinstance(body, dict):
        not_understood("no object")
    return body


def validation(reply: EngineReply) -> Mapping[str, Any]:
    """The reply to a validation, its orders as `Amounts` where they can be decoded so.

    Where units may be granted they stay JSON, for the notice has the items as they came.
    """
    body = _in_one_pass(_validation, reply)
    return document(reply) if body is None or any(map(_may_grant_units, body.get("redeemables", ()))) else body


def qualification(reply: EngineReply) -> Mapping[str, Any]:
    """The reply to a qualification, without what nobody reads: its orders are most of it."""
    return _in_one_pass(_qualification, reply) or document(reply)


def _in_one_pass(decoder: "msgspec.json.Decoder[T]", reply: EngineReply) -> T | None:
    """None where the reply does not fit."""
    try:
        # As a text: the decoder does not look whether the fields that it skips are UTF-8.
        return decoder.decode(reply.body.decode())
    except _UNREADABLE:
        return None


def _may_grant_units(redeemable: Mapping[str, Any]) -> bool:
    discount = mapping(mapping(redeemable.get("result")).get("discount"))
    return discount.get("type") == "UNIT" or discount.get("effect") == REPLACE_ITEMS or "units" in discount


def read_amounts(order: Mapping[str, Any], key: str) -> Amounts:
    """`key`: `applied_discount_amount` (by this redeemable) or `discount_amount` (by all up to it)."""
    # Each item keeps its place, which is that of its line: one that is no object says nothing.
    items = tuple(_item(mapping(item), key) for item in listed(order.get("items")))
    return Amounts(items, amount(order, key), total=amount(order, f"total_{key}"))


def _item(item: dict[str, Any], key: str) -> Item:
    return Item(
        text(item.get("source_id")),
        amount(item, "price"),
        _stated(item, "applied_quantity"),
        _stated(item, "applied_quantity_amount"),
        amount(item, "quantity"),
        amount(item, key),
        item,
    )


def _stated(item: dict[str, Any], key: str) -> int | None:
    return None if item.get(key) is None else amount(item, key, signed=True)


def not_understood(why: str) -> NoReturn:
    message = f"Voucherify's answer cannot be understood ({why})."
    raise EngineUnavailable(message, reason="reply_not_understood")


def amount(parent: Mapping[str, Any], key: str, *, signed: bool = False) -> int:
    """An amount or a count, 0 where it is absent: Voucherify leaves zeros out."""
    value = parent.get(key)
    if value is None:
        return 0
    if type(value) is int and 0 <= value < _SAFE_AMOUNT:
        return value  # the fast path
    try:
        number = money.from_engine(value)
    except money.NotMoney as error:
        not_understood(f"{key} {error}")
    if number != number.to_integral_value() or (number < 0 and not signed):
        not_understood(f"{key} is no whole amount")
    return int(number)


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in listed(value) if isinstance(entry, dict)]
