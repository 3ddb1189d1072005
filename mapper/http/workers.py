"""Several worker processes on one listening socket, under uvicorn's supervisor. SIGHUP renews them one by one.

The workers inherit the socket that this process has opened. Connections that wait in its queue belong to no worker, so
that none is lost when a worker stops. (With SO_REUSEPORT each process would have a queue of its own, whose connections
are reset when the process ends.)

Unlike uvicorn's own supervisor, this one renews workers without reporting the service as not ready, pauses before it
restarts a worker that died at once, watches all workers while an old one finishes, and leaves none behind if it dies.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from types import FrameType

from prometheus_client import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from mapper.http import server
from mapper.ops import logs
from mapper.settings import InvalidSettings

log = logging.getLogger("mapper")

START_S = 30.0
"""How long a worker may take to become ready."""
PAUSE_S = 1.0
"""The pause before a restart if the worker lived for a shorter time than this."""

_RETIRE = b"retire"


class Worker(Process):
    """A worker process, spawned and not forked. Its pipe carries uvicorn's pings and the message to retire."""

    def __init__(self, web_server: server.Server, listeners: Sequence[socket.socket]) -> None:
        super().__init__(web_server.config, list(listeners))
        self._web_server = web_server

    # -- In the supervisor ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process with SIGINT blocked, until it has a handler (`Server.capture_signals`).

        A terminal's Ctrl-C would end it with a traceback while it imports.
        """
        resource_tracker.ensure_running()  # its start unblocks SIGINT
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        self.child_conn.close()  # so that the pipe closes when either process ends
        self.started = time.monotonic()

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.pid is not None and self.exitcode is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(
            signal.SIGTERM
        )  # the pipe stays open: its closing would stop the worker before the signal does

    def retire(self) -> None:
        with suppress(OSError):
            self.parent_conn.send(_RETIRE)

    # -- In the worker -------------------------------------------------------------------------------------------------

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        os.setsid()  # a terminal's Ctrl-C reaches the supervisor only, which passes it on
        self.parent_conn.close()
        logs.configure_from(os.environ)
        threading.Thread(target=self.always_pong, daemon=True).start()
        try:
            server.run(self._web_server, sockets or [])
        except InvalidSettings as error:  # a secret file that has changed, or is gone
            log.error("wrong settings", extra={"facts": {"problem": str(error)}})  # noqa: TRY400 - the sentence is enough
            sys.exit(2)

    def always_pong(self) -> None:
        try:
            super().always_pong()
        except (OSError, EOFError):  # the supervisor has died
            self._web_server.drain()

    def pong(self) -> None:
        if self.child_conn.recv() == _RETIRE:
            self._web_server.retire()
        else:
            self.child_conn.send(self._web_server.started)


class Supervisor(Multiprocess):
    """Handles SIGTERM and SIGINT, which it passes on to the workers, and SIGHUP."""

    processes: list[Worker]  # type: ignore[assignment]

    def __init__(self, web_server: server.Server, listeners: Sequence[socket.socket], count: int) -> None:
        super().__init__(web_server.config, list(listeners))
        self.processes_num = count
        self.failed = False
        self._web_server = web_server
        self._listeners = listeners
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for number in (signal.SIGTTIN, signal.SIGTTOU):  # uvicorn would change the number of workers
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for worker in self.processes:
            worker.send_signal(number)
        # In a thread, since the interrupted code may hold the event's lock.
        threading.Thread(target=self.should_exit.set).start()

    def _start(self) -> Worker:
        worker = Worker(self._web_server, self._listeners)
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
        """Replaces workers that have died or do not respond."""
        for index, worker in enumerate(self.processes):
            if worker.is_alive(START_S) or self.should_exit.is_set():
                continue
            hangs = worker.process.is_alive()
            worker.kill()
            worker.join()
            _drop_gauges(worker)
            if hangs:
                log.error("worker hangs", extra={"facts": {"pid": worker.pid, "seconds": START_S}})
            else:
                log.error("worker died", extra={"facts": {"pid": worker.pid, "exit_code": worker.exitcode}})
            if time.monotonic() < worker.started + PAUSE_S:
                self.should_exit.wait(PAUSE_S)
            self.processes[index] = self._start()

    def restart_all(self) -> None:
        """Replaces each worker once its successor is ready. If a successor fails, the remaining workers stay."""
        for index, old in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            new = self._start()
            if not new.wait_until_ready(START_S, self.should_exit):
                new.kill()
                new.join()
                _drop_gauges(new)
                if not self.should_exit.is_set():
                    log.error("not renewed", extra={"facts": {"exit_code": new.exitcode}})
                return
            self.processes[index] = new
            old.retire()
            while old.process.is_alive() and not self.should_exit.is_set():
                old.process.join(PAUSE_S)
                self.keep_subprocess_alive()
            _drop_gauges(old)
        log.info("renewed", extra={"facts": {"workers": self.processes_num}})


def _drop_gauges(worker: Worker) -> None:
    """Takes what only a living process has, such as its version and its open breakers, out of the common metrics."""
    multiprocess.mark_process_dead(worker.pid, os.environ["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]


def supervise(web_server: server.Server, listeners: Sequence[socket.socket], count: int) -> int:
    """Runs `count` workers, whose metrics share a temporary folder. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="promotions-mapper-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = Supervisor(web_server, listeners, count)
        supervisor.run()
    return 1 if supervisor.failed else 0
