"""Nacelle's three families of bodies: what is read from them, and the pointer that an error names."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.domain import checkout, document
from mapper.domain.checkout import Checkout
from mapper.domain.errors import InvalidRequest, Operation

LINES = {"A": "items", "B": "order_items", "C": "order_items"}

Members = dict[str, Any]

HUGE = "1e99999999999999999999"  # valid JSON, but beyond any number type


def body_of(family: str, *lines: Members, **root: Any) -> bytes:
    """A body of a family; of C with one order."""
    listed = list(lines) or [line()]
    if family == "C":
        return json.dumps({"orders": [{"order_items": listed}], **root}).encode()
    return json.dumps({LINES[family]: listed, **root}).encode()


def line(**members: Any) -> Members:
    """A valid line; members given as ... are left out."""
    whole = {"sku": "A-1", "quantity": 2, "price": "10.00", **members}
    return {key: value for key, value in whole.items() if value is not ...}


def parse(body: bytes, operation: Operation = "validate", default_currency: str = "") -> Checkout:
    return checkout.parse(body, operation, default_currency)


def one_line(family: str, **members: Any) -> checkout.Line:
    return parse(body_of(family, line(**members))).lines[0]


# -- Families and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "family"),
    [
        ({"items": []}, "A"),
        ({"order_items": []}, "B"),
        ({"orders": []}, "C"),
        ({"items": [], "order_items": []}, "B"),
        ({"items": [], "orders": []}, "C"),
        ({"items": [], "order_items": None, "orders": "x"}, "A"),
        ({"items": [line()], "order_items": [], "orders": []}, "A"),
        ({"items": [], "order_items": [line()], "orders": []}, "B"),
        ({"items": [], "order_items": [], "orders": [{"order_items": []}]}, "C"),
    ],
)
def test_list_of_lines_decides_the_family(root: Members, family: str) -> None:
    assert parse(json.dumps(root).encode()).family.name == family


LISTS: Members = {"items": [line()], "order_items": [line()], "orders": [{"order_items": [line()]}]}


@pytest.mark.parametrize(
    ("lists", "place", "at_consume"),
    [
        (("items", "order_items"), "/order_items", "B"),
        (("items", "orders"), "/orders", "C"),
        (("order_items", "orders"), "/orders", "C"),
    ],
)
def test_two_lists_of_lines_are_refused_at_validate_only(lists: tuple[str, ...], place: str, at_consume: str) -> None:
    body = json.dumps({key: LISTS[key] for key in lists})
    assert refuse(body, place).reason == "two_lists_of_lines"
    assert parse(body.encode(), "consume").family.name == at_consume


A_LINE = [
    # A line of family A: its members, the names of total and list in the answer, and whether it had a list.
    ({}, ("total_discount",), "discounts", False),
    ({"total_discount": "1.00"}, ("total_discount",), "discounts", False),
    ({"discounts": []}, ("total_discount",), "discounts", True),
    ({"discounts": None}, ("total_discount",), "discounts", False),
    ({"discounts": "1.00"}, ("discounts",), "applied_discounts", False),
    ({"discounts_amount": "1.00"}, ("discounts_amount",), "discounts", False),
    ({"applied_discounts": []}, ("total_discount",), "applied_discounts", True),
    ({"total_discount": "0", "discounts": []}, ("total_discount",), "discounts", True),
    ({"total_discount": 0, "discounts": "0"}, ("total_discount", "discounts"), "applied_discounts", False),
]
B_OBJECT = [
    ({}, ("discounts",), "applied_discounts", False),
    ({"discounts": "1.00"}, ("discounts",), "applied_discounts", False),
    ({"discounts_amount": "1.00"}, ("discounts_amount",), "applied_discounts", False),
    ({"discounts": "1.00", "price_amount": "10.00"}, ("discounts",), "applied_discounts", False),
    ({"discounts": []}, ("discounts_amount",), "discounts", True),
    ({"discounts": None, "applied_discounts": None}, ("discounts",), "applied_discounts", False),
    ({"applied_discounts": []}, ("discounts",), "applied_discounts", True),
    ({"applied_discounts": [], "discounts_amount": "0"}, ("discounts_amount",), "applied_discounts", True),
    ({"discounts": "1", "discounts_amount": "1"}, ("discounts", "discounts_amount"), "applied_discounts", False),
    ({"total_discount": 1.5}, ("total_discount",), "applied_discounts", False),
]
B_LINE = [
    *B_OBJECT,
    ({"price_amount": "10.00"}, ("discounts_amount",), "applied_discounts", False),
    ({"price_amount": None}, ("discounts",), "applied_discounts", False),
    ({"price": 10, "price_amount": None}, ("discounts",), "applied_discounts", False),
]
B_ROOT = [*B_OBJECT, ({"price_amount": "10.00"}, ("discounts",), "applied_discounts", False)]


@pytest.mark.parametrize(
    ("family", "members", "totals", "listed", "has_list"),
    [
        *(("A", *row) for row in A_LINE),
        *(("B", *row) for row in B_LINE),
        *(("C", *row) for row in B_LINE),
    ],
)
def test_line_keeps_its_names_or_gets_those_of_its_family(
    family: str, members: Members, totals: tuple[str, ...], listed: str, has_list: bool
) -> None:
    names = one_line(family, **members).names
    assert (names.totals, names.list, names.has_list) == (totals, listed, has_list)


@pytest.mark.parametrize(
    ("family", "root", "totals", "listed", "has_list"),
    [
        *(("A", root, *names) for root, *names in A_LINE),
        *((family, root, *names) for root, *names in B_ROOT for family in "BC"),
    ],
)
def test_root_keeps_its_names_or_gets_those_of_its_family(
    family: str, root: Members, totals: tuple[str, ...], listed: str, has_list: bool
) -> None:
    names = parse(body_of(family, line(), **root)).names
    assert (names.totals, names.list, names.has_list) == (totals, listed, has_list)


def test_each_order_has_its_own_names() -> None:
    orders = [{"order_items": [], "discounts": "0"}, {"order_items": [], "discounts_amount": "0"}]
    found = parse(json.dumps({"orders": orders}).encode())
    assert [order.names.totals for order in found.orders] == [("discounts",), ("discounts_amount",)]
    assert [order.pointer for order in found.orders] == ["/orders/0", "/orders/1"]


@pytest.mark.parametrize(
    ("family", "members", "keys"),
    [
        ("A", {}, ("price",)),
        ("A", {"price_amount": "9.00"}, ("price",)),
        ("B", {}, ("price",)),
        ("B", {"price": None, "price_amount": "10.00"}, ("price_amount",)),
        ("B", {"price_amount": "10"}, ("price", "price_amount")),
    ],
)
def test_price_is_written_back_to_its_own_keys(family: str, members: Members, keys: tuple[str, ...]) -> None:
    found = one_line(family, **members)
    assert (found.price_keys, found.price) == (keys, 1000)


# -- Lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_numbered_across_orders_and_zero_quantities_left_out() -> None:
    of_each = [[line(sku="A"), line(sku="B", quantity=0)], [], [line(sku="C")]]
    found = parse(json.dumps({"orders": [{"order_items": lines} for lines in of_each]}).encode(), "consume")
    assert [(each.index, each.sku, each.pointer) for each in found.lines] == [
        (0, "A", "/orders/0/order_items/0"),
        (1, "B", "/orders/0/order_items/1"),
        (2, "C", "/orders/2/order_items/0"),
    ]
    assert [each.sku for each in found.cart] == ["A", "C"]


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({}, "A-1"),
        ({"variant_id": "V", "product_id": "P"}, "A-1"),
        ({"sku": ..., "variant_id": "V", "product_id": "P"}, "V"),
        ({"sku": None, "variant_id": "V"}, "V"),
        ({"sku": "", "variant_id": "V"}, "V"),
        ({"sku": " \t", "variant_id": " V "}, "V"),
        ({"sku": " A-2", "variant_id": 5}, "A-2"),
        ({"sku": ..., "variant_id": None, "product_id": "P"}, "P"),
        ({"sku": 12345678901234567890}, "12345678901234567890"),
    ],
)
def test_line_is_named_by_its_most_specific_id(members: Members, name: str) -> None:
    assert one_line("A", **members).name == name


@pytest.mark.parametrize(
    ("members", "price", "discount", "list_price"),
    [
        ({}, 1000, 0, 1000),
        ({"price": 10}, 1000, 0, 1000),
        ({"price": "9.50", "total_discount": "1.00"}, 950, 100, 1000),
        ({"price": "6.67", "total_discount": "9.99", "quantity": 3}, 667, 999, 1000),
        ({"price": "0.00", "total_discount": "20.00"}, 0, 2000, 1000),
        ({"price": "9.50", "discounts": [{"amount": "0.40"}, {"amount": "0.60"}]}, 950, 100, 1000),
        ({"price": "9.50", "discounts": [{"amount": 0.40}, {"amount": 0.60}]}, 950, 100, 1000),
        ({"price": "9.50", "total_discount": "1.00", "discounts": [{"amount": "0.40"}]}, 950, 100, 1000),
        ({"price": "8.00", "discounts": [{"amount": "1.00", "meta": {"list_price": "9.99"}}]}, 800, 100, 999),
        ({"price": "8.00", "discounts": [{"amount": "1.00", "meta": {"list_price": 9.99}}]}, 800, 100, 999),
        ({"price": "8.00", "discounts": [{"amount": "1.00", "meta": {"list_price": None}}]}, 800, 100, 850),
        ({"price": "8.00", "discounts": [{"amount": "1.00", "meta": None}]}, 800, 100, 850),
        ({"price": "8.00", "discounts": [{"amount": "1.00", "meta": ["list_price"]}]}, 800, 100, 850),
        ({"price": "10.00", "quantity": 0, "total_discount": "1.00"}, 1000, 100, 1000),
    ],
)
def test_list_price_comes_from_the_note_or_the_discount(
    members: Members, price: int, discount: int, list_price: int
) -> None:
    found = one_line("A", **members)
    assert (found.price, found.discount, found.list_price) == (price, discount, list_price)
    assert found.gross == list_price * found.quantity


@pytest.mark.parametrize(
    ("root", "discount"),
    [
        ({}, 0),
        ({"discounts": [{"amount": "3.00"}, {"amount": "0.50"}]}, 350),
        ({"discounts": [{"amount": "3.00"}], "total_discount": "4.00"}, 300),
        ({"total_discount": "4.00"}, 300),
        ({"total_discount": 4}, 300),
    ],
)
def test_root_discount_excludes_line_discounts(root: Members, discount: int) -> None:
    assert parse(body_of("A", line(total_discount="1.00"), **root)).root_discount == discount


def test_discount_entries_name_their_lines() -> None:
    lines = [line(discounts=[{"amount": "1.00"}]), line(), line(discounts=[{"amount": "2.00"}, {"amount": "3.00"}])]
    found = list(parse(body_of("A", *lines, discounts=[{"amount": "4.00"}])).discount_entries())
    assert [(each.index if each else None, entry["amount"]) for each, entry in found] == [
        (0, "1.00"),
        (2, "2.00"),
        (2, "3.00"),
        (None, "4.00"),
    ]


# -- The rest of the body ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "default", "currency", "digits"),
    [
        ({}, "", "", 2),
        ({}, "JPY", "JPY", 0),
        ({"currency": None}, "KWD", "KWD", 3),
        ({"currency": ""}, "KWD", "KWD", 3),
        ({"currency": "eur"}, "JPY", "EUR", 2),
        ({"currency": "JPY"}, "", "JPY", 0),
        ({"currency": "CLF"}, "", "CLF", 4),
    ],
)
def test_currency_comes_from_the_body_or_the_settings(root: Members, default: str, currency: str, digits: int) -> None:
    found = parse(body_of("A", line(price="10"), **root), default_currency=default)
    assert (found.currency, found.digits, found.lines[0].price) == (currency, digits, 10 * 10**digits)


def of_orders(*currencies: str | None, **root: Any) -> str:
    """A cart of several orders, each in its own currency."""
    return json.dumps({"orders": [{"order_items": [line()], "currency": each} for each in currencies], **root})


@pytest.mark.parametrize(
    ("root", "orders", "currency"),
    [({}, ("JPY", None, "jpy"), "JPY"), ({"currency": "JPY"}, ("", "jpy"), "JPY"), ({}, (None,), "USD")],
)
def test_currency_of_the_orders_is_used_if_the_cart_has_none(
    root: Members, orders: tuple[str | None, ...], currency: str
) -> None:
    assert parse(of_orders(*orders, **root).encode(), default_currency="USD").currency == currency


def test_cart_of_two_currencies_is_refused() -> None:
    assert refuse(of_orders("USD", "EUR"), "/orders/1/currency").reason == "two_currencies"
    assert refuse(of_orders("JPY", currency="USD"), "/orders/0/currency", "consume").reason == "two_currencies"
    refuse(of_orders("USD", "XYZ"), "/orders/1/currency")


@pytest.mark.parametrize(
    ("sent", "value"), [(None, ""), ("", ""), ("  ", ""), ("a/b c", "a/b c"), (" 77\n", "77"), (77, "77")]
)
@pytest.mark.parametrize("key", ["id", "source_id"])
def test_id_is_a_string_or_a_number(key: str, sent: Any, value: str) -> None:
    assert getattr(parse(body_of("B", line(), **{key: sent})), key) == value
    assert not getattr(parse(body_of("B")), key)


def test_star_in_a_pointer_adds_up_the_amounts_of_a_list() -> None:
    rates: list[Any] = [{"price": "4.95"}, None, {"price": None}, {"price": 2}]
    orders = [{"order_items": [], "shipping_rate": rate} for rate in rates]
    found = parse(
        json.dumps({"orders": orders, "shipping_rate": {"price": "1.00"}, "list": [["1", "2"], ["3"]]}).encode()
    )
    assert found.amount_at("/orders/*/shipping_rate/price") == 695
    assert found.amount_at("/list/*/*") == 600
    assert [found.amount_at(at) for at in ("/orders/*/x", "/shipping_rate/*/price", "/x/*", "/*")] == [None] * 4
    assert found.amount_at("/shipping_rate/price") == 100
    orders[3]["shipping_rate"] = {"price": "x"}
    with pytest.raises(InvalidRequest) as refused:
        parse(json.dumps({"orders": orders}).encode()).amount_at("/orders/*/shipping_rate/price")
    assert refused.value.pointer == "/orders/3/shipping_rate/price"


def test_amount_with_more_digits_than_its_currency_is_refused() -> None:
    for currency, price, minor in (("JPY", "1000.00", 1000), ("USD", "10.500", 1050), ("KWD", "1.2500", 1250)):
        assert parse(body_of("A", line(price=price), currency=currency)).lines[0].list_price == minor
    refuse(body_of("A", line(price="1000.50"), currency="JPY").decode(), "/items/0/price")
    refuse(body_of("A", line(price="1.2505"), currency="KWD").decode(), "/items/0/price")


def test_configured_pointers_read_values_and_amounts() -> None:
    found = parse(
        body_of(
            "A",
            line(metadata={"gift": [1, "2.50"], "kg": 1.10}),
            metadata={"cart_id": "c", "shipping": "4.95", "fee": 5},
        )
    )
    first = found.lines[0]
    assert found.at("/metadata/cart_id") == "c"
    assert found.at("/metadata/x") is None
    at_line = [found.at_line(first, f"/metadata/{name}") for name in ("gift/1", "gift/0", "kg", "x")]
    assert at_line == ["2.50", 1, Decimal("1.1"), None]
    assert [found.amount_at(f"/metadata/{name}") for name in ("shipping", "fee", "x")] == [495, 500, None]
    assert found.amount_at("/metadata/gift/1", first) == 250


@pytest.mark.parametrize("places", [1, 6, 7, 12])
def test_zero_accepts_any_number_of_trailing_zeros(places: int) -> None:
    zero = f"0.{'0' * places}"
    body = f'{{"items":[{{"sku":"A","quantity":1,"price":1,"discounts":[{{"amount":{zero}}}]}}],"fee":{zero}}}'
    found = parse(body.encode())
    assert (found.amount_at("/fee"), found.lines[0].discount) == (0, 0)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('" o-1 "', "o-1"),
        ("77", "77"),
        ("7.50", "7.50"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ("1" * 30, "1" * 30),
        ('"a\\u002fb"', "a/b"),
        ("true", ""),
        ("null", ""),
        ("[1]", ""),
    ],
)
def test_id_at_a_pointer_keeps_its_spelling(written: str, value: str) -> None:
    found = parse(f'{{"items":[],"x":["\\ud800",{{"id":{written}}}]}}'.encode())
    assert checkout.id_at(found.source, "/x/1/id") == value


@pytest.mark.parametrize("written", ['"\\ud800"', f'"{"x" * 256}"', "1" * 256, '".."'])
def test_invalid_id_at_a_pointer_is_refused(written: str) -> None:
    found = parse(f'{{"items":[],"x":{written}}}'.encode())
    with pytest.raises(InvalidRequest) as refused:
        checkout.id_at(found.source, "/x")
    assert refused.value.pointer == "/x"


@pytest.mark.parametrize(
    ("spelled", "reason"),
    [
        *((odd, "not_money") for odd in ('"x"', "true", "[]", "{}", '"1.001"', "1.001", "1e2")),
        *((odd, "negative_amount") for odd in ('"-1"', "-1", '"-0"')),
        (HUGE, "invalid_request"),
    ],
)
def test_invalid_amount_at_a_pointer_is_refused(spelled: str, reason: str) -> None:
    found = parse(f'{{"items":[{{"sku":"A","quantity":1,"price":1,"fee":{spelled}}}],"fee":{spelled}}}'.encode())
    for at, line_of in [("/fee", None), ("/items/0/fee", found.lines[0])]:
        with pytest.raises(InvalidRequest) as refused:
            found.amount_at("/fee", line_of)
        assert (refused.value.pointer, refused.value.reason) == (at, reason)


# -- Refusals, each with its pointer ----------------------------------------------------------------------------------

NO_AMOUNTS = [
    "x",
    "",
    " 1",
    "1e5",
    "1_000",
    "+1",
    "1,00",
    ".5",
    "007",
    "NaN",
    "9" * 13,
    "1.005",
    1.005,
    1e300,
    "-1",
    -1,
]


def with_line(key: str, *values: Any, below: str = "") -> list[tuple[Members, str]]:
    """Lines with one invalid member, and its pointer."""
    return [(line(**{key: value}), f"/{key}{below}") for value in values]


def with_root(key: str, *values: Any, below: str = "") -> list[tuple[Members, str]]:
    """Roots with one invalid member, and its pointer."""
    return [({key: value}, f"/{key}{below}") for value in values]


def with_promotions(key: str, *values: Any, below: str = "") -> list[tuple[Members, str]]:
    """Roots with one invalid member of promotions, and its pointer."""
    return [({"promotions": {key: value}}, f"/promotions/{key}{below}") for value in values]


def marked(*prices: Any) -> list[Members]:
    """Discounts whose meta notes these list prices."""
    return [{"amount": "1", "meta": {"list_price": price}} for price in prices]


BAD_LINES: list[tuple[Any, str]] = [
    *((no_line, "") for no_line in (None, 5, "x", [], [{"sku": "A"}], [[{"sku": "A"}]])),
    ({}, "/sku"),
    (line(sku=...), "/sku"),
    *with_line("sku", "", " ", None, True, 1.5, -1, [], {}),
    *with_line("variant_id", True, 1.5, -1, [], {}),
    *with_line("product_id", True, 1.5, -1, [], {}),
    (line(quantity=...), "/quantity"),
    *with_line("quantity", None, "2", 1.0, 1.5, -1, True, [], {}, 10**6 + 1, 10**400),
    (line(price=...), "/price"),
    *with_line("price", None, "-0", -0.01, True, [], {}, *NO_AMOUNTS),
    *with_line("total_discount", True, [], {}, *NO_AMOUNTS),
    *with_line("discounts_amount", True, [], {}, *NO_AMOUNTS),
    *with_line("discounts", True, {}, *NO_AMOUNTS),
    *with_line("applied_discounts", True, {}, "1.00", 1),
    (line(discounts=[], applied_discounts=[]), "/applied_discounts"),
    *with_line("discounts", ["x"], [None], [[]], [5, {"amount": "1"}], below="/0"),
    *with_line("discounts", [{"amount": "1"}, 5], below="/1"),
    *with_line("discounts", [{}], *([{"amount": odd}] for odd in (None, True, [], {}, *NO_AMOUNTS)), below="/0/amount"),
    *with_line("applied_discounts", [{"amount": "1"}, {"amount": "-1"}], below="/1/amount"),
    *with_line("discounts", *(marked(odd) for odd in (True, [], {}, *NO_AMOUNTS)), below="/0/meta/list_price"),
    *with_line("discounts", marked("3", "4"), below="/1/meta/list_price"),
]

BAD_B_LINES: list[tuple[Any, str]] = [
    (line(price=...), "/price"),
    (line(price=..., price_amount="x"), "/price_amount"),
    *with_line("price_amount", "9.00", True, [], {}, *NO_AMOUNTS),
    *with_line("discounts", True, {}, "x", "-1", -1),
    *with_line("discounts_amount", True, [], {}, "x", -1),
    *with_line("applied_discounts", True, {}, "1.00"),
    (line(discounts=[], applied_discounts=[]), "/discounts"),
    *with_line("applied_discounts", [{}], below="/0/amount"),
    *with_line("applied_discounts", [7], below="/0"),
]

BAD_IDS = [True, [], {}, ".", "..", " .. ", "a\nb", "a\x00b", "\ud800", "x" * 256]
BAD_ROOTS: list[tuple[Members, str]] = [
    *with_root("currency", "XYZ", "EURO", " EUR", "€", 978, True, [], {}),
    *with_root("id", *BAD_IDS),
    *with_root("source_id", *BAD_IDS),
    *with_root("promotions", "x", 5, True, [], ["A"]),
    *with_root("promotion", "x", 5, True, [], ["A"]),
    ({"promotions": {}, "promotion": {}}, "/promotion"),
    *with_promotions("coupon_codes", "A", 5, True, {}, ["A"] * 101),
    *with_promotions("coupon_codes", ["A", 5], ["A", None], ["A", True], ["A", []], ["A", {}], below="/1"),
    *with_promotions("identifiers", "A", 5, True, {}),
    *with_promotions("identifiers", ["A", "a\x00b"], ["A", "\ud800"], below="/1"),
    *with_promotions("referral_code", 5, True, [], {}),
    *with_promotions("loyalty_card", 5, True, [], {}),
    *with_promotions("meta", 0, False, "", "x", [1], 1.5),
    *with_root("total_discount", True, [], {}, "x", "-1"),
    *with_root("discounts", True, {}, "x"),
    *with_root("discounts", [{"amount": "1.00"}, {"amount": "x"}], below="/1/amount"),
    *with_root("discounts", [7], below="/0"),
]

NO_LISTS = ["null", "{}", "5", '"x"']
BAD_BODIES: list[tuple[str, str]] = [
    *((body, "") for body in ("[]", "{}", '{"id":"1"}', "", "x")),
    *((f'{{"{key}":{odd}}}', f"/{key}") for key in ("items", "order_items", "orders") for odd in NO_LISTS),
    ('{"orders":[5]}', "/orders/0"),
    ('{"orders":[{"order_items":[]},[]]}', "/orders/1"),
    *((f'{{"orders":[{{{odd}}}]}}', "/orders/0/order_items") for odd in ("", '"items":[]', '"order_items":{}')),
    ('{"orders":[{"order_items":[],"discounts":{}}]}', "/orders/0/discounts"),
    ('{"orders":[{"order_items":[],"promotion":5}]}', "/orders/0/promotion"),
    (
        '{"orders":[{"order_items":[],"promotion":{"coupon_codes":[5]}}]}',
        "/orders/0/promotion/coupon_codes/0",
    ),
    ('{"items":[],"items":[]}', "/items"),
    ('{"items":[{"sku":"A","sku":"B"}]}', "/items/0/sku"),
    (f'{{"items":[],"promotions":{{"meta":{{"x":{HUGE}}}}}}}', "/promotions/meta"),
    (f'{{"items":[],"promotions":{{"coupon_codes":[{HUGE}]}}}}', "/promotions/coupon_codes/0"),
    (f'{{"items":[],"discounts":[{{"amount":{HUGE}}}]}}', "/discounts"),
    (f'{{"items":[{{"sku":"A","quantity":1,"price":{HUGE}}}]}}', "/items/0/price"),
    (f'{{"items":[{{"sku":"A","quantity":1,"price":1,"discounts":[{HUGE}]}}]}}', "/items/0/discounts"),
    (f'{{"items":[{{"sku":"A","quantity":{"1" * 5000},"price":1}}]}}', "/items/0/quantity"),
]


@pytest.mark.parametrize(("wrong", "place"), BAD_LINES)
def test_invalid_line_of_family_a_is_refused_with_its_pointer(wrong: Any, place: str) -> None:
    refuse(json.dumps({"items": [line(), wrong]}), f"/items/1{place}")


@pytest.mark.parametrize(("wrong", "place"), BAD_B_LINES)
def test_invalid_line_of_family_b_and_c_is_refused_with_its_pointer(wrong: Any, place: str) -> None:
    refuse(json.dumps({"order_items": [line(), wrong]}), f"/order_items/1{place}", "consume")
    orders = [{"order_items": []}, {"order_items": [wrong]}]
    refuse(json.dumps({"orders": orders}), f"/orders/1/order_items/0{place}", "consume")


@pytest.mark.parametrize(("wrong", "place"), BAD_ROOTS)
def test_invalid_root_is_refused_with_its_pointer(wrong: Members, place: str) -> None:
    refuse(json.dumps({"items": [line()], **wrong}), place)


@pytest.mark.parametrize(("body", "place"), BAD_BODIES)
def test_invalid_body_is_refused_with_its_pointer(body: str, place: str) -> None:
    refuse(body, place)


def refuse(body: str, place: str, operation: Operation = "validate") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse(body.encode(), operation)
    assert refused.value.pointer == refused.value.details["pointer"] == place
    return refused.value


def test_consume_refuses_a_checkout_and_both_operations_accept_orders() -> None:
    assert refuse('{"items":[]}', "/items", "consume").reason == "checkout_at_consume"
    for family in "BC":
        assert [parse(body_of(family), each).family.name for each in ("validate", "consume")] == [family] * 2


def test_1000_lines_are_accepted_and_1001_refused() -> None:
    small = line(quantity=1)
    assert len(parse(body_of("A", *[small] * 1000)).lines) == 1000
    refuse(body_of("A", *[small] * 1001).decode(), "/items")
    refuse(body_of("B", *[small] * 1001).decode(), "/order_items")
    refuse(json.dumps({"orders": [{"order_items": [small] * 1001}]}), "/orders/0/order_items")
    orders = [{"order_items": [small] * 500}, {"order_items": [small] * 500}]
    assert len(parse(json.dumps({"orders": orders}).encode()).lines) == 1000
    refuse(json.dumps({"orders": [*orders, {"order_items": [small]}]}), "/orders")


# -- Random bodies ----------------------------------------------------------------------------------------------------

KEYS = [
    *(
        "items",
        "order_items",
        "orders",
        "currency",
        "id",
        "source_id",
        "promotions",
        "promotion",
        "coupon_codes",
        "meta",
    ),
    *(
        "referral_code",
        "loyalty_card",
        "identifiers",
        "sku",
        "variant_id",
        "product_id",
        "quantity",
        "price",
        "name",
        "x",
    ),
    *("price_amount", "total_discount", "discounts", "discounts_amount", "applied_discounts", "amount", "list_price"),
]
ODD = [
    *("null", "true", "0", "1", "2", "-1", "1.5", "1e5", HUGE, "9" * 5000),
    *('""', '"1.00"', '"-1"', '"A"', '"JPY"', '"\\ud800"', "[]", "{}", "[[]]", "[{}]"),
]
VALUES = st.recursive(
    st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5).map(
            lambda members: "{" + ",".join(f'"{key}":{value}' for key, value in members.items()) + "}"
        )
    ),
    max_leaves=6,
)
REST = {"coupon_codes": ["A"], "meta": {"mapper": {}}, "referral_code": "R"}
WHOLE = [
    body_of("A", line(), line(discounts=marked("10.00")), id="o-1", currency="EUR", promotions=REST),
    body_of(
        "B", line(price_amount="10.00"), line(applied_discounts=marked("10")), id="o-1", currency="EUR", promotion=REST
    ),
    body_of("C", line(discounts="1"), line(applied_discounts=marked(10)), id="o-1", currency="EUR", promotion=REST),
]


def only_invalid_requests(body: bytes) -> None:
    """Reads all of a body for both endpoints; the only error is `InvalidRequest`."""
    for operation in ("validate", "consume"):
        try:
            found = parse(body, operation)
            assert found.source.replace({}) == body.strip()
            assert all(each.list_price >= 0 <= each.discount for each in found.lines)
            list(found.discount_entries())
            found.at("/promotions/meta/x")
        except InvalidRequest as refused:
            assert refused.pointer == "" or refused.pointer.startswith("/")  # noqa: PT017 - most bodies are refused


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_random_objects_raise_only_invalid_request(members: dict[str, str]) -> None:
    only_invalid_requests(("{" + ",".join(f'"{key}":{value}' for key, value in members.items()) + "}").encode())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_random_values_at_any_place_raise_only_invalid_request(whole: bytes, data: st.DataObject) -> None:
    """One value of a valid body, at any depth, is replaced."""
    places = list(places_of(json.loads(whole)))
    place, value = data.draw(st.sampled_from(places)), data.draw(VALUES)
    changed = json.dumps(replaced(json.loads(whole), place, "@@"))
    only_invalid_requests(changed.replace('"@@"', value).encode())


def places_of(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inner for found in [(*place, key), *places_of(each, (*place, key))]]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    here = value
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = new
    return value


@pytest.mark.parametrize("whole", WHOLE)
def test_lost_or_changed_bytes_raise_only_invalid_request(whole: bytes) -> None:
    """Every byte of a valid body, removed and replaced: some 4,000 bodies."""
    for at in range(len(whole)):
        for odd in (b"", b"0", b'"', b"]"):
            only_invalid_requests(whole[:at] + odd + whole[at + 1 :])


def test_amount_on_each_of_many_lines_reads_the_list_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [{"sku": f"S{number}", "quantity": 1, "price": "1.00", "wrap": number + 0.5} for number in range(300)]
    cart = checkout.parse(json.dumps({"items": lines}).encode(), "validate")
    read: list[int] = []
    original = document.Array.items.fget  # type: ignore[attr-defined]

    def items(array: document.Array) -> list[tuple[int, int]]:
        read.append(array._items is None)
        return original(array)  # type: ignore[no-any-return]

    monkeypatch.setattr(document.Array, "items", property(items))
    assert [cart.amount_at("/wrap", line) for line in cart.lines] == [100 * n + 50 for n in range(300)]
    assert sum(read) == 1
