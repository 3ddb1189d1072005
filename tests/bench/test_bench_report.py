"""docs/performance.md is written from the files of results."""

import time
from pathlib import Path
from typing import Any

import pytest

from bench import machine, publish, results
from bench.contenders import BY_KEY

ABOUT = {
    "date": "2030-01-02",
    "commit": "abc1234",
    "machine": {"processor": "2 x Something", "load": 0.1, "noise": 0.01},
    "quiet": True,
    "versions": {"python": "3.11.0"},
}


def series(rps: float) -> dict[str, list[float]]:
    return {
        "rps": [rps] * 3, "cpu_us": [1e6 / rps] * 3, "p50_ms": [9.0] * 3, "p99_ms": [11.0] * 3, "refused": [0.0] * 3,
        "noise": [0.0] * 3,
    }  # fmt: skip


def full() -> dict[str, Any]:
    contenders = {key: series(100.0 * (number + 1)) for number, key in enumerate(BY_KEY)}
    return {
        **ABOUT,
        "start": {"ready_s": [0.41, 0.49], "memory_mb": [51.0, 52.0]},
        "memory_mb": {"service": {"VmRSS": 61.0, "VmHWM": 77.0}},
        "holds_ms": [1.0, 2.0],
        "open": {"rate": 150.0, "contenders": {"service": series(150.0), "nginx": series(150.0)}},
        "cases": [
            {"lines": lines, "wait_ms": wait_ms, "in_flight": 32, "seconds": 1, "contenders": contenders}
            for lines in (10, 20, 100, 1000)
            for wait_ms in (0, 30)
        ],
    }


def phase(**others: float) -> dict[str, float]:
    return {
        "rate": 2500.0, "goodput": 490.0, "p50_ms": 50.0, "p99_ms": 66.0, "refused": 9, "refused_p99_ms": 7.5,
        "shed": 3, "shed_p99_ms": 290.0, "left_alone": 0, "others": 0, "unanswered": 0, "longest_ms": 1501.0,
        "late_p99_ms": 1.0, **others,
    }  # fmt: skip


def overload() -> dict[str, Any]:
    calm, capacity = phase(p99_ms=40.0), {"rps": 500.0, "cpu_us": 2000.0}
    one = {
        "capacity": capacity, "calm": calm, "rush": phase(), "standing": phase(p99_ms=55.0), "after": calm,
        "settled_s": 0.3, "memory_mb": [90.0, 90.5], "noise": 0.0,
    }  # fmt: skip
    hang = {"at_once": 64, "hang_s": 3.0, "calm": calm, "during": phase(), "after": calm, "settled_s": 0.1}
    rushes = [{"wait_ms": 30, "times": times, "rounds": [one]} for times in (2.0, 5.0)]
    return {**ABOUT, "overload": rushes, "refusal_us": 50.0, "hang": [hang]}


def memory() -> dict[str, Any]:
    samples = [(float(second), 60.0 + second / 600) for second in range(661)]
    return {
        **ABOUT, "rate": 250.0, "warm_s": 60.0, "seconds": 600.0, "samples": samples, "files": [9, 9], "surprises": 0,
        "answers": {"200": 9}, "skipped": 0, "closed": 0,
    }  # fmt: skip


def consume() -> dict[str, Any]:
    turns = {
        f"{what}, {store}": [[rate, 9.0, 20.0]] * 3
        for store in ("SQLite", "PostgreSQL")
        for what, rate in (("validate", 400.0), ("consume", 160.0))
    }
    stored = {store: {"orders": 10, "bytes": 30_000, "content_bytes": 10_000} for store in ("SQLite", "PostgreSQL")}
    return {**ABOUT, "in_flight": 16, "turns": turns, "stored": stored}


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, dict[str, Any]]) -> str:
    monkeypatch.setattr(results, "ROOT", folder)
    monkeypatch.setattr(results, "read", files.get)
    monkeypatch.setattr(publish, "PAGE", folder / "performance.md")
    publish.performance()
    return publish.PAGE.read_text("utf-8") if publish.PAGE.exists() else ""


def test_page_has_every_measured_section_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"full": full(), "overload": overload(), "memory": memory(), "consume": consume()}
    page = written(monkeypatch, tmp_path, files)
    for text in (
        "Ready to serve after 0.45 [0.43 to 0.47] s",
        "| this service | 61 | 77 |",
        "2x what it can answer: good answers beside that | 0.98 [0.98 to 0.98] | at least 0.85x | kept |",
        "5x what it can answer: good answers beside that | 0.98 [0.98 to 0.98] | at least 0.50x | kept |",
        "| 5; 30 | 500 | 2500 | 490 | 50, 66 | 55 | 40 | 9; 8 | 3; 290 | 0.3 |",
        "| 64; 3 s | 1501 | 9 | 3 | 0 | 0 | 0 | 0.1 |",
        "+1.00 MB from 60.1 MB",
        "SQLite 0.40 [0.40 to 0.40]",
        *("make overload", "make memory", "make consume", "make bench", "2030-01-02", "abc1234"),
    ):
        assert text in page, text
    assert "{" not in page


@pytest.mark.parametrize(
    ("loads", "anyway", "may", "looks"),
    [([0.4], False, True, 0), ([2.0, 1.5, 0.9], False, True, 2), ([2.0], False, False, 18), ([2.0], True, True, 0)],
)
def test_run_waits_until_machine_is_idle(
    monkeypatch: pytest.MonkeyPatch, loads: list[float], anyway: bool, may: bool, looks: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(machine, "load", lambda: loads[min(len(slept), len(loads) - 1)])
    monkeypatch.setattr(time, "sleep", slept.append)
    assert (results.cannot_measure(anyway=anyway) == "") is may
    assert len(slept) == looks


def test_page_omits_unmeasured_sections_and_needs_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert written(monkeypatch, tmp_path, {"overload": overload()}) == ""
    page = written(monkeypatch, tmp_path, {"full": full()})
    assert "## The aims" in page
    assert "make overload" not in page
