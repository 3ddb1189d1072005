"""Faults of the network between the mapper and an engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from mapper.adapter import EngineReply
from mapper.engine.transport import NotSent, Unknown


@dataclass(frozen=True)
class Fault:
    """The fault of one request."""

    delivered: Literal["now", "late", "never"]
    """Whether the engine receives it; late: after it has been looked up."""
    answer: Callable[[EngineReply | None], EngineReply]
    """Given the engine's reply, or None if it received nothing: what comes back. May raise `NotSent` or `Unknown`."""


def _raises(error: Exception) -> Callable[[EngineReply | None], EngineReply]:
    def answer(reply: EngineReply | None) -> EngineReply:
        raise error

    return answer


def answered(status: int, body: bytes = b"") -> Callable[[EngineReply | None], EngineReply]:
    return lambda _: EngineReply(status=status, headers={}, body=body)


def _cut(reply: EngineReply | None) -> EngineReply:
    assert reply is not None
    return msgspec.structs.replace(reply, body=reply.body[: len(reply.body) // 2])


FAULTS: Mapping[str, Fault] = {
    "cannot be reached": Fault("never", _raises(NotSent("connect"))),
    "is lost on its way": Fault("never", _raises(Unknown("timeout"))),
    "loses its answer": Fault("now", _raises(Unknown("reset"))),
    "arrives late": Fault("late", _raises(Unknown("timeout"))),
    "gets 500, undone": Fault("never", answered(500)),
    "gets 500, done": Fault("now", answered(500)),
    "gets 503, undone": Fault("never", answered(503)),
    "gets 429": Fault("never", answered(429)),
    "gets half an answer": Fault("now", _cut),
    "gets an empty answer": Fault("now", answered(200)),
    "gets a page of HTML": Fault("now", answered(200, b"<html>a proxy's page</html>")),
    "gets a redirect": Fault("never", answered(302)),
}
"""By what happens to the request."""

FEW_FAULTS = ("cannot be reached", "loses its answer", "arrives late", "gets half an answer")
"""One of each kind: certainly not sent, done without an answer, done late, an answer that cannot be read."""


def replaced(reply: EngineReply) -> Fault:
    """The engine receives the request, and another reply comes back."""
    return Fault("now", lambda _: reply)


def instead(reply: EngineReply) -> Fault:
    """The engine receives nothing, and this reply comes back."""
    return Fault("never", lambda _: reply)
