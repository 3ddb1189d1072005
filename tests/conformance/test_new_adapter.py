"""`new-adapter` from an empty folder: its first test run is green, and the service runs with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapper.commands import cli
from tests.conformance.acme import describe

MOST_S = 240


def made(folder: Path, name: str) -> Path:
    with pytest.raises(SystemExit) as done:
        cli.main(["new-adapter", name, "--into", str(folder)])
    assert done.value.code == 0
    return folder / f"promotions-{name.replace('_', '-')}"


def run(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True, timeout=MOST_S, check=False
    )


def test_the_first_test_run_of_a_new_package_is_green_and_earns_gold(tmp_path: Path) -> None:
    package = made(tmp_path, "loyal_fox")
    describe(package)
    done = run(package, "-m", "pytest", "-q", "--scorecard", "card.json", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert '"level": "gold"' in (package / "card.json").read_text("utf-8"), done.stdout
    assert "loyal_fox: gold" in done.stdout
