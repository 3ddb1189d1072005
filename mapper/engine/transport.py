"""Sends one HTTP request to the engine, and returns its reply or raises a failure.

There are two clients behind one `Transport`: aiohttp (the default, fast under load) and httpx2
(`MAPPER_HTTP_CLIENT=httpx`). Each has its own module, so that only the chosen one is loaded, and only by a process that
calls the engine. One test suite holds both to the same rules:

- **One send is at most one request on the wire.** There are no retries here, only in `mapper.engine.conversation`.
- **A failure says whether the engine may have acted.** `NotSent` is raised only if the request got no connection. Every
  later failure is `Unknown`, since a reset looks the same before and after the engine has committed.
- The URL is sent unchanged. Redirects are not followed, cookies are not kept, proxies and .netrc are not used.
  Certificates are verified, against this machine's authorities or those in `SSL_CERT_FILE`.
- One deadline covers the whole exchange, from the wait for a connection to the last byte of the body. Connecting gets
  at most half of it (with httpx2: each step of connecting), so that after a lost packet there is time for a retry.
- Reading stops once the body, decompressed, is larger than its limit.

Both clients drop a pooled connection that the engine has closed while it was idle, and use another. If the engine
closes it just as the request is sent, the failure is `Unknown("reset")`. To make that rare, connections are kept for
4 s only, less than any load balancer keeps them.
"""

import asyncio
import re
import socket
import ssl
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Protocol

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
    """Certainly nothing reached the engine. `reason`: connect (refused, too slow, none free), dns or tls."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class Unknown(Exception):
    """The engine may or may not have acted on the request.

    `reason`: timeout, reset (connection gone before the reply), garbled (the reply is not HTTP), truncated (it ended
    early), too_large, or undecodable (a content encoding that was not asked for, or a corrupt body).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class Transport(Protocol):
    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        """Returns the engine's reply, whatever its status, with header names in lower case.

        Raises `NotSent`, `Unknown`, or, before anything is sent, `ValueError` for a method, URL or header that HTTP
        cannot carry. When it is cancelled the connection is closed.
        """
        ...

    async def aclose(self) -> None: ...


class Stage(StrEnum):
    CONNECTING = "connecting"
    SENDING = "sending"
    READING = "reading"


class Exchange:
    """One request and its stage, which decides what a failure means."""

    __slots__ = ("body", "headers", "max_bytes", "method", "named", "stage", "timeout_s", "url")

    def __init__(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> None:
        """Raises `ValueError` for a method, URL or header that could inject another header or request."""
        if not _METHOD.fullmatch(method) or not _URL.fullmatch(url):
            raise ValueError("the method is not one of HTTP's, or the URL is not a plain http(s) URL")
        self.headers, self.named = _checked(tuple(headers))
        self.method, self.url, self.body = method, url, body
        self.timeout_s, self.max_bytes = timeout_s, max_bytes
        self.stage = Stage.CONNECTING


@lru_cache(maxsize=64)
def _checked(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[tuple[str, str], ...], frozenset[str]]:
    """Returns the headers, with those of every request before them, and their names in lower case.

    Cached, since nearly all requests have their account's headers only.
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"the header {name!r} holds characters that HTTP headers cannot carry")
    return (*_ALWAYS, *headers), frozenset(name.lower() for name, _ in headers)


class Body:
    """Collects the body of a reply. Its methods raise `Unknown` for a body that cannot be used.

    It decompresses the body itself, within the limit of its size, so that no gzip bomb is ever inflated.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise Unknown("undecodable", "encoding")
        self._gzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if "gzip" in encoding else None
        self._data = bytearray()
        self._max_bytes = max_bytes
        self._has_data = False

    def add(self, chunk: bytes) -> None:
        """Adds the next part, which is not empty."""
        self._has_data = True
        try:
            self._data += self._gzip.decompress(chunk, self._max_bytes + 1 - len(self._data)) if self._gzip else chunk
        except zlib.error:
            raise Unknown("undecodable", "gzip") from None
        if len(self._data) > self._max_bytes:
            raise Unknown("too_large", f"over {self._max_bytes} bytes")
        if self._gzip and self._gzip.unused_data:
            raise Unknown("undecodable", "bytes after the gzip stream")

    def whole(self) -> bytes:
        """Returns the body at its end."""
        if self._gzip and self._has_data and not self._gzip.eof:
            raise Unknown("truncated", "gzip")
        return bytes(self._data)


def merged(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the headers by lower-case name, with the values of a repeated header joined by commas."""
    merged: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        merged[key] = f"{merged[key]}, {value}" if key in merged else value
    return merged


class Client(ABC):
    """The base of both clients: checks the request, keeps the deadline, and classifies failures."""

    timeouts: ClassVar[tuple[type[Exception], ...]] = (TimeoutError,)
    """The client's exceptions for a timeout."""
    safe_to_log: ClassVar[tuple[type[Exception], ...]]
    """The client's exceptions, when connecting, whose text holds an address and the system's error but no URL."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        exchange = Exchange(method, url, headers, body, timeout_s, max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.perform(exchange)
        except (NotSent, Unknown):
            raise
        except Exception as error:  # noqa: BLE001 - any exception of a client is classified by the stage
            # `from None`: some of the clients' exceptions hold the request's headers, and so the credentials.
            raise self._failure(exchange, error) from None

    def _failure(self, exchange: Exchange, error: Exception) -> NotSent | Unknown:
        kind = type(error.__cause__ or error).__name__
        timed_out = isinstance(error, self.timeouts)
        if exchange.stage is Stage.CONNECTING:
            detail = str(error) if isinstance(error, self.safe_to_log) else kind
            return NotSent("connect" if timed_out else _why_no_connection(error), detail)
        if timed_out:
            return Unknown("timeout", exchange.stage)
        if exchange.stage is Stage.READING:
            return Unknown("truncated", kind)
        return Unknown("garbled" if self.is_garbled(error) else "reset", kind)

    @abstractmethod
    async def perform(self, exchange: Exchange) -> EngineReply:
        """Sends the request once, and keeps `exchange.stage` up to date."""

    @abstractmethod
    def is_garbled(self, error: Exception) -> bool:
        """Whether the error means that the reply is not HTTP."""

    @abstractmethod
    async def aclose(self) -> None: ...


def _why_no_connection(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return "tls"
        if isinstance(error, socket.gaierror):
            return "dns"
        error = error.__cause__ or error.__context__
    return "connect"
