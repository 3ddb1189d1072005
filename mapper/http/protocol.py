"""One connection: uvicorn's own protocol, with the limits that it lacks.

httptools parses strictly, but does not limit how long a head may take or how large it may be, and some of what it lets
through has no business here. `docs/operations.md` lists what was measured without these limits. What a body may cost is
known to the application alone (`mapper.http.app`).
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
"""In the state of every scope: this process is going to stop; each answer is the last one of its connection."""

RECEIVED: Final = "received"
"""In the state of each request's scope: since when the whole request has been here, on the monotonic clock."""

Headers = Iterable[tuple[bytes, bytes]]


class PreparedResponse(NamedTuple):
    """A response that is bytes before it is asked for."""

    status_line: bytes
    rest: bytes
    """From the header fields on; those that the server adds go between."""


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def prepared(status: int, headers: Headers, body: bytes) -> PreparedResponse:
    """`headers` hold the content's length."""
    return PreparedResponse(STATUS_LINE[status], _lines(headers) + b"\r\n" + body)


Shed = Callable[[bytes, bytes], PreparedResponse | None]
"""An application may have this as its attribute `shed`: for a method and a target the response that needs no call."""


@dataclass(frozen=True)
class Limits:
    """What one process grants. `docs/operations.md` says why each is what it is."""

    head_s: float = 5.0
    """From connecting, or from the first byte of a further request, until its head is complete."""
    rest_s: float = 5.0
    """For the rest of a body that nobody waits for any more, since it has been answered already."""
    keep_alive_s: float = 75.0
    """Between an answer and the next request."""
    unread_s: float = 10.0
    """For the peer to read on, once what is written to it piles up."""
    linger_s: float = 1.0
    """For the peer to read the last answer, before the connection is closed for good."""
    grace_s: float = 1.0
    """A process that stops closes a connection that has been idle for this long: its next request is not on its way."""
    head_bytes: int = 16 * 1024
    target_bytes: int = 8 * 1024
    headers: int = 100
    pipelined: int = 8
    """Further requests that may have been sent on a connection while one is answered."""
    connections: int = 1000


_NOT_EVEN_REFUSED = 256
"""So many connections above the limit are refused; those beyond are aborted."""
_HOST = re.compile(rb"[\w.:\[\]-]+", re.ASCII)
# No percent sign: there is no path here that needs one, and `%2f` must not lead where `/` leads.
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
_WRONG_HOST = _refusal(400, "A request names its host exactly once.")
_WRONG_FRAMING = _refusal(400, "The body's length must be given in one way, by Content-Length or as plain chunks.")
_TRAILERS = _refusal(400, "Header fields after the body are not taken.")
_NO_UPGRADE = _refusal(400, "This service speaks HTTP/1.1 only.")
_NO_SUCH_TARGET = _refusal(404, "There is nothing here by this name.")
_SLOW_HEAD = _refusal(408, "The head of the request did not arrive in time.")
_LONG_TARGET = _refusal(414, "The request's target is too long.")
_LARGE_HEAD = _refusal(431, "The head of the request is too large.")
_TOO_MANY = _refusal(503, "Too many connections; try again shortly.", (b"retry-after", b"1"))
_WRONG_VERSION = _refusal(505, "This service speaks HTTP/1.1 only.")

_SHED = cast("RequestResponseCycle", SimpleNamespace(response_complete=True, message_event=asyncio.Event()))
"""The cycle of each request that was shed: it is answered, and what is left of its body is thrown away."""


class _Refused(Exception):
    """Raised in the parser's callbacks, to stop it."""


