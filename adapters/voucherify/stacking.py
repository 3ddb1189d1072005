"""Finds the redeemables that apply together, by validations without effect.

In application mode ALL, one redeemable that does not apply makes the whole validation invalid, and the reply may name
the first such redeemable alone. It is left out and the rest is validated again. After a second invalid reply, each
redeemable that is still undecided is validated in parallel, together with those that are known to apply.

A promotion tier must never cost the shopper a code. Where a code may not apply because of a tier, the codes are
validated without tiers, and then only those tiers are added that leave the codes applicable. A place that a tier leaves
free goes to the next tier.

| redeemables of the cart | validations |
|---|---|
| all apply, or mode is PARTIAL and each that does not apply is independent of the others | 1 |
| one does not apply (mode ALL) | 2 |
| one tier conflicts with a code | 2; 3 where other tiers may be added |
| several tiers may conflict with a code | 3, and one for each of them (five at most), in parallel |
| tiers wait for a place, and one before them does not apply | 1 more |
| several do not apply (mode ALL) | 3, and one for each that is undecided after two, in parallel |
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from adapters.voucherify import reasons
from adapters.voucherify.errors import inapplicable_by_error, read_error
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import Validation, limit_in, read_validation
from mapper.adapter import Conversation, EngineRejected, EngineReply, EngineRequest, together

# The reasons of an error that may mean too many redeemables, or a promotion tier that does not exist.
_MAYBE_TOO_MANY = ("invalid_redeemables", "invalid_payload", "unexpected_error")

# Tiers that are tried one by one. Five is Voucherify's default limit of redeemables that apply.
_MAX_TRIED = 5


class Validator(msgspec.Struct, frozen=True):
    """The validations of one conversation."""

    build: Callable[[Sequence[Redeemable]], EngineRequest]
    """Builds the request that validates these redeemables."""
    maybe_locked: dict[str, None] = {}
    """The codes that may be locked for the session: each of these validations locks what it applies."""

    def may_have_locked(self, codes: Iterable[str]) -> None:
        self.maybe_locked.update((code, None) for code in codes if code)

    def read(self, reply: EngineReply, redeemables: Sequence[Redeemable]) -> Validation:
        """The validation in a reply, or in an error about a code. Raises a `Problem` for any other error."""
        if reply.status != 200:
            inapplicable, _ = inapplicable_by_error(reply, redeemables)
            return Validation(valid=False, inapplicable=inapplicable)
        validation = read_validation(reply, redeemables)
        self.may_have_locked(validation.locked)
        return validation


class Selection(msgspec.Struct, frozen=True):
    """The redeemables that were chosen, and why the others do not apply."""

    validation: Validation | None = None
    """The validation of `redeemables`, which is valid; None where there is none."""
    redeemables: tuple[Redeemable, ...] = ()
    inapplicable: dict[Redeemable, str] = {}
    """By Voucherify's error key; in mode PARTIAL some of `redeemables` too."""

    @property
    def applicable(self) -> tuple[Redeemable, ...]:
        return tuple(one for one in self.redeemables if one not in self.inapplicable)


class _Attempt(Selection, frozen=True):
    """The result of `_validate_until_valid`."""

    conflicts: dict[Redeemable, str] = {}
    """Codes that may not apply because of a tier. The attempt ends at the first reply with such codes."""
    others: frozenset[Redeemable] = frozenset()
    """The redeemables that applied in that reply."""
    problem: EngineRejected | None = None
    """Voucherify refused the request as a whole."""
    rules: dict[str, Any] = {}


def select(redeemables: Sequence[Redeemable], validator: Validator) -> Conversation[Selection]:
    """The redeemables that apply together. A code takes precedence over a promotion tier."""
    first = yield from _validate_until_valid(redeemables, validator)
    if first.problem is not None:
        return (yield from _select_within_project_limit(redeemables, validator, first.problem))
    if not first.conflicts:
        return first
    candidates = [one for one in _codes(redeemables) if not reasons.is_own(first.inapplicable.get(one, ""))]
    codes = yield from _validate_until_valid(candidates, validator)
    if first.validation is not None and set(_codes(first.applicable)) >= set(codes.applicable):
        return first
    own = {
        one: key
        for one, key in first.inapplicable.items()
        if one not in first.conflicts and not reasons.is_skipped(key)
    }
    fail_alone = first.conflicts.keys() <= codes.inapplicable.keys()
    only_limit = {*first.conflicts.values()} == {reasons.LIMIT_EXCEEDED}
    suspects = [one for one in redeemables if one in first.others and not one.code]
    conflicting = [] if fail_alone or only_limit else suspects
    if len(conflicting) > 1:
        conflicting = yield from _conflicting(conflicting, codes.applicable, validator)
    tiers = [one for one in redeemables if not one.code and one not in own and one not in conflicting]
    return (yield from _add_tiers(codes, tiers, validator, {**own, **dict.fromkeys(conflicting, "")}))


