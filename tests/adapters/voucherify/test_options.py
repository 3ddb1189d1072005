"""The Voucherify adapter: its options."""

import pytest

from adapters.voucherify import Voucherify
from mapper.adapter import Misconfigured, names
from tests.adapters.voucherify.talk import TIER, TIER_2, engine


def test_keys_alone_configure_a_complete_account() -> None:
    account = engine().accounts[""]
    assert account.base_url == "https://api.voucherify.io"
    assert dict(account.headers) == {
        "X-App-Id": "app",
        "X-App-Token": "token",
        "X-Voucherify-API-Version": "v2018-08-01",
        "X-Voucherify-Channel": "promotions-mapper",
    }
    assert "token" not in repr(account)


@pytest.mark.parametrize(
    ("name", "good", "wrong"),
    [
        (
            "BASE_URL",
            ["https://us1.api.voucherify.io/", "http://127.0.0.1:8001/voucherify", "http://localhost:1", "http://[::1]:1"],
            ["http://api.voucherify.io", "api.voucherify.io", "https://a:b@c", "https://a?b", "https://a#b", "https://",
             "https://a:x", "ftp://localhost", "https://[", "http://127.0.0.1.evil.com", "https://a b"],
        ),
        ("APP_ID", ["a-b"], ["", "a b", "ä", "a\tb"]),
        ("APP_TOKEN", ["a-b"], ["", "a b", "ä"]),
        ("CHANNEL", ["", "shop"], ["my shop"]),
        ("EXPONENT", ["", "0", "4"], ["5", "-1", "2.0", "two", "٢"]),
        ("PROMOTIONS", ["", "off", "qualify", TIER, f"{TIER},{TIER_2}"], ["on", "v_1", f"{TIER},", "stack_1"]),
        ("PROMOTIONS_ORDER", ["", "codes_first", "promotions_first"], ["PROMOTIONS_FIRST"]),
        ("SESSION_LOCK_TTL", ["", "0", "604800"], ["-1", "604801", "1h"]),
        ("ITEM_ID", ["", "sku", "variant_id:product"], ["id", "sku:", "sku:variant"]),
        ("CUSTOMER_ID_PATH", ["", "/customer/id", "/a~1b"], ["customer.id", "/a~2"]),
        ("SHIPPING_PATH", ["", "/shipping/price"], ["shipping"]),
        ("GIFT_CREDITS", ["", "/a/b"], ["a"]),
        ("REWARD_ID", ["", "rew_1"], ["a b"]),
        ("ORDER_METADATA", ["", "a=/b", "a=/b,c=/d,"], ["a", "=/b", "a=b", "a=/b,a=/c"]),
        ("ITEM_METADATA", ["a=/b"], ["a"]),
        ("CUSTOMER_METADATA", ["a=/b"], ["a"]),
        ("REDEMPTION_METADATA", ["a=/b"], ["a"]),
    ],
)  # fmt: skip
def test_option_is_accepted_or_named_in_the_error(name: str, good: list[str], wrong: list[str]) -> None:
    assert name in names(Voucherify.options)
    for value in good:
        engine(**{name: value})
    for value in wrong:
        with pytest.raises(Misconfigured) as caught:
            engine(**{name: value})
        assert [fault[0] for fault in caught.value.problems] == [name], value
        assert all(expected for _, expected in caught.value.problems)


def test_all_invalid_options_are_reported_together() -> None:
    wrong = {"BASE_URL": "x", "EXPONENT": "x", "PROMOTIONS": "x", "ITEM_ID": "x", "ORDER_METADATA": "x"}
    with pytest.raises(Misconfigured) as caught:
        Voucherify(wrong)
    assert [name for name, _ in caught.value.problems] == [
        "APP_ID", "APP_TOKEN", "BASE_URL", "EXPONENT", "ORDER_METADATA", "PROMOTIONS", "ITEM_ID",
    ]  # fmt: skip
