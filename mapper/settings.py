"""Reads the settings from the environment, once, and checks them all.

Each setting that holds a secret may also be given as `NAME_FILE`, the path of a file that holds the value.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from mapper import installed
from mapper.adapter import Adapter, Option, known, names
from mapper.domain import money
from mapper.domain.signature import Credentials
from mapper.installed import BrokenAdapter

OnRejected = Literal["refuse", "apply_rest"]
OnEngineFailure = Literal["refuse", "no_discount", "no_discount_without_codes"]
OnDrift = Literal["report", "refuse"]
AfterFailure = Literal["wait", "redeem_later"]

SHORT_SECRET_BYTES = 16
QUOTES = (
    "''",
    '""',
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}",
    "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}",
)
KEEP_BODIES_S = 3600, 31_536_000
"""The minimum and the maximum."""

PATHS = frozenset({"MAPPER_LEDGER_URL", "MAPPER_RECORD", "MAPPER_PRODUCT_DATA"})
"""Settings that may name a file in any encoding."""

TABLE: dict[str, tuple[str, str]] = {
    "MAPPER_ENGINE": ("", "the engine's adapter: `talon_one`, `voucherify` or an installed one"),
    "NACELLE_SIGNING_SECRETS": (
        "",
        "the signing secrets, comma-separated, the current one first; `space:secret` for one space alone",
    ),
    "NACELLE_AUTH": ("signature", "`signature`, `secret_header` or `both`"),
    "NACELLE_SECRET_HEADER": (
        "",
        "the value of the `Secret` header, or `Header-Name: value`, one per line; checked whenever it is set",
    ),
    "NACELLE_SPACE_IDS": ("", "the space ids served, comma-separated; empty for any"),
    "MAPPER_LEDGER_URL": ("sqlite:///mapper-ledger.db", "the database of the consumed orders"),
    "MAPPER_VALIDATE_DEADLINE_MS": ("1500", "the deadline of a validate, in milliseconds"),
    "MAPPER_CONSUME_DEADLINE_MS": ("8000", "the deadline of a consume, in milliseconds"),
    "MAPPER_QUARANTINE_MS": ("60000", "how long nothing is sent again after an unknown outcome, in milliseconds"),
    "MAPPER_ON_REJECTED": ("refuse", "a refused code: `refuse` the call, or `apply_rest`"),
    "MAPPER_ON_ENGINE_FAILURE": (
        "refuse",
        "validate without the engine: `refuse`, `no_discount`, `no_discount_without_codes`",
    ),
    "MAPPER_ON_DRIFT": ("report", "consume grants other amounts than the order carries: `report` or `refuse`"),
    "MAPPER_RECEIPT": ("optional", "`required`: consume takes no order without a valid receipt"),
    "MAPPER_RECEIPT_TTL_S": ("86400", "how long a receipt's prices are good for, in seconds"),
    "MAPPER_OLD_RECEIPT_SECRETS": ("", "retired signing secrets whose receipts stay valid until they expire"),
    "MAPPER_CUSTOMER_PATH": ("/customer/id", "JSON pointer to the customer's id"),
    "MAPPER_CONSUME_REQUIRES": (
        "",
        "JSON pointer that only paid orders have, such as `/payments/0`; an order without it gets 400",
    ),
    "MAPPER_CANCEL_SECRETS": ("", "the secrets that sign `POST /promotions/cancel`; empty: the route is off"),
    "MAPPER_AFTER_FAILURE": (
        "wait",
        "an order that was certainly not redeemed: `wait` for the caller, or `redeem_later` in the background",
    ),
    "MAPPER_KEEP_BODIES_S": ("2592000", "how long the bodies of finished orders are kept, in seconds"),
    "MAPPER_OVERLOAD_STATUS": ("", "`503` instead of Nacelle's own codes when the service is full"),
    "MAPPER_DEFAULT_CURRENCY": ("", "the currency of bodies that name none"),
    "MAPPER_SESSION_ID_PATH": ("", "JSON pointer to the engine session's id where a body has no `id` or `source_id`"),
    "MAPPER_ORDER_KEY_PATH": ("", "JSON pointer to the order's key where an order has no `id` or `source_id`"),
    "MAPPER_HTTP_CLIENT": ("aiohttp", "the HTTP client towards the engine: `aiohttp` or `httpx`"),
    "MAPPER_MAX_BODY_BYTES": (
        "1048576",
        "the largest body that is read; an order comes with the discounts of its checkout",
    ),
    "MAPPER_ADMIN_PORT": ("", "a separate port for the operator's routes; empty: the same port"),
    "MAPPER_LOG_LEVEL": ("info", "`debug`, `info`, `warning` or `error`"),
    "MAPPER_LOG_FORMAT": ("json", "`json`, or `text` for a person at a terminal"),
    "MAPPER_LOG_CODES": ("hash", "codes in the log: a keyed `hash` (`promotions-mapper hash CODE`), `short` or `none`"),
    "MAPPER_RECORD": ("", "a folder for redacted records of calls, to be replayed; empty: nothing is recorded"),
    "MAPPER_EXPLAIN": ("off", "the page `/explain`: `off`, or `on` with `MAPPER_EXPLAIN_TOKEN`"),
    "MAPPER_EXPLAIN_TOKEN": ("", "the token that users of the page must enter"),
    "NOMS_BASE_URL": ("https://noms.api.nacelle.com/api/v1", "Nacelle's order management, for order ingestion"),
    "NOMS_TOKEN": ("", "its token, sent as `Bearer`; `key:…` is sent without it, as one of Nacelle's pages shows"),
    "NOMS_SPACE_ID": ("", "the space that orders are created in"),
    "MAPPER_PRODUCT_DATA": (
        "off",
        "where a line's category, name and weight come from if it has none: `off`, a CSV or JSON file, or `nacelle`",
    ),
    "NACELLE_STOREFRONT_TOKEN": ("", "the space's public token, for `MAPPER_PRODUCT_DATA=nacelle`, if it wants one"),
    "NACELLE_STOREFRONT_URL": (
        "https://storefront.api.nacelle.com/graphql/v1/spaces",
        "Nacelle's Storefront API; the space (`NOMS_SPACE_ID`, else the one served) is appended",
    ),
    "MAPPER_INGEST_TOKEN": ("", "the bearer token that `POST /orders/ingest` asks for; empty: the route is off"),
}
"""The service's own settings: default and meaning by name. docs/settings.md is generated from it."""
SECRETS = (
    "NACELLE_SIGNING_SECRETS",
    "NACELLE_SECRET_HEADER",
    "MAPPER_LEDGER_URL",
    "MAPPER_OLD_RECEIPT_SECRETS",
    "MAPPER_CANCEL_SECRETS",
    "MAPPER_EXPLAIN_TOKEN",
    "NOMS_TOKEN",
    "NACELLE_STOREFRONT_TOKEN",
    "MAPPER_INGEST_TOKEN",
)


