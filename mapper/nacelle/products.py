"""Product data by variant: what a line lacks and a campaign asks for (category, name, weight, attributes).

Nacelle's page says so: "use variant id to pull additional product information as required". A `Source` knows products:
a file, or Nacelle's Storefront API (`mapper.nacelle.storefront`). `Products` stands between it and the calls:

- **Kept.** For `TTL_S` what was read is used as it is. Older, it is still used, and read anew in the background.
- **Bounded.** At most `MOST` products are kept; the one that was not used for longest goes first.
- **Stale rather than nothing.** What validate filled in is written to the ledger's database, by checkout and by
  product. Consume takes it from there first, however old, on any worker and after a restart: a category that is gone or
  changed after payment would take the discount with it.
- **In time.** A call waits `BUDGET_S` at most for the source. Then the engine is asked without, and a notice says so.
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
RECALL_S: Final = 1.0
"""How long a consume waits for what validate wrote down: it is the ledger's own database, and an order is paid for."""
READING_SHARE: Final = 0.7
"""Of the budget: the rest is for what the database remembers."""
MOST: Final = 20_000
BATCH: Final = 50
"""Products in one question."""
KEEPING_S: Final = 0.1
"""How long a validate waits until what it filled in is written down."""
KEPT_S: Final = 7 * 86_400
"""How long it is kept by checkout; by product it is kept on."""
FORGETTING: Final = 1000
"""After so many checkouts, the old ones are forgotten."""

Fields = Mapping[str, Any]
"""What is known of one variant: JSON values by name, such as `category`."""


@dataclass(frozen=True)
class Product:
    """What is known of a product, and of each of its variants by every name that a variant has (ids and SKU)."""

    fields: Fields
    variants: Mapping[str, Fields] = field(default_factory=dict)

    def of(self, line: Line) -> Fields:
        """What is known of a line's variant; of the product alone where the variant is not among them."""
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
        """What the line's product is asked for by; "" where it cannot be asked for."""
        ...

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        """The products by key; those that do not exist are left out. Raises `SourceFailed`."""
        ...


@dataclass(frozen=True)
class Filled:
    """What a checkout's lines lack, by `Line.index`; and what is to be said where something could not be had."""

    by_line: Mapping[int, Fields] = field(default_factory=dict)
    notice: Notice | None = None


NOTHING: Final = Filled()


@dataclass
class _Kept:
    product: Product | None
    """None: it does not exist."""
    at: float


