"""Each price is discounted at most once in full, under all names that Talon.One has for it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.domain import discounts
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Allocation
from tests.adapters.talon_one.talk import effect, outcome, parse

OPTIONS = {"ADDITIONAL_COSTS": "shipping=/shipping,handling=/handling", "ITEM_ADDITIONAL_COSTS": "shipping=/shipping"}


def checkout(*lines: tuple[int, str, str | None], **costs: str) -> Checkout:
    """A checkout of these lines: quantity, price, shipping of the line."""
    items = [{"sku": "A", "quantity": q, "price": price, "shipping": own} for q, price, own in lines]
    return parse({"items": items, **costs})


def granted(cart: Checkout, *effects: tuple[str, dict[str, Any]]) -> Allocation:
    named = [effect(kind, {"name": "Off", **props}, campaign=number) for number, (kind, props) in enumerate(effects)]
    return discounts.allocate(cart, outcome(cart, named, **OPTIONS))


def per_item(value: Any, scope: str, position: int = 0) -> tuple[str, dict[str, Any]]:
    return "setDiscountPerItem", {"value": value, "scope": scope, "position": position}


def own_cost(value: Any, position: int = 0) -> tuple[str, dict[str, Any]]:
    return "setDiscountPerAdditionalCostPerItem", {"value": value, "additionalCost": "shipping", "position": position}


def cost(value: Any, name: str) -> tuple[str, dict[str, Any]]:
    return "setDiscountPerAdditionalCost", {"value": value, "additionalCost": name, "additionalCostId": 1}


def whole(value: Any, scope: str) -> tuple[str, dict[str, Any]]:
    return "setDiscount", {"value": value, "scope": scope}


@pytest.mark.parametrize(
    ("cart", "effects", "total"),
    [
        (checkout((1, "20.00", "5.00")), [own_cost(5), per_item(5, "additionalCosts")], 500),
        (checkout((1, "20.00", "5.00")), [own_cost(3), per_item(1, "additionalCosts")], 400),
        (checkout((1, "50.00", None), shipping="15.00"), [whole(60, "cartItems")], 5000),
        (checkout((1, "50.00", None), shipping="15.00"), [whole(60, "sessionTotal")], 6000),
        (checkout((1, "50.00", None), shipping="15.00"), [whole(20, "additionalCosts"), cost(15, "shipping")], 1500),
        (checkout((1, "20.00", "5.00"), shipping="4.00"),
         [whole(9, "additionalCosts"), own_cost(5), cost(4, "shipping")], 900),
        (checkout((1, "20.00", None)), [per_item(5, "additionalCosts"), per_item(25, "price")], 2000),
        (checkout((1, "20.00", "5.00")), [per_item(25, "itemTotal"), per_item(20, "price"), own_cost(5)], 2500),
        (checkout((2, "20.00", "5.00")), [per_item(50, "itemTotal")], 5000),
    ],
)  # fmt: skip
def test_discounts_never_exceed_the_price(cart: Checkout, effects: list[Any], total: int) -> None:
    assert granted(cart, *effects).total == total
    assert granted(cart, *effects[::-1]).total == total


values = st.integers(1, 8)
some_effects = st.lists(
    st.one_of(
        st.builds(per_item, values, st.sampled_from(["price", "additionalCosts", "itemTotal"]), st.integers(0, 1)),
        st.builds(own_cost, values, st.integers(0, 1)),
        st.builds(cost, values, st.sampled_from(["shipping", "handling"])),
        st.builds(whole, values, st.sampled_from(["cartItems", "additionalCosts", "sessionTotal"])),
    ),
    max_size=8,
)
prices = st.sampled_from(["1.00", "3.00", "9.00"])
own_costs = st.one_of(st.none(), prices)
carts = st.builds(
    checkout,
    st.tuples(st.integers(1, 2), prices, own_costs),
    st.tuples(st.integers(1, 2), prices, own_costs),
    shipping=prices,
    handling=prices,
)


@settings(max_examples=300, deadline=None)
@given(carts, some_effects)
def test_discounts_of_each_price_are_capped_for_any_effects(cart: Checkout, effects: list[Any]) -> None:
    settled = granted(cart, *effects)
    goods = sum(line.gross for line in cart.lines)
    of_lines = [line.quantity * (cart.amount_at("/shipping", line) or 0) for line in cart.lines]
    order = {name: cart.amount_at(f"/{name}") or 0 for name in ("shipping", "handling")}

    def off(**meta: Any) -> int:
        return sum(one.amount for one in settled.root if all(one.meta.get(key) == value for key, value in meta.items()))

    assert all(settled.line_total(line.index) <= line.gross for line in cart.lines)
    assert settled.total <= goods + sum(of_lines) + sum(order.values())
    assert sum(settled.line_totals.values()) + off(scope="cartItems") <= goods
    for position, own in enumerate(of_lines):
        assert off(position=position) <= own
    for name, price in order.items():
        assert off(additionalCost=name, position=None) <= price
    of_costs = off(scope="additionalCosts") + off(scope="itemTotal") + off(additionalCost="shipping")
    assert of_costs + off(additionalCost="handling") <= sum(of_lines) + sum(order.values())


@settings(max_examples=200, deadline=None)
@given(some_effects)
def test_discounts_below_the_price_are_not_capped(effects: list[Any]) -> None:
    cart = checkout((1, "99.00", "99.00"), (1, "99.00", "99.00"), shipping="99.00", handling="99.00")
    settled = granted(cart, *effects)
    assert (settled.total, settled.clamped) == (100 * sum(props["value"] for _, props in effects), 0)


def test_cost_with_two_names_is_discounted_once() -> None:
    options = {"ADDITIONAL_COSTS": "shipping=/shipping,express=/shipping", "ITEM_ADDITIONAL_COSTS": "a=/box,b=/box"}
    cart = parse({"items": [{"sku": "A", "quantity": 2, "price": "20.00", "box": "1.00"}], "shipping": "15.00"})
    of_line = {"name": "Off", "value": 2, "position": 0}
    on_line = [("setDiscountPerAdditionalCostPerItem", {**of_line, "additionalCost": name}) for name in "ab"]
    kinds = [cost(10, "shipping"), cost(10, "express"), *on_line]
    effects = [effect(*kind, campaign=number) for number, kind in enumerate(kinds)]
    found = discounts.allocate(cart, outcome(cart, effects, **options))
    assert [each.amount for each in found.root] == [1000, 500, 200]
    assert [each.meta["additionalCost"] for each in found.root] == ["shipping", "express", "a"]
    all_off = discounts.allocate(cart, outcome(cart, [effect(*whole(99, "sessionTotal"))], **options))
    assert all_off.total == 5700
