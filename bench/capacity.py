"""`make capacity`: docs/capacity.md, from what was measured to what to run, with the arithmetic shown.

The figures come from the files that `make bench`, `make overload`, `make consume` and `make memory` write; each can be
given as an option instead, and so can what is assumed. With options of your own the page goes to the screen:

    make capacity ARGS="--rates 40 400 --validate-us 900 --engine-ms 80 250 --validates 5"
"""

import argparse
import sys
from dataclasses import fields

from bench import plan, results
from bench.plan import Assumed, Measured, Needed, Plan, Waiting
from bench.plot import curves
from bench.results import table

PAGE = results.ROOT / "docs" / "capacity.md"
PICTURE = results.ROOT / "docs" / "capacity.svg"


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    given = {one.name: getattr(chosen, one.name) for one in fields(Measured) if getattr(chosen, one.name) is not None}
    found = {**plan.from_files(), **given}
    if missing := [one.name for one in fields(Measured) if one.name not in found]:
        for name in missing:
            print(f"{name} is not measured: {plan.WHERE[name]}, or --{name.replace('_', '-')}", file=sys.stderr)
        return 2
    measured = Measured(**found)
    own = {one.name: getattr(chosen, one.name) for one in fields(Assumed) if getattr(chosen, one.name) is not None}
    assumed = Assumed(**{**own, **({"engine_ms": tuple(own["engine_ms"])} if "engine_ms" in own else {})})
    planned = plan.make(measured, assumed, chosen.rates or (10, 1_000, 20_000))
    text = page(planned, PICTURE.name)
    if given or own or chosen.rates:
        print(text)
        return 0
    PICTURE.write_text(picture(planned), "utf-8")
    PAGE.write_text(text, "utf-8")
    print(f"{PAGE.relative_to(results.ROOT)} is written.")
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=float, nargs="+", help="checkouts a second")
    for one in fields(Measured):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=float, help=f"instead of {plan.WHERE[one.name]}")
    for one in fields(Assumed):
        option = f"--{one.name.replace('_', '-')}"
        if one.name == "engine_ms":
            parser.add_argument(option, type=float, nargs=2, metavar=("P50", "P99"))
        else:
            parser.add_argument(option, type=type(one.default), help=f"assumed: {one.default}")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------------------------------------------------
# The page


_PAGE = """\
# How much of it is needed

<!-- Written by `make capacity`; the words stand in bench/capacity.py. -->

From what one worker was measured to do, to replicas, connections, PostgreSQL and the engine's quota. Nothing here is a
promise about your machines: every figure comes from the tables below, and one command does it all again with yours:

    make capacity ARGS="--rates 40 --validate-us 900 --engine-ms 80 250 --validates 5"

`make capacity ARGS=--help` lists what can be given.

## The answer

{answer}

A worker is one process on one processor (`serve --workers N`, or a container each). "Zone lost" is how busy the
processors of the other {others} zones are when one of {zones} is gone. Connections of a worker to the engine are the
mean of what is in flight and three times its root: hardly ever more (calls in flight are close to Poisson's
distribution). Connections to PostgreSQL are at most {pool} for each worker, opened when needed.

## What was measured

{measured}

{sources}

## What is assumed

{assumed}

## The arithmetic, for {example:,.0f} checkouts a second

{steps}

## PostgreSQL

A consume is three commits: the intent, the mark right before the engine is asked, the outcome. Measured here, through
one worker, were {commits:,.0f} commits a second, which is what that worker asked for and not what a database can do: "x
measured" above says how many times as much is needed. To measure yours:
`make consume ARGS="--postgres postgresql://…"`. All workers share one database; more checkouts than it can take need a
larger one. (SQLite is for one host: no replicas.)

An order takes {order_kb:.1f} kB of row and index beside its own bytes, which are kept twice, as sent and as answered,
for {trimmed:.0f} days ({body_kb:.1f} kB each at {lines} lines); the rest is kept for {kept:.0f} days. PostgreSQL
compresses large values: that is not counted, so it will be less.

## The engine's quota

Calls of the engine for a whole checkout of {validates:g} validates and a consume, usually, and with all that may be
asked: {calls}. So a quota, and not the processor, is the limit from here on:

{quotas}

One worker could answer {worker_rate:,.0f} checkouts a second at {busy:.0%} of its processor. What exceeds the quota is
refused by the engine (429), asked again where there is time, and else answered as `engine_unavailable`. Ask for the
quota before the campaign, not for more workers.

## What waiting comes to

Simulated: one worker, an event loop played turn by turn (`bench/simulate.py`), {seconds:g} s of its time for each
figure. Shown is what a validate takes **beyond the engine**, and the share that is refused: {admission}.
The engine takes {engine}.

![Load and time]({picture})

{waiting}

At {busy:.0%}, by engine and by how requests come. Several workers, machines or replicas need no simulation of their
own: connections are shared out at random, so each worker sees random arrivals at its share of the rate. Going round in
turn makes them more even.

{balanced}

## How far the simulation is right

Against formulas, in `tests/bench`: the queue of one server (Pollaczek and Khinchine, for M/D/1 and
M/M/1) to 8 %, and the share refused where nothing waits (Erlang B) to one percentage point.

Against the service itself, with an engine that always takes 30 ms, carts that are all alike, and the processor time
that was measured in that run; the whole time to answer, in ms:

{points}

The split of the work before and after the engine is a guess. It changes the 99th percentile beyond the engine at
{busy:.0%} load to {before}.

## To repeat it

{repeat}
"""


