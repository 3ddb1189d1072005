"""Who is measured: how each is started, which path it is called at, and what its right answer looks like."""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import carts, load, machine

_VALIDATE = "/promotions/validate"
START_S = 30.0


class Wrong(Exception):
    """A contender that does not start, or whose answer is not right."""


Check = Callable[[int, bytes], bool]


@dataclass(frozen=True)
class Contender:
    key: str
    name: str
    """What it is, for people."""
    command: tuple[str, ...]
    """After the interpreter; `{port}` is filled in. Empty: nginx."""
    right: Check
    """(lines, body of the answer)"""
    environment: tuple[tuple[str, str], ...] = ()
    asks_engine: bool = True
    path: str = _VALIDATE


def _is_checkout(lines: int, body: bytes) -> bool:
    items = json.loads(body)["checkout"]["items"]
    return _is_reckoned(lines, body) and all(item["discounts"][0]["meta"]["campaignId"] == 71 for item in items)


def _is_reckoned(lines: int, body: bytes) -> bool:
    """Whether the total, and each line's price and discount, are right."""
    checkout, expected = json.loads(body)["checkout"], carts.expected(lines)
    found = [(item["price"], item["total_discount"]) for item in checkout["items"]]
    return bool(checkout["total_discount"] == expected["total"] and found == expected["lines"])


def _is_echo(lines: int, body: bytes) -> bool:
    return body in {carts.checkout(lines, wait, 0) for wait in (0, 30)}


def _is_reply(lines: int, body: bytes) -> bool:
    return body == carts.reply(lines)


_SERVE = ("-m", "mapper", "serve", "--port", "{port}")

CONTENDERS = (
    Contender("service", "this service", _SERVE, _is_checkout),
    Contender("echo", "echo, Starlette + uvicorn", ("-m", "bench.apps", "echo", "{port}"), _is_echo, asks_engine=False),
    Contender("own", "echo, this service's server", ("-m", "bench.apps", "own", "{port}"), _is_echo, asks_engine=False),
    Contender("nginx", "nginx, passing through", (), _is_reply, path="/v2/customer_sessions/{session}"),
    Contender("sdk", "FastAPI + vendor's SDK", ("-m", "bench.apps", "sdk", "{port}"), _is_checkout),
    Contender(
        "voucherify",
        "this service, Voucherify",
        _SERVE,
        _is_reckoned,
        (
            ("MAPPER_ENGINE", "voucherify"),
            ("VOUCHERIFY_APP_ID", "bench"),
            ("VOUCHERIFY_APP_TOKEN", "bench"),
            ("VOUCHERIFY_BASE_URL", "http://127.0.0.1:{engine}"),
            ("VOUCHERIFY_PROMOTIONS", carts.TIER),
            ("VOUCHERIFY_ORDER_METADATA", "cart=/id"),
        ),
    ),
    Contender("httpx", "this service, httpx", _SERVE, _is_checkout, (("MAPPER_HTTP_CLIENT", "httpx"),)),
    Contender(
        "libraries", "the libraries alone", ("-m", "bench.apps", "libraries", "{port}"), _is_reckoned, asks_engine=False
    ),
    Contender(
        "canned", "this service, canned", ("-m", "bench.apps", "canned", "{port}"), _is_checkout, asks_engine=False
    ),
)
BY_KEY: Mapping[str, Contender] = {contender.key: contender for contender in CONTENDERS}

_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/1;
  uwsgi_temp_path {folder}/2; scgi_temp_path {folder}/3;
  client_body_buffer_size 1m; client_max_body_size 2m; proxy_buffers 64 16k; proxy_buffer_size 16k;
  keepalive_requests 100000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@dataclass
class Running:
    contender: Contender
    port: int
    process: "subprocess.Popen[bytes]"

    def requests(self, lines: int, wait_ms: int) -> list[bytes]:
        """Signed calls with equal carts of different ids."""
        path, variants = self.contender.path, range(carts.VARIANTS)
        return [
            carts.signed_request(
                path.format(session=carts.session_id(lines, wait_ms, variant)), carts.checkout(lines, wait_ms, variant)
            )
            for variant in variants
        ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(engine_port: int, folder: str, contender: Contender) -> dict[str, str]:
    """Its settings. Nothing of this shell's own: with PYTHONDONTWRITEBYTECODE it would be compiled at each start."""
    own = ("MAPPER_", "NACELLE_", "TALON_", "VOUCHERIFY_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {
        **kept,
        "MAPPER_ENGINE": "talon_one",
        "NACELLE_SIGNING_SECRETS": carts.SECRET.decode(),
        "MAPPER_LEDGER_URL": f"sqlite:///{folder}/{contender.key}.db",
        "TALON_ONE_BASE_URL": f"http://127.0.0.1:{engine_port}",
        "TALON_ONE_API_KEY": "bench",
        **{name: value.format(engine=engine_port) for name, value in contender.environment},
    }


def start(contender: Contender, engine_port: int, folder: str) -> Running:
    """Starts it on a processor of its own. What it logs is written, and thrown away."""
    port = free_port()
    if contender.command:
        command = [machine.python(), *(part.format(port=port) for part in contender.command)]
    else:
        own = tempfile.mkdtemp(dir=folder)
        config = Path(own, "nginx.conf")
        config.write_text(_NGINX.format(folder=own, port=port, engine=engine_port))
        command = [machine.nginx(), "-e", "stderr", "-p", own, "-c", str(config)]
    process = _spawn(command, machine.places().contender, environment(engine_port, folder, contender))
    return Running(contender, port, process)


def _spawn(command: list[str], place: set[int], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    pinned = ["taskset", "--cpu-list", ",".join(map(str, place)), *command]
    return subprocess.Popen(
        pinned, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait(running: Running) -> float:
    """Waits until it listens; the seconds that took."""
    started = time.perf_counter()
    while time.perf_counter() - started < START_S:
        if running.process.poll() is not None:
            raise Wrong(f"{running.contender.name} ended at once, with exit code {running.process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", running.port)) == 0:
                return time.perf_counter() - started
        time.sleep(0.002)
    raise Wrong(f"{running.contender.name} does not listen after {START_S} s")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def check(running: Running, lines: int, wait_ms: int = 0) -> None:
    """Raises `Wrong` unless it answers as it should."""
    status, body = await load.once(running.port, running.requests(lines, wait_ms)[0])
    if status != 200 or not running.contender.right(lines, body):
        raise Wrong(f"{running.contender.name}, {lines} lines: {status} {body[:300]!r}")


@contextmanager
def engine() -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """The engine, on the client's processor, where this process stays meanwhile: its port and process."""
    port = free_port()
    process = _spawn([machine.python(), "-m", "bench.engine", str(port)], machine.places().rest, os.environ)
    try:
        wait(Running(Contender("engine", "the engine", (), _is_reply), port, process))
        with machine.in_place():
            yield port, process
    finally:
        stop(process)


@contextmanager
def all_running(sizes: Mapping[str, Iterable[int]], engine_port: int) -> Iterator[dict[str, Running]]:
    """Contenders by key, started and checked with carts of these sizes."""
    running: dict[str, Running] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for key in sizes:
                running[key] = start(BY_KEY[key], engine_port, folder)
            for key, one in running.items():
                wait(one)
                for lines in sizes[key]:
                    asyncio.run(check(one, lines))
            yield running
        finally:
            for one in running.values():
                stop(one.process)
