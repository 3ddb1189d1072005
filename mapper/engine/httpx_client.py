"""The alternative HTTP client: httpx2 (`MAPPER_HTTP_CLIENT=httpx`).

It retries by itself only if the pool's connection was closed before anything was sent.
"""

import ssl
from contextlib import aclosing
from typing import Any

import httpx2

from mapper.adapter import EngineReply
from mapper.engine import transport
from mapper.engine.transport import Body, Client, Exchange, Stage, merged


class HttpxTransport(Client):
    """Uses httpx2's transport without its client, which would follow redirects, keep cookies and log URLs.

    If it is cancelled during a TLS handshake, httpcore2 leaves the socket to the garbage collector.
    """

    timeouts = (TimeoutError, httpx2.TimeoutException)
    safe_to_log = (httpx2.ConnectError,)

    def __init__(self, connections: int) -> None:
        limits = httpx2.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=transport.IDLE_S
        )
        self._pool = httpx2.AsyncHTTPTransport(verify=ssl.create_default_context(), trust_env=False, limits=limits)

    async def perform(self, exchange: Exchange) -> EngineReply:
        async def trace(event: str, _: dict[str, Any]) -> None:
            if event == "http11.send_request_headers.started":
                exchange.stage = Stage.SENDING

        extensions = {
            "timeout": {"connect": exchange.timeout_s / 2, "pool": exchange.timeout_s / 2},
            "trace": trace,
            "target": _target(exchange.url),  # httpx2 would normalize the path
        }
        request = httpx2.Request(
            exchange.method,
            exchange.url,
            headers=exchange.headers,
            content=exchange.body or None,
            extensions=extensions,
        )
        response = await self._pool.handle_async_request(request)
        try:
            exchange.stage = Stage.READING
            headers = merged(response.headers.multi_items())
            body = Body(headers.get("content-encoding", ""), exchange.max_bytes)
            async with aclosing(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    body.add(chunk)
            return EngineReply(status=response.status_code, headers=headers, body=body.whole())
        finally:
            await response.aclose()

    def is_garbled(self, error: Exception) -> bool:
        # "Disconnected without a response" is of the same class, but not caused by an error of the HTTP parser.
        return (
            isinstance(error, httpx2.RemoteProtocolError)
            and error.__cause__ is not None
            and error.__cause__.__context__ is not None
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def _target(url: str) -> bytes:
    """Returns the URL's path and query, as in the request line."""
    _, slash, target = url.partition("://")[2].partition("/")
    return (slash + target).encode("ascii") or b"/"
