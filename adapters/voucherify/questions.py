"""What Voucherify is asked: which codes and promotions, about which cart, in which requests.

Amounts are sent in whole units of the project's smallest amount (`Settings.exponent`, usually cents), and always at
list prices.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from adapters.voucherify.options import MAX_REDEEMABLES, TIER_ID, MetadataList, Settings
from mapper.adapter import Checkout, EngineRejected, EngineRequest, InvalidRequest, Line, Reason, Rejection

MAX_ITEMS = 500
MAX_CODE = 100

# Voucherify takes its own ids in place of a code, so a shopper who learned one would not need the code.
_INTERNAL_ID = re.compile(r"(?:v|promo|stack)_")

_JSON = (("Content-Type", "application/json"),)
_EXPAND = {"expand": ["order", "redeemable"]}
_encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True, slots=True)
class Redeemable:
    """Something Voucherify is asked to apply: a code a shopper typed in, or a promotion that needs none."""

    object: Literal["voucher", "promotion_tier", "order"]
    id: str
    position: int = 0
    """Its place in the request: the place decides what is applied first."""
    spend: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """How much of a gift card, or which reward of a loyalty card."""

    @property
    def code(self) -> str:
        return self.id if self.object == "voucher" else ""

    def body(self) -> dict[str, Any]:
        return {"object": self.object, "id": self.id, **self.spend}


# --- What is asked for -----------------------------------------------------------------------------------------------


def codes(
    checkout: Checkout, settings: Settings, leave_out: frozenset[str]
) -> tuple[list[Redeemable], list[Rejection]]:
    """The codes to send, and those that need no engine to be refused.

    Codes that differ in case alone count as one: in a project that ignores case, Voucherify refuses the whole call.
    """
    asked: list[Redeemable] = []
    refused: list[Rejection] = []
    seen: set[str] = set()
    credits_by_code = _gift_credits(checkout, settings)
    for code in checkout.promotions.codes:
        if code.casefold() in seen or code in leave_out:
            continue
        seen.add(code.casefold())
        spend = _spend(code, checkout, settings, credits_by_code)
        if len(code) > MAX_CODE:
            refused.append(Rejection(code, Reason.MALFORMED, ""))
        elif _INTERNAL_ID.match(code):
            refused.append(Rejection(code, Reason.NOT_FOUND, ""))
        elif spend is None:
            # Sent without a reward, a loyalty card may cost the shopper the answer about all other codes.
            refused.append(Rejection(code, Reason.REWARD_REQUIRED, "missing_reward"))
        elif len(asked) == MAX_REDEEMABLES:
            refused.append(Rejection(code, Reason.TOO_MANY_CODES, ""))
        else:
            asked.append(Redeemable("voucher", code, spend=spend))
    return asked, refused


def arrange(coded: Sequence[Redeemable], tiers: Iterable[str], settings: Settings) -> list[Redeemable]:
    """Codes and promotions in the order in which they shall be applied, as many as Voucherify takes."""
    room = MAX_REDEEMABLES - len(coded)
    chosen = [Redeemable("promotion_tier", tier) for tier in dict.fromkeys(tiers)][:room]
    order = [*chosen, *coded] if settings.promotions_first else [*coded, *chosen]
    return [Redeemable(one.object, one.id, position, one.spend) for position, one in enumerate(order)]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the body says the shopper was shown at validate: noted by us in the discounts and in the notices."""

    tiers: tuple[str, ...]
    refused: frozenset[str]
    """Codes that were refused then, and so earned nothing."""


def shown(order: Checkout, settings: Settings) -> Shown:
    """Reads our own notes back. They travelled through the merchant's front end, so they may only narrow.

    A code whose discount stands in the order is redeemed whatever the notes say, and only promotions are taken that
    validate would have offered.
    """
    ours = order.promotions.meta.get("mapper")
    notes: dict[str, Any] = ours if isinstance(ours, dict) else {}
    entries = [entry.get("meta") for _, entry in order.applied()]
    carried = {str(meta.get("code")) for meta in entries if isinstance(meta, dict)}
    entries += [notice.get("payload") for notice in _objects(notes.get("notices"))]
    found: dict[str, int] = {}
    for meta in entries:
        if isinstance(meta, dict) and meta.get("object") == "promotion_tier":
            tier, position = _text(meta.get("redeemable")), meta.get("position")
            if TIER_ID.fullmatch(tier):
                found.setdefault(tier, position if isinstance(position, int) else MAX_REDEEMABLES)
    allowed = {"off": set[str](), "listed": found.keys() & set(settings.tiers), "qualify": set(found)}
    entered = [_text(entry.get("code")) for entry in _objects(notes.get("rejected"))]
    refused = {order.promotions.codes_as_entered.get(text, text) for text in entered}
    return Shown(
        tiers=tuple(sorted(allowed[settings.promotions], key=lambda tier: (found[tier], tier))),
        refused=frozenset(refused - carried),
    )


