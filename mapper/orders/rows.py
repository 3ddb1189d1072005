"""The rows of the ledger, and the pure functions that decide from an order's row what to do next, and when.

An engine's reply can be lost, a process can crash or be paused at any point, and the same order can arrive twice at the
same time. So every order has a row, with the key (space, engine, order key), which is on disk before the first byte is
sent to the engine. The next step depends on that row, and on the other rows of its session:

    (none)     claim                                            -> INTENT
    INTENT     the engine redeems it | refuses it               -> DONE | REJECTED
    INTENT     the engine certainly did nothing                 -> RETRYABLE, which waits for the caller
    INTENT     time-out, reset, 5xx, crash                      -> UNKNOWN
    RETRYABLE, REJECTED  it is sent again, with any content     -> INTENT
    UNKNOWN    a look-up finds it                               -> DONE (REJECTED if it had to be undone)
    UNKNOWN    two look-ups after the quarantine do not find it -> RETRYABLE
    RETRYABLE  it was UNKNOWN before, and is sent again         -> UNKNOWN, for one more look-up
    UNKNOWN    no look-up settles it for a day                  -> MANUAL
    MANUAL     the operator settles it | reopens it             -> DONE, REJECTED, CANCELLED | UNKNOWN
    DONE       a second redemption is found and undone          -> REPAIRED
    DONE       it was UNKNOWN: one more look-up after the quarantine finds a second redemption that came late
    CANCELLED  it was UNKNOWN: it is undone once more after the quarantine, for the same reason
    DONE, REPAIRED       it is cancelled                        -> CANCELLING -> CANCELLED
    RETRYABLE, REJECTED  it is cancelled                        -> CANCELLED

Three mechanisms protect an order when processes pause and race. A *lease*: until it ends, no other process works on the
order. A *fence*: a number that grows whenever another process takes the order over; a write with an old fence raises
`Fenced`. A *quarantine*: the time after a request with an unknown outcome in which nothing is sent again, since the
engine may still execute the request.

A session of the engine belongs to one order, from the order's first attempt until the order is refused or cancelled.
So does the validated cart, even if the order is redeemed in another session. Once an order is refused, another order
may use its cart.

A `Store` decides nothing: it reads rows, calls one of these functions, and writes the row that it returns, atomically.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar, assert_never

from mapper.domain import document
from mapper.domain.errors import InvalidRequest, OutcomePending, Problem

T = TypeVar("T")

LOOK_UP_TIMES_S = (0, 0.2, 0.5, 1, 2, 5, 15, 30, 60, 300, 1800, 7200, 43_200, 86_400)
"""When an unknown outcome is looked up again, in seconds since it became unknown. After the last, the row is MANUAL.

The first look-up, within the call that redeems, comes after `redeem.REDEEM_SHARE` of its time, or after a failure."""
ABSENT_APART_S = 1.0
"""The shortest time between the two look-ups that prove an absence: an engine may show a redemption with a delay."""
ABSENCE_FRESH_S = 5.0
"""How long a look-up that did not find an order allows the order to be sent again."""
SEND_WITHIN_S = 0.5
"""A request may be sent this long after the call of `mark_sent`. After that, the process was paused."""
KEEP_S = 400 * 86_400.0
"""How long a finished row is kept: Nacelle may send an order again after months."""


class State(StrEnum):
    INTENT = "INTENT"
    RETRYABLE = "RETRYABLE"
    UNKNOWN = "UNKNOWN"
    MANUAL = "MANUAL"
    DONE = "DONE"
    REJECTED = "REJECTED"
    REPAIRED = "REPAIRED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


REDEEMED = (State.DONE, State.REPAIRED)
FINISHED = frozenset({*REDEEMED, State.REJECTED, State.CANCELLED})
"""The reconciler does not work on these. A refused order may be attempted again."""
OPEN = tuple(state for state in State if state not in FINISHED)


class LedgerUnavailable(Problem):
    """The ledger cannot be read or written, so nothing may be sent to the engine. `reason` is one word."""

    def __init__(self, reason: str, message: str = "The ledger of consumed orders is not available.") -> None:
        super().__init__(message, reason=f"ledger_{reason}", retry_after=5)


class LedgerUnusable(LedgerUnavailable):
    """A retry cannot help: the setting is wrong, the file is read-only, or the schema is too new."""


class LedgerTooNew(LedgerUnusable):
    """A newer version of this program has changed the ledger's schema."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__("too_new", f"The ledger's schema has version {found}; this program knows up to {known}.")


