"""`make overload`: two and five times as many checkouts as the service can answer, and an engine that hangs.

One worker on a processor of its own. A round: what it can answer (closed loop); then, in one go, with requests at
random moments and whether it answers or not: 30 % of that, 200 or 500 %, 30 % again. What counts is the round's own
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
from itertools import pairwise, product
from typing import Any

from bench import contenders, load, machine, results
from bench.contenders import BY_KEY, Contender, Running
from bench.flood import Event, flood
from bench.results import Judged
from bench.rounds import ATTEMPTS, NOISE, REFUSED_PAUSE_S, middle, percentile, quartiles, run

CALM, RUSHES = 0.3, (2.0, 5.0)
"""Of what it can answer."""
GOODPUT = {2.0: 0.85, 5.0: 0.5}
"""What is to be left of it in each rush."""
IN_FLIGHT = (16, 32, 64)
CONNECTIONS = 768
"""The service takes 1,000."""
LATE_MS = 2.0
"""A client that is later than this (99th percentile) measures itself: no figures then."""
NORMAL = 1.5
"""Times the 99th percentile of the calm before: as slow may an answer be that counts as normal again."""
LONG, SHORT = (4.0, 20.0, 3.0), (2.0, 6.0, 2.5)
"""Seconds of calm, of rush, and of calm again."""
MINUTES = 6
STANDING_S = 1.5
"""So long after a rush begins, the queue has stood for a second: nobody waits longer than 300 ms from then on."""
FLAT_MB = 2.0
"""The most that memory may grow in the second half of a rush."""
REFUSAL = 0.1
"""Of a validate's processor time: the most that a refusal at the door may take."""
LINES = 20

