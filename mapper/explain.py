"""Explains what a checkout earns: the engine's requests and replies, and which effect takes how much off which line.

The engine is asked as by validate, and nothing is redeemed. `promotions-mapper explain` prints the explanation, the
page `/explain` shows it. Amounts are in minor units. `adds_up` checks that every discount of the engine is accounted
for.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from mapper import pages
from mapper.adapter import EngineReply, EngineRequest
from mapper.domain import checkout as documents
from mapper.domain import discounts, money
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Allocation
from mapper.domain.errors import EngineRejected, InvalidRequest, Problem
from mapper.domain.outcome import Diagnostic, Discount, Notice, Outcome, Rejection
from mapper.engine.conversation import Attempt, Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.engine.transport import Transport
from mapper.nacelle.products import Products
from mapper.nacelle.storefront import source_of
from mapper.orders.rows import next_session
from mapper.pages import Row
from mapper.promotions import MAX_SESSIONS
from mapper.recording import records, replay
from mapper.settings import Rules, Settings


@dataclass(frozen=True)
class Exchange:
    """One request to the engine and its reply. Bodies are JSON values; headers, which hold the key, are left out."""

    operation: str
    method: str
    path: str
    status: int
    ms: float
    request: Any
    reply: Any


@dataclass(frozen=True)
class Step:
    """One discount on a line or on the order."""

    name: str
    effect_type: str
    granted: int
    taken: int
    """What is taken off here. Less than `granted` if the price is lower, or if the rest is taken off elsewhere."""
    code: str = ""


@dataclass(frozen=True)
class LineExplanation:
    pointer: str
    name: str
    quantity: int
    list_price: int
    gross: int
    steps: tuple[Step, ...]
    net: int
    unit_price: int


@dataclass(frozen=True)
class Explanation:
    currency: str
    digits: int
    engine: str
    session: str
    lines: tuple[LineExplanation, ...] = ()
    root: tuple[Step, ...] = ()
    total: int = 0
    clamped: int = 0
    """What the engine granted in excess of the prices."""
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[Notice, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by step: reading, asking, settling."""
    problem: str = ""
    """Why there is no outcome, in the words of the log."""

    def text(self, amount: int) -> str:
        return money.text(amount, self.digits)

    @property
    def adds_up(self) -> bool:
        """Whether the steps add up to the total, and the list prices less the steps to the net prices."""
        taken = sum(step.taken for line in self.lines for step in line.steps) + sum(step.taken for step in self.root)
        nets = all(line.gross - sum(step.taken for step in line.steps) == line.net for line in self.lines)
        return nets and taken == self.total


async def explain(configured: Settings, transport: Transport, body: bytes) -> Explanation:
    """Explains a checkout, an order, or a record of one (`MAPPER_RECORD`), which is replayed without the engine.

    Raises `InvalidRequest` for a body that cannot be read.
    """
    if records.is_record(body):
        return _explain_record(configured.rules, body)
    exchanges: list[Exchange] = []
    attempts: list[Attempt] = []

    def on_exchange(request: EngineRequest, reply: EngineReply) -> None:
        bodies = _json(request.body), _json(reply.body)
        exchanges.append(Exchange(request.operation, request.method, request.path, reply.status, 0.0, *bodies))

    started = time.perf_counter()
    checkout = documents.parse(_unwrapped(body), "validate", configured.default_currency, configured.customer_path)
    if configured.products is not None:
        checkout = await Products(source_of(configured.products, transport)).at_validate(checkout)
    read = time.perf_counter()
    engine = Engine(transport, configured.adapter.accounts, on_attempt=attempts.append, on_exchange=on_exchange)
    session = checkout.id or checkout.source_id or "explain"
    deadline = time.monotonic() + configured.consume_deadline_s
    problem, outcome = "", Outcome()
    try:
        outcome, session = await _ask(PromotionEngine(configured.adapter, engine), checkout, session, deadline)
    except Problem as failed:
        problem = failed.message
    outcome = msgspec.structs.replace(outcome, notices=(*outcome.notices, *checkout.notices))
    asked = time.perf_counter()
    allocation = discounts.allocate(checkout, outcome)
    done = time.perf_counter()
    ms = {
        "reading": 1000 * (read - started),
        "asking the engine": 1000 * (asked - read),
        "settling": 1000 * (done - asked),
    }
    times = [attempt.seconds for attempt in attempts if attempt.failure is None]
    timed = tuple(replace(exchange, ms=1000 * seconds) for exchange, seconds in zip(exchanges, times, strict=False))
    return _explanation(configured.adapter.name, session, checkout, outcome, allocation, timed, ms, problem)


async def _ask(engine: PromotionEngine, checkout: Checkout, session: str, deadline: float) -> tuple[Outcome, str]:
    """Asks as validate does: a session that an order has used is skipped. Returns the one that was not."""
    for tried in range(MAX_SESSIONS - 1):
        try:
            return await engine.validate(checkout, session, deadline), session
        except EngineRejected as rejected:
            if rejected.reason != "session_closed":
                raise
            session = next_session(session, tried)
    return await engine.validate(checkout, session, deadline), session


