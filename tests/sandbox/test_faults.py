"""Faults on a real connection: what the caller sees, and whether the request is committed."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from mapper.sandbox import host as sandbox
from tests.sandbox.live import CLOSE, SESSION, ask, closes, control
from tests.sandbox.talon_one_shop import KEY, Json, cart, of


@pytest.mark.parametrize(
    ("fault", "outcome", "committed"),
    [
        ("", 200, True),
        ("latency=20", 200, True),
        ("late_answer=20", 200, True),
        ("status", 503, False),
        ("status=409", 409, False),
        ("status=429;retry_after=2, latency=20", 429, False),
        ("redirect", 307, False),
        ("redirect=301", 301, False),
        ("status_after", 500, True),
        ("status_after=503", 503, True),
        ("reset", ConnectionResetError, False),
        ("reset_after", ConnectionResetError, True),
        ("close", http.client.RemoteDisconnected, False),
        ("close_after", http.client.RemoteDisconnected, True),
        ("truncated", http.client.IncompleteRead, True),
        ("wrong_length=-2", json.JSONDecodeError, True),
        ("status_instead", 201, True),
        ("status_instead=202", 202, True),
        ("empty", json.JSONDecodeError, True),
        ("html", json.JSONDecodeError, True),
        ("strange", 200, True),
        ("malformed", json.JSONDecodeError, True),
        ("drip=1", 200, True),
        ("huge=100000", 200, True),
        ("unknown_effect, extra_fields", 200, True),
        ("flood", 400, False),
        ("latency=soon", 400, False),
        ("latency;often=1", 400, False),
        ("twice=3", 400, False),
    ],
)
def test_fault_gives_its_outcome_and_commits_or_not(
    live: tuple[str, sandbox.Sandbox], fault: str, outcome: int | type[Exception], committed: bool
) -> None:
    if isinstance(outcome, int):
        status, headers, body = ask(live[0], x_sandbox_fault=fault)
        assert status == outcome
        assert headers["x-sandbox"] == "promotions-mapper"
        if status not in (400, 301, 307):
            json.loads(body)
    else:
        with pytest.raises(outcome) as failed:
            json.loads(ask(live[0], x_sandbox_fault=fault)[2])
        # RemoteDisconnected is a ConnectionResetError, too: an orderly close is not a reset.
        assert failed.type is outcome
    assert closes(live[0]) == committed


@pytest.mark.parametrize(("fault", "committed"), [("hang", False), ("hang_after", True), ("wrong_length=9", True)])
def test_incomplete_answer_times_out_and_commits_or_not(
    live: tuple[str, sandbox.Sandbox], fault: str, committed: bool
) -> None:
    with pytest.raises(TimeoutError):
        ask(live[0], patience=0.3, x_sandbox_fault=fault)
    assert closes(live[0]) == committed


def test_garbled_answer_is_committed_and_has_no_effects(live: tuple[str, sandbox.Sandbox]) -> None:
    for fault, content_type in (("html", "text/html"), ("empty", "application/json"), ("strange", "application/json")):
        status, headers, body = ask(live[0], x_sandbox_fault=fault)
        # The second and third close are refused by a session that is closed: a status is never garbled.
        assert status == (200 if fault == "html" else 400)
        assert headers["content-type"] == content_type
        assert b"effects" not in body
    assert closes(live[0]) == 1


@pytest.mark.parametrize(("fault", "status"), [("twice=1", 200), ("twice=2", 400), ("twice", 400)])
def test_request_delivered_twice_returns_first_or_second_answer(
    live: tuple[str, sandbox.Sandbox], fault: str, status: int
) -> None:
    # A session closes once: the second delivery is refused, and the first redemption stays.
    assert ask(live[0], x_sandbox_fault=fault)[0] == status
    assert closes(live[0]) == 1


def test_redemption_delivered_twice_redeems_twice(live: tuple[str, sandbox.Sandbox]) -> None:
    order = {"source_id": "o1", "items": [{"source_id": "A", "related_object": "sku", "price": 5000, "quantity": 1}]}
    body = json.dumps({"redeemables": [{"object": "voucher", "id": "TEN-PERCENT"}], "order": order}).encode()
    keys: Json = {"x_app_id": "a", "x_app_token": "t", "content_type": "application/json"}
    control(live[0], "faults", [{"name": "twice", "operation": "redeem", "count": 1}])
    status, _, reply = ask(live[0], "POST", "/voucherify/v1/redemptions", body, **keys)
    assert status == 200
    books = control(live[0], "books")["voucherify"]
    first, second = books["orders"]["o1"]["redemptions"]
    assert json.loads(reply)["redemptions"][0]["id"] == second
    # The rollback of the second redemption may be refused.
    control(live[0], "faults", [{"name": "status", "value": 403, "operation": "rollback"}])
    status, _, refusal = ask(live[0], "POST", f"/voucherify/v1/redemptions/{second}/rollbacks", b"{}", **keys)
    assert (status, json.loads(refusal)["code"]) == (403, 403)
    assert control(live[0], "books")["voucherify"]["codes"] == {"TEN-PERCENT": 2}
    assert first != second


def test_late_commit_happens_after_the_connection_closes(live: tuple[str, sandbox.Sandbox]) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        ask(live[0], x_sandbox_fault="late_commit=100")
    assert closes(live[0]) == 0
    until = time.monotonic() + 5
    while not closes(live[0]) and time.monotonic() < until:
        time.sleep(0.02)
    assert closes(live[0]) == 1


def test_late_answer_commits_before_its_wait_and_latency_after(live: tuple[str, sandbox.Sandbox]) -> None:
    for fault, early in (("late_answer=200", 1), ("latency=200", 0)):
        control(live[0], "reset", {})
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, live[0], x_sandbox_fault=fault)
            until = time.monotonic() + 5
            while not control(live[0], "requests")["requests"] and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(0.05)
            assert closes(live[0]) == early
            assert asked.result()[0] == 200
        assert closes(live[0]) == 1


def test_drip_sends_byte_by_byte(live: tuple[str, sandbox.Sandbox]) -> None:
    started = time.monotonic()
    _, _, body = ask(live[0], x_sandbox_fault="drip=1")
    assert time.monotonic() - started > len(body) / 1000


def test_drip_ends_when_the_client_disconnects() -> None:
    with sandbox.running(sandbox.create()) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
        connection.request("GET", SESSION, headers=KEY | {"x-sandbox-fault": "drip=60000"})
        with connection.getresponse() as reply:
            assert reply.read(1) == b"{"
        connection.close()
        started = time.monotonic()
    # Otherwise the server would wait for the drip before it stops.
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("fault", "names"),
    [("status=429;retry_after=7", ("retry-after", "7")), ("redirect", ("location", "http://elsewhere.invalid/"))],
)
def test_fault_answer_has_its_header(live: tuple[str, sandbox.Sandbox], fault: str, names: tuple[str, str]) -> None:
    assert ask(live[0], x_sandbox_fault=fault)[1][names[0]] == names[1]


def test_errors_have_the_engines_own_body(live: tuple[str, sandbox.Sandbox]) -> None:
    message = "Too many requests are updating this session at the same time"
    reply = json.loads(ask(live[0], x_sandbox_fault="status=409")[2])
    assert reply == {"message": message, "errors": [], "StatusCode": 409}
    assert "retry-after" not in ask(live[0], x_sandbox_fault="status=429")[1]


def test_unknown_effects_and_fields_leave_known_effects_unchanged(live: tuple[str, sandbox.Sandbox]) -> None:
    body = json.dumps({"customerSession": cart("TEN-PERCENT", price=99.99)}).encode()
    plain = json.loads(ask(live[0], body=body)[2])
    strange = json.loads(ask(live[0], body=body, x_sandbox_fault="unknown_effect,extra_fields,huge=1000")[2])
    assert {e["effectType"] for e in strange["effects"]} - {e["effectType"] for e in plain["effects"]} == {
        "sandboxTeleportShopper"
    }
    assert all("sandboxExtra" in effect and "sandboxExtra" in effect["props"] for effect in strange["effects"])
    assert len(strange["sandboxPadding"]) == 1000
    assert [p["value"] for p in of(strange, "setDiscountPerItem")] == [9.999]


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        ({}, "dry open close read"),
        ({"count": 2}, "dry open"),
        ({"count": 0}, ""),
        ({"skip": 1, "count": 1}, "open"),
        ({"skip": 3}, "read"),
        ({"operation": "close"}, "close"),
        ({"operation": "dry", "method": "put"}, "dry"),
        ({"method": "GET"}, "read"),
        ({"path": "sessions/s1$"}, "dry open close read"),
        ({"path": "sessions/s2"}, ""),
        ({"engine": "talon_one"}, "dry open close read"),
        ({"engine": "another"}, ""),
        ({"probability": 0.0}, ""),
        ({"probability": 0.5, "seed": 1}, "dry read"),
        ({"probability": 0.5, "seed": 2}, "close read"),
    ],
)
def test_fault_applies_only_to_matching_requests(live: tuple[str, sandbox.Sandbox], fault: Json, hit: str) -> None:
    control(live[0], "faults", [{"name": "status", "value": 503, **fault}])
    requests = {
        "dry": ("PUT", f"{SESSION}?dry=true", b'{"customerSession": {}}'),
        "open": ("PUT", SESSION, b'{"customerSession": {}}'),
        "close": ("PUT", SESSION, CLOSE),
        "read": ("GET", SESSION, b""),
    }
    met = [name for name, request in requests.items() if ask(live[0], *request)[0] == 503]
    assert " ".join(met) == hit


def test_invalid_faults_are_refused(live: tuple[str, sandbox.Sandbox]) -> None:
    for body in (
        b'[{"name":"flood"}]',
        b'[{"name":"status","often":1}]',
        b'[{"name":"status","path":"("}]',
        b"{}",
        b"[",
    ):
        assert ask(live[0], "POST", "/_sandbox/faults", body)[0] == 400
    assert control(live[0], "faults") == []
