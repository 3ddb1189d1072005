"""From Talon.One's effects to an outcome.

Effects are the engine's whole answer: "apply this", one entry for each unit of each line that a rule touches
(https://docs.talon.one/docs/dev/integration-api/api-effects). Their order means nothing: discounts are added up by rule
and the rules sorted; the few others are sorted before they are read.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from msgspec import Raw

from adapters.talon_one import reasons, replies
from adapters.talon_one.codes import Kind
from adapters.talon_one.request import SessionRequest
from mapper.adapter import (
    Diagnostic,
    Discount,
    EngineRejected,
    EngineUnavailable,
    Notice,
    Outcome,
    Problem,
    Rejection,
    Scope,
    checkout,
    money,
)


class EffectRule(NamedTuple):
    """What becomes of an effect.

    - `order`, `cost`: a discount beside the lines; on one of the cart's additional costs
    - `item`, `item_cost`: a discount on the line at `position`; on one of that line's own additional costs, which is
      listed beside the lines, since it does not lower the item's price
    - `accept`, `refuse`: the engine's word on a code
    - `notice`: passed on to the storefront

    `text` tells people about it; {names} are the effect's props.
    """

    kind: Literal["order", "cost", "item", "item_cost", "accept", "refuse", "notice"]
    text: str


_POINTS_UNDONE = "Loyalty points are taken back or returned."
_DATES = "The expiry date of loyalty points changes."

# All effect types of August 2026 (platform 26.16). What is not listed becomes a notice, too.
TABLE: dict[str, EffectRule] = {
    # Money
    "setDiscount": EffectRule("order", "The discount {name} comes to no amount."),
    "setDiscountPerItem": EffectRule("item", "The discount {name} comes to no amount."),
    "setDiscountPerAdditionalCost": EffectRule("cost", "The discount {name} comes to no amount."),
    "setDiscountPerAdditionalCostPerItem": EffectRule("item_cost", "The discount {name} comes to no amount."),
    "rollbackDiscount": EffectRule("notice", "The discount {name} is taken back."),
    "addFreeItem": EffectRule("notice", "This cart earns a free item: {name} ({sku})."),
    # Codes
    "acceptCoupon": EffectRule("accept", "The code {value} is accepted."),
    "rejectCoupon": EffectRule("refuse", "The code {value} is refused."),
    "acceptReferral": EffectRule("accept", "The referral code {value} is accepted."),
    "rejectReferral": EffectRule("refuse", "The referral code {value} is refused."),
    "redeemReferral": EffectRule("accept", "The referral code {value} is accepted."),  # deprecated, as acceptReferral
    "couponCreated": EffectRule("notice", "A new code was created for the customer: {value}."),
    "referralCreated": EffectRule("notice", "A new referral code was created: {value}."),
    "reserveCoupon": EffectRule("notice", "The code {couponValue} is reserved for the customer."),
    "rollbackCoupon": EffectRule("notice", "The code {value} can be used again."),
    "rollbackReferral": EffectRule("notice", "The referral code {value} can be used again."),
    # Loyalty: points are no money; what they pay for comes as a discount of its own
    "addLoyaltyPoints": EffectRule("notice", "{value} loyalty points are earned: {name}."),
    "deductLoyaltyPoints": EffectRule("notice", "{value} loyalty points are spent: {name}."),
    "changeLoyaltyTierLevel": EffectRule("notice", "The customer reaches the loyalty tier {newTierName}."),
    "rollbackAddedLoyaltyPoints": EffectRule("notice", _POINTS_UNDONE),
    "rollbackDeductedLoyaltyPoints": EffectRule("notice", _POINTS_UNDONE),
    "extendLoyaltyPointsExpiryDate": EffectRule("notice", _DATES),
    "setLoyaltyPointsExpiryDate": EffectRule("notice", _DATES),
    # Giveaways: the code itself stands in the payload only, it is worth money
    "willAwardGiveaway": EffectRule("notice", "With the order comes a giveaway: {poolName}."),
    "awardGiveaway": EffectRule("notice", "A giveaway is awarded: {poolName}."),
    # Achievements and audiences
    "startAchievementProgress": EffectRule("notice", "The achievement {achievementName} begins."),
    "increaseAchievementProgress": EffectRule(
        "notice", "Progress in the achievement {achievementName}: {value} of {target}."
    ),
    "rollbackIncreasedAchievementProgress": EffectRule(
        "notice", "Progress in the achievement {achievementName} is taken back."
    ),
    "addToAudience": EffectRule("notice", "The customer joins an audience."),
    "removeFromAudience": EffectRule("notice", "The customer leaves an audience."),
    # Messages and others
    "showNotification": EffectRule("notice", "{title}: {body}"),
    "customEffect": EffectRule("notice", "The promotion engine returns {name}."),
    "updateAttribute": EffectRule("notice", "The attribute {path} has a new value."),
    "triggerWebhook": EffectRule("notice", "The promotion engine calls a webhook."),
    "showBundleMetadata": EffectRule("notice", "{description}"),  # deprecated
    # A rule that failed inside a 200: https://docs.talon.one/docs/dev/integration-api/api-effects#error
    "error": EffectRule("notice", "A promotion rule failed; what it grants is missing."),
}
_MONEY = frozenset(kind for kind, rule in TABLE.items() if rule.kind in ("order", "cost", "item", "item_cost"))
_MOST_FAILURES, _MOST_DETAILS = 50, 200
_UNKNOWN = EffectRule("notice", "The promotion engine returns something that this service does not know.")


class _Rule(NamedTuple):
    """Effects that agree in this are shares of one discount: they are added up first and rounded once."""

    campaign: int
    ruleset: int
    rule_index: int
    coupon: int
    """These four are -1 where the effect does not name any."""
    effect_type: str
    rule_name: str
    scope: str
    cost: str
    bundle: str
    name: str


_EFFECT_TYPE = 4
"""Where the effect's type stands among what effects have in common."""


