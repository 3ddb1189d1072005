"""The standard tests of adapters. `pytest --scorecard card.json` writes this adapter's level and results."""

import hashlib
from typing import Any

from promotions_oscar.sandbox import OscarSandbox

from mapper.adapter import Checkout, Reason, money
from mapper.conformance.suite import Conformance

NO_UNDO = "the API cancels no order; deleting one leaves the counts of its promotions, and the stock, as they are"


class TestOscar(Conformance):
    entry_point = "oscar"
    options = {
        "BASE_URL": "https://oscar.test/api",
        "API_KEY": "the-secret-key-of-oscar",
        "ACCOUNTS_SECRET": "the-secret-of-the-accounts",
    }
    accepted = ("TEN-PERCENT", "SAVE-5")
    refused = {"OLD-5": Reason.EXPIRED, "MIN-100": Reason.CONDITIONS_NOT_MET, "MEMBERS-5": Reason.SIGN_IN_REQUIRED}
    percent = ("TEN-PERCENT", 10)
    fixed = ("SAVE-5", "5.00")
    once = "ONCE-5"
    lines = (("MUG", 2, "12.50"), ("POSTER", 1, "9.99"))
    currencies = ("USD",)
    most_requests = 40  # products are found 40 at a time
    requests_per_line = 1

    exempt = dict.fromkeys(
        [
            "test_redemption_can_be_undone",
            "test_redemption_can_be_undone_for_good",
            "test_undo_without_a_redemption_succeeds",
            "test_failed_undo_raises",
            "test_undo_completes_after_any_fault",
        ],
        NO_UNDO,
    )

    def stock(self, emulator: OscarSandbox, checkout: Checkout) -> None:
        for line in checkout.cart:
            emulator.stock(line.name, money.to_major(line.list_price, checkout.digits))

    def redeemed(self, books: Any, session: str) -> int:
        """The account of an order has a name that only the session decides."""
        name = hashlib.sha256(f"order\n{session}".encode()).hexdigest()
        return sum(order["email"] == f"{name}@orders.invalid" for order in books["orders"])
