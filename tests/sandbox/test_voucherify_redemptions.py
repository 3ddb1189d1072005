"""Voucherify's sandbox: redemptions and their orders."""

import asyncio
import json
from typing import Any

import pytest

from mapper.sandbox import rulebook
from tests.sandbox.emulated import campaigns
from tests.sandbox.voucherify_shop import (
    ALL,
    Shop,
    amounts,
    call,
    cart,
    earned,
    off,
    redeemable,
    request,
    small_book,
)


def test_only_several_redeemables_have_a_parent_redemption() -> None:
    shop = Shop()
    one = shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o1"), customer="jane")
    (single,) = one["redemptions"]
    assert "parent_redemption" not in one
    assert single["redemption"] is None
    assert one["order"]["redemptions"] == {
        single["id"]: {
            "date": "2026-11-01T12:00:00.000Z",
            "related_object_type": "voucher",
            "related_object_id": single["voucher"]["id"],
            "related_object_parent_id": "camp_10",
        }
    }
    two = shop.redeem("TEN-PERCENT", "promo_2", order=cart((14_000, 1), source_id="o2"), customer="jane")
    parent, children = two["parent_redemption"], two["redemptions"]
    assert [child["redemption"] for child in children] == [parent["id"]] * 2
    assert [child["related_object_type"] for child in children] == ["voucher", "promotion_tier"]
    assert children[1]["promotion_tier"]["name"] == "Free shipping over 100"
    assert two["order"]["redemptions"][parent["id"]]["stacked"] == [child["id"] for child in children]
    assert (two["inapplicable_redeemables"], two["skipped_redeemables"]) == ([], [])
    for redemption in (single, parent, *children):
        assert shop.ok("GET", f"redemptions/{redemption['id']}") == redemption
        assert (redemption["result"], redemption["status"]) == ("SUCCESS", "SUCCEEDED")
        assert redemption["customer"]["source_id"] == "jane"
        assert redemption["channel"] == {"channel_id": "app", "channel_type": "API"}


def test_renamed_order_frees_its_source_id() -> None:
    shop = Shop()
    first = shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o1"), customer="jane")
    renamed = shop.ok("PUT", "orders/o1", {"source_id": "o1~aside"})
    assert (renamed["id"], renamed["source_id"], renamed["status"]) == (first["order"]["id"], "o1~aside", "PAID")
    assert shop.refused("GET", "orders/o1") == (404, "not_found")
    assert shop.ok("GET", "orders/o1~aside")["redemptions"] == first["order"]["redemptions"]
    second = shop.redeem("TEN-PERCENT", order=cart((5_000, 1), source_id="o1"), customer="jane")
    assert second["order"]["id"] != first["order"]["id"]
    assert second["order"]["total_discount_amount"] == 500
    assert shop.ok("PUT", "orders/o1", {"status": "CANCELED"})["source_id"] == "o1"
    assert shop.refused("PUT", "orders/none", {"status": "PAID"}) == (404, "not_found")
    assert shop.refused("PUT", "orders/o1", {"nonsense": 1})[0] == 400


def test_order_is_readable_by_its_id_and_its_source_id() -> None:
    shop = Shop()
    order = shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o/1"), customer="jane")["order"]
    assert (order["source_id"], order["status"], order["total_amount"]) == ("o/1", "PAID", 12_600)
    for id_ in (order["id"], "o%2F1"):
        read = shop.ok("GET", f"orders/{id_}")
        assert read["redemptions"] == order["redemptions"]
        assert read["total_discount_amount"] == 1400
        assert "total_applied_discount_amount" not in read, "nothing is applied by reading"
    assert shop.refused("GET", "orders/o2") == (404, "not_found")
    assert shop.redeem("TEN-PERCENT", order=cart((1, 1), status="FULFILLED"))["order"]["status"] == "FULFILLED"


def test_stored_order_overrides_the_order_in_the_request() -> None:
    shop = Shop()
    shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o1"))
    order = shop.validate("LINE-10", order=cart((300, 9), source_id="o1"))["order"]
    assert [line["quantity"] for line in order["items"]] == [1]
    assert (order["amount"], order["total_discount_amount"], order["total_applied_discount_amount"]) == (
        14_000,
        2400,
        1000,
    )
    assert len(order["redemptions"]) == 1
    by_id = shop.validate("LINE-10", order={"id": order["id"]})["order"]
    assert by_id == order
    assert shop.refused("POST", "validations", request("LINE-10", order={"id": "ord_x"})) == (404, "not_found")


