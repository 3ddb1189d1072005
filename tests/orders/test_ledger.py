"""The ledger: its rules as tables, and one suite that both stores pass."""

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
import traceback
import urllib.parse
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from mapper.domain.errors import Forbidden, InvalidRequest
from mapper.orders import postgres as ledger_postgres
from mapper.orders import sqlite as ledger_sqlite
from mapper.orders.ledger import Ledger, open_ledger, system_clock
from mapper.orders.rows import (
    COLUMNS,
    KEEP_S,
    LOOK_UP_TIMES_S,
    SEND_WITHIN_S,
    Absence,
    Absent,
    Answer,
    Ask,
    Backlog,
    Cancelled,
    Conflict,
    Degraded,
    Fenced,
    GiveUp,
    InProgress,
    Key,
    LedgerTooNew,
    LedgerUnavailable,
    LookUp,
    Moment,
    NeedsOperator,
    New,
    PassedOn,
    Replay,
    Retry,
    Row,
    State,
    Terms,
    Undo,
    UsedSession,
    Wait,
    WrongMove,
    after_absence,
    after_failed_look_up,
    after_failed_undo,
    cancelled,
    confirmed,
    decide,
    decide_cancel,
    extended,
    hurried,
    looking,
    next_check,
    next_session,
    not_cancelled,
    not_seen_again,
    postponed,
    redeemed,
    rejected,
    reopened,
    repaired,
    retryable,
    row_of,
    seen_again,
    sent,
    trimmed,
    values_of,
)
from tests.orders import postgres
from tests.orders.ledgers import BODY, KEY, NOTICES, PRINT, STORES, Home, ask, claim, claimed, done, shown

NOW = 5_000.0
MONTH_S = 30 * 86_400
AT = Moment(NOW, 1_700_000_000)
MINE = Ask(**ask(), owner="me", lease_s=10)
OTHER = Ask(**ask(content=b"\x02" * 32, body=b"other bytes"), owner="me", lease_s=10)


