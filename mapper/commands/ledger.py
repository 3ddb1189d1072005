"""`promotions-mapper ledger`: what became of an order, for the merchant at 2 a.m., and what can be done about it."""

import argparse
import asyncio
import os
import sys
import time
from datetime import UTC, datetime

from mapper import settings
from mapper.domain import checkout
from mapper.domain import notices as notes
from mapper.domain.errors import Problem
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import FINAL, Answer, Row, State, WrongMove, refusal

# What a state means, and what is to be done about it.
MEANING: dict[State, tuple[str, str]] = {
    State.INTENT: ("in progress", "A process is at it, or was when it ended; it is taken up again by itself."),
    State.RETRYABLE: ("to be sent again", "The engine has certainly not redeemed it yet; it is sent again by itself."),
    State.UNKNOWN: ("asking the engine", "Sent, but no answer came back; the engine is asked again by itself."),
    State.MANUAL: (
        "NEEDS YOU",
        (
            "The engine could not say for a day whether it has redeemed this order. Look its session up in the engine's"
            " own console. If it is redeemed there: `ledger settle KEY redeemed`. If it is not: `ledger settle KEY "
            "refused`. If the engine works again: `ledger retry KEY` has it asked once more."
        ),
    ),
    State.DONE: ("redeemed", "Nothing to do: the same order, sent again, gets the same answer."),
    State.REJECTED: ("refused", "Nothing was redeemed: the same order, sent again, is refused with the same answer."),
    State.REPAIRED: ("redeemed, repaired", "It had been redeemed twice; all but the first were rolled back."),
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the program's."""
    parser = commands.add_parser("ledger", help="look into the ledger of consumed orders; settle what needs a person")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="the orders that are not finished; --all lists every one")
    listing.add_argument("--all", action="store_true", help="finished ones, too")
    listing.add_argument("--state", choices=[state.value for state in State], help="only those in this state")
    listing.add_argument("--limit", type=int, default=50, help="how many at the most (default: %(default)s)")
    listing.set_defaults(act=_list)

    for verb, act, text in (
        ("show", _show, "all that is known of an order"),
        ("retry", _retry, "have an order that needs you looked up in the engine once more"),
        ("settle", _settle, "say yourself what became of an order that needs you"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("key", metavar="KEY", help="the order's id")
        one.add_argument("--space", help="the Nacelle space, where several use the same order ids")
        one.set_defaults(act=act)
        if verb == "settle":
            one.add_argument("outcome", choices=["redeemed", "refused"], help="what the engine's own console says")

    pruning = verbs.add_parser(
        "prune", help="forget what is old: bodies after 30 days, finished orders after 13 months"
    )
    pruning.set_defaults(act=_prune)
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    return asyncio.run(_with_ledger(chosen))


async def _with_ledger(chosen: argparse.Namespace) -> int:
    url = settings.Reader(os.environ).text("MAPPER_LEDGER_URL")
    try:
        ledger = await open_ledger(url)
    except Problem as problem:
        return _fail(f"{problem.message} MAPPER_LEDGER_URL says where it is; reason: {problem.reason}.")
    try:
        result: int = await chosen.act(ledger, chosen)
    except Problem as problem:
        return _fail(f"{problem.message} Reason: {problem.reason}.")
    finally:
        await ledger.close()
    return result


async def _list(ledger: Ledger, chosen: argparse.Namespace) -> int:
    states = [State(chosen.state)] if chosen.state else [state for state in State if chosen.all or state not in FINAL]
    found = [row for state in states for row in await ledger.find(state=state, limit=chosen.limit)]
    found.sort(key=lambda row: row.updated_at, reverse=True)
    if not found:
        print("No such orders." if chosen.all or chosen.state else "Every order is finished.")
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
        ("look-ups", str(row.looks)),
        ("answer", "none yet" if row.status is None else f"{row.status}, {len(row.reply or b'')} bytes"),
    ]
    for name, value in facts:
        print(f"{name:>10}  {value}")
    print(f"\n{advice}")
    return 0


async def _retry(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    try:
        await ledger.reopen(row)
    except WrongMove:
        return _fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    print("The engine will be asked once more, by the service, within seconds.")
    return 0


async def _settle(ledger: Ledger, chosen: argparse.Namespace) -> int:
    row = await _row(ledger, chosen)
    if row is None:
        return 1
    if row.state is not State.MANUAL:
        return _fail(f"The order is {MEANING[row.state][0]}. {MEANING[row.state][1]}")
    if chosen.outcome == "redeemed":
        currency = settings.Reader(os.environ).text("MAPPER_DEFAULT_CURRENCY").upper()
        order = checkout.parse(row.order, "consume", currency)
        answer = Answer(200, notes.as_it_came(order), "settled_by_hand")
        await ledger.settle(row, State.DONE, answer)
    else:
        problem = Problem("This order's promotions were not redeemed.", reason="settled_by_hand")
        await ledger.settle(row, State.REJECTED, refusal(problem))
    print(f"Settled as {chosen.outcome}. The same order, sent again, is answered accordingly.")
    return 0


async def _prune(ledger: Ledger, chosen: argparse.Namespace) -> int:
    changed = 0
    while count := await ledger.prune():
        changed += count
    print(f"{changed} orders trimmed or forgotten.")
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
