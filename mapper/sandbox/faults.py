"""Faults: makes an engine, or the connection to it, fail on request.

`FAULTS` lists them. `FaultyEngine` wraps one emulator, logs its requests and applies their faults: before the engine
handles the request, meanwhile, to its reply, and while the reply is sent. One request can have several faults.

Faults that break the connection need the server's transport, which `mapper.sandbox.host.Connection` puts into the
scope. Under any other server they raise `ConnectionResetError`.
"""

import asyncio
import random
import re
import socket
import struct
from collections import Counter, deque
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mapper.sandbox.emulator import ENCODER, PAUSE, Emulator, rewritten

TRANSPORT: Final = "sandbox_transport"
"""The key of the connection's transport in the state of a scope."""

HEADER: Final = "x-sandbox-fault"

FAULTS: Final[dict[str, tuple[int, str]]] = {
    "latency": (300, "waits so many ms while it handles the request, before it commits"),
    "late_answer": (300, "commits, then waits so many ms before it replies"),
    "late_commit": (300, "closes the connection without a reply, and commits so many ms later"),
    "hang": (0, "never replies, and does nothing"),
    "hang_after": (0, "commits, and never replies"),
    "twice": (
        2,
        "gets the request twice, as from a retrying proxy; sends the reply to the first (1) or the second (2)",
    ),
    "status": (503, "replies with this status, and does nothing"),
    "status_after": (500, "commits, and replies with this status"),
    "status_instead": (201, "commits, and sends its reply with this status"),
    "reset": (0, "resets the connection, and does nothing"),
    "reset_after": (0, "commits, and resets the connection without a reply"),
    "close": (0, "closes the connection, and does nothing"),
    "close_after": (0, "commits, and closes the connection without a reply"),
    "redirect": (307, "redirects to another host with this status, and does nothing"),
    "drip": (20, "sends the body byte by byte, so many ms apart"),
    "truncated": (0, "announces the whole body, sends half of it and closes the connection"),
    "wrong_length": (16, "announces so many bytes more than it sends (negative: fewer), and keeps the connection open"),
    "malformed": (0, "sends a body that is not JSON"),
    "empty": (0, "sends an empty body"),
    "html": (0, "sends the error page of a gateway"),
    "strange": (0, "sends JSON of another shape"),
    "huge": (4_000_000, "sends a body that is so many bytes longer"),
    "unknown_effect": (0, "adds an unknown effect"),
    "extra_fields": (0, "adds an unknown field to every object"),
}
"""Each fault with its default value, and what the engine does."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault, and the requests that it applies to."""

    name: str
    value: int | None = None
    """Milliseconds, bytes or a status, as in `FAULTS`."""
    retry_after: int | None = None
    """The header `Retry-After` of a status, in seconds."""
    skip: int = 0
    """The number of matching requests to leave out first."""
    count: int | None = None
    """The number of requests that it applies to; None for all."""
    probability: float = 1.0
    """The probability for each matching request, drawn from `seed`, so that a run can be repeated."""
    seed: int = 0
    engine: str = ""
    method: str = ""
    path: str = ""
    """A regular expression that matches part of the path."""
    operation: str = ""

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise ValueError(f"there is no fault {self.name!r}; there are: {', '.join(FAULTS)}")
        if self.name == "twice" and self.amount not in (1, 2):
            raise ValueError("twice sends the answer to the first request (1) or to the second (2)")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"{self.path!r} is no regular expression: {error}") from None

    @property
    def amount(self) -> int:
        return FAULTS[self.name][0] if self.value is None else self.value


class Call(msgspec.Struct, kw_only=True):
    """A request in the log."""

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
    """The status of the reply; None for no reply."""


class ActiveFault:
    """A fault that is set, and how often it still applies."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count
        self._skip = fault.skip
        self._dice = random.Random(fault.seed)  # noqa: S311 - a repeatable draw, nothing secret

    def applies_to(self, call: Call) -> bool:
        if not self._matches(call) or self.left == 0 or self._dice.random() >= self.fault.probability:
            return False
        if self._skip:
            self._skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True

    def _matches(self, call: Call) -> bool:
        fault = self.fault
        return (
            fault.engine in ("", call.engine)
            and fault.method.upper() in ("", call.method)
            and fault.operation in ("", call.operation)
            and re.search(fault.path, call.path) is not None
        )


_LOG_SIZE: Final = 2000
_LOGGED_BODY: Final = 64 * 1024
_SECRET_HEADERS: Final = frozenset({"authorization", "x-app-id", "x-app-token"})


class Journal:
    """The active faults and the request log."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.log: deque[Call] = deque(maxlen=_LOG_SIZE)
        self.counts: Counter[str] = Counter()
        self._active: list[ActiveFault] = []

    def set_faults(self, faults: list[Fault]) -> None:
        """Replaces all active faults."""
        self._active = [ActiveFault(fault) for fault in faults]

    def faults(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(active.fault) | {"left": active.left} for active in self._active]

    def write(self, call: Call) -> None:
        self.log.append(call)
        self.counts[f"{call.engine} {call.operation}"] += 1

    def faults_for(self, call: Call) -> dict[str, Fault]:
        """The faults that apply to this call, those of its own header included. Raises `ValueError`."""
        own = from_header(call.headers.get(HEADER, ""))
        call.faults = []
        matching = {active.fault.name: active.fault for active in self._active if active.applies_to(call)}
        matching |= {fault.name: fault for fault in own}
        call.faults = list(matching)
        return matching


