"""The ledger: its rules as tables, and one suite that both stores pass."""

import asyncio
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
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from mapper.domain import checkout
from mapper.orders import postgres as ledger_postgres
from mapper.orders import sqlite as ledger_sqlite
from mapper.orders.ledger import Ledger, open_ledger, system_clock
from mapper.orders.rows import (
    COLUMNS,
    FINAL,
    KEEP_S,
    SCHEDULE,
    SEND_WITHIN_S,
    TRIM_AFTER_S,
    Again,
    Answer,
    Ask,
    Backlog,
    Busy,
    Fenced,
    GiveUp,
    Key,
    LedgerTooNew,
    LedgerUnavailable,
    LookUp,
    Manual,
    Mismatch,
    Moment,
    New,
    Replay,
    Resend,
    Row,
    State,
    Wait,
    WrongMove,
    after_absence,
    after_failed_look,
    decide,
    extended,
    fingerprint,
    looking,
    next_look,
    reopened,
    repaired,
    retryable,
    row_of,
    sent,
    settled,
    values_of,
)
from tests.orders import postgres
from tests.orders.ledgers import BODY, KEY, PRINT, STORES, Home, claimed, shown

NOW = 5_000.0
AT = Moment(NOW, 1_700_000_000)
ASK = Ask(KEY, PRINT, BODY, "session-1", "me", 10)
DONE = Answer(200, b'{"order": {}}')


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
    """A row as it can stand in the ledger in that state."""
    end = NOW + 5 if leased else NOW
    fresh = decide(None, ASK, Moment(NOW - 100, AT.wall - 100))
    assert isinstance(fresh, New)
    looked = NOW - 80 if state in (State.UNKNOWN, State.MANUAL) else None
    final = state in FINAL
    return replace(
        fresh.row,
        state=state,
        sent_at=NOW - 90 if was_sent else None,
        lease_until=end if state in (State.INTENT, State.UNKNOWN) else 0.0,
        look_at=None if final or state is State.MANUAL else end,
        unknown_since=looked,
        looked_at=looked,
        status=200 if final else None,
        reply=b"stored" if final else None,
        **changes,
    )


DECISIONS: list[tuple[Row | None, type]] = [
    (None, New),
    (row(State.INTENT, leased=True), Busy),
    (row(State.INTENT, leased=True, was_sent=False), Busy),
    (row(State.INTENT), LookUp),
    (row(State.INTENT, was_sent=False), Again),
    (row(State.UNKNOWN, leased=True), Busy),
    (row(State.UNKNOWN), LookUp),
    (row(State.RETRYABLE, was_sent=False), Again),
    (row(State.MANUAL), Manual),
    (row(State.DONE), Replay),
    (row(State.REJECTED), Replay),
    (row(State.REPAIRED), Replay),
]


def test_the_table_of_decisions_covers_every_state() -> None:
    assert {found.state for found, _ in DECISIONS if found} == set(State)


@pytest.mark.parametrize(("found", "expected"), DECISIONS)
def test_what_a_claim_may_do_follows_from_the_row_alone(found: Row | None, expected: type) -> None:
    decision = decide(found, ASK, AT)
    assert type(decision) is expected
    match decision:
        case New(mine):
            assert (mine.state, mine.fence, mine.attempts, mine.sent_at) == (State.INTENT, 1, 1, None)
            assert (mine.key, mine.fingerprint, mine.order, mine.session) == (KEY, PRINT, BODY, "session-1")
        case Again(mine):
            assert found is not None
            assert (mine.state, mine.fence, mine.attempts) == (State.INTENT, found.fence + 1, found.attempts + 1)
        case LookUp(mine):
            assert found is not None
            assert (mine.state, mine.fence, mine.attempts) == (State.UNKNOWN, found.fence + 1, found.attempts)
            assert (mine.looked_at, mine.looks) == (NOW, found.looks + 1)
            assert mine.unknown_since == (found.unknown_since or NOW)
            assert mine.sent_at == found.sent_at
        case Busy(retry_after_s):
            assert retry_after_s == 5
        case Replay(state, status, reply):
            assert found is not None
            assert (state, status, reply) == (found.state, 200, b"stored")
    if isinstance(decision, New | Again | LookUp):
        assert (decision.row.lease_until, decision.row.look_at, decision.row.owner) == (NOW + 10, NOW + 10, "me")


@pytest.mark.parametrize("found", [found for found, _ in DECISIONS if found])
def test_other_content_under_a_known_key_is_a_mismatch_in_every_state(found: Row) -> None:
    assert decide(replace(found, fingerprint=b"\x02" * 32), ASK, AT) == Mismatch()


