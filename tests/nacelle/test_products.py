"""Product data fills missing fields of a line: cached, within a time limit, stale rather than none."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mapper.adapter import EngineReply
from mapper.domain.checkout import Checkout, Line, parse
from mapper.engine.transport import Unknown
from mapper.nacelle import products as module
from mapper.nacelle.products import BATCH, FileSource, Product, Products, SourceFailed, remembered_in
from mapper.nacelle.storefront import Storefront
from tests.orders.ledgers import STORES, Home

T = TypeVar("T")


class Shelf:
    """A source that has every product, records its requests, and can fail or hang."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.version = 1
        self.fails = ""
        self.hangs = False

    def key(self, line: Line) -> str:
        return line.product_id

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        self.asked.append(sorted(keys))
        if self.hangs:
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        if self.fails:
            raise SourceFailed(self.fails)
        known = [key for key in self.asked[-1] if not key.startswith("none")]
        return {key: Product({"category": f"{key}-{self.version}"}, {"v": {"weight": 2}}) for key in known}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cart(*ids: str, variant: str = "") -> Checkout:
    lines = [{"product_id": i, "variant_id": variant or f"of {i}", "quantity": 1, "price": "1"} for i in ids]
    return parse(json.dumps({"items": lines}).encode(), "validate")


def categories(found: module.Filled) -> dict[int, Any]:
    return {index: fields.get("category") for index, fields in found.by_line.items()}


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(scenario(), 10)

    return asyncio.run(limited())


def test_product_is_read_once_and_cached() -> None:
    shelf, clock, fates = Shelf(), Clock(), []

    async def scenario() -> None:
        products = Products(shelf, count=lambda fate, number: fates.append((fate, number)), clock=clock)
        first = await products.fill(cart("a", "b", "a"))
        assert categories(first) == {0: "a-1", 1: "b-1", 2: "a-1"}
        assert first.notice is None
        assert categories(await products.fill(cart("a"))) == {0: "a-1"}
        assert shelf.asked == [["a", "b"]]
        assert ("read", 2) in fates
        assert ("fresh", 1) in fates

    run(scenario)


def test_stale_product_is_used_and_refreshed_in_the_background() -> None:
    shelf, clock = Shelf(), Clock()

    async def scenario() -> None:
        products = Products(shelf, clock=clock)
        await products.fill(cart("a"))
        shelf.version, clock.now = 2, module.TTL_S + 1
        assert categories(await products.fill(cart("a"))) == {0: "a-1"}
        await asyncio.sleep(0.01)
        assert categories(await products.fill(cart("a"))) == {0: "a-2"}
        shelf.fails, clock.now = "timeout", 10 * module.TTL_S
        found = await products.fill(cart("a"))
        assert (categories(found), found.notice) == ({0: "a-2"}, None)

    run(scenario)


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_failing_source_gives_a_notice_within_the_budget(trouble: str) -> None:
    shelf = Shelf()
    setattr(shelf, trouble, "down" if trouble == "fails" else True)

    async def scenario() -> None:
        products = Products(shelf)
        found = await products.fill(cart("a", "b"), budget_s=0.05)
        assert found.by_line == {}
        assert found.notice is not None
        assert (found.notice.type, found.notice.payload) == (
            "product_data_missing",
            {"lines": ["/items/0", "/items/1"]},
        )

    run(scenario)


def test_missing_product_is_cached_without_a_notice() -> None:
    shelf = Shelf()

    async def scenario() -> None:
        products = Products(shelf)
        for _ in range(2):
            found = await products.fill(cart("none-1", "a"))
            assert (categories(found), found.notice) == ({1: "a-1"}, None)
        assert len(shelf.asked) == 1

    run(scenario)


def test_concurrent_callers_share_batched_reads() -> None:
    shelf = Shelf()

    async def scenario() -> None:
        products = Products(shelf)
        ids = [f"p{n}" for n in range(2 * BATCH + 1)]
        await asyncio.gather(*(products.fill(cart(*ids)) for _ in range(5)))
        assert [len(batch) for batch in shelf.asked] == [BATCH, BATCH, 1]

    run(scenario)


