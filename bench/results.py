"""What the measurements share: when not to begin, what is noted beside the figures, where they are written."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import machine

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "bench" / "results"
MAX_LOAD = 1.0
"""The load average above which a long run does not begin."""
PATIENCE_S, STEP_S = 180.0, 10.0
"""How long it waits for that, for instance after another run, and how often it looks."""
QUIET = 0.1
"""The median noise, in processors, up to which a run counts as quiet."""

Results = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    aim: str
    figure: str
    """What was measured, with its spread."""
    wanted: str
    kept: bool | None
    """None: could not be judged."""


def verdicts(aims: Iterable[Judged]) -> list[str]:
    """For the screen."""
    words = {True: "kept", False: "MISSED", None: "?"}
    return [f"{words[one.kept]:7} {one.aim}: {one.figure}, {one.wanted}" for one in aims]


def aims_table(aims: Iterable[Judged]) -> str:
    """For a page."""
    words = {True: "kept", False: "**missed**", None: "?"}
    return table(["", "measured [spread]", "aim", ""], [[j.aim, j.figure, j.wanted, words[j.kept]] for j in aims])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cannot_measure(*, anyway: bool) -> str:
    """Why not; empty where nothing speaks against it. Waits for what has just ended to leave the load average."""
    if why := machine.missing():
        return f"This machine cannot measure: {why}."
    waited = 0.0
    while machine.load() > MAX_LOAD and not anyway and waited < PATIENCE_S:
        say(f"Load average {machine.load():.2f}: waiting until it is below {MAX_LOAD:g}.")
        time.sleep(STEP_S)
        waited += STEP_S
    if machine.load() <= MAX_LOAD or anyway:
        return ""
    return (
        f"Load average {machine.load():.2f}: something else is running, the figures would not mean anything.\n"
        "Wait until it is below 1, or measure anyway: ARGS=--anyway"
    )


def context() -> Results:
    """What belongs beside every figure. To be asked before anything is measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": {"processor": machine.processor(), "load": round(machine.load(), 2)},
        "versions": machine.versions(),
    }


def keep(name: str, found: Mapping[str, Any], *, publish: bool) -> bool:
    """Writes `name`.json if it may be published and the run was quiet, else last-`name`.json. True: the former."""
    publish = publish and bool(found["quiet"])
    path = FOLDER / (f"{name}.json" if publish else f"last-{name}.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print(f"\n{path.relative_to(ROOT)} holds every figure.")
    if not found["quiet"]:
        noise = found["machine"]["noise"]
        print(f"NOT QUIET: others took {noise:.2f} processors meanwhile. Do not rely on these figures.")
    return publish


def finish(name: str, found: Results, lines: Iterable[str], *, publish: bool) -> None:
    """Shows what was measured, keeps it, and writes the page anew where it may stand there."""
    for line in lines:
        print(line)
    if keep(name, found, publish=publish):
        from bench import publish as pages  # noqa: PLC0415 - which imports what imports this

        pages.performance()


def measured_on(found: Results) -> str:
    """A sentence for the page: when, what, where."""
    one = found["machine"]
    where = f"on {one['processor']}; load average at the start {one['load']}"
    return f"Measured on {found['date']}, commit {found['commit']}, {where}."


def read(name: str) -> Results | None:
    """What was published; None where nothing was."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    found: Results = msgspec.json.decode(path.read_bytes())
    return found
