"""What is said about an outcome beside its prices: refused codes, notices, amounts that are not as they were.

These are the shapes of `promotions.meta.mapper` and of `details` in an error (CONTRACT sections 5 and 6).
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from mapper.domain import money
from mapper.domain.checkout import Checkout
from mapper.domain.codes import as_json
from mapper.domain.discounts import Settled
from mapper.domain.errors import Refused
from mapper.domain.languages import Language, message
from mapper.domain.outcome import Notice, Outcome, Rejection


def refused(rejected: Iterable[Rejection], language: Language = "en") -> Refused:
    return Refused([rejection(one, language) for one in rejected])


def as_entered(checkout: Checkout, outcome: Outcome) -> Outcome:
    """The outcome as it is told: refused codes spelled and ordered as they were entered, and with them what can be no
    code, which no engine was asked for; beside the engine's notices our own remarks on the checkout.
    """
    rejected = checkout.promotions.as_entered(outcome.rejected)
    return msgspec.structs.replace(outcome, rejected=rejected, notices=(*outcome.notices, *checkout.remarks))


def rejection(rejected: Rejection, language: Language = "en") -> dict[str, Any]:
    return {
        "code": as_json(rejected.code),
        "reason": rejected.reason.value,
        "engine_reason": rejected.engine_reason,
        "message": message(rejected.reason, language),
    }


def notice(told: Notice) -> dict[str, Any]:
    return {"type": told.type, "text": told.text, "payload": told.payload}


def as_it_came(order: Checkout) -> bytes:
    """Consume's answer where there is nothing to add to the order."""
    return b'{"order":' + order.source.replace({}) + b"}"


def drift(order: Checkout, granted: Settled) -> Notice | None:
    """What differs between the discounts an order carries and those the engine grants it; None where nothing does."""
    digits = order.digits
    lines = [
        {"pointer": line.pointer, "order": money.text(line.discount, digits), "engine": money.text(off, digits)}
        for line in order.lines
        if line.discount != (off := granted.line_total(line.index))
    ]
    if not lines and granted.root_total == order.root_discount:
        return None
    carried = sum(line.discount for line in order.lines) + order.root_discount
    payload = {"order": money.text(carried, digits), "engine": money.text(granted.total, digits), "lines": lines}
    text = f"The order carries discounts of {payload['order']}; the engine grants {payload['engine']}."
    return Notice("amount_mismatch", text, payload)
