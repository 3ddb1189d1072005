"""Error replies, in the shapes of the vendor's specification."""

from typing import Any, Final

Json = dict[str, Any]


class ApiError(Exception):
    """A reply with another status than 200."""

    def __init__(self, status: int, message: str, errors: list[Json] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, errors)


def error_body(status: int, message: str, errors: list[Json] | None = None) -> Json:
    """The schema ErrorResponse for 400, ErrorResponseWithStatus for any other status."""
    body: Json = {"message": message, "errors": errors or []}
    return body if status == 400 else body | {"StatusCode": status}


MESSAGES: Final = {
    401: "Invalid API key",
    404: "Not found",
    405: "Method not allowed",
    409: "Too many requests are updating this session at the same time",
    429: "Too many requests",
}


_MOVES: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("open", "closed"),
    "open": ("open", "closed", "cancelled"),
    "closed": ("cancelled",),
    "partially_returned": ("cancelled",),
    "cancelled": (),
}


def check_return(state: str) -> None:
    """Raises unless items of a session in this state can be returned. There may be several returns."""
    if state not in ("closed", "partially_returned"):
        raise cannot_move("partially_returned", state)


def check_move(state: str | None, target: str) -> None:
    """Raises unless a PUT can move a session from this state. A closed session can only be cancelled, or reopened."""
    if target not in _MOVES[state]:
        raise cannot_move(target, state or "")


def cannot_move(target: str, state: str) -> ApiError:
    message = f'Cannot move session to state "{target}" from state "{state}"'
    return ApiError(400, message, [{"title": "Invalid value", "details": message, "source": {"pointer": "/state"}}])
