"""The page `/explain`: who has access, what it shows, and that it escapes input."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from mapper.domain.outcome import Discount, Notice, Outcome, Rejection
from mapper.domain.reasons import Reason
from mapper.http import app
from tests import fakes

TOKEN = "a token for the page"
CART = {
    "id": "c-1",
    "currency": "USD",
    "items": [{"sku": "A", "quantity": 3, "price": "10.00"}],
    "promotions": {"coupon_codes": ["<b>NOPE</b>"]},
}
GRANTED = Outcome(
    discounts=(
        Discount(name="Five off", description="", amount=500, effect_type="off", line=0, meta={"code": "FIVE"}),
        Discount(name="Far too much", description="", amount=9900, effect_type="off", line=0, meta={"n": 2}),
        Discount(name="Shipping", description="", amount=300, effect_type="ship", cost="shipping"),
    ),
    rejected=(Rejection("<b>NOPE</b>", Reason.EXPIRED, "CouponExpired"),),
    notices=(Notice("points", "You earn 3 points.", {"points": 3}),),
)


@pytest.fixture
def http() -> Iterator[TestClient]:
    adapter = fakes.FakeAdapter()
    adapter.granted = GRANTED
    configured = fakes.settings(
        adapter, MAPPER_EXPLAIN="on", MAPPER_EXPLAIN_TOKEN=TOKEN, MAPPER_LEDGER_URL=fakes.new_ledger()
    )
    with TestClient(app.create(configured, engine_transport=fakes.FakeTransport())) as client:
        yield client


def ask(http: TestClient, body: object = CART, token: str = TOKEN) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return http.post("/explain", data={"body": text, "token": token})


def test_explain_page_is_off_by_default() -> None:
    configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
    with TestClient(app.create(configured, engine_transport=fakes.FakeTransport())) as client:
        assert client.get("/explain").status_code == 404


def test_page_shows_every_amount_with_its_reason(http: TestClient) -> None:
    page = " ".join(ask(http).text.split())
    for text in (
        "Five off, code FIVE",
        "&minus;5.00",
        "Far too much",
        "(granted 99.00)",
        "&minus;25.00",
        "order: Shipping",
        "&minus;33.00",
        "74.00 was granted beyond what the things cost",
        "&lt;b&gt;NOPE&lt;/b&gt;",
        Reason.EXPIRED.message,
        "CouponExpired",
        "You earn 3 points.",
        "POST /validate",
    ):
        assert text in page, text
    assert "do not add up" not in page


def test_wrong_token_gets_403(http: TestClient) -> None:
    for token in ("", "another token for it"):
        response = ask(http, token=token)
        assert response.status_code == 403
        assert "Five off" not in response.text
    assert TOKEN not in ask(http).text


@pytest.mark.parametrize(
    ("body", "problem"),
    [("{", "not JSON"), ({"items": [{"sku": "A", "price": "1"}]}, "/items/0/quantity"), ("", "JSON")],
)
def test_invalid_body_gets_400_naming_the_place(http: TestClient, body: object, problem: str) -> None:
    response = ask(http, body)
    assert response.status_code == 400
    assert problem in response.text


def test_page_escapes_markup_in_input(http: TestClient) -> None:
    evil = "</textarea><script>alert(1)</script>"
    for response in (ask(http, evil), http.get("/explain", params={"example": evil})):
        assert "<script" not in response.text
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_page_loads_examples(http: TestClient) -> None:
    page = http.get("/explain", params={"example": "a code that does not exist"}).text
    assert "NOPE" in page
    assert http.get("/explain.css").headers["content-type"].startswith("text/css")
