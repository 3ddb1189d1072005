"""`promotions-mapper doctor`: checks settings, secrets, engine and ledger, and says how to correct each fault.

It sends the engine test carts that redeem nothing: a plain one, and one for each configured cost, attribute or
metadata, so that it can name what the engine refuses.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mapper import settings
from mapper.adapter import EngineReply, EngineRequest, names
from mapper.commands import Commands, add_command
from mapper.domain import checkout as documents
from mapper.domain import signature
from mapper.domain.errors import EngineRejected, EngineUnavailable, Problem
from mapper.domain.money import DIGITS
from mapper.engine import clients
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.engine.transport import NotSent, Transport, Unknown
from mapper.nacelle.products import SourceFailed
from mapper.nacelle.storefront import source_of
from mapper.ops.logs import printable
from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import OPEN, LedgerUnavailable, State
from mapper.recording import recorder
from mapper.settings import Settings

SLOW_S = 0.5
"""An engine that takes longer delays checkouts."""
CLOCK_S = 60.0
"""A larger error of the clock makes receipts expire too early or too late."""
REACH_S = 5.0
MAX_REACH_BYTES = 1024 * 1024
CODE = "doctor-asks"
"""A code that does not exist. For a cart without a code, some engines get no request."""
MOUNTS = Path("/proc/self/mounts")
LOST = frozenset({"overlay", "ramfs", "tmpfs"})
"""File systems that are lost when the container or machine stops."""
SHARED = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "lustre", "nfs", "nfs4", "smb3"}
)
"""Network file systems, whose locks are not reliable."""
MENDS = {
    "dns": "Check the address in {base_url}, and this machine's name server.",
    "tls": (
        "Check the address in {base_url}. If your own proxy signs the engine's certificate, name the file of that"
        " authority in SSL_CERT_FILE."
    ),
    "redirect": "Set {base_url} to the address that it leads to.",
    "rate_limited": "Wait a minute; if it stays so, ask the engine for a larger quota.",
    "not_found_at_engine": "Set {base_url} to the deployment's or region's address alone, without a path.",
    "engine_key": "Check the key in the settings {prefix}_…, and that it belongs to the address in {base_url}.",
}
"""What to do, by the reason of a `Problem`."""
SIGNS = {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "failed": "[red]FAILED[/]"}


@dataclass(frozen=True)
class Finding:
    """The result of one check. `mend`: what to do, or "" if nothing."""

    check: str
    state: Literal["ok", "warning", "failed"]
    text: str
    mend: str = ""


def add(commands: Commands) -> None:
    parser = add_command(commands, "doctor", "check settings, secrets, engine and ledger; say how to correct them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Returns 0 if nothing fails, 1 if something fails, and 2 if the settings are wrong."""
    try:
        configured = settings.load(os.environ)
    except settings.InvalidSettings as error:
        findings = [Finding(name, "failed", expected, "Correct the setting.") for name, expected in error.problems]
        findings += [*_warnings(error.warnings)]
        _show(findings, as_json=chosen.json)
        return 2
    findings = asyncio.run(_check(configured))
    _show(findings, as_json=chosen.json)
    return 1 if any(finding.state == "failed" for finding in findings) else 0


async def _check(configured: Settings) -> list[Finding]:
    findings = [*_settings(configured), *_record(configured), *_secrets(configured), *_shared_secrets(configured)]
    findings += [finding async for finding in _ledger(configured)]
    findings += [finding async for finding in _engine(configured)]
    client = clients.create(configured.http_client, connections=2)
    try:
        findings += [finding async for finding in _products(configured, client)]
        findings += [finding async for finding in _noms(client)]
    finally:
        await client.aclose()
    return findings


def _settings(configured: Settings) -> Iterator[Finding]:
    yield Finding("settings", "ok", f"engine {configured.adapter.name}, all settings can be read")
    yield from _warnings(configured.warnings)
    if not configured.receipt_required:
        yield Finding(
            "receipts",
            "warning",
            "consume accepts orders that validate has not answered",
            "Set MAPPER_RECEIPT=required, or MAPPER_CONSUME_REQUIRES (docs/security.md).",
        )
    if not (configured.order_key_path or configured.session_id_path):
        yield Finding(
            "order key",
            "warning",
            "an order without id and source_id is identified by a digest of its body",
            "If your orders have neither, set MAPPER_ORDER_KEY_PATH and MAPPER_SESSION_ID_PATH.",
        )


