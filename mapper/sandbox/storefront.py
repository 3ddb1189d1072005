"""Nacelle's Storefront GraphQL API, emulated: the products of a space, with the types of Nacelle's own client.

Source: the types generated into the npm package `@nacelle/storefront-sdk`, and
docs.nacelle.com/docs/storefront-graphql-api-stable. Automatic persisted queries work as that client uses them: a GET
with a hash, then a POST with hash and query. Only products are emulated.
"""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Final

import msgspec
from graphql import build_schema, graphql_sync

Json = dict[str, Any]

_SCHEMA: Final = build_schema("""
  scalar Decimal
  scalar JSON
  enum ProductSearchFields { HANDLE SKU TAGS TITLE }
  enum ProductCollectionSearchFields { HANDLE SKU TAGS TITLE }
  enum ProductCollectionSortOrder { ASC DESC }
  input ProductSearchOptions {
    fields: [ProductSearchFields!] term: String
    sortField: ProductCollectionSearchFields sortOrder: ProductCollectionSortOrder
  }
  input ProductFilterInput {
    after: String first: Int handles: [String!] nacelleEntryIds: [String!] sourceEntryIds: [String!]
    locale: String pricingCountryCode: String searchFilter: ProductSearchOptions
  }
  type Metafield { id: ID key: String! namespace: String value: String! }
  type ProductOption { name: String! values: [String!]! }
  type SelectedOption { label: String name: String! value: String! }
  type ProductContent {
    title: String handle: String description: String locale: String published: Boolean fields: JSON
    options: [ProductOption!]!
  }
  type VariantContent {
    title: String description: String locale: String published: Boolean fields: JSON selectedOptions: [SelectedOption!]!
  }
  type Variant {
    nacelleEntryId: ID! sourceEntryId: ID! sku: String productEntryId: ID productHandle: String
    price: Decimal compareAtPrice: Decimal priceCurrency: String weight: Float weightUnit: String
    availableForSale: Boolean quantityAvailable: Int variantPosition: Int
    metafields: [Metafield!]! content: VariantContent
  }
  type Product {
    nacelleEntryId: ID! sourceEntryId: ID! productType: String vendor: String tags: [String!]!
    availableForSale: Boolean metafields: [Metafield!]! content: ProductContent variants: [Variant!]!
  }
  type ProductEdge { cursor: String! node: Product! }
  type PageInfo { endCursor: String! hasNextPage: Boolean! hasPreviousPage: Boolean! startCursor: String! }
  type ProductConnection {
    edges: [ProductEdge!]! nodes: [Product!]! pageInfo: PageInfo! totalCount: Int filteredCount: Int
  }
  type Query {
    allProducts(filter: ProductFilterInput): ProductConnection!
    products(filter: ProductFilterInput): [Product!]! @deprecated(reason: "`allProducts` should be used.")
  }
""")
_FIRST: Final = 100
_MOST: Final = 500
"""Documented: a query returns at most 500 products, and 100 without `first`."""


def default_products() -> list[Json]:
    text = resources.files("mapper.sandbox").joinpath("products.toml").read_text("utf-8")
    return list(tomllib.loads(text)["products"])


class Storefront:
    """The products of one space, and its persisted queries."""

    def __init__(self, products: Iterable[Json] | None = None) -> None:
        self._products = [_completed(product) for product in (default_products() if products is None else products)]
        self._remembered: dict[str, str] = {}

    def answer(self, asked: Mapping[str, Any]) -> tuple[int, Json]:
        """Returns status and body for `{"query", "variables", "operationName", "extensions"}`."""
        hashed = _text(_object(_object(asked.get("extensions")).get("persistedQuery")).get("sha256Hash"))
        query = _text(asked.get("query")) or self._remembered.get(hashed)
        if not query:
            missing = {"message": "PersistedQueryNotFound", "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"}}
            return (200, {"errors": [missing]}) if hashed else (400, {"errors": [{"message": "There is no query."}]})
        if hashed and hashed != hashlib.sha256(query.encode()).hexdigest():
            return 400, {"errors": [{"message": "provided sha does not match query"}]}
        if hashed:
            self._remembered[hashed] = query
        done = graphql_sync(
            _SCHEMA,
            query,
            {"allProducts": self._all, "products": self._list},
            variable_values=_object(asked.get("variables")),
            operation_name=_text(asked.get("operationName")) or None,
        )
        return 400 if done.data is None else 200, dict(done.formatted)

    def _list(self, info: object, filter: Json | None = None) -> list[Json]:  # noqa: A002 - GraphQL's name
        return [product for product in self._products if _matches(product, filter or {})]

    def _all(self, info: object, filter: Json | None = None) -> Json:  # noqa: A002 - GraphQL's name
        found, given = self._list(info, filter), filter or {}
        ids = [product["nacelleEntryId"] for product in found]
        start = ids.index(given["after"]) + 1 if given.get("after") in ids else 0
        first = given.get("first")
        page = found[start : start + min(_FIRST if first is None else first, _MOST)]
        return {
            "edges": [{"cursor": product["nacelleEntryId"], "node": product} for product in page],
            "nodes": page,
            "pageInfo": {
                "startCursor": page[0]["nacelleEntryId"] if page else "",
                "endCursor": page[-1]["nacelleEntryId"] if page else "",
                "hasPreviousPage": start > 0,
                "hasNextPage": start + len(page) < len(found),
            },
            "filteredCount": len(found) if given.get("searchFilter") else None,
        }


def query_of_get(query: Mapping[str, str]) -> Json:
    """Returns the query of a GET: `variables` and `extensions` are JSON in the URL. Raises `ValueError`."""
    return {
        key: msgspec.json.decode(value) if key in ("variables", "extensions") else value for key, value in query.items()
    }


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _completed(product: Json) -> Json:
    """Adds the lists that the types require, and to each variant the names of its product."""
    handle = product.get("content", {}).get("handle")
    own = {"productEntryId": product["nacelleEntryId"], "productHandle": handle, "metafields": []}
    variants = [own | variant for variant in product.get("variants", ())]
    return {"tags": [], "metafields": []} | product | {"variants": variants}


def _matches(product: Json, asked: Json) -> bool:
    handle = product.get("content", {}).get("handle")
    for key, value in (("nacelleEntryIds", product["nacelleEntryId"]), ("sourceEntryIds", product["sourceEntryId"]),
                       ("handles", handle)):  # fmt: skip
        if asked.get(key) is not None and value not in asked[key]:
            return False
    search = asked.get("searchFilter") or {}
    term = (search.get("term") or "").casefold()
    texts = {
        "HANDLE": [handle],
        "TITLE": [product.get("content", {}).get("title")],
        "TAGS": product["tags"],
        "SKU": [variant.get("sku") for variant in product["variants"]],
    }
    fields = search.get("fields") or list(texts)
    return not term or any(term in (text or "").casefold() for field in fields for text in texts[field])
