"""START HERE: the three operations of this service, validate, consume and cancel, each from request to answer.

Each one verifies the signature and parses the body. Validate then asks the engine and builds the answer. Consume and
cancel go to `mapper.orders.redeem`, which redeems an order once: it calls the engine, sets time limits, and makes the
answer. `mapper.orders.rows` has its rules: pure functions from an order's row to the next step, and to the time of the
next look-up. `mapper.domain.errors` has the HTTP status of each error.

The engines are not here but in `adapters/<engine>/`; `mapper.adapter` is their contract. How an HTTP request gets here,
and its log line: `mapper.http.endpoint`. CONTRIBUTING.md lists what to open for which change.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from mapper.adapter import Adapter
from mapper.domain import checkout as documents
from mapper.domain import discounts, document, signature
from mapper.domain import notices as notes
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Allocation
from mapper.domain.errors import EngineRejected, EngineUnavailable, Forbidden, InvalidRequest, Operation, Problem
from mapper.domain.languages import Language, language_of
from mapper.domain.outcome import Outcome
from mapper.domain.receipt import Receipt, Receipts, content_of
from mapper.domain.record import Record
from mapper.domain.signature import Headers
from mapper.engine.promotion_engine import PromotionEngine
from mapper.orders.redeem import OrderRedeemer, add_no_product_data
from mapper.orders.rows import Answer, Key, LedgerUnavailable, Terms, next_session
from mapper.settings import Settings
from mapper.threads import run_in_thread

log = logging.getLogger("mapper")

MAX_SESSIONS = 10
"""Sessions (`c-1`, `c-1~2`, …) that validate tries for one cart: enough for 256. An order uses up its session."""
LEDGER_WAIT_S = 0.1
"""How long validate waits for the ledger once the engine has answered."""


@dataclass(frozen=True)
class Service:
    """What the three operations share, built once per process. Tests replace the clocks and ids."""

    settings: Settings
    promotion_engine: PromotionEngine
    """For validate: with a circuit breaker. `redeemer` has one without."""
    redeemer: OrderRedeemer
    clock: Callable[[], float] = time.monotonic
    """The monotonic clock of all deadlines; `promotion_engine` and `redeemer` use the same one."""
    now: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: f"checkout-{uuid.uuid4()}"
    add_product_data: Callable[[Checkout], Awaitable[Checkout]] = add_no_product_data
    """Adds product data that the lines lack (`MAPPER_PRODUCT_DATA`)."""
    save_product_data: Callable[[str, str, Checkout], Awaitable[None]] | None = None
    """Stores the added data by space and session, so that consume sends the engine the same."""
    warned_pointers: set[str] = field(default_factory=set)
    """Cost pointers that have been warned of."""
    _receipts: dict[str, Receipts] = field(default_factory=dict)
    """By space. A caller cannot make it grow: it is read after the signature and the space are verified."""

    @property
    def adapter(self) -> Adapter:
        return self.settings.adapter

    def receipts(self, space: str) -> Receipts:
        """Reads and writes the receipts of a space; "" where spaces are not told apart."""
        if space not in self._receipts:
            self._receipts[space] = self._create_receipts(space)
        return self._receipts[space]

    def _create_receipts(self, space: str) -> Receipts:
        configured, credentials = self.settings, self.settings.credentials
        signing = credentials.of(space) if space else credentials.all_secrets
        values = tuple(value for _, value in credentials.headers)
        secrets = signing if credentials.auth == "signature" else (*signing, *values)
        return Receipts(secrets, self.adapter.name, configured.receipt_ttl_s, space, configured.old_receipt_secrets)


class Call(msgspec.Struct, frozen=True):
    """One request from Nacelle or, to cancel, from the merchant."""

    body: bytes
    headers: Headers
    """Names in lower case."""
    deadline: float
    """When it must be answered, on the service's monotonic clock."""
    record: Record = msgspec.field(default_factory=lambda: Record("", ""))
    has_hung_up: Callable[[], bool] = lambda: False
    """Whether the caller has disconnected."""


async def validate(service: Service, call: Call) -> Answer:
    """Returns the checkout with the discounts that the engine grants. Raises `Problem`."""
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    checkout = await _parse(service, call, "validate")
    receipts = service.receipts(space)
    session = _session_id(service, checkout, space, receipts.session_if_ours(checkout))
    _start_record(service, call, checkout, space, checkout.id or checkout.source_id, session)
    _warn_of_missing_costs(service, checkout)
    checkout = await service.add_product_data(checkout)
    degraded = False
    try:
        outcome, session = await _ask_engine(service, checkout, space, session, call.deadline)
    except EngineUnavailable:
        if not _may_answer_without_engine(service, checkout):
            raise
        outcome, session, degraded = Outcome(), session or service.new_id(), True
    outcome = notes.complete(checkout, outcome)
    call.record.rejected = outcome.rejected
    if outcome.rejected and service.settings.on_rejected == "refuse":
        raise notes.refused(outcome.rejected, call.record.language)
    call.record.degraded, call.record.session = degraded, session
    if service.save_product_data is not None:
        await service.save_product_data(space, session, checkout)
    answer, allocation = await run_in_thread(
        len(call.body),
        _build_answer,
        receipts,
        checkout,
        outcome,
        session,
        degraded,
        service.settings.receipt_required,
        service.now(),
        call.record.language,
    )
    call.record.clamped, call.record.discount = allocation.clamped > 0, allocation.total
    if (size := len(answer.reply)) > service.settings.max_body_bytes:
        problem = "this answer is larger than MAPPER_MAX_BODY_BYTES: its order will be refused as too large"
        log.warning("setting", extra={"facts": {"problem": problem, "bytes": size}})
    return answer


