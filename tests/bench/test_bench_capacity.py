"""The arithmetic of docs/capacity.md, and its page."""

import math
import random
from dataclasses import replace
from statistics import fmean

import pytest

from bench import capacity, plan, results, simulate
from bench.plan import Assumed, Measured, Wire

MEASURED = Measured(validate_us=1000.0, refuse_us=50.0, consume_ratio=0.5, commits=600.0, order_kb=1.0, memory_mb=80.0)
ASSUMED = Assumed(engine_ms=(100.0, 100.001))
WIRE = Wire(request=9_000, answer=15_000, question=1_000, reply=16_000)


def test_the_arithmetic_is_what_one_does_by_hand() -> None:
    needed = plan.needed(MEASURED, ASSUMED, WIRE, 100.0)
    assert needed.validates == 300
    assert needed.processors == pytest.approx(300 * 0.001 + 100 * 0.002)
    assert needed.engine_calls == 300 + 200
    assert needed.engine_in_flight == pytest.approx(50, rel=0.001)
    assert (needed.by_processor, needed.by_slots) == (1, math.ceil(300 * 0.1 / (plan.SLOTS - 3 * plan.SLOTS**0.5)))
    assert needed.workers == 3 * needed.per_zone >= max(needed.by_processor, needed.by_slots)
    assert needed.with_zone_lost == pytest.approx(0.5 / (needed.workers - needed.per_zone))
    assert needed.commits == 300
    assert needed.databases == pytest.approx(0.5)
    assert needed.rows_a_day == 100 / 4 * 86_400
    assert needed.gb_a_day == pytest.approx(needed.rows_a_day * (1.0 + 2 * plan.ORDER_KB) / 1e6)
    assert needed.mbit_in == pytest.approx(300 * 25_000 * 8 / 1e6)
    assert needed.mbit_out == pytest.approx(300 * 16_000 * 8 / 1e6)


@pytest.mark.parametrize("rate", [1.0, 50.0, 1_000.0, 20_000.0])
@pytest.mark.parametrize("busy", [0.3, 0.5])
def test_no_worker_is_busier_than_it_may_be_and_a_lost_zone_is_carried(rate: float, busy: float) -> None:
    needed = plan.needed(MEASURED, replace(ASSUMED, busy=busy), WIRE, rate)
    assert needed.processors / needed.workers <= busy
    assert needed.with_zone_lost <= busy * 1.5 + 1e-9


def test_the_mean_of_what_the_engine_takes_is_that_of_what_is_simulated() -> None:
    source, draw = random.Random(1), simulate.lognormal(0.150, 0.600)
    assert plan.mean_s((150.0, 600.0)) == pytest.approx(fmean(draw(source) for _ in range(50_000)), rel=0.01)


def test_the_bytes_on_the_wire_are_the_service_s_own() -> None:
    wire = plan.wire()
    assert wire.answer > wire.request > 20 * 300
    assert wire.reply > wire.question > 20 * 30


def test_the_page_is_written_from_figures_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "SECONDS", 0.5)
    monkeypatch.setattr(results, "read", {}.get)
    given = {"validate-us": 1000, "refuse-us": 50, "consume-ratio": 0.5, "commits": 600, "order-kb": 1, "memory-mb": 80}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    assert capacity.main([*options, "--rates", "100", "--engine-ms", "80", "250"]) == 0
    page = capsys.readouterr().out
    assert "| validates a second | 300 |" in page
    assert "1. Validates: 100 x 3 = 300 a second." in page
    assert "Voucherify, 100 calls a minute | 1.67 / 5 = 0.33 |" in page
    assert "{" not in page


def test_what_is_not_measured_is_named_with_how_to_measure_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "read", {}.get)
    assert capacity.main(["--validate-us", "1000"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "refuse_us is not measured: make overload, or --refuse-us"
    assert len(told) == 5


def test_figures_come_from_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"lines": 20, "wait_ms": 0, "in_flight": 32, "contenders": {"service": {"cpu_us": [900.0, 1000.0, 1300.0]}}}
    turns = {"validate, PostgreSQL": [[400.0, 1, 1]], "consume, PostgreSQL": [[100.0, 1, 1]]}
    files = {
        "full": {"cases": [case]},
        "overload": {"refusal_us": 44.0},
        "consume": {"turns": turns, "stored": {"PostgreSQL": {"orders": 10, "bytes": 30_000, "content_bytes": 10_000}}},
        "memory": {"samples": [(0, 50.0), (61, 70.0), (62, 71.0)], "warm_s": 60},
    }
    monkeypatch.setattr(results, "read", files.get)
    assert Measured(**plan.from_files()) == Measured(1000.0, 44.0, 0.25, 300.0, 2.0, 71.0)
