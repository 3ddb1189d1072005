"""Calls are recorded without secret or personal data, and replayed with the same prices."""

import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from mapper import settings
from mapper.adapter import Checkout, Conversation, Discount, EngineRequest, Outcome
from mapper.commands import cli
from mapper.domain import money
from mapper.domain.record import Record as Call
from mapper.engine.transcript import Transcript
from mapper.engine.transport import Unknown
from mapper.http import app
from mapper.recording import recorder, records
from mapper.recording.redaction import Redaction
from mapper.recording.replay import Finding, replay
from mapper.sandbox import host
from tests import fakes

CANARY = "canary-9f2b71c4"
CODES = ["XMAS-2021-25", "ten-percent", "NOPE"]
CART: dict[str, Any] = {
    "id": "cart-1",
    "currency": "USD",
    "order_items": [
        {"sku": "SKU1234", "quantity": 1, "price": "140.00", "engraving": CANARY},
        {"sku": "SKU2", "quantity": 3, "price": "33.34"},
    ],
    "promotion": {"coupon_codes": CODES, "identifiers": ["203.0.113.77"]},
    "customer": {
        "id": f"{CANARY}-customer",
        "name": f"{CANARY} Anna",
        "email": f"{CANARY}@example.com",
        "phone": "+49 170 5550 1234",
        "age": 31,
    },
    "shipping_address": {"line1": f"{CANARY} Street 5", "zip": "10115", "city": CANARY},
    "note": f"For {CANARY}, call 0170 5550 1234",
    "caller": 1705550123,
    "shipping_rate": {"price": "15.00"},
    "source": "web",
    "payments": [{"token": CANARY, "number": "4111111111111111", "amount": "140.00"}],
}
PERSONAL = (CANARY, "5550", "203.0.113.77", "10115", "4111", "example.com", "For ")
ENGINES = {
    "talon_one": {
        "TALON_ONE_API_KEY": CANARY,
        "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
        "TALON_ONE_SESSION_ATTRIBUTES": "ShippingCity=/shipping_address/city,channel=/source",
        "TALON_ONE_IDENTIFIERS_KEY": f"{CANARY}-identifiers",
        "TALON_ONE_PROFILE_PREFIX": "shop-",
    },
    "voucherify": {
        "VOUCHERIFY_APP_ID": CANARY,
        "VOUCHERIFY_APP_TOKEN": CANARY,
        "VOUCHERIFY_PROMOTIONS": "qualify",
        "VOUCHERIFY_CUSTOMER_METADATA": "mail=/customer/email",
    },
}
BOTH = pytest.mark.parametrize("engine", ENGINES)


class Shop:
    """The service, recording."""

    def __init__(self, folder: Path, configured: settings.Settings) -> None:
        self.folder = folder
        self.http = TestClient(app.create(configured, engine_transport=None))

    def post(self, operation: str, body: object) -> Any:
        data, headers = fakes.signed(body)
        named = [(name.decode(), value.decode()) for name, value in headers]
        return self.http.post(f"/promotions/{operation}", content=data, headers=named)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))


def environment(folder: Path, engine: str, sandbox: str) -> dict[str, str]:
    return {
        "MAPPER_ENGINE": engine,
        f"{engine.upper()}_BASE_URL": f"{sandbox}/{engine}",
        "NACELLE_SIGNING_SECRETS": fakes.SECRET.decode(),
        "MAPPER_LEDGER_URL": fakes.new_ledger(),
        "MAPPER_RECORD": str(folder),
        "MAPPER_ON_REJECTED": "apply_rest",
        "MAPPER_VALIDATE_DEADLINE_MS": "30000",
        "MAPPER_CONSUME_DEADLINE_MS": "60000",
        **ENGINES[engine],
    }


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, str]]:
    """A checkout and its order, recorded with each engine: the environment, by engine."""
    environments = {}
    with host.running(host.create()) as sandbox:
        for engine in ENGINES:
            folder = tmp_path_factory.mktemp(engine)
            given = environments[engine] = environment(folder, engine, sandbox)
            shop = Shop(folder, settings.load(given))
            with shop.http:
                answer = shop.post("validate", CART)
                assert answer.status_code == 200, answer.text
                order = shop.post("consume", answer.json()["checkout"])
                assert order.status_code == 200, order.text
                # The ledger answers the same order again: there is nothing to replay.
                assert shop.post("consume", answer.json()["checkout"]).status_code == 200
    return environments


