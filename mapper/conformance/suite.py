"""The standard tests. An adapter's package adopts them:

    from mapper.conformance.suite import Conformance

    class TestAcme(Conformance):
        entry_point = "acme"
        options = {"BASE_URL": "https://acme.test", "API_KEY": "a-key-for-tests"}
        accepted = ("SAVE-5", "TEN-PERCENT")
        refused = {"OLD-5": Reason.EXPIRED}

        def redeemed(self, books, session):
            return sum(order["session"] == session for order in books["orders"])

Which of them run follows from the adapter's declared capabilities: what is declared must work, and what is not must
refuse loudly. None may be removed or overridden; what an adapter cannot pass is named in `exempt`, with a reason.
"""

import base64
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from types import GeneratorType
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, unquote, unquote_plus
from xml.sax.saxutils import escape

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import (
    Adapter,
    Checkout,
    EngineRejected,
    EngineReply,
    EngineRequest,
    InvalidRequest,
    LookedUp,
    OrderMismatch,
    Outcome,
    Reason,
    Redeemed,
)
from mapper.conformance import carts, replies
from mapper.conformance.faults import FAULTS, Fault, instead, replaced
from mapper.conformance.lab import (
    PROBLEMS,
    Application,
    Lab,
    Unfit,
    find,
    installed_emulator,
    make,
    no_stock,
    outcome_of,
    problem_text,
)
from mapper.conformance.scorecard import Level
from mapper.conformance.service import Shop
from mapper.domain import money, options
from mapper.engine.conversation import replay
from mapper.engine.promotion_engine import Declined, Done, NotDone, Verdict

T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., None])
Labs = Callable[[], Lab]

SESSION = "session-1"
UNKNOWN_CODE = "No-Such-Code-7391"
MARKER = "text-of-the-engine"
OTHER_CURRENCY = "EUR"
"""With as many digits as that of an ordinary cart."""
_EMPTY = {"an empty object": b"{}", "an empty array": b"[]"}
MOST_TOLD = 12
"""So many faults of a test are told."""


def at(level: Level) -> Callable[[Test], Test]:
    """The level that a standard test belongs to."""

    def mark(test: Test) -> Test:
        test.level = level  # type: ignore[attr-defined]
        return test

    return mark


