"""The log: what a line looks like, and that nothing gets lost or breaks because of it."""

import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from mapper.domain.record import Record
from mapper.engine.breaker import State
from mapper.engine.conversation import Call
from mapper.ops import telemetry
from mapper.ops.telemetry import Telemetry, log

CALL = Call(operation="ask", account="", method="PUT", status=200, failure=None, seconds=0.0123, attempt=2)


class Stream(io.BytesIO):
    """Standard error, as binary; `writes` is what each call of `write` was given."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.fault: Exception | None = None

    def write(self, data: Any, /) -> int:
        if self.fault is not None:
            raise self.fault
        self.writes.append(bytes(data))
        return len(data)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.writes]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """Where the process logs to, set up as the commands do it."""
    stream, root = Stream(), logging.getLogger()
    handlers, levels = root.handlers[:], (root.level, log.level)
    monkeypatch.setattr(telemetry, "_lines", None)
    text = io.TextIOWrapper(stream)
    monkeypatch.setattr(sys, "stderr", text)
    telemetry.log_to_stderr()
    yield stream
    text.detach()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    log.setLevel(levels[1])


def test_a_request_and_an_engine_call_are_one_line_each_written_in_one_piece(stderr: Stream) -> None:
    told = Telemetry()
    record = Record("consume", "id-1", {"order": "o-1"}, clamped=True, rejected=["expired"])
    told.call(CALL)
    told.request(record, 200, "ok", 0.01234)
    told.request(Record("validate", "id-2"), 422, "timeout", 1.5)
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in stderr.writes)
    lines = stderr.lines
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time")) for line in lines)
    assert lines == [
        {"level": "info", "event": "engine call", "call": "ask", "result": "200", "ms": 12.3, "attempt": 2},
        {
            "level": "info",
            "event": "request",
            "operation": "consume",
            "status": 200,
            "reason": "ok",
            "ms": 12.3,
            "request_id": "id-1",
            "clamped": True,
            "order": "o-1",
            "rejected": ["expired"],
        },
        {
            "level": "warning",
            "event": "request",
            "operation": "validate",
            "status": 422,
            "reason": "timeout",
            "ms": 1500.0,
            "request_id": "id-2",
        },
    ]


def test_the_time_of_a_line_is_utc_to_the_millisecond(stderr: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    for moment, spelled in (
        (0.0, "1970-01-01T00:00:00.000+00:00"),
        (1_700_000_000.5, "2023-11-14T22:13:20.500+00:00"),
        (1_700_000_000.75, "2023-11-14T22:13:20.750+00:00"),
        (1_700_000_001.0009, "2023-11-14T22:13:21.000+00:00"),
        (1_699_999_999.9999, "2023-11-14T22:13:19.999+00:00"),
    ):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        Telemetry().call(CALL)
        assert stderr.lines[-1]["time"] == spelled


def test_what_is_logged_by_the_way_stands_among_the_others_in_the_order_it_came(stderr: Stream) -> None:
    told = Telemetry()
    told.call(CALL)
    log.warning("setting", extra={"facts": {"problem": "x"}})
    told.call(CALL)
    try:
        int("why")
    except ValueError:
        log.exception("internal error", extra={"facts": {"request_id": "id-1"}})
    logging.getLogger("library").info("chatter")
    assert [line["event"] for line in stderr.lines] == ["engine call", "setting", "engine call", "internal error"]
    assert stderr.lines[1] | {"time": ""} == {"time": "", "level": "warning", "event": "setting", "problem": "x"}
    assert stderr.lines[3]["request_id"] == "id-1"
    assert stderr.lines[3]["traceback"].endswith("'why'")


def test_no_text_can_forge_a_line(stderr: Stream) -> None:
    Telemetry().request(Record("validate", 'x"\n{"level":"info"}\u2028'), 200, "ok", 0.1)
    assert len(b"".join(stderr.writes).splitlines()) == 1


def test_a_level_that_is_silent_stays_so(stderr: Stream) -> None:
    log.setLevel("CRITICAL")
    Telemetry().call(CALL)
    assert stderr.writes == []


@pytest.mark.parametrize("fault", [BlockingIOError(), BrokenPipeError(), OSError(28, "no space")])
def test_a_log_that_cannot_be_written_stops_no_request(stderr: Stream, fault: Exception) -> None:
    stderr.fault = fault
    Telemetry().request(Record("validate", "id-1"), 200, "ok", 0.1)
    stderr.fault = None
    Telemetry().request(Record("validate", "id-2"), 200, "ok", 0.1)
    assert stderr.lines[-1]["request_id"] == "id-2"


def test_nor_does_what_cannot_be_spelled(stderr: Stream) -> None:
    told = Telemetry()
    told.request(Record("validate", "\ud800"), 200, "ok", 0.1)
    told.request(Record("validate", "id-1", {"odd": object()}), 200, "ok", 0.1)
    told.call(CALL)
    assert stderr.lines[-1]["event"] == "engine call"


def test_without_a_log_of_its_own_the_process_logs_as_it_was_set_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Telemetry().call(CALL)
    (record,) = caplog.records
    assert record.__dict__["facts"]["call"] == "ask"


def test_a_breaker_is_a_gauge_for_each_account() -> None:
    told = Telemetry()
    for state, value in (("open", "1.0"), ("probing", "0.5"), ("closed", "0.0")):
        told.breaker("EUR", cast("State", state))
        assert f'mapper_engine_breaker{{account="EUR"}} {value}' in told.metrics().decode()


def test_a_series_for_each_combination_of_labels() -> None:
    told = Telemetry()
    for _ in range(3):
        told.request(Record("validate", "id"), 200, "ok", 0.03)
    told.request(Record("validate", "id", drift=True, rejected=["expired", "expired"]), 422, "expired", 9)
    told.call(CALL)
    found = set(told.metrics().decode().splitlines())
    assert found >= {
        'mapper_requests_total{operation="validate",reason="ok",status="200"} 3.0',
        'mapper_requests_total{operation="validate",reason="expired",status="422"} 1.0',
        'mapper_request_seconds_bucket{le="0.05",operation="validate"} 3.0',
        'mapper_request_seconds_count{operation="validate"} 4.0',
        'mapper_engine_calls_total{operation="ask",result="200"} 1.0',
        'mapper_engine_call_seconds_count{operation="ask"} 1.0',
        'mapper_rejected_codes_total{reason="expired"} 2.0',
        'mapper_events_total{event="drift"} 1.0',
    }
