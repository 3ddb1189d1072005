"""An HTTP server that counts requests and misbehaves by path: `/reset`, `/drip`, `/bomb` …

It uses plain sockets, since a real server cannot do most of this. It never imports the project.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache

import trustme


@cache
def _authority() -> trustme.CA:
    """Made for this test run."""
    return trustme.CA()


def certificate() -> str:
    """The certificate of the authority that signed the server's."""
    return _authority().cert_pem.bytes().decode()


@dataclass(frozen=True)
class Received:
    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Peer:
    """One connection, as a behaviour sees it."""

    server: "HostileServer"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    def reply(self, body: bytes = b"{}", head: str = "", status: str = "200 OK") -> None:
        self.writer.write(f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def head(self, head: str) -> None:
        self.writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def stall(self) -> None:
        """Sends nothing more until the test ends."""
        await self.server.over.wait()


Behaviour = Callable[[Peer, Received], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(act: Behaviour) -> Behaviour:
    BEHAVIOURS[act.__name__.strip("_")] = act
    return act


@dataclass
class HostileServer:
    tls: bool = False
    resets: bool = False
    """Whether connections are reset before anything is read."""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    poisoned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the poison has been sent."""
    location: str = ""
    """Where redirects point."""

    def url(self, path: str = "/ok", host: str = "127.0.0.1") -> str:
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{path}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["HostileServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=_context() if self.tls else None)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.over.set()
            server.close()
            await asyncio.sleep(0)
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.sleep(0.001)

    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._answer(Peer(self, reader, writer, self.connections))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, peer: Peer) -> None:
        if self.resets:
            peer.reset()
        while not peer.writer.is_closing():
            received = await _receive(peer)
            self.requests.append(received)
            name = received.target.split("/")[1].partition("?")[0]
            await BEHAVIOURS.get(name, _ok)(peer, received)
            await peer.writer.drain()


async def _receive(peer: Peer) -> Received:
    head = (await peer.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    method, target, _ = first.split(" ")
    return Received(peer.number, method, target, headers, await peer.reader.readexactly(length))


def _context() -> ssl.SSLContext:
    """For 127.0.0.1 and no other name."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


def gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(content) + packer.flush()


def bomb() -> bytes:
    """200 MB of zeros in 200 kB, without a valid end: no client should read that far."""
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + megabyte * 200


# Well-behaved


@behaviour
async def _ok(peer: Peer, received: Received) -> None:
    peer.reply()


@behaviour
async def _status(peer: Peer, received: Received) -> None:
    peer.reply(b'{"a": 1}', status=f"{received.target.split('/')[2]} Such")


@behaviour
async def _size(peer: Peer, received: Received) -> None:
    peer.reply(b"x" * int(received.target.split("/")[2]))


@behaviour
async def _gzip(peer: Peer, received: Received) -> None:
    peer.reply(gzip(b"x" * int(received.target.split("/")[2])), "Content-Encoding: gzip\r\n")


@behaviour
async def _empty_gzip(peer: Peer, received: Received) -> None:
    peer.reply(b"", "Content-Encoding: gzip\r\n")


@behaviour
async def _chunked(peer: Peer, received: Received) -> None:
    peer.head("Transfer-Encoding: chunked\r\n")
    peer.writer.write(b"2\r\n{}\r\n0\r\n\r\n")


@behaviour
async def _until_close(peer: Peer, received: Received) -> None:
    peer.head("Connection: close\r\n")
    peer.writer.write(b"{}")
    peer.writer.close()


@behaviour
async def _hints(peer: Peer, received: Received) -> None:
    peer.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    peer.reply()


@behaviour
async def _headers(peer: Peer, received: Received) -> None:
    peer.reply(b"{}", "X-Twice: a\r\nX-Twice: b\r\nSet-Cookie: taste=bad; Path=/\r\n")


@behaviour
async def _redirect(peer: Peer, received: Received) -> None:
    peer.reply(b"{}", f"Location: {peer.server.location}\r\n", status=f"{received.target.split('/')[2]} Over There")


# Connections that end


@behaviour
async def _reset(peer: Peer, received: Received) -> None:
    peer.reset()


@behaviour
async def _close(peer: Peer, received: Received) -> None:
    peer.writer.close()


@behaviour
async def _reset_unread(peer: Peer, received: Received) -> None:
    """Answers, then resets the connection while the next request is unread."""
    peer.reply()
    await peer.writer.drain()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.03)
    peer.reset()


@behaviour
async def _then_close(peer: Peer, received: Received) -> None:
    """Keeps the connection alive by its headers, but closes it."""
    peer.reply()
    await peer.writer.drain()
    peer.writer.close()


@behaviour
async def _then_half_close(peer: Peer, received: Received) -> None:
    """As above, but still reads."""
    peer.reply()
    await peer.writer.drain()
    peer.writer.write_eof()


@behaviour
async def _then_poison(peer: Peer, received: Received) -> None:
    """Sends an unrequested second reply."""
    peer.reply()
    await asyncio.sleep(0.02)
    peer.reply(b"poison")
    peer.server.poisoned.set()


# Replies that never end, or end badly


@behaviour
async def _stall(peer: Peer, received: Received) -> None:
    await peer.stall()


@behaviour
async def _stall_in_body(peer: Peer, received: Received) -> None:
    peer.head("Content-Length: 100\r\n")
    peer.writer.write(b"{")
    await peer.stall()


@behaviour
async def _drip(peer: Peer, received: Received) -> None:
    peer.head("Content-Length: 1000\r\n")
    while not peer.writer.is_closing():
        peer.writer.write(b" ")
        await asyncio.sleep(0.02)


@behaviour
async def _drip_head(peer: Peer, received: Received) -> None:
    head = iter(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000)
    while not peer.writer.is_closing():
        peer.writer.write(bytes([next(head)]))
        await asyncio.sleep(0.02)


@behaviour
async def _truncate(peer: Peer, received: Received) -> None:
    peer.head("Content-Length: 100\r\n")
    peer.writer.write(b'{"a": 1')
    peer.writer.close()


@behaviour
async def _truncate_chunked(peer: Peer, received: Received) -> None:
    peer.head("Transfer-Encoding: chunked\r\n")
    peer.writer.write(b"64\r\n{")
    peer.writer.close()


@behaviour
async def _reset_in_body(peer: Peer, received: Received) -> None:
    peer.head("Content-Length: 100\r\n")
    peer.writer.write(b"{")
    await asyncio.sleep(0.02)
    peer.reset()


@behaviour
async def _bad_chunk(peer: Peer, received: Received) -> None:
    peer.head("Transfer-Encoding: chunked\r\n")
    await asyncio.sleep(0.02)
    peer.writer.write(b"zz\r\n{}\r\n0\r\n\r\n")


@behaviour
async def _garbage(peer: Peer, received: Received) -> None:
    peer.writer.write(b"\x15\x03\x01\x00\x02\x02\x50 no HTTP at all\r\n\r\n")
    await peer.stall()


@behaviour
async def _long_headers(peer: Peer, received: Received) -> None:
    peer.head(f"X-Long: {'x' * 1_000_000}\r\nContent-Length: 2\r\n")
    peer.writer.write(b"{}")
    await peer.stall()


# Bodies that are too large or wrongly encoded


@behaviour
async def _bomb(peer: Peer, received: Received) -> None:
    peer.reply(bomb(), "Content-Encoding: gzip\r\n")


@behaviour
async def _flood(peer: Peer, received: Received) -> None:
    peer.head("")
    while not peer.writer.is_closing():
        peer.writer.write(bytes(65536))
        await peer.writer.drain()


@behaviour
async def _no_gzip(peer: Peer, received: Received) -> None:
    peer.reply(b"{}", "Content-Encoding: gzip\r\n")


@behaviour
async def _half_gzip(peer: Peer, received: Received) -> None:
    peer.reply(gzip(b'{"a": 1}' * 100)[:-9], "Content-Encoding: gzip\r\n")


@behaviour
async def _gzip_and_more(peer: Peer, received: Received) -> None:
    peer.reply(gzip(b"{}") + b"and more", "Content-Encoding: gzip\r\n")


@behaviour
async def _brotli(peer: Peer, received: Received) -> None:
    peer.reply(b"\x0b\x00\x80{}\x03", "Content-Encoding: br\r\n")
