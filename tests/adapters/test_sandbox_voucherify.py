"""Voucherify's sandbox: what the vendor documents, to the cent; its refusals, its state; and the vendor's own client.

The expected figures are copied from the vendor's documentation, named beside each. The vendor's package takes four
seconds to import, so it comes with the fixture that needs it.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any

import pytest

from adapters.voucherify.sandbox import VoucherifySandbox
from adapters.voucherify.sandbox.catalog import Options
from mapper.sandbox import host as sandbox
from mapper.sandbox import rulebook

Json = dict[str, Any]

DEFAULT = resources.files("mapper.sandbox").joinpath("rulebook.toml").read_text("utf-8")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HEADERS = {"x-app-id": "app", "x-app-token": "token", "content-type": "application/json"}
ALL = ('redeemables_application_mode = "PARTIAL"', 'redeemables_application_mode = "ALL"')
CASCADING = ("cascading_discounts = false", "cascading_discounts = true")


@cache
def book(*changes: tuple[str, str]) -> rulebook.RuleBook:
    """The default rule book with something changed."""
    text = DEFAULT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return rulebook.parse(text)


def small_book(effects: dict[str, str], settings: str = "", engine: str = "") -> rulebook.RuleBook:
    """A book with one coupon for each effect; a code that starts with "promo_" is a campaign that needs none."""
    text = f"[settings]\n{settings}\n[settings.costs]\nshipping = 'both'\n[engines.voucherify]\n{engine}\n"
    for number, (code, effect) in enumerate(effects.items(), 1):
        needs = "nothing" if code.startswith("promo_") else "coupon"
        text += f"[[campaigns]]\nid = {number}\nname = '{code}'\nneeds = '{needs}'\neffects = [{effect}]\n"
        if needs == "coupon":
            text += f"[[coupons]]\ncode = '{code}'\ncampaign = {number}\n"
    return rulebook.parse(text)


async def call(
    app: Any, method: str, path: str, body: bytes = b"", pause: float = 0, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """One request straight into the emulator, with the path as it stands on the wire."""
    raw_path, _, query = path.encode().partition(b"?")
    named = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": raw_path.decode(),
        "raw_path": raw_path,
        "root_path": "",
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        sandbox.PAUSE: pause,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    reply = sent[1]["body"]
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, json.loads(reply) if reply else None


class Shop:
    """A shop that talks to a sandbox of its own, at a time of its own."""

    def __init__(self, *changes: tuple[str, str], own: rulebook.RuleBook | None = None) -> None:
        self.now = NOW
        self.engine = VoucherifySandbox(own or book(*changes), lambda: self.now)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        status, _, reply = asyncio.run(call(self.engine, method, f"/v1/{path}", data, 0, **headers))
        return status, reply

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, reply = self.call(method, path, body)
        assert status in (200, 204), reply
        return reply

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        status, reply = self.call(method, path, body)
        assert status >= 400, reply
        assert reply["code"] == status
        assert reply["request_id"].startswith("v-")
        return status, reply["key"]

    def validate(self, *redeemables: Any, **more: Any) -> Json:
        return dict(self.ok("POST", "validations", request(*redeemables, **more)))

    def redeem(self, *redeemables: Any, **more: Any) -> Json:
        return dict(self.ok("POST", "redemptions", request(*redeemables, **more)))

    @property
    def books(self) -> Json:
        return self.engine.books()


def redeemable(given: Any) -> Json:
    """ "CODE", "promo_1", "stack_x", or a redeemable as it is sent."""
    if isinstance(given, dict):
        return given
    kinds = {"promo": "promotion_tier", "stack": "promotion_stack"}
    return {"object": kinds.get(given.split("_")[0], "voucher"), "id": given}


def request(*redeemables: Any, order: Json | None = None, customer: str = "", **more: Any) -> Json:
    body: Json = {"redeemables": [redeemable(given) for given in redeemables]}
    body["order"] = {"items": items((14000, 1))} if order is None else order
    if customer:
        body["customer"] = {"source_id": customer}
    return body | more


def items(*lines: tuple[int, int], **more: Any) -> list[Json]:
    """Lines of (price, quantity), named SKU-0, SKU-1 and so on."""
    return [
        {"source_id": f"SKU-{i}", "related_object": "sku", "price": price, "quantity": quantity} | more
        for i, (price, quantity) in enumerate(lines)
    ]


def cart(*lines: tuple[int, int], **more: Any) -> Json:
    return {"items": items(*lines)} | more


def earned(reply: Json) -> list[str]:
    """What each redeemable does by itself: "CODE order 500 #0 3500 #1+2 700 free", and why another does nothing."""
    told = []
    for entry in merged(reply):
        words = [entry["id"]]
        if entry["status"] == "APPLICABLE":
            order = entry.get("order", {})
            words += [f"order {off}" for off in [order.get("applied_discount_amount")] if off]
            for i, line in enumerate(order.get("items", [])):
                added = f"+{line['applied_quantity']}" if "applied_quantity" in line else ""
                off = line.get("applied_discount_amount")
                if added or off:
                    words.append(f"#{i}{added} {off or 'free'}")
        else:
            result = entry["result"]
            words += ["-", result["error"]["key"] if "error" in result else result["details"]["key"]]
        told.append(" ".join(words))
    return told


def merged(reply: Json) -> list[Json]:
    """All redeemables of a reply, whichever list they are in."""
    lists = [reply.get(name) or [] for name in ("redeemables", "inapplicable_redeemables", "skipped_redeemables")]
    return list({(entry["object"], entry["id"]): entry for entry in itertools.chain(*lists)}.values())


def amounts(order: Json) -> dict[str, int]:
    return {name.removesuffix("_amount"): value for name, value in order.items() if name.endswith("amount")}


# --- What a cart earns ------------------------------------------------------------------------------------------------


def test_the_cart_of_nacelles_page_earns_what_the_page_shows() -> None:
    reply = Shop().validate("XMAS-2021-25", "promo_2")
    assert reply["valid"]
    assert earned(reply) == ["XMAS-2021-25 #0 3500", "promo_2 #1+1 free"]
    tier = reply["redeemables"][1]["result"]["discount"]
    assert (tier["type"], tier["effect"], tier["unit_type"]) == ("UNIT", "ADD_MISSING_ITEMS", "prod_5h1pp1ng")
    assert amounts(reply["order"]) == {
        "amount": 14000,
        "items_discount": 3500,
        "total_discount": 3500,
        "items_applied_discount": 3500,
        "total_applied_discount": 3500,
        "total": 10500,
    }
    # Free shipping is a line without any amount.
    assert reply["order"]["items"][1] == {
        "object": "order_item",
        "product_id": "prod_5h1pp1ng",
        "quantity": 1,
        "discount_quantity": 1,
        "applied_discount_quantity": 1,
        "applied_quantity": 1,
        "initial_quantity": 0,
        "product": {"id": "prod_5h1pp1ng", "source_id": "5h1pp1ng", "name": "Shipping"},
    }


SHOES: Json = {"metadata": {"category": "shoes"}}

EARNS: list[tuple[list[Any], Json, list[str]]] = [
    (["XMAS-2021-25"], cart((14000, 2)), ["XMAS-2021-25 #0 7000"]),
    (["XMAS-2021-25"], cart((10000, 2)), ["XMAS-2021-25 - order_rules_violated"]),
    (["TEN-PERCENT"], cart((999, 3), (5, 1)), ["TEN-PERCENT #0 300 #1 1"]),
    (["xmas-2021-25"], cart((14000, 1)), ["XMAS-2021-25 #0 3500"]),
    (["MIN-200"], cart((10000, 2)), ["MIN-200 order 2000"]),
    (["ALONE-15"], cart((10000, 2)), ["ALONE-15 order 3000"]),
    (["LINE-10"], cart((400, 1), (2000, 3)), ["LINE-10 #0 400 #1 1000"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), product=SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), sku=SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["SHOES-10"], {"items": items((3300, 1), (1700, 2), **SHOES)}, ["SHOES-10 #0 493 #1 507"]),
    (["EVERYTHING"], cart((1000, 1)), ["EVERYTHING #0 333"]),
    (["WRAPPED"], cart((1000, 1)), ["WRAPPED"]),
    (["TEN-PERCENT", "WINTER-25"], cart((1000, 1)), ["TEN-PERCENT #0 100", "WINTER-25 #0 250"]),
    (["FRIEND-OF-JANE"], cart((1000, 2)), ["FRIEND-OF-JANE order 1000"]),
    (["FRIEND-OF-JANE"], cart((400, 1)), ["FRIEND-OF-JANE order 400"]),
    # Without a price nothing comes off, and nobody says so.
    (["TEN-PERCENT"], {"items": [{"product_id": "prod_1", "quantity": 1}]}, ["TEN-PERCENT"]),
    (["TEN-PERCENT"], {"amount": 5000}, ["TEN-PERCENT"]),
    (["MIN-200"], {"amount": 20000}, ["MIN-200 order 2000"]),
    (
        ["promo_3"],
        cart((30000, 1), metadata={"store": "berlin"}),
        ["promo_3 #1+1 free"],
    ),
    (["promo_3"], cart((30000, 1)), ["promo_3 - order_rules_violated"]),
    ([{"object": "voucher", "id": "GIFT-50"}], cart((14000, 1)), ["GIFT-50 order 5000"]),
    ([{"object": "voucher", "id": "GIFT-50", "gift": {"credits": 1200}}], cart((14000, 1)), ["GIFT-50 order 1200"]),
    ([{"object": "voucher", "id": "GIFT-50", "gift": {"credits": 4000}}], cart((900, 1)), ["GIFT-50 order 900"]),
    (
        [{"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51"}}],
        cart((14000, 1)),
        ["CARD-SPEND order 1000"],
    ),
]


@pytest.mark.parametrize(("codes", "order", "expected"), EARNS)
def test_a_cart_earns_what_the_rule_book_says(codes: list[Any], order: Json, expected: list[str]) -> None:
    assert earned(Shop().validate(*codes, order=order)) == expected


@pytest.mark.parametrize(
    "effect",
    [
        '{ kind = "off_order", scope = "costs", amount = "5.00" }',
        '{ kind = "off_cost", cost = "handling", percent = "100" }',
        '{ kind = "off_item_cost", cost = "gift_wrap", percent = "100" }',
        '{ kind = "message", title = "A", text = "B" }',
        '{ kind = "custom" }',
    ],
)
def test_what_voucherify_cannot_express_does_nothing(effect: str) -> None:
    costs = "[settings.costs]\nhandling = 'order'\ngift_wrap = 'item'\n"
    shop = Shop(own=rulebook.parse(costs + small_book_text({"NOTHING": effect}, ["NOTHING"])))
    shipping = {"product_id": "prod_5h1pp1ng", "quantity": 1, "price": 1500}
    reply = shop.validate("NOTHING", order={"items": [*items((14_000, 1)), shipping]})
    assert earned(reply) == ["NOTHING"]
    assert reply["redeemables"][0]["result"]["discount"]["amount_off"] == 0


def test_what_is_paid_already_cannot_come_off_again() -> None:
    card = {"object": "voucher", "id": "GIFT-50", "gift": {"credits": 4000}}
    assert earned(Shop().validate(card, "LINE-10", order=cart((3000, 1), (1500, 1)))) == [
        "GIFT-50 order 4000",
        "LINE-10 #0 500",
    ]
    free = {f"promo_{i}": '{ kind = "off_cost", cost = "shipping", percent = "100" }' for i in (1, 2)}
    reply = Shop(own=small_book(free)).validate("promo_1", "promo_2")
    assert earned(reply) == ["promo_1 #1+1 free", "promo_2"], "it is free only once"
    assert reply["order"]["items"][1]["discount_quantity"] == 1


def test_messages_and_payloads_are_metadata_of_what_is_redeemed() -> None:
    reply = Shop().validate("EVERYTHING", options={"expand": ["order", "redeemable"]})
    assert reply["redeemables"][0]["metadata"] == {
        "message": {"level": "info", "title": "You found it", "text": "This code does everything at once."},
        "crm_tag": {"tag": "curious", "score": 3},
    }


OFF = {kind: f'{{ kind = "off_order", {kind} = "%s" }}' for kind in ("amount", "percent")}
ON_ITEMS = 'items = { skus = ["SKU-0", "SKU-1"] }'


def off(value: str) -> str:
    """An effect on the order: "30.00" or "40%"."""
    return OFF["percent"] % value[:-1] if value.endswith("%") else OFF["amount"] % value


# Name, effects by code, the order, what is redeemed, and for each the applied order- and item-level amounts with what
# is left to pay afterwards. Percentages are of what earlier discounts left, as in all of the vendor's examples but one.
OFFICIAL: list[tuple[str, dict[str, str], Json, list[Any], list[tuple[int, list[int], int]]]] = [
    (
        # guides/manage-stackable-discounts, "Validation": a gift card of 100 credits, 20 %, 80.00 off.
        "gift card, percentage and amount, cumulative 100, 40080, 48080",
        {"GIFT": "", "TWENTY": off("20%"), "promo_3": off("80.00")},
        {"amount": 200_000},
        [{"object": "voucher", "id": "CREDITS", "gift": {"credits": 100}}, "TWENTY", "promo_3"],
        [(100, [], 199_900), (39_980, [], 159_920), (8_000, [], 151_920)],
    ),
    (
        # POST /v1/validations, response example "True - 5 Redeemables" (its loyalty reward does nothing to the order).
        "10.00 off each item, credits, 40 %, 0.30 off",
        {
            "GNcuPKGe": '{ kind = "off_lines", amount = "10.00" }',
            "GIFT": "",
            "promo_3": off("40%"),
            "promo_4": off("0.30"),
        },
        cart((2000, 1), (700, 1)),
        ["GNcuPKGe", {"object": "voucher", "id": "CREDITS", "gift": {"credits": 100}}, "promo_3", "promo_4"],
        [(0, [1000, 700], 1000), (100, [0, 0], 900), (360, [0, 0], 540), (30, [0, 0], 510)],
    ),
    (
        # guides/data-parsing, "Response analysis": 20.00 off two of three products, then 25.00 off the cart.
        "20.00 off two lines, 25.00 off the order",
        {"Adventure": f'{{ kind = "off_lines", amount = "20.00", {ON_ITEMS} }}', "Whole-cart": off("25.00")},
        cart((1000, 3), (2000, 3), (2500, 2)),
        ["Adventure", "Whole-cart"],
        [(0, [2000, 2000, 0], 10_000), (2500, [0, 0, 0], 7500)],
    ),
    (
        # orchestrate/using-stacking-rules-and-categories, "Discount calculation mode", scenario B.
        "10 % and 20 % of what is left of 100",
        {"TENPC": off("10%"), "TWENTY": off("20%")},
        {"amount": 10_000},
        ["TENPC", "TWENTY"],
        [(1000, [], 9000), (1800, [], 7200)],
    ),
    (
        # The same page, "Change incentive eligibility", scenario B: $105, 20 % first.
        "20 % and 10 % of 105",
        {"TENPC": off("10%"), "TWENTY": off("20%")},
        {"amount": 10_500},
        ["TWENTY", "TENPC"],
        [(2100, [], 8400), (840, [], 7560)],
    ),
    (
        # POST /v1/vouchers/{code}/redemption, response example "Discount Coupon": 147.76 and 152.24 rounded.
        "3.00 spread over lines of 33.00 and 34.00",
        {"2CpRCE2c": '{ kind = "off_items_pro_rata", amount = "3.00" }'},
        cart((3300, 1), (1700, 2)),
        ["2CpRCE2c"],
        [(0, [148, 152], 6400)],
    ),
    (
        # An order-level percentage of 1033.50: 31.005 is rounded half up.
        "3 % of 1033.50",
        {"THREE": off("3%")},
        {"amount": 103_350},
        ["THREE"],
        [(3101, [], 100_249)],
    ),
    (
        # POST /v1/vouchers/{code}/validate, response example "Percentage": shipping sent as an item is discounted, too.
        "10 % of goods and shipping",
        {"TENPC": off("10%")},
        {
            "items": [
                *items((6500, 1), (6000, 1)),
                {"source_id": "5h1pp1ng", "related_object": "product", "price": 2000, "quantity": 1},
                *items((5000, 2), (11_000, 2)),
            ]
        },
        ["TENPC"],
        [(4650, [0, 0, 0, 0, 0], 41_850)],
    ),
    (
        # GET /v1/redemptions/{id}, response example "Loyalty Card - Pay with Points": 5 points are 5.00.
        "5 points of 1.00 each, after 46.00 off",
        {"BEFORE": off("46.00")},
        {"amount": 20_000},
        ["BEFORE", {"object": "voucher", "id": "POINTS", "reward": {"id": "rew_901", "points": 5}}],
        [(4600, [], 15_400), (500, [], 14_900)],
    ),
]


@pytest.mark.parametrize(("name", "effects", "order", "codes", "expected"), OFFICIAL, ids=[row[0] for row in OFFICIAL])
def test_the_vendors_worked_examples_come_out_to_the_cent(
    name: str, effects: dict[str, str], order: Json, codes: list[Any], expected: list[tuple[int, list[int], int]]
) -> None:
    shop = Shop(own=worked_book(effects))
    reply = shop.validate(*codes, order=order)
    snapshots = [entry["order"] for entry in reply["redeemables"]]
    assert [applied(snapshot) for snapshot in snapshots] == expected
    total = sum(off + sum(lines) for off, lines, _ in expected)
    assert reply["order"]["total_applied_discount_amount"] == total
    assert reply["order"]["total_amount"] == expected[-1][2]


def worked_book(effects: dict[str, str]) -> rulebook.RuleBook:
    """Beside the coupons: a gift card CREDITS, and a loyalty card POINTS whose points are worth 1.00 each."""
    cards = """
        [[campaigns]]
        id = 900
        name = "Gift"
        needs = "gift_card"
        effects = [{ kind = "pay_with_balance" }]
        [[gift_cards]]
        code = "CREDITS"
        campaign = 900
        balance = "50.00"
        [[campaigns]]
        id = 901
        name = "Points"
        needs = "loyalty_card"
        effects = [{ kind = "pay_with_points", value = "1.00" }]
        [[loyalty_programs]]
        id = 1
        name = "points"
        campaigns = [901]
        [[loyalty_cards]]
        code = "POINTS"
        program = 1
        points = "20"
    """
    coupons = small_book_text({code: effect for code, effect in effects.items() if code != "GIFT"}, [*effects])
    return rulebook.parse("[settings]\ncascading_discounts = true\n" + coupons + cards)


def small_book_text(effects: dict[str, str], order: list[str]) -> str:
    text = ""
    for code, effect in effects.items():
        number = order.index(code) + 1
        needs = "nothing" if code.startswith("promo_") else "coupon"
        text += f"[[campaigns]]\nid = {number}\nname = '{code}'\nneeds = '{needs}'\neffects = [{effect}]\n"
        text += f"[[coupons]]\ncode = '{code}'\ncampaign = {number}\n" if needs == "coupon" else ""
    return text


def applied(order: Json) -> tuple[int, list[int], int]:
    lines = [line.get("applied_discount_amount", 0) for line in order.get("items", [])]
    return order.get("applied_discount_amount", 0), lines, order["total_amount"]


def test_percentages_can_be_of_the_initial_amounts() -> None:
    # orchestrate/using-stacking-rules-and-categories, "Discount calculation mode", scenario A.
    shop = Shop(own=small_book({"TENPC": off("10%"), "TWENTY": off("20%")}))
    reply = shop.validate("TENPC", "TWENTY", order={"amount": 10_000})
    assert earned(reply) == ["TENPC order 1000", "TWENTY order 2000"]
    assert reply["stacking_rules"]["discount_calculation_mode"] == "INITIAL_AMOUNT"


UNITS: list[tuple[str, int, Json | None, dict[str, Any]]] = [
    # Effect, units, price of the one unit in the cart (None: there is none), the line as the examples of
    # POST /v1/promotions/validation and POST /v1/vouchers/{code}/validate show it.
    (
        "ADD_MISSING_ITEMS",
        23,
        {"price": 1700},
        {"quantity": 23, "discount_quantity": 23, "initial_quantity": 1, "amount": 39_100, "initial_amount": 1700}
        | {"discount_amount": 39_100, "subtotal_amount": 0},
    ),
    (
        "ADD_NEW_ITEMS",
        22,
        {"price": 1700},
        {"quantity": 23, "discount_quantity": 22, "initial_quantity": 1, "amount": 39_100, "initial_amount": 1700}
        | {"discount_amount": 37_400, "subtotal_amount": 1700},
    ),
    (
        "ADD_NEW_ITEMS",
        8,
        None,
        {"quantity": 8, "discount_quantity": 8, "initial_quantity": 0, "amount": 4000, "initial_amount": 0}
        | {"discount_amount": 4000, "subtotal_amount": 0},
    ),
    (
        "ADD_MISSING_ITEMS",
        1,
        {"price": 1700},
        {"quantity": 1, "discount_quantity": 1, "amount": 1700, "discount_amount": 1700, "subtotal_amount": 0},
    ),
]


@pytest.mark.parametrize(("effect", "units", "present", "expected"), UNITS)
def test_free_units_are_added_and_counted_as_documented(
    effect: str, units: int, present: Json | None, expected: Json
) -> None:
    effects = {"FREEBIE": f'{{ kind = "free_item", sku = "ROSES", quantity = {units} }}'}
    shop = Shop(own=small_book(effects, engine=f'free_items = "{effect}"\nprices = {{ ROSES = "5.00" }}'))
    other = {"source_id": "OTHER", "related_object": "sku", "price": 2900, "quantity": 1}
    mine = [{"source_id": "ROSES", "related_object": "sku", "quantity": 1} | present] if present else []
    order = shop.validate("FREEBIE", order={"items": [other, *mine]})["order"]
    shown = {name: order["items"][1].get(name) for name in expected}
    assert shown == expected
    added = expected["amount"] - expected.get("initial_amount", expected["amount"])
    assert order.get("initial_amount", order["amount"]) == order["amount"] - added
    assert order["total_amount"] == order["amount"] - expected["discount_amount"]


def test_several_free_units_are_one_discount_of_many() -> None:
    effects = {
        "FREEBIES": '{ kind = "free_item", sku = "ROSES" }, { kind = "off_cost", cost = "shipping", percent = "100" }'
    }
    reply = Shop(own=small_book(effects)).validate("FREEBIES")
    discount = reply["redeemables"][0]["result"]["discount"]
    assert discount["effect"] == "ADD_MANY_ITEMS"
    assert [(unit["effect"], unit["unit_off"]) for unit in discount["units"]] == [
        ("ADD_NEW_ITEMS", 1),
        ("ADD_MISSING_ITEMS", 1),
    ]
    assert earned(reply) == ["FREEBIES #1+1 free #2+1 free"]


SHIPPING: list[tuple[str, Json | None, dict[str, str], str]] = [
    # Shipping that is sent, or has a price in the catalog, comes off with an amount; else there is only a line.
    ('percent = "100"', {"source_id": "5h1pp1ng", "related_object": "product", "price": 1500}, {}, "#1 1500"),
    ('percent = "100"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 1500"),
    ('percent = "100"', None, {"5h1pp1ng": "15.00"}, "#1+1 1500"),
    ('percent = "100"', None, {}, "#1+1 free"),
    ('percent = "50"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 750"),
    ('amount = "4.00"', {"product_id": "prod_5h1pp1ng", "price": 1500}, {}, "#1 400"),
    ('amount = "4.00"', None, {}, ""),
]


@pytest.mark.parametrize(("off_shipping", "line", "prices", "expected"), SHIPPING)
def test_shipping_comes_off_as_a_product(
    off_shipping: str, line: Json | None, prices: dict[str, str], expected: str
) -> None:
    catalog = ", ".join(f'"{name}" = "{price}"' for name, price in prices.items())
    effects = {"promo_1": f'{{ kind = "off_cost", cost = "shipping", {off_shipping} }}'}
    shop = Shop(own=small_book(effects, engine=f"prices = {{ {catalog} }}"))
    order = {"items": items((14000, 1)) + ([{"quantity": 1} | line] if line else [])}
    assert earned(shop.validate("promo_1", order=order)) == [f"promo_1 {expected}".strip()]


def test_the_items_of_a_campaign_never_hold_the_shipping() -> None:
    shipping = {"product_id": "prod_5h1pp1ng", "quantity": 1, "price": 1500}
    reply = Shop().validate("TEN-PERCENT", order={"items": [*items((1000, 1)), shipping]})
    assert earned(reply) == ["TEN-PERCENT #0 100"]


def test_the_shares_of_the_redeemables_add_up_in_every_answer() -> None:
    dice = random.Random(5)
    codes = ["XMAS-2021-25", "TEN-PERCENT", "MIN-200", "LINE-10", "SHOES-10", "WINTER-25", "FRIEND-OF-JANE", "GIFT-50"]
    for _ in range(150):
        shop = Shop(dice.choice([CASCADING, ALL]))
        lines = [(dice.randrange(1, 30_000), dice.randrange(1, 4)) for _ in range(dice.randrange(1, 6))]
        order = {"items": items(*lines, metadata={"category": dice.choice(["shoes", "hats"])})}
        reply = shop.validate(*dice.sample(codes, dice.randrange(1, 5)), "promo_2", order=order)
        if reply["valid"]:
            check_sums(reply)


def check_sums(reply: Json) -> None:
    top, shares = reply["order"], [entry["order"] for entry in reply["redeemables"]]
    assert sum(share.get("total_applied_discount_amount", 0) for share in shares) == top.get(
        "total_applied_discount_amount", 0
    )
    for i, line in enumerate(top["items"]):
        parts = [share["items"][i].get("applied_discount_amount", 0) for share in shares if i < len(share["items"])]
        assert sum(parts) == line.get("applied_discount_amount", 0)
    assert top["total_amount"] == top["amount"] - top.get("total_discount_amount", 0) >= 0
    for order in (top, *shares):
        assert 0 not in [value for name, value in order.items() if "discount" in name], "0 is left out"
        for line in order["items"]:
            assert 0 not in [value for name, value in line.items() if "discount" in name], "0 is left out"
            assert line.get("discount_amount", 0) <= line.get("amount", 0)


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "customer", "key"),
    [
        ("NOPE-10", "", "not_found"),
        ("promo_99", "", "not_found"),
        ("EXPIRED-10", "", "voucher_expired"),
        ("SOON-10", "", "voucher_not_active"),
        ("USED-UP-10", "", "quantity_exceeded"),
        ("PAUSED-5", "", "voucher_disabled"),
        ("JANE-ONLY-10", "bob", "customer_rules_violated"),
        ("JANE-ONLY-10", "", "customer_rules_violated"),
        ("JANE-ONLY-10", "jane", None),
        ("ONCE-EACH-10", "", "missing_customer"),
        ("ONCE-EACH-10", "bob", None),
        ("MIN-200", "", "order_rules_violated"),
        ("SHOES-10", "", "order_rules_violated"),
        ("FRIEND-OF-JANE", "jane", "referrer_not_permitted_to_redeem"),
        ("FRIEND-OF-JANE", "bob", None),
        ("FRIEND-EXPIRED", "bob", "voucher_expired"),
        ("FRIEND-USED-UP", "bob", "quantity_exceeded"),
        ("GIFT-EMPTY", "", "gift_amount_exceeded"),
        ({"object": "voucher", "id": "GIFT-50", "gift": {"credits": 5001}}, "", "gift_amount_exceeded"),
        ("CARD-COLLECT", "", "missing_reward"),
        ("CARD-SPEND", "", "missing_reward"),
        ({"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_1"}}, "", "not_found"),
        (
            {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 201}},
            "",
            "loyalty_card_points_exceeded",
        ),
    ],
)
def test_a_code_is_refused_in_the_words_of_the_documentation(code: Any, customer: str, key: str | None) -> None:
    reply = Shop().validate(code, customer=customer)
    assert reply["valid"] is (key is None)
    (entry,) = merged(reply)
    assert entry["status"] == ("APPLICABLE" if key is None else "INAPPLICABLE")
    if key is not None:
        error = entry["result"]["error"]
        assert error["key"] == key == entry["result"]["details"]["key"]
        assert error["code"] == (404 if key == "not_found" else 400)
        assert {"message", "details", "request_id"} <= error.keys()
        assert "order" not in reply


RULES: list[tuple[str, str, Json, str, str | None]] = [
    # What the campaign says, the customer, the order's metadata, its one line, why it is refused.
    ("conditions = { customers = ['jane'] }", "jane", {}, "1000 x 1", None),
    ("conditions = { customers = ['jane'] }", "bob", {}, "1000 x 1", "customer_rules_violated"),
    ("conditions = { customers = ['jane'] }", "", {}, "1000 x 1", "customer_rules_violated"),
    ("conditions = { attributes = { channel = 'web' } }", "", {"channel": "web"}, "1000 x 1", None),
    ("conditions = { attributes = { channel = 'web' } }", "", {"channel": "app"}, "1000 x 1", "order_rules_violated"),
    ("conditions = { stores = ['berlin'] }", "", {"store": "berlin"}, "1000 x 1", None),
    ("conditions = { stores = ['berlin'] }", "", {}, "1000 x 1", "order_rules_violated"),
    ("conditions = { cart_over = '10.00' }", "", {}, "500 x 2", "order_rules_violated"),
    ("conditions = { cart_over = '10.00' }", "", {}, "1001 x 1", None),
    ("conditions = { cart_at_least = '10.00' }", "", {}, "500 x 2", None),
    ("conditions = { cart_at_least = '10.00' }", "", {}, "999 x 1", "order_rules_violated"),
    ("conditions = { units_at_least = 3 }", "", {}, "1000 x 2", "order_rules_violated"),
    ("conditions = { units_at_least = 3 }", "", {}, "1000 x 3", None),
    ("conditions = { any_item = { skus = ['SKU-0'] } }", "", {}, "1000 x 1", None),
    ("conditions = { any_item = { skus = ['SKU-1'] } }", "", {}, "1000 x 1", "order_rules_violated"),
    ("limits = { redemptions_per_customer = 1 }", "", {}, "1000 x 1", "missing_customer"),
    ("limits = { redemptions_per_customer = 1 }", "bob", {}, "1000 x 1", None),
    ("limits = { redemptions_per_customer = 0 }", "bob", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { redemptions = 0 }", "", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { budget = '0.99' }", "", {}, "1000 x 1", "redemption_rules_violated"),
    ("limits = { budget = '1.00' }", "", {}, "1000 x 1", None),
    ("active = false", "", {}, "1000 x 1", "promotion_inactive"),
    ("starts = 2026-11-02T00:00:00Z", "", {}, "1000 x 1", "promotion_not_active_now"),
    ("ends = 2026-11-01T12:00:00Z", "", {}, "1000 x 1", "promotion_not_active_now"),
]


@pytest.mark.parametrize(("rule", "customer", "metadata", "line", "key"), RULES)
def test_the_rules_of_a_campaign_decide(rule: str, customer: str, metadata: Json, line: str, key: str | None) -> None:
    settings = "[settings]\nstores = ['berlin']\n[settings.session_attributes]\nchannel = 'string'\n"
    campaign = small_book_text({"promo_1": off("1.00")}, ["promo_1"]).replace("needs", f"{rule}\nneeds")
    shop = Shop(own=rulebook.parse(settings + campaign))
    price, quantity = line.split(" x ")
    order = cart((int(price), int(quantity)), metadata=metadata)
    expected = "promo_1 order 100" if key is None else f"promo_1 - {key}"
    assert earned(shop.validate("promo_1", order=order, customer=customer)) == [expected]


CARDS = """
    [[campaigns]]
    id = 1
    name = "Gift"
    needs = "gift_card"
    effects = [{ kind = "pay_with_balance" }]
    [[gift_cards]]
    code = "GIFT-LATE"
    campaign = 1
    balance = "50.00"
    starts = 2027-01-01T00:00:00Z
    [[campaigns]]
    id = 2
    name = "Points"
    needs = "loyalty_card"
    effects = [{ kind = "pay_with_points", value = "1.00" }]
    [[loyalty_programs]]
    id = 1
    name = "points"
    campaigns = [2]
    [[loyalty_cards]]
    code = "CARD-OFF"
    program = 1
    active = false
    [[loyalty_cards]]
    code = "CARD-JANE"
    program = 1
    points = "7"
    customer = "jane"
    [[loyalty_cards]]
    code = "CARD-EMPTY"
    program = 1
    [[campaigns]]
    id = 3
    name = "Friends"
    needs = "referral"
    effects = [{ kind = "off_order", amount = "1.00" }]
    [[referrals]]
    code = "FOR-BOB"
    campaign = 3
    advocate = "jane"
    friend = "bob"
