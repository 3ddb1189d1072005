"""Qualifications: candidates for a cart, of which several rules, and all rules of stacking, are left unlooked at.

https://docs.voucherify.io/guides/checking-eligibility
"""

from collections.abc import Callable
from typing import Any, Final

from adapters.voucherify.sandbox.catalog import Catalog, campaign_id, created_at, moment
from adapters.voucherify.sandbox.orders import Order, shown
from adapters.voucherify.sandbox.stacking import Run, Shopper
from adapters.voucherify.sandbox.state import Books, category, discount_json, tracking_id

Json = dict[str, Any]


def qualify(catalog: Catalog, books: Books, shopper: Shopper, order: Order | None, given: Json) -> Json:
    """Automatic promotions and campaigns that may suit, each computed alone, with some of their rules unchecked."""
    options = given.get("options", {})
    candidates = _by_tier(catalog, books, shopper, order, given) + _by_campaign(catalog, given)
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
        reply["order"] = shown(order, order)
    return reply


def _by_tier(catalog: Catalog, books: Books, shopper: Shopper, order: Order | None, given: Json) -> list[Json]:
    if given.get("scenario", "ALL") not in ("ALL", "AUDIENCE_ONLY", "PRODUCTS", "PRODUCTS_DISCOUNT"):
        return []
    expand = {*given.get("options", {}).get("expand", []), "order"}
    found = []
    for tier in catalog.tiers():
        run = Run(catalog, books, shopper, order, qualifying=True)
        result = run.go([{"object": "promotion_tier", "id": tier.id}]).results[0]
        if result.status == "APPLICABLE" and tier.campaign is not None:
            json = result.json(expand, books, shopper, "")
            json |= {"created_at": moment(created_at(tier.campaign)), "banner": tier.campaign.description}
            json |= {"campaign_id": tier.parent[0], "campaign_name": tier.parent[1], "name": tier.parent[1]}
            found.append({name: value for name, value in json.items() if name != "status"})
    return found


def _by_campaign(catalog: Catalog, given: Json) -> list[Json]:
    if given.get("scenario", "ALL") not in ("ALL", "AUDIENCE_ONLY"):
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
    """Several filters must all hold, or with the junction "or" one of them."""
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
    wanted = {*test.get("$is", []), *test.get("$in", [])}
    unwanted = {*test.get("$is_not", []), *test.get("$not_in", [])}
    return (not wanted or value in wanted) and value not in unwanted


def _deal(entry: Json) -> int:
    return int(entry.get("order", {}).get("total_applied_discount_amount", 0))


_SORTED: Final[dict[str, Callable[[list[Json]], list[Json]]]] = {
    "DEFAULT": lambda found: sorted(found, key=lambda entry: str(entry["created_at"]), reverse=True),
    "BEST_DEAL": lambda found: sorted(found, key=_deal, reverse=True),
    "LEAST_DEAL": lambda found: sorted(found, key=_deal),
}
