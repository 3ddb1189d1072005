"""uvicorn's server, changed in how it accepts connections, and in how it stops without losing a request.

By itself uvicorn, when it stops, closes idle connections whose next request is on its way, resets connections that wait
to be accepted, and exits with the signal's code instead of 0. And the event loop accepts one connection per turn.
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
from mapper.http.protocol import LEAVING, GuardedProtocol, Limits, ReadTime

DRAINING: Final = "draining"
"""A key of every scope's state: the whole service is stopping, and `/readyz` must say so."""

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""

FINISH_S: Final = 25.0
"""How long a process that stops waits for its last responses."""

_TICK_S = 0.02
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NO_DESCRIPTORS_S = 1.0
"""The pause before connections are accepted again. Without it the event loop would spin."""


def listening(host: str, port: int) -> socket.socket:
    """Returns a listening socket. "::" listens on all addresses, IPv4 as well. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def inherited(fd: int) -> socket.socket:
    """Returns the socket that the parent process has opened. Raises `OSError`."""
    listener = socket.socket(fileno=fd)
    listener.set_inheritable(False)
    try:
        listener.listen()  # not every socket can
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """uvicorn's server. It accepts all waiting connections at once, and answers everything before it stops."""

    def __init__(self, config: uvicorn.Config, limits: Limits, drain_s: float) -> None:
        super().__init__(config)
        self._limits, self._read_time = limits, ReadTime()
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
        except OSError as error:  # no connection is waiting, or one has been aborted
            if error.errno in _NO_DESCRIPTORS:
                loop.remove_reader(listener)
                loop.call_later(_NO_DESCRIPTORS_S, self._listen, listener)

    async def _connect(self, peer: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: GuardedProtocol(self._limits, self._read_time, self.config, self.server_state, self.lifespan.state),
            peer,
        )

    async def _stop_listening(self) -> None:
        """Accepts the waiting connections first, since closing the last listener would reset them."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            self._accept(listener)
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        await asyncio.gather(*self._connecting)

    # -- Stopping ------------------------------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        stopping = self.should_exit
        super().handle_exit(sig, frame)  # a second Ctrl-C stops at once
        if not stopping:
            self.drain(0.0 if sig == signal.SIGINT else None)  # no pause for a person at a keyboard

    def drain(self, drain_s: float | None = None) -> None:
        """Stops the whole service: it reports itself as not ready, serves as before for `drain_s`, then stops."""
        if self.started:
            self.lifespan.state[DRAINING] = True
        self.retire(self._drain_s if drain_s is None else drain_s)

    def retire(self, drain_s: float = 0.0) -> None:
        """Stops this process alone; the other workers go on."""
        if self.started:
            self.lifespan.state[LEAVING] = True
        self._drain_s = drain_s
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a worker starts with it blocked
            yield
            self._captured_signals.clear()  # else uvicorn raises them again, and they set the exit code

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves for `drain_s` with `Connection: close`, then stops accepting, and waits for the last responses."""
        self.lifespan.state[LEAVING] = True
        async for _ in self._ticks(self._drain_s):
            pass
        await self._stop_listening()
        async for _ in self._ticks(FINISH_S):
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
    """Returns a server for an ASGI application; with `factory`, for the import path of a function that returns one."""
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
    """Serves until a signal stops it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # meant for a supervisor; its default action would kill this process
    server.config.load()
    _tune_garbage_collector()
    threads.switch_often()
    server.run(list(listeners))


def _tune_garbage_collector() -> None:
    """Makes collections rare, and excludes all objects that exist so far.

    The loaded code stays for good, and neither a request nor a connection leaves reference cycles behind.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
