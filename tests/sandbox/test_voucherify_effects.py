"""Voucherify's sandbox: the discounts that a cart earns, to the cent."""

import random
from typing import Any

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import campaigns
from tests.sandbox.voucherify_shop import (
    ALL,
    CASCADING,
    Json,
    Shop,
    amounts,
    cart,
    earned,
    items,
    merged,
    off,
    small_book,
)


def test_cart_of_nacelles_page_earns_the_discounts_shown_there() -> None:
    reply = Shop().validate("XMAS-2021-25", "promo_2")
    assert reply["valid"]
    assert earned(reply) == ["XMAS-2021-25 #0 3500", "promo_2 #1+1 free"]
    tier = reply["redeemables"][1]["result"]["discount"]
    assert (tier["type"], tier["effect"], tier["unit_type"]) == ("UNIT", "ADD_MISSING_ITEMS", "prod_5h1pp1ng")
    assert amounts(reply["order"]) == {
        "amount": 14000,
        "items_discount": 3500,
        "total_discount": 3500,
        "items_applied_discount": 3500,
        "total_applied_discount": 3500,
        "total": 10500,
    }
    # Free shipping is a line without any amount.
    assert reply["order"]["items"][1] == {
        "object": "order_item",
        "product_id": "prod_5h1pp1ng",
        "quantity": 1,
        "discount_quantity": 1,
        "applied_discount_quantity": 1,
        "applied_quantity": 1,
        "initial_quantity": 0,
        "product": {"id": "prod_5h1pp1ng", "source_id": "5h1pp1ng", "name": "Shipping"},
    }


SHOES: Json = {"metadata": {"category": "shoes"}}

EARNS: list[tuple[list[Any], Json, list[str]]] = [
    (["XMAS-2021-25"], cart((14000, 2)), ["XMAS-2021-25 #0 7000"]),
    (["XMAS-2021-25"], cart((10000, 2)), ["XMAS-2021-25 - order_rules_violated"]),
    (["TEN-PERCENT"], cart((999, 3), (5, 1)), ["TEN-PERCENT #0 300 #1 1"]),
    (["xmas-2021-25"], cart((14000, 1)), ["XMAS-2021-25 #0 3500"]),
    (["MIN-200"], cart((10000, 2)), ["MIN-200 order 2000"]),
    (["ALONE-15"], cart((10000, 2)), ["ALONE-15 order 3000"]),
    (["LINE-10"], cart((400, 1), (2000, 3)), ["LINE-10 #0 400 #1 1000"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), product=SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), sku=SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), **SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["EVERYTHING"], cart((1000, 1)), ["EVERYTHING #0 333"]),
    (["COSTS-5"], cart((1000, 1)), ["COSTS-5"]),
    (["TEN-PERCENT", "WINTER-25"], cart((1000, 1)), ["TEN-PERCENT #0 100", "WINTER-25 #0 250"]),
    (["FRIEND-OF-JANE"], cart((1000, 2)), ["FRIEND-OF-JANE order 1000"]),
    (["FRIEND-OF-JANE"], cart((400, 1)), ["FRIEND-OF-JANE order 400"]),
    # Without a price there is no discount and no error.
    (["TEN-PERCENT"], {"items": [{"product_id": "prod_1", "quantity": 1}]}, ["TEN-PERCENT"]),
    (["TEN-PERCENT"], {"amount": 5000}, ["TEN-PERCENT"]),
    (["MIN-200"], {"amount": 20000}, ["MIN-200 order 2000"]),
    (
        ["promo_3"],
        cart((30000, 1), metadata={"store": "berlin"}),
        ["promo_3 #1+1 free"],
    ),
    (["promo_3"], cart((30000, 1)), ["promo_3 - order_rules_violated"]),
    ([{"object": "voucher", "id": "GIFT-50"}], cart((14000, 1)), ["GIFT-50 order 5000"]),
    ([{"object": "voucher", "id": "GIFT-50", "gift": {"credits": 1200}}], cart((14000, 1)), ["GIFT-50 order 1200"]),
    ([{"object": "voucher", "id": "GIFT-50", "gift": {"credits": 4000}}], cart((900, 1)), ["GIFT-50 order 900"]),
    (
        [{"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51"}}],
        cart((14000, 1)),
        ["CARD-SPEND order 1000"],
    ),
]


