"""What an engine grants a cart: discounts, refused codes, and what takes no money off."""

from typing import Any, Literal

import msgspec

from mapper.domain.reasons import Reason

Scope = Literal["goods", "costs", "total"]


class Cost(msgspec.Struct, frozen=True):
    """An additional cost, such as shipping or gift wrapping, that the engine was told of."""

    name: str
    price: int
    """In minor units; where it is a line's own, for all units of that line."""
    line: int | None = None
    """`Line.index` of the line whose own cost it is; None: the order's."""


class Discount(msgspec.Struct, frozen=True, kw_only=True):
    """Something taken off: `line`, `scope` and `cost` say what it lies on.

    | line | scope | cost | lies on |
    |---|---|---|---|
    | 3 | `goods` | | the units of line 3: the only kind that lowers a line's price |
    | 3 | `costs` | `wrapping` | that cost of line 3's own |
    | 3 | `costs` | | all costs of line 3's own |
    | 3 | `total` | | line 3's units; what exceeds them, on its own costs |
    | | `goods` | | the goods of the whole order |
    | | `costs` | `shipping` | that cost of the order |
    | | `costs` | | all additional costs of the order, those of its lines included |
    | | `total` | | the order as a whole: goods and costs |

    The adapter gives the engine's amount as it is. What a thing costs caps what all discounts together take off it, in
    `mapper.domain.discounts.settle`.
    """

    name: str
    description: str
    amount: int
    """In minor units of the checkout's currency, above zero, for the whole line."""
    effect_type: str
    line: int | None = None
    """`Line.index`; None: the order."""
    scope: Scope | None = None
    """None: the `costs` where one is named, else the `goods` of a line or the order's `total`."""
    cost: str = ""
    """The name of the one cost that it lies on, such as "shipping"; "": all in its scope."""
    meta: dict[str, Any] = {}


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


class Diagnostic(msgspec.Struct, frozen=True):
    """Something for the merchant alone: it goes to the log, never into an answer."""

    type: str
    text: str
    """A sentence without data of a shopper."""
    code: str = ""
    """The code that it is about; the log hides it as it hides all codes."""
    facts: dict[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine grants this cart."""

    discounts: tuple[Discount, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[Notice, ...] = ()
    costs: tuple[Cost, ...] = ()
    """The additional costs that the engine was told of, and those it would have been told of were they there, at 0: no
    more than their prices is taken off them. The price of a cost that is not listed is not known, and caps nothing.
    """
    diagnostics: tuple[Diagnostic, ...] = ()
    redeemed: bool = False
    """A check or a redemption found that this very order has been redeemed already."""
