"""Records cassettes from a real account: `make record`. cassettes/README.md says what is kept and what is scrubbed.

    TALON_ONE_BASE_URL, TALON_ONE_API_KEY                      records cassettes/talon_one/live
    VOUCHERIFY_APP_ID, VOUCHERIFY_APP_TOKEN, [.._BASE_URL]     records cassettes/voucherify/live
    RECORD_CODE=…           also validates with this code of the account (without effect)
    RECORD_REDEMPTIONS=1    also redeems an order and undoes it

The scrubbing uses allow-lists where possible: a header that is not known to be harmless is not kept.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import vcr  # type: ignore[import-untyped] # it has no types
import yaml  # type: ignore[import-untyped] # comes with vcrpy; has no types
from vcr.record_mode import RecordMode  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]
from vcr.serializers import yamlserializer  # type: ignore[import-untyped]

from adapters.talon_one import TalonOne
from adapters.voucherify import Voucherify
from mapper.adapter import Adapter, Conversation, LookedUp, Misconfigured, NotRedeemed, Outcome, Redeemed
from mapper.domain import checkout as checkouts
from mapper.domain.checkout import Checkout
from mapper.domain.errors import Problem
from mapper.engine import clients
from mapper.engine.conversation import Engine, Redemption

CASSETTES = Path(__file__).resolve().parents[2] / "cassettes"
DEADLINE_S = 15.0
RECORDED_CODE = "RECORDED-CODE"
"""Replaces the code of `RECORD_CODE` in a cassette: it may be worth money."""
SCRUBBED = "scrubbed"

# --- Scripts ----------------------------------------------------------------------------------------------------------

Step = Callable[[Adapter, "Cart"], Conversation[Any]]


@dataclass(frozen=True)
class Cart:
    """The cart that is sent: the same two lines each time, under an id of its own."""

    session: str
    codes: tuple[str, ...] = ()

    def checkout(self) -> Checkout:
        return self._parsed("items")

    def order(self) -> Checkout:
        return self._parsed("order_items")

    def _parsed(self, lines: str) -> Checkout:
        body = {
            "id": self.session,
            "currency": "USD",
            lines: [
                {"sku": "cassette-shirt", "quantity": 2, "price": "20.00"},
                {"sku": "cassette-shoes", "quantity": 1, "price": "60.00"},
            ],
            "promotions": {"coupon_codes": list(self.codes), "meta": {}},
        }
        return checkouts.parse(
            msgspec.json.encode(body), "validate" if lines == "items" else "consume", customer_path="/customer/id"
        )


@dataclass(frozen=True)
class Script:
    """Conversations that make one cassette. `codes`: "?" stands for the account's own code."""

    shows: str
    steps: tuple[Step, ...]
    codes: tuple[str, ...] = ()
    redeems: bool = False


def _validate(adapter: Adapter, cart: Cart) -> Conversation[Any]:
    return adapter.validate(cart.checkout(), cart.session)


def _check(adapter: Adapter, cart: Cart) -> Conversation[Any]:
    return adapter.check(cart.order(), cart.session)


def _redeem(adapter: Adapter, cart: Cart) -> Conversation[Any]:
    return adapter.redeem(cart.order(), cart.session)


def _look_up(adapter: Adapter, cart: Cart) -> Conversation[Any]:
    return adapter.look_up(cart.order(), cart.session, "")


def _undo(adapter: Adapter, cart: Cart) -> Conversation[Any]:
    return adapter.undo(cart.order(), cart.session, "", final=False)


# Only the last one costs the merchant anything: `RECORD_REDEMPTIONS` must allow it.
SCRIPTS: dict[str, Script] = {
    "validate": Script("A cart without codes.", (_validate,)),
    "validate_unknown_code": Script("A code that does not exist.", (_validate,), ("NO-SUCH-CODE-1",)),
    "validate_unknown_codes": Script("Two of them.", (_validate,), ("NO-SUCH-CODE-1", "NO-SUCH-CODE-2")),
    "check": Script("What redeeming would grant, asked without effect.", (_check,), ("NO-SUCH-CODE-1",)),
    "look_up_nothing": Script("Reading an order of which nothing is known.", (_look_up,)),
    "look_up_open": Script("Reading an order that has been validated only.", (_validate, _look_up)),
    "validate_code": Script("A code of the account.", (_validate,), ("?",)),
    "redeem_and_undo": Script(
        "Redeemed, repeated, read and taken back.", (_validate, _redeem, _redeem, _look_up, _undo), ("?",), redeems=True
    ),
}


