"""Voucherify's own SDK as the judge: its models must know every field of every request we send.

The SDK never runs in the service. Importing it takes seconds, hence a file of its own.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from adapters.voucherify import Voucherify
from adapters.voucherify.effects import EFFECTS
from adapters.voucherify.reasons import FAULTS
from mapper.adapter import EngineReply, EngineRequest
from mapper.domain import checkout as documents

# No import statement: the type checkers would read all of its 1,400 modules.
models: Any = importlib.import_module("voucherify.models")

OPTIONS = {
    "APP_ID": "app",
    "APP_TOKEN": "token",
    "PROMOTIONS": "qualify",
    "SESSION_LOCK_TTL": "900",
    "REWARD_ID": "rew_2",
    "ORDER_METADATA": "currency=/currency",
    "ITEM_METADATA": "colour=/colour",
    "CUSTOMER_METADATA": "tier=/customer/tier",
    "REDEMPTION_METADATA": "note=/note",
}
PROMOTIONS = {
    "coupon_codes": ["SAVE", "GIFT"],
    "referral_code": "REF",
    "loyalty_card": "CARD",
    "meta": {"gift_credits": {"GIFT": "10.00"}, "reward": {"id": "rew_1", "points": 5}},
}
LINES = [
    {"sku": "A", "product_id": "P", "quantity": 2, "price": "19.99", "colour": "red"},
    {"product_id": "P", "quantity": 1, "price": "5.00"},
]
CUSTOMER = {"id": "c-1", "tier": "gold"}
TIER = "promo_AAAAAAAAAAAAAAAA"
SHOWN = [{"amount": "1.00", "meta": {"object": "promotion_tier", "redeemable": TIER, "position": 0}}]

MODELS = {
    "/v1/validations": "ValidationsValidateRequestBody",
    "/v1/redemptions": "RedemptionsRedeemRequestBody",
    "/v1/qualifications": "QualificationsCheckEligibilityRequestBody",
    "/v1/redemptions/r_1/rollbacks": "RedemptionsRollbacksCreateRequestBody",
}


def reply(body: Any) -> EngineReply:
    return EngineReply(status=200, headers={}, body=json.dumps(body).encode())


def requests() -> Iterator[EngineRequest]:
    """Yield one request of each kind, with each kind of redeemable."""
    body = {"promotions": PROMOTIONS, "customer": CUSTOMER, "currency": "USD", "note": "n"}
    checkout = documents.parse(json.dumps({**body, "items": LINES}).encode(), "validate")
    order = documents.parse(json.dumps({**body, "order_items": LINES, "applied_discounts": SHOWN}).encode(), "consume")
    for options in (OPTIONS, {**OPTIONS, "ITEM_ID": "product_id", "EXPONENT": "4"}):
        adapter = Voucherify(options)
        validation = adapter.validate(checkout, "s-1")
        yield next(validation)
        yield validation.send(reply({"redeemables": {"data": [{"object": "promotion_tier", "id": TIER}]}}))
        redemption = adapter.redeem(order, "s-1")
        asked = json.loads(next(redemption).body)["redeemables"]
        found = [{"object": one["object"], "id": one["id"], "status": "APPLICABLE"} for one in asked]
        yield redemption.send(reply({"valid": True, "redeemables": found}))
        undo = adapter.undo(order, "s-1")
        next(undo)
        yield undo.send(reply({"id": "ord_1", "redemptions": {"r_1": {}}}))


def without_nulls(value: Any) -> Any:
    """Drop the nulls that the SDK writes for absent fields."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def test_sdk_models_know_every_field_of_our_requests() -> None:
    seen = set()
    for request in requests():
        sent = json.loads(request.body)
        model = getattr(models, MODELS[request.path])
        assert without_nulls(model.from_dict(sent).to_dict()) == sent, request.path
        seen.add(request.path)
    assert seen == set(MODELS)


def words(model: str, validator: str) -> set[str]:
    """Return the words of an enumeration, which the SDK keeps in a validator's code."""
    source = inspect.getsource(getattr(getattr(models, model), validator))
    found = re.search(r"in set\(\[(.*?)\]\)", source)
    assert found is not None
    return set(re.findall(r"'([A-Za-z_]+)'", found[1]))


def test_our_tables_cover_the_sdk_enumerations() -> None:
    effects = words("Discount", "effect_validate_enum") | words("Gift", "effect_validate_enum")
    skipped = words("ValidationsRedeemableSkippedResultDetails", "key_validate_enum")
    assert "ADD_SAME_ITEMS" in effects
    assert "no_effect" in skipped
    assert effects <= set(EFFECTS)
    assert skipped <= {key for key, fault in FAULTS.items() if fault.kind == "code"}
