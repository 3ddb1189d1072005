"""The HTTP contract: every status, every error body, every header."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from mapper.adapter import Discount, EngineRequest, Outcome, Reason, Rejection
from mapper.domain.errors import STATUS, EngineRejected, OrderMismatch
from mapper.engine.transport import NotSent, Unknown
from mapper.http import app, readiness
from mapper.http.limiter import Limiter
from mapper.ops.logs import CodeNames
from mapper.orders.ledger import Ledger
from mapper.orders.rows import LedgerUnavailable
from tests.fakes import SECRET, FakeAdapter, FakeTransport, new_ledger, settings, signed, signed_with

CHECKOUT = {"id": "c-1", "items": [{"sku": "S", "quantity": 1, "price": "140.00"}]}
ORDER = {"id": "c-1", "order_items": [{"sku": "S", "quantity": 1, "price": "140.00"}]}
TEN_OFF = Outcome(discounts=(Discount(name="Ten", description="Ten off", amount=1000, effect_type="off", line=0),))
BODIES = {"validate": CHECKOUT, "consume": ORDER}
SUBJECT = {"validate": "checkout", "consume": "order"}


class Client:
    """The service over ASGI, with a fake engine."""

    def __init__(self, **environment: str) -> None:
        self.adapter, self.wire = FakeAdapter(), FakeTransport()
        environment = {"MAPPER_LEDGER_URL": new_ledger(), **environment}
        application = app.create(settings(self.adapter, **environment), engine_transport=self.wire)
        self.http = TestClient(application, raise_server_exceptions=False)

    def post(self, operation: str, body: object = None, **headers: str) -> Any:
        data, sent = signed(BODIES[operation] if body is None else body, **headers)
        return self.http.post(
            f"/promotions/{operation}", content=data, headers=[(k.decode(), v.decode()) for k, v in sent]
        )


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    with made.http:
        yield made


def check_error(response: Any, operation: str, status: int, category: str) -> dict[str, Any]:
    """The error body is as Nacelle's page describes it, without any text of the engine."""
    body = response.json()
    assert (response.status_code, body["error"]["category"]) == (status, category)
    assert set(body) == {SUBJECT[operation], "error"}
    assert body[SUBJECT[operation]] == {}
    assert set(body["error"]) == {"error", "category", "details"}
    assert body["error"]["error"].endswith(".")
    assert "engine text" not in response.text
    details: dict[str, Any] = body["error"]["details"]
    return details


def check_security_headers(response: Any) -> None:
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


BOTH = pytest.mark.parametrize("operation", ["validate", "consume"])


@BOTH
def test_signed_call_gets_200(client: Client, operation: str) -> None:
    client.adapter.granted = TEN_OFF
    response = client.post(operation)
    assert (response.status_code, set(response.json())) == (200, {SUBJECT[operation]})
    assert response.headers["content-type"] == "application/json"
    check_security_headers(response)
    assert "server" not in response.headers


@BOTH
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"\xff", ""),
        (b'{"id": 1, "id": 2}', "/id"),
        ({"id": "c"}, ""),
        ({"order_items": [{"quantity": 1, "price": "1"}]}, "/order_items/0/sku"),
        ({"order_items": [{"sku": "S", "price": "1"}]}, "/order_items/0/quantity"),
        ({"order_items": [{"sku": "S", "quantity": 1}]}, "/order_items/0/price"),
        ({"order_items": [{"sku": "S", "quantity": 1, "price": "1e3"}]}, "/order_items/0/price"),
    ],
)
def test_400_names_the_pointer(client: Client, operation: str, body: object, pointer: str) -> None:
    details = check_error(client.post(operation, body), operation, 400, "invalid_request")
    assert details == {"pointer": pointer}
    assert client.wire.sent == []


