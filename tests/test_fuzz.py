import asyncio
from collections.abc import Callable

import pytest

from tests.fuzz import Report, compare_readers, compare_replies, compare_validations, fuzz


def test_fuzzed_bodies_get_only_contract_answers() -> None:
    report = asyncio.run(fuzz(3000, seed=20_261_121))
    assert report.faults == []
    # A sample in which every body fails, or every body succeeds, proves nothing.
    for expected in ("validate 200", "validate 400 invalid_request", "consume 200", "consume 400 invalid_request"):
        assert report.statuses[expected] > 20
    for expected in ("validate 401 signature", "validate 403 forbidden", "validate 413"):
        assert report.statuses[expected] > 0


@pytest.mark.parametrize("compare", [compare_readers, compare_replies, compare_validations])
def test_one_pass_reader_equals_the_careful_reader(compare: Callable[[int, int], Report]) -> None:
    report = compare(5000, 20_261_127)
    assert report.faults == []
    for way in ("typed", "one by one", "refused"):
        assert report.statuses[way] > 100, "each way must have been gone"
