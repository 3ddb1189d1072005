"""Hostile clients are refused within limits of time and memory; no request is lost when a process ends.

Time limits are short here. ATTACKS and RESTARTS in the environment make the two long tests longer.
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mapper.commands import cli
from mapper.domain.signature import SIGNATURE, sign
from mapper.http import app, endpoint, limiter, server, workers
from mapper.http.protocol import RECEIVED, Limits
from mapper.sandbox import host as sandbox
from tests import fakes
from tests.http import raw_http
from tests.http.raw_http import Address, converse, exchange, head, request

POST = "POST /promotions/validate HTTP/1.1"
HOST = "Host: mapper.test"
CHUNKED = "Transfer-Encoding: chunked"
BEHIND = b"GET /smuggled HTTP/1.1\r\nHost: mapper.test\r\n\r\n"
LIVEZ = request("GET", "/livez")
CHECKOUT = {"id": "c-1", "items": [{"sku": "S", "quantity": 1, "price": "140.00"}]}
SHORT = Limits(head_s=0.3, rest_s=0.3, keep_alive_s=0.5, unread_s=0.3, linger_s=0.2, grace_s=0.1)


def signed(body: object = CHECKOUT, operation: str = "validate", secret: bytes = fakes.SECRET) -> bytes:
    data = json.dumps(body).encode()
    lines = (f"{SIGNATURE.decode()}: {sign(data, secret)}", "Content-Type: application/json")
    return request("POST", f"/promotions/{operation}", data, lines)


# -- A server in a thread ------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The service, and the targets of all requests that reached it."""

    service: Any
    targets: list[str] = field(default_factory=list)

    def shed(self, method: bytes, target: bytes) -> Any:
        return self.service.shed(method, target) if hasattr(self.service, "shed") else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.targets.append(scope["raw_path"].decode("latin-1"))
        await self.service(scope, receive, send)


@dataclass
class Running:
    address: Address
    seen: Seen
    server: server.Server

    def statuses(self, *parts: bytes, **options: Any) -> list[int]:
        return exchange(self.address, *parts, **options).statuses


@contextlib.contextmanager
def running(application: Any, limits: Limits = SHORT, drain_s: float = 0.0) -> Iterator[Running]:
    seen = Seen(application)
    made = server.create(seen, limits, drain_s=drain_s)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def serve() -> None:
        with asyncio.Runner(loop_factory=made.config.get_loop_factory()) as runner:
            runner.run(made.serve([listener]))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while not made.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield Running(address, seen, made)
    finally:
        made.retire()
        thread.join(10)
        assert not thread.is_alive()


def service(**environment: str) -> Any:
    environment = {"MAPPER_LEDGER_URL": fakes.new_ledger(), **environment}
    return app.create(fakes.settings(fakes.FakeAdapter(), **environment), engine_transport=fakes.FakeTransport())


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch, running(service()) as made:
        patch.setattr(endpoint, "BODY_DEADLINE_S", 0.3)
        yield made


@pytest.fixture
def served(shared: Running) -> Running:
    shared.seen.targets.clear()
    return shared


# -- Malformed requests --------------------------------------------------------------------------------------------

