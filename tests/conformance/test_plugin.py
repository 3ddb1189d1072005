"""A standard test that is removed, overridden or exempt without a reason fails, and the scorecard shows it."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from mapper.conformance import plugin
from mapper.conformance.scorecard import Scorecard
from mapper.conformance.suite import Conformance

NAME = "test_order_is_validated_redeemed_and_looked_up"


class Whole(Conformance):
    entry_point = "talon_one"


class Removed(Whole):
    test_order_is_validated_redeemed_and_looked_up = None  # type: ignore[assignment]


class Overridden(Whole):
    def test_order_is_validated_redeemed_and_looked_up(self) -> None:  # type: ignore[override]
        """Passes."""


class WithoutAWire(Whole):
    def _with_reply(self) -> None:
        """Not a part of the standard."""

    def _recover(self, *_: Any, **__: Any) -> None:
        """A part of it."""


class NoReason(Whole):
    exempt: ClassVar[Mapping[str, str]] = {NAME: "because"}


class NoTest(Whole):
    exempt: ClassVar[Mapping[str, str]] = {"test_of_mine": "there is no such test"}


class Exempt(Whole):
    exempt: ClassVar[Mapping[str, str]] = {NAME: "this engine has no orders"}


@pytest.mark.parametrize(
    ("adopter", "sentence"),
    [
        (Removed, f"{NAME} is removed or overridden"),
        (Overridden, f"{NAME} is removed or overridden"),
        (WithoutAWire, "_recover is removed or overridden"),
        (NoReason, f"{NAME} is exempt without a reason"),
        (NoTest, "exempt names test_of_mine"),
    ],
)
def test_changed_standard_test_is_reported(adopter: type, sentence: str) -> None:
    (found,) = plugin.changes(adopter)
    assert found.startswith(sentence)


@pytest.mark.parametrize("adopter", [Whole, Exempt])
def test_permitted_adopter_is_not_reported(adopter: type) -> None:
    assert plugin.is_adopter(adopter)
    assert not plugin.is_adopter(Conformance)
    assert plugin.changes(adopter) == []


def test_level_needs_all_tests_of_it_and_below() -> None:
    card = Scorecard(
        adapter="acme", levels={"a": "bronze", "b": "silver", "c": "gold"}, exempt={"b": "it has no such thing"}
    )
    earned = []
    for results in ({}, {"a": "passed"}, {"a": "passed", "b": "exempt"}, {"a": "failed", "b": "passed", "c": "passed"}):
        card.results = dict(results)  # type: ignore[arg-type]
        earned.append(card.level)
    assert earned == [None, "bronze", "silver", None]
    assert "          failed: a" in card.text()


SUITE = """
from tests.conformance.test_builtin import TestTalonOne as Good
class TestRemoved(Good):
    test_validate_is_repeatable_and_redeems_nothing = None
class TestStale(Good):
    exempt = {"test_validate_is_repeatable_and_redeems_nothing": "an exemption that is not needed any more"}
del Good
"""


def test_run_fails_for_removed_test_and_needless_exemption(tmp_path: Path) -> None:
    file, card = tmp_path / "test_adopted.py", tmp_path / "card.json"
    file.write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "is_repeatable", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, "--scorecard", str(card)], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert "2 failed" in done.stdout, done.stdout
    removed, stale = msgspec.json.decode(card.read_bytes())
    results = [{one["test"]: one["result"] for one in each["tests"]} for each in (removed, stale)]
    assert [each["test_validate_is_repeatable_and_redeems_nothing"] for each in results] == ["not run", "failed"]
    assert removed["level"] is stale["level"] is None