@pytest.fixture(params=STORES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(request.param, tmp_path)


@pytest.fixture
def sqlite_home(tmp_path: Path) -> Home:
    return Home("sqlite", tmp_path)


@pytest.fixture
def postgres_home(tmp_path: Path) -> Home:
    return Home("postgres", tmp_path)


# -- The rules -----------------------------------------------------------------------------------------------------


def row(state: State, *, leased: bool = False, was_sent: bool = True, **changes: Any) -> Row:
    """A valid row in that state."""
    end = NOW + 5 if leased else NOW
    fresh = decide(None, (), MINE, Moment(NOW - 100, AT.wall - 100))
    assert isinstance(fresh, New)
    looked = NOW - 80 if state in (State.UNKNOWN, State.MANUAL, State.CANCELLING) else None
    worked_on = state in (State.INTENT, State.UNKNOWN, State.CANCELLING)
    told = state in (State.DONE, State.REPAIRED, State.CANCELLING)
    made = replace(
        fresh.row,
        state=state,
        sent_at=NOW - 90 if was_sent else None,
        lease_until=end if worked_on else 0.0,
        next_check_at=end if worked_on else None,
        unknown_since=looked,
        looked_at=looked,
        held=None if state in (State.REJECTED, State.RETRYABLE, State.CANCELLED) else fresh.row.session,
        notices=NOTICES if told else None,
        confirmed_at=AT.wall if told else None,
    )
    return replace(made, **changes)


LATE: dict[str, Any] = {"sent_at": NOW - 200, "looked_at": NOW - 100}
DECISIONS: list[tuple[Row | None, type, type]] = [
    # The stored row; what a claim of the same order gets, and one of another order with its id.
    (None, New, New),
    (row(State.INTENT, leased=True), InProgress, InProgress),
    (row(State.INTENT, leased=True, was_sent=False), InProgress, InProgress),
    (row(State.INTENT), LookUp, LookUp),
    (row(State.INTENT, was_sent=False), Retry, Retry),
    (row(State.UNKNOWN, leased=True), InProgress, InProgress),
    (row(State.UNKNOWN), LookUp, LookUp),
    (row(State.RETRYABLE, was_sent=False), Retry, Retry),
    (row(State.RETRYABLE, **LATE), LookUp, LookUp),
    (row(State.RETRYABLE, sent_at=NOW - 200, looked_at=NOW - 1), Retry, Retry),
    (row(State.RETRYABLE, order=b"", **LATE), Retry, Retry),
    (row(State.MANUAL), NeedsOperator, NeedsOperator),
    (row(State.DONE), Replay, Conflict),
    (row(State.REJECTED, was_sent=False), Retry, Retry),
    (row(State.REPAIRED), Replay, Conflict),
    (row(State.CANCELLING, leased=True), InProgress, InProgress),
    (row(State.CANCELLING), InProgress, InProgress),
    (row(State.CANCELLED, was_sent=False), Conflict, Conflict),
]


def test_decision_table_covers_every_state() -> None:
    assert {found.state for found, _, _ in DECISIONS if found} == set(State)


@pytest.mark.parametrize(("found", "same", "other"), DECISIONS)
def test_claim_decision_follows_from_row(found: Row | None, same: type, other: type) -> None:
    assert type(decide(found, (), OTHER, AT)) is other
    decision = decide(found, (), MINE, AT)
    assert type(decision) is same
    match decision:
        case New(mine):
            assert (mine.state, mine.fence, mine.attempts, mine.attempt, mine.sent_at) == (State.INTENT, 1, 1, 1, None)
            assert (mine.key, mine.identity, mine.order, mine.session) == (KEY, PRINT, BODY, "session of order-1")
            assert mine.held == mine.session
        case Retry(mine, was_refused):
            assert found is not None
            assert was_refused is (found.state is State.REJECTED)
            assert (mine.state, mine.fence, mine.attempts) == (State.INTENT, found.fence + 1, found.attempts + 1)
            assert (mine.held, mine.attempt, mine.order) == (mine.session, found.attempt, BODY)
        case LookUp(mine):
            assert found is not None
            assert (mine.state, mine.fence, mine.attempts) == (State.UNKNOWN, found.fence + 1, found.attempts)
            assert (mine.looked_at, mine.checks, mine.held) == (NOW, found.checks + 1, mine.session)
            assert mine.sent_at == found.sent_at
        case Replay(told, same_bytes):
            assert (told, same_bytes) == (found, True)
        case InProgress(held, _, holder):
            assert (held, holder) == (found, "")
    if isinstance(decision, New | Retry | LookUp):
        end = NOW + 10
        assert (decision.row.lease_until, decision.row.next_check_at, decision.row.owner) == (end, end, "me")


def test_retry_with_other_content_is_new_attempt() -> None:
    before = row(State.REJECTED, was_sent=False)
    retry = decide(before, (), OTHER, AT)
    assert isinstance(retry, Retry)
    assert (retry.row.attempt, retry.row.order) == (before.attempt + 1, b"other bytes")
    assert (retry.row.identity, retry.row.digest) == (b"\x02" * 32, OTHER.digest)


@pytest.mark.parametrize("found", [None, row(State.REJECTED, was_sent=False), row(State.RETRYABLE, was_sent=False)])
def test_degraded_order_is_done_with_its_claim(found: Row | None) -> None:
    decision = decide(found, (), Ask(**ask(degraded=True), owner="me", lease_s=10), AT)
    assert isinstance(decision, Degraded)
    mine = decision.row
    assert (mine.state, mine.reason, mine.notices, mine.held) == (State.DONE, "degraded", b"[]", None)
    assert (mine.lease_until, mine.next_check_at, mine.confirmed_at) == (0, None, None)


def test_forbidden_terms_block_only_new_attempts() -> None:
    forged = replace(MINE, terms=Forbidden("forged", reason="forged_receipt"))
    for found, same, _ in DECISIONS:
        if same in (New, Retry):
            with pytest.raises(Forbidden):
                decide(found, (), forged, AT)
        else:
            assert type(decide(found, (), forged, AT)) is same


@pytest.mark.parametrize(
    ("stored", "brought", "same"),
    [
        ({}, {}, True),
        ({"identity": b"made by other settings"}, {}, True),
        ({"digest": None, "identity": b"made by other settings"}, {}, True),
        ({"digest": None, "order": b"", "identity": b"made by other settings"}, {}, False),
        ({}, {"order": b"other bytes"}, True),
        ({"identity_version": 1}, {"order": b"other bytes"}, True),
        ({"identity_version": 99}, {"order": b"other bytes"}, False),
        ({}, {"order": b"other bytes", "identity": lambda *_: b"another"}, False),
    ],
)
def test_order_is_same_if_bytes_or_identity_match(stored: dict[str, Any], brought: dict[str, Any], same: bool) -> None:
    known = {"identity": lambda version, *_: PRINT if version < 99 else None}
    decision = decide(row(State.DONE, **stored), (), replace(MINE, **{**known, **brought}), AT)
    assert type(decision) is (Replay if same else Conflict)


# -- One session belongs to one order ------------------------------------------------------------------------------


def neighbour(state: State, **changes: Any) -> Row:
    """The row of another order that has or had the requested session."""
    return row(state, **{"key": Key("space", "engine", "order-0"), **changes})


UNCONFIRMED = {"confirmed_at": None}
NEIGHBOURS: list[tuple[Row, type]] = [
    (neighbour(State.INTENT, leased=True), InProgress),
    (neighbour(State.INTENT, was_sent=False), InProgress),
    (neighbour(State.UNKNOWN), InProgress),
    (neighbour(State.MANUAL), InProgress),
    (neighbour(State.CANCELLING), InProgress),
    (neighbour(State.DONE), Conflict),
    (neighbour(State.DONE, **UNCONFIRMED), PassedOn),
    (neighbour(State.DONE, identity=b"another", digest=b"another", **UNCONFIRMED), Conflict),
    (neighbour(State.REPAIRED), Conflict),
    (neighbour(State.REPAIRED, **UNCONFIRMED), PassedOn),
    (neighbour(State.REJECTED), UsedSession),
    (neighbour(State.CANCELLED), UsedSession),
    (neighbour(State.RETRYABLE), New),
    (neighbour(State.RETRYABLE, held="session of order-1"), InProgress),
    (neighbour(State.DONE, held=None, reason="degraded"), New),
    (neighbour(State.DONE, session="another", held="another", cart="another"), New),
    # Redeemed in the next session, since this one had been used.
    (neighbour(State.DONE, session="next", held="next"), Conflict),
    (neighbour(State.DONE, session="next", held="next", **UNCONFIRMED), PassedOn),
    (neighbour(State.UNKNOWN, session="next", held="next"), InProgress),
    (neighbour(State.REJECTED, session="next"), New),
    (neighbour(State.CANCELLED, session="next"), New),
    # This order's redemption has moved to that one.
    (neighbour(State.DONE, passed_from="order-1"), Conflict),
    (neighbour(State.CANCELLED, passed_from="order-1"), Conflict),
    # A row written by a process of the previous version.
    (neighbour(State.DONE, held=None, identity_version=1), Conflict),
    (neighbour(State.REJECTED, identity_version=1), UsedSession),
]


@pytest.mark.parametrize(("other", "expected"), NEIGHBOURS)
def test_claim_decision_when_another_order_has_session(other: Row, expected: type) -> None:
    decision = decide(None, [other], MINE, AT)
    assert type(decision) is expected
    match decision:
        case Conflict(reason, holder):
            assert (reason, holder) == ("session_of_another_order", "order-0")
        case InProgress(_, _, holder):
            assert holder == "order-0"
        case PassedOn(previous, own, passed):
            assert (previous, own) == (other, None)
            assert (passed.key, passed.held, passed.notices) == (KEY, other.held, NOTICES)
            assert (passed.cart, passed.passed_from) == (other.cart, "order-0")
            assert (passed.fence, passed.order, passed.confirmed_at) == (other.fence + 1, BODY, AT.wall)


@pytest.mark.parametrize(
    ("session", "cart", "expected"),
    [
        ("session of order-1", "", Conflict),
        ("elsewhere", "session of order-1", Conflict),
        ("session of order-1", "another", Conflict),
        ("elsewhere", "another", LookUp),
    ],
)
def test_waiting_order_conflicts_if_session_or_cart_was_taken(session: str, cart: str, expected: type) -> None:
    other = replace(neighbour(State.DONE), session=session, held=session, cart=cart)
    assert type(decide(row(State.RETRYABLE, **LATE), [other], MINE, AT)) is expected


@pytest.mark.parametrize(
    ("session", "following"),
    [
        ("c", "c~2"), ("c~2", "c~3"), ("c~9", "c~10"), ("c~x", "c~x~2"), ("c~٣", "c~٣~2"), ("c~99999", "c~100000"),
        ("c~100000", "c~100000~2"), ("c~b~2", "c~b~3"),
    ],
)  # fmt: skip
def test_next_session_increments_suffix(session: str, following: str) -> None:
    assert next_session(session) == following


RECEIPT = Terms("of the receipt", from_receipt=True)
IDS = Terms("of the body", from_receipt=False)


@pytest.mark.parametrize(
    ("found", "terms", "session"),
    [
        (None, RECEIPT, "of the receipt"),
        (None, IDS, "of the body"),
        (row(State.REJECTED, was_sent=False), RECEIPT, "of the receipt"),
        (row(State.REJECTED, was_sent=False), IDS, "session of order-1"),
        (row(State.REJECTED, was_sent=False), Terms("", from_receipt=False), "session of order-1"),
        (row(State.RETRYABLE, was_sent=False), RECEIPT, "of the receipt"),
        (row(State.RETRYABLE, was_sent=False), IDS, "session of order-1"),
        (row(State.UNKNOWN), RECEIPT, "session of order-1"),
        (row(State.INTENT), RECEIPT, "session of order-1"),
    ],
)
def test_receipt_session_replaces_rows_session_unless_order_was_sent(
    found: Row | None, terms: Terms, session: str
) -> None:
    decision = decide(found, (), replace(MINE, terms=terms), AT)
    assert isinstance(decision, New | Retry | LookUp)
    assert decision.row.session == session


def test_order_without_session_is_invalid() -> None:
    with pytest.raises(InvalidRequest):
        decide(None, (), replace(MINE, terms=Terms("", from_receipt=False)), AT)


def test_lease_ends_exactly_at_its_time() -> None:
    live = row(State.INTENT, leased=True)
    cases = [(live.lease_until - 0.001, InProgress), (live.lease_until, LookUp), (live.lease_until + 9, LookUp)]
    for now, expected in cases:
        assert type(decide(live, (), MINE, Moment(now, now))) is expected


def to_done(found: Row) -> Row:
    return redeemed(found, AT, NOTICES, "handle", "redeemed", confirmed=True)


MOVES: dict[str, tuple[Callable[[Row], Row], dict[State, State]]] = {
    "sent": (lambda found: sent(found, AT, 10), {State.INTENT: State.INTENT}),
    "extended": (
        lambda found: extended(found, AT, 10),
        {State.INTENT: State.INTENT, State.UNKNOWN: State.UNKNOWN},
    ),
    "looking": (
        lambda found: looking(found, AT, 10),
        {State.INTENT: State.UNKNOWN, State.UNKNOWN: State.UNKNOWN, State.RETRYABLE: State.UNKNOWN},
    ),
    "redeemed": (to_done, {State.INTENT: State.DONE, State.UNKNOWN: State.DONE, State.MANUAL: State.DONE}),
    "confirmed": (
        lambda found: confirmed(replace(found, confirmed_at=None), AT),
        {State.DONE: State.DONE, State.REPAIRED: State.REPAIRED},
    ),
    "rejected": (
        lambda found: rejected(found, AT, "used_up"),
        {State.INTENT: State.REJECTED, State.UNKNOWN: State.REJECTED, State.MANUAL: State.REJECTED},
    ),
    "repaired": (lambda found: repaired(found, AT, "twice"), {State.DONE: State.REPAIRED}),
    "retryable": (
        lambda found: retryable(found, AT, None, "refused", answered=False),
        {State.INTENT: State.RETRYABLE},
    ),
    "reopened": (lambda found: reopened(found, AT), {State.MANUAL: State.UNKNOWN}),
    "absent": (lambda found: after_absence(found, AT, 60, None).row, {State.UNKNOWN: State.UNKNOWN}),
    "failed look-up": (
        lambda found: after_failed_look_up(found, AT, 60, "broken").row,
        {State.UNKNOWN: State.UNKNOWN},
    ),
    "not cancelled": (lambda found: not_cancelled(found, AT, "no"), {State.CANCELLING: State.DONE}),
    "failed undo": (lambda found: after_failed_undo(found, AT, "timeout").row, {State.CANCELLING: State.CANCELLING}),
}
ANSWERS = (State.DONE, State.REPAIRED, State.REJECTED)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", MOVES)
def test_row_allows_only_moves_in_table(name: str, state: State) -> None:
    move, allowed = MOVES[name]
    before = row(state, leased=True)
    if state not in allowed and (name, state) not in ALREADY:
        with pytest.raises(WrongMove):
            move(before)
        return
    if (name, state) in ALREADY:
        assert move(before) is before
        return
    after = move(before)
    assert after.state is allowed[state]
    assert (after.version, after.updated_at) == (before.version + 1, AT.wall)
    assert (after.fence, after.key, after.identity, after.order) == (
        before.fence, before.key, before.identity, before.order,
    )  # fmt: skip
    if after.state in ANSWERS:
        assert (after.next_check_at, after.lease_until) == (None, 0)
    assert (after.held is None) is (after.state in (State.REJECTED, State.RETRYABLE))


ALREADY = {
    ("redeemed", State.DONE), ("redeemed", State.REPAIRED), ("rejected", State.REJECTED),
}  # fmt: skip
"""Moves repeated after a lost confirmation."""


LEASED: dict[str, Any] = {"lease_until": NOW + 10, "next_check_at": NOW + 10}
LEFT: dict[str, Any] = {"lease_until": 0.0, "next_check_at": None}
NOT_REDEEMED: dict[str, Any] = {"sent_at": None, "unknown_since": None, "held": None}
CONFIRMED: dict[str, Any] = {"notices": NOTICES, "confirmed_at": AT.wall}
LOOKED: dict[str, Any] = {"looked_at": NOW, "checks": 1, **LEASED}


@pytest.mark.parametrize(
    ("before", "move", "changes"),
    [
        (row(State.INTENT, leased=True), "sent", {"sent_at": NOW, **LEASED}),
        (row(State.UNKNOWN, leased=True), "extended", LEASED),
        (row(State.INTENT, leased=True), "looking", {"state": State.UNKNOWN, "unknown_since": NOW, **LOOKED}),
        (row(State.UNKNOWN, leased=True), "looking", LOOKED),
        (
            row(State.RETRYABLE, unknown_since=NOW - 9),
            "looking",
            {"state": State.UNKNOWN, "unknown_since": NOW, "held": "session of order-1", **LOOKED},
        ),
        (
            row(State.UNKNOWN, leased=True),
            "redeemed",
            {"state": State.DONE, "reason": "redeemed", "handle": "handle", **CONFIRMED, **LEFT},
        ),
        (
            row(State.UNKNOWN, leased=True, absent_since=1.0),
            "rejected",
            {"state": State.REJECTED, "reason": "used_up", "attempt": 2, "absent_since": None, **NOT_REDEEMED, **LEFT},
        ),
        (row(State.DONE), "repaired", {"state": State.REPAIRED, "reason": "twice"}),
        (
            row(State.INTENT, leased=True, unknown_since=1.0),
            "retryable",
            {"state": State.RETRYABLE, "reason": "refused", **NOT_REDEEMED, **LEFT},
        ),
        (
            row(State.MANUAL, absent_since=1.0),
            "reopened",
            {"state": State.UNKNOWN, "unknown_since": NOW, "absent_since": None, "next_check_at": NOW},
        ),
        (
            row(State.MANUAL, reason="cancel_timeout"),
            "reopened",
            {"state": State.CANCELLING, "unknown_since": NOW, "next_check_at": NOW},
        ),
        (row(State.UNKNOWN, leased=True), "absent", {"reason": "absent", **LEFT, "next_check_at": NOW + 220}),
        (row(State.UNKNOWN, leased=True), "failed look-up", {"reason": "broken", **LEFT, "next_check_at": NOW + 220}),
        (
            row(State.CANCELLING, leased=True),
            "not cancelled",
            {"state": State.DONE, "reason": "no", "unknown_since": None, **LEFT},
        ),
        (
            row(State.CANCELLING, leased=True, sent_at=NOW - 20, looked_at=NOW - 19),
            "not cancelled, may double",
            {"state": State.DONE, "reason": "no", "unknown_since": NOW + 40, **LEFT, "next_check_at": NOW + 40},
        ),
        (
            row(State.CANCELLING, leased=True),
            "failed undo",
            {"reason": "timeout", **LEFT, "next_check_at": NOW + 220},
        ),
        (row(State.DONE, next_check_at=NOW), "seen again", {"next_check_at": None}),
        (
            row(State.DONE, next_check_at=NOW),
            "seen twice",
            {"state": State.REPAIRED, "reason": "redeemed_twice", "next_check_at": None},
        ),
        (row(State.DONE, unknown_since=NOW - 40, next_check_at=NOW), "not seen again", {"next_check_at": NOW + 20}),
        (row(State.UNKNOWN, next_check_at=NOW + 90), "hurried", {"next_check_at": NOW}),
        (row(State.UNKNOWN, unknown_since=NOW - 30), "postponed", {"reason": "internal", "next_check_at": NOW + 30}),
        (
            row(State.INTENT, next_check_at=NOW),
            "postponed",
            {"reason": "internal", "unknown_since": NOW, "next_check_at": NOW + 30},
        ),
        (
            row(State.INTENT, lease_until=NOW + 40),
            "postponed",
            {"reason": "internal", "unknown_since": NOW, "next_check_at": NOW + 40},
        ),
        (
            row(State.CANCELLING, unknown_since=NOW - 90_000),
            "postponed",
            {"state": State.MANUAL, "reason": "cancel_internal", **LEFT},
        ),
        (
            row(State.CANCELLING, leased=True),
            "cancelled",
            {"state": State.CANCELLED, "reason": "cancelled", "fence": 2, **NOT_REDEEMED, **LEFT},
        ),
        (
            row(State.CANCELLING, leased=True, sent_at=NOW - 20, looked_at=NOW - 19),
            "cancelled, may double",
            {"state": State.CANCELLED, "reason": "cancelled", "fence": 2, **NOT_REDEEMED, **LEFT}
            | {"unknown_since": NOW + 40, "next_check_at": NOW + 40},
        ),
        (
            row(State.CANCELLING, leased=True, sent_at=NOW - 60, looked_at=NOW - 59),
            "cancelled, may double",
            {"state": State.CANCELLED, "reason": "cancelled", "fence": 2, **NOT_REDEEMED, **LEFT},
        ),
        (row(State.CANCELLED, unknown_since=NOW, next_check_at=NOW), "seen again", {"next_check_at": None}),
        (row(State.CANCELLED, unknown_since=NOW, next_check_at=NOW), "not seen again", {"next_check_at": NOW + 0.2}),
    ],
)
def test_move_changes_only_listed_fields(before: Row, move: str, changes: dict[str, Any]) -> None:
    others: dict[str, Callable[[Row], Row]] = {
        "seen again": lambda found: seen_again(found, AT, repaired=False),
        "seen twice": lambda found: seen_again(found, AT, repaired=True),
        "not seen again": lambda found: not_seen_again(found, AT),
        "hurried": lambda found: hurried(found, AT),
        "postponed": lambda found: postponed(found, AT, "internal"),
        "cancelled": lambda found: cancelled(found, AT),
        "cancelled, may double": lambda found: cancelled(found, AT, again_after_s=60),
        "not cancelled, may double": lambda found: not_cancelled(found, AT, "no", again_after_s=60),
    }
    after = (others[move] if move in others else MOVES[move][0])(before)
    assert after == replace(before, version=2, updated_at=AT.wall, **changes)


@pytest.mark.parametrize("answered", [True, False])
def test_answer_or_refusal_ends_attempt(answered: bool) -> None:
    before = row(State.INTENT, leased=True)
    assert retryable(before, AT, None, "x", answered=answered).attempt == before.attempt + answered
    assert rejected(before, AT, "x").attempt == before.attempt + 1


@pytest.mark.parametrize(("answered", "since"), [(True, None), (False, NOW - 200)])
def test_earlier_unanswered_request_is_remembered(answered: bool, since: float | None) -> None:
    after = retryable(row(State.INTENT, leased=True), AT, None, "x", answered=answered, unanswered_since=NOW - 200)
    assert after.sent_at == since


def test_only_scheduled_retry_keeps_session() -> None:
    before = row(State.INTENT, leased=True)
    later = retryable(before, AT, 7, "x", answered=False)
    assert (later.held, later.next_check_at) == (before.session, NOW + 7)
    waits = retryable(before, AT, None, "x", answered=False)
    assert (waits.held, waits.next_check_at) == (None, None)


def test_repaired_order_keeps_answer() -> None:
    after = repaired(row(State.DONE), AT, "twice")
    assert (after.notices, after.confirmed_at, after.reason) == (NOTICES, AT.wall, "twice")


def test_unsent_order_cannot_be_looked_up() -> None:
    with pytest.raises(WrongMove):
        looking(row(State.INTENT, leased=True, was_sent=False), AT, 10)


def test_refusal_clears_sent_and_unknown_times() -> None:
    before = replace(row(State.INTENT, leased=True), unknown_since=NOW - 70, absent_since=NOW - 5)
    for after in (retryable(before, AT, 3, "refused", answered=True), rejected(before, AT, "refused")):
        assert (after.sent_at, after.unknown_since, after.absent_since) == (None, None, None)


def test_retry_clears_unknown_time_but_keeps_sent_time() -> None:
    before = row(State.RETRYABLE, sent_at=NOW - 200, looked_at=NOW - 1, unknown_since=NOW - 150, absent_since=NOW - 90)
    retry = decide(before, (), MINE, AT)
    assert isinstance(retry, Retry)
    # If it crashes before it sends, the earlier request is looked up again.
    assert (retry.row.sent_at, retry.row.unknown_since, retry.row.absent_since) == (NOW - 200, None, None)


def absent(*, looked: float, absent_since: float | None = None, age: float = 65.0) -> Row:
    """Sent 70 s ago, unknown for `age`; the last look-up started `looked` seconds after it was sent."""
    return replace(
        row(State.UNKNOWN, leased=True),
        sent_at=NOW - 70,
        unknown_since=NOW - age,
        looked_at=NOW - 70 + looked,
        absent_since=None if absent_since is None else NOW - 70 + absent_since,
    )


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        # A look-up that started within the quarantine proves nothing.
        (absent(looked=59.99), Wait),
        (absent(looked=59.99, absent_since=60), Wait),
        # After it, the first absence is a warning; the second counts if it started late enough.
        (absent(looked=60), Wait),
        (absent(looked=60.5, absent_since=60), Wait),
        (absent(looked=61, absent_since=60), Absence),
        (absent(looked=70, absent_since=60), Absence),
        # After a day, a person decides.
        (absent(looked=61, absent_since=60, age=86_399), Absence),
        (absent(looked=61, absent_since=60, age=86_400), GiveUp),
        (absent(looked=10, age=86_400), GiveUp),
    ],
)
def test_absence_must_be_seen_twice_after_quarantine(before: Row, expected: type) -> None:
    after = after_absence(before, AT, 60, None)
    assert type(after) is expected
    match after:
        case Wait(waiting, wait_s):
            assert (waiting.state, waiting.fence, waiting.lease_until) == (State.UNKNOWN, before.fence, 0)
            assert waiting.next_check_at is not None
            assert wait_s == max(0, waiting.next_check_at - NOW)
        case Absence(left):
            assert (left.state, left.fence, left.attempt) == (State.RETRYABLE, before.fence, before.attempt)
            assert (left.held, left.next_check_at, left.sent_at) == (None, None, before.sent_at)
        case GiveUp(left):
            assert (left.state, left.next_check_at, left.lease_until) == (State.MANUAL, None, 0)


