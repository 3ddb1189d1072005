"""The metrics, in Prometheus' text format. `TABLE` lists them; a test compares docs/operations.md with it.

With several workers, each writes into files of one folder (`PROMETHEUS_MULTIPROC_DIR`, set by the supervisor), so that
any of them can render the metrics of all.
"""

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from mapper import __version__
from mapper.domain.reasons import Reason
from mapper.domain.record import EVENTS, RECEIPT_FATES, Record
from mapper.engine.breaker import State as BreakerState
from mapper.engine.conversation import Attempt
from mapper.ops.logs import result_of
from mapper.orders.rows import Backlog, State

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the number of series

OPERATIONS: Final = ("validate", "consume")
INGEST_FATES: Final = (
    "created", "again", "refused", "not_sent", "unknown", "other_content", "no_order", "no_journal",
)  # fmt: skip
RECORD_FATES: Final = ("written", "dropped", "failed", "unfaithful")
_OPEN: Final[dict[BreakerState, float]] = {"closed": 0, "probing": 0.5, "open": 1}
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    """One metric. `mode`: how the values of a gauge from several workers are combined."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    mode: Literal["livesum", "livemax", "livemin", "livemostrecent"] = "livemax"


TABLE: Final = (
    Row("mapper_build_info", "gauge", ("version", "engine", "python"), "always 1; the labels say what runs"),
    Row(
        "mapper_requests_total", "counter", ("operation", "status", "category", "reason"), "requests that were answered"
    ),
    Row("mapper_request_seconds", "histogram", ("operation",), "time to answer"),
    Row("mapper_in_flight", "gauge", ("operation",), "calls that are not answered yet", "livesum"),
    Row(
        "mapper_shed_total",
        "counter",
        ("operation", "where"),
        "calls refused as `overloaded`: at the `door` or in the `queue`",
    ),
    Row(
        "mapper_consume_served",
        "gauge",
        (),
        "1 while consume is served; 0 while the ledger cannot be used, and in a worker that starts",
        "livemin",
    ),
    Row("mapper_engine_calls_total", "counter", ("engine", "operation", "result"), "calls to the engine"),
    Row("mapper_engine_call_seconds", "histogram", ("engine", "operation"), "time the engine took"),
    Row(
        "mapper_engine_breaker",
        "gauge",
        ("account",),
        "the circuit breaker of an engine's account: 0 closed, 0.5 probing, 1 open",
    ),
    Row(
        "mapper_discount_minor_units_total",
        "counter",
        ("operation", "currency"),
        "discounts granted, in minor units of the currency",
    ),
    Row("mapper_rejected_codes_total", "counter", ("reason",), "codes that did not apply"),
    Row(
        "mapper_events_total",
        "counter",
        ("event",),
        "`clamped`: cut to the price; `drift`: consume granted other amounts; `degraded`: validate"
        " answered, or consume finished, without the engine",
    ),
    Row(
        "mapper_receipts_total",
        "counter",
        ("fate",),
        "receipts received: `good`, `stale` (expired or changed), `absent`, `forged`",
    ),
    Row("mapper_products_total", "counter", ("fate",), "products asked for: `fresh`, `stale`, `read`, `failed`"),
    Row(
        "mapper_ingested_orders_total",
        "counter",
        ("fate",),
        "orders sent to `POST /orders/ingest`: `created`; `again` (created before); `refused` by Nacelle; `not_sent`;"
        " `unknown` (settle it); `other_content` under a known id; `no_order`: invalid; `no_journal`: not writable",
    ),
    Row(
        "mapper_records_total",
        "counter",
        ("fate",),
        "calls to record (`MAPPER_RECORD`): `written`; `dropped`: too many at once; `failed`: the disk; `unfaithful`:"
        " redacting would change the amounts",
    ),
    Row(
        "mapper_ledger_orders",
        "gauge",
        ("state",),
        "orders in the ledger; `RETRYABLE` ones wait for their caller",
        "livemostrecent",
    ),
    Row(
        "mapper_ledger_oldest_open_seconds",
        "gauge",
        (),
        "age of the oldest order that is not finished",
        "livemostrecent",
    ),
    Row(
        "mapper_ledger_unconfirmed_orders",
        "gauge",
        (),
        "redeemed orders that were never confirmed to a caller",
        "livemostrecent",
    ),
)


class Metrics:
    """The metrics of this process; `render` includes those of the other workers."""

    def __init__(self, engine: str = "") -> None:
        self._registry = CollectorRegistry()
        self._engine = engine
        metrics = {row.name: _create(row, self._registry) for row in TABLE}
        # Cached, since `labels()` costs more than `inc()`.
        self._series = lru_cache(maxsize=1024)(
            lambda name, *labels: metrics[name].labels(*labels) if labels else metrics[name]
        )
        self._series("mapper_build_info", __version__, engine, platform.python_version()).set(1)
        self._start_at_zero()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            prometheus_client.ProcessCollector(registry=self._registry)
            prometheus_client.PlatformCollector(registry=self._registry)

    def _start_at_zero(self) -> None:
        """Creates the series in advance: `rate` does not see the first event of a series that appears with it."""
        for operation in OPERATIONS:
            self._series("mapper_requests_total", operation, "200", "ok", "ok")
            self._series("mapper_request_seconds", operation)
            self._series("mapper_in_flight", operation)
            for where in ("door", "queue"):
                self._series("mapper_shed_total", operation, where)
        for name, values in (
            ("mapper_rejected_codes_total", Reason),
            ("mapper_events_total", EVENTS),
            ("mapper_receipts_total", RECEIPT_FATES),
            ("mapper_ingested_orders_total", INGEST_FATES),
            ("mapper_records_total", RECORD_FATES),
            ("mapper_ledger_orders", State),
        ):
            for value in values:
                self._series(name, str(value))

    def request(self, record: Record, status: int, category: str, reason: str, seconds: float) -> None:
        operation = record.operation
        self._series("mapper_requests_total", operation, str(status), category, reason).inc()
        self._series("mapper_request_seconds", operation).observe(seconds)
        for event in EVENTS:
            if getattr(record, event):
                self._series("mapper_events_total", event).inc()
        for one in record.rejected:
            self._series("mapper_rejected_codes_total", one.reason).inc()
        if record.discount:
            self._series("mapper_discount_minor_units_total", operation, record.currency or "none").inc(record.discount)
        if record.receipt:
            self._series("mapper_receipts_total", record.receipt).inc()

    def in_flight(self, operation: str) -> Any:
        """Returns the gauge of the calls of one operation that are not answered yet."""
        return self._series("mapper_in_flight", operation)

    def shed(self, operation: str, where: Literal["door", "queue"]) -> None:
        self._series("mapper_shed_total", operation, where).inc()

    def attempt(self, attempt: Attempt) -> None:
        self._series("mapper_engine_calls_total", self._engine, attempt.operation, result_of(attempt)).inc()
        self._series("mapper_engine_call_seconds", self._engine, attempt.operation).observe(attempt.seconds)

    def breaker(self, account: str, state: BreakerState) -> None:
        self._series("mapper_engine_breaker", account).set(_OPEN[state])

    def products(self, fate: str, number: int) -> None:
        if number:
            self._series("mapper_products_total", fate).inc(number)

    def ingested(self, fate: str) -> None:
        self._series("mapper_ingested_orders_total", fate).inc()

    def record(self, fate: str) -> None:
        self._series("mapper_records_total", fate).inc()

    def readiness(self, *, consume: bool) -> None:
        self._series("mapper_consume_served").set(consume)

    def backlog(self, backlog: Backlog) -> None:
        for state in State:
            self._series("mapper_ledger_orders", state.value).set(backlog.counts.get(state, 0))
        self._series("mapper_ledger_oldest_open_seconds").set(backlog.oldest_s)
        self._series("mapper_ledger_unconfirmed_orders").set(backlog.unconfirmed)

    def render(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        all_workers = CollectorRegistry()
        multiprocess.MultiProcessCollector(all_workers)  # type: ignore[no-untyped-call]
        return generate_latest(all_workers)


def _create(row: Row, registry: CollectorRegistry) -> Any:
    name = row.name.removesuffix("_total")
    if row.kind == "counter":
        return Counter(name, row.meaning, row.labels, registry=registry)
    if row.kind == "histogram":
        return Histogram(name, row.meaning, row.labels, buckets=_BUCKETS, registry=registry)
    return Gauge(name, row.meaning, row.labels, multiprocess_mode=row.mode, registry=registry)