@pytest.mark.parametrize(("codes", "order", "expected"), EARNS)
def test_cart_earns_the_discounts_of_the_rule_book(codes: list[Any], order: Json, expected: list[str]) -> None:
    assert earned(Shop().validate(*codes, order=order)) == expected


@pytest.mark.parametrize(
    "effect",
    [
        '{ kind = "off_order", scope = "costs", amount = "5.00" }',
        '{ kind = "off_cost", cost = "handling", percent = "100" }',
        '{ kind = "off_item_cost", cost = "gift_wrap", percent = "100" }',
        '{ kind = "message", title = "A", text = "B" }',
        '{ kind = "custom" }',
    ],
)
def test_effect_that_voucherify_cannot_express_does_nothing(effect: str) -> None:
    costs = "[settings.costs]\nhandling = 'order'\ngift_wrap = 'item'\n"
    shop = Shop(own=rulebook.parse(costs + campaigns({"NOTHING": effect})))
    shipping = {"product_id": "prod_5h1pp1ng", "quantity": 1, "price": 1500}
    reply = shop.validate("NOTHING", order={"items": [*items((14_000, 1)), shipping]})
    assert earned(reply) == ["NOTHING"]
    assert reply["redeemables"][0]["result"]["discount"]["amount_off"] == 0


def test_discounts_never_exceed_the_remaining_amount() -> None:
    card = {"object": "voucher", "id": "GIFT-50", "gift": {"credits": 4000}}
    assert earned(Shop().validate(card, "LINE-10", order=cart((3000, 1), (1500, 1)))) == [
        "GIFT-50 order 4000",
        "LINE-10 #0 500",
    ]
    free = {f"promo_{i}": '{ kind = "off_cost", cost = "shipping", percent = "100" }' for i in (1, 2)}
    reply = Shop(own=small_book(free)).validate("promo_1", "promo_2")
    assert earned(reply) == ["promo_1 #1+1 free", "promo_2"], "it is free only once"
    assert reply["order"]["items"][1]["discount_quantity"] == 1


def test_messages_and_payloads_are_metadata_of_the_redeemable() -> None:
    reply = Shop().validate("EVERYTHING", options={"expand": ["order", "redeemable"]})
    assert reply["redeemables"][0]["metadata"] == {
        "message": {"level": "info", "title": "You found it", "text": "This code does everything at once."},
        "crm_tag": {"tag": "curious", "score": 3},
    }


ON_ITEMS = 'items = { skus = ["SKU-0", "SKU-1"] }'