def from_header(text: str) -> list[Fault]:
    """The faults of one request's `X-Sandbox-Fault` header: "latency=200, status=429;retry_after=1".

    Raises `ValueError`.
    """
    faults = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, *options = part.split(";")
        name, _, value = first.partition("=")
        fields: dict[str, Any] = {"name": name.strip()} | ({"value": value} if value else {})
        for option in options:
            key, _, value = option.partition("=")
            fields[key.strip()] = value.strip()
        faults.append(msgspec.convert(fields, Fault, strict=False))
    return faults


class _Reply(msgspec.Struct, kw_only=True):
    """The reply of an emulator."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""


class FaultyEngine:
    """ASGI middleware for one emulator: logs its requests and applies their faults."""

    def __init__(self, engine: str, emulator: Emulator, journal: Journal) -> None:
        self._engine = engine
        self._emulator = emulator
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        call = self._call(scope, body)
        self._journal.write(call)
        try:
            faults = self._journal.faults_for(call)
        except ValueError as error:
            await Response(f"{HEADER}: {error}", 400)(scope, receive, send)
            return
        if not await self._before(call, faults, scope, receive, send):
            return
        reply = await self._work(scope, body, faults)
        self._corrupt(reply, faults)
        await self._after(call, reply, faults, scope, receive, send)

    def _call(self, scope: Scope, body: bytes) -> Call:
        path, query = scope["raw_path"].decode("ascii", "replace"), scope["query_string"].decode("ascii", "replace")
        return Call(
            at=datetime.now(UTC),
            engine=self._engine,
            operation=self._emulator.operation(scope["method"], path, query, body),
            method=scope["method"],
            path=path,
            query=query,
            headers={k: "***" if k in _SECRET_HEADERS else v for k, v in Headers(scope=scope).items()},
            body=body[:_LOGGED_BODY].decode("utf-8", "replace"),
        )

    async def _before(self, call: Call, faults: dict[str, Fault], scope: Scope, receive: Receive, send: Send) -> bool:
        """Applies the faults before the engine. Returns whether the engine gets the request."""
        if "late_commit" in faults:
            await _disconnect(scope, receive, hard=False)
            await asyncio.sleep(faults["late_commit"].amount / 1000)
            return True
        if "hang" in faults:
            await _until_disconnect(receive)
            return False
        if "reset" in faults or "close" in faults:
            await _disconnect(scope, receive, hard="reset" in faults)
            return False
        fault = faults.get("status") or faults.get("redirect")
        if fault is None:
            return True
        if "latency" in faults:
            await asyncio.sleep(faults["latency"].amount / 1000)
        await _send(call, self._error(fault), send)
        return False

    def _error(self, fault: Fault) -> _Reply:
        body = self._emulator.error(fault.amount)
        headers = [] if isinstance(body, bytes) else [(b"content-type", b"application/json")]
        if fault.retry_after is not None:
            headers.append((b"retry-after", str(fault.retry_after).encode()))
        if fault.name == "redirect":
            headers.append((b"location", b"http://elsewhere.invalid/"))
        return _Reply(
            status=fault.amount, headers=headers, body=body if isinstance(body, bytes) else ENCODER.encode(body)
        )

    async def _work(self, scope: Scope, body: bytes, faults: dict[str, Fault]) -> _Reply:
        """The reply of the emulator, which is never interrupted."""
        if "latency" in faults:
            scope[PAUSE] = faults["latency"].amount / 1000
        replies = [await self._collect(scope, body) for _ in range(2 if "twice" in faults else 1)]
        reply = replies[faults["twice"].amount - 1 if "twice" in faults else 0]
        if "status_instead" in faults:
            reply.status = faults["status_instead"].amount
        return reply

    async def _collect(self, scope: Scope, body: bytes) -> _Reply:
        reply = _Reply(headers=[])

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status, reply.headers = message["status"], list(message["headers"])
            else:
                reply.body += message.get("body", b"")

        await self._emulator(dict(scope), replay, keep)
        return reply

    def _corrupt(self, reply: _Reply, faults: dict[str, Fault]) -> None:
        if "unknown_effect" in faults:
            reply.body = rewritten(reply.body, self._emulator.unknown_effect)
        if "extra_fields" in faults:
            reply.body = rewritten(reply.body, _with_extra_fields)
        if "huge" in faults:
            padding = {"sandboxPadding": "x" * faults["huge"].amount}
            reply.body = rewritten(reply.body, lambda body: body | padding if isinstance(body, dict) else body)
        if "malformed" in faults:
            reply.body = reply.body[: len(reply.body) // 2] + b",]"
        for name in faults.keys() & _REPLACEMENTS.keys():
            content_type, reply.body = _REPLACEMENTS[name]
            reply.headers = [(b"content-type", content_type)]

    async def _after(
        self, call: Call, reply: _Reply, faults: dict[str, Fault], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if "late_answer" in faults:
            await asyncio.sleep(faults["late_answer"].amount / 1000)
        if "hang_after" in faults:
            await _until_disconnect(receive)
        elif "reset_after" in faults or "close_after" in faults:
            await _disconnect(scope, receive, hard="reset_after" in faults)
        elif "truncated" in faults:
            await _send(call, reply, send, until=len(reply.body) // 2)
            await _disconnect(scope, receive, hard=False)
        elif "wrong_length" in faults:
            await _send_wrong_length(call, reply, faults["wrong_length"].amount, scope, receive)
        elif "status_after" in faults:
            await _send(call, self._error(faults["status_after"]), send)
        elif "drip" in faults:
            await _drip(call, reply, faults["drip"].amount / 1000, receive, send)
        else:
            await _send(call, reply, send)


_PAGE: Final = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
_REPLACEMENTS: Final = {
    "empty": (b"application/json", b""),
    "html": (b"text/html", _PAGE),
    "strange": (b"application/json", b'{"status": "ok", "data": [1, null]}'),
}


def _with_extra_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_extra_fields(element) for element in value]
    if isinstance(value, dict):
        return {k: _with_extra_fields(v) for k, v in value.items()} | {"sandboxExtra": {"nobody": ["knows", 1.5, None]}}
    return value


# --- Sending ----------------------------------------------------------------------------------------------------------


async def _read(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _headers(reply: _Reply, announced: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in reply.headers if name != b"content-length"]
    return [*kept, (b"content-length", str(announced).encode())]


async def _start(call: Call, reply: _Reply, send: Send) -> None:
    call.status = reply.status
    headers = _headers(reply, len(reply.body))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})


async def _send(call: Call, reply: _Reply, send: Send, *, until: int | None = None) -> None:
    """Sends a reply, or only its first `until` bytes, without an end."""
    await _start(call, reply, send)
    await send({"type": "http.response.body", "body": reply.body[:until], "more_body": until is not None})


async def _drip(call: Call, reply: _Reply, pause: float, receive: Receive, send: Send) -> None:
    """Sends a reply byte by byte, `pause` seconds apart, until the client disconnects."""
    await _start(call, reply, send)
    disconnect = asyncio.ensure_future(receive())
    try:
        for byte in reply.body:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            if (await asyncio.wait({disconnect}, timeout=pause))[0]:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        disconnect.cancel()


async def _send_wrong_length(call: Call, reply: _Reply, more: int, scope: Scope, receive: Receive) -> None:
    """Sends a reply with a wrong Content-Length. The server refuses to, so the transport is written to directly."""
    transport = _transport(scope)
    call.status = reply.status
    line = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n".encode()
    named = _headers(reply, max(0, len(reply.body) + more))
    transport.write(line + b"".join(b"%s: %s\r\n" % pair for pair in named) + b"\r\n" + reply.body)
    await _until_disconnect(receive)


def _transport(scope: Scope) -> Any:
    transport = scope.get("state", {}).get(TRANSPORT)
    if transport is None:
        raise ConnectionResetError("the sandbox ends the connection (its server gives no access to it)")
    return transport


async def _disconnect(scope: Scope, receive: Receive, *, hard: bool) -> None:
    """Ends the connection, with a reset (`hard`) or an orderly close."""
    transport = _transport(scope)
    if hard:
        # Lingering for zero seconds makes the system send RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    await _until_disconnect(receive)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