def test_repeated_redemption_adds_a_second_one() -> None:
    # guides/manage-stackable-discounts, "Apply discount to the already created order": only the rest is discounted.
    shop = Shop(own=small_book({"FIRST": off("92.00"), "a2pl4qJw": off("10.00")}))
    first = shop.redeem("FIRST", order={"amount": 10_000, "source_id": "o1"})["order"]
    order = shop.redeem("a2pl4qJw", order={"id": first["id"]})["order"]
    assert amounts(order) == {
        "amount": 10_000,
        "discount": 10_000,
        "total_discount": 10_000,
        "applied_discount": 800,
        "total_applied_discount": 800,
        "total": 0,
    }
    assert len(order["redemptions"]) == 2
    again = shop.redeem("a2pl4qJw", order={"amount": 10_000, "source_id": "o1"})
    assert len(again["order"]["redemptions"]) == 3
    assert shop.books["codes"] == {"FIRST": 1, "a2pl4qJw": 2}


def test_single_use_code_is_redeemed_once() -> None:
    shop = Shop()
    shop.redeem("SINGLE-0007", order=cart((1000, 1), source_id="o1"))
    assert shop.refused("POST", "redemptions", request("SINGLE-0007", order=cart((1000, 1), source_id="o1"))) == (
        400,
        "quantity_exceeded",
    )
    assert shop.redeem("SINGLE-0008")


@pytest.mark.parametrize(
    ("code", "customer", "times", "key"),
    [
        ("FIRST-THREE", "", 3, "redemption_rules_violated"),
        ("BUDGET-50", "", 2, "redemption_rules_violated"),
        ("ONCE-EACH-10", "bob", 1, "redemption_rules_violated"),
        ("FRIEND-OF-JANE", "bob", 1, "customer_rules_violated"),
        ("GIFT-50", "", 1, "gift_amount_exceeded"),
    ],
)
def test_redemptions_use_up_limits_and_rollback_restores_them(code: str, customer: str, times: int, key: str) -> None:
    shop = Shop()
    for _ in range(times):
        last = shop.redeem(code, customer=customer)["redemptions"][0]["id"]
    assert earned(shop.validate(code, customer=customer)) == [f"{code} - {key}"]
    shop.ok("POST", f"redemptions/{last}/rollbacks")
    assert shop.validate(code, customer=customer)["valid"], "rolling back gives it back"


@pytest.mark.parametrize("limits", ["redemptions = 1", "redemptions_per_customer = 1", "budget = '1.50'"])
def test_two_codes_of_one_campaign_share_its_limits(limits: str) -> None:
    text = campaigns({"CODE-1": off("1.00")}) + "[[coupons]]\ncode = 'CODE-2'\ncampaign = 1\n"
    shop = Shop(own=rulebook.parse(text.replace("needs", f"limits = {{ {limits} }}\nneeds")))
    reply = shop.validate("CODE-1", "CODE-2", customer="bob")
    assert earned(reply) == ["CODE-1 order 100", "CODE-2 - redemption_rules_violated"]


def test_card_redemptions_show_the_amount_or_points_used() -> None:
    shop = Shop()
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 30}}
    gift, card = shop.redeem({"object": "voucher", "id": "GIFT-50", "gift": {"credits": 1200}}, points)["redemptions"]
    assert (gift["amount"], gift["gift"], gift["order"]["applied_discount_amount"]) == (1200, {"amount": 1200}, 1200)
    assert (card["amount"], card["loyalty_card"], card["order"]["applied_discount_amount"]) == (30, {"points": 30}, 150)
    assert card["reward"]["parameters"] == {"coin": {"exchange_ratio": 1, "points_ratio": 20}}
    assert shop.ok("GET", "vouchers/GIFT-50")["gift"] == {
        "amount": 5000,
        "subtracted_amount": 1200,
        "balance": 3800,
        "effect": "APPLY_TO_ORDER",
    }
    assert shop.ok("GET", "vouchers/CARD-SPEND")["loyalty_card"] == {"points": 200, "balance": 170}
    assert shop.refused("GET", "vouchers/NOPE") == (404, "not_found")


