"""The ledger's database for other tables than the orders': single statements that both SQLite and PostgreSQL take.

Each statement is atomic and durable. Its parameters are `$1`, `$2`, …
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class DatabaseUnavailable(Exception):
    """A statement failed, or the database cannot be opened. The message tells why, and holds no password."""


class Database(Protocol):
    async def run(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        """Runs one statement and returns its rows. Its writes are durable then. Raises `DatabaseUnavailable`."""
        ...

    async def close(self) -> None: ...


class LazyDatabase:
    """A database that is opened at its first use, so that the start does not wait. If that fails, each use retries."""

    def __init__(self, url: str, *tables: str, outlives_power: bool = True) -> None:
        """`tables`: the statements that create them. `outlives_power`: see `open_database`."""
        self._url, self._tables, self._outlives_power = url, tables, outlives_power
        self._opened: Database | None = None
        self._opening = asyncio.Lock()

    async def run(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        return await (self._opened or await self._open()).run(statement, *values)

    async def _open(self) -> Database:
        async with self._opening:
            if self._opened is None:
                database = await open_database(self._url, outlives_power=self._outlives_power)
                try:
                    for table in self._tables:
                        await database.run(table)
                except BaseException:
                    await database.close()
                    raise
                self._opened = database
            return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


async def open_database(url: str, *, outlives_power: bool = True) -> Database:
    """Opens the database at `sqlite:///<path>` or `postgresql://…`. Raises `DatabaseUnavailable`.

    `outlives_power`: writes survive a power cut, not only a crash of the process. SQLite then syncs at each statement.
    """
    if url.startswith("sqlite:///"):
        database = _Sqlite(url.removeprefix("sqlite:///"), "FULL" if outlives_power else "NORMAL")
        try:
            await database.open()
        except BaseException:
            await database.close()
            raise
        return database
    return await _Postgres.open(url)


class _Sqlite:
    """One connection, in a thread of its own: SQLite's statements must not run at the same time on one connection."""

    def __init__(self, path: str, synchronous: str) -> None:
        self._path, self._synchronous = path, synchronous
        self._thread = ThreadPoolExecutor(1, "database")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self._in_thread(self._connect)

    def _connect(self) -> None:
        try:
            self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
            self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        except sqlite3.Error as error:
            raise DatabaseUnavailable(str(error)) from error

    async def run(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        return await self._in_thread(lambda: self._run(statement, values))

    def _run(self, statement: str, values: Sequence[Any]) -> list[Sequence[Any]]:
        named = {str(number): value for number, value in enumerate(values, 1)}  # "$1" is a name to SQLite
        try:
            if self._connection is None:
                raise DatabaseUnavailable("the database is closed")
            return list(self._connection.execute(statement, named))
        except sqlite3.Error as error:
            raise DatabaseUnavailable(str(error)) from error

    async def close(self) -> None:
        await self._in_thread(self._disconnect)  # the thread ends with this object

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Postgres:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str) -> "_Postgres":
        import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - only where it is used

        try:
            return cls(await asyncpg.create_pool(url, min_size=0, max_size=4, timeout=5, command_timeout=5))
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable(type(error).__name__) from error

    async def run(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        import asyncpg  # noqa: PLC0415

        try:
            return [tuple(row) for row in await self._pool.fetch(statement, *values)]
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable(type(error).__name__) from error

    async def close(self) -> None:
        await self._pool.close()