def recorded(given: Mapping[str, str]) -> list[records.Record]:
    return [records.read(file.read_bytes()) for file in sorted(Path(given["MAPPER_RECORD"]).iterdir())]


def differences(given: Mapping[str, str]) -> list[Finding]:
    rules = settings.load_rules(given)
    return [finding for record in recorded(given) for finding in replay(rules, record)]


@BOTH
def test_replay_of_recorded_call_gives_same_prices(engine: str, journeys: Mapping[str, dict[str, str]]) -> None:
    validated, consumed = recorded(journeys[engine])
    assert [validated.operation, consumed.operation] == ["validate", "consume"]
    assert differences(journeys[engine]) == []
    result = validated.conversations[0].result
    assert result.amounts["/order_items/1/price"] == "30.01"
    assert sorted(result.rejected.values()) == ["not_found"]
    assert [one.result.state for one in consumed.conversations if one.method == "redeem"] == ["redeemed"]


@BOTH
def test_record_holds_no_secret_or_personal_data(engine: str, journeys: Mapping[str, dict[str, str]]) -> None:
    for file in Path(journeys[engine]["MAPPER_RECORD"]).iterdir():
        text = file.read_text("utf-8")
        for word in (*PERSONAL, *CODES, *map(str.upper, CODES), fakes.SECRET.decode(), "receipt", "uthorization"):
            assert word not in text, word
        assert "XMAS" not in text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@BOTH
