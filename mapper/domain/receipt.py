"""The receipt: how consume knows that a session, a shopper and prices are those that validate gave out.

`promotions.meta.mapper` travels through the merchant's front end, where anybody could put another session's id into it
and have that session closed. So validate signs what it answered, with a key derived from the signing secret.

A receipt reads `2.<key id>.<engine>.<space>.<unix time>.<customer>.<sha256 of the content>.<hmac>`; free text is
percent-encoded. The HMAC covers all of it, and the `session` and `degraded` beside it. The content is lines, list
prices and discounts. Version, key id, engine and space are readable, so that somebody else's receipt is told from one
that was tampered with. Version 1 had neither key id, space nor customer: `1.<unix time>.<sha256>.<hmac>`.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from mapper.domain.checkout import Checkout
from mapper.domain.errors import Forbidden
from mapper.domain.signature import is_one_of

_TOKEN = re.compile(
    r"2\.(?P<key>[0-9a-f]{16})\.(?P<engine>[a-z0-9_]+)\.(?P<space>[^.]*)\."
    r"(?P<time>[0-9]{1,12})\.(?P<customer>[^.]*)\.(?P<content>[0-9a-f]{64})\.(?P<mac>[0-9a-f]{64})",
    re.ASCII,
)
_ADDRESS = re.compile(r"2\.([0-9a-f]{16})\.([a-z0-9_]+)\.([^.]*)\.", re.ASCII)
"""What is readable of a receipt, however the rest looks."""
_TOKEN_1 = re.compile(r"1\.(?P<time>[0-9]{1,12})\.(?P<content>[0-9a-f]{64})\.(?P<mac>[0-9a-f]{64})", re.ASCII)
_KEY, _KEY_1 = b"promotions-mapper receipt 2", b"promotions-mapper receipt 1"
_CLOCK_SKEW_S = 300


@dataclass(frozen=True)
class Receipt:
    """A receipt that is ours: what it says of session and customer is true, however old it is."""

    session: str
    customer: str
    """The shopper whom validate priced the cart for; "" for a guest."""
    degraded: bool
    expired: bool
    same_content: bool
    """Whether lines, list prices and discounts are still those that validate answered."""

    def matches(self, customer: str) -> bool:
        """Whether the prices of an order for this customer ("" where it names none) can be taken from validate.

        A guest may have become a customer since; nobody becomes somebody else.
        """
        return not self.expired and self.same_content and (not self.customer or customer in ("", self.customer))


@dataclass(frozen=True)
class Receipts:
    """Writes and reads the receipts of one space and engine.

    `secrets` are the caller's secrets: the first signs, each of them verifies, and so does each of `retired`.
    """

    secrets: Sequence[bytes] = field(repr=False)
    engine: str
    ttl_s: int
    space: str = ""
    retired: Sequence[bytes] = field(repr=False, default=())

    def write(self, session: str, customer: str, degraded: bool, content: bytes, now: float) -> str:
        key = self._keys[0]
        signed = ".".join(
            ("2", key.id, self.engine, _quoted(self.space), str(int(now)), _quoted(customer), content.hex())
        )
        return f"{signed}.{key.mac(signed, session, degraded)}"

    def read(self, checkout: Checkout, now: float) -> Receipt | None:
        """The receipt in a body; None where there is none of this space, engine and these secrets.

        Raises `Forbidden` where it claims to be one, and is not.
        """
        note = checkout.promotions.meta.get("mapper")
        token = note.get("receipt") if isinstance(note, dict) else None
        if not isinstance(note, dict) or not isinstance(token, str):
            return None
        session, degraded = note.get("session"), note.get("degraded", False)
        if not isinstance(session, str) or not isinstance(degraded, bool):
            session, degraded = "", False  # which no receipt is written for
        if match := _TOKEN_1.fullmatch(token):
            return self._read_1(match, session, degraded, checkout, now)
        key = self._claimed_key(token)
        if key is None:
            return None
        match = _TOKEN.fullmatch(token)
        mac = key.mac(token.rpartition(".")[0], session, degraded)
        if match is None or not is_one_of(match["mac"].encode(), [mac.encode()]):
            raise Forbidden(
                "The receipt in promotions.meta.mapper was not written by this service.", reason="forged_receipt"
            )
        return self._receipt(match, session, unquote(match["customer"]), degraded, checkout, now)

    def read_if_ours(self, checkout: Checkout, now: float) -> Receipt | None:
        """As `read`; what cannot be verified is ignored."""
        try:
            return self.read(checkout, now)
        except Forbidden:
            return None

    def _claimed_key(self, token: str) -> "_Key | None":
        """The key that a receipt of this space and engine says that it was signed with, where we know it."""
        address = _ADDRESS.match(token)
        if address is None or (address[2], unquote(address[3])) != (self.engine, self.space):
            return None
        return next((key for key in self._keys if key.id == address[1]), None)

    @cached_property
    def _keys(self) -> Sequence["_Key"]:
        return [_Key(secret) for secret in (*self.secrets, *self.retired)]

    def _read_1(
        self, match: "re.Match[str]", session: str, degraded: bool, checkout: Checkout, now: float
    ) -> Receipt | None:
        """A receipt of the version before. It does not say whose it is: what cannot be verified may be anybody's."""
        message = msgspec.json.encode(["1", match["time"], self.engine, session, degraded, match["content"]])
        keys = [hmac.digest(secret, _KEY_1, "sha256") for secret in (*self.secrets, *self.retired)]
        macs = [hmac.new(key, message, hashlib.sha256).hexdigest().encode() for key in keys]
        if not is_one_of(match["mac"].encode(), macs):
            return None
        return self._receipt(match, session, "", degraded, checkout, now)

    def _receipt(
        self, match: "re.Match[str]", session: str, customer: str, degraded: bool, checkout: Checkout, now: float
    ) -> Receipt:
        return Receipt(
            session=session,
            customer=customer,
            degraded=degraded,
            expired=not -_CLOCK_SKEW_S <= now - int(match["time"]) <= self.ttl_s,
            same_content=match["content"] == content_of(checkout).hex(),
        )


class _Key:
    """The key that receipts are signed with, and its name."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _KEY, "sha256")
        self.id = hmac.digest(self._key, b"key id", "sha256").hex()[:16]

    def mac(self, signed: str, session: str, degraded: bool) -> str:
        message = msgspec.json.encode([signed, session, degraded])
        return hmac.digest(self._key, message, "sha256").hex()


def _quoted(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E")


def content_of(checkout: Checkout) -> bytes:
    """The digest of what a body says about its lines and discounts, whatever family and order they come in."""
    lines = sorted((line.name, line.quantity, line.list_price, line.discount) for line in checkout.lines)
    return digest(checkout.currency, lines, checkout.root_discount)


def digest(currency: str, lines: list[tuple[str, int, int, int]], root_discount: int) -> bytes:
    """`lines`: sorted (name, quantity, unit list price, line discount), amounts in minor units."""
    content: list[Any] = [currency, lines, root_discount]
    return hashlib.sha256(msgspec.json.encode(content)).digest()
