"""Reads the replies to qualifications, validations and redemptions. Amounts stay in the engine's units."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from adapters.voucherify.matching import LISTS, Entry, Matcher, applies, matcher_for
from adapters.voucherify.options import TIER_ID
from adapters.voucherify.reading import (
    Amounts,
    amount,
    document,
    mapping,
    not_understood,
    objects,
    qualification,
    read_amounts,
    text,
    validation,
)
from adapters.voucherify.redeemables import Redeemable, find, may_be_internal_id
from mapper.adapter import EngineReply

# The product by which a unit discount means the order's shipping.
SHIPPING = frozenset({"prod_5h1pp1ng", "5h1pp1ng"})

_WORD = re.compile(r"[a-z0-9_.-]{1,100}", re.ASCII)


Order = Amounts | dict[str, Any]
"""An order of a reply: decoded with it, or still to be read."""


class Applied(msgspec.Struct, frozen=True):
    """A redeemable that applies, with the amounts that it alone takes off."""

    redeemable: Redeemable
    name: str
    campaign_id: str
    result: dict[str, Any]
    amounts: Amounts

    @property
    def discount(self) -> dict[str, Any]:
        return mapping(self.result.get("discount"))


class Validation(msgspec.Struct, frozen=True):
    """The result of a validation. A redemption and a stored order are read into the same shape."""

    valid: bool
    applied: tuple[Applied, ...] = ()
    inapplicable: dict[Redeemable, str] = {}
    """Redeemables that do not apply, with Voucherify's error key; "" where it gives none."""
    total: int = 0
    applicable: tuple[Redeemable, ...] = ()
    """Redeemables that Voucherify calls applicable, in a validation that is not valid too."""
    rules: Mapping[str, Any] = {}
    """The project's stacking rules."""
    locked: tuple[str, ...] = ()
    """The codes that Voucherify applied, and locked where the request asked for that."""


class Redemptions(msgspec.Struct, frozen=True):
    """The reply to a redemption."""

    result: Validation
    ids: tuple[str, ...]
    """The redemptions to roll back: the parent if there is one, else each."""
    children: tuple[str, ...]
    order: dict[str, Any]
    """The stored order."""


def limit_in(rules: Mapping[str, Any], *names: str) -> int | None:
    """The lowest of these limits in the stacking rules; None where there is none."""
    limits = [value for name in names if isinstance(value := rules.get(name), int) and value > 0]
    return min(limits, default=None)


# --- Qualification ---------------------------------------------------------------------------------------------------


def read_qualification(reply: EngineReply) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The promotion tiers that may apply, best first, and the project's stacking rules."""
    body = qualification(reply)
    entries = objects(mapping(body.get("redeemables")).get("data"))
    ids = (text(entry.get("id")) for entry in entries if entry.get("object") == "promotion_tier")
    return tuple(tier for tier in ids if TIER_ID.fullmatch(tier)), mapping(body.get("stacking_rules"))


# --- Validation ------------------------------------------------------------------------------------------------------


def read_validation(
    reply: EngineReply, redeemables: Sequence[Redeemable], decode: Callable[[EngineReply], Entry] = validation
) -> Validation:
    """The reply to a validation, with status 200. Raises `EngineUnavailable` where it cannot be understood."""
    body = decode(reply)
    valid, rules = body.get("valid"), mapping(body.get("stacking_rules"))
    if not isinstance(valid, bool):
        not_understood("valid is missing")
    matcher = matcher_for(body, redeemables)
    entries: list[Entry] = [entry for entry in objects(body.get("redeemables")) if applies(entry)]
    matches = [matcher.match(entry) for entry in entries]
    applicable = tuple([found for found in matches if found])
    if not valid:
        # The orders that an invalid reply holds do not count.
        inapplicable = read_inapplicable(body, matcher, applicable)
        return Validation(False, inapplicable=inapplicable, applicable=applicable, rules=rules)
    locked = tuple([one.code for one in applicable if one.code])
    if internal := _by_internal_id(entries, matches, redeemables):
        inapplicable = dict.fromkeys(internal, "not_found")
        locked += tuple(one.code for one in internal)
        return Validation(False, inapplicable=inapplicable, applicable=applicable, rules=rules, locked=locked)
    order = _order(body)
    whole: Order = order if len(entries) == 1 else {}
    applied = tuple(
        [
            _applied(entry, found or _not_requested(entry, redeemables), whole)
            for entry, found in zip(entries, matches, strict=True)
        ]
    )
    total = _total(order)
    return Validation(True, applied, _not_applied(body, matcher, applied), total, applicable, rules, locked)


def _by_internal_id(
    entries: Iterable[Entry], matches: Sequence[Redeemable | None], redeemables: Sequence[Redeemable]
) -> list[Redeemable]:
    """The codes that are a voucher's internal id, where the reply has the voucher's code. Shoppers may not use ids."""
    pairs = zip(entries, matches, strict=True)
    if not any(found is None and entry.get("object") == "voucher" for entry, found in pairs):
        return []
    return [one for one in redeemables if may_be_internal_id(one.code) and one not in matches]


def _not_requested(entry: Entry, redeemables: Sequence[Redeemable]) -> Redeemable:
    """One that was not requested by this id, such as the tiers of a stack. Voucherify applied it, so it counts."""
    is_tier = entry.get("object") == "promotion_tier"
    return Redeemable("promotion_tier" if is_tier else "voucher", text(entry.get("id")), len(redeemables))


