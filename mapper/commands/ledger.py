"""`promotions-mapper ledger`: shows what became of an order, and what the operator can do about it."""

import argparse
import asyncio
import os
import shlex
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from mapper import settings
from mapper.commands import Commands, add_command, fail, print_columns, utf8, whole_number
from mapper.domain.errors import Problem
from mapper.ops.logs import printable
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import NO_NOTICES, OPEN, Row, State, WrongMove

MEANING: dict[State, tuple[str, str]] = {
    State.INTENT: ("in progress", "A process works on it, or has crashed; the service continues by itself."),
    State.RETRYABLE: (
        "waiting for the caller",
        (
            "The engine has certainly not redeemed it. It is redeemed when the same id comes again, with any content;"
            " with MAPPER_AFTER_FAILURE=redeem_later, also without a caller."
        ),
    ),
    State.UNKNOWN: ("being looked up", "It was sent, but no reply came back; the service asks the engine by itself."),
    State.MANUAL: (
        "NEEDS YOU",
        (
            "The engine could not say for a day what became of this order. Look up its session in the engine's"
            " console. If it is redeemed there: `ledger settle KEY redeemed`. If not: `ledger settle KEY refused`, or"
            " `cancelled` if it was being cancelled. If the engine works again: `ledger retry KEY` asks it once more."
        ),
    ),
    State.DONE: ("redeemed", "Nothing to do: the same order, sent again, gets the same answer."),
    State.REJECTED: ("refused", "Nothing is redeemed: the same id, sent again, is checked again."),
    State.REPAIRED: ("redeemed, repaired", "It was redeemed twice; all but the first redemption were rolled back."),
    State.CANCELLING: ("being cancelled", "The service undoes the redemption in the engine by itself."),
    State.CANCELLED: ("cancelled", "Nothing of it is redeemed in the engine. The same id, sent again, is refused."),
}
"""By state: a word for it, and what the operator can do."""


class _NotFound(Exception):
    """There is no such order, or more than one. The message says what to do."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "ledger", "show the ledger of consumed orders; settle those that need you")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    listing = add_command(verbs, "list", "list the orders that are not finished")
    which = listing.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="list finished orders, too")
    which.add_argument(
        "--state",
        choices=[state.value for state in State],
        metavar="STATE",
        help="list the orders in this state: %(choices)s",
    )
    which.add_argument("--waiting", action="store_true", help="list the orders that wait for their caller")
    which.add_argument(
        "--unconfirmed", action="store_true", help="list the redeemed orders whose answer no caller received"
    )
    listing.add_argument(
        "--limit",
        type=whole_number("a limit is", 1, 1_000_000),
        default=50,
        metavar="N",
        help="how many at most (default: %(default)s)",
    )
    listing.set_defaults(act=_list)

    for verb, act, text in (
        ("show", _show, "show all that is known of an order"),
        ("retry", _retry, "look an order up in the engine once more"),
        ("settle", _settle, "record what became of an order that needs you"),
        ("forget", _forget, "erase the body of a finished order; it is still answered the same"),
    ):
        one = add_command(verbs, verb, text)
        one.add_argument("key", metavar="KEY", type=utf8, help="the order's id")
        one.add_argument("--space", type=utf8, help="the Nacelle space, if several have this order id")
        one.add_argument("--engine", type=utf8, help="the engine, if several have redeemed this order id")
        one.set_defaults(act=act)
        if verb == "settle":
            outcomes = ["redeemed", "refused", "cancelled"]
            one.add_argument("outcome", choices=outcomes, help="what the engine's console shows")

    pruning = add_command(
        verbs, "prune", "erase what is old: bodies after MAPPER_KEEP_BODIES_S, finished orders after 13 months"
    )
    pruning.set_defaults(act=_prune)
    backing_up = add_command(verbs, "backup", "copy a SQLite ledger, even while it is in use")
    backing_up.add_argument("file", metavar="FILE", help="the copy; must not exist")
    parser.set_defaults(run=_run)
    backing_up.set_defaults(run=_backup)


def _run(chosen: argparse.Namespace) -> int:
    return asyncio.run(_with_ledger(chosen))


async def _with_ledger(chosen: argparse.Namespace) -> int:
    url = _url()
    try:
        ledger = await open_ledger(url, create=False)
    except Problem as problem:
        return fail(f"{problem.message} It is the one of MAPPER_LEDGER_URL; reason: {problem.reason}.")
    try:
        result: int = await chosen.act(ledger, chosen)
    except _NotFound as error:
        return fail(str(error))
    except Problem as problem:
        return fail(f"{problem.message} Reason: {problem.reason}.")
    finally:
        await ledger.close()
    return result


def _url() -> str:
    reader = settings.Reader(os.environ)
    url = reader.ledger_url()
    reader.check()
    return url


def _file(url: str) -> Path | None:
    """Returns the path of a SQLite ledger, or None for another database."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


async def _list(ledger: Ledger, chosen: argparse.Namespace) -> int:
    found = await _find(ledger, chosen)
    if not found:
        is_part = chosen.all or chosen.state or chosen.waiting or chosen.unconfirmed
        print("No such orders." if is_part else "Every order is finished.")
        return 0
    shown = found[: chosen.limit]
    columns = {
        "ORDER": [row.key.order for row in shown],
        "SPACE": [row.key.space for row in shown],
        "ENGINE": [row.key.engine for row in shown],
        "STATE": [MEANING[row.state][0] for row in shown],
        "CHANGED": [_ago(row.updated_at) for row in shown],
        "TRIES": [str(row.attempts) for row in shown],
        "REASON": [row.reason for row in shown],
    }
    for name in ("SPACE", "ENGINE"):
        if len(set(columns[name])) == 1:
            del columns[name]
    print_columns(columns)
    if len(found) > len(shown):
        print(f"There are more than these {len(shown)} orders: --limit shows them.", file=sys.stderr)
    return 0


