"""The receipt: how consume knows that a session and its prices are those that validate gave out.

`promotions.meta.mapper` travels through the merchant's front end, where anybody could put another session's id into it
and have that session closed. So validate signs what it answered, with a key derived from the signing secret, and
consume trusts a session id only under a valid receipt.

A receipt reads `1.<unix time>.<sha256 of the content>.<hmac>`. The HMAC covers version, time, engine, session, the
degraded flag and the digest of the content: lines, list prices and discounts.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mapper.domain.checkout import Checkout
from mapper.domain.errors import Forbidden
from mapper.domain.signature import is_one_of

_TOKEN = re.compile(r"1\.([0-9]{1,12})\.([0-9a-f]{64})\.([0-9a-f]{64})", re.ASCII)
_KEY = b"promotions-mapper receipt 1"
_CLOCK_SKEW_S = 300


@dataclass(frozen=True)
class Receipt:
    """A receipt that is ours and has not expired."""

    session: str
    degraded: bool
    matches: bool
    """Whether the lines, list prices and discounts are still those that validate answered."""


@dataclass(frozen=True)
class Receipts:
    """Writes and reads receipts. `secrets` are the caller's secrets: the first signs, each of them verifies."""

    secrets: Sequence[bytes]
    engine: str
    ttl_s: int

    def write(self, session: str, degraded: bool, content: bytes, now: float) -> str:
        time = int(now)
        return f"1.{time}.{content.hex()}.{self._mac(self.secrets[0], session, degraded, str(time), content.hex())}"

    def read(self, checkout: Checkout, now: float) -> Receipt | None:
        """The receipt in a body; None where there is none, or it has expired. Raises `Forbidden` where it is forged."""
        note = checkout.promotions.meta.get("mapper")
        if not isinstance(note, dict) or note.get("receipt") is None:
            return None
        token, session, degraded = note["receipt"], note.get("session"), note.get("degraded", False)
        match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None or not isinstance(session, str) or not isinstance(degraded, bool):
            raise _forged()
        time, content, mac = match.groups()
        macs = [self._mac(secret, session, degraded, time, content).encode() for secret in self.secrets]
        if not is_one_of(mac.encode(), macs):
            raise _forged()
        if not -_CLOCK_SKEW_S <= now - int(time) <= self.ttl_s:
            return None
        return Receipt(session=session, degraded=degraded, matches=content == content_of(checkout).hex())

    def _mac(self, secret: bytes, session: str, degraded: bool, time: str, content: str) -> str:
        key = hmac.digest(secret, _KEY, "sha256")
        message = msgspec.json.encode(["1", time, self.engine, session, degraded, content])
        return hmac.new(key, message, hashlib.sha256).hexdigest()


def _forged() -> Forbidden:
    return Forbidden("The receipt in promotions.meta.mapper was not written by this service.", reason="forged_receipt")


def content_of(checkout: Checkout) -> bytes:
    """The digest of what a body says about its lines and discounts, whatever family and order they come in."""
    lines = sorted((line.name, line.quantity, line.list_price, line.discount) for line in checkout.lines)
    return digest(checkout.currency, lines, checkout.root_discount)


def digest(currency: str, lines: list[tuple[str, int, int, int]], root_discount: int) -> bytes:
    """`lines`: sorted (name, quantity, unit list price, line discount), amounts in minor units."""
    content: list[Any] = [currency, lines, root_discount]
    return hashlib.sha256(msgspec.json.encode(content)).digest()
