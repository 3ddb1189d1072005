"""The crash matrix: processes die at every point, engines misbehave in every way; which invariants hold?

All that decides is real: consume, the ledger and its stores, the adapters, and the sandboxes as engines with their own
books, called over ASGI. Simulated are time (which jumps to the next timer when nothing is left to do), the wire and the
crashes. A process reaches the world by two ways, the ledger (`Door`) and the wire (`Wire`); a dead one by neither.

`Lab` holds what is opened once per engine and store, `World` is one case from start to end, `violations` returns the
invariants of docs/exactly_once.md that it has broken.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

import msgspec

from mapper import promotions
from mapper.adapter import EngineReply
from mapper.domain import checkout as documents
from mapper.domain import errors
from mapper.domain.errors import Problem
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.engine.transport import Unknown
from mapper.http.app import LEASE_S
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.postgres import PostgresStore
from mapper.orders.redeem import OrderRedeemer
from mapper.orders.rows import FINISHED, REDEEMED, Backlog, ClaimStep, Clock, Fenced, Key, Moment, Row, State, Step
from mapper.orders.sqlite import SqliteStore
from mapper.promotions import Call, Service
from mapper.sandbox import host as sandbox
from mapper.sandbox.faults import TRANSPORT
from mapper.settings import Settings, load
from tests.fakes import SECRET, signed, signed_with
from tests.house import CANCEL_SECRET
from tests.orders.ledgers import Home
from tests.virtual_time import now, running_loop

T = TypeVar("T")

QUARANTINE_S = 60.0
DEADLINE_S = 8.0
TRAVEL_S = 0.02
"""The travel time of a request to the engine, and of a reply back."""
LATE_S = 20
"""The delay of late events: long after the caller gave up, well within the quarantine."""
PAUSE_S = 100.0
ENDS_WITHIN_S = LEASE_S + QUARANTINE_S + 6.0
"""After the last fault: the last process to die held a lease, and its request may be resent after the quarantine."""
SETTLE_S = 2 * QUARANTINE_S
MOST_RETURNS = 4
"""How often the client returns at the most, after the order is at rest."""
BASE = "https://engine.test"
ORDER = "order-1"
MANY, SINGLE = "XMAS-2021-25", "SINGLE-0001"
"""A code without a limit, and a single-use code."""


# -- The dimensions ------------------------------------------------------------------------------------------------

POINTS: dict[str, tuple[str, ...]] = {
    "c0 before claim": ("before_claim",),
    "c1 claimed": ("claimed",),
    "c2 request sent": ("sent",),
    "c3 reply received": ("received",),
    "c4 recorded": ("recorded",),
    "c5 replied": ("replied",),
    "r1 taken over": ("sent", "taken_over"),
    "r2 looked up": ("sent", "looked_up"),
    "r3 marked again": ("marked", "marked_again"),
    "r4 rolled back": ("rolled_back",),
}
"""Where processes die, in turn: before a recovery can die, another process has to."""


@dataclass(frozen=True)
class Behaviour:
    """What the engine does with the first redeeming request; afterwards it is healthy."""

    fault: str = ""
    """As in the sandbox's header; or "busy": the engine refuses a second request at the same time."""
    acts: bool = True
    """Whether that request is carried out."""
    lookups_fail: int = 0
    rollbacks_fail: int = 0
    rollback_fault: str = "status=503"
    doubled_after_s: float | None = None
    """After this time a proxy sends the request again."""
    codes: tuple[str, ...] = (MANY,)
    """The order's codes. Another shopper uses up a single-use code between check and redemption."""


BEHAVIOURS: dict[str, Behaviour] = {
    "ok": Behaviour(),
    "drop before": Behaviour("reset", acts=False),
    "drop after": Behaviour("reset_after"),
    "500 before": Behaviour("status=500", acts=False),
    "500 after": Behaviour("status_after=500"),
    "429": Behaviour("status=429;retry_after=1", acts=False),
    "busy": Behaviour("busy", acts=False),
    "code refused": Behaviour(codes=(SINGLE,)),
    "broken JSON": Behaviour("malformed"),
    "late commit": Behaviour(f"late_commit={LATE_S * 1000}"),
    "slow reply": Behaviour(f"late_answer={LATE_S * 1000}"),
    "redirect": Behaviour("redirect", acts=False),
    "look-up fails": Behaviour("reset_after", lookups_fail=4),
}

