"""All errors: the category that Nacelle sees, the status at each endpoint, the body.

A `Problem` is raised where the cause is known and answered in one place (`mapper.http`). Its `reason` is a short word
for log, metric and tests. Its message is a sentence for the person who fixes it. It never quotes the engine, whose text
may hold data of other customers.
"""

from typing import Any, ClassVar, Final, Literal

import msgspec

Operation = Literal["validate", "consume", "cancel"]

# The name under which each endpoint returns its document; empty beside an error.
SUBJECT: dict[Operation, str] = {"validate": "checkout", "consume": "order", "cancel": "order"}

# Reasons of `EngineRejected` about keys, addresses or settings. They are for the log; the caller gets `configuration`.
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
    """A call that is not answered with 200. `details` is machine-readable; `retry_after` is in whole seconds."""

    category: ClassVar[str] = "internal"
    storefront: str = "Something went wrong here; please try again in a moment."
    """The text for the caller, where the message is for the log; "" where the caller gets the message."""

    def __init__(self, message: str, *, reason: str, retry_after: int | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after = retry_after
        self.details: dict[str, Any] = details
        self.own_status: int | None = None
        """Overrides the status of the category."""

    @property
    def public_details(self) -> dict[str, Any]:
        """The details for the caller."""
        return self.details

    def status(self, operation: Operation) -> int:
        if self.own_status is not None:
            return self.own_status
        validate, consume = STATUS[self.category]
        return validate if operation == "validate" else consume


class InvalidRequest(Problem):
    """The body is malformed or lacks data. `pointer` names the place (RFC 6901; "" is the whole body)."""

    category = "invalid_request"
    storefront = ""

    def __init__(self, message: str, pointer: str, *, reason: str = "invalid_request") -> None:
        super().__init__(message, reason=reason, pointer=pointer)
        self.pointer = pointer


class UnknownOrder(InvalidRequest):
    """A cancel names an order that was never consumed."""

    def __init__(self) -> None:
        super().__init__("There is no such order.", "/cancel/id", reason="unknown_order")
        self.own_status = 404


class BadSignature(Problem):
    """Missing, duplicate, malformed or wrong credentials. The answer is constant and does not say which."""

    category = "signature"
    storefront = ""

    def __init__(self, reason: str) -> None:
        super().__init__("The request is not signed with a secret this service knows.", reason=reason)


class Forbidden(Problem):
    category = "forbidden"
    storefront = ""


class Refused(Problem):
    """At least one code is rejected. `codes`: made by `notices.rejection`, in the order in which they were entered."""

    category = "promotion_codes"
    storefront = ""

    def __init__(self, codes: list[dict[str, Any]]) -> None:
        # A code that failed because of another one is not named as the invalid one.
        first = next((one for one in codes if one["reason"] != "not_applied"), codes[0])
        super().__init__(first["message"], reason=first["reason"])
        self.details = {"invalid-code": first["code"], "codes": codes}


class OrderMismatch(Problem):
    """The order was redeemed before with other content. The caller gets the message and the details."""

    category = "order_mismatch"
    storefront = ""

    def __init__(self, message: str, *, reason: str, **details: Any) -> None:
        super().__init__(message, reason=reason)
        self.details = {"reason": reason, **details}


class AmountMismatch(Problem):
    category = "amount_mismatch"
    storefront = ""


class EngineRejected(Problem):
    """The engine refuses the request or the key, for a reason that the shopper cannot change."""

    category = "engine_rejected"
    storefront = "Promotions cannot be used at the moment; please try again later."

    def __init__(self, message: str, *, reason: str, **details: Any) -> None:
        super().__init__(message, reason=reason)
        self.details = {"reason": reason, **details}

    @property
    def public_details(self) -> dict[str, Any]:
        return {"reason": "configuration"} if self.reason in CONFIGURATION else self.details


class EngineUnavailable(Problem):
    """The engine is unreachable, slow, broken or over quota. `mapper.engine` knows whether the request was sent."""

    category = "engine_unavailable"
    storefront = "Promotions cannot be checked at the moment; please try again shortly."

    def __init__(self, message: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.details = {"reason": reason} | ({"retry_after_s": retry_after} if retry_after else {})


class AdapterFault(Problem):
    """A bug in an adapter. The log has the cause."""

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
    """The error body of this endpoint, in the shape on Nacelle's page.

    Nacelle passes it on to the storefront, so it never mentions keys, settings, addresses or an engine's console.
    """
    error = {
        "error": problem.storefront or problem.message,
        "category": problem.category,
        "details": problem.public_details,
    }
    return msgspec.json.encode({SUBJECT[operation]: {}, "error": error})
