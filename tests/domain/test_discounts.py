import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import Discount, Outcome
from mapper.domain import checkout, discounts, money
from mapper.domain.checkout import Checkout
from tests import documents


def off(amount: int, line: int | None = None, **more: Any) -> Discount:
    return Discount(name="n", description="d", amount=amount, effect_type="e", line=line, **more)


def answer(body: bytes, *granted: Discount, costs: int = 0, note: dict[str, Any] | None = None) -> bytes:
    parsed = checkout.parse(body, "validate")
    settled = discounts.settle(parsed, Outcome(discounts=granted, costs=costs))
    return discounts.write(parsed, settled, note or {})


def body_a(*lines: tuple[str, int], **root: Any) -> bytes:
    items = [{"sku": f"S{i}", "quantity": quantity, "price": price} for i, (price, quantity) in enumerate(lines)]
    return json.dumps({"items": items, **root}).encode()


def test_the_example_of_the_contract() -> None:
    body = body_a(("140.00", 1), currency="USD")
    got = json.loads(answer(body, off(3500, 0, meta={"campaignId": 1}), off(1500, None, cost="shipping", limit=1500)))
    item = got["items"][0]
    assert (item["price"], item["total_discount"], got["total_discount"]) == ("105.00", "35.00", "50.00")
    assert item["discounts"] == [
        {
            "name": "n",
            "description": "d",
            "amount": "35.00",
            "effect_type": "e",
            "meta": {"campaignId": 1, "list_price": "140.00"},
        }
    ]
    assert [entry["amount"] for entry in got["discounts"]] == ["15.00"]


@pytest.mark.parametrize(
    ("granted", "price", "line_total", "total"),
    [
        ((off(1000, 0),), "6.67", "10.00", "10.00"),  # 30.00 - 10.00 over three units does not divide
        ((off(1, 0),), "10", "0.01", "0.01"),  # rounds to the price that came, which keeps its bytes
        ((off(3000, 0),), "0.00", "30.00", "30.00"),
        ((off(2000, 0), off(2000, 0)), "0.00", "30.00", "30.00"),  # beyond the price: clamped
        ((off(9999),), "10", "0.00", "30.00"),  # an order-level discount takes no more than there is to pay
        ((off(2000, 0), off(9999)), "3.33", "20.00", "30.00"),
        ((off(700, cost="shipping", limit=500),), "10", "0.00", "5.00"),
        ((off(400, cost="shipping", limit=500), off(400, cost="shipping", limit=500)), "10", "0.00", "5.00"),
        ((off(700, cost="shipping"),), "10", "0.00", "7.00"),  # nobody told us its price
    ],
)
def test_nothing_goes_below_zero_and_the_total_is_the_sum(
    granted: tuple[Discount, ...], price: str, line_total: str, total: str
) -> None:
    got = json.loads(answer(body_a(("10", 3)), *granted))
    assert (got["items"][0]["price"], got["items"][0]["total_discount"], got["total_discount"]) == (
        price,
        line_total,
        total,
    )


LISTED = [{"amount": "1.00", "meta": {"list_price": "11.00"}}]


@pytest.mark.parametrize(
    "body",
    [
        {"items": [{"sku": "A", "quantity": 2, "price": "10.00"}, {"sku": "B", "quantity": 1, "price": 5}]},
        {"items": [{"sku": "A", "quantity": 2, "price": 10, "total_discount": "2.00", "discounts": LISTED}]},
        {"order_items": [{"sku": "A", "quantity": 1, "price": "11", "discounts": "1.00", "applied_discounts": LISTED}]},
        {
            "orders": [
                {"id": 1, "order_items": [{"applied_discounts": LISTED, "sku": "A", "quantity": 1, "price": "10"}]},
                {"id": 2, "order_items": [{"sku": "B", "quantity": 3, "price_amount": 7.5}], "promotions": {}},
            ]
        },
    ],
    ids=["A", "A again", "B again", "C"],
)
@pytest.mark.parametrize("granted", [(), (off(700, 0),), (off(700, 0), off(1, 1), off(300))], ids=len)
def test_space_between_things_makes_no_difference(body: Any, granted: tuple[Discount, ...]) -> None:
    """They are written in two ways: what is close-set is encoded anew, others are edited where they stand."""
    dense = answer(json.dumps(body, separators=(",", ":")).encode(), *granted, note={"a": 1})
    for spaced in (json.dumps(body), json.dumps(body, indent=2)):
        got = answer(spaced.encode(), *granted, note={"a": 1})
        # As text, since the order of members counts, too.
        assert json.dumps(json.loads(got, parse_float=str)) == json.dumps(json.loads(dense, parse_float=str))


@pytest.mark.parametrize("amount", [0, -1])
def test_a_discount_takes_something_off(amount: int) -> None:
    with pytest.raises(ValueError, match="takes something off"):
        off(amount, 0)


