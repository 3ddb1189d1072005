"""How uvicorn serves the service: how a process ends without losing a request. For its connections see `connection`.

`Server` is uvicorn's server with another end. uvicorn's own closes idle connections while their next request is on its
way, resets those that wait to be accepted, and ends with the signal's exit code instead of 0.
"""

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final, cast

import uvicorn

from mapper import threads as aside
from mapper.http import workers
from mapper.http.protocol import LEAVING, Connection, Limits

DRAINING: Final = "draining"
"""In the state of every scope: the whole service is going to stop, so that `/readyz` must say so."""

PATIENCE_S: Final = 25.0
"""How long a process that stops waits for the answers it owes."""

_TICK_S = 0.02


class Server(uvicorn.Server):
    """uvicorn's server, which ends so that nobody notices."""

    def __init__(self, config: uvicorn.Config, limits: Limits, drain_s: float = 0.0) -> None:
        super().__init__(config)
        self._limits = limits
        self._drain_s = drain_s
        self._listener: socket.socket | None = None
        self._line: socket.socket | None = None

    async def listen(self, listener: socket.socket, line: socket.socket | None = None) -> None:
        """Serves on `listener` until told to stop, and closes it. `line`: see `mapper.http.workers`."""
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
    server.config.load()
    _spare_the_collector()
    aside.switch_often()
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.listen(listener, line))


def _spare_the_collector() -> None:
    """All that is needed has been loaded, and stays; a request leaves no cycles behind, nor does a connection.

    So Python's search for garbage is left with what has come since, and comes rarely. As it is by itself it took a
    twentieth of the processor under load, and whenever everything was looked through nobody was answered for 50 ms.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
