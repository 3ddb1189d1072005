"""Both clients, on both event loops, against a hostile server that counts requests."""

import asyncio
import logging
import socket
import ssl
import subprocess
import sys
import time
import traceback
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import aiohttp
import pytest
import uvloop

from mapper import __version__
from mapper.adapter import EngineReply
from mapper.engine import transport
from mapper.engine.clients import create
from mapper.engine.transport import NotSent, Transport, Unknown
from tests.engine import hostile_server
from tests.engine.hostile_server import HostileServer

Story = Callable[[Transport, HostileServer], Awaitable[None]]
SECRET = "a-secret-nobody-may-see"
HEADERS = (("X-App-Token", SECRET), ("Content-Type", "application/json"))
QUERY = "?code=SUMMER"
LIMIT = 100_000


class Rim:
    """Runs a story with a fresh client and a fresh server, on one event loop."""

    def __init__(self, client: Literal["aiohttp", "httpx"], loop: str) -> None:
        self.client: Literal["aiohttp", "httpx"] = client
        self.loop = loop

    def run(self, story: Story, *, connections: int = 8, tls: bool = False, resets: bool = False) -> HostileServer:
        async def main() -> HostileServer:
            client = create(self.client, connections=connections)
            try:
                async with HostileServer(tls=tls, resets=resets).running() as server:
                    await story(client, server)
                    return server
            finally:
                await client.aclose()

        factory = uvloop.new_event_loop if self.loop == "uvloop" else asyncio.new_event_loop
        # As if aiohttp had just been imported: it reads the authorities then.
        read_now = patch.object(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context())
        with read_now, asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())


@pytest.fixture(params=["aiohttp", "httpx"])
def rim(request: pytest.FixtureRequest) -> Rim:
    """Each client, on the event loop of the service."""
    return Rim(request.param, "uvloop")


@pytest.fixture(params=["aiohttp-asyncio", "aiohttp-uvloop", "httpx-asyncio", "httpx-uvloop"])
def any_rim(request: pytest.FixtureRequest) -> Rim:
    """Each client on each event loop, for what the two loops do differently: connections that end."""
    client, loop = request.param.split("-")
    return Rim(client, loop)


@pytest.fixture(autouse=True)
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of trusted authorities: empty, which also loads faster than the machine's hundreds."""
    path = tmp_path / "authorities.pem"
    path.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


async def call(
    client: Transport,
    url: str,
    *,
    method: str = "PUT",
    body: bytes = b"{}",
    timeout_s: float = 10.0,
    limit: int = LIMIT,
) -> EngineReply:
    return await client.send(method, url, HEADERS, body, timeout_s, limit)


async def failure(client: Transport, url: str, **arguments: Any) -> tuple[type[Exception], str]:
    with pytest.raises((NotSent, Unknown)) as caught:
        await call(client, url, **arguments)
    assert isinstance(caught.value, NotSent | Unknown)
    return type(caught.value), caught.value.reason


# Loading


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import mapper.engine.conversation", set()),
        ("from mapper.engine.clients import create; create('aiohttp', connections=1)", {"aiohttp"}),
        ("from mapper.engine.clients import create; create('httpx', connections=1)", {"httpx2"}),
    ],
)
def test_only_the_used_client_is_imported(code: str, loaded: set[str]) -> None:
    code = f"{code}; import sys; print(*{{'aiohttp', 'httpx2'}} & sys.modules.keys())"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(output.split()) == loaded


# Requests


def test_request_is_sent_as_given_with_standard_headers(rim: Rim) -> None:
    sent = [(method, body) for method in ("PUT", "POST", "GET", "DELETE") for body in (b"", b"{}", b"x" * 2_000_000)]

    async def story(client: Transport, server: HostileServer) -> None:
        for method, body in sent:
            await call(client, server.url(), method=method, body=body)

    requests = rim.run(story).requests
    assert [(received.method, received.body) for received in requests] == sent
    for received in requests:
        headers = {name.lower(): value for name, value in received.headers}
        assert headers["x-app-token"] == SECRET
        assert headers["user-agent"] == f"promotions-mapper/{__version__}"
        assert headers["accept-encoding"] == "gzip"
        assert headers["host"].startswith("127.0.0.1:")
        assert len(headers) == len(received.headers), "a header went out twice"
        assert not headers.keys() & {"cookie", "authorization", "transfer-encoding", "expect", "accept"}


def test_no_unrequested_header_is_sent(rim: Rim) -> None:
    given = [("Accept", "text/x"), ("Content-Type", "text/x")]
    sent = [[], given[:1], given[1:], given]

    async def story(client: Transport, server: HostileServer) -> None:
        for headers in sent:
            for body in (b"", b"{}"):
                await client.send("PUT", server.url(), headers, body, 2.0, LIMIT)

    house = {"host", "user-agent", "accept-encoding", "content-length", "connection"}
    received = [
        [(name, value) for name, value in one.headers if name.lower() not in house] for one in rim.run(story).requests
    ]
    assert received == [headers for headers in sent for _ in range(2)]


