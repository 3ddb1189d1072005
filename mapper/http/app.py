"""The ASGI application: its routes, the objects that it is built from, and its lifespan.

`mapper.http.endpoint` handles the calls of the contract, with Nacelle's status codes. Requests to other paths, or with
other methods, get ordinary HTTP codes.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mapper import __version__, promotions, settings
from mapper.adapter import Adapter
from mapper.engine import clients, transport
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.http import limiter, openapi, protocol, server, workers
from mapper.http.endpoint import SECURITY_HEADERS, Endpoint, error_body
from mapper.http.protocol import PreparedResponse
from mapper.http.readiness import DRAINING, Readiness
from mapper.nacelle.database import Database
from mapper.nacelle.journal import Journal, journal_in
from mapper.nacelle.products import Products, remembered_in
from mapper.nacelle.storefront import source_of
from mapper.ops import tracing
from mapper.ops.logs import CodeNames
from mapper.ops.telemetry import Telemetry, log
from mapper.ops.tracing import Tracing
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import OrderRedeemer, add_no_product_data
from mapper.promotions import Service
from mapper.settings import Settings

if TYPE_CHECKING:
    from mapper.recording.recorder import Recorder

LEASE_S = 30.0
"""How long a process holds an order in the ledger without renewal: longer than it works on it without a write."""

DRAIN_S = 25.0
"""How long a process that stops waits for orders that are being redeemed."""


class App(Starlette):
    """Starlette's application, which can also refuse a call when its head is read (`mapper.http.protocol.Shed`).

    `admin`: the operator's routes if they have a port of their own. Each port then serves its own routes only.
    """

    def __init__(self, validate: Endpoint, consume: Endpoint, admin: "Admin | None", **options: Any) -> None:
        super().__init__(**options)
        self._admin = admin
        self._endpoints = {b"/promotions/validate": validate, b"/promotions/consume": consume}

    def shed(self, method: bytes, target: bytes) -> PreparedResponse | None:
        """Returns the refusal of a call that could not be answered in time, else None. `target`: as in the request."""
        endpoint = self._endpoints.get(target.partition(b"?")[0]) if method == b"POST" else None
        return None if endpoint is None else endpoint.shed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._admin is not None and scope["type"] == "http" and self._admin.is_target(scope):
            await self._admin.application(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True)
class Admin:
    """The operator's routes on a port of their own."""

    port: int
    application: Starlette

    def is_target(self, scope: Scope) -> bool:
        address = scope.get("server")
        return address is not None and address[1] == self.port


def create(
    configured: Settings, *, engine_transport: transport.Transport | None = None, traces: Tracing | None = None
) -> App:
    """Returns the ASGI application. Tests replace the HTTP client (`engine_transport`) and `traces`."""
    traces = traces or tracing.from_environment(os.environ, configured.adapter.name)
    code_names = CodeNames(configured.log_codes, configured.code_secret)
    telemetry = Telemetry(configured.adapter.name, code_names, traces)
    recorder = _recorder(configured, code_names, telemetry) if configured.record is not None else None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for warning in configured.warnings:
            log.warning("setting", extra={"facts": {"problem": warning}})
        connections = limiter.VALIDATE_CAPACITY + limiter.CONSUME_CAPACITY
        client = engine_transport or clients.create(configured.http_client, connections=connections)
        accounts = configured.adapter.accounts
        ledger = await open_ledger(
            configured.ledger_url,
            patient=True,
            quarantine_s=configured.quarantine_s,
            lease_s=max(LEASE_S, 2 * configured.consume_deadline_s),
        )
        ledger = replace(ledger, store=traces.store(ledger.store))
        new_engine = partial(Engine, client, accounts, on_attempt=telemetry.attempt, trace=traces.attempt)
        product_database = remembered_in(configured.ledger_url)
        products = _products(configured, client, product_database, telemetry)
        redeemer = OrderRedeemer(
            configured,
            PromotionEngine(configured.adapter, new_engine()),
            ledger,
            time.monotonic,
            on_backlog=telemetry.backlog,
            fill=products.at_consume if products else add_no_product_data,
        )
        with_breaker = new_engine(breaker=True, on_breaker=telemetry.breaker)
        for account in accounts:
            telemetry.metrics.breaker(account, "closed")
        app.state.client = client
        service = Service(configured, PromotionEngine(configured.adapter, with_breaker), redeemer)
        if products is not None:
            service = replace(service, add_product_data=products.at_validate, save_product_data=products.keep)
        app.state.service = validate.service = consume.service = cancel.service = service
        readiness = app.state.readiness = Readiness(ledger, telemetry.metrics)
        await readiness.check()
        log.info("started", extra={"facts": {"version": __version__, "pid": os.getpid()}})
        background = {asyncio.create_task(redeemer.reconcile()), asyncio.create_task(readiness.check_forever())}
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await redeemer.drain(DRAIN_S)
            if recorder is not None:
                await asyncio.to_thread(recorder.close)
            await product_database.close()
            await journal.close()
            await ledger.close()
            await client.aclose()
            log.info("stopped", extra={"facts": {"pid": os.getpid()}})

    validate = Endpoint("validate", promotions.validate, limiter.VALIDATE_CAPACITY, configured, telemetry, recorder)
    consume = Endpoint("consume", promotions.consume, limiter.CONSUME_CAPACITY, configured, telemetry, recorder)
    cancel = Endpoint("cancel", promotions.cancel, limiter.CANCEL_CAPACITY, configured, telemetry)
    cancels = configured.cancel_credentials is not None
    journal = journal_in(configured.ledger_url)
    calls = [
        Route("/promotions/validate", validate, methods=["POST"]),
        Route("/promotions/consume", consume, methods=["POST"]),
        *([Route("/promotions/cancel", cancel, methods=["POST"])] if cancels else []),
        *(_ingest_routes(configured, lambda: app.state.client, journal, telemetry) if configured.ingest else ()),
    ]
    admin_routes = [
        Route("/livez", _alive),
        Route("/readyz", _ready),
        Route("/version", _version),
        Route("/metrics", _metrics(telemetry)),
        Route("/openapi.json", _openapi),
        *(_explain_routes(configured, lambda: app.state.client) if configured.explain_token else ()),
    ]
    options: dict[str, Any] = {"exception_handlers": {HTTPException: _http_error}}
    admin: Admin | None = None
    if configured.admin_port is not None:
        admin = Admin(configured.admin_port, Starlette(routes=admin_routes, **options))
        admin.application.router.redirect_slashes = False
    app = App(validate, consume, admin, routes=calls if admin else calls + admin_routes, lifespan=lifespan, **options)
    app.router.redirect_slashes = False
    if admin is not None:
        admin.application.state = app.state
    return app


