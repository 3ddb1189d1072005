"""The Voucherify adapter: what it asks, what it makes of answers, and that no answer can surprise it.

The vendor's own worked examples (https://docs.voucherify.io, API reference) are kept here as their amounts alone.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.voucherify import Voucherify
from adapters.voucherify.effects import EFFECTS
from adapters.voucherify.reasons import FAULTS
from mapper.adapter import (
    Conversation,
    Cost,
    Discount,
    EngineReply,
    EngineRequest,
    LookedUp,
    Misconfigured,
    NotRedeemed,
    Outcome,
    Redeemed,
    names,
)
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import settle
from mapper.domain.errors import EngineRejected, EngineUnavailable, InvalidRequest, OrderMismatch, Problem
from mapper.domain.reasons import Reason
from mapper.engine.conversation import limit, replay
from tests.adapters.record import granted

KEYS = {"APP_ID": "app", "APP_TOKEN": "token"}
ORDER = "order-1"


def engine(**options: str) -> Voucherify:
    return Voucherify({**KEYS, **options})


def cart(
    *lines: dict[str, Any] | tuple[str, int, str], codes: Sequence[str] = (), currency: str = "USD", **body: Any
) -> Checkout:
    """A checkout; a line is (sku, quantity, price) or the line itself."""
    promotions = {"coupon_codes": list(codes), **body.pop("promotions", {})}
    return documents.parse(
        json.dumps({"items": _lines(lines), "currency": currency, "promotions": promotions, **body}).encode(),
        "validate",
    )


def order(
    *lines: dict[str, Any] | tuple[str, int, str], codes: Sequence[str] = (), currency: str = "USD", **body: Any
) -> Checkout:
    promotions = {"coupon_codes": list(codes), **body.pop("promotions", {})}
    body = {"order_items": _lines(lines), "currency": currency, "promotions": promotions, **body}
    return documents.parse(json.dumps(body).encode(), "consume")


def _lines(lines: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"sku": line[0], "quantity": line[1], "price": line[2]} if isinstance(line, tuple) else line for line in lines
    ]


def reply(body: Any, status: int = 200) -> EngineReply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return EngineReply(status=status, headers={}, body=raw)


def failure(key: str, status: int = 400, **more: Any) -> EngineReply:
    return reply({"code": status, "key": key, "message": "SECRET TEXT", "details": "SECRET", **more}, status)


def share(off: int = 0, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An order as a redeemable's answer shows it: zeros are left out, as Voucherify leaves them out."""
    lines = sum(item.get("applied_discount_amount", 0) for item in items)
    found = {"applied_discount_amount": off, "total_applied_discount_amount": off + lines}
    found = {key: value for key, value in found.items() if value}
    return {**found, "items": list(items), "object": "order", **more}


def item(off: int = 0, **more: Any) -> dict[str, Any]:
    return {"object": "order_item", **({"applied_discount_amount": off} if off else {}), **more}


def applies(name: str, shown: dict[str, Any], kind: str = "voucher", **result: Any) -> dict[str, Any]:
    return {"status": "APPLICABLE", "id": name, "object": kind, "order": shown, "result": result}


def fails(name: str, key: str, kind: str = "voucher", status: str = "INAPPLICABLE") -> dict[str, Any]:
    result = {"error": {"code": 400, "key": key}} if status == "INAPPLICABLE" else {"details": {"key": key}}
    return {"status": status, "id": name, "object": kind, "result": result}


def valid(*redeemables: dict[str, Any], **more: Any) -> dict[str, Any]:
    total = sum(
        one["order"].get("total_applied_discount_amount", 0)
        for one in redeemables
        if one["status"] == "APPLICABLE" and one.get("order")
    )
    return {
        "valid": True,
        "redeemables": list(redeemables),
        "order": {"total_applied_discount_amount": total, "object": "order"},
        **more,
    }


def invalid(*redeemables: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"valid": False, "redeemables": list(redeemables), **more}


def held(conversation: Conversation[Any] | None, *replies: EngineReply | dict[str, Any]) -> tuple[Any, list[Any]]:
    assert conversation is not None
    result, requests = replay(conversation, [one if isinstance(one, EngineReply) else reply(one) for one in replies])
    return granted(result), requests


def validated(checkout: Checkout, *replies: EngineReply | dict[str, Any], **options: str) -> Outcome:
    outcome, _ = held(engine(**options).validate(checkout, ORDER), *replies)
    assert isinstance(outcome, Outcome)
    return outcome


def body_of(request: EngineRequest) -> dict[str, Any]:
    found = json.loads(request.body)
    assert isinstance(found, dict)
    return found


def taken(outcome: Outcome) -> list[tuple[str, int | None, int, str]]:
    return [(d.meta["redeemable"], d.line, d.amount, d.effect_type) for d in outcome.discounts]


def refusals(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(one.code, one.reason, one.engine_reason) for one in outcome.rejected]


AMOUNT = {"type": "AMOUNT", "effect": "APPLY_TO_ORDER"}
TIER = "promo_AAAAAAAAAAAAAAAA"
TIER_2 = "promo_BBBBBBBBBBBBBBBB"


# --- What is asked ----------------------------------------------------------------------------------------------------

SHIRT = {"sku": "SHIRT-M", "product_id": "SHIRT", "quantity": 2, "price": "20.00", "colour": "red"}


def test_a_validation_says_exactly_this_and_no_more() -> None:
    checkout = cart(SHIRT, ("MUG", 1, "5.50"), codes=["SAVE"], customer={"id": 7, "email": "a@b.c"}, metadata={"a": 1})
    _, [request] = held(engine().validate(checkout, ORDER), invalid(fails("SAVE", "voucher_expired")))
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


def test_a_redemption_adds_the_order_and_is_never_repeatable() -> None:
    paid = order(SHIRT, codes=["SAVE"])
    _, [request] = held(engine().redeem(paid, ORDER), failure("voucher_expired"))
    assert body_of(request)["order"] == {
        "source_id": ORDER,
        "status": "PAID",
        "amount": 4000,
        "items": body_of(request)["order"]["items"],
    }
    assert (request.method, request.path, request.repeatable) == ("POST", "/v1/redemptions", False)


def test_the_engine_is_asked_about_list_prices() -> None:
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


def test_only_metadata_that_was_asked_for_leaves_the_house() -> None:
    options = {
        "ORDER_METADATA": "currency=/currency, ratio=/metadata/ratio, none=/nowhere",
        "ITEM_METADATA": "colour=/colour",
        "CUSTOMER_METADATA": "tier=/customer/tier",
        "REDEMPTION_METADATA": "channel=/metadata/channel",
        "PROMOTIONS": "qualify",
    }
    checkout = cart(SHIRT, codes=["X"], customer={"id": "c", "tier": "gold"}, metadata={"ratio": 1.5, "channel": "web"})
    _, [qualification, request] = held(
        engine(**options).validate(checkout, ORDER), {"redeemables": {"data": []}}, invalid(fails("X", "not_found"))
    )
    for body in (body_of(qualification), body_of(request)):
        assert body["order"]["metadata"] == {"currency": "USD", "ratio": 1.5}
        assert body["order"]["items"][0]["metadata"] == {"colour": "red"}
        assert body["customer"] == {"source_id": "c", "metadata": {"tier": "gold"}}
        assert body["metadata"] == {"channel": "web"}


def test_a_lock_is_taken_only_where_it_is_configured_and_the_redemption_names_it() -> None:
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
def test_a_line_goes_by_the_configured_name(option: str, line: dict[str, Any], expected: dict[str, Any]) -> None:
    checkout = cart({"quantity": 1, "price": "1", **line}, codes=["X"])
    [sent] = body_of(next(engine(ITEM_ID=option).validate(checkout, ORDER)))["order"]["items"]
    assert sent == {**expected, "quantity": 1, "price": 100, "amount": 100}


@pytest.mark.parametrize("customer", [None, {}, {"id": ""}, {"id": " "}, {"id": None}, {"id": True}, {"id": {"a": 1}}])
def test_a_guest_is_no_customer(customer: Any) -> None:
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
def test_prices_go_out_exactly_or_not_at_all(currency: str, exponent: str, price: str, units: int | None) -> None:
    conversation = engine(EXPONENT=exponent).validate(cart(("A", 1, price), codes=["X"], currency=currency), ORDER)
    if units is None:
        with pytest.raises(EngineRejected) as caught:
            next(conversation)
        assert caught.value.reason == "inexact_amount"
    else:
        assert body_of(next(conversation))["order"]["items"][0]["price"] == units


def test_more_lines_than_voucherify_takes_are_refused_before_it_is_asked() -> None:
    with pytest.raises(EngineRejected) as caught:
        next(engine().validate(cart(*[(f"S{n}", 1, "1") for n in range(501)], codes=["X"]), ORDER))
    assert caught.value.reason == "too_many_lines"


# --- Codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promotions", "sent", "refused"),
    [
        ({"coupon_codes": ["A", "B", "A"]}, ["A", "B"], []),
        ({"coupon_codes": ["save", "SAVE", " save "]}, ["save"], []),
        ({"coupon_codes": ["A"], "referral_code": "REF"}, ["A", "REF"], []),
        ({"coupon_codes": ["v_24rljiUfd", "A"]}, ["A"], [("v_24rljiUfd", "not_found", "")]),
        ({"coupon_codes": [TIER, "A"]}, ["A"], [(TIER, "not_found", "")]),
        ({"coupon_codes": ["stack_1", "A"]}, ["A"], [("stack_1", "not_found", "")]),
        ({"coupon_codes": ["A"], "referral_code": "v_1"}, ["A"], [("v_1", "not_found", "")]),
        ({"coupon_codes": ["A"], "loyalty_card": "L"}, ["A"], [("L", "reward_required", "missing_reward")]),
        (
            {"coupon_codes": [f"C{n}" for n in range(32)]},
            [f"C{n}" for n in range(30)],
            [("C30", "too_many_codes", ""), ("C31", "too_many_codes", "")],
        ),
    ],
)
def test_codes_are_sent_once_and_what_can_be_refused_here_is(
    promotions: dict[str, Any], sent: list[str], refused: list[tuple[str, str, str]]
) -> None:
    answer = valid(*[applies(code, share(), discount=AMOUNT) for code in sent])
    outcome, [request] = held(engine().validate(cart(SHIRT, promotions=promotions), ORDER), answer)
    assert [one["id"] for one in body_of(request)["redeemables"]] == sent
    assert refusals(outcome) == refused


