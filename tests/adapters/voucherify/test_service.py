"""The whole service with Voucherify: an undone order can be redeemed again."""

import json
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from mapper.adapter import EngineReply, EngineRequest
from mapper.conformance.lab import Lab, build, find, installed_emulator

OPTIONS = {"APP_ID": "i", "APP_TOKEN": "t", "BASE_URL": "https://voucherify.test"}
REDEEM = "/v1/redemptions"


def paid(quantity: int, *codes: str) -> bytes:
    line = {"sku": "SHIRT", "quantity": quantity, "price": "50.00"}
    body = {"id": "o1", "currency": "USD", "order_items": [line], "promotion": {"coupon_codes": list(codes)}}
    return json.dumps(body).encode()


def redeem_elsewhere_first(lab: Lab, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redeem `code` for another order just before our next redemption arrives."""
    left, deliver = [code], lab.wire.deliver

    async def interrupted(request: EngineRequest) -> EngineReply:
        if left and request.path == REDEEM:
            body = {"redeemables": [{"object": "voucher", "id": left.pop()}], "order": {"amount": 1000}}
            theirs = msgspec.structs.replace(request, body=json.dumps(body).encode())
            assert (await deliver(theirs)).status == 200
        return await deliver(request)

    monkeypatch.setattr(lab.wire, "deliver", interrupted)


@pytest.mark.parametrize("quantity", [1, 3])
def test_undone_order_is_redeemed_with_its_new_cart(
    tmp_path: Path, quantity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Lab(build(find("voucherify"), OPTIONS), installed_emulator("voucherify"))) as lab:
        shop = lab.shop(OPTIONS, tmp_path)
        redeem_elsewhere_first(lab, "SINGLE-0001", monkeypatch)
        assert lab.run(shop.consume(paid(1, "GOOD-5", "SINGLE-0001"))) == 500
        codes = lab.wire.books()["codes"]
        assert (codes.get("GOOD-5", 0), codes["SINGLE-0001"]) == (0, 1)
        # Voucherify redeems a stored order as stored and ignores the cart that is sent.
        assert lab.run(shop.consume(paid(quantity, "GOOD-5"))) == 200
        last = [one.reply for one in lab.wire.exchanges if one.request.path == REDEEM][-1]
        assert last is not None
        assert [item["quantity"] for item in json.loads(last.body)["order"]["items"]] == [quantity]
        assert lab.wire.books()["codes"]["GOOD-5"] == 1
        asked = [(one.request.method, one.request.path) for one in lab.wire.exchanges]
        assert ("PUT", "/v1/orders/o1") in asked
