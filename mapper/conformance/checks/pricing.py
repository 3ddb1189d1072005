"""The discounts of a cart: lines, codes, reasons, exact money, and unusual carts."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, unquote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.adapter import Checkout, EngineRequest, Outcome, Reason
from mapper.conformance import carts
from mapper.conformance.adopter import SESSION, UNKNOWN_CODE, Adopter, NewLab, at
from mapper.conformance.amounts import amounts, moved
from mapper.conformance.cases import Cases
from mapper.conformance.lab import PROBLEMS, Lab, no_stock
from mapper.domain import money


class Pricing(Adopter):
    @at("bronze")
    def test_accepted_codes_give_discounts(self, lab: Lab, order: Checkout) -> None:
        outcome = lab.validate(order, SESSION)
        assert not outcome.rejected, f"accepted codes are refused: {outcome.rejected}"
        assert carts.off(order, outcome) > 0, "accepted codes take nothing off"
        assert carts.beyond(order, outcome) == 0, "more is granted than things cost: a wrong unit or line?"
        assert all(one.name.strip() for one in outcome.discounts), "a discount has no name for the shopper"
        assert lab.wire.exchanges, "the engine is not asked anything"
        for exchange in lab.wire.exchanges:
            assert exchange.request.operation, "a request has no operation for the log"
            assert not re.search(r"[/0-9]", exchange.request.operation), "an operation is a constant name"

    @at("bronze")
    def test_validate_is_repeatable_and_redeems_nothing(self, lab: Lab, order: Checkout) -> None:
        first = lab.validate(order, SESSION)
        assert lab.validate(order, SESSION) == first, "the same cart earns something else the second time"
        lab.validate(self._order(*self.accepted, lines=self.lines[:1]), SESSION)
        assert lab.validate(order, SESSION) == first, "what a cart earns depends on what it was before"
        assert self._count(lab) == 0, "validating redeems"

    @at("bronze")
    def test_refused_codes_have_the_expected_reasons(self, new_lab: NewLab) -> None:
        cases = Cases()
        wanted = {**self.refused, UNKNOWN_CODE: Reason.NOT_FOUND}
        for code, reason in wanted.items():
            with cases.case(code):
                rejected = new_lab().validate(self._order(code), SESSION).rejected
                found = [(one.code, one.reason) for one in rejected]
                assert found == [(code, reason)], f"should be refused as {reason.value}, and is {found}"
        with cases.case("beside accepted codes"):
            mixed = new_lab().validate(self._order(*self.accepted, *wanted), SESSION)
            refused = sorted(one.code for one in mixed.rejected)
            assert refused == sorted(wanted), f"{refused} are refused, and {sorted(wanted)} should be"
        cases.report()

    @at("bronze")
    def test_refused_codes_have_an_engine_reason(self, new_lab: NewLab) -> None:
        """The log and the merchant need it, since our reasons are broader. An engine without one is exempt."""
        cases = Cases()
        for code in (*self.refused, UNKNOWN_CODE):
            with cases.case(code):
                rejected = new_lab().validate(self._order(code), SESSION).rejected
                assert all(one.engine_reason.strip() for one in rejected), "`engine_reason` is empty"
        cases.report()

    @at("bronze")
    def test_cart_values_reach_the_engine_unchanged(self, new_lab: NewLab) -> None:
        """Names and codes are escaped once, as their place requires: not cut, not folded, not escaped twice."""
        cases = Cases()
        for name in ("ü/☃ \"'<&>%41", "Sku-" * 20):
            lab, order = new_lab(), self._order(lines=[(name, 1, "20.00")])
            with cases.may_refuse("a sku"):
                lab.validate(order, SESSION)
                assert is_sent(lab, name), f"{name!r} is not sent to the engine"
        two, one = ([("SKU-1", count, price)] for count, price in ((2, "5.00"), (1, "10.00")))
        with cases.may_refuse("quantities"):
            same = _requests(new_lab(), self._order(lines=two)) == _requests(new_lab(), self._order(lines=one))
            assert not same, "two at 5.00 are sent as one at 10.00"
        for currency in self.currencies if self._is_sent_prices() else ():
            digits = money.DIGITS[currency]
            cheap, dear = (money.text(10**digits * 10 + more, digits) for more in (1, 2))
            with cases.may_refuse("prices", currency):
                sent = [
                    _requests(new_lab(), self._order(lines=[("SKU-1", 1, price)], currency=currency))
                    for price in (cheap, dear)
                ]
                assert sent[0] != sent[1], f"{cheap} is sent as {dear}"
        for code in (UNKNOWN_CODE, "ü☃", "a%41+b"):
            lab = new_lab()
            with cases.may_refuse("a code"):
                refused = {one.code: one.reason for one in lab.validate(self._order(code), SESSION).rejected}
                if refused != {code: Reason.MALFORMED}:  # which need not be sent
                    assert is_sent(lab, code), f"{code!r} is not sent to the engine"
        cases.report()

    @at("bronze")
    def test_percentage_is_exact_in_every_currency(self, new_lab: NewLab) -> None:
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
                with cases.case(currency, f"{quantity} x {price}"):
                    got = carts.off(order, new_lab().validate(order, SESSION))
                    assert abs(got - exact) <= Decimal(quantity) / 2, f"{percent} % is {exact}, and {got} is taken off"
        cases.report()

    @at("bronze")
    def test_fixed_amount_is_exact_over_many_lines(self, new_lab: NewLab) -> None:
        if self.fixed is None:
            pytest.skip("no code takes a fixed amount off")
        code, amount = self.fixed
        cases = Cases()
        for count in (1, 3, 7, 11):
            lines = [(f"SKU-{number}", 1 + number % 3, f"{number + 10}.99") for number in range(count)]
            order = self._order(code, lines=lines)
            with cases.case(f"{count} lines"):
                got = carts.off(order, new_lab().validate(order, SESSION))
                assert got == money.parse(amount, 2), f"{amount} is promised, and {got} minor units are taken off"
        cases.report()

    @at("bronze")
    def test_random_carts_get_exact_discounts(self, new_lab: NewLab) -> None:
        """Random carts earn the same from two adapters; a percentage is exact, to the rounding of each unit."""
        first, second, plain = new_lab(), new_lab(), new_lab()
        code, percent = self.percent or ("", 0)

        def answer(lab: Lab, order: Checkout) -> object:
            try:
                return lab.validate(order, SESSION)
            except PROBLEMS as problem:
                return problem.reason

        @settings(max_examples=25, deadline=None, database=None, derandomize=True)
        @given(st.lists(carts.LINES, max_size=6), st.sampled_from([(code,), tuple(self.accepted), ()]))
        def holds(lines: list[carts.Line], codes: tuple[str, ...]) -> None:
            order = carts.parse(carts.body(lines, list(filter(None, codes))))
            outcome = answer(first, order)
            assert answer(second, order) == outcome, "another adapter answers something else"
            alone = answer(plain, carts.parse(carts.body(lines)))
            if isinstance(outcome, Outcome) and isinstance(alone, Outcome) and codes == (code,) and code:
                exact = Decimal(sum(line.gross for line in order.lines) * percent) / 100
                off = carts.off(order, outcome) - carts.off(order, alone)
                assert abs(off - exact) <= sum(line.quantity for line in order.lines), f"{off} is off, not {exact}"

        holds()

    @at("bronze")
    def test_discounts_apply_to_the_right_lines(self, new_lab: NewLab) -> None:
        cases = Cases()
        want = amounts(new_lab().validate(self._order(), SESSION))
        zero = ("SKU-1", 0, "5.00")
        with cases.case("a line of quantity 0 first"):
            got = new_lab().validate(self._order(*self.accepted, lines=[zero, *self.lines]), SESSION)
            assert moved(got, -1) == want, "the lines after it get other discounts"
        with cases.case("a line of quantity 0 last"):
            got = new_lab().validate(self._order(*self.accepted, lines=[*self.lines, zero]), SESSION)
            assert amounts(got) == want, "it changes what others earn"
        cheap = self._order(*self.accepted, lines=[("SKU-0", 1, "0.50"), *self.lines])
        with cases.case("a cheap line first"):
            over = carts.beyond(cheap, new_lab().validate(cheap, SESSION))
            assert over == 0, "more is granted than things cost: is an order's discount put on one line?"
        name = self.lines[0][0]
        other_price = "7.00" if self._is_sent_prices() else "10.00"  # in a catalogue, one sku has one price
        for what, quantity, price in (("one sku twice", 3, other_price), ("two equal lines", 1, "10.00")):
            with cases.case(what):
                got, apart = (
                    new_lab().validate(
                        self._order(*self.accepted, lines=[(name, 1, "10.00"), (other, quantity, price)]), SESSION
                    )
                    for other in (name, f"{name}-B")
                )
                assert amounts(got) == amounts(apart), "they do not earn what lines of two different skus earn"
        cases.report()

    @at("bronze")
    def test_discounted_cart_is_priced_at_list_prices(self, new_lab: NewLab) -> None:
        cases = Cases()
        for family in ("A", "B", "C"):
            order = carts.parse(carts.body(self.lines, self.accepted, family=family))
            first = new_lab().validate(order, SESSION)
            with cases.case("family", family):
                again = new_lab().validate(carts.discounted(order, first), SESSION)
                assert amounts(again) == amounts(first), (
                    "a checkout that was discounted before earns something else: use `line.list_price`"
                )
        if not self._is_sent_prices():
            lab, (sku, quantity, price) = new_lab(), self.lines[0]
            lab.validate(self._order(), SESSION)
            lab.stock = no_stock
            with cases.must_refuse("a price that is not the catalogue's"):
                lab.validate(self._order(*self.accepted, lines=[(sku, quantity, f"1{price}")]), SESSION)
        cases.report()

    @at("bronze")
    def test_unusual_carts_are_answered(self, new_lab: NewLab) -> None:
        cases = Cases()
        many = [
            (f"SKU-{number}", 1 + number % 3, f"{number % 90 + 1}.{number % 100:02}")
            for number in range(self.most_lines)
        ]
        odd: dict[str, Mapping[str, Any]] = {
            "no lines": carts.body([], self.accepted),
            "only lines of quantity 0": carts.body([("SKU-1", 0, "1.00")], self.accepted),
            "a line that costs nothing": carts.body([("SKU-1", 1, "0.00")], self.accepted),
            f"{self.most_lines} lines": carts.body(many, self.accepted),
            "an odd sku": carts.body([("ü/☃ \"'<&>", 1, "9.00")], self.accepted),
            "no currency": carts.body(self.lines, self.accepted, currency=""),
            "yen": carts.body([("SKU-1", 1, "1000")], self.accepted, currency="JPY"),
            "dinars": carts.body([("SKU-1", 1, "100.005")], self.accepted, currency="KWD"),
            "odd codes": carts.body(self.lines, ["ü/☃", "a b", "x" * 100]),
            "many codes": carts.body(self.lines, [f"{UNKNOWN_CODE}-{number}" for number in range(100)]),
            "a customer": carts.body(self.lines, self.accepted, customer={"id": "c/1"}),
            **{f"the id {name[:9]!r}": carts.body(self.lines, self.accepted, name=name) for name in carts.IDS},
            **{f"family {one}": carts.body(self.lines, self.accepted, family=one) for one in ("A", "B", "C")},
            **{f"cart {number}": cart for number, cart in enumerate(self.carts)},
        }
        for what, body in odd.items():
            checkout, lab = carts.parse(body), new_lab()
            with cases.no_outage(what):
                outcome = lab.validate(checkout, checkout.id)
                over = carts.beyond(checkout, outcome)
                free = not any(line.gross for line in checkout.cart)  # an engine may grant an amount for nothing
                assert over <= 0 or free, "more is granted than things cost"
                if lab.adapter.capabilities.check:
                    lab.check(checkout, checkout.id)
        cases.report()


def _requests(lab: Lab, order: Checkout) -> list[EngineRequest]:
    lab.validate(order, SESSION)
    return [exchange.request for exchange in lab.wire.exchanges]


def is_sent(lab: Lab, text: str) -> bool:
    """Whether a request contains this text, escaped as its place requires."""
    spelled = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], escape(text))
    for request in (exchange.request for exchange in lab.wire.exchanges):
        body = request.body.decode(errors="replace")
        marked_up = body[:1] in ("{", "[", "<")
        if text in unquote(request.path) or text in unquote_plus(request.path):
            return True
        if any(one in body for one in spelled) if marked_up else text in unquote_plus(body):
            return True
    return False
