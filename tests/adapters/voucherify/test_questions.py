"""The Voucherify adapter: its requests."""

import json
from typing import Any

import pytest

from mapper.domain.checkout import Checkout, parse
from mapper.domain.errors import EngineRejected, InvalidRequest
from tests.adapters.voucherify.talk import (
    AMOUNT,
    ORDER,
    SHIRT,
    TIER,
    applies,
    body_of,
    cart,
    engine,
    fails,
    failure,
    invalid,
    order,
    refusals,
    replayed,
    share,
    valid,
)

# --- Requests ---------------------------------------------------------------------------------------------------------


def test_validation_request_has_exactly_these_fields() -> None:
    checkout = cart(SHIRT, ("MUG", 1, "5.50"), codes=["SAVE"], customer={"id": 7, "email": "a@b.c"}, metadata={"a": 1})
    _, [request] = replayed(engine().validate(checkout, ORDER), invalid(fails("SAVE", "voucher_expired")))
    assert body_of(request) == {
        "redeemables": [{"object": "voucher", "id": "SAVE"}],
        "order": {
            "amount": 4550,
            "items": [
                {
                    "source_id": "SHIRT-M",
                    "related_object": "sku",
                    "quantity": 2,
                    "price": 2000,
                    "amount": 4000,
                    "product": {"source_id": "SHIRT"},
                },
                {"source_id": "MUG", "related_object": "sku", "quantity": 1, "price": 550, "amount": 550},
            ],
        },
        "customer": {"source_id": "7"},
        "options": {"expand": ["order", "redeemable"]},
    }
    assert (request.method, request.path, request.repeatable) == ("POST", "/v1/validations", True)


def test_redemption_request_adds_order_and_is_not_repeatable() -> None:
    paid = order(SHIRT, codes=["SAVE"])
    _, [request] = replayed(engine().redeem(paid, ORDER), failure("voucher_expired"))
    assert body_of(request)["order"] == {
        "source_id": ORDER,
        "status": "PAID",
        "amount": 4000,
        "items": body_of(request)["order"]["items"],
    }
    assert (request.method, request.path, request.repeatable) == ("POST", "/v1/redemptions", False)


def test_requests_send_list_prices() -> None:
    reduced = {
        "sku": "A",
        "quantity": 3,
        "price": "8.33",
        "discounts": [{"amount": "5.01", "meta": {"list_price": "10.00"}}],
    }
    for conversation in (
        engine().validate(cart(reduced, codes=["X"]), ORDER),
        engine().redeem(
            order({**reduced, "applied_discounts": reduced["discounts"], "discounts": "5.01"}, codes=["X"]), ORDER
        ),
    ):
        request = next(conversation)
        assert body_of(request)["order"]["amount"] == 3000


def test_only_configured_metadata_is_sent() -> None:
    options = {
        "ORDER_METADATA": "currency=/currency, ratio=/metadata/ratio, none=/nowhere",
        "ITEM_METADATA": "colour=/colour",
        "CUSTOMER_METADATA": "tier=/customer/tier",
        "REDEMPTION_METADATA": "channel=/metadata/channel",
        "PROMOTIONS": "qualify",
    }
    checkout = cart(SHIRT, codes=["X"], customer={"id": "c", "tier": "gold"}, metadata={"ratio": 1.5, "channel": "web"})
    _, [qualification, request] = replayed(
        engine(**options).validate(checkout, ORDER), {"redeemables": {"data": []}}, invalid(fails("X", "not_found"))
    )
    for body in (body_of(qualification), body_of(request)):
        assert body["order"]["metadata"] == {"currency": "USD", "ratio": 1.5}
        assert body["order"]["items"][0]["metadata"] == {"colour": "red"}
        assert body["customer"] == {"source_id": "c", "metadata": {"tier": "gold"}}
        assert body["metadata"] == {"channel": "web"}


