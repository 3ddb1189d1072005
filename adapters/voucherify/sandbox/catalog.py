"""Turns the rule book into a Voucherify project: vouchers, promotion tiers and stacks.

An incentive of Voucherify has one discount. It is the first effect of the campaign that Voucherify can express; several
free items, free shipping included, become one `ADD_MANY_ITEMS`. Messages and custom payloads become metadata. Other
effects are left out:

    off_units            amount: APPLY_TO_ITEMS_BY_QUANTITY; percent: PERCENT, APPLY_TO_ITEMS
    off_lines            amount: APPLY_TO_ITEMS; percent: PERCENT, APPLY_TO_ITEMS
    off_items_pro_rata   amount: APPLY_TO_ITEMS_PROPORTIONALLY; percent: PERCENT, APPLY_TO_ITEMS
    off_order            APPLY_TO_ORDER, on shipping too where that is sent as an item; of costs: left out
    off_cost             shipping, 100 %: UNIT, ADD_MISSING_ITEMS of prod_5h1pp1ng; else APPLY_TO_ITEMS on that product;
                         other costs: left out
    off_item_cost        left out, like off_units of costs: items have no costs
    free_item            UNIT, ADD_NEW_ITEMS or ADD_MISSING_ITEMS, as the rule book says
    replace_units        UNIT, REPLACE_ITEMS; the shape of its discount object is not documented
    giveaway             left out
    pay_with_balance     a gift card
    pay_with_points      the reward rew_<campaign> of a loyalty card, of type COIN
    earn_points          left out: earning rules are not redeemables
    message, custom      metadata

Campaigns without a code are promotion tiers promo_<id>. A campaign that is not combinable is in a category that is
"Never stackable". Those with the same `best_of` are in one category, of which the first requested one applies, since
Voucherify does not compare them. Other automatic campaigns, and cards, are "Always stackable". Priorities count with
CATEGORY_HIERARCHY alone, where each is a category. Stores and session attributes are read from the order's metadata,
category and weight from the metadata of the item, its product or its SKU. A bundle multiplies the discount.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec

from mapper.domain import money
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import Amount, Bundle, Campaign, Entry, Items, LoyaltyCard, RuleBook

Json = dict[str, Any]
Limit = Annotated[int, msgspec.Meta(ge=1, le=30)]

SHIPPING: Final = "prod_5h1pp1ng"
SHIPPING_SOURCE: Final = "5h1pp1ng"
EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
NEVER_STACKABLE: Final = "cat_never_stackable"
ALWAYS_STACKABLE: Final = "cat_always_stackable"
_HIERARCHY: Final = "cat_hierarchy_"


Naming = Literal["as_stored", "as_requested"]


class Options(rulebook.Table, frozen=True, kw_only=True):
    """`[engines.voucherify]` of the rule book: mostly the project's stacking rules, with Voucherify's names."""

    redeemables_application_mode: Literal["ALL", "PARTIAL"] = "PARTIAL"
    redeemables_sorting_rule: Literal["REQUESTED_ORDER", "CATEGORY_HIERARCHY"] = "REQUESTED_ORDER"
    redeemables_no_effect_rule: Literal["REDEEM_ANYWAY", "SKIP"] = "REDEEM_ANYWAY"
    redeemables_rollback_order_mode: Literal["WITH_ORDER", "WITHOUT_ORDER"] = "WITH_ORDER"
    redeemables_limit: Limit = 30
    applicable_redeemables_limit: Limit = 5
    applicable_redeemables_per_category_limit: Limit = 30
    applicable_exclusive_redeemables_limit: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    free_items: Literal["ADD_NEW_ITEMS", "ADD_MISSING_ITEMS"] = "ADD_NEW_ITEMS"
    prices: dict[str, Amount] = msgspec.field(default_factory=dict)
    """The prices in the product catalog, by the merchant's id."""
    stacks: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    """Promotion stacks: the campaigns of their tiers, by id (stack_...)."""
    case_sensitive_codes: bool = False
    qualifications_cached_s: rulebook.Count = 0
    """How long replies to qualifications are cached; 300 with the vendor."""
    nothing_applies: Literal["first_refusal", "no_applicable_redeemables"] = "first_refusal"
    """The error key where no redeemable applies in mode PARTIAL; not documented."""
    redeemables_named: Naming = "as_stored"
    """How replies name a voucher that was requested in another case or by its internal id."""
    absent_amounts: Literal["omitted", "null"] = "omitted"
    """How replies represent amounts and quantities of 0."""
    calls_per_minute: rulebook.Positive = 100_000
    unknown_fields: Literal["refuse", "ignore"] = "refuse"


