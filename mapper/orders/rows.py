"""The ledger: what is known of every order that is to be redeemed, so that it is redeemed once.

An engine's answer can get lost, a process can die or be paused at any point, and the same order can come twice at the
same time. So every order has a row, keyed by space, engine and order key, that is on disk before the first byte goes to
the engine. What may be done next depends on that row, and on the other rows of its session:

    (none)     claim                                            -> INTENT
    INTENT     the engine grants it | refuses it                -> DONE | REJECTED
    INTENT     the engine certainly did not act                 -> RETRYABLE: it waits for the caller
    INTENT     time-out, reset, 5xx, crash                      -> UNKNOWN
    RETRYABLE, REJECTED  it comes again, with any content       -> INTENT
    UNKNOWN    a look-up finds it                               -> DONE (REJECTED where it had to be undone)
    UNKNOWN    two look-ups after the quarantine do not find it -> RETRYABLE
    RETRYABLE  it was unknown once, and comes again             -> UNKNOWN, to be looked up once more
    UNKNOWN    nobody could tell for a day                      -> MANUAL
    MANUAL     somebody settles it, or has it looked up again   -> DONE, REJECTED, CANCELLED | UNKNOWN
    DONE       it is found twice and one is taken back          -> REPAIRED
    DONE       it was unknown: looked for once more after the quarantine, for a second one that came late
    DONE, REPAIRED       somebody cancels it                    -> CANCELLING -> CANCELLED
    RETRYABLE, REJECTED  somebody cancels it                    -> CANCELLED

Three things keep this true when processes pause and race. A *lease*: while it lasts nobody else touches the order. A
*fence*: a number that grows whenever the order changes hands; what is written under an old one is refused (`Fenced`). A
*quarantine*: after a request whose outcome is unknown nothing is sent again before it is over, since the engine may
still be working on the first.

A session of the engine belongs to one order, from its first attempt until it is refused or cancelled. So does the cart
that was validated, whichever session it is redeemed in: who takes the cart of a refused order over has it.

Everything on this page that decides is a pure function from one row to the next. A `Store` only carries rows: it reads
them, has a function say what follows, and writes that, all or nothing.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar, assert_never

from mapper.domain import document
from mapper.domain.errors import InvalidRequest, OutcomePending, Problem

T = TypeVar("T")

# When an order whose outcome is unknown is looked up, in seconds since it became unknown. At the last of them a person
# is asked instead.
SCHEDULE = (0, 0.2, 0.5, 1, 2, 5, 15, 30, 60, 300, 1800, 7200, 43_200, 86_400)
# An engine may not show at once what it has just written: absence counts when it was seen twice, this far apart.
ABSENT_APART_S = 1.0
# For how long a look-up that did not find an order allows to send it again.
ABSENCE_FRESH_S = 5.0
# How long after `mark_sent` was asked for the request may still go out: longer, and the process was paused.
SEND_WITHIN_S = 0.5
# Finished rows: bodies are of no use after a while, but an order may be driven again after months.
KEEP_BODIES_S = 30 * 86_400
KEEP_S = 400 * 86_400.0


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
"""Nobody works on these any more. A refused order may all the same be tried anew."""
OPEN = tuple(state for state in State if state not in FINISHED)


class LedgerUnavailable(Problem):
    """The ledger cannot be read or written: nothing may be sent to the engine. `reason` tells why, in a word."""

    def __init__(self, reason: str, message: str = "The ledger of consumed orders is not available.") -> None:
        super().__init__(message, reason=f"ledger_{reason}", retry_after=5)


class LedgerUnusable(LedgerUnavailable):
    """It will not mend itself: the setting is wrong, the file cannot be written, or the schema is too new."""


class LedgerTooNew(LedgerUnusable):
    """A newer version of this program has changed the ledger's schema."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__("too_new", f"The ledger's schema has version {found}; this program knows up to {known}.")