def _warnings(warnings: Iterable[str]) -> Iterator[Finding]:
    for warning in warnings:
        yield Finding("settings", "warning", warning, "Correct the name or the value.")


def _record(configured: Settings) -> Iterator[Finding]:
    if configured.record is None:
        return
    try:
        recorder.prepare(configured.record)
    except OSError as error:
        text = f"{configured.record} cannot be written: {error.strerror}"
        yield Finding("records", "failed", text, "Give the service's user the folder in MAPPER_RECORD.")
    else:
        text = f"calls are recorded in {configured.record}, which costs processor time"
        yield Finding("records", "warning", text, "Unset MAPPER_RECORD once you have enough records.")


def _secrets(configured: Settings) -> Iterator[Finding]:
    credentials = configured.credentials
    if credentials.auth != "secret_header" and credentials.all_secrets:
        body = b'{"self": "test"}'
        header = [(signature.SIGNATURE, signature.sign(body, credentials.all_secrets[0]).encode())]
        space = next(iter(credentials.by_space), next(iter(credentials.spaces), ""))
        own = [*header, *credentials.headers, *([(signature.SPACE, space.encode())] if space else [])]
        try:
            signature.verify(body, own, credentials)
        except Problem as problem:
            yield Finding("signature", "failed", f"our own signature is refused: {problem.reason}", "Report this.")
        else:
            yield Finding("signature", "ok", "a body that is signed with the current secret is accepted")


def _shared_secrets(configured: Settings) -> Iterator[Finding]:
    """Finds settings with the same secret: it was probably pasted into the wrong one."""
    options = names(option for option in configured.adapter.options if option.secret)
    holders: dict[str, list[str]] = {}
    for name in (*settings.SECRETS, *(f"{configured.adapter.name.upper()}_{option}" for option in sorted(options))):
        path = os.environ.get(f"{name}_FILE")
        text = settings.read_secret(path) if path else os.environ.get(name, "")
        for secret in {part.strip() for part in text.split(",")} - {""}:
            holders.setdefault(secret, []).append(name)
    for together in holders.values():
        if len(together) > 1:
            text = f"{' and '.join(together)} hold the same secret"
            yield Finding("secrets", "warning", text, "Find out which of them it belongs to, and correct the other.")


async def _ledger(configured: Settings) -> AsyncIterator[Finding]:
    name = configured.ledger_url.partition(":")[0]
    for finding in _file_system(configured.ledger_url):
        yield finding
    try:
        ledger = await open_ledger(configured.ledger_url, create=False)
    except LedgerUnavailable as problem:
        if problem.reason == "ledger_missing" and _can_be_created(configured.ledger_url):
            yield Finding("ledger", "ok", f"{name}, not there yet: `serve` creates it")
            return
        if problem.reason == "ledger_too_old":
            yield Finding("ledger", "warning", f"{name}: {problem.message}", "Back it up first (docs/operations.md).")
            return
        mends = {
            "ledger_missing": "Make its folder and give it to the service's user, or correct MAPPER_LEDGER_URL.",
            "ledger_unreachable": (
                "Check that its server runs, host, port and sslmode in MAPPER_LEDGER_URL, and the network."
            ),
        }
        mend = mends.get(problem.reason, "Correct MAPPER_LEDGER_URL, or repair its server.")
        yield Finding("ledger", "failed", f"{name}: {problem.message} ({problem.reason})", mend)
        return
    try:
        await ledger.ping()
        backlog = await ledger.backlog()
        yield Finding("ledger", "ok", f"{name}, writable, {sum(backlog.counts.values())} order(s) open")
        if others := await _other_engines(ledger, configured.adapter.name):
            text = f"orders of {', '.join(others)} are open, and a service with another MAPPER_ENGINE leaves them alone"
            mend = "Run one with that engine, too, until `promotions-mapper ledger list` shows none of them."
            yield Finding("ledger", "warning", text, mend)
        if waiting := backlog.counts.get(State.MANUAL, 0):
            yield Finding(
                "ledger", "warning", f"{waiting} order(s) need you", "`promotions-mapper ledger list` lists them."
            )
    except LedgerUnavailable as problem:
        yield Finding("ledger", "failed", f"{name}: {problem.reason}", "Check its disk or server.")
    finally:
        await ledger.close()


