"""What redeeming once costs: consumes beside validates, in one run, on SQLite and on PostgreSQL.

    python -m bench.consume [--rounds N] [--seconds S]

The sandbox answers at once, in a process of its own; the service is one worker. A consume asks the engine twice (check,
then close) and writes to the ledger three times (claim, mark, settle); a validate asks once and writes nothing. Turns
alternate, so that both meet the same machine; medians and quartiles are over turns.
"""

import argparse
import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import aiohttp

from bench import results, rounds
from mapper.domain.signature import sign

SECRET = "a signing secret that is long enough"
IN_FLIGHT = 16
_CONTENT = "sum(coalesce(length(body), 0) + coalesce(length(reply), 0))"


def body(operation: str) -> bytes:
    lines = [{"sku": f"S{i}", "quantity": 2, "price": "14.00"} for i in range(5)]
    key = "items" if operation == "validate" else "order_items"
    document = {"id": uuid.uuid4().hex, "currency": "USD", key: lines, "promotions": {"coupon_codes": ["TEN-PERCENT"]}}
    return json.dumps(document).encode()


@contextmanager
def process(*arguments: str, environment: dict[str, str]) -> Iterator[str]:
    """A command of ours on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mapper", *arguments, "--port", str(port)]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(url + ("/" if arguments[0] == "sandbox" else "/readyz"), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        running.terminate()
        running.wait()


async def turn(session: aiohttp.ClientSession, url: str, operation: str, seconds: float) -> tuple[float, float, float]:
    """Answers per second, p50 and p99 in ms. Every answer must be a 200, or "overloaded"."""
    times: list[float] = []
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            data = body(operation)
            headers = {"content-type": "application/json", "x-nacelle-signature-sha256": sign(data, SECRET.encode())}
            sent = time.perf_counter()
            async with session.post(f"{url}/promotions/{operation}", data=data, headers=headers) as response:
                answer = await response.read()
            if b'"overloaded"' in answer:  # validates that would wait for long; counted are those that are answered
                await asyncio.sleep(0.02)
                continue
            assert response.status == 200 or b"amount_mismatch" in answer, answer
            times.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    times.sort()
    rate = len(times) / (time.perf_counter() - started)
    return rate, times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000


async def measure(services: dict[str, str], count: int, seconds: float) -> dict[str, list[tuple[float, float, float]]]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    async with aiohttp.ClientSession(trust_env=False) as session:
        for number in range(count + 1):
            for store, url in services.items():
                for operation in ("validate", "consume"):
                    figures = await turn(session, url, operation, seconds)
                    if number:  # the first round warms up
                        found.setdefault(f"{operation}, {store}", []).append(figures)
    return found


async def stored(url: str) -> dict[str, float]:
    """What the ledger takes: orders in it, bytes of the whole store, and of what was sent and answered in it."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            orders, content = database.execute(f"SELECT count(*), {_CONTENT} FROM orders").fetchone()
            (pages,), (page,) = (database.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
            return {"orders": orders, "bytes": pages * page, "content_bytes": content}
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - only here

    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            f"SELECT count(*), pg_total_relation_size('mapper_orders'), {_CONTENT} FROM mapper_orders"
        )
        return {"orders": row[0], "bytes": row[1], "content_bytes": int(row[2])}
    finally:
        await connection.close()


def run(count: int, seconds: float, postgres_url: str) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        sandbox = stack.enter_context(process("sandbox", environment=base))
        base |= {"MAPPER_ENGINE": "talon_one", "NACELLE_SIGNING_SECRETS": SECRET}
        base |= {"TALON_ONE_BASE_URL": f"{sandbox}/talon_one", "TALON_ONE_API_KEY": "k"}
        ledgers = {"SQLite": f"sqlite:///{folder}/ledger.db", "PostgreSQL": postgres_url}
        services = {
            name: stack.enter_context(process("serve", "--drain", "0", environment={**base, "MAPPER_LEDGER_URL": url}))
            for name, url in ledgers.items()
        }
        turns = asyncio.run(measure(services, count, seconds))
        sizes = {name: asyncio.run(stored(url)) for name, url in ledgers.items()}
    return {
        "in_flight": IN_FLIGHT,
        "seconds": seconds,
        "turns": {what: [list(figures) for figures in found] for what, found in turns.items()},
        "stored": sizes,
    }


def beside(found: results.Results, store: str) -> tuple[float, float, float]:
    """Consumes a second for one validate: median and quartiles over the turns."""
    pairs = zip(found["turns"][f"consume, {store}"], found["turns"][f"validate, {store}"], strict=True)
    ratios = [consumed[0] / validated[0] for consumed, validated in pairs]
    return (rounds.middle(ratios), *rounds.quartiles(ratios))


def rows(found: results.Results) -> list[list[str]]:
    """What, how many a second, its median and 99th percentile."""
    told = []
    for what, turns in found["turns"].items():
        rates, medians, tails = zip(*turns, strict=True)
        low, high = rounds.quartiles(rates)
        told.append(
            [
                what,
                f"{rounds.middle(rates):.0f} [{low:.0f} to {high:.0f}]",
                f"{rounds.middle(medians):.1f}",
                f"{rounds.middle(tails):.1f}",
            ]
        )
    return told


def screen(found: results.Results) -> Iterator[str]:
    for what, rate, p50, p99 in rows(found):
        yield f"{what:22} {rate:>20}/s   p50 {p50:>6} ms   p99 {p99:>6} ms"
    for store, size in found["stored"].items():
        low, *spread = beside(found, store)
        yield (
            f"{store}: consume / validate {low:.2f} [{spread[0]:.2f} to {spread[1]:.2f}];"
            f" {size['bytes'] / size['orders']:,.0f} bytes an order,"
            f" of which {size['content_bytes'] / size['orders']:,.0f} are its content"
        )


_SECTION = """\
## What redeeming once costs

Orders of 5 lines, {in_flight} in flight, one worker, the sandbox as the engine. A consume asks it twice and writes to
the ledger three times, each on disk before it goes on; a validate asks once and writes nothing. Validates that are
refused, since they would wait for too long, are not counted; their callers ask again after 20 ms.

{rows}

Consumes a second for one validate: {beside}.

{measured} To repeat it: `make consume` (about 3 minutes).
"""


def section(found: results.Results) -> str:
    """Of docs/performance.md."""
    ratios = {store: beside(found, store) for store in found["stored"]}
    return _SECTION.format(
        in_flight=found["in_flight"],
        rows=results.table(["", "a second", "median, ms", "99th percentile, ms"], rows(found)),
        beside=", ".join(
            f"{store} {value:.2f} [{low:.2f} to {high:.2f}]" for store, (value, low, high) in ratios.items()
        ),
        measured=results.measured_on(found),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="less than 9 writes no page")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--postgres", help="postgresql://… of a server; without it, that of the tests is started")
    parser.add_argument("--anyway", action="store_true", help="measure although others keep the machine busy")
    chosen = parser.parse_args()
    short = chosen.rounds < 9
    if why := results.cannot_measure(anyway=chosen.anyway or short):
        print(why, file=sys.stderr)
        return 3
    if not chosen.postgres:
        from tests.orders import postgres  # noqa: PLC0415 - a server that comes as a package

        chosen.postgres = postgres.url()
    # The database's processes are not ours to count, so the noise of others cannot be told: see the load average.
    found = {**results.context(), "quiet": True, **run(chosen.rounds, chosen.seconds, chosen.postgres)}
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")
    results.finish("consume", found, screen(found), publish=not short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
