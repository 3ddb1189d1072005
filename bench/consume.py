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
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import aiohttp

from mapper.signature import sign

SECRET = "a signing secret that is long enough"
IN_FLIGHT = 16


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
    """Answers per second, p50 and p99 in ms. Every answer must be a 200."""
    times: list[float] = []
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            data = body(operation)
            headers = {"content-type": "application/json", "x-nacelle-signature-sha256": sign(data, SECRET.encode())}
            sent = time.perf_counter()
            async with session.post(f"{url}/promotions/{operation}", data=data, headers=headers) as response:
                answer = await response.read()
                assert response.status == 200 or b"amount_mismatch" in answer, answer
            times.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    times.sort()
    rate = len(times) / (time.perf_counter() - started)
    return rate, times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000


async def measure(services: dict[str, str], rounds: int, seconds: float) -> dict[str, list[tuple[float, float, float]]]:
    results: dict[str, list[tuple[float, float, float]]] = {}
    async with aiohttp.ClientSession(trust_env=False) as session:
        for number in range(rounds + 1):
            for store, url in services.items():
                for operation in ("validate", "consume"):
                    figures = await turn(session, url, operation, seconds)
                    if number:  # the first round warms up
                        results.setdefault(f"{operation}, {store}", []).append(figures)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--postgres", help="postgresql://… of a server; without it, that of the tests is started")
    chosen = parser.parse_args()
    if not chosen.postgres:
        from tests import postgres  # noqa: PLC0415 - a server that comes as a package

        chosen.postgres = postgres.url()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        sandbox = stack.enter_context(process("sandbox", environment=base))
        base |= {"MAPPER_ENGINE": "talon_one", "NACELLE_SIGNING_SECRETS": SECRET}
        base |= {"TALON_ONE_BASE_URL": f"{sandbox}/talon_one", "TALON_ONE_API_KEY": "k"}
        ledgers = {"SQLite": f"sqlite:///{folder}/ledger.db", "PostgreSQL": chosen.postgres}
        services = {
            name: stack.enter_context(process("serve", "--drain", "0", environment={**base, "MAPPER_LEDGER_URL": url}))
            for name, url in ledgers.items()
        }
        results = asyncio.run(measure(services, chosen.rounds, chosen.seconds))
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")
    print(f"{chosen.rounds} turns of {chosen.seconds} s each, {IN_FLIGHT} in flight; medians [quartiles]")
    for what, turns in results.items():
        rates, medians, tails = zip(*turns, strict=True)
        spread = statistics.quantiles(rates, n=4)
        print(
            f"{what:22} {statistics.median(rates):7.0f}/s [{spread[0]:.0f} to {spread[2]:.0f}]"
            f"   p50 {statistics.median(medians):6.1f} ms   p99 {statistics.median(tails):6.1f} ms"
        )
    for store in ledgers:
        pairs = zip(results[f"consume, {store}"], results[f"validate, {store}"], strict=True)
        ratios = [consumed[0] / validated[0] for consumed, validated in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"consume / validate, {store}: {statistics.median(ratios):.2f} [{low:.2f} to {high:.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