@pytest.mark.parametrize(
    "checkout",
    [
        cart(SHIRT),
        cart(("A", 0, "1.00"), codes=["X"]),
        cart(SHIRT, codes=["v_1"]),
        cart(SHIRT, promotions={"loyalty_card": "L"}),
    ],
)
def test_without_anything_to_ask_nothing_is_asked(checkout: Checkout) -> None:
    outcome, requests = held(engine().validate(checkout, ORDER))
    assert (outcome.discounts, requests) == ((), [])


@pytest.mark.parametrize(
    ("meta", "option", "reward"),
    [
        ({"reward": {"id": "rew_1", "points": 50}}, "", {"id": "rew_1", "points": 50}),
        ({"reward": {"id": "rew_1"}}, "rew_2", {"id": "rew_1"}),
        ({}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": -5}}, "rew_2", {"id": "rew_2"}),
        ({"reward": {"points": "5"}}, "rew_2", {"id": "rew_2"}),
    ],
)
def test_a_loyalty_card_names_its_reward(meta: dict[str, Any], option: str, reward: dict[str, Any]) -> None:
    checkout = cart(SHIRT, promotions={"loyalty_card": "CARD", "meta": meta})
    [sent] = body_of(next(engine(REWARD_ID=option).validate(checkout, ORDER)))["redeemables"]
    assert sent == {"object": "voucher", "id": "CARD", "reward": reward}


def test_gift_credits_are_what_the_shopper_chose_to_spend() -> None:
    checkout = cart(
        SHIRT, codes=["GIFT", "A/B", "X"], promotions={"meta": {"gift_credits": {"GIFT": "10.50", "A/B": 3}}}
    )
    sent = body_of(next(engine().validate(checkout, ORDER)))["redeemables"]
    assert [one.get("gift") for one in sent] == [{"credits": 1050}, {"credits": 300}, None]


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
def test_gift_credits_that_are_no_amounts_are_pointed_out(chosen: Any, pointer: str) -> None:
    checkout = cart(SHIRT, codes=["GIFT"], promotions={"meta": {"gift_credits": chosen}})
    with pytest.raises(InvalidRequest) as caught:
        next(engine().validate(checkout, ORDER))
    assert caught.value.pointer == pointer


# --- Money ------------------------------------------------------------------------------------------------------------


def discount(effect: str, kind: str = "AMOUNT", **more: Any) -> dict[str, Any]:
    return {"discount": {"type": kind, "effect": effect, **more}}


SHIPPING_UNIT = {
    "type": "UNIT",
    "effect": "ADD_MISSING_ITEMS",
    "unit_off": 1,
    "unit_type": "prod_5h1pp1ng",
    "product": {"id": "prod_5h1pp1ng", "source_id": "5h1pp1ng", "name": "Shipping"},
}
FIVE = [("S1", 1, "65.00"), ("S2", 1, "60.00"), ("S3", 1, "20.00"), ("S4", 2, "50.00"), ("S5", 2, "110.00")]

# The vendor's examples: the cart, the redeemables with their shares, and what must come of it.
WORKED: dict[str, tuple[list[tuple[str, int, str]], list[dict[str, Any]], list[tuple[str, int | None, int, str]]]] = {
    "five redeemables: items, points without effect, a gift card, two promotions": (
        [("A", 1, "20.00"), ("B", 1, "7.00")],
        [
            applies("GNcuPKGe", share(0, item(1000), item(700)), **discount("APPLY_TO_ITEMS")),
            applies("AnsvocvP", share(0, item(), item()), loyalty_card={"points": 4}),
            applies("M3X8IwW8", share(100, item(), item()), gift={"credits": 100}),
            applies("PROMO40", share(360, item(), item()), **discount("APPLY_TO_ORDER", "PERCENT", percent_off=40)),
            applies("PROMO30", share(30, item(), item()), **discount("APPLY_TO_ORDER", amount_off=30)),
        ],
        [
            ("GNcuPKGe", 0, 1000, "APPLY_TO_ITEMS"),
            ("GNcuPKGe", 1, 700, "APPLY_TO_ITEMS"),
            ("M3X8IwW8", None, 100, "GIFT_CARD"),
            ("PROMO40", None, 360, "APPLY_TO_ORDER"),
            ("PROMO30", None, 30, "APPLY_TO_ORDER"),
        ],
    ),
    "fixed prices by formula": (
        FIVE,
        [
            applies(
                "FIXED",
                share(0, item(1300), item(600), item(2000), item(1000), item(4400)),
                **discount("APPLY_TO_ITEMS", "FIXED"),
            )
        ],
        [("FIXED", line, off, "APPLY_TO_ITEMS") for line, off in enumerate([1300, 600, 2000, 1000, 4400])],
    ),
    "ten percent": (
        FIVE,
        [applies("P", share(4650), **discount("APPLY_TO_ORDER", "PERCENT"))],
        [("P", None, 4650, "APPLY_TO_ORDER")],
    ),
    "ten off": (
        FIVE,
        [applies("P", share(1000), **discount("APPLY_TO_ORDER"))],
        [("P", None, 1000, "APPLY_TO_ORDER")],
    ),
    "pay with points": (
        [("A", 1, "85.00"), ("B", 1, "60.00")],
        [applies("LOYALTY-CARD-ng3Kb9tM", share(50), loyalty_card={"points": 10})],
        [("LOYALTY-CARD-ng3Kb9tM", None, 50, "PAY_WITH_POINTS")],
    ),
    "gift card": (
        [("A", 1, "10.00")],
        [applies("GIFT-CARD-kW4aEsfB", share(2), gift={"balance": 21500, "credits": 2})],
        [("GIFT-CARD-kW4aEsfB", None, 2, "GIFT_CARD")],
    ),
    "referral": (
        [("A", 1, "200.00")],
        [applies("REFERRAL-CODE", share(6000), **discount("APPLY_TO_ORDER", "PERCENT"))],
        [("REFERRAL-CODE", None, 6000, "APPLY_TO_ORDER")],
    ),
    "a promotion that adds units, and a second that takes twenty percent off what is left": (
        [("A", 1, "95.00"), ("B", 1, "185.00")],
        [
            applies(
                "UNITS",
                share(
                    0,
                    item(quantity=1, price=9500),
                    item(quantity=1, price=18500),
                    item(89700, quantity=3, initial_quantity=0, price=29900),
                ),
                **discount("ADD_NEW_ITEMS", "UNIT", unit_type="sku_1"),
            ),
            applies("P", share(5600), **discount("APPLY_TO_ORDER", "PERCENT")),
        ],
        [("P", None, 5600, "APPLY_TO_ORDER")],
    ),
    "shares beside sums that grow from one to the next": (
        [("A", 1, "1000.00")],
        [
            applies("D1", share(100, discount_amount=100), **discount("APPLY_TO_ORDER")),
            applies("D2", share(39980, discount_amount=40080), **discount("APPLY_TO_ORDER", "PERCENT")),
            applies("D3", share(8000, discount_amount=48080), **discount("APPLY_TO_ORDER")),
        ],
        [(name, None, off, "APPLY_TO_ORDER") for name, off in [("D1", 100), ("D2", 39980), ("D3", 8000)]],
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_the_vendors_worked_examples_come_out_to_the_cent(name: str) -> None:
    lines, redeemables, expected = WORKED[name]
    outcome = validated(cart(*lines, codes=[one["id"] for one in redeemables]), valid(*redeemables))
    assert taken(outcome) == expected
    assert not outcome.rejected


@pytest.mark.parametrize(
    ("result", "order_off", "line_off", "effect_types"),
    [
        (discount("APPLY_TO_ORDER"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ORDER", "PERCENT"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ORDER", "FIXED"), 10, 0, ["APPLY_TO_ORDER"]),
        (discount("APPLY_TO_ITEMS"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS", "PERCENT"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS", "FIXED"), 0, 10, ["APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_ITEMS_BY_QUANTITY"), 0, 10, ["APPLY_TO_ITEMS_BY_QUANTITY"]),
        (discount("APPLY_TO_ITEMS_PROPORTIONALLY"), 0, 10, ["APPLY_TO_ITEMS_PROPORTIONALLY"]),
        (
            discount("APPLY_TO_ITEMS_PROPORTIONALLY_BY_QUANTITY"),
            0,
            10,
            ["APPLY_TO_ITEMS_PROPORTIONALLY_BY_QUANTITY"],
        ),
        (discount("ADD_MISSING_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_MISSING_ITEMS"]),
        (discount("ADD_NEW_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_NEW_ITEMS"]),
        (discount("ADD_MANY_ITEMS", "UNIT", units=[{"unit_type": "prod_1"}]), 0, 10, ["ADD_MANY_ITEMS"]),
        (discount("ADD_SAME_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["ADD_SAME_ITEMS"]),
        (discount("REPLACE_ITEMS", "UNIT", unit_type="prod_1"), 0, 10, ["REPLACE_ITEMS"]),
        ({"gift": {"credits": 10}}, 10, 0, ["GIFT_CARD"]),
        ({"gift": {"credits": 10}}, 0, 10, ["GIFT_CARD"]),
        ({"loyalty_card": {"points": 1}}, 10, 0, ["PAY_WITH_POINTS"]),
        ({"discount": {"type": "AMOUNT"}}, 10, 10, ["APPLY_TO_ORDER", "APPLY_TO_ITEMS"]),
        ({}, 10, 10, ["APPLY_TO_ORDER", "APPLY_TO_ITEMS"]),
        (discount("APPLY_TO_MOON"), 10, 10, ["APPLY_TO_MOON", "APPLY_TO_MOON"]),
    ],
)
def test_every_effect_takes_off_what_its_shares_say(
    result: dict[str, Any], order_off: int, line_off: int, effect_types: list[str]
) -> None:
    answer = valid(applies("X", share(order_off, item(line_off)), **result))
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"]), answer)
    assert [one.effect_type for one in outcome.discounts] == effect_types
    assert all(one.amount == 10 for one in outcome.discounts)
    assert all(one.description == EFFECTS.get(one.effect_type, "Discount") for one in outcome.discounts)


def test_the_table_of_effects_is_complete() -> None:
    tested = {"FREE_SHIPPING"} | {
        result.get("discount", {}).get("effect") or ("GIFT_CARD" if "gift" in result else "PAY_WITH_POINTS")
        for result, *_ in _cases(test_every_effect_takes_off_what_its_shares_say)
        if result and result != {"discount": {"type": "AMOUNT"}}
    }
    assert tested - {"APPLY_TO_MOON"} == set(EFFECTS)


def _cases(test: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return list(test.pytestmark[0].args[1])  # type: ignore[attr-defined]


def unit(**more: Any) -> dict[str, Any]:
    return discount("ADD_MISSING_ITEMS", "UNIT", unit_type="prod_1", **more)


@pytest.mark.parametrize(
    ("name", "items", "expected"),
    [
        (
            "one in the cart, one added, both free once",
            [[item(100, applied_quantity=1, applied_quantity_amount=100)]],
            [],
        ),
        ("one in the cart, made free", [[item(100, applied_quantity=0, quantity=1)]], [100]),
        ("made free, and one more added", [[item(200, applied_quantity=1, applied_quantity_amount=100)]], [100]),
        (
            "a stack: one made free, three added",
            [
                [item(100, quantity=1)],
                *[[item(100, quantity=n, applied_quantity=1, applied_quantity_amount=100)] for n in (2, 3, 4)],
            ],
            [100, 0, 0, 0],
        ),
        ("an older answer tells by the quantity alone", [[item(200, quantity=2, price=100)]], [100]),
        (
            "an older answer, twice",
            [[item(100, quantity=2, price=100)], [item(100, quantity=3, price=100)]],
            [0, 0],
        ),
        (
            "a discount on the unit that is in the cart stays",
            [[item(100, applied_quantity=1, applied_quantity_amount=100)], [item(30, quantity=2)]],
            [0, 30],
        ),
        (
            "a unit added for half its price takes nothing off and adds nothing",
            [[item(50, applied_quantity=1, applied_quantity_amount=100)]],
            [],
        ),
        (
            "nor does it leave room for another's discount",
            [[item(30)], [item(50, applied_quantity=1, applied_quantity_amount=100)]],
            [],
        ),
        (
            "an older answer: what was added before is not added again",
            [[item(100, quantity=2, price=100)], [item(30, quantity=2, price=100)]],
            [0, 30],
        ),
        ("units taken away are no discount", [[item(applied_quantity=-1, applied_quantity_amount=-100)]], []),
    ],
)
def test_units_that_the_engine_adds_never_make_the_cart_cheaper(
    name: str, items: list[list[dict[str, Any]]], expected: list[int]
) -> None:
    redeemables = [applies(f"U{n}", share(0, *shown), **unit()) for n, shown in enumerate(items)]
    outcome = validated(cart(("A", 1, "1.00"), codes=[one["id"] for one in redeemables]), valid(*redeemables))
    assert [one.amount for one in outcome.discounts] == [off for off in expected if off], name
    assert {notice.type for notice in outcome.notices} == {"units"}


def test_what_was_added_is_told() -> None:
    added = item(100, product_id="prod_1", quantity=1, initial_quantity=0)
    answer = valid(applies("X", share(0, item(quantity=1), added), **unit()))
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"]), answer)
    [notice] = outcome.notices
    assert notice.payload["items"] == [added]
    assert notice.payload["redeemable"] == "X"
    assert not outcome.discounts


FREE: dict[str, Any] = {"discount": SHIPPING_UNIT}
RATE: dict[str, Any] = {"shipping_rate": {"price": "15.00"}}
APPENDED = item(quantity=1, discount_quantity=1, initial_quantity=0, product_id="prod_5h1pp1ng")


@pytest.mark.parametrize(
    ("result", "body", "items", "expected"),
    [
        (FREE, RATE, [item(), APPENDED], [("X", None, 1500, "FREE_SHIPPING")]),
        (FREE, RATE, [item(), {**APPENDED, "applied_discount_amount": 2000}], [("X", None, 1500, "FREE_SHIPPING")]),
        (FREE, {}, [item(), APPENDED], []),
        (FREE, {"shipping_rate": {"price": "0.00"}}, [item(), APPENDED], []),
        ({"discount": {"type": "UNIT", "unit_type": "prod_5h1pp1ng"}}, RATE, [], [("X", None, 1500, "FREE_SHIPPING")]),
        (
            {"discount": {"type": "UNIT", "unit_type": "x", "product": {"source_id": "5h1pp1ng"}}},
            RATE,
            [],
            [("X", None, 1500, "FREE_SHIPPING")],
        ),
        (
            discount("ADD_MANY_ITEMS", "UNIT", units=[{"unit_type": "prod_1"}, {"unit_type": "prod_5h1pp1ng"}]),
            RATE,
            [item(100)],
            [("X", None, 1500, "FREE_SHIPPING"), ("X", 0, 100, "ADD_MANY_ITEMS")],
        ),
        (
            discount("APPLY_TO_ITEMS", product={"id": "prod_5h1pp1ng"}),
            RATE,
            [item(100)],
            [("X", 0, 100, "APPLY_TO_ITEMS")],
        ),
    ],
)
def test_free_shipping_is_a_discount_of_the_checkouts_own_shipping(
    result: dict[str, Any], body: dict[str, Any], items: list[Any], expected: list[Any]
) -> None:
    outcome = validated(cart(("A", 1, "5.00"), codes=["X"], **body), valid(applies("X", share(0, *items), **result)))
    assert sorted(taken(outcome), key=str) == sorted(expected, key=str)
    if not expected:
        assert [notice.type for notice in outcome.notices] == ["free_shipping"]
    for one in outcome.discounts:
        if one.effect_type == "FREE_SHIPPING":
            assert (one.cost, outcome.costs) == ("shipping", (Cost("shipping", 1500),))


def test_shipping_is_free_once() -> None:
    answer = valid(*[applies(code, share(0, item(), APPENDED), **FREE) for code in ("X", "Y")])
    outcome = validated(cart(("A", 1, "5.00"), codes=["X", "Y"], **RATE), answer)
    assert taken(outcome) == [("X", None, 1500, "FREE_SHIPPING")]
    assert [notice.payload["redeemable"] for notice in outcome.notices] == ["Y"]


def test_shipping_of_several_orders_is_added_up() -> None:
    parts = [{"order_items": [{"sku": "A", "quantity": 1, "price": "5.00"}], **RATE} for _ in range(2)]
    body = json.dumps({"orders": parts, "promotions": {"coupon_codes": ["X"]}}).encode()
    outcome = validated(documents.parse(body, "validate"), valid(applies("X", share(), **FREE)))
    assert taken(outcome) == [("X", None, 3000, "FREE_SHIPPING")]


@pytest.mark.parametrize(
    ("currency", "exponent", "shares", "expected", "rounded"),
    [
        ("JPY", "2", [15000, 5000], [150, 50], False),
        ("JPY", "2", [150, 150], [2, 1], True),
        ("JPY", "2", [140], [1], True),
        ("JPY", "2", [150], [2], True),
        ("JPY", "2", [40], [], True),
        ("JPY", "2", [33, 33, 34], [1], True),
        ("JPY", "0", [150], [150], False),
        ("KWD", "2", [150], [1500], False),
    ],
)
def test_amounts_come_back_exactly_or_rounded_once_and_said_so(
    currency: str, exponent: str, shares: list[int], expected: list[int], rounded: bool
) -> None:
    names = [f"C{n}" for n in range(len(shares))]
    answer = valid(
        *[applies(name, share(off), **discount("APPLY_TO_ORDER")) for name, off in zip(names, shares, strict=True)]
    )
    outcome = validated(cart(("A", 1, "500"), codes=names, currency=currency), answer, EXPONENT=exponent)
    assert [one.amount for one in outcome.discounts] == expected
    assert ("rounded" in [notice.type for notice in outcome.notices]) == rounded


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"campaign_name": "Spring", "campaign_id": "camp_1"}, ("Spring", "camp_1")),
        ({"campaign_name": "Spring", "name": "Tier one"}, ("Tier one", None)),
        ({}, ("X", None)),
        ({"name": None, "campaign_id": 5}, ("X", None)),
    ],
)
def test_a_discount_carries_its_name_and_the_engines_ids(
    said: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    answer = valid({**applies("X", share(10), **discount("APPLY_TO_ORDER")), **said})
    [one] = validated(cart(SHIRT, codes=["X"]), answer).discounts
    meta = {"redeemable": "X", "object": "voucher", "position": 0, "code": "X", "type": "AMOUNT"}
    assert (one.name, one.meta) == (expected[0], meta | ({"campaign_id": expected[1]} if expected[1] else {}))


@pytest.mark.parametrize(
    ("result", "notice"),
    [
        (discount("APPLY_TO_ORDER"), "no_effect"),
        ({"loyalty_card": {"points": 4}}, "loyalty_reward"),
        (discount("APPLY_TO_MOON"), "unknown_effect"),
        (discount("REPLACE_ITEMS", "UNIT"), "units"),
        ({**discount("APPLY_TO_ORDER"), "bundle": {"quantity": 0, "missing": [{"id": "prod_1"}]}}, "bundle"),
    ],
)
def test_what_takes_no_money_off_is_passed_on(result: dict[str, Any], notice: str) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), valid(applies("X", share(), **result)))
    assert [one.type for one in outcome.notices] == [notice]
    assert outcome.notices[0].payload["result"] == result


# --- What an answer must be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "reply_not_understood"),
        (b"<html>", "reply_not_understood"),
        (b"[]", "reply_not_understood"),
        (b'{"valid":true', "reply_not_understood"),
        (b"\xff", "reply_not_understood"),
        (b"[" * 100_000, "reply_not_understood"),
        (b'{"valid":true,"order":{"total_applied_discount_amount":1e999999999999}}', "reply_not_understood"),
        ({}, "reply_not_understood"),
        ({"valid": "true", "redeemables": []}, "reply_not_understood"),
        (valid(applies("X", share(-5))), "reply_not_understood"),
        (valid(applies("X", share(0, item(-5)))), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": 1.5})), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": "5"})), "reply_not_understood"),
        (valid(applies("X", {"applied_discount_amount": True})), "reply_not_understood"),
        (valid(applies("X", share(10**15))), "reply_not_understood"),
        ({**valid(applies("X", share(5))), "order": {"total_applied_discount_amount": 4}}, "amounts_differ"),
        ({**valid(applies("X", share(5))), "order": None}, "amounts_differ"),
        (valid(applies("X", share(0, item(5, source_id="OTHER")))), "lines_differ"),
    ],
)
def test_an_answer_that_cannot_be_trusted_with_money_sets_no_price(answer: Any, reason: str) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        validated(cart(SHIRT, codes=["X"]), answer if isinstance(answer, dict) else reply(answer))
    assert (caught.value.reason, caught.value.sent) == (reason, True)


