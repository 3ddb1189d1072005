"""Acme as a promotion engine of the promotions mapper.

Acme is invented: it prices a cart in one call and redeems it in another, under an order id. `sandbox` emulates it, so
that the tests pass before you change anything. Change the files for your engine in this order: `sandbox`, `options`,
`request`, `replies`, `reasons`, this one.

This module has the conversations: each yields requests, receives their replies, and returns the result.
"""

from collections.abc import Mapping

from mapper.adapter import (
    Account,
    Adapter,
    Capabilities,
    Checkout,
    Conversation,
    EngineRejected,
    EngineUnavailable,
    LookedUp,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Redeemed,
)
from promotions_acme import options as settings
from promotions_acme import replies, request


class Acme(Adapter):
    name = "acme"
    contract = 1
    options = settings.OPTIONS
    # What your engine can do. The conformance tests follow from this: what is declared must work, and the rest must be
    # refused with an error.
    capabilities = Capabilities(
        check=True,  # asking a price has no effect
        undo=True,
        repair=False,  # an order id is redeemed once
        referral=False,
        loyalty=False,
        gift_cards=False,
        automatic=True,
        currencies="many",
        most_codes=None,
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        self.accounts: Mapping[str, Account] = settings.accounts(options)

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """Returns what the cart earns. Called each time the shopper changes it; redeems nothing."""
        reply = yield request.prices(checkout)
        return replies.outcome(replies.read(reply), checkout)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Returns what redeeming would grant: asks what `redeem` asks, without effect."""
        return self.validate(order, session)

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems for good. Refused codes are returned, not raised."""
        reply = yield request.redemption(order, session)
        if reply.status == 409:  # Acme has redeemed this order before; only the look-up says with which cart
            raise EngineUnavailable("Acme has redeemed this order before.", reason="redeemed_before")
        if reply.status == 422:  # nothing is redeemed
            return NotRedeemed(replies.outcome(replies.decode(reply), order).rejected)
        answer = replies.read(reply)
        if answer.state != "redeemed":  # no success without this word: the order will be looked up
            raise EngineUnavailable("Acme's answer does not say that the order is redeemed.", reason="bad_reply")
        return Redeemed(replies.outcome(answer, order, happened=True), answer.id)

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        """Returns whether it is redeemed, after a time-out or a crash. Reads only. Only a plain 404 is `absent`."""
        reply = yield request.stored_order(session)
        if reply.status == 404:
            return LookedUp("absent")
        stored = replies.read(reply)
        if stored.state == "cancelled":
            raise EngineRejected("Acme's order has been cancelled.", reason="order_cancelled")
        if stored.state != "redeemed":
            raise EngineUnavailable("Acme's answer does not say whether the order is redeemed.", reason="bad_reply")
        if not replies.same_cart(stored, order):
            raise OrderMismatch("Acme has redeemed this order with another cart.", reason="other_content")
        return LookedUp("redeemed", replies.outcome(stored, order, happened=True))

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        """Takes the redemption back, by the session: the order may have been erased."""
        reply = yield request.undo(session, final=final)
        if reply.status in (204, 404):  # 404: there is nothing to undo
            return
        replies.insist(reply)  # another 2xx, such as a proxy's page, does not say that it is undone
        raise EngineUnavailable("Acme's answer does not say that the order is undone.", reason="bad_reply")