@BOTH
def test_401_is_identical_for_every_signature_fault(client: Client, operation: str) -> None:
    data, _ = signed(BODIES[operation])
    wrong: list[list[tuple[str, str]]] = [
        [],
        [("x-nacelle-signature-sha256", "0" * 64)],
        [("x-nacelle-signature-sha256", "sha256=")],
        [("x-nacelle-signature-sha256", "\u00ff" * 64)],
        [("x-nacelle-signature-sha256", "0" * 64)] * 2,
    ]
    answers = set()
    for headers in wrong:
        for body in (data, b"{ not json"):
            raw = [(k.encode(), v.encode("latin-1")) for k, v in [*headers, ("content-type", "application/json")]]
            response = client.http.post(f"/promotions/{operation}", content=body, headers=raw)
            assert check_error(response, operation, 401, "signature") == {}
            answers.add(response.content)
    assert len(answers) == 1


@BOTH
def test_other_space_id_gets_403(operation: str) -> None:
    client = Client(NACELLE_SPACE_IDS="one,two")
    with client.http:
        assert client.post(operation, x_nacelle_space_id="two").status_code == 200
        check_error(client.post(operation, x_nacelle_space_id="three"), operation, 403, "forbidden")
        check_error(client.post(operation), operation, 403, "forbidden")


def test_forged_receipt_gets_403_at_consume_only(client: Client) -> None:
    validated = client.post("validate", {**BODIES["validate"], "promotions": {}}).json()["checkout"]
    note = validated["promotions"]["meta"]["mapper"] | {"session": "another's"}
    forged = {"promotions": {"meta": {"mapper": note}}}
    check_error(client.post("consume", {**BODIES["consume"], **forged}), "consume", 403, "forbidden")
    assert client.post("validate", {**BODIES["validate"], **forged}).status_code == 200


def test_cancel_is_off_by_default_and_repeatable(client: Client) -> None:
    assert client.post("cancel", {"cancel": {"id": "c-1"}}).status_code == 404
    secret = "the secret that cancels are signed with"
    client = Client(MAPPER_CANCEL_SECRETS=secret)
    with client.http:
        order = client.post("consume").json()
        data, sent = signed_with(secret.encode(), {"cancel": {"id": order["order"]["id"]}})
        headers = [(name.decode(), value.decode()) for name, value in sent]
        for _ in range(2):
            response = client.http.post("/promotions/cancel", content=data, headers=headers)
            assert (response.status_code, response.json()) == (200, order)
        check_error(client.post("cancel", {"cancel": {"id": "c-1"}}), "consume", 401, "signature")
        check_error(client.post("consume"), "consume", 400, "order_mismatch")


@BOTH
@pytest.mark.parametrize(
    ("locale", "accepted", "sentence"),
    [
        ({}, "", "This code has expired."),
        ({}, "it, fr;q=0.5, de;q=0.8", "Dieser Code ist abgelaufen."),
        ({"locale": "es-MX"}, "de", "Este código ha caducado."),
        ({"locale": "it"}, "", "This code has expired."),
    ],
)
def test_rejection_message_is_in_the_shoppers_language(
    operation: str, locale: dict[str, str], accepted: str, sentence: str
) -> None:
    for policy in ("refuse", "apply_rest"):
        client = Client(MAPPER_ON_REJECTED=policy)
        client.adapter.granted = Outcome(rejected=(Rejection("XMAS", Reason.EXPIRED, "CouponExpired"),))
        body = {**BODIES[operation], "promotions": {"coupon_codes": ["XMAS"]}, **locale}
        with client.http:
            answer = client.post(operation, body, accept_language=accepted).json()
        if policy == "refuse":
            assert answer["error"]["details"]["codes"][0]["message"] == sentence
        elif operation == "validate":
            assert answer["checkout"]["promotions"]["meta"]["mapper"]["rejected"][0]["message"] == sentence


