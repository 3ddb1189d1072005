"""Voucherify's sandbox: several redeemables in one request."""

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import campaigns
from tests.sandbox.voucherify_shop import ALL, Json, Shop, earned, items, off, request


def lists(reply: Json) -> dict[str, list[str]]:
    names = ("redeemables", "inapplicable_redeemables", "skipped_redeemables")
    return {name: [f"{entry['id']} {entry['status']}" for entry in reply[name]] for name in names if name in reply}


def test_partial_mode_applies_the_other_codes() -> None:
    reply = Shop().validate("TEN-PERCENT", "NOPE-10", "LINE-10")
    assert reply["valid"]
    assert lists(reply) == {
        "redeemables": ["TEN-PERCENT APPLICABLE", "LINE-10 APPLICABLE"],
        "inapplicable_redeemables": ["NOPE-10 INAPPLICABLE"],
    }
    assert reply["order"]["total_discount_amount"] == 1400 + 1000


def test_all_mode_is_invalid_with_one_bad_code() -> None:
    reply = Shop(ALL).validate("TEN-PERCENT", "NOPE-10", "LINE-10")
    assert not reply["valid"]
    assert "order" not in reply
    assert lists(reply) == {
        "redeemables": ["TEN-PERCENT APPLICABLE", "NOPE-10 INAPPLICABLE", "LINE-10 SKIPPED"],
        "inapplicable_redeemables": ["NOPE-10 INAPPLICABLE"],
        "skipped_redeemables": ["LINE-10 SKIPPED"],
    }
    assert reply["redeemables"][0]["order"]["total_applied_discount_amount"] == 1400
    assert reply["redeemables"][2]["result"]["details"]["key"] == "preceding_validation_failed"
    assert Shop(ALL).validate("TEN-PERCENT", "LINE-10")["valid"]


STACKING: list[tuple[list[str], dict[str, str], list[str]]] = [
    # A "Never stackable" code blocks others in any position; cards and automatic promotions are "Always stackable".
    (
        ["TEN-PERCENT", "ALONE-15", "promo_2", "GIFT-50"],
        {},
        ["ALONE-15 order 2100", "promo_2 #1+1 free", "GIFT-50 order 5000", "TEN-PERCENT - exclusion_rules_not_met"],
    ),
    (["ALONE-15", "NOPE-10"], {}, ["ALONE-15 order 2100", "NOPE-10 - not_found"]),
    (
        ["WINTER-5", "WINTER-25"],
        {},
        ["WINTER-5 #0 700", "WINTER-25 - applicable_redeemables_per_category_limit_exceeded"],
    ),
    (
        ["TEN-PERCENT", "LINE-10", "promo_2"],
        {"applicable_redeemables_limit = 5": "applicable_redeemables_limit = 2"},
        ["TEN-PERCENT #0 1400", "LINE-10 #0 1000", "promo_2 - applicable_redeemables_limit_exceeded"],
    ),
    (
        ["COSTS-5", "TEN-PERCENT"],
        {'no_effect_rule = "REDEEM_ANYWAY"': 'no_effect_rule = "SKIP"'},
        ["TEN-PERCENT #0 1400", "COSTS-5 - no_effect"],
    ),
    (["COSTS-5", "TEN-PERCENT"], {}, ["COSTS-5", "TEN-PERCENT #0 1400"]),
]


@pytest.mark.parametrize(("codes", "changes", "expected"), STACKING)
def test_stacking_rules_decide_which_redeemables_combine(
    codes: list[str], changes: dict[str, str], expected: list[str]
) -> None:
    reply = Shop(*changes.items()).validate(*codes)
    assert reply["valid"]
    assert earned(reply) == expected


def test_exclusive_campaigns_combine_up_to_the_limit() -> None:
    def shop(limit: int) -> Shop:
        alone = "combinable = false\n"
        text = campaigns({"ONLY-1": off("1.00"), "ONLY-2": off("2.00")})
        text = text.replace("needs = 'coupon'\n", f"needs = 'coupon'\n{alone}")
        return Shop(
            own=rulebook.parse(f"[engines.voucherify]\napplicable_exclusive_redeemables_limit = {limit}\n{text}")
        )

    limit = "applicable_exclusive_redeemables_limit_exceeded"
    assert earned(shop(1).validate("ONLY-1", "ONLY-2")) == ["ONLY-1 order 100", f"ONLY-2 - {limit}"]
    assert earned(shop(2).validate("ONLY-1", "ONLY-2")) == ["ONLY-1 order 100", "ONLY-2 order 200"]


def test_promotion_stack_returns_its_tiers_and_excludes_codes() -> None:
    shop = Shop(("stacks = {}", "stacks = { stack_all = [2, 3] }"))
    assert earned(shop.validate("stack_all")) == ["promo_2 #1+1 free", "promo_3 - order_rules_violated"]
    assert shop.refused("POST", "validations", request("stack_all", "TEN-PERCENT")) == (400, "invalid_redeemables")
    assert shop.refused("POST", "validations", request("stack_none")) == (404, "not_found")


