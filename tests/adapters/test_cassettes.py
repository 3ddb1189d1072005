"""The adapters against the vendors' published examples: cassettes, replayed through the real HTTP clients.

Sockets are blocked during a replay. The cassettes are made from documentation, not recorded live; each names its
example (cassettes/README.md). Recording itself is tested against the sandbox, and its files are not kept.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import pytest_socket
from vcr.serializers import yamlserializer  # type: ignore[import-untyped] # vcrpy has no types

from adapters.talon_one import TalonOne
from adapters.voucherify import Voucherify
from mapper.adapter import Cost, EngineReply, EngineRequest
from mapper.domain import checkout
from mapper.domain.checkout import Checkout
from mapper.domain.errors import EngineRejected, EngineUnavailable, Problem
from mapper.engine import clients, transport
from mapper.engine.conversation import Attempt, Engine
from mapper.sandbox import host as sandbox
from tests.adapters import record

Client = Literal["aiohttp", "httpx"]
SESSION = "session1"
"""The vendor's example of a session id."""

VENDOR = sorted(path for path in record.CASSETTES.glob("*/*.yaml"))
LIVE = sorted(record.CASSETTES.glob("*/live/*.yaml"))

TALON_ONE = {"BASE_URL": "https://yourbaseurl.talon.one", "API_KEY": "a-key"}
VOUCHERIFY = {"APP_ID": "an-id", "APP_TOKEN": "a-token"}


def named(path: Path) -> str:
    return path.relative_to(record.CASSETTES).with_suffix("").as_posix()


