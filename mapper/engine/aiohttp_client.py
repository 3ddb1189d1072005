"""The default HTTP client: aiohttp, which is fast with many calls in flight.

**aiohttp retries by itself**: it sends a GET, PUT or DELETE again if the connection breaks before the reply, even on a
fresh connection. (Measured: of five PUTs to a server that resets after reading, ten arrived.) The public way to prevent
it is a client middleware: `_no_retry` turns the two errors that make aiohttp retry into one that does not.
"""

import io
from contextvars import ContextVar

import aiohttp
from aiohttp.tracing import Trace
from yarl import URL

from mapper.adapter import EngineReply
from mapper.engine import transport
from mapper.engine.transport import Body, Client, Exchange, Stage, merged

_AUTOMATIC = frozenset(("accept", "content-type"))
"""Headers that aiohttp adds by itself where they are not given."""


class _NoRetry(Exception):
    """Wraps an error after which aiohttp would retry; the error is its cause."""


async def _no_retry(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # aiohttp does not retry this one
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _NoRetry from error


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    """Returns a large body as a stream, since aiohttp warns of bytes above this size."""
    return io.BytesIO(body) if len(body) > 2**20 else body or None


_current: ContextVar[Exchange] = ContextVar("_current")
"""The exchange that the connector works for. (Measured: aiohttp's tracing would add a sixth to the cost of a call.)"""


class _Connector(aiohttp.TCPConnector):
    """Sets the stage of the exchange when it gets a connection, and discards connections that received data while idle.

    aiohttp by itself would take such data for the reply to the next request, which may be another shopper's.
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
                _current.get().stage = Stage.SENDING
                return connection
            connection.close()


class AiohttpTransport(Client):
    safe_to_log = (aiohttp.ClientConnectorError,)

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._open: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        """Creates the session at the first call, since aiohttp needs a running event loop for it."""
        if self._open is None:
            self._open = aiohttp.ClientSession(
                # `ssl=True` verifies certificates with the context that aiohttp creates when it is imported. Another
                # context would load all authorities again, which takes a tenth of the start-up time.
                connector=_Connector(limit=self._connections, keepalive_timeout=transport.IDLE_S, ssl=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                middlewares=(_no_retry,),
            )
        return self._open

    async def perform(self, exchange: Exchange) -> EngineReply:
        _current.set(exchange)
        response = await self._session().request(
            exchange.method,
            URL(exchange.url, encoded=True),
            headers=exchange.headers,
            # None if both are given, since aiohttp copies all headers for an empty set.
            skip_auto_headers=_AUTOMATIC - exchange.named or None,
            data=_payload(exchange.body),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=exchange.timeout_s / 2),
        )
        try:
            exchange.stage = Stage.READING
            headers = merged(response.headers.items())
            body = Body(headers.get("content-encoding", ""), exchange.max_bytes)
            while chunk := await response.content.readany():
                body.add(chunk)
            return EngineReply(status=response.status, headers=headers, body=body.whole())
        finally:
            if not response.closed:  # it is closed once the whole body has been read
                response.close()

    def is_garbled(self, error: Exception) -> bool:
        return isinstance(error, aiohttp.ClientResponseError)

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open.close()
