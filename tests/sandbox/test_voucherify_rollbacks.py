"""Voucherify's sandbox: rollbacks."""

from tests.sandbox.voucherify_shop import CASCADING, Shop, amounts, cart


def test_rollback_restores_all_balances_and_cancels_the_order() -> None:
    shop = Shop()
    before = shop.books
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 30}}
    done = shop.redeem("SINGLE-0001", "GIFT-50", points, "promo_2", order=cart((14_000, 1), source_id="o1"))
    parent = done["parent_redemption"]["id"]
    assert shop.books["gift_cards"]["GIFT-50"] == 0
    reply = shop.ok("POST", f"redemptions/{parent}/rollbacks?reason=returned")
    assert [rollback["redemption"] for rollback in reply["rollbacks"]] == [child["id"] for child in done["redemptions"]]
    assert [rollback.get("amount") for rollback in reply["rollbacks"]] == [None, -5000, -30, None]
    assert reply["parent_rollback"]["reason"] == "returned"
    order = shop.ok("GET", "orders/o1")
    assert (order["status"], amounts(order)) == ("CANCELED", {"amount": 14_000, "total": 14_000})
    assert len(order["items"]) == 1, "the shipping that was added is gone"
    entry = order["redemptions"][parent]
    assert entry["rollback_id"] == reply["parent_rollback"]["id"]
    assert entry["rollback_stacked"] == [rollback["id"] for rollback in reply["rollbacks"]]
    assert shop.ok("GET", f"redemptions/{parent}")["status"] == "ROLLED_BACK"
    assert shop.ok("GET", f"redemptions/{entry['rollback_id']}")["object"] == "redemption_rollback"
    after = shop.books
    assert {name: after[name] for name in ("codes", "gift_cards", "loyalty_cards")} == {
        name: before[name] for name in ("codes", "gift_cards", "loyalty_cards")
    }


def test_rollback_can_leave_the_order_unchanged() -> None:
    shop = Shop(('"WITH_ORDER"\n', '"WITHOUT_ORDER"\n'))
    done = shop.redeem("SINGLE-0001", order=cart((14_000, 1), source_id="o1"))
    shop.ok("POST", f"redemptions/{done['redemptions'][0]['id']}/rollback")
    order = shop.ok("GET", "orders/o1")
    assert (order["status"], order["total_discount_amount"]) == ("PAID", 1400)
    assert shop.validate("SINGLE-0001")["valid"]


def test_one_of_two_redemptions_of_an_order_can_be_rolled_back() -> None:
    shop = Shop(CASCADING)
    first = shop.redeem("TEN-PERCENT", order=cart((10_000, 1), source_id="o1"))["redemptions"][0]["id"]
    shop.redeem("TEN-PERCENT", "LINE-10", order={"source_id": "o1"})
    assert shop.ok("GET", "orders/o1")["total_discount_amount"] == 1000 + 900 + 1000
    order = shop.ok("POST", f"redemptions/{first}/rollbacks")["order"]
    assert (order["status"], order["total_discount_amount"]) == ("PAID", 1900)


def test_refused_rollback_returns_the_reason() -> None:
    shop = Shop()
    stack = shop.redeem("TEN-PERCENT", "promo_2", order=cart((14_000, 1), source_id="o1"), customer="jane")
    parent, child = stack["parent_redemption"]["id"], stack["redemptions"][0]["id"]
    single = shop.redeem("TEN-PERCENT", customer="jane")["redemptions"][0]["id"]
    table = [
        (f"{child}/rollbacks", None, (400, "invalid_redemption_parent")),
        (f"{child}/rollback", None, (400, "invalid_redemption_parent")),
        (f"{parent}/rollback", None, (400, "invalid_redemption")),
        ("r_none/rollbacks", None, (404, "not_found")),
        (f"{parent}/rollbacks", {"order": {"source_id": "o2"}}, (400, "invalid_order")),
        (f"{parent}/rollbacks", {"customer": {"source_id": "bob"}}, (400, "invalid_customer")),
        (f"{parent}/rollbacks?tracking_id=bob", None, (400, "invalid_customer")),
        (f"{parent}/rollbacks", {"why": "not"}, (400, "invalid_payload")),
    ]
    for path, body, expected in table:
        assert shop.refused("POST", f"redemptions/{path}", body) == expected, path
    shop.ok("POST", f"redemptions/{parent}/rollbacks", {"order": {"source_id": "o1"}, "tracking_id": "jane"})
    shop.ok("POST", f"redemptions/{single}/rollback")
    for path in (f"{parent}/rollbacks", f"{single}/rollbacks", f"{single}/rollback"):
        status, error = shop.call("POST", f"redemptions/{path}")
        assert (status, error["key"], error["resource_type"]) == (400, "already_rolled_back", "redemption_rollback")
