"""Finding out what applies, without effect: in few calls, and so that nothing suffers from what stands beside it.

The project decides whether one bad redeemable makes the whole answer invalid (application mode ALL). Such an answer
may name the first bad one alone, so it is asked again without it. From the second invalid answer on, all that are still
undecided are asked about side by side, each beside those that are known to be fine.

A promotion that we have added never costs a code: where a code is refused beside promotions for a reason that may be
theirs, the codes are asked about alone, and then only such promotions join them as leave them what they have. Room that
a promotion leaves goes to the next one.

| what stands in the cart | validations |
|---|---|
| all is fine, or the project's mode is PARTIAL and each refusal is the code's own | 1 |
| one bad redeemable (mode ALL) | 2 |
| a promotion that keeps a code from applying | 2; 3 where others may join the code |
| several promotions that may do so | 3, and one for each of them (five at most), side by side |
| promotions that wait for room, and one before them that does not apply | 1 more |
| more bad ones (mode ALL) | 3, and one for each that is undecided after two, side by side |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.voucherify import reasons
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.refusals import error, read_refusal
from adapters.voucherify.replies import Answer, limit_in, read_validation
from mapper.adapter import Conversation, EngineRejected, EngineReply, EngineRequest, together

# How Voucherify may call a question with more redeemables than the project takes, or with a promotion it cannot read.
_PERHAPS_TOO_MANY = ("invalid_redeemables", "invalid_payload", "unexpected_error")

# Promotions that are asked about one by one; a project lets five redeemables apply, if nobody has set another number.
_MOST_SUSPECTS = 5

Ask = Callable[[Sequence[Redeemable]], EngineRequest]


@dataclass(frozen=True, slots=True)
class Settled:
    """What validation came to."""

    answer: Answer | None = None
    """The valid answer; None: there is none."""
    question: tuple[Redeemable, ...] = ()
    """What it answers."""
    refused: dict[Redeemable, str] = field(default_factory=dict)
    """Why, by Voucherify's key: codes and promotions, those of the valid answer among them."""

    @property
    def applies(self) -> tuple[Redeemable, ...]:
        return tuple(one for one in self.question if one not in self.refused)


@dataclass(frozen=True, slots=True)
class _Narrowed(Settled):
    """How far one question and its shorter ones have led."""

    harmed: dict[Redeemable, str] = field(default_factory=dict)
    """Codes that are refused for a reason that may be a promotion's; nothing more was asked then."""
    beside: frozenset[Redeemable] = frozenset()
    """What applied in their place."""
    problem: EngineRejected | None = None
    """Voucherify takes the question as a whole for malformed."""
    rules: dict[str, Any] = field(default_factory=dict)


def settle(asked: Sequence[Redeemable], ask: Ask) -> Conversation[Settled]:
    """What applies of what is asked for, and why the rest does not."""
    found = yield from _narrow(asked, ask)
    if found.problem is not None:
        return (yield from _fit(asked, ask, found.problem))
    if not found.harmed:
        return found
    alone = yield from _narrow([one for one in _codes(asked) if not reasons.is_own(found.refused.get(one, ""))], ask)
    if found.answer is not None and set(_codes(found.applies)) >= set(alone.applies):
        return found
    own = {one: key for one, key in found.refused.items() if one not in found.harmed and not reasons.is_skipped(key)}
    innocent = found.harmed.keys() <= alone.refused.keys() or {*found.harmed.values()} == {reasons.LIMIT_EXCEEDED}
    blamed = [] if innocent else [one for one in asked if one in found.beside and not one.code]
    if len(blamed) > 1:
        blamed = yield from _guilty(blamed, alone.applies, ask)
    tiers = [one for one in asked if not one.code and one not in own and one not in blamed]
    return (yield from _join(alone, tiers, ask, {**own, **dict.fromkeys(blamed, "")}))


