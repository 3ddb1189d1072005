"""Outcomes made comparable, whatever order they list things in."""

from typing import Any

import msgspec

from mapper.adapter import Outcome
from mapper.engine.promotion_engine import Declined, Done
from mapper.recording import replay

Amounts = list[tuple[Any, ...]]


def outcome_of(value: object) -> Outcome:
    """What a result or a verdict grants and refuses."""
    match value:
        case Done():
            return value.redeemed.outcome
        case Declined():
            return replay.outcome_of(value.declined)
        case _:
            return replay.outcome_of(value)


def amounts(result: object) -> Amounts:
    """What a result takes off each thing, and the codes that it refuses; nothing for the result of an undo."""
    if result is None:
        return []
    return [*discounts(result), *sorted((one.code, one.reason.value) for one in outcome_of(result).rejected)]


def discounts(result: object) -> Amounts:
    return sorted(
        (one.line is None, one.line or 0, one.scope or "", one.cost, one.amount)
        for one in outcome_of(result).discounts
    )  # fmt: skip


def reasons(result: object) -> dict[str, Any]:
    """The reason of each code that a result refuses."""
    return {one.code: one.reason for one in outcome_of(result).rejected}


def moved(outcome: Outcome, by: int) -> Amounts:
    """As `amounts`, with each line's index moved."""
    shifted = [
        one if one.line is None else msgspec.structs.replace(one, line=one.line + by) for one in outcome.discounts
    ]
    return amounts(msgspec.structs.replace(outcome, discounts=tuple(shifted)))
