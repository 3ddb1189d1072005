"""The demo: one screen at any width, the JSON of each step, and commands that work as printed."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import cli, demo, journey


@pytest.mark.parametrize("width", [80, 120])
def test_demo_fits_one_screen_and_leaves_no_files(
    width: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    assert demo.run() == 0
    screen = capsys.readouterr().out
    for row in (
        r"each +140\.00 +105\.00 +105\.00",
        r"Standard +15\.00 +0\.00 +0\.00",
        r"pay +295\.00 +210\.00 +210\.00",
    ):
        assert re.search(row, screen), "before, and after with each engine"
    assert screen.count("redeemed once") == 4, "two orders with each engine"
    assert screen.endswith("All as it should be.\n")
    assert max(len(line) for line in screen.splitlines()) <= width
    assert len(screen.splitlines()) <= 30, "one screen"
    assert "\033" not in screen, "colour only on a terminal"
    assert list(tmp_path.iterdir()) == []


def test_json_option_writes_the_json_of_each_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "ENGINES", {"talon_one": journey.ENGINES["talon_one"]})
    monkeypatch.setattr(demo, "ENGINES", {"talon_one": journey.ENGINES["talon_one"]})
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--json", str(tmp_path / "steps")])
    assert ended.value.code == 0, capsys.readouterr().out
    (file,) = (tmp_path / "steps").glob("talon_one-04-the-code-expired-10.json")
    (exchange,) = json.loads(file.read_text())
    assert exchange["sent"]["promotions"]["coupon_codes"] == ["XMAS-2021-25", "EXPIRED-10"]
    assert (exchange["status"], exchange["answer"]["error"]["details"]["invalid-code"]) == (422, "EXPIRED-10")


def test_wrong_prices_exit_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dearer = {**journey.CHECKOUT, "items": [{**journey.CHECKOUT["items"][0], "price": "150.00"}]}
    monkeypatch.setattr(journey, "CHECKOUT", dearer)
    assert demo.run() == 1
    assert "not as it should be: the prices are" in " ".join(capsys.readouterr().out.split())


def test_unwritable_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ENGINES", {"talon_one": journey.ENGINES["talon_one"]})
    file = tmp_path / "file"
    file.write_text("")
    assert demo.run(folder=file) == 1
    assert capsys.readouterr().err == f"{file}: File exists\n"


def documents(text: str) -> Iterator[Any]:
    """The consecutive JSON documents of a text."""
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        yield document
        text = text[end:]


def restore_ctrl_c() -> None:
    """Background jobs of a shell ignore Ctrl-C, and so would processes started by tests there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed commands need curl")
def test_commands_printed_by_keep_work(tmp_path: Path) -> None:
    output = tmp_path / "screen"
    with output.open("wb") as screen:
        kept = subprocess.Popen(
            [sys.executable, "-m", "mapper", "demo", "--keep"],
            cwd=tmp_path,
            stdout=screen,
            preexec_fn=restore_ctrl_c,  # noqa: PLW1509 - no thread of the tests' runs here
        )
    try:
        give_up = time.monotonic() + 60
        while "/_sandbox/books\n" not in output.read_text("utf-8"):
            assert kept.poll() is None, output.read_text("utf-8")
            assert time.monotonic() < give_up
            time.sleep(0.1)
        commands = output.read_text("utf-8").partition("In another shell:")[2].partition("\n# ")[2]
        done = subprocess.run(
            ["bash", "-eu", "-c", f"# {commands}"], cwd=tmp_path, capture_output=True, timeout=60, check=False
        )
    finally:
        kept.send_signal(signal.SIGINT)
        assert kept.wait(30) == 0
    through, straight, books = documents(done.stdout.decode())
    assert through["items"][0]["price"] == straight["checkout"]["items"][0]["price"] == "105.00"
    assert books["nacelle"]["deliveries"][-1]["id"] == "1003"
