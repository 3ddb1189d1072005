"""The rule book: the campaigns, codes and cards that the sandboxes know, in a TOML file a merchant can read.

It speaks no engine's language. Each sandbox (`mapper.sandbox`) interprets the same book as its engine would, so that
one cart can be tried with every engine. `rulebook.toml` beside this file is the default and explains every word.

`load` reads a book and reports all its mistakes at once, each with its place.
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
"""Place in the book ("campaigns[2].effects[0].amount") and what is wrong there."""


class RuleBookError(ValueError):
    """Everything that is wrong with a rule book."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{place}: {text}" if place else text for place, text in problems))
        self.problems = problems


Amount = NewType("Amount", Decimal)
"""A sum of money or number of points, written as a string ("35.00") so that no float ever holds it."""
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
    """A TOML table: every key is known."""


class Items(Table, frozen=True, kw_only=True):
    """Which lines of a cart are meant: those that meet all that is said here."""

    skus: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    weight_at_most: Amount | None = None
    """Of one unit, in the engine's own measure; a line without a weight is none of these."""
    price_over: Amount | None = None
    """The unit price is above this."""
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
    """What must hold for a campaign to apply. The cart's total is that of its items at list price."""

    cart_over: Amount | None = None
    cart_at_least: Amount | None = None
    units_at_least: Count = 0
    """Units in the cart, of the items of `any_item` where that is given."""
    any_item: Items | None = None
    """At least one line is one of these."""
    every_item_costs: str = ""
    """A cost that every item must carry by itself."""
    customers: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    attributes: dict[str, str] = {}
    """Session attributes that must have these values."""


class Limits(Table, frozen=True, kw_only=True):
    redemptions: Count | None = None
    """How many redemptions the campaign grants in all."""
    redemptions_per_customer: Count | None = None
    budget: Amount | None = None
    """How much discount the campaign gives in all."""


class _Effect(Table, frozen=True, kw_only=True, tag_field="kind"):
    name: str = ""
    """What the shopper reads; the campaign's name where it is empty."""


class Discount(_Effect, frozen=True, kw_only=True):
    """Either `amount` or `percent`."""

    amount: Amount | None = None
    percent: Percent | None = None

    def of(self, value: Decimal) -> Decimal:
        """What comes off something worth `value`: never more than it is worth, never rounded."""
        if self.percent is not None:
            return value * self.percent / 100
        return min(self.amount or Decimal(0), value)


Of = Literal["items", "costs", "items_and_costs"]


class OffUnits(Discount, tag="off_units", frozen=True, kw_only=True):
    """Off every unit of the items: 35 off each, or 10 % off each."""

    items: Items = Items()
    scope: Of = "items"
    """Of a unit's price, of the costs it carries by itself, or of both together."""


class OffLines(Discount, tag="off_lines", frozen=True, kw_only=True):
    """Off every line of the items once, however many units it has."""

    items: Items = Items()


class OffItemsProRata(Discount, tag="off_items_pro_rata", frozen=True, kw_only=True):
    """One sum, spread over all units of the items in proportion to their prices."""

    items: Items = Items()


class OffOrder(Discount, tag="off_order", frozen=True, kw_only=True):
    """Off the order as a whole: of its items, of its costs, or of both."""

    scope: Of = "items"


class OffCost(Discount, tag="off_cost", frozen=True, kw_only=True):
    """Off a cost of the order, such as shipping; 100 percent makes it free."""

    cost: Name = "shipping"


class OffItemCost(Discount, tag="off_item_cost", frozen=True, kw_only=True):
    """Off a cost that every item of the cart carries by itself."""

    cost: Name


class FreeItem(_Effect, tag="free_item", frozen=True, kw_only=True):
    sku: Name
    quantity: Positive = 1


class ReplaceUnits(_Effect, tag="replace_units", frozen=True, kw_only=True):
    """So many units of one item become units of another, at the price of the first: an upgrade."""

    sku: Name
    by: Name
    price: Amount
    """Of a unit of the other, where the cart has none of it."""
    quantity: Positive = 1


class Giveaway(_Effect, tag="giveaway", frozen=True, kw_only=True):
    """One of the codes of a pool, given away once the order is closed."""

    pool: Name
    codes: tuple[Name, ...]