GARBLED: dict[str, Behaviour] = {
    "201": Behaviour("status_instead=201"),
    "other JSON": Behaviour("strange"),
    "empty body": Behaviour("empty"),
    "a gateway's page": Behaviour("html"),
    "never answers": Behaviour("hang_after"),
}
"""An unreadable 2xx or no answer at all, and the redemption stands. Not part of the matrix."""

DOUBLED = {"doubled on the way": TRAVEL_S, "doubled, and late": float(LATE_S)}
"""With the seconds between first and second. Not part of the matrix: other results are expected."""

ALWAYS = 1_000_000
DENIED: dict[str, Behaviour] = {
    "surplus stays": Behaviour(doubled_after_s=TRAVEL_S, rollbacks_fail=ALWAYS, rollback_fault="status=403"),
    "part stays": Behaviour(codes=(MANY, SINGLE), rollbacks_fail=ALWAYS, rollback_fault="status=403"),
}
"""A surplus (a proxy's duplicate) or a partial redemption that cannot be rolled back: the engine answers 403. Not part
of the matrix."""

CHANGES = ("currency", "identity")
"""What may change before a process restarts: the default currency, or the rules of identity (`Case.changed`)."""


@dataclass(frozen=True)
class FollowUp:
    """What follows a crash: the replicas that are asked again (by number), and when the dead one restarts."""

    replicas: int
    asked: tuple[int, ...]
    restart_s: float


FOLLOW_UPS: dict[str, FollowUp] = {
    "same replica": FollowUp(replicas=1, asked=(0,), restart_s=0.5),
    "other replica": FollowUp(replicas=2, asked=(1,), restart_s=45.0),
    "both at once": FollowUp(replicas=2, asked=(0, 1), restart_s=0.5),
}


@dataclass(frozen=True)
class Case:
    point: str
    behaviour: str
    follow_up: str
    pause: bool = False
    """The process does not die: it pauses for a while and then goes on."""
    changed: str = ""
    """What has changed when a process restarts: one of `CHANGES`."""

    @property
    def played(self) -> Behaviour:
        if self.behaviour in DOUBLED:
            return Behaviour("reset_after", rollbacks_fail=2, doubled_after_s=DOUBLED[self.behaviour])
        behaviour = (BEHAVIOURS | GARBLED | DENIED)[self.behaviour]
        if self.point != "r4 rolled back":
            return behaviour
        # Something has to be rolled back: one of two codes is used up at the last moment.
        return replace(behaviour, codes=(MANY, SINGLE))

    def __str__(self) -> str:
        more = [*(["paused"] if self.pause else []), *([self.changed] if self.changed else [])]
        return " / ".join([self.point, self.behaviour, self.follow_up, *more])


def cases(
    points: Iterable[str] = POINTS,
    follow_ups: Iterable[str] = FOLLOW_UPS,
    *,
    pause: bool = False,
    behaviours: Iterable[str] = BEHAVIOURS,
    changed: str = "",
) -> list[Case]:
    return [Case(p, b, f, pause, changed) for p in points for b in behaviours for f in follow_ups]


# -- What all cases of an engine and a store share -----------------------------------------------------------------

_ENVIRONMENT = {
    "talon_one": {"TALON_ONE_BASE_URL": f"{BASE}/talon_one", "TALON_ONE_API_KEY": "key"},
    "voucherify": {
        "VOUCHERIFY_BASE_URL": f"{BASE}/voucherify",
        "VOUCHERIFY_APP_ID": "id",
        "VOUCHERIFY_APP_TOKEN": "token",
    },
}
ENGINES = tuple(_ENVIRONMENT)

# The kind of a request, by the sandbox's name for its operation.
_KINDS = {
    "close": "redeem", "redeem": "redeem", "read": "look-up", "order": "look-up", "reopen": "undo", "rollback": "undo",
}  # fmt: skip


