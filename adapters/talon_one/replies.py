"""Reads Talon.One's replies: the fields that the adapter uses, and what an error means.

The structs follow the Integration API's specification of August 2026 (https://docs.talon.one/integration-api). Fields
that are not listed are ignored. Decoding is lenient:

- A reply is decoded in one pass, save for the props, whose type depends on the effect. Where that fails, each effect
  and each campaign is decoded by itself, so that one malformed effect does not lose the others, and a name of the wrong
  type loses no more than the name.
- A number may come as 1, 1.0 or "1" and keeps its exact digits (`Decimal`).
- A list that is null is empty.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from mapper.adapter import EngineRejected, EngineReply, EngineUnavailable

T = TypeVar("T")

# Talon.One has no error code for this, so its message is matched, as in the vendor's own Salesforce cartridge.
_CANNOT_MOVE = re.compile(r"cannot move session to state\W+\w+\W+from state\W+(\w+)", re.IGNORECASE)
_LOYALTY_CARD = re.compile(r"loyalty\W?cards?", re.IGNORECASE)
# A JSON pointer into the request. Any other text of the engine's is not passed on.
_POINTER = re.compile(r"(/[A-Za-z0-9_.-]{1,64}){1,8}", re.ASCII)

ABSENT = Raw(b"null")
"""Marks an absent value; compared by identity."""
_NO_PROPS = Raw(b"{}")


class MoneyProps(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """The props of the four discount effects.

    https://docs.talon.one/docs/dev/integration-api/api-effects#setdiscount, #setdiscountperitem,
    #setdiscountperadditionalcost, #setdiscountperadditionalcostperitem
    """

    value: Decimal | None = None
    name: str | None = None
    scope: str | None = None
    position: int | Decimal | None = None
    total_discount: Decimal | None = None
    bundle_name: str | None = None
    additional_cost: str | None = None


class EffectIds(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """The fields that all effects have: https://docs.talon.one/docs/dev/integration-api/api-effects"""

    campaign_id: int | None = None
    ruleset_id: int | None = None
    rule_index: int | None = None
    rule_name: str | None = None
    triggered_by_coupon: int | None = None
    selected_price: Decimal | None = None


class Effect(EffectIds, frozen=True, kw_only=True, rename="camel", gc=False):
    effect_type: str
    props: Raw = _NO_PROPS
    """Decoded by `money_props` or `code_props`."""


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """An effect without its ids."""

    effect_type: str
    props: Raw = _NO_PROPS


class CodeProps(msgspec.Struct, frozen=True, rename="camel"):
    """The props of acceptCoupon, rejectCoupon, acceptReferral and rejectReferral: .../api-effects#rejectcoupon"""

    value: str = ""
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
    selected_price_type: str | None = None


class StoredCost(msgspec.Struct, frozen=True):
    price: Decimal | None = None


class StoredSession(msgspec.Struct, frozen=True, rename="camel"):
    """The stored session: https://docs.talon.one/integration-api#tag/Customer-sessions/operation/getCustomerSession"""

    state: str | None = None
    integration_id: str | None = None
    """The session's id, as the request's path has it."""
    cart_items: Raw = ABSENT
    """Decoded by `items`, for a look-up alone."""
    coupon_codes: list[str] | None = None
    referral_code: str | None = None
    loyalty_cards: list[str] | None = None
    identifiers: list[str] | None = None
    profile_id: str | None = None
    store_integration_id: str | None = None
    attributes: dict[str, Raw] | None = None
    additional_costs: dict[str, StoredCost | None] | None = None
    update_count: int | None = None
    """1 where the request created the session."""


class RuleFailure(msgspec.Struct, frozen=True):
    """Why a rule did not apply: https://docs.talon.one/integration-api, `ruleFailureReasons`"""

    campaignID: int | None = None  # noqa: N815 - the vendor's spelling
    campaignName: str | None = None  # noqa: N815
    ruleIndex: int | None = None  # noqa: N815
    ruleName: str | None = None  # noqa: N815
    conditionIndex: int | None = None  # noqa: N815
    effectIndex: int | None = None  # noqa: N815
    couponValue: str | None = None  # noqa: N815
    referralValue: str | None = None  # noqa: N815
    details: str | None = None


class Coupon(msgspec.Struct, frozen=True):
    id: int
    value: str


class _Extras(msgspec.Struct, frozen=True, rename="camel"):
    """The parts of a reply that come only where `RESPONSE_CONTENT` asks for them."""

    coupons: Raw = ABSENT
    customer_profile: Raw = ABSENT
    loyalty: Raw = ABSENT
    rule_failure_reasons: Raw = ABSENT


class _State(_Extras, frozen=True, kw_only=True, rename="camel"):
    """The reply to a PUT or a GET of a session, well formed throughout."""

    effects: list[Effect]
    triggered_campaigns: list[Campaign] | None = None
    customer_session: StoredSession | None = None


