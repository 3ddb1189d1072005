import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper.domain.errors import BadSignature, Forbidden
from mapper.domain.signature import Credentials, sign, verify

SECRET = b"a signing secret, long enough"
OLD = b"the secret before this one"
BODY = b'{"items": []}'
HEX = sign(BODY, SECRET).removeprefix("sha256=")

# GitHub's published example for its webhooks, which use the same scheme.
GITHUB = (
    b"It's a Secret to Everybody",
    b"Hello, World!",
    "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
)

# RFC 4231, section 4: (key, data, HMAC-SHA-256).
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First",
     "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
    (b"\xaa" * 131, (b"This is a test using a larger than block-size key and a larger than block-size data. "
                      b"The key needs to be hashed before being used by the HMAC algorithm."),
     "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
]  # fmt: skip


def credentials(**more: object) -> Credentials:
    return Credentials(**{"auth": "signature", "secrets": (SECRET, OLD)} | more)  # type: ignore[arg-type]


def headers(*signatures: str | bytes, **others: bytes) -> list[tuple[bytes, bytes]]:
    named = [(name.replace("_", "-").encode(), value) for name, value in others.items()]
    return named + [
        (b"x-nacelle-signature-sha256", value if isinstance(value, bytes) else value.encode()) for value in signatures
    ]


@pytest.mark.parametrize(("secret", "body", "expected"), [GITHUB, *RFC_4231])
def test_published_test_vectors_verify(secret: bytes, body: bytes, expected: str) -> None:
    assert sign(body, secret) == f"sha256={expected}"
    assert verify(body, headers(expected), Credentials("signature", (secret,))) == ""


@pytest.mark.parametrize("given_", [HEX, HEX.upper(), f"sha256={HEX}", f"sha256={HEX.upper()}", sign(BODY, OLD)])
def test_signature_is_accepted_in_any_case_with_or_without_prefix(given_: str) -> None:
    verify(BODY, headers(given_), credentials())


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ([], "missing"),
        ([HEX, HEX], "doubled"),
        ([HEX, "0" * 64], "doubled"),
        (["0" * 64, HEX], "doubled"),
        ([""], "malformed"),
        ([HEX[:-1]], "malformed"),
        ([HEX + "0"], "malformed"),
        (["sha1=" + HEX], "malformed"),
        (["SHA256=" + HEX], "malformed"),
        (["sha256=sha256=" + HEX], "malformed"),
        ([HEX + "\n"], "malformed"),
        ([" " + HEX], "malformed"),
        ([f"{HEX},{HEX}"], "malformed"),
        (["g" * 64], "malformed"),
        ([b"\xff" * 64], "malformed"),
        (["٣" * 64], "malformed"),
        ([sign(BODY, b"some other secret")], "wrong"),
        ([("1" if HEX[0] == "0" else "0") + HEX[1:]], "wrong"),
        ([HEX[:-1] + ("1" if HEX[-1] == "0" else "0")], "wrong"),
        ([sign(BODY + b" ", SECRET)], "wrong"),
    ],
)
def test_invalid_signatures_get_the_same_message(given_: list[str], reason: str) -> None:
    with pytest.raises(BadSignature) as refusal:
        verify(BODY, headers(*given_), credentials())
    assert refusal.value.reason == reason
    assert (refusal.value.message, refusal.value.details) == (BadSignature("x").message, {})


def test_secret_is_valid_until_it_is_removed() -> None:
    """Both are valid during a rotation; afterwards the old one is wrong."""
    for secret in (SECRET, OLD):
        verify(BODY, headers(sign(BODY, secret)), Credentials("signature", (SECRET, OLD)))
    verify(BODY, headers(sign(BODY, SECRET)), Credentials("signature", (SECRET,)))
    with pytest.raises(BadSignature) as refusal:
        verify(BODY, headers(sign(BODY, OLD)), Credentials("signature", (SECRET,)))
    assert refusal.value.reason == "wrong"


@given(st.binary(max_size=200), st.integers(0, 255), st.data())
def test_one_changed_byte_invalidates_the_signature(body: bytes, other: int, data: st.DataObject) -> None:
    signed = sign(body, SECRET)
    verify(body, headers(signed), credentials())
    if body:
        at = data.draw(st.integers(0, len(body) - 1))
        changed = body[:at] + bytes([other]) + body[at + 1 :]
        if changed != body:
            with pytest.raises(BadSignature):
                verify(changed, headers(signed), credentials())


def test_key_is_the_secret_in_utf_8() -> None:
    secret = "gehäim, 秘密 and long enough"
    expected = hmac.new(secret.encode("utf-8"), BODY, hashlib.sha256).hexdigest()
    verify(BODY, headers(expected), Credentials("signature", (secret.encode(),)))


