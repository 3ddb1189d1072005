"""What an engine grants a cart: discounts, rejected codes and notices."""

from typing import Any, Literal

import msgspec

from mapper.domain.reasons import Reason

Scope = Literal["goods", "costs", "total"]


class Cost(msgspec.Struct, frozen=True):
    """An additional cost, such as shipping or gift wrapping, that the engine was sent."""

    name: str
    price: int
    """In minor units; the cost of a line is for all its units."""
    line: int | None = None
    """`Line.index` for the cost of a line; None for a cost of the order."""


class Discount(msgspec.Struct, frozen=True, kw_only=True):
    """A discount. `line`, `scope` and `cost` say what it is on.

    | line | scope | cost | is on |
    |---|---|---|---|
    | 3 | `goods` | | the units of line 3, whose price it reduces |
    | 3 | `costs` | `wrapping` | this additional cost of line 3 |
    | 3 | `costs` | | all additional costs of line 3 |
    | 3 | `total` | | the units of line 3, and what exceeds them on the costs of line 3 |
    | | `goods` | | the goods of the order |
    | | `costs` | `shipping` | this additional cost of the order |
    | | `costs` | | all additional costs of the order and its lines |
    | | `total` | | the order: goods and costs |

    The adapter passes the engine's amount unchanged. `mapper.domain.discounts.allocate` clamps the discounts on each of
    these to its price.
    """

    name: str
    description: str
    amount: int
    """In minor units, above zero; for a line, of all its units."""
    effect_type: str
    line: int | None = None
    """`Line.index`; None: the order."""
    scope: Scope | None = None
    """None: `costs` where `cost` is set, else `goods` on a line and `total` on the order."""
    cost: str = ""
    """The name of the additional cost, such as "shipping"; "" for all in the scope."""
    meta: dict[str, Any] = {}


class Rejection(msgspec.Struct, frozen=True):
    """A code that does not apply."""

    code: str
    """As the engine was sent it; `Promotions.as_entered` restores the shopper's spelling."""
    reason: Reason
    engine_reason: str
    """The engine's own word; "" where it has none."""


class Notice(msgspec.Struct, frozen=True):
    """Something that the engine returned and that is no discount. `payload` is the engine's JSON."""

    type: str
    text: str
    payload: Any


class Diagnostic(msgspec.Struct, frozen=True):
    """Information for the merchant. It goes to the log, never into an answer."""

    type: str
    text: str
    """A sentence without personal data."""
    code: str = ""
    """The code that it is about. The log masks it like all codes."""
    facts: dict[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine grants this cart."""

    discounts: tuple[Discount, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[Notice, ...] = ()
    costs: tuple[Cost, ...] = ()
    """All additional costs that the adapter is configured to send, at 0 where the cart has none. Discounts on them are
    clamped to these prices; the discount on a cost that is not listed is not clamped.
    """
    diagnostics: tuple[Diagnostic, ...] = ()
    redeemed: bool = False
    """Whether the engine had redeemed this order before."""
