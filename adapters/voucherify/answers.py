"""What Voucherify answers, read by hand and leniently.

Unknown fields and unknown words never cost an answer; an amount that cannot be read always does: `EngineUnavailable`.
Amounts stay in the engine's units (`Settings.exponent`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from adapters.voucherify import reasons
from adapters.voucherify.options import TIER_ID, Settings
from adapters.voucherify.questions import Redeemable, line_name, to_engine
from mapper.adapter import Checkout, EngineReply, EngineUnavailable, money

# The product by which a unit discount means the order's shipping.
SHIPPING = frozenset({"prod_5h1pp1ng", "5h1pp1ng"})

_WORD = re.compile(r"[a-z0-9_.-]{1,100}", re.ASCII)
_decode = msgspec.json.Decoder(float_hook=Decimal).decode


@dataclass(frozen=True, slots=True)
class Item:
    """A line in an answer. Amounts in the engine's units."""

    source_id: str
    quantity: int
    price: int
    discount: int
    added: int | None
    """The worth of the units the engine added (below zero: took away); None where the answer does not say."""
    raw: dict[str, Any]


NO_ITEM = Item("", 0, 0, 0, None, {})


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


NO_AMOUNTS = Amounts(0, (), 0)


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
        return _object(self.result.get("discount"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of the redeemables that were asked for. `refused`: why, by Voucherify's key ("" where it says none)."""

    valid: bool
    applied: tuple[Applied, ...] = ()
    refused: dict[Redeemable, str] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True)
class Redeemed:
    """An answer to a redemption."""

    answer: Answer
    ids: tuple[str, ...]
    """What to roll back: the parent if there is one, else each redemption."""
    children: tuple[str, ...]
    live: tuple[str, ...]
    """All redemptions of the order that have not been rolled back, oldest first."""


def read_validation(reply: EngineReply, asked: Sequence[Redeemable]) -> Answer:
    """The answer to a validation with status 200. Raises `EngineUnavailable` where it cannot be understood."""
    body = _json(reply)
    valid = body.get("valid")
    if not isinstance(valid, bool):
        _not_understood("valid is missing")
    if not valid:
        # Voucherify leaves orders in the redeemables of an invalid answer: they must not be looked at.
        return Answer(valid=False, refused=_refused(body, asked, ()))
    listed = _objects(body.get("redeemables"))
    entries = [entry for entry in listed if entry.get("status") == "APPLICABLE"]
    order = _object(body.get("order"))
    applied = tuple(_applicable(entry, asked, order if len(entries) == 1 else {}) for entry in entries)
    return Answer(True, applied, _refused(body, asked, applied), _amount(order, "total_applied_discount_amount"))


def _applicable(entry: dict[str, Any], asked: Sequence[Redeemable], whole: dict[str, Any]) -> Applied:
    # With one redeemable alone, the order of the whole answer is as good as its own.
    own = _object(entry.get("order")) or whole
    return Applied(
        asked=_match(entry, asked),
        name=_text(entry.get("name")) or _text(entry.get("campaign_name")),
        campaign_id=_text(entry.get("campaign_id")),
        result=_object(entry.get("result")),
        amounts=read_amounts(own, "applied_discount_amount"),
    )


def _refused(body: dict[str, Any], asked: Sequence[Redeemable], applied: Iterable[Applied]) -> dict[Redeemable, str]:
    """Why each of the others does not apply, merged from the three lists that may name it, in the order asked for."""
    done = {one.asked for one in applied}
    keys: dict[Redeemable, str] = {}
    for place in ("redeemables", "inapplicable_redeemables", "skipped_redeemables"):
        for entry in _objects(body.get(place)):
            one = _match(entry, asked)
            if entry.get("status") != "APPLICABLE":
                keys[one] = keys.get(one) or _key_of(entry)
    return {one: keys.get(one, "") for one in asked if one not in done and (body["valid"] or one in keys or not keys)}


def _key_of(entry: dict[str, Any]) -> str:
    result = _object(entry.get("result"))
    return _key(_object(result.get("error"))) or _key(_object(result.get("details")))


def _key(holder: dict[str, Any]) -> str:
    """Voucherify's word; it goes to the shopper's browser, so a text that may say anything is not passed on."""
    key = _text(holder.get("key"))
    return key if _WORD.fullmatch(key) else ""


def _match(entry: dict[str, Any], asked: Sequence[Redeemable]) -> Redeemable:
    """Which redeemable an entry is about: by id, in a project that ignores case also by the id in another case."""
    kind, name = _text(entry.get("object")), _text(entry.get("id"))
    for one in asked:
        if one.id == name and one.object == kind:
            return one
    for one in asked:
        if one.id.casefold() == name.casefold():
            return one
    # Nothing we asked for, such as the tiers of a stack: it is what the engine applied, all the same.
    return Redeemable("promotion_tier" if kind == "promotion_tier" else "voucher", name, len(asked))


def read_amounts(order: dict[str, Any], off: str) -> Amounts:
    """The amounts of an order. `off`: which discount is meant, this request's share or what is off in all."""
    items = []
    for item in _objects(order.get("items")):
        says = "applied_quantity" in item or "applied_quantity_amount" in item
        items.append(
            Item(
                source_id=_text(item.get("source_id")),
                quantity=_amount(item, "quantity"),
                price=_amount(item, "price"),
                discount=_amount(item, off),
                added=_amount(item, "applied_quantity_amount", signed=True) if says else None,
                raw=item,
            )
        )
    return Amounts(_amount(order, off), tuple(items), _amount(order, f"total_{off}"))


def read_redemption(reply: EngineReply, asked: Sequence[Redeemable]) -> Redeemed:
    """The answer to a redemption with status 200, which may have redeemed less than was asked for."""
    body = _json(reply)
    if not isinstance(body.get("redemptions"), list):
        _not_understood("redemptions is missing")
    entries = [entry for entry in _objects(body["redemptions"]) if entry.get("result") == "SUCCESS"]
    order = _object(body.get("order"))
    whole = order if len(entries) == 1 else {}
    # Where a redemption does not name its voucher, its place does, if as many came back as were asked for.
    places = asked if len(entries) == len(asked) else [None] * len(entries)
    applied = tuple(_redeemed(entry, asked, whole, place) for entry, place in zip(entries, places, strict=True))
    refused = _refused({**body, "valid": True, "redeemables": None}, asked, applied)
    children = tuple(filter(None, (_text(entry.get("id")) for entry in entries)))
    parent = _text(_object(body.get("parent_redemption")).get("id"))
    return Redeemed(
        answer=Answer(True, applied, refused, _amount(order, "total_applied_discount_amount")),
        ids=(parent,) if parent else children,
        children=children,
        live=live_redemptions(order),
    )


def _redeemed(
    entry: dict[str, Any], asked: Sequence[Redeemable], whole: dict[str, Any], place: Redeemable | None
) -> Applied:
    """A redemption in the words of a validation."""
    voucher, tier = _object(entry.get("voucher")), _object(entry.get("promotion_tier"))
    discount = voucher.get("discount") or tier.get("discount") or _object(tier.get("action")).get("discount")
    results = {
        "GIFT_VOUCHER": {"gift": {"credits": _object(entry.get("gift")).get("amount")}},
        "LOYALTY_CARD": {"loyalty_card": {"points": _object(entry.get("loyalty_card")).get("points")}},
    }
    campaign = _object(tier.get("campaign"))
    said = {
        "object": "promotion_tier" if tier else "voucher",
        "id": (tier.get("id") if tier else voucher.get("code")) or (place.id if place else ""),
        "name": tier.get("name") or voucher.get("campaign") or campaign.get("name"),
        "campaign_id": voucher.get("campaign_id") or tier.get("campaign_id") or campaign.get("id"),
        "result": results.get(_text(voucher.get("type")), {"discount": discount}),
        "order": entry.get("order"),
    }
    return _applicable(said, asked, whole)


def read_tiers(reply: EngineReply) -> tuple[str, ...]:
    """The promotions a qualification offers; what else it offers is not asked for and left alone."""
    found = _objects(_object(_json(reply).get("redeemables")).get("data"))
    ids = (_text(entry.get("id")) for entry in found if entry.get("object") == "promotion_tier")
    return tuple(tier for tier in ids if TIER_ID.fullmatch(tier))


def read_order(reply: EngineReply) -> dict[str, Any] | None:
    """The stored order; None where Voucherify says that it knows none."""
    if reply.status == 200:
        return _json(reply)
    # Only Voucherify's own "not found" counts: a proxy's or a wrong address's would make us redeem a second time.
    if reply.status == 404 and error(reply).key in ("not_found", "resource_not_found"):
        return None
    if reply.status == 404:
        _not_understood("404 without a key")
    raise reasons.problem(reply.status, error(reply).key)


def granted(order: dict[str, Any], session: str, lines: int) -> Answer:
    """What a stored order has off in all. Which redeemable earned what is not stored with it."""
    amounts = read_amounts(order, "discount_amount")
    shipping = [item for item in amounts.items[lines:] if SHIPPING & {item.raw.get("product_id"), item.source_id}]
    # Told as the unit discount that has put the shipping line there.
    result = {"discount": {"type": "UNIT", "unit_type": "prod_5h1pp1ng"}} if shipping else {}
    one = Applied(Redeemable("order", session), "Voucherify", "", result, amounts)
    return Answer(valid=True, applied=(one,), total=amounts.total)


def same_cart(order: dict[str, Any], checkout: Checkout, settings: Settings) -> bool:
    """Whether a stored order has this cart's lines, as far as it says; units that Voucherify added do not count."""
    stored = _objects(order.get("items"))
    if len(stored) < len(checkout.cart) and "items" in order:
        return False
    for line, item in zip(checkout.cart, stored, strict=False):
        ours = {
            "source_id": line_name(line, settings)[0],
            "price": to_engine(line.list_price, checkout.digits, settings.exponent),
            "initial_quantity": line.quantity,
        }
        if any(item.get(name) not in (None, value) for name, value in ours.items()):
            return False
    return not any(item.get("initial_quantity") for item in stored[len(checkout.cart) :])


_OF_REDEMPTION = {"date", "related_object_type", "related_object_id", "stacked", "rollback_id"}


def live_redemptions(order: dict[str, Any]) -> tuple[str, ...]:
    """The redemptions of a stored order that stand, oldest first: parents alone, since only they can be rolled back.

    What stands among them and looks like none is left out: taken for the first, it would have the real one rolled back.
    """
    found = {name: _object(entry) for name, entry in _object(order.get("redemptions")).items()}
    entries = {name: entry for name, entry in found.items() if name.startswith("r_") or entry.keys() & _OF_REDEMPTION}
    children = {str(child) for entry in entries.values() for child in _list(entry.get("stacked"))}
    standing = [name for name, entry in entries.items() if not entry.get("rollback_id") and name not in children]
    return tuple(sorted(standing, key=lambda name: (_text(entries[name].get("date")), name)))


def parts(order: dict[str, Any], redemption_id: str) -> tuple[str, ...]:
    """The redemptions that a live one of a stored order consists of, one per redeemable: its children, or itself."""
    children = _list(_object(_object(order.get("redemptions")).get(redemption_id)).get("stacked"))
    return tuple(dict.fromkeys(str(child) for child in children)) or (redemption_id,)


def read_part(reply: EngineReply, asked: Sequence[Redeemable]) -> Redeemable | None:
    """What one of them redeemed; None for one that failed. Raises `EngineUnavailable` where it does not say."""
    if reply.status == 404:
        _not_understood("an order's redemption is not there")
    if reply.status != 200:
        raise reasons.problem(reply.status, error(reply).key)
    body = _json(reply)
    tier = _text(_object(body.get("promotion_tier")).get("id"))
    name = tier or _text(_object(body.get("voucher")).get("code"))
    if not name or body.get("result") not in ("SUCCESS", "FAILURE"):
        _not_understood("a redemption does not say of what")
    said = {"object": "promotion_tier" if tier else "voucher", "id": name}
    return _match(said, asked) if body["result"] == "SUCCESS" else None


@dataclass(frozen=True, slots=True)
class Error:
    """An answer with status 4xx."""

    key: str
    about_redeemable: bool
    resource_id: str
    details: str

    def names(self, one: "Redeemable") -> bool:
        """Whether it says that it is about this redeemable."""
        return one.id in (self.resource_id, self.details) or self.details.endswith(f" id {one.id}")


def error(reply: EngineReply) -> Error:
    """Reads an error as far as it can be read: a broken one is an error all the same."""
    try:
        body = _json(reply)
    except EngineUnavailable:
        body = {}
    about = _text(body.get("resource_type")) in ("voucher", "promotion_tier", "redemption")
    return Error(_key(body), about, _text(body.get("resource_id")), _text(body.get("details")))


def read_refusal(reply: EngineReply, asked: Sequence[Redeemable]) -> tuple[dict[Redeemable, str], str]:
    """Which redeemables an answer with status 4xx is about (empty: it does not say), and its key.

    Raises a `Problem` where the answer is no matter of a redeemable.
    """
    found = error(reply)
    fault = reasons.fault(reply.status, found.key)
    meant = {one: found.key for one in asked if found.names(one)}
    if reply.status == 404:
        concerns = found.about_redeemable or bool(meant)
    else:
        known = found.key in reasons.FAULTS
        concerns = fault.kind == "code" or (not known and fault.kind == "request" and found.about_redeemable)
    if not concerns or not 400 <= reply.status < 500:
        raise reasons.problem(reply.status, found.key)
    if not meant and len(asked) == 1:
        meant = {asked[0]: found.key}
    if not meant and found.key == "missing_reward":
        meant = {one: found.key for one in asked if "reward" in one.spend}
    return meant, found.key


def _json(reply: EngineReply) -> dict[str, Any]:
    try:
        body = _decode(reply.body)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        _not_understood("no JSON")
    if not isinstance(body, dict):
        _not_understood("no object")
    return body


def _not_understood(why: str) -> NoReturn:
    message = f"Voucherify's answer cannot be understood ({why})."
    raise EngineUnavailable(message, reason="reply_not_understood", sent=True)


def _amount(holder: Mapping[str, Any], key: str, *, signed: bool = False) -> int:
    """An amount or a count; Voucherify leaves zeros out."""
    value = holder.get(key)
    if value is None:
        return 0
    try:
        amount = money.from_engine(value)
    except money.NotMoney as error:
        _not_understood(f"{key} {error}")
    if amount != amount.to_integral_value() or (amount < 0 and not signed):
        _not_understood(f"{key} is no whole amount")
    return int(amount)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in _list(value) if isinstance(entry, dict)]