async def _find(ledger: Ledger, chosen: argparse.Namespace) -> list[Row]:
    """Returns the chosen rows, latest first; more than the limit if there are more."""
    if chosen.unconfirmed:
        return await ledger.unconfirmed(chosen.limit + 1)
    if chosen.waiting:
        states: tuple[State, ...] = (State.RETRYABLE,)
    elif chosen.state:
        states = (State(chosen.state),)
    else:
        states = tuple(State) if chosen.all else OPEN
    found = [row for state in states for row in await ledger.find(state=state, limit=chosen.limit + 1)]
    return sorted(found, key=lambda row: row.updated_at, reverse=True)


async def _show(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    word, advice = MEANING[row.state]
    facts = [
        ("order", row.key.order),
        ("space", row.key.space or "none"),
        ("engine", row.key.engine),
        ("session", row.session),
        ("state", f"{word} ({row.state.value})"),
        ("reason", row.reason or "none"),
        ("received", _time(row.created_at)),
        ("changed", f"{_time(row.updated_at)}, {_ago(row.updated_at)} ago"),
        ("tries", str(row.attempts)),
        ("attempt", str(row.attempt)),
        ("look-ups", str(row.checks)),
        ("handle", row.handle or "none"),
        *([("redeemed as", row.passed_from)] if row.passed_from else []),
        ("confirmed", _time(row.confirmed_at) if row.confirmed_at else "not yet"),
        ("body", f"{len(row.order)} bytes" if row.order else "erased"),
    ]
    for name, value in facts:
        print(f"{name:>10}  {printable(value)}")
    print(f"\n{advice}")
    return 0


async def _retry(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    match row.state:
        case State.MANUAL:
            await ledger.reopen(row)
        case State.UNKNOWN | State.CANCELLING if row.lease_until <= (await ledger.moment()).now:
            await ledger.hurry(row)
        case State.UNKNOWN | State.CANCELLING | State.INTENT:
            return fail("A process is at this order just now; look again in a minute.")
        case _:
            return fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    print("The service will ask the engine once more, within seconds.")
    return 0


async def _settle(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row.state is not State.MANUAL:
        return fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    match chosen.outcome:
        case "redeemed":
            await ledger.redeemed(row, NO_NOTICES, "", "settled_by_hand", confirmed=False)
        case "refused":
            await ledger.rejected(row, "settled_by_hand")
        case _:
            await ledger.cancelled(row)
    print(f"The order is settled as {chosen.outcome}. Sent again, it is answered accordingly.")
    return 0


async def _forget(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    try:
        await ledger.forget(row)
    except WrongMove:
        return fail(f"The order is {MEANING[row.state][0]}: its body is still needed. {MEANING[row.state][1]}")
    again = "tried again" if row.state in (State.RETRYABLE, State.REJECTED) else "answered the same"
    print(f"Its body is erased. The same order, sent again, is {again}.")
    return 0


async def _prune(ledger: Ledger, chosen: argparse.Namespace) -> int:
    reader = settings.Reader(os.environ)
    keep_bodies_s = reader.number("MAPPER_KEEP_BODIES_S", *settings.KEEP_BODIES_S)
    reader.check()
    changed = 0
    while count := await ledger.prune(keep_bodies_s):
        changed += count
    print(f"{changed} orders trimmed or forgotten.")
    return 0


def _backup(chosen: argparse.Namespace) -> int:
    """Copies the ledger's file as it is, whatever version of the service wrote it."""
    path, copy = _file(_url()), Path(chosen.file)
    if path is None:
        return fail("This ledger is a PostgreSQL database; copy it with pg_dump.")
    try:
        if not path.is_file():
            return fail(f"There is no ledger at {path}, the path in MAPPER_LEDGER_URL.")
    except OSError as error:
        return fail(f"{path}, the path in MAPPER_LEDGER_URL, cannot be opened: {error.strerror}.")
    try:
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # orders hold personal data
    except OSError as error:
        return fail(f"{copy} cannot be created: {error.strerror}.")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except BaseException as error:
        copy.unlink()  # half a copy looks like a whole one
        if not isinstance(error, sqlite3.Error):
            raise
        return fail(f"{path} cannot be copied to {copy}: {error}.")
    print(f"The ledger is copied to {copy}.")
    return 0


async def _row(ledger: Ledger, chosen: argparse.Namespace) -> Row:
    """Returns the row of the chosen order. Raises `_NotFound` if there is none, or several."""
    rows = await ledger.find(order=chosen.key.strip())
    found = [row for row in rows if chosen.space in (None, row.key.space) and chosen.engine in (None, row.key.engine)]
    if len(found) == 1:
        return found[0]
    if not rows:
        raise _NotFound("The ledger has no order with this id.")
    options = sorted(f"--space {shlex.quote(row.key.space)} --engine {row.key.engine}" for row in found or rows)
    which = "Several orders have" if found else "No order there has"
    raise _NotFound(f"{which} this id; name one of these: {', '.join(options)}.")


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(unix: float) -> str:
    seconds = max(0, int(time.time() - unix))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
