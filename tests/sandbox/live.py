"""Requests to a sandbox on a real connection, which most faults need; and its controls."""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tests.sandbox.talon_one_shop import KEY

CLOSE = b'{"customerSession": {"couponCodes": ["SINGLE-0001"], "state": "closed"}}'
SESSION = "/talon_one/v2/customer_sessions/s1"


def ask(
    url: str, method: str = "PUT", path: str = SESSION, body: bytes = CLOSE, patience: float = 5, **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=patience)
    try:
        named = KEY | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        with connection.getresponse() as reply:
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def control(url: str, path: str, body: Any = None) -> Any:
    method = "GET" if body is None else "POST"
    status, _, reply = ask(url, method, f"/_sandbox/{path}", json.dumps(body).encode() if body is not None else b"")
    assert status == 200, reply
    return json.loads(reply)


def closes(url: str) -> int:
    return int(control(url, "books")["talon_one"]["sessions"].get("s1", {"closes": 0})["closes"])