def minor(value: Decimal) -> int:
    """In hundredths, whatever the currency."""
    return money.to_minor(value, 2)


def number(value: Decimal) -> int | Decimal:
    return int(value) if value == value.to_integral_value() else value.normalize()


def moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def digest(*parts: str, size: int = 24) -> str:
    """A stable id in the form of Voucherify's."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:size]


def sku_id(source_id: str) -> str:
    return f"sku_{digest(source_id, size=18)}"


@dataclass(frozen=True)
class Unit:
    """Free units of a product."""

    effect: str
    quantity: int
    source_id: str

    @property
    def is_shipping(self) -> bool:
        return self.source_id == SHIPPING_SOURCE

    @property
    def product(self) -> Json:
        if self.is_shipping:
            return {"id": SHIPPING, "source_id": SHIPPING_SOURCE, "name": "Shipping"}
        return {"id": f"prod_{digest(self.source_id, size=18)}", "source_id": self.source_id, "name": self.source_id}

    @property
    def sku(self) -> Json | None:
        if self.is_shipping:
            return None
        id_ = sku_id(self.source_id)
        # The specification says `name`, its examples `sku`.
        return {"id": id_, "source_id": self.source_id, "name": self.source_id, "sku": self.source_id}

    def json(self) -> Json:
        sku = self.sku
        shown = {"effect": self.effect, "unit_off": self.quantity, "unit_type": (sku or self.product)["id"]}
        return shown | ({"sku": sku} if sku else {}) | {"product": self.product}


@dataclass(frozen=True)
class Swap:
    """Units of a product that are replaced by units of another."""

    source: Unit
    target: Unit
    price: int
    """The unit price of the other product, where the cart does not have it."""


@dataclass(frozen=True)
class Discount:
    """The discount of an incentive. `amount` is in hundredths."""

    type: Literal["AMOUNT", "PERCENT", "UNIT"]
    effect: str
    amount: int = 0
    percent: Decimal = Decimal(0)
    items: Items | None = None
    """The items that it is on; None for all."""
    shipping: bool = False
    """Whether it is on shipping alone."""
    units: tuple[Unit, ...] = ()
    swap: Swap | None = None
    bundle: Bundle | None = None
    """It is on the units of these bundles, once for each."""

    def json(self) -> Json:
        """As in vouchers and tiers."""
        if self.swap is not None:
            return {"type": "UNIT"} | self.swap.target.json()
        if self.type == "UNIT":
            many = len(self.units) > 1
            shown = {"effect": "ADD_MANY_ITEMS", "units": [unit.json() for unit in self.units]}
            return {"type": "UNIT"} | (shown if many else self.units[0].json())
        value = {"percent_off": number(self.percent)} if self.type == "PERCENT" else {"amount_off": self.amount}
        return {"type": self.type, "effect": self.effect} | value

    def applicable_to(self) -> list[Json]:
        """The products, SKUs and collections that it is on."""
        more = {"effect": "APPLY_TO_EVERY", "skip_initially": 0, "repeat": 1, "target": "ITEM"}
        if self.shipping:
            return [{"object": "product", "id": SHIPPING, "source_id": SHIPPING_SOURCE} | more]
        if self.items is None or self.items == Items():
            return []
        if self.items.skus:
            return [{"object": "sku", "id": sku_id(sku), "source_id": sku} | more for sku in self.items.skus]
        return [{"object": "products_collection", "id": f"pc_{digest(repr(self.items))}"} | more]


@dataclass(frozen=True)
class Coin:
    """A reward that pays with loyalty points."""

    id: str
    name: str
    value: Decimal
    """The value of one point, in major units."""

    def value_of(self, points: int) -> int:
        return minor(self.value * points)

    def points_for(self, amount: int) -> int:
        """The fewest points that cover an amount."""
        return math.ceil(Decimal(amount) / 100 / self.value)

    def json(self) -> Json:
        money_, points = self.value.as_integer_ratio()
        return {
            "id": self.id,
            "object": "reward",
            "name": self.name,
            "type": "COIN",
            "parameters": {"coin": {"exchange_ratio": money_, "points_ratio": points}},
            "created_at": moment(EPOCH),
            "updated_at": None,
        }


@dataclass(frozen=True)
class Incentive:
    """A voucher or a promotion tier."""

    object: Literal["voucher", "promotion_tier"]
    id: str
    """The code as it is stored, or the tier's id."""
    campaign: Campaign | None
    """None for a loyalty card, whose program has several."""
    entry: Entry | None = None
    discount: Discount | None = None
    coins: tuple[Coin, ...] = ()
    metadata: Json = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    parent: tuple[str, str] = ("", "")
    """(id, name) of its campaign."""

    @property
    def related_id(self) -> str:
        return voucher_id(self.id) if self.object == "voucher" else self.id


