"""The rule book: the campaigns, codes and cards of the sandboxes, in a TOML file that a merchant can read.

It is engine-neutral. Each sandbox turns it into what its engine has, so that one cart can be tried with every engine.
`rulebook.toml` in this folder is the default and documents every key. `load` reports all problems at once.
"""

import re
import tomllib
import types
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NewType, Union, get_args, get_origin

import msgspec

from mapper.domain import money

Problem = tuple[str, str]
"""The place in the book ("campaigns[2].effects[0].amount"), and a message."""


class RuleBookError(ValueError):
    """All problems of a rule book."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{place}: {text}" if place else text for place, text in problems))
        self.problems = problems


Amount = NewType("Amount", Decimal)
"""An amount of money or points, written as a string ("35.00"), never as a float."""
Percent = NewType("Percent", Decimal)
"""A percentage from 0 to 100, written as a string ("12.5")."""

Code = Annotated[str, msgspec.Meta(min_length=4, max_length=100, pattern=r"^\S(.*\S)?$")]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Scope = Literal["order", "item", "both"]
AttributeType = Literal["string", "number", "boolean", "time", "list of strings"]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table. Unknown keys are problems."""


class Items(Table, frozen=True, kw_only=True):
    """Selects the cart items that meet all of these conditions."""

    skus: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    weight_at_most: Amount | None = None
    """The weight of one unit, in the engine's measure. An item without a weight does not match."""
    price_over: Amount | None = None
    """The unit price must be higher than this."""
    price_at_least: Amount | None = None

    def match(
        self, sku: str, category: str, unit_price: Decimal, *, name: str = "", weight: Decimal | None = None
    ) -> bool:
        return (
            (not self.skus or sku in self.skus)
            and (not self.categories or category in self.categories)
            and (not self.names or name in self.names)
            and (self.weight_at_most is None or (weight is not None and weight <= self.weight_at_most))
            and (self.price_over is None or unit_price > self.price_over)
            and (self.price_at_least is None or unit_price >= self.price_at_least)
        )


class Conditions(Table, frozen=True, kw_only=True):
    """The conditions of a campaign. The cart's total is that of its items at list price."""

    cart_over: Amount | None = None
    cart_at_least: Amount | None = None
    units_at_least: Count = 0
    """The number of units in the cart; with `any_item`, of matching items."""
    any_item: Items | None = None
    """At least one item must match."""
    every_item_costs: str = ""
    """An additional cost that every item must have."""
    customers: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    attributes: dict[str, str] = {}
    """The required values of session attributes."""


class Limits(Table, frozen=True, kw_only=True):
    redemptions: Count | None = None
    """The limit of redemptions of the campaign."""
    redemptions_per_customer: Count | None = None
    budget: Amount | None = None
    """The limit of the campaign's total discount."""


class _Effect(Table, frozen=True, kw_only=True, tag_field="kind"):
    name: str = ""
    """The name for the shopper; "" for the name of the campaign."""


class Discount(_Effect, frozen=True, kw_only=True):
    """Either `amount` or `percent`."""

    amount: Amount | None = None
    percent: Percent | None = None

    def of(self, value: Decimal) -> Decimal:
        """The discount on a price of `value`: never more than the price, not rounded."""
        if self.percent is not None:
            return value * self.percent / 100
        return min(self.amount or Decimal(0), value)


Of = Literal["items", "costs", "items_and_costs"]


class OffUnits(Discount, tag="off_units", frozen=True, kw_only=True):
    """A discount on each unit of the items, such as 35.00 or 10 %."""

    items: Items = Items()
    scope: Of = "items"
    """Whether the discount is on the unit price, on the unit's additional costs, or on both."""


class OffLines(Discount, tag="off_lines", frozen=True, kw_only=True):
    """A discount on each line of the items, whatever its quantity."""

    items: Items = Items()


class OffItemsProRata(Discount, tag="off_items_pro_rata", frozen=True, kw_only=True):
    """One discount, split over all units of the items in proportion to their prices."""

    items: Items = Items()


class OffOrder(Discount, tag="off_order", frozen=True, kw_only=True):
    """A discount on the order: on its items, its additional costs, or both."""

    scope: Of = "items"


class OffCost(Discount, tag="off_cost", frozen=True, kw_only=True):
    """A discount on an additional cost of the order, such as shipping."""

    cost: Name = "shipping"


class OffItemCost(Discount, tag="off_item_cost", frozen=True, kw_only=True):
    """A discount on an additional cost that every item of the cart has."""

    cost: Name


