"""What the author of an emulated engine implements: an ASGI application that holds its state in memory."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from mapper.sandbox.rulebook import RuleBook

Now = Callable[[], datetime]

PAUSE: Final = "sandbox.pause"
"""In the scope: seconds that the emulator must wait in the middle of its work, before it commits anything."""

# Numbers keep their spelling.
ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)


class Emulator(Protocol):
    """An engine as it looks from outside.

    It awaits `scope[PAUSE]` seconds before it commits, while it holds whatever the engine would hold.

    What the engine does by itself, later, it does after so many requests; such a count is not in its books. `now`
    stands still in the standard tests.
    """

    def __init__(self, book: RuleBook, now: Now) -> None:
        """Raises `RuleBookError` where `book.engines` holds something it does not understand."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def reset(self) -> None:
        """Forgets everything but the rule book."""

    def books(self) -> dict[str, Any]:
        """All that it holds, as JSON values: carts, reservations, orders, redemptions with their counts, balances."""
        ...

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """A short constant word for a request, such as "close", by which faults and logs name it."""
        ...

    def error(self, status: int) -> Any:
        """The body the engine gives an error of this status: JSON values, or the bytes of something else."""
        ...

    def unknown_effect(self, reply: Any) -> Any:
        """A reply with an effect in it that no integration knows; one that has no place for effects as it is.

        Where replies are no JSON, such as XML, it is handed the text of one, and returns a text.
        """
        ...


def rewritten(body: bytes, change: Callable[[Any], Any]) -> bytes:
    """A reply's body after a change to its JSON values, or else to its text. Raises `UnicodeDecodeError`."""
    try:
        document = _DECODER.decode(body)
    except msgspec.DecodeError:
        return str(change(body.decode())).encode()
    return ENCODER.encode(change(document))
