"""How many calls are let in at once: who comes when it is full is answered at once, before any JSON is read.

Pure ASGI around the application, and not a limit of the server: what is answered is the contract's, per endpoint, and
the server knows no endpoints. Each endpoint has room of its own, so that a rush of validates cannot starve consume.

A call takes its room once its body is complete. Until then it costs nothing but the bytes it has sent, and those are
counted: whoever sends bodies slowly, to keep the room from others, would have to send many megabytes over and over.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from mapper.errors import Overloaded

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class Room:
    """Of one endpoint."""

    size: int
    status: int
    body: bytes
    """What is answered when there is none left; `headers` with it."""
    headers: tuple[tuple[bytes, bytes], ...]
    on_full: Callable[[], None]
    taken: int = 0


class Gate:
    """`rooms` by path. `body_bytes`: of all bodies that are being received, together."""

    def __init__(self, app: App, rooms: Mapping[str, Room], body_bytes: int) -> None:
        self._app = app
        self._rooms = rooms
        self._body_bytes = body_bytes
        self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        room = self._rooms.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if room is None:
            await self._app(scope, receive, send)
        elif room.taken >= room.size or self._receiving >= self._body_bytes:
            await _refuse(room, send)
        else:
            await self._let_in(room, scope, receive, send)

    async def _let_in(self, room: Room, scope: Scope, receive: Receive, send: Send) -> None:
        pending, inside = 0, False

        async def counted() -> Message:
            nonlocal pending, inside
            message = await receive()
            if message["type"] != "http.request" or inside:
                return message
            if message.get("more_body"):
                size = len(message.get("body", b""))
                pending += size
                self._receiving += size
                if self._receiving > self._body_bytes:
                    raise Overloaded
            else:
                if room.taken >= room.size:
                    raise Overloaded  # it has become full meanwhile
                inside = True
                room.taken += 1
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._receiving -= pending
            room.taken -= inside


async def _refuse(room: Room, send: Send) -> None:
    room.on_full()
    await send({"type": "http.response.start", "status": room.status, "headers": room.headers})
    await send({"type": "http.response.body", "body": room.body})