MALFORMED = {
    "length and chunks": head(POST, HOST, "Content-Length: 6", CHUNKED) + b"0\r\n\r\n" + BEHIND,
    "chunks and length": head(POST, HOST, CHUNKED, "Content-Length: 6") + b"0\r\n\r\n" + BEHIND,
    "two lengths": head(POST, HOST, "Content-Length: 3", "Content-Length: 4") + b"abc" + BEHIND,
    "one length twice": head(POST, HOST, "Content-Length: 3", "Content-Length: 3") + b"abc" + BEHIND,
    "a list of lengths": head(POST, HOST, "Content-Length: 3, 3") + b"abc",
    "a length with a plus": head(POST, HOST, "Content-Length: +3") + b"abc",
    "a negative length": head(POST, HOST, "Content-Length: -1") + b"abc",
    "a hexadecimal length": head(POST, HOST, "Content-Length: 0x3") + b"abc",
    "an endless length": head(POST, HOST, "Content-Length: 1" + "0" * 23) + b"abc",
    "a length with an underscore": head(POST, HOST, "Content-Length: 1_0") + b"abc",
    "no length": head(POST, HOST, "Content-Length:") + b"abc",
    "another coding": head(POST, HOST, "Transfer-Encoding: xchunked") + b"0\r\n\r\n" + BEHIND,
    "chunked, then another coding": head(POST, HOST, "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + BEHIND,
    "another coding, then chunked": head(POST, HOST, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n" + BEHIND,
    "codings in two fields": head(POST, HOST, "Transfer-Encoding: identity", CHUNKED) + b"0\r\n\r\n" + BEHIND,
    "chunked twice": head(POST, HOST, CHUNKED, CHUNKED) + b"0\r\n\r\n" + BEHIND,
    "chunked with a parameter": head(POST, HOST, "Transfer-Encoding: chunked;q=1") + b"0\r\n\r\n" + BEHIND,
    "chunked behind a control character": head(POST, HOST, "Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n" + BEHIND,
    "chunked in HTTP/1.0": head(POST[:-1] + "0", HOST, CHUNKED) + b"0\r\n\r\n" + BEHIND,
    "a blank before the colon": head(POST, HOST, "Transfer-Encoding : chunked") + b"0\r\n\r\n" + BEHIND,
    "a folded field": head(POST, HOST, "Transfer-Encoding:", " chunked") + b"0\r\n\r\n" + BEHIND,
    "lines that end in LF": head(POST, HOST, "Content-Length: 0").replace(b"\r\n", b"\n"),
    "one line that ends in LF": head(POST, HOST, "Content-Length: 0").replace(b"\r\n", b"\n", 1),
    "NUL in a value": head(POST, HOST, "X: a\0b", "Content-Length: 0"),
    "CR in a value": head(POST, HOST, "X: a\rContent-Length: 5", "Content-Length: 0"),
    "a field without a name": head(POST, HOST, ": a", "Content-Length: 0"),
    "no host": head(POST, "Content-Length: 0"),
    "two hosts": head(POST, HOST, HOST, "Content-Length: 0"),
    "an empty host": head(POST, "Host:", "Content-Length: 0"),
    "a host that is a path": head(POST, "Host: a/b", "Content-Length: 0"),
    "an upgrade with a body": head(POST, HOST, "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 3") + b"abc",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the first bytes of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_ambiguous_request_gets_400_and_smuggled_request_is_not_run(served: Running, what: str) -> None:
    heard = exchange(served.address, MALFORMED[what])
    assert (heard.statuses, heard.closed) == ([400], True)
    assert heard.responses[0].headers["connection"] == "close"
    assert json.loads(heard.responses[0].body)["error"].endswith(".")
    assert served.seen.targets == []


@pytest.mark.parametrize(
    "chunks",
    [
        *(b"0x3\r\nabc\r\n", b"+3\r\nabc\r\n", b"0_3\r\nabc\r\n", b"1" + b"0" * 17 + b"3\r\nabc\r\n", b"\r\nabc\r\n"),
        *(b"3\nabc\r\n", b"3\r\nabc\n", b"3\r\nabcd\r\n", b"3 \r\nabc\r\n", b"3;a\nb\r\nabc\r\n", b"-3\r\nabc\r\n"),
    ],
)
def test_malformed_chunks_get_400(served: Running, chunks: bytes) -> None:
    heard = exchange(served.address, head(POST, HOST, CHUNKED), chunks + b"0\r\n\r\n" + BEHIND, pause_s=0.02)
    assert (heard.statuses, heard.closed) == ([400], True)
    assert "/smuggled" not in served.seen.targets


@pytest.mark.parametrize("name", ["X", SIGNATURE.decode(), "Content-Length"])
def test_trailer_fields_are_refused(served: Running, name: str) -> None:
    body = b"3\r\nabc\r\n0\r\n" + name.encode() + b": 5\r\n\r\n" + BEHIND
    heard = exchange(served.address, head(POST, HOST, CHUNKED), body, pause_s=0.02)
    assert (heard.statuses, heard.closed) == ([400], True)
    assert "/smuggled" not in served.seen.targets


def test_connection_closes_after_an_upgrade_request(served: Running) -> None:
    """The parser reads nothing after it: the next request would wait for ever."""
    heard = exchange(served.address, head("GET /livez HTTP/1.1", HOST, "Connection: Upgrade", "Upgrade: h2c") + BEHIND)
    assert (heard.statuses, heard.closed) == ([200], True)
    assert heard.responses[0].headers["connection"] == "close"
    assert served.seen.targets == ["/livez"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST http://mapper.test/promotions/validate HTTP/1.1", 404),
        ("POST /promotions%2fvalidate HTTP/1.1", 404),
        ("POST /promotions/%76alidate HTTP/1.1", 404),
        ("POST /promotions/..%2fvalidate HTTP/1.1", 404),
        ("POST //promotions/validate HTTP/1.1", 404),
        ("POST /promotions//validate HTTP/1.1", 404),
        ("POST /x/../promotions/validate HTTP/1.1", 404),
        ("POST /promotions/validate/ HTTP/1.1", 404),
        ("POST /promotions/validate#x HTTP/1.1", 404),
        ("POST /promotions/validate\\ HTTP/1.1", 404),
        ("POST /Promotions/Validate HTTP/1.1", 404),
        ("POST /promotions/validate\xff HTTP/1.1", 400),
        ("POST promotions/validate HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT mapper.test:443 HTTP/1.1", 404),
        ("CONNECT /promotions/validate HTTP/1.1", 405),
        ("TRACE /promotions/validate HTTP/1.1", 405),
        ("BREW /promotions/validate HTTP/1.1", 400),
        ("GET /livez HTTP/2.0", 505),
        ("GET /livez HTTP/0.9", 505),
        ("GET /livez", 505),
        ("GET /livez HTTP/1.2", 400),
        ("GET /livez http/1.1", 400),
    ],
)
def test_other_forms_of_a_target_are_refused(served: Running, line: str, status: int) -> None:
    assert served.statuses(head(line, HOST, "Content-Length: 0"), expect=1) == [status]


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (signed(), [200]),
        (signed() + LIVEZ, [200, 200]),
        (b"\r\n" + LIVEZ, [200]),
        (signed().replace(b"application/json\r\n", b"application/json \t\r\n"), [200]),
        (re.sub(rb"([0-9a-f]{64})\r\n", rb"\1 \t\r\n", signed()), [200]),
        (head("GET /livez HTTP/1.0"), [200]),
        (head("GET /livez?probe=1 HTTP/1.1", HOST), [200]),
        (head("GET /livez HTTP/1.1", "Host: [::1]:8080"), [200]),
        (head("GET /livez HTTP/1.1", "Host: promotions_mapper:8080", *["X: y"] * 90), [200]),
        (head(POST, HOST, CHUNKED, "Connection: close") + b"3;name=value\r\nabc\r\n0\r\n\r\n" + BEHIND, [401]),
        (head(POST, HOST, "Transfer-Encoding: CHUNKED") + b"1\r\na\r\n" * 100 + b"0\r\n\r\n" + LIVEZ, [401, 200]),
    ],
)
def test_well_formed_requests_are_answered(served: Running, sent: bytes, statuses: list[int]) -> None:
    assert served.statuses(sent, expect=len(statuses)) == statuses
    assert "/smuggled" not in served.seen.targets


def test_expect_gets_100_continue_unless_the_body_is_too_large(served: Running) -> None:
    top, body = signed().split(b"\r\n\r\n", 1)
    with raw_http.connect(served.address) as connection:
        connection.sendall(top + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert converse(connection, body, expect=1).statuses == [200]
    refused = request("POST", "/promotions/validate", b"", ("Expect: 100-continue",)).replace(b": 0", b": 1000000000")
    assert b" 100 " not in exchange(served.address, refused, expect=1).raw


# -- Slow clients --------------------------------------------------------------------------------------------------

DRIP = [bytes([byte]) for byte in request("GET", "/livez", headers=("X: " + "x" * 50,))]


@pytest.mark.parametrize(
    ("parts", "statuses", "at_least_s"),
    [
        ([], [], 0.3),
        ([b"\r\n"] * 30, [], 0.3),
        ([b"POST /promotions/val"], [408], 0.3),
        ([head(POST, HOST)[:-2]], [408], 0.3),
        (DRIP, [408], 0.3),
        ([LIVEZ, *DRIP], [200, 408], 0.3),
        ([LIVEZ], [200], 0.5),
        ([head(POST, HOST, "Content-Length: 100") + b"{"], [408], 0.3),
        ([head(POST, HOST, CHUNKED), *[b"1\r\na\r\n"] * 30], [408], 0.3),
        ([head(POST, HOST, CHUNKED), b"1;", *[b"a"] * 30], [408], 0.3),
        ([request("GET", "/livez", headers=("Content-Length: 100",)), *[b"a"] * 30], [200], 0.3),
        ([LIVEZ + request("GET", "/nothing", headers=("Content-Length: 9",))], [200, 404], 0.3),
    ],
    ids=[
        *("silence", "empty lines", "half a line", "half a head", "a slow head", "a slow second head", "idle"),
        *("half a body", "a slow body", "a slow chunk", "an unread body", "an unread body of a second request"),
    ],
)
def test_slow_client_is_cut_off(served: Running, parts: list[bytes], statuses: list[int], at_least_s: float) -> None:
    heard = exchange(served.address, *parts, pause_s=0.03, wait_s=3)
    assert (heard.statuses, heard.closed) == (statuses, True)
    assert at_least_s - 0.02 < heard.seconds < at_least_s + 1.2


def test_client_that_does_not_read_is_cut_off() -> None:
    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(50_000_000)})

    with running(big, replace(SHORT, keep_alive_s=60)) as made, raw_http.connect(made.address) as connection:
        connection.sendall(LIVEZ)
        until = time.monotonic() + 3
        while not made.server.server_state.connections and time.monotonic() < until:
            time.sleep(0.01)
        while made.server.server_state.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert not made.server.server_state.connections


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            break


