"""A record: one call of Nacelle as a file, redacted, with all that it takes to price the cart again without the engine.

One JSON object, readable for people. Bodies that are no JSON stand there as text (`sent_text`, `reply_text`).
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
    """A file is no record, or none that this version reads. The message says which."""


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One question to the engine and its answer; without a status where none came. Headers, which hold keys, are left
    out.
    """

    operation: str
    account: str = ""
    method: str
    path: str
    sent: Raw | UnsetType = UNSET
    sent_text: str = ""
    status: int = 0
    reply: Raw | UnsetType = UNSET
    reply_text: str = ""

    @property
    def answer(self) -> EngineReply | None:
        if not self.status:
            return None
        body = bytes(self.reply) if isinstance(self.reply, Raw) else self.reply_text.encode()
        return EngineReply(status=self.status, headers={}, body=body)


class Result(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a conversation came to. Amounts as they are written: by pointer into the body."""

    amounts: dict[str, str] = {}
    rejected: dict[str, str] = {}
    """The reason of each refused code."""
    state: str = ""
    """`redeemed`, `not_redeemed`, or what a look-up found."""
    problem: str = ""
    """The reason, where it came to nothing."""


class Conversation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an adapter's method was started with, what it asked, and what it came to."""

    method: Literal["validate", "check", "redeem", "look_up", "undo", "repair"]
    arguments: list[str | list[str]]
    """Behind the cart: the session, and what else the method takes."""
    named: dict[str, bool] = {}
    with_cart: bool = True
    customer: str = ""
    attempt: str = ""
    filled: dict[str, Raw] = {}
    """Product data by the position of the line, where a source has filled some in."""
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
    """Of the mapper that wrote it."""
    engine: str
    time: str
    operation: Literal["validate", "consume"]
    request_id: str
    id: str
    """The checkout's, or the order's key."""
    body: Raw
    conversations: list[Conversation]
    answer: Answer


_decode: Final = msgspec.json.Decoder(Record).decode
_exact: Final = msgspec.json.Decoder(float_hook=Decimal).decode


def read(data: bytes) -> Record:
    """Raises `Unusable`."""
    try:
        record = _decode(data)
    except msgspec.MsgspecError as error:
        raise Unusable(f"it is no record: {error}") from None
    except UnicodeDecodeError:
        raise Unusable("it is no record: it is not UTF-8") from None
    if record.format != FORMAT:
        raise Unusable(f"it has format {record.format}; this version reads {FORMAT}")
    return record


def is_record(data: bytes) -> bool:
    """Whether a file is meant as one: neither a checkout nor an order has these."""
    try:
        root = msgspec.json.decode(data, type=dict[str, Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return {"format", "conversations", "body"} <= root.keys()


def write(record: Record) -> bytes:
    """Indented, for people."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decoded(body: bytes) -> Any:
    """What a body says, numbers exact. Raises `ValueError` where it is no JSON."""
    return _exact(body)


def asked(request: EngineRequest) -> Mapping[str, Any]:
    """A request as it stands in a record."""
    return {
        "operation": request.operation,
        "account": request.account,
        "method": request.method,
        "path": request.path,
        **_body("sent", request.body),
    }


def answered(status: int, body: Any) -> Mapping[str, Any]:
    """A reply as it stands in a record. `body`: bytes, or what was decoded of them."""
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
