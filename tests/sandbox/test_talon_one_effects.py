"""Talon.One's sandbox: what a cart earns."""

from collections import Counter

import pytest

from tests.sandbox.talon_one_shop import Json, Shop, cart, items, of, told


def test_the_cart_of_nacelles_page_earns_what_the_page_shows() -> None:
    reply = Shop().ok(cart("XMAS-2021-25", additionalCosts={"shipping": {"price": 15}}))
    assert told(reply) == {
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
                *(f"setDiscountPerItem 10 off the line#0 3.333333333333333 0/{sub}" for sub in range(3)),
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
def test_a_cart_earns_what_the_rule_book_says(session: Json, expected: list[str]) -> None:
    assert told(Shop().ok(session)) == Counter(expected)


def test_a_sum_is_spread_pro_rata_with_its_total_in_every_effect() -> None:
    lines = items(("A", 1, 30), ("B", 2, 15), ("C", 1, 40))
    for line in lines[:2]:
        line["category"] = "shoes"
    given = of(Shop().ok({"cartItems": lines, "couponCodes": ["SHOES-10"]}), "setDiscountPerItem")
    assert {(p["position"], p["subPosition"]): (p["value"], p["totalDiscount"]) for p in given} == {
        (0, 0): (5, 10),
        (1, 0): (2.5, 10),
        (1, 1): (2.5, 10),
    }


def test_an_old_application_gives_one_discount_per_line() -> None:
    shop = Shop(("flatten = true", "flatten = false"))
    assert told(shop.ok(cart("TEN-PERCENT", quantity=3, price=10))) == {
        "acceptCoupon TEN-PERCENT": 1,
        "setDiscountPerItem 10 % off#0 3 0": 1,
    }


def test_cascading_discounts_compute_on_what_is_left_and_name_their_scope() -> None:
    session = cart("TEN-PERCENT", "WINTER-25", "MIN-200", price=200)
    plain = Shop().ok(session)
    assert sorted(p["value"] for p in of(plain, "setDiscountPerItem")) == [20, 50]
    assert "scope" not in of(plain, "setDiscount")[0]
    cascading = Shop(("cascading_discounts = false", "cascading_discounts = true")).ok(session)
    assert sorted(p["value"] for p in of(cascading, "setDiscountPerItem")) == [20, 45]
    assert of(cascading, "setDiscount")[0]["scope"] == "cartItems"


def test_a_budget_that_is_too_small_gives_nothing_or_what_it_has() -> None:
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


def test_the_order_of_effects_means_nothing_and_stays_the_same() -> None:
    session = {"cartItems": items(*((sku, 1, 140) for sku in "ABCDEFGH")), "couponCodes": ["XMAS-2021-25"]}
    orders = {id_: [p["position"] for p in of(Shop().ok(session, id_), "setDiscountPerItem")] for id_ in ("x", "y")}
    assert sorted(orders["x"]) == sorted(orders["y"]) == list(range(8))
    assert orders["x"] != list(range(8))
    assert orders["x"] != orders["y"]
    assert orders["x"] == [p["position"] for p in of(Shop().ok(session, "x"), "setDiscountPerItem")]
