"""Talon.One's Integration API, emulated: customer sessions on the sandbox's rule book.

Written from the vendor's documentation alone. It never imports the adapter beside it: a field that one of them misreads
must not be misread twice.

    PUT /v2/customer_sessions/{id}[?dry=true]    update, close, cancel
    GET /v2/customer_sessions/{id}
    PUT /v2/customer_sessions/{id}/reopen

Documented at https://docs.talon.one/integration-api. What the documents leave open is decided here, and said where.
"""

import asyncio
import random
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from functools import cached_property
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mapper import money, rulebook
from mapper.rulebook import Campaign, Coupon, GiftCard, LoyaltyCard, Referral, RuleBook, RuleBookError
from mapper.sandbox import PAUSE, Now

Json = dict[str, Any]

_ACCOUNT_ID: Final = 7
_ZERO: Final = Decimal(0)
# Talon.One computes with doubles and does not round: 10 % of 99.99 is 9.999, a third of 10 has 16 digits.
_DOUBLE: Final = Context(prec=16)
_EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
_IDEMPOTENCY_TTL: Final = timedelta(hours=24)
_PARALLEL: Final = 3


class Options(rulebook.Table, frozen=True, kw_only=True):
    """`[engines.talon_one]` of the rule book."""

    application_id: int = 1
    idempotency_keys: bool = True
    flatten: bool = True
    unknown_fields: Literal["refuse", "ignore"] = "refuse"


# --- What a request may hold ------------------------------------------------------------------------------------------


class _Problems(list[Json]):
    """What is wrong with a request, as the API lists it."""

    def add(self, title: str, pointer: str, details: str) -> None:
        self.append({"title": title, "details": details, "source": {"pointer": pointer}})

    def wrong_type(self, pointer: str, expected: str) -> None:
        self.add("Invalid type", pointer, f"must be {expected}")

    def wrong_value(self, pointer: str, expected: str) -> None:
        self.add("Invalid value", pointer, f"must {expected}")


Check = Callable[[Any, str, _Problems], None]


def _text(least: int = 0, most: int | None = None, pattern: str = "") -> Check:
    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if not isinstance(value, str):
            problems.wrong_type(pointer, "a string")
        elif len(value) < least:
            problems.wrong_value(pointer, f"have at least {least} characters")
        elif most is not None and len(value) > most:
            problems.wrong_value(pointer, f"have at most {most} characters")
        elif pattern and not re.fullmatch(pattern, value):
            problems.wrong_value(pointer, f"match {pattern}")

    return check


def _integer(least: int | None = None) -> Check:
    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            problems.wrong_type(pointer, "an integer")
        elif least is not None and value < least:
            problems.wrong_value(pointer, f"be at least {least}")

    return check


def _number(value: Any, pointer: str, problems: _Problems) -> None:
    try:
        money.from_engine(value)
    except money.NotMoney:
        problems.wrong_type(pointer, "a number")


def _boolean(value: Any, pointer: str, problems: _Problems) -> None:
    if not isinstance(value, bool):
        problems.wrong_type(pointer, "a boolean")


def _moment(value: Any, pointer: str, problems: _Problems) -> None:
    if not isinstance(value, str) or _time(value) is None:
        problems.wrong_type(pointer, "an RFC3339 time")


