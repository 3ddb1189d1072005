"""The SQLite store beyond the common suite: queued changes are written together."""

import asyncio
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from mapper.orders.ledger import Ledger, open_ledger
from mapper.orders.rows import Clock, Key, LedgerUnavailable, LedgerUnusable, New, Row
from mapper.orders.sqlite import SqliteStore
from tests.orders.ledgers import claim

KEYS = [Key("", "e", f"order-{number}") for number in range(6)]


def run(folder: Path, act: Any) -> Any:
    async def within() -> Any:
        ledger = await open_ledger(f"sqlite:///{folder}/ledger.db", clock=Clock(lambda: 1.0, lambda: 2.0, "boot"))
        try:
            return await act(ledger, ledger.store)
        finally:
            with suppress(LedgerUnavailable):
                await ledger.close()

    return asyncio.run(within())


async def in_thread(store: SqliteStore, act: Any) -> Any:
    """The connection belongs to the store's own thread."""
    return await asyncio.wrap_future(store._thread.submit(lambda: act(store._database)))


async def together(store: SqliteStore, *changes: Any) -> list[Any]:
    """Queues changes while the thread is busy."""
    go = threading.Event()
    busy = store._thread.submit(go.wait)
    waiting = asyncio.gather(*changes, return_exceptions=True)
    await asyncio.sleep(0.05)
    go.set()
    busy.result()
    return list(await waiting)


def claims(ledger: Ledger, keys: list[Key]) -> list[Any]:
    return [claim(ledger, key) for key in keys]


def test_queued_changes_share_one_transaction(tmp_path: Path) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> tuple[list[Any], list[str]]:
        seen: list[str] = []
        await in_thread(store, lambda database: database.set_trace_callback(seen.append))
        decisions = await together(store, *claims(ledger, KEYS))
        await in_thread(store, lambda database: database.set_trace_callback(None))
        return decisions, seen

    decisions, seen = run(tmp_path, act)
    assert all(isinstance(decision, New) for decision in decisions)
    assert (seen.count("COMMIT"), seen.count("BEGIN IMMEDIATE")) == (1, 1)


def test_failed_change_rolls_back_only_itself(tmp_path: Path) -> None:
    class Wrong(Exception):
        pass

    def fails_after_reading(row: Row | None, at: Any) -> Any:
        raise Wrong

    async def act(ledger: Ledger, store: SqliteStore) -> tuple[list[Any], list[Row | None]]:
        changes = claims(ledger, KEYS)
        changes[2:2] = [store.change(Key("", "e", "wrong"), fails_after_reading)]
        return await together(store, *changes), [await ledger.show(key) for key in (*KEYS, Key("", "e", "wrong"))]

    results, rows = run(tmp_path, act)
    assert [type(result) for result in results] == [New, New, Wrong, New, New, New, New]
    assert [row is not None for row in rows] == [True] * 6 + [False]


def test_queued_duplicates_see_each_other(tmp_path: Path) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> list[Any]:
        return await together(store, *claims(ledger, [KEYS[0]] * 4))

    assert sorted(type(result).__name__ for result in run(tmp_path, act)) == [
        "InProgress",
        "InProgress",
        "InProgress",
        "New",
    ]


def test_database_failure_fails_all_queued_changes(tmp_path: Path) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> tuple[list[Any], list[Any]]:
        await in_thread(store, lambda database: database.execute("PRAGMA max_page_count = 1"))  # the file cannot grow
        body = b"x" * 100_000
        full = await together(store, *(claim(ledger, key, body=body) for key in KEYS))
        await in_thread(store, lambda database: database.execute("PRAGMA max_page_count = 100000"))
        return full, [await ledger.show(key) for key in KEYS]

    results, rows = run(tmp_path, act)
    assert [type(result) for result in results] == [LedgerUnavailable] * 6
    assert {result.reason for result in results} == {"ledger_full"}
    assert rows == [None] * 6


