"""What the engine remembers: sessions, customers, and what has been redeemed; and how it is taken back."""

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
    """What a closed session took, so that it can be taken back."""

    profile: str = ""
    codes: list[tuple[str, str, int]] = field(default_factory=list)
    """Kind, code, campaign."""
    campaigns: list[int] = field(default_factory=list)
    spent: dict[int, Decimal] = field(default_factory=dict)
    """Discount by campaign."""
    balances: dict[str, Decimal] = field(default_factory=dict)
    points: dict[str, Decimal] = field(default_factory=dict)
    giveaways: list[str] = field(default_factory=list)
    """The pools that a code was taken from; that stays, whatever becomes of the session."""


# What a session holds that nobody has told anything. Nothing in it is ever changed in place.
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
    """How often it was closed; no reply shows it."""
    data: Json = field(default_factory=lambda: dict(_EMPTY))
    effects: list[Json] = field(default_factory=list)
    """Those that are valid now."""
    grants: Grants | None = None

    returned: Counter[int] = field(default_factory=Counter)
    """Units that came back, by the position of their line."""
    returns: list[Json] = field(default_factory=list)

    def merge(self, given: Json, options: Options) -> None:
        """PUT is a merge: what is not sent stays, what is sent replaces; of maps, as the options say."""
        fields = {name: value for name, value in given.items() if name not in ("state", "evaluableCampaignIds")}
        for name, mode in (("attributes", options.attributes), ("additionalCosts", options.additional_costs)):
            if name in fields and mode == "merge":
                fields[name] = self.data[name] | fields[name]
        self.data = self.data | fields

    def clear(self, place: tuple[str, ...]) -> None:
        """Forgets what a null stood for: a field, or a value of a map."""
        name = place[0]
        if len(place) > 1:
            self.data = self.data | {name: {key: v for key, v in self.data[name].items() if key != place[1]}}
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
        self.awarded: Counter[str] = Counter()
        """Codes taken from each pool of giveaways; none ever comes back."""
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
        if sign == 1:
            self.awarded.update(grants.giveaways)


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
