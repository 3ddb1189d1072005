"""Voucherify's sandbox: sessions that lock validated codes."""

from datetime import timedelta

from tests.sandbox.voucherify_shop import ALL, Shop, earned, lock, request


def test_session_locks_a_single_use_code_to_its_key() -> None:
    shop = Shop()
    assert shop.validate("SINGLE-0001", **lock("mine"))["session"] == {
        "key": "mine",
        "type": "LOCK",
        "ttl": 7,
        "ttl_unit": "DAYS",
    }
    for other in ({}, lock("theirs")):
        assert earned(shop.validate("SINGLE-0001", **other)) == ["SINGLE-0001 - quantity_exceeded"]
        assert shop.refused("POST", "redemptions", request("SINGLE-0001", **other)) == (400, "quantity_exceeded")
    assert shop.validate("SINGLE-0002")["valid"], "other codes are not held"
    assert shop.validate("SINGLE-0001", **lock("mine"))["valid"], "the same key overwrites"
    assert shop.redeem("SINGLE-0001", **lock("mine"))["redemptions"][0]["session"] == {"key": "mine"}
    assert shop.books["sessions"] == [], "redeeming ends it"


def test_session_ends_when_it_expires_or_is_released() -> None:
    shop = Shop()
    for ttl, unit, held in ((5, "MINUTES", 300), (1.5, "SECONDS", 1.5), (7, "DAYS", 7 * 86_400), (3, "HOURS", 10_800)):
        shop.validate("SINGLE-0001", **lock("mine", ttl=ttl, ttl_unit=unit))
        shop.now += timedelta(seconds=held - 0.001)
        assert not shop.validate("SINGLE-0001")["valid"]
        shop.now += timedelta(seconds=0.001)
        assert shop.validate("SINGLE-0001")["valid"]
    shop.validate("SINGLE-0001", "SINGLE-0002", **lock("a/b c"))
    path = "vouchers/SINGLE-0001/sessions/a%2Fb%20c"
    assert shop.call("DELETE", path) == (204, None)
    assert shop.refused("DELETE", path) == (404, "not_found")
    assert shop.validate("SINGLE-0001")["valid"]
    assert not shop.validate("SINGLE-0002")["valid"], "one voucher at a time"
    shop.now += timedelta(days=7)
    assert shop.refused("DELETE", "vouchers/SINGLE-0002/sessions/a%2Fb%20c") == (404, "not_found")


def test_session_locks_credits_and_points() -> None:
    shop = Shop()
    gift = {"object": "voucher", "id": "GIFT-50", "gift": {"credits": 3000}}
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 150}}
    assert shop.validate(gift, points, **lock("mine"))["valid"]
    assert earned(shop.validate(gift, points)) == [
        "GIFT-50 - gift_amount_exceeded",
        "CARD-SPEND - loyalty_card_points_exceeded",
    ]
    left = shop.validate({"object": "voucher", "id": "GIFT-50"})["redeemables"][0]
    assert left["result"]["gift"] == {"balance": 2000, "credits": 2000}


def test_session_without_key_gets_one_and_invalid_codes_lock_nothing() -> None:
    shop = Shop(ALL)
    assert shop.validate("TEN-PERCENT", session={"type": "LOCK"})["session"]["key"].startswith("ssn_")
    shop.validate("SINGLE-0001", "NOPE-10", **lock("mine"))
    assert shop.validate("SINGLE-0001")["valid"]
    assert "session" not in shop.validate("SINGLE-0003")
