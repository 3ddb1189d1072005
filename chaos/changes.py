"""The log of a ledger's changes, kept by triggers in the ledger's database; reads both."""

import sqlite3
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]

Record = dict[str, Any]

_OF_ORDERS = ("order_key", "fingerprint", "state", "fence", "version", "sent_at", "updated_at")
_COLUMNS = (
    "order_key, fingerprint, old_state, state, old_fence, fence, old_version, version, sent_at, same_answer, updated_at"
)
_INSERTED = "NEW.order_key, NEW.fingerprint, NULL, NEW.state, NULL, NEW.fence, NULL, NEW.version, NEW.sent_at, NULL"
_UPDATED = (
    "NEW.order_key, NEW.fingerprint, OLD.state, NEW.state, OLD.fence, NEW.fence, OLD.version, NEW.version, NEW.sent_at"
)
_SQLITE = f"""
    CREATE TABLE changes (number INTEGER PRIMARY KEY AUTOINCREMENT, {_COLUMNS});
    CREATE TRIGGER chaos_inserted AFTER INSERT ON orders BEGIN
        INSERT INTO changes ({_COLUMNS}) VALUES ({_INSERTED}, NEW.updated_at);
    END;
    CREATE TRIGGER chaos_updated AFTER UPDATE ON orders BEGIN
        INSERT INTO changes ({_COLUMNS})
        VALUES ({_UPDATED}, OLD.notices IS NEW.notices AND OLD.session IS NEW.session, NEW.updated_at);
    END;
    CREATE TRIGGER chaos_deleted AFTER DELETE ON orders BEGIN
        INSERT INTO changes (order_key, fingerprint, old_state, state, updated_at)
        VALUES (OLD.order_key, OLD.fingerprint, OLD.state, 'DELETED', OLD.updated_at);
    END;
"""
_POSTGRES = f"""
    CREATE TABLE changes (
        number BIGSERIAL PRIMARY KEY, order_key TEXT, fingerprint BYTEA, old_state TEXT, state TEXT, old_fence BIGINT,
        fence BIGINT, old_version BIGINT, version BIGINT, sent_at DOUBLE PRECISION, same_answer BOOLEAN,
        updated_at DOUBLE PRECISION
    );
    CREATE FUNCTION chaos_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO changes ({_COLUMNS}) VALUES ({_INSERTED}, NEW.updated_at);
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO changes ({_COLUMNS}) VALUES ({_UPDATED},
                OLD.notices IS NOT DISTINCT FROM NEW.notices AND OLD.session IS NOT DISTINCT FROM NEW.session,
                NEW.updated_at);
        ELSE
            INSERT INTO changes (order_key, fingerprint, old_state, state, updated_at)
            VALUES (OLD.order_key, OLD.fingerprint, OLD.state, 'DELETED', OLD.updated_at);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_changed AFTER INSERT OR UPDATE OR DELETE ON mapper_orders
        FOR EACH ROW EXECUTE FUNCTION chaos_changed();
"""


async def install(url: str) -> None:
    """Logs every change from now on. The ledger's schema must exist."""
    if url.startswith("sqlite:///"):
        database = sqlite3.connect(url.removeprefix("sqlite:///"))
        database.executescript(_SQLITE)
        database.close()
        return
    connection = await asyncpg.connect(url)
    await connection.execute(_POSTGRES)
    await connection.close()


async def read(url: str) -> tuple[list[Record], list[Record]]:
    """All orders, and all their changes in order of time. Writes nothing."""
    orders = f"SELECT {', '.join(_OF_ORDERS)} FROM {_table(url)}"
    log = f"SELECT {_COLUMNS} FROM changes ORDER BY number"
    return await _read(url, orders), await _read(url, log)


async def open_orders(url: str) -> int:
    """How many orders are not finished, manual ones included."""
    return await _count(url, "state NOT IN ('DONE', 'REPAIRED') AND (look_at IS NOT NULL OR state = 'MANUAL')")


async def further_look_ups(url: str) -> int:
    """How many redeemed orders are due for another look-up."""
    return await _count(url, "state IN ('DONE', 'REPAIRED') AND look_at IS NOT NULL")


async def _count(url: str, where: str) -> int:
    found = await _read(url, f"SELECT count(*) AS number FROM {_table(url)} WHERE {where}")
    return int(found[0]["number"])


async def waiting(url: str) -> list[str]:
    """The orders that wait for their caller or for their next try."""
    where = "state = 'RETRYABLE'"
    return [row["order_key"] for row in await _read(url, f"SELECT order_key FROM {_table(url)} WHERE {where}")]


def _table(url: str) -> str:
    return "orders" if url.startswith("sqlite:///") else "mapper_orders"


async def _read(url: str, query: str) -> list[Record]:
    if url.startswith("sqlite:///"):
        return _read_sqlite(Path(url.removeprefix("sqlite:///")), query)
    connection = await asyncpg.connect(url)
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def _read_sqlite(path: Path, query: str) -> list[Record]:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
    database.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in database.execute(query)]
    finally:
        database.close()
