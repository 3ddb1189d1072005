"""Records calls: writes one redacted file for each call that asked the engine.

The folder has a maximum size; the oldest files are deleted first. A thread writes the records, so that a call never
waits for one, and a full disk costs records but no checkout.

Each record is replayed before it is written: the redacted body and the redacted replies go through the adapter once
more, and the requests it makes then are the recorded ones. If the amounts differ from the call's, redacting has changed
the call's meaning, and no record is written.
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
from mapper.domain.record import Record as CallRecord
from mapper.engine.transcript import Transcript
from mapper.recording import records, replay
from mapper.recording.records import Answer, Conversation, Exchange, Record, Result
from mapper.recording.redaction import Redaction, is_secret
from mapper.settings import Settings

log = logging.getLogger("mapper")

MAX_FILES: Final = 1000
MAX_BYTES: Final = 200 * 1024 * 1024
MAX_QUEUED: Final = 32
"""Calls that wait to be written. Further calls are not recorded."""
CLOSE_S: Final = 2.0
_RECORD_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z-(validate|consume)-[0-9a-f]{8}\.json")
_MIN_SECRET_BYTES: Final = 8
_PASSES: Final = 4
"""Replays of one conversation at most. Each shows what the adapter derives (a hash, a prefix) from personal data."""

Fate = Literal["written", "dropped", "failed", "unfaithful"]


class Unfaithful(Exception):
    """The redacted call has another result than the call had."""


@dataclass(frozen=True)
class _Answered:
    call: CallRecord
    answer: Answer
    transcripts: tuple[Transcript, ...]
    at: datetime


class Recorder:
    """One per process."""

    def __init__(
        self, folder: Path, configured: Settings, name_of_code: Callable[[str], str], count: Callable[[Fate], None]
    ) -> None:
        self._folder = folder
        self._rules = configured.rules
        self._secrets = sorted(_secrets(configured), key=len, reverse=True)
        self._name_of_code = name_of_code
        self._count = count
        self._queue: queue.Queue[_Answered | None] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._has_warned = False

    def record(
        self, call: CallRecord, status: int, category: str, reason: str, transcripts: Iterable[Transcript]
    ) -> None:
        """Queues a call that has been answered. Never waits, never raises."""
        ended = tuple(transcript for transcript in transcripts if transcript.has_ended)
        if not ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(_Answered(call, Answer(status, category, reason), ended, datetime.now(UTC)))
        except queue.Full:
            self._count("dropped")

    def close(self) -> None:
        """Writes what is queued, for at most twice `CLOSE_S`."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (answered := self._queue.get()) is not None:
            self._count(self._record(answered))

    def _record(self, answered: _Answered) -> Fate:
        try:
            data = self._without_secrets(records.write(self._redacted(answered)))
            records.read(data)
        except Exception as error:  # noqa: BLE001 - a bug of the adapter, or a body that Python cannot read
            self._warn("the call cannot be redacted without changing what it costs", error)
            return "unfaithful"
        try:
            write(self._folder, f"{answered.at:%Y%m%dT%H%M%S.%fZ}-{answered.call.operation}", data)
        except OSError as error:
            self._warn("the folder of records cannot be written", error)
            return "failed"
        return "written"

    def _warn(self, problem: str, error: Exception) -> None:
        """Warns once, to keep the log small. Logs the name of an adapter's exception only: its text may hold data."""
        if not self._has_warned:
            self._has_warned = True
            cause = error.strerror if isinstance(error, OSError) else type(error).__name__
            log.warning("not recorded", extra={"facts": {"problem": problem, "cause": cause}})

    def _without_secrets(self, data: bytes) -> bytes:
        """Replaces secrets. There should be none, but an engine may echo its key."""
        for secret in self._secrets:
            data = data.replace(secret, b"secret")
        return data

    def _redacted(self, answered: _Answered) -> Record:
        """Raises `Unfaithful`, and whatever an adapter raises."""
        call = answered.call
        cart = next(transcript.cart for transcript in answered.transcripts if transcript.cart is not None)
        redaction = Redaction(cart.promotions.codes, self._name_of_code)
        for token in _tokens(answered.transcripts):
            redaction.placeholder(token)
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
        conversations = [self._conversation(record, transcript, redaction) for transcript in answered.transcripts]
        return msgspec.structs.replace(record, conversations=conversations)

    def _conversation(self, record: Record, transcript: Transcript, redaction: Redaction) -> Conversation:
        start = self._without_exchanges(record, transcript, redaction)
        recorded, run = self._replay(record, transcript, redaction, start)
        for _ in range(_PASSES):
            if not _learn(transcript, run, redaction):
                break
            recorded, run = self._replay(record, transcript, redaction, recorded)
        exchanges = [
            msgspec.structs.replace(exchange, **records.request_fields(request))
            for request, exchange in zip(run.requests, recorded.exchanges, strict=True)
        ]
        if (recorded.result.problem, recorded.result.state) != (run.result.problem, run.result.state):
            raise Unfaithful("it ends differently")
        recorded = msgspec.structs.replace(recorded, exchanges=exchanges)
        if replay.compare(recorded, run):
            raise Unfaithful("it comes to other amounts")
        return recorded

    def _replay(
        self, record: Record, transcript: Transcript, redaction: Redaction, recorded: Conversation
    ) -> tuple[Conversation, replay.Run]:
        recorded = msgspec.structs.replace(recorded, exchanges=list(_exchanges(transcript, redaction)))
        return recorded, replay.run(self._rules, record, recorded)

    def _without_exchanges(self, record: Record, transcript: Transcript, redaction: Redaction) -> Conversation:
        customer, attempt, filled = "", "", {}
        result = Result(problem=transcript.problem)
        if (cart := transcript.cart) is not None:
            original = self._parsed(cart.source.text, record)
            redacted = self._parsed(bytes(record.body), record)
            is_original = cart.customer == original.customer
            customer = redacted.customer if is_original else redaction.placeholder(cart.customer)
            attempt = redaction.text(cart.attempt)
            filled = dict(_product_data(original, cart))
            if not transcript.problem:
                result = replay.result_of(cart, transcript.result)
                rejected = {redaction.text(code): reason for code, reason in result.rejected.items()}
                result = msgspec.structs.replace(result, rejected=rejected)
        return msgspec.convert(
            {
                "method": transcript.method,
                "arguments": [
                    redaction.text(one) if isinstance(one, str) else [redaction.text(each) for each in one]
                    for one in transcript.arguments
                ],
                "named": transcript.named,
                "with_cart": cart is not None,
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


def _tokens(transcripts: Iterable[Transcript]) -> Iterator[str]:
    """Yields the secrets in the requests' own headers, such as a token that an earlier reply of the engine holds."""
    for transcript in transcripts:
        for request in transcript.requests:
            for name, value in request.headers:
                if is_secret(name):
                    yield from (part for part in value.split() if len(part) >= _MIN_SECRET_BYTES)


def _exchanges(transcript: Transcript, redaction: Redaction) -> Iterator[Exchange]:
    """Yields exchanges with redacted replies. Their requests are taken from the replay."""
    for request, reply in zip(transcript.requests, transcript.replies, strict=True):
        fields: dict[str, Any] = {}
        if reply is not None:
            fields = dict(records.reply_fields(reply.status, _redacted_reply(reply.body, redaction)))
        yield msgspec.convert(
            {"operation": request.operation, "method": request.method, "path": "", **fields}, Exchange
        )


def _redacted_reply(body: bytes, redaction: Redaction) -> Any:
    try:
        return redaction.reply(records.decoded(body))
    except (ValueError, RecursionError):
        return redaction.text(body.decode("utf-8", "replace"))


def _learn(transcript: Transcript, run: replay.Run, redaction: Redaction) -> bool:
    """Finds what the adapter derives from personal data: its requests before and after redaction differ there."""
    learned = False
    for before, after in zip(transcript.requests, run.requests, strict=False):
        with contextlib.suppress(ValueError):
            both = records.decoded(before.body), records.decoded(after.body)
            for _place, was, is_now in replay.differing(*both):
                if isinstance(was, str) and isinstance(is_now, str) and redaction.text(was) != is_now:
                    redaction.learn(was, is_now)
                    learned = True
    return learned


def _product_data(original: Checkout, cart: Checkout) -> Iterator[tuple[int, dict[str, msgspec.Raw]]]:
    """Yields the fields that were added to each line, by the line's position."""
    for own, line in zip(original.lines, cart.lines, strict=True):
        if line.decoded is not own.decoded and line.decoded != own.decoded:
            more = {key: value for key, value in line.decoded.items() if own.decoded.get(key) is None}
            yield line.index, {key: msgspec.Raw(encode(value)) for key, value in more.items()}


def _secrets(configured: Settings) -> Iterator[bytes]:
    """Yields the secrets of the settings, but for those too short to be searched for."""
    credentials = [configured.credentials, *([configured.cancel_credentials] if configured.cancel_credentials else [])]
    found = [secret for one in credentials for secret in (*one.all_secrets, *(value for _, value in one.headers))]
    found += [*configured.old_receipt_secrets, configured.explain_token]
    for account in configured.adapter.accounts.values():
        found += [part.encode() for _, value in account.headers for part in value.split()]
    yield from {secret for secret in found if len(secret) >= _MIN_SECRET_BYTES}


# -- The folder ------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Creates the folder, readable by this user only, and checks that it is writable. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".probe-{secrets.token_hex(4)}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    probe.unlink()


def write(folder: Path, name: str, data: bytes) -> None:
    """Writes one file atomically, and deletes the oldest files above the limits. Raises `OSError`."""
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
    _delete_oldest(folder)


def _delete_oldest(folder: Path) -> None:
    with os.scandir(folder) as entries:  # other files are left alone
        files = sorted((entry for entry in entries if _RECORD_NAME.fullmatch(entry.name)), key=lambda entry: entry.name)
    sizes = []
    for entry in files:
        with contextlib.suppress(OSError):  # deleted by another worker
            sizes.append((entry, entry.stat().st_size))
    total = sum(size for _, size in sizes)
    while len(sizes) > MAX_FILES or total > MAX_BYTES:
        (oldest, size), *sizes = sizes
        total -= size
        with contextlib.suppress(OSError):
            Path(oldest.path).unlink()
