"""Sends mutated and random bodies to the service. `make fuzz` runs the long form.

Every answer must be one of the contract's, no error may be `internal`, and no call may block the event loop for long.
The engine answers every cart with the same effects, some of which do not fit.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from adapters.talon_one import replies
from adapters.voucherify import effects, reading
from adapters.voucherify.options import Settings
from adapters.voucherify.redeemables import Redeemable
from adapters.voucherify.replies import read_validation
from mapper.adapter import EngineReply
from mapper.domain import checkout as documents
from mapper.domain import document
from mapper.domain.errors import EngineUnavailable, InvalidRequest
from mapper.domain.families import family_of
from mapper.domain.lines import Line, Lines
from mapper.domain.signature import sign
from mapper.http import app
from mapper.ops.logs import log
from mapper.settings import load
from tests.fakes import new_ledger

SECRET = "a signing secret that is long enough"
LIMIT_BYTES = 20_000
ALLOWED = {"validate": {200, 400, 401, 403, 413, 422}, "consume": {200, 400, 401, 403, 413, 500}}

_EFFECTS: list[dict[str, Any]] = [
    {"effectType": "setDiscountPerItem", "props": {"name": "ten#0", "value": 9.999, "position": 0, "subPosition": 0}},
    {"effectType": "setDiscount", "props": {"name": "five", "value": 5}},
    {"effectType": "acceptCoupon", "props": {"value": "A"}},
    {"effectType": "showNotification", "props": {"notificationType": "Info", "title": "Hi", "body": "there"}},
]
_ENVELOPE = {"campaignId": 1, "rulesetId": 2, "ruleIndex": 0, "ruleName": "Ten"}
_STATE = {
    "customerSession": {"state": "closed"},
    "effects": [{**_ENVELOPE, **effect} for effect in _EFFECTS],
    "createdCoupons": [],
    "createdReferrals": [],
}

_LINE: dict[str, Any] = {
    "product_id": "p",
    "variant_id": "v",
    "sku": "S",
    "quantity": 2,
    "price": "19.99",
    "x": {"price": 1.10},
}
_REDUCED = {
    **_LINE,
    "price": "14.99",
    "total_discount": "10.00",
    "discounts": [{"amount": "10.00", "meta": {"list_price": "19.99"}}],
}
_PROMOTIONS = {
    "coupon_codes": ["A", "B"],
    "referral_code": "R",
    "loyalty_card": "card-1",
    "identifiers": ["1.2.3.4"],
    "meta": {"k": [1]},
}
_ORDER: dict[str, Any] = {
    "order_items": [{**_LINE, "discounts": "1.00", "applied_discounts": [{"amount": "1.00"}]}],
    "discounts": "1.00",
}
SEEDS: list[dict[str, Any]] = [
    {
        "id": "c-1",
        "currency": "USD",
        "items": [_LINE, _REDUCED],
        "promotions": _PROMOTIONS,
        "total_discount": "10.00",
        "discounts": [],
    },
    {
        "id": "o-1",
        "currency": "JPY",
        "order_items": [{**_LINE, "price": "20"}],
        "promotion": _PROMOTIONS,
        "applied_discounts": [],
    },
    {"id": "m-1", "orders": [_ORDER, {"order_items": []}], "promotion": _PROMOTIONS, "customer": {"id": "cust"}},
    {"id": 77, "order_items": [_LINE, {**_LINE, "price": 19.99, "discounts_amount": 0}], "promotions": _PROMOTIONS},
    {"id": "n", "items": [_REDUCED, {**_LINE, "quantity": 0}, {**_LINE, "sku": 5, "discounts": [{"amount": 1}]}]},
    {"order_items": [{**_LINE, "price_amount": None}, {**_LINE, "sku": None, "discounts": None}]},
    {
        **_ORDER,
        "source_id": "s",
        "promotions": {**_PROMOTIONS, "meta": {"mapper": {"session": "x", "receipt": "1.1.a.b"}}},
    },
]

_SESSION: dict[str, Any] = {
    "state": "open",
    "cartItems": [{"sku": "S", "quantity": 2, "price": 19.99}],
    "couponCodes": ["A"],
    "updateCount": 1,
}
REPLIES: list[dict[str, Any]] = [
    _STATE,
    {"effects": [], "triggeredCampaigns": None, "customerSession": _SESSION},
    {
        "effects": [{**_ENVELOPE, **_EFFECTS[0], "selectedPrice": 1.5}, {**_ENVELOPE, **_EFFECTS[2]}],
        "triggeredCampaigns": [{"id": 1, "name": "Ten", "description": "Ten off"}],
        "customerSession": _SESSION,
        "coupons": [{"id": 3, "value": "A"}],
        "ruleFailureReasons": [{"campaignID": 1, "couponValue": "A", "details": "too late"}],
    },
]

_ITEM = {"source_id": "S", "quantity": 2, "price": 1999, "applied_discount_amount": 100, "initial_quantity": 2}
_SHARE = {"items": [_ITEM], "items_applied_discount_amount": 100, "total_applied_discount_amount": 100}
_TEN: dict[str, Any] = {
    "status": "APPLICABLE",
    "id": "A",
    "object": "voucher",
    "order": _SHARE,
    "campaign_name": "Ten",
    "result": {"discount": {"type": "PERCENT", "percent_off": 2.5, "effect": "APPLY_TO_ITEMS"}},
}
_BAD = {"status": "INAPPLICABLE", "id": "B", "object": "voucher", "result": {"error": {"key": "voucher_expired"}}}
_ON_ORDER = {"items": [{**_ITEM, "applied_discount_amount": 0}], "applied_discount_amount": 50}
_GIFT = {**_TEN, "id": "B", "order": _ON_ORDER, "result": {"gift": {"balance": 9, "credits": 50}}}
_ADDED = {**_ITEM, "quantity": 3, "applied_quantity": 1, "applied_discount_amount": 1999}
_UNIT = {"type": "UNIT", "effect": "ADD_MISSING_ITEMS", "unit_type": "prod_1"}
_FREE_UNIT = {**_TEN, "order": {"items": [_ADDED]}, "result": {"discount": _UNIT}}
VALIDATIONS: list[dict[str, Any]] = [
    {"valid": True, "redeemables": [_TEN, _GIFT], "order": {**_SHARE, "total_applied_discount_amount": 150}},
    {"valid": True, "redeemables": [_TEN], "inapplicable_redeemables": [_BAD], "order": _SHARE, "stacking_rules": {}},
    {"valid": True, "redeemables": [{**_TEN, "order": None}, _BAD], "order": _SHARE, "tracking_id": "t"},
    {"valid": True, "redeemables": [_FREE_UNIT], "order": {"items": [], "items_applied_discount_amount": 1999}},
    {"valid": False, "redeemables": [_TEN, _BAD], "skipped_redeemables": None, "order": None},
]

_ODD: list[Callable[[random.Random], str]] = [
    lambda rng: rng.choice(["null", "true", "[]", "{}", '""', "-1", "0", "1e400", "1e1000000", "9" * 500, "0.1", "-0"]),
    lambda rng: json.dumps(rng.choice(["NaN", "1_000", " 1", "\u0663", "..", "a\r\nb", "\u202e", "\x00", "x" * 3000])),
    lambda rng: "[" * rng.choice([1, 50, 5000]),
    lambda rng: rng.choice(['{"a":1,"a":2}', "[1,]", '"\\ud800"', '"\\u0000"', "NaN", "Infinity", "01", "1."]),
]  # fmt: skip


@dataclass
class Report:
    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)
    """Seconds, in descending order."""


class _Wire:
    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        return EngineReply(status=200, headers={}, body=json.dumps(_STATE).encode())

    async def aclose(self) -> None:
        pass


def mutate(rng: random.Random, seeds: Sequence[dict[str, Any]] = SEEDS) -> bytes:
    """Return a valid body with a few faults, or random bytes."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(200))
    text = json.dumps(
        rng.choice(seeds), ensure_ascii=rng.random() < 0.5, separators=rng.choice([(",", ":"), (", ", ": ")])
    )
    if kind < 0.3:
        # Other valid prices, quantities and currencies.
        for old in ("19.99", "14.99", "10.00", ": 2", ":2", "JPY", "USD"):
            if rng.random() < 0.2:
                text = text.replace(old, rng.choice(["0.05", "0", "7", "1.1", "120.00", "KWD", ": 3", ":0"]), 1)
        return text.encode()
    if kind < 0.6:
        # Replace a few values by odd ones: mostly still JSON.
        starts = [at for at, char in enumerate(text) if char == ":"]
        for at in rng.sample(starts, rng.randint(1, 3)):
            end = next((i for i in range(at + 1, len(text)) if text[i] in ",}]"), len(text))
            text = text[: at + 1] + rng.choice(_ODD)(rng) + text[end:] if at < len(text) else text
        return text.encode()
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + rng.randrange(9)] = b""
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(5))
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case _:
                piece = data[at : at + rng.randrange(60)]
                data[at:at] = piece
    if rng.random() < 0.005:
        data += b" " * LIMIT_BYTES
    return bytes(data)


