"""One adapter, one emulator, and the service's own engine between them: as strict as the service, and stricter.

Every conversation is held over the emulator's ASGI application, without a socket. What is on the way is the wire's
business: it takes down each exchange, and does to it what a `Fault` says.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import unquote

import msgspec

from mapper import installed
from mapper.adapter import (
    ADAPTERS,
    SANDBOXES,
    Adapter,
    Checkout,
    Conversation,
    EngineRejected,
    EngineReply,
    EngineRequest,
    EngineUnavailable,
    InvalidRequest,
    LookedUp,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Redeemed,
    known,
)
from mapper.conformance.faults import Fault
from mapper.conformance.service import Shop
from mapper.domain.errors import AdapterFault, Problem
from mapper.engine import results
from mapper.engine.conversation import BrokenContract, Engine, Redemption, request_limit
from mapper.engine.promotion_engine import Declined, Done, InDoubt, NotDone, PromotionEngine, Verdict
from mapper.engine.transport import Unknown
from mapper.sandbox import rulebook

T = TypeVar("T")

# ASGI.
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DEADLINE_S = 60.0
PROBLEMS = (EngineRejected, EngineUnavailable, OrderMismatch, InvalidRequest)
"""All that a conversation may raise."""
_CARTLESS = 1000
"""What a conversation without a cart may need: as much as the largest."""

READERS: dict[str, Callable[[Any, Any], tuple[Any, list[str]]]] = {
    "validate": results.outcome,
    "check": results.outcome,
    "redeem": results.redemption,
    "look_up": results.looked_up,
    "undo": results.nothing,
    "repair": results.nothing,
}
"""What judges the result of each method."""


class Application(Protocol):
    """An emulator of the engine: an ASGI application. `mapper.sandbox.emulator` has more that one may have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def books(self) -> dict[str, Any]:
        """What it holds, as JSON values."""
        ...


class Unfit(AssertionError):
    """What the adapter does is not what the contract says. The message is a sentence for its author."""


@dataclass(frozen=True)
class Exchange:
    """One request as it went out, with what came back; `reply` is None where nothing did."""

    request: EngineRequest
    reply: EngineReply | None


