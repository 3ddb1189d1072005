"""The usual way to write it: FastAPI, the vendor's Python SDK called in the thread pool, plain dicts for the body.

It does for this bench's carts what the service does, and no more: no receipt, no deadline, no clamping, no list prices
carried along, no log. Where there was a choice, the faster one was taken: no pydantic model of the checkout, a
connection pool with room for all threads.
"""

import hashlib
import hmac
import json
import os
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import talon_one
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from bench import carts

_CENT = Decimal("0.01")


def create() -> FastAPI:
    configuration = talon_one.Configuration(
        host=os.environ["TALON_ONE_BASE_URL"],
        api_key={"api_key_v1": os.environ["TALON_ONE_API_KEY"]},
        api_key_prefix={"api_key_v1": "ApiKey-v1"},
    )
    configuration.connection_pool_maxsize = 128
    api = talon_one.IntegrationApi(talon_one.ApiClient(configuration))

    async def validate(request: Request) -> Response:
        body = await request.body()
        expected = "sha256=" + hmac.new(carts.SECRET, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(request.headers.get("x-nacelle-signature-sha256", ""), expected):
            raise HTTPException(401, "wrong signature")
        checkout = json.loads(body)
        state = await run_in_threadpool(api.update_customer_session_v2, checkout["id"], _question(checkout))
        _apply(checkout, state)
        return Response(json.dumps({"checkout": checkout}), media_type="application/json")

    app = FastAPI(openapi_url=None)
    app.add_api_route("/promotions/validate", validate, methods=["POST"])
    return app


def _question(checkout: dict[str, Any]) -> talon_one.IntegrationRequest:
    promotions = checkout["promotions"]
    items = [
        talon_one.CartItem(sku=item["sku"], quantity=item["quantity"], price=float(item["price"]))
        for item in checkout["items"]
    ]
    session = talon_one.NewCustomerSessionV2(
        profileId=checkout["customer"]["id"],
        couponCodes=promotions["coupon_codes"],
        referralCode=promotions["referral_code"],
        loyaltyCards=[promotions["loyalty_card"]] if promotions["loyalty_card"] else [],
        identifiers=promotions["identifiers"],
        state="open",
        cartItems=items,
    )
    return talon_one.IntegrationRequest(customerSession=session, responseContent=["triggeredCampaigns"])


def _apply(checkout: dict[str, Any], state: talon_one.IntegrationStateV2) -> None:
    campaigns = {campaign.id: campaign for campaign in state.triggered_campaigns or []}
    items = checkout["items"]
    totals = [Decimal(0)] * len(items)
    whole = Decimal(0)
    found: list[dict[Any, dict[str, Any]]] = [{} for _ in items]
    checkout["discounts"] = []
    for effect in state.effects:
        props: Any = effect.props
        if effect.effect_type == "rejectCoupon":
            raise HTTPException(422, f"{props['value']} is refused: {props['rejectionReason']}")
        if effect.effect_type not in ("setDiscount", "setDiscountPerItem"):
            continue
        value = Decimal(str(props["value"])).quantize(_CENT, ROUND_HALF_UP)
        whole += value
        entry = _entry(effect, campaigns[effect.campaign_id])
        if effect.effect_type == "setDiscount":
            checkout["discounts"].append({**entry, "amount": str(value)})
            continue
        position = int(props["position"])
        totals[position] += value
        earlier = found[position].setdefault((effect.ruleset_id, effect.rule_index), {**entry, "amount": "0"})
        earlier["amount"] = str(Decimal(earlier["amount"]) + value)
    for item, total, discounts in zip(items, totals, found, strict=True):
        line = Decimal(item["price"]) * item["quantity"] - total
        item["price"] = str((line / item["quantity"]).quantize(_CENT, ROUND_HALF_UP))
        item["total_discount"] = str(total.quantize(_CENT))
        item["discounts"] = list(discounts.values())
    checkout["total_discount"] = str(whole.quantize(_CENT))


def _entry(effect: talon_one.Effect, campaign: talon_one.Campaign) -> dict[str, Any]:
    return {
        "name": effect.rule_name,
        "description": campaign.description,
        "effect_type": effect.effect_type,
        "meta": {
            "campaignId": effect.campaign_id,
            "rulesetId": effect.ruleset_id,
            "triggeredByCoupon": effect.triggered_by_coupon,
        },
    }