class Products:
    """One per process. `count` is told how many products were fresh, stale, read or failed."""

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
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._reading: dict[str, asyncio.Task[None]] = {}
        """What is being read now, by key: nobody asks for the same product twice at once."""
        self._last: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        """What was written down last, by space and session: a checkout is validated again and again."""
        self._writing: set[asyncio.Task[None]] = set()
        self._written = 0

    async def at_validate(self, checkout: Checkout) -> Checkout:
        """The checkout with what its lines lack."""
        found = await self.fill(checkout, BUDGET_S)
        return _filled(checkout, found)

    async def keep(self, space: str, session: str, checkout: Checkout) -> None:
        """Writes down what a checkout's lines were filled in with, for its own order.

        Where that fails, what was last filled in by product has to do.
        """
        data = _ENCODER.encode({_name(line): checkout.product_data[index] for index, line in _known(checkout)})
        if self._database is None or self._last.get((space, session)) == data:
            return
        writing = asyncio.create_task(self._write(self._database, space, session, data))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.wait({writing}, timeout=KEEPING_S)  # it goes on where the time is up

    async def _write(self, database: Database, space: str, session: str, data: bytes) -> None:
        with suppress(DatabaseUnavailable):
            await database.run(_KEEP_CHECKOUT, f"{space}\n{session}", data, time.time())
            self._last[space, session] = data
            while len(self._last) > MOST:
                self._last.popitem(last=False)
            self._written += 1
            if self._written % FORGETTING == 0:
                await database.run(_FORGET, time.time() - KEPT_S)

    async def at_consume(self, order: Checkout, space: str, session: str) -> Checkout:
        """The same of an order, as validate filled it in: for this session, else, for any, each product last."""
        kept = await self._of_checkout(space, session)
        known = {line.index: kept[name] for line in order.cart if (name := _name(line)) in kept}
        found = await self.fill(order, BUDGET_S, as_before=True, without=known.keys())
        return _filled(order, Filled({**found.by_line, **known}, found.notice))

    async def fill(
        self,
        checkout: Checkout,
        budget_s: float = BUDGET_S,
        *,
        as_before: bool = False,
        without: Container[int] = (),
    ) -> Filled:
        """What the lines of a checkout lack. It never raises, and never waits longer than `budget_s`.

        `as_before`: what was filled in last, by any process, comes before what the source says now; for that it may
        take `RECALL_S`. `without`: the lines (`Line.index`) that need nothing.
        """
        lines = [line for line in checkout.cart if line.index not in without]
        keys = {line.index: key for line in lines if (key := self._source.key(line))}
        wanted = set(keys.values())
        if as_before:
            await self._recall(wanted, RECALL_S)
        give_up = time.monotonic() + budget_s
        now = self._clock()
        known = {key for key in wanted if key in self._kept}
        stale = {key for key in known if now > self._kept[key].at + TTL_S}
        missing = wanted - known
        reading = self._read(missing if as_before else missing | stale)
        if missing:
            left = give_up - time.monotonic()
            await self._wait({reading[key] for key in missing}, left if as_before else left * READING_SHARE)
            await self._recall({key for key in missing if key not in self._kept}, give_up - time.monotonic())
        failed = wanted - self._kept.keys()
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
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            if kept is not None and kept.product is not None:
                found[line.index] = kept.product.of(line)
            elif key in failed:
                without.append(line.pointer)
        if not without:
            return Filled(found)
        text = f"Product data of {len(without)} line(s) could not be read; the engine was asked without it."
        return Filled(found, Notice("product_data_missing", text, {"lines": without}))

    def _read(self, keys: set[str]) -> dict[str, asyncio.Task[None]]:
        """Starts to read what nobody reads yet; the task of each key."""
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
            self._keep(key, found[key], self._clock())
        # What the source has no longer is known as it was.
        gone = {key for key in keys if key not in found}
        await self._recall({key for key in gone if key not in self._kept}, BUDGET_S)
        for key in gone:
            kept = self._kept.get(key)
            self._keep(key, kept.product if kept else None, self._clock())
        await self._remember(found)

    def _keep(self, key: str, product: Product | None, at: float) -> None:
        self._kept[key] = _Kept(product, at)
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)

    @staticmethod
    async def _wait(tasks: set[asyncio.Task[None]], budget_s: float) -> None:
        """The tasks go on where the time is up: what they read is there for the next call."""
        await asyncio.wait(tasks, timeout=budget_s)

    # -- What outlives the process -------------------------------------------------------------------------------------

    async def _remember(self, found: Mapping[str, Product]) -> None:
        if self._database is None:
            return
        with suppress(DatabaseUnavailable):  # it is read again, then
            for key, product in found.items():
                await self._database.run(_KEEP, key, _ENCODER.encode(product), time.time())

    async def _recall(self, keys: set[str], budget_s: float) -> None:
        """Takes from the database what the source did not give in time. It counts as stale: it is read anew."""
        if self._database is None or not keys:
            return
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(budget_s):
                for some in _batches(sorted(keys)):
                    places = ", ".join(f"${number}" for number in range(1, len(some) + 1))
                    for key, data in await self._database.run(f"{_FIND} ({places})", *some):
                        self._keep(key, _DECODER.decode(data), self._clock() - TTL_S - 1)

    async def _of_checkout(self, space: str, session: str) -> Mapping[str, Fields]:
        """What the lines of a checkout were filled in with, by their names."""
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(RECALL_S):
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
    """The ledger's database, with the tables of what was filled in."""
    return LazyDatabase(url, *_TABLES, outlives_power=False)  # a validate waits for it


def _filled(checkout: Checkout, found: Filled) -> Checkout:
    """With an entry for each line but those that could not be asked about: nothing known is an answer, too."""
    failed = found.notice.payload["lines"] if found.notice else ()
    by_line = {line.index: found.by_line.get(line.index, {}) for line in checkout.cart if line.pointer not in failed}
    return checkout.with_product_data(by_line, *([found.notice] if found.notice else []))


def _known(checkout: Checkout) -> Iterator[tuple[int, Line]]:
    return ((line.index, line) for line in checkout.cart if line.index in checkout.product_data)


def _name(line: Line) -> str:
    """What makes two lines the same to a source."""
    return f"{line.variant_id}\n{line.sku}\n{line.product_id}"


def _batches(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


async def prepare(database: Database) -> None:
    """Makes the tables. Raises `DatabaseUnavailable`."""
    for table in _TABLES:
        await database.run(table)


class FileSource:
    """A static file: a row for each variant, found by `variant_id`, else `sku`, else `product_id`.

    CSV with a header, or JSON: a list of objects. Every other column is a field, named by its header.
    """

    NAMES: Final = ("variant_id", "sku", "product_id")

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises `ValueError` with a sentence that names the place, and `OSError`."""
        self._rows: dict[str, Fields] = {}
        for place, row in _rows(path):
            names = [f"{name}:{row[name]}" for name in self.NAMES if row.get(name) not in (None, "")]
            if not names:
                raise ValueError(f"{place}: a row needs one of {', '.join(self.NAMES)}")
            known = {key: value for key, value in row.items() if key not in self.NAMES and value not in (None, "")}
            for name in names:
                self._rows.setdefault(name, known)

    def key(self, line: Line) -> str:
        for name in self.NAMES:
            if (value := getattr(line, name)) and (key := f"{name}:{value}") in self._rows:
                return key
        return ""

    async def read(self, keys: Iterable[str]) -> Mapping[str, Product]:
        return {key: Product(self._rows[key]) for key in keys if key in self._rows}


def _rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Each row with its place."""
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
    """Cells may hold line ends, and are trimmed."""
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
