"""`make overload`: five times as many checkouts as the service can answer, and an engine that hangs.

One worker on a processor of its own. A round: what it can answer (closed loop); then, in one go, with requests at
random moments and whether it answers or not: 30 % of that, 500 %, 30 % again. What counts is the round's own
capacity and the round's own calm, so that a machine that is slower today changes no verdict.

The engine hangs when its process is stopped: connections are accepted, nothing is answered, as long as it lasts.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from bench import contenders, load, machine, results
from bench.contenders import BY_KEY, Contender, Running
from bench.flood import flood
from bench.results import Judged
from bench.rounds import ATTEMPTS, NOISE, REFUSED_PAUSE_S, middle, percentile, quartiles, run

CALM, RUSH = 0.3, 5.0
"""Of what it can answer."""
IN_FLIGHT = (16, 32, 64)
CONNECTIONS = 768
"""The service takes 1,000."""
LATE_MS = 2.0
"""A client that is later than this (99th percentile) measures itself: no figures then."""
NORMAL = 1.5
"""Times the 99th percentile of the calm before: as slow may an answer be that counts as normal again."""
LONG, SHORT = (4.0, 6.0, 3.0), (2.0, 4.0, 2.5)
"""Seconds of calm, of rush, and of calm again."""
MINUTES = 5
LINES = 20
POINTS = (0.3, 0.5, 0.7)

DEADLINE_MS, GRACE_MS = 1500, 50
HANGS = ((1, 3.0), (32, 3.0), (64, 3.0), (200, 3.0), (600, 3.0), (100, 10.0))
"""(calls in the moment in which it begins, seconds). In the last the breaker opens (`mapper.engine.breaker`)."""
SHORT_HANG_S = 3.0
PROBED_S = 6.0
"""How long the circuit breaker may leave an engine alone that is well again."""

FULL = replace(BY_KEY["service"], key="full", command=("-m", "bench.apps", "full", "{port}"))


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    if why := results.cannot_measure(anyway=chosen.anyway or chosen.quick):
        print(why, file=sys.stderr)
        return 3
    found = {**results.context(), **measure(chosen)}
    noise = middle([one["noise"] for case in found["overload"] for one in case["rounds"]] or [0.0])
    found["machine"]["noise"], found["quiet"] = noise, noise <= results.QUIET
    results.finish("overload", found, screen(found), publish=not (chosen.quick or chosen.no_hang))
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each, on the screen alone")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    parser.add_argument("--rounds", type=int, help="5, quick: 1")
    parser.add_argument("--waits", type=int, nargs="*", default=[0, 30], metavar="MS", help="how long the engine takes")
    parser.add_argument("--no-hang", action="store_true", help="leave the engine that hangs out")
    return parser.parse_args(arguments)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    attempts = 1 if chosen.quick or chosen.anyway else ATTEMPTS
    seconds = SHORT if chosen.quick else LONG
    with contenders.engine() as (port, engine), running_service(port, BY_KEY["service"]) as service:
        overload = []
        for wait_ms in chosen.waits:
            results.say(f"Five times too many, engine at {wait_ms} ms.")
            bench = _Round(service, engine.pid, wait_ms)
            overload.append(
                {"wait_ms": wait_ms, "rounds": [bench.undisturbed(seconds, seed, attempts) for seed in range(rounds)]}
            )
        points = [_point(service, share, 2 if chosen.quick else 6) for share in POINTS]
        hang = []
        if not chosen.no_hang:
            results.say("An engine that hangs.")
            hang = [_hang_undisturbed(service, engine.pid, at_once, hang_s, attempts) for at_once, hang_s in HANGS]
    refusal_us = _refusal_us()
    return {"overload": overload, "points": points, "refusal_us": refusal_us, "hang": hang}


@contextmanager
def running_service(engine_port: int, contender: Contender) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        running = contenders.start(contender, engine_port, folder)
        try:
            contenders.wait(running)
            yield running
        finally:
            contenders.stop(running.process)


# ---------------------------------------------------------------------------------------------------------------------
# Overload


def _undisturbed(
    measure: Callable[[], dict[str, Any]], disturbed: Callable[[dict[str, Any]], float], attempts: int
) -> dict[str, Any]:
    """The first attempt that was disturbed by no more than 1, or the one that was least."""
    tries: list[dict[str, Any]] = []
    while len(tries) < attempts and (not tries or disturbed(tries[-1]) > 1):
        tries.append(measure())
    return min(tries, key=disturbed)


class _Round:
    def __init__(self, service: Running, engine: int, wait_ms: int) -> None:
        self._service, self._pids = service, [engine, service.process.pid]
        self._requests = service.requests(LINES, wait_ms)

    def undisturbed(self, seconds: tuple[float, float, float], seed: int, attempts: int) -> dict[str, Any]:
        """The first of a few attempts in which others were quiet and the client was in time; else the best in that."""

        def disturbed(one: dict[str, Any]) -> float:
            return max(float(one["noise"]) / NOISE, float(one["rush"]["late_p99_ms"]) / LATE_MS)

        return _undisturbed(lambda: self.measure(seconds, seed), disturbed, attempts)

    def measure(self, seconds: tuple[float, float, float], seed: int) -> dict[str, Any]:
        """`seconds` of calm, of rush, and of calm again."""
        others, began = machine.Others(self._pids), time.perf_counter()
        capacity = self.capacity()
        calm, rush, after = seconds
        times = [0.0, calm, calm + rush, calm + rush + after]
        moments: list[float] = []
        for number, share in enumerate((CALM, RUSH, CALM)):
            length = times[number + 1] - times[number]
            moments += [
                times[number] + moment for moment in load.arrivals(share * capacity["rps"], length, 3 * seed + number)
            ]
        found = run(flood(self._service.port, self._requests, moments, CONNECTIONS))
        phases = [found.between(begin, end) for begin, end in pairwise(times)]
        settled = found.settled(times[2], times[3], NORMAL * phases[0].p99_ms)
        return {
            "capacity": capacity,
            "calm": asdict(phases[0]),
            "rush": asdict(phases[1]),
            "after": asdict(phases[2]),
            "settled_s": settled,
            "noise": others.share(time.perf_counter() - began),
        }

    def capacity(self) -> dict[str, float]:
        """The most that is answered well, whatever the number of requests in flight that it takes."""
        best = {"rps": 0.0}
        for in_flight in IN_FLIGHT:
            marks: list[int] = []

            def mark(marks: list[int] = marks) -> None:
                marks.append(machine.processor_ns(self._service.process.pid))

            turn = load.closed_loop(
                self._service.port, self._requests, in_flight, 1.0, 4.0, mark, refused_pause_s=REFUSED_PAUSE_S
            )
            window = run(turn)
            good = len(window.times_ns)
            one = {
                "rps": round(good / window.seconds, 1),
                "in_flight": in_flight,
                "p50_ms": percentile(window.times_ns, 0.5),
                "p99_ms": percentile(window.times_ns, 0.99),
                "cpu_us": round((marks[1] - marks[0]) / 1000 / max(1, good), 1),
                "refused": round(window.others / max(1, good + window.others), 4),
            }
            best = max(best, one, key=lambda figures: figures["rps"])
        return best


def _point(service: Running, share: float, seconds: float) -> dict[str, float]:
    """At so much of what it can answer, with an engine that takes 30 ms: what `bench.simulate` is held against."""
    bench = _Round(service, service.process.pid, 30)
    capacity = bench.capacity()
    requests = service.requests(LINES, 30)
    found = run(flood(service.port, requests, load.arrivals(share * capacity["rps"], seconds, 9), CONNECTIONS))
    return {"share": share, "cpu_us": capacity["cpu_us"], **asdict(found.between(0, seconds))}


def _refusal_us() -> float:
    """Processor time of one refusal at the door."""
    with contenders.engine() as (port, _), running_service(port, FULL) as service:
        marks: list[int] = []

        def mark() -> None:
            marks.append(machine.processor_ns(service.process.pid))

        window = run(load.closed_loop(service.port, service.requests(LINES, 0), 32, 1.5, 4.0, mark))
        return round((marks[1] - marks[0]) / 1000 / max(1, window.others), 1)


# ---------------------------------------------------------------------------------------------------------------------
# An engine that hangs


def _hang_undisturbed(service: Running, engine: int, at_once: int, hang: float, attempts: int) -> dict[str, Any]:
    return _undisturbed(
        lambda: _hang(service, engine, at_once, hang), lambda one: one["during"]["late_p99_ms"] / LATE_MS, attempts
    )


def _hang(service: Running, engine: int, at_once: int, hang: float) -> dict[str, Any]:
    """`at_once` validates in the moment in which the engine stops, and a tenth of that a second while it hangs."""
    requests = service.requests(LINES, 0)
    calm, after = 1.5, 3.0 if hang <= SHORT_HANG_S else 9.0
    rate = 50.0
    moments = load.arrivals(rate, calm, 1)
    moments += [calm] * at_once
    moments += [calm + moment for moment in load.arrivals(max(10.0, at_once / 10), hang, 2)]
    moments += [calm + hang + moment for moment in load.arrivals(rate, after, 3)]

    def send(what: signal.Signals) -> Callable[[], None]:
        def action() -> None:
            os.kill(engine, what)

        return action

    try:
        events = [(calm - 0.005, send(signal.SIGSTOP)), (calm + hang, send(signal.SIGCONT))]
        found = run(flood(service.port, requests, moments, CONNECTIONS, events=events))
    finally:
        os.kill(engine, signal.SIGCONT)
    usual = found.between(0, calm - 0.1)
    during = found.between(calm, calm + hang)
    settled = found.settled(calm + hang, calm + hang + after, max(NORMAL * usual.p99_ms, 5.0))
    return {
        "at_once": at_once,
        "hang_s": hang,
        "calm": asdict(usual),
        "during": asdict(during),
        "after": asdict(found.between(calm + hang, calm + hang + after)),
        "settled_s": settled,
    }


# ---------------------------------------------------------------------------------------------------------------------
# What it comes to


def aims(found: results.Results) -> list[Judged]:
    """Judged with the engine at 30 ms. Rounds in which the client was late say nothing."""
    case = next((case for case in found["overload"] if case["wait_ms"] == 30), None)
    rounds = [one for one in case["rounds"] if one["rush"]["late_p99_ms"] <= LATE_MS] if case else []
    rushes = [one["rush"] for one in rounds]
    refusals, goods = ([rush[what] for rush in rushes] for what in ("refused_p99_ms", "p99_ms"))
    settled = [one["settled_s"] for one in rounds]
    judged = [
        _judge("Five times too much: good answers beside capacity", "at least 0.50x", _shares(rounds), at_least=0.5),
        _judge("99th percentile of good answers", "at most 600 ms", goods, at_most=600),
        _judge("99th percentile of refusals", "at most 20 ms", refusals, at_most=20),
        _judge("Answered with something else, or not at all", "none", list(map(_wrong, rushes)), at_most=0),
        _judge("Seconds until all is normal again", "at most 2", settled, at_most=2),
    ]
    return judged + (_hang_aims(found["hang"]) if found["hang"] else [])


def _shares(rounds: list[dict[str, Any]]) -> list[float]:
    return [one["rush"]["goodput"] / one["capacity"]["rps"] for one in rounds]


def _wrong(phase: dict[str, Any]) -> float:
    return float(phase["others"] + phase["unanswered"])


def _judge(
    aim: str, wanted: str, values: list[float], *, at_least: float = float("-inf"), at_most: float = float("inf")
) -> Judged:
    if not values:
        return Judged(aim, "no figure: the client could not keep up, or it was left out", wanted, None)
    lower, upper = quartiles(values)
    value = middle(values)
    return Judged(aim, f"{value:.3g} [{lower:.3g} to {upper:.3g}]", wanted, at_least <= value <= at_most)


def _hang_aims(hangs: list[dict[str, Any]]) -> list[Judged]:
    """The longest of all, not a percentile."""
    longest = max(one["during"]["longest_ms"] for one in hangs)
    lost = sum(one["during"]["unanswered"] for one in hangs)
    short, long = (
        [one["settled_s"] for one in hangs if (one["hang_s"] <= SHORT_HANG_S) is is_short] for is_short in (True, False)
    )
    sent = sum(round(one["during"]["rate"] * one["hang_s"]) for one in hangs)
    figure = f"longest of {sent:,}: {longest:.0f} ms; {lost} unanswered"
    limit = DEADLINE_MS + GRACE_MS
    return [
        Judged(
            "Engine hangs: every validate is answered",
            figure,
            f"within {limit} ms: deadline + {GRACE_MS} ms",
            longest <= limit and not lost,
        ),
        _recovered(f"Seconds until all is normal after a hang of {SHORT_HANG_S:g} s", short, 2.0),
        _recovered("The same after 10 s, when the circuit breaker has opened", long, PROBED_S),
    ]


def _recovered(aim: str, settled: list[float], most: float) -> Judged:
    """The slowest, not a median."""
    wanted = f"at most {most:g}"
    return (
        Judged(aim, f"{max(settled):.1f}", wanted, max(settled) <= most) if settled else Judged(aim, "", wanted, None)
    )


_SECTION = """\
## Overload, and an engine that hangs

