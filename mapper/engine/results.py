"""Checks the results of adapters.

Amounts must be whole minor units above zero, lines must be of this cart, refused codes must be the shopper's, and
payloads must encode as JSON. Each function returns the valid part of a result, and a sentence for each fault. Before
the engine has acted, a result with a fault is refused as a whole. Afterwards its valid part is used, with a notice that
something is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, get_args

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

INCOMPLETE = Notice("adapter_error", "A part of the promotion engine's answer could not be used.", None)


_SCOPES = (None, *get_args(Scope))
_REASONS = frozenset(reason.value for reason in Reason)


class BadResult(Exception):
    """An adapter's result violates the contract. The message holds no shopper's data."""


def outcome(value: object, checkout: Checkout) -> tuple[Outcome, list[str]]:
    if not isinstance(value, Outcome):
        return Outcome(notices=(INCOMPLETE,)), [f"returns {type(value).__name__}, not Outcome"]
    lines = {line.index for line in checkout.cart}
    codes = set(checkout.promotions.codes)
    if _is_valid(value, lines, codes):
        return value, []
    faults: list[str] = []
    discounts = _valid(value.discounts, Discount, lambda one: _discount_fault(one, lines), faults)
    rejected = _valid(value.rejected, Rejection, lambda one: _rejection_fault(one, codes), faults)
    notices = _valid(value.notices, Notice, _notice_fault, faults)
    costs = _valid(value.costs, Cost, lambda one: _cost_fault(one, lines), faults)
    diagnostics = _valid(value.diagnostics, Diagnostic, _diagnostic_fault, faults)
    checked = Outcome(
        discounts=discounts,
        rejected=tuple(msgspec.structs.replace(one, reason=Reason(one.reason)) for one in rejected),
        notices=(*notices, INCOMPLETE) if faults else notices,
        costs=costs,
        diagnostics=diagnostics,
        redeemed=value.redeemed is True,
    )
    return checked, faults


def redemption(value: object, order: Checkout) -> tuple[Redeemed | NotRedeemed, list[str]]:
    """Raises `BadResult` if it is unclear whether the order is redeemed, or why it was refused."""
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
    """Raises `BadResult` if it is unclear whether the order is redeemed."""
    if not isinstance(value, LookedUp):
        raise BadResult(f"returns {type(value).__name__}, not LookedUp")
    if value.state not in ("redeemed", "absent", "unclear"):
        raise BadResult("state: redeemed, absent or unclear")
    if not isinstance(value.extra, tuple | list) or not all(isinstance(one, str) for one in value.extra):
        raise BadResult("extra: a tuple of strings")
    found, faults = outcome(value.outcome, order)
    return LookedUp(value.state, found, tuple(value.extra)), faults


def nothing(value: object, order: object) -> tuple[None, list[str]]:
    """The result of `undo` and `repair`, which is ignored."""
    return None, []


READERS: Final[Mapping[str, Callable[[object, Any], tuple[Any, list[str]]]]] = {
    "validate": outcome,
    "check": outcome,
    "redeem": redemption,
    "look_up": looked_up,
    "undo": nothing,
    "repair": nothing,
}
"""The function that checks the result of each method of an adapter."""


def _is_valid(value: Outcome, lines: set[int], codes: set[str]) -> bool:
    """Whether the whole outcome is valid. Much faster than collecting the faults, and almost always true."""
    lists = (value.discounts, value.rejected, value.notices, value.costs, value.diagnostics)
    if type(value.redeemed) is not bool or {*map(type, lists)} != {tuple}:
        return False
    for discount in value.discounts:
        if type(discount) is not Discount or not _is_valid_discount(discount, lines):
            return False
    for cost in value.costs:
        if type(cost) is not Cost or _cost_fault(cost, lines):
            return False
    for rejection in value.rejected:
        if type(rejection) is not Rejection or type(rejection.reason) is not Reason:
            return False
        if _rejection_fault(rejection, codes):
            return False
    for notice in value.notices:
        if type(notice) is not Notice or not type(notice.type) is type(notice.text) is str:
            return False
    for diagnostic in value.diagnostics:
        if type(diagnostic) is not Diagnostic or _diagnostic_fault(diagnostic):
            return False
    return encodes(value)


def _is_valid_discount(one: Discount, lines: set[int]) -> bool:
    return (
        type(one.amount) is int
        and one.amount > 0
        and (one.line is None or (type(one.line) is int and one.line in lines))
        and one.scope in _SCOPES
        and (not one.cost or one.scope in (None, "costs"))
        and type(one.name) is type(one.description) is type(one.effect_type) is type(one.cost) is str
        and type(one.meta) is dict
    )


def _valid(given: Iterable[object], kind: type[T], fault: Callable[[T], str], faults: list[str]) -> tuple[T, ...]:
    if not isinstance(given, tuple | list):
        faults.append(f"a tuple of {kind.__name__}, not {type(given).__name__}")
        return ()
    valid: list[T] = []
    for one in given:
        wrong = fault(one) if isinstance(one, kind) else f"{type(one).__name__} among {kind.__name__}s"
        if wrong:
            faults.append(wrong)
        elif isinstance(one, kind):
            valid.append(one)
    return tuple(valid)


def _discount_fault(discount: Discount, lines: set[int]) -> str:
    if not _is_amount(discount.amount, minimum=1):
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
    if not _is_amount(cost.price, minimum=0):
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


def _is_amount(value: object, *, minimum: int) -> bool:
    return type(value) is int and value >= minimum


def _is_line(value: object, lines: set[int]) -> bool:
    return value is None or (type(value) is int and value in lines)


def _are_texts(*values: object) -> bool:
    """Whether all are strings that JSON can hold, without lone surrogates."""
    return all(isinstance(value, str) and (value.isascii() or encodes(value)) for value in values)


def encodes(value: Any) -> bool:
    """Whether the value can be encoded as JSON."""
    try:
        encode(value)
    except Exception:  # noqa: BLE001 - a value's own methods may raise anything
        return False
    return True
