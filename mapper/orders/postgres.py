"""The ledger in PostgreSQL, for several hosts.

No transaction spans two round trips, so that a paused process holds no lock. This module reads a row, computes the
next one, and writes it with one statement, which has no effect if the row has changed; then all is repeated. Leases
and quarantines are counted on the database's clock, which all hosts share.

The URL is libpq's (`postgresql://user:password@host:5432/database?sslmode=require`). Only the driver keeps it; no error
and no `repr` shows it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]

from mapper.orders.rows import (
    COLUMNS,
    FINISHED,
    OPEN,
    Backlog,
    ClaimStep,
    Clock,
    Key,
    LedgerTooNew,
    LedgerTooOld,
    LedgerUnavailable,
    LedgerUnusable,
    Moment,
    Row,
    State,
    Step,
    backlog_of,
    row_of,
    values_of,
)

T = TypeVar("T")

# One entry per version of the schema: the statements that migrate the version before to it.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE mapper_orders (
            space text NOT NULL, engine text NOT NULL, order_key text NOT NULL,
            fingerprint bytea NOT NULL, state text NOT NULL, fence bigint NOT NULL, attempts bigint NOT NULL,
            session text NOT NULL, body bytea NOT NULL, owner text NOT NULL,
            sent_at float8, lease_until float8 NOT NULL, unknown_since float8, looked_at float8, absent_since float8,
            look_at float8, looks bigint NOT NULL, status integer, reply bytea, reason text NOT NULL,
            version bigint NOT NULL, created_at float8 NOT NULL, updated_at float8 NOT NULL,
            PRIMARY KEY (space, engine, order_key)
        )""",
        "CREATE INDEX mapper_orders_open ON mapper_orders (look_at) WHERE status IS NULL",
        "CREATE INDEX mapper_orders_with_reply ON mapper_orders (updated_at) WHERE reply IS NOT NULL",
        "CREATE INDEX mapper_orders_finished ON mapper_orders (updated_at) WHERE status IS NOT NULL",
        "CREATE TABLE mapper_leases (name text PRIMARY KEY, owner text NOT NULL, until float8 NOT NULL)",
    ),
    # Processes of version 1 may still write while this one starts, so every new column has a default.
    (
        """ALTER TABLE mapper_orders
            ADD COLUMN identity_version integer NOT NULL DEFAULT 1, ADD COLUMN digest bytea,
            ADD COLUMN attempt bigint NOT NULL DEFAULT 1, ADD COLUMN held text,
            ADD COLUMN customer text NOT NULL DEFAULT '', ADD COLUMN currency text NOT NULL DEFAULT '',
            ADD COLUMN handle text NOT NULL DEFAULT '', ADD COLUMN notices bytea, ADD COLUMN confirmed_at float8,
            ADD COLUMN cart text NOT NULL DEFAULT '', ADD COLUMN passed_from text NOT NULL DEFAULT ''""",
        "CREATE INDEX mapper_orders_session ON mapper_orders (space, engine, session)",
        # If several orders were redeemed in one session, the first holds it.
        """UPDATE mapper_orders SET held = session WHERE state NOT IN ('REJECTED', 'RETRYABLE') AND session <> ''
             AND NOT EXISTS (SELECT 1 FROM mapper_orders AS other WHERE other.space = mapper_orders.space
               AND other.engine = mapper_orders.engine AND other.session = mapper_orders.session
               AND other.state NOT IN ('REJECTED', 'RETRYABLE')
               AND (other.created_at, other.order_key) < (mapper_orders.created_at, mapper_orders.order_key))""",
        "UPDATE mapper_orders SET confirmed_at = updated_at WHERE state IN ('DONE', 'REPAIRED')",
        "UPDATE mapper_orders SET cart = session",
        "CREATE UNIQUE INDEX mapper_orders_held ON mapper_orders (space, engine, held)",
        "CREATE INDEX mapper_orders_cart ON mapper_orders (space, engine, cart)",
        """CREATE UNIQUE INDEX mapper_orders_held_cart ON mapper_orders (space, engine, cart)
             WHERE held IS NOT NULL AND cart <> ''""",
        "CREATE INDEX mapper_orders_passed_on ON mapper_orders (space, engine, passed_from) WHERE passed_from <> ''",
        "DROP INDEX mapper_orders_open",
        "DROP INDEX mapper_orders_with_reply",
        "DROP INDEX mapper_orders_finished",
        "CREATE INDEX mapper_orders_due ON mapper_orders (look_at) WHERE look_at IS NOT NULL",
        "CREATE INDEX mapper_orders_by_state ON mapper_orders (state, created_at)",
        "CREATE INDEX mapper_orders_with_body ON mapper_orders (updated_at) WHERE body <> ''",
        "CREATE INDEX mapper_orders_by_age ON mapper_orders (updated_at)",
        """CREATE INDEX mapper_orders_unconfirmed ON mapper_orders (updated_at)
             WHERE confirmed_at IS NULL AND state IN ('DONE', 'REPAIRED')""",
    ),
)
_MIGRATION_LOCK = 0x6D6170706572  # an arbitrary number; with the lock, one process migrates at a time