def _unwrapped(body: bytes) -> bytes:
    """The checkout or the order of one of our own answers; any other body as it is."""
    try:
        root = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    return bytes(next(iter(root.values()))) if root.keys() in ({"checkout"}, {"order"}) else body


def _explain_record(rules: Rules, data: bytes) -> Explanation:
    """Explains the call of a record, as this version prices it with the recorded replies."""
    try:
        record = records.read(data)
        findings = replay.replay(rules, record)
    except records.Unusable as unusable:
        raise InvalidRequest(str(unusable), "", reason="unusable_record") from None
    of_carts = [one for one in record.conversations if one.method in ("validate", "check", "redeem", "look_up")]
    runs = [(recorded, replay.run(rules, record, recorded)) for recorded in of_carts]
    # The last one with amounts, which is the redemption if there was one.
    priced = [each for each in runs if each[1].result.amounts] or runs
    if not priced or priced[-1][1].cart is None:
        raise InvalidRequest("This version cannot read the recorded call.", "", reason="unusable_record")
    recorded, run = priced[-1]
    assert run.cart is not None, "checked above"
    exchanges = tuple(
        Exchange(one.operation, one.method, one.path, one.status, 0.0, _raw_json(one.sent), _raw_json(one.reply))
        for each in record.conversations
        for one in each.exchanges
    )
    other = next((finding for finding in findings if finding.kind == "asks differently"), None)
    problem = f"This version asks something else than was recorded: {other.place}." if other else run.result.problem
    allocation = discounts.allocate(run.cart, run.outcome)
    session = recorded.arguments[0] if recorded.arguments else ""
    return _explanation(record.engine, str(session), run.cart, run.outcome, allocation, exchanges, {}, problem)


def _raw_json(body: msgspec.Raw | msgspec.UnsetType) -> Any:
    return _json(bytes(body)) if isinstance(body, msgspec.Raw) else None


def _explanation(
    engine: str,
    session: str,
    checkout: Checkout,
    outcome: Outcome,
    allocation: Allocation,
    exchanges: tuple[Exchange, ...],
    ms: Mapping[str, float],
    problem: str,
) -> Explanation:
    lines = []
    for line in checkout.lines:
        net = line.gross - allocation.line_total(line.index)
        lines.append(
            LineExplanation(
                pointer=line.pointer,
                name=line.name,
                quantity=line.quantity,
                list_price=line.list_price,
                gross=line.gross,
                steps=tuple(_step(outcome, discount) for discount in allocation.by_line.get(line.index, ())),
                net=net,
                unit_price=money.unit_price(net, line.quantity) if line.quantity else line.list_price,
            )
        )
    return Explanation(
        currency=checkout.currency,
        digits=checkout.digits,
        engine=engine,
        session=session,
        lines=tuple(lines),
        root=tuple(_step(outcome, discount) for discount in allocation.root),
        total=allocation.total,
        clamped=allocation.clamped,
        rejected=outcome.rejected,
        notices=outcome.notices,
        diagnostics=outcome.diagnostics,
        exchanges=exchanges,
        ms=ms,
        problem=problem,
    )


def _step(outcome: Outcome, discount: Discount) -> Step:
    # `discount` may have been cut to the price since the engine granted it.
    whole = next(
        (one for one in outcome.discounts if one.meta is discount.meta and one.name == discount.name), discount
    )
    code = discount.meta.get("code", "")
    return Step(
        discount.name, discount.effect_type, whole.amount, discount.amount, code if isinstance(code, str) else ""
    )


def rows(explanation: Explanation) -> Iterator[Row]:
    """Yields the table of the cart: each line with its discounts and net price, those of the order, and the total."""
    for line in explanation.lines:
        price, amount = explanation.text(line.list_price), explanation.text(line.gross)
        yield Row("line", line.name, "", str(line.quantity), price, amount, pages.share(line.gross, line.gross))
        left = line.gross
        for step in line.steps:
            left -= step.taken
            yield _step_row(explanation, step, left=pages.share(left, line.gross))
        if line.steps:
            yield Row("net", "net", price=explanation.text(line.unit_price), amount=explanation.text(line.net))
    yield from (_step_row(explanation, step, "order: ") for step in explanation.root)
    yield Row("total", "total discount", amount=explanation.text(explanation.total))


def _step_row(explanation: Explanation, step: Step, before: str = "", left: int | None = None) -> Row:
    cut = f" (granted {explanation.text(step.granted)})" if step.granted != step.taken else ""
    name = f"{before}{step.name}{f', code {step.code}' if step.code else ''}"
    return Row("step", name, f"{step.effect_type}{cut}", amount=explanation.text(step.taken), left=left)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