async def _call(
    application: Any, path: str, body: bytes, headers: list[tuple[bytes, bytes]], state: Any
) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
    await application(
        {**scope, "http_version": "1.1", "scheme": "http", "state": state, "asgi": {"version": "3.0"}}, receive, send
    )
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def fuzz(count: int, seed: int) -> Report:
    rng, report = random.Random(seed), Report()
    environment = {
        "MAPPER_ENGINE": "talon_one",
        "NACELLE_SIGNING_SECRETS": SECRET,
        "MAPPER_MAX_BODY_BYTES": str(LIMIT_BYTES),
    }
    environment |= {"TALON_ONE_BASE_URL": "https://engine.test", "TALON_ONE_API_KEY": "key", "NACELLE_SPACE_IDS": "one"}
    environment |= {"TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price", "TALON_ONE_ITEM_ATTRIBUTES": "X=/x"}
    environment["MAPPER_LEDGER_URL"] = new_ledger()
    application = app.create(load(environment), engine_transport=_Wire())
    async with application.router.lifespan_context(application):
        for _ in range(count):
            operation, body = rng.choice(["validate", "validate", "consume"]), mutate(rng)
            signature = (
                sign(body, SECRET.encode()) if rng.random() > 0.02 else rng.choice(["", "sha256=" + "0" * 64, "é"])
            )
            headers = {
                "x-nacelle-signature-sha256": signature,
                "x-nacelle-space-id": "one" if rng.random() > 0.01 else "two",
            }
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            started = time.perf_counter()
            status, answer = await _call(application, f"/promotions/{operation}", body, raw, {})
            report.slowest = sorted([*report.slowest, time.perf_counter() - started], reverse=True)[:5]
            report.sent += 1
            error = json.loads(answer).get("error") if status != 200 else None
            category = error["category"] if isinstance(error, dict) else ""
            report.statuses[f"{operation} {status} {category}".strip()] += 1
            if status not in ALLOWED[operation] or category == "internal" or (status == 500 and not category):
                report.faults.append(f"{operation} {status} {category}: {body!r}"[:600])
    return report