@pytest.mark.parametrize(
    "answer",
    [
        valid({**applies("X", share(5)), "categories": 7, "metadata": [], "applicable_to": "?", "new": {}}),
        valid(applies("X", share(5), **discount("APPLY_TO_ORDER", "NEW_TYPE"))),
        valid({**applies("X", share(5)), "result": None}),
        valid({**applies("X", share(5)), "object": "new_kind"}),
        valid({**applies("x", share(5)), "name": 7}),
        valid(applies("X", {**share(5), "total_amount": "?", "status": "NEW"})),
        valid(applies("X", {**share(5), "applied_discount_amount": 5.0})),
        {**valid(applies("X", share(5))), "inapplicable_redeemables": None, "skipped_redeemables": None},
        {**valid({**applies("X", share(5)), "order": None}), "order": {**share(5), "object": "order"}},
        {**valid(applies("X", share(5))), "redeemables": [7, None, applies("X", share(5))]},
    ],
)
def test_unknown_words_and_fields_never_cost_an_answer(answer: dict[str, Any]) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), answer)
    assert [one.amount for one in outcome.discounts] == [5]
    assert not outcome.rejected


# --- Refused codes ----------------------------------------------------------------------------------------------------

CODE_REASONS = {
    "not_found": "not_found",
    "resource_not_found": "not_found",
    "voucher_expired": "expired",
    "voucher_not_active": "not_started",
    "voucher_not_active_now": "not_active",
    "voucher_disabled": "not_active",
    "quantity_exceeded": "used_up",
    "gift_amount_exceeded": "balance_too_low",
    "loyalty_card_points_exceeded": "balance_too_low",
    "order_rules_violated": "conditions_not_met",
    "customer_rules_violated": "customer_not_eligible",
    "redemption_rules_violated": "conditions_not_met",
    "promotion_inactive": "not_active",
    "promotion_not_active_now": "not_active",
    "campaign_not_active": "not_active",
    "referrer_not_permitted_to_redeem": "own_referral",
    "missing_customer": "sign_in_required",
    "missing_order": "data_missing",
    "missing_order_items": "data_missing",
    "missing_amount": "data_missing",
    "missing_order_items_amount": "data_missing",
    "missing_reward": "reward_required",
    "invalid_customer": "not_yours",
}
SKIPPED_REASONS = {
    "applicable_redeemables_limit_exceeded": "too_many_codes",
    "applicable_redeemables_per_category_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_per_category_limit_exceeded": "not_combinable",
    "exclusion_rules_not_met": "not_combinable",
    "no_effect": "no_effect",
    "preceding_validation_failed": "not_applied",
}
REQUEST_KEYS = [
    "invalid_payload", "duplicated_redeemables", "invalid_redeemables", "invalid_order", "invalid_amount",
    "invalid_gift", "invalid_product", "invalid_sku", "invalid_query_params", "query_too_large",
    "metadata_validation_failed", "ambiguous_tracking_id", "duplicate_found", "duplicate_resource_key",
    "already_rolled_back", "invalid_redemption_parent", "invalid_redemption", "invalid_rollback_params",
]  # fmt: skip
ACCOUNT_KEYS = {
    "unauthorized": 401,
    "missing_required_feature": 402,
    "forbidden": 403,
    "missing_required_permission": 403,
}


