"""One campaign tried on a cart: whether it applies, and which effects it has."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from adapters.talon_one.sandbox.cart import DOUBLE, ZERO, Left, Unit, number_of
from mapper.domain import money
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import Campaign

if TYPE_CHECKING:
    from adapters.talon_one.sandbox.rules import Run

Json = dict[str, Any]

# Why a code is refused: the word for a coupon, and for a referral code.
REASONS: Final[dict[str, tuple[str, str]]] = {
    "unknown": ("CouponNotFound", "ReferralNotFound"),
    "not running": ("CouponPartOfNotRunningCampaign", "ReferralPartOfNotRunningCampaign"),
    "future": ("CouponStartDateInFuture", "ReferralStartDateInFuture"),
    "expired": ("CouponExpired", "ReferralExpired"),
    "recipient": ("CouponRecipientDoesNotMatch", "ReferralRecipientDoesNotMatch"),
    "used up": ("CouponLimitReached", "ReferralLimitReached"),
    "campaign used up": ("CampaignLimitReached", "CampaignLimitReached"),
    "profile used up": ("ProfileLimitReached", "ProfileLimitReached"),
    "profile missing": ("ProfileRequired", "ReferralRejectedByCondition"),
    "excluded": ("CouponPartOfNotTriggeredCampaign", "ReferralPartOfNotTriggeredCampaign"),
    "condition": ("CouponRejectedByCondition", "ReferralRejectedByCondition"),
    "effect": ("EffectCouldNotBeApplied", "EffectCouldNotBeApplied"),
    "own": ("", "ReferralRecipientIdSameAsAdvocate"),
    "referred": ("", "ReferralCustomerAlreadyReferred"),
}


class Refused(Exception):
    """A campaign does not apply. `reason` is a key of `REASONS`; `props` are those the effect adds."""

    def __init__(self, reason: str, **props: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.props = props


@dataclass(frozen=True)
class Candidate:
    """A campaign that may apply, and the code that brought it."""

    campaign: Campaign
    kind: rulebook.Needs
    code: str = ""
    coupon_id: int | None = None

    @property
    def competes(self) -> bool:
        """Whether it counts where campaigns of codes exclude each other; a gift card is a means of payment."""
        return self.kind in ("coupon", "referral")


class Trial:
    """One campaign tried on a cart: its effects, and what it would take."""

    def __init__(self, candidate: Candidate, run: "Run", left: Left) -> None:
        self.candidate = candidate
        self.run = run
        self.left = left
        # Without cascading discounts every campaign computes on list prices.
        self.base = left if run.book.settings.cascading_discounts else run.untouched
        self.effects: list[tuple[str, Json]] = []
        self.given = ZERO
        self.balance = ZERO
        self.points = ZERO
        self._effect_index = 0

    def attempt(self) -> "Trial":
        """Raises `Refused`."""
        self._limit()
        self._conditions()
        for i, effect in enumerate(self.candidate.campaign.effects):
            self._effect_index = i
            EFFECTS[type(effect)](self, effect)
        return self

    def _limit(self) -> None:
        """Several codes of one campaign in one cart share its limit."""
        campaign, run = self.candidate.campaign, self.run
        taken = run.books.redeemed[campaign.id] + run.grants.campaigns.count(campaign.id)
        if campaign.limits.redemptions is not None and taken >= campaign.limits.redemptions:
            raise Refused("campaign used up")

    def _conditions(self) -> None:
        conditions, cart = self.candidate.campaign.conditions, self.run.cart
        meant = [u for u in cart.units if (conditions.any_item or rulebook.Items()).match(u.sku, u.category, u.price)]
        holds = (
            conditions.cart_over is None or cart.items_total > conditions.cart_over,
            conditions.cart_at_least is None or cart.items_total >= conditions.cart_at_least,
            conditions.any_item is None or bool(meant),
            len(meant) >= conditions.units_at_least,
            not conditions.customers or cart.profile in conditions.customers,
            not conditions.stores or cart.store in conditions.stores,
            all(cart.attributes.get(name) == value for name, value in conditions.attributes.items()),
        )
        if False in holds:
            index = holds.index(False)
            raise Refused("condition", conditionIndex=index, details=f"condition {index} of the rule does not hold")

    def give(self, desired: Decimal) -> Decimal:
        """How much of a discount the campaign's budget allows. Raises `Refused` where that is nothing."""
        campaign, books = self.candidate.campaign, self.run.books
        value = desired
        if campaign.limits.budget is not None:
            spent = books.spent.get(campaign.id, ZERO) + self.run.grants.spent.get(campaign.id, ZERO)
            left = campaign.limits.budget - spent - self.given
            if desired > left and (left <= 0 or not self.run.book.settings.partial_rewards):
                raise Refused("effect", effectIndex=self._effect_index, details="the budget is used up")
            value = min(desired, left)
        self.given += value
        return value

    def fail(self, details: str) -> None:
        raise Refused("effect", effectIndex=self._effect_index, details=details)

    def add(self, kind: str, **props: Any) -> None:
        self.effects.append((kind, {name: value for name, value in props.items() if value is not None}))

    def title(self, effect: rulebook.Effect) -> str:
        return effect.name or self.candidate.campaign.name

    def desired(self, value: Decimal) -> Any:
        """Only shown with partial rewards."""
        return number_of(value) if self.run.book.settings.partial_rewards else None

    def meant(self, items: rulebook.Items) -> list[Unit]:
        return [unit for unit in self.run.cart.units if items.match(unit.sku, unit.category, unit.price)]


