import asyncio

from tests.fuzz import fuzz


def test_no_body_brings_the_service_out_of_its_contract() -> None:
    report = asyncio.run(fuzz(3000, seed=20_261_121))
    assert report.faults == []
    # A sample that only ever fails, or only ever succeeds, would prove nothing.
    for expected in ("validate 200", "validate 400 invalid_request", "consume 200", "consume 400 invalid_request"):
        assert report.statuses[expected] > 20
    for expected in ("validate 401 signature", "validate 403 forbidden", "validate 413"):
        assert report.statuses[expected] > 0