# Name, effects by code, order, redeemables, and for each redeemable its order-level and item-level amounts and the
# total left. Percentages are of the amount that earlier discounts left, as in all of the vendor's examples but one.
OFFICIAL: list[tuple[str, dict[str, str], Json, list[Any], list[tuple[int, list[int], int]]]] = [
    (
        # guides/manage-stackable-discounts, "Validation": a gift card of 100 credits, 20 %, 80.00 off.
        "gift card, percentage and amount, cumulative 100, 40080, 48080",
        {"GIFT": "", "TWENTY": off("20%"), "promo_3": off("80.00")},
        {"amount": 200_000},
        [{"object": "voucher", "id": "CREDITS", "gift": {"credits": 100}}, "TWENTY", "promo_3"],
        [(100, [], 199_900), (39_980, [], 159_920), (8_000, [], 151_920)],
    ),
    (
        # POST /v1/validations, response example "True - 5 Redeemables" (its loyalty reward does nothing to the order).
        "10.00 off each item, credits, 40 %, 0.30 off",
        {
            "GNcuPKGe": '{ kind = "off_lines", amount = "10.00" }',
            "GIFT": "",
            "promo_3": off("40%"),
            "promo_4": off("0.30"),
        },
        cart((2000, 1), (700, 1)),
        ["GNcuPKGe", {"object": "voucher", "id": "CREDITS", "gift": {"credits": 100}}, "promo_3", "promo_4"],
        [(0, [1000, 700], 1000), (100, [0, 0], 900), (360, [0, 0], 540), (30, [0, 0], 510)],
    ),
    (
        # guides/data-parsing, "Response analysis": 20.00 off two of three products, then 25.00 off the cart.
        "20.00 off two lines, 25.00 off the order",
        {"Adventure": f'{{ kind = "off_lines", amount = "20.00", {ON_ITEMS} }}', "Whole-cart": off("25.00")},
        cart((1000, 3), (2000, 3), (2500, 2)),
        ["Adventure", "Whole-cart"],
        [(0, [2000, 2000, 0], 10_000), (2500, [0, 0, 0], 7500)],
    ),
    (
        # orchestrate/using-stacking-rules-and-categories, "Discount calculation mode", scenario B.
        "10 % and 20 % of what is left of 100",
        {"TENPC": off("10%"), "TWENTY": off("20%")},
        {"amount": 10_000},
        ["TENPC", "TWENTY"],
        [(1000, [], 9000), (1800, [], 7200)],
    ),
    (
        # The same page, "Change incentive eligibility", scenario B: $105, 20 % first.
        "20 % and 10 % of 105",
        {"TENPC": off("10%"), "TWENTY": off("20%")},
        {"amount": 10_500},
        ["TWENTY", "TENPC"],
        [(2100, [], 8400), (840, [], 7560)],
    ),
    (
        # POST /v1/vouchers/{code}/redemption, response example "Discount Coupon": 147.76 and 152.24 rounded.
        "3.00 spread over lines of 33.00 and 34.00",
        {"2CpRCE2c": '{ kind = "off_items_pro_rata", amount = "3.00" }'},
        cart((3300, 1), (1700, 2)),
        ["2CpRCE2c"],
        [(0, [148, 152], 6400)],
    ),
    (
        # An order-level percentage of 1033.50: 31.005 is rounded half up.
        "3 % of 1033.50",
        {"THREE": off("3%")},
        {"amount": 103_350},
        ["THREE"],
        [(3101, [], 100_249)],
    ),
    (
        # POST /v1/vouchers/{code}/validate, response example "Percentage": shipping sent as an item is discounted, too.
        "10 % of goods and shipping",
        {"TENPC": off("10%")},
        {
            "items": [
                *items((6500, 1), (6000, 1)),
                {"source_id": "5h1pp1ng", "related_object": "product", "price": 2000, "quantity": 1},
                *items((5000, 2), (11_000, 2)),
            ]
        },
        ["TENPC"],
        [(4650, [0, 0, 0, 0, 0], 41_850)],
    ),
    (
        # GET /v1/redemptions/{id}, response example "Loyalty Card - Pay with Points": 5 points are 5.00.
        "5 points of 1.00 each, after 46.00 off",
        {"BEFORE": off("46.00")},
        {"amount": 20_000},
        ["BEFORE", {"object": "voucher", "id": "POINTS", "reward": {"id": "rew_901", "points": 5}}],
        [(4600, [], 15_400), (500, [], 14_900)],
    ),
]


@pytest.mark.parametrize(("name", "effects", "order", "codes", "expected"), OFFICIAL, ids=[row[0] for row in OFFICIAL])
def test_vendors_worked_examples_match_to_the_cent(
    name: str, effects: dict[str, str], order: Json, codes: list[Any], expected: list[tuple[int, list[int], int]]
) -> None:
    shop = Shop(own=worked_book(effects))
    reply = shop.validate(*codes, order=order)
    snapshots = [entry["order"] for entry in reply["redeemables"]]
    assert [applied(snapshot) for snapshot in snapshots] == expected
    total = sum(off + sum(lines) for off, lines, _ in expected)
    assert reply["order"]["total_applied_discount_amount"] == total
    assert reply["order"]["total_amount"] == expected[-1][2]


def worked_book(effects: dict[str, str]) -> rulebook.RuleBook:
    """The coupons, a gift card CREDITS, and a loyalty card POINTS whose points are worth 1.00 each."""
    cards = """
        [[campaigns]]
        id = 900
        name = "Gift"
        needs = "gift_card"
        effects = [{ kind = "pay_with_balance" }]
        [[gift_cards]]
        code = "CREDITS"
        campaign = 900
        balance = "50.00"
        [[campaigns]]
        id = 901
        name = "Points"
        needs = "loyalty_card"
        effects = [{ kind = "pay_with_points", value = "1.00" }]
        [[loyalty_programs]]
        id = 1
        name = "points"
        campaigns = [901]
        [[loyalty_cards]]
        code = "POINTS"
        program = 1
        points = "20"
    """
    coupons = campaigns(effects)
    return rulebook.parse("[settings]\ncascading_discounts = true\n" + coupons + cards)