def test_every_key_of_the_vendor_has_a_row_and_every_row_a_word_for_the_shopper() -> None:
    codes = {**CODE_REASONS, **SKIPPED_REASONS}
    assert {key: fault.reason for key, fault in FAULTS.items() if fault.kind == "code"} == codes
    assert set(FAULTS) == {*codes, *REQUEST_KEYS, *ACCOUNT_KEYS, "multiple_requests"}
    assert set(codes.values()) <= set(Reason)


@pytest.mark.parametrize(
    ("key", "status", "reason"),
    [
        *[(key, "INAPPLICABLE", reason) for key, reason in CODE_REASONS.items()],
        *[(key, "SKIPPED", reason) for key, reason in SKIPPED_REASONS.items()],
        ("a_new_key", "INAPPLICABLE", "other"),
        ("a_new_key", "SKIPPED", "other"),
        ("a_new_key", "A_NEW_STATUS", "other"),
        ("unauthorized", "INAPPLICABLE", "other"),
    ],
)
def test_every_reason_for_which_a_code_does_not_apply_is_translated(key: str, status: str, reason: str) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), invalid(fails("X", key, status=status)))
    assert refusals(outcome) == [("X", reason, key)]
    assert not outcome.discounts


@pytest.mark.parametrize("text", ["<b>Hello</b>", "Ask Ms Miller", "x" * 200, 7, None])
def test_the_engines_word_is_passed_on_and_its_text_is_not(text: Any) -> None:
    outcome = validated(cart(SHIRT, codes=["X"]), invalid(fails("X", text)))
    assert refusals(outcome) == [("X", "other", "")]


def test_refusals_are_gathered_from_wherever_they_stand_once_each_in_the_shoppers_order() -> None:
    answer = valid(
        applies("OK", share(5)),
        fails("A", "", status="SKIPPED"),
        inapplicable_redeemables=[fails("b", "voucher_expired"), fails("A", "no_effect", status="SKIPPED")],
        skipped_redeemables=[fails("b", "preceding_validation_failed", status="SKIPPED"), fails("ZZ", "not_found")],
    )
    outcome = validated(cart(SHIRT, codes=["v_1", "LOST", "B", "OK", "A"]), answer)
    assert refusals(outcome) == [
        ("v_1", "not_found", ""),
        ("LOST", "other", ""),
        ("B", "expired", "voucher_expired"),
        ("A", "no_effect", "no_effect"),
    ]
    assert [one.amount for one in outcome.discounts] == [5]


def test_an_invalid_answer_takes_nothing_off_though_it_shows_orders() -> None:
    checkout = cart(SHIRT, codes=["A", "B"])
    answer = invalid(applies("A", share(500), **discount("APPLY_TO_ORDER")), fails("B", "voucher_expired"))
    outcome, requests = held(engine().validate(checkout, ORDER), answer, invalid(fails("A", "voucher_disabled")))
    assert outcome.discounts == ()
    assert refusals(outcome) == [("A", "not_active", "voucher_disabled"), ("B", "expired", "voucher_expired")]
    assert [[one["id"] for one in body_of(request)["redeemables"]] for request in requests] == [["A", "B"], ["A"]]


def test_where_one_code_spoils_the_answer_the_others_are_asked_about_again() -> None:
    checkout = cart(SHIRT, codes=["BAD", "GOOD", "LATER"])
    later = fails("LATER", "preceding_validation_failed", status="SKIPPED")
    first = invalid(fails("BAD", "voucher_expired"), applies("GOOD", share(9)), later, skipped_redeemables=[later])
    second = valid(applies("GOOD", share(5)), applies("LATER", share(6)))
    outcome, _ = held(engine().validate(checkout, ORDER), first, second)
    assert [one.amount for one in outcome.discounts] == [5, 6]
    assert refusals(outcome) == [("BAD", "expired", "voucher_expired")]


def test_asking_again_ends() -> None:
    codes = [f"C{n}" for n in range(9)]
    replies = [invalid(fails(code, "voucher_expired")) for code in codes]
    outcome, requests = held(engine().validate(cart(SHIRT, codes=codes), ORDER), *replies[:3])
    assert len(requests) == 3
    assert [one.code for one in outcome.rejected] == codes