class Cases:
    """The cases of one test: all are tried, and all that fail are told."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    @contextmanager
    def of(self, *what: object) -> Iterator[None]:
        """Within it, an assertion that fails is a fault of the case, and so is a problem."""
        try:
            yield
        except PROBLEMS as problem:
            self._add(what, f"{type(problem).__name__} ({problem.reason}): {problem.message}")
        except AssertionError as error:
            cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
            self._add(what, str(error).split("\nassert ")[0] + cause)

    @contextmanager
    def may_refuse(self, *what: object) -> Iterator[None]:
        """As `of`, but a problem is an answer like any other."""
        with self.of(*what), suppress(*PROBLEMS):
            yield

    @contextmanager
    def no_outage(self, *what: object) -> Iterator[None]:
        """The engine is well: a refusal is an answer; `EngineUnavailable`, which is tried again for ever, is none."""
        with self.of(*what), suppress(EngineRejected, InvalidRequest):
            yield

    @contextmanager
    def must_refuse(self, *what: object) -> Iterator[None]:
        """Only a problem is an answer."""
        with self.may_refuse(*what):
            yield
            raise Unfit("is taken for an answer")

    def _add(self, what: Sequence[object], fault: str) -> None:
        self.faults.append(f"{' / '.join(map(str, what))}: {fault}")

    def settle(self) -> None:
        __tracebackhide__ = True
        if self.faults:
            more = len(self.faults) - MOST_TOLD
            told = [*self.faults[:MOST_TOLD], *([f"... and {more} more"] if more > 0 else [])]
            pytest.fail("\n".join(told), pytrace=False)


class Conformance:
    """The standard tests, to be adopted by a class of an adapter's tests. Amounts are texts, as in a checkout."""

    is_the_standard = True

    # -- What an adapter's author says -------------------------------------------------------------------------------

    entry_point: ClassVar[str]
    """The engine's name, under which the adapter is installed."""
    options: ClassVar[Mapping[str, str]]
    """Good ones. Secrets should be texts that stand nowhere else: they are searched for."""
    accepted: ClassVar[Sequence[str]]
    """Codes that the emulator grants together on `lines`, any number of times."""
    refused: ClassVar[Mapping[str, Reason]]
    """Codes that the emulator refuses, and the reason that the shopper must be told."""
    percent: ClassVar[tuple[str, int] | None] = None
    """A code that takes so many percent off everything: for exact amounts in every currency."""
    fixed: ClassVar[tuple[str, str] | None] = None
    """A code that takes this amount off the cart, however many lines it has: "5.00"."""
    once: ClassVar[str] = ""
    """A code that can be redeemed once, by whomever."""
    granted: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each declared one of `referral`, `loyalty` and `gift_cards`: fields of a checkout, such as `promotions`, of
    which the emulator makes something on `lines`."""
    lines: ClassVar[Sequence[carts.Line]] = (("SKU-1", 2, "20.00"), ("SKU-2", 1, "9.99"))
    """Of an ordinary cart: name (sku), quantity, list price of one."""
    carts: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Further bodies, as Nacelle sends them, that must come to an answer."""
    currencies: ClassVar[Sequence[str]] = ("USD", "EUR", "JPY", "KWD")
    """In which the emulator prices a cart."""
    ordered: ClassVar[frozenset[str]] = frozenset()
    """Arrays of the engine's replies, by name, whose order means something."""
    most_requests: ClassVar[int] = 10
    """Of one conversation, in a good case, for a cart of whatever size."""
    requests_per_line: ClassVar[int] = 0
    """And so many more for each line of the cart."""
    seconds: ClassVar[float] = 0.5
    """CPU time of the adapter itself for a cart of 1,000 lines."""
    exempt: ClassVar[Mapping[str, str]] = {}
    """Standard tests that it cannot pass, with the reason: they are expected to fail."""

    def emulator(self) -> Application:
        """A new emulator of the engine, its books empty. By default the installed sandbox, on the default rule book."""
        return installed_emulator(self.entry_point)

    def stock(self, emulator: Any, checkout: Checkout) -> None:
        """For an engine with prices of its own: puts the products of this cart into its catalogue, at list prices.

        Called before each conversation on a cart. An engine that is told prices needs none of it.
        """

    def redeemed(self, books: Any, session: str) -> int:
        """How many redemptions of this session's order stand in the emulator's `books()`.

        One that the engine has accepted counts, even where it carries it out later.
        """
        raise NotImplementedError

    # -- What the tests work with ------------------------------------------------------------------------------------

    @contextmanager
    def laboratories(self) -> Iterator[Labs]:
        """Makes one laboratory after the other, each with a new adapter and empty books."""
        opened: list[Lab] = []

        def new() -> Lab:
            opened.append(Lab(self._adapter(), self.emulator(), self.stock))
            return opened[-1]

        try:
            yield new
        finally:
            for one in opened:
                one.close()

    @pytest.fixture
    def labs(self) -> Iterator[Labs]:
        with self.laboratories() as labs:
            yield labs

    @pytest.fixture
    def lab(self, labs: Labs) -> Lab:
        return labs()

    @pytest.fixture
    def order(self) -> Checkout:
        return self._order()

    def _adapter(self) -> Adapter:
        return make(find(self.entry_point), self.options)

    def _factory(self) -> Any:
        return find(self.entry_point).load()

    def _order(self, *codes: str, **changes: Any) -> Checkout:
        return carts.parse(carts.body(changes.pop("lines", self.lines), codes or self.accepted, **changes))

    def _count(self, lab: Lab, session: str = SESSION) -> int:
        return self.redeemed(lab.wire.books(), session)

    def _ready(self, lab: Lab, method: str) -> tuple[Checkout, tuple[Any, ...], dict[str, Any]]:
        """A case in which this conversation goes well: its arguments."""
        order = self._order()
        lab.validate(order, SESSION)
        handle = ""
        if method in ("look_up", "undo"):
            done = lab.redeem(order, SESSION)
            assert isinstance(done, Redeemed), "an order with accepted codes is not redeemed"
            handle = done.handle
        lab.wire.exchanges.clear()
        if method == "undo":
            return order, (SESSION, handle), {"final": False}
        return order, (SESSION, handle) if method == "look_up" else (SESSION,), {}

    def _is_told_prices(self) -> bool:
        return type(self).stock is Conformance.stock

    def _methods(self, lab: Lab) -> list[str]:
        able = lab.adapter.capabilities
        asked = ["validate", "redeem", "look_up"]
        return [*asked, *(["check"] if able.check else []), *(["undo"] if able.undo else [])]

    # ================================================================================================================
    # Bronze: it prices a cart

    @at("bronze")
    def test_it_is_installed_and_its_options_are_checked(self) -> None:
        adapter = self._adapter()
        declared = self._factory().options
        given, wrong = options.read(declared, self.options)
        assert not wrong, f"the options of this test are wrong: {wrong}"
        unknown = set(self.options) - options.names(declared)
        assert not unknown, f"there are no options {sorted(unknown)}"
        point, cases = find(self.entry_point), Cases()
        for option in declared:
            looks_secret = re.search(r"KEY|TOKEN|SECRET|PASSWORD", option.name) and option.kind in ("text", "secret")
            with cases.of(option.name):
                assert option.secret or not looks_secret, "looks like a secret, and is not declared as one"
                assert option.meaning.strip(), "has no meaning for the table of settings"
                assert not option.secret or not option.default, "is a secret with a default"
            if option.default is None:
                without = {name: value for name, value in given.items() if name != option.name}
                with cases.of(option.name), pytest.raises(Unfit):
                    make(point, without)
        cases.settle()
        for able in ("check", "undo", "repair"):
            if not getattr(adapter.capabilities, able):
                self._refuses_undeclared(adapter, able)

    def _refuses_undeclared(self, adapter: Adapter, method: str) -> None:
        found = getattr(adapter, method, None)
        if found is None:
            return
        given = {"check": (), "undo": ("",), "repair": (("id",),)}[method]
        named = {"final": False} if method == "undo" else {}
        try:
            conversation = found(self._order(), SESSION, *given, **named)
            if isinstance(conversation, GeneratorType):
                next(conversation)
        except Exception:  # noqa: BLE001 - however it refuses
            return
        pytest.fail(f"{method} is not declared, and works all the same: declare it, or leave it out", pytrace=False)

    @at("bronze")
    def test_a_cart_earns_what_its_codes_promise(self, lab: Lab, order: Checkout) -> None:
        outcome = lab.validate(order, SESSION)
        assert not outcome.rejected, f"accepted codes are refused: {outcome.rejected}"
        assert carts.off(order, outcome) > 0, "accepted codes take nothing off"
        assert carts.beyond(order, outcome) == 0, "more is granted than things cost: a wrong unit or line?"
        assert all(one.name.strip() for one in outcome.discounts), "a discount has no name for the shopper"
        assert lab.wire.exchanges, "nothing was asked of the engine"
        for exchange in lab.wire.exchanges:
            assert exchange.request.operation, "a request has no operation to be logged by"
            assert not re.search(r"[/0-9]", exchange.request.operation), "an operation is a constant name"

    @at("bronze")
    def test_validate_redeems_nothing_however_often(self, lab: Lab, order: Checkout) -> None:
        first = lab.validate(order, SESSION)
        assert lab.validate(order, SESSION) == first, "the same cart earns something else the second time"
        lab.validate(self._order(*self.accepted, lines=self.lines[:1]), SESSION)
        assert lab.validate(order, SESSION) == first, "what a cart earns depends on what it was before"
        assert self._count(lab) == 0, "validating redeems"

    @at("bronze")
    def test_every_code_that_does_not_apply_is_refused_with_its_reason(self, labs: Labs) -> None:
        cases = Cases()
        wanted = {**self.refused, UNKNOWN_CODE: Reason.NOT_FOUND}
        for code, reason in wanted.items():
            lab, order = labs(), self._order(code)
            with cases.of(code):
                told = [(one.code, one.reason) for one in lab.validate(order, SESSION).rejected]
                assert told == [(code, reason)], f"should be refused as {reason.value}, and comes to {told}"
        lab, mixed = labs(), self._order(*self.accepted, *wanted)
        with cases.of("beside accepted codes"):
            refused = sorted(one.code for one in lab.validate(mixed, SESSION).rejected)
            assert refused == sorted(wanted), f"{refused} are refused, and {sorted(wanted)} should be"
        cases.settle()

    @at("bronze")
    def test_what_the_cart_holds_reaches_the_engine_as_it_came(self, labs: Labs) -> None:
        """Names and codes escaped once, as their place wants it: not cut, not folded, not escaped twice."""
        cases = Cases()
        for name in ("ü/☃ \"'<&>%41", "Sku-" * 20):
            lab, order = labs(), self._order(lines=[(name, 1, "20.00")])
            with cases.may_refuse("a sku"):
                lab.validate(order, SESSION)
                assert _is_asked_of(lab, name), f"{name!r} is not what the engine is asked of"
        two, one = ([("SKU-1", count, price)] for count, price in ((2, "5.00"), (1, "10.00")))
        with cases.may_refuse("quantities"):
            assert _asked(labs(), self._order(lines=two)) != _asked(labs(), self._order(lines=one)), (
                "two at 5.00 are told as one at 10.00"
            )
        for currency in self.currencies if self._is_told_prices() else ():
            digits = money.DIGITS[currency]
            cheap, dear = (money.text(10**digits * 10 + more, digits) for more in (1, 2))
            with cases.may_refuse("prices", currency):
                asked = [
                    _asked(labs(), self._order(lines=[("SKU-1", 1, price)], currency=currency))
                    for price in (cheap, dear)
                ]
                assert asked[0] != asked[1], f"{cheap} is told as {dear}"
        for code in (UNKNOWN_CODE, "ü☃", "a%41+b"):
            lab = labs()
            with cases.may_refuse("a code"):
                told = {one.code: one.reason for one in lab.validate(self._order(code), SESSION).rejected}
                if told != {code: Reason.MALFORMED}:  # which need not be asked
                    assert _is_asked_of(lab, code), f"{code!r} is not what the engine is asked of"
        cases.settle()

    @at("bronze")
    def test_what_it_cannot_do_is_refused_loudly(self, labs: Labs) -> None:
        able, cases = self._adapter().capabilities, Cases()
        brought = {"referral": {"referral_code": UNKNOWN_CODE}, "loyalty": {"loyalty_card": UNKNOWN_CODE}}
        for means, promotions in brought.items():
            order = self._order(promotions=promotions)
            with cases.may_refuse(means):
                told = {one.code for one in labs().validate(order, SESSION).rejected}
                unheard = set(promotions.values()) - told
                assert not unheard, "what the engine does not know, or the adapter cannot say, is dropped silently"
        if not able.automatic:
            plain = carts.parse(carts.body(self.lines))
            with cases.may_refuse("automatic"):
                assert not labs().validate(plain, SESSION).discounts, "is not declared, and yet something is granted"
        if able.most_codes is not None:
            many = self._order(*(f"{UNKNOWN_CODE}-{number}" for number in range(able.most_codes + 1)))
            with cases.may_refuse("most_codes"):
                refused = labs().validate(many, SESSION).rejected
                assert len(refused) == able.most_codes + 1, "codes beyond the limit are dropped silently"
        cases.settle()

    @at("bronze")
    def test_what_it_can_do_is_granted(self, labs: Labs) -> None:
        """Referrals, loyalty and gift cards: something comes of them, and redeeming them grants the same."""
        able, cases = self._adapter().capabilities, Cases()
        plain = labs().validate(carts.parse(carts.body(self.lines)), SESSION)
        for means in ("referral", "loyalty", "gift_cards"):
            if not getattr(able, means):
                continue
            with cases.of(means):
                assert means in self.granted, "is declared: `granted` must say of what something comes"
                lab, order = labs(), carts.parse(carts.body(self.lines, **self.granted[means]))
                told = lab.validate(order, SESSION)
                assert not told.rejected, f"is refused: {told.rejected}"
                more = _amounts(told) != _amounts(plain) or len(told.notices) > len(plain.notices)
                assert more, "is accepted, and nothing comes of it"
                done = lab.redeem(order, SESSION)
                assert isinstance(done, Redeemed), f"is not redeemed: {done}"
                assert _amounts(done.outcome) == _amounts(told), "redeeming grants something else than validating"
        cases.settle()

    @at("bronze")
    def test_money_is_exact_in_every_currency(self, labs: Labs) -> None:
        if self.percent is None:
            pytest.skip("no code takes a percentage off everything")
        code, percent = self.percent
        cases = Cases()
        for currency in self.currencies:
            digits = money.DIGITS[currency]
            for units, quantity in carts.PRICES:
                price = money.text(money.to_minor(units, digits), digits)
                if money.parse(price, digits) == 0:
                    continue
                order = self._order(code, lines=[("SKU-1", quantity, price)], currency=currency)
                exact = Decimal(money.parse(price, digits) * quantity * percent) / 100
                with cases.of(currency, f"{quantity} x {price}"):
                    got = carts.off(order, labs().validate(order, SESSION))
                    assert abs(got - exact) <= Decimal(quantity) / 2, f"{percent} % are {exact}, and it takes off {got}"
        cases.settle()

    @at("bronze")
    def test_an_amount_is_exact_however_many_lines_it_lies_on(self, labs: Labs) -> None:
        if self.fixed is None:
            pytest.skip("no code takes a fixed amount off")
        code, amount = self.fixed
        cases = Cases()
        for count in (1, 3, 7, 11):
            lines = [(f"SKU-{number}", 1 + number % 3, f"{number + 10}.99") for number in range(count)]
            order = self._order(code, lines=lines)
            with cases.of(f"{count} lines"):
                got = carts.off(order, labs().validate(order, SESSION))
                assert got == money.parse(amount, 2), f"{amount} is promised, and {got} minor units are off"
        cases.settle()

    @at("bronze")
    def test_carts_that_nobody_thought_of_earn_what_they_should(self, labs: Labs) -> None:
        """The same from two adapters; and a percentage is exact, to the rounding of each unit."""
        first, second, plain = labs(), labs(), labs()
        code, percent = self.percent or ("", 0)

        def told(lab: Lab, order: Checkout) -> object:
            try:
                return lab.validate(order, SESSION)
            except PROBLEMS as problem:
                return problem.reason

        @settings(max_examples=25, deadline=None, database=None, derandomize=True)
        @given(st.lists(carts.LINES, max_size=6), st.sampled_from([(code,), tuple(self.accepted), ()]))
        def holds(lines: list[carts.Line], codes: tuple[str, ...]) -> None:
            order = carts.parse(carts.body(lines, list(filter(None, codes))))
            outcome = told(first, order)
            assert told(second, order) == outcome, "another adapter tells something else"
            alone = told(plain, carts.parse(carts.body(lines)))
            if isinstance(outcome, Outcome) and isinstance(alone, Outcome) and codes == (code,) and code:
                exact = Decimal(sum(line.gross for line in order.lines) * percent) / 100
                off = carts.off(order, outcome) - carts.off(order, alone)
                assert abs(off - exact) <= sum(line.quantity for line in order.lines), f"{off} is off, not {exact}"

        holds()

    @at("bronze")
    def test_lines_are_told_apart(self, labs: Labs) -> None:
        cases = Cases()
        plain = self._order()
        want = labs().validate(plain, SESSION)
        zero = self._order(*self.accepted, lines=[("SKU-1", 0, "5.00"), *self.lines])
        with cases.of("a line of quantity 0 first"):
            got = labs().validate(zero, SESSION)
            assert _shifted(got, -1) == _amounts(want), "the lines after it get other discounts"
        longer = self._order(*self.accepted, lines=[*self.lines, ("SKU-1", 0, "5.00")])
        with cases.of("a line of quantity 0 last"):
            assert _amounts(labs().validate(longer, SESSION)) == _amounts(want), "it changes what others earn"
        cheap = self._order(*self.accepted, lines=[("SKU-0", 1, "0.50"), *self.lines])
        with cases.of("a cheap line first"):
            over = carts.beyond(cheap, labs().validate(cheap, SESSION))
            assert over == 0, "more is granted than things cost: what is the order's lies on one line?"
        name = self.lines[0][0]
        price = "7.00" if self._is_told_prices() else "10.00"  # in a catalogue, one sku has one price
        twice, apart = ([(name, 1, "10.00"), (other, 3, price)] for other in (name, f"{name}-B"))
        with cases.of("one sku twice"):
            one, two = (self._order(*self.accepted, lines=lines) for lines in (twice, apart))
            got, want = labs().validate(one, SESSION), labs().validate(two, SESSION)
            assert _amounts(got) == _amounts(want), "two lines of one sku do not earn what two of different ones earn"
        cases.settle()

    @at("bronze")
    def test_prices_are_list_prices(self, labs: Labs, order: Checkout) -> None:
        cases = Cases()
        for family in ("A", "B", "C"):
            order = carts.parse(carts.body(self.lines, self.accepted, family=family))
            first = labs().validate(order, SESSION)
            with cases.of("family", family):
                again = carts.discounted(order, first)
                assert _amounts(labs().validate(again, SESSION)) == _amounts(first), (
                    "a checkout that was discounted before earns something else: use `line.list_price`"
                )
        if not self._is_told_prices():
            lab, (sku, quantity, price) = labs(), self.lines[0]
            lab.validate(self._order(), SESSION)
            lab.stock = no_stock
            with cases.must_refuse("a price that is not the catalogue's"):
                lab.validate(self._order(*self.accepted, lines=[(sku, quantity, f"1{price}")]), SESSION)
        cases.settle()

    @at("bronze")
    def test_odd_carts_come_to_an_answer(self, labs: Labs) -> None:
        cases = Cases()
        many = [(f"SKU-{number}", 1 + number % 3, f"{number % 90 + 1}.{number % 100:02}") for number in range(1000)]
        odd: dict[str, Mapping[str, Any]] = {
            "no lines": carts.body([], self.accepted),
            "only lines of quantity 0": carts.body([("SKU-1", 0, "1.00")], self.accepted),
            "a line that costs nothing": carts.body([("SKU-1", 1, "0.00")], self.accepted),
            "1,000 lines": carts.body(many, self.accepted),
            "a sku of anything": carts.body([("ü/☃ \"'<&>", 1, "9.00")], self.accepted),
            "no currency": carts.body(self.lines, self.accepted, currency=""),
            "yen": carts.body([("SKU-1", 1, "1000")], self.accepted, currency="JPY"),
            "dinars": carts.body([("SKU-1", 1, "100.005")], self.accepted, currency="KWD"),
            "a code of anything": carts.body(self.lines, ["ü/☃", "a b", "x" * 100]),
            "many codes": carts.body(self.lines, [f"{UNKNOWN_CODE}-{number}" for number in range(100)]),
            "a customer": carts.body(self.lines, self.accepted, customer={"id": "c/1"}),
            **{f"the id {name[:9]!r}": carts.body(self.lines, self.accepted, name=name) for name in carts.IDS},
            **{f"family {one}": carts.body(self.lines, self.accepted, family=one) for one in ("A", "B", "C")},
            **{f"cart {number}": cart for number, cart in enumerate(self.carts)},
        }
        for what, body in odd.items():
            checkout, lab = carts.parse(body), labs()
            with cases.no_outage(what):
                outcome = lab.validate(checkout, checkout.id)
                assert carts.beyond(checkout, outcome) <= 0 or what == "a line that costs nothing", "grants too much"
                if lab.adapter.capabilities.check:
                    lab.check(checkout, checkout.id)
        cases.settle()

    @at("bronze")
    def test_the_same_replies_give_the_same_outcome_in_whatever_order_they_list_it(self, labs: Labs) -> None:
        lab = labs()
        order = self._order(*self.accepted, *self.refused)
        first = lab.validate(order, SESSION)
        exchanges = list(lab.wire.exchanges)
        came = [exchange.reply for exchange in exchanges if exchange.reply is not None]
        again, asked = _replayed(lab.adapter, order, came)
        assert again == first, "the same replies give another outcome"
        assert asked == [exchange.request for exchange in exchanges], "the same replies lead to other requests"
        cases, found = Cases(), set[str]().union(*(replies.lists(reply) for reply in came))
        for name in sorted(found - self.ordered):
            turned, others = labs(), found - {name}
            turned.wire.fault = lambda *_, others=others: Fault(
                "now", lambda reply: replies.reordered(_there(reply), others)
            )
            with cases.may_refuse(name):
                assert _amounts(turned.validate(order, SESSION)) == _amounts(first), (
                    "listed in another order, it gives another outcome; if its order means something: `ordered`"
                )
        cases.settle()

    @at("bronze")
    def test_whatever_the_engine_replies_validate_ends_as_the_contract_says(self, labs: Labs) -> None:
        self._stands_any_reply(labs, "validate")

    @at("bronze")
    def test_no_answer_is_not_taken_for_nothing_earned(self, labs: Labs) -> None:
        cases, order = Cases(), self._order()
        strange = [(what, 200, body) for what, body in replies.GARBAGE.items()]
        strange += [(str(status), status, b"") for status in (400, 401, 403, 404, 410, 422)]
        good = labs()
        want = _amounts(good.validate(order, SESSION))
        for number, exchange in enumerate(good.wire.exchanges):
            for what, status, body in strange:
                lab = _with_reply(labs(), number, instead(EngineReply(status=status, headers={}, body=body)))
                with cases.may_refuse(exchange.request.operation, what):
                    outcome = lab.validate(order, SESSION)
                    # It may have asked again, or refuse the codes.
                    assert outcome.rejected or _amounts(outcome) == want, "is taken for an answer"
        cases.settle()

    @at("bronze")
    def test_a_wrong_key_is_not_the_shoppers_fault(self, labs: Labs) -> None:
        """401 and 403 are raised, whatever stands in them, and refuse no code: every shopper would be told of it."""
        cases, order, good = Cases(), self._order(*self.accepted, *self.refused), labs()
        want = _amounts(good.validate(order, SESSION))
        for number, exchange in enumerate(good.wire.exchanges):
            for status in (401, 403):
                lab = _with_reply(labs(), number, instead(replies.with_status(_there(exchange.reply), status)))
                with cases.may_refuse(exchange.request.operation, status):
                    outcome = lab.validate(order, SESSION)
                    asked_again = len(lab.wire.exchanges) > len(good.wire.exchanges)
                    assert asked_again, "is taken for an answer"
                    assert _amounts(outcome) == want, "is taken for another answer"
        cases.settle()

    @at("bronze")
    def test_money_that_cannot_be_read_is_refused(self, labs: Labs) -> None:
        """As long as it still can be: nothing is sold at list prices because an amount is not a number."""
        cases, order, good = Cases(), self._order(), labs()
        want = carts.off(order, good.validate(order, SESSION))
        came = [_there(exchange.reply) for exchange in good.wire.exchanges]
        lab = labs()
        for number, reply in enumerate(came):
            for where, other in replies.with_amounts(reply, b"1e400"):
                _with_reply(lab, number, instead(other), else_from=came)
                with cases.may_refuse(where):
                    assert carts.off(order, lab.validate(order, SESSION)) >= want, (
                        "cannot be read, and is left out silently"
                    )
        cases.settle()

    @at("bronze")
    def test_what_it_does_not_know_is_passed_on(self, labs: Labs) -> None:
        """An effect that no integration knows: a notice, a discount, or an error; never nothing at all."""
        unknown = getattr(labs().emulator, "unknown_effect", None)
        if unknown is None:
            pytest.skip("the emulator has no unknown_effect")
        order, good, lab = self._order(), labs(), labs()
        plain = good.validate(order, SESSION)
        came = [_there(exchange.reply) for exchange in good.wire.exchanges]
        odd = ((number, replies.with_effect(reply, unknown)) for number, reply in reversed(list(enumerate(came))))
        number, reply = next(((number, reply) for number, reply in odd if reply is not None), (0, None))
        assert reply is not None, "the emulator's unknown_effect changes no reply of a validation"
        _with_reply(lab, number, replaced(reply))
        with suppress(*PROBLEMS):
            told = lab.validate(order, SESSION)
            assert _amounts(told) == _amounts(plain), "it changes what is taken off"
            assert len(told.notices) > len(plain.notices), "it is dropped silently"
            added = [one for one in told.notices if one not in plain.notices]
            assert any(one.payload for one in added), "its notice has no payload: nobody can tell what it was"

    @at("bronze")
    def test_secrets_and_the_engines_own_words_stay_where_they_are(
        self, labs: Labs, caplog: pytest.LogCaptureFixture
    ) -> None:
        declared = self._factory().options
        hidden = [self.options[name] for one in declared if one.secret for name in one.names if name in self.options]
        secret = [spelled for one in hidden for spelled in _spellings(one)]
        cases, order = Cases(), self._order(*self.accepted, *self.refused)
        caplog.set_level("DEBUG")
        for number, exchange in enumerate(_good_run(labs(), order)):
            told = [str(exchange.request)]
            for status in (200, 400, 401, 403, 404, 422):
                reply = replies.with_status(replies.told_apart(_there(exchange.reply), MARKER), status)
                lab = _with_reply(labs(), number, replaced(reply))
                try:
                    told.append(str(lab.validate(order, SESSION)))
                except PROBLEMS as problem:
                    told.append(problem_text(problem))
                    with cases.of(exchange.request.operation, status):
                        assert MARKER not in told[-1], "the engine's own text is in the message of a problem"
                except Unfit:
                    continue  # another test's
                told += [str(lab.adapter), str(vars(lab.adapter).get("accounts"))]
            with cases.of(exchange.request.operation):
                assert not any(one in text for one in secret for text in told), "a secret leaves the account"
        with cases.of("log"):
            assert not any(one in caplog.text for one in secret), "a secret is logged"
        for method in self._methods(labs()):
            lab = labs()
            ready, given, named = self._ready(lab, method)
            told = [str(lab.hold(method, ready, *given, **named)), *(str(one.request) for one in lab.wire.exchanges)]
            with cases.of(method):
                assert not any(one in text for one in secret for text in told), "a secret leaves the account"
        cases.settle()

    @at("bronze")
    def test_it_keeps_nothing_between_two_conversations(self, labs: Labs) -> None:
        """Nor shares it between two at once: conversations of one adapter are held interleaved."""
        order, other = self._order(), self._order(*self.accepted, lines=[("SKU-2", 3, "11.00")], name="order-2")
        runs = []
        for cart in (order, other):
            lab = labs()
            result = lab.validate(cart, SESSION)
            runs.append((cart, result, [_there(one.reply) for one in lab.wire.exchanges]))
        adapter = self._adapter()
        cases = Cases()
        with cases.of("one conversation disturbs another"):
            results = _interleaved([(adapter.validate(cart, SESSION), list(came)) for cart, _, came in runs])
            assert results == [result for _, result, _ in runs], "they come to other outcomes than alone"
        cases.settle()

    @at("bronze")
    def test_it_stays_within_its_budget(self, labs: Labs) -> None:
        cases = Cases()
        for count in (1, 10, 100, 1000):
            if cases.faults:
                break
            lines = [(f"SKU-{number}", 1, f"{number % 90 + 1}.00") for number in range(count)]
            lab, order = labs(), self._order(*self.accepted, lines=lines)
            with cases.no_outage(f"{count} lines"):
                lab.validate(order, SESSION)
                came = [_there(exchange.reply) for exchange in lab.wire.exchanges]
                allowed = self.most_requests + self.requests_per_line * count
                assert len(came) <= allowed, f"{len(came)} requests, and {allowed} are allowed"
                started = time.process_time()
                _replayed(lab.adapter, order, came)
                took, most = time.process_time() - started, max(self.seconds * count / 1000, 0.05)
                assert took <= most, f"takes {took:.2f} s of CPU time, and {most:.2f} s are allowed"
        cases.settle()

    # ================================================================================================================
    # Silver: redeemed exactly once

    @at("silver")
    def test_the_story_of_an_order(self, lab: Lab) -> None:
        shown = self._order()
        validated = lab.validate(shown, SESSION)
        order = carts.discounted(shown, validated)
        assert lab.look_up(order, SESSION).state == "absent", "an order that was never redeemed is not absent"
        if lab.adapter.capabilities.check:
            checked = lab.check(order, SESSION)
            assert _amounts(checked) == _amounts(validated), "check says something else than validate"
            assert not checked.redeemed, "check says that it is redeemed before it is"
            assert self._count(lab) == 0, "checking redeems"
        done = lab.redeem(order, SESSION)
        assert isinstance(done, Redeemed), f"it is not redeemed: {done}"
        assert _amounts(done.outcome) == _amounts(validated), "redeeming grants something else than validating"
        assert self._count(lab) == 1, f"{self._count(lab)} redemptions stand, not one"
        for handle in dict.fromkeys(("", done.handle)):
            found = lab.look_up(order, SESSION, handle)
            assert found.state == "redeemed", f"a redeemed order is {found.state}"
            assert not found.extra, "further redemptions are found where there are none"
            assert _amounts(found.outcome) == _amounts(done.outcome), "looking up tells other amounts than redeeming"
            assert not found.outcome.rejected, "codes that were redeemed are refused by the look-up"
        again = lab.verdict(order, SESSION)
        assert not isinstance(again, NotDone), "redeemed once more, it says that nothing is redeemed"
        known_again = not isinstance(again, Done) or _amounts_of(again) == _amounts(validated)
        assert known_again, "redeemed once more, it grants something else"
        self._mend(lab, order)
        assert self._count(lab) == 1, f"redeemed again, {self._count(lab)} redemptions stand"
        assert lab.look_up(order, SESSION).state == "redeemed", "after a second try it is not redeemed any more"

    @at("silver")
    def test_an_order_is_found_among_others_like_it(self, lab: Lab) -> None:
        """The same customer, cart and codes, and ids that begin alike: in the emulator, a page is to be short."""
        cases, order = Cases(), self._order(customer={"id": "john"})
        sessions = [f"{SESSION}{more}" for more in ("", "0", "01", "-1", "/1", "9")]
        absent = [SESSION[:-1], f"{SESSION}02", f"{SESSION} ", SESSION.upper()]
        handles: dict[str, str] = {}
        for session in reversed(sessions):
            with cases.of(session):
                lab.validate(order, session)
                done = lab.redeem(order, session)
                assert isinstance(done, Redeemed), f"beside {len(handles)} others, it is not redeemed: {done}"
                handles[session] = done.handle
        cases.settle()
        for session in sessions:
            with cases.of(session):
                assert self._count(lab, session) == 1, f"{self._count(lab, session)} redemptions stand"
                for handle in {"", handles[session]}:
                    assert lab.look_up(order, session, handle).state == "redeemed", "it is not found among others"
        for session in absent:
            with cases.of(session):
                assert lab.look_up(order, session).state == "absent", "was never redeemed: another is taken for it"
        if lab.adapter.capabilities.undo:
            lab.undo(None, SESSION)
            assert [self._count(lab, session) for session in sessions] == [0, 1, 1, 1, 1, 1], "another one is undone"
        cases.settle()

    @at("silver")
    def test_odd_orders_are_found_again(self, labs: Labs) -> None:
        """What was redeemed is not taken for another cart, whatever is in it: such an order would never be done."""
        (sku, quantity, price), *rest = self.lines
        lines = {
            "a line of quantity 0": [("SKU-0", 0, "5.00"), *self.lines, (sku, 0, price)],
            "one sku twice": [(sku, 1, price), *rest, (sku, quantity, price)],
            "a line that costs nothing": [*self.lines, ("SKU-0", 1, "0.00")],
            "a sku of anything": [*self.lines, ("ü/☃ \"'<&>", 1, "9.00")],
            "prices of all kinds": [("SKU-0", 3, "1.00"), ("SKU-00", 2, "100.50"), *self.lines],
        }
        odd = {what: self._order(lines=each) for what, each in lines.items()}
        odd |= {currency: self._order(lines=[("SKU-0", 2, "1000")], currency=currency) for currency in self.currencies}
        odd |= {f"family {one}": self._order(family=one) for one in ("A", "C")}
        odd["a code that is refused"] = self._order(*self.accepted, *self.refused)
        cases = Cases()
        for what, order in odd.items():
            lab = labs()
            with cases.no_outage(what):
                lab.validate(order, SESSION)
                done = lab.redeem(order, SESSION)
                if isinstance(done, Redeemed):
                    with cases.of(what):
                        found = lab.look_up(order, SESSION, done.handle)
                        assert found.state == "redeemed", f"redeemed, it is {found.state}"
                        assert _taken(found.outcome) == _taken(done.outcome), "looking up tells other amounts"
        cases.settle()

    @at("silver")
    def test_another_cart_in_the_same_session_is_no_success(self, labs: Labs) -> None:
        (sku, quantity, price), *rest = self.lines
        self._are_mismatches(labs, {
            "another quantity": self._order(*self.accepted, lines=[(sku, quantity + 1, price), *rest]),
            "another price": self._order(*self.accepted, lines=[(sku, quantity, f"1{price}"), *rest]),
            "another sku": self._order(*self.accepted, lines=[("SKU-9", quantity, price), *rest]),
            "a line more": self._order(*self.accepted, lines=[*self.lines, ("SKU-9", 1, "1.00")]),
            **self._in_another_currency(labs),
        })  # fmt: skip

    def _in_another_currency(self, labs: Labs) -> dict[str, Checkout]:
        """Empty where the engine is not sent the currency and the adapter takes any: neither knows the difference."""
        lab, order = labs(), self._order(currency=OTHER_CURRENCY)
        try:
            lab.validate(order, SESSION)
        except PROBLEMS:
            return {"another currency": order}
        return {"another currency": order} if _is_asked_of(lab, OTHER_CURRENCY) else {}

    @at("silver")
    def test_other_codes_in_the_same_session_are_no_success(self, labs: Labs) -> None:
        kept = self.accepted[:-1]
        others = {"another code": self._order(*kept, next(iter(self.refused), UNKNOWN_CODE))}
        self._are_mismatches(labs, others | ({"a code less": self._order(*kept)} if kept else {}))

    def _are_mismatches(self, labs: Labs, others: Mapping[str, Checkout]) -> None:
        cases = Cases()
        for what, other in others.items():
            lab = labs()
            lab.validate(self._order(), SESSION)
            lab.redeem(self._order(), SESSION)
            with cases.of(what):
                try:
                    found = lab.look_up(other, SESSION)
                except OrderMismatch:
                    pass
                else:
                    raise Unfit(f"is {found.state}, not OrderMismatch")
                if not lab.adapter.capabilities.repair:
                    lab.verdict(other, SESSION)
                    assert self._count(lab) == 1, f"redeeming it makes {self._count(lab)} redemptions"
        cases.settle()

    @at("silver")
    def test_what_is_refused_at_validate_is_refused_at_redeem(self, labs: Labs) -> None:
        cases = Cases()
        for code, reason in {**self.refused, UNKNOWN_CODE: Reason.NOT_FOUND}.items():
            lab, order = labs(), self._order(code)
            lab.validate(order, SESSION)
            with cases.of(code):
                if lab.adapter.capabilities.check:
                    told = {one.code: one.reason for one in lab.check(order, SESSION).rejected}
                    assert told == {code: reason}, f"check says {told}"
                done = lab.redeem(order, SESSION)
                told = {one.code: one.reason for one in outcome_of(done).rejected}
                assert told == {code: reason}, f"redeem says {told}"
                standing = self._count(lab)
                assert isinstance(done, Redeemed) or standing == 0, "redeem says that nothing is redeemed, and it is"
        cases.settle()

    @at("silver")
    def test_a_code_that_somebody_else_used_up_is_refused(self, lab: Lab) -> None:
        if not self.once:
            pytest.skip("no code can be redeemed only once")
        order = self._order(self.once)
        assert not lab.validate(order, SESSION).rejected, "the code is refused before anybody has used it"
        rival = self._order(self.once, name="order-2")
        reserved = lab.validate(rival, "session-2").rejected  # by our validation: then the code is ours
        tries = [(rival, "session-2"), (order, SESSION)]
        first, second = (lab.redeem(*one) for one in (reversed(tries) if reserved else tries))
        assert not outcome_of(first).rejected, "nobody can redeem it"
        assert isinstance(first, Redeemed), "nobody can redeem it"
        assert [one.code for one in outcome_of(second).rejected] == [self.once], "the code is not refused"
        reasons = (Reason.USED_UP, Reason.CUSTOMER_LIMIT_REACHED, *([Reason.IN_USE] if reserved else []))
        assert outcome_of(second).rejected[0].reason in reasons, (
            f"it is refused as {outcome_of(second).rejected[0].reason}"
        )

    @at("silver")
    def test_requests_say_what_they_do(self, labs: Labs) -> None:
        """`effect` is true: what redeems says so, and what has no effect has none."""
        cases = Cases()
        for method in self._methods(labs()):
            lab = labs()
            order, given, named = self._ready(lab, method)

            def watch(request: EngineRequest, before: Any, after: Any, method: str = method) -> None:
                with cases.of(method, request.operation):
                    more = self.redeemed(after, SESSION) > self.redeemed(before, SESSION)
                    assert not more or request.effect == "redeems", f"redeems, and says {request.effect!r}"
                    assert before == after or request.effect != "none", "changes the engine's books, and says 'none'"

            lab.wire.on_delivered = watch
            with cases.of(method):
                lab.hold(method, order, *given, **named)
                effects = {exchange.request.effect for exchange in lab.wire.exchanges}
                assert "redeems" in effects or method != "redeem", "no request says that it redeems"
        cases.settle()

    @at("silver")
    def test_what_may_be_repeated_may_be_repeated(self, labs: Labs) -> None:
        """`repeatable` is true: the request may arrive twice, and no more comes of it."""
        cases = Cases()
        for method in self._methods(labs()):
            plain, doubled = labs(), labs()
            doubled.wire.doubled = lambda request: request.repeatable
            with cases.of(method):
                results = []
                for lab in (plain, doubled):
                    order, given, named = self._ready(lab, method)
                    results.append((_amounts_of(lab.hold(method, order, *given, **named)), self._count(lab)))
                assert results[0] == results[1], f"arriving twice, it comes to {results[1]} instead of {results[0]}"
        cases.settle()

    @at("silver")
    def test_ids_of_strangers_lead_nowhere_else(self, labs: Labs) -> None:
        cases = Cases()
        for name in carts.IDS:
            lab, order = labs(), self._order(name=name)
            with cases.of(repr(name[:9])):
                lab.validate(order, name)
                lab.redeem(order, name)
                assert self._count(lab, name) == 1, "is redeemed under another name"
                assert lab.look_up(order, name).state == "redeemed", "cannot be found again"
                for other in carts.IDS:
                    if other != name:
                        assert lab.look_up(order, other).state == "absent", f"is found as {other[:9]!r}, too"
        cases.settle()

    @at("silver")
    def test_whatever_the_engine_replies_redeem_ends_as_the_contract_says(self, labs: Labs) -> None:
        self._stands_any_reply(labs, "redeem")

    @at("silver")
    def test_after_a_redemption_that_was_answered_nothing_counts_as_not_done(self, labs: Labs) -> None:
        """Whatever stands in a 2xx: unknown, or what the engine tells when it is asked again."""
        cases, order, good = Cases(), self._order(), labs()
        _, given, _ = self._ready(good, "redeem")
        want = _amounts_of(good.hold("redeem", order, *given))
        strange = [(what, 200, body) for what, body in replies.GARBAGE.items()]
        strange += [(f"{status} {what}", status, body) for status in (200, 201) for what, body in _EMPTY.items()]
        strange += [("204", 204, b""), ("202", 202, b"")]
        redeeming = [place for place, one in enumerate(good.wire.exchanges) if one.request.effect == "redeems"]
        for number in redeeming:
            for what, status, body in strange:
                lab = labs()
                self._ready(lab, "redeem")
                _with_reply(lab, number, replaced(EngineReply(status=status, headers={}, body=body)))
                with cases.of(what):
                    verdict = lab.verdict(order, SESSION)
                    assert not isinstance(verdict, NotDone | Declined), "redeem says that nothing is redeemed"
                    done = isinstance(verdict, Done)
                    assert not done or _amounts_of(verdict) == want, "is taken for a redemption that grants nothing"
        cases.settle()

    @at("silver")
    def test_a_look_up_never_takes_trouble_for_absence(self, labs: Labs) -> None:
        cases = Cases()
        good = labs()
        order, given, _ = self._ready(good, "look_up")
        good.hold("look_up", order, *given)
        strange = [(what, 200, body) for what, body in replies.GARBAGE.items()]
        strange += [(str(status), status, b"") for status in (400, 401, 403, 405, 422)]
        for number in range(len(good.wire.exchanges)):
            for what, status, body in strange:
                lab = labs()
                self._ready(lab, "look_up")
                _with_reply(lab, number, replaced(EngineReply(status=status, headers={}, body=body)))
                with cases.may_refuse(what):
                    assert lab.look_up(order, SESSION).state != "absent", "is taken for an order that is not there"
        cases.settle()

    @at("silver")
    def test_whatever_the_engine_replies_a_look_up_ends_as_the_contract_says(self, labs: Labs) -> None:
        self._stands_any_reply(labs, "look_up")

    @at("silver")
    def test_an_order_is_redeemed_once_wherever_the_mapper_dies(self, labs: Labs) -> None:
        """The crash matrix: each request of a redemption suffers each fault; the process goes on, or dies there."""
        self._crash_matrix(labs, ["redeem"])

    @at("silver")
    def test_the_whole_service_redeems_an_order_once(self, labs: Labs, tmp_path: Path) -> None:
        """With its own ledger: a process suffers a fault and is gone; later ones are sent the same order.

        The fault befalls the first request that redeems. With CRASH_MATRIX=all: any request, and whoever comes next
        does so after what was late, before it, or twice at once.
        """
        cases, body = Cases(), carts.body(self.lines, self.accepted)
        order, data = carts.parse(body), msgspec.json.encode(body)

        def shop_in(place: str) -> tuple[Lab, Shop]:
            lab = labs()
            (tmp_path / place).mkdir()
            lab.validate(order, order.id)
            lab.wire.exchanges.clear()
            return lab, lab.shop(self.options, tmp_path / place)

        good, shop = shop_in("good")
        assert good.run(shop.consume(data)) == 200, "the order is not done, and nothing is in its way"
        redeeming = [place for place, one in enumerate(good.wire.exchanges) if one.request.effect == "redeems"]
        assert redeeming, "no request redeems"
        everything = os.environ.get("CRASH_MATRIX") == "all"
        struck = range(len(good.wire.exchanges)) if everything else redeeming[:1]
        come_next = ("after", "before", "twice") if everything else ("after",)
        for place, (what, fault), then in itertools.product(struck, FAULTS.items(), come_next):
            lab, shop = shop_in(f"{place} {what} {then}")
            _with_reply(lab, place, fault)
            with cases.of(good.wire.operation(place), what, then):
                lab.run(shop.consume(data))
                if then != "after":
                    lab.run(shop.consume_at_once(data, {"before": 1, "twice": 2}[then]))
                lab.deliver_late()
                status = lab.run(shop.consume_until_done(data))
                assert status == 200, f"the order is never done: {status}"
                assert self._count(lab, order.id) == 1, f"{self._count(lab, order.id)} redemptions stand"
        cases.settle()

    # ================================================================================================================
    # Gold: what engines and networks do, and the way back

    @at("gold")
    def test_two_processes_at_once_redeem_once(self, labs: Labs) -> None:
        lab, order = labs(), self._order()
        lab.validate(order, SESSION)
        verdicts = lab.verdicts(order, SESSION, 3)
        if all(isinstance(one, NotDone) for one in verdicts):  # in each other's way: whoever comes next is alone
            assert self._count(lab) == 0, "they say that nothing is redeemed, and something is"
            lab.verdict(order, SESSION, "order/2")
        self._mend(lab, order)
        assert self._count(lab) == 1, f"{self._count(lab)} redemptions stand"

    @at("gold")
    def test_a_redemption_that_arrives_twice_counts_once(self, labs: Labs) -> None:
        """A proxy on the way sends it again. Where `repair` is declared, it mends that."""
        lab, order = labs(), self._order()
        lab.validate(order, SESSION)
        lab.wire.doubled = lambda request: request.effect == "redeems"
        verdict = lab.verdict(order, SESSION)
        lab.wire.doubled = lambda _: False
        assert not isinstance(verdict, NotDone), "it says that nothing is redeemed"
        twice = self._count(lab)
        able = lab.adapter.capabilities.repair
        assert twice == 1 or able, f"{twice} redemptions stand, and repair is not declared"
        assert lab.look_up(order, SESSION).extra or twice == 1, "the look-up does not find the second redemption"
        self._mend(lab, order)
        assert self._count(lab) == 1, f"after the repair, {self._count(lab)} redemptions stand"
        assert lab.look_up(order, SESSION).state == "redeemed", "after the repair, it is not redeemed"

    @at("gold")
    def test_faults_at_validate_and_check_are_told_as_such(self, labs: Labs) -> None:
        cases, order = Cases(), self._order()
        for method in [one for one in self._methods(labs()) if one in ("validate", "check")]:
            good = labs()
            _, given, named = self._ready(good, method)
            want = _amounts_of(good.hold(method, order, *given, **named))
            for number in range(len(good.wire.exchanges)):
                for what, fault in FAULTS.items():
                    lab = labs()
                    self._ready(lab, method)
                    _with_reply(lab, number, fault)
                    with cases.may_refuse(method, good.wire.operation(number), what):
                        # Once: a request that may be repeated is, and then it goes well.
                        got = _amounts_of(lab.hold(method, order, *given, **named))
                        assert got == want, "is taken for an answer"
        cases.settle()

    @at("gold")
    def test_a_redemption_is_taken_back(self, labs: Labs) -> None:
        self._skip_without("undo")
        cases = Cases()
        for what in ("with the order", "without the order", "without order and handle"):
            lab, order = labs(), self._order()
            with cases.of(what):
                for _ in range(2):  # and redeemed again, and taken back again
                    lab.validate(order, SESSION)
                    done = lab.redeem(order, SESSION, f"order/{_}")
                    assert isinstance(done, Redeemed), "it is not redeemed"
                    assert self._count(lab) == 1, f"{self._count(lab)} redemptions stand"
                    handle = "" if what.endswith("and handle") else done.handle
                    for again in ("", "a second time "):
                        lab.undo(order if what == "with the order" else None, SESSION, handle)
                        assert self._count(lab) == 0, f"{again}undone, {self._count(lab)} redemptions stand"
                    assert lab.look_up(order, SESSION).state == "absent", "undone, it is not absent"
        cases.settle()

    @at("gold")
    def test_a_redemption_is_taken_back_for_good(self, labs: Labs) -> None:
        self._skip_without("undo")
        lab, order = labs(), self._order()
        lab.validate(order, SESSION)
        done = lab.redeem(order, SESSION)
        assert isinstance(done, Redeemed)
        for _ in range(2):
            lab.undo(None, SESSION, done.handle, final=True)
            assert self._count(lab) == 0, "cancelled, it stands"
        with suppress(*PROBLEMS):
            assert lab.look_up(order, SESSION).state != "redeemed", "cancelled, it is redeemed"

    @at("gold")
    def test_what_was_never_redeemed_can_be_undone(self, labs: Labs) -> None:
        self._skip_without("undo")
        cases, order = Cases(), self._order()
        for final in (False, True):
            for validated in (False, True):
                lab = labs()
                if validated:
                    lab.validate(order, SESSION)
                with cases.of(f"final={final}", f"validated={validated}"):
                    try:
                        lab.undo(order, SESSION, final=final)
                    except PROBLEMS as problem:
                        raise Unfit(f"is {type(problem).__name__}: {problem.message}") from problem
                    assert self._count(lab) == 0, "undoing redeems"
        cases.settle()

    @at("gold")
    def test_an_undo_that_was_not_done_says_so(self, labs: Labs) -> None:
        self._skip_without("undo")
        cases, order = Cases(), self._order()
        for final in (False, True):
            good = labs()
            _, given, _ = self._ready(good, "undo")
            good.hold("undo", order, *given, final=final)
            for number in range(len(good.wire.exchanges)):
                for status in (400, 401, 403, 404, 409, 422, 429, 500):
                    lab = labs()
                    self._ready(lab, "undo")
                    _with_reply(lab, number, instead(EngineReply(status=status, headers={}, body=b"{}")))
                    with cases.may_refuse(f"final={final}", good.wire.operation(number), status):
                        lab.undo(order, SESSION, given[1], final=final)
                        # It came to its end without a word: then it must be done.
                        assert self._count(lab) == 0 or status == 404, "is silent, and the redemption stands"
        cases.settle()

    @at("gold")
    def test_whatever_the_engine_replies_check_and_undo_end_as_the_contract_says(self, labs: Labs) -> None:
        for method in self._methods(labs()):
            if method in ("check", "undo"):
                self._stands_any_reply(labs, method)

    @at("gold")
    def test_an_undo_is_done_wherever_the_mapper_dies(self, labs: Labs) -> None:
        self._skip_without("undo")
        cases, order = Cases(), self._order()
        good = labs()
        _, given, named = self._ready(good, "undo")
        good.hold("undo", order, *given, **named)
        for number in range(len(good.wire.exchanges)):
            for what, fault in FAULTS.items():
                lab = labs()
                self._ready(lab, "undo")
                _with_reply(lab, number, fault)
                with cases.of(good.wire.operation(number), what):
                    with suppress(*PROBLEMS):
                        lab.undo(order, SESSION, given[1])
                    lab.wire.fault = None
                    lab.deliver_late()
                    try:
                        lab.undo(order, SESSION, given[1])
                    except PROBLEMS as problem:
                        raise Unfit(f"cannot be undone any more: {problem.message}") from problem
                    assert self._count(lab) == 0, "undone twice, it stands"
        cases.settle()

    # -- Parts of tests ----------------------------------------------------------------------------------------------

    def _skip_without(self, means: str) -> None:
        if not getattr(self._adapter().capabilities, means):
            pytest.skip(f"{means} is not declared: for gold, `exempt` says why")

    def _stands_any_reply(self, labs: Labs, method: str) -> None:
        """Each reply of a good run, changed in every way: a result that fits the contract, or one of its problems."""
        cases, good = Cases(), labs()
        order, given, named = self._ready(good, method)
        if method in ("validate", "check"):
            order = self._order(*self.accepted, *self.refused)
        good.hold(method, order, *given, **named)
        came = [_there(exchange.reply) for exchange in good.wire.exchanges]
        for number, reply in enumerate(came):
            changed = [
                *((f"status {status}", replies.with_status(reply, status)) for status in (201, 204, 400, 404, 418)),
                *((what, EngineReply(status=200, headers={}, body=body)) for what, body in replies.GARBAGE.items()),
                *replies.changed(reply),
            ]
            lab = labs()
            self._ready(lab, method)
            for what, other in changed:
                _with_reply(lab, number, instead(other), else_from=came)
                with cases.may_refuse(method, good.wire.exchanges[number].request.operation, what):
                    lab.hold(method, order, *given, **named)
        cases.settle()

    def _crash_matrix(self, labs: Labs, methods: Sequence[str]) -> None:
        cases, order = Cases(), self._order()
        good = labs()
        _, given, _ = self._ready(good, "redeem")
        want = _amounts_of(good.hold("redeem", order, *given))
        for number in range(len(good.wire.exchanges)):
            for what, fault in FAULTS.items():
                for dies in (False, True):
                    lab = labs()
                    self._ready(lab, "redeem")
                    _with_reply(lab, number, fault)
                    with cases.of(good.wire.operation(number), what, "dies" if dies else "goes on"):
                        try:
                            self._recover(lab, order, lab.verdict(order, SESSION), dies=dies)
                        except PROBLEMS as problem:
                            raise Unfit(f"cannot be brought to its end: {problem.message}") from problem
                        assert self._count(lab) == 1, f"{self._count(lab)} redemptions stand at the end"
                        found = lab.look_up(order, SESSION)
                        assert found.state == "redeemed", f"at the end it is {found.state}"
                        assert _amounts(found.outcome) == want, "at the end, other amounts are told"
        cases.settle()

    def _recover(self, lab: Lab, order: Checkout, verdict: Verdict, *, dies: bool) -> None:
        """What the service does: unknown is looked up, absent is looked up again after a while and sent again."""
        lab.wire.fault = None
        if isinstance(verdict, NotDone):
            assert not self._count(lab), "it says that nothing is redeemed, and something is"
            on_its_way = [one.operation for one in lab.wire.late if one.effect == "redeems"]
            assert not on_its_way, f"it says that nothing is redeemed, and {on_its_way} is on its way"
        if isinstance(verdict, Done) and not dies:
            assert self._count(lab) == 1, "it says that it is redeemed, and that is not so"
            return
        for attempt in ("order/2", "order/3"):
            if self._looked_up(lab, order) != "redeemed":
                lab.deliver_late()
                if self._looked_up(lab, order) != "redeemed":
                    lab.verdict(order, SESSION, attempt)
        self._mend(lab, order)

    def _looked_up(self, lab: Lab, order: Checkout) -> str:
        stands = self._count(lab)
        state = lab.look_up(order, SESSION).state
        assert not stands or state != "absent", "the engine has it, and the look-up says that it is absent"
        return state

    def _mend(self, lab: Lab, order: Checkout) -> None:
        """What the service does about redemptions that are too many."""
        found: LookedUp = lab.look_up(order, SESSION)
        if found.extra and lab.adapter.capabilities.repair:
            for _ in range(2):
                lab.repair(order, SESSION, found.extra)


