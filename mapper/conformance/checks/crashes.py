"""An order is redeemed once: after a crash, with concurrent processes, and with requests that arrive twice."""

import itertools
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from mapper.adapter import Checkout
from mapper.conformance import carts
from mapper.conformance.adopter import SESSION, Adopter, NewLab, Prepared, Run, at, strike
from mapper.conformance.amounts import amounts
from mapper.conformance.cases import Cases
from mapper.conformance.faults import FAULTS, FEW_FAULTS, Fault
from mapper.conformance.lab import PROBLEMS, ContractViolation, Lab
from mapper.conformance.service import Shop
from mapper.engine.promotion_engine import Done, NotDone, Verdict


class Crashes(Adopter):
    @at("silver")
    def test_order_is_redeemed_once_despite_any_fault(self, new_lab: NewLab) -> None:
        """The crash matrix: each request of a redemption suffers each fault; the process continues, or dies there.

        With CRASH_MATRIX=short, for a real engine that is slow: requests before the redemption suffer a few faults.
        """
        cases, run = Cases(), self._run(new_lab, "redeem")
        for place in range(len(run.exchanges)):
            for what, fault in _faults(run, place).items():
                prepared = self._prepare(new_lab(), "redeem")
                lab, order = strike(prepared.lab, place, fault), prepared.order
                with cases.case(run.name(place), what):
                    try:
                        self._recover(lab, order, lab.verdict(order, SESSION))
                        found = lab.look_up(order, SESSION)
                    except PROBLEMS as problem:
                        raise ContractViolation(f"cannot be completed: {problem.message}") from problem
                    assert self._count(lab) == 1, f"there are {self._count(lab)} redemptions at the end"
                    assert found.state == "redeemed", f"at the end it is {found.state}"
                    assert amounts(found) == amounts(run.result), "at the end, other amounts are reported"
        cases.report()

    def _recover(self, lab: Lab, order: Checkout, verdict: Verdict) -> None:
        """Recovers as the service does: looks up an unknown outcome; sends again what a second look-up does not find.

        A process that knows that the order is redeemed looks nothing up. One that dies then has a successor that does.
        """
        lab.wire.fault = None
        if isinstance(verdict, NotDone):
            assert not self._count(lab), "it says that nothing is redeemed, and something is"
            under_way = [one.operation for one in lab.wire.late if one.effect == "redeems"]
            assert not under_way, f"it says that nothing is redeemed, and {under_way} will arrive later"
        if isinstance(verdict, Done):
            assert self._count(lab) == 1, "it says that it is redeemed, and it is not"
        for attempt in ("order/2", "order/3"):
            if self._state(lab, order) == "redeemed":
                break
            lab.deliver_late()
            if self._state(lab, order) != "redeemed":
                lab.verdict(order, SESSION, attempt)
        self._repair(lab, order)

    def _state(self, lab: Lab, order: Checkout) -> str:
        count = self._count(lab)
        state = lab.look_up(order, SESSION).state
        assert not count or state != "absent", "the engine has it, and the look-up says that it is absent"
        return state

    @at("silver")
    def test_concurrent_validate_does_not_change_the_result(self, new_lab: NewLab) -> None:
        """Other processes validate it: before the conversation, and between any two of its requests."""
        (sku, quantity, price), *rest = self.lines
        before, between = (self._order(lines=[(sku, quantity + more, price), *rest]) for more in (1, 2))
        cases = Cases()

        def prepare(method: str) -> Prepared:
            prepared = self._prepare(new_lab(), method)
            prepared.lab.validate(before, SESSION)
            prepared.lab.wire.exchanges.clear()
            return prepared

        for method in ("validate", "redeem"):
            first = prepare(method)
            run = Run(first, first.converse(), list(first.lab.wire.exchanges))
            for place in range(len(run.exchanges)):
                prepared = prepare(method)
                lab, order = prepared.lab, prepared.order
                lab.validate_meanwhile(between, SESSION, place)
                with cases.case(f"{method}, before {run.name(place)}"):
                    if method == "validate":
                        with suppress(*PROBLEMS):
                            assert amounts(prepared.converse()) == amounts(run.result), "is answered as another cart"
                        continue
                    self._recover(lab, order, lab.verdict(order, SESSION))
                    found = lab.look_up(order, SESSION)
                    assert self._count(lab) == 1, f"there are {self._count(lab)} redemptions at the end"
                    assert found.state == "redeemed", f"at the end it is {found.state}"
                    assert amounts(found) == amounts(run.result), "at the end, other amounts are reported"
        cases.report()

    @at("silver")
    def test_service_redeems_once_after_a_crash(self, new_lab: NewLab, tmp_path: Path) -> None:
        """With its own ledger: a process suffers a fault and is gone; later ones are sent the same order.

        The fault is in the first request that redeems. With CRASH_MATRIX=all: in any request, and the next process
        comes after what was late, before it, or twice at once.
        """
        cases, body = Cases(), carts.body(self.lines, self.accepted)
        order, data = carts.parse(body), msgspec.json.encode(body)

        def open_shop(name: str) -> tuple[Lab, Shop]:
            lab = new_lab()
            (tmp_path / name).mkdir()
            lab.validate(order, order.id)
            lab.wire.exchanges.clear()
            return lab, lab.shop(self.options, tmp_path / name)

        lab, shop = open_shop("good")
        assert lab.run(shop.consume(data)) == 200, "the order is not done without any fault"
        exchanges = list(lab.wire.exchanges)
        redeeming = [place for place, one in enumerate(exchanges) if one.request.effect == "redeems"]
        assert redeeming, "no request redeems"
        everything = os.environ.get("CRASH_MATRIX") == "all"
        struck = range(len(exchanges)) if everything else redeeming[:1]
        come_next = ("after", "before", "twice") if everything else ("after",)
        for place, (what, fault), then in itertools.product(struck, FAULTS.items(), come_next):
            lab, shop = open_shop(f"{place} {what} {then}")
            strike(lab, place, fault)
            with cases.case(f"request {place} ({exchanges[place].request.operation})", what, then):
                lab.run(shop.consume(data))
                if then != "after":
                    lab.run(shop.consume_at_once(data, {"before": 1, "twice": 2}[then]))
                lab.deliver_late()
                status = lab.run(shop.consume_until_done(data))
                assert status == 200, f"the order is never done: {status}"
                assert self._count(lab, order.id) == 1, f"there are {self._count(lab, order.id)} redemptions"
        cases.report()

    @at("gold")
    def test_concurrent_processes_redeem_once(self, new_lab: NewLab) -> None:
        lab, order = new_lab(), self._order()
        lab.validate(order, SESSION)
        verdicts = lab.verdicts(order, SESSION, 3)
        if all(isinstance(one, NotDone) for one in verdicts):  # they were in each other's way: the next one is alone
            assert self._count(lab) == 0, "they say that nothing is redeemed, and something is"
            lab.verdict(order, SESSION, "order/2")
        self._repair(lab, order)
        assert self._count(lab) == 1, f"there are {self._count(lab)} redemptions"

    @at("gold")
    def test_redemption_delivered_twice_counts_once(self, new_lab: NewLab) -> None:
        """A proxy sends the request again. If `repair` is declared, it rolls back the duplicate."""
        lab, order = new_lab(), self._order()
        lab.validate(order, SESSION)
        lab.wire.duplicated = lambda request: request.effect == "redeems"
        verdict = lab.verdict(order, SESSION)
        lab.wire.duplicated = lambda _: False
        assert not isinstance(verdict, NotDone), "it says that nothing is redeemed"
        count = self._count(lab)
        assert count == 1 or lab.adapter.capabilities.repair, f"there are {count}, and repair is not declared"
        assert lab.look_up(order, SESSION).extra or count == 1, "the look-up does not find the second redemption"
        self._repair(lab, order)
        assert self._count(lab) == 1, f"after the repair, there are {self._count(lab)} redemptions"
        assert lab.look_up(order, SESSION).state == "redeemed", "after the repair, it is not redeemed"


def _faults(run: Run, place: int) -> Mapping[str, Fault]:
    short = os.environ.get("CRASH_MATRIX") == "short" and place < run.redeeming[0]
    return {what: FAULTS[what] for what in FEW_FAULTS} if short else FAULTS
