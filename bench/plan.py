"""The arithmetic and the simulation behind docs/capacity.md: from what was measured and assumed to what is needed."""

import asyncio
import math
import tempfile
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import apps, carts, results, simulate
from bench.rounds import middle
from bench.simulate import Admission, Draw, Outcome, Turnstile, Worker
from mapper import settings
from mapper.http import app
from mapper.orders import postgres as ledger_postgres
from mapper.orders import rows

LINES = 20
SECONDS = 40.0
"""Of the service's time, for each figure that is simulated."""
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TURN_S = 20e-6
"""Of the processor, for a turn of the loop: a guess that changes little."""
SLOTS = app.VALIDATE_SLOTS
ADMISSION: Callable[[], Admission] = partial(Turnstile, size=app.VALIDATE_ROOM)
"""As the service lets calls in."""
_SHORTEST, _LONGEST = (1000 * seconds for seconds in app.PATIENCE_S)
ADMISSION_IN_WORDS = (
    f"those who would wait longer than the engine takes ({_SHORTEST:.0f} to {_LONGEST:.0f} ms), or in a crowd that"
    " stays for half of that"
)
ORDER_KB = len(carts.order(LINES, 0, 0)) / 1000
TRIMMED_DAYS, KEPT_DAYS = rows.TRIM_AFTER_S / 86_400, rows.KEEP_S / 86_400
"""After so long the ledger drops an order's own bytes, and the whole row."""
POOL = ledger_postgres._MAX_CONNECTIONS  # noqa: SLF001 - told here, used nowhere else
"""Of a worker to PostgreSQL, at most."""
QUOTAS = (
    ("Voucherify, 100 calls a minute", 100 / 60, "Voucherify"),
    ("Voucherify, 2,000 calls a minute", 2000 / 60, "Voucherify"),
    ("Talon.One, agreed upon: for instance 300 calls a second", 300.0, "Talon.One"),
)
CALLS = {"Talon.One": ((1, 2), (2, 3)), "Voucherify": ((1, 4), (2, 4))}
"""Calls of the engine, usual and most, for a validate and for a consume: see `adapters/`."""


@dataclass(frozen=True)
class Measured:
    validate_us: float
    """Of the processor, for a validate of `LINES` lines."""
    refuse_us: float
    consume_ratio: float
    """Consumes that are answered while one validate is."""
    commits: float
    """A second, of PostgreSQL, through one worker."""
    order_kb: float
    """In PostgreSQL, beyond the order's own bytes, for each order."""
    memory_mb: float
    """Of a worker under load."""


@dataclass(frozen=True)
class Assumed:
    validates: float = 3.0
    """Of a checkout, before its one consume."""
    busy: float = 0.5
    """Of each processor, in the busiest second."""
    peak: float = 4.0
    """The busiest second beside the day's average."""
    zones: int = 3
    engine_ms: tuple[float, float] = (150.0, 400.0)
    """What the engine takes: median, 99th percentile."""
    before: float = 0.5
    """Of a validate's processor time, what is spent before the engine is asked."""
    vary: float = 0.5
    """Carts differ: the standard deviation of a validate's work beside its mean."""
    burst: float = 10.0
    """Requests in a burst."""


WHERE = {
    "validate_us": "make bench",
    "refuse_us": "make overload",
    "consume_ratio": "make consume",
    "commits": "make consume",
    "order_kb": "make consume",
    "memory_mb": "make memory",
}


def from_files() -> dict[str, float]:
    """As much of `Measured` as has been."""
    found: dict[str, float] = {}
    if full := results.read("full"):
        case = next(c for c in full["cases"] if (c["lines"], c["wait_ms"], c["in_flight"]) == (LINES, 0, 32))
        found["validate_us"] = middle(case["contenders"]["service"]["cpu_us"])
    if overload := results.read("overload"):
        found["refuse_us"] = overload["refusal_us"]
    if consume := results.read("consume"):
        turns, stored = consume["turns"], consume["stored"]["PostgreSQL"]
        rates = {what: middle([turn[0] for turn in turns[f"{what}, PostgreSQL"]]) for what in ("validate", "consume")}
        found["consume_ratio"] = rates["consume"] / rates["validate"]
        found["commits"] = 3 * rates["consume"]
        found["order_kb"] = (stored["bytes"] - stored["content_bytes"]) / stored["orders"] / 1000
    if memory := results.read("memory"):
        held = [mb for moment, mb in memory["samples"] if moment >= memory["warm_s"]]
        found["memory_mb"] = max(held)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Bytes on the wire


@dataclass(frozen=True)
class Wire:
    """Of one validate, in bytes."""

    request: int
    answer: int
    question: int
    """To the engine."""
    reply: int


