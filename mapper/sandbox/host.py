"""The sandbox: promotion engines emulated over HTTP, on one rule book, with which everything runs without an account.

Each engine's emulator (entry points `promotions_mapper.sandboxes`) answers below `/<its name>`. Around all of them lies
`Faults`, which makes them as hostile as asked. What happened is read, and hostility is ordered, below `/_sandbox/`; the
front page lists it all.

Faults that break the connection need the server's transport: `Connection`, the protocol of `config`, puts it where the
request can find it. Under a server started in another way they raise `ConnectionResetError` instead.
"""

import asyncio
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mapper.adapter import SANDBOXES, known
from mapper.sandbox.rulebook import RuleBook, RuleBookError, load

Now = Callable[[], datetime]

PAUSE: Final = "sandbox.pause"
"""In the scope: seconds that the emulator must wait in the middle of its work, before it commits anything."""

_LOG_SIZE: Final = 2000
_LOGGED_BODY: Final = 64 * 1024
_SECRET_HEADERS: Final = frozenset({"authorization", "x-app-id", "x-app-token"})
_TRANSPORT: Final = "sandbox_transport"


class Emulator(Protocol):
    """An engine as it looks from outside: an ASGI application that holds its state in memory.

    It awaits `scope[PAUSE]` seconds before it commits, while it holds whatever the engine would hold.
    """

    def __init__(self, book: RuleBook, now: Now) -> None:
        """Raises `RuleBookError` where `book.engines` holds something it does not understand."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def reset(self) -> None:
        """Forgets everything but the rule book."""

    def books(self) -> dict[str, Any]:
        """What it holds, as JSON values: sessions or orders, redemptions with counts, balances."""
        ...

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """A short constant word for a request, such as "close", by which faults and logs name it."""
        ...

    def error(self, status: int) -> Any:
        """The body the engine gives an error of this status."""
        ...

    def unknown_effect(self, reply: Any) -> Any:
        """A reply with an effect in it that no integration knows."""
        ...


# --- Faults -----------------------------------------------------------------------------------------------------------

FAULTS: Final[dict[str, tuple[int, str]]] = {
    "latency": (300, "waits so many ms in the middle of the work, before it commits"),
    "late_answer": (300, "commits, then waits so many ms before it answers"),
    "late_commit": (300, "closes the connection without an answer and commits so many ms later"),
    "status": (503, "answers this status, without doing anything"),
    "status_after": (500, "does it, and answers this status"),
    "reset": (0, "resets the connection, without doing anything"),
    "reset_after": (0, "does it, and resets the connection without an answer"),
    "close": (0, "closes the connection, without doing anything"),
    "close_after": (0, "does it, and closes the connection without an answer"),
    "redirect": (307, "answers a redirect of this status to another host, without doing anything"),
    "drip": (20, "sends the body byte by byte, so many ms apart"),
    "truncated": (0, "announces the whole body, sends half of it and closes the connection"),
    "malformed": (0, "sends a body that is not JSON"),
    "huge": (4_000_000, "sends a body longer by so many bytes"),
    "unknown_effect": (0, "adds an effect nobody knows"),
    "extra_fields": (0, "adds a field nobody knows to every object"),
}
"""Each fault with its default value and what it does."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of hostility, and which requests it meets."""

    name: str
    value: int | None = None
    """Milliseconds, bytes or status: see `FAULTS`."""
    retry_after: int | None = None
    """For a status: the header, in seconds."""
    count: int | None = None
    """How many requests it meets; None: all."""
    probability: float = 1.0
    """With which it meets a request that matches; drawn from `seed`, so that a run can be repeated."""
    seed: int = 0
    engine: str = ""
    method: str = ""
    path: str = ""
    """A regular expression found somewhere in the path, as it was sent."""
    operation: str = ""

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise ValueError(f"there is no fault {self.name!r}; there are: {', '.join(FAULTS)}")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"{self.path!r} is no regular expression: {error}") from None

    @property
    def amount(self) -> int:
        return FAULTS[self.name][0] if self.value is None else self.value


class _Armed:
    """A fault that has been set, with what is left of its count."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count
        self.dice = random.Random(fault.seed)  # noqa: S311 - a repeatable draw, nothing secret

    def meets(self, call: "_Call") -> bool:
        fault = self.fault
        matches = (
            fault.engine in ("", call.engine)
            and fault.method.upper() in ("", call.method)
            and fault.operation in ("", call.operation)
            and re.search(fault.path, call.path) is not None
        )
        if not matches or self.left == 0 or self.dice.random() >= fault.probability:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class _Call(msgspec.Struct, kw_only=True):
    """A request that came in, as the log keeps it."""

    at: datetime
    engine: str
    operation: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str
    faults: list[str] = []
    status: int | None = None
    """What was answered; None: nothing."""


class _Answer(msgspec.Struct, kw_only=True):
    """What an emulator answered, collected."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""


