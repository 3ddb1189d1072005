"""The commands on the command line: their output and exit codes."""

import asyncio
import contextlib
import errno
import io
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import cancel, cli
from mapper.domain.signature import sign
from mapper.orders import ledger as ledger_module
from mapper.orders import sqlite as ledger_sqlite
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import Clock, Key, LedgerUnavailable, LookUp, New, Retry, State
from tests.orders import ledgers

BODY = b'{"order_items": [{"sku": "S", "quantity": 1, "price": "1.00"}]}'
SERVICE = {
    "NACELLE_SIGNING_SECRETS": "a signing secret that is long enough",  # pragma: allowlist secret
    "MAPPER_ENGINE": "talon_one",
    "TALON_ONE_BASE_URL": "http://127.0.0.1:1",
    "TALON_ONE_API_KEY": "key",  # pragma: allowlist secret
}
"""Valid settings; the engine's address does not answer."""
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
    """Opens the ledger at `url` and runs these on it, `wait_s` apart."""
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
    return await ledgers.claim(ledger, key, body=BODY, session="session-1")


async def leave_unknown(ledger: Ledger) -> None:
    """Claims the order, or defers its look-up: its fate stays unknown."""
    decision = await claim(ledger)
    if isinstance(decision, New | Retry):
        await ledger.mark_sent(decision.row)
    elif isinstance(decision, LookUp):
        await ledger.look_later(decision.row, "timeout")


def test_missing_command_exits_with_2() -> None:
    assert run() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "x"],
        ["serve", "--workers", "0"],
        ["serve", "--fd", "-1"],
        ["ledger", "list", "--limit", "0"],
        ["ledger", "list", "--limit", "-1"],
        ["nonsense"],
        ["ledger"],
        ["ledger", "show", "\udcff"],
        ["ledger", "show", "order-1", "--space", "\udcff"],
        ["cancel", "\udcff"],
        ["serve", "--host", "\udcff"],
        ["sandbox", "--host", "\udcff"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_wrong_settings_exit_with_2_naming_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MAPPER_ENGINE", "NACELLE_SIGNING_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAPPER_ON_DRIFT", "whatever")
    assert run("serve") == 2
    printed = capsys.readouterr().err
    for name in ("MAPPER_ENGINE", "NACELLE_SIGNING_SECRETS", "MAPPER_ON_DRIFT"):
        assert name in printed


@pytest.mark.parametrize("from_file", [True, False])
def test_sign_prints_the_signature_header(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "the first secret of two,the second")
    (tmp_path / "body").write_bytes(BODY)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BODY)))
    assert run("sign", *([str(tmp_path / "body")] if from_file else [])) == 0
    assert capsys.readouterr().out == f"x-nacelle-signature-sha256: {sign(BODY, b'the first secret of two')}\n"


def test_sign_names_a_missing_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a signing secret that is long enough")
    assert run("sign", "no-such-file") == 2
    assert "no-such-file" in capsys.readouterr().err


