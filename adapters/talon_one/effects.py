"""Turns Talon.One's effects into an outcome.

A rule that discounts a line returns one effect per unit: https://docs.talon.one/docs/dev/integration-api/api-effects.
The order of the effects has no meaning, and the outcome does not depend on it: discounts are added up by rule and then
sorted, other effects are sorted first.
"""

import re
from decimal import Decimal
from functools import lru_cache
from string import Formatter
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from adapters.talon_one import reasons, replies
from adapters.talon_one.codes import CodeKind
from adapters.talon_one.options import Options
from adapters.talon_one.request import SessionRequest
from mapper.adapter import (
    Diagnostic,
    Discount,
    EngineRejected,
    EngineUnavailable,
    Notice,
    Outcome,
    Problem,
    Reason,
    Rejection,
    Scope,
    checkout,
    money,
)


class EffectRule(NamedTuple):
    """How an effect type is handled.

    - `order`: a discount on the order; `cost`: on an additional cost of the order
    - `item`: a discount on the line at `position`; `item_cost`: on an additional cost of that line
    - `accept`, `reject`: whether a code applies
    - `notice`: passed on to the storefront

    `text` is the text of the notice; {names} are the effect's props.
    """

    kind: Literal["order", "cost", "item", "item_cost", "accept", "reject", "notice"]
    text: str


_POINTS_UNDONE = "Loyalty points are taken back or returned."
_DATES = "The expiry date of loyalty points changes."

# All effect types of August 2026 (platform 26.16). Any other becomes a notice, too.
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
    "rejectCoupon": EffectRule("reject", "The code {value} is refused."),
    "acceptReferral": EffectRule("accept", "The referral code {value} is accepted."),
    "rejectReferral": EffectRule("reject", "The referral code {value} is refused."),
    "redeemReferral": EffectRule(
        "accept", "The referral code {value} is accepted."
    ),  # deprecated; means acceptReferral
    "couponCreated": EffectRule("notice", "A new code was created for the customer: {value}."),
    "referralCreated": EffectRule("notice", "A new referral code was created: {value}."),
    "reserveCoupon": EffectRule("notice", "The code {couponValue} is reserved for the customer."),
    "rollbackCoupon": EffectRule("notice", "The code {value} can be used again."),
    "rollbackReferral": EffectRule("notice", "The referral code {value} can be used again."),
    # Loyalty: points that pay for something come with a discount effect
    "addLoyaltyPoints": EffectRule("notice", "{value} loyalty points are earned: {name}."),
    "deductLoyaltyPoints": EffectRule("notice", "{value} loyalty points are spent: {name}."),
    "changeLoyaltyTierLevel": EffectRule("notice", "The customer reaches the loyalty tier {newTierName}."),
    "rollbackAddedLoyaltyPoints": EffectRule("notice", _POINTS_UNDONE),
    "rollbackDeductedLoyaltyPoints": EffectRule("notice", _POINTS_UNDONE),
    "extendLoyaltyPointsExpiryDate": EffectRule("notice", _DATES),
    "setLoyaltyPointsExpiryDate": EffectRule("notice", _DATES),
    # Giveaways: the code is worth money, so the payload alone holds it
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
    # A rule that failed in a reply with status 200: https://docs.talon.one/docs/dev/integration-api/api-effects#error
    "error": EffectRule("notice", "A promotion rule failed; what it grants is missing."),
}
_MONEY = frozenset(name for name, rule in TABLE.items() if rule.kind in ("order", "cost", "item", "item_cost"))
_ON_LINES = frozenset(name for name, rule in TABLE.items() if rule.kind in ("item", "item_cost"))
_MESSAGES = (TABLE["showNotification"].text, TABLE["showBundleMetadata"].text)
_PRINTABLE = (str, int, Decimal)
_MAX_FAILURES, _MAX_DETAILS = 50, 200
_UNKNOWN = EffectRule("notice", "The promotion engine returns something that this service does not know.")


class _RuleKey(NamedTuple):
    """What the effects of one discount have in common. Their amounts are added up first and rounded once."""

    campaign: int
    ruleset: int
    rule_index: int
    coupon: int
    """These four are -1 where the effect has no such id."""
    effect_type: str
    rule_name: str
    scope: str
    cost: str
    bundle: str
    name: str