def test_a_lease_is_over_when_its_time_has_come() -> None:
    live = row(State.INTENT, leased=True)
    cases = [(live.lease_until - 0.001, Busy), (live.lease_until, LookUp), (live.lease_until + 9, LookUp)]
    for now, expected in cases:
        assert type(decide(live, ASK, Moment(now, now))) is expected


MOVES: dict[str, tuple[Callable[[Row], Row], dict[State, State]]] = {
    "sent": (lambda found: sent(found, AT, 10), {State.INTENT: State.INTENT}),
    "extended": (
        lambda found: extended(found, AT, 10),
        {State.INTENT: State.INTENT, State.UNKNOWN: State.UNKNOWN},
    ),
    "looking": (lambda found: looking(found, AT, 10), {State.INTENT: State.UNKNOWN, State.UNKNOWN: State.UNKNOWN}),
    "done": (
        lambda found: settled(found, AT, State.DONE, DONE),
        {State.INTENT: State.DONE, State.UNKNOWN: State.DONE, State.MANUAL: State.DONE},
    ),
    "rejected": (
        lambda found: settled(found, AT, State.REJECTED, DONE),
        {State.INTENT: State.REJECTED, State.UNKNOWN: State.REJECTED, State.MANUAL: State.REJECTED},
    ),
    "repaired": (lambda found: repaired(found, AT, "twice"), {State.DONE: State.REPAIRED}),
    "retryable": (lambda found: retryable(found, AT, 3, "refused"), {State.INTENT: State.RETRYABLE}),
    "reopened": (lambda found: reopened(found, AT), {State.MANUAL: State.UNKNOWN}),
    "absent": (lambda found: after_absence(found, AT, 60, 10).row, {State.UNKNOWN: State.UNKNOWN}),
    "failed look": (lambda found: after_failed_look(found, AT, 60, "broken").row, {State.UNKNOWN: State.UNKNOWN}),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", MOVES)
def test_a_row_moves_as_the_table_says_and_not_otherwise(name: str, state: State) -> None:
    move, allowed = MOVES[name]
    before = row(state, leased=True)
    if state not in allowed:
        with pytest.raises(WrongMove):
            move(before)
        return
    after = move(before)
    assert after.state is allowed[state]
    assert (after.version, after.updated_at) == (before.version + 1, AT.wall)
    assert (after.fence, after.key, after.fingerprint, after.order) == (
        before.fence, before.key, before.fingerprint, before.order,
    )  # fmt: skip
    if after.state in FINAL:
        assert (after.look_at, after.lease_until) == (None, 0)


def test_a_repaired_order_keeps_its_answer() -> None:
    after = repaired(row(State.DONE), AT, "twice")
    assert (after.status, after.reply, after.reason) == (200, b"stored", "twice")


def test_what_was_never_sent_cannot_be_looked_for() -> None:
    with pytest.raises(WrongMove):
        looking(row(State.INTENT, leased=True, was_sent=False), AT, 10)


def test_a_definite_no_forgets_what_was_unknown() -> None:
    before = replace(row(State.INTENT, leased=True), unknown_since=NOW - 70, absent_since=NOW - 5)
    after = retryable(before, AT, 3, "refused")
    assert (after.sent_at, after.unknown_since, after.absent_since, after.look_at) == (None, None, None, NOW + 3)


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
        # A look-up that started within the quarantine says nothing, whenever its answer came.
        (absent(looked=59.99), Wait),
        (absent(looked=59.99, absent_since=60), Wait),
        # After it, the first is a warning; the second counts if it started late enough.
        (absent(looked=60), Wait),
        (absent(looked=60.5, absent_since=60), Wait),
        (absent(looked=61, absent_since=60), Resend),
        (absent(looked=70, absent_since=60), Resend),
        # After a day, a person decides.
        (absent(looked=61, absent_since=60, age=86_399), Resend),
        (absent(looked=61, absent_since=60, age=86_400), GiveUp),
        (absent(looked=10, age=86_400), GiveUp),
    ],
)
def test_nothing_is_sent_again_before_absence_was_seen_twice_after_the_quarantine(before: Row, expected: type) -> None:
    after = after_absence(before, AT, 60, 10)
    assert type(after) is expected
    match after:
        case Wait(waiting, wait_s):
            assert (waiting.state, waiting.fence, waiting.lease_until) == (State.UNKNOWN, before.fence, 0)
            assert waiting.look_at is not None
            assert wait_s == max(0, waiting.look_at - NOW)
        case Resend(mine):
            assert (mine.state, mine.fence, mine.attempts) == (State.INTENT, before.fence + 1, before.attempts + 1)
            assert (mine.lease_until, mine.absent_since) == (NOW + 10, None)
            # Should it crash before it is sent, what was sent before is looked for again.
            assert mine.sent_at == before.sent_at
        case GiveUp(left):
            assert (left.state, left.look_at, left.lease_until) == (State.MANUAL, None, 0)


