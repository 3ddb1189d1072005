"""Why a code did not apply: one vocabulary for every engine, each word with a sentence for the shopper.

Adapters map their engine's words to these; a word they do not know becomes `other`, with the engine's own word kept in
`engine_reason`.
"""

REASONS: dict[str, str] = {
    "not_found": "This code does not exist.",
    "malformed": "This is not a valid code.",
    "expired": "This code has expired.",
    "not_started": "This code is not valid yet.",
    "not_active": "The promotion behind this code is not running at the moment.",
    "used_up": "This code has already been used up.",
    "customer_limit_reached": "You have already used this code as often as allowed.",
    "budget_used_up": "The promotion behind this code has reached its limit.",
    "not_yours": "This code belongs to another customer.",
    "sign_in_required": "Please sign in to use this code.",
    "minimum_not_met": "Your cart does not reach the minimum for this code.",
    "conditions_not_met": "Your cart does not meet the conditions of this code.",
    "customer_not_eligible": "This code is not available to you.",
    "not_combinable": "This code cannot be combined with another promotion in your cart.",
    "better_offer_applied": "A better offer is already applied to your cart.",
    "no_effect": "This code makes no difference to your cart.",
    "reservation_required": "This code must be saved to your account before it can be used.",
    "own_referral": "You cannot use your own referral code.",
    "already_referred": "You have already used a referral code.",
    "referrer_not_found": "The person who shared this code was not found.",
    "balance_too_low": "The balance of this card is too low.",
    "reward_required": "Please choose a reward to use this card.",
    "in_use": "This code is being used in another checkout.",
    "too_many_codes": "Too many codes are applied to this cart.",
    "data_missing": "This code needs more information about your order.",
    "not_supported": "This kind of code cannot be used here.",
    "not_applied": "This code could not be applied.",
    "other": "This code could not be applied to your cart.",
}
