"""Tries one campaign on a cart: whether it applies, and what it grants."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NoReturn

from adapters.talon_one.sandbox.cart import ZERO, Remaining, Unit, number_of, percent_of
from adapters.talon_one.sandbox.context import Context
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import Campaign

Json = dict[str, Any]

# The `rejectionReason` for a coupon and for a referral code.
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


class Rejected(Exception):
    """The campaign does not apply. `reason`: a key of `REASONS`; `props`: additional props of the effect."""

    def __init__(self, reason: str, **props: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.props = props


@dataclass(frozen=True)
class Candidate:
    """A campaign that may apply, and the code that it was found by."""

    campaign: Campaign
    kind: rulebook.Needs
    code: str = ""
    coupon_id: int | None = None

    @property
    def competes(self) -> bool:
        """Whether other campaigns exclude it. A gift card is a payment and excludes nothing."""
        return self.kind in ("coupon", "referral") or (self.kind == "nothing" and not self.campaign.combinable)


class Trial:
    """The effects of one campaign on a cart, and what they would redeem."""

    def __init__(self, candidate: Candidate, context: Context, remaining: Remaining) -> None:
        self.candidate = candidate
        self.context = context
        self.remaining = remaining
        # Without cascading discounts every campaign computes on list prices.
        self.base = remaining if context.book.settings.cascading_discounts else context.at_list_price
        self.effects: list[tuple[str, Json]] = []
        self.granted = ZERO
        self.balance = ZERO
        self.points = ZERO
        self.giveaways: list[str] = []
        """The pools that a code is taken from."""
        self.effect_index = 0
        self.bundles = _bundles(candidate.campaign.bundle, context.cart.units)

    def check(self) -> None:
        """Raises `Rejected` where the campaign does not apply to the cart."""
        campaign, context = self.candidate.campaign, self.context
        # Several codes of one campaign in one cart share its limit.
        redeemed = context.books.redeemed[campaign.id] + context.grants.campaigns.count(campaign.id)
        if campaign.limits.redemptions is not None and redeemed >= campaign.limits.redemptions:
            raise Rejected("campaign used up")
        failed = [index for index, holds in enumerate(self._conditions()) if not holds]
        if failed:
            details = f"condition {failed[0]} of the rule does not hold"
            raise Rejected("condition", conditionIndex=failed[0], details=details)

    def _conditions(self) -> tuple[bool, ...]:
        conditions, cart = self.candidate.campaign.conditions, self.context.cart
        matching = [unit for unit in cart.units if unit.matches(conditions.any_item or rulebook.Items())]
        cost = conditions.every_item_costs
        return (
            conditions.cart_over is None or cart.items_total > conditions.cart_over,
            conditions.cart_at_least is None or cart.items_total >= conditions.cart_at_least,
            conditions.any_item is None or bool(matching),
            len(matching) >= conditions.units_at_least,
            not conditions.customers or cart.profile in conditions.customers,
            not conditions.stores or cart.store in conditions.stores,
            all(cart.attributes.get(name) == value for name, value in conditions.attributes.items()),
            not cost or (bool(cart.units) and all(cost in unit.costs for unit in cart.units)),
            self.candidate.campaign.bundle is None or bool(self.bundles),
        )

    def discount_on(self, discount: rulebook.Discount, value: Decimal) -> Decimal:
        """The amount of a discount on a price: at most the price, unless `discounts_beyond_price`."""
        if discount.percent is not None:
            return min(value, percent_of(discount.percent, value))
        is_beyond = self.context.options.discounts_beyond_price and value > 0
        return discount.amount if is_beyond and discount.amount is not None else discount.of(value)

    def grant(self, desired: Decimal) -> Decimal:
        """Grants what the campaign's budget allows, and returns it. Raises `Rejected` where that is nothing."""
        campaign, books = self.candidate.campaign, self.context.books
        value = desired
        if campaign.limits.budget is not None:
            spent = books.spent.get(campaign.id, ZERO) + self.context.grants.spent.get(campaign.id, ZERO)
            budget_left = campaign.limits.budget - spent - self.granted
            if desired > budget_left and (budget_left <= 0 or not self.context.book.settings.partial_rewards):
                self.fail("the budget is used up")
            value = min(desired, budget_left)
        self.granted += value
        return value

    def fail(self, details: str) -> NoReturn:
        raise Rejected("effect", effectIndex=self.effect_index, details=details)

    def add(self, kind: str, **props: Any) -> None:
        self.effects.append((kind, {name: value for name, value in props.items() if value is not None}))

    def title(self, effect: rulebook.Effect) -> str:
        return effect.name or self.candidate.campaign.name

    def desired(self, value: Decimal) -> Any:
        """The value of `desiredValue`, which effects have with partial rewards alone."""
        return number_of(value) if self.context.book.settings.partial_rewards else None

    def units_matching(self, items: rulebook.Items) -> list[Unit]:
        """The units that an effect is for; of a bundle campaign, those in bundles alone."""
        units = self.context.cart.units
        if self.candidate.campaign.bundle is not None:
            units = [unit for bundle in self.bundles for unit in bundle]
        return [unit for unit in units if unit.matches(items)]

    def bundle_of(self, position: int, sub: int | None) -> Json:
        """The props of an effect that name the bundle of the unit."""
        for index, bundle in enumerate(self.bundles):
            if any(unit.position == position and sub in (None, unit.sub) for unit in bundle):
                return {"bundleIndex": index, "bundleName": self.candidate.campaign.name}
        return {}


def _bundles(bundle: rulebook.Bundle | None, units: list[Unit]) -> list[list[Unit]]:
    """The units of each complete bundle in the cart, from its first units on."""
    found: list[list[Unit]] = []
    free = list(units)
    while bundle is not None and len(found) < bundle.limit:
        taken: list[Unit] = []
        for part in bundle.parts:
            taken += [unit for unit in free if unit.item["sku"] == part.sku and unit not in taken][: part.quantity]
        if len(taken) < sum(part.quantity for part in bundle.parts):
            break
        found.append(taken)
        free = [unit for unit in free if unit not in taken]
    return found
