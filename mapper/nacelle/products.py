"""Product data by variant: data that lines lack and campaigns need (category, name, weight, attributes).

Nacelle's page says: "use variant id to pull additional product information as required". A `Source` reads products from
a file or from Nacelle's Storefront API (`mapper.nacelle.storefront`). `Products` is the cache before it:

- **Cached.** Data younger than `TTL_S` is fresh. Older data is stale: it is used, and read again in the background.
- **Bounded.** The cache holds at most `MAX_PRODUCTS` products, and evicts the least recently used.
- **Stored.** The data that validate added is written to the ledger's database, by checkout and by product. Consume uses
  it first, however old, on any worker and after a restart: a category that changes after payment must not cost the
  order its discount.
- **In time.** A call waits at most `BUDGET_S` for the source. Then the engine is asked without the data, and the answer
  has a notice.
"""

import asyncio
import csv
import io
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from mapper.domain.checkout import Checkout, Line
from mapper.domain.outcome import Notice
from mapper.nacelle.database import Database, DatabaseUnavailable, LazyDatabase

log = logging.getLogger("mapper")

TTL_S: Final = 300.0
BUDGET_S: Final = 0.25
LOAD_WAIT_S: Final = 1.0
"""How long a consume waits for the stored data. Long, since the order is paid and the ledger has the same database."""
READING_SHARE: Final = 0.7
"""The share of the budget that the source may use. The rest is for the database."""
MAX_PRODUCTS: Final = 20_000
BATCH: Final = 50
"""The most products of one request to the source."""
WRITE_WAIT_S: Final = 0.1
"""How long a validate waits until the added data is stored."""
KEEP_CHECKOUTS_S: Final = 7 * 86_400
"""How long the data of a checkout is stored. That of a product is not deleted."""
DELETE_EVERY: Final = 1000
"""Old checkouts are deleted after each such number of writes."""

Fields = Mapping[str, Any]
"""The data of one variant: JSON values by name, such as `category`."""


@dataclass(frozen=True)
class Product:
    """The data of a product, and of its variants by each of their names (ids and SKU)."""

    fields: Fields
    variants: Mapping[str, Fields] = field(default_factory=dict)

    def of(self, line: Line) -> Fields:
        """Returns the data of a line's variant, or of the product alone if the variant is unknown."""
        for name in (line.variant_id, line.sku):
            if name and name in self.variants:
                return {**self.fields, **self.variants[name]}
        return self.fields


class SourceFailed(Exception):
    """Product data could not be read. `reason`: one word for log and metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Source(Protocol):
    def key(self, line: Line) -> str:
        """Returns the key of the line's product; "" if the source cannot look it up."""
        ...

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        """Returns the products by key, without those that do not exist. Raises `SourceFailed`."""
        ...


@dataclass(frozen=True)
class Filled:
    """The data for a checkout's lines, by `Line.index`, and a notice if some could not be read."""

    by_line: Mapping[int, Fields] = field(default_factory=dict)
    notice: Notice | None = None


NOTHING: Final = Filled()


@dataclass
class _Cached:
    product: Product | None
    """None if it does not exist."""
    at: float


