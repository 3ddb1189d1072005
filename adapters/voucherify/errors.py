"""Reads error replies (status 4xx) and finds the redeemables that they are about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.voucherify import reasons
from adapters.voucherify.matching import matcher_for
from adapters.voucherify.reading import document, text
from adapters.voucherify.redeemables import Redeemable, find
from adapters.voucherify.replies import error_key, read_inapplicable
from mapper.adapter import EngineReply, EngineUnavailable

# The fields that may name what an error is about: by code, by internal id, or within a sentence.
# https://docs.voucherify.io/api-reference/errors (2026-08)
_NAMES = ("resource_id", "redeemable_id", "related_object_id", "details")
_KINDS = ("voucher", "promotion_tier", "redemption")


@dataclass(frozen=True, slots=True)
class Error:
    key: str
    about_redeemable: bool
    names: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)


def read_error(reply: EngineReply) -> Error:
    """The error in a reply; one without a key where the body cannot be read."""
    try:
        body = document(reply)
    except EngineUnavailable:
        return Error("", about_redeemable=False)
    names = [name for field in _NAMES if (name := text(body.get(field)))]
    # "Cannot find voucher with id SAVE10": take the id out of the sentence.
    names += [name.rsplit(" id ", 1)[-1] for name in names if " id " in name]
    return Error(error_key(body), text(body.get("resource_type")) in _KINDS, tuple(names), body)


def inapplicable_by_error(
    reply: EngineReply, redeemables: Sequence[Redeemable], *, may_exceed_limit: bool = False
) -> tuple[dict[Redeemable, str], str]:
    """The redeemables that an error reply is about, with the error key; empty where it does not say. And its own key.

    `may_exceed_limit`: a malformed request with several redeemables may have too many, so it is about no one of them.
    Raises a `Problem` where the error is not about redeemables.
    """
    error = read_error(reply)
    fault = reasons.fault(reply.status, error.key)
    named = find(redeemables, error.names)
    if reply.status == 404:
        concerns = error.about_redeemable or named is not None
    else:
        known = error.key in reasons.FAULTS
        concerns = fault.kind == "code" or (not known and fault.kind == "request" and error.about_redeemable)
    if may_exceed_limit and reply.status == 400 and fault.kind == "request" and len(redeemables) > 1:
        return {}, error.key
    if not concerns or not 400 <= reply.status < 500:
        raise reasons.problem(reply.status, error.key)
    if listed := read_inapplicable(error.body, matcher_for(error.body, redeemables)):
        return listed, error.key
    if named is None and len(redeemables) == 1 and error.key != reasons.NONE_APPLIES:
        named = redeemables[0]
    if named is not None:
        return {named: error.key}, error.key
    if error.key == "missing_reward":
        return {card: error.key for card in redeemables if "reward" in card.payment}, error.key
    return {}, error.key
