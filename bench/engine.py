"""The engine behind all contenders: fixed answers, made beforehand, written at once or after a while.

It reads no more of a request than it must: where it ends, and the cart's id, which says what to answer and when
(`bench.carts`); Talon.One is told it in the first line, Voucherify in the body. So it is many times faster than
whatever is measured against it.
"""

import asyncio
import re
import sys
from functools import cache
from typing import cast

import uvloop

from bench import carts

_SESSION = re.compile(rb"lines-(\d+)-wait-(\d+)-")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


_VOUCHERIFY = b"POST /v1/"


@cache
def answer(lines: int, voucherify: bool) -> bytes:
    body = carts.voucherify_reply(lines) if voucherify else carts.reply(lines)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._missing = -1
        """Bytes of the body still to come; -1 while the head is incomplete."""
        self._request = b""
        """As much of it as holds the cart's id."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            data = self._buffer + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._buffer = b""
            length = _LENGTH.search(data, 0, end)
            self._missing = (int(length[1]) if length else 0) + end + 4
            self._request = b""
        self._missing -= len(data)
        if not self._request or self._request.startswith(_VOUCHERIFY):
            self._request += data
        if self._missing <= 0:
            self._missing = -1
            self._answer()

    def _answer(self) -> None:
        session = _SESSION.search(self._request)
        if session is None:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        lines, wait_ms = int(session[1]), int(session[2])
        reply = answer(lines, self._request.startswith(_VOUCHERIFY))
        if wait_ms:
            asyncio.get_running_loop().call_later(wait_ms / 1000, self._write, reply)
        else:
            self._transport.write(reply)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
