"""The stored state: sessions, profiles and redemptions, and how these are rolled back."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from adapters.talon_one.sandbox.cart import ZERO
from adapters.talon_one.sandbox.options import Options
from mapper.sandbox.rulebook import Coupon, Referral, RuleBook

Json = dict[str, Any]


@dataclass
class Grants:
    """What a closed session has redeemed, for the rollback."""

    profile: str = ""
    codes: list[tuple[str, str, int]] = field(default_factory=list)
    """Kind, code, campaign."""
    campaigns: list[int] = field(default_factory=list)
    spent: dict[int, Decimal] = field(default_factory=dict)
    """Discount by campaign."""
    balances: dict[str, Decimal] = field(default_factory=dict)
    points: dict[str, Decimal] = field(default_factory=dict)
    giveaways: list[str] = field(default_factory=list)
    """The pools that a code was taken from. Codes are never put back."""


# The data of a new session. None of these values is changed in place.
_EMPTY: Final[Json] = {
    "profileId": "",
    "couponCodes": [],
    "referralCode": "",
    "loyaltyCards": [],
    "cartItems": [],
    "additionalCosts": {},
    "identifiers": [],
    "attributes": {},
}


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
    """How often it was closed. No reply has this."""
    data: Json = field(default_factory=lambda: dict(_EMPTY))
    effects: list[Json] = field(default_factory=list)
    """The current effects."""
    grants: Grants | None = None

    returned: Counter[int] = field(default_factory=Counter)
    """The number of returned units, by position."""
    returns: list[Json] = field(default_factory=list)

    def merge(self, sent: Json, options: Options) -> None:
        """Merges a PUT: a sent field replaces the stored one. Maps are merged or replaced, as the options say."""
        fields = {name: value for name, value in sent.items() if name not in ("state", "evaluableCampaignIds")}
        for name, mode in (("attributes", options.attributes), ("additionalCosts", options.additional_costs)):
            if name in fields and mode == "merge":
                fields[name] = self.data[name] | fields[name]
        self.data = self.data | fields

    def clear(self, path: tuple[str, ...]) -> None:
        """Clears a field, or a value of a map."""
        name = path[0]
        if len(path) > 1:
            self.data = self.data | {name: {key: v for key, v in self.data[name].items() if key != path[1]}}
        elif name in _EMPTY:
            self.data = self.data | {name: _EMPTY[name]}
        else:
            self.data = {key: value for key, value in self.data.items() if key != name}


@dataclass
class Profile:
    id: int
    created: datetime
    active: datetime
    closed: int = 0
    sales: Decimal = ZERO


class Books:
    """All stored state."""

    def __init__(self, book: RuleBook) -> None:
        self.sessions: dict[str, Session] = {}
        self.profiles: dict[str, Profile] = {}
        self.uses: Counter[str] = Counter()
        for entry in book.entries:
            if isinstance(entry, Coupon | Referral) and entry.code and entry.used:
                self.uses[entry.code] = entry.used
        self.uses_by: Counter[tuple[str, str]] = Counter()
        """By code and profile."""
        self.referred: Counter[str] = Counter()
        self.redeemed: Counter[int] = Counter()
        self.redeemed_by: Counter[tuple[int, str]] = Counter()
        self.spent: dict[int, Decimal] = {}
        self.balances = {card.code: Decimal(card.balance) for card in book.gift_cards}
        self.points = {card.code: Decimal(card.points) for card in book.loyalty_cards}
        self.awarded: Counter[str] = Counter()
        """The number of codes taken from each giveaway pool."""
        self.log: list[Json] = []

    def record(self, session: Session, grants: Grants, now: datetime, *, sign: Literal[1, -1]) -> None:
        """Records a redemption (1) or its rollback (-1)."""
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
        if sign == 1:
            self.awarded.update(grants.giveaways)


def rollbacks(effects: list[Json]) -> tuple[list[Json], list[Json]]:
    """The rollback effects of these effects, and the effects that cannot be rolled back."""
    rolled_back, kept = [], []
    for effect in effects:
        rollback = _ROLLBACKS.get(effect["effectType"])
        if rollback is None:
            if not effect["effectType"].startswith("reject"):
                kept.append(effect)
            continue
        kind, names = rollback
        props = {new: effect["props"][old] for old, new in names.items() if old in effect["props"]}
        if kind == "rollbackDeductedLoyaltyPoints":
            props.setdefault("recipientIntegrationId", "")
        rolled_back.append(effect | {"effectType": kind, "props": props})
    return rolled_back, kept


_DISCOUNT_PROPS: Final = {
    "name": "name",
    "value": "value",
    "scope": "scope",
    "position": "cartItemPosition",
    "subPosition": "cartItemSubPosition",
    "additionalCostId": "additionalCostId",
    "additionalCost": "additionalCost",
}
_POINTS_PROPS: Final = {name: name for name in (
    "programId", "subLedgerId", "value", "recipientIntegrationId", "transactionUUID", "cartItemPosition",
    "cartItemSubPosition", "cardIdentifier",
)}  # fmt: skip
_ROLLBACKS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "acceptCoupon": ("rollbackCoupon", {"value": "value"}),
    "acceptReferral": ("rollbackReferral", {"value": "value"}),
    "setDiscount": ("rollbackDiscount", _DISCOUNT_PROPS),
    "setDiscountPerItem": ("rollbackDiscount", _DISCOUNT_PROPS),
    "setDiscountPerAdditionalCost": ("rollbackDiscount", _DISCOUNT_PROPS),
    "setDiscountPerAdditionalCostPerItem": ("rollbackDiscount", _DISCOUNT_PROPS),
    "addLoyaltyPoints": ("rollbackAddedLoyaltyPoints", _POINTS_PROPS),
    "deductLoyaltyPoints": ("rollbackDeductedLoyaltyPoints", _POINTS_PROPS),
}
