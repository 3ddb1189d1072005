"""Turns a validation into discounts, rejections and notices.

All effects are read alike, unknown ones included: `applied_discount_amount` has what one redeemable takes off the order
and off each line. (`discount_amount` has what all redeemables up to it take off.) The name of the effect decides the
description of the discount, and whether units were added that are not in the shopper's cart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from adapters.voucherify import reasons, units
from adapters.voucherify.options import Settings
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import Applied, Validation
from adapters.voucherify.request import line_name
from adapters.voucherify.units import AddedUnits
from mapper.adapter import Checkout, Cost, Discount, EngineUnavailable, Line, Notice, Outcome, Reason, Rejection, money

GIFT_CARD = "GIFT_CARD"
PAY_WITH_POINTS = "PAY_WITH_POINTS"
FREE_SHIPPING = "FREE_SHIPPING"
SHIPPING_COST = "shipping"
APPLY_TO_ORDER = "APPLY_TO_ORDER"
APPLY_TO_ITEMS = "APPLY_TO_ITEMS"

# The description of each effect for the shopper. The names are Voucherify's, save for the last three: Voucherify marks
# these by the type of the voucher or by the product. https://docs.voucherify.io/build/discount-types-and-effects
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


_Granted = tuple[Applied, Discount, Discount, Mapping[int, AddedUnits]]
"""A redeemable, its discount on the order and that on a line, without amount and line, and the units that it adds."""


def outcome(
    validation: Validation,
    checkout: Checkout,
    settings: Settings,
    *,
    binding: bool = True,
    rejected: Sequence[Rejection] = (),
) -> Outcome:
    """The outcome of a valid validation for this cart.

    A validation that contradicts the cart or itself raises `EngineUnavailable`. Where it is not `binding`, because the
    order is redeemed already, it gets a notice instead.
    """
    notices: list[Notice] = []
    contradiction, text = _contradiction(validation, checkout, settings)
    if contradiction and binding:
        raise EngineUnavailable(text, reason=contradiction)
    if contradiction:
        notices.append(Notice(contradiction, text, None))
    added = units.added_units(validation.applied, checkout.cart)
    granted = [
        (one, *_templates(one), added_by_one) for one, added_by_one in zip(validation.applied, added, strict=True)
    ]
    discounts = _discounts(granted, checkout, settings) if contradiction != "lines_differ" else []
    if settings.exponent != checkout.digits:
        amounts, exact = money.rescale([one.amount for one in discounts], settings.exponent, checkout.digits)
        if not exact:
            text = "Voucherify's amounts have more digits than the currency; they were rounded, their sum once."
            notices.append(Notice("rounded", text, {"engine_total": sum(one.amount for one in discounts)}))
        pairs = zip(discounts, amounts, strict=True)
        discounts = [msgspec.structs.replace(one, amount=amount) for one, amount in pairs if amount]
    shipping, shipping_notices = _free_shipping(validation.applied, checkout, settings)
    for one, template, _, added_by_one in granted:
        notices += _notices(one, template.meta, added_by_one, checkout.cart)
    return Outcome(
        discounts=tuple(_in_order([*discounts, *shipping])),
        rejected=tuple(rejected),
        notices=(*notices, *shipping_notices),
        costs=tuple(Cost(SHIPPING_COST, discount.amount) for discount in shipping),
    )


def _contradiction(validation: Validation, checkout: Checkout, settings: Settings) -> tuple[str, str]:
    """Why the amounts cannot be trusted: a reason ("" for none) and a sentence."""
    names = [line_name(line, settings)[0] for line in checkout.cart]
    for applied in validation.applied:
        for name, item in zip(names, applied.amounts.items, strict=False):
            if item.source_id and item.source_id != name:
                return "lines_differ", "Voucherify's answer is about other lines than the cart has."
    shares = sum(applied.amounts.sum for applied in validation.applied)
    if shares != validation.total:
        text = f"The discounts in Voucherify's answer add up to {shares}, its total is {validation.total}."
        return "amounts_differ", text
    return "", ""


def _discounts(granted: Sequence[_Granted], checkout: Checkout, settings: Settings) -> list[Discount]:
    """What each redeemable takes off the order and off each line, in the engine's units."""
    discounts = [
        msgspec.structs.replace(on_order, amount=one.amounts.discount)
        for one, on_order, *_ in granted
        if one.amounts.discount
    ]
    for index, line in enumerate(checkout.cart):
        for one, _, on_line, added_by_one in granted:
            if index < len(one.amounts.items) and (item := one.amounts.items[index]).discount:
                units_added = added_by_one.get(index, units.NO_UNITS)
                share = units.cart_discount(one, item, units_added, line)
                if units_added.count and one.redeemable.object == "order":
                    # A stored order does not say whether the added units are free or those in the cart. So the discount
                    # that the order carries from validate counts, as far as the stored discount covers it.
                    share = min(max(share, settings.to_engine_floor(line.discount, checkout.digits)), item.discount)
                if share:
                    discounts.append(msgspec.structs.replace(on_line, amount=share, line=line.index))
    return discounts


