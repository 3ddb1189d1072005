"""Faults: how an engine and the wire to it fail, one by one, on request.

`FAULTS` lists them. `FaultyEngine` lies around one emulator, keeps the log and does what the faults of a request say,
in the order of time: before the engine works, while it works, after it, and to its answer. So any two that do not
exclude each other can meet one request.

Those that break the connection need the server's transport: `mapper.sandbox.host.Connection` puts it into the scope.
Under a server that does not, they raise `ConnectionResetError` instead.
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
"""In the state of a scope: the transport that the request came by."""

HEADER: Final = "x-sandbox-fault"

FAULTS: Final[dict[str, tuple[int, str]]] = {
    "latency": (300, "waits so many ms in the middle of the work, before it commits"),
    "late_answer": (300, "commits, then waits so many ms before it answers"),
    "late_commit": (300, "closes the connection without an answer and commits so many ms later"),
    "hang": (0, "never answers, without doing anything"),
    "hang_after": (0, "does it, and never answers"),
    "twice": (2, "gets the request twice, as from a proxy that repeats it; sends the answer to the first or second"),
    "status": (503, "answers this status, without doing anything"),
    "status_after": (500, "does it, and answers this status"),
    "status_instead": (201, "does it, and sends its answer under this status"),
    "reset": (0, "resets the connection, without doing anything"),
    "reset_after": (0, "does it, and resets the connection without an answer"),
    "close": (0, "closes the connection, without doing anything"),
    "close_after": (0, "does it, and closes the connection without an answer"),
    "redirect": (307, "answers a redirect of this status to another host, without doing anything"),
    "drip": (20, "sends the body byte by byte, so many ms apart"),
    "truncated": (0, "announces the whole body, sends half of it and closes the connection"),
    "wrong_length": (16, "announces so many bytes more than it sends (below zero: less), and keeps the connection"),
    "malformed": (0, "sends a body that is not JSON"),
    "empty": (0, "sends an empty body"),
    "html": (0, "sends the page of a gateway instead of its body"),
    "strange": (0, "sends JSON that is none of its answers"),
    "huge": (4_000_000, "sends a body longer by so many bytes"),
    "unknown_effect": (0, "adds an effect nobody knows"),
    "extra_fields": (0, "adds a field nobody knows to every object"),
}
"""Each fault with its default value and what the engine then does."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of fault, and which requests it meets."""

    name: str
    value: int | None = None
    """Milliseconds, bytes or status: see `FAULTS`."""
    retry_after: int | None = None
    """For a status: the header, in seconds."""
    skip: int = 0
    """How many requests that match pass before the first that it meets."""
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


class Armed:
    """A fault that has been set, with what is left of its count."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count
        self._skip = fault.skip
        self._dice = random.Random(fault.seed)  # noqa: S311 - a repeatable draw, nothing secret

    def meets(self, call: Call) -> bool:
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
    """The faults that are set, and the log of what came in."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.log: deque[Call] = deque(maxlen=_LOG_SIZE)
        self.counts: Counter[str] = Counter()
        self._armed: list[Armed] = []

    def set_faults(self, faults: list[Fault]) -> None:
        """Replaces all faults that were set."""
        self._armed = [Armed(fault) for fault in faults]

    def faults(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(armed.fault) | {"left": armed.left} for armed in self._armed]

    def write(self, call: Call) -> None:
        self.log.append(call)
        self.counts[f"{call.engine} {call.operation}"] += 1

    def faults_for(self, call: Call) -> dict[str, Fault]:
        """Those that were set and meet this call, and those of its own header. Raises `ValueError`."""
        own = from_header(call.headers.get(HEADER, ""))
        call.faults = []
        met = {armed.fault.name: armed.fault for armed in self._armed if armed.meets(call)}
        met |= {fault.name: fault for fault in own}
        call.faults = list(met)
        return met


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


