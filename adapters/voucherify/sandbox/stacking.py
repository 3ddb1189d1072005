"""Validates the redeemables of a request, by the project's stacking rules, and applies their discounts.

https://docs.voucherify.io/orchestrate/stacking-rules. A redemption validates again, so it uses this too.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from adapters.voucherify.sandbox.catalog import (
    ALWAYS_STACKABLE,
    NEVER_STACKABLE,
    Catalog,
    Coin,
    Incentive,
    Options,
    minor,
)
from adapters.voucherify.sandbox.errors import Refused, not_found, skipped_message
from adapters.voucherify.sandbox.orders import BundleMatch, Calculator, Order, find_bundles, order_json
from adapters.voucherify.sandbox.state import Books, category, discount_json
from mapper.sandbox.rulebook import Campaign, Coupon, GiftCard, LoyaltyCard, Referral

Json = dict[str, Any]


@dataclass(frozen=True)
class Shopper:
    """The customer of a request, its session key and its time."""

    source_id: str
    session: str
    now: datetime


@dataclass
class Result:
    """The result of one redeemable."""

    redeemable: Json
    incentive: Incentive | None
    name: str
    """The `id` in the reply."""
    status: Literal["APPLICABLE", "INAPPLICABLE", "SKIPPED"] = "APPLICABLE"
    refused: Refused | None = None
    skipped: str = ""
    before: Order | None = None
    after: Order | None = None
    coin: Coin | None = None
    credits: int = 0
    points: int = 0
    bundles: BundleMatch | None = None
    replaced: list[Json] = field(default_factory=list)

    @property
    def hierarchy(self) -> int:
        campaign = self.incentive.campaign if self.incentive else None
        return campaign.priority if campaign else 0

    @property
    def amount(self) -> int:
        """The discount of this redeemable."""
        return self.after.total_discount - self.before.total_discount if self.after and self.before else 0

    @property
    def has_effect(self) -> bool:
        if self.after is None or self.before is None:
            return True
        units = [(line.quantity, line.discount_quantity) for line in self.after.lines]
        return self.amount > 0 or units != [(line.quantity, line.discount_quantity) for line in self.before.lines]

    def json(self, expand: set[str], books: Books, shopper: Shopper, request_id: str) -> Json:
        incentive = self.incentive
        json: Json = {
            "status": self.status,
            "id": self.name,
            "object": self.redeemable["object"],
        }
        if self.status == "APPLICABLE":
            json |= self._applicable(expand, books, shopper)
        elif self.refused is not None:
            error = self.refused.body(request_id)
            message = error.get("error", error)["message"]
            json["result"] = {"error": error, "details": {"message": message, "key": self.refused.key}}
        else:
            json["result"] = {"details": {"key": self.skipped, "message": skipped_message(self.skipped)}}
        if self.bundles is not None and "result" in json:
            json["result"] |= {"bundle": self.bundles.json()}
        return json | _described(incentive, expand)

    def _applicable(self, expand: set[str], books: Books, shopper: Shopper) -> Json:
        assert self.incentive is not None
        discount = self.incentive.discount
        items = discount.applicable_to() if discount else []
        json: Json = {}
        if "order" in expand and self.after is not None and self.before is not None:
            json["order"] = order_json(self.after, self.before)
        return json | {
            "applicable_to": {"data": items, "total": len(items), "data_ref": "data", "object": "list"},
            "inapplicable_to": {"data": [], "total": 0, "data_ref": "data", "object": "list"},
            "result": self._result(books, shopper),
        }

    def _result(self, books: Books, shopper: Shopper) -> Json:
        incentive = self.incentive
        assert incentive is not None
        if isinstance(incentive.entry, GiftCard):
            locks = books.other_locks(incentive, shopper.session, shopper.now)
            balance = books.balances[incentive.id] - sum(lock.credits for lock in locks)
            return {"gift": {"balance": balance, "credits": self.credits}}
        if isinstance(incentive.entry, LoyaltyCard):
            return {"loyalty_card": {"points": self.points}}
        return {"discount": discount_json(incentive.discount)} if incentive.discount else {}


def _described(incentive: Incentive | None, expand: set[str]) -> Json:
    """The parts that `options.expand` asks for. Without it there are no names."""
    if incentive is None:
        return {}
    json: Json = {"categories": []}
    if "category" in expand:
        json["categories"] = [category(id_) for id_ in incentive.categories]
    if "redeemable" in expand:
        id_, name = incentive.parent
        json |= {"metadata": incentive.metadata, "campaign_id": id_, "campaign_name": name}
        if incentive.object == "promotion_tier":
            json["name"] = name
    return json


class Run:
    """Validates the redeemables of one request on a copy of its order."""

    def __init__(
        self,
        catalog: Catalog,
        books: Books,
        shopper: Shopper,
        order: Order | None,
        *,
        qualifying: bool = False,
    ) -> None:
        self._book = catalog.book
        self._options: Options = catalog.options
        self._catalog = catalog
        self._books = books
        self._shopper = shopper
        self._qualifying = qualifying
        """Whether this is a qualification, which does not check all rules."""
        self.start = order
        self.order = order.copy() if order else None
        self.results: list[Result] = []
        self._applied: Counter[str] = Counter()
        """The number of applied redeemables, by category; "" for all."""
        self._pending: Counter[int] = Counter()
        self._pending_spent: Counter[int] = Counter()

    @property
    def applicable(self) -> list[Result]:
        return [result for result in self.results if result.status == "APPLICABLE"]

    @property
    def valid(self) -> bool:
        failed = any(result.status == "INAPPLICABLE" for result in self.results)
        return bool(self.applicable) and not (failed and self._options.redeemables_application_mode == "ALL")

    @property
    def replaced(self) -> list[Json]:
        return [details for result in self.applicable for details in result.replaced]

    def execute(self, redeemables: list[Json]) -> "Run":
        self.results = [self._checked(redeemable, incentive) for redeemable, incentive in self._resolve(redeemables)]
        is_exclusive = any(
            result.refused is None and result.incentive and NEVER_STACKABLE in result.incentive.categories
            for result in self.results
        )
        if self._options.redeemables_sorting_rule == "CATEGORY_HIERARCHY":
            self.results.sort(key=lambda result: result.hierarchy)
        failed = False
        for result in self.results:
            if failed and self._options.redeemables_application_mode == "ALL":
                self._skip(result, "preceding_validation_failed")
            elif result.status == "APPLICABLE":
                self._stack(result, is_exclusive=is_exclusive)
            failed = failed or result.status == "INAPPLICABLE"
        return self

    # Lookup.

    def _resolve(self, redeemables: list[Json]) -> list[tuple[Json, Incentive | None]]:
        """Each redeemable with its incentive. Raises `Refused` for the whole request."""
        if any(redeemable["object"] == "promotion_stack" for redeemable in redeemables):
            if len(redeemables) > 1:
                raise Refused("invalid_redeemables", "Promotion Stack cannot be use with other redeemables")
            id_ = redeemables[0]["id"]
            tiers = self._catalog.stack(id_)
            if tiers is None:
                raise not_found("promotion stack", id_)
            return [({"object": "promotion_tier", "id": tier.id}, tier) for tier in tiers]
        found: list[tuple[Json, Incentive | None]] = []
        for redeemable in redeemables:
            find = self._catalog.voucher if redeemable["object"] == "voucher" else self._catalog.tier
            found.append((redeemable, find(redeemable["id"])))
        ids = [(sent["object"], incentive.id if incentive else sent["id"]) for sent, incentive in found]
        if len(set(ids)) < len(ids):
            raise Refused("duplicated_redeemables", "Duplicated redeemables detected in one redemption")
        return found

    def _checked(self, redeemable: Json, incentive: Incentive | None) -> Result:
        is_stored = incentive is not None and self._options.redeemables_named == "as_stored"
        name = incentive.id if incentive is not None and is_stored else redeemable["id"]
        result = Result(redeemable, incentive, name)
        try:
            if incentive is None:
                raise not_found(redeemable["object"].replace("_", " "), redeemable["id"])
            self._check(result, incentive)
        except Refused as refused:
            self._refuse(result, refused)
        return result

    def _refuse(self, result: Result, refused: Refused) -> None:
        result.status, result.refused, result.before, result.after = "INAPPLICABLE", refused, None, None

    def _skip(self, result: Result, key: str) -> None:
        result.status, result.refused, result.skipped = "SKIPPED", None, key
        result.before = result.after = None

    # Checks on each redeemable.

    def _check(self, result: Result, incentive: Incentive) -> None:
        entry, campaign = incentive.entry, incentive.campaign
        if campaign is not None:
            self._check_dates(incentive, campaign)
        if isinstance(entry, LoyaltyCard):
            self._check_loyalty_card(result, entry, incentive)
        if isinstance(entry, Coupon):
            self._check_coupon(incentive, entry)
        if isinstance(entry, Referral):
            self._check_referral(entry)
            self._check_uses(incentive, entry)
        if campaign is not None:
            self._check_conditions(campaign)
            self._check_bundle(result, campaign)
        if isinstance(entry, GiftCard):
            self._check_gift_card(result, incentive)

    def _check_dates(self, incentive: Incentive, campaign: Campaign) -> None:
        now = self._shopper.now
        if incentive.object == "promotion_tier":
            details = f"Promotion Tier with id: {incentive.id} is disabled."
            if not campaign.active:
                raise Refused("promotion_inactive", details)
            if not campaign.running(now):
                raise Refused("promotion_not_active_now", incentive.id)
            return
        if not campaign.active:
            raise Refused("voucher_disabled", incentive.id)
        for dated in (campaign, incentive.entry):
            starts, ends = getattr(dated, "starts", None), getattr(dated, "ends", None)
            if starts and now < starts:
                raise Refused("voucher_not_active", incentive.id)
            if ends and now >= ends:
                raise Refused("voucher_expired", incentive.id)

    def _check_coupon(self, incentive: Incentive, entry: Coupon) -> None:
        customer = self._shopper.source_id
        if entry.customer and entry.customer != customer:
            raise _violated("customer", incentive.campaign)
        self._check_uses(incentive, entry)
        if entry.uses_per_customer is not None:
            if not customer:
                raise Refused("missing_customer", incentive.id)
            if self._books.uses_by[incentive.id, customer] >= entry.uses_per_customer and not self._qualifying:
                raise _violated("redemption", incentive.campaign)

    def _check_uses(self, incentive: Incentive, entry: Coupon | Referral) -> None:
        """The locks of other sessions count as one redemption each."""
        locks = self._books.other_locks(incentive, self._shopper.session, self._shopper.now)
        if entry.uses is not None and self._books.used(incentive) + len(locks) >= entry.uses:
            raise Refused("quantity_exceeded", incentive.id)

    def _check_referral(self, entry: Referral) -> None:
        customer = self._shopper.source_id
        campaign = self._book.campaign[entry.campaign]
        if customer and customer == entry.advocate:
            raise Refused("referrer_not_permitted_to_redeem", entry.code)
        if (entry.friend and entry.friend != customer) or self._books.referred[customer]:
            raise _violated("customer", campaign)

    def _check_loyalty_card(self, result: Result, entry: LoyaltyCard, incentive: Incentive) -> None:
        if not entry.active:
            raise Refused("voucher_disabled", incentive.id)
        if entry.customer and entry.customer != self._shopper.source_id:
            raise Refused("invalid_customer", incentive.id)
        reward = result.redeemable.get("reward", {})
        if "id" not in reward:
            raise Refused("missing_reward", incentive.id)
        result.coin = next((coin for coin in incentive.coins if coin.id == reward["id"]), None)
        if result.coin is None:
            raise not_found("reward", reward["id"])
        self._need_order()
        locks = self._books.other_locks(incentive, self._shopper.session, self._shopper.now)
        available = self._books.points[incentive.id] - sum(lock.points for lock in locks)
        # The points are documented as required. Assumed: without them, all available points are used.
        result.points = reward.get("points", available)
        if result.points > available or available <= 0:
            raise Refused("loyalty_card_points_exceeded", incentive.id)

    def _check_gift_card(self, result: Result, incentive: Incentive) -> None:
        self._need_order()
        locks = self._books.other_locks(incentive, self._shopper.session, self._shopper.now)
        available = self._books.balances[incentive.id] - sum(lock.credits for lock in locks)
        # Without credits, as many as possible are used. Documented for single vouchers, assumed for this request.
        result.credits = result.redeemable.get("gift", {}).get("credits", available)
        if result.credits > available or available <= 0:
            raise Refused("gift_amount_exceeded", incentive.id)

    def _need_order(self) -> Order:
        if self.order is None:
            raise Refused("missing_order")
        if self.order.amount is None:
            raise Refused("missing_amount")
        return self.order

    def _check_conditions(self, campaign: Campaign) -> None:
        conditions = campaign.conditions
        if conditions.customers and self._shopper.source_id not in conditions.customers:
            raise _violated("customer", campaign)
        if conditions.every_item_costs:
            # An item has no costs in Voucherify.
            raise _violated("order", campaign)
        if any((conditions.stores, conditions.attributes)):
            metadata = self.order.metadata if self.order else {}
            named = conditions.attributes.items()
            in_store = not conditions.stores or metadata.get("store") in conditions.stores
            if not in_store or any(metadata.get(name) != value for name, value in named):
                raise _violated("order", campaign)
        self._check_total(campaign)
        self._check_items(campaign)

    def _check_bundle(self, result: Result, campaign: Campaign) -> None:
        if campaign.bundle is None:
            return
        if self.order is None or not self.order.lines:
            raise Refused("missing_order_items")
        result.bundles = find_bundles(campaign.bundle, self.order)
        if not result.bundles.quantity:
            # The error key of a missing bundle is not documented.
            raise _violated("order", campaign)

    def _check_total(self, campaign: Campaign) -> None:
        """The rule "total amount before discount", which qualifications do not check."""
        over, least = campaign.conditions.cart_over, campaign.conditions.cart_at_least
        if (over is None and least is None) or self._qualifying:
            return
        total = self._need_order().initial_amount or 0
        if (over is not None and total <= minor(over)) or (least is not None and total < minor(least)):
            raise _violated("order", campaign)

    def _check_items(self, campaign: Campaign) -> None:
        items, units = campaign.conditions.any_item, campaign.conditions.units_at_least
        if items is None and not units:
            return
        lines = self.order.lines if self.order else []
        if not lines:
            raise Refused("missing_order_items")
        matching = [line for line in lines if not line.is_shipping and (items is None or line.matches(items))]
        if not matching or sum(line.quantity for line in matching) < units:
            raise _violated("order", campaign)

    # Stacking rules and discounts.

    def _stack(self, result: Result, *, is_exclusive: bool) -> None:
        assert result.incentive is not None
        key = self._skip_key(result.incentive, is_exclusive=is_exclusive)
        if key:
            self._skip(result, key)
            return
        try:
            self._check_limits(result.incentive)
            self._apply(result, result.incentive)
        except Refused as refused:
            self._refuse(result, refused)
            return
        if not result.has_effect and self._options.redeemables_no_effect_rule == "SKIP":
            self._skip(result, "no_effect")
            return
        self.order = result.after
        self._applied.update(("", *result.incentive.categories))
        if result.incentive.campaign is not None:
            self._pending[result.incentive.campaign.id] += 1
            self._pending_spent[result.incentive.campaign.id] += result.amount

    def _skip_key(self, incentive: Incentive, *, is_exclusive: bool) -> str:
        """The key of the stacking rule that leaves it out; "" for none."""
        options, applied = self._options, self._applied
        limits = self._catalog.category_limits()
        if is_exclusive and not {NEVER_STACKABLE, ALWAYS_STACKABLE} & {*incentive.categories}:
            return "exclusion_rules_not_met"
        if (
            NEVER_STACKABLE in incentive.categories
            and applied[NEVER_STACKABLE] >= options.applicable_exclusive_redeemables_limit
        ):
            return "applicable_exclusive_redeemables_limit_exceeded"
        if applied[""] >= options.applicable_redeemables_limit:
            return "applicable_redeemables_limit_exceeded"
        if any(
            applied[id_] >= limits.get(id_, options.applicable_redeemables_per_category_limit)
            for id_ in incentive.categories
        ):
            return "applicable_redeemables_per_category_limit_exceeded"
        return ""

    def _check_limits(self, incentive: Incentive) -> None:
        campaign = incentive.campaign
        if campaign is None or self._qualifying:
            return
        limits, customer, pending = campaign.limits, self._shopper.source_id, self._pending[campaign.id]
        if limits.redemptions is not None and self._books.redeemed[campaign.id] + pending >= limits.redemptions:
            raise _violated("redemption", campaign)
        if limits.redemptions_per_customer is not None:
            if not customer:
                raise Refused("missing_customer", incentive.id)
            if self._books.redeemed_by[campaign.id, customer] + pending >= limits.redemptions_per_customer:
                raise _violated("redemption", campaign)

    def _apply(self, result: Result, incentive: Incentive) -> None:
        if self.order is None:
            return
        result.before, result.after = self.order, self.order.copy()
        calculator = Calculator(result.after, self._catalog.prices, discounted=self._book.settings.cascading_discounts)
        if isinstance(incentive.entry, GiftCard):
            result.credits = calculator.pay(result.credits)
        elif result.coin is not None:
            result.points = calculator.pay_with_points(result.coin, result.points)
        elif incentive.discount is not None:
            calculator.apply(incentive.discount)
            result.replaced = calculator.replaced
        self._check_budget(result, incentive)

    def _check_budget(self, result: Result, incentive: Incentive) -> None:
        """Raises `Refused` where the budget is too small for the whole discount: there are no partial rewards."""
        campaign = incentive.campaign
        if campaign is None or campaign.limits.budget is None or self._qualifying:
            return
        spent = self._books.spent[campaign.id] + self._pending_spent[campaign.id]
        if Decimal(spent + result.amount) / 100 > campaign.limits.budget:
            raise _violated("redemption", campaign)


def _violated(what: Literal["order", "customer", "redemption"], campaign: Campaign | None) -> Refused:
    """A validation rule of the campaign is violated. The campaign's description is its message."""
    assert campaign is not None
    own: Json = {"error": {"message": campaign.description}} if campaign.description else {}
    return Refused(f"{what}_rules_violated", f"Validation rule val_{campaign.id} is not met", **own)