def select_within(
    redeemables: Sequence[Redeemable], waiting: Sequence[Redeemable], limit: int, validator: Validator
) -> Conversation[Selection]:
    """As `select`. Where a tier does not apply, tiers that are `waiting` take the free places, up to `limit`."""
    selection = yield from select(redeemables, validator)
    inapplicable = {**dict.fromkeys(waiting, reasons.LIMIT_EXCEEDED), **selection.inapplicable}
    rules = selection.validation.rules if selection.validation else {}
    most = limit_in(rules, "applicable_redeemables_limit") or limit
    following = waiting[: max(min(limit, most) - len(selection.applicable), 0)]
    if following and any(not one.code for one in selection.inapplicable):
        filled = yield from _validate_until_valid(_in_order([*selection.applicable, *following]), validator)
        if filled.validation is not None and {*selection.applicable} <= {*filled.applicable}:
            others = {one: key for one, key in inapplicable.items() if one not in following}
            return Selection(filled.validation, filled.redeemables, {**others, **filled.inapplicable})
    return Selection(selection.validation, selection.redeemables, inapplicable)


def _conflicting(
    tiers: Sequence[Redeemable], codes: Sequence[Redeemable], validator: Validator
) -> Conversation[list[Redeemable]]:
    """The tiers with which one of the codes does not apply. Those beyond `_MAX_TRIED` count as such, untried."""
    tried, conflicting = tiers[:_MAX_TRIED], [*tiers[_MAX_TRIED:]]
    groups = [_in_order([*codes, tier]) for tier in tried]
    replies = yield from _send_in_parallel(groups, validator)
    for tier, group, reply in zip(tried, groups, replies, strict=True):
        try:
            validation = validator.read(reply, group)
        except EngineRejected:
            validation = Validation(valid=False)
        if not validation.valid or not {*codes} <= {one.redeemable for one in validation.applied}:
            conflicting.append(tier)
    return conflicting


def _add_tiers(
    codes: _Attempt, tiers: Sequence[Redeemable], validator: Validator, inapplicable: dict[Redeemable, str]
) -> Conversation[Selection]:
    """Adds as many tiers to the codes as the project's limits allow; none where a code then does not apply."""
    limit = limit_in(codes.rules, "redeemables_limit", "applicable_redeemables_limit")
    fitting = tiers if limit is None else tiers[: max(limit - len(codes.applicable), 0)]
    beyond = dict.fromkeys(tiers[len(fitting) :], reasons.LIMIT_EXCEEDED)
    inapplicable = {**inapplicable, **beyond, **codes.inapplicable}
    if fitting:
        joined = yield from _validate_until_valid(_in_order([*codes.applicable, *fitting]), validator)
        if joined.validation is not None and set(codes.applicable) <= set(joined.applicable):
            return Selection(joined.validation, joined.redeemables, {**inapplicable, **joined.inapplicable})
        inapplicable |= {tier: joined.inapplicable.get(tier, "") for tier in fitting}
    return Selection(codes.validation, codes.redeemables, inapplicable)


def _select_within_project_limit(
    redeemables: Sequence[Redeemable], validator: Validator, problem: EngineRejected
) -> Conversation[Selection]:
    """Selects after the request was refused: as many as the project takes, codes first, or the codes alone.

    The project's limit is read from the reply to a request with one redeemable. Raises `problem` where neither the
    limit nor a tier can be its cause.
    """
    codes, tiers = _codes(redeemables), [one for one in redeemables if not one.code]
    if len(redeemables) == 1:
        raise problem
    probe = yield from _validate_until_valid([*codes, *tiers][:1], validator)
    if probe.problem is not None:
        raise problem
    limit = limit_in(probe.rules, "redeemables_limit")
    if limit is not None and limit < len(redeemables):
        kept = {*[*codes, *tiers][:limit]}
        waiting = [one for one in redeemables if one not in kept]
        return (yield from select_within([one for one in redeemables if one in kept], waiting, limit, validator))
    if not (codes and tiers):
        raise problem
    selection = yield from select(codes, validator)
    inapplicable = {**dict.fromkeys(tiers, ""), **selection.inapplicable}
    return Selection(selection.validation, selection.redeemables, inapplicable)