def test_cache_evicts_the_least_recently_used_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PRODUCTS", 3)
    shelf = Shelf()

    async def scenario() -> None:
        products = Products(shelf)
        for name in ("a", "b", "c", "a", "d"):
            await products.fill(cart(name))
        assert len(shelf.asked) == 4
        await products.fill(cart("a"))
        assert len(shelf.asked) == 4, "the most recently used one is kept"
        await products.fill(cart("b"))
        assert shelf.asked[-1] == ["b"]

    run(scenario)


@pytest.mark.parametrize("store", STORES)
def test_product_data_from_validate_survives_a_restart(store: str, tmp_path: Path) -> None:
    url, shelf = Home(store, tmp_path).url, Shelf()

    async def scenario() -> None:
        database = remembered_in(url)
        await Products(shelf, database).fill(cart("a", variant="v"))
        await asyncio.sleep(0.05)
        shelf.fails = "down"
        found = await Products(shelf, database).fill(cart("a", "b", variant="v"), budget_s=2)
        assert found.by_line == {0: {"category": "a-1", "weight": 2}}
        assert found.notice is not None
        assert found.notice.payload == {"lines": ["/items/1"]}
        await database.close()

    run(scenario)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "sku,category,weight\nA,shoes,\nB,hats,2\n"),
        ("p.json", '[{"sku": "A", "category": "shoes"}, {"sku": "B", "category": "hats", "weight": "2"}]'),
        ("p.csv", "\ufeff\r\nsku, category ,weight\r\n\r\nA ,shoes,\r\nB,\u2028hats,2"),
    ],
)
def test_file_source_reads_csv_and_json(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode())
    lines = [{"sku": sku, "quantity": 1, "price": "1"} for sku in ("B", "A", "C")]
    checkout = parse(json.dumps({"items": lines}).encode(), "validate")
    found = run(lambda: Products(FileSource(file)).fill(checkout))
    assert found.by_line == {0: {"category": "hats", "weight": "2"}, 1: {"category": "shoes"}}
    assert found.notice is None


def test_csv_cell_may_be_long_with_any_line_breaks(tmp_path: Path) -> None:
    cell = "x" * 200_000 + '\n\u2028\x0b\x85\r\n.".'
    file = tmp_path / "p.csv"
    file.write_bytes('sku,told,category\nA,"{}",shoes\n'.format(cell.replace('"', '""')).encode())
    assert run(lambda: FileSource(file).read(["sku:A"]))["sku:A"].fields == {"told": cell, "category": "shoes"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.csv", b"sku,category\nA,sh\xf6es\n", r"p.csv is not UTF-8 \(byte 17\)"),
        ("p.csv", "sku,category\nA\n", "p.csv, line 2"),
        ("p.csv", "sku,category\nA,b,c\n", "p.csv, line 2"),
        ("p.csv", "name\nA\n", "p.csv, line 2: a row needs one of"),
        ("p.json", "{", "p.json is no JSON"),
        ("p.json", "{}", "no list of objects"),
        ("p.json", "[1]", "p.json, item 0"),
    ],
)
def test_invalid_file_raises_with_the_place(tmp_path: Path, name: str, text: str | bytes, problem: str) -> None:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=problem):
        FileSource(file)


class Wire:
    """A transport that gives a fixed answer."""

    def __init__(self, status: int, body: object, failure: Exception | None = None) -> None:
        self.status, self.body, self.failure = status, body, failure
        self.sent: dict[str, Any] = {}
        self.headers: dict[str, str] = {}

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        self.sent, self.headers = json.loads(body), dict(headers)
        if self.failure:
            raise self.failure
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return EngineReply(status=self.status, headers={}, body=data)

    async def aclose(self) -> None: ...


