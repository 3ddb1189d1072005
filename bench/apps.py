"""The contenders that are ASGI applications of this bench: `python -m bench.apps echo 8080`."""

import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench import carts
from bench.libraries import validate
from mapper.adapter import EngineReply

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def echo() -> Starlette:
    """The least that a service on the usual stack can do: read the body, answer with it."""

    async def validate(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    return Starlette(routes=[Route("/promotions/validate", validate, methods=["POST"])])


async def own(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The same on this service's own server, and without Starlette."""
    await _answered(scope, receive, send, lambda body: body)


async def libraries(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """There, the least that a validate can cost: `bench.libraries`."""
    await _answered(scope, receive, send, validate)


async def _answered(
    scope: MutableMapping[str, Any], receive: Receive, send: Send, answer: Callable[[bytes], bytes]
) -> None:
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    body = answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Canned:
    """Answers in place of the HTTP client: what is left is the work that is all our own."""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        lines = int(url.rsplit("/lines-", 1)[1].partition("-")[0])
        return EngineReply(status=200, headers={"content-type": "application/json"}, body=carts.reply(lines))

    async def aclose(self) -> None:
        pass


def canned() -> Starlette:
    """This service, whole, but for the HTTP call."""
    from mapper import settings  # noqa: PLC0415 - the echo does without
    from mapper.http import app  # noqa: PLC0415 - likewise

    return app.create(settings.load(os.environ), engine_transport=Canned())


def full() -> Starlette:
    """This service without time for any validate: each is refused at the door."""
    from mapper.http import app  # noqa: PLC0415 - likewise
    from mapper.http.limiter import Limiter  # noqa: PLC0415 - likewise

    Limiter.is_full = lambda _: True  # type: ignore[method-assign, assignment]
    return app.from_environment()


def sdk() -> Any:
    from bench import sdk_app  # noqa: PLC0415 - takes seconds

    return sdk_app.create()


def _plainly(app: Any, port: int) -> None:
    """As most people run uvicorn, without its log of requests."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, server_header=False, access_log=False)


def main(name: str, port: int) -> None:
    if name in ("canned", "own", "libraries", "full"):
        # As `promotions-mapper serve` does.
        from mapper.http import server  # noqa: PLC0415 - likewise
        from mapper.ops import logs  # noqa: PLC0415 - likewise

        logs.configure()
        server.run(
            server.create(globals()[name], factory=name not in ("own", "libraries")),
            [server.listening("127.0.0.1", port)],
        )
    else:
        _plainly({"echo": echo, "sdk": sdk}[name](), port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
