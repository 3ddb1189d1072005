"""Hard carts through both adapters and both sandboxes, each written independently.

The rule book defines what each code earns; its settings make an engine behave as a live one may.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.testclient import TestClient

from adapters.talon_one import TalonOne
from adapters.voucherify import Voucherify
from mapper.adapter import Adapter, Conversation, EngineRejected, NotRedeemed, OrderMismatch, Outcome, Redeemed
from mapper.domain import checkout as documents
from mapper.domain import discounts
from mapper.engine.conversation import Engine, Redemption
from mapper.sandbox import host as sandbox
from tests.adapters.test_engines import BASE, Wire
from tests.sandbox.emulated import DEFAULT, Json

Change = tuple[str, str]
T = TypeVar("T")
ENGINES: dict[str, tuple[Callable[[dict[str, str]], Adapter], dict[str, str]]] = {
    "talon_one": (
        TalonOne,
        {"BASE_URL": f"{BASE}/talon_one", "API_KEY": "k", "ADDITIONAL_COSTS": "shipping=/shipping_rate/price"},
    ),
    "voucherify": (
        Voucherify,
        {"BASE_URL": f"{BASE}/voucherify", "APP_ID": "i", "APP_TOKEN": "t", "PROMOTIONS": "qualify"},
    ),
}


class Shop:
    """A shop with one engine, on an edited rule book."""

    def __init__(self, folder: Path, engine: str, changes: tuple[Change, ...] = (), **options: str) -> None:
        text = DEFAULT
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = folder / "rulebook.toml"
        path.write_text(text, "utf-8")
        self.wire = Wire()
        self.wire.client = TestClient(sandbox.create(path))
        make, usual = ENGINES[engine]
        self.adapter = make(usual | options)

    def ask(self, body: Json) -> tuple[Outcome, discounts.Allocation]:
        checkout = documents.parse(json.dumps({"id": "cart", "currency": "USD"} | body).encode(), "validate")

        outcome = asyncio.run(self._validate(checkout, "cart"))
        return outcome, discounts.allocate(checkout, outcome)

    async def _validate(self, checkout: documents.Checkout, session: str) -> Outcome:
        """Validate as the service does: in a new session if the engine's holds stale values."""
        engine = Engine(self.wire, self.adapter.accounts)
        deadline = asyncio.get_running_loop().time() + 60
        try:
            return await engine.converse(self.adapter.validate(checkout, session), deadline)
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            return await engine.converse(self.adapter.validate(checkout, f"{session}~2"), deadline)

    def order(self, *codes: str, quantity: int = 1) -> documents.Checkout:
        line = {"sku": "A", "quantity": quantity, "price": "50.00"}
        body = {"id": "o1", "currency": "USD", "order_items": [line], "promotion": {"coupon_codes": list(codes)}}
        return documents.parse(json.dumps(body).encode(), "consume")

    def hold(self, conversation: Conversation[T]) -> T:
        """Hold a conversation that may redeem."""

        async def may_send() -> bool:
            return True

        async def talk() -> T:
            engine = Engine(self.wire, self.adapter.accounts)
            return await engine.converse(conversation, asyncio.get_running_loop().time() + 60, Redemption(may_send))

        return asyncio.run(talk())

    def redemptions(self, engine: str) -> int:
        """Count the redemptions in the engine's books."""
        log = self.wire.client.get("/_sandbox/books").json()[engine]["redemptions"]
        return sum(1 if entry["what"] == "redeemed" else -1 for entry in log)


def cart(*codes: str, lines: tuple[tuple[str, int, str], ...] = (("A", 1, "50.00"),), **more: Any) -> Json:
    items = [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]
    return {"items": items, "promotions": {"coupon_codes": list(codes)}, **more}


SHIPPING = {"shipping_rate": {"price": "15.00"}}
CUPS = (("CUP-SMALL", 3, "20.00"), ("CUP-LARGE", 1, "25.00"))
ALL = ('redeemables_application_mode = "PARTIAL"', 'redeemables_application_mode = "ALL"')
BEYOND = ("discounts_beyond_price = false", "discounts_beyond_price = true")
TWO = ("redeemables_limit = 30\napplicable", "redeemables_limit = 2\napplicable")
NULL = ('absent_amounts = "omitted"', 'absent_amounts = "null"')
AS_REQUESTED = ('redeemables_named = "as_stored"', 'redeemables_named = "as_requested"')
CASE = ("case_sensitive_codes = false", "case_sensitive_codes = true")
WRAPPED = {"items": [{"sku": "A", "quantity": 1, "price": "20.00", "wrap": "5.00"}]}
SHOES = {"items": [{"sku": "A", "quantity": 1, "price": "50.00", "category": "shoes"}]}
MUG = {"items": [{"sku": "A", "quantity": 1, "price": "350.00"}, {"sku": "MUG-BERLIN", "quantity": 1, "price": "9.90"}]}
OUTLET = cart("GOOD-5", lines=(("OUTLET-SHIRT", 1, "350.00"),), **SHIPPING)
STALE = {"PROMOTIONS": "promo_gone1,promo_gone2,promo_gone3,promo_2"}