_EFFECT_TYPE = 4
"""The index of `_RuleKey.effect_type`."""


def _rule_key(raw_key: tuple[Any, ...]) -> _RuleKey:
    """`raw_key`: the same fields as decoded, with None for those that are absent."""
    ids = [-1 if number is None else number for number in raw_key[:_EFFECT_TYPE]]
    effect_type, rule_name, scope, cost, bundle, name = raw_key[_EFFECT_TYPE:]
    return _RuleKey(
        ids[0], ids[1], ids[2], ids[3],
        effect_type, (rule_name or "").strip(), scope or "", cost or "", bundle or "", name,
    )  # fmt: skip


class _RuleAmounts(msgspec.Struct):
    """The amounts of one rule, exact."""

    by_position: dict[int, list[Decimal]] = {}
    """By the line's position; -1 for the order."""
    total_discounts: set[Decimal] = set()
    """The values of `totalDiscount`, which each effect of a pro-rata discount repeats."""
    props: list[Raw] = []
    """The props of the rule's effects."""


class _Reading(msgspec.Struct):
    """What has been read of one reply so far."""

    state: replies.State
    request: SessionRequest
    coupons: dict[int, str]
    """Coupon codes by Talon.One's coupon id."""
    rules: dict[tuple[Any, ...], _RuleAmounts] = {}
    """By the fields of a `_RuleKey`, as decoded."""
    other_effects: list[tuple[replies.Effect | Raw, Problem | None]] = []
    """Effects that are no discount, and discounts that cannot be read, with the problem."""
    accepted: set[tuple[CodeKind, str]] = set()
    """Codes as they were sent."""
    rejected: list["_RejectedCode"] = []
    selected_prices: dict[int, Decimal] = {}
    """By position: the unit price that Talon.One uses where it is not the price that was sent."""
    notices: list[Notice] = []


def read(state: replies.State, request: SessionRequest, *, strict: bool) -> Outcome:
    """What the engine grants.

    With `strict`, an effect on money or on a code that cannot be read raises: `EngineRejected` for a position that the
    cart does not have, else `EngineUnavailable`. Without it, as after a close, such an effect becomes a notice.
    """
    reading = _Reading(state, request, _coupon_codes(state, request))
    _group_discounts(reading)
    for effect, problem in sorted(reading.other_effects, key=_sort_key):
        _read_other(effect, problem, reading, strict=strict)
    discounts = _discounts(reading)
    rejected = _rejections(reading)
    notices = reading.notices
    for position, price in sorted(reading.selected_prices.items()):
        notices.append(_price_notice(position, price, request))
    for name, payload in state.extra_content:
        if name in request.options.response_content:  # a customer profile is not for everybody
            notices.append(Notice(name, f"Talon.One returns {name}, as it is asked to.", payload))
    return Outcome(
        discounts=discounts,
        rejected=rejected,
        notices=(*request.notices, *notices),
        costs=request.costs,
        diagnostics=_diagnostics(state),
    )


def _coupon_codes(state: replies.State, request: SessionRequest) -> dict[int, str]:
    return {number: request.codes.match("coupon", value) or value for number, value in state.coupons.items()}


def _diagnostics(state: replies.State) -> tuple[Diagnostic, ...]:
    """For the log: why codes did not apply. Failures of rules without a code are left out, since they are many."""
    about_codes = [failure for failure in state.rule_failures if failure.couponValue or failure.referralValue]
    return tuple([_diagnostic(failure) for failure in about_codes[:_MAX_FAILURES]])


