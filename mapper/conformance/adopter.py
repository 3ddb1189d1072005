"""The declarations of an adapter's author for the standard tests, and helpers of these tests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest

from mapper.adapter import Adapter, Checkout, EngineReply, LookedUp, Reason, Redeemed
from mapper.conformance import carts
from mapper.conformance.faults import Fault, instead
from mapper.conformance.lab import Application, Exchange, Lab, build, find, installed_emulator
from mapper.conformance.scorecard import Level

Test = TypeVar("Test", bound=Callable[..., None])
NewLab = Callable[[], Lab]

SESSION = "session-1"
UNKNOWN_CODE = "No-Such-Code-7391"


def at(level: Level) -> Callable[[Test], Test]:
    """Sets the level that a standard test belongs to."""

    def mark(test: Test) -> Test:
        test.level = level  # type: ignore[attr-defined]
        return test

    return mark


class Prepared(NamedTuple):
    """A lab in which one conversation will succeed, and that conversation's arguments."""

    lab: Lab
    method: str
    order: Checkout
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def converse(self) -> object:
        return self.lab.converse(self.method, self.order, *self.args, **self.kwargs)


class Adopter:
    """What a conformance test declares. Amounts are strings, as in a checkout."""

    entry_point: ClassVar[str]
    """The engine's name, under which the adapter is installed."""
    options: ClassVar[Mapping[str, str]]
    """Valid options. A secret should be a text that occurs nowhere else: the tests search for it."""
    accepted: ClassVar[Sequence[str]]
    """Codes that the emulator grants together on `lines`, any number of times."""
    refused: ClassVar[Mapping[str, Reason]]
    """Codes that the emulator refuses, with the expected reasons."""
    percent: ClassVar[tuple[str, int] | None] = None
    """A code that takes this percentage off everything: for exact amounts in every currency."""
    fixed: ClassVar[tuple[str, str] | None] = None
    """A code that takes this amount off the cart, however many lines it has: "5.00"."""
    once: ClassVar[str] = ""
    """A code for one redemption, by any customer."""
    granted: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each of `referral`, `loyalty` and `gift_cards` that is declared: fields of a checkout, such as `promotions`,
    for which the emulator grants something on `lines`."""
    lines: ClassVar[Sequence[carts.Line]] = (("SKU-1", 2, "20.00"), ("SKU-2", 1, "9.99"))
    """The lines of an ordinary cart: name (sku), quantity, list price of one unit."""
    carts: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Further bodies, as Nacelle sends them, that must be answered."""
    currencies: ClassVar[Sequence[str]] = ("USD", "EUR", "JPY", "KWD")
    """The currencies in which the emulator prices a cart."""
    ordered: ClassVar[frozenset[str]] = frozenset()
    """The names of arrays in the engine's replies whose order has a meaning."""
    unique: ClassVar[frozenset[str]] = frozenset()
    """The names of arrays in the engine's replies with one item for each thing, such as a line: none is repeated."""
    most_requests: ClassVar[int] = 10
    """The most requests of one conversation without faults, for a cart of any size."""
    requests_per_line: ClassVar[int] = 0
    """How many requests each line of the cart may add to these."""
    most_lines: ClassVar[int] = 1000
    """The size of the largest cart that is tried. Lower it only for a second run, over a real engine that is slow."""
    seconds: ClassVar[float] = 0.5
    """CPU time that the adapter itself may use for a cart of 1,000 lines."""
    exempt: ClassVar[Mapping[str, str]] = {}
    """Standard tests that this engine cannot pass, each with the reason: they are expected to fail."""

    def emulator(self) -> Application:
        """Returns a new emulator with empty books. The default is the installed sandbox with the default rule book."""
        return installed_emulator(self.entry_point)

    def stock(self, emulator: Any, checkout: Checkout) -> None:
        """For an engine with prices of its own: puts the products of this cart into its catalogue, at list prices.

        It is called before each conversation about a cart. An engine that is sent prices does not need it.
        """

    def redeemed(self, books: Any, session: str) -> int:
        """Returns how many redemptions of this session's order are in the emulator's `books()`.

        A redemption that the engine has accepted counts, even if the engine carries it out later.
        """
        raise NotImplementedError

    # What the tests work with.

    @contextmanager
    def laboratories(self) -> Iterator[NewLab]:
        """Yields a function that makes a lab with a new adapter and empty books; closes all of them at the end."""
        opened: list[Lab] = []

        def new_lab() -> Lab:
            opened.append(Lab(self._adapter(), self.emulator(), self.stock))
            return opened[-1]

        try:
            yield new_lab
        finally:
            for lab in opened:
                lab.close()

    @pytest.fixture
    def new_lab(self) -> Iterator[NewLab]:
        with self.laboratories() as new_lab:
            yield new_lab

    @pytest.fixture
    def lab(self, new_lab: NewLab) -> Lab:
        return new_lab()

    @pytest.fixture
    def order(self) -> Checkout:
        return self._order()

    def _adapter(self) -> Adapter:
        return build(find(self.entry_point), self.options)

    def _order(self, *codes: str, **changes: Any) -> Checkout:
        return carts.parse(carts.body(changes.pop("lines", self.lines), codes or self.accepted, **changes))

    def _count(self, lab: Lab, session: str = SESSION) -> int:
        return self.redeemed(lab.wire.books(), session)

    def _is_sent_prices(self) -> bool:
        return type(self).stock is Adopter.stock

    def _methods(self) -> list[str]:
        """The declared conversations; `repair` has nothing to do in an ordinary case."""
        able = self._adapter().capabilities
        return [
            "validate", "redeem", "look_up", *(["check"] if able.check else []), *(["undo"] if able.undo else []),
        ]  # fmt: skip

    def _needs(self, capability: str) -> None:
        if not getattr(self._adapter().capabilities, capability):
            pytest.skip(f"{capability} is not declared: for gold, `exempt` gives the reason")

    def _prepare(self, lab: Lab, method: str, order: Checkout | None = None, *, final: bool = False) -> Prepared:
        """Validates the order, and redeems it where `method` needs a redemption; then forgets these exchanges."""
        order = order or self._order()
        lab.validate(order, SESSION)
        handle = ""
        if method in ("look_up", "undo"):
            done = lab.redeem(order, SESSION)
            assert isinstance(done, Redeemed), "an order with accepted codes is not redeemed"
            handle = done.handle
        lab.wire.exchanges.clear()
        if method == "undo":
            return Prepared(lab, method, order, (SESSION, handle), {"final": final})
        return Prepared(lab, method, order, (SESSION, handle) if method == "look_up" else (SESSION,), {})

    def _run(self, new_lab: NewLab, method: str, order: Checkout | None = None, **kwargs: bool) -> "Run":
        """One conversation without faults."""
        prepared = self._prepare(new_lab(), method, order, **kwargs)
        return Run(prepared, prepared.converse(), list(prepared.lab.wire.exchanges))

    def _repair(self, lab: Lab, order: Checkout) -> None:
        """What the service does about redemptions beyond the first."""
        found: LookedUp = lab.look_up(order, SESSION)
        if found.extra and lab.adapter.capabilities.repair:
            for _ in range(2):
                lab.repair(order, SESSION, found.extra)


class Run(NamedTuple):
    """A conversation without faults: its result, and what was asked and answered."""

    prepared: Prepared
    result: object
    exchanges: list[Exchange]

    @property
    def replies(self) -> list[EngineReply]:
        return [reply_of(exchange) for exchange in self.exchanges]

    @property
    def redeeming(self) -> list[int]:
        """The positions of the requests that redeem."""
        return [place for place, one in enumerate(self.exchanges) if one.request.effect == "redeems"]

    def name(self, place: int) -> str:
        return f"request {place} ({self.exchanges[place].request.operation})"


def reply_of(exchange: Exchange) -> EngineReply:
    assert exchange.reply is not None, "a request without a fault has no reply"
    return exchange.reply


def strike(lab: Lab, place: int, fault: Fault, rest: Sequence[EngineReply] = ()) -> Lab:
    """From now on, the request at `place` suffers the fault, once; the others get `rest`, else the emulator's reply."""
    lab.wire.exchanges.clear()
    left = [fault]

    def suffer(_: object, at: int) -> Fault | None:
        if at == place and left:
            return left.pop()
        return instead(rest[at]) if at < len(rest) else None

    lab.wire.fault = suffer
    return lab