async def _other_engines(ledger: Ledger, engine: str) -> list[str]:
    """Returns the other engines that have orders for the reconciler."""
    rows = [row for state in OPEN for row in await ledger.find(state=state) if row.next_check_at is not None]
    return sorted({row.key.engine for row in rows} - {engine})


def _file_system(url: str) -> Iterator[Finding]:
    """Checks the file system of a SQLite ledger, on Linux only."""
    if not url.startswith("sqlite:///") or not MOUNTS.is_file():
        return
    path = Path(url.removeprefix("sqlite:///")).resolve()
    kinds = {Path(where): kind for _, where, kind, *_ in map(str.split, MOUNTS.read_text("utf-8").splitlines())}
    kind = next((kinds[folder] for folder in path.parents if folder in kinds), "")
    if kind in LOST:
        text = f"sqlite: {path} is on {kind}, which is lost with the container or machine, and the orders with it"
        yield Finding("ledger", "warning", text, "Name a file on a volume in MAPPER_LEDGER_URL, or use PostgreSQL.")
    elif kind in SHARED:
        text = f"sqlite: {path} is on {kind}, whose locks do not keep processes apart"
        yield Finding("ledger", "failed", text, "Name a file on a local disk in MAPPER_LEDGER_URL, or use PostgreSQL.")


def _can_be_created(url: str) -> bool:
    """Whether a missing ledger can be created; a PostgreSQL database exists already."""
    is_file = url.startswith("sqlite:///")
    return not is_file or os.access(Path(url.removeprefix("sqlite:///")).resolve().parent, os.W_OK)


class _Probe:
    """Sends the engine carts that redeem nothing, and notes the time it takes and the skew of its clock."""

    def __init__(self, configured: Settings) -> None:
        self._configured = configured
        self.transport = clients.create(configured.http_client, connections=2)
        engine = Engine(self.transport, configured.adapter.accounts, on_exchange=self._note)
        self._engine = PromotionEngine(configured.adapter, engine)
        self._session = f"doctor-{uuid.uuid4()}"
        self._codes: tuple[str, ...] = ()
        self._answers = 0
        self.skew_s: float | None = None
        self.took_s = 0.0

    def _note(self, _request: EngineRequest, reply: EngineReply) -> None:
        self._answers += 1
        if date := reply.headers.get("date"):
            try:
                self.skew_s = time.time() - parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError):
                self.skew_s = None

    async def ask(self, currency: str, **body: Any) -> Problem | None:
        """Returns the problem with a cart, or None if the engine answers."""
        problem = await self._ask(currency, body)
        if problem is None and not self._answers:
            self._codes = (CODE,)
            problem = await self._ask(currency, body)
        return problem

    async def _ask(self, currency: str, fields: dict[str, Any]) -> Problem | None:
        line = {"sku": "doctor", "quantity": 1, "price": "1"} | fields.get("line", {})
        whole = {"id": self._session, "currency": currency, "promotions": {"coupon_codes": self._codes}}
        text = json.dumps(whole | fields | {"items": [line]}).encode()
        checkout = documents.parse(text, "validate")
        started = time.monotonic()
        try:
            await self._engine.validate(checkout, self._session, started + 2 * self._configured.validate_deadline_s)
        except Problem as problem:
            return problem
        finally:
            self.took_s = time.monotonic() - started
        return None


async def _engine(configured: Settings) -> AsyncIterator[Finding]:
    probe = _Probe(configured)
    try:
        for account in configured.adapter.accounts:
            async for finding in _account(configured, probe, account):
                yield finding
        if probe.skew_s is not None and abs(probe.skew_s) > CLOCK_S:
            text = f"this machine's clock and the engine's differ by {probe.skew_s:.0f} s"
            yield Finding("clock", "warning", text, "Set this machine's clock by NTP.")
    finally:
        await probe.transport.aclose()


async def _account(configured: Settings, probe: _Probe, account: str) -> AsyncIterator[Finding]:
    name = f"engine {account}".strip()
    currency = account if account in DIGITS else configured.default_currency or "USD"
    problem = await probe.ask(currency)
    if problem is not None:
        yield Finding(name, "failed", problem.message, _mend(problem, configured.adapter.name))
        return
    state: Literal["ok", "warning"] = "ok" if probe.took_s < SLOW_S else "warning"
    mend = "" if state == "ok" else "Choose a closer deployment of the engine, or ask its support."
    yield Finding(name, state, f"answers, and accepts the key; {probe.took_s * 1000:.0f} ms", mend)
    for what, pointer, of_line in _pointers(configured):
        value = {"line": _at(pointer, "1")} if of_line else _at(pointer, "1")
        problem = await probe.ask(currency, **value)
        if problem is None:
            yield Finding(what, "ok", f"{pointer} is accepted")
        elif isinstance(problem, EngineRejected):
            mend = "Make it in the engine's console under this name, or take it out of the setting."
            yield Finding(what, "failed", f"the engine refuses a cart with {pointer}: {problem.message}", mend)