class LedgerTooOld(LedgerUnusable):
    """Only `serve` changes a schema: whoever just looks, or makes a copy to go back to, leaves it as it is."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            "too_old", f"The ledger's schema has version {found}; `serve` of this version brings it to {known}."
        )


class Fenced(OutcomePending):
    """Somebody else has taken the order over: whoever holds this row must stop and write nothing more."""

    def __init__(self) -> None:
        super().__init__("Another process has taken this order over.", reason="fenced", retry_after=1)


class WrongMove(Exception):
    """A step that the table above does not have: a mistake in the program."""


@dataclass(frozen=True, slots=True)
class Key:
    space: str
    """Nacelle's space id; "" where none is named."""
    engine: str
    order: str


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, in seconds. Leases and quarantines are counted on `now`; `wall` (Unix time) is for people and pruning."""

    now: float
    wall: float


@dataclass(frozen=True, slots=True)
class Clock:
    now: Callable[[], float]
    wall: Callable[[], float]
    boot: str
    """Which start of the machine `now` counts from: times of another one mean nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """All that is known of one order. Times are in seconds on the store's clock (`Moment.now`) but for the last three.

    The fields after `updated_at` came later: a process of the version before writes rows without them.
    """

    key: Key
    identity: bytes
    """What makes it the same order, whatever its bytes (`mapper.orders.identity`)."""
    state: State
    fence: int
    attempts: int
    """How often somebody set out to send it; those who came before it was due again are not counted."""
    session: str
    order: bytes = field(repr=False)
    """The body as it came, so that it can be looked up and sent again after a crash; empty once trimmed."""
    owner: str
    """The process that took it last, for people."""
    sent_at: float | None
    """When a request that may have had its effect last went out; None where there is none such."""
    lease_until: float
    unknown_since: float | None
    """Since when it is looked up, or being cancelled; of a redeemed order, from when on it is looked for once more."""
    looked_at: float | None
    """When the last look-up was about to start."""
    absent_since: float | None
    """When the first look-up started that began after the quarantine and did not find it."""
    next_check_at: float | None
    """When somebody has to see to it: the lease's end while there is one; None where nobody has to."""
    checks: int
    status: int | None
    """Of the version before: the stored answer's HTTP status."""
    reply: bytes | None = field(repr=False)
    """Of the version before: the stored answer. What is answered follows from the order's bytes and `notices`."""
    reason: str
    version: int
    """Grows with every write."""
    created_at: float
    """Unix time, like `updated_at` and `confirmed_at`."""
    updated_at: float
    identity_version: int
    """By which rule `identity` was made."""
    digest: bytes | None
    """SHA-256 of the bytes as they came; they are the same order whatever the rules are. Outlives trimming."""
    attempt: int
    """What idempotency keys name beside the order. It grows when an attempt has been answered or undone."""
    held: str | None
    """The session, while it is this order's and no other's."""
    customer: str
    """For whom it is redeemed: the order's own customer, or the receipt's."""
    currency: str
    """What a body that names no currency is in."""
    handle: str
    """What the engine calls the redemption; "" where it calls it nothing."""
    notices: bytes | None = field(repr=False)
    """What is said about the redemption beside the order, as a JSON array; None until it is redeemed."""
    confirmed_at: float | None
    """When the redemption was first answered to a caller who was still there."""
    cart: str
    """The session that validate named: `session`, unless that one had been another order's; "" as `session`."""
    passed_from: str
    """The id that the order was redeemed under, where the redemption has passed on from another one; else ""."""


COLUMNS = (
    *("space", "engine", "order_key", "fingerprint", "state", "fence", "attempts", "session", "body", "owner"),
    *("sent_at", "lease_until", "unknown_since", "looked_at", "absent_since", "look_at", "looks"),
    *("status", "reply", "reason", "version", "created_at", "updated_at"),
    *("identity_version", "digest", "attempt", "held", "customer", "currency", "handle", "notices", "confirmed_at"),
    *("cart", "passed_from"),
)


_FIELDS = tuple(each.name for each in fields(Row))


def row_of(values: Sequence[Any]) -> Row:
    """A row from what a database holds, in the order of `COLUMNS`."""
    space, engine, order, identity, state, *rest = values
    return Row(Key(space, engine, order), identity, State(state), *rest)


