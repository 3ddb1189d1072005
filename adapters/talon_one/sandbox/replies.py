"""Writes the entities of the vendor's specification, with every required field."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from adapters.talon_one.sandbox.cart import ZERO, Cart, number_of
from adapters.talon_one.sandbox.options import Options
from adapters.talon_one.sandbox.rules import Run, ruleset
from adapters.talon_one.sandbox.state import Books, Profile, Session
from mapper.sandbox.rulebook import Campaign, Coupon, GiftCard, LoyaltyCard, Referral, RuleBook

Json = dict[str, Any]

_ACCOUNT_ID: Final = 7
_EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)


class Replies:
    """Writes replies from the stored state."""

    def __init__(self, book: RuleBook, books: Books, options: Options) -> None:
        self._book = book
        self._books = books
        self._options = options

    def reply(self, session: Session, run: Run, content: set[str]) -> Json:
        """The schema IntegrationStateV2, with the requested `content`."""
        reply: Json = {"effects": run.effects, "createdCoupons": [], "createdReferrals": []}
        writers: dict[str, Callable[[], Any]] = {
            "customerSession": lambda: self.session(session),
            "customerProfile": lambda: self._profile(session),
            "coupons": lambda: [self._coupon(code, entry, run) for code, entry in run.coupons],
            "triggeredCampaigns": lambda: [self._campaign(c, session) for c in run.triggered],
            "referral": lambda: self._referral(run.referral),
            "loyalty": lambda: {"cards": self._cards(session, run), "programs": {}},
            "event": lambda: self._event(session, run),
            "ruleFailureReasons": lambda: run.failures,
            "awardedGiveaways": lambda: [self._awarded(e["props"]) for e in run.effects if "giveawayId" in e["props"]],
            "previousReturns": lambda: list(session.returns),
            "campaignEligibility": list,
            "achievements": list,
        }
        for name in sorted(content):
            value = writers[name]()
            if value is not None:
                reply[name] = value
        return reply

    def session(self, session: Session) -> Json:
        """The schema CustomerSessionV2. All its totals are before discounts."""
        cart = Cart(session.data)
        data: Json = _plain(session.data)
        items = [
            item
            | {
                "position": i,
                "returnedQuantity": session.returned[i],
                "remainingQuantity": item["quantity"] - session.returned[i],
            }
            for i, item in enumerate(data["cartItems"])
        ]
        return data | {
            "id": session.id,
            "created": session.created,
            "integrationId": session.integration_id,
            "applicationId": self._options.application_id,
            "state": session.state,
            "cartItems": items,
            "firstSession": session.first,
            "updateCount": session.updates,
            "total": number_of(cart.items_total + cart.costs_total + cart.item_costs_total),
            "cartItemTotal": number_of(cart.items_total),
            "additionalCostTotal": number_of(cart.costs_total),
            "cartItemAdditionalCostTotal": number_of(cart.item_costs_total),
            "updated": session.updated,
        }

    def _profile(self, session: Session) -> Json | None:
        id_ = session.data["profileId"]
        if not id_:
            return None
        profile = self._books.profiles.get(id_) or Profile(0, session.created, session.updated)
        return {
            "id": profile.id,
            "created": profile.created,
            "integrationId": id_,
            "attributes": {},
            "accountId": _ACCOUNT_ID,
            "closedSessions": profile.closed,
            "totalSales": number_of(profile.sales),
            "lastActivity": profile.active,
            "sandbox": True,
        }

    def _coupon(self, code: str, entry: Coupon | GiftCard, run: Run) -> Json:
        coupon: Json = {
            "id": run.coupon_id(code, entry),
            "created": _EPOCH,
            "campaignId": entry.campaign,
            "value": code,
            "usageLimit": 0,
            "usageCounter": self._books.uses[code],
            "attributes": {},
            "reservation": True,
            "isReservationMandatory": False,
            "profileRedemptionCount": self._books.uses_by[code, run.context.cart.profile],
        } | _dates(entry)
        if isinstance(entry, GiftCard):
            balance = self._books.balances[code]
            return coupon | {
                "discountLimit": number_of(entry.balance),
                "discountCounter": number_of(entry.balance - balance),
                "discountRemainder": number_of(balance),
            }
        coupon["usageLimit"] = entry.uses or 0
        return coupon | ({"recipientIntegrationId": entry.customer} if entry.customer else {})

    def _campaign(self, campaign: Campaign, session: Session) -> Json:
        features = {"coupon": ["coupons"], "gift_card": ["coupons"], "referral": ["referrals"]}
        limits = campaign.limits
        amounts = {"redeemCoupon": limits.redemptions, "setDiscount": limits.budget}
        counters = {"redeemCoupon": self._books.redeemed[campaign.id], "setDiscount": self._books.spent}
        counters["setDiscount"] = number_of(self._books.spent.get(campaign.id, ZERO))
        limited = {action: limit for action, limit in amounts.items() if limit is not None}
        times = {"startTime": campaign.starts, "endTime": campaign.ends}
        return {
            "id": campaign.id,
            "created": _EPOCH,
            "applicationId": self._options.application_id,
            "userId": 1,
            "name": campaign.name,
            "description": campaign.description,
            **{name: time for name, time in times.items() if time},
            "attributes": {},
            "state": "enabled" if campaign.active else "disabled",
            "activeRulesetId": ruleset(campaign),
            "tags": [],
            "features": features.get(campaign.needs, ["loyalty"] if campaign.needs == "loyalty_card" else []),
            "limits": [{"action": action, "limit": limit, "entities": []} for action, limit in limited.items()],
            "campaignGroups": [],
            "type": "advanced",
            "linkedStoreIds": [],
            "budgets": [
                {"action": action, "limit": limit, "counter": counters[action]} for action, limit in limited.items()
            ],
            "updated": session.updated,
            "frontendState": "running" if campaign.running(session.updated) else "disabled",
            "storesImported": False,
            "reevaluateOnReturn": False,
        }

    def _referral(self, referral: Referral | None) -> Json | None:
        if referral is None:
            return None
        return {
            "id": self._book.referrals.index(referral) + 1,
            "created": _EPOCH,
            "campaignId": referral.campaign,
            "advocateProfileIntegrationId": referral.advocate,
            "usageLimit": referral.uses or 0,
            "usageCounter": self._books.uses[referral.code],
            "code": referral.code,
            "attributes": {},
            "referredCustomers": [],
        } | _dates(referral)

    def _awarded(self, props: Json) -> Json:
        return {
            "id": props["giveawayId"],
            "created": _EPOCH,
            "code": props["code"],
            "poolId": props["poolId"],
            "used": True,
            "profileIntegrationId": props["recipientIntegrationId"],
        }

    def returned(self, session: Session, items: list[Json]) -> Json:
        """The schema Return."""
        number = len(session.returns) + 1
        return {
            "id": session.id * 100 + number,
            "created": session.updated,
            "applicationId": self._options.application_id,
            "accountId": _ACCOUNT_ID,
            "returnedCartItems": items,
            "eventId": session.id * 1000 + session.updates,
            "sessionId": session.id,
            "sessionIntegrationId": session.integration_id,
            "profileIntegrationId": session.data["profileId"],
        }

    def _cards(self, session: Session, run: Run) -> list[Json]:
        cards = []
        for entered in session.data["loyaltyCards"]:
            found = self._book.find(entered)
            if found is None or not isinstance(found[1], LoyaltyCard):
                continue
            code, card = found
            assert isinstance(card, LoyaltyCard)
            program = self._book.program[card.program]
            balance = self._books.points[code]
            pending = ZERO if session.state == "closed" else run.context.grants.points.get(code, ZERO)
            cards.append(
                {
                    "id": self._book.loyalty_cards.index(card) + 1,
                    "created": _EPOCH,
                    "programID": program.id,
                    "programName": program.name,
                    "programTitle": program.title,
                    "status": "active" if card.active else "inactive",
                    "identifier": code,
                    "usersPerCardLimit": 0,
                    "profiles": [],
                    "ledger": {
                        "currentBalance": number_of(balance),
                        "pendingBalance": 0,
                        "expiredBalance": 0,
                        "spentBalance": 0,
                        "tentativeCurrentBalance": number_of(balance + pending),
                    },
                    "subledgers": {},
                }
            )
        return cards

    def _event(self, session: Session, run: Run) -> Json:
        kinds = {
            "closed": "talon_session_closed",
            "cancelled": "talon_session_cancelled",
            "partially_returned": "talon_session_cart_items_returned",
        }
        kind = "talon_session_created" if session.updates == 1 else "talon_session_updated"
        return {
            "id": session.id * 1000 + session.updates,
            "created": session.updated,
            "applicationId": self._options.application_id,
            "profileId": session.data["profileId"],
            "sessionId": session.integration_id,
            "type": kinds.get(session.state, kind),
            "attributes": {},
            "effects": run.effects,
            "ledgerEntries": [],
        }


def _dates(entry: Coupon | GiftCard | Referral) -> Json:
    return {name: time for name, time in (("startDate", entry.starts), ("expiryDate", entry.ends)) if time}


def _plain(value: Any) -> Any:
    """The value with its numbers as the API writes them."""
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {name: _plain(element) for name, element in value.items()}
    return number_of(value) if isinstance(value, Decimal) else value