class Gone(io.StringIO):
    """Standard output with a broken pipe."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_broken_pipe_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a signing secret that is long enough")
    (tmp_path / "body").write_bytes(BODY)
    with (tmp_path / "out").open("w") as out:
        gone = Gone()
        gone.fileno = out.fileno  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdout", gone)
        assert run("sign", str(tmp_path / "body")) == 1


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_on_a_full_disk_is_a_sentence(argument: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mapper", argument]
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=buffered
        )
    assert (done.returncode, done.stderr) == (1, "The output cannot be written: No space left on device\n")


def test_closed_standard_streams_are_replaced_by_dev_null(tmp_path: Path) -> None:
    """Otherwise the first sockets get their numbers, and libuv aborts when it closes one."""
    (tmp_path / "run.py").write_text(
        "import os; from mapper.commands import cli\n"
        "os.closerange(0, 3)\n"
        "try: cli.main(['sign', 'no-such-file'])\n"
        "finally: open('left', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{number}') for number in range(3)))\n"
    )
    environment = {**os.environ, **SERVICE, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert (tmp_path / "left").read_text().split() == ["/dev/null"] * 3


def test_width_of_0_is_ignored(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert run("doctor") == 2
    assert "NACELLE_SIGNING_SECRETS" in capsys.readouterr().out


def test_inherited_socket_that_cannot_listen_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SERVICE.items():
        monkeypatch.setenv(name, value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        fd = os.dup(datagrams.fileno())
        assert run("serve", "--fd", str(fd)) == 1
    assert f"Cannot listen on the inherited socket {fd}: " in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapper.commands.ledger.open_ledger", interrupted)
    assert run("ledger", "list") == 130


def test_ascii_terminal_gets_question_marks_for_other_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", write_through=True))
    assert run("doctor") == 2
    assert b"? Correct the setting." in out.getvalue()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_output_does_not_change_the_exit_code(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a signing secret that is long enough")
    (tmp_path / "body").write_bytes(BODY)
    monkeypatch.setattr(sys, stream, None)
    assert (run("sign", str(tmp_path / "body")), run("sign", "no-such-file")) == (0, 2)
    getattr(sys, stream).close()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["serve", "--port", "\N{ARABIC-INDIC DIGIT EIGHT}\N{ARABIC-INDIC DIGIT ZERO}"], "a port is a number from 0"),
        (["ledger", "list", "--limit", "\N{SUPERSCRIPT TWO}"], "a limit is a number from 1"),
        (["ledger", "list", "--limit", "9" * 5000], "a limit is a number from 1"),
        (["serve", "--drain", "\N{SUPERSCRIPT TWO}"], "seconds are a number from 0"),
        (["serve", "--drain", "3600.5"], "seconds are a number from 0"),
    ],
)
def test_command_line_numbers_must_be_ascii_digits(
    command: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sign"], ["explain", "-"]])
def test_closed_standard_input_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SERVICE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", None)
    assert run(*command) == 2
    assert capsys.readouterr().err == "standard input: Bad file descriptor\n"


# -- ledger --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["mysql://host/orders", "sqlite://ledger.db", "sqlite:///:memory:", "/var/ledger.db"])
@pytest.mark.parametrize("verb", [["list"], ["backup", "copy.db"], ["prune"]])
def test_invalid_ledger_url_exits_with_2(
    url: str, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPPER_LEDGER_URL", url)
    assert run("ledger", *verb) == 2
    assert "MAPPER_LEDGER_URL: expected sqlite:///<path of a file>" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "problem"),
    [("postgresql://u:p@127.0.0.1:99999/x", "is the port right"), ("sqlite:////dev/null", "is not a file")],
)
def test_ledger_url_that_cannot_be_opened_prints_one_line(
    url: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**SERVICE, "MAPPER_LEDGER_URL": url}.items():
        monkeypatch.setenv(name, value)
    assert run("serve", "--port", "0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_missing_temporary_folder_prints_one_line(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    for name, value in {**SERVICE, "MAPPER_LEDGER_URL": ledger_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    for command in (["serve", "--port", "0", "--workers", "2"], ["demo"]):
        assert run(*command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "TMPDIR" in line


async def nothing(ledger: Ledger) -> None:
    """Leaves an empty ledger."""


def test_missing_ledger_and_empty_ledger_print_a_message(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (("list",), ("prune",), ("show", "order-1")):
        assert run("ledger", *verb) == 1
        assert re.search(r"There is no ledger (at /.*|in this database)\.", capsys.readouterr().err)
    prepare(ledger_url, nothing)
    assert run("ledger", "list") == 0
    assert capsys.readouterr().out == "Every order is finished.\n"


def test_open_order_is_listed_and_shown(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim)
    assert run("ledger", "list") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["ORDER", "STATE", "CHANGED", "TRIES", "REASON"]
    assert line.startswith("order-1  in progress")
    assert run("ledger", "show", "order-1") == 0
    printed = capsys.readouterr().out
    assert "session-1" in printed
    assert "by itself" in printed


def test_order_with_two_engines_needs_the_engine_option(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def claim_for_each(ledger: Ledger) -> None:
        for engine in ("talon_one", "voucherify"):
            await claim(ledger, Key("", engine, "order-1"))

    prepare(ledger_url, claim_for_each)
    assert run("ledger", "list") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["ORDER", "ENGINE", "STATE"]
    assert {line.split()[1] for line in lines} == {"talon_one", "voucherify"}
    assert run("ledger", "show", "order-1") == 1
    assert "--engine talon_one" in capsys.readouterr().err
    assert run("ledger", "show", "order-1", "--engine", "voucherify") == 0
    assert "voucherify" in capsys.readouterr().out


def test_order_that_needs_an_operator_is_settled_once(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, leave_unknown, leave_unknown, leave_unknown, wait_s=90_000)
    assert run("ledger", "list") == 0
    assert "NEEDS YOU" in capsys.readouterr().out
    assert run("ledger", "settle", "order-1", "redeemed") == 0
    assert run("ledger", "show", "order-1") == 0
    assert "redeemed (DONE)" in capsys.readouterr().out
    assert run("ledger", "settle", "order-1", "refused") == 1
    assert "redeemed" in capsys.readouterr().err


@pytest.mark.parametrize(("outcome", "state"), [("refused", "REJECTED"), ("cancelled", "CANCELLED")])
def test_order_is_settled_as_refused_or_cancelled(
    ledger_url: str, capsys: pytest.CaptureFixture[str], outcome: str, state: str
) -> None:
    prepare(ledger_url, leave_unknown, leave_unknown, leave_unknown, wait_s=90_000)
    assert run("ledger", "settle", "order-1", outcome) == 0
    assert run("ledger", "show", "order-1") == 0
    assert f"({state})" in capsys.readouterr().out


def test_retry_looks_up_an_order_again(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, leave_unknown, leave_unknown, leave_unknown, wait_s=90_000)
    assert run("ledger", "retry", "order-1") == 0
    assert run("ledger", "list", "--state", State.UNKNOWN.value) == 0
    assert "being looked up" in capsys.readouterr().out
    assert run("ledger", "retry", "order-1") == 0, "the order is due at once"


async def wait_for_the_caller(ledger: Ledger) -> None:
    decision = await claim(ledger)
    assert isinstance(decision, New)
    await ledger.retry_later(decision.row, None, "connect", answered=False)


async def redeem_unconfirmed(ledger: Ledger) -> None:
    decision = await ledgers.claim(ledger, Key("", "talon_one", "order-2"), body=BODY)
    assert isinstance(decision, New)
    await ledger.redeemed(decision.row, b"[]", "", "redeemed", confirmed=False)


def test_retry_explains_why_it_does_nothing(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, wait_for_the_caller, redeem_unconfirmed)
    assert run("ledger", "retry", "order-1") == 1
    assert "waiting for the caller" in capsys.readouterr().err
    assert run("ledger", "retry", "order-2") == 1
    assert "Nothing to do" in capsys.readouterr().err


def test_retry_refuses_an_order_in_progress(
    ledger_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(ledger_url, claim)
    monkeypatch.setattr(ledger_module, "system_clock", lambda: Clock(lambda: 1001.0, time.time, "boot"))
    assert run("ledger", "retry", "order-1") == 1
    assert "at this order just now" in capsys.readouterr().err


def test_waiting_and_unconfirmed_orders_are_listed(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, wait_for_the_caller, redeem_unconfirmed)
    for option, name in (("--waiting", "order-1"), ("--unconfirmed", "order-2")):
        assert run("ledger", "list", option) == 0
        (_, line) = capsys.readouterr().out.splitlines()
        assert line.startswith(name)


def test_list_over_the_limit_prints_a_note(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim, lambda ledger: claim(ledger, Key("two", "talon_one", "order-2")))
    assert run("ledger", "list", "--limit", "2") == 0
    assert capsys.readouterr().err == ""
    assert run("ledger", "list", "--limit", "1") == 0
    assert "more than these 1" in capsys.readouterr().err
    assert run("ledger", "list", "--waiting", "--unconfirmed") == 2


def test_forget_erases_a_body_unless_still_needed(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim, redeem_unconfirmed)
    assert run("ledger", "forget", "order-1") == 1
    assert "still needed" in capsys.readouterr().err
    assert run("ledger", "forget", "order-2") == 0
    assert run("ledger", "show", "order-2") == 0
    assert "erased" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepared", "again"), [(wait_for_the_caller, "tried again"), (redeem_unconfirmed, "answered the same")]
)
def test_forget_prints_what_happens_to_the_order(
    ledger_url: str, capsys: pytest.CaptureFixture[str], prepared: Any, again: str
) -> None:
    prepare(ledger_url, prepared)
    assert run("ledger", "forget", "order-1" if prepared is wait_for_the_caller else "order-2") == 0
    assert again in capsys.readouterr().out


def test_only_serve_migrates_the_schema(
    ledger_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the previous version can open a backup made before an upgrade, by either version."""

    def version(file: Path) -> int:
        with contextlib.closing(sqlite3.connect(file)) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    file = Path(ledger_url.removeprefix("sqlite:///"))
    with monkeypatch.context() as before:
        before.setattr(ledger_sqlite, "MIGRATIONS", ledger_sqlite.MIGRATIONS[:1])
        prepare(ledger_url, nothing)
    copy = tmp_path / "copy.db"
    assert run("ledger", "backup", str(copy)) == 0
    assert run("ledger", "list") == 1
    assert f"`serve` of this version brings it to {len(ledger_sqlite.MIGRATIONS)}" in capsys.readouterr().err
    assert (version(file), version(copy)) == (1, 1)
    prepare(ledger_url, nothing)
    assert run("ledger", "list") == 0
    assert version(file) == len(ledger_sqlite.MIGRATIONS)