@pytest.mark.parametrize(
    ("engine", "changes", "options", "body", "off", "rejected"),
    [
        # Each price is discounted at most once in full, under all its names.
        ("talon_one", (), {"ITEM_ADDITIONAL_COSTS": "gift_wrap=/wrap"}, cart("COSTS-5", "WRAPPED") | WRAPPED, 500, {}),
        ("talon_one", (BEYOND,), {}, cart("BUDGET-50", lines=(("A", 1, "30.00"),)), 3000, {}),
        # The vendor's own fields of an item are conditions.
        ("talon_one", (), {}, cart("SHOES-10") | SHOES, 1000, {}),
        ("voucherify", (), {"ITEM_METADATA": "category=/category"}, cart("SHOES-10") | SHOES, 1000, {}),
        # Codes that differ by case alone.
        ("talon_one", (CASE,), {"CODE_CASE": "sensitive"}, cart("TWIN-5", "twin-5"), 1200, {}),
        ("voucherify", (CASE,), {"CODE_CASE": "sensitive"}, cart("TWIN-5", "twin-5"), 1200, {}),
        ("talon_one", (), {}, cart("TWIN-5", "twin-5"), 500, {}),
        ("voucherify", (), {}, cart("TWIN-5", "twin-5"), 500, {}),
        # A promotion that we add never costs a code,
        ("voucherify", (), {}, cart("GOOD-5", lines=(("OUTLET-SHIRT", 1, "20.00"),)), 500, {}),
        ("voucherify", (), {}, cart(lines=(("OUTLET-SHIRT", 1, "20.00"),)), 100, {}),
        ("voucherify", (TWO,), {}, cart("GOOD-5", lines=(("A", 1, "350.00"),), **SHIPPING), 2000, {}),
        # nor another promotion: one that is left out makes room for the next.
        ("voucherify", (), {}, OUTLET, 2000, {}),
        ("voucherify", (ALL,), {}, OUTLET, 2000, {}),
        ("voucherify", (TWO,), {}, OUTLET, 2000, {}),
        ("voucherify", (ALL, TWO), {}, OUTLET, 2000, {}),
        ("voucherify", (TWO,), {"PROMOTIONS": "promo_60,promo_2"}, OUTLET, 2000, {}),
        ("voucherify", (TWO,), {"PROMOTIONS": "promo_gone1,promo_2"}, OUTLET, 2000, {}),
        ("voucherify", (ALL,), STALE, cart("GOOD-5", lines=(("A", 1, "350.00"),), **SHIPPING), 2000, {}),
        # Mode ALL names one bad code at a time.
        (
            "voucherify",
            (ALL,),
            {},
            cart("GOOD-5", "BAD-1", "BAD-2", "BAD-3"),
            500,
            {"BAD-1": "expired", "BAD-2": "expired", "BAD-3": "expired"},
        ),
        # Added and replaced units.
        ("voucherify", (), {}, cart("UPGRADE", "TEN-LARGE", lines=CUPS), 250, {}),
        ("voucherify", (), {}, cart("TEN-LARGE", "UPGRADE", lines=CUPS), 250, {}),
        ("voucherify", (), {"ORDER_METADATA": "store=/store"}, MUG | {"store": "berlin"}, 990, {}),
        ("voucherify", (NULL,), {}, cart("TEN-PERCENT", "GOOD-5"), 1000, {}),
        # A rejection has the code as typed, whatever the engine calls it.
        ("voucherify", (AS_REQUESTED,), {}, cart("good-5", "bad-1"), 500, {"bad-1": "expired"}),
        ("voucherify", (), {}, cart("good-5", "bad-1"), 500, {"bad-1": "expired"}),
        ("talon_one", (), {}, cart("good-5", "bad-1"), 500, {"bad-1": "expired"}),
    ],
)
def test_hard_cart_gets_these_discounts_and_rejections(
    tmp_path: Path,
    engine: str,
    changes: tuple[Change, ...],
    options: dict[str, str],
    body: Json,
    off: int,
    rejected: dict[str, str],
) -> None:
    outcome, settled = Shop(tmp_path, engine, changes, **options).ask(body)
    assert settled.total == off
    assert {refused.code: refused.reason for refused in outcome.rejected} == rejected