class _Answer(msgspec.Struct, kw_only=True):
    """What an emulator answered, collected."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""


class FaultyEngine:
    """Pure ASGI around one emulator: keeps the log, and does what the faults of a request say."""

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
        answer = await self._work(scope, body, faults)
        self._garble(answer, faults)
        await self._after(call, answer, faults, scope, receive, send)

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
        """The faults that come before the engine works; whether it gets the request at all."""
        if "late_commit" in faults:
            await _disconnect(scope, receive, hard=False)
            await asyncio.sleep(faults["late_commit"].amount / 1000)
            return True
        if "hang" in faults:
            await _until_gone(receive)
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

    def _error(self, fault: Fault) -> _Answer:
        body = self._emulator.error(fault.amount)
        headers = [] if isinstance(body, bytes) else [(b"content-type", b"application/json")]
        if fault.retry_after is not None:
            headers.append((b"retry-after", str(fault.retry_after).encode()))
        if fault.name == "redirect":
            headers.append((b"location", b"http://elsewhere.invalid/"))
        return _Answer(
            status=fault.amount, headers=headers, body=body if isinstance(body, bytes) else ENCODER.encode(body)
        )

    async def _work(self, scope: Scope, body: bytes, faults: dict[str, Fault]) -> _Answer:
        """What the emulator answers. It is never interrupted: what it does counts, whoever waits for it."""
        if "latency" in faults:
            scope[PAUSE] = faults["latency"].amount / 1000
        answers = [await self._collect(scope, body) for _ in range(2 if "twice" in faults else 1)]
        answer = answers[faults["twice"].amount - 1 if "twice" in faults else 0]
        if "status_instead" in faults:
            answer.status = faults["status_instead"].amount
        return answer

    async def _collect(self, scope: Scope, body: bytes) -> _Answer:
        answer = _Answer(headers=[])

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], list(message["headers"])
            else:
                answer.body += message.get("body", b"")

        await self._emulator(dict(scope), replay, keep)
        return answer

    def _garble(self, answer: _Answer, faults: dict[str, Fault]) -> None:
        if "unknown_effect" in faults:
            answer.body = rewritten(answer.body, self._emulator.unknown_effect)
        if "extra_fields" in faults:
            answer.body = rewritten(answer.body, _with_extra_fields)
        if "huge" in faults:
            padding = {"sandboxPadding": "x" * faults["huge"].amount}
            answer.body = rewritten(answer.body, lambda reply: reply | padding if isinstance(reply, dict) else reply)
        if "malformed" in faults:
            answer.body = answer.body[: len(answer.body) // 2] + b",]"
        for name in faults.keys() & _INSTEAD.keys():
            content_type, answer.body = _INSTEAD[name]
            answer.headers = [(b"content-type", content_type)]

    async def _after(
        self, call: Call, answer: _Answer, faults: dict[str, Fault], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if "late_answer" in faults:
            await asyncio.sleep(faults["late_answer"].amount / 1000)
        if "hang_after" in faults:
            await _until_gone(receive)
        elif "reset_after" in faults or "close_after" in faults:
            await _disconnect(scope, receive, hard="reset_after" in faults)
        elif "truncated" in faults:
            await _send(call, answer, send, until=len(answer.body) // 2)
            await _disconnect(scope, receive, hard=False)
        elif "wrong_length" in faults:
            await _misannounce(call, answer, faults["wrong_length"].amount, scope, receive)
        elif "status_after" in faults:
            await _send(call, self._error(faults["status_after"]), send)
        elif "drip" in faults:
            await _drip(call, answer, faults["drip"].amount / 1000, receive, send)
        else:
            await _send(call, answer, send)


_PAGE: Final = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
_INSTEAD: Final = {
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


def _headers(answer: _Answer, announced: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in answer.headers if name != b"content-length"]
    return [*kept, (b"content-length", str(announced).encode())]


async def _start(call: Call, answer: _Answer, send: Send) -> None:
    call.status = answer.status
    headers = _headers(answer, len(answer.body))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})


async def _send(call: Call, answer: _Answer, send: Send, *, until: int | None = None) -> None:
    """Sends an answer, or only `until` some length, with no end to it."""
    await _start(call, answer, send)
    await send({"type": "http.response.body", "body": answer.body[:until], "more_body": until is not None})


async def _drip(call: Call, answer: _Answer, pause: float, receive: Receive, send: Send) -> None:
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


async def _misannounce(call: Call, answer: _Answer, more: int, scope: Scope, receive: Receive) -> None:
    """Writes an answer whose length is not what it says. The server would not, so the bytes go out by hand."""
    transport = _transport(scope)
    call.status = answer.status
    line = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n".encode()
    named = _headers(answer, max(0, len(answer.body) + more))
    transport.write(line + b"".join(b"%s: %s\r\n" % pair for pair in named) + b"\r\n" + answer.body)
    await _until_gone(receive)


def _transport(scope: Scope) -> Any:
    transport = scope.get("state", {}).get(TRANSPORT)
    if transport is None:
        raise ConnectionResetError("the sandbox ends the connection (its server gives no access to it)")
    return transport


async def _disconnect(scope: Scope, receive: Receive, *, hard: bool) -> None:
    """Ends the connection without (the rest of) an answer: with a reset, or with an orderly close."""
    transport = _transport(scope)
    if hard:
        # Lingering for zero seconds makes the system send RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    await _until_gone(receive)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
