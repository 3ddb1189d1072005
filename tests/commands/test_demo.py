"""The demo: one screen at any width, the JSON of each step, and commands that work as they are printed."""

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
def test_the_demo_finds_everything_as_it_should_be_and_leaves_nothing_behind(
    width: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    assert demo.run() == 0
    told = capsys.readouterr().out
    for row in (
        r"each +140\.00 +105\.00 +105\.00",
        r"Standard +15\.00 +0\.00 +0\.00",
        r"pay +295\.00 +210\.00 +210\.00",
    ):
        assert re.search(row, told), "before, and after with each engine"
    assert told.count("redeemed once") == 4, "two orders with each engine"
    assert told.endswith("All as it should be.\n")
    assert max(len(line) for line in told.splitlines()) <= width
    assert len(told.splitlines()) <= 30, "one screen"
    assert "\033" not in told, "no colour but on a terminal"
    assert list(tmp_path.iterdir()) == []


def test_the_json_of_each_step_is_written_on_request(
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


def test_the_demo_exits_with_1_where_prices_are_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dearer = {**journey.CHECKOUT, "items": [{**journey.CHECKOUT["items"][0], "price": "150.00"}]}
    monkeypatch.setattr(journey, "CHECKOUT", dearer)
    assert demo.run() == 1
    assert "not as it should be: the prices are" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ENGINES", {"talon_one": journey.ENGINES["talon_one"]})
    file = tmp_path / "file"
    file.write_text("")
    assert demo.run(folder=file) == 1
    assert capsys.readouterr().err == f"{file}: File exists\n"


def documents(text: str) -> Iterator[Any]:
    """The JSON documents that stand in a text one after the other."""
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        yield document
        text = text[end:]


def listen_to_ctrl_c() -> None:
    """A shell's background jobs, and so all that the tests start there, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed commands need curl")
def test_the_commands_that_keep_prints_work_as_printed(tmp_path: Path) -> None:
    output = tmp_path / "screen"
    with output.open("wb") as screen:
        kept = subprocess.Popen(
            [sys.executable, "-m", "mapper", "demo", "--keep"],
            cwd=tmp_path,
            stdout=screen,
            preexec_fn=listen_to_ctrl_c,  # noqa: PLW1509 - no thread of the tests' runs here
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
