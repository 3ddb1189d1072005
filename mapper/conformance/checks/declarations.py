"""The adapter's declarations are true: options, capabilities, secrets, limits."""

import base64
import re
import time
from collections.abc import Iterator
from types import GeneratorType
from typing import Any
from urllib.parse import quote

import pytest

from mapper.adapter import Adapter, Checkout, Redeemed
from mapper.conformance import carts, mutations
from mapper.conformance.adopter import SESSION, UNKNOWN_CODE, Adopter, NewLab, at, strike
from mapper.conformance.amounts import amounts
from mapper.conformance.cases import Cases
from mapper.conformance.faults import replaced
from mapper.conformance.lab import PROBLEMS, ContractViolation, build, find, problem_text
from mapper.domain import options
from mapper.engine.conversation import replay

MARKER = "text-of-the-engine"


class Declarations(Adopter):
    @at("bronze")
    def test_adapter_is_installed_and_checks_its_options(self) -> None:
        adapter = self._adapter()
        point, cases = find(self.entry_point), Cases()
        declared = point.load().options
        given, wrong = options.read(declared, self.options)
        assert not wrong, f"the options of this test are wrong: {wrong}"
        unknown = set(self.options) - options.names(declared)
        assert not unknown, f"there are no options {sorted(unknown)}"
        for option in declared:
            looks_secret = re.search(r"KEY|TOKEN|SECRET|PASSWORD", option.name) and option.kind in ("text", "secret")
            with cases.case(option.name):
                assert option.secret or not looks_secret, "looks like a secret, and is not declared as one"
                assert option.meaning.strip(), "has no meaning for the table of settings"
                assert not option.secret or not option.default, "is a secret with a default"
            if option.default is None:
                without = {name: value for name, value in given.items() if name != option.name}
                with cases.case(option.name), pytest.raises(ContractViolation):
                    build(point, without)
        cases.report()
        for capability in ("check", "undo", "repair"):
            if not getattr(adapter.capabilities, capability):
                self._refuses_undeclared(adapter, capability)

    def _refuses_undeclared(self, adapter: Adapter, method: str) -> None:
        found = getattr(adapter, method, None)
        if found is None:
            return
        args: tuple[Any, ...] = {"check": (), "undo": ("",), "repair": (("id",),)}[method]
        kwargs = {"final": False} if method == "undo" else {}
        try:
            conversation = found(self._order(), SESSION, *args, **kwargs)
            if isinstance(conversation, GeneratorType):
                next(conversation)
        except Exception:  # noqa: BLE001 - any exception refuses
            return
        pytest.fail(f"{method} is not declared, and yet it works: declare it, or remove it", pytrace=False)

    @at("bronze")
    def test_unsupported_input_is_refused_and_not_dropped(self, new_lab: NewLab) -> None:
        able, cases = self._adapter().capabilities, Cases()
        entered = {"referral": {"referral_code": UNKNOWN_CODE}, "loyalty": {"loyalty_card": UNKNOWN_CODE}}
        for capability, promotions in entered.items():
            order = self._order(promotions=promotions)
            with cases.may_refuse(capability):
                refused = {one.code for one in new_lab().validate(order, SESSION).rejected}
                dropped = set(promotions.values()) - refused
                assert not dropped, "what the engine does not know, or the adapter cannot send, is dropped silently"
        if not able.automatic:
            with cases.may_refuse("automatic"):
                outcome = new_lab().validate(carts.parse(carts.body(self.lines)), SESSION)
                assert not outcome.discounts, "is not declared, and yet something is granted"
        if able.most_codes is not None:
            many = self._order(*(f"{UNKNOWN_CODE}-{number}" for number in range(able.most_codes + 1)))
            with cases.may_refuse("most_codes"):
                refusals = new_lab().validate(many, SESSION).rejected
                assert len(refusals) == able.most_codes + 1, "codes beyond the limit are dropped silently"
        cases.report()

    @at("bronze")
    def test_declared_capabilities_grant_something(self, new_lab: NewLab) -> None:
        """Referrals, loyalty cards and gift cards earn something, and redeeming them grants the same."""
        able, cases = self._adapter().capabilities, Cases()
        plain = new_lab().validate(carts.parse(carts.body(self.lines)), SESSION)
        for capability in ("referral", "loyalty", "gift_cards"):
            if not getattr(able, capability):
                continue
            with cases.case(capability):
                assert capability in self.granted, "is declared: `granted` must say for what something is granted"
                lab, order = new_lab(), carts.parse(carts.body(self.lines, **self.granted[capability]))
                outcome = lab.validate(order, SESSION)
                assert not outcome.rejected, f"is refused: {outcome.rejected}"
                more = amounts(outcome) != amounts(plain) or len(outcome.notices) > len(plain.notices)
                assert more, "is accepted, and nothing is granted for it"
                done = lab.redeem(order, SESSION)
                assert isinstance(done, Redeemed), f"is not redeemed: {done}"
                assert amounts(done) == amounts(outcome), "redeeming grants something else than validating"
        cases.report()

    @at("bronze")
    def test_secrets_and_engine_texts_do_not_leak(self, new_lab: NewLab, caplog: pytest.LogCaptureFixture) -> None:
        declared = find(self.entry_point).load().options
        secrets = [self.options[name] for one in declared if one.secret for name in one.names if name in self.options]
        spellings = [spelling for secret in secrets for spelling in _spellings(secret)]
        cases, order = Cases(), self._order(*self.accepted, *self.refused)
        caplog.set_level("DEBUG")
        run = self._run(new_lab, "validate", order)
        for place, reply in enumerate(run.replies):
            seen = [str(run.exchanges[place].request)]
            for status in (200, 400, 401, 403, 404, 422):
                marked = mutations.with_status(mutations.marked(reply, MARKER), status)
                lab = strike(new_lab(), place, replaced(marked))
                try:
                    seen.append(str(lab.validate(order, SESSION)))
                except PROBLEMS as problem:
                    seen.append(problem_text(problem))
                    with cases.case(run.name(place), status):
                        assert MARKER not in seen[-1], "the engine's own text is in the message of a problem"
                except ContractViolation:
                    continue  # another test reports it
                seen += [str(lab.adapter), str(vars(lab.adapter).get("accounts"))]
            with cases.case(run.name(place)):
                assert not any(one in text for one in spellings for text in seen), "a secret leaves the account"
        with cases.case("log"):
            assert not any(one in caplog.text for one in spellings), "a secret is logged"
        for method in self._methods():
            done = self._run(new_lab, method)
            seen = [str(done.result), *(str(one.request) for one in done.exchanges)]
            with cases.case(method):
                assert not any(one in text for one in spellings for text in seen), "a secret leaves the account"
        cases.report()

    @at("bronze")
    def test_conversations_share_no_state(self, new_lab: NewLab) -> None:
        """Two conversations of one adapter, interleaved, do not share anything either."""
        other = self._order(*self.accepted, lines=[("SKU-2", 3, "11.00")], name="order-2")
        carts_ = (self._order(), other)
        alone = []
        for cart in carts_:
            lab = new_lab()
            result = lab.validate(cart, SESSION)
            alone.append((result, [one.reply for one in lab.wire.exchanges]))
        adapter, cases = self._adapter(), Cases()
        with cases.case("one conversation disturbs another"):
            results = _interleave(
                [(adapter.validate(cart, SESSION), list(came)) for cart, (_, came) in zip(carts_, alone, strict=True)]
            )
            assert results == [result for result, _ in alone], "their results differ from those of each alone"
        cases.report()

    @at("bronze")
    def test_requests_and_cpu_time_stay_within_limits(self, new_lab: NewLab) -> None:
        """The engine's own time is not counted."""
        cases = Cases()
        for count in sorted({min(count, self.most_lines) for count in (1, 10, 100, 1000)}):
            if cases.failures:
                break
            lines = [(f"SKU-{number}", 1, f"{number % 90 + 1}.00") for number in range(count)]
            lab, order = new_lab(), self._order(*self.accepted, lines=lines)
            with cases.no_outage(f"{count} lines"):
                lab.validate(order, SESSION)
                came = [one.reply for one in lab.wire.exchanges if one.reply is not None]
                allowed = self.most_requests + self.requests_per_line * count
                assert len(came) <= allowed, f"{len(came)} requests, and {allowed} are allowed"
                started = time.process_time()
                replay_validate(lab.adapter, order, came)
                took, most = time.process_time() - started, max(self.seconds * count / 1000, 0.05)
                assert took <= most, f"takes {took:.2f} s of CPU time, and {most:.2f} s are allowed"
        cases.report()


def replay_validate(adapter: Adapter, order: Checkout, came: list[Any]) -> tuple[Any, list[Any]]:
    return replay(adapter.validate(order, SESSION), came, accounts=adapter.accounts, lines=len(order.cart))


def _spellings(secret: str) -> Iterator[str]:
    """Yields the secret as it is, percent-encoded, and as part of a text in base64."""
    yield from {secret, quote(secret, safe="")}
    for before in range(3):
        encoded = base64.b64encode(b" " * before + secret.encode())
        yield encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4].decode()


def _interleave(runs: list[tuple[Any, list[Any]]]) -> list[Any]:
    """Advances conversations in turns, each with the replies that it got alone; returns their results."""
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
