"""Nacelle's sandbox calls the mapper as documented, stops at its errors, and stores the accepted orders."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mapper.commands import cli
from mapper.domain import signature
from mapper.domain.signature import Credentials
from mapper.sandbox import rulebook
from mapper.sandbox.nacelle import Options, Space
from tests.nacelle.nacelle import Answer, Mapper, configure, connected, send

SECRET = "of this space"
A: dict[str, Any] = {"id": "c", "items": [{"sku": "S", "quantity": 1, "price": "1.00", "x": 1}], "y": 1}
B: dict[str, Any] = {"id": "c", "order_items": [{"sku": "S", "quantity": 1, "price_amount": "1.00", "x": 1}], "y": 1}
C: dict[str, Any] = {"id": "c", "orders": [{"order_items": [{"sku": "S", "quantity": 1, "price": "1.00"}]}]}
PAID = {"currency": "USD", "payments": [{"id": "p"}]}
PAID_MULTI = PAID | {"billing_address": {"a": 1}, "email": "a@b.c", "price": "1", "subtotal": "1", "tax_amount": "0"}


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Mapper, str]]:
    mapper = Mapper()
    with connected(mapper, secret=SECRET) as url:
        yield mapper, url


@pytest.fixture
def mapper(shop: tuple[Mapper, str]) -> Mapper:
    mapper, url = shop
    there = _mapper_url(url)
    control(url, "reset", {})
    configure(url, mapper_url=there, secret=SECRET)
    mapper.calls.clear()
    mapper.next.clear()
    return mapper


@pytest.fixture
def url(shop: tuple[Mapper, str]) -> str:
    return shop[1]


def control(url: str, name: str, body: object = None) -> Any:
    return send(f"{url.removesuffix('/nacelle')}/_sandbox/{name}", body).json


_known: dict[str, str] = {}


def _mapper_url(url: str) -> str:
    """The mapper's address as first set by the module's fixture; a reset would clear it."""
    return _known.setdefault(url, control(url, "nacelle")["spaces"]["sandbox"]["mapper_url"])


def books(url: str) -> Any:
    return control(url, "books")["nacelle"]


def test_token_endpoint_gives_a_token_that_expires(mapper: Mapper, url: str) -> None:
    asked = {
        "client_id": "a",
        "client_secret": "b",
        "audience": "noms.api.nacelle.com",
        "grant_type": "client_credentials",
    }
    given = send(f"{url}/v1/credential/token", asked, token="", space="").json
    assert given["expires_in"] == 3600
    assert send(f"{url}/api/v1/checkout/validate", A, token=given["access_token"]).status == 201
    control(url, "clock", {"now": "2999-01-01T00:00:00Z"})
    assert send(f"{url}/api/v1/checkout/validate", A, token=given["access_token"]).status == 401
    assert send(f"{url}/v1/credential/token", asked | {"client_secret": ""}).status == 401
    assert send(f"{url}/v1/credential/token", asked | {"grant_type": "password"}).status == 400


@pytest.mark.parametrize(
    ("given", "status"),
    [({"token": ""}, 401), ({"token": "x"}, 401), ({"space": ""}, 400), ({"space": "other"}, 403)],
)
@pytest.mark.parametrize("path", ["checkout/validate", "multicart/validate", "multiorders", "orders"])
def test_request_without_valid_token_or_space_is_refused(
    mapper: Mapper, url: str, path: str, given: dict[str, Any], status: int
) -> None:
    assert send(f"{url}/api/v1/{path}", A, **given).status == status
    assert mapper.calls == []


@pytest.mark.parametrize(
    ("path", "body", "step"),
    [
        ("checkout/validate", A, "validate"),
        ("checkout/validate", B, "validate"),
        ("multicart/validate", C, "validate"),
        ("multiorders", B | PAID, "consume"),
        ("multiorders", C | PAID_MULTI, "consume"),
    ],
)
def test_mapper_is_called_with_the_signed_body(
    mapper: Mapper, url: str, path: str, body: dict[str, Any], step: str
) -> None:
    sent = json.dumps(body).encode()
    answer = send(f"{url}/api/v1/{path}", sent)
    ((called, headers, got),) = mapper.calls
    assert (called, got, headers["x-nacelle-space-id"]) == (f"/promotions/{step}", sent, "sandbox")
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    signature.verify(got, named, Credentials("signature", (SECRET.encode(),)))
    assert answer.status == 201
    assert answer.json == (body if step == "validate" else {"id": "c"})
    assert [order["order"] for order in books(url)["orders"]] == ([] if step == "validate" else [body])


def test_mapper_call_can_have_headers_instead_of_a_signature(mapper: Mapper, url: str) -> None:
    configure(url, mapper_url=_mapper_url(url), secret="", headers={"Secret": "s"})
    send(f"{url}/api/v1/checkout/validate", A)
    headers = mapper.calls[0][1]
    assert headers["secret"] == "s"
    assert "x-nacelle-signature-sha256" not in headers


@pytest.mark.parametrize(("path", "body"), [("checkout/validate", A), ("multiorders", B | PAID)])
@pytest.mark.parametrize("status", [400, 401, 403, 422, 500])
def test_mapper_error_stops_the_order_and_reaches_the_client(
    mapper: Mapper, url: str, path: str, body: dict[str, Any], status: int
) -> None:
    mapper.next.append(status)
    answer = send(f"{url}/api/v1/{path}", body)
    assert (answer.status, answer.json["error"]["details"]) == (status, {"invalid-code": "X"})
    assert (len(mapper.calls), books(url)["orders"]) == (1, [])


def test_unreachable_mapper_gets_500(mapper: Mapper, url: str) -> None:
    configure(url, mapper_url="http://127.0.0.1:1", secret=SECRET)
    answer = send(f"{url}/api/v1/multiorders", B | PAID)
    assert (answer.status, answer.json["error"]["category"]) == (500, "mapper_unreachable")
    assert books(url)["deliveries"][0]["status"] == 0


@pytest.mark.parametrize("path", ["api/v1/checkout/validate", "api/v1/orders", "graphql/v1/spaces/sandbox"])
@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b'{"items":' + b"[" * 500_000 + b"]" * 500_000 + b"}"])
def test_body_other_than_a_json_object_is_refused(mapper: Mapper, url: str, path: str, body: bytes) -> None:
    answer = send(f"{url}/{path}", body)
    assert (answer.status, answer.json["message"], mapper.calls) == (400, "The body is no JSON object.", [])


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (B, ["currency", "payments"]),
        (B | PAID | {"payments": []}, ["payments"]),
        (C | PAID, ["billing_address", "email", "price", "subtotal", "tax_amount"]),
        (A | PAID, ["orders"]),
    ],
)
def test_order_with_missing_fields_never_reaches_the_mapper(
    mapper: Mapper, url: str, body: dict[str, Any], missing: list[str]
) -> None:
    answer = send(f"{url}/api/v1/multiorders", body)
    assert (answer.status, answer.json["missing"], mapper.calls) == (400, missing, [])


@pytest.mark.parametrize(
    ("given", "family", "expected"),
    [
        (A, "B", B),
        (B, "A", A),
        (A, "A", A),
        (A, "C", {"id": "c", "orders": [{k: v for k, v in B.items() if k != "id"}]}),
        (B, "C", {"id": "c", "orders": [{k: v for k, v in B.items() if k != "id"}]}),
    ],
)
def test_mapper_can_be_called_in_each_family(
    mapper: Mapper, url: str, given: dict[str, Any], family: str, expected: dict[str, Any]
) -> None:
    configure(url, mapper_url=_mapper_url(url), secret=SECRET, family=family)
    assert send(f"{url}/api/v1/checkout/validate", given).json == expected


def test_single_order_is_sent_flat_and_several_are_not(mapper: Mapper, url: str) -> None:
    configure(url, mapper_url=_mapper_url(url), secret=SECRET, family="B")
    send(f"{url}/api/v1/multicart/validate", C)
    send(f"{url}/api/v1/multicart/validate", C | {"orders": C["orders"] * 2})
    flat, whole = (json.loads(body) for _, _, body in mapper.calls)
    assert (flat, len(whole["orders"])) == ({"id": "c", **C["orders"][0]}, 2)


def test_each_of_several_orders_can_be_a_separate_call(mapper: Mapper, url: str) -> None:
    configure(url, mapper_url=_mapper_url(url), secret=SECRET, several="each_order", deliveries=2)
    own = {"promotion": {"n": 2}, "id": "second"}
    orders = [C["orders"][0], C["orders"][0] | own]
    cart = C | {"orders": orders, "promotion": {"n": 1}, "discounts": "1.00"}
    answer = send(f"{url}/api/v1/multicart/validate", cart)
    sent = [{"id": "c-0", "promotion": {"n": 1}, **orders[0]}, orders[1]]
    assert [json.loads(body) for _, _, body in mapper.calls] == sent
    assert (answer.status, answer.json) == (201, cart | {"orders": sent})
    mapper.calls.clear()
    assert send(f"{url}/api/v1/multiorders", cart | PAID_MULTI).status == 201
    assert [json.loads(body)["id"] for _, _, body in mapper.calls] == ["c-0", "c-0", "second", "second"]
    assert len(books(url)["orders"]) == 1
    # The first error stops the calls.
    mapper.calls.clear()
    mapper.next += [422]
    assert send(f"{url}/api/v1/multicart/validate", cart).status == 422
    assert len(mapper.calls) == 1


def test_order_is_delivered_twice_with_another_ip(mapper: Mapper, url: str) -> None:
    configure(url, mapper_url=_mapper_url(url), secret=SECRET, deliveries=2, retry_ip="203.0.113.7")
    order = B | PAID | {"promotions": {"identifiers": ["91.11.156.141", "device-1"], "n": 1}}
    assert send(f"{url}/api/v1/multiorders", order).status == 201
    first, second = (json.loads(body) for _, _, body in mapper.calls)
    assert first == order
    assert second == order | {"promotions": {"identifiers": ["203.0.113.7", "device-1"], "n": 1}}
    assert len(books(url)["orders"]) == 1


@pytest.mark.parametrize(
    ("answers", "calls", "status"), [([500, 500], 3, 201), ([500, 500, 500], 3, 500), ([422], 1, 422)]
)
def test_order_is_retried_up_to_the_retries_setting(
    mapper: Mapper, url: str, answers: list[int], calls: int, status: int
) -> None:
    configure(url, mapper_url=_mapper_url(url), secret=SECRET, retries=2)
    mapper.next += answers
    assert send(f"{url}/api/v1/multiorders", B | PAID).status == status
    assert len(mapper.calls) == calls


@pytest.mark.parametrize("path", ["api/v1/orders", "v1/orders"])
def test_ingestion_stores_the_order_without_calling_the_mapper(mapper: Mapper, url: str, path: str) -> None:
    answer = send(f"{url}/{path}", b'{"currency":"USD", "n": 1.10}', {"authorization": "sandbox-token"})
    assert answer.status == 200, "the page shows a key without Bearer"
    assert b'"n":1.10' in answer.body
    assert mapper.calls == []
    assert [order["id"] for order in books(url)["ingested"]] == [answer.json["id"]]
    assert send(f"{url}/{path}", {}).status == 400


def test_faults_and_reset_cover_nacelle(mapper: Mapper, url: str) -> None:
    control(url, "faults", [{"name": "status_after", "value": 502, "engine": "nacelle", "operation": "ingest"}])
    assert send(f"{url}/api/v1/orders", PAID).status == 502
    assert len(books(url)["ingested"]) == 1
    control(url, "reset", {})
    assert books(url) == {"deliveries": [], "orders": [], "ingested": []}


@pytest.mark.parametrize(
    "given", [{"spaces": {"a": {"mapper": "x"}}}, {"space": {}}, {"spaces": {"a": {"deliveries": 0}}}]
)
def test_invalid_configuration_gets_400_with_a_message(mapper: Mapper, url: str, given: dict[str, Any]) -> None:
    answer: Answer = send(f"{url.removesuffix('/nacelle')}/_sandbox/nacelle", given)
    assert answer.status == 400
    assert answer.json["error"]


def test_command_prints_why_it_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            cli.main(["sandbox", "--port", str(port)])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (1, "")
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use" in printed.err
    (tmp_path / "book.toml").write_text("[engines.nacelle]\nspace = 1\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sandbox", "--rulebook", str(tmp_path / "book.toml")])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert "engines.nacelle.space: is not known" in printed.err


def test_rule_book_lists_every_option_with_its_default() -> None:
    shown = rulebook.load().engines["nacelle"]
    (space,) = shown["spaces"].values()
    assert shown.keys() == {*Options.__struct_fields__}
    assert space.keys() == {*Space.__struct_fields__}
    assert msgspec.convert(shown, Options) == Options()
