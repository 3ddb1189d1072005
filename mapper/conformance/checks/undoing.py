"""Undo of a redemption: repeated, for good, without the order, refused, and after a crash."""

import itertools
from contextlib import suppress

from mapper.adapter import EngineReply, Redeemed
from mapper.conformance import mutations
from mapper.conformance.adopter import SESSION, Adopter, NewLab, Run, at, strike
from mapper.conformance.cases import Cases
from mapper.conformance.faults import FAULTS, instead
from mapper.conformance.lab import PROBLEMS, ContractViolation


class Undoing(Adopter):
    @at("gold")
    def test_redemption_can_be_undone(self, new_lab: NewLab) -> None:
        self._needs("undo")
        cases = Cases()
        for what in ("with the order", "without the order", "without order and handle"):
            lab, order = new_lab(), self._order()
            with cases.case(what):
                for attempt in ("order/1", "order/2"):  # redeemed again, and undone again
                    lab.validate(order, SESSION)
                    done = lab.redeem(order, SESSION, attempt)
                    assert isinstance(done, Redeemed), "it is not redeemed"
                    assert self._count(lab) == 1, f"there are {self._count(lab)} redemptions"
                    handle = "" if what.endswith("and handle") else done.handle
                    for again in ("", "a second time "):
                        lab.undo(order if what == "with the order" else None, SESSION, handle)
                        assert self._count(lab) == 0, f"{again}undone, there are {self._count(lab)} redemptions"
                    assert lab.look_up(order, SESSION).state == "absent", "undone, it is not absent"
        cases.report()

    @at("gold")
    def test_redemption_can_be_undone_for_good(self, new_lab: NewLab) -> None:
        self._needs("undo")
        lab, order = new_lab(), self._order()
        lab.validate(order, SESSION)
        done = lab.redeem(order, SESSION)
        assert isinstance(done, Redeemed)
        for _ in range(2):
            lab.undo(None, SESSION, done.handle, final=True)
            assert self._count(lab) == 0, "cancelled, it is still redeemed"
        with suppress(*PROBLEMS):
            assert lab.look_up(order, SESSION).state != "redeemed", "cancelled, it is found as redeemed"

    @at("gold")
    def test_undo_without_a_redemption_succeeds(self, new_lab: NewLab) -> None:
        self._needs("undo")
        cases, order = Cases(), self._order()
        for final, validated in itertools.product((False, True), (False, True)):
            lab = new_lab()
            if validated:
                lab.validate(order, SESSION)
            with cases.case(f"final={final}", f"validated={validated}"):
                try:
                    lab.undo(order, SESSION, final=final)
                except PROBLEMS as problem:
                    raise ContractViolation(f"is {type(problem).__name__}: {problem.message}") from problem
                assert self._count(lab) == 0, "undoing redeems"
        cases.report()

    @at("gold")
    def test_failed_undo_raises(self, new_lab: NewLab) -> None:
        """The reply is not the engine's answer: a refusal, a proxy's page, the JSON of another object."""
        self._needs("undo")
        cases = Cases()
        for final in (False, True):
            run = self._run(new_lab, "undo", final=final)
            for place in range(len(run.exchanges)):
                for what, reply in _no_undo(run, place).items():
                    prepared = self._prepare(new_lab(), "undo", final=final)
                    strike(prepared.lab, place, instead(reply))
                    with cases.may_refuse(f"final={final}", run.name(place), what):
                        prepared.converse()
                        # It ended without an error, so it must be undone; 404 may say that there is nothing to undo.
                        undone = self._count(prepared.lab) == 0 or reply.status == 404
                        assert undone, "is taken for an undo, and the order is still redeemed"
        cases.report()

    @at("gold")
    def test_undo_completes_after_any_fault(self, new_lab: NewLab) -> None:
        self._needs("undo")
        cases, run = Cases(), self._run(new_lab, "undo")
        for place, (what, fault) in itertools.product(range(len(run.exchanges)), FAULTS.items()):
            prepared = self._prepare(new_lab(), "undo")
            lab = strike(prepared.lab, place, fault)
            with cases.case(run.name(place), what):
                with suppress(*PROBLEMS):
                    prepared.converse()
                lab.wire.fault = None
                lab.deliver_late()
                try:
                    prepared.converse()
                except PROBLEMS as problem:
                    raise ContractViolation(f"cannot be undone any more: {problem.message}") from problem
                assert self._count(lab) == 0, "undone twice, it is still redeemed"
        cases.report()


def _no_undo(run: Run, place: int) -> dict[str, EngineReply]:
    refusals = {
        str(status): EngineReply(status=status, headers={}, body=b"{}")
        for status in (400, 401, 403, 404, 409, 422, 429, 500)
    }
    good = run.replies[place].body
    others = {
        f"200 with {what}": EngineReply(status=200, headers={}, body=body)
        for what, body in {**mutations.GARBAGE, "an empty object": b"{}"}.items()
        if body or good  # an engine that answers without a body has said nothing else
    }
    return refusals | others
