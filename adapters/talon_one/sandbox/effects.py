"""Turns the effects of the rule book into Talon.One's. `attempt` runs a campaign on a cart."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import msgspec

from adapters.talon_one.sandbox.cart import DOUBLE, ZERO, Unit, number_of
from adapters.talon_one.sandbox.trial import Trial
from mapper.domain import money
from mapper.sandbox import rulebook


def _off_units(trial: Trial, effect: rulebook.OffUnits) -> None:
    desired = {
        unit: trial.discount_on(effect, trial.base.unit(unit, effect.scope))
        for unit in trial.units_matching(effect.items)
    }
    _discount_units(trial, effect, desired, scope=effect.scope)


def _off_lines(trial: Trial, effect: rulebook.OffLines) -> None:
    lines: dict[int, list[Unit]] = {}
    for unit in trial.units_matching(effect.items):
        lines.setdefault(unit.position, []).append(unit)
    desired: dict[Unit, Decimal] = {}
    for units in lines.values():
        line_total = money.total([trial.base.unit(unit, "items") for unit in units])
        share = DOUBLE.divide(trial.discount_on(effect, line_total), Decimal(len(units)))
        desired |= dict.fromkeys(units, share)
    _discount_units(trial, effect, desired)


def _off_pro_rata(trial: Trial, effect: rulebook.OffItemsProRata) -> None:
    prices = {unit: trial.base.unit(unit, "items") for unit in trial.units_matching(effect.items)}
    items_total = money.total(list(prices.values()))
    if not items_total:
        return
    total = trial.discount_on(effect, items_total)
    desired = {unit: DOUBLE.divide(DOUBLE.multiply(total, price), items_total) for unit, price in prices.items()}
    _discount_units(trial, effect, desired, total)


def _discount_units(
    trial: Trial,
    effect: rulebook.Effect,
    desired: dict[Unit, Decimal],
    total: Decimal | None = None,
    scope: rulebook.Of = "items",
) -> None:
    """Adds one setDiscountPerItem per unit, or per line in old Applications without cart item flattening.

    https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
    """
    granted: dict[tuple[int, int | None], tuple[Decimal, Decimal]] = {}
    """(value, desired value) by position and sub-position."""
    for unit, desired_value in desired.items():
        if desired_value > 0:
            value = trial.grant(desired_value)
            trial.remaining.take(unit, scope, value)
            key = (unit.position, unit.sub if trial.context.options.flatten else None)
            before = granted.get(key, (ZERO, ZERO))
            granted[key] = (before[0] + value, before[1] + desired_value)
    not_granted = money.total([desired_value - value for value, desired_value in granted.values()])
    for (position, sub), (value, desired_value) in granted.items():
        trial.add(
            "setDiscountPerItem",
            name=f"{trial.title(effect)}#{position}",
            value=number_of(value),
            position=position,
            subPosition=sub,
            desiredValue=trial.desired(desired_value),
            scope=_ITEM_SCOPES[scope],
            totalDiscount=None if total is None else number_of(total - not_granted),
            desiredTotalDiscount=None if total is None else trial.desired(total),
            **trial.bundle_of(position, sub),
        )


_ITEM_SCOPES: Final = {"items": "price", "costs": "additionalCosts", "items_and_costs": "itemTotal"}
_SCOPES: Final = {"items": "cartItems", "costs": "additionalCosts", "items_and_costs": "sessionTotal"}


def _off_order(trial: Trial, effect: rulebook.OffOrder) -> None:
    _discount_order(trial, trial.title(effect), trial.discount_on(effect, trial.base.order(effect.scope)), effect.scope)


def _discount_order(trial: Trial, name: str, desired: Decimal, scope: str) -> Decimal:
    if desired <= 0:
        return ZERO
    value = trial.grant(desired)
    discounts = trial.remaining.order_discounts
    discounts[scope] = discounts.get(scope, ZERO) + value
    trial.add(
        "setDiscount",
        name=name,
        value=number_of(value),
        scope=_SCOPES[scope] if trial.context.book.settings.cascading_discounts else None,
        desiredValue=trial.desired(desired),
    )
    return value


def _off_cost(trial: Trial, effect: rulebook.OffCost) -> None:
    desired = trial.discount_on(effect, max(ZERO, trial.base.costs.get(effect.cost, ZERO)))
    if desired <= 0:
        return
    value = trial.grant(desired)
    trial.remaining.costs[effect.cost] -= value
    trial.add(
        "setDiscountPerAdditionalCost",
        name=trial.title(effect),
        additionalCostId=trial.context.cost_id(effect.cost),
        additionalCost=effect.cost,
        value=number_of(value),
        desiredValue=trial.desired(desired),
    )


def _off_item_cost(trial: Trial, effect: rulebook.OffItemCost) -> None:
    if any(effect.cost not in unit.costs for unit in trial.context.cart.units):
        # "If one or more items do not have an additional cost, the rule will fail."
        trial.fail(f"not every item has the additional cost {effect.cost}")
    for unit in trial.context.cart.units:
        key = (unit.position, unit.sub, effect.cost)
        desired = trial.discount_on(effect, max(ZERO, trial.base.item_costs[key]))
        if desired > 0:
            value = trial.grant(desired)
            trial.remaining.item_costs[key] -= value
            trial.add(
                "setDiscountPerAdditionalCostPerItem",
                name=f"{trial.title(effect)}#{unit.position}",
                additionalCostId=trial.context.cost_id(effect.cost),
                additionalCost=effect.cost,
                value=number_of(value),
                position=unit.position,
                subPosition=unit.sub,
                desiredValue=trial.desired(desired),
            )


def _free_item(trial: Trial, effect: rulebook.FreeItem) -> None:
    for _ in range(effect.quantity):
        trial.add("addFreeItem", sku=effect.sku, name=trial.title(effect))


def _replace_units(trial: Trial, effect: rulebook.ReplaceUnits) -> None:
    """Talon.One has no such effect. Merchants use a custom effect for it."""
    payload = {"replace": effect.sku, "by": effect.by, "quantity": effect.quantity}
    trial.add("customEffect", effectId=trial.candidate.campaign.id, name=trial.title(effect), payload=payload)


def _giveaway(trial: Trial, effect: rulebook.Giveaway) -> None:
    """Awards a code of the pool. The effect has the code only when the session is closed."""
    pool, context = effect.pool, trial.context
    number = context.books.awarded[pool] + context.grants.giveaways.count(pool) + trial.giveaways.count(pool)
    if number >= len(effect.codes):
        trial.fail("the giveaway pool is empty")
    trial.giveaways.append(pool)
    props = {"poolId": context.pool_id(pool), "poolName": pool, "recipientIntegrationId": context.cart.profile}
    if context.is_closing:
        trial.add("awardGiveaway", **props, giveawayId=context.pool_id(pool) * 1000 + number, code=effect.codes[number])
    else:
        trial.add("willAwardGiveaway", **props)


def _message(trial: Trial, effect: rulebook.Message) -> None:
    trial.add("showNotification", notificationType=effect.level.title(), title=effect.title, body=effect.text)


def _custom(trial: Trial, effect: rulebook.Custom) -> None:
    payload = msgspec.to_builtins(effect.payload)
    trial.add("customEffect", effectId=trial.candidate.campaign.id, name=trial.title(effect), payload=payload)


def _earn_points(trial: Trial, effect: rulebook.EarnPoints) -> None:
    points = trial.context.cart.items_total // effect.per * effect.points
    if points > 0:
        trial.points += points
        trial.add(
            "addLoyaltyPoints",
            name=trial.title(effect),
            programId=trial.context.program_of(trial.candidate.code),
            subLedgerId="",
            value=number_of(points),
            recipientIntegrationId=trial.context.cart.profile,
            transactionUUID=trial.context.uuid(trial.candidate.code, "add"),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_points(trial: Trial, effect: rulebook.PayWithPoints) -> None:
    card = trial.candidate.code
    points_left = trial.context.books.points[card] + min(ZERO, trial.context.grants.points.get(card, ZERO))
    desired = min(points_left * effect.value, trial.remaining.order("items"))
    value = _discount_order(trial, trial.title(effect), desired, "items")
    if value > 0:
        points = DOUBLE.divide(value, effect.value)
        trial.points -= points
        trial.add(
            "deductLoyaltyPoints",
            ruleTitle=trial.candidate.campaign.name,
            programId=trial.context.program_of(trial.candidate.code),
            subLedgerId="",
            value=number_of(points),
            transactionUUID=trial.context.uuid(trial.candidate.code, "deduct"),
            name=trial.title(effect),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_balance(trial: Trial, effect: rulebook.PayWithBalance) -> None:
    balance = trial.context.books.balances[trial.candidate.code]
    desired = min(balance, trial.remaining.order("items"))
    trial.balance = _discount_order(trial, trial.title(effect), desired, "items")


def attempt(trial: Trial) -> Trial:
    """Checks a campaign and runs its effects. Raises `Rejected`."""
    trial.check()
    for i, effect in enumerate(trial.candidate.campaign.effects):
        trial.effect_index = i
        _EFFECTS[type(effect)](trial, effect)
    return trial


_EFFECTS: Final[dict[type, Callable[[Trial, Any], None]]] = {
    rulebook.OffUnits: _off_units,
    rulebook.OffLines: _off_lines,
    rulebook.OffItemsProRata: _off_pro_rata,
    rulebook.OffOrder: _off_order,
    rulebook.OffCost: _off_cost,
    rulebook.OffItemCost: _off_item_cost,
    rulebook.FreeItem: _free_item,
    rulebook.ReplaceUnits: _replace_units,
    rulebook.Giveaway: _giveaway,
    rulebook.Message: _message,
    rulebook.Custom: _custom,
    rulebook.EarnPoints: _earn_points,
    rulebook.PayWithPoints: _pay_with_points,
    rulebook.PayWithBalance: _pay_with_balance,
}
