"""The Voucherify adapter: the discounts and notices of an answer.

The vendor's own worked examples (https://docs.voucherify.io, API reference) are kept here as their amounts alone.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.voucherify.effects import EFFECTS
from mapper.adapter import Cost
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import allocate
from tests.adapters.voucherify.talk import (
    FREE,
    RATE,
    SHIRT,
    applies,
    cart,
    discount,
    item,
    share,
    taken,
    unit,
    valid,
    validated,
)

# --- Money ------------------------------------------------------------------------------------------------------------


FIVE = [("S1", 1, "65.00"), ("S2", 1, "60.00"), ("S3", 1, "20.00"), ("S4", 2, "50.00"), ("S5", 2, "110.00")]

# The vendor's examples: the cart, the redeemables with their shares, and the expected discounts.
WORKED: dict[str, tuple[list[tuple[str, int, str]], list[dict[str, Any]], list[tuple[str, int | None, int, str]]]] = {
    "five redeemables: items, points without effect, gift card, two promotions": (
        [("A", 1, "20.00"), ("B", 1, "7.00")],
        [
            applies("GNcuPKGe", share(0, item(1000), item(700)), **discount("APPLY_TO_ITEMS")),
            applies("AnsvocvP", share(0, item(), item()), loyalty_card={"points": 4}),
            applies("M3X8IwW8", share(100, item(), item()), gift={"credits": 100}),
            applies("PROMO40", share(360, item(), item()), **discount("APPLY_TO_ORDER", "PERCENT", percent_off=40)),
            applies("PROMO30", share(30, item(), item()), **discount("APPLY_TO_ORDER", amount_off=30)),
        ],
        [
            ("GNcuPKGe", 0, 1000, "APPLY_TO_ITEMS"),
            ("GNcuPKGe", 1, 700, "APPLY_TO_ITEMS"),
            ("M3X8IwW8", None, 100, "GIFT_CARD"),
            ("PROMO40", None, 360, "APPLY_TO_ORDER"),
            ("PROMO30", None, 30, "APPLY_TO_ORDER"),
        ],
    ),
    "fixed prices by formula": (
        FIVE,
        [
            applies(
                "FIXED",
                share(0, item(1300), item(600), item(2000), item(1000), item(4400)),
                **discount("APPLY_TO_ITEMS", "FIXED"),
            )
        ],
        [("FIXED", line, off, "APPLY_TO_ITEMS") for line, off in enumerate([1300, 600, 2000, 1000, 4400])],
    ),
    "ten percent": (
        FIVE,
        [applies("P", share(4650), **discount("APPLY_TO_ORDER", "PERCENT"))],
        [("P", None, 4650, "APPLY_TO_ORDER")],
    ),
    "ten off": (
        FIVE,
        [applies("P", share(1000), **discount("APPLY_TO_ORDER"))],
        [("P", None, 1000, "APPLY_TO_ORDER")],
    ),
    "pay with points": (
        [("A", 1, "85.00"), ("B", 1, "60.00")],
        [applies("LOYALTY-CARD-ng3Kb9tM", share(50), loyalty_card={"points": 10})],
        [("LOYALTY-CARD-ng3Kb9tM", None, 50, "PAY_WITH_POINTS")],
    ),
    "gift card": (
        [("A", 1, "10.00")],
        [applies("GIFT-CARD-kW4aEsfB", share(2), gift={"balance": 21500, "credits": 2})],
        [("GIFT-CARD-kW4aEsfB", None, 2, "GIFT_CARD")],
    ),
    "referral": (
        [("A", 1, "200.00")],
        [applies("REFERRAL-CODE", share(6000), **discount("APPLY_TO_ORDER", "PERCENT"))],
        [("REFERRAL-CODE", None, 6000, "APPLY_TO_ORDER")],
    ),
    "added units, then twenty percent off the rest": (
        [("A", 1, "95.00"), ("B", 1, "185.00")],
        [
            applies(
                "UNITS",
                share(
                    0,
                    item(quantity=1, price=9500),
                    item(quantity=1, price=18500),
                    item(89700, quantity=3, initial_quantity=0, price=29900),
                ),
                **discount("ADD_NEW_ITEMS", "UNIT", unit_type="sku_1"),
            ),
            applies("P", share(5600), **discount("APPLY_TO_ORDER", "PERCENT")),
        ],
        [("P", None, 5600, "APPLY_TO_ORDER")],
    ),
    "shares with running sums": (
        [("A", 1, "1000.00")],
        [
            applies("D1", share(100, discount_amount=100), **discount("APPLY_TO_ORDER")),
            applies("D2", share(39980, discount_amount=40080), **discount("APPLY_TO_ORDER", "PERCENT")),
            applies("D3", share(8000, discount_amount=48080), **discount("APPLY_TO_ORDER")),
        ],
        [(name, None, off, "APPLY_TO_ORDER") for name, off in [("D1", 100), ("D2", 39980), ("D3", 8000)]],
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_vendor_examples_give_exact_amounts(name: str) -> None:
    lines, redeemables, expected = WORKED[name]
    outcome = validated(cart(*lines, codes=[one["id"] for one in redeemables]), valid(*redeemables))
    assert taken(outcome) == expected
    assert not outcome.rejected


@pytest.mark.parametrize(
    ("result", "order_off", "line_off", "effect_types"),
    [
        (discount("APPLY_TO_ORDER"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ORDER", "PERCENT"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ORDER", "FIXED"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ITEMS"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS", "PERCENT"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS", "FIXED"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS_BY_QUANTITY"), 0, 10, ["APPLY_TO_ITEMS_BY_QUANTITY"]),
        (discount("APPLY_TO_ITEMS_PROPORTIONALLY"), 0, 10, ["APPLY_TO_ITEMS_PROPORTIONALLY"]),
        (
            discount("APPLY_TO_ITEMS_PROPORTIONALLY_BY_QUANTITY"),
            0,
            10,
            ["APPLY_TO_ITEMS_PROPORTIONALLY_BY_QUANTITY"],
        ),
        (discount("ADD_MISSING_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_MISSING_ITEMS"]),
        (discount("ADD_NEW_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_NEW_ITEMS"]),
        (discount("ADD_MANY_ITEMS", "UNIT", units=[{"unit_type": "prod_1"}]), 0, 10, ["ADD_MANY_ITEMS"]),
        (discount("ADD_SAME_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_SAME_ITEMS"]),
        (discount("REPLACE_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["REPLACE_ITEMS"]),
        ({"gift": {"credits": 10}}, 10, 0, ["GIFT_CARD"]),
        ({"gift": {"credits": 10}}, 0, 10, ["GIFT_CARD"]),
        ({"loyalty_card": {"points": 1}}, 10, 0, ["PAY_WITH_POINTS"]),
        ({"discount": {"type": "AMOUNT"}}, 10, 10, ["APPLY_TO_ORDER", "APPLY_TO_ITEMS"]),
        ({}, 10, 10, ["APPLY_TO_ORDER", "APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_MOON"), 10, 10, ["APPLY_TO_MOON", "APPLY_TO_MOON"]),
    ],
)
def test_effect_discounts_equal_the_answered_amounts(
    result: dict[str, Any], order_off: int, line_off: int, effect_types: list[str]
) -> None:
    answer = valid(applies("X", share(order_off, item(line_off)), **result))
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"]), answer)
    assert [one.effect_type for one in outcome.discounts] == effect_types
    assert all(one.amount == 10 for one in outcome.discounts)
    assert all(one.description == EFFECTS.get(one.effect_type, "Discount") for one in outcome.discounts)
    assert {one.scope for one in outcome.discounts} == {"goods"}


def test_every_effect_in_the_table_is_tested() -> None:
    tested = {"FREE_SHIPPING"} | {
        result.get("discount", {}).get("effect") or ("GIFT_CARD" if "gift" in result else "PAY_WITH_POINTS")
        for result, *_ in _cases(test_effect_discounts_equal_the_answered_amounts)
        if result and result != {"discount": {"type": "AMOUNT"}}
    }
    assert tested - {"APPLY_TO_MOON"} == set(EFFECTS)


def _cases(test: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return list(test.pytestmark[0].args[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "items", "expected"),
    [
        (
            "one in the cart, one free unit added",
            [[item(100, applied_quantity=1, applied_quantity_amount=100)]],
            [],
        ),
        ("one in the cart, made free", [[item(100, applied_quantity=0, quantity=1)]], [100]),
        ("made free, and one more added", [[item(200, applied_quantity=1, applied_quantity_amount=100)]], [100]),
        (
            "stack: one made free, three added",
            [
                [item(100, quantity=1)],
                *[[item(100, quantity=n, applied_quantity=1, applied_quantity_amount=100)] for n in (2, 3, 4)],
            ],
            [100, 0, 0, 0],
        ),
        ("older answer with the quantity alone", [[item(200, quantity=2, price=100)]], [100]),
        (
            "older answer, twice",
            [[item(100, quantity=2, price=100)], [item(100, quantity=3, price=100)]],
            [0, 0],
        ),
        (
            "discount on the unit in the cart stays",
            [[item(100, applied_quantity=1, applied_quantity_amount=100)], [item(30, quantity=2)]],
            [0, 30],
        ),
        (
            "unit added at half price gives no discount",
            [[item(50, applied_quantity=1, applied_quantity_amount=100)]],
            [],
        ),
        (
            "unit added at half price keeps another discount",
            [[item(30)], [item(50, applied_quantity=1, applied_quantity_amount=100)]],
            [30],
        ),
        (
            "older answer: earlier units are not added again",
            [[item(100, quantity=2, price=100)], [item(30, quantity=2, price=100)]],
            [0, 30],
        ),
        ("removed units give no discount", [[item(applied_quantity=-1, applied_quantity_amount=-100)]], []),
    ],
)
def test_added_units_do_not_discount_the_cart(
    name: str, items: list[list[dict[str, Any]]], expected: list[int]
) -> None:
    redeemables = [applies(f"U{n}", share(0, *shown), **unit()) for n, shown in enumerate(items)]
    outcome = validated(cart(("A", 1, "1.00"), codes=[one["id"] for one in redeemables]), valid(*redeemables))
    assert [one.amount for one in outcome.discounts] == [off for off in expected if off], name
    assert {notice.type for notice in outcome.notices} == {"units"}


def test_notice_lists_added_units() -> None:
    added = item(100, product_id="prod_1", quantity=1, initial_quantity=0)
    answer = valid(applies("X", share(0, item(quantity=1), added), **unit()))
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"]), answer)
    [notice] = outcome.notices
    assert notice.payload["items"] == [added]
    assert notice.payload["redeemable"] == "X"
    assert not outcome.discounts


def test_units_of_a_discount_that_names_no_product_are_reported() -> None:
    """The units of ADD_SAME_ITEMS are those of the cart; its documents show no example."""
    added = item(100, quantity=2, applied_quantity=1, applied_quantity_amount=100)
    answer = valid(applies("X", share(0, added), **discount("ADD_SAME_ITEMS", "UNIT", unit_off=1)))
    outcome = validated(cart(("A", 1, "1.00"), codes=["X"]), answer)
    assert [(one.type, one.payload["items"]) for one in outcome.notices] == [("units", [added])]
    assert not outcome.discounts


# --- Added and replaced units -----------------------------------------------------------------------------------------


def replaces() -> dict[str, Any]:
    return {"discount": {"type": "UNIT", "effect": "REPLACE_ITEMS", "unit_type": "prod_2"}}


def adds_new(**more: Any) -> dict[str, Any]:
    return discount("ADD_NEW_ITEMS", "UNIT", unit_type="prod_1", **more)


TWENTIES = item(quantity=2, price=2000, applied_quantity=-1, applied_quantity_amount=-2000)
UPGRADED = item(500, quantity=2, price=2500, applied_quantity=1, applied_quantity_amount=2500)


@pytest.mark.parametrize("upgrade_first", [True, False])
def test_discount_stays_on_a_line_upgraded_by_another_promotion(*, upgrade_first: bool) -> None:
    upgrade = applies("UPGRADE", share(0, TWENTIES, UPGRADED), **replaces())
    ten = applies("TEN", share(0, item(), item(250, price=2500)), **discount("APPLY_TO_ITEMS"))
    both = [upgrade, ten] if upgrade_first else [ten, upgrade]
    outcome = validated(cart(("A", 3, "20.00"), ("B", 1, "25.00"), codes=[one["id"] for one in both]), valid(*both))
    assert taken(outcome) == [("TEN", 1, 250, "APPLY_TO_ITEMS")]
    [notice] = outcome.notices
    assert (notice.type, notice.payload["redeemable"], notice.payload["items"]) == ("units", "UPGRADE", [UPGRADED])


def adds_many(new: str, missing: str) -> dict[str, Any]:
    units = [{"unit_type": new, "effect": "ADD_NEW_ITEMS"}, {"unit_type": missing, "effect": "ADD_MISSING_ITEMS"}]
    return discount("ADD_MANY_ITEMS", "UNIT", units=units)


def mug(off: int, added: int, quantity: int, **more: Any) -> dict[str, Any]:
    """A line of mugs of 5.00 each, `added` of them by the engine."""
    told = {"applied_quantity": added, "applied_quantity_amount": added * 500} if added else {}
    return item(off, source_id="MUG", product_id="prod_1", quantity=quantity, price=500, **told, **more)


@pytest.mark.parametrize(
    ("mugs", "result", "shown", "off", "to_add"),
    [
        # The free unit is not in the cart: no discount, one unit to add.
        (0, adds_new(), mug(500, 1, 1, initial_quantity=0), 0, True),
        # The storefront has added the free unit: it is discounted.
        (1, adds_new(), mug(500, 1, 2), 500, False),
        (1, adds_new(), item(500, quantity=2, price=500, applied_quantity=None), 500, False),
        (3, adds_new(), mug(500, 1, 4), 500, False),
        # Two are granted, one is in the cart: it is free, and one more is to add.
        (1, adds_new(), mug(1000, 2, 3), 500, True),
        # At half price.
        (1, adds_new(), mug(250, 1, 2), 250, False),
        (
            1,
            adds_many(new="prod_1", missing="prod_2"),
            mug(500, 1, 2),
            500,
            False,
        ),
        (
            1,
            adds_many(new="prod_2", missing="prod_1"),
            mug(500, 0, 1),
            500,
            False,
        ),
        # The answer does not say which kind it is: the common effect decides.
        (1, adds_many(new="prod_8", missing="prod_9"), mug(500, 1, 2), 0, True),
        # The answer has the number of added units without their value,
        (1, unit(), item(1500, quantity=3, price=500, applied_quantity=2), 500, True),
        # or their value without the number.
        (1, adds_new(), item(500, quantity=2, price=500, applied_quantity_amount=500), 500, False),
        # ADD_MISSING_ITEMS: units beyond those of the cart are the missing ones.
        (1, unit(), mug(1000, 1, 2), 500, True),
        (1, unit(), mug(500, 1, 2), 0, True),
    ],
)  # fmt: skip
def test_free_units_are_discounted_once_they_are_in_the_cart(
    mugs: int, result: dict[str, Any], shown: dict[str, Any], off: int, to_add: bool
) -> None:
    lines = [("A", 1, "20.00"), *([("MUG", mugs, "5.00")] if mugs else [])]
    outcome = validated(cart(*lines, codes=["X"]), valid(applies("X", share(0, item(), shown), **result)))
    assert [(one.line, one.amount) for one in outcome.discounts] == ([(1, off)] if off else [])
    [notice] = [one for one in outcome.notices if one.type == "units"]
    assert notice.payload["items"] == ([shown] if to_add else [])


def test_null_applied_quantity_is_not_zero() -> None:
    shown = item(200, quantity=2, price=100, applied_quantity=None, applied_quantity_amount=None)
    answer = valid(applies("X", share(0, shown), **unit()))
    outcome = validated(cart(("A", 1, "1.00"), codes=["X"]), answer)
    assert [one.amount for one in outcome.discounts] == [100]
    assert [one.payload["items"] for one in outcome.notices] == [[shown]]


def test_units_notice_lists_only_units_of_its_own_code() -> None:
    first = item(500, product_id="prod_1", quantity=1, price=500, initial_quantity=0)
    second = item(300, product_id="prod_2", quantity=1, price=300, initial_quantity=0)
    kept = {**first, "applied_discount_amount": 0}
    answer = valid(
        applies("X", share(0, item(quantity=1), first), **unit()),
        applies("Y", share(0, item(quantity=1), kept, second), **unit()),
        applies("TEN", share(5, item(quantity=1), kept, {**second, "applied_discount_amount": 0})),
    )
    outcome = validated(cart(("A", 1, "5.00"), codes=["X", "Y", "TEN"]), answer)
    told = {one.payload["redeemable"]: one.payload["items"] for one in outcome.notices}
    assert told == {"X": [first], "Y": [second]}


# --- Free shipping ----------------------------------------------------------------------------------------------------

APPENDED = item(quantity=1, discount_quantity=1, initial_quantity=0, product_id="prod_5h1pp1ng")


@pytest.mark.parametrize(
    ("result", "body", "items", "expected"),
    [
        (FREE, RATE, [item(), APPENDED], [("X", None, 1500, "FREE_SHIPPING")]),
        (FREE, RATE, [item(), {**APPENDED, "applied_discount_amount": 2000}], [("X", None, 1500, "FREE_SHIPPING")]),
        (FREE, {}, [item(), APPENDED], []),
        (FREE, {"shipping_rate": {"price": "0.00"}}, [item(), APPENDED], []),
        ({"discount": {"type": "UNIT", "unit_type": "prod_5h1pp1ng"}}, RATE, [], [("X", None, 1500, "FREE_SHIPPING")]),
        (
            {"discount": {"type": "UNIT", "unit_type": "x", "product": {"source_id": "5h1pp1ng"}}},
            RATE,
            [],
            [("X", None, 1500, "FREE_SHIPPING")],
        ),
        (
            discount("ADD_MANY_ITEMS", "UNIT", units=[{"unit_type": "prod_1"}, {"unit_type": "prod_5h1pp1ng"}]),
            RATE,
            [item(100)],
            [("X", None, 1500, "FREE_SHIPPING"), ("X", 0, 100, "ADD_MANY_ITEMS")],
        ),
        (
            discount("APPLY_TO_ITEMS", product={"id": "prod_5h1pp1ng"}),
            RATE,
            [item(100)],
            [("X", 0, 100, "APPLY_TO_ITEMS")],
        ),
    ],
)
def test_free_shipping_discounts_the_checkouts_shipping_cost(
    result: dict[str, Any], body: dict[str, Any], items: list[Any], expected: list[Any]
) -> None:
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"], **body), valid(applies("X", share(0, *items), **result)))
    assert sorted(taken(outcome), key=str) == sorted(expected, key=str)
    if not expected:
        assert [(notice.type, notice.payload["redeemable"]) for notice in outcome.notices] == [("free_shipping", "X")]
    for one in outcome.discounts:
        if one.effect_type == "FREE_SHIPPING":
            assert (one.cost, outcome.costs) == ("shipping", (Cost("shipping", 1500),))
            assert (one.name, one.description, one.meta["redeemable"]) == ("X", "Free shipping", "X")


def test_shipping_under_another_name_is_no_free_unit() -> None:
    product = {"id": "prod_5h1pp1ng", "source_id": "OUR-SHIPPING"}
    result = discount("ADD_MISSING_ITEMS", "UNIT", unit_type="prod_5h1pp1ng", product=product)
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"], **RATE), valid(applies("X", share(0, item()), **result)))
    assert taken(outcome) == [("X", None, 1500, "FREE_SHIPPING")]
    assert not outcome.notices


def test_units_notice_does_not_list_shipping() -> None:
    units = [{"unit_type": unit, "effect": "ADD_NEW_ITEMS"} for unit in ("prod_1", "prod_5h1pp1ng")]
    added = item(100, product_id="prod_1", quantity=1, initial_quantity=0)
    answer = valid(
        applies("X", share(0, item(quantity=1), added, APPENDED), **discount("ADD_MANY_ITEMS", "UNIT", units=units))
    )
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"], **RATE), answer)
    assert [(one.type, one.payload["items"]) for one in outcome.notices] == [("units", [added])]


def test_free_shipping_applies_once() -> None:
    answer = valid(*[applies(code, share(0, item(), APPENDED), **FREE) for code in ("X", "Y")])
    outcome = validated(cart(("A", 1, "5.00"), codes=["X", "Y"], **RATE), answer)
    assert taken(outcome) == [("X", None, 1500, "FREE_SHIPPING")]
    assert [(notice.type, notice.payload["redeemable"]) for notice in outcome.notices] == [("free_shipping", "Y")]


def test_root_shipping_of_several_orders_is_discounted() -> None:
    parts = [{"order_items": [{"sku": "A", "quantity": 1, "price": "5.00"}], "shipping_rate": {"price": "1.00"}}] * 2
    body = json.dumps({"orders": parts, "promotions": {"coupon_codes": ["X"]}, **RATE}).encode()
    outcome = validated(documents.parse(body, "validate"), valid(applies("X", share(), **FREE)))
    assert taken(outcome) == [("X", None, 1500, "FREE_SHIPPING")]


def test_shipping_costs_of_several_orders_are_summed() -> None:
    parts = [{"order_items": [{"sku": "A", "quantity": 1, "price": "5.00"}], **RATE} for _ in range(2)]
    body = json.dumps({"orders": parts, "promotions": {"coupon_codes": ["X"]}}).encode()
    outcome = validated(documents.parse(body, "validate"), valid(applies("X", share(), **FREE)))
    assert taken(outcome) == [("X", None, 3000, "FREE_SHIPPING")]


@pytest.mark.parametrize(
    ("currency", "exponent", "shares", "expected", "rounded"),
    [
        ("JPY", "2", [15000, 5000], [150, 50], False),
        ("JPY", "2", [150, 150], [2, 1], True),
        ("JPY", "2", [140], [1], True),
        ("JPY", "2", [150], [2], True),
        ("JPY", "2", [40], [], True),
        ("JPY", "2", [33, 33, 34], [1], True),
        ("JPY", "0", [150], [150], False),
        ("KWD", "2", [150], [1500], False),
    ],
)
def test_rounded_amounts_give_a_notice(
    currency: str, exponent: str, shares: list[int], expected: list[int], rounded: bool
) -> None:
    names = [f"C{n}" for n in range(len(shares))]
    answer = valid(
        *[applies(name, share(off), **discount("APPLY_TO_ORDER")) for name, off in zip(names, shares, strict=True)]
    )
    outcome = validated(cart(("A", 1, "500"), codes=names, currency=currency), answer, EXPONENT=exponent)
    assert [(one.amount, type(one.amount)) for one in outcome.discounts] == [(amount, int) for amount in expected]
    told = [(notice.payload, "rounded" in notice.text) for notice in outcome.notices if notice.type == "rounded"]
    assert told == [({"engine_total": sum(shares)}, True)] * rounded


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"campaign_name": "Spring", "campaign_id": "camp_1"}, ("Spring", "camp_1")),
        ({"campaign_name": "Spring", "name": "Tier one"}, ("Tier one", None)),
        ({}, ("X", None)),
        ({"name": None, "campaign_id": 5}, ("X", None)),
    ],
)
def test_discount_has_its_name_and_engine_ids(said: dict[str, Any], expected: tuple[str, str | None]) -> None:
    answer = valid({**applies("X", share(10), **discount("APPLY_TO_ORDER")), **said})
    [one] = validated(cart(SHIRT, codes=["X"]), answer).discounts
    meta = {"redeemable": "X", "object": "voucher", "position": 0, "code": "X", "type": "AMOUNT"}
    assert (one.name, one.meta) == (expected[0], meta | ({"campaign_id": expected[1]} if expected[1] else {}))


@pytest.mark.parametrize(
    ("result", "notice"),
    [
        (discount("APPLY_TO_ORDER"), "no_effect"),
        ({"loyalty_card": {"points": 4}}, "loyalty_reward"),
        (discount("APPLY_TO_MOON"), "unknown_effect"),
        (discount("REPLACE_ITEMS", "UNIT"), "units"),
        ({**discount("APPLY_TO_ORDER"), "bundle": {"quantity": 0, "missing": [{"id": "prod_1"}]}}, "bundle"),
    ],
)
def test_redeemable_without_discount_gives_a_notice(result: dict[str, Any], notice: str) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), valid(applies("X", share(), **result)))
    assert [one.type for one in outcome.notices] == [notice]
    payload = outcome.notices[0].payload
    assert (payload["result"], payload["redeemable"], payload["code"]) == (result, "X", "X")


@pytest.mark.parametrize(
    ("result", "effect"),
    [
        ({**discount("APPLY_TO_ORDER", "PERCENT"), "gift": None, "loyalty_card": None}, "APPLY_TO_ORDER"),
        ({"discount": None, "gift": {"credits": 5}, "loyalty_card": None}, "GIFT_CARD"),
        ({"discount": None, "gift": None, "loyalty_card": {"points": 5}}, "PAY_WITH_POINTS"),
    ],
)
def test_null_gift_and_loyalty_card_are_ignored(result: dict[str, Any], effect: str) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), valid(applies("X", share(5), **result)))
    assert [one.effect_type for one in outcome.discounts] == [effect]


# --- Generated answers ------------------------------------------------------------------------------------------------

RESULTS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        discount("APPLY_TO_ORDER"),
        discount("APPLY_TO_ITEMS", "PERCENT"),
        {"gift": {"credits": 5}},
        {"loyalty_card": {"points": 5}},
        unit(),
        FREE,
        {},
    ]
)


@st.composite
def answered(draw: st.DrawFn) -> tuple[Checkout, dict[str, Any], int]:
    """A cart, a consistent answer about it, and the discount on the units in the cart."""
    quantities = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    grown, own, redeemables = list(quantities), 0, []
    for number in range(draw(st.integers(1, 4))):
        items, order_off = [], draw(st.integers(0, 300))
        for index in range(len(quantities)):
            added = draw(st.sampled_from([0, 0, 1, 2]))
            off = draw(st.integers(0, 200))
            grown[index] += added
            own += off
            shown = item(off + added * 1000, quantity=grown[index], price=1000, source_id=f"S{index}")
            items.append(
                {**shown, **({"applied_quantity": added, "applied_quantity_amount": added * 1000} if added else {})}
            )
        extra = draw(st.lists(st.integers(0, 500).map(lambda off: item(off, initial_quantity=0)), max_size=2))
        own += order_off
        redeemables.append(applies(f"C{number}", share(order_off, *items, *extra), **draw(RESULTS)))
    lines = [(f"S{index}", quantity, "10.00") for index, quantity in enumerate(quantities)]
    checkout = cart(*lines, codes=[one["id"] for one in redeemables], **RATE)
    return checkout, valid(*redeemables), own


@settings(max_examples=150, deadline=None)
@given(answered())
def test_discounts_equal_engine_total_without_added_units_and_shipping(
    case: tuple[Checkout, dict[str, Any], int],
) -> None:
    checkout, answer, own = case
    outcome = validated(checkout, answer)
    shipping = [one for one in outcome.discounts if one.effect_type == "FREE_SHIPPING"]
    assert sum(one.amount for one in outcome.discounts if one not in shipping) == own
    assert [one.amount for one in shipping] in ([], [1500])
    assert all(one.amount > 0 for one in outcome.discounts)
    assert outcome == validated(checkout, answer)
    positions = [(one.meta["position"], -1 if one.line is None else one.line) for one in outcome.discounts]
    assert positions == sorted(positions)
    allocate(checkout, outcome)
