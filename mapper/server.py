"""How uvicorn serves the service: what a connection may cost, and how a process ends without losing a request.

`Connection` is uvicorn's protocol with limits. httptools parses strictly, but neither it nor uvicorn limits how long a
head may take or how large it may be, and some of what they let through has no business here: `docs/operations.md` lists
what was measured without these limits. What a body may cost is known to the application alone (`mapper.app`).

`Server` is uvicorn's server with another end. uvicorn's own closes idle connections while their next request is on its
way, resets those that wait to be accepted, and ends with the signal's exit code instead of 0.
"""

import asyncio
import re
import select
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, Final, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mapper import workers

DRAINING: Final = "draining"
"""In the scope's state: the whole service is going to stop, so that `/readyz` must say so."""
LEAVING: Final = "leaving"
"""Likewise: this process is going to stop; each answer is the last one of its connection."""

WHOLE: Final = "whole"
"""Likewise, in that of one request: its body has been received completely."""

PATIENCE_S: Final = 25.0
"""How long a process that stops waits for the answers it owes."""

_TICK_S = 0.02
_NOT_EVEN_REFUSED = 256
_HOST = re.compile(rb"[\w.:\[\]-]+", re.ASCII)
# No percent sign: there is no path here that needs one, and `%2f` must not lead where `/` leads.
_TARGET = re.compile(rb"/[\w.~/-]*(\?[!-~]*)?", re.ASCII)


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
_TOO_MANY = _Refusal(503, "Too many connections; try again shortly.", "retry-after: 1")
_WRONG_VERSION = _Refusal(505, "This service speaks HTTP/1.1 only.")


class _Stop(Exception):
    """Raised in the parser's callbacks, to stop it."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, within limits. See there for what calls what; the parser calls the methods `on_…`.

    A connection is always under one time limit: `_timer` (head, rest of an answered body, goodbye), between requests
    `_keep_alive`, and while a request is answered the application's own. uvicorn's keep-alive timer is never set.
    """

    def __init__(
        self,
        limits: Limits,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        """Goes on while requests come and go, since setting it anew for each would cost more than to parse it."""
        self._idle_since: float | None = self.loop.time()
        """None while a request is being sent or answered."""
        self._answering = cast("asyncio.Transport", _Answering(self))
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
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections + _NOT_EVEN_REFUSED:
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(_TOO_MANY)
        else:
            self._limit(self._limits.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unlimit()
        self._stop_keep_alive()
        if self._unread is not None:
            self._unread.cancel()

    def leave(self, grace_s: float | None) -> None:
        """The process stops: whatever is being answered is the last, and once idle for `grace_s` it closes."""
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.response_started:
                self.cycle.keep_alive = False
        elif grace_s is not None and self._idle_since is not None and self.loop.time() >= self._idle_since + grace_s:
            self._close_if_quiet()

    def _idle_too_long(self) -> None:
        self._keep_alive = None
        if self._idle_since is None:
            return  # set again after the answer
        left_s = self._idle_since + self._limits.keep_alive_s - self.loop.time()
        if left_s > 0:
            self._keep_alive = self.loop.call_later(left_s, self._idle_too_long)
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
        self._timer = self.loop.call_later(seconds, action)

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
        super().data_received(data)
        if self._deaf or self.transport.is_closing():
            return
        if self._in_head:
            # Where a request has ended in `data`, nobody knows how much of it belongs to the next: count from here on.
            self._head_bytes += len(data) if self._messages == messages else 0
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(_LARGE_HEAD)
            elif self._timer is None:
                self._limit(self._limits.head_s, self._too_slow)
        elif self.cycle is not None and self.cycle.response_complete and not self._in_body:
            self._rest()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._fields_bytes = True, 0, 0
        self._idle_since = None

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
        self._unlimit()
        assert self.parser is not None
        upgrade = self.parser.should_upgrade()
        self._judge_head(self.parser.get_http_version(), upgrade=upgrade)
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop_parsing(_TOO_MANY)
        super().on_headers_complete()
        self._in_body = True
        self.cycle.transport = self._answering
        if self.app_state.get(LEAVING) or upgrade:
            # After a request to upgrade the parser takes nothing any more.
            self.cycle.keep_alive = False

    def _judge_head(self, version: str, *, upgrade: bool) -> None:
        """Refuses what other parsers might understand in another way, and what no route must ever see."""
        if version not in ("1.1", "1.0"):
            self._stop_parsing(_WRONG_VERSION)
        if not _TARGET.fullmatch(self.url):
            self._stop_parsing(_NO_SUCH_TARGET)
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            self._stop_parsing(_WRONG_HOST)
        lengths = [value for name, value in self.headers if name == b"content-length"]
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or lengths or version == "1.0"):
            self._stop_parsing(_WRONG_FRAMING)
        if upgrade and (codings or any(length != b"0" for length in lengths)):
            self._stop_parsing(_NO_UPGRADE)  # the parser would lose the body

    def on_message_complete(self) -> None:
        super().on_message_complete()
        cast("dict[str, Any]", self.scope)["state"][WHOLE] = True
        self._in_body = False
        self._messages += 1

    # -- Answering -----------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """In place of uvicorn's, which sets its keep-alive timer."""
        self.server_state.total_requests += 1
        if self._lingering or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._deaf:
            self._linger()
        elif self._in_body:
            self._limit(self._limits.rest_s, self._linger)
        elif not self._in_head:
            self._rest()

    def _rest(self) -> None:
        """Nothing is asked, nothing owed."""
        self._unlimit()
        self._idle_since = self.loop.time()
        if self._keep_alive is None:
            self._keep_alive = self.loop.call_later(self._limits.keep_alive_s, self._idle_too_long)

    def answered(self) -> None:
        """The answer that has just been written is the connection's last."""
        if self._in_body or self._deaf:
            self._linger()
        else:
            self._hang_up()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    # -- Refusing ------------------------------------------------------------------------------------------------------

    def _stop_parsing(self, refusal: _Refusal) -> None:
        """From within the parser: it stops, and `send_400_response` is called."""
        self._refusal = refusal
        raise _Stop

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, refusal: _Refusal) -> None:
        """Answers what came last with a refusal and closes; what came before it on the connection is answered first."""
        self._deaf = True
        self._unlimit()
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and (self.pipeline or not self._in_body):
            if self._in_body:
                self.pipeline.popleft()  # the newest: it will never be complete
            else:
                self.cycle.keep_alive = False
            return
        if answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not (answering and self.cycle.response_started):
            self.transport.write(refusal.answer)
        self._linger()


