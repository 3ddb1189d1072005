"""A recorded conversation once more, without the engine: what this version asks, and what a cart then costs.

A recorded answer is an answer to the recorded question. So a version that asks something else is not priced with it:
that is a finding of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import msgspec

from mapper.adapter import Adapter, Checkout, EngineRequest, LookedUp, NotRedeemed, Outcome, Redeemed
from mapper.domain import checkout as documents
from mapper.domain import discounts, money
from mapper.domain.document import encode, escape
from mapper.domain.errors import InvalidRequest, Problem
from mapper.engine import conversation as engine
from mapper.engine import results
from mapper.engine.tape import Held
from mapper.recording import records
from mapper.recording.records import Conversation, Exchange, Record, Result, Unusable

Kind = Literal["asks differently", "priced differently", "refuses differently", "ends differently"]
FAULT: Final = "adapter_error"

_READ: Final[Mapping[str, Any]] = {
    "validate": results.outcome,
    "check": results.outcome,
    "redeem": results.redemption,
    "look_up": results.looked_up,
    "undo": results.nothing,
    "repair": results.nothing,
}


class Rules(Protocol):
    """How bodies are read: the parts of the settings that it takes."""

    @property
    def adapter(self) -> Adapter: ...
    @property
    def default_currency(self) -> str: ...
    @property
    def customer_path(self) -> str: ...


@dataclass(frozen=True)
class Finding:
    """One difference. `place`: a pointer into the body, a code, or which question it is."""

    kind: Kind
    place: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Run:
    """A conversation as this version holds it."""

    asked: Sequence[EngineRequest]
    result: Result
    outcome: Outcome
    cart: Checkout | None
    """None where this version does not read the body."""


def replay(rules: Rules, record: Record) -> list[Finding]:
    """What this version does otherwise than the one that wrote the record. Raises `Unusable`."""
    if record.engine != rules.adapter.name:
        raise Unusable(f"it was recorded with {record.engine}, and MAPPER_ENGINE says {rules.adapter.name}")
    return [finding for told in record.conversations for finding in compare(told, run(rules, record, told))]


def run(rules: Rules, record: Record, told: Conversation) -> Run:
    """The conversation, held with the recorded answers."""
    try:
        cart = documents.parse(bytes(record.body), record.operation, rules.default_currency, rules.customer_path)
    except InvalidRequest as problem:
        return Run((), Result(problem=problem.reason), Outcome(), None)
    filled = {int(index): msgspec.json.decode(fields, type=dict[str, Any]) for index, fields in told.filled.items()}
    cart = replace(cart.filled(filled), customer=told.customer, attempt=told.attempt)
    held = Held(told.method, cart, (), {})
    outcome = Outcome()
    try:
        value = _hold(rules.adapter, told, held)
        outcome = outcome_of(value)
        result = result_of(cart, value)
    except engine.RepliesDiffer:
        result = told.result  # what is asked too much or too little is told by the questions
    except Problem as problem:
        result = Result(problem=problem.reason)
    except Exception:  # noqa: BLE001 - an adapter's bug, whatever it raises
        result = Result(problem=FAULT)
    return Run(held.asked, result, outcome, cart)


def _hold(adapter: Adapter, told: Conversation, held: Held) -> object:
    assert held.cart is not None
    given = [tuple(one) if isinstance(one, list) else one for one in told.arguments]
    conversation = getattr(adapter, told.method)(held.cart if told.with_cart else None, *given, **told.named)
    replies = [reply for exchange in told.exchanges if (reply := exchange.answer) is not None]
    value, _ = engine.replay(held.listen(conversation), replies, accounts=adapter.accounts, lines=len(held.cart.cart))
    checked, faults = _READ[told.method](value, held.cart)
    if faults:
        raise results.BadResult("; ".join(faults))
    return checked


def outcome_of(value: object) -> Outcome:
    """What an adapter's method says of discounts and codes."""
    if isinstance(value, Redeemed | LookedUp):
        return value.outcome
    if isinstance(value, NotRedeemed):
        return Outcome(rejected=value.rejected, notices=value.notices)
    return value if isinstance(value, Outcome) else Outcome()


