"""The standard tests of adapters. `pytest --scorecard card.json` writes this adapter's level and results."""

from typing import Any
from urllib.parse import quote

from mapper.adapter import Reason
from mapper.conformance.suite import Conformance


class TestAcme(Conformance):
    entry_point = "acme"
    options = {"BASE_URL": "https://acme.test", "API_KEY": "the-secret-key-of-acme"}
    accepted = ("TEN-PERCENT", "SAVE-5")
    refused = {"OLD-5": Reason.EXPIRED, "MIN-100": Reason.MINIMUM_NOT_MET}
    percent = ("TEN-PERCENT", 10)
    fixed = ("SAVE-5", "5.00")
    once = "ONCE-5"

    def redeemed(self, books: Any, session: str) -> int:
        """The emulator stores orders by their quoted ids."""
        order = books["orders"].get(quote(session, safe=""), {"state": ""})
        return int(order["state"] == "redeemed")
