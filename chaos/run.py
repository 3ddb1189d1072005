"""One run, from start to end."""

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from chaos import changes, checker, plan, processes
from chaos.checker import Evidence, Expected
from chaos.client import Client, History
from chaos.plan import Manner, Profile
from chaos.processes import Replica, Sandbox, Stage
from mapper.orders.ledger import open_ledger

LAST_ORDERS_S = 45.0
"""How long orders without a caller may stay open: the reconciler's pauses grow."""
FURTHER_LOOK_UPS_S = 90.0
"""How long the further look-ups of redeemed orders may take. A long run leaves thousands: replicas that are
killed every few seconds make few look-ups."""
LATE_CLIENTS_S = 30.0
LATE_CLIENT_S = 0.03
"""How long clients that return after the faults may ask, and how much longer for each order of the plan: on a busy
machine two thousand of them take minutes."""


@dataclass(frozen=True)
class Result:
    counts: dict[str, Any]
    violations: list[str]


async def run(folder: Path, engine: str, ledger_url: str, profile: Profile, seed: int, sabotage: str = "") -> Result:
    """Leaves all evidence in `folder`."""
    started = time.monotonic()
    this = asyncio.current_task()
    assert this is not None
    # Stopping a run stops all its processes.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    orders = plan.orders(seed, profile)
    history = History(folder / "history.jsonl")
    ledger = await open_ledger(ledger_url)
    await ledger.close()
    await changes.install(ledger_url)
    async with aiohttp.ClientSession() as control, processes.sandbox(folder, control) as sandbox:
        environment = processes.replica_environment(engine, sandbox.url, ledger_url, profile)
        replicas = [Replica(number, environment, profile.lease_s, sabotage, history) for number in range(2)]
        with contextlib.ExitStack() as ending:
            for replica in replicas:
                ending.callback(replica.end)
            await asyncio.gather(*(replica.start(control, Manner()) for replica in replicas))
            client = Client([replica.url for replica in replicas], history, profile.deadline_s, seed)
            stage = Stage(engine, seed, profile, sandbox, control, history, asyncio.Event())
            collecting = asyncio.create_task(sandbox.collect_on())
            ending.callback(collecting.cancel)
            await sandbox.hostile(seed, engine)
            driving = asyncio.create_task(client.drive(orders, profile.load_s + 1))
            driving.add_done_callback(lambda _: client.all_sent.set())
            ending.callback(driving.cancel)
            await _attack(replicas, stage, client)
            await sandbox.set_faults([])
            history.add("calm")
            client.calm.set()
            patience_s = LATE_CLIENTS_S + LATE_CLIENT_S * len(orders)
            await _settle(client, driving, ledger_url, profile.settle_s, patience_s)
            await _send_waiting_again(client, orders, ledger_url, patience_s)
            collecting.cancel()
            await asyncio.wait({collecting})
            await sandbox.collect()
            exits = [await replica.stop() for replica in replicas]
        books = (await sandbox.books())[engine]
        evidence = await _evidence(folder, engine, ledger_url, profile, orders, sandbox, books, replicas)
    history.close()
    violations = checker.check(evidence)
    violations += [f"error: {error}" for replica in replicas for error in replica.errors]
    violations += [f"error: a replica stopped with exit code {code}" for code in exits if code not in (0, -15)]
    starts = sorted(start for replica in replicas for start in replica.starts_s)
    counts = checker.count(evidence) | {
        "ledger_steps": sum(replica.steps for replica in replicas),
        "median_start_s": round(starts[len(starts) // 2], 2),
        "longest_start_s": round(starts[-1], 2),
        "seconds": round(time.monotonic() - started),
    }
    return Result(counts, violations)


async def _attack(replicas: list[Replica], stage: Stage, client: Client) -> None:
    """Attacks while orders arrive. All replicas run when this returns."""
    async with asyncio.TaskGroup() as group:
        for replica in replicas:
            group.create_task(processes.torment(replica, stage))
        group.create_task(processes.fill_disk(replicas, stage))
        await client.all_sent.wait()
        stage.enough.set()


async def _settle(
    client: Client, driving: "asyncio.Task[None]", ledger_url: str, settle_s: float, patience_s: float
) -> None:
    """Waits until no order is open; then the clients that asked only once return."""
    for left, limit_s in (
        (changes.open_orders, max(settle_s, LAST_ORDERS_S)),
        (changes.further_look_ups, FURTHER_LOOK_UPS_S),
    ):
        give_up = time.monotonic() + limit_s
        while time.monotonic() < give_up and await left(ledger_url):  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.3)
    client.settled.set()
    await asyncio.wait({driving}, timeout=patience_s)
    client.over = True
    await driving


async def _send_waiting_again(client: Client, orders: list[plan.Order], ledger_url: str, patience_s: float) -> None:
    """The callers of orders that still wait for them send those again.

    A request of a gone caller (in a paused process) may leave an order waiting that another process has answered with a
    refusal: it is checked again.
    """
    waiting = set(await changes.waiting(ledger_url))
    client.over = False
    coming = asyncio.create_task(client.send_again([order for order in orders if order.key in waiting]))
    await asyncio.wait({coming}, timeout=patience_s)
    client.over = True
    await coming


async def _evidence(
    folder: Path,
    engine: str,
    ledger_url: str,
    profile: Profile,
    orders: list[plan.Order],
    sandbox: Sandbox,
    books: dict[str, Any],
    replicas: list[Replica],
) -> Evidence:
    rows, log = await changes.read(ledger_url)
    lines = (folder / "history.jsonl").read_bytes().splitlines()
    evidence = Evidence(
        engine=engine,
        history=[msgspec.json.decode(line) for line in lines],
        rows=rows,
        changes=log,
        requests=[request for request in sandbox.requests if request["engine"] == engine],
        books=books,
        plan={
            o.key: Expected(o.code, o.expect, {v: o.amount(v) for v in "ab"}, o.cancel_after_s is not None)
            for o in orders
        },
        stale_steps=[step for replica in replicas for step in replica.stale_steps],
        asked=[call for replica in replicas for call in replica.asked],
        deadline_s=profile.deadline_s,
        settle_s=profile.settle_s,
    )
    (folder / "evidence.json").write_bytes(msgspec.json.encode(evidence))
    return evidence
