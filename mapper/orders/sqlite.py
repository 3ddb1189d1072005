"""The ledger in one SQLite file on a local disk, for any number of processes of one host.

WAL with `synchronous=FULL`: a committed write survives a power cut. Calls run in a thread of their own, so that a slow
disk does not block the event loop; a writer waits for those of other processes. The changes that wait for the thread
are committed in one transaction, since most of the time goes into syncing.
"""

import asyncio
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

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

BUSY_S = 5.0
"""How long to wait for other writers."""

# One entry per version of the schema: the statements that migrate the version before to it.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE orders (
            space TEXT NOT NULL, engine TEXT NOT NULL, order_key TEXT NOT NULL,
            fingerprint BLOB NOT NULL, state TEXT NOT NULL, fence INTEGER NOT NULL, attempts INTEGER NOT NULL,
            session TEXT NOT NULL, body BLOB NOT NULL, owner TEXT NOT NULL,
            sent_at REAL, lease_until REAL NOT NULL, unknown_since REAL, looked_at REAL, absent_since REAL,
            look_at REAL, looks INTEGER NOT NULL, status INTEGER, reply BLOB, reason TEXT NOT NULL,
            version INTEGER NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL,
            PRIMARY KEY (space, engine, order_key)
        )""",
        "CREATE INDEX orders_open ON orders (look_at) WHERE status IS NULL",
        "CREATE INDEX orders_with_reply ON orders (updated_at) WHERE reply IS NOT NULL",
        "CREATE INDEX orders_finished ON orders (updated_at) WHERE status IS NOT NULL",
        "CREATE TABLE leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL)",
        "CREATE TABLE boot (id TEXT NOT NULL)",
        "INSERT INTO boot VALUES ('')",
    ),
    # Processes of version 1 may still write while this one starts, so every new column has a default.
    (
        *(
            f"ALTER TABLE orders ADD COLUMN {column}"
            for column in (
                "identity_version INTEGER NOT NULL DEFAULT 1",
                "digest BLOB",
                "attempt INTEGER NOT NULL DEFAULT 1",
                "held TEXT",
                "customer TEXT NOT NULL DEFAULT ''",
                "currency TEXT NOT NULL DEFAULT ''",
                "handle TEXT NOT NULL DEFAULT ''",
                "notices BLOB",
                "confirmed_at REAL",
                "cart TEXT NOT NULL DEFAULT ''",
                "passed_from TEXT NOT NULL DEFAULT ''",
            )
        ),
        "CREATE INDEX orders_session ON orders (space, engine, session)",
        # If several orders were redeemed in one session, the first holds it.
        """UPDATE orders SET held = session WHERE state NOT IN ('REJECTED', 'RETRYABLE') AND session <> ''
             AND NOT EXISTS (SELECT 1 FROM orders AS other WHERE other.space = orders.space
               AND other.engine = orders.engine AND other.session = orders.session
               AND other.state NOT IN ('REJECTED', 'RETRYABLE') AND other.rowid < orders.rowid)""",
        "UPDATE orders SET confirmed_at = updated_at WHERE state IN ('DONE', 'REPAIRED')",
        "UPDATE orders SET cart = session",
        "CREATE UNIQUE INDEX orders_held ON orders (space, engine, held)",
        "CREATE INDEX orders_cart ON orders (space, engine, cart)",
        """CREATE UNIQUE INDEX orders_held_cart ON orders (space, engine, cart)
             WHERE held IS NOT NULL AND cart <> ''""",
        "CREATE INDEX orders_passed_on ON orders (space, engine, passed_from) WHERE passed_from <> ''",
        "DROP INDEX orders_open",
        "DROP INDEX orders_with_reply",
        "DROP INDEX orders_finished",
        "CREATE INDEX orders_due ON orders (look_at) WHERE look_at IS NOT NULL",
        "CREATE INDEX orders_by_state ON orders (state, created_at)",
        "CREATE INDEX orders_with_body ON orders (updated_at) WHERE length(body) > 0",
        "CREATE INDEX orders_by_age ON orders (updated_at)",
        """CREATE INDEX orders_unconfirmed ON orders (updated_at)
             WHERE confirmed_at IS NULL AND state IN ('DONE', 'REPAIRED')""",
    ),
)

_FINISHED = "(state IN ('DONE', 'REPAIRED', 'REJECTED', 'CANCELLED') OR (state = 'RETRYABLE' AND look_at IS NULL))"
_REDEEMED = "state IN ('DONE', 'REPAIRED')"
_UNCONFIRMED = f"confirmed_at IS NULL AND {_REDEEMED}"
# The subquery sorts without the bodies.
_DUE = f"""WHERE rowid IN (SELECT rowid FROM orders WHERE look_at <= ? AND engine = ?
    ORDER BY {_REDEEMED}, look_at LIMIT ?)
    ORDER BY {_REDEEMED}, look_at"""  # noqa: S608 -- constants

_ROW = ", ".join(COLUMNS)
_KEY = "space = ? AND engine = ? AND order_key = ?"
_SELECT = f"SELECT {_ROW} FROM orders"  # noqa: S608 -- a constant
# One query each, for its index: with OR, SQLite would scan all rows of a space and an engine. No row is found twice, so
# that SQLite need not compare them.
_OTHERS = " UNION ALL ".join(
    f"{_SELECT} WHERE space = :space AND engine = :engine AND order_key <> :order AND {which}"
    for which in (
        "session = :session",
        "cart = :session AND session <> :session",
        "passed_from = :order AND passed_from <> '' AND session <> :session AND cart <> :session",
    )
)
_INSERT = f"INSERT INTO orders ({_ROW}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
_UPDATE = f"UPDATE orders SET ({_ROW}) = ({', '.join('?' * len(COLUMNS))}) WHERE {_KEY} AND fence = ? AND version = ?"  # noqa: S608

_LEASE = """
    INSERT INTO leases (name, owner, until) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE leases.owner = excluded.owner OR leases.until <= ?