class LedgerTooOld(LedgerUnusable):
    """The schema is older than this program's. Only `serve` migrates it; the commands that read or copy do not."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            "too_old", f"The ledger's schema has version {found}; `serve` of this version brings it to {known}."
        )


class Fenced(OutcomePending):
    """The row has changed, or another process has claimed the order. The caller must stop and write nothing more."""

    def __init__(self) -> None:
        super().__init__("Another process has taken this order over.", reason="fenced", retry_after=1)


class WrongMove(Exception):
    """A transition that is not in the table above: a bug."""


@dataclass(frozen=True, slots=True)
class Key:
    space: str
    """Nacelle's space id; "" without one."""
    engine: str
    order: str


@dataclass(frozen=True, slots=True)
class Moment:
    """The current time, in seconds. `now` is for leases and quarantines; `wall` (Unix time) for people and pruning."""

    now: float
    wall: float


@dataclass(frozen=True, slots=True)
class Clock:
    now: Callable[[], float]
    wall: Callable[[], float]
    boot: str
    """The id of the machine's boot that `now` counts from. The times of other boots cannot be compared."""


@dataclass(frozen=True, slots=True)
class Row:
    """The state of one order. Times are in seconds on the store's clock (`Moment.now`) unless Unix time is named.

    The schema's first version lacks the fields after `updated_at`: a process of that version writes rows without them.
    """

    key: Key
    identity: bytes
    """A hash of the content that makes it the same order (`mapper.orders.identity`)."""
    state: State
    fence: int
    attempts: int
    """The attempts to redeem it, without those that a caller made before the row was due again."""
    session: str
    order: bytes = field(repr=False)
    """The body as received, for look-ups and retries after a crash; empty once trimmed."""
    owner: str
    """The process that claimed it last, for people."""
    sent_at: float | None
    """When a request that may have had an effect was last sent; None without one."""
    lease_until: float
    unknown_since: float | None
    """When it became UNKNOWN or CANCELLING; of a redeemed order, the time from which it is looked up once more."""
    looked_at: float | None
    """When the last look-up started."""
    absent_since: float | None
    """When the first look-up after the quarantine that did not find it started."""
    next_check_at: float | None
    """When the reconciler resumes it: at the end of the lease, if there is one. None: never."""
    checks: int
    """The look-ups, and the attempts to cancel."""
    status: int | None
    """Schema version 1 only: the HTTP status of the stored answer."""
    reply: bytes | None = field(repr=False)
    """Schema version 1 only: the stored answer. Now the answer is made of the order's bytes and `notices`."""
    reason: str
    version: int
    """Grows by one with every write."""
    created_at: float
    """Unix time, like `updated_at`."""
    updated_at: float
    identity_version: int
    """The version of the rules that `identity` was computed by."""
    digest: bytes | None
    """SHA-256 of the body. The same bytes are the same order under any rules. Kept when the body is trimmed."""
    attempt: int
    """Part of the idempotency keys. It grows when the engine has answered an attempt, or one has been undone."""
    held: str | None
    """The session, while it belongs to this order; else None."""
    customer: str
    """The customer that it is redeemed for: the order's own, or the receipt's."""
    currency: str
    """The currency of a body that names none."""
    handle: str
    """The engine's id of the redemption; "" without one."""
    notices: bytes | None = field(repr=False)
    """The notices about the redemption, as a JSON array; None until it is redeemed."""
    confirmed_at: float | None
    """When a caller that was still connected first received the answer (Unix time); None if none did."""
    cart: str
    """The session of validate: the same as `session`, unless another order had used that one. "" means `session`."""
    passed_from: str
    """The order key that this order was redeemed under before the redemption passed to this one; else ""."""


COLUMNS = (
    *("space", "engine", "order_key", "fingerprint", "state", "fence", "attempts", "session", "body", "owner"),
    *("sent_at", "lease_until", "unknown_since", "looked_at", "absent_since", "look_at", "looks"),
    *("status", "reply", "reason", "version", "created_at", "updated_at"),
    *("identity_version", "digest", "attempt", "held", "customer", "currency", "handle", "notices", "confirmed_at"),
    *("cart", "passed_from"),
)


_FIELDS = tuple(each.name for each in fields(Row))


def row_of(values: Sequence[Any]) -> Row:
    """Returns the row of a database's values, which are in the order of `COLUMNS`."""
    space, engine, order, identity, state, *rest = values
    return Row(Key(space, engine, order), identity, State(state), *rest)


def values_of(row: Row) -> list[Any]:
    """Returns the row's values for a database, in the order of `COLUMNS`."""
    key, identity, state, *rest = (getattr(row, name) for name in _FIELDS)
    return [key.space, key.engine, key.order, identity, state.value, *rest]


