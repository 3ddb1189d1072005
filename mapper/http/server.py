"""How uvicorn serves the service: how it accepts connections, and how a process ends without losing a request.

uvicorn's own end closes idle connections while their next request is on its way, resets those that wait to be accepted,
and has the signal's exit code instead of 0. The event loop's own server accepts one connection in each of its turns.
"""

import asyncio
import errno
import gc
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from mapper import threads
from mapper.http.protocol import LEAVING, Arrival, GuardedProtocol, Limits

DRAINING: Final = "draining"
"""In the state of every scope: the whole service is going to stop, so that `/readyz` must say so."""

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""

PATIENCE_S: Final = 25.0
"""How long a process that stops waits for the answers it owes."""

_TICK_S = 0.02
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NO_DESCRIPTORS_S = 1.0
"""The pause before connections are accepted again. Without one the event loop would ask without end."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `OSError`. "::" listens on every address, of IPv4 as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def inherited(fd: int) -> socket.socket:
    """The socket that the parent process has opened; raises `OSError`."""
    handed_over = socket.socket(fileno=fd)
    handed_over.set_inheritable(False)
    return handed_over


class Server(uvicorn.Server):
    """uvicorn's server, which accepts all connections that wait at once, and ends so that nobody notices."""

    def __init__(self, config: uvicorn.Config, limits: Limits, drain_s: float) -> None:
        super().__init__(config)
        self._limits, self._arrival = limits, Arrival()
        self._drain_s = drain_s
        self._listeners: list[socket.socket] = []
        self._connecting: set[asyncio.Task[Any]] = set()

    # -- Accepting -----------------------------------------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._listeners = sockets or []
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(BACKLOG)  # an inherited one may have a shorter queue
            self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                task = loop.create_task(self._connect(listener.accept()[0]))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
        except OSError as error:  # nobody waits any more, or who waited has gone
            if error.errno in _NO_DESCRIPTORS:
                loop.remove_reader(listener)
                loop.call_later(_NO_DESCRIPTORS_S, self._listen, listener)

    async def _connect(self, peer: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: GuardedProtocol(self._limits, self._arrival, self.config, self.server_state, self.lifespan.state),
            peer,
        )

    async def _stop_listening(self) -> None:
        """Takes the connections that wait to be accepted: they would be reset when the last listener is closed."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            self._accept(listener)
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        await asyncio.gather(*self._connecting)

    # -- Ending --------------------------------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        stopping = self.should_exit
        super().handle_exit(sig, frame)  # a second Ctrl-C waits for nothing any more
        if not stopping:
            self.drain(0.0 if sig == signal.SIGINT else None)  # somebody at a keyboard does not want to wait

    def drain(self, drain_s: float | None = None) -> None:
        """The whole service is going to stop: not ready from now on, though it answers for `drain_s` as before."""
        if self.started:
            self.lifespan.state[DRAINING] = True
        self.retire(self._drain_s if drain_s is None else drain_s)

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
            pass
        await self._stop_listening()
        async for _ in self._ticks(PATIENCE_S):
            for connection in list(self.server_state.connections):
                connection.shutdown()
            if not self.server_state.connections:
                break
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _ticks(self, seconds: float) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and not self.force_exit:
            await asyncio.sleep(_TICK_S)
            yield


def create(app: Any, limits: Limits | None = None, *, factory: bool = False, drain_s: float = 0.0) -> Server:
    """A server for an ASGI application (or, with `factory`, for the name of what makes one)."""
    config = uvicorn.Config(
        app,
        factory=factory,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    return Server(config, limits or Limits(), drain_s)


def run(server: Server, listeners: Sequence[socket.socket]) -> None:
    """Serves until told to stop."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks the supervisor to renew its workers; here it must not kill
    server.config.load()
    _spare_the_collector()
    threads.switch_often()
    server.run(list(listeners))


def _spare_the_collector() -> None:
    """All that is needed has been loaded, and stays; a request leaves no cycles behind, nor does a connection.

    So Python's search for garbage is left with what has come since, and comes rarely.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