class Message(_Effect, tag="message", frozen=True, kw_only=True):
    level: Literal["info", "offer", "error", "misc"] = "info"
    title: str
    text: str


class EarnPoints(_Effect, tag="earn_points", frozen=True, kw_only=True):
    """`points` for every full `per` spent on items at list price, on the loyalty card presented."""

    points: Amount
    per: Amount


class PayWithPoints(_Effect, tag="pay_with_points", frozen=True, kw_only=True):
    """The points of the card presented pay for the items, each `value`."""

    value: Amount


class PayWithBalance(_Effect, tag="pay_with_balance", frozen=True, kw_only=True):
    """The balance of the gift card presented pays for the items."""


class Custom(_Effect, tag="custom", frozen=True, kw_only=True):
    """Anything else the engine tells the shop."""

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
    """Items that are bought together: the campaign applies where they are, and as often as they are."""

    parts: tuple[Part, ...]
    limit: Positive = 1
    """How many bundles of a cart count."""


class Campaign(Table, frozen=True, kw_only=True):
    id: Positive
    name: Name
    description: str = ""
    active: bool = True
    starts: Moment | None = None
    ends: Moment | None = None
    priority: int = 100
    """Smaller goes first."""
    needs: Needs = "nothing"
    """The kind of code without which it does not apply."""
    combinable: bool = True
    """False: not together with the campaign of a code, or with another such; the one of higher priority wins."""
    best_of: str = ""
    """Of all campaigns with the same word here, only the one that gives the most applies."""
    bundle: Bundle | None = None
    """It applies where these items are bought together, and its discounts on units to these alone."""
    conditions: Conditions = Conditions()
    limits: Limits = Limits()
    effects: tuple[Effect, ...] = ()

    def running(self, now: datetime) -> bool:
        return self.active and not (self.starts and now < self.starts) and not (self.ends and now >= self.ends)


class Family(msgspec.Struct, frozen=True):
    """A run of codes such as SINGLE-0001..SINGLE-9999: a prefix and a number of fixed width."""

    prefix: str
    width: int
    first: int
    last: int

    def code(self, number: int) -> str:
        return f"{self.prefix}{number:0{self.width}d}"

    def find(self, code: str) -> str | None:
        """The code as it is spelled here, if it is one of the family, in whatever case."""
        prefix, digits = code[: -self.width], code[-self.width :]
        if prefix.casefold() != self.prefix.casefold() or not (digits.isascii() and digits.isdigit()):
            return None
        return self.code(int(digits)) if self.first <= int(digits) <= self.last else None


_FAMILY = re.compile(r"(?P<prefix>.*?\D)(?P<first>\d{1,6})\.\.(?P=prefix)(?P<last>\d{1,6})", re.ASCII)


class Coupon(Table, frozen=True, kw_only=True):
    """One code, or a family of codes that each have these limits."""

    code: Code | None = None
    codes: str = ""
    """ "SINGLE-0001..SINGLE-9999" """
    campaign: int
    starts: Moment | None = None
    ends: Moment | None = None
    uses: Count | None = None
    """How often the code can be used in all."""
    uses_per_customer: Count | None = None
    used: Count = 0
    """How often it has been used before the sandbox starts."""
    customer: str = ""
    """The one customer whose code it is."""
    note: str = ""
    """What trying it shows."""

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
    """The one friend it is meant for."""
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
    """The campaigns that a card of this program takes part in."""


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
    """Keys that are let in; none: any."""
    stores: tuple[Name, ...] = ()
    costs: dict[str, Scope] = {}
    """Costs beside the items, and where they may stand."""
    session_attributes: dict[str, AttributeType] = {}
    item_attributes: dict[str, AttributeType] = {}
    cascading_discounts: bool = False
    """True: each campaign computes on what the earlier ones left."""
    partial_rewards: bool = False
    """True: a budget that is too small gives what it has; False: nothing."""


