"""The ledger's database as ingestion and product data use it: one statement at a time on a connection of SQLite."""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from mapper.nacelle.database import DatabaseUnavailable, open_database

CLAIM = "INSERT INTO claims (key, claimant) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING key"


def test_concurrent_statements_of_sqlite_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads on one connection get each other's errors and rows, or end the process (Python 3.13, 3.14)."""
    threads: set[int] = set()
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            threads.add(threading.get_ident())
            return super().execute(*arguments)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Watched))

    async def claims() -> int:
        database = await open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
        await database.run("CREATE TABLE claims (key TEXT PRIMARY KEY, claimant INTEGER)")
        rows = await asyncio.gather(*(database.run(CLAIM, f"key {number % 5}", number) for number in range(50)))
        await database.close()
        return sum(map(len, rows))

    assert (asyncio.run(claims()), len(threads)) == (5, 1)


def test_closed_database_is_unavailable(tmp_path: Path) -> None:
    async def use() -> None:
        database = await open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
        await database.close()
        await database.close()
        await database.run("SELECT 1")

    with pytest.raises(DatabaseUnavailable, match="closed"):
        asyncio.run(use())


def test_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        asyncio.run(open_database(f"sqlite:///{tmp_path / 'no folder' / 'ledger.db'}"))
