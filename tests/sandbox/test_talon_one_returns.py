"""Talon.One's sandbox: returned units of a closed session."""

from collections import Counter

import pytest

from tests.sandbox.talon_one_shop import Json, Shop, cart, effect_counts, items, of


@pytest.mark.parametrize(
    ("returned", "expected", "left"),
    [
        ([{"position": 0, "quantity": 1}], {"rollbackDiscount 10 % off#0 6": 1}, 4),
        ([{"sku": "B", "quantity": 1}], {"rollbackDiscount 10 % off#1 2": 1}, 8),
        ([{"position": 1, "quantity": 2}], {"rollbackDiscount 10 % off#1 2": 2}, 6),
        (
            [{"position": 0}, {"position": 1, "quantity": 1}],
            {"rollbackDiscount 10 % off#0 6": 1, "rollbackDiscount 10 % off#1 2": 1},
            2,
        ),
    ],
)
def test_returned_units_roll_back_their_discounts(returned: list[Json], expected: Json, left: int) -> None:
    shop = Shop()
    shop.ok({"cartItems": items(("A", 1, 60), ("B", 2, 20)), "couponCodes": ["TEN-PERCENT"], "state": "closed"})
    status, reply = shop.give_back(*returned)
    assert (status, effect_counts(reply)) == (200, Counter(expected))
    # The code stays used and the other units keep their discount; a cancel rolls back the rest.
    assert shop.books["codes"]["TEN-PERCENT"] == 1
    assert shop.books["campaigns"]["10"] == {"redemptions": 1, "discount": left}
    status, reply = shop.put({"state": "cancelled"})
    assert sum(p["value"] for p in of(reply, "rollbackDiscount")) == left
    assert shop.books["campaigns"]["10"] == {"redemptions": 0, "discount": 0}


def test_last_units_of_a_line_are_returned_first_and_reduce_total_sales() -> None:
    shop = Shop()
    shop.ok(cart("TEN-PERCENT", quantity=4, price=10, profileId="joe", state="closed"))
    for count, units, left in ((1, [3], 30), (2, [1, 2], 10)):
        _, reply = shop.give_back({"position": 0, "quantity": count})
        assert sorted(p["cartItemSubPosition"] for p in of(reply, "rollbackDiscount")) == units
        assert reply["customerProfile"]["totalSales"] == left
    reply = shop.ok({"state": "cancelled"}, "s1", "", "customerProfile")
    assert reply["customerProfile"]["totalSales"] == 0
    assert [p["cartItemSubPosition"] for p in of(reply, "rollbackDiscount")] == [0]


def test_return_without_flattening_rolls_back_part_of_the_line_discount() -> None:
    shop = Shop(("flatten = true", "flatten = false"))
    shop.ok(cart("TEN-PERCENT", quantity=4, price=10, state="closed"))
    assert effect_counts(shop.give_back({"position": 0, "quantity": 1})[1]) == {"rollbackDiscount 10 % off#0 1": 1}
    assert effect_counts(shop.give_back({"position": 0, "quantity": 3})[1]) == {"rollbackDiscount 10 % off#0 3": 1}
    assert shop.books["campaigns"]["10"]["discount"] == 0


@pytest.mark.parametrize(
    ("returned", "pointer"),
    [
        ([{"position": 2, "quantity": 1}], "/return/returnedCartItems/0"),
        ([{"position": 0, "quantity": 1}, {"position": 0, "quantity": 1}], "/return/returnedCartItems/1"),
        ([{"sku": "C", "quantity": 1}], "/return/returnedCartItems/0"),
        ([{"position": -1, "quantity": 1}], "/return/returnedCartItems/0/position"),
        ([{"position": 0, "quantity": 0}], "/return/returnedCartItems/0/quantity"),
    ],
)
def test_return_of_missing_units_is_refused(returned: list[Json], pointer: str) -> None:
    shop = Shop()
    shop.ok({"cartItems": items(("A", 1, 60), ("B", 2, 20)), "state": "closed"})
    status, reply = shop.give_back(*returned)
    assert (status, reply["errors"][0]["source"]["pointer"]) == (400, pointer)
    assert shop.get()[1]["customerSession"]["state"] == "closed"


def test_idempotency_key_replays_a_return() -> None:
    shop = Shop()
    shop.ok(cart("TEN-PERCENT", quantity=3, state="closed"))
    first = shop.give_back({"position": 0, "quantity": 1}, idempotency_key="k")
    assert shop.give_back({"position": 0, "quantity": 1}, idempotency_key="k") == first
    (line,) = shop.get()[1]["customerSession"]["cartItems"]
    assert (line["returnedQuantity"], line["remainingQuantity"]) == (1, 2)
