"""What an adapter returns, checked before anybody believes it.

Money is whole minor units above zero, a line is a line of this cart, a refused code was brought by the shopper, a
payload encodes as JSON. Each function hands back the value with what is wrong taken out of it, and a sentence for each
thing that was wrong: before the engine has acted such a value is refused as a whole; afterwards the rest of it is the
answer, and what was taken out is a notice.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from mapper.adapter import (
    Checkout,
    Cost,
    Diagnostic,
    Discount,
    LookedUp,
    Notice,
    NotRedeemed,
    Outcome,
    Reason,
    Redeemed,
    Rejection,
    Scope,
)
from mapper.domain.document import encode

T = TypeVar("T")

LOST = Notice("adapter_error", "A part of the promotion engine's answer could not be made use of.", None)


_SCOPES = (None, *get_args(Scope))
_REASONS = frozenset(reason.value for reason in Reason)


class BadResult(Exception):
    """What an adapter returned is not what the contract says. The message names no data of a shopper."""


def outcome(value: object, checkout: Checkout) -> tuple[Outcome, list[str]]:
    if not isinstance(value, Outcome):
        return Outcome(notices=(LOST,)), [f"returns {type(value).__name__}, not Outcome"]
    lines = {line.index for line in checkout.cart}
    codes = set(checkout.promotions.codes)
    if _is_sound(value, lines, codes):
        return value, []
    faults: list[str] = []
    discounts = _sound(value.discounts, Discount, lambda one: _discount_fault(one, lines), faults)
    rejected = _sound(value.rejected, Rejection, lambda one: _rejection_fault(one, codes), faults)
    notices = _sound(value.notices, Notice, _notice_fault, faults)
    costs = _sound(value.costs, Cost, lambda one: _cost_fault(one, lines), faults)
    diagnostics = _sound(value.diagnostics, Diagnostic, _diagnostic_fault, faults)
    sound = Outcome(
        discounts=discounts,
        rejected=tuple(msgspec.structs.replace(one, reason=Reason(one.reason)) for one in rejected),
        notices=(*notices, LOST) if faults else notices,
        costs=costs,
        diagnostics=diagnostics,
        redeemed=value.redeemed is True,
    )
    return sound, faults


def redemption(value: object, order: Checkout) -> tuple[Redeemed | NotRedeemed, list[str]]:
    """Raises `BadResult` where it does not even say whether the order is redeemed, or for what it was refused."""
    if isinstance(value, NotRedeemed):
        found, faults = outcome(Outcome(rejected=value.rejected, notices=value.notices), order)
        if faults:
            raise BadResult("; ".join(faults))
        return NotRedeemed(found.rejected, found.notices), faults
    if not isinstance(value, Redeemed):
        raise BadResult(f"returns {type(value).__name__}, not Redeemed or NotRedeemed")
    found, faults = outcome(value.outcome, order)
    handle = value.handle
    if not isinstance(handle, str):
        handle = ""
        faults.append("handle: a string")
    return Redeemed(found, handle), faults


def looked_up(value: object, order: Checkout) -> tuple[LookedUp, list[str]]:
    """Raises `BadResult` where it does not even say whether the order is redeemed."""
    if not isinstance(value, LookedUp):
        raise BadResult(f"returns {type(value).__name__}, not LookedUp")
    if value.state not in ("redeemed", "absent", "unclear"):
        raise BadResult("state: redeemed, absent or unclear")
    if not isinstance(value.extra, tuple | list) or not all(isinstance(one, str) for one in value.extra):
        raise BadResult("extra: a tuple of strings")
    found, faults = outcome(value.outcome, order)
    return LookedUp(value.state, found, tuple(value.extra)), faults


def nothing(value: object, order: object) -> tuple[None, list[str]]:
    """Of what takes something back."""
    return None, []


def _is_sound(value: Outcome, lines: set[int], codes: set[str]) -> bool:
    """Whether nothing at all is wrong: told in one go, several times as fast as finding out what is."""
    lists = (value.discounts, value.rejected, value.notices, value.costs, value.diagnostics)
    if type(value.redeemed) is not bool or [type(one) for one in lists] != [tuple] * len(lists):
        return False
    for discount in value.discounts:
        if type(discount) is not Discount or not _is_sound_discount(discount, lines):
            return False
    return (
        all(type(one) is Cost and not _cost_fault(one, lines) for one in value.costs)
        and all(
            type(one) is Rejection and type(one.reason) is Reason and not _rejection_fault(one, codes)
            for one in value.rejected
        )
        and all(type(one) is Notice and type(one.type) is type(one.text) is str for one in value.notices)
        and all(type(one) is Diagnostic and not _diagnostic_fault(one) for one in value.diagnostics)
        and encodes(value)
    )


def _is_sound_discount(one: Discount, lines: set[int]) -> bool:
    return (
        type(one.amount) is int
        and one.amount > 0
        and (one.line is None or (type(one.line) is int and one.line in lines))
        and one.scope in _SCOPES
        and (not one.cost or one.scope in (None, "costs"))
        and type(one.name) is type(one.description) is type(one.effect_type) is type(one.cost) is str
        and type(one.meta) is dict
    )


def _sound(given: Iterable[object], kind: type[T], fault: Callable[[T], str], faults: list[str]) -> tuple[T, ...]:
    if not isinstance(given, tuple | list):
        faults.append(f"a tuple of {kind.__name__}, not {type(given).__name__}")
        return ()
    sound: list[T] = []
    for one in given:
        wrong = fault(one) if isinstance(one, kind) else f"{type(one).__name__} among {kind.__name__}s"
        if wrong:
            faults.append(wrong)
        elif isinstance(one, kind):
            sound.append(one)
    return tuple(sound)


def _discount_fault(discount: Discount, lines: set[int]) -> str:
    if not _is_amount(discount.amount, least=1):
        return "Discount.amount: whole minor units, above zero; what takes nothing off is a notice"
    if not _is_line(discount.line, lines):
        return "Discount.line: the index of a line of this cart, or None"
    if discount.scope not in _SCOPES or (discount.cost and discount.scope not in (None, "costs")):
        return "Discount.scope: goods, costs or total, or None; a named cost is one of the costs"
    if not _are_texts(discount.name, discount.description, discount.effect_type, discount.cost):
        return "Discount: name, description, effect_type and cost are strings"
    if discount.meta and not (isinstance(discount.meta, Mapping) and encodes(discount.meta)):
        return "Discount.meta: an object that encodes as JSON"
    return ""


def _cost_fault(cost: Cost, lines: set[int]) -> str:
    if not _is_amount(cost.price, least=0):
        return "Cost.price: whole minor units, not below zero"
    if not _is_line(cost.line, lines):
        return "Cost.line: the index of a line of this cart, or None"
    return "" if _are_texts(cost.name) else "Cost.name: a string"


def _diagnostic_fault(diagnostic: Diagnostic) -> str:
    if not _are_texts(diagnostic.type, diagnostic.text, diagnostic.code):
        return "Diagnostic: type, text and code are strings"
    return "" if encodes(diagnostic.facts) else "Diagnostic.facts: an object that encodes as JSON"


def _rejection_fault(rejection: Rejection, codes: set[str]) -> str:
    if not _are_texts(rejection.code, rejection.reason, rejection.engine_reason):
        return "Rejection: code, reason and engine_reason are strings"
    if rejection.code not in codes:
        return "Rejection.code: a code that the shopper brought, as it came"
    if rejection.reason not in _REASONS:
        return "Rejection.reason: a member of Reason"
    return ""


def _notice_fault(notice: Notice) -> str:
    if not _are_texts(notice.type, notice.text):
        return "Notice: type and text are strings"
    if notice.payload is not None and not encodes(notice.payload):
        return "Notice.payload: what encodes as JSON"
    return ""


def _is_amount(value: object, *, least: int) -> bool:
    return type(value) is int and value >= least


def _is_line(value: object, lines: set[int]) -> bool:
    return value is None or (type(value) is int and value in lines)


def _are_texts(*values: object) -> bool:
    """Strings that can be written: JSON text is UTF-8, which has no lone surrogates."""
    return all(isinstance(value, str) and (value.isascii() or encodes(value)) for value in values)


def encodes(value: Any) -> bool:
    """Whether it can stand in an answer."""
    try:
        encode(value)
    except Exception:  # noqa: BLE001 - the encoder raises what the value's own methods raise, too
        return False
    return True
