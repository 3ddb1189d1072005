"""The orders of a run and the faults of its engine, all drawn from one seed."""

import itertools
import random
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

SECRET = b"the signing secret of the chaos runs"
CANCEL_SECRET = b"the secret that cancels in the chaos runs"
TOKEN_RULES = ("idempotency_keys = true", "idempotency_keys = false")
"""Talon.One's idempotency key is switched off: older deployments do not have it."""

Expect = Literal["granted", "refused", "either"]
Patience = Literal["patient", "returns", "gone"]
AfterFailure = Literal["wait", "redeem_later"]


@dataclass(frozen=True)
class Profile:
    orders: int
    """At the most: a slow machine sends fewer."""
    load_s: float
    """The time over which the orders arrive."""
    full_every_s: float
    quarantine_s: float = 12.0
    """Longer than the longest pause plus the latest commit, as in production."""
    pause_s: tuple[float, float] = (1.5, 5.0)
    deadline_s: float = 1.2
    """For a consume. A lease is twice as long, so that pauses outlast leases."""
    full_s: float = 4.0

    @property
    def lease_s(self) -> float:
        return 2 * self.deadline_s

    @property
    def settle_s(self) -> float:
        """How long an order with a caller may stay open without faults (invariant I6).

        The quarantine, two look-ups a second apart, and its caller, who is back within 6 s.
        """
        return self.quarantine_s + self.lease_s + 8.0


PROFILES = {
    "short": Profile(orders=150, load_s=20.0, full_every_s=9.0),
    "ci": Profile(orders=300, load_s=32.0, full_every_s=12.0),
    "long": Profile(orders=10_000, load_s=720.0, full_every_s=60.0),
}


@dataclass(frozen=True)
class Manner:
    """The settings that change with each start of a process."""

    currency: str = "USD"
    """The currency of orders that name none."""
    after_failure: AfterFailure = "wait"
    is_next_version: bool = False
    """Whether it uses the next version's rules of identity, unknown to the others."""


def manners(dice: random.Random) -> list[Manner]:
    """All of them, in random order."""
    policies: tuple[AfterFailure, ...] = ("wait", "redeem_later")
    found = [Manner(*one) for one in itertools.product(("USD", "EUR"), policies, (False, True))]
    dice.shuffle(found)
    return found


@dataclass(frozen=True)
class Order:
    key: str
    code: str
    expect: Expect
    """`either`: two orders bring one single-use code."""
    lines: tuple[int, ...]
    """The quantity of each."""
    at_s: float
    replica: int
    patience: Patience
    """After an answer that is not final: retries, returns after the faults, or returns when all is settled."""
    twin: Literal["", "same", "other"]
    twin_after_s: float
    names_currency: bool
    cancel_after_s: float | None
    """Seconds from the first sending until the merchant cancels it; None: never."""

    def quantities(self, variant: str) -> tuple[int, ...]:
        first, *rest = self.lines
        return (first + (variant == "b"), *rest)

    def amount(self, variant: str) -> int:
        """The amount sent to the engine, at list prices, in cents."""
        return sum(10_000 * quantity for quantity in self.quantities(variant))

    def body(self, variant: str) -> bytes:
        """The order as a shop sends it, after ten percent off each unit of 100.00. Variant b buys one more."""
        lines = [_line(number, quantity) for number, quantity in enumerate(self.quantities(variant), 1)]
        promotions = {"coupon_codes": [self.code], "referral_code": "", "loyalty_card": "", "meta": {}}
        currency = {"currency": "USD"} if self.names_currency else {}
        return msgspec.json.encode(
            {"id": self.key, **currency, "order_items": lines, "discounts": "0.00", "promotions": promotions}
        )


def _line(number: int, quantity: int) -> dict[str, Any]:
    discount = {"name": "10 % off", "amount": f"{10 * quantity}.00", "meta": {"list_price": "100.00"}}
    return {
        "sku": f"SKU-{number}",
        "quantity": quantity,
        "price_amount": "90.00",
        "discounts_amount": f"{10 * quantity}.00",
        "applied_discounts": [discount],
    }