@dataclass
class Wire:
    """The way to the emulator. What each request says of itself, the conversation has told it (`expected`)."""

    emulator: Application
    base_urls: Sequence[str]
    fault: Callable[[EngineRequest, int], Fault | None] | None = None
    """What happens to a request, the first of which is number 0."""
    doubled: Callable[[EngineRequest], bool] = lambda _: False
    """Which requests arrive twice; the second answer comes back."""
    exchanges: list[Exchange] = field(default_factory=list)
    expected: list[EngineRequest] = field(default_factory=list)
    late: list[EngineRequest] = field(default_factory=list)
    """What is still on its way to the emulator."""
    on_delivered: Callable[[EngineRequest, Any, Any], None] | None = None
    """Is told the books before and after each request."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        request = self._request(method, self._path(url), body)
        fault = self.fault(request, len(self.exchanges)) if self.fault is not None else None
        place = len(self.exchanges)
        self.exchanges.append(Exchange(request, None))
        sent = msgspec.structs.replace(request, headers=tuple(headers))
        reply = None
        if fault is None or fault.delivered == "now":
            reply = await self.deliver(sent)
            if self.doubled(request):
                reply = await self.deliver(sent)
        elif fault.delivered == "late":
            self.late.append(sent)
        if fault is not None:
            reply = fault.answer(reply)
        if reply is None:  # pragma: no cover - every fault without a delivery answers or raises
            raise AssertionError("nothing came back")
        if len(reply.body) > max_bytes:
            raise Unknown("too_large")
        self.exchanges[place] = Exchange(request, reply)
        return reply

    async def deliver(self, request: EngineRequest) -> EngineReply:
        """Brings a request to the emulator."""
        watching = self.on_delivered
        before = self.books() if watching is not None else None
        reply = await _call(self.emulator, request)
        if watching is not None:
            watching(request, before, self.books())
        return reply

    async def deliver_late(self) -> None:
        """What was on its way arrives."""
        while self.late:
            await self.deliver(self.late.pop(0))

    async def aclose(self) -> None:
        """Nothing is open."""

    def operation(self, place: int) -> str:
        """What the request at this place is, for whoever reads of a fault in it."""
        return f"request {place} ({self.exchanges[place].request.operation})"

    def books(self) -> Any:
        """A copy of what the emulator holds."""
        return msgspec.json.decode(msgspec.json.encode(self.emulator.books(), enc_hook=str))

    def _path(self, url: str) -> str:
        for base in self.base_urls:
            if url.startswith(base):
                return url.removeprefix(base)
        raise AssertionError(f"a request went to {url}")

    def _request(self, method: str, path: str, body: bytes) -> EngineRequest:
        for request in self.expected:
            if (request.method, request.path, request.body) == (method, path, body):
                return request
        raise AssertionError(f"a request that no conversation made: {method} {path}")


async def _call(application: Application, request: EngineRequest) -> EngineReply:
    path, _, query = request.path.partition("?")
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    pending: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
    status, headers, body = 0, dict[str, str](), bytearray()

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode().lower(): value.decode() for name, value in message.get("headers", ())}
        else:
            body.extend(message.get("body", b""))

    await application(scope, receive, send)
    return EngineReply(status=status, headers=headers, body=bytes(body))


class Observed:
    """The adapter, whose conversations tell the wire what they are about to ask."""

    def __init__(self, adapter: Adapter, wire: Wire) -> None:
        self._adapter, self._wire = adapter, wire
        self.name, self.accounts, self.capabilities = adapter.name, adapter.accounts, adapter.capabilities

    def __getattr__(self, method: str) -> Callable[..., object]:
        found = getattr(self._adapter, method)
        if not callable(found):
            return cast("Callable[..., object]", found)

        def start(*given: Any, **named: Any) -> object:
            conversation = found(*given, **named)
            return self._told(conversation) if isinstance(conversation, Generator) else conversation

        return start

    def _told(self, conversation: Conversation[T]) -> Conversation[T]:
        try:
            asked = next(conversation)
            while True:
                requests = asked if isinstance(asked, tuple) else (asked,)
                self._wire.expected += [one for one in requests if isinstance(one, EngineRequest)]
                asked = conversation.send((yield asked))
        except StopIteration as stop:
            return cast("T", stop.value)
        finally:
            conversation.close()


def no_stock(emulator: Application, checkout: Checkout) -> None:
    """An engine that is told prices has no catalogue to fill."""


class Lab:
    """One case: an emulator with empty books, and an adapter. `close` it."""

    def __init__(
        self, adapter: Adapter, emulator: Application, stock: Callable[[Application, Checkout], None] = no_stock
    ) -> None:
        """`stock` puts the products of a cart into the emulator's catalogue, where it has one."""
        self.adapter, self.emulator, self.stock = adapter, emulator, stock
        self.wire = Wire(emulator, [account.base_url.rstrip("/") for account in adapter.accounts.values()])
        self._observed = cast("Adapter", Observed(adapter, self.wire))
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()

    # -- Conversations as the contract has them; what does not fit it is `Unfit` -------------------------------------

    def validate(self, checkout: Checkout, session: str) -> Outcome:
        return cast("Outcome", self.hold("validate", checkout, session))

    def check(self, order: Checkout, session: str) -> Outcome:
        return cast("Outcome", self.hold("check", order, session))

    def redeem(self, order: Checkout, session: str, attempt: str = "order/1") -> Redeemed | NotRedeemed:
        return cast("Redeemed | NotRedeemed", self.hold("redeem", replace(order, attempt=attempt), session))

    def look_up(self, order: Checkout, session: str, handle: str = "") -> LookedUp:
        return cast("LookedUp", self.hold("look_up", order, session, handle))

    def undo(self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False) -> None:
        self.hold("undo", order, session, handle, final=final)

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> None:
        self.hold("repair", order, session, extra)

    def hold(self, method: str, order: Checkout | None, *given: Any, **named: Any) -> object:
        """What the conversation returns. Raises what it may raise (`PROBLEMS`), and else `Unfit`."""
        return self._runner.run(self._hold(method, order, *given, **named))

    async def _hold(self, method: str, order: Checkout | None, *given: Any, **named: Any) -> object:
        course = Redemption(_always) if method == "redeem" else None
        lines = _CARTLESS if order is None else len(order.cart)
        self.wire.expected.clear()
        if order is not None:
            self.stock(self.emulator, order)
        try:
            conversation = getattr(self._observed, method)(order, *given, **named)
            if not isinstance(conversation, Generator):
                raise Unfit(f"{method} starts no conversation: it returns {type(conversation).__name__}")  # noqa: TRY301
            value = await self._engine().converse(conversation, _now() + DEADLINE_S, course, limit=request_limit(lines))
            sound, faults = READERS[method](value, order)
        except (*PROBLEMS, Unfit):
            raise
        except (BrokenContract, results.BadResult) as error:
            raise Unfit(f"{method}: {error}") from error
        except Exception as error:
            raise Unfit(f"{method} raises {type(error).__name__}: {error}") from error
        if faults:
            raise Unfit(f"{method} returns what the contract does not know: {'; '.join(faults)}")
        return sound

    def verdict(self, order: Checkout, session: str, attempt: str = "order/1") -> Verdict:
        """What the service makes of a redemption."""
        return self._runner.run(self._verdict(order, session, attempt))

    def verdicts(self, order: Checkout, session: str, count: int) -> list[Verdict]:
        """The same order redeemed by several processes at once."""

        async def together() -> list[Verdict]:
            return list(await asyncio.gather(*(self._verdict(order, session, "order/1") for _ in range(count))))

        return self._runner.run(together())

    async def _verdict(self, order: Checkout, session: str, attempt: str) -> Verdict:
        self.stock(self.emulator, order)
        engine = PromotionEngine(self._observed, self._engine())
        verdict = await engine.redeem(replace(order, attempt=attempt), session, _now() + DEADLINE_S, _always)
        if isinstance(verdict, NotDone | InDoubt) and isinstance(verdict.problem, AdapterFault):
            raise Unfit("redeem breaks: see the log for the cause") from verdict.problem.__cause__
        return verdict

    def deliver_late(self) -> None:
        self._runner.run(self.wire.deliver_late())

    def shop(self, options: Mapping[str, str], folder: Path) -> Shop:
        """A whole service on this lab's wire; `run` what it does."""
        return Shop(self._observed, self.wire, options, folder)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.wire.expected.clear()
        return self._runner.run(work)

    def _engine(self) -> Engine:
        return Engine(self.wire, self.adapter.accounts, sleep=_do_not_sleep, random=lambda: 0.5)