def compare_readers(count: int, seed: int) -> Report:
    """Read the lines of `count` bodies with both readers: what the quick one accepts, both must read alike."""
    rng, report = random.Random(seed), Report()
    for _ in range(count):
        body = mutate(rng)
        try:
            source = document.parse(body)
            family = family_of(source.decoded, "validate")
        except InvalidRequest:
            continue
        for path, order in family.orders(source.decoded):
            found = order.get(family.lines) if isinstance(order, dict) else None
            if isinstance(found, list):
                lines = Lines(source, (*path, family.lines), "/lines", family, rng.choice([0, 2, 3]), 7)
                typed, sure, both = (
                    _read(read, found) for read in (lines.read_typed, lines.read_one_by_one, lines.read)
                )
                report.sent += 1
                report.statuses[
                    "refused" if isinstance(sure, str) else "one by one" if isinstance(typed, str) else "typed"
                ] += 1
                if both != sure or not (isinstance(typed, str) or typed == sure):
                    report.faults.append(f"{body!r}: {typed!r}, {sure!r}, {both!r}"[:600])
    return report


def _read(read: Callable[[list[Any]], tuple[Line, ...]], lines: list[Any]) -> tuple[Line, ...] | str:
    """Return the lines, or their fault."""
    try:
        return read(lines)
    except InvalidRequest as refused:
        return f"{refused.pointer}: {refused.message}"
    except Exception as error:  # noqa: BLE001 - the quick reader leaves any failure to the other one
        return repr(error)