"""


@pytest.mark.parametrize(
    ("code", "customer", "expected"),
    [
        ("GIFT-LATE", "", "- voucher_not_active"),
        ("CARD-OFF", "", "- voucher_disabled"),
        ("CARD-JANE", "", "- invalid_customer"),
        ("CARD-JANE", "bob", "- invalid_customer"),
        ("CARD-JANE", "jane", "order 700"),
        ("CARD-EMPTY", "", "- loyalty_card_points_exceeded"),
        ("FOR-BOB", "bob", "order 100"),
        ("FOR-BOB", "max", "- customer_rules_violated"),
    ],
)
def test_cards_and_referral_codes_have_rules_of_their_own(code: str, customer: str, expected: str) -> None:
    reward = {"reward": {"id": "rew_2"}} if code.startswith("CARD") else {}
    reply = Shop(own=rulebook.parse(CARDS)).validate({"object": "voucher", "id": code} | reward, customer=customer)
    assert earned(reply) == [f"{code} {expected}"]


def test_a_broken_rule_says_what_the_merchant_wrote() -> None:
    result = Shop().validate("MIN-200")["redeemables"][0]["result"]
    assert result["error"]["error"] == {"message": "20 off the items of carts from 200."}
    assert result["details"]["message"] == "20 off the items of carts from 200."


def test_every_note_of_the_rule_book_that_says_refused_is_right() -> None:
    # Of two codes that exclude each other Voucherify lets the exclusive one win, and of the best only the first: the
    # notes of those tell what the codes are for.
    others = {"refused together with another code", "refused together with WINTER-25, which gives more"}
    for code, note in book().codes_to_try():
        if note.startswith("refused"):
            assert not Shop().validate(code, customer="bob")["valid"], code
        if "refused below 200" in note or note.startswith("once per customer; refused without"):
            assert not Shop().validate(code)["valid"], code
    assert all(any(other in note for _, note in book().codes_to_try()) for other in others)


def test_what_data_is_missing_is_said() -> None:
    shop = Shop()
    table = [("SHOES-10", {"amount": 500}, "missing_order_items"), ("MIN-200", {}, "missing_amount")]
    for code, order, key in table:
        assert earned(shop.validate(code, order=order)) == [f"{code} - {key}"]
    for code in ("MIN-200", "GIFT-50"):
        body = {"redeemables": [redeemable(code)]}
        assert earned(shop.ok("POST", "validations", body)) == [f"{code} - missing_order"]


def test_codes_can_be_case_sensitive() -> None:
    shop = Shop(("case_sensitive_codes = false", "case_sensitive_codes = true"))
    assert earned(shop.validate("ten-percent")) == ["ten-percent - not_found"]
    assert earned(shop.validate("TEN-PERCENT")) == ["TEN-PERCENT #0 1400"]


def test_a_voucher_goes_by_its_internal_id_too() -> None:
    shop = Shop()
    id_ = shop.ok("GET", "vouchers/TEN-PERCENT")["id"]
    assert id_.startswith("v_")
    assert earned(shop.validate(id_)) == ["TEN-PERCENT #0 1400"]
    assert shop.refused("POST", "validations", request(id_, "TEN-PERCENT")) == (400, "duplicated_redeemables")
    assert earned(shop.validate("v_zz")) == ["v_zz - not_found"]


# --- Redeemables side by side -----------------------------------------------------------------------------------------


def lists(reply: Json) -> dict[str, list[str]]:
    names = ("redeemables", "inapplicable_redeemables", "skipped_redeemables")
    return {name: [f"{entry['id']} {entry['status']}" for entry in reply[name]] for name in names if name in reply}


def test_in_partial_mode_the_rest_applies() -> None:
    reply = Shop().validate("TEN-PERCENT", "NOPE-10", "LINE-10")
    assert reply["valid"]
    assert lists(reply) == {
        "redeemables": ["TEN-PERCENT APPLICABLE", "LINE-10 APPLICABLE"],
        "inapplicable_redeemables": ["NOPE-10 INAPPLICABLE"],
    }
    assert reply["order"]["total_discount_amount"] == 1400 + 1000


def test_in_all_mode_one_bad_code_spoils_all_and_an_earlier_one_still_looks_good() -> None:
    reply = Shop(ALL).validate("TEN-PERCENT", "NOPE-10", "LINE-10")
    assert not reply["valid"]
    assert "order" not in reply
    assert lists(reply) == {
        "redeemables": ["TEN-PERCENT APPLICABLE", "NOPE-10 INAPPLICABLE", "LINE-10 SKIPPED"],
        "inapplicable_redeemables": ["NOPE-10 INAPPLICABLE"],
        "skipped_redeemables": ["LINE-10 SKIPPED"],
    }
    assert reply["redeemables"][0]["order"]["total_applied_discount_amount"] == 1400
    assert reply["redeemables"][2]["result"]["details"]["key"] == "preceding_validation_failed"
    assert Shop(ALL).validate("TEN-PERCENT", "LINE-10")["valid"]


STACKING: list[tuple[list[str], dict[str, str], list[str]]] = [
    # "Never stackable" blocks common ones wherever it stands; cards and automatic promotions are "Always stackable".
    (
        ["TEN-PERCENT", "ALONE-15", "promo_2", "GIFT-50"],
        {},
        ["ALONE-15 order 2100", "promo_2 #1+1 free", "GIFT-50 order 5000", "TEN-PERCENT - exclusion_rules_not_met"],
    ),
    (["ALONE-15", "NOPE-10"], {}, ["ALONE-15 order 2100", "NOPE-10 - not_found"]),
    (
        ["WINTER-5", "WINTER-25"],
        {},
        ["WINTER-5 #0 700", "WINTER-25 - applicable_redeemables_per_category_limit_exceeded"],
    ),
    (
        ["TEN-PERCENT", "LINE-10", "promo_2"],
        {"applicable_redeemables_limit = 5": "applicable_redeemables_limit = 2"},
        ["TEN-PERCENT #0 1400", "LINE-10 #0 1000", "promo_2 - applicable_redeemables_limit_exceeded"],
    ),
    (
        ["WRAPPED", "TEN-PERCENT"],
        {'"REDEEM_ANYWAY"\n# Rolling': '"SKIP"\n# Rolling'},
        ["TEN-PERCENT #0 1400", "WRAPPED - no_effect"],
    ),
    (["WRAPPED", "TEN-PERCENT"], {}, ["WRAPPED", "TEN-PERCENT #0 1400"]),
]


@pytest.mark.parametrize(("codes", "changes", "expected"), STACKING)
def test_stacking_rules_decide_who_stands_beside_whom(
    codes: list[str], changes: dict[str, str], expected: list[str]
) -> None:
    reply = Shop(*changes.items()).validate(*codes)
    assert reply["valid"]
    assert earned(reply) == expected


def test_two_exclusive_campaigns_stand_together_where_the_limit_allows() -> None:
    def shop(limit: int) -> Shop:
        alone = "combinable = false\n"
        text = small_book_text({"ONLY-1": off("1.00"), "ONLY-2": off("2.00")}, ["ONLY-1", "ONLY-2"])
        text = text.replace("needs = 'coupon'\n", f"needs = 'coupon'\n{alone}")
        return Shop(
            own=rulebook.parse(f"[engines.voucherify]\napplicable_exclusive_redeemables_limit = {limit}\n{text}")
        )

    limit = "applicable_exclusive_redeemables_limit_exceeded"
    assert earned(shop(1).validate("ONLY-1", "ONLY-2")) == ["ONLY-1 order 100", f"ONLY-2 - {limit}"]
    assert earned(shop(2).validate("ONLY-1", "ONLY-2")) == ["ONLY-1 order 100", "ONLY-2 order 200"]


def test_a_stack_comes_back_as_its_tiers_and_stands_alone() -> None:
    shop = Shop(("stacks = {}", "stacks = { stack_all = [2, 3] }"))
    assert earned(shop.validate("stack_all")) == ["promo_2 #1+1 free", "promo_3 - order_rules_violated"]
    assert shop.refused("POST", "validations", request("stack_all", "TEN-PERCENT")) == (400, "invalid_redeemables")
    assert shop.refused("POST", "validations", request("stack_none")) == (404, "not_found")


@pytest.mark.parametrize(
    ("expand", "has_order", "has_name"),
    [
        (None, True, False),
        (["order"], True, False),
        (["redeemable"], False, True),
        (["order", "redeemable"], True, True),
        (["category"], False, False),
        ([], False, False),
    ],
)
def test_expand_decides_what_is_told(expand: list[str] | None, has_order: bool, has_name: bool) -> None:
    options = {} if expand is None else {"options": {"expand": expand}}
    reply = Shop().validate("GIFT-50", "promo_2", **options)
    assert "order" in reply, "the order as a whole is always told"
    for entry in reply["redeemables"]:
        assert ("order" in entry) is has_order
        named = {"campaign_name", "campaign_id", "metadata"}
        assert (named & entry.keys()) == (named if has_name else set())
        assert bool(entry["categories"]) is ("category" in (expand or []))
    assert ("name" in reply["redeemables"][1]) is has_name


def test_an_earlier_discount_counts_but_is_not_applied_now() -> None:
    sent = {"items": items((20_000, 1), discount_amount=100), "discount_amount": 2650}
    order = Shop().validate("MIN-200", order=sent)["order"]
    assert (order["discount_amount"], order["applied_discount_amount"], order["total_amount"]) == (4650, 2000, 15_250)
    assert order["items"] == [
        {
            "object": "order_item",
            "source_id": "SKU-0",
            "related_object": "sku",
            "quantity": 1,
            "amount": 20_000,
            "discount_amount": 100,
            "subtotal_amount": 19_900,
            "price": 20_000,
        }
    ]


def test_lines_stay_as_they_came_and_added_ones_follow() -> None:
    lines = [
        {"source_id": "A", "related_object": "sku", "quantity": 1, "price": 30_000, "metadata": {"n": 1}},
        {"source_id": "A", "related_object": "sku", "quantity": 1, "price": 30_000, "metadata": {"n": 2}},
        {"product_id": "prod_x", "quantity": 2, "amount": 5, "product": {"name": "X", "override": True}},
    ]
    order = Shop().validate("promo_3", order={"items": lines, "metadata": {"store": "berlin"}})["order"]
    assert [line.get("metadata") for line in order["items"]] == [{"n": 1}, {"n": 2}, None, None]
    assert order["items"][2]["product"] == {"name": "X"}, "override is an order to the catalog"
    assert order["items"][3]["sku"]["source_id"] == "MUG-BERLIN"
    assert order["metadata"] == {"store": "berlin"}


# --- Sessions ---------------------------------------------------------------------------------------------------------


def lock(key: str, **more: Any) -> Json:
    return {"session": {"type": "LOCK", "key": key} | more}


def test_a_session_holds_a_single_use_for_whoever_has_its_key() -> None:
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


def test_a_session_ends_with_its_time_or_when_it_is_released() -> None:
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


def test_a_session_holds_credits_and_points() -> None:
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


def test_a_key_is_made_where_none_is_given_and_nothing_is_held_by_what_is_not_valid() -> None:
    shop = Shop(ALL)
    assert shop.validate("TEN-PERCENT", session={"type": "LOCK"})["session"]["key"].startswith("ssn_")
    shop.validate("SINGLE-0001", "NOPE-10", **lock("mine"))
    assert shop.validate("SINGLE-0001")["valid"]
    assert "session" not in shop.validate("SINGLE-0003")


# --- Redemption -------------------------------------------------------------------------------------------------------


def test_one_redeemable_has_no_parent_and_several_have_one() -> None:
    shop = Shop()
    one = shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o1"), customer="jane")
    (single,) = one["redemptions"]
    assert "parent_redemption" not in one
    assert single["redemption"] is None
    assert one["order"]["redemptions"] == {
        single["id"]: {
            "date": "2026-11-01T12:00:00.000Z",
            "related_object_type": "voucher",
            "related_object_id": single["voucher"]["id"],
            "related_object_parent_id": "camp_10",
        }
    }
    two = shop.redeem("TEN-PERCENT", "promo_2", order=cart((14_000, 1), source_id="o2"), customer="jane")
    parent, children = two["parent_redemption"], two["redemptions"]
    assert [child["redemption"] for child in children] == [parent["id"]] * 2
    assert [child["related_object_type"] for child in children] == ["voucher", "promotion_tier"]
    assert children[1]["promotion_tier"]["name"] == "Free shipping over 100"
    assert two["order"]["redemptions"][parent["id"]]["stacked"] == [child["id"] for child in children]
    assert (two["inapplicable_redeemables"], two["skipped_redeemables"]) == ([], [])
    for redemption in (single, parent, *children):
        assert shop.ok("GET", f"redemptions/{redemption['id']}") == redemption
        assert (redemption["result"], redemption["status"]) == ("SUCCESS", "SUCCEEDED")
        assert redemption["customer"]["source_id"] == "jane"
        assert redemption["channel"] == {"channel_id": "app", "channel_type": "API"}


def test_the_order_is_stored_under_its_own_id_and_the_merchants() -> None:
    shop = Shop()
    order = shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o/1"), customer="jane")["order"]
    assert (order["source_id"], order["status"], order["total_amount"]) == ("o/1", "PAID", 12_600)
    for id_ in (order["id"], "o%2F1"):
        read = shop.ok("GET", f"orders/{id_}")
        assert read["redemptions"] == order["redemptions"]
        assert read["total_discount_amount"] == 1400
        assert "total_applied_discount_amount" not in read, "nothing is applied by reading"
    assert shop.refused("GET", "orders/o2") == (404, "not_found")
    assert shop.redeem("TEN-PERCENT", order=cart((1, 1), status="FULFILLED"))["order"]["status"] == "FULFILLED"


def test_the_stored_order_wins_over_the_one_that_is_sent() -> None:
    shop = Shop()
    shop.redeem("TEN-PERCENT", order=cart((14_000, 1), source_id="o1"))
    order = shop.validate("LINE-10", order=cart((300, 9), source_id="o1"))["order"]
    assert [line["quantity"] for line in order["items"]] == [1]
    assert (order["amount"], order["total_discount_amount"], order["total_applied_discount_amount"]) == (
        14_000,
        2400,
        1000,
    )
    assert len(order["redemptions"]) == 1
    by_id = shop.validate("LINE-10", order={"id": order["id"]})["order"]
    assert by_id == order
    assert shop.refused("POST", "validations", request("LINE-10", order={"id": "ord_x"})) == (404, "not_found")


def test_the_same_redemption_again_adds_a_second_one() -> None:
    # guides/manage-stackable-discounts, "Apply discount to the already created order": what is left is what comes off.
    shop = Shop(own=small_book({"FIRST": off("92.00"), "a2pl4qJw": off("10.00")}))
    first = shop.redeem("FIRST", order={"amount": 10_000, "source_id": "o1"})["order"]
    order = shop.redeem("a2pl4qJw", order={"id": first["id"]})["order"]
    assert amounts(order) == {
        "amount": 10_000,
        "discount": 10_000,
        "total_discount": 10_000,
        "applied_discount": 800,
        "total_applied_discount": 800,
        "total": 0,
    }
    assert len(order["redemptions"]) == 2
    again = shop.redeem("a2pl4qJw", order={"amount": 10_000, "source_id": "o1"})
    assert len(again["order"]["redemptions"]) == 3
    assert shop.books["codes"] == {"FIRST": 1, "a2pl4qJw": 2}


def test_a_code_for_one_use_works_once() -> None:
    shop = Shop()
    shop.redeem("SINGLE-0007", order=cart((1000, 1), source_id="o1"))
    assert shop.refused("POST", "redemptions", request("SINGLE-0007", order=cart((1000, 1), source_id="o1"))) == (
        400,
        "quantity_exceeded",
    )
    assert shop.redeem("SINGLE-0008")


@pytest.mark.parametrize(
    ("code", "customer", "times", "key"),
    [
        ("FIRST-THREE", "", 3, "redemption_rules_violated"),
        ("BUDGET-50", "", 2, "redemption_rules_violated"),
        ("ONCE-EACH-10", "bob", 1, "redemption_rules_violated"),
        ("FRIEND-OF-JANE", "bob", 1, "customer_rules_violated"),
        ("GIFT-50", "", 1, "gift_amount_exceeded"),
    ],
)
def test_redemptions_use_limits_up(code: str, customer: str, times: int, key: str) -> None:
    shop = Shop()
    for _ in range(times):
        last = shop.redeem(code, customer=customer)["redemptions"][0]["id"]
    assert earned(shop.validate(code, customer=customer)) == [f"{code} - {key}"]
    shop.ok("POST", f"redemptions/{last}/rollbacks")
    assert shop.validate(code, customer=customer)["valid"], "rolling back gives it back"


@pytest.mark.parametrize("limits", ["redemptions = 1", "redemptions_per_customer = 1", "budget = '1.50'"])
def test_two_codes_of_one_campaign_share_its_limits(limits: str) -> None:
    text = small_book_text({"CODE-1": off("1.00")}, ["CODE-1"]) + "[[coupons]]\ncode = 'CODE-2'\ncampaign = 1\n"
    shop = Shop(own=rulebook.parse(text.replace("needs", f"limits = {{ {limits} }}\nneeds")))
    reply = shop.validate("CODE-1", "CODE-2", customer="bob")
    assert earned(reply) == ["CODE-1 order 100", "CODE-2 - redemption_rules_violated"]


def test_cards_say_what_they_paid() -> None:
    shop = Shop()
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 30}}
    gift, card = shop.redeem({"object": "voucher", "id": "GIFT-50", "gift": {"credits": 1200}}, points)["redemptions"]
    assert (gift["amount"], gift["gift"], gift["order"]["applied_discount_amount"]) == (1200, {"amount": 1200}, 1200)
    assert (card["amount"], card["loyalty_card"], card["order"]["applied_discount_amount"]) == (30, {"points": 30}, 150)
    assert card["reward"]["parameters"] == {"coin": {"exchange_ratio": 1, "points_ratio": 20}}
    assert shop.ok("GET", "vouchers/GIFT-50")["gift"] == {
        "amount": 5000,
        "subtracted_amount": 1200,
        "balance": 3800,
        "effect": "APPLY_TO_ORDER",
    }
    assert shop.ok("GET", "vouchers/CARD-SPEND")["loyalty_card"] == {"points": 200, "balance": 170}
    assert shop.refused("GET", "vouchers/NOPE") == (404, "not_found")


def test_no_more_points_are_used_than_the_order_needs() -> None:
    shop = Shop()
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 100}}
    entry = shop.validate(points, order=cart((12, 1)))["redeemables"][0]
    assert entry["result"] == {"loyalty_card": {"points": 3}}
    assert entry["order"]["applied_discount_amount"] == 12


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
def test_a_redemption_that_fails_is_an_error_and_is_recorded(mode: str) -> None:
    shop = Shop((ALL[0], ALL[1].replace("ALL", mode)))
    codes = ["TEN-PERCENT", "EXPIRED-10"] if mode == "ALL" else ["EXPIRED-10"]
    status, error = shop.call("POST", "redemptions", request(*codes, customer="jane"))
    assert (status, error["key"], error["resource_type"]) == (400, "voucher_expired", "redemption")
    failed = shop.ok("GET", f"redemptions/{error['resource_id']}")
    assert (failed["result"], failed["failure_code"], failed["order"]) == ("FAILURE", "voucher_expired", None)
    assert shop.books["redemptions"] == []
    assert shop.refused("POST", f"redemptions/{failed['id']}/rollbacks") == (400, "invalid_redemption")
    assert shop.call("POST", "redemptions", request("NOPE-10"))[0] == 404


def test_in_partial_mode_the_rest_is_redeemed() -> None:
    reply = Shop().redeem("TEN-PERCENT", "NOPE-10", "WINTER-5", "WINTER-25")
    assert [entry["voucher"]["code"] for entry in reply["redemptions"]] == ["TEN-PERCENT", "WINTER-5"]
    assert [entry["id"] for entry in reply["inapplicable_redeemables"]] == ["NOPE-10"]
    assert [entry["id"] for entry in reply["skipped_redeemables"]] == ["WINTER-25"]


def test_a_customer_comes_into_being_with_a_redemption() -> None:
    shop = Shop()
    assert shop.validate("TEN-PERCENT", customer="jane")["tracking_id"].startswith("track_")
    id_ = shop.redeem("TEN-PERCENT", customer="jane")["redemptions"][0]["customer_id"]
    known = {"redeemables": [redeemable("JANE-ONLY-10")], "customer": {"id": id_}}
    assert shop.ok("POST", "validations", known)["valid"]
    unknown = known | {"customer": {"id": "cust_x"}}
    assert shop.refused("POST", "validations", unknown) == (404, "not_found")
    assert Shop().refused("POST", "validations", known) == (404, "not_found")


def test_one_order_is_used_in_one_request_at_once() -> None:
    shop = Shop()
    order = shop.redeem("TEN-PERCENT", order=cart((1, 1), source_id="o1"))["order"]
    nameless = shop.redeem("TEN-PERCENT")["redemptions"][0]["id"]
    bodies = [
        json.dumps(request("TEN-PERCENT", order=sent)).encode()
        for sent in ({"source_id": "o1"}, {"id": order["id"]}, cart((1, 1), source_id="o2"), cart((1, 1)))
    ]
    redemption = next(iter(order["redemptions"]))

    async def at_once() -> list[str]:
        def post(path: str, body: bytes = b"", pause: float = 0) -> Any:
            return call(shop.engine, "POST", f"/v1/{path}", body, pause)

        answers = await asyncio.gather(
            post("redemptions", bodies[0], pause=0.05),
            post("redemptions", bodies[1]),
            post("validations", bodies[0]),
            post(f"redemptions/{redemption}/rollbacks"),
            post("redemptions", bodies[2], pause=0.05),
            post("redemptions", bodies[2]),
            post("redemptions", bodies[3]),
            post(f"redemptions/{nameless}/rollbacks", pause=0.05),
            post(f"redemptions/{nameless}/rollback"),
        )
        return ["done" if status == 200 else reply["key"] for status, _, reply in answers]

    busy = "multiple_requests"
    assert asyncio.run(at_once()) == ["done", busy, busy, busy, "done", busy, "done", "done", busy]
    assert shop.redeem("TEN-PERCENT", order={"source_id": "o1"}), "the next one may"


# --- Rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_gives_everything_back_and_cancels_the_order() -> None:
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


def test_the_order_can_stay_as_it_is() -> None:
    shop = Shop(('"WITH_ORDER"\n', '"WITHOUT_ORDER"\n'))
    done = shop.redeem("SINGLE-0001", order=cart((14_000, 1), source_id="o1"))
    shop.ok("POST", f"redemptions/{done['redemptions'][0]['id']}/rollback")
    order = shop.ok("GET", "orders/o1")
    assert (order["status"], order["total_discount_amount"]) == ("PAID", 1400)
    assert shop.validate("SINGLE-0001")["valid"]


def test_of_two_redemptions_of_an_order_one_can_be_rolled_back() -> None:
    shop = Shop(CASCADING)
    first = shop.redeem("TEN-PERCENT", order=cart((10_000, 1), source_id="o1"))["redemptions"][0]["id"]
    shop.redeem("TEN-PERCENT", "LINE-10", order={"source_id": "o1"})
    assert shop.ok("GET", "orders/o1")["total_discount_amount"] == 1000 + 900 + 1000
    order = shop.ok("POST", f"redemptions/{first}/rollbacks")["order"]
    assert (order["status"], order["total_discount_amount"]) == ("PAID", 1900)


def test_what_cannot_be_rolled_back_says_why() -> None:
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


# --- Qualifications ---------------------------------------------------------------------------------------------------

TIERS = {"filters": {"resource_type": {"conditions": {"$is": ["promotion_tier"]}}}}


def qualified(reply: Json) -> list[str]:
    return [entry["id"] for entry in reply["redeemables"]["data"]]


def test_qualifications_are_candidates_and_some_of_their_rules_are_not_looked_at() -> None:
    shop = Shop()
    body = {"order": cart((100, 1), metadata={"store": "berlin"}), "options": TIERS}
    # Free shipping from 100.00 and a mug from 300.00, for a cart of 1.00: "total amount before discount" is ignored.
    assert qualified(shop.ok("POST", "qualifications", body)) == ["promo_3", "promo_2"]
    assert qualified(shop.ok("POST", "qualifications", body | {"order": cart((100, 1))})) == ["promo_2"]
    assert not shop.validate("promo_2", "promo_3", order=body["order"])["valid"]
    for limits in ("redemptions = 0", "redemptions_per_customer = 1", "budget = '0.50'"):
        text = small_book_text({"promo_1": off("1.00")}, ["promo_1"])
        limited = Shop(own=rulebook.parse(text.replace("needs", f"limits = {{ {limits} }}\nneeds")))
        assert qualified(limited.ok("POST", "qualifications", {"order": cart((1000, 1))})) == ["promo_1"]
        assert not limited.validate("promo_1")["valid"]


def test_qualifications_come_in_pages_and_hold_more_than_tiers() -> None:
    shop = Shop()
    page = shop.ok("POST", "qualifications", {"order": cart((100, 1))})
    assert len(page["redeemables"]["data"]) == 5
    assert page["redeemables"]["has_more"]
    every, after = [], None
    while page["redeemables"]["has_more"] or after is None:
        options = {"limit": 4} | ({"starting_after": after} if after else {})
        page = shop.ok("POST", "qualifications", {"order": cart((100, 1)), "options": options})
        every += [entry["object"] for entry in page["redeemables"]["data"]]
        after = page["redeemables"].get("more_starting_after", "-")
    assert set(every) == {"promotion_tier", "campaign"}
    assert every.count("promotion_tier") == 1


@pytest.mark.parametrize(
    ("options", "scenario", "expected"),
    [
        ({"sorting_rule": "BEST_DEAL"}, "ALL", ["promo_2", "promo_1"]),
        ({"sorting_rule": "LEAST_DEAL"}, "ALL", ["promo_1", "promo_2"]),
        ({"limit": 1}, "ALL", ["promo_2"]),
        ({}, "PRODUCTS", ["promo_2", "promo_1"]),
        ({}, "CUSTOMER_WALLET", []),
        ({"filters": {"resource_id": {"conditions": {"$in": ["promo_1"]}}}}, "ALL", ["promo_1"]),
        ({"filters": {"resource_id": {"conditions": {"$not_in": ["promo_1"]}}}}, "ALL", ["promo_2"]),
        ({"filters": {"campaign_id": {"conditions": {"$is_not": ["camp_2"]}}}}, "ALL", ["promo_1"]),
        (
            {
                "filters": {
                    "junction": "or",
                    "resource_id": {"conditions": {"$is": ["promo_1"]}},
                    "campaign_id": {"conditions": {"$is": ["camp_2"]}},
                }
            },
            "ALL",
            ["promo_2", "promo_1"],
        ),
    ],
)
def test_qualifications_are_sorted_and_filtered(options: Json, scenario: str, expected: list[str]) -> None:
    shop = Shop(own=small_book({"promo_1": off("1.00"), "promo_2": off("2.00")}))
    body = {"order": cart((1000, 1)), "options": options, "scenario": scenario}
    assert qualified(shop.ok("POST", "qualifications", body)) == expected


def test_a_page_of_qualifications_holds_fifty_at_most() -> None:
    for limit, status in ((50, 200), (51, 400), (0, 400)):
        assert Shop().call("POST", "qualifications", {"options": {"limit": limit}})[0] == status


def test_each_qualified_tier_is_computed_alone_and_named() -> None:
    shop = Shop(own=small_book({"promo_1": off("8.00"), "promo_2": off("7.00")}))
    body = {"order": cart((1000, 1)), "customer": {"source_id": "jane"}, "options": {"expand": ["redeemable"]}}
    reply = shop.ok("POST", "qualifications", body)
    assert [entry["order"]["total_discount_amount"] for entry in reply["redeemables"]["data"]] == [700, 800]
    assert [entry["name"] for entry in reply["redeemables"]["data"]] == ["promo_2", "promo_1"]
    assert reply["tracking_id"].startswith("track_")
    assert "total_discount_amount" not in reply["order"]


# --- The request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "details"),
    [
        ({"redeemables": []}, "Property .redeemables should NOT have fewer than 1 items"),
        (
            {"redeemables": [{"object": "voucher", "id": f"C{i}"} for i in range(31)]},
            "Property .redeemables should NOT have more than 30 items",
        ),
        # The vendor's own example of this error.
        (
            {"redeemables": [{"object": "voucher", "id": "A"}, {"object": "voucher"}]},
            "Property .redeemables[1] should have required property 'id'",
        ),
        (
            {"redeemables": [{"object": "coupon", "id": "A"}]},
            "Property .redeemables[0].object should be equal to one of",
        ),
        (
            {"redeemables": [{"object": "promotion_tier", "id": "A", "gift": {"credits": 1}}]},
            "Property .redeemables[0] should NOT have additional property 'gift'",
        ),
        (
            {"redeemables": [{"object": "voucher", "id": "A", "gift": {"credits": 1.5}}]},
            "Property .redeemables[0].gift.credits should be integer",
        ),
        ({"order": {"items": [{"price": "14000"}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": 140.5}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": True}]}}, "Property .order.items[0].price should be integer"),
        ({"order": {"items": [{"price": -1}]}}, "Property .order.items[0].price should be >= 0"),
        ({"order": {"items": [{"quantity": 0}]}}, "Property .order.items[0].quantity should be >= 1"),
        (
            {"order": {"items": [{"source_id": "A"}]}},
            "Property .order.items[0] should have required property 'related_",
        ),
        ({"order": {"items": {}}}, "Property .order.items should be array"),
        ({"order": {"status": "OPEN"}}, "Property .order.status should be equal to one of the allowed values: CREATED"),
        ({"order": {"currency": "EUR"}}, "Property .order should NOT have additional property 'currency'"),
        ({"order": None}, "Property .order should be object"),
        ({"customer": {"source_id": ""}}, "Property .customer.source_id should NOT be shorter than 1 characters"),
        ({"customer": {"mail": "a@b"}}, "Property .customer should NOT have additional property 'mail'"),
        ({"session": {"type": "UNLOCK"}}, "Property .session.type should be equal to one of the allowed values: LOCK"),
        ({"session": {"type": "LOCK", "ttl": "7"}}, "Property .session.ttl should be number"),
        ({"session": {"type": "LOCK", "ttl_unit": "WEEKS"}}, "Property .session.ttl_unit should be equal to one of"),
        ({"options": {"expand": ["orders"]}}, "Property .options.expand[0] should be equal to one of"),
        ({"metadata": []}, "Property .metadata should be object"),
        ({"order_id": "o1"}, "Property  should NOT have additional property 'order_id'"),
    ],
)
def test_a_payload_is_checked_in_the_words_of_the_vendor(change: Json, details: str) -> None:
    for path in ("validations", "redemptions"):
        status, error = Shop().call("POST", path, request("TEN-PERCENT") | change)
        assert (status, error["key"], error["message"]) == (400, "invalid_payload", "Invalid payload")
        assert error["details"].startswith(details)


def test_fields_that_are_not_documented_can_be_ignored() -> None:
    shop = Shop(('unknown_fields = "refuse"', 'unknown_fields = "ignore"'))
    assert shop.validate("TEN-PERCENT", order_id="o1")["valid"]
    assert shop.refused("POST", "validations", request("A") | {"order": []}) == (400, "invalid_payload")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a": 1e999999999999999999999}'])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    status, _, error = asyncio.run(call(Shop().engine, "POST", "/v1/validations", body))
    assert (status, error["key"]) == (400, "invalid_payload")


def test_the_same_redeemable_twice_is_refused() -> None:
    shop = Shop()
    for codes in (["TEN-PERCENT", "ten-percent"], ["NOPE", "NOPE"], ["promo_2", "promo_2"]):
        assert shop.refused("POST", "redemptions", request(*codes)) == (400, "duplicated_redeemables")
    assert shop.books["redemptions"] == []


@pytest.mark.parametrize(
    ("keys", "headers", "status"),
    [
        ("", {}, 200),
        ("", {"x_app_id": ""}, 401),
        ("", {"x_app_token": ""}, 401),
        ('"right"', {"x_app_token": "right"}, 200),
        ('"right"', {"x_app_token": "wrong"}, 401),
    ],
)
def test_both_keys_are_asked_for(keys: str, headers: dict[str, str], status: int) -> None:
    shop = Shop(("api_keys = []", f"api_keys = [{keys}]"))
    answered, reply = shop.call("POST", "validations", request("TEN-PERCENT"), **headers)
    assert answered == status
    if status == 401:
        assert (reply["code"], reply["key"], reply["message"]) == (401, "unauthorized", "Unauthorized")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "validations", 405),
        ("PUT", "orders/o1", 405),
        ("DELETE", "vouchers/X/sessions", 404),
        ("POST", "vouchers/X/validate", 404),
        ("GET", "orders/", 404),
        ("GET", "orders/a/b", 404),
        ("GET", "redemptions/%FF", 404),
        ("POST", "redemptions/r_1/rollbackss", 404),
        ("GET", "", 404),
    ],
)
def test_other_places_and_methods_are_refused(method: str, path: str, status: int) -> None:
    answered, reply = Shop().call(method, path)
    assert (answered, reply["code"]) == (status, status)
    if status == 405:
        assert "Did you mean" in reply["details"]


def test_another_media_type_is_refused() -> None:
    assert Shop().call("POST", "validations", request("A"), content_type="text/plain")[0] == 415


def test_calls_are_counted_by_the_minute() -> None:
    shop = Shop(("calls_per_minute = 100000", "calls_per_minute = 2"))

    def get() -> tuple[int, dict[str, str], Any]:
        return asyncio.run(call(shop.engine, "GET", "/v1/vouchers/TEN-PERCENT"))

    shop.now = NOW + timedelta(seconds=20)
    left = [headers["x-rate-limit-remaining"] for status, headers, _ in (get(), get()) if status == 200]
    assert left == ["1", "0"]
    status, headers, error = get()
    assert (status, headers["x-rate-limit-limit"], headers["retry-after"]) == (429, "2", "40")
    assert headers["x-rate-limit-retry"] == str(int((NOW + timedelta(seconds=60)).timestamp()))
    assert "key" not in error, "as the vendor's own"
    shop.now = NOW + timedelta(seconds=60)
    assert get()[0] == 200


# --- How it looks from the host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/v1/validations", "validate"),
        ("POST", "/v1/redemptions", "redeem"),
        ("GET", "/v1/redemptions/r_1", "redemption"),
        ("POST", "/v1/redemptions/r_1/rollbacks", "rollback"),
        ("POST", "/v1/redemptions/r_1/rollback", "rollback"),
        ("POST", "/v1/qualifications", "qualify"),
        ("GET", "/v1/orders/o1", "order"),
        ("GET", "/v1/vouchers/X", "voucher"),
        ("DELETE", "/v1/vouchers/X/sessions/k", "release"),
        ("GET", "/v1/customers", "other"),
        ("GET", "/", "other"),
    ],
)
def test_operations_are_named(method: str, path: str, operation: str) -> None:
    engine = Shop().engine
    assert engine.operation(method, path, "", b"") == operation
    assert engine.operation(method, f"/voucherify{path}", "", b"") == operation


def test_an_effect_of_tomorrow_changes_no_amount() -> None:
    reply = Shop().validate("TEN-PERCENT", "promo_2")
    changed = Shop().engine.unknown_effect(reply)
    effects = [entry["result"]["discount"]["effect"] for entry in changed["redeemables"]]
    assert effects == ["SANDBOX_TELEPORT_SHOPPER"] * 2
    assert changed["order"] == reply["order"]
    assert [entry["order"] for entry in changed["redeemables"]] == [entry["order"] for entry in reply["redeemables"]]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503])
def test_errors_have_the_engines_own_body(status: int) -> None:
    error = Shop().engine.error(status)
    assert error["code"] == status
    assert {"message", "details", "request_id"} <= error.keys()


def test_reset_forgets_everything_but_the_rule_book() -> None:
    shop = Shop()
    before = shop.books
    shop.redeem("SINGLE-0001", "GIFT-50", order=cart((1000, 1), source_id="o1"), customer="jane")
    shop.validate("SINGLE-0002", **lock("mine"))
    assert shop.books != before
    shop.engine.reset()
    assert shop.books == before
    assert shop.refused("GET", "orders/o1") == (404, "not_found")


def test_the_books_tell_what_happened() -> None:
    shop = Shop()
    shop.redeem("XMAS-2021-25", "promo_2", order=cart((14_000, 1), source_id="o1"), customer="jane")
    shop.validate("TEN-PERCENT", **lock("mine"))
    books = shop.books
    assert books["orders"]["o1"]["discount"] == 3500
    assert [(entry["order"], entry["id"], entry["what"]) for entry in books["redemptions"]] == [
        ("o1", "XMAS-2021-25", "redeemed"),
        ("o1", "promo_2", "redeemed"),
    ]
    assert books["codes"]["XMAS-2021-25"] == 1
    assert books["campaigns"]["1"] == {"redemptions": 1, "discount": 35}
    assert [(held["id"], held["key"]) for held in books["sessions"]] == [("TEN-PERCENT", "mine")]


def test_the_default_rule_book_shows_the_default_options() -> None:
    problems: list[rulebook.Problem] = []
    shown = rulebook.read(book().engines["voucherify"], Options, problems=problems)
    assert (shown, problems) == (Options(), [])
    assert book().engines["voucherify"].keys() == {*Options.__struct_fields__}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            'redeemables_application_mode = "SOME"',
            "engines.voucherify.redeemables_application_mode: Invalid enum value",
        ),
        ("redeemable_limit = 3", "engines.voucherify.redeemable_limit: is not known"),
        ("redeemables_limit = 31", "engines.voucherify.redeemables_limit: Expected `int` <= 30"),
        ("prices = { MUG = 9.9 }", "engines.voucherify.prices.MUG: expected a number in quotes"),
        ("stacks = { stack_a = [7] }", "engines.voucherify.stacks.stack_a: there is no campaign 7 without a code"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: str, problem: str) -> None:
    with pytest.raises(rulebook.RuleBookError) as refused:
        Shop(own=small_book({"CODE": off("1.00")}, engine=wrong))
    assert str(refused.value).startswith(problem)


# --- The vendor's own client ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vendor() -> Iterator[Any]:
    """The vendor's package, and its client pointed at a sandbox that listens on this machine."""
    import voucherify  # noqa: PLC0415 slow, so only when it is asked for

    package: Any = voucherify
    with sandbox.running(sandbox.create(now=lambda: NOW)) as url:
        keys = {"X-App-Id": "app", "X-App-Token": "token"}
        client = package.ApiClient(package.Configuration(host=f"{url}/voucherify", api_key=keys))
        yield package, client
        client.rest_client.pool_manager.clear()


