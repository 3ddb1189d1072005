"""The adapter contract: all that the author of an engine adapter imports and implements.

**An adapter is a conversation.** Each method takes a checkout, *yields engine requests, receives the engine's replies,
and returns the result*:

    def validate(self, checkout, session):
        reply = yield EngineRequest(operation="open session", method="PUT", path=..., effect="session", repeatable=True)
        return outcome_of(reply)

It has no socket, clock, environment, log or retry. `mapper.engine` sends the requests of every conversation, so
deadline, retry, size limit, metrics and recording exist once. `adapters/README.md` shows how to add an engine.
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
"""The version of this contract. An adapter declares the one it is written for (`contract = 1`)."""

T = TypeVar("T")
Conversation = Generator["EngineRequest", "EngineReply", T]
"""Yields requests and is sent their replies; `together` yields several at once."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to the engine. It carries no secret: the account's credentials are added when it is sent.

    A conversation may make 100 requests, and 4 more for each line of the cart.
    """

    operation: str
    """A short constant name for logs and metrics, such as "close session"."""
    method: str
    path: str
    """Relative to the account's base URL; starts with "/", all data in it percent-encoded; a query may follow."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    account: str = ""
    """The name of one of the adapter's `accounts`."""
    effect: Literal["none", "session", "redeems"]
    """`none` changes nothing at the engine, `session` changes a cart or a reservation, `redeems` redeems the order.

    Exactly-once rests on this: only a request that redeems can leave an outcome unknown.
    """
    repeatable: bool
    """Whether sending it twice does no more than sending it once. Others are retried only if nothing was sent."""
    answers: frozenset[int] = frozenset()
    """Statuses among 409, 429 and 5xx that the adapter handles itself; the others fail the call."""
    reply_bytes: int = 2 * 1024 * 1024
    """The largest reply body, in bytes; a larger one fails the call. At most 64 MiB."""


class EngineReply(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's reply: any status but 3xx, 409, 429 and 5xx, which `mapper.engine` handles.

    `EngineRequest.answers` asks for some of these.
    """

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes


def together(*requests: EngineRequest) -> Conversation[tuple[EngineReply, ...]]:
    """Sends several independent requests at once, none of which redeems: a typed `yield (a, b)`.

    The replies come in the order of the requests.

        replies = yield from together(*(self._read(line) for line in order.cart))
    """
    return cast("tuple[EngineReply, ...]", (yield cast("EngineRequest", requests)))


class Account(msgspec.Struct, frozen=True):
    """A base URL and the headers that authenticate requests there. Its `repr` shows no secret."""

    base_url: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"Account({self.base_url!r}, headers={[name for name, _ in self.headers]})"


class Redeemed(msgspec.Struct, frozen=True):
    """The engine has redeemed the order, now or earlier (`outcome.redeemed`). `outcome.rejected`: codes left out."""

    outcome: Outcome
    handle: str = ""
    """The engine's id of the redemption; stored with the order and passed to `look_up` and `undo`."""


class NotRedeemed(msgspec.Struct, frozen=True):
    """Nothing of the order is redeemed, and nothing will be.

    `rejected`: the refused codes; empty where the order has nothing to redeem.
    """

    rejected: tuple[Rejection, ...]
    notices: tuple[Notice, ...] = ()


class LookedUp(msgspec.Struct, frozen=True):
    """The engine's state of an order: `redeemed`, `absent`, or `unclear` (ask again later).

    `outcome`: what it granted and, of the order's codes, which it refused: the same that `redeem` returns.
    """

    state: Literal["redeemed", "absent", "unclear"]
    outcome: Outcome = Outcome()
    extra: tuple[str, ...] = ()
    """The engine's ids of duplicate redemptions of the order, to be rolled back by `repair`; never the first one."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this engine supports. `check`, `undo` and `repair` are called only where they are declared."""

    check: bool
    """It can tell what redeeming would grant, without effect."""
    undo: bool
    """It can undo a redemption."""
    repair: bool
    """It may redeem an order more than once, and can roll back the duplicates."""
    referral: bool
    """Referral codes."""
    loyalty: bool
    """Loyalty cards."""
    gift_cards: bool
    """Gift cards, whose balance is spent."""
    automatic: bool
    """Promotions that apply without a code."""
    currencies: Literal["one", "many"]
    """Whether one configuration serves carts of several currencies."""
    most_codes: int | None
    """The most codes in one cart; None if no limit is known."""


class Adapter(Protocol):
    """One engine. Each method starts one conversation.

    `session` identifies the cart, and later its order, at the engine: validate and consume use the same one. An order
    is redeemed at most once in a session. An adapter keeps no state between two conversations: each knows its arguments
    and nothing else.

    A conversation raises `EngineRejected` where the engine says that the request or the key is wrong,
    `EngineUnavailable` where a reply cannot be understood, `OrderMismatch` where the session was redeemed with another
    cart, and `InvalidRequest` for a body that cannot be expressed to this engine. Refused codes are returned, not
    raised.

    An adapter may have `cost_pointers`, a tuple of JSON pointers to the additional costs that it sends to the engine.
    The service warns of a pointer that finds nothing.
    """

    name: str
    """The entry point's name: `[a-z][a-z0-9_]*`. In capitals it is the prefix of the adapter's settings."""
    contract: int
    """The version of the contract that the adapter is written for, see `CONTRACT`."""
    capabilities: Capabilities
    options: tuple[Option, ...]
    accounts: Mapping[str, Account]
    """By the name that a request gives in `account`; "" for a single one."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options`: the values of all options by name, checked against their kinds, with defaults filled in.

        Raises `Misconfigured`, with all faults at once, for what the kinds cannot check.
        """

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """Returns what this cart earns. It is called each time the shopper changes the cart."""
        ...

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Returns what redeeming this order would grant, without effect."""
        raise AssertionError("called only where it is declared")

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Redeems the order for good, at list prices.

        Returns `Redeemed`, with the refused codes in `outcome.rejected`, or `NotRedeemed` where nothing is redeemed.
        Raises `EngineUnavailable` for a reply that does not confirm the redemption: the order is then looked up.
        Another process may validate another cart in this session at any time; only this one may be redeemed.
        """
        ...

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        """Finds out, after an unknown outcome, whether the order is redeemed. Reads only.

        `handle`: the one that `redeem` returned, "" if there is none. Returns `unclear` where the engine cannot tell.
        """
        ...

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        """Undoes what was redeemed in this session; safe to repeat.

        `order` is None once its body has been erased. `final`: for good; otherwise so that the session can be redeemed
        again.
        """
        raise AssertionError("called only where it is declared")

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        """Rolls back the duplicate redemptions that `look_up` found in `extra`; safe to repeat."""
        raise AssertionError("called only where it is declared")


ADAPTERS = "promotions_mapper.adapters"
SANDBOXES = "promotions_mapper.sandboxes"


def known(group: str = ADAPTERS) -> dict[str, EntryPoint]:
    """Returns the installed adapters (or sandboxes) by name, as entry points that are not loaded yet."""
    return {point.name: point for point in entry_points(group=group)}
