"""The example in `examples/oscar`: an engine with its own baskets and prices, built on `mapper.adapter` alone.

Here in short, with its emulator and its cassettes. `make example` is the long form: all standard tests, and a real shop
in a `.venv` of its own; if that exists, the shop is tested here, too.
"""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mapper.commands import new_adapter
from tests.conformance.acme import describe
from tests.conformance.test_new_adapter import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "oscar"
QUICK = (
    "cassettes or readme or installed or accepted_codes or expected_reasons or right_lines or list_prices"
    " or unreadable_amount or unknown_effect or looked_up or other_codes or another_cart or validate_refuses"
    " or used_up or concurrent or similar_ones or unusual_orders"
)


def test_example_passes_quick_standard_tests_and_cassettes(tmp_path: Path) -> None:
    folder = tmp_path / "oscar"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".venv", "*.egg-info"))
    describe(folder)
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"({QUICK}) and not shop")
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.splitlines()[-1].split(" passed")[0])
    assert passed >= 20, done.stdout


def test_example_works_with_the_real_shop() -> None:
    python = EXAMPLE / ".venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("the example's shop is not installed, and so NOT tried here: make example")
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_shop.py", "-k", "looked_up or emulator"],
        cwd=EXAMPLE, env={"OSCAR_SHOP": "required"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_make_example_finds_an_interpreter_by_default() -> None:
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["make", "-nB", "example"], cwd=EXAMPLE.parents[1], env=path, capture_output=True, text=True, check=True
    )
    (made,) = [line for line in done.stdout.splitlines() if " venv " in line]
    assert "python3" in made


@pytest.mark.parametrize("name", ["serve.sh", "Dockerfile", "tests/test_readme.py"])
def test_example_files_equal_the_scaffold_except_settings(name: str) -> None:
    theirs = new_adapter.renamed((new_adapter.SCAFFOLD / name).read_text("utf-8"), "oscar")
    ours = (EXAMPLE / name).read_text("utf-8").splitlines()
    assert [line for line in ours if not line.startswith("export OSCAR_")] == [
        line for line in theirs.splitlines() if not line.startswith("export OSCAR_")
    ]


def test_example_imports_only_the_contract() -> None:
    for file in sorted((EXAMPLE / "promotions_oscar").glob("*.py")):
        may = {"mapper.adapter"}
        if file.stem == "sandbox":
            may = {"mapper.sandbox.emulator", "mapper.sandbox.rulebook"}
        found = {
            node.module
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
        }
        beyond = {module for module in found if module.split(".")[0] in ("mapper", "adapters")} - may
        assert not beyond, f"{file.name} imports {sorted(beyond)}"
