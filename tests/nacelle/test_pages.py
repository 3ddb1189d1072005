"""The examples of Nacelle's pages work: the ingestion page's curl, and the mapper page's bodies made valid JSON.

The mapper page prints `...`, comments and extra commas; its consume is printed in two vocabularies, one of them with a
`Secret` header instead of the signature. `...` at the root becomes an id, any other is removed. The consume bodies are
rebuilt field by field, not copied.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper import settings
from mapper.http import app
from mapper.sandbox import host
from tests.nacelle.nacelle import send

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the pages' commands need curl")

INGEST = """\
curl --request POST \\
  --url https://noms.api.nacelle.com/v1/orders \\
  --header 'accept: application/json' \\
  --header 'content-type: application/json' \\
  --header 'Authorization: YOUR_API_KEY' \\
  --header 'X-Nacelle-Space-Id: YOUR_SPACE_ID' \\
  --data '{"currency":"USD"}'
"""
VALIDATE = """\
{
   ...
   "items": [
     {
       ...
       "product_id": "my-product-id",
       "variant_id": "my-variant-id",
       "sku": "SKU1234",
       "quantity": 1,
       "price": "140.00",
     }
   ],
   "promotions":{
     "coupon_codes": ["XMAS-2021-25"],
     "referral_code":"",
     "loyalty_card":"",
     "identifiers":["91.11.156.141"],
     "meta":{} //additional details as needed
   }
}
"""
CONSUME = """\
{
   ...
   "order_items": [
     {
       ...
       "product_id": "my-product-id",
       "variant_id": "my-variant-id",
       "sku": "SKU1234",
       "quantity": 1,
       "PRICE": "105.00",
       "DISCOUNTS": "35.00",
       "applied_discounts": [{"name": "n", "description": "d", "amount": "35.00", "effect_type": "setDiscountPerItem",
                              "meta": {"campaignId": 1, "rulesetId": 2, "triggeredByCoupon": 3},}]
     }
   ],
   "discounts": "35.00",
   "promotions":{
     "coupon_codes": ["XMAS-2021-25"],
     "referral_code":"",
     "loyalty_card":"",
     "identifiers":["91.11.156.141"],
     "meta":{} //additional details as needed
   },
}
"""
"""Both halves of the page: the contract has price_amount and discounts_amount, the workflow price and discounts."""


def valid_json(text: str) -> str:
    text = re.sub(r"\A\{\s*\.\.\.", '{ "id": "1001",', text)
    text = re.sub(r"//[^\n]*|\.\.\.", "", text)
    return re.sub(r",(\s*[}\]])", r"\1", text)


@pytest.fixture
def sandbox() -> Iterator[str]:
    with host.running(host.create()) as url:
        yield url


@pytest.fixture
def service(sandbox: str, tmp_path: Path) -> Iterator[str]:
    """With the `Secret` header of the page's second half."""
    environment = {
        "MAPPER_ENGINE": "talon_one",
        "TALON_ONE_BASE_URL": f"{sandbox}/talon_one",
        "TALON_ONE_API_KEY": "any",
        "NACELLE_AUTH": "secret_header",
        "NACELLE_SECRET_HEADER": "YOUR_SECRET_OF_MANY_LETTERS",
        "MAPPER_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
    }
    with host.running(app.create(settings.load(environment))) as url:
        yield url


def run(command: str) -> Any:
    done = subprocess.run(["bash", "-euc", f"{command}"], capture_output=True, timeout=30, check=True)
    return json.loads(done.stdout)


def call(service: str, operation: str, body: str) -> Any:
    headers = "-H 'Content-Type: application/json' -H 'Secret: YOUR_SECRET_OF_MANY_LETTERS'"
    return run(f"curl -s -X POST {service}/promotions/{operation} {headers} --data '{body}'")


def test_ingestion_pages_command_works_as_printed(sandbox: str) -> None:
    filled_in = {
        "https://noms.api.nacelle.com": f"{sandbox}/nacelle",
        "YOUR_API_KEY": "sandbox-token",
        "YOUR_SPACE_ID": "sandbox",
    }
    command = INGEST
    for placeholder, value in filled_in.items():
        command = command.replace(placeholder, value)
    order = run(command)
    assert order["currency"] == "USD"
    assert send(f"{sandbox}/_sandbox/books").json["nacelle"]["ingested"][0]["order"] == order


@pytest.mark.parametrize(("price", "discounts"), [("price_amount", "discounts_amount"), ("price", "discounts")])
def test_mapper_pages_bodies_work_as_valid_json(service: str, sandbox: str, price: str, discounts: str) -> None:
    item = call(service, "validate", valid_json(VALIDATE))["checkout"]["items"][0]
    assert (item["price"], item["total_discount"]) == ("105.00", "35.00")
    body = valid_json(CONSUME.replace("PRICE", price).replace("DISCOUNTS", discounts))
    order, sent = call(service, "consume", body)["order"], json.loads(body)
    notices = order["promotions"]["meta"].pop("mapper")["notices"]
    assert (order, [notice["type"] for notice in notices]) == (sent, ["acceptCoupon"]), "and no drift"
    assert send(f"{sandbox}/_sandbox/books").json["talon_one"]["codes"]["XMAS-2021-25"] == 1


def test_mapper_pages_body_as_printed_is_refused(service: str) -> None:
    error = call(service, "validate", VALIDATE)["error"]
    assert error["category"] == "invalid_request"
