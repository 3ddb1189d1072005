"""Acme's reasons of refused codes, and ours. An unknown one is `Reason.OTHER`, with Acme's word beside it."""

from mapper.adapter import Reason

WORDS = {
    "UNKNOWN": Reason.NOT_FOUND,
    "OUTDATED": Reason.EXPIRED,
    "TOO_SMALL": Reason.MINIMUM_NOT_MET,
    "GONE": Reason.USED_UP,
}


def reason(word: str) -> Reason:
    return WORDS.get(word, Reason.OTHER)