class _RawState(_Extras, frozen=True, kw_only=True, rename="camel"):
    """The same reply with effects, campaigns and session left raw, each to be decoded by itself."""

    effects: Raw | UnsetType = UNSET
    triggered_campaigns: Raw = ABSENT
    customer_session: Raw = ABSENT


_NO_EXTRAS = _Extras()


class ErrorSource(msgspec.Struct, frozen=True):
    pointer: str | None = None


class APIError(msgspec.Struct, frozen=True):
    title: str | None = None
    details: str | None = None
    source: ErrorSource | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    """https://docs.talon.one/docs/dev/getting-started/errors; `errors` may be null."""

    message: str | None = None
    errors: Raw = ABSENT


def _lenient(kind: type[T]) -> "msgspec.json.Decoder[T]":
    return msgspec.json.Decoder(kind, strict=False, float_hook=Decimal)


_STATE = _lenient(_State)
_RAW_STATE = _lenient(_RawState)
_SESSION = _lenient(StoredSession)
_ITEMS = _lenient(list[StoredItem])
_CODE = _lenient(CodeProps)
_ERROR = _lenient(ErrorReply)
_API_ERROR = _lenient(APIError)
JSON: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(float_hook=Decimal)
_LIST = _lenient(list[Raw])
_FIELDS = _lenient(dict[str, Raw])
_EFFECT = _lenient(Effect)
_ENVELOPE = _lenient(_Envelope)
_IDS = _lenient(EffectIds)
_MONEY = _lenient(MoneyProps)
_CAMPAIGN = _lenient(Campaign)
_COUPON = _lenient(Coupon)
_RULE_FAILURE = _lenient(RuleFailure)


_AMOUNT_AND_PLACE = frozenset({"value", "position", "scope", "additionalCost"})
"""The props that say how much a discount is, and what it is on."""

UNREADABLE = (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError)
"""What a decoder raises where the text is not of its type, not JSON, not UTF-8, or too deep or large."""


def decode(decoder: "msgspec.json.Decoder[T]", text: bytes | Raw) -> T | None:
    """The decoded value; None where the text does not fit the decoder."""
    try:
        return decoder.decode(text)
    except UNREADABLE:
        return None


class State:
    """The reply to a PUT or a GET of a session."""

    def __init__(
        self,
        effects: Sequence[Effect | Raw] | None,
        campaigns: Iterable[Campaign | None],
        session: StoredSession | None,
        extras: _Extras = _NO_EXTRAS,
    ) -> None:
        self._extras = extras
        self.effects = effects
        """An entry that is no effect is raw; None where the list itself cannot be read."""
        self.campaigns = {campaign.id: campaign for campaign in campaigns if campaign is not None}
        self.session = session
        """The stored session; empty where the reply has none, None where it cannot be read."""

    @property
    def coupons(self) -> dict[int, str]:
        """Coupon codes by Talon.One's coupon id, where `RESPONSE_CONTENT` asks for them."""
        return {coupon.id: coupon.value for coupon in _decode_each(_COUPON, self._extras.coupons)}

    @property
    def rule_failures(self) -> list[RuleFailure]:
        return _decode_each(_RULE_FAILURE, self._extras.rule_failure_reasons)

    @property
    def extra_content(self) -> list[tuple[str, Any]]:
        """The name and the JSON of what `RESPONSE_CONTENT` may ask for, apart from reasons of rules."""
        extras = self._extras
        named = (("coupons", extras.coupons), ("customerProfile", extras.customer_profile), ("loyalty", extras.loyalty))
        return [(name, decode(JSON, text)) for name, text in named if text is not ABSENT and bytes(text) != b"null"]


def read(body: bytes) -> State | None:
    """Decodes a reply: in one pass, or part by part where that fails. None where it is no reply of this kind."""
    return read_in_one_pass(body) or read_one_by_one(body)


def read_in_one_pass(body: bytes) -> State | None:
    if (state := decode(_STATE, body)) is None:
        return None
    stored = state.customer_session or StoredSession()
    return State(state.effects, state.triggered_campaigns or (), stored, state)


def read_one_by_one(body: bytes) -> State | None:
    if (raw := decode(_RAW_STATE, body)) is None:
        return None
    session = StoredSession() if bytes(raw.customer_session) == b"null" else decode(_SESSION, raw.customer_session)
    campaigns = _decode_each(_CAMPAIGN, raw.triggered_campaigns)
    return State(None if raw.effects is UNSET else _effects(raw.effects), campaigns, session, raw)


def _decode_each(decoder: "msgspec.json.Decoder[T]", text: Raw) -> list[T]:
    """The items of a list that can be decoded; none where the text is no list."""
    if text is ABSENT:
        return []
    items = [decode(decoder, item) for item in decode(_LIST, text) or ()]
    return [item for item in items if item is not None]


