"""`make memory`: whether the service holds more and more, under ten minutes of everything that may come.

Half of what it can answer, at random moments, and every ten seconds 300 requests at once: carts of 1 to 100 lines,
orders, wrong signatures, broken bodies, sessions that the engine does not know, paths that do not exist. No two have
the same session, customer, order, SKU or request id, so that whatever is kept by one of them shows.

What the process holds is noted every second. What counts is the line through all of it after the warm-up.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from bench import carts, contenders, load, machine, results
from bench.contenders import BY_KEY, Running
from bench.overload import running_service
from bench.results import Judged
from bench.rounds import run
from mapper.engine import transport

SIZES = (1, 2, 3, 5, 8, 13, 20, 20, 35, 60, 100)
CONNECTIONS = 400
SHARE = 0.5
"""Of what it can answer."""
BURST, BURST_EVERY_S = 300, 10.0
MOST_MB = 3.0
"""In ten minutes."""
LENGTH_S, WARM_S = 600.0, 60.0

_PLACE = 7_654_321
"""Stands in the bodies made beforehand where each request has a number of its own."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--seconds", type=float, default=LENGTH_S, help="after the warm-up; less writes no page")
    parser.add_argument("--warm", type=float, default=WARM_S, metavar="SECONDS")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    chosen = parser.parse_args(arguments)
    short = chosen.seconds < LENGTH_S
    if why := results.cannot_measure(anyway=chosen.anyway or short):
        print(why, file=sys.stderr)
        return 3
    # Whether others are busy meanwhile changes how much is answered, not how much is held: always quiet.
    found = {**results.context(), **measure(chosen.warm, chosen.seconds), "quiet": True}
    results.finish("memory", found, screen(found), publish=not short)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# What is sent


def _good(number: int, lines: int) -> bytes:
    return _signed("/promotions/validate", _own(_checkout(lines), number), number)


def _order(number: int, lines: int) -> bytes:
    return _signed("/promotions/consume", _own(_order_body(lines), number), number)


def _forged(number: int, lines: int) -> bytes:
    return _signed("/promotions/validate", _own(_checkout(lines), number), number, b"not the secret")


def _broken(number: int, lines: int) -> bytes:
    return _signed("/promotions/validate", _own(_checkout(lines), number)[:-40], number)


def _unknown(number: int, lines: int) -> bytes:
    return _signed("/promotions/validate", _own(_checkout(lines), number).replace(b'"lines-', b'"other-', 1), number)


def _nowhere(number: int, lines: int) -> bytes:
    return f"GET /elsewhere/{number} HTTP/1.1\r\nHost: mapper.example\r\n\r\n".encode()


KINDS: tuple[tuple[Callable[[int, int], bytes], int, int], ...] = (
    (_good, 84, 200),
    (_order, 4, 200),
    (_forged, 3, 401),
    (_broken, 3, 400),
    (_unknown, 3, 422),
    (_nowhere, 3, 404),
)
"""(maker, of a hundred, the status of the right answer)"""


@cache
def _checkout(lines: int) -> bytes:
    return carts.checkout(lines, 0, _PLACE).replace(b'"SKU-', b'"SKU-%d-' % _PLACE)


@cache
def _order_body(lines: int) -> bytes:
    return carts.order(lines, 0, _PLACE).replace(b'"SKU-', b'"SKU-%d-' % _PLACE)


def _own(body: bytes, number: int) -> bytes:
    return body.replace(b"%d" % _PLACE, b"%d" % (10_000_000 + number))


def _signed(path: str, body: bytes, number: int, secret: bytes = carts.SECRET) -> bytes:
    return carts.signed_request(path, body, secret, f"request-{number}")


def requests(seed: int) -> Iterator[tuple[bytes, int]]:
    """Without end, no two alike: the bytes, and the status of the right answer."""
    source = random.Random(seed)
    weights = [share for _, share, _ in KINDS]
    number = 0
    while True:
        ((make, _, status),) = source.choices(KINDS, weights)
        yield make(number, source.choice(SIZES)), status
        number += 1


# ---------------------------------------------------------------------------------------------------------------------
# The measuring


def measure(warm_s: float, seconds: float) -> dict[str, Any]:
    with contenders.engine() as (port, _), running_service(port, BY_KEY["service"]) as service:
        rate = SHARE * _capacity(service)
        results.say(f"{rate:.0f} requests a second, for {warm_s + seconds:.0f} s.")
        return {"rate": round(rate, 1), "warm_s": warm_s, "seconds": seconds} | run(
            _steady(service, rate, warm_s, seconds)
        )


def _capacity(service: Running) -> float:
    """Of carts of the usual mix."""
    sent = [_good(number, lines) for number, lines in enumerate(SIZES * 30)]
    window = run(load.closed_loop(service.port, sent, 16, 2.0, 4.0, lambda: None))
    return len(window.times_ns) / window.seconds


