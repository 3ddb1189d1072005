"""Voucherify's sandbox: qualifications."""

from datetime import timedelta

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import campaigns
from tests.sandbox.voucherify_shop import TIERS, Json, Shop, cart, earned, off, small_book


def qualified(reply: Json) -> list[str]:
    return [entry["id"] for entry in reply["redeemables"]["data"]]


def test_qualifications_ignore_some_rules() -> None:
    shop = Shop()
    body = {"order": cart((100, 1), metadata={"store": "berlin"}), "options": TIERS}
    # Free shipping from 100.00 and a mug from 300.00 qualify for 1.00: "total amount before discount" is ignored.
    assert qualified(shop.ok("POST", "qualifications", body)) == ["promo_3", "promo_2"]
    assert qualified(shop.ok("POST", "qualifications", body | {"order": cart((100, 1))})) == ["promo_2"]
    assert not shop.validate("promo_2", "promo_3", order=body["order"])["valid"]
    for limits in ("redemptions = 0", "redemptions_per_customer = 1", "budget = '0.50'"):
        text = campaigns({"promo_1": off("1.00")})
        limited = Shop(own=rulebook.parse(text.replace("needs", f"limits = {{ {limits} }}\nneeds")))
        assert qualified(limited.ok("POST", "qualifications", {"order": cart((1000, 1))})) == ["promo_1"]
        assert not limited.validate("promo_1")["valid"]


def test_qualifications_are_paged_and_include_campaigns() -> None:
    shop = Shop()
    page = shop.ok("POST", "qualifications", {"order": cart((100, 1))})
    assert len(page["redeemables"]["data"]) == 5
    assert page["redeemables"]["has_more"]
    every, after = [], None
    while page["redeemables"]["has_more"] or after is None:
        options = {"limit": 4} | ({"starting_after": after} if after else {})
        page = shop.ok("POST", "qualifications", {"order": cart((100, 1)), "options": options})
        every += [entry["object"] for entry in page["redeemables"]["data"]]
        after = page["redeemables"].get("more_starting_after", "-")
    assert set(every) == {"promotion_tier", "campaign"}
    assert every.count("promotion_tier") == 1


@pytest.mark.parametrize(
    ("options", "scenario", "expected"),
    [
        ({"sorting_rule": "BEST_DEAL"}, "ALL", ["promo_2", "promo_1"]),
        ({"sorting_rule": "LEAST_DEAL"}, "ALL", ["promo_1", "promo_2"]),
        ({"limit": 1}, "ALL", ["promo_2"]),
        ({}, "PRODUCTS", ["promo_2", "promo_1"]),
        ({}, "CUSTOMER_WALLET", []),
        ({"filters": {"resource_id": {"conditions": {"$in": ["promo_1"]}}}}, "ALL", ["promo_1"]),
        ({"filters": {"resource_id": {"conditions": {"$not_in": ["promo_1"]}}}}, "ALL", ["promo_2"]),
        ({"filters": {"campaign_id": {"conditions": {"$is_not": ["camp_2"]}}}}, "ALL", ["promo_1"]),
        (
            {
                "filters": {
                    "junction": "or",
                    "resource_id": {"conditions": {"$is": ["promo_1"]}},
                    "campaign_id": {"conditions": {"$is": ["camp_2"]}},
                }
            },
            "ALL",
            ["promo_2", "promo_1"],
        ),
    ],
)
def test_qualifications_are_sorted_and_filtered(options: Json, scenario: str, expected: list[str]) -> None:
    shop = Shop(own=small_book({"promo_1": off("1.00"), "promo_2": off("2.00")}))
    body = {"order": cart((1000, 1)), "options": options, "scenario": scenario}
    assert qualified(shop.ok("POST", "qualifications", body)) == expected


def test_qualifications_page_limit_is_one_to_fifty() -> None:
    for limit, status in ((50, 200), (51, 400), (0, 400)):
        assert Shop().call("POST", "qualifications", {"options": {"limit": limit}})[0] == status


def test_each_qualified_tier_has_its_own_order_and_name() -> None:
    shop = Shop(own=small_book({"promo_1": off("8.00"), "promo_2": off("7.00")}))
    body = {"order": cart((1000, 1)), "customer": {"source_id": "jane"}, "options": {"expand": ["redeemable"]}}
    reply = shop.ok("POST", "qualifications", body)
    assert [entry["order"]["total_discount_amount"] for entry in reply["redeemables"]["data"]] == [700, 800]
    assert [entry["name"] for entry in reply["redeemables"]["data"]] == ["promo_2", "promo_1"]
    assert reply["tracking_id"].startswith("track_")
    assert "total_discount_amount" not in reply["order"]


def test_cached_qualifications_can_be_stale() -> None:
    cached = ("qualifications_cached_s = 0", "qualifications_cached_s = 300")
    ending = (
        'conditions = { cart_over = "100.00" }',
        'conditions = { cart_over = "100.00" }\nends = 2026-11-01T12:02:00Z',
    )
    body = {"order": cart((14_000, 1)), "options": TIERS}
    for changes, stale in (((ending,), False), ((cached, ending), True)):
        shop = Shop(*changes)
        assert "promo_2" in qualified(shop.ok("POST", "qualifications", body))
        shop.now += timedelta(minutes=4)
        assert ("promo_2" in qualified(shop.ok("POST", "qualifications", body))) is stale
        assert earned(shop.validate("GOOD-5", "promo_2")) == ["GOOD-5 order 500", "promo_2 - promotion_not_active_now"]
        shop.now += timedelta(minutes=1)
        assert "promo_2" not in qualified(shop.ok("POST", "qualifications", body))


def test_qualifications_cache_is_not_used_for_a_different_order() -> None:
    shop = Shop(("qualifications_cached_s = 0", "qualifications_cached_s = 300"))
    for price, tiers in ((14_000, ["promo_3", "promo_2"]), (1000, [])):
        body = {"order": cart((price, 1), metadata={"store": "berlin"}), "options": TIERS}
        assert [tier for tier in qualified(shop.ok("POST", "qualifications", body)) if price > 10_000] == tiers
