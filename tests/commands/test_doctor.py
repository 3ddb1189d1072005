"""`promotions-mapper doctor`: each misconfiguration is named with its remedy."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mapper.commands import cli
from mapper.orders.ledger import open_ledger
from mapper.orders.rows import Key
from mapper.sandbox import host
from tests.fakes import new_ledger
from tests.orders import postgres
from tests.orders.ledgers import claimed
from tests.sandbox.live import control


@pytest.fixture(scope="module")
def sandbox() -> Iterator[str]:
    with host.running(host.create()) as url:
        yield url


@pytest.fixture(autouse=True)
def environment(sandbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A well-configured service, whatever file system the tests' folder is on."""
    monkeypatch.setattr("mapper.commands.doctor.MOUNTS", tmp_path / "no-mounts")
    for name, value in {
        "MAPPER_ENGINE": "talon_one",
        "NACELLE_SIGNING_SECRETS": "a secret that is long enough",
        "TALON_ONE_BASE_URL": f"{sandbox}/talon_one",
        "TALON_ONE_API_KEY": "key",
        "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
        "MAPPER_RECEIPT": "required",
        "MAPPER_ORDER_KEY_PATH": "/id",
        "MAPPER_LEDGER_URL": new_ledger(),
    }.items():
        monkeypatch.setenv(name, value)


@contextmanager
def answering(status: int, headers: list[tuple[str, str]]) -> Iterator[str]:
    """An engine that gives every request the same answer."""

    class Engine(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response_only(status)
            for name, value in [*headers, ("content-length", "2")]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"{}")

    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code, capsys.readouterr().out


