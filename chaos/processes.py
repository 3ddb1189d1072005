"""The processes of a run, and the attacks on them. It signals only processes that it started."""

import asyncio
import dataclasses
import itertools
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from chaos import plan
from chaos.client import History
from chaos.plan import CANCEL_SECRET, SECRET, TOKEN_RULES, Manner, Profile
from mapper.commands.journey import ENGINES
from mapper.sandbox import rulebook

READY_WITHIN_S = 180.0
ATTACKS = (("pause", "kill", "kill"), ("kill", "pause", "kill"))
"""For each replica, in this order, repeated."""
STOP_WITHIN_S = 40.0
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class NotRunning(Exception):
    """A process does not serve."""


class Sandbox:
    """The engines. `requests` is collected from their log, which keeps only the last requests."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._turns = itertools.count(1)
        self.url = url
        self.requests: list[dict[str, Any]] = []

    async def hostile(self, seed: int, engine: str, *, slow: bool = False) -> None:
        await self.set_faults(plan.faults(seed, engine, next(self._turns), slow=slow))

    async def set_faults(self, faults: list[dict[str, Any]]) -> None:
        async with self._session.post(f"{self.url}/_sandbox/faults", data=msgspec.json.encode(faults)) as response:
            assert response.status == 200, await response.text()

    async def collect(self) -> None:
        """Must be called often enough: the log holds 2,000 requests."""
        found = await self._get("requests")
        log, total = found["requests"], sum(found["counts"].values())
        new = total - len(self.requests)
        assert new <= len(log), f"{new - len(log)} requests were forgotten before they were collected"
        self.requests += [
            {name: call[name] for name in ("at", "engine", "operation", "path", "body", "faults")}
            for call in log[len(log) - new :]
        ]

    async def collect_on(self) -> None:
        while True:
            await self.collect()
            await asyncio.sleep(1.5)

    async def books(self) -> dict[str, Any]:
        return await self._get("books")

    async def _get(self, what: str) -> dict[str, Any]:
        async with self._session.get(f"{self.url}/_sandbox/{what}") as response:
            found: dict[str, Any] = msgspec.json.decode(await response.read())
            return found


@asynccontextmanager
async def sandbox(folder: Path, session: aiohttp.ClientSession) -> AsyncIterator[Sandbox]:
    rules = folder / "rulebook.toml"
    given = (Path(rulebook.__file__).parent / "rulebook.toml").read_text("utf-8")
    assert TOKEN_RULES[0] in given
    rules.write_text(given.replace(*TOKEN_RULES), "utf-8")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mapper", "sandbox", "--port", str(port), "--rulebook", str(rules)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _until_answers(session, f"http://127.0.0.1:{port}/", process)
        yield Sandbox(session, f"http://127.0.0.1:{port}")
    finally:
        await _stop(process)


class Replica:
    """One process of the service; it dies and restarts on the same port."""

    def __init__(
        self, number: int, environment: dict[str, str], lease_s: float, sabotage: str, history: History
    ) -> None:
        self.number = number
        self.port = free_port()
        self.attack = asyncio.Lock()
        """Held during an attack."""
        self.starts_s: list[float] = []
        self.stale_steps: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.errors: list[str] = []
        """Tracebacks in its log."""
        self.steps = 0
        self._environment = environment
        self._lease_s = lease_s
        self._broken = [sabotage] if sabotage else []
        self._history = history
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self, session: aiohttp.ClientSession, manner: Manner) -> None:
        started = time.monotonic()
        self._history.add("nemesis", what="start", replica=self.number, **dataclasses.asdict(manner))
        version = "next" if manner.is_next_version else "ours"
        changed = {"MAPPER_DEFAULT_CURRENCY": manner.currency, "MAPPER_AFTER_FAILURE": manner.after_failure}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chaos.replica", str(self.port), str(self._lease_s), version, *self._broken),
            env=self._environment | changed,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        self._reading = asyncio.create_task(self._read(self._process.stderr))
        try:
            await _until_answers(session, f"{self.url}/readyz", self._process)
        except NotRunning as error:
            raise NotRunning(f"{error}: {' '.join(self.errors[-30:])}") from None
        self.starts_s.append(time.monotonic() - started)

    async def _read(self, stderr: asyncio.StreamReader | None) -> None:
        assert stderr is not None
        async for line in stderr:
            try:
                entry = msgspec.json.decode(line)
            except msgspec.DecodeError:
                self.errors.append(line.decode("utf-8", "replace").strip())
                continue
            if entry["event"] == "ledger step":
                self.steps += 1
                if entry["held"] != entry["found"]:
                    self.stale_steps.append(entry)
            elif entry["event"] == "asked":
                self.asked.append({"order": entry["order"], "at": entry["at"], "replica": self.number})
            elif "traceback" in entry:
                self.errors.append(entry["traceback"])

    async def kill(self) -> None:
        self.process.kill()
        await self._gone()

    async def stop(self) -> int:
        """Stops it as an orchestrator does; returns its exit code."""
        code = await _stop(self.process)
        await self._gone()
        return code

    def end(self) -> None:
        """Kills it after a run that broke off."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _gone(self) -> None:
        await self.process.wait()
        if self._reading is not None:
            await self._reading

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def disk(self, *, full: bool) -> None:
        """A full disk: no file of the process can be written to (sockets and pipes can)."""
        limit = (0, resource.RLIM_INFINITY) if full else UNLIMITED
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limit)


