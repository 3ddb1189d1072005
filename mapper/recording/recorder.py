"""Writes records: one file for each call that asked the engine, off the way of the call.

The folder is bounded: the oldest files give way to the newest. A record is made and written in a thread of its own; a
call never waits for it, and a disk that is full costs records, never a checkout.

A record is written as it will be replayed: the redacted call is held once more with the redacted answers, and what is
asked then is what stands in the record. Where that comes to other amounts than the call came to, redacting has changed
its meaning, and there is no record.
"""

import contextlib
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from mapper import __version__
from mapper.domain import checkout as documents
from mapper.domain.checkout import Checkout
from mapper.domain.document import encode
from mapper.domain.record import Record as Call
from mapper.engine.tape import Held
from mapper.recording import records, replay
from mapper.recording.records import Answer, Conversation, Exchange, Record, Result
from mapper.recording.redaction import Redaction
from mapper.recording.replay import Rules
from mapper.settings import Settings

log = logging.getLogger("mapper")

MOST_FILES: Final = 1000
MOST_BYTES: Final = 200 * 1024 * 1024
MOST_WAITING: Final = 32
"""Calls that have been answered and are not written yet; what comes while there are so many is not recorded."""
CLOSE_S: Final = 2.0
_OURS: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-(validate|consume)-[0-9a-f]{8}\.json")
_LEAST_SECRET: Final = 8
_PASSES: Final = 4
"""What an adapter makes of personal data (a hash, a prefix) is found out from its questions, one after the other."""

Fate = Literal["written", "dropped", "failed", "unfaithful"]


class Unfaithful(Exception):
    """The redacted call comes to something else than the call did."""


@dataclass(frozen=True)
class _Answered:
    call: Call
    answer: Answer
    tape: tuple[Held, ...]
    at: datetime