@dataclass(frozen=True)
class IngestSettings:
    """How orders are created at Nacelle. Its `repr` shows no token."""

    base_url: str
    authorization: str = field(repr=False)
    space: str
    token: bytes = field(repr=False)
    """The bearer token of the callers of `POST /orders/ingest`; empty if the route is off."""
    ledger_url: str = field(repr=False)
    default_currency: str
    http_client: Literal["aiohttp", "httpx"]


@dataclass(frozen=True)
class ProductSettings:
    """The source of product data: a file, or the Storefront API of one space. Its `repr` shows no token."""

    file: Path | None
    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Rules:
    """The settings that it takes to read and price a body, without callers and ledger."""

    adapter: Adapter
    default_currency: str
    customer_path: str


@dataclass(frozen=True)
class Settings:
    adapter: Adapter
    credentials: Credentials
    cancel_credentials: Credentials | None
    """The secrets that sign a cancel; None if the route is off."""
    old_receipt_secrets: tuple[bytes, ...] = field(repr=False)
    receipt_required: bool
    receipt_ttl_s: int
    ledger_url: str = field(repr=False)
    validate_deadline_s: float
    consume_deadline_s: float
    quarantine_s: float
    on_rejected: OnRejected
    on_engine_failure: OnEngineFailure
    on_drift: OnDrift
    overload_status: int | None
    default_currency: str
    session_id_path: str
    order_key_path: str
    customer_path: str
    consume_requires: str
    after_failure: AfterFailure
    keep_bodies_s: int
    http_client: Literal["aiohttp", "httpx"]
    max_body_bytes: int
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["json", "text"]
    log_codes: Literal["hash", "short", "none"]
    record: Path | None = None
    """The folder for records; None if nothing is recorded."""
    admin_port: int | None = None
    """The port of the operator's routes; None if they share the port of the calls."""
    explain_token: bytes = field(repr=False, default=b"")
    """Empty if the page `/explain` is off."""
    ingest: IngestSettings | None = None
    """None if `POST /orders/ingest` is off."""
    products: ProductSettings | None = None
    """None if no product data is added to lines."""
    warnings: tuple[str, ...] = ()
    """Probable mistakes that do not prevent the start, such as a misspelt name."""

    @property
    def rules(self) -> Rules:
        return Rules(self.adapter, self.default_currency, self.customer_path)

    @property
    def code_secret(self) -> bytes:
        """The key of the codes' hashes in the log: the callers' current secret."""
        credentials = self.credentials
        return (*credentials.all_secrets, *(value for _, value in credentials.headers))[0]