def test_the_vendors_client_validates_redeems_reads_and_rolls_back(vendor: Any) -> None:
    package, client = vendor
    order = cart((14_000, 1), source_id="sdk/1")
    codes = ("XMAS-2021-25", "promo_2")

    validations, redemptions = package.ValidationsApi(client), package.RedemptionsApi(client)
    body = package.ValidationsValidateRequestBody.model_validate(request(*codes, order=order, **lock("k")))
    valid = validations.validate_stacked_discounts(body, _request_timeout=5)
    assert (valid.valid, valid.order.total_discount_amount, valid.session.key) == (True, 3500, "k")
    assert [entry.status for entry in valid.redeemables] == ["APPLICABLE"] * 2
    assert valid.redeemables[1].result.discount.unit_type == "prod_5h1pp1ng"

    again = package.RedemptionsRedeemRequestBody.model_validate(request(*codes, order=order, customer="jane"))
    done = redemptions.redeem_stacked_discounts(again, _request_timeout=5)
    assert [entry.related_object_type for entry in done.redemptions] == ["voucher", "promotion_tier"]
    parent = done.parent_redemption.id

    read = package.OrdersApi(client).get_order("sdk/1", _request_timeout=5)
    assert (read.id, read.status, list(read.redemptions)) == (done.order.id, "PAID", [parent])
    assert redemptions.get_redemption(parent, _request_timeout=5).id == parent

    back = redemptions.rollback_stacked_redemptions(parent, reason="tried", _request_timeout=5)
    assert (back.order.status, len(back.rollbacks), back.parent_rollback.reason) == ("CANCELED", 2, "tried")
    with pytest.raises(package.exceptions.BadRequestException) as refused:
        redemptions.rollback_stacked_redemptions(parent, _request_timeout=5)
    assert json.loads(refused.value.body)["key"] == "already_rolled_back"

    single = package.RedemptionsRedeemRequestBody.model_validate(request("SINGLE-0042"))
    (one,) = redemptions.redeem_stacked_discounts(single, _request_timeout=5).redemptions
    assert redemptions.rollback_redemption(one.id, _request_timeout=5).redemption == one.id