@pytest.mark.parametrize(("operation", "status"), [("validate", 422), ("consume", 500)])
def test_refused_code_is_named_with_its_reason(client: Client, operation: str, status: int) -> None:
    client.adapter.granted = Outcome(rejected=(Rejection("XMAS", Reason.EXPIRED, "CouponExpired"),))
    body = {**BODIES[operation], "promotions": {"coupon_codes": ["XMAS"]}}
    details = check_error(client.post(operation, body), operation, status, "promotion_codes")
    assert details == {
        "invalid-code": "XMAS",
        "codes": [
            {"code": "XMAS", "reason": "expired", "engine_reason": "CouponExpired", "message": "This code has expired."}
        ],
    }


@pytest.mark.parametrize(("operation", "status"), [("validate", 422), ("consume", 500)])
@pytest.mark.parametrize(
    ("failure", "category"),
    [
        (NotSent("connect"), "engine_unavailable"),
        (Unknown("timeout"), "engine_unavailable"),
        (Unknown("reset"), "engine_unavailable"),
        (429, "engine_unavailable"),
        (500, "engine_unavailable"),
        (503, "engine_unavailable"),
        (302, "engine_unavailable"),
    ],
)
def test_engine_failure_has_status_category_and_reason(
    client: Client, operation: str, status: int, failure: int | Exception, category: str
) -> None:
    client.wire.script = {"validate": [failure] * 9, "check": [failure] * 9}
    details = check_error(client.post(operation), operation, status, category)
    assert details["reason"]


@pytest.mark.parametrize(("operation", "status"), [("validate", 422), ("consume", 500)])
def test_engine_rejected_answer_hides_keys_and_settings(client: Client, operation: str, status: int) -> None:
    refusal = EngineRejected(
        "The engine does not accept the key.", reason="engine_key", engine_pointers=["/attributes"]
    )
    client.wire.script = {"validate": [refusal], "check": [refusal]}
    details = check_error(client.post(operation), operation, status, "engine_rejected")
    assert details == {"reason": "configuration"}, "keys and settings are for the log"


def test_same_order_with_other_content_gets_400(client: Client) -> None:
    client.adapter.on_redeem = OrderMismatch("This order was redeemed with other content.", reason="order_mismatch")
    client.wire.script = {"redeem": [400]}
    check_error(client.post("consume"), "consume", 400, "order_mismatch")


def test_unknown_outcome_gets_outcome_pending_with_retry_after() -> None:
    client = Client(MAPPER_CONSUME_DEADLINE_MS="500")
    with client.http:
        client.wire.script = {"redeem": [Unknown("timeout")]}
        response = client.post("consume")
        check_error(response, "consume", 500, "outcome_pending")
        assert response.headers["retry-after"] == "60", "the rest of the quarantine"


def test_refused_drift_gets_amount_mismatch() -> None:
    client = Client(MAPPER_ON_DRIFT="refuse")
    with client.http:
        client.adapter.granted = TEN_OFF
        check_error(client.post("consume"), "consume", 500, "amount_mismatch")


@pytest.mark.parametrize(
    ("operation", "environment", "status"),
    [("validate", {}, 422), ("consume", {}, 500), ("validate", {"MAPPER_OVERLOAD_STATUS": "503"}, 503)],
)
def test_full_service_gets_overloaded_with_retry_after(
    operation: str, environment: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limiter, "_would_wait_too_long", lambda *_: True)
    client = Client(**environment)
    with client.http:
        response = client.post(operation)
        check_error(response, operation, status, "overloaded")
        assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(("operation", "status"), [("validate", 422), ("consume", 500)])