def from_header(text: str) -> list[Fault]:
    """The faults of one request's `X-Sandbox-Fault` header: "latency=200, status=429;retry_after=1".

    Raises `ValueError`.
    """
    faults = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, *options = part.split(";")
        name, _, value = first.partition("=")
        given: dict[str, Any] = {"name": name.strip()} | ({"value": value} if value else {})
        for option in options:
            key, _, value = option.partition("=")
            given[key.strip()] = value.strip()
        faults.append(msgspec.convert(given, Fault, strict=False))
    return faults


class Faults:
    """Pure ASGI around one emulator: keeps the log, and does what the faults of a request say."""

    def __init__(self, engine: str, emulator: Emulator, sandbox: "Sandbox") -> None:
        self._engine = engine
        self._emulator = emulator
        self._sandbox = sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        call = self._log(scope, body)
        try:
            faults = self._sandbox.faults_for(call) | {f.name: f for f in from_header(call.headers.get(_HEADER, ""))}
        except ValueError as error:
            await Response(f"{_HEADER}: {error}", 400)(scope, receive, send)
            return
        call.faults = list(faults)
        if await self._refuse(call, faults, scope, receive, send):
            return
        if "latency" in faults:
            scope[PAUSE] = faults["latency"].amount / 1000
        answer = await self._collect(scope, body)
        self._garble(answer, faults)
        await self._answer(call, answer, faults, scope, receive, send)

    def _log(self, scope: Scope, body: bytes) -> _Call:
        path, query = scope["raw_path"].decode("ascii", "replace"), scope["query_string"].decode("ascii", "replace")
        headers = {k: "***" if k in _SECRET_HEADERS else v for k, v in Headers(scope=scope).items()}
        call = _Call(
            at=datetime.now(UTC),
            engine=self._engine,
            operation=self._emulator.operation(scope["method"], path, query, body),
            method=scope["method"],
            path=path,
            query=query,
            headers=headers,
            body=body[:_LOGGED_BODY].decode("utf-8", "replace"),
        )
        self._sandbox.log.append(call)
        self._sandbox.counts[f"{call.engine} {call.operation}"] += 1
        return call

    async def _refuse(self, call: _Call, faults: dict[str, Fault], scope: Scope, receive: Receive, send: Send) -> bool:
        """The faults that come before the emulator; True if the request ends here."""
        if "late_commit" in faults:
            await _disconnect(scope, receive, hard=False)
            await asyncio.sleep(faults["late_commit"].amount / 1000)
            return False
        if "reset" in faults or "close" in faults:
            await _disconnect(scope, receive, hard="reset" in faults)
            return True
        fault = faults.get("status") or faults.get("redirect")
        if fault is None:
            return False
        if "latency" in faults:
            await asyncio.sleep(faults["latency"].amount / 1000)
        answer = self._error(fault)
        if fault.name == "redirect":
            answer.headers.append((b"location", b"http://elsewhere.invalid/"))
        await _send(call, answer, send)
        return True

    def _error(self, fault: Fault) -> _Answer:
        headers = [(b"content-type", b"application/json")]
        if fault.retry_after is not None:
            headers.append((b"retry-after", str(fault.retry_after).encode()))
        body = msgspec.json.encode(self._emulator.error(fault.amount))
        return _Answer(status=fault.amount, headers=headers, body=body)

    async def _collect(self, scope: Scope, body: bytes) -> _Answer:
        """What the emulator answers. It is never interrupted: what it does counts, whoever waits for it."""
        answer = _Answer(headers=[])

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], list(message["headers"])
            else:
                answer.body += message.get("body", b"")

        await self._emulator(scope, replay, keep)
        return answer

    def _garble(self, answer: _Answer, faults: dict[str, Fault]) -> None:
        if faults.keys() & {"unknown_effect", "extra_fields", "huge"}:
            reply = _DECODER.decode(answer.body)
            if "unknown_effect" in faults:
                reply = self._emulator.unknown_effect(reply)
            if "extra_fields" in faults:
                reply = _with_extra_fields(reply)
            if "huge" in faults and isinstance(reply, dict):
                reply = reply | {"sandboxPadding": "x" * faults["huge"].amount}
            answer.body = _ENCODER.encode(reply)
        if "malformed" in faults:
            answer.body = answer.body[: len(answer.body) // 2] + b",]"

    async def _answer(
        self, call: _Call, answer: _Answer, faults: dict[str, Fault], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if "late_answer" in faults:
            await asyncio.sleep(faults["late_answer"].amount / 1000)
        if "reset_after" in faults or "close_after" in faults:
            await _disconnect(scope, receive, hard="reset_after" in faults)
        elif "truncated" in faults:
            await _send(call, answer, send, until=len(answer.body) // 2)
            await _disconnect(scope, receive, hard=False)
        elif "status_after" in faults:
            await _send(call, self._error(faults["status_after"]), send)
        else:
            drip = faults.get("drip")
            await (_drip(call, answer, drip.amount / 1000, receive, send) if drip else _send(call, answer, send))


_HEADER: Final = "x-sandbox-fault"
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
# Numbers stay as they were spelled.
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)


def _with_extra_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_extra_fields(element) for element in value]
    if isinstance(value, dict):
        return {k: _with_extra_fields(v) for k, v in value.items()} | {"sandboxExtra": {"nobody": ["knows", 1.5, None]}}
    return value


async def _read(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _start(call: _Call, answer: _Answer, send: Send) -> None:
    call.status = answer.status
    headers = [(k, v) for k, v in answer.headers if k != b"content-length"]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})