"""

_UNUSABLE = {
    "notadb": "The ledger's file is no SQLite database.",
    "corrupt": "The ledger's file is damaged: restore a backup.",
    "readonly": "The ledger's file, or its folder, cannot be written.",
    "cantopen": "The ledger's file, or one beside it, cannot be opened.",
    "perm": "The ledger's file may not be used.",
}
"""The errors that a retry cannot help, by SQLite's name (`_error_name`)."""


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnavailable(_error_name(error)) from error


class SqliteStore:
    """See `mapper.orders.store.Store`."""

    def __init__(self, path: str, clock: Clock, busy_s: float) -> None:
        self._path = path
        self._clock = clock
        self._busy_s = busy_s
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._waiting: deque[_Change] = deque()
        self._database: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._files: dict[str, tuple[int, int] | None] = {}
        """What is open, by path. SQLite goes on with a file that has lost its name; the next start finds another."""
        self._reopen = False
        """Whether each use tries to open the file again if it could not be opened before."""

    @classmethod
    async def open(
        cls, path: str, clock: Clock, busy_s: float = BUSY_S, *, create: bool = True, patient: bool = False
    ) -> "SqliteStore":
        """Opens or creates the file. `patient`: as for `open_ledger`."""
        store = cls(path, clock, busy_s)
        try:
            await store._run(partial(store._connect, create=create))
        except BaseException as error:
            if not patient or not isinstance(error, LedgerUnavailable) or isinstance(error, LedgerUnusable):
                await store.close()
                raise
        store._reopen = patient
        return store

    async def change(self, key: Key, step: Step[T]) -> T:
        change = _Change(key, step)
        self._waiting.append(change)
        await self._run(self._commit_waiting)
        if change.error is not None:
            raise change.error
        result: T = change.result
        return result

    async def claim(self, key: Key, sessions: Callable[[Row | None], Sequence[str]], step: ClaimStep[T]) -> T:
        def claim_step(row: Row | None, at: Moment) -> tuple[T, Row | None]:
            others = [other for session in sessions(row) for other in self._others(key, session)]
            return step(row, others, at)

        return await self.change(key, claim_step)

    async def of_session(self, key: Key, session: str) -> list[Row]:
        """Runs in the event loop, on a connection that never waits: an index read is cheaper than a thread switch."""
        if self._reader is None:
            raise LedgerUnavailable("closed")
        with _errors():
            return self._others(key, session, self._reader)

    async def remove(self, row: Row) -> bool:
        query = f"DELETE FROM orders WHERE {_KEY} AND version = ?"  # noqa: S608 -- a constant

        def work() -> bool:
            with self._transaction() as database:
                return database.execute(query, (*_key_values(row.key), row.version)).rowcount == 1

        return await self._run(work)

    async def moment(self) -> Moment:
        return self._moment()

    async def show(self, key: Key) -> Row | None:
        rows = await self._rows(f"WHERE {_KEY}", *_key_values(key))
        return rows[0] if rows else None

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        return await self._rows(
            "WHERE state = coalesce(?, state) AND order_key = coalesce(?, order_key) ORDER BY updated_at DESC LIMIT ?",
            state and state.value,
            order,
            limit,
        )

    async def unconfirmed(self, limit: int) -> list[Row]:
        return await self._rows(f"WHERE {_UNCONFIRMED} ORDER BY updated_at DESC LIMIT ?", limit)

    async def due(self, engine: str, limit: int) -> list[Row]:
        return await self._rows(_DUE, self._moment().now, engine, limit)

    async def lead(self, engine: str, owner: str, ttl_s: float) -> bool:
        return await self._run(lambda: self._lease(f"leader {engine}", owner, ttl_s))

    async def backlog(self) -> Backlog:
        states = ", ".join(f"'{state}'" for state in OPEN)
        query = f"SELECT state, count(*), min(created_at) FROM orders WHERE state IN ({states}) GROUP BY state"  # noqa: S608
        unconfirmed = f"SELECT count(*) FROM orders WHERE {_UNCONFIRMED}"  # noqa: S608 -- a constant

        def work() -> tuple[list[tuple[str, int, float]], int]:
            database = self._open()
            return database.execute(query).fetchall(), database.execute(unconfirmed).fetchone()[0]

        found, count = await self._run(work)
        return backlog_of(found, count, self._moment().wall)

    async def finished(self) -> dict[State, int]:
        states = ", ".join(f"'{state}'" for state in FINISHED)
        query = f"SELECT state, count(*) FROM orders WHERE state IN ({states}) GROUP BY state"  # noqa: S608
        found = await self._run(lambda: self._open().execute(query).fetchall())
        return {State(state): count for state, count in found}

    async def with_body(self, before: float, limit: int) -> list[Row]:
        return await self._rows(
            f"WHERE length(body) > 0 AND updated_at < ? AND {_FINISHED} ORDER BY updated_at LIMIT ?", before, limit
        )

    async def prune(self, before: float, limit: int) -> int:
        delete = f"""DELETE FROM orders WHERE rowid IN (
            SELECT rowid FROM orders WHERE updated_at < ? AND {_FINISHED} ORDER BY updated_at LIMIT ?
        )"""  # noqa: S608 -- a constant

        def work() -> int:
            with self._transaction() as database:
                return database.execute(delete, (before, limit)).rowcount

        return await self._run(work)

    async def ping(self) -> None:
        await self._run(lambda: self._lease("ping", "", 0.0))

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()  # here, where it is used: a connection must not be used by two threads at once
        try:
            await self._run(self._disconnect)
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with _errors():
                return work()

        try:
            done = asyncio.get_running_loop().run_in_executor(self._thread, guarded)
        except RuntimeError as error:  # the executor has been shut down
            raise LedgerUnavailable("closed") from error
        return await done

    async def _rows(self, where: str, *parameters: Any) -> list[Row]:
        found = await self._run(lambda: self._open().execute(f"{_SELECT} {where}", parameters).fetchall())
        return [row_of(values) for values in found]

    # -- In the thread ---------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self._database is None and self._reopen:
            self._connect(create=True)
        if self._database is None:
            raise LedgerUnavailable("closed")
        return self._database

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.wall())

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Excludes the writers of all processes until the end of the block, which commits or rolls back."""
        database = self._open()
        if any(_identity(path) != opened for path, opened in self._files.items()):
            raise LedgerUnavailable("moved", "The ledger's file was moved, deleted or replaced while it was in use.")
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _commit_waiting(self) -> None:
        """Commits all waiting changes in one transaction, so that they share the time of the sync.

        A step that raises rolls back its own change only. An error of the database rolls back all, and each gets it.
        """
        changes = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not changes:
            return  # an earlier call has committed them
        try:
            with self._transaction() as database:
                for change in changes:
                    database.execute("SAVEPOINT change")
                    try:
                        self._apply(database, change)
                    except sqlite3.Error:
                        raise
                    except Exception as error:  # noqa: BLE001 - `change` raises it to the caller of this change
                        change.error = error
                        database.execute("ROLLBACK TO change")
                    database.execute("RELEASE change")
        except Exception as error:  # noqa: BLE001 - `change` raises it to the caller of each change
            for change in changes:
                change.error = _of_each(error)

    def _others(self, key: Key, session: str, database: sqlite3.Connection | None = None) -> list[Row]:
        values = {"space": key.space, "engine": key.engine, "order": key.order, "session": session}
        found = (database or self._open()).execute(_OTHERS, values).fetchall()
        return [row_of(values) for values in found]

    def _apply(self, database: sqlite3.Connection, change: "_Change") -> None:
        values = database.execute(f"{_SELECT} WHERE {_KEY}", _key_values(change.key)).fetchone()
        row = row_of(values) if values else None
        change.result, changed = change.step(row, self._moment())
        if changed is not None and changed is not row:
            self._write(database, row, changed)

    def _write(self, database: sqlite3.Connection, row: Row | None, changed: Row) -> None:
        if row is None:
            written = database.execute(_INSERT, values_of(changed)).rowcount
        else:
            where = (*_key_values(row.key), row.fence, row.version)
            written = database.execute(_UPDATE, (*values_of(changed), *where)).rowcount
        assert written == 1, "the transaction excludes other writers"

    def _lease(self, name: str, owner: str, ttl_s: float) -> bool:
        now = self._moment().now
        with self._transaction() as database:
            return database.execute(_LEASE, (name, owner, now + ttl_s, now)).rowcount == 1

    def _connect(self, *, create: bool) -> None:
        try:
            is_file = _is_file(self._path)
            if is_file is False:
                raise LedgerUnusable("cannot_open", f"{self._path} is not a file, so it cannot be the ledger.")
            if is_file is None and not create:
                raise self._missing()
            # Only the owner may read it: orders are personal data. SQLite gives -wal and -shm the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            message = f"The ledger's file {self._path} cannot be opened for writing: {error.strerror}."
            raise LedgerUnusable("cannot_open", message) from error
        self._database = sqlite3.connect(self._address, timeout=self._busy_s, isolation_level=None)
        try:
            self._prepare(self._database, create=create)
        except BaseException as error:
            self._database.close()
            self._database = None
            if isinstance(error, sqlite3.Error) and (word := _error_name(error)) in _UNUSABLE:
                raise LedgerUnusable(word, _UNUSABLE[word]) from error
            raise

    def _prepare(self, database: sqlite3.Connection, *, create: bool) -> None:
        if self._use_wal() != "wal":
            raise LedgerUnusable("without_wal", "The ledger's file system cannot carry SQLite's write-ahead log.")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("SELECT 1 FROM sqlite_master").fetchall()  # makes the two files beside
        real = os.path.realpath(self._path)
        self._files = {path: _identity(path) for path in (self._path, f"{real}-wal", f"{real}-shm")}
        with self._transaction():
            self._migrate(database, create=create)
            self._forget_other_boots(database)
        self._reader = sqlite3.connect(self._address, timeout=0, isolation_level=None, check_same_thread=False)

    def _migrate(self, database: sqlite3.Connection, *, create: bool) -> None:
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > len(MIGRATIONS):
            raise LedgerTooNew(found, len(MIGRATIONS))
        if not create and found == 0:
            raise self._missing()
        if not create and found < len(MIGRATIONS):
            raise LedgerTooOld(found, len(MIGRATIONS))
        for version, statements in enumerate(MIGRATIONS[found:], found + 1):
            for statement in statements:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {version}")

    @property
    def _address(self) -> Path:
        return Path(self._path).absolute()  # a relative path that starts with "file:" would be taken for a URI

    def _missing(self) -> LedgerUnavailable:
        return LedgerUnavailable("missing", f"There is no ledger at {self._path}.")

    def _disconnect(self) -> None:
        self._reopen = False
        for connection in (self._database, self._reader):  # the reader, if it was opened since `close` began
            if connection is not None:
                connection.close()
        self._database = self._reader = None

    def _use_wal(self) -> str:
        """Switches to WAL, and returns the journal mode. Retries: SQLite does not wait for another switch."""
        give_up_at = time.monotonic() + self._busy_s
        while True:
            try:
                return str(self._open().execute("PRAGMA journal_mode = WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if _error_name(error) != "busy" or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)

    def _forget_other_boots(self, database: sqlite3.Connection) -> None:
        """Resets the times of other boots: no lease holds any more, and every request was sent before time 0."""
        if database.execute("SELECT id FROM boot").fetchone()[0] == self._clock.boot:
            return
        database.execute(
            """UPDATE orders SET lease_until = 0, look_at = look_at * 0, sent_at = sent_at * 0,
                 unknown_since = unknown_since * 0, looked_at = looked_at * 0, absent_since = NULL,
                 version = version + 1
               WHERE look_at IS NOT NULL OR state IN ('MANUAL', 'RETRYABLE')"""
        )
        database.execute("DELETE FROM leases")
        database.execute("UPDATE boot SET id = ?", (self._clock.boot,))


@dataclass(slots=True, eq=False)
class _Change:
    """A change that waits to be written and, after that, its result or error."""

    key: Key
    step: Step[Any]
    result: Any = None
    error: Exception | None = None


def _identity(path: str) -> tuple[int, int] | None:
    """Returns device and inode of a file; None if it cannot be found."""
    try:
        found = Path(path).stat()
    except OSError:  # it is gone, or its folder is closed to us
        return None
    return found.st_dev, found.st_ino


def _key_values(key: Key) -> tuple[str, str, str]:
    return key.space, key.engine, key.order


def _is_file(path: str) -> bool | None:
    """Whether it is a file; None if there is nothing. Raises `OSError` if the system does not say.

    `Path.exists` and `Path.is_file` no longer raise that in Python 3.14.
    """
    try:
        return S_ISREG(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _of_each(error: Exception) -> Exception:
    """Returns what the caller of one of several changes gets: an exception of its own, except for a bug."""
    if isinstance(error, sqlite3.Error):
        return LedgerUnavailable(_error_name(error))
    return LedgerUnavailable(error.reason.removeprefix("ledger_")) if isinstance(error, LedgerUnavailable) else error


def _error_name(error: sqlite3.Error) -> str:
    """Returns SQLite's name of the error in lower case, such as "full", "busy" or "readonly"."""
    name = getattr(error, "sqlite_errorname", "") or "error"
    return str(name).removeprefix("SQLITE_").split("_")[0].lower()