def _rule(told: tuple[Any, ...]) -> _Rule:
    """`told`: what the effects of a rule have in common, as it came, and the discount's name."""
    ids = [-1 if number is None else number for number in told[:_EFFECT_TYPE]]
    effect_type, rule_name, scope, cost, bundle, name = told[_EFFECT_TYPE:]
    return _Rule(
        ids[0], ids[1], ids[2], ids[3],
        effect_type, (rule_name or "").strip(), scope or "", cost or "", bundle or "", name,
    )  # fmt: skip


@dataclass(slots=True)
class _Shares:
    """The shares of one rule, by position (-1: none), exact."""

    values: dict[int, list[Decimal]] = field(default_factory=dict)
    announced: set[Decimal] = field(default_factory=set)
    """The totals that pro-rata effects announce; each effect repeats its own."""
    places: list[int] = field(default_factory=list)
    """Where its effects stand in the answer."""


@dataclass(slots=True)
class _Answer:
    """What has been read so far."""

    state: replies.State
    request: SessionRequest
    rules: dict[tuple[Any, ...], _Shares] = field(default_factory=dict)
    """By what a `_Rule` is made of."""
    others: list[tuple[int, replies.Effect | None, Problem | None]] = field(default_factory=list)
    """What is no discount, or one that cannot be read: its place in the answer, and why."""
    accepted: set[tuple[Kind, str]] = field(default_factory=set)
    """Codes as they were sent."""
    refused: list["_Refusal"] = field(default_factory=list)
    coupons: dict[int, str] = field(default_factory=dict)
    """Codes by the engine's number for the coupon."""
    selected: dict[int, Decimal] = field(default_factory=dict)
    """The price of a line, by position, where the engine reckons with another than the one it was sent."""
    notices: list[Notice] = field(default_factory=list)


def read(state: replies.State, request: SessionRequest, *, strict: bool) -> Outcome:
    """What the engine grants.

    An effect that concerns money or a code and cannot be read is an error while it can still be refused (`strict`):
    `EngineRejected` for a position that the cart does not have, else `EngineUnavailable`. Once the session is closed it
    can only be told: as a notice.
    """
    answer = _Answer(state, request, coupons=_known_coupons(state, request))
    _add_up(answer)
    for place, effect, problem in sorted(answer.others, key=lambda other: _order(other, state)):
        _read_other(place, effect, problem, answer, strict=strict)
    discounts = _discounts(answer)
    rejected = _rejected(answer)
    answer.notices += [_other_price(position, price, request) for position, price in sorted(answer.selected.items())]
    asked_for = [Notice(name, f"Talon.One returns {name}, as it is asked to.", payload) for name, payload in state.told]
    return Outcome(
        discounts=discounts,
        rejected=rejected,
        notices=(*request.notices, *answer.notices, *asked_for),
        costs=request.costs,
        diagnostics=_failures(state),
    )


