"""The commands, as a person types them: what is printed, and the exit code."""

import asyncio
import io
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mapper.commands import cli
from mapper.domain.signature import sign
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import Again, Clock, Key, LookUp, New, State

BODY = b'{"order_items": [{"sku": "S", "quantity": 1, "price": "1.00"}]}'
KEY = Key("", "talon_one", "order-1")


@pytest.fixture(autouse=True)
def ledger_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("MAPPER_LEDGER_URL", url)
    return url


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def prepare(url: str, *acts: Callable[[Ledger], Awaitable[object]], wait_s: float = 0.0) -> None:
    """Opens the ledger at `url` and lets each of these act on it, `wait_s` later each."""
    at = 1000.0

    async def act() -> None:
        nonlocal at
        real = Clock(lambda: at, time.time, "boot")
        ledger = await open_ledger(url, clock=real, quarantine_s=1)
        for one in acts:
            await one(ledger)
            at += wait_s
        await ledger.close()

    asyncio.run(act())


async def claim(ledger: Ledger, key: Key = KEY) -> object:
    return await ledger.claim(key, b"f" * 32, BODY, "session-1")


async def give_up(ledger: Ledger) -> None:
    """An order nobody could tell anything about, for a day."""
    decision = await claim(ledger)
    if isinstance(decision, New | Again):
        await ledger.mark_sent(decision.row)
    elif isinstance(decision, LookUp):
        await ledger.look_later(decision.row, "timeout")


def test_no_command_prints_the_help() -> None:
    assert run() == 2


@pytest.mark.parametrize("arguments", [["serve", "--port", "x"], ["serve", "--workers", "0"], ["nonsense"], ["ledger"]])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_wrong_settings_exit_with_2_and_are_all_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MAPPER_ENGINE", "NACELLE_SIGNING_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAPPER_ON_DRIFT", "whatever")
    assert run("serve") == 2
    told = capsys.readouterr().err
    for name in ("MAPPER_ENGINE", "NACELLE_SIGNING_SECRETS", "MAPPER_ON_DRIFT"):
        assert name in told


@pytest.mark.parametrize("from_file", [True, False])
def test_sign_prints_the_header_of_a_body(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "the first secret of two,the second")
    (tmp_path / "body").write_bytes(BODY)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BODY)))
    assert run("sign", *([str(tmp_path / "body")] if from_file else [])) == 0
    assert capsys.readouterr().out == f"x-nacelle-signature-sha256: {sign(BODY, b'the first secret of two')}\n"


def test_sign_names_a_file_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a signing secret that is long enough")
    assert run("sign", "no-such-file") == 2
    assert "no-such-file" in capsys.readouterr().err


# -- ledger --------------------------------------------------------------------------------------------------------


def test_an_empty_ledger_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ledger", "list") == 0
    assert capsys.readouterr().out == "Every order is finished.\n"


def test_open_orders_are_listed_and_shown(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim)
    assert run("ledger", "list") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["ORDER", "STATE", "CHANGED", "TRIES", "REASON"]
    assert line.startswith("order-1  in progress")
    assert run("ledger", "show", "order-1") == 0
    told = capsys.readouterr().out
    assert "session-1" in told
    assert "by itself" in told


def test_an_order_that_needs_a_person_is_settled_by_hand(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, give_up, give_up, give_up, wait_s=90_000)
    assert run("ledger", "list") == 0
    assert "NEEDS YOU" in capsys.readouterr().out
    assert run("ledger", "settle", "order-1", "redeemed") == 0
    assert run("ledger", "show", "order-1") == 0
    assert "redeemed (DONE)" in capsys.readouterr().out
    assert run("ledger", "settle", "order-1", "refused") == 1
    assert "redeemed" in capsys.readouterr().err


def test_an_order_is_settled_in_the_currency_it_was_read_in(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_dinars(ledger: Ledger) -> object:
        body = BODY.replace(b"1.00", b"1.005")
        return await ledger.claim(KEY, b"f" * 32, body, "session-1")

    prepare(ledger_url, in_dinars, give_up, give_up, give_up, wait_s=90_000)
    monkeypatch.setenv("MAPPER_DEFAULT_CURRENCY", "kwd")
    assert run("ledger", "settle", "order-1", "redeemed") == 0


def test_or_looked_up_once_more(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, give_up, give_up, give_up, wait_s=90_000)
    assert run("ledger", "retry", "order-1") == 0
    assert run("ledger", "list", "--state", State.UNKNOWN.value) == 0
    assert "asking the engine" in capsys.readouterr().out
    assert run("ledger", "retry", "order-1") == 1


def test_two_spaces_with_one_order_id_must_be_told_apart(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim, lambda ledger: claim(ledger, Key("two", "talon_one", "order-1")))
    assert run("ledger", "show", "order-1") == 1
    assert "--space" in capsys.readouterr().err
    assert run("ledger", "show", "order-1", "--space", "two") == 0


def test_an_unknown_order_is_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ledger", "show", "nobody") == 1
    assert "no order with this id" in capsys.readouterr().err


def test_prune_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ledger", "prune") == 0
    assert capsys.readouterr().out == "0 orders trimmed or forgotten.\n"


def test_a_ledger_that_cannot_be_opened_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPPER_LEDGER_URL", "sqlite:////no/such/folder/ledger.db")
    assert run("ledger", "list") == 1
    assert "MAPPER_LEDGER_URL" in capsys.readouterr().err
