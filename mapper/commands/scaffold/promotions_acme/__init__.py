"""Acme as a promotion engine of the promotions mapper.

The engine that this package was made for is an invention: it prices a cart in one call and redeems it in another,
under an order id. `sandbox` emulates it, so that the tests are green before you have changed anything. Go through the
files in this order, and make each of them your engine's: `options`, `request`, `replies`, `reasons`, this, `sandbox`.

Here are the conversations: each yields requests, is sent their replies, and returns what came of it.
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
    # What your engine can do. The conformance tests that run follow from this: what is declared must work, and what is
    # not must be refused loudly.
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
        """What the cart earns. Called as often as the shopper changes it; it redeems nothing."""
        reply = yield request.prices(checkout)
        return replies.outcome(replies.read(reply), checkout)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """What redeeming would grant: the very question that `redeem` asks, without effect."""
        return self.validate(order, session)

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems for good. Refused codes are no error: they are returned."""
        reply = yield request.redemption(order, session)
        if reply.status == 409:  # Acme has redeemed this order before: with what, only the look-up tells
            raise EngineUnavailable("Acme has redeemed this order before.", reason="redeemed_before")
        if reply.status == 422:  # nothing is redeemed
            return NotRedeemed(replies.outcome(replies.decode(reply), order).rejected)
        answer = replies.read(reply)
        if answer.state != "redeemed":  # an answer that does not say so is no success: it will be looked up
            raise EngineUnavailable("Acme's answer does not say that the order is redeemed.", reason="bad_reply")
        return Redeemed(replies.outcome(answer, order, happened=True), answer.id)

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        """Did it happen? Asked after a timeout or a crash; reads only. Only a plain "not there" is `absent`."""
        reply = yield request.stored_order(session)
        if reply.status == 404:
            return LookedUp("absent")
        stored = replies.read(reply)
        if stored.state == "cancelled":
            raise EngineRejected("Acme's order has been cancelled.", reason="order_cancelled")
        if stored.state != "redeemed":
            raise EngineUnavailable("Acme's answer does not say what became of the order.", reason="bad_reply")
        if not replies.same_cart(stored, order):
            raise OrderMismatch("Acme has redeemed this order with another cart.", reason="other_content")
        return LookedUp("redeemed", replies.outcome(stored, order, happened=True))

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        """Takes it back. The order may have been erased by then: the session suffices."""
        reply = yield request.undo(session, final=final)
        if reply.status in (204, 404):  # what is not there needs no undoing
            return
        replies.insist(reply)  # of an undo: another 2xx, such as a proxy's page, does not say that it is done
        raise EngineUnavailable("Acme's answer does not say that the order is undone.", reason="bad_reply")
