"""Authenticates callers, by Nacelle's signature of the body or a secret header.

The signature is HMAC-SHA256 over the body bytes exactly as received, keyed with the secret's UTF-8 bytes, in hex, with
or without the prefix `sha256=`. It is the scheme of GitHub's webhooks, whose published vector is among the tests.
"""

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mapper.domain.errors import BadSignature, Forbidden

SIGNATURE = b"x-nacelle-signature-sha256"
SPACE = b"x-nacelle-space-id"

_HEX = re.compile(rb"(?:sha256=)?[0-9a-fA-F]{64}")

Headers = Sequence[tuple[bytes, bytes]]
"""Header names in lower case, with their values, as ASGI hands them over."""


@dataclass(frozen=True)
class Credentials:
    """The credentials that callers must have. Its `repr` shows no secret."""

    auth: Literal["signature", "secret_header", "both"]
    secrets: Sequence[bytes] = field(repr=False, default=())
    """The secrets that are valid for every space; the first one signs."""
    headers: Sequence[tuple[bytes, bytes]] = field(repr=False, default=())
    """The required headers (names in lower case). A name that is here twice may have either value."""
    spaces: frozenset[str] = frozenset()
    """The spaces served; empty for any."""
    by_space: Mapping[str, Sequence[bytes]] = field(repr=False, default_factory=dict)
    """The secrets that are valid for one space."""

    @property
    def tells_spaces_apart(self) -> bool:
        """Whether the space is part of keys, sessions and receipts: only where several are served.

        The header that names the space is not signed.
        """
        return len(self.spaces) > 1

    def of(self, space: str) -> tuple[bytes, ...]:
        """The secrets that are valid for a space; the first one signs."""
        return (*self.by_space.get(space, ()), *self.secrets)

    @cached_property
    def all_secrets(self) -> tuple[bytes, ...]:
        return (*self.secrets, *(secret for secrets in self.by_space.values() for secret in secrets))


def sign(body: bytes, secret: bytes) -> str:
    """The header's value for a body."""
    return "sha256=" + hmac.digest(secret, body, "sha256").hex()


def verify(body: bytes, headers: Headers, credentials: Credentials) -> str:
    """Authenticates a caller before the body is parsed. Returns the space id, "" where spaces are not told apart.

    Raises `BadSignature` or `Forbidden`.
    """
    spaces = _values(headers, SPACE)
    space = spaces[0].decode("latin-1").strip() if len(spaces) == 1 else ""
    served = not credentials.spaces or space in credentials.spaces
    if credentials.auth != "secret_header":
        # A known caller of a space that is not served gets 403, not 401.
        _verify_signature(body, headers, _signing(credentials, space, served=served))
    _verify_headers(headers, credentials)
    if not served:
        raise Forbidden("This service does not serve the space of the request.", reason="space_not_served")
    return space if credentials.tells_spaces_apart else ""


def _signing(credentials: Credentials, space: str, *, served: bool) -> Sequence[bytes]:
    return credentials.of(space) if served and credentials.spaces else credentials.all_secrets


def _verify_signature(body: bytes, headers: Headers, secrets: Sequence[bytes]) -> None:
    given = _only(headers, SIGNATURE)
    signature = given.removeprefix(b"sha256=").lower()
    if not is_one_of(signature, [hmac.digest(secret, body, "sha256").hex().encode() for secret in secrets]):
        raise BadSignature("wrong" if _HEX.fullmatch(given) else "malformed")


def _verify_headers(headers: Headers, credentials: Credentials) -> None:
    if credentials.auth != "signature" and not credentials.headers:
        raise BadSignature("no_secret_configured")
    for name in dict.fromkeys([name for name, _ in credentials.headers]):
        allowed = [value for expected, value in credentials.headers if expected == name]
        if not is_one_of(_only(headers, name), allowed):
            raise BadSignature("wrong_header")


def is_one_of(value: bytes, candidates: Iterable[bytes]) -> bool:
    """Compares with every candidate, in constant time; as bytes, since `compare_digest` refuses non-ASCII text."""
    found = False
    for candidate in candidates:
        found |= hmac.compare_digest(value, candidate)
    return found


def _only(headers: Headers, name: bytes) -> bytes:
    values = _values(headers, name)
    if len(values) != 1:
        raise BadSignature("doubled" if values else "missing")
    return values[0]


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]
