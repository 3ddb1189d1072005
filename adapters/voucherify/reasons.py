"""Voucherify's error keys, in one table: whose matter each is, and the word we use for it.

The keys are those of https://docs.voucherify.io/api-reference/errors. The same key may stand beside one redeemable of
an answer with status 200, or be the whole answer with status 4xx.
"""

from typing import Literal, NamedTuple

from mapper.adapter import EngineRejected, EngineUnavailable, Problem, Reason

Kind = Literal["code", "request", "account", "busy"]


class Fault(NamedTuple):
    kind: Kind
    """code: this code does not apply. request: we asked wrongly. account: the keys, rights or plan do not allow it.
    busy: another request for the same order or voucher is under way; nothing is known about ours."""
    reason: str
    """A word of `mapper.domain.reasons` for a code; otherwise the word for log and metric."""


# The code's own matter: no other code and no promotion beside it has anything to do with it.
_OWN = {
    "not_found": "not_found",
    "resource_not_found": "not_found",
    "voucher_expired": "expired",
    "voucher_not_active": "not_started",
    "voucher_not_active_now": "not_active",
    "voucher_disabled": "not_active",
    "promotion_inactive": "not_active",
    "promotion_not_active_now": "not_active",
    "campaign_not_active": "not_active",
    # Also what a stranger's session lock looks like, and what our own earlier redemption looks like.
    "quantity_exceeded": "used_up",
    "customer_rules_violated": "customer_not_eligible",
    "referrer_not_permitted_to_redeem": "own_referral",
    "invalid_customer": "not_yours",
    "missing_customer": "sign_in_required",
    "missing_reward": "reward_required",
    "missing_order": "data_missing",
    "missing_order_items": "data_missing",
    "missing_order_items_amount": "data_missing",
    "missing_amount": "data_missing",
}

# What was applied before it may have changed the order: its total, its items, what is left to pay.
_AFTER_OTHERS = {
    "gift_amount_exceeded": "balance_too_low",
    "loyalty_card_points_exceeded": "balance_too_low",
    "order_rules_violated": "conditions_not_met",
    "redemption_rules_violated": "conditions_not_met",
}

# Status SKIPPED: nothing is wrong with the code, the project's stacking rules leave it out beside the others.
# https://docs.voucherify.io/orchestrate/stacking-rules (2026-08)
_SKIPPED = {
    "applicable_redeemables_limit_exceeded": "too_many_codes",
    "applicable_redeemables_per_category_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_limit_exceeded": "not_combinable",
    "applicable_exclusive_redeemables_per_category_limit_exceeded": "not_combinable",
    "exclusion_rules_not_met": "not_combinable",
    "preceding_validation_failed": "not_applied",
    "no_effect": "no_effect",
}

LIMIT_EXCEEDED = "applicable_redeemables_limit_exceeded"
PRECEDING_FAILED = "preceding_validation_failed"
NONE_APPLIES = "no_applicable_redeemables"
"""A project in mode PARTIAL, of a redemption in which nothing would be redeemed."""

_CODES = {**_OWN, **_AFTER_OTHERS, **_SKIPPED, NONE_APPLIES: "not_applied"}

_REQUEST = (
    "invalid_payload duplicated_redeemables invalid_redeemables invalid_order invalid_amount invalid_gift "
    "invalid_product invalid_sku invalid_query_params query_too_large metadata_validation_failed "
    "ambiguous_tracking_id duplicate_found duplicate_resource_key already_rolled_back invalid_redemption_parent "
    "invalid_redemption invalid_rollback_params"
)
_ACCOUNT = "unauthorized forbidden missing_required_feature missing_required_permission"

FAULTS: dict[str, Fault] = {
    **{key: Fault("code", reason) for key, reason in _CODES.items()},
    **{key: Fault("request", key) for key in _REQUEST.split()},
    **{key: Fault("account", key) for key in _ACCOUNT.split()},
    "multiple_requests": Fault("busy", "multiple_requests"),
}

# Where the answer names no key we know, its status decides.
_BY_STATUS: dict[int, Fault] = {
    401: Fault("account", "unauthorized"),
    402: Fault("account", "missing_required_feature"),
    403: Fault("account", "forbidden"),
    408: Fault("busy", "request_timeout"),
    423: Fault("busy", "locked"),
    425: Fault("busy", "too_early"),
}


def reason(key: str) -> Reason:
    """The engine-neutral word for why a code does not apply."""
    fault = FAULTS.get(key)
    return Reason(fault.reason) if fault and fault.kind == "code" else Reason.OTHER


def is_own(key: str) -> bool:
    """Whether a redeemable that is refused for this would be refused alone, too."""
    return key in _OWN


def is_skipped(key: str) -> bool:
    """Whether it is refused for what stands beside it, wherever in the request that stands."""
    return key in _SKIPPED and key != PRECEDING_FAILED


def fault(status: int, key: str) -> Fault:
    """What an answer with this status (not 200) and this key is about."""
    return FAULTS.get(key) or _BY_STATUS.get(status) or Fault("request", "unexpected_error")


_MESSAGES: dict[Kind, str] = {
    "code": "Voucherify refused the request.",
    "request": "Voucherify refused the request as malformed; the integration or the project needs a change.",
    "account": "Voucherify refused the application keys, or the account lacks the right or the plan for this call.",
}


def problem(status: int, key: str) -> Problem:
    """The problem behind an answer that is no matter of a code. The engine's own text is left out on purpose."""
    found = fault(status, key)
    if found.kind == "busy":
        message = "Voucherify is working on another request for the same order."
        return EngineUnavailable(message, reason=found.reason)
    if not 400 <= status < 500:
        message = "Voucherify answered with a status that was not expected."
        return EngineUnavailable(message, reason="unexpected_status")
    if status == 404:
        message = "Voucherify does not know this address; check the base URL."
        return EngineRejected(message, reason="not_found_at_engine", engine_status=status)
    return EngineRejected(_MESSAGES[found.kind], reason=found.reason, engine_status=status)
