"""What is worth knowing about one call from Nacelle: filled along the way, written to the log once."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""That of the call that is being answered, for lines in the log that are written far below it."""


@dataclass
class Record:
    """What is worth knowing about one request; filled along the way, written once."""

    operation: str
    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    clamped: bool = False
    drift: bool = False
    degraded: bool = False
    rejected: list[str] = field(default_factory=list)
    """The reasons (words of `mapper.domain.reasons`) of codes that did not apply."""