class _Noting(apps.Canned):
    question = 0

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> Any:
        self.question = len(f"{method} {url} HTTP/1.1") + sum(len(n) + len(v) + 4 for n, v in headers) + len(body)
        return await super().send(method, url, headers, body, timeout_s, max_bytes)


def wire() -> Wire:
    """Asks the service itself, without a socket."""
    request = carts.signed_request("/promotions/validate", carts.checkout(LINES, 0, 0))
    noting = _Noting()
    return Wire(len(request), asyncio.run(_ask(request, noting)), noting.question, len(carts.reply(LINES)) + 100)


async def _ask(request: bytes, noting: _Noting) -> int:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    received: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        assert message.get("status", 200) == 200, "the service does not answer this as it should"
        for name, value in message.get("headers", ()):
            received.append(name + b": " + value + b"\r\n")
        received.append(message.get("body", b""))

    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "MAPPER_ENGINE": "talon_one",
            "NACELLE_SIGNING_SECRETS": carts.SECRET.decode(),
            "MAPPER_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
            "TALON_ONE_BASE_URL": "http://127.0.0.1:1",
            "TALON_ONE_API_KEY": "bench",
        }
        built = app.create(settings.load(environment), engine_transport=noting)
        scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": "/promotions/validate", "raw_path": b"/promotions/validate",
            "query_string": b"", "headers": [(name.lower(), value) for name, value in lines], "state": {},
            "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("x", 1), "root_path": "",
        }  # fmt: skip
        async with built.router.lifespan_context(built):
            await built(scope, receive, send)
    return len(b"".join(received))


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic


@dataclass(frozen=True)
class Needed:
    """For one rate of checkouts."""

    rate: float
    validates: float
    """A second; a consume for each checkout comes on top."""
    processors: float
    """Kept busy, all in all."""
    engine_calls: float
    engine_in_flight: float
    by_processor: int
    """Workers, so that each is as busy as it may be."""
    by_slots: int
    """Workers, so that calls in flight find a slot."""
    workers: int
    per_zone: int
    with_zone_lost: float
    """How busy each is then."""
    to_engine: int
    """Connections of a worker to the engine, hardly ever more."""
    to_postgres: int
    """Connections at most."""
    commits: float
    databases: float
    """Of the measured commits a second."""
    rows_a_day: float
    gb_a_day: float
    gb_kept: float
    mbit_in: float
    mbit_out: float
    memory_gb: float


def mean_s(engine_ms: tuple[float, float]) -> float:
    """Of the lognormal distribution with this median and 99th percentile."""
    p50, p99 = engine_ms
    return p50 / 1000 * math.exp((math.log(p99 / p50) / simulate.P99) ** 2 / 2)


def calls(engine: str, assumed: Assumed) -> tuple[float, float]:
    """Of a whole checkout: usual, and most."""
    (usual, most), (usual_consume, most_consume) = CALLS[engine]
    return assumed.validates * usual + usual_consume, assumed.validates * most + most_consume


def slots_on_average() -> float:
    """So many may be taken on average: chance hardly ever adds more than three standard deviations (Poisson)."""
    return SLOTS - 3 * math.sqrt(SLOTS)


def needed(measured: Measured, assumed: Assumed, wire: Wire, rate: float) -> Needed:
    validates = rate * assumed.validates
    consume_us = measured.validate_us / measured.consume_ratio
    processors = (validates * measured.validate_us + rate * consume_us) / 1e6
    engine_calls = rate * calls("Talon.One", assumed)[0]
    in_flight = engine_calls * mean_s(assumed.engine_ms)
    validating = validates * mean_s(assumed.engine_ms)
    by_processor = math.ceil(processors / assumed.busy)
    by_slots = math.ceil(validating / slots_on_average())
    least = max(by_processor, by_slots, 1)
    per_zone = max(1, math.ceil(least / assumed.zones))
    workers = per_zone * assumed.zones
    mean = in_flight / workers
    rows = rate / assumed.peak * 86_400
    kilobytes = measured.order_kb + 2 * ORDER_KB
    return Needed(
        rate=rate,
        validates=validates,
        processors=processors,
        engine_calls=engine_calls,
        engine_in_flight=in_flight,
        by_processor=by_processor,
        by_slots=by_slots,
        workers=workers,
        per_zone=per_zone,
        with_zone_lost=processors / (workers - per_zone) if assumed.zones > 1 else 0.0,
        to_engine=math.ceil(mean + 3 * math.sqrt(mean)),
        to_postgres=workers * POOL,
        commits=3 * rate,
        databases=3 * rate / measured.commits,
        rows_a_day=rows,
        gb_a_day=rows * kilobytes / 1e6,
        gb_kept=rows * (kilobytes * TRIMMED_DAYS + measured.order_kb * (KEPT_DAYS - TRIMMED_DAYS)) / 1e6,
        mbit_in=validates * (wire.request + wire.reply) * 8 / 1e6,
        mbit_out=validates * (wire.answer + wire.question) * 8 / 1e6,
        memory_gb=workers * measured.memory_mb / 1000,
    )


