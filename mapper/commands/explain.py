"""`promotions-mapper explain FILE`: what a checkout earns, and why."""

import argparse
import asyncio
import json
import os
import sys

from rich.console import Console
from rich.table import Table

from mapper import settings
from mapper.commands import read_input
from mapper.domain.errors import InvalidRequest
from mapper.engine import clients
from mapper.explain import Explanation, Step, explain
from mapper.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the program's."""
    parser = commands.add_parser("explain", help="what a checkout or an order earns, effect by effect, and why")
    parser.add_argument(
        "file", metavar="FILE", help="a checkout, an order, our answer to one, or a record; - for standard input"
    )
    parser.add_argument("--exchange", action="store_true", help="show also what was sent to the engine and came back")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Exit code 0: explained; 1: the engine did not answer, or the body cannot be read; 2: wrong settings or file."""
    configured = settings.load(os.environ)
    try:
        body = read_input(chosen.file)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        told = asyncio.run(_ask(configured, body))
    except InvalidRequest as problem:
        print(f"{problem.details['pointer'] or '/'}: {problem.message}", file=sys.stderr)
        return 1
    show(told, Console(), exchange=chosen.exchange)
    return 1 if told.problem or not told.adds_up else 0


async def _ask(configured: Settings, body: bytes) -> Explanation:
    transport = clients.create(configured.http_client, connections=2)
    try:
        return await explain(configured, transport, body)
    finally:
        await transport.aclose()


def show(told: Explanation, console: Console, *, exchange: bool = False) -> None:
    times = ", ".join(f"{step} {ms:.1f} ms" for step, ms in told.ms.items()) or "as recorded"
    console.print(f"{told.engine}, session {told.session!r}, {told.currency or 'no currency'}; {times}", markup=False)
    if told.problem:
        console.print(f"There is no outcome: {told.problem}", style="red", markup=False)
        return
    table = Table("line", "quantity", "price", "amount", box=None, pad_edge=False)
    for name in ("quantity", "price", "amount"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for line in told.lines:
        table.add_row(line.name, str(line.quantity), told.text(line.list_price), told.text(line.gross))
        for step in line.steps:
            table.add_row(f"  {_named(told, step)}", "", "", f"-{told.text(step.taken)}")
        if line.steps:
            table.add_row("  [bold]net[/]", "", told.text(line.unit_price), f"[bold]{told.text(line.net)}[/]")
    for step in told.root:
        table.add_row(f"order: {_named(told, step)}", "", "", f"-{told.text(step.taken)}")
    table.add_row("[bold]discounts in all[/]", "", "", f"[bold]-{told.text(told.total)}[/]")
    console.print(table)
    if told.clamped:
        console.print(f"{told.text(told.clamped)} was granted beyond what the things cost, and is not taken off.")
    for one in told.rejected:
        console.print(
            f"{one.code}: {one.reason.message} ({one.reason}; the engine says {one.engine_reason})", markup=False
        )
    for hint in told.diagnostics:
        console.print(f"{hint.code + ': ' if hint.code else ''}{hint.text}", markup=False)
    for notice in told.notices:
        console.print(f"notice {notice.type}: {notice.text}", style="dim", markup=False)
    for call in told.exchanges:
        console.print(
            f"{call.operation}: {call.method} {call.path} -> {call.status}, {call.ms:.0f} ms", style="dim", markup=False
        )
        if exchange:
            console.print_json(json.dumps({"sent": call.request, "came back": call.reply}))
    if not told.adds_up:
        console.print(
            "The parts do not add up to the total: this is a fault of the mapper. Please report it.", style="red"
        )


def _named(told: Explanation, step: Step) -> str:
    cut = f", granted {told.text(step.granted)}" if step.granted != step.taken else ""
    code = f", code {step.code}" if step.code else ""
    return f"{step.name} ({step.effect_type}{code}{cut})".replace("[", r"\[")