def _recorder(configured: Settings, code_names: CodeNames, telemetry: Telemetry) -> "Recorder":
    from mapper.recording.recorder import Recorder  # noqa: PLC0415 - loaded only if calls are recorded

    assert configured.record is not None, "checked by the caller"
    name_of_code = code_names if configured.log_codes == "hash" else _no_name
    return Recorder(configured.record, configured, name_of_code, telemetry.metrics.record)


def _no_name(_code: str) -> str:
    return ""


def _ingest_routes(
    configured: Settings, client: Callable[[], transport.Transport], journal: Journal, telemetry: Telemetry
) -> list[Route]:
    from mapper.http import ingest  # noqa: PLC0415 - loaded only if orders are ingested

    assert configured.ingest is not None, "without a token there is no such route"
    return ingest.routes(configured.ingest, configured, client, journal, telemetry.metrics.ingested)


def _explain_routes(configured: Settings, client: Callable[[], transport.Transport]) -> list[Route]:
    from mapper.http import explain_page  # noqa: PLC0415 - its templates take a while to load

    return explain_page.routes(configured, client)


def _products(
    configured: Settings, client: transport.Transport, product_database: Database, telemetry: Telemetry
) -> Products | None:
    if configured.products is None:
        return None
    return Products(source_of(configured.products, client), product_database, count=telemetry.metrics.products)


def from_environment() -> App:
    """Returns the application of a worker; uvicorn calls it."""
    return create(settings.load(os.environ))


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, headers=SECURITY_HEADERS, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers a request with an unknown path or method."""
    assert isinstance(error, HTTPException)
    headers = {**SECURITY_HEADERS, **(error.headers or {})}
    return Response(error_body(f"{error.detail}."), error.status_code, headers, "application/json")


async def _alive(request: Request) -> Response:
    return _json(200, b'{"status":"alive"}')


async def _ready(request: Request) -> Response:
    readiness: Readiness = request.app.state.readiness
    ready = DRAINING if getattr(request.state, server.DRAINING, False) else readiness.latest
    for_consume = request.query_params.get("for") == "consume"
    served = ready.consume if for_consume else ready.validate or ready.consume
    return _json(200 if served else 503, msgspec.json.encode(ready))


async def _version(request: Request) -> Response:
    adapter: Adapter = request.app.state.service.adapter
    about = {
        "version": __version__,
        "engine": adapter.name,
        "contract": adapter.contract,
        "capabilities": adapter.capabilities,
    }
    return _json(200, msgspec.json.encode(about))


async def _openapi(request: Request) -> Response:
    return _json(200, msgspec.json.encode(openapi.document()))


def _metrics(telemetry: Telemetry) -> Callable[[Request], Awaitable[Response]]:
    async def metrics(request: Request) -> Response:
        return Response(telemetry.metrics.render(), headers=SECURITY_HEADERS, media_type="text/plain; version=0.0.4")

    return metrics


async def check_ledger(configured: Settings) -> None:
    """Raises `LedgerUnusable` for a ledger that needs an operator. An unreachable ledger server raises nothing."""
    await (await open_ledger(configured.ledger_url, patient=True)).close()


def run(listeners: Sequence[socket.socket], count: int, *, drain_s: float, keep_alive_s: float) -> int:
    """Serves with `count` processes until a signal stops it; returns the exit code. The settings must be valid."""
    limits = protocol.Limits(keep_alive_s=keep_alive_s)
    web_server = server.create("mapper.http.app:from_environment", limits, factory=True, drain_s=drain_s)
    if count > 1:
        return workers.supervise(web_server, listeners, count)
    server.run(web_server, listeners)
    return 0
