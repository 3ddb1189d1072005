"""Reads Acme's replies: leniently, since a new field must not lose an answer; but amounts exactly, or not at all.

Everything that Acme returns becomes a `Discount`, a `Rejection` or a `Notice`: nothing is dropped silently.
"""

from collections.abc import Iterator
from decimal import Decimal

import msgspec

from mapper.adapter import (
    Checkout,
    Discount,
    EngineRejected,
    EngineReply,
    EngineUnavailable,
    Notice,
    Outcome,
    Reason,
    Rejection,
    money,
)
from promotions_acme import reasons
from promotions_acme.request import Row, rows


class Reduction(msgspec.Struct, frozen=True):
    label: str
    off: Decimal
    kind: str = "amount"
    row: int | None = None
    """The position of a row; None: the whole order."""


class Answer(msgspec.Struct, frozen=True):
    """A price, or a stored order."""

    reductions: list[Reduction]
    refused: dict[str, str]
    """Acme's reason for each code that does not apply."""
    id: str = ""
    state: str = ""
    currency: str = ""
    rows: list[Row] = []
    codes: list[str] = []


def read(reply: EngineReply) -> Answer:
    insist(reply)
    return decode(reply)


def insist(reply: EngineReply) -> None:
    """Raises if the request was not accepted. Acme's own text, which may name customers, is not in the message."""
    if reply.status in (401, 403):
        raise EngineRejected("Acme does not accept the API key.", reason="engine_key")
    if not 200 <= reply.status <= 299:
        raise EngineRejected("Acme refuses the request.", reason="request_rejected")


def decode(reply: EngineReply) -> Answer:
    try:
        return msgspec.json.decode(reply.body, type=Answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineUnavailable("Acme's answer cannot be read.", reason="bad_reply") from error


def outcome(answer: Answer, checkout: Checkout, *, happened: bool = False) -> Outcome:
    """`happened`: it is redeemed. An unreadable amount is a notice then, and an error before."""
    discounts: list[Discount] = []
    notices: list[Notice] = []
    lines = {row: line.index for row, line in enumerate(checkout.cart)}
    for (kind, row, label), offs in sorted(_grouped(answer).items(), key=str):
        try:
            amount = money.to_minor(money.total([money.from_engine(off) for off in offs]), checkout.digits)
            line = None if row is None else lines[row]
        except (KeyError, money.NotMoney) as error:
            if not happened:
                raise EngineUnavailable("Acme's answer cannot be read.", reason="bad_reply") from error
            amount, line = 0, None
        if kind == "amount" and amount > 0:
            discounts.append(Discount(name=label, description=label, amount=amount, effect_type=kind, line=line))
        else:
            payload = {"row": row, "label": label, "off": [str(off) for off in offs]}
            notices.append(Notice(kind, "Something that takes no money off.", payload))
    return Outcome(discounts=tuple(discounts), rejected=tuple(_rejected(answer, checkout)), notices=tuple(notices))


def same_cart(stored: Answer, order: Checkout) -> bool:
    same_codes = set(stored.codes) == set(order.promotions.coupon_codes)
    return stored.currency == order.currency and stored.rows == rows(order) and same_codes


def _grouped(answer: Answer) -> dict[tuple[str, int | None, str], list[Decimal]]:
    """Groups what one rule takes off one row: it is added up, then rounded once."""
    groups: dict[tuple[str, int | None, str], list[Decimal]] = {}
    for one in answer.reductions:
        groups.setdefault((one.kind, one.row, one.label), []).append(one.off)
    return groups


def _rejected(answer: Answer, checkout: Checkout) -> Iterator[Rejection]:
    """Yields the refused codes in the shopper's order."""
    for code in checkout.promotions.codes:
        if code not in checkout.promotions.coupon_codes:  # a referral or a loyalty card: not declared
            yield Rejection(code, Reason.NOT_SUPPORTED, "")
        elif (word := answer.refused.get(code)) is not None:
            yield Rejection(code, reasons.reason(word), word)
