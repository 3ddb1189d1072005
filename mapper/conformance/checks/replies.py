"""Replies as engines and proxies give them: mutated, reordered, unreadable, unknown."""

import itertools
from collections.abc import Iterator
from decimal import Decimal

import pytest

from mapper.adapter import EngineReply, Outcome
from mapper.conformance import carts, mutations
from mapper.conformance.adopter import SESSION, Adopter, NewLab, Run, at, reply_of, strike
from mapper.conformance.amounts import amounts, discounts
from mapper.conformance.cases import Cases
from mapper.conformance.checks.declarations import replay_validate
from mapper.conformance.faults import FAULTS, Fault, answered, instead, replaced
from mapper.conformance.lab import PROBLEMS
from mapper.engine.promotion_engine import Declined, Done, NotDone


class Replies(Adopter):
    @at("bronze")
    def test_order_of_lists_does_not_change_the_outcome(self, new_lab: NewLab) -> None:
        order = self._order(*self.accepted, *self.refused)
        run = self._run(new_lab, "validate", order)
        again, asked = replay_validate(run.prepared.lab.adapter, order, run.replies)
        assert again == run.result, "the same replies give another outcome"
        assert asked == [exchange.request for exchange in run.exchanges], "the same replies lead to other requests"
        cases, found = Cases(), set[str]().union(*(mutations.lists(reply) for reply in run.replies))
        for name in sorted(found - self.ordered):
            lab, others = new_lab(), found - {name}
            lab.wire.fault = lambda *_, others=others: Fault(
                "now", lambda reply: mutations.reordered(reply, others) if reply else answered(500)(None)
            )
            with cases.may_refuse(name):
                assert amounts(lab.validate(order, SESSION)) == amounts(run.result), (
                    "listed in another order, it gives another outcome; if the order has a meaning: `ordered`"
                )
        cases.report()

    @at("bronze")
    def test_two_equal_effects_both_count(self, new_lab: NewLab) -> None:
        """An item of a reply whose amount matters is repeated: this changes the outcome, or is refused."""
        cases, run, lab = Cases(), self._run(new_lab, "validate"), new_lab()

        def outcome(place: int, reply: EngineReply) -> object:
            strike(lab, place, instead(reply), rest=run.replies)
            try:
                return lab.validate(run.prepared.order, SESSION)
            except PROBLEMS as problem:
                return problem.reason

        for place, reply in enumerate(run.replies):
            for name, where, repeated, others in mutations.with_repeated_items(reply):
                if name in self.unique:
                    continue
                with cases.case(run.name(place), where):
                    changed = (outcome(place, other) for other in others)
                    counts = any(
                        isinstance(one, Outcome) and discounts(one) != discounts(run.result) for one in changed
                    )
                    assert not counts or outcome(place, repeated) != run.result, (
                        "repeated, it counts once; if an item stands there only once: `unique`"
                    )
        cases.report()

    @at("bronze")
    def test_validate_keeps_the_contract_on_mutated_replies(self, new_lab: NewLab) -> None:
        self._fuzz_replies(new_lab, "validate")

    @at("bronze")
    def test_unusable_reply_does_not_mean_no_discount(self, new_lab: NewLab) -> None:
        cases, run = Cases(), self._run(new_lab, "validate")
        strange = {**_answered_with(mutations.GARBAGE), **_statuses(400, 401, 403, 404, 410, 422)}
        for place, (what, reply) in itertools.product(range(len(run.exchanges)), strange.items()):
            lab = strike(new_lab(), place, instead(reply))
            with cases.may_refuse(run.name(place), what):
                outcome = lab.validate(run.prepared.order, SESSION)
                # It may have asked again, or have refused the codes.
                assert outcome.rejected or amounts(outcome) == amounts(run.result), "is taken for an answer"
        cases.report()

    @at("bronze")
    def test_wrong_key_raises_engine_rejected(self, new_lab: NewLab) -> None:
        """It is raised as `EngineRejected`, whatever the reply's body: neither a refused code nor an outage.

        401 and 403 say it; and whatever the emulator answers to requests without the account's headers.
        """
        cases, order = Cases(), self._order(*self.accepted, *self.refused)
        run = self._run(new_lab, "validate", order)
        for place, status in itertools.product(range(len(run.exchanges)), (401, 403)):
            lab = strike(new_lab(), place, instead(mutations.with_status(run.replies[place], status)))
            with cases.no_outage(run.name(place), status):
                outcome = lab.validate(order, SESSION)
                asked_again = len(lab.wire.exchanges) > len(run.exchanges)
                assert asked_again, "is taken for an answer"
                assert amounts(outcome) == amounts(run.result), "is taken for another answer"
        lab = new_lab()
        lab.wire.removed_headers = {
            name.lower() for account in lab.adapter.accounts.values() for name, _ in account.headers
        }
        with cases.no_outage("without a key"):
            # An emulator that does not look at the key answers as always.
            assert amounts(lab.validate(order, SESSION)) == amounts(run.result), "is taken for another answer"
        cases.report()

    @at("bronze")
    def test_unreadable_amount_is_refused(self, new_lab: NewLab) -> None:
        """Validate can still refuse: nothing is sold at list prices because an amount is not a number."""
        cases, run, lab = Cases(), self._run(new_lab, "validate"), new_lab()
        order = run.prepared.order
        assert isinstance(run.result, Outcome)
        want = carts.off(order, run.result)
        for place, reply in enumerate(run.replies):
            too_large = mutations.with_amounts(reply, lambda _: b"1e400")
            no_number = mutations.with_amounts(reply, lambda _: b'"x"')
            for where, other in itertools.chain(too_large, no_number):
                strike(lab, place, instead(other), rest=run.replies)
                with cases.may_refuse(where):
                    got = carts.off(order, lab.validate(order, SESSION))
                    assert got >= want, "cannot be read, and is left out silently"
        cases.report()

    @at("bronze")
    def test_sign_of_an_amount_matters(self, new_lab: NewLab) -> None:
        """What is added to a price is no discount, and what is taken off is no surcharge."""
        cases, run, lab = Cases(), self._run(new_lab, "validate"), new_lab()

        def taken_off(place: int, reply: EngineReply) -> object:
            strike(lab, place, instead(reply), rest=run.replies)
            try:
                return discounts(lab.validate(run.prepared.order, SESSION))
            except PROBLEMS:
                return None

        want = discounts(run.result)
        for place, reply in enumerate(run.replies):
            doubled, negated = (mutations.with_amounts(reply, change) for change in (_doubled, _negated))
            for (where, more), (_, other) in zip(doubled, negated, strict=True):
                with cases.case(run.name(place), where):
                    counts = taken_off(place, more) not in (None, want)
                    assert not counts or taken_off(place, other) != want, "counts the same with the other sign"
        cases.report()

    @at("bronze")
    def test_unknown_effect_is_not_dropped(self, new_lab: NewLab) -> None:
        """An effect that no integration knows becomes a notice, a discount, or an error; it is never dropped."""
        unknown = getattr(new_lab().emulator, "unknown_effect", None)
        if unknown is None:
            pytest.skip("the emulator has no unknown_effect")
        run = self._run(new_lab, "validate")
        odd = ((place, mutations.with_unknown_effect(reply, unknown)) for place, reply in enumerate(run.replies))
        place, reply = next(((place, reply) for place, reply in reversed(list(odd)) if reply is not None), (0, None))
        assert reply is not None, "the emulator's unknown_effect changes no reply of a validation"
        assert isinstance(run.result, Outcome)
        try:
            outcome = strike(new_lab(), place, replaced(reply)).validate(run.prepared.order, SESSION)
        except PROBLEMS:
            return
        assert amounts(outcome) == amounts(run.result), "it changes what is taken off"
        added = [one for one in outcome.notices if one not in run.result.notices]
        assert len(outcome.notices) > len(run.result.notices), "it is dropped silently"
        assert any(one.payload for one in added), "its notice has no payload: nobody can tell what it was"

    @at("silver")
    def test_redeem_keeps_the_contract_on_mutated_replies(self, new_lab: NewLab) -> None:
        self._fuzz_replies(new_lab, "redeem")

    @at("silver")
    def test_redemption_with_any_2xx_is_never_not_redeemed(self, new_lab: NewLab) -> None:
        """After any 2xx the outcome is unknown, or what a further request to the engine says."""
        cases, run = Cases(), self._run(new_lab, "redeem")
        empty = {"an empty object": b"{}", "an empty array": b"[]"}
        strange = {
            **_answered_with({**mutations.GARBAGE, **empty}),
            **_answered_with(empty, 201),
            **_statuses(202, 204),
        }
        for place, (what, reply) in itertools.product(run.redeeming, strange.items()):
            prepared = self._prepare(new_lab(), "redeem")
            strike(prepared.lab, place, replaced(reply))
            with cases.case(what):
                verdict = prepared.lab.verdict(prepared.order, SESSION)
                assert not isinstance(verdict, NotDone | Declined), "redeem says that nothing is redeemed"
                done = isinstance(verdict, Done)
                assert not done or amounts(verdict) == amounts(run.result), "is taken for a redemption without effects"
        cases.report()

    @at("silver")
    def test_redemption_needs_the_engines_confirmation(self, new_lab: NewLab) -> None:
        """If the reply says "redeemed" in a word, another word is no success: the adapter asks again, or is in doubt.

        The kit does not know which word it is: of all that come with the redemption or after it, at least one matters.
        """
        run = self._run(new_lab, "redeem")
        for place in range(run.redeeming[0], len(run.exchanges)):
            for other in mutations.with_other_words(run.replies[place]):
                prepared = self._prepare(new_lab(), "redeem")
                lab = strike(prepared.lab, place, replaced(other))
                done = isinstance(lab.verdict(prepared.order, SESSION), Done)
                if not done or len(lab.wire.exchanges) > len(run.exchanges):
                    return
        assert not any(reply.body for reply in run.replies[run.redeeming[0] :]), (
            "any word of the redemption's reply may be another, and it counts as redeemed: look at the one that says so"
        )

    @at("silver")
    def test_refused_redemption_is_not_an_empty_order(self, new_lab: NewLab) -> None:
        """`NotRedeemed` without a refused code is believed: the order goes through, and its codes stay unused."""
        cases = Cases()
        for what, reply in _statuses(400, 404, 409, 410, 412, 422).items():
            prepared, fault = self._prepare(new_lab(), "redeem"), instead(reply)
            prepared.lab.wire.fault = lambda request, _, fault=fault: fault if request.effect == "redeems" else None
            with cases.case(what):
                verdict = prepared.lab.verdict(prepared.order, SESSION)
                empty = isinstance(verdict, Declined) and not verdict.declined.rejected
                assert not empty, "is taken for an order that has nothing to redeem"
        cases.report()

    @at("silver")
    def test_look_up_does_not_take_errors_for_absence(self, new_lab: NewLab) -> None:
        cases, run = Cases(), self._run(new_lab, "look_up")
        strange = {**_answered_with(mutations.GARBAGE), **_statuses(400, 401, 403, 405, 422)}
        for place, (what, reply) in itertools.product(range(len(run.exchanges)), strange.items()):
            prepared = self._prepare(new_lab(), "look_up")
            strike(prepared.lab, place, replaced(reply))
            with cases.may_refuse(run.name(place), what):
                state = prepared.lab.look_up(prepared.order, SESSION).state
                assert state != "absent", "is taken for an order that is not there"
        cases.report()

    @at("silver")
    def test_look_up_keeps_the_contract_on_mutated_replies(self, new_lab: NewLab) -> None:
        self._fuzz_replies(new_lab, "look_up")

    @at("gold")
    def test_check_and_undo_keep_the_contract_on_mutated_replies(self, new_lab: NewLab) -> None:
        for method in self._methods():
            if method in ("check", "undo"):
                self._fuzz_replies(new_lab, method)

    @at("gold")
    def test_faults_never_change_the_result_of_validate_and_check(self, new_lab: NewLab) -> None:
        cases = Cases()
        for method in ("validate", *(["check"] if self._adapter().capabilities.check else [])):
            run = self._run(new_lab, method)
            for place, (what, fault) in itertools.product(range(len(run.exchanges)), FAULTS.items()):
                prepared = self._prepare(new_lab(), method)
                strike(prepared.lab, place, fault)
                with cases.may_refuse(method, run.name(place), what):
                    # The fault comes once: a request that may be repeated is, and then succeeds.
                    assert amounts(prepared.converse()) == amounts(run.result), "is taken for an answer"
        cases.report()

    def _fuzz_replies(self, new_lab: NewLab, method: str) -> None:
        """Each reply changed in every way gives a result that fits the contract, or one of its problems."""
        codes = (*self.accepted, *self.refused) if method in ("validate", "check") else ()
        cases, run = Cases(), self._run(new_lab, method, self._order(*codes))
        for place in range(len(run.exchanges)):
            prepared = self._prepare(new_lab(), method, run.prepared.order)
            for what, other in _mutations(run, place):
                strike(prepared.lab, place, instead(other), rest=run.replies)
                with cases.may_refuse(method, run.name(place), what):
                    prepared.converse()
        cases.report()


def _mutations(run: Run, place: int) -> Iterator[tuple[str, EngineReply]]:
    reply = reply_of(run.exchanges[place])
    for status in (201, 204, 400, 404, 418):
        yield f"status {status}", mutations.with_status(reply, status)
    yield from _answered_with(mutations.GARBAGE).items()
    yield from mutations.mutated(reply)


def _doubled(number: bytes) -> bytes:
    return f"{2 * Decimal(number.decode()):f}".encode()


def _negated(number: bytes) -> bytes:
    return number.removeprefix(b"-") if number.startswith(b"-") else b"-" + number


def _answered_with(bodies: dict[str, bytes], status: int = 200) -> dict[str, EngineReply]:
    return {f"{status} with {what}": EngineReply(status=status, headers={}, body=body) for what, body in bodies.items()}


def _statuses(*statuses: int) -> dict[str, EngineReply]:
    return {str(status): EngineReply(status=status, headers={}, body=b"") for status in statuses}