def test_first_absence_after_quarantine_is_remembered() -> None:
    first = after_absence(absent(looked=65), AT, 60, None)
    assert first.row.absent_since == NOW - 5
    within = after_absence(absent(looked=5), AT, 60, None)
    assert within.row.absent_since is None


@pytest.mark.parametrize(("age", "expected"), [(10, Wait), (86_399, Wait), (86_400, GiveUp)])
def test_failed_look_up_is_retried_for_a_day(age: float, expected: type) -> None:
    after = after_failed_look_up(absent(looked=65, age=age), AT, 60, "broken")
    assert type(after) is expected
    assert (after.row.reason, after.row.absent_since) == ("broken", None)


def test_look_ups_follow_schedule_and_end_of_quarantine() -> None:
    base = replace(row(State.UNKNOWN), sent_at=0.0, unknown_since=1.0)
    times, now = [], 1.0
    while now < 1 + LOOK_UP_TIMES_S[-1]:
        now = next_check(base, now, 60)
        times.append(round(now - 1, 3))
    assert times == [0.2, 0.5, 1, 2, 5, 15, 30, 59, 60, 300, 1800, 7200, 43_200, 86_400]
    seen = replace(base, absent_since=70.0)
    assert next_check(seen, 70.2, 60) == 71


def test_new_attempt_clears_fields_of_last_attempt() -> None:
    stale = row(
        State.REJECTED, was_sent=False, status=500, reply=b"{}", notices=NOTICES, handle="r_1", unknown_since=1.0,
        absent_since=2.0,
    )  # fmt: skip
    retry = decide(stale, (), replace(MINE, identity_version=7), AT)
    assert isinstance(retry, Retry)
    mine = retry.row
    assert mine.identity_version == 7
    assert (mine.status, mine.reply, mine.notices, mine.handle) == (None, None, None, "")
    assert (mine.unknown_since, mine.absent_since) == (None, None)