def test_file_other_than_a_ledger_is_neither_changed_nor_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, text, copy = tmp_path / "empty.db", tmp_path / "text.db", tmp_path / "copy.db"
    empty.write_bytes(b"")
    text.write_text("no database, and longer than the head of one, which has a hundred bytes" * 3)
    monkeypatch.setenv("MAPPER_LEDGER_URL", f"sqlite:///{empty}")
    assert run("ledger", "list") == 1
    assert f"There is no ledger at {empty}." in capsys.readouterr().err
    for url in (f"sqlite:///{text}", f"sqlite:///{tmp_path}/missing.db"):
        monkeypatch.setenv("MAPPER_LEDGER_URL", url)
        assert run("ledger", "backup", str(copy)) == 1
        assert not copy.exists()


def test_backup_copies_the_ledger_and_never_overwrites(
    ledger_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(ledger_url, claim)
    copy = tmp_path / "copy.db"
    assert run("ledger", "backup", str(copy)) == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert run("ledger", "backup", str(copy)) == 1
    monkeypatch.setenv("MAPPER_LEDGER_URL", f"sqlite:///{copy}")
    capsys.readouterr()
    assert run("ledger", "list") == 0
    assert "order-1" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(sqlite3.OperationalError("disk is full"), 1), (KeyboardInterrupt(), 130)])
