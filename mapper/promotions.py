"""START HERE. The three things this service does, each told from top to bottom: validate, consume, cancel.

Everything that matters happens in this order: who calls, what do they bring, what does the engine say, what is
answered. How an order is redeemed once is told in `mapper.orders.redeem`; what its row says is to be done next, and
when, in `mapper.orders.rows`; how a checkout becomes an order at Nacelle, in `mapper.nacelle.convert`.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from mapper.adapter import Adapter
from mapper.domain import checkout as documents
from mapper.domain import discounts, document, receipt, signature
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Settled
from mapper.domain.errors import EngineRejected, EngineUnavailable, Forbidden, InvalidRequest, Operation, Problem
from mapper.domain.languages import Language, language_of
from mapper.domain.outcome import Outcome
from mapper.domain.receipt import Receipt, Receipts
from mapper.domain.record import Record
from mapper.domain.signature import Headers
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.orders.redeem import OrderRedeemer, as_it_came
from mapper.orders.rows import Answer, Key, LedgerUnavailable, Terms, next_session
from mapper.settings import Settings
from mapper.threads import run_in_thread

log = logging.getLogger("mapper")

# How many sessions of one id are tried: carts live on after their order, but not after so many.
MOST_SESSIONS = 5
# How long a validate waits for the ledger after the engine has answered.
LEDGER_WAIT_S = 0.1


@dataclass(frozen=True)
class Service:
    """What all three need, built once. The engines hold the calls; clocks and ids are handed in for the tests."""

    settings: Settings
    validating: Engine
    redeemer: OrderRedeemer
    clock: Callable[[], float] = time.monotonic
    """What deadlines are counted on; the engines' own."""
    now: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: f"checkout-{uuid.uuid4()}"
    fill: Callable[[Checkout], Awaitable[Checkout]] = as_it_came
    """Fills in what the lines of a checkout lack of product data, where a source is configured."""
    keep: Callable[[str, str, Checkout], Awaitable[None]] | None = None
    """Writes down what was filled in (space, session, checkout), for the order that the checkout becomes."""
    warned_of: set[str] = field(default_factory=set)
    """Settings that were warned of already."""
    _receipts: dict[str, Receipts] = field(default_factory=dict)
    """Of the spaces that have called; only those that are served get so far."""

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    @property
    def engine(self) -> PromotionEngine:
        return PromotionEngine(self.adapter, self.validating)

    def receipts(self, space: str) -> Receipts:
        """Those of a space ("" where spaces are not told apart)."""
        if space not in self._receipts:
            self._receipts[space] = self._receipts_of(space)
        return self._receipts[space]

    def _receipts_of(self, space: str) -> Receipts:
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
    has_hung_up: Callable[[], bool] = lambda: False
    """Whether the caller is gone."""


async def validate(service: Service, call: Call) -> Answer:
    """The checkout with everything on it that the engine grants. Raises `Problem`."""
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    checkout = await _parse(service, call, "validate")
    receipts = service.receipts(space)
    session = _session(service, checkout, space, receipts.read_if_ours(checkout, service.now()))
    _note(service, call, checkout, space, checkout.id or checkout.source_id, session)
    _warn_of_missing_costs(service, checkout)
    checkout = await service.fill(checkout)
    degraded = False
    try:
        outcome, session = await _ask(service, checkout, space, session, call.deadline)
    except EngineUnavailable:
        if not _may_go_without(service, checkout):
            raise
        outcome, session, degraded = Outcome(), session or service.new_id(), True
    outcome = notes.as_entered(checkout, outcome)
    call.record.rejected = outcome.rejected
    if outcome.rejected and service.settings.on_rejected == "refuse":
        raise notes.refused(outcome.rejected, call.record.language)
    call.record.degraded, call.record.session = degraded, session
    if service.keep is not None:
        await service.keep(space, session, checkout)
    answer, settled = await run_in_thread(
        len(call.body),
        _granted,
        receipts,
        checkout,
        outcome,
        session,
        degraded,
        service.settings.receipt_required,
        service.now(),
        call.record.language,
    )
    call.record.clamped, call.record.discount = settled.clamped > 0, settled.total
    return answer


async def consume(service: Service, call: Call) -> Answer:
    """The order as it came, its promotions redeemed for good, once. Raises `Problem`."""
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    order = await _parse(service, call, "consume")
    if (paid := service.settings.consume_requires) and order.at(paid) is None:
        raise InvalidRequest("This is no paid order.", paid, reason="not_paid")
    # A receipt is judged only before a new attempt: what is redeemed is answered the same ever after.
    given = _receipt(service, order, space)
    key = Key(space, service.adapter.name, _order_key(service, order, given))
    terms = _terms(service, order, space, given)
    _note(service, call, order, space, key.order, terms.session if isinstance(terms, Terms) else "")
    call.record.receipt = _fate(given, order)
    job = service.redeemer.job(key, order, terms, call.record, call.has_hung_up)
    return await service.redeemer.consume(job, call.deadline)


async def cancel(service: Service, call: Call) -> Answer:
    """The order as it was stored, its redemption taken back for good. Raises `Problem`."""
    credentials = service.settings.cancel_credentials
    assert credentials is not None, "without secrets there is no such route"
    space = signature.verify(call.body, call.headers, credentials)
    key = Key(space, service.adapter.name, _cancelled_id(call.body))
    return await service.redeemer.cancel(key, call.deadline)