def test_url_is_not_normalized(rim: Rim) -> None:
    targets = [
        "/v2/customer_sessions/a%2Fb%20c%C3%A9",
        "/v2/%2e%2e/x",
        "/v2/../x/./y",
        "/v2/a~b-c_d.e!$&'()*+,;=:@f",
        "/v2/%41%7e%2a",
        "/v2/x?dry=true&q=a+b%2Bc&filters[code]=%26",
        "/v2/%3Fdry=true%23",
        "/v2//x//",
        "/",
    ]

    async def story(client: Transport, server: HostileServer) -> None:
        for target in targets:
            await call(client, server.url(target), method="GET", body=b"")

    assert [received.target for received in rim.run(story).requests] == targets


def test_header_and_request_injection_is_refused(rim: Rim) -> None:
    refused: list[tuple[str, str, tuple[tuple[str, str], ...]]] = [
        *(("PUT", path, ()) for path in ("/a b", "/a\r\nX-Other: 1", "/é", "/\x00", "/a\n")),
        *((method, "/", ()) for method in ("PUT\r\n", "put", "PUT /x", "")),
        *(("PUT", "/", (("X-Key", value),)) for value in ("a\r\nX-Other: 1", "a\n", "é", "\x00")),
        *(("PUT", "/", ((name, "a"),)) for name in ("X Key", "X-Key:", "X-Key\n", "")),
    ]

    async def story(client: Transport, server: HostileServer) -> None:
        for method, path, headers in refused:
            with pytest.raises(ValueError):
                await client.send(method, server.url(path), headers, b"", 1.0, LIMIT)
        for url in ("ftp://127.0.0.1/", "//127.0.0.1/", "/x", "", "127.0.0.1/x"):
            with pytest.raises(ValueError):
                await call(client, url)

    assert rim.run(story).connections == 0


# Replies


def test_replies_of_every_status_and_encoding_are_returned(rim: Rim) -> None:
    expected = {
        **{f"/status/{status}": (status, b'{"a": 1}') for status in (200, 201, 400, 401, 404, 409, 422, 429, 500, 503)},
        "/ok": (200, b"{}"),
        "/chunked": (200, b"{}"),
        "/until_close": (200, b"{}"),
        "/hints": (200, b"{}"),
        "/size/0": (200, b""),
        "/gzip/5": (200, b"xxxxx"),
        "/gzip/0": (200, b""),
        "/empty_gzip": (200, b""),
    }
    replies = {}

    async def story(client: Transport, server: HostileServer) -> None:
        for path in expected:
            reply = await call(client, server.url(path))
            replies[path] = (reply.status, reply.body)

    rim.run(story)
    assert replies == expected