# -- Claiming ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a new attempt. `customer` and `currency` as in `Row`."""

    session: str
    """"" if the order names none."""
    from_receipt: bool
    """Whether a valid receipt names the session, which then replaces the session of an earlier attempt."""
    customer: str = ""
    currency: str = ""
    degraded: bool = False
    """Whether validate could not reach the engine: then nothing may be redeemed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to claim an order."""

    key: Key
    order: bytes = field(repr=False)
    identity: Callable[[int, str, str | None], bytes | None] = field(repr=False)
    """Computes the order's identity from a version of the rules, and the customer and currency of an order that names
    none (currency None: that of the settings). Returns None for an unknown version, or if the order cannot be read in
    that currency."""
    identity_version: int
    terms: Terms | Problem
    """A `Problem` forbids a new attempt. An order that is redeemed is answered all the same."""
    owner: str
    lease_s: float
    moved_to: str = ""
    """The session to use if another order has used that of `terms`; else ""."""
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.order).digest())

    def is_same(self, row: Row) -> bool:
        return (
            self.has_same_bytes(row)
            or self.identity(row.identity_version, row.customer, currency_of(row)) == row.identity
        )

    def has_same_bytes(self, row: Row) -> bool:
        return (row.digest == self.digest) if row.digest else row.order == self.order


@dataclass(frozen=True, slots=True)
class New:
    """The order is new, and claimed: redeem it."""

    row: Row


@dataclass(frozen=True, slots=True)
class Retry:
    """The order is claimed, and certainly not redeemed: redeem it."""

    row: Row
    was_refused: bool = False
    """Whether the last attempt was refused, and its caller has received the refusal."""


@dataclass(frozen=True, slots=True)
class Degraded:
    """The order is done without a redemption, since the shopper saw list prices."""

    row: Row


@dataclass(frozen=True, slots=True)
class LookUp:
    """The order is claimed, and may be redeemed: look the row's order up in the engine, and do not redeem."""

    row: Row


@dataclass(frozen=True, slots=True)
class Replay:
    """The order is redeemed. `same_bytes`: whether it came with the stored bytes, for which `Row.reply` is valid."""

    row: Row
    same_bytes: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key has other content, or the order is cancelled, or another order (`holder`) has its session."""

    reason: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class InProgress:
    """An order is leased, or its outcome is unknown: this order, or another one (`holder`) with its session."""

    row: Row
    retry_after_s: float
    """The time until the lease ends or the next look-up is due."""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class NeedsOperator:
    """The operator has to settle the order."""

    reason: str


@dataclass(frozen=True, slots=True)
class UsedSession:
    """Another order has used the session and finished: claim again with another session."""

    session: str


@dataclass(frozen=True, slots=True)
class PassedOn:
    """The same order was redeemed under another key, but no caller was answered: the redemption passes to this key."""

    previous: Row
    """The row of the other key, as it was found."""
    own: Row | None
    """The row of this key, as it was found, which is removed."""
    row: Row
    """The row of this key, to be written in its place."""


Decision = New | Retry | Degraded | LookUp | Replay | Conflict | InProgress | NeedsOperator
Claim = Decision | UsedSession | PassedOn


def sessions_of(row: Row | None, ask: Ask) -> tuple[str, ...]:
    """Returns the sessions and carts whose other rows `decide` needs; none if the order's own row suffices."""
    if row is not None and row.state not in (State.RETRYABLE, State.REJECTED, State.INTENT):
        return ()
    of_terms = () if isinstance(ask.terms, Problem) else (ask.terms.session,)
    of_row = () if row is None else (row.session, row.cart)
    return tuple({ask.moved_to, *of_terms, *of_row} - {""})


def _session_for(row: Row | None, ask: Ask) -> str:
    """Returns the session of a new attempt."""
    terms = ask.terms
    if ask.moved_to or isinstance(terms, Problem):
        return ask.moved_to
    return terms.session if row is None or terms.from_receipt else row.session


def _cart_for(row: Row | None, ask: Ask) -> str:
    """Returns the cart of a new attempt."""
    terms = ask.terms
    if isinstance(terms, Problem):
        return ""
    return terms.session if row is None or terms.from_receipt else cart_of(row)


def currency_of(row: Row) -> str | None:
    """Returns the currency of a body that names none; None for a row of schema version 1, which did not store it."""
    return row.currency if row.identity_version > 1 else None


def cart_of(row: Row) -> str:
    """Returns the row's cart. Schema version 1 did not store it."""
    return row.cart or row.session


