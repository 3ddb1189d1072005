"""The stored state and its JSON: customers, orders, redemptions, locks, uses and balances."""

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from adapters.voucherify.sandbox.catalog import (
    ALWAYS_STACKABLE,
    EPOCH,
    NEVER_STACKABLE,
    Catalog,
    Coin,
    Discount,
    Incentive,
    campaign_id,
    created_at,
    digest,
    hierarchy,
    minor,
    moment,
    tier_id,
    voucher_id,
)
from adapters.voucherify.sandbox.orders import Order
from mapper.sandbox.rulebook import Coupon, Entry, GiftCard, LoyaltyCard, Referral

Json = dict[str, Any]


@dataclass(frozen=True)
class Lock:
    """The lock of a session on an incentive: one redemption, and credits or points."""

    until: datetime
    credits: int = 0
    points: int = 0


@dataclass
class Customer:
    id: str
    sent: Json

    def json(self) -> Json:
        named = {name: self.sent.get(name) for name in ("name", "email", "source_id")}
        shown = {name: value for name, value in named.items() if value is not None}
        return {"id": self.id} | shown | {"metadata": self.sent.get("metadata", {}), "object": "customer"}


@dataclass
class Redemption:
    """The redemption of one incentive, or (without an incentive) the parent of several."""

    id: str
    at: datetime
    order: str
    """The id of the order; "" for none."""
    customer: str
    """The customer's `source_id`."""
    json: Json
    incentive: Incentive | None = None
    coin: Coin | None = None
    parent: str = ""
    children: list[str] = field(default_factory=list)
    before: Order | None = None
    after: Order | None = None
    amount: int = 0
    """The discount."""
    credits: int = 0
    points: int = 0
    rollback: str = ""


class Books:
    """All stored state."""

    def __init__(self, catalog: Catalog) -> None:
        book = catalog.book
        self._catalog = catalog
        self.customers: dict[str, Customer] = {}
        self.orders: dict[str, Order] = {}
        """By Voucherify's id."""
        self._order_of: dict[str, str] = {}
        """The id of an order by its `source_id`."""
        self.redemptions: dict[str, Redemption] = {}
        self.others: dict[str, Json] = {}
        """The JSON of failed redemptions (rf_...) and rollbacks (rr_...)."""
        self.locks: dict[str, dict[str, Lock]] = defaultdict(dict)
        """By incentive, then by session key."""
        self.uses: Counter[str] = Counter()
        self.uses_by: Counter[tuple[str, str]] = Counter()
        self.referred: Counter[str] = Counter()
        self.redeemed: Counter[int] = Counter()
        self.redeemed_by: Counter[tuple[int, str]] = Counter()
        self.spent: Counter[int] = Counter()
        self.balances = {card.code: minor(card.balance) for card in book.gift_cards}
        self.points = {card.code: int(card.points) for card in book.loyalty_cards}
        self.log: list[Json] = []
        self._ids = 0

    def new_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}_{self._ids:018x}"

    # Uses.

    def used(self, incentive: Incentive) -> int:
        """How often a code was redeemed, earlier uses in the rule book included."""
        before = incentive.entry.used if isinstance(incentive.entry, Coupon | Referral) else 0
        return before + self.uses[incentive.id]

    def record(self, redemption: Redemption, *, sign: int) -> None:
        """Records a redemption (1) or its rollback (-1)."""
        incentive = redemption.incentive
        if incentive is None:
            return
        self.uses[incentive.id] += sign
        self.uses_by[incentive.id, redemption.customer] += sign
        if isinstance(incentive.entry, Referral) and redemption.customer:
            self.referred[redemption.customer] += sign
        if incentive.campaign is not None:
            self.redeemed[incentive.campaign.id] += sign
            self.redeemed_by[incentive.campaign.id, redemption.customer] += sign
            self.spent[incentive.campaign.id] += sign * redemption.amount
        if isinstance(incentive.entry, GiftCard):
            self.balances[incentive.id] -= sign * redemption.credits
        if isinstance(incentive.entry, LoyaltyCard):
            self.points[incentive.id] -= sign * redemption.points
        what = "redeemed" if sign == 1 else "rolled back"
        entry = {"redemption": redemption.id, "order": self._order_name(redemption.order), "object": incentive.object}
        self.log.append(entry | {"id": incentive.id, "amount": redemption.amount, "what": what, "at": redemption.at})

    def _order_name(self, key: str) -> str:
        order = self.orders.get(key)
        return (order.head.get("source_id") or key) if order else ""

    # Orders and customers.

    def find_order(self, id_: str) -> Order | None:
        """By Voucherify's id or the merchant's."""
        return self.orders.get(id_) or self.orders.get(self._order_of.get(id_, ""))

    def store_order(self, order: Order) -> str:
        """Stores an order and returns its id."""
        id_: str = order.head["id"]
        self.orders[id_] = order
        if order.head["source_id"]:
            self._order_of[order.head["source_id"]] = id_
        return id_

    def rename_order(self, order: Order, source_id: str) -> None:
        """Gives an order another `source_id`. The old one is free again."""
        self._order_of.pop(order.head["source_id"] or "", None)
        order.head["source_id"] = source_id or None
        if source_id:
            self._order_of[source_id] = order.head["id"]

    def find_customer(self, id_: str) -> Customer | None:
        return next((customer for customer in self.customers.values() if customer.id == id_), None)

    def store_customer(self, sent: Json) -> Customer:
        """Creates or updates a customer. Redemptions do this; validations do not."""
        source_id = sent["source_id"]
        customer = self.customers.setdefault(source_id, Customer(f"cust_{digest(source_id)}", {}))
        customer.sent |= sent
        return customer

    # Locks.

    def other_locks(self, incentive: Incentive, key: str, now: datetime) -> list[Lock]:
        """The locks of other sessions than `key`."""
        locks = self.locks.get(incentive.id, {})
        return [lock for session, lock in locks.items() if session != key and lock.until > now]

    # JSON.

    def voucher(self, incentive: Incentive) -> Json:
        entry = incentive.entry
        id_, name = incentive.parent
        balance = self.balances.get(incentive.id, 0)
        points = self.points.get(incentive.id, 0)
        gift: Json | None = None
        if isinstance(entry, GiftCard):
            whole = minor(entry.balance)
            gift = {"amount": whole, "subtracted_amount": whole - balance, "balance": balance}
            gift["effect"] = "APPLY_TO_ORDER"
        card = {"points": int(entry.points), "balance": points} if isinstance(entry, LoyaltyCard) else None
        holder = entry.customer if isinstance(entry, Coupon | LoyaltyCard) else ""
        json: Json = {
            "id": voucher_id(incentive.id),
            "code": incentive.id,
            "campaign": name,
            "campaign_id": id_,
            "category": None,
            "category_id": None,
            "categories": [],
            "type": _TYPES.get(type(entry), "DISCOUNT_VOUCHER"),
            "discount": incentive.discount.json() if incentive.discount else None,
            "gift": gift,
            "loyalty_card": card,
            "start_date": _date(entry, "starts"),
            "expiration_date": _date(entry, "ends"),
            "validity_timeframe": None,
            "validity_day_of_week": None,
            "active": _is_active(incentive),
            "additional_info": None,
            "metadata": incentive.metadata,
            "is_referral_code": isinstance(entry, Referral),
            "created_at": moment(EPOCH),
            "updated_at": None,
            "redemption": self._redemption_count(incentive),
            "object": "voucher",
        }
        return json | ({"holder_id": f"cust_{digest(holder)}"} if holder else {})

    def _redemption_count(self, incentive: Incentive) -> Json:
        entry = incentive.entry
        quantity = entry.uses if isinstance(entry, Coupon | Referral) else None
        count: Json = {"quantity": quantity, "redeemed_quantity": self.used(incentive), "object": "list"}
        if isinstance(entry, GiftCard):
            count["redeemed_amount"] = minor(entry.balance) - self.balances[incentive.id]
        if isinstance(entry, LoyaltyCard):
            count["redeemed_points"] = int(entry.points) - self.points[incentive.id]
        return count | {"url": f"/v1/vouchers/{incentive.id}/redemptions?page=1&limit=10"}

    def tier(self, incentive: Incentive) -> Json:
        campaign = incentive.campaign
        assert campaign is not None
        return {
            "id": tier_id(campaign.id),
            "created_at": moment(created_at(campaign)),
            "name": campaign.name,
            "banner": campaign.description,
            "action": {"discount": incentive.discount.json()} if incentive.discount else None,
            "metadata": incentive.metadata,
            "hierarchy": 1,
            "campaign": {"id": campaign_id(campaign.id), "active": campaign.active, "object": "campaign"},
            "campaign_id": campaign_id(campaign.id),
            "active": campaign.active,
            "summary": {"redemptions": {"total_redeemed": self.redeemed[campaign.id]}},
            "object": "promotion_tier",
            "validation_rule_assignments": None,
            "category_id": None,
            "categories": [],
        }


