"""Nacelle's sandbox on a real connection: a shop's requests to it, and a scripted mapper behind it."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mapper.sandbox import host

TOKEN = "sandbox-token"
SPACE = "sandbox"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    url: str, body: object = None, headers: Mapping[str, str] | None = None, *, token: str = TOKEN, space: str = SPACE
) -> Answer:
    """POSTs a body (bytes unchanged, anything else as JSON); GETs without a body."""
    given = {"content-type": "application/json"}
    given |= {"authorization": f"Bearer {token}"} if token else {}
    given |= {"x-nacelle-space-id": space} if space else {}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, given | dict(headers or {}))
    try:
        with _OPENER.open(request, timeout=30) as response:
            return Answer(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())


@dataclass
class Mapper:
    """A mapper that echoes the body, or returns the next status in `next`."""

    calls: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    def app(self) -> Starlette:
        async def answer(request: Request) -> Response:
            body = await request.body()
            self.calls.append((request.url.path, dict(request.headers), body))
            subject = "checkout" if request.url.path.endswith("validate") else "order"
            status = self.next.pop(0) if self.next else 200
            if status == 200:
                return Response(b'{"%s":%s}' % (subject.encode(), body))
            error = {"error": "no", "category": "promotion_codes", "details": {"invalid-code": "X"}}
            return Response(json.dumps({subject: {}, "error": error}), status)

        return Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])


@contextmanager
def connected(mapper: Mapper, **space: object) -> Iterator[str]:
    """The address of Nacelle's sandbox, with this mapper for its space."""
    with host.running(mapper.app()) as there, host.running(host.create()) as url:
        configure(url, mapper_url=there, **space)
        yield f"{url}/nacelle"


def configure(url: str, **space: object) -> None:
    answer = send(f"{url.removesuffix('/nacelle')}/_sandbox/nacelle", {"spaces": {SPACE: space}})
    assert answer.status == 200, answer.body