def decide(row: Row | None, others: Sequence[Row], ask: Ask, at: Moment) -> Claim:
    """Decides what a claim may do. If it claims the order, the decision holds the row to write.

    `others`: the rows of other orders with a session or cart of `sessions_of`, and those that a redemption of this
    order has passed to. Raises the `Problem` of `Ask.terms` if a new attempt would be needed.
    """
    if row is not None and (decision := _decide_by_row(row, others, ask, at)) is not None:
        return decision
    if isinstance(ask.terms, Problem):
        raise ask.terms
    session = _session_for(row, ask)
    if not session:
        raise InvalidRequest("The order has no id, no source_id and no receipt to find its engine session by.", "/id")
    cart = _cart_for(row, ask)
    conflict = _session_conflict(session, cart, row, others, ask, at)
    if conflict is not None:
        return conflict
    if row is None:
        claimed = _new_row(ask, ask.terms, session, cart, at)
    else:
        # A caller that does not wait until the row is due uses up no retry of the schedule.
        is_early = row.next_check_at is not None and at.now < row.next_check_at
        claimed = _new_attempt(row, ask, ask.terms, session, cart, at, counts=not is_early)
    if ask.terms.degraded:  # in one write: nobody may find the order claimed, and redeem it
        return Degraded(_degraded(claimed, at))
    return New(claimed) if row is None else Retry(claimed, was_refused=row.state is State.REJECTED)


def _decide_by_row(row: Row, others: Sequence[Row], ask: Ask, at: Moment) -> Decision | None:
    """Decides from the order's own row. None if a new attempt may be made."""
    match row.state:
        case State.DONE | State.REPAIRED:
            return Replay(row, ask.has_same_bytes(row)) if ask.is_same(row) else Conflict("order_mismatch")
        case State.CANCELLED:
            return Conflict("cancelled")
        case State.CANCELLING:
            return InProgress(row, _remaining_s(row, at))
        case State.MANUAL:
            return NeedsOperator(row.reason)
        case State.INTENT | State.UNKNOWN:
            if row.lease_until > at.now:
                return InProgress(row, row.lease_until - at.now)
            if row.sent_at is not None:
                return LookUp(looking(_acquired(row, ask.owner, ask.lease_s, at), at, ask.lease_s))
            return None  # no byte was sent, since `mark_sent` writes first; and the new fence prevents it from now on
        case State.RETRYABLE:
            is_free = not any(
                holds_session(other) and (other.session == row.session or cart_of(other) == cart_of(row))
                for other in others
            )
            if is_free and row.order and _needs_look_up(row, at):
                return LookUp(looking(_acquired(row, ask.owner, ask.lease_s, at), at, ask.lease_s))
            return None
        case State.REJECTED:
            return None
        case _:
            assert_never(row.state)


def _needs_look_up(row: Row, at: Moment) -> bool:
    """Whether a request with an unknown outcome was sent, and the last look-up is too old to allow another request."""
    return row.sent_at is not None and (row.looked_at is None or at.now - row.looked_at > ABSENCE_FRESH_S)


def _session_conflict(
    session: str, cart: str, row: Row | None, others: Sequence[Row], ask: Ask, at: Moment
) -> Claim | None:
    """Returns what prevents a redemption of the cart in the session; None if both are free."""
    for other in others:
        if other.passed_from == ask.key.order:
            return Conflict("session_of_another_order", other.key.order)
    same = [other for other in others if other.session == session or cart_of(other) == cart]
    for other in sorted(same, key=lambda other: other.held is None):
        if not holds_session(other):
            continue
        if other.state not in REDEEMED:
            return InProgress(other, _remaining_s(other, at), other.key.order)
        if other.confirmed_at is None and ask.is_same(other):
            return PassedOn(other, row, _transferred(other, row, ask, at))
        return Conflict("session_of_another_order", other.key.order)
    if any(other.session == session and other.state in (State.REJECTED, State.CANCELLED) for other in same):
        return UsedSession(session)
    return None


def holds_session(row: Row) -> bool:
    """Whether the row's session belongs to it. Schema version 1 did not store that: the state tells it."""
    by_state = row.identity_version == 1 and row.state not in (State.REJECTED, State.CANCELLED, State.RETRYABLE)
    return row.held is not None or by_state


def next_session(session: str, tried: int = 0) -> str:
    """Returns the session to use after a finished one: `<id>~2`, then `<id>~3` and so on.

    `tried`: how many finished ones were tried before it. From the second on, the steps double: a cart that lives long
    has more orders than can be tried one by one, and the ledger may have forgotten them.
    """
    step = 1 << max(tried - 1, 0)
    base, tilde, number = session.rpartition("~")
    if tilde and number.isascii() and number.isdigit() and len(number) < 6:
        return f"{base}~{int(number) + step}"
    return f"{session}~{1 + step}"


def _remaining_s(row: Row, at: Moment) -> float:
    return max(row.lease_until, row.next_check_at or 0.0) - at.now


def _new_row(ask: Ask, terms: Terms, session: str, cart: str, at: Moment) -> Row:
    end = at.now + ask.lease_s
    return Row(
        key=ask.key, identity=_identity(ask, terms), state=State.INTENT, fence=1, attempts=1, session=session,
        order=ask.order, owner=ask.owner, sent_at=None, lease_until=end, unknown_since=None, looked_at=None,
        absent_since=None, next_check_at=end, checks=0, status=None, reply=None, reason="", version=1,
        created_at=at.wall, updated_at=at.wall, identity_version=ask.identity_version, digest=ask.digest, attempt=1,
        held=session, customer=terms.customer, currency=terms.currency, handle="", notices=None, confirmed_at=None,
        cart=cart, passed_from="",
    )  # fmt: skip