def values_of(row: Row) -> list[Any]:
    """What a database holds of a row, in the order of `COLUMNS`."""
    key, identity, state, *rest = (getattr(row, name) for name in _FIELDS)
    return [key.space, key.engine, key.order, identity, state.value, *rest]


# -- What a claim may do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """What a new attempt would be made with."""

    session: str
    """"" where the order names none."""
    from_receipt: bool
    """Whether a right receipt names the session: then it takes the place of the one of an earlier attempt."""
    customer: str = ""
    currency: str = ""
    degraded: bool = False
    """Validate could not ask the engine: nothing may be redeemed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody who claims an order brings."""

    key: Key
    order: bytes = field(repr=False)
    identity: Callable[[int, str, str | None], bytes | None] = field(repr=False)
    """The order's identity by a version of the rules, for a customer and in a currency where it names none (None: the
    settings' own); None for another version, or where it cannot be read in that currency.
    """
    identity_version: int
    terms: Terms | Problem
    """A `Problem`: why there must be no new attempt. What is redeemed is answered all the same."""
    owner: str
    lease_s: float
    moved_to: str = ""
    """The session to use instead, where another order has used the one that was asked for."""
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
    """Yours, never seen before: send it."""

    row: Row


@dataclass(frozen=True, slots=True)
class Retry:
    """Yours, and certainly not redeemed by anybody before: send it."""

    row: Row
    was_refused: bool = False
    """Whether its last attempt was refused, and its caller told so."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """Yours, but it may have been redeemed: ask the engine, send nothing. Of the order, the row says what it was."""

    row: Row


@dataclass(frozen=True, slots=True)
class Replay:
    """It is redeemed. `same_bytes`: so that even the version before has its answer."""

    row: Row
    same_bytes: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key is known with other content, or is cancelled; or another order (`holder`) has its session."""

    reason: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class InProgress:
    """Somebody is at it, or the outcome is unknown: of this order, or of another one (`holder`) with its session."""

    row: Row
    retry_after_s: float
    """How long that may last at the most."""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class NeedsOperator:
    """A person has to see to it."""

    reason: str


@dataclass(frozen=True, slots=True)
class UsedSession:
    """Another order has used the session, and is done with it: ask again for another session."""

    session: str


@dataclass(frozen=True, slots=True)
class PassedOn:
    """The same order was redeemed under another id, and nobody was told: the redemption is this one's now."""

    held_by: Row
    row: Row


Decision = New | Retry | LookUp | Replay | Conflict | InProgress | NeedsOperator
Claim = Decision | UsedSession | PassedOn


def sessions_of(row: Row | None, ask: Ask) -> tuple[str, ...]:
    """The sessions whose other rows `decide` has to see; none where the row alone decides."""
    if row is not None and row.state not in (State.RETRYABLE, State.REJECTED, State.INTENT):
        return ()
    return tuple({_session_for(row, ask), _cart_for(row, ask), row.session if row else ""} - {""})


def _session_for(row: Row | None, ask: Ask) -> str:
    """The session of a new attempt."""
    terms = ask.terms
    if ask.moved_to or isinstance(terms, Problem):
        return ask.moved_to
    return terms.session if row is None or terms.from_receipt else row.session


def _cart_for(row: Row | None, ask: Ask) -> str:
    """The cart of a new attempt."""
    terms = ask.terms
    if isinstance(terms, Problem):
        return ""
    return terms.session if row is None or terms.from_receipt else cart_of(row)


def currency_of(row: Row) -> str | None:
    """What the body is in if it names none. The first version did not write it down."""
    return row.currency if row.identity_version > 1 else None


def cart_of(row: Row) -> str:
    """The version before did not write it down."""
    return row.cart or row.session


