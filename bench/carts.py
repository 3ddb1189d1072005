"""What is sent, and what the engine answers: carts of any size with a discount on every unit of every line.

A session id, `lines-20-wait-30-7`, says which cart it is (20 lines), how long the engine is to take (30 ms), and which
of a few equal carts with other ids: the engine needs to know nothing else, and can answer with bytes made beforehand.
"""

import json
from functools import cache
from typing import Any

from mapper.domain.signature import SIGNATURE, sign

SECRET = b"a secret for the bench alone"
CODE = "SUMMER-10"
VARIANTS = 16
"""Equal carts with ids of their own, so that nobody profits from seeing the same URL again and again."""

_CAMPAIGNS = {
    71: ("10 % off all summer articles, new arrivals included", "Summer sale: 10 % off all summer articles"),
    72: ("5 off any order with the code of the newsletter", "Thank you for reading our newsletter"),
}


def session_id(lines: int, wait_ms: int, variant: int) -> str:
    return f"lines-{lines}-wait-{wait_ms}-{variant}"


def quantity(position: int) -> int:
    return 1 + position % 2


def cents(position: int) -> int:
    """The list price of one unit. It ends in 90, so that a tenth of it is whole."""
    return (19 + position * 7 % 80) * 100 + 90


def money(amount: int) -> str:
    return f"{amount // 100}.{amount % 100:02d}"