class InvalidSettings(Exception):
    """All faults of the settings, as pairs of (name, what is expected), and the warnings."""

    def __init__(self, problems: list[tuple[str, str]], warnings: Sequence[str] = ()) -> None:
        super().__init__("; ".join(f"{name}: {expected}" for name, expected in problems))
        self.problems = problems
        self.warnings = tuple(warnings)


def load(environment: Mapping[str, str]) -> Settings:
    """Returns the settings. Raises `InvalidSettings` with all faults."""
    reader = Reader(environment)
    auth = cast(
        "Literal['signature', 'secret_header', 'both']",
        reader.choice("NACELLE_AUTH", "signature", "secret_header", "both"),
    )
    spaces = reader.spaces()
    signing = reader.credentials("NACELLE_SIGNING_SECRETS", spaces, needed=auth in ("signature", "both"))
    headers = reader.secret_headers(needed=auth in ("secret_header", "both"))
    if len(spaces) > 1 and (signing.secrets or auth == "secret_header" or spaces - signing.by_space.keys()):
        reader.warnings.append(
            "NACELLE_SPACE_IDS names several spaces that share a secret: a captured body can be sent again to another"
            " space; give each space its own secret, NACELLE_SIGNING_SECRETS=space:secret,…"
        )
    cancel = reader.credentials("MAPPER_CANCEL_SECRETS", spaces, needed=False)
    if set(cancel.all_secrets) & set(signing.all_secrets):
        reader.wrong(
            "MAPPER_CANCEL_SECRETS", "secrets of its own: Nacelle, which has the signing secrets, never cancels"
        )
    found = {
        "credentials": replace(signing, auth=auth, headers=headers),
        "cancel_credentials": cancel if cancel.all_secrets else None,
        "old_receipt_secrets": tuple(secret.encode() for secret in reader.list("MAPPER_OLD_RECEIPT_SECRETS")),
        "receipt_required": reader.choice("MAPPER_RECEIPT", "optional", "required") == "required",
        "receipt_ttl_s": reader.number("MAPPER_RECEIPT_TTL_S", 60, 31_536_000),
        "ledger_url": reader.ledger_url(),
        "validate_deadline_s": reader.number("MAPPER_VALIDATE_DEADLINE_MS", 100, 60_000) / 1000,
        "consume_deadline_s": reader.number("MAPPER_CONSUME_DEADLINE_MS", 500, 120_000) / 1000,
        "quarantine_s": reader.quarantine_s(),
        "on_rejected": reader.choice("MAPPER_ON_REJECTED", "refuse", "apply_rest"),
        "on_engine_failure": reader.choice(
            "MAPPER_ON_ENGINE_FAILURE", "refuse", "no_discount", "no_discount_without_codes"
        ),
        "on_drift": reader.choice("MAPPER_ON_DRIFT", "report", "refuse"),
        "overload_status": 503 if reader.choice("MAPPER_OVERLOAD_STATUS", "", "503") else None,
        "default_currency": reader.currency(),
        "session_id_path": reader.pointer("MAPPER_SESSION_ID_PATH"),
        "order_key_path": reader.pointer("MAPPER_ORDER_KEY_PATH"),
        "customer_path": reader.pointer("MAPPER_CUSTOMER_PATH"),
        "consume_requires": reader.pointer("MAPPER_CONSUME_REQUIRES"),
        "after_failure": reader.choice("MAPPER_AFTER_FAILURE", "wait", "redeem_later"),
        "keep_bodies_s": reader.number("MAPPER_KEEP_BODIES_S", *KEEP_BODIES_S),
        "http_client": reader.choice("MAPPER_HTTP_CLIENT", "aiohttp", "httpx"),
        "max_body_bytes": reader.number("MAPPER_MAX_BODY_BYTES", 1024, 104_857_600),
        "log_level": reader.choice("MAPPER_LOG_LEVEL", "info", "debug", "warning", "error"),
        "log_format": reader.choice("MAPPER_LOG_FORMAT", "json", "text"),
        "log_codes": reader.choice("MAPPER_LOG_CODES", "hash", "short", "none"),
        "admin_port": reader.number("MAPPER_ADMIN_PORT", 1, 65_535) if reader.text("MAPPER_ADMIN_PORT") else None,
        "record": Path(reader.text("MAPPER_RECORD")) if reader.text("MAPPER_RECORD") else None,
        "explain_token": reader.explain_token(),
        "products": reader.products(spaces),
        "ingest": reader.ingest() if reader.text("MAPPER_INGEST_TOKEN") else None,
    }
    adapter = reader.adapter()
    reader.check()
    assert adapter is not None, "a problem would say why"
    if not adapter.capabilities.undo:
        reader.warn_no_undo(cancels=found["cancel_credentials"] is not None, on_drift=str(found["on_drift"]))
    return Settings(adapter=adapter, warnings=tuple(reader.warnings), **cast("dict[str, Any]", found))


