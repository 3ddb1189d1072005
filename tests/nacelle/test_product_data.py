"""Product data in the service: a line without a category gets it from Nacelle or a file, the same at consume."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mapper import settings
from mapper.commands import cli
from mapper.domain import signature
from mapper.http import app
from mapper.nacelle import products
from mapper.sandbox import host, rulebook
from mapper.sandbox.nacelle import NacelleSandbox
from mapper.sandbox.storefront import Storefront, default_products
from tests.nacelle.nacelle import Answer, send
from tests.orders.ledgers import STORES, Home

SECRET = "of-the-tests-and-long-enough"
CODE = "SHOES-10"
LINE = {"product_id": "nacelle-product-1", "sku": "SHOE-42", "quantity": 1, "price": "100.00"}
"""The code needs its category, which only Nacelle knows."""


class Shop:
    """A sandbox, and services connected to it that share a ledger."""

    def __init__(self, url: str, nacelle: NacelleSandbox, ledger: str) -> None:
        self.url, self.nacelle, self.ledger = url, nacelle, ledger

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "MAPPER_ENGINE": "talon_one",
            "NACELLE_SIGNING_SECRETS": SECRET,
            "NACELLE_SPACE_IDS": "sandbox",
            "TALON_ONE_BASE_URL": f"{self.url}/talon_one",
            "TALON_ONE_API_KEY": "any",
            "TALON_ONE_ITEM_ATTRIBUTES": "vendor=/vendor",
            "MAPPER_LEDGER_URL": self.ledger,
            "MAPPER_PRODUCT_DATA": "nacelle",
            "MAPPER_VALIDATE_DEADLINE_MS": "20000",
            "NACELLE_STOREFRONT_URL": f"{self.url}/nacelle/graphql/v1/spaces",
            **more,
        }

    @contextmanager
    def service(self, **more: str) -> Iterator[str]:
        with host.running(app.create(settings.load(self.environment(**more)))) as url:
            yield url

    def faults(self, *faults: Mapping[str, object]) -> None:
        assert send(f"{self.url}/_sandbox/faults", list(faults)).status == 200

    def redeemed(self) -> int:
        return int(send(f"{self.url}/_sandbox/books").json["talon_one"]["codes"].get(CODE, 0))

    def item(self) -> Any:
        """The last cart item sent to the engine."""
        requests = send(f"{self.url}/_sandbox/requests").json["requests"]
        bodies = [json.loads(each["body"]) for each in requests if each["engine"] == "talon_one" and each["body"]]
        return bodies[-1]["customerSession"]["cartItems"][0]


@pytest.fixture(params=STORES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    sandbox = host.create()
    with host.running(sandbox) as url:
        yield Shop(url, sandbox.state.sandbox.nacelle, Home(request.param, tmp_path).url)


@pytest.fixture(autouse=True)
def long_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a busy machine does not fail the tests. The one that needs the real limits undoes it."""
    monkeypatch.setattr(products, "BUDGET_S", 10.0)
    monkeypatch.setattr(products, "WRITE_WAIT_S", 10.0)


def call(url: str, operation: str, body: object) -> Answer:
    data = json.dumps(body).encode()
    headers = {signature.SIGNATURE.decode(): signature.sign(data, SECRET.encode())}
    return send(f"{url}/promotions/{operation}", data, headers)


def cart(line: Mapping[str, object] = LINE) -> dict[str, Any]:
    return {"id": "o-1", "currency": "USD", "order_items": [line], "promotions": {"coupon_codes": [CODE]}}


def notices(document: Any) -> list[str]:
    return [notice["type"] for notice in document["promotions"]["meta"]["mapper"]["notices"]]


def test_line_without_category_gets_it_from_nacelle(shop: Shop) -> None:
    with shop.service() as url:
        answer = call(url, "validate", cart())
        assert (answer.status, answer.json["checkout"]["order_items"][0]["price"]) == (200, "90.00")
        item = shop.item()
        assert (item["category"], item["name"], item["weight"]) == ("shoes", "Winter boot", 1200)
        assert item["attributes"] == {"vendor": "Berliner Schuh"}
        assert answer.json["checkout"]["order_items"][0].keys() == {*LINE, "discounts", "applied_discounts"}
        assert 'mapper_products_total{fate="read"} 1.0' in send(f"{url}/metrics").body.decode()
        # The line's own category wins.
        assert call(url, "validate", cart({**LINE, "category": "boots"})).status == 422
        assert shop.item()["category"] == "boots"
    with shop.service(MAPPER_PRODUCT_DATA="off") as url:
        assert call(url, "validate", cart()).status == 422