_MAX_CONNECTIONS = 10
_MAX_IDLE_S = 300.0
_MAX_ATTEMPTS = 10

_NOW = "coalesce($1::float8, extract(epoch FROM clock_timestamp())::float8)"
_ROW = ", ".join(COLUMNS)
_READ = f"""
    SELECT moment.now, found.* FROM (SELECT {_NOW} AS now) moment LEFT JOIN
    (SELECT {_ROW} FROM mapper_orders WHERE space = $2 AND engine = $3 AND order_key = $4) found ON true
"""  # noqa: S608 -- constants
_OTHERS = " UNION ".join(
    f"SELECT {_ROW} FROM mapper_orders WHERE space = $1 AND engine = $2 AND order_key <> $3 AND {which}"  # noqa: S608
    for which in ("session = $4", "cart = $4", "passed_from = $3 AND passed_from <> ''")
)
_INSERT = f"""
    INSERT INTO mapper_orders ({_ROW}) VALUES ({", ".join(f"${n}" for n, _ in enumerate(COLUMNS, 1))})
    ON CONFLICT DO NOTHING
"""  # noqa: S608 -- constants
_UNCHANGED = ("space", "engine", "order_key", "fence", "version")
_UPDATE = f"""
    UPDATE mapper_orders SET {", ".join(f"{column} = ${n}" for n, column in enumerate(COLUMNS, 1))}
    WHERE {" AND ".join(f"{column} = ${n}" for n, column in enumerate(_UNCHANGED, len(COLUMNS) + 1))}
"""  # noqa: S608 -- constants
_LEASE = f"""
    INSERT INTO mapper_leases (name, owner, until) VALUES ($2, $3, {_NOW} + $4::float8)
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE mapper_leases.owner = excluded.owner OR mapper_leases.until <= {_NOW}
"""  # noqa: S608 -- constants
_FINISHED = "(state IN ('DONE', 'REPAIRED', 'REJECTED', 'CANCELLED') OR (state = 'RETRYABLE' AND look_at IS NULL))"
_REDEEMED = "state IN ('DONE', 'REPAIRED')"
_UNCONFIRMED = f"confirmed_at IS NULL AND {_REDEEMED}"
_PRUNE = f"""
    DELETE FROM mapper_orders WHERE (space, engine, order_key) IN (SELECT space, engine, order_key FROM mapper_orders
    WHERE updated_at < $1 AND {_FINISHED} ORDER BY updated_at LIMIT $2)
"""  # noqa: S608 -- constants

# The errors of a lost connection. The driver raises `InternalClientError` if the server has closed the connection and
# the driver has not read that yet.
_LOST = (
    *(OSError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError),
)

_UNUSABLE = {
    "28": "The ledger's database does not accept the user or the password.",
    "3D": "The ledger's database does not exist.",
    "3F": "The ledger's schema (search_path) does not exist.",
    "42501": "The ledger's user may not make or use its tables.",
}
"""The errors that a retry cannot help, by SQLSTATE or its class."""


class _Lost(LedgerUnavailable):
    """No connection could be made, or the connection was lost."""


class _Taken(LedgerUnavailable):
    """A unique constraint: another row has the key, or holds the session."""