@pytest.mark.parametrize(
    ("granted", "costs", "clamped"),
    [
        ((off(3000),), 0, 0),
        ((off(3500),), 0, 500),
        ((off(3500),), 500, 0),  # a discount on the session's total may reach the shipping, too
        ((off(3500), off(500, cost="shipping", limit=500)), 500, 500),
        ((off(3001, 0),), 0, 1),
    ],
)
def test_what_is_cut_off_is_counted(granted: tuple[Discount, ...], costs: int, clamped: int) -> None:
    parsed = checkout.parse(body_a(("10.00", 3)), "validate")
    assert discounts.settle(parsed, Outcome(discounts=granted, costs=costs)).clamped == clamped


FAMILY_B = [
    # (line as it came, the keys of the line's price, total and list in the answer)
    ({"price": "10.00"}, ("price", "discounts", "applied_discounts")),
    ({"price_amount": "10.00"}, ("price_amount", "discounts_amount", "applied_discounts")),
    ({"price": "10.00", "discounts_amount": "0"}, ("price", "discounts_amount", "applied_discounts")),
    ({"price_amount": "10.00", "discounts": "0"}, ("price_amount", "discounts", "applied_discounts")),
    ({"price": "10.00", "discounts": []}, ("price", "discounts_amount", "discounts")),  # a list by its type
    ({"price": "10.00", "total_discount": "0", "discounts": []}, ("price", "total_discount", "discounts")),
]


@pytest.mark.parametrize(("line", "keys"), FAMILY_B)
def test_family_b_is_answered_in_the_names_that_came(line: dict[str, Any], keys: tuple[str, str, str]) -> None:
    body = json.dumps({"order_items": [{"sku": "S", "quantity": 2, **line}]}).encode()
    got = json.loads(answer(body, off(100, 0), off(50)))
    price, total, listed = keys
    item = got["order_items"][0]
    assert (item[price], item[total], [entry["amount"] for entry in item[listed]]) == ("9.50", "1.00", ["1.00"])
    assert set(item) == {"sku", "quantity", *line, price, total, listed}
    assert (got["discounts"], [entry["amount"] for entry in got["applied_discounts"]]) == ("1.50", ["0.50"])


def test_families_b_and_c_leave_an_empty_list_out_and_family_a_writes_it() -> None:
    line = {"sku": "S", "quantity": 1, "price": "1.00"}
    old = {"applied_discounts": [{"amount": "0.50", "meta": {"list_price": "1.50"}}]}
    got_b = json.loads(answer(json.dumps({"order_items": [{**line, **old}], **old}).encode()))
    assert got_b == {"order_items": [{**line, "price": "1.50", "discounts": "0.00"}], "discounts": "0.00"}
    got_a = json.loads(answer(json.dumps({"items": [line]}).encode()))
    assert got_a == {
        "items": [{**line, "total_discount": "0.00", "discounts": []}],
        "total_discount": "0.00",
        "discounts": [],
    }


def test_family_c_is_one_cart_with_totals_by_order() -> None:
    order = {"order_items": [{"sku": "S", "quantity": 1, "price": "10.00"}], "applied_discounts": [{"amount": "9.00"}]}
    body = json.dumps({"orders": [order, order], "promotion": {}}).encode()
    got = json.loads(answer(body, off(100, 0), off(200, 1), off(400), note={"engine": "x"}))
    assert [part["discounts"] for part in got["orders"]] == ["1.00", "2.00"]
    assert [part["order_items"][0]["price"] for part in got["orders"]] == ["9.00", "8.00"]
    assert ["applied_discounts" in part for part in got["orders"]] == [False, False]
    assert (got["discounts"], [entry["amount"] for entry in got["applied_discounts"]]) == ("7.00", ["4.00"])
    assert got["promotion"] == {"meta": {"mapper": {"engine": "x"}}}


def test_notes_go_to_the_first_order_where_family_c_has_promotions_by_order() -> None:
    order = {"order_items": [{"sku": "S", "quantity": 1, "price": "10.00"}]}
    body = json.dumps({"orders": [order, {**order, "promotion": {"meta": {"keep": 1}}}]}).encode()
    got = json.loads(answer(body, off(100, 1), note={"engine": "x"}))
    assert got["orders"][1]["promotion"] == {"meta": {"keep": 1, "mapper": {"engine": "x"}}}
    assert got["orders"][1]["order_items"][0]["price"] == "9.00"