def decide(row: Row | None, others: Sequence[Row], ask: Ask, at: Moment) -> Claim:
    """What the one who claims an order may do. Where the order is now theirs, the decision holds the row to write.

    `others`: the rows of other orders with a session, or a cart, of `sessions_of`, and those that a redemption of this
    order has passed to. Raises what `Ask.terms` says against an attempt.
    """
    if row is not None and (known := _known(row, others, ask, at)) is not None:
        return known
    if isinstance(ask.terms, Problem):
        raise ask.terms
    session = _session_for(row, ask)
    if not session:
        raise InvalidRequest("The order has no id, no source_id and no receipt to find its engine session by.", "/id")
    cart = _cart_for(row, ask)
    taken = _taken_session(session, cart, others, ask, at)
    if taken is not None:
        return taken
    if row is None:
        return New(_opened(ask, ask.terms, session, cart, at))
    # A caller who does not wait uses up nothing of what the schedule still has for this order.
    is_early = row.next_check_at is not None and at.now < row.next_check_at
    mine = _tried_anew(row, ask, ask.terms, session, cart, at, counts=not is_early)
    return Retry(mine, was_refused=row.state is State.REJECTED)


def _known(row: Row, others: Sequence[Row], ask: Ask, at: Moment) -> Decision | None:
    """What the order's own row says; None where a new attempt may be made."""
    match row.state:
        case State.DONE | State.REPAIRED:
            return Replay(row, ask.has_same_bytes(row)) if ask.is_same(row) else Conflict("order_mismatch")
        case State.CANCELLED:
            return Conflict("cancelled")
        case State.CANCELLING:
            return InProgress(row, _left(row, at))
        case State.MANUAL:
            return NeedsOperator(row.reason)
        case State.INTENT | State.UNKNOWN:
            if row.lease_until > at.now:
                return InProgress(row, row.lease_until - at.now)
            if row.sent_at is not None:
                return LookUp(looking(_taken(row, ask.owner, ask.lease_s, at), at, ask.lease_s))
            return None  # `mark_sent` is on disk before the first byte goes out: nothing did, and now nothing can
        case State.RETRYABLE:
            is_free = not any(
                holds_session(other) and (other.session == row.session or cart_of(other) == cart_of(row))
                for other in others
            )
            if is_free and row.order and _may_have_come_late(row, at):
                return LookUp(looking(_taken(row, ask.owner, ask.lease_s, at), at, ask.lease_s))
            return None
        case State.REJECTED:
            return None
        case _:
            assert_never(row.state)


def _may_have_come_late(row: Row, at: Moment) -> bool:
    """Whether a request once went out whose outcome nobody saw, and it has not been looked for just now."""
    return row.sent_at is not None and (row.looked_at is None or at.now - row.looked_at > ABSENCE_FRESH_S)


def _taken_session(session: str, cart: str, others: Sequence[Row], ask: Ask, at: Moment) -> Claim | None:
    """What stands against redeeming a cart in a session; None where both are free."""
    for other in others:
        if other.passed_from == ask.key.order:
            return Conflict("session_of_another_order", other.key.order)
    same = [other for other in others if other.session == session or cart_of(other) == cart]
    for other in sorted(same, key=lambda other: other.held is None):
        if not holds_session(other):
            continue
        if other.state not in REDEEMED:
            return InProgress(other, _left(other, at), other.key.order)
        if other.confirmed_at is None and ask.is_same(other):
            return PassedOn(other, _passed_on(other, ask, at))
        return Conflict("session_of_another_order", other.key.order)
    if any(other.session == session and other.state in (State.REJECTED, State.CANCELLED) for other in same):
        return UsedSession(session)
    return None


def holds_session(row: Row) -> bool:
    """Whether its session is its own and nobody else's. The version before did not write it down."""
    by_state = row.identity_version == 1 and row.state not in (State.REJECTED, State.CANCELLED, State.RETRYABLE)
    return row.held is not None or by_state


def next_session(session: str) -> str:
    """The session after one that is finished: `<id>~2` and so on."""
    base, tilde, number = session.rpartition("~")
    if tilde and number.isascii() and number.isdigit() and len(number) < 6:
        return f"{base}~{int(number) + 1}"
    return f"{session}~2"


def _left(row: Row, at: Moment) -> float:
    return max(row.lease_until, row.next_check_at or 0.0) - at.now


def _opened(ask: Ask, terms: Terms, session: str, cart: str, at: Moment) -> Row:
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
    assert identity is not None, "whoever asks knows the version that they ask with"
    return identity


