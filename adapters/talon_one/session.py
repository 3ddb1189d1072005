"""A checkout as a customer session of Talon.One: what is asked, and what must be remembered to read the answer."""

import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from adapters.talon_one import wire
from adapters.talon_one.options import Options
from mapper.adapter import Checkout, Cost, InvalidRequest, Line, Notice, Reason, Rejection, money

# https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2
_MAX_CODE = 100
_MAX_IDENTIFIERS = 5
_CARD = re.compile(r"[A-Za-z0-9._%+@-]{4,108}", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """One question to the engine. `lines` are the lines it is told about: its positions count in this list."""

    account: str
    digits: int
    lines: tuple[Line, ...]
    session: wire.CustomerSession
    costs: dict[str, int]
    """The prices (minor units) of the cart's additional costs, by the engine's name."""
    line_costs: tuple[dict[str, int], ...]
    """The same of each line's own costs, for one unit; () where none are told."""
    cost_names: tuple[str, ...]
    line_cost_names: tuple[str, ...]
    """All that are configured, whether they came or not."""
    typed: tuple[str, ...]
    """Every code as the shopper spelled it, in the order in which refusals are told."""
    rejected: tuple[Rejection, ...]
    """Codes that cannot be sent at all."""
    notices: tuple[Notice, ...]

    @property
    def card(self) -> str:
        return self.session.loyalty_cards[0] if self.session.loyalty_cards else ""

    @property
    def told_costs(self) -> tuple[Cost, ...]:
        """The additional costs that are configured, with their prices: 0 where the cart or a line has none."""
        own = (
            Cost(name, costs.get(name, 0) * line.quantity, line.index)
            for line, costs in zip(self.lines, self.line_costs, strict=False)
            for name in self.line_cost_names
        )
        return (*(Cost(name, self.costs.get(name, 0)) for name in self.cost_names), *own)

    def without_card(self) -> "Asked":
        """The same question, its loyalty card refused."""
        refused = Rejection(self.card, Reason.NOT_FOUND, "")
        session = _with(self.session, loyalty_cards=())
        return replace(self, session=session, rejected=(*self.rejected, refused))

    def body(self, state: str) -> bytes:
        return wire.encode(wire.IntegrationRequest(customer_session=_with(self.session, state=state)))


def _with(session: wire.CustomerSession, **changes: Any) -> wire.CustomerSession:
    return msgspec.structs.replace(session, **changes)


def ask(checkout: Checkout, session: str, options: Options) -> Asked:
    """Raises `InvalidRequest` where the body has something unusable at a configured place, and `EngineRejected` where
    its currency is not served.
    """
    account = options.account(checkout.currency)
    coupons, referral, card, rejected = _codes(checkout)
    identifiers, notices = _identifiers(checkout, options)
    costs = _costs(checkout, options.additional_costs)
    own_costs = options.item_additional_costs
    line_costs = tuple([_costs(checkout, own_costs, line) for line in checkout.cart]) if own_costs else ()
    content = wire.CustomerSession(
        profile_id=_profile(checkout, session, options),
        store_integration_id=_text(checkout, options.store_path) or UNSET,
        coupon_codes=coupons,
        referral_code=referral,
        loyalty_cards=(card,) if card else (),
        state="open",
        cart_items=tuple(
            [
                _item(checkout, line, line_costs[position] if line_costs else None, options)
                for position, line in enumerate(checkout.cart)
            ]
        ),
        additional_costs=_priced(costs, checkout.digits) if options.additional_costs else UNSET,
        identifiers=identifiers,
        attributes=_attributes(checkout, options.session_attributes),
    )
    return Asked(
        account=account,
        digits=checkout.digits,
        lines=checkout.cart,
        session=content,
        costs=costs,
        line_costs=line_costs,
        cost_names=tuple(options.additional_costs),
        line_cost_names=tuple(own_costs),
        typed=checkout.promotions.codes,
        rejected=rejected,
        notices=notices,
    )


def _codes(checkout: Checkout) -> tuple[tuple[str, ...], str, str, tuple[Rejection, ...]]:
    """What can be sent, and refusals of what the engine would answer with an error for the whole cart.

    The engine decides itself whether case matters (https://docs.talon.one/docs/product/applications/manage-general-settings);
    a code that was typed twice in different case is sent once, as it was first spelled.
    """
    given = checkout.promotions
    first: dict[str, str] = {}
    for code in given.coupon_codes:
        first.setdefault(code.casefold(), code)
    too_long = [code for code in (*first.values(), given.referral_code) if len(code) > _MAX_CODE]
    card_fits = not given.loyalty_card or _CARD.fullmatch(given.loyalty_card)
    malformed = too_long if card_fits else [*too_long, given.loyalty_card]
    return (
        tuple(code for code in first.values() if len(code) <= _MAX_CODE),
        given.referral_code if len(given.referral_code) <= _MAX_CODE else "",
        given.loyalty_card if card_fits else "",
        tuple(Rejection(code, Reason.MALFORMED, "") for code in malformed),
    )


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
    """The customer, or a guest of this checkout's own: under one shared guest id all anonymous shoppers would wait for
    each other (https://docs.talon.one/docs/dev/getting-started/integration-tutorial#managing-parallel-requests).
    """
    return options.profile_prefix + (_text(checkout, options.profile_id_path) or f"guest-{session}")


def _item(checkout: Checkout, line: Line, costs: dict[str, int] | None, options: Options) -> wire.CartItem:
    sku = getattr(line, options.sku_field) if options.sku_field else line.name
    if not sku:
        raise InvalidRequest(f"The line has no {options.sku_field}.", f"{line.pointer}/{options.sku_field}")
    return wire.CartItem(
        sku=sku,
        quantity=line.quantity,
        price=money.to_major(line.list_price, checkout.digits),
        attributes=_attributes(checkout, options.item_attributes, line),
        additional_costs=UNSET if costs is None else _priced(costs, checkout.digits),
    )


def _costs(checkout: Checkout, names: dict[str, str], line: Line | None = None) -> dict[str, int]:
    found = ((name, checkout.amount_at(pointer, line)) for name, pointer in names.items())
    return {name: amount for name, amount in found if amount is not None}


def _priced(costs: dict[str, int], digits: int) -> dict[str, wire.AdditionalCost]:
    return {name: wire.AdditionalCost(money.to_major(price, digits)) for name, price in costs.items()}


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
