"""START HERE. The two things this service does, each told from top to bottom.

Everything that matters happens in this order: who calls, what do they bring, what does the engine say, what is
answered. What the words mean stands in the modules they come from; how an order is redeemed once, in `once`.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from mapper.adapter import Adapter
from mapper.domain import checkout as documents
from mapper.domain import discounts, receipt, signature
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Settled
from mapper.domain.errors import EngineRejected, EngineUnavailable, InvalidRequest, Operation
from mapper.domain.outcome import Outcome
from mapper.domain.receipt import Receipt, Receipts
from mapper.domain.record import Record
from mapper.domain.signature import Headers
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.orders.redeem import Once, Work
from mapper.orders.rows import Answer, Key
from mapper.settings import Settings
from mapper.threads import run_in_thread

log = logging.getLogger("mapper")

# How many sessions of one id are tried: carts live on after their order, but not after so many.
MOST_SESSIONS = 5


@dataclass(frozen=True)
class Service:
    """What both stories need, built once. The engines hold the calls; clocks and ids are handed in for the tests."""

    settings: Settings
    validating: Engine
    once: Once
    clock: Callable[[], float] = time.monotonic
    """What deadlines are counted on; the engines' own."""
    now: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: f"checkout-{uuid.uuid4()}"
    warned_of: set[str] = field(default_factory=set)
    """Settings that were warned of already."""

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    @property
    def engine(self) -> PromotionEngine:
        return PromotionEngine(self.adapter, self.validating)

    def receipts(self, space: str) -> Receipts:
        """Those of a space ("" where spaces are not told apart)."""
        configured, credentials = self.settings, self.settings.credentials
        signing = credentials.of(space) if space else credentials.all_secrets
        values = tuple(value for _, value in credentials.headers)
        secrets = signing if credentials.auth == "signature" else (*signing, *values)
        return Receipts(secrets, self.adapter.name, configured.receipt_ttl_s, space, configured.old_receipt_secrets)


@dataclass(frozen=True)
class Call:
    """One request as it came: the body's bytes, the headers (names in lower case), and when it must be answered."""

    body: bytes
    headers: Headers
    deadline: float
    """On the service's clock, which is monotonic."""
    record: Record = field(default_factory=lambda: Record("", ""))


async def validate(service: Service, call: Call) -> Answer:
    """The checkout with everything on it that the engine grants. Raises `Problem`."""
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    checkout = await _parse(service, call, "validate")
    receipts = service.receipts(space)
    session = _session(service, checkout, space, receipts.read_if_ours(checkout, service.now())) or service.new_id()
    _note(call.record, checkout, space, checkout.id or checkout.source_id, session)
    _warn_of_missing_costs(service, checkout)
    degraded = False
    try:
        outcome, session = await _ask(service, checkout, session, call.deadline)
    except EngineUnavailable:
        if not _may_go_without(service, checkout):
            raise
        outcome, degraded = Outcome(), True
    outcome = notes.as_entered(checkout, outcome)
    call.record.rejected = outcome.rejected
    if outcome.rejected and service.settings.on_rejected == "refuse":
        raise notes.refused(outcome.rejected)
    call.record.degraded = degraded
    answer, settled = await run_in_thread(
        len(call.body), _granted, receipts, checkout, outcome, session, degraded, service.now()
    )
    call.record.clamped, call.record.discount = settled.clamped > 0, settled.total
    return answer


async def _ask(service: Service, checkout: Checkout, session: str, deadline: float) -> tuple[Outcome, str]:
    """What the engine grants, and in which session: not in one that is finished."""
    for _ in range(MOST_SESSIONS):
        try:
            return await service.engine.validate(checkout, session, deadline), session
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            session = _next_session(session)
    raise EngineRejected("This order has been completed already; a new checkout is needed.", reason="session_closed")


def _next_session(session: str) -> str:
    """The session after one that is finished: `<id>~2` and so on."""
    base, tilde, number = session.rpartition("~")
    return f"{base}~{int(number) + 1}" if tilde and number.isdecimal() else f"{session}~2"


