"""From Voucherify's answer to discounts, refused codes and notices.

One rule serves every effect, those of tomorrow included: each redeemable's own share is what `applied_discount_amount`
says of the order and of each line. (`discount_amount` beside it grows from redeemable to redeemable.) The effect's name
only decides how a discount is called, and whether units were added that are not in the shopper's cart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from adapters.voucherify import reasons, units
from adapters.voucherify.options import Settings
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import SHIPPING, Answer, Applied
from adapters.voucherify.request import line_name
from adapters.voucherify.units import Grown
from mapper.adapter import Checkout, Cost, Discount, EngineUnavailable, Line, Notice, Outcome, Reason, Rejection, money

GIFT_CARD = "GIFT_CARD"
PAY_WITH_POINTS = "PAY_WITH_POINTS"
FREE_SHIPPING = "FREE_SHIPPING"
SHIPPING_COST = "shipping"
APPLY_TO_ORDER = "APPLY_TO_ORDER"
APPLY_TO_ITEMS = "APPLY_TO_ITEMS"

# What a discount of each effect is, for the shopper. The names are Voucherify's, save for the three above, which it
# tells by the kind of the voucher or by the product.
# https://docs.voucherify.io/build/discount-types-and-effects
EFFECTS: dict[str, str] = {
    APPLY_TO_ORDER: "Discount on the whole order",
    APPLY_TO_ITEMS: "Discount on selected items",
    "APPLY_TO_ITEMS_BY_QUANTITY": "Discount on each unit of selected items",
    "APPLY_TO_ITEMS_PROPORTIONALLY": "Discount spread over selected items by their price",
    "APPLY_TO_ITEMS_PROPORTIONALLY_BY_QUANTITY": "Discount spread over selected items by their quantity",
    "ADD_MISSING_ITEMS": "Free items",
    "ADD_NEW_ITEMS": "Additional free items",
    "ADD_MANY_ITEMS": "Free items of several kinds",
    "ADD_SAME_ITEMS": "Free items of the same kind",
    "REPLACE_ITEMS": "Upgrade to other items",
    GIFT_CARD: "Paid with a gift card",
    PAY_WITH_POINTS: "Paid with loyalty points",
    FREE_SHIPPING: "Free shipping",
}


_NOT_FOR_THIS_CART = frozenset(
    {Reason.CONDITIONS_NOT_MET, Reason.CUSTOMER_NOT_ELIGIBLE, Reason.SIGN_IN_REQUIRED, Reason.NO_EFFECT}
)


@dataclass(frozen=True, slots=True)
class _Share:
    applied: Applied
    line: Line | None
    amount: int
    """In the engine's units."""


def outcome(
    answer: Answer, checkout: Checkout, settings: Settings, *, binding: bool = True, rejected: Sequence[Rejection] = ()
) -> Outcome:
    """What a valid answer means for this cart.

    binding: prices will be set by it, so an answer whose amounts do not add up raises `EngineUnavailable`. Otherwise
    (something has been redeemed already) it is pointed out in a notice.
    """
    notices: list[Notice] = []
    fault, text = _fault(answer, checkout, settings)
    if fault and binding:
        raise EngineUnavailable(text, reason=fault)
    if fault:
        notices.append(Notice(fault, text, None))
    growth = units.grown(answer.applied, checkout.cart)
    shares = _shares(answer.applied, growth, checkout, settings) if fault != "lines_differ" else []
    amounts, exact = _minor([share.amount for share in shares], checkout.digits, settings.exponent)
    found = [(share.applied, share.line, amount) for share, amount in zip(shares, amounts, strict=True) if amount]
    if not exact:
        text = "Voucherify's amounts have more digits than the currency; they were rounded, their sum once."
        notices.append(Notice("rounded", text, {"engine_total": sum(share.amount for share in shares)}))
    metas = {id(one): _meta(one) for one in answer.applied}
    discounts = [_discount(one, line, amount, metas[id(one)]) for one, line, amount in found]
    shipping, told = _free_shipping(answer.applied, checkout, settings)
    for one, of_one in zip(answer.applied, growth, strict=True):
        notices += _notices(one, units.to_add(one, of_one, checkout.cart))
    return Outcome(
        discounts=tuple(_in_order([*discounts, *shipping])),
        rejected=tuple(rejected),
        notices=(*notices, *told),
        costs=tuple(Cost(SHIPPING_COST, one.amount) for one in shipping),
    )


