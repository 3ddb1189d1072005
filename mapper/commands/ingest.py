"""`promotions-mapper ingest`: creates orders at Nacelle from validated checkouts with their payments."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track

from mapper import settings
from mapper.commands import Commands, add_command, fail, print_columns, read_input
from mapper.engine import clients
from mapper.nacelle.check import NotAnOrder
from mapper.nacelle.database import DatabaseUnavailable
from mapper.nacelle.ingest import Ingested, Ingestion
from mapper.nacelle.journal import Entry, journal_in
from mapper.nacelle.noms import Noms
from mapper.ops.logs import log, printable

WORDS = {
    "created": "created",
    "refused": "refused by Nacelle: correct the order or the token, then ingest it again",
    "not_sent": "not sent; nothing was created: ingest it again",
    "unknown": "UNKNOWN: it may have been created; look it up at Nacelle, then settle it (--settle KEY=created|absent)",
    "other_content": "not sent: another order has this id",
}


def add(commands: Commands) -> None:
    parser = add_command(commands, "ingest", "create orders at Nacelle from validated checkouts with their payments")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("path", nargs="?", metavar="FILE", help="a file, a folder of *.json, or - for standard input")
    what.add_argument("--open", action="store_true", help="list the orders that are not created yet")
    what.add_argument(
        "--settle", metavar="KEY=created|absent", type=_settled, help="record the outcome of an unknown order"
    )
    parser.set_defaults(run=run)


def _settled(text: str) -> tuple[str, bool]:
    key, _, word = text.rpartition("=")
    if not key or word not in ("created", "absent"):
        raise argparse.ArgumentTypeError("expected KEY=created or KEY=absent")
    return key, word == "created"


def run(chosen: argparse.Namespace) -> int:
    """Returns 0 if all orders are created, 1 if some are not, 2 for wrong settings or arguments."""
    log.addHandler(logging.NullHandler())  # the sentences below say as much as the log
    configured = settings.load_ingest(os.environ)
    try:
        bodies = [] if chosen.open or chosen.settle else _bodies(chosen.path)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", 2)
    try:
        return asyncio.run(_run(chosen, configured, bodies))
    except DatabaseUnavailable as error:
        return fail(f"The journal in the database of MAPPER_LEDGER_URL cannot be used: {error}.")


Bodies = list[tuple[str, Callable[[], bytes]]]
"""The name of each body, and the function that reads it."""


def _bodies(path: str) -> Bodies:
    if path == "-":
        return [("standard input", lambda: read_input(path))]
    place = Path(path)
    place.stat()
    files = sorted(file for file in place.glob("*.json") if not file.is_dir()) if place.is_dir() else [place]
    return [(file.name, file.read_bytes) for file in files]


async def _run(chosen: argparse.Namespace, configured: settings.IngestSettings, bodies: Bodies) -> int:
    journal = journal_in(configured.ledger_url)
    transport = clients.create(configured.http_client, connections=4)
    try:
        if chosen.settle:
            key, created = chosen.settle
            if not await journal.settle(configured.space, key, created=created):
                return fail(f"There is no order {key!r} whose outcome is unknown.")
            print(f"{key}: {'created' if created else 'not created; it may be ingested again'}.")
            return 0
        if chosen.open:
            return _print_open(await journal.not_created())
        noms = Noms(configured.base_url, configured.authorization, configured.space, transport)
        return await _ingest(Ingestion(noms, journal, configured.default_currency), bodies)
    finally:
        await transport.aclose()
        await journal.close()


async def _ingest(ingestion: Ingestion, bodies: Bodies) -> int:
    """Ingests one order after the other: Nacelle limits the rate, but does not document the limit."""
    console = Console(stderr=True)
    failed = 0
    for name, read in track(bodies, "Ingesting", console=console, transient=True, disable=len(bodies) < 2):
        try:
            body = read()
        except OSError as error:
            failed += 1
            print(f"{name}: not sent; it cannot be read: {error.strerror}")
            continue
        try:
            done = await ingestion.ingest(body)
        except NotAnOrder as error:
            failed += 1
            print(f"{name}: not sent; {len(error.faults)} fault(s):")
            for fault in error.faults:
                print(f"  {printable(fault.pointer) or '/'}: {printable(fault.message)}")
            continue
        failed += done.state != "created"
        print(f"{name}: {printable(_sentence(done))}")
    if len(bodies) != 1:
        print(f"{len(bodies) - failed} of {len(bodies)} created.")
    return 1 if failed else 0


def _sentence(done: Ingested) -> str:
    again = ", as before" if done.again and done.state == "created" else ""
    reason = f" ({done.reason})" if done.state != "created" else ""
    return f"order {done.key} {WORDS[done.state]}{again}{reason}"


def _print_open(entries: list[Entry]) -> int:
    if not entries:
        print("Every order that was ingested is created.")
        return 0
    print_columns(
        {
            "ORDER": [entry.key for entry in entries],
            "STATE": [entry.state for entry in entries],
            "REASON": [entry.reason for entry in entries],
        }
    )
    return 1
