"""The rim towards the engine: one HTTP request out, one reply or one honest failure back.

Two clients, one `Transport`, one test suite against a server that counts what it receives: aiohttp (the default, fast
under load) and httpx2 (`MAPPER_HTTP_CLIENT=httpx`). Both are held to the same rules:

- **One send is at most one request on the wire.** Nothing here repeats; `mapper.engine` decides about that.
- **A failure says whether the engine can have acted.** `NotSent` only where no connection was handed to the request;
  everything after that is `Unknown`, since a reset looks the same before and after the engine has committed.
- The URL goes out as it was given, to the byte. Redirects are not followed, cookies not kept, proxies and .netrc not
  looked up, certificates verified (by this machine's authorities, or those in `SSL_CERT_FILE`, as always with OpenSSL).
- One deadline for the whole exchange, from the wait for a connection to the last byte of the body; connecting gets at
  most half of it (with httpx2: each step of it), so that a lost packet leaves time for another attempt.
- The body is cut at a size counted after decompression, while it is being read.

**aiohttp repeats by itself**: a GET, PUT or DELETE whose connection breaks before the reply is sent a second time, even
on a fresh connection. Measured: five PUTs to a server that resets after reading, ten received. The public way to stop
it is a client middleware (`_only_once`), which runs inside that loop: it turns the two errors that make aiohttp repeat
into one it does not know. httpx2 repeats only what never left (a connection that the pool found closed).

**A kept connection that the engine has closed while it was idle** is dropped and replaced before use by both clients,
unseen and unsent. Where the close crosses our request on the wire, the outcome is `Unknown("reset")`: the engine may
have read it. To make that rare, connections are kept for 4 s only, less than any load balancer keeps them.
"""

import asyncio
import io
import logging
import re
import socket
import ssl
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import aiohttp
import httpx2
from aiohttp.tracing import Trace
from yarl import URL

from mapper import __version__
from mapper.adapter import EngineReply

IDLE_S = 4.0
"""How long an unused connection is kept."""

_ALWAYS = (("User-Agent", f"promotions-mapper/{__version__}"), ("Accept-Encoding", "gzip"))
_METHOD = re.compile(r"[A-Z]+")
_URL = re.compile(r"https?://[!-~]+")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t -~]*")


class NotSent(Exception):
    """Certainly nothing reached the engine. `reason`: connect (refused, too slow, no connection free), dns or tls."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class Unknown(Exception):
    """The engine may have acted on the request, or not.

    `reason`: timeout, reset (connection gone before the reply), garbled (the reply is not HTTP), truncated (it ended
    early), too_large, or undecodable (compressed in a way we did not ask for, or badly).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class Transport(Protocol):
    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        """The engine's reply, whatever its status; header names in lower case.

        Raises `NotSent` or `Unknown`, and `ValueError`, before anything is sent, where method, URL or headers hold what
        HTTP cannot carry. To cancel it is safe: the connection is dropped.
        """
        ...

    async def aclose(self) -> None: ...


def create(name: Literal["aiohttp", "httpx"], *, connections: int) -> Transport:
    """The client of that name, with room for as many calls at a time as `connections`."""
    # Below WARNING these write URLs (codes stand in them) and reply headers.
    for logger in ("aiohttp", "httpx2", "httpcore2"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    return AiohttpTransport(connections) if name == "aiohttp" else HttpxTransport(connections)


class _Exchange:
    """One request, and how far it has come: that decides what a failure means."""

    def __init__(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float
    ) -> None:
        """Raises `ValueError` rather than let a line break in data make a header or a request of its own."""
        if not _METHOD.fullmatch(method) or not _URL.fullmatch(url):
            raise ValueError("the method is not one of HTTP's, or the URL is not a plain http(s) URL")
        for name, value in headers:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"the header {name!r} holds characters that HTTP headers cannot carry")
        self.method, self.url, self.body, self.timeout_s = method, url, body or None, timeout_s
        self.headers = [*_ALWAYS, *headers]
        self.stage: Literal["connecting", "sending", "reading"] = "connecting"

    def failure(self, error: Exception) -> NotSent | Unknown:
        kind = type(error.__cause__ or error).__name__
        late = isinstance(error, TimeoutError | httpx2.TimeoutException)
        if self.stage == "connecting":
            # What these two say is the address and the system's word for the fault; others hold the URL.
            told = isinstance(error, aiohttp.ClientConnectorError | httpx2.ConnectError)
            return NotSent("connect" if late else _why_no_connection(error), str(error) if told else kind)
        if late:
            return Unknown("timeout", self.stage)
        if self.stage == "reading":
            return Unknown("truncated", kind)
        return Unknown("garbled" if _is_garbled(error) else "reset", kind)


