"""The order as Voucherify has stored it: whether it is this cart's, what was redeemed with it, what it has off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters.voucherify import reasons
from adapters.voucherify.options import Settings
from adapters.voucherify.reading import amount, document, listed, mapping, not_understood, objects, text
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.refusals import error
from adapters.voucherify.replies import SHIPPING, Answer, Applied, read_amounts
from adapters.voucherify.request import line_name
from mapper.adapter import Checkout, EngineReply, Line

StoredOrder = Mapping[str, Any]

_NOT_FOUND = ("not_found", "resource_not_found")
_OF_REDEMPTION = {"date", "related_object_type", "related_object_id", "stacked", "rollback_id"}


def read_order(reply: EngineReply) -> StoredOrder | None:
    """The stored order; None where Voucherify says that it knows none."""
    if reply.status == 200:
        return document(reply)
    # Only Voucherify's own "not found" counts: a proxy's or a wrong address's would make us redeem a second time.
    if reply.status == 404 and error(reply).key in _NOT_FOUND:
        return None
    if reply.status == 404:
        not_understood("404 without a key")
    raise reasons.problem(reply.status, error(reply).key)


def granted(order: StoredOrder, session: str, checkout: Checkout) -> Answer:
    """What a stored order has off in all. Which redeemable earned what is not stored with it."""
    amounts = read_amounts(dict(order), "discount_amount")
    shipping = [item for item in amounts.items[len(checkout.cart) :] if _is_shipping(item.raw)]
    # Told as the unit discount that has put the shipping line there.
    result = {"discount": {"type": "UNIT", "unit_type": "prod_5h1pp1ng"}} if shipping else {}
    one = Applied(Redeemable("order", session), "Voucherify", "", result, amounts)
    return Answer(valid=True, applied=(one,), total=amounts.total)


# --- Whether it is this cart's ---------------------------------------------------------------------------------------


def same_cart(order: StoredOrder, checkout: Checkout, settings: Settings) -> bool:
    """Whether a stored order has this cart's lines, as far as it says; units that Voucherify added do not count."""
    if "items" not in order:
        return True
    items, cart = objects(order.get("items")), checkout.cart
    lines, added = items[: len(cart)], items[len(cart) :]
    same = len(lines) == len(cart) and all(
        _same_line(item, line, checkout, settings) for line, item in zip(cart, lines, strict=True)
    )
    return same and all(_is_shipping(item) or _ordered(item) <= 0 for item in added)


def _same_line(item: Mapping[str, Any], line: Line, checkout: Checkout, settings: Settings) -> bool:
    price = settings.to_engine(line.list_price, checkout.digits)
    if item.get("source_id") not in (None, line_name(line, settings)[0]) or item.get("price") not in (None, price):
        return False
    if item.get("quantity") is None and item.get("initial_quantity") is None:
        return True
    ordered = _ordered(item)
    # An old order does not say how many units of a line Voucherify has added; they are among those that are free.
    free = amount(item, "discount_quantity") if item.get("initial_quantity") is None else 0
    return ordered - free <= line.quantity <= ordered


def _ordered(item: Mapping[str, Any]) -> int:
    """How many units of a line were ordered, so far as the stored order tells them from those that were added."""
    if item.get("initial_quantity") is not None:
        return amount(item, "initial_quantity")
    return amount(item, "quantity") - amount(item, "applied_quantity", signed=True)


def _is_shipping(item: Mapping[str, Any]) -> bool:
    return bool(SHIPPING & {text(item.get("product_id")), text(item.get("source_id"))})


# --- What was redeemed with it ---------------------------------------------------------------------------------------


def is_reused(order: StoredOrder) -> bool:
    """Whether something was redeemed with it before, and taken back."""
    return any(mapping(entry).get("rollback_id") for entry in mapping(order.get("redemptions")).values())


def name_aside(order: StoredOrder, session: str) -> str:
    """What an order is called from now on whose redemptions were taken back; always the same for the same order."""
    return f"{session}~{text(order.get('id')) or 'undone'}"


def live_redemptions(order: StoredOrder) -> tuple[str, ...]:
    """The redemptions of a stored order that stand, oldest first: parents alone, since only they can be rolled back.

    What stands among them and looks like none is left out: taken for the first, it would have the real one rolled back.
    """
    found = {name: mapping(entry) for name, entry in mapping(order.get("redemptions")).items()}
    entries = {name: entry for name, entry in found.items() if name.startswith("r_") or entry.keys() & _OF_REDEMPTION}
    children = {str(child) for entry in entries.values() for child in listed(entry.get("stacked"))}
    standing = [name for name, entry in entries.items() if not entry.get("rollback_id") and name not in children]
    return tuple(sorted(standing, key=lambda name: (text(entries[name].get("date")), name)))


def parts(order: StoredOrder, redemption_id: str) -> tuple[str, ...]:
    """The redemptions that a live one of a stored order consists of, one per redeemable: its children, or itself."""
    children = listed(mapping(mapping(order.get("redemptions")).get(redemption_id)).get("stacked"))
    return tuple(dict.fromkeys(str(child) for child in children)) or (redemption_id,)


@dataclass(frozen=True, slots=True)
class Part:
    """What one redemption has redeemed, by the names that Voucherify has for it: a voucher's code comes first."""

    object: Literal["voucher", "promotion_tier"]
    names: tuple[str, ...]


def read_part(reply: EngineReply) -> Part | None:
    """What one of them redeemed; None for one that failed. Raises `EngineUnavailable` where it does not say."""
    if reply.status == 404:
        not_understood("an order's redemption is not there")
    if reply.status != 200:
        raise reasons.problem(reply.status, error(reply).key)
    body = document(reply)
    tier, voucher = mapping(body.get("promotion_tier")), mapping(body.get("voucher"))
    names = [text(tier.get("id"))] if tier.get("id") else [text(voucher.get("code")), text(voucher.get("id"))]
    if not names[0] or body.get("result") not in ("SUCCESS", "FAILURE"):
        not_understood("a redemption does not say of what")
    return (
        Part("promotion_tier" if tier.get("id") else "voucher", tuple(names)) if body["result"] == "SUCCESS" else None
    )


def has_voucher(order: StoredOrder, parts: Sequence[str]) -> bool:
    """Whether the stored order itself says of one of these redemptions that it is of a voucher."""
    entries = mapping(order.get("redemptions"))
    return any(mapping(entries.get(part)).get("related_object_type") == "voucher" for part in parts)