def replica_environment(engine: str, sandbox_url: str, ledger_url: str, profile: Profile) -> dict[str, str]:
    ours = ("MAPPER_", "NACELLE_", "TALON_ONE_", "VOUCHERIFY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {name: value.format(url=sandbox_url) for name, value in ENGINES[engine].settings.items()}
    return environment | {
        "MAPPER_ENGINE": engine,
        "NACELLE_SIGNING_SECRETS": SECRET.decode(),
        "MAPPER_CANCEL_SECRETS": CANCEL_SECRET.decode(),
        "MAPPER_LEDGER_URL": ledger_url,
        "MAPPER_CONSUME_DEADLINE_MS": str(round(profile.deadline_s * 1000)),
        "MAPPER_QUARANTINE_MS": str(round(profile.quarantine_s * 1000)),
    }


@dataclass(frozen=True)
class Stage:
    """What all attacks share."""

    engine: str
    seed: int
    profile: Profile
    sandbox: Sandbox
    control: aiohttp.ClientSession
    history: History
    enough: asyncio.Event
    """Set when the attacks must end."""


async def torment(replica: Replica, stage: Stage) -> None:
    """Kills and pauses one replica repeatedly and restarts it with other settings; it runs when this returns."""
    dice = random.Random(stage.seed * 10 + replica.number)
    attacks, manners = itertools.cycle(ATTACKS[replica.number]), itertools.cycle(plan.manners(dice))
    while not await _within(0.3 + 0.7 * dice.random(), stage.enough):
        async with replica.attack:
            await _attack(replica, stage, next(attacks), dice, manners)


async def _attack(replica: Replica, stage: Stage, attack: str, dice: random.Random, manners: Iterator[Manner]) -> None:
    """Strikes during redemptions: half a second before, the engine starts to answer them slowly."""
    await stage.sandbox.hostile(stage.seed, stage.engine, slow=True)
    await asyncio.sleep(0.5)
    stage.history.add("nemesis", what=attack, replica=replica.number)
    if attack == "kill":
        await replica.kill()
    else:
        replica.signal(signal.SIGSTOP)
    await stage.sandbox.hostile(stage.seed, stage.engine)
    if attack == "kill":
        await replica.start(stage.control, next(manners))
        return
    await asyncio.sleep(dice.uniform(*stage.profile.pause_s))
    replica.signal(signal.SIGCONT)
    stage.history.add("nemesis", what="resume", replica=replica.number)


async def fill_disk(replicas: list[Replica], stage: Stage) -> None:
    """From time to time the disk is full for all replicas; no other attack happens then."""
    while not await _within(stage.profile.full_every_s, stage.enough):
        for replica in replicas:
            await replica.attack.acquire()
        try:
            for replica in replicas:
                replica.disk(full=True)
            stage.history.add("nemesis", what="full")
            await asyncio.sleep(stage.profile.full_s)
        finally:
            stage.history.add("nemesis", what="space")
            for replica in replicas:
                replica.disk(full=False)
                replica.attack.release()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event is set within this time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_answers(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    give_up = time.monotonic() + READY_WITHIN_S
    while True:
        if process.returncode is not None:
            raise NotRunning(f"{url}: the process ended with {process.returncode}")
        if time.monotonic() > give_up:
            raise NotRunning(f"{url} does not answer")
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
                if response.status == 200:
                    return
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        await asyncio.sleep(0.03)


async def _stop(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        process.terminate()
        try:
            return await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
    return await process.wait()