@dataclass(frozen=True)
class Source:
    """An engine that can be recorded. `needs`: the settings that an account requires."""

    adapter: Callable[[Mapping[str, str]], Adapter]
    needs: tuple[str, ...]
    address: str
    """Replaces the account's own address in the cassettes."""
    api: str


ENGINES = {
    "talon_one": Source(
        TalonOne,
        ("TALON_ONE_BASE_URL", "TALON_ONE_API_KEY"),
        "https://yourbaseurl.talon.one",
        "Integration API v2; the answers name no version",
    ),
    "voucherify": Source(
        Voucherify,
        ("VOUCHERIFY_APP_ID", "VOUCHERIFY_APP_TOKEN"),
        "https://api.voucherify.io",
        "v2018-08-01",
    ),
}


def options(engine: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the adapter's options, from the settings with its prefix."""
    prefix = f"{engine.upper()}_"
    return {name.removeprefix(prefix): value for name, value in environ.items() if name.startswith(prefix)}


# --- Scrubbing --------------------------------------------------------------------------------------------------------

KEPT_HEADERS = frozenset(
    {
        *("content-type", "accept", "idempotency-key", "retry-after", "x-voucherify-api-version"),
        *("x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-retry", "x-rate-limit-type"),
        "x-sandbox",  # marks a sandbox
    }
)

# Objects about people, and objects with values of the merchant's choice: nothing in them is kept.
CLOSED = frozenset(
    {
        *("customer", "customerprofile", "profile", "referrer", "advocate", "holder", "address", "user", "assignment"),
        *("attributes", "metadata", "identifiers", "channel"),
    }
)
# Single values about people, in any object.
PERSONAL = frozenset(
    {
        *("email", "phone", "birthdate", "firstname", "lastname", "createdby", "updatedby", "user_login"),
        *("customer_id", "referrer_id", "holder_id", "tracking_id", "cardidentifier"),
        *("profileintegrationid", "recipientintegrationid", "advocateprofileintegrationid"),
    }
)
_TEXT = (
    (re.compile(r"[\w.+%-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"), "someone@example.com"),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"), "192.0.2.1"),
    (re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){3,7}:?[0-9a-fA-F]{1,4}(?![\w:])"), "2001:db8::1"),
)
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class Scrubber:
    """Removes secrets and personal data before vcrpy keeps anything."""

    base_url: str
    address: str
    secrets: tuple[str, ...]
    code: str = ""

    def request(self, request: Any) -> Any:
        uri = self.text(request.uri.replace(self.base_url, self.address, 1))
        return Request(request.method, uri, self.body(request.body), self._headers(request.headers))

    def response(self, response: dict[str, Any]) -> dict[str, Any]:
        body = self.body(response["body"].get("string"))
        return {**response, "headers": self._headers(response["headers"]), "body": {"string": body or b""}}

    def _headers(self, headers: Mapping[str, Any]) -> dict[str, list[str]]:
        listed = {name: values if isinstance(values, list) else [values] for name, values in headers.items()}
        return {
            name: [self.text(value) for value in values]
            for name, values in listed.items()
            if name.lower() in KEPT_HEADERS
        }

    def body(self, body: bytes | None) -> bytes | None:
        """Return scrubbed and indented JSON; other bodies are not kept."""
        if not body:
            return None
        try:
            value = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"{SCRUBBED}: {len(body)} bytes that are no JSON".encode()
        return msgspec.json.format(_encode(self.value(value)), indent=2)

    def value(self, value: Any, *, closed: bool = False) -> Any:
        match value:
            case dict():
                return {key: self._member(str(key), one, closed=closed) for key, one in value.items()}
            case list():
                return [self.value(one, closed=closed) for one in value]
            case str():
                return SCRUBBED if closed and value else self.text(value)
            case bool() | None:
                return value
            case _:
                return 0 if closed else value

    def _member(self, key: str, value: Any, *, closed: bool) -> Any:
        if key.lower() in PERSONAL:
            return SCRUBBED if value else value
        return self.value(value, closed=(closed and key != "object") or key.lower() in CLOSED)

    def text(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, SCRUBBED)
        host = urlsplit(self.base_url).netloc
        text = text.replace(host, urlsplit(self.address).netloc) if host else text
        if self.code:
            text = re.sub(re.escape(self.code), RECORDED_CODE, text, flags=re.IGNORECASE)
        for pattern, instead in _TEXT:
            text = pattern.sub(instead, text)
        return text


# --- Cassettes --------------------------------------------------------------------------------------------------------


class _Literal(str):
    __slots__ = ()


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml has no types
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Literal, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)


