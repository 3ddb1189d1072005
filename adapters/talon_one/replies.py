"""Talon.One's answers: only the fields that are used here, in the vendor's own words; and what a refusal means.

Written after the Integration API's specification of August 2026 (https://docs.talon.one/integration-api). What is not
listed may come, go or change without harm. Answers are read leniently:

- the whole answer is read in one pass; where anything in it is not as it should be, each effect and each campaign by
  itself, so that one which cannot be read loses nothing but itself;
- a `number` may come as 1, 1.0 or "1", and its digits stay exact (`Decimal`): 9.999 stays 9.999;
- a list that is null counts as empty.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from mapper.adapter import EngineRejected, EngineReply, EngineUnavailable

T = TypeVar("T")

# The one message that is switched on; the vendor's own Salesforce cartridge does the same.
_CANNOT_MOVE = re.compile(r"cannot move session to state\W+\w+\W+from state\W+(\w+)", re.IGNORECASE)
_LOYALTY_CARD = re.compile(r"loyalty\W?cards?", re.IGNORECASE)
# A place in our own request. What is longer or stranger is not passed on.
_POINTER = re.compile(r"(/[A-Za-z0-9_.-]{1,64}){1,8}", re.ASCII)

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


class StoredCost(msgspec.Struct, frozen=True):
    price: Decimal | None = None


class StoredSession(msgspec.Struct, frozen=True, rename="camel"):
    """What the engine holds: https://docs.talon.one/integration-api#tag/Customer-sessions/operation/getCustomerSession"""

    state: str | None = None
    cart_items: Raw = ABSENT
    """For `items` below; only a look-up needs them."""
    coupon_codes: list[str] | None = None
    referral_code: str | None = None
    loyalty_cards: list[str] | None = None
    identifiers: list[str] | None = None
    profile_id: str | None = None
    store_integration_id: str | None = None
    attributes: dict[str, Raw] | None = None
    additional_costs: dict[str, StoredCost] | None = None
    update_count: int | None = None
    """1 where the session has just been created."""


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
    """What is answered only where it is asked for (`RESPONSE_CONTENT`)."""

    coupons: Raw = ABSENT
    customer_profile: Raw = ABSENT
    loyalty: Raw = ABSENT
    rule_failure_reasons: Raw = ABSENT


class _State(_Extras, frozen=True, kw_only=True, rename="camel"):
    """The answer to a PUT or a GET of a session, all of it as it should be."""

    effects: list[Effect]
    triggered_campaigns: list[Campaign] | None = None
    customer_session: StoredSession | None = None


class _RawState(_Extras, frozen=True, kw_only=True, rename="camel"):
    """The same, each thing by itself."""

    effects: Raw | UnsetType = UNSET
    triggered_campaigns: list[Raw] | None = None
    customer_session: Raw = ABSENT


_NO_EXTRAS = _Extras()


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
_COUPON = _lenient(Coupon)
_RULE_FAILURE = _lenient(RuleFailure)


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
        extras: _Extras = _NO_EXTRAS,
    ) -> None:
        self._body = body
        self._extras = extras
        self.effects = effects
        """None stands for what is no effect at all; no list, for none that can be read."""
        self.campaigns = {campaign.id: campaign for campaign in campaigns if campaign is not None}
        self.session = session
        """What the engine holds; empty where the answer does not say, None where that cannot be read."""

    @property
    def coupons(self) -> dict[int, str]:
        """Codes by the engine's number for the coupon, where they were asked for."""
        return {coupon.id: coupon.value for coupon in _each(_COUPON, self._extras.coupons)}

    @property
    def rule_failures(self) -> list[RuleFailure]:
        return _each(_RULE_FAILURE, self._extras.rule_failure_reasons)

    @property
    def told(self) -> list[tuple[str, Any]]:
        """What else was asked for, by its name."""
        extras = self._extras
        named = (("coupons", extras.coupons), ("customerProfile", extras.customer_profile), ("loyalty", extras.loyalty))
        return [(name, decode(PLAIN, text)) for name, text in named if text is not ABSENT]

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
    return read_in_one_pass(body) or read_one_by_one(body)


def read_in_one_pass(body: bytes) -> State | None:
    if (state := decode(_STATE, body)) is None:
        return None
    stored = state.customer_session or StoredSession()
    return State(body, state.effects, state.triggered_campaigns or (), stored, state)


def read_one_by_one(body: bytes) -> State | None:
    if (raw := decode(_RAW_STATE, body)) is None:
        return None
    session = StoredSession() if bytes(raw.customer_session) == b"null" else decode(_SESSION, raw.customer_session)
    campaigns = [decode(_CAMPAIGN, text) for text in raw.triggered_campaigns or ()]
    return State(body, None if raw.effects is UNSET else _effects(raw.effects), campaigns, session, raw)


def _each(decoder: "msgspec.json.Decoder[T]", text: Raw) -> list[T]:
    """Those of a list that can be read."""
    found = [decode(decoder, one) for one in decode(_LIST, text) or ()]
    return [one for one in found if one is not None]


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


# ---------------------------------------------------------------------------------------------------------------------
# Refusals: https://docs.talon.one/docs/dev/getting-started/errors


def _errors(reply: EngineReply) -> ErrorReply:
    return decode(ERROR, reply.body) or ErrorReply()


def cannot_move_from(reply: EngineReply) -> str | None:
    """The state that keeps the session from being opened, closed or cancelled; None where that is not the trouble."""
    match = _CANNOT_MOVE.search(_errors(reply).message or "") if reply.status == 400 else None
    return match[1].lower() if match else None


def refuses_card(reply: EngineReply) -> bool:
    """Whether the loyalty card is the trouble: there is no effect that refuses one, so it comes as an error."""
    if reply.status not in (400, 404):
        return False
    found = _errors(reply)
    texts = [found.message]
    for error in found.errors or ():
        texts += [error.title, error.details, error.source.pointer if error.source else None]
    return any(_LOYALTY_CARD.search(text) for text in texts if text)


def insist(reply: EngineReply) -> None:
    """Raises unless the answer is 2xx. The engine's text is not passed on: it may tell what is nobody's business."""
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
        _refused(reply)
    raise bad_reply()


def state_of(reply: EngineReply) -> State:
    """What a 2xx answer says of the session; whether it says so with effects is the reader's to ask."""
    insist(reply)
    state = read(reply.body)
    if state is None:
        raise bad_reply()
    return state


def _refused(reply: EngineReply) -> NoReturn:
    pointers = [error.source.pointer for error in _errors(reply).errors or () if error.source and error.source.pointer]
    safe = [pointer for pointer in pointers if _POINTER.fullmatch(pointer)][:5]
    if not safe:
        raise EngineRejected("Talon.One refuses the request.", reason="request_rejected")
    raise EngineRejected(
        f"Talon.One refuses the request at {', '.join(safe)}."
        " Attributes and additional costs must exist in the Campaign Manager before they are sent.",
        reason="request_rejected",
        engine_pointers=safe,
    )


def bad_reply() -> EngineUnavailable:
    return EngineUnavailable("Talon.One's answer cannot be read.", reason="bad_reply")