def test_the_vendors_client_reads_vouchers_releases_sessions_and_qualifies(vendor: Any) -> None:
    package, client = vendor
    vouchers = package.VouchersApi(client)
    assert vouchers.get_voucher("GIFT-50", _request_timeout=5).gift.balance == 5000
    body = package.ValidationsValidateRequestBody.model_validate(request("TEN-PERCENT", **lock("to release")))
    package.ValidationsApi(client).validate_stacked_discounts(body, _request_timeout=5)
    vouchers.release_validation_session("TEN-PERCENT", "to release", _request_timeout=5)
    with pytest.raises(package.exceptions.NotFoundException):
        vouchers.release_validation_session("TEN-PERCENT", "to release", _request_timeout=5)
    asked = {"order": cart((14_000, 1)), "options": TIERS}
    body = package.QualificationsCheckEligibilityRequestBody.model_validate(asked)
    found = package.QualificationsApi(client).check_eligibility(body, _request_timeout=5)
    assert [entry.id for entry in found.redeemables.data] == ["promo_2"]


def test_a_fault_meets_the_operation_it_names_and_says_what_it_does(vendor: Any) -> None:
    package, client = vendor
    redemptions, orders = package.RedemptionsApi(client), package.OrdersApi(client)
    header = "X-Sandbox-Fault"
    for number, (fault, is_done) in enumerate([("status=503", False), ("status_after=500", True)]):
        source_id = f"fault-{number}"
        sent = request("TEN-PERCENT", order=cart((14_000, 1), source_id=source_id))
        body = package.RedemptionsRedeemRequestBody.model_validate(sent)
        with pytest.raises(package.exceptions.ServiceException) as failed:
            redemptions.redeem_stacked_discounts(body, _request_timeout=5, _headers={header: fault})
        assert json.loads(failed.value.body)["code"] == failed.value.status
        if is_done:
            assert len(orders.get_order(source_id, _request_timeout=5).redemptions) == 1
        else:
            with pytest.raises(package.exceptions.NotFoundException):
                orders.get_order(source_id, _request_timeout=5)
    with pytest.raises(package.exceptions.ApiException) as limited:
        orders.get_order("o", _request_timeout=5, _headers={header: "status=429;retry_after=3"})
    assert (limited.value.status, limited.value.headers["Retry-After"]) == (429, "3")


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
def test_the_vendors_models_understand_every_reply(vendor: Any, mode: str) -> None:
    package, _ = vendor
    shop = Shop((ALL[0], ALL[1].replace("ALL", mode)))
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 3}}
    codes = [code.split("..")[0] for code, _ in book().codes_to_try()]
    expand: Json = {"options": {"expand": ["order", "redeemable", "category"]}}
    for number, code in enumerate([*codes, "NOPE-10", points, "promo_3"]):
        order = cart((30_000, 1), (999, 3), source_id=f"o{number}", metadata={"store": "berlin"})
        body = request(code, "promo_2", "WINTER-25" if code != "WINTER-25" else "WINTER-5", order=order, **expand)
        checked(package.ValidationsValidateResponseBody, shop.ok("POST", "validations", body | lock(f"k{number}")))
        status, reply = shop.call("POST", "redemptions", body | lock(f"k{number}") | {"customer": {"source_id": "bob"}})
        if status != 200:
            checked(package.Error, reply)
            checked(package.RedemptionsGetResponseBody, shop.ok("GET", f"redemptions/{reply['resource_id']}"))
            continue
        checked(package.RedemptionsRedeemResponseBody, reply)
        checked(package.OrdersGetResponseBody, shop.ok("GET", f"orders/o{number}"))
        top = reply.get("parent_redemption", reply["redemptions"][0])["id"]
        checked(package.RedemptionsRollbacksCreateResponseBody, shop.ok("POST", f"redemptions/{top}/rollbacks"))
        checked(package.RedemptionsGetResponseBody, shop.ok("GET", f"redemptions/{top}"))
        checked(package.OrdersGetResponseBody, shop.ok("GET", f"orders/o{number}"))
    for code in codes:
        checked(package.VouchersGetResponseBody, shop.ok("GET", f"vouchers/{code}"))
    checked(package.QualificationsCheckEligibilityResponseBody, shop.ok("POST", "qualifications", {"order": order}))


def checked(model: Any, reply: Json) -> None:
    """Parses, and what the vendor's model understood is what the reply says."""
    understood = model.from_json(json.dumps(reply)).to_dict()
    assert differences(reply, understood) == []
    assert understood.keys() & reply.keys() == {name for name in reply if name in understood}


def differences(sent: Any, understood: Any, place: str = "") -> list[str]:
    """Where a model took something for something else. What it does not know is left out, what is not there is null."""
    if isinstance(understood, dict) and isinstance(sent, dict):
        known = {name: part for name, part in understood.items() if part is not None}
        return [
            found
            for name, part in known.items()
            if sent.get(name) is not None
            for found in differences(sent[name], part, f"{place}/{name}")
        ]
    if isinstance(understood, list) and isinstance(sent, list) and len(understood) == len(sent):
        pairs = zip(sent, understood, strict=True)
        return [found for i, pair in enumerate(pairs) for found in differences(*pair, f"{place}/{i}")]
    if isinstance(understood, datetime):
        understood, sent = understood.astimezone(UTC), datetime.fromisoformat(sent)
    return [] if sent == understood else [f"{place}: {sent!r} became {understood!r}"]