DEADLINE_MS, GRACE_MS = 1500, 50
HANGS = ((1, 3.0), (32, 3.0), (64, 3.0), (200, 3.0), (600, 3.0), (100, 10.0))
"""(calls in the moment in which it begins, seconds)."""
PROBED_S = 7.0
"""Once the circuit breaker is open (`mapper.engine.breaker`): for at most 6 s, then it probes."""

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
    parser.add_argument("--rounds", type=int, help="3, quick: 1")
    parser.add_argument("--waits", type=int, nargs="*", default=[30], metavar="MS", help="how long the engine takes")
    parser.add_argument("--rushes", type=float, nargs="*", default=RUSHES, metavar="TIMES", help="what it can answer")
    parser.add_argument("--no-hang", action="store_true", help="leave the engine that hangs out")
    return parser.parse_args(arguments)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    attempts = 1 if chosen.quick or chosen.anyway else ATTEMPTS
    seconds = SHORT if chosen.quick else LONG
    with contenders.engine() as (port, engine), running_service(port, BY_KEY["service"]) as service:
        overload = []
        for wait_ms, times in product(chosen.waits, chosen.rushes):
            results.say(f"{times:g} times too many, engine at {wait_ms} ms.")
            bench = _Round(service, engine.pid, wait_ms, times)
            measured = [bench.undisturbed(seconds, seed, attempts) for seed in range(rounds)]
            overload.append({"wait_ms": wait_ms, "times": times, "rounds": measured})
        hang = []
        if not chosen.no_hang:
            results.say("An engine that hangs.")
            hang = [_hang_undisturbed(service, engine.pid, at_once, hang_s, attempts) for at_once, hang_s in HANGS]
    refusal_us = _refusal_us()
    return {"overload": overload, "refusal_us": refusal_us, "hang": hang}


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
    def __init__(self, service: Running, engine: int, wait_ms: int, times: float) -> None:
        """`times` what it can answer comes in the rush."""
        self._service, self._pids, self._times = service, [engine, service.process.pid], times
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
        for number, share in enumerate((CALM, self._times, CALM)):
            length = times[number + 1] - times[number]
            moments += [
                times[number] + moment for moment in load.arrivals(share * capacity["rps"], length, 3 * seed + number)
            ]
        memory: list[float] = []

        def weigh() -> None:
            memory.append(machine.memory_mb(self._service.process.pid))

        found = run(flood(self._service.port, self._requests, moments, CONNECTIONS, events=_halves(calm, rush, weigh)))
        phases = [found.between(begin, end) for begin, end in pairwise(times)]
        settled = found.settled(times[2], times[3], NORMAL * phases[0].p99_ms)
        return {
            "capacity": capacity,
            "calm": asdict(phases[0]),
            "rush": asdict(phases[1]),
            "standing": asdict(found.between(times[1] + STANDING_S, times[2])),
            "after": asdict(phases[2]),
            "settled_s": settled,
            "memory_mb": memory,
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


def _halves(calm: float, rush: float, action: Callable[[], None]) -> list[Event]:
    """In the middle of the rush, and at its end."""
    return [(calm + share * rush, action) for share in (0.5, 1.0)]


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
    calm, after, rate = 1.5, 9.0, 50.0
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
    judged: list[Judged] = []
    for case in found["overload"]:
        if case["wait_ms"] == 30:
            judged += _rush_aims(case["times"], _in_time(case))
    cost = _refusal_share(found)
    judged.append(_judge("A refusal at the door beside a validate", f"at most {REFUSAL}", cost, at_most=REFUSAL))
    return judged + (_hang_aims(found["hang"]) if found["hang"] else [])


def _in_time(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in case["rounds"] if one["rush"]["late_p99_ms"] <= LATE_MS]


def _rush_aims(times: float, rounds: list[dict[str, Any]]) -> list[Judged]:
    rushes = [one["rush"] for one in rounds]
    least, name = GOODPUT.get(times, 0.0), f"{times:g}x"
    return [
        _judge(
            f"{name} what it can answer: good answers beside that",
            f"at least {least:.2f}x",
            _shares(rounds),
            at_least=least,
        ),
        _judge(f"{name}: 99th percentile of good answers, ms", "at most 600", _figures(rushes, "p99_ms"), at_most=600),
        _judge(
            f"{name}: the same of refusals at the door", "at most 20", _figures(rushes, "refused_p99_ms"), at_most=20
        ),
        _judge(f"{name}: answered with something else, or not at all", "none", list(map(_wrong, rushes)), at_most=0),
        _judge(f"{name}: seconds until all is normal again", "at most 2", _figures(rounds, "settled_s"), at_most=2),
        _judge(
            f"{name}: memory in its second half, MB more", f"at most {FLAT_MB:g}", list(map(_growth, rounds)), at_most=2
        ),
    ]


def _figures(rows: list[dict[str, Any]], what: str) -> list[float]:
    return [row[what] for row in rows]


def _shares(rounds: list[dict[str, Any]]) -> list[float]:
    return [one["rush"]["goodput"] / one["capacity"]["rps"] for one in rounds]


def _growth(one: dict[str, Any]) -> float:
    middle_mb, end_mb = one["memory_mb"]
    return float(end_mb - middle_mb)


def _refusal_share(found: results.Results) -> list[float]:
    """Its processor time, in that of a validate."""
    return [found["refusal_us"] / one["capacity"]["cpu_us"] for case in found["overload"] for one in case["rounds"]]


def _wrong(phase: dict[str, Any]) -> float:
    return float(phase["others"] + phase["left_alone"] + phase["unanswered"])


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
    closed, opened = ([one["settled_s"] for one in hangs if _opened(one) is was_open] for was_open in (False, True))
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
        _recovered("Seconds until all is normal after it, circuit breaker closed", closed, 2.0),
        _recovered("The same where the circuit breaker has opened", opened, PROBED_S),
    ]


def _opened(hang: dict[str, Any]) -> bool:
    """Whether the circuit breaker has."""
    return bool(hang["during"]["left_alone"] or hang["after"]["left_alone"])


def _recovered(aim: str, settled: list[float], most: float) -> Judged:
    """The slowest, not a median."""
    wanted = f"at most {most:g}"
    return (
        Judged(aim, f"{max(settled):.1f}", wanted, max(settled) <= most) if settled else Judged(aim, "", wanted, None)
    )


_SECTION = """\
## Overload, and an engine that hangs

One worker is sent two and five times as much as it can answer, at random moments and on {connections} connections, for
{rush:g} s; before and after that, 30 % of what it can answer. Times count from the moment at which a request was due;
rounds in which the client was more than {late:g} ms late (99th percentile) are left out. A refusal at the door is
prepared bytes; one that was shed has waited in the queue. Then the engine's process is stopped for a while, in the
moment in which so many calls come at once; the longest answer counts from when its request was sent.

{aims}

{rushes}

{hangs}

{measured} To repeat it: `make overload` (about {minutes} minutes).
"""

