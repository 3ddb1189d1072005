"""Log lines and metrics: their content, and that a fault in them breaks no request."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from msgspec import structs

from mapper.domain import record as records
from mapper.domain.outcome import Rejection
from mapper.domain.reasons import Reason
from mapper.domain.record import Record
from mapper.engine.breaker import State
from mapper.engine.conversation import Attempt
from mapper.ops import logs
from mapper.ops.logs import CodeNames, log
from mapper.ops.metrics import TABLE
from mapper.ops.telemetry import Telemetry
from mapper.orders.rows import Backlog
from mapper.orders.rows import State as OrderState

ATTEMPT = Attempt(operation="ask", account="EUR", method="PUT", status=200, failure=None, seconds=0.0123, number=2)
EXPIRED = Rejection("XMAS", Reason.EXPIRED, "CouponExpired")


class Stream(io.StringIO):
    """Standard error; `writes` holds the argument of each call of `write`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.fault: Exception | None = None

    def write(self, data: str, /) -> int:
        if self.fault is not None:
            raise self.fault
        self.writes.append(data)
        return len(data)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.writes]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """Standard error with logging configured as the commands do it."""
    stream, root = Stream(), logging.getLogger()
    handlers, levels = root.handlers[:], (root.level, log.level)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(logs, "_json_file", None)
    logs.configure()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    log.setLevel(levels[1])


def telemetry(mode: logs.Codes = "hash") -> Telemetry:
    return Telemetry("talon_one", CodeNames(mode, b"a signing secret"))


def test_consume_and_its_engine_call_are_logged_as_one_line_each(stderr: Stream) -> None:
    told = telemetry("short")
    record = Record(
        "consume", "id-1", {"more": 1}, space="s", id="o-1", session="e-1", codes=("SUMMER20",), clamped=True,
        rejected=(EXPIRED,), drift={"order": "5.00", "engine": "4.00"},
    )  # fmt: skip
    token = records.current.set(record)
    told.attempt(ATTEMPT)
    records.current.reset(token)
    told.request(record, 200, "ok", "redeemed", 0.01234)
    assert all(line.endswith("}\n") and line.count("\n") == 1 for line in stderr.writes)
    lines = stderr.lines
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("time")) for line in lines)
    ids = {"request_id": "id-1", "space": "s", "id": "o-1", "session": "e-1"}
    assert lines == [
        {
            "level": "info",
            "event": "engine call",
            "call": "ask",
            "result": "200",
            "ms": 12.3,
            "attempt": 2,
            "engine": "talon_one",
            "account": "EUR",
            **ids,
        },
        {
            "level": "warning",
            "event": "request",
            "operation": "consume",
            "status": 200,
            "category": "ok",
            "reason": "redeemed",
            "engine": "talon_one",
            "ms": 12.3,
            **ids,
            "more": 1,
            "codes": ["SU…20"],
            "rejected": [{"code": "X…", "reason": "expired", "engine_reason": "CouponExpired"}],
            "clamped": True,
            "drift": {"order": "5.00", "engine": "4.00"},
        },
    ]


def test_line_of_a_validate_has_its_engine_calls(stderr: Stream) -> None:
    told, record = telemetry(), Record("validate", "id-1")
    token = records.current.set(record)
    told.attempt(ATTEMPT)
    told.attempt(structs.replace(ATTEMPT, status=None, failure="timeout", account="", number=1))
    records.current.reset(token)
    told.request(record, 422, "engine_unavailable", "timeout", 0.1)
    (line,) = stderr.lines
    assert (line["event"], line["engine"], line["engine_calls"]) == (
        "request",
        "talon_one",
        [
            {"call": "ask", "result": "200", "ms": 12.3, "attempt": 2, "account": "EUR"},
            {"call": "ask", "result": "timeout", "ms": 12.3},
        ],
    )


def test_engine_call_without_a_request_has_a_line_of_its_own(stderr: Stream) -> None:
    telemetry().attempt(ATTEMPT)
    assert [line["event"] for line in stderr.lines] == ["engine call"]


