"""Reports each request and each attempt at an engine call to the log, the metrics and the traces."""

import logging

from mapper.domain.record import Record
from mapper.engine.breaker import State as BreakerState
from mapper.engine.conversation import Attempt
from mapper.ops import logs
from mapper.ops.logs import CodeNames
from mapper.ops.metrics import Metrics
from mapper.ops.tracing import PassThrough, Tracing

log = logging.getLogger("mapper")


class Telemetry:
    """One per process. `names` writes codes into the log."""

    def __init__(self, engine: str = "", names: CodeNames | None = None, traces: Tracing | None = None) -> None:
        self.metrics = Metrics(engine)
        self.traces = traces or PassThrough()
        self._engine = engine
        self._names = names or CodeNames("none", b"")
        self.backlog = self.metrics.backlog

    def request(self, record: Record, status: int, category: str, reason: str, seconds: float) -> None:
        self.metrics.request(record, status, category, reason, seconds)
        self.traces.record_answer(status, reason)
        logs.request(record, status, category, reason, seconds, self._names, self._engine)

    def attempt(self, attempt: Attempt) -> None:
        self.metrics.attempt(attempt)
        self.traces.record_attempt(attempt)
        logs.engine_call(attempt, self._engine)

    def breaker(self, account: str, state: BreakerState) -> None:
        self.metrics.breaker(account, state)
        log.warning("circuit breaker", extra={"facts": {"account": account, "state": state}})
