"""The sandbox: promotion engines emulated over HTTP, on one rule book, so that no account is needed.

Each emulator (entry points `promotions_mapper.sandboxes`) is mounted at `/<engine>`, within a `FaultyEngine` that makes
it fail on request. `/_sandbox/` has the log, the books and the faults. The front page lists all of it.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mapper.adapter import SANDBOXES, known
from mapper.sandbox.emulator import ENCODER, Emulator, Now
from mapper.sandbox.faults import TRANSPORT, Fault, FaultyEngine, Journal
from mapper.sandbox.nacelle import NacelleSandbox
from mapper.sandbox.rulebook import RuleBook, load

# --- The host ---------------------------------------------------------------------------------------------------------


class Clock:
    """The time for the emulators: the real time, unless it is fixed."""

    def __init__(self, now: Now | None = None) -> None:
        self._now = now or (lambda: datetime.now(UTC))
        self.fixed: datetime | None = None

    def __call__(self) -> datetime:
        return self.fixed or self._now()


class Sandbox:
    """All emulators on one rule book, the active faults and the request log."""

    def __init__(self, book: RuleBook, now: Now | None = None) -> None:
        self.book = book
        self.clock = Clock(now)
        self.emulators: dict[str, Emulator] = {
            name: point.load()(book, self.clock) for name, point in sorted(known(SANDBOXES).items())
        }
        self.nacelle = NacelleSandbox(book, self.clock)
        self.emulators["nacelle"] = self.nacelle
        self.journal = Journal()

    def books(self) -> dict[str, Any]:
        return {name: emulator.books() for name, emulator in self.emulators.items()}

    def reset(self) -> None:
        for emulator in self.emulators.values():
            emulator.reset()
        self.journal.reset()
        self.clock.fixed = None


_CONTROLS: Final = """\
  GET  /_sandbox/books      sessions, redemptions, counts and balances of each engine
  GET  /_sandbox/requests   the last requests, and how many there were of each operation
  GET  /_sandbox/faults     the faults that are set
  POST /_sandbox/faults     sets them, instead of those that were: [{"name": "status", "value": 429, "retry_after": 1,
                            "skip": 1, "count": 2, "probability": 0.5, "seed": 7, "engine": "talon_one",
                            "method": "PUT", "path": "regular expression", "operation": "close"}]; all but the name
                            may be left out
  POST /_sandbox/clock      {"now": "2030-01-01T00:00:00Z"} stops the clock there, {"now": null} lets it run
  POST /_sandbox/nacelle    {"spaces": {"sandbox": {"mapper_url": "http://127.0.0.1:8080", "secret": "…"}}}: which
                            mapper Nacelle calls for a space, until the reset; also family, deliveries, retries,
                            retry_ip, headers
  POST /_sandbox/reset      forgets everything
The header X-Sandbox-Fault gives one request its faults: latency=200, status=429;retry_after=1
"""


def create(rulebook_path: Path | None = None, *, now: Now | None = None) -> Starlette:
    """The sandbox as an ASGI application; its `state.sandbox` is the `Sandbox`. Raises `RuleBookError`."""
    sandbox = Sandbox(load(rulebook_path), now)
    mounts = [
        Mount(f"/{name}", app=FaultyEngine(name, emulator, sandbox.journal))
        for name, emulator in sandbox.emulators.items()
    ]
    app = Starlette(routes=[*_controls(sandbox), *mounts])
    app.state.sandbox = sandbox
    app.add_middleware(_SandboxHeader)
    return app


def _controls(sandbox: Sandbox) -> list[Route]:
    async def front(request: Request) -> Response:
        from mapper.sandbox import page  # noqa: PLC0415 - its templates take a while to load, and most do without

        return await page.show(request, sandbox.book, sandbox.nacelle, [*sandbox.emulators], _CONTROLS)

    async def style(request: Request) -> Response:
        from mapper import pages  # noqa: PLC0415 - likewise

        return await pages.style(request)

    async def books(request: Request) -> Response:
        return _json(sandbox.books())

    async def requests(request: Request) -> Response:
        return _json({"counts": sandbox.journal.counts, "requests": list(sandbox.journal.log)})

    async def faults(request: Request) -> Response:
        if request.method == "POST":
            try:
                sandbox.journal.set_faults(msgspec.json.decode(await request.body(), type=list[Fault]))
            except ValueError as error:
                return _json({"error": str(error)}, 400)
        return _json(sandbox.journal.faults())

    async def clock(request: Request) -> Response:
        try:
            given = msgspec.json.decode(await request.body(), type=dict[str, datetime | None])
            sandbox.clock.fixed = given["now"] and given["now"].astimezone(UTC)
        except (ValueError, KeyError) as error:
            return _json({"error": str(error)}, 400)
        return _json({"now": sandbox.clock()})

    async def nacelle(request: Request) -> Response:
        try:
            given = msgspec.json.decode(await request.body() or b"{}", type=dict[str, Any])
            return _json(sandbox.nacelle.configure(given))
        except ValueError as error:
            return _json({"error": str(error)}, 400)

    async def reset(request: Request) -> Response:
        sandbox.reset()
        return _json({})

    return [
        Route("/", front),
        Route("/page.css", style),
        Route("/_sandbox/books", books),
        Route("/_sandbox/requests", requests),
        Route("/_sandbox/faults", faults, methods=["GET", "POST"]),
        Route("/_sandbox/clock", clock, methods=["POST"]),
        Route("/_sandbox/nacelle", nacelle, methods=["GET", "POST"]),
        Route("/_sandbox/reset", reset, methods=["POST"]),
    ]


def _json(value: Any, status: int = 200) -> Response:
    return Response(ENCODER.encode(value), status, media_type="application/json")


class _SandboxHeader:
    """Marks every reply, so that nobody takes it for that of the real engine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-sandbox"] = "promotions-mapper"
            await send(message)

        await self._app(scope, receive, send_marked)


# --- Running it -------------------------------------------------------------------------------------------------------


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with the transport in the scope of a request, so that a fault can break the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, TRANSPORT: transport}


def config(app: ASGIApp) -> uvicorn.Config:
    """The uvicorn configuration that all faults work with."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="auto",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
    )


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Serves an application in a thread, on a free port of this machine. Yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
