"""`promotions-mapper explain FILE`: shows which discounts a checkout gets, and why."""

import argparse
import asyncio
import json
import os

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mapper import settings
from mapper.commands import Commands, add_command, fail, read_input
from mapper.domain.errors import InvalidRequest
from mapper.engine import clients
from mapper.explain import Explanation, explain, rows
from mapper.ops.logs import printable
from mapper.settings import Settings


def add(commands: Commands) -> None:
    parser = add_command(commands, "explain", "show which discounts a checkout or an order gets, and why")
    parser.add_argument(
        "file", metavar="FILE", help="a checkout, an order, an answer to one, or a record; - for standard input"
    )
    parser.add_argument("--exchange", action="store_true", help="show the engine's requests and replies, too")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Returns 0 if it is explained, 1 if the engine fails or the body is invalid, 2 for wrong settings or files."""
    configured = settings.load(os.environ)
    try:
        body = read_input(chosen.file)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", 2)
    try:
        explanation = asyncio.run(_explain(configured, body))
    except InvalidRequest as problem:
        return fail(f"{problem.details['pointer'] or '/'}: {problem.message}")
    show(explanation, Console(), exchange=chosen.exchange)
    return 1 if explanation.problem or not explanation.adds_up else 0


async def _explain(configured: Settings, body: bytes) -> Explanation:
    transport = clients.create(configured.http_client, connections=2)
    try:
        return await explain(configured, transport, body)
    finally:
        await transport.aclose()


def show(explanation: Explanation, console: Console, *, exchange: bool = False) -> None:
    times = ", ".join(f"{step} {ms:.1f} ms" for step, ms in explanation.ms.items()) or "as recorded"
    console.print(
        f"{explanation.engine}, session {explanation.session!r}, {explanation.currency or 'no currency'}; {times}",
        markup=False,
    )
    if explanation.problem:
        console.print(_plain(f"The engine gave no outcome: {explanation.problem}"), style="red")
        return
    table = Table("line", "quantity", "price", "amount", box=None, pad_edge=False)
    for name in ("quantity", "price", "amount"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for row in rows(explanation):
        name = f"{row.name} ({row.detail})" if row.detail else row.name
        indented = Padding.indent(_plain(name), 2 if row.kind in ("step", "net") else 0)
        amount = f"-{row.amount}" if row.kind in ("step", "total") else row.amount
        table.add_row(indented, row.quantity, row.price, amount, style="bold" if row.kind in ("net", "total") else "")
    console.print(table)
    if explanation.clamped:
        console.print(f"{explanation.text(explanation.clamped)} exceeds the prices, and is not taken off.")
    texts = [
        f"{one.code}: {one.reason.message} ({one.reason}; the engine says {one.engine_reason})"
        for one in explanation.rejected
    ]
    texts += [f"{hint.code + ': ' if hint.code else ''}{hint.text}" for hint in explanation.diagnostics]
    for text in texts:
        console.print(_plain(text))
    for notice in explanation.notices:
        console.print(_plain(f"notice {notice.type}: {notice.text}"), style="dim")
    for call in explanation.exchanges:
        console.print(
            f"{call.operation}: {call.method} {call.path} -> {call.status}, {call.ms:.0f} ms", style="dim", markup=False
        )
        if exchange:
            console.print_json(json.dumps({"request": call.request, "reply": call.reply}))
    if not explanation.adds_up:
        console.print(
            "The discounts do not add up to the total. This is a fault of the mapper; please report it.", style="red"
        )


def _plain(text: str) -> Text:
    """A text of a body or of the engine: without markup and control characters."""
    return Text(printable(text))