_RUSH = ["times; engine, ms", "capacity/s", "sent/s", "good/s", "good p50, p99 ms", "p99 once the queue stands"]
_RUSH += ["calm p99", "at the door; p99 ms", "shed; p99 ms", "normal, s"]
_HANG = ["at once; the engine hangs", "longest answer, ms", "at the door", "shed", "breaker", "failed", "unanswered"]
_HANG += ["normal, s"]


def section(found: results.Results) -> str:
    """Of docs/performance.md."""
    return _SECTION.format(
        connections=CONNECTIONS,
        rush=LONG[1],
        late=LATE_MS,
        aims=results.aims_table(aims(found)),
        rushes=results.table(_RUSH, [_rush_cells(case) for case in found["overload"]]),
        hangs=results.table(_HANG, [_hang_cells(one) for one in found["hang"]]),
        measured=results.measured_on(found),
        minutes=MINUTES,
    )


def _rush_cells(case: dict[str, Any]) -> list[str]:
    """Medians over the rounds that count."""
    rounds = _in_time(case)

    def of(phase: str, what: str) -> float:
        return middle([one[phase][what] for one in rounds] or [0.0])

    return [
        f"{case['times']:g}; {case['wait_ms']}",
        *(f"{of(phase, what):.0f}" for phase, what in (("capacity", "rps"), ("rush", "rate"), ("rush", "goodput"))),
        f"{of('rush', 'p50_ms'):.0f}, {of('rush', 'p99_ms'):.0f}",
        f"{of('standing', 'p99_ms'):.0f}",
        f"{of('calm', 'p99_ms'):.0f}",
        *(f"{of('rush', what):.0f}; {of('rush', f'{what}_p99_ms'):.0f}" for what in ("refused", "shed")),
        f"{middle(_figures(rounds, 'settled_s') or [0.0]):.1f}",
    ]


def _hang_cells(one: dict[str, Any]) -> list[str]:
    during = one["during"]
    return [
        f"{one['at_once']}; {one['hang_s']:g} s",
        f"{during['longest_ms']:.0f}",
        *(f"{during[what]}" for what in ("refused", "shed", "left_alone", "others", "unanswered")),
        f"{one['settled_s']:.1f}",
    ]


def screen(found: results.Results) -> Iterator[str]:
    for case in found["overload"]:
        yield f"\n{LINES} lines, engine {case['wait_ms']} ms: what it can answer, calm, {case['times']:g} times as much"
        yield (
            f"  {'capacity/s':>10}{'CPU us':>8}{'calm p99':>10}{'sent/s':>8}{'good/s':>8}{'share':>7}{'p50':>8}"
            f"{'p99':>8}{'standing':>9}{'door':>8}{'p99':>8}{'shed':>8}{'p99':>8}{'longest':>9}{'others':>8}"
            f"{'lost':>6}{'normal s':>10}{'MB':>6}{'late':>6}{'noise':>7}"
        )
        yield from map(_row, case["rounds"])
    yield f"\nA refusal takes {found['refusal_us']:.0f} us of the processor."
    yield "\nAn engine that hangs, and so many calls in that moment"
    for one in found["hang"]:
        during = one["during"]
        yield (
            f"  {one['at_once']:4}, {one['hang_s']:2g} s: longest {during['longest_ms']:7.1f} ms,"
            f" at the door {during['refused']}, shed {during['shed']} ({during['shed_p99_ms']:.0f} ms),"
            f" breaker {during['left_alone']}, failed {during['others']}, lost {during['unanswered']};"
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
        f"{one['standing']['p99_ms']:9.1f}"
        f"{rush['refused']:8,}{rush['refused_p99_ms']:8.1f}{rush['shed']:8,}{rush['shed_p99_ms']:8.1f}"
        f"{rush['longest_ms']:9.1f}{rush['others'] + rush['left_alone']:8}"
        f"{rush['unanswered']:6}{one['settled_s']:10.1f}{_growth(one):6.1f}{rush['late_p99_ms']:6.1f}"
        f"{one['noise']:7.2f}{late}"
    )


if __name__ == "__main__":
    sys.exit(main())