def _tried_anew(row: Row, ask: Ask, terms: Terms, session: str, cart: str, at: Moment, *, counts: bool) -> Row:
    changed = not ask.is_same(row)
    mine = _taken(row, ask.owner, ask.lease_s, at)
    return _move(
        mine, at, State.INTENT, attempts=row.attempts + counts, attempt=row.attempt + changed, session=session,
        held=session, cart=cart, order=ask.order, digest=ask.digest, identity=_identity(ask, terms),
        identity_version=ask.identity_version, customer=terms.customer, currency=terms.currency, status=None,
        reply=None, notices=None, handle="", unknown_since=None, absent_since=None,
    )  # fmt: skip


def _passed_on(other: Row, ask: Ask, at: Moment) -> Row:
    return _move(
        replace(other, key=ask.key, fence=other.fence + 1, owner=ask.owner), at, other.state, order=ask.order,
        digest=ask.digest, reply=None, notices=notices_of(other), confirmed_at=at.wall, reason="passed_on",
        passed_from=other.key.order,
    )  # fmt: skip


def _taken(row: Row, owner: str, lease_s: float, at: Moment) -> Row:
    return _leased(replace(row, fence=row.fence + 1, owner=owner), at, lease_s)


# -- What follows for the one who holds a row ----------------------------------------------------------------------


def _only(row: Row, *states: State) -> None:
    if row.state not in states:
        raise WrongMove(f"this is for {', '.join(states)}, not for {row.state}")


def _move(row: Row, at: Moment, state: State, **changes: Any) -> Row:
    return replace(row, state=state, version=row.version + 1, updated_at=at.wall, **changes)


def _leased(row: Row, at: Moment, lease_s: float) -> Row:
    return replace(row, lease_until=at.now + lease_s, next_check_at=at.now + lease_s)


def _released(row: Row, next_check_at: float | None) -> Row:
    return replace(row, lease_until=0.0, next_check_at=next_check_at)


def is_nobodys(row: Row) -> bool:
    """Whether the row was let go of: whoever wants to go on has to claim it."""
    return row.state in (State.INTENT, State.UNKNOWN, State.CANCELLING) and row.lease_until == 0


def extended(row: Row, at: Moment, lease_s: float) -> Row:
    _only(row, State.INTENT, State.UNKNOWN)
    return _leased(_move(row, at, row.state), at, lease_s)


def sent(row: Row, at: Moment, lease_s: float) -> Row:
    """A request that may have its effect goes out now."""
    _only(row, State.INTENT)
    return _leased(_move(row, at, State.INTENT, sent_at=at.now), at, lease_s)


def looking(row: Row, at: Moment, lease_s: float) -> Row:
    """What became of the request is unknown, and a look-up starts now."""
    _only(row, State.INTENT, State.UNKNOWN, State.RETRYABLE)
    if row.sent_at is None:
        raise WrongMove("looking for what was never sent")
    since = at.now if row.unknown_since is None or row.state is State.RETRYABLE else row.unknown_since
    held = row.session if row.state is State.RETRYABLE else row.held
    unknown = _move(row, at, State.UNKNOWN, unknown_since=since, looked_at=at.now, checks=row.checks + 1, held=held)
    return _leased(unknown, at, lease_s)


def redeemed(
    row: Row, at: Moment, notices: bytes, handle: str, reason: str, *, confirmed: bool, again_after_s: float = 0
) -> Row:
    """It is redeemed. `notices` as in the row; `confirmed`: a caller waits for the answer.

    `again_after_s`: a request whose outcome was unknown may have been delivered twice, and be carried out once more
    until so long after it was sent.
    """
    if row.state in REDEEMED and row.notices == notices:
        return row  # the write was confirmed too late, and has been tried again
    _only(row, State.INTENT, State.UNKNOWN, State.MANUAL)
    done = _move(
        row, at, State.DONE, notices=notices, handle=handle or row.handle, reason=reason,
        confirmed_at=at.wall if confirmed else None,
    )  # fmt: skip
    if row.state is not State.UNKNOWN or row.sent_at is None or row.looked_at is None:
        return _released(done, None)
    again_at = row.sent_at + again_after_s
    if row.looked_at >= again_at:
        return _released(done, None)
    return _released(replace(done, unknown_since=again_at), again_at)


