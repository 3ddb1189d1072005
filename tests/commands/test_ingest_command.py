"""`promotions-mapper ingest` on the command line, with a fake Nacelle server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import cli

ORDER: dict[str, Any] = {
    "currency": "USD",
    "items": [{"sku": "A", "quantity": 1, "price": "5.00", "total_discount": "0.00", "discounts": []}],
    "payments": [{"id": 1}],
}


class Nacelle(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 201
        self.created: list[dict[str, Any]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Nacelle

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.status == 201:
            self.server.created.append(json.loads(body))
        self.send_response(self.server.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the name is the library's
        """Silence."""


@pytest.fixture
def nacelle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nacelle]:
    server = Nacelle()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NOMS_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NOMS_TOKEN", "token")
    monkeypatch.setenv("NOMS_SPACE_ID", "space")
    monkeypatch.setenv("MAPPER_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["ingest", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_folder_is_ingested_and_resumed(nacelle: Nacelle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.json").write_text(json.dumps({**ORDER, "id": f"o-{number}"}))
    (tmp_path / "2.json").write_text(json.dumps({**ORDER, "id": "o-2", "payments": []}))
    assert run(str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "0.json: order o-0 created",
        "1.json: order o-1 created",
        "2.json: not sent; 1 fault(s):",
        "  /payments: An order needs payments.",
        "2 of 3 created.",
    ]
    (tmp_path / "2.json").write_text(json.dumps({**ORDER, "id": "o-2"}))
    assert run(str(tmp_path)) == 0
    assert "0.json: order o-0 created, as before" in capsys.readouterr().out
    assert sorted(order["id"] for order in nacelle.created) == ["o-0", "o-1", "o-2"]


def test_unreadable_file_does_not_stop_the_others(
    nacelle: Nacelle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "1.json").write_text(json.dumps({**ORDER, "id": "o-1"}))
    (tmp_path / "folder.json").mkdir()
    assert run(str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "0.json: not sent; it cannot be read: No such file or directory",
        "1.json: order o-1 created",
        "1 of 2 created.",
    ]


def test_unknown_order_is_listed_and_settled(
    nacelle: Nacelle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "order.json"
    file.write_text(json.dumps({**ORDER, "id": "o-1"}))
    nacelle.status = 500
    assert run(str(file)) == 1
    assert "UNKNOWN" in capsys.readouterr().out
    assert run("--open") == 1
    assert "o-1" in capsys.readouterr().out
    assert run("--settle", "o-1=absent") == 0
    nacelle.status = 201
    assert run(str(file)) == 0
    capsys.readouterr()
    assert run("--open") == 0
    assert capsys.readouterr().out == "Every order that was ingested is created.\n"
    assert run("--settle", "o-1=absent") == 1
    assert len(nacelle.created) == 1


def test_all_wrong_settings_are_printed_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOMS_BASE_URL", "http://noms.example")
    monkeypatch.delenv("NOMS_TOKEN", raising=False)
    monkeypatch.delenv("NOMS_SPACE_ID", raising=False)
    assert run("x.json") == 2
    first, *places, last = capsys.readouterr().err.splitlines()
    assert first == "The settings are wrong in 3 place(s):"
    assert [line.split(":")[0].strip() for line in places] == ["NOMS_BASE_URL", "NOMS_TOKEN", "NOMS_SPACE_ID"]
    assert last == "docs/settings.md lists every setting."


def test_missing_file_is_named(nacelle: Nacelle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("missing.json") == 2
    assert capsys.readouterr().err == "missing.json: No such file or directory\n"
