"""The HTTP service: routes, limits on what is read, and the one place where a `Problem` becomes an answer.

Calls of the two endpoints get Nacelle's own status codes. What is no such call (another path or method, another media
type, a body too large) gets the ordinary HTTP codes.
"""

import asyncio
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mapper import __version__, promotions, settings
from mapper.domain import errors
from mapper.domain.errors import Operation, Overloaded, Problem
from mapper.domain.record import Record
from mapper.engine import clients, transport
from mapper.engine.conversation import Call as EngineCall
from mapper.engine.conversation import Engine
from mapper.http import protocol as connection
from mapper.http import server, workers
from mapper.http.limiter import Bodies, Room, Turnstile, Visit
from mapper.ops.telemetry import Telemetry, log
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import Once
from mapper.orders.rows import Answer, LedgerUnavailable
from mapper.promotions import Call, Service
from mapper.settings import Settings

# Calls let in at once, per process, and engine calls in flight. Each call inside may call the engine: to wait with
# parsed JSON in hand for another's slot would be work for nothing. They are many, since while the engine takes its
# time they cost memory alone: where it takes 1.5 s, 256 are enough for 170 a second. Consume has its own, so that a
# rush of validates cannot starve it.
VALIDATE_ROOM = VALIDATE_SLOTS = 256
CONSUME_ROOM, CONSUME_SLOTS = 64, 32

# How long a validate in a burst may have to wait for the processor before others are refused: as long as the engine
# takes, but no less and no more than this.
PATIENCE_S = 0.030, 0.150

# Of all bodies that are being received, together.
RECEIVING_BYTES = 64 * 1024 * 1024

# While a lease lasts nobody else touches an order: longer than anything its holder does without writing to the ledger.
LEASE_S = 30.0

# How long a process that is told to stop waits for orders that are being redeemed.
DRAIN_S = 25.0

# A caller that takes longer than this to send its body is holding a connection, not checking out.
BODY_DEADLINE_S = 5.0

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_MEDIA_TYPE = re.compile(rb"application/(json|[\w.-]+\+json)\s*(;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_JSON_HEADERS = (
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
)

Story = Callable[[Service, Call], Awaitable[Answer]]


