"""Connects an adapter with an emulator by the service's own engine. It is at least as strict as the service.

Requests reach the emulator's ASGI application without a socket. The wire records each exchange, and applies faults.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Coroutine, Generator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from mapper.engine.promotion_engine import InDoubt, NotDone, PromotionEngine, Verdict
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
"""What a conversation may raise."""
_ASKED_AT_MOST = 5
_CARTLESS = 1000
"""A conversation without a cart may make as many requests as one about the largest."""


class Application(Protocol):
    """An emulator of the engine: an ASGI application. `mapper.sandbox.emulator` has its further, optional methods."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def books(self) -> dict[str, Any]:
        """Returns its state as JSON values."""
        ...


class ContractViolation(AssertionError):
    """The adapter violates the contract. The message is a sentence for its author."""


@dataclass(frozen=True)
class Exchange:
    """One request as it was sent, with its reply; None where nothing came back."""

    request: EngineRequest
    reply: EngineReply | None


@dataclass
class Wire:
    """The network between the engine and the emulator. `expected` has the declarations of the requests."""

    emulator: Application
    base_urls: Sequence[str]
    fault: Callable[[EngineRequest, int], Fault | None] | None = None
    """The fault of a request, given the request and its position, from 0."""
    duplicated: Callable[[EngineRequest], bool] = lambda _: False
    """Which requests arrive twice; the second reply comes back."""
    removed_headers: Container[str] = ()
    """Headers that do not arrive, by their names in lower case."""
    exchanges: list[Exchange] = field(default_factory=list)
    expected: list[EngineRequest] = field(default_factory=list)
    """Requests that the conversation is about to make."""
    late: list[EngineRequest] = field(default_factory=list)
    """Requests that have not arrived yet."""
    meanwhile: Callable[[int], Awaitable[None]] | None = None
    """Awaited with the position of each request, from 0, before it is sent."""
    on_delivered: Callable[[EngineRequest, Any, Any], None] | None = None
    """Called with each request that arrives, and the books before and after it."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        request = self._request(method, self._path(url), body)
        if self.meanwhile is not None:
            await self.meanwhile(len(self.exchanges))
        fault = self.fault(request, len(self.exchanges)) if self.fault is not None else None
        place = len(self.exchanges)
        self.exchanges.append(Exchange(request, None))
        arriving = tuple(header for header in headers if header[0].lower() not in self.removed_headers)
        sent = msgspec.structs.replace(request, headers=arriving)
        reply = None
        if fault is None or fault.delivered == "now":
            reply = await self.deliver(sent)
            if self.duplicated(request):
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
        """Delivers a request to the emulator."""
        on_delivered = self.on_delivered
        before = self.books() if on_delivered is not None else None
        reply = await call(self.emulator, request)
        if on_delivered is not None:
            on_delivered(request, before, self.books())
        return reply

    async def deliver_late(self) -> None:
        """Delivers the requests that are late."""
        while self.late:
            await self.deliver(self.late.pop(0))

    async def aclose(self) -> None:
        """Nothing is open."""

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


async def call(application: Application, request: EngineRequest) -> EngineReply:
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
    """The adapter; its conversations announce each request to the wire."""

    def __init__(self, adapter: Adapter, wire: Wire) -> None:
        self._adapter, self._wire = adapter, wire
        self.name, self.accounts, self.capabilities = adapter.name, adapter.accounts, adapter.capabilities

    def __getattr__(self, method: str) -> Callable[..., object]:
        found = getattr(self._adapter, method)
        if not callable(found):
            return cast("Callable[..., object]", found)

        def start(*given: Any, **named: Any) -> object:
            conversation = found(*given, **named)
            return self._announcing(conversation) if isinstance(conversation, Generator) else conversation

        return start

    def _announcing(self, conversation: Conversation[T]) -> Conversation[T]:
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
    """An engine that is sent prices has no catalogue to fill."""


class Lab:
    """One emulator with empty books, and one adapter. `close` it in the end."""

    def __init__(
        self, adapter: Adapter, emulator: Application, stock: Callable[[Application, Checkout], None] = no_stock
    ) -> None:
        """`stock` puts the products of a cart into the emulator's catalogue, if it has one."""
        self.adapter, self.emulator, self.stock = adapter, emulator, stock
        self.wire = Wire(emulator, [account.base_url.rstrip("/") for account in adapter.accounts.values()])
        self._observed = cast("Adapter", Observed(adapter, self.wire))
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()

    # The conversations of the contract. They raise `PROBLEMS`, and `ContractViolation` for everything else.

    def validate(self, checkout: Checkout, session: str) -> Outcome:
        return cast("Outcome", self.converse("validate", checkout, session))

    def check(self, order: Checkout, session: str) -> Outcome:
        return cast("Outcome", self.converse("check", order, session))

    def redeem(self, order: Checkout, session: str, attempt: str = "order/1") -> Redeemed | NotRedeemed:
        return cast(
            "Redeemed | NotRedeemed", self.converse("redeem", msgspec.structs.replace(order, attempt=attempt), session)
        )

    def look_up(self, order: Checkout, session: str, handle: str = "") -> LookedUp:
        """Asks again while it is unclear, as the service does: an engine's list may be some seconds behind."""
        found = LookedUp("unclear")
        for _ in range(_ASKED_AT_MOST):
            found = cast("LookedUp", self.converse("look_up", order, session, handle))
            if found.state != "unclear":
                break
        return found

    def undo(self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False) -> None:
        """Tries again what cannot be done yet, as the service does."""
        for left in reversed(range(_ASKED_AT_MOST)):
            try:
                self.converse("undo", order, session, handle, final=final)
            except EngineUnavailable:
                if not left:
                    raise
            else:
                return

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> None:
        self.converse("repair", order, session, extra)

    def converse(self, method: str, order: Checkout | None, *given: Any, **named: Any) -> object:
        """Returns the conversation's result. Raises `PROBLEMS`, and `ContractViolation` for anything else."""
        return self._runner.run(self._converse(method, order, *given, **named))

    async def _converse(self, method: str, order: Checkout | None, *given: Any, **named: Any) -> object:
        redemption = Redemption(_always) if method == "redeem" else None
        lines = _CARTLESS if order is None else len(order.cart)
        self.wire.expected.clear()
        if order is not None:
            self.stock(self.emulator, order)
        try:
            conversation = getattr(self._observed, method)(order, *given, **named)
            if not isinstance(conversation, Generator):
                raise ContractViolation(f"{method} starts no conversation, but returns {type(conversation).__name__}")  # noqa: TRY301
            value = await self._engine().converse(
                conversation, _now() + DEADLINE_S, redemption, limit=request_limit(lines)
            )
            sound, faults = results.READERS[method](value, order)
        except (*PROBLEMS, ContractViolation):
            raise
        except (BrokenContract, results.BadResult) as error:
            raise ContractViolation(f"{method}: {error}") from error
        except Exception as error:
            raise ContractViolation(f"{method} raises {type(error).__name__}: {error}") from error
        if faults:
            raise ContractViolation(f"{method} returns something that does not fit the contract: {'; '.join(faults)}")
        return sound

    def verdict(self, order: Checkout, session: str, attempt: str = "order/1") -> Verdict:
        """Redeems, and returns the service's verdict."""
        return self._runner.run(self._verdict(order, session, attempt))

    def verdicts(self, order: Checkout, session: str, count: int) -> list[Verdict]:
        """Redeems the same order in several processes at once."""

        async def together() -> list[Verdict]:
            return list(await asyncio.gather(*(self._verdict(order, session, "order/1") for _ in range(count))))

        return self._runner.run(together())

    async def _verdict(self, order: Checkout, session: str, attempt: str) -> Verdict:
        self.stock(self.emulator, order)
        engine = PromotionEngine(self._observed, self._engine())
        verdict = await engine.redeem(
            msgspec.structs.replace(order, attempt=attempt), session, _now() + DEADLINE_S, _always
        )
        if isinstance(verdict, NotDone | InDoubt) and isinstance(verdict.problem, AdapterFault):
            raise ContractViolation("redeem breaks: see the log for the cause") from verdict.problem.__cause__
        return verdict

    def validate_meanwhile(self, checkout: Checkout, session: str, place: int) -> None:
        """Has another process validate this cart right before the request at `place` is sent; once."""
        self.wire.exchanges.clear()
        other = Lab(self.adapter, self.emulator, self.stock)
        other.close()  # it runs in this lab's loop

        async def validate(at: int) -> None:
            if at == place:
                self.wire.meanwhile = None
                with suppress(*PROBLEMS):
                    await other._converse("validate", checkout, session)

        self.wire.meanwhile = validate

    def deliver_late(self) -> None:
        self._runner.run(self.wire.deliver_late())

    def shop(self, options: Mapping[str, str], folder: Path) -> Shop:
        """Returns a whole service on this lab's wire; `run` its coroutines."""
        return Shop(self._observed, self.wire, options, folder)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.wire.expected.clear()
        return self._runner.run(work)

    def _engine(self) -> Engine:
        return Engine(self.wire, self.adapter.accounts, sleep=_do_not_sleep, random=lambda: 0.5)


