"""`make bench`, `make bench-quick`: measure, print, and (the long run) write docs/performance.md."""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

from bench import contenders, machine, publish, report, results, rounds
from bench.results import say


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    if chosen.report:
        publish.performance()
        return 0
    if why := results.cannot_measure(anyway=chosen.quick or chosen.anyway):
        print(why, file=sys.stderr)
        return 3
    found = measure(quick=chosen.quick, patient=not (chosen.quick or chosen.anyway))
    results.finish("full", found, report.screen(found), publish=not chosen.quick)
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what the aims need, in a minute; writes no page")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    parser.add_argument("--report", action="store_true", help="only write the page anew from bench/results/")
    return parser.parse_args(arguments)


def measure(*, quick: bool, patient: bool) -> dict[str, Any]:
    """Everything, as it is written to the file."""
    context = results.context()
    cases = rounds.quick() if quick else rounds.full()
    keys = list(contenders.BY_KEY)
    if not machine.nginx():
        say("nginx not installed: left out")
        keys.remove("nginx")
    with contenders.engine() as (port, engine):
        say("Starting the service, and stopping it.")
        start = rounds.starts("service", port, 3 if quick else 9)
        say(f"Starting {', '.join(contenders.BY_KEY[key].name for key in keys)}; checking their answers.")
        sizes = {key: sorted({case.lines for case in cases if key in case.contenders}) for key in keys}
        with contenders.all_running(sizes, port) as running:
            bench = rounds.Bench(running, engine, patient=patient)
            say("Warming up.")
            bench.closed(rounds.Case(20, 0, 32, 1, 0.5, rounds.ALL))
            steady = bench.open(20, 30, *((3, 3.0) if quick else (8, 4.0)), rounds.ASKING[: 2 if quick else None])
            say("Holding the loop.")
            holds = bench.holds("service", 1000, 20 if quick else 100)
            measured = []
            for number, case in enumerate(cases, 1):
                say(f"{number} of {len(cases)}: {case.name}")
                measured.append({**_named(case), "contenders": _plain(bench.closed(case))})
            memory = bench.memory()
    noise = _noise([*(one["contenders"] for one in measured), _plain(steady)])
    return {
        **context,
        "machine": {**context["machine"], "noise": noise},
        "quiet": noise <= results.QUIET,
        "start": start,
        "memory_mb": memory,
        "holds_ms": holds,
        "open": {"rate": rounds.RATE, "contenders": _plain(steady)},
        "cases": measured,
    }


def _named(case: rounds.Case) -> dict[str, Any]:
    return {"lines": case.lines, "wait_ms": case.wait_ms, "in_flight": case.in_flight, "seconds": case.seconds}


def _plain(found: dict[str, rounds.Series]) -> dict[str, dict[str, list[float]]]:
    return {key: vars(series) for key, series in found.items()}


def _noise(found: Sequence[dict[str, dict[str, list[float]]]]) -> float:
    return rounds.middle([*chain.from_iterable(series["noise"] for one in found for series in one.values())])


if __name__ == "__main__":
    sys.exit(main())