def test_unexpected_failure_fails_all_queued_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> list[Any]:
        rows = [
            decision.row for decision in await together(store, *claims(ledger, KEYS[:3])) if isinstance(decision, New)
        ]

        def broken(_: SqliteStore) -> Any:
            raise MemoryError

        monkeypatch.setattr(SqliteStore, "_transaction", broken)
        return await together(store, *(ledger.mark_sent(row) for row in rows))

    assert [type(result) for result in run(tmp_path, act)] == [MemoryError] * 3, "none may be sent"


def test_ledger_in_a_folder_that_is_closed_meanwhile_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(ledger: Ledger, _store: SqliteStore) -> None:
        def closed(_: Path) -> Any:
            raise PermissionError

        monkeypatch.setattr(Path, "stat", closed)
        with pytest.raises(LedgerUnavailable) as caught:
            await claim(ledger, KEYS[0])
        assert caught.value.reason == "ledger_moved"

    run(tmp_path, act)


def test_closed_ledger_refuses_claims(tmp_path: Path) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> None:
        await ledger.close()
        with pytest.raises(LedgerUnavailable):
            await claim(ledger, KEYS[0])

    run(tmp_path, act)


@pytest.mark.parametrize(
    ("found", "reason"),
    [(None, "ledger_missing"), (0, "ledger_missing"), (1, "ledger_too_old"), (3, "ledger_too_new")],
)
def test_reader_neither_creates_nor_migrates_ledger(tmp_path: Path, found: int | None, reason: str) -> None:
    path = tmp_path / "ledger.db"
    if found is not None:
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA user_version = {found}")
    with pytest.raises(LedgerUnavailable) as caught:
        asyncio.run(open_ledger(f"sqlite:///{path}", create=False))
    assert caught.value.reason == reason
    assert path.exists() is (found is not None)


@pytest.mark.parametrize("create", [True, False])
def test_file_name_that_the_system_refuses_cannot_be_opened(create: bool) -> None:
    with pytest.raises(LedgerUnusable) as caught:
        asyncio.run(open_ledger(f"sqlite:///{'x' * 300}", create=create, patient=True))
    assert (caught.value.reason, "name too long" in caught.value.message) == ("ledger_cannot_open", True)


def test_relative_path_is_no_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def act() -> None:
        ledger = await open_ledger("sqlite:///file:x?mode=ro")
        await ledger.ping()
        await ledger.close()

    asyncio.run(act())
    assert (tmp_path / "file:x?mode=ro").exists()


def test_patient_store_opens_busy_ledger_on_first_use(tmp_path: Path) -> None:
    path, clock = str(tmp_path / "ledger.db"), Clock(lambda: 1.0, lambda: 2.0, "boot")

    async def act() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable) as caught:
                await SqliteStore.open(path, clock, 0.02)
            assert caught.value.reason == "ledger_busy"
            store = await SqliteStore.open(path, clock, 0.02, patient=True)
            with pytest.raises(LedgerUnavailable):
                await store.ping()
        await store.ping()
        await store.close()
        with pytest.raises(LedgerUnavailable) as caught:
            await store.ping()
        assert caught.value.reason == "ledger_closed"

    asyncio.run(act())


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm"])
def test_moved_file_is_not_written(tmp_path: Path, name: str) -> None:
    async def act(ledger: Ledger, store: SqliteStore) -> list[str]:
        file, away = tmp_path / name, tmp_path / "away"
        results: list[Any] = [await claim(ledger, KEYS[0])]
        file.rename(away)
        results += await asyncio.gather(ledger.ping(), claim(ledger, KEYS[1]), return_exceptions=True)
        file.write_bytes(away.read_bytes())  # a copy in its place is another file
        results += await asyncio.gather(claim(ledger, KEYS[2]), return_exceptions=True)
        away.replace(file)
        return [getattr(one, "reason", type(one).__name__) for one in (*results, await claim(ledger, KEYS[3]))]

    assert run(tmp_path, act) == ["New", "ledger_moved", "ledger_moved", "ledger_moved", "New"]
