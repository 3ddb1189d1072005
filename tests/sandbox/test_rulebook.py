"""The rule book: every mistake is reported with its place, and amounts are read exactly."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from mapper.sandbox import rulebook

BOOK = """
[settings.costs]
shipping = "order"
wrap = "item"

[[campaigns]]
id = 1
name = "One"
needs = "coupon"
effects = [{ kind = "off_units", amount = "35.00" }]

[[campaigns]]
id = 2
name = "Two"

[[coupons]]
code = "CODE-1"
campaign = 1

[[coupons]]
codes = "MANY-098..MANY-120"
campaign = 1
uses = 1
"""


def problems(text: str) -> list[rulebook.Problem]:
    with pytest.raises(rulebook.RuleBookError) as caught:
        rulebook.parse(text)
    return caught.value.problems


def test_default_book_has_the_campaign_of_nacelles_page() -> None:
    book = rulebook.load()
    found = book.find("XMAS-2021-25")
    assert found is not None
    assert isinstance(found[1], rulebook.Coupon)
    (effect,) = book.campaign[found[1].campaign].effects
    assert isinstance(effect, rulebook.OffUnits)
    assert (effect.amount, effect.items.price_over) == (Decimal("35.00"), Decimal("100.00"))


def test_every_code_to_try_has_a_note() -> None:
    assert [code for code, note in rulebook.load().codes_to_try() if not (code and note)] == []


@pytest.mark.parametrize(
    ("settings", "place", "says"),
    [
        ("curency = 'USD'", "settings.curency", "is not known"),
        ("currency = 'USE'", "settings.currency", "not a currency"),
        ("costs = {tax = 'cart'}", "settings.costs.tax", "Invalid enum value"),
        ("item_attributes = {color = 'colour'}", "settings.item_attributes.color", "Invalid enum value"),
        ("api_keys = ['']", "settings.api_keys[0]", "length >= 1"),
    ],
)
def test_mistake_in_settings_is_reported_with_its_place(settings: str, place: str, says: str) -> None:
    found = problems(f"[settings]\n{settings}")
    assert [(spot, says in said) for spot, said in found] == [(place, True)], found


@pytest.mark.parametrize(
    ("more", "place", "says"),
    [
        ("[[campaigns]]\nname = 'X'", "campaigns[2].id", "is missing"),
        ("[[campaigns]]\nid = 2\nname = 'X'", "campaigns[2]", "is there twice"),
        ("[[campaigns]]\nid = 3\nname = ''", "campaigns[2].name", "length >= 1"),
        ("[[campaigns]]\nid = 3\nname = 'X'\neffects = 7", "campaigns[2].effects", "got `int`"),
        ("[[campaigns]]\nid = 3\nname = 'X'\neffects = [7]", "campaigns[2].effects[0]", "expected a table"),
        (
            "[[campaigns]]\nid = 3\nname = 'X'\nstarts = 2026-01-01T00:00:00",
            "campaigns[2].starts",
            "timezone component",
        ),
        (
            "[[campaigns]]\nid = 3\nname = 'X'\nstarts = 2026-01-01T00:00:00Z\nends = 2026-01-01T00:00:00Z",
            "campaigns[2].ends",
            "not after its start",
        ),
        (
            "[[campaigns]]\nid = 3\nname = 'X'\nconditions = {stores = ['rome']}",
            "campaigns[2].conditions.stores",
            "rome",
        ),
        (
            "[[campaigns]]\nid = 3\nname = 'X'\nconditions = {attributes = {a = 'b'}}",
            "campaigns[2].conditions.attributes",
            "'a' is not one of",
        ),
        (
            "[[campaigns]]\nid = 3\nname = 'X'\nconditions = {every_item_costs = 'shipping'}",
            "campaigns[2].conditions.every_item_costs",
            "'shipping' is not one of settings.costs",
        ),
        ("[[campaigns]]\nid = 3\nname = 'X'\nbundle = { parts = [] }", "campaigns[2].bundle.parts", "a part at least"),
        ("[[coupons]]\ncode = 'CODE-2'\ncampaign = 9", "coupons[2].campaign", "no campaign 9"),
        ("[[coupons]]\ncode = 'CODE-2'\ncampaign = 2", "coupons[2].campaign", 'does not say needs = "coupon"'),
        ("[[coupons]]\ncode = 'CODE-1'\ncampaign = 1", "coupons[2].code", "is there twice"),
        ("[[coupons]]\ncode = 'many-100'\ncampaign = 1", "coupons[2].code", "is there twice"),
        ("[[coupons]]\ncode = 'ABC'\ncampaign = 1", "coupons[2].code", "length >= 4"),
        ("[[coupons]]\ncampaign = 1", "coupons[2]", "needs code or codes"),
        ("[[coupons]]\ncode = 'CODE-2'\ncodes = 'A-01..A-02'\ncampaign = 1", "coupons[2]", "needs code or codes"),
        ("[[coupons]]\ncodes = 'A-01..A-002'\ncampaign = 1", "coupons[2].codes", "one length"),
        ("[[coupons]]\ncodes = 'A-01..B-02'\ncampaign = 1", "coupons[2].codes", "one length"),
        ("[[coupons]]\ncodes = 'A-02..A-01'\ncampaign = 1", "coupons[2].codes", "one length"),
        ("[[loyalty_cards]]\ncode = 'CARD-1'\nprogram = 5", "loyalty_cards[0].program", "no loyalty program 5"),
        ("[[loyalty_cards]]\ncode = 'CARD 1'\nprogram = 5", "loyalty_cards[0].code", "matching regex"),
    ],
)
def test_mistake_in_a_table_is_reported_with_its_place(more: str, place: str, says: str) -> None:
    found = problems(f"{BOOK}\n{more}")
    assert [(spot, says in said) for spot, said in found] == [(place, True)], found


@pytest.mark.parametrize(
    ("effect", "place", "says"),
    [
        ("{ kind = 'off_unit' }", ".kind", "expected one of off_units"),
        ("{ amount = '1' }", ".kind", "got ''"),
        ("{ kind = 'off_units', amount = 35.00 }", ".amount", "in quotes"),
        ("{ kind = 'off_units', amount = 35 }", ".amount", "in quotes"),
        ("{ kind = 'off_units', amount = '35,00' }", ".amount", "is not a decimal amount"),
        ("{ kind = 'off_units', amount = '1e3' }", ".amount", "is not a decimal amount"),
        ("{ kind = 'off_units', amount = '-1' }", ".amount", "out of range"),
        ("{ kind = 'off_units', percent = '100.1' }", ".percent", "out of range"),
        ("{ kind = 'off_units' }", "", "an amount or a percent"),
        ("{ kind = 'off_units', amount = '1', percent = '1' }", "", "an amount or a percent"),
        ("{ kind = 'off_units', amount = '1', items = { price_ovr = '1' } }", ".items.price_ovr", "is not known"),
        ("{ kind = 'off_order', amount = '1', scope = 'cart' }", ".scope", "Invalid enum value"),
        ("{ kind = 'off_cost', amount = '1', cost = 'wrap' }", ".cost", "'wrap' is not one of settings.costs"),
        ("{ kind = 'off_item_cost', amount = '1', cost = 'shipping' }", ".cost", "'shipping' is not one of"),
        ("{ kind = 'pay_with_balance' }", "", 'needs a "gift_card"'),
        ("{ kind = 'earn_points', points = '1', per = '1' }", "", 'needs a "loyalty_card"'),
        ("{ kind = 'free_item', sku = 'X', quantity = 0 }", ".quantity", ">= 1"),
        ("{ kind = 'message', title = 'X' }", ".text", "is missing"),
        ("{ kind = 'giveaway', pool = 'X', codes = [] }", ".codes", "a code at least"),
        ("{ kind = 'replace_units', sku = 'A', by = 'B' }", ".price", "is missing"),
    ],
)
def test_mistake_in_effect_is_reported_with_its_place(effect: str, place: str, says: str) -> None:
    found = problems(f"{BOOK}\n[[campaigns]]\nid = 3\nname = 'X'\neffects = [{effect}]")
    assert [(spot, says in said) for spot, said in found] == [(f"campaigns[2].effects[0]{place}", True)], found


def test_all_mistakes_are_reported_at_once() -> None:
    text = """
        coupon = 1
        [[campaigns]]
        id = "1"
        name = 2
        effects = [{ kind = "off_units", amount = 3.5 }, { kind = "off_order", percent = "101" }]
        [[coupons]]
        code = "AB"
    """
    assert [place for place, _ in problems(text)] == [
        "coupon",
        "campaigns[0].id",
        "campaigns[0].name",
        "campaigns[0].effects[0].amount",
        "campaigns[0].effects[1].percent",
        "coupons[0].campaign",
        "coupons[0].code",
    ]


def test_invalid_toml_and_unreadable_file_raise_rule_book_error(tmp_path: Path) -> None:
    assert "line 1, column 13" in problems("campaigns = ?")[0][1]
    with pytest.raises(rulebook.RuleBookError, match="cannot be read"):
        rulebook.load(tmp_path / "absent.toml")
    book = tmp_path / "book.toml"
    book.write_bytes(b"\xff")
    with pytest.raises(rulebook.RuleBookError, match="cannot be read"):
        rulebook.load(book)


@pytest.mark.parametrize(
    ("entered", "book_spelling"),
    [
        ("CODE-1", "CODE-1"),
        ("code-1", "CODE-1"),
        ("many-098", "MANY-098"),
        ("MANY-120", "MANY-120"),
        ("MANY-097", None),
        ("MANY-121", None),
        ("MANY-0098", None),
        ("MANY-98", None),
        ("MANY-٠٩٩", None),
        ("CODE-2", None),
        ("", None),
    ],
)
def test_code_matches_in_any_case_and_returns_book_spelling(entered: str, book_spelling: str | None) -> None:
    found = rulebook.parse(BOOK).find(entered)
    assert (found and found[0]) == book_spelling


@pytest.mark.parametrize(
    ("entered", "any_case", "by_case"),
    [
        ("TWIN-5", "TWIN-5", "TWIN-5"),
        ("twin-5", "TWIN-5", "twin-5"),
        ("Twin-5", "TWIN-5", None),
        ("many-098", "MANY-098", None),
        ("MANY-098", "MANY-098", "MANY-098"),
        # The lower case of a dotted capital is two characters.
        ("i\u0307ndi\u0307ri\u0307m", "İNDİRİM", None),
    ],
)
def test_codes_that_differ_by_case_match_exactly_when_case_sensitive(
    entered: str, any_case: str | None, by_case: str | None
) -> None:
    more = "".join(f"\n[[coupons]]\ncode = '{code}'\ncampaign = 1" for code in ("TWIN-5", "twin-5", "İNDİRİM"))
    book = rulebook.parse(BOOK + more)
    for found, expected in ((book.find(entered), any_case), (book.find(entered, by_case=True), by_case)):
        assert (found and found[0]) == expected


def test_amounts_are_exact() -> None:
    (effect,) = rulebook.parse(BOOK.replace("35.00", "0.1000")).campaign[1].effects
    assert isinstance(effect, rulebook.OffUnits)
    assert str(effect.amount) == "0.1000"


@pytest.mark.parametrize(
    ("amount", "percent", "value", "off"),
    [("35", None, "140", "35"), ("35", None, "20", "20"), (None, "10", "99.99", "9.999"), (None, "100", "15", "15")],
)
def test_discount_is_capped_at_the_value_and_never_rounded(
    amount: str | None, percent: str | None, value: str, off: str
) -> None:
    effect = rulebook.OffUnits(
        amount=None if amount is None else rulebook.Amount(Decimal(amount)),
        percent=None if percent is None else rulebook.Percent(Decimal(percent)),
    )
    assert effect.of(Decimal(value)) == Decimal(off)


@pytest.mark.parametrize(
    ("campaign", "running"),
    [
        ({}, True),
        ({"active": False}, False),
        ({"starts": datetime(2026, 1, 1, tzinfo=UTC)}, True),
        ({"starts": datetime(2026, 1, 2, tzinfo=UTC)}, False),
        ({"ends": datetime(2026, 1, 1, tzinfo=UTC)}, False),
        ({"ends": datetime(2026, 1, 2, tzinfo=UTC)}, True),
    ],
)
def test_campaign_runs_from_start_until_end(campaign: dict[str, datetime | bool], running: bool) -> None:
    made = rulebook.Campaign(id=1, name="X", **campaign)  # type: ignore[arg-type]
    assert made.running(datetime(2026, 1, 1, tzinfo=UTC)) is running
