"""Voucherify: a cart is an order, its codes and promotion tiers are redeemables, a redemption redeems them.

This module holds the conversations, on the API for stackable discounts, which takes all codes of a cart in one request:
https://docs.voucherify.io/guides/manage-stackable-discounts. `redeemables` reads what the cart brings, `request` builds
the requests, `stacking` finds the redeemables that apply together, `replies`, `errors`, `stored` and `effects` read the
replies.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from adapters.voucherify import effects, reasons, redeemables, replies, request, stored
from adapters.voucherify.errors import inapplicable_by_error, read_error
from adapters.voucherify.options import MAX_REDEEMABLES, OPTIONS, read
from adapters.voucherify.reading import document, not_understood, objects
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import Validation
from adapters.voucherify.stacking import Selection, Validator, retry_if_busy, select, select_within
from mapper.adapter import (
    Account,
    Adapter,
    Capabilities,
    Checkout,
    Conversation,
    EngineRejected,
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
    """The session id is the order's `source_id` in Voucherify."""

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

    def __init__(self, options: Mapping[str, str]) -> None:
        account, self.settings = read(options)
        self.accounts: Mapping[str, Account] = {"": account}

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """Validates the codes of the cart and the promotion tiers of the settings."""
        vouchers, rejected = redeemables.vouchers(checkout, self.settings, frozenset())
        validator = self._validator(checkout, session)
        selection = yield from self._select_with_promotions(checkout, vouchers, validator)
        yield from self._release_unused(validator, session, selection.applicable)
        outcome = self._outcome(selection, checkout, rejected)
        not_validated = () if checkout.cart else map(effects.not_validated_notice, vouchers)
        return _with_notices(outcome, *not_validated, *effects.left_out_notices(selection.inapplicable))

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Validates the redeemables that `redeem` redeems: those that validate showed the shopper."""
        requested, rejected = self._shown(order)
        validator = self._validator(order, session)
        selection = yield from select(requested, validator)
        redeemed_before = yield from self._redeemed_before(order, session, selection.inapplicable.values())
        yield from self._release_unused(validator, session, () if redeemed_before else selection.applicable)
        if redeemed_before is not None:
            return redeemed_before
        outcome = self._outcome(selection, order, rejected)
        return _with_notices(outcome, *effects.refused_promotion_notices(selection.inapplicable))

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems what validate showed the shopper, without what does not apply any more.

        A second redemption is requested only after an error reply to the first, which has then redeemed nothing.
        """
        requested, rejected = self._shown(order)
        validator = self._validator(order, session)
        inapplicable: dict[Redeemable, str] = {}
        if len({one.object for one in requested}) > 1:
            # A promotion tier must not cost a code that `check` has granted.
            selection = yield from select(requested, validator)
            requested, inapplicable = selection.redeemables, selection.inapplicable
        redeemed_before = yield from self._redeemed_before(order, session, inapplicable.values())
        while requested and redeemed_before is None:
            yield from self._release_unused(validator, session, [one for one in requested if one not in inapplicable])
            reply = yield request.redemption(order, session, requested, self.settings)
            if reply.status == 200:
                redemptions = replies.read_redemption(reply, requested)
                yield from self._ensure_once(redemptions, order, session)
                yield from self._release_unused(
                    validator, session, [one.redeemable for one in redemptions.result.applied]
                )
                return self._redeemed(redemptions.result, redemptions.ids, order, rejected, inapplicable)
            named, key = inapplicable_by_error(reply, requested, may_exceed_limit=True)
            requested, dropped = yield from self._after_error(validator, requested, named, key)
            inapplicable = {**inapplicable, **dropped}
            # `check` may have granted, and so locked, what does not apply on account of something else.
            validator.may_have_locked(one.code for one, why in dropped.items() if not reasons.is_own(why))
            redeemed_before = yield from self._redeemed_before(order, session, [key, *dropped.values()])
        yield from self._release_unused(validator, session, ())
        if redeemed_before is not None:
            return Redeemed(redeemed_before)
        rejected = _in_order([*rejected, *_rejections(inapplicable)], order)
        return NotRedeemed(tuple(rejected), tuple(effects.refused_promotion_notices(inapplicable)))

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the stored order and its redemptions.

        Codes that the redemption left out (application mode PARTIAL) are rejected. Of several redemptions, the one of
        `handle` counts, else the oldest. Raises `OrderMismatch` where another cart was redeemed, or a code that this
        order does not have.
        """
        stored_order = yield from self._stored(session)
        live = stored.live_redemptions(stored_order) if stored_order else ()
        if stored_order is None or not live:
            # Merchants may store orders in Voucherify that have no redemption.
            return LookedUp("absent")
        if not stored.same_cart(stored_order, order, self.settings):
            message = "Voucherify has redeemed this order's promotions with another cart."
            raise OrderMismatch(message, reason="other_content")
        first = handle if handle in live else live[0]
        try:
            validation = stored.granted(stored_order, session, order)
            outcome = effects.outcome(validation, order, self.settings, binding=False)
        except EngineUnavailable as problem:
            # The order is redeemed, even where its amounts cannot be read.
            outcome = Outcome(notices=(Notice(problem.reason, problem.message, None),))
        missing = yield from self._missing(stored_order, stored.parts(stored_order, first), order)
        outcome = msgspec.structs.replace(outcome, rejected=_not_applied(missing))
        notices = effects.refused_promotion_notices(dict.fromkeys(missing, ""))
        extra = tuple(redemption for redemption in live if redemption != first)
        return LookedUp("redeemed", _with_notices(outcome, *notices, _ids_notice((first, *extra))), extra)

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Rolls back all redemptions of the session. Unless `final`, renames the order, to free its name."""
        stored_order = yield from self._stored(session)
        live = stored.live_redemptions(stored_order) if stored_order else ()
        # Where Voucherify does not find the order, the handle is all that is known.
        yield from _roll_back(live if stored_order is not None or not handle else [handle])
        if not final and stored_order is not None:
            yield from _rename(stored_order, session)
        if final and order is not None and self.settings.lock_ttl:
            yield from _release(order.promotions.codes, session)

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        """Rolls back the redemptions beyond the first."""
        yield from _roll_back(extra)

    # --- Parts of conversations --------------------------------------------------------------------------------------

    def _select_with_promotions(
        self, checkout: Checkout, vouchers: Sequence[Redeemable], validator: Validator
    ) -> Conversation[Selection]:
        """Selects among the vouchers and the promotion tiers to try. Tiers beyond the project's limit wait."""
        if not checkout.cart:
            return Selection()
        tiers, places = yield from self._promotions(checkout, MAX_REDEEMABLES - len(vouchers))
        candidates = redeemables.arrange(vouchers, tiers, self.settings)
        waiting = [one for one in candidates if not one.code][places:]
        requested = [one for one in candidates if one not in waiting]
        return (yield from select_within(requested, waiting, len(vouchers) + places, validator))

    def _promotions(self, checkout: Checkout, places: int) -> Conversation[tuple[Sequence[str], int]]:
        """The promotion tiers to try, and how many of `places` the project's limit leaves for them.

        Voucherify applies no tier by itself. The reply to a qualification has the project's limit.
        """
        if self.settings.promotions == "listed":
            return tuple(dict.fromkeys(self.settings.tiers)), places
        if self.settings.promotions == "off" or places == 0:
            return (), 0
        reply = yield from retry_if_busy(request.qualification(checkout, places, self.settings))
        if reply.status != 200:
            raise reasons.problem(reply.status, read_error(reply).key)
        tiers, rules = replies.read_qualification(reply)
        limit = replies.limit_in(rules, "redeemables_limit") or MAX_REDEEMABLES
        return tiers, max(places - (MAX_REDEEMABLES - limit), 0)

    def _validator(self, checkout: Checkout, session: str) -> Validator:
        validator = Validator(lambda some: request.validation(checkout, session, some, self.settings))
        if self.settings.lock_ttl:
            validator.may_have_locked(redeemables.applied_before(checkout))
        return validator

    def _release_unused(self, validator: Validator, session: str, kept: Iterable[Redeemable]) -> Conversation[None]:
        """Unlocks the codes that may be locked for this session, except those of `kept`.

        An earlier validate has locked codes, as the body tells, and so has each validation of this conversation.
        """
        if self.settings.lock_ttl:
            fold_case = self.settings.fold_case
            names = {fold_case(one.code) for one in kept}
            unused = [code for code in validator.maybe_locked if fold_case(code) not in names]
            for code in unused:
                del validator.maybe_locked[code]
            yield from _release(unused, session)

    def _outcome(self, selection: Selection, checkout: Checkout, rejected: Sequence[Rejection]) -> Outcome:
        """The outcome of a selection, rejected codes in the order in which the shopper entered them."""
        rejected = _in_order([*rejected, *_rejections(selection.inapplicable)], checkout)
        if selection.validation is None:
            return Outcome(rejected=tuple(rejected))
        return effects.outcome(selection.validation, checkout, self.settings, rejected=rejected)

    def _shown(self, order: Checkout) -> tuple[Sequence[Redeemable], list[Rejection]]:
        """The redeemables that validate showed the shopper, which consume redeems, and codes rejected unsent."""
        if not order.cart:
            return [], []
        shown = redeemables.shown(order, self.settings)
        vouchers, rejected = redeemables.vouchers(order, self.settings, shown.rejected)
        tiers = shown.tiers[: MAX_REDEEMABLES - len(vouchers)]
        return redeemables.arrange(vouchers, tiers, self.settings), rejected

    def _redeemed_before(self, order: Checkout, session: str, keys: Iterable[str]) -> Conversation[Outcome | None]:
        """The outcome of this order, if it has been redeemed. Looked up where a code is used up.

        The order itself may have used the code up. That happens where the ledger was lost.
        """
        if not any(reasons.reason(key) == Reason.USED_UP for key in keys):
            return None
        looked_up = yield from self.look_up(order, session)
        return msgspec.structs.replace(looked_up.outcome, redeemed=True) if looked_up.state == "redeemed" else None

    def _after_error(
        self, validator: Validator, requested: Sequence[Redeemable], named: dict[Redeemable, str], key: str
    ) -> Conversation[tuple[Sequence[Redeemable], dict[Redeemable, str]]]:
        """The redeemables to request after an error reply to a redemption, and those that are dropped.

        The error names one redeemable, or none, where several do not apply. A validation finds all.
        """
        has_codes = any(one.code for one in requested)
        if has_codes and named.keys() >= {*requested}:
            return (), named
        selection = yield from select(requested, validator)
        if selection.validation is None or len(selection.redeemables) < len(requested):
            return selection.redeemables, selection.inapplicable
        if selection.inapplicable:
            return selection.applicable, selection.inapplicable
        if not has_codes:
            message = "Voucherify refuses to redeem the promotions of this order, and does not say which."
            raise EngineRejected(message, reason="promotion_refused")
        dropped = named or dict.fromkeys(requested, key)
        return [one for one in requested if one not in dropped], dropped

    def _ensure_once(self, redemptions: replies.Redemptions, order: Checkout, session: str) -> Conversation[None]:
        """Raises `EngineUnavailable` where the order has another redemption than these.

        Voucherify does not limit an order to one redemption, and a request may be delivered twice or late. So the order
        is read again. The look-up that follows the error names the redemption that counts; the others are rolled back.
        """
        stored_order = (yield from self._stored(session)) or redemptions.order
        live = {*stored.live_redemptions(redemptions.order), *stored.live_redemptions(stored_order)}
        if redemptions.ids and live - {*redemptions.ids, *redemptions.children}:
            raise EngineUnavailable("The order has been redeemed more than once.", reason="redeemed_twice")
        if stored.is_reused(stored_order) and not stored.same_cart(stored_order, order, self.settings):
            yield from _roll_back(redemptions.ids)
            yield from _rename(stored_order, session)
            raise EngineUnavailable("Voucherify has redeemed the cart of an earlier attempt.", reason="earlier_cart")

    def _redeemed(
        self,
        result: Validation,
        ids: Sequence[str],
        order: Checkout,
        rejected: Sequence[Rejection],
        inapplicable: Mapping[Redeemable, str],
    ) -> Redeemed | NotRedeemed:
        """The result of a redemption, which may have redeemed less than was requested."""
        inapplicable = {**inapplicable, **result.inapplicable}
        rejected = _in_order([*rejected, *_rejections(inapplicable)], order)
        notices = effects.refused_promotion_notices(inapplicable)
        if not result.applied:
            return NotRedeemed(tuple(rejected), tuple(notices))
        outcome = effects.outcome(result, order, self.settings, binding=False, rejected=rejected)
        if not ids:
            return Redeemed(_with_notices(outcome, *notices))
        return Redeemed(_with_notices(outcome, *notices, _ids_notice(ids)), handle=ids[0])

    def _missing(
        self, stored_order: stored.StoredOrder, parts: Sequence[str], order: Checkout
    ) -> Conversation[list[Redeemable]]:
        """The redeemables that the order should have redeemed and that these redemptions do not have.

        Raises `OrderMismatch` where they have a code that the order does not have. Raises `EngineUnavailable` where
        they are too few and one cannot be read, since a wrong guess may undo a paid order.
        """
        requested, _ = self._shown(order)
        vouchers = [Redeemable("voucher", code) for code in order.promotions.codes]
        if not vouchers and stored.has_voucher(stored_order, parts):
            raise _other_codes()
        if not vouchers and len(parts) >= len(requested):
            return []
        redeemed, unread = [], False
        for redemption in parts:
            reply = yield from retry_if_busy(request.stored_redemption(redemption))
            try:
                part = stored.read_part(reply)
            except EngineUnavailable:
                if len(parts) < len(requested):
                    raise
                unread = True
                continue
            if part is not None:
                if part.object == "voucher" and redeemables.find(vouchers, part.names) is None:
                    raise _other_codes()
                redeemed.append(redeemables.find(requested, part.names))
        return [] if unread else [one for one in requested if one not in redeemed]

    def _stored(self, session: str) -> Conversation[stored.StoredOrder | None]:
        return stored.read_order((yield from retry_if_busy(request.stored_order(session))))


