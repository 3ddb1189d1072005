"""START HERE. The two things this service does, each told from top to bottom.

Everything that matters happens in this order: who calls, what do they bring, what does the engine say, what is
answered. What the words mean stands in the modules they come from.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mapper import checkout as documents
from mapper import discounts, money, receipt, signature
from mapper.adapter import Adapter, Notice, Outcome, Rejection
from mapper.checkout import Checkout
from mapper.discounts import Settled
from mapper.engine import Engine
from mapper.errors import (
    AmountMismatch,
    EngineUnavailable,
    InvalidRequest,
    Operation,
    OutcomePending,
    Refused,
)
from mapper.reasons import REASONS
from mapper.receipt import Receipt, Receipts
from mapper.settings import Settings
from mapper.signature import Headers
from mapper.telemetry import Record

# Of what is left of the deadline, the share that a redemption may use: the rest is for asking what became of it.
_REDEEM_SHARE = 0.6


@dataclass(frozen=True)
class Service:
    """What both stories need, built once. The engines hold the calls; clocks and ids are handed in for the tests."""

    settings: Settings
    validating: Engine
    consuming: Engine
    clock: Callable[[], float] = time.monotonic
    """What deadlines are counted on; the engines' own."""
    now: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: f"checkout-{uuid.uuid4()}"

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    @property
    def receipts(self) -> Receipts:
        return Receipts(self.settings.receipt_secrets, self.adapter.name, self.settings.receipt_ttl_s)


@dataclass(frozen=True)
class Call:
    """One request as it came: the body's bytes, the headers (names in lower case), and when it must be answered."""

    body: bytes
    headers: Headers
    deadline: float
    """On the service's clock, which is monotonic."""
    record: Record = field(default_factory=lambda: Record("", ""))


async def validate(service: Service, call: Call) -> bytes:
    """The checkout with everything on it that the engine grants. Raises `Problem`."""
    signature.verify(call.body, call.headers, service.settings.credentials)
    checkout = documents.parse(call.body, "validate", service.settings.default_currency)
    session = _session(service, checkout, service.receipts.read(checkout, service.now()), "validate")
    degraded = False
    try:
        outcome = await service.validating.converse(service.adapter.validate(checkout, session), call.deadline)
    except EngineUnavailable:
        if not _may_go_without(service, checkout):
            raise
        outcome, degraded = Outcome(), True
    _note_rejected(call, outcome)
    if outcome.rejected and service.settings.on_rejected == "refuse":
        raise _refused(outcome.rejected)
    settled = discounts.settle(checkout, outcome)
    call.record.clamped, call.record.degraded = settled.clamped > 0, degraded
    note = {
        "engine": service.adapter.name,
        "session": session,
        "rejected": [_rejection(rejected) for rejected in outcome.rejected],
        "notices": [_notice(notice) for notice in outcome.notices],
        "degraded": degraded,
        "receipt": service.receipts.write(session, degraded, _content(checkout, settled), service.now()),
    }
    return b'{"checkout":' + discounts.write(checkout, settled, note) + b"}"


async def consume(service: Service, call: Call) -> bytes:
    """The order as it came, its promotions redeemed for good. Raises `Problem`."""
    signature.verify(call.body, call.headers, service.settings.credentials)
    order = documents.parse(call.body, "consume", service.settings.default_currency)
    given = service.receipts.read(order, service.now())
    if given is None and service.settings.receipt_required:
        raise InvalidRequest(
            "The order has no valid receipt of an earlier validate.", _note_pointer(order), reason="no_receipt"
        )
    if given is not None and given.degraded and not _carries_discounts(order):
        # The shopper was told list prices because the engine could not be asked: nothing may be redeemed now.
        call.record.degraded = True
        return b'{"order":' + order.source.render({}) + b"}"
    session = _session(service, order, given, "consume")

    outcome = await _check(service, call, order, session)
    if not outcome.redeemed:
        outcome = await _redeem(service, call, order, session)
    drift = _drift(order, discounts.settle(order, outcome))
    call.record.drift = drift is not None
    notices = [_notice(notice) for notice in (*outcome.notices, *([drift] if drift else []))]
    if not notices:
        return b'{"order":' + order.source.render({}) + b"}"
    note = {**_old_note(order), "notices": notices}
    return b'{"order":' + discounts.annotate(order, note) + b"}"


async def _check(service: Service, call: Call, order: Checkout, session: str) -> Outcome:
    """Asks without effect what redeeming would grant, so that a refusal is known before anything is closed."""
    conversation = service.adapter.check(order, session)
    if conversation is None:
        return Outcome()
    outcome = await service.consuming.converse(conversation, call.deadline)
    if not outcome.redeemed:
        _insist(service, call, order, outcome)
    return outcome