def _gift_credits(checkout: Checkout, settings: Settings) -> dict[str, int]:
    """How much of which gift card to spend, in the engine's units, where the shopper chose."""
    here = "".join(f"/{key}" for key in checkout.promotions_at) + f"/meta{settings.gift_credits}"
    chosen = checkout.at(here) if checkout.promotions.meta else None
    if chosen is None:
        return {}
    if not isinstance(chosen, dict):
        raise InvalidRequest("The gift credits are not an object of code and amount.", here)
    result: dict[str, int] = {}
    for code in chosen:
        pointer = f"{here}/{code.replace('~', '~0').replace('/', '~1')}"
        minor = checkout.amount_at(pointer)
        if not minor:
            raise InvalidRequest("The amount to spend from a gift card is not above zero.", pointer)
        result[code] = to_engine(minor, checkout.digits, settings.exponent)
    return result


def _spend(
    code: str, checkout: Checkout, settings: Settings, credits_by_code: Mapping[str, int]
) -> dict[str, Any] | None:
    """What a card needs beside its code; None where a loyalty card lacks its reward."""
    if code.casefold() == checkout.promotions.loyalty_card.casefold():
        chosen = _object(checkout.promotions.meta.get("reward"))
        reward: dict[str, Any] = {"id": _text(chosen.get("id")) or settings.reward_id}
        points = chosen.get("points")
        if isinstance(points, int) and not isinstance(points, bool) and points > 0:
            reward["points"] = points
        return {"reward": reward} if reward["id"] else None
    return {"gift": {"credits": credits_by_code[code]}} if code in credits_by_code else {}


Effect = Literal["none", "session", "redeems"]

# --- Requests --------------------------------------------------------------------------------------------------------


def validation(checkout: Checkout, session: str, asked: Sequence[Redeemable], settings: Settings) -> EngineRequest:
    """Without effect but for the session lock, which the same key overwrites."""
    # No order.source_id: if Voucherify knew it, it would price the order it has stored, not the one it is sent.
    body = _body(checkout, asked, settings)
    if settings.lock_ttl:
        body["session"] = {**_lock(session), "ttl": settings.lock_ttl, "ttl_unit": "SECONDS"}
    effect: Effect = "session" if settings.lock_ttl else "none"
    return _post("validate", "/v1/validations", body, effect=effect)


def redemption(order: Checkout, session: str, asked: Sequence[Redeemable], settings: Settings) -> EngineRequest:
    """For good. Voucherify knows no idempotency key: sent twice, it may redeem twice."""
    body = _body(order, asked, settings)
    body["order"] = {"source_id": session, "status": "PAID", **body["order"]}
    if settings.lock_ttl:
        body["session"] = _lock(session)
    return _post("redeem", "/v1/redemptions", body, effect="redeems")


def qualification(checkout: Checkout, count: int, settings: Settings) -> EngineRequest:
    """Which promotions may suit this cart. Candidates only: Voucherify ignores several limits here and caches."""
    body: dict[str, Any] = {
        "scenario": "ALL",
        **_customer(checkout, settings),
        "order": _order(checkout, settings),
        "options": {
            "limit": count,
            "filters": {"junction": "and", "resource_type": {"conditions": {"$is": ["promotion_tier"]}}},
            "sorting_rule": "BEST_DEAL",
        },
    }
    if metadata := _metadata(checkout.at, settings.redemption_metadata):
        body["metadata"] = metadata
    return _post("qualify", "/v1/qualifications", body, effect="none")


def stored_order(session: str) -> EngineRequest:
    path = f"/v1/orders/{quote(session, safe='')}"
    return EngineRequest(operation="read order", method="GET", path=path, effect="none", repeatable=True)


