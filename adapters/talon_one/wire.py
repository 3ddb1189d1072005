"""Talon.One's JSON: only the fields that are used here, in the vendor's own words.

Written after the Integration API's specification of August 2026 (https://docs.talon.one/integration-api). What is not
listed may come, go or change without harm. Requests are strict, replies are read leniently:

- every effect and campaign is decoded on its own, so that one which cannot be read loses nothing but itself;
- a `number` may come as 1, 1.0 or "1", and its digits stay exact (`Decimal`): 9.999 stays 9.999;
- a list that is null counts as empty.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------------------
# What is sent: https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2


class AdditionalCost(msgspec.Struct, frozen=True):
    price: Decimal


class CartItem(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """https://docs.talon.one/docs/dev/concepts/entities/customer-sessions; `price` is the list price of one unit."""

    sku: str
    quantity: int
    price: Decimal
    attributes: dict[str, Any] | UnsetType = UNSET
    additional_costs: dict[str, AdditionalCost] | UnsetType = UNSET


class CustomerSession(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A PUT merges: a field that is left out keeps its old value. So what may have gone is always sent, if empty."""

    profile_id: str
    store_integration_id: str | UnsetType = UNSET
    coupon_codes: tuple[str, ...]
    referral_code: str
    loyalty_cards: tuple[str, ...]
    state: str
    cart_items: tuple[CartItem, ...]
    additional_costs: dict[str, AdditionalCost] | UnsetType = UNSET
    identifiers: tuple[str, ...]
    attributes: dict[str, Any] | UnsetType = UNSET


class IntegrationRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    customer_session: CustomerSession
    # Without it the answer is effects alone; with it come the campaigns' names and descriptions, for shoppers.
    response_content: tuple[str, ...] = ("triggeredCampaigns",)


encode = msgspec.json.Encoder(decimal_format="number").encode

# ---------------------------------------------------------------------------------------------------------------------
# What comes back


class IntegrationState(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a PUT. Without `effects` it is no answer."""

    effects: Raw
    """For `effects` below."""
    triggered_campaigns: list[Raw] | None = None


class Effect(msgspec.Struct, frozen=True, rename="camel"):
    """What all effects have in common: https://docs.talon.one/docs/dev/integration-api/api-effects"""

    effect_type: str
    props: Raw = Raw(b"{}")
    campaign_id: int | None = None
    ruleset_id: int | None = None
    rule_index: int | None = None
    rule_name: str | None = None
    triggered_by_coupon: int | None = None
    selected_price: Decimal | None = None


class _BareEffect(msgspec.Struct, frozen=True, rename="camel"):
    """An effect whose ids cannot be read: it is what it does that counts."""

    effect_type: str
    props: Raw = Raw(b"{}")


class DiscountProps(msgspec.Struct, frozen=True, rename="camel"):
    """The props of all four effects that take money off.

    https://docs.talon.one/docs/dev/integration-api/api-effects#setdiscount, #setdiscountperitem,
    #setdiscountperadditionalcost, #setdiscountperadditionalcostperitem
    """

    value: Decimal
    name: str | None = None
    scope: str | None = None
    position: int | Decimal | None = None
    total_discount: Decimal | None = None
    bundle_name: str | None = None
    additional_cost: str | None = None


class CodeProps(msgspec.Struct, frozen=True, rename="camel"):
    """acceptCoupon, rejectCoupon and the same of referrals: .../api-effects#rejectcoupon"""

    value: str
    rejection_reason: str | None = None
    campaign_exclusion_reason: str | None = None


class Campaign(msgspec.Struct, frozen=True, rename="camel"):
    id: int
    name: str | None = None
    description: str | None = None


class StoredItem(msgspec.Struct, frozen=True, rename="camel"):
    sku: str
    quantity: int
    price: Decimal | None = None


class StoredSession(msgspec.Struct, frozen=True, rename="camel"):
    """https://docs.talon.one/integration-api#tag/Customer-sessions/operation/getCustomerSession"""

    state: str | None = None
    cart_items: list[StoredItem] | None = None
    coupon_codes: list[str] | None = None
    referral_code: str | None = None
    loyalty_cards: list[str] | None = None


class SessionReply(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a GET: the effects that are still valid after rollbacks."""

    customer_session: StoredSession | None = None
    effects: Raw = Raw(b"null")


class ErrorSource(msgspec.Struct, frozen=True):
    pointer: str | None = None


class APIError(msgspec.Struct, frozen=True):
    title: str | None = None
    details: str | None = None
    source: ErrorSource | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    """https://docs.talon.one/docs/dev/getting-started/errors; `errors` may be null."""

    message: str | None = None
    errors: list[APIError] | None = None


def _lenient(kind: type[T]) -> "msgspec.json.Decoder[T]":
    return msgspec.json.Decoder(kind, strict=False, float_hook=Decimal)


STATE = _lenient(IntegrationState)
SESSION = _lenient(SessionReply)
DISCOUNT = _lenient(DiscountProps)
CODE = _lenient(CodeProps)
ERROR = _lenient(ErrorReply)
PLAIN: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(float_hook=Decimal)
_EFFECTS = _lenient(list[Effect])
_TEXTS = _lenient(list[Raw])
_EFFECT = _lenient(Effect)
_BARE_EFFECT = _lenient(_BareEffect)
_CAMPAIGN = _lenient(Campaign)


UNREADABLE = (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError)
"""What a decoder raises where the text is something else: other JSON, no JSON, no UTF-8, absurdly deep or large."""


def decode(decoder: "msgspec.json.Decoder[T]", text: bytes | Raw) -> T | None:
    """The value, or None where the text is something else."""
    try:
        return decoder.decode(text)
    except UNREADABLE:
        return None


def effects(text: Raw) -> Sequence[Effect | Raw] | None:
    """A list's effects, or the text of those that are none; None where this is no list."""
    found = decode(_EFFECTS, text)
    if found is not None:  # they are mostly all readable
        return found
    if bytes(text) == b"null":
        return []
    texts = decode(_TEXTS, text)
    return None if texts is None else [_effect(one) or one for one in texts]


def _effect(text: Raw) -> Effect | None:
    """One effect; without its ids where those cannot be read; None where it is no effect at all."""
    found = decode(_EFFECT, text)
    if found is None and (bare := decode(_BARE_EFFECT, text)) is not None:
        return Effect(effect_type=bare.effect_type, props=bare.props)
    return found


def campaigns(texts: list[Raw] | None) -> dict[int, Campaign]:
    found = (decode(_CAMPAIGN, text) for text in texts or ())
    return {campaign.id: campaign for campaign in found if campaign is not None}