async def _steady(service: Running, rate: float, warm_s: float, seconds: float) -> dict[str, Any]:
    following, source = requests(0), random.Random(1)
    free: deque[load.Connection] = deque()
    answers: Counter[int] = Counter()
    surprises, skipped = 0, 0

    def on_answer(connection: load.Connection, status: int, ns: int) -> None:
        nonlocal surprises
        answers[status] += 1
        # When it is full it may say so instead.
        surprises += status not in (connection.ticket, 422, 500)
        free.append(connection)

    def send() -> None:
        nonlocal skipped
        while free and not free[0].open:
            free.popleft()
        if not free:
            skipped += 1
            return
        request, status = next(following)
        connection = free.popleft()
        connection.ticket = status
        connection.send(request, time.perf_counter_ns())

    pid = service.process.pid
    before = await _files_at_rest(pid)
    opened = await load.connect(service.port, CONNECTIONS, on_answer)
    free.extend(opened)
    samples: list[tuple[float, float]] = []
    began = time.perf_counter()
    due, burst, sample = 0.0, BURST_EVERY_S / 2, 0.0
    while (now := time.perf_counter() - began) < warm_s + seconds:
        while due <= now:
            send()
            due += source.expovariate(rate)
        if burst <= now:
            for _ in range(BURST):
                send()
            burst += BURST_EVERY_S
        if sample <= now:
            samples.append((round(now, 2), round(machine.memory_mb(pid), 3)))
            sample += 1.0
        await asyncio.sleep(0.002)
    await asyncio.sleep(1.0)
    closed = sum(not connection.open for connection in opened)
    load.close(opened)
    return {
        "samples": samples,
        "files": [before, await _files_at_rest(pid)],
        "answers": {str(status): count for status, count in sorted(answers.items())},
        "surprises": surprises,
        "skipped": skipped,
        "closed": closed,
    }


async def _files_at_rest(pid: int) -> int:
    """Open files and sockets, when nobody calls and the connections to the engine have been given up."""
    await asyncio.sleep(transport.IDLE_S + 4.0)
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names are not needed


# ---------------------------------------------------------------------------------------------------------------------
# What it comes to


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the value at the first point, and by how much it grows until the last."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    slope = above / below if below else 0.0
    first, last = points[0][0], points[-1][0]
    return mean_y + slope * (first - mean_x), slope * (last - first)


def after_warming(found: results.Results) -> list[tuple[float, float]]:
    return [(moment, held) for moment, held in found["samples"] if moment >= found["warm_s"]]


def aims(found: results.Results) -> list[Judged]:
    points = after_warming(found)
    start, growth = line(points)
    held = [value for _, value in points]
    figure = f"{growth:+.2f} MB from {start:.1f} MB (least {min(held):.1f}, most {max(held):.1f})"
    minutes = found["seconds"] / 60
    wanted = f"at most {MOST_MB:g} MB in 10 minutes"
    judged = growth <= MOST_MB if found["seconds"] >= LENGTH_S else None
    before, after = found["files"]
    return [
        Judged(f"What is held grows, in {minutes:.3g} minutes of load", figure, wanted, judged),
        Judged(
            "Open files and sockets more than before, when all have gone",
            f"{after - before} ({after})",
            "none",
            after <= before,
        ),
        Judged("Answers nobody expected", f"{found['surprises']}", "none", found["surprises"] == 0),
    ]


_SECTION = """\
## Memory under load

{minutes:.3g} minutes of half of what one worker can answer ({rate:.0f} requests a second, carts of 1 to 100 lines), and
{burst} requests at once every {every:.0f} s: good ones, orders, wrong signatures, broken bodies, unknown sessions, no
such path. No two have the same session, order, customer, SKU or request id. The growth is that of the line through
what the process holds, noted each second, after {warm:.0f} s of warming up.

{aims}

{measured} To repeat it: `make memory` (11 minutes).
"""


def section(found: results.Results) -> str:
    """Of docs/performance.md."""
    return _SECTION.format(
        minutes=found["seconds"] / 60,
        rate=found["rate"],
        burst=BURST,
        every=BURST_EVERY_S,
        warm=found["warm_s"],
        aims=results.aims_table(aims(found)),
        measured=results.measured_on(found),
    )


def screen(found: results.Results) -> Iterator[str]:
    answers = ", ".join(f"{count:,} x {status}" for status, count in found["answers"].items())
    yield f"{found['rate']:.0f} requests a second and {BURST} at once every {BURST_EVERY_S:.0f} s: {answers}"
    yield f"not sent for want of a connection: {found['skipped']}; connections closed by the service: {found['closed']}"
    yield from results.verdicts(aims(found))


if __name__ == "__main__":
    sys.exit(main())