def result_of(cart: Checkout, value: object) -> Result:
    """The same, as it stands in a record."""
    outcome = outcome_of(value)
    states: dict[type, str] = {Redeemed: "redeemed", NotRedeemed: "not_redeemed"}
    return Result(
        amounts=amounts(cart, outcome) if isinstance(value, Outcome | Redeemed | LookedUp) else {},
        rejected={one.code: one.reason.value for one in outcome.rejected},
        state=value.state if isinstance(value, LookedUp) else states.get(type(value), ""),
    )


def amounts(cart: Checkout, outcome: Outcome) -> dict[str, str]:
    """What a cart costs: written as an answer would be, and read off it. Texts, by pointer into the body."""
    settled = discounts.settle(cart, outcome)
    priced = documents.parse(discounts.write(cart, settled, {}), "validate", cart.currency)
    found = {}
    for line in priced.lines:
        found[f"{line.pointer}/price"] = money.text(line.price, cart.digits)
        found[f"{line.pointer}/discount"] = money.text(line.discount, cart.digits)
    found["/discount"] = money.text(priced.root_discount, cart.digits)
    found["/total"] = money.text(settled.total, cart.digits)
    return found


def compare(told: Conversation, now: Run) -> list[Finding]:
    """Every difference; where another question is asked, that alone."""
    for number, (exchange, request) in enumerate(zip(told.exchanges, now.asked, strict=False), 1):
        if found := _other_question(f"{told.method}, question {number}", exchange, request):
            return [found]
    before, after = told.result, now.result
    if before.problem != after.problem or before.state != after.state:
        return [Finding("ends differently", told.method, _end(before), _end(after))]
    if len(told.exchanges) != len(now.asked):
        counts = str(len(told.exchanges)), str(len(now.asked))
        return [Finding("asks differently", f"{told.method}, number of questions", *counts)]
    return [
        *_differences("priced differently", before.amounts, after.amounts, "none"),
        *_differences("refuses differently", before.rejected, after.rejected, "accepted"),
    ]


def _end(result: Result) -> str:
    return result.problem or result.state or "an outcome"


def _differences(kind: Kind, before: Mapping[str, str], after: Mapping[str, str], absent: str) -> Iterator[Finding]:
    for place in dict.fromkeys((*before, *after)):
        was, now = before.get(place, absent), after.get(place, absent)
        if was != now:
            yield Finding(kind, place, was, now)


def _other_question(place: str, exchange: Exchange, request: EngineRequest) -> Finding | None:
    now = msgspec.convert(records.asked(request), Exchange)
    for name in ("account", "method", "path", "sent_text"):
        if (was := getattr(exchange, name)) != (is_now := getattr(now, name)):
            return Finding("asks differently", f"{place}, {name}", was, is_now)
    was, is_now = (_sent(one) for one in (exchange, now))
    if found := first_difference(was, is_now):
        return Finding("asks differently", f"{place}, {found[0] or '/'}", *map(_short, found[1:]))
    return None


def _sent(exchange: Exchange) -> Any:
    return records.decoded(bytes(exchange.sent)) if isinstance(exchange.sent, msgspec.Raw) else None


def _short(value: Any) -> str:
    text = "nothing" if value is msgspec.UNSET else encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_difference(before: Any, after: Any, pointer: str = "") -> tuple[str, Any, Any] | None:
    """Where two JSON values differ first, and both values there; None where they are the same."""
    return next(differing(before, after, pointer), None)


def differing(before: Any, after: Any, pointer: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place at which two JSON values differ, with both values there; UNSET for none."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            here = f"{pointer}/{escape(key)}"
            yield from differing(before.get(key, msgspec.UNSET), after.get(key, msgspec.UNSET), here)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (was, now) in enumerate(zip(before, after, strict=True)):
            yield from differing(was, now, f"{pointer}/{index}")
    elif type(before) is not type(after) or before != after:
        yield pointer, before, after