@pytest.mark.parametrize(
    ("category", "level"),
    [
        ("ok", "info"),
        ("http", "info"),
        ("promotion_codes", "info"),
        ("invalid_request", "warning"),
        ("signature", "warning"),
        ("engine_unavailable", "warning"),
        ("overloaded", "warning"),
        ("engine_rejected", "error"),
        ("internal", "error"),
    ],
)
def test_log_level_follows_category(stderr: Stream, category: str, level: str) -> None:
    telemetry().request(Record("validate", "id"), 422, category, "why", 0.1)
    assert stderr.lines[0]["level"] == level


def test_logged_code_is_the_hash_of_its_name(stderr: Stream) -> None:
    telemetry().request(Record("validate", "id", codes=("Summer20",)), 200, "ok", "ok", 0.1)
    assert stderr.lines[0]["codes"] == [CodeNames("hash", b"a signing secret")("SUMMER20")]
    assert CodeNames("hash", b"another secret")("SUMMER20") not in stderr.writes[0]
    assert "ummer" not in stderr.writes[0].lower()
    telemetry("none").request(Record("validate", "id", codes=("A",), rejected=(EXPIRED,)), 200, "ok", "ok", 0.1)
    assert "codes" not in stderr.lines[1]
    assert stderr.lines[1]["rejected"][0]["code"] == ""
    assert "XMAS" not in "".join(stderr.writes)


@pytest.mark.parametrize(("currency", "told"), [("EUR", "12.50 EUR"), ("JPY", "1250 JPY"), ("", "12.50")])
def test_discount_is_logged_in_its_currency(stderr: Stream, currency: str, told: str) -> None:
    telemetry().request(Record("validate", "id", currency=currency, discount=1250), 200, "ok", "ok", 0.01)
    assert stderr.lines[0]["discount"] == told


def test_code_name_ignores_spaces_and_invisible_characters() -> None:
    for mode in ("hash", "short"):
        names = CodeNames(mode, b"a signing secret")
        assert names(" SUMMER20\u200b") == names("SUMMER20")
        assert names("\ud800SUMMER\udfff").encode()  # lone surrogates can be logged, too


def test_other_log_lines_have_ids_of_request(stderr: Stream) -> None:
    token = records.current.set(Record("validate", "id-1", session="s-1"))
    log.warning("setting", extra={"facts": {"problem": "x"}})
    try:
        int("why")
    except ValueError:
        log.exception("internal error")
    records.current.reset(token)
    logging.getLogger("library").info("chatter")
    assert [line["event"] for line in stderr.lines] == ["setting", "internal error"]
    assert stderr.lines[0] | {"time": ""} == {
        "time": "", "level": "warning", "event": "setting", "problem": "x", "request_id": "id-1", "session": "s-1",
    }  # fmt: skip
    assert stderr.lines[1]["request_id"] == "id-1"
    assert stderr.lines[1]["exception"].endswith("'why'")