def applied(order: Json) -> tuple[int, list[int], int]:
    lines = [line.get("applied_discount_amount", 0) for line in order.get("items", [])]
    return order.get("applied_discount_amount", 0), lines, order["total_amount"]


def test_percentages_can_use_the_initial_amounts() -> None:
    # orchestrate/using-stacking-rules-and-categories, "Discount calculation mode", scenario A.
    shop = Shop(own=small_book({"TENPC": off("10%"), "TWENTY": off("20%")}))
    reply = shop.validate("TENPC", "TWENTY", order={"amount": 10_000})
    assert earned(reply) == ["TENPC order 1000", "TWENTY order 2000"]
    assert reply["stacking_rules"]["discount_calculation_mode"] == "INITIAL_AMOUNT"


UNITS: list[tuple[str, int, Json | None, dict[str, Any]]] = [
    # Effect, units, price of the one unit in the cart (None: not in the cart), and the line in the vendor's examples of
    # POST /v1/promotions/validation and POST /v1/vouchers/{code}/validate.
    (
        "ADD_MISSING_ITEMS",
        23,
        {"price": 1700},
        {"quantity": 23, "discount_quantity": 23, "initial_quantity": 1, "amount": 39_100, "initial_amount": 1700}
        | {"discount_amount": 39_100, "subtotal_amount": 0},
    ),
    (
        "ADD_NEW_ITEMS",
        22,
        {"price": 1700},
        {"quantity": 23, "discount_quantity": 22, "initial_quantity": 1, "amount": 39_100, "initial_amount": 1700}
        | {"discount_amount": 37_400, "subtotal_amount": 1700},
    ),
    (
        "ADD_NEW_ITEMS",
        8,
        None,
        {"quantity": 8, "discount_quantity": 8, "initial_quantity": 0, "amount": 4000, "initial_amount": 0}
        | {"discount_amount": 4000, "subtotal_amount": 0},
    ),
    (
        "ADD_MISSING_ITEMS",
        1,
        {"price": 1700},
        {"quantity": 1, "discount_quantity": 1, "amount": 1700, "discount_amount": 1700, "subtotal_amount": 0},
    ),
]


@pytest.mark.parametrize(("effect", "units", "present", "expected"), UNITS)
def test_free_units_are_added_as_documented(effect: str, units: int, present: Json | None, expected: Json) -> None:
    effects = {"FREEBIE": f'{{ kind = "free_item", sku = "ROSES", quantity = {units} }}'}
    shop = Shop(own=small_book(effects, engine=f'free_items = "{effect}"\nprices = {{ ROSES = "5.00" }}'))
    other = {"source_id": "OTHER", "related_object": "sku", "price": 2900, "quantity": 1}
    mine = [{"source_id": "ROSES", "related_object": "sku", "quantity": 1} | present] if present else []
    order = shop.validate("FREEBIE", order={"items": [other, *mine]})["order"]
    shown = {name: order["items"][1].get(name) for name in expected}
    assert shown == expected
    added = expected["amount"] - expected.get("initial_amount", expected["amount"])
    assert order.get("initial_amount", order["amount"]) == order["amount"] - added
    assert order["total_amount"] == order["amount"] - expected["discount_amount"]


def test_several_free_items_become_one_add_many_items_discount() -> None:
    effects = {
        "FREEBIES": '{ kind = "free_item", sku = "ROSES" }, { kind = "off_cost", cost = "shipping", percent = "100" }'
    }
    reply = Shop(own=small_book(effects)).validate("FREEBIES")
    discount = reply["redeemables"][0]["result"]["discount"]
    assert discount["effect"] == "ADD_MANY_ITEMS"
    assert [(unit["effect"], unit["unit_off"]) for unit in discount["units"]] == [
        ("ADD_NEW_ITEMS", 1),
        ("ADD_MISSING_ITEMS", 1),
    ]
    assert earned(reply) == ["FREEBIES #1+1 free #2+1 free"]