class Lab:
    """One engine's sandbox and one store; both are empty at the start of each case."""

    def __init__(self, engine: str, ledger: Ledger, quarantine_s: float) -> None:
        loop = running_loop()
        environment = {
            "MAPPER_ENGINE": engine,
            "NACELLE_SIGNING_SECRETS": SECRET.decode(),
            "MAPPER_CANCEL_SECRETS": CANCEL_SECRET.decode(),
            **_ENVIRONMENT[engine],
        }
        self.engine, self.ledger, self.quarantine_s = engine, ledger, quarantine_s
        self.settings: Settings = load(environment)
        self.app = sandbox.create(now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=loop.now))
        self.box: sandbox.Sandbox = self.app.state.sandbox
        self.turn = asyncio.Lock()
        """One store call at a time, so that a case always runs the same."""
        self._orders: dict[tuple[str, ...], bytes] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, engine: str, home: Home, quarantine_s: float = QUARANTINE_S) -> AsyncIterator["Lab"]:
        loop = running_loop()
        with loop.real():
            ledger = await open_ledger(home.url, clock=Clock(loop.time, loop.time, "boot"))
            if isinstance(store := ledger.store, SqliteStore):
                # No power is cut here, and many small commits would take minutes.
                await store._run(lambda: store._open().execute("PRAGMA synchronous = OFF"))
        try:
            yield cls(engine, ledger, quarantine_s)
        finally:
            with loop.real():
                await ledger.close()

    async def empty(self) -> None:
        self.box.reset()
        with running_loop().real():
            if isinstance(store := self.ledger.store, SqliteStore):
                await store._run(lambda: store._open().executescript("DELETE FROM orders; DELETE FROM leases"))
            elif isinstance(store, PostgresStore):
                for table in ("mapper_orders", "mapper_leases"):
                    await store._execute(f"DELETE FROM {table}")

    async def order(self, codes: tuple[str, ...]) -> bytes:
        """The order that a shop sends after a validate."""
        if codes not in self._orders:
            checkout = {
                "id": ORDER,
                "items": [{"sku": "SKU-1", "quantity": 1, "price": "140.00"}],
                "promotions": {"coupon_codes": list(codes)},
            }
            adapter = self.settings.adapter
            engine = PromotionEngine(adapter, Engine(Outsider(self), adapter.accounts, clock=now))
            service = Service(self.settings, engine, OrderRedeemer(self.settings, engine, self.ledger, now), now)
            body, headers = signed(checkout)
            answer = await promotions.validate(service, Call(body, headers, now() + DEADLINE_S))
            self._orders[codes] = msgspec.json.encode(_to_order(msgspec.json.decode(answer.reply)["checkout"]))
            self.box.reset()
        return self._orders[codes]

    def redeemed(self) -> list[tuple[str, int]]:
        """The order's entries in the engine's books, by time: (code, 1), or (code, -1) for a rollback."""
        entries = self.box.books()[self.engine]["redemptions"]
        ours = [entry for entry in entries if ORDER in (entry.get("session"), entry.get("order"))]
        name = "code" if self.engine == "talon_one" else "id"
        return [(entry[name], 1 if entry["what"] == "redeemed" else -1) for entry in ours]

    def is_closed(self) -> bool:
        """Whether Talon.One's session is closed, which is its redemption."""
        books = self.box.books()[self.engine]
        return self.engine == "talon_one" and books["sessions"].get(ORDER, {"state": ""})["state"] == "closed"


def _to_order(checkout: dict[str, Any]) -> dict[str, Any]:
    lines = [
        {"sku": item["sku"], "quantity": item["quantity"], "price": item["price"], "discounts": item["total_discount"],
         "applied_discounts": item["discounts"]}
        for item in checkout["items"]
    ]  # fmt: skip
    return {
        "id": ORDER, "order_items": lines, "discounts": checkout["total_discount"],
        "promotions": checkout["promotions"],
    } | ({"applied_discounts": checkout["discounts"]} if checkout["discounts"] else {})  # fmt: skip


# -- The wire ------------------------------------------------------------------------------------------------------