def test_text_format_is_readable(stderr: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("debug", "text")
    telemetry().request(Record("validate", "id-1", rejected=(EXPIRED,)), 200, "ok", "ok", 0.1)
    assert re.search(
        r"\[info +\] request +.*operation=validate.*'reason': 'expired'.* request_id=id-1", stderr.writes[-1]
    )


def test_text_format_escapes_control_characters(stderr: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("debug", "text")
    telemetry().request(Record("validate", "id-1", facts={"pointer": "/\x1b[2J\u2028\n"}), 400, "x", "x", 0.1)
    assert r"pointer=/\x1b[2J\u2028\n" in stderr.writes[-1]


def test_data_cannot_forge_a_log_line(stderr: Stream) -> None:
    telemetry().request(Record("validate", 'x"\n{"level":"info"}\u2028'), 200, "ok", "ok", 0.1)
    assert "".join(stderr.writes).count("\n") == 1


@pytest.mark.parametrize("what", [{"drift": {"order": "5.00", "engine": "4.00"}}, {"degraded": True}])
def test_drift_and_degraded_answers_are_logged_as_warnings(stderr: Stream, what: dict[str, Any]) -> None:
    told = telemetry()
    told.request(Record("consume", "id-1", **what), 200, "ok", "redeemed", 0.1)
    told.request(Record("consume", "id-1", **what), 500, "engine_rejected", "engine_key", 0.1)
    assert [line["level"] for line in stderr.lines] == ["warning", "error"]


def test_lower_levels_are_not_logged(stderr: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("error")
    telemetry().attempt(ATTEMPT)
    telemetry().request(Record("validate", "id"), 401, "signature", "wrong", 0.1)
    assert stderr.writes == []


@pytest.mark.parametrize("fault", [BlockingIOError(), BrokenPipeError(), OSError(28, "no space")])
def test_failing_log_stream_does_not_fail_requests(stderr: Stream, fault: Exception) -> None:
    stderr.fault = fault
    telemetry().request(Record("validate", "id-1"), 200, "ok", "ok", 0.1)
    stderr.fault = None
    telemetry().request(Record("validate", "id-2"), 200, "ok", "ok", 0.1)
    assert stderr.lines[-1]["request_id"] == "id-2"


def test_unencodable_facts_do_not_fail_requests(stderr: Stream) -> None:
    told = telemetry()
    told.request(Record("validate", "\ud800", codes=("\ud800",)), 200, "ok", "ok", 0.1)
    told.request(Record("validate", "id-1", {"odd": object()}), 200, "ok", "ok", 0.1)
    told.attempt(ATTEMPT)
    assert stderr.lines[-1]["event"] == "engine call"


def test_breaker_state_is_a_gauge_per_account() -> None:
    told = telemetry()
    for state, value in (("open", "1.0"), ("probing", "0.5"), ("closed", "0.0")):
        told.breaker("EUR", cast("State", state))
        assert f'mapper_engine_breaker{{account="EUR"}} {value}' in told.metrics.render().decode()


def test_metrics_have_a_series_per_label_combination() -> None:
    told = telemetry()
    for _ in range(3):
        told.request(Record("validate", "id", currency="EUR", discount=500), 200, "ok", "ok", 0.03)
    bad = Record("validate", "id", drift={}, clamped=True, receipt="stale", rejected=(EXPIRED, EXPIRED))
    told.request(bad, 422, "promotion_codes", "expired", 9)
    told.attempt(ATTEMPT)
    told.metrics.shed("validate", "door")
    found = set(told.metrics.render().decode().splitlines())
    assert found >= {
        'mapper_requests_total{category="ok",operation="validate",reason="ok",status="200"} 3.0',
        'mapper_requests_total{category="promotion_codes",operation="validate",reason="expired",status="422"} 1.0',
        'mapper_request_seconds_bucket{le="0.05",operation="validate"} 3.0',
        'mapper_request_seconds_count{operation="validate"} 4.0',
        'mapper_engine_calls_total{engine="talon_one",operation="ask",result="200"} 1.0',
        'mapper_engine_call_seconds_count{engine="talon_one",operation="ask"} 1.0',
        'mapper_discount_minor_units_total{currency="EUR",operation="validate"} 1500.0',
        'mapper_rejected_codes_total{reason="expired"} 2.0',
        'mapper_events_total{event="clamped"} 1.0',
        'mapper_receipts_total{fate="stale"} 1.0',
        'mapper_shed_total{operation="validate",where="door"} 1.0',
    }


def test_counters_exist_before_their_first_event() -> None:
    found = telemetry().metrics.render().decode()
    for series in (
        'mapper_rejected_codes_total{reason="expired"} 0.0',
        'mapper_events_total{event="drift"} 0.0',
        'mapper_shed_total{operation="consume",where="queue"} 0.0',
        'mapper_ledger_orders{state="UNKNOWN"} 0.0',
        'mapper_build_info{engine="talon_one"',
        "process_resident_memory_bytes",
    ):
        assert series in found


def test_orders_are_counted_in_every_state() -> None:
    one = telemetry()
    one.backlog(Backlog({OrderState.UNKNOWN: 2, OrderState.DONE: 5}, 3.0, 1))
    found = re.findall(r'mapper_ledger_orders\{state="(\w+)"\} (\S+)', one.metrics.render().decode())
    assert dict(found) == {
        state.value: {"UNKNOWN": "2.0", "DONE": "5.0"}.get(state.value, "0.0") for state in OrderState
    }


def test_names_follow_prometheus_conventions() -> None:
    for row in TABLE:
        assert row.name.startswith("mapper_")
        assert row.name.endswith("_total") == (row.kind == "counter")
        assert row.kind != "histogram" or row.name.endswith("_seconds")