async def consume(service: Service, call: Call) -> Answer:
    """The order as it came, its promotions redeemed for good, once. Raises `Problem`."""
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    order = await _parse(service, call, "consume")
    if (paid := service.settings.consume_requires) and order.at(paid) is None:
        raise InvalidRequest("This is no paid order.", paid, reason="not_paid")
    given = service.receipts(space).read(order, service.now())
    if service.settings.receipt_required and not (given and given.matches(order.customer)):
        message = "The order has no receipt, or not that of these lines, prices and discounts, or an old one."
        raise InvalidRequest(message, _receipt_pointer(order), reason="no_receipt")
    if given is not None and not order.customer:
        order = replace(order, customer=given.customer)
    if given is not None and given.degraded and not _carries_discounts(order):
        # The shopper was told list prices because the engine could not be asked: nothing may be redeemed now.
        call.record.degraded = True
        return Answer(200, notes.as_it_came(order), "degraded")
    key = Key(space, service.adapter.name, _order_key(service, order))
    session = _session(service, order, space, given)
    if not session:
        raise InvalidRequest("The order has no id, no source_id and no receipt to find its engine session by.", "/id")
    _note(call.record, order, space, key.order, session)
    work = Work(key, order, session, call.record)
    return await service.once.consume(work, call.deadline)


async def _parse(service: Service, call: Call, operation: Operation) -> Checkout:
    given = service.settings
    return await run_in_thread(
        len(call.body), documents.parse, call.body, operation, given.default_currency, given.customer_path
    )


def _note(record: Record, checkout: Checkout, space: str, key: str, session: str) -> None:
    """What the log tells of the call, whatever becomes of it."""
    record.space, record.id, record.session = space, key, session
    record.codes, record.currency = checkout.promotions.codes, checkout.currency


def _granted(
    receipts: Receipts, checkout: Checkout, outcome: Outcome, session: str, degraded: bool, now: float
) -> tuple[Answer, Settled]:
    """The checkout with everything on it, and what was granted."""
    settled = discounts.settle(checkout, outcome)
    note = {
        "engine": receipts.engine,
        "session": session,
        "rejected": [notes.rejection(rejected) for rejected in outcome.rejected],
        "notices": [notes.notice(notice) for notice in outcome.notices],
        "degraded": degraded,
        "receipt": receipts.write(session, checkout.customer, degraded, _content(checkout, settled), now),
    }
    answer = Answer(200, b'{"checkout":' + discounts.write(checkout, settled, note) + b"}", "ok")
    return answer, settled


def _session(service: Service, checkout: Checkout, space: str, given: Receipt | None) -> str:
    """The engine session's id: that of the receipt, else the body's own id, which is another in each space; or ""."""
    if given is not None:
        return given.session
    own = checkout.id or checkout.source_id
    if not own and (path := service.settings.session_id_path):
        own = documents.id_at(checkout.source, path)
    return f"{quote(space, safe='')}:{own}" if own and space else own


def _warn_of_missing_costs(service: Service, checkout: Checkout) -> None:
    """Says once of each pointer that it finds no cost: the engine is told of none, so it takes nothing off it."""
    for pointer in getattr(service.adapter, "cost_pointers", ()):
        if pointer not in service.warned_of and checkout.amount_at(pointer) is None:
            service.warned_of.add(pointer)
            problem = "a pointer to an additional cost finds nothing in this checkout"
            log.warning("setting", extra={"facts": {"problem": problem, "pointer": pointer}})


def _carries_discounts(order: Checkout) -> bool:
    return order.root_discount > 0 or any(line.discount for line in order.lines)


def _may_go_without(service: Service, checkout: Checkout) -> bool:
    policy = service.settings.on_engine_failure
    entered = checkout.promotions.codes_as_entered
    return policy == "no_discount" or (policy == "no_discount_without_codes" and not entered)


def _content(checkout: Checkout, settled: Settled) -> bytes:
    """What a receipt vouches for, as it will be read back from the answer."""
    lines = sorted(
        (line.name, line.quantity, line.list_price, settled.line_total(line.index)) for line in checkout.lines
    )
    return receipt.digest(checkout.currency, lines, settled.root_total)


def _order_key(service: Service, order: Checkout) -> str:
    """What makes an order the same order when it comes again."""
    key = order.id or order.source_id
    if not key and (path := service.settings.order_key_path):
        key = documents.id_at(order.source, path)
    return key or "sha256:" + hashlib.sha256(order.source.text).hexdigest()


def _receipt_pointer(order: Checkout) -> str:
    return "".join(f"/{key}" for key in (*(order.promotions_at or ("promotions",)), "meta", "mapper", "receipt"))