class Recorder:
    """One per process."""

    def __init__(
        self, folder: Path, configured: Settings, name_of_code: Callable[[str], str], count: Callable[[Fate], None]
    ) -> None:
        self._folder = folder
        self._rules: Rules = configured
        self._secrets = sorted(_secrets(configured), key=len, reverse=True)
        self._name_of_code = name_of_code
        self._count = count
        self._waiting: queue.Queue[_Answered | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._has_warned = False

    def keep(self, call: Call, status: int, category: str, reason: str, tape: Iterable[Held]) -> None:
        """Records a call that has been answered. It never waits and never raises."""
        over = tuple(held for held in tape if held.is_over)
        if not over:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Answered(call, Answer(status, category, reason), over, datetime.now(UTC)))
        except queue.Full:
            self._count("dropped")

    def close(self) -> None:
        """Writes what waits, within a while."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (answered := self._waiting.get()) is not None:
            self._count(self._record(answered))

    def _record(self, answered: _Answered) -> Fate:
        try:
            data = self._without_secrets(records.write(self._redacted(answered)))
            records.read(data)
        except Exception as error:  # noqa: BLE001 - an adapter's bug, or a body that Python does not read
            self._warn("the call cannot be redacted without changing what it costs", error)
            return "unfaithful"
        try:
            write(self._folder, f"{answered.at:%Y%m%dT%H%M%S.%fZ}-{answered.call.operation}", data)
        except OSError as error:
            self._warn("the folder of records cannot be written", error)
            return "failed"
        return "written"

    def _warn(self, problem: str, error: Exception) -> None:
        """Once, or a rush would fill the log. Of what an adapter raises its name alone: its words may hold data."""
        if not self._has_warned:
            self._has_warned = True
            cause = error.strerror if isinstance(error, OSError) else type(error).__name__
            log.warning("not recorded", extra={"facts": {"problem": problem, "cause": cause}})

    def _without_secrets(self, data: bytes) -> bytes:
        """None should be in it. An engine may echo its key."""
        for secret in self._secrets:
            data = data.replace(secret, b"secret")
        return data

    def _redacted(self, answered: _Answered) -> Record:
        """Raises `Unfaithful`, and whatever an adapter raises."""
        call = answered.call
        cart = next(held.cart for held in answered.tape if held.cart is not None)
        redaction = Redaction(cart.promotions.codes, self._name_of_code)
        record = Record(
            version=__version__,
            engine=self._rules.adapter.name,
            time=answered.at.isoformat(timespec="milliseconds"),
            operation="validate" if call.operation == "validate" else "consume",
            request_id=redaction.text(call.request_id),
            id=redaction.text(call.id),
            body=msgspec.Raw(encode(redaction.body(cart.source.text))),
            conversations=[],
            answer=answered.answer,
        )
        told = [self._conversation(record, held, redaction) for held in answered.tape]
        return msgspec.structs.replace(record, conversations=told)

    def _conversation(self, record: Record, held: Held, redaction: Redaction) -> Conversation:
        told, now = self._replayed(record, held, redaction, self._begun(record, held, redaction))
        for _ in range(_PASSES):
            if not _learn(held, now, redaction):
                break
            told, now = self._replayed(record, held, redaction, told)
        exchanges = [
            msgspec.structs.replace(exchange, **records.asked(request))
            for request, exchange in zip(now.asked, told.exchanges, strict=True)
        ]
        if (told.result.problem, told.result.state) != (now.result.problem, now.result.state):
            raise Unfaithful("it ends differently")
        told = msgspec.structs.replace(told, exchanges=exchanges)
        if replay.compare(told, now):
            raise Unfaithful("it comes to other amounts")
        return told

    def _replayed(
        self, record: Record, held: Held, redaction: Redaction, told: Conversation
    ) -> tuple[Conversation, replay.Run]:
        told = msgspec.structs.replace(told, exchanges=list(_exchanges(held, redaction)))
        return told, replay.run(self._rules, record, told)

    def _begun(self, record: Record, held: Held, redaction: Redaction) -> Conversation:
        """The conversation without what was asked, its arguments redacted."""
        customer, attempt, filled = "", "", {}
        result = Result(problem=held.problem)
        if held.cart is not None:
            as_it_came = self._parsed(held.cart.source.text, record)
            redacted = self._parsed(bytes(record.body), record)
            is_as_it_came = held.cart.customer == as_it_came.customer
            customer = redacted.customer if is_as_it_came else redaction.name(held.cart.customer)
            attempt = redaction.text(held.cart.attempt)
            filled = dict(_filled(as_it_came, held.cart))
            if not held.problem:
                result = replay.result_of(held.cart, held.result)
                rejected = {redaction.text(code): reason for code, reason in result.rejected.items()}
                result = msgspec.structs.replace(result, rejected=rejected)
        return msgspec.convert(
            {
                "method": held.method,
                "arguments": [
                    redaction.text(one) if isinstance(one, str) else [redaction.text(each) for each in one]
                    for one in held.arguments
                ],
                "named": held.named,
                "with_cart": held.cart is not None,
                "customer": customer,
                "attempt": attempt,
                "filled": filled,
                "exchanges": [],
                "result": result,
            },
            Conversation,
        )

    def _parsed(self, body: bytes, record: Record) -> Checkout:
        rules = self._rules
        return documents.parse(body, record.operation, rules.default_currency, rules.customer_path)


def _exchanges(held: Held, redaction: Redaction) -> Iterator[Exchange]:
    """The answers, redacted; what was asked is told by holding the conversation again."""
    for request, reply in zip(held.asked, held.replies, strict=True):
        answered: dict[str, Any] = {}
        if reply is not None:
            answered = dict(records.answered(reply.status, _redacted_reply(reply.body, redaction)))
        yield msgspec.convert(
            {"operation": request.operation, "method": request.method, "path": "", **answered}, Exchange
        )


def _redacted_reply(body: bytes, redaction: Redaction) -> Any:
    try:
        return redaction.reply(records.decoded(body))
    except (ValueError, RecursionError):
        return redaction.text(body.decode("utf-8", "replace"))


def _learn(held: Held, now: replay.Run, redaction: Redaction) -> bool:
    """What an adapter makes of personal data, and of the names that stand for it; whether anything is new."""
    learned = False
    for before, after in zip(held.asked, now.asked, strict=False):
        with contextlib.suppress(ValueError):
            both = records.decoded(before.body), records.decoded(after.body)
            for _place, was, name in replay.differing(*both):
                if isinstance(was, str) and isinstance(name, str) and redaction.text(was) != name:
                    redaction.learn(was, name)
                    learned = True
    return learned


def _filled(as_it_came: Checkout, cart: Checkout) -> Iterator[tuple[str, msgspec.Raw]]:
    """What the lines have of product data."""
    for own, line in zip(as_it_came.lines, cart.lines, strict=True):
        if line.decoded is not own.decoded and line.decoded != own.decoded:
            more = {key: value for key, value in line.decoded.items() if own.decoded.get(key) is None}
            yield str(line.index), msgspec.Raw(encode(more))


def _secrets(configured: Settings) -> Iterator[bytes]:
    """Every secret of the settings that is long enough to be looked for."""
    credentials = [configured.credentials, *([configured.cancel_credentials] if configured.cancel_credentials else [])]
    found = [secret for one in credentials for secret in (*one.all_secrets, *(value for _, value in one.headers))]
    found += [*configured.old_receipt_secrets, configured.explain_token]
    for account in configured.adapter.accounts.values():
        found += [part.encode() for _, value in account.headers for part in value.split()]
    yield from {secret for secret in found if len(secret) >= _LEAST_SECRET}


# -- The folder ------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Makes the folder, for nobody else to read, and writes to it once. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".probe-{secrets.token_hex(4)}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    probe.unlink()


def write(folder: Path, name: str, data: bytes) -> None:
    """One file, whole or not at all; the oldest go where there are too many. Raises `OSError`."""
    unique = secrets.token_hex(4)
    unfinished = folder / f".{unique}.part"
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        unfinished.replace(folder / f"{name}-{unique}.json")
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    _make_room(folder)


def _make_room(folder: Path) -> None:
    with os.scandir(folder) as entries:  # what else stands there is not ours
        files = sorted((entry for entry in entries if _OURS.fullmatch(entry.name)), key=lambda entry: entry.name)
    sizes = []
    for entry in files:
        with contextlib.suppress(OSError):  # another process has made room meanwhile
            sizes.append((entry, entry.stat().st_size))
    total = sum(size for _, size in sizes)
    while len(sizes) > MOST_FILES or total > MOST_BYTES:
        (oldest, size), *sizes = sizes
        total -= size
        with contextlib.suppress(OSError):
            Path(oldest.path).unlink()
