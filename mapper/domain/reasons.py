"""The reasons why a code does not apply, the same for every engine.

Adapters map their engine's words to these. An unknown word becomes `Reason.OTHER`; `Rejection.engine_reason` keeps it.
"""

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """The word for logs, metrics and answers. `message` is the English sentence for the shopper.

    The sentences in other languages, and the hints for merchants, are in `mapper.domain.languages`.
    """

    message: str

    def __new__(cls, word: str, message: str = "") -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.message = message
        return member

    NOT_FOUND = "not_found", "This code does not exist."
    MALFORMED = "malformed", "This is not a valid code."
    EXPIRED = "expired", "This code has expired."
    NOT_STARTED = "not_started", "This code is not valid yet."
    NOT_ACTIVE = "not_active", "The promotion behind this code is not running at the moment."
    USED_UP = "used_up", "This code has already been used up."
    CUSTOMER_LIMIT_REACHED = "customer_limit_reached", "You have already used this code as often as allowed."
    BUDGET_USED_UP = "budget_used_up", "The promotion behind this code has reached its limit."
    NOT_YOURS = "not_yours", "This code belongs to another customer."
    SIGN_IN_REQUIRED = "sign_in_required", "Please sign in to use this code."
    MINIMUM_NOT_MET = "minimum_not_met", "Your cart does not reach the minimum for this code."
    CONDITIONS_NOT_MET = "conditions_not_met", "Your cart does not meet the conditions of this code."
    CUSTOMER_NOT_ELIGIBLE = "customer_not_eligible", "This code is not available to you."
    NOT_COMBINABLE = "not_combinable", "This code cannot be combined with another promotion in your cart."
    BETTER_OFFER_APPLIED = "better_offer_applied", "A better offer is already applied to your cart."
    NO_EFFECT = "no_effect", "This code makes no difference to your cart."
    RESERVATION_REQUIRED = "reservation_required", "This code must be saved to your account before it can be used."
    OWN_REFERRAL = "own_referral", "You cannot use your own referral code."
    ALREADY_REFERRED = "already_referred", "You have already used a referral code."
    REFERRER_NOT_FOUND = "referrer_not_found", "The person who shared this code was not found."
    BALANCE_TOO_LOW = "balance_too_low", "The balance of this card is too low."
    REWARD_REQUIRED = "reward_required", "Please choose a reward to use this card."
    IN_USE = "in_use", "This code is being used in another checkout."
    TOO_MANY_CODES = "too_many_codes", "Too many codes are applied to this cart."
    DATA_MISSING = "data_missing", "This code needs more information about your order."
    NOT_SUPPORTED = "not_supported", "This kind of code cannot be used here."
    NOT_APPLIED = "not_applied", "This code could not be applied."
    OTHER = "other", "This code could not be applied to your cart."
