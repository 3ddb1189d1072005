"""Reads the order that Voucherify has stored: its cart, its discounts and its redemptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters.voucherify import reasons
from adapters.voucherify.errors import read_error
from adapters.voucherify.options import Settings
from adapters.voucherify.reading import amount, document, listed, mapping, not_understood, objects, read_amounts, text
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import SHIPPING, Applied, Validation
from adapters.voucherify.request import line_name
from mapper.adapter import Checkout, EngineReply, Line

StoredOrder = Mapping[str, Any]

_NOT_FOUND = ("not_found", "resource_not_found")
_REDEMPTION_FIELDS = {"date", "related_object_type", "related_object_id", "stacked", "rollback_id"}


def read_order(reply: EngineReply) -> StoredOrder | None:
    """The stored order; None where there is none. Raises a `Problem` for any other reply."""
    if reply.status == 200:
        order = document(reply)
        # Another object, taken for an order without redemptions, would lead to a second redemption.
        if not text(order.get("id")) or not isinstance(order.get("redemptions") or {}, dict):
            not_understood("no order")
        return order
    # Only Voucherify's own "not found" counts. A 404 of a proxy, taken for it, would lead to a second redemption.
    if reply.status == 404 and read_error(reply).key in _NOT_FOUND:
        return None
    if reply.status == 404:
        not_understood("404 without a key")
    raise reasons.problem(reply.status, read_error(reply).key)


def granted(order: StoredOrder, session: str, checkout: Checkout) -> Validation:
    """The discounts of a stored order, as those of one redeemable: the order does not store which granted what."""
    amounts = read_amounts(order, "discount_amount")
    shipping = [item for item in amounts.items[len(checkout.cart) :] if _is_shipping(item.raw)]
    # A shipping item comes from a unit discount on shipping.
    result = {"discount": {"type": "UNIT", "unit_type": "prod_5h1pp1ng"}} if shipping else {}
    applied = Applied(Redeemable("order", session), "Voucherify", "", result, amounts)
    return Validation(valid=True, applied=(applied,), total=amounts.total)


# --- Cart ------------------------------------------------------------------------------------------------------------


def same_cart(order: StoredOrder, checkout: Checkout, settings: Settings) -> bool:
    """Whether a stored order has the lines of this cart, apart from units that Voucherify added."""
    if order.get("items") is None:
        return True
    items, cart = objects(order.get("items")), checkout.cart
    lines, added = items[: len(cart)], items[len(cart) :]
    same = len(lines) == len(cart) and all(
        _same_line(item, line, checkout, settings) for line, item in zip(cart, lines, strict=True)
    )
    return same and all(_is_shipping(item) or _ordered(item) <= 0 for item in added)


def _same_line(item: Mapping[str, Any], line: Line, checkout: Checkout, settings: Settings) -> bool:
    if item.get("source_id") not in (None, line_name(line, settings)[0]):
        return False
    price = settings.to_engine(line.list_price, checkout.digits)
    if item.get("price") is not None and amount(item, "price") != price:
        return False
    if item.get("quantity") is None and item.get("initial_quantity") is None:
        return True
    ordered = _ordered(item)
    # An order in the old format does not store the added units; they are among the discounted ones.
    free = amount(item, "discount_quantity") if item.get("initial_quantity") is None else 0
    return ordered - free <= line.quantity <= ordered


def _ordered(item: Mapping[str, Any]) -> int:
    """The quantity without the units that Voucherify added, as far as the order stores these."""
    if item.get("initial_quantity") is not None:
        return amount(item, "initial_quantity")
    return amount(item, "quantity") - amount(item, "applied_quantity", signed=True)


def _is_shipping(item: Mapping[str, Any]) -> bool:
    return bool(SHIPPING & {text(item.get("product_id")), text(item.get("source_id"))})


# --- Redemptions -----------------------------------------------------------------------------------------------------


def is_reused(order: StoredOrder) -> bool:
    """Whether the order has a redemption that was rolled back."""
    return any(mapping(entry).get("rollback_id") for entry in mapping(order.get("redemptions")).values())


def undone_name(order: StoredOrder, session: str) -> str:
    """The `source_id` of an order whose redemptions were rolled back. The same order always gets the same one."""
    return f"{session}~{text(order.get('id')) or 'undone'}"


def live_redemptions(order: StoredOrder) -> tuple[str, ...]:
    """The ids of the redemptions that are not rolled back, oldest first. Children are left out: their parent is
    rolled back.

    An entry that does not look like a redemption is left out too. As the first, it would cause the rollback of the real
    one.
    """
    redemptions = {name: mapping(entry) for name, entry in mapping(order.get("redemptions")).items()}
    entries = {
        name: entry for name, entry in redemptions.items() if name.startswith("r_") or entry.keys() & _REDEMPTION_FIELDS
    }
    children = {str(child) for entry in entries.values() for child in listed(entry.get("stacked"))}
    live = [name for name, entry in entries.items() if not entry.get("rollback_id") and name not in children]
    return tuple(sorted(live, key=lambda name: (text(entries[name].get("date")), name)))


def parts(order: StoredOrder, redemption_id: str) -> tuple[str, ...]:
    """The ids of a redemption's children, one per redeemable; its own id where it has none."""
    children = listed(mapping(mapping(order.get("redemptions")).get(redemption_id)).get("stacked"))
    return tuple(dict.fromkeys(str(child) for child in children)) or (redemption_id,)


@dataclass(frozen=True, slots=True)
class Part:
    """What one redemption has redeemed. `names`: the id of the tier, or the code and the internal id of the voucher."""

    object: Literal["voucher", "promotion_tier"]
    names: tuple[str, ...]


def read_part(reply: EngineReply) -> Part | None:
    """What the redemption in a reply redeemed; None where it failed. Raises `EngineUnavailable` where it is unclear."""
    if reply.status == 404:
        not_understood("an order's redemption is not there")
    if reply.status != 200:
        raise reasons.problem(reply.status, read_error(reply).key)
    body = document(reply)
    tier, voucher = mapping(body.get("promotion_tier")), mapping(body.get("voucher"))
    names = [text(tier.get("id"))] if tier.get("id") else [text(voucher.get("code")), text(voucher.get("id"))]
    if not names[0] or body.get("result") not in ("SUCCESS", "FAILURE"):
        not_understood("a redemption does not say of what")
    if body["result"] == "FAILURE":
        return None
    return Part("promotion_tier" if tier.get("id") else "voucher", tuple(names))


def has_voucher(order: StoredOrder, parts: Sequence[str]) -> bool:
    """Whether the stored order marks one of these redemptions as that of a voucher."""
    entries = mapping(order.get("redemptions"))
    return any(mapping(entries.get(part)).get("related_object_type") == "voucher" for part in parts)
