"""The receipt proves to consume that session, customer and prices are those that validate answered.

`promotions.meta.mapper` passes through the merchant's front end, where anybody could replace the session id and have
another session closed. So validate signs its answer, with a key that is derived from the signing secret.

The format is `2.<key id>.<engine>.<space>.<unix time>.<customer>.<sha256 of the content>.<hmac>`, with free text
percent-encoded. The HMAC also covers the `session` and `degraded` members next to the receipt. The content is lines,
list prices and discounts; all other prices and totals must follow from them. Version, key id, engine and space are not
hidden, so that a receipt from elsewhere is not mistaken for a forged one. Version 1 has no key id, space or customer:
`1.<unix time>.<sha256>.<hmac>`.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from mapper.domain import fields, money
from mapper.domain.checkout import Checkout
from mapper.domain.discounts import Allocation
from mapper.domain.document import Path
from mapper.domain.errors import Forbidden, InvalidRequest
from mapper.domain.families import Names
from mapper.domain.lines import Line
from mapper.domain.signature import is_one_of

_TOKEN = re.compile(
    r"2\.(?P<key>[0-9a-f]{16})\.(?P<engine>[a-z0-9_]+)\.(?P<space>[^.]*)\."
    r"(?P<time>[0-9]{1,12})\.(?P<customer>[^.]*)\.(?P<content>[0-9a-f]{64})\.(?P<mac>[0-9a-f]{64})",
    re.ASCII,
)
_ADDRESS = re.compile(r"2\.([0-9a-f]{16})\.([a-z0-9_]+)\.([^.]*)\.", re.ASCII)
"""The start of a receipt, even where the rest is malformed."""
_TOKEN_1 = re.compile(r"1\.(?P<time>[0-9]{1,12})\.(?P<content>[0-9a-f]{64})\.(?P<mac>[0-9a-f]{64})", re.ASCII)
_KEY, _KEY_1 = b"promotions-mapper receipt 2", b"promotions-mapper receipt 1"
_CLOCK_SKEW_S = 300


@dataclass(frozen=True)
class Receipt:
    """A receipt with a valid MAC. Its session and customer can be trusted, even where it has expired."""

    session: str
    customer: str
    """The customer at validate; "" for a guest."""
    degraded: bool
    expired: bool
    same_content: bool
    """Whether the body still has the lines, prices and discounts that validate answered."""

    def matches(self, customer: str) -> bool:
        """Whether the prices of an order for this customer ("" for none) can be trusted.

        The order of a guest may name a customer, but the customer of the receipt cannot be replaced by another.
        """
        return not self.expired and self.same_content and (not self.customer or customer in ("", self.customer))


@dataclass(frozen=True)
class Receipts:
    """Writes and reads the receipts of one space and engine.

    `secrets` are the signing secrets of the caller: the first one signs, and all of them and of `retired` verify.
    """

    secrets: Sequence[bytes] = field(repr=False)
    engine: str
    ttl_s: int
    space: str = ""
    retired: Sequence[bytes] = field(repr=False, default=())

    def write(self, session: str, customer: str, degraded: bool, content: bytes, now: float) -> str:
        signed = f"{self._address}.{int(now)}.{_quoted(customer)}.{content.hex()}"
        return f"{signed}.{self._keys[0].mac(signed, session, degraded)}"

    def read(self, checkout: Checkout, now: float) -> Receipt | None:
        """The receipt in a body; None where there is none of this space, this engine and a known key.

        Raises `Forbidden` where it names all three and its MAC is wrong.
        """
        verified = self._verify(checkout)
        if verified is None:
            return None
        return Receipt(
            session=verified.session,
            customer=verified.customer,
            degraded=verified.degraded,
            expired=not -_CLOCK_SKEW_S <= now - verified.time <= self.ttl_s,
            same_content=verified.content == content_of(checkout).hex() and _adds_up(checkout),
        )

    def session_if_ours(self, checkout: Checkout) -> str | None:
        """The session of the receipt in a body; None where `read` finds none, or raises."""
        try:
            verified = self._verify(checkout)
        except Forbidden:
            return None
        return verified.session if verified else None

    def _verify(self, checkout: Checkout) -> "_Verified | None":
        note = checkout.promotions.meta.get("mapper")
        token = note.get("receipt") if isinstance(note, dict) else None
        if not isinstance(note, dict) or not isinstance(token, str):
            return None
        session, degraded = note.get("session"), note.get("degraded", False)
        if not isinstance(session, str) or not isinstance(degraded, bool):
            session, degraded = "", False  # no valid receipt has this session
        if match := _TOKEN_1.fullmatch(token):
            return self._verify_1(match, session, degraded)
        key = self._claimed_key(token)
        if key is None:
            return None
        match = _TOKEN.fullmatch(token)
        mac = key.mac(token.rpartition(".")[0], session, degraded)
        if match is None or not is_one_of(match["mac"].encode(), [mac.encode()]):
            raise Forbidden(
                "The receipt in promotions.meta.mapper was not written by this service.", reason="forged_receipt"
            )
        return _Verified(session, unquote(match["customer"]), degraded, int(match["time"]), match["content"])

    def _claimed_key(self, token: str) -> "_Key | None":
        """The key that the receipt names; None where the key is unknown, or the space or the engine is another one."""
        address = _ADDRESS.match(token)
        if address is None or (address[2], unquote(address[3])) != (self.engine, self.space):
            return None
        return next((key for key in self._keys if key.id == address[1]), None)

    @cached_property
    def _keys(self) -> Sequence["_Key"]:
        return [_Key(secret) for secret in (*self.secrets, *self.retired)]

    @cached_property
    def _address(self) -> str:
        """The start of the receipts that are written."""
        return f"2.{self._keys[0].id}.{self.engine}.{_quoted(self.space)}"

    def _verify_1(self, match: "re.Match[str]", session: str, degraded: bool) -> "_Verified | None":
        """A receipt of version 1; None where the MAC is wrong. It does not name its key, so it is not called forged."""
        message = msgspec.json.encode(["1", match["time"], self.engine, session, degraded, match["content"]])
        keys = [hmac.digest(secret, _KEY_1, "sha256") for secret in (*self.secrets, *self.retired)]
        macs = [hmac.new(key, message, hashlib.sha256).hexdigest().encode() for key in keys]
        if not is_one_of(match["mac"].encode(), macs):
            return None
        return _Verified(session, "", degraded, int(match["time"]), match["content"])


class _Verified(NamedTuple):
    """What a receipt with a valid MAC says."""

    session: str
    customer: str
    degraded: bool
    time: int
    content: str
    """The digest, in hex."""


class _Key:
    """A key for receipts, and its public id."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _KEY, "sha256")
        self.id = hmac.digest(self._key, b"key id", "sha256").hex()[:16]

    def mac(self, signed: str, session: str, degraded: bool) -> str:
        message = msgspec.json.encode([signed, session, degraded])
        return hmac.digest(self._key, message, "sha256").hex()


