"""The list of checks and the tests that it names."""

import re
from pathlib import Path

import pytest

from tests.security.checks import CHECKS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_names_existing_tests_or_has_a_note(name: str) -> None:
    check = CHECKS[name]
    assert check.tests or check.note
    for entry in check.tests:
        file, *names = entry.split()
        text = (ROOT / file).read_text("utf-8")
        assert not {one for one in names if not re.search(rf"^(async )?def {one}\b", text, re.MULTILINE)}


def test_list_of_checks_is_complete() -> None:
    numbers = {"S": 16, "H": 18, "J": 12, "O": 11, "L": 4, "A": 2, "P": 7}
    assert list(CHECKS) == [f"{letter}{number}" for letter, most in numbers.items() for number in range(1, most + 1)]


def test_notes_of_checks_are_on_the_security_page() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    assert not [
        name for name, check in CHECKS.items() if check.note and f"| {name} | {check.says} | {check.note} |" not in page
    ]
