"""One connection: httptools parses, the application answers through ASGI, and both within limits.

uvicorn's own protocol is made for every application. This one is not: it sends no answer without knowing its length and
speaks no WebSocket, and what is left costs half as much. httptools parses strictly, but does not limit how long a head
may take or how large it may be, and some of what it lets through has no business here: `docs/operations.md` lists what
was measured without these limits. What a body may cost is known to the application alone (`mapper.http.app`).
"""

import asyncio
import logging
import re
import select
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any, Final, NamedTuple, cast

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

log = logging.getLogger("mapper")

LEAVING: Final = "leaving"
"""In the state of every scope: this process is going to stop; each answer is the last one of its connection."""
WHOLE: Final = "whole"
"""In that of one request: its body has been received completely."""
LET_IN: Final = "let_in"
"""The same: the application was asked whether to turn it away, and has not done so."""

Message = MutableMapping[str, Any]
Headers = Iterable[tuple[bytes, bytes]]


class Ready(NamedTuple):
    """An answer that is there before it is asked for."""

    status_line: bytes
    rest: bytes
    """From the header fields on; those that the server adds go between."""


def _lines(headers: Headers) -> list[bytes]:
    return [b"%b: %b\r\n" % header for header in headers]


def ready(status: int, headers: Headers, body: bytes) -> Ready:
    return Ready(_STATUS_LINES[status], b"".join(_lines(headers)) + b"\r\n" + body)


App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_NOT_EVEN_REFUSED = 256
_HOST = re.compile(rb"[\w.:\[\]-]+", re.ASCII)
# No percent sign: there is no path here that needs one, and `%2f` must not lead where `/` leads.
_TARGET = re.compile(rb"/[\w.~/-]*(\?[!-~]*)?", re.ASCII)
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


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
    """For the peer to read why it was refused, before the connection is closed for good."""
    grace_s: float = 1.0
    """A process that stops closes a connection that has been idle for this long: its next request is not on its way."""
    head_bytes: int = 16 * 1024
    target_bytes: int = 8 * 1024
    headers: int = 100
    pipelined: int = 8
    """Further requests that may have been sent on a connection while one is answered."""
    connections: int = 1000


class _Refusal:
    """Why a connection is closed, as prepared bytes."""

    def __init__(self, status: int, text: str, *headers: str) -> None:
        body = msgspec.json.encode({"error": text})
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            f"content-length: {len(body)}",
            "connection: close",
            *headers,
        ]
        self.answer = "\r\n".join([*lines, "", ""]).encode() + body


_MALFORMED = _Refusal(400, "This is not a well-formed HTTP request.")
_WRONG_HOST = _Refusal(400, "A request names its host exactly once.")
_WRONG_FRAMING = _Refusal(400, "The body's length must be given in one way, by Content-Length or as plain chunks.")
_TRAILERS = _Refusal(400, "Header fields after the body are not taken.")
_NO_UPGRADE = _Refusal(400, "This service speaks HTTP/1.1 only.")
_NO_SUCH_TARGET = _Refusal(404, "There is nothing here by this name.")
_SLOW_HEAD = _Refusal(408, "The head of the request did not arrive in time.")
_LONG_TARGET = _Refusal(414, "The request's target is too long.")
_LARGE_HEAD = _Refusal(431, "The head of the request is too large.")
_FAULT = _Refusal(500, "The service has failed.")
_TOO_MANY = _Refusal(503, "Too many connections; try again shortly.", "retry-after: 1")
_WRONG_VERSION = _Refusal(505, "This service speaks HTTP/1.1 only.")


class _Stop(Exception):
    """Raised in the parser's callbacks, to stop it."""