def _identity(ask: Ask, terms: Terms) -> bytes:
    identity = ask.identity(ask.identity_version, terms.customer, None)
    assert identity is not None, "the order was parsed, and the version is the current one"
    return identity


def _new_attempt(row: Row, ask: Ask, terms: Terms, session: str, cart: str, at: Moment, *, counts: bool) -> Row:
    changed = not ask.is_same(row)
    claimed = _acquired(row, ask.owner, ask.lease_s, at)
    return _move(
        claimed, at, State.INTENT, attempts=row.attempts + counts, attempt=row.attempt + changed, session=session,
        held=session, cart=cart, order=ask.order, digest=ask.digest, identity=_identity(ask, terms),
        identity_version=ask.identity_version, customer=terms.customer, currency=terms.currency, status=None,
        reply=None, notices=None, handle="", unknown_since=None, absent_since=None,
    )  # fmt: skip


def _transferred(other: Row, own: Row | None, ask: Ask, at: Moment) -> Row:
    fence = max(other.fence, 0 if own is None else own.fence) + 1
    return _move(
        replace(other, key=ask.key, fence=fence, owner=ask.owner), at, other.state, order=ask.order,
        digest=ask.digest, reply=None, notices=notices_of(other), confirmed_at=at.wall, reason="passed_on",
        passed_from=other.key.order,
    )  # fmt: skip


def _acquired(row: Row, owner: str, lease_s: float, at: Moment) -> Row:
    return _leased(replace(row, fence=row.fence + 1, owner=owner), at, lease_s)


# -- The transitions of a claimed row: each function returns the row to write --------------------------------------


def _require_state(row: Row, *states: State) -> None:
    if row.state not in states:
        raise WrongMove(f"this is for {', '.join(states)}, not for {row.state}")


def _move(row: Row, at: Moment, state: State, **changes: Any) -> Row:
    return replace(row, state=state, version=row.version + 1, updated_at=at.wall, **changes)


def _leased(row: Row, at: Moment, lease_s: float) -> Row:
    return replace(row, lease_until=at.now + lease_s, next_check_at=at.now + lease_s)


def _released(row: Row, next_check_at: float | None) -> Row:
    return replace(row, lease_until=0.0, next_check_at=next_check_at)


def is_released(row: Row) -> bool:
    """Whether the row was released, so that it has to be claimed before it is written again."""
    return row.state in (State.INTENT, State.UNKNOWN, State.CANCELLING) and row.lease_until == 0


def extended(row: Row, at: Moment, lease_s: float) -> Row:
    """The lease is renewed."""
    _require_state(row, State.INTENT, State.UNKNOWN)
    return _leased(_move(row, at, row.state), at, lease_s)


def sent(row: Row, at: Moment, lease_s: float) -> Row:
    """A redeeming request is about to be sent."""
    _require_state(row, State.INTENT)
    return _leased(_move(row, at, State.INTENT, sent_at=at.now), at, lease_s)


def looking(row: Row, at: Moment, lease_s: float) -> Row:
    """The outcome of the request is unknown, and a look-up starts now."""
    _require_state(row, State.INTENT, State.UNKNOWN, State.RETRYABLE)
    if row.sent_at is None:
        raise WrongMove("looking for what was never sent")
    since = at.now if row.unknown_since is None or row.state is State.RETRYABLE else row.unknown_since
    held = row.session if row.state is State.RETRYABLE else row.held
    unknown = _move(row, at, State.UNKNOWN, unknown_since=since, looked_at=at.now, checks=row.checks + 1, held=held)
    return _leased(unknown, at, lease_s)


def redeemed(
    row: Row, at: Moment, notices: bytes, handle: str, reason: str, *, confirmed: bool, again_after_s: float = 0
) -> Row:
    """The order is redeemed. `notices` as in the row; `confirmed`: a caller waits for the answer.

    `again_after_s`: how long after it was sent a request whose outcome was unknown may be executed a second time.
    """
    if row.state in REDEEMED and row.notices == notices:
        return row  # a repeated write: the first one was committed, but its confirmation came too late
    _require_state(row, State.INTENT, State.UNKNOWN, State.MANUAL)
    done = _move(
        row, at, State.DONE, notices=notices, handle=handle or row.handle, reason=reason,
        confirmed_at=at.wall if confirmed else None,
    )  # fmt: skip
    return _released(done, None) if row.state is not State.UNKNOWN else _due_again(done, row, again_after_s)