def page(made: Plan, picture: str) -> str:
    """docs/capacity.md."""
    measured, assumed = made.measured, made.assumed
    return _PAGE.format(
        answer=_answer(made),
        others=assumed.zones - 1,
        zones=assumed.zones,
        pool=plan.POOL,
        measured=_measured(made),
        sources=_sources(made),
        assumed=_assumed(made),
        example=_example(made).rate,
        steps="\n".join(_steps(made, _example(made))),
        commits=measured.commits,
        order_kb=measured.order_kb,
        body_kb=plan.ORDER_KB,
        lines=plan.LINES,
        trimmed=plan.TRIMMED_DAYS,
        kept=plan.KEPT_DAYS,
        validates=assumed.validates,
        calls="; ".join(
            f"{engine} {' and '.join(f'{each:g}' for each in plan.calls(engine, assumed))}" for engine in plan.CALLS
        ),
        quotas=_quotas(made),
        worker_rate=assumed.busy / (_example(made).processors / _example(made).rate),
        busy=assumed.busy,
        seconds=plan.SECONDS,
        engine=f"{assumed.engine_ms[0]:g} ms, 99 of 100 times less than {assumed.engine_ms[1]:g} ms",
        admission=plan.ADMISSION_IN_WORDS,
        picture=picture,
        waiting=_waiting(made),
        balanced=table(
            ["the engine takes", "requests come", "median, ms", "99th percentile, ms", "refused"],
            [[engine, come, *_cells(one)] for engine, come, one in made.balanced],
        ),
        points=_points(made),
        before=", ".join(f"{one.p99_ms:.1f} ms ({share:.0%} before)" for share, one in made.before),
        repeat=(
            "`make bench`, `make overload`, `make consume` and `make memory` measure, each on a quiet machine with two"
            " processors;\n`make capacity` takes seconds and writes this page from their files in `bench/results/`."
        ),
    )