def test_failed_backup_leaves_no_file(
    error: BaseException,
    code: int,
    ledger_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Source(sqlite3.Connection):
        def backup(self, *arguments: Any, **options: Any) -> None:
            raise error

    prepare(ledger_url, claim)
    copy, connect = tmp_path / "copy.db", sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, factory=Source))
    assert run("ledger", "backup", str(copy)) == code
    assert not copy.exists()
    assert (f"cannot be copied to {copy}: disk is full" in capsys.readouterr().err) == (code == 1)


def test_order_id_in_two_spaces_needs_the_space_option(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, claim, lambda ledger: claim(ledger, Key("two", "talon_one", "order-1")))
    assert run("ledger", "show", "order-1") == 1
    assert "--space" in capsys.readouterr().err
    assert run("ledger", "show", "order-1", "--space", "two") == 0
    assert run("ledger", "show", " order-1\n", "--space", "") == 0
    assert run("ledger", "show", "order-1", "--space", "three") == 1
    assert "No order there has this id; name one of these: --space '' --engine" in capsys.readouterr().err


def test_cancel_in_a_space_that_is_not_served_is_refused(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**SERVICE, "NACELLE_SPACE_IDS": "one"}.items():
        monkeypatch.setenv(name, value)
    prepare(ledger_url, redeem_unconfirmed)
    assert run("cancel", "order-2", "--space", "two") == 2
    assert "--space, one of one." in capsys.readouterr().err
    assert run("cancel", "nobody", "--space", "one") == 1


def test_order_from_before_a_space_was_added_can_be_cancelled(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**SERVICE, "NACELLE_SPACE_IDS": "one,two"}.items():
        monkeypatch.setenv(name, value)
    prepare(ledger_url, lambda ledger: refuse(ledger, Key("", "talon_one", "order-1")))
    assert run("cancel", "order-1") == 2
    assert "--space, one of one, two." in capsys.readouterr().err
    assert run("cancel", "order-1", "--space", "one") == 1
    assert run("cancel", "order-1", "--space", "") == 0


async def refuse(ledger: Ledger, key: Key) -> None:
    await ledger.rejected(await ledgers.claimed(ledger, key), "expired")


def test_cancel_holds_its_order_for_as_long_as_it_may_work(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SERVICE, "MAPPER_CONSUME_DEADLINE_MS": "60000"}.items():
        monkeypatch.setenv(name, value)
    leases: list[float] = []

    async def opened(*_: object, lease_s: float, **__: object) -> Ledger:
        leases.append(lease_s)
        raise LedgerUnavailable("away")

    monkeypatch.setattr(cancel, "open_ledger", opened)
    assert run("cancel", "order-1") == 1
    assert leases[0] > 60


def test_unknown_order_exits_with_1(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, nothing)
    assert run("ledger", "show", "nobody") == 1
    assert "no order with this id" in capsys.readouterr().err


def test_prune_prints_what_it_did(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ledger_url, nothing)
    assert run("ledger", "prune") == 0
    assert capsys.readouterr().out == "0 orders trimmed or forgotten.\n"


def test_ledger_in_a_missing_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPPER_LEDGER_URL", "sqlite:////no/such/folder/ledger.db")
    assert run("ledger", "list") == 1
    assert "MAPPER_LEDGER_URL" in capsys.readouterr().err
