"""The facts of one call from Nacelle, collected while it is answered, for its log line and the metrics."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from mapper.domain.languages import Language
from mapper.domain.outcome import Diagnostic, Rejection

EVENTS: Final = ("clamped", "drift", "degraded")
RECEIPT_FATES: Final = ("good", "stale", "absent", "forged")


@dataclass
class Record:
    """One call. Amounts are in minor units of `currency`. Codes are in clear text here; the log masks them.

    `mapper.http.endpoint` creates it, `mapper.promotions` and `mapper.orders.redeem` fill it in, and `mapper.ops.logs`
    writes it.
    """

    operation: str
    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts for the log line."""
    trace_id: str = ""
    space: str = ""
    id: str = ""
    """The checkout's id, or the order's key."""
    session: str = ""
    """The id of the engine session."""
    language: Language = "en"
    """The language of the shopper, for messages."""
    codes: tuple[str, ...] = ()
    currency: str = ""
    discount: int = 0
    """The total discount."""
    receipt: str = ""
    """The result of reading the receipt: one of `RECEIPT_FATES`; "" where it was not read."""
    clamped: bool = False
    """Whether a discount was clamped to the price of what it is on."""
    drift: dict[str, str] | None = None
    """The total that the order carries and the one that the engine grants, where consume finds a difference."""
    degraded: bool = False
    rejected: tuple[Rejection, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    """For the merchant, from the adapter."""
    engine_calls: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each attempt at an engine call of a validate, as the log has it."""

    def ids(self) -> dict[str, str]:
        """The ids by which a log line is found."""
        named = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "space": self.space,
            "id": self.id,
            "session": self.session,
        }
        return {name: value for name, value in named.items() if value}


current: ContextVar[Record | None] = ContextVar("current", default=None)
"""The call that is being answered. Every log line has its ids."""
