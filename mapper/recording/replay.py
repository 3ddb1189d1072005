"""Replays recorded conversations without the engine, to find out what this version asks and what a cart then costs.

A recorded reply answers the recorded request. If this version makes another request, that is the finding, and the cart
is not priced with the recorded reply.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from mapper.adapter import Adapter, Checkout, EngineRequest, LookedUp, NotRedeemed, Outcome, Redeemed
from mapper.domain import checkout as documents
from mapper.domain import discounts, money
from mapper.domain.document import encode, escape
from mapper.domain.errors import InvalidRequest, Problem
from mapper.engine import conversation as engine
from mapper.engine import results
from mapper.engine.transcript import Transcript
from mapper.recording import records
from mapper.recording.records import Conversation, Exchange, Record, Result, Unusable
from mapper.settings import Rules

Kind = Literal["asks differently", "priced differently", "refuses differently", "ends differently"]
FAULT: Final = "adapter_error"


@dataclass(frozen=True)
class Finding:
    """One difference. `place`: a pointer into the body, a code, or the number of a request."""

    kind: Kind
    place: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Run:
    """The requests and the result of this version in a recorded conversation."""

    requests: Sequence[EngineRequest]
    result: Result
    outcome: Outcome
    cart: Checkout | None
    """None if this version cannot read the body."""


def replay(rules: Rules, record: Record) -> list[Finding]:
    """Returns the differences between this version and the one that wrote the record. Raises `Unusable`."""
    if record.engine != rules.adapter.name:
        raise Unusable(f"it was recorded with {record.engine}, and MAPPER_ENGINE says {rules.adapter.name}")
    try:
        return [finding for one in record.conversations for finding in compare(one, run(rules, record, one))]
    except RecursionError:
        raise Unusable("it is nested too deeply") from None


def run(rules: Rules, record: Record, recorded: Conversation) -> Run:
    """Runs the conversation with the recorded replies."""
    try:
        cart = documents.parse(bytes(record.body), record.operation, rules.default_currency, rules.customer_path)
    except InvalidRequest as problem:
        return Run((), Result(problem=problem.reason), Outcome(), None)
    filled = {
        index: {key: msgspec.json.decode(value) for key, value in fields.items()}
        for index, fields in recorded.filled.items()
    }
    cart = msgspec.structs.replace(cart.with_product_data(filled), customer=recorded.customer, attempt=recorded.attempt)
    transcript = Transcript(recorded.method, cart, (), {})
    outcome = Outcome()
    try:
        value = _converse(rules.adapter, recorded, cart, transcript)
        outcome = outcome_of(value)
        result = result_of(cart, value)
    except engine.RepliesDiffer:
        result = recorded.result  # `compare` finds the difference in the requests
    except Problem as problem:
        result = Result(problem=problem.reason)
    except Exception:  # noqa: BLE001 - a bug of the adapter, whatever it raises
        result = Result(problem=FAULT)
    return Run(transcript.requests, result, outcome, cart)


def _converse(adapter: Adapter, recorded: Conversation, cart: Checkout, transcript: Transcript) -> object:
    arguments = [tuple(one) if isinstance(one, list) else one for one in recorded.arguments]
    method = getattr(adapter, recorded.method)
    conversation = transcript.transcribe(method(cart if recorded.with_cart else None, *arguments, **recorded.named))
    replies = [reply for exchange in recorded.exchanges if (reply := exchange.answer) is not None]
    value, _ = engine.replay(conversation, replies, accounts=adapter.accounts, lines=len(cart.cart))
    checked, faults = results.READERS[recorded.method](value, cart)
    if faults:
        raise results.BadResult("; ".join(faults))
    return checked


def outcome_of(value: object) -> Outcome:
    """Returns the outcome within the result of an adapter's method."""
    if isinstance(value, Redeemed | LookedUp):
        return value.outcome
    if isinstance(value, NotRedeemed):
        return Outcome(rejected=value.rejected, notices=value.notices)
    return value if isinstance(value, Outcome) else Outcome()


def result_of(cart: Checkout, value: object) -> Result:
    """Returns the result of an adapter's method in the form of a record."""
    outcome = outcome_of(value)
    states: dict[type, str] = {Redeemed: "redeemed", NotRedeemed: "not_redeemed"}
    return Result(
        amounts=amounts(cart, outcome) if isinstance(value, Outcome | Redeemed | LookedUp) else {},
        rejected={one.code: one.reason.value for one in outcome.rejected},
        state=value.state if isinstance(value, LookedUp) else states.get(type(value), ""),
    )


def amounts(cart: Checkout, outcome: Outcome) -> dict[str, str]:
    """Returns prices and discounts by pointer into the body: builds validate's answer, and reads them from it."""
    allocation = discounts.allocate(cart, outcome)
    priced = documents.parse(discounts.write(cart, allocation, {}), "validate", cart.currency)
    found = {}
    for line in priced.lines:
        found[f"{line.pointer}/price"] = money.text(line.price, cart.digits)
        found[f"{line.pointer}/discount"] = money.text(line.discount, cart.digits)
    found["/discount"] = money.text(priced.root_discount, cart.digits)
    found["/total"] = money.text(allocation.total, cart.digits)
    return found


def compare(recorded: Conversation, now: Run) -> list[Finding]:
    """Returns all differences of the results, or only the first difference of the requests."""
    method = recorded.method
    for number, (exchange, request) in enumerate(zip(recorded.exchanges, now.requests, strict=False), 1):
        if found := _request_difference(f"{method}, question {number}", exchange, request):
            return [found]
    before, after = recorded.result, now.result
    if before.problem != after.problem or before.state != after.state:
        return [Finding("ends differently", method, _end(before), _end(after))]
    if len(recorded.exchanges) != len(now.requests):
        counts = str(len(recorded.exchanges)), str(len(now.requests))
        return [Finding("asks differently", f"{method}, number of questions", *counts)]
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


def _request_difference(place: str, exchange: Exchange, request: EngineRequest) -> Finding | None:
    now = msgspec.convert(records.request_fields(request), Exchange)
    for name in ("account", "method", "path", "sent_text"):
        if (was := getattr(exchange, name)) != (is_now := getattr(now, name)):
            return Finding("asks differently", f"{place}, {name}", was, is_now)
    was, is_now = (_sent(one) for one in (exchange, now))
    if found := next(differing(was, is_now), None):
        return Finding("asks differently", f"{place}, {found[0] or '/'}", *map(_short, found[1:]))
    return None


def _sent(exchange: Exchange) -> Any:
    return records.decoded(bytes(exchange.sent)) if isinstance(exchange.sent, msgspec.Raw) else None


def _short(value: Any) -> str:
    text = "nothing" if value is msgspec.UNSET else encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def differing(before: Any, after: Any, pointer: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields each difference of two JSON values as (pointer, before, after); UNSET stands for a missing value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            here = f"{pointer}/{escape(key)}"
            yield from differing(before.get(key, msgspec.UNSET), after.get(key, msgspec.UNSET), here)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (was, now) in enumerate(zip(before, after, strict=True)):
            yield from differing(was, now, f"{pointer}/{index}")
    elif type(before) is not type(after) or before != after:
        yield pointer, before, after
