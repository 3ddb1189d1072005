"""What pytest loads: keeps the standard tests whole, and prints the scorecard.

A class that adopts `Conformance` has all its tests. One that is removed or overridden fails; one that an adapter cannot
pass is named in `exempt` with the reason, is expected to fail, and fails where it passes.
"""

import inspect
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from mapper.conformance.scorecard import Level, Result, Scorecard

_CARDS = pytest.StashKey[dict[type, Scorecard]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "promotions-mapper: conformance of adapters")
    group.addoption("--scorecard", metavar="FILE", help="write the scorecards there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CARDS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, object, object]:
    """Beside the class, a failing test for each standard test that it has changed."""
    made = yield
    if made is None or not inspect.isclass(obj) or not is_adopter(obj):
        return made
    collector.config.stash[_CARDS][obj] = Scorecard(
        adapter=getattr(obj, "entry_point", obj.__name__), levels=levels(obj), exempt=exempt(obj)
    )
    found = [_Changed.from_parent(collector, name=f"{name}::{what}", sentence=what) for what in changes(obj)]
    return [*(made if isinstance(made, list) else [made]), *found]


class _Changed(pytest.Item):
    """A standard test that is not what it should be."""

    def __init__(self, *, sentence: str, **given: Any) -> None:
        super().__init__(**given)
        self._sentence = sentence

    def runtest(self) -> None:
        pytest.fail(self._sentence, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


def is_adopter(found: type) -> bool:
    return any(getattr(base, "is_the_standard", False) is True for base in found.__mro__[1:]) and not _is_standard(
        found
    )


def _is_standard(found: type) -> bool:
    return vars(found).get("is_the_standard", False) is True


def _standard(adopter: type) -> type:
    return next(base for base in adopter.__mro__ if _is_standard(base))


def levels(adopter: type) -> dict[str, Level]:
    """The standard tests, with their levels."""
    standard = _standard(adopter)
    return {name: cast("Level", found.level) for name, found in vars(standard).items() if name.startswith("test_")}


def exempt(adopter: type) -> dict[str, str]:
    """The tests that it cannot pass, with its reasons."""
    found: Mapping[str, str] = getattr(adopter, "exempt", {})
    return dict(found)


def changes(adopter: type) -> list[str]:
    """What an adopter has changed that is not its to change: sentences."""
    standard, reasons = _standard(adopter), exempt(adopter)
    kept = [name for name in vars(standard) if name.startswith(("test_", "_")) and not name.startswith("__")]
    kept += ["lab", "labs", "laboratories", "order"]
    found = [
        f"{name} is removed or overridden: what cannot pass is exempt, with a reason"
        for name in kept
        if inspect.getattr_static(adopter, name, None) is not vars(standard)[name]
    ]
    tests = levels(adopter)
    found += [f"exempt names {name}, which is no standard test" for name in reasons if name not in tests]
    found += [f"{name} is exempt without a reason" for name, reason in reasons.items() if len(reason.split()) < 3]
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (card := _card(item)) is not None and (reason := card.exempt.get(_test(item))) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (card := _card(item)) is not None and (report.when == "call" or report.failed):
        card.results[_test(item)] = _result(report, exempt=_test(item) in card.exempt)
    return report


def _result(report: pytest.TestReport, *, exempt: bool) -> Result:
    if report.passed:
        return "passed"
    if report.skipped:
        return "exempt" if exempt else "skipped"
    return "failed"


def _card(item: pytest.Item) -> Scorecard | None:
    cards = item.config.stash[_CARDS]
    return cards.get(item.cls) if isinstance(item, pytest.Function) and item.cls is not None else None


def _test(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cards = config.stash[_CARDS].values()
    if cards:
        terminalreporter.section("conformance")
        for card in cards:
            for line in card.text():
                terminalreporter.line(line)
    if file := config.getoption("--scorecard"):
        Path(file).write_bytes(msgspec.json.format(msgspec.json.encode([card.as_json() for card in cards])))
