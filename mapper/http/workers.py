"""Several processes on one listening socket: started, replaced when they die, and renewed one by one on SIGHUP.

All of them accept from one socket, which this process has opened and they inherit. Connections that wait in its queue
belong to none of them, so none is lost when one goes. (With SO_REUSEPORT each process would have a queue of its own,
and what waits in it is reset when its process ends.) Each worker is a new program, not a fork: after an upgrade of the
code SIGHUP is enough.

uvicorn has a supervisor of its own. It cannot be used with another `Server`, starts a worker that dies at once over
and over without a pause, does nothing else while it waits for an old worker to end, and leaves orphans when killed.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

log = logging.getLogger("mapper")

READY = b"r"
"""What a worker sends on its line when it is ready to serve."""
RETIRE = b"x"
"""What it is sent when its successor is. The end of the line means that the supervisor is gone."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""
START_S = 30.0
PAUSE_S = 1.0
"""Between two starts where the first one did not last even that long."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `OSError`. "::" listens on every address, of IPv4 as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def inherited(fd: int) -> socket.socket:
    """The socket that the parent process has opened; raises `OSError`."""
    handed_over = socket.socket(fileno=fd)
    handed_over.set_inheritable(False)
    handed_over.setblocking(False)
    return handed_over


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.process = process
        self.line = line
        self.started = asyncio.get_running_loop().time()

    async def is_ready(self) -> bool:
        """Whether it came to serve; it is killed if that takes too long."""
        try:
            async with asyncio.timeout(START_S):
                return await asyncio.get_running_loop().sock_recv(self.line, 1) == READY
        except (TimeoutError, OSError):
            self.tell(signal.SIGKILL)
            return False

    def retire(self) -> None:
        with contextlib.suppress(OSError):
            self.line.send(RETIRE)

    def tell(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def gone(self) -> int:
        code = await self.process.wait()
        self.line.close()
        return code


class Supervisor:
    """`command` starts a worker; it gets the listening socket's and its line's file descriptors as last arguments."""

    def __init__(self, command: Sequence[str], listener: socket.socket, count: int) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._all: set[_Worker] = set()
        self._slots: list[_Worker] = []
        self._stopping = False
        self._renewal: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Until told to stop. The exit code: 0, or that of a worker that could not be started in the first place."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._renew)
        while len(self._slots) < self._count and not self._stopping:
            self._slots.append(await self._start())
        ready = await asyncio.gather(*(worker.is_ready() for worker in self._slots))
        if not all(ready) and not self._stopping:
            failed = self._slots[ready.index(False)]
            self._stop(signal.SIGTERM)
            code = await failed.gone()
            await asyncio.gather(*(worker.gone() for worker in self._slots))
            return code if code > 0 else 1
        log.info("ready", extra={"facts": {"workers": self._count}})
        await asyncio.gather(*(self._keep(slot) for slot in range(len(self._slots))))
        await asyncio.gather(*(worker.process.wait() for worker in self._all))
        return 0

    def _stop(self, number: signal.Signals) -> None:
        self._stopping = True
        self._listener.close()
        for worker in self._all:
            worker.tell(number)

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            handed_on = (self._listener.fileno(), theirs.fileno())
            # In a session of its own: Ctrl-C is for the supervisor, which passes it on once.
            process = await asyncio.create_subprocess_exec(
                *self._command, *map(str, handed_on), pass_fds=handed_on, start_new_session=True
            )
        worker = _Worker(process, ours)
        self._all.add(worker)
        if self._stopping:  # told while it was being started
            worker.tell(signal.SIGTERM)
        return worker

    async def _keep(self, slot: int) -> None:
        """Starts another worker whenever that of this slot dies."""
        while not self._stopping:
            worker = self._slots[slot]
            code = await worker.gone()
            self._all.discard(worker)
            if self._stopping or worker is not self._slots[slot]:
                continue
            log.error("worker died", extra={"facts": {"pid": worker.process.pid, "exit_code": code}})
            if asyncio.get_running_loop().time() < worker.started + PAUSE_S:
                await asyncio.sleep(PAUSE_S)
            if not self._stopping and worker is self._slots[slot]:
                self._slots[slot] = successor = await self._start()
                await successor.is_ready()

    def _renew(self) -> None:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew_all())

    async def _renew_all(self) -> None:
        """One by one: the new worker is ready before the old one goes. Where a new one fails, the old ones stay."""
        for slot in range(self._count):
            if self._stopping:
                return
            successor = await self._start()
            if not await successor.is_ready():
                code = await successor.gone()
                self._all.discard(successor)
                log.error("not renewed", extra={"facts": {"exit_code": code}})
                return
            old, self._slots[slot] = self._slots[slot], successor
            old.retire()
            await old.process.wait()
        log.info("renewed", extra={"facts": {"workers": self._count}})


def supervise(arguments: Sequence[str], listener: socket.socket, count: int) -> int:
    """Runs `count` workers, each of them this program with `arguments`; returns the exit code."""
    command = (sys.executable, "-m", "mapper", *arguments)
    work: Coroutine[Any, Any, int] = Supervisor(command, listener, count).run()
    return asyncio.run(work)
