"""What is worth knowing about one call from Nacelle: filled along the way, told to log and metrics once."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from mapper.domain.languages import Language
from mapper.domain.outcome import Diagnostic, Rejection

EVENTS: Final = ("clamped", "drift", "degraded")
RECEIPT_FATES: Final = ("good", "stale", "absent", "forged")


@dataclass
class Record:
    """One call. Amounts in minor units of `currency`. Codes are as the shopper brought them: the log hides them."""

    operation: str
    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What else belongs on the request's log line."""
    trace_id: str = ""
    space: str = ""
    id: str = ""
    """The checkout's id, or the order's key."""
    session: str = ""
    """The engine session's."""
    language: Language = "en"
    """Of the shopper: what messages are written in."""
    codes: tuple[str, ...] = ()
    currency: str = ""
    discount: int = 0
    """Granted, all in all."""
    receipt: str = ""
    """What became of the receipt that came: one of `RECEIPT_FATES`; "" where nobody has looked."""
    clamped: bool = False
    """Whether a discount was cut at the price of what it lies on."""
    drift: dict[str, str] | None = None
    """Where consume grants other amounts than the order carries: both, as text."""
    degraded: bool = False
    rejected: tuple[Rejection, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    """What the adapter has to say to the merchant."""

    def ids(self) -> dict[str, str]:
        """What a log line is found by."""
        named = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "space": self.space,
            "id": self.id,
            "session": self.session,
        }
        return {name: value for name, value in named.items() if value}


current: ContextVar[Record | None] = ContextVar("current", default=None)
"""The call that is being answered: every log line carries its ids."""