def test_the_first_absence_that_counts_is_remembered() -> None:
    first = after_absence(absent(looked=65), AT, 60, 10)
    assert first.row.absent_since == NOW - 5
    within = after_absence(absent(looked=5), AT, 60, 10)
    assert within.row.absent_since is None


@pytest.mark.parametrize(("age", "expected"), [(10, Wait), (86_399, Wait), (86_400, GiveUp)])
def test_a_look_up_that_fails_is_made_again_for_a_day(age: float, expected: type) -> None:
    after = after_failed_look(absent(looked=65, age=age), AT, 60, "broken")
    assert type(after) is expected
    assert (after.row.reason, after.row.absent_since) == ("broken", None)


def test_look_ups_follow_the_schedule_and_the_end_of_the_quarantine() -> None:
    base = replace(row(State.UNKNOWN), sent_at=0.0, unknown_since=1.0)
    times, now = [], 1.0
    while now < 1 + SCHEDULE[-1]:
        now = next_look(base, now, 60)
        times.append(round(now - 1, 3))
    assert times == [0.2, 0.5, 1, 2, 5, 15, 30, 59, 60, 300, 1800, 7200, 43_200, 86_400]
    seen = replace(base, absent_since=70.0)
    assert next_look(seen, 70.2, 60) == 71


def test_a_row_survives_the_way_through_the_database_s_columns() -> None:
    for found, _ in DECISIONS:
        if found:
            assert len(values_of(found)) == len(COLUMNS)
            assert row_of(values_of(found)) == found


def test_no_repr_shows_a_body() -> None:
    secret = b"jane@shop.test"
    full = replace(row(State.DONE), order=secret, reply=secret)
    for thing in (full, replace(ASK, order=secret), Answer(200, secret), New(full)):
        assert "jane" not in repr(thing)


# -- The fingerprint -----------------------------------------------------------------------------------------------

ORDER = """{"id": "1", "currency": "USD", "order_items": [
    {"sku": "a", "quantity": 2, "price": "40.00", "discounts": "20.00", "applied_discounts": [{"amount": "20.00"}]},
    {"sku": "b", "quantity": 1, "price": "7.00"}],
    "promotions": {"coupon_codes": ["X", "Y"], "referral_code": "R"}}"""


def print_of(text: str, key: Key = KEY) -> bytes:
    return fingerprint(key, checkout.parse(text.encode(), "consume"))


def test_an_order_spelled_otherwise_is_the_same_order() -> None:
    tree = json.loads(ORDER)
    other = json.loads(ORDER)
    other["order_items"].reverse()
    other["order_items"][0]["price"] = 7
    other["promotions"]["coupon_codes"] = ["Y", "X", "X "]
    other["note"] = {"carried": "along"}
    for same in (
        json.dumps(tree),
        json.dumps(tree, indent=3),
        json.dumps(dict(reversed(tree.items()))),
        json.dumps(other),
    ):
        assert print_of(same) == print_of(ORDER)


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('"sku": "a"', '"sku": "c"'),
        ('"quantity": 2', '"quantity": 3'),
        ('"price": "7.00"', '"price": "7.01"'),
        ('"discounts": "20.00"', '"discounts": "19.00"'),
        ('["X", "Y"]', '["X"]'),
        ('["X", "Y"]', '["X", "y"]'),
        ('"referral_code": "R"', '"loyalty_card": "R"'),
        ('"USD"', '"EUR"'),
        ('"id": "1"', '"id": "1", "applied_discounts": [{"amount": "1.00"}]'),
    ],
)
def test_an_order_with_other_content_is_another(what: str, instead: str) -> None:
    assert what in ORDER
    assert print_of(ORDER.replace(what, instead)) != print_of(ORDER)


def test_the_same_order_under_another_key_is_another() -> None:
    for key in (Key("other", "engine", "order-1"), Key("space", "other", "order-1"), Key("space", "engine", "other")):
        assert print_of(ORDER, key) != print_of(ORDER)


# -- Both stores ---------------------------------------------------------------------------------------------------