class Products:
    """The cache of product data. One per process. `count`: gets the numbers of fresh, stale, read and failed ones."""

    def __init__(
        self,
        source: Source,
        database: Database | None = None,
        *,
        count: Callable[[str, int], None] = lambda _fate, _number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._database = database
        self._count = count
        self._clock = clock
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._reading: dict[str, asyncio.Task[None]] = {}
        """The running reads by key, so that a product is not read twice at once."""
        self._last: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        """The data written last, by space and session: most validates of a checkout add the same data."""
        self._writing: set[asyncio.Task[None]] = set()
        self._written = 0

    async def at_validate(self, checkout: Checkout) -> Checkout:
        """Returns the checkout with the product data of its lines."""
        return _filled(checkout, await self.fill(checkout, BUDGET_S))

    async def keep(self, space: str, session: str, checkout: Checkout) -> None:
        """Stores a checkout's product data for its order. If that fails, consume uses the data stored by product."""
        added = checkout.product_data
        data = _ENCODER.encode({_name(line): added[line.index] for line in checkout.cart if line.index in added})
        if self._database is None or self._last.get((space, session)) == data:
            return
        writing = asyncio.create_task(self._write(self._database, space, session, data))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.wait({writing}, timeout=WRITE_WAIT_S)  # after that, the write continues

    async def _write(self, database: Database, space: str, session: str, data: bytes) -> None:
        with suppress(DatabaseUnavailable):
            await database.run(_KEEP_CHECKOUT, f"{space}\n{session}", data, time.time())
            self._last[space, session] = data
            while len(self._last) > MAX_PRODUCTS:
                self._last.popitem(last=False)
            self._written += 1
            if self._written % DELETE_EVERY == 0:
                await database.run(_FORGET, time.time() - KEEP_CHECKOUTS_S)

    async def at_consume(self, order: Checkout, space: str, session: str) -> Checkout:
        """Returns the order with the product data that validate last added: for this session, else for any."""
        stored = await self._load_checkout(space, session)
        by_line = {line.index: stored[name] for line in order.cart if (name := _name(line)) in stored}
        found = await self.fill(order, BUDGET_S, as_before=True, without=by_line.keys())
        return _filled(order, Filled({**found.by_line, **by_line}, found.notice))

    async def fill(
        self,
        checkout: Checkout,
        budget_s: float = BUDGET_S,
        *,
        as_before: bool = False,
        without: Container[int] = (),
    ) -> Filled:
        """Returns the product data of a checkout's lines within `budget_s`. Never raises.

        `as_before`: prefers the stored data to the source's, and waits up to `LOAD_WAIT_S` for it. `without`: the lines
        (`Line.index`) that need no data.
        """
        lines = [line for line in checkout.cart if line.index not in without]
        keys = {line.index: key for line in lines if (key := self._source.key(line))}
        wanted = set(keys.values())
        if as_before:
            await self._load(wanted, LOAD_WAIT_S)
        give_up_at = time.monotonic() + budget_s
        now = self._clock()
        known = {key for key in wanted if key in self._cache}
        stale = {key for key in known if now > self._cache[key].at + TTL_S}
        missing = wanted - known
        reading = self._read(missing if as_before else missing | stale)
        if missing:
            left_s = give_up_at - time.monotonic()
            # After the time-out the reads continue, for the next call.
            await asyncio.wait(
                {reading[key] for key in missing}, timeout=left_s if as_before else left_s * READING_SHARE
            )
            await self._load({key for key in missing if key not in self._cache}, give_up_at - time.monotonic())
        failed = wanted - self._cache.keys()
        self._count("fresh", len(known - stale))
        self._count("stale", len(stale))
        self._count("read", len(missing - failed))
        self._count("failed", len(failed))
        return self._filled(checkout, keys, failed)

    def _filled(self, checkout: Checkout, keys: Mapping[int, str], failed: set[str]) -> Filled:
        found: dict[int, Fields] = {}
        without: list[str] = []
        for line in checkout.cart:
            key = keys.get(line.index, "")
            cached = self._cache.get(key)
            if cached is not None:
                self._cache.move_to_end(key)
            if cached is not None and cached.product is not None:
                found[line.index] = cached.product.of(line)
            elif key in failed:
                without.append(line.pointer)
        if not without:
            return Filled(found)
        text = f"Product data of {len(without)} line(s) could not be read; the engine was asked without it."
        return Filled(found, Notice("product_data_missing", text, {"lines": without}))

    def _read(self, keys: set[str]) -> dict[str, asyncio.Task[None]]:
        """Starts a read for each key without a running one. Returns the tasks by key."""
        for batch in _batches(sorted(keys - self._reading.keys())):
            task = asyncio.create_task(self._read_batch(batch))
            self._reading |= dict.fromkeys(batch, task)
        return {key: self._reading[key] for key in keys}

    async def _read_batch(self, keys: list[str]) -> None:
        try:
            found = await self._source.read(keys)
        except SourceFailed as failure:
            log.warning("product data", extra={"facts": {"reason": failure.reason, "products": len(keys)}})
            return
        except Exception:
            log.exception("product data")
            return
        finally:
            for key in keys:
                self._reading.pop(key, None)
        for key in found:
            self._put(key, found[key], self._clock())
        # A product that the source no longer has keeps its last data.
        gone = {key for key in keys if key not in found}
        await self._load({key for key in gone if key not in self._cache}, BUDGET_S)
        for key in gone:
            cached = self._cache.get(key)
            self._put(key, cached.product if cached else None, self._clock())
        await self._store(found)

    def _put(self, key: str, product: Product | None, at: float) -> None:
        self._cache[key] = _Cached(product, at)
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_PRODUCTS:
            self._cache.popitem(last=False)

    # -- The stored data -----------------------------------------------------------------------------------------------

    async def _store(self, found: Mapping[str, Product]) -> None:
        if self._database is None:
            return
        with suppress(DatabaseUnavailable):  # the next read stores it
            for key, product in found.items():
                await self._database.run(_KEEP, key, _ENCODER.encode(product), time.time())

    async def _load(self, keys: set[str], budget_s: float) -> None:
        """Loads stored products into the cache. They count as stale, so that they are read again."""
        if self._database is None or not keys:
            return
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(budget_s):
                for some in _batches(sorted(keys)):
                    places = ", ".join(f"${number}" for number in range(1, len(some) + 1))
                    for key, data in await self._database.run(f"{_FIND} ({places})", *some):
                        self._put(key, _DECODER.decode(data), self._clock() - TTL_S - 1)

    async def _load_checkout(self, space: str, session: str) -> Mapping[str, Fields]:
        """Returns the stored product data of a checkout's lines, by `_name`."""
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(LOAD_WAIT_S):
                for (data,) in (
                    await self._database.run(_FIND_CHECKOUT, f"{space}\n{session}") if self._database else ()
                ):
                    return _CHECKOUT_DECODER.decode(data)
        return {}


_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS mapper_products (key TEXT PRIMARY KEY, data BYTEA NOT NULL, at DOUBLE PRECISION NOT NULL)
    """,
    """
    CREATE TABLE IF NOT EXISTS mapper_filled_in
    (session TEXT PRIMARY KEY, data BYTEA NOT NULL, at DOUBLE PRECISION NOT NULL)
    """,
)
_KEEP_CHECKOUT: Final = """
    INSERT INTO mapper_filled_in (session, data, at) VALUES ($1, $2, $3)
    ON CONFLICT (session) DO UPDATE SET data = excluded.data, at = excluded.at
"""
_FIND_CHECKOUT: Final = "SELECT data FROM mapper_filled_in WHERE session = $1"
_FORGET: Final = "DELETE FROM mapper_filled_in WHERE at < $1"
_KEEP: Final = """
    INSERT INTO mapper_products (key, data, at) VALUES ($1, $2, $3)
    ON CONFLICT (key) DO UPDATE SET data = excluded.data, at = excluded.at
"""
_FIND: Final = "SELECT key, data FROM mapper_products WHERE key IN"
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_DECODER: Final = msgspec.json.Decoder(Product, float_hook=Decimal)
_CHECKOUT_DECODER: Final = msgspec.json.Decoder(dict[str, dict[str, Any]], float_hook=Decimal)


def remembered_in(url: str) -> Database:
    """Returns the ledger's database, with the tables of product data."""
    return LazyDatabase(url, *_TABLES, outlives_power=False)  # not synced, since a validate waits for the write


def _filled(checkout: Checkout, found: Filled) -> Checkout:
    """Adds an entry, possibly empty, for each line except those whose data could not be read."""
    failed = found.notice.payload["lines"] if found.notice else ()
    by_line = {line.index: found.by_line.get(line.index, {}) for line in checkout.cart if line.pointer not in failed}
    return checkout.with_product_data(by_line, *([found.notice] if found.notice else []))


def _name(line: Line) -> str:
    """Returns the names that a source identifies a line by."""
    return f"{line.variant_id}\n{line.sku}\n{line.product_id}"


def _batches(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


class FileSource:
    """A static file with a row for each variant, which is found by `variant_id`, else `sku`, else `product_id`.

    The file is CSV with a header, or JSON with a list of objects. Every other column is a field, named by its header.
    """

    NAMES: Final = ("variant_id", "sku", "product_id")

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises `OSError`, and `ValueError` with a sentence that names the row."""
        self._rows: dict[str, Fields] = {}
        for place, row in _rows(path):
            names = [f"{name}:{row[name]}" for name in self.NAMES if row.get(name) not in (None, "")]
            if not names:
                raise ValueError(f"{place}: a row needs one of {', '.join(self.NAMES)}")
            fields = {key: value for key, value in row.items() if key not in self.NAMES and value not in (None, "")}
            for name in names:
                self._rows.setdefault(name, fields)

    def key(self, line: Line) -> str:
        for name in self.NAMES:
            if (value := getattr(line, name)) and (key := f"{name}:{value}") in self._rows:
                return key
        return ""

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        return {key: Product(self._rows[key]) for key in keys if key in self._rows}


def _rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields each row with its place in the file. Raises as `FileSource`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start})") from None
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path.name, text)
        return
    try:
        rows: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from None
    items: list[Any] = rows if isinstance(rows, list) else [None]
    for number, row in enumerate(items):
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, item {number}: the file is no list of objects")  # noqa: TRY004 - a wrong file
        yield f"{path.name}, item {number}", {k: str(v) if k in FileSource.NAMES else v for k, v in row.items()}


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yields each row with its line number. Cells are trimmed, and may contain line ends."""
    reader = csv.reader(io.StringIO(text, newline=""))
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a product's description may be long
    header: list[str] = []
    for cells in reader:
        row = [cell.strip() for cell in cells]
        if not header:
            header = row
        elif row and len(row) != len(header):
            raise ValueError(f"{name}, line {reader.line_num}: it has not as many columns as the header")
        elif row:
            yield f"{name}, line {reader.line_num}", dict(zip(header, row, strict=True))
