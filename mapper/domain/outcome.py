"""What an engine grants a cart: discounts, refused codes, and what takes no money off."""

from typing import Any

import msgspec

from mapper.domain.reasons import Reason


class Discount(msgspec.Struct, frozen=True, kw_only=True):
    """Something taken off: from a line, or (line None) from the order as a whole, shipping and other costs included.

    `amount` is in minor units of the checkout's currency, above zero, for the whole line.
    """

    name: str
    description: str
    amount: int
    effect_type: str
    line: int | None = None
    """`Line.index`."""
    cost: str = ""
    """For an order-level discount on an additional cost: its name, such as "shipping"; "" for one on the goods."""
    limit: int | None = None
    """What that cost is, so that no more than it is taken off; None where it is not known."""
    meta: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise ValueError("a discount takes something off; what does not is a notice")


class Rejection(msgspec.Struct, frozen=True):
    """A code that does not apply, with our word for why and the engine's own."""

    code: str
    """As the shopper brought it."""
    reason: Reason
    engine_reason: str


class Notice(msgspec.Struct, frozen=True):
    """Something the engine returned that takes no money off: passed on, never lost. `payload` is the engine's JSON."""

    type: str
    text: str
    payload: Any


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine grants this cart."""

    discounts: tuple[Discount, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[Notice, ...] = ()
    costs: int = 0
    """The additional costs (shipping and others, minor units) that the engine was told of beside the goods."""
    redeemed: bool = False
    """A check or a redemption found that this very order has been redeemed already."""
