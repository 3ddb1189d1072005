"""A checkout as a customer session of Talon.One: what is asked, and what must be remembered to read the answer."""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
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
REPLY_BYTES_AT_MOST = _REPLY_BYTES + _MAX_UNITS * _REPLY_BYTES_PER_UNIT
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


@dataclass(frozen=True)
class SessionRequest:
    """One question to the engine. `lines` are the lines it is told about: its positions count in this list."""

    account: str
    digits: int
    lines: tuple[Line, ...]
    session: CustomerSession
    costs: tuple[Cost, ...]
    """The additional costs that are configured, with their prices: 0 where the cart or a line has none."""
    codes: codes.SentCodes
    rejected: tuple[Rejection, ...]
    """Codes that cannot be sent at all."""
    notices: tuple[Notice, ...]
    options: Options

    @property
    def card(self) -> str:
        return self.session.loyalty_cards[0] if self.session.loyalty_cards else ""

    @property
    def reply_bytes(self) -> int:
        """How large the answer may be: an effect is half a kilobyte, and there is one for each unit and each rule that
        touches it (https://docs.talon.one/docs/product/rules/understanding-cart-item-flattening).
        """
        return _REPLY_BYTES + sum([line.quantity for line in self.lines]) * _REPLY_BYTES_PER_UNIT

    def without_card(self) -> "SessionRequest":
        """The same question, its loyalty card refused."""
        refused = Rejection(self.card, Reason.NOT_FOUND, "")
        session = _with(self.session, loyalty_cards=())
        return replace(self, session=session, rejected=(*self.rejected, refused))

    def body(self, state: str) -> bytes:
        content = ("customerSession", "triggeredCampaigns", *self.options.response_content)
        session = _with(self.session, state=state)
        return encode(IntegrationRequest(customer_session=session, response_content=content))


def _with(session: CustomerSession, **changes: Any) -> CustomerSession:
    return msgspec.structs.replace(session, **changes)


def session_request(checkout: Checkout, session: str, options: Options) -> SessionRequest:
    """Raises `InvalidRequest` where the body has something unusable at a configured place, and `EngineRejected` where
    its currency is not served, or the cart has more units than the vendor takes.
    """
    account = options.account(checkout.currency)
    if (units := sum([line.quantity for line in checkout.cart])) > _MAX_UNITS:
        message = f"The cart has {units} units; Talon.One takes {_MAX_UNITS}."
        raise EngineRejected(message, reason="too_many_units")
    sent, card, rejected = _codes(checkout, options)
    identifiers, cut = _identifiers(checkout, options)
    costs = _costs(checkout, options.additional_costs)
    own_costs = options.item_additional_costs
    line_costs = [_costs(checkout, own_costs, line) for line in checkout.cart] if own_costs else []
    fields, unusable = _all_fields(checkout, options)
    items = tuple(
        [
            _item(checkout, line, line_costs[position] if own_costs else None, fields[position], options)
            for position, line in enumerate(checkout.cart)
        ]
    )
    content = CustomerSession(
        profile_id=_profile(checkout, session, options),
        store_integration_id=_text(checkout, options.store_path) or UNSET,
        coupon_codes=sent.coupons,
        referral_code=sent.referral,
        loyalty_cards=(card,) if card else (),
        state="open",
        cart_items=items,
        additional_costs=_priced(costs, checkout.digits) if options.additional_costs else UNSET,
        identifiers=identifiers,
        attributes=_attributes(checkout, options.session_attributes),
    )
    return SessionRequest(
        account=account,
        digits=checkout.digits,
        lines=checkout.cart,
        session=content,
        costs=_all_costs(checkout, costs, line_costs, options),
        codes=sent,
        rejected=rejected,
        notices=(*cut, *unusable),
        options=options,
    )


def _codes(checkout: Checkout, options: Options) -> tuple[codes.SentCodes, str, tuple[Rejection, ...]]:
    """What can be sent, and the refusal of a card that would cost the whole cart an error."""
    given = checkout.promotions
    sent = codes.SentCodes(codes.unique(given.coupon_codes, case=options.code_case), given.referral_code)
    if not given.loyalty_card or _CARD.fullmatch(given.loyalty_card):
        return sent, given.loyalty_card, ()
    return sent, "", (Rejection(given.loyalty_card, Reason.MALFORMED, ""),)


def _identifiers(checkout: Checkout, options: Options) -> tuple[tuple[str, ...], tuple[Notice, ...]]:
    """The vendor advises hashes (https://docs.talon.one/docs/dev/tutorials/using-identifiers); a plain hash of an IP
    address is undone in minutes, hence a keyed one.
    """
    given = checkout.promotions.identifiers
    sent, dropped = given[:_MAX_IDENTIFIERS], len(given[_MAX_IDENTIFIERS:])
    if options.identifiers_key:
        sent = tuple(hmac.new(options.identifiers_key, text.encode(), hashlib.sha256).hexdigest() for text in sent)
    if not dropped:
        return sent, ()
    text = f"Talon.One takes {_MAX_IDENTIFIERS} identifiers per session; the last {dropped} were not sent."
    return sent, (Notice("identifiers_not_sent", text, {"sent": len(sent), "not_sent": dropped}),)


