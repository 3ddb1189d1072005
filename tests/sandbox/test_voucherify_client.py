"""Voucherify's sandbox works with the vendor's own client, which takes four seconds to import."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from mapper.sandbox import host as sandbox
from tests.sandbox.emulated import NOW, book
from tests.sandbox.voucherify_shop import ALL, TIERS, Json, Shop, cart, lock, request


@pytest.fixture(scope="module")
def vendor() -> Iterator[Any]:
    """The vendor's package, and its client connected to a local sandbox."""
    import voucherify  # noqa: PLC0415 slow to import

    package: Any = voucherify
    with sandbox.running(sandbox.create(now=lambda: NOW)) as url:
        keys = {"X-App-Id": "app", "X-App-Token": "token"}
        client = package.ApiClient(package.Configuration(host=f"{url}/voucherify", api_key=keys))
        yield package, client
        client.rest_client.pool_manager.clear()


def test_vendors_client_validates_redeems_reads_and_rolls_back(vendor: Any) -> None:
    package, client = vendor
    order = cart((14_000, 1), source_id="sdk/1")
    codes = ("XMAS-2021-25", "promo_2")

    validations, redemptions = package.ValidationsApi(client), package.RedemptionsApi(client)
    body = package.ValidationsValidateRequestBody.model_validate(request(*codes, order=order, **lock("k")))
    valid = validations.validate_stacked_discounts(body, _request_timeout=5)
    assert (valid.valid, valid.order.total_discount_amount, valid.session.key) == (True, 3500, "k")
    assert [entry.status for entry in valid.redeemables] == ["APPLICABLE"] * 2
    assert valid.redeemables[1].result.discount.unit_type == "prod_5h1pp1ng"

    again = package.RedemptionsRedeemRequestBody.model_validate(request(*codes, order=order, customer="jane"))
    done = redemptions.redeem_stacked_discounts(again, _request_timeout=5)
    assert [entry.related_object_type for entry in done.redemptions] == ["voucher", "promotion_tier"]
    parent = done.parent_redemption.id

    read = package.OrdersApi(client).get_order("sdk/1", _request_timeout=5)
    assert (read.id, read.status, list(read.redemptions)) == (done.order.id, "PAID", [parent])
    assert redemptions.get_redemption(parent, _request_timeout=5).id == parent

    back = redemptions.rollback_stacked_redemptions(parent, reason="tried", _request_timeout=5)
    assert (back.order.status, len(back.rollbacks), back.parent_rollback.reason) == ("CANCELED", 2, "tried")
    with pytest.raises(package.exceptions.BadRequestException) as refused:
        redemptions.rollback_stacked_redemptions(parent, _request_timeout=5)
    assert json.loads(refused.value.body)["key"] == "already_rolled_back"

    single = package.RedemptionsRedeemRequestBody.model_validate(request("SINGLE-0042"))
    (one,) = redemptions.redeem_stacked_discounts(single, _request_timeout=5).redemptions
    assert redemptions.rollback_redemption(one.id, _request_timeout=5).redemption == one.id


def test_vendors_client_can_send_bodies_made_by_from_dict(vendor: Any) -> None:
    """They have a null for every absent field."""
    package, client = vendor
    given = request("TEN-PERCENT", "promo_2", order=cart((14_000, 1), source_id="sdk/2"), customer="jim", **lock("k2"))
    body = package.ValidationsValidateRequestBody.from_dict(given)
    assert '"gift":null' in body.to_json().replace(" ", "")
    valid = package.ValidationsApi(client).validate_stacked_discounts(body, _request_timeout=5)
    assert (valid.valid, valid.order.total_discount_amount) == (True, 1400)
    body = package.RedemptionsRedeemRequestBody.from_dict(given)
    done = package.RedemptionsApi(client).redeem_stacked_discounts(body, _request_timeout=5)
    assert [one.result for one in done.redemptions] == ["SUCCESS"] * 2
    stored = package.OrdersApi(client).get_order("sdk/2", _request_timeout=5)
    assert [(item.source_id, item.quantity) for item in stored.items[:1]] == [("SKU-0", 1)]
    assert next(iter(stored.redemptions.values()))["stacked"] == [one.id for one in done.redemptions]
    asked = package.QualificationsCheckEligibilityRequestBody.from_dict({"order": cart((14_000, 1)), "options": TIERS})
    found = package.QualificationsApi(client).check_eligibility(asked, _request_timeout=5)
    assert [one.id for one in found.redeemables.data] == ["promo_2"]
    rollback = package.RedemptionsRollbacksCreateRequestBody.from_dict({"reason": "tried", "tracking_id": "jim"})
    back = package.RedemptionsApi(client).rollback_stacked_redemptions(
        done.parent_redemption.id, redemptions_rollbacks_create_request_body=rollback, _request_timeout=5
    )
    assert back.parent_rollback.reason == "tried"