def test_points_used_never_exceed_the_order_amount() -> None:
    shop = Shop()
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 100}}
    entry = shop.validate(points, order=cart((12, 1)))["redeemables"][0]
    assert entry["result"] == {"loyalty_card": {"points": 3}}
    assert entry["order"]["applied_discount_amount"] == 12


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
def test_failed_redemption_returns_an_error_and_is_recorded(mode: str) -> None:
    shop = Shop((ALL[0], ALL[1].replace("ALL", mode)))
    codes = ["TEN-PERCENT", "EXPIRED-10"] if mode == "ALL" else ["EXPIRED-10"]
    status, error = shop.call("POST", "redemptions", request(*codes, customer="jane"))
    assert (status, error["key"], error["resource_type"]) == (400, "voucher_expired", "redemption")
    failed = shop.ok("GET", f"redemptions/{error['resource_id']}")
    assert (failed["result"], failed["failure_code"], failed["order"]) == ("FAILURE", "voucher_expired", None)
    assert shop.books["redemptions"] == []
    assert shop.refused("POST", f"redemptions/{failed['id']}/rollbacks") == (400, "invalid_redemption")
    assert shop.call("POST", "redemptions", request("NOPE-10"))[0] == 404


def test_partial_mode_redeems_the_applicable_codes() -> None:
    reply = Shop().redeem("TEN-PERCENT", "NOPE-10", "WINTER-5", "WINTER-25")
    assert [entry["voucher"]["code"] for entry in reply["redemptions"]] == ["TEN-PERCENT", "WINTER-5"]
    assert [entry["id"] for entry in reply["inapplicable_redeemables"]] == ["NOPE-10"]
    assert [entry["id"] for entry in reply["skipped_redeemables"]] == ["WINTER-25"]


def test_redemption_creates_the_customer() -> None:
    shop = Shop()
    assert shop.validate("TEN-PERCENT", customer="jane")["tracking_id"].startswith("track_")
    id_ = shop.redeem("TEN-PERCENT", customer="jane")["redemptions"][0]["customer_id"]
    known = {"redeemables": [redeemable("JANE-ONLY-10")], "customer": {"id": id_}}
    assert shop.ok("POST", "validations", known)["valid"]
    unknown = known | {"customer": {"id": "cust_x"}}
    assert shop.refused("POST", "validations", unknown) == (404, "not_found")
    assert Shop().refused("POST", "validations", known) == (404, "not_found")


def test_parallel_requests_for_one_order_are_refused() -> None:
    shop = Shop()
    order = shop.redeem("TEN-PERCENT", order=cart((1, 1), source_id="o1"))["order"]
    nameless = shop.redeem("TEN-PERCENT")["redemptions"][0]["id"]
    bodies = [
        json.dumps(request("TEN-PERCENT", order=sent)).encode()
        for sent in ({"source_id": "o1"}, {"id": order["id"]}, cart((1, 1), source_id="o2"), cart((1, 1)))
    ]
    redemption = next(iter(order["redemptions"]))

    async def at_once() -> list[str]:
        def post(path: str, body: bytes = b"", pause: float = 0) -> Any:
            return call(shop.engine, "POST", f"/v1/{path}", body, pause)

        answers = await asyncio.gather(
            post("redemptions", bodies[0], pause=0.05),
            post("redemptions", bodies[1]),
            post("validations", bodies[0]),
            post(f"redemptions/{redemption}/rollbacks"),
            post("redemptions", bodies[2], pause=0.05),
            post("redemptions", bodies[2]),
            post("redemptions", bodies[3]),
            post(f"redemptions/{nameless}/rollbacks", pause=0.05),
            post(f"redemptions/{nameless}/rollback"),
        )
        return ["done" if status == 200 else reply["key"] for status, _, reply in answers]

    busy = "multiple_requests"
    assert asyncio.run(at_once()) == ["done", busy, busy, busy, "done", busy, "done", "done", busy]
    assert shop.redeem("TEN-PERCENT", order={"source_id": "o1"}), "the next one may"