def _off_units(trial: Trial, effect: rulebook.OffUnits) -> None:
    wanted = {
        unit: effect.of(max(ZERO, trial.base.units[unit.position, unit.sub])) for unit in trial.meant(effect.items)
    }
    _take_off_units(trial, effect, wanted)


def _off_lines(trial: Trial, effect: rulebook.OffLines) -> None:
    lines: dict[int, list[Unit]] = {}
    for unit in trial.meant(effect.items):
        lines.setdefault(unit.position, []).append(unit)
    wanted: dict[Unit, Decimal] = {}
    for units in lines.values():
        whole = money.total([trial.base.units[unit.position, unit.sub] for unit in units])
        share = DOUBLE.divide(effect.of(max(ZERO, whole)), Decimal(len(units)))
        wanted |= dict.fromkeys(units, share)
    _take_off_units(trial, effect, wanted)


def _off_pro_rata(trial: Trial, effect: rulebook.OffItemsProRata) -> None:
    prices = {unit: max(ZERO, trial.base.units[unit.position, unit.sub]) for unit in trial.meant(effect.items)}
    whole = money.total(list(prices.values()))
    if not whole:
        return
    total = effect.of(whole)
    wanted = {unit: DOUBLE.divide(DOUBLE.multiply(total, price), whole) for unit, price in prices.items()}
    _take_off_units(trial, effect, wanted, total)


def _take_off_units(
    trial: Trial, effect: rulebook.Effect, wanted: dict[Unit, Decimal], total: Decimal | None = None
) -> None:
    """One setDiscountPerItem for every unit, as cart item flattening has it; old Applications give one per line.

    https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
    """
    given: dict[tuple[int, int | None], tuple[Decimal, Decimal]] = {}
    for unit, desired in wanted.items():
        if desired > 0:
            value = trial.give(desired)
            trial.left.units[unit.position, unit.sub] -= value
            key = (unit.position, unit.sub if trial.run.options.flatten else None)
            before = given.get(key, (ZERO, ZERO))
            given[key] = (before[0] + value, before[1] + desired)
    cut = money.total([desired - value for value, desired in given.values()])
    for (position, sub), (value, desired) in given.items():
        trial.add(
            "setDiscountPerItem",
            name=f"{trial.title(effect)}#{position}",
            value=number_of(value),
            position=position,
            subPosition=sub,
            desiredValue=trial.desired(desired),
            scope="price",
            totalDiscount=None if total is None else number_of(total - cut),
            desiredTotalDiscount=None if total is None else trial.desired(total),
        )


_SCOPES: Final = {"items": "cartItems", "costs": "additionalCosts", "items_and_costs": "sessionTotal"}


def _off_order(trial: Trial, effect: rulebook.OffOrder) -> None:
    _take_off_order(trial, trial.title(effect), effect.of(trial.base.order(effect.scope)), effect.scope)


def _take_off_order(trial: Trial, name: str, desired: Decimal, scope: str) -> Decimal:
    if desired <= 0:
        return ZERO
    value = trial.give(desired)
    trial.left.off_order[scope] = trial.left.off_order.get(scope, ZERO) + value
    trial.add(
        "setDiscount",
        name=name,
        value=number_of(value),
        scope=_SCOPES[scope] if trial.run.book.settings.cascading_discounts else None,
        desiredValue=trial.desired(desired),
    )
    return value