async def consume(service: Service, call: Call) -> Answer:
    """Redeems the order's promotions, once, and returns the order. Raises `Problem`.

    Every byte of the order is unchanged, except that the engine's notices are added to `promotions.meta.mapper`.
    """
    space = signature.verify(call.body, call.headers, service.settings.credentials)
    order = await _parse(service, call, "consume")
    if (paid := service.settings.consume_requires) and _is_empty(order.at(paid)):
        raise InvalidRequest("This order has not been paid.", paid, reason="not_paid")
    # A bad receipt is not raised here: an order that has been redeemed is answered from the ledger whatever it brings.
    receipt = _read_receipt(service, order, space)
    key = Key(space, service.adapter.name, _order_key(service, order, receipt))
    terms = _terms(service, order, space, receipt)
    _start_record(service, call, order, space, key.order, terms.session if isinstance(terms, Terms) else "")
    call.record.receipt = _receipt_status(receipt, order)
    job = service.redeemer.job(key, order, terms, call.record, call.has_hung_up)
    return await service.redeemer.consume(job, call.deadline)


async def cancel(service: Service, call: Call) -> Answer:
    """Undoes an order's redemption for good and returns the order as it was stored. Raises `Problem`."""
    credentials = service.settings.cancel_credentials
    assert credentials is not None, "without secrets there is no such route"
    space = signature.verify(call.body, call.headers, credentials)
    call.record.id = _order_to_cancel(call.body)
    key = Key(space, service.adapter.name, call.record.id)
    return await service.redeemer.cancel(key, call.deadline)


async def _ask_engine(
    service: Service, checkout: Checkout, space: str, session: str, deadline: float
) -> tuple[Outcome, str]:
    """Returns what the engine grants, and the session it was asked in. A session that an order has used is skipped."""
    if not session:
        session = service.new_id()
        return await service.promotion_engine.validate(checkout, session, deadline), session
    key = Key(space, service.adapter.name, "")
    for tried in range(MAX_SESSIONS):
        try:
            if service.redeemer.ledger.answers_at_once:
                session = await _free_session(service, key, session)
                return await service.promotion_engine.validate(checkout, session, deadline), session
            outcome, free = await _ask_engine_and_ledger(service, key, checkout, session, deadline)
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            session = next_session(session, tried)
        else:
            if free == session:
                return outcome, session
            session = free
    raise EngineRejected("This order has been completed already; a new checkout is needed.", reason="session_closed")


async def _ask_engine_and_ledger(
    service: Service, key: Key, checkout: Checkout, session: str, deadline: float
) -> tuple[Outcome, str]:
    """Returns what the engine grants in this session, and the session that the ledger says to use.

    Both are asked at the same time: the session is almost always free, and validate must not wait for a slow ledger
    server. Where it is another one, the engine has to be asked again.
    """
    look_up = asyncio.create_task(_free_session(service, key, session))
    try:
        outcome = await service.promotion_engine.validate(checkout, session, deadline)
        await asyncio.wait({look_up}, timeout=LEDGER_WAIT_S)
        return outcome, look_up.result() if look_up.done() else session
    finally:
        look_up.cancel()


async def _free_session(service: Service, key: Key, session: str) -> str:
    """Returns the session, or the next free one if an order has used it. Without the ledger, it counts as free."""
    try:
        return await service.redeemer.ledger.free_session(key, session)
    except LedgerUnavailable:
        return session


async def _parse(service: Service, call: Call, operation: Operation) -> Checkout:
    settings = service.settings
    return await run_in_thread(
        len(call.body), documents.parse, call.body, operation, settings.default_currency, settings.customer_path
    )


def _start_record(service: Service, call: Call, checkout: Checkout, space: str, id_or_key: str, session: str) -> None:
    """Puts into the record what is known before the engine is asked, so that the log has it however the call ends."""
    record = call.record
    accepted = next((value.decode("latin-1") for name, value in call.headers if name == b"accept-language"), "")
    record.language = language_of(checkout.source.decoded, accepted)
    served = service.settings.credentials.spaces
    # `space` is "" where only one is served; the log names it all the same.
    record.space = space or (next(iter(served)) if len(served) == 1 else "")
    record.id, record.session = id_or_key, session
    record.codes, record.currency = checkout.promotions.codes, checkout.currency