class LingeringTransport:
    """What uvicorn writes to and closes. Closed, it ends our side and reads on for a moment.

    Else the connection would be reset where something is still coming, and the peer might never read what was written
    (RFC 9112, 9.6).
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
        """Closes, unless something has arrived that the event loop has not come to read."""
        if not self.is_closing():
            poll = select.poll()
            poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
            if not poll.poll(0):
                self.close()

    def _end(self) -> None:
        """What is still to be sent gets its time, and no more."""
        if self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(self._limits.unread_s, self.abort)
        else:
            self.abort()

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Arrival:
    """When the event loop came to read: all that it reads in one turn was there by then, however long that takes.

    Of all connections in one event loop.
    """

    def __init__(self) -> None:
        self._at: float | None = None

    def moment(self, loop: asyncio.AbstractEventLoop) -> float:
        if self._at is None:
            self._at = time.monotonic()
            loop.call_soon(self._forget)
        return self._at

    def _forget(self) -> None:
        self._at = None


class GuardedProtocol(HttpToolsProtocol):
    """Requests may be pipelined; one is answered at a time. uvicorn's keep-alive timer holds every limit of time here.

    While a request is answered there is no such limit but the application's own.
    """

    parser: httptools.HttpRequestParser
    transport: LingeringTransport  # type: ignore[assignment]

    def __init__(
        self,
        limits: Limits,
        arrival: Arrival,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment] # uvicorn's are whole seconds
        self._limits, self._arrival = limits, arrival
        self._shed: Shed | None = getattr(self.app, "shed", None)
        self._answering: RequestResponseCycle | None = None
        """The oldest request that is not answered, while `cycle` is the newest."""
        self._since = self.loop.time()
        """Of the connection's start, of a request's first byte or of the last answer: what came last."""
        self._in_head = self._in_body = False
        self._head_bytes = 0
        """Received of a head that is not complete, as far as it is known."""
        self._fields_bytes = 0
        """Names and values of its header fields."""
        self._message_ended = False
        """In the data that is being parsed."""
        self._discarding = False
        """Whatever else comes is thrown away."""
        self._refusal = _MALFORMED
        self._unread: asyncio.TimerHandle | None = None

    # -- Connecting and closing ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        lingering = LingeringTransport(transport, self._limits, self.loop)
        self.transport = lingering  # pyright: ignore[reportIncompatibleVariableOverride]
        if len(self.connections) > self._limits.connections + _NOT_EVEN_REFUSED:
            self.transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(_TOO_MANY)
        else:
            self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.transport.lost()
        self._unset_keepalive_if_required()
        # Requests that have not begun hold this object, which holds them.
        self.cycle = self._answering = None  # type: ignore[assignment]
        self.pipeline.clear()
        if self._unread is not None:
            self._unread.cancel()

    def shutdown(self) -> None:
        """The process stops: whatever is being answered is the last, and a connection that is idle for long closes."""
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
            # Where a request has ended in `data`, nobody knows how much of it belongs to the next: count from here on.
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
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        version, upgrade = self.parser.get_http_version(), self.parser.should_upgrade()
        self._judge_head(version, upgrade=upgrade)
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY)
        self._in_body = True
        # After a request to upgrade the parser takes nothing any more.
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
        self.transport.write(response.status_line + _lines(self.server_state.default_headers) + response.rest)
        self.server_state.total_requests += 1

    def _judge_head(self, version: str, *, upgrade: bool) -> None:
        """Refuses what other parsers might understand in another way, and what no route must ever see."""
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
            self._stop_parsing(_NO_UPGRADE)  # the parser would lose the body

    def _values(self, field: bytes) -> list[bytes]:
        return [value for name, value in self.headers if name == field]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._message_ended = False, True
        if self.cycle is self._answering:
            self.cycle.scope.setdefault("state", {})[RECEIVED] = self._arrival.moment(self.loop)

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
        """From within the parser: it stops, and `send_400_response` is called."""
        self._refusal = refusal
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, refusal: bytes) -> None:
        """Answers what came last with a refusal and closes; what came before it on the connection is answered first."""
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
        elif self.pipeline:  # the newest will never be complete: the one before it is the last
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast("RequestResponseCycle", self._answering)
            self.cycle.keep_alive = False
        else:
            newest.disconnected = True
            newest.message_event.set()
            if not newest.response_started:
                self.transport.write(refusal)
            self.transport.close()