@cache
def checkout(lines: int, wait_ms: int, variant: int) -> bytes:
    """Nacelle's checkout (family A), about 450 bytes a line."""
    items = [
        {
            "product_id": f"gid://shop/Product/{7_000_000 + position}",
            "variant_id": f"gid://shop/ProductVariant/{41_000_000 + position}",
            "sku": f"SKU-{position:05d}",
            "quantity": quantity(position),
            "price": money(cents(position)),
            "title": f"Linen shirt No. {position}, garment-dyed, relaxed fit",
            "product_handle": f"linen-shirt-no-{position}-garment-dyed-relaxed-fit",
            "image": f"https://images.shop.example/products/{position:05d}/front.jpg?width=600&quality=80",
            "weight": 0.35,
            "metafields": [{"key": "color", "value": "sage"}, {"key": "size", "value": "M"}],
        }
        for position in range(lines)
    ]
    body = {
        "id": session_id(lines, wait_ms, variant),
        "currency": "USD",
        "customer": {"id": f"customer-{variant}", "email": "shopper@shop.example"},
        "items": items,
        "shipping_rate": {"name": "Standard", "price": "15.00"},
        "promotions": {
            "coupon_codes": [CODE],
            "referral_code": "",
            "loyalty_card": "",
            "identifiers": ["203.0.113.7"],
            "meta": {},
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


@cache
def order(lines: int, wait_ms: int, variant: int) -> bytes:
    """The order of such a cart as consume gets it (family B), with nothing taken off."""
    body = json.loads(checkout(lines, wait_ms, variant))
    body["order_items"] = body.pop("items")
    return json.dumps(body, separators=(",", ":")).encode()


@cache
def reply(lines: int) -> bytes:
    """Talon.One's answer: an effect for each unit of each line, a code accepted, a discount on the whole, a message."""
    units = [(position, unit) for position in range(lines) for unit in range(quantity(position))]
    effects = [_on_unit(position, unit) for position, unit in units]
    effects += [
        _effect(72, "acceptCoupon", {"value": CODE}, coupon=9001),
        _effect(72, "setDiscount", {"name": "Five off", "value": 5, "scope": "sessionTotal"}, coupon=9001),
        _effect(71, "showNotification", {"notificationType": "Info", "title": "Summer sale", "body": "10 % off"}),
    ]
    state = {
        "effects": effects,
        "createdCoupons": [],
        "createdReferrals": [],
        "triggeredCampaigns": [_campaign(number, *texts) for number, texts in _CAMPAIGNS.items()],
    }
    return json.dumps(state, separators=(",", ":")).encode()


def _on_unit(position: int, unit: int) -> dict[str, Any]:
    off = cents(position) / 1000
    props = {
        "name": f"10 % off all summer articles#{position}",
        "value": off,
        "scope": "price",
        "position": position,
        "subPosition": unit,
        "desiredValue": off,
        "excludedFromPriceHistory": False,
    }
    return _effect(71, "setDiscountPerItem", props)


def _effect(campaign: int, kind: str, props: dict[str, Any], coupon: int | None = None) -> dict[str, Any]:
    envelope: dict[str, Any] = {
        "campaignId": campaign,
        "rulesetId": campaign + 100,
        "ruleIndex": 0,
        "ruleName": _CAMPAIGNS[campaign][0],
        "effectType": kind,
        "conditionIndex": 0,
        "evaluationGroupID": 3,
        "evaluationGroupMode": "stackable",
        "campaignRevisionId": 4711,
        "campaignRevisionVersionId": 4712,
    }
    return {**envelope, **({"triggeredByCoupon": coupon} if coupon else {}), "props": props}


def _campaign(number: int, name: str, description: str) -> dict[str, Any]:
    return {
        "id": number,
        "created": "2026-05-01T08:00:00Z",
        "applicationId": 5,
        "userId": 8,
        "name": name,
        "description": description,
        "startTime": "2026-06-01T00:00:00Z",
        "attributes": {},
        "state": "enabled",
        "activeRulesetId": number + 100,
        "tags": ["summer"],
        "features": ["coupons"],
        "limits": [{"action": "redeemCoupon", "limit": 100000, "entities": ["Coupon"]}],
        "frontendState": "running",
        "storesImported": False,
        "type": "advanced",
    }


TIER = "promo_bench1s4ummer5a1e"
"""Voucherify's name for the discount on every line."""


@cache
def voucherify_reply(lines: int) -> bytes:
    """Voucherify's answer to the same cart: a promotion on all lines, a code on the whole; each repeats the order."""
    off = [cents(position) // 10 * quantity(position) for position in range(lines)]
    nothing = [0] * lines
    rules = {"redeemables_limit": 30, "applicable_redeemables_limit": 5, "redeemables_application_mode": "ALL"}
    shares = [
        _redeemable("promotion_tier", TIER, "APPLY_TO_ITEMS", {"type": "PERCENT", "percent_off": 10}, off, 0, off, 0),
        _redeemable("voucher", CODE, "APPLY_TO_ORDER", {"type": "AMOUNT", "amount_off": 500}, nothing, 500, off, 500),
    ]
    state = {
        "valid": True,
        "redeemables": shares,
        "order": _order(off, 500, off, 500),
        "tracking_id": "track_bench",
        "stacking_rules": rules,
    }
    return json.dumps(state, separators=(",", ":")).encode()


def _redeemable(kind: str, name: str, effect: str, discount: dict[str, Any], *amounts: Any) -> dict[str, Any]:
    empty = {"data": [], "total": 0, "data_ref": "data", "object": "list"}
    return {
        "status": "APPLICABLE",
        "id": name,
        "object": kind,
        "order": _order(*amounts),
        "applicable_to": empty,
        "inapplicable_to": empty,
        "result": {"discount": {**discount, "effect": effect, "is_dynamic": False}},
        "metadata": {},
        "categories": [],
        "campaign_name": _CAMPAIGNS[71 if kind == "promotion_tier" else 72][0],
        "campaign_id": "camp_bench",
        "name": _CAMPAIGNS[71 if kind == "promotion_tier" else 72][0],
    }


def _order(off: list[int], off_whole: int, off_before: list[int], off_whole_before: int) -> dict[str, Any]:
    """An order in an answer: what its own redeemable takes off, and what is off by then."""
    amounts = [cents(position) * quantity(position) for position in range(len(off))]
    total, before = sum(off) + off_whole, sum(off_before) + off_whole_before
    return {
        "amount": sum(amounts),
        "discount_amount": off_whole_before,
        "applied_discount_amount": off_whole,
        "items_discount_amount": sum(off_before),
        "items_applied_discount_amount": sum(off),
        "total_discount_amount": before,
        "total_applied_discount_amount": total,
        "total_amount": sum(amounts) - before,
        "items": [_ordered(position, *both) for position, both in enumerate(zip(off, off_before, strict=True))],
        "metadata": {},
        "customer_id": None,
        "referrer_id": None,
        "object": "order",
    }


def _ordered(position: int, off: int, off_before: int) -> dict[str, Any]:
    amount = cents(position) * quantity(position)
    return {
        "object": "order_item",
        "source_id": f"SKU-{position:05d}",
        "related_object": "sku",
        "product_id": f"prod_{position:018d}",
        "sku_id": f"sku_{position:018d}",
        "quantity": quantity(position),
        "amount": amount,
        "discount_amount": off_before,
        "applied_discount_amount": off,
        "price": cents(position),
        "subtotal_amount": amount - off_before,
        "product": {"id": f"prod_{position:018d}", "source_id": f"gid://shop/Product/{7_000_000 + position}"},
        "sku": {"id": f"sku_{position:018d}", "source_id": f"SKU-{position:05d}", "price": cents(position)},
    }


def expected(lines: int) -> dict[str, Any]:
    """What a right answer says: the total, and each line's new unit price and total discount."""
    off = [cents(position) // 10 * quantity(position) for position in range(lines)]
    return {
        "total": money(sum(off) + 500),
        "lines": [(money(cents(position) * 9 // 10), money(off[position])) for position in range(lines)],
    }


def signed_request(path: str, body: bytes, secret: bytes = SECRET, request_id: str = "") -> bytes:
    """The bytes of a call as Nacelle makes it."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: mapper.example\r\nContent-Type: application/json\r\n"
        f"{SIGNATURE.decode()}: {sign(body, secret)}\r\nx-nacelle-space-id: shop\r\nContent-Length: {len(body)}\r\n"
        + (f"x-request-id: {request_id}\r\n\r\n" if request_id else "\r\n")
    )
    return head.encode() + body
