"""The log: one line for each request, one for each engine call, and what else is worth knowing, on standard error.

Lines are JSON objects, or text (by structlog) for a person at a terminal. Other modules log with the standard
library: an event, and `extra={"facts": {...}}`. Each line carries the ids of the request that it belongs to
(`mapper.domain.record.current`), so that one request can be read from the log alone.

A line holds no secret, no code as it was typed, and nothing that could forge another line: everything is encoded.
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
from mapper.engine.conversation import Call

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
"""By category. A shopper's typing mistake is no warning, and a wrong key is an error; what is not here is a warning."""

_CODE_KEY: Final = b"promotions-mapper code 1"


def configure(level: str = "info", form: Format = "json") -> None:
    """Sets logging up for the process. Libraries speak only when something is wrong: at debug they print headers."""
    global _lines  # noqa: PLW0603 - as logging's own handlers are: there is one standard error
    _lines = _Lines(sys.stderr) if form == "json" else None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _text_formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.raiseExceptions = False  # what cannot be logged stops nothing else, and prints nothing
    log.setLevel(level.upper())


class _JsonFormatter(logging.Formatter):
    """Of what is logged through the standard library."""

    def format(self, record: logging.LogRecord) -> str:
        time, level = datetime.fromtimestamp(record.created, UTC), record.levelname.lower()
        line = _line(time, level, record.getMessage(), getattr(record, "facts", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line)


def _text_formatter() -> logging.Formatter:
    """For a person at a terminal."""
    import structlog  # noqa: PLC0415 - takes a while to load, and most do without

    def with_facts(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record: logging.LogRecord = event["_record"]
        return {**_line(event["time"], event["level"], event["event"], getattr(record, "facts", {})), **event}

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


class _Lines:
    """Writes the two lines of every call: encoded at once, they cost a tenth of what the standard library takes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, level: int, event: str, facts: Mapping[str, Any]) -> None:
        """What cannot be spelled or written stops nothing else."""
        with suppress(Exception):
            line = _line(datetime.now(UTC), _LEVEL_NAMES[level], event, facts)
            self._file.write(_json(line) + "\n")
            self._file.flush()


_lines: _Lines | None = None
"""Once the log is set up, with JSON lines."""
_LEVEL_NAMES: Final = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


def _told(level: int, event: str, facts: Mapping[str, Any]) -> None:
    if not log.isEnabledFor(level):
        return
    if _lines is None:
        log.log(level, event, extra={"facts": facts})
    else:
        _lines.write(level, event, facts)


def configure_from(environment: Mapping[str, str]) -> None:
    """For a process whose settings have been checked by another."""
    form: Format = "text" if environment.get("MAPPER_LOG_FORMAT") == "text" else "json"
    configure(environment.get("MAPPER_LOG_LEVEL") or "info", form)


def _line(time: object, level: str, event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """With the ids of the request during which it is logged."""
    current = records.current.get()
    ids = {} if current is None else current.ids()
    return {"time": time, "level": level, "event": event, **ids, **facts}


def _json(line: Mapping[str, Any]) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


@dataclass(frozen=True)
class CodeNames:
    """How a code stands in the log: `hash`, keyed with the signing secret; `short`, its ends; or `none`."""

    mode: Codes
    secret: bytes

    def __repr__(self) -> str:
        return f"CodeNames({self.mode!r})"

    def __call__(self, code: str) -> str:
        """Codes that differ by case alone have the same name: support is asked about what a shopper typed."""
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
    """The line of one request, once it is answered."""
    level = LEVELS.get(category, logging.WARNING)
    if record.drift or record.degraded:
        level = max(level, logging.WARNING)  # it was answered, but not as it should have been
    if not log.isEnabledFor(level):
        return
    facts: dict[str, Any] = {
        "operation": record.operation,
        "status": status,
        "category": category,
        "reason": reason,
        "ms": round(seconds * 1000, 1),
        "engine": engine,
        **record.ids(),
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
            {"code": names(one.code), "reason": one.reason, "engine_reason": one.engine_reason}
            for one in record.rejected
        ]
    if record.diagnostics:
        facts["diagnostics"] = [
            {"type": one.type, "text": one.text, **({"code": names(one.code)} if one.code else {}), **one.facts}
            for one in record.diagnostics
        ]
    for flag in ("clamped", "degraded"):
        if getattr(record, flag):
            facts[flag] = True
    if record.drift:
        facts["drift"] = record.drift
    _told(level, "request", facts)


def call(made: Call, engine: str = "") -> None:
    """The line of one call to the engine."""
    facts = {"engine": engine, "call": made.operation, "result": result_of(made), "ms": round(made.seconds * 1000, 1)}
    if made.attempt > 1:
        facts["attempt"] = made.attempt
    if made.account:
        facts["account"] = made.account
    _told(logging.INFO, "engine call", facts)


def result_of(made: Call) -> str:
    """The status, or why there was no reply."""
    return str(made.status) if made.status is not None else made.failure or "none"
