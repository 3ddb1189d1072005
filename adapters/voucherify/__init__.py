"""Voucherify as conversations: validate, check, redeem, look up, undo.

https://docs.voucherify.io. Built on the stackable endpoints: one call for all codes of a cart.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from adapters.voucherify import effects, reasons, redeemables, replies, request, stored
from adapters.voucherify.options import MAX_REDEEMABLES, OPTIONS, read
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.refusals import error, read_refusal
from adapters.voucherify.settle import Ask, Settled, ask_once, settle, settle_in_turn
from mapper.adapter import (
    Account,
    Adapter,
    Capabilities,
    Checkout,
    Conversation,
    EngineRejected,
    EngineReply,
    EngineUnavailable,
    LookedUp,
    Notice,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
    together,
)

__all__ = ["Voucherify"]


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
        coded, refused = redeemables.codes(checkout, self.settings, frozenset())
        settled = yield from self._earned(checkout, session, coded)
        yield from self._release(checkout, session, settled)
        outcome = self._outcome(settled, checkout, refused)
        unasked = () if checkout.cart else map(effects.not_asked, coded)
        return _with(outcome, *unasked, *effects.left_out(settled.refused))

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """A validation of what the shopper was shown: without effect, and the question that `redeem` asks."""
        asked, refused = self._shown(order)
        settled = yield from self._settle(order, session, asked)
        before = yield from self._redeemed_before(order, session, settled.refused.values())
        if before is not None:
            return before
        yield from self._release(order, session, settled)
        outcome = self._outcome(settled, order, refused)
        return _with(outcome, *effects.refused_promotions(settled.refused))

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems what the shopper was shown; what is refused is left out, as `check` has told.

        Another request that redeems is made only after the one before was refused, and so has redeemed nothing.
        """
        asked, refused = self._shown(order)
        out: dict[Redeemable, str] = {}
        if len({one.object for one in asked}) > 1:
            # Codes beside promotions: the redemption must not cost a code what `check` has granted it.
            settled = yield from self._settle(order, session, asked)
            asked, out = settled.question, settled.refused
        before = yield from self._redeemed_before(order, session, out.values())
        while asked and before is None:
            reply = yield request.redemption(order, session, asked, self.settings)
            if reply.status == 200:
                return (yield from self._redeemed(reply, order, session, asked, refused, out))
            meant, key = read_refusal(reply, asked, several_may_be_too_many=True)
            asked, gone = yield from self._without_refused(order, session, asked, meant, key)
            out = {**out, **gone}
            before = yield from self._redeemed_before(order, session, [key, *gone.values()])
        if before is not None:
            return Redeemed(before)
        rejected = _in_order([*refused, *_rejections(out)], order)
        return NotRedeemed(tuple(rejected), tuple(effects.refused_promotions(out)))

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the order. Raises `OrderMismatch` where it was redeemed with another cart, or with a code that this
        order does not bring.

        Codes that the redemption left out (application mode PARTIAL) are rejected. Of several redemptions, the one
        that `redeem` told of counts, else the first.
        """
        found = yield from self._stored(session)
        live = stored.live_redemptions(found) if found else ()
        if found is None or not live:
            # An order without redemptions has merely been synchronised.
            return LookedUp("absent")
        if not stored.same_cart(found, order, self.settings):
            message = "Voucherify has redeemed this order's promotions with another cart."
            raise OrderMismatch(message, reason="other_content")
        first = handle if handle in live else live[0]
        try:
            outcome = effects.outcome(stored.granted(found, session, order), order, self.settings, binding=False)
        except EngineUnavailable as problem:
            # That it happened is certain, even where its amounts cannot be read.
            outcome = Outcome(notices=(Notice(problem.reason, problem.message, None),))
        missing = yield from self._missing(found, stored.parts(found, first), order)
        outcome = msgspec.structs.replace(outcome, rejected=_left_out(missing))
        notices = effects.refused_promotions(dict.fromkeys(missing, ""))
        extra = tuple(one for one in live if one != first)
        return LookedUp("redeemed", _with(outcome, *notices, _redemptions((first, *extra))), extra)

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Rolls back every redemption of the session that stands. Doing it again changes nothing."""
        found = yield from self._stored(session)
        live = stored.live_redemptions(found) if found else ()
        # The handle counts alone where Voucherify does not find the order that it names.
        yield from _roll_back(live if found is not None or not handle else [handle])
        if not final and found is not None:
            yield from _set_aside(found, session)
        if final and order is not None and self.settings.lock_ttl:
            yield from _release_all(order.promotions.codes, session)

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        """Rolls back redemptions beyond the first. Doing it again changes nothing."""
        yield from _roll_back(extra)

    # --- Parts of conversations --------------------------------------------------------------------------------------

    def _earned(self, checkout: Checkout, session: str, coded: Sequence[Redeemable]) -> Conversation[Settled]:
        """What the codes and the promotions beside them come to; promotions wait where there is no room for them."""
        if not checkout.cart:
            return Settled()
        tiers, room = yield from self._promotions(checkout, MAX_REDEEMABLES - len(coded))
        wanted = redeemables.arrange(coded, tiers, self.settings)
        waiting = [one for one in wanted if not one.code][room:]
        asked = [one for one in wanted if one not in waiting]
        ask = self._validation(checkout, session)
        return (yield from settle_in_turn(asked, waiting, len(coded) + room, ask))

    def _promotions(self, checkout: Checkout, room: int) -> Conversation[tuple[Sequence[str], int]]:
        """The promotions to try, since Voucherify applies none by itself, and for how many of them there is room.

        How many redeemables the project takes stands in the qualification's answer.
        """
        if self.settings.promotions == "listed":
            return tuple(dict.fromkeys(self.settings.tiers)), room
        if self.settings.promotions == "off" or room == 0:
            return (), 0
        reply = yield from ask_once(request.qualification(checkout, room, self.settings))
        if reply.status != 200:
            raise reasons.problem(reply.status, error(reply).key)
        offer = replies.read_offer(reply)
        beyond = MAX_REDEEMABLES - (replies.limit_in(offer.rules, "redeemables_limit") or MAX_REDEEMABLES)
        return offer.tiers, max(room - beyond, 0)

    def _settle(self, checkout: Checkout, session: str, asked: Sequence[Redeemable]) -> Conversation[Settled]:
        return settle(asked, self._validation(checkout, session))

    def _validation(self, checkout: Checkout, session: str) -> Ask:
        return lambda some: request.validation(checkout, session, some, self.settings)

    def _release(self, checkout: Checkout, session: str, settled: Settled) -> Conversation[None]:
        """Frees the codes that this checkout's lock may hold from before, and that do not apply any more."""
        if self.settings.lock_ttl:
            held = {one.code for one in settled.applies}
            gone = [code for code in redeemables.applied_before(checkout) if code not in held]
            yield from _release_all(gone, session)

    def _outcome(self, settled: Settled, checkout: Checkout, refused: Sequence[Rejection]) -> Outcome:
        """The outcome of a validation; refused codes in the order in which the shopper gave them."""
        rejected = _in_order([*refused, *_rejections(settled.refused)], checkout)
        if settled.answer is None:
            return Outcome(rejected=tuple(rejected))
        return effects.outcome(settled.answer, checkout, self.settings, rejected=rejected)

    def _shown(self, order: Checkout) -> tuple[Sequence[Redeemable], list[Rejection]]:
        """What the shopper was shown at validate, which is what consume has to redeem."""
        if not order.cart:
            return [], []
        shown = redeemables.shown(order, self.settings)
        coded, refused = redeemables.codes(order, self.settings, shown.refused)
        return redeemables.arrange(coded, shown.tiers[: MAX_REDEEMABLES - len(coded)], self.settings), refused

    def _redeemed_before(self, order: Checkout, session: str, keys: Iterable[str]) -> Conversation[Outcome | None]:
        """A code that is used up may have been used up by this very order: the ledger may have been lost."""
        if not any(reasons.reason(key) == Reason.USED_UP for key in keys):
            return None
        known = yield from self.look_up(order, session)
        return msgspec.structs.replace(known.outcome, redeemed=True) if known.state == "redeemed" else None

    def _without_refused(
        self, order: Checkout, session: str, asked: Sequence[Redeemable], meant: dict[Redeemable, str], key: str
    ) -> Conversation[tuple[Sequence[Redeemable], dict[Redeemable, str]]]:
        """What to redeem after a redemption was refused, and what is given up.

        One may be named where several are in the way: a validation tells, without effect, what applies.
        """
        has_codes = any(one.code for one in asked)
        if has_codes and meant.keys() >= {*asked}:
            return (), meant
        settled = yield from self._settle(order, session, asked)
        if settled.answer is None or len(settled.question) < len(asked):
            return settled.question, settled.refused
        if settled.refused:
            return settled.applies, settled.refused
        if not has_codes:
            message = "Voucherify refuses to redeem the promotions of this order, and does not say which."
            raise EngineRejected(message, reason="promotion_refused")
        gone = meant or dict.fromkeys(asked, key)
        return [one for one in asked if one not in gone], gone

    def _redeemed(
        self,
        reply: EngineReply,
        order: Checkout,
        session: str,
        asked: Sequence[Redeemable],
        refused: Sequence[Rejection],
        out: Mapping[Redeemable, str],
    ) -> Conversation[Redeemed | NotRedeemed]:
        """What a redemption did: perhaps less than was asked for.

        Raises `EngineUnavailable` where it is not the only one. Nothing in Voucherify keeps an order to one redemption,
        and a request may be delivered twice, or come late: so the order is read once more. The look-up that follows
        tells which one counts, and the others are rolled back.
        """
        found = replies.read_redemption(reply, asked)
        now = (yield from self._stored(session)) or found.order
        live = {*stored.live_redemptions(found.order), *stored.live_redemptions(now)}
        if found.ids and live - {*found.ids, *found.children}:
            raise EngineUnavailable("The order has been redeemed more than once.", reason="redeemed_twice")
        if stored.is_reused(now) and not stored.same_cart(now, order, self.settings):
            yield from _roll_back(found.ids)
            yield from _set_aside(now, session)
            raise EngineUnavailable("Voucherify has redeemed the cart of an earlier attempt.", reason="earlier_cart")
        gone = {**out, **found.answer.refused}
        rejected = _in_order([*refused, *_rejections(gone)], order)
        if not found.answer.applied:
            return NotRedeemed(tuple(rejected), tuple(effects.refused_promotions(gone)))
        outcome = effects.outcome(found.answer, order, self.settings, binding=False, rejected=rejected)
        notices = [*effects.refused_promotions(gone), *([_redemptions(found.ids)] if found.ids else [])]
        return Redeemed(_with(outcome, *notices), handle=found.ids[0] if found.ids else "")

    def _missing(
        self, found: stored.StoredOrder, parts: Sequence[str], order: Checkout
    ) -> Conversation[list[Redeemable]]:
        """What the order asked for and these redemptions do not have.

        Raises `OrderMismatch` where they have a code that the order does not bring, and `EngineUnavailable` where they
        are too few and one cannot be read: a guess may take back a paid order.
        """
        asked, _ = self._shown(order)
        brought = [Redeemable("voucher", code) for code in order.promotions.codes]
        if not brought and stored.has_voucher(found, parts):
            raise _other_codes()
        if not brought and len(parts) >= len(asked):
            return []
        redeemed, unread = [], False
        for part in parts:
            reply = yield from ask_once(request.stored_redemption(part))
            try:
                one = stored.read_part(reply)
            except EngineUnavailable:
                if len(parts) < len(asked):
                    raise
                unread = True
                continue
            if one is not None:
                if one.object == "voucher" and redeemables.named(brought, one.names) is None:
                    raise _other_codes()
                redeemed.append(redeemables.named(asked, one.names))
        return [] if unread else [one for one in asked if one not in redeemed]

    def _stored(self, session: str) -> Conversation[stored.StoredOrder | None]:
        return stored.read_order((yield from ask_once(request.stored_order(session))))