async def _products(configured: Settings, client: Transport) -> AsyncIterator[Finding]:
    if configured.products is None:
        return
    try:
        await source_of(configured.products, client).read(["doctor"])
    except (OSError, ValueError) as error:
        text = f"the file cannot be used: {error}"
        yield Finding("product data", "failed", text, "Correct the file of MAPPER_PRODUCT_DATA.")
    except SourceFailed as failure:
        text = f"Nacelle's Storefront API gives none: {failure.reason}"
        mend = "Check NACELLE_STOREFRONT_URL, NACELLE_STOREFRONT_TOKEN and the space's id, NOMS_SPACE_ID."
        yield Finding("product data", "failed", text, mend)
    else:
        source = "the file can be read" if configured.products.file else "Nacelle's Storefront API answers"
        yield Finding("product data", "ok", source)


async def _noms(client: Transport) -> AsyncIterator[Finding]:
    """Checks order ingestion, if it is configured. Its token is not tried: any request with it creates an order."""
    if not any(os.environ.get(name) for name in ("NOMS_TOKEN", "NOMS_TOKEN_FILE", "MAPPER_INGEST_TOKEN")):
        return
    try:
        given = settings.load_ingest(os.environ)
    except settings.InvalidSettings as error:
        for name, expected in error.problems:
            yield Finding(
                name, "failed", expected, "Correct it, or unset NOMS_TOKEN: order ingestion needs all of them."
            )
        return
    try:
        reply = await client.send("GET", given.base_url, (), b"", REACH_S, MAX_REACH_BYTES)
    except (NotSent, Unknown) as failure:
        text = f"NOMS cannot be reached: {failure.reason}"
        yield Finding("order ingestion", "failed", text, "Check NOMS_BASE_URL and the network.")
    else:
        text = f"NOMS answers ({reply.status}); the token is not tried, since that would create an order"
        yield Finding("order ingestion", "ok", text)


def _pointers(configured: Settings) -> Iterator[tuple[str, str, bool]]:
    """Yields the configured costs, attributes and metadata: setting and name, pointer, whether it is of a line."""
    prefix = configured.adapter.name.upper()
    for option in configured.adapter.options:
        if option.kind != "map":
            continue
        value = os.environ.get(f"{prefix}_{option.name}", option.default or "")
        for entry in filter(None, (part.strip() for part in value.split(","))):
            name, _, pointer = entry.partition("=")
            yield f"{prefix}_{option.name} {name}", pointer, "ITEM" in option.name


def _at(pointer: str, value: str) -> dict[str, Any]:
    """Returns an object with the value at the pointer."""
    found: Any = value
    for token in reversed(pointer.strip("/").split("/")):
        found = [found] if token in ("0", "*") else {token.replace("~1", "/").replace("~0", "~"): found}
    return found if isinstance(found, dict) else {}


def _mend(problem: Problem, engine: str) -> str:
    prefix = engine.upper()
    if mend := MENDS.get(problem.reason):
        return mend.format(prefix=prefix, base_url=f"{prefix}_BASE_URL")
    if isinstance(problem, EngineUnavailable):
        proxies = ", ".join(name for name in sorted(os.environ) if name.lower() in ("all_proxy", "https_proxy"))
        unused = f" {proxies} is not used: requests go to the engine directly." if proxies else ""
        return f"Check the address in {prefix}_BASE_URL, the network and the engine's status page.{unused}"
    if isinstance(problem, EngineRejected):
        return f"Check the key, the address and the names in the settings {prefix}_…"
    return "See the log of the service."


def _show(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
        return
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column()
    table.add_column(overflow="fold")  # never cut the name of a setting
    for finding in findings:
        mend = f"\n→ {printable(finding.mend)}" if finding.mend else ""
        check, text = printable(finding.check), printable(finding.text)
        table.add_row(SIGNS[finding.state], Text.assemble((check, "bold"), f": {text}", (mend, "italic")))
    Console(file=sys.stdout).print(table)