class RuleBook(Table, frozen=True, kw_only=True, dict=True):
    settings: Settings = Settings()
    campaigns: tuple[Campaign, ...] = ()
    coupons: tuple[Coupon, ...] = ()
    referrals: tuple[Referral, ...] = ()
    gift_cards: tuple[GiftCard, ...] = ()
    loyalty_programs: tuple[LoyaltyProgram, ...] = ()
    loyalty_cards: tuple[LoyaltyCard, ...] = ()
    engines: dict[str, dict[str, Any]] = {}
    """What one engine alone knows; its sandbox reads it."""

    @cached_property
    def campaign(self) -> dict[int, Campaign]:
        """The campaigns by id."""
        return {campaign.id: campaign for campaign in self.campaigns}

    @cached_property
    def program(self) -> dict[int, LoyaltyProgram]:
        return {program.id: program for program in self.loyalty_programs}

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Everything a shopper may enter or present."""
        every: list[Entry] = [*self.coupons, *self.referrals, *self.gift_cards, *self.loyalty_cards]
        return tuple(every)

    @cached_property
    def _spelled(self) -> dict[str, Entry]:
        return {entry.code: entry for entry in self.entries if entry.code}

    @cached_property
    def _folded(self) -> dict[str, Entry]:
        """Of codes that differ only by case, the first."""
        return {entry.code.casefold(): entry for entry in reversed(self.entries) if entry.code}

    @cached_property
    def _families(self) -> tuple[tuple[Family, Coupon], ...]:
        return tuple((coupon.family, coupon) for coupon in self.coupons if coupon.family)

    def find(self, code: str, *, by_case: bool = False) -> tuple[str, Entry] | None:
        """The code as the book spells it, and its entry. `by_case`: upper and lower case are not the same."""
        entry = self._spelled.get(code) if by_case else self._folded.get(code.casefold())
        if entry is not None and entry.code:
            return entry.code, entry
        for family, coupon in self._families:
            spelled = family.find(code)
            if spelled and (spelled == code or not by_case):
                return spelled, coupon
        return None

    def codes_to_try(self) -> Iterator[tuple[str, str]]:
        """Every code (or family of codes) with what it shows."""
        for entry in self.entries:
            yield (entry.codes if isinstance(entry, Coupon) and entry.codes else entry.code or ""), entry.note


def load(path: Path | None = None) -> RuleBook:
    """The rule book in a file, or the default one. Raises `RuleBookError` with all that is wrong."""
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
    # Only a book whose every word is understood can be checked for sense.
    problems = problems or list(_senseless(book))
    if problems:
        raise RuleBookError(problems)
    assert isinstance(book, RuleBook)
    return book


def read(value: Any, kind: Any, place: str = "", *, problems: list[Problem]) -> Any:
    """`value` as a `kind`; what is wrong is added to `problems`, and then the result means nothing.

    msgspec stops at the first mistake, so tables and lists are taken apart here and handed to it piece by piece.
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
            return _exact(value, most=Decimal(100) if Percent in _kinds(kind) else None)
        return msgspec.convert(value, kind)
    except ValueError as error:
        problems.append((place, str(error).split(" - at ")[0]))
        return None


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _structs(kind: Any) -> dict[str, type[msgspec.Struct]]:
    """The tables that may stand here, by their tag ("" where there is only one)."""
    found = [k for k in _kinds(kind) if isinstance(k, type) and issubclass(k, msgspec.Struct)]
    return {str(k.__struct_config__.tag or ""): k for k in found}


