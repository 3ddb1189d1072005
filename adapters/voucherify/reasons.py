"""Voucherify's error keys: what each is about, and its engine-neutral reason.

The keys are those of https://docs.voucherify.io/api-reference/errors. A key may be that of one redeemable in a reply
with status 200, or that of a reply with status 4xx.
"""

from typing import Literal, NamedTuple

from mapper.adapter import EngineRejected, EngineUnavailable, Problem, Reason

Kind = Literal["code", "request", "account", "busy"]


class Fault(NamedTuple):
    kind: Kind
    """What the error is about.

    - `code`: a code does not apply
    - `request`: the request is malformed
    - `account`: the keys, their rights or the plan do not allow the request
    - `busy`: another request for the same order or voucher is in progress, so this one had no result
    """
    reason: str
    """For `code` a `Reason`; for the others the reason in log and metric."""


# Independent of the other redeemables of the request.
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
    # Also where another session has locked the code, and where this order has redeemed it before.
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

# May depend on the redeemables that were applied before: they change the order's total, items and remaining amount.
_AFTER_OTHERS = {
    "gift_amount_exceeded": "balance_too_low",
    "loyalty_card_points_exceeded": "balance_too_low",
    "order_rules_violated": "conditions_not_met",
    "redemption_rules_violated": "conditions_not_met",
}

# Status SKIPPED: the project's stacking rules leave the redeemable out.
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
"""A redemption, in mode PARTIAL, in which no redeemable applies."""

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

# For replies without a known key.
_BY_STATUS: dict[int, Fault] = {
    401: Fault("account", "unauthorized"),
    402: Fault("account", "missing_required_feature"),
    403: Fault("account", "forbidden"),
    408: Fault("busy", "request_timeout"),
    423: Fault("busy", "locked"),
    425: Fault("busy", "too_early"),
}


def reason(key: str) -> Reason:
    """The reason why a code does not apply."""
    if key == "multiple_requests":
        # As the error of one code: it is being redeemed, so that nobody knows yet whether it can be used.
        return Reason.IN_USE
    fault = FAULTS.get(key)
    return Reason(fault.reason) if fault and fault.kind == "code" else Reason.OTHER


def is_own(key: str) -> bool:
    """Whether the redeemable would not apply on its own either."""
    return key in _OWN


def is_skipped(key: str) -> bool:
    """Whether the stacking rules left the redeemable out."""
    return key in _SKIPPED and key != PRECEDING_FAILED


def fault(status: int, key: str) -> Fault:
    """The fault of a reply with this status (not 200) and this error key."""
    return FAULTS.get(key) or _BY_STATUS.get(status) or Fault("request", "unexpected_error")


_MESSAGES: dict[Kind, str] = {
    "code": "Voucherify refused the request.",
    "request": "Voucherify refused the request as malformed; the integration or the project needs a change.",
    "account": "Voucherify refused the application keys, or the account lacks the right or the plan for this call.",
}


def problem(status: int, key: str) -> Problem:
    """The problem for an error that is not about a code. It never quotes the engine's text, which may be private."""
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