def _build_answer(
    receipts: Receipts,
    checkout: Checkout,
    outcome: Outcome,
    session: str,
    degraded: bool,
    receipt_required: bool,
    now: float,
    language: Language,
) -> tuple[Answer, Allocation]:
    """Returns validate's answer, and the discounts of lines and order. The note: `promotions.meta.mapper`."""
    allocation = discounts.allocate(checkout, outcome)
    note = {
        "engine": receipts.engine,
        "session": session,
        "rejected": [notes.rejection(rejected, language) for rejected in outcome.rejected],
        "notices": [notes.notice(notice) for notice in outcome.notices],
        "degraded": degraded,
        "receipt": receipts.write(session, checkout.customer, degraded, content_of(checkout, allocation), now),
    }
    answer = Answer(
        200,
        b'{"checkout":' + discounts.write(checkout, allocation, note, receipt_required=receipt_required) + b"}",
        "ok",
    )
    return answer, allocation


def _session_id(service: Service, checkout: Checkout, space: str, of_receipt: str | None) -> str:
    """Returns the engine session's id: the receipt's, else the body's own id with the space before it, else ""."""
    if of_receipt is not None:
        return of_receipt
    own = checkout.id or checkout.source_id
    if not own and (path := service.settings.session_id_path):
        own = documents.id_at(checkout.source, path)
    return f"{quote(space, safe='')}:{own}" if own and space else own


def _warn_of_missing_costs(service: Service, checkout: Checkout) -> None:
    """Warns, once per pointer, of a cost pointer that finds nothing: the engine cannot discount a cost it never got."""
    for pointer in getattr(service.adapter, "cost_pointers", ()):
        if pointer not in service.warned_pointers and checkout.amount_at(pointer) is None:
            service.warned_pointers.add(pointer)
            problem = "a pointer to an additional cost finds nothing in this checkout"
            log.warning("setting", extra={"facts": {"problem": problem, "pointer": pointer}})


def _carries_discounts(order: Checkout) -> bool:
    return order.root_discount > 0 or any(line.discount for line in order.lines)


def _may_answer_without_engine(service: Service, checkout: Checkout) -> bool:
    policy = service.settings.on_engine_failure
    entered = checkout.promotions.codes_as_entered
    return policy == "no_discount" or (policy == "no_discount_without_codes" and not entered)


def _read_receipt(service: Service, order: Checkout, space: str) -> Receipt | Forbidden | None:
    """Returns the order's receipt, None without one, or the error for a forged one."""
    try:
        return service.receipts(space).read(order, service.now())
    except Forbidden as forged:
        return forged


def _receipt_status(receipt: Receipt | Forbidden | None, order: Checkout) -> str:
    """One of `mapper.domain.record.RECEIPT_FATES`, for log and metric."""
    if isinstance(receipt, Forbidden):
        return "forged"
    if receipt is None:
        return "absent"
    return "good" if receipt.matches(order.customer) else "stale"


def _terms(service: Service, order: Checkout, space: str, receipt: Receipt | Forbidden | None) -> Terms | Problem:
    """Returns the terms of a new attempt to redeem this order, or the error that forbids one."""
    if isinstance(receipt, Forbidden):
        return receipt
    if service.settings.receipt_required and not (receipt and receipt.matches(order.customer)):
        message = "The order has no receipt, or one that has expired or is not of these lines, prices and discounts."
        return InvalidRequest(message, _receipt_pointer(order), reason="no_receipt")
    return Terms(
        session=_session_id(service, order, space, receipt.session if receipt else None),
        from_receipt=receipt is not None,
        customer=order.customer or (receipt.customer if receipt else ""),
        currency=order.currency,
        degraded=receipt is not None and receipt.degraded and not _carries_discounts(order),
    )


def _order_key(service: Service, order: Checkout, receipt: Receipt | Forbidden | None) -> str:
    """Returns the key by which the ledger recognises an order that is sent again."""
    key = order.id or order.source_id
    if not key and (path := service.settings.order_key_path):
        key = documents.id_at(order.source, path)
    if not key and isinstance(receipt, Receipt):
        key = receipt.session
    return key or "sha256:" + hashlib.sha256(order.source.text).hexdigest()


def _order_to_cancel(body: bytes) -> str:
    """Returns the order's key. The body may hold nothing else, so that a captured order cannot be sent as a cancel."""
    root = document.parse(body)
    cancelled = root.decoded.get("cancel")
    if set(root.decoded) != {"cancel"} or not isinstance(cancelled, dict) or set(cancelled) != {"id"}:
        raise InvalidRequest('The body is not exactly {"cancel": {"id": "<order key>"}}.', "")
    if not (key := documents.id_at(root, "/cancel/id")):
        raise InvalidRequest("The id is neither a string nor a number.", "/cancel/id")
    return key


def _is_empty(value: object) -> bool:
    """Whether the value at the pointer of `MAPPER_CONSUME_REQUIRES` says nothing of a payment. 0 is an amount."""
    return value is None or (isinstance(value, bool | str | list | dict) and not value)


def _receipt_pointer(order: Checkout) -> str:
    return "".join(f"/{key}" for key in (*(order.promotions_at or ("promotions",)), "meta", "mapper", "receipt"))
