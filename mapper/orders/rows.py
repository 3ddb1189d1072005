"""The ledger: what is known of every order that is to be redeemed, so that it is redeemed once.

An engine's answer can get lost, a process can die or be paused at any point, and the same order can come twice at the
same time. So every order has a row, keyed by space, engine and order key, that is on disk before the first byte goes to
the engine. What may be done next depends on that row alone:

    (none)     claim                                            -> INTENT
    INTENT     the engine grants it | refuses for good          -> DONE | REJECTED
    INTENT     the engine certainly did not act                 -> RETRYABLE
    INTENT     time-out, reset, 5xx, crash                      -> UNKNOWN
    RETRYABLE  claimed again                                    -> INTENT
    UNKNOWN    a look-up finds it                               -> DONE (REJECTED where it had to be undone)
    UNKNOWN    two look-ups after the quarantine do not find it -> INTENT
    UNKNOWN    nobody could tell for a day                      -> MANUAL
    MANUAL     somebody settles it, or has it looked up again   -> DONE, REJECTED | UNKNOWN
    DONE       an audit finds it twice and takes one back       -> REPAIRED

Three things keep this true when processes pause and race. A *lease*: while it lasts nobody else touches the order. A
*fence*: a number that grows whenever the order changes hands; what is written under an old one is refused (`Fenced`). A
*quarantine*: after a request whose outcome is unknown nothing is sent again before it is over, since the engine may
still be working on the first.

Everything on this page that decides is a pure function from one row to the next. A `Store` only carries rows: it reads
one, has a function say what follows, and writes that, all or nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar, assert_never

import msgspec

from mapper.domain.checkout import Checkout
from mapper.domain.errors import OutcomePending, Problem, body

T = TypeVar("T")

# When an order whose outcome is unknown is looked up, in seconds since it became unknown. At the last of them a person
# is asked instead.
SCHEDULE = (0, 0.2, 0.5, 1, 2, 5, 15, 30, 60, 300, 1800, 7200, 43_200, 86_400)
# An engine may not show at once what it has just written: absence counts when it was seen twice, this far apart.
ABSENT_APART_S = 1.0
# How long after `mark_sent` was asked for the request may still go out: longer, and the process was paused.
SEND_WITHIN_S = 0.5
# Finished rows: bodies are of no use after a while, but an order may be driven again after months.
TRIM_AFTER_S = 30 * 86_400.0
KEEP_S = 400 * 86_400.0


class State(StrEnum):
    INTENT = "INTENT"
    RETRYABLE = "RETRYABLE"
    UNKNOWN = "UNKNOWN"
    MANUAL = "MANUAL"
    DONE = "DONE"
    REJECTED = "REJECTED"
    REPAIRED = "REPAIRED"


FINAL = frozenset({State.DONE, State.REJECTED, State.REPAIRED})


class LedgerUnavailable(Problem):
    """The ledger cannot be read or written: nothing may be sent to the engine. `reason` tells why, in a word."""

    def __init__(self, reason: str, message: str = "The ledger of consumed orders is not available.") -> None:
        super().__init__(message, reason=f"ledger_{reason}", retry_after=5)


class LedgerTooNew(LedgerUnavailable):
    """A newer version of this program has changed the ledger's schema."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__("too_new", f"The ledger's schema has version {found}; this program knows up to {known}.")


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
    """All that is known of one order. Times are in seconds on the store's clock (`Moment.now`) but for the last two."""

    key: Key
    fingerprint: bytes
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
    looked_at: float | None
    """When the last look-up was about to start."""
    absent_since: float | None
    """When the first look-up started that began after the quarantine and did not find it."""
    look_at: float | None
    """When somebody has to see to it: the lease's end while there is one; None where nobody has to."""
    looks: int
    status: int | None
    """The stored answer's HTTP status."""
    reply: bytes | None = field(repr=False)
    """The stored answer's body; None where there is none (yet), or once trimmed."""
    reason: str
    version: int
    """Grows with every write."""
    created_at: float
    """Unix time, like `updated_at`."""
    updated_at: float


COLUMNS = (
    *("space", "engine", "order_key", "fingerprint", "state", "fence", "attempts", "session", "body", "owner"),
    *("sent_at", "lease_until", "unknown_since", "looked_at", "absent_since", "look_at", "looks"),
    *("status", "reply", "reason", "version", "created_at", "updated_at"),
)


_FIELDS = tuple(each.name for each in fields(Row))


def row_of(values: Sequence[Any]) -> Row:
    """A row from what a database holds, in the order of `COLUMNS`."""
    space, engine, order, fingerprint, state, *rest = values
    return Row(Key(space, engine, order), fingerprint, State(state), *rest)


def values_of(row: Row) -> list[Any]:
    """What a database holds of a row, in the order of `COLUMNS`."""
    key, fingerprint, state, *rest = (getattr(row, name) for name in _FIELDS)
    return [key.space, key.engine, key.order, fingerprint, state.value, *rest]