def _read_table(value: Any, structs: dict[str, type[msgspec.Struct]], place: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        problems.append((place, f"expected a table, got {value!r}"))
        return None
    given = dict(value)
    tag = "" if "" in structs else str(given.pop("kind", ""))
    struct = structs.get(tag)
    if struct is None:
        problems.append((f"{place}.kind", f"expected one of {', '.join(structs)}, got {tag!r}"))
        return None
    found = len(problems)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    prefix = f"{place}." if place else ""
    unknown = [name for name in given if name not in fields]
    problems += [(prefix + name, f"is not known; what is: {', '.join(fields)}") for name in unknown]
    missing = [name for name, field in fields.items() if field.required and name not in given]
    problems += [(prefix + name, "is missing") for name in missing]
    read_fields = {
        name: read(given[name], field.type, prefix + name, problems=problems)
        for name, field in fields.items()
        if name in given
    }
    return struct(**read_fields) if len(problems) == found else None


def _exact(value: Any, most: Decimal | None) -> Decimal:
    """An amount: strings only, since a TOML float is no longer the number that was written. Raises `ValueError`."""
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


def _senseless(book: RuleBook) -> Iterator[Problem]:
    """What is spelled well and makes no sense."""
    if book.settings.currency not in money.DIGITS:
        yield "settings.currency", f"{book.settings.currency!r} is not a currency of ISO 4217"
    yield from _doubled("campaigns", [str(campaign.id) for campaign in book.campaigns])
    yield from _doubled("loyalty_programs", [str(program.id) for program in book.loyalty_programs])
    for i, campaign in enumerate(book.campaigns):
        yield from _senseless_campaign(book, campaign, f"campaigns[{i}]")
    yield from _senseless_codes(book)


def _doubled(place: str, ids: list[str]) -> Iterator[Problem]:
    for i, key in enumerate(ids):
        if key in ids[:i]:
            yield f"{place}[{i}]", f"{key!r} is there twice"


def _senseless_campaign(book: RuleBook, campaign: Campaign, place: str) -> Iterator[Problem]:
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
        spot = f"{place}.effects[{i}]"
        if isinstance(effect, _DISCOUNTS) and (effect.amount is None) == (effect.percent is None):
            yield spot, "needs an amount or a percent, one of the two"
        if isinstance(effect, OffCost | OffItemCost):
            scope = book.settings.costs.get(effect.cost)
            if scope not in ("both", "order" if isinstance(effect, OffCost) else "item"):
                yield f"{spot}.cost", f"{effect.cost!r} is not one of settings.costs of that scope"
        if isinstance(effect, Giveaway) and not effect.codes:
            yield f"{spot}.codes", "needs a code at least"
        if isinstance(effect, PayWithBalance) and campaign.needs != "gift_card":
            yield spot, 'only a campaign that needs a "gift_card" can be paid with its balance'
        if isinstance(effect, EarnPoints | PayWithPoints) and campaign.needs != "loyalty_card":
            yield spot, 'only a campaign that needs a "loyalty_card" has points'
        if isinstance(effect, EarnPoints) and not effect.per:
            yield f"{spot}.per", "must be above zero"
        if isinstance(effect, PayWithPoints) and not effect.value:
            yield f"{spot}.value", "must be above zero"


_NEEDED: Final[dict[str, Needs]] = {"coupons": "coupon", "referrals": "referral", "gift_cards": "gift_card"}


def _senseless_codes(book: RuleBook) -> Iterator[Problem]:
    for i, coupon in enumerate(book.coupons):
        if (coupon.code is None) == (not coupon.codes):
            yield f"coupons[{i}]", "needs code or codes, one of the two"
        elif coupon.codes and (coupon.family is None or coupon.family.last < coupon.family.first):
            yield f"coupons[{i}].codes", 'expected two codes of one length such as "SINGLE-0001..SINGLE-9999"'
    for name, needs in _NEEDED.items():
        for i, entry in enumerate(getattr(book, name)):
            yield from _senseless_campaign_of(book, entry.campaign, needs, f"{name}[{i}].campaign")
    for i, program in enumerate(book.loyalty_programs):
        for id_ in program.campaigns:
            yield from _senseless_campaign_of(book, id_, "loyalty_card", f"loyalty_programs[{i}].campaigns")
    for i, card in enumerate(book.loyalty_cards):
        if card.program not in book.program:
            yield f"loyalty_cards[{i}].program", f"there is no loyalty program {card.program}"
    yield from _doubled_codes(book)


def _senseless_campaign_of(book: RuleBook, id_: int, needs: Needs, place: str) -> Iterator[Problem]:
    campaign = book.campaign.get(id_)
    if campaign is None:
        yield place, f"there is no campaign {id_}"
    elif campaign.needs != needs:
        yield place, f'campaign {id_} does not say needs = "{needs}"'


def _doubled_codes(book: RuleBook) -> Iterator[Problem]:
    seen: set[str] = set()
    for name in ("coupons", "referrals", "gift_cards", "loyalty_cards"):
        for i, entry in enumerate(getattr(book, name)):
            if not entry.code:
                continue
            # Codes may differ by case alone: they are two where case counts, else the first.
            key = entry.code
            if key in seen or any(family.find(key) for family, _ in book._families):  # noqa: SLF001 - its own module
                yield f"{name}[{i}].code", f"{entry.code!r} is there twice"
            seen.add(key)
