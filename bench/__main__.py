"""`make bench`, `make bench-quick`: measure, print, and (the long run) write docs/performance.md."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from bench import contenders, machine, plot, report, rounds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
MAX_LOAD = 1.0
"""The load average above which a long run does not begin."""
QUIET = 0.1
"""The median noise, in processors, up to which a run counts as quiet."""


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    if chosen.report:
        _publish(msgspec.json.decode(chosen.report.read_bytes()))
        return 0
    if why := machine.missing():
        print(f"This machine cannot measure: {why}.", file=sys.stderr)
        return 2
    load = machine.load()
    if load > MAX_LOAD and not (chosen.quick or chosen.anyway):
        print(
            f"Load average {load:.2f}: something else is running, the figures would not mean anything.", file=sys.stderr
        )
        print("Wait until it is below 1, or measure anyway: make bench ARGS=--anyway", file=sys.stderr)
        return 3
    results = measure(load, quick=chosen.quick, patient=not (chosen.quick or chosen.anyway))
    for line in report.screen(results):
        print(line)
    _keep(results, quick=chosen.quick)
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what the aims need, in a minute; writes no page")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    parser.add_argument("--report", type=Path, metavar="JSON", help="only write the page anew from a file of results")
    return parser.parse_args(arguments)


def measure(load: float, *, quick: bool, patient: bool) -> dict[str, Any]:
    """Everything, as it is written to the file."""
    cases = rounds.quick() if quick else rounds.full()
    keys = list(contenders.BY_KEY)
    if not machine.nginx():
        say("nginx not installed: left out")
        keys.remove("nginx")
    with contenders.engine() as (port, engine):
        say("Starting the service, and stopping it.")
        start = rounds.starts("service", port, 3 if quick else 9)
        say(f"Starting {', '.join(contenders.BY_KEY[key].name for key in keys)}; checking their answers.")
        with contenders.all_running(keys, port, sorted({case.lines for case in cases})) as running:
            bench = rounds.Bench(running, engine, patient=patient)
            say("Warming up.")
            bench.closed(rounds.Case(20, 0, 32, 1, 0.5, rounds.ALL))
            steady = bench.open(20, 30, *((3, 3.0) if quick else (10, 5.0)), rounds.ASKING[: 2 if quick else None])
            say("Holding the loop.")
            holds = bench.holds("service", 1000, 20 if quick else 100)
            measured = []
            for number, case in enumerate(cases, 1):
                say(f"{number} of {len(cases)}: {case.name}")
                measured.append({**_named(case), "contenders": _plain(bench.closed(case))})
            memory = bench.memory()
    noise = _noise([*(one["contenders"] for one in measured), _plain(steady)])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": machine.commit(),
        "machine": {"processor": machine.processor(), "load": round(load, 2), "noise": noise},
        "quiet": noise <= QUIET,
        "versions": machine.versions(),
        "start": start,
        "memory_mb": memory,
        "holds_ms": holds,
        "open": {"rate": rounds.RATE, "contenders": _plain(steady)},
        "cases": measured,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _named(case: rounds.Case) -> dict[str, Any]:
    return {"lines": case.lines, "wait_ms": case.wait_ms, "in_flight": case.in_flight, "seconds": case.seconds}


def _plain(found: dict[str, rounds.Series]) -> dict[str, dict[str, list[float]]]:
    return {key: vars(series) for key, series in found.items()}


def _noise(found: Sequence[dict[str, dict[str, list[float]]]]) -> float:
    return rounds.middle([*chain.from_iterable(series["noise"] for one in found for series in one.values())])


def _keep(results: dict[str, Any], *, quick: bool) -> None:
    publish = results["quiet"] and not quick
    path = RESULTS / ("full.json" if publish else "last.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    print(f"\n{path.relative_to(ROOT)} holds every round.")
    if not results["quiet"]:
        noise = results["machine"]["noise"]
        print(f"NOT QUIET: others took {noise:.2f} processors meanwhile. Do not rely on these figures.")
    if publish:
        _publish(results)


def _publish(results: dict[str, Any]) -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(plot.picture(results), "utf-8")
    PAGE.write_text(report.page(results, PICTURE.name), "utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written.")


if __name__ == "__main__":
    sys.exit(main())
