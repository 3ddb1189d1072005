"""The error keys and messages of the vendor, for a redeemable or a whole request.

https://docs.voucherify.io/api-reference/errors
"""

from typing import Any, Final

Json = dict[str, Any]

MESSAGES: Final = {
    "not_found": "Resource not found",
    "voucher_disabled": "voucher is disabled",
    "voucher_expired": "voucher expired",
    "voucher_not_active": "voucher is not active yet",
    "promotion_inactive": "Inactive Promotion",
    "promotion_not_active_now": "promotion not active now",
    "quantity_exceeded": "quantity exceeded",
    "gift_amount_exceeded": "gift amount exceeded",
    "loyalty_card_points_exceeded": "loyalty card points exceeded",
    "order_rules_violated": "order did not match validation rules",
    "customer_rules_violated": "customer did not match validation rules",
    "redemption_rules_violated": "redemption did not match validation rules",
    "referrer_not_permitted_to_redeem": "Referrer not permitted to redeem",
    "missing_customer": "Missing customer",
    "missing_order": "Missing order",
    "missing_order_items": "Missing order items",
    "missing_amount": "Missing amount",
    "missing_reward": "Missing reward",
    "invalid_customer": "Customer must be a holder of a loyalty card.",
    "duplicated_redeemables": "Duplicated redeemables detected",
    "invalid_redeemables": "Invalid redeemables",
    "invalid_payload": "Invalid payload",
    "invalid_order": "Invalid order",
    "multiple_requests": "Multiple requests",
    "already_rolled_back": "Already rolled back",
    "invalid_redemption_parent": "Invalid redemption parent",
    "invalid_redemption": "Invalid redemption",
    "unauthorized": "Unauthorized",
    "no_applicable_redeemables": "No applicable redeemables",
}

_SKIPPED: Final = {
    "preceding_validation_failed": "Redeemable cannot be applied due to preceding validation failure",
    "exclusion_rules_not_met": "Redeemable cannot be applied due to exclusion rules",
    "applicable_redeemables_limit_exceeded": "Applicable redeemables limit exceeded",
    "applicable_exclusive_redeemables_limit_exceeded": "Applicable exclusive redeemables limit exceeded",
    "applicable_redeemables_per_category_limit_exceeded": "Applicable redeemables limit per category exceeded",
    "no_effect": "Redeemable has no effect",
}


def skipped_message(key: str) -> str:
    return _SKIPPED[key]


class Refused(Exception):
    """A redeemable does not apply, or the whole request fails."""

    def __init__(self, key: str, details: str = "", status: int = 400, message: str = "", **more: Any) -> None:
        super().__init__(key)
        self.status = status
        self.key = key
        self.message = message or MESSAGES[key]
        self.details = details
        self.more = more
        """`resource_id` and `resource_type`, or the merchant's message as `error`."""

    def body(self, request_id: str) -> Json:
        return {
            "code": self.status,
            "key": self.key,
            "message": self.message,
            "details": self.details,
            "request_id": request_id,
        } | self.more


def not_found(what: str, id_: str) -> Refused:
    kind = what.replace(" ", "_")
    return Refused("not_found", f"Cannot find {what} with id {id_}", 404, resource_id=id_, resource_type=kind)
