"""The log, on standard error: one line for each request, and other events.

A validate's line has its engine calls. A redemption's engine calls have lines of their own, so that the log has them
even if the process ends before it has answered.

Lines are JSON objects, or text (by structlog) for a terminal. Other modules log with the standard library: an event,
and `extra={"facts": {...}}`. Each line carries the ids of its request (`mapper.domain.record.current`).

A line holds no secret and no code as it was typed. Values are encoded, so none can forge another line.
"""

import hmac
import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal, TextIO

import msgspec

from mapper.domain import money
from mapper.domain import record as records
from mapper.domain.codes import clean
from mapper.domain.record import Record
from mapper.engine.conversation import Attempt

log = logging.getLogger("mapper")

Format = Literal["json", "text"]
Codes = Literal["hash", "short", "none"]

LEVELS: Final[dict[str, int]] = {
    "ok": logging.INFO,
    "http": logging.INFO,
    "promotion_codes": logging.INFO,
    "engine_rejected": logging.ERROR,
    "internal": logging.ERROR,
}
"""The level of a request's line, by category; warning for all others. A shopper's typing mistake is no warning."""

_CODE_KEY: Final = b"promotions-mapper code 1"


def configure(level: str = "info", form: Format = "json") -> None:
    """Sets logging up for the process. Libraries log warnings and errors only: below that they print headers."""
    global _json_file  # noqa: PLW0603 - process-wide, like the handlers of `logging`
    _json_file = sys.stderr if form == "json" else None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _text_formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a line that cannot be written is dropped silently
    log.setLevel(level.upper())


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = _facts(record)
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return _json(datetime.fromtimestamp(record.created, UTC), record.levelno, record.getMessage(), facts)


def printable(text: str) -> str:
    """Escapes control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _text_formatter() -> logging.Formatter:
    import structlog  # noqa: PLC0415 - slow to load, and used by `text` only

    def with_facts(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        facts = _facts(event["_record"])
        escaped = {name: printable(value) if isinstance(value, str) else value for name, value in facts.items()}
        return {**escaped, **event}

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            with_facts,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="time"),
        ],
    )


_json_file: TextIO | None = None
"""The file of JSON lines. None for text."""


def _write(level: int, event: str, facts: Mapping[str, Any]) -> None:
    """Writes the line of a call or an engine call; JSON without the standard library, at a tenth of its cost.

    `facts` include the ids.
    """
    if _json_file is None:
        log.log(level, event, extra={"facts": facts})
        return
    with suppress(Exception):  # a line that cannot be encoded or written must not stop the call
        line = _json(datetime.now(UTC), level, event, facts) + "\n"
        _json_file.write(line)  # standard error is flushed at the end of each line


def configure_from(environment: Mapping[str, str]) -> None:
    """Sets logging up for a worker, whose settings the supervisor has checked."""
    form: Format = "text" if environment.get("MAPPER_LOG_FORMAT") == "text" else "json"
    configure(environment.get("MAPPER_LOG_LEVEL") or "info", form)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the facts of a log record, with the ids of the current call."""
    return {**_current_ids(), **getattr(record, "facts", {})}


def _current_ids() -> dict[str, str]:
    current = records.current.get()
    return {} if current is None else current.ids()


_encoder: Final = msgspec.json.Encoder(enc_hook=repr)


def _json(time: datetime, level: int, event: str, facts: Mapping[str, Any]) -> str:
    line = {"time": time, "level": logging.getLevelName(level).lower(), "event": event, **facts}
    return _encoder.encode(line).decode()


@dataclass(frozen=True)
class CodeNames:
    """Writes a code for the log: `hash`, keyed with the signing secret; `short`, its ends; or `none`."""

    mode: Codes
    secret: bytes

    def __repr__(self) -> str:
        return f"CodeNames({self.mode!r})"

    def __call__(self, code: str) -> str:
        """Returns the same hash for codes that differ by case alone, since support looks up what a shopper typed."""
        if self.mode == "none":
            return ""
        code = clean(code).encode("utf-8", "replace").decode()
        if self.mode == "short":
            return f"{code[:2]}…{code[-2:]}" if len(code) > 6 else f"{code[:1]}…"
        return hmac.digest(self._key, code.casefold().encode(), "sha256").hex()[:16]

    @cached_property
    def _key(self) -> bytes:
        return hmac.digest(self.secret, _CODE_KEY, "sha256")


def request(
    record: Record, status: int, category: str, reason: str, seconds: float, names: CodeNames, engine: str = ""
) -> None:
    """Writes the line of one request, once it is answered."""
    level = LEVELS.get(category, logging.WARNING)
    if record.drift or record.degraded:
        level = max(level, logging.WARNING)  # answered, but not with the usual result
    if not log.isEnabledFor(level):
        return
    facts: dict[str, Any] = {
        **record.ids(),
        "operation": record.operation,
        "status": status,
        "category": category,
        "reason": reason,
        "ms": round(seconds * 1000, 1),
        "engine": engine,
        **record.facts,
    }
    if record.discount:
        facts["discount"] = (
            f"{money.text(record.discount, money.DIGITS.get(record.currency, 2))} {record.currency}".rstrip()
        )
    if record.codes and names.mode != "none":
        facts["codes"] = [names(code) for code in record.codes]
    if record.rejected:
        facts["rejected"] = [
            {"code": names(one.code), "reason": one.reason.value, "engine_reason": one.engine_reason}
            for one in record.rejected
        ]
    if record.diagnostics:
        facts["diagnostics"] = [
            {"type": one.type, "text": one.text, **({"code": names(one.code)} if one.code else {}), **one.facts}
            for one in record.diagnostics
        ]
    if record.clamped:
        facts["clamped"] = True
    if record.degraded:
        facts["degraded"] = True
    if record.drift:
        facts["drift"] = record.drift
    if record.engine_calls:
        facts["engine_calls"] = record.engine_calls
    _write(level, "request", facts)


def engine_call(attempt: Attempt, engine: str = "") -> None:
    """Logs one attempt at an engine call: in the line of its validate, or else in a line of its own."""
    if not log.isEnabledFor(logging.INFO):
        return
    facts: dict[str, Any] = {
        "call": attempt.operation,
        "result": result_of(attempt),
        "ms": round(attempt.seconds * 1000, 1),
    }
    if attempt.number > 1:
        facts["attempt"] = attempt.number
    if attempt.account:
        facts["account"] = attempt.account
    current = records.current.get()
    if current is not None and current.operation == "validate":
        current.engine_calls.append(facts)
    else:
        _write(logging.INFO, "engine call", {**_current_ids(), "engine": engine, **facts})


def result_of(attempt: Attempt) -> str:
    """Returns the status, or the reason why there was no reply."""
    return str(attempt.status) if attempt.status is not None else attempt.failure or "none"