def _fault(answer: Answer, checkout: Checkout, settings: Settings) -> tuple[str, str]:
    """What keeps the answer from being trusted with money: a word ("" for nothing) and a sentence."""
    names = [line_name(line, settings)[0] for line in checkout.cart]
    for applied in answer.applied:
        for name, item in zip(names, applied.amounts.items, strict=False):
            if item.source_id and item.source_id != name:
                return "lines_differ", "Voucherify's answer is about other lines than the cart has."
    shares = sum(applied.amounts.sum for applied in answer.applied)
    if shares != answer.total:
        text = f"The discounts in Voucherify's answer add up to {shares}, its total is {answer.total}."
        return "amounts_differ", text
    return "", ""


def _shares(
    applied: Sequence[Applied], growth: Sequence[Sequence[Grown]], checkout: Checkout, settings: Settings
) -> list[_Share]:
    shares = [_Share(one, None, one.amounts.discount) for one in applied]
    for index, line in enumerate(checkout.cart):
        for one, of_one in zip(applied, growth, strict=True):
            if index < len(of_one):
                item, added = one.amounts.item(index), of_one[index]
                off = units.own_share(one, item, added, line)
                if added.units and one.asked.object == "order":
                    # Of a stored order, which tells no redeemable from another, what was added may be free, or what
                    # was in the cart: the order carries what validate told.
                    off = min(max(off, settings.about(line.discount, checkout.digits)), item.discount)
                if off:
                    shares.append(_Share(one, line, off))
    return shares


