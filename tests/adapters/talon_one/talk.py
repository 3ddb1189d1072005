"""What the tests of the Talon.One adapter share: carts, answers, and conversations held with them.

Answers follow the vendor's documentation; no network, no emulator.
"""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

from adapters.talon_one import TalonOne
from mapper.adapter import Conversation, Discount, EngineReply, EngineRequest, Outcome
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.errors import Operation
from tests.adapters.record import granted

ONE = {"BASE_URL": "https://shop.europe-west1.talon.one", "API_KEY": "0123456789abcdef"}
COSTS = {**ONE, "ADDITIONAL_COSTS": "shipping=/shipping_rate/price"}


def adapter(**options: str) -> TalonOne:
    return TalonOne({**ONE, **options})


def parse(body: dict[str, Any] | bytes, operation: Operation = "validate") -> Checkout:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return documents.parse(text, operation, customer_path="/customer/id")


def cart(*lines: tuple[str, int, str], codes: Iterable[str] = (), **more: Any) -> Checkout:
    """A checkout of these lines: sku, quantity, price. `promotions`: further fields next to `codes`."""
    items = [{"sku": sku, "quantity": quantity, "price": price} for sku, quantity, price in lines]
    promotions = {"coupon_codes": list(codes), **more.pop("promotions", {})}
    return parse({"items": items, "promotions": promotions, **more})


def reply(body: Any, status: int = 200) -> EngineReply:
    encode = msgspec.json.Encoder(decimal_format="number").encode
    return EngineReply(status=status, headers={}, body=body if isinstance(body, bytes) else encode(body))


def talk(conversation: Conversation[Any], *replies: EngineReply) -> tuple[list[EngineRequest], Any]:
    """Hold a conversation with these replies in order; all must be used. Return its requests and its outcome."""
    asked = [first(conversation)]
    for number, answer in enumerate(replies, 1):
        try:
            asked.append(one_request(conversation.send(answer)))
        except StopIteration as stop:
            assert number == len(replies), "an answer was not asked for"
            return asked, granted(stop.value)
    raise AssertionError(f"one more answer is asked for: {asked[-1]}")


def one_request(request: Any) -> EngineRequest:
    """Assert that this is a single request: the adapter sends no concurrent ones."""
    assert isinstance(request, EngineRequest)
    return request


def first(conversation: Conversation[Any]) -> EngineRequest:
    return one_request(next(conversation))


def body_of(request: EngineRequest) -> dict[str, Any]:
    """Return the body that is sent, with exact numbers."""
    body = msgspec.json.Decoder(float_hook=Decimal).decode(request.body)
    assert isinstance(body, dict)
    return body


def sent(conversation: Conversation[Any]) -> dict[str, Any]:
    """Return the customer session of the first request."""
    session = body_of(first(conversation))["customerSession"]
    assert isinstance(session, dict)
    return session


def effect(
    kind: str, props: dict[str, Any], campaign: int = 1, coupon: int | None = None, **more: Any
) -> dict[str, Any]:
    envelope = {"campaignId": campaign, "rulesetId": 73, "ruleIndex": 0, "ruleName": "Rule", **more}
    if coupon is not None:
        envelope["triggeredByCoupon"] = coupon
    return {**envelope, "effectType": kind, "props": props}


def per_item(value: Any, position: Any, name: str = "off", **more: Any) -> dict[str, Any]:
    props = {"name": f"{name}#{position}", "value": value, "position": position, "subPosition": 0}
    return effect("setDiscountPerItem", {**props, **more.pop("props", {})}, **more)


def closed(*effects: Any) -> EngineReply:
    """The answer to a close; a check reads only its effects."""
    return reply({"effects": list(effects), "customerSession": {"state": "closed"}})


def outcome(checkout: Checkout, effects: list[Any], campaigns: Any = (), **options: str) -> Outcome:
    answer = reply({"effects": effects, "triggeredCampaigns": campaigns})
    result = talk(adapter(**options).validate(checkout, "s"), answer)[1]
    assert isinstance(result, Outcome)
    return result


def amounts(result: Outcome) -> list[tuple[int | None, int]]:
    return [(discount.line, discount.amount) for discount in result.discounts]


def only(discounts: tuple[Discount, ...]) -> Discount:
    (discount,) = discounts
    return discount


def attempt(order: Checkout, name: str = "1") -> Checkout:
    """Return the order as the core passes it to `redeem`."""
    return msgspec.structs.replace(order, attempt=name)
