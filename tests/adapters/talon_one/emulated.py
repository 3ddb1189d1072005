"""The adapter's conversations held with the sandbox, which was written from the vendor's documents alone."""

import asyncio
import json
from typing import Any

from mapper.adapter import Conversation, EngineReply, EngineRequest
from tests.adapters.talon_one.talk import one_request
from tests.sandbox.talon_one_shop import Shop, call


class Emulated(Shop):
    """Answers an adapter. `changes`: edits of the default rule book."""

    def __init__(self, *changes: tuple[str, str]) -> None:
        super().__init__(*changes)
        self.asked: list[EngineRequest] = []

    def answer(self, request: EngineRequest) -> EngineReply:
        self.asked.append(request)
        headers: dict[str, Any] = {name.lower(): value for name, value in request.headers}
        status, body = asyncio.run(call(self.engine, request.path, request.body, request.method, **headers))
        return EngineReply(status=status, headers={}, body=body)

    def hold(self, conversation: Conversation[Any]) -> Any:
        """Return the result of the conversation."""
        try:
            request = one_request(next(conversation))
            while True:
                request = one_request(conversation.send(self.answer(request)))
        except StopIteration as stop:
            return stop.value

    def sessions(self) -> dict[str, str]:
        """Return the state of each session, by its id."""
        return {name: session["state"] for name, session in self.books["sessions"].items()}

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request in self.asked if request.body]
