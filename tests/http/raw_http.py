"""HTTP by hand over plain sockets: sends what client libraries refuse to send, and keeps the exact answer."""

import re
import socket
import time
from dataclasses import dataclass, field

Address = tuple[str, int]

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Heard:
    """What was received on one connection, until it was closed or `wait_s` had passed."""

    raw: bytes
    closed: bool
    seconds: float
    all_sent: bool
    """False if the server closed the connection before all was sent."""
    responses: list[Response] = field(default_factory=list)

    @property
    def statuses(self) -> list[int]:
        return [response.status for response in self.responses]


def request(
    method: str = "POST", target: str = "/promotions/validate", body: bytes = b"", headers: tuple[str, ...] = ()
) -> bytes:
    """A well-formed request; `headers` are whole lines, inserted unchanged."""
    lines = [f"{method} {target} HTTP/1.1", "Host: mapper.test", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return head(*lines) + body


def head(*lines: str) -> bytes:
    """A request's head of these lines, unchecked."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def connect(address: Address, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection(address, timeout=timeout_s)


def exchange(address: Address, *parts: bytes, pause_s: float = 0.0, wait_s: float = 2.0, expect: int = 0) -> Heard:
    """Sends the parts, `pause_s` apart, and reads until the connection closes, or until `expect` responses."""
    with connect(address) as connection:
        return converse(connection, *parts, pause_s=pause_s, wait_s=wait_s, expect=expect)


def converse(
    connection: socket.socket, *parts: bytes, pause_s: float = 0.0, wait_s: float = 2.0, expect: int = 0
) -> Heard:
    """The same on an open connection."""
    started, all_sent = time.monotonic(), True
    for number, part in enumerate(parts):
        if number:
            time.sleep(pause_s)
        try:
            connection.sendall(part)
        except OSError:
            all_sent = False  # what the server sent before can still be read
            break
    raw, closed = _listen(connection, started + wait_s, expect)
    return Heard(raw, closed, time.monotonic() - started, all_sent, parse(raw))


def _listen(connection: socket.socket, until: float, expect: int) -> tuple[bytes, bool]:
    raw = b""
    while (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return raw, True
        if not data:
            return raw, True
        raw += data
        if expect and len(parse(raw)) >= expect:
            break
    return raw, False


def parse(raw: bytes) -> list[Response]:
    """The complete responses in `raw`. Raises `ValueError` for anything else."""
    found: list[Response] = []
    while raw:
        top, separator, rest = raw.partition(b"\r\n\r\n")
        status = _STATUS.match(top + b"\r\n")
        if not status:
            raise ValueError(f"this is no response: {raw[:80]!r}")
        if not separator:
            break
        pairs = [line.partition(b":") for line in top.split(b"\r\n")[1:]]
        headers = {name.decode("latin-1").lower(): value.strip().decode("latin-1") for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            break
        if int(status[1]) != 100:
            found.append(Response(int(status[1]), headers, rest[:length]))
        raw = rest[length:]
    return found
