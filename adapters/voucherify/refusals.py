"""An answer with status 4xx: whose matter it is, and which of the redeemables it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.voucherify import reasons
from adapters.voucherify.naming import read_names
from adapters.voucherify.reading import document, text
from adapters.voucherify.redeemables import Redeemable, named
from adapters.voucherify.replies import key_in, refused_in
from mapper.adapter import EngineReply, EngineUnavailable

# Where an error says what it is about: by a code, by an internal id, or within a sentence.
# https://docs.voucherify.io/api-reference/errors (2026-08)
_NAMES = ("resource_id", "redeemable_id", "related_object_id", "details")
_KINDS = ("voucher", "promotion_tier", "redemption")


@dataclass(frozen=True, slots=True)
class Error:
    key: str
    about_redeemable: bool
    names: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)


def error(reply: EngineReply) -> Error:
    """Reads an error as far as it can be read: a broken one is an error all the same."""
    try:
        body = document(reply)
    except EngineUnavailable:
        return Error("", about_redeemable=False)
    names = [name for field in _NAMES if (name := text(body.get(field)))]
    # "Cannot find voucher with id SAVE10": the last word, too.
    names += [name.rsplit(" id ", 1)[-1] for name in names if " id " in name]
    return Error(key_in(body), text(body.get("resource_type")) in _KINDS, tuple(names), body)


def read_refusal(
    reply: EngineReply, asked: Sequence[Redeemable], *, several_may_be_too_many: bool = False
) -> tuple[dict[Redeemable, str], str]:
    """Which redeemables an answer with status 4xx is about (empty: it does not say), and its key.

    Raises a `Problem` where the answer is no matter of a redeemable.
    """
    found = error(reply)
    fault = reasons.fault(reply.status, found.key)
    one = named(asked, found.names)
    if reply.status == 404:
        concerns = found.about_redeemable or one is not None
    else:
        known = found.key in reasons.FAULTS
        concerns = fault.kind == "code" or (not known and fault.kind == "request" and found.about_redeemable)
    if several_may_be_too_many and reply.status == 400 and fault.kind == "request" and len(asked) > 1:
        return {}, found.key
    if not concerns or not 400 <= reply.status < 500:
        raise reasons.problem(reply.status, found.key)
    if listed := refused_in(found.body, read_names(found.body, asked)):
        return listed, found.key
    if one is None and len(asked) == 1 and found.key != reasons.NONE_APPLIES:
        one = asked[0]
    if one is not None:
        return {one: found.key}, found.key
    if found.key == "missing_reward":
        return {card: found.key for card in asked if "reward" in card.spend}, found.key
    return {}, found.key