# -- Size limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([head(POST, HOST, "X: " + "a" * 17_000)], 431),
        ([head(POST, HOST, "X: " + "a" * 10_000_000)], 431),
        ([head(POST, HOST, "a" * 1_000_000 + ": x")], 431),
        ([head(POST, HOST, *["X: a"] * 20_000)], 431),
        ([head(POST, HOST, *["X: a"] * 101)], 431),
        ([head(POST, HOST, *["X: " + "a" * 1000] * 20)], 431),
        ([head(POST, HOST)[:-2] + b"X: ", *[b"a" * 6000] * 4], 431),
        ([head(POST[:5] + "/" + "a" * 9_000 + " HTTP/1.1", HOST)], 414),
        ([head(POST[:5] + "/" + "a" * 1_000_000 + " HTTP/1.1", HOST)], 414),
        ([head(POST, HOST, "Content-Length: 1000000000")], 413),
        ([head(POST, HOST, "Content-Length: 1000000000") + bytes(10_000_000)], 413),
        ([head(POST, HOST, CHUNKED) + (b"10000\r\n" + bytes(65536) + b"\r\n") * 100], 413),
    ],
)
def test_too_large_request_is_refused_at_once_and_gets_the_answer(
    served: Running, parts: list[bytes], status: int
) -> None:
    heard = exchange(served.address, *parts, pause_s=0.01)
    assert (heard.statuses, heard.closed) == ([status], True)
    assert heard.responses[0].headers["connection"] == "close"
    assert heard.all_sent, "a client that is still sending may never read the answer"
    assert heard.seconds < 1


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(served: Running) -> None:
    three = signed() + LIVEZ + request("GET", "/nothing")
    assert served.statuses(three, expect=3) == [200, 200, 404]
    served.seen.targets.clear()
    heard = exchange(served.address, LIVEZ * 20_000)
    assert heard.closed
    assert set(heard.statuses) == {200}
    assert len(heard.statuses) == len(served.seen.targets) <= 1 + SHORT.pipelined
    assert heard.responses[-1].headers["connection"] == "close"


@pytest.mark.parametrize("behind", [b"\0garbage", head("GET /livez HTTP/1.1"), head(POST, HOST, "X: " + "a" * 20_000)])
def test_request_before_garbage_is_answered(served: Running, behind: bytes) -> None:
    heard = exchange(served.address, signed() + behind)
    assert (heard.statuses, heard.closed) == ([200], True)


def test_silent_connections_do_not_block_others(served: Running) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(200):
            held.enter_context(raw_http.connect(served.address))
        heard = exchange(served.address, signed(), expect=1)
    assert heard.statuses == [200]
    assert heard.seconds < 0.5


def test_connections_above_the_limit_get_503_until_others_close() -> None:
    with running(service(), replace(SHORT, connections=10)) as made:
        with contextlib.ExitStack() as held:
            for _ in range(10):
                held.enter_context(raw_http.connect(made.address))
            heard = exchange(made.address, LIVEZ)
            assert (heard.statuses, heard.closed) == ([503], True)
            assert heard.responses[0].headers["retry-after"] == "1"
        assert heard.seconds < 0.3
        until = time.monotonic() + 2
        while (statuses := made.statuses(LIVEZ, expect=1)) == [503] and time.monotonic() < until:
            time.sleep(0.02)
        assert statuses == [200]


# -- Keep-alive and resources --------------------------------------------------------------------------------------


def test_keep_alive_timeout_counts_only_between_requests() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            await asyncio.sleep(0.25 if scope["path"] == "/slow" else 0)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    with running(slow, replace(SHORT, keep_alive_s=0.15)) as made:
        for parts in ([LIVEZ] * 5, [LIVEZ, request("GET", "/slow"), LIVEZ]):
            with raw_http.connect(made.address) as connection:
                for part in parts:
                    time.sleep(0.08)
                    assert converse(connection, part, expect=1).statuses == [200]
                ended = converse(connection)
            assert ended.closed
            assert 0.1 < ended.seconds < 1


def test_requests_and_connections_leave_no_reference_cycles() -> None:
    """`server.run` makes garbage collection rare."""
    order = {"id": "o-1", "order_items": CHECKOUT["items"]}
    requests = {
        "validate": signed(),
        "consume": signed(order, "consume"),
        "no JSON": signed("", "validate"),
        "not signed": signed(secret=b"a secret that nobody has heard of"),
        "no HTTP": b"\0",
        "not there": request("GET", "/nothing"),
    }
    with running(service()) as served:
        for sent in requests.values():  # create the cached objects first
            served.statuses(sent, expect=1)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for name, sent in requests.items():
                for _ in range(3):
                    served.statuses(sent, LIVEZ, expect=2, pause_s=0.01, wait_s=0.3)
                    with raw_http.connect(served.address) as gone:
                        gone.sendall(sent * 3)  # and is closed before the second one's turn
                time.sleep(0.3)
                gc.collect()
                modules = {type(one).__module__.partition(".")[0] for one in gc.garbage}
                assert not modules & {"mapper", "uvloop", "asyncio", "_asyncio", "httptools", "uvicorn"}, name
                gc.garbage.clear()
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


