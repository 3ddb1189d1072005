"""The OpenAPI document: its copy in docs is up to date, and the service conforms to it.

`python -m tests.http.test_openapi` writes the copy. `SCHEMATHESIS=500` runs more examples.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from requests.auth import AuthBase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from mapper.domain.signature import sign
from mapper.http import app, openapi
from mapper.http.app import App
from mapper.sandbox.host import running
from tests import fakes
from tests.fakes import SECRET

COPY = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
CANCELS = "a secret for cancels alone"
EXAMPLES = int(os.environ.get("SCHEMATHESIS", "25"))


def made() -> App:
    configured = fakes.settings(
        fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger(), MAPPER_CANCEL_SECRETS=CANCELS, **fakes.INGESTING
    )
    return app.create(configured, engine_transport=fakes.FakeTransport())


def text() -> str:
    return json.dumps(openapi.document(), indent=1, ensure_ascii=False) + "\n"


def test_copy_in_docs_equals_the_served_document() -> None:
    assert COPY.read_text("utf-8") == text(), "python -m tests.http.test_openapi writes it; read the diff"
    with TestClient(made()) as http:
        assert http.get("/openapi.json").json() == json.loads(COPY.read_text("utf-8"))


def test_examples_get_200() -> None:
    with TestClient(made()) as http:
        for operation, example in (("validate", openapi.EXAMPLE), ("consume", openapi.ORDER_EXAMPLE)):
            body = json.dumps(example).encode()
            headers = {"x-nacelle-signature-sha256": sign(body, SECRET), "content-type": "application/json"}
            assert http.post(f"/promotions/{operation}", content=body, headers=headers).status_code == 200


def test_every_route_is_documented() -> None:
    assert set(openapi.document()["paths"]) == {getattr(route, "path", "") for route in made().routes}


BEYOND_A_SCHEMA = [positive_data_acceptance, not_a_server_error]
"""Not checked: a request that fits the schema may get 400, since a schema cannot limit the digits of a currency's
amounts; and a refused code is Nacelle's 500 at consume, so the category tells whether the fault is ours."""


class Signed(AuthBase):
    """Signs the bytes to be sent, with Nacelle's secret or, for a cancel, the merchant's."""

    def __call__(self, request: Any) -> Any:
        body = request.body or b""
        secret = CANCELS.encode() if request.path_url.startswith("/promotions/cancel") else SECRET
        request.headers["x-nacelle-signature-sha256"] = sign(body.encode() if isinstance(body, str) else body, secret)
        return request


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a running service."""
    with running(made()) as url:
        yield url


@pytest.mark.parametrize("path", sorted(openapi.document()["paths"]))
def test_service_conforms_to_the_document(address: str, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    method = next(iter(openapi.document()["paths"][path]))

    @given(case=schema[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        answer = case.call_and_validate(auth=Signed(), excluded_checks=BEYOND_A_SCHEMA)
        assert answer.status_code < 500 or answer.json()["error"]["category"] != "internal"

    check()


if __name__ == "__main__":
    COPY.write_text(text(), "utf-8")
