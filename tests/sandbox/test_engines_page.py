"""docs/engines.md names a test and a setting for what we assume: each is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.sandbox.emulated import DEFAULT

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "engines.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").partition("## What no sandbox shows")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| we assume")
]


def settings() -> set[str]:
    book = tomllib.loads(DEFAULT)
    return {name for table in (book["settings"], *book["engines"].values()) for name in table}


@pytest.mark.parametrize("row", ROWS, ids=[row[-1].split("::")[-1].strip("`") for row in ROWS])
def test_an_assumption_has_what_would_settle_it_and_a_test_that_holds_it(row: list[str]) -> None:
    assumed, settled, setting, held = row
    assert assumed
    assert settled
    found = re.fullmatch(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`", held)
    assert found is not None, held
    (file,) = TESTS.rglob(found[1])
    names = {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert found[2] is None or found[2] in names
    if "fault" not in setting:
        assert set(re.findall(r"`(\w+)`", setting)) <= settings()


def test_the_page_says_that_no_account_was_asked() -> None:
    assert "verified against a live account" in PAGE.read_text("utf-8")
    assert len(ROWS) > 30