# --- Answers that are errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        *[(failure(key), EngineRejected, key) for key in REQUEST_KEYS],
        *[(failure(key, status), EngineRejected, key) for key, status in ACCOUNT_KEYS.items()],
        (failure("a_new_key"), EngineRejected, "unexpected_error"),
        (reply(b"<html>", 401), EngineRejected, "unauthorized"),
        (reply(b"<html>", 402), EngineRejected, "missing_required_feature"),
        (reply(b"<html>", 403), EngineRejected, "forbidden"),
        (reply(b"", 405), EngineRejected, "unexpected_error"),
        (reply(b"", 406), EngineRejected, "unexpected_error"),
        (reply(b"", 415), EngineRejected, "unexpected_error"),
        (reply(b"", 408), EngineUnavailable, "request_timeout"),
        (reply(b"", 423), EngineUnavailable, "locked"),
        (reply(b"", 204), EngineUnavailable, "unexpected_status"),
        (failure("voucher_expired", 204), EngineUnavailable, "unexpected_status"),
    ],
)
@pytest.mark.parametrize("call", ["validate", "redeem", "look_up", "undo", "qualify"])
def test_an_error_that_is_no_matter_of_a_code_is_never_the_shoppers(
    call: str, answer: EngineReply, kind: type[Problem], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        held(_calls()[call], answer)
    assert caught.value.reason == reason
    assert "SECRET" not in str(caught.value.message) + json.dumps(caught.value.details)


def _calls() -> dict[str, Conversation[Any]]:
    return {
        "validate": engine().validate(cart(SHIRT, codes=["X"]), ORDER),
        "redeem": engine().redeem(order(SHIRT, codes=["X"]), ORDER),
        "look_up": engine().look_up(order(SHIRT, codes=["X"]), ORDER),
        "undo": engine().undo(order(SHIRT, codes=["X"]), ORDER),
        "qualify": engine(PROMOTIONS="qualify").validate(cart(SHIRT), ORDER),
    }


@pytest.mark.parametrize("call", ["validate", "redeem", "qualify"])
@pytest.mark.parametrize("answer", [reply(b"<html>", 404), failure("not_found", 404)])
def test_a_wrong_address_is_not_a_code_that_does_not_exist(call: str, answer: EngineReply) -> None:
    with pytest.raises(EngineRejected) as caught:
        held(_calls()[call], answer)
    assert caught.value.reason == "not_found_at_engine"


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (failure("voucher_expired", resource_id="B"), ["B"]),
        (failure("voucher_expired", details="B"), ["B"]),
        (failure("not_found", 404, details="Cannot find voucher with id B"), ["B"]),
        (failure("not_found", 404, resource_type="voucher"), ["A", "B", "CARD"]),
        (failure("missing_reward"), ["CARD"]),
        (failure("missing_customer"), ["A", "B", "CARD"]),
        (failure("a_new_key", resource_type="voucher", resource_id="A"), ["A"]),
    ],
)
def test_an_error_about_a_code_refuses_that_code_and_the_others_are_asked_about_again(
    answer: EngineReply, refused: list[str]
) -> None:
    checkout = cart(SHIRT, codes=["A", "B"], promotions={"loyalty_card": "CARD"})
    left = [code for code in ("A", "B", "CARD") if code not in refused]
    again = [valid(*[applies(code, share(1)) for code in left])] if left else []
    outcome, _ = held(engine(REWARD_ID="rew_1").validate(checkout, ORDER), answer, *again)
    assert [one.code for one in outcome.rejected] == refused
    assert [one.meta["code"] for one in outcome.discounts] == left


BUSY = failure("multiple_requests")


def test_a_busy_engine_is_asked_once_more_where_that_does_no_harm() -> None:
    answer = reply(valid(applies("X", share(5))))
    outcome, requests = held(_calls()["validate"], BUSY, answer)
    assert [one.amount for one in outcome.discounts] == [5]
    assert requests[0] == requests[1]
    assert held(_calls()["look_up"], BUSY, failure("not_found", 404))[0].state == "absent"
    assert len(held(_calls()["qualify"], BUSY, reply({"redeemables": {"data": []}}))[1]) == 2
    for call, replies in {"validate": [BUSY, BUSY], "redeem": [BUSY], "undo": [BUSY, BUSY]}.items():
        with pytest.raises(EngineUnavailable) as caught:
            held(_calls()[call], *replies)
        assert (caught.value.reason, caught.value.sent) == ("multiple_requests", True)


# --- Promotions without a code ----------------------------------------------------------------------------------------


def tier(name: str, shown: dict[str, Any], **result: Any) -> dict[str, Any]:
    return applies(name, shown, "promotion_tier", **(result or discount("APPLY_TO_ORDER")))


def asked(request: EngineRequest) -> list[str]:
    return [one["id"] for one in body_of(request)["redeemables"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["C"]),
        ({"PROMOTIONS": "off"}, ["C"]),
        ({"PROMOTIONS": f"{TIER}, {TIER_2}"}, ["C", TIER, TIER_2]),
        ({"PROMOTIONS": f"{TIER_2},{TIER_2}", "PROMOTIONS_ORDER": "promotions_first"}, [TIER_2, "C"]),
    ],
)
def test_configured_promotions_ride_along_in_the_configured_order(options: dict[str, str], expected: list[str]) -> None:
    request = next(engine(**options).validate(cart(SHIRT, codes=["C"]), ORDER))
    assert asked(request) == expected
    kinds = ["promotion_tier" if name.startswith("promo_") else "voucher" for name in expected]
    assert [one["object"] for one in body_of(request)["redeemables"]] == kinds


def test_qualified_promotions_are_candidates_that_a_validation_decides_on() -> None:
    candidates = [
        {"id": TIER, "object": "promotion_tier"},
        {"id": "X", "object": "voucher"},
        {"id": "camp_1", "object": "campaign"},
        {"id": "../../orders", "object": "promotion_tier"},
        {"id": TIER_2, "object": "promotion_tier"},
        None,
    ]
    outcome, [first, second] = held(
        engine(PROMOTIONS="qualify").validate(cart(SHIRT, codes=["C"]), ORDER),
        {"redeemables": {"data": candidates}},
        valid(applies("C", share(1)), tier(TIER, share(2)), fails(TIER_2, "promotion_inactive", "promotion_tier")),
    )
    options = body_of(first)["options"]
    assert (first.path, first.repeatable, options["limit"]) == ("/v1/qualifications", True, 29)
    assert options["filters"]["resource_type"] == {"conditions": {"$is": ["promotion_tier"]}}
    assert "source_id" not in body_of(first)["order"]
    assert asked(second) == ["C", TIER, TIER_2]
    assert taken(outcome) == [("C", None, 1, "APPLY_TO_ORDER"), (TIER, None, 2, "APPLY_TO_ORDER")]
    assert not outcome.rejected


def test_no_more_is_asked_for_than_voucherify_takes() -> None:
    codes = [f"C{n}" for n in range(30)]
    for promotions in ("qualify", TIER):
        assert asked(next(engine(PROMOTIONS=promotions).validate(cart(SHIRT, codes=codes), ORDER))) == codes


def test_a_promotion_that_does_not_apply_costs_no_code_and_is_no_refused_code() -> None:
    conversation = engine(PROMOTIONS=f"{TIER},{TIER_2}").validate(cart(SHIRT, codes=["C"]), ORDER)
    first = invalid(applies("C", share(5)), fails(TIER, "order_rules_violated", "promotion_tier"))
    second = invalid(applies("C", share(5)), fails(TIER_2, "order_rules_violated", "promotion_tier"))
    outcome, requests = held(conversation, first, second, valid(applies("C", share(5))))
    assert [asked(request) for request in requests] == [["C", TIER, TIER_2], ["C", TIER_2], ["C"]]
    assert [one.amount for one in outcome.discounts] == [5]
    assert not outcome.rejected


def test_the_last_chance_is_the_codes() -> None:
    tiers = [f"promo_{n}" for n in range(3)]
    conversation = engine(PROMOTIONS=",".join(tiers)).validate(cart(SHIRT, codes=["C"]), ORDER)
    spoiled = [invalid(fails(one, "promotion_inactive", "promotion_tier")) for one in tiers[:2]]
    outcome, requests = held(conversation, *spoiled, valid(applies("C", share(5))))
    assert asked(requests[2]) == ["C"]
    assert not outcome.rejected


# --- Consume ----------------------------------------------------------------------------------------------------------


def shown_order(*metas: dict[str, Any], codes: Sequence[str] = (), **mapper: Any) -> Checkout:
    """An order as it comes back from the shopper: the discounts that validate wrote, and our notes."""
    entries = [{"name": "n", "amount": "0.01", "effect_type": "e", "meta": meta} for meta in metas]
    return order(("A", 1, "5.00"), codes=codes, applied_discounts=entries, promotions={"meta": {"mapper": mapper}})


def tier_meta(name: str, position: Any = 0) -> dict[str, Any]:
    return {"object": "promotion_tier", "redeemable": name, "position": position}


@pytest.mark.parametrize(
    ("promotions", "metas", "expected"),
    [
        ("qualify", [tier_meta(TIER, 2), tier_meta(TIER_2, 1)], ["C", TIER_2, TIER]),
        ("qualify", [tier_meta(TIER, "x"), tier_meta(TIER_2, 1), tier_meta(TIER, 2)], ["C", TIER_2, TIER]),
        (TIER_2, [tier_meta(TIER), tier_meta(TIER_2)], ["C", TIER_2]),
        ("off", [tier_meta(TIER)], ["C"]),
        (TIER, [], ["C"]),
        ("qualify", [tier_meta("../x"), tier_meta("v_1"), {"object": "promotion_tier"}], ["C"]),
        ("qualify", [{"object": "voucher", "redeemable": "STRANGE", "code": "STRANGE"}], ["C"]),
    ],
)
@pytest.mark.parametrize("call", ["check", "redeem"])
def test_consume_redeems_the_promotions_that_the_shopper_was_shown(
    call: str, promotions: str, metas: list[dict[str, Any]], expected: list[str]
) -> None:
    adapter, paid = engine(PROMOTIONS=promotions), shown_order(*metas, codes=["C"])
    conversation = adapter.check(paid, ORDER) if call == "check" else adapter.redeem(paid, ORDER)
    assert asked(next(conversation)) == expected