def _other_codes() -> OrderMismatch:
    return OrderMismatch("Voucherify has redeemed another code with this order.", reason="other_content")


def _roll_back(ids: Sequence[str]) -> Conversation[None]:
    for redemption in ids:
        reply = yield from retry_if_busy(request.rollback(redemption))
        if reply.status == 200:
            rollbacks = objects(document(reply).get("rollbacks"))
            if not rollbacks or any(one.get("result") == "FAILURE" for one in rollbacks):
                not_understood("no rollback")
        elif (key := read_error(reply).key) != "already_rolled_back":
            raise reasons.problem(reply.status, key)


def _rename(order: stored.StoredOrder, session: str) -> Conversation[None]:
    """Frees the session for the next attempt: Voucherify would redeem the cart that it has stored under it.

    A failure is harmless. The same cart can still be redeemed, and `_redeemed` detects another one.
    """
    yield request.rename_order(session, stored.undone_name(order, session))


def _release(codes: Sequence[str], session: str) -> Conversation[None]:
    # No URL can name the codes "." and "..": their locks expire.
    requests = [request.release(code, session) for code in codes if code not in {".", ".."}]
    if requests:
        yield from together(*requests)


def _rejections(inapplicable: Mapping[Redeemable, str]) -> list[Rejection]:
    return [Rejection(one.code, reasons.reason(key), key) for one, key in inapplicable.items() if one.code]


def _in_order(rejected: Sequence[Rejection], checkout: Checkout) -> list[Rejection]:
    """In the order in which the shopper entered the codes."""
    places = {code: index for index, code in enumerate(checkout.promotions.codes)}
    return sorted(rejected, key=lambda rejection: places.get(rejection.code, len(places)))


def _not_applied(missing: Iterable[Redeemable]) -> tuple[Rejection, ...]:
    """The rejections of codes that were not redeemed. The stored order does not say why."""
    return tuple(Rejection(one.code, Reason.NOT_APPLIED, "") for one in missing if one.code)


def _ids_notice(ids: Sequence[str]) -> Notice:
    return Notice("redemption", "Redeemed in Voucherify under these ids.", {"redemptions": list(ids)})


def _with_notices(outcome: Outcome, *notices: Notice) -> Outcome:
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, *notices))
