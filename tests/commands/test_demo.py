from pathlib import Path

import pytest

from mapper.commands import demo


def test_the_demo_finds_everything_as_it_should_be_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.run(keep=False) == 0
    told = capsys.readouterr().out
    for amount in ("140.00   105.00      35.00", "15.00     0.00      15.00", "155.00   105.00      50.00"):
        assert told.count(amount) == 2, "once for each engine"
    assert told.endswith("All as it should be.\n")
    assert "\033" not in told, "no colour but on a terminal"
    assert list(tmp_path.iterdir()) == []


def test_the_demo_exits_with_1_where_prices_are_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dearer = {**demo.CHECKOUT, "items": [{**demo.CHECKOUT["items"][0], "price": "150.00"}]}
    monkeypatch.setattr(demo, "CHECKOUT", dearer)
    assert demo.run(keep=False) == 1
    assert "not as it should be: prices are" in capsys.readouterr().out