def seen_again(row: Row, at: Moment, *, repaired: bool) -> Row:
    """It was looked for once more: nothing was found that must not stay, or that has been taken back."""
    _only(row, *REDEEMED)
    seen = _move(row, at, State.REPAIRED, reason="redeemed_twice") if repaired else _move(row, at, row.state)
    return _released(seen, None)


def not_seen_again(row: Row, at: Moment) -> Row:
    """It could not be looked for once more: that is tried again for a day."""
    _only(row, *REDEEMED)
    assert row.unknown_since is not None, "set when it was to be looked for once more"
    times = [row.unknown_since + after for after in SCHEDULE]
    return _released(_move(row, at, row.state), next((moment for moment in times if moment > at.now), None))


def degraded(row: Row, at: Moment, notices: bytes, *, confirmed: bool) -> Row:
    """It is done, and nothing is redeemed: the shopper was told list prices. The session stays unused."""
    _only(row, State.INTENT)
    return replace(redeemed(row, at, notices, "", DEGRADED, confirmed=confirmed), held=None)


DEGRADED = "degraded"


def confirmed(row: Row, at: Moment) -> Row:
    """A caller has been answered."""
    _only(row, *REDEEMED)
    return row if row.confirmed_at is not None else _move(row, at, row.state, confirmed_at=at.wall)


def rejected(row: Row, at: Moment, reason: str) -> Row:
    """It is refused, and nothing of it stands in the engine: when it comes again it is tried anew."""
    if row.state is State.REJECTED:
        return row  # the write was confirmed too late, and has been tried again
    _only(row, State.INTENT, State.UNKNOWN, State.MANUAL)
    return _released(_over(row, at, State.REJECTED, reason, attempt=row.attempt + 1), None)


def _over(row: Row, at: Moment, state: State, reason: str, **changes: Any) -> Row:
    """Nothing of it stands in the engine, and its session is free."""
    return _move(
        row, at, state, reason=reason, held=None, sent_at=None, unknown_since=None, absent_since=None, **changes
    )


def repaired(row: Row, at: Moment, reason: str) -> Row:
    """A second redemption of a redeemed order has been taken back. Its answer stays."""
    _only(row, State.DONE)
    return _move(row, at, State.REPAIRED, reason=reason)


def retryable(row: Row, at: Moment, delay_s: float | None, reason: str, *, answered: bool) -> Row:
    """The engine certainly did not act. It waits for the caller; or, with a delay, is sent again in the background.

    `answered`: the engine said so itself, and the next request is a new attempt.
    """
    _only(row, State.INTENT)
    over = _over(row, at, State.RETRYABLE, reason, attempt=row.attempt + answered)
    return _waits(over, at, delay_s)


def _waits(row: Row, at: Moment, delay_s: float | None) -> Row:
    if delay_s is None:
        return _released(replace(row, held=None), None)
    return _released(replace(row, held=row.session), at.now + delay_s)


def reopened(row: Row, at: Moment) -> Row:
    """A person wants it looked up again; or taken back again, where it was being cancelled."""
    _only(row, State.MANUAL)
    state = State.CANCELLING if row.reason.startswith(CANCEL) else State.UNKNOWN
    return _released(_move(row, at, state, unknown_since=at.now, absent_since=None), at.now)


CANCEL = "cancel_"
"""How the reason begins where a person has to see to a cancel."""


def hurried(row: Row, at: Moment) -> Row:
    """A person wants it looked up, or cancelled, now rather than when it is due."""
    _only(row, State.UNKNOWN, State.CANCELLING)
    return row if row.lease_until > at.now else _move(row, at, row.state, next_check_at=at.now)


def postponed(row: Row, at: Moment, reason: str) -> Row:
    """It cannot be worked on: others come first. After a day a person has to see to it."""
    _only(row, *OPEN)
    since = at.now if row.unknown_since is None else row.unknown_since
    if at.now >= since + SCHEDULE[-1]:
        return _released(_move(row, at, State.MANUAL, reason=reason), None)
    after = next((after for after in SCHEDULE if after >= 30 and since + after > at.now), SCHEDULE[-1])
    return replace(_move(row, at, row.state, unknown_since=since, reason=reason), next_check_at=since + after)


