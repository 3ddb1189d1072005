"""Everything that can go wrong, told once: the category Nacelle sees, the status of each endpoint, the body.

A `Problem` is raised where the cause is known and answered in one place (`app`). Its `reason` is a short word that
stands in the log, in the metric and in the tests. Its message is a sentence for the person who has to mend it; it never
carries text of the engine, since that may hold other customers' data.
"""

from typing import Any, ClassVar, Final, Literal

import msgspec

Operation = Literal["validate", "consume", "cancel"]

# The name under which each endpoint returns its document; empty beside an error.
SUBJECT: dict[Operation, str] = {"validate": "checkout", "consume": "order", "cancel": "order"}

# Reasons of `EngineRejected` that tell of our key, address or settings: for the log. The caller reads `configuration`.
CONFIGURATION: Final = frozenset({"engine_key", "not_found_at_engine", "request_rejected"})

# Nacelle's own status codes, per category: (validate, consume).
STATUS: dict[str, tuple[int, int]] = {
    "invalid_request": (400, 400),
    "signature": (401, 401),
    "forbidden": (403, 403),
    "promotion_codes": (422, 500),
    "order_mismatch": (400, 400),
    "amount_mismatch": (500, 500),
    "engine_rejected": (422, 500),
    "engine_unavailable": (422, 500),
    "outcome_pending": (500, 500),
    "overloaded": (422, 500),
    "internal": (422, 500),
}


class Problem(Exception):
    """A call that cannot be answered with 200.

    `details` is what a program may read; `retry_after` is in whole seconds.
    """

    category: ClassVar[str] = "internal"
    storefront: str = "Something went wrong here; please try again in a moment."
    """What the caller is told instead of the message, which is for the log; "" where the message is for everybody."""

    def __init__(self, message: str, *, reason: str, retry_after: int | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after = retry_after
        self.details: dict[str, Any] = details
        self.own_status: int | None = None
        """Instead of the category's."""

    @property
    def public_details(self) -> dict[str, Any]:
        """The details that the caller is told."""
        return self.details

    def status(self, operation: Operation) -> int:
        if self.own_status is not None:
            return self.own_status
        validate, consume = STATUS[self.category]
        return validate if operation == "validate" else consume


class InvalidRequest(Problem):
    """The body cannot be worked with. `pointer` names the place (RFC 6901; "" is the whole body)."""

    category = "invalid_request"
    storefront = ""

    def __init__(self, message: str, pointer: str, *, reason: str = "invalid_request") -> None:
        super().__init__(message, reason=reason, pointer=pointer)
        self.pointer = pointer


class UnknownOrder(InvalidRequest):
    """Somebody wants to cancel what has never come."""

    def __init__(self) -> None:
        super().__init__("There is no such order.", "/cancel/id", reason="unknown_order")
        self.own_status = 404


class BadSignature(Problem):
    """Missing, doubled, malformed or wrong credentials: one constant answer, so that nobody learns which."""

    category = "signature"
    storefront = ""

    def __init__(self, reason: str) -> None:
        # The reason goes to log and metric only.
        super().__init__("The request is not signed with a secret this service knows.", reason=reason)


class Forbidden(Problem):
    category = "forbidden"
    storefront = ""


class Refused(Problem):
    """The engine refuses at least one code. `codes` as in CONTRACT section 6, first refused first."""

    category = "promotion_codes"
    storefront = ""

    def __init__(self, codes: list[dict[str, Any]]) -> None:
        # What only fell with another code is never named as the invalid one, where another is.
        first = next((one for one in codes if one["reason"] != "not_applied"), codes[0])
        super().__init__(first["message"], reason=first["reason"])
        self.details = {"invalid-code": first["code"], "codes": codes}


class OrderMismatch(Problem):
    category = "order_mismatch"
    storefront = ""

    def __init__(self, message: str, *, reason: str, **details: Any) -> None:
        super().__init__(message, reason=reason)
        self.details = {"reason": reason, **details}


class AmountMismatch(Problem):
    category = "amount_mismatch"
    storefront = ""


class EngineRejected(Problem):
    """The engine says that our request or our key is wrong: a matter of configuration, not of the shopper."""

    category = "engine_rejected"
    storefront = "Promotions cannot be used at the moment; please try again later."

    def __init__(self, message: str, *, reason: str, **details: Any) -> None:
        super().__init__(message, reason=reason)
        self.details = {"reason": reason, **details}

    @property
    def public_details(self) -> dict[str, Any]:
        return {"reason": "configuration"} if self.reason in CONFIGURATION else self.details


class EngineUnavailable(Problem):
    """Unreachable, slow, broken or over quota. Whether something was sent is for `mapper.engine` to know."""

    category = "engine_unavailable"
    storefront = "Promotions cannot be checked at the moment; please try again shortly."

    def __init__(self, message: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.details = {"reason": reason} | ({"retry_after_s": retry_after} if retry_after else {})


class AdapterFault(Problem):
    """A bug in an adapter: never a failure of the engine. The log has the cause."""

    def __init__(self) -> None:
        super().__init__("The adapter has a fault.", reason="adapter_error")


class OutcomePending(Problem):
    category = "outcome_pending"
    storefront = "The promotions of this order are still being processed; send the same order again later."

    def __init__(self, message: str, *, reason: str, retry_after: int, own_status: int | None = None) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.details = {"reason": reason}
        self.own_status = own_status


class Overloaded(Problem):
    category = "overloaded"
    storefront = ""

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(
            "The service is at its limit; try again shortly.", reason="overloaded", retry_after=retry_after
        )


def body(problem: Problem, operation: Operation) -> bytes:
    """The JSON body that Nacelle's page describes for an error of this endpoint.

    Nacelle hands it on to the storefront: keys, settings, addresses and an engine's console are for the log alone.
    """
    error = {
        "error": problem.storefront or problem.message,
        "category": problem.category,
        "details": problem.public_details,
    }
    return msgspec.json.encode({SUBJECT[operation]: {}, "error": error})