async def _redeem(service: Service, call: Call, order: Checkout, session: str) -> Outcome:
    """Redeems. Where the outcome is unknown, the engine is asked what happened; nothing is ever sent again unasked."""
    engine, adapter = service.consuming, service.adapter
    now = service.clock()
    try:
        outcome = await engine.converse(adapter.redeem(order, session), now + (call.deadline - now) * _REDEEM_SHARE)
    except EngineUnavailable as failure:
        if not failure.sent:
            raise
        return await _recall(service, call, order, session)
    if outcome.redeemed:
        return outcome
    try:
        _insist(service, call, order, outcome)
    except (Refused, AmountMismatch):
        # Between check and redemption somebody else used the code up. What was redeemed beside it must not stay so.
        undo = adapter.undo(order, session)
        if undo is not None:
            await engine.converse(undo, call.deadline)
        raise
    return outcome


async def _recall(service: Service, call: Call, order: Checkout, session: str) -> Outcome:
    retry_after = max(1, round(service.settings.quarantine_s))
    try:
        recall = await service.consuming.converse(service.adapter.recall(order, session), call.deadline)
    except EngineUnavailable as failure:
        raise OutcomePending(
            "The engine did not say whether the order was redeemed; send the same order again later.",
            reason="recall_failed",
            retry_after=failure.retry_after or 1,
        ) from failure
    if recall.state == "absent":
        # It may still be on its way.
        raise OutcomePending(
            "The engine does not know yet of this order's redemption; send the same order again later.",
            reason="not_redeemed_yet",
            retry_after=retry_after,
        )
    return recall.outcome


def _insist(service: Service, call: Call, order: Checkout, outcome: Outcome) -> None:
    """Refuses what the settings say shall be refused: codes that do not apply, amounts that are not the order's."""
    _note_rejected(call, outcome)
    if outcome.rejected and service.settings.on_rejected == "refuse":
        raise _refused(outcome.rejected)
    drift = _drift(order, discounts.settle(order, outcome))
    if drift is not None and service.settings.on_drift == "refuse":
        raise AmountMismatch(drift.text, reason="amount_mismatch", **drift.payload)


def _session(service: Service, checkout: Checkout, given: Receipt | None, operation: Operation) -> str:
    """The engine session's id: that of a valid receipt, else the body's own id; validate alone may make a new one."""
    session = (given.session if given else "") or checkout.id or checkout.source_id
    path = service.settings.session_id_path
    if not session and path:
        found = checkout.at(path)
        if isinstance(found, str | int) and not isinstance(found, bool) and str(found).strip():
            session = documents.check_id(str(found), path)
    if not session and operation == "validate":
        session = service.new_id()
    if not session:
        raise InvalidRequest("The order has no id, no source_id and no receipt to find its engine session by.", "/id")
    return session


def _carries_discounts(order: Checkout) -> bool:
    return order.root_discount > 0 or any(line.discount for line in order.lines)


def _may_go_without(service: Service, checkout: Checkout) -> bool:
    policy = service.settings.on_engine_failure
    return policy == "no_discount" or (policy == "no_discount_without_codes" and not checkout.promotions.codes)


def _content(checkout: Checkout, settled: Settled) -> bytes:
    """What a receipt vouches for, as it will be read back from the answer."""
    lines = sorted(
        (line.name, line.quantity, line.list_price, settled.line_total(line.index)) for line in checkout.lines
    )
    return receipt.digest(checkout.currency, lines, settled.root_total)


def _drift(order: Checkout, granted: Settled) -> Notice | None:
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


def _refused(rejected: Iterable[Rejection]) -> Refused:
    return Refused([_rejection(rejection) for rejection in rejected])


def _rejection(rejected: Rejection) -> dict[str, str]:
    reason = rejected.reason if rejected.reason in REASONS else "other"
    return {
        "code": rejected.code,
        "reason": reason,
        "engine_reason": rejected.engine_reason,
        "message": REASONS[reason],
    }


def _notice(notice: Notice) -> dict[str, Any]:
    return {"type": notice.type, "text": notice.text, "payload": notice.payload}


def _note_rejected(call: Call, outcome: Outcome) -> None:
    call.record.rejected = [rejected.reason for rejected in outcome.rejected]


def _old_note(order: Checkout) -> dict[str, Any]:
    note = order.promotions.meta.get("mapper")
    return note if isinstance(note, dict) else {}


def _note_pointer(order: Checkout) -> str:
    return "".join(f"/{key}" for key in (*(order.promotions_at or ("promotions",)), "meta", "mapper", "receipt"))
