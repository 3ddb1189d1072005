"""Voucherify's sandbox: what the host asks of it."""

import pytest

from adapters.voucherify.sandbox.catalog import Options
from mapper.sandbox import rulebook
from tests.sandbox.emulated import book
from tests.sandbox.voucherify_shop import Shop, cart, lock, off, small_book


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/v1/validations", "validate"),
        ("POST", "/v1/redemptions", "redeem"),
        ("GET", "/v1/redemptions/r_1", "redemption"),
        ("POST", "/v1/redemptions/r_1/rollbacks", "rollback"),
        ("POST", "/v1/redemptions/r_1/rollback", "rollback"),
        ("POST", "/v1/qualifications", "qualify"),
        ("GET", "/v1/orders/o1", "order"),
        ("GET", "/v1/vouchers/X", "voucher"),
        ("DELETE", "/v1/vouchers/X/sessions/k", "release"),
        ("GET", "/v1/customers", "other"),
        ("GET", "/", "other"),
    ],
)
def test_paths_map_to_operation_names(method: str, path: str, operation: str) -> None:
    engine = Shop().engine
    assert engine.operation(method, path, "", b"") == operation
    assert engine.operation(method, f"/voucherify{path}", "", b"") == operation


def test_unknown_effect_fault_changes_no_amount() -> None:
    reply = Shop().validate("TEN-PERCENT", "promo_2")
    changed = Shop().engine.unknown_effect(reply)
    effects = [entry["result"]["discount"]["effect"] for entry in changed["redeemables"]]
    assert effects == ["SANDBOX_TELEPORT_SHOPPER"] * 2
    assert changed["order"] == reply["order"]
    assert [entry["order"] for entry in changed["redeemables"]] == [entry["order"] for entry in reply["redeemables"]]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503])
def test_errors_have_the_engines_own_body(status: int) -> None:
    error = Shop().engine.error(status)
    assert error["code"] == status
    assert {"message", "details", "request_id"} <= error.keys()


def test_reset_clears_everything_but_the_rule_book() -> None:
    shop = Shop()
    before = shop.books
    shop.redeem("SINGLE-0001", "GIFT-50", order=cart((1000, 1), source_id="o1"), customer="jane")
    shop.validate("SINGLE-0002", **lock("mine"))
    assert shop.books != before
    shop.engine.reset()
    assert shop.books == before
    assert shop.refused("GET", "orders/o1") == (404, "not_found")


def test_books_show_orders_redemptions_and_sessions() -> None:
    shop = Shop()
    shop.redeem("XMAS-2021-25", "promo_2", order=cart((14_000, 1), source_id="o1"), customer="jane")
    shop.validate("TEN-PERCENT", **lock("mine"))
    books = shop.books
    assert books["orders"]["o1"]["discount"] == 3500
    assert [(entry["order"], entry["id"], entry["what"]) for entry in books["redemptions"]] == [
        ("o1", "XMAS-2021-25", "redeemed"),
        ("o1", "promo_2", "redeemed"),
    ]
    assert books["codes"]["XMAS-2021-25"] == 1
    assert books["campaigns"]["1"] == {"redemptions": 1, "discount": 35}
    assert [(held["id"], held["key"]) for held in books["sessions"]] == [("TEN-PERCENT", "mine")]


def test_default_rule_book_lists_the_default_options() -> None:
    problems: list[rulebook.Problem] = []
    shown = rulebook.read(book().engines["voucherify"], Options, problems=problems)
    assert (shown, problems) == (Options(), [])
    assert book().engines["voucherify"].keys() == {*Options.__struct_fields__}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            'redeemables_application_mode = "SOME"',
            "engines.voucherify.redeemables_application_mode: Invalid enum value",
        ),
        ("redeemable_limit = 3", "engines.voucherify.redeemable_limit: is not known"),
        ("redeemables_limit = 31", "engines.voucherify.redeemables_limit: Expected `int` <= 30"),
        ("prices = { MUG = 9.9 }", "engines.voucherify.prices.MUG: expected a number in quotes"),
        ("stacks = { stack_a = [7] }", "engines.voucherify.stacks.stack_a: there is no campaign 7 without a code"),
    ],
)
def test_invalid_options_are_refused(wrong: str, problem: str) -> None:
    with pytest.raises(rulebook.RuleBookError) as refused:
        Shop(own=small_book({"CODE": off("1.00")}, engine=wrong))
    assert str(refused.value).startswith(problem)
