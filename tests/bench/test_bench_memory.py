"""The load of `bench.memory`, and the line fitted to its samples."""

import re
from itertools import islice

import pytest

from bench import memory


def test_fitted_line_separates_growth_from_noise() -> None:
    grows = [(float(second), 50.0 + second * 0.01) for second in range(600)]
    swings = [(float(second), 50.0 + (second % 2) * 4) for second in range(600)]
    one_late = [(float(second), 50.0 + (second > 590) * 20) for second in range(600)]
    assert memory.line(grows) == pytest.approx((50.0, 5.99))
    assert memory.line(swings)[1] == pytest.approx(0, abs=0.05)
    assert 0 < memory.line(one_late)[1] < 3
    assert memory.line([(0.0, 1.0)]) == (1.0, 0.0)


@pytest.mark.parametrize(("growth_mb", "seconds", "kept"), [(2.9, 600, True), (3.1, 600, False), (2.9, 60, None)])
def test_memory_is_judged_over_full_time_without_warm_up(growth_mb: float, seconds: int, kept: bool | None) -> None:
    warm = [(float(moment), 20.0 + moment) for moment in range(30)]
    held = [(30.0 + moment, 60.0 + growth_mb * moment / (seconds - 1)) for moment in range(seconds)]
    found = {"samples": [*warm, *held], "warm_s": 30.0, "seconds": seconds, "files": [9, 9], "surprises": 0}
    assert memory.aims(found)[0].kept is kept


def test_requests_differ_in_everything_that_might_be_cached() -> None:
    drawn = [request for request, _ in islice(memory.requests(5), 300)]
    for pattern in (
        rb'"id":"([^"]*-wait-[^"]*|other-[^"]*)"',
        rb"x-request-id: (\S+)",
        rb'"sku":"([^"]+)"',
        rb"GET (\S+)",
    ):
        found = [match for request in drawn for match in re.findall(pattern, request)]
        assert len(found) > 3
        assert len(set(found)) == len(found)


def test_load_mixes_all_expected_statuses() -> None:
    statuses = [status for _, status in islice(memory.requests(5), 1000)]
    assert {status: statuses.count(status) > 5 for status in (200, 400, 401, 404, 422)} == dict.fromkeys(
        (200, 400, 401, 404, 422), True
    )
    assert 800 < statuses.count(200) < 950