class Pool:
    """At most `_MAX_CONNECTIONS` connections, opened on demand and reused.

    The driver's own pool is not used: it reuses connections that the server has closed.
    """

    def __init__(self, connect: Callable[[], Awaitable[Any]], timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._idle: list[tuple[Any, float]] = []
        """Each with the time of its last use (monotonic)."""
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Yields a connection for one statement. After any exception it is closed. Raises `LedgerUnavailable`."""
        with _errors():
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
            try:
                connection = self._reuse() or await self._new()
                try:
                    yield connection
                except BaseException:
                    connection.terminate()
                    raise
                self._keep(connection)
            finally:
                self._free.release()

    def drop_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            connection, _ = self._idle.pop()
            with contextlib.suppress(TimeoutError, *_LOST):
                await connection.close(timeout=self._timeout_s)

    async def _new(self) -> Any:
        if self._closed:
            raise LedgerUnavailable("closed")
        return await self._connect()

    def _reuse(self) -> Any:
        while self._idle:
            connection, since = self._idle.pop()
            if not connection.is_closed() and time.monotonic() - since < _MAX_IDLE_S:
                return connection
            connection.terminate()
        return None

    def _keep(self, connection: Any) -> None:
        if self._closed:
            connection.terminate()
        else:
            self._idle.append((connection, time.monotonic()))


class PostgresStore:
    """See `mapper.orders.store.Store`."""

    def __init__(self, pool: Pool, clock: Clock | None) -> None:
        self._pool = pool
        self._clock = clock

    @classmethod
    async def open(
        cls, url: str, clock: Clock | None = None, timeout_s: float = 5.0, *, create: bool = True, patient: bool = False
    ) -> "PostgresStore":
        """Connects and migrates the schema. `timeout_s`: the limit of each connect and statement.

        `create` and `patient`: as for `open_ledger`. `clock` is for tests.
        """
        options: dict[str, Any] = {
            "timeout": timeout_s,
            "command_timeout": timeout_s,
            "server_settings": {
                "application_name": "promotions-mapper",
                "statement_timeout": str(round(timeout_s * 1000)),
                "synchronous_commit": "on",  # the default of the database may be less durable
                "default_transaction_isolation": "read committed",
            },
        }

        is_current = False

        async def connect() -> Any:
            nonlocal is_current
            try:
                connection = await asyncpg.connect(url, **options)
            except (ValueError, OverflowError):
                # The driver's message may contain a part of the URL.
                message = "The ledger's URL cannot be read: is the port right, is the password percent-encoded?"
                raise LedgerUnusable("wrong_url", message) from None
            if not is_current:  # here, since the server may have been unreachable when the process started
                try:
                    await _migrate(connection, create=create)
                except BaseException:
                    connection.terminate()
                    raise
                is_current = True
            return connection

        store = cls(Pool(connect, timeout_s), clock)
        try:
            async with store._pool.connection():
                pass
        except BaseException as error:
            if not patient or not isinstance(error, LedgerUnavailable) or isinstance(error, LedgerUnusable):
                await store.close()
                raise
        return store

    async def change(self, key: Key, step: Step[T]) -> T:
        return await self.claim(key, lambda _: (), lambda row, _, at: step(row, at))

    async def claim(self, key: Key, sessions: Callable[[Row | None], Sequence[str]], step: ClaimStep[T]) -> T:
        for _ in range(_MAX_ATTEMPTS):
            moment, row = await self._read(key)
            others = [other for session in sessions(row) for other in await self.of_session(key, session)]
            result, changed = step(row, others, moment)
            if changed is None or changed is row:
                return result
            if await self._write(row, changed):
                return result
        raise LedgerUnavailable("contended")

    async def of_session(self, key: Key, session: str) -> list[Row]:
        found = await self._fetch(_OTHERS, key.space, key.engine, key.order, session)
        return [row_of(list(values)) for values in found]

    async def remove(self, row: Row) -> bool:
        key = row.key
        query = "DELETE FROM mapper_orders WHERE space = $1 AND engine = $2 AND order_key = $3 AND version = $4"
        return await self._execute(query, key.space, key.engine, key.order, row.version) == 1

    async def _write(self, row: Row | None, changed: Row) -> bool:
        """False if another writer was faster: it changed the row, or took its key or its session."""
        if row is None:
            return await self._execute(_INSERT, *values_of(changed)) == 1
        same = (row.key.space, row.key.engine, row.key.order, row.fence, row.version)
        try:
            return await self._execute(_UPDATE, *values_of(changed), *same) == 1
        except _Taken:
            return False

    async def moment(self) -> Moment:
        found = await self._fetch(f"SELECT {_NOW}", self._now())
        return self._moment(found[0][0])

    async def show(self, key: Key) -> Row | None:
        _, row = await self._read(key)
        return row

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        query = f"""
            SELECT {_ROW} FROM mapper_orders
            WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR order_key = $2)
            ORDER BY updated_at DESC LIMIT $3
        """  # noqa: S608 -- constants
        return [row_of(list(found)) for found in await self._fetch(query, state and state.value, order, limit)]

    async def unconfirmed(self, limit: int) -> list[Row]:
        query = f"SELECT {_ROW} FROM mapper_orders WHERE {_UNCONFIRMED} ORDER BY updated_at DESC LIMIT $1"  # noqa: S608
        return [row_of(list(found)) for found in await self._fetch(query, limit)]

    async def due(self, engine: str, limit: int) -> list[Row]:
        query = f"""
            SELECT {_ROW} FROM mapper_orders WHERE look_at <= {_NOW} AND engine = $2
            ORDER BY {_REDEEMED}, look_at LIMIT $3
        """  # noqa: S608 -- constants
        return [row_of(list(found)) for found in await self._fetch(query, self._now(), engine, limit)]

    async def lead(self, engine: str, owner: str, ttl_s: float) -> bool:
        return await self._execute(_LEASE, self._now(), f"leader {engine}", owner, ttl_s) == 1

    async def backlog(self) -> Backlog:
        open_ones = "SELECT state, count(*), min(created_at) FROM mapper_orders WHERE state = ANY($1) GROUP BY state"
        found = await self._fetch(open_ones, [state.value for state in OPEN])
        unconfirmed = await self._fetch(f"SELECT count(*) FROM mapper_orders WHERE {_UNCONFIRMED}")  # noqa: S608
        return backlog_of([tuple(row) for row in found], unconfirmed[0][0], (await self.moment()).wall)

    async def finished(self) -> dict[State, int]:
        query = "SELECT state, count(*) FROM mapper_orders WHERE state = ANY($1) GROUP BY state"
        found = await self._fetch(query, [state.value for state in FINISHED])
        return {State(state): count for state, count in found}

    async def with_body(self, before: float, limit: int) -> list[Row]:
        query = f"""
            SELECT {_ROW} FROM mapper_orders WHERE body <> '' AND updated_at < $1 AND {_FINISHED}
            ORDER BY updated_at LIMIT $2
        """  # noqa: S608 -- constants
        return [row_of(list(found)) for found in await self._fetch(query, before, limit)]

    async def prune(self, before: float, limit: int) -> int:
        return await self._execute(_PRUNE, before, limit)

    async def ping(self) -> None:
        await self._execute(_LEASE, self._now(), "ping", "", 0.0)

    async def close(self) -> None:
        await self._pool.close()

    def _now(self) -> float | None:
        return self._clock.now() if self._clock else None

    def _moment(self, now: float) -> Moment:
        return Moment(now, self._clock.wall() if self._clock else now)

    async def _read(self, key: Key) -> tuple[Moment, Row | None]:
        now, *values = (await self._fetch(_READ, self._now(), key.space, key.engine, key.order))[0]
        return self._moment(now), row_of(values) if values[0] is not None else None

    async def _fetch(self, query: str, *arguments: Any) -> Any:
        """Reads rows. If the connection is lost, reads once more on a new one."""
        try:
            return await self._fetch_once(query, *arguments)
        except _Lost:
            self._pool.drop_idle()
            return await self._fetch_once(query, *arguments)

    async def _fetch_once(self, query: str, *arguments: Any) -> Any:
        async with self._pool.connection() as connection:
            return await connection.fetch(query, *arguments)

    async def _execute(self, query: str, *arguments: Any) -> int:
        """Writes, and returns how many rows. Never retried: after a lost connection, the write may have happened."""
        async with self._pool.connection() as connection:
            tag: str = await connection.execute(query, *arguments)
            return int(tag.rsplit(" ", 1)[-1])


async def _migrate(connection: Any, *, create: bool) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        if await connection.fetchval("SELECT to_regclass('mapper_schema') IS NULL"):
            if not create:
                raise LedgerUnavailable("missing", "There is no ledger in this database.")
            await connection.execute("CREATE TABLE mapper_schema (version integer NOT NULL)")
            await connection.execute("INSERT INTO mapper_schema VALUES (0)")
        found = await connection.fetchval("SELECT version FROM mapper_schema")
        if found > len(MIGRATIONS):
            raise LedgerTooNew(found, len(MIGRATIONS))
        if not create and found < len(MIGRATIONS):
            raise LedgerTooOld(found, len(MIGRATIONS))
        for version, statements in enumerate(MIGRATIONS[found:], found + 1):
            for statement in statements:
                await connection.execute(statement)
            await connection.execute("UPDATE mapper_schema SET version = $1", version)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LedgerUnavailable("slow") from error
    except _LOST as error:
        raise _Lost("unreachable") from error
    except asyncpg.UniqueViolationError as error:
        raise _Taken("contended") from error
    except asyncpg.PostgresError as error:
        state = getattr(error, "sqlstate", None) or ""
        if message := _UNUSABLE.get(state) or _UNUSABLE.get(state[:2]):
            raise LedgerUnusable(f"sqlstate_{state}", message) from error
        raise LedgerUnavailable(f"sqlstate_{state}") from error