class FreeItem(_Effect, tag="free_item", frozen=True, kw_only=True):
    sku: Name
    quantity: Positive = 1


class ReplaceUnits(_Effect, tag="replace_units", frozen=True, kw_only=True):
    """An upgrade: units of one item are replaced by units of another, at the price of the first."""

    sku: Name
    by: Name
    price: Amount
    """The unit price of the other item, where the cart does not have it."""
    quantity: Positive = 1


class Giveaway(_Effect, tag="giveaway", frozen=True, kw_only=True):
    """Gives away a code of a pool when the order is closed."""

    pool: Name
    codes: tuple[Name, ...]


class Message(_Effect, tag="message", frozen=True, kw_only=True):
    level: Literal["info", "offer", "error", "misc"] = "info"
    title: str
    text: str


class EarnPoints(_Effect, tag="earn_points", frozen=True, kw_only=True):
    """Adds `points` to the loyalty card for every full `per` of the items at list price."""

    points: Amount
    per: Amount


class PayWithPoints(_Effect, tag="pay_with_points", frozen=True, kw_only=True):
    """Pays for the items with the points of the loyalty card. One point is worth `value`."""

    value: Amount


class PayWithBalance(_Effect, tag="pay_with_balance", frozen=True, kw_only=True):
    """Pays for the items with the balance of the gift card."""


class Custom(_Effect, tag="custom", frozen=True, kw_only=True):
    """Any other effect."""

    payload: dict[str, Any] = {}


Effect = (
    OffUnits
    | OffLines
    | OffItemsProRata
    | OffOrder
    | OffCost
    | OffItemCost
    | FreeItem
    | ReplaceUnits
    | Giveaway
    | Message
    | EarnPoints
    | PayWithPoints
    | PayWithBalance
    | Custom
)
_DISCOUNTS = (OffUnits, OffLines, OffItemsProRata, OffOrder, OffCost, OffItemCost)

Needs = Literal["nothing", "coupon", "referral", "loyalty_card", "gift_card"]


class Part(Table, frozen=True, kw_only=True):
    sku: Name
    quantity: Positive = 1


class Bundle(Table, frozen=True, kw_only=True):
    """Items that must be bought together. The campaign applies once for each bundle in the cart."""

    parts: tuple[Part, ...]
    limit: Positive = 1
    """The maximum number of bundles in a cart."""


class Campaign(Table, frozen=True, kw_only=True):
    id: Positive
    name: Name
    description: str = ""
    active: bool = True
    starts: Moment | None = None
    ends: Moment | None = None
    priority: int = 100
    """Lower numbers are applied first."""
    needs: Needs = "nothing"
    """The kind of code that the campaign requires."""
    combinable: bool = True
    """False: excludes campaigns with a code and other such campaigns. The one that is applied first wins."""
    best_of: str = ""
    """A group of campaigns, of which only the one with the highest discount applies."""
    bundle: Bundle | None = None
    """The campaign applies to complete bundles, and its discounts on units to these units alone."""
    conditions: Conditions = Conditions()
    limits: Limits = Limits()
    effects: tuple[Effect, ...] = ()

    def running(self, now: datetime) -> bool:
        return self.active and not (self.starts and now < self.starts) and not (self.ends and now >= self.ends)


class Family(msgspec.Struct, frozen=True):
    """A range of codes such as SINGLE-0001..SINGLE-9999: a prefix and a number of fixed width."""

    prefix: str
    width: int
    first: int
    last: int

    def code(self, number: int) -> str:
        return f"{self.prefix}{number:0{self.width}d}"

    def find(self, code: str) -> str | None:
        """The code in the spelling of the family, if it is one of its codes, in any case."""
        prefix, digits = code[: -self.width], code[-self.width :]
        if prefix.casefold() != self.prefix.casefold() or not (digits.isascii() and digits.isdigit()):
            return None
        return self.code(int(digits)) if self.first <= int(digits) <= self.last else None


_FAMILY = re.compile(r"(?P<prefix>.*?\D)(?P<first>\d{1,6})\.\.(?P=prefix)(?P<last>\d{1,6})", re.ASCII)