def _due_again(row: Row, before: Row, again_after_s: float, asked_at: float | None = None) -> Row:
    """Releases a row until the request that redeemed it can no longer be executed a second time.

    `before`: the row before the move. `asked_at`: when the engine was last asked, by default at the look-up.
    """
    if before.sent_at is None or before.looked_at is None:
        return _released(row, None)
    again_at = before.sent_at + again_after_s
    if (before.looked_at if asked_at is None else asked_at) >= again_at:
        return _released(row, None)
    return _released(replace(row, unknown_since=again_at), again_at)


def seen_again(row: Row, at: Moment, *, repaired: bool) -> Row:
    """The order was looked up, or undone, once more. `repaired`: a second redemption was found and undone."""
    _require_state(row, *REDEEMED, State.CANCELLED)
    checked = _move(row, at, State.REPAIRED, reason="redeemed_twice") if repaired else _move(row, at, row.state)
    return _released(checked, None)


def not_seen_again(row: Row, at: Moment) -> Row:
    """The further look-up of a redeemed order, or undo of a cancelled one, failed. It is repeated for a day."""
    _require_state(row, *REDEEMED, State.CANCELLED)
    assert row.unknown_since is not None, "_due_again() sets it with the time of the look-up"
    times = [row.unknown_since + after for after in LOOK_UP_TIMES_S]
    return _released(_move(row, at, row.state), next((moment for moment in times if moment > at.now), None))


def _degraded(row: Row, at: Moment) -> Row:
    """The order is done without a redemption. The session stays unused."""
    return replace(redeemed(row, at, NO_NOTICES, "", DEGRADED, confirmed=False), held=None)


NO_NOTICES = b"[]"
"""`Row.notices` of an order without any."""
DEGRADED = "degraded"


def confirmed(row: Row, at: Moment) -> Row:
    """A caller has received the answer."""
    _require_state(row, *REDEEMED)
    return row if row.confirmed_at is not None else _move(row, at, row.state, confirmed_at=at.wall)


def rejected(row: Row, at: Moment, reason: str) -> Row:
    """The order is refused, and nothing is redeemed in the engine. If it is sent again, it is attempted again."""
    if row.state is State.REJECTED:
        return row  # a repeated write: the first one was committed, but its confirmation came too late
    _require_state(row, State.INTENT, State.UNKNOWN, State.MANUAL)
    return _released(_closed(row, at, State.REJECTED, reason, attempt=row.attempt + 1), None)


def _closed(row: Row, at: Moment, state: State, reason: str, **changes: Any) -> Row:
    """Nothing is redeemed in the engine, and the session is free."""
    return _move(
        row, at, state, reason=reason, held=None, sent_at=None, unknown_since=None, absent_since=None, **changes
    )


def repaired(row: Row, at: Moment, reason: str) -> Row:
    """A second redemption of the order has been undone. The answer stays the same."""
    _require_state(row, State.DONE)
    return _move(row, at, State.REPAIRED, reason=reason)


def retryable(
    row: Row, at: Moment, delay_s: float | None, reason: str, *, answered: bool, unanswered_since: float | None = None
) -> Row:
    """The engine certainly did nothing. The order waits for its caller or, with a delay, for the reconciler.

    `answered`: the engine said so itself, so that the next request is a new attempt. `unanswered_since`: when an
    earlier claim sent a request that was never answered: then the order is looked up before the next request.
    """
    _require_state(row, State.INTENT)
    over = _closed(row, at, State.RETRYABLE, reason, attempt=row.attempt + answered)
    return _scheduled(replace(over, sent_at=None if answered else unanswered_since), at, delay_s)


def _scheduled(row: Row, at: Moment, delay_s: float | None) -> Row:
    if delay_s is None:
        return _released(replace(row, held=None), None)
    return _released(replace(row, held=row.session), at.now + delay_s)


def reopened(row: Row, at: Moment) -> Row:
    """The operator wants another look-up or, if the order was being cancelled, another undo."""
    _require_state(row, State.MANUAL)
    state = State.CANCELLING if row.reason.startswith(CANCEL) else State.UNKNOWN
    return _released(_move(row, at, state, unknown_since=at.now, absent_since=None), at.now)


CANCEL = "cancel_"
"""The start of the reason of a MANUAL row that was being cancelled."""


def hurried(row: Row, at: Moment) -> Row:
    """The operator wants the look-up, or the undo, now instead of when it is due."""
    _require_state(row, State.UNKNOWN, State.CANCELLING)
    return row if row.lease_until > at.now else _move(row, at, row.state, next_check_at=at.now)