def _applied(entry: Entry, redeemable: Redeemable, whole: Order) -> Applied:
    """`whole`: the order of the whole reply, which has the entry's amounts where the entry is the only one."""
    order = _order(entry) or whole
    return Applied(
        redeemable=redeemable,
        name=text(entry.get("name")) or text(entry.get("campaign_name")) or redeemable.id,
        campaign_id=text(entry.get("campaign_id")),
        result=mapping(entry.get("result")),
        amounts=order if isinstance(order, Amounts) else read_amounts(order, "applied_discount_amount"),
    )


def _order(parent: Entry) -> Order:
    order = parent.get("order")
    return order if isinstance(order, Amounts) else mapping(order)


def _total(order: Order) -> int:
    """What the reply as a whole takes off: the engine's total, else its two parts. Voucherify leaves zeros out."""
    if isinstance(order, Amounts):
        return order.total or order.discount + order.items_discount
    parts = amount(order, "applied_discount_amount") + amount(order, "items_applied_discount_amount")
    return amount(order, "total_applied_discount_amount") or parts


# --- Redeemables that do not apply -----------------------------------------------------------------------------------


def read_inapplicable(body: Entry, matcher: Matcher, applicable: Sequence[Redeemable] = ()) -> dict[Redeemable, str]:
    """The redeemables that do not apply, with the error key, from all lists of the reply, in the request's order."""
    keys: dict[Redeemable, str] = {}
    for name in LISTS:
        for entry in objects(body.get(name)):
            if not applies(entry) and (found := matcher.match(entry)) is not None:
                keys[found] = keys.get(found) or _key_of(entry)
    return {one: keys[one] for one in matcher.redeemables if one in keys and one not in applicable}


def _not_applied(body: Entry, matcher: Matcher, applied: Iterable[Applied]) -> dict[Redeemable, str]:
    """The redeemables that a valid reply did not apply, with the error key; "" where it gives none."""
    done = tuple(one.redeemable for one in applied)
    keys = read_inapplicable(body, matcher, done)
    return {one: keys.get(one, "") for one in matcher.redeemables if one not in done}


def _key_of(entry: Mapping[str, Any]) -> str:
    result = mapping(entry.get("result"))
    return error_key(mapping(result.get("error"))) or error_key(mapping(result.get("details")))


def error_key(error: Mapping[str, Any]) -> str:
    """Voucherify's error key; "" for free text. It goes to the shopper's browser, and free text may hold anything."""
    key = text(error.get("key"))
    return key if _WORD.fullmatch(key) else ""


# --- Redemption ------------------------------------------------------------------------------------------------------


def read_redemption(reply: EngineReply, redeemables: Sequence[Redeemable]) -> Redemptions:
    """The reply to a redemption, with status 200. It may have redeemed less than was requested."""
    body = document(reply)
    if not isinstance(body.get("redemptions"), list):
        not_understood("redemptions is missing")
    entries = [mapping(entry) for entry in body["redemptions"]]
    if any(entry.get("result") not in ("SUCCESS", "FAILURE") for entry in entries):
        not_understood("a redemption has no result")
    entries = [entry for entry in entries if entry["result"] == "SUCCESS"]
    order = mapping(body.get("order"))
    whole: Order = order if len(entries) == 1 else {}
    # A redemption that does not name its voucher is matched by its place, if as many came back as were requested.
    by_place = redeemables if len(entries) == len(redeemables) else [None] * len(entries)
    validated = [_as_validated(entry, redeemables, place) for entry, place in zip(entries, by_place, strict=True)]
    matcher = Matcher(redeemables)
    applied = tuple(
        [_applied(entry, matcher.match(entry) or _not_requested(entry, redeemables), whole) for entry in validated]
    )
    body = {**body, "redeemables": None}
    children = tuple(filter(None, (text(entry.get("id")) for entry in entries)))
    parent = text(mapping(body.get("parent_redemption")).get("id"))
    inapplicable = _not_applied(body, _matcher_of_rest(body, redeemables, applied), applied)
    return Redemptions(
        result=Validation(True, applied, inapplicable, _total(order)),
        ids=(parent,) if parent else children,
        children=children,
        order=order,
    )


def _matcher_of_rest(body: Entry, redeemables: Sequence[Redeemable], applied: Iterable[Applied]) -> Matcher:
    """The matcher for the entries that were not redeemed."""
    done = {one.redeemable for one in applied}
    rest = matcher_for(body, [one for one in redeemables if one not in done])
    return Matcher(redeemables, rest.by_internal_id)


def _as_validated(entry: dict[str, Any], redeemables: Sequence[Redeemable], place: Redeemable | None) -> dict[str, Any]:
    """A redemption in the shape of a validation's entry."""
    voucher, tier = mapping(entry.get("voucher")), mapping(entry.get("promotion_tier"))
    discount = voucher.get("discount") or tier.get("discount") or mapping(tier.get("action")).get("discount")
    results = {
        "GIFT_VOUCHER": {"gift": {"credits": mapping(entry.get("gift")).get("amount")}},
        "LOYALTY_CARD": {"loyalty_card": {"points": mapping(entry.get("loyalty_card")).get("points")}},
    }
    campaign = mapping(tier.get("campaign"))
    ids = [text(tier.get("id"))] if tier else [text(voucher.get("code")), text(voucher.get("id"))]
    redeemable = find(redeemables, ids) or place
    return {
        "status": "APPLICABLE",
        "object": "promotion_tier" if tier else "voucher",
        "id": redeemable.id if redeemable else next(filter(None, ids), ""),
        "name": tier.get("name") or voucher.get("campaign") or campaign.get("name"),
        "campaign_id": voucher.get("campaign_id") or tier.get("campaign_id") or campaign.get("id"),
        "result": results.get(text(voucher.get("type")), {"discount": discount}),
        "order": entry.get("order"),
    }
