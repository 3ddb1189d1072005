"""`promotions-mapper replay DIR`: finds the recorded carts that this version would price differently."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mapper import settings
from mapper.commands import Commands, add_command, fail
from mapper.ops.logs import printable
from mapper.recording import records
from mapper.recording.records import Unusable
from mapper.recording.replay import Finding, replay
from mapper.settings import Rules

MOST_SHOWN: Final = 20
"""The limit for differences of one cart on the terminal; `--json` has all."""


@dataclass(frozen=True)
class Replayed:
    """The result of one file: its differences, or why it cannot be used."""

    file: str
    id: str = ""
    findings: tuple[Finding, ...] = ()
    unusable: str = ""


def add(commands: Commands) -> None:
    parser = add_command(commands, "replay", "find the recorded carts that this version would price differently")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder of MAPPER_RECORD")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Returns 0 if every cart costs the same, 1 if one differs, and 2 if a record or setting cannot be used."""
    rules = settings.load_rules(os.environ)
    files = sorted(chosen.folder.glob("*.json"))
    if not files:
        return fail(f"There is no record in {chosen.folder}.", 2)
    tracked = track(files, "Replaying", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    replayed = [_replayed(rules, file) for file in tracked]
    if chosen.json:
        _print_json(replayed)
    else:
        _print_table(replayed, Console())
    if any(one.findings for one in replayed):
        return 1
    return 2 if any(one.unusable for one in replayed) else 0


def _replayed(rules: Rules, file: Path) -> Replayed:
    try:
        record = records.read(file.read_bytes())
        return Replayed(file.name, record.id, tuple(replay(rules, record)))
    except Unusable as error:
        return Replayed(file.name, unusable=str(error))
    except OSError as error:
        return Replayed(file.name, unusable=f"it cannot be read: {error.strerror}")


def _counts(replayed: Iterable[Replayed]) -> dict[str, int]:
    counts = {"same": 0, "differing": 0, "unusable": 0}
    for one in replayed:
        counts["unusable" if one.unusable else "differing" if one.findings else "same"] += 1
    return counts


def _print_json(replayed: Sequence[Replayed]) -> None:
    carts = [asdict(one) for one in replayed if one.findings or one.unusable]
    print(json.dumps({**_counts(replayed), "carts": carts}, indent=1))


def _print_table(replayed: Sequence[Replayed], console: Console) -> None:
    table = Table("record", "id", "what", "where", "recorded", "now", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for one in replayed:
        for row in _rows(one):
            table.add_row(*(Text(printable(text)) for text in row))
    if table.rows:
        console.print(table)
    counts = _counts(replayed)
    console.print(
        f"{len(replayed)} carts: {counts['same']} as recorded, {counts['differing']} differ, "
        f"{counts['unusable']} cannot be used."
    )


def _rows(one: Replayed) -> Iterator[tuple[str, ...]]:
    if one.unusable:
        yield one.file, "", "unusable", one.unusable, "", ""
    for finding in one.findings[:MOST_SHOWN]:
        yield one.file, one.id, finding.kind, finding.place, finding.recorded, finding.now
    if (more := len(one.findings) - MOST_SHOWN) > 0:
        yield one.file, one.id, "", f"and {more} more", "", ""
