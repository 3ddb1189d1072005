"""What the service says about itself: one log line per request, one per engine call, and metrics.

Log lines are JSON on standard error. They carry no secret, no coupon code, and no text that a caller or an engine could
use to forge a line: everything is encoded.
"""

import logging
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from mapper.engine import Call
from mapper.ledger import Backlog, State

log = logging.getLogger("mapper")

disable_created_metrics()  # type: ignore[no-untyped-call] # one more series per series, of no use to anybody here

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8)


@dataclass
class Record:
    """What is worth knowing about one request; filled along the way, written once."""

    operation: str
    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    clamped: bool = False
    drift: bool = False
    degraded: bool = False
    rejected: list[str] = field(default_factory=list)
    """The reasons (words of `mapper.reasons`) of codes that did not apply."""


class Telemetry:
    """The metrics of one process, and the two seams where requests and engine calls are recorded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mapper_requests_total",
            "Requests by endpoint, status and reason.",
            ["operation", "status", "reason"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "mapper_request_seconds", "Time to answer.", ["operation"], buckets=_BUCKETS, registry=self.registry
        )
        self.calls = Counter(
            "mapper_engine_calls_total",
            "Calls to the engine by operation and result.",
            ["operation", "result"],
            registry=self.registry,
        )
        self.call_seconds = Histogram(
            "mapper_engine_call_seconds",
            "Time the engine took.",
            ["operation"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.rejected = Counter(
            "mapper_rejected_codes_total", "Codes that did not apply.", ["reason"], registry=self.registry
        )
        self.orders = Gauge("mapper_ledger_orders", "Orders in the ledger by state.", ["state"], registry=self.registry)
        self.oldest_open = Gauge(
            "mapper_ledger_oldest_open_seconds", "Age of the oldest order that is not finished.", registry=self.registry
        )
        self.events = Counter(
            "mapper_events_total",
            "Discounts clamped at zero, amounts that drifted between validate and consume, answers without the engine.",
            ["event"],
            registry=self.registry,
        )

    def request(self, record: Record, status: int, reason: str, seconds: float) -> None:
        self.requests.labels(record.operation, str(status), reason).inc()
        self.seconds.labels(record.operation).observe(seconds)
        for event in ("clamped", "drift", "degraded"):
            if getattr(record, event):
                self.events.labels(event).inc()
        for word in record.rejected:
            self.rejected.labels(word).inc()
        flags = {event: True for event in ("clamped", "drift", "degraded") if getattr(record, event)}
        line = {"operation": record.operation, "status": status, "reason": reason, "ms": round(seconds * 1000, 1)}
        line |= {"request_id": record.request_id, **flags, **record.facts}
        if record.rejected:
            line["rejected"] = record.rejected
        log.log(logging.INFO if status < 400 else logging.WARNING, "request", extra={"facts": line})

    def call(self, call: Call) -> None:
        result = str(call.status) if call.status is not None else call.failure
        self.calls.labels(call.operation, result).inc()
        self.call_seconds.labels(call.operation).observe(call.seconds)
        line = {"call": call.operation, "result": result, "ms": round(call.seconds * 1000, 1), "attempt": call.attempt}
        log.info("engine call", extra={"facts": line})

    def backlog(self, backlog: Backlog) -> None:
        for state in State:
            self.orders.labels(state.value).set(backlog.counts.get(state, 0))
        self.oldest_open.set(backlog.oldest_s)

    def metrics(self) -> bytes:
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object per line. Tracebacks are included, the values of variables never are."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sets logging up for the process. Libraries speak only when something is wrong: at DEBUG they print headers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(level)
