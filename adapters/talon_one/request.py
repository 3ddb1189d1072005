"""Builds the customer session that Talon.One is sent, and keeps what is needed to read the reply."""

import hashlib
import hmac
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from adapters.talon_one import codes
from adapters.talon_one.options import Options
from mapper.adapter import Checkout, Cost, EngineRejected, InvalidRequest, Line, Notice, Reason, Rejection, money

# https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2
_MAX_IDENTIFIERS = 5
_MAX_UNITS = 10_000
_REPLY_BYTES = 2 * 1024 * 1024
_REPLY_BYTES_PER_UNIT = 6 * 1024
MAX_REPLY_BYTES = _REPLY_BYTES + _MAX_UNITS * _REPLY_BYTES_PER_UNIT
_CARD = re.compile(r"[A-Za-z0-9._%+@-]{4,108}", re.ASCII)
_MEASURE = re.compile(rb"[0-9]{1,12}(\.[0-9]{1,6})?")


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
    weight: Raw | UnsetType = UNSET
    height: Raw | UnsetType = UNSET
    width: Raw | UnsetType = UNSET
    length: Raw | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    additional_costs: dict[str, AdditionalCost] | UnsetType = UNSET


class CustomerSession(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of a PUT, which merges: a field that is left out keeps its stored value. An empty one clears it."""

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
    response_content: tuple[str, ...]
    """What the reply shall have beside the effects."""


encode = msgspec.json.Encoder(decimal_format="number").encode


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, and what is needed to read its reply. The positions in the reply are indexes of `lines`."""

    account: str
    digits: int
    lines: tuple[Line, ...]
    session: CustomerSession
    costs: tuple[Cost, ...]
    """Every configured additional cost, under its first name, with its price; 0 where the cart or the line has none."""
    codes: codes.SentCodes
    rejected: tuple[Rejection, ...]
    """Codes that were rejected without being sent."""
    notices: tuple[Notice, ...]
    options: Options

    @property
    def loyalty_card(self) -> str:
        return self.session.loyalty_cards[0] if self.session.loyalty_cards else ""

    @property
    def reply_bytes(self) -> int:
        """The limit on the reply. It has an effect of about 500 bytes per unit and rule.

        https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening
        """
        return _REPLY_BYTES + sum([line.quantity for line in self.lines]) * _REPLY_BYTES_PER_UNIT

    def without_loyalty_card(self) -> "SessionRequest":
        """The same request with its loyalty card rejected."""
        rejection = Rejection(self.loyalty_card, Reason.NOT_FOUND, "")
        session = msgspec.structs.replace(self.session, loyalty_cards=())
        return msgspec.structs.replace(self, session=session, rejected=(*self.rejected, rejection))

    def body(self, state: str) -> bytes:
        content = ("customerSession", "triggeredCampaigns", *self.options.response_content)
        session = msgspec.structs.replace(self.session, state=state)
        return encode(IntegrationRequest(customer_session=session, response_content=content))


def session_request(checkout: Checkout, session: str, options: Options) -> SessionRequest:
    """The request for a checkout or an order.

    Raises `InvalidRequest` where the value at a configured pointer cannot be used, and `EngineRejected` where no
    Application serves the currency or the cart has more units than Talon.One takes.
    """
    account = options.account(checkout.currency)
    if (units := sum([line.quantity for line in checkout.cart])) > _MAX_UNITS:
        message = f"The cart has {units} units; Talon.One takes {_MAX_UNITS}."
        raise EngineRejected(message, reason="too_many_units")
    sent, card, rejected = _codes(checkout, options)
    identifiers, identifier_notices = _identifiers(checkout, options)
    costs = _costs(checkout, options.additional_costs)
    item_costs = options.item_additional_costs
    line_costs = [_costs(checkout, item_costs, line) for line in checkout.cart] if item_costs else []
    fields, field_notices = _item_fields(checkout, options)
    items = tuple(
        [
            _item(checkout, line, line_costs[position] if item_costs else None, fields[position], options)
            for position, line in enumerate(checkout.cart)
        ]
    )
    content = CustomerSession(
        profile_id=_profile(checkout, session, options),
        store_integration_id=_id_at(checkout, options.store_path) or UNSET,
        coupon_codes=sent.coupons,
        referral_code=sent.referral,
        loyalty_cards=(card,) if card else (),
        state="open",
        cart_items=items,
        additional_costs=_additional_costs(costs, checkout.digits) if options.additional_costs else UNSET,
        identifiers=identifiers,
        attributes=_attributes(checkout, options.session_attributes),
    )
    return SessionRequest(
        account=account,
        digits=checkout.digits,
        lines=checkout.cart,
        session=content,
        costs=_outcome_costs(checkout, costs, line_costs, options),
        codes=sent,
        rejected=rejected,
        notices=(*identifier_notices, *field_notices),
        options=options,
    )


def _codes(checkout: Checkout, options: Options) -> tuple[codes.SentCodes, str, tuple[Rejection, ...]]:
    """The codes and the loyalty card to send. A malformed card is rejected here: it would fail the whole request."""
    promotions = checkout.promotions
    sent = codes.SentCodes(codes.unique(promotions.coupon_codes, case=options.code_case), promotions.referral_code)
    card = promotions.loyalty_card
    if not card or _CARD.fullmatch(card):
        return sent, card, ()
    return sent, "", (Rejection(card, Reason.MALFORMED, ""),)


def _identifiers(checkout: Checkout, options: Options) -> tuple[tuple[str, ...], tuple[Notice, ...]]:
    """The identifiers to send, hashed where a key is configured.

    Talon.One advises hashes: https://docs.talon.one/docs/dev/tutorials/using-identifiers. The hash is keyed, since all
    IP addresses can be tried against a plain hash within minutes.
    """
    identifiers = checkout.promotions.identifiers
    sent, dropped = identifiers[:_MAX_IDENTIFIERS], len(identifiers[_MAX_IDENTIFIERS:])
    if options.identifiers_key:
        sent = tuple(hmac.new(options.identifiers_key, text.encode(), hashlib.sha256).hexdigest() for text in sent)
    if not dropped:
        return sent, ()
    text = f"Talon.One takes {_MAX_IDENTIFIERS} identifiers per session; the last {dropped} were not sent."
    return sent, (Notice("identifiers_not_sent", text, {"sent": len(sent), "not_sent": dropped}),)


def _profile(checkout: Checkout, session: str, options: Options) -> str:
    """The id of the customer profile. A guest gets a profile per session, or (`anonymous`) none: "".

    Talon.One handles the requests of one profile one at a time, so guests must not share a profile:
    https://docs.talon.one/docs/dev/getting-started/integration-tutorial#managing-parallel-requests. It advises against
    sessions without a profile, because limits per customer do not apply to them.
    """
    if not checkout.customer and options.guests == "anonymous":
        return ""
    return options.profile_prefix + (checkout.customer or f"guest-{session}")


# ---------------------------------------------------------------------------------------------------------------------
# Cart items


def _item(
    checkout: Checkout, line: Line, costs: dict[str, int] | None, fields: dict[str, Any], options: Options
) -> CartItem:
    sku = getattr(line, options.sku_field) if options.sku_field else line.name
    if not sku:
        raise InvalidRequest(f"The line has no {options.sku_field}.", f"{line.pointer}/{options.sku_field}")
    return CartItem(
        sku=sku,
        quantity=line.quantity,
        price=money.to_major(line.list_price, checkout.digits),
        attributes=_attributes(checkout, options.item_attributes, line),
        additional_costs=UNSET if costs is None else _additional_costs(costs, checkout.digits),
        **fields,
    )


def _item_fields(checkout: Checkout, options: Options) -> tuple[list[dict[str, Any]], tuple[Notice, ...]]:
    """Talon.One's own fields of each cart item, by `CartItem` field, and a notice of the values that do not fit.

    https://docs.talon.one/docs/dev/concepts/entities/customer-sessions. A value that does not fit, such as the weight
    "10 kg", is left out: it must not stop the sale.
    """
    invalid: list[str] = []
    compiled = _compiled(options.item_fields)
    fields = [_fields_of(line, compiled, invalid) for line in checkout.cart]
    if not invalid:
        return fields, ()
    text = f"{len(invalid)} values of the cart's lines are not what Talon.One takes there; they were not sent."
    return fields, (Notice("item_fields_not_sent", text, {"pointers": invalid}),)


_Field = tuple[str, str, str, tuple[str, ...], Callable[[Any], Any]]
"""A configured field: name, JSON pointer, the pointer's first token, its other tokens, and the converter.

A converter returns "" for a blank value and None for one that does not fit.
"""


@cache
def _compiled(item_fields: tuple[tuple[str, str], ...]) -> tuple[_Field, ...]:
    """The setting with its pointers split, once for all lines."""
    tokens = [[token.replace("~1", "/").replace("~0", "~") for token in at[1:].split("/")] for _, at in item_fields]
    return tuple(
        (name, pointer, key, tuple(rest), _CONVERTERS[name])
        for (name, pointer), (key, *rest) in zip(item_fields, tokens, strict=True)
    )


def _fields_of(line: Line, compiled: tuple[_Field, ...], invalid: list[str]) -> dict[str, Any]:
    """The fields of one line. Adds the pointers of values that do not fit to `invalid`."""
    fields: dict[str, Any] = {}
    get = line.decoded.get  # may hold floats, which are exact enough for a weight
    for name, pointer, key, rest, convert in compiled:
        value = get(key)
        for token in rest:
            value = value.get(token) if isinstance(value, dict) else None
        if value is None or value == "" or name in fields:
            continue
        field = convert(value)
        if field is None:
            invalid.append(line.pointer + pointer)
        elif field != "":
            fields[name] = field
    return fields


def _label(value: Any) -> str | None:
    """A name or a category."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _product(value: Any) -> Product | str | None:
    name = _label(value.get("name") if isinstance(value, dict) else value)
    return Product(name) if name else name


def _measure(value: Any) -> Raw | None:
    """A weight (grams) or a length (mm), from a number or a string. Its digits are sent unchanged."""
    digits = value.encode() if isinstance(value, str) else encode(value)
    return Raw(digits) if _MEASURE.fullmatch(digits) else None


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "name": _label,
    "category": _label,
    "product": _product,
    **dict.fromkeys(("weight", "height", "width", "length"), _measure),
}


# ---------------------------------------------------------------------------------------------------------------------
# Values at configured pointers


def _costs(checkout: Checkout, names: dict[str, str], line: Line | None = None) -> dict[str, int]:
    """The additional costs that the cart or the line has, in minor units by name."""
    return {
        name: amount for name, pointer in names.items() if (amount := checkout.amount_at(pointer, line)) is not None
    }


def _outcome_costs(
    checkout: Checkout, costs: dict[str, int], line_costs: list[dict[str, int]], options: Options
) -> tuple[Cost, ...]:
    names, item_names = dict.fromkeys(options.cost_names.values()), dict.fromkeys(options.item_cost_names.values())
    of_order = [Cost(name, costs.get(name, 0)) for name in names]
    of_lines = [
        Cost(name, amounts.get(name, 0) * line.quantity, line.index)
        for line, amounts in zip(checkout.cart, line_costs, strict=False)
        for name in item_names
    ]
    return (*of_order, *of_lines)


def _additional_costs(costs: dict[str, int], digits: int) -> dict[str, AdditionalCost]:
    return {name: AdditionalCost(money.to_major(price, digits)) for name, price in costs.items()}


def _attributes(checkout: Checkout, names: dict[str, str], line: Line | None = None) -> dict[str, Any] | UnsetType:
    """The configured attributes. Talon.One refuses the whole session over an attribute that it does not know."""
    if not names:
        return UNSET
    values = {
        name: checkout.at_line(line, pointer) if line else checkout.at(pointer) for name, pointer in names.items()
    }
    return {name: value for name, value in values.items() if value is not None}


def _id_at(checkout: Checkout, pointer: str) -> str:
    value = checkout.at(pointer) if pointer else None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest("This is configured as an id, but it is no string.", pointer)
    return str(value).strip()