def _minor(units: Sequence[int], digits: int, exponent: int) -> tuple[list[int], bool]:
    """The engine's units as minor units of the currency, and whether all of them were exact.

    Where they are not, the sum is rounded once and split by largest remainder.
    """
    if exponent <= digits:
        return [unit * 10 ** (digits - exponent) for unit in units], True
    size = 10 ** (exponent - digits)
    if all(unit % size == 0 for unit in units):
        return [unit // size for unit in units], True
    return money.split((2 * sum(units) + size) // (2 * size), [Decimal(unit) for unit in units]), False


def _discount(applied: Applied, line: Line | None, amount: int, meta: dict[str, Any]) -> Discount:
    effect = _effect(applied, APPLY_TO_ITEMS if line else APPLY_TO_ORDER)
    return Discount(
        name=_name(applied),
        description=EFFECTS.get(effect, "Discount"),
        amount=amount,
        effect_type=effect,
        line=line.index if line else None,
        scope="goods",  # it is told of no shipping and no other cost
        meta=meta,
    )


def _effect(applied: Applied, default: str) -> str:
    if "gift" in applied.result:
        return GIFT_CARD
    if "loyalty_card" in applied.result:
        return PAY_WITH_POINTS
    effect = applied.discount.get("effect")
    return effect if isinstance(effect, str) and effect else default


def _name(applied: Applied) -> str:
    return applied.name or applied.asked.id


def _meta(applied: Applied) -> dict[str, Any]:
    """The engine's ids, and what consume needs to redeem the same promotions in the same order."""
    one = applied.asked
    kind = applied.discount.get("type")
    meta = {
        "redeemable": one.id,
        "object": one.object,
        "position": one.position,
        "code": one.code,
        "campaign_id": applied.campaign_id,
        "type": kind if isinstance(kind, str) else "",
    }
    return {name: value for name, value in meta.items() if value != ""}


def _in_order(discounts: list[Discount]) -> list[Discount]:
    """As they were applied; within one redeemable the order first, then the lines from top to bottom."""
    return sorted(discounts, key=lambda one: (one.meta["position"], -1 if one.line is None else one.line))


# --- Free shipping ---------------------------------------------------------------------------------------------------


def _free_shipping(
    applied: Sequence[Applied], checkout: Checkout, settings: Settings
) -> tuple[list[Discount], list[Notice]]:
    """Free shipping as a discount of what the checkout itself asks for shipping: Voucherify is not told that price."""
    granted = [one for one in applied if units.targets(one) & SHIPPING]
    if not granted:
        return [], []
    first = granted[0]
    price = _shipping_price(checkout, settings)
    if not price:
        text = "Shipping is free, but the checkout names no price for shipping to take off."
        return [], [Notice("free_shipping", text, _meta(first))]
    discount = Discount(
        name=_name(first),
        description=EFFECTS[FREE_SHIPPING],
        amount=price,
        effect_type=FREE_SHIPPING,
        cost=SHIPPING_COST,
        meta=_meta(first),
    )
    text = "Shipping is free by another promotion already."
    return [discount], [Notice("free_shipping", text, _meta(other)) for other in granted[1:]]


def _shipping_price(checkout: Checkout, settings: Settings) -> int:
    """At the root, or per order where the body has several."""
    price = checkout.amount_at(settings.shipping_path)
    return (price if price is not None else checkout.amount_at(f"/orders/*{settings.shipping_path}")) or 0


# --- Notices ---------------------------------------------------------------------------------------------------------


def _notices(applied: Applied, to_add: Sequence[Mapping[str, Any]]) -> list[Notice]:
    """What a redeemable grants beside money off: passed on with the engine's own words."""
    payload = {**_meta(applied), "result": applied.result}
    effect = _effect(applied, "")
    notices: list[Notice] = []
    if units.gives_units(applied):
        text = "Voucherify grants free or other units; those that are not in the cart are not added to it."
        notices.append(Notice("units", text, {**payload, "items": list(to_add)}))
    if effect == PAY_WITH_POINTS and not applied.amounts.sum:
        notices.append(Notice("loyalty_reward", "The loyalty card earns a reward that takes no money off.", payload))
    elif effect and effect not in EFFECTS:
        notices.append(Notice("unknown_effect", "Voucherify applied an effect this version does not know.", payload))
    bundle = applied.result.get("bundle")
    if isinstance(bundle, dict) and bundle.get("missing"):
        notices.append(Notice("bundle", "More items would complete another bundle.", payload))
    if (
        not notices
        and not applied.amounts.sum
        and not units.targets(applied) & SHIPPING
        and applied.asked.object != "order"
    ):
        notices.append(Notice("no_effect", "This applies, but takes nothing off this cart.", payload))
    return notices


def left_out(refused: Mapping[Redeemable, str]) -> list[Notice]:
    """The promotions that were tried and are left out, and Voucherify's word for why.

    Not those that are simply not for this cart or this shopper: of these, every shop has some in every cart.
    """
    named = [
        {"redeemable": one.id, "engine_reason": key}
        for one, key in refused.items()
        if not one.code and reasons.reason(key) not in _NOT_FOR_THIS_CART
    ]
    text = "These promotions were tried and are left out."
    return [Notice("promotions_left_out", text, {"promotions": named})] if named else []


def not_asked(code: Redeemable) -> Notice:
    """Voucherify judges a code by an order, and there is none: nothing says whether it is good."""
    text = f"The cart is empty, so that nobody was asked about the code {code.code}."
    return Notice("code_not_answered", text, {"value": code.code})


def refused_promotions(refused: Mapping[Redeemable, str]) -> list[Notice]:
    """Promotions the shopper was shown at validate that Voucherify refuses at consume."""
    text = "A promotion shown in the checkout does not apply any more."
    return [
        Notice("promotion_refused", text, {"object": one.object, "redeemable": one.id, "engine_reason": key})
        for one, key in refused.items()
        if not one.code
    ]
