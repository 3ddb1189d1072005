"""Transcripts of a call's conversations with the engine, for the recorder (`mapper.recording`).

Conversations are transcribed only while `transcripts` holds a list, to which each new one is appended.
"""

from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from mapper.adapter import Checkout, Conversation, EngineReply, EngineRequest, T


@dataclass
class Transcript:
    """One conversation: its arguments, its requests and replies, and its result."""

    method: str
    cart: Checkout | None
    arguments: tuple[Any, ...]
    """The positional arguments after the cart: the session, and what else the method takes."""
    named: dict[str, Any]
    requests: list[EngineRequest] = field(default_factory=list)
    replies: list[EngineReply | None] = field(default_factory=list)
    """One for each request; None where the adapter got none."""
    result: object = None
    problem: str = ""
    """The reason of the error that it ended with."""
    has_ended: bool = False

    def transcribe(self, conversation: Conversation[T]) -> Conversation[T]:
        """Returns a conversation that behaves as the given one, and writes its requests and replies down."""
        reply: Any = None
        with closing(conversation):
            while True:
                try:
                    step: Any = next(conversation) if reply is None else conversation.send(reply)
                except StopIteration as stop:
                    return cast("T", stop.value)
                several = isinstance(step, tuple)
                requests = [one for one in (step if several else (step,)) if isinstance(one, EngineRequest)]
                first = len(self.requests)
                self.requests += requests
                self.replies += [None] * len(requests)
                reply = yield step
                self.replies[first:] = reply if several else (reply,)

    def end(self, result: object = None, problem: str = "") -> None:
        self.result, self.problem, self.has_ended = result, problem, True


transcripts: ContextVar[list[Transcript] | None] = ContextVar("transcripts", default=None)


def begin_transcript(
    method: str, cart: Checkout | None, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Transcript | None:
    """Returns a new transcript; None if calls are not recorded."""
    if (current := transcripts.get()) is None:
        return None
    transcript = Transcript(method, cart, arguments, named)
    current.append(transcript)
    return transcript