class _Exchange:
    """One request and its answer, as the application sees them: ASGI's `receive` and `send`."""

    def __init__(
        self, connection: "Connection", scope: dict[str, Any], *, keep_alive: bool, must_continue: bool
    ) -> None:
        self.keep_alive = keep_alive
        """Whether the connection goes on after the answer."""
        self.body: list[bytes] = []
        """The parts received, and not yet taken by the application."""
        self.body_bytes = 0
        self.more_body = True
        self.disconnected = False
        self.started = False
        self.complete = False
        self.news = asyncio.Event()
        """Something has changed for who waits in `receive`."""
        self._connection = connection
        self._scope = scope
        self._must_continue = must_continue
        self._missing: int | None = None
        """Bytes of the answer's body that are still to be sent; None where its head does not say."""
        self.head = b""
        """The answer's head, until it goes out together with the first part of the body."""

    async def run(self, app: App) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("application failed")
        if not (self.complete or self.disconnected):
            self._connection.give_up(self)

    async def receive(self) -> Message:
        if self._must_continue:
            self._must_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not (self.disconnected or self.complete):
            self._connection.flow.resume_reading()
            await self.news.wait()
            self.news.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body = b"".join(self.body)
        self.body, self.body_bytes = [], 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        if self._connection.flow.write_paused and not self.disconnected:
            await self._connection.flow.drain()
        if self.disconnected:
            return
        if not self.started:
            self._must_continue = False
            self.head = self._head(message["status"], message.get("headers", ()))
            self.started = True
        else:
            self._send_body(message.get("body", b""), last=not message.get("more_body"))

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = [_STATUS_LINES[status]]
        for name, value in chain(self._connection.server_state.default_headers, headers):
            if name == b"content-length":
                self._missing = int(value)
            elif name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._scope["method"] == "HEAD":
            self._missing = 0
        elif self._missing is None:
            self.keep_alive = False  # its end is that of the connection
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ValueError("a header of the answer holds the end of a line")
        return head + b"\r\n"

    def _send_body(self, body: bytes, *, last: bool) -> None:
        if self._scope["method"] == "HEAD":
            body = b""
        if self._missing is not None:
            self._missing -= len(body)
            if self._missing < 0 or (last and self._missing):
                raise ValueError("an answer is not as long as its head says")
        self._connection.write(self.head + body)
        self.head = b""
        if last:
            self.complete = True
            self.news.set()
            self._connection.answered(self)


def _nobody(method: bytes, target: bytes) -> None:
    """For an application without `turn_away`."""