@pytest.mark.parametrize("changes", [(), (ALL,)])
def test_only_stale_promotions_give_a_notice(tmp_path: Path, changes: tuple[Change, ...]) -> None:
    outcome, _ = Shop(tmp_path, "voucherify", changes).ask(cart("GOOD-5"))
    assert not outcome.notices
    outcome, _ = Shop(tmp_path, "voucherify", changes, **STALE).ask(cart("GOOD-5"))
    [told] = outcome.notices
    assert [one["redeemable"] for one in told.payload["promotions"]] == ["promo_gone1", "promo_gone2", "promo_gone3"]


@pytest.mark.parametrize("nulls", ["refuse", "clear", "ignore"])
@pytest.mark.parametrize("attributes", ["merge", "replace"])
@pytest.mark.parametrize("costs", ["merge", "replace"])
def test_removed_values_earn_nothing_under_any_merge_rule(
    tmp_path: Path, nulls: str, attributes: str, costs: str
) -> None:
    rules = (
        ('cart_at_least = "300.00", stores = ["berlin"]', 'attributes = { channel = "app" }'),
        ('attributes = "merge"', f'attributes = "{attributes}"'),
        ('additional_costs = "replace"', f'additional_costs = "{costs}"'),
        ('nulls = "refuse"', f'nulls = "{nulls}"'),
    )
    shop = Shop(tmp_path, "talon_one", rules, SESSION_ATTRIBUTES="channel=/channel")
    first, settled = shop.ask(cart(lines=(("A", 1, "140.00"),), channel="app", **SHIPPING))
    assert "addFreeItem" in {notice.type for notice in first.notices}
    assert settled.total == 1500
    second, settled = shop.ask(cart(lines=(("A", 1, "140.00"),)))
    assert "addFreeItem" not in {notice.type for notice in second.notices}
    assert settled.total == 0


@pytest.mark.parametrize(("engine", "lines", "units"), [("talon_one", 1000, 10), ("voucherify", 500, 20)])
def test_largest_allowed_cart_gets_its_discounts(tmp_path: Path, engine: str, lines: int, units: int) -> None:
    body = cart("TEN-PERCENT", lines=tuple((f"S{i}", units, "10.00") for i in range(lines)))
    _, settled = Shop(tmp_path, engine).ask(body)
    assert settled.total == 10_000 * 100


NOTHING = ('nothing_applies = "first_refusal"', 'nothing_applies = "no_applicable_redeemables"')


@pytest.mark.parametrize("change", [ALL, NOTHING, None])
def test_voucherify_redeems_good_codes_and_rejects_bad_ones(tmp_path: Path, change: Change | None) -> None:
    shop = Shop(tmp_path, "voucherify", (change,) if change else ())
    for codes, redeemed in ((("BAD-1", "BAD-2"), 0), (("BAD-1", "GOOD-5"), 1)):
        result = shop.hold(shop.adapter.redeem(shop.order(*codes), "cart"))
        assert isinstance(result, Redeemed if redeemed else NotRedeemed)
        rejected = result.outcome.rejected if isinstance(result, Redeemed) else result.rejected
        assert {one.code: one.reason for one in rejected} == {code: "expired" for code in codes if code != "GOOD-5"}
        assert shop.redemptions("voucherify") == redeemed


@pytest.mark.parametrize("engine", ENGINES)
def test_look_up_finds_only_the_same_order(tmp_path: Path, engine: str) -> None:
    shop = Shop(tmp_path, engine)
    done = shop.hold(shop.adapter.redeem(shop.order("GOOD-5", quantity=2), "cart"))
    assert isinstance(done, Redeemed)
    found = shop.hold(shop.adapter.look_up(shop.order("GOOD-5", quantity=2), "cart", done.handle))
    assert found.state == "redeemed"
    with pytest.raises(OrderMismatch):
        shop.hold(shop.adapter.look_up(shop.order("GOOD-5", quantity=3), "cart", done.handle))
    # A final undo by the handle alone leaves no redemption.
    shop.hold(shop.adapter.undo(None, "cart", done.handle, final=True))
    assert shop.redemptions(engine) == 0