def _other_codes() -> OrderMismatch:
    return OrderMismatch("Voucherify has redeemed another code with this order.", reason="other_content")


def _roll_back(ids: Sequence[str]) -> Conversation[None]:
    for one in ids:
        reply = yield from ask_once(request.rollback(one))
        key = "" if reply.status == 200 else error(reply).key
        if reply.status != 200 and key != "already_rolled_back":
            raise reasons.problem(reply.status, key)


def _set_aside(order: stored.StoredOrder, session: str) -> Conversation[None]:
    """Makes room for another order of this session: else Voucherify redeems what it has stored, whatever it is sent.

    Where that fails, the same cart can be redeemed again all the same, and another one is noticed.
    """
    yield request.rename_order(session, stored.name_aside(order, session))


def _release_all(codes: Sequence[str], session: str) -> Conversation[None]:
    if codes:
        yield from together(*(request.release(code, session) for code in codes))


def _rejections(refused: Mapping[Redeemable, str]) -> list[Rejection]:
    return [Rejection(one.code, reasons.reason(key), key) for one, key in refused.items() if one.code]


def _in_order(rejected: Sequence[Rejection], checkout: Checkout) -> list[Rejection]:
    place = {code: index for index, code in enumerate(checkout.promotions.codes)}
    return sorted(rejected, key=lambda one: place.get(one.code, len(place)))


def _left_out(missing: Iterable[Redeemable]) -> tuple[Rejection, ...]:
    """Why, the stored order does not say."""
    return tuple(Rejection(one.code, Reason.NOT_APPLIED, "") for one in missing if one.code)


def _redemptions(ids: Sequence[str]) -> Notice:
    return Notice("redemption", "Redeemed in Voucherify under these ids.", {"redemptions": list(ids)})


def _with(outcome: Outcome, *notices: Notice) -> Outcome:
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, *notices))