_TYPES: Final[dict[type, str]] = {GiftCard: "GIFT_VOUCHER", LoyaltyCard: "LOYALTY_CARD"}


def _date(entry: Entry | None, name: str) -> str | None:
    at = getattr(entry, name, None)
    return moment(at) if at else None


def _is_active(incentive: Incentive) -> bool:
    if isinstance(incentive.entry, LoyaltyCard):
        return incentive.entry.active
    return incentive.campaign is None or incentive.campaign.active


def discount_json(discount: Discount) -> Json:
    """As results show it."""
    return discount.json() | {"is_dynamic": False}


def category(id_: str) -> Json:
    kinds = {NEVER_STACKABLE: ("Never stackable", "EXCLUSIVE"), ALWAYS_STACKABLE: ("Always stackable", "JOINT")}
    name, stacking = kinds.get(id_, ("One of these", None))
    json: Json = {
        "id": id_,
        "name": name,
        "hierarchy": hierarchy(id_),
        "object": "category",
        "created_at": moment(EPOCH),
    }
    return json | ({"stacking_rules_type": stacking} if stacking else {})


def tracking_id(source_id: str) -> str:
    return "track_" + base64.b64encode(digest("track", source_id, size=16).encode()).decode()


_NANOSECONDS: Final = {
    "DAYS": 86_400 * 10**9,
    "HOURS": 3_600 * 10**9,
    "MINUTES": 60 * 10**9,
    "SECONDS": 10**9,
    "MILLISECONDS": 10**6,
    "MICROSECONDS": 10**3,
    "NANOSECONDS": 1,
}
_LONGEST: Final = timedelta(days=36_500)


def ttl(value: Decimal | int, unit: str) -> timedelta:
    microseconds = min(int(value * _NANOSECONDS[unit]) // 1000, _LONGEST // timedelta(microseconds=1))
    return timedelta(microseconds=microseconds)