def test_consume_uses_product_data_from_validate_after_restart(shop: Shop) -> None:
    with shop.service() as url:
        order = call(url, "validate", cart()).json["checkout"]
    shop.nacelle._storefront = Storefront([])
    with shop.service() as url:
        assert call(url, "consume", order).json == {"order": order}
    assert (shop.redeemed(), shop.item()["category"]) == (1, "shoes")


def test_consume_uses_product_data_of_its_own_validate(shop: Shop) -> None:
    with shop.service() as first:
        order = call(first, "validate", cart()).json["checkout"]
        shop.nacelle._storefront = Storefront({**one, "productType": "boots"} for one in default_products())
        with shop.service() as second:
            # Another shopper at another worker: the code is for shoes, and the product soon becomes boots.
            give_up = time.monotonic() + 20
            while call(second, "validate", {**cart(), "id": "o-2"}).status != 422:
                assert time.monotonic() < give_up
            assert shop.item()["category"] == "boots"
            assert call(second, "consume", order).json == {"order": order}
    assert (shop.redeemed(), shop.item()["category"]) == (1, "shoes")


@pytest.mark.parametrize("fault", ["status", "hang"])
def test_product_data_that_cannot_be_read_gives_a_notice(
    shop: Shop, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real time limits
    shop.faults({"name": fault, "engine": "nacelle"})
    with shop.service(MAPPER_ON_REJECTED="apply_rest") as url:
        began = time.monotonic()
        checkout = call(url, "validate", cart()).json["checkout"]
        assert time.monotonic() - began < 1.5
        assert (checkout["order_items"][0]["price"], notices(checkout)) == ("100.00", ["product_data_missing"])
        order = call(url, "consume", checkout).json["order"]
        assert "product_data_missing" in notices(order)
        assert 'mapper_products_total{fate="failed"} 2.0' in send(f"{url}/metrics").body.decode()


def test_order_redeemed_in_background_uses_product_data(shop: Shop) -> None:
    with shop.service(MAPPER_AFTER_FAILURE="redeem_later", MAPPER_CONSUME_DEADLINE_MS="500") as url:
        order = call(url, "validate", cart()).json["checkout"]
        shop.faults({"name": "status", "engine": "talon_one"}, {"name": "close", "engine": "nacelle"})
        assert call(url, "consume", order).status == 500
        shop.faults({"name": "close", "engine": "nacelle"})
        give_up = time.monotonic() + 20
        while not shop.redeemed():
            assert time.monotonic() < give_up
            time.sleep(0.1)
        assert shop.item()["category"] == "shoes"
        assert call(url, "consume", order).json == {"order": order}


def test_explain_uses_product_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with host.running(host.create()) as url:
        shop = Shop(url, NacelleSandbox(rulebook.load(), host.Clock()), f"sqlite:///{tmp_path}/l.db")
        for name, value in shop.environment().items():
            monkeypatch.setenv(name, value)
        (tmp_path / "cart.json").write_text(json.dumps(cart()))
        with pytest.raises(SystemExit):
            cli.main(["explain", str(tmp_path / "cart.json")])
        assert (shop.item()["category"], shop.item()["name"]) == ("shoes", "Winter boot")


def test_product_data_can_come_from_a_file(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_text("sku,category,price\nSHOE-42,shoes,1.00\n")
    with shop.service(MAPPER_PRODUCT_DATA=str(file)) as url:
        answer = call(url, "validate", cart())
        assert answer.json["checkout"]["order_items"][0]["price"] == "90.00", "the line's own price is used"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"MAPPER_PRODUCT_DATA": "nowhere.csv"},
            "MAPPER_PRODUCT_DATA: expected off, nacelle, or a file that can be read",
        ),
        ({"NACELLE_STOREFRONT_URL": "http://example.org"}, "NACELLE_STOREFRONT_URL: expected an https:// URL"),
        ({"NACELLE_SPACE_IDS": ""}, "NOMS_SPACE_ID: expected the space whose products are read"),
        ({"NACELLE_STOREFRONT_TOKEN": "a b"}, "NACELLE_STOREFRONT_TOKEN: expected a value without white space"),
        ({"MAPPER_PRODUCT_DATA": "{file}"}, "MAPPER_PRODUCT_DATA: the file cannot be used: wrong.csv, line 2"),
    ],
)
def test_wrong_settings_stop_the_start_with_a_message(
    given: dict[str, str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "wrong.csv").write_text("sku,category\nA\n")
    shop = Shop("http://127.0.0.1:1", NacelleSandbox(rulebook.load(), host.Clock()), f"sqlite:///{tmp_path}/l.db")
    for name, value in shop.environment(**given).items():
        monkeypatch.setenv(name, value.format(file=tmp_path / "wrong.csv"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--port", "0"])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
