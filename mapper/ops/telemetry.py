"""What the service says about itself: one log line per request, one per engine call, and metrics.

Log lines are JSON on standard error. They carry no secret, no coupon code, and no text that a caller or an engine could
use to forge a line: everything is encoded.
"""

import logging
import sys
import time
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from mapper.domain.record import Record
from mapper.engine.breaker import State as BreakerState
from mapper.engine.conversation import Call
from mapper.orders.rows import Backlog, State

log = logging.getLogger("mapper")

disable_created_metrics()  # type: ignore[no-untyped-call] # one more series per series, of no use to anybody here

_EVENTS = ("clamped", "drift", "degraded")
_OPEN: dict[BreakerState, float] = {"closed": 0, "probing": 0.5, "open": 1}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8)


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
        self.breakers = Gauge(
            "mapper_engine_breaker",
            "Whether an account of the engine is asked: 0 as usual, 1 not for now, 0.5 now and then.",
            ["account"],
            registry=self.registry,
        )
        self.events = Counter(
            "mapper_events_total",
            "Discounts clamped at zero, amounts that drifted between validate and consume, answers without the engine.",
            ["event"],
            registry=self.registry,
        )
        # To look a series up costs more than to count in it.
        remembered = lru_cache(maxsize=512)
        self._requests = remembered(self.requests.labels)
        self._seconds = remembered(self.seconds.labels)
        self._calls = remembered(self.calls.labels)
        self._call_seconds = remembered(self.call_seconds.labels)

    def request(self, record: Record, status: int, reason: str, seconds: float) -> None:
        self._requests(record.operation, str(status), reason).inc()
        self._seconds(record.operation).observe(seconds)
        flags = {event: True for event in _EVENTS if getattr(record, event)}
        for event in flags:
            self.events.labels(event).inc()
        for word in record.rejected:
            self.rejected.labels(word).inc()
        line = {
            "operation": record.operation,
            "status": status,
            "reason": reason,
            "ms": round(seconds * 1000, 1),
            "request_id": record.request_id,
            **flags,
            **record.facts,
        }
        if record.rejected:
            line["rejected"] = record.rejected
        _tell(logging.INFO if status < 400 else logging.WARNING, "request", line)

    def call(self, call: Call) -> None:
        result = str(call.status) if call.status is not None else call.failure
        self._calls(call.operation, result).inc()
        self._call_seconds(call.operation).observe(call.seconds)
        line = {"call": call.operation, "result": result, "ms": round(call.seconds * 1000, 1), "attempt": call.attempt}
        _tell(logging.INFO, "engine call", line)

    def breaker(self, account: str, state: BreakerState) -> None:
        self.breakers.labels(account).set(_OPEN[state])
        log.warning("circuit breaker", extra={"facts": {"account": account, "state": state}})

    def backlog(self, backlog: Backlog) -> None:
        for state in State:
            self.orders.labels(state.value).set(backlog.counts.get(state, 0))
        self.oldest_open.set(backlog.oldest_s)

    def metrics(self) -> bytes:
        return generate_latest(self.registry)


class JsonLines(logging.Handler):
    """One JSON object per line, written at once and in one piece: several processes may share one standard error.

    Tracebacks are included, the values of variables never are.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._second, self._prefix = -1, ""
        """The second that was written last, and how it is spelled: it is the same for many lines."""

    def emit(self, record: logging.LogRecord) -> None:
        facts = getattr(record, "facts", {})
        try:
            if record.exc_info:
                facts = facts | {"traceback": _FORMATTER.formatException(record.exc_info)}
            self.write(record.created, record.levelno, record.getMessage(), facts)
        except Exception:  # noqa: BLE001 - what cannot be logged stops nothing else
            self.handleError(record)

    def write(self, moment: float, level: int, event: str, facts: dict[str, Any]) -> None:
        line = {
            "time": self._time(moment),
            "level": logging.getLevelName(level).lower(),
            "event": event,
            **facts,
        }
        self._stream.write(_ENCODER.encode(line) + b"\n")
        self._stream.flush()

    def _time(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((moment - second) * 1000):03}+00:00"


_ENCODER = msgspec.json.Encoder()
_FORMATTER = logging.Formatter()
_lines: JsonLines | None = None
"""The process's own log, once it is set up."""


def _tell(level: int, event: str, facts: dict[str, Any]) -> None:
    """`log.log` with facts. Of what is told for every request, logging's own way would be a large part of the cost."""
    if _lines is not None and log.isEnabledFor(level):
        try:
            _lines.write(time.time(), level, event, facts)
        except Exception:  # noqa: BLE001 - logging knows what to do with what cannot be written
            log.log(level, event, extra={"facts": facts})
    else:
        log.log(level, event, extra={"facts": facts})


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sets logging up for the process. Libraries speak only when something is wrong: at DEBUG they print headers."""
    global _lines  # noqa: PLW0603 - as logging's own root handlers are: there is one standard error
    _lines = JsonLines(sys.stderr.buffer)
    logging.basicConfig(level=logging.WARNING, handlers=[_lines], force=True)
    log.setLevel(level)
