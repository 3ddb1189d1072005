"""What Voucherify answers to a qualification, a validation, a redemption. Amounts stay in the engine's units."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.voucherify.naming import LISTS, Entry, Naming, applies, read_names
from adapters.voucherify.options import TIER_ID
from adapters.voucherify.reading import amount, document, mapping, not_understood, objects, text
from adapters.voucherify.redeemables import Redeemable, looks_internal, named
from mapper.adapter import EngineReply

# The product by which a unit discount means the order's shipping.
SHIPPING = frozenset({"prod_5h1pp1ng", "5h1pp1ng"})

_WORD = re.compile(r"[a-z0-9_.-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Item:
    """A line in an answer. Amounts in the engine's units."""

    source_id: str
    quantity: int
    price: int
    discount: int
    added: int | None
    """How many units the engine added (below zero: took away); None where the answer does not say."""
    added_worth: int
    raw: dict[str, Any]


NO_ITEM = Item("", 0, 0, 0, None, 0, {})


@dataclass(frozen=True, slots=True)
class Amounts:
    """An order in an answer: what is off the order as a whole, and off each line."""

    discount: int
    items: tuple[Item, ...]
    total: int
    """The engine's own sum."""

    def item(self, index: int) -> Item:
        return self.items[index] if index < len(self.items) else NO_ITEM

    @property
    def sum(self) -> int:
        return self.discount + sum(item.discount for item in self.items)


