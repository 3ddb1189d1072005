"""The rim towards the engine: one HTTP request out, one reply or one honest failure back.

Two clients, one `Transport`, one test suite against a server that counts what it receives: aiohttp (the default, fast
under load) and httpx2 (`MAPPER_HTTP_CLIENT=httpx`). Each has a module of its own, so that only the one that is chosen
is loaded, and only by a process that calls the engine. Both are held to the same rules:

- **One send is at most one request on the wire.** Nothing here repeats; `mapper.engine` decides about that.
- **A failure says whether the engine can have acted.** `NotSent` only where no connection was handed to the request;
  everything after that is `Unknown`, since a reset looks the same before and after the engine has committed.
- The URL goes out as it was given, to the byte. Redirects are not followed, cookies not kept, proxies and .netrc not
  looked up, certificates verified (by this machine's authorities, or those in `SSL_CERT_FILE`, as always with OpenSSL).
- One deadline for the whole exchange, from the wait for a connection to the last byte of the body; connecting gets at
  most half of it (with httpx2: each step of it), so that a lost packet leaves time for another attempt.
- The body is cut at a size counted after decompression, while it is being read.

**A kept connection that the engine has closed while it was idle** is dropped and replaced before use by both clients,
unseen and unsent. Where the close crosses our request on the wire, the outcome is `Unknown("reset")`: the engine may
have read it. To make that rare, connections are kept for 4 s only, less than any load balancer keeps them.
"""

import asyncio
import re
import socket
import ssl
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import ClassVar, Literal, Protocol

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


class Exchange:
    """One request, and how far it has come: that decides what a failure means."""

    __slots__ = ("body", "headers", "max_bytes", "method", "named", "stage", "timeout_s", "url")

    def __init__(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> None:
        """Raises `ValueError` rather than let a line break in data make a header or a request of its own."""
        if not _METHOD.fullmatch(method) or not _URL.fullmatch(url):
            raise ValueError("the method is not one of HTTP's, or the URL is not a plain http(s) URL")
        self.headers, self.named = _checked(tuple(headers))
        self.method, self.url, self.body = method, url, body
        self.timeout_s, self.max_bytes = timeout_s, max_bytes
        self.stage: Literal["connecting", "sending", "reading"] = "connecting"


@lru_cache(maxsize=64)
def _checked(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[tuple[str, str], ...], frozenset[str]]:
    """These, behind those that every request has, and their names in lower case.

    Nearly all requests have just their account's headers: the same again and again.
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"the header {name!r} holds characters that HTTP headers cannot carry")
    return (*_ALWAYS, *headers), frozenset(name.lower() for name, _ in headers)


class Body:
    """A reply's body while it comes in. Each method raises `Unknown` where it cannot be used.

    It is decompressed here and not by the client: what a small bomb would inflate to is never made.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise Unknown("undecodable", "encoding")
        self._gzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if "gzip" in encoding else None
        self._data = bytearray()
        self._max_bytes = max_bytes
        self._came = False

    def add(self, chunk: bytes) -> None:
        """What came next; not empty."""
        self._came = True
        try:
            self._data += self._gzip.decompress(chunk, self._max_bytes + 1 - len(self._data)) if self._gzip else chunk
        except zlib.error:
            raise Unknown("undecodable", "gzip") from None
        if len(self._data) > self._max_bytes:
            raise Unknown("too_large", f"over {self._max_bytes} bytes")
        if self._gzip and self._gzip.unused_data:
            raise Unknown("undecodable", "bytes after the gzip stream")

    def whole(self) -> bytes:
        """All of it, when there is no more."""
        if self._gzip and self._came and not self._gzip.eof:
            raise Unknown("truncated", "gzip")
        return bytes(self._data)


def merged(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Lower-case names; values of a repeated header joined by a comma."""
    merged: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        merged[key] = f"{merged[key]}, {value}" if key in merged else value
    return merged


class Client(ABC):
    """What both clients share: checks, the deadline, and telling failures apart."""

    late: ClassVar[tuple[type[Exception], ...]] = (TimeoutError,)
    """What the client raises when its time is up."""
    told: ClassVar[tuple[type[Exception], ...]]
    """What it raises where there is no connection and its words are the address and the system's word for the fault;
    others hold the URL."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        exchange = Exchange(method, url, headers, body, timeout_s, max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.perform(exchange)
        except (NotSent, Unknown):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a client raises, what counts is whether the request went out
            # The client's own exception goes no further: some carry the request's headers, and so the credentials.
            raise self._failure(exchange, error) from None

    def _failure(self, exchange: Exchange, error: Exception) -> NotSent | Unknown:
        kind = type(error.__cause__ or error).__name__
        late = isinstance(error, self.late)
        if exchange.stage == "connecting":
            detail = str(error) if isinstance(error, self.told) else kind
            return NotSent("connect" if late else _why_no_connection(error), detail)
        if late:
            return Unknown("timeout", exchange.stage)
        if exchange.stage == "reading":
            return Unknown("truncated", kind)
        return Unknown("garbled" if self.is_garbled(error) else "reset", kind)

    @abstractmethod
    async def perform(self, exchange: Exchange) -> EngineReply:
        """Sends the request once, moving `exchange.stage` on as it goes."""

    @abstractmethod
    def is_garbled(self, error: Exception) -> bool:
        """Whether this says that the reply is not HTTP."""

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
