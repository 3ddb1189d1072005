"""What the author of an engine adapter implements, and nothing else.

**An adapter is a conversation.** It is handed a checkout, *yields engine requests, is handed engine replies, and
returns what came of it*:

    def validate(self, checkout, session):
        reply = yield EngineRequest(operation="open session", method="PUT", path=..., body=..., repeatable=True)
        return outcome_of(reply)

It owns no socket, clock, environment, log or retry. `mapper.engine` holds every conversation over HTTP, so deadline,
retry, size limit, metrics and recording exist once. `adapters/README.md` shows how to add an engine.
"""

from collections.abc import Generator, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from mapper.domain import checkout, errors, money, reasons
from mapper.domain.checkout import Checkout, Line
from mapper.domain.errors import EngineRejected, EngineUnavailable, InvalidRequest, OrderMismatch, Problem
from mapper.domain.outcome import Discount, Notice, Outcome, Rejection

__all__ = [
    "ADAPTERS",
    "SANDBOXES",
    "Account",
    "Adapter",
    "Checkout",
    "Conversation",
    "Discount",
    "EngineRejected",
    "EngineReply",
    "EngineRequest",
    "EngineUnavailable",
    "InvalidRequest",
    "Line",
    "Misconfigured",
    "Notice",
    "OrderMismatch",
    "Outcome",
    "Problem",
    "Recall",
    "Rejection",
    "checkout",
    "errors",
    "known",
    "money",
    "reasons",
]

T = TypeVar("T")
Conversation = Generator["EngineRequest", "EngineReply", T]


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to the engine. It carries no secret: the account's credentials are added when it is sent."""

    operation: str
    """A short constant name for logs and metrics, such as "close session"."""
    method: str
    path: str
    """Below the account's base URL, starting with "/", all data in it percent-encoded; a query may follow."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    repeatable: bool
    """Whether sending it twice does no more than sending it once. Nothing else decides about repeating."""
    account: str = ""
    """Which of the adapter's accounts it is for."""


class EngineReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine answered: any status but 409, 429 and 5xx, which `mapper.engine` deals with itself."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes


class Account(msgspec.Struct, frozen=True):
    """Where requests go and what proves that they may. Its `repr` shows no secret."""

    base_url: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Account({self.base_url!r}, headers={[name for name, _ in self.headers]})"


class Recall(msgspec.Struct, frozen=True):
    """What the engine remembers of an order: `redeemed` (with what it granted), or `absent`."""

    state: Literal["redeemed", "absent"]
    outcome: Outcome = Outcome()
    extra: tuple[str, ...] = ()
    """The engine's ids of further redemptions of the same order, which must be rolled back; never the first."""


class Misconfigured(Exception):
    """What is wrong with an adapter's options: pairs of (option name without prefix, what is expected)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {expected}" for name, expected in problems))
        self.problems = problems


class Adapter(Protocol):
    """An engine. Each method starts one conversation; `session` is the id that validate and consume share.

    A conversation raises `EngineRejected` where the engine says that the request or the key is wrong, and
    `EngineUnavailable(sent=True)` where a reply cannot be understood. Refused codes are no errors: they are returned.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options`: the settings with the engine's prefix, without it. Raises `Misconfigured`, all faults at once."""

    @property
    def name(self) -> str:
        """The name it is installed under."""
        ...

    @property
    def accounts(self) -> Mapping[str, Account]:
        """Where its requests go, by the name that a request gives; "" for the only one."""
        ...

    @property
    def known_options(self) -> frozenset[str]:
        """Names of all options the adapter knows, without prefix; an unknown one is pointed out at start-up."""
        ...

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """What this cart earns. Repeatable: as often as the shopper changes the cart."""
        ...

    def check(self, order: Checkout, session: str) -> Conversation[Outcome] | None:
        """What redeeming this order would grant, without effect; None where the engine cannot be asked."""
        ...

    def redeem(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Redeems for good. At list prices."""
        ...

    def recall(self, order: Checkout, session: str) -> Conversation[Recall]:
        """Did it happen? Asked after an unknown outcome; reads only."""
        ...

    def undo(self, order: Checkout, session: str) -> Conversation[None] | None:
        """Takes back what `redeem` did for this order, repeatably; None where the engine cannot."""
        ...

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None] | None:
        """Rolls back the further redemptions that `recall` found; None where the engine keeps an order to one."""
        ...


ADAPTERS = "promotions_mapper.adapters"
SANDBOXES = "promotions_mapper.sandboxes"


def known(group: str = ADAPTERS) -> dict[str, Any]:
    """The installed adapters (or sandboxes) by name, as entry points that have not been loaded yet."""
    return {point.name: point for point in entry_points(group=group)}
