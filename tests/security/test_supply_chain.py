"""The supply chain: known vulnerabilities, the SBOM, the base image, no secret in a file."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security import sbom

ROOT = Path(__file__).parents[2]
PINNED = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("said", "code", "exits", "is_audited"),
    [
        ("No known vulnerabilities found", 0, 0, True),
        ("Found 1 known vulnerability in 1 package", 1, 1, True),
        ("Found 2 known vulnerabilities in 1 package\nx could not be audited: x (1)", 1, 1, True),
        ("No known vulnerabilities found\nNot found on PyPI and could not be audited: x (1)", 0, 2, False),
        ("ConnectionError: no such host", 1, 2, False),
        ("", 127, 2, False),
    ],
)
def test_audit_exits_2_if_packages_were_not_audited(
    said: str, code: int, exits: int, *, is_audited: bool, tmp_path: Path
) -> None:
    """`make audit` with a fake pip-audit."""
    script, tool = tmp_path / "scripts/audit.sh", tmp_path / ".venv/bin/pip-audit"
    for file in (script, tool):
        file.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/audit.sh", script)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {code}\n")
    tool.chmod(0o755)
    done = subprocess.run([script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "NOT AUDITED" not in done.stderr) == (exits, is_audited)
    assert said in done.stdout


@pytest.mark.parametrize(("package", "least"), [("aiohttp", (3, 14, 3)), ("h11", (0, 16, 0))])
def test_vulnerable_versions_are_not_pinned(package: str, least: tuple[int, ...]) -> None:
    assert tuple(map(int, PINNED[package].split("."))) >= least


def test_sbom_equals_the_lock(tmp_path: Path) -> None:
    tool, lock, made = Path(sys.executable).with_name("cyclonedx-py"), ROOT / "requirements.txt", tmp_path / "sbom.json"
    if not tool.exists():
        pytest.skip("SKIPPED: cyclonedx-py is not installed (make lint installs it)")
    subprocess.run(
        [tool, "requirements", lock, "--of", "JSON", "-o", made], capture_output=True, timeout=120, check=True
    )
    assert sbom.main(str(lock), str(made)) == 0
    whole = json.loads(made.read_text("utf-8"))
    for change in (whole["components"][1:], [{**whole["components"][0], "version": "0"}, *whole["components"][1:]]):
        made.write_text(json.dumps({**whole, "components": change}))
        assert sbom.main(str(lock), str(made)) == 1


def test_image_has_one_base_that_can_be_pinned_by_digest() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    (argument,) = re.findall(r"^ARG (\w+)=\S+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {f"${{{argument}}}"}
    assert not re.search(r"^ADD |https?://(?!127\.)|curl|wget|apt-get", text, re.MULTILINE), "nothing else is fetched"
    for install in re.findall(r"pip install (.*?)(?:&&|$)", text, re.MULTILINE):
        assert "--require-hashes --only-binary :all:" in install or "--no-deps --no-build-isolation" in install
    assert not (ROOT / ".github").exists(), "a workflow has rights of its own: look at them, and test them here"


SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[0-9A-Za-z]{36}\b|\bsk_live_[0-9A-Za-z]{16,}"
    rb"|\bxox[abprs]-[0-9A-Za-z-]{10,}|ApiKey-v1 [0-9a-f]{40,}|\bey[0-9A-Za-z_-]{20,}\.ey[0-9A-Za-z_-]{20,}\."
)


def test_no_file_holds_a_key_of_known_form() -> None:
    """`make secrets` looks for more forms. Cassettes are recorded from real accounts."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    if not files:
        pytest.skip("SKIPPED: no git checkout")
    assert len(files) > 300
    assert [str(file) for file in files if file.is_file() and SECRETS.search(file.read_bytes())] == []
    assert SECRETS.search(b"-----BEGIN RSA " + b"PRIVATE KEY-----"), "the pattern finds one"