def orders(seed: int, profile: Profile) -> list[Order]:
    """A third are sent twice, half of those with other content; a few bring refused codes or are cancelled."""
    dice = random.Random(seed)
    pairs = 0
    planned: list[Order] = []
    for number in range(profile.orders):
        code, expect = "TEN-PERCENT", "granted"
        draw = dice.random()
        if draw < 0.04:
            code, expect = "EXPIRED-10", "refused"
        elif draw < 0.14:
            code, expect = f"SINGLE-{pairs // 2 + 1:04}", "either"
            pairs += 1
        planned.append(
            Order(
                key=f"order-{seed}-{number}",
                code=code,
                expect=expect,  # type: ignore[arg-type]
                lines=tuple(dice.randint(1, 5) for _ in range(dice.randint(1, 3))),
                at_s=dice.random() * profile.load_s,
                replica=dice.randrange(2),
                patience=dice.choices(("patient", "returns", "gone"), (80, 15, 5))[0],
                twin=dice.choices(("", "same", "other"), (4, 1, 1))[0],
                twin_after_s=dice.choice((0.0, 0.0, dice.random() * 3)),
                names_currency=dice.random() < 0.6,
                cancel_after_s=dice.random() * 4 if dice.random() < 0.06 and expect == "granted" else None,
            )
        )
    return sorted(planned, key=lambda order: order.at_s)


REDEEMING = {"talon_one": "close", "voucherify": "redeem"}
"""The sandbox's name for the redeeming request."""

# Each fault, its value and its probability. A request may meet several.
_FAULTS: tuple[tuple[str, int | None, float], ...] = (
    ("latency", 250, 0.03),
    ("latency", 1500, 0.02),
    ("late_answer", 1500, 0.03),
    ("late_commit", 700, 0.02),
    ("status", 429, 0.02),
    ("status", 409, 0.02),
    ("status", 500, 0.02),
    ("status", 503, 0.02),
    ("status_after", 500, 0.03),
    ("status_after", 502, 0.02),
    ("reset", None, 0.02),
    ("reset_after", None, 0.03),
    ("close", None, 0.01),
    ("close_after", None, 0.02),
    ("redirect", None, 0.01),
    ("drip", 20, 0.01),
    ("truncated", None, 0.02),
    ("malformed", None, 0.02),
    ("huge", None, 0.005),
    ("status_instead", 201, 0.02),
    ("strange", None, 0.01),
    ("empty", None, 0.01),
    ("html", None, 0.01),
    ("hang_after", None, 0.01),
    ("unknown_effect", None, 0.02),
    ("extra_fields", None, 0.02),
)
# The worst faults, for redeeming requests, in addition to the others.
_WORST: tuple[tuple[str, int | None, float], ...] = (
    ("late_commit", 2000, 0.03),
    ("late_commit", 5000, 0.06),
    ("reset_after", None, 0.04),
    ("status_after", 503, 0.04),
    ("twice", 1, 0.02),
    ("twice", 2, 0.02),
)
UNDOING = {"talon_one": "reopen", "voucherify": "rollback"}
"""The same for the rollback. It is refused at times, so that a surplus stands for a while."""
_REFUSED_ROLLBACK = ("status", 403, 0.3)


def faults(seed: int, engine: str, turn: int = 0, *, slow: bool = False) -> list[dict[str, Any]]:
    """The faults for the sandbox, drawn for each turn; with `slow` it answers redeeming requests late."""
    operation = REDEEMING[engine]
    given = [(*fault, "") for fault in _FAULTS] + [(*fault, operation) for fault in _WORST]
    given.append((*_REFUSED_ROLLBACK, UNDOING[engine]))
    if slow:
        given.append(("late_answer", 900, 1.0, operation))
    return [
        {
            "name": name, "value": value, "probability": share, "operation": where, "engine": engine,
            "seed": (seed * 1000 + turn) * 100 + number,
        }
        for number, (name, value, share, where) in enumerate(given)
    ]  # fmt: skip
