"""The pytest plugin: it guards the standard tests, and prints the scorecard.

A class that adopts `Conformance` has all its tests. A test that is removed or overridden fails. A test that an adapter
cannot pass is named in `exempt` with the reason: it is expected to fail, and fails if it passes.
"""

import inspect
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from mapper.conformance.scorecard import LEVELS, Level, Result, Scorecard

_FIXTURES = ("lab", "new_lab", "laboratories", "order")
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
    """Adds to the class a failing test for each standard test that it has changed."""
    made = yield
    if made is None or not inspect.isclass(obj) or not is_adopter(obj):
        return made
    collector.config.stash[_CARDS][obj] = Scorecard(
        adapter=getattr(obj, "entry_point", obj.__name__), levels=levels(obj), exempt=exempt(obj)
    )
    found = [_Changed.from_parent(collector, name=f"{name}::{what}", sentence=what) for what in changes(obj)]
    return [*(made if isinstance(made, list) else [made]), *found]


class _Changed(pytest.Item):
    """Fails with what an adopter has changed."""

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


def _parts(standard: type) -> dict[str, object]:
    """The tests of the standard and what they consist of, by name; what an author declares is not among them."""
    found: dict[str, object] = {}
    for base in reversed(standard.__mro__[:-1]):
        found |= {name: part for name, part in vars(base).items() if not name.startswith("__")}
    return {name: part for name, part in found.items() if name.startswith(("test_", "_")) or name in _FIXTURES}


def levels(adopter: type) -> dict[str, Level]:
    """The standard tests, with their levels, lowest first."""
    tests = [(name, part) for name, part in _parts(_standard(adopter)).items() if name.startswith("test_")]
    found: dict[str, Level] = {name: cast("Any", part).level for name, part in tests}
    return dict(sorted(found.items(), key=lambda test: LEVELS.index(test[1])))


def exempt(adopter: type) -> dict[str, str]:
    """The tests that it cannot pass, with the reasons."""
    found: Mapping[str, str] = getattr(adopter, "exempt", {})
    return dict(found)


def changes(adopter: type) -> list[str]:
    """What an adopter has changed and must not: sentences."""
    reasons = exempt(adopter)
    found = [
        f"{name} is removed or overridden: a test that cannot pass is exempt, with a reason"
        for name, part in _parts(_standard(adopter)).items()
        if inspect.getattr_static(adopter, name, None) is not part
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