# ---------------------------------------------------------------------------------------------------------------------


def _amounts(outcome: Outcome) -> list[tuple[Any, ...]]:
    """What an outcome takes off what, in whatever order it lists it; and what it refuses."""
    taken = [(one.line is None, one.line or 0, one.scope or "", one.cost, one.amount) for one in outcome.discounts]
    return [*sorted(taken), *sorted((one.code, one.reason.value) for one in outcome.rejected)]


def _taken(outcome: Outcome) -> list[tuple[Any, ...]]:
    return _amounts(msgspec.structs.replace(outcome, rejected=()))


def _is_asked_of(lab: Lab, text: str) -> bool:
    """Whether this stands in a request, escaped as its place wants it."""
    spelled = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], escape(text))
    for request in (exchange.request for exchange in lab.wire.exchanges):
        body = request.body.decode(errors="replace")
        marked = body[:1] in ("{", "[", "<")
        if text in unquote(request.path) or text in unquote_plus(request.path):
            return True
        if any(one in body for one in spelled) if marked else text in unquote_plus(body):
            return True
    return False


def _spellings(secret: str) -> Iterator[str]:
    """As it is, percent-encoded, and within anything in base64."""
    yield from {secret, quote(secret, safe="")}
    for before in range(3):
        told = base64.b64encode(b" " * before + secret.encode())
        yield told[4 if before else 0 : len(told) // 4 * 4 - 4].decode()


def _shifted(outcome: Outcome, by: int) -> list[tuple[Any, ...]]:
    moved = [one if one.line is None else msgspec.structs.replace(one, line=one.line + by) for one in outcome.discounts]
    return _amounts(msgspec.structs.replace(outcome, discounts=tuple(moved)))


def _amounts_of(value: object) -> list[tuple[Any, ...]]:
    return [] if value is None else _amounts(outcome_of(value))


def _there(reply: EngineReply | None) -> EngineReply:
    assert reply is not None, "a request of a good run has no reply"
    return reply


def _good_run(lab: Lab, order: Checkout) -> list[Any]:
    lab.validate(order, SESSION)
    return list(lab.wire.exchanges)


def _asked(lab: Lab, order: Checkout) -> list[EngineRequest]:
    return [exchange.request for exchange in _good_run(lab, order)]


def _with_reply(lab: Lab, number: int, fault: Fault, else_from: Sequence[EngineReply] = ()) -> Lab:
    """From now on, request `number` suffers a fault, once. The others: as always, or as in an earlier run."""
    lab.wire.exchanges.clear()
    left = [fault]

    def suffer(request: EngineRequest, place: int) -> Fault | None:
        if place == number and left:
            return left.pop()
        return instead(else_from[place]) if place < len(else_from) else None

    lab.wire.fault = suffer
    return lab


def _replayed(adapter: Adapter, order: Checkout, came: Sequence[EngineReply]) -> tuple[Outcome, list[EngineRequest]]:
    return replay(adapter.validate(order, SESSION), came, accounts=adapter.accounts, lines=len(order.cart))


def _interleaved(runs: Sequence[tuple[Any, list[EngineReply]]]) -> list[Any]:
    """Conversations held in turns, each with the replies that it got alone."""
    results: dict[int, Any] = {}
    asked = [next(conversation) for conversation, _ in runs]
    while len(results) < len(runs):
        for place, (conversation, left) in enumerate(runs):
            if place in results:
                continue
            several = isinstance(asked[place], tuple)
            came = tuple(left.pop(0) for _ in asked[place]) if several else left.pop(0)
            try:
                asked[place] = conversation.send(came)
            except StopIteration as stop:
                results[place] = stop.value
    return [results[place] for place in range(len(runs))]