async def _send(call: _Call, answer: _Answer, send: Send, *, until: int | None = None) -> None:
    """Sends an answer, or only `until` some length, with no end to it."""
    await _start(call, answer, send)
    await send({"type": "http.response.body", "body": answer.body[:until], "more_body": until is not None})


async def _drip(call: _Call, answer: _Answer, pause: float, receive: Receive, send: Send) -> None:
    """Sends an answer byte by byte, `pause` seconds apart, as long as somebody listens."""
    await _start(call, answer, send)
    gone = asyncio.ensure_future(receive())
    try:
        for byte in answer.body:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            if (await asyncio.wait({gone}, timeout=pause))[0]:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        gone.cancel()


async def _disconnect(scope: Scope, receive: Receive, *, hard: bool) -> None:
    """Ends the connection without (the rest of) an answer: with a reset, or with an orderly close."""
    transport = scope.get("state", {}).get(_TRANSPORT)
    if transport is None:
        raise ConnectionResetError("the sandbox ends the connection (its server gives no access to it)")
    if hard:
        # Lingering for zero seconds makes the system send RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


# --- The host ---------------------------------------------------------------------------------------------------------


class Clock:
    """The time the emulators see: real, unless it has been set."""

    def __init__(self, now: Now | None = None) -> None:
        self._now = now or (lambda: datetime.now(UTC))
        self.fixed: datetime | None = None

    def __call__(self) -> datetime:
        return self.fixed or self._now()


class Sandbox:
    """All emulators on one rule book, the faults that are set, and the log of what came in."""

    def __init__(self, book: RuleBook, now: Now | None = None) -> None:
        self.book = book
        self.clock = Clock(now)
        self.emulators: dict[str, Emulator] = {
            name: point.load()(book, self.clock) for name, point in sorted(known(SANDBOXES).items())
        }
        self.log: deque[_Call] = deque(maxlen=_LOG_SIZE)
        self.counts: Counter[str] = Counter()
        self._armed: list[_Armed] = []

    def faults_for(self, call: _Call) -> dict[str, Fault]:
        return {armed.fault.name: armed.fault for armed in self._armed if armed.meets(call)}

    def set_faults(self, faults: list[Fault]) -> None:
        """Replaces all faults that were set."""
        self._armed = [_Armed(fault) for fault in faults]

    def faults(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(armed.fault) | {"left": armed.left} for armed in self._armed]

    def books(self) -> dict[str, Any]:
        return {name: emulator.books() for name, emulator in self.emulators.items()}

    def reset(self) -> None:
        for emulator in self.emulators.values():
            emulator.reset()
        self.log.clear()
        self.counts.clear()
        self._armed = []
        self.clock.fixed = None

    def front_page(self) -> str:
        engines = "".join(f"  /{name}\n" for name in self.emulators)
        codes = "".join(f"  {code:26} {note}\n" for code, note in self.book.codes_to_try())
        faults = "".join(f"  {name:16} {text} ({value})\n" for name, (value, text) in FAULTS.items())
        return (
            "This is the sandbox of the promotions mapper: promotion engines, emulated. Nothing here is real; no\n"
            "engine's account is needed or touched, and all is forgotten when it stops.\n\n"
            f"Engines:\n{engines}\nCodes to try:\n{codes}\n{_CONTROLS}\n"
            f"Faults, with their default values:\n{faults}"
        )