def _known_coupons(state: replies.State, request: SessionRequest) -> dict[int, str]:
    return {number: request.codes.meant("coupon", value) or value for number, value in state.coupons.items()}


def _failures(state: replies.State) -> tuple[Diagnostic, ...]:
    """Why codes did not apply, in the merchant's own terms: for the log. Rules that no code was tried on are many."""
    about_codes = [one for one in state.rule_failures if one.couponValue or one.referralValue]
    return tuple([_failure(one) for one in about_codes[:_MOST_FAILURES]])


def _failure(failure: replies.RuleFailure) -> Diagnostic:
    code = failure.couponValue or failure.referralValue or ""
    facts = {
        "campaign": failure.campaignID,
        "campaign_name": failure.campaignName,
        "rule": failure.ruleName,
        "rule_index": failure.ruleIndex,
        "condition": failure.conditionIndex,
        "effect": failure.effectIndex,
        # The engine's own text, which was asked for; the code in it is hidden like any other.
        "details": re.sub(re.escape(code), "…", failure.details or "", flags=re.IGNORECASE)[:_MOST_DETAILS] or None,
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return Diagnostic("rule_failed", "A promotion rule did not apply.", code, known)


def _add_up(answer: _Answer) -> None:
    """Sorts the discounts by rule and line. Looks at each unit of each line: the part that must be quick."""
    lines: dict[tuple[Any, ...], tuple[_Shares, list[Decimal], int]] = {}
    """By all that the effects of one line's units have in common, as it came."""
    number, others = replies.NUMBER.decode, answer.others
    for place, effect in enumerate(answer.state.effects or ()):
        if effect is None or effect.effect_type not in _MONEY:
            others.append((place, effect, None))
            continue
        try:
            if (props := effect.props) is None:
                raise _unreadable()
            amount, position = money.from_engine(number(props.value)), props.position
            told = (
                effect.campaign_id, effect.ruleset_id, effect.rule_index, effect.triggered_by_coupon,
                effect.effect_type, effect.rule_name, props.scope, props.additional_cost, props.bundle_name,
                props.name, position if type(position) is int else _whole_number(position),
            )  # fmt: skip
            if (line := lines.get(told)) is None:
                line = lines[told] = _line(told, answer)
        except replies.UNREADABLE:  # money.NotMoney among them
            others.append((place, effect, _unreadable()))
            continue
        except Problem as problem:
            others.append((place, effect, problem))
            continue
        shares, of_line, position = line
        of_line.append(amount)
        shares.places.append(place)
        if props.total_discount is not None and (total := _number(props.total_discount)) is not None:
            shares.announced.add(total)
        if effect.selected_price is not None and position >= 0:
            _note_price(effect.selected_price, position, answer)


def _line(told: tuple[Any, ...], answer: _Answer) -> tuple[_Shares, list[Decimal], int]:
    """Where the shares of a rule are put, those on one line, and its position. `told`: as in `_add_up`."""
    position = _position(told[_EFFECT_TYPE], told[-1], answer.request)
    name = (told[-2] or "").strip().removesuffix(f"#{position}").strip()
    key = (*told[:-2], name)
    if (shares := answer.rules.get(key)) is None:
        shares = answer.rules[key] = _Shares()
    return shares, shares.values.setdefault(position, []), position


def _note_price(price: Decimal, position: int, answer: _Answer) -> None:
    selected = _number(price)
    if selected is not None and selected != answer.request.session.cart_items[position].price:
        answer.selected[position] = min(selected, answer.selected.get(position, selected))


def _number(number: Decimal) -> Decimal | None:
    try:
        return money.from_engine(number)
    except money.NotMoney:
        return None


def _order(other: tuple[int, replies.Effect | None, Problem | None], state: replies.State) -> tuple[Any, ...]:
    place, effect, _ = other
    text = bytes(state.props(place))
    return (1, text) if effect is None else (0, *_ids(effect), effect.effect_type, text)


def _ids(effect: replies.Effect) -> tuple[int, int, int, int]:
    campaign, ruleset, rule_index = effect.campaign_id, effect.ruleset_id, effect.rule_index
    coupon = effect.triggered_by_coupon
    return (
        -1 if campaign is None else campaign,
        -1 if ruleset is None else ruleset,
        -1 if rule_index is None else rule_index,
        -1 if coupon is None else coupon,
    )


def _read_other(
    place: int, effect: replies.Effect | None, problem: Problem | None, answer: _Answer, *, strict: bool
) -> None:
    props = answer.state.props(place)
    if effect is None:
        answer.notices.append(Notice("unreadable", _UNKNOWN.text, replies.decode(replies.PLAIN, props)))
        return
    rule = TABLE.get(effect.effect_type, _UNKNOWN)
    try:
        if problem is not None:
            raise problem
        if rule.kind == "notice":
            answer.notices.append(_notice(effect, props, rule.text))
        else:
            _read_code(effect, props, rule, answer)
    except Problem as unreadable:
        if strict:
            raise
        answer.notices.append(_notice(effect, props, unreadable.message))


def _notice(effect: replies.Effect, props: Raw, text: str) -> Notice:
    payload = replies.decode(replies.PLAIN, props)
    return Notice(effect.effect_type, _fill(text, payload), payload)


def _other_price(position: int, price: Decimal, request: SessionRequest) -> Notice:
    """Price types (a members' price) lower a price without any effect that says so: not supported, so it is said."""
    sku = request.lines[position].name
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


class _Refusal(NamedTuple):
    kind: Kind
    code: str | None
    """As it was sent; None where no such code was."""
    props: replies.CodeProps
    notice: Notice


def _read_code(effect: replies.Effect, text: Raw, rule: EffectRule, answer: _Answer) -> None:
    props = replies.decode(replies.CODE, text)
    if props is None:
        raise _unreadable()
    kind: Kind = "coupon" if effect.effect_type.endswith("Coupon") else "referral"
    code = answer.request.codes.meant(kind, props.value)
    notice = _notice(effect, text, rule.text)
    if rule.kind == "refuse":
        answer.refused.append(_Refusal(kind, code, props, notice))
        return
    answer.notices.append(notice)
    if code is not None:
        answer.accepted.add((kind, code))
    if effect.triggered_by_coupon is not None and kind == "coupon":
        answer.coupons.setdefault(effect.triggered_by_coupon, code or props.value)


def _rejected(answer: _Answer) -> tuple[Rejection, ...]:
    """One refusal for each refused code, in the order in which they were sent.

    A code that several campaigns share may be accepted by one and refused by another: then it works, and the refusal is
    only told. So is the refusal of a code that is not in this cart, and so is a code that got no answer: the
    documentation has an effect for every code, so nothing says that such a one does not work.
    """
    request = answer.request
    found: dict[tuple[Kind, str], Rejection] = {}
    for kind, code, props, notice in answer.refused:
        if code is None or (kind, code) in answer.accepted:
            answer.notices.append(notice)
            continue
        table = reasons.COUPON if kind == "coupon" else reasons.REFERRAL
        reason = reasons.reason(table, props.rejection_reason, props.campaign_exclusion_reason)
        found.setdefault((kind, code), Rejection(code, reason, reasons.word(props.rejection_reason)))
    for kind, code in request.codes:
        if (kind, code) not in found and (kind, code) not in answer.accepted:
            text = f"The promotion engine neither accepts nor refuses the code {code}."
            answer.notices.append(Notice("code_not_answered", text, {"value": code}))
    return (*(found[each] for each in request.codes if each in found), *request.rejected)


# ---------------------------------------------------------------------------------------------------------------------
# Discounts


def _position(effect_type: str, position: int | None, request: SessionRequest) -> int:
    """The index of the line as it was sent; -1 for what is not about a line. `subPosition` counts the line's units and
    needs no reading, since each unit has an effect of its own:
    https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
    """
    if TABLE[effect_type].kind not in ("item", "item_cost"):
        return -1
    if position is None or not 0 <= position < len(request.lines):
        raise EngineRejected("Talon.One discounts a line that this cart does not have.", reason="bad_position")
    return position


def _whole_number(position: Decimal | int | None) -> int | None:
    """The vendor's positions are numbers: 1 may come as 1.0."""
    if isinstance(position, Decimal):
        fits = position.is_finite() and 0 <= position < checkout.MAX_LINES and not position % 1
        return int(position) if fits else None
    return position


def _unreadable() -> Problem:
    return EngineUnavailable("Talon.One's answer has an effect that cannot be read.", reason="bad_reply")


def _discounts(answer: _Answer) -> tuple[Discount, ...]:
    """By line, and what stands beside the lines last; at one place by rule."""
    request = answer.request
    found: list[tuple[bool, int, int, Discount]] = []
    rules = sorted([(_rule(told), shares) for told, shares in answer.rules.items()], key=lambda one: one[0])
    for place, (rule, shares) in enumerate(rules):
        amounts = _amounts(shares, request.digits)
        label = _label(rule, answer.state.campaigns.get(rule.campaign), answer.coupons)
        beside = label.scope == "costs"
        for position, amount in amounts:
            if amount > 0:
                line = request.lines[position].index if position >= 0 else None
                found.append((beside or line is None, position, place, label.discount(amount, line)))
        if any(amount <= 0 for _, amount in amounts):
            answer.notices.append(_nothing_off(rule, shares, answer.state))
    found.sort()  # no two are equal in the first three
    return tuple([one[-1] for one in found])


def _nothing_off(rule: _Rule, shares: _Shares, state: replies.State) -> Notice:
    """What comes to nothing on some line, or to less: told, with all props of the rule's effects."""
    texts = sorted([state.props(place) for place in shares.places], key=bytes)
    props = [replies.decode(replies.PLAIN, text) for text in texts]
    text = _fill(TABLE[rule.effect_type].text, {"name": rule.name or rule.rule_name})
    return Notice(rule.effect_type, text, props[0] if len(props) == 1 else props)


def _amounts(shares: _Shares, digits: int) -> list[tuple[int, int]]:
    """(position, minor units) of a rule's discounts."""
    sums = [
        (position, values[0] if len(values) == 1 else money.total(values))
        for position, values in sorted(shares.values.items())
    ]
    if not shares.announced or min([value for _, value in sums]) < 0:
        return [(position, money.to_minor(value, digits)) for position, value in sums]
    whole = money.to_minor(_whole([value for _, value in sums], shares, digits), digits)
    if whole == 0:
        return [(sums[0][0], 0)]
    # One sum that was spread over lines (pro rata) is rounded as a whole, then split so that not a cent is lost.
    parts = money.split(whole, [value for _, value in sums])
    return [(position, part) for (position, _), part in zip(sums, parts, strict=True) if part]


def _whole(sums: list[Decimal], shares: _Shares, digits: int) -> Decimal:
    """The sum of a pro-rata discount's shares: the announced one, if they add up to it but for their own rounding."""
    added = money.total(sums)
    announced = next(iter(shares.announced))
    half_cents = sum(map(len, shares.values.values())) * Decimal(5).scaleb(-digits - 1)
    return announced if len(shares.announced) == 1 and abs(announced - added) <= half_cents else added


@dataclass(frozen=True, slots=True)
class _Label:
    """What all discounts of a rule have in common: how the shopper reads of it, what it lies on, the engine's ids as
    Nacelle's page shows them.
    """

    rule: _Rule
    name: str
    description: str
    scope: Scope
    meta: dict[str, Any]

    def discount(self, amount: int, line: int | None) -> Discount:
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


def _scope(rule: _Rule) -> Scope:
    """https://docs.talon.one/docs/dev/integration-api/api-effects has the scopes of each effect."""
    kind = TABLE[rule.effect_type].kind
    if kind in ("cost", "item_cost") or rule.scope == "additionalCosts":
        return "costs"
    if kind == "item":
        return "total" if rule.scope == "itemTotal" else "goods"
    return "goods" if rule.scope == "cartItems" else "total"


def _label(rule: _Rule, campaign: replies.Campaign | None, coupons: dict[int, str]) -> _Label:
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
    return _Label(rule, name, text or title or rule.name or name, _scope(rule), meta)
