"""A validated checkout is converted, to the cent and byte, into the order that Nacelle ingests."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper.domain import checkout as documents
from mapper.domain import discounts
from mapper.domain.outcome import Discount, Outcome
from mapper.nacelle.check import NotAnOrder
from mapper.nacelle.convert import order_of

PAYMENTS = [{"id": "pay-1", "amount": "105.00"}]
VALIDATED: dict[str, Any] = {
    "id": "c-1",
    "currency": "USD",
    "items": [
        {
            "sku": "A",
            "quantity": 2,
            "price": "52.50",
            "total_discount": "35.00",
            "discounts": [
                {"name": "X", "description": "", "amount": "35.00", "effect_type": "e", "meta": {"list_price": "70.00"}}
            ],
        },
        {"sku": "B", "quantity": 1, "price": "5.00", "total_discount": "0.00", "discounts": []},
    ],
    "total_discount": "50.00",
    "discounts": [{"name": "S", "description": "", "amount": "15.00", "effect_type": "e", "meta": {}}],
    "promotions": {"coupon_codes": ["X"], "meta": {"mapper": {"receipt": "r"}}},
}
LINE = {"sku": "A", "quantity": 1, "price": "1.00"}
MULTI: dict[str, Any] = {
    "orders": [{"order_items": [LINE]}],
    "currency": "USD",
    "email": "a@b.c",
    "billing_address": {"x": 1},
    "payments": PAYMENTS,
    "price": "1.00",
    "subtotal": "1.0000",
    "tax_amount": 0,
}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def faults(value: object) -> list[tuple[str, str]]:
    with pytest.raises(NotAnOrder) as caught:
        order_of(body(value))
    return [(fault.pointer, fault.message) for fault in caught.value.faults]


def test_checkout_names_become_order_names() -> None:
    order = order_of(body({**VALIDATED, "payments": PAYMENTS}))
    assert (order.path, order.key) == ("/orders", "c-1")
    (first, second), *_ = (json.loads(order.body)["order_items"],)
    assert first == {
        "sku": "A",
        "quantity": 2,
        "price_amount": "52.50",
        "discounts_amount": "35.00",
        "applied_discounts": VALIDATED["items"][0]["discounts"],
    }
    assert second == {"sku": "B", "quantity": 1, "price_amount": "5.00", "discounts_amount": "0.00"}
    root = json.loads(order.body)
    assert list(root) == [
        "id", "currency", "order_items", "discounts", "applied_discounts", "promotions", "payments",
    ]  # fmt: skip
    assert (root["discounts"], root["applied_discounts"]) == ("50.00", VALIDATED["discounts"])
    assert root["promotions"] == VALIDATED["promotions"]


def test_fields_next_to_the_checkout_are_added_to_the_order() -> None:
    order = order_of(body({"checkout": VALIDATED, "payments": PAYMENTS, "customer": {"id": "u"}, "error": {}}))
    root = json.loads(order.body)
    assert (root["payments"], root["customer"]) == (PAYMENTS, {"id": "u"})
    assert "error" not in root
    assert faults({"checkout": VALIDATED, "payments": PAYMENTS, "error": {"category": "x"}})[0][0] == "/error"
    assert faults({"checkout": VALIDATED, "currency": "EUR"})[0][0] == "/currency"


@pytest.mark.parametrize(
    "spelling", ["1.10", "1e3", "12345678901234567890", '"\\u00e9\\ud800"', "[ 1,  2 ]", '{"a" : 1}']
)
def test_other_values_keep_their_bytes(spelling: str) -> None:
    text = body({**VALIDATED, "payments": PAYMENTS})[:-1] + b',"own":' + spelling.encode() + b"}"
    text = text.replace(b'"sku": "A"', b'"sku": "A", "mine": ' + spelling.encode())
    assert order_of(text).body.count(spelling.encode()) == 2


def test_orders_keep_their_names_and_get_their_own_path() -> None:
    single = {**json.loads(order_of(body({**VALIDATED, "payments": PAYMENTS})).body)}
    assert json.loads(order_of(body(single)).body) == single
    multi = {**MULTI, "orders": [{"order_items": single["order_items"], "discounts": "35.00"}], "discounts": "35.00"}
    order = order_of(body(multi))
    assert (order.path, json.loads(order.body)) == ("/multiorders", multi)


def test_empty_lists_are_removed_and_currency_is_filled_in() -> None:
    empty: dict[str, Any] = {"applied_discounts": []}
    part = {"order_items": [{**LINE, **empty}], "currency": "EUR", **empty}
    multi = {**MULTI, "orders": [part], "currency": None, **empty}
    wanted = {**MULTI, "orders": [{"order_items": [LINE], "currency": "EUR"}], "currency": "EUR"}
    assert json.loads(order_of(body(multi), "USD").body) == wanted
    single = b'{"order_items":[],"payments":[{"amount":1.10}]}'
    assert order_of(single, "USD").body == single[:-1] + b',"currency":"USD"}'


def test_all_faults_are_reported_at_once_with_their_pointers() -> None:
    items = [
        {**VALIDATED["items"][0], "price": "60.00"},
        {"sku": "", "quantity": "1", "price": "5.0000001", "total_discount": "0.00"},
        {"sku": "C", "quantity": 1, "price": "-1", "total_discount": "2.00", "discounts": [{"amount": "1.00"}]},
    ]
    assert [pointer for pointer, _ in faults({**VALIDATED, "items": items, "total_discount": "51.01"})] == [
        "/payments",
        "/order_items/0/price_amount",
        "/order_items/1/sku",
        "/order_items/1/quantity",
        "/order_items/1/price_amount",
        "/order_items/2/price_amount",
        "/order_items/2/discounts_amount",
        "/discounts",
    ]


@pytest.mark.parametrize("currency", [None, "XYZ"])
def test_other_faults_are_reported_without_a_valid_currency(currency: str | None) -> None:
    items = [{"sku": "", "quantity": 1, "price": "1,00"}, {**VALIDATED["items"][0], "price": "60.00"}]
    assert [pointer for pointer, _ in faults({**VALIDATED, "currency": currency, "items": items})] == [
        *(["/currency", "/payments"] if currency is None else ["/payments", "/currency"]),
        "/order_items/0/sku",
        "/order_items/0/price_amount",
    ]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"currency": None}, "/currency"),
        ({"currency": "XYZ"}, "/currency"),
        ({"payments": []}, "/payments"),
        ({"payments": {"a": 1}}, "/payments"),
        ({"total_discount": "49.99"}, "/discounts"),
        ({"items": []}, "/discounts"),
        ({"items": [1]}, "/items/0"),
        ({"discounts": [{"name": "S"}]}, "/applied_discounts/0/amount"),
        ({"order_items": []}, "/order_items"),
        ({"orders": [{"order_items": [LINE]}]}, "/orders"),
        ({"payments": [None]}, "/payments/0"),
        ({"shipping_address": "Berlin"}, "/shipping_address"),
        ({"customer": ["u-1"]}, "/customer"),
        ({"email": 5}, "/email"),
        ({"tax_amount": "1,00"}, "/tax_amount"),
        ({"subtotal": "-1.00"}, "/subtotal"),
        ({"items": [{**VALIDATED["items"][0], "quantity": 0}]}, "/order_items/0/quantity"),
    ],
)
def test_fault_in_an_order_is_reported_with_its_pointer(change: dict[str, Any], pointer: str) -> None:
    assert pointer in [place for place, _ in faults({**VALIDATED, "payments": PAYMENTS, **change})]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        *(({key: None}, f"/{key}") for key in MULTI),
        ({"orders": []}, "/orders"),
        ({"orders": MULTI["orders"] * 101}, "/orders"),
        ({"orders": [*MULTI["orders"], {"order_items": [LINE], "currency": "EUR"}]}, "/orders/1/currency"),
        ({"orders": [{"order_items": [LINE], "shipping_address": []}]}, "/orders/0/shipping_address"),
        ({"orders": [{"order_items": [LINE], "price": "x"}]}, "/orders/0/price"),
        ({"billing_address": [1]}, "/billing_address"),
    ],
)
def test_fault_in_several_orders_is_reported_with_its_pointer(change: dict[str, Any], pointer: str) -> None:
    assert pointer in [place for place, _ in faults({**MULTI, **change})]


@pytest.mark.parametrize("text", [b"", b"[]", b'{"a":1}', b'{"items":[],"items":[]}', b"\xff"])
def test_body_without_order_raises_not_an_order(text: bytes) -> None:
    with pytest.raises(NotAnOrder) as caught:
        order_of(text)
    assert caught.value.faults


lines = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 10_000), st.integers(0, 12_000)), max_size=30)


@given(lines, st.sampled_from("ABC"), st.sampled_from(["USD", "JPY", "KWD"]), st.integers(0, 500))
def test_validate_and_convert_keep_amounts_and_unknown_fields(
    cart: list[tuple[int, int, int]], family: str, currency: str, shipping: int
) -> None:
    digits = {"USD": 2, "JPY": 0, "KWD": 3}[currency]
    given_lines = [
        {"sku": f"S{n}", "quantity": quantity, "price": text(price, digits), "mine": {"n": n}}
        for n, (quantity, price, _) in enumerate(cart)
    ]
    root: dict[str, Any] = {"id": "c-1", "currency": currency, "promotions": {}, "mine": [1.10, "é"]}
    if family == "C":
        half = len(given_lines) // 2
        root["orders"] = [{"order_items": given_lines[:half]}, {"order_items": given_lines[half:]}]
    else:
        root["items" if family == "A" else "order_items"] = given_lines
    checkout = documents.parse(body(root), "validate")
    off = [
        Discount(name="n", description="d", amount=o, effect_type="e", line=n) for n, (*_, o) in enumerate(cart) if o
    ]
    if shipping:
        off.append(Discount(name="s", description="", amount=shipping, effect_type="e", cost="shipping"))
    allocation = discounts.allocate(checkout, Outcome(discounts=tuple(off)))
    validated = discounts.write(checkout, allocation, {"receipt": "r"})
    beside: dict[str, Any] = {"payments": [{"id": 1}]}
    if family == "C":
        beside |= {"billing_address": {"city": "X"}, "email": "a@b.c", "price": "1", "subtotal": "1", "tax_amount": "0"}
    order = order_of(b'{"checkout":' + validated + b"," + body(beside)[1:])
    read = order.checkout
    assert [(line.name, line.quantity, line.list_price, line.discount) for line in read.lines] == [
        (line.name, line.quantity, line.list_price, allocation.line_total(line.index)) for line in checkout.lines
    ]
    assert read.root_discount == allocation.root_total
    assert read.promotions.meta == {"mapper": {"receipt": "r"}}
    assert json.loads(order.body)["mine"] == [1.10, "é"]
    assert order.body.count(b'"mine"') == len(cart) + 1


def text(minor: int, digits: int) -> str:
    return f"{minor / 10**digits:.{digits}f}"