class Connection(asyncio.Protocol):
    """Within limits. The parser calls the methods `on_…`; requests may be sent ahead, one is answered at a time.

    A connection is always under one time limit: `_timer` (head, rest of an answered body, goodbye), between requests
    `_keep_alive`, and while a request is answered the application's own.
    """

    def __init__(
        self,
        limits: Limits,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """The names of the last four are uvicorn's."""
        self.server_state = server_state
        self._limits = limits
        self._app = cast("App", config.loaded_app)
        self._turn_away: Callable[[bytes, bytes], Ready | None] = getattr(self._app, "turn_away", _nobody)
        self._turned_away: _Exchange | None = None
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        # Requests that were sent ahead of the last one are answered, although it says that the connection ends.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._exchange: _Exchange | None = None
        """The newest."""
        self._ahead: deque[_Exchange] = deque()
        """Those that wait for their turn; the first is the next."""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        """Goes on while requests come and go, since setting it anew for each would cost more than to parse it."""
        self._idle_since: float | None = self._loop.time()
        """None while a request is being sent or answered."""
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        """Received of a head that is not complete."""
        self._fields_bytes = 0
        """Names and values of its header fields."""
        self._messages = 0
        """Requests that were received completely."""
        self._refusal = _MALFORMED
        self._deaf = False
        """Whatever else comes is thrown away."""
        self._lingering = False

    # -- Connecting and closing ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.flow = FlowControl(transport)
        self._peers = get_local_addr(transport), get_remote_addr(transport)
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        count = len(self.server_state.connections)
        if count > self._limits.connections + _NOT_EVEN_REFUSED:
            transport.abort()
        elif count > self._limits.connections:
            self._refuse(_TOO_MANY)
        else:
            self._limit(self._limits.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        if self._exchange is not None:
            self._exchange.disconnected = not self._exchange.complete
            self._exchange.news.set()
        self.flow.resume_writing()
        self._parser = self._exchange = self._turned_away = None  # each of them holds this object
        self._unlimit()
        self._stop_keep_alive()
        if self._unread is not None:
            self._unread.cancel()

    def leave(self, grace_s: float | None) -> None:
        """The process stops: whatever is being answered is the last, and once idle for `grace_s` it closes."""
        if self._exchange is not None and not self._exchange.complete:
            if not self._exchange.started:
                self._exchange.keep_alive = False
        elif grace_s is not None and self._idle_since is not None and self._loop.time() >= self._idle_since + grace_s:
            self._close_if_quiet()

    def _idle_too_long(self) -> None:
        self._keep_alive = None
        if self._idle_since is None:
            return  # set again after the answer
        left_s = self._idle_since + self._limits.keep_alive_s - self._loop.time()
        if left_s > 0:
            self._keep_alive = self._loop.call_later(left_s, self._idle_too_long)
        else:
            self._close_if_quiet()

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head:
            self._refuse(_SLOW_HEAD)
        else:
            self._close_if_quiet()

    def _close_if_quiet(self) -> None:
        """Closes, unless something has arrived that the event loop has not come to read."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        if not poll.poll(0):
            self._hang_up()

    def _hang_up(self) -> None:
        """Closes. What is still to be sent gets its time, and no more."""
        self._unlimit()
        self._stop_keep_alive()
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._limit(self._limits.unread_s, self.transport.abort)

    def _linger(self) -> None:
        """Ends our side and throws away what still comes, for a moment.

        Closed at once, the connection would be reset, and the peer might never read what was written (RFC 9112, 9.6).
        """
        if self.transport.is_closing() or self._lingering:
            return
        self._deaf = self._lingering = True
        self._stop_keep_alive()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._limit(self._limits.linger_s, self._hang_up)

    def _limit(self, seconds: float, action: Callable[[], None]) -> None:
        self._unlimit()
        self._timer = self._loop.call_later(seconds, action)

    def _unlimit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_keep_alive(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None

    # -- Receiving -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        messages = self._messages
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        except httptools.HttpParserUpgrade:
            pass  # there is nothing else to be spoken here
        if self._deaf or self.transport.is_closing():
            return
        if self._in_head:
            # Where a request has ended in `data`, nobody knows how much of it belongs to the next: count from here on.
            self._head_bytes += len(data) if self._messages == messages else 0
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(_LARGE_HEAD)
            elif self._timer is None:
                self._limit(self._limits.head_s, self._too_slow)
        elif self._exchange is not None and self._exchange.complete:
            if not self._in_body:
                self._rest()
            elif self._timer is None:
                self._limit(self._limits.rest_s, self._linger)

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._must_continue = False
        self._in_head, self._head_bytes, self._fields_bytes = True, 0, 0
        self._idle_since = None

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.target_bytes:
            self._stop_parsing(_LONG_TARGET)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._stop_parsing(_TRAILERS)
        self._fields_bytes += len(name) + len(value)
        if self._fields_bytes > self._limits.head_bytes or len(self._headers) >= self._limits.headers:
            self._stop_parsing(_LARGE_HEAD)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._must_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unlimit()
        version, upgrade = self._parser.get_http_version(), self._parser.should_upgrade()
        self._judge_head(version, upgrade=upgrade)
        if len(self._ahead) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY)
        self._in_body = True
        answering = self._exchange is not None and not self._exchange.complete
        # After a request to upgrade the parser takes nothing any more.
        ends = upgrade or version == "1.0" or not self._parser.should_keep_alive() or self._app_state.get(LEAVING)
        ask = not (answering or ends or self._must_continue or self.flow.write_paused)
        if ask and (answer := self._turn_away(self._parser.get_method(), self._url)) is not None:
            self._refuse_at_once(answer)
            return
        self._state = self._app_state.copy()
        self._state[LET_IN] = ask
        self._exchange = _Exchange(self, self._scope(version), keep_alive=not ends, must_continue=self._must_continue)
        if answering:
            self.flow.pause_reading()
            self._ahead.append(self._exchange)
        else:
            self._start(self._exchange)

    def _refuse_at_once(self, answer: Ready) -> None:
        """Without a task, an exchange of its own and all else that an answer costs: there are many when it matters."""
        if self._turned_away is None:
            self._turned_away = _Exchange(self, {}, keep_alive=True, must_continue=False)
            self._turned_away.complete = True
        self._exchange = self._turned_away  # what is left of the body is thrown away
        self.write(b"".join((answer.status_line, *_lines(self.server_state.default_headers), answer.rest)))
        self.server_state.total_requests += 1

    def _scope(self, version: str) -> dict[str, Any]:
        raw_path, _, query = self._url.partition(b"?")
        server, client = self._peers
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": server,
            "client": client,
            "scheme": "http",
            "root_path": "",
            "method": self._parser.get_method().decode("ascii"),
            "path": raw_path.decode("ascii"),
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._state,
        }

    def _start(self, exchange: _Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._app))
        self.server_state.tasks.add(task)  # the event loop alone would let it be collected
        task.add_done_callback(self.server_state.tasks.discard)

    def _judge_head(self, version: str, *, upgrade: bool) -> None:
        """Refuses what other parsers might understand in another way, and what no route must ever see."""
        if version not in ("1.1", "1.0"):
            self._stop_parsing(_WRONG_VERSION)
        if not _TARGET.fullmatch(self._url):
            self._stop_parsing(_NO_SUCH_TARGET)
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            self._stop_parsing(_WRONG_HOST)
        lengths = [value for name, value in self._headers if name == b"content-length"]
        codings = [value.lower() for name, value in self._headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or lengths or version == "1.0"):
            self._stop_parsing(_WRONG_FRAMING)
        if upgrade and (codings or any(length != b"0" for length in lengths)):
            self._stop_parsing(_NO_UPGRADE)  # the parser would lose the body

    def on_body(self, body: bytes) -> None:
        assert self._exchange is not None
        if self._exchange.complete:
            return
        self._exchange.body.append(body)
        self._exchange.body_bytes += len(body)
        if self._exchange.body_bytes > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self._exchange.news.set()

    def on_message_complete(self) -> None:
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.more_body = False
            self._exchange.news.set()
            self._state[WHOLE] = True
        self._in_body = False
        self._messages += 1

    # -- Answering -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def answered(self, exchange: _Exchange) -> None:
        self.server_state.total_requests += 1
        if not exchange.keep_alive:
            self._goodbye()
        if self._lingering or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._ahead:
            self._start(self._ahead.popleft())
        elif self._deaf:
            self._linger()
        elif self._in_body:
            self._limit(self._limits.rest_s, self._linger)
        elif not self._in_head:
            self._rest()

    def give_up(self, exchange: _Exchange) -> None:
        """The application has ended without an answer, or in the middle of one."""
        if exchange.head or not exchange.started:
            self.write(_FAULT.answer)
        self._goodbye()

    def _goodbye(self) -> None:
        """The answer that has just been written is the connection's last."""
        if self._in_body or self._deaf:
            self._linger()
        else:
            self._hang_up()

    def _rest(self) -> None:
        """Nothing is asked, nothing owed."""
        self._unlimit()
        self._idle_since = self._loop.time()
        if self._keep_alive is None:
            self._keep_alive = self._loop.call_later(self._limits.keep_alive_s, self._idle_too_long)

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self._unread = self._loop.call_later(self._limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    # -- Refusing ------------------------------------------------------------------------------------------------------

    def _stop_parsing(self, refusal: _Refusal) -> None:
        """From within the parser: it stops, and `send_400_response` is called."""
        self._refusal = refusal
        raise _Stop

    def _refuse(self, refusal: _Refusal) -> None:
        """Answers what came last with a refusal and closes; what came before it on the connection is answered first."""
        self._deaf = True
        self._unlimit()
        newest = self._exchange
        if newest is not None and not newest.complete:
            if self._ahead or not self._in_body:
                if self._in_body:
                    self._ahead.pop()  # the newest: it will never be complete
                else:
                    newest.keep_alive = False
                return
            newest.disconnected = True
            newest.news.set()
            if newest.started:
                self._linger()
                return
        self.transport.write(refusal.answer)
        self._linger()
