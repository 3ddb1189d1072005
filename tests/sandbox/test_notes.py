"""Both engines refuse each code of the rule book for the right reason, with the settings that the README shows."""

from collections.abc import Iterator

import pytest

from mapper.sandbox import rulebook
from tests.adapters.test_engines import ask

NO_COST = "conditions_not_met"  # its items carry no such cost
# Why a guest with one SKU1234 for 140.00 is refused: in Talon.One, in Voucherify ("": the code is accepted).
REASONS = {
    "EXPIRED-10": ("expired", "expired"),
    "SOON-10": ("not_started", "not_started"),
    "USED-UP-10": ("used_up", "used_up"),
    "JANE-ONLY-10": ("not_yours", "customer_not_eligible"),
    # In Talon.One a guest has a profile, so the code is accepted once.
    "ONCE-EACH-10": ("", "sign_in_required"),
    "MIN-200": ("conditions_not_met", "conditions_not_met"),
    "PAUSED-5": ("not_active", "not_active"),
    "SHOES-10": ("conditions_not_met", "conditions_not_met"),
    "WRAPPED": (NO_COST, NO_COST),
    "BAD-1": ("expired", "expired"),
    "UPGRADE": ("conditions_not_met", "conditions_not_met"),
    "BUNDLE-3": ("conditions_not_met", "conditions_not_met"),
    "FRIEND-EXPIRED": ("expired", "expired"),
    "FRIEND-USED-UP": ("used_up", "used_up"),
    "GIFT-EMPTY": ("used_up", "balance_too_low"),
    # Points cannot be spent without a reward.
    "CARD-COLLECT": ("", "reward_required"),
    "CARD-SPEND": ("", "reward_required"),
}


def entries() -> Iterator[tuple[str, str]]:
    """Every code, and its field in Nacelle's promotions ("": coupon_codes)."""
    for entry in rulebook.load().entries:
        field = {rulebook.Referral: "referral_code", rulebook.LoyaltyCard: "loyalty_card"}.get(type(entry), "")
        yield (entry.code or entry.codes.split("..")[0] if isinstance(entry, rulebook.Coupon) else entry.code), field


@pytest.mark.parametrize(("code", "field"), [*entries()])
@pytest.mark.parametrize("engine", ["talon_one", "voucherify"])
def test_each_code_is_refused_for_its_expected_reason(engine: str, code: str, field: str) -> None:
    body = {
        "id": "cart",
        "items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}],
        "shipping_rate": {"price": "15.00"},
        "promotions": {field: code} if field else {"coupon_codes": [code]},
    }
    outcome, _ = ask(engine, body)
    reason = REASONS.get(code, ("", ""))[engine == "voucherify"]
    assert [refused.reason for refused in outcome.rejected] == ([reason] if reason else [])