async def _ask(service: Service, checkout: Checkout, space: str, session: str, deadline: float) -> tuple[Outcome, str]:
    """What the engine grants, and in which session: not in one that an order has finished with."""
    if not session:
        session = service.new_id()
        return await service.engine.validate(checkout, session, deadline), session
    key = Key(space, service.adapter.name, "")
    for _ in range(MOST_SESSIONS):
        try:
            if service.redeemer.ledger.looks_at_once:
                session = await _open_session(service, key, session)
                return await service.engine.validate(checkout, session, deadline), session
            outcome, free = await _ask_meanwhile(service, key, checkout, session, deadline)
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            session = next_session(session)
        else:
            if free == session:
                return outcome, session
            session = free
    raise EngineRejected("This order has been completed already; a new checkout is needed.", reason="session_closed")


async def _ask_meanwhile(
    service: Service, key: Key, checkout: Checkout, session: str, deadline: float
) -> tuple[Outcome, str]:
    """What the engine grants in this session, and the session that it should have been asked in.

    Engine and ledger at once: almost always the session is open, and a ledger that is slow or away holds nobody up.
    """
    looking = asyncio.create_task(_open_session(service, key, session))
    try:
        outcome = await service.engine.validate(checkout, session, deadline)
        await asyncio.wait({looking}, timeout=LEDGER_WAIT_S)
        return outcome, looking.result() if looking.done() else session
    finally:
        looking.cancel()


async def _open_session(service: Service, key: Key, session: str) -> str:
    """The session; or the next, where the ledger says that an order has finished with it."""
    try:
        return await service.redeemer.ledger.free_session(key, session)
    except LedgerUnavailable:
        return session


async def _parse(service: Service, call: Call, operation: Operation) -> Checkout:
    given = service.settings
    return await run_in_thread(
        len(call.body), documents.parse, call.body, operation, given.default_currency, given.customer_path
    )


def _note(service: Service, call: Call, checkout: Checkout, space: str, key: str, session: str) -> None:
    """What the log tells of the call, whatever becomes of it; and the shopper's language."""
    record = call.record
    accepted = next((value.decode("latin-1") for name, value in call.headers if name == b"accept-language"), "")
    record.language = language_of(checkout.source.decoded, accepted)
    served = service.settings.credentials.spaces
    record.space = space or (next(iter(served)) if len(served) == 1 else "")  # one alone is no part of keys
    record.id, record.session = key, session
    record.codes, record.currency = checkout.promotions.codes, checkout.currency


def _granted(
    receipts: Receipts,
    checkout: Checkout,
    outcome: Outcome,
    session: str,
    degraded: bool,
    receipt_required: bool,
    now: float,
    language: Language,
) -> tuple[Answer, Settled]:
    """The checkout with everything on it, and what was granted."""
    settled = discounts.settle(checkout, outcome)
    note = {
        "engine": receipts.engine,
        "session": session,
        "rejected": [notes.rejection(rejected, language) for rejected in outcome.rejected],
        "notices": [notes.notice(notice) for notice in outcome.notices],
        "degraded": degraded,
        "receipt": receipts.write(session, checkout.customer, degraded, _content(checkout, settled), now),
    }
    answer = Answer(
        200, b'{"checkout":' + discounts.write(checkout, settled, note, receipt_required=receipt_required) + b"}", "ok"
    )
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


def _receipt(service: Service, order: Checkout, space: str) -> Receipt | Forbidden | None:
    """The order's receipt, or that it is forged."""
    try:
        return service.receipts(space).read(order, service.now())
    except Forbidden as forged:
        return forged


def _fate(given: Receipt | Forbidden | None, order: Checkout) -> str:
    """What became of the receipt, for the log: one of `RECEIPT_FATES`."""
    if isinstance(given, Forbidden):
        return "forged"
    if given is None:
        return "absent"
    return "good" if given.matches(order.customer) else "stale"


def _terms(service: Service, order: Checkout, space: str, given: Receipt | Forbidden | None) -> Terms | Problem:
    """What a new attempt at this order would be made with; or why there must be none."""
    if isinstance(given, Forbidden):
        return given
    if service.settings.receipt_required and not (given and given.matches(order.customer)):
        message = "The order has no receipt, or not that of these lines, prices and discounts, or an old one."
        return InvalidRequest(message, _receipt_pointer(order), reason="no_receipt")
    return Terms(
        session=_session(service, order, space, given),
        from_receipt=given is not None,
        customer=order.customer or (given.customer if given else ""),
        currency=order.currency,
        degraded=given is not None and given.degraded and not _carries_discounts(order),
    )


def _order_key(service: Service, order: Checkout, given: Receipt | Forbidden | None) -> str:
    """What makes an order the same order when it comes again."""
    key = order.id or order.source_id
    if not key and (path := service.settings.order_key_path):
        key = documents.id_at(order.source, path)
    if not key and isinstance(given, Receipt):
        key = given.session
    return key or "sha256:" + hashlib.sha256(order.source.text).hexdigest()


def _cancelled_id(body: bytes) -> str:
    """The order's key. The body names it and nothing else, so that no order that was captured is a cancel."""
    root = document.parse(body)
    cancelled = root.decoded.get("cancel")
    if set(root.decoded) != {"cancel"} or not isinstance(cancelled, dict) or set(cancelled) != {"id"}:
        raise InvalidRequest('The body is not exactly {"cancel": {"id": "<order key>"}}.', "")
    if not (key := documents.id_at(root, "/cancel/id")):
        raise InvalidRequest("The id is neither a string nor a number.", "/cancel/id")
    return key


def _receipt_pointer(order: Checkout) -> str:
    return "".join(f"/{key}" for key in (*(order.promotions_at or ("promotions",)), "meta", "mapper", "receipt"))