def settle_in_turn(
    asked: Sequence[Redeemable], waiting: Sequence[Redeemable], limit: int, ask: Ask
) -> Conversation[Settled]:
    """The same, of as many as the project takes (`limit`): those that wait get the room that a promotion leaves."""
    found = yield from settle(asked, ask)
    refused = {**dict.fromkeys(waiting, reasons.LIMIT_EXCEEDED), **found.refused}
    most = limit_in(found.answer.rules, "applicable_redeemables_limit") if found.answer else None
    turn = waiting[: max(min(limit, most or limit) - len(found.applies), 0)]
    if turn and any(not one.code for one in found.refused):
        joined = yield from _narrow(_in_order([*found.applies, *turn]), ask)
        if joined.answer is not None and {*found.applies} <= {*joined.applies}:
            named = {one: key for one, key in refused.items() if one not in turn}
            return Settled(joined.answer, joined.question, {**named, **joined.refused})
    return Settled(found.answer, found.question, refused)


def _guilty(tiers: Sequence[Redeemable], codes: Sequence[Redeemable], ask: Ask) -> Conversation[list[Redeemable]]:
    """Which of these promotions keep one of the codes from applying; of many, also those that are not asked about."""
    questions = [_in_order([*codes, tier]) for tier in tiers[:_MOST_SUSPECTS]]
    guilty = [*tiers[_MOST_SUSPECTS:]]
    for tier, question, reply in zip(tiers, questions, (yield from together(*map(ask, questions))), strict=False):
        try:
            answer = read((yield from ask_once(ask(question))) if _is_busy(reply) else reply, question)
        except EngineRejected:
            answer = Answer(valid=False)
        if not answer.valid or not {*codes} <= {one.asked for one in answer.applied}:
            guilty.append(tier)
    return guilty


def _join(
    alone: _Narrowed, tiers: Sequence[Redeemable], ask: Ask, refused: dict[Redeemable, str]
) -> Conversation[Settled]:
    """The codes that apply alone, with as many promotions beside them as fit and harm none of them."""
    limit = limit_in(alone.rules, "redeemables_limit", "applicable_redeemables_limit")
    fit = tiers if limit is None else tiers[: max(limit - len(alone.applies), 0)]
    out = {**refused, **dict.fromkeys(tiers[len(fit) :], reasons.LIMIT_EXCEEDED), **alone.refused}
    if fit:
        joined = yield from _narrow(_in_order([*alone.applies, *fit]), ask)
        if joined.answer is not None and set(alone.applies) <= set(joined.applies):
            return Settled(joined.answer, joined.question, {**out, **joined.refused})
        out |= {one: joined.refused.get(one, "") for one in fit}
    return Settled(alone.answer, alone.question, out)


def _fit(asked: Sequence[Redeemable], ask: Ask, problem: EngineRejected) -> Conversation[Settled]:
    """As many as the project takes in one question, codes first: its limit stands in the answer to a shorter one.

    Raises the problem where that is not it. That a promotion was sent along is no reason to refuse the codes.
    """
    codes, tiers = _codes(asked), [one for one in asked if not one.code]
    if len(asked) == 1:
        raise problem
    probe = yield from _narrow([*codes, *tiers][:1], ask)
    if probe.problem is not None:
        raise problem
    limit = limit_in(probe.rules, "redeemables_limit")
    if limit is not None and limit < len(asked):
        kept = {*[*codes, *tiers][:limit]}
        waiting = [one for one in asked if one not in kept]
        return (yield from settle_in_turn([one for one in asked if one in kept], waiting, limit, ask))
    if not (codes and tiers):
        raise problem
    found = yield from settle(codes, ask)
    return Settled(found.answer, found.question, {**dict.fromkeys(tiers, ""), **found.refused})


