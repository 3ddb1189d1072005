"""`promotions-mapper demo`: sandbox and service on this machine, and a shopper's calls with each engine, on one screen.

It shows a merchant what becomes of the prices; `--json` writes the JSON of each call for an integrator. It exits with 1
if an answer, or the sandbox's state at the end, is not as expected.
"""

import json
import logging
import shlex
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mapper.commands import fail, has_temporary_folder
from mapper.commands.journey import CHECKOUT, ENGINES, Journey, Step, Unexpected, World, cents, cost, space_of
from mapper.domain import money
from mapper.ops import logs

NAMES = {"talon_one": "Talon.One", "voucherify": "Voucherify"}


def run(*, keep: bool = False, folder: Path | None = None) -> int:
    """Returns 0 if everything is as expected. `folder`: for the JSON of each step."""
    if not has_temporary_folder():
        return 1
    console = Console(highlight=False)
    with ExitStack() as running:
        running.callback(logs.log.setLevel, logs.log.level)
        logs.log.setLevel(logging.CRITICAL + 1)  # only the demo's own output is shown
        ledgers = running.enter_context(tempfile.TemporaryDirectory())
        world = running.enter_context(World({name: f"sqlite:///{ledgers}/{name}.db" for name in ENGINES}))
        steps: dict[str, list[Step]] = {}
        journeys = {engine: world.journey(engine) for engine in world.engines}
        try:
            for engine, journey in journeys.items():
                with console.status(f"{NAMES.get(engine, engine)} …"):
                    steps[engine] = _run_steps(journey, folder)
        except Unexpected as problem:
            console.print(f"This is not as it should be: {problem}", markup=False)
            return 1
        except OSError as error:
            return fail(f"{error.filename}: {error.strerror}" if error.filename else f"The demo ends here: {error}")
        _show(console, journeys, steps)
        if len({tuple(_amounts(journey)) for journey in journeys.values()}) > 1:
            console.print("This is not as it should be: the engines do not agree.")
            return 1
        if folder is not None:
            console.print(f"The JSON of each step is in {folder}.", markup=False)
        console.print("[bold green]All as it should be.[/]")
        if keep:
            _wait(console, world)
    return 0


# -- On the screen -----------------------------------------------------------------------------------------------------


def _show(console: Console, journeys: Mapping[str, Journey], steps: Mapping[str, Sequence[Step]]) -> None:
    engines = [NAMES.get(engine, engine) for engine in journeys]
    wide = console.width >= 110
    console.rule("A shopper's journey through Nacelle, with each promotion engine")
    console.print("Engines and Nacelle are emulated; nothing leaves this machine.", style="dim", justify="center")
    console.print(_prices(engines, list(journeys.values()), wide=wide))
    console.print(_steps(engines, list(steps.values()), wide=wide))


def _prices(engines: Sequence[str], journeys: Sequence[Journey], *, wide: bool) -> Table:
    """Returns the prices before and after, side by side. `wide`: with the reasons."""
    before = journeys[0].before
    table = Table(box=SIMPLE_HEAD, expand=True)
    table.add_column(f"the cart, with {', '.join(before['promotions']['coupon_codes'])}", ratio=2)
    table.add_column("before", justify="right")
    for engine in engines:
        table.add_column(f"with {engine}", justify="right")
    if wide:
        table.add_column("why", ratio=2)
    after = journeys[0].after
    why = [_why(item["discounts"]) for item in after["items"]] + [_why(after["discounts"]), ""]
    rows = zip(_rows(before), *(_amounts(journey) for journey in journeys), why, strict=True)
    for number, ((what, old), *new, reason) in enumerate(rows):
        last = number == len(why) - 1
        cells = [Text(amount, style="bold green" if amount != old else "") for amount in new]
        table.add_row(what, old, *cells, *([reason] if wide else []), style="bold" if last else "")
    return table


def _rows(cart: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what is to be paid for, and its prices."""
    rows = [(f"{item['quantity']} x {item['sku']}, each", item["price"]) for item in cart["items"]]
    shipping = cart["shipping_rate"]
    return [*rows, (f"shipping, {shipping['name']}", shipping["price"]), ("to pay", money.text(cost(dict(cart)), 2))]


def _amounts(journey: Journey) -> list[str]:
    """Returns the prices of the same rows after the engine's discounts."""
    after = journey.after
    shipping = cents(after["shipping_rate"]["price"]) - sum(cents(entry["amount"]) for entry in after["discounts"])
    prices = [item["price"] for item in after["items"]]
    return [*prices, money.text(shipping, 2), money.text(cost(after), 2)]


def _why(discounts: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(entry["name"] for entry in discounts))


def _steps(engines: Sequence[str], by_engine: Sequence[Sequence[Step]], *, wide: bool) -> Table:
    """Returns the steps and their results with each engine. `wide`: with what they show."""
    table = Table(box=SIMPLE_HEAD, expand=True)
    table.add_column("", width=1)
    table.add_column("what happens", ratio=None if wide else 1)
    for engine in engines:
        table.add_column(engine)
    if wide:
        table.add_column("what it shows", style="dim", ratio=1)
    for steps in zip(*by_engine, strict=True):
        shows = [steps[0].shows] if wide else []
        table.add_row(Text("✓", style="green"), steps[0].title, *(step.result for step in steps), *shows)
    return table


# -- On request --------------------------------------------------------------------------------------------------------


def _run_steps(journey: Journey, folder: Path | None) -> list[Step]:
    """Runs the steps, and writes each to a file of its own if there is a folder. Raises `Unexpected`, `OSError`."""
    steps = []
    for number, step in enumerate(journey.run(), 1):
        steps.append(step)
        if folder is not None and step.exchanges:
            folder.mkdir(parents=True, exist_ok=True)
            name = "-".join("".join(letter if letter.isalnum() else " " for letter in step.title.lower()).split())
            text = json.dumps([vars(exchange) for exchange in step.exchanges], indent=2, ensure_ascii=False)
            (folder / f"{journey.engine}-{number:02}-{name}.json").write_text(text + "\n", "utf-8")
    return steps


def _wait(console: Console, world: World) -> None:
    """Keeps everything running until Ctrl-C. The printed commands work as they are."""
    engine = world.engines[0]
    space, url = space_of(engine), world.services[engine]
    cart = json.dumps({**CHECKOUT, "id": "1003"}, separators=(",", ":"))
    bin_folder = shlex.quote(str(Path(sys.executable).parent))
    nacelle = f"""\
echo {shlex.quote(cart)} > checkout.json
curl -s {world.url}/nacelle/api/v1/checkout/validate --data-binary @checkout.json \\
  -H "content-type: application/json" -H "authorization: Bearer sandbox-token" \\
  -H "x-nacelle-space-id: {space}"; echo"""
    mapper = f"""\
export NACELLE_SIGNING_SECRETS={world.secret}
curl -s {url}/promotions/validate --data-binary @checkout.json \\
  -H "content-type: application/json" -H "x-nacelle-space-id: {space}" \\
  -H "$({bin_folder}/promotions-mapper sign checkout.json)"; echo"""
    console.print(Panel("Everything keeps running until Ctrl-C. In another shell:", expand=False))
    for title, commands in (
        ("through Nacelle:", nacelle),
        ("straight to the mapper, signed as Nacelle signs:", mapper),
        ("what the engines' and Nacelle's books say:", f"curl -s {world.url}/_sandbox/books"),
    ):
        console.print(f"# {title}", style="dim")
        # Not wrapped, so that it can be pasted.
        console.print(commands, markup=False, soft_wrap=True)
        console.print()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print()