def _object(value: Any, pointer: str, problems: _Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(pointer, "an object")


def _one_of(*words: str) -> Check:
    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if value not in words:
            problems.wrong_value(pointer, f"be one of {', '.join(words)}")

    return check


def _each(element: Check, most: int | None = None) -> Check:
    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if not isinstance(value, list):
            problems.wrong_type(pointer, "an array")
        elif most is not None and len(value) > most:
            problems.wrong_value(pointer, f"have at most {most} elements")
        else:
            for i, part in enumerate(value):
                element(part, f"{pointer}/{i}", problems)

    return check


def _named(fields: dict[str, Check]) -> Check:
    """An object whose names have been created in the account: an unknown one is refused."""

    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(pointer, "an object")
            return
        for name, part in value.items():
            spot = f"{pointer}/{_escaped(name)}"
            if name in fields:
                fields[name](part, spot, problems)
            else:
                problems.add("Unknown", spot, f"{name} does not exist")

    return check


def _record(fields: dict[str, Check], required: Iterable[str] = (), *, strict: bool) -> Check:
    def check(value: Any, pointer: str, problems: _Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(pointer, "an object")
            return
        for name in required:
            if name not in value:
                problems.add("Missing", f"{pointer}/{name}", "is required")
        for name, part in value.items():
            spot = f"{pointer}/{_escaped(name)}"
            if name in fields:
                fields[name](part, spot, problems)
            elif strict:
                problems.add("Unknown", spot, "this field is not documented")

    return check


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


_ATTRIBUTE: Final[dict[str, Check]] = {
    "string": _text(),
    "number": _number,
    "boolean": _boolean,
    "time": _moment,
    "list of strings": _each(_text()),
}
_CONTENT: Final = (
    "customerSession",
    "customerProfile",
    "coupons",
    "triggeredCampaigns",
    "referral",
    "loyalty",
    "event",
    "awardedGiveaways",
    "ruleFailureReasons",
    "previousReturns",
    "campaignEligibility",
    "achievements",
)
_STATES: Final = ("open", "closed", "partially_returned", "cancelled")
_CARD: Final = r"[A-Za-z0-9._%+@-]+"


def _session_check(book: RuleBook, *, strict: bool) -> Check:
    """What `customerSession` may hold: the schema NewCustomerSessionV2, and the names this rule book created."""
    settings = book.settings

    def costs(scope: str) -> Check:
        cost = _record({"price": _number}, ("price",), strict=strict)
        return _named({name: cost for name, where in settings.costs.items() if where in (scope, "both")})

    def attributes(types: dict[str, Any]) -> Check:
        return _named({name: _ATTRIBUTE[kind] for name, kind in types.items()})

    item = _record(
        {
            "name": _text(),
            "sku": _text(1),
            "quantity": _integer(1),
            "price": _number,
            "category": _text(),
            "product": _record({"name": _text()}, ("name",), strict=strict),
            **dict.fromkeys(("weight", "height", "width", "length", "position"), _number),
            **dict.fromkeys(("returnedQuantity", "remainingQuantity", "catalogItemID"), _integer()),
            "attributes": attributes(settings.item_attributes),
            "additionalCosts": costs("item"),
        },
        # There is no catalog here, so the price is required.
        ("sku", "quantity", "price"),
        strict=strict,
    )
    allocation = _record(
        {"experimentID": _integer(), "variantID": _integer()}, ("experimentID", "variantID"), strict=strict
    )
    return _record(
        {
            "profileId": _text(most=1000),
            "storeIntegrationId": _one_of(*settings.stores) if settings.stores else _text(1, 1000),
            "evaluableCampaignIds": _each(_integer()),
            "couponCodes": _each(_text(most=100)),
            "referralCode": _text(most=100),
            "loyaltyCards": _each(_text(4, 108, _CARD), most=1),
            "state": _one_of(*_STATES),
            "cartItems": _each(item, most=1000),
            "experimentVariantAllocations": _each(allocation),
            "additionalCosts": costs("order"),
            "identifiers": _each(_text(), most=5),
            "attributes": attributes(settings.session_attributes),
        },
        strict=strict,
    )


def _time(text: str) -> datetime | None:
    try:
        return msgspec.convert(text, rulebook.Moment)
    except msgspec.ValidationError:
        return None


# --- What the engine remembers ----------------------------------------------------------------------------------------


@dataclass
class _Grants:
    """What a closed session took, so that it can be taken back."""

    profile: str = ""
    codes: list[tuple[str, str, int]] = field(default_factory=list)
    """Kind, code, campaign."""
    campaigns: list[int] = field(default_factory=list)
    spent: dict[int, Decimal] = field(default_factory=dict)
    """Discount by campaign."""
    balances: dict[str, Decimal] = field(default_factory=dict)
    points: dict[str, Decimal] = field(default_factory=dict)


@dataclass
class _Session:
    id: int
    integration_id: str
    created: datetime
    updated: datetime
    first: bool = True
    updates: int = 0
    state: str = "open"
    closes: int = 0
    """How often it was closed; no reply shows it."""
    data: Json = field(
        default_factory=lambda: {
            "profileId": "",
            "couponCodes": [],
            "referralCode": "",
            "loyaltyCards": [],
            "cartItems": [],
            "additionalCosts": {},
            "identifiers": [],
            "attributes": {},
        }
    )
    effects: list[Json] = field(default_factory=list)
    """Those that are valid now."""
    grants: _Grants | None = None

    def merge(self, given: Json) -> None:
        """PUT is a merge: what is not sent stays, what is sent replaces. Attributes are kept one by one."""
        fields = {name: value for name, value in given.items() if name not in ("state", "evaluableCampaignIds")}
        attributes = self.data["attributes"] | fields.pop("attributes", {})
        self.data = self.data | fields | {"attributes": attributes}


@dataclass
class _Profile:
    id: int
    created: datetime
    active: datetime
    closed: int = 0
    sales: Decimal = _ZERO


class _Books:
    """Everything that outlives a request."""

    def __init__(self, book: RuleBook) -> None:
        self.sessions: dict[str, _Session] = {}
        self.profiles: dict[str, _Profile] = {}
        self.uses: Counter[str] = Counter()
        for entry in book.entries:
            if isinstance(entry, Coupon | Referral) and entry.code and entry.used:
                self.uses[entry.code] = entry.used
        self.uses_by: Counter[tuple[str, str]] = Counter()
        """Code and customer."""
        self.referred: Counter[str] = Counter()
        self.redeemed: Counter[int] = Counter()
        self.redeemed_by: Counter[tuple[int, str]] = Counter()
        self.spent: dict[int, Decimal] = {}
        self.balances = {card.code: Decimal(card.balance) for card in book.gift_cards}
        self.points = {card.code: Decimal(card.points) for card in book.loyalty_cards}
        self.log: list[Json] = []

    def book(self, session: _Session, grants: _Grants, now: datetime, *, sign: Literal[1, -1]) -> None:
        """Counts what a session took (1), or takes it back (-1)."""
        for kind, code, campaign in grants.codes:
            self.uses[code] += sign
            self.uses_by[code, grants.profile] += sign
            if kind == "referral" and grants.profile:
                self.referred[grants.profile] += sign
            what = "redeemed" if sign == 1 else "rolled back"
            entry = {"session": session.integration_id, "kind": kind, "code": code, "campaign": campaign}
            self.log.append(entry | {"what": what, "at": now})
        for campaign in grants.campaigns:
            self.redeemed[campaign] += sign
            self.redeemed_by[campaign, grants.profile] += sign
        for campaign, value in grants.spent.items():
            self.spent[campaign] = self.spent.get(campaign, _ZERO) + sign * value
        for code, value in grants.balances.items():
            self.balances[code] -= sign * value
        for code, value in grants.points.items():
            self.points[code] += sign * value


# --- The rules --------------------------------------------------------------------------------------------------------

# Why a code is refused: the word for a coupon, and for a referral code.
_REASONS: Final[dict[str, tuple[str, str]]] = {
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


class _Refused(Exception):
    """A campaign does not apply. `reason` is a key of `_REASONS`; `props` are those the effect adds."""

    def __init__(self, reason: str, **props: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.props = props


@dataclass(frozen=True, eq=False)
class _Unit:
    """One unit of a line. Two units are never the same, however equal they look."""

    position: int
    sub: int
    sku: str
    category: str
    price: Decimal
    costs: dict[str, Decimal]


class _Cart:
    """A session as the rules see it: lines taken apart into units."""

    def __init__(self, data: Json) -> None:
        self.profile: str = data["profileId"]
        self.store: str = data.get("storeIntegrationId", "")
        self.attributes: Json = data["attributes"]
        self.costs = _costs(data["additionalCosts"])
        self.units = [
            _Unit(
                position,
                sub,
                item["sku"],
                item.get("category", ""),
                Decimal(item["price"]),
                _costs(item.get("additionalCosts", {})),
            )
            for position, item in enumerate(data["cartItems"])
            for sub in range(item["quantity"])
        ]

    @cached_property
    def items_total(self) -> Decimal:
        return money.total([unit.price for unit in self.units])

    @cached_property
    def item_costs_total(self) -> Decimal:
        return money.total([price for unit in self.units for price in unit.costs.values()])

    @cached_property
    def costs_total(self) -> Decimal:
        return money.total(list(self.costs.values()))


def _costs(given: Json) -> dict[str, Decimal]:
    return {name: Decimal(cost["price"]) for name, cost in given.items()}


@dataclass
class _Left:
    """What is left to take off: of each unit, each cost, and of all items after discounts on the order."""

    units: dict[tuple[int, int], Decimal]
    costs: dict[str, Decimal]
    item_costs: dict[tuple[int, int, str], Decimal]
    off_order: dict[str, Decimal] = field(default_factory=dict)
    """By scope."""

    @classmethod
    def of(cls, cart: _Cart) -> "_Left":
        return cls(
            {(unit.position, unit.sub): unit.price for unit in cart.units},
            dict(cart.costs),
            {(unit.position, unit.sub, name): price for unit in cart.units for name, price in unit.costs.items()},
        )

    def copy(self) -> "_Left":
        return _Left(dict(self.units), dict(self.costs), dict(self.item_costs), dict(self.off_order))

    def order(self, scope: str) -> Decimal:
        """What is left of the order: of its items, its costs or both. Nothing is worth less than nothing."""
        items = money.total([max(_ZERO, price) for price in self.units.values()]) if scope != "costs" else _ZERO
        costs = [*self.costs.values(), *self.item_costs.values()] if scope != "items" else []
        taken = _ZERO if scope == "costs" else self.off_order.get("items", _ZERO)
        taken += _ZERO if scope == "items" else self.off_order.get("costs", _ZERO)
        taken += self.off_order.get("items_and_costs", _ZERO)
        return max(_ZERO, items + money.total(costs) - taken)


@dataclass(frozen=True)
class _Candidate:
    """A campaign that may apply, and the code that brought it."""

    campaign: Campaign
    kind: rulebook.Needs
    code: str = ""
    coupon_id: int | None = None

    @property
    def competes(self) -> bool:
        """Whether it counts where campaigns of codes exclude each other; a gift card is a means of payment."""
        return self.kind in ("coupon", "referral")


class _Trial:
    """One campaign tried on a cart: its effects, and what it would take."""

    def __init__(self, candidate: _Candidate, run: "_Run", left: _Left) -> None:
        self.candidate = candidate
        self.run = run
        self.left = left
        # Without cascading discounts every campaign computes on list prices.
        self.base = left if run.book.settings.cascading_discounts else run.untouched
        self.effects: list[tuple[str, Json]] = []
        self.given = _ZERO
        self.balance = _ZERO
        self.points = _ZERO
        self._effect_index = 0

    def attempt(self) -> "_Trial":
        """Raises `_Refused`."""
        self._limit()
        self._conditions()
        for i, effect in enumerate(self.candidate.campaign.effects):
            self._effect_index = i
            _EFFECTS[type(effect)](self, effect)
        return self

    def _limit(self) -> None:
        """Several codes of one campaign in one cart share its limit."""
        campaign, run = self.candidate.campaign, self.run
        taken = run.books.redeemed[campaign.id] + run.grants.campaigns.count(campaign.id)
        if campaign.limits.redemptions is not None and taken >= campaign.limits.redemptions:
            raise _Refused("campaign used up")

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
            raise _Refused("condition", conditionIndex=index, details=f"condition {index} of the rule does not hold")

    def give(self, desired: Decimal) -> Decimal:
        """How much of a discount the campaign's budget allows. Raises `_Refused` where that is nothing."""
        campaign, books = self.candidate.campaign, self.run.books
        value = desired
        if campaign.limits.budget is not None:
            spent = books.spent.get(campaign.id, _ZERO) + self.run.grants.spent.get(campaign.id, _ZERO)
            left = campaign.limits.budget - spent - self.given
            if desired > left and (left <= 0 or not self.run.book.settings.partial_rewards):
                raise _Refused("effect", effectIndex=self._effect_index, details="the budget is used up")
            value = min(desired, left)
        self.given += value
        return value

    def fail(self, details: str) -> None:
        raise _Refused("effect", effectIndex=self._effect_index, details=details)

    def add(self, kind: str, **props: Any) -> None:
        self.effects.append((kind, {name: value for name, value in props.items() if value is not None}))

    def title(self, effect: rulebook.Effect) -> str:
        return effect.name or self.candidate.campaign.name

    def desired(self, value: Decimal) -> Any:
        """Only shown with partial rewards."""
        return _number_of(value) if self.run.book.settings.partial_rewards else None

    def meant(self, items: rulebook.Items) -> list[_Unit]:
        return [unit for unit in self.run.cart.units if items.match(unit.sku, unit.category, unit.price)]


def _off_units(trial: _Trial, effect: rulebook.OffUnits) -> None:
    wanted = {
        unit: effect.of(max(_ZERO, trial.base.units[unit.position, unit.sub])) for unit in trial.meant(effect.items)
    }
    _take_off_units(trial, effect, wanted)


def _off_lines(trial: _Trial, effect: rulebook.OffLines) -> None:
    lines: dict[int, list[_Unit]] = {}
    for unit in trial.meant(effect.items):
        lines.setdefault(unit.position, []).append(unit)
    wanted: dict[_Unit, Decimal] = {}
    for units in lines.values():
        whole = money.total([trial.base.units[unit.position, unit.sub] for unit in units])
        share = _DOUBLE.divide(effect.of(max(_ZERO, whole)), Decimal(len(units)))
        wanted |= dict.fromkeys(units, share)
    _take_off_units(trial, effect, wanted)


def _off_pro_rata(trial: _Trial, effect: rulebook.OffItemsProRata) -> None:
    prices = {unit: max(_ZERO, trial.base.units[unit.position, unit.sub]) for unit in trial.meant(effect.items)}
    whole = money.total(list(prices.values()))
    if not whole:
        return
    total = effect.of(whole)
    wanted = {unit: _DOUBLE.divide(_DOUBLE.multiply(total, price), whole) for unit, price in prices.items()}
    _take_off_units(trial, effect, wanted, total)


def _take_off_units(
    trial: _Trial, effect: rulebook.Effect, wanted: dict[_Unit, Decimal], total: Decimal | None = None
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
            before = given.get(key, (_ZERO, _ZERO))
            given[key] = (before[0] + value, before[1] + desired)
    cut = money.total([desired - value for value, desired in given.values()])
    for (position, sub), (value, desired) in given.items():
        trial.add(
            "setDiscountPerItem",
            name=f"{trial.title(effect)}#{position}",
            value=_number_of(value),
            position=position,
            subPosition=sub,
            desiredValue=trial.desired(desired),
            scope="price",
            totalDiscount=None if total is None else _number_of(total - cut),
            desiredTotalDiscount=None if total is None else trial.desired(total),
        )


_SCOPES: Final = {"items": "cartItems", "costs": "additionalCosts", "items_and_costs": "sessionTotal"}


def _off_order(trial: _Trial, effect: rulebook.OffOrder) -> None:
    _take_off_order(trial, trial.title(effect), effect.of(trial.base.order(effect.scope)), effect.scope)


def _take_off_order(trial: _Trial, name: str, desired: Decimal, scope: str) -> Decimal:
    if desired <= 0:
        return _ZERO
    value = trial.give(desired)
    trial.left.off_order[scope] = trial.left.off_order.get(scope, _ZERO) + value
    trial.add(
        "setDiscount",
        name=name,
        value=_number_of(value),
        scope=_SCOPES[scope] if trial.run.book.settings.cascading_discounts else None,
        desiredValue=trial.desired(desired),
    )
    return value


def _off_cost(trial: _Trial, effect: rulebook.OffCost) -> None:
    desired = effect.of(max(_ZERO, trial.base.costs.get(effect.cost, _ZERO)))
    if desired <= 0:
        return
    value = trial.give(desired)
    trial.left.costs[effect.cost] -= value
    trial.add(
        "setDiscountPerAdditionalCost",
        name=trial.title(effect),
        additionalCostId=trial.run.cost_id(effect.cost),
        additionalCost=effect.cost,
        value=_number_of(value),
        desiredValue=trial.desired(desired),
    )


def _off_item_cost(trial: _Trial, effect: rulebook.OffItemCost) -> None:
    if any(effect.cost not in unit.costs for unit in trial.run.cart.units):
        # "If one or more items do not have an additional cost, the rule will fail."
        trial.fail(f"not every item has the additional cost {effect.cost}")
    for unit in trial.run.cart.units:
        key = (unit.position, unit.sub, effect.cost)
        desired = effect.of(max(_ZERO, trial.base.item_costs[key]))
        if desired > 0:
            value = trial.give(desired)
            trial.left.item_costs[key] -= value
            trial.add(
                "setDiscountPerAdditionalCostPerItem",
                name=f"{trial.title(effect)}#{unit.position}",
                additionalCostId=trial.run.cost_id(effect.cost),
                additionalCost=effect.cost,
                value=_number_of(value),
                position=unit.position,
                subPosition=unit.sub,
                desiredValue=trial.desired(desired),
            )


def _free_item(trial: _Trial, effect: rulebook.FreeItem) -> None:
    for _ in range(effect.quantity):
        trial.add("addFreeItem", sku=effect.sku, name=trial.title(effect))


def _message(trial: _Trial, effect: rulebook.Message) -> None:
    trial.add("showNotification", notificationType=effect.level.title(), title=effect.title, body=effect.text)


def _custom(trial: _Trial, effect: rulebook.Custom) -> None:
    payload = msgspec.to_builtins(effect.payload)
    trial.add("customEffect", effectId=trial.candidate.campaign.id, name=trial.title(effect), payload=payload)


def _earn_points(trial: _Trial, effect: rulebook.EarnPoints) -> None:
    points = trial.run.cart.items_total // effect.per * effect.points
    if points > 0:
        trial.points += points
        trial.add(
            "addLoyaltyPoints",
            name=trial.title(effect),
            programId=trial.run.program_of(trial.candidate.code),
            subLedgerId="",
            value=_number_of(points),
            recipientIntegrationId=trial.run.cart.profile,
            transactionUUID=trial.run.uuid(trial.candidate.code, "add"),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_points(trial: _Trial, effect: rulebook.PayWithPoints) -> None:
    card = trial.candidate.code
    have = trial.run.books.points[card] + min(_ZERO, trial.run.grants.points.get(card, _ZERO))
    worth = min(have * effect.value, trial.left.order("items"))
    value = _take_off_order(trial, trial.title(effect), worth, "items")
    if value > 0:
        points = _DOUBLE.divide(value, effect.value)
        trial.points -= points
        trial.add(
            "deductLoyaltyPoints",
            ruleTitle=trial.candidate.campaign.name,
            programId=trial.run.program_of(trial.candidate.code),
            subLedgerId="",
            value=_number_of(points),
            transactionUUID=trial.run.uuid(trial.candidate.code, "deduct"),
            name=trial.title(effect),
            cardIdentifier=trial.candidate.code,
        )


def _pay_with_balance(trial: _Trial, effect: rulebook.PayWithBalance) -> None:
    have = trial.run.books.balances[trial.candidate.code]
    if have <= 0:
        trial.fail("the discount limit of the coupon is reached")
    trial.balance = _take_off_order(trial, trial.title(effect), min(have, trial.left.order("items")), "items")


_EFFECTS: Final[dict[type, Callable[[_Trial, Any], None]]] = {
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


def _number_of(value: Decimal) -> int | Decimal:
    """A number as the API writes it: with the digits of a double, without trailing zeros."""
    rounded = _DOUBLE.plus(value)
    return int(rounded) if rounded == rounded.to_integral_value() else rounded.normalize()


class _Run:
    """The rule engine run once over a session. It changes nothing: what it grants is booked by whoever closes."""

    def __init__(
        self,
        book: RuleBook,
        books: _Books,
        options: Options,
        session: _Session,
        now: datetime,
        evaluable: list[int] | None = None,
    ) -> None:
        self.book = book
        self.books = books
        self.options = options
        self.session = session
        self.now = now
        self.evaluable = evaluable
        """Only these campaigns, even if they are switched off; for dry requests."""
        self.cart = _Cart(session.data)
        self.untouched = _Left.of(self.cart)
        self.effects: list[Json] = []
        self.failures: list[Json] = []
        self.grants = _Grants(profile=self.cart.profile)
        self.triggered: list[Campaign] = []
        self.coupons: list[tuple[str, Coupon | GiftCard]] = []
        self.referral: Referral | None = None

    # What effects need to know.

    def cost_id(self, name: str) -> int:
        return list(self.book.settings.costs).index(name) + 1

    def program_of(self, card: str) -> int:
        found = self.book.find(card)
        return found[1].program if found and isinstance(found[1], LoyaltyCard) else 0

    def uuid(self, *parts: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join((self.session.integration_id, *parts))))

    # The run.

    def go(self) -> "_Run":
        candidates = [*self._by_coupon(), *self._by_referral(), *self._by_card(), *self._automatic()]
        candidates.sort(key=lambda candidate: (candidate.campaign.priority, candidate.campaign.id))
        best = self._best(candidates)
        left = self.untouched.copy()
        applied: list[_Candidate] = []
        for candidate in candidates:
            trial = _Trial(candidate, self, left.copy())
            try:
                self._compete(candidate, applied, best)
                trial.attempt()
            except _Refused as refused:
                self._refuse(candidate, refused)
                continue
            left = trial.left
            applied.append(candidate)
            self._accept(trial)
        # "The order of effects in the array means nothing": nobody shall come to rely on one.
        random.Random(self.session.integration_id).shuffle(self.effects)  # noqa: S311 - repeatable, nothing secret
        return self

    def _compete(self, candidate: _Candidate, applied: list[_Candidate], best: dict[str, int]) -> None:
        """Campaigns of codes that exclude each other. Raises `_Refused`."""
        campaign = candidate.campaign
        if campaign.best_of and best.get(campaign.best_of, campaign.id) != campaign.id:
            raise _Refused("excluded", campaignExclusionReason="CampaignGaveLowerDiscount")
        rivals = [other for other in applied if other.competes] if candidate.competes else []
        if rivals and not (campaign.combinable and all(rival.campaign.combinable for rival in rivals)):
            raise _Refused("excluded", campaignExclusionReason="CampaignIsNotFirst")

    def _best(self, candidates: list[_Candidate]) -> dict[str, int]:
        """For each word of `best_of`, the campaign that gives the most when it is alone."""
        given: dict[str, dict[int, Decimal]] = {}
        for candidate in candidates:
            if candidate.campaign.best_of:
                try:
                    trial = _Trial(candidate, self, self.untouched.copy()).attempt()
                except _Refused:
                    continue
                group = given.setdefault(candidate.campaign.best_of, {})
                group[candidate.campaign.id] = max(trial.given, group.get(candidate.campaign.id, _ZERO))
        return {word: max(group, key=lambda id_: group[id_]) for word, group in given.items()}

    def _by_coupon(self) -> Iterator[_Candidate]:
        seen = set()
        for entered in self.session.data["couponCodes"]:
            if entered.casefold() in seen:
                continue
            seen.add(entered.casefold())
            found = self.book.find(entered)
            if found is None or not isinstance(found[1], Coupon | GiftCard):
                self._reject("coupon", entered, None, None, _Refused("unknown"))
                continue
            code, entry = found
            assert isinstance(entry, Coupon | GiftCard)
            kind: rulebook.Needs = "coupon" if isinstance(entry, Coupon) else "gift_card"
            candidate = _Candidate(self.book.campaign[entry.campaign], kind, code, self.coupon_id(code, entry))
            self.coupons.append((code, entry))
            try:
                self._check_coupon(candidate, entry)
            except _Refused as refused:
                self._refuse(candidate, refused)
            else:
                yield candidate

    def coupon_id(self, code: str, entry: Coupon | GiftCard) -> int:
        """A number for each code, also for each of a family."""
        if isinstance(entry, GiftCard):
            return 900_000_000 + self.book.gift_cards.index(entry)
        base = (self.book.coupons.index(entry) + 1) * 1_000_000
        return base + (int(code[-entry.family.width :]) if entry.family else 0)

    def _check_coupon(self, candidate: _Candidate, entry: Coupon | GiftCard) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if isinstance(entry, Coupon):
            profile = self.cart.profile
            if entry.customer and entry.customer != profile:
                raise _Refused("recipient")
            used = self.books.uses[candidate.code] + (entry.used if entry.family else 0)
            if entry.uses is not None and used >= entry.uses:
                raise _Refused("used up")
            if entry.uses_per_customer is not None:
                self._check_profile(self.books.uses_by[candidate.code, profile], entry.uses_per_customer)
        self._check_profile_limit(candidate.campaign)

    def _check_campaign(self, campaign: Campaign) -> None:
        if self.evaluable is not None:
            if campaign.id not in self.evaluable:
                raise _Refused("excluded", campaignExclusionReason="CampaignNotInEvaluationSet")
        elif not campaign.running(self.now):
            raise _Refused("not running")

    def _check_dates(self, entry: Coupon | GiftCard | Referral) -> None:
        if entry.starts and self.now < entry.starts:
            raise _Refused("future")
        if entry.ends and self.now >= entry.ends:
            raise _Refused("expired")

    def _check_profile(self, used: int, limit: int) -> None:
        if not self.cart.profile:
            raise _Refused("profile missing")
        if used >= limit:
            raise _Refused("profile used up")

    def _check_profile_limit(self, campaign: Campaign) -> None:
        limit = campaign.limits.redemptions_per_customer
        if limit is not None:
            self._check_profile(self.books.redeemed_by[campaign.id, self.cart.profile], limit)

    def _by_referral(self) -> Iterator[_Candidate]:
        entered = self.session.data["referralCode"]
        if not entered:
            return
        found = self.book.find(entered)
        if found is None or not isinstance(found[1], Referral):
            self._reject("referral", entered, None, None, _Refused("unknown"))
            return
        code, entry = found
        assert isinstance(entry, Referral)
        self.referral = entry
        candidate = _Candidate(self.book.campaign[entry.campaign], "referral", code)
        try:
            self._check_referral(candidate, entry)
        except _Refused as refused:
            self._refuse(candidate, refused)
        else:
            yield candidate

    def _check_referral(self, candidate: _Candidate, entry: Referral) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if entry.uses is not None and self.books.uses[candidate.code] >= entry.uses:
            raise _Refused("used up")
        if self.cart.profile and self.cart.profile == entry.advocate:
            raise _Refused("own")
        if entry.friend and entry.friend != self.cart.profile:
            raise _Refused("recipient")
        if self.books.referred[self.cart.profile]:
            raise _Refused("referred")
        self._check_profile_limit(candidate.campaign)

    def _by_card(self) -> Iterator[_Candidate]:
        for entered in self.session.data["loyaltyCards"]:
            found = self.book.find(entered)
            if found is None or not isinstance(found[1], LoyaltyCard):
                continue
            code, card = found
            assert isinstance(card, LoyaltyCard)
            if not card.active or (card.customer and card.customer != self.cart.profile):
                continue
            for id_ in self.book.program[card.program].campaigns:
                candidate = _Candidate(self.book.campaign[id_], "loyalty_card", code)
                try:
                    self._check_campaign(candidate.campaign)
                    self._check_profile_limit(candidate.campaign)
                except _Refused as refused:
                    self._refuse(candidate, refused)
                else:
                    yield candidate

    def _automatic(self) -> Iterator[_Candidate]:
        for campaign in self.book.campaigns:
            if campaign.needs == "nothing":
                candidate = _Candidate(campaign, "nothing")
                try:
                    self._check_campaign(campaign)
                    self._check_profile_limit(campaign)
                except _Refused as refused:
                    self._refuse(candidate, refused)
                else:
                    yield candidate

    # What comes of it.

    def _accept(self, trial: _Trial) -> None:
        candidate, campaign = trial.candidate, trial.candidate.campaign
        if candidate.kind in ("coupon", "gift_card"):
            self._add(candidate, "acceptCoupon", {"value": candidate.code})
        if candidate.kind == "referral":
            self._add(candidate, "acceptReferral", {"value": candidate.code})
        for kind, props in trial.effects:
            self._add(candidate, kind, props)
        self.triggered.append(campaign)
        self.grants.campaigns.append(campaign.id)
        if candidate.kind in ("coupon", "gift_card", "referral"):
            self.grants.codes.append((candidate.kind, candidate.code, campaign.id))
        self.grants.spent[campaign.id] = self.grants.spent.get(campaign.id, _ZERO) + trial.given
        if trial.balance:
            self.grants.balances[candidate.code] = trial.balance
        if trial.points:
            self.grants.points[candidate.code] = self.grants.points.get(candidate.code, _ZERO) + trial.points

    def _refuse(self, candidate: _Candidate, refused: _Refused) -> None:
        campaign = candidate.campaign
        if candidate.kind in ("coupon", "gift_card"):
            self._reject("coupon", candidate.code, campaign, candidate.coupon_id, refused)
        if candidate.kind == "referral":
            self._reject("referral", candidate.code, campaign, None, refused)
        failure: Json = {
            "campaignID": campaign.id,
            "campaignName": campaign.name,
            "rulesetID": _ruleset(campaign),
            "ruleIndex": 0,
            "ruleName": campaign.name,
            "details": refused.reason,
            "evaluationGroupID": 1,
            "evaluationGroupMode": "stackable",
        } | {
            name: refused.props[name] for name in ("conditionIndex", "effectIndex", "details") if name in refused.props
        }
        if candidate.coupon_id is not None:
            failure |= {"couponID": candidate.coupon_id, "couponValue": candidate.code}
        if candidate.kind == "referral":
            failure["referralValue"] = candidate.code
        self.failures.append(failure)

    def _reject(
        self, kind: str, code: str, campaign: Campaign | None, coupon_id: int | None, refused: _Refused
    ) -> None:
        coupon_word, referral_word = _REASONS[refused.reason]
        candidate = None if campaign is None else _Candidate(campaign, "coupon", code, coupon_id)
        effect = "rejectCoupon" if kind == "coupon" else "rejectReferral"
        word = coupon_word if kind == "coupon" else referral_word
        self._add(candidate, effect, {"value": code, "rejectionReason": word} | refused.props)

    def _add(self, candidate: _Candidate | None, kind: str, props: Json) -> None:
        """An effect in its envelope. Effects of no campaign carry -1."""
        if candidate is None:
            envelope: Json = {"campaignId": -1, "rulesetId": -1, "ruleIndex": 0, "ruleName": ""}
        else:
            campaign = candidate.campaign
            envelope = {
                "campaignId": campaign.id,
                "rulesetId": _ruleset(campaign),
                "ruleIndex": 0,
                "ruleName": campaign.name,
                "evaluationGroupID": 1,
                "evaluationGroupMode": "stackable",
            }
            if candidate.coupon_id is not None:
                envelope["triggeredByCoupon"] = candidate.coupon_id
        self.effects.append(envelope | {"effectType": kind, "props": props})


def _ruleset(campaign: Campaign) -> int:
    return 1000 + campaign.id


# --- Taking back ------------------------------------------------------------------------------------------------------


def _rollbacks(effects: list[Json]) -> tuple[list[Json], list[Json]]:
    """The effects that take these back, and those that nothing takes back."""
    back, stay = [], []
    for effect in effects:
        roll = _ROLLBACKS.get(effect["effectType"])
        if roll is None:
            if not effect["effectType"].startswith("reject"):
                stay.append(effect)
            continue
        kind, names = roll
        props = {new: effect["props"][old] for old, new in names.items() if old in effect["props"]}
        if kind == "rollbackDeductedLoyaltyPoints":
            props.setdefault("recipientIntegrationId", "")
        back.append(effect | {"effectType": kind, "props": props})
    return back, stay


_OF_DISCOUNT: Final = {
    "name": "name",
    "value": "value",
    "scope": "scope",
    "position": "cartItemPosition",
    "subPosition": "cartItemSubPosition",
    "additionalCostId": "additionalCostId",
    "additionalCost": "additionalCost",
}
_OF_POINTS: Final = {
    name: name
    for name in (
        "programId",
        "subLedgerId",
        "value",
        "recipientIntegrationId",
        "transactionUUID",
        "cartItemPosition",
        "cartItemSubPosition",
        "cardIdentifier",
    )
}
_ROLLBACKS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "acceptCoupon": ("rollbackCoupon", {"value": "value"}),
    "acceptReferral": ("rollbackReferral", {"value": "value"}),
    "setDiscount": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerItem": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerAdditionalCost": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerAdditionalCostPerItem": ("rollbackDiscount", _OF_DISCOUNT),
    "addLoyaltyPoints": ("rollbackAddedLoyaltyPoints", _OF_POINTS),
    "deductLoyaltyPoints": ("rollbackDeductedLoyaltyPoints", _OF_POINTS),
}


# --- The API ----------------------------------------------------------------------------------------------------------


class _Error(Exception):
    """A reply that is not 200."""

    def __init__(self, status: int, message: str, errors: list[Json] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = _error_body(status, message, errors)


def _error_body(status: int, message: str, errors: list[Json] | None = None) -> Json:
    """ErrorResponse for 400, ErrorResponseWithStatus for the rest."""
    body: Json = {"message": message, "errors": errors or []}
    return body if status == 400 else body | {"StatusCode": status}


_MESSAGES: Final = {
    401: "Invalid API key",
    404: "Not found",
    405: "Method not allowed",
    409: "Too many requests are updating this session at the same time",
    429: "Too many requests",
}


class _Turns:
    """For each session and profile one request runs, two wait, and the next is refused with 409."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def take(self, keys: list[tuple[str, str]]) -> AsyncIterator[None]:
        """`keys` are pairs of ("session" or "profile", id), in the one order that everybody uses."""
        names = [f"{kind}/{id_}" for kind, id_ in keys]
        for (kind, _), name in zip(keys, names, strict=True):
            if self._count[name] >= _PARALLEL:
                raise _Error(409, f"Too many requests are updating this {kind} at the same time")
        self._count.update(names)
        held: list[asyncio.Lock] = []
        try:
            for name in names:
                lock = self._locks.setdefault(name, asyncio.Lock())
                await lock.acquire()
                held.append(lock)
            yield
        finally:
            for lock in held:
                lock.release()
            for name in names:
                self._count[name] -= 1
                if not self._count[name]:
                    del self._count[name]
                    self._locks.pop(name, None)


class _SessionState(msgspec.Struct, frozen=True):
    state: str = "open"


class _Peek(msgspec.Struct, frozen=True):
    customerSession: _SessionState = _SessionState()  # noqa: N815 - the wire's spelling


_PEEK: Final = msgspec.json.Decoder(_Peek)
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_SESSIONS: Final = "/v2/customer_sessions/"


class TalonOneSandbox:
    """The emulator; see `mapper.sandbox.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        problems: list[rulebook.Problem] = []
        options = rulebook.read(book.engines.get("talon_one", {}), Options, "engines.talon_one", problems=problems)
        if problems:
            raise RuleBookError(problems)
        self._book = book
        self._now = now
        self._options: Options = options
        self._check = _session_check(book, strict=options.unknown_fields == "refuse")
        self.reset()

    def reset(self) -> None:
        self._books = _Books(self._book)
        self._turns = _Turns()
        self._ids = 0
        self._replays: dict[tuple[str, str], tuple[datetime, int, bytes]] = {}

    # How it looks from the host.

    def books(self) -> dict[str, Any]:
        books = self._books
        return {
            "sessions": {
                id_: {
                    "state": session.state,
                    "updates": session.updates,
                    "closes": session.closes,
                    "profile": session.data["profileId"],
                    "coupons": session.data["couponCodes"],
                    "items_total": _number_of(_Cart(session.data).items_total),
                    "effects": session.effects,
                }
                for id_, session in books.sessions.items()
            },
            "redemptions": list(books.log),
            "codes": {code: uses for code, uses in books.uses.items() if uses},
            "campaigns": {
                str(id_): {"redemptions": count, "discount": _number_of(books.spent.get(id_, _ZERO))}
                for id_, count in books.redeemed.items()
            },
            "gift_cards": {code: _number_of(balance) for code, balance in books.balances.items()},
            "loyalty_cards": {code: _number_of(points) for code, points in books.points.items()},
        }

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """read, reopen, dry, open, close, cancel; "other" for what the API does not have."""
        if _SESSIONS not in path:
            return "other"
        if method == "GET":
            return "read"
        if path.endswith("/reopen"):
            return "reopen"
        if "dry=true" in query:
            return "dry"
        try:
            state = _PEEK.decode(body).customerSession.state
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return "other"
        return {"closed": "close", "cancelled": "cancel"}.get(state, "open")

    def error(self, status: int) -> Any:
        return _error_body(status, _MESSAGES.get(status, "Internal server error"))

    def unknown_effect(self, reply: Any) -> Any:
        effect = {
            "campaignId": 1,
            "rulesetId": 1001,
            "ruleIndex": 0,
            "ruleName": "A rule of tomorrow",
            "effectType": "sandboxTeleportShopper",
            "props": {"name": "beam", "value": 12.5, "position": 0, "where": ["up", None]},
        }
        if isinstance(reply, dict) and isinstance(reply.get("effects"), list):
            return reply | {"effects": [effect, *reply["effects"]]}
        return reply

    # HTTP.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            status, body = await self._answer(request)
        except _Error as error:
            status, body = error.status, _ENCODER.encode(error.body)
        await Response(body, status, media_type="application/json")(scope, receive, send)

    async def _answer(self, request: Request) -> tuple[int, bytes]:
        id_, action = self._route(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        keys = self._book.settings.api_keys
        if scheme != "ApiKey-v1" or not key.strip() or (keys and key not in keys):
            raise _Error(401, _MESSAGES[401])
        pause: float = request.scope.get(PAUSE, 0)
        if action == "read":
            await asyncio.sleep(pause)
            return 200, _ENCODER.encode(self._read(id_))
        if action == "reopen":
            return await self._once(request, id_, "", pause, dry=False, work=lambda: self._reopen(id_))
        query = self._query(request)
        given = self._given(await request.body())
        session = given["customerSession"]
        stored = self._books.sessions.get(id_)
        profile = session.get("profileId", stored.data["profileId"] if stored else "")
        dry = query.get("dry") == "true"
        return await self._once(
            request, id_, profile, pause, dry=dry, work=lambda: self._update(id_, given, query, dry=dry)
        )

    def _route(self, request: Request) -> tuple[str, str]:
        """The session's id, decoded from exactly one segment of the path, and what is to be done with it."""
        raw = request.scope["raw_path"].decode("ascii", "replace")
        path = raw[len(request.scope.get("root_path", "")) :]
        id_, slash, rest = path.removeprefix(_SESSIONS).partition("/")
        try:
            decoded = unquote(id_, errors="strict")
        except UnicodeDecodeError:
            decoded = ""
        if not path.startswith(_SESSIONS) or decoded in ("", ".", "..") or (slash and rest != "reopen"):
            raise _Error(404, _MESSAGES[404])
        action = {("GET", ""): "read", ("PUT", ""): "update", ("PUT", "reopen"): "reopen"}.get((request.method, rest))
        if action is None:
            raise _Error(405, _MESSAGES[405])
        return decoded, action

    def _query(self, request: Request) -> dict[str, str]:
        pairs = parse_qsl(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
        query = dict(pairs)
        problems = []
        for name, value in pairs:
            wrong = (
                name not in ("dry", "now")
                or (name == "dry" and value not in ("true", "false"))
                or (name == "now" and (query.get("dry") != "true" or not self._is_future(value)))
            )
            if wrong:
                problems.append({"title": "Invalid parameter", "details": value, "source": {"parameter": name}})
        if problems:
            raise _Error(400, "The submitted data was invalid", problems)
        return query

    def _is_future(self, text: str) -> bool:
        moment = _time(text)
        return moment is not None and moment > self._now()

    def _given(self, body: bytes) -> Json:
        """The request's body, checked. Raises `_Error` 400 with everything that is wrong.

        Pointers start at the session, as the documented ones do: "/attributes/X", "/state".
        """
        try:
            given = _DECODER.decode(body)
        except (msgspec.DecodeError, ArithmeticError, RecursionError, UnicodeDecodeError):
            raise _Error(400, "The request body is not valid JSON") from None
        problems = _Problems()
        strict = self._options.unknown_fields == "refuse"
        content = _each(_one_of(*_CONTENT))
        wrapper = {"customerSession": _object, "responseContent": content}
        _record(wrapper, ("customerSession",), strict=strict)(given, "", problems)
        if not problems:
            session = given["customerSession"]
            self._check(session, "", problems)
            if not problems and sum(item["quantity"] for item in session.get("cartItems", [])) > 10_000:
                problems.wrong_value("/cartItems", "not exceed 10000 units in all")
            for i, code in enumerate(session.get("loyaltyCards", []) if not problems else []):
                found = self._book.find(code)
                if found is None or not isinstance(found[1], LoyaltyCard):
                    problems.add("Unknown", f"/loyaltyCards/{i}", "this loyalty card does not exist")
        if problems:
            raise _Error(400, "The submitted data was invalid", problems)
        return dict(given)

    async def _once(
        self, request: Request, id_: str, profile: str, pause: float, *, dry: bool, work: Callable[[], Json]
    ) -> tuple[int, bytes]:
        """Does the work when it is its turn, or replays what the same idempotency key got before.

        The documents say that responses are stored for 24 hours, not which: here it is what the rules answered, 200 or
        400, whatever the body of the repetition.
        """
        key = request.headers.get("idempotency-key", "")
        if len(key) > 255:
            raise _Error(400, "The idempotency key is longer than 255 characters")
        keyed = bool(key) and self._options.idempotency_keys and not dry
        place = (request.scope["raw_path"].decode("ascii", "replace"), key)
        async with self._turns.take([("session", id_)] + ([("profile", profile)] if profile else [])):
            await asyncio.sleep(pause)
            stored = self._replays.get(place)
            if keyed and stored is not None and stored[0] > self._now():
                return stored[1], stored[2]
            try:
                status, body = 200, _ENCODER.encode(work())
            except _Error as error:
                status, body = error.status, _ENCODER.encode(error.body)
            if keyed:
                self._replays[place] = (self._now() + _IDEMPOTENCY_TTL, status, body)
            return status, body

    # The three calls.

    def _read(self, id_: str) -> Json:
        session = self._books.sessions.get(id_)
        if session is None:
            # The specification lists no 404 for this call; its prose says "Check the resource path or ID".
            raise _Error(404, "Customer session not found")
        return {"customerSession": self._session_json(session), "effects": session.effects}

    def _reopen(self, id_: str) -> Json:
        session = self._books.sessions.get(id_)
        if session is None:
            raise _Error(404, "Customer session not found")
        if session.state != "closed":
            raise _cannot_move("open", session.state)
        back = self._take_back(session)
        session.state = "open"
        return {"effects": back}

    def _update(self, id_: str, given: Json, query: dict[str, str], *, dry: bool) -> Json:
        payload = given["customerSession"]
        target = payload.get("state", "open")
        now = self._now()
        # A dry request considers only what it carries, as if there were no session yet.
        stored = None if dry else self._books.sessions.get(id_)
        _check_move(stored.state if stored else None, target)
        session = stored or self._new_session(id_, payload.get("profileId", ""), now)
        content = set(given.get("responseContent", []))
        if target == "cancelled":
            back = self._take_back(session) if session.grants else []
            if not session.grants:
                session.effects = []
            session.state, session.updated, session.updates = "cancelled", now, session.updates + 1
            run = _Run(self._book, self._books, self._options, session, now)
            run.effects = back
            return self._reply(session, run, content)
        if dry and "now" in query:
            now = _time(query["now"]) or now
        session.merge(payload)
        session.state, session.updated, session.updates = target, now, session.updates + 1
        evaluable = payload.get("evaluableCampaignIds") if dry else None
        run = _Run(self._book, self._books, self._options, session, now, evaluable).go()
        session.effects = run.effects
        if not dry:
            self._books.sessions[id_] = session
            self._touch_profile(session, now)
            if target == "closed":
                self._close(session, run, now)
        return self._reply(session, run, content)

    def _new_session(self, id_: str, profile: str, now: datetime) -> _Session:
        self._ids += 1
        first = not profile or profile not in self._books.profiles
        return _Session(self._ids, id_, created=now, updated=now, first=first)

    def _touch_profile(self, session: _Session, now: datetime) -> None:
        """A profile nobody has seen before is created."""
        id_ = session.data["profileId"]
        if id_:
            profile = self._books.profiles.setdefault(id_, _Profile(len(self._books.profiles) + 1, now, now))
            profile.active = now

    def _close(self, session: _Session, run: _Run, now: datetime) -> None:
        """Redeems. Only here is anything counted; a code refused meanwhile is refused in a 200, and it is closed."""
        session.closes += 1
        session.grants = run.grants
        self._books.book(session, run.grants, now, sign=1)
        self._count_sale(session, 1)

    def _count_sale(self, session: _Session, sign: int) -> None:
        profile = self._books.profiles.get(session.data["profileId"])
        if profile is not None:
            profile.closed += sign
            profile.sales += sign * _Cart(session.data).items_total

    def _take_back(self, session: _Session) -> list[Json]:
        back, session.effects = _rollbacks(session.effects)
        if session.grants is not None:
            self._books.book(session, session.grants, self._now(), sign=-1)
            self._count_sale(session, -1)
            session.grants = None
        return back

    # What is returned.

    def _reply(self, session: _Session, run: _Run, content: set[str]) -> Json:
        reply: Json = {"effects": run.effects, "createdCoupons": [], "createdReferrals": []}
        makers: dict[str, Callable[[], Any]] = {
            "customerSession": lambda: self._session_json(session),
            "customerProfile": lambda: self._profile_json(session),
            "coupons": lambda: [self._coupon_json(code, entry, run) for code, entry in run.coupons],
            "triggeredCampaigns": lambda: [self._campaign_json(c, session) for c in run.triggered],
            "referral": lambda: self._referral_json(run.referral),
            "loyalty": lambda: {"cards": self._cards_json(session, run), "programs": {}},
            "event": lambda: self._event_json(session, run),
            "ruleFailureReasons": lambda: run.failures,
            "awardedGiveaways": list,
            "previousReturns": list,
            "campaignEligibility": list,
            "achievements": list,
        }
        for name in sorted(content):
            value = makers[name]()
            if value is not None:
                reply[name] = value
        return reply

    def _session_json(self, session: _Session) -> Json:
        """All totals are before any discount; there is none after it."""
        cart = _Cart(session.data)
        data: Json = _plain(session.data)
        items = [
            item | {"position": i, "returnedQuantity": 0, "remainingQuantity": item["quantity"]}
            for i, item in enumerate(data["cartItems"])
        ]
        return data | {
            "id": session.id,
            "created": session.created,
            "integrationId": session.integration_id,
            "applicationId": self._options.application_id,
            "state": session.state,
            "cartItems": items,
            "firstSession": session.first,
            "updateCount": session.updates,
            "total": _number_of(cart.items_total + cart.costs_total + cart.item_costs_total),
            "cartItemTotal": _number_of(cart.items_total),
            "additionalCostTotal": _number_of(cart.costs_total),
            "cartItemAdditionalCostTotal": _number_of(cart.item_costs_total),
            "updated": session.updated,
        }

    def _profile_json(self, session: _Session) -> Json | None:
        id_ = session.data["profileId"]
        if not id_:
            return None
        profile = self._books.profiles.get(id_) or _Profile(0, session.created, session.updated)
        return {
            "id": profile.id,
            "created": profile.created,
            "integrationId": id_,
            "attributes": {},
            "accountId": _ACCOUNT_ID,
            "closedSessions": profile.closed,
            "totalSales": _number_of(profile.sales),
            "lastActivity": profile.active,
            "sandbox": True,
        }

    def _coupon_json(self, code: str, entry: Coupon | GiftCard, run: _Run) -> Json:
        coupon: Json = {
            "id": run.coupon_id(code, entry),
            "created": _EPOCH,
            "campaignId": entry.campaign,
            "value": code,
            "usageLimit": 0,
            "usageCounter": self._books.uses[code],
            "attributes": {},
            "reservation": True,
            "isReservationMandatory": False,
            "profileRedemptionCount": self._books.uses_by[code, run.cart.profile],
        } | _dates(entry)
        if isinstance(entry, GiftCard):
            left = self._books.balances[code]
            return coupon | {
                "discountLimit": _number_of(entry.balance),
                "discountCounter": _number_of(entry.balance - left),
                "discountRemainder": _number_of(left),
            }
        coupon["usageLimit"] = entry.uses or 0
        return coupon | ({"recipientIntegrationId": entry.customer} if entry.customer else {})

    def _campaign_json(self, campaign: Campaign, session: _Session) -> Json:
        features = {"coupon": ["coupons"], "gift_card": ["coupons"], "referral": ["referrals"]}
        limits = campaign.limits
        amounts = {"redeemCoupon": limits.redemptions, "setDiscount": limits.budget}
        counters = {"redeemCoupon": self._books.redeemed[campaign.id], "setDiscount": self._books.spent}
        counters["setDiscount"] = _number_of(self._books.spent.get(campaign.id, _ZERO))
        given = {action: limit for action, limit in amounts.items() if limit is not None}
        times = {"startTime": campaign.starts, "endTime": campaign.ends}
        return {
            "id": campaign.id,
            "created": _EPOCH,
            "applicationId": self._options.application_id,
            "userId": 1,
            "name": campaign.name,
            "description": campaign.description,
            **{name: time for name, time in times.items() if time},
            "attributes": {},
            "state": "enabled" if campaign.active else "disabled",
            "activeRulesetId": _ruleset(campaign),
            "tags": [],
            "features": features.get(campaign.needs, ["loyalty"] if campaign.needs == "loyalty_card" else []),
            "limits": [{"action": action, "limit": limit, "entities": []} for action, limit in given.items()],
            "campaignGroups": [],
            "type": "advanced",
            "linkedStoreIds": [],
            "budgets": [
                {"action": action, "limit": limit, "counter": counters[action]} for action, limit in given.items()
            ],
            "updated": session.updated,
            "frontendState": "running" if campaign.running(session.updated) else "disabled",
            "storesImported": False,
        }

    def _referral_json(self, referral: Referral | None) -> Json | None:
        if referral is None:
            return None
        return {
            "id": self._book.referrals.index(referral) + 1,
            "created": _EPOCH,
            "campaignId": referral.campaign,
            "advocateProfileIntegrationId": referral.advocate,
            "usageLimit": referral.uses or 0,
            "usageCounter": self._books.uses[referral.code],
            "code": referral.code,
            "attributes": {},
            "referredCustomers": [],
        } | _dates(referral)

    def _cards_json(self, session: _Session, run: _Run) -> list[Json]:
        cards = []
        for entered in session.data["loyaltyCards"]:
            found = self._book.find(entered)
            if found is None or not isinstance(found[1], LoyaltyCard):
                continue
            code, card = found
            assert isinstance(card, LoyaltyCard)
            program = self._book.program[card.program]
            now = self._books.points[code]
            coming = _ZERO if session.state == "closed" else run.grants.points.get(code, _ZERO)
            cards.append(
                {
                    "id": self._book.loyalty_cards.index(card) + 1,
                    "created": _EPOCH,
                    "programID": program.id,
                    "programName": program.name,
                    "programTitle": program.title,
                    "status": "active" if card.active else "inactive",
                    "identifier": code,
                    "usersPerCardLimit": 0,
                    "profiles": [],
                    "ledger": {
                        "currentBalance": _number_of(now),
                        "pendingBalance": 0,
                        "expiredBalance": 0,
                        "spentBalance": 0,
                        "tentativeCurrentBalance": _number_of(now + coming),
                    },
                    "subledgers": {},
                }
            )
        return cards

    def _event_json(self, session: _Session, run: _Run) -> Json:
        kinds = {"closed": "talon_session_closed", "cancelled": "talon_session_cancelled"}
        kind = "talon_session_created" if session.updates == 1 else "talon_session_updated"
        return {
            "id": session.id * 1000 + session.updates,
            "created": session.updated,
            "applicationId": self._options.application_id,
            "profileId": session.data["profileId"],
            "sessionId": session.integration_id,
            "type": kinds.get(session.state, kind),
            "attributes": {},
            "effects": run.effects,
            "ledgerEntries": [],
        }


def _dates(entry: Coupon | GiftCard | Referral) -> Json:
    return {name: time for name, time in (("startDate", entry.starts), ("expiryDate", entry.ends)) if time}


def _plain(value: Any) -> Any:
    """JSON values with their numbers as the API writes them."""
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {name: _plain(element) for name, element in value.items()}
    return _number_of(value) if isinstance(value, Decimal) else value


_MOVES: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("open", "closed"),
    "open": ("open", "closed", "cancelled"),
    "closed": ("cancelled",),
    "partially_returned": ("cancelled",),
    "cancelled": (),
}


def _check_move(state: str | None, target: str) -> None:
    """Whether PUT may move a session there; a closed one can only be cancelled, and reopened by the other call."""
    if target not in _MOVES[state]:
        raise _cannot_move(target, state or "")


def _cannot_move(target: str, state: str) -> _Error:
    message = f'Cannot move session to state "{target}" from state "{state}"'
    return _Error(400, message, [{"title": "Invalid value", "details": message, "source": {"pointer": "/state"}}])
