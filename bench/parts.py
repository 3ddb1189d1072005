"""`make parts`: what the processor time of a validate is spent on, step by step, in one process and without HTTP.

Steps and whole take turns in short batches, so that all of them meet the same machine; medians and quartiles are over
rounds. By itself a step runs warm: the whole takes longer than its parts together, and by how much is said, too.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import uvloop

from bench import apps, carts, contenders, results
from bench.rounds import middle, quartiles
from mapper import promotions
from mapper.adapter import EngineReply, Outcome
from mapper.domain import checkout, discounts, signature
from mapper.domain import notices as notes
from mapper.domain.record import Record
from mapper.engine.conversation import Call as EngineCall
from mapper.http import protocol as connection
from mapper.ops import telemetry
from mapper.ops.telemetry import Telemetry
from mapper.promotions import Service

SIZES = (1, 20, 100)
BATCH = 10
ROUNDS = 200
_NO_PORT = 1
"""There is no engine behind it: the answer is prepared."""
ASK, BOTH, ANSWER = "the question for the engine", "question and answer", "its answer"
REST = "the rest: the turnstile, slots and attempts, and running less warm than step by step"
WHOLE = "the whole"

Step = Callable[[], Awaitable[object]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.parts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS}; fewer write no page")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    chosen = parser.parse_args(arguments)
    if why := results.cannot_measure(anyway=chosen.anyway or chosen.rounds < ROUNDS):
        print(why, file=sys.stderr)
        return 3
    found = {**results.context(), "us": measure(chosen.rounds), "quiet": True}
    results.finish("parts", found, screen(found), publish=chosen.rounds >= ROUNDS)
    return 0


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """By lines and step: microseconds, one figure for each round."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= contenders.environment(_NO_PORT, folder, contenders.BY_KEY["canned"])
        told = sys.stderr
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            sys.stderr = nowhere
            telemetry.log_to_stderr()
            try:
                return uvloop.run(_measure(rounds))
            finally:
                sys.stderr = told


async def _measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    made = apps.canned()
    found: dict[str, dict[str, list[float]]] = {}
    async with made.router.lifespan_context(made):
        for lines in SIZES:
            steps = _steps(cast("Any", made), made.state.service, lines)
            taken: dict[str, list[float]] = {name: [] for name in steps}
            for number in range(rounds + 5):
                for name, step in steps.items():
                    began = time.perf_counter()
                    for _ in range(BATCH):
                        await step()
                    if number >= 5:
                        taken[name].append(round((time.perf_counter() - began) / BATCH * 1e6, 2))
            found[str(lines)] = taken
    return found


def _steps(made: Any, service: Service, lines: int) -> dict[str, Step]:
    """Each of them does its work on what the step before it has made."""
    body, session = carts.checkout(lines, 0, 0), carts.session_id(lines, 0, 0)
    headers = [(signature.SIGNATURE, signature.sign(body, carts.SECRET).encode()), (b"x-nacelle-space-id", b"shop")]
    adapter, receipts, told = service.adapter, service.receipts, Telemetry()
    reply = EngineReply(status=200, headers={}, body=carts.reply(lines))
    parsed = checkout.parse(body, "validate", "USD")

    def ask() -> Any:
        conversation = adapter.validate(parsed, session)
        next(conversation)
        return conversation

    def answer() -> Outcome:
        try:
            ask().send(reply)
        except StopIteration as stop:
            return cast("Outcome", stop.value)
        raise AssertionError("it asks once")

    outcome = answer()
    settled = discounts.settle(parsed, outcome)
    note = {"notices": [notes.notice(notice) for notice in outcome.notices], "receipt": "a" * 120}

    def settle() -> None:
        content = promotions._content(parsed, discounts.settle(parsed, outcome))  # noqa: SLF001 - a step of its own
        receipts.write(session, False, content, service.now())

    def tell() -> None:
        told.call(EngineCall(operation="open session", account="", method="PUT", status=200, failure=None, seconds=0.03,
                             attempt=1))  # fmt: skip
        told.request(Record("validate", "an id"), 200, "ok", 0.03)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: object) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/promotions/validate", "headers": headers,
             "state": {connection.WHOLE: True}}  # fmt: skip
    steps: dict[str, Callable[[], object]] = {
        "signature": lambda: signature.verify(body, headers, service.settings.credentials),
        "reading the checkout": lambda: checkout.parse(body, "validate", "USD"),
        ASK: ask,
        BOTH: answer,
        "settling, and the receipt": settle,
        "writing the checkout": lambda: discounts.write(parsed, settled, note),
        "log and metrics": tell,
    }
    return {
        **{name: _at_once(step) for name, step in steps.items()},
        WHOLE: lambda: made(scope, receive, send),
    }


def _at_once(step: Callable[[], object]) -> Step:
    async def awaited() -> None:
        step()

    return awaited


def shares(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of the whole, for each round: the steps that follow each other, and the rest."""
    found: dict[str, list[float]] = {}
    for name, values in taken.items():
        if name == BOTH:
            pairs = zip(values, taken[ASK], strict=True)
            found[ANSWER] = [both - ask for both, ask in pairs]
        elif name != WHOLE:
            found[name] = values
    parts = zip(*found.values(), strict=True)
    found[REST] = [whole - sum(part) for whole, part in zip(taken[WHOLE], parts, strict=True)]
    return {name: [v / whole for v, whole in zip(values, taken[WHOLE], strict=True)] for name, values in found.items()}


def rows(found: results.Results) -> list[list[str]]:
    by_size = {lines: shares(taken) for lines, taken in found["us"].items()}
    names = list(next(iter(by_size.values())))
    whole = [WHOLE + ", µs", *(f"{middle(taken[WHOLE]):,.0f}" for taken in found["us"].values())]
    return [[name, *(_cell(by_size[lines][name]) for lines in by_size)] for name in names] + [whole]


def _cell(values: list[float]) -> str:
    lower, upper = quartiles(values)
    return f"{middle(values):.0%} [{lower:.0%} to {upper:.0%}]"


_SECTION = """\
## Where the microseconds go

A validate in one process, without HTTP: no connection, no client, an engine that answers at once with prepared bytes.
Each step by itself beside the whole of the same round, as the share of the processor's time; medians [and quartiles]
over {rounds} rounds:

{table}

The longest step of a larger cart is the engine's answer: discounts are told for each unit of each line, to be added up
and rounded exactly. Then come reading and writing, since a checkout comes back with all that was in it. With HTTP come
the connection, the client for the engine (aiohttp), and the kernel; the comparison above has them.

{measured} To repeat it: `make parts` (seconds).
"""


def section(found: results.Results) -> str:
    """Of docs/performance.md."""
    head = ["", *(f"{lines} line{'s' * (lines != '1')}" for lines in found["us"])]
    rounds = len(next(iter(found["us"].values()))[WHOLE])
    return _SECTION.format(rounds=rounds, table=results.table(head, rows(found)), measured=results.measured_on(found))


def screen(found: results.Results) -> Iterator[str]:
    for row in rows(found):
        yield f"{row[0]:90}" + "".join(f"{cell:>24}" for cell in row[1:])


if __name__ == "__main__":
    sys.exit(main())
