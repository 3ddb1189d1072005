"""The file format of a record: one redacted call, with all it takes to price the cart again without the engine.

A record is one JSON object, indented. A body that is not JSON is stored as text (`sent_text`, `reply_text`).
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from mapper.adapter import EngineReply, EngineRequest
from mapper.domain.document import encode

FORMAT: Final = 1


class Unusable(ValueError):
    """A file is not a record, or not one that this version can use. The message says which."""


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request to the engine and its reply. Headers are left out, since they hold keys."""

    operation: str
    account: str = ""
    method: str
    path: str
    sent: Raw | UnsetType = UNSET
    sent_text: str = ""
    status: int = 0
    """0 without a reply."""
    reply: Raw | UnsetType = UNSET
    reply_text: str = ""

    @property
    def answer(self) -> EngineReply | None:
        if not self.status:
            return None
        body = bytes(self.reply) if isinstance(self.reply, Raw) else self.reply_text.encode()
        return EngineReply(status=self.status, headers={}, body=body)


class Result(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The result of a conversation."""

    amounts: dict[str, str] = {}
    """Decimal amounts by pointer into the body."""
    rejected: dict[str, str] = {}
    """The reason of each refused code."""
    state: str = ""
    """`redeemed`, `not_redeemed`, or the state that a look-up found."""
    problem: str = ""
    """The reason of the error that it ended with."""


class Conversation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One conversation of an adapter: its arguments, exchanges and result."""

    method: Literal["validate", "check", "redeem", "look_up", "undo", "repair"]
    arguments: list[str | list[str]]
    """Those after the cart: the session, and what else the method takes."""
    named: dict[str, bool] = {}
    with_cart: bool = True
    customer: str = ""
    attempt: str = ""
    filled: dict[int, dict[str, Raw]] = {}
    """The product data that was added, by the position of the line."""
    exchanges: list[Exchange]
    result: Result


class Answer(msgspec.Struct, frozen=True):
    status: int
    category: str
    reason: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call."""

    format: int = FORMAT
    version: str
    """The version of the mapper that wrote it."""
    engine: str
    time: str
    operation: Literal["validate", "consume"]
    request_id: str
    id: str
    """The checkout's id, or the order's key."""
    body: Raw
    conversations: list[Conversation]
    answer: Answer


_decode: Final = msgspec.json.Decoder(Record).decode
_exact: Final = msgspec.json.Decoder(float_hook=Decimal).decode


def read(data: bytes) -> Record:
    """Parses a record. Raises `Unusable`."""
    try:
        record = _decode(data)
    except msgspec.MsgspecError as error:
        raise Unusable(f"it is not a record: {error}") from None
    except UnicodeDecodeError:
        raise Unusable("it is not a record: it is not UTF-8") from None
    except RecursionError:
        raise Unusable("it is not a record: it is nested too deeply") from None
    if record.format != FORMAT:
        raise Unusable(f"it has format {record.format}; this version reads {FORMAT}")
    return record


def is_record(data: bytes) -> bool:
    """Whether a file is meant as a record: no checkout and no order has these three members."""
    try:
        root = msgspec.json.decode(data, type=dict[str, Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return {"format", "conversations", "body"} <= root.keys()


def write(record: Record) -> bytes:
    """Encodes a record, indented."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decoded(body: bytes) -> Any:
    """Decodes a JSON body, with decimals exact. Raises `ValueError`."""
    return _exact(body)


def request_fields(request: EngineRequest) -> Mapping[str, Any]:
    """Returns the fields of an `Exchange` for a request."""
    return {
        "operation": request.operation,
        "account": request.account,
        "method": request.method,
        "path": request.path,
        **_body("sent", request.body),
    }


def reply_fields(status: int, body: Any) -> Mapping[str, Any]:
    """Returns the fields of an `Exchange` for a reply. `body`: a JSON value, or the text of a body that is not JSON."""
    if isinstance(body, str):
        return {"status": status, "reply_text": body}
    return {"status": status, "reply": Raw(encode(body))}


def _body(name: str, body: bytes) -> Mapping[str, Any]:
    if not body:
        return {}
    try:
        decoded(body)
    except (ValueError, RecursionError):
        return {f"{name}_text": body.decode("utf-8", "replace")}
    return {name: Raw(body)}
