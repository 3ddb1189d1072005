"""Handles one call: reads the body within limits, waits for the limiter, runs the handler, logs, and answers.

The handler is a function of `mapper.promotions`. A `Problem` becomes a response here and nowhere else.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from mapper.domain import errors
from mapper.domain import record as records
from mapper.domain.errors import Operation, Overloaded, Problem
from mapper.domain.record import Record
from mapper.engine.transcript import Transcript, transcripts
from mapper.http import limiter, protocol
from mapper.http.limiter import Limiter, Permit
from mapper.http.protocol import RECEIVED, PreparedResponse
from mapper.ops.telemetry import Telemetry
from mapper.orders.rows import Answer
from mapper.promotions import Call, Service
from mapper.settings import Settings
from mapper.threads import LARGE_BYTES

log = logging.getLogger("mapper")

BODY_DEADLINE_S = 5.0
"""How long a caller may take to send the body."""

IN_FLIGHT_BYTES = 64 * 1024 * 1024
"""The limit for the bodies of all calls of one endpoint, from the first byte received to the answer."""

ANSWER_S: Final = 0.0005
"""CPU time of an answer. If the engine hangs, all calls in flight reach their deadlines at about the same time. So the
deadline of each call is shortened by the time that it takes to answer the calls admitted before it."""

SECURITY_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_JSON_HEADERS = (
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()),
)
_CLOSE = (b"connection", b"close")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_MEDIA_TYPE = re.compile(rb"application/(json|[\w.-]+\+json)[ \t]*(;.*)?", re.IGNORECASE)
_CHARSET = re.compile(rb";[ \t]*charset=\"?([^\s\";]*)", re.IGNORECASE)

Handler = Callable[[Service, Call], Awaitable[Answer]]


class Recorder(Protocol):
    """Records calls: `mapper.recording.recorder.Recorder`."""

    def record(
        self, call: Record, status: int, category: str, reason: str, transcripts: Iterable[Transcript]
    ) -> None: ...


class _Response(NamedTuple):
    """A JSON response, with its category and reason for log and metric."""

    status: int
    body: bytes
    reason: str
    category: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def fields(self, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        return [*_JSON_HEADERS, (b"content-length", b"%d" % len(self.body)), *self.headers, *headers]

    async def send(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.fields(*headers)})
        await send({"type": "http.response.body", "body": self.body})


class HttpError(Exception):
    """The request is not a valid call, and gets an ordinary HTTP status instead of Nacelle's."""

    def __init__(self, status: int, reason: str, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.response = _Response(status, error_body(text), reason, "http", headers)


def error_body(text: str) -> bytes:
    """Returns the body of an error that is not in Nacelle's form."""
    return msgspec.json.encode({"error": text})


class Endpoint:
    """One of the operations of `mapper.promotions` as an ASGI application."""

    service: Service
    """Set before the first request."""

    def __init__(
        self,
        operation: Operation,
        handler: Handler,
        capacity: int,
        configured: Settings,
        telemetry: Telemetry,
        recorder: Recorder | None = None,
    ) -> None:
        """`capacity`: how many calls may run at once."""
        self._operation: Operation = operation
        self._handler = handler
        self._deadline_s = configured.validate_deadline_s if operation == "validate" else configured.consume_deadline_s
        self._max_body_bytes = configured.max_body_bytes
        max_bytes = max(IN_FLIGHT_BYTES, 4 * configured.max_body_bytes)
        self._limiter = Limiter(capacity, self._deadline_s, max_bytes)
        self._large = Limiter(limiter.LARGE_CAPACITY, self._deadline_s, max_bytes)
        self._overload_status = configured.overload_status
        self._telemetry = telemetry
        self._recorder = recorder
        overloaded = self._refusal(Overloaded())
        self._shed = protocol.prepared(overloaded.status, overloaded.fields(), overloaded.body)
        self._in_flight = telemetry.metrics.in_flight(operation)

    def shed(self) -> PreparedResponse | None:
        """Returns the refusal for a new call that could not be answered in time, else None. It reserves nothing."""
        if not self._limiter.is_full():
            return None
        self._telemetry.metrics.shed(self._operation, "door")
        return self._shed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        first = dict(reversed(headers))
        record = Record(self._operation, _request_id(first.get(b"x-request-id", b"")))
        records.current.set(record)
        recorded: list[Transcript] = []
        if self._recorder is not None:
            transcripts.set(recorded)
        with (
            self._telemetry.traces.call(record, first),
            self._in_flight.track_inprogress(),
            self._large.permit() as large,
            self._limiter.permit() as permit,
        ):
            try:
                size = _check_head(first, self._max_body_bytes)
                self._limiter.check()  # before the body is read
                if size >= LARGE_BYTES:
                    self._large.check()
                body = await (self._read if _is_received(scope) else self._read_in_time)(receive, permit)
                deadline = self.service.clock() + self._deadline_s - _waited_s(scope)
                if len(body) >= LARGE_BYTES:
                    await self._large.acquire(large)
                await self._limiter.acquire(permit)
                deadline -= ANSWER_S * self._limiter.admitted
                answer = await self._answer(Call(body, headers, deadline, record), receive)
                category = "ok" if answer.status == 200 else "promotion_codes"
                response = _Response(answer.status, answer.reply, answer.reason, category)
            except HttpError as error:
                response = error.response
            except Problem as problem:
                self._record_problem(problem, record)
                response = self._refusal(problem)
            except Exception:
                log.exception("internal error")
                fault = Problem("A fault inside the service.", reason="internal")
                self._record_problem(fault, record)
                response = self._refusal(fault)
            self._telemetry.request(
                record, response.status, response.category, response.reason, time.monotonic() - started
            )
            if self._recorder is not None:
                self._recorder.record(record, response.status, response.category, response.reason, recorded)
        await response.send(send, (b"x-request-id", record.request_id.encode()))

    async def _answer(self, call: Call, receive: Receive) -> Answer:
        if self._operation == "validate":
            return await self._handler(self.service, call)
        # A redemption goes on after the caller has disconnected, but is then recorded as not confirmed to a caller.
        disconnect = asyncio.ensure_future(receive())
        try:
            return await self._handler(self.service, msgspec.structs.replace(call, has_hung_up=disconnect.done))
        finally:
            disconnect.cancel()

    def _record_problem(self, problem: Problem, record: Record) -> None:
        """Reports a problem to log and metrics, with what the storefront must not see."""
        if problem.category == "promotion_codes":
            return  # the record has the codes and their reasons
        if problem.category == "internal":
            problem.storefront += f" The request's id is {record.request_id}."
        record.facts |= {"problem": problem.message}
        if pointer := problem.details.get("pointer"):
            record.facts |= {"pointer": pointer}
        if isinstance(problem, Overloaded):
            self._telemetry.metrics.shed(self._operation, "queue")
        if problem.__cause__ is not None:
            level = logging.ERROR if problem.category == "internal" else logging.DEBUG
            log.log(level, "cause", exc_info=problem)

    async def _read_in_time(self, receive: Receive, permit: Permit) -> bytes:
        """Returns the body. Raises `HttpError` also if it is too slow."""
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                return await self._read(receive, permit)
        except TimeoutError:
            raise HttpError(408, "slow_body", "The body did not arrive in time.", _CLOSE) from None

    async def _read(self, receive: Receive, permit: Permit) -> bytes:
        """Returns the body. Raises `HttpError` if it is too large or incomplete."""
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise HttpError(400, "client_gone", "The client has disconnected.")
            part: bytes = message.get("body", b"")
            if len(parts) + len(part) > self._max_body_bytes:
                raise _too_large(self._max_body_bytes)
            self._limiter.reserve(permit, len(part))
            if not message.get("more_body"):
                return bytes(parts + part) if parts else part
            parts += part

    def _refusal(self, problem: Problem) -> _Response:
        status = problem.status(self._operation)
        if problem.category == "overloaded" and self._overload_status:
            status = self._overload_status
        headers = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
        return _Response(status, errors.body(problem, self._operation), problem.reason, problem.category, headers)


def _is_received(scope: Scope) -> bool:
    """Whether the whole request has been received, so that reading it takes no time."""
    return RECEIVED in scope.get("state", {})


def _waited_s(scope: Scope) -> float:
    """Returns the seconds since the whole request was received; 0 if the server does not record it."""
    now = time.monotonic()
    received: float = scope.get("state", {}).get(RECEIVED, now)
    return now - received


def _check_head(first: Mapping[bytes, bytes], max_bytes: int) -> int:
    """Returns the size of the body, 0 if unknown. `first`: the first header of each name. Raises `HttpError`."""
    if not is_json(first.get(b"content-type", b"application/json")):
        raise HttpError(415, "media_type", "The content type must be application/json in UTF-8.")
    if is_encoded(first.get(b"content-encoding", b"")):
        raise HttpError(415, "content_encoding", "The body must not be compressed.")
    length = first.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or (size := int(length)) > max_bytes:
        raise _too_large(max_bytes)
    return size


@lru_cache(maxsize=64)
def is_json(content_type: bytes) -> bool:
    """Whether it is a media type of JSON in UTF-8. Any other parameter says nothing to us."""
    charsets = {charset.lower() for charset in _CHARSET.findall(content_type)}
    return _MEDIA_TYPE.fullmatch(content_type) is not None and charsets <= {b"utf-8", b"utf8", b"us-ascii"}


def is_encoded(content_encoding: bytes) -> bool:
    """Whether the body is compressed or otherwise encoded."""
    return content_encoding.lower() not in (b"", b"identity")


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, "too_large", f"The body is larger than {max_bytes} bytes.", _CLOSE)


def _request_id(value: bytes) -> str:
    """Returns the caller's id for the request if it is short and plain, else a new one."""
    return value.decode() if _REQUEST_ID.fullmatch(value) else secrets.token_hex(8)