def test_session_lock_is_sent_only_when_configured() -> None:
    options = {"SESSION_LOCK_TTL": "900"}
    key = f"nacelle:{ORDER}"
    asked = next(engine(**options).validate(cart(SHIRT, codes=["X"]), ORDER))
    redeemed = next(engine(**options).redeem(order(SHIRT, codes=["X"]), ORDER))
    assert body_of(asked)["session"] == {"type": "LOCK", "key": key, "ttl": 900, "ttl_unit": "SECONDS"}
    assert body_of(redeemed)["session"] == {"type": "LOCK", "key": key}
    assert "session" not in body_of(next(engine().validate(cart(SHIRT, codes=["X"]), ORDER)))


ALL_NAMES = {"sku": "S", "variant_id": "V", "product_id": "P", "quantity": 1, "price": "1"}


@pytest.mark.parametrize(
    ("option", "line", "expected"),
    [
        ("sku", ALL_NAMES, {"source_id": "S", "related_object": "sku", "product": {"source_id": "P"}}),
        ("variant_id", ALL_NAMES, {"source_id": "V", "related_object": "sku", "product": {"source_id": "P"}}),
        ("product_id", ALL_NAMES, {"source_id": "P", "related_object": "product", "sku": {"source_id": "S"}}),
        ("variant_id:product", ALL_NAMES, {"source_id": "V", "related_object": "product", "sku": {"source_id": "S"}}),
        ("sku", {"product_id": "P"}, {"source_id": "P", "related_object": "product"}),
        ("product_id", {"variant_id": "V"}, {"source_id": "V", "related_object": "sku"}),
    ],
)
def test_line_is_sent_under_configured_item_id(option: str, line: dict[str, Any], expected: dict[str, Any]) -> None:
    checkout = cart({"quantity": 1, "price": "1", **line}, codes=["X"])
    [sent] = body_of(next(engine(ITEM_ID=option).validate(checkout, ORDER)))["order"]["items"]
    assert sent == {**expected, "quantity": 1, "price": 100, "amount": 100}


@pytest.mark.parametrize("customer", [None, {}, {"id": ""}, {"id": " "}, {"id": None}, {"id": True}, {"id": {"a": 1}}])
def test_guest_is_not_sent_as_customer(customer: Any) -> None:
    checkout = cart(SHIRT, codes=["X"], **({} if customer is None else {"customer": customer}))
    assert "customer" not in body_of(next(engine(CUSTOMER_METADATA="a=/currency").validate(checkout, ORDER)))


@pytest.mark.parametrize(
    ("currency", "exponent", "price", "units"),
    [
        ("USD", "2", "140.00", 14000),
        ("JPY", "2", "500", 50000),
        ("JPY", "0", "500", 500),
        ("KWD", "3", "1.505", 1505),
        ("KWD", "2", "1.500", 150),
        ("KWD", "2", "1.505", None),
        ("USD", "1", "0.55", None),
    ],
)
def test_inexact_prices_are_rejected(currency: str, exponent: str, price: str, units: int | None) -> None:
    conversation = engine(EXPONENT=exponent).validate(cart(("A", 1, price), codes=["X"], currency=currency), ORDER)
    if units is None:
        with pytest.raises(EngineRejected) as caught:
            next(conversation)
        assert caught.value.reason == "inexact_amount"
    else:
        assert body_of(next(conversation))["order"]["items"][0]["price"] == units


def test_more_than_500_lines_are_rejected_without_a_call() -> None:
    with pytest.raises(EngineRejected) as caught:
        next(engine().validate(cart(*[(f"S{n}", 1, "1") for n in range(501)], codes=["X"]), ORDER))
    assert caught.value.reason == "too_many_lines"


