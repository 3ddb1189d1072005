"""Why a voucher does not apply. Oscar has no words for it, only sentences, and translates them: they are known by what
they say in English (the API is asked for it), and what is not known is `Reason.OTHER`.

https://github.com/django-oscar/django-oscar-api/blob/master/oscarapi/serializers/basket.py, and Oscar's
`Voucher.is_available_to_user` (November 2026)
"""

from mapper.adapter import Reason

# American English has "coupon" and "cart" where British has "voucher" and "basket".
SENTENCES = {
    "code unknown": ("unknown", Reason.NOT_FOUND),
    "has expired": ("expired", Reason.EXPIRED),  # also said of what has not started yet
    "has already been used": ("already_used", Reason.USED_UP),
    "only available to signed in users": ("signed_in_only", Reason.SIGN_IN_REQUIRED),
    "have already used this": ("already_used_by_user", Reason.CUSTOMER_LIMIT_REACHED),
    "does not qualify for a": ("not_qualified", Reason.CONDITIONS_NOT_MET),
}


def known(sentence: str) -> tuple[str, Reason]:
    """A word for the log, and ours for the shopper. The sentence itself holds the code and is passed on to nobody."""
    return next((found for part, found in SENTENCES.items() if part in sentence), ("", Reason.OTHER))
