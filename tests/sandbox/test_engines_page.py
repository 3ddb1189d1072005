"""docs/engines.md names a test and a setting for each assumption; both exist."""

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
def test_each_assumption_names_an_existing_test_and_setting(row: list[str]) -> None:
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


def test_page_says_nothing_was_verified_against_a_live_account() -> None:
    assert "verified against a live account" in PAGE.read_text("utf-8")
    assert len(ROWS) > 30