def test_a_promotion_that_gave_no_money_is_redeemed_too() -> None:
    notices = [{"type": "units", "text": "t", "payload": tier_meta(TIER)}, {"payload": 5}, 7]
    assert asked(next(engine(PROMOTIONS=TIER).redeem(shown_order(notices=notices), ORDER))) == [TIER]


def test_what_validate_writes_is_what_consume_reads() -> None:
    adapter = engine(PROMOTIONS=f"{TIER},{TIER_2}", PROMOTIONS_ORDER="promotions_first")
    answer = valid(
        tier(TIER, share(1)), tier(TIER_2, share(0, item(2)), **discount("APPLY_TO_ITEMS")), applies("C", share(3))
    )
    outcome, _ = held(adapter.validate(cart(("A", 1, "5.00"), codes=["C"]), ORDER), answer)
    paid = shown_order(*[one.meta for one in reversed(outcome.discounts)], codes=["C"])
    assert asked(next(adapter.redeem(paid, ORDER))) == [TIER, TIER_2, "C"]


@pytest.mark.parametrize(
    ("metas", "rejected", "expected"),
    [
        ([], [{"code": "BAD"}], ["GOOD"]),
        ([{"code": "BAD"}], [{"code": "BAD"}], ["BAD", "GOOD"]),
        ([], [{"code": 7}, None, {"code": "OTHER"}], ["BAD", "GOOD"]),
    ],
)
def test_a_code_that_earned_nothing_is_left_alone_and_one_that_earned_something_is_not(
    metas: list[dict[str, Any]], rejected: list[Any], expected: list[str]
) -> None:
    assert (
        asked(next(engine().redeem(shown_order(*metas, codes=["BAD", "GOOD"], rejected=rejected), ORDER))) == expected
    )


def test_a_code_that_was_refused_is_known_again_as_it_was_entered() -> None:
    paid = shown_order(codes=["BAD\u200b", "GOOD"], rejected=[{"code": "BAD\u200b"}])
    assert asked(next(engine().redeem(paid, ORDER))) == ["GOOD"]


@pytest.mark.parametrize("call", ["check", "redeem"])
def test_an_order_without_promotions_costs_no_call(call: str) -> None:
    for paid in (order(SHIRT), order(("A", 0, "1.00"), codes=["X"])):
        outcome, requests = held(getattr(engine(PROMOTIONS=TIER), call)(paid, ORDER))
        assert (outcome, requests) == (Outcome(), [])


def redemption(name: str, off: int, number: int = 1, kind: str = "DISCOUNT_VOUCHER", **more: Any) -> dict[str, Any]:
    return {
        "id": f"r_{number}",
        "object": "redemption",
        "result": "SUCCESS",
        "status": "SUCCEEDED",
        "order": share(off),
        "voucher": {"code": name, "type": kind, "discount": AMOUNT, "campaign": "Spring", "campaign_id": "camp_1"},
        **more,
    }


def redeemed(*redemptions: dict[str, Any], live: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    parent = {"parent_redemption": {"id": "r_0", "result": "SUCCESS"}} if len(redemptions) > 1 else {}
    ids = ["r_0"] if parent else [one["id"] for one in redemptions]
    total = sum(one["order"].get("total_applied_discount_amount", 0) for one in redemptions)
    entries = {name: {"date": f"2026-01-0{n}"} for n, name in enumerate([*live, *ids], 1)}
    whole = {"id": "ord_1", "total_applied_discount_amount": total, "redemptions": entries}
    return {"redemptions": list(redemptions), **parent, "order": whole, **more}


TIER_REDEMPTION: dict[str, Any] = {
    "voucher": None,
    "promotion_tier": {"id": TIER, "name": "Tier", "campaign": {"id": "camp_2"}, "action": {"discount": AMOUNT}},
}


def test_a_redemption_reads_like_the_validation_before_it() -> None:
    adapter = engine(PROMOTIONS=TIER)
    paid = shown_order(tier_meta(TIER), codes=["C", "G", "L"])
    said = {"campaign_name": "Spring", "campaign_id": "camp_1"}
    checked, _ = held(
        adapter.check(paid, ORDER),
        valid(
            {**applies("C", share(5), discount=AMOUNT), **said},
            {**applies("G", share(4), gift={"credits": 4}), **said},
            {**applies("L", share(3), loyalty_card={"points": 30}), **said},
            {**tier(TIER, share(2), discount=AMOUNT), "name": "Tier", "campaign_id": "camp_2"},
        ),
    )
    done, _ = held(
        adapter.redeem(paid, ORDER),
        redeemed(
            redemption("C", 5, 1),
            redemption("G", 4, 2, "GIFT_VOUCHER", gift={"amount": 4}),
            redemption("L", 3, 3, "LOYALTY_CARD", loyalty_card={"points": 30}),
            redemption(TIER, 2, 4, **TIER_REDEMPTION),
        ),
    )
    assert done.discounts == checked.discounts
    assert [one.effect_type for one in done.discounts] == [
        "APPLY_TO_ORDER",
        "GIFT_CARD",
        "PAY_WITH_POINTS",
        "APPLY_TO_ORDER",
    ]
    assert [(one.type, one.payload) for one in done.notices] == [("redemption", {"redemptions": ["r_0"]})]
    assert not done.redeemed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            redeemed(redemption("A", 5), inapplicable_redeemables=[fails("B", "voucher_expired")]),
            [("B", "expired", "voucher_expired")],
        ),
        (
            redeemed(redemption("A", 5), skipped_redeemables=[fails("B", "no_effect", status="SKIPPED")]),
            [("B", "no_effect", "no_effect")],
        ),
        (redeemed(redemption("A", 5)), [("B", "other", "")]),
        (redeemed(redemption("A", 5), {**redemption("B", 0, 2), "result": "FAILURE"}), [("B", "other", "")]),
        (redeemed(redemption("a", 5), redemption("B", 1, 2)), []),
        (redeemed(redemption("A", 5, voucher=None), redemption("B", 1, 2, voucher=None)), []),
        (redeemed(), [("A", "other", ""), ("B", "other", "")]),
    ],
)
def test_less_redeemed_than_asked_for_is_seen_although_the_status_is_200(
    answer: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    outcome, _ = held(engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), answer)
    assert refusals(outcome) == expected


def test_after_a_redemption_amounts_that_do_not_add_up_are_told_and_not_fatal() -> None:
    answer = redeemed(redemption("A", 5))
    answer["order"]["total_applied_discount_amount"] = 7
    outcome, _ = held(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer)
    assert [one.amount for one in outcome.discounts] == [5]
    assert [one.type for one in outcome.notices] == ["amounts_differ", "redemption"]


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b'{"redemptions":{}}', b'{"redemptions":[{"result":"SUCCESS","order":{"items":[{"price":"?"}]}}]}'],
)
def test_a_redemption_that_cannot_be_read_is_an_unknown_outcome(answer: bytes) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        held(engine().redeem(order(SHIRT, codes=["A"]), ORDER), reply(answer))
    assert caught.value.sent


# A stored order.
def stored(*live: str, rolled_back: Sequence[str] = (), off: int = 500, **more: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {name: {"date": "2026-01-02"} for name in live}
    entries |= {name: {"date": "2026-01-01", "rollback_id": "rr_1"} for name in rolled_back}
    items = [{"source_id": "SHIRT-M", "quantity": 2, "price": 2000, "discount_amount": 0}]
    return {
        "id": "ord_1",
        "source_id": ORDER,
        "discount_amount": off,
        "total_discount_amount": off,
        "items": items,
        "redemptions": entries,
        **more,
    }


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (reply(stored("r_1")), "redeemed"),
        (reply(stored()), "absent"),
        (reply({"id": "ord_1"}), "absent"),
        (reply(stored(rolled_back=["r_1"])), "absent"),
        (reply(stored("r_2", rolled_back=["r_1"])), "redeemed"),
        (failure("not_found", 404), "absent"),
        (failure("resource_not_found", 404), "absent"),
        (reply(stored("r_1", total_discount_amount="?")), "redeemed"),
        (reply(b"<html>", 404), None),
        (reply(b"", 404), None),
        (reply(b"", 200), None),
        (failure("unauthorized", 401), None),
    ],
)
def test_recall_believes_voucherify_alone(answer: EngineReply, state: str | None) -> None:
    conversation = (engine().look_up(order(SHIRT), "a/b ?#.."),)
    if state is None:
        with pytest.raises((EngineUnavailable, EngineRejected)):
            held(conversation[0], answer)
        return
    found, [request] = held(conversation[0], answer)
    assert isinstance(found, LookedUp)
    assert found.state == state
    assert (request.method, request.path) == ("GET", "/v1/orders/a%2Fb%20%3F%23..")
    assert request.repeatable


def test_recall_tells_what_was_granted() -> None:
    items = [
        {"source_id": "SHIRT-M", "quantity": 3, "price": 2000, "initial_quantity": 2, "discount_amount": 2500},
        {"product_id": "prod_5h1pp1ng", "quantity": 1, "initial_quantity": 0, "discount_quantity": 1},
    ]
    answer = stored("r_1", items=items, total_discount_amount=3000)
    found, _ = held(engine().look_up(order(SHIRT, **RATE), ORDER), answer)
    amounts = {(one.line, one.cost): one.amount for one in found.outcome.discounts}
    assert amounts == {(None, ""): 500, (0, ""): 500, (None, "shipping"): 1500}
    assert [one.type for one in found.outcome.notices] == ["redemption"]


