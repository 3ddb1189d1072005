"""Who may call: the signature Nacelle puts on a body, and its alternatives (CONTRACT section 2).

The signature is HMAC-SHA256 over the body bytes exactly as received, keyed with the secret's UTF-8 bytes, in hex, with
or without the prefix `sha256=`. It is the scheme of GitHub's webhooks, whose published vector is among the tests.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mapper.domain.errors import BadSignature, Forbidden

SIGNATURE = b"x-nacelle-signature-sha256"
SPACE = b"x-nacelle-space-id"

_HEX = re.compile(rb"(?:sha256=)?([0-9a-fA-F]{64})")

Headers = Iterable[tuple[bytes, bytes]]
"""Header names in lower case, with their values, as ASGI hands them over."""


@dataclass(frozen=True)
class Credentials:
    """What a caller must show. Its `repr` shows no secret."""

    auth: Literal["signature", "secret_header", "both"]
    secrets: Sequence[bytes] = field(repr=False, default=())
    """Every secret that is valid now; the first signs."""
    header: bytes = b"secret"
    """The header for `secret_header`, in lower case."""
    header_values: Sequence[bytes] = field(repr=False, default=())
    spaces: frozenset[str] = frozenset()
    """The spaces served; empty for any."""


def sign(body: bytes, secret: bytes) -> str:
    """The header's value for a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def verify(body: bytes, headers: Headers, credentials: Credentials) -> str:
    """Checks a caller before anything of the body is read; returns its space id ("" where none is named).

    Raises `BadSignature` or `Forbidden`.
    """
    headers = list(headers)
    if credentials.auth != "secret_header":
        _verify_signature(body, headers, credentials)
    if credentials.auth != "signature":
        _verify_header(headers, credentials)
    spaces = _values(headers, SPACE)
    space = spaces[0].decode("latin-1").strip() if len(spaces) == 1 else ""
    if credentials.spaces and space not in credentials.spaces:
        raise Forbidden("This service does not serve the space of the request.", reason="space_not_served")
    return space


def _verify_signature(body: bytes, headers: Headers, credentials: Credentials) -> None:
    match = _HEX.fullmatch(_only(headers, SIGNATURE))
    if match is None:
        raise BadSignature("malformed")
    given = match[1].lower()
    expected = [hmac.new(secret, body, hashlib.sha256).hexdigest().encode() for secret in credentials.secrets]
    if not is_one_of(given, expected):
        raise BadSignature("wrong")


def _verify_header(headers: Headers, credentials: Credentials) -> None:
    if not is_one_of(_only(headers, credentials.header), credentials.header_values):
        raise BadSignature("wrong_header")


def is_one_of(given: bytes, expected: Iterable[bytes]) -> bool:
    """Constant time, on bytes (text that is not ASCII would raise), every candidate looked at."""
    found = False
    for candidate in expected:
        found |= hmac.compare_digest(given, candidate)
    return found


def _only(headers: Headers, name: bytes) -> bytes:
    values = _values(headers, name)
    if len(values) != 1:
        raise BadSignature("doubled" if values else "missing")
    return values[0]


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]