def _example(made: Plan) -> Needed:
    return made.needed[len(made.needed) // 2]


def _answer(made: Plan) -> str:
    rows: list[tuple[str, list[str]]] = [
        ("validates a second", [f"{one.validates:,.0f}" for one in made.needed]),
        ("processors kept busy", [f"{one.processors:,.2f}" for one in made.needed]),
        ("**workers**", [f"**{one.workers:,}**" for one in made.needed]),
        ("replicas of 1 worker in each zone", [f"{one.per_zone:,}" for one in made.needed]),
        ("busy: usually; zone lost", [_busy(one) for one in made.needed]),
        ("engine calls a second", [f"{one.engine_calls:,.0f}" for one in made.needed]),
        ("engine calls in flight, all", [f"{one.engine_in_flight:,.1f}" for one in made.needed]),
        ("connections to the engine, a worker", [f"{one.to_engine:,}" for one in made.needed]),
        ("connections to PostgreSQL, at most", [f"{one.to_postgres:,}" for one in made.needed]),
        ("commits a second (x measured)", [f"{one.commits:,.0f} ({one.databases:.2g})" for one in made.needed]),
        ("orders a day", [f"{one.rows_a_day:,.0f}" for one in made.needed]),
        ("PostgreSQL, GB a day; kept", [f"{one.gb_a_day:,.1f}; {one.gb_kept:,.0f}" for one in made.needed]),
        ("network in; out, Mbit/s", [f"{one.mbit_in:,.1f}; {one.mbit_out:,.1f}" for one in made.needed]),
        ("memory, GB", [f"{one.memory_gb:,.1f}" for one in made.needed]),
    ]
    return table(
        ["checkouts a second", *(f"{one.rate:,g}" for one in made.needed)], [[name, *row] for name, row in rows]
    )


def _busy(one: Needed) -> str:
    return f"{one.processors / one.workers:.0%}; {one.with_zone_lost:.0%}"


def _measured(made: Plan) -> str:
    one, where = made.measured, plan.WHERE
    rows = [
        ["processor time of a validate, 20 lines", f"{one.validate_us:,.0f} µs", where["validate_us"]],
        ["processor time of a refusal", f"{one.refuse_us:,.0f} µs", where["refuse_us"]],
        ["consumes in the time of one validate, PostgreSQL", f"{one.consume_ratio:.2f}", where["consume_ratio"]],
        ["commits a second through one worker, PostgreSQL", f"{one.commits:,.0f}", where["commits"]],
        ["row and index of an order, without its content", f"{one.order_kb:.2f} kB", where["order_kb"]],
        ["memory of a worker under load, at most", f"{one.memory_mb:.0f} MB", where["memory_mb"]],
        ["a validate's request; answer", f"{made.wire.request:,}; {made.wire.answer:,} bytes", "make capacity"],
        ["to the engine; from it (Talon.One)", f"{made.wire.question:,}; {made.wire.reply:,} bytes", "make capacity"],
    ]
    return table(["", "", "by"], [[what, figure, f"`{by}`"] for what, figure, by in rows])


def _sources(made: Plan) -> str:
    runs = {(one["date"], one["commit"], one["machine"]["processor"]) for one in made.sources}
    told = "; ".join(f"{date}, commit {commit}, {processor}" for date, commit, processor in sorted(runs))
    return f"Measured on: {told or 'given by hand'}."


def _assumed(made: Plan) -> str:
    one = made.assumed
    rows = [
        ["a checkout is", f"{one.validates:g} validates, 1 consume", "`--validates`"],
        ["busy at most, in the busiest second", f"{one.busy:.0%} of each processor", "`--busy`"],
        ["the busiest second beside the day's average", f"{one.peak:g} times", "`--peak`"],
        ["zones", f"{one.zones}", "`--zones`"],
        [
            "the engine takes: median, 99th percentile",
            f"{one.engine_ms[0]:g}, {one.engine_ms[1]:g} ms",
            "`--engine-ms`",
        ],
        ["work before the engine is asked", f"{one.before:.0%}", "`--before`"],
        ["carts differ: standard deviation of the work", f"{one.vary:.0%}", "`--vary`"],
        ["a burst", f"{one.burst:g} requests on average", "`--burst`"],
        ["a consume costs a validate's processor time, divided by the ratio above", "", ""],
    ]
    return table(["", "", "to change"], rows)


def _steps(made: Plan, one: Needed) -> list[str]:
    measured, assumed = made.measured, made.assumed
    consume_us = measured.validate_us / measured.consume_ratio
    mean = plan.mean_s(assumed.engine_ms)
    validate, consume = plan.CALLS["Talon.One"]
    own, least = made.wire, f"{plan.slots_on_average():.0f}"
    steps = (
        (f"Validates: {one.rate:,g} x {assumed.validates:g} = {one.validates:,.0f} a second.",),
        (f"A consume: {measured.validate_us:,.0f} µs / {measured.consume_ratio:.2f} = {consume_us:,.0f} µs.",),
        (
            f"Processors: ({one.validates:,.0f} x {measured.validate_us:,.0f} µs",
            f"+ {one.rate:,g} x {consume_us:,.0f} µs) / 1,000,000 = {one.processors:,.2f}.",
        ),
        (
            f"Workers, so that none is busier than {assumed.busy:.0%}:",
            f"{one.processors:,.2f} / {assumed.busy:g} = {one.by_processor:,}, rounded up.",
        ),
        (
            f"Calls of the engine: {one.validates:,.0f} x {validate[0]} + {one.rate:,g} x {consume[0]}",
            f"= {one.engine_calls:,.0f} a second.",
            f"In flight (Little: rate x time, on average {mean * 1000:.0f} ms):",
            f"{one.engine_calls:,.0f} x {mean:.3f} s = {one.engine_in_flight:,.1f}.",
        ),
        (
            f"Workers, so that a validate finds one of {plan.SLOTS} slots, of which {least} may be taken on average,",
            f"three roots less: {one.validates:,.0f} x {mean:.3f} / {least} = {one.by_slots:,}, rounded up.",
        ),
        (
            f"The larger of the two in {assumed.zones} zones, rounded up: {one.per_zone:,} in each,",
            f"{one.workers:,} in all.",
            f"One zone lost: {one.processors:,.2f} / {one.workers - one.per_zone:,} = {one.with_zone_lost:.0%} busy.",
        ),
        (f"Orders a day: {one.rate:,g} / {assumed.peak:g} x 86,400 = {one.rows_a_day:,.0f}.",),
        (
            f"PostgreSQL: {one.rows_a_day:,.0f} x ({measured.order_kb:.2f} + 2 x {plan.ORDER_KB:.1f} kB)",
            f"= {one.gb_a_day:,.1f} GB a day.",
        ),
        (
            f"Network in: {one.validates:,.0f} x ({own.request:,} + {own.reply:,}) bytes x 8",
            f"= {one.mbit_in:,.1f} Mbit/s;",
            f"out: {one.validates:,.0f} x ({own.answer:,} + {own.question:,}) x 8 = {one.mbit_out:,.1f}.",
            "(Validates alone; TLS and the layers below add to it.)",
        ),
        (f"Memory: {one.workers:,} x {measured.memory_mb:.0f} MB = {one.memory_gb:,.1f} GB.",),
    )
    return [f"{number}. {' '.join(parts)}" for number, parts in enumerate(steps, 1)]


def _quotas(made: Plan) -> str:
    rows = []
    for name, quota, engine in plan.QUOTAS:
        asked = plan.calls(engine, made.assumed)
        rows.append([name, *(f"{quota:.3g} / {each:g} = {quota / each:.2g}" for each in asked)])
    return table(["quota", "checkouts a second, usually", "with all that may be asked"], rows)


def _cells(one: Waiting) -> list[str]:
    return [f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.shed:.2%}"]


def _waiting(made: Plan) -> str:
    rows = [[f"{a.load:.0%}", *_cells(a), *_cells(b)] for a, b in zip(made.at_random, made.in_bursts, strict=True)]
    bursts = f"bursts of {made.assumed.burst:g}"
    head = ["load", "at random: median, ms", "99th, ms", "refused", f"{bursts}: median, ms", "99th, ms", "refused"]
    return table(head, rows)


def _points(made: Plan) -> str:
    if not made.points:
        return "Not measured yet: `make overload`."
    rows = [
        [f"{one.share:.0%}", *(f"{a:.1f} / {b:.1f}" for a, b in zip(one.simulated, one.measured, strict=True))]
        for one in made.points
    ]
    return table(["load", "median: simulated / measured", "99th percentile: simulated / measured"], rows)


def picture(made: Plan) -> str:
    """docs/capacity.svg."""
    return curves(
        "How long a validate waits beyond the engine",
        "99th percentile, in ms, by the share of the processor that is asked for. Simulated, one worker.",
        [
            ("requests at random moments", "#1f6f5c", [(one.load, one.p99_ms) for one in made.at_random]),
            (f"in bursts of {made.assumed.burst:g}", "#b0b4ba", [(one.load, one.p99_ms) for one in made.in_bursts]),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
