"""A real process whose ledger is down, hangs or is unusable, at start or later."""

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.sandbox import host as sandbox
from tests.http.raw_http import Response, exchange, request
from tests.http.test_server import SECRET, Process, process, signed
from tests.orders import postgres

ORDER = {"id": "o-1", "order_items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}]}
SERVED = {"validate": True, "consume": True, "why": None}


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with sandbox.running(sandbox.create()) as url:
        yield url


class Server:
    """A proxy in front of PostgreSQL that can be down, or accept connections and hang."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None
        self.port = postgres._free_port()
        self.hangs = threading.Event()
        self._pairs: list[socket.socket] = []

    @property
    def url(self) -> str:
        real = urllib.parse.urlsplit(postgres.url())
        return real._replace(netloc=real.netloc.replace(f":{real.port}", f":{self.port}")).geturl() + "&sslmode=disable"

    def start(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def stop(self) -> None:
        assert self.listener is not None
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        while self._pairs:
            with self._pairs.pop() as half, contextlib.suppress(OSError):
                half.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(postgres.url()).port or 0))
                self._pairs += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.hangs.is_set():
                    time.sleep(0.02)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process has locked SQLite's file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        yield


def ask(service: Process, operation: str) -> Response:
    body: Any = ORDER if operation == "consume" else {"id": "c-1", "items": ORDER["order_items"]}
    (answer,) = exchange(service.address, signed(body, operation, SECRET.encode()), expect=1, wait_s=15).responses
    return answer


def ready(service: Process, query: str = "") -> tuple[int, Any, float]:
    since = time.monotonic()
    (answer,) = exchange(service.address, request("GET", f"/readyz{query}"), expect=1, wait_s=5).responses
    return answer.status, json.loads(answer.body), time.monotonic() - since


def metrics(service: Process) -> bytes:
    (answer,) = exchange(service.address, request("GET", "/metrics"), expect=1, wait_s=5).responses
    return answer.body


def check_served_without_ledger(service: Process) -> None:
    status, body, seconds = ready(service)
    assert (status, body["validate"], body["consume"]) == (200, True, False)
    assert body["why"].startswith("ledger_")
    assert seconds < 1
    assert ready(service, "?for=consume")[0] == 503
    assert ask(service, "validate").status == 200
    assert b"\nmapper_consume_served 0.0\n" in metrics(service)
    refused = ask(service, "consume")
    assert refused.status == 500
    assert int(refused.headers["retry-after"]) > 0


def check_served_again(service: Process) -> None:
    service.wait_for(lambda: ready(service)[1] == SERVED)
    assert ask(service, "consume").status == 200
    assert b"\nmapper_consume_served 1.0\n" in metrics(service)


def test_service_recovers_when_postgres_starts_late_stops_or_hangs(tmp_path: Path, engine: str) -> None:
    server = Server()
    with process(tmp_path, engine, "--drain", "0", MAPPER_LEDGER_URL=server.url) as service:
        service.wait_until_ready()
        check_served_without_ledger(service)
        server.start()
        check_served_again(service)
        server.stop()
        service.wait_for(lambda: ready(service)[1] != SERVED)
        check_served_without_ledger(service)
        server.start()
        check_served_again(service)
        server.hangs.set()
        service.wait_for(lambda: ready(service)[1] != SERVED)
        assert ask(service, "validate").status == 200
        assert ready(service)[2] < 1
        server.hangs.clear()
        check_served_again(service)
        server.stop()
        assert service.stop() == 0


def test_locked_sqlite_file_is_opened_once_it_is_unlocked(tmp_path: Path, engine: str) -> None:
    with contextlib.ExitStack() as held:
        lock = held.enter_context(contextlib.ExitStack())
        lock.enter_context(locked(tmp_path / "ledger.db"))
        service = held.enter_context(process(tmp_path, engine, "--drain", "0", MAPPER_CONSUME_DEADLINE_MS="1000"))
        service.wait_until_ready()
        check_served_without_ledger(service)
        lock.close()
        check_served_again(service)
        assert service.stop() == 0


def _too_new(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "new.db")) as database:
        database.execute("PRAGMA user_version = 999")
    return f"sqlite:///{folder}/new.db"


def _no_database(folder: Path) -> str:
    (folder / "text.db").write_text("this is no database, whatever its name says " * 99)
    return f"sqlite:///{folder}/text.db"


def _no_such_postgres(folder: Path) -> str:
    return postgres.url().replace("/postgres?", "/nobody?")


def _wrong_password(folder: Path) -> str:
    return postgres.url().replace("mapper:", "mapper:x")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (lambda folder: f"sqlite:///{folder}/no/such/ledger.db", "No such file or directory"),
        (lambda folder: f"sqlite:///{folder}", "is not a file"),
        (_too_new, "version 999"),
        (_no_database, "no SQLite database"),
        (_no_such_postgres, "does not exist"),
        (_wrong_password, "the user or the password"),
    ],
)
def test_unusable_ledger_prints_one_line_and_exits_with_2(tmp_path: Path, url: Any, problem: str) -> None:
    environment = {**Process.settings("http://127.0.0.1:9"), "MAPPER_LEDGER_URL": url(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mapper", "serve", "--port", "0"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("MAPPER_LEDGER_URL: ")
    assert problem in line
    assert postgres.PASSWORD not in line


def test_admin_port_works_with_several_workers(tmp_path: Path, engine: str) -> None:
    port = postgres._free_port()
    with process(tmp_path, engine, "--workers", "2", "--drain", "0", MAPPER_ADMIN_PORT=str(port)) as service:
        service.wait_for(lambda: service.logged("ready"))
        assert ask(service, "validate").status == 200
        for route in ("/livez", "/readyz", "/metrics"):
            assert exchange(service.address, request("GET", route), expect=1).statuses == [404]
            assert exchange(("127.0.0.1", port), request("GET", route), expect=1).statuses == [200]
        assert service.stop() == 0
