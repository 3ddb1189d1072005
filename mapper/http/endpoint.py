"""One call from Nacelle, from the head of the request to the end of the answer.

Its body is read within limits, the limiter admits it, a handler of `mapper.promotions` answers it by its deadline, log
and metrics are told. Here, and nowhere else, a `Problem` becomes an answer.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from mapper.domain import errors
from mapper.domain import record as records
from mapper.domain.errors import Operation, Overloaded, Problem
from mapper.domain.record import Record
from mapper.engine import tape
from mapper.engine.tape import Held
from mapper.http import protocol
from mapper.http.limiter import Limiter, Permit
from mapper.http.protocol import RECEIVED, PreparedResponse
from mapper.ops.telemetry import Telemetry
from mapper.orders.rows import Answer
from mapper.promotions import Call, Service
from mapper.settings import Settings
from mapper.threads import LARGE_BYTES

log = logging.getLogger("mapper")

BODY_DEADLINE_S = 5.0
"""A caller that takes longer than this to send its body is holding a connection, not checking out."""

IN_FLIGHT_BYTES = 64 * 1024 * 1024
"""Of the bodies of all calls of one endpoint, from their first byte until they are answered."""

LARGE_CAPACITY: Final = 8
"""Of carts that are worked on in a thread, one at a time: with more at once all would be late together."""

ANSWER_S: Final = 0.0005
"""Processor time of an answer. Where the engine hangs all calls in flight may have to be answered in the same moment:
each that begins leaves those before it the time for that."""

SECURITY_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_JSON_HEADERS = (
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()),
)
_CLOSE = (b"connection", b"close")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_MEDIA_TYPE = re.compile(rb"application/(json|[\w.-]+\+json)\s*(;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)

Handler = Callable[[Service, Call], Awaitable[Answer]]


class Keeper(Protocol):
    """What keeps the calls that were answered: `mapper.recording.recorder.Recorder`, where they are recorded."""

    def keep(self, call: Record, status: int, category: str, reason: str, tape: Iterable[Held]) -> None: ...


class _Response(NamedTuple):
    """What is answered, and the word for it in log and metric."""

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
    """The request is no call of the contract, and gets an ordinary HTTP status."""

    def __init__(self, status: int, reason: str, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.response = _Response(status, error_body(text), reason, "http", headers)


def error_body(text: str) -> bytes:
    """What is answered where Nacelle's own form of an error does not apply."""
    return msgspec.json.encode({"error": text})


class Endpoint:
    """One of the two calls, as an ASGI application."""

    service: Service
    """Set before the first request."""

    def __init__(
        self,
        operation: Operation,
        handler: Handler,
        capacity: int,
        configured: Settings,
        telemetry: Telemetry,
        recorder: Keeper | None = None,
    ) -> None:
        """`capacity`: calls at once."""
        self._operation: Operation = operation
        self._handler = handler
        self._deadline_s = configured.validate_deadline_s if operation == "validate" else configured.consume_deadline_s
        self._max_body_bytes = configured.max_body_bytes
        max_bytes = max(IN_FLIGHT_BYTES, 4 * configured.max_body_bytes)
        self._limiter = Limiter(capacity, self._deadline_s, max_bytes)
        self._large = Limiter(LARGE_CAPACITY, self._deadline_s, max_bytes)
        self._overload_status = configured.overload_status
        self._telemetry = telemetry
        self._recorder = recorder
        overloaded = self._refusal(Overloaded())
        self._shed = protocol.prepared(overloaded.status, overloaded.fields(), overloaded.body)
        self._in_flight = telemetry.metrics.in_flight(operation)

    def shed(self) -> PreparedResponse | None:
        """The refusal of one more call, where there is no time for it; nothing is held for a call that comes."""
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
        overheard: list[Held] = []
        if self._recorder is not None:
            tape.listening.set(overheard)
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
                body = await self._read(receive, permit)
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
                self._explain(problem, record)
                response = self._refusal(problem)
            except Exception:
                log.exception("internal error")
                fault = Problem("A fault inside the service.", reason="internal")
                self._explain(fault, record)
                response = self._refusal(fault)
            self._telemetry.request(
                record, response.status, response.category, response.reason, time.monotonic() - started
            )
            if self._recorder is not None:
                self._recorder.keep(record, response.status, response.category, response.reason, overheard)
        await response.send(send, (b"x-request-id", record.request_id.encode()))

    async def _answer(self, call: Call, receive: Receive) -> Answer:
        if self._operation == "validate":
            return await self._handler(self.service, call)
        # An order goes on without its caller, but it matters whether anybody was there to be told.
        hanging_up = asyncio.ensure_future(receive())
        try:
            return await self._handler(self.service, replace(call, has_hung_up=hanging_up.done))
        finally:
            hanging_up.cancel()

    def _explain(self, problem: Problem, record: Record) -> None:
        """Puts into the log what the storefront is not told."""
        if problem.category == "promotion_codes":
            return  # the codes are there already, with their reasons
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

    async def _read(self, receive: Receive, permit: Permit) -> bytes:
        """The body's bytes, as they came. Nothing is decoded, no more than the limit is held."""
        parts = bytearray()
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise HttpError(400, "client_gone", "The client has gone.")
                    part: bytes = message.get("body", b"")
                    if len(parts) + len(part) > self._max_body_bytes:
                        raise _too_large(self._max_body_bytes)
                    self._limiter.hold(permit, len(part))
                    if not message.get("more_body"):
                        return bytes(parts + part) if parts else part
                    parts += part
        except TimeoutError:
            raise HttpError(408, "slow_body", "The body did not arrive in time.", _CLOSE) from None

    def _refusal(self, problem: Problem) -> _Response:
        status = problem.status(self._operation)
        if problem.category == "overloaded" and self._overload_status:
            status = self._overload_status
        after = () if problem.retry_after is None else ((b"retry-after", b"%d" % problem.retry_after),)
        return _Response(status, errors.body(problem, self._operation), problem.reason, problem.category, after)


def _waited_s(scope: Scope) -> float:
    """How long the whole request has been here, as far as the server says so."""
    now = time.monotonic()
    received: float = scope.get("state", {}).get(RECEIVED, now)
    return now - received


def _check_head(first: Mapping[bytes, bytes], max_bytes: int) -> int:
    """The body's size, as far as the head tells it. `first`: of each header the first, by name. Raises `HttpError`."""
    if not _MEDIA_TYPE.fullmatch(first.get(b"content-type", b"application/json")):
        raise HttpError(415, "media_type", "The content type must be application/json in UTF-8.")
    if first.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HttpError(415, "content_encoding", "The body must not be compressed.")
    length = first.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or (size := int(length)) > max_bytes:
        raise _too_large(max_bytes)
    return size


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, "too_large", f"The body is larger than {max_bytes} bytes.", _CLOSE)


def _request_id(given: bytes) -> str:
    """The caller's own id for the request, where it is harmless; else a new one."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
