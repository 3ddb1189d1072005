"""Security checks of the whole service that no other test makes."""

import io
import json
import logging
import sys

import pytest
from starlette.testclient import TestClient

from mapper.adapter import Outcome, Reason, Rejection
from mapper.http import app
from mapper.ops import logs
from mapper.ops.logs import log
from mapper.sandbox import host as sandbox
from mapper.settings import load
from tests.domain.test_document import JSON_TEXTS, NOT_JSON
from tests.fakes import SECRET, new_ledger, signed
from tests.http.test_app import BODIES, BOTH, Client, check_error, check_security_headers
from tests.sandbox.live import control

CODE = "CANARY-CODE-7"


def test_wrong_methods_get_405_and_unknown_paths_404() -> None:
    made = Client()
    with made.http as http:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            response = http.request(method, "/promotions/validate")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
            check_security_headers(response)
            assert response.headers["content-type"] == "application/json"
        missing = http.get("/promotions")
        assert missing.status_code == 404
        check_security_headers(missing)
        assert "server" not in missing.headers


@BOTH
@pytest.mark.parametrize("code", ["A\u0000B", "\\ud800", "A" * 101, "A\nB"])
def test_malformed_codes_are_refused(operation: str, code: str) -> None:
    made = Client()
    text = json.dumps({**BODIES[operation], "promotions": {"coupon_codes": [code]}}).replace("\\\\u", "\\u")
    with made.http:
        details = check_error(
            made.post(operation, text.encode()), operation, 422 if operation == "validate" else 500, "promotion_codes"
        )
    assert details["codes"][0]["reason"] == "malformed"


UNDEFINED = (
    b'{"v": 1e400}', b'{"v": -1e400}', b'{"v": 1E-400}', b'{"v": 0.%s}' % (b"1" * 5000), b'{"v": %s}' % (b"9" * 5000),
    b'{"v": "\\ud800"}', b'{"v": "\\udfff\\ud800"}', b'{"v": "\\ud800a"}',
    b'{"\\ud800": 1}', b'{"v": "\\uffff\\u0000"}',
    b'{"v": "\xff"}', b'{"v": "\xed\xa0\x80"}', b'{"v": "\xc0\xaf"}', b'{"v": "\xf4\xbf\xbf\xbf"}', b'{"v": "\xe9"}',
    b'\xef\xbb\xbf{"v": 1}', b"\xff\xfe", b"\xef\xbb\xbf",
    '{"v": 1}'.encode("utf-16"), '{"v": 1}'.encode("utf-16-be"),
    b"[" * 500 + b"]" * 500, b'{"v": ' + b"[" * 100_000, b'{"v": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"a": ' * 3000 + b"1" + b"}" * 3000, b"[[],[[]]]", b"1", b"null", b'"{}"', b" ", b"\0", b"{}{}", b"{} #",
)  # fmt: skip
"""Bodies that a parser may accept or refuse, or that are not objects, by the categories of JSONTestSuite."""


@BOTH
def test_json_grammar_holds_for_signed_calls(operation: str) -> None:
    """By the categories of JSONTestSuite: valid JSON is returned, and no body is an internal error."""
    made = Client()
    usual = json.dumps(BODIES[operation])[:-1].encode()
    with made.http:
        for text in JSON_TEXTS:
            member = f'"v": {text.strip()}'.encode()
            response = made.post(operation, usual + b", " + member + b"}")
            assert response.status_code == 200, text
            assert member in response.content, text
        for text in NOT_JSON:
            assert made.post(operation, usual + f', "v": {text}}}'.encode()).status_code == 400, text
        for body in UNDEFINED:
            assert made.post(operation, body).status_code == 400, body[:50]
            response = made.post(operation, usual + b", " + body.strip()[1:])
            assert response.status_code in (200, 400), body[:50]


@BOTH
@pytest.mark.parametrize("price", ["NaN", "Infinity", "-Infinity", "1e400", '"NaN"', '"sNaN"', '"Infinity"', '"1e400"'])
def test_price_other_than_a_number_is_refused(operation: str, price: str) -> None:
    made = Client()
    with made.http:
        body = json.dumps(BODIES[operation]).replace('"140.00"', price).encode()
        assert check_error(made.post(operation, body), operation, 400, "invalid_request")["pointer"] in (
            "",
            f"/{'items' if operation == 'validate' else 'order_items'}/0/price",
        )
    assert made.wire.sent == []