def test_reply_size_limit_fits_the_largest_answer() -> None:
    """Sized like the vendor's examples: every line in full, for each redeemable and once more for the whole order."""
    lines = [(f"SKU-{n:04}-" + "x" * 80, 5, "100.00") for n in range(500)]
    codes = [f"CODE-{n}" for n in range(30)]
    checkout = cart(*lines, codes=codes)
    [asked] = [next(engine().validate(checkout, ORDER))]
    full = {**FULL_LINE, "source_id": lines[0][0], "sku": {**FULL_LINE["sku"], "source_id": lines[0][0]}}
    whole = share(0, *[full] * 500)
    largest = len(json.dumps(valid(*[applies(code, whole, discount=AMOUNT) for code in codes], order=whole), indent=1))
    assert 2 * 1024 * 1024 < largest < asked.reply_bytes
    assert next(engine().redeem(order(*lines, codes=codes), ORDER)).reply_bytes > largest
    # A look-up may read another cart; a small request has a small answer.
    assert next(engine().look_up(order(SHIRT), ORDER, "")).reply_bytes == 64 * 1024 * 1024
    assert next(engine().validate(cart(SHIRT, codes=["X"]), ORDER)).reply_bytes < 1024 * 1024


FULL_LINE: dict[str, Any] = {
    **dict.fromkeys(
        [
            *("quantity", "discount_quantity", "initial_quantity", "amount", "discount_amount", "price"),
            *("applied_discount_amount", "applied_discount_quantity", "applied_quantity", "applied_quantity_amount"),
            *("initial_amount", "subtotal_amount"),
        ],
        10_000,
    ),
    **dict.fromkeys(["id", "sku_id", "product_id", "related_object", "source_id", "object"], "sku_0b7d7dfb090be5c619"),
    "product": {"id": "prod_0b7d7dfb090be5c619", "source_id": "x" * 80, "name": "y" * 120, "price": 10_000},
    "sku": {"id": "sku_0b7d7dfb090be5c619", "source_id": "x" * 80, "sku": "y" * 120, "price": 10_000},
    "metadata": {},
}


# --- Codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promotions", "sent", "refused"),
    [
        ({"coupon_codes": ["A", "B", "A"]}, ["A", "B"], []),
        ({"coupon_codes": ["save", "SAVE", " save "]}, ["save"], []),
        ({"coupon_codes": ["A"], "referral_code": "REF"}, ["A", "REF"], []),
        # A code may look like an internal id of Voucherify.
        ({"coupon_codes": ["v_day10", "promo_10", "stack_up"]}, ["v_day10", "promo_10", "stack_up"], []),
        ({"coupon_codes": ["v_24rljiUfd", TIER], "referral_code": "v_1"}, ["v_24rljiUfd", TIER, "v_1"], []),
        ({"coupon_codes": ["A"], "loyalty_card": "L"}, ["A"], [("L", "reward_required", "missing_reward")]),
        (
            {"coupon_codes": [f"C{n}" for n in range(32)]},
            [f"C{n}" for n in range(30)],
            [("C30", "too_many_codes", ""), ("C31", "too_many_codes", "")],
        ),
    ],
)
def test_codes_are_deduplicated_and_refused_locally_where_possible(
    promotions: dict[str, Any], sent: list[str], refused: list[tuple[str, str, str]]
) -> None:
    answer = valid(*[applies(code, share(), discount=AMOUNT) for code in sent])
    outcome, [request] = replayed(engine().validate(cart(SHIRT, promotions=promotions), ORDER), answer)
    assert [one["id"] for one in body_of(request)["redeemables"]] == sent
    assert refusals(outcome) == refused


@pytest.mark.parametrize(
    "checkout",
    [
        cart(SHIRT),
        cart(("A", 0, "1.00"), codes=["X"]),
        cart(SHIRT, promotions={"loyalty_card": "L"}),
    ],
)
def test_cart_without_codes_or_goods_costs_no_call(checkout: Checkout) -> None:
    outcome, requests = replayed(engine().validate(checkout, ORDER))
    assert (outcome.discounts, requests) == ((), [])


@pytest.mark.parametrize(
    ("meta", "option", "reward"),
    [
        ({"reward": {"id": "rew_1", "points": 50}}, "", {"id": "rew_1", "points": 50}),
        ({"reward": {"id": "rew_1"}}, "rew_2", {"id": "rew_1"}),
        ({}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": -5}}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": 0}}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": 1}}, "rew_2", {"id": "rew_2", "points": 1}),
        ({"reward": {"points": True}}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": "5"}}, "rew_2", {"id": "rew_2"}),
    ],
)
def test_loyalty_card_is_sent_with_its_reward(meta: dict[str, Any], option: str, reward: dict[str, Any]) -> None:
    checkout = cart(SHIRT, promotions={"loyalty_card": "CARD", "meta": meta})
    [sent] = body_of(next(engine(REWARD_ID=option).validate(checkout, ORDER)))["redeemables"]
    assert sent == {"object": "voucher", "id": "CARD", "reward": reward}


