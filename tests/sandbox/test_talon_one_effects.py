"""Talon.One's sandbox: the effects that a cart earns."""

from collections import Counter

import pytest

from tests.sandbox.talon_one_shop import Json, Shop, cart, effect_counts, items, of, small_book


def test_cart_of_nacelles_page_earns_the_discounts_shown_there() -> None:
    reply = Shop().ok(cart("XMAS-2021-25", additionalCosts={"shipping": {"price": 15}}))
    assert effect_counts(reply) == {
        "acceptCoupon XMAS-2021-25": 1,
        "setDiscountPerItem 35 off every item over 100#0 35 0/0": 1,
        "setDiscountPerAdditionalCost Free shipping 15": 1,
    }
    triggered = {effect["effectType"]: effect.get("triggeredByCoupon") for effect in reply["effects"]}
    assert triggered["setDiscountPerItem"] == triggered["acceptCoupon"]
    assert triggered["setDiscountPerAdditionalCost"] is None


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (cart(), []),
        (cart(additionalCosts={"shipping": {"price": 15}}), ["setDiscountPerAdditionalCost Free shipping 15"]),
        (cart(price=100, additionalCosts={"shipping": {"price": 15}}), []),
        (cart("TEN-PERCENT", price=99.99), ["acceptCoupon TEN-PERCENT", "setDiscountPerItem 10 % off#0 9.999 0/0"]),
        # Flattening: one effect for every unit of a line.
        (
            {"cartItems": items(("A", 1, 60), ("B", 2, 20)), "couponCodes": ["TEN-PERCENT"]},
            [
                "acceptCoupon TEN-PERCENT",
                "setDiscountPerItem 10 % off#0 6 0/0",
                "setDiscountPerItem 10 % off#1 2 1/0",
                "setDiscountPerItem 10 % off#1 2 1/1",
            ],
        ),
        # Nothing is rounded: a third of ten has the digits of a double.
        (
            cart("LINE-10", quantity=3),
            [
                "acceptCoupon LINE-10",
                *(f"setDiscountPerItem 10 off the line#0 3.3333333333333335 0/{sub}" for sub in range(3)),
            ],
        ),
        (cart("MIN-200", price=200), ["acceptCoupon MIN-200", "setDiscount 20 off 20"]),
        (cart("GIFT-50"), ["acceptCoupon GIFT-50", "setDiscount Gift card 50"]),
        (cart("GIFT-50", price=12.5), ["acceptCoupon GIFT-50", "setDiscount Gift card 12.5"]),
        # A gift card pays what the other codes left.
        (
            cart("GIFT-50", "WINTER-25", price=60),
            [
                "acceptCoupon GIFT-50",
                "setDiscount Gift card 45",
                "acceptCoupon WINTER-25",
                "setDiscountPerItem Winter 25 %#0 15 0/0",
            ],
        ),
        (
            cart(referralCode="friend-of-jane", profileId="joe"),
            ["acceptReferral FRIEND-OF-JANE", "setDiscount 10 off for a friend 10"],
        ),
        (cart(loyaltyCards=["CARD-COLLECT"], price=9.99), ["addLoyaltyPoints Points for your purchase 4"]),
        (
            cart(loyaltyCards=["CARD-SPEND"]),
            ["setDiscount Paid with points 10", "deductLoyaltyPoints Paid with points 200"],
        ),
        (
            cart(price=300, storeIntegrationId="berlin"),
            ["addFreeItem A mug on us", "showNotification"],
        ),
        (cart(price=300, storeIntegrationId="new-york"), []),
        (
            cart("EVERYTHING", price=10, additionalCosts={"handling": {"price": 1.5}, "shipping": {"price": 4}}),
            [
                "acceptCoupon EVERYTHING",
                "setDiscountPerItem A third off#0 3.33333 0/0",
                "setDiscountPerAdditionalCost 2 off handling 1.5",
                "setDiscount 1 off the costs 1",
                "addFreeItem Everything at once",
                "addFreeItem Everything at once",
                "showNotification",
                "customEffect crm_tag",
            ],
        ),
        (
            {
                "cartItems": [
                    {"sku": "A", "quantity": 2, "price": 5, "additionalCosts": {"gift_wrap": {"price": 3}}},
                    {"sku": "B", "quantity": 1, "price": 5, "additionalCosts": {"gift_wrap": {"price": 2}}},
                ],
                "couponCodes": ["WRAPPED"],
            },
            ["acceptCoupon WRAPPED"]
            + [
                f"setDiscountPerAdditionalCostPerItem Free wrapping#{where[0]} {value} {where}"
                for where, value in (("0/0", 3), ("0/1", 3), ("1/0", 2))
            ],
        ),
    ],
)
def test_cart_earns_the_effects_of_the_rule_book(session: Json, expected: list[str]) -> None:
    assert effect_counts(Shop().ok(session)) == Counter(expected)


