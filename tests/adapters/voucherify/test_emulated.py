"""The Voucherify adapter and the sandbox were written independently from the documents: they must agree."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mapper.adapter import (
    EngineRejected,
    EngineReply,
    EngineRequest,
    EngineUnavailable,
    LookedUp,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Redeemed,
)
from mapper.sandbox import rulebook
from tests.adapters.voucherify.emulated import Emulated
from tests.adapters.voucherify.talk import cart, engine, failure, order, refusals, taken
from tests.sandbox.emulated import campaigns
from tests.sandbox.voucherify_shop import ALL, off

SESSION = "checkout-1"
GOODS = ("SKU-1", 1, "140.00")
NAMED = [f'redeemables_named = "{how}"' for how in ("as_stored", "as_requested")]


def project(effects: dict[str, str], *, engine_rules: str = "", alone: Sequence[str] = ()) -> Emulated:
    """A project with these campaigns; those in `alone` never stack."""
    text = campaigns(effects)
    for name in alone:
        text = text.replace(f"name = '{name}'\n", f"name = '{name}'\ncombinable = false\n")
    return Emulated(own=rulebook.parse(f"[engines.voucherify]\n{engine_rules}\n{text}"))


def validated(shop: Emulated, checkout: Any, **options: str) -> Outcome:
    outcome = shop.hold(engine(**options).validate(checkout, SESSION))
    assert isinstance(outcome, Outcome)
    return outcome


def offs(outcome: Outcome) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, _, amount, _ in taken(outcome):
        found[name] = found.get(name, 0) + amount
    return found


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
def test_sandbox_code_wins_over_non_stackable_promotion(mode: str) -> None:
    rules = f'redeemables_application_mode = "{mode}"'
    shop = project({"FIVE": off("5.00"), "promo_ONE": off("1.00")}, engine_rules=rules, alone=["promo_ONE"])
    outcome = validated(shop, cart(GOODS, codes=["FIVE"]), PROMOTIONS="qualify")
    assert (offs(outcome), outcome.rejected) == ({"FIVE": 500}, ())
    assert len(shop.asked) <= 4


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
@pytest.mark.parametrize("limit", ["redeemables_limit", "applicable_redeemables_limit"])
def test_project_limit_of_two_keeps_the_code(mode: str, limit: str) -> None:
    rules = f'redeemables_application_mode = "{mode}"\n{limit} = 2\n'
    rules += "applicable_redeemables_limit = 2\n" if limit == "redeemables_limit" else ""
    shop = project({"FIVE": off("5.00"), "promo_A": off("2.00"), "promo_B": off("1.00")}, engine_rules=rules)
    outcome = validated(shop, cart(GOODS, codes=["FIVE"]), PROMOTIONS="qualify")
    assert (len(offs(outcome)), offs(outcome)["FIVE"], outcome.rejected) == (2, 500, ())
    assert len(shop.asked) <= 3


@pytest.mark.parametrize("named", NAMED)
def test_mode_all_refuses_every_bad_code(named: str) -> None:
    shop = Emulated(ALL, (NAMED[0], named))
    outcome = validated(shop, cart(GOODS, codes=["GOOD-5", "NOPE-1", "NOPE-2", "NOPE-3"]))
    assert offs(outcome) == {"GOOD-5": 500}
    assert [code for code, *_ in refusals(outcome)] == ["NOPE-1", "NOPE-2", "NOPE-3"]


@pytest.mark.parametrize("codes", [["UPGRADE", "TEN-LARGE"], ["TEN-LARGE", "UPGRADE"]])
@pytest.mark.parametrize("absent", ["omitted", "null"])
def test_upgrade_keeps_the_discount_of_another_code(codes: list[str], absent: str) -> None:
    shop = Emulated(('absent_amounts = "omitted"', f'absent_amounts = "{absent}"'))
    cups = [("CUP-SMALL", 3, "20.00"), ("CUP-LARGE", 1, "25.00")]
    outcome = validated(shop, cart(*cups, codes=codes))
    assert [(name, line, amount) for name, line, amount, _ in taken(outcome)] == [("TEN-LARGE", 1, 250)]
    [told] = [one for one in outcome.notices if one.type == "units"]
    assert [one["source_id"] for one in told.payload["items"]] == ["CUP-LARGE"]


def test_look_up_compares_quantities() -> None:
    shop = Emulated()
    paid = order(("SKU-1", 2, "70.00"), codes=["GOOD-5"])
    done = shop.hold(engine().redeem(paid, SESSION))
    assert isinstance(done, Redeemed)
    found = shop.hold(engine().look_up(paid, SESSION, done.handle))
    assert isinstance(found, LookedUp)
    assert (found.state, found.extra, offs(found.outcome)) == ("redeemed", (), {SESSION: 500})
    with pytest.raises(OrderMismatch):
        shop.hold(engine().look_up(order(("SKU-1", 3, "70.00"), codes=["GOOD-5"]), SESSION, done.handle))
    shop.hold(engine().undo(None, SESSION, done.handle, final=True))
    assert shop.hold(engine().look_up(paid, SESSION, done.handle)).state == "absent"


def as_paid(shown: Outcome, codes: Sequence[str]) -> Any:
    """The order that a checkout with this outcome becomes."""
    entries: dict[int | None, list[dict[str, Any]]] = {}
    for one in shown.discounts:
        listed = {"list_price": CART[one.line][2]} if one.line is not None else {}
        entry = {"name": one.name, "amount": f"{one.amount / 100:.2f}", "meta": {**one.meta, **listed}}
        entries.setdefault(one.line, []).append(entry)
    lines = [
        {"sku": sku, "quantity": quantity, "price": price, "applied_discounts": entries.get(index, [])}
        for index, (sku, quantity, price) in enumerate(CART)
    ]
    notes = {
        "rejected": [{"code": one.code} for one in shown.rejected],
        "notices": [{"type": one.type, "payload": one.payload} for one in shown.notices],
    }
    root = entries.get(None, [])
    return order(*lines, codes=codes, applied_discounts=root, promotions={"meta": {"mapper": notes}})


CODES = (
    "GOOD-5",
    "TEN-PERCENT",
    "LINE-10",
    "ALONE-15",
    "UPGRADE",
    "TEN-LARGE",
    "NOPE-1",
    "COSTS-5",
    "WINTER-5",
    "FREE-MUG",
)
CART = [("SKU-1", 1, "140.00"), ("CUP-SMALL", 3, "20.00"), ("CUP-LARGE", 1, "25.00")]


Case = tuple[Sequence[tuple[str, str]], Sequence[str], dict[str, str]]
"""The edits of the default rule book, the codes of the cart, and the adapter's options."""