# -- What a claim may do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody who claims an order brings."""

    key: Key
    fingerprint: bytes
    order: bytes = field(repr=False)
    session: str
    owner: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class New:
    """Yours, never seen before: send it."""

    row: Row


@dataclass(frozen=True, slots=True)
class Again:
    """Yours, and certainly not done by anybody before: send it."""

    row: Row


@dataclass(frozen=True, slots=True)
class LookUp:
    """Yours, but it may have been done: ask the engine, send nothing."""

    row: Row


@dataclass(frozen=True, slots=True)
class Replay:
    """It is finished. `reply` is None where the body has been trimmed."""

    state: State
    status: int
    reply: bytes | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key is known with other content."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else is at it, for this many seconds at the most."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Manual:
    """A person has to see to it."""

    reason: str


Decision = New | Again | LookUp | Replay | Mismatch | Busy | Manual


def decide(row: Row | None, ask: Ask, at: Moment) -> Decision:
    """What the one who claims an order may do. Where the order is now theirs, the decision holds the row to write."""
    if row is None:
        return New(_opened(ask, at))
    if row.fingerprint != ask.fingerprint:
        return Mismatch()
    match row.state:
        case State.DONE | State.REJECTED | State.REPAIRED:
            assert row.status is not None, "a finished row has its answer"
            return Replay(row.state, row.status, row.reply)
        case State.MANUAL:
            return Manual(row.reason)
        case State.RETRYABLE:
            taken = _taken(row, ask, at)
            # A caller who does not wait uses up nothing of what the schedule still has for this order.
            is_early = row.look_at is not None and at.now < row.look_at
            return Again(_move(taken, at, State.INTENT) if is_early else _again(taken, at))
        case State.INTENT | State.UNKNOWN:
            if row.lease_until > at.now:
                return Busy(row.lease_until - at.now)
            if row.sent_at is None:
                # `mark_sent` is on disk before the first byte goes out: nothing did, and now nothing can.
                return Again(_again(_taken(row, ask, at), at))
            return LookUp(looking(_taken(row, ask, at), at, ask.lease_s))
        case _:
            assert_never(row.state)


def _opened(ask: Ask, at: Moment) -> Row:
    end = at.now + ask.lease_s
    return Row(
        key=ask.key, fingerprint=ask.fingerprint, state=State.INTENT, fence=1, attempts=1, session=ask.session,
        order=ask.order, owner=ask.owner, sent_at=None, lease_until=end, unknown_since=None, looked_at=None,
        absent_since=None, look_at=end, looks=0, status=None, reply=None, reason="", version=1,
        created_at=at.wall, updated_at=at.wall,
    )  # fmt: skip


def _taken(row: Row, ask: Ask, at: Moment) -> Row:
    return _leased(replace(row, fence=row.fence + 1, owner=ask.owner), at, ask.lease_s)


# -- What follows for the one who holds a row ----------------------------------------------------------------------


def _only(row: Row, *states: State) -> None:
    if row.state not in states:
        raise WrongMove(f"this is for {', '.join(states)}, not for {row.state}")


def _move(row: Row, at: Moment, state: State, **changes: Any) -> Row:
    return replace(row, state=state, version=row.version + 1, updated_at=at.wall, **changes)


def _again(row: Row, at: Moment) -> Row:
    return _move(row, at, State.INTENT, attempts=row.attempts + 1)


def _leased(row: Row, at: Moment, lease_s: float) -> Row:
    return replace(row, lease_until=at.now + lease_s, look_at=at.now + lease_s)


def _released(row: Row, look_at: float | None) -> Row:
    return replace(row, lease_until=0.0, look_at=look_at)


def _is_nobodys(row: Row) -> bool:
    """Whether the row was let go of: whoever wants to go on has to claim it."""
    return row.state in (State.INTENT, State.UNKNOWN) and row.lease_until == 0


def extended(row: Row, at: Moment, lease_s: float) -> Row:
    _only(row, State.INTENT, State.UNKNOWN)
    return _leased(_move(row, at, row.state), at, lease_s)


def sent(row: Row, at: Moment, lease_s: float) -> Row:
    """A request that may have its effect goes out now."""
    _only(row, State.INTENT)
    return _leased(_move(row, at, State.INTENT, sent_at=at.now), at, lease_s)


def looking(row: Row, at: Moment, lease_s: float) -> Row:
    """What became of the request is unknown, and a look-up starts now."""
    _only(row, State.INTENT, State.UNKNOWN)
    if row.sent_at is None:
        raise WrongMove("looking for what was never sent")
    since = at.now if row.unknown_since is None else row.unknown_since
    return _leased(
        _move(row, at, State.UNKNOWN, unknown_since=since, looked_at=at.now, looks=row.looks + 1), at, lease_s
    )