def test_reopened_order_is_looked_up_for_another_day() -> None:
    again = reopened(row(State.MANUAL, unknown_since=NOW - 90_000), AT)
    assert (again.state, again.unknown_since, again.next_check_at) == (State.UNKNOWN, NOW, NOW)


def test_postponed_order_is_due_after_30_seconds() -> None:
    assert postponed(row(State.UNKNOWN, unknown_since=None), AT, "internal").next_check_at == NOW + 30
    assert postponed(row(State.UNKNOWN, unknown_since=NOW - 30), AT, "internal").next_check_at == NOW + 30


def test_failed_undo_returns_wait_until_next_undo() -> None:
    after = after_failed_undo(row(State.CANCELLING, unknown_since=NOW - 3), AT, "timeout")
    assert isinstance(after, Wait)
    assert (after.wait_s, after.row.next_check_at) == (2, NOW + 2)


def test_row_survives_round_trip_through_columns() -> None:
    for found, _, _ in DECISIONS:
        if found:
            assert len(values_of(found)) == len(COLUMNS)
            assert row_of(values_of(found)) == found


def test_repr_hides_bodies() -> None:
    secret = b"jane@shop.test"
    full = replace(row(State.DONE), order=secret, reply=secret)
    for thing in (full, replace(MINE, order=secret), Answer(200, secret), New(full), replace(full, notices=secret)):
        assert "jane" not in repr(thing)


# -- Cancelling ----------------------------------------------------------------------------------------------------

CANCELS: list[tuple[Row | None, type]] = [
    (None, Absent),
    (row(State.INTENT, leased=True), InProgress),
    (row(State.INTENT), InProgress),
    (row(State.INTENT, leased=True, was_sent=False), InProgress),
    (row(State.INTENT, was_sent=False), Cancelled),
    (row(State.UNKNOWN), InProgress),
    (row(State.MANUAL), NeedsOperator),
    (row(State.RETRYABLE, was_sent=False), Cancelled),
    (row(State.RETRYABLE, **LATE), Cancelled),
    (row(State.REJECTED, was_sent=False), Cancelled),
    (row(State.DONE), Undo),
    (row(State.REPAIRED), Undo),
    (row(State.DONE, held=None, reason="degraded"), Cancelled),
    (row(State.CANCELLING, leased=True), InProgress),
    (row(State.CANCELLING), Undo),
    (row(State.CANCELLED, was_sent=False), Cancelled),
]


@pytest.mark.parametrize(("found", "expected"), CANCELS)
def test_cancel_decision_follows_from_row(found: Row | None, expected: type) -> None:
    decision = decide_cancel(found, "me", 10, AT)
    assert type(decision) is expected
    match decision:
        case Cancelled(after):
            assert found is not None
            assert (after.state, after.held, after.next_check_at) == (State.CANCELLED, None, None)
            assert after is found if found.state is State.CANCELLED else after.fence > found.fence
        case Undo(mine, is_first):
            assert found is not None
            assert (mine.state, mine.lease_until, mine.fence) == (State.CANCELLING, NOW + 10, found.fence + 1)
            assert (mine.held, is_first) == (found.held, found.state is not State.CANCELLING)
            assert mine.checks == found.checks + 1
        case InProgress(held, left_s):
            assert (held, left_s) == (found, held.lease_until - NOW)


@pytest.mark.parametrize(("age", "state"), [(86_399, State.UNKNOWN), (86_400, State.MANUAL)])
def test_row_postponed_for_a_day_becomes_manual(age: float, state: State) -> None:
    assert postponed(row(State.UNKNOWN, unknown_since=NOW - age), AT, "unreadable").state is state


def test_confirmation_keeps_first_time() -> None:
    told = row(State.DONE)
    assert confirmed(told, AT) is told
    assert confirmed(replace(told, confirmed_at=None), AT).confirmed_at == AT.wall


def test_erasing_body_increments_version() -> None:
    found = row(State.DONE)
    erased = trimmed(found, AT)
    assert (erased.order, erased.digest, erased.version) == (b"", found.digest, found.version + 1)


@pytest.mark.parametrize("leased", [True, False])
def test_hurry_does_not_break_lease(leased: bool) -> None:
    found = row(State.UNKNOWN, leased=leased, lease_until=NOW + 5 if leased else 0.0, next_check_at=NOW + 300)
    hurry = hurried(found, AT)
    assert (hurry is found) is leased
    assert leased or (hurry.next_check_at, hurry.updated_at, hurry.version) == (NOW, AT.wall, found.version + 1)


@pytest.mark.parametrize(("age", "expected"), [(1, Wait), (86_399, Wait), (86_400, GiveUp)])
def test_failed_undo_is_retried_for_a_day(age: float, expected: type) -> None:
    after = after_failed_undo(row(State.CANCELLING, leased=True, unknown_since=NOW - age), AT, "timeout")
    assert type(after) is expected
    assert after.row.reason == ("timeout" if expected is Wait else "cancel_timeout")


@pytest.mark.parametrize("state", State)
def test_only_finished_or_waiting_orders_can_be_erased(state: State) -> None:
    found = row(state)
    if state in (State.INTENT, State.UNKNOWN, State.MANUAL, State.CANCELLING):
        with pytest.raises(WrongMove):
            trimmed(found, AT)
    else:
        after = trimmed(found, AT)
        assert (after.order, after.digest, after.notices) == (b"", found.digest, found.notices)


def test_order_that_is_redeemed_later_cannot_be_erased() -> None:
    with pytest.raises(WrongMove):
        trimmed(row(State.RETRYABLE, next_check_at=NOW + 60), AT)


@pytest.mark.parametrize(
    ("order", "reply", "notices"),
    [
        (b'{"a": 1}\n', b'{"order":{"a": 1}}', b"[]"),
        (b'{"p":1}', b'{"order":{"promotions":{"meta":{"mapper":{"notices":[{"v":1.10}]}}}}}', b'[{"v":1.10}]'),
        (b'{"p":1}', b'{"order":{"orders":[{"promotion":{"meta":{"mapper":{"notices":[1]}}}}]}}', b"[1]"),
    ],
)
def test_erasing_keeps_notices_of_previous_versions_answer(order: bytes, reply: bytes, notices: bytes) -> None:
    old = row(State.DONE, identity_version=1, digest=None, notices=None, order=order, reply=reply)
    after = trimmed(old, AT)
    assert (after.notices, after.reply, after.order) == (notices, None, b"")
    assert after.digest == hashlib.sha256(order).digest()


# -- Both stores ---------------------------------------------------------------------------------------------------