def compare_replies(count: int, seed: int) -> Report:
    """Read `count` answers of Talon.One with both readers: what one pass accepts, both must read alike."""
    rng, report = random.Random(seed), Report()
    for _ in range(count):
        body = mutate(rng, REPLIES)
        typed, sure = replies.read_in_one_pass(body), replies.read_one_by_one(body)
        report.sent += 1
        report.statuses["typed" if typed else "one by one" if sure else "refused"] += 1
        if typed and (sure is None or _as_json(typed) != _as_json(sure)):
            report.faults.append(f"{body!r}: {_as_json(typed)!r}, {sure and _as_json(sure)!r}"[:600])
    return report


def compare_validations(count: int, seed: int) -> Report:
    """Read `count` validations of Voucherify with its orders decoded at once, and value by value: both must agree."""
    rng, report = random.Random(seed), Report()
    for _ in range(count):
        reply = EngineReply(status=200, headers={}, body=mutate(rng, VALIDATIONS))
        quick, careful = _granted(reply, reading.validation), _granted(reply, reading.document)
        report.sent += 1
        report.statuses[
            "refused" if careful.startswith("Voucherify") else "typed" if _is_typed(reply) else "one by one"
        ] += 1
        if quick != careful:
            report.faults.append(f"{reply.body!r}: {quick}, {careful}"[:600])
    return report


def _granted(reply: EngineReply, decode: Callable[[EngineReply], Any]) -> str:
    """Return the outcome of a validation, or its fault."""
    cart = documents.parse(json.dumps({"items": [_LINE]}).encode(), "validate")
    redeemables = [Redeemable("voucher", "A", 0), Redeemable("voucher", "B", 1)]
    try:
        validation = read_validation(reply, redeemables, decode)
        return f"{effects.outcome(validation, cart, Settings())} {[*validation.inapplicable.items()]}"
    except EngineUnavailable as refused:
        return refused.message


def _is_typed(reply: EngineReply) -> bool:
    redeemables = reading.validation(reply).get("redeemables", ())
    return any(isinstance(one.get("order"), reading.Amounts) for one in redeemables)


def _as_json(state: replies.State) -> bytes:
    """Return everything read from an answer as JSON text, so that a NaN equals itself."""
    found = (
        state.effects,
        state.campaigns,
        state.session,
        state.coupons,
        state.rule_failures,
        state.extra_content,
    )
    return msgspec.json.encode(found)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    log.setLevel(logging.CRITICAL)
    readers = compare_readers(chosen.count, chosen.seed)
    print(f"{readers.sent} lists of lines read in both ways: {dict(readers.statuses)}")
    answers = compare_replies(chosen.count, chosen.seed)
    print(f"{answers.sent} answers of the engine read in both ways: {dict(answers.statuses)}")
    validations = compare_validations(chosen.count, chosen.seed)
    print(f"{validations.sent} validations of Voucherify read in both ways: {dict(validations.statuses)}")
    report = asyncio.run(fuzz(chosen.count, chosen.seed))
    report.faults += [*readers.faults, *answers.faults, *validations.faults]
    print(
        f"{report.sent} bodies, seed {chosen.seed}; slowest {', '.join(f'{s * 1000:.1f}' for s in report.slowest)} ms"
    )
    for what, number in sorted(report.statuses.items()):
        print(f"  {number:8} {what}")
    for fault in report.faults[:20]:
        print(f"FAULT {fault}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
