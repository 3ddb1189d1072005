"""The standard tests. An adapter's package adopts them:

    from mapper.conformance.suite import Conformance

    class TestAcme(Conformance):
        entry_point = "acme"
        options = {"BASE_URL": "https://acme.test", "API_KEY": "a-key-for-tests"}
        accepted = ("SAVE-5", "TEN-PERCENT")
        refused = {"OLD-5": Reason.EXPIRED}

        def redeemed(self, books, session):
            return sum(order["session"] == session for order in books["orders"])

Which of them run follows from the adapter's declared capabilities: what is declared must work, and what is not must be
refused loudly. None may be removed or overridden. A test that an adapter cannot pass is named in `exempt`, with a
reason.
"""

from mapper.conformance.checks.crashes import Crashes
from mapper.conformance.checks.declarations import Declarations
from mapper.conformance.checks.orders import Orders
from mapper.conformance.checks.pricing import Pricing
from mapper.conformance.checks.replies import Replies
from mapper.conformance.checks.undoing import Undoing


class Conformance(Undoing, Crashes, Orders, Replies, Pricing, Declarations):
    """All standard tests, to be adopted by a class of an adapter's tests. What it declares: `adopter.Adopter`."""

    is_the_standard = True
