"""The zoo: the scaffold's package with one defect at a time, and the standard test that must find it.

A mutant that lives shows a hole in the kit. What the kit says of the package as it is: `test_new_adapter`.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.commands import new_adapter
from mapper.conformance.lab import Unfit
from mapper.conformance.suite import Conformance
from tests.conformance.acme import describe, installed

MAIN, OPTIONS, REQUEST, REPLIES, REASONS = "__init__", "options", "request", "replies", "reasons"

CODES = "[{} for code in checkout.promotions.coupon_codes]"
MONEY = "amount = money.to_minor(money.total([money.from_engine(off) for off in offs]), checkout.digits)"
REFUSE = "yield Rejection(code, reasons.reason(word), word)"

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "is written for another contract": (MAIN, "contract = 1", "contract = 2", "it_is_installed"),
    "does what it does not declare": (MAIN, "undo=True", "undo=False", "it_is_installed"),
    "declares what it cannot do": (MAIN, "referral=False", "referral=True", "what_it_can_do"),
    "has a key that is no secret": (OPTIONS, "None, secret=True, kind", "None, kind", "it_is_installed"),
    "logs its options": (
        MAIN,
        "        self.accounts: M",
        "        __import__('logging').getLogger('acme').info('%s', options)\n        self.accounts: M",
        "secrets_and",
    ),
    "names operations after data": (REQUEST, '"price cart"', 'f"price {len(checkout.cart)} rows"', "a_cart_earns"),
    "never knows what became of an order": (
        MAIN,
        'return LookedUp("redeemed", replies',
        'return LookedUp("unclear", replies',
        "whole_service",
    ),
    "counts up to three": (REQUEST, "line.quantity,", "min(line.quantity, 3),", "nobody_thought_of"),
    "asks at reduced prices": (REQUEST, "line.list_price", "line.price", "prices_are_list"),
    "sends lines of quantity 0": (
        REQUEST,
        "for line in checkout.cart]",
        "for line in checkout.lines]",
        "lines_are_told",
    ),
    "loses a line that has the sku of another": (
        REQUEST,
        "for line in checkout.cart]",
        "for line in {one.name: one for one in checkout.cart}.values()]",
        "lines_are_told",
    ),
    "sends two decimal places in every currency": (REQUEST, "checkout.digits)) for", "2)) for", "money_is_exact"),
    "reads two decimal places in every currency": (
        REPLIES,
        "for off in offs]), checkout.digits)",
        "for off in offs]), 2)",
        "money_is_exact",
    ),
    "does not quote ids": (REQUEST, "{quote(session, safe='')}", "{session}", "ids_of_strangers"),
    "lets slashes through": (REQUEST, "safe=''", "safe='/'", "ids_of_strangers"),
    "takes two ids for one": (REQUEST, "quote(session,", "quote(session.lower(),", "ids_of_strangers"),
    "says that redeeming may be repeated": (REQUEST, "repeatable=False", "repeatable=True", "what_may_be_repeated"),
    "says that redeeming redeems nothing": (REQUEST, 'effect="redeems"', 'effect="session"', "requests_say"),
    "says that undoing has no effect": (REQUEST, 'effect="session"', 'effect="none"', "requests_say"),
    "redeems when it is asked to check": (
        MAIN,
        "return self.validate(order, session)",
        "yield from self.redeem(order, session)",
        "the_story",
    ),
    "puts the engine's text in a message": (
        REPLIES,
        '"Acme refuses the request."',
        "reply.body.decode()",
        "secrets_and",
    ),
    "takes positions for lines": (REPLIES, "lines[row]", "row", "lines_are_told"),
    "drops amounts that it cannot read": (REPLIES, "if not happened:", "if happened:", "money_that_cannot"),
    "drops what it does not know": (REPLIES, "notices.append(Notice", "str(Notice", "what_it_does_not_know"),
    "gives a wrong reason": (REASONS, "Reason.EXPIRED", "Reason.NOT_FOUND", "every_code"),
    "stumbles over a new word": (REASONS, "WORDS.get(word, Reason.OTHER)", "WORDS[word]", "engine_replies_validate"),
    "changes the codes of a shopper": (
        REPLIES,
        "Rejection(code, reasons",
        "Rejection(code.lower(), reasons",
        "every_code",
    ),
    "stumbles over what is no JSON": (
        REPLIES,
        "(msgspec.DecodeError, RecursionError)",
        "ZeroDivisionError",
        "engine_replies_validate",
    ),
    "takes no answer for an empty one": (
        REPLIES,
        'raise EngineUnavailable("Acme\'s answer cannot be read.", reason="bad_reply") from error\n\n\ndef outcome',
        "return Answer([], {})\n\n\ndef outcome",
        "no_answer",
    ),
    "takes an amount below zero off": (REPLIES, "amount > 0:", "amount:", "engine_replies_validate"),
    "reads only what is listed first": (
        REPLIES,
        "in answer.reductions:",
        "in answer.reductions[:1]:",
        "the_same_replies",
    ),
    "drops a referral code": (
        REPLIES,
        "in checkout.promotions.codes:",
        "in checkout.promotions.coupon_codes:",
        "what_it_cannot",
    ),
    "takes a refusal for absence": (MAIN, "reply.status == 404:", "reply.status >= 400:", "a_look_up_never"),
    "does not compare carts": (REPLIES, "stored.rows == rows(order) and", "", "another_cart"),
    "does not compare codes": (
        REPLIES,
        "set(stored.codes) == set(order.promotions.coupon_codes)",
        "True",
        "other_codes",
    ),
    "takes whatever came for a redemption": (
        MAIN,
        "        answer = replies.read(reply)\n",
        "        if not reply.body[:2] == b'{\\x22':\n            return Redeemed(Outcome())\n        answer = replies.read(reply)\n",
        "after_a_redemption",
    ),
    "forgets what was redeemed before": (
        MAIN,
        'raise EngineUnavailable("Acme has redeemed this order before.", reason="redeemed_before")',
        "return Redeemed(Outcome())",
        "the_story",
    ),
    "never finds an order again": (
        MAIN,
        'return LookedUp("redeemed", replies',
        'return LookedUp("absent", replies',
        "once_wherever",
    ),
    "cannot undo what is not there": (MAIN, "if reply.status != 404:  #", "if True:  #", "what_was_never"),
    "does not notice that an undo was refused": (
        MAIN,
        "            replies.insist(reply)",
        "            pass",
        "an_undo_that",
    ),
    "needs the order to undo it": (
        MAIN,
        "request.undo(session,",
        "request.undo(session if order.cart else '',",
        "is_taken_back",
    ),
    "does not undo": (REQUEST, 'method="DELETE"', 'method="GET"', "is_taken_back"),
    "shares a cart between conversations": (
        MAIN,
        "        reply = yield request.prices(checkout)\n        return replies.outcome(replies.read(reply), checkout)",
        (
            "        self.cart = checkout\n        reply = yield request.prices(checkout)\n"
            "        return replies.outcome(replies.read(reply), self.cart)"
        ),
        "it_keeps_nothing",
    ),
    "asks once for each line": (
        MAIN,
        "        reply = yield request.prices(checkout)\n",
        "        for _ in checkout.cart:\n            reply = yield request.prices(checkout)\n",
        "its_budget",
    ),
    "takes a second for a thousand lines": (
        REPLIES,
        "    for (kind, row, label)",
        "    sum(i for line in checkout.cart for i in range(15_000))\n    for (kind, row, label)",
        "its_budget",
    ),
    "takes orders that begin alike for one": (REQUEST, "quote(session,", "quote(session[:9],", "found_among"),
    "does not compare currencies": (REPLIES, "stored.currency == order.currency and ", "", "another_cart"),
    "sends every cart in dollars": (REQUEST, '"currency": checkout.currency', '"currency": "USD"', "odd_orders"),
    "writes codes in capitals": (
        REQUEST,
        "checkout.promotions.coupon_codes}",
        CODES.format("code.upper()") + "}",
        "as_it_came",
    ),
    "escapes codes twice": (
        REQUEST,
        "checkout.promotions.coupon_codes}",
        CODES.format("quote(code)") + "}",
        "as_it_came",
    ),
    "asks for three codes": (REQUEST, "coupon_codes}", "coupon_codes[:3]}", "every_code"),
    "cuts long skus": (REQUEST, "Row(line.name,", "Row(line.name[:20],", "as_it_came"),
    "folds skus to ASCII": (
        REQUEST,
        "Row(line.name,",
        "Row(line.name.encode('ascii', 'replace').decode(),",
        "as_it_came",
    ),
    "tells a line as one unit": (
        REQUEST,
        "line.quantity, money.to_major(line.list_price,",
        "1, money.to_major(line.list_price * line.quantity,",
        "as_it_came",
    ),
    "reads 20 kB of an answer": (
        REQUEST,
        "body=_question(checkout),",
        "body=_question(checkout), reply_bytes=20_000,",
        "its_budget",
    ),
    "rounds before it adds up": (
        REPLIES,
        MONEY,
        "amount = sum(money.to_minor(money.from_engine(off), checkout.digits) for off in offs)",
        "money_is_exact",
    ),
    "cuts instead of rounding": (REPLIES, MONEY, "amount = int(sum(offs) * 10**checkout.digits)", "money_is_exact"),
    "computes with floats": (
        REPLIES,
        MONEY,
        "amount = int(float(round(sum(offs), checkout.digits)) * 10**checkout.digits)",
        "money_is_exact",
    ),
    "lays what is the order's on its first line": (
        REPLIES,
        "None if row is None else lines[row]",
        "lines.get(0) if row is None else lines[row]",
        "lines_are_told",
    ),
    "takes the first of two lines of one sku": (
        REPLIES,
        "for row, line in enumerate(checkout.cart)}",
        (
            "for row, line in enumerate([next(one for one in checkout.cart if one.name == each.name)"
            " for each in checkout.cart])}"
        ),
        "lines_are_told",
    ),
    "spreads an amount over the lines, each part rounded": (
        REPLIES,
        "discounts.append(Discount(name=label, description=label, amount=amount, effect_type=kind, line=line))",
        (
            "discounts += [Discount(name=label, description=label, amount=-(-amount // len(on)), effect_type=kind, line=at)"
            "\n                for on in [lines.values() if row is None else [line]] for at in on]"
        ),
        "however_many",
    ),
    "takes a wrong key for an answer": (
        REPLIES,
        "if reply.status in (401, 403):",
        "if reply.status in (401, 403):\n        return\n    if reply.status == 0:",
        "a_wrong_key",
    ),
    "tells prices to two places": (
        REQUEST,
        "money.to_major(line.list_price, checkout.digits))",
        "round(money.to_major(line.list_price, checkout.digits), 2))",
        "as_it_came",
    ),
    "passes on what it does not know without its payload": (
        REPLIES,
        'takes no money off.", payload)',
        'takes no money off.", {})',
        "what_it_does_not_know",
    ),
    "leaves discounts without a name": (REPLIES, "Discount(name=label,", "Discount(name='',", "a_cart_earns"),
    "refuses a code twice": (REPLIES, "yield Rejection(code, reasons", f"{REFUSE}; {REFUSE}  #", "every_code"),
    "raises for codes that are refused": (
        REPLIES,
        "yield Rejection(code, reasons",
        "raise EngineRejected(word, reason='x')  #",
        "every_code",
    ),
    "breaks on an empty cart": (REQUEST, "    told = {", "    checkout.cart[0]\n    told = {", "odd_carts"),
    "takes an empty cart for an outage": (
        MAIN,
        "        reply = yield request.prices(checkout)\n",
        (
            "        if not checkout.cart:\n            raise EngineUnavailable('Empty.', reason='empty')\n"
            "        reply = yield request.prices(checkout)\n"
        ),
        "odd_carts",
    ),
    "looks up without amounts": (MAIN, 'LookedUp("redeemed", replies', 'LookedUp("redeemed")  # ', "the_story"),
    "compares lines of quantity 0": (
        REPLIES,
        "stored.rows == rows(order)",
        "len(stored.rows) == len(order.lines)",
        "odd_orders",
    ),
    "takes an order with a refused code for another": (
        REPLIES,
        "same_codes = set(stored.codes)",
        "same_codes = set(stored.codes) - set(stored.refused)",
        "odd_orders",
    ),
    "has its key in an address, in base64": (
        MAIN,
        "yield request.prices(checkout)",
        (
            "yield __import__('msgspec').structs.replace(\n            request.prices(checkout), path='/prices?key='"
            " + __import__('base64').b64encode(self.accounts[''].headers[0][1].encode()).decode()\n        )"
        ),
        "secrets_and",
    ),
    "sends its key once more with a redemption": (
        MAIN,
        "yield request.redemption(order, session)",
        (
            "yield __import__('msgspec').structs.replace(\n            request.redemption(order, session),"
            " headers=(('X-Key', self.accounts[''].headers[0][1]),)\n        )"
        ),
        "secrets_and",
    ),
}
"""Which module has what instead of what, and the test that finds it, by a part of its name."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "promotions-acme"
    new_adapter.write("acme", folder)
    describe(folder)
    return folder