def _templates(applied: Applied) -> tuple[Discount, Discount]:
    """The redeemable's discount on the order and that on a line, without amount and line."""
    effect = _effect(applied)
    template = Discount(
        name=applied.name,
        description=EFFECTS.get(effect or APPLY_TO_ORDER, "Discount"),
        amount=0,
        effect_type=effect or APPLY_TO_ORDER,
        scope="goods",  # Voucherify is sent no shipping and no other cost
        meta=_meta(applied),
    )
    if effect:
        return template, template
    return template, msgspec.structs.replace(template, effect_type=APPLY_TO_ITEMS, description=EFFECTS[APPLY_TO_ITEMS])


def _effect(applied: Applied) -> str:
    """The effect's name; "" where the reply has none."""
    if isinstance(applied.result.get("gift"), dict):
        return GIFT_CARD
    if isinstance(applied.result.get("loyalty_card"), dict):
        return PAY_WITH_POINTS
    effect = applied.discount.get("effect")
    return effect if isinstance(effect, str) else ""


def _meta(applied: Applied) -> dict[str, Any]:
    """Voucherify's ids. Consume reads `redeemable`, `object` and `position` to redeem the same promotions again."""
    one = applied.redeemable
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
    """Discounts by redeemable, in the order in which these were applied; each first on the order, then by line."""
    return sorted(discounts, key=lambda each: (each.meta["position"], -1 if each.line is None else each.line))


# --- Free shipping ---------------------------------------------------------------------------------------------------


def _free_shipping(
    applied: Sequence[Applied], checkout: Checkout, settings: Settings
) -> tuple[list[Discount], list[Notice]]:
    """A discount of the checkout's whole shipping price, which Voucherify is not sent."""
    granted = [one for one in applied if units.frees_shipping(one)]
    if not granted:
        return [], []
    first = granted[0]
    price = _shipping_price(checkout, settings)
    if not price:
        text = "Shipping is free, but the checkout names no price for shipping to take off."
        return [], [Notice("free_shipping", text, _meta(first))]
    discount = Discount(
        name=first.name,
        description=EFFECTS[FREE_SHIPPING],
        amount=price,
        effect_type=FREE_SHIPPING,
        cost=SHIPPING_COST,
        meta=_meta(first),
    )
    text = "Shipping is free by another promotion already."
    return [discount], [Notice("free_shipping", text, _meta(other)) for other in granted[1:]]


def _shipping_price(checkout: Checkout, settings: Settings) -> int:
    """The price at the root, else the sum over the orders. 0 where there is none."""
    price = checkout.amount_at(settings.shipping_path)
    return (price if price is not None else checkout.amount_at(f"/orders/*{settings.shipping_path}")) or 0


# --- Notices ---------------------------------------------------------------------------------------------------------


def _notices(
    applied: Applied, meta: Mapping[str, Any], added: Mapping[int, AddedUnits], cart: Sequence[Line]
) -> list[Notice]:
    """What a redeemable grants that is not a discount."""
    payload = {**meta, "result": applied.result}
    effect = _effect(applied)
    notices: list[Notice] = []
    if units.grants_units(applied):
        text = "Voucherify grants free or other units; those that are not in the cart are not added to it."
        items = units.missing_items(applied, added, cart)
        notices.append(Notice("units", text, {**payload, "items": items}))
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
        and not units.frees_shipping(applied)
        and applied.redeemable.object != "order"
    ):
        notices.append(Notice("no_effect", "This applies, but takes nothing off this cart.", payload))
    return notices


def left_out_notices(inapplicable: Mapping[Redeemable, str]) -> list[Notice]:
    """The promotion tiers that were tried and do not apply, with Voucherify's error key.

    Those that are not meant for this cart or this shopper are not mentioned: most carts have some.
    """
    promotions = [
        {"redeemable": one.id, "engine_reason": key}
        for one, key in inapplicable.items()
        if not one.code and reasons.reason(key) not in _NOT_FOR_THIS_CART
    ]
    text = "These promotions were tried and are left out."
    return [Notice("promotions_left_out", text, {"promotions": promotions})] if promotions else []


def not_validated_notice(code: Redeemable) -> Notice:
    """Says that a code was not validated: Voucherify needs an order with items for that."""
    text = f"The cart is empty, so that nobody was asked about the code {code.code}."
    return Notice("code_not_answered", text, {"value": code.code})


def refused_promotion_notices(inapplicable: Mapping[Redeemable, str]) -> list[Notice]:
    """The promotion tiers that applied at validate and no longer apply at consume."""
    text = "A promotion shown in the checkout does not apply any more."
    return [
        Notice("promotion_refused", text, {"object": one.object, "redeemable": one.id, "engine_reason": key})
        for one, key in inapplicable.items()
        if not one.code
    ]