@dataclass(frozen=True, slots=True)
class Applied:
    """A redeemable that applies, with its share alone."""

    asked: Redeemable
    name: str
    campaign_id: str
    result: dict[str, Any]
    amounts: Amounts

    @property
    def discount(self) -> dict[str, Any]:
        return mapping(self.result.get("discount"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of the redeemables that were asked for. `refused`: why, by Voucherify's key ("" where it says none)."""

    valid: bool
    applied: tuple[Applied, ...] = ()
    refused: dict[Redeemable, str] = field(default_factory=dict)
    total: int = 0
    fine: tuple[Redeemable, ...] = ()
    """Those that apply, or would but for another one: an answer that is not valid names them, too."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """The project's stacking rules."""


@dataclass(frozen=True, slots=True)
class Redemptions:
    """An answer to a redemption."""

    answer: Answer
    ids: tuple[str, ...]
    """What to roll back: the parent if there is one, else each redemption."""
    children: tuple[str, ...]
    order: dict[str, Any]
    """As it is stored now."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a qualification says: the promotions that may apply, best first, and the project's stacking rules."""

    tiers: tuple[str, ...]
    rules: Mapping[str, Any] = field(default_factory=dict)


def limit_in(rules: Mapping[str, Any], *names: str) -> int | None:
    """The least of these limits among stacking rules; None where none is told."""
    found = [value for name in names if isinstance(value := rules.get(name), int) and value > 0]
    return min(found, default=None)


# --- Qualification ---------------------------------------------------------------------------------------------------


def read_offer(reply: EngineReply) -> Offer:
    """What a qualification offers beside promotions is not asked for, and left alone."""
    body = document(reply)
    found = objects(mapping(body.get("redeemables")).get("data"))
    ids = (text(entry.get("id")) for entry in found if entry.get("object") == "promotion_tier")
    return Offer(tuple(tier for tier in ids if TIER_ID.fullmatch(tier)), mapping(body.get("stacking_rules")))


# --- Validation ------------------------------------------------------------------------------------------------------


def read_validation(reply: EngineReply, asked: Sequence[Redeemable]) -> Answer:
    """The answer to a validation with status 200. Raises `EngineUnavailable` where it cannot be understood."""
    body = document(reply)
    valid, rules = body.get("valid"), mapping(body.get("stacking_rules"))
    if not isinstance(valid, bool):
        not_understood("valid is missing")
    naming = read_names(body, asked)
    entries = [entry for entry in objects(body.get("redeemables")) if applies(entry)]
    fine = tuple(one for entry in entries if (one := naming.one(entry)))
    if not valid:
        # Voucherify leaves orders in the redeemables of an invalid answer: they must not be looked at.
        return Answer(False, refused=refused_in(body, naming, fine), fine=fine, rules=rules)
    if internal := _by_internal_id(entries, naming, fine):
        return Answer(valid=False, refused=dict.fromkeys(internal, "not_found"), fine=fine, rules=rules)
    order = mapping(body.get("order"))
    applied = tuple(_applied(entry, naming, order if len(entries) == 1 else {}) for entry in entries)
    total = amount(order, "total_applied_discount_amount")
    return Answer(True, applied, _others(body, naming, applied), total, fine, rules)


def _by_internal_id(entries: Iterable[dict[str, Any]], naming: Naming, fine: Sequence[Redeemable]) -> list[Redeemable]:
    """What was asked for by a voucher's internal id, where the answer gives its code: no code that one may use."""
    strange = [entry for entry in entries if entry.get("object") == "voucher" and naming.one(entry) is None]
    return [one for one in naming.asked if looks_internal(one.code) and one not in fine] if strange else []


def _applied(entry: dict[str, Any], naming: Naming, whole: dict[str, Any]) -> Applied:
    one = naming.one(entry)
    if one is None:
        # Nothing we asked for, such as the tiers of a stack: it is what the engine applied, all the same.
        is_tier = entry.get("object") == "promotion_tier"
        one = Redeemable("promotion_tier" if is_tier else "voucher", text(entry.get("id")), len(naming.asked))
    # With one redeemable alone, the order of the whole answer is as good as its own.
    return Applied(
        asked=one,
        name=text(entry.get("name")) or text(entry.get("campaign_name")),
        campaign_id=text(entry.get("campaign_id")),
        result=mapping(entry.get("result")),
        amounts=read_amounts(mapping(entry.get("order")) or whole, "applied_discount_amount"),
    )


def read_amounts(order: dict[str, Any], off: str) -> Amounts:
    """The amounts of an order. `off`: which discount is meant, this request's share or what is off in all."""
    items = tuple(_item(item, off) for item in objects(order.get("items")))
    return Amounts(amount(order, off), items, amount(order, f"total_{off}"))


def _item(item: dict[str, Any], off: str) -> Item:
    price = amount(item, "price")
    added, added_worth = _added(item, price)
    return Item(
        text(item.get("source_id")), amount(item, "quantity"), price, amount(item, off), added, added_worth, item
    )


def _added(item: dict[str, Any], price: int) -> tuple[int | None, int]:
    """`Item.added` and `added_worth`."""
    # Null is as good as absent: it says nothing. A zero says that nothing was added.
    says_units, says_worth = item.get("applied_quantity") is not None, item.get("applied_quantity_amount") is not None
    if not says_units and not says_worth:
        return None, 0
    units = amount(item, "applied_quantity", signed=True)
    worth = amount(item, "applied_quantity_amount", signed=True)
    if not says_worth:
        worth = units * price
    elif not says_units:
        units = worth // price if price else (worth > 0) - (worth < 0)
    return units, worth


# --- Which are refused -----------------------------------------------------------------------------------------------


def refused_in(body: Entry, naming: Naming, fine: Sequence[Redeemable] = ()) -> dict[Redeemable, str]:
    """Why those that an answer names do not apply, merged from the three lists that may name them, in our order."""
    keys: dict[Redeemable, str] = {}
    for place in LISTS:
        for entry in objects(body.get(place)):
            if not applies(entry) and (one := naming.one(entry)) is not None:
                keys[one] = keys.get(one) or _key_of(entry)
    return {one: keys[one] for one in naming.asked if one in keys and one not in fine}


def _others(body: Entry, naming: Naming, applied: Iterable[Applied]) -> dict[Redeemable, str]:
    """Why each redeemable that a valid answer has not applied was left out; "" where it does not say."""
    done = tuple(one.asked for one in applied)
    keys = refused_in(body, naming, done)
    return {one: keys.get(one, "") for one in naming.asked if one not in done}


def _key_of(entry: Mapping[str, Any]) -> str:
    result = mapping(entry.get("result"))
    return key_in(mapping(result.get("error"))) or key_in(mapping(result.get("details")))


def key_in(holder: Mapping[str, Any]) -> str:
    """Voucherify's word; it goes to the shopper's browser, so a text that may say anything is not passed on."""
    key = text(holder.get("key"))
    return key if _WORD.fullmatch(key) else ""


# --- Redemption ------------------------------------------------------------------------------------------------------


def read_redemption(reply: EngineReply, asked: Sequence[Redeemable]) -> Redemptions:
    """The answer to a redemption with status 200, which may have redeemed less than was asked for."""
    body = document(reply)
    if not isinstance(body.get("redemptions"), list):
        not_understood("redemptions is missing")
    entries = [entry for entry in objects(body["redemptions"]) if entry.get("result") == "SUCCESS"]
    order = mapping(body.get("order"))
    whole = order if len(entries) == 1 else {}
    # Where a redemption does not name its voucher, its place does, if as many came back as were asked for.
    places = asked if len(entries) == len(asked) else [None] * len(entries)
    applied = tuple(
        _applied(_as_validated(entry, asked, place), Naming(asked), whole)
        for entry, place in zip(entries, places, strict=True)
    )
    refused = _others({**body, "redeemables": None}, _of_the_rest(body, asked, applied), applied)
    children = tuple(filter(None, (text(entry.get("id")) for entry in entries)))
    parent = text(mapping(body.get("parent_redemption")).get("id"))
    return Redemptions(
        answer=Answer(True, applied, refused, amount(order, "total_applied_discount_amount")),
        ids=(parent,) if parent else children,
        children=children,
        order=order,
    )


def _of_the_rest(body: Entry, asked: Sequence[Redeemable], applied: Iterable[Applied]) -> Naming:
    """How those are called that were not redeemed."""
    done = {one.asked for one in applied}
    rest = read_names({**body, "redeemables": None}, [one for one in asked if one not in done])
    return Naming(asked, rest.by_id)


def _as_validated(entry: dict[str, Any], asked: Sequence[Redeemable], place: Redeemable | None) -> dict[str, Any]:
    """A redemption in the words of a validation."""
    voucher, tier = mapping(entry.get("voucher")), mapping(entry.get("promotion_tier"))
    discount = voucher.get("discount") or tier.get("discount") or mapping(tier.get("action")).get("discount")
    results = {
        "GIFT_VOUCHER": {"gift": {"credits": mapping(entry.get("gift")).get("amount")}},
        "LOYALTY_CARD": {"loyalty_card": {"points": mapping(entry.get("loyalty_card")).get("points")}},
    }
    campaign = mapping(tier.get("campaign"))
    own = [text(tier.get("id"))] if tier else [text(voucher.get("code")), text(voucher.get("id"))]
    one = named(asked, own) or place
    return {
        "status": "APPLICABLE",
        "object": "promotion_tier" if tier else "voucher",
        "id": one.id if one else next(filter(None, own), ""),
        "name": tier.get("name") or voucher.get("campaign") or campaign.get("name"),
        "campaign_id": voucher.get("campaign_id") or tier.get("campaign_id") or campaign.get("id"),
        "result": results.get(text(voucher.get("type")), {"discount": discount}),
        "order": entry.get("order"),
    }