def test_pro_rata_discount_has_its_total_in_every_effect() -> None:
    lines = items(("A", 1, 30), ("B", 2, 15), ("C", 1, 40))
    for line in lines[:2]:
        line["category"] = "shoes"
    given = of(Shop().ok({"cartItems": lines, "couponCodes": ["SHOES-10"]}), "setDiscountPerItem")
    assert {(p["position"], p["subPosition"]): (p["value"], p["totalDiscount"]) for p in given} == {
        (0, 0): (5, 10),
        (1, 0): (2.5, 10),
        (1, 1): (2.5, 10),
    }


def test_application_without_flattening_gives_one_discount_per_line() -> None:
    shop = Shop(("flatten = true", "flatten = false"))
    assert effect_counts(shop.ok(cart("TEN-PERCENT", quantity=3, price=10))) == {
        "acceptCoupon TEN-PERCENT": 1,
        "setDiscountPerItem 10 % off#0 3 0": 1,
    }


def test_cascading_discounts_use_the_remaining_amount_and_name_their_scope() -> None:
    session = cart("TEN-PERCENT", "WINTER-25", "MIN-200", price=200)
    plain = Shop().ok(session)
    assert sorted(p["value"] for p in of(plain, "setDiscountPerItem")) == [20, 50]
    assert "scope" not in of(plain, "setDiscount")[0]
    cascading = Shop(("cascading_discounts = false", "cascading_discounts = true")).ok(session)
    assert sorted(p["value"] for p in of(cascading, "setDiscountPerItem")) == [20, 45]
    assert of(cascading, "setDiscount")[0]["scope"] == "cartItems"


def test_exhausted_budget_rejects_code_or_gives_the_rest() -> None:
    for changes, third in (((), None), ((("partial_rewards = false", "partial_rewards = true"),), (20, 50))):
        shop = Shop(*changes)
        for id_ in ("a", "b"):
            shop.ok(cart("BUDGET-50", state="closed"), id_)
        reply = shop.ok(cart("BUDGET-50", state="closed"), "c")
        given = [(p["value"], p["desiredValue"]) for p in of(reply, "setDiscount")]
        assert given == ([] if third is None else [third])
        assert [p["rejectionReason"] for p in of(reply, "rejectCoupon")] == (
            [] if third else ["EffectCouldNotBeApplied"]
        )
        assert of(shop.ok(cart("BUDGET-50"), "d"), "rejectCoupon")[0]["rejectionReason"] == "EffectCouldNotBeApplied"


def test_order_of_effects_is_shuffled_but_stable_per_session() -> None:
    session = {"cartItems": items(*((sku, 1, 140) for sku in "ABCDEFGH")), "couponCodes": ["XMAS-2021-25"]}
    orders = {id_: [p["position"] for p in of(Shop().ok(session, id_), "setDiscountPerItem")] for id_ in ("x", "y")}
    assert sorted(orders["x"]) == sorted(orders["y"]) == list(range(8))
    assert orders["x"] != list(range(8))
    assert orders["x"] != orders["y"]
    assert orders["x"] == [p["position"] for p in of(Shop().ok(session, "x"), "setDiscountPerItem")]


def own_costs(price: float, **costs: float) -> list[Json]:
    costs_of = {"additionalCosts": {name: {"price": cost} for name, cost in costs.items()}}
    return [{"sku": "A", "quantity": 1, "price": price, **costs_of}]


CASCADING = ("cascading_discounts = false", "cascading_discounts = true")
BEYOND = ("discounts_beyond_price = false", "discounts_beyond_price = true")
WRAP_4 = ('cost = "gift_wrap"\n  percent = "100"', 'cost = "gift_wrap"\n  amount = "4.00"')