def trimmed(row: Row, at: Moment) -> Row:
    """Without the body, which is personal data. What it takes to answer the same bytes stays."""
    _only(row, *FINISHED, State.RETRYABLE)
    digest = row.digest or (hashlib.sha256(row.order).digest() if row.order else None)
    return replace(row, order=b"", reply=None, notices=notices_of(row), digest=digest, version=row.version + 1)


def notices_of(row: Row) -> bytes | None:
    """What is said beside the order, also of a row of the version before, which stored its whole answer."""
    if row.notices is not None or row.reply is None or row.state not in REDEEMED:
        return row.notices
    if row.reply == b'{"order":' + row.order.strip() + b"}":
        return b"[]"
    order = document.decode(row.reply)["order"]
    for part in (order, *order.get("orders", ())):
        for name in ("promotions", "promotion"):
            if part.get(name):
                return document.encode(part[name]["meta"]["mapper"]["notices"])
    return b"[]"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is known yet; the row is no longer yours. Claim it again after this many seconds."""

    row: Row
    wait_s: float


@dataclass(frozen=True, slots=True)
class Absence:
    """The engine has certainly not redeemed it; the row is no longer yours. Whoever claims it may send it again."""

    row: Row


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A person has to see to it; the row is no longer yours."""

    row: Row


AfterLookUp = Wait | Absence | GiveUp


def after_absence(row: Row, at: Moment, quarantine_s: float, delay_s: float | None) -> AfterLookUp:
    """What follows a look-up that did not find the order. `delay_s` as for `retryable`.

    Only a look-up that *started* after the quarantine tells anything, and only the second of two.
    """
    _only(row, State.UNKNOWN)
    assert row.sent_at is not None, "only what was sent is unknown"
    assert row.looked_at is not None, "a look-up starts with looking()"
    if _exhausted(row, at):
        return _given_up(row, at, "absent")
    if row.looked_at < row.sent_at + quarantine_s:
        return _waiting(row, at, quarantine_s, "absent")
    if row.absent_since is None:
        first = replace(row, absent_since=row.looked_at)
        waiting = _released(_move(first, at, State.UNKNOWN, reason="absent"), row.looked_at + ABSENT_APART_S)
        return Wait(waiting, max(0.0, row.looked_at + ABSENT_APART_S - at.now))
    if row.looked_at < row.absent_since + ABSENT_APART_S:
        return _waiting(row, at, quarantine_s, "absent")
    # `sent_at` stays: should it come again it is looked for once more, and again should we crash before sending it.
    return Absence(_waits(_move(row, at, State.RETRYABLE, reason="absent"), at, delay_s))