def test_validate_after_consume_leaves_engine_session_closed() -> None:
    """Even if a captured checkout is sent again."""
    with sandbox.running(sandbox.create()) as url:
        environment = {
            "MAPPER_ENGINE": "talon_one",
            "TALON_ONE_BASE_URL": f"{url}/talon_one",
            "TALON_ONE_API_KEY": "key",
            "NACELLE_SIGNING_SECRETS": SECRET.decode(),
            "MAPPER_LEDGER_URL": new_ledger(),
            "MAPPER_VALIDATE_DEADLINE_MS": "30000",
            "MAPPER_CONSUME_DEADLINE_MS": "60000",
        }
        cart = {**BODIES["consume"], "promotion": {"coupon_codes": ["SINGLE-0001"]}}
        with TestClient(app.create(load(environment))) as http:
            for operation in ("validate", "consume", "validate", "validate"):
                body, headers = signed(cart)
                named = [(name.decode(), value.decode()) for name, value in headers]
                assert http.post(f"/promotions/{operation}", content=body, headers=named).status_code in (200, 422)
        sessions = control(url, "books")["talon_one"]["sessions"]
    assert (sessions["c-1"]["state"], sessions["c-1"]["closes"]) == ("closed", 1)


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_and_codes_are_not_in_logs_or_operator_routes(
    form: logs.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    root, handlers, levels = (
        logging.getLogger(),
        logging.getLogger().handlers[:],
        (logging.getLogger().level, log.level),
    )
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(logs, "_json_file", None)
    logs.configure("debug", form)
    try:
        seen = _call_everything()
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        log.setLevel(levels[1])
    assert "request" in written.getvalue()
    for canary in (CODE, SECRET.decode(), "the engine's key"):
        assert canary not in seen + written.getvalue()
    assert "c-1" not in seen, "no route for operators tells of an order"


def _call_everything() -> str:
    """Makes calls that fail in each way; returns what the operators' routes show then."""
    made = Client()
    made.adapter.granted = Outcome(rejected=(Rejection(CODE, Reason.EXPIRED, "x"),))
    seen = ""
    with made.http as http:
        for operation, base in BODIES.items():
            for body in ({**base, "promotions": {"coupon_codes": [CODE]}}, b"{", {**base, "promotions": 7}):
                made.post(operation, body)
            made.wire.script = {"validate": [401], "check": [500, 500, 500]}
            made.post(operation, {**base, "promotions": {"coupon_codes": [CODE]}})
        for route in ("/metrics", "/readyz", "/livez", "/version"):
            seen += http.get(route).text
    return seen


def test_each_guessed_code_is_counted_and_logged_with_its_checkout(caplog: pytest.LogCaptureFixture) -> None:
    """Guesses are not limited here: an operator sees them and limits them where the shopper is known."""
    caplog.set_level("INFO")
    made, guesses = Client(), 50
    with made.http as http:
        for number in range(guesses):
            made.adapter.granted = Outcome(rejected=(Rejection(f"GUESS-{number}", Reason.NOT_FOUND, "x"),))
            cart = {**BODIES["validate"], "promotions": {"coupon_codes": [f"GUESS-{number}"]}}
            check_error(made.post("validate", cart), "validate", 422, "promotion_codes")
        counted = http.get("/metrics").text
    assert f'mapper_rejected_codes_total{{reason="not_found"}} {guesses}.0' in counted
    told = [str(record.__dict__) for record in caplog.records if record.getMessage() == "request"]
    assert len([line for line in told if "c-1" in line and "not_found" in line]) == guesses


def test_forwarded_headers_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = Client()
    with made.http:
        assert made.post("validate", x_forwarded_for="203.0.113.9", x_forwarded_proto="https").status_code == 200
    assert not [record for record in caplog.records if "203.0.113.9" in str(record.__dict__)]
