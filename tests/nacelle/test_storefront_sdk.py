"""The sandbox's Storefront API works with Nacelle's own JavaScript client, and with ours.

Nacelle's client is an npm package. Without node or npm, or without the package, these tests are skipped with a message.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.engine import clients
from mapper.nacelle.products import SourceFailed
from mapper.nacelle.storefront import Storefront
from mapper.sandbox import host
from tests.nacelle.nacelle import send

PACKAGE = "@nacelle/storefront-sdk@2.0.3"
FOLDER = Path(sys.prefix) / "nacelle-sdk"
QUERY = """
  query Products($filter: ProductFilterInput) {
    allProducts(filter: $filter) {
      edges { cursor node { ...Found } }
      pageInfo { hasNextPage endCursor }
    }
  }
  fragment Found on Product { nacelleEntryId productType tags content { title } variants { sku weight weightUnit } }
"""


@pytest.fixture(scope="module")
def sdk(request: pytest.FixtureRequest) -> Path:
    """Installs the client; the path of the script that queries with it."""
    script = FOLDER / "sdk.mjs"
    if not (FOLDER / "node_modules" / "@nacelle" / "storefront-sdk").is_dir():
        why = _install()
        if why:
            capture = request.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                sys.stderr.write(f"\nNOT JUDGED by Nacelle's own client: {why}\n")
            pytest.skip(f"NOT JUDGED by Nacelle's own client: {why}")
    shutil.copy(Path(__file__).parent / "sdk.mjs", script)
    return script


def _install() -> str:
    """Installs the client; returns "" or the reason why not."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "node and npm are not installed"
    FOLDER.mkdir(exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(FOLDER), PACKAGE]
    try:
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "npm install takes too long"
    return "" if done.returncode == 0 else f"npm install fails: {done.stderr.strip().splitlines()[-1:]}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with host.running(host.create()) as address:
        yield f"{address}/nacelle/graphql/v1/spaces/sandbox"


def ask(sdk: Path, url: str, *filters: dict[str, Any], query: str = QUERY, plain: bool = False) -> list[Any]:
    queries = json.dumps([{"query": query, "variables": {"filter": each}} for each in filters])
    command = ["node", str(sdk), url, queries, *(["plain"] if plain else [])]
    done = subprocess.run(command, cwd=sdk.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def skus(answer: Any) -> list[str]:
    assert answer["error"] is None
    return [variant["sku"] for edge in answer["data"]["allProducts"]["edges"] for variant in edge["node"]["variants"]]


@pytest.mark.parametrize("plain", [False, True])
def test_nacelles_client_finds_products_by_every_filter(sdk: Path, url: str, plain: bool) -> None:
    boots, shirts = ["SHOE-42", "SHOE-43"], ["SKU1234"]
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({"nacelleEntryIds": ["nacelle-product-1"]}, boots),
        ({"sourceEntryIds": ["gid://shop/Product/2", "gid://shop/Product/9"]}, shirts),
        ({"handles": ["winter-boot", "shirt"]}, boots + shirts),
        ({"first": 1}, boots),
        ({"first": 1, "after": "nacelle-product-1"}, shirts),
        ({"searchFilter": {"fields": ["SKU"], "term": "sku1234"}}, shirts),
        ({"searchFilter": {"fields": ["TITLE"], "term": "cotton"}}, []),
        ({"searchFilter": {"fields": ["TAGS"], "term": "cotton"}}, shirts),
    ]
    answers = ask(sdk, url, *(asked for asked, _ in expected), plain=plain)
    assert [skus(answer) for answer in answers] == [found for _, found in expected]
    assert answers[3]["data"]["allProducts"]["pageInfo"] == {"hasNextPage": True, "endCursor": "nacelle-product-1"}
    first = answers[0]["data"]["allProducts"]["edges"][0]["node"]
    assert (first["productType"], first["content"]["title"], first["variants"][0]["weight"]) == (
        "shoes",
        "Winter boot",
        1.2,
    )


def test_nacelles_client_gets_an_error_for_an_unknown_field(sdk: Path, url: str) -> None:
    (answer,) = ask(sdk, url, {}, query="query Q { allProducts { edges { node { category } } } }")
    assert "Cannot query field 'category'" in answer["error"]


def test_persisted_query_without_query_is_not_found(url: str) -> None:
    extensions = {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}
    assert send(url, {"extensions": extensions}).json["errors"][0]["message"] == "PersistedQueryNotFound"
    assert send(url, {"extensions": extensions, "query": QUERY}).status == 400
    assert send(url, {}).status == 400
    for strange in ({"query": 5}, {"extensions": "x"}, {"extensions": {"persistedQuery": "x"}}):
        assert send(url, strange).status == 400
    assert send(url.replace("sandbox", "other"), {"query": QUERY}).status == 404


def test_our_client_reads_the_same_products(url: str) -> None:
    async def read(address: str) -> Any:
        transport = clients.create("aiohttp", connections=1)
        try:
            storefront = Storefront(address, "a-token", transport)
            return await storefront.read(["nacelle-product-1", "gid://shop/Product/2", "none"])
        finally:
            await transport.aclose()

    found = asyncio.run(read(url))
    assert {key: product.fields["category"] for key, product in found.items()} == {
        "nacelle-product-1": "shoes",
        "gid://shop/Product/1": "shoes",
        "nacelle-product-2": "shirts",
        "gid://shop/Product/2": "shirts",
    }
    assert found["nacelle-product-1"].variants["SHOE-43"]["attributes"] == {"care.material": "suede"}
    with pytest.raises(SourceFailed, match="http_404"):
        asyncio.run(read(url.replace("sandbox", "other")))
