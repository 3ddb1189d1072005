"""The level that an adapter has earned by the tests it passes: bronze, silver or gold.

| level | says |
|---|---|
| bronze | it prices a cart: options, money, refusals, odd carts, mutated replies |
| silver | it redeems an order exactly once |
| gold | it survives what engines and networks do, and undoes a redemption |

A level is earned if all its tests, and all tests of the levels below, have passed or are exempt with a reason.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Level = Literal["bronze", "silver", "gold"]
Result = Literal["passed", "exempt", "failed", "skipped", "not run"]
LEVELS: tuple[Level, ...] = ("bronze", "silver", "gold")


class Scorecard(msgspec.Struct, kw_only=True):
    """The scorecard of one adapter. `results` are by the name of the test."""

    adapter: str
    levels: dict[str, Level]
    """The level that each standard test belongs to."""
    exempt: dict[str, str]
    """Reasons, by the name of the test."""
    results: dict[str, Result] = {}

    @property
    def level(self) -> Level | None:
        """The highest level that is earned; None: not even bronze."""
        earned: Level | None = None
        for level in LEVELS:
            if self.left(level):
                break
            earned = level
        return earned

    def left(self, level: Level) -> list[str]:
        """The tests of a level that are neither passed nor exempt."""
        return [test for test in self.of(level) if self.results.get(test, "not run") not in ("passed", "exempt")]

    def of(self, level: Level) -> list[str]:
        return [test for test, belongs in self.levels.items() if belongs == level]

    def text(self) -> list[str]:
        """Lines for a terminal."""
        lines = [f"{self.adapter}: {self.level or 'no level yet'}"]
        for level in LEVELS:
            tests = self.of(level)
            good = sum(self.results.get(test) == "passed" for test in tests)
            exempt = sum(self.results.get(test) == "exempt" for test in tests)
            lines.append(f"  {level:7} {good} of {len(tests)} passed" + (f", {exempt} exempt" if exempt else ""))
            lines += [f"          {self.results.get(test, 'not run')}: {test}" for test in self.left(level)]
            if any(self.results.get(test) == "skipped" for test in self.left(level)):
                lines.append("          what was skipped counts once `exempt` says why the engine cannot")
        lines += [f"  exempt  {test}: {reason}" for test, reason in self.exempt.items()]
        return lines

    def as_json(self) -> Mapping[str, object]:
        return {
            "adapter": self.adapter,
            "level": self.level,
            "tests": [
                {"test": test, "level": level, "result": self.results.get(test, "not run")}
                for test, level in self.levels.items()
            ],
            "exempt": self.exempt,
        }