class Readable:
    """vcrpy's own format, with the metadata at the top and bodies as blocks of text."""

    deserialize = staticmethod(yamlserializer.deserialize)

    @staticmethod
    def serialize(cassette: dict[str, Any]) -> str:
        for interaction in cassette["interactions"]:
            request, body = interaction["request"], interaction["response"]["body"]
            request["body"] = _Literal(request["body"]) if request.get("body") else None
            body["string"] = _Literal(body.get("string") or "")
        keys = ("metadata", "interactions", "version")
        ordered = {key: cassette[key] for key in keys if key in cassette}
        return str(yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True))


def new_recorder(**more: Any) -> Any:
    """Return vcrpy, configured for our cassettes."""
    recorder = vcr.VCR(match_on=("method", "path", "query"), serializer="readable", **more)
    recorder.register_serializer("readable", Readable)
    return recorder


def permit_all() -> Redemption:
    """A redemption that permits every request."""

    async def may_send() -> bool:
        return True

    return Redemption(may_send)


def granted(result: Any) -> Any:
    """Return the outcome of a redemption; the result of any other conversation unchanged."""
    match result:
        case Redeemed():
            return result.outcome
        case NotRedeemed():
            return Outcome(rejected=result.rejected, notices=result.notices)
        case _:
            return result


def summary(result: Any) -> Any:
    """Return the result of a conversation in a form that a cassette can keep."""
    match result:
        case Problem():
            return {"problem": result.category, "reason": result.reason}
        case LookedUp():
            return {"found": result.state, **summary(result.outcome)}
        case Redeemed() | NotRedeemed():
            return summary(granted(result))
        case Outcome():
            discounts = [[one.effect_type, one.line, one.cost, one.amount] for one in result.discounts]
            rejected = [[one.code, one.reason.value, one.engine_reason] for one in result.rejected]
            notices = [one.type for one in result.notices]
            return {"discounts": discounts, "rejected": rejected, "notices": notices, "redeemed": result.redeemed}
        case _:
            return {"done": True}


async def hold(script: Script, adapter: Adapter, cart: Cart, client: str = "aiohttp") -> list[Any]:
    """Hold a script's conversations one after another. A problem is a result, too."""
    wire = clients.create("httpx" if client == "httpx" else "aiohttp", connections=2)
    engine, results = Engine(wire, adapter.accounts), []
    try:
        for step in script.steps:
            try:
                results.append(
                    summary(await engine.converse(step(adapter, cart), time.monotonic() + DEADLINE_S, permit_all()))
                )
            except Problem as problem:
                results.append(summary(problem))
    finally:
        await wire.aclose()
    return results


