"""The sandbox's host: its log, clock, controls and front page."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from mapper.commands import sandbox as command
from mapper.sandbox import host as sandbox
from mapper.sandbox.emulator import ENCODER
from mapper.sandbox.faults import FAULTS
from tests.sandbox.emulated import NOW, book
from tests.sandbox.live import CLOSE, SESSION, ask, control
from tests.sandbox.talon_one_shop import call, cart, of


def test_request_log_has_every_request_and_no_secret(live: tuple[str, sandbox.Sandbox]) -> None:
    ask(live[0], authorization="ApiKey-v1 canary", x_sandbox_fault="status_after=500", idempotency_key="k1")
    ask(live[0], "GET", f"{SESSION}%2Fb?x=1")
    log = control(live[0], "requests")
    assert log["counts"] == {"talon_one close": 1, "talon_one read": 1}
    first, second = log["requests"]
    assert (first["operation"], first["status"], first["faults"]) == ("close", 500, ["status_after"])
    assert (first["body"], first["headers"]["idempotency-key"]) == (CLOSE.decode(), "k1")
    assert (second["path"], second["query"], second["status"]) == (f"{SESSION}%2Fb", "x=1", 404)
    assert "canary" not in json.dumps(log)


@pytest.mark.parametrize("page", ["books", "requests"])
def test_control_pages_are_encoded_in_one_thread(
    live: tuple[str, sandbox.Sandbox], monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """In the thread that answers requests one by one: a page is a consistent snapshot."""
    threads: set[int] = set()

    class Noting:
        def encode(self, value: object) -> bytes:
            threads.add(threading.get_ident())
            return ENCODER.encode(value)

    monkeypatch.setattr(sandbox, "ENCODER", Noting())
    ask(live[0])
    for _ in range(3):
        control(live[0], page)
        control(live[0], "faults")
    assert len(threads) == 1


def test_clock_can_be_set_and_unset(live: tuple[str, sandbox.Sandbox]) -> None:
    def reason() -> list[str]:
        body = json.dumps({"customerSession": cart("EXPIRED-10", "SOON-10")}).encode()
        return sorted(p["value"] for p in of(json.loads(ask(live[0], body=body)[2]), "acceptCoupon"))

    assert reason() == []
    for moment, accepted in (("2021-12-31T12:00:00+01:00", ["EXPIRED-10"]), ("2100-01-01T00:00:00Z", ["SOON-10"])):
        control(live[0], "clock", {"now": moment})
        assert reason() == accepted
    control(live[0], "clock", {"now": None})
    assert reason() == []
    assert ask(live[0], "POST", "/_sandbox/clock", b"{}")[0] == 400


def test_reset_restores_books_requests_faults_and_clock(live: tuple[str, sandbox.Sandbox]) -> None:
    before = {page: control(live[0], page) for page in ("books", "requests", "faults")}
    control(live[0], "clock", {"now": "2021-01-01T00:00:00Z"})
    ask(live[0])
    control(live[0], "faults", [{"name": "reset"}])
    assert [page for page, content in before.items() if control(live[0], page) == content] == []
    control(live[0], "reset", {})
    assert {page: control(live[0], page) for page in before} == before
    assert live[1].clock().year > 2021


def test_front_page_lists_codes_and_faults(live: tuple[str, sandbox.Sandbox]) -> None:
    status, headers, body = ask(live[0], "GET", "/")
    page = body.decode()
    assert (status, headers["x-sandbox"]) == (200, "promotions-mapper")
    assert "Nothing here is real" in page
    assert [code for code, _ in book().codes_to_try() if code not in page] == []
    assert [fault for fault in FAULTS if fault not in page] == []
    assert ask(live[0], "GET", "/nowhere")[1]["x-sandbox"] == "promotions-mapper"


def test_run_prints_each_rule_book_mistake_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "book.toml"
    path.write_text("[engines.talon_one]\nflaten = true\napplication_id = 'x'\n")
    assert command.run("127.0.0.1", 0, path) == 2
    printed = capsys.readouterr().err
    assert "engines.talon_one.flaten: is not known" in printed
    assert "engines.talon_one.application_id: Expected `int`" in printed


def test_reset_fault_raises_without_access_to_the_connection() -> None:
    app = sandbox.create(now=lambda: NOW)
    with pytest.raises(ConnectionResetError):
        asyncio.run(call(app, SESSION, x_sandbox_fault="reset"))
