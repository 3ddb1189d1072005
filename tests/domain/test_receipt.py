"""Receipts: which are valid, expired or forged."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from mapper.domain import checkout, receipt
from mapper.domain.errors import Forbidden
from mapper.domain.receipt import Receipt, Receipts

NOW = 1_800_000_000.0
DAY = 86_400
CURRENT, OLD, RETIRED = b"the current secret", b"the old secret", b"the retired secret"
RECEIPTS = Receipts((CURRENT, OLD), "talon_one", DAY, "shop", (RETIRED,))
LINE = {"sku": "S", "quantity": 2, "price": "10.00"}


def order(note: dict[str, Any] | None, **changes: Any) -> checkout.Checkout:
    body = {"order_items": [LINE], "promotions": {"meta": {"mapper": note} if note is not None else {}}, **changes}
    return checkout.parse(json.dumps(body).encode(), "consume")


def note(
    receipts: Receipts = RECEIPTS,
    *,
    session: str = "s-1",
    customer: str = "jane",
    degraded: bool = False,
    at: float = NOW,
) -> dict[str, Any]:
    token = receipts.write(session, customer, degraded, receipt.content_of(order(None)), at)
    return {"session": session, "degraded": degraded, "receipt": token}


def writer(secret: bytes = CURRENT, engine: str = "talon_one", space: str = "shop") -> Receipts:
    return Receipts((secret,), engine, DAY, space)


OURS = Receipt("s-1", "jane", degraded=False, expired=False, same_content=True)


def test_receipt_format_is_fixed_byte_for_byte() -> None:
    """A change here makes every receipt in flight a forged one at the next roll-out."""
    written = note(session="cart/1 é", customer="jane.doe@shop", degraded=True)
    assert written["receipt"] == (
        "2.81cefe35df4f7cba.talon_one.shop.1800000000.jane%2Edoe%40shop."
        "444dd2f59c563df309a003da9e90ced50a2ea845a274741b84dbde3e3327d87d."
        "41ca958d2ec3953bfc1ff8a6e5559154d81ffa33ac15aece2db7185b998720c5"
    )


@pytest.mark.parametrize("degraded", [False, True])
@pytest.mark.parametrize("customer", ["", "jane", "a.b/c d@é%"])
@pytest.mark.parametrize("space", ["", "shop", "a.b c"])
def test_written_receipt_is_read_back(space: str, customer: str, degraded: bool) -> None:
    receipts = writer(space=space)
    expected = Receipt("s-1", customer, degraded=degraded, expired=False, same_content=True)
    assert receipts.read(order(note(receipts, customer=customer, degraded=degraded)), NOW) == expected


@pytest.mark.parametrize(
    "absent",
    [
        None,
        {},
        {"session": "s-1"},
        {"session": "s-1", "receipt": None},
        {**note(), "receipt": 1},
        {**note(), "receipt": ""},
        {**note(), "receipt": "3" + note()["receipt"][1:]},
        {**note(), "receipt": "not a receipt"},
        note(writer(b"a secret that nobody knows any longer")),
        note(writer(engine="voucherify")),
        note(writer(space="another")),
        note(writer(space="")),
        {**note(), "receipt": "1.1800000000." + "0" * 64 + "." + "0" * 64},
    ],
)
def test_foreign_receipt_is_read_as_none(absent: dict[str, Any] | None) -> None:
    assert RECEIPTS.read(order(absent), NOW) is None
    assert RECEIPTS.session_if_ours(order(absent)) is None


TOKEN: str = note()["receipt"]


@pytest.mark.parametrize(
    "change",
    [
        {"session": "s-2"},
        {"session": None},
        {"session": 1},
        {"degraded": True},
        {"degraded": "no"},
        {"receipt": TOKEN.replace("1800000000", "1800000001")},
        {"receipt": TOKEN.replace(".jane.", ".joan.")},
        {"receipt": TOKEN.replace(".jane.", "..")},
        {"receipt": TOKEN[:-1] + ("0" if TOKEN[-1] != "0" else "1")},
        {"receipt": TOKEN[:-1]},
        {"receipt": TOKEN + "\n"},
        {"receipt": TOKEN.rpartition(".")[0]},
        {"receipt": ".".join([*TOKEN.split(".")[:6], "0" * 64, TOKEN.split(".")[7]])},
    ],
)
def test_changed_receipt_is_refused_as_forged(change: dict[str, Any]) -> None:
    touched = order({**note(), **change})
    with pytest.raises(Forbidden) as refusal:
        RECEIPTS.read(touched, NOW)
    assert refusal.value.reason == "forged_receipt"
    assert RECEIPTS.session_if_ours(touched) is None


@pytest.mark.parametrize(("age", "expired"), [(0, False), (DAY, False), (DAY + 1, True), (-300, False), (-301, True)])
def test_expired_receipt_keeps_session_and_customer_but_not_prices(age: int, expired: bool) -> None:
    read = RECEIPTS.read(order(note()), NOW + age)
    assert read == Receipt("s-1", "jane", degraded=False, expired=expired, same_content=True)
    assert read.matches("jane") is not expired


@pytest.mark.parametrize("secret", [CURRENT, OLD, RETIRED])
def test_receipts_stay_valid_after_a_secret_rotation(secret: bytes) -> None:
    assert RECEIPTS.read(order(note(writer(secret))), NOW) == OURS


@pytest.mark.parametrize(
    "changes",
    [
        {"order_items": [{**LINE, "quantity": 3}]},
        {"order_items": [{**LINE, "price": "9.99"}]},
        {"order_items": [{**LINE, "sku": "T"}]},
        {"order_items": [LINE, LINE]},
        {"order_items": [{**LINE, "discounts": "1.00"}]},
        {"discounts": "1.00"},
        {"currency": "EUR"},
    ],
)
def test_order_with_other_content_does_not_match(changes: dict[str, Any]) -> None:
    read = RECEIPTS.read(order(note(), **changes), NOW)
    assert read == Receipt("s-1", "jane", degraded=False, expired=False, same_content=False)
    assert not read.matches("jane")


@pytest.mark.parametrize(
    ("validated", "ordered", "matches"),
    [("jane", "jane", True), ("jane", "", True), ("", "jane", True), ("", "", True), ("jane", "joan", False)],
)
def test_receipt_matches_guest_or_same_customer_only(validated: str, ordered: str, matches: bool) -> None:
    read = RECEIPTS.read(order(note(customer=validated)), NOW)
    assert read is not None
    assert read.matches(ordered) is matches


# -- Receipts of the previous version ------------------------------------------------------------------------------


def first_version(secret: bytes = CURRENT, engine: str = "talon_one", at: int = int(NOW)) -> dict[str, Any]:
    content = receipt.content_of(order(None)).hex()
    message = json.dumps(["1", str(at), engine, "s-1", False, content], separators=(",", ":")).encode()
    key = hmac.digest(secret, b"promotions-mapper receipt 1", "sha256")
    mac = hmac.new(key, message, hashlib.sha256).hexdigest()
    return {"session": "s-1", "degraded": False, "receipt": f"1.{at}.{content}.{mac}"}


@pytest.mark.parametrize("secret", [CURRENT, OLD, RETIRED])
def test_receipt_of_the_previous_version_is_valid_until_it_expires(secret: bytes) -> None:
    body = order(first_version(secret))
    assert RECEIPTS.read(body, NOW) == Receipt("s-1", "", degraded=False, expired=False, same_content=True)
    later = RECEIPTS.read(body, NOW + DAY + 1)
    assert later is not None
    assert later.expired


@pytest.mark.parametrize(
    "touched",
    [
        first_version() | {"session": "s-2"},
        first_version() | {"session": None},
        first_version(b"another secret"),
        first_version(engine="voucherify"),
    ],
)
def test_unverifiable_receipt_of_the_previous_version_is_read_as_none(touched: dict[str, Any]) -> None:
    assert RECEIPTS.read(order(touched), NOW) is None


def test_same_content_matches_in_every_family_and_order() -> None:
    lines = [
        {"sku": "S", "quantity": 1, "price": "8.00", "discounts": "2.00"},
        {"sku": "T", "quantity": 1, "price": "1.00"},
    ]
    bodies: list[dict[str, Any]] = [
        {"order_items": lines},
        {"order_items": lines[::-1]},
        {"orders": [{"order_items": lines[:1]}, {"order_items": lines[1:]}]},
        {"items": [{"sku": "S", "quantity": 1, "price": "8.00", "total_discount": "2.00"}, lines[1]]},
    ]
    contents = {receipt.content_of(checkout.parse(json.dumps(body).encode(), "validate")) for body in bodies}
    assert len(contents) == 1


@pytest.mark.parametrize("total", ["n/a", "-1.00", 1e30])
def test_unreadable_total_counts_as_other_content(total: object) -> None:
    """A redeemed order must be answered from the ledger, even with an invalid total."""
    line = LINE | {"discounts": "2.00", "price": "6.00"}
    validated = order(None, order_items=[line])
    token = RECEIPTS.write("s-1", "jane", False, receipt.content_of(validated), NOW)
    written = {"session": "s-1", "degraded": False, "receipt": token}
    body = order(written, order_items=[line | {"discounts_amount": total}])
    read = RECEIPTS.read(body, NOW)
    assert read is not None
    assert not read.same_content
