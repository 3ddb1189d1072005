"""The whole journey through Nacelle with both engines and both stores: the shopper pays the amount shown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import journey as module
from mapper.commands.journey import CODE, ENGINES, Connection, Journey, Unexpected, World, cost
from mapper.nacelle.convert import order_of
from tests.orders.ledgers import STORES, Home


@pytest.fixture(params=STORES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with World({engine: Home(request.param, tmp_path).url for engine in ENGINES}) as running:
        yield running


@pytest.mark.parametrize("engine", ENGINES)
def test_journey_has_the_expected_results(world: World, engine: str) -> None:
    journey = world.journey(engine)
    steps = list(journey.run())
    assert [step.result for step in steps[1:3]] == ["155.00 to 105.00", "295.00 to 210.00"]
    assert cost(journey.after) == journey.shown["1001"] == 210_00
    assert all(exchange.call.startswith("POST http://127.0.0.1:") for step in steps for exchange in step.exchanges)
    books = world.control("books")
    assert [order["id"] for order in books["nacelle"]["orders"]] == ["1001", "1002"]
    assert {delivery["space"] for delivery in books["nacelle"]["deliveries"]} == {module.space_of(engine)}


def until(journey: Journey, title: str) -> Iterator[module.Step]:
    """Runs the steps up to the one whose title starts with `title`; the iterator continues after it."""
    steps = journey.run()
    for step in steps:
        if step.title.startswith(title):
            return steps
    raise AssertionError(title)


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[World]:
    with World({"talon_one": f"sqlite:///{tmp_path}/ledger.db"}) as running:
        yield running


def test_journey_detects_a_wrong_amount(small_world: World) -> None:
    journey = small_world.journey("talon_one")
    rest = until(journey, "Again")
    journey.shown["1002"] += 1
    with pytest.raises(Unexpected, match="shown was"):
        list(rest)


def test_journey_detects_an_extra_redemption(small_world: World) -> None:
    journey = small_world.journey("talon_one")
    rest = until(journey, "1st order")
    checkout = journey._validated({**module.CHECKOUT, "id": "1003"})
    journey.shown["1003"] = cost(checkout)
    assert journey._nacelle("api/v1/multiorders", journey._order(checkout)).status == 201
    with pytest.raises(Unexpected, match=rf"books say .*{CODE}"):
        list(rest)


def test_journey_detects_wrong_prices(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dearer = {**module.CHECKOUT, "items": [{**module.CHECKOUT["items"][0], "price": "150.00"}]}
    monkeypatch.setattr(module, "CHECKOUT", dearer)
    with pytest.raises(Unexpected, match="the prices are"):
        list(small_world.journey("talon_one").run())


MULTI = {"billing_address": {"city": "B"}, "email": "a@b.c", "price": "1", "subtotal": "1", "tax_amount": "0"}


@pytest.mark.parametrize(
    ("family", "lines_at"), [("A", ("items",)), ("B", ("order_items",)), ("C", ("orders", 0, "order_items"))]
)
def test_each_family_has_the_same_price_and_one_redemption(
    tmp_path: Path, family: str, lines_at: tuple[str | int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shop uses the mapper page's names; Nacelle calls the mapper with others, and passes its answer on."""
    pointer = "/orders/*/shipping_rate/price" if family == "C" else "/shipping_rate/price"
    costs = {"TALON_ONE_ADDITIONAL_COSTS": f"shipping={pointer}"}
    monkeypatch.setitem(ENGINES, "talon_one", Connection({**ENGINES["talon_one"].settings, **costs}, "close"))
    with World({"talon_one": f"sqlite:///{tmp_path}/ledger.db"}) as world:
        world.connect(family=family)
        journey = world.journey("talon_one")
        journey._get_token()
        checkout = journey._validated(module.CHECKOUT)
        lines: Any = checkout
        for key in lines_at:
            lines = lines[key]
        assert (lines[0].get("price") or lines[0]["price_amount"]) == "105.00"
        assert "50.00" in (checkout.get("total_discount"), checkout.get("discounts"))
        world.connect(family="as_sent" if family == "A" else family, deliveries=2)
        paid = {"checkout": {**checkout, **MULTI} if family == "C" else checkout, "payments": [{"id": "p"}]}
        order = json.loads(order_of(json.dumps(paid).encode()).body)
        answer = journey._nacelle("api/v1/multiorders", order)
        assert (answer.status, journey._redeemed(CODE)) == (201, 1), answer.answer
        assert journey._orders()[0]["order"] == order


@pytest.mark.parametrize("engine", ENGINES)
def test_several_orders_can_be_separate_carts(tmp_path: Path, engine: str) -> None:
    line, rate = {"sku": "SKU1234", "quantity": 1, "price": "140.00"}, {"shipping_rate": {"price": "15.00"}}
    cart = {
        "id": "1001",
        "currency": "USD",
        "orders": [{"order_items": [line], **rate}, {"order_items": [line | {"quantity": 2}], **rate}],
        "promotion": {"coupon_codes": [CODE]},
    }
    with World({engine: f"sqlite:///{tmp_path}/ledger.db"}) as world:
        world.connect(several="each_order", deliveries=2)
        journey = world.journey(engine)
        journey._get_token()
        checkout = journey._nacelle("api/v1/multicart/validate", cart).answer
        assert [order["discounts"] for order in checkout["orders"]] == ["50.00", "85.00"]
        answer = journey._nacelle("api/v1/multiorders", {**checkout, **MULTI, "payments": [{"id": "p"}]})
        # Delivered twice, redeemed once; both orders have the code, so it counts twice.
        assert (answer.status, journey._redeemed(CODE)) == (201, 2), answer.answer
