"""`promotions-mapper explain` on the terminal, with the sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper.commands import cli
from mapper.sandbox import host
from tests.sandbox.live import ask

CART = {
    "id": "1001",
    "currency": "USD",
    "items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}],
    "shipping_rate": {"price": "15.00"},
    "promotions": {"coupon_codes": ["XMAS-2021-25", "NOPE"]},
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[str]:
    with host.running(host.create()) as url:
        yield url


@pytest.fixture(autouse=True)
def environment(sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("MAPPER_ENGINE", "talon_one")
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a secret that is long enough")
    monkeypatch.setenv("TALON_ONE_BASE_URL", f"{sandbox}/talon_one")
    monkeypatch.setenv("TALON_ONE_API_KEY", "key")
    monkeypatch.setenv("TALON_ONE_ADDITIONAL_COSTS", "shipping=/shipping_rate/price")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_each_effect_and_rejection_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cart.json"
    file.write_text(json.dumps(CART))
    assert run(str(file), "--exchange") == 0
    out = capsys.readouterr().out
    for text in (
        "-35.00",
        "105.00",
        "-15.00",
        "-50.00",
        "NOPE: This code does not exist.",
        "CouponNotFound",
        "PUT /v2/",
    ):
        assert text in out, text
    assert '"couponCodes"' in out
    assert "Authorization" not in out


@pytest.mark.parametrize("root", ["checkout", "order"])
def test_our_own_answer_can_be_explained(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({root: CART}))
    assert run(str(file)) == 0
    assert "-50.00" in capsys.readouterr().out


def test_cart_with_a_closed_session_is_explained_in_another_one(
    sandbox: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(sandbox, path="/talon_one/v2/customer_sessions/ended")[0] == 200
    file = tmp_path / "cart.json"
    file.write_text(json.dumps(CART | {"id": "ended"}))
    assert run(str(file)) == 0
    out = capsys.readouterr().out
    assert "session 'ended~2'" in out
    assert "-50.00" in out


def test_errors_are_printed_with_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cart.json"
    file.write_text('{"items": [{"sku": "A", "quantity": 1}]}')
    assert run(str(file)) == 1
    assert capsys.readouterr().err == "/items/0/price: A line has no price.\n"
    assert run(str(tmp_path / "missing.json")) == 2
    file.write_text(json.dumps(CART))
    monkeypatch.setenv("TALON_ONE_BASE_URL", "http://127.0.0.1:1")
    assert run(str(file)) == 1
    assert "could not be" in capsys.readouterr().out
    monkeypatch.delenv("TALON_ONE_API_KEY")
    assert run(str(file)) == 2


def test_control_characters_and_markup_of_a_body_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cart.json"
    sku = "[red]x[/]\x1b[2J\x07"
    file.write_text(json.dumps({**CART, "items": [{"sku": sku, "quantity": 1, "price": "140.00"}]}))
    assert run(str(file)) == 0
    assert r"[red]x[/]\x1b[2J\x07" in capsys.readouterr().out
    file.write_text('{"\\u001b[2J": 1, "\\u001b[2J": 2}')
    assert run(str(file)) == 1
    assert capsys.readouterr().err == "/\\x1b[2J: An object has a duplicate key.\n"