# Two validations lock GOOD-5, a third leaves it out.
LOCKED_AND_DROPPED: Case = (
    [ALL],
    ["FREE-MUG", "NOPE-1", "ALONE-15", "GOOD-5"],
    {"PROMOTIONS": "off", "PROMOTIONS_ORDER": "codes_first", "SESSION_LOCK_TTL": "900"},
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def choice(old: str, *others: str) -> tuple[str, str]:
        return old, draw(st.sampled_from((old, *others)))

    changes = (
        choice(*ALL),
        choice(*NAMED),
        choice('absent_amounts = "omitted"', 'absent_amounts = "null"'),
        choice('nothing_applies = "first_refusal"', 'nothing_applies = "no_applicable_redeemables"'),
        choice("\napplicable_redeemables_limit = 5", "\napplicable_redeemables_limit = 2"),
        choice("\nredeemables_limit = 30", "\nredeemables_limit = 5"),
    )
    codes: list[str] = draw(st.lists(st.sampled_from(CODES), unique=True, max_size=4))
    options = {
        "PROMOTIONS": draw(st.sampled_from(("off", "qualify"))),
        "PROMOTIONS_ORDER": draw(st.sampled_from(("codes_first", "promotions_first"))),
        "SESSION_LOCK_TTL": draw(st.sampled_from(("0", "900"))),
    }
    return changes, codes, options


def locked_codes(shop: Emulated) -> set[str]:
    """Return the locked codes. Tiers can be locked as well, but never unlocked."""
    return {name for one in shop.books["sessions"] if not (name := one["id"]).startswith("promo_")}


@settings(max_examples=60, deadline=None)
@given(cases())
@example(LOCKED_AND_DROPPED)
def test_validate_check_and_redeem_grant_the_same(case: Case) -> None:
    changes, codes, options = case
    shop, adapter = Emulated(*changes), engine(**options)
    alone = {*offs(validated(shop, cart(*CART, codes=codes), **options | {"PROMOTIONS": "off"}))}
    shown = validated(shop, cart(*CART, codes=codes), **options)
    assert alone <= {*offs(shown)}
    paid = as_paid(shown, codes)
    refused = {one.code for one in shown.rejected}
    assert not refused & locked_codes(shop), "a checkout holds no code that is refused"
    checked = shop.hold(adapter.check(paid, SESSION))
    assert not refused & locked_codes(shop)
    assert taken(checked) == taken(shown)
    assert not checked.rejected
    done = shop.hold(adapter.redeem(paid, SESSION))
    if isinstance(done, NotRedeemed):
        assert not checked.discounts
        assert not locked_codes(shop)
        return
    assert isinstance(done, Redeemed)
    assert taken(done.outcome) == taken(checked)
    assert not done.outcome.rejected
    assert not locked_codes(shop), "a consumed checkout holds no code"
    found = shop.hold(adapter.look_up(paid, SESSION, done.handle))
    assert sum(one.amount for one in found.outcome.discounts) == sum(one.amount for one in checked.discounts)
    shop.hold(adapter.undo(None, SESSION, done.handle, final=True))
    assert shop.hold(adapter.look_up(paid, SESSION, done.handle)).state == "absent"


class SentTwice(Emulated):
    """A proxy that delivers redemptions twice and returns answer number `answer_of`. Rollbacks may be refused."""

    def __init__(self, answer_of: int, refusals: int) -> None:
        super().__init__()
        self.answer_of, self.refusals = answer_of, refusals

    def answer(self, request: EngineRequest) -> EngineReply:
        if request.path == "/v1/redemptions":
            return (super().answer(request), super().answer(request))[self.answer_of]
        if request.path.endswith("/rollbacks") and self.refusals:
            self.refusals -= 1
            return failure("forbidden", 403)
        return super().answer(request)


@pytest.mark.parametrize("answer_of", [0, 1])
def test_duplicate_delivery_leaves_one_redemption_after_repair(answer_of: int) -> None:
    shop, adapter, paid = SentTwice(answer_of, refusals=2), engine(), order(GOODS, codes=["GOOD-5"])
    with pytest.raises(EngineUnavailable) as caught:
        shop.hold(adapter.redeem(paid, SESSION))
    assert caught.value.reason == "redeemed_twice"
    assert shop.calls.count("POST /v1/redemptions") == 2
    found = shop.hold(adapter.look_up(paid, SESSION, ""))
    for _ in range(2):
        assert (found.state, len(found.extra)) == ("redeemed", 1)
        with pytest.raises(EngineRejected):
            shop.hold(adapter.repair(paid, SESSION, found.extra))
    shop.hold(adapter.repair(paid, SESSION, found.extra))
    found = shop.hold(adapter.look_up(paid, SESSION, ""))
    assert (found.state, found.extra, offs(found.outcome)) == ("redeemed", (), {SESSION: 500})
    assert shop.calls.count("POST /v1/redemptions") == 2


def test_lock_is_released_when_its_code_leaves_the_cart() -> None:
    shop, locked = Emulated(), {"SESSION_LOCK_TTL": "900"}
    shown = validated(shop, cart(GOODS, codes=["SINGLE-0001"]), **locked)
    assert offs(shown)
    other = engine(**locked)
    theirs = cart(GOODS, codes=["SINGLE-0001"])
    assert [one.reason for one in shop.hold(other.validate(theirs, "other")).rejected] == ["used_up"]
    entries = [{"name": "n", "amount": "0.01", "meta": one.meta} for one in shown.discounts]
    validated(shop, cart(GOODS, discounts=entries), **locked)
    assert offs(shop.hold(other.validate(theirs, "other")))


def test_check_of_redeemed_order_locks_no_code() -> None:
    shop, adapter = Emulated(), engine(SESSION_LOCK_TTL="900")
    paid = order(GOODS, codes=["SINGLE-0001", "GOOD-5"])
    assert isinstance(shop.hold(adapter.redeem(paid, SESSION)), Redeemed)
    assert shop.hold(adapter.check(paid, SESSION)).redeemed
    assert not locked_codes(shop)
