"""From Talon.One's effects to an outcome.

Effects are the engine's whole answer: "apply this", one entry for each unit of each line that a rule touches
(https://docs.talon.one/docs/dev/integration-api/api-effects). Their order means nothing: discounts are added up by rule
and the rules sorted; the few others are sorted before they are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from msgspec import Raw

from adapters.talon_one import reasons, wire
from adapters.talon_one.session import Asked
from mapper.adapter import (
    Discount,
    EngineRejected,
    EngineUnavailable,
    Notice,
    Outcome,
    Problem,
    Rejection,
    Scope,
    money,
)


class Row(NamedTuple):
    """What becomes of an effect.

    - `order`, `cost`: a discount beside the lines; on one of the cart's additional costs
    - `item`, `item_cost`: a discount on the line at `position`; on one of that line's own additional costs, which is
      listed beside the lines, since it does not lower the item's price
    - `accept`, `refuse`: the engine's word on a code
    - `notice`: passed on to the storefront

    `text` tells people about it; {names} are the effect's props.
    """

    becomes: Literal["order", "cost", "item", "item_cost", "accept", "refuse", "notice"]
    text: str


_POINTS_UNDONE = "Loyalty points are taken back or returned."
_DATES = "The expiry date of loyalty points changes."

# All effect types of August 2026 (platform 26.16). What is not listed becomes a notice, too.
TABLE: dict[str, Row] = {
    # Money
    "setDiscount": Row("order", "The discount {name} comes to no amount."),
    "setDiscountPerItem": Row("item", "The discount {name} comes to no amount."),
    "setDiscountPerAdditionalCost": Row("cost", "The discount {name} comes to no amount."),
    "setDiscountPerAdditionalCostPerItem": Row("item_cost", "The discount {name} comes to no amount."),
    "rollbackDiscount": Row("notice", "The discount {name} is taken back."),
    "addFreeItem": Row("notice", "This cart earns a free item: {name} ({sku})."),
    # Codes
    "acceptCoupon": Row("accept", "The code {value} is accepted."),
    "rejectCoupon": Row("refuse", "The code {value} is refused."),
    "acceptReferral": Row("accept", "The referral code {value} is accepted."),
    "rejectReferral": Row("refuse", "The referral code {value} is refused."),
    "redeemReferral": Row("accept", "The referral code {value} is accepted."),  # deprecated, as acceptReferral
    "couponCreated": Row("notice", "A new code was created for the customer: {value}."),
    "referralCreated": Row("notice", "A new referral code was created: {value}."),
    "reserveCoupon": Row("notice", "The code {couponValue} is reserved for the customer."),
    "rollbackCoupon": Row("notice", "The code {value} can be used again."),
    "rollbackReferral": Row("notice", "The referral code {value} can be used again."),
    # Loyalty: points are no money; what they pay for comes as a discount of its own
    "addLoyaltyPoints": Row("notice", "{value} loyalty points are earned: {name}."),
    "deductLoyaltyPoints": Row("notice", "{value} loyalty points are spent: {name}."),
    "changeLoyaltyTierLevel": Row("notice", "The customer reaches the loyalty tier {newTierName}."),
    "rollbackAddedLoyaltyPoints": Row("notice", _POINTS_UNDONE),
    "rollbackDeductedLoyaltyPoints": Row("notice", _POINTS_UNDONE),
    "extendLoyaltyPointsExpiryDate": Row("notice", _DATES),
    "setLoyaltyPointsExpiryDate": Row("notice", _DATES),
    # Giveaways: the code itself stands in the payload only, it is worth money
    "willAwardGiveaway": Row("notice", "With the order comes a giveaway: {poolName}."),
    "awardGiveaway": Row("notice", "A giveaway is awarded: {poolName}."),
    # Achievements and audiences
    "startAchievementProgress": Row("notice", "The achievement {achievementName} begins."),
    "increaseAchievementProgress": Row("notice", "Progress in the achievement {achievementName}: {value} of {target}."),
    "rollbackIncreasedAchievementProgress": Row(
        "notice", "Progress in the achievement {achievementName} is taken back."
    ),
    "addToAudience": Row("notice", "The customer joins an audience."),
    "removeFromAudience": Row("notice", "The customer leaves an audience."),
    # Messages and others
    "showNotification": Row("notice", "{title}: {body}"),
    "customEffect": Row("notice", "The promotion engine returns {name}."),
    "updateAttribute": Row("notice", "The attribute {path} has a new value."),
    "triggerWebhook": Row("notice", "The promotion engine calls a webhook."),
    "showBundleMetadata": Row("notice", "{description}"),  # deprecated
    # A rule that failed inside a 200: https://docs.talon.one/docs/dev/integration-api/api-effects#error
    "error": Row("notice", "A promotion rule failed; what it grants is missing."),
}
_MONEY = frozenset({"order", "cost", "item", "item_cost"})
_UNKNOWN = Row("notice", "The promotion engine returns something that this service does not know.")


class _Rule(NamedTuple):
    """Effects that agree in this are shares of one discount: they are added up first and rounded once."""

    campaign: int
    ruleset: int
    rule_index: int
    coupon: int
    """These four are -1 where the effect does not name any."""
    effect_type: str
    name: str
    scope: str
    cost: str
    bundle: str
    rule_name: str


@dataclass(slots=True)
class _Shares:
    """The shares of one rule, by position (-1: none), exact."""

    values: dict[int, list[Decimal]] = field(default_factory=dict)
    announced: set[Decimal] = field(default_factory=set)
    """The totals that pro-rata effects announce; each effect repeats its own."""
    props: list[Raw] = field(default_factory=list)


@dataclass(slots=True)
class _Answer:
    """What has been read so far."""

    rules: dict[tuple[Any, ...], _Shares] = field(default_factory=dict)
    """By what a `_Rule` is made of."""
    accepted: dict[str, set[str]] = field(default_factory=dict)
    """Folded codes, by kind of code."""
    refused: list[tuple[str, str, str | None, str | None, Notice]] = field(default_factory=list)
    coupons: dict[int, str] = field(default_factory=dict)
    """Codes by the engine's number for the coupon."""
    selected: dict[int, Decimal] = field(default_factory=dict)
    """The price of a line, by position, where the engine reckons with another than the one it was sent."""
    notices: list[Notice] = field(default_factory=list)