def postponed(row: Row, at: Moment, reason: str) -> Row:
    """The reconciler's step failed: other rows come first. After a day, the operator has to settle the order."""
    _require_state(row, *OPEN)
    since = at.now if row.unknown_since is None else row.unknown_since
    if at.now >= since + LOOK_UP_TIMES_S[-1]:
        prefix = CANCEL if row.state is State.CANCELLING else ""
        return _released(_move(row, at, State.MANUAL, reason=prefix + reason), None)
    after = next(after for after in LOOK_UP_TIMES_S if after >= 30 and since + after > at.now)
    check_at = max(since + after, row.lease_until)
    return replace(_move(row, at, row.state, unknown_since=since, reason=reason), next_check_at=check_at)


def trimmed(row: Row, at: Moment) -> Row:
    """The body, which is personal data, is removed. What the answer to the same bytes needs stays."""
    _require_state(row, *FINISHED, State.RETRYABLE)
    if row.state is State.RETRYABLE and row.next_check_at is not None:
        raise WrongMove("the reconciler redeems it")
    digest = row.digest or (hashlib.sha256(row.order).digest() if row.order else None)
    return replace(row, order=b"", reply=None, notices=notices_of(row), digest=digest, version=row.version + 1)


def notices_of(row: Row) -> bytes | None:
    """Returns the row's notices, a JSON array. Schema version 1 stored the whole answer, which holds them."""
    if row.notices is not None or row.reply is None or row.state not in REDEEMED:
        return row.notices
    if row.reply == b'{"order":' + row.order.strip() + b"}":
        return NO_NOTICES
    order = document.decode(row.reply)["order"]
    for part in (order, *order.get("orders", ())):
        for name in ("promotions", "promotion"):
            if part.get(name):
                return document.encode(part[name]["meta"]["mapper"]["notices"])
    return NO_NOTICES


@dataclass(frozen=True, slots=True)
class Wait:
    """The outcome is still unknown, and the row is released. Claim it again after `wait_s` seconds."""

    row: Row
    wait_s: float


@dataclass(frozen=True, slots=True)
class Absence:
    """The engine certainly has not redeemed the order, and the row is released. A new claim may redeem it."""

    row: Row


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The operator has to settle the order, and the row is released."""

    row: Row


AfterLookUp = Wait | Absence | GiveUp


def after_absence(row: Row, at: Moment, quarantine_s: float, delay_s: float | None) -> AfterLookUp:
    """Decides what follows a look-up that did not find the order. `delay_s` as for `retryable`.

    The absence counts only if two look-ups that *started* after the quarantine did not find the order.
    """
    _require_state(row, State.UNKNOWN)
    assert row.sent_at is not None, "an outcome is unknown only after a request"
    assert row.looked_at is not None, "a look-up starts with looking()"
    if _is_schedule_over(row, at):
        return _to_operator(row, at, "absent")
    if row.looked_at < row.sent_at + quarantine_s:
        return _check_later(row, at, quarantine_s, "absent")
    if row.absent_since is None:
        first = replace(row, absent_since=row.looked_at)
        waiting = _released(_move(first, at, State.UNKNOWN, reason="absent"), row.looked_at + ABSENT_APART_S)
        return Wait(waiting, max(0.0, row.looked_at + ABSENT_APART_S - at.now))
    if row.looked_at < row.absent_since + ABSENT_APART_S:
        return _check_later(row, at, quarantine_s, "absent")
    # `sent_at` stays, so that the order is looked up once more if it is sent again, or after a crash before that.
    return Absence(_scheduled(_move(row, at, State.RETRYABLE, reason="absent"), at, delay_s))


def after_failed_look_up(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait | GiveUp:
    """Decides what follows a look-up that failed or was unclear."""
    _require_state(row, State.UNKNOWN)
    return _to_operator(row, at, reason) if _is_schedule_over(row, at) else _check_later(row, at, quarantine_s, reason)


def _is_schedule_over(row: Row, at: Moment) -> bool:
    assert row.unknown_since is not None, "set on the way to UNKNOWN"
    return at.now >= row.unknown_since + LOOK_UP_TIMES_S[-1]


def _to_operator(row: Row, at: Moment, reason: str) -> GiveUp:
    return GiveUp(_released(_move(row, at, State.MANUAL, reason=reason), None))


def _check_later(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait:
    check_at = next_check(row, at.now, quarantine_s)
    return Wait(_released(_move(row, at, State.UNKNOWN, reason=reason), check_at), check_at - at.now)


def next_check(row: Row, now: float, quarantine_s: float) -> float:
    """Returns the time of the next look-up: the schedule's, or the first at which an absence would count."""
    assert row.unknown_since is not None
    times = [row.unknown_since + after for after in LOOK_UP_TIMES_S]
    if row.sent_at is not None:
        times.append(row.sent_at + quarantine_s)
    if row.absent_since is not None:
        times.append(row.absent_since + ABSENT_APART_S)
    return min((moment for moment in times if moment > now), default=now)


def quarantine_left_s(row: Row, at: Moment, quarantine_s: float) -> float:
    """Returns how long nothing may be sent again."""
    return 0.0 if row.sent_at is None else max(0.0, row.sent_at + quarantine_s - at.now)


