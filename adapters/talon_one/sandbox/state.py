"""What the engine remembers: sessions, customers, and what has been redeemed; and how it is taken back."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from adapters.talon_one.sandbox.cart import ZERO
from mapper.sandbox.rulebook import Coupon, Referral, RuleBook

Json = dict[str, Any]


@dataclass
class Grants:
    """What a closed session took, so that it can be taken back."""

    profile: str = ""
    codes: list[tuple[str, str, int]] = field(default_factory=list)
    """Kind, code, campaign."""
    campaigns: list[int] = field(default_factory=list)
    spent: dict[int, Decimal] = field(default_factory=dict)
    """Discount by campaign."""
    balances: dict[str, Decimal] = field(default_factory=dict)
    points: dict[str, Decimal] = field(default_factory=dict)


@dataclass
class Session:
    id: int
    integration_id: str
    created: datetime
    updated: datetime
    first: bool = True
    updates: int = 0
    state: str = "open"
    closes: int = 0
    """How often it was closed; no reply shows it."""
    data: Json = field(
        default_factory=lambda: {
            "profileId": "",
            "couponCodes": [],
            "referralCode": "",
            "loyaltyCards": [],
            "cartItems": [],
            "additionalCosts": {},
            "identifiers": [],
            "attributes": {},
        }
    )
    effects: list[Json] = field(default_factory=list)
    """Those that are valid now."""
    grants: Grants | None = None

    def merge(self, given: Json) -> None:
        """PUT is a merge: what is not sent stays, what is sent replaces. Attributes are kept one by one."""
        fields = {name: value for name, value in given.items() if name not in ("state", "evaluableCampaignIds")}
        attributes = self.data["attributes"] | fields.pop("attributes", {})
        self.data = self.data | fields | {"attributes": attributes}


@dataclass
class Profile:
    id: int
    created: datetime
    active: datetime
    closed: int = 0
    sales: Decimal = ZERO


class Books:
    """Everything that outlives a request."""

    def __init__(self, book: RuleBook) -> None:
        self.sessions: dict[str, Session] = {}
        self.profiles: dict[str, Profile] = {}
        self.uses: Counter[str] = Counter()
        for entry in book.entries:
            if isinstance(entry, Coupon | Referral) and entry.code and entry.used:
                self.uses[entry.code] = entry.used
        self.uses_by: Counter[tuple[str, str]] = Counter()
        """Code and customer."""
        self.referred: Counter[str] = Counter()
        self.redeemed: Counter[int] = Counter()
        self.redeemed_by: Counter[tuple[int, str]] = Counter()
        self.spent: dict[int, Decimal] = {}
        self.balances = {card.code: Decimal(card.balance) for card in book.gift_cards}
        self.points = {card.code: Decimal(card.points) for card in book.loyalty_cards}
        self.log: list[Json] = []

    def book(self, session: Session, grants: Grants, now: datetime, *, sign: Literal[1, -1]) -> None:
        """Counts what a session took (1), or takes it back (-1)."""
        for kind, code, campaign in grants.codes:
            self.uses[code] += sign
            self.uses_by[code, grants.profile] += sign
            if kind == "referral" and grants.profile:
                self.referred[grants.profile] += sign
            what = "redeemed" if sign == 1 else "rolled back"
            entry = {"session": session.integration_id, "kind": kind, "code": code, "campaign": campaign}
            self.log.append(entry | {"what": what, "at": now})
        for campaign in grants.campaigns:
            self.redeemed[campaign] += sign
            self.redeemed_by[campaign, grants.profile] += sign
        for campaign, value in grants.spent.items():
            self.spent[campaign] = self.spent.get(campaign, ZERO) + sign * value
        for code, value in grants.balances.items():
            self.balances[code] -= sign * value
        for code, value in grants.points.items():
            self.points[code] += sign * value


def rollbacks(effects: list[Json]) -> tuple[list[Json], list[Json]]:
    """The effects that take these back, and those that nothing takes back."""
    back, stay = [], []
    for effect in effects:
        roll = _ROLLBACKS.get(effect["effectType"])
        if roll is None:
            if not effect["effectType"].startswith("reject"):
                stay.append(effect)
            continue
        kind, names = roll
        props = {new: effect["props"][old] for old, new in names.items() if old in effect["props"]}
        if kind == "rollbackDeductedLoyaltyPoints":
            props.setdefault("recipientIntegrationId", "")
        back.append(effect | {"effectType": kind, "props": props})
    return back, stay


_OF_DISCOUNT: Final = {
    "name": "name",
    "value": "value",
    "scope": "scope",
    "position": "cartItemPosition",
    "subPosition": "cartItemSubPosition",
    "additionalCostId": "additionalCostId",
    "additionalCost": "additionalCost",
}
_OF_POINTS: Final = {
    name: name
    for name in (
        "programId",
        "subLedgerId",
        "value",
        "recipientIntegrationId",
        "transactionUUID",
        "cartItemPosition",
        "cartItemSubPosition",
        "cardIdentifier",
    )
}
_ROLLBACKS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "acceptCoupon": ("rollbackCoupon", {"value": "value"}),
    "acceptReferral": ("rollbackReferral", {"value": "value"}),
    "setDiscount": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerItem": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerAdditionalCost": ("rollbackDiscount", _OF_DISCOUNT),
    "setDiscountPerAdditionalCostPerItem": ("rollbackDiscount", _OF_DISCOUNT),
    "addLoyaltyPoints": ("rollbackAddedLoyaltyPoints", _OF_POINTS),
    "deductLoyaltyPoints": ("rollbackDeductedLoyaltyPoints", _OF_POINTS),
}