def _profile(checkout: Checkout, session: str, options: Options) -> str:
    """The customer; or a guest of this checkout's own, since under one shared guest id all anonymous shoppers would
    wait for each other (https://docs.talon.one/docs/dev/getting-started/integration-tutorial#managing-parallel-requests);
    or nobody, as the vendor allows and advises against: per-customer limits do not hold for nobody.
    """
    if not checkout.customer and options.guests == "anonymous":
        return ""
    return options.profile_prefix + (checkout.customer or f"guest-{session}")


# ---------------------------------------------------------------------------------------------------------------------
# Lines


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
        additional_costs=UNSET if costs is None else _priced(costs, checkout.digits),
        **fields,
    )


def _all_fields(checkout: Checkout, options: Options) -> tuple[list[dict[str, Any]], tuple[Notice, ...]]:
    """The vendor's own fields of each line: https://docs.talon.one/docs/dev/concepts/entities/customer-sessions

    What cannot be one is left out and told: most shops have something of these names, and a weight of "10 kg" is no
    reason to sell nothing.
    """
    unusable: list[str] = []
    compiled = _compiled(options.item_fields)
    fields = [_fields(line, compiled, unusable) for line in checkout.cart]
    if not unusable:
        return fields, ()
    text = f"{len(unusable)} values of the cart's lines are not what Talon.One takes there; they were not sent."
    return fields, (Notice("item_fields_not_sent", text, {"pointers": unusable}),)


_Field = tuple[str, str, str, tuple[str, ...], Callable[[Any], Any]]
"""One of the vendor's own fields: its name, the pointer, its first token, the others, and what reads the value there:
"" for a blank one, None for what cannot be one.
"""


@cache
def _compiled(item_fields: tuple[tuple[str, str], ...]) -> tuple[_Field, ...]:
    """The setting, made ready to be read from line after line."""
    tokens = [[token.replace("~1", "/").replace("~0", "~") for token in at[1:].split("/")] for _, at in item_fields]
    return tuple(
        (name, pointer, key, tuple(beyond), _FIELDS[name])
        for (name, pointer), (key, *beyond) in zip(item_fields, tokens, strict=True)
    )


def _fields(line: Line, compiled: tuple[_Field, ...], unusable: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    get = line.decoded.get  # quick: a weight may be as exact as the engine's own double
    for name, pointer, key, beyond, read in compiled:
        value = get(key)
        for token in beyond:
            value = value.get(token) if isinstance(value, dict) else None
        if value is None or value == "" or name in found:
            continue
        field = read(value)
        if field is None:
            unusable.append(line.pointer + pointer)
        elif field != "":
            found[name] = field
    return found


def _label(value: Any) -> str | None:
    """A name or a category; "" for a blank one, None where it is none."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _product(value: Any) -> Product | str | None:
    name = _label(value.get("name") if isinstance(value, dict) else value)
    return Product(name) if name else name


def _measure(value: Any) -> Raw | None:
    """A weight (grams) or a length (mm), from a number or a text: its digits, to be sent as they are."""
    digits = value.encode() if isinstance(value, str) else encode(value)  # true, lists and objects have none
    return Raw(digits) if _MEASURE.fullmatch(digits) else None


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "name": _label,
    "category": _label,
    "product": _product,
    **dict.fromkeys(("weight", "height", "width", "length"), _measure),
}


# ---------------------------------------------------------------------------------------------------------------------
# What stands at the configured places


def _costs(checkout: Checkout, names: dict[str, str], line: Line | None = None) -> dict[str, int]:
    found = ((name, checkout.amount_at(pointer, line)) for name, pointer in names.items())
    return {name: amount for name, amount in found if amount is not None}


def _all_costs(
    checkout: Checkout, costs: dict[str, int], line_costs: list[dict[str, int]], options: Options
) -> tuple[Cost, ...]:
    own = (
        Cost(name, told.get(name, 0) * line.quantity, line.index)
        for line, told in zip(checkout.cart, line_costs, strict=False)
        for name in options.item_additional_costs
    )
    return (*(Cost(name, costs.get(name, 0)) for name in options.additional_costs), *own)


def _priced(costs: dict[str, int], digits: int) -> dict[str, AdditionalCost]:
    return {name: AdditionalCost(money.to_major(price, digits)) for name, price in costs.items()}


def _attributes(checkout: Checkout, names: dict[str, str], line: Line | None = None) -> dict[str, Any] | UnsetType:
    """Only what is configured: one attribute that the account does not have makes the engine refuse the whole cart."""
    if not names:
        return UNSET
    found = {name: checkout.at_line(line, pointer) if line else checkout.at(pointer) for name, pointer in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _text(checkout: Checkout, pointer: str) -> str:
    value = checkout.at(pointer) if pointer else None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest("This is configured as an id, but it is no string.", pointer)
    return str(value).strip()
