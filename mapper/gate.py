"""How many calls are let in at once: who comes when it is full is answered at once, before any JSON is read.

This is no limit of the server: what is answered is the contract's, per endpoint, and the server knows no endpoints.
Each endpoint has room of its own, so that a rush of validates cannot starve consume.

A call takes its room once its body is complete. Until then it costs nothing but the bytes it has sent, and those are
counted: whoever sends bodies slowly, to keep the room from others, would have to send many megabytes over and over.
"""

from dataclasses import dataclass
from typing import Self

from mapper.errors import Overloaded


@dataclass
class Bodies:
    """All bodies that are being received, of all endpoints together; in bytes."""

    limit: int
    held: int = 0


@dataclass
class Room:
    """Of one endpoint."""

    size: int
    bodies: Bodies
    taken: int = 0

    @property
    def is_full(self) -> bool:
        return self.taken >= self.size or self.bodies.held >= self.bodies.limit


class Visit:
    """What one call occupies, from its head until it is answered. Raises `Overloaded` where there is no more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0
        self._inside = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.bodies.held -= self._held
        self._room.taken -= self._inside

    def receive(self, size: int) -> None:
        """So many bytes of a body that is not complete."""
        self._held += size
        self._room.bodies.held += size
        if self._room.bodies.held > self._room.bodies.limit:
            raise Overloaded

    def go_in(self) -> None:
        """The body is complete."""
        if self._room.taken >= self._room.size:
            raise Overloaded  # it has become full meanwhile
        self._inside = True
        self._room.taken += 1
