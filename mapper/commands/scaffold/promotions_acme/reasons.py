"""Acme's words for why a code does not apply, and ours. A word that is not here is `Reason.OTHER`, and never lost."""

from mapper.adapter import Reason

WORDS = {
    "UNKNOWN": Reason.NOT_FOUND,
    "OUTDATED": Reason.EXPIRED,
    "TOO_SMALL": Reason.MINIMUM_NOT_MET,
    "GONE": Reason.USED_UP,
}


def reason(word: str) -> Reason:
    return WORDS.get(word, Reason.OTHER)
