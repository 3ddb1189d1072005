"""Which changes leave an order's identity the same."""

import json

import pytest

from mapper.domain import checkout
from mapper.orders.identity import VERSION, identity
from tests.orders.ledgers import KEY

COSTS = ("/shipping_rate/price",)
ORDER = """{"id": "1", "currency": "USD", "customer": {"id": "jane"}, "shipping_rate": {"price": "5.00"},
    "order_items": [
    {"sku": "a", "quantity": 2, "price": "40.00", "discounts": "20.00", "applied_discounts": [{"amount": "20.00"}]},
    {"sku": "b", "quantity": 1, "price": "7.00"}],
    "promotions": {"coupon_codes": ["X", "Y"], "referral_code": "R", "identifiers": ["203.0.113.1"]}}"""


def identity_of(text: str, customer: str = "", version: int = VERSION) -> bytes | None:
    order = checkout.parse(text.encode(), "consume", customer_path="/customer/id")
    return identity(order, KEY, COSTS, customer, version)


def test_identity_ignores_spelling_and_irrelevant_fields() -> None:
    tree = json.loads(ORDER)
    other = json.loads(ORDER)
    other["order_items"].reverse()
    other["order_items"][0]["price"] = 7
    other["promotions"]["coupon_codes"] = ["Y", "X", "X "]
    other["note"] = {"carried": "along"}
    other["promotions"]["identifiers"] = ["198.51.100.9"]
    other["shipping_rate"]["price"] = 5.00
    for same in (
        json.dumps(tree),
        json.dumps(tree, indent=3),
        json.dumps(dict(reversed(tree.items()))),
        json.dumps(other),
        ORDER.replace('"id": "1"', '"id": "2"'),
    ):
        assert identity_of(same) == identity_of(ORDER)


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('"sku": "a"', '"sku": "c"'),
        ('"quantity": 2', '"quantity": 3'),
        ('"price": "7.00"', '"price": "7.01"'),
        ('"discounts": "20.00"', '"discounts": "19.00"'),
        ('["X", "Y"]', '["X"]'),
        ('["X", "Y"]', '["X", "y"]'),
        ('"referral_code": "R"', '"loyalty_card": "R"'),
        ('"USD"', '"EUR"'),
        ('"id": "1"', '"id": "1", "applied_discounts": [{"amount": "1.00"}]'),
        ('"jane"', '"joan"'),
        ('"price": "5.00"', '"price": "6.00"'),
        ('"shipping_rate": {"price": "5.00"}', '"shipping_rate": {}'),
    ],
)
def test_identity_changes_with_content(what: str, instead: str) -> None:
    assert what in ORDER
    assert identity_of(ORDER.replace(what, instead)) != identity_of(ORDER)


def test_identity_without_customer_uses_receipts_customer() -> None:
    guest = ORDER.replace('"customer": {"id": "jane"}, ', "")
    assert identity_of(guest, "jane") == identity_of(ORDER) == identity_of(ORDER, "joan")
    assert identity_of(guest) != identity_of(ORDER)


def test_identity_is_pinned_and_unknown_for_next_version() -> None:
    """Pinned: rows from before an upgrade are compared by it."""
    old = identity_of(ORDER, version=1)
    assert old is not None
    assert old.hex() == "0fd3ed4e62f447a0b0112d60139ba45da5180b35a9ef5a58fb74af6f9ba81715"
    new = identity_of(ORDER)
    assert new is not None
    assert new.hex() == "1f385290a3247836eaade0388761ed7f57d3ad8218ff161b1167597c14f6bafc"
    assert identity_of(ORDER, version=3) is None