def voucher_id(code: str) -> str:
    return f"v_{code.encode().hex()}"


class Catalog:
    """The vouchers, promotion tiers and stacks of the project."""

    def __init__(self, book: RuleBook, options: Options) -> None:
        self.book = book
        self.options = options
        self.prices = {name: minor(price) for name, price in options.prices.items()}
        self._stacks = options.stacks

    def voucher(self, id_: str) -> Incentive | None:
        """By code or internal id (v_...). A code may look like an internal id."""
        found = self.book.find(id_, by_case=self.options.case_sensitive_codes) or self._by_internal_id(id_)
        if found is None:
            return None
        stored, entry = found
        if isinstance(entry, LoyaltyCard):
            return self._loyalty_card(stored, entry)
        return self._incentive("voucher", stored, self.book.campaign[entry.campaign], entry)

    def _by_internal_id(self, id_: str) -> tuple[str, Entry] | None:
        if not id_.startswith("v_"):
            return None
        try:
            return self.book.find(bytes.fromhex(id_[2:]).decode(), by_case=True)
        except ValueError:
            return None

    def tier(self, id_: str) -> Incentive | None:
        return next((tier for tier in self.tiers() if tier.id == id_), None)

    def tiers(self) -> Iterator[Incentive]:
        for campaign in self.book.campaigns:
            if campaign.needs == "nothing":
                yield self._incentive("promotion_tier", tier_id(campaign.id), campaign)

    def of_campaign(self, campaign: Campaign) -> Incentive:
        """The incentive that all codes of a campaign share."""
        return self._incentive("voucher", "", campaign)

    def stack(self, id_: str) -> list[Incentive] | None:
        ids = self._stacks.get(id_)
        return None if ids is None else [tier for tier in map(self.tier, map(tier_id, ids)) if tier]

    def category_limits(self) -> dict[str, int]:
        return {best_of(campaign.best_of): 1 for campaign in self.book.campaigns if campaign.best_of}

    def _incentive(
        self, kind: Literal["voucher", "promotion_tier"], id_: str, campaign: Campaign, entry: Entry | None = None
    ) -> Incentive:
        return Incentive(
            kind,
            id_,
            campaign,
            entry,
            discount=self._discount(campaign),
            metadata=_metadata(campaign),
            categories=self._categories(campaign),
            parent=(campaign_id(campaign.id), campaign.name),
        )

    def _categories(self, campaign: Campaign) -> tuple[str, ...]:
        found = [best_of(campaign.best_of)] if campaign.best_of else []
        if campaign.needs in ("coupon", "referral", "nothing") and not campaign.combinable:
            found.append(NEVER_STACKABLE)
        elif campaign.needs not in ("coupon", "referral"):
            found.append(ALWAYS_STACKABLE)
        if self.options.redeemables_sorting_rule == "CATEGORY_HIERARCHY":
            found.append(f"{_HIERARCHY}{campaign.priority}")
        return tuple(found)

    def _loyalty_card(self, code: str, card: LoyaltyCard) -> Incentive:
        program = self.book.program[card.program]
        coins = tuple(
            Coin(f"rew_{id_}", effect.name or self.book.campaign[id_].name, effect.value)
            for id_ in program.campaigns
            for effect in self.book.campaign[id_].effects
            if isinstance(effect, rulebook.PayWithPoints)
        )
        parent = (f"camp_loyalty_{program.id}", program.title or program.name)
        return Incentive("voucher", code, None, card, coins=coins, categories=(ALWAYS_STACKABLE,), parent=parent)

    def _discount(self, campaign: Campaign) -> Discount | None:
        """The first effect that Voucherify can express; of free units, all. None for gift cards."""
        found = [made for effect in campaign.effects if (made := self._express(effect)) is not None]
        if found and found[0].units:
            units = tuple(unit for discount in found for unit in discount.units)
            return Discount("UNIT", units[0].effect, units=units, bundle=campaign.bundle)
        if found:
            return replace(found[0], bundle=campaign.bundle)
        if campaign.needs == "gift_card":
            return None
        # Every incentive has a discount.
        return Discount("AMOUNT", "APPLY_TO_ORDER")

    def _express(self, effect: rulebook.Effect) -> Discount | None:
        if isinstance(effect, rulebook.FreeItem):
            unit = Unit(self.options.free_items, effect.quantity, effect.sku)
            return Discount("UNIT", unit.effect, units=(unit,))
        express = _EXPRESS.get(type(effect))
        return express(effect) if express else None


