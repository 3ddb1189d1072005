import json
from typing import Any

import pytest

from mapper.domain import checkout, receipt
from mapper.domain.errors import Forbidden
from mapper.domain.receipt import Receipt, Receipts

NOW = 1_800_000_000.0
RECEIPTS = Receipts((b"the current secret", b"the old secret"), "talon_one", 86_400)
LINE = {"sku": "S", "quantity": 2, "price": "10.00"}


def order(note: dict[str, Any] | None, **changes: Any) -> checkout.Checkout:
    body = {"order_items": [LINE], "promotions": {"meta": {"mapper": note} if note is not None else {}}, **changes}
    return checkout.parse(json.dumps(body).encode(), "consume")


def note(
    session: str = "s-1", *, degraded: bool = False, receipts: Receipts = RECEIPTS, at: float = NOW
) -> dict[str, Any]:
    token = receipts.write(session, degraded, receipt.content_of(order(None)), at)
    return {"session": session, "degraded": degraded, "receipt": token}


def test_what_was_written_can_be_read() -> None:
    assert RECEIPTS.read(order(note()), NOW) == Receipt("s-1", degraded=False, matches=True)
    assert RECEIPTS.read(order(note(degraded=True)), NOW) == Receipt("s-1", degraded=True, matches=True)


@pytest.mark.parametrize("missing", [None, {}, {"session": "s-1"}, {"session": "s-1", "receipt": None}])
def test_no_receipt_is_no_fault(missing: dict[str, Any] | None) -> None:
    assert RECEIPTS.read(order(missing), NOW) is None


@pytest.mark.parametrize(
    "change",
    [
        {"session": "s-2"},
        {"degraded": True},
        {"degraded": "no"},
        {"session": None},
        {"session": 1},
        {"receipt": 1},
        {"receipt": ""},
        {"receipt": "1.1800000000." + "0" * 64 + "." + "0" * 64},
        {"receipt": "2" + note()["receipt"][1:]},
        {"receipt": note()["receipt"].replace("1800000000", "1800000001")},
        {"receipt": note()["receipt"] + "\n"},
        {"receipt": note(receipts=Receipts((b"somebody else's",), "talon_one", 1))["receipt"]},
        {"receipt": note(receipts=Receipts((b"the current secret",), "voucherify", 1))["receipt"]},
    ],
)
def test_a_receipt_that_was_touched_is_forged(change: dict[str, Any]) -> None:
    with pytest.raises(Forbidden) as refusal:
        RECEIPTS.read(order({**note(), **change}), NOW)
    assert refusal.value.reason == "forged_receipt"


@pytest.mark.parametrize(("age", "valid"), [(0, True), (86_400, True), (86_401, False), (-300, True), (-301, False)])
def test_a_receipt_is_good_for_its_time(age: int, valid: bool) -> None:
    assert (RECEIPTS.read(order(note()), NOW + age) is not None) is valid


def test_a_receipt_of_the_old_secret_is_still_good_after_rotation() -> None:
    old = Receipts((b"the old secret",), "talon_one", 86_400)
    assert RECEIPTS.read(order(note(receipts=old)), NOW) is not None


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
def test_an_order_with_other_content_does_not_match(changes: dict[str, Any]) -> None:
    read = RECEIPTS.read(order(note(), **changes), NOW)
    assert read is not None
    assert not read.matches


def test_the_same_content_matches_in_every_family_and_order() -> None:
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
