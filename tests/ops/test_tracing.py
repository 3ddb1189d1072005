"""A caller's trace is logged and passed to the engine; with OpenTelemetry, calls, attempts and ledger are spans."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from mapper.adapter import EngineReply, Outcome, Reason, Rejection
from mapper.domain import record as records
from mapper.http import app
from mapper.ops import tracing
from mapper.ops.tracing import PassThrough, Spans, Tracing
from tests.fakes import FakeAdapter, FakeTransport, new_ledger, settings, signed

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CODE = "CANARY-CODE"
BODY = {
    "id": "c-1",
    "order_items": [{"sku": "S", "quantity": 1, "price": "1.00"}],
    "promotion": {"coupon_codes": [CODE]},
}


class Wire(FakeTransport):
    """Keeps the headers of each request, and the ids that a log line would have had then."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, str]] = []
        self.ids: list[dict[str, str]] = []

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        self.headers.append({name.lower(): value for name, value in headers})
        current = records.current.get()
        self.ids.append(current.ids() if current else {})
        return await super().send(method, url, headers, body, timeout_s, max_bytes)


def call(traces: Tracing, operation: str, wire: Wire, **headers: str) -> Any:
    adapter = FakeAdapter()
    if operation == "validate":
        adapter.granted = Outcome(rejected=(Rejection(CODE, Reason.EXPIRED, "x"),))
    application = app.create(settings(adapter, MAPPER_LEDGER_URL=new_ledger()), engine_transport=wire, traces=traces)
    data, sent = signed(BODY, **headers)
    with TestClient(application) as http:
        return http.post(f"/promotions/{operation}", content=data, headers=[(k.decode(), v.decode()) for k, v in sent])


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_trace_is_passed_on_and_logged_without_opentelemetry(operation: str) -> None:
    wire = Wire()
    call(PassThrough(), operation, wire, traceparent=PARENT, tracestate="vendor=1")
    assert {(one.get("traceparent"), one.get("tracestate")) for one in wire.headers} == {(PARENT, "vendor=1")}
    assert {ids["trace_id"] for ids in wire.ids} == {TRACE}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        PARENT.upper(),
        f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        PARENT + "-1",
    ],
)
def test_invalid_traceparent_is_ignored(parent: str) -> None:
    wire = Wire()
    assert call(PassThrough(), "validate", wire, traceparent=parent).status_code == 422
    assert all("traceparent" not in one for one in wire.headers)
    assert all("trace_id" not in ids for ids in wire.ids)


def traced(operation: str, wire: Wire, **headers: str) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    call(Spans(provider.get_tracer("test"), "fake"), operation, wire, **headers)
    return list(exporter.get_finished_spans())


def test_calls_attempts_and_ledger_are_spans_of_callers_trace() -> None:
    wire = Wire()
    wire.script = {"check": [503]}
    spans = traced("consume", wire, traceparent=PARENT)
    (root,) = [span for span in spans if span.name == "POST /promotions/consume"]
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    assert {ids["trace_id"] for ids in wire.ids} == {TRACE}
    names = [span.name for span in spans]
    assert "ledger claim" in names
    attempts = [span for span in spans if span.name.startswith("fake ")]
    assert [span.name for span in attempts] == ["fake check", "fake check", "fake redeem"]
    assert [(span.attributes or {})["http.response.status_code"] for span in attempts] == [503, 200, 200]
    assert [span.status.is_ok for span in attempts] == [False, True, True]
    sent = [one["traceparent"].split("-")[2] for one in wire.headers]
    assert sent == [f"{span.context.span_id:016x}" for span in attempts if span.context]
    assert (root.attributes or {})["http.response.status_code"] == 200


def test_spans_hide_codes_and_keys() -> None:
    spans = traced("validate", Wire())
    assert spans
    told = " ".join(span.to_json() for span in spans)
    assert "expired" in told
    assert CODE not in told
    assert "the engine's key" not in told


def test_opentelemetry_is_not_imported_without_a_collector() -> None:
    code = (
        "import sys; from mapper.http import app; from mapper.ops import tracing; tracing.from_environment({}, 'x');"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_collector_without_installed_extra_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    made = tracing.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "x")
    assert isinstance(made, PassThrough)
    assert "tracing" in str(caplog.records[0].__dict__["facts"])