@pytest.mark.parametrize(
    ("auth", "signature", "header", "accepted"),
    [
        ("signature", True, False, True),
        ("signature", False, True, False),
        ("secret_header", False, True, True),
        ("secret_header", True, False, False),
        ("both", True, True, True),
        ("both", True, False, False),
        ("both", False, True, False),
    ],
)
def test_each_auth_mode_requires_its_credentials(auth: str, signature: bool, header: bool, accepted: bool) -> None:
    own = ((b"secret", b"the header's own secret"),) if auth != "signature" else ()
    configured = credentials(auth=auth, headers=own)
    sent = headers(*([HEX] if signature else []), **({"secret": b"the header's own secret"} if header else {}))
    if accepted:
        verify(BODY, sent, configured)
    else:
        with pytest.raises(BadSignature):
            verify(BODY, sent, configured)


def test_wrong_or_repeated_secret_header_is_refused() -> None:
    configured = credentials(auth="secret_header", headers=((b"secret", b"right"),))
    for sent in ([(b"secret", b"wrong")], [(b"secret", b"right")] * 2, [(b"secret", b"\xff\xfe")]):
        with pytest.raises(BadSignature):
            verify(BODY, sent, configured)


@pytest.mark.parametrize(
    ("spaces", "sent", "served"),
    [
        (set(), [], True),
        ({"one", "two"}, [b"two"], True),
        ({"one"}, [b"two"], False),
        ({"one"}, [], False),
        ({"one"}, [b""], False),
        ({"one"}, [b"one", b"one"], False),
        ({"one"}, [b"\xff"], False),
    ],
)
def test_space_that_is_not_served_is_forbidden(spaces: set[str], sent: list[bytes], served: bool) -> None:
    configured = credentials(spaces=frozenset(spaces))
    given_ = headers(HEX) + [(b"x-nacelle-space-id", value) for value in sent]
    if served:
        assert verify(BODY, given_, configured) == (sent[0].decode() if len(spaces) > 1 else "")
    else:
        with pytest.raises(Forbidden):
            verify(BODY, given_, configured)


PAIRS = ((b"x-key", b"first"), (b"x-key", b"rotated"), (b"x-shop", b"ours"))


@pytest.mark.parametrize("auth", ["signature", "secret_header"])
@pytest.mark.parametrize(
    ("sent", "accepted"),
    [
        ([(b"x-key", b"first"), (b"x-shop", b"ours")], True),
        ([(b"x-key", b"rotated"), (b"x-shop", b"ours")], True),
        ([(b"x-key", b"first")], False),
        ([(b"x-shop", b"ours")], False),
        ([(b"x-key", b"first"), (b"x-shop", b"theirs")], False),
        ([(b"x-key", b"first"), (b"x-key", b"rotated"), (b"x-shop", b"ours")], False),
        ([], False),
    ],
)
def test_every_configured_header_is_required_in_every_mode(
    auth: str, sent: list[tuple[bytes, bytes]], accepted: bool
) -> None:
    configured = credentials(auth=auth, headers=PAIRS)
    if accepted:
        verify(BODY, headers(HEX) + sent, configured)
    else:
        with pytest.raises(BadSignature):
            verify(BODY, headers(HEX) + sent, configured)


@pytest.mark.parametrize(
    ("space", "secret", "refused"),
    [
        (b"one", b"the secret of space one", None),
        (b"two", b"the secret of space two", None),
        (b"one", b"the secret of space two", BadSignature),
        (b"two", b"the secret of space one", BadSignature),
        (b"one", SECRET, None),
        (b"two", SECRET, None),
        (b"three", b"the secret of space two", Forbidden),
        (b"three", b"nobody's secret", BadSignature),
        (b"", b"the secret of space one", Forbidden),
    ],
)
def test_secret_of_one_space_is_refused_for_another(
    space: bytes, secret: bytes, refused: type[Exception] | None
) -> None:
    configured = credentials(
        spaces=frozenset({"one", "two"}),
        by_space={"one": (b"the secret of space one",), "two": (b"the secret of space two",)},
    )
    sent = [*headers(sign(BODY, secret)), (b"x-nacelle-space-id", space)]
    if refused is None:
        assert verify(BODY, sent, configured) == space.decode()
    else:
        with pytest.raises(refused):
            verify(BODY, sent, configured)


@pytest.mark.parametrize("spaces", [set(), {"one"}])
def test_space_is_returned_only_if_several_are_served(spaces: set[str]) -> None:
    sent = [*headers(HEX), (b"x-nacelle-space-id", b"one")]
    assert verify(BODY, sent, credentials(spaces=frozenset(spaces))) == ""


def test_signature_is_checked_before_the_space() -> None:
    with pytest.raises(BadSignature):
        verify(BODY, [(b"x-nacelle-space-id", b"two")], credentials(spaces=frozenset({"one"})))


def test_repr_hides_secrets() -> None:
    shown = repr(
        credentials(headers=((b"secret", b"the header's own secret"),), by_space={"one": (b"one's own secret",)})
    )
    assert "secret," not in shown
    assert "own" not in shown