def stored_redemption(redemption_id: str) -> EngineRequest:
    path = f"/v1/redemptions/{quote(redemption_id, safe='')}"
    return EngineRequest(operation="read redemption", method="GET", path=path, effect="none", repeatable=True)


def rollback(redemption_id: str) -> EngineRequest:
    """Takes back a redemption, with all its children if it is a parent. A second time changes nothing more."""
    path = f"/v1/redemptions/{quote(redemption_id, safe='')}/rollbacks"
    return _post("roll back", path, {"reason": "Not wanted by the order"}, effect="session")


def _post(operation: str, path: str, body: Mapping[str, Any], *, effect: Effect) -> EngineRequest:
    return EngineRequest(
        operation=operation,
        method="POST",
        path=path,
        body=_encode(body),
        headers=_JSON,
        effect=effect,
        repeatable=effect != "redeems",
    )


def _body(checkout: Checkout, asked: Sequence[Redeemable], settings: Settings) -> dict[str, Any]:
    body: dict[str, Any] = {
        "redeemables": [one.body() for one in asked],
        "order": _order(checkout, settings),
        **_customer(checkout, settings),
        "options": _EXPAND,
    }
    if metadata := _metadata(checkout.at, settings.redemption_metadata):
        body["metadata"] = metadata
    return body


def _lock(session: str) -> dict[str, Any]:
    return {"type": "LOCK", "key": f"nacelle:{session}"}


def _order(checkout: Checkout, settings: Settings) -> dict[str, Any]:
    if len(checkout.cart) > MAX_ITEMS:
        message = f"The cart has {len(checkout.cart)} lines; Voucherify takes {MAX_ITEMS}."
        raise EngineRejected(message, reason="too_many_lines")
    items = [_item(checkout, line, settings) for line in checkout.cart]
    order: dict[str, Any] = {"amount": sum(item["amount"] for item in items), "items": items}
    if metadata := _metadata(checkout.at, settings.order_metadata):
        order["metadata"] = metadata
    return order


def _item(checkout: Checkout, line: Line, settings: Settings) -> dict[str, Any]:
    price = to_engine(line.list_price, checkout.digits, settings.exponent)
    source_id, related_object = line_name(line, settings)
    item: dict[str, Any] = {
        "source_id": source_id,
        "related_object": related_object,
        "quantity": line.quantity,
        "price": price,
        "amount": price * line.quantity,
    }
    # The other name too, so that rules on products and rules on SKUs both match.
    if related_object == "sku" and line.product_id:
        item["product"] = {"source_id": line.product_id}
    elif related_object == "product" and (other := line.sku or line.variant_id):
        item["sku"] = {"source_id": other}
    if metadata := _metadata(lambda pointer: checkout.at_line(line, pointer), settings.item_metadata):
        item["metadata"] = metadata
    return item


def line_name(line: Line, settings: Settings) -> tuple[str, str]:
    """What the merchant's catalogue in Voucherify calls this line: (source_id, related_object)."""
    chosen = {"sku": line.sku, "variant_id": line.variant_id, "product_id": line.product_id}[settings.item_id]
    if chosen:
        return chosen, settings.related_object
    return line.name, "sku" if line.sku or line.variant_id else "product"


def _customer(checkout: Checkout, settings: Settings) -> dict[str, Any]:
    """The shopper by the merchant's own id. Voucherify's `customer.id` means its own ids, so it is never sent."""
    value = checkout.at(settings.customer_id_path)
    source_id = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not source_id.strip():
        return {}
    customer: dict[str, Any] = {"source_id": source_id.strip()}
    if metadata := _metadata(checkout.at, settings.customer_metadata):
        customer["metadata"] = metadata
    return {"customer": customer}


def _metadata(at: Callable[[str], Any], allowed: MetadataList) -> dict[str, Any]:
    found = {name: at(pointer) for name, pointer in allowed}
    return {name: value for name, value in found.items() if value is not None}


def to_engine(minor: int, digits: int, exponent: int) -> int:
    """Minor units of the currency as the engine's units; an amount that the engine cannot express is refused."""
    if exponent >= digits:
        return int(minor * 10 ** (exponent - digits))
    units, rest = divmod(minor, 10 ** (digits - exponent))
    if rest:
        message = f"An amount has more digits than the {exponent} of the Voucherify project."
        raise EngineRejected(message, reason="inexact_amount")
    return int(units)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