NODE = {
    "nacelleEntryId": "n-1", "sourceEntryId": "gid://p/1", "productType": "shoes", "vendor": "V", "tags": ["new", None],
    "content": {"title": "Boot", "handle": "boot"}, "metafields": [{"namespace": "a", "key": "b", "value": "1"}, None],
    "variants": [
        {
            "nacelleEntryId": "nv", "sourceEntryId": "gid://v/1", "sku": "S", "weight": 1.5, "weightUnit": "KILOGRAMS",
            "content": {"title": "42"}, "metafields": [{"namespace": "a", "key": "c", "value": "2"}],
        }
    ],
}  # fmt: skip
SHOE = {"category": "shoes", "name": "Boot", "handle": "boot", "vendor": "V", "tags": ["new"]}
SIZE = {"variant_name": "42", "weight": Decimal(1500), "attributes": {"a.b": "1", "a.c": "2"}}


@pytest.mark.parametrize("product", ["n-1", "gid://p/1"])
@pytest.mark.parametrize("variant", [{"variant_id": "nv"}, {"variant_id": "gid://v/1"}, {"sku": "S"}])
def test_storefront_query_is_by_product_and_finds_the_variant(product: str, variant: dict[str, str]) -> None:
    which = "byEntry" if product == "n-1" else "bySource"
    wire = Wire(200, {"data": {which: {"edges": [{"node": NODE}]}}})
    line = {"product_id": product, **variant, "quantity": 1, "price": "1"}
    checkout = parse(json.dumps({"items": [line]}).encode(), "validate")
    found = run(lambda: Products(Storefront("https://s.test", "token", wire)).fill(checkout))
    assert found.by_line == {0: {**SHOE, **SIZE}}
    assert wire.sent["variables"] == {"ids": [product], "first": 1}
    assert wire.headers["x-nacelle-space-token"] == "token"


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (Wire(500, b""), "http_500"),
        (Wire(200, b"<html>"), "unreadable"),
        (Wire(200, {"errors": [{"message": "secret"}]}), "graphql_error"),
        (Wire(200, {"data": {"byEntry": None}}), "graphql_error"),
        (Wire(200, b"", Unknown("timeout")), "timeout"),
    ],
)
def test_failing_storefront_raises_with_a_reason(wire: Wire, reason: str) -> None:
    with pytest.raises(SourceFailed, match=f"^{reason}$"):
        run(lambda: Storefront("https://s.test", "", wire).read(["a"]))


def test_too_large_answer_splits_the_batch() -> None:
    asked = []

    class Large(Wire):
        async def send(self, *given: Any) -> EngineReply:
            ids = json.loads(given[3])["variables"]["ids"]
            asked.append(ids)
            self.failure = Unknown("too_large") if len(ids) > 1 or ids == ["c"] else None
            self.body = {"data": {"byEntry": {"edges": [{"node": {**NODE, "nacelleEntryId": ids[0]}}]}}}
            return await super().send(*given)

    wire = Large(200, b"")
    found = run(lambda: Storefront("https://s.test", "", wire).read(["a", "b"]))
    assert (asked, {"a", "b"} <= found.keys()) == ([["a", "b"], ["a"], ["b"]], True)
    with pytest.raises(SourceFailed, match="too_large"):
        run(lambda: Storefront("https://s.test", "", wire).read(["c"]))


class Books:
    """A database that records its statements."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, tuple[Any, ...]]] = []

    async def run(self, statement: str, *values: Any) -> list[Any]:
        self.ran.append((statement.split(maxsplit=1)[0], values))
        return []

    async def close(self) -> None: ...


def test_product_data_of_a_session_is_written_once_and_kept_a_week(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DELETE_EVERY", 2)
    books = Books()

    async def scenario() -> None:
        products = Products(Shelf(), books)
        filled = await products.at_validate(cart("a", "none-1"))
        books.ran.clear()
        for session in ("s", "s", "t"):
            await products.keep("", session, filled)

    run(scenario)
    assert [(verb, values[0]) for verb, values in books.ran[:2]] == [("INSERT", "\ns"), ("INSERT", "\nt")]
    assert json.loads(books.ran[0][1][1]) == {"of a\n\na": {"category": "a-1"}, "of none-1\n\nnone-1": {}}
    [(verb, (before,))] = books.ran[2:]
    assert (verb, abs(time.time() - before - 7 * 86_400) < 60) == ("DELETE", True)