@pytest.mark.parametrize(
    "items",
    [
        [{"source_id": "OTHER", "quantity": 2, "price": 2000}],
        [{"source_id": "SHIRT-M", "quantity": 2, "price": 1999}],
        [{"source_id": "SHIRT-M", "quantity": 3, "initial_quantity": 3, "price": 2000}],
        [],
        [{"source_id": "SHIRT-M", "price": 2000}, {"source_id": "B", "price": 1, "initial_quantity": 1}],
    ],
)
def test_an_order_that_was_redeemed_with_another_cart_is_another_order(items: list[dict[str, Any]]) -> None:
    with pytest.raises(OrderMismatch):
        held(engine().look_up(order(SHIRT), ORDER), stored("r_1", items=items))


def test_recall_finds_further_redemptions_and_repair_leaves_the_first() -> None:
    answer = stored(redemptions={"r_1": {"date": "2026-01-02"}, "r_3": {"date": "2026-01-03"}, "r_2": {"date": "2026"}})
    found, _ = held(engine().look_up(order(SHIRT), ORDER), answer)
    assert found.extra == ("r_1", "r_3")
    done = [reply({"rollbacks": []}), failure("already_rolled_back")]
    _, requests = held(engine().repair(order(SHIRT), ORDER, found.extra), *done)
    assert [one.path for one in requests] == [f"/v1/redemptions/{name}/rollbacks" for name in found.extra]
    assert held(engine().look_up(order(SHIRT), ORDER), stored("r_1"))[0].extra == ()


def test_what_stands_among_an_orders_redemptions_and_is_none_rolls_nothing_back() -> None:
    strange = {"extension": {"nobody": "knows"}, "r_1": {"date": "2026-01-02"}}
    found, _ = held(engine().look_up(order(SHIRT), ORDER), stored(redemptions=strange))
    assert (found.state, found.extra) == ("redeemed", ())
    found, _ = held(engine().look_up(order(SHIRT), ORDER), stored(redemptions={"extension": {}}))
    assert found.state == "absent"
    answer = redeemed(redemption("A", 5))
    answer["order"]["redemptions"] |= {"extension": {"nobody": "knows"}}
    _, requests = held(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer)
    assert len(requests) == 1


@pytest.mark.parametrize("call", ["check", "redeem"])
def test_a_code_that_is_used_up_may_have_been_used_up_by_this_very_order(call: str) -> None:
    refused = {"check": reply(invalid(fails("X", "quantity_exceeded"))), "redeem": failure("quantity_exceeded")}[call]
    paid = order(SHIRT, codes=["X"])
    outcome, requests = held(getattr(engine(), call)(paid, ORDER), refused, stored("r_1"))
    assert (outcome.redeemed, outcome.rejected) == (True, ())
    assert requests[1].path == f"/v1/orders/{ORDER}"
    outcome, _ = held(getattr(engine(), call)(paid, ORDER), refused, failure("not_found", 404))
    assert (outcome.redeemed, refusals(outcome)) == (False, [("X", "used_up", "quantity_exceeded")])


def test_a_redemption_on_top_of_an_earlier_one_is_taken_back() -> None:
    paid = order(SHIRT, codes=["A", "B"])
    answer = redeemed(redemption("A", 5), redemption("B", 5, 2), live=["r_old"])
    earlier = stored(redemptions={"r_0": {"rollback_id": "rr_0"}, "r_old": {"stacked": ["r_a", "r_b"]}})
    outcome, requests = held(engine().redeem(paid, ORDER), answer, {"rollbacks": []}, earlier)
    assert [request.path for request in requests[1:]] == ["/v1/redemptions/r_0/rollbacks", f"/v1/orders/{ORDER}"]
    assert outcome.redeemed
    with pytest.raises(EngineUnavailable) as caught:
        held(engine().redeem(paid, ORDER), answer, {}, stored(rolled_back=["r_old", "r_0"]))
    assert caught.value.sent


def test_of_two_redemptions_sent_at_once_only_the_later_takes_itself_back() -> None:
    answer = redeemed(redemption("A", 5))
    answer["order"]["redemptions"]["r_later"] = {"date": "2026-01-09"}
    outcome, requests = held(engine().redeem(order(SHIRT, codes=["A"]), ORDER), answer)
    assert (len(requests), outcome.redeemed) == (1, False)


def test_children_of_our_own_redemption_are_not_taken_for_another_one() -> None:
    answer = redeemed(redemption("A", 5), redemption("B", 5, 2))
    answer["order"]["redemptions"] = {"r_0": {"stacked": ["r_1", "r_2"]}, "r_1": {}, "r_2": {}}
    outcome, requests = held(engine().redeem(order(SHIRT, codes=["A", "B"]), ORDER), answer)
    assert (len(requests), outcome.redeemed) == (1, False)


def half(*children: str) -> dict[str, Any]:
    """A stored order with one redemption: of one redeemable, or with these children."""
    return stored(redemptions={"r_1": {"date": "2026-01-02", **({"stacked": list(children)} if children else {})}})


@pytest.mark.parametrize(
    ("answer", "children", "missing", "told"),
    [
        (half(), {"r_1": redemption("A", 5)}, ["B"], [TIER]),
        (half("r_2"), {"r_2": redemption("A", 5)}, ["B"], [TIER]),
        (half("r_2", "r_3"), {"r_2": redemption("a", 5), "r_3": redemption("B", 5)}, [], [TIER]),
        (half("r_2", "r_3"), {"r_2": redemption("B", 5), "r_3": redemption(TIER, 5, **TIER_REDEMPTION)}, ["A"], []),
        (half("r_2", "r_3"), {"r_2": redemption("A", 5), "r_3": redemption("B", 5, result="FAILURE")}, ["B"], [TIER]),
        (half("r_2", "r_2"), {"r_2": redemption("A", 5)}, ["B"], [TIER]),
        (half("r_2", "r_3", "r_4"), {}, [], []),
        # What was redeemed a second time makes up for nothing: it is rolled back.
        (
            stored(redemptions={"r_1": {"date": "1"}, "r_9": {"date": "2", "stacked": ["r_2", "r_3", "r_4"]}}),
            {"r_1": redemption("A", 5)},
            ["B"],
            [TIER],
        ),
    ],
)
def test_an_order_that_was_redeemed_in_part_says_what_is_missing(
    answer: dict[str, Any], children: dict[str, Any], missing: list[str], told: list[str]
) -> None:
    shown = [{"name": "n", "amount": "0.01", "meta": tier_meta(TIER)}]
    paid = order(SHIRT, codes=["A", "B"], applied_discounts=shown)
    found, requests = held(engine(PROMOTIONS=TIER).look_up(paid, ORDER), answer, *children.values())
    assert found.state == "redeemed"
    assert [(one.method, one.path) for one in requests[1:]] == [("GET", f"/v1/redemptions/{name}") for name in children]
    assert all(one.repeatable for one in requests)
    assert refusals(found.outcome) == [(code, "not_applied", "") for code in missing]
    refused = [one.payload["redeemable"] for one in found.outcome.notices if one.type == "promotion_refused"]
    assert refused == told


@pytest.mark.parametrize(
    "answer",
    [
        redemption("A", 5, voucher=None),
        redemption("A", 5, voucher={"code": None}),
        reply(b"<html>"),
        failure("not_found", 404),
    ],
)
def test_what_is_missing_is_never_guessed(answer: Any) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        held(engine().look_up(order(SHIRT, codes=["A", "B"]), ORDER), half(), answer)
    assert caught.value.sent


@pytest.mark.parametrize(
    ("call", "before"),
    [
        ("check", [invalid(fails("B", "quantity_exceeded")), valid(applies("A", share(5)))]),
        ("redeem", [failure("quantity_exceeded")]),
        ("redeem", [redeemed(redemption("A", 5, 7), live=["r_1"]), {"rollbacks": []}]),
    ],
)
def test_an_order_that_was_redeemed_in_part_before_says_so_too(call: str, before: list[Any]) -> None:
    conversation = getattr(engine(), call)(order(SHIRT, codes=["A", "B"]), ORDER)
    outcome, _ = held(conversation, *before, half(), redemption("A", 5))
    assert (outcome.redeemed, refusals(outcome)) == (True, [("B", "not_applied", "")])


def test_as_many_redemptions_as_an_order_can_have_fit_into_one_conversation() -> None:
    codes = [f"C{number}" for number in range(30)]
    children = [redemption(code, 5, number) for number, code in enumerate(codes[:29], 2)]
    found, requests = held(
        engine().look_up(order(SHIRT, codes=codes), ORDER), half(*(one["id"] for one in children)), *children
    )
    assert refusals(found.outcome) == [("C29", "not_applied", "")]
    assert len(requests) == 30 < limit(lines=1)


@pytest.mark.parametrize(
    ("answer", "rolled_back"),
    [
        (reply(stored("r_1", rolled_back=["r_0"])), ["r_1"]),
        (reply(stored("r_1", "r/2")), ["r%2F2", "r_1"]),
        (reply(stored("r_1", "r_2", redemptions={"r_1": {"stacked": ["r_2"]}, "r_2": {}})), ["r_1"]),
        (reply(stored()), []),
        (failure("not_found", 404), []),
    ],
)
@pytest.mark.parametrize("again", [reply({"rollbacks": []}), failure("already_rolled_back")])
def test_undo_rolls_back_all_that_stands_and_a_second_time_is_no_error(
    answer: EngineReply, rolled_back: list[str], again: EngineReply
) -> None:
    _, requests = held(engine().undo(order(SHIRT), ORDER), answer, *[again] * len(rolled_back))
    assert [one.path for one in requests[1:]] == [f"/v1/redemptions/{name}/rollbacks" for name in rolled_back]
    assert all(one.repeatable for one in requests)