One worker is sent five times as much as it can answer, at random moments and on {connections} connections, for
{rush:g} s; before and after that, 30 % of what it can answer. Times count from the moment at which a request was due;
rounds in which the client was more than {late:g} ms late (99th percentile) are left out. Then the engine's process is
stopped for a while, in the moment in which so many calls come at once; the longest answer counts from when its request
was sent, as the deadline does.

{aims}

{engines}

{hangs}

{measured} To repeat it: `make overload` (about {minutes} minutes).
"""


def section(found: results.Results) -> str:
    """Of docs/performance.md."""
    return _SECTION.format(
        connections=CONNECTIONS,
        rush=LONG[1],
        late=LATE_MS,
        aims=results.aims_table(aims(found)),
        engines=results.table(
            [
                "engine, ms",
                "capacity/s",
                "sent/s",
                "good/s",
                "good p50, p99 ms",
                "calm p99 ms",
                "refused p99 ms",
                "normal, s",
            ],
            [_cells(case["wait_ms"], case["rounds"]) for case in found["overload"]],
        ),
        hangs=results.table(
            [
                "at once; the engine hangs",
                "longest answer, ms",
                "refused at once",
                "failed",
                "unanswered",
                "normal, s",
            ],
            [
                [
                    f"{one['at_once']}; {one['hang_s']:g} s",
                    f"{one['during']['longest_ms']:.0f}",
                    *(f"{one['during'][what]}" for what in ("refused", "others", "unanswered")),
                    f"{one['settled_s']:.1f}",
                ]
                for one in found["hang"]
            ],
        ),
        measured=results.measured_on(found),
        minutes=MINUTES,
    )


def _cells(wait_ms: int, rounds: list[dict[str, Any]]) -> list[str]:
    """Medians over the rounds that count."""

    def of(phase: str, what: str) -> float:
        return middle([one[phase][what] for one in rounds if one["rush"]["late_p99_ms"] <= LATE_MS] or [0.0])

    return [
        f"{wait_ms}",
        *(f"{of(phase, what):.0f}" for phase, what in (("capacity", "rps"), ("rush", "rate"), ("rush", "goodput"))),
        f"{of('rush', 'p50_ms'):.1f}, {of('rush', 'p99_ms'):.1f}",
        f"{of('calm', 'p99_ms'):.1f}",
        f"{of('rush', 'refused_p99_ms'):.1f}",
        f"{middle([one['settled_s'] for one in rounds]):.1f}",
    ]


def screen(found: results.Results) -> Iterator[str]:
    for case in found["overload"]:
        yield f"\n{LINES} lines, engine {case['wait_ms']} ms: what it can answer, calm, five times as much"
        yield (
            f"  {'capacity/s':>10}{'CPU us':>8}{'calm p99':>10}{'sent/s':>8}{'good/s':>8}{'share':>7}{'p50':>8}"
            f"{'p99':>8}{'refused':>9}{'p99':>8}{'longest':>9}{'others':>8}{'lost':>6}{'normal s':>10}{'late':>6}"
            f"{'noise':>7}"
        )
        yield from map(_row, case["rounds"])
    yield f"\nA refusal takes {found['refusal_us']:.0f} us of the processor."
    yield "Engine 30 ms, and so much of what it can answer:"
    for one in found["points"]:
        yield (
            f"  {one['share']:.0%}: {one['rate']:.0f}/s, p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms"
            f" (late {one['late_p99_ms']:.1f})"
        )
    yield "\nAn engine that hangs, and so many calls in that moment"
    for one in found["hang"]:
        during = one["during"]
        yield (
            f"  {one['at_once']:4}, {one['hang_s']:2g} s: longest {during['longest_ms']:7.1f} ms,"
            f" refused {during['refused']}, failed {during['others']}, lost {during['unanswered']};"
            f" normal after {one['settled_s']:.1f} s"
            f" (calm p99 {one['calm']['p99_ms']:.1f} ms, late {during['late_p99_ms']:.1f})"
        )
    yield ""
    yield from results.verdicts(aims(found))


def _row(one: dict[str, Any]) -> str:
    capacity, calm, rush = one["capacity"], one["calm"], one["rush"]
    late = "" if rush["late_p99_ms"] <= LATE_MS else "  CLIENT LATE: does not count"
    return (
        f"  {capacity['rps']:10.0f}{capacity['cpu_us']:8.0f}{calm['p99_ms']:10.1f}{rush['rate']:8.0f}"
        f"{rush['goodput']:8.0f}{rush['goodput'] / capacity['rps']:7.2f}{rush['p50_ms']:8.1f}{rush['p99_ms']:8.1f}"
        f"{rush['refused']:9,}{rush['refused_p99_ms']:8.1f}{rush['longest_ms']:9.1f}{rush['others']:8}"
        f"{rush['unanswered']:6}{one['settled_s']:10.1f}{rush['late_p99_ms']:6.1f}{one['noise']:7.2f}{late}"
    )


if __name__ == "__main__":
    sys.exit(main())