def test_internal_error_names_only_the_request_id(
    client: Client, operation: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_nobody(operation: str, session: str, *, repeatable: bool) -> EngineRequest:
        return EngineRequest(
            operation=operation, method="POST", path="/x", account="nobody", effect="none", repeatable=repeatable
        )

    monkeypatch.setattr(client.adapter, "_request", to_nobody)
    response = client.post(operation, x_request_id="req-7")
    check_error(response, operation, status, "internal")
    assert "req-7" in response.json()["error"]["error"]
    assert response.headers["x-request-id"] == "req-7"
    assert "Traceback" not in response.text


def test_every_category_has_a_status_nacelle_accepts() -> None:
    for validate, consume in STATUS.values():
        assert validate in (400, 401, 403, 422, 500)
        assert consume in (400, 401, 403, 500)


# -- Other requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/promotions/validate", 405),
        ("PUT", "/promotions/consume", 405),
        ("DELETE", "/promotions/consume", 405),
        ("POST", "/promotions/validate/", 404),
        ("POST", "//promotions/validate", 404),
        ("POST", "/promotions/..%2fvalidate", 404),
        ("POST", "/", 404),
        ("POST", "/livez", 405),
    ],
)
def test_other_paths_and_methods_get_an_error(client: Client, method: str, path: str, status: int) -> None:
    response = client.http.request(method, f"http://testserver{path}")
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    check_security_headers(response)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "application/json; charset=utf-8"}, 200),
        ({"content_type": 'application/json;charset="UTF-8"'}, 200),
        ({"content_type": "application/vnd.nacelle+json"}, 200),
        ({"content_type": "application/json;"}, 200),
        ({"content_type": "application/json ; odata=verbose;charset=us-ascii"}, 200),
        ({"content_type": "application/json; odata=verbose; charset=latin1"}, 415),
        ({"content_type": "application/json, text/plain"}, 415),
        ({"content_encoding": ""}, 200),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/json; charset=utf-16"}, 415),
        ({"content_type": ""}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"content_encoding": "identity"}, 200),
    ],
)
def test_media_type_is_checked(client: Client, headers: dict[str, str], status: int) -> None:
    data, sent = signed(CHECKOUT)
    named = {k.decode(): v.decode() for k, v in sent} | {k.replace("_", "-"): v for k, v in headers.items()}
    response = client.http.post("/promotions/validate", content=data, headers=named)
    assert response.status_code == status
    check_security_headers(response)


def test_first_of_repeated_headers_is_used(client: Client) -> None:
    data, sent = signed(CHECKOUT)
    headers = [(k.decode(), v.decode()) for k, v in sent]
    for first, second, status in (("identity", "gzip", 200), ("gzip", "identity", 415)):
        doubled = [*headers, ("content-encoding", first), ("content-encoding", second)]
        assert client.http.post("/promotions/validate", content=data, headers=doubled).status_code == status


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_gets_413(chunked: bool) -> None:
    client = Client(MAPPER_MAX_BODY_BYTES="2000")
    with client.http:
        for size, status in ((2000, 200), (2001, 413)):
            body = json.dumps({**CHECKOUT, "x": ""}).encode()
            body = body[:-2] + b"x" * (size - len(body)) + body[-2:]
            data, sent = signed(body)
            headers = [(k.decode(), v.decode()) for k, v in sent]
            content: Any = iter([data[:1000], data[1000:]]) if chunked else data
            response = client.http.post("/promotions/validate", content=content, headers=headers)
            assert (response.status_code, len(data)) == (status, size)
            check_security_headers(response)


# -- Operator routes -----------------------------------------------------------------------------------------------


READY = {"validate": True, "consume": True, "why": None}


def test_operator_routes_answer(client: Client) -> None:
    assert client.http.get("/livez").json() == {"status": "alive"}
    assert client.http.get("/readyz").json() == READY
    about = client.http.get("/version").json()
    assert (about["engine"], about["contract"]) == ("fake", 1)
    assert (about["capabilities"]["undo"], about["capabilities"]["currencies"]) == (True, "many")


