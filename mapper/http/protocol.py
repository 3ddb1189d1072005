"""One HTTP connection: uvicorn's protocol, with the limits that it lacks.

httptools parses strictly, but limits neither the size of a head nor the time that it may take, and accepts some
requests that this service must refuse. `docs/operations.md` lists what was measured without these limits. The
application limits the body (`mapper.http.endpoint`).
"""

import asyncio
import re
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

LEAVING: Final = "leaving"
"""A key of every scope's state: the process is stopping, so that each response is the last one of its connection."""

RECEIVED: Final = "received"
"""A key of a request's scope state: when the whole request was received, on the monotonic clock."""

Headers = Iterable[tuple[bytes, bytes]]


class PreparedResponse(NamedTuple):
    """An encoded response. The server writes its own header fields between the two parts."""

    status_line: bytes
    rest: bytes
    """The header fields and the body."""


def _header_lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def prepared(status: int, headers: Headers, body: bytes) -> PreparedResponse:
    """Encodes a response. `headers` must include the content's length."""
    return PreparedResponse(STATUS_LINE[status], _header_lines(headers) + b"\r\n" + body)


Shed = Callable[[bytes, bytes], PreparedResponse | None]
"""The type of an application's optional method `shed`. It takes the method and target of a request, and returns the
response with which the protocol refuses the request at once, or None."""


@dataclass(frozen=True)
class Limits:
    """The limits of each connection, and of their number per process. `docs/operations.md` gives the reasons."""

    head_s: float = 5.0
    """From connecting, or from the first byte of a later request, to the end of its head."""
    rest_s: float = 5.0
    """For the rest of a body whose request has been answered already."""
    keep_alive_s: float = 75.0
    """From a response to the next request."""
    unread_s: float = 10.0
    """For a peer that has stopped reading to read on."""
    linger_s: float = 1.0
    """For the peer to read the last response before the connection is aborted."""
    grace_s: float = 1.0
    """A process that stops closes connections that have been idle this long; a request may be on its way on others."""
    head_bytes: int = 16 * 1024
    target_bytes: int = 8 * 1024
    headers: int = 100
    pipelined: int = 8
    """Requests that may wait on a connection while one is answered."""
    connections: int = 1000


_REFUSED_CONNECTIONS = 256
"""Connections above the limit that get a response; any more are aborted."""
_HOST = re.compile(rb"[\w.:\[\]-]+", re.ASCII)
# No percent sign in the path: no route needs one, and `%2f` must not work as `/`.
_TARGET = re.compile(rb"/[\w.~/-]*(\?[!-~]*)?", re.ASCII)


def _refusal(status: int, text: str, *more: tuple[bytes, bytes]) -> bytes:
    body = msgspec.json.encode({"error": text})
    headers = (
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    )
    return b"".join(prepared(status, (*headers, *more), body))


_MALFORMED = _refusal(400, "This is not a well-formed HTTP request.")
_WRONG_HOST = _refusal(400, "A request must have exactly one Host header.")
_WRONG_FRAMING = _refusal(400, "The body's length must be given in one way, by Content-Length or as plain chunks.")
_TRAILERS = _refusal(400, "Header fields after the body are not accepted.")
_NO_UPGRADE = _refusal(400, "This service speaks HTTP/1.1 only.")
_NO_SUCH_TARGET = _refusal(404, "There is no such resource.")
_SLOW_HEAD = _refusal(408, "The head of the request did not arrive in time.")
_LONG_TARGET = _refusal(414, "The request's target is too long.")
_LARGE_HEAD = _refusal(431, "The head of the request is too large.")
_TOO_MANY = _refusal(503, "Too many connections; try again shortly.", (b"retry-after", b"1"))
_WRONG_VERSION = _refusal(505, "This service speaks HTTP/1.1 only.")

_SHED = cast("RequestResponseCycle", SimpleNamespace(response_complete=True, message_event=asyncio.Event()))
"""The cycle of every request that was shed: complete, so that uvicorn discards the rest of its body."""


class _Refused(Exception):
    """Stops the parser when it is raised in a callback."""


