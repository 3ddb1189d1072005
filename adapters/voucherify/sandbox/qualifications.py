"""Qualifications: the promotions that may apply to a cart. Stacking rules and some limits are not checked.

https://docs.voucherify.io/guides/checking-eligibility
"""

from collections.abc import Callable
from typing import Any, Final

from adapters.voucherify.sandbox.catalog import Catalog, campaign_id, created_at, moment
from adapters.voucherify.sandbox.orders import Order, order_json
from adapters.voucherify.sandbox.stacking import Run, Shopper
from adapters.voucherify.sandbox.state import Books, category, discount_json, tracking_id

Json = dict[str, Any]


def qualify(catalog: Catalog, books: Books, shopper: Shopper, order: Order | None, payload: Json) -> Json:
    """The reply to a qualification. Each candidate is validated on its own."""
    options = payload.get("options", {})
    candidates = _by_tier(catalog, books, shopper, order, payload) + _by_campaign(catalog, payload)
    after = options.get("starting_after") or ""
    found = [entry for entry in candidates if not after or entry["created_at"] < after]
    found = _SORTED[options.get("sorting_rule", "DEFAULT")](_filtered(found, options.get("filters", {})))
    page = found[: options.get("limit", 5)]
    redeemables: Json = {"object": "list", "data_ref": "data", "data": page, "total": len(page)}
    redeemables["has_more"] = len(page) < len(found)
    if redeemables["has_more"]:
        redeemables["more_starting_after"] = page[-1]["created_at"]
    reply: Json = {"redeemables": redeemables}
    if shopper.source_id:
        reply["tracking_id"] = tracking_id(shopper.source_id)
    if order is not None:
        reply["order"] = order_json(order, order)
    return reply


def _by_tier(catalog: Catalog, books: Books, shopper: Shopper, order: Order | None, payload: Json) -> list[Json]:
    if payload.get("scenario", "ALL") not in ("ALL", "AUDIENCE_ONLY", "PRODUCTS", "PRODUCTS_DISCOUNT"):
        return []
    expand = {*payload.get("options", {}).get("expand", []), "order"}
    found = []
    for tier in catalog.tiers():
        run = Run(catalog, books, shopper, order, qualifying=True)
        result = run.execute([{"object": "promotion_tier", "id": tier.id}]).results[0]
        if result.status == "APPLICABLE" and tier.campaign is not None:
            json = result.json(expand, books, shopper, "")
            json |= {"created_at": moment(created_at(tier.campaign)), "banner": tier.campaign.description}
            json |= {"campaign_id": tier.parent[0], "campaign_name": tier.parent[1], "name": tier.parent[1]}
            found.append({name: value for name, value in json.items() if name != "status"})
    return found


def _by_campaign(catalog: Catalog, payload: Json) -> list[Json]:
    if payload.get("scenario", "ALL") not in ("ALL", "AUDIENCE_ONLY"):
        return []
    found = []
    for campaign in catalog.book.campaigns:
        incentive = catalog.of_campaign(campaign)
        if campaign.needs == "coupon" and campaign.active and incentive.discount:
            found.append(
                {
                    "id": campaign_id(campaign.id),
                    "object": "campaign",
                    "created_at": moment(created_at(campaign)),
                    "result": {"discount": discount_json(incentive.discount)},
                    "metadata": incentive.metadata,
                    "categories": [category(id_) for id_ in incentive.categories],
                    "name": campaign.name,
                }
            )
    return found


def _filtered(found: list[Json], filters: Json) -> list[Json]:
    """The entries for which all filters hold, or one of them with the junction "or"."""
    tests = {name: field.get("conditions", {}) for name, field in filters.items() if name != "junction"}
    hold = any if filters.get("junction", "and") == "or" else all
    if not tests:
        return found
    return [entry for entry in found if hold(_holds(entry, name, test) for name, test in tests.items())]


_FIELDS: Final[dict[str, Callable[[Json], Any]]] = {
    "resource_id": lambda entry: entry["id"],
    "resource_type": lambda entry: entry["object"],
    "campaign_id": lambda entry: entry.get("campaign_id", entry["id"]),
    "campaign_type": lambda entry: "PROMOTION" if entry["object"] == "promotion_tier" else "DISCOUNT_COUPONS",
    "code": lambda entry: entry["id"],
}


def _holds(entry: Json, name: str, test: dict[str, list[str]]) -> bool:
    value = _FIELDS[name](entry) if name in _FIELDS else None
    included = {*test.get("$is", []), *test.get("$in", [])}
    excluded = {*test.get("$is_not", []), *test.get("$not_in", [])}
    return (not included or value in included) and value not in excluded


def _discount_of(entry: Json) -> int:
    return int(entry.get("order", {}).get("total_applied_discount_amount", 0))


_SORTED: Final[dict[str, Callable[[list[Json]], list[Json]]]] = {
    "DEFAULT": lambda found: sorted(found, key=lambda entry: str(entry["created_at"]), reverse=True),
    "BEST_DEAL": lambda found: sorted(found, key=_discount_of, reverse=True),
    "LEAST_DEAL": lambda found: sorted(found, key=_discount_of),
}