def load_rules(environment: Mapping[str, str]) -> Rules:
    """Returns the settings of `promotions-mapper replay`. Raises `InvalidSettings`."""
    reader = Reader(environment)
    currency, customer_path = reader.currency(), reader.pointer("MAPPER_CUSTOMER_PATH")
    adapter = reader.adapter()
    reader.check()
    assert adapter is not None, "a problem would say why"
    return Rules(adapter, currency, customer_path)


def load_ingest(environment: Mapping[str, str]) -> IngestSettings:
    """Returns the settings of `promotions-mapper ingest`. Raises `InvalidSettings`."""
    reader = Reader(environment)
    found = reader.ingest()
    reader.check()
    return found


def is_text(value: str) -> bool:
    """Whether a value of the environment or of an argument was UTF-8: Python keeps other bytes as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_secret(path: str) -> str:
    """Returns the secret in a file. Editors on Windows start files with a byte order mark. Raises as `read_text`."""
    return Path(path.strip()).read_text("utf-8-sig").strip()


class Reader:
    """Reads single settings, and collects their faults and warnings."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {name: value for name, value in environment.items() if name in PATHS or is_text(value)}
        self.problems: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self._empty_files: set[str] = set()
        engine = f"{environment.get('MAPPER_ENGINE', '').strip().upper()}_"
        for name in sorted(environment.keys() - self.environment.keys()):
            if name.startswith(("MAPPER_", "NACELLE_", "NOMS_", engine)):
                self.wrong(name, "text in UTF-8")
        for prefix in ("MAPPER_", "NACELLE_", "NOMS_"):
            self._warn_unknown(prefix, frozenset(TABLE), SECRETS, environment)
            self._warn_quoted(prefix)

    def _warn_quoted(self, prefix: str) -> None:
        """Warns of quotes, which shells remove, but `docker --env-file` and systemd credentials do not."""
        for name, value in sorted(self.environment.items()):
            if name.startswith(prefix) and value[:1] + value[1:][-1:] in QUOTES:
                self.warnings.append(f"{name} is in quotes, which are taken as part of the value")

    def check(self) -> None:
        """Raises `InvalidSettings` if a setting that was read is wrong."""
        if self.problems:
            raise InvalidSettings(self.problems, self.warnings)

    def wrong(self, name: str, expected: str) -> None:
        self.problems.append((name, f"expected {expected}"))

    def text(self, name: str) -> str:
        """Returns the setting's value, from its file if `NAME_FILE` is set, or its default if it is unset or empty."""
        value = self.environment.get(name, "").strip()
        path = self.environment.get(f"{name}_FILE", "").strip() if name in SECRETS else ""
        if path:
            value = self._read(name, path)
        return value or TABLE[name][0]

    def _read(self, name: str, path: str) -> str:
        if self.environment.get(name, "").strip():
            self.problems.append((name, f"both {name} and {name}_FILE are set; set one"))
        try:
            value = read_secret(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            self.problems.append((f"{name}_FILE", f"{path!r} cannot be read: {reason}"))
            return ""
        if not value and f"{name}_FILE" not in self._empty_files:
            self._empty_files.add(f"{name}_FILE")
            self.warnings.append(f"{name}_FILE: {path!r} is empty, so that {name} counts as not set")
        return value

    def list(self, name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.text(name).split(",") if part.strip())

    def choice(self, name: str, *allowed: str) -> str:
        value = self.text(name)
        if value not in allowed:
            self.wrong(name, " or ".join(choice or "nothing" for choice in allowed) + f", not {value!r}")
        return value

    def number(self, name: str, minimum: int, maximum: int) -> int:
        value = self.text(name)
        if value.isascii() and value.isdigit() and len(value) < 12 and minimum <= int(value) <= maximum:
            return int(value)
        self.wrong(name, f"a whole number from {minimum} to {maximum}, not {value!r}")
        return minimum

    def pointer(self, name: str) -> str:
        value = self.text(name)
        if value and (not value.startswith("/") or re.search(r"~(?![01])", value)):
            self.wrong(name, f'a JSON pointer such as "/metadata/cart_id", not {value!r}')
        return value

    def spaces(self) -> frozenset[str]:
        spaces = self.list("NACELLE_SPACE_IDS")
        if any(re.search(r"\s", space) for space in spaces):
            self.wrong("NACELLE_SPACE_IDS", "ids separated by commas, without white space in them")
        return frozenset(spaces)

    def credentials(self, name: str, spaces: frozenset[str], *, needed: bool) -> Credentials:
        """Returns the signing secrets of a setting; those written as `space:secret` are for one space alone."""
        given = self.list(name)
        if needed and not given:
            self.wrong(name, f"at least one secret (or {name}_FILE): there is no mode without one")
        shared: list[bytes] = []
        by_space: dict[str, tuple[bytes, ...]] = {}
        for position, entry in enumerate(given, 1):
            space, colon, rest = entry.partition(":")
            bound = bool(colon) and space.strip() in spaces
            secret = (rest.strip() if bound else entry).encode()
            self._warn_short(f"{name}, number {position},", secret)
            if bound:
                by_space[space.strip()] = (*by_space.get(space.strip(), ()), secret)
            else:
                shared.append(secret)
                if colon and spaces:
                    self.warnings.append(
                        f"{name}, number {position}, has a colon, but no space of NACELLE_SPACE_IDS before it:"
                        " the whole of it is taken for a secret that is good in every space"
                    )
        return Credentials("signature", tuple(shared), (), spaces, by_space)

    def currency(self) -> str:
        currency = self.text("MAPPER_DEFAULT_CURRENCY").upper()
        if currency and currency not in money.DIGITS:
            self.wrong("MAPPER_DEFAULT_CURRENCY", 'an ISO 4217 code such as "USD"')
        return currency

    def ledger_url(self) -> str:
        url = self.text("MAPPER_LEDGER_URL")
        if not re.match(r"(sqlite:///(?!:memory:).|postgresql://.)", url):
            self.wrong("MAPPER_LEDGER_URL", "sqlite:///<path of a file> or postgresql://<host>/<database>")
        return url

    def explain_token(self) -> bytes:
        token = self.text("MAPPER_EXPLAIN_TOKEN").encode()
        if self.choice("MAPPER_EXPLAIN", "off", "on") == "off":
            return b""
        if len(token) < SHORT_SECRET_BYTES:
            self.wrong("MAPPER_EXPLAIN_TOKEN", f"at least {SHORT_SECRET_BYTES} characters, since MAPPER_EXPLAIN=on")
        return token

    def ingest(self) -> IngestSettings:
        base_url = self._base_url("NOMS_BASE_URL")
        token, space = self.text("NOMS_TOKEN"), self.text("NOMS_SPACE_ID")
        for name, value in (("NOMS_TOKEN", token), ("NOMS_SPACE_ID", space)):
            if not value or not re.fullmatch(r"[!-~]+", value):
                self.wrong(name, "a value without white space, from Nacelle's dashboard")
        return IngestSettings(
            base_url=base_url,
            authorization=token.removeprefix("key:") if token.startswith("key:") else f"Bearer {token}",
            space=space,
            token=self.text("MAPPER_INGEST_TOKEN").encode(),
            ledger_url=self.ledger_url(),
            default_currency=self.currency(),
            http_client=cast("Literal['aiohttp', 'httpx']", self.choice("MAPPER_HTTP_CLIENT", "aiohttp", "httpx")),
        )

    def products(self, spaces: frozenset[str]) -> ProductSettings | None:
        source = self.text("MAPPER_PRODUCT_DATA")
        if source == "off":
            return None
        if source != "nacelle":
            try:
                is_file = Path(source).is_file()
            except OSError:  # its folder may not be read, or the name is too long
                is_file = False
            if not is_file:
                self.wrong("MAPPER_PRODUCT_DATA", f"off, nacelle, or a file that can be read, not {source!r}")
            return ProductSettings(Path(source), "", "")
        url, token = self._base_url("NACELLE_STOREFRONT_URL"), self.text("NACELLE_STOREFRONT_TOKEN")
        space = self.text("NOMS_SPACE_ID") or (next(iter(spaces)) if len(spaces) == 1 else "")
        if not space:
            self.wrong("NOMS_SPACE_ID", "the space whose products are read, or one space in NACELLE_SPACE_IDS")
        if not re.fullmatch(r"[!-~]*", token):
            self.wrong("NACELLE_STOREFRONT_TOKEN", "a value without white space, from Nacelle's dashboard")
        return ProductSettings(None, f"{url}/{quote(space, safe='')}", token)

    def _base_url(self, name: str) -> str:
        url = self.text(name).rstrip("/")
        if not re.fullmatch(r"https://[!-~]+|http://(?:localhost|127\.[0-9.]+|\[::1\])(?:[:/][!-~]*)?", url):
            self.wrong(name, f"an https:// URL (http:// for this machine alone), not {url!r}")
        return url

    def quarantine_s(self) -> float:
        quarantine_s = self.number("MAPPER_QUARANTINE_MS", 0, 3_600_000) / 1000
        if quarantine_s == 0:
            self.warnings.append(
                "MAPPER_QUARANTINE_MS=0: an order whose outcome is unknown may be sent again while the engine is still"
                " working on it, and be redeemed twice"
            )
        return quarantine_s

    def warn_no_undo(self, *, cancels: bool, on_drift: str) -> None:
        """Warns of settings that need an undo, which this engine lacks."""
        if cancels:
            self.warnings.append(
                "MAPPER_CANCEL_SECRETS: this engine cannot take a redemption back, so nothing can be cancelled"
            )
        if on_drift == "refuse":
            self.warnings.append(
                "MAPPER_ON_DRIFT=refuse: this engine cannot take a redemption back, so that a difference that is found"
                " after the redemption is only reported"
            )

    def _warn_short(self, what: str, secret: bytes) -> None:
        # Not an error, since Nacelle issues the secret and the shop cannot choose it.
        if len(secret) < SHORT_SECRET_BYTES:
            self.warnings.append(f"{what} has only {len(secret)} bytes: short secrets can be guessed")

    def secret_headers(self, *, needed: bool) -> tuple[tuple[bytes, bytes], ...]:
        """Returns the required headers as pairs of lower-case name and value; a name may occur twice."""
        name = "NACELLE_SECRET_HEADER"
        lines = [line.strip() for line in self.text(name).splitlines() if line.strip()]
        if needed and not lines:
            self.wrong(name, "the value of the Secret header (or NACELLE_SECRET_HEADER_FILE)")
        headers: list[tuple[bytes, bytes]] = []
        for line in lines:
            named = re.fullmatch(r"([A-Za-z0-9-]+):[ \t]+(.+)", line)
            header, value = (named[1].lower(), named[2]) if named else ("secret", line)
            self._warn_short(name if len(lines) == 1 else f"{name}, {header},", value.encode())
            headers.append((header.encode(), value.encode()))
        return tuple(headers)

    def adapter(self) -> Adapter | None:
        """Returns the configured engine's adapter, built with its own options."""
        name, adapters = self.text("MAPPER_ENGINE"), known()
        if name not in adapters:
            self.wrong("MAPPER_ENGINE", f"one of {', '.join(sorted(adapters))}" + (f", not {name!r}" if name else ""))
            for other in adapters:  # one of these was meant: report its faults, too
                if any(key.startswith(f"{other.upper()}_") for key in self.environment):
                    self._build(other, adapters)
            return None
        return self._build(name, adapters)

    def _build(self, name: str, adapters: Mapping[str, EntryPoint]) -> Adapter | None:
        """Returns an engine's adapter; None if its options have faults."""
        prefix = f"{name.upper()}_"
        # The settings of `foo_bar` are not those of `foo`, although they begin with its name.
        others = tuple(f"{other.upper()}_" for other in adapters if other.startswith(f"{name}_"))
        try:
            factory = installed.load(adapters[name])
            given = self._options(prefix, others, factory.options)
            self._warn_quoted(prefix)
            adapter, problems = installed.build(adapters[name], factory, given)
        except BrokenAdapter as broken:
            self.problems.append(("MAPPER_ENGINE", str(broken)))
            return None
        self.problems += [(prefix + option, f"expected {expected}") for option, expected in problems]
        return adapter

    def _options(self, prefix: str, others: tuple[str, ...], options: Sequence[Option]) -> dict[str, str]:
        """Returns the values of these options, ignoring settings with the prefixes of `others`."""
        own = {name: value for name, value in self.environment.items() if not name.startswith(others or ("\0",))}
        secrets = names(option for option in options if option.secret)
        self._warn_unknown(
            prefix, frozenset(prefix + name for name in names(options)), tuple(prefix + name for name in secrets), own
        )
        given = {name: own.get(prefix + name, "") for name in names(options)}
        return given | {
            name: self._read(prefix + name, path)
            for name in secrets
            if (path := own.get(f"{prefix}{name}_FILE", "").strip())
        }

    def _warn_unknown(
        self, prefix: str, known: frozenset[str], secrets: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        allowed = known | {f"{name}_FILE" for name in secrets}
        for name in sorted(environment):
            if name.startswith(prefix) and name not in allowed:
                close = difflib.get_close_matches(name, sorted(allowed), 1)
                self.warnings.append(
                    f"{name} is not a setting and is ignored" + (f"; did you mean {close[0]}?" if close else "")
                )