def findings(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code, out = doctor(capsys, "--json")
    return code, json.loads(out)["findings"]


def test_well_configured_service_has_no_findings_to_mend(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(capsys)
    assert code == 0
    assert [(one["check"], one["state"], one["mend"]) for one in found] == [
        (check, "ok", "")
        for check in ("settings", "signature", "ledger", "engine", "TALON_ONE_ADDITIONAL_COSTS shipping")
    ]


@pytest.mark.parametrize(
    ("setting", "value", "code", "check", "problem"),
    [
        ("NACELLE_SIGNING_SECRETS", "", 2, "NACELLE_SIGNING_SECRETS", "at least one secret"),
        ("NACELLE_SIGNING_SECRETS", '"a secret in quotes"', 0, "settings", "quotes"),
        (
            "NACELLE_SIGNING_SECRETS",
            "\N{LEFT DOUBLE QUOTATION MARK}a secret in quotes\N{RIGHT DOUBLE QUOTATION MARK}",
            0,
            "settings",
            "quotes",
        ),
        ("MAPPER_ENGINE", "talon", 2, "MAPPER_ENGINE", "talon_one"),
        ("MAPPER_LOG_LEVL", "info", 0, "settings", "did you mean MAPPER_LOG_LEVEL"),
        ("MAPPER_RECEIPT", "optional", 0, "receipts", "MAPPER_RECEIPT=required"),
        ("MAPPER_ORDER_KEY_PATH", "", 0, "order key", "MAPPER_ORDER_KEY_PATH"),
        ("MAPPER_LEDGER_URL", "sqlite:////proc/none/x.db", 1, "ledger", "Make its folder"),
        ("MAPPER_LEDGER_URL", "sqlite:////dev", 1, "ledger", "is not a file"),
        ("MAPPER_LEDGER_URL", "postgresql://127.0.0.1:1/x", 1, "ledger", "host, port and sslmode"),
        ("TALON_ONE_BASE_URL", "http://127.0.0.1:1", 1, "engine", "TALON_ONE_BASE_URL"),
        ("TALON_ONE_BASE_URL", "http://talon.example", 2, "TALON_ONE_BASE_URL", "https"),
        ("TALON_ONE_API_KEY", "", 2, "TALON_ONE_API_KEY", "expected"),
        ("TALON_ONE_ADDITIONAL_COSTS", "porto=/porto", 1, "TALON_ONE_ADDITIONAL_COSTS porto", "console"),
        ("TALON_ONE_SESSION_ATTRIBUTES", "Nope=/x", 1, "TALON_ONE_SESSION_ATTRIBUTES Nope", "console"),
        ("TALON_ONE_ITEM_ATTRIBUTES", "Nope=/x/0/y", 1, "TALON_ONE_ITEM_ATTRIBUTES Nope", "console"),
    ],
)
def test_misconfiguration_is_named_with_its_remedy(
    setting: str,
    value: str,
    code: int,
    check: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(setting, value)
    exit_code, found = findings(capsys)
    assert exit_code == code
    (one,) = [one for one in found if one["state"] != "ok"]
    assert one["check"] == check
    assert problem in one["text"] + one["mend"]
    assert one["mend"]


def test_failed_start_also_warns_of_misspelt_and_quoted_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPPER_RECIEPT", "required")
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "'a secret in quotes'")
    monkeypatch.setenv("TALON_ONE_BASE_URL", "https://x.talon.one/v2")
    code, found = findings(capsys)
    assert code == 2
    assert [one["state"] for one in found] == ["failed", "warning", "warning"]
    texts = " ".join(one["text"] for one in found)
    for expected in ("the deployment's address alone", "did you mean MAPPER_RECEIPT", "is in quotes"):
        assert expected in texts


def test_product_data_and_order_ingestion_are_checked(
    sandbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(check: str) -> list[tuple[str, str]]:
        return [(one["state"], one["text"]) for one in findings(capsys)[1] if one["check"] == check]

    assert found("product data") == found("order ingestion") == []
    for name, value in {
        "MAPPER_PRODUCT_DATA": "nacelle",
        "NACELLE_STOREFRONT_URL": f"{sandbox}/nacelle/graphql/v1/spaces",
        "NOMS_BASE_URL": f"{sandbox}/nacelle/api/v1",
        "NOMS_TOKEN": "sandbox-token",
        "NOMS_SPACE_ID": "sandbox",
    }.items():
        monkeypatch.setenv(name, value)
    assert found("product data") == [("ok", "Nacelle's Storefront API answers")]
    ((state, text),) = found("order ingestion")
    assert (state, text[:13]) == ("ok", "NOMS answers ")
    assert control(sandbox, "books")["nacelle"]["ingested"] == [], "the check creates no order"
    monkeypatch.setenv("NOMS_SPACE_ID", "another")
    assert found("product data") == [("failed", "Nacelle's Storefront API gives none: http_404")]
    monkeypatch.setenv("NOMS_SPACE_ID", "sandbox")
    monkeypatch.setenv("NOMS_BASE_URL", "http://127.0.0.1:1")
    assert found("order ingestion") == [("failed", "NOMS cannot be reached: connect")]
    monkeypatch.setenv("NOMS_TOKEN", "two words")
    assert [state for state, _ in found("NOMS_TOKEN")] == ["failed"]
    file = tmp_path / "products.csv"
    file.write_text("sku,category\nA\n")
    monkeypatch.setenv("MAPPER_PRODUCT_DATA", str(file))
    ((state, text),) = found("product data")
    assert state == "failed"
    assert "line 2" in text
    file.write_text("sku,category\nA,shoes\n")
    assert found("product data") == [("ok", "the file can be read")]


def test_record_folder_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder, state in ((tmp_path / "records", "warning"), (tmp_path / "file", "failed")):
        monkeypatch.setenv("MAPPER_RECORD", str(folder))
        assert [one["state"] for one in findings(capsys)[1] if one["check"] == "records"] == [state]


def test_refused_api_key_is_named(sandbox: str, capsys: pytest.CaptureFixture[str]) -> None:
    control(sandbox, "faults", [{"name": "status", "value": 401, "count": 1}])
    code, found = findings(capsys)
    assert code == 1
    (one,) = [one for one in found if one["state"] != "ok"]
    assert "key" in one["text"]
    assert one["mend"]


def test_ledger_that_does_not_exist_yet_is_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (f"sqlite:///{tmp_path}/ledger.db", postgres.url("information_schema")):
        monkeypatch.setenv("MAPPER_LEDGER_URL", url)
        (one,) = [one for one in findings(capsys)[1] if one["check"] == "ledger"]
        assert (one["state"], one["mend"]) == ("ok", "")
        assert "not there yet" in one["text"]


@pytest.mark.parametrize(("engine", "named"), [("voucherify", True), ("talon_one", False)])
def test_open_orders_of_another_engine_are_named(
    engine: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def leave_open() -> None:
        ledger = await open_ledger(url)
        await claimed(ledger, Key("", engine, "order-1"))
        await ledger.close()

    asyncio.run(leave_open())
    monkeypatch.setenv("MAPPER_LEDGER_URL", url)
    found = [one for one in findings(capsys)[1] if "another MAPPER_ENGINE" in one["text"]]
    assert [("voucherify" in one["text"], "Run one with that engine" in one["mend"]) for one in found] == (
        [(True, True)] if named else []
    )


def test_output_is_readable_in_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TALON_ONE_SESSION_ATTRIBUTES", "Nope=/x")
    code, out = doctor(capsys)
    assert code == 1
    assert "FAILED" in out
    assert "→ Make it in the engine's console" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_voucherify_is_checked_with_a_code(
    sandbox: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cart without a code makes no request to Voucherify, so it would prove neither the address nor the keys."""
    for name, value in {
        "MAPPER_ENGINE": "voucherify",
        "VOUCHERIFY_APP_ID": "id",
        "VOUCHERIFY_APP_TOKEN": "token",
        "VOUCHERIFY_ORDER_METADATA": "gift=/gift",
        "VOUCHERIFY_BASE_URL": f"{sandbox}/voucherify",
    }.items():
        monkeypatch.setenv(name, value)
    assert findings(capsys)[0] == 0
    for status in (401, 404):
        control(sandbox, "faults", [{"name": "status", "value": status, "count": 1}])
        code, found = findings(capsys)
        assert (code, [one["check"] for one in found if one["state"] == "failed"]) == (1, ["engine"])
    monkeypatch.setenv("VOUCHERIFY_BASE_URL", "http://127.0.0.1:1")
    assert findings(capsys)[0] == 1


@pytest.mark.parametrize(
    ("status", "headers", "mend"),
    [
        (301, [("location", "https://elsewhere.example")], "Set TALON_ONE_BASE_URL to the address that it leads to."),
        (404, [], "Set TALON_ONE_BASE_URL to the deployment's or region's address alone, without a path."),
        (
            403,
            [],
            "Check the key in the settings TALON_ONE_…, and that it belongs to the address in TALON_ONE_BASE_URL.",
        ),
        (429, [], "Wait a minute; if it stays so, ask the engine for a larger quota."),
    ],
)
def test_remedy_fits_the_engines_answer(
    status: int,
    headers: list[tuple[str, str]],
    mend: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answering(status, headers) as url:
        monkeypatch.setenv("TALON_ONE_BASE_URL", url)
        code, found = findings(capsys)
    assert code == 1
    assert [one["mend"] for one in found if one["state"] == "failed"] == [mend]


def test_certificate_proxy_and_clock_problems_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unhealthy() -> str:
        return " ".join(one["text"] + one["mend"] for one in findings(capsys)[1] if one["state"] != "ok")

    with answering(200, [("date", "Fri, 27 Nov 2020 22:00:00 GMT")]) as url:
        monkeypatch.setenv("TALON_ONE_BASE_URL", url)
        assert "clock" in unhealthy()
        monkeypatch.setenv("TALON_ONE_BASE_URL", url.replace("http:", "https:"))
        assert "SSL_CERT_FILE" in unhealthy()
    monkeypatch.setenv("TALON_ONE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert "HTTPS_PROXY is not used" in unhealthy()


@pytest.mark.parametrize(
    ("kind", "state"), [("overlay", "warning"), ("tmpfs", "warning"), ("nfs4", "failed"), ("ext4", None)]
)
def test_file_system_of_a_sqlite_ledger_is_checked(
    kind: str,
    state: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nx {tmp_path} {kind} rw 0 0\nx {tmp_path}/elsewhere tmpfs rw 0 0\n")
    monkeypatch.setattr("mapper.commands.doctor.MOUNTS", mounts)
    monkeypatch.setenv("MAPPER_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    found = [one for one in findings(capsys)[1] if one["check"] == "ledger" and one["state"] != "ok"]
    assert [one["state"] for one in found] == ([state] if state else [])
    assert all("MAPPER_LEDGER_URL" in one["mend"] for one in found)


def test_secret_used_twice_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TALON_ONE_API_KEY", "one-secret-for-all-of-it")
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "another-secret-of-ours, one-secret-for-all-of-it")
    _, found = findings(capsys)
    (one,) = [one for one in found if one["state"] != "ok"]
    assert one["text"] == "NACELLE_SIGNING_SECRETS and TALON_ONE_API_KEY hold the same secret"


def test_narrow_terminal_truncates_no_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("MAPPER_ORDER_KEY_PATH", "")
    assert "…" not in doctor(capsys)[1].replace("…)", "")