@pytest.mark.parametrize(
    ("changes", "codes", "lines", "expected"),
    [
        ((), ["COSTS-5"], own_costs(20, shipping=5), ["additionalCosts 5"]),
        ((), ["COSTS-5"], own_costs(20, shipping=2, gift_wrap=1), ["additionalCosts 3"]),
        ((), ["COSTS-5"], own_costs(20), []),
        ((), ["TOTAL-10"], own_costs(20, shipping=5), ["itemTotal 2.5"]),
        ((), ["TEN-PERCENT"], own_costs(20, shipping=5), ["price 2"]),
        # Without cascading each computes on list prices: together they exceed the costs.
        ((), ["COSTS-5", "WRAPPED"], own_costs(20, gift_wrap=4), ["additionalCosts 4", "gift_wrap 4"]),
        ((CASCADING,), ["COSTS-5", "WRAPPED"], own_costs(20, gift_wrap=4), ["gift_wrap 4"]),
        (
            (CASCADING, WRAP_4),
            ["COSTS-5", "WRAPPED"],
            own_costs(20, gift_wrap=6),
            ["additionalCosts 2", "gift_wrap 4"],
        ),
        # With cascading a discount on items and costs uses up the price first.
        (
            (CASCADING,),
            ["TOTAL-10", "TEN-PERCENT"],
            own_costs(10, shipping=10),
            ["itemTotal 1.9000000000000001", "price 1"],
        ),
        ((BEYOND,), ["COSTS-5"], own_costs(20, shipping=2), ["additionalCosts 5"]),
        ((BEYOND,), ["COSTS-5"], own_costs(20), []),
    ],
)
def test_discount_applies_to_item_its_costs_or_both(
    changes: tuple[tuple[str, str], ...], codes: list[str], lines: list[Json], expected: list[str]
) -> None:
    reply = Shop(*changes).ok({"cartItems": lines, "couponCodes": codes})
    given = of(reply, "setDiscountPerItem") + of(reply, "setDiscountPerAdditionalCostPerItem")
    assert sorted(f"{p.get('scope') or p['additionalCost']} {p['value']}" for p in given) == expected


def test_item_and_costs_discount_uses_price_first_then_each_cost() -> None:
    own = small_book(
        {
            "TOTAL": '{ kind = "off_units", amount = "15", scope = "items_and_costs" }',
            "WRAP": '{ kind = "off_item_cost", cost = "gift_wrap", percent = "100" }',
            "SHIP": '{ kind = "off_item_cost", cost = "shipping", percent = "100" }',
            "ITEM": '{ kind = "off_units", percent = "100" }',
        },
        "cascading_discounts = true",
    )
    lines = own_costs(10, gift_wrap=4, shipping=4)
    reply = Shop(own=own).ok({"cartItems": lines, "couponCodes": ["TOTAL", "WRAP", "SHIP", "ITEM"]})
    given = of(reply, "setDiscountPerItem") + of(reply, "setDiscountPerAdditionalCostPerItem")
    assert sorted((p["name"], p["value"]) for p in given) == [("SHIP#0", 3), ("TOTAL#0", 15)]


def test_application_setting_allows_discount_above_the_price() -> None:
    for changes, value in (((), 30), ((BEYOND,), 50)):
        assert of(Shop(*changes).ok(cart("BUDGET-50", price=30)), "setDiscount")[0]["value"] == value


@pytest.mark.parametrize(
    ("scope", "cascading", "shown"),
    [
        ("items", False, None),
        ("items", True, "cartItems"),
        ("costs", True, "additionalCosts"),
        ("items_and_costs", True, "sessionTotal"),
    ],
)
def test_order_discount_names_its_scope_only_when_cascading(scope: str, cascading: bool, shown: str | None) -> None:
    scoped = ('name = "5 off", amount', f'name = "5 off", scope = "{scope}", amount')
    shop = Shop(scoped, *([CASCADING] if cascading else []))
    (props,) = of(shop.ok(cart("GOOD-5", additionalCosts={"shipping": {"price": 9}}, price=50)), "setDiscount")
    assert (props["value"], props.get("scope")) == (5, shown)