class _Answering:
    """The transport as a request's cycle sees it: it closes the connection in our way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def close(self) -> None:
        self._connection.answered()

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()


class Server(uvicorn.Server):
    """uvicorn's server, which ends so that nobody notices."""

    def __init__(self, config: uvicorn.Config, limits: Limits, drain_s: float = 0.0) -> None:
        super().__init__(config)
        self._limits = limits
        self._drain_s = drain_s
        self._listener: socket.socket | None = None
        self._line: socket.socket | None = None

    async def listen(self, listener: socket.socket, line: socket.socket | None = None) -> None:
        """Serves on `listener` until told to stop, and closes it. `line` leads to the supervisor (`mapper.workers`)."""
        self._listener, self._line = listener, line
        if line is not None:
            asyncio.get_running_loop().add_reader(line, self._told, line)
        await self.serve(sockets=[listener.dup()])

    def _told(self, line: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(line)
        if line.recv(1) == workers.RETIRE:
            self.retire()
        else:
            self.drain(self._drain_s)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._line is not None:
            self._line.send(workers.READY)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)  # first: a second Ctrl-C, told by `should_exit`, waits for nothing any more
        self.drain(0.0 if sig == signal.SIGINT else self._drain_s)  # somebody at a keyboard does not want to wait

    def drain(self, drain_s: float) -> None:
        """The whole service is going to stop: not ready from now on, though it answers for `drain_s` as before."""
        if self.started:
            self.lifespan.state[DRAINING] = True
        self.retire(drain_s)

    def retire(self, drain_s: float = 0.0) -> None:
        """Only this process is going to stop; others go on."""
        if self.started:
            self.lifespan.state[LEAVING] = True
        self._drain_s = drain_s
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # raised again, they would decide about the exit code

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what is on its way, tells each client with its answer to go elsewhere, ends when all have gone."""
        self.lifespan.state[LEAVING] = True
        async for _ in self._ticks(self._drain_s):
            self._leave(None)
        await self._stop_listening()
        async for _ in self._ticks(PATIENCE_S):
            self._leave(self._limits.grace_s)
            if not self.server_state.connections:
                break
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if not self.force_exit:
            await self.lifespan.shutdown()

    def _leave(self, grace_s: float | None) -> None:
        for connection in list(self.server_state.connections):
            cast("Connection", connection).leave(grace_s)

    async def _ticks(self, seconds: float) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and not self.force_exit:
            await asyncio.sleep(_TICK_S)
            yield

    async def _stop_listening(self) -> None:
        """Takes the connections that wait to be accepted: they would be reset when the last listener is closed."""
        for server in self.servers:
            server.close()
        if self._listener is None:
            return
        waiting: list[socket.socket] = []
        self._listener.setblocking(False)
        try:
            while len(waiting) < workers.BACKLOG:
                waiting.append(self._listener.accept()[0])
        except OSError:
            pass  # nobody waits any more
        self._listener.close()

        def connection() -> Connection:
            return Connection(self._limits, self.config, self.server_state, self.lifespan.state)

        for peer in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(connection, peer)


def create(app: Any, limits: Limits | None = None, *, factory: bool = False, drain_s: float = 0.0) -> Server:
    """A server for an ASGI application (or, with `factory`, for the name of what makes one)."""
    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        factory=factory,
        http=cast("type[asyncio.Protocol]", partial(Connection, limits)),
        ws="none",
        lifespan="on",
        backlog=workers.BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    return Server(config, limits, drain_s)


def run(server: Server, listener: socket.socket, line: socket.socket | None = None) -> None:
    """Serves until told to stop."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks the supervisor to renew its workers; here it must not kill
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.listen(listener, line))
