"""Voucherify as conversations: validate, check, redeem, look up, undo.

https://docs.voucherify.io. Built on the stackable endpoints: one call for all codes of a cart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from adapters.voucherify import answers, effects, questions, reasons
from adapters.voucherify.options import MAX_REDEEMABLES, OPTIONS, read
from adapters.voucherify.questions import Redeemable
from mapper.adapter import (
    Account,
    Adapter,
    Capabilities,
    Checkout,
    Conversation,
    EngineRejected,
    EngineReply,
    EngineRequest,
    EngineUnavailable,
    LookedUp,
    Notice,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
)

__all__ = ["Voucherify"]

# How often one validation may be asked, each time without what was refused before (projects in mode ALL).
ROUNDS = 3


class Voucherify(Adapter):
    """The adapter for Voucherify. The order's `source_id` in Voucherify is the session id."""

    name = "voucherify"
    contract = 1
    options = OPTIONS
    capabilities = Capabilities(
        check=True,
        undo=True,
        repair=True,
        referral=True,
        loyalty=True,
        gift_cards=True,
        automatic=True,
        currencies="one",
        most_codes=MAX_REDEEMABLES,
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        account, self.settings = read(given)
        self.accounts: Mapping[str, Account] = {"": account}

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        coded, refused = questions.codes(checkout, self.settings, frozenset())
        if not checkout.cart:
            return Outcome(rejected=tuple(refused))
        tiers = yield from self._promotions(checkout, MAX_REDEEMABLES - len(coded))
        asked = questions.arrange(coded, tiers, self.settings)
        settled = yield from self._settle(checkout, session, asked)
        return self._outcome(settled, checkout, refused)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """A validation of what the shopper was shown: without effect."""
        asked, refused = self._shown(order)
        settled = yield from self._settle(order, session, asked)
        if _used_up(key for _, key in settled.refused):
            # Perhaps by ourselves: the ledger may have been lost.
            known = yield from self.look_up(order, session)
            if known.state == "redeemed":
                return _already(known.outcome)
        outcome = self._outcome(settled, order, refused)
        return _with(outcome, *effects.refused_promotions(_tiers(settled.refused)))

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems what the shopper was shown. A second request is made only after the first was refused for certain."""
        asked, refused = self._shown(order)
        dropped: list[tuple[Redeemable, str]] = []
        while asked:
            reply = yield questions.redemption(order, session, asked, self.settings)
            if reply.status == 200:
                outcome = yield from self._redeemed(reply, order, session, asked, refused)
                return Redeemed(_with(outcome, *effects.refused_promotions(dropped)))
            meant, key = answers.read_refusal(reply, asked)
            if _used_up([key]):
                known = yield from self.look_up(order, session)
                if known.state == "redeemed":
                    return Redeemed(_already(known.outcome))
            codes = [(one, key) for one in meant if one.code]
            if not codes and not dropped:
                # It names no code. A validation tells what stands in the way; a promotion alone must not.
                settled = yield from self._settle(order, session, asked)
                codes = [(one, why) for one, why in settled.refused if one.code]
                dropped = _tiers(settled.refused)
                if dropped and not codes:
                    asked = settled.applies
                    continue
            codes = codes or [(one, key) for one in asked if one.code]
            if not codes:
                message = "Voucherify refuses to redeem the promotions of this order, and does not say which."
                raise EngineRejected(message, reason="promotion_refused")
            return NotRedeemed((*refused, *_rejections(codes)))
        return NotRedeemed(tuple(refused), tuple(effects.refused_promotions(dropped)))

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the order. Raises `OrderMismatch` where it was redeemed with another cart.

        Codes that the first redemption left out (application mode PARTIAL) are rejected.
        """
        reply = yield from _ask(questions.stored_order(session))
        stored = answers.read_order(reply)
        live = answers.live_redemptions(stored) if stored else ()
        if stored is None or not live:
            # An order without redemptions has merely been synchronised.
            return LookedUp("absent")
        if not answers.same_cart(stored, order, self.settings):
            message = "Voucherify has redeemed this order's promotions with another cart."
            raise OrderMismatch(message, reason="other_content")
        try:
            answer = answers.granted(stored, session, len(order.cart))
            outcome = effects.outcome(answer, order, self.settings, binding=False)
        except EngineUnavailable as error:
            # That it happened is certain, even where its amounts cannot be read.
            outcome = Outcome(notices=(Notice(error.reason, error.message, None),))
        missing = yield from self._missing(answers.parts(stored, live[0]), order)
        outcome = msgspec.structs.replace(outcome, rejected=_left_out(missing))
        notices = effects.refused_promotions([(one, "") for one in missing if not one.code])
        return LookedUp("redeemed", _with(outcome, *notices, _redemptions(live)), extra=live[1:])

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Rolls back every redemption of the order that stands. Doing it again changes nothing."""
        reply = yield from _ask(questions.stored_order(session))
        stored = answers.read_order(reply)
        yield from _roll_back(answers.live_redemptions(stored) if stored else ())

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        """Rolls back redemptions beyond the first. Doing it again changes nothing."""
        yield from _roll_back(extra)

    # --- Parts of conversations --------------------------------------------------------------------------------------

    def _promotions(self, checkout: Checkout, room: int) -> Conversation[tuple[str, ...]]:
        """The promotions to try beside the codes: Voucherify applies none by itself."""
        if self.settings.promotions == "off" or room == 0:
            return ()
        if self.settings.promotions == "listed":
            return self.settings.tiers
        reply = yield from _ask(questions.qualification(checkout, room, self.settings))
        if reply.status != 200:
            raise reasons.problem(reply.status, answers.error(reply).key)
        return answers.read_tiers(reply)

    def _settle(self, checkout: Checkout, session: str, asked: Sequence[Redeemable]) -> Conversation["_Settled"]:
        """Finds out what applies, and asks again for the rest where one that does not makes all the others invalid.

        The project decides whether one bad redeemable makes the whole answer invalid (application mode ALL). A code
        must not fail because of a promotion that we have added; and what the other codes earn is for our caller to
        give or to keep.
        """
        dropped: dict[Redeemable, str] = {}
        rest = list(asked) if checkout.cart else []
        for turn in range(ROUNDS):
            if turn == ROUNDS - 1 and any(one.code for one in rest):
                # The last chance is the codes'.
                dropped |= {one: reasons.PRECEDING_FAILED for one in rest if not one.code}
                rest = [one for one in rest if one.code]
            if not rest:
                break
            reply = yield from _ask(questions.validation(checkout, session, rest, self.settings))
            if reply.status == 200:
                answer = answers.read_validation(reply, rest)
                if answer.valid:
                    left = [one for one in rest if one not in answer.refused]
                    return _Settled(answer, left, [*dropped.items(), *answer.refused.items()])
                refused = answer.refused
            else:
                meant, key = answers.read_refusal(reply, rest)
                refused = meant or dict.fromkeys(rest, key)
            # Those that were only left out because of another deserve another chance.
            causes = {one: key for one, key in refused.items() if key != reasons.PRECEDING_FAILED} or refused
            dropped |= causes
            rest = [one for one in rest if one not in causes]
        dropped |= dict.fromkeys(rest, reasons.PRECEDING_FAILED)
        return _Settled(None, [], list(dropped.items()))

    def _outcome(self, settled: "_Settled", checkout: Checkout, refused: Sequence[Rejection]) -> Outcome:
        """The outcome of a validation; refused codes in the order in which the shopper gave them."""
        rejected = [*refused, *_rejections(settled.refused)]
        place = {code: index for index, code in enumerate(checkout.promotions.codes)}
        rejected.sort(key=lambda one: place[one.code])
        if settled.answer is None:
            return Outcome(rejected=tuple(rejected))
        return effects.outcome(settled.answer, checkout, self.settings, rejected=rejected)

    def _shown(self, order: Checkout) -> tuple[Sequence[Redeemable], list[Rejection]]:
        """What the shopper was shown at validate, which is what consume has to redeem."""
        if not order.cart:
            return [], []
        shown = questions.shown(order, self.settings)
        coded, refused = questions.codes(order, self.settings, shown.refused)
        return questions.arrange(coded, shown.tiers, self.settings), refused

    def _missing(self, parts: Sequence[str], order: Checkout) -> Conversation[list[Redeemable]]:
        """What the order asked for and these redemptions do not have. They are read only where they are too few.

        Raises `EngineUnavailable` where that cannot be told for certain: a guess may take back a paid order.
        """
        asked, _ = self._shown(order)
        if len(parts) >= len(asked):
            return []
        found = []
        for part in parts:
            reply = yield from _ask(questions.stored_redemption(part))
            found.append(answers.read_part(reply, asked))
        return [one for one in asked if one not in found]

    def _redeemed(
        self, reply: EngineReply, order: Checkout, session: str, asked: Sequence[Redeemable], refused: list[Rejection]
    ) -> Conversation[Outcome]:
        """What a redemption did: perhaps less than was asked for, perhaps for a second time."""
        found = answers.read_redemption(reply, asked)
        ours = {*found.ids, *found.children}
        if found.ids and found.live and found.live[0] not in ours:
            # The order had been redeemed before. Nothing in Voucherify prevents that, so ours is taken back: of two
            # that were sent at once, the later one is, and never both.
            yield from _roll_back(found.ids)
            known = yield from self.look_up(order, session)
            if known.state == "redeemed":
                return _already(known.outcome)
            raise EngineUnavailable("What is redeemed for this order is not clear.", reason="unclear", sent=True)
        rejected = [*refused, *_rejections(found.answer.refused.items())]
        outcome = effects.outcome(found.answer, order, self.settings, binding=False, rejected=rejected)
        notices = effects.refused_promotions(_tiers(found.answer.refused.items()))
        return _with(outcome, *notices, *([_redemptions(found.ids)] if found.ids else []))


@dataclass(frozen=True, slots=True)
class _Settled:
    """What validation came to: the valid answer (None: there is none), what applies, what was refused and why."""

    answer: answers.Answer | None
    applies: Sequence[Redeemable]
    refused: Sequence[tuple[Redeemable, str]]


def _ask(request: EngineRequest) -> Conversation[EngineReply]:
    """A repeatable request; once more where Voucherify was busy with another one for the same order or voucher."""
    reply = yield request
    if reply.status == 400 and answers.error(reply).key == "multiple_requests":
        reply = yield request
    return reply


def _roll_back(ids: Sequence[str]) -> Conversation[None]:
    for one in ids:
        reply = yield from _ask(questions.rollback(one))
        key = "" if reply.status == 200 else answers.error(reply).key
        if reply.status != 200 and key != "already_rolled_back":
            raise reasons.problem(reply.status, key)


def _rejections(refused: Iterable[tuple[Redeemable, str]]) -> list[Rejection]:
    return [Rejection(one.code, reasons.reason(key), key) for one, key in refused if one.code]


def _left_out(missing: Iterable[Redeemable]) -> tuple[Rejection, ...]:
    """Why, the stored order does not say."""
    return tuple(Rejection(one.code, Reason.NOT_APPLIED, "") for one in missing if one.code)


def _tiers(refused: Iterable[tuple[Redeemable, str]]) -> list[tuple[Redeemable, str]]:
    return [(one, key) for one, key in refused if not one.code]


def _used_up(keys: Iterable[str]) -> bool:
    return any(reasons.reason(key) == Reason.USED_UP for key in keys)


def _redemptions(ids: Sequence[str]) -> Notice:
    return Notice("redemption", "Redeemed in Voucherify under these ids.", {"redemptions": list(ids)})


def _with(outcome: Outcome, *notices: Notice) -> Outcome:
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, *notices))


def _already(outcome: Outcome) -> Outcome:
    return msgspec.structs.replace(outcome, redeemed=True)
