"""Traces: the id in a caller's `traceparent` is logged, and the header is forwarded to the engine.

Without the extra `tracing` nothing of OpenTelemetry is imported: the headers are forwarded unchanged, which W3C's Trace
Context calls a pass-through (w3.org/TR/trace-context, section 3.3). With it, spans are created if the environment names
a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`, or `…_TRACES_ENDPOINT`). They hold ids, statuses and reasons, but no code,
key or data of a shopper.
"""

import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from mapper.adapter import EngineRequest
from mapper.domain.record import Record
from mapper.engine.conversation import Attempt, Headers
from mapper.ops.logs import result_of
from mapper.orders.store import Store

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("mapper")

COLLECTORS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[ -~]{1,512}")


class Tracing(Protocol):
    """What the service needs of tracing."""

    def call(self, record: Record, headers: Mapping[bytes, bytes]) -> AbstractContextManager[None]:
        """Returns the context of one call; it sets `record.trace_id`. `headers`: the first of each name."""
        ...

    def record_answer(self, status: int, reason: str) -> None:
        """Adds the answer to the present call."""
        ...

    def attempt(self, request: EngineRequest) -> AbstractContextManager[Headers]:
        """Returns the context of one attempt at an engine request; it yields headers to add to the request."""
        ...

    def record_attempt(self, attempt: Attempt) -> None:
        """Adds the result to the present attempt."""
        ...

    def store(self, store: Store) -> Store:
        """Returns the ledger's store, traced."""
        ...


def incoming(headers: Mapping[bytes, bytes]) -> tuple[str, Headers]:
    """Returns the trace's id and the headers to forward; "" and none without a valid `traceparent`."""
    parent = headers.get(b"traceparent", b"").decode("latin-1")
    matched = _TRACEPARENT.fullmatch(parent)
    if matched is None:
        return "", ()
    state = headers.get(b"tracestate", b"").decode("latin-1")
    forwarded = [("traceparent", parent)]
    if _TRACESTATE.fullmatch(state):
        forwarded.append(("tracestate", state))
    return matched[1], tuple(forwarded)


class PassThrough:
    """Without OpenTelemetry."""

    def __init__(self) -> None:
        self._headers: ContextVar[Headers] = ContextVar("trace_headers", default=())

    def call(self, record: Record, headers: Mapping[bytes, bytes]) -> AbstractContextManager[None]:
        record.trace_id, forwarded = incoming(headers)
        self._headers.set(forwarded)
        return nullcontext()

    def record_answer(self, status: int, reason: str) -> None:
        pass

    def attempt(self, request: EngineRequest) -> AbstractContextManager[Headers]:
        return nullcontext(self._headers.get())

    def record_attempt(self, attempt: Attempt) -> None:
        pass

    def store(self, store: Store) -> Store:
        return store


class Spans:
    """With OpenTelemetry: a span for each call, each attempt at the engine, and each use of the ledger."""

    def __init__(self, tracer: "Tracer", engine: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._api, self._tracer, self._engine = trace, tracer, engine
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, record: Record, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        parent = self._propagator.extract(dict(incoming(headers)[1]))
        path = f"/promotions/{record.operation}"
        with self._tracer.start_as_current_span(
            f"POST {path}",
            parent,
            self._api.SpanKind.SERVER,
            {"http.request.method": "POST", "http.route": path, "mapper.request_id": record.request_id},
        ) as span:
            record.trace_id = f"{span.get_span_context().trace_id:032x}"
            yield

    def record_answer(self, status: int, reason: str) -> None:
        span = self._current()
        span.set_attributes({"http.response.status_code": status, "mapper.reason": reason})
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR, reason)

    @contextmanager
    def attempt(self, request: EngineRequest) -> Iterator[Headers]:
        with self._tracer.start_as_current_span(
            f"{self._engine} {request.operation}",
            kind=self._api.SpanKind.CLIENT,
            attributes={"http.request.method": request.method},
        ):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield tuple(carrier.items())

    def record_attempt(self, attempt: Attempt) -> None:
        span = self._current()
        span.set_attributes({"mapper.account": attempt.account, "http.request.resend_count": attempt.number - 1})
        if attempt.status is not None:
            span.set_attribute("http.response.status_code", attempt.status)
        if attempt.failure is not None:
            span.set_status(self._api.StatusCode.ERROR, result_of(attempt))

    def store(self, store: Store) -> Store:
        return cast("Store", _TracedStore(store, self._tracer, self._current))

    def _current(self) -> "Span":
        return self._api.get_current_span()


class _TracedStore:
    """Makes a span of each use of a store during a call. The background's uses get none: they would be too many."""

    def __init__(self, store: Store, tracer: "Tracer", current: "Callable[[], Span]") -> None:
        self._store, self._tracer, self._current = store, tracer, current

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        @functools.wraps(method)
        async def traced(*arguments: Any, **named: Any) -> Any:
            if not self._current().get_span_context().is_valid:
                return await method(*arguments, **named)
            with self._tracer.start_as_current_span(f"ledger {name}", record_exception=False):
                return await method(*arguments, **named)

        return traced


def from_environment(environment: Mapping[str, str], engine: str) -> Tracing:
    """Returns `Spans` if a collector is named and the extra is installed; warns if only the first is true."""
    if not any(environment.get(name) for name in COLLECTORS):
        return PassThrough()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        problem = "a collector is named, but the extra is not installed: pip install promotions-mapper[tracing]"
        log.warning("setting", extra={"facts": {"problem": problem}})
        return PassThrough()
    name = environment.get("OTEL_SERVICE_NAME") or "promotions-mapper"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider.get_tracer("promotions-mapper"), engine)
