"""`new-adapter` from an empty folder: the tests of the new package pass, and the service runs with it."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mapper.commands import cli, new_adapter
from tests.conformance.acme import describe, installed
from tests.test_docs import free_ports

MOST_S = 240
"""Time limit of one run: a first run and a first change take less than five minutes."""


def new_package(folder: Path, name: str) -> Path:
    with pytest.raises(SystemExit) as done:
        cli.main(["new-adapter", name, "--into", str(folder)])
    assert done.value.code == 0
    return folder / f"promotions-{name.replace('_', '-')}"


def run(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True, timeout=MOST_S, check=False
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = new_package(tmp_path, "loyal_fox")
    describe(folder)
    return folder


def test_new_package_earns_gold_and_detects_a_wrong_reason(
    package: Path,
) -> None:
    done = run(package, "-m", "pytest", "-q", "--scorecard", "card.json", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert '"level": "gold"' in (package / "card.json").read_text("utf-8"), done.stdout
    assert "loyal_fox: gold" in done.stdout

    reasons = package / "promotions_loyal_fox" / "reasons.py"
    reasons.write_text(reasons.read_text("utf-8").replace("Reason.EXPIRED", "Reason.NOT_STARTED"), "utf-8")
    changed = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "expected_reasons or cassettes")
    assert "OLD-5: should be refused as expired" in changed.stdout


@pytest.mark.parametrize("name", ["Fox", "mapper_fox", "a-b", "7up"])
def test_new_adapter_refuses_invalid_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["new-adapter", name, "--into", str(tmp_path)])
    assert (done.value.code, list(tmp_path.iterdir())) == (2, [])
    assert "a name is" in capsys.readouterr().err


def test_new_package_has_valid_names_for_any_engine(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["new-adapter", "account_", "--into", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    assert folder.name == "promotions-account", "pip refuses a name that ends in a dash"
    assert 'name = "promotions-account"' in (folder / "pyproject.toml").read_text("utf-8")
    code = (folder / "promotions_account_" / "__init__.py").read_text("utf-8")
    assert "class AccountEngine(Adapter)" in code, "it imports another Account"


def test_new_adapter_refuses_an_installed_name(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("talon_one", "loyal_fox"):
        with installed(package), pytest.raises(SystemExit) as done:
            cli.main(["new-adapter", name, "--into", str(tmp_path / "again")])
        assert done.value.code == 2
        assert f"{name}: an adapter of this name is installed; choose another" in capsys.readouterr().err


def test_new_adapter_does_not_overwrite_a_folder(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["new-adapter", "loyal_fox", "--into", str(package.parent)])
    assert done.value.code == 2
    assert "exists" in capsys.readouterr().err


def test_new_package_contains_no_scaffold_name(package: Path) -> None:
    files = [path for path in package.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [path.name for path in files if re.search("acme", path.name + path.read_text("utf-8"), re.IGNORECASE)] == []


def test_guide_shows_code_of_the_scaffold() -> None:
    guide = (Path(__file__).parents[2] / "adapters" / "README.md").read_text("utf-8")
    written = "\n".join(file.read_text("utf-8") for file in sorted(new_adapter.SCAFFOLD.rglob("*.py")))
    shown = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(shown) == 2
    # The guide shows methods without the indentation of their class.
    assert [block for block in shown if _stripped(block) not in _stripped(written)] == []


def _stripped(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def test_service_runs_with_the_package_and_its_sample_calls(package: Path) -> None:
    sandbox, port = free_ports(2)
    late = package / "late"  # the sandbox starts after the service: calls are printed once both listen
    late.write_text(f'#!/bin/sh\ncase "$*" in *" sandbox "*) sleep 3 ;; esac\nexec {sys.executable} "$@"\n', "utf-8")
    late.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHON": str(late),
        "SANDBOX_PORT": str(sandbox), "PORT": str(port),
    }  # fmt: skip
    printed = package / "printed"
    with (
        printed.open("w") as output,
        subprocess.Popen(
            ["sh", "serve.sh"],
            cwd=package,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as serving,
    ):
        try:
            calls = wait_for_calls(printed)
            (checkout, order) = [answer(call) for call in calls]
        finally:
            os.killpg(serving.pid, signal.SIGTERM)
            serving.wait(30)
    (item,) = checkout["checkout"]["items"]
    assert (item["price"], checkout["checkout"]["total_discount"]) == ("11.25", "2.50")
    assert order["order"]["order_items"][0]["price"] == "11.25"
    assert checkout["checkout"]["promotions"]["meta"]["mapper"]["engine"] == "loyal_fox"


Call = tuple[str, str, str, str]


def wait_for_calls(printed: Path) -> list[Call]:
    """Wait for the sample calls to be printed: URL, two headers, file."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = re.findall(r'(http\S+) -H "(.+?)" \\\n  -H "(.+?)" --data-binary @(\S+)', printed.read_text("utf-8"))
        if len(found) == 2:
            return found
        time.sleep(0.1)
    raise AssertionError(printed.read_text("utf-8"))


def answer(call: Call) -> Any:
    url, *headers, file = call
    given = dict(header.split(": ", 1) for header in headers)
    request = urllib.request.Request(url, Path(file).read_bytes(), given, method="POST")
    with urllib.request.urlopen(request, timeout=20) as came:
        return msgspec.json.decode(came.read())