@pytest.fixture
def mutant(package: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The package with one defect, installed; the test that must find it."""
    module, old, new, test = MUTANTS[request.param]
    file = package / "promotions_acme" / f"{module}.py"
    text = file.read_text("utf-8")
    assert text.count(old) >= 1, f"{file.name} does not have {old!r} any more"
    file.write_text(text.replace(old, new), "utf-8")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", True)
            with installed(package):
                yield test
    finally:
        file.write_text(text, "utf-8")


def standard(part: str) -> str:
    return min((name for name in vars(Conformance) if name.startswith("test_") and part in name), key=len)


def adopter(package: Path) -> Conformance:
    """The package's own conformance test."""
    spec = importlib.util.spec_from_file_location("promotions_test", package / "tests" / "test_conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Conformance = module.TestAcme()
    return found


def find_fault(suite: Conformance, name: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Runs one standard test as pytest would."""
    test = getattr(suite, name)
    with suite.laboratories() as labs:
        known: dict[str, Any] = {"labs": labs, "caplog": caplog, "tmp_path": tmp_path, "order": suite._order()}
        wanted = inspect.signature(test).parameters
        if "lab" in wanted:
            known["lab"] = labs()
        test(**{name: known[name] for name in wanted})


def test_the_zoo_is_large_enough() -> None:
    assert len(MUTANTS) >= 24


@pytest.mark.parametrize("mutant", MUTANTS, indirect=True)
def test_the_kit_finds_an_adapter_that(
    mutant: str, package: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError, Unfit)) as found:
        find_fault(adopter(package), standard(mutant), caplog, tmp_path)
    assert str(found.value)