def _off_cost(trial: Trial, effect: rulebook.OffCost) -> None:
    desired = effect.of(max(ZERO, trial.base.costs.get(effect.cost, ZERO)))
    if desired <= 0:
        return
    value = trial.give(desired)
    trial.left.costs[effect.cost] -= value
    trial.add(
        "setDiscountPerAdditionalCost",
        name=trial.title(effect),
        additionalCostId=trial.run.cost_id(effect.cost),
        additionalCost=effect.cost,
        value=number_of(value),
        desiredValue=trial.desired(desired),
    )


def _off_item_cost(trial: Trial, effect: rulebook.OffItemCost) -> None:
    if any(effect.cost not in unit.costs for unit in trial.run.cart.units):
        # "If one or more items do not have an additional cost, the rule will fail."
        trial.fail(f"not every item has the additional cost {effect.cost}")
    for unit in trial.run.cart.units:
        key = (unit.position, unit.sub, effect.cost)
        desired = effect.of(max(ZERO, trial.base.item_costs[key]))
        if desired > 0:
            value = trial.give(desired)
            trial.left.item_costs[key] -= value
            trial.add(
                "setDiscountPerAdditionalCostPerItem",
                name=f"{trial.title(effect)}#{unit.position}",
                additionalCostId=trial.run.cost_id(effect.cost),
                additionalCost=effect.cost,
                value=number_of(value),
                position=unit.position,
                subPosition=unit.sub,
                desiredValue=trial.desired(desired),
            )


def _free_item(trial: Trial, effect: rulebook.FreeItem) -> None:
    for _ in range(effect.quantity):
        trial.add("addFreeItem", sku=effect.sku, name=trial.title(effect))


def _message(trial: Trial, effect: rulebook.Message) -> None:
    trial.add("showNotification", notificationType=effect.level.title(), title=effect.title, body=effect.text)


def _custom(trial: Trial, effect: rulebook.Custom) -> None:
    payload = msgspec.to_builtins(effect.payload)
    trial.add("customEffect", effectId=trial.candidate.campaign.id, name=trial.title(effect), payload=payload)


def _earn_points(trial: Trial, effect: rulebook.EarnPoints) -> None:
    points = trial.run.cart.items_total // effect.per * effect.points
    if points > 0:
        trial.points += points
        trial.add(
            "addLoyaltyPoints",
            name=trial.title(effect),
            programId=trial.run.program_of(trial.candidate.code),
            subLedgerId="",
            value=number_of(points),
            recipientIntegrationId=trial.run.cart.profile,
            transactionUUID=trial.run.uuid(trial.candidate.code, "add"),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_points(trial: Trial, effect: rulebook.PayWithPoints) -> None:
    card = trial.candidate.code
    have = trial.run.books.points[card] + min(ZERO, trial.run.grants.points.get(card, ZERO))
    worth = min(have * effect.value, trial.left.order("items"))
    value = _take_off_order(trial, trial.title(effect), worth, "items")
    if value > 0:
        points = DOUBLE.divide(value, effect.value)
        trial.points -= points
        trial.add(
            "deductLoyaltyPoints",
            ruleTitle=trial.candidate.campaign.name,
            programId=trial.run.program_of(trial.candidate.code),
            subLedgerId="",
            value=number_of(points),
            transactionUUID=trial.run.uuid(trial.candidate.code, "deduct"),
            name=trial.title(effect),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_balance(trial: Trial, effect: rulebook.PayWithBalance) -> None:
    have = trial.run.books.balances[trial.candidate.code]
    if have <= 0:
        trial.fail("the discount limit of the coupon is reached")
    trial.balance = _take_off_order(trial, trial.title(effect), min(have, trial.left.order("items")), "items")


EFFECTS: Final[dict[type, Callable[[Trial, Any], None]]] = {
    rulebook.OffUnits: _off_units,
    rulebook.OffLines: _off_lines,
    rulebook.OffItemsProRata: _off_pro_rata,
    rulebook.OffOrder: _off_order,
    rulebook.OffCost: _off_cost,
    rulebook.OffItemCost: _off_item_cost,
    rulebook.FreeItem: _free_item,
    rulebook.Message: _message,
    rulebook.Custom: _custom,
    rulebook.EarnPoints: _earn_points,
    rulebook.PayWithPoints: _pay_with_points,
    rulebook.PayWithBalance: _pay_with_balance,
}
