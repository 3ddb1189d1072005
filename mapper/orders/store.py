"""The protocol of the ledger's storage, which SQLite and PostgreSQL implement."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mapper.orders.rows import Backlog, ClaimStep, Key, Moment, Row, State, Step

T = TypeVar("T")


class Store(Protocol):
    """Stores rows. Every method may raise `LedgerUnavailable`; every write is atomic."""

    async def change(self, key: Key, step: Step[T]) -> T:
        """Reads a row, applies a pure function and writes the row that it returns, atomically. Returns its result.

        When this method returns, the row is on disk. The function may be called more than once. If it raises, nothing
        is written, and the exception is raised here. If its row has another key, the stored row is moved there.
        """
        ...

    async def claim(self, key: Key, sessions: Callable[[Row | None], Sequence[str]], step: ClaimStep[T]) -> T:
        """As `change`; the step also receives the rows of `of_session` for each of the `sessions`.

        No two rows hold (`Row.held`) the same session, and no two rows that hold a session have the same cart.
        """
        ...

    async def of_session(self, key: Key, session: str) -> list[Row]:
        """Returns the rows of other orders with this session or cart, and those that were moved away from the key."""
        ...

    async def remove(self, row: Row) -> bool:
        """Deletes a row if it has not changed. Returns whether it did."""
        ...

    async def moment(self) -> Moment: ...

    async def show(self, key: Key) -> Row | None: ...

    async def find(self, state: State | None, order: str | None, limit: int) -> list[Row]:
        """Returns rows by state or order key or both (None: any), the last updated first."""
        ...

    async def unconfirmed(self, limit: int) -> list[Row]:
        """Returns the redeemed orders whose answer no caller has received, the last updated first."""
        ...

    async def due(self, engine: str, limit: int) -> list[Row]:
        """Returns the engine's rows that are due (`Row.next_check_at`): open ones first, then the longest overdue."""
        ...

    async def lead(self, engine: str, owner: str, ttl_s: float) -> bool:
        """Whether `owner` leads the engine's processes for the next `ttl_s` seconds. With 0, a leader steps down."""
        ...

    async def backlog(self) -> Backlog: ...

    async def finished(self) -> dict[State, int]:
        """Counts the finished rows by state. It reads an index entry for each row."""
        ...

    async def with_body(self, before: float, limit: int) -> list[Row]:
        """Returns finished and waiting rows with a body that were last updated before a Unix time."""
        ...

    async def prune(self, before: float, limit: int) -> int:
        """Deletes finished and waiting rows that were last updated before a Unix time. Returns how many."""
        ...

    async def ping(self) -> None:
        """Writes something, to see whether the store can be written."""
        ...

    async def close(self) -> None: ...
