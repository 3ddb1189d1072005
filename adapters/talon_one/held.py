"""What the engine holds of a session, compared with what it is told.

A PUT is a merge: what is left out stays. An empty list of codes and an empty referral code are documented to clear, and
the lines are replaced as a whole; how to take back an attribute, a store, a cost or a customer is not documented
anywhere (as of August 2026), nor is what a null does. So nothing relies on it: the engine is asked what it holds, and
what must not count any more is left behind with the session that holds it.
"""

from collections.abc import Iterable

from adapters.talon_one import codes, replies
from adapters.talon_one.options import Options
from adapters.talon_one.replies import StoredSession
from adapters.talon_one.request import CustomerSession, SessionRequest


def leftovers(stored: StoredSession, request: SessionRequest) -> list[str]:
    """The fields that the engine was told at another time, and is not told now.

    Only what this service tells, by its settings: attributes that others have set stay.
    """
    told = request.session
    found = [f"attributes/{name}" for name in _untold_attributes(request) if _is_there(stored, name)]
    for name in _untold_costs(request):
        cost = (stored.additional_costs or {}).get(name)
        if cost is not None and cost.price:
            found.append(f"additionalCosts/{name}")
    if stored.store_integration_id and _tells_no_store(told, request.options):
        found.append("storeIntegrationId")
    if stored.profile_id and not told.profile_id:
        found.append("profileId")
    if stored.loyalty_cards and not told.loyalty_cards:
        found.append("loyaltyCards")
    if stored.identifiers and not told.identifiers:
        found.append("identifiers")
    return found


def left_by_update(stored: StoredSession, request: SessionRequest) -> list[str]:
    """The same of what an update has answered: in a session that it has just made nothing is left of another time."""
    return [] if stored.update_count == 1 else leftovers(stored, request)


def may_be_left(request: SessionRequest) -> bool:
    """Whether the session may hold something that the request does not tell, and that it cannot take back."""
    told = request.session
    return (
        not told.profile_id
        or _tells_no_store(told, request.options)
        or any(_untold_attributes(request))
        or any(_untold_costs(request))
    )


def _untold_attributes(request: SessionRequest) -> Iterable[str]:
    told = request.session.attributes or {}
    return [name for name in request.options.session_attributes if name not in told]


def _untold_costs(request: SessionRequest) -> Iterable[str]:
    told = request.session.additional_costs or {}
    return [name for name in request.options.additional_costs if name not in told]


def _tells_no_store(told: CustomerSession, options: Options) -> bool:
    return bool(options.store_path) and not told.store_integration_id


def _is_there(stored: StoredSession, attribute: str) -> bool:
    value = (stored.attributes or {}).get(attribute)
    return value is not None and bytes(value) != b"null"


def same(stored: StoredSession, request: SessionRequest) -> bool:
    """Whether a stored session has the order's cart (compared numerically) and its codes."""
    items = replies.items(stored.cart_items)
    if items is None:
        raise replies.bad_reply()
    theirs = [(i.sku, i.quantity, i.price) for i in items if i.price is not None and i.price.is_finite()]
    told = request.session

    def fold(texts: Iterable[str] | None) -> set[str]:
        sensitive = request.options.code_case == "sensitive"
        return {text if sensitive else codes.folded(text) for text in texts or ()}

    return (
        len(theirs) == len(items)
        and theirs == [(item.sku, item.quantity, item.price) for item in told.cart_items]
        and fold(stored.coupon_codes) == fold(told.coupon_codes)
        and fold([stored.referral_code or ""]) == fold([told.referral_code])
        and (not stored.loyalty_cards or fold(stored.loyalty_cards) == fold(told.loyalty_cards))
    )
