"""Traces: what a caller's `traceparent` names goes into the log and on to the engine; with OpenTelemetry, as spans.

Without the extra `tracing` nothing of OpenTelemetry is imported: the headers are forwarded as they came, which W3C's
Trace Context calls a pass-through (w3.org/TR/trace-context, section 3.3). Spans are made where the environment names a
collector (`OTEL_EXPORTER_OTLP_ENDPOINT`, or `…_TRACES_ENDPOINT`). They hold ids, statuses and reasons: no code, no key,
nothing of a shopper.
"""

import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from mapper.adapter import EngineRequest
from mapper.domain.record import Record
from mapper.engine.conversation import Call, Headers
from mapper.ops.logs import result_of
from mapper.orders.store import Store

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("mapper")

COLLECTORS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[ -~]{1,512}")


class Tracing(Protocol):
    """What the service tells of its calls."""

    def call(self, record: Record, headers: Mapping[bytes, bytes]) -> AbstractContextManager[None]:
        """Around one call from Nacelle; `record.trace_id` is set within. `headers`: of each the first, by name."""
        ...

    def answered(self, status: int, reason: str) -> None:
        """Within `call`: how it was answered."""
        ...

    def attempt(self, request: EngineRequest) -> AbstractContextManager[Headers]:
        """Around one attempt at an engine request; what comes of it is sent along as headers."""
        ...

    def tried(self, made: Call) -> None:
        """Within `attempt`: what came of it."""
        ...

    def store(self, store: Store) -> Store:
        """The ledger's store, watched."""
        ...


def incoming(headers: Mapping[bytes, bytes]) -> tuple[str, Headers]:
    """The trace's id and the headers to pass on; "" and none where no valid `traceparent` came."""
    parent = headers.get(b"traceparent", b"").decode("latin-1")
    matched = _TRACEPARENT.fullmatch(parent)
    if matched is None:
        return "", ()
    state = headers.get(b"tracestate", b"").decode("latin-1")
    passed_on = [("traceparent", parent)]
    if _TRACESTATE.fullmatch(state):
        passed_on.append(("tracestate", state))
    return matched[1], tuple(passed_on)


class PassThrough:
    """Without OpenTelemetry."""

    def __init__(self) -> None:
        self._headers: ContextVar[Headers] = ContextVar("trace_headers", default=())

    @contextmanager
    def call(self, record: Record, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        record.trace_id, passed_on = incoming(headers)
        self._headers.set(passed_on)
        yield

    def answered(self, status: int, reason: str) -> None:
        pass

    @contextmanager
    def attempt(self, request: EngineRequest) -> Iterator[Headers]:
        yield self._headers.get()

    def tried(self, made: Call) -> None:
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

    def answered(self, status: int, reason: str) -> None:
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

    def tried(self, made: Call) -> None:
        span = self._current()
        span.set_attributes({"mapper.account": made.account, "http.request.resend_count": made.attempt - 1})
        if made.status is not None:
            span.set_attribute("http.response.status_code", made.status)
        if made.failure is not None:
            span.set_status(self._api.StatusCode.ERROR, result_of(made))

    def store(self, store: Store) -> Store:
        return cast("Store", _Watched(store, self._tracer))

    def _current(self) -> "Span":
        return self._api.get_current_span()


class _Watched:
    """Each use of a store becomes a span. Outside of a call there is none: looks of the background would flood it."""

    def __init__(self, store: Store, tracer: "Tracer") -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra

        self._api, self._store, self._tracer = trace, store, tracer

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        @functools.wraps(method)
        async def watched(*arguments: Any, **named: Any) -> Any:
            if not self._api.get_current_span().get_span_context().is_valid:
                return await method(*arguments, **named)
            with self._tracer.start_as_current_span(f"ledger {name}", record_exception=False):
                return await method(*arguments, **named)

        return watched


def from_environment(environment: Mapping[str, str], engine: str) -> Tracing:
    """`Spans` where a collector is named and the extra is installed; says so where only the first is true."""
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
