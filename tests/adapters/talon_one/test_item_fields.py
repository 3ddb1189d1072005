"""The vendor's own fields of a cart item: https://docs.talon.one/docs/dev/concepts/entities/customer-sessions"""

from decimal import Decimal
from typing import Any

import pytest

from mapper.adapter import Misconfigured
from tests.adapters.talon_one.emulated import Emulated
from tests.adapters.talon_one.talk import adapter, outcome, parse, sent

ALL = "name=/content/title,category=/kind,product=/product,weight=/grams,height=/size/h,width=/size/w,length=/size/l"
FIELDS = ("name", "category", "product", "weight", "height", "width", "length")


def item(line: dict[str, Any], **options: str) -> dict[str, Any]:
    """Return the vendor's item fields that are sent for this line."""
    checkout = parse({"items": [{"sku": "A", "quantity": 1, "price": "1.00", **line}]})
    (found,) = sent(adapter(**options).validate(checkout, "s"))["cartItems"]
    return {name: value for name, value in found.items() if name in FIELDS}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ({}, {}),
        ({"name": "Shoe", "category": "shoes", "weight": 10}, {"name": "Shoe", "category": "shoes", "weight": 10}),
        ({"title": "Shoe", "name": None}, {"name": "Shoe"}),
        ({"title": "Title", "name": "Name"}, {"name": "Name"}),
        ({"title": "Title", "name": " "}, {"name": "Title"}),
        ({"name": 501}, {"name": "501"}),
        ({"category": "  shoes "}, {"category": "shoes"}),
        ({"weight": 0.35}, {"weight": Decimal("0.35")}),
        ({"weight": "350.5"}, {"weight": Decimal("350.5")}),
        ({"weight": 0}, {"weight": 0}),
        ({"category": "", "weight": "", "product": "only where it is named", "height": 5}, {}),
    ],
)
def test_cart_item_has_name_category_and_weight(line: dict[str, Any], fields: dict[str, Any]) -> None:
    assert item(line) == fields


def test_only_configured_item_fields_are_sent() -> None:
    line = {
        "content": {"title": "Shoe"}, "kind": "shoes", "product": {"name": "Runner", "id": 5}, "grams": 350,
        "size": {"h": 1.5, "w": "2", "l": 3}, "name": "not asked for", "category": "nor this",
    }  # fmt: skip
    assert item(line, ITEM_FIELDS=ALL) == {
        "name": "Shoe", "category": "shoes", "product": {"name": "Runner"}, "weight": 350,
        "height": Decimal("1.5"), "width": 2, "length": 3,
    }  # fmt: skip
    assert item({"product": "Runner"}, ITEM_FIELDS=ALL) == {"product": {"name": "Runner"}}
    assert item({"category": "shoes"}, ITEM_FIELDS="weight=/weight") == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("category", ["shoes"]), ("category", {"name": "shoes"}), ("category", True), ("name", 1.5),
        ("product", {"id": 5}), ("product", []),
        ("weight", "10 kg"), ("weight", "-1"), ("weight", -1), ("weight", True), ("weight", "NaN"), ("weight", {}),
        ("weight", "1e5"),
    ],
)  # fmt: skip
def test_invalid_item_field_is_left_out_with_a_notice(field: str, value: Any) -> None:
    options = {"ITEM_FIELDS": "category=/category,name=/name,product=/product,weight=/weight"}
    assert item({field: value}, **options) == {}
    lines = [{"sku": "A", "quantity": 1, "price": "1.00"}, {"sku": "B", "quantity": 1, "price": "1.00", field: value}]
    (notice,) = outcome(parse({"items": lines}), [], **options).notices
    assert (notice.type, notice.payload) == ("item_fields_not_sent", {"pointers": [f"/items/1/{field}"]})


@pytest.mark.parametrize("text", ["colour=/colour", "name", "name=title", "name=/a,name=/b", "price=/price"])
def test_unknown_item_field_is_misconfigured(text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        adapter(ITEM_FIELDS=text)
    assert [name for name, _ in caught.value.problems] == ["ITEM_FIELDS"]


@pytest.mark.parametrize(
    ("line", "off"), [({"category": "shoes"}, 1000), ({"category": "hats"}, 0), ({}, 0), ({"category": ["shoes"]}, 0)]
)
def test_category_campaign_discounts_matching_lines(line: dict[str, Any], off: int) -> None:
    body = {
        "items": [{"sku": "A", "quantity": 2, "price": "40.00", **line}, {"sku": "B", "quantity": 1, "price": "40.00"}],
        "promotions": {"coupon_codes": ["SHOES-10"]},
    }
    result = Emulated().hold(adapter().validate(parse(body), "s"))
    assert sum(discount.amount for discount in result.discounts if discount.line == 0) == off
    assert bool(result.rejected) == (off == 0)