class Connection:
    """The server's side of a connection: enough for the sandbox to break it."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def close(self) -> None:
        self.gone.set()

    abort = close

    def get_extra_info(self, name: str) -> "Connection":
        return self

    def setsockopt(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        return self.url.removeprefix(BASE).partition("?")[0]

    @property
    def query(self) -> str:
        return self.url.partition("?")[2]


async def at_engine(lab: Lab, request: Request, connection: Connection, fault: str = "") -> EngineReply | None:
    """The sandbox's reply; None if it ends the connection instead."""
    headers = [*request.headers, *([("X-Sandbox-Fault", fault)] if fault else [])]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "path": unquote(request.path), "raw_path": request.path.encode(), "query_string": request.query.encode(),
        "root_path": "", "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {TRANSPORT: connection},
    }  # fmt: skip
    pending = [{"type": "http.request", "body": request.body, "more_body": False}]
    status, given, body = 0, {}, b""

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop()
        await connection.gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, given, body
        if message["type"] == "http.response.start":
            status, given = message["status"], {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            body += message["body"]

    await lab.app(scope, receive, send)
    return EngineReply(status=status, headers=given, body=body) if status else None


class Outsider:
    """The wire of another client; it never fails."""

    def __init__(self, lab: Lab, fault: str = "") -> None:
        self._lab, self._fault = lab, fault

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        reply = await at_engine(self._lab, Request(method, url, headers, body), Connection(), self._fault)
        assert reply is not None
        return reply

    async def aclose(self) -> None:
        pass


class Wire:
    """A process's way to the engine. A sent request travels on even if the process dies."""

    def __init__(self, process: "Process") -> None:
        self._process, self._world = process, process.world

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        await self._process.wait_alive()
        request, connection = Request(method, url, headers, body), Connection()
        kind = self._world.kind(request)
        on_its_way = self._world.spawn(self._world.deliver(self._process, kind, request, connection))
        if kind == "redeem":
            await self._process.reach("sent")
        broken = self._world.spawn(_set(connection.gone))
        await asyncio.wait({on_its_way, broken}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        failure = Unknown("reset" if broken.done() else "timeout")
        reply = on_its_way.result() if on_its_way.done() else None
        connection.close()
        await self._process.reach({"redeem": "received", "look-up": "looked_up", "undo": "rolled_back"}.get(kind, ""))
        if reply is None:
            raise failure
        return reply

    async def aclose(self) -> None:
        pass


# -- The ledger's door ---------------------------------------------------------------------------------------------


class Door:
    """A process's way to the ledger; records every write."""

    def __init__(self, process: "Process") -> None:
        self._process, self._world, self._store = process, process.world, process.world.lab.ledger.store

    async def _through(self, work: Callable[[], Awaitable[T]]) -> T:
        await self._process.wait_alive()
        async with self._world.lab.turn:
            with running_loop().real():
                result = await work()
        await self._process.wait_alive()
        return result

    async def change(self, key: Key, step: Step[T]) -> T:
        return await self.claim(key, lambda _: (), lambda row, _, at: step(row, at))

    async def claim(self, key: Key, sessions: Callable[[Row | None], Sequence[str]], step: ClaimStep[T]) -> T:
        if self._world.row is None:
            await self._process.reach("before_claim")
        seen: list[tuple[Row | None, Row | None]] = []

        def watched(row: Row | None, others: Sequence[Row], at: Moment) -> tuple[T, Row | None]:
            result, changed = step(row, others, at)
            seen.append((row, changed))
            return result, changed

        async def work() -> T:
            result = await self._store.claim(key, sessions, watched)
            before, after = seen[-1]
            if after is not None and after is not before:
                self._world.wrote(Write(now(), self._process, before, after))
            return result

        count = len(self._world.writes)
        result = await self._through(work)
        for write in self._world.writes[count:]:
            if write.process is self._process:
                await self._process.reach(_point_of(write))
        return result

    async def of_session(self, key: Key, session: str) -> list[Row]:
        return await self._through(lambda: self._store.of_session(key, session))

    async def remove(self, row: Row) -> bool:
        return await self._through(lambda: self._store.remove(row))

    async def unconfirmed(self, limit: int) -> list[Row]:
        return await self._through(lambda: self._store.unconfirmed(limit))

    async def with_body(self, before: float, limit: int) -> list[Row]:
        return []

    async def moment(self) -> Moment:
        return await self._through(self._store.moment)

    async def show(self, key: Key) -> Row | None:
        return await self._through(lambda: self._store.show(key))

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        return await self._through(lambda: self._store.find(state, order, limit))

    async def due(self, engine: str, limit: int) -> list[Row]:
        return await self._through(lambda: self._store.due(engine, limit))

    async def lead(self, engine: str, owner: str, ttl_s: float) -> bool:
        return await self._through(lambda: self._store.lead(engine, owner, ttl_s))

    async def backlog(self) -> Backlog:
        return await self._through(self._store.backlog)

    async def finished(self) -> dict[State, int]:
        return await self._through(self._store.finished)

    async def prune(self, before: float, limit: int) -> int:
        return 0

    async def ping(self) -> None:
        await self._through(self._store.ping)

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Write:
    at: float
    process: "Process"
    before: Row | None
    after: Row


def _is_at_rest(row: Row) -> bool:
    return row.next_check_at is None and (row.state in FINISHED or row.state is State.RETRYABLE)


def _point_of(write: Write) -> str:
    before, after = write.before, write.after
    if before is None:
        return "claimed"
    if after.state in (State.CANCELLING, State.CANCELLED):
        return after.state.lower()
    if after.state is State.INTENT and after.sent_at != before.sent_at and after.sent_at is not None:
        return "marked" if before.sent_at is None else "marked_again"
    if after.owner != before.owner:
        return "taken_over"
    if after.state in FINISHED and before.state is State.UNKNOWN:
        return "finished"
    if before.state is State.INTENT and before.sent_at is not None:
        return "recorded"
    return ""


# -- Processes -----------------------------------------------------------------------------------------------------


class Gone(Exception):
    """Raised in a dead process when the case is cleaned up."""


class Process:
    """One replica, from its start to its death."""

    def __init__(self, world: "World", place: int) -> None:
        self.world, self.place = world, place
        self.died = asyncio.Event()
        self.runs = asyncio.Event()
        self.runs.set()
        lab = world.lab
        ledger = Ledger(Door(self), f"replica {place}, {now()}", lab.quarantine_s, LEASE_S, now)
        adapter = lab.settings.adapter
        connected = Engine(Wire(self), adapter.accounts, clock=now, wall_clock=now, random=lambda: 0.5)
        engine = PromotionEngine(adapter, connected)
        self.redeemer = OrderRedeemer(world.settings, engine, ledger, now, self.sleep)
        self.service = Service(world.settings, engine, self.redeemer, now, now)
        self.reconciling = world.spawn(self.redeemer.reconcile())

    async def wait_alive(self) -> None:
        """Waits for ever in a dead process, and until it wakes in a paused one."""
        if self.world.over:
            raise Gone
        if self.died.is_set():
            await asyncio.Event().wait()
        await self.runs.wait()

    async def reach(self, point: str) -> None:
        self.strike(point)
        await self.wait_alive()

    def strike(self, point: str) -> None:
        """Dies or pauses here if the plan says so."""
        if self.world.plan and self.world.plan[0] == point and not self.died.is_set():
            self.world.plan.popleft()
            self.world.struck(self)

    async def sleep(self, seconds: float) -> None:
        """The reconciler sleeps on until a row is due, so that a minute does not take 120 rounds."""
        await asyncio.sleep(seconds)
        if asyncio.current_task() is self.reconciling:
            await self.world.until_due()


@dataclass
class Reply:
    at: float
    status: int
    body: bytes
    category: str
    """"" beside an order."""


class World:
    """One case from its start to its end."""

    def __init__(self, lab: Lab, case: Case, body: bytes) -> None:
        self.lab, self.case, self.body = lab, case, body
        self.after = FOLLOW_UPS[case.follow_up]
        self.settings = lab.settings
        """The settings of processes that start now."""
        self.plan = deque(POINTS.get(case.point, (case.point,)))
        self.over = False
        self.writes: list[Write] = []
        self.changed = asyncio.Event()
        self.replies: list[Reply] = []
        self.broken: list[str] = []
        """Invariants found broken during the case."""
        self.fault_at = now()
        """When something last went wrong."""
        self.faults_left = 1
        self.lookups_left = case.played.lookups_fail
        self.rollbacks_left = case.played.rollbacks_fail
        self.sold_out = False
        self.sent_by: list[Process] = []
        """The senders of the redeeming requests that arrived."""
        self.sent_elsewhere = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.replicas = [Process(self, place) for place in range(self.after.replicas)]

    @property
    def row(self) -> Row | None:
        return self.writes[-1].after if self.writes else None

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        return task

    def wrote(self, write: Write) -> None:
        self.writes.append(write)
        self.changed.set()

    async def until_due(self) -> None:
        while True:
            row = self.row
            at = row.next_check_at if row is not None else None
            # Timers fire up to a nanosecond early.
            if at is not None and at <= now() + 1e-6:
                return
            self.changed.clear()
            waiting = asyncio.ensure_future(self.changed.wait())
            try:
                await asyncio.wait({waiting}, timeout=None if at is None else at - now())
            finally:
                waiting.cancel()

    # Crashes

    def struck(self, process: Process) -> None:
        """The process dies or pauses."""
        self.fault_at = now()
        if self.case.pause:
            process.runs.clear()
            self.spawn(self._wake(process))
            return
        process.died.set()
        self.spawn(self._restart(process))

    async def _restart(self, process: Process) -> None:
        if self.case.changed == "currency":
            self.settings = replace(self.settings, default_currency="JPY")
        elif self.case.changed == "identity" and self.row is not None:
            await self._rewrite_identity(self.row)
        await asyncio.sleep(self.after.restart_s)
        self.replicas[process.place] = Process(self, process.place)

    async def _rewrite_identity(self, row: Row) -> None:
        """Gives the row an identity of rules that this version does not know."""

        def step(found: Row | None, at: Moment) -> tuple[Row, Row]:
            assert found is not None
            foreign = replace(found, identity=b"by other rules", identity_version=99, version=found.version + 1)
            return foreign, foreign

        async with self.lab.turn:
            with running_loop().real():
                await self.lab.ledger.store.change(row.key, step)

    async def _wake(self, process: Process) -> None:
        """After a while; or at the worst moment, when another process has just sent the order."""
        await asyncio.wait({self.spawn(_set(self.sent_elsewhere))}, timeout=PAUSE_S)
        process.runs.set()
        self.fault_at = now()

    # The engine's end of the wire

    def kind(self, request: Request) -> str:
        emulator = self.lab.box.emulators[self.lab.engine]
        path = request.path.removeprefix(f"/{self.lab.engine}")
        return _KINDS.get(emulator.operation(request.method, path, request.query, request.body), "other")

    async def deliver(
        self, process: Process, kind: str, request: Request, connection: Connection
    ) -> EngineReply | None:
        await asyncio.sleep(TRAVEL_S)
        fault, again_after_s = "", None
        if kind == "redeem":
            again_after_s = self.case.played.doubled_after_s if self.faults_left > 0 else None
            fault = await self._redeem(process)
        elif kind == "look-up" and self.lookups_left and self.sent_by:
            self.lookups_left -= 1
            fault = "status=503"
        elif kind == "undo" and self.rollbacks_left:
            self.rollbacks_left -= 1
            fault = self.case.played.rollback_fault
        reply = await at_engine(self.lab, request, connection, fault)
        if again_after_s is not None:
            await asyncio.sleep(again_after_s)
            await at_engine(self.lab, request, Connection())
        if fault:
            self.fault_at = now()
        await asyncio.sleep(TRAVEL_S)
        return reply

    async def _redeem(self, process: Process) -> str:
        """A redeeming request has arrived; returns the fault that it meets."""
        row = self.row
        if row is None or row.state is not State.INTENT or row.sent_at is None or row.sent_at > now():
            self.broken.append("I4")
        if self.sent_by and process is not self.sent_by[0]:
            self.sent_elsewhere.set()
        self.sent_by.append(process)
        played = self.case.played
        fault = played.fault if self.faults_left else ""
        self.faults_left = 0
        acts = played.acts or not fault
        if acts and SINGLE in played.codes and not self.sold_out:
            self.sold_out = True
            await self._outsider("rival", SINGLE)
        if fault == "busy":
            if self.lab.engine == "talon_one":
                return "status=409"
            # Voucherify is busy while another request for the same order runs; that one is refused in the end.
            self.spawn(self._outsider(ORDER, "EXPIRED-10", "latency=100"))
            await asyncio.sleep(TRAVEL_S)
            return ""
        return fault

    async def _outsider(self, session: str, code: str, fault: str = "") -> None:
        """Another client redeems a code."""

        async def allowed() -> bool:
            return True

        body = {"id": session, "order_items": [{"sku": "SKU-1", "quantity": 1, "price": "140.00"}],
                "promotions": {"coupon_codes": [code]}}  # fmt: skip
        order = documents.parse(msgspec.json.encode(body), "consume", "")
        adapter = self.lab.settings.adapter
        engine = PromotionEngine(adapter, Engine(Outsider(self.lab, fault), adapter.accounts, clock=now))
        await engine.redeem(order, session, now() + DEADLINE_S, allowed)

    # The client

    async def run(self) -> None:
        """Runs the case until the order is at rest and each replica was asked once more."""
        await asyncio.sleep(0.1)
        answered = await self.ask(0)
        for _ in range(2):
            if not answered:
                await asyncio.sleep(1)
                answered = any(await asyncio.gather(*(self.ask(place) for place in self.after.asked)))
        for _ in range(MOST_RETURNS):
            await self._wait_until_at_rest()
            is_finished = self.row is not None and self.row.state in FINISHED
            await asyncio.sleep(SETTLE_S)
            for place, process in enumerate(self.replicas):
                if not process.died.is_set():
                    await self.ask(place)
            if is_finished:
                return

    async def _wait_until_at_rest(self) -> None:
        """Waits until the order changes no more without a caller."""
        started = now()
        while self.row is None or not _is_at_rest(self.row):
            if now() >= (give_up := max(started, self.fault_at) + ENDS_WITHIN_S):
                return
            self.changed.clear()
            await asyncio.wait({self.spawn(_set(self.changed))}, timeout=min(5.0, give_up - now() + 0.001))

    async def ask(self, place: int) -> bool:
        """Sends the order to a replica; returns whether the answer is final. A broken connection brings none."""
        process = self.replicas[place]
        if process.died.is_set():
            return False
        answering, dying = self.spawn(self.answer(process, self.body)), self.spawn(_set(process.died))
        await asyncio.wait({answering, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return False
        reply = answering.result()
        self.replies.append(reply)
        process.strike("replied")
        return not process.died.is_set() and reply.category in ("", "promotion_codes")

    async def cancel(self, place: int) -> Reply | None:
        """Cancels the order through a replica; None if the replica dies."""
        process = self.replicas[place]
        body = msgspec.json.encode({"cancel": {"id": ORDER}})
        cancelling, dying = self.spawn(self.answer(process, body, "cancel")), self.spawn(_set(process.died))
        await asyncio.wait({cancelling, dying}, return_when=asyncio.FIRST_COMPLETED)
        return cancelling.result() if cancelling.done() else None

    async def answer(self, process: Process, body: bytes, operation: Literal["consume", "cancel"] = "consume") -> Reply:
        data, headers = signed_with(SECRET if operation == "consume" else CANCEL_SECRET, body)
        call = Call(data, headers, now() + DEADLINE_S)
        told = promotions.consume if operation == "consume" else promotions.cancel
        try:
            answer = await told(process.service, call)
            status, reply = answer.status, answer.reply
        except Problem as problem:
            status, reply = problem.status(operation), errors.body(problem, operation)
        error = msgspec.json.decode(reply).get("error", {"category": ""})
        return Reply(now(), status, reply, error["category"])

    async def clean_up(self) -> None:
        async with self.lab.turn:
            self.over = True
            rest = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def play_cancel(lab: Lab, point: str) -> tuple[list[str], bool]:
    """Redeems an order; a cancel dies at `point`. Returns another replica's answers and whether it stands."""
    await lab.empty()
    case = Case("nowhere", "ok", "other replica")
    world = World(lab, case, await lab.order(case.played.codes))
    try:
        await asyncio.sleep(0.1)
        told = [str((await world.answer(world.replicas[0], world.body)).status)]
        world.plan = deque([point])
        await world.cancel(0)
        died = not world.plan
        reply = await world.cancel(1)
        for _ in range(20):
            if reply is not None and reply.status == 200:
                break
            await asyncio.sleep(10)
            reply = await world.cancel(1)
        told += [str(reply.status) if reply else "none", (await world.answer(world.replicas[1], world.body)).category]
        net, _ = _counts(lab.redeemed())
        stands = any(net.values()) or lab.is_closed()
        return told + ([] if died else [NOT_REACHED]), stands
    finally:
        await world.clean_up()


async def play_denied(lab: Lab, case: Case) -> tuple[list[str], int, list[str]]:
    """For ten minutes a surplus cannot be rolled back, and then it can.

    Returns the answers meanwhile, how often the order was sent in all, and the invariants broken at the end.
    """
    await lab.empty()
    world = World(lab, case, await lab.order(case.played.codes))
    try:
        await asyncio.sleep(0.1)
        for _ in range(10):
            await world.ask(0)
            await asyncio.sleep(60)
        told = [reply.category for reply in world.replies]
        world.rollbacks_left = 0
        await world.run()
        return told, len(world.sent_by), await violations(world)
    finally:
        await world.clean_up()


# -- What must hold ------------------------------------------------------------------------------------------------


NOT_REACHED = "not reached"
"""Reported beside the invariants: the case never reached its last crash point."""


async def play(lab: Lab, case: Case) -> list[str]:
    """Plays a case; returns the invariants that it has broken."""
    await lab.empty()
    world = World(lab, case, await lab.order(case.played.codes))
    try:
        await world.run()
        return await violations(world) + ([NOT_REACHED] if world.plan else [])
    finally:
        await world.clean_up()


async def violations(world: World) -> list[str]:
    """The invariants of docs/exactly_once.md that the case has broken, by their names."""
    row, case = world.row, world.case
    net, most = _counts(world.lab.redeemed())
    redeemed = any(net.values()) or world.lab.is_closed()
    granted = [reply for reply in world.replies if reply.status == 200]
    final = [reply.body for reply in world.replies if reply.category in ("", "promotion_codes")]
    refused = SINGLE in case.played.codes
    finished = [write.after for write in world.writes if write.after.state in REDEEMED]
    broken = {
        "I1": max(net.values(), default=0) > 1,
        "I1 for a moment": most > 1,
        "I2": bool(granted) and net != dict.fromkeys(case.played.codes, 1),
        "I3": len(set(final)) > 1,
        "I4": "I4" in world.broken,
        "I5": not await _others_are_refused(world),
        "I6": row is None or row.state not in FINISHED,
        "I7": any(_told(one) != _told(finished[0]) for one in finished),
        "I8": not await _stale_writes_are_refused(world),
        "I9": row is not None and row.state is State.REJECTED and redeemed,
        "end": row is None or (row.state is State.REJECTED) is not refused,
    }
    return [name for name, is_broken in broken.items() if is_broken]


def _counts(redeemed: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    """How often each code is redeemed at the end, and the highest count of any code at any time."""
    net: Counter[str] = Counter()
    most = 0
    for code, change in redeemed:
        net[code] += change
        most = max(most, net[code])
    return dict(net), most


def _told(row: Row) -> tuple[Any, ...]:
    """The fields that must never change once an order is finished."""
    return row.identity, row.notices, row.session


async def _others_are_refused(world: World) -> bool:
    """The same order with other content gets 400; a refused one is checked again. Nothing is redeemed."""
    calls = len(world.sent_by)
    other = world.body.replace(b'"quantity":1', b'"quantity":2')
    assert other != world.body
    alive = [process for process in world.replicas if not process.died.is_set()]
    replies = [await world.answer(process, other) for process in alive[:1]]
    right = "promotion_codes" if SINGLE in world.case.played.codes else "order_mismatch"
    return all(reply.category == right for reply in replies) and len(world.sent_by) == calls


async def _stale_writes_are_refused(world: World) -> bool:
    """Tries to write under the fence of a process that lost the order."""
    row = world.row
    stale = [write.after for write in world.writes if row is not None and write.after.fence < row.fence]
    alive = [process for process in world.replicas if not process.died.is_set()]
    if row is None or not stale or not alive:
        return True
    ledger = alive[0].redeemer.ledger
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: ledger.mark_sent(stale[-1]),
        lambda: ledger.redeemed(stale[-1], b"stale", "", "redeemed", confirmed=True),
    ]
    for attempt in attempts:
        try:
            await attempt()
        except Fenced:
            continue
        except Exception:  # noqa: BLE001 - anything else means that the fence has let it pass
            return False
        return False
    return await ledger.show(row.key) == row
