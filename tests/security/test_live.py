"""Checks against the whole service that no other test makes."""

import io
import json
import logging
import sys

import pytest

from mapper.adapter import Outcome, Reason, Rejection
from mapper.ops import logs
from mapper.ops.logs import log
from tests.fakes import SECRET
from tests.http.test_app import BODIES, BOTH, Client, check_error, check_security_headers

CODE = "CANARY-CODE-7"


def test_405_and_404() -> None:
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
def test_odd_codes(operation: str, code: str) -> None:
    made = Client()
    text = json.dumps({**BODIES[operation], "promotions": {"coupon_codes": [code]}}).replace("\\\\u", "\\u")
    with made.http:
        details = check_error(
            made.post(operation, text.encode()), operation, 422 if operation == "validate" else 500, "promotion_codes"
        )
    assert details["codes"][0]["reason"] == "malformed"


@pytest.mark.parametrize("form", ["json", "text"])
def test_canaries_are_nowhere(form: logs.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    root, handlers, levels = (
        logging.getLogger(),
        logging.getLogger().handlers[:],
        (logging.getLogger().level, log.level),
    )
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(logs, "_lines", None)
    logs.configure("debug", form)
    try:
        seen = _everything_once()
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        log.setLevel(levels[1])
    assert "request" in written.getvalue()
    for canary in (CODE, SECRET.decode(), "the engine's key"):
        assert canary not in seen + written.getvalue()
    assert "c-1" not in seen, "no route for operators tells of an order"


def _everything_once() -> str:
    """Calls that fail in each way; what the operators' routes say then."""
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


def test_who_forwards_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = Client()
    with made.http:
        assert made.post("validate", x_forwarded_for="203.0.113.9", x_forwarded_proto="https").status_code == 200
    assert not [record for record in caplog.records if "203.0.113.9" in str(record.__dict__)]
