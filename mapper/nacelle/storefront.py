"""Nacelle's Storefront GraphQL API as a source of product data.

The API has no filter by variant id: the query is by product id, and the variant is one of the product's variants. An id
may be Nacelle's (`nacelleEntryId`) or the source system's (`sourceEntryId`); one request asks for both. Source: the
types of the npm package `@nacelle/storefront-sdk`, and docs.nacelle.com/docs/storefront-graphql-api-stable. Not
verified against a live space.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgspec

from mapper.domain.checkout import Line
from mapper.engine.transport import NotSent, Transport, Unknown
from mapper.nacelle.products import Fields, FileSource, Product, Source, SourceFailed
from mapper.settings import ProductSettings

TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 10 * 1024 * 1024
"""Nacelle's limit of a reply."""

_PRODUCT: Final = """
    edges { node {
      nacelleEntryId sourceEntryId productType vendor tags
      content { title handle }
      metafields { namespace key value }
      variants {
        nacelleEntryId sourceEntryId sku weight weightUnit content { title } metafields { namespace key value }
      }
    } }
"""
QUERY: Final = (
    "query Products($ids: [String!], $first: Int) {\n"
    f"  byEntry: allProducts(filter: {{ nacelleEntryIds: $ids, first: $first }}) {{{_PRODUCT}  }}\n"
    f"  bySource: allProducts(filter: {{ sourceEntryIds: $ids, first: $first }}) {{{_PRODUCT}  }}\n"
    "}"
)


class _Content(msgspec.Struct, rename="camel"):
    title: str | None = None
    handle: str | None = None


class _Metafield(msgspec.Struct, rename="camel"):
    namespace: str | None = None
    key: str | None = None
    value: str | None = None


class _Variant(msgspec.Struct, rename="camel"):
    nacelle_entry_id: str = ""
    source_entry_id: str | None = None
    sku: str | None = None
    weight: Decimal | None = None
    weight_unit: str | None = None
    content: _Content | None = None
    metafields: list[_Metafield | None] | None = None


class _Node(msgspec.Struct, rename="camel"):
    nacelle_entry_id: str = ""
    source_entry_id: str | None = None
    product_type: str | None = None
    vendor: str | None = None
    tags: list[str | None] | None = None
    content: _Content | None = None
    metafields: list[_Metafield | None] | None = None
    variants: list[_Variant | None] | None = None


class _Edge(msgspec.Struct):
    node: _Node


class _Connection(msgspec.Struct):
    edges: list[_Edge]


class _Data(msgspec.Struct, rename="camel"):
    by_entry: _Connection | None = None
    by_source: _Connection | None = None


class _Answer(msgspec.Struct):
    data: _Data | None = None
    errors: list[Any] | None = None


@dataclass(frozen=True)
class Storefront:
    """The product data of one space. Its `repr` shows no token."""

    url: str
    token: str
    transport: Transport

    def __repr__(self) -> str:
        return f"Storefront({self.url!r})"

    def key(self, line: Line) -> str:
        return line.product_id

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        ids = list(keys)
        body = msgspec.json.encode({"query": QUERY, "variables": {"ids": ids, "first": len(ids)}})
        headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        if self.token:
            headers.append(("x-nacelle-space-token", self.token))
        try:
            reply = await self.transport.send("POST", self.url, headers, body, TIMEOUT_S, MAX_ANSWER_BYTES)
        except (NotSent, Unknown) as failure:
            if failure.reason == "too_large" and len(ids) > 1:  # products of many variants, with long metafields
                half = len(ids) // 2
                return {**await self.read(ids[:half]), **await self.read(ids[half:])}
            raise SourceFailed(failure.reason) from None
        if reply.status != 200:
            raise SourceFailed(f"http_{reply.status}")
        try:
            answer = msgspec.json.decode(reply.body, type=_Answer)
        except msgspec.DecodeError:
            raise SourceFailed("unreadable") from None
        if answer.data is None or answer.errors or (answer.data.by_entry is None and answer.data.by_source is None):
            raise SourceFailed("graphql_error")
        return dict(_products(answer.data))


def source_of(settings: ProductSettings, transport: Transport) -> Source:
    """Returns the configured source of product data. Raises `ValueError` or `OSError` for an unusable file."""
    return FileSource(settings.file) if settings.file else Storefront(settings.url, settings.token, transport)


def _products(data: _Data) -> Iterator[tuple[str, Product]]:
    """Yields each product once for each of its ids."""
    for connection in (data.by_source, data.by_entry):
        for edge in connection.edges if connection else ():
            product = Product(_fields(edge.node), dict(_variants(edge.node)))
            for name in (edge.node.source_entry_id, edge.node.nacelle_entry_id):
                if name:
                    yield name, product


def _fields(node: _Node) -> Fields:
    content = node.content or _Content()
    tags = [tag for tag in node.tags or () if tag]
    known = {
        "name": content.title,
        "handle": content.handle,
        "category": node.product_type,
        "vendor": node.vendor,
        "tags": tags or None,
        "attributes": _metafields(node.metafields),
    }
    return {key: value for key, value in known.items() if value}


def _variants(node: _Node) -> Iterator[tuple[str, Fields]]:
    for variant in node.variants or ():
        if variant is None:
            continue
        title = variant.content.title if variant.content else None
        own = {
            "variant_name": title,
            **_weight(variant),
            "attributes": {**_metafields(node.metafields), **_metafields(variant.metafields)},
        }
        fields = {key: value for key, value in own.items() if value}
        for name in (variant.nacelle_entry_id, variant.source_entry_id, variant.sku):
            if name:
                yield name, fields


_GRAMS: Final = {
    **dict.fromkeys(("g", "gram", "grams"), Decimal(1)),
    **dict.fromkeys(("kg", "kilogram", "kilograms"), Decimal(1000)),
    **dict.fromkeys(("oz", "ounce", "ounces"), Decimal("28.349523125")),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), Decimal("453.59237")),
}
"""Units of weight in grams. Nacelle passes on the source system's names, of which there is no list."""


def _weight(variant: _Variant) -> Fields:
    """Returns the weight in grams, which Talon.One expects. Empty for an unknown unit."""
    grams = _GRAMS.get((variant.weight_unit or "").lower())
    return {} if variant.weight is None or grams is None else {"weight": variant.weight * grams}


def _metafields(fields: list[_Metafield | None] | None) -> dict[str, str]:
    """Returns the values by `namespace.key`."""
    return {
        ".".join(filter(None, (field.namespace, field.key))): field.value
        for field in fields or ()
        if field is not None and field.key and field.value is not None
    }
