"""The HTTP service: routes, limits on what is read, and the one place where a `Problem` becomes an answer.

Calls of the two endpoints get Nacelle's own status codes. What is no such call (another path or method, another media
type, a body too large) gets the ordinary HTTP codes.
"""

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mapper import __version__, errors, promotions, server, settings, transport
from mapper.engine import Engine
from mapper.errors import SUBJECT, Operation, Overloaded, Problem
from mapper.gate import Gate, Room
from mapper.ledger import Answer, LedgerUnavailable, open_ledger
from mapper.once import Once
from mapper.promotions import Call, Service
from mapper.settings import Settings
from mapper.telemetry import Record, Telemetry, log

# Engine calls in flight at once, per process. Consume has its own, so that a rush of validates cannot starve it.
VALIDATE_SLOTS = 64
CONSUME_SLOTS = 32

# Calls let in at once, per process: somewhat more than can call the engine, since the ledger and JSON take time, too.
VALIDATE_ROOM = 96
CONSUME_ROOM = 64

# Of all bodies that are being received, together.
RECEIVING_BYTES = 64 * 1024 * 1024

# While a lease lasts nobody else touches an order: longer than anything its holder does without writing to the ledger.
LEASE_S = 30.0

# How long a process that is told to stop waits for orders that are being redeemed.
DRAIN_S = 25.0

# A caller that takes longer than this to send its body is holding a connection, not checking out.
BODY_DEADLINE_S = 5.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Story = Callable[[Service, Call], Awaitable[Answer]]


def create(configured: Settings, *, engine_transport: transport.Transport | None = None) -> Starlette:
    """The ASGI application. `engine_transport` replaces the HTTP client in tests."""
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for warning in configured.warnings:
            log.warning("setting", extra={"facts": {"problem": warning}})
        client = engine_transport or transport.create(
            configured.http_client, connections=VALIDATE_SLOTS + CONSUME_SLOTS
        )
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
        validating = Engine(client, accounts, on_call=telemetry.call, slots=VALIDATE_SLOTS)
        app.state.service = Service(configured, validating, once)
        reconciling = asyncio.create_task(once.reconcile())
        try:
            yield
        finally:
            reconciling.cancel()
            await asyncio.wait({reconciling})
            await once.drain(DRAIN_S)
            await ledger.close()
            await client.aclose()

    app = Starlette(
        routes=[
            Route("/promotions/validate", _endpoint("validate", promotions.validate, telemetry), methods=["POST"]),
            Route("/promotions/consume", _endpoint("consume", promotions.consume, telemetry), methods=["POST"]),
            Route("/livez", _alive),
            Route("/readyz", _ready),
            Route("/version", _version),
            Route("/metrics", _metrics(telemetry)),
        ],
        middleware=[
            Middleware(
                Gate,
                rooms={f"/promotions/{operation}": _room(operation, configured, telemetry) for operation in SUBJECT},
                body_bytes=max(RECEIVING_BYTES, 4 * configured.max_body_bytes),
            )
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def from_environment() -> Starlette:
    """What uvicorn's workers call."""
    return create(settings.load(os.environ))


def _room(operation: Operation, configured: Settings, telemetry: Telemetry) -> Room:
    refusal = _problem(Overloaded(), operation, configured)
    return Room(
        VALIDATE_ROOM if operation == "validate" else CONSUME_ROOM,
        refusal.status_code,
        bytes(refusal.body),
        tuple(refusal.raw_headers),
        telemetry.requests.labels(operation, str(refusal.status_code), "overloaded").inc,
    )


def _endpoint(operation: Operation, story: Story, telemetry: Telemetry) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        started = time.monotonic()
        record = Record(operation, _request_id(request))
        response, reason = await _answer(request, operation, story, record)
        response.headers["x-request-id"] = record.request_id
        telemetry.request(record, response.status_code, reason, time.monotonic() - started)
        return response

    return endpoint


async def _answer(request: Request, operation: Operation, story: Story, record: Record) -> tuple[Response, str]:
    """The response, and the word for it in log and metric."""
    service: Service = request.app.state.service
    configured = service.settings
    budget = configured.validate_deadline_s if operation == "validate" else configured.consume_deadline_s
    try:
        body = await _read(request, configured.max_body_bytes)
        call = Call(body, request.headers.raw, service.clock() + budget, record)
        answer = await story(service, call)
        return _json(answer.status, answer.reply), answer.reason
    except _NotACall as refusal:
        return _json(refusal.status, msgspec.json.encode({"error": refusal.text}), **refusal.headers), refusal.reason
    except ClientDisconnect:
        return _json(400, b"{}"), "client_gone"
    except Problem as problem:
        if problem.__cause__ is not None:
            log.debug("cause", exc_info=problem)
        return _problem(problem, operation, configured), problem.reason
    except Exception:  # noqa: BLE001 - the last resort: whatever it is, Nacelle gets an answer in its own form
        log.exception("internal error", extra={"facts": {"request_id": record.request_id}})
        message = f"Something went wrong inside the service; its log tells what, under request id {record.request_id}."
        return _problem(Problem(message, reason="internal"), operation, configured), "internal"


class _NotACall(Exception):
    """The request is not a call of the contract."""

    def __init__(self, status: int, reason: str, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.reason, self.text, self.headers = status, reason, text, headers


async def _read(request: Request, limit: int) -> bytes:
    """The body's bytes, as they came. Nothing is decoded, no more than `limit` is held."""
    media_type = request.headers.get("content-type", "application/json").lower()
    if not re.fullmatch(r"application/(json|[\w.-]+\+json)\s*(;\s*charset=\"?utf-8\"?\s*)?", media_type):
        raise _NotACall(415, "media_type", "The content type must be application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _NotACall(415, "content_encoding", "The body must not be compressed.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 15 or int(length) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise _NotACall(408, "slow_body", "The body did not arrive in time.", connection="close") from None
    return bytes(body)


def _too_large(limit: int) -> _NotACall:
    text = f"The body is larger than {limit} bytes (MAPPER_MAX_BODY_BYTES)."
    return _NotACall(413, "too_large", text, connection="close")


def _problem(problem: Problem, operation: Operation, configured: Settings) -> Response:
    status = problem.status(operation)
    if problem.category == "overloaded" and configured.overload_status:
        status = configured.overload_status
    headers = {"retry-after": str(problem.retry_after)} if problem.retry_after is not None else {}
    return _json(status, errors.body(problem, operation), **headers)


def _json(status: int, body: bytes, **headers: str) -> Response:
    return Response(body, status, headers={**_HEADERS, **headers}, media_type="application/json")


def _request_id(request: Request) -> str:
    """The caller's own id for the request, where it is harmless; else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


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


def run(listener: socket.socket, line: socket.socket | None, *, drain_s: float, keep_alive_s: float) -> None:
    """Serves until told to stop. The settings have been checked by the caller. `line`: see `mapper.workers`."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    limits = server.Limits(keep_alive_s=keep_alive_s)
    server.run(server.create("mapper.app:from_environment", limits, factory=True, drain_s=drain_s), listener, line)