def create(configured: Settings, *, engine_transport: transport.Transport | None = None) -> Starlette:
    """The ASGI application. `engine_transport` replaces the HTTP client in tests."""
    telemetry = Telemetry()
    turnstile = Turnstile(PATIENCE_S)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for warning in configured.warnings:
            log.warning("setting", extra={"facts": {"problem": warning}})
        client = engine_transport or clients.create(configured.http_client, connections=VALIDATE_SLOTS + CONSUME_SLOTS)
        accounts = configured.adapter.accounts
        ledger = await open_ledger(
            configured.ledger_url,
            quarantine_s=configured.quarantine_s,
            lease_s=max(LEASE_S, 2 * configured.consume_deadline_s),
        )
        once = Once(
            configured,
            Engine(client, accounts, on_call=telemetry.call, slots=CONSUME_SLOTS),
            ledger,
            time.monotonic,
            on_backlog=telemetry.backlog,
        )

        def on_call(call: EngineCall) -> None:
            telemetry.call(call)
            if call.failure is None:
                turnstile.took(call.seconds)

        validating = Engine(
            client,
            accounts,
            on_call=on_call,
            slots=VALIDATE_SLOTS,
            breaker=True,
            on_breaker=telemetry.breaker,
            turn=partial(turnstile.enter, urgent=True),
        )
        for account in accounts:
            telemetry.breakers.labels(account).set(0)
        app.state.service = validate.service = consume.service = Service(configured, validating, once)
        reconciling = asyncio.create_task(once.reconcile())
        try:
            yield
        finally:
            reconciling.cancel()
            await asyncio.wait({reconciling})
            await once.drain(DRAIN_S)
            await ledger.close()
            await client.aclose()

    bodies = Bodies(max(RECEIVING_BYTES, 4 * configured.max_body_bytes))
    validate_room = Room(VALIDATE_ROOM, bodies, turnstile)
    consume_room = Room(CONSUME_ROOM, bodies, turnstile, urgent=True)
    validate = _Endpoint("validate", promotions.validate, validate_room, configured, telemetry)
    consume = _Endpoint("consume", promotions.consume, consume_room, configured, telemetry)
    app = _Application(
        calls={"/promotions/validate": validate, "/promotions/consume": consume},
        routes=[
            Route("/livez", _alive),
            Route("/readyz", _ready),
            Route("/version", _version),
            Route("/metrics", _metrics(telemetry)),
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def from_environment() -> Starlette:
    """What uvicorn's workers call."""
    return create(settings.load(os.environ))


class _Application(Starlette):
    """Starlette, with a short cut to the two calls: its way through middleware and routes costs more than they do."""

    def __init__(self, calls: Mapping[str, "_Endpoint"], routes: list[Route], **options: Any) -> None:
        super().__init__(
            routes=[*(Route(path, endpoint, methods=["POST"]) for path, endpoint in calls.items()), *routes], **options
        )
        self._calls = calls
        self._by_target = {path.encode(): endpoint for path, endpoint in calls.items()}

    def shed(self, method: bytes, target: bytes) -> connection.PreparedResponse | None:
        """Asked by the connection, before anything else is done: the refusal of a call for which there is no room."""
        endpoint = self._by_target.get(target) if method == b"POST" else None
        return endpoint.shed() if endpoint else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._calls:
            await self._calls[scope["path"]](scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _Reply(NamedTuple):
    """What is answered, and the word for it in log and metric."""

    status: int
    body: bytes
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def fields(self, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        return [*_JSON_HEADERS, (b"content-length", b"%d" % len(self.body)), *self.headers, *headers]

    async def send(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.fields(*headers)})
        await send({"type": "http.response.body", "body": self.body})


class _Endpoint:
    """One of the two calls, from the head of the request to the end of the answer. An ASGI application."""

    service: Service
    """Set before the first request."""

    def __init__(
        self, operation: Operation, story: Story, room: Room, configured: Settings, telemetry: Telemetry
    ) -> None:
        self._operation: Operation = operation
        self._story = story
        self._room = room
        self._configured = configured
        self._telemetry = telemetry
        self._budget = configured.validate_deadline_s if operation == "validate" else configured.consume_deadline_s
        self._full = self._refusal(Overloaded())
        self._full_at_once = connection.prepared(self._full.status, self._full.fields(), self._full.body)
        self._on_full = telemetry.requests.labels(operation, str(self._full.status), self._full.reason).inc

    def shed(self) -> connection.PreparedResponse | None:
        """The refusal, where there is no room. Nothing is held for a call that comes."""
        if self._room.is_full:
            self._on_full()
            return self._full_at_once
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._room.is_full:
            self._on_full()
            await self._full.send(send)
            return
        started = time.monotonic()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        first = dict(reversed(headers))
        record = Record(self._operation, _request_id(first.get(b"x-request-id", b"")))
        with Visit(self._room) as visit:
            try:
                # Before a large body is read, so that to refuse it costs little.
                self._room.check(_check_head(first, self._configured.max_body_bytes))
                body = await _read(scope, receive, self._configured.max_body_bytes, visit)
                deadline = self.service.clock() + self._budget
                await visit.begin()
                call = Call(body, headers, deadline, record)
                answer = await self._story(self.service, call)
                reply = _Reply(answer.status, answer.reply, answer.reason)
            except _NotACall as refusal:
                reply = refusal.reply
            except Problem as problem:
                if problem.__cause__ is not None:
                    log.debug("cause", exc_info=problem)
                reply = self._refusal(problem)
            except Exception:  # noqa: BLE001 - the last resort: whatever it is, Nacelle gets an answer in its own form
                log.exception("internal error", extra={"facts": {"request_id": record.request_id}})
                where = f"its log tells what, under request id {record.request_id}"
                reply = self._refusal(Problem(f"Something went wrong inside the service; {where}.", reason="internal"))
            self._telemetry.request(record, reply.status, reply.reason, time.monotonic() - started)
            await reply.send(send, (b"x-request-id", record.request_id.encode()))

    def _refusal(self, problem: Problem) -> _Reply:
        status = problem.status(self._operation)
        if problem.category == "overloaded" and self._configured.overload_status:
            status = self._configured.overload_status
        after = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
        return _Reply(status, errors.body(problem, self._operation), problem.reason, after)


class _NotACall(Exception):
    """The request is not a call of the contract."""

    def __init__(self, status: int, reason: str, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.reply = _Reply(status, msgspec.json.encode({"error": text}), reason, headers)


_CLOSE = (b"connection", b"close")


def _check_head(first: Mapping[bytes, bytes], limit: int) -> int:
    """The size of the body, as far as it is told. `first`: of each header the first, by name."""
    if not _MEDIA_TYPE.fullmatch(first.get(b"content-type", b"application/json")):
        raise _NotACall(415, "media_type", "The content type must be application/json in UTF-8.")
    if first.get(b"content-encoding", b"identity").lower() != b"identity":
        raise _NotACall(415, "content_encoding", "The body must not be compressed.")
    length = first.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or (size := int(length)) > limit:
        raise _too_large(limit)
    return size


async def _read(scope: Scope, receive: Receive, limit: int, visit: Visit) -> bytes:
    """The body's bytes, as they came. Nothing is decoded, no more than `limit` is held."""
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            return await _receive(receive, limit, visit)
    except TimeoutError:
        raise _NotACall(408, "slow_body", "The body did not arrive in time.", _CLOSE) from None


async def _receive(receive: Receive, limit: int, visit: Visit) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _NotACall(400, "client_gone", "The client has gone.")
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            visit.go_in(len(body) + len(part))
            return bytes(body + part) if body else part
        visit.receive(len(part))
        body += part


def _too_large(limit: int) -> _NotACall:
    return _NotACall(413, "too_large", f"The body is larger than {limit} bytes (MAPPER_MAX_BODY_BYTES).", _CLOSE)


def _request_id(given: bytes) -> str:
    """The caller's own id for the request, where it is harmless; else a new one."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, headers=_HEADERS, media_type="application/json")


async def _alive(request: Request) -> Response:
    return _json(200, b'{"status":"alive"}')


async def _ready(request: Request) -> Response:
    if getattr(request.state, server.DRAINING, False):
        return _json(503, b'{"status":"not ready","reason":"draining"}')
    service: Service = request.app.state.service
    try:
        await service.once.ledger.ping()
    except LedgerUnavailable as problem:
        return _json(503, msgspec.json.encode({"status": "not ready", "reason": problem.reason}))
    return _json(200, b'{"status":"ready"}')


async def _version(request: Request) -> Response:
    service: Service = request.app.state.service
    return _json(200, msgspec.json.encode({"version": __version__, "engine": service.adapter.name}))


def _metrics(telemetry: Telemetry) -> Callable[[Request], Awaitable[Response]]:
    async def metrics(request: Request) -> Response:
        return Response(telemetry.metrics(), headers=_HEADERS, media_type="text/plain; version=0.0.4")

    return metrics


def run(listener: socket.socket, count: int, *, drain_s: float, keep_alive_s: float) -> int:
    """Serves with `count` processes until told to stop; returns the exit code. The caller has checked the settings."""
    limits = connection.Limits(keep_alive_s=keep_alive_s)
    made = server.create("mapper.http.app:from_environment", limits, factory=True, drain_s=drain_s)
    if count > 1:
        return workers.supervise(made, listener, count)
    server.run(made, listener)
    return 0