def test_header_names_are_lowercased_and_repeated_ones_joined(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        reply = await call(client, server.url("/headers"))
        assert reply.headers["x-twice"] == "a, b"
        assert all(name == name.lower() for name in reply.headers)

    rim.run(story)


def test_cookies_are_not_kept(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        await call(client, server.url("/headers", host="localhost"))
        await call(client, server.url("/ok", host="localhost"))

    assert not any(name.lower() == "cookie" for name, _ in rim.run(story).requests[1].headers)


def test_redirect_is_returned_and_not_followed(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        async with HostileServer().running() as elsewhere:
            server.location = elsewhere.url()
            for status in (301, 302, 303, 307, 308):
                reply = await call(client, server.url(f"/redirect/{status}"))
                assert (reply.status, reply.headers["location"]) == (status, server.location)
            assert elsewhere.connections == 0

    assert len(rim.run(story).requests) == 5


# Failures

FAILURES = {
    "/reset": (Unknown, "reset"),
    "/close": (Unknown, "reset"),
    "/garbage": (Unknown, "garbled"),
    "/long_headers": (Unknown, "garbled"),
    "/stall": (Unknown, "timeout"),
    "/stall_in_body": (Unknown, "timeout"),
    "/drip": (Unknown, "timeout"),
    "/drip_head": (Unknown, "timeout"),
    "/truncate": (Unknown, "truncated"),
    "/truncate_chunked": (Unknown, "truncated"),
    "/reset_in_body": (Unknown, "truncated"),
    "/flood": (Unknown, "too_large"),
    "/bomb": (Unknown, "too_large"),
    "/half_gzip": (Unknown, "truncated"),
    "/no_gzip": (Unknown, "undecodable"),
    "/gzip_and_more": (Unknown, "undecodable"),
    "/brotli": (Unknown, "undecodable"),
}
# Their bodies are unusable, but were received in full.
SOUND_CONNECTION = ("/half_gzip", "/no_gzip", "/gzip_and_more", "/brotli")


def test_failure_after_connecting_is_unknown_and_client_recovers(any_rim: Rim) -> None:
    failures = {}

    async def story(client: Transport, server: HostileServer) -> None:
        for path in FAILURES:
            before = server.connections
            timeout_s = 0.1 if FAILURES[path][1] == "timeout" else 2.0
            failures[path] = await failure(client, server.url(path), timeout_s=timeout_s)
            assert (await call(client, server.url("/ok"))).status == 200
            assert path in SOUND_CONNECTION or server.connections > before, (
                f"after {path}, its connection was used again"
            )

    server = any_rim.run(story, connections=1)
    assert failures == FAILURES
    assert [received.target for received in server.requests] == [
        target for path in FAILURES for target in (path, "/ok")
    ]


def test_malformed_chunk_is_unknown(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        # aiohttp's parser does not report it, so that it waits for the rest; for the order both mean the same.
        assert await failure(client, server.url("/bad_chunk"), timeout_s=0.1) in [
            (Unknown, "truncated"),
            (Unknown, "timeout"),
        ]

    rim.run(story)


def test_deadline_covers_whole_reply(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        for path in ("/stall", "/drip"):
            started = time.monotonic()
            await failure(client, server.url(path), timeout_s=0.1)
            assert 0.09 < time.monotonic() - started < 0.5, path

    rim.run(story)


def test_failed_connection_is_not_sent(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            assert await failure(client, f"http://127.0.0.1:{unused.getsockname()[1]}/") == (NotSent, "connect")
        # A peer that stays silent during the TLS handshake.
        silent = server.url().replace("http:", "https:")
        assert await failure(client, silent, timeout_s=0.2) == (NotSent, "connect")
        # No free connection: a stalled call has the only one.
        stalled = asyncio.create_task(call(client, server.url("/stall")))
        await asyncio.sleep(0.05)
        assert await failure(client, server.url("/ok"), timeout_s=0.1) == (NotSent, "connect")
        stalled.cancel()
        assert await failure(client, server.url("/ok"), timeout_s=0.0) == (NotSent, "connect")
        await asyncio.wait([stalled])
        assert (await call(client, server.url("/ok"))).status == 200

    assert [received.target for received in rim.run(story, connections=1).requests] == ["/stall", "/ok"]


def test_connecting_may_use_half_of_timeout(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        started = time.monotonic()
        await failure(client, server.url().replace("http:", "https:"), timeout_s=0.5)
        assert 0.24 < time.monotonic() - started < 0.49

    rim.run(story)


@pytest.mark.parametrize("client", ["aiohttp", "httpx"])
def test_unknown_host_is_not_sent(client: Literal["aiohttp", "httpx"], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    async def story(client: Transport, server: HostileServer) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        assert await failure(client, "http://engine.test/") == (NotSent, "dns")

    Rim(client, "asyncio").run(story)


def test_certificates_are_verified_before_sending(rim: Rim, authority: Path) -> None:
    async def refused(client: Transport, server: HostileServer) -> None:
        assert await failure(client, server.url("/ok")) == (NotSent, "tls")
        with pytest.raises(NotSent, match="certificate verify failed"):  # for the operator
            await call(client, server.url("/ok"))

    async def wrong_name(client: Transport, server: HostileServer) -> None:
        assert await failure(client, server.url("/ok", host="localhost")) == (NotSent, "tls")

    async def accepted(client: Transport, server: HostileServer) -> None:
        assert (await call(client, server.url("/ok"))).status == 200

    assert rim.run(refused, tls=True).requests == []
    authority.write_text(hostile_server.certificate())
    assert rim.run(wrong_name, tls=True).requests == []
    assert len(rim.run(accepted, tls=True).requests) == 1


def test_proxies_and_netrc_of_environment_are_ignored(
    rim: Rim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))

    async def story(client: Transport, server: HostileServer) -> None:
        async with HostileServer().running() as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url(""))
            await call(client, server.url())
            assert proxy.connections == 0

    received = rim.run(story).requests[0]
    assert received.target == "/ok"
    assert not any(name.lower() == "authorization" for name, _ in received.headers)


# One send, one request


METHODS = ("PUT", "POST", "GET", "DELETE")


@pytest.mark.parametrize("path", ["/reset", "/close", "/truncate", "/garbage"])
def test_each_call_sends_exactly_one_request(any_rim: Rim, path: str) -> None:
    fresh, kept = 5 * [path], 5 * ["/ok", path]

    async def story(client: Transport, server: HostileServer) -> None:
        for method in METHODS:
            for target in fresh + kept:
                if target == "/ok":
                    await call(client, server.url(target), method=method)
                else:
                    kind, _ = await failure(client, server.url(target), method=method)
                    assert kind is Unknown

    server = any_rim.run(story)
    assert [(received.method, received.target) for received in server.requests] == [
        (method, target) for method in METHODS for target in fresh + kept
    ]
    assert server.connections == 10 * len(METHODS)


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_reset_of_unread_request_is_unknown_and_not_resent(any_rim: Rim, method: str) -> None:
    async def kept(client: Transport, server: HostileServer) -> None:
        await call(client, server.url("/reset_unread"), method=method)
        assert await failure(client, server.url("/ok"), method=method) == (Unknown, "reset")

    server = any_rim.run(kept)
    assert [received.target for received in server.requests] == ["/reset_unread"]
    assert server.connections == 1

    async def fresh(client: Transport, server: HostileServer) -> None:
        # Whether the connection counts as made depends on timing; the number of attempts does not.
        await failure(client, server.url("/ok"), method=method)

    assert any_rim.run(fresh, resets=True).connections == 1


def test_connection_closed_while_idle_is_replaced(any_rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        for path in ("/then_close", "/then_half_close") * 5:
            await call(client, server.url(path))
            await asyncio.sleep(0.01)

    server = any_rim.run(story)
    assert (len(server.requests), server.connections) == (10, 10)


def test_unrequested_bytes_are_not_taken_for_next_reply(any_rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        await call(client, server.url("/then_poison"))
        await server.poisoned.wait()
        await asyncio.sleep(0.05)  # it takes some microseconds to arrive
        assert (await call(client, server.url("/ok"))).body == b"{}"

    assert any_rim.run(story, connections=1).connections == 2


# The pool


def test_connections_are_reused_and_limited(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        for _ in range(5):
            await call(client, server.url())
        assert server.connections == 1
        await asyncio.gather(*(call(client, server.url()) for _ in range(40)))
        assert 1 < server.connections <= 4

    assert len(rim.run(story, connections=4).requests) == 45


def test_idle_connection_is_closed_before_load_balancers_do(rim: Rim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transport.IDLE_S == 4.0
    monkeypatch.setattr(transport, "IDLE_S", 0.05)

    async def story(client: Transport, server: HostileServer) -> None:
        await call(client, server.url())
        await asyncio.sleep(0.1)
        await call(client, server.url())

    assert rim.run(story).connections == 2


def test_cancelled_calls_free_their_connections(any_rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        for moment in range(40):
            path = ("/stall", "/stall_in_body", "/drip", "/drip_head")[moment % 4]
            calls = [asyncio.create_task(call(client, server.url(path))) for _ in range(6)]
            await asyncio.sleep(0.0003 * moment)
            for task in calls:
                task.cancel()
            await asyncio.wait(calls)
            assert all(task.cancelled() for task in calls)
        replies = await asyncio.gather(*(call(client, server.url("/ok")) for _ in range(10)))
        assert [reply.status for reply in replies] == [200] * 10

    any_rim.run(story, connections=4)


# Size


@pytest.mark.parametrize("form", ["size", "gzip"])
def test_body_up_to_the_limit_is_accepted(rim: Rim, form: str) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        assert len((await call(client, server.url(f"/{form}/{LIMIT}"))).body) == LIMIT
        assert await failure(client, server.url(f"/{form}/{LIMIT + 1}")) == (Unknown, "too_large")

    rim.run(story)


def test_zip_bomb_is_not_held_in_memory(rim: Rim) -> None:
    async def story(client: Transport, server: HostileServer) -> None:
        tracemalloc.start()
        try:
            started = time.monotonic()
            assert await failure(client, server.url("/bomb"), limit=2_000_000) == (Unknown, "too_large")
            assert time.monotonic() - started < 1.5
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    rim.run(story)


# Secrets


def test_logs_errors_and_reprs_hide_secrets_and_urls(rim: Rim, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def story(client: Transport, server: HostileServer) -> None:
        silent = server.url().replace("http:", "https:")
        for url in (*map(server.url, ("/ok", *FAILURES)), silent, "http://127.0.0.1:1/refused"):
            try:
                await call(client, url + QUERY, timeout_s=0.05)
            except (NotSent, Unknown) as error:
                texts.extend([repr(error), str(error), *traceback.format_exception(error)])
        texts.extend([repr(client), str(vars(client))])

    rim.run(story)
    texts.append(caplog.text)
    assert not [text for text in texts if SECRET in text or "SUMMER" in text]
    assert not [record for record in caplog.records if record.name.startswith(("aiohttp", "httpx2", "httpcore2"))]