def test_order_goes_from_claim_to_replay(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        assert await claim(ledger) == InProgress(mine, 10)
        permit = await ledger.mark_sent(mine)
        assert permit.row.sent_at == home.time.now
        told = await ledger.redeemed(permit.row, NOTICES, "r_1", "redeemed", confirmed=True)
        for _ in range(2):
            assert await claim(ledger, session="another") == Replay(told, same_bytes=True)
            assert await claim(ledger, body=b"other bytes") == Replay(told, same_bytes=False)
        assert await claim(ledger, content=b"\x02" * 32, body=b"other bytes") == Conflict("order_mismatch")
        stored = await shown(ledger)
        assert (stored.order, stored.session, stored.owner) == (BODY, "session of order-1", ledger.owner)
        assert (stored.handle, stored.notices) == ("r_1", NOTICES)

    home.run(story)


def test_every_field_survives_storage(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        body = bytes(range(256)) * 400
        key = Key("späce", "engine", "ördér-\U0001f600'\"%;--")
        mine = await claimed(ledger, key, body=body, session="sessiön", customer="jané", currency="EUR")
        assert await ledger.show(key) == mine
        assert (mine.customer, mine.currency, mine.session, mine.held) == ("jané", "EUR", "sessiön", "sessiön")
        looked = await ledger.looking((await ledger.mark_sent(mine)).row)
        assert await ledger.show(key) == looked
        told = await ledger.redeemed(looked, body, "händle", "redeemed", confirmed=True)
        assert await ledger.show(key) == told
        assert (told.notices, told.handle, told.reason) == (body, "händle", "redeemed")
        assert told.confirmed_at == (await ledger.moment()).wall

    home.run(story)


def test_space_and_engine_separate_orders(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for key in (
            KEY,
            Key("space", "engine", "order-2"),
            Key("space", "other", "order-1"),
            Key("", "engine", "order-1"),
        ):
            assert type(await claim(ledger, key)) is New

    home.run(story)


def test_only_one_of_many_concurrent_claims_gets_the_order(home: Home) -> None:
    """First a new one; then one whose lease is over."""

    async def story(first: Ledger) -> None:
        second = await home.open()
        try:
            for expected in (New, LookUp):
                decisions = await asyncio.gather(*(claim(ledger) for ledger in (first, second) * 15))
                kinds = [type(decision) for decision in decisions]
                assert (kinds.count(expected), kinds.count(InProgress)) == (1, 29)
                winner = next(decision.row for decision in decisions if isinstance(decision, New | LookUp))
                if expected is New:
                    await first.mark_sent(winner)
                home.time.now += 10
        finally:
            await second.close()

    home.run(story)


PROCESS = """
    import asyncio, json, sys
    from dataclasses import replace
    from mapper.orders.ledger import open_ledger
    from mapper.orders.rows import Ask, Key, Terms

    def ask(key, session, body=b"{}"):
        return Ask(key, body, lambda *_: b"f", 2, Terms(session, False), "owner", 0.05)

    async def main(url):
        ledger = await open_ledger(url)
        print("ready", flush=True)
        sys.stdin.readline()
        names = []
        for n in range(15):
            decision = await ledger.claim(replace(ask(Key("", "engine", str(n)), str(n)), lease_s=60))
            names.append(type(decision).__name__)
        await ledger.close()
        print(json.dumps(names))

    asyncio.run(main(sys.argv[1]))
"""


def process(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_only_one_of_several_processes_gets_each_order(home: Home) -> None:
    """They also create the ledger at the same time."""
    processes = [process(PROCESS, home.url) for _ in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    results = [json.loads(output) for output, _ in [each.communicate("\n") for each in processes]]
    assert [each.returncode for each in processes] == [0, 0, 0]
    for names in zip(*results, strict=True):
        assert sorted(names) == ["InProgress", "InProgress", "New"]


CRASH = """
    import asyncio, sys
    from mapper.orders.ledger import open_ledger
    from mapper.orders.rows import Ask, Key, Terms

    def ask(key, session, body=b"{}"):
        return Ask(key, body, lambda *_: b"f", 2, Terms(session, False), "owner", 0.05)

    async def main(url):
        ledger = await open_ledger(url, lease_s=0.05)
        decision = await ledger.claim(ask(Key("space", "engine", "order-1"), "session", b"body"))
        if sys.argv[2] == "sent":
            await ledger.mark_sent(decision.row)
        print("claimed", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(("until", "expected"), [("claimed", Retry), ("sent", LookUp)])
def test_claim_survives_kill_of_process(home: Home, until: str, expected: type) -> None:
    with process(CRASH, home.url, until) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "claimed\n"
        os.kill(victim.pid, signal.SIGKILL)

    async def story() -> None:
        ledger = await open_ledger(home.url)
        try:
            left = await shown(ledger)
            assert (left.state, left.order, left.session) == (State.INTENT, b"body", "session")
            await asyncio.sleep(0.1)
            assert await ledger.due("engine", 5) == [left]
            decision = await claim(ledger, left.key, left.identity, left.order)
            assert type(decision) is expected
        finally:
            await ledger.close()

    asyncio.run(story())


Write = Callable[[Ledger, Row], Awaitable[Any]]
WRITES: dict[str, Write] = {
    "mark_sent": Ledger.mark_sent,
    "extend": Ledger.extend,
    "looking": Ledger.looking,
    "absent": lambda ledger, mine: ledger.absent(mine, None),
    "look_later": lambda ledger, mine: ledger.look_later(mine, "broken"),
    "retry_later": lambda ledger, mine: ledger.retry_later(mine, 1, "refused", answered=True),
    "redeemed": lambda ledger, mine: ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True),
    "rejected": lambda ledger, mine: ledger.rejected(mine, "used_up"),
    "confirm": Ledger.confirm,
    "repair": lambda ledger, mine: ledger.repair(mine, "twice"),
    "reopen": Ledger.reopen,
    "hurry": Ledger.hurry,
    "postpone": lambda ledger, mine: ledger.postpone(mine, "broken"),
    "forget": Ledger.forget,
    "not_cancelled": lambda ledger, mine: ledger.not_cancelled(mine, "no"),
    "cancel_later": lambda ledger, mine: ledger.cancel_later(mine, "timeout"),
    "cancelled": Ledger.cancelled,
}


@pytest.mark.parametrize("write", WRITES)
def test_write_under_old_fence_changes_nothing(home: Home, write: str) -> None:
    async def story(ledger: Ledger) -> None:
        paused = (await ledger.mark_sent(await claimed(ledger))).row
        home.time.now += 10
        taken = await claimed(ledger)
        assert taken.fence == paused.fence + 1
        with pytest.raises(Fenced) as caught:
            await WRITES[write](ledger, paused)
        assert caught.value.reason == "fenced"
        assert await shown(ledger) == taken

    home.run(story)


@pytest.mark.parametrize("write", WRITES)
def test_holder_cannot_write_row_after_releasing_it(home: Home, write: str) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        waiting = await ledger.absent(mine, None)
        assert isinstance(waiting, Wait)
        with pytest.raises(Fenced):
            await WRITES[write](ledger, mine)
        assert await shown(ledger) == waiting.row

    home.run(story)


def test_missing_row_cannot_be_written(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        with pytest.raises(Fenced):
            await ledger.extend(replace(mine, key=Key("", "", "")))

    home.run(story)


def test_holder_may_write_after_lease_until_takeover(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = (await ledger.mark_sent(await claimed(ledger))).row
        home.time.now += 50
        assert (await ledger.rejected(mine, "used_up")).state is State.REJECTED

    home.run(story)


MAY_FOLLOW = {"redeemed", "repair", "confirm", "forget", "cancelled"}
"""Writes that a redeemed order allows; the same outcome is one, since a confirmation can get lost."""


def test_redeemed_orders_never_change(home: Home) -> None:
    """Not even by the process that redeemed them."""

    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        told = await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True)
        assert await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True) == told
        for name in WRITES.keys() - MAY_FOLLOW:
            with pytest.raises(WrongMove):
                await WRITES[name](ledger, told)
        with pytest.raises(WrongMove):
            await ledger.redeemed(mine, b"[]", "", "redeemed", confirmed=True)
        assert await shown(ledger) == told
        fixed = await ledger.repair(told, "twice")
        assert (fixed.state, fixed.notices) == (State.REPAIRED, NOTICES)
        assert await claim(ledger) == Replay(fixed, same_bytes=True)

    home.run(story)


def test_unknown_outcome_is_looked_up_until_resend_is_allowed(home: Home) -> None:
    """Sent at 0, never seen by the engine, quarantine 60 s."""

    async def story(ledger: Ledger) -> None:
        mine = (await ledger.mark_sent(await claimed(ledger))).row
        start = home.time.now
        after = await ledger.absent(await ledger.looking(mine), None)
        checks = []
        while isinstance(after, Wait):
            home.time.now += after.wait_s
            checks.append(round(home.time.now - start, 3))
            assert [due.key for due in await ledger.due("engine", 5)] == [KEY]
            after = await ledger.absent(await claimed(ledger), None)
        assert checks == [0.2, 0.5, 1, 2, 5, 15, 30, 60, 61]
        assert isinstance(after, Absence)
        assert await ledger.due("engine", 5) == []
        retry = await claim(ledger)
        assert isinstance(retry, Retry)
        assert (retry.row.attempts, retry.row.attempt, retry.row.state) == (2, 1, State.INTENT)
        permit = await ledger.mark_sent(retry.row)
        assert permit.row.sent_at == home.time.now

    home.run(story)


def test_absent_order_is_looked_up_again_before_later_resend(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        after = await ledger.absent(await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row), None)
        while isinstance(after, Wait):
            home.time.now += after.wait_s
            after = await ledger.absent(await claimed(ledger), None)
        home.time.now += 3600
        look_up = await claim(ledger, content=b"other content", body=b"other bytes")
        assert isinstance(look_up, LookUp)
        assert look_up.row.order == BODY, "it is what was sent that is looked for"
        assert isinstance(await ledger.absent(look_up.row, None), Absence)
        assert type(await claim(ledger, content=b"other content", body=b"other bytes")) is Retry

    home.run(story)


def test_order_unknown_for_a_day_needs_operator(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        home.time.now += LOOK_UP_TIMES_S[-1]
        after = await ledger.look_later(mine, "broken")
        assert isinstance(after, GiveUp)
        assert await claim(ledger) == NeedsOperator("broken")
        assert await ledger.due("engine", 5) == []
        again = await ledger.reopen(after.row)
        assert await ledger.due("engine", 5) == [again]
        assert type(await claim(ledger)) is LookUp

    home.run(story)


def test_operator_may_settle_manual_order(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        home.time.now += LOOK_UP_TIMES_S[-1]
        await ledger.absent(mine, None)
        found = (await ledger.find(state=State.MANUAL))[0]
        await ledger.redeemed(found, b"[]", "", "settled_by_hand", confirmed=False)
        assert type(await claim(ledger)) is Replay

    home.run(story)


def test_permit_expires_within_its_limit(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        permit = await ledger.mark_sent(await claimed(ledger))
        cases = [(0.0, True), (SEND_WITHIN_S - 0.01, True), (0.02, False), (-1.0, False)]
        for passed, fresh in cases:
            home.time.now += passed
            assert permit.fresh() is fresh
            home.time.now += -0.5 if passed < 0 else 0

    home.run(story)


def test_holder_can_extend_lease(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        home.time.now += 9
        mine = await ledger.extend(mine)
        home.time.now += 9
        assert await claim(ledger) == InProgress(mine, 1)

    home.run(story)


def test_due_orders_are_sorted_by_time(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        async def begin(name: str) -> Row:
            return await claimed(ledger, Key("", "engine", name))

        start = home.time.now
        await begin("intent")  # its lease ends after 10 s
        await ledger.retry_later(await begin("retryable"), 3, "refused", answered=True)
        await ledger.absent(await ledger.looking((await ledger.mark_sent(await begin("unknown"))).row), None)  # 0.2 s
        await ledger.looking((await ledger.mark_sent(await begin("looking"))).row)  # after 10 s
        await ledger.retry_later(await begin("waits"), None, "refused", answered=True)
        await done(ledger, Key("", "engine", "done"))
        await ledger.rejected(await begin("rejected"), "used_up")
        due = []
        for after in (0, 0.2, 3, 9.9, 10):
            home.time.now = start + after
            due.append([found.key.order for found in await ledger.due("engine", 10)])
        assert due[:4] == [[], ["unknown"], ["unknown", "retryable"], ["unknown", "retryable"]]
        assert (due[4][:2], set(due[4][2:])) == (["unknown", "retryable"], {"intent", "looking"})
        assert [found.key.order for found in await ledger.due("engine", 1)] == ["unknown"]

    home.run(story)


def test_open_orders_are_due_before_redeemed_ones(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        async def looked_for(name: str) -> Row:
            return await ledger.looking((await ledger.mark_sent(await claimed(ledger, Key("", "engine", name)))).row)

        for name in ("redeemed", "redeemed too"):
            await ledger.redeemed(await looked_for(name), b"[]", "", "redeemed", confirmed=True, may_double=True)
        home.time.now += 5
        await ledger.look_later(await looked_for("open"), "broken")
        home.time.now += 1000
        assert [row.key.order for row in await ledger.due("engine", 2)] == ["open", "redeemed"]

    home.run(story)


def test_due_orders_are_those_of_the_engine(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for engine in ("engine", "another"):
            await claimed(ledger, Key("", engine, "order-1"))
        home.time.now += 100
        assert [row.key.engine for row in await ledger.due("another", 5)] == ["another"]

    home.run(story)


def test_one_process_leads_at_a_time(home: Home) -> None:
    async def story(first: Ledger) -> None:
        second = await home.open()
        try:
            lead = [process.lead("engine", 5) for process in (first, second, first)]
            assert [await one for one in lead] == [True, False, True]
            assert await second.lead("another", 5), "each engine has its own leader"
            home.time.now += 4.9
            assert (await second.lead("engine", 5), await first.lead("engine", 5)) == (False, True)
            home.time.now += 5
            assert (await second.lead("engine", 5), await first.lead("engine", 5)) == (True, False)
            await second.lead("engine", 0)
            assert await first.lead("engine", 5)
        finally:
            await second.close()

    home.run(story)


def test_backlog_counts_unfinished_orders(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.backlog() == Backlog({}, 0.0)
        await ledger.retry_later(await claimed(ledger, Key("", "", "waits")), None, "refused", answered=True)
        home.time.now += 100
        for name in ("a", "b"):
            await claimed(ledger, Key("", "", name))
            home.time.now += 3
        await done(ledger)
        await done(ledger, Key("", "", "untold"), confirmed=False)
        found = await ledger.backlog()
        assert (found.counts, found.unconfirmed) == ({State.INTENT: 2, State.RETRYABLE: 1}, 1)
        assert round(found.oldest_s, 3) == 6
        assert await ledger.finished() == {State.DONE: 2}
        (untold,) = await ledger.unconfirmed()
        await ledger.confirm(untold)
        assert (await ledger.backlog()).unconfirmed == 0

    home.run(story)


def test_rows_are_found_by_order_and_state(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for name in ("a", "b", "c"):
            home.time.now += 1
            mine = await claimed(ledger, Key("", "", name))
            if name != "b":
                await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True)
        assert [found.key.order for found in await ledger.find()] == ["c", "b", "a"]
        assert [found.key.order for found in await ledger.find(state=State.DONE)] == ["c", "a"]
        assert [found.key.order for found in await ledger.find(order="b")] == ["b"]
        assert [found.key.order for found in await ledger.find(state=State.INTENT, order="a")] == []
        assert [found.key.order for found in await ledger.find(limit=1)] == ["c"]

    home.run(story)


def test_prune_skips_rows_in_use_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(ledger: Ledger) -> None:
        waiting = await ledger.retry_later(await claimed(ledger), None, "busy", answered=True)
        finished = await done(ledger, Key("", "", "finished"))
        home.time.now += 2 * MONTH_S
        with_body = ledger.store.with_body

        async def read_early(before: float, limit: int) -> list[Row]:
            found = await with_body(before, limit)
            await claimed(ledger)
            return found

        monkeypatch.setattr(ledger.store, "with_body", read_early)
        assert await ledger.prune(MONTH_S) == 2
        assert ((await shown(ledger)).order, (await shown(ledger, finished.key)).order) == (waiting.order, b"")

    home.run(story)


def test_prune_erases_bodies_then_deletes_rows(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for name in ("a", "b"):
            await done(ledger, Key("", "", name))
        await ledger.retry_later(await claimed(ledger, Key("", "", "waits")), None, "refused", answered=True)
        open_row = await claimed(ledger)
        later = await ledger.retry_later(await claimed(ledger, Key("", "", "later")), 9e9, "refused", answered=True)
        assert await ledger.prune(MONTH_S) == 0
        home.time.now += MONTH_S + 1
        young = await done(ledger, Key("", "", "young"))
        assert [await ledger.prune(MONTH_S, 2), await ledger.prune(MONTH_S, 2), await ledger.prune(MONTH_S, 2)] == [
            2,
            1,
            0,
        ]
        old = await shown(ledger, Key("", "", "a"))
        assert (old.state, old.order, old.notices) == (State.DONE, b"", NOTICES)
        assert await claim(ledger, old.key) == Replay(old, same_bytes=True)
        assert await claim(ledger, old.key, content=b"\x02", body=b"other bytes") == Conflict("order_mismatch")
        assert await shown(ledger, young.key) == young
        home.time.now += KEEP_S - MONTH_S
        assert [await ledger.prune(MONTH_S, 3), await ledger.prune(MONTH_S, 3)] == [4, 0]  # and "young" is trimmed
        left = {found.key.order for found in await ledger.find()}
        assert left == {"young", "later", KEY.order}
        assert await shown(ledger) == open_row
        assert await shown(ledger, later.key) == later

    home.run(story)


def test_two_orders_never_hold_one_session(home: Home) -> None:
    """Neither when many claim it at once, nor when one waited and another took it meanwhile."""

    async def story(first: Ledger) -> None:
        second = await home.open()
        try:
            keys = [Key("", "engine", str(number)) for number in range(10)]
            both = [claim(ledger, key, session="shared") for key in keys for ledger in (first, second)]
            decisions = await asyncio.gather(*both)
            assert sum(isinstance(decision, New) for decision in decisions) == 1
            winner = next(decision.row for decision in decisions if isinstance(decision, New))
            await first.retry_later(winner, None, "refused", answered=True)
            other = next(key for key in keys if key != winner.key)
            assert isinstance(await claim(first, other, session="shared"), New)
            blocked = await claim(first, winner.key, session="shared")
            assert isinstance(blocked, InProgress)
            assert blocked.holder == other.order
            held = [row.held for row in await first.find() if row.held is not None]
            assert held == ["shared"]
        finally:
            await second.close()

    home.run(story)


def test_freed_session_is_not_reused_by_another_order(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for name, expected in (("a", "shared"), ("b", "shared~2"), ("c", "shared~3")):
            mine = await claimed(ledger, Key("", "engine", name), session="shared")
            assert (mine.session, mine.held) == (expected, expected)
            await ledger.rejected(mine, "used_up")
        again = await claimed(ledger, Key("", "engine", "b"), session="shared")
        assert again.session == "shared~2", "its own"
        assert (await claimed(ledger, Key("other", "engine", "d"), session="shared")).session == "shared"

    home.run(story)


def test_two_orders_never_hold_one_cart(home: Home) -> None:
    """Not even in concurrent claims with different sessions."""

    async def story(ledger: Ledger) -> None:
        names = ["a", "b", "c", "d"]
        await ledger.rejected(await claimed(ledger, Key("", "engine", "a"), session="cart"), "used_up")
        claims = [claim(ledger, Key("", "engine", name), session="cart") for name in names for _ in range(3)]
        decisions = await asyncio.gather(*claims)
        (mine,) = [decision.row for decision in decisions if isinstance(decision, New | Retry)]
        assert (mine.cart, mine.session) == ("cart", "cart" if mine.key.order == "a" else "cart~2")
        assert [row.key.order for row in await ledger.find() if row.held] == [mine.key.order]
        await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True)
        for name in set(names) - {mine.key.order}:
            taken = await claim(ledger, Key("", "engine", name), session="cart")
            assert taken == Conflict("session_of_another_order", mine.key.order)
        assert await ledger.free_session(Key("", "engine", ""), "cart") not in ("cart", mine.session)

    home.run(story)


@pytest.mark.parametrize("terms", [Terms("another", from_receipt=True), Forbidden("No receipt.", reason="no_receipt")])
def test_waiting_order_is_not_looked_up_if_cart_was_taken(home: Home, terms: Terms | Forbidden) -> None:
    async def story(ledger: Ledger) -> None:
        mine, others = Key("", "engine", "mine"), Key("", "engine", "others")
        await ledger.rejected(await claimed(ledger, others, session="cart"), "used_up")
        row = (await ledger.mark_sent(await claimed(ledger, mine, session="cart"))).row
        assert (row.session, row.cart) == ("cart~2", "cart")
        home.time.now += 61
        for _ in range(2):
            await ledger.absent(await ledger.looking(await claimed(ledger, mine)), None)
            home.time.now += 1
        home.time.now += 9
        await claimed(ledger, others, session="cart", content=b"\x02" * 32, body=b"other bytes")
        again = Ask(**ask(mine) | {"terms": terms}, owner="me", lease_s=10)
        if isinstance(terms, Terms):
            assert isinstance(await ledger.claim(again), Retry)
        else:
            with pytest.raises(Forbidden):
                await ledger.claim(again)

    home.run(story)


def test_order_that_was_sent_meanwhile_does_not_give_way_to_a_passed_redemption(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(ledger: Ledger) -> None:
        old, new = Key("", "engine", "old"), Key("", "engine", "new")
        await ledger.retry_later(await claimed(ledger, new, session="another"), None, "busy", answered=True)
        await ledger.redeemed(await claimed(ledger, old, session="shared"), NOTICES, "", "redeemed", confirmed=False)
        remove = ledger.store.remove
        sent: list[Row] = []

        async def remove_late(found: Row) -> bool:
            if not sent:  # between the decision and its write, another process sends the order
                sent.append((await ledger.mark_sent(await claimed(ledger, new))).row)
            return await remove(found)

        monkeypatch.setattr(ledger.store, "remove", remove_late)
        decision = await ledger.claim(
            Ask(**ask(new) | {"terms": Terms("shared", from_receipt=True)}, owner="me", lease_s=10)
        )
        assert isinstance(decision, InProgress)
        assert await shown(ledger, new) == sent[0]
        assert (await shown(ledger, old)).state is State.DONE

    home.run(story)


def test_unconfirmed_redemption_moves_to_new_order_id(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        old, new = Key("", "engine", "old"), Key("", "engine", "new")
        await ledger.rejected(await claimed(ledger, new, session="another"), "used_up")
        mine = await claimed(ledger, old, session="shared")
        told = await ledger.redeemed(mine, NOTICES, "r_1", "redeemed", confirmed=False)
        replay = await ledger.claim(
            Ask(**ask(new) | {"terms": Terms("shared", from_receipt=True)}, owner="me", lease_s=10)
        )
        assert isinstance(replay, Replay)
        assert (replay.row.key, replay.row.notices, replay.row.handle) == (new, NOTICES, "r_1")
        assert await ledger.show(old) is None
        assert await claim(ledger, old, session="anything") == Conflict("session_of_another_order", "new")
        assert (await shown(ledger, new)).fence == told.fence + 1, "and above that of the row it replaces"
        with pytest.raises(Fenced):
            await ledger.repair(told, "twice")

    home.run(story)


@pytest.mark.parametrize("state", ["done", "cancelled", "rejected", "waits", "open"])
def test_validate_skips_sessions_of_finished_orders(home: Home, state: str) -> None:
    async def story(ledger: Ledger) -> None:
        key, mine = Key("", "engine", "a"), await claimed(ledger, Key("", "engine", "a"), session="s")
        match state:
            case "done":
                await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True)
            case "cancelled":
                await ledger.rejected(mine, "used_up")
                await ledger.cancel(key)
            case "rejected":
                await ledger.rejected(mine, "used_up")
            case "waits":
                await ledger.retry_later(mine, None, "refused", answered=True)
        expected = "s~2" if state in ("done", "cancelled") else "s"
        assert await ledger.free_session(Key("", "engine", ""), "s") == expected
        assert await ledger.free_session(Key("other", "engine", ""), "s") == "s"

    home.run(story)


def test_closed_ledger_is_unavailable(home: Home) -> None:
    async def story() -> None:
        ledger = await home.open()
        await ledger.ping()
        await ledger.close()
        for call in (ledger.ping(), ledger.show(KEY), claim(ledger)):
            with pytest.raises(LedgerUnavailable):
                await call

    asyncio.run(story())


def test_failed_step_writes_nothing(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)

        def step(found: Row | None, at: Moment) -> tuple[None, Row | None]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await ledger.store.change(KEY, step)
        assert await shown(ledger) == mine
        await ledger.extend(mine)

    home.run(story)


def migrations(home: Home) -> Any:
    return ledger_sqlite if home.store == "sqlite" else ledger_postgres


def test_older_schema_is_migrated_with_its_rows(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home.run(claimed)
    table = "orders" if home.store == "sqlite" else "mapper_orders"
    newer = (
        *migrations(home).MIGRATIONS,
        (f"ALTER TABLE {table} ADD COLUMN note text", f"UPDATE {table} SET note = 'x'"),
    )
    monkeypatch.setattr(migrations(home), "MIGRATIONS", newer)
    for _ in range(2):  # the second time does nothing
        assert home.run(shown) == first
    monkeypatch.undo()
    with pytest.raises(LedgerTooNew, match=r"version 3.*up to 2") as caught:
        home.run(shown)
    assert caught.value.reason == "ledger_too_new"


OLD_STATES = ("INTENT", "RETRYABLE", "UNKNOWN", "MANUAL", "DONE", "REJECTED", "REPAIRED")


async def write_old_rows(home: Home) -> None:
    """Writes rows of the previous version: an order in each state, and two more that share a session."""
    ledger = await home.open()
    rows = [(state, f"session of {state}") for state in OLD_STATES]
    rows += [("DONE 2", "session of DONE"), ("UNKNOWN 2", "session of DONE")]
    columns = COLUMNS[: COLUMNS.index("identity_version")]
    for number, (name, session) in enumerate(rows):
        state = name.split()[0]
        final = state in ("DONE", "REJECTED", "REPAIRED")
        sent_at = None if state in ("RETRYABLE", "REJECTED") else home.time.now
        look_at = None if final or state == "MANUAL" else home.time.now
        reply = b'{"order":{"id": "order-1"}}' if state in ("DONE", "REPAIRED") else b"{}" if final else None
        values = (
            *("", "engine", name, PRINT, state, 1, 1, session, BODY, "old"),
            *(sent_at, 0.0, sent_at, sent_at, None, look_at, 1),
            *(200 if state in ("DONE", "REPAIRED") else 500 if final else None, reply, "", 1, 1000.0 + number, 2000.0),
        )
        await insert(ledger, columns, values)
    await ledger.close()


async def insert(ledger: Ledger, columns: Sequence[str], values: Sequence[Any]) -> None:
    store: Any = ledger.store
    names = ", ".join(columns)
    if isinstance(store, ledger_sqlite.SqliteStore):
        query = f"INSERT INTO orders ({names}) VALUES ({', '.join('?' * len(columns))})"
        await in_thread(ledger, lambda database: database.execute(query, values))
    else:
        marks = ", ".join(f"${number}" for number, _ in enumerate(columns, 1))
        await store._execute(f"INSERT INTO mapper_orders ({names}) VALUES ({marks})", *values)


def test_ledger_of_previous_version_opens_and_works(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(migrations(home), "MIGRATIONS", migrations(home).MIGRATIONS[:1])
        asyncio.run(write_old_rows(home))

    def old_ask(name: str, body: bytes = BODY) -> Ask:
        brought = ask(Key("", "engine", name), body=body, session=f"session of {name}")
        known = {"identity": lambda version, *_: PRINT if version == 1 else b"by the rules of now"}
        return Ask(**brought | known, owner="me", lease_s=10)

    async def story(ledger: Ledger) -> None:
        expected = {
            "INTENT": LookUp, "RETRYABLE": Retry, "UNKNOWN": LookUp, "MANUAL": NeedsOperator, "DONE": Replay,
            "REJECTED": Retry, "REPAIRED": Replay, "DONE 2": Replay, "UNKNOWN 2": LookUp,
        }  # fmt: skip
        assert all(row.cart == row.session for row in await ledger.find())
        held = {row.key.order for row in await ledger.find() if row.held}
        assert held == {"INTENT", "UNKNOWN", "MANUAL", "DONE", "REPAIRED"}, "of two in one session the first holds it"
        assert await ledger.unconfirmed() == []
        for name, kind in expected.items():
            assert type(await ledger.claim(old_ask(name))) is kind, name
        replay = await ledger.claim(old_ask("DONE", b"other bytes"))
        assert isinstance(replay, Replay)
        assert not replay.same_bytes
        # So do rows that a process of the previous version writes meanwhile, without the new columns.
        taken = await claim(ledger, Key("", "engine", "new"), session="session of DONE")
        assert taken == Conflict("session_of_another_order", "DONE")
        doubled = await ledger.claim(old_ask("UNKNOWN 2"))
        assert isinstance(doubled, InProgress)
        mine = await shown(ledger, Key("", "engine", "UNKNOWN 2"))
        assert (await ledger.redeemed(mine, NOTICES, "", "redeemed", confirmed=True)).held is None

    home.run(story)


def test_failed_migration_is_rolled_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home.run(claimed)
    table = "orders" if home.store == "sqlite" else "mapper_orders"
    newer = (*migrations(home).MIGRATIONS, (f"DELETE FROM {table}", "NONSENSE"))
    with monkeypatch.context() as patched:
        patched.setattr(migrations(home), "MIGRATIONS", newer)
        with pytest.raises(LedgerUnavailable):
            home.run(shown)
    assert home.run(shown) == first


# -- SQLite --------------------------------------------------------------------------------------------------------


def test_orders_of_session_are_found_by_index(sqlite_home: Home) -> None:
    """Each validate runs this query, however many rows there are."""

    async def story(ledger: Ledger) -> list[str]:
        explained = f"EXPLAIN QUERY PLAN {ledger_sqlite._OTHERS}"
        values = {"space": "", "engine": "engine", "order": "o", "session": "s"}
        plan = await in_thread(ledger, lambda database: database.execute(explained, values).fetchall())
        return [step[3] for step in plan if step[3].startswith(("SEARCH", "SCAN"))]

    columns = [step.rpartition(" AND ")[2] for step in sqlite_home.run(story)]
    assert sorted(columns) == ["cart=?)", "passed_from=?)", "session=?)"]


def test_sqlite_files_are_private_to_owner(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        await claimed(ledger)
        files = sorted(sqlite_home.file.parent.glob(f"{sqlite_home.file.name}*"))
        assert [file.name.removeprefix(sqlite_home.file.name) for file in files] == ["", "-shm", "-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    sqlite_home.run(story)


def in_thread(ledger: Ledger, work: Callable[[sqlite3.Connection], Any]) -> Coroutine[Any, Any, Any]:
    store = ledger.store
    assert isinstance(store, ledger_sqlite.SqliteStore)
    return store._run(lambda: work(store._open()))


def test_sqlite_uses_wal_and_full_sync(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        pragma = "SELECT (SELECT * FROM pragma_journal_mode), (SELECT * FROM pragma_synchronous)"
        assert await in_thread(ledger, lambda database: database.execute(pragma).fetchone()) == ("wal", 2)

    sqlite_home.run(story)


def test_full_disk_is_reported_and_loses_no_rows(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        await in_thread(ledger, lambda database: database.execute("PRAGMA max_page_count = 16").fetchone())

        async def fill() -> None:
            for n in range(100):
                await claim(ledger, Key("", "", str(n)), body=b"x" * 2000)

        with pytest.raises(LedgerUnavailable) as caught:
            await fill()
        assert caught.value.reason == "ledger_full"
        assert caught.value.status("consume") == 500
        assert await shown(ledger) == mine
        assert await in_thread(ledger, lambda database: database.execute("PRAGMA integrity_check").fetchone()) == (
            "ok",
        )
        with pytest.raises(LedgerUnavailable):
            await ledger.redeemed(mine, b"x" * 50_000, "", "redeemed", confirmed=True)
        assert await shown(ledger) == mine
        await in_thread(ledger, lambda database: database.execute("PRAGMA max_page_count = 10000").fetchone())
        await ledger.redeemed(mine, b"x" * 50_000, "", "redeemed", confirmed=True)

    sqlite_home.run(story)


def test_waiting_for_another_writer_does_not_block_event_loop(sqlite_home: Home) -> None:
    async def story() -> None:
        store = await ledger_sqlite.SqliteStore.open(str(sqlite_home.file), sqlite_home.time.clock(), busy_s=0.2)
        ledger = Ledger(store, "me", 60, 10, lambda: 0.0)
        other = sqlite3.connect(sqlite_home.file, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            claiming = asyncio.create_task(claim(ledger))
            worst, last = 0.0, time.monotonic()
            while not claiming.done():
                await asyncio.sleep(0.005)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
            with pytest.raises(LedgerUnavailable) as caught:
                await claiming
            assert caught.value.reason == "ledger_busy"
            assert worst < 0.15
            waiting = asyncio.create_task(claim(ledger))
            await asyncio.sleep(0.02)
            other.execute("ROLLBACK")
            assert type(await waiting) is New
        finally:
            other.close()
            await ledger.close()

    asyncio.run(story())


def test_switch_to_wal_is_retried_while_database_is_locked(sqlite_home: Home) -> None:
    """SQLite refuses about one in a hundred concurrent switches without waiting: here the first three."""
    refusals = [sqlite3.OperationalError("database is locked") for _ in range(3)]
    for refusal in refusals:
        refusal.sqlite_errorname = "SQLITE_BUSY"

    class Refusing:
        def execute(self, statement: str) -> Any:
            if refusals:
                raise refusals.pop()
            return SimpleNamespace(fetchone=lambda: ("wal",))

    store: Any = ledger_sqlite.SqliteStore("", sqlite_home.time.clock(), busy_s=1)
    store._database = Refusing()
    assert store._use_wal() == "wal"
    refusals.append(sqlite3.OperationalError("disk I/O error"))
    with pytest.raises(sqlite3.OperationalError):
        store._use_wal()


def test_reboot_ends_leases_and_restarts_quarantine(sqlite_home: Home) -> None:
    async def before(ledger: Ledger) -> None:
        await ledger.mark_sent(await claimed(ledger))
        await claimed(ledger, Key("", "engine", "unsent"))
        await ledger.looking((await ledger.mark_sent(await claimed(ledger, Key("", "engine", "unknown")))).row)
        assert await ledger.lead("engine", 1_000)

    async def after(ledger: Ledger) -> None:
        sent_before = await shown(ledger)
        assert (sent_before.sent_at, sent_before.lease_until, sent_before.next_check_at) == (0, 0, 0)
        assert len(await ledger.due("engine", 5)) == 3
        assert await ledger.lead("engine", 5)
        assert type(await claim(ledger, Key("", "engine", "unsent"))) is Retry
        for key in (KEY, Key("", "engine", "unknown")):
            assert isinstance(await ledger.absent(await claimed(ledger, key), None), Wait)
        sqlite_home.time.now = 60.5
        for key in (KEY, Key("", "engine", "unknown")):
            assert isinstance(await ledger.absent(await claimed(ledger, key), None), Wait)
            sqlite_home.time.now += 1
            assert isinstance(await ledger.absent(await claimed(ledger, key), None), Absence)

    sqlite_home.run(before)
    sqlite_home.time.boot, sqlite_home.time.now = "second boot", 4.0
    sqlite_home.run(after)


def test_reboot_does_not_make_an_old_absence_fresh(sqlite_home: Home) -> None:
    async def before(ledger: Ledger) -> None:
        await ledger.mark_sent(await claimed(ledger))
        for wait_s in (61, 1.5):
            sqlite_home.time.now += wait_s
            await ledger.absent(await claimed(ledger), None)
        assert (await shown(ledger)).state is State.RETRYABLE

    async def after(ledger: Ledger) -> None:
        assert isinstance(await claim(ledger), LookUp)
        assert isinstance(await ledger.absent(await shown(ledger), None), Wait)
        sqlite_home.time.now += 1.5
        assert isinstance(await ledger.absent(await claimed(ledger), None), Absence)

    sqlite_home.run(before)
    sqlite_home.time.boot, sqlite_home.time.now = "second boot", 70.0
    sqlite_home.run(after)


def test_leases_outlive_process_without_reboot(sqlite_home: Home) -> None:
    sqlite_home.run(claimed)

    async def after(ledger: Ledger) -> None:
        assert await claim(ledger) == InProgress(await shown(ledger), 10)

    sqlite_home.run(after)


def test_system_clock_counts_from_boot() -> None:
    clock = system_clock()
    assert clock.boot == system_clock().boot != ""
    assert clock.now() <= clock.now()
    assert abs(clock.wall() - time.time()) < 5
    if sys.platform == "linux":
        assert clock.now() < clock.wall() - 1e8


def test_invalid_sqlite_path_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("this is no database, " * 1000, "utf-8")
    cases = {
        f"sqlite:///{tmp_path}/missing/x.db": "ledger_cannot_open",
        f"sqlite:///{tmp_path}": "ledger_cannot_open",
        f"sqlite:///{text}": "ledger_notadb",
    }
    for url, reason in cases.items():
        with pytest.raises(LedgerUnavailable) as caught:
            asyncio.run(open_ledger(url))
        assert caught.value.reason == reason


def test_readonly_ledger_is_not_ready(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.ping()
        await in_thread(ledger, lambda database: database.execute("PRAGMA query_only = on"))
        for call in (ledger.ping(), claim(ledger)):
            with pytest.raises(LedgerUnavailable) as caught:
                await call
            assert caught.value.reason == "ledger_readonly"

    sqlite_home.run(story)


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_errors_hide_password() -> None:
    encoded = urllib.parse.quote(postgres.PASSWORD, safe="")
    good = postgres.url()
    closed = good.replace(f":{urllib.parse.urlsplit(good).port}/", ":1/")
    cases = {
        good.replace(encoded, "hunter2-wrong"): "ledger_sqlstate_28P01",
        closed.replace(encoded, "hunter2"): "ledger_unreachable",
        good.replace(encoded, "hunter2:hun:ter2/hunter2"): "ledger_wrong_url",
        good.replace("/postgres?", "/hunter2?").replace(encoded, encoded): "ledger_sqlstate_3D000",
        "postgresql://me:hunter2@[/x": "ledger_wrong_url",
    }
    for url, reason in cases.items():
        with pytest.raises(LedgerUnavailable) as caught:
            asyncio.run(open_ledger(url))
        assert caught.value.reason == reason
        shown_text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        for secret in ("hunter2-wrong", "hun:ter2", "me:hunter2", encoded, postgres.PASSWORD):
            assert secret not in shown_text


def test_repr_hides_password(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for secret in (postgres.PASSWORD, urllib.parse.quote(postgres.PASSWORD, safe="")):
            assert secret not in repr(ledger) + repr(vars(ledger.store)) + str(ledger.store)

    postgres_home.run(story)


async def on_own_connection(query: str, *arguments: Any) -> Any:
    """Runs a query on a connection of its own."""
    connection = await asyncpg.connect(postgres.url())
    try:
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()


OTHERS = "application_name = 'promotions-mapper' AND pid <> pg_backend_pid()"


def test_lost_connections_are_replaced(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        for _ in range(5):
            await asyncio.gather(*(shown(ledger) for _ in range(4)))
            assert (
                len(await on_own_connection(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}"))
                >= 1
            )
            assert await shown(ledger) == mine
        await ledger.mark_sent(mine)

    postgres_home.run(story)


def test_connection_is_reused_unless_idle_too_long(postgres_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(ledger: Ledger) -> None:
        store: Any = ledger.store
        server = [(await store._fetch("SELECT pg_backend_pid()"))[0][0] for _ in range(3)]
        assert len(set(server)) == 1
        monkeypatch.setattr(ledger_postgres, "_MAX_IDLE_S", 0.0)
        assert (await store._fetch("SELECT pg_backend_pid()"))[0][0] != server[0]

    postgres_home.run(story)


def test_wait_for_connection_times_out(postgres_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(ledger_postgres, "_MAX_CONNECTIONS", 1)
        store = await ledger_postgres.PostgresStore.open(postgres_home.url, timeout_s=0.2)
        try:
            async with store._pool.connection():
                with pytest.raises(LedgerUnavailable) as caught:
                    await store.ping()
                assert caught.value.reason == "ledger_slow"
            await store.ping()
        finally:
            await store.close()

    asyncio.run(story())


def test_wait_for_lock_times_out(postgres_home: Home) -> None:
    async def story() -> None:
        store = await ledger_postgres.PostgresStore.open(postgres_home.url, timeout_s=0.2)
        ledger = Ledger(store, "me", 60, 10, lambda: 0.0)
        other = await asyncpg.connect(postgres_home.url)
        try:
            mine = await claimed(ledger)
            async with other.transaction():
                await other.execute("SELECT * FROM mapper_orders FOR UPDATE")
                started = time.monotonic()
                with pytest.raises(LedgerUnavailable) as caught:
                    await ledger.extend(mine)
                assert caught.value.reason in ("ledger_slow", "ledger_sqlstate_57014")
                assert time.monotonic() - started < 2
            await ledger.extend(mine)
        finally:
            await other.close()
            await ledger.close()

    asyncio.run(story())


def test_locks_end_with_statement_and_commits_are_durable(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        await asyncio.gather(*(claimed(ledger, Key("", "", str(n))) for n in range(40)))
        states = await on_own_connection(f"SELECT state FROM pg_stat_activity WHERE {OTHERS}")
        assert {found["state"] for found in states} == {"idle"}
        assert len(states) <= 10
        store = ledger.store
        assert isinstance(store, ledger_postgres.PostgresStore)
        assert (await store._fetch("SHOW synchronous_commit"))[0][0] == "on"

    # Even if the database's default differs.
    postgres_home.url = postgres_home.url + "&synchronous_commit=off"
    postgres_home.run(story)


def test_postgres_ledger_uses_database_clock() -> None:
    async def story() -> None:
        ledger = await open_ledger(postgres.url())
        try:
            at = await ledger.moment()
            assert abs(at.now - time.time()) < 5
            assert at.wall == at.now
            assert (await ledger.moment()).now > at.now
        finally:
            await ledger.close()

    asyncio.run(story())


def test_step_is_recomputed_if_row_changed_meanwhile(postgres_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        store: Any = ledger.store
        seen: list[int] = []

        async def read_and_be_overtaken(key: Key) -> tuple[Moment, Row | None]:
            at, found = await read(key)
            assert found is not None
            seen.append(found.version)
            if len(seen) < 3:
                await store._execute("UPDATE mapper_orders SET version = version + 1")
            return at, found

        read = store._read
        monkeypatch.setattr(store, "_read", read_and_be_overtaken)
        extended_row = await ledger.extend(mine)
        assert seen == [1, 2, 3]
        assert extended_row.version == 4

    postgres_home.run(story)
