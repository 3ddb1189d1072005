"""Rejected codes, notices and differing amounts, as answers have them.

These are the shapes in `promotions.meta.mapper` and of `details` in an error.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from mapper.domain import money
from mapper.domain.checkout import Checkout
from mapper.domain.codes import as_json
from mapper.domain.discounts import Allocation
from mapper.domain.errors import Refused
from mapper.domain.languages import Language, message
from mapper.domain.outcome import Notice, Outcome, Rejection


def refused(rejected: Iterable[Rejection], language: Language = "en") -> Refused:
    return Refused([rejection(one, language) for one in rejected])


def complete(checkout: Checkout, outcome: Outcome) -> Outcome:
    """The outcome with codes spelled and ordered as entered, with malformed codes rejected, and with the checkout's own
    notices.
    """
    rejected = checkout.promotions.as_entered(outcome.rejected)
    return msgspec.structs.replace(outcome, rejected=rejected, notices=(*outcome.notices, *checkout.notices))


def rejection(rejected: Rejection, language: Language = "en") -> dict[str, Any]:
    return {
        "code": as_json(rejected.code),
        "reason": rejected.reason.value,
        "engine_reason": rejected.engine_reason,
        "message": message(rejected.reason, language),
    }


def notice(one: Notice) -> dict[str, Any]:
    return {"type": one.type, "text": one.text, "payload": one.payload}


def unchanged(order: Checkout) -> bytes:
    """The answer of consume: the order, unchanged."""
    return b'{"order":' + order.source.replace({}) + b"}"


def drift(order: Checkout, granted: Allocation) -> Notice | None:
    """The difference between the discounts that the order carries and those that the engine grants; None for none."""
    digits = order.digits
    lines = [
        {"pointer": line.pointer, "order": money.text(line.discount, digits), "engine": money.text(total, digits)}
        for line in order.lines
        if line.discount != (total := granted.line_total(line.index))
    ]
    if not lines and granted.root_total == order.root_discount:
        return None
    carried = sum(line.discount for line in order.lines) + order.root_discount
    payload = {"order": money.text(carried, digits), "engine": money.text(granted.total, digits), "lines": lines}
    text = f"The order carries discounts of {payload['order']}; the engine grants {payload['engine']}."
    return Notice("amount_mismatch", text, payload)