@pytest.mark.parametrize(
    ("line", "price"),
    [
        # (a line with a discount of an earlier answer, its price when that discount is gone)
        (
            {
                "price": "105.00",
                "total_discount": "35.00",
                "discounts": [{"amount": "35.00", "meta": {"list_price": "140.00"}}],
            },
            "140.00",
        ),
        ({"price": "105.00", "total_discount": "35.00"}, "140.00"),
        ({"price": "105.00", "discounts": [{"amount": "35.00"}]}, "140.00"),
        ({"price": 105.0, "total_discount": "35.00"}, 140.0),  # a number stays a number
        (
            {"price": "140.00", "discounts": [{"amount": "35.00", "meta": {"list_price": "140.00"}}]},
            "140.00",
        ),  # reset by the shop
    ],
)
def test_a_line_whose_discount_is_gone_gets_its_list_price_back(line: dict[str, Any], price: object) -> None:
    body = json.dumps({"items": [{"sku": "S", "quantity": 1, **line}]}).encode()
    assert json.loads(answer(body))["items"][0]["price"] == price


@st.composite
def carts(draw: st.DrawFn) -> tuple[bytes, list[Discount], int]:
    """A document and what an engine may grant it: more than there is to take, now and then."""
    body = draw(documents.checkouts())
    lines = len(checkout.parse(body, "validate").lines)
    on = st.one_of(st.none(), st.integers(0, lines - 1)) if lines else st.none()
    made = st.builds(
        lambda amount, line, cost: off(
            amount, line, **({"cost": "shipping", "limit": 700} if cost and line is None else {})
        ),
        st.integers(1, 30_000),
        on,
        st.booleans(),
    )
    return body, draw(st.lists(made, max_size=6)), draw(st.sampled_from([0, 700]))


@given(carts())
def test_parts_always_add_up_and_nothing_is_negative(cart: tuple[bytes, list[Discount], int]) -> None:
    body, granted, costs = cart
    parsed = checkout.parse(body, "validate")
    settled = discounts.settle(parsed, Outcome(discounts=tuple(granted), costs=costs))
    again = checkout.parse(discounts.write(parsed, settled, {}), "validate")
    assert settled.total + settled.clamped == sum(discount.amount for discount in granted)
    for before, after in zip(parsed.lines, again.lines, strict=True):
        assert after.list_price == before.list_price
        assert after.discount == settled.line_total(before.index) <= before.gross
        assert after.price >= 0
        if before.quantity:
            assert after.price == money.unit_price(before.gross - after.discount, before.quantity)
    listed = [(line.index if line else None, entry["amount"]) for line, entry in again.applied()]
    assert sum(money.parse(amount, parsed.digits) for _, amount in listed) == settled.total
    assert _total(again) == settled.total


def _total(parsed: Checkout) -> int:
    return money.parse(json.loads(parsed.source.raw(parsed.names.totals[0])), parsed.digits)


@given(carts())
def test_validating_our_own_answer_gives_the_same_bytes(cart: tuple[bytes, list[Discount], int]) -> None:
    body, granted, costs = cart
    once = answer(body, *granted, costs=costs)
    assert answer(once, *granted, costs=costs) == once


@given(carts())
def test_without_its_discounts_an_answer_returns_to_list_prices(cart: tuple[bytes, list[Discount], int]) -> None:
    body, granted, costs = cart
    plain = checkout.parse(answer(body), "validate")
    undone = checkout.parse(answer(answer(body, *granted, costs=costs)), "validate")
    assert [line.price for line in undone.lines] == [line.price for line in plain.lines]
    assert _total(undone) == 0


OURS_AT_ROOT = {'"total_discount"', '"discounts"', '"applied_discounts"', '"discounts_amount"'}
OURS_ON_LINE = OURS_AT_ROOT | {'"price"', '"price_amount"'}


@settings(max_examples=300)
@given(carts())
def test_nothing_that_the_contract_does_not_name_ever_changes(cart: tuple[bytes, list[Discount], int]) -> None:
    body, granted, costs = cart
    before, after = documents.read(body), documents.read(answer(body, *granted, costs=costs, note={"engine": "x"}))
    assert without_ours(after) == without_ours(before)
    assert [key for key in after if key in before] == [key for key in before if key in after]


def without_ours(root: dict[str, Any]) -> dict[str, Any]:
    """A tree of `documents.read` without what the mapper owns."""
    kept = {key: value for key, value in root.items() if key not in OURS_AT_ROOT}
    for key in ('"items"', '"order_items"'):
        if key in kept:
            kept[key] = [
                {name: value for name, value in line.items() if name not in OURS_ON_LINE} for line in kept[key]
            ]
    if '"orders"' in kept:
        kept['"orders"'] = [without_ours(order) for order in kept['"orders"']]
    for key in ('"promotions"', '"promotion"'):
        if isinstance(kept.get(key), dict):
            meta = kept[key].get('"meta"', "null")
            meta = {name: value for name, value in meta.items() if name != '"mapper"'} if isinstance(meta, dict) else {}
            kept[key] = {name: value for name, value in kept[key].items() if name != '"meta"'} | {"meta": meta}
    return kept
