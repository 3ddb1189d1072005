"""An order from validate to redemption and look-up, compared with the engine's books."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from mapper.adapter import Checkout, EngineRequest, OrderMismatch, Reason, Redeemed
from mapper.conformance import carts
from mapper.conformance.adopter import SESSION, UNKNOWN_CODE, Adopter, NewLab, at
from mapper.conformance.amounts import amounts, discounts, outcome_of, reasons
from mapper.conformance.cases import Cases
from mapper.conformance.checks.pricing import is_sent
from mapper.conformance.lab import PROBLEMS, ContractViolation, Lab
from mapper.engine.promotion_engine import Done, NotDone

OTHER_CURRENCY = "EUR"
"""It has as many digits as the currency of an ordinary cart."""


class Orders(Adopter):
    @at("silver")
    def test_order_is_validated_redeemed_and_looked_up(self, lab: Lab) -> None:
        checkout = self._order()
        validated = lab.validate(checkout, SESSION)
        order = carts.discounted(checkout, validated)
        assert lab.look_up(order, SESSION).state == "absent", "an order that was never redeemed is not absent"
        if lab.adapter.capabilities.check:
            checked = lab.check(order, SESSION)
            assert amounts(checked) == amounts(validated), "check grants something else than validate"
            assert not checked.redeemed, "check says that it is redeemed before it is"
            assert self._count(lab) == 0, "checking redeems"
        done = lab.redeem(order, SESSION)
        assert isinstance(done, Redeemed), f"it is not redeemed: {done}"
        assert amounts(done) == amounts(validated), "redeeming grants something else than validating"
        assert self._count(lab) == 1, f"there are {self._count(lab)} redemptions, not one"
        for handle in dict.fromkeys(("", done.handle)):
            found = lab.look_up(order, SESSION, handle)
            assert found.state == "redeemed", f"a redeemed order is {found.state}"
            assert not found.extra, "further redemptions are found where there are none"
            assert amounts(found) == amounts(done), "the look-up reports other amounts than redeeming did"
            assert not found.outcome.rejected, "codes that were redeemed are refused by the look-up"
        again = lab.verdict(order, SESSION)
        assert not isinstance(again, NotDone), "redeemed once more, it says that nothing is redeemed"
        recognised = not isinstance(again, Done) or amounts(again) == amounts(validated)
        assert recognised, "redeemed once more, it grants something else"
        self._repair(lab, order)
        assert self._count(lab) == 1, f"redeemed again, there are {self._count(lab)} redemptions"
        assert lab.look_up(order, SESSION).state == "redeemed", "after a second try it is not redeemed any more"

    @at("silver")
    def test_look_up_finds_the_order_among_similar_ones(self, lab: Lab) -> None:
        """The others have the same customer, cart and codes, and similar ids; the emulator's pages are short."""
        cases, order = Cases(), self._order(customer={"id": "john"})
        sessions = [f"{SESSION}{more}" for more in ("", "0", "01", "-1", "/1", "9")]
        absent = [SESSION[:-1], f"{SESSION}02", f"{SESSION} ", SESSION.upper()]
        handles: dict[str, str] = {}
        for session in reversed(sessions):
            with cases.case(session):
                lab.validate(order, session)
                done = lab.redeem(order, session)
                assert isinstance(done, Redeemed), f"beside {len(handles)} others, it is not redeemed: {done}"
                handles[session] = done.handle
        cases.report()
        for session in sessions:
            with cases.case(session):
                assert self._count(lab, session) == 1, f"there are {self._count(lab, session)} redemptions"
                for handle in {"", handles[session]}:
                    assert lab.look_up(order, session, handle).state == "redeemed", "it is not found among others"
        for session in absent:
            with cases.case(session):
                assert lab.look_up(order, session).state == "absent", "was never redeemed: another is taken for it"
        if lab.adapter.capabilities.undo:
            lab.undo(None, SESSION)
            assert [self._count(lab, session) for session in sessions] == [0, 1, 1, 1, 1, 1], "another one is undone"
        cases.report()

    @at("silver")
    def test_look_up_finds_unusual_orders(self, new_lab: NewLab) -> None:
        """A redeemed order is not taken for another cart, whatever it contains: it would never be done."""
        (sku, quantity, price), *rest = self.lines
        lines = {
            "a line of quantity 0": [("SKU-0", 0, "5.00"), *self.lines, (sku, 0, price)],
            "one sku twice": [(sku, 1, price), *rest, (sku, quantity, price)],
            "two equal lines": [*self.lines, *self.lines],
            "a line that costs nothing": [*self.lines, ("SKU-0", 1, "0.00")],
            "an odd sku": [*self.lines, ("ü/☃ \"'<&>", 1, "9.00")],
            "prices of all kinds": [("SKU-0", 3, "1.00"), ("SKU-00", 2, "100.50"), *self.lines],
        }
        odd = {what: self._order(lines=each) for what, each in lines.items()}
        odd |= {currency: self._order(lines=[("SKU-0", 2, "1000")], currency=currency) for currency in self.currencies}
        odd |= {f"family {one}": self._order(family=one) for one in ("A", "C")}
        odd["a code that is refused"] = self._order(*self.accepted, *self.refused)
        cases = Cases()
        for what, order in odd.items():
            lab = new_lab()
            with cases.no_outage(what):
                lab.validate(order, SESSION)
                done = lab.redeem(order, SESSION)
                if isinstance(done, Redeemed):
                    with cases.case(what):
                        found = lab.look_up(order, SESSION, done.handle)
                        assert found.state == "redeemed", f"redeemed, it is {found.state}"
                        assert discounts(found) == discounts(done), "the look-up reports other amounts"
                        assert reasons(found).keys() == reasons(done).keys(), "the look-up refuses other codes"
        cases.report()

    @at("silver")
    def test_another_cart_in_the_session_is_a_mismatch(self, new_lab: NewLab) -> None:
        (sku, quantity, price), *rest = self.lines
        self._are_mismatches(new_lab, {
            "another quantity": self._order(*self.accepted, lines=[(sku, quantity + 1, price), *rest]),
            "another price": self._order(*self.accepted, lines=[(sku, quantity, f"1{price}"), *rest]),
            "another sku": self._order(*self.accepted, lines=[("SKU-9", quantity, price), *rest]),
            "a line more": self._order(*self.accepted, lines=[*self.lines, ("SKU-9", 1, "1.00")]),
            "a line twice": self._order(*self.accepted, lines=[*self.lines, self.lines[-1]]),
            **self._in_another_currency(new_lab),
        })  # fmt: skip

    def _in_another_currency(self, new_lab: NewLab) -> dict[str, Checkout]:
        """Empty if the currency is not sent and the adapter takes any: then neither knows the difference."""
        lab, order = new_lab(), self._order(currency=OTHER_CURRENCY)
        try:
            lab.validate(order, SESSION)
        except PROBLEMS:
            return {"another currency": order}
        return {"another currency": order} if is_sent(lab, OTHER_CURRENCY) else {}

    @at("silver")
    def test_other_codes_in_the_session_are_a_mismatch(self, new_lab: NewLab) -> None:
        kept = self.accepted[:-1]
        others = {"another code": self._order(*kept, next(iter(self.refused), UNKNOWN_CODE))}
        self._are_mismatches(new_lab, others | ({"a code less": self._order(*kept)} if kept else {}))

    def _are_mismatches(self, new_lab: NewLab, others: Mapping[str, Checkout]) -> None:
        cases = Cases()
        for what, other in others.items():
            lab = new_lab()
            lab.validate(self._order(), SESSION)
            lab.redeem(self._order(), SESSION)
            with cases.case(what):
                try:
                    found = lab.look_up(other, SESSION)
                except OrderMismatch:
                    pass
                else:
                    raise ContractViolation(f"is {found.state}, not OrderMismatch")
                if lab.adapter.capabilities.check:
                    with suppress(*PROBLEMS):
                        assert not lab.check(other, SESSION).redeemed, "check says that it is redeemed"
                if not lab.adapter.capabilities.repair:
                    verdict = lab.verdict(other, SESSION)
                    assert not isinstance(verdict, Done), "redeeming it succeeds, and another cart is redeemed"
                    assert self._count(lab) == 1, f"redeeming it makes {self._count(lab)} redemptions"
        cases.report()

    @at("silver")
    def test_check_and_redeem_refuse_what_validate_refuses(self, new_lab: NewLab) -> None:
        cases = Cases()
        for code, reason in {**self.refused, UNKNOWN_CODE: Reason.NOT_FOUND}.items():
            lab, order = new_lab(), self._order(code)
            word = [one.engine_reason for one in lab.validate(order, SESSION).rejected]
            with cases.case(code):
                results = {"check": lab.check(order, SESSION)} if lab.adapter.capabilities.check else {}
                done = lab.redeem(order, SESSION)
                for method, result in {**results, "redeem": done}.items():
                    assert reasons(result) == {code: reason}, f"{method} refuses {reasons(result)}"
                    words = [one.engine_reason for one in outcome_of(result).rejected]
                    assert words == word, f"{method} has the engine's words {words}, and validate has {word}"
                assert isinstance(done, Redeemed) or not self._count(lab), (
                    "redeem says that nothing is redeemed, and something is"
                )
        cases.report()

    @at("silver")
    def test_code_used_up_by_another_order_is_refused(self, lab: Lab) -> None:
        if not self.once:
            pytest.skip("no code can be redeemed only once")
        order, rival = self._order(self.once), self._order(self.once, name="order-2")
        assert not lab.validate(order, SESSION).rejected, "the code is refused before anybody has used it"
        # Where our validation has reserved the code, it is ours, and the rival comes second.
        reserved = lab.validate(rival, "session-2").rejected
        attempts = [(rival, "session-2"), (order, SESSION)]
        first, second = (lab.redeem(*one) for one in (reversed(attempts) if reserved else attempts))
        assert isinstance(first, Redeemed), "nobody can redeem it"
        assert not first.outcome.rejected, "nobody can redeem it"
        assert list(reasons(second)) == [self.once], "the code is not refused"
        possible = (Reason.USED_UP, Reason.CUSTOMER_LIMIT_REACHED, *([Reason.IN_USE] if reserved else []))
        assert reasons(second)[self.once] in possible, f"it is refused as {reasons(second)[self.once]}"

    @at("silver")
    def test_used_up_code_leaves_the_other_codes_redeemed(self, new_lab: NewLab) -> None:
        """Between validate and redeem. The others are redeemed, now and in a look-up, or nothing is."""
        if not self.once:
            pytest.skip("no code can be redeemed only once")
        lab, order = new_lab(), self._order(*self.accepted, self.once)
        rival = self._order(self.once, name="order-2")
        if lab.validate(order, SESSION).rejected or lab.validate(rival, "session-2").rejected:
            return  # it is granted alone, or was reserved by validating
        lab.redeem(rival, "session-2")
        done = lab.redeem(order, SESSION)
        assert list(reasons(done)) == [self.once], f"redeem refuses {list(reasons(done))}, not {[self.once]}"
        if not isinstance(done, Redeemed):
            assert not self._count(lab), "redeem says that nothing is redeemed, and something is"
            return
        assert discounts(done) == discounts(new_lab().validate(self._order(), SESSION)), (
            "the others grant other amounts"
        )
        found = lab.look_up(order, SESSION, done.handle)
        assert found.state == "redeemed", f"redeemed in part, it is {found.state}"
        assert discounts(found) == discounts(done), "the look-up reports other amounts"
        assert list(reasons(found)) == [self.once], f"the look-up refuses {list(reasons(found))}, not {[self.once]}"

    @at("silver")
    def test_declared_effect_of_each_request_is_true(self, new_lab: NewLab) -> None:
        """`effect` is true: a request that redeems says so, and one without effect has none."""
        cases = Cases()
        for method in self._methods():
            prepared = self._prepare(new_lab(), method)

            def compare(request: EngineRequest, before: Any, after: Any, method: str = method) -> None:
                with cases.case(method, request.operation):
                    more = self.redeemed(after, SESSION) > self.redeemed(before, SESSION)
                    assert not more or request.effect == "redeems", f"redeems, and says {request.effect!r}"
                    assert before == after or request.effect != "none", "changes the engine's books, and says 'none'"

            prepared.lab.wire.on_delivered = compare
            with cases.case(method):
                prepared.converse()
                effects = {exchange.request.effect for exchange in prepared.lab.wire.exchanges}
                assert "redeems" in effects or method != "redeem", "no request says that it redeems"
        cases.report()

    @at("silver")
    def test_repeatable_request_can_arrive_twice(self, new_lab: NewLab) -> None:
        """`repeatable` is true: a request that arrives twice does no more than once."""
        cases = Cases()
        for method in self._methods():
            with cases.case(method):
                results = []
                for twice in (False, True):
                    lab = new_lab()
                    if twice:
                        lab.wire.duplicated = lambda request: request.repeatable
                    results.append((amounts(self._prepare(lab, method).converse()), self._count(lab)))
                assert results[0] == results[1], f"arriving twice, it leads to {results[1]} instead of {results[0]}"
        cases.report()

    @at("silver")
    def test_unusual_order_ids_are_kept_apart(self, new_lab: NewLab) -> None:
        cases = Cases()
        for name in carts.IDS:
            lab, order = new_lab(), self._order(name=name)
            with cases.case(repr(name[:9])):
                lab.validate(order, name)
                lab.redeem(order, name)
                assert self._count(lab, name) == 1, "is redeemed under another name"
                assert lab.look_up(order, name).state == "redeemed", "cannot be found again"
                for other in carts.IDS:
                    if other != name:
                        assert lab.look_up(order, other).state == "absent", f"is found as {other[:9]!r}, too"
        cases.report()