def test_replay_finds_changed_rounding_rule(
    engine: str, journeys: Mapping[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(money, "unit_price", lambda net, quantity: net // quantity)
    found = differences(journeys[engine])
    assert {one.kind for one in found} == {"priced differently"}
    assert {(one.place, one.recorded, one.now) for one in found} == {("/order_items/1/price", "30.01", "30.00")}


@BOTH
def test_replay_reports_a_changed_engine_request(engine: str, journeys: Mapping[str, dict[str, str]]) -> None:
    """Another request has another reply, so prices are not compared."""
    for name in ("TALON_ONE_ADDITIONAL_COSTS", "VOUCHERIFY_CUSTOMER_METADATA"):
        found = differences({**journeys[engine], name: ""})
        if name.startswith(engine.upper()):
            assert {one.kind for one in found} == {"asks differently"}
            place, recorded_there = found[0].place, found[0].recorded
            assert ("shipping" in recorded_there) if engine == "talon_one" else place.endswith("/customer/metadata")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments])
    told = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, told.out, told.err


@pytest.fixture
def talon_one_records(journeys: Mapping[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the records, with the settings of a CI job: neither Nacelle's secrets nor a ledger."""
    given = journeys["talon_one"]
    for name, value in given.items():
        if name.startswith(("TALON_ONE_", "MAPPER_ENGINE")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(given["MAPPER_RECORD"], tmp_path / "copy")
    return tmp_path / "copy"


def test_replay_command_lists_carts_that_differ(
    talon_one_records: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "replay", str(talon_one_records))
    assert (code, out.strip()) == (0, "2 carts: 2 as recorded, 0 differ, 0 cannot be used.")
    monkeypatch.setattr(money, "unit_price", lambda net, quantity: net // quantity)
    code, out, _ = run(capsys, "replay", str(talon_one_records))
    assert code == 1
    assert "2 differ" in out
    (line, *_) = [line for line in out.splitlines() if "/order_items/1/price" in line]
    assert line.split()[1] == "cart-1"
    assert line.split()[-2:] == ["30.01", "30.00"]
    code, out, _ = run(capsys, "replay", str(talon_one_records), "--json")
    told = json.loads(out)
    assert (code, told["differing"], told["same"]) == (1, 2, 0)
    assert told["carts"][0]["findings"][0]["place"] == "/order_items/1/price"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not a record"),
        (b"{}", "it is not a record"),
        (b"\xff", "it is not a record"),
        (b'{"format": 2}', "it is not a record"),
        (b'{"body": ' + b"[" * 1_000_000, "nested too deeply"),
        ((b'"engine": "talon_one"', b'"engine": "other"'), "it was recorded with"),
        ((b'"exchanges"', b'"filled": {"x": {}}, "exchanges"'), "it is not a record"),
        ((b'"exchanges"', b'"filled": {"0": 1}, "exchanges"'), "it is not a record"),
    ],
)
def test_replay_command_exits_2_on_unusable_record(
    content: bytes | tuple[bytes, bytes], said: str, talon_one_records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = min(talon_one_records.iterdir())
    if isinstance(content, tuple):
        content = file.read_bytes().replace(*content)
    file.write_bytes(content)
    code, out, _ = run(capsys, "replay", str(talon_one_records))
    assert code == 2
    assert said in out
    assert "1 as recorded, 0 differ, 1 cannot be used" in out


def test_replay_command_exits_2_without_records_or_settings(
    talon_one_records: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (talon_one_records / "missing", talon_one_records.parent):
        code, _, err = run(capsys, "replay", str(folder))
        assert (code, err) == (2, f"There is no record in {folder}.\n")
    monkeypatch.setenv("TALON_ONE_API_KEY", "")
    code, _, err = run(capsys, "replay", str(talon_one_records))
    assert code == 2
    assert "TALON_ONE_API_KEY" in err


def test_explain_command_needs_no_engine(
    talon_one_records: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NACELLE_SIGNING_SECRETS", "a secret that is long enough")
    monkeypatch.setenv("TALON_ONE_BASE_URL", "http://127.0.0.1:1")
    for file in talon_one_records.iterdir():
        code, out, _ = run(capsys, "explain", str(file), "--exchange")
        assert code == 0, out
        for text in ("-35.00", "30.01", "-74.00", "This code does not exist.", '"couponCodes"'):
            assert text in out, text


# -- Recording beside the call ---------------------------------------------------------------------------------------

TEN_OFF = Outcome(discounts=(Discount(name="Ten", description="", amount=1000, effect_type="off", line=0),))
SMALL = {"id": "c-1", "items": [{"sku": "S", "quantity": 1, "price": "140.00"}], "promotions": {}}


class FakeShop(Shop):
    """The service with a fake adapter."""

    def __init__(self, folder: Path, adapter: fakes.FakeAdapter | None = None) -> None:
        self.folder = folder
        self.adapter, self.wire = adapter or fakes.FakeAdapter(), fakes.FakeTransport()
        self.adapter.granted = TEN_OFF
        self.configured = fakes.settings(
            self.adapter, MAPPER_LEDGER_URL=fakes.new_ledger(), MAPPER_RECORD=str(self.folder)
        )
        self.http = TestClient(app.create(self.configured, engine_transport=self.wire))


@pytest.fixture
def shop(tmp_path: Path) -> FakeShop:
    (tmp_path / "records").mkdir()
    return FakeShop(tmp_path / "records")


def wait_for(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_custom_adapter_is_recorded_and_replayed(shop: FakeShop) -> None:
    with shop.http:
        assert shop.post("validate", SMALL).status_code == 200
        wait_for(lambda: 'mapper_records_total{fate="written"} 1.0' in shop.http.get("/metrics").text)
        shop.wire.script["validate"] = [Unknown("timeout"), Unknown("timeout")]
        assert shop.post("validate", SMALL).status_code == 422
    answered, failed = [records.read(file.read_bytes()) for file in shop.files()]
    assert answered.conversations[0].result.amounts["/items/0/price"] == "130.00"
    assert (failed.conversations[0].result.problem, failed.answer.category) == ("timeout", "engine_unavailable")
    assert [replay(shop.configured.rules, one) for one in (answered, failed)] == [[], []]
    shop.adapter.granted = Outcome()
    assert Finding("priced differently", "/items/0/price", "130.00", "140.00") in replay(
        shop.configured.rules, answered
    )


class TokenAdapter(fakes.FakeAdapter):
    """Gets a token from its engine and sends it in a header."""

    pattern = rb""

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        reply = yield self._request("token", session, repeatable=True)
        found = re.search(self.pattern, reply.body)
        assert found is not None
        headers = (("Authorization", f"Bearer {found[1].decode()}"),)
        yield EngineRequest(
            operation="validate", method="POST", path="/validate", headers=headers, effect="none", repeatable=True
        )
        return self.granted


@pytest.mark.parametrize(
    ("reply", "pattern"),
    [
        (b"<token>%s</token>", rb"<token>(.*)</token>"),
        (b"token=%s&expires_in=60", rb"token=([^&]*)"),
        (b'{"access":"%s"}', rb'"access": ?"([^"]*)"'),
    ],
)
def test_record_hides_token_of_the_engine(tmp_path: Path, reply: bytes, pattern: bytes) -> None:
    shop = FakeShop(tmp_path, TokenAdapter())
    TokenAdapter.pattern, shop.wire.reply = pattern, reply % CANARY.encode()
    with shop.http:
        assert shop.post("validate", SMALL).status_code == 200
    (text,) = [file.read_bytes() for file in shop.files()]
    assert CANARY.encode() not in text
    assert replay(shop.configured.rules, records.read(text)) == []


def test_unsigned_and_invalid_calls_are_not_recorded(shop: FakeShop) -> None:
    with shop.http:
        assert shop.http.post("/promotions/validate", json=SMALL).status_code == 401
        assert shop.post("validate", {"items": "none"}).status_code == 400
    assert shop.files() == []


def test_full_disk_loses_records_but_no_checkout(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = threading.Semaphore(0)
    count = recorder.Recorder._record

    def counted(self: recorder.Recorder, answered: Any) -> recorder.Fate:
        fate = count(self, answered)
        written.release()
        return fate

    def on_a_full_disk(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(recorder.Recorder, "_record", counted)
    with shop.http:
        monkeypatch.setattr("mapper.recording.recorder.os.fdopen", on_a_full_disk)
        for _ in range(3):
            assert shop.post("validate", SMALL).json()["checkout"]["items"][0]["price"] == "130.00"
        for _ in range(3):
            assert written.acquire(timeout=30)
        monkeypatch.undo()
    assert list(shop.folder.iterdir()) == []
    warnings = [entry for entry in caplog.records if entry.getMessage() == "not recorded"]
    (warning,) = warnings  # once, or it would fill the log's disk, too
    assert warning.exc_info is None, "an adapter's own words may hold what is personal"
    assert warning.__dict__["facts"]["cause"] == "No space left on device"


def test_dropped_and_written_records_are_counted(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    fates: list[recorder.Fate] = []
    held = threading.Event()

    def slow(_self: object, _answered: object) -> recorder.Fate:
        held.wait(30)
        return "written"

    monkeypatch.setattr(recorder.Recorder, "_record", slow)
    monkeypatch.setattr(recorder, "MAX_QUEUED", 1)
    keeper = recorder.Recorder(shop.folder, shop.configured, str, fates.append)
    transcripts = [Transcript("validate", None, (), {}, has_ended=True)]
    for _ in range(3):  # one is being written, one waits, so the third is dropped at the latest
        keeper.record(Call("validate", "r-1"), 200, "ok", "ok", transcripts)
    assert "dropped" in fates
    held.set()
    keeper.close()
    assert "written" in fates


def test_only_oldest_records_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "a-file-of-somebody-else.json"
    own.write_text("{}")
    monkeypatch.setattr(recorder, "MAX_FILES", 3)
    for number in range(5):
        recorder.write(tmp_path, f"20260101T00000{number}.000000Z-validate", b"{}")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert [name[:15] for name in names[:-1]] == ["20260101T000002", "20260101T000003", "20260101T000004"]
    assert names[-1] == own.name
    monkeypatch.setattr(recorder, "MAX_BYTES", 150)
    recorder.write(tmp_path, "20260101T000009.000000Z-consume", b"x" * 149)
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_recorded_without_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = fakes.FakeAdapter()
    configured = fakes.settings(adapter, MAPPER_LEDGER_URL=fakes.new_ledger())
    monkeypatch.setattr("mapper.engine.transcript.Transcript.__init__", lambda *_: pytest.fail("somebody listens"))
    with TestClient(app.create(configured, engine_transport=fakes.FakeTransport())) as http:
        data, headers = fakes.signed(SMALL)
        named = [(name.decode(), value.decode()) for name, value in headers]
        assert http.post("/promotions/validate", content=data, headers=named).status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_call_that_redaction_changes_is_not_recorded(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter whose discount depends on the customer's name cannot be replayed without it."""

    def validate(checkout: Any, session: str) -> Any:
        yield shop.adapter._request("validate", session, repeatable=True)
        return TEN_OFF if checkout.customer == "anna" else Outcome()

    monkeypatch.setattr(shop.adapter, "validate", validate)
    with shop.http:
        answer = shop.post("validate", {**SMALL, "customer": {"id": "anna"}})
        assert answer.json()["checkout"]["items"][0]["price"] == "130.00"
    assert shop.files() == []


def test_unwritable_record_folder_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, value in environment(tmp_path / "file", "talon_one", "http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, "serve", "--port", "0")
    assert code == 2
    assert "MAPPER_RECORD" in err


# -- Redaction -------------------------------------------------------------------------------------------------------


def redacted(body: object, *codes: str) -> Any:
    redaction = Redaction(codes, lambda code: f"name-of-{len(code)}")
    return redaction.body(msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("body", "becomes"),
    [
        ({"price": "140.00", "quantity": 3, "tax": 1.5}, None),
        ({"customer": {"id": "1", "vip": True, "age": 31}}, {"customer": {"id": "0", "vip": True, "age": 0}}),
        ({"a": "x y", "b": "x y", "c": "z"}, {"a": "redacted-1", "b": "redacted-1", "c": "redacted-2"}),
        ({"api_key": "k", "x-signature": "s", "Receipt": {}, "id": "1"}, {"id": "1"}),
        ({"coupon_codes": ["AB", "ab", " AB "]}, {"coupon_codes": ["name-of-2"] * 3}),
        ({"coupon_codes": ["A\u0000B"]}, {"coupon_codes": ["redacted-1\u0000"]}),
        (
            {"coupon_codes": ["10"], "code": "10", "price": "10"},
            {"coupon_codes": ["name-of-2"], "code": "name-of-2", "price": "10"},
        ),
        ({"gift_credits": {"AB": 5}}, {"gift_credits": {"name-of-2": 5}}),
        ({"id": "of anna@example.com"}, {"id": "of redacted-1"}),
        ({"anna@example.com": 1}, {"redacted-1": 1}),
        ({"phone_number": 4917012345678, "count": 999999}, {"phone_number": 0, "count": 999999}),
        ({"sku": "SKU-1", "discounts": [{"meta": {"campaign": "camp_1"}}]}, None),
        ({"created_at": "2026-11-27T19:00:00Z", "type": "gift"}, None),
    ],
)
def test_body_is_redacted(body: object, becomes: object) -> None:
    found = json.loads(json.dumps(redacted(body, "AB", "10"), default=float))
    assert found == (body if becomes is None else becomes)


def test_reply_is_redacted_like_the_body() -> None:
    redaction = Redaction(["XMAS"], lambda _: "")
    redaction.body(b'{"customer": {"name": "Anna Smith"}, "note": "voucher"}')
    reply = {
        "object": "voucher",
        "text": "Code xmas of anna smith, mail a@b.example, from 10.0.0.1",
        "customer": {"city": "Berlin", "points": 12, "object": "customer"},
        "XMAS": "voucher",
    }
    assert redaction.reply(reply) == {
        "object": "voucher",
        "text": "Code code-1 of redacted-1, mail redacted-3, from redacted-4",
        "customer": {"city": "redacted-5", "points": 12, "object": "customer"},
        "code-1": "voucher",
    }
