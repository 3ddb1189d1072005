"""Both readers of lines agree: the fast one for the usual JSON types, and the one for all of them."""

from tests.fuzz import compare_readers


def test_both_readers_give_the_same_result() -> None:
    report = compare_readers(4000, seed=20_261_127)
    assert report.faults == []
    # The sample must contain enough of each kind to prove anything.
    assert min(report.statuses[each] for each in ("typed", "one by one", "refused")) > 100