def settled(row: Row, at: Moment, state: Literal[State.DONE, State.REJECTED], answer: "Answer") -> Row:
    """The outcome is known for good; `answer` is what everybody who asks again will be told."""
    if row.state is state and (row.status, row.reply) == (answer.status, answer.reply):
        return row  # the write was confirmed too late, and has been tried again
    _only(row, State.INTENT, State.UNKNOWN, State.MANUAL)
    return _released(
        _move(row, at, state, status=answer.status, reply=answer.reply, reason=answer.reason), look_at=None
    )


def repaired(row: Row, at: Moment, reason: str) -> Row:
    """A second redemption of a finished order has been taken back. Its answer stays."""
    _only(row, State.DONE)
    return _move(row, at, State.REPAIRED, reason=reason)


def retryable(row: Row, at: Moment, delay_s: float, reason: str) -> Row:
    """The engine certainly did not act on the request; it shall be sent again after `delay_s`."""
    _only(row, State.INTENT)
    return _released(
        _move(row, at, State.RETRYABLE, sent_at=None, unknown_since=None, absent_since=None, reason=reason),
        at.now + delay_s,
    )


def reopened(row: Row, at: Moment) -> Row:
    """A person wants it looked up again."""
    _only(row, State.MANUAL)
    return _released(_move(row, at, State.UNKNOWN, unknown_since=at.now, absent_since=None), at.now)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is known yet; the row is no longer yours. Claim it again after this many seconds."""

    row: Row
    wait_s: float


@dataclass(frozen=True, slots=True)
class Resend:
    """The engine has certainly not done it, and the row is yours: send it again."""

    row: Row


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A person has to see to it; the row is no longer yours."""

    row: Row


AfterLook = Wait | Resend | GiveUp


def after_absence(row: Row, at: Moment, quarantine_s: float, lease_s: float) -> AfterLook:
    """What follows a look-up that did not find the order.

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
    # `sent_at` stays: should we crash before sending, what was sent before is looked for again.
    return Resend(_leased(_again(replace(row, fence=row.fence + 1, absent_since=None), at), at, lease_s))


def after_failed_look(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait | GiveUp:
    """What follows a look-up that could not be made, or whose answer says nothing."""
    _only(row, State.UNKNOWN)
    return _given_up(row, at, reason) if _exhausted(row, at) else _waiting(row, at, quarantine_s, reason)


def _exhausted(row: Row, at: Moment) -> bool:
    assert row.unknown_since is not None, "set on the way to UNKNOWN"
    return at.now >= row.unknown_since + SCHEDULE[-1]


def _given_up(row: Row, at: Moment, reason: str) -> GiveUp:
    return GiveUp(_released(_move(row, at, State.MANUAL, reason=reason), look_at=None))


def _waiting(row: Row, at: Moment, quarantine_s: float, reason: str) -> Wait:
    look_at = next_look(row, at.now, quarantine_s)
    return Wait(_released(_move(row, at, State.UNKNOWN, reason=reason), look_at), look_at - at.now)


def next_look(row: Row, now: float, quarantine_s: float) -> float:
    """When an order whose outcome is unknown is to be looked up next: by the schedule, and when it becomes telling."""
    assert row.unknown_since is not None
    assert row.sent_at is not None
    times = [row.unknown_since + after for after in SCHEDULE] + [row.sent_at + quarantine_s]
    if row.absent_since is not None:
        times.append(row.absent_since + ABSENT_APART_S)
    return min((moment for moment in times if moment > now), default=now)


# -- The ledger ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What is stored as an order's answer. `reason` is a short word for people."""

    status: int
    reply: bytes = field(repr=False)
    reason: str = ""


def refusal(problem: Problem) -> Answer:
    """What is stored for an order that is refused for good."""
    return Answer(problem.status("consume"), body(problem, "consume"), problem.reason)


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
    """What is not finished: how many rows per state, and how long ago (seconds) the oldest was created."""

    counts: dict[State, int]
    oldest_s: float


Step = Callable[[Row | None, Moment], tuple[T, Row | None]]
"""From the row that is there (None: none is) to a result and the row to write (None, or the same: nothing)."""


def fingerprint(key: Key, order: Checkout) -> bytes:
    """What makes two bodies the same order: who it is for and what is bought at which price, however it is spelled."""
    lines = sorted((line.name, line.quantity, line.list_price, line.discount) for line in order.lines)
    given = order.promotions
    content: list[Any] = [
        [1, key.space, key.engine, key.order, order.currency, order.digits],
        [sorted(set(given.coupon_codes)), given.referral_code, given.loyalty_card, sorted(set(given.identifiers))],
        [lines, order.root_discount],
    ]
    return hashlib.sha256(msgspec.json.encode(content)).digest()