# -- Cancelling ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absent:
    """The ledger has no such order."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nothing is redeemed in the engine, now or later. The row is to be written if it has changed."""

    row: Row


@dataclass(frozen=True, slots=True)
class Undo:
    """The order is claimed: undo the redemption in the engine, for good."""

    row: Row
    is_first: bool
    """Whether this is the first attempt."""


CancelDecision = Absent | Cancelled | Undo | InProgress | NeedsOperator


def decide_cancel(row: Row | None, owner: str, lease_s: float, at: Moment) -> CancelDecision:
    """Decides what a request to cancel an order may do."""
    if row is None:
        return Absent()
    match row.state:
        case State.CANCELLED:
            return Cancelled(row)
        case State.MANUAL:
            return NeedsOperator(row.reason)
        case State.RETRYABLE | State.REJECTED:
            return Cancelled(cancelled(row, at))
        case State.INTENT | State.UNKNOWN:
            if row.state is State.INTENT and row.sent_at is None and row.lease_until <= at.now:
                return Cancelled(cancelled(row, at))
            return InProgress(row, _remaining_s(row, at))
        case State.CANCELLING:
            if row.lease_until > at.now:
                return InProgress(row, _remaining_s(row, at))
            claimed = _acquired(row, owner, lease_s, at)
            return Undo(_move(claimed, at, State.CANCELLING, checks=row.checks + 1), is_first=False)
        case State.DONE | State.REPAIRED:
            if row.reason == DEGRADED:
                return Cancelled(cancelled(row, at))
            claimed = _acquired(row, owner, lease_s, at)
            claimed = _move(claimed, at, State.CANCELLING, unknown_since=at.now, checks=row.checks + 1)
            return Undo(claimed, is_first=True)
        case _:
            assert_never(row.state)


def cancelled(row: Row, at: Moment, *, again_after_s: float = 0) -> Row:
    """Nothing is redeemed in the engine any more. `again_after_s`: as for `redeemed`."""
    fenced = replace(row, fence=row.fence + 1)  # a process that had claimed it must write nothing more
    return _due_again(_closed(fenced, at, State.CANCELLED, "cancelled"), row, again_after_s, asked_at=at.now)


def not_cancelled(row: Row, at: Moment, reason: str, *, again_after_s: float = 0) -> Row:
    """The engine refuses to undo the redemption: the order stays redeemed. `again_after_s`: as for `redeemed`."""
    _require_state(row, State.CANCELLING)
    return _due_again(_move(row, at, State.DONE, unknown_since=None, reason=reason), row, again_after_s)


def after_failed_undo(row: Row, at: Moment, reason: str) -> Wait | GiveUp:
    """Decides what follows an undo whose outcome is unknown: it is repeated for a day."""
    _require_state(row, State.CANCELLING)
    if _is_schedule_over(row, at):
        return _to_operator(row, at, f"{CANCEL}{reason}")
    check_at = next_check(replace(row, sent_at=None), at.now, 0.0)
    return Wait(_released(_move(row, at, State.CANCELLING, reason=reason), check_at), check_at - at.now)


# -- What the ledger returns ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a caller: HTTP status, body, and a reason (one word, for log and metrics)."""

    status: int
    reply: bytes = field(repr=False)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission to send one request now. Call `fresh()` last, just before the first byte is sent."""

    row: Row
    asked_at: float = field(repr=False)
    local: Callable[[], float] = field(repr=False)

    def fresh(self) -> bool:
        """False if this process was paused since, so that the lease may be over: then call `mark_sent` again."""
        return 0 <= self.local() - self.asked_at < SEND_WITHIN_S


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many rows there are, and how old the oldest open one is."""

    counts: dict[State, int]
    """By state. Those of finished rows are missing if they were not counted."""
    oldest_s: float
    """The age of the oldest open row, without those that wait for their caller (RETRYABLE)."""
    unconfirmed: int = 0
    """The redeemed orders whose answer no caller has received."""


def backlog_of(found: Iterable[tuple[str, int, float]], unconfirmed: int, wall: float) -> Backlog:
    """`found`: by state, the number of rows and the time at which the oldest was created (Unix time)."""
    rows = [(State(state), count, created) for state, count, created in found]
    ages = [wall - created for state, _, created in rows if state is not State.RETRYABLE]
    return Backlog({state: count for state, count, _ in rows}, max([0.0, *ages]), unconfirmed)


Step = Callable[[Row | None, Moment], tuple[T, Row | None]]
"""Takes the stored row (None if there is none). Returns a result, and the row to write (None or the same: no write)."""

ClaimStep = Callable[[Row | None, Sequence[Row], Moment], tuple[T, Row | None]]
"""As `Step`; the second argument is the other rows of the claim's sessions."""
