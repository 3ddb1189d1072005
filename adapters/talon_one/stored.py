"""Compares the session that Talon.One stores with the session that a request sends.

A PUT merges: a field that is left out keeps its stored value. An empty list of codes and an empty referral code are
documented to clear the field, and the cart is replaced as a whole. How to clear an attribute, a store, an additional
cost or a customer is not documented (August 2026), nor what a null does. So a value that is stored but no longer sent
is *stale*: the adapter detects it here and uses another session.
"""

from collections.abc import Iterable

from adapters.talon_one import codes, replies
from adapters.talon_one.options import Options
from adapters.talon_one.replies import StoredItem, StoredSession
from adapters.talon_one.request import CartItem, CustomerSession, SessionRequest


def stale_fields(stored: StoredSession, session: str, request: SessionRequest) -> list[str]:
    """The fields that the session stores and the request does not send.

    Only fields that the settings name are compared. Attributes that another system has set are not stale. A reply that
    names another session says nothing of this one.
    """
    if stored.integration_id not in (None, session):
        return []
    sent = request.session
    fields = [f"attributes/{name}" for name in _attributes_not_sent(request) if _has_attribute(stored, name)]
    for name in _costs_not_sent(request):
        cost = (stored.additional_costs or {}).get(name)
        if cost is not None and cost.price:
            fields.append(f"additionalCosts/{name}")
    if stored.store_integration_id and _lacks_store(sent, request.options):
        fields.append("storeIntegrationId")
    if stored.profile_id and not sent.profile_id:
        fields.append("profileId")
    if stored.loyalty_cards and not sent.loyalty_cards:
        fields.append("loyaltyCards")
    if stored.identifiers and not sent.identifiers:
        fields.append("identifiers")
    return fields


def stale_after_update(stored: StoredSession, session: str, request: SessionRequest) -> list[str]:
    """The stale fields of the session that an update returned; none where the update created the session."""
    return [] if stored.update_count == 1 else stale_fields(stored, session, request)


def may_hold_stale_values(request: SessionRequest) -> bool:
    """Whether the stored session may hold a value that the request leaves out and cannot clear."""
    sent = request.session
    return (
        not sent.profile_id
        or _lacks_store(sent, request.options)
        or any(_attributes_not_sent(request))
        or any(_costs_not_sent(request))
    )


def _attributes_not_sent(request: SessionRequest) -> Iterable[str]:
    sent = request.session.attributes or {}
    return [name for name in request.options.session_attributes if name not in sent]


def _costs_not_sent(request: SessionRequest) -> Iterable[str]:
    sent = request.session.additional_costs or {}
    return [name for name in request.options.additional_costs if name not in sent]


def _lacks_store(sent: CustomerSession, options: Options) -> bool:
    return bool(options.store_path) and not sent.store_integration_id


def _has_attribute(stored: StoredSession, attribute: str) -> bool:
    value = (stored.attributes or {}).get(attribute)
    return value is not None and bytes(value) != b"null"


def has_same_content(stored: StoredSession, request: SessionRequest) -> bool:
    """Whether the stored session has the request's cart (prices compared as numbers) and its codes.

    A price that Talon.One has selected itself, such as a members' price, is not compared.
    """
    items = replies.items(stored.cart_items)
    if items is None:
        raise replies.unreadable_reply()
    sent = request.session

    def fold(texts: Iterable[str] | None) -> set[str]:
        sensitive = request.options.code_case == "sensitive"
        return {text if sensitive else codes.fold_case(text) for text in texts or ()}

    return (
        len(items) == len(sent.cart_items)
        and all(map(_is_same_item, items, sent.cart_items))
        and fold(stored.coupon_codes) == fold(sent.coupon_codes)
        and fold([stored.referral_code or ""]) == fold([sent.referral_code])
        and (not stored.loyalty_cards or fold(stored.loyalty_cards) == fold(sent.loyalty_cards))
    )


def _is_same_item(stored: StoredItem, sent: CartItem) -> bool:
    if (stored.sku, stored.quantity) != (sent.sku, sent.quantity):
        return False
    is_sent_price = stored.price is not None and stored.price.is_finite() and stored.price == sent.price
    return is_sent_price or bool(stored.selected_price_type)
