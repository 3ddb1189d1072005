"""`promotions-mapper ledger`: what became of an order, for the merchant at 2 a.m., and what can be done about it."""

import argparse
import asyncio
import os
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from mapper import settings
from mapper.commands import whole_number
from mapper.domain.errors import Problem
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import OPEN, Row, State, WrongMove

# What a state means, and what is to be done about it.
MEANING: dict[State, tuple[str, str]] = {
    State.INTENT: ("in progress", "A process is at it, or was when it ended; it is taken up again by itself."),
    State.RETRYABLE: (
        "waiting for the caller",
        (
            "The engine has certainly not redeemed it. It is redeemed when the same id comes again, with any content;"
            " with MAPPER_AFTER_FAILURE=redeem_later, also by itself."
        ),
    ),
    State.UNKNOWN: ("being looked up", "Sent, but no answer came back; the engine is asked again by itself."),
    State.MANUAL: (
        "NEEDS YOU",
        (
            "The engine could not say for a day what became of this order. Look its session up in the engine's own"
            " console. If it is redeemed there: `ledger settle KEY redeemed`. If it is not: `settle KEY refused`, or"
            " `cancelled` where it was to be. If the engine works again: `ledger retry KEY` has it asked once more."
        ),
    ),
    State.DONE: ("redeemed", "Nothing to do: the same order, sent again, gets the same answer."),
    State.REJECTED: ("refused", "Nothing was redeemed: the same id, sent again, is checked anew."),
    State.REPAIRED: ("redeemed, repaired", "It had been redeemed twice; all but the first were rolled back."),
    State.CANCELLING: ("being cancelled", "The engine is asked to take it back until it has; by itself."),
    State.CANCELLED: ("cancelled", "Nothing of it stands in the engine. The same id, sent again, is refused."),
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the program's."""
    parser = commands.add_parser("ledger", help="look into the ledger of consumed orders; settle what needs a person")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="the orders that are not finished; --all lists every one")
    listing.add_argument("--all", action="store_true", help="finished ones, too")
    listing.add_argument("--state", choices=[state.value for state in State], help="only those in this state")
    listing.add_argument("--waiting", action="store_true", help="only those that wait for their caller")
    listing.add_argument("--unconfirmed", action="store_true", help="those redeemed of which no caller was ever told")
    listing.add_argument(
        "--limit",
        type=whole_number("a limit is", 1, 1_000_000),
        default=50,
        help="how many at the most (default: %(default)s)",
    )
    listing.set_defaults(act=_list)

    for verb, act, text in (
        ("show", _show, "all that is known of an order"),
        ("retry", _retry, "have an order that needs you looked up in the engine once more, or one that is due now"),
        ("settle", _settle, "say yourself what became of an order that needs you"),
        ("forget", _forget, "erase the body of a finished order; what it takes to answer it the same stays"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("key", metavar="KEY", help="the order's id")
        one.add_argument("--space", help="the Nacelle space, where several use the same order ids")
        one.set_defaults(act=act)
        if verb == "settle":
            outcomes = ["redeemed", "refused", "cancelled"]
            one.add_argument("outcome", choices=outcomes, help="what the engine's own console says")

    pruning = verbs.add_parser(
        "prune", help="forget what is old: bodies after MAPPER_KEEP_BODIES_S, finished orders after 13 months"
    )
    pruning.set_defaults(act=_prune)
    backing_up = verbs.add_parser("backup", help="copy a SQLite ledger, also while it is in use")
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
        return _fail(f"{problem.message} MAPPER_LEDGER_URL says where it is; reason: {problem.reason}.")
    try:
        result: int = await chosen.act(ledger, chosen)
    except Problem as problem:
        return _fail(f"{problem.message} Reason: {problem.reason}.")
    finally:
        await ledger.close()
    return result


def _url() -> str:
    reader = settings.Reader(os.environ)
    url = reader.ledger_url()
    if reader.problems:
        raise settings.InvalidSettings(reader.problems)
    return url


def _file(url: str) -> Path | None:
    """Where a SQLite ledger is; None for another."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


async def _list(ledger: Ledger, chosen: argparse.Namespace) -> int:
    found = await _found(ledger, chosen)
    if not found:
        is_part = chosen.all or chosen.state or chosen.waiting or chosen.unconfirmed
        print("No such orders." if is_part else "Every order is finished.")
        return 0
    lines = [("ORDER", "STATE", "CHANGED", "TRIES", "REASON")]
    lines += [
        (row.key.order, MEANING[row.state][0], _ago(row.updated_at), str(row.attempts), row.reason)
        for row in found[: chosen.limit]
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


async def _found(ledger: Ledger, chosen: argparse.Namespace) -> list[Row]:
    """The rows that are asked for, the latest first."""
    if chosen.unconfirmed:
        return await ledger.unconfirmed(chosen.limit)
    if chosen.waiting:
        states: tuple[State, ...] = (State.RETRYABLE,)
    elif chosen.state:
        states = (State(chosen.state),)
    else:
        states = tuple(State) if chosen.all else OPEN
    found = [row for state in states for row in await ledger.find(state=state, limit=chosen.limit)]
    return sorted(found, key=lambda row: row.updated_at, reverse=True)


async def _show(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    word, advice = MEANING[row.state]
    facts = [
        ("order", row.key.order),
        ("space", row.key.space or "none named"),
        ("engine", row.key.engine),
        ("session", row.session),
        ("state", f"{word} ({row.state.value})"),
        ("reason", row.reason or "none"),
        ("first came", _time(row.created_at)),
        ("changed", f"{_time(row.updated_at)}, {_ago(row.updated_at)} ago"),
        ("tries", str(row.attempts)),
        ("attempt", str(row.attempt)),
        ("look-ups", str(row.checks)),
        ("handle", row.handle or "none"),
        *([("redeemed as", row.passed_from)] if row.passed_from else []),
        ("confirmed", _time(row.confirmed_at) if row.confirmed_at else "to nobody yet"),
        ("body", f"{len(row.order)} bytes" if row.order else "erased"),
    ]
    for name, value in facts:
        print(f"{name:>10}  {value}")
    print(f"\n{advice}")
    return 0


async def _retry(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    match row.state:
        case State.MANUAL:
            await ledger.reopen(row)
        case State.UNKNOWN | State.CANCELLING if row.lease_until <= (await ledger.moment()).now:
            await ledger.hurry(row)
        case State.UNKNOWN | State.CANCELLING | State.INTENT:
            return _fail("A process is at this order just now; look again in a minute.")
        case _:
            return _fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    print("The engine will be asked once more, by the service, within seconds.")
    return 0


async def _settle(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    if row.state is not State.MANUAL:
        return _fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    match chosen.outcome:
        case "redeemed":
            await ledger.redeemed(row, b"[]", "", "settled_by_hand", confirmed=False)
        case "refused":
            await ledger.rejected(row, "settled_by_hand")
        case _:
            await ledger.cancelled(row)
    print(f"Settled as {chosen.outcome}. The same order, sent again, is answered accordingly.")
    return 0


async def _forget(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    try:
        await ledger.forget(row)
    except WrongMove:
        return _fail(f"The order is {MEANING[row.state][0]}: its body is still needed. {MEANING[row.state][1]}")
    again = "tried anew" if row.state in (State.RETRYABLE, State.REJECTED) else "answered the same"
    print(f"Its body is erased. The same order, sent again, is {again}.")
    return 0


async def _prune(ledger: Ledger, chosen: argparse.Namespace) -> int:
    reader = settings.Reader(os.environ)
    keep_bodies_s = reader.number("MAPPER_KEEP_BODIES_S", *settings.KEEP_BODIES_S)
    if reader.problems:
        raise settings.InvalidSettings(reader.problems)
    changed = 0
    while count := await ledger.prune(keep_bodies_s):
        changed += count
    print(f"{changed} orders trimmed or forgotten.")
    return 0


def _backup(chosen: argparse.Namespace) -> int:
    """A copy to go back to: the ledger is read as it is, whatever version of the service wrote it."""
    path, copy = _file(_url()), Path(chosen.file)
    if path is None:
        return _fail("This ledger is a PostgreSQL database; copy it with pg_dump.")
    if not path.is_file():
        return _fail(f"There is no ledger at {path}. MAPPER_LEDGER_URL says where it is.")
    try:
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # orders are personal data
    except OSError as error:
        return _fail(f"{copy} cannot be made: {error.strerror}.")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        copy.unlink()
        return _fail(f"{path} cannot be copied: {error}.")
    print(f"Copied to {copy}.")
    return 0


async def _row(ledger: Ledger, chosen: argparse.Namespace) -> Row | None:
    found = [row for row in await ledger.find(order=chosen.key) if chosen.space in (None, row.key.space)]
    if len(found) == 1:
        return found[0]
    if found:
        spaces = ", ".join(sorted(row.key.space or "none" for row in found))
        _fail(f"Several orders have this id; name the space: --space, one of {spaces}.")
    else:
        _fail("The ledger has no order with this id.")
    return None


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(unix: float) -> str:
    seconds = max(0, int(time.time() - unix))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