@cache
def tape(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yamlserializer.deserialize(path.read_text("utf-8"))
    return found


TLS = ssl.create_default_context()


@pytest.fixture(params=["aiohttp", "httpx"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Each client in turn; without sockets, except the one that wakes an event loop."""
    monkeypatch.setattr(ssl, "create_default_context", lambda: TLS)  # slow, and not needed for a cassette
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield request.param
    pytest_socket.enable_socket()


# --- Replaying --------------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """The results (or the problem), the requests that were sent, and the attempts."""

    results: list[Any] = field(default_factory=list)
    sent: list[EngineRequest] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    unplayed: int = 0


Speak = Callable[[Any], Any]
"""Opens a conversation of an adapter."""


def play(cassette: str, adapter: Any, client: Client, *speak: Speak, repeats: bool = False) -> Played:
    """Hold conversations through the real client, with a cassette in place of the network."""
    played = Played()

    def sent(request: EngineRequest, _: EngineReply) -> None:
        played.sent.append(request)

    async def at_once(_: float) -> None: ...

    async def hold() -> None:
        wire = clients.create(client, connections=2)
        engine = Engine(wire, adapter.accounts, on_exchange=sent, on_attempt=played.attempts.append, sleep=at_once)
        try:
            for one in speak:
                played.results.append(
                    await engine.converse(one(adapter), asyncio.get_running_loop().time() + 5, record.permit_all())
                )
        except Problem as problem:
            played.results.append(problem)
        finally:
            await wire.aclose()

    recorder = record.new_recorder(record_mode="none")
    with recorder.use_cassette(record.CASSETTES / f"{cassette}.yaml", allow_playback_repeats=repeats) as playing:
        asyncio.run(hold())
        played.unplayed = len(playing) - playing.play_count
    return played


def unsent(cassette: str, played: Played) -> set[str]:
    """Return the keys of the vendor's example requests that ours lack or differ in."""
    found: set[str] = set()
    for interaction, ours in zip(tape(record.CASSETTES / f"{cassette}.yaml")["interactions"], played.sent, strict=True):
        if interaction["request"]["body"]:
            found |= differing(json(interaction["request"]["body"]), json(ours.body), "body")
    return found


def differing(theirs: Any, ours: Any, key: str) -> set[str]:
    """Return the keys of their values that ours lack or differ in."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        parts = [differing(value, ours.get(name), name) for name, value in theirs.items()]
        return set[str]().union(*parts)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return set[str]().union(*(differing(one, other, key) for one, other in zip(theirs, ours, strict=True)))
    return set() if theirs == ours else {key}


json = msgspec.json.Decoder(float_hook=Decimal).decode


def parsed(lines: str, items: list[dict[str, Any]], **more: Any) -> Checkout:
    body = msgspec.json.encode({"id": SESSION, "currency": "USD", lines: items, **more})
    return checkout.parse(body, "validate" if lines == "items" else "consume", customer_path="/customer/id")


def codes(*coupons: str, **more: Any) -> dict[str, Any]:
    return {"coupon_codes": list(coupons), **more}


@dataclass(frozen=True)
class Case:
    """Conversations that a cassette answers, with the expected result of each."""

    adapter: Any
    speak: tuple[Speak, ...]
    expected: tuple[dict[str, Any], ...]
    unsent: frozenset[str] = frozenset()
    """The keys of the vendor's example requests that ours lack or differ in."""


def outcome(off: Any = (), rejected: Any = (), notices: Any = (), **more: Any) -> dict[str, Any]:
    """`off`: effect, line, cost, minor units. `rejected`: code, our reason, the engine's. `notices`: their types."""
    lists = {"discounts": [list(one) for one in off], "rejected": [list(one) for one in rejected]}
    return {**lists, "notices": list(notices), "redeemed": False, **more}


# --- Talon.One --------------------------------------------------------------------------------------------------------

HEADPHONES = [
    {"sku": "AUDIO-WH350", "quantity": 1, "price": "79.99", "title": "Wireless Bluetooth Headphones", "weight": 310},
    {"sku": "CABLE-USBC-2M", "quantity": 2, "price": "15.99", "title": "USB-C Charging Cable", "weight": 40},
]
MENU = [
    {"sku": "BURGER-001", "quantity": 1, "price": "8.99", "name": "Cheeseburger", "category": "Main"},
    {"sku": "SIDE-002", "quantity": 1, "price": "3.49", "name": "French Fries", "category": "Side"},
    {"sku": "DRINK-003", "quantity": 1, "price": "2.49", "name": "Cola", "category": "Beverage"},
]
# Keys of the vendor's example requests that ours lack.
NOT_OURS = frozenset({"responseContent"})
MORE_NOT_OURS = NOT_OURS | {"evaluableCampaignIds", "experimentVariantAllocations"}


def talon_one(**options: str) -> TalonOne:
    return TalonOne(TALON_ONE | options)


def shopper(lines: str = "items", items: Any = None, customer: str = "382370BKDB946", **more: Any) -> Checkout:
    return parsed(lines, items or HEADPHONES, customer={"id": customer}, **more)


AIR_GLIDE = {
    "image": "11.jpeg",
    "material": "leather",
    "name": "Air Glide",
    "category": "shoes",
    "product": "sample_product",
    "weight": 1130,
    "height": 0,
    "width": 0,
    "length": 0,
}


def air_glide(lines: str) -> Checkout:
    """The cart of the vendor's "Full request"."""
    item = {"sku": "SKU1241028", "quantity": 1, "price": "99.99", "shipping": "9.00"}
    identifier = "d41306257915f83fe01e54092ae470f631161ea16fcf4415842eed41470386ea"
    given = codes("XMAS-20-2021", referral_code="NT2K54D9", loyalty_card="loyalty-card-1", identifiers=[identifier])
    return shopper(
        lines,
        [item | AIR_GLIDE],
        "URNGV8294NV",
        store="STORE-001",
        shipping_rate={"price": "9.00"},
        address={"city": "Berlin"},
        promotions=given,
    )


FULL = {
    "STORE_PATH": "/store",
    "ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
    "ITEM_ADDITIONAL_COSTS": "shipping=/shipping",
    "SESSION_ATTRIBUTES": "ShippingCity=/address/city",
    "ITEM_ATTRIBUTES": "image=/image,material=/material",
    "ITEM_FIELDS": ",".join(
        f"{name}=/{name}" for name in ("name", "category", "product", "weight", "height", "width", "length")
    ),
}


def validate(cart: Checkout, session: str = SESSION) -> Speak:
    return lambda adapter: adapter.validate(cart, session)


CARD_PAYMENT = shopper(
    items=[{"sku": "TXN-CC-001", "quantity": 1, "price": "250.00", "name": "Card Purchase - Electronics Store"}],
    customer="customer-789",
    attributes={"card": "credit", "category": "electronics", "transaction": "card_payment"},
)
CARD_ATTRIBUTES = ",".join(
    f"{name}=/attributes/{place}"
    for name, place in (("CardType", "card"), ("MerchantCategory", "category"), ("TransactionType", "transaction"))
)
WITHOUT_MONEY = [
    *("addFreeItem", "addToAudience", "awardGiveaway", "couponCreated", "customEffect", "error"),
    *("extendLoyaltyPointsExpiryDate", "increaseAchievementProgress", "referralCreated", "removeFromAudience"),
    *("reserveCoupon", "rollbackAddedLoyaltyPoints", "rollbackCoupon", "rollbackDeductedLoyaltyPoints"),
    *("rollbackDiscount", "rollbackIncreasedAchievementProgress", "rollbackReferral"),
    *("setLoyaltyPointsExpiryDate", "showBundleMetadata", "showNotification", "startAchievementProgress"),
    *("triggerWebhook", "updateAttribute", "willAwardGiveaway"),
]
ORDER = shopper("order_items", promotions=codes("COUP-XYZ789"))
FREE_OF_499 = ("setDiscountPerAdditionalCost", None, "shipping", 499)

TALON_ONE_TAPES = {
    "item_discount_and_coupon": Case(
        talon_one(),
        (validate(shopper(promotions=codes("coup-xyz789"))),),
        (outcome([("setDiscountPerItem", 1, "", 150), ("setDiscount", None, "", 250)], notices=["acceptCoupon"]),),
        NOT_OURS,
    ),
    "coupon_rejected": Case(
        talon_one(),
        (validate(shopper(promotions=codes("COUP-XYZ789", referral_code="REF-ABC123"))),),
        (
            outcome(
                rejected=[
                    ("COUP-XYZ789", "conditions_not_met", "CouponRejectedCondition"),
                    ("REF-ABC123", "conditions_not_met", "ReferralRejectedCondition"),
                ]
            ),
        ),
        NOT_OURS,
    ),
    "additional_cost_discount": Case(
        talon_one(**FULL),
        (validate(air_glide("items")),),
        (outcome([FREE_OF_499], notices=["code_not_answered"] * 2),),
        MORE_NOT_OURS,
    ),
    "item_cost_discount": Case(
        talon_one(),
        (validate(shopper()),),
        (outcome([("setDiscountPerAdditionalCostPerItem", 1, "shipping", 499)]),),
        NOT_OURS,
    ),
    "loyalty_points": Case(
        talon_one(),
        (validate(shopper(items=MENU)),),
        (outcome(notices=["addLoyaltyPoints", "changeLoyaltyTierLevel", "deductLoyaltyPoints"]),),
        NOT_OURS,
    ),
    "effects_without_money": Case(
        talon_one(SESSION_ATTRIBUTES=CARD_ATTRIBUTES),
        (validate(CARD_PAYMENT),),
        (outcome(notices=WITHOUT_MONEY),),
        NOT_OURS,
    ),
    "close_with_coupon": Case(
        talon_one(),
        (lambda adapter: adapter.check(ORDER, SESSION), lambda adapter: adapter.redeem(ORDER, SESSION)),
        (
            outcome([("setDiscount", None, "", 250)], notices=["willAwardGiveaway", "acceptCoupon"]),
            outcome([("setDiscount", None, "", 250)], notices=["awardGiveaway", "couponCreated", "acceptCoupon"]),
        ),
        NOT_OURS,
    ),
    "session_read": Case(
        talon_one(**FULL),
        (lambda adapter: adapter.look_up(air_glide("order_items"), SESSION, ""),) * 2,
        (
            outcome(found="absent"),
            outcome([FREE_OF_499], notices=["code_not_answered"] * 2, found="redeemed"),
        ),
    ),
}

# --- Voucherify -------------------------------------------------------------------------------------------------------

TIERS = ("promo_DE1N30D731Tg2F6NoMwNas2W", "promo_NDHgTg4VnOLYNjk9r7WOmQxf")
WATCHFLIX = [
    {"sku": "test_standard_ultra_hd", "quantity": 1, "price": "20.00"},
    {"product_id": "prod_0bc3bd8a4e072c5275", "quantity": 1, "price": "7.00"},
]
CARDS = {"gift_credits": {"M3X8IwW8": "1.00"}, "reward": {"id": "rew_EPx1hCTpqzF0HW1z9NKckZH4"}}
COFFEE = [
    {"product_id": "arabica_plus", "quantity": 1, "price": "12.00"},
    {"product_id": "7717f389-4621-4c7a-a6db-d4acfe051a97", "quantity": 1, "price": "31.00"},
]
ROSES = [
    {"product_id": "prod_5h1pp1ng", "quantity": 1, "price": "7.00"},
    {"product_id": "roses_1", "quantity": 1, "price": "5.00"},
    {"product_id": "vase_1", "quantity": 1, "price": "15.00"},
]
ROSES_ORDER = parsed("order_items", ROSES)
ROSES_ID = "ord_v5vupdacgud1CwUSyKqSlHuk"
STACKED_TIER = "promo_wtS1aPOs3k2majiBJv3yfbSM"
STACK = parsed(
    "order_items",
    [{"sku": "a-thing-for-2000", "quantity": 1, "price": "2000.00"}],
    promotions=codes("dBj56oqJ", "39vnjyS8", meta={"gift_credits": {"dBj56oqJ": "1.00"}}),
    applied_discounts=[{"amount": "80.00", "meta": {"object": "promotion_tier", "redeemable": STACKED_TIER}}],
)
FREE_SHIPPING_CODE = "Test - Discount - Free Shipping"


def voucherify(*tiers: str) -> Voucherify:
    return Voucherify(VOUCHERIFY | {"PROMOTIONS": ",".join(tiers) or "off"})


def watchflix(*coupons: str, **more: Any) -> Speak:
    return validate(
        parsed("items", WATCHFLIX, promotions=codes(*coupons, meta=CARDS, **more), customer={"id": "36_bob"})
    )


VOUCHERIFY_TAPES = {
    "validation_several_effects": Case(
        voucherify(*TIERS),
        (watchflix("GNcuPKGe", "AnsvocvP", "M3X8IwW8", loyalty_card="AnsvocvP"),),
        (
            outcome(
                [
                    ("APPLY_TO_ITEMS", 0, "", 1000),
                    ("APPLY_TO_ITEMS", 1, "", 700),
                    ("GIFT_CARD", None, "", 100),
                    ("APPLY_TO_ORDER", None, "", 360),
                    ("APPLY_TO_ORDER", None, "", 30),
                ],
                notices=["loyalty_reward"],
            ),
        ),
        frozenset({"expand", "session", "sku_id", "product_id"}),
    ),
    "validation_partial_skipped": Case(
        voucherify("promo_Mwy9XpA0TLctSGriM5kum0qp"),
        (watchflix("eee33463"),),
        (outcome(rejected=[("eee33463", "not_found", "not_found")], notices=["promotions_left_out"]),),
    ),
    "validation_all_mode_one_bad": Case(
        voucherify(),
        (watchflix("GNcuPKGe", "eee33463", "M3X8IwW8"),),
        (
            outcome(
                [("APPLY_TO_ITEMS", 0, "", 1000), ("APPLY_TO_ITEMS", 1, "", 700), ("GIFT_CARD", None, "", 100)],
                rejected=[("eee33463", "not_found", "not_found")],
            ),
        ),
    ),
    "validation_free_shipping": Case(
        voucherify(),
        (validate(parsed("items", COFFEE, promotions=codes(FREE_SHIPPING_CODE), shipping_rate={"price": "4.90"})),),
        (outcome([("FREE_SHIPPING", None, "shipping", 490)]),),
        frozenset({"customer", "product_id", "quantity"}),  # the example's quantities are strings
    ),
    "redemption_of_a_stack": Case(
        voucherify(STACKED_TIER),
        (lambda adapter: adapter.redeem(STACK, SESSION),),
        (
            outcome(
                [("GIFT_CARD", None, "", 100), ("APPLY_TO_ORDER", None, "", 39980), ("APPLY_TO_ORDER", None, "", 8000)],
                notices=["redemption"],
            ),
        ),
    ),
    "order_with_redemptions": Case(
        voucherify(),
        (lambda adapter: adapter.look_up(ROSES_ORDER, ROSES_ID, ""),),
        (
            outcome(
                [
                    ("APPLY_TO_ORDER", None, "", 1243),
                    ("APPLY_TO_ITEMS", 0, "", 70),
                    ("APPLY_TO_ITEMS", 1, "", 50),
                    ("APPLY_TO_ITEMS", 2, "", 150),
                ],
                notices=["redemption"],
                found="redeemed",
            ),
        ),
    ),
    "order_not_found_404": Case(
        voucherify(),
        (lambda adapter: adapter.look_up(ROSES_ORDER, "ord_nIcO2s8iD4Xh5E9IGDQ57Ax", ""),),
        (outcome(found="absent"),),
    ),
    "rollback_already_done_400": Case(
        voucherify(), (lambda adapter: adapter.undo(ROSES_ORDER, ROSES_ID, "", final=True),), ({"done": True},)
    ),
}

# --- The tests --------------------------------------------------------------------------------------------------------

CASES = {f"talon_one/{name}": case for name, case in TALON_ONE_TAPES.items()}
CASES |= {f"voucherify/{name}": case for name, case in VOUCHERIFY_TAPES.items()}


@pytest.mark.parametrize("cassette", CASES)
def test_vendor_example_gives_this_outcome(client: Client, cassette: str) -> None:
    case = CASES[cassette]
    played = play(cassette, case.adapter, client, *case.speak)
    assert [record.summary(result) for result in played.results] == list(case.expected)
    assert unsent(cassette, played) == case.unsent
    assert played.unplayed == 0
    assert [call.number for call in played.attempts] == [1] * len(played.sent), "nothing is sent twice"


def attribute() -> Checkout:
    return shopper(channel="web")


# The vendor's error examples: adapter, conversation, exception, our reason, further details.
PROBLEMS: dict[str, tuple[Any, Speak, type[Problem], str, dict[str, Any]]] = {
    "talon_one/unknown_attribute_400": (
        talon_one(SESSION_ATTRIBUTES="MyAttribute=/channel"),
        validate(shopper(channel="web")),
        EngineRejected,
        "request_rejected",
        {"engine_pointers": ["/attributes/MyAttribute"]},
    ),
    "talon_one/unauthorized_401": (talon_one(), validate(shopper()), EngineRejected, "engine_key", {}),
    "talon_one/cannot_move_from_closed_400": (talon_one(), validate(shopper()), EngineRejected, "session_closed", {}),
    "voucherify/duplicated_redeemables_400": (
        voucherify(),
        watchflix("one", "other"),
        EngineRejected,
        "duplicated_redeemables",
        {"engine_status": 400},
    ),
    "voucherify/unauthorized_401": (
        voucherify(),
        watchflix("one"),
        EngineRejected,
        "unauthorized",
        {"engine_status": 401},
    ),
}


@pytest.mark.parametrize("cassette", PROBLEMS)
def test_vendor_error_example_raises_this_problem(client: Client, cassette: str) -> None:
    adapter, speak, kind, reason, details = PROBLEMS[cassette]
    played = play(cassette, adapter, client, speak)
    (problem,) = played.results
    assert type(problem) is kind
    assert problem.details == {"reason": reason, **details}
    assert played.unplayed == 0
    assert len(played.attempts) == 1, "an error is not asked for twice"
    for text in ("invalid", "Unauthorized", "Invalid API key", "v-0b4ffecfb408165300", "Authentication"):
        assert text not in problem.message, "the engine's text is not passed on"


def test_409_of_talon_one_is_retried_then_raised_as_conflict(client: Client) -> None:
    played = play("talon_one/too_many_requests_409", talon_one(), client, validate(shopper()), repeats=True)
    (problem,) = played.results
    assert isinstance(problem, EngineUnavailable)
    assert problem.reason == "conflict"
    assert [(call.number, call.status) for call in played.attempts] == [(1, 409), (2, 409), (3, 409)]


def test_discount_has_the_vendors_ids(client: Client) -> None:
    case = TALON_ONE_TAPES["item_discount_and_coupon"]
    (found,) = play("talon_one/item_discount_and_coupon", case.adapter, client, *case.speak).results
    ids = {"campaignId": 244, "rulesetId": 73, "triggeredByCoupon": 4928, "code": "coup-xyz789"}
    assert [(one.name, one.meta) for one in found.discounts] == [
        ("Give 20% discount", ids | {"bundleName": "my_bundle"}),
        ("Give 20% discount", ids | {"scope": "sessionTotal"}),
    ]
    case = TALON_ONE_TAPES["additional_cost_discount"]
    (found,) = play("talon_one/additional_cost_discount", case.adapter, client, *case.speak).results
    assert [(one.description, one.cost) for one in found.discounts] == [
        ("Campaign for all summer 2021 promotions", "shipping")
    ]
    assert Cost("shipping", 900) in found.costs
    case = VOUCHERIFY_TAPES["redemption_of_a_stack"]
    (found,) = play("voucherify/redemption_of_a_stack", case.adapter, client, *case.speak).results
    assert [(one.name, one.meta.get("code"), one.meta["redeemable"]) for one in found.outcome.discounts] == [
        ("test unique codes no rules", "dBj56oqJ", "dBj56oqJ"),
        ("test unique coupons no rules", "39vnjyS8", "39vnjyS8"),
        ("timeframe test 3", None, STACKED_TIER),
    ]
    assert found.outcome.notices[0].payload == {"redemptions": ["r_iElJ2dgR8F391krF8DyBWB8v"]}


def test_loyalty_points_notices_have_text_and_payload(client: Client) -> None:
    case = TALON_ONE_TAPES["loyalty_points"]
    (found,) = play("talon_one/loyalty_points", case.adapter, client, *case.speak).results
    assert [one.text for one in found.notices] == [
        "100 loyalty points are earned: Points for purchase.",
        "The customer reaches the loyalty tier Gold.",
        "50 loyalty points are spent: Points deducted for return.",
    ]
    assert found.notices[0].payload["transactionUUID"] == "8c2d3670-6ea5-4e9e-b5c6-e7e7b4a10111"


def test_only_close_sends_an_idempotency_key(client: Client) -> None:
    case = TALON_ONE_TAPES["close_with_coupon"]
    dry, close = play("talon_one/close_with_coupon", case.adapter, client, *case.speak).sent
    assert dry.path.endswith("?dry=true")
    assert "?" not in close.path
    assert [[name for name, _ in one.headers if name == "Idempotency-Key"] for one in (dry, close)] == [
        [],
        ["Idempotency-Key"],
    ]


def test_second_validation_leaves_out_the_bad_code(client: Client) -> None:
    case = VOUCHERIFY_TAPES["validation_all_mode_one_bad"]
    first, second = play("voucherify/validation_all_mode_one_bad", case.adapter, client, *case.speak).sent
    assert [one["id"] for one in json(first.body)["redeemables"]] == ["GNcuPKGe", "eee33463", "M3X8IwW8"]
    assert [one["id"] for one in json(second.body)["redeemables"]] == ["GNcuPKGe", "M3X8IwW8"]


# --- Cassettes and sockets --------------------------------------------------------------------------------------------

OFF_TAPE = {
    "another path": ("talon_one/session_read", validate(shopper())),
    "another session": ("talon_one/coupon_rejected", validate(shopper(), "session2")),
    "another query": ("talon_one/coupon_rejected", lambda adapter: adapter.check(ORDER, SESSION)),
    "once more than recorded": ("talon_one/coupon_rejected", validate(shopper())),
}


@pytest.mark.parametrize("why", OFF_TAPE)
def test_unrecorded_request_fails_without_reaching_the_network(client: Client, why: str) -> None:
    """Sockets are open here and a server listens: the cassette alone holds the request back."""
    cassette, speak = OFF_TAPE[why]
    before = [validate(shopper())] if why == "once more than recorded" else []
    pytest_socket.enable_socket()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        adapter = talon_one(BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}")
        *_, problem = play(cassette, adapter, client, *before, speak).results
        assert isinstance(problem, EngineUnavailable)
        assert problem.reason == "connect"
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_sockets_are_blocked(client: Client) -> None:
    """Without a cassette, a request does not reach a running server; with open sockets it does."""

    async def send() -> None:
        wire = clients.create(client, connections=1)
        try:
            await wire.send("GET", f"http://127.0.0.1:{port}/", [], b"", 0.2, 100)
        finally:
            await wire.aclose()

    pytest_socket.enable_socket()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0)
        pytest_socket.disable_socket(allow_unix_socket=True)
        for attempt in (socket.socket, lambda: socket.getaddrinfo("yourbaseurl.talon.one", 443)):
            with pytest.raises(pytest_socket.SocketBlockedError):
                attempt()
        with pytest.raises(transport.NotSent, match="connect"):
            asyncio.run(send())
        with pytest.raises(BlockingIOError):
            server.accept()
        pytest_socket.enable_socket()
        with pytest.raises(transport.Unknown, match="timeout"):
            asyncio.run(send())
        server.accept()[0].close()


# --- Metadata and forbidden content -----------------------------------------------------------------------------------


def test_every_vendor_cassette_is_replayed() -> None:
    assert {named(path) for path in VENDOR} == {*CASES, *PROBLEMS, "talon_one/too_many_requests_409"}


@pytest.mark.parametrize("path", VENDOR, ids=named)
def test_cassette_metadata_names_its_sources(path: Path) -> None:
    about = tape(path)["metadata"]
    assert about["recorded_live"] is False
    assert about["statement"].startswith("Not recorded live")
    assert about["shows"]
    assert about["made"] in ("verbatim", "shortened", "assembled")
    assert bool(about.get("changes")) == (about["made"] != "verbatim"), "what differs from the example is told"
    assert about["sources"]
    for source in about["sources"]:
        assert all(source[key] for key in ("document", "version", "operation", "example"))


def test_live_cassette_metadata_names_date_and_api() -> None:
    for path in LIVE:
        about = tape(path)["metadata"]
        assert about["recorded_live"] is True, path
        assert about["statement"] == "Recorded live from a real account.", path
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", about["recorded_on"]), path
        assert about["api"], path
        assert about["changes"], path


DOCUMENTATION = re.compile(r"192\.0\.2\.|198\.51\.100\.|203\.0\.113\.")
EMAIL = re.compile(r"[\w.+%-]+(?:@|%40)(?!example\.(?:com|org|net)\b)[\w-]+(?:\.[\w-]+)+")
ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")


def offences(text: str) -> list[str]:
    """Return what a cassette must not contain."""
    found: dict[str, Any] = yamlserializer.deserialize(text)
    parts = [part for one in found["interactions"] for part in (one["request"], one["response"])]
    hosts = [source.address for source in record.ENGINES.values()]
    return [
        *(name for part in parts for name in part["headers"] if name.lower() not in record.KEPT_HEADERS),
        *(name for part in parts for name in part["headers"] if name.lower() == "x-sandbox"),
        *(one["request"]["uri"] for one in found["interactions"] if not one["request"]["uri"].startswith(tuple(hosts))),
        *EMAIL.findall(text),
        *(address for address in ADDRESS.findall(text) if not DOCUMENTATION.match(address)),
        *re.findall(r"(?i)apikey-v1|authorization|x-app-(?:id|token)|set-cookie", text),
    ]


@pytest.mark.parametrize("path", [*VENDOR, *LIVE], ids=named)
def test_cassette_contains_no_secret_or_personal_data(path: Path) -> None:
    assert offences(path.read_text("utf-8")) == []


def test_offences_in_a_cassette_are_found() -> None:
    clean = VENDOR[0].read_text("utf-8")
    assert offences(clean) == []
    bad = {
        "headers: {}": "headers: {Authorization: [ApiKey-v1 secret]}",
        "Content-Type:": "Set-Cookie:",
        '"effects"': '"someone@customers.test"',
        "customer_sessions/session1": "customer_sessions/10.1.2.3",
        "https://yourbaseurl.talon.one": "http://127.0.0.1:8090/talon_one",
    }
    for text, instead in bad.items():
        assert text in clean
        assert offences(clean.replace(text, instead, 1)), instead


# --- Recording --------------------------------------------------------------------------------------------------------

PERSON, PLACE = "jane.doe@customers.test", "10.11.12.13"
CANARIES = {
    "talon_one": {"TALON_ONE_API_KEY": "canary-key-5dZq", "TALON_ONE_PROFILE_PREFIX": f"{PLACE} {PERSON} "},
    "voucherify": {"VOUCHERIFY_APP_ID": "canary-id-8rTx", "VOUCHERIFY_APP_TOKEN": "canary-token-2wKp"},
}
CODE = "TEN-PERCENT"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """All scripts, recorded against the sandbox; the files are not kept."""
    folder = tmp_path_factory.mktemp("recorded")
    files = {}
    with sandbox.running(sandbox.create()) as url:
        for engine, canaries in CANARIES.items():
            prefix = engine.upper()
            environ = {**canaries, f"{prefix}_BASE_URL": f"{url}/{engine}"}
            environ |= {"RECORD_CODE": CODE, "RECORD_REDEMPTIONS": "1"}
            files[engine] = record.record(engine, environ, folder / engine, sandbox=True)
    return files


@pytest.mark.parametrize("engine", CANARIES)
def test_recording_keeps_no_secret_or_personal_data(recorded: dict[str, list[Path]], engine: str) -> None:
    files = recorded[engine]
    assert {"validate_unknown_code", "validate_code", "redeem_and_undo"} <= {path.stem for path in files}
    for path in files:
        text = path.read_text("utf-8")
        hidden = [*CANARIES[engine].values(), PERSON, PLACE, CODE, "canary", "127.0.0.1", "customers.test"]
        assert [word for word in hidden if word.lower() in text.lower()] == [], path
        assert set(offences(text)) <= {"x-sandbox"}, path
        assert record.RECORDED_CODE in text or "code" not in path.stem or "unknown" in path.stem
        about = yamlserializer.deserialize(text)["metadata"]
        assert about["recorded_live"] is False, "a sandbox is no account"
        assert about["statement"].startswith("Not recorded live")
    everything = "".join(path.read_text("utf-8") for path in files)
    assert record.RECORDED_CODE in everything
    if engine == "talon_one":
        assert "192.0.2.1 someone@example.com" in everything


@pytest.mark.parametrize("engine", CANARIES)
def test_recording_replays_to_its_results(recorded: dict[str, list[Path]], client: Client, engine: str) -> None:
    for path in recorded[engine]:
        assert replayed(engine, path, client) == tape(path)["metadata"]["results"], path


def test_live_cassette_replays_to_its_results(client: Client) -> None:
    for path in LIVE:
        assert replayed(path.parent.parent.name, path, client) == tape(path)["metadata"]["results"], path


def replayed(engine: str, path: Path, client: Client) -> list[Any]:
    about = tape(path)["metadata"]
    script = record.SCRIPTS[about["script"]]
    options = TALON_ONE if engine == "talon_one" else VOUCHERIFY
    cart = record.Cart(about["session"], tuple(record.RECORDED_CODE if code == "?" else code for code in script.codes))
    with record.new_recorder(record_mode="none").use_cassette(path):
        return asyncio.run(record.hold(script, record.ENGINES[engine].adapter(options), cart, client))


SCRUBBER = record.Scrubber(
    "https://acme.europe-west1.talon.one", "https://yourbaseurl.talon.one", ("hush",), "Spring-5"
)
SCRUBBED = {
    "secret within a text": ('{"message":"key hush is old"}', '{"message":"key scrubbed is old"}'),
    "address of the account": ('{"url":"//acme.europe-west1.talon.one/x"}', '{"url":"//yourbaseurl.talon.one/x"}'),
    "code in any case": ('{"value":"SPRING-5"}', '{"value":"RECORDED-CODE"}'),
    "mail address": ('{"a":"to jo.doe@shop.co.uk, now"}', '{"a":"to someone@example.com, now"}'),
    "network address": ('{"a":["10.0.0.7","fe80:1:2:3::4"]}', '{"a":["192.0.2.1","2001:db8::1"]}'),
    "person": (
        '{"customer":{"id":"c","n":5,"object":"customer"}}',
        '{"customer":{"id":"scrubbed","n":0,"object":"customer"}}',
    ),
    "attributes of the merchant": ('{"attributes":{"Name":["Jo"]}}', '{"attributes":{"Name":["scrubbed"]}}'),
    "author of a campaign": ('{"createdBy":"Jo","name":"Sale"}', '{"createdBy":"scrubbed","name":"Sale"}'),
    "no harmless value": (
        '{"value":9.990,"at":"2026-11-02T10:20:30Z","no":null}',
        '{"value":9.990,"at":"2026-11-02T10:20:30Z","no":null}',
    ),
    "body that is no JSON": ("<p>jo.doe@shop.co.uk</p>", "scrubbed: 24 bytes that are no JSON"),
}


@pytest.mark.parametrize("what", SCRUBBED)
def test_scrubber_replaces(what: str) -> None:
    given, expected = SCRUBBED[what]
    found = SCRUBBER.body(given.encode()) or b""
    assert (msgspec.json.format(found, indent=-1) if found[:1] == b"{" else found).decode() == expected


def test_scrubber_keeps_only_allowed_headers() -> None:
    headers = {"Authorization": ["a"], "Set-Cookie": ["b"], "X-New": ["c"], "Content-Type": ["application/json"]}
    response = {"status": {"code": 200}, "headers": headers, "body": {"string": b""}}
    assert SCRUBBER.response(response)["headers"] == {"Content-Type": ["application/json"]}


def test_recording_refuses_a_sandbox(tmp_path: Path) -> None:
    with sandbox.running(sandbox.create()) as url:
        environ = {"TALON_ONE_BASE_URL": f"{url}/talon_one", "TALON_ONE_API_KEY": "a-key"}
        assert record.main(environ, tmp_path) == 1
    assert list(tmp_path.rglob("*")) == []


def test_recording_redeems_only_when_allowed() -> None:
    for environ in ({}, {"RECORD_REDEMPTIONS": "0"}, {"RECORD_REDEMPTIONS": ""}):
        allowed = dict(record._permitted_scripts(environ, "A-CODE"))
        assert not [name for name, script in allowed.items() if script.redeems or record._redeem in script.steps]
    assert "redeem_and_undo" in dict(record._permitted_scripts({"RECORD_REDEMPTIONS": "1"}, "A-CODE"))


def test_recording_without_account_names_missing_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record.main({}, tmp_path) == 2
    said = capsys.readouterr().err
    for source in record.ENGINES.values():
        for name in source.needs:
            assert name in said
    assert record.main({"TALON_ONE_API_KEY": "a-key", "VOUCHERIFY_APP_ID": "an-id"}, tmp_path) == 2
    said = capsys.readouterr().err
    assert "set TALON_ONE_BASE_URL to" in said
    assert "set VOUCHERIFY_APP_TOKEN to" in said
    wrong = {"TALON_ONE_BASE_URL": "http://shop.test", "TALON_ONE_API_KEY": "a-key"}
    assert record.main(wrong, tmp_path) == 1
    assert "BASE_URL: an https address" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []
