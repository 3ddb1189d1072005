"""Both built-in adapters, with their sandboxes, against the standard tests of adapters."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mapper.adapter import Reason
from mapper.conformance.suite import Conformance

REFUSED = {
    "EXPIRED-10": Reason.EXPIRED,
    "SOON-10": Reason.NOT_STARTED,
    "USED-UP-10": Reason.USED_UP,
}


FRIEND = {"promotions": {"referral_code": "FRIEND-OF-JANE"}, "customer": {"id": "john"}}
CARD = {"promotions": {"loyalty_card": "CARD-SPEND"}, "customer": {"id": "john"}}
GIFT = {"promotions": {"coupon_codes": ["GIFT-50"]}}


class TestTalonOne(Conformance):
    entry_point = "talon_one"
    options: ClassVar[Mapping[str, str]] = {
        "BASE_URL": "https://talon.test",
        "API_KEY": "the-secret-key-of-talon-one",
        "ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
    }
    accepted = ("TEN-PERCENT", "GOOD-5")
    refused = REFUSED
    percent = ("TEN-PERCENT", 10)
    fixed = ("GOOD-5", "5.00")
    once = "SINGLE-0001"
    granted: ClassVar[Mapping[str, Mapping[str, Any]]] = {"referral": FRIEND, "loyalty": CARD}

    def redeemed(self, books: Any, session: str) -> int:
        """A closed session is a redemption."""
        return int(books["sessions"].get(session, {"state": ""})["state"] == "closed")


class TestVoucherify(Conformance):
    entry_point = "voucherify"
    options: ClassVar[Mapping[str, str]] = {
        "APP_ID": "the-secret-id-of-voucherify",
        "APP_TOKEN": "the-secret-token-of-voucherify",
        "PROMOTIONS": "qualify",
        "REWARD_ID": "rew_51",  # pays with points
    }
    accepted = ("TEN-PERCENT", "GOOD-5")
    refused = REFUSED
    percent = ("TEN-PERCENT", 10)
    fixed = ("GOOD-5", "5.00")
    once = "SINGLE-0001"
    granted: ClassVar[Mapping[str, Mapping[str, Any]]] = {"referral": FRIEND, "loyalty": CARD, "gift_cards": GIFT}
    currencies = ("USD", "JPY")  # a project has one exponent, here 2
    ordered = frozenset({"items"})  # an order's lines, in the order sent

    def redeemed(self, books: Any, session: str) -> int:
        """Count the redemptions of a code of the order; all its codes are redeemed together."""
        count: dict[str, int] = {}
        for entry in books["redemptions"]:
            if entry.get("order") == session:
                count[entry["id"]] = count.get(entry["id"], 0) + (1 if entry["what"] == "redeemed" else -1)
        return max(count.values(), default=0)