def _validate_until_valid(redeemables: Sequence[Redeemable], validator: Validator) -> Conversation[_Attempt]:
    """Validates until a reply is valid, each time without the redeemables that do not apply by themselves."""
    rest, inapplicable, rules = list(redeemables), dict[Redeemable, str](), dict[str, Any]()
    invalid_replies, tried_each = 0, False
    while rest:
        try:
            validation = validator.read((yield from retry_if_busy(validator.build(rest))), rest)
        except EngineRejected as problem:
            if problem.reason not in _MAYBE_TOO_MANY:
                raise
            return _Attempt(inapplicable=inapplicable, problem=problem)
        rules = {**rules, **validation.rules}
        conflicts, others = _conflicts(validation, rest), frozenset(validation.applicable)
        if validation.valid:
            inapplicable = {**inapplicable, **validation.inapplicable}
            return _Attempt(validation, tuple(rest), inapplicable, conflicts, others, None, rules)
        causes = _causes(validation)
        invalid_replies += 1
        undecided = [one for one in rest if one not in validation.applicable and one not in causes]
        if not (conflicts or tried_each) and len(undecided) > 1 and (invalid_replies > 1 or not causes):
            tried_each = True
            more, conflicts = yield from _try_each([one for one in rest if one in others], undecided, validator)
            causes |= more
        if not (causes or conflicts):
            last = _least_important(rest)
            causes = {last: validation.inapplicable.get(last, reasons.PRECEDING_FAILED)}
        inapplicable |= {one: key for one, key in causes.items() if one not in conflicts}
        if conflicts:
            return _Attempt(None, (), inapplicable, conflicts, others, None, rules)
        rest = [one for one in rest if one not in causes]
    return _Attempt(inapplicable=inapplicable, rules=rules)


def _try_each(
    applicable: Sequence[Redeemable], undecided: Sequence[Redeemable], validator: Validator
) -> Conversation[tuple[dict[Redeemable, str], dict[Redeemable, str]]]:
    """Validates each undecided redeemable together with the applicable ones. Returns causes and conflicts."""
    groups = [_in_order([*applicable, one]) for one in undecided]
    causes: dict[Redeemable, str] = {}
    conflicts: dict[Redeemable, str] = {}
    replies = yield from _send_in_parallel(groups, validator)
    for one, group, reply in zip(undecided, groups, replies, strict=True):
        validation = validator.read(reply, group)
        causes |= {other: key for other, key in _causes(validation).items() if other == one}
        conflicts |= _conflicts(validation, group)
    return causes, conflicts


def _causes(validation: Validation) -> dict[Redeemable, str]:
    """The redeemables that do not apply, without those that failed because another one did."""
    return {one: key for one, key in validation.inapplicable.items() if key != reasons.PRECEDING_FAILED}


def _conflicts(validation: Validation, redeemables: Sequence[Redeemable]) -> dict[Redeemable, str]:
    """The codes that may not apply because of a promotion tier in the same request."""
    if all(one.code for one in redeemables):
        return {}
    tier_applies = any(not one.code for one in validation.applicable)
    return {
        one: key
        for one, key in validation.inapplicable.items()
        if one.code and (reasons.is_skipped(key) or (tier_applies and not reasons.is_own(key)))
    }


def _least_important(redeemables: Sequence[Redeemable]) -> Redeemable:
    """The redeemable to give up where Voucherify names none: the last tier, else the last code."""
    return next((one for one in reversed(redeemables) if not one.code), redeemables[-1])


def retry_if_busy(request: EngineRequest) -> Conversation[EngineReply]:
    """Sends a repeatable request, and once more where another request for the same order or voucher is in progress."""
    reply = yield request
    return (yield request) if _is_busy(reply) else reply


def _send_in_parallel(groups: Iterable[Sequence[Redeemable]], validator: Validator) -> Conversation[list[EngineReply]]:
    """Validates the groups in parallel. They may block each other, so a busy one is sent again afterwards."""
    requests = [validator.build(group) for group in groups]
    replies: list[EngineReply] = []
    for request, reply in zip(requests, (yield from together(*requests)), strict=True):
        replies.append((yield from retry_if_busy(request)) if _is_busy(reply) else reply)
    return replies


def _is_busy(reply: EngineReply) -> bool:
    return reply.status == 400 and read_error(reply).key == "multiple_requests"


def _in_order(redeemables: Iterable[Redeemable]) -> list[Redeemable]:
    return sorted(redeemables, key=lambda one: one.position)


def _codes(redeemables: Iterable[Redeemable]) -> list[Redeemable]:
    return [one for one in redeemables if one.code]