_CONTROLS: Final = """\
Controls:
  GET  /_sandbox/books      sessions, redemptions, counts and balances of each engine
  GET  /_sandbox/requests   the last requests, and how many there were of each operation
  GET  /_sandbox/faults     the faults that are set
  POST /_sandbox/faults     sets them, instead of those that were: [{"name": "status", "value": 429, "retry_after": 1,
                            "count": 2, "probability": 0.5, "seed": 7, "engine": "talon_one", "method": "PUT",
                            "path": "regular expression", "operation": "close"}]; all but the name may be left out
  POST /_sandbox/clock      {"now": "2030-01-01T00:00:00Z"} stops the clock there, {"now": null} lets it run
  POST /_sandbox/reset      forgets everything
The header X-Sandbox-Fault gives one request its faults: latency=200, status=429;retry_after=1
"""


def create(rulebook_path: Path | None = None, *, now: Now | None = None) -> Starlette:
    """The sandbox as an ASGI application; its `state.sandbox` is the `Sandbox`. Raises `RuleBookError`."""
    sandbox = Sandbox(load(rulebook_path), now)
    mounts = [Mount(f"/{name}", app=Faults(name, emulator, sandbox)) for name, emulator in sandbox.emulators.items()]
    app = Starlette(routes=[*_controls(sandbox), *mounts])
    app.state.sandbox = sandbox
    app.add_middleware(_Signed)
    return app


def _controls(sandbox: Sandbox) -> list[Route]:
    def front(request: Request) -> Response:
        return PlainTextResponse(sandbox.front_page())

    def books(request: Request) -> Response:
        return _json(sandbox.books())

    def requests(request: Request) -> Response:
        return _json({"counts": sandbox.counts, "requests": list(sandbox.log)})

    async def faults(request: Request) -> Response:
        if request.method == "POST":
            try:
                sandbox.set_faults(msgspec.json.decode(await request.body(), type=list[Fault]))
            except ValueError as error:
                return _json({"error": str(error)}, 400)
        return _json(sandbox.faults())

    async def clock(request: Request) -> Response:
        try:
            given = msgspec.json.decode(await request.body(), type=dict[str, datetime | None])
            sandbox.clock.fixed = given["now"] and given["now"].astimezone(UTC)
        except (ValueError, KeyError) as error:
            return _json({"error": str(error)}, 400)
        return _json({"now": sandbox.clock()})

    def reset(request: Request) -> Response:
        sandbox.reset()
        return _json({})

    return [
        Route("/", front),
        Route("/_sandbox/books", books),
        Route("/_sandbox/requests", requests),
        Route("/_sandbox/faults", faults, methods=["GET", "POST"]),
        Route("/_sandbox/clock", clock, methods=["POST"]),
        Route("/_sandbox/reset", reset, methods=["POST"]),
    ]


def _json(value: Any, status: int = 200) -> Response:
    return Response(_ENCODER.encode(value), status, media_type="application/json")


class _Signed:
    """Every reply says where it comes from, so that nobody takes it for the real engine's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-sandbox"] = "promotions-mapper"
            await send(message)

        await self._app(scope, receive, signed)


# --- Running it -------------------------------------------------------------------------------------------------------


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which lets a request find the transport it came by, so that a fault can break it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, _TRANSPORT: transport}


def config(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """How uvicorn must serve the sandbox so that every fault works."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        lifespan="auto",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
    )


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Serves an application in a thread of its own, on a free port of this machine; yields its URL."""
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


def run(host: str = "127.0.0.1", port: int = 8090, rulebook: Path | None = None) -> int:
    """Serves the sandbox until it is stopped; says where, and what to try. The exit code: 2 for a faulty rule book."""
    try:
        app = create(rulebook)
    except RuleBookError as error:
        sys.stderr.write(f"The rule book cannot be used:\n{error}\n")
        return 2
    sandbox: Sandbox = app.state.sandbox
    lines = [f"The sandbox listens on http://{host}:{port}/ (the front page tells more).", ""]
    lines += [f"  {name:14} http://{host}:{port}/{name}" for name in sandbox.emulators]
    lines += ["", "Codes to try:"] + [f"  {code:26} {note}" for code, note in sandbox.book.codes_to_try()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    uvicorn.Server(config(app, host, port)).run()
    return 0