def test_readyz_without_ledger_serves_validate_but_not_consume(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pings = 0

    async def full(*_: Any) -> None:
        nonlocal pings
        pings += 1
        raise LedgerUnavailable("full")

    monkeypatch.setattr(readiness, "CHECK_EVERY_S", 0.01)
    with Client().http as http:
        monkeypatch.setattr(Ledger, "ping", full)
        until = time.monotonic() + 5
        while (response := http.get("/readyz")).json() == READY:
            assert time.monotonic() < until
        without = {"validate": True, "consume": False, "why": "ledger_full"}
        assert (response.status_code, response.json()) == (200, without)
        consume = http.get("/readyz?for=consume")
        assert (consume.status_code, consume.json()) == (503, without)
        monkeypatch.setattr(readiness, "CHECK_EVERY_S", 60)
        time.sleep(0.1)
        seen = pings
        for _ in range(20):
            http.get("/readyz")
        assert pings == seen, "a probe never touches the ledger"


def test_readyz_answers_while_the_ledger_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(readiness, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(Ledger, "ping", hang)
    with Client().http as http:
        response = http.get("/readyz")
        assert (response.status_code, response.json()["why"]) == (200, "ledger_hangs")
        assert http.get("/readyz?for=consume").status_code == 503


OPERATORS = ("/livez", "/readyz", "/version", "/metrics", "/openapi.json")


def test_operator_routes_can_have_their_own_port() -> None:
    made = Client(MAPPER_ADMIN_PORT="9090")
    admin = TestClient(made.http.app, base_url="http://testserver:9090")
    with made.http:
        assert {made.http.get(route).status_code for route in OPERATORS} == {404}
        assert {admin.get(route).status_code for route in OPERATORS} == {200}
        assert made.post("validate").status_code == 200
        made.http = admin
        missing = made.post("validate")
        assert missing.status_code == 404
        check_security_headers(missing)


def test_metrics_count_requests_by_reason(client: Client) -> None:
    client.adapter.granted = TEN_OFF
    client.post("validate")
    client.post("validate", b"{")
    text = client.http.get("/metrics").text
    assert 'mapper_requests_total{category="ok",operation="validate",reason="ok",status="200"} 1.0' in text
    assert (
        'mapper_requests_total{category="invalid_request",operation="validate",reason="not_json",status="400"} 1.0'
        in text
    )
    assert 'mapper_engine_calls_total{engine="fake",operation="validate",result="200"} 1.0' in text


def test_open_breaker_stops_validate_but_not_consume(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    gauge = 'mapper_engine_breaker{account=""} '
    assert gauge + "0.0" in client.http.get("/metrics").text
    client.wire.script = {"validate": [503] * 99, "check": [503] * 99}
    for _ in range(30):
        client.post("validate")
    asked = client.wire.sent.count("validate")
    assert 20 <= asked < 30
    details = check_error(client.post("validate"), "validate", 422, "engine_unavailable")
    assert details["reason"] == "breaker_open"
    assert client.wire.sent.count("validate") == asked
    assert gauge + "1.0" in client.http.get("/metrics").text
    (line,) = [record.__dict__["facts"] for record in caplog.records if record.message == "circuit breaker"]
    assert line == {"account": "", "state": "open"}
    client.post("consume")
    assert "check" in client.wire.sent


def test_request_log_line_has_facts_and_no_secret(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client.adapter.granted = Outcome(rejected=(Rejection("SECRETCODE", Reason.EXPIRED, "CouponExpired"),))
    body = {**CHECKOUT, "promotions": {"coupon_codes": ["SECRETCODE"]}}
    client.post("validate", body, x_request_id="bad\nid", promotions="x")
    (line,) = [record for record in caplog.records if record.message == "request"]
    facts = line.__dict__["facts"]
    short = CodeNames("hash", SECRET)("SECRETCODE")
    assert (facts["status"], facts["reason"], facts["rejected"]) == (
        422,
        "expired",
        [{"code": short, "reason": "expired", "engine_reason": "CouponExpired"}],
    )
    assert "bad" not in facts["request_id"]
    assert not any("SECRETCODE" in str(record.__dict__) for record in caplog.records)


def test_done_order_is_counted_in_metrics() -> None:
    client = Client()
    with client.http:
        assert client.post("consume").status_code == 200
        until = time.monotonic() + 30
        while 'mapper_ledger_orders{state="DONE"} 1.0' not in client.http.get("/metrics").text:
            assert time.monotonic() < until, "it was never counted"
            time.sleep(0.05)
