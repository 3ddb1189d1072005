"""What carries the ledger's rows: SQLite or PostgreSQL, behind one protocol."""

from typing import Protocol, TypeVar

from mapper.orders.rows import Backlog, Key, Moment, Row, State, Step

T = TypeVar("T")


class Store(Protocol):
    """What carries rows. Every method may raise `LedgerUnavailable`; none of them leaves half a change behind."""

    async def change(self, key: Key, step: Step[T]) -> T:
        """Reads a row, applies a pure function and writes what it says, as one; what comes back is on disk.

        The function may be called more than once. What it raises is passed on, and nothing is written.
        """
        ...

    async def moment(self) -> Moment: ...

    async def show(self, key: Key) -> Row | None: ...

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        """The rows in a state, or with an order key, or both; the latest first."""
        ...

    async def due(self, limit: int) -> list[Row]:
        """Rows that somebody has to see to now: the longest overdue first."""
        ...

    async def lead(self, owner: str, ttl_s: float) -> bool:
        """Whether `owner` leads for the next `ttl_s` seconds; with 0, a leader steps down."""
        ...

    async def backlog(self) -> Backlog: ...

    async def prune(self, limit: int) -> int:
        """Trims and deletes finished rows of old, `limit` of each at the most; how many it was."""
        ...

    async def ping(self) -> None:
        """Writes something."""
        ...

    async def close(self) -> None: ...
