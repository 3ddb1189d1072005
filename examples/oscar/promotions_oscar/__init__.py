"""django-oscar, behind django-oscar-api, as a promotion engine of the promotions mapper.

Oscar is a shop: it prices a basket from its own catalogue, and a voucher is used up by placing an order. So a
conversation opens a new basket, puts the cart and the codes into it, and reads what the lines cost. To redeem, it does
so in the name of an account that belongs to this one order, and checks out: by that account the order is found again.
"""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import msgspec

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
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
    together,
)
from promotions_oscar import options as settings
from promotions_oscar import replies, request


class Filled(NamedTuple):
    """A basket with the cart in it."""

    basket: replies.Priced
    rows: list[replies.Row]
    catalogue: replies.Catalogue
    rejected: list[Rejection]


class Oscar(Adapter):
    name = "oscar"
    contract = 1
    options = settings.OPTIONS
    capabilities = Capabilities(
        check=True,  # in a basket of its own
        undo=False,  # the API cancels no order; deleting one leaves the counts of promotions, and the stock
        repair=False,  # an account has one order: before a checkout its orders are read
        referral=False,
        loyalty=False,
        gift_cards=False,
        automatic=True,
        currencies="one",
        most_codes=None,
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self.accounts: Mapping[str, Account] = settings.accounts(options)

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        return self._priced(checkout, self._who("validate", session))

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        return self._priced(order, self._who("check", session))

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        who = self._who("order", session)
        basket = request.Basket(who.header("AUTH"))
        stored = yield from self._orders(who, make=True)
        if stored:
            return (yield from self._redeemed_before(stored[0], order, basket))
        members_only = yield from self._members_only(order, session)
        filled = yield from self._filled(order, basket, members_only)
        if not order.cart or (order.promotions.codes and len(filled.rejected) == len(order.promotions.codes)):
            return NotRedeemed(tuple(filled.rejected))
        # Only now: an order that is placed before this is seen, and one after it has taken this very basket.
        answers = yield from together(basket.orders(), basket.shipping())
        if stored := replies.read(answers[0], list[replies.Priced]):
            return (yield from self._redeemed_before(stored[0], order, basket))
        shipping = replies.read(answers[1], list[replies.Shipping])
        total = replies.total(filled.basket, shipping)
        reply = yield basket.checkout(filled.basket.url, total, shipping[0].code if shipping else None)
        if reply.status == 406:  # a voucher was used up meanwhile; which one, another try tells
            filled = yield from self._filled(order, basket, members_only)
            if filled.rejected:
                return NotRedeemed(tuple(filled.rejected))
            raise EngineRejected("Oscar refuses the checkout.", reason="checkout_refused")
        if not 200 <= reply.status <= 299:  # the basket is frozen or gone: another process has been at work
            raise EngineUnavailable("Oscar has not taken this basket.", reason="basket_gone")
        placed = replies.decode(reply, replies.Priced)
        if not placed.number:
            raise EngineUnavailable("Oscar's answer does not say that an order is placed.", reason="bad_reply")
        outcome = yield from self._granted(placed, order, basket, filled.catalogue)
        return Redeemed(_with(outcome, rejected=tuple(filled.rejected)), placed.number)

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        who = self._who("order", session)
        stored = yield from self._orders(who, make=False)
        if not stored:
            return LookedUp("absent")
        outcome = yield from self._granted(stored[0], order, request.Basket(who.header("AUTH")))
        return LookedUp("redeemed", outcome)

    # -- Parts of conversations

    def _who(self, purpose: str, session: str) -> request.Who:
        return request.Who(self._options, purpose, session)

    def _priced(self, checkout: Checkout, who: request.Who) -> Conversation[Outcome]:
        filled = yield from self._filled(checkout, request.Basket(who.header("ANON")), [])
        outcome = replies.outcome(filled.basket, filled.rows, filled.catalogue, checkout)
        refused = {one.code for one in filled.rejected}
        idle = replies.idle_vouchers(filled.basket, set(checkout.promotions.coupon_codes) - refused)
        return _with(outcome, rejected=tuple(filled.rejected), notices=(*outcome.notices, *idle))

    def _filled(
        self, checkout: Checkout, basket: request.Basket, rejected: list[Rejection]
    ) -> Generator[Any, Any, Filled]:
        """A new basket, never the one that is there: vouchers cannot be taken out, nor seen while they earn nothing."""
        catalogue = yield from self._catalogue(checkout)
        left = replies.read((yield basket.opened()), replies.Priced)
        dropped = yield basket.dropped(left.id)
        if dropped.status != 404:
            replies.insist(dropped)
        opened = replies.read((yield basket.opened()), replies.Priced)
        added = yield from together(*(basket.added(url, quantity) for url, quantity in catalogue.to_add()))
        for reply in added:
            if reply.status == 406:
                raise EngineRejected("Oscar does not sell that many of a product.", reason="not_for_sale")
            replies.insist(reply)
        rejected = [*replies.unsupported(checkout), *rejected]
        for code in checkout.promotions.coupon_codes:
            if all(code != one.code for one in rejected):
                refused = replies.refused((yield basket.with_voucher(code)), code)
                rejected += [refused] if refused else []
        answers = yield from together(basket.opened(), basket.lines(opened.id))
        priced = replies.read(answers[0], replies.Priced)
        rows = replies.read(answers[1], list[replies.Row])
        if priced.id != opened.id or not replies.same_quantities(rows, catalogue):
            raise EngineUnavailable("Another call has changed this basket.", reason="basket_changed")
        if checkout.cart and not replies.in_currency(priced, checkout):
            raise EngineRejected("Oscar's prices are in another currency.", reason="currency_differs")
        if not replies.at_list_prices(rows, catalogue, checkout):
            raise EngineRejected("A price differs from that in Oscar's catalogue.", reason="price_differs")
        return Filled(priced, rows, catalogue, rejected)

    def _catalogue(self, checkout: Checkout) -> Generator[Any, Any, replies.Catalogue]:
        answers = yield from together(*request.products(line.name for line in checkout.cart))
        return replies.Catalogue(
            checkout, [one for answer in answers for one in replies.read(answer, list[replies.Product])]
        )

    def _orders(self, who: request.Who, *, make: bool) -> Generator[Any, Any, list[replies.Priced]]:
        """The orders of this account; none where there is no account, which is then made."""
        basket = request.Basket(who.header("AUTH"))
        reply: EngineReply = yield basket.orders()
        if reply.status == 401:  # nobody is signed in under this name, or not any more
            if make:
                registered = yield request.registered(who)
                if registered.status != 400:  # there is one already
                    replies.insist(registered)
            signed_in = yield request.signed_in(who)
            if signed_in.status == 401 and not make and replies.decode(signed_in, replies.Refusal).non_field_errors:
                return []
            replies.insist(signed_in)
            reply = yield basket.orders()
        orders = replies.read(reply, list[replies.Priced])
        if len(orders) > 1:
            raise EngineRejected("Oscar has several orders for this one.", reason="several_orders")
        return orders

    def _members_only(self, order: Checkout, session: str) -> Generator[Any, Any, list[Rejection]]:
        """Vouchers that guests may not use: an order's account is new, and would pass for a customer who never did.

        Asked in an empty basket, where no voucher is ever granted.
        """
        guest = request.Basket(self._who("guest", session).header("ANON"))
        found = []
        for code in order.promotions.coupon_codes:
            refused = replies.refused((yield guest.with_voucher(code)), code)
            if refused and refused.reason is Reason.SIGN_IN_REQUIRED:
                found.append(refused)
        return found

    def _redeemed_before(
        self, placed: replies.Priced, order: Checkout, basket: request.Basket
    ) -> Conversation[Redeemed | NotRedeemed]:
        outcome = yield from self._granted(placed, order, basket)
        return Redeemed(_with(outcome, redeemed=True), placed.number)

    def _granted(
        self,
        placed: replies.Priced,
        order: Checkout,
        basket: request.Basket,
        catalogue: replies.Catalogue | None = None,
    ) -> Conversation[Outcome]:
        """What a placed order has granted. Raises `OrderMismatch` where its cart, its currency or its codes differ."""
        if catalogue is None:
            catalogue = yield from self._catalogue(order)
        rows = replies.read((yield basket.order_lines(replies.number(placed.url))), list[replies.Row])
        brought = {code.upper(): code for code in order.promotions.coupon_codes}
        granted = replies.codes(placed)
        if (
            not replies.same_quantities(rows, catalogue)
            or not replies.at_list_prices(rows, catalogue, order)
            or not replies.in_currency(placed, order)
            or not granted <= set(brought)
        ):
            raise OrderMismatch("Oscar has another cart, currency or codes in this order.", reason="other_content")
        outcome = replies.outcome(placed, rows, catalogue, order)
        left_out = [Rejection(code, Reason.NOT_APPLIED, "") for upper, code in brought.items() if upper not in granted]
        return _with(outcome, rejected=(*replies.unsupported(order), *left_out))


def _with(outcome: Outcome, **changes: Any) -> Outcome:
    return msgspec.structs.replace(outcome, **changes)