class Coupon(Table, frozen=True, kw_only=True):
    """One code, or a family of codes. The limits are for each code."""

    code: Code | None = None
    codes: str = ""
    """ "SINGLE-0001..SINGLE-9999" """
    campaign: int
    starts: Moment | None = None
    ends: Moment | None = None
    uses: Count | None = None
    """The limit of redemptions of the code."""
    uses_per_customer: Count | None = None
    used: Count = 0
    """The number of redemptions before the sandbox starts."""
    customer: str = ""
    """The only customer who may use it."""
    note: str = ""
    """What the code demonstrates."""

    @property
    def family(self) -> Family | None:
        found = _FAMILY.fullmatch(self.codes)
        if found is None or len(found["first"]) != len(found["last"]):
            return None
        return Family(found["prefix"], len(found["first"]), int(found["first"]), int(found["last"]))


class Referral(Table, frozen=True, kw_only=True):
    """A code that an advocate shares with friends."""

    code: Code
    campaign: int
    advocate: Name
    friend: str = ""
    """The only friend who may use it."""
    starts: Moment | None = None
    ends: Moment | None = None
    uses: Count | None = None
    used: Count = 0
    note: str = ""


class GiftCard(Table, frozen=True, kw_only=True):
    code: Code
    campaign: int
    balance: Amount
    starts: Moment | None = None
    ends: Moment | None = None
    note: str = ""


class LoyaltyProgram(Table, frozen=True, kw_only=True):
    id: Positive
    name: Name
    title: str = ""
    campaigns: tuple[int, ...] = ()
    """The campaigns for the cards of this program."""


class LoyaltyCard(Table, frozen=True, kw_only=True):
    code: Annotated[str, msgspec.Meta(min_length=4, max_length=108, pattern=r"^[A-Za-z0-9._%+@-]+$")]
    program: int
    points: Amount = Amount(Decimal(0))
    customer: str = ""
    active: bool = True
    note: str = ""


Entry = Coupon | Referral | GiftCard | LoyaltyCard


class Settings(Table, frozen=True, kw_only=True):
    currency: str = "USD"
    api_keys: tuple[Name, ...] = ()
    """The accepted keys; empty for any."""
    stores: tuple[Name, ...] = ()
    costs: dict[str, Scope] = {}
    """The additional costs by name: of the order, of items, or both."""
    session_attributes: dict[str, AttributeType] = {}
    item_attributes: dict[str, AttributeType] = {}
    cascading_discounts: bool = False
    """Whether each campaign computes on discounted prices."""
    partial_rewards: bool = False
    """Whether a campaign whose budget is too small grants the rest of it."""


class RuleBook(Table, frozen=True, kw_only=True, dict=True):
    settings: Settings = Settings()
    campaigns: tuple[Campaign, ...] = ()
    coupons: tuple[Coupon, ...] = ()
    referrals: tuple[Referral, ...] = ()
    gift_cards: tuple[GiftCard, ...] = ()
    loyalty_programs: tuple[LoyaltyProgram, ...] = ()
    loyalty_cards: tuple[LoyaltyCard, ...] = ()
    engines: dict[str, dict[str, Any]] = {}
    """Settings of single engines, by engine, for their sandboxes."""

    @cached_property
    def campaign(self) -> dict[int, Campaign]:
        """The campaigns by id."""
        return {campaign.id: campaign for campaign in self.campaigns}

    @cached_property
    def program(self) -> dict[int, LoyaltyProgram]:
        return {program.id: program for program in self.loyalty_programs}

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All codes and cards."""
        every: list[Entry] = [*self.coupons, *self.referrals, *self.gift_cards, *self.loyalty_cards]
        return tuple(every)

    @cached_property
    def _spelled(self) -> dict[str, Entry]:
        return {entry.code: entry for entry in self.entries if entry.code}

    @cached_property
    def _folded(self) -> dict[str, Entry]:
        """By code without its case; of codes that differ in case alone, the first."""
        return {entry.code.casefold(): entry for entry in reversed(self.entries) if entry.code}

    @cached_property
    def _families(self) -> tuple[tuple[Family, Coupon], ...]:
        return tuple((coupon.family, coupon) for coupon in self.coupons if coupon.family)

    def find(self, code: str, *, by_case: bool = False) -> tuple[str, Entry] | None:
        """The code in the book's spelling, and its entry. `by_case`: whether case distinguishes codes."""
        entry = self._spelled.get(code) if by_case else self._folded.get(code.casefold())
        if entry is not None and entry.code:
            return entry.code, entry
        for family, coupon in self._families:
            spelled = family.find(code)
            if spelled and (spelled == code or not by_case):
                return spelled, coupon
        return None

    def codes_to_try(self) -> Iterator[tuple[str, str]]:
        """Each code (or family of codes) and its note."""
        for entry in self.entries:
            yield (entry.codes if isinstance(entry, Coupon) and entry.codes else entry.code or ""), entry.note