SHIPPING: list[tuple[str, Json | None, dict[str, str], str]] = [
    # Shipping in the order, or with a price in the catalog, is discounted by an amount; otherwise a free line is added.
    ('percent = "100"', {"source_id": "5h1pp1ng", "related_object": "product", "price": 1500}, {}, "#1 1500"),
    ('percent = "100"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 1500"),
    ('percent = "100"', None, {"5h1pp1ng": "15.00"}, "#1+1 1500"),
    ('percent = "100"', None, {}, "#1+1 free"),
    ('percent = "50"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 750"),
    ('amount = "4.00"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 400"),
    ('amount = "4.00"', None, {}, ""),
]


@pytest.mark.parametrize(("off_shipping", "line", "prices", "expected"), SHIPPING)
def test_shipping_is_discounted_as_a_product(
    off_shipping: str, line: Json | None, prices: dict[str, str], expected: str
) -> None:
    catalog = ", ".join(f'"{name}" = "{price}"' for name, price in prices.items())
    effects = {"promo_1": f'{{ kind = "off_cost", cost = "shipping", {off_shipping} }}'}
    shop = Shop(own=small_book(effects, engine=f"prices = {{ {catalog} }}"))
    order = {"items": items((14000, 1)) + ([{"quantity": 1} | line] if line else [])}
    assert earned(shop.validate("promo_1", order=order)) == [f"promo_1 {expected}".strip()]


def test_item_discounts_never_apply_to_shipping() -> None:
    shipping = {"product_id": "prod_5h1pp1ng", "quantity": 1, "price": 1500}
    reply = Shop().validate("TEN-PERCENT", order={"items": [*items((1000, 1)), shipping]})
    assert earned(reply) == ["TEN-PERCENT #0 100"]


def test_redeemables_discounts_add_up_to_the_order_totals() -> None:
    dice = random.Random(5)
    codes = ["XMAS-2021-25", "TEN-PERCENT", "MIN-200", "LINE-10", "SHOES-10", "WINTER-25", "FRIEND-OF-JANE", "GIFT-50"]
    codes += ["UPGRADE", "TEN-LARGE", "BUNDLE-3", "GOOD-5", "EVERYTHING"]
    for _ in range(400):
        shop = Shop(dice.choice([CASCADING, ALL]))
        lines = [(dice.randrange(1, 30_000), dice.randrange(1, 4)) for _ in range(dice.randrange(1, 6))]
        order = {"items": items(*lines, metadata={"category": dice.choice(["shoes", "hats"])})}
        for item in order["items"]:
            item["source_id"] = dice.choice([item["source_id"], "CUP-SMALL", "CUP-LARGE", "COFFEE", "CAKE"])
        reply = shop.validate(*dice.sample(codes, dice.randrange(1, 5)), "promo_2", order=order)
        if reply["valid"]:
            check_sums(reply)


def check_sums(reply: Json) -> None:
    top, shares = reply["order"], [entry["order"] for entry in reply["redeemables"]]
    assert sum(share.get("total_applied_discount_amount", 0) for share in shares) == top.get(
        "total_applied_discount_amount", 0
    )
    for i, line in enumerate(top["items"]):
        parts = [share["items"][i].get("applied_discount_amount", 0) for share in shares if i < len(share["items"])]
        assert sum(parts) == line.get("applied_discount_amount", 0)
    assert top["total_amount"] == top["amount"] - top.get("total_discount_amount", 0) >= 0
    for order in (top, *shares):
        assert 0 not in [value for name, value in order.items() if "discount" in name], "0 is left out"
        for line in order["items"]:
            assert 0 not in [value for name, value in line.items() if "discount" in name], "0 is left out"
            assert line.get("discount_amount", 0) <= line.get("amount", 0)


# --- Replaced units and bundles ---------------------------------------------------------------------------------------


def line(sku: str, price: int | None, quantity: int = 1, **more: Any) -> Json:
    priced = {} if price is None else {"price": price}
    return {"source_id": sku, "related_object": "sku", "quantity": quantity} | priced | more


CUPS = [line("CUP-SMALL", 2000, 3), line("CUP-LARGE", 2500)]


def test_upgrade_replaces_a_unit_and_keeps_the_total() -> None:
    reply = Shop().validate("UPGRADE", order={"items": CUPS})
    own = reply["redeemables"][0]["order"]
    counts = ("quantity", "initial_quantity", "applied_quantity", "applied_quantity_amount", "applied_discount_amount")
    assert [tuple(item.get(name) for name in counts) for item in own["items"]] == [
        (2, 3, -1, -2000, None),
        (2, 1, 1, 2500, 500),
    ]
    assert reply["redeemables"][0]["result"]["discount"]["effect"] == "REPLACE_ITEMS"
    assert (own["initial_amount"], own["amount"], own["total_amount"]) == (8500, 9000, 8500)
    details = {
        "source_index": 0,
        "source_applied_quantity": -1,
        "source_applied_quantity_amount": -2000,
        "target_index": 1,
        "target_applied_quantity": 1,
        "target_applied_quantity_amount": 2500,
        "target_applied_discount_amount": 500,
    }
    # Only the order of the whole answer has application details.
    assert [item["application_details"] for item in reply["order"]["items"]] == [[details]] * 2
    assert "application_details" not in own["items"][0]


@pytest.mark.parametrize(
    ("codes", "expected", "left"),
    [
        (["UPGRADE"], ["UPGRADE #0+-1 free #1+1 500"], 8500),
        (["UPGRADE", "TEN-LARGE"], ["UPGRADE #0+-1 free #1+1 500", "TEN-LARGE #1 250"], 8250),
        (["TEN-LARGE", "UPGRADE"], ["TEN-LARGE #1 250", "UPGRADE #0+-1 free #1+1 500"], 8250),
    ],
)
def test_upgrade_and_other_discount_on_a_line_are_separate(codes: list[str], expected: list[str], left: int) -> None:
    reply = Shop().validate(*codes, order={"items": CUPS})
    assert (earned(reply), reply["order"]["total_amount"]) == (expected, left)


def test_upgrade_adds_the_missing_line_and_rollback_removes_it() -> None:
    shop = Shop()
    order = {"items": [line("CUP-SMALL", 2000)], "source_id": "o1"}
    done = shop.redeem("UPGRADE", order=order)
    assert [(item["quantity"], item.get("initial_quantity")) for item in done["order"]["items"]] == [(0, 1), (1, 0)]
    assert done["order"]["total_amount"] == 2000
    shop.ok("POST", f"redemptions/{done['redemptions'][0]['id']}/rollbacks")
    assert [item["quantity"] for item in shop.ok("GET", "orders/o1")["items"]] == [1]
    assert earned(shop.validate("UPGRADE", order=cart((2000, 1)))) == ["UPGRADE - order_rules_violated"]


def test_upgrade_replaces_at_most_the_units_in_the_cart() -> None:
    shop = Shop(('by = "CUP-LARGE"', 'by = "CUP-LARGE"\n  quantity = 2'))
    for have, replaced in ((1, 1), (2, 2), (3, 2)):
        order = {"items": [line("CUP-SMALL", 2000, have)]}
        assert earned(shop.validate("UPGRADE", order=order)) == [
            f"UPGRADE #0+-{replaced} free #1+{replaced} {replaced * 500}"
        ]


def test_line_with_all_units_replaced_keeps_its_place() -> None:
    shop = Shop()
    lines = [line("CUP-SMALL", 2000), line("MUG", 1000)]
    shop.redeem("UPGRADE", order={"items": lines, "source_id": "o1"})
    (more,) = shop.redeem("LINE-10", order={"source_id": "o1"})["redemptions"]
    shop.ok("POST", f"redemptions/{more['id']}/rollbacks")
    stored = shop.ok("GET", "orders/o1")["items"]
    assert [(item["quantity"], item.get("discount_amount")) for item in stored] == [(0, None), (1, None), (1, 500)]


COFFEE_AND_CAKE = {"COFFEE": 300, "CAKE": 400}


@pytest.mark.parametrize(
    ("order", "expected", "bundles", "identified"),
    [
        ([("COFFEE", 1), ("CAKE", 2)], "BUNDLE-3 #0 100 #1 200", 1, [(0, 1), (1, 2)]),
        ([("CAKE", 3), ("COFFEE", 2)], "BUNDLE-3 #0 200 #1 100", 1, [(1, 1), (0, 2)]),
        ([("COFFEE", 2), ("CAKE", 3), ("CAKE", 1)], "BUNDLE-3 #0 200 #1 300 #2 100", 2, [(0, 2), (1, 3), (2, 1)]),
        ([("CAKE", 3), ("COFFEE", 1), ("CAKE", 3)], "BUNDLE-3 #0 200 #1 100", 1, [(1, 1), (0, 2)]),
        ([("COFFEE", 9), ("CAKE", 9)], "BUNDLE-3 #0 200 #1 400", 2, [(0, 2), (1, 4)]),
        ([("COFFEE", 2), ("CAKE", 1)], "BUNDLE-3 - order_rules_violated", 0, [(0, 1), (1, 1)]),
    ],
)
def test_bundle_multiplies_its_discount_and_lists_its_items(
    order: list[tuple[str, int]], expected: str, bundles: int, identified: list[tuple[int, int]]
) -> None:
    lines = [line(sku, COFFEE_AND_CAKE[sku], quantity) for sku, quantity in order]
    reply = Shop().validate("BUNDLE-3", order={"items": lines})
    bundle = merged(reply)[0]["result"]["bundle"]
    assert earned(reply) == [expected]
    assert (bundle["quantity"], bundle["limit"]) == (bundles, 2)
    assert [(one["item_index"], one["item_quantity"]) for one in bundle["identified"]] == identified
    assert [one["item_quantity"] for one in bundle.get("missing", [])] == ([] if bundles else [1])


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        ('{ kind = "off_order", amount = "1.00" }', "BUNDLE-3 order 200"),
        ('{ kind = "off_order", percent = "10" }', "BUNDLE-3 order 440"),
        ('{ kind = "off_units", percent = "10" }', "BUNDLE-3 #0 60 #1 160"),
        ('{ kind = "off_lines", amount = "1.00" }', "BUNDLE-3 #0 200 #1 200"),
        ('{ kind = "off_items_pro_rata", amount = "1.10" }', "BUNDLE-3 #0 60 #1 160"),
        ('{ kind = "off_units", amount = "1.00", items = { skus = ["CAKE"] } }', "BUNDLE-3 #1 400"),
        ('{ kind = "free_item", sku = "SPOON", quantity = 3 }', "BUNDLE-3 #2+6 free"),
    ],
)
def test_every_effect_of_a_bundle_applies_once_per_bundle(effect: str, expected: str) -> None:
    shop = Shop(('{ kind = "off_units", name = "1 off each piece", amount = "1.00" }', effect))
    order = {"items": [line("COFFEE", 300, 2), line("CAKE", 400, 4)]}
    assert earned(shop.validate("BUNDLE-3", order=order)) == [expected]


def test_absent_amounts_can_be_null() -> None:
    shop = Shop(('absent_amounts = "omitted"', 'absent_amounts = "null"'))
    (item,) = shop.validate("TEN-PERCENT")["redeemables"][0]["order"]["items"]
    assert {name: item[name] for name in ("applied_quantity", "discount_quantity", "applied_discount_amount")} == {
        "applied_quantity": None,
        "discount_quantity": None,
        "applied_discount_amount": 1400,
    }


@pytest.mark.parametrize(
    ("condition", "described", "applies"),
    [
        ('categories = ["shoes"]', {"metadata": {"category": "shoes"}}, True),
        ('categories = ["shoes"]', {"product": {"metadata": {"category": "shoes"}}}, True),
        ('categories = ["shoes"]', {"metadata": {"kind": "shoes"}}, False),
        ('names = ["Boot"]', {"product": {"name": "Boot"}}, True),
        ('names = ["Boot"]', {"product": {"name": "Shoe"}}, False),
        ('weight_at_most = "500"', {"metadata": {"weight": 499.5}}, True),
        ('weight_at_most = "500"', {"metadata": {"weight": "heavy"}}, False),
        ('weight_at_most = "500"', {}, False),
    ],
)
def test_campaign_conditions_match_item_fields(condition: str, described: Json, applies: bool) -> None:
    shop = Shop(('categories = ["shoes"]', condition))
    reply = shop.validate("SHOES-10", order={"items": [line("A", 5000, **described)]})
    assert earned(reply) == ["SHOES-10 #0 1000" if applies else "SHOES-10 - order_rules_violated"]