def _narrow(asked: Sequence[Redeemable], ask: Ask) -> Conversation[_Narrowed]:
    """Asks until an answer is valid, each time without those that are refused for themselves."""
    rest, refused, rules = list(asked), dict[Redeemable, str](), dict[str, Any]()
    invalid, probed = 0, False
    while rest:
        try:
            answer = read((yield from ask_once(ask(rest))), rest)
        except EngineRejected as problem:
            if problem.reason not in _PERHAPS_TOO_MANY:
                raise
            return _Narrowed(refused=refused, problem=problem)
        rules = {**rules, **answer.rules}
        harmed, fine = _harmed(answer, rest), frozenset(answer.fine)
        if answer.valid:
            return _Narrowed(answer, tuple(rest), {**refused, **answer.refused}, harmed, fine, None, rules)
        causes = _for_themselves(answer)
        invalid += 1
        undecided = [one for one in rest if one not in answer.fine and one not in causes]
        if not (harmed or probed) and len(undecided) > 1 and (invalid > 1 or not causes):
            probed = True
            found, harmed = yield from _probe([one for one in rest if one in fine], undecided, ask)
            causes |= found
        if not (causes or harmed):
            causes = {_least(rest): answer.refused.get(_least(rest), reasons.PRECEDING_FAILED)}
        refused |= {one: key for one, key in causes.items() if one not in harmed}
        if harmed:
            return _Narrowed(None, (), refused, harmed, fine, None, rules)
        rest = [one for one in rest if one not in causes]
    return _Narrowed(refused=refused, rules=rules)


def _probe(
    fine: Sequence[Redeemable], undecided: Sequence[Redeemable], ask: Ask
) -> Conversation[tuple[dict[Redeemable, str], dict[Redeemable, str]]]:
    """Each of the undecided beside those that are known to be fine: which are refused for themselves, which harmed."""
    questions = [_in_order([*fine, one]) for one in undecided]
    found: dict[Redeemable, str] = {}
    harmed: dict[Redeemable, str] = {}
    for one, question, reply in zip(undecided, questions, (yield from together(*map(ask, questions))), strict=True):
        # They may get in each other's way.
        answer = read((yield from ask_once(ask(question))) if _is_busy(reply) else reply, question)
        found |= {other: key for other, key in _for_themselves(answer).items() if other == one}
        harmed |= _harmed(answer, question)
    return found, harmed


def _for_themselves(answer: Answer) -> dict[Redeemable, str]:
    """What an answer refuses, but for what only fell with another."""
    return {one: key for one, key in answer.refused.items() if key != reasons.PRECEDING_FAILED}


def _harmed(answer: Answer, asked: Sequence[Redeemable]) -> dict[Redeemable, str]:
    """The codes that this answer refuses for a reason that may lie in a promotion which was asked for beside them."""
    if all(one.code for one in asked):
        return {}
    went_before = any(not one.code for one in answer.fine)
    return {
        one: key
        for one, key in answer.refused.items()
        if one.code and (reasons.is_skipped(key) or (went_before and not reasons.is_own(key)))
    }


def _least(asked: Sequence[Redeemable]) -> Redeemable:
    """The one that is given up where Voucherify does not say which is in the way: a promotion, else the last code."""
    return next((one for one in reversed(asked) if not one.code), asked[-1])


def read(reply: EngineReply, asked: Sequence[Redeemable]) -> Answer:
    """What a validation says, as an answer or as an error about a code. Raises a `Problem` for any other error."""
    if reply.status == 200:
        return read_validation(reply, asked)
    meant, _ = read_refusal(reply, asked)
    return Answer(valid=False, refused=meant)


def ask_once(request: EngineRequest) -> Conversation[EngineReply]:
    """A repeatable request; once more where Voucherify was busy with another one for the same order or voucher."""
    reply = yield request
    return (yield request) if _is_busy(reply) else reply


def _is_busy(reply: EngineReply) -> bool:
    return reply.status == 400 and error(reply).key == "multiple_requests"


def _in_order(some: Sequence[Redeemable]) -> list[Redeemable]:
    return sorted(some, key=lambda one: one.position)


def _codes(asked: Sequence[Redeemable]) -> list[Redeemable]:
    return [one for one in asked if one.code]