def test_an_order_goes_from_claim_to_replay(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        assert await ledger.claim(KEY, PRINT, BODY, "session-1") == Busy(10)
        permit = await ledger.mark_sent(mine)
        assert permit.row.sent_at == home.time.now
        await ledger.settle(permit.row, State.DONE, DONE)
        for _ in range(2):
            assert await ledger.claim(KEY, PRINT, BODY, "another") == Replay(State.DONE, 200, DONE.reply)
        assert await ledger.claim(KEY, b"\x02" * 32, BODY, "session-1") == Mismatch()
        stored = await shown(ledger)
        assert (stored.order, stored.session, stored.owner) == (BODY, "session-1", ledger.owner)

    home.run(story)


def test_every_field_comes_back_as_it_was_written(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        body = bytes(range(256)) * 400
        key = Key("späce", "engine", "ördér-\U0001f600'\"%;--")
        decision = await ledger.claim(key, PRINT, body, "sessiön")
        assert isinstance(decision, New)
        assert await ledger.show(key) == decision.row
        permit = await ledger.mark_sent(decision.row)
        looked = await ledger.looking(permit.row)
        assert await ledger.show(key) == looked
        settled_row = await ledger.settle(looked, State.REJECTED, Answer(500, body, "used_up"))
        assert await ledger.show(key) == settled_row
        assert (settled_row.reply, settled_row.status, settled_row.reason) == (body, 500, "used_up")

    home.run(story)


def test_orders_of_other_spaces_and_engines_are_other_orders(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for key in (
            KEY,
            Key("space", "engine", "order-2"),
            Key("space", "other", "order-1"),
            Key("", "engine", "order-1"),
        ):
            assert type(await ledger.claim(key, PRINT, BODY, "")) is New

    home.run(story)


def test_of_many_who_claim_at_the_same_time_one_gets_the_order(home: Home) -> None:
    """First a new one; then one whose lease is over."""

    async def story(first: Ledger) -> None:
        second = await home.open()
        try:
            for expected in (New, LookUp):
                decisions = await asyncio.gather(
                    *(ledger.claim(KEY, PRINT, BODY, "") for ledger in (first, second) * 15)
                )
                kinds = [type(decision) for decision in decisions]
                assert (kinds.count(expected), kinds.count(Busy)) == (1, 29)
                winner = next(decision.row for decision in decisions if isinstance(decision, New | LookUp))
                if expected is New:
                    await first.mark_sent(winner)
                home.time.now += 10
        finally:
            await second.close()

    home.run(story)


PROCESS = """
    import asyncio, json, sys
    from mapper.orders.ledger import open_ledger
    from mapper.orders.rows import Key

    async def main(url):
        ledger = await open_ledger(url)
        print("ready", flush=True)
        sys.stdin.readline()
        names = []
        for n in range(15):
            decision = await ledger.claim(Key("", "engine", str(n)), b"f", b"{}", "")
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


def test_of_several_processes_one_gets_each_order(home: Home) -> None:
    """They open the ledger at the same time, too, before there is one."""
    processes = [process(PROCESS, home.url) for _ in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    results = [json.loads(output) for output, _ in [each.communicate("\n") for each in processes]]
    assert [each.returncode for each in processes] == [0, 0, 0]
    for names in zip(*results, strict=True):
        assert sorted(names) == ["Busy", "Busy", "New"]


CRASH = """
    import asyncio, sys
    from mapper.orders.ledger import open_ledger
    from mapper.orders.rows import Key

    async def main(url):
        ledger = await open_ledger(url, lease_s=0.05)
        decision = await ledger.claim(Key("space", "engine", "order-1"), b"f", b"body", "session")
        if sys.argv[2] == "sent":
            await ledger.mark_sent(decision.row)
        print("claimed", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(("until", "expected"), [("claimed", Again), ("sent", LookUp)])
def test_what_was_written_survives_a_kill(home: Home, until: str, expected: type) -> None:
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
            assert await ledger.due(5) == [left]
            decision = await ledger.claim(left.key, left.fingerprint, left.order, left.session)
            assert type(decision) is expected
        finally:
            await ledger.close()

    asyncio.run(story())


Write = Callable[[Ledger, Row], Awaitable[Any]]
WRITES: dict[str, Write] = {
    "mark_sent": Ledger.mark_sent,
    "extend": Ledger.extend,
    "looking": Ledger.looking,
    "absent": Ledger.absent,
    "look_later": lambda ledger, mine: ledger.look_later(mine, "broken"),
    "retry_later": lambda ledger, mine: ledger.retry_later(mine, 1, "refused"),
    "settle": lambda ledger, mine: ledger.settle(mine, State.DONE, DONE),
    "repair": lambda ledger, mine: ledger.repair(mine, "twice"),
    "reopen": Ledger.reopen,
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_under_an_old_fence_changes_nothing(home: Home, write: str) -> None:
    async def story(ledger: Ledger) -> None:
        paused = (await ledger.mark_sent(await claimed(ledger))).row
        home.time.now += 10
        taken = await claimed(ledger)
        assert taken.fence == paused.fence + 1
        with pytest.raises(Fenced):
            await WRITES[write](ledger, paused)
        assert await shown(ledger) == taken

    home.run(story)


@pytest.mark.parametrize("write", WRITES)
def test_who_let_go_of_a_row_can_write_no_more(home: Home, write: str) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        waiting = await ledger.absent(mine)
        assert isinstance(waiting, Wait)
        with pytest.raises(Fenced):
            await WRITES[write](ledger, mine)
        assert await shown(ledger) == waiting.row

    home.run(story)


def test_a_row_that_is_not_there_cannot_be_written(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        with pytest.raises(Fenced):
            await ledger.extend(replace(mine, key=Key("", "", "")))

    home.run(story)


def test_a_lease_that_is_over_still_counts_until_somebody_takes_over(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = (await ledger.mark_sent(await claimed(ledger))).row
        home.time.now += 50
        assert (await ledger.settle(mine, State.DONE, DONE)).state is State.DONE

    home.run(story)


def test_finished_orders_never_change(home: Home) -> None:
    """Not by whoever finished them; but the same outcome may be written twice, since a confirmation can get lost."""

    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        finished = await ledger.settle(mine, State.DONE, DONE)
        assert await ledger.settle(mine, State.DONE, DONE) == finished
        for name, write in WRITES.items():
            if name not in ("settle", "repair"):
                with pytest.raises(WrongMove):
                    await write(ledger, finished)
        with pytest.raises(WrongMove):
            await ledger.settle(mine, State.DONE, replace(DONE, reply=b"other"))
        with pytest.raises(WrongMove):
            await ledger.settle(mine, State.REJECTED, DONE)
        assert await shown(ledger) == finished
        fixed = await ledger.repair(finished, "twice")
        assert (fixed.state, fixed.reply) == (State.REPAIRED, DONE.reply)
        for write in WRITES.values():
            with pytest.raises(WrongMove):
                await write(ledger, fixed)
        assert await ledger.claim(KEY, PRINT, BODY, "") == Replay(State.REPAIRED, 200, DONE.reply)

    home.run(story)


def test_an_unknown_outcome_is_looked_up_and_in_the_end_sent_again(home: Home) -> None:
    """Sent at 0, never seen by the engine, quarantine 60 s."""

    async def story(ledger: Ledger) -> None:
        mine = (await ledger.mark_sent(await claimed(ledger))).row
        start = home.time.now
        after = await ledger.absent(await ledger.looking(mine))
        looks = []
        while isinstance(after, Wait):
            home.time.now += after.wait_s
            looks.append(round(home.time.now - start, 3))
            assert [due.key for due in await ledger.due(5)] == [KEY]
            after = await ledger.absent(await claimed(ledger))
        assert looks == [0.2, 0.5, 1, 2, 5, 15, 30, 60, 61]
        assert isinstance(after, Resend)
        assert (after.row.attempts, after.row.state) == (2, State.INTENT)
        permit = await ledger.mark_sent(after.row)
        assert permit.row.sent_at == home.time.now
        await ledger.settle(permit.row, State.DONE, DONE)

    home.run(story)


def test_what_nobody_can_tell_for_a_day_is_left_to_a_person(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        home.time.now += SCHEDULE[-1]
        after = await ledger.look_later(mine, "broken")
        assert isinstance(after, GiveUp)
        assert await ledger.claim(KEY, PRINT, BODY, "") == Manual("broken")
        assert await ledger.due(5) == []
        again = await ledger.reopen(after.row)
        assert await ledger.due(5) == [again]
        assert type(await ledger.claim(KEY, PRINT, BODY, "")) is LookUp

    home.run(story)


def test_a_person_may_settle_what_is_left_to_them(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await ledger.looking((await ledger.mark_sent(await claimed(ledger))).row)
        home.time.now += SCHEDULE[-1]
        await ledger.absent(mine)
        found = (await ledger.find(state=State.MANUAL))[0]
        await ledger.settle(found, State.DONE, DONE)
        assert type(await ledger.claim(KEY, PRINT, BODY, "")) is Replay

    home.run(story)


def test_a_permit_is_good_for_a_moment_only(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        permit = await ledger.mark_sent(await claimed(ledger))
        cases = [(0.0, True), (SEND_WITHIN_S - 0.01, True), (0.02, False), (-1.0, False)]
        for passed, fresh in cases:
            home.time.now += passed
            assert permit.fresh() is fresh
            home.time.now += -0.5 if passed < 0 else 0

    home.run(story)


def test_whoever_holds_a_row_can_extend_its_lease(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        home.time.now += 9
        await ledger.extend(mine)
        home.time.now += 9
        assert await ledger.claim(KEY, PRINT, BODY, "") == Busy(1)

    home.run(story)


def test_what_is_due_comes_in_order(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        async def begin(name: str) -> Row:
            return await claimed(ledger, Key("", "", name))

        start = home.time.now
        await begin("intent")  # its lease is over after 10 s
        await ledger.retry_later(await begin("retryable"), 3, "refused")
        await ledger.absent(await ledger.looking((await ledger.mark_sent(await begin("unknown"))).row))  # after 0.2 s
        await ledger.looking((await ledger.mark_sent(await begin("looking"))).row)  # after 10 s
        await ledger.settle(await begin("done"), State.DONE, DONE)
        await ledger.settle(await begin("rejected"), State.REJECTED, DONE)
        due = []
        for after in (0, 0.2, 3, 9.9, 10):
            home.time.now = start + after
            due.append([found.key.order for found in await ledger.due(10)])
        assert due[:4] == [[], ["unknown"], ["unknown", "retryable"], ["unknown", "retryable"]]
        assert (due[4][:2], set(due[4][2:])) == (["unknown", "retryable"], {"intent", "looking"})
        assert [found.key.order for found in await ledger.due(1)] == ["unknown"]

    home.run(story)


def test_one_process_leads_at_a_time(home: Home) -> None:
    async def story(first: Ledger) -> None:
        second = await home.open()
        try:
            assert (await first.lead(5), await second.lead(5), await first.lead(5)) == (True, False, True)
            home.time.now += 4.9
            assert (await second.lead(5), await first.lead(5)) == (False, True)
            home.time.now += 5
            assert (await second.lead(5), await first.lead(5)) == (True, False)
            await second.lead(0)
            assert await first.lead(5)
        finally:
            await second.close()

    home.run(story)


def test_the_backlog_counts_what_is_not_finished(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        assert await ledger.backlog() == Backlog({}, 0.0)
        for name in ("a", "b"):
            await claimed(ledger, Key("", "", name))
            home.time.now += 3
        await ledger.retry_later(await claimed(ledger, Key("", "", "c")), 1, "refused")
        await ledger.settle(await claimed(ledger), State.DONE, DONE)
        found = await ledger.backlog()
        assert found.counts == {State.INTENT: 2, State.RETRYABLE: 1}
        assert round(found.oldest_s, 3) == 6

    home.run(story)


def test_finished_rows_are_found_by_order_and_state(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for name in ("a", "b", "c"):
            mine = await claimed(ledger, Key("", "", name))
            home.time.now += 1
            if name != "b":
                await ledger.settle(mine, State.DONE, DONE)
        assert [found.key.order for found in await ledger.find()] == ["c", "a", "b"]
        assert [found.key.order for found in await ledger.find(state=State.DONE)] == ["c", "a"]
        assert [found.key.order for found in await ledger.find(order="b")] == ["b"]
        assert [found.key.order for found in await ledger.find(state=State.INTENT, order="a")] == []
        assert [found.key.order for found in await ledger.find(limit=1)] == ["c"]

    home.run(story)


def test_bodies_go_after_a_month_and_rows_after_a_year(home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for name in ("a", "b", "c"):
            await ledger.settle(await claimed(ledger, Key("", "", name)), State.DONE, DONE)
        open_row = await claimed(ledger)
        assert await ledger.prune() == 0
        home.time.now += TRIM_AFTER_S + 1
        young = await ledger.settle(await claimed(ledger, Key("", "", "young")), State.DONE, DONE)
        assert [await ledger.prune(2), await ledger.prune(2), await ledger.prune(2)] == [2, 1, 0]
        trimmed = await shown(ledger, Key("", "", "a"))
        assert (trimmed.state, trimmed.order, trimmed.status, trimmed.reply) == (State.DONE, b"", 200, None)
        assert await ledger.claim(trimmed.key, PRINT, BODY, "") == Replay(State.DONE, 200, None)
        assert await ledger.claim(trimmed.key, b"\x02", BODY, "") == Mismatch()
        assert await shown(ledger, young.key) == young
        home.time.now += KEEP_S - TRIM_AFTER_S
        assert [await ledger.prune(3), await ledger.prune(3)] == [4, 0]  # and "young" is trimmed
        left = await ledger.find()
        assert {found.key.order for found in left} == {"young", KEY.order}
        assert await shown(ledger) == open_row

    home.run(story)


def test_a_ledger_that_is_closed_says_so(home: Home) -> None:
    async def story() -> None:
        ledger = await home.open()
        await ledger.ping()
        await ledger.close()
        for call in (ledger.ping(), ledger.show(KEY), ledger.claim(KEY, PRINT, BODY, "")):
            with pytest.raises(LedgerUnavailable):
                await call

    asyncio.run(story())


def test_a_step_that_fails_writes_nothing(home: Home) -> None:
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


def test_an_older_schema_is_brought_up_to_date_with_its_rows(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home.run(claimed)
    table = "orders" if home.store == "sqlite" else "mapper_orders"
    newer = (
        *migrations(home).MIGRATIONS,
        (f"ALTER TABLE {table} ADD COLUMN note text", f"UPDATE {table} SET note = 'x'"),
    )
    monkeypatch.setattr(migrations(home), "MIGRATIONS", newer)
    for _ in range(2):  # the second time there is nothing left to do
        assert home.run(shown) == first
    monkeypatch.undo()
    with pytest.raises(LedgerTooNew, match=r"version 2.*up to 1"):
        home.run(shown)


def test_a_migration_that_fails_leaves_nothing_behind(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home.run(claimed)
    table = "orders" if home.store == "sqlite" else "mapper_orders"
    newer = (*migrations(home).MIGRATIONS, (f"DELETE FROM {table}", "NONSENSE"))
    with monkeypatch.context() as patched:
        patched.setattr(migrations(home), "MIGRATIONS", newer)
        with pytest.raises(LedgerUnavailable):
            home.run(shown)
    assert home.run(shown) == first


# -- SQLite --------------------------------------------------------------------------------------------------------


def test_the_file_is_its_owner_s_alone(sqlite_home: Home) -> None:
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


def test_what_is_committed_is_on_disk(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        pragma = "SELECT (SELECT * FROM pragma_journal_mode), (SELECT * FROM pragma_synchronous)"
        assert await in_thread(ledger, lambda database: database.execute(pragma).fetchone()) == ("wal", 2)

    sqlite_home.run(story)


def test_a_full_disk_is_said_and_breaks_nothing(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        await in_thread(ledger, lambda database: database.execute("PRAGMA max_page_count = 16").fetchone())

        async def fill() -> None:
            for n in range(100):
                await ledger.claim(Key("", "", str(n)), PRINT, b"x" * 2000, "")

        with pytest.raises(LedgerUnavailable) as caught:
            await fill()
        assert caught.value.reason == "ledger_full"
        assert caught.value.status("consume") == 500
        assert await shown(ledger) == mine
        assert await in_thread(ledger, lambda database: database.execute("PRAGMA integrity_check").fetchone()) == (
            "ok",
        )
        with pytest.raises(LedgerUnavailable):
            await ledger.settle(mine, State.DONE, Answer(200, b"x" * 50_000))
        assert await shown(ledger) == mine
        await in_thread(ledger, lambda database: database.execute("PRAGMA max_page_count = 10000").fetchone())
        await ledger.settle(mine, State.DONE, Answer(200, b"x" * 50_000))

    sqlite_home.run(story)


def test_another_writer_is_waited_for_without_holding_up_the_event_loop(sqlite_home: Home) -> None:
    async def story() -> None:
        store = await ledger_sqlite.SqliteStore.open(str(sqlite_home.file), sqlite_home.time.clock(), busy_s=0.2)
        ledger = Ledger(store, "me", 60, 10, lambda: 0.0)
        other = sqlite3.connect(sqlite_home.file, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            claim = asyncio.create_task(ledger.claim(KEY, PRINT, BODY, ""))
            worst, last = 0.0, time.monotonic()
            while not claim.done():
                await asyncio.sleep(0.005)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
            with pytest.raises(LedgerUnavailable) as caught:
                await claim
            assert caught.value.reason == "ledger_busy"
            assert worst < 0.15
            waiting = asyncio.create_task(ledger.claim(KEY, PRINT, BODY, ""))
            await asyncio.sleep(0.02)
            other.execute("ROLLBACK")
            assert type(await waiting) is New
        finally:
            other.close()
            await ledger.close()

    asyncio.run(story())


def test_wal_is_turned_on_by_several_at_once(sqlite_home: Home) -> None:
    """SQLite refuses some of them without making them wait, about one in a hundred: here the first three times."""
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


def test_after_a_restart_of_the_machine_leases_are_over_and_the_quarantine_starts_anew(sqlite_home: Home) -> None:
    async def before(ledger: Ledger) -> None:
        await ledger.mark_sent(await claimed(ledger))
        await claimed(ledger, Key("", "", "unsent"))
        await ledger.looking((await ledger.mark_sent(await claimed(ledger, Key("", "", "unknown")))).row)
        assert await ledger.lead(1_000)

    async def after(ledger: Ledger) -> None:
        sent_before = await shown(ledger)
        assert (sent_before.sent_at, sent_before.lease_until, sent_before.look_at) == (0, 0, 0)
        assert len(await ledger.due(5)) == 3
        assert await ledger.lead(5)
        assert type(await ledger.claim(Key("", "", "unsent"), PRINT, BODY, "")) is Again
        for key in (KEY, Key("", "", "unknown")):
            assert isinstance(await ledger.absent(await claimed(ledger, key)), Wait)
        sqlite_home.time.now = 60.5
        for key in (KEY, Key("", "", "unknown")):
            assert isinstance(await ledger.absent(await claimed(ledger, key)), Wait)
            sqlite_home.time.now += 1
            assert isinstance(await ledger.absent(await claimed(ledger, key)), Resend)

    sqlite_home.run(before)
    sqlite_home.time.boot, sqlite_home.time.now = "second boot", 4.0
    sqlite_home.run(after)


def test_within_one_start_of_the_machine_leases_outlive_the_process(sqlite_home: Home) -> None:
    sqlite_home.run(claimed)

    async def after(ledger: Ledger) -> None:
        assert await ledger.claim(KEY, PRINT, BODY, "") == Busy(10)

    sqlite_home.run(after)


def test_the_machine_s_clock_counts_from_its_start() -> None:
    clock = system_clock()
    assert clock.boot == system_clock().boot != ""
    assert clock.now() <= clock.now()
    assert abs(clock.wall() - time.time()) < 5
    if sys.platform == "linux":
        assert clock.now() < clock.wall() - 1e8


def test_what_cannot_be_a_ledger_is_said_at_once(tmp_path: Path) -> None:
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


def test_a_ledger_that_cannot_be_written_is_not_ready(sqlite_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        await ledger.ping()
        await in_thread(ledger, lambda database: database.execute("PRAGMA query_only = on"))
        for call in (ledger.ping(), ledger.claim(KEY, PRINT, BODY, "")):
            with pytest.raises(LedgerUnavailable) as caught:
                await call
            assert caught.value.reason == "ledger_readonly"

    sqlite_home.run(story)


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_no_error_shows_the_password() -> None:
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


def test_no_repr_shows_the_password(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        for secret in (postgres.PASSWORD, urllib.parse.quote(postgres.PASSWORD, safe="")):
            assert secret not in repr(ledger) + repr(vars(ledger.store)) + str(ledger.store)

    postgres_home.run(story)


async def aside(query: str, *arguments: Any) -> Any:
    """Runs something on a connection of its own."""
    connection = await asyncpg.connect(postgres.url())
    try:
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()


OTHERS = "application_name = 'promotions-mapper' AND pid <> pg_backend_pid()"


def test_connections_that_are_lost_are_replaced(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        mine = await claimed(ledger)
        for _ in range(5):
            await asyncio.gather(*(shown(ledger) for _ in range(4)))
            assert len(await aside(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")) >= 1
            assert await shown(ledger) == mine
        await ledger.mark_sent(mine)

    postgres_home.run(story)


def test_a_connection_is_used_again_unless_it_was_idle_for_long(
    postgres_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(ledger: Ledger) -> None:
        store: Any = ledger.store
        server = [(await store._fetch("SELECT pg_backend_pid()"))[0][0] for _ in range(3)]
        assert len(set(server)) == 1
        monkeypatch.setattr(ledger_postgres, "_MAX_IDLE_S", 0.0)
        assert (await store._fetch("SELECT pg_backend_pid()"))[0][0] != server[0]

    postgres_home.run(story)


def test_nobody_waits_for_a_connection_without_end(postgres_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_nothing_is_waited_for_without_end(postgres_home: Home) -> None:
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


def test_no_lock_outlives_a_statement_and_every_commit_is_durable(postgres_home: Home) -> None:
    async def story(ledger: Ledger) -> None:
        await asyncio.gather(*(claimed(ledger, Key("", "", str(n))) for n in range(40)))
        states = await aside(f"SELECT state FROM pg_stat_activity WHERE {OTHERS}")
        assert {found["state"] for found in states} == {"idle"}
        assert len(states) <= 10
        store = ledger.store
        assert isinstance(store, ledger_postgres.PostgresStore)
        assert (await store._fetch("SHOW synchronous_commit"))[0][0] == "on"

    # Also where the database's default is another.
    postgres_home.url = postgres_home.url + "&synchronous_commit=off"
    postgres_home.run(story)


def test_time_is_the_database_s() -> None:
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


def test_what_was_computed_from_a_row_that_has_changed_since_is_thrown_away(
    postgres_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
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