def _why_no_connection(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return "tls"
        if isinstance(error, socket.gaierror):
            return "dns"
        error = error.__cause__ or error.__context__
    return "connect"


def _is_garbled(error: Exception) -> bool:
    if isinstance(error, httpx2.RemoteProtocolError):
        # "Disconnected without a response" is this class too, but no complaint of the HTTP parser stands behind it.
        return error.__cause__ is not None and error.__cause__.__context__ is not None
    return isinstance(error, aiohttp.ClientResponseError)


def _merged(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Lower-case names; values of a repeated header joined by a comma."""
    merged: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        merged[key] = f"{merged[key]}, {value}" if key in merged else value
    return merged


async def _read(chunks: AsyncIterable[bytes], encoding: str, max_bytes: int) -> bytes:
    """The body, decompressed here and not by the client: what a small bomb would inflate to is never made."""
    if encoding.strip().lower() not in ("", "identity", "gzip", "x-gzip"):
        raise Unknown("undecodable", "encoding")
    gzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if "gzip" in encoding.lower() else None
    body, came = bytearray(), False
    async for chunk in chunks:
        came = came or bool(chunk)
        try:
            body += gzip.decompress(chunk, max_bytes + 1 - len(body)) if gzip else chunk
        except zlib.error:
            raise Unknown("undecodable", "gzip") from None
        if len(body) > max_bytes:
            raise Unknown("too_large", f"over {max_bytes} bytes")
        if gzip and gzip.unused_data:
            raise Unknown("undecodable", "bytes after the gzip stream")
    if gzip and came and not gzip.eof:
        raise Unknown("truncated", "gzip")
    return bytes(body)


class _Client(ABC):
    """What both clients share: checks, the deadline, and telling failures apart."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        exchange = _Exchange(method, url, headers, body, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._perform(exchange, max_bytes)
        except (NotSent, Unknown):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a client raises, what counts is whether the request went out
            # The client's own exception goes no further: some carry the request's headers, and so the credentials.
            raise exchange.failure(error) from None

    @abstractmethod
    async def _perform(self, exchange: _Exchange, max_bytes: int) -> EngineReply:
        """Sends the request once, moving `exchange.stage` on as it goes."""

    @abstractmethod
    async def aclose(self) -> None: ...


class _Stopped(Exception):
    """A failure on its way past aiohttp's own repeating: the original is its cause."""


async def _only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # no connection: aiohttp does not repeat this one
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Stopped from error


def _in_pieces(body: bytes | None) -> bytes | io.BytesIO | None:
    """A body in the form aiohttp wants: above this size it warns about one that would go out in one piece."""
    return io.BytesIO(body) if body and len(body) > 2**20 else body


_current: ContextVar[_Exchange] = ContextVar("_current")
"""Tells the connector which exchange it works for: aiohttp's own way, tracing, costs a sixth of the whole call."""


class _Connector(aiohttp.TCPConnector):
    """Notes when a connection is handed out, and hands out none on which something arrived while it was idle.

    aiohttp by itself takes such bytes for the reply to the next request: one shopper would get another's answer.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the name is aiohttp's
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                _current.get().stage = "sending"
                return connection
            connection.close()


class AiohttpTransport(_Client):
    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._tls = ssl.create_default_context()  # takes long, so not at the first call
        self._open: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        """Made at the first call, since aiohttp wants a running event loop for it."""
        if self._open is None:
            self._open = aiohttp.ClientSession(
                connector=_Connector(limit=self._connections, keepalive_timeout=IDLE_S, ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Content-Type"),
                trust_env=False,
                middlewares=(_only_once,),
            )
        return self._open

    async def _perform(self, exchange: _Exchange, max_bytes: int) -> EngineReply:
        _current.set(exchange)
        response = await self._session().request(
            exchange.method,
            URL(exchange.url, encoded=True),
            headers=exchange.headers,
            data=_in_pieces(exchange.body),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=exchange.timeout_s / 2),
        )
        try:
            exchange.stage = "reading"
            headers = _merged(response.headers.items())
            body = await _read(response.content.iter_any(), headers.get("content-encoding", ""), max_bytes)
        except BaseException:
            response.close()
            raise
        response.release()
        return EngineReply(status=response.status, headers=headers, body=body)

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open.close()


class HttpxTransport(_Client):
    """httpx2's transport without its client: no redirects, cookies, proxies, .netrc and URL logs to switch off.

    Cancelled in the middle of a TLS handshake, httpcore2 leaves the socket to the garbage collector.
    """

    def __init__(self, connections: int) -> None:
        limits = httpx2.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_S
        )
        self._pool = httpx2.AsyncHTTPTransport(verify=ssl.create_default_context(), trust_env=False, limits=limits)

    async def _perform(self, exchange: _Exchange, max_bytes: int) -> EngineReply:
        async def trace(event: str, _: dict[str, Any]) -> None:
            if event == "http11.send_request_headers.started":
                exchange.stage = "sending"

        extensions = {
            "timeout": {"connect": exchange.timeout_s / 2, "pool": exchange.timeout_s / 2},
            "trace": trace,
            "target": _target(exchange.url),  # httpx2 would tidy up the path
        }
        request = httpx2.Request(
            exchange.method, exchange.url, headers=exchange.headers, content=exchange.body, extensions=extensions
        )
        response = await self._pool.handle_async_request(request)
        try:
            exchange.stage = "reading"
            headers = _merged(response.headers.multi_items())
            async with aclosing(response.aiter_raw()) as chunks:
                body = await _read(chunks, headers.get("content-encoding", ""), max_bytes)
        finally:
            await response.aclose()
        return EngineReply(status=response.status_code, headers=headers, body=body)

    async def aclose(self) -> None:
        await self._pool.aclose()


def _target(url: str) -> bytes:
    """What stands in the request line: the URL's path and query."""
    _, slash, target = url.partition("://")[2].partition("/")
    return (slash + target).encode("ascii") or b"/"