def _diagnostic(failure: replies.RuleFailure) -> Diagnostic:
    code = failure.couponValue or failure.referralValue or ""
    facts = {
        "campaign": failure.campaignID,
        "campaign_name": failure.campaignName,
        "rule": failure.ruleName,
        "rule_index": failure.ruleIndex,
        "condition": failure.conditionIndex,
        "effect": failure.effectIndex,
        # Engine text, which may quote the code; the log must not.
        "details": re.sub(re.escape(code), "…", failure.details or "", flags=re.IGNORECASE)[:_MAX_DETAILS] or None,
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return Diagnostic("rule_failed", "A promotion rule did not apply.", code, known)


# ---------------------------------------------------------------------------------------------------------------------
# Grouping: every effect is visited here, one for each unit of each line and rule, so this part must be fast


def _group_discounts(reading: _Reading) -> None:
    """Collects the amounts of all discounts by rule and line, and sets all other effects aside."""
    groups: dict[tuple[Any, ...], tuple[_RuleAmounts, list[Decimal], int]] = {}
    """By the `_RuleKey` fields as decoded, and the position; see `_group`."""
    for effect in reading.state.effects or ():
        if isinstance(effect, Raw) or effect.effect_type not in _MONEY:
            reading.other_effects.append((effect, None))
            continue
        try:
            if (props := replies.money_props(effect.props)) is None or props.value is None:
                raise _unreadable_effect()
            amount, position = money.from_engine(props.value), props.position
            key = (
                effect.campaign_id, effect.ruleset_id, effect.rule_index, effect.triggered_by_coupon,
                effect.effect_type, effect.rule_name, props.scope, props.additional_cost, props.bundle_name,
                props.name, position if type(position) is int else _whole_number(position),
            )  # fmt: skip
            if (group := groups.get(key)) is None:
                group = groups[key] = _group(key, reading)
        except replies.UNREADABLE:  # money.NotMoney among them
            reading.other_effects.append((effect, _unreadable_effect()))
            continue
        except Problem as problem:
            reading.other_effects.append((effect, problem))
            continue
        rule, line_amounts, position = group
        line_amounts.append(amount)
        rule.props.append(effect.props)
        if props.total_discount is not None and (total := _amount(props.total_discount)) is not None:
            rule.total_discounts.add(total)
        if effect.selected_price is not None and position >= 0:
            _note_selected_price(effect.selected_price, position, reading)


def _group(key: tuple[Any, ...], reading: _Reading) -> tuple[_RuleAmounts, list[Decimal], int]:
    """The rule's amounts, the list of those on one line, and the line's position. `key`: as in `_group_discounts`."""
    position = _position(key[_EFFECT_TYPE], key[-1], reading.request)
    name = (key[-2] or "").strip().removesuffix(f"#{position}").strip()  # the vendor numbers the name by line
    rule_key = (*key[:-2], name)
    if (rule := reading.rules.get(rule_key)) is None:
        rule = reading.rules[rule_key] = _RuleAmounts()
    return rule, rule.by_position.setdefault(position, []), position


def _position(effect_type: str, position: int | None, request: SessionRequest) -> int:
    """The index of the line in the request; -1 where the effect is not on a line.

    `subPosition`, which counts the units of the line, is not needed, since each unit has an effect of its own:
    https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
    """
    if effect_type not in _ON_LINES:
        return -1
    if position is None or not 0 <= position < len(request.lines):
        raise EngineRejected("Talon.One discounts a line that this cart does not have.", reason="bad_position")
    return position


def _whole_number(position: Decimal | int | None) -> int | None:
    """Positions are JSON numbers: 1 may come as 1.0."""
    if isinstance(position, Decimal):
        fits = position.is_finite() and 0 <= position < checkout.MAX_LINES and not position % 1
        return int(position) if fits else None
    return position


def _note_selected_price(price: Decimal, position: int, reading: _Reading) -> None:
    selected = _amount(price)
    if selected is not None and selected != reading.request.session.cart_items[position].price:
        reading.selected_prices[position] = min(selected, reading.selected_prices.get(position, selected))


def _amount(number: Decimal) -> Decimal | None:
    try:
        return money.from_engine(number)
    except money.NotMoney:
        return None


def _unreadable_effect() -> Problem:
    return EngineUnavailable("Talon.One's answer has an effect that cannot be read.", reason="bad_reply")


# ---------------------------------------------------------------------------------------------------------------------
# Effects that are no discount


def _sort_key(other: tuple[replies.Effect | Raw, Problem | None]) -> tuple[Any, ...]:
    effect, _ = other
    if isinstance(effect, Raw):
        return (1, bytes(effect))
    ids = (effect.campaign_id, effect.ruleset_id, effect.rule_index, effect.triggered_by_coupon)
    return (0, *[-1 if number is None else number for number in ids], effect.effect_type, bytes(effect.props))


def _read_other(effect: replies.Effect | Raw, problem: Problem | None, reading: _Reading, *, strict: bool) -> None:
    if isinstance(effect, Raw):
        reading.notices.append(Notice("unreadable", _UNKNOWN.text, replies.decode(replies.JSON, effect)))
        return
    rule = TABLE.get(effect.effect_type, _UNKNOWN)
    try:
        if problem is not None:
            raise problem
        if rule.kind == "notice":
            reading.notices.append(_notice(effect, rule.text))
        else:
            _read_code(effect, rule, reading)
    except Problem as unreadable:
        if strict:
            raise
        reading.notices.append(_notice(effect, unreadable.message))


def _notice(effect: replies.Effect, text: str) -> Notice:
    payload = replies.decode(replies.JSON, effect.props)
    return Notice(effect.effect_type, _fill(text, payload), payload)


def _price_notice(position: int, price: Decimal, request: SessionRequest) -> Notice:
    """Says that Talon.One uses another price, such as a members' price. It lowers it without an effect that says so."""
    sku = request.lines[position].name
    text = f"Talon.One reckons with {price} for {sku}, which is not the price that it was sent."
    return Notice("selectedPrice", text, {"position": position, "sku": sku, "selectedPrice": price})


def _fill(text: str, payload: Any) -> str:
    """The text with the payload's props, "?" for those that are missing; a message has no more than its own words."""
    props = payload if isinstance(payload, dict) else {}
    missing = "" if text in _MESSAGES else "?"
    words: dict[str, Any] = {}
    for name in _names(text):
        value = props.get(name)
        words[name] = value if isinstance(value, _PRINTABLE) else missing
    return text.format_map(words).strip(" :")


@lru_cache(256)
def _names(text: str) -> tuple[str, ...]:
    """The {names} in the text of a notice."""
    return tuple(name for _, name, _, _ in Formatter().parse(text) if name)


# ---------------------------------------------------------------------------------------------------------------------
# Codes


class _RejectedCode(NamedTuple):
    kind: CodeKind
    code: str | None
    """As it was sent; None where the request has no such code."""
    reason: Reason
    word: str
    """The engine's own."""
    notice: Notice


def _read_code(effect: replies.Effect, rule: EffectRule, reading: _Reading) -> None:
    props = replies.code_props(effect.props)
    if props is None:
        raise _unreadable_effect()
    kind: CodeKind = "coupon" if effect.effect_type.endswith("Coupon") else "referral"
    code = reading.request.codes.match(kind, props.value)
    notice = _notice(effect, rule.text)
    if rule.kind == "reject":
        table = reasons.COUPON if kind == "coupon" else reasons.REFERRAL
        reason = reasons.reason(table, props.rejection_reason, props.campaign_exclusion_reason)
        reading.rejected.append(_RejectedCode(kind, code, reason, reasons.word(props.rejection_reason), notice))
        return
    reading.notices.append(notice)
    if code is not None:
        reading.accepted.add((kind, code))
    if effect.triggered_by_coupon is not None and kind == "coupon":
        reading.coupons.setdefault(effect.triggered_by_coupon, code or props.value)


def _rejections(reading: _Reading) -> tuple[Rejection, ...]:
    """One rejection for each rejected code, in the order in which the codes were sent.

    These become notices instead: that one campaign rejects a code which another accepts, since it works; that another
    campaign rejects it, too; that a code is rejected which was not sent; and that a sent code has no effect, since
    nothing says that it does not work.
    """
    request = reading.request
    rejections: dict[tuple[CodeKind, str], Rejection] = {}
    for kind, code, reason, word, notice in sorted(
        reading.rejected, key=lambda each: each.reason in reasons.NOT_RUNNING
    ):
        if code is None or (kind, code) in reading.accepted or (kind, code) in rejections:
            reading.notices.append(notice)
        else:
            rejections[kind, code] = Rejection(code, reason, word)
    for kind, code in request.codes:
        if (kind, code) not in rejections and (kind, code) not in reading.accepted:
            text = f"The promotion engine neither accepts nor refuses the code {code}."
            reading.notices.append(Notice("code_not_answered", text, {"value": code}))
    return (*(rejections[key] for key in request.codes if key in rejections), *request.rejected)


# ---------------------------------------------------------------------------------------------------------------------
# Discounts


def _discounts(reading: _Reading) -> tuple[Discount, ...]:
    """The discounts by line, those of the order and of costs last; on the same line by rule."""
    request = reading.request
    placed: list[tuple[bool, int, int, Discount]] = []
    """Whether it is at order level, position, number of the rule, discount."""
    rules = sorted([(_rule_key(key), amounts) for key, amounts in reading.rules.items()], key=lambda pair: pair[0])
    for number, (rule, exact) in enumerate(rules):
        amounts = _minor_amounts(exact, request.digits)
        discount = _discount(rule, reading.state.campaigns.get(rule.campaign), reading.coupons, request.options)
        on_costs, all_positive = discount.scope == "costs", True
        for position, amount in amounts:
            if amount <= 0:
                all_positive = False
                continue
            line = request.lines[position].index if position >= 0 else None
            share = msgspec.structs.replace(discount, amount=amount, line=line)
            placed.append((on_costs or line is None, position, number, share))
        if not all_positive:
            reading.notices.append(_no_discount_notice(rule, exact))
    placed.sort()  # the first three differ for any two
    return tuple([entry[-1] for entry in placed])


def _no_discount_notice(rule: _RuleKey, amounts: _RuleAmounts) -> Notice:
    """Says that a rule's discount on some line is zero or negative. The payload is the props of its effects."""
    props = [replies.decode(replies.JSON, text) for text in sorted(amounts.props, key=bytes)]
    text = _fill(TABLE[rule.effect_type].text, {"name": rule.name or rule.rule_name})
    return Notice(rule.effect_type, text, props[0] if len(props) == 1 else props)


def _minor_amounts(amounts: _RuleAmounts, digits: int) -> list[tuple[int, int]]:
    """(position, minor units) of a rule's discounts."""
    sums = [
        (position, values[0] if len(values) == 1 else money.total(values))
        for position, values in sorted(amounts.by_position.items())
    ]
    if not amounts.total_discounts or min([value for _, value in sums]) < 0:
        return [(position, money.to_minor(value, digits)) for position, value in sums]
    # A pro-rata discount is rounded as a whole and then split over the lines, so that no minor unit is lost.
    total = money.to_minor(_pro_rata_total([value for _, value in sums], amounts, digits), digits)
    if total == 0:
        return [(sums[0][0], 0)]
    parts = money.split(total, [value for _, value in sums])
    return [(position, part) for (position, _), part in zip(sums, parts, strict=True) if part]


def _pro_rata_total(sums: list[Decimal], amounts: _RuleAmounts, digits: int) -> Decimal:
    """`totalDiscount`, if the effects add up to it within their own rounding; else the sum of the effects."""
    added = money.total(sums)
    announced = next(iter(amounts.total_discounts))
    tolerance = sum(map(len, amounts.by_position.values())) * Decimal(5).scaleb(-digits - 1)  # half a unit per effect
    return announced if len(amounts.total_discounts) == 1 and abs(announced - added) <= tolerance else added


def _scope(rule: _RuleKey) -> Scope:
    """https://docs.talon.one/docs/dev/integration-api/api-effects lists the scopes of each effect."""
    kind = TABLE[rule.effect_type].kind
    if kind in ("cost", "item_cost") or rule.scope == "additionalCosts":
        return "costs"
    if kind == "item":
        return "total" if rule.scope == "itemTotal" else "goods"
    return "goods" if rule.scope == "cartItems" else "total"


def _discount(rule: _RuleKey, campaign: replies.Campaign | None, coupons: dict[int, str], options: Options) -> Discount:
    """What all discounts of a rule have in common. `meta` has Talon.One's ids, as Nacelle's page shows them."""
    title = (campaign.name or "").strip() if campaign else ""
    text = (campaign.description or "").strip() if campaign else ""
    name, scope = rule.rule_name or title or rule.name or "Discount", _scope(rule)
    cost_names = options.item_cost_names if rule.effect_type in _ON_LINES else options.cost_names
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
    return Discount(
        name=name,
        description=text or title or rule.name or name,
        amount=0,
        effect_type=rule.effect_type,
        scope=scope,
        cost=cost_names.get(rule.cost, rule.cost) if scope == "costs" else "",
        meta=meta,
    )
