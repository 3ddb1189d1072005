"""A fake engine: an adapter that returns configured results, and a transport that fails on demand."""

import asyncio
import atexit
import dataclasses
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from mapper.adapter import (
    CONTRACT,
    Account,
    Capabilities,
    Conversation,
    EngineRejected,
    EngineReply,
    EngineRequest,
    LookedUp,
    NotRedeemed,
    Option,
    Outcome,
    Redeemed,
)
from mapper.domain.checkout import Checkout
from mapper.domain.signature import sign
from mapper.settings import Settings, load

SECRET = b"a signing secret that is long enough"


_FOLDER = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def new_ledger() -> str:
    """Return the URL of a ledger that does not exist yet."""
    return f"sqlite:///{_FOLDER}/{uuid.uuid4().hex}.db"


CAPABILITIES = Capabilities(
    check=True,
    undo=True,
    repair=True,
    referral=True,
    loyalty=True,
    gift_cards=True,
    automatic=True,
    currencies="many",
    most_codes=None,
)
Effect = Literal["none", "session", "redeems"]


class FakeAdapter:
    """Each conversation is one request, `/<name of the method>`; its result is configured."""

    name = "fake"
    cost_pointers: tuple[str, ...] = ()
    contract = CONTRACT
    options: tuple[Option, ...] = ()

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.accounts: Mapping[str, Account] = {
            "": Account("https://engine.test", (("Authorization", "the engine's key"),))
        }
        self.granted = Outcome()
        self.on_check: Outcome | None = None
        """The result of check, if not `granted`."""
        self.on_redeem: Outcome | NotRedeemed | Exception | None = None
        """The result of redeem, if not `granted`."""
        self.found = LookedUp("absent")
        self.capabilities = CAPABILITIES
        self.sessions: list[tuple[str, str]] = []
        """(method, session) of every started conversation."""
        self.customers: list[str] = []
        """The customer of each redemption."""
        self.attempts: list[str] = []
        """The attempt (for an idempotency key) of each redemption."""
        self.handle = ""
        self.handles: list[str] = []
        """The handle of each undo."""
        self.undone_orders: list[Checkout | None] = []
        self.looked_up: list[tuple[Checkout, str]] = []
        """(order, handle) of each look-up."""
        self.undone: list[tuple[str, bool]] = []
        """(session, final) of each undo."""
        self.surplus: list[tuple[str, ...]] = []
        """The extra redemptions of each repair."""

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        yield self._request("validate", session, repeatable=True)
        return self.granted

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        yield self._request("check", session, repeatable=True)
        return self.on_check if self.on_check is not None else self.granted

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        self.customers.append(order.customer)
        self.attempts.append(order.attempt)
        yield self._request("redeem", session, repeatable=False)
        if isinstance(self.on_redeem, Exception):
            raise self.on_redeem
        if isinstance(self.on_redeem, NotRedeemed):
            return self.on_redeem
        return Redeemed(self.granted if self.on_redeem is None else self.on_redeem, self.handle)

    def look_up(self, order: Checkout, session: str, handle: str) -> Conversation[LookedUp]:
        self.looked_up.append((order, handle))
        yield self._request("look_up", session, repeatable=True)
        return self.found

    def undo(self, order: Checkout | None, session: str, handle: str, *, final: bool) -> Conversation[None]:
        self.handles.append(handle)
        self.undone_orders.append(order)
        self.undone.append((session, final))
        return self._command("undo", session)

    def repair(self, order: Checkout, session: str, extra: tuple[str, ...]) -> Conversation[None]:
        self.surplus.append(extra)
        return self._command("repair", session)

    def _command(self, operation: str, session: str) -> Conversation[None]:
        reply = yield self._request(operation, session, repeatable=True)
        if reply.status >= 400:
            raise EngineRejected("The engine refuses.", reason="engine_key")

    def _request(self, operation: str, session: str, *, repeatable: bool) -> EngineRequest:
        assert isinstance(session, str)
        assert session, "the core names the session of every conversation"
        self.sessions.append((operation, session))
        effect: Effect = "redeems" if operation == "redeem" else "none"
        return EngineRequest(
            operation=operation, method="POST", path=f"/{operation}", effect=effect, repeatable=repeatable
        )


class FakeTransport:
    """Answers 200 with `reply`, unless `script` has statuses or exceptions for an operation: then these, in turn."""

    def __init__(self) -> None:
        self.script: dict[str, list[int | Exception]] = {}
        self.sent: list[str] = []
        self.timeouts: list[tuple[str, float]] = []
        """(operation, time limit) of every request."""
        self.pause = 0.0
        self.reply = b"{}"

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        operation = url.rsplit("/", 1)[-1]
        self.sent.append(operation)
        self.timeouts.append((operation, timeout_s))
        await asyncio.sleep(self.pause)
        pending = self.script.get(operation)
        step = pending.pop(0) if pending else 200
        if isinstance(step, Exception):
            raise step
        return EngineReply(status=step, headers={}, body=self.reply)

    async def aclose(self) -> None:
        pass


INGESTING = {"MAPPER_INGEST_TOKEN": "a token for ingesting", "NOMS_TOKEN": "noms-token", "NOMS_SPACE_ID": "space"}
"""Settings with which `POST /orders/ingest` is served."""


def settings(adapter: FakeAdapter, **environment: str) -> Settings:
    """Return settings for a fake engine: loaded as the service loads them, with the adapter replaced."""
    least = {
        "MAPPER_ENGINE": "talon_one",
        "TALON_ONE_BASE_URL": "https://engine.test",
        "TALON_ONE_API_KEY": "key",
        "NACELLE_SIGNING_SECRETS": SECRET.decode(),
    }
    return dataclasses.replace(load({**least, **environment}), adapter=adapter)


def signed(body: object, **headers: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return a body's bytes and its headers, signed as Nacelle signs."""
    return signed_with(SECRET, body, **headers)


def signed_with(secret: bytes, body: object, **headers: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    sent = {"x-nacelle-signature-sha256": sign(data, secret), "content-type": "application/json", **headers}
    return data, [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