@cache
def find(name: str, group: str = ADAPTERS) -> EntryPoint:
    """The installed entry point of this name. Raises `ContractViolation`."""
    if (point := known(group).get(name)) is None:
        raise ContractViolation(f"there is no {name!r} among the entry points {group}")
    return point


def build(point: EntryPoint, options: Mapping[str, str]) -> Adapter:
    """Builds the adapter as the service does. Raises `ContractViolation`."""
    try:
        adapter, problems = installed.build(point, installed.load(point), options)
    except installed.BrokenAdapter as error:
        raise ContractViolation(str(error)) from error
    if adapter is None:
        raise ContractViolation(
            f"the options are wrong: {'; '.join(f'{name}: {expected}' for name, expected in problems)}"
        )
    return adapter


def installed_emulator(name: str) -> Application:
    """The installed emulator of this name, with the default rule book. Raises `ContractViolation`."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return cast("Application", find(name, SANDBOXES).load()(_default_book(), lambda: at))


@cache
def _default_book() -> rulebook.RuleBook:
    return rulebook.load()


async def _always() -> bool:
    return True


async def _do_not_sleep(seconds: float) -> None:
    """Retries follow at once."""


def _now() -> float:
    return time.monotonic()


def problem_text(problem: Problem) -> str:
    """Everything that a problem says."""
    return f"{problem.message} {problem.reason} {msgspec.json.encode(problem.details).decode()}"