def read(
    effects: Sequence[wire.Effect | Raw], campaigns: Mapping[int, wire.Campaign], asked: Asked, *, strict: bool
) -> Outcome:
    """What the engine grants.

    An effect that concerns money or a code and cannot be read is an error while it can still be refused (`strict`):
    `EngineRejected` for a position that the cart does not have, else `EngineUnavailable`. Once the session is closed it
    can only be told: as a notice.
    """
    answer = _Answer()
    odd: list[tuple[wire.Effect | Raw, Problem | None]] = []
    """What is not simply a discount, or is one that cannot be read."""
    for effect in effects:
        if isinstance(effect, Raw) or (becomes := TABLE.get(effect.effect_type, _UNKNOWN).becomes) not in _MONEY:
            odd.append((effect, None))
            continue
        try:
            _read_discount(effect, becomes, asked, answer)
        except Problem as problem:
            odd.append((effect, problem))
    for one, unreadable in sorted(odd, key=_order):
        _read_odd(one, unreadable, asked, answer, strict=strict)
    discounts = _discounts(answer, campaigns, asked)
    rejected = _rejected(answer, asked)
    answer.notices += [_other_price(position, price, asked) for position, price in sorted(answer.selected.items())]
    notices = (*asked.notices, *answer.notices)
    return Outcome(discounts=discounts, rejected=rejected, notices=notices, costs=asked.told_costs)


def _order(found: tuple[wire.Effect | Raw, Problem | None]) -> tuple[Any, ...]:
    effect, _ = found
    if isinstance(effect, Raw):
        return (1, bytes(effect))
    return (0, *_ids(effect), effect.effect_type, bytes(effect.props))


def _ids(effect: wire.Effect) -> tuple[int, int, int, int]:
    campaign, ruleset, rule_index = effect.campaign_id, effect.ruleset_id, effect.rule_index
    coupon = effect.triggered_by_coupon
    return (
        -1 if campaign is None else campaign,
        -1 if ruleset is None else ruleset,
        -1 if rule_index is None else rule_index,
        -1 if coupon is None else coupon,
    )


def _read_odd(
    effect: wire.Effect | Raw, problem: Problem | None, asked: Asked, answer: _Answer, *, strict: bool
) -> None:
    if isinstance(effect, Raw):
        answer.notices.append(Notice("unreadable", _UNKNOWN.text, wire.decode(wire.PLAIN, effect)))
        return
    row = TABLE.get(effect.effect_type, _UNKNOWN)
    try:
        if problem is not None:
            raise problem
        if row.becomes == "notice":
            answer.notices.append(_notice(effect, row.text))
        else:
            _read_code(effect, row, asked, answer)
    except Problem as unreadable:
        if strict:
            raise
        answer.notices.append(_notice(effect, unreadable.message))


def _notice(effect: wire.Effect, text: str) -> Notice:
    payload = wire.decode(wire.PLAIN, effect.props)
    return Notice(effect.effect_type, _fill(text, payload), payload)


def _other_price(position: int, price: Decimal, asked: Asked) -> Notice:
    """Price types (a members' price) lower a price without any effect that says so: not supported, so it is said."""
    sku = asked.lines[position].name
    text = f"Talon.One reckons with {price} for {sku}, which is not the price that it was sent."
    return Notice("selectedPrice", text, {"position": position, "sku": sku, "selectedPrice": price})


