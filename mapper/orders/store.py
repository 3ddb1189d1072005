"""What carries the ledger's rows: SQLite or PostgreSQL, behind one protocol."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mapper.orders.rows import Backlog, ClaimStep, Key, Moment, Row, State, Step

T = TypeVar("T")


class Store(Protocol):
    """What carries rows. Every method may raise `LedgerUnavailable`; none of them leaves half a change behind."""

    async def change(self, key: Key, step: Step[T]) -> T:
        """Reads a row, applies a pure function and writes what it says, as one; what comes back is on disk.

        The function may be called more than once. What it raises is passed on, and nothing is written. Where the row
        that it returns has another key, the row is moved there.
        """
        ...

    async def claim(self, key: Key, sessions: Callable[[Row | None], Sequence[str]], step: ClaimStep[T]) -> T:
        """As `change`, with the rows of `of_session` for each of these.

        No two rows ever hold (`Row.held`) the same session, or are of the same cart while they hold one.
        """
        ...

    async def of_session(self, key: Key, session: str) -> list[Row]:
        """The rows of other orders that have a session, are of a cart of this name, or have passed on from the key."""
        ...

    async def remove(self, row: Row) -> None:
        """Deletes a row, unless it has changed."""
        ...

    async def moment(self) -> Moment: ...

    async def show(self, key: Key) -> Row | None: ...

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        """The rows in a state, or with an order key, or both; the latest first."""
        ...

    async def unconfirmed(self, limit: int) -> list[Row]:
        """Redeemed orders of which no caller was ever told; the latest first."""
        ...

    async def due(self, limit: int) -> list[Row]:
        """Rows that somebody has to see to now: the longest overdue first."""
        ...

    async def lead(self, owner: str, ttl_s: float) -> bool:
        """Whether `owner` leads for the next `ttl_s` seconds; with 0, a leader steps down."""
        ...

    async def backlog(self) -> Backlog: ...

    async def finished(self) -> dict[State, int]:
        """How many finished rows there are, per state. It reads an entry of an index for each."""
        ...

    async def with_body(self, before: float, limit: int) -> list[Row]:
        """Finished and waiting rows that still have their body and were last changed before a Unix time."""
        ...

    async def prune(self, before: float, limit: int) -> int:
        """Deletes finished and waiting rows that were last changed before a Unix time; how many it was."""
        ...

    async def ping(self) -> None:
        """Writes something."""
        ...

    async def close(self) -> None: ...
