"""One log line, found by the code's name, answers "Why did XMAS not apply for this shopper?"."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from mapper.adapter import Discount, Outcome, Reason, Rejection
from mapper.http import app
from mapper.ops.logs import CodeNames
from tests import fakes

SPACE = {"x_nacelle_space_id": "shop-1"}
TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
OFF = Discount(name="Ten", description="", amount=1000, effect_type="off", line=0)
BODY = {
    "id": "cart-7",
    "currency": "EUR",
    "order_items": [{"sku": "S", "quantity": 1, "price": "140.00", "discounts": "9.00"}],
    "promotion": {"coupon_codes": [" xmas ", "OTHER"]},
}


def line_of(operation: str, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The log line of one call in which XMAS was refused and the other code was not."""
    adapter = fakes.FakeAdapter()
    rejected = (Rejection("xmas", Reason.MINIMUM_NOT_MET, "CouponPartOfNotMatched"),)
    adapter.granted = Outcome(discounts=(OFF,), rejected=rejected)
    configured = fakes.settings(
        adapter,
        MAPPER_LEDGER_URL=fakes.new_ledger(),
        MAPPER_ON_REJECTED="apply_rest",
        NACELLE_SPACE_IDS="shop-1",
    )
    with TestClient(app.create(configured, engine_transport=fakes.FakeTransport())) as http:
        data, headers = fakes.signed(BODY, **SPACE, **TRACE)
        named = [(name.decode(), value.decode()) for name, value in headers]
        assert http.post(f"/promotions/{operation}", content=data, headers=named).status_code == 200
    (facts,) = [entry.__dict__["facts"] for entry in caplog.records if entry.getMessage() == "request"]
    return dict(facts)


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_log_line_has_request_ids_and_reason_of_refused_code(operation: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mapper")
    found = line_of(operation, caplog)
    name = CodeNames("hash", fakes.SECRET)
    told = {key: found.get(key) for key in ("trace_id", "space", "id", "session", "engine", "operation", "status")}
    assert told == {
        "trace_id": TRACE["traceparent"].split("-")[1],
        "space": "shop-1",
        "id": "cart-7",
        "session": "cart-7",
        "engine": "fake",
        "operation": operation,
        "status": 200,
    }
    assert found["request_id"]
    assert name("XMAS") in found["codes"]
    assert found["rejected"] == [
        {"code": name("XMAS"), "reason": "minimum_not_met", "engine_reason": "CouponPartOfNotMatched"}
    ]
    if operation == "validate":
        assert found["discount"] == "10.00 EUR"
    else:
        assert found["drift"] == {"order": "9.00", "engine": "10.00"}
    assert "xmas" not in str(found).lower()
