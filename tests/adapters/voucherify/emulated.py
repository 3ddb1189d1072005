"""The adapter's conversations held with the sandbox, which was written from the vendor's documents alone."""

import asyncio
from typing import Any

from mapper.adapter import Conversation, EngineReply, EngineRequest
from mapper.sandbox import rulebook
from tests.sandbox.emulated import send
from tests.sandbox.voucherify_shop import HEADERS, Shop


class Emulated(Shop):
    """Answers an adapter. `changes`: edits of the default rule book; `own`: another rule book."""

    def __init__(self, *changes: tuple[str, str], own: rulebook.RuleBook | None = None) -> None:
        super().__init__(*changes, own=own)
        self.asked: list[EngineRequest] = []

    def answer(self, request: EngineRequest) -> EngineReply:
        self.asked.append(request)
        status, headers, body = asyncio.run(send(self.engine, request.method, request.path, request.body, HEADERS, {}))
        return EngineReply(status=status, headers=headers, body=body)

    def hold(self, conversation: Conversation[Any]) -> Any:
        """Return the result of the conversation."""
        try:
            asked: Any = next(conversation)
            while True:
                several = isinstance(asked, tuple)
                asked = conversation.send(
                    tuple(map(self.answer, asked)) if several else self.answer(asked)  # type: ignore[arg-type]
                )
        except StopIteration as stop:
            return stop.value

    @property
    def calls(self) -> list[str]:
        return [f"{one.method} {one.path}" for one in self.asked]