# ---------------------------------------------------------------------------------------------------------------------
# What waiting comes to, simulated


@dataclass(frozen=True)
class Waiting:
    """At one load: what a validate takes beyond the engine, in ms, and the share that is refused."""

    load: float
    p50_ms: float
    p99_ms: float
    shed: float
    busy: float


@dataclass(frozen=True)
class Point:
    """Simulated beside measured, with an engine that always takes 30 ms; in ms."""

    share: float
    simulated: tuple[float, float]
    measured: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    measured: Measured
    assumed: Assumed
    wire: Wire
    needed: list[Needed]
    at_random: list[Waiting]
    in_bursts: list[Waiting]
    balanced: list[tuple[str, str, Waiting]]
    """(engine, how requests come, what that makes) at the load that is planned with."""
    before: list[tuple[float, Waiting]]
    """The same for other shares of work before the engine is asked."""
    points: list[Point]
    sources: list[results.Results]


def worker(measured: Measured, before: float, vary: float) -> Worker:
    work = measured.validate_us / 1e6
    return Worker(
        before * work, (1 - before) * work, refuse_s=measured.refuse_us / 1e6, turn_s=TURN_S, vary=_varied(vary)
    )


def _varied(deviation: float) -> Draw:
    """A factor of mean 1, never negative: lognormal."""
    sigma = math.sqrt(math.log(1 + deviation**2))
    return lambda source: math.exp(source.gauss(-(sigma**2) / 2, sigma))


def _waiting(load: float, outcome: Outcome) -> Waiting:
    p50, p99 = (round(outcome.added(share) * 1000, 2) for share in (0.5, 0.99))
    return Waiting(load, p50, p99, outcome.shed, outcome.busy_s / outcome.seconds)


def waits(one: Worker, load: float, arrivals: Iterator[float], engine: Draw) -> Waiting:
    return _waiting(load, simulate.simulate(one, ADMISSION(), arrivals, engine, SECONDS, seed=11))


def points() -> list[Point]:
    """None where `make overload` has not been run, or its client was late."""
    found: list[Point] = []
    for one in (results.read("overload") or {"points": []})["points"]:
        if one["late_p99_ms"] <= 5:
            work = Worker(one["cpu_us"] / 2e6, one["cpu_us"] / 2e6, turn_s=TURN_S)
            arrivals = simulate.at_random(one["rate"], 12)
            outcome = simulate.simulate(work, ADMISSION(), arrivals, _always_30_ms, SECONDS)
            p50, p99 = (round(outcome.took(share) * 1000, 1) for share in (0.5, 0.99))
            found.append(Point(one["share"], (p50, p99), (one["p50_ms"], one["p99_ms"])))
    return found


def _always_30_ms(source: Any) -> float:
    return 0.030


def make(measured: Measured, assumed: Assumed, rates: Sequence[float]) -> Plan:
    usual = worker(measured, assumed.before, assumed.vary)
    engine = simulate.lognormal(*(ms / 1000 for ms in assumed.engine_ms))
    full = 1 / usual.call_s
    bytes_of = wire()
    rate = assumed.busy * full
    comings: list[tuple[str, Callable[[], Iterator[float]]]] = [
        ("at random", lambda: simulate.at_random(rate, 13)),
        ("at random, a balancer goes round 8 workers", lambda: simulate.every(simulate.at_random(8 * rate, 13), 8)),
        (f"in bursts of {assumed.burst:g}", lambda: simulate.in_bursts(rate, 13, assumed.burst)),
    ]
    engines = [(30.0, 60.0), assumed.engine_ms, (300.0, 900.0)]
    return Plan(
        measured,
        assumed,
        bytes_of,
        [needed(measured, assumed, bytes_of, rate) for rate in rates],
        [waits(usual, load, simulate.at_random(load * full, 14), engine) for load in LOADS],
        [waits(usual, load, simulate.in_bursts(load * full, 14, assumed.burst), engine) for load in LOADS],
        [
            (f"{p50:g} ms, 99 of 100 within {p99:g} ms", name, waits(usual, assumed.busy, come(), _drawn(p50, p99)))
            for p50, p99 in dict.fromkeys(engines)
            for name, come in comings
        ],
        [
            (before, waits(worker(measured, before, assumed.vary), assumed.busy, comings[0][1](), engine))
            for before in (0.3, 0.5, 0.7)
        ],
        points(),
        [found for name in ("full", "overload", "consume", "memory") if (found := results.read(name))],
    )


def _drawn(p50_ms: float, p99_ms: float) -> Draw:
    return simulate.lognormal(p50_ms / 1000, p99_ms / 1000)