def test_vendors_client_reads_vouchers_releases_sessions_and_qualifies(vendor: Any) -> None:
    package, client = vendor
    vouchers = package.VouchersApi(client)
    assert vouchers.get_voucher("GIFT-50", _request_timeout=5).gift.balance == 5000
    body = package.ValidationsValidateRequestBody.model_validate(request("TEN-PERCENT", **lock("to release")))
    package.ValidationsApi(client).validate_stacked_discounts(body, _request_timeout=5)
    vouchers.release_validation_session("TEN-PERCENT", "to release", _request_timeout=5)
    with pytest.raises(package.exceptions.NotFoundException):
        vouchers.release_validation_session("TEN-PERCENT", "to release", _request_timeout=5)
    asked = {"order": cart((14_000, 1)), "options": TIERS}
    body = package.QualificationsCheckEligibilityRequestBody.model_validate(asked)
    found = package.QualificationsApi(client).check_eligibility(body, _request_timeout=5)
    assert [entry.id for entry in found.redeemables.data] == ["promo_2"]


def test_vendors_client_raises_for_faults_that_commit_or_not(vendor: Any) -> None:
    package, client = vendor
    redemptions, orders = package.RedemptionsApi(client), package.OrdersApi(client)
    header = "X-Sandbox-Fault"
    for number, (fault, is_done) in enumerate([("status=503", False), ("status_after=500", True)]):
        source_id = f"fault-{number}"
        sent = request("TEN-PERCENT", order=cart((14_000, 1), source_id=source_id))
        body = package.RedemptionsRedeemRequestBody.model_validate(sent)
        with pytest.raises(package.exceptions.ServiceException) as failed:
            redemptions.redeem_stacked_discounts(body, _request_timeout=5, _headers={header: fault})
        assert json.loads(failed.value.body)["code"] == failed.value.status
        if is_done:
            assert len(orders.get_order(source_id, _request_timeout=5).redemptions) == 1
        else:
            with pytest.raises(package.exceptions.NotFoundException):
                orders.get_order(source_id, _request_timeout=5)
    with pytest.raises(package.exceptions.ApiException) as limited:
        orders.get_order("o", _request_timeout=5, _headers={header: "status=429;retry_after=3"})
    assert (limited.value.status, limited.value.headers["Retry-After"]) == (429, "3")


@pytest.mark.parametrize("mode", ["ALL", "PARTIAL"])
def test_vendors_models_parse_every_reply(vendor: Any, mode: str) -> None:
    package, _ = vendor
    # The vendor's client fails on REPLACE_ITEMS, which its list of effects lacks.
    no_upgrade = ('name = "The larger cup"\ndesc', 'name = "The larger cup"\nactive = false\ndesc')
    shop = Shop((ALL[0], ALL[1].replace("ALL", mode)), no_upgrade)
    points = {"object": "voucher", "id": "CARD-SPEND", "reward": {"id": "rew_51", "points": 3}}
    codes = [code.split("..")[0] for code, _ in book().codes_to_try() if code != "UPGRADE"]
    expand: Json = {"options": {"expand": ["order", "redeemable", "category"]}}
    for number, code in enumerate([*codes, "NOPE-10", points, "promo_3"]):
        order = cart((30_000, 1), (999, 3), source_id=f"o{number}", metadata={"store": "berlin"})
        body = request(code, "promo_2", "WINTER-25" if code != "WINTER-25" else "WINTER-5", order=order, **expand)
        checked(package.ValidationsValidateResponseBody, shop.ok("POST", "validations", body | lock(f"k{number}")))
        status, reply = shop.call("POST", "redemptions", body | lock(f"k{number}") | {"customer": {"source_id": "bob"}})
        if status != 200:
            checked(package.Error, reply)
            checked(package.RedemptionsGetResponseBody, shop.ok("GET", f"redemptions/{reply['resource_id']}"))
            continue
        checked(package.RedemptionsRedeemResponseBody, reply)
        checked(package.OrdersGetResponseBody, shop.ok("GET", f"orders/o{number}"))
        top = reply.get("parent_redemption", reply["redemptions"][0])["id"]
        checked(package.RedemptionsRollbacksCreateResponseBody, shop.ok("POST", f"redemptions/{top}/rollbacks"))
        checked(package.RedemptionsGetResponseBody, shop.ok("GET", f"redemptions/{top}"))
        checked(package.OrdersGetResponseBody, shop.ok("GET", f"orders/o{number}"))
    for code in codes:
        checked(package.VouchersGetResponseBody, shop.ok("GET", f"vouchers/{code}"))
    checked(package.QualificationsCheckEligibilityResponseBody, shop.ok("POST", "qualifications", {"order": order}))


def checked(model: Any, reply: Json) -> None:
    """The vendor's model parses the reply without changing a value."""
    understood = model.from_json(json.dumps(reply)).to_dict()
    assert differences(reply, understood) == []
    assert understood.keys() & reply.keys() == {name for name in reply if name in understood}


def differences(sent: Any, understood: Any, place: str = "") -> list[str]:
    """Where a model changed a value. It drops fields that it does not know, and has null for absent ones."""
    if isinstance(understood, dict) and isinstance(sent, dict):
        known = {name: part for name, part in understood.items() if part is not None}
        return [
            found
            for name, part in known.items()
            if sent.get(name) is not None
            for found in differences(sent[name], part, f"{place}/{name}")
        ]
    if isinstance(understood, list) and isinstance(sent, list) and len(understood) == len(sent):
        pairs = zip(sent, understood, strict=True)
        return [found for i, pair in enumerate(pairs) for found in differences(*pair, f"{place}/{i}")]
    if isinstance(understood, datetime):
        understood, sent = understood.astimezone(UTC), datetime.fromisoformat(sent)
    return [] if sent == understood else [f"{place}: {sent!r} became {understood!r}"]
