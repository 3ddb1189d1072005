"""Several processes on one listening socket: uvicorn's supervisor, which starts, replaces and renews them (SIGHUP).

All of them accept from one socket, which this process has opened and they inherit. Connections that wait in its queue
belong to none of them, so none is lost when one goes. (With SO_REUSEPORT each process would have a queue of its own,
and what waits in it is reset when its process ends.)

What uvicorn's own lacks: a worker retires without the service being called not ready; a worker that dies at once is
started again after a pause; all others are looked after while an old one ends; and none outlives its supervisor.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from prometheus_client import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from mapper.http import server
from mapper.ops import logs

log = logging.getLogger("mapper")

START_S = 30.0
"""How long a worker may take until it is ready to serve."""
PAUSE_S = 1.0
"""Between two starts where the first one did not last even that long."""

_RETIRE = b"retire"


class Worker(Process):
    """A new program, not a fork. Its pipe carries uvicorn's pings and the order to retire, and ends with the parent."""

    def __init__(self, made: server.Server, listeners: Sequence[socket.socket]) -> None:
        super().__init__(made.config, list(listeners))
        self._made = made

    # -- In the supervisor ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        super().start()
        self.child_conn.close()  # the child has its own: from now on the pipe ends with either process
        self.started = time.monotonic()

    def tell(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.pid is not None and self.exitcode is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.tell(signal.SIGTERM)  # and leave the pipe open: its end would be heard before the signal

    def retire(self) -> None:
        with suppress(OSError):
            self.parent_conn.send(_RETIRE)

    # -- In the worker -------------------------------------------------------------------------------------------------

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        os.setsid()  # Ctrl-C is for the supervisor, which passes it on once
        self.parent_conn.close()
        logs.configure_from(os.environ)
        threading.Thread(target=self.always_pong, daemon=True).start()
        server.run(self._made, sockets or [])

    def always_pong(self) -> None:
        try:
            super().always_pong()
        except (OSError, EOFError):  # the supervisor has gone
            self._made.drain()

    def pong(self) -> None:
        if self.child_conn.recv() == _RETIRE:
            self._made.retire()
        else:
            self.child_conn.send(self._made.started)


class Supervisor(Multiprocess):
    """Its signals are TERM and INT, which it passes on at once, and HUP."""

    processes: list[Worker]  # type: ignore[assignment]

    def __init__(self, made: server.Server, listeners: Sequence[socket.socket], count: int) -> None:
        super().__init__(made.config, list(listeners))
        self.processes_num = count
        self.failed = False
        self._made = made
        self._listeners = listeners
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for number in (signal.SIGTTIN, signal.SIGTTOU):  # uvicorn's way to have more workers, or fewer
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for worker in self.processes:
            worker.tell(number)
        # By a thread, since this one may be holding the event's lock.
        threading.Thread(target=self.should_exit.set).start()

    def _start(self) -> Worker:
        worker = Worker(self._made, self._listeners)
        worker.start()
        return worker

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.processes.append(self._start())
        if all(worker.wait_until_ready(START_S, self.should_exit) for worker in self.processes):
            log.info("ready", extra={"facts": {"workers": self.processes_num}})
        elif not self.should_exit.is_set():
            self.failed = True
            self.should_exit.set()

    def keep_subprocess_alive(self) -> None:
        """A worker that has died, or that does not react, is started again."""
        for index, worker in enumerate(self.processes):
            if worker.is_alive(START_S) or self.should_exit.is_set():
                continue
            worker.kill()
            worker.join()
            multiprocess.mark_process_dead(worker.pid, os.environ["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
            log.error("worker died", extra={"facts": {"pid": worker.pid, "exit_code": worker.exitcode}})
            if time.monotonic() < worker.started + PAUSE_S:
                self.should_exit.wait(PAUSE_S)
            self.processes[index] = self._start()

    def restart_all(self) -> None:
        """One by one: the new worker is ready before the old one goes. Where a new one fails, the old ones stay."""
        for index, old in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            new = self._start()
            if not new.wait_until_ready(START_S, self.should_exit):
                new.kill()
                new.join()
                if not self.should_exit.is_set():
                    log.error("not renewed", extra={"facts": {"exit_code": new.exitcode}})
                return
            self.processes[index] = new
            old.retire()
            while old.process.is_alive() and not self.should_exit.is_set():
                old.process.join(PAUSE_S)
                self.keep_subprocess_alive()
        log.info("renewed", extra={"facts": {"workers": self.processes_num}})


def supervise(made: server.Server, listeners: Sequence[socket.socket], count: int) -> int:
    """Runs `count` workers; returns the exit code. Their metrics are kept together in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="promotions-mapper-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = Supervisor(made, listeners, count)
        supervisor.run()
    return 1 if supervisor.failed else 0