def load(path: Path | None = None) -> RuleBook:
    """The rule book in a file, or the default one. Raises `RuleBookError` with all problems."""
    source = resources.files("mapper.sandbox").joinpath("rulebook.toml") if path is None else path
    try:
        return parse(source.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RuleBookError([("", f"{source} cannot be read: {error}")]) from None


def parse(text: str) -> RuleBook:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RuleBookError([("", f"this is not TOML: {error}")]) from None
    problems: list[Problem] = []
    book = read(tables, RuleBook, problems=problems)
    problems = problems or list(_inconsistencies(book))
    if problems:
        raise RuleBookError(problems)
    assert isinstance(book, RuleBook)
    return book


def read(value: Any, kind: Any, place: str = "", *, problems: list[Problem]) -> Any:
    """Converts `value` to `kind`. Adds all problems to `problems`; the result is valid only where there are none.

    msgspec stops at the first problem, so the values of tables and lists are converted one by one.
    """
    structs = _structs(kind)
    if structs:
        return _read_table(value, structs, place, problems)
    if get_origin(kind) is tuple and isinstance(value, list):
        element = get_args(kind)[0]
        return tuple(read(v, element, f"{place}[{i}]", problems=problems) for i, v in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, dict):
        element = get_args(kind)[1]
        return {k: read(v, element, f"{place}.{k}", problems=problems) for k, v in value.items()}
    try:
        if Amount in _kinds(kind) or Percent in _kinds(kind):
            return _amount(value, most=Decimal(100) if Percent in _kinds(kind) else None)
        return msgspec.convert(value, kind)
    except ValueError as error:
        problems.append((place, str(error).split(" - at ")[0]))
        return None


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _structs(kind: Any) -> dict[str, type[msgspec.Struct]]:
    """The tables of a union, by their tag; "" for the only one."""
    found = [k for k in _kinds(kind) if isinstance(k, type) and issubclass(k, msgspec.Struct)]
    return {str(k.__struct_config__.tag or ""): k for k in found}


def _read_table(value: Any, structs: dict[str, type[msgspec.Struct]], place: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        problems.append((place, f"expected a table, got {value!r}"))
        return None
    table = dict(value)
    tag = "" if "" in structs else str(table.pop("kind", ""))
    struct = structs.get(tag)
    if struct is None:
        problems.append((f"{place}.kind", f"expected one of {', '.join(structs)}, got {tag!r}"))
        return None
    found = len(problems)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    prefix = f"{place}." if place else ""
    unknown = [name for name in table if name not in fields]
    problems += [(prefix + name, f"is not known; what is: {', '.join(fields)}") for name in unknown]
    missing = [name for name, field in fields.items() if field.required and name not in table]
    problems += [(prefix + name, "is missing") for name in missing]
    read_fields = {
        name: read(table[name], field.type, prefix + name, problems=problems)
        for name, field in fields.items()
        if name in table
    }
    return struct(**read_fields) if len(problems) == found else None


def _amount(value: Any, most: Decimal | None) -> Decimal:
    """An amount in a string. A TOML float would not be exact. Raises `ValueError`."""
    if not isinstance(value, str):
        raise ValueError(f'expected a number in quotes such as "35.00", got {value!r}')  # noqa: TRY004 - one for all
    try:
        money.parse(value, 4)
    except money.NotMoney as error:
        raise ValueError(f"{value!r} {error}") from None
    number = Decimal(value)
    if number < 0 or (most is not None and number > most):
        raise ValueError(f"{value!r} is out of range")
    return number


def _inconsistencies(book: RuleBook) -> Iterator[Problem]:
    """The problems of a book whose values are valid."""
    if book.settings.currency not in money.DIGITS:
        yield "settings.currency", f"{book.settings.currency!r} is not a currency of ISO 4217"
    yield from _duplicates("campaigns", [str(campaign.id) for campaign in book.campaigns])
    yield from _duplicates("loyalty_programs", [str(program.id) for program in book.loyalty_programs])
    for i, campaign in enumerate(book.campaigns):
        yield from _inconsistencies_of_campaign(book, campaign, f"campaigns[{i}]")
    yield from _inconsistencies_of_codes(book)


def _duplicates(place: str, ids: list[str]) -> Iterator[Problem]:
    for i, key in enumerate(ids):
        if key in ids[:i]:
            yield f"{place}[{i}]", f"{key!r} is there twice"


def _inconsistencies_of_campaign(book: RuleBook, campaign: Campaign, place: str) -> Iterator[Problem]:
    if campaign.starts and campaign.ends and campaign.ends <= campaign.starts:
        yield f"{place}.ends", "is not after its start"
    for store in campaign.conditions.stores:
        if store not in book.settings.stores:
            yield f"{place}.conditions.stores", f"{store!r} is not one of settings.stores"
    cost = campaign.conditions.every_item_costs
    if cost and book.settings.costs.get(cost) not in ("item", "both"):
        yield f"{place}.conditions.every_item_costs", f"{cost!r} is not one of settings.costs of that scope"
    if campaign.bundle is not None and not campaign.bundle.parts:
        yield f"{place}.bundle.parts", "needs a part at least"
    for name in campaign.conditions.attributes:
        if name not in book.settings.session_attributes:
            yield f"{place}.conditions.attributes", f"{name!r} is not one of settings.session_attributes"
    for i, effect in enumerate(campaign.effects):
        effect_place = f"{place}.effects[{i}]"
        if isinstance(effect, _DISCOUNTS) and (effect.amount is None) == (effect.percent is None):
            yield effect_place, "needs an amount or a percent, one of the two"
        if isinstance(effect, OffCost | OffItemCost):
            scope = book.settings.costs.get(effect.cost)
            if scope not in ("both", "order" if isinstance(effect, OffCost) else "item"):
                yield f"{effect_place}.cost", f"{effect.cost!r} is not one of settings.costs of that scope"
        if isinstance(effect, Giveaway) and not effect.codes:
            yield f"{effect_place}.codes", "needs a code at least"
        if isinstance(effect, PayWithBalance) and campaign.needs != "gift_card":
            yield effect_place, 'only a campaign that needs a "gift_card" can be paid with its balance'
        if isinstance(effect, EarnPoints | PayWithPoints) and campaign.needs != "loyalty_card":
            yield effect_place, 'only a campaign that needs a "loyalty_card" has points'
        if isinstance(effect, EarnPoints) and not effect.per:
            yield f"{effect_place}.per", "must be above zero"
        if isinstance(effect, PayWithPoints) and not effect.value:
            yield f"{effect_place}.value", "must be above zero"


_NEEDED: Final[dict[str, Needs]] = {"coupons": "coupon", "referrals": "referral", "gift_cards": "gift_card"}


def _inconsistencies_of_codes(book: RuleBook) -> Iterator[Problem]:
    for i, coupon in enumerate(book.coupons):
        if (coupon.code is None) == (not coupon.codes):
            yield f"coupons[{i}]", "needs code or codes, one of the two"
        elif coupon.codes and (coupon.family is None or coupon.family.last < coupon.family.first):
            yield f"coupons[{i}].codes", 'expected two codes of one length such as "SINGLE-0001..SINGLE-9999"'
    for name, needs in _NEEDED.items():
        for i, entry in enumerate(getattr(book, name)):
            yield from _campaign_problems(book, entry.campaign, needs, f"{name}[{i}].campaign")
    for i, program in enumerate(book.loyalty_programs):
        for id_ in program.campaigns:
            yield from _campaign_problems(book, id_, "loyalty_card", f"loyalty_programs[{i}].campaigns")
    for i, card in enumerate(book.loyalty_cards):
        if card.program not in book.program:
            yield f"loyalty_cards[{i}].program", f"there is no loyalty program {card.program}"
    yield from _duplicate_codes(book)


def _campaign_problems(book: RuleBook, id_: int, needs: Needs, place: str) -> Iterator[Problem]:
    campaign = book.campaign.get(id_)
    if campaign is None:
        yield place, f"there is no campaign {id_}"
    elif campaign.needs != needs:
        yield place, f'campaign {id_} does not say needs = "{needs}"'


def _duplicate_codes(book: RuleBook) -> Iterator[Problem]:
    seen: set[str] = set()
    for name in ("coupons", "referrals", "gift_cards", "loyalty_cards"):
        for i, entry in enumerate(getattr(book, name)):
            if not entry.code:
                continue
            key = entry.code
            if key in seen or any(family.find(key) for family, _ in book._families):  # noqa: SLF001 - its own module
                yield f"{name}[{i}].code", f"{entry.code!r} is there twice"
            seen.add(key)