def _effects(text: Raw) -> list[Effect | Raw] | None:
    if bytes(text) == b"null":
        return []
    texts = decode(_LIST, text)
    return None if texts is None else [_effect(text) for text in texts]


def _effect(text: Raw) -> Effect | Raw:
    """One effect, without those of its ids that cannot be decoded; the text itself where it is no effect."""
    if (effect := decode(_EFFECT, text)) is not None:
        return effect
    if (envelope := decode(_ENVELOPE, text)) is None:
        return text
    ids = _decode_fields(_IDS, text) or EffectIds()
    return Effect(effect_type=envelope.effect_type, props=envelope.props, **msgspec.structs.asdict(ids))


def money_props(text: Raw) -> MoneyProps | None:
    """The props of a discount; None where they do not say how much it is, or what it is on."""
    try:
        return _MONEY.decode(text)
    except UNREADABLE:
        return _decode_fields(_MONEY, text, _AMOUNT_AND_PLACE)


def code_props(text: Raw) -> CodeProps | None:
    """The props of an effect on a code; None where they do not name it."""
    props = _decode_fields(_CODE, text, frozenset({"value"}))
    return props if props and props.value else None


def _decode_fields(decoder: "msgspec.json.Decoder[T]", text: Raw, required: frozenset[str] = frozenset()) -> T | None:
    """The decoded object, without the fields that have another type; None where one of these is `required`."""
    if (value := decode(decoder, text)) is not None or (fields := decode(_FIELDS, text)) is None:
        return value
    fitting = {
        name: field
        for name, field in fields.items()
        if name in required or decode(decoder, msgspec.json.encode({name: field})) is not None
    }
    return decode(decoder, msgspec.json.encode(fitting))


def items(text: Raw) -> list[StoredItem] | None:
    """The lines of a stored cart; None where they cannot be read."""
    return [] if bytes(text) == b"null" else decode(_ITEMS, text)


# ---------------------------------------------------------------------------------------------------------------------
# Errors: https://docs.talon.one/docs/dev/getting-started/errors


def _error(reply: EngineReply) -> tuple[str | None, list[APIError]]:
    """The message of an error reply, and the errors that it lists."""
    error = decode(_ERROR, reply.body) or ErrorReply()
    return error.message, _decode_each(_API_ERROR, error.errors)


def _texts(reply: EngineReply) -> list[str]:
    """All texts of an error. Which of them says what is wrong is not documented."""
    message, errors = _error(reply)
    texts = [message]
    for each in errors:
        texts += [each.title, each.details, each.source.pointer if each.source else None]
    return [text for text in texts if text]


def is_mute(reply: EngineReply) -> bool:
    """Whether it is a refusal that does not say why; such as that the session has that state already."""
    return reply.status == 400 and not _texts(reply)


def blocking_state(reply: EngineReply) -> str | None:
    """The session's state where it forbids the requested change of state; None for any other reply."""
    matches = map(_CANNOT_MOVE.search, _texts(reply) if reply.status == 400 else ())
    return next((match[1].lower() for match in matches if match), None)


def rejects_loyalty_card(reply: EngineReply, card: str) -> bool:
    """Whether the error is about the loyalty card. Talon.One has no effect that rejects one."""
    if reply.status not in (400, 404):
        return False
    return any(_LOYALTY_CARD.search(text) or card.lower() in text.lower() for text in _texts(reply))


def require_success(reply: EngineReply) -> None:
    """Raises a `Problem` unless the status is 2xx. Engine text may hold private data, so no message quotes it."""
    if 200 <= reply.status < 300:
        return
    if reply.status in (401, 403):
        raise EngineRejected(
            "Talon.One does not accept the API key: it is wrong, expired, or of another Application.",
            reason="engine_key",
        )
    if reply.status == 404:
        raise EngineRejected("Talon.One does not know this address: check the base URL.", reason="not_found_at_engine")
    if 400 <= reply.status < 500:
        raise _rejected(reply)
    raise unreadable_reply()


def state_of(reply: EngineReply) -> State:
    """The session state in a 2xx reply. It may lack effects or session. Raises a `Problem` for any other reply."""
    require_success(reply)
    state = read(reply.body)
    if state is None:
        raise unreadable_reply()
    return state


def _rejected(reply: EngineReply) -> EngineRejected:
    _, errors = _error(reply)
    pointers = [error.source.pointer for error in errors if error.source and error.source.pointer]
    safe = [pointer for pointer in pointers if _POINTER.fullmatch(pointer)][:5]
    if not safe:
        return EngineRejected("Talon.One refuses the request.", reason="request_rejected")
    return EngineRejected(
        f"Talon.One refuses the request at {', '.join(safe)}."
        " Attributes and additional costs must exist in the Campaign Manager before they are sent.",
        reason="request_rejected",
        engine_pointers=safe,
    )


def unreadable_reply() -> EngineUnavailable:
    return EngineUnavailable("Talon.One's answer cannot be read.", reason="bad_reply")