def test_gift_credits_are_sent_in_minor_units() -> None:
    checkout = cart(
        SHIRT, codes=["GIFT", "A/B", "X"], promotions={"meta": {"gift_credits": {"GIFT": "10.50", "A/B": 3, "X": None}}}
    )
    sent = body_of(next(engine().validate(checkout, ORDER)))["redeemables"]
    assert [one.get("gift") for one in sent] == [{"credits": 1050}, {"credits": 300}, None]


def test_gift_credits_match_the_code_as_entered() -> None:
    checkout = cart(SHIRT, codes=["GIFT\u200b"], promotions={"meta": {"gift_credits": {"GIFT\u200b": "10.50"}}})
    [sent] = body_of(next(engine().validate(checkout, ORDER)))["redeemables"]
    assert (sent["id"], sent["gift"]) == ("GIFT", {"credits": 1050})


@pytest.mark.parametrize(("case", "gift"), [("insensitive", {"credits": 1050}), ("sensitive", None)])
def test_gift_credits_ignore_case_where_the_project_does(case: str, gift: dict[str, int] | None) -> None:
    checkout = cart(SHIRT, codes=["gift"], promotions={"meta": {"gift_credits": {"GIFT": "10.50"}}})
    [sent] = body_of(next(engine(CODE_CASE=case).validate(checkout, ORDER)))["redeemables"]
    assert sent.get("gift") == gift


def test_coupon_is_no_loyalty_card_where_case_counts() -> None:
    promotions = {"coupon_codes": ["card"], "loyalty_card": "CARD", "meta": {"reward": {"id": "rew_1"}}}
    request = next(engine(CODE_CASE="sensitive").validate(cart(SHIRT, promotions=promotions), ORDER))
    assert body_of(request)["redeemables"] == [
        {"object": "voucher", "id": "card"},
        {"object": "voucher", "id": "CARD", "reward": {"id": "rew_1"}},
    ]


def test_gift_credits_of_every_order_are_sent() -> None:
    line = {"sku": "A", "quantity": 1, "price": "50.00"}
    orders = [
        {"order_items": [line], "promotion": {"coupon_codes": [code], "meta": {"gift_credits": amounts}}}
        for code, amounts in (("G1", {"G1": "1.00"}), ("X", None), ("G2", {"G2": "2.00", "G1": "9.00"}))
    ]
    checkout = parse(json.dumps({"orders": orders, "currency": "USD"}).encode(), "validate")
    sent = body_of(next(engine().validate(checkout, ORDER)))["redeemables"]
    assert [(one["id"], one.get("gift")) for one in sent] == [
        ("G1", {"credits": 100}),
        ("X", None),
        ("G2", {"credits": 200}),
    ]


@pytest.mark.parametrize(
    ("chosen", "pointer"),
    [
        ("10", "/promotions/meta/gift_credits"),
        ({"GIFT": "1.005"}, "/promotions/meta/gift_credits/GIFT"),
        ({"GIFT": "0"}, "/promotions/meta/gift_credits/GIFT"),
        ({"GIFT": "-1"}, "/promotions/meta/gift_credits/GIFT"),
        ({"GI/FT": []}, "/promotions/meta/gift_credits/GI~1FT"),
    ],
)
def test_invalid_gift_credits_error_names_the_field(chosen: Any, pointer: str) -> None:
    checkout = cart(SHIRT, codes=["GIFT"], promotions={"meta": {"gift_credits": chosen}})
    with pytest.raises(InvalidRequest) as caught:
        next(engine().validate(checkout, ORDER))
    assert caught.value.pointer == pointer