@cache
def find(name: str, group: str = ADAPTERS) -> EntryPoint:
    """What is installed under this name. Raises `Unfit`."""
    if (point := known(group).get(name)) is None:
        raise Unfit(f"there is no {name!r} among the entry points {group}")
    return point


def make(point: EntryPoint, options: Mapping[str, str]) -> Adapter:
    """The adapter as the service makes it. Raises `Unfit`."""
    try:
        adapter, problems = installed.build(point, installed.load(point), options)
    except installed.BrokenAdapter as error:
        raise Unfit(str(error)) from error
    if adapter is None:
        raise Unfit(f"the options are wrong: {'; '.join(f'{name}: {expected}' for name, expected in problems)}")
    return adapter


def installed_emulator(name: str) -> Application:
    """The emulator that is installed under this name, on the default rule book. Raises `Unfit`."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return cast("Application", find(name, SANDBOXES).load()(_default_book(), lambda: at))


@cache
def _default_book() -> rulebook.RuleBook:
    return rulebook.load()


def outcome_of(value: object) -> Outcome:
    """What a result grants and refuses."""
    match value:
        case Outcome():
            return value
        case Redeemed() | LookedUp():
            return value.outcome
        case NotRedeemed():
            return Outcome(rejected=value.rejected, notices=value.notices)
        case Done():
            return value.redeemed.outcome
        case Declined():
            return outcome_of(value.declined)
        case _:
            raise AssertionError(value)


async def _always() -> bool:
    return True


async def _do_not_sleep(seconds: float) -> None:
    """Time is nobody's concern here."""


def _now() -> float:
    return time.monotonic()


def problem_text(problem: Problem) -> str:
    """Everything that a problem says."""
    return f"{problem.message} {problem.reason} {msgspec.json.encode(problem.details).decode()}"