class _Props(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _fill(text: str, payload: Any) -> str:
    props = payload.items() if isinstance(payload, dict) else ()
    known = _Props({key: str(value) for key, value in props if isinstance(value, str | int | Decimal)})
    return text.format_map(known).strip(" :")


# ---------------------------------------------------------------------------------------------------------------------
# Codes


def _read_code(effect: wire.Effect, row: Row, asked: Asked, answer: _Answer) -> None:
    props = wire.decode(wire.CODE, effect.props)
    if props is None:
        raise _unreadable()
    kind = "coupon" if effect.effect_type.endswith("Coupon") else "referral"
    code = props.value.casefold()
    notice = _notice(effect, row.text)
    if row.becomes == "refuse":
        answer.refused.append((kind, code, props.rejection_reason, props.campaign_exclusion_reason, notice))
        return
    answer.notices.append(notice)
    answer.accepted.setdefault(kind, set()).add(code)
    if effect.triggered_by_coupon is not None and kind == "coupon":
        spelled = (typed for typed in asked.session.coupon_codes if typed.casefold() == code)
        answer.coupons.setdefault(effect.triggered_by_coupon, next(spelled, props.value))


def _rejected(answer: _Answer, asked: Asked) -> tuple[Rejection, ...]:
    """One refusal for each refused code, in the order in which the codes were given.

    A code that several campaigns share may be accepted by one and refused by another: then it works, and the refusal is
    only told. So is the refusal of a code that is not in this cart, and so is a code that got no answer: the
    documentation has an effect for every code, so nothing says that such a one does not work.
    """
    sent = {("coupon", code.casefold()): code for code in asked.session.coupon_codes}
    if asked.session.referral_code:
        sent["referral", asked.session.referral_code.casefold()] = asked.session.referral_code
    found: dict[tuple[str, str], Rejection] = {}
    for kind, code, word, exclusion, notice in answer.refused:
        if (kind, code) not in sent or code in answer.accepted.get(kind, ()):
            answer.notices.append(notice)
            continue
        table = reasons.COUPON if kind == "coupon" else reasons.REFERRAL
        rejection = Rejection(sent[kind, code], reasons.reason(table, word, exclusion), reasons.word(word))
        found.setdefault((kind, code), rejection)
    for (kind, code), spelled in sent.items():
        if (kind, code) not in found and code not in answer.accepted.get(kind, ()):
            text = f"The promotion engine neither accepts nor refuses the code {spelled}."
            answer.notices.append(Notice("code_not_answered", text, {"value": spelled}))
    order = {code: place for place, code in reversed(list(enumerate(asked.typed)))}
    return tuple(
        sorted((*asked.rejected, *found.values()), key=lambda rejection: order.get(rejection.code, len(order)))
    )


# ---------------------------------------------------------------------------------------------------------------------
# Discounts


def _read_discount(effect: wire.Effect, becomes: str, asked: Asked, answer: _Answer) -> None:
    """Called for each unit of each line: the part of this module that must be quick."""
    try:
        props = wire.DISCOUNT.decode(effect.props)
        value = money.from_engine(props.value)
    except wire.UNREADABLE:
        raise _unreadable() from None
    position = _position(props.position, asked) if becomes in ("item", "item_cost") else -1
    rule = (
        *_ids(effect),
        effect.effect_type,
        (props.name or "").strip().removesuffix(f"#{position}").strip(),
        props.scope or "",
        props.additional_cost or "",
        props.bundle_name or "",
        (effect.rule_name or "").strip(),
    )
    shares = answer.rules.get(rule)
    if shares is None:
        shares = answer.rules[rule] = _Shares()
    values = shares.values
    if position in values:
        values[position].append(value)
    else:
        values[position] = [value]
    shares.props.append(effect.props)
    if props.total_discount is not None and (total := _number(props.total_discount)) is not None:
        shares.announced.add(total)
    if effect.selected_price is not None and position >= 0:
        selected = _number(effect.selected_price)
        if selected is not None and selected != asked.session.cart_items[position].price:
            answer.selected[position] = min(selected, answer.selected.get(position, selected))


def _number(number: Decimal) -> Decimal | None:
    try:
        return money.from_engine(number)
    except money.NotMoney:
        return None


def _position(position: int | Decimal | None, asked: Asked) -> int:
    """The index of the line as it was sent. `subPosition` counts the line's units and needs no reading, since each unit
    has an effect of its own: https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
    """
    if isinstance(position, int) and 0 <= position < len(asked.lines):
        return position
    fits = isinstance(position, Decimal) and position.is_finite() and 0 <= position < len(asked.lines)
    if position is None or not fits or position % 1:
        raise EngineRejected("Talon.One discounts a line that this cart does not have.", reason="bad_position")
    return int(position)


def _unreadable() -> Problem:
    return EngineUnavailable("Talon.One's answer has an effect that cannot be read.", reason="bad_reply", sent=True)


def _discounts(answer: _Answer, campaigns: Mapping[int, wire.Campaign], asked: Asked) -> tuple[Discount, ...]:
    """By line, and what stands beside the lines last; at one place by rule."""
    found: list[tuple[bool, int, int, Discount]] = []
    rules = sorted([(_Rule(*rule), shares) for rule, shares in answer.rules.items()], key=lambda one: one[0])
    for place, (rule, shares) in enumerate(rules):
        told = _described(rule, campaigns.get(rule.campaign), answer.coupons)
        nothing = False
        for position, amount in _amounts(shares, asked.digits):
            if amount > 0:
                line = asked.lines[position].index if position >= 0 else None
                found.append((told.scope == "costs" or line is None, position, place, told.off(amount, line)))
            else:
                nothing = True
        if nothing:
            answer.notices.append(_nothing_off(rule, shares))
    found.sort()  # no two are equal in the first three
    return tuple([discount for *_, discount in found])


def _nothing_off(rule: _Rule, shares: _Shares) -> Notice:
    """What comes to nothing on some line, or to less: told, with all props of the rule's effects."""
    props = [wire.decode(wire.PLAIN, text) for text in sorted(shares.props, key=bytes)]
    text = _fill(TABLE[rule.effect_type].text, {"name": rule.name or rule.rule_name})
    return Notice(rule.effect_type, text, props[0] if len(props) == 1 else props)


def _amounts(shares: _Shares, digits: int) -> list[tuple[int, int]]:
    """(position, minor units) of a rule's discounts."""
    sums = {
        position: values[0] if len(values) == 1 else money.total(values)
        for position, values in sorted(shares.values.items())
    }
    if not shares.announced or min(sums.values()) < 0:
        return [(position, money.to_minor(value, digits)) for position, value in sums.items()]
    whole = money.to_minor(_whole(sums, shares, digits), digits)
    if whole == 0:
        return [(next(iter(sums)), 0)]
    # One sum that was spread over lines (pro rata) is rounded as a whole, then split so that not a cent is lost.
    parts = money.split(whole, list(sums.values()))
    return [(position, part) for position, part in zip(sums, parts, strict=True) if part]


def _whole(sums: dict[int, Decimal], shares: _Shares, digits: int) -> Decimal:
    """The sum of a pro-rata discount's shares: the announced one, if they add up to it but for their own rounding."""
    added = money.total(list(sums.values()))
    announced = next(iter(shares.announced))
    half_cents = sum(map(len, shares.values.values())) * Decimal(5).scaleb(-digits - 1)
    return announced if len(shares.announced) == 1 and abs(announced - added) <= half_cents else added


@dataclass(frozen=True, slots=True)
class _Told:
    """A rule as the shopper reads of it, with the engine's ids as Nacelle's page shows them."""

    rule: _Rule
    name: str
    description: str
    meta: dict[str, Any]

    @property
    def scope(self) -> Scope:
        """https://docs.talon.one/docs/dev/integration-api/api-effects has the scopes of each effect."""
        if TABLE[self.rule.effect_type].becomes in ("cost", "item_cost") or self.rule.scope == "additionalCosts":
            return "costs"
        if TABLE[self.rule.effect_type].becomes == "item":
            return "total" if self.rule.scope == "itemTotal" else "goods"
        return "goods" if self.rule.scope == "cartItems" else "total"

    def off(self, amount: int, line: int | None) -> Discount:
        """Off a line (`Line.index`), or (None) off the order."""
        return Discount(
            name=self.name,
            description=self.description,
            amount=amount,
            effect_type=self.rule.effect_type,
            line=line,
            scope=self.scope,
            cost=self.rule.cost if self.scope == "costs" else "",
            meta=self.meta,
        )


def _described(rule: _Rule, campaign: wire.Campaign | None, coupons: dict[int, str]) -> _Told:
    title = (campaign.name or "").strip() if campaign else ""
    text = (campaign.description or "").strip() if campaign else ""
    name = rule.rule_name or title or rule.name or "Discount"
    meta: dict[str, Any] = {
        "campaignId": rule.campaign,
        "rulesetId": rule.ruleset,
        "triggeredByCoupon": rule.coupon,
        "code": coupons.get(rule.coupon),
        "scope": rule.scope if rule.scope != "price" else None,
        "additionalCost": rule.cost,
        "bundleName": rule.bundle,
    }
    meta = {key: value for key, value in meta.items() if value not in (None, "", -1)}
    return _Told(rule=rule, name=name, description=text or title or rule.name or name, meta=meta)
