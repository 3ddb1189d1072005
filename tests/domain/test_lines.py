"""Both readers of lines agree: the quick one, which knows the usual JSON types, and the one that knows them all."""

from tests.fuzz import compare_readers


def test_both_readers_say_the_same() -> None:
    report = compare_readers(4000, seed=20_261_127)
    assert report.faults == []
    # A sample that only one of them can read would prove nothing.
    assert min(report.statuses[each] for each in ("typed", "one by one", "refused")) > 100