@pytest.mark.parametrize(
    ("condition", "line", "applies"),
    [
        ('categories = ["shoes"]', {"category": "shoes"}, True),
        ('categories = ["shoes"]', {"attributes": {"material": "shoes"}}, False),
        ('names = ["Boot"]', {"name": "Boot"}, True),
        ('names = ["Boot"]', {"name": "Shoe"}, False),
        ('names = ["Boot"]', {}, False),
        ('weight_at_most = "500"', {"weight": 499.5}, True),
        ('weight_at_most = "500"', {"weight": 501}, False),
        ('weight_at_most = "500"', {}, False),
    ],
)
def test_campaign_conditions_match_item_fields(condition: str, line: Json, applies: bool) -> None:
    shop = Shop(('categories = ["shoes"]', condition))
    reply = shop.ok({"cartItems": [items(("A", 1, 50))[0] | line], "couponCodes": ["SHOES-10"]})
    assert [p["value"] for p in of(reply, "setDiscountPerItem")] == ([10] if applies else [])
    assert bool(of(reply, "rejectCoupon")) is not applies


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("COFFEE", 1, 3), ("CAKE", 2, 4)], {(0, 0): 0, (1, 0): 0, (1, 1): 0}),
        ([("COFFEE", 2, 3), ("CAKE", 3, 4)], {(0, 0): 0, (1, 0): 0, (1, 1): 0}),
        ([("CAKE", 4, 4), ("COFFEE", 2, 3)], {(1, 0): 0, (0, 0): 0, (0, 1): 0, (1, 1): 1, (0, 2): 1, (0, 3): 1}),
        ([("CAKE", 9, 4), ("COFFEE", 9, 3)], {(1, 0): 0, (0, 0): 0, (0, 1): 0, (1, 1): 1, (0, 2): 1, (0, 3): 1}),
        ([("COFFEE", 2, 3), ("CAKE", 1, 4)], {}),
    ],
)
def test_bundle_discounts_only_its_own_units(
    lines: list[tuple[str, int, float]], expected: dict[tuple[int, int], int]
) -> None:
    reply = Shop().ok({"cartItems": items(*lines), "couponCodes": ["BUNDLE-3"]})
    given = of(reply, "setDiscountPerItem")
    assert {(p["position"], p["subPosition"]): p["bundleIndex"] for p in given} == expected
    assert {p["bundleName"] for p in given} == ({"Coffee and cake"} if expected else set())


def test_giveaway_code_is_awarded_at_close_and_never_rolled_back() -> None:
    shop = Shop()
    opened = shop.ok(cart("LUCKY-DRAW", profileId="joe"), "s1")
    assert of(opened, "willAwardGiveaway") == [
        {"poolId": 1, "poolName": "Cinema tickets", "recipientIntegrationId": "joe"}
    ]
    assert not of(opened, "awardGiveaway")
    closed = [shop.ok(cart("LUCKY-DRAW", state="closed"), id_, "", "awardedGiveaways") for id_ in ("s1", "s2")]
    assert [of(reply, "awardGiveaway")[0]["code"] for reply in closed] == ["CINEMA-A1", "CINEMA-B2"]
    assert closed[1]["awardedGiveaways"][0]["code"] == "CINEMA-B2"
    assert "rollbackGiveaway" not in str(shop.reopen("s1"))
    assert of(shop.ok(cart("LUCKY-DRAW", state="closed"), "s3"), "awardGiveaway")[0]["code"] == "CINEMA-C3"
    assert effect_counts(shop.ok(cart("LUCKY-DRAW"), "s4")) == {"rejectCoupon EffectCouldNotBeApplied LUCKY-DRAW": 1}


def test_unit_counts_for_only_one_part_of_a_bundle() -> None:
    shop = Shop(('{ sku = "COFFEE" }', '{ sku = "CAKE" }'))
    for quantity, discounted in ((2, 0), (3, 3), (5, 3), (6, 6)):
        reply = shop.ok({"cartItems": items(("CAKE", quantity, 4)), "couponCodes": ["BUNDLE-3"]})
        assert len(of(reply, "setDiscountPerItem")) == discounted


def test_giveaway_pool_gives_each_code_once_per_session() -> None:
    tickets = '{ kind = "giveaway", pool = "Tickets", codes = ["A-1", "B-2", "C-3"] }'
    shop = Shop(own=small_book({"TWICE": f"{tickets}, {tickets}", "ONCE": tickets, "MORE": tickets}))
    reply = shop.ok(cart("TWICE", "ONCE", "MORE", state="closed"))
    assert sorted(p["code"] for p in of(reply, "awardGiveaway")) == ["A-1", "B-2", "C-3"]
    assert [p["value"] for p in of(reply, "rejectCoupon")] == ["MORE"]


def test_upgrade_is_returned_as_custom_effect() -> None:
    (props,) = of(Shop().ok({"cartItems": items(("CUP-SMALL", 3, 20)), "couponCodes": ["UPGRADE"]}), "customEffect")
    assert props["payload"] == {"replace": "CUP-SMALL", "by": "CUP-LARGE", "quantity": 1}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], {"setDiscount 1 off in the outlet 1": 1}),
        (["GOOD-5"], {"acceptCoupon GOOD-5": 1, "setDiscount 5 off 5": 1}),
    ],
)
def test_exclusive_automatic_promotion_yields_to_a_code(codes: list[str], expected: list[str]) -> None:
    session = {"cartItems": items(("OUTLET-SHIRT", 1, 20)), "couponCodes": codes}
    assert effect_counts(Shop().ok(session)) == Counter(expected)
