"""What a call asks the engine and what comes back, listened to for a record (`mapper.recording`).

Nobody listens unless `listening` holds a list: then each conversation of the call is put into it.
"""

from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from mapper.adapter import Checkout, Conversation, EngineReply, EngineRequest, T


@dataclass
class Held:
    """One conversation: what it was started with, what was asked, and what it came to."""

    method: str
    cart: Checkout | None
    arguments: tuple[Any, ...]
    """Behind the cart: the session, and what else the method takes."""
    named: dict[str, Any]
    asked: list[EngineRequest] = field(default_factory=list)
    replies: list[EngineReply | None] = field(default_factory=list)
    """Of each request, in the same order; None where none came that was for the adapter."""
    result: object = None
    problem: str = ""
    """The reason, where it came to nothing."""
    is_over: bool = False

    def listen(self, conversation: Conversation[T]) -> Conversation[T]:
        """The same conversation, overheard."""
        answered: Any = None
        with closing(conversation):
            while True:
                try:
                    step: Any = next(conversation) if answered is None else conversation.send(answered)
                except StopIteration as stop:
                    return cast("T", stop.value)
                several = isinstance(step, tuple)
                asked = [one for one in (step if several else (step,)) if isinstance(one, EngineRequest)]
                first = len(self.asked)
                self.asked += asked
                self.replies += [None] * len(asked)
                answered = yield step
                self.replies[first:] = answered if several else (answered,)

    def end(self, result: object = None, problem: str = "") -> None:
        self.result, self.problem, self.is_over = result, problem, True


listening: ContextVar[list[Held] | None] = ContextVar("listening", default=None)


def begin(method: str, cart: Checkout | None, arguments: tuple[Any, ...], named: dict[str, Any]) -> Held | None:
    """A conversation that begins, where somebody listens."""
    if (tape := listening.get()) is None:
        return None
    held = Held(method, cart, arguments, named)
    tape.append(held)
    return held