def test_undo_that_fails_says_so() -> None:
    with pytest.raises(EngineRejected):
        held(engine().undo(order(SHIRT), ORDER), stored("r_1"), failure("invalid_redemption_parent"))


def test_a_promotion_that_keeps_the_codes_from_being_redeemed_is_left_out_and_told() -> None:
    adapter, paid = engine(PROMOTIONS=TIER), shown_order(tier_meta(TIER), codes=["C"])
    spoiled = invalid(applies("C", share(5)), fails(TIER, "promotion_inactive", "promotion_tier"))
    outcome, requests = held(
        adapter.redeem(paid, ORDER),
        failure("promotion_inactive"),
        spoiled,
        valid(applies("C", share(5))),
        redeemed(redemption("C", 5)),
    )
    assert [(one.path, asked(one)) for one in requests] == [
        ("/v1/redemptions", ["C", TIER]),
        ("/v1/validations", ["C", TIER]),
        ("/v1/validations", ["C"]),
        ("/v1/redemptions", ["C"]),
    ]
    assert [one.amount for one in outcome.discounts] == [5]
    assert {one.type: one.payload for one in outcome.notices} == {
        "redemption": {"redemptions": ["r_1"]},
        "promotion_refused": {"object": "promotion_tier", "redeemable": TIER, "engine_reason": "promotion_inactive"},
    }


def test_a_promotion_that_a_valid_answer_refuses_is_left_out_too() -> None:
    adapter, paid = engine(PROMOTIONS=TIER), shown_order(tier_meta(TIER), codes=["C"])
    partial = valid(applies("C", share(5)), fails(TIER, "promotion_inactive", "promotion_tier"))
    _, requests = held(
        adapter.redeem(paid, ORDER), failure("campaign_not_active"), partial, redeemed(redemption("C", 5))
    )
    assert asked(requests[2]) == ["C"]


@pytest.mark.parametrize(
    ("codes", "replies", "refused"),
    [
        (["A", "B"], [failure("voucher_expired", details="B")], [("B", "expired", "voucher_expired")]),
        (
            ["A", "B"],
            [failure("voucher_expired"), invalid(fails("A", "voucher_expired")), valid(applies("B", share(1)))],
            [("A", "expired", "voucher_expired")],
        ),
        (
            ["A", "B"],
            [failure("voucher_expired"), valid(applies("A", share(1)), applies("B", share(1)))],
            [("A", "expired", "voucher_expired"), ("B", "expired", "voucher_expired")],
        ),
    ],
)
def test_a_refused_redemption_says_which_code(codes: list[str], replies: list[Any], refused: list[Any]) -> None:
    outcome, requests = held(engine().redeem(order(SHIRT, codes=codes), ORDER), *replies)
    assert refusals(outcome) == refused
    assert [one.path for one in requests].count("/v1/redemptions") == 1


def test_promotions_that_cannot_be_redeemed_are_told_or_refused() -> None:
    adapter, paid = engine(PROMOTIONS=TIER), shown_order(tier_meta(TIER))
    refused = failure("promotion_inactive", details=TIER)
    gone = invalid(fails(TIER, "promotion_inactive", "promotion_tier"))
    outcome, _ = held(adapter.redeem(paid, ORDER), refused, gone)
    assert [one.type for one in outcome.notices] == ["promotion_refused"]
    checked, _ = held(adapter.check(paid, ORDER), gone)
    assert checked == outcome
    with pytest.raises(EngineRejected) as caught:
        held(adapter.redeem(paid, ORDER), refused, valid(tier(TIER, share(1))))
    assert caught.value.reason == "promotion_refused"


# --- Rules for any answer ---------------------------------------------------------------------------------------------

RESULTS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        discount("APPLY_TO_ORDER"),
        discount("APPLY_TO_ITEMS", "PERCENT"),
        {"gift": {"credits": 5}},
        {"loyalty_card": {"points": 5}},
        unit(),
        FREE,
        {},
    ]
)


@st.composite
def answered(draw: st.DrawFn) -> tuple[Checkout, dict[str, Any], int]:
    """A cart, a consistent answer about it, and what that answer takes off the units that are in the cart."""
    quantities = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    grown, own, redeemables = list(quantities), 0, []
    for number in range(draw(st.integers(1, 4))):
        items, order_off = [], draw(st.integers(0, 300))
        for index in range(len(quantities)):
            added = draw(st.sampled_from([0, 0, 1, 2]))
            off = draw(st.integers(0, 200))
            grown[index] += added
            own += off
            shown = item(off + added * 1000, quantity=grown[index], price=1000, source_id=f"S{index}")
            items.append(
                {**shown, **({"applied_quantity": added, "applied_quantity_amount": added * 1000} if added else {})}
            )
        extra = draw(st.lists(st.integers(0, 500).map(lambda off: item(off, initial_quantity=0)), max_size=2))
        own += order_off
        redeemables.append(applies(f"C{number}", share(order_off, *items, *extra), **draw(RESULTS)))
    lines = [(f"S{index}", quantity, "10.00") for index, quantity in enumerate(quantities)]
    checkout = cart(*lines, codes=[one["id"] for one in redeemables], **RATE)
    return checkout, valid(*redeemables), own


@settings(max_examples=150, deadline=None)
@given(answered())
def test_what_is_written_is_the_engines_total_but_for_added_units_and_shipping(
    case: tuple[Checkout, dict[str, Any], int],
) -> None:
    checkout, answer, own = case
    outcome = validated(checkout, answer)
    shipping = [one for one in outcome.discounts if one.effect_type == "FREE_SHIPPING"]
    assert sum(one.amount for one in outcome.discounts if one not in shipping) == own
    assert [one.amount for one in shipping] in ([], [1500])
    assert all(one.amount > 0 for one in outcome.discounts)
    assert outcome == validated(checkout, answer)
    positions = [(one.meta["position"], -1 if one.line is None else one.line) for one in outcome.discounts]
    assert positions == sorted(positions)
    settle(checkout, outcome)


JUNK = st.recursive(
    st.sampled_from([None, True, False, -1, 0, 7, 1.5, 10**20, "", "X", "APPLICABLE", "r_1"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["id", "order", "items", "key"]), inner, max_size=2)
    ),
    max_leaves=4,
)
GOOD: list[tuple[Any, int]] = [
    (valid(applies("X", share(5, item(5, source_id="SHIRT-M")), **unit()), fails("Y", "not_found")), 200),
    (invalid(fails("X", "quantity_exceeded"), skipped_redeemables=[fails("Y", "no_effect", status="SKIPPED")]), 200),
    (redeemed(redemption("X", 5), redemption(TIER, 5, 2, **TIER_REDEMPTION), live=["r_old"]), 200),
    (stored("r_1", "r_2", rolled_back=["r_3"]), 200),
    (half("r_1", "r_2"), 200),
    (redemption("X", 5), 200),
    ({"redeemables": {"data": [{"id": TIER, "object": "promotion_tier"}]}}, 200),
    ({"code": 400, "key": "voucher_expired", "details": "X", "resource_type": "voucher"}, 400),
    ({"code": 404, "key": "not_found", "details": "?", "resource_id": "X"}, 404),
]


@st.composite
def hostile(draw: st.DrawFn) -> EngineReply:
    """A good answer with something else in a few of its places."""
    body, status = draw(st.sampled_from(GOOD))
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(0, 3))):
        at, holder = body, None
        key: Any = None
        while isinstance(at, dict | list) and at and (holder is None or draw(st.booleans())):
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            holder, at = at, at[key]
        if holder is not None:
            holder[key] = draw(JUNK)
    return reply(body, draw(st.sampled_from([status, status, status, 200, 400, 404, 401, 500, 204])))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["validate", "check", "redeem", "look_up", "undo"]), st.data())
def test_no_answer_leads_to_anything_but_an_outcome_or_a_problem(call: str, data: st.DataObject) -> None:
    adapter = engine(PROMOTIONS="qualify")
    promotions = {"coupon_codes": ["X", "Y"]}
    if call == "validate":
        conversation: Conversation[Any] = adapter.validate(cart(SHIRT, promotions=promotions), ORDER)
    else:
        entries = [{"name": "n", "amount": "0.01", "meta": tier_meta(TIER)}]
        conversation = getattr(adapter, call)(order(SHIRT, promotions=promotions, applied_discounts=entries), ORDER)
    try:
        next(conversation)
        for _ in range(20):
            conversation.send(data.draw(hostile()))
    except StopIteration as end:
        outcome = end.value
        assert outcome is None or isinstance(outcome, Outcome | Redeemed | NotRedeemed | LookedUp)
        if isinstance(outcome, Outcome):
            assert all(isinstance(one, Discount) and one.amount > 0 for one in outcome.discounts)
    except Problem:
        pass
    else:
        pytest.fail("the conversation does not end")


# --- Options ----------------------------------------------------------------------------------------------------------


def test_without_options_but_the_keys_the_account_is_complete() -> None:
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
def test_an_option_is_understood_or_pointed_out(name: str, good: list[str], wrong: list[str]) -> None:
    assert name in names(Voucherify.options)
    for value in good:
        engine(**{name: value})
    for value in wrong:
        with pytest.raises(Misconfigured) as caught:
            engine(**{name: value})
        assert [fault[0] for fault in caught.value.problems] == [name], value
        assert all(expected for _, expected in caught.value.problems)


def test_all_faults_are_told_at_once() -> None:
    wrong = {"BASE_URL": "x", "EXPONENT": "x", "PROMOTIONS": "x", "ITEM_ID": "x", "ORDER_METADATA": "x"}
    with pytest.raises(Misconfigured) as caught:
        Voucherify(wrong)
    assert [name for name, _ in caught.value.problems] == [
        "BASE_URL", "APP_ID", "APP_TOKEN", "PROMOTIONS", "ITEM_ID", "EXPONENT", "ORDER_METADATA",
    ]  # fmt: skip
