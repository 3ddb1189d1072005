"""What the author of an engine adapter implements, and nothing else.

**An adapter is a conversation.** It is handed a checkout, *yields engine requests, is handed engine replies, and
returns what came of it*:

    def validate(self, checkout, session):
        reply = yield EngineRequest(operation="open session", method="PUT", path=..., effect="session", repeatable=True)
        return outcome_of(reply)

It owns no socket, clock, environment, log or retry. `mapper.engine` holds every conversation over HTTP, so deadline,
retry, size limit, metrics and recording exist once. `adapters/README.md` shows how to add an engine.
"""

from collections.abc import Generator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol, TypeVar, cast

import msgspec

from mapper.domain import checkout, errors, money, reasons
from mapper.domain.checkout import Checkout, Line
from mapper.domain.errors import EngineRejected, EngineUnavailable, InvalidRequest, OrderMismatch, Problem
from mapper.domain.options import Misconfigured, Option, names, pairs, read
from mapper.domain.outcome import Cost, Diagnostic, Discount, Notice, Outcome, Rejection, Scope
from mapper.domain.reasons import Reason

__all__ = [
    "ADAPTERS",
    "CONTRACT",
    "SANDBOXES",
    "Account",
    "Adapter",
    "Capabilities",
    "Checkout",
    "Conversation",
    "Cost",
    "Diagnostic",
    "Discount",
    "EngineRejected",
    "EngineReply",
    "EngineRequest",
    "EngineUnavailable",
    "InvalidRequest",
    "Line",
    "LookedUp",
    "Misconfigured",
    "NotRedeemed",
    "Notice",
    "Option",
    "OrderMismatch",
    "Outcome",
    "Problem",
    "Reason",
    "Redeemed",
    "Rejection",
    "Scope",
    "checkout",
    "errors",
    "known",
    "money",
    "names",
    "pairs",
    "read",
    "reasons",
    "together",
]

CONTRACT = 1
"""The version of this contract; an adapter says which one it is written for (`contract = 1`)."""

T = TypeVar("T")
Conversation = Generator["EngineRequest", "EngineReply", T]
"""Yields requests, is sent their replies. See `together` for several at once."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to the engine. It carries no secret: the account's credentials are added when it is sent.

    One conversation may make 100 of them, and 4 more for each line of the cart.
    """

    operation: str
    """A short constant name for logs and metrics, such as "close session"."""
    method: str
    path: str
    """Below the account's base URL, starting with "/", all data in it percent-encoded; a query may follow."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    account: str = ""
    """Which of the adapter's accounts it is for."""
    effect: Literal["none", "session", "redeems"]
    """What it does at the engine: nothing; change the session (the cart, a reservation), redeeming nothing; or redeem.

    The mapper builds exactly-once on this: only a request that redeems makes an outcome unknown.
    """
    repeatable: bool
    """Whether sending it twice does no more than sending it once. Nothing else decides about repeating."""
    answers: frozenset[int] = frozenset()
    """Those of 409, 429 and 5xx that the adapter reads itself; all others are failures of the call."""
    reply_bytes: int = 2 * 1024 * 1024
    """How large an answer to this question may be; what is larger is not read. At the most 64 MiB."""


class EngineReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine answered: any status but 409, 429 and 5xx, which `mapper.engine` deals with itself.

    A request can ask for some of these, too (`EngineRequest.answers`).
    """

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes


def together(*requests: EngineRequest) -> Conversation[tuple[EngineReply, ...]]:
    """Several requests at once, none of which redeems and none of which needs another's answer: `yield (a, b)`, typed.

    The replies come in the order of the requests.

        replies = yield from together(*(self._read(line) for line in order.cart))
    """
    return cast("tuple[EngineReply, ...]", (yield cast("EngineRequest", requests)))


class Account(msgspec.Struct, frozen=True):
    """Where requests go and what proves that they may. Its `repr` shows no secret."""

    base_url: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Account({self.base_url!r}, headers={[name for name, _ in self.headers]})"


class Redeemed(msgspec.Struct, frozen=True):
    """The engine has redeemed the order: now, or (`outcome.redeemed`) before. `outcome.rejected` has codes left out."""

    outcome: Outcome
    handle: str = ""
    """What the engine calls the redemption; kept with the order, and handed to `look_up` and `undo`."""


class NotRedeemed(msgspec.Struct, frozen=True):
    """Nothing of the order is redeemed, and nothing will be.

    `rejected`: the codes that were refused; empty where the order brought nothing to redeem.
    """

    rejected: tuple[Rejection, ...]
    notices: tuple[Notice, ...] = ()


class LookedUp(msgspec.Struct, frozen=True):
    """What the engine knows of an order: `redeemed` (with what it granted), `absent`, or `unclear`: ask again later."""

    state: Literal["redeemed", "absent", "unclear"]
    outcome: Outcome = Outcome()
    extra: tuple[str, ...] = ()
    """The engine's ids of further redemptions of the same order, which must be rolled back; never the first."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this engine can do. `check`, `undo` and `repair` are called only where they are declared."""

    check: bool
    """It says what redeeming would grant, without effect."""
    undo: bool
    """It takes a redemption back."""
    repair: bool
    """It may redeem an order more than once, and takes back what is too much."""
    referral: bool
    """Referral codes."""
    loyalty: bool
    """Loyalty cards."""
    gift_cards: bool
    """Gift cards, of which an amount is taken."""
    automatic: bool
    """Promotions that no code stands for."""
    currencies: Literal["one", "many"]
    """Whether one configuration serves carts of several currencies."""
    most_codes: int | None
    """Codes in one cart; None: no limit is known."""


class Adapter(Protocol):
    """An engine. Each method starts one conversation.

    `session` is the id that validate and consume share: the adapter's name for cart and order at the engine. An order
    is redeemed at most once in a session. `order` and `session` are all that a conversation knows: an adapter keeps
    nothing between two of them.

    A conversation raises `EngineRejected` where the engine says that the request or the key is wrong,
    `EngineUnavailable` where a reply cannot be understood, `OrderMismatch` where the session was redeemed with another
    cart, and `InvalidRequest` for a body that this engine cannot be told of. Refused codes are no errors: they are
    returned.

    It may have `cost_pointers`, a tuple of JSON pointers to the order's additional costs that it tells the engine of:
    one that finds nothing is warned of.
    """

    name: str
    """The name it is installed under: `[a-z][a-z0-9_]*`. Its settings have it as their prefix, in capitals."""
    contract: int
    """`CONTRACT` as it was when the adapter was written."""
    capabilities: Capabilities
    options: tuple[Option, ...]
    accounts: Mapping[str, Account]
    """Where its requests go, by the name that a request gives; "" for the only one."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options`: the values of all options by name, checked by their kinds, defaults in place.

        Raises `Misconfigured`, all faults at once, for what their kinds cannot say.
        """

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """What this cart earns. Repeatable: as often as the shopper changes the cart."""
        ...

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """What redeeming this order would grant, without effect."""
        raise AssertionError("called only where it is declared")

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems for good, at list prices.

        A refused code is left out and is in `Redeemed.outcome.rejected`; where nothing is redeemed: `NotRedeemed`. An
        answer that does not say redeemed is `EngineUnavailable`: the order will be looked up.
        """
        ...

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        """Did it happen? Asked after an unknown outcome; reads only. `handle`: what `redeem` gave; "" if it gave none.

        `unclear` where the engine cannot tell.
        """
        ...

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        """Takes back what was redeemed in this session, repeatably.

        `order` is None where it has been erased. `final`: for good; else so that the session can be redeemed again.
        """
        raise AssertionError("called only where it is declared")

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        """Rolls back the further redemptions that `look_up` found, repeatably."""
        raise AssertionError("called only where it is declared")


ADAPTERS = "promotions_mapper.adapters"
SANDBOXES = "promotions_mapper.sandboxes"


def known(group: str = ADAPTERS) -> dict[str, EntryPoint]:
    """The installed adapters (or sandboxes) by name, as entry points that have not been loaded yet."""
    return {point.name: point for point in entry_points(group=group)}