def tier_id(campaign: int) -> str:
    return f"promo_{campaign}"


def campaign_id(campaign: int) -> str:
    return f"camp_{campaign}"


def created_at(campaign: Campaign) -> datetime:
    return EPOCH + timedelta(days=campaign.id)


def hierarchy(category: str) -> int:
    """The rank of a category; lower ranks are applied first."""
    number = category.removeprefix(_HIERARCHY)
    return int(number) if category.startswith(_HIERARCHY) else 1


def best_of(word: str) -> str:
    return f"cat_{digest('best_of', word, size=18)}"


def _metadata(campaign: Campaign) -> Json:
    found: Json = {}
    for effect in campaign.effects:
        if isinstance(effect, rulebook.Message):
            found["message"] = {"level": effect.level, "title": effect.title, "text": effect.text}
        if isinstance(effect, rulebook.Custom):
            found[effect.name or "custom"] = msgspec.to_builtins(effect.payload)
    return found


def _off_units(effect: rulebook.OffUnits) -> Discount | None:
    return None if effect.scope == "costs" else _amount_or_percent(effect, "APPLY_TO_ITEMS_BY_QUANTITY")


def _replace_units(effect: rulebook.ReplaceUnits) -> Discount:
    source, target = (Unit("REPLACE_ITEMS", effect.quantity, sku) for sku in (effect.sku, effect.by))
    return Discount("UNIT", "REPLACE_ITEMS", swap=Swap(source, target, minor(effect.price)))


def _amount_or_percent(
    effect: rulebook.OffUnits | rulebook.OffLines | rulebook.OffItemsProRata, amount_effect: str
) -> Discount:
    if effect.percent is not None:
        return Discount("PERCENT", "APPLY_TO_ITEMS", percent=effect.percent, items=effect.items)
    return Discount("AMOUNT", amount_effect, amount=minor(effect.amount or Decimal(0)), items=effect.items)


def _off_order(effect: rulebook.OffOrder) -> Discount | None:
    if effect.scope == "costs":
        return None
    if effect.percent is not None:
        return Discount("PERCENT", "APPLY_TO_ORDER", percent=effect.percent)
    return Discount("AMOUNT", "APPLY_TO_ORDER", amount=minor(effect.amount or Decimal(0)))


def _off_cost(effect: rulebook.OffCost) -> Discount | None:
    if effect.cost != "shipping":
        return None
    if effect.percent == 100:
        unit = Unit("ADD_MISSING_ITEMS", 1, SHIPPING_SOURCE)
        return Discount("UNIT", unit.effect, units=(unit,))
    if effect.percent is not None:
        return Discount("PERCENT", "APPLY_TO_ITEMS", percent=effect.percent, shipping=True)
    return Discount("AMOUNT", "APPLY_TO_ITEMS", amount=minor(effect.amount or Decimal(0)), shipping=True)


_EXPRESS: Final[dict[type, Callable[[Any], Discount | None]]] = {
    rulebook.OffUnits: _off_units,
    rulebook.OffLines: lambda effect: _amount_or_percent(effect, "APPLY_TO_ITEMS"),
    rulebook.OffItemsProRata: lambda effect: _amount_or_percent(effect, "APPLY_TO_ITEMS_PROPORTIONALLY"),
    rulebook.OffOrder: _off_order,
    rulebook.ReplaceUnits: _replace_units,
    rulebook.OffCost: _off_cost,
}