def record(engine: str, environ: Mapping[str, str], folder: Path, *, sandbox: bool = False) -> list[Path]:
    """Record what the settings allow into the folder, and return the files. Raises `Misconfigured` and `NotRecorded`.

    `sandbox`: also record a sandbox (into a test's folder; never into that of the cassettes).
    """
    given = options(engine, environ)
    adapter = ENGINES[engine].adapter(given)
    code = environ.get("RECORD_CODE", "").strip()
    account = adapter.accounts[""]
    words = [value.rpartition(" ")[2] for name, value in account.headers if name.lower() in SECRET_HEADERS]
    scrubber = Scrubber(account.base_url, ENGINES[engine].address, tuple(words), code)
    stamp = datetime.now(UTC)
    files: list[Path] = []
    for name, script in _permitted_scripts(environ, code):
        cart = Cart(f"cassette-{stamp:%Y%m%d%H%M%S}-{name}", tuple(code if c == "?" else c for c in script.codes))
        text = _recorded(name, script, adapter, cart, scrubber, ENGINES[engine].api, stamp)
        if not text:
            continue
        if not sandbox and not LIVE.search(text):
            raise NotRecorded("this is a sandbox, and no account; nothing of it is kept")
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(text, "utf-8")
    return files


LIVE = re.compile(r"^  recorded_live: true$", re.MULTILINE)
SECRET_HEADERS = frozenset({"authorization", "x-app-id", "x-app-token"})


class NotRecorded(Exception):
    """The recording must not be kept."""


def _permitted_scripts(environ: Mapping[str, str], code: str) -> Iterator[tuple[str, Script]]:
    for name, script in SCRIPTS.items():
        if (code or "?" not in script.codes) and (environ.get("RECORD_REDEMPTIONS") == "1" or not script.redeems):
            yield name, script


def _recorded(
    name: str, script: Script, adapter: Adapter, cart: Cart, scrubber: Scrubber, api: str, stamp: datetime
) -> str:
    """Return the text of one cassette; "" if the adapter sent no request. Raises `NotRecorded`."""
    recorder = new_recorder(
        record_mode=RecordMode.ALL,
        decode_compressed_response=True,
        before_record_request=scrubber.request,
        before_record_response=scrubber.response,
    )
    with tempfile.TemporaryDirectory() as aside:
        draft = Path(aside) / "cassette.yaml"
        with recorder.use_cassette(draft) as cassette:
            results = asyncio.run(hold(script, adapter, cart))
            if not len(cassette):
                return ""
            live = not any("x-sandbox" in map(str.lower, response["headers"]) for response in cassette.responses)
            about = {
                "recorded_live": live,
                "statement": "Recorded live from a real account." if live else "Not recorded live: from the sandbox.",
                "made": "recorded",
                "shows": script.shows,
                "recorded_on": f"{stamp:%Y-%m-%d}",
                "api": api,
                "changes": "Secrets, personal data, codes and the account's address are replaced; JSON is indented.",
                "script": name,
                "session": cart.session,
                "results": scrubber.value(results),
            }
            for key, value in about.items():
                cassette.get_metadata(key, value)
        text = draft.read_text("utf-8")
    kept = [secret for secret in (*scrubber.secrets, scrubber.code) if secret and secret.lower() in text.lower()]
    if kept:
        raise NotRecorded(f"{len(kept)} of the secrets would stand in {name}.yaml; it was not written")
    return text


# --- The command ------------------------------------------------------------------------------------------------------


def main(environ: Mapping[str, str], cassettes: Path = CASSETTES) -> int:
    """Return the exit code: 0 recorded, 1 failed, 2 no account to record from."""
    ready = [engine for engine, source in ENGINES.items() if all(environ.get(name) for name in source.needs)]
    for engine, source in ENGINES.items():
        if engine not in ready:
            missing = ", ".join(name for name in source.needs if not environ.get(name))
            sys.stderr.write(f"{engine}: not recorded; set {missing} to those of a real account.\n")
    if not ready:
        sys.stderr.write("Nothing was recorded: there is no account. The cassettes stay as they are.\n")
        return 2
    for engine in ready:
        try:
            files = record(engine, environ, cassettes / engine / "live")
        except (Misconfigured, NotRecorded) as error:
            sys.stderr.write(f"{engine}: {error}\n")
            return 1
        sys.stdout.writelines(f"recorded {file}\n" for file in files)
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
