"""The default client: aiohttp, which is fast with many calls in flight.

**It repeats by itself**: a GET, PUT or DELETE whose connection breaks before the reply is sent a second time, even on a
fresh connection. Measured: five PUTs to a server that resets after reading, ten received. The public way to stop it is
a client middleware (`_only_once`), which runs inside that loop: it turns the two errors that make aiohttp repeat into
one it does not know.
"""

import io
from contextvars import ContextVar

import aiohttp
from aiohttp.tracing import Trace
from yarl import URL

from mapper.adapter import EngineReply
from mapper.engine import transport
from mapper.engine.transport import Body, Client, Exchange, merged

_AUTOMATIC = frozenset(("accept", "content-type"))
"""Headers that aiohttp adds by itself where they are not given."""


class _Stopped(Exception):
    """A failure on its way past aiohttp's own repeating: the original is its cause."""


async def _only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # no connection: aiohttp does not repeat this one
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Stopped from error


def _in_pieces(body: bytes) -> bytes | io.BytesIO | None:
    """A body in the form aiohttp wants: above this size it warns about one that would go out in one piece."""
    return io.BytesIO(body) if len(body) > 2**20 else body or None


_current: ContextVar[Exchange] = ContextVar("_current")
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


class AiohttpTransport(Client):
    told = (aiohttp.ClientConnectorError,)

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._open: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        """Made at the first call, since aiohttp wants a running event loop for it."""
        if self._open is None:
            self._open = aiohttp.ClientSession(
                # Certificates are verified, by the context that aiohttp has made when it was imported. To make another
                # would read all authorities a second time, a tenth of the time that it takes to start.
                connector=_Connector(limit=self._connections, keepalive_timeout=transport.IDLE_S, ssl=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                middlewares=(_only_once,),
            )
        return self._open

    async def perform(self, exchange: Exchange) -> EngineReply:
        _current.set(exchange)
        response = await self._session().request(
            exchange.method,
            URL(exchange.url, encoded=True),
            headers=exchange.headers,
            # None where both are given: else aiohttp copies all headers twice.
            skip_auto_headers=_AUTOMATIC - exchange.named or None,
            data=_in_pieces(exchange.body),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=exchange.timeout_s / 2),
        )
        try:
            exchange.stage = "reading"
            headers = merged(response.headers.items())
            body = Body(headers.get("content-encoding", ""), exchange.max_bytes)
            while chunk := await response.content.readany():
                body.add(chunk)
            return EngineReply(status=response.status, headers=headers, body=body.whole())
        finally:
            if not response.closed:  # at the end of its body it has given the connection back by itself
                response.close()

    def is_garbled(self, error: Exception) -> bool:
        return isinstance(error, aiohttp.ClientResponseError)

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open.close()