def test_run_tunes_the_interpreter_after_loading_all() -> None:
    program = """
import gc
from mapper.http import server

async def serve(*_, **__):
    import sys
    print(gc.get_freeze_count() > 20_000, gc.get_threshold()[0] > 5_000, sys.getswitchinterval() < 0.001)
    print("mapper.orders.redeem" in sys.modules)

server.Server.serve = serve
server.run(server.create("mapper.http.app:from_environment", factory=True), [])
"""
    environment = {**os.environ, **Process.settings("http://127.0.0.1:9")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_application_receives_the_disconnect() -> None:
    heard: list[str] = []

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        while scope["type"] == "http" and heard[-1:] != ["http.disconnect"]:
            heard.append((await receive())["type"])

    with running(patient) as made:
        with raw_http.connect(made.address) as connection:
            connection.sendall(LIVEZ)
            until = time.monotonic() + 3
            while not heard and time.monotonic() < until:
                time.sleep(0.01)
        while len(heard) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert heard == ["http.request", "http.disconnect"]


def test_body_is_not_buffered_while_the_application_does_not_read() -> None:
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            await asyncio.sleep(0.3)

    with running(deaf) as made, raw_http.connect(made.address, 0.2) as connection, pytest.raises(TimeoutError):
        connection.sendall(head(POST, HOST, "Content-Length: 50000000") + bytes(50_000_000))


def test_http_1_0_connection_closes_after_the_answer(served: Running) -> None:
    heard = exchange(served.address, head("GET /livez HTTP/1.0", "Connection: keep-alive"))
    assert (heard.statuses, heard.closed) == ([200], True)
    assert heard.responses[0].headers["connection"] == "close"


# -- Misbehaving applications --------------------------------------------------------------------------------------

OK: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
NO_LENGTH: Message = {"type": "http.response.start", "status": 200, "headers": []}
FORGED: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y\r\nset-cookie: z")]}
FORGED_CR: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y\rset-cookie: z")]}
FORGED_LF: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y\nset-cookie: z")]}


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize(
    ("target", "sends", "starts", "ends"),
    [
        ("GET", [OK, body(b"ok")], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok"),
        ("GET", [OK, body(b"o", more=True), body(b"k")], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok"),
        ("GET", [NO_LENGTH, body(b"ok")], b"HTTP/1.1 200 OK\r\n", b"chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("HEAD", [OK, body(b"ok")], b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n\r\n"),
        # A body shorter or longer than its head says ends with the connection, so that no client takes it as complete.
        ("GET", [OK, body(b"ok!")], b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n\r\n"),
        ("GET", [OK, body(b"o")], b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n\r\no"),
        ("GET", [OK], b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n\r\n"),
        ("GET", [OK, body(b"o", more=True)], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\no"),
        ("GET", [OK, body(b"o", more=True), body(b"k!")], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\no"),
        ("GET", [], b"HTTP/1.1 500 Internal Server Error\r\n", b"connection: close\r\n\r\nInternal Server Error"),
        *[("GET", [forged, body(b"")], b"", b"") for forged in (FORGED, FORGED_CR, FORGED_LF)],
    ],
)
def test_misbehaving_application_never_breaks_http_framing(
    target: str, sends: list[Message], starts: bytes, ends: bytes
) -> None:
    async def odd(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            for message in sends:
                await send(message)

    with running(odd, replace(SHORT, keep_alive_s=0.1)) as made, raw_http.connect(made.address) as connection:
        connection.sendall(request(target, "/"))
        connection.settimeout(2)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
        assert raw.startswith(starts)
        assert raw.endswith(ends)
        assert bool(raw) == bool(starts)
        assert b"set-cookie" not in raw


# -- The door ------------------------------------------------------------------------------------------------------


def full_service(**environment: str) -> Any:
    """A service that refuses every validate."""
    made = service(**environment)
    made._endpoints[b"/promotions/validate"]._limiter._would_wait_too_long = lambda *_: True
    return made


@pytest.mark.parametrize("target", ["/promotions/validate", "/promotions/validate?x=1"])
def test_call_at_full_service_is_refused_before_its_body_is_read(target: str) -> None:
    unsent = head(f"POST {target} HTTP/1.1", HOST, "Content-Length: 1000")
    for environment, status in (({}, 422), ({"MAPPER_OVERLOAD_STATUS": "503"}, 503)):
        with running(full_service(**environment)) as made:
            heard = exchange(made.address, unsent, expect=1)
            assert heard.statuses == [status]
            assert heard.responses[0].headers["retry-after"] == "1"
            assert json.loads(heard.responses[0].body)["error"]["category"] == "overloaded"
            order = {"id": "o-1", "order_items": CHECKOUT["items"]}
            assert made.statuses(signed(order, "consume"), expect=1) == [200]
            metrics = exchange(made.address, request("GET", "/metrics"), expect=1).raw.decode()
            assert 'mapper_shed_total{operation="validate",where="door"} 1.0' in metrics


def test_connection_stays_open_after_a_refusal_at_the_door() -> None:
    with running(full_service(), SHORT) as made:
        # The body is discarded whatever it looks like; the next request is answered.
        inner = request("GET", "/livez")
        refused = request("POST", "/promotions/validate", inner)
        heard = exchange(made.address, refused + refused + request("GET", "/version"), expect=3)
        assert (heard.statuses, heard.closed) == ([422, 422, 200], False)
        assert heard.responses[0].headers["date"]
        assert heard.responses[0].body == heard.responses[1].body
        heard = exchange(made.address, head(POST, HOST, "Content-Length: 9", "Connection: close") + b"123456789")
        assert heard.responses[0].headers["connection"] == "close"
        # The server does not wait for the rest of the body.
        with raw_http.connect(made.address, 2) as connection:
            connection.sendall(head(POST, HOST, "Content-Length: 9") + b"1234")
            raw = b"".join(iter(lambda: connection.recv(65536), b""))
            assert raw.startswith(b"HTTP/1.1 422 ")


# -- Concurrent connections and middleware -----------------------------------------------------------------------------


def bare(application: ASGIApp) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, send)

    return middleware


async def _go_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def crowd(address: Address, count: int) -> Counter[int]:
    """The statuses of `count` concurrent validates, each on its own connection."""

    async def ask() -> int:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(signed())
        top = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return int(top[9:12])

    async def all_of_them() -> Counter[int]:
        return Counter(await asyncio.gather(*(ask() for _ in range(count))))

    return asyncio.run(all_of_them())


def test_200_concurrent_new_connections_are_all_answered() -> None:
    """On an idle service. Checks only that none is refused, not how long each takes."""
    wire = fakes.FakeTransport()
    wire.pause = 0.1
    configured = fakes.settings(
        fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger(), MAPPER_VALIDATE_DEADLINE_MS="30000"
    )
    with running(app.create(configured, engine_transport=wire), replace(SHORT, head_s=10)) as made:
        for _ in range(2):
            assert crowd(made.address, 200) == {200: 200}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda application: application,
        bare,
        lambda application: BaseHTTPMiddleware(application, dispatch=_go_on),
        lambda application: GZipMiddleware(CORSMiddleware(application, allow_origins=["*"])),
    ],
    ids=["nothing", "a function", "Starlette's base", "two"],
)
def test_admission_is_the_same_with_middleware_and_after_unsigned_calls(
    wrap: Callable[[ASGIApp], ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "VALIDATE_CAPACITY", 4)
    wire = fakes.FakeTransport()
    wire.pause = 0.1
    configured = fakes.settings(
        fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger(), MAPPER_VALIDATE_DEADLINE_MS="500"
    )
    unsigned = request("POST", "/promotions/validate?x=1", b"{}")
    with running(wrap(app.create(configured, engine_transport=wire)), replace(SHORT, pipelined=100)) as made:
        for _ in range(8):
            assert made.statuses(unsigned * 50, expect=50, wait_s=5) == [401] * 50
        # Four at once, a tenth of a second each, within half a second: some 16 of 60.
        statuses = crowd(made.address, 60)
        assert set(statuses) == {200, 422}
        assert 8 <= statuses[200] <= 24
        assert crowd(made.address, 4) == {200: 4}


# -- Thousands of attacks ------------------------------------------------------------------------------------------

_CODINGS = [
    *("chunked", "Chunked", "CHUNKED", "xchunked", "chunked, identity", "identity, chunked", "chunked, chunked"),
    *("chunked;q=1", '"chunked"', "chunked,", ",chunked", "\tchunked", "chunked\t", "\x0bchunked", "chunked\x0c"),
    *("gzip, chunked", "deflate", "identity", "", "chunked\x00", "c\x68unked", "\xa0chunked", "chunk", "none"),
]
_NAMES = ["Transfer-Encoding", "transfer-encoding", "Transfer_Encoding", "Transfer-Encoding ", " Transfer-Encoding"]
_NAMES += [
    "Transfer-\x00Encoding",
    "Transfer-Encoding\t",
    "X-Transfer-Encoding",
    "TRANSFER-ENCODING",
    "Transfer Encoding",
]
_LENGTHS = [
    "{n}",
    "+{n}",
    "0{n}",
    " {n} ",
    "{n}, {n}",
    "{n};",
    "0x{n}",
    "-{n}",
    "{n}.0",
    "{n}e0",
    "",
    "0",
    "5",
    "99999",
]
_ENDS = ["\r\n", "\n", "\r", "\r\n ", "\r\n\t", "\r\r\n", "\n\r\n", "\x0b", "\x00\r\n"]
_SIZES = [
    "{x}",
    "0x{x}",
    "+{x}",
    "{x} ",
    " {x}",
    "0{x}",
    "{x};a=b",
    "{x};\n",
    "{x}\t",
    "_{x}",
    "{x}_",
    "-{x}",
    "{x}\x00",
]


def smuggling(dice: random.Random) -> bytes:
    """A request whose body hides a second one, which the service must never run."""
    end = dice.choice(_ENDS) if dice.random() < 0.2 else "\r\n"
    if dice.random() < 0.5:  # a correct length, with odd fields about chunks
        body = dice.choice([b"0\r\n\r\n", b"", b"0\n\n", b"5;\r\nabcde\r\n0\r\n\r\n"]) + BEHIND
        fields = [f"Content-Length: {len(body)}"]
        fields += [f"{dice.choice(_NAMES)}: {dice.choice(_CODINGS)}" for _ in range(dice.randrange(3))]
    else:  # one chunk, with odd fields about its length
        inner = b"abc\r\n" + BEHIND
        size = dice.choice(_SIZES) if dice.random() < 0.4 else "{x}"
        body = size.format(x=f"{len(inner):x}").encode("latin-1") + b"\r\n" + inner + b"\r\n0\r\n\r\n"
        fields = ["Transfer-Encoding: chunked"]
        if dice.random() < 0.6:
            fields.append(
                "Content-Length: " + dice.choice(_LENGTHS).format(n=dice.choice([5, len(body) - len(BEHIND)]))
            )
    dice.shuffle(fields)
    at = dice.randrange(len(fields) + 1)
    lines = [POST, *fields[:at], HOST, *fields[at:], f"X: a{end}b: c"]
    return head(*lines) + body


def garbled(dice: random.Random) -> bytes:
    """A valid request with some bytes inserted, removed, changed or repeated."""
    whole = bytearray(
        dice.choice([signed(), LIVEZ, head(POST, HOST, CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n", LIVEZ + signed()])
    )
    for _ in range(dice.choice([1, 1, 2, 5, 20])):
        at = dice.randrange(len(whole))
        byte = dice.choice(b"\0\r\n\t :;,/%#?\x7f\x80\xff0A") if dice.random() < 0.7 else dice.randrange(256)
        match dice.randrange(5):
            case 0:
                whole[at] = byte
            case 1:
                whole.insert(at, byte)
            case 2:
                del whole[at : at + dice.choice([1, 1, 4, 30])]
                whole = whole or bytearray(b"\n")
            case 3:
                whole[at:at] = whole[at : at + dice.choice([2, 10, 60])]
            case _:
                whole[at:at] = bytes([byte]) * dice.choice([2, 50, 3000])
    return bytes(whole)


def test_attacks_never_hang_crash_or_smuggle(served: Running) -> None:
    count = int(os.environ.get("ATTACKS", "2000"))
    dice = random.Random(7)
    answered: Counter[int] = Counter()
    for number in range(count):
        attack = (smuggling if number % 2 else garbled)(dice)
        cut = dice.randrange(len(attack)) if dice.random() < 0.2 else len(attack)
        patient = number % 200 < 2
        with raw_http.connect(served.address) as connection:
            try:
                connection.sendall(attack[:cut])
                connection.sendall(attack[cut:])
                if not patient:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused before all of it was sent
            heard = converse(connection, wait_s=4)
        assert heard.closed, attack
        answered.update(heard.statuses)
        assert "/smuggled" not in served.seen.targets, attack
    assert set(answered) <= {200, 400, 401, 404, 405, 408, 413, 414, 415, 431, 505}
    assert answered[400] > count / 4
    assert served.statuses(signed(), expect=1) == [200]


# -- Processes -----------------------------------------------------------------------------------------------------

SECRET = "a signing secret that is long enough"


class Process:
    """`python -m mapper serve`, with a sandbox as its engine."""

    @staticmethod
    def settings(engine: str) -> dict[str, str]:
        return {
            "MAPPER_ENGINE": "talon_one",
            "TALON_ONE_BASE_URL": f"{engine}/talon_one",
            "TALON_ONE_API_KEY": "key",
            "NACELLE_SIGNING_SECRETS": SECRET,
        }

    def __init__(
        self,
        folder: Path,
        engine: str,
        *arguments: str,
        listener: socket.socket | None = None,
        start_new_session: bool = False,
        **environment: str,
    ) -> None:
        ledger = {"MAPPER_LEDGER_URL": f"sqlite:///{folder}/ledger.db"}
        environment = {**os.environ, **self.settings(engine), **ledger, **environment}
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.address: Address = self.listener.getsockname()
        self.log = (folder / f"log-{time.monotonic()}").open("w+b")
        command = [sys.executable, "-m", "mapper", "serve", "--fd", str(self.listener.fileno()), *arguments]
        self.popen = subprocess.Popen(
            command,
            env=environment,
            stderr=self.log,
            pass_fds=[self.listener.fileno()],
            start_new_session=start_new_session,
        )
        if listener is None:
            self.listener.close()

    def logged(self, event: str) -> int:
        return Path(self.log.name).read_text().count(f'"event":"{event}"')

    def wait_for(self, true: Any) -> None:
        until = time.monotonic() + 30
        while not true():
            assert self.popen.poll() is None, Path(self.log.name).read_text()
            assert time.monotonic() < until, Path(self.log.name).read_text()
            time.sleep(0.02)

    def wait_until_ready(self) -> Self:
        def ready() -> bool:
            with contextlib.suppress(OSError):
                return exchange(self.address, request("GET", "/readyz"), expect=1, wait_s=1).statuses == [200]
            return False

        self.wait_for(ready)
        return self

    def send_signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        return {
            int(child)
            for child in children.read_text().split()
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()  # not Python's resource tracker
        }

    def rss_kb(self, kind: str = "VmRSS") -> int:
        found = re.search(rf"{kind}:\s+(\d+)", Path(f"/proc/{self.popen.pid}/status").read_text())
        assert found
        return int(found[1])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(30)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self.log.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with sandbox.running(sandbox.create()) as url:
        yield url


@contextlib.contextmanager
def process(folder: Path, engine: str, *arguments: str, **options: Any) -> Iterator[Process]:
    started = Process(folder, engine, *arguments, **options)
    try:
        yield started
    finally:
        started.close()


class Load:
    """Clients with keep-alive connections, each calling again once it is answered; every failure is counted."""

    def __init__(self, address: Address, clients: int = 6, *, may_be_refused: bool = False) -> None:
        self.address = address
        self.clients = clients
        self.may_be_refused = may_be_refused
        self.statuses: Counter[int] = Counter()
        self.lost: Counter[str] = Counter()
        self.over = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        turn = 0
        while not self.over.is_set():
            turn += 1
            body = {"id": f"o-{number}-{turn}", "order_items": CHECKOUT["items"]}
            call = signed(body, "validate" if turn % 3 else "consume", SECRET.encode())
            await asyncio.sleep(0.01)  # the service and its engine share two cores with this load
            fresh = streams is None
            try:
                streams = streams or await asyncio.open_connection(*self.address)
            except (ConnectionRefusedError, ConnectionResetError):
                # Nothing was sent, so a client could retry elsewhere. Here there is no other server.
                self.lost["refused"] += not self.may_be_refused
                await asyncio.sleep(0.02)
                continue
            try:
                answer = await self._ask(*streams, call)
            except (OSError, EOFError) as failure:
                # The kernel took this connection in the microseconds before the last listener closed, and the process
                # never accepted it: docs/operations.md counts that as refused.
                never_accepted = fresh and self.may_be_refused and isinstance(failure, ConnectionResetError)
                self.lost[type(failure).__name__] += not never_accepted
                answer = b"connection: close"
            if b"connection: close" in answer:
                streams[1].close()
                streams = None
        if streams:
            streams[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, call: bytes) -> bytes:
        writer.write(call)
        top = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", top)
        assert length
        await reader.readexactly(int(length[1]))
        self.statuses[int(top[9:12])] += 1
        return top


def wait_for_answers(load: Load, more: int = 20) -> None:
    wanted = load.statuses.total() + more
    until = time.monotonic() + 20
    while load.statuses.total() < wanted:
        assert time.monotonic() < until, (load.statuses, load.lost)
        time.sleep(0.01)


def test_replacing_all_workers_loses_no_request(tmp_path: Path, engine: str) -> None:
    restarts = int(os.environ.get("RESTARTS", "4"))
    with process(tmp_path, engine, "--workers", "2", "--drain", "0") as service:
        service.wait_for(lambda: service.logged("ready"))
        with Load(service.address) as load:
            wait_for_answers(load)
            for renewal in range(1, restarts // 2 + 1):
                before = service.workers()
                service.send_signal(signal.SIGHUP)
                service.wait_for(lambda done=renewal: service.logged("renewed") == done)
                assert not before & service.workers()
                assert len(service.workers()) == 2
                wait_for_answers(load)
        assert (load.lost, set(load.statuses)) == (Counter(), {200})
        assert service.stop() == 0


def test_successor_on_the_same_socket_loses_no_request(tmp_path: Path, engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        with process(tmp_path, engine, "--drain", "0", listener=listener) as first, Load(first.address) as load:
            wait_for_answers(load)
            assert first.stop() == 0
            with process(tmp_path, engine, "--drain", "0", listener=listener) as second:
                wait_for_answers(load)
                load.over.set()
                load.thread.join()
                assert second.stop() == 0
        assert (load.lost, set(load.statuses)) == (Counter(), {200})


def test_stopping_process_is_unready_first_and_loses_no_request(tmp_path: Path, engine: str) -> None:
    with process(tmp_path, engine, "--drain", "2") as service:
        service.wait_until_ready()
        with Load(service.address, may_be_refused=True) as load:
            wait_for_answers(load)
            service.send_signal(signal.SIGTERM)
            until = time.monotonic() + 1.8
            while (heard := exchange(service.address, request("GET", "/readyz"), expect=1)).statuses == [200]:
                assert time.monotonic() < until
            assert json.loads(heard.responses[0].body) == {"validate": False, "consume": False, "why": "draining"}
            assert heard.responses[0].headers["connection"] == "close"
            assert service.popen.wait(15) == 0
        assert (load.lost, set(load.statuses)) == (Counter(), {200})


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_skips_the_drain_and_loses_no_request(tmp_path: Path, engine: str, workers: int) -> None:
    with process(tmp_path, engine, "--drain", "60", "--workers", str(workers), start_new_session=True) as service:
        service.wait_until_ready()
        with Load(service.address, may_be_refused=True) as load:
            wait_for_answers(load)
            os.killpg(service.popen.pid, signal.SIGINT)  # to the whole group, as a terminal does
            assert service.popen.wait(15) == 0
        assert (load.lost, set(load.statuses)) == (Counter(), {200})


def test_ctrl_c_while_workers_start_exits_with_0(tmp_path: Path, engine: str) -> None:
    with process(tmp_path, engine, "--workers", "2", start_new_session=True) as service:
        service.wait_for(lambda: len(service.workers()) == 2)
        os.killpg(service.popen.pid, signal.SIGINT)
        assert service.popen.wait(15) == 0
        assert "Traceback" not in Path(service.log.name).read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_ctrl_c_stops_at_once(tmp_path: Path, engine: str, workers: str) -> None:
    with process(tmp_path, engine, "--workers", workers) as service:
        service.wait_until_ready()
        with raw_http.connect(service.address) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")  # and the rest within the next five seconds
            time.sleep(0.2)
            service.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                service.popen.wait(1.5)
            service.send_signal(signal.SIGINT)
            assert service.popen.wait(2) == 0


def test_stop_waits_for_calls_in_flight_but_not_for_idle_clients() -> None:
    wire = fakes.FakeTransport()
    wire.pause = 0.3
    configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
    application = app.create(configured, engine_transport=wire)
    with running(application) as made, contextlib.ExitStack() as held:
        silent, idle, asking = (held.enter_context(raw_http.connect(made.address)) for _ in range(3))
        assert converse(idle, LIVEZ, expect=1).statuses == [200]
        asking.sendall(signed())
        while "/promotions/validate" not in made.seen.targets:
            time.sleep(0.01)
        made.server.retire()
        heard = converse(asking)
        assert (heard.statuses, heard.closed) == ([200], True)
        assert heard.responses[0].headers["connection"] == "close"
        for connection in (silent, idle):
            assert converse(connection).closed


def test_stop_serves_connections_that_wait_to_be_accepted() -> None:
    busy, go_on = threading.Event(), threading.Event()

    async def blocking(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            if scope["path"] == "/block":
                busy.set()
                go_on.wait(5)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    with running(blocking, replace(SHORT, head_s=5)) as made, contextlib.ExitStack() as held:
        first, *others = (held.enter_context(raw_http.connect(made.address)) for _ in range(50))
        first.sendall(request("GET", "/block"))
        assert busy.wait(5)
        others += [held.enter_context(raw_http.connect(made.address)) for _ in range(50)]
        for connection in others:
            connection.sendall(LIVEZ)
        made.server.retire()
        go_on.set()
        for connection in others:
            heard = converse(connection)
            assert (heard.statuses, heard.closed) == ([200], True)


def test_concurrent_connections_are_accepted_in_one_turn() -> None:
    """The event loop's own server would need one turn for each connection."""
    busy, go_on = threading.Event(), threading.Event()
    turns = 0
    came: list[int] = []

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            if scope["path"] == "/block":
                busy.set()
                go_on.wait(5)
                count()
            else:
                came.append(turns)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    with running(application, replace(SHORT, head_s=5)) as made, contextlib.ExitStack() as held:
        first = held.enter_context(raw_http.connect(made.address))
        first.sendall(request("GET", "/block"))
        assert busy.wait(5)
        others = [held.enter_context(raw_http.connect(made.address)) for _ in range(200)]
        for connection in others:
            connection.sendall(LIVEZ)
        go_on.set()
        assert all(converse(connection, expect=1).statuses == [200] for connection in others)
    assert len(came) == 200
    assert max(came) <= 10


def test_calls_read_in_one_turn_have_the_same_received_time() -> None:
    """Their deadlines count from the beginning of the turn, however long it takes to read them all."""
    busy, go_on = threading.Event(), threading.Event()
    came: list[float] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await _lifespan(scope, receive, send)
        if scope["type"] == "http":
            if scope["path"] == "/block":
                busy.set()
                go_on.wait(5)
            else:
                await receive()
                came.append(scope["state"][RECEIVED])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    with running(application, replace(SHORT, head_s=5)) as made, contextlib.ExitStack() as held:
        first, *others = (held.enter_context(raw_http.connect(made.address)) for _ in range(51))
        for connection in others:  # so that each is accepted
            connection.sendall(LIVEZ)
            assert converse(connection, expect=1).statuses == [200]
        came.clear()
        first.sendall(request("GET", "/block"))
        assert busy.wait(5)
        for connection in others:
            connection.sendall(LIVEZ)
        go_on.set()
        assert all(converse(connection, expect=1).statuses == [200] for connection in others)
    assert (len(came), len(set(came))) == (50, 1)


def test_process_out_of_file_descriptors_waits_without_spinning(tmp_path: Path, engine: str) -> None:
    with process(tmp_path, engine, "--drain", "0") as service, contextlib.ExitStack() as held:
        service.wait_until_ready()
        pid = service.popen.pid
        fewer = len(list(Path(f"/proc/{pid}/fd").iterdir())) + 3
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (fewer, most))
        connections = [held.enter_context(raw_http.connect(service.address)) for _ in range(10)]
        time.sleep(0.2)
        before = service.cpu_s()
        time.sleep(0.5)
        assert service.cpu_s() - before < 0.25
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        for connection in connections:
            assert converse(connection, LIVEZ, expect=1, wait_s=5).statuses == [200]


def test_dead_worker_is_replaced_and_workers_end_with_their_supervisor(tmp_path: Path, engine: str) -> None:
    with process(tmp_path, engine, "--workers", "2", "--drain", "0") as service:
        service.wait_for(lambda: service.logged("ready"))
        before = service.workers()
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        service.wait_for(lambda: len(service.workers() - {victim}) == 2)
        assert service.logged("worker died") == 1
        service.wait_for(lambda: service.logged("started") == 3)
        left = service.workers()
        service.popen.kill()
        service.popen.wait()
        until = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in left):
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize(("hangs", "event"), [(True, "worker hangs"), (False, "worker died")])
def test_hung_worker_and_killed_worker_are_logged_differently(
    hangs: bool, event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone(workers.Worker):
        """Answers no ping."""

        def __init__(self) -> None:
            self.started = 0.0

        process = Mock(pid=1, exitcode=-9, **{"is_alive.return_value": hangs})
        is_alive = Mock(return_value=False)
        kill = join = Mock()

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    supervisor = object.__new__(workers.Supervisor)
    supervisor.processes, supervisor.should_exit = [Gone()], threading.Event()
    monkeypatch.setattr(supervisor, "_start", Gone)
    supervisor.keep_subprocess_alive()
    assert [record.message for record in caplog.records] == [event]


def test_worker_that_cannot_start_is_retried_while_others_serve(tmp_path: Path, engine: str) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    ledger = f"sqlite:///{home}/ledger.db"
    with process(tmp_path, engine, "--workers", "2", "--drain", "0", MAPPER_LEDGER_URL=ledger) as service:
        service.wait_for(lambda: service.logged("ready"))
        before = service.workers()
        home.rename(away)
        service.send_signal(signal.SIGHUP)
        service.wait_for(lambda: service.logged("not renewed"))
        assert service.workers() == before
        os.kill(min(before), signal.SIGKILL)
        service.wait_for(lambda: service.logged("worker died") == 2)
        since, died = time.monotonic(), service.logged("worker died")
        service.wait_for(lambda: service.logged("worker died") == died + 2)
        assert time.monotonic() - since > 1
        assert exchange(service.address, request("GET", "/livez"), expect=1).statuses == [200]
        assert max(before) in service.workers()
        away.rename(home)
        service.wait_for(lambda: len(service.workers()) == 2)
        assert service.stop() == 0


def test_renewal_with_wrong_settings_logs_them_and_keeps_old_workers(tmp_path: Path, engine: str) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text(SECRET)
    given = {"NACELLE_SIGNING_SECRETS": "", "NACELLE_SIGNING_SECRETS_FILE": str(secrets)}
    with process(tmp_path, engine, "--workers", "2", "--drain", "0", **given) as service:
        service.wait_for(lambda: service.logged("ready"))
        before = service.workers()
        secrets.unlink()
        service.send_signal(signal.SIGHUP)
        service.wait_for(lambda: service.logged("not renewed"))
        assert service.workers() == before
        lines = [
            json.loads(line) for line in Path(service.log.name).read_text().splitlines()
        ]  # no traceback among them
        (wrong,) = [line for line in lines if line["event"] == "wrong settings"]
        assert "NACELLE_SIGNING_SECRETS_FILE" in wrong["problem"]
        assert [line["exit_code"] for line in lines if line["event"] == "not renewed"] == [2]
        assert service.stop() == 0


def test_renewal_stays_ready_and_ends_on_sigterm(tmp_path: Path, engine: str) -> None:
    with process(tmp_path, engine, "--workers", "2", "--drain", "0") as service, contextlib.ExitStack() as held:
        service.wait_for(lambda: service.logged("ready"))
        before = service.workers()
        asking = [held.enter_context(raw_http.connect(service.address)) for _ in range(8)]
        service.send_signal(signal.SIGHUP)
        while asking:
            heard = [converse(connection, request("GET", "/readyz"), expect=1) for connection in asking]
            assert {status for one in heard for status in one.statuses} <= {200}
            ended = [one.closed or one.responses[0].headers.get("connection") == "close" for one in heard]
            asking = [connection for connection, over in zip(asking, ended, strict=True) if not over]
            if before - service.workers():  # only one has been renewed
                break
            time.sleep(0.02)
        service.send_signal(signal.SIGTERM)
        assert service.popen.wait(15) == 0
        assert service.logged("renewed") == service.logged("not renewed") == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_that_cannot_start_exits_with_2(tmp_path: Path, engine: str, workers: str) -> None:
    nowhere = f"sqlite:///{tmp_path}/no/such/folder/ledger.db"
    with process(tmp_path, engine, "--workers", workers, MAPPER_LEDGER_URL=nowhere) as service:
        assert service.popen.wait(30) == 2


def test_address_in_use_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Process.settings("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        cli.main(["serve", "--port", str(taken.getsockname()[1])])
    assert stop.value.code == 1
    assert "in use" in capsys.readouterr().err


def test_floods_leave_no_memory_behind(tmp_path: Path, engine: str) -> None:
    floods = [
        head(POST, HOST, "X: " + "a" * 1_000_000),
        head(POST, HOST, *["X: a"] * 20_000),
        head(POST[:5] + "/" + "a" * 1_000_000 + " HTTP/1.1", HOST),
        head(POST, HOST, "Content-Length: 1000000000") + bytes(1_000_000),
        head(POST, HOST, CHUNKED) + (b"10000\r\n" + bytes(65536) + b"\r\n") * 160,
        LIVEZ * 20_000,
    ]
    with process(tmp_path, engine, "--drain", "0") as service:
        service.wait_until_ready()
        for flood in floods:  # the first flood of each kind may leave larger buffers
            exchange(service.address, flood)
        before, peak = service.rss_kb(), service.rss_kb("VmHWM")
        for flood in floods * 5:
            assert exchange(service.address, flood).closed
        assert service.rss_kb() - before < 5_000
        assert service.rss_kb("VmHWM") - peak < 5_000
        assert peak < 100_000
