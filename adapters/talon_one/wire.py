"""Talon.One's JSON: only the fields that are used here, in the vendor's own words.

Written after the Integration API's specification of August 2026 (https://docs.talon.one/integration-api). What is not
listed may come, go or change without harm. Requests are strict, replies are read leniently:

- every effect and campaign is decoded on its own, so that one which cannot be read loses nothing but itself;
- a `number` may come as 1, 1.0 or "1", and its digits stay exact (`Decimal`): 9.999 stays 9.999;
- a list that is null counts as empty.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------------------
# What is sent: https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2


class AdditionalCost(msgspec.Struct, frozen=True):
    price: Decimal


class Product(msgspec.Struct, frozen=True):
    name: str


class CartItem(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """https://docs.talon.one/docs/dev/concepts/entities/customer-sessions; `price` is the list price of one unit."""

    sku: str
    quantity: int
    price: Decimal
    name: str | UnsetType = UNSET
    category: str | UnsetType = UNSET
    product: Product | UnsetType = UNSET
    weight: Decimal | UnsetType = UNSET
    height: Decimal | UnsetType = UNSET
    width: Decimal | UnsetType = UNSET
    length: Decimal | UnsetType = UNSET
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
    # Without it the answer is effects alone; with it come the campaigns' names and descriptions, for shoppers, and what
    # the engine holds of the session, to be compared with what it was told.
    response_content: tuple[str, ...]


encode = msgspec.json.Encoder(decimal_format="number").encode

# ---------------------------------------------------------------------------------------------------------------------
# What comes back


ABSENT = Raw(b"null")
"""Stands, itself, for a value that is not there."""


class MoneyProps(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """The props of all four effects that take money off.

    https://docs.talon.one/docs/dev/integration-api/api-effects#setdiscount, #setdiscountperitem,
    #setdiscountperadditionalcost, #setdiscountperadditionalcostperitem
    """

    value: Raw = ABSENT
    """For `NUMBER`: a text in the props of a code, which must not keep the others from being read in one pass."""
    name: str | None = None
    scope: str | None = None
    position: int | Decimal | None = None
    total_discount: Decimal | None = None
    bundle_name: str | None = None
    additional_cost: str | None = None


class EffectIds(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """What all effects have in common: https://docs.talon.one/docs/dev/integration-api/api-effects"""

    campaign_id: int | None = None
    ruleset_id: int | None = None
    rule_index: int | None = None
    rule_name: str | None = None
    triggered_by_coupon: int | None = None
    selected_price: Decimal | None = None


class Effect(EffectIds, frozen=True, kw_only=True, rename="camel", gc=False):
    effect_type: str
    props: MoneyProps | None = None
    """As far as they concern money; None where they cannot be read as such."""


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """An effect as far as nothing can be wrong with it: what it does, and how that is said."""

    effect_type: str
    props: Raw = Raw(b"{}")


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
    """What the engine holds: https://docs.talon.one/integration-api#tag/Customer-sessions/operation/getCustomerSession"""

    state: str | None = None
    cart_items: Raw = ABSENT
    """For `items` below; only a look-up needs them."""
    coupon_codes: list[str] | None = None
    referral_code: str | None = None
    loyalty_cards: list[str] | None = None


class _State(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a PUT or a GET of a session, all of it as it should be."""

    effects: list[Effect]
    triggered_campaigns: list[Campaign] | None = None
    customer_session: StoredSession | None = None


class _RawState(msgspec.Struct, frozen=True, rename="camel"):
    """The same, each thing by itself."""

    effects: Raw | UnsetType = UNSET
    triggered_campaigns: list[Raw] | None = None
    customer_session: Raw = ABSENT


class _Texts(msgspec.Struct, frozen=True):
    effects: list[Raw]


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


_STATE = _lenient(_State)
_RAW_STATE = _lenient(_RawState)
_SESSION = _lenient(StoredSession)
_ITEMS = _lenient(list[StoredItem])
CODE = _lenient(CodeProps)
ERROR = _lenient(ErrorReply)
PLAIN: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(float_hook=Decimal)
_TEXTS = _lenient(_Texts)
_LIST = _lenient(list[Raw])
_EFFECT = _lenient(Effect)
_ENVELOPE = _lenient(_Envelope)
_IDS = _lenient(EffectIds)
_MONEY = _lenient(MoneyProps)
NUMBER = _lenient(Decimal)
_CAMPAIGN = _lenient(Campaign)


UNREADABLE = (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError)
"""What a decoder raises where the text is something else: other JSON, no JSON, no UTF-8, absurdly deep or large."""


def decode(decoder: "msgspec.json.Decoder[T]", text: bytes | Raw) -> T | None:
    """The value, or None where the text is something else."""
    try:
        return decoder.decode(text)
    except UNREADABLE:
        return None


class State:
    """The answer to a PUT or a GET of a session."""

    def __init__(
        self,
        body: bytes,
        effects: Sequence[Effect | None] | None,
        campaigns: Iterable[Campaign | None],
        session: StoredSession | None,
    ) -> None:
        self._body = body
        self.effects = effects
        """None stands for what is no effect at all; no list, for none that can be read."""
        self.campaigns = {campaign.id: campaign for campaign in campaigns if campaign is not None}
        self.session = session
        """What the engine holds; empty where the answer does not say, None where that cannot be read."""

    def props(self, place: int) -> Raw:
        """The props of the effect at that place of the list, as they came; the whole of what is no effect."""
        envelope = decode(_ENVELOPE, self._texts[place])
        return envelope.props if envelope else self._texts[place]

    @cached_property
    def _texts(self) -> list[Raw]:
        found = decode(_TEXTS, self._body)
        return found.effects if found else []


def read(body: bytes) -> State | None:
    """The answer, read in one pass where all of it is as it should be, else each thing by itself."""
    if (state := decode(_STATE, body)) is not None:
        return State(body, state.effects, state.triggered_campaigns or (), state.customer_session or StoredSession())
    if (raw := decode(_RAW_STATE, body)) is None:
        return None
    session = StoredSession() if bytes(raw.customer_session) == b"null" else decode(_SESSION, raw.customer_session)
    campaigns = [decode(_CAMPAIGN, text) for text in raw.triggered_campaigns or ()]
    return State(body, None if raw.effects is UNSET else _effects(raw.effects), campaigns, session)


def _effects(text: Raw) -> list[Effect | None] | None:
    if bytes(text) == b"null":
        return []
    texts = decode(_LIST, text)
    return None if texts is None else [_effect(one) for one in texts]


def _effect(text: Raw) -> Effect | None:
    """One effect; without its props or its ids where those cannot be read; None where it is no effect at all."""
    if (found := decode(_EFFECT, text)) is not None:
        return found
    if (envelope := decode(_ENVELOPE, text)) is None:
        return None
    ids = decode(_IDS, text) or EffectIds()
    return Effect(effect_type=envelope.effect_type, props=decode(_MONEY, envelope.props), **msgspec.structs.asdict(ids))


def items(text: Raw) -> list[StoredItem] | None:
    """The lines of a stored cart; None where they cannot be read."""
    return [] if bytes(text) == b"null" else decode(_ITEMS, text)
