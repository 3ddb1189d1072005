"""`POST /orders/ingest`: access, answers, and that an order is created once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper import settings
from mapper.http import app
from mapper.ops.metrics import INGEST_FATES
from mapper.sandbox import host
from tests.nacelle.nacelle import Answer, send
from tests.orders.ledgers import STORES, Home

TOKEN = "the-merchants-own"
PAID = {
    "checkout": {
        "id": "c-1",
        "currency": "USD",
        "items": [{"sku": "A", "quantity": 2, "price": "9.50", "total_discount": "1.00", "discounts": []}],
        "total_discount": "1.00",
        "discounts": [],
    },
    "payments": [{"id": "p-1"}],
}
PAID["checkout"]["items"][0]["discounts"] = [{"amount": "1.00", "meta": {"list_price": "10.00"}}]  # type: ignore[index]


class Shop:
    def __init__(self, sandbox: str, service: str) -> None:
        self.sandbox, self.service = sandbox, service

    def ingest(self, body: object = PAID, *, token: str = TOKEN, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return send(f"{self.service}/orders/ingest", body, named, token=token, space="")

    def created(self) -> list[Any]:
        orders: list[Any] = send(f"{self.sandbox}/_sandbox/books").json["nacelle"]["ingested"]
        return orders

    def counted(self) -> dict[str, int]:
        text = send(f"{self.service}/metrics").body.decode()
        found = re.findall(r'^mapper_ingested_orders_total\{fate="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {fate: int(number) for fate, number in found}

    def faults(self, *faults: dict[str, object]) -> None:
        assert send(f"{self.sandbox}/_sandbox/faults", list(faults)).status == 200


def environment(sandbox: str, ledger: str) -> dict[str, str]:
    return {
        "MAPPER_ENGINE": "talon_one",
        "TALON_ONE_BASE_URL": f"{sandbox}/talon_one",
        "TALON_ONE_API_KEY": "any",
        "NACELLE_SIGNING_SECRETS": "a-secret-of-the-tests",
        "MAPPER_LEDGER_URL": ledger,
        "MAPPER_INGEST_TOKEN": TOKEN,
        "NOMS_BASE_URL": f"{sandbox}/nacelle/api/v1",
        "NOMS_TOKEN": "sandbox-token",
        "NOMS_SPACE_ID": "sandbox",
        "MAPPER_MAX_BODY_BYTES": "4096",
    }


@pytest.fixture(params=STORES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with host.running(host.create()) as sandbox:
        configured = settings.load(environment(sandbox, Home(request.param, tmp_path).url))
        with host.running(app.create(configured)) as service:
            yield Shop(sandbox, service)


def test_order_is_created_once_and_gets_nacelles_answer(shop: Shop) -> None:
    answer = shop.ingest()
    (created,) = shop.created()
    order = answer.json["order"]
    assert (answer.status, order["id"], order["state"], order["again"]) == (200, "c-1", "created", False)
    assert order["answer"] == created["order"]
    assert created["order"]["order_items"][0]["price_amount"] == "9.50"
    assert shop.ingest().json == {"order": order | {"again": True}}
    assert shop.ingest({**PAID, "note": 1}).status == 409
    assert len(shop.created()) == 1


def test_invalid_order_gets_400_with_pointers_and_is_not_sent(shop: Shop) -> None:
    wrong = {"order_items": [{"sku": "A", "quantity": -1, "price_amount": "x"}], "currency": "USD"}
    answer = shop.ingest(wrong)
    assert answer.status == 400
    assert {fault["pointer"] for fault in answer.json["faults"]} >= {
        "/payments",
        "/order_items/0/quantity",
        "/order_items/0/price_amount",
    }
    assert shop.ingest(b"{").json["faults"][0]["pointer"] == ""
    assert shop.created() == []


def test_metrics_count_each_fate_of_an_order(shop: Shop) -> None:
    assert shop.counted() == dict.fromkeys(INGEST_FATES, 0)
    for body in (PAID, PAID, {**PAID, "note": 1}, {"currency": "USD"}):
        shop.ingest(body)
    shop.faults({"name": "close_after", "engine": "nacelle"})
    other = {**PAID, "checkout": {**PAID["checkout"], "id": "c-2"}}  # type: ignore[dict-item]
    for _ in range(2):
        shop.ingest(other)
    shop.ingest(token="")
    counted = {"created": 1, "again": 1, "other_content": 1, "no_order": 1, "unknown": 2}
    assert shop.counted() == dict.fromkeys(INGEST_FATES, 0) | counted


@pytest.mark.parametrize("token", ["", "x", "the-merchants-ow", "sandbox-token", "the-merchants-own-"])
def test_wrong_token_gets_401(shop: Shop, token: str) -> None:
    answer = shop.ingest(token=token)
    assert (answer.status, answer.json) == (401, {"error": "A bearer token is needed."})
    assert shop.ingest(token="", authorization=TOKEN).status == 401, "not a bearer token"
    assert shop.created() == []


def test_other_media_type_or_too_large_body_is_refused(shop: Shop) -> None:
    assert shop.ingest(content_type="text/plain").status == 415
    assert shop.ingest(content_encoding="gzip").status == 415
    assert shop.ingest({**PAID, "note": "x" * 5000}).status == 413
    assert send(f"{shop.service}/orders/ingest", token=TOKEN).status == 405
    assert shop.created() == []


def test_unknown_order_gets_502_and_is_not_resent(shop: Shop) -> None:
    shop.faults({"name": "close_after", "engine": "nacelle"})
    first = shop.ingest()
    shop.faults()
    assert (first.status, first.json["order"]["state"]) == (502, "unknown")
    assert shop.ingest().status == 502
    assert len(shop.created()) == 1


def test_order_refused_by_nacelle_gets_422_and_can_be_sent_again(shop: Shop) -> None:
    shop.faults({"name": "status", "value": 403, "engine": "nacelle", "count": 1})
    answer = shop.ingest()
    assert (answer.status, answer.json["order"]["reason"]) == (422, "token_or_space_refused")
    assert "sandbox-token" not in answer.body.decode()
    assert shop.ingest().status == 200


def test_route_is_off_without_a_token_setting(tmp_path: Path) -> None:
    given = environment("http://127.0.0.1:1", f"sqlite:///{tmp_path}/l.db")
    del given["MAPPER_INGEST_TOKEN"]
    with host.running(app.create(settings.load(given))) as service:
        assert send(f"{service}/orders/ingest", PAID, token=TOKEN).status == 404