class LingeringTransport:
    """uvicorn's transport, with a lingering close (RFC 9112, 9.6).

    `close` ends our side and reads on for a moment. Closing at once would reset the connection if the peer is still
    sending, and the peer might lose the last response.
    """

    def __init__(self, transport: asyncio.Transport, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.write = transport.write
        self.abort = transport.abort
        self._transport = transport
        self._limits = limits
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        if not self.is_closing():
            self._transport.resume_reading()
            self._transport.write_eof()
            self._timer = self._loop.call_later(self._limits.linger_s, self._end)

    def close_if_quiet(self) -> None:
        """Closes, unless the socket holds data that the event loop has not read yet."""
        if not self.is_closing():
            poll = select.poll()
            poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
            if not poll.poll(0):
                self.close()

    def _end(self) -> None:
        if self._transport.get_write_buffer_size():  # unsent data gets a time limit of its own
            self._timer = self._loop.call_later(self._limits.unread_s, self.abort)
        else:
            self.abort()

    def connection_lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class ReadTime:
    """When the event loop began to read in its present turn; shared by all connections.

    All data that is read in a turn had arrived by then, even if reading it takes long.
    """

    def __init__(self) -> None:
        self._started: float | None = None

    def get(self, loop: asyncio.AbstractEventLoop) -> float:
        if self._started is None:
            self._started = time.monotonic()
            loop.call_soon(self._end_turn)
        return self._started

    def _end_turn(self) -> None:
        self._started = None


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with `Limits`. Requests may be pipelined; they are answered one at a time.

    uvicorn's keep-alive timer enforces all time limits of a connection. While a request is being answered, only the
    application limits the time.
    """

    parser: httptools.HttpRequestParser
    transport: LingeringTransport  # type: ignore[assignment]

    def __init__(
        self,
        limits: Limits,
        read_time: ReadTime,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment] # uvicorn's are whole seconds
        self._limits, self._read_time = limits, read_time
        self._shed: Shed | None = getattr(self.app, "shed", None)
        self._answering: RequestResponseCycle | None = None
        """The oldest request without a complete response; `cycle` is the newest request."""
        self._since = self.loop.time()
        """When the present time limit began: at the connection's start, a request's first byte or the last response."""
        self._in_head = self._in_body = False
        self._head_bytes = 0
        """Bytes received of an incomplete head; a lower bound."""
        self._fields_bytes = 0
        """Bytes of the names and values of its header fields."""
        self._message_ended = False
        """Whether a request has ended in the data that is being parsed."""
        self._discarding = False
        """Whether all further data is discarded."""
        self._refusal = _MALFORMED
        self._unread: asyncio.TimerHandle | None = None

    # -- Connecting and closing ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        lingering = LingeringTransport(transport, self._limits, self.loop)
        self.transport = lingering  # pyright: ignore[reportIncompatibleVariableOverride]
        if len(self.connections) > self._limits.connections + _REFUSED_CONNECTIONS:
            self.transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(_TOO_MANY)
        else:
            self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.transport.connection_lost()
        self._unset_keepalive_if_required()
        # Break the reference cycle between this object and pipelined requests.
        self.cycle = self._answering = None  # type: ignore[assignment]
        self.pipeline.clear()
        if self._unread is not None:
            self._unread.cancel()

    def shutdown(self) -> None:
        """Makes the present response the last one, or closes a connection that has been idle for `grace_s`."""
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.response_started:
                self.cycle.keep_alive = False
        elif not (self._in_head or self._in_body) and self.loop.time() >= self._since + self._limits.grace_s:
            self.transport.close_if_quiet()

    def _limit_time(self) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing() or self._discarding:
            return
        if self._in_head or self.cycle is None:
            limit_s = self._limits.head_s
        elif not self.cycle.response_complete:
            return
        else:
            limit_s = self._limits.rest_s if self._in_body else self._limits.keep_alive_s
        self.timeout_keep_alive_task = self.loop.call_at(self._since + limit_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        if self._in_head:
            self._refuse(_SLOW_HEAD)
        elif self._in_body:
            self.transport.close()
        else:
            self.transport.close_if_quiet()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    # -- Receiving -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._discarding or self.transport.is_closing():
            return
        self._message_ended = False
        super().data_received(data)
        if self._in_head and not self._message_ended:
            # If a request has ended in `data`, it is unknown how much of it is the next head: that part is not counted.
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes and not self._discarding:
                self._refuse(_LARGE_HEAD)
        self._limit_time()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._fields_bytes = True, 0, 0
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.target_bytes:
            self._stop_parsing(_LONG_TARGET)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._stop_parsing(_TRAILERS)
        self._fields_bytes += len(name) + len(value)
        if self._fields_bytes > self._limits.head_bytes or len(self.headers) >= self._limits.headers:
            self._stop_parsing(_LARGE_HEAD)
        super().on_header(name, value.rstrip(b" \t"))  # the parser strips white space before it alone

    def on_headers_complete(self) -> None:
        self._in_head = False
        version, upgrade = self.parser.get_http_version(), self.parser.should_upgrade()
        self._check_head(version, upgrade=upgrade)
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY)
        self._in_body = True
        # The parser accepts no request after one to upgrade.
        last = upgrade or version == "1.0" or not self.parser.should_keep_alive() or LEAVING in self.app_state
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._shed and not (last or answering or self.expect_100_continue or self.flow.write_paused):
            response = self._shed(self.parser.get_method(), self.url)
            if response is not None:
                self._send_at_once(response)
                return
        super().on_headers_complete()
        self.cycle.keep_alive = not last

    def _send_at_once(self, response: PreparedResponse) -> None:
        self.cycle = _SHED
        self.transport.write(response.status_line + _header_lines(self.server_state.default_headers) + response.rest)
        self.server_state.total_requests += 1

    def _check_head(self, version: str, *, upgrade: bool) -> None:
        """Refuses heads that other parsers may read differently, and those that no route accepts."""
        if version not in ("1.1", "1.0"):
            self._stop_parsing(_WRONG_VERSION)
        if not _TARGET.fullmatch(self.url):
            self._stop_parsing(_NO_SUCH_TARGET)
        hosts = self._values(b"host")
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            self._stop_parsing(_WRONG_HOST)
        lengths, codings = self._values(b"content-length"), self._values(b"transfer-encoding")
        if codings and ([coding.lower() for coding in codings] != [b"chunked"] or lengths or version == "1.0"):
            self._stop_parsing(_WRONG_FRAMING)
        if upgrade and (codings or any(length != b"0" for length in lengths)):
            self._stop_parsing(_NO_UPGRADE)  # the parser would drop the body

    def _values(self, field: bytes) -> list[bytes]:
        return [value for name, value in self.headers if name == field]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._message_ended = False, True
        if self.cycle is self._answering:
            self.cycle.scope.setdefault("state", {})[RECEIVED] = self._read_time.get(self.loop)

    # -- Answering -----------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if not self._in_head:
            self._since = self.loop.time()
        super().on_response_complete()
        if self._in_head or self._in_body:
            self._limit_time()

    # -- Refusing ------------------------------------------------------------------------------------------------------

    def _stop_parsing(self, refusal: bytes) -> None:
        """Stops the parser from within a callback; uvicorn then calls `send_400_response`."""
        self._refusal = refusal
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, refusal: bytes) -> None:
        """Refuses the newest request and closes the connection, once the requests before it are answered."""
        if self.transport.is_closing():
            return
        self._discarding = True
        self._unset_keepalive_if_required()
        newest = self.cycle
        if newest is None or newest.response_complete:
            self.transport.write(refusal)
            self.transport.close()
        elif not self._in_body:
            newest.keep_alive = False
        elif self.pipeline:  # the newest request will never be complete; the one before it is the last
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast("RequestResponseCycle", self._answering)
            self.cycle.keep_alive = False
        else:
            newest.disconnected = True
            newest.message_event.set()
            if not newest.response_started:
                self.transport.write(refusal)
            self.transport.close()