@pytest.mark.parametrize(
    ("expand", "has_order", "has_name"),
    [
        (None, True, False),
        (["order"], True, False),
        (["redeemable"], False, True),
        (["order", "redeemable"], True, True),
        (["category"], False, False),
        ([], False, False),
    ],
)
def test_expand_selects_the_returned_fields(expand: list[str] | None, has_order: bool, has_name: bool) -> None:
    options = {} if expand is None else {"options": {"expand": expand}}
    reply = Shop().validate("GIFT-50", "promo_2", **options)
    assert "order" in reply, "the order as a whole is always returned"
    for entry in reply["redeemables"]:
        assert ("order" in entry) is has_order
        named = {"campaign_name", "campaign_id", "metadata"}
        assert (named & entry.keys()) == (named if has_name else set())
        assert bool(entry["categories"]) is ("category" in (expand or []))
    assert ("name" in reply["redeemables"][1]) is has_name


def test_earlier_discount_counts_in_totals_but_is_not_applied() -> None:
    sent = {"items": items((20_000, 1), discount_amount=100), "discount_amount": 2650}
    order = Shop().validate("MIN-200", order=sent)["order"]
    assert (order["discount_amount"], order["applied_discount_amount"], order["total_amount"]) == (4650, 2000, 15_250)
    assert order["items"] == [
        {
            "object": "order_item",
            "source_id": "SKU-0",
            "related_object": "sku",
            "quantity": 1,
            "amount": 20_000,
            "discount_amount": 100,
            "subtotal_amount": 19_900,
            "price": 20_000,
        }
    ]


def test_lines_keep_their_order_and_added_lines_follow() -> None:
    lines = [
        {"source_id": "A", "related_object": "sku", "quantity": 1, "price": 30_000, "metadata": {"n": 1}},
        {"source_id": "A", "related_object": "sku", "quantity": 1, "price": 30_000, "metadata": {"n": 2}},
        {"product_id": "prod_x", "quantity": 2, "amount": 5, "product": {"name": "X", "override": True}},
    ]
    order = Shop().validate("promo_3", order={"items": lines, "metadata": {"store": "berlin"}})["order"]
    assert [line.get("metadata") for line in order["items"]] == [{"n": 1}, {"n": 2}, None, None]
    assert order["items"][2]["product"] == {"name": "X"}, "override is an order to the catalog"
    assert order["items"][3]["sku"]["source_id"] == "MUG-BERLIN"
    assert order["metadata"] == {"store": "berlin"}


OUTLET = {"items": [{"source_id": "OUTLET-SHIRT", "related_object": "sku", "price": 2000, "quantity": 1}]}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["promo_60"], ["promo_60 order 100"]),
        (["GOOD-5"], ["GOOD-5 order 500"]),
        (["GOOD-5", "promo_60"], ["promo_60 order 100", "GOOD-5 - exclusion_rules_not_met"]),
        (["promo_60", "GIFT-50"], ["promo_60 order 100", "GIFT-50 order 1900"]),
        (
            ["ALONE-15", "promo_60"],
            ["ALONE-15 order 300", "promo_60 - applicable_exclusive_redeemables_limit_exceeded"],
        ),
    ],
)
def test_exclusive_tier_can_displace_the_shoppers_code(codes: list[str], expected: list[str]) -> None:
    assert earned(Shop().validate(*codes, order=OUTLET)) == expected


def test_all_mode_names_only_the_first_bad_code() -> None:
    shop = Shop(ALL)
    for codes, expected in (
        (
            ("GOOD-5", "BAD-1", "BAD-2", "BAD-3"),
            [
                "GOOD-5 order 500",
                "BAD-1 - voucher_expired",
                "BAD-2 - preceding_validation_failed",
                "BAD-3 - preceding_validation_failed",
            ],
        ),
        (("BAD-2", "GOOD-5"), ["BAD-2 - voucher_expired", "GOOD-5 - preceding_validation_failed"]),
    ):
        reply = shop.validate(*codes)
        assert (reply["valid"], earned(reply)) == (False, expected)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_request_above_the_redeemables_limit_is_refused(limit: int) -> None:
    shop = Shop(("redeemables_limit = 30\napplicable", f"redeemables_limit = {limit}\napplicable"))
    assert shop.ok("POST", "qualifications", {"order": OUTLET})["stacking_rules"]["redeemables_limit"] == limit
    codes = ["GOOD-5", "promo_2", "promo_3", "TEN-PERCENT"]
    assert shop.refused("POST", "validations", request(*codes[: limit + 1])) == (400, "invalid_payload")
    assert shop.call("POST", "validations", request(*codes[:limit]))[0] == 200


def test_category_limit_caps_the_applied_redeemables() -> None:
    shop = Shop(("per_category_limit = 30", "per_category_limit = 1"))
    order = {"items": items((30_000, 1)), "metadata": {"store": "berlin"}}
    assert earned(shop.validate("promo_2", "promo_3", order=order)) == [
        "promo_2 #1+1 free",
        "promo_3 - applicable_redeemables_per_category_limit_exceeded",
    ]


def test_category_hierarchy_can_sort_the_redeemables() -> None:
    codes = ("GIFT-50", "GOOD-5", "XMAS-2021-25")
    asked = Shop().validate(*codes)
    assert [entry["id"] for entry in asked["redeemables"]] == list(codes)
    shop = Shop(('sorting_rule = "REQUESTED_ORDER"', 'sorting_rule = "CATEGORY_HIERARCHY"'))
    reply = shop.validate(*codes, options={"expand": ["order", "category"]})
    assert reply["stacking_rules"]["redeemables_sorting_rule"] == "CATEGORY_HIERARCHY"
    assert [entry["id"] for entry in reply["redeemables"]] == ["XMAS-2021-25", "GOOD-5", "GIFT-50"]
    assert [max(c["hierarchy"] for c in entry["categories"]) for entry in reply["redeemables"]] == [10, 100, 900]