def after_failed_look_up(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait | GiveUp:
    """What follows a look-up that could not be made, or whose answer says nothing."""
    _only(row, State.UNKNOWN)
    return _given_up(row, at, reason) if _exhausted(row, at) else _waiting(row, at, quarantine_s, reason)


def _exhausted(row: Row, at: Moment) -> bool:
    assert row.unknown_since is not None, "set on the way to UNKNOWN"
    return at.now >= row.unknown_since + SCHEDULE[-1]


def _given_up(row: Row, at: Moment, reason: str) -> GiveUp:
    return GiveUp(_released(_move(row, at, State.MANUAL, reason=reason), None))


def _waiting(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait:
    check_at = next_check(row, at.now, quarantine_s)
    return Wait(_released(_move(row, at, State.UNKNOWN, reason=reason), check_at), check_at - at.now)


def next_check(row: Row, now: float, quarantine_s: float) -> float:
    """When an order whose outcome is unknown is to be looked up next: by the schedule, and when it becomes telling."""
    assert row.unknown_since is not None
    times = [row.unknown_since + after for after in SCHEDULE]
    if row.sent_at is not None:
        times.append(row.sent_at + quarantine_s)
    if row.absent_since is not None:
        times.append(row.absent_since + ABSENT_APART_S)
    return min((moment for moment in times if moment > now), default=now)


def quarantine_left_s(row: Row, at: Moment, quarantine_s: float) -> float:
    """For how long nothing may be sent again."""
    return 0.0 if row.sent_at is None else max(0.0, row.sent_at + quarantine_s - at.now)


# -- Cancelling ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such order."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nothing of it stands in the engine, and nothing ever will. The row may have to be written."""

    row: Row


@dataclass(frozen=True, slots=True)
class Undo:
    """Yours: take the redemption back in the engine, for good."""

    row: Row
    is_first: bool
    """Whether nobody has tried before."""


CancelDecision = Absent | Cancelled | Undo | InProgress | NeedsOperator


def decide_cancel(row: Row | None, owner: str, lease_s: float, at: Moment) -> CancelDecision:
    """What somebody who wants an order cancelled may do."""
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
            return InProgress(row, _left(row, at))
        case State.CANCELLING:
            if row.lease_until > at.now:
                return InProgress(row, _left(row, at))
            mine = _taken(row, owner, lease_s, at)
            return Undo(_move(mine, at, State.CANCELLING, checks=row.checks + 1), is_first=False)
        case State.DONE | State.REPAIRED:
            if row.reason == DEGRADED:
                return Cancelled(cancelled(row, at))
            mine = _taken(row, owner, lease_s, at)
            mine = _move(mine, at, State.CANCELLING, unknown_since=at.now, checks=row.checks + 1)
            return Undo(mine, is_first=True)
        case _:
            assert_never(row.state)


def cancelled(row: Row, at: Moment) -> Row:
    """Nothing of it stands in the engine."""
    fenced = replace(row, fence=row.fence + 1)  # whoever held it must write nothing more
    return _released(_over(fenced, at, State.CANCELLED, "cancelled"), None)


def not_cancelled(row: Row, at: Moment, reason: str) -> Row:
    """The engine will not take it back: it stays redeemed."""
    _only(row, State.CANCELLING)
    return _released(_move(row, at, State.DONE, unknown_since=None, reason=reason), None)


def after_failed_undo(row: Row, at: Moment, reason: str) -> Wait | GiveUp:
    """What follows an undo whose outcome is unknown: it is made again, for a day."""
    _only(row, State.CANCELLING)
    if _exhausted(row, at):
        return _given_up(row, at, f"{CANCEL}{reason}")
    check_at = next_check(replace(row, sent_at=None), at.now, 0.0)
    return Wait(_released(_move(row, at, State.CANCELLING, reason=reason), check_at), check_at - at.now)


# -- The ledger ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered. `reason` is a short word for people."""

    status: int
    reply: bytes = field(repr=False)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to send one request now. Ask `fresh()` in the last step before its first byte goes out."""

    row: Row
    asked_at: float = field(repr=False)
    local: Callable[[], float] = field(repr=False)

    def fresh(self) -> bool:
        """False where this process was paused since, so that lease and quarantine may mislead: mark it anew."""
        return 0 <= self.local() - self.asked_at < SEND_WITHIN_S


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many rows per state (finished ones where they were counted), and how long ago the oldest open was created.

    Orders that wait for their caller are not counted for the oldest: nobody works on them.
    """

    counts: dict[State, int]
    oldest_s: float
    unconfirmed: int = 0
    """Redeemed, but no caller was ever told."""


def backlog_of(found: Iterable[tuple[str, int, float]], unconfirmed: int, wall: float) -> Backlog:
    """`found`: by state, how many rows there are and when the oldest was created."""
    rows = [(State(state), count, created) for state, count, created in found]
    ages = [wall - created for state, _, created in rows if state is not State.RETRYABLE]
    return Backlog({state: count for state, count, _ in rows}, max([0.0, *ages]), unconfirmed)


Step = Callable[[Row | None, Moment], tuple[T, Row | None]]
"""From the row that is there (None: none is) to a result and the row to write (None, or the same: nothing)."""

ClaimStep = Callable[[Row | None, Sequence[Row], Moment], tuple[T, Row | None]]
"""As `Step`; the second argument are the other rows with a session that the claim has named."""