def _quoted(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E")


def content_of(checkout: Checkout, allocation: Allocation | None = None) -> bytes:
    """The digest of lines and discounts, whatever their family and their order.

    The discounts are those of `allocation`, which validate is about to write, or those that the body carries.
    """
    discounts = allocation.line_totals if allocation else {line.index: line.discount for line in checkout.lines}
    lines = [(line.name, line.quantity, line.list_price, discounts.get(line.index, 0)) for line in checkout.lines]
    root_discount = allocation.root_total if allocation else checkout.root_discount
    content: list[Any] = [checkout.currency, sorted(lines), root_discount]
    return hashlib.sha256(msgspec.json.encode(content)).digest()


def _adds_up(checkout: Checkout) -> bool:
    """Whether all prices and totals in a body follow from what `content_of` covers. Somebody may have changed just one.

    A line may have its list price back, since its discount says what is off.
    """
    for line in checkout.lines:
        reduced = money.unit_price(line.gross - line.discount, line.quantity) if line.discount else line.list_price
        if line.price not in (reduced, line.list_price):
            return False
        if line.names.has_list and _listed(line, checkout.digits) != line.discount:
            return False
    try:
        return all(
            _amount(decoded, key, path, checkout) == total
            for path, decoded, names, total in _totals(checkout)
            for key in names.totals
            if decoded.get(key) is not None
        )
    except InvalidRequest:  # a second total, which nothing else reads
        return False


def _listed(line: Line, digits: int) -> int:
    entries = line.decoded[line.names.list]
    if any(isinstance(entry["amount"], float) for entry in entries):
        entries = fields.entries(line.source, line.names.list, line.pointer)
    return sum(fields.entry_amount(entry, line.pointer, digits) for entry in entries)


def _amount(decoded: Mapping[str, Any], key: str, path: Path, checkout: Checkout) -> int:
    """An amount of the object at `path`; one that is a JSON number is read from its digits."""
    if isinstance(decoded[key], str):
        return fields.amount(decoded[key], checkout.digits, key)
    return fields.scalar_amount(checkout.source.object(path), key, "", checkout.digits)


def _totals(checkout: Checkout) -> Iterator[tuple[Path, Mapping[str, Any], Names, int]]:
    """Each object that has a total discount: its path, members, names, and what that total must be."""
    for line in checkout.lines:
        yield line.path, line.decoded, line.names, line.discount
    for order in checkout.orders:
        if order.path:
            total = sum(line.discount for line in order.lines)
            yield order.path, checkout.source.decoded_at(order.path), order.names, total
    total = sum(line.discount for line in checkout.lines) + checkout.root_discount
    yield (), checkout.source.decoded, checkout.names, total
