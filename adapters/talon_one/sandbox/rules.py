"""The rule engine: which campaigns apply to a session, in which order, and what is said of each code."""

import random
import uuid
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from adapters.talon_one.sandbox.cart import ZERO, Cart, Left
from adapters.talon_one.sandbox.state import Books, Grants, Session
from adapters.talon_one.sandbox.trial import REASONS, Candidate, Refused, Trial
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import Campaign, Coupon, GiftCard, LoyaltyCard, Referral, RuleBook

Json = dict[str, Any]


class Options(rulebook.Table, frozen=True, kw_only=True):
    """`[engines.talon_one]` of the rule book."""

    application_id: int = 1
    idempotency_keys: bool = True
    flatten: bool = True
    unknown_fields: Literal["refuse", "ignore"] = "refuse"


def ruleset(campaign: Campaign) -> int:
    return 1000 + campaign.id


class Run:
    """The rule engine run once over a session. It changes nothing: what it grants is booked by whoever closes."""

    def __init__(
        self,
        book: RuleBook,
        books: Books,
        options: Options,
        session: Session,
        now: datetime,
        evaluable: list[int] | None = None,
    ) -> None:
        self.book = book
        self.books = books
        self.options = options
        self.session = session
        self.now = now
        self.evaluable = evaluable
        """Only these campaigns, even if they are switched off; for dry requests."""
        self.cart = Cart(session.data)
        self.untouched = Left.of(self.cart)
        self.effects: list[Json] = []
        self.failures: list[Json] = []
        self.grants = Grants(profile=self.cart.profile)
        self.triggered: list[Campaign] = []
        self.coupons: list[tuple[str, Coupon | GiftCard]] = []
        self.referral: Referral | None = None

    # What effects need to know.

    def cost_id(self, name: str) -> int:
        return list(self.book.settings.costs).index(name) + 1

    def program_of(self, card: str) -> int:
        found = self.book.find(card)
        return found[1].program if found and isinstance(found[1], LoyaltyCard) else 0

    def uuid(self, *parts: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join((self.session.integration_id, *parts))))

    # The run.

    def go(self) -> "Run":
        candidates = [*self._by_coupon(), *self._by_referral(), *self._by_card(), *self._automatic()]
        candidates.sort(key=lambda candidate: (candidate.campaign.priority, candidate.campaign.id))
        best = self._best(candidates)
        left = self.untouched.copy()
        applied: list[Candidate] = []
        for candidate in candidates:
            trial = Trial(candidate, self, left.copy())
            try:
                self._compete(candidate, applied, best)
                trial.attempt()
            except Refused as refused:
                self._refuse(candidate, refused)
                continue
            left = trial.left
            applied.append(candidate)
            self._accept(trial)
        # "The order of effects in the array means nothing": nobody shall come to rely on one.
        random.Random(self.session.integration_id).shuffle(self.effects)  # noqa: S311 - repeatable, nothing secret
        return self

    def _compete(self, candidate: Candidate, applied: list[Candidate], best: dict[str, int]) -> None:
        """Campaigns of codes that exclude each other. Raises `Refused`."""
        campaign = candidate.campaign
        if campaign.best_of and best.get(campaign.best_of, campaign.id) != campaign.id:
            raise Refused("excluded", campaignExclusionReason="CampaignGaveLowerDiscount")
        rivals = [other for other in applied if other.competes] if candidate.competes else []
        if rivals and not (campaign.combinable and all(rival.campaign.combinable for rival in rivals)):
            raise Refused("excluded", campaignExclusionReason="CampaignIsNotFirst")

    def _best(self, candidates: list[Candidate]) -> dict[str, int]:
        """For each word of `best_of`, the campaign that gives the most when it is alone."""
        given: dict[str, dict[int, Decimal]] = {}
        for candidate in candidates:
            if candidate.campaign.best_of:
                try:
                    trial = Trial(candidate, self, self.untouched.copy()).attempt()
                except Refused:
                    continue
                group = given.setdefault(candidate.campaign.best_of, {})
                group[candidate.campaign.id] = max(trial.given, group.get(candidate.campaign.id, ZERO))
        return {word: max(group, key=lambda id_: group[id_]) for word, group in given.items()}

    def _by_coupon(self) -> Iterator[Candidate]:
        seen = set()
        for entered in self.session.data["couponCodes"]:
            if entered.casefold() in seen:
                continue
            seen.add(entered.casefold())
            found = self.book.find(entered)
            if found is None or not isinstance(found[1], Coupon | GiftCard):
                self._reject("coupon", entered, None, None, Refused("unknown"))
                continue
            code, entry = found
            assert isinstance(entry, Coupon | GiftCard)
            kind: rulebook.Needs = "coupon" if isinstance(entry, Coupon) else "gift_card"
            candidate = Candidate(self.book.campaign[entry.campaign], kind, code, self.coupon_id(code, entry))
            self.coupons.append((code, entry))
            try:
                self._check_coupon(candidate, entry)
            except Refused as refused:
                self._refuse(candidate, refused)
            else:
                yield candidate

    def coupon_id(self, code: str, entry: Coupon | GiftCard) -> int:
        """A number for each code, also for each of a family."""
        if isinstance(entry, GiftCard):
            return 900_000_000 + self.book.gift_cards.index(entry)
        base = (self.book.coupons.index(entry) + 1) * 1_000_000
        return base + (int(code[-entry.family.width :]) if entry.family else 0)

    def _check_coupon(self, candidate: Candidate, entry: Coupon | GiftCard) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if isinstance(entry, Coupon):
            profile = self.cart.profile
            if entry.customer and entry.customer != profile:
                raise Refused("recipient")
            used = self.books.uses[candidate.code] + (entry.used if entry.family else 0)
            if entry.uses is not None and used >= entry.uses:
                raise Refused("used up")
            if entry.uses_per_customer is not None:
                self._check_profile(self.books.uses_by[candidate.code, profile], entry.uses_per_customer)
        self._check_profile_limit(candidate.campaign)

    def _check_campaign(self, campaign: Campaign) -> None:
        if self.evaluable is not None:
            if campaign.id not in self.evaluable:
                raise Refused("excluded", campaignExclusionReason="CampaignNotInEvaluationSet")
        elif not campaign.running(self.now):
            raise Refused("not running")

    def _check_dates(self, entry: Coupon | GiftCard | Referral) -> None:
        if entry.starts and self.now < entry.starts:
            raise Refused("future")
        if entry.ends and self.now >= entry.ends:
            raise Refused("expired")

    def _check_profile(self, used: int, limit: int) -> None:
        if not self.cart.profile:
            raise Refused("profile missing")
        if used >= limit:
            raise Refused("profile used up")

    def _check_profile_limit(self, campaign: Campaign) -> None:
        limit = campaign.limits.redemptions_per_customer
        if limit is not None:
            self._check_profile(self.books.redeemed_by[campaign.id, self.cart.profile], limit)

    def _by_referral(self) -> Iterator[Candidate]:
        entered = self.session.data["referralCode"]
        if not entered:
            return
        found = self.book.find(entered)
        if found is None or not isinstance(found[1], Referral):
            self._reject("referral", entered, None, None, Refused("unknown"))
            return
        code, entry = found
        assert isinstance(entry, Referral)
        self.referral = entry
        candidate = Candidate(self.book.campaign[entry.campaign], "referral", code)
        try:
            self._check_referral(candidate, entry)
        except Refused as refused:
            self._refuse(candidate, refused)
        else:
            yield candidate

    def _check_referral(self, candidate: Candidate, entry: Referral) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if entry.uses is not None and self.books.uses[candidate.code] >= entry.uses:
            raise Refused("used up")
        if self.cart.profile and self.cart.profile == entry.advocate:
            raise Refused("own")
        if entry.friend and entry.friend != self.cart.profile:
            raise Refused("recipient")
        if self.books.referred[self.cart.profile]:
            raise Refused("referred")
        self._check_profile_limit(candidate.campaign)

    def _by_card(self) -> Iterator[Candidate]:
        for entered in self.session.data["loyaltyCards"]:
            found = self.book.find(entered)
            if found is None or not isinstance(found[1], LoyaltyCard):
                continue
            code, card = found
            assert isinstance(card, LoyaltyCard)
            if not card.active or (card.customer and card.customer != self.cart.profile):
                continue
            for id_ in self.book.program[card.program].campaigns:
                candidate = Candidate(self.book.campaign[id_], "loyalty_card", code)
                try:
                    self._check_campaign(candidate.campaign)
                    self._check_profile_limit(candidate.campaign)
                except Refused as refused:
                    self._refuse(candidate, refused)
                else:
                    yield candidate

    def _automatic(self) -> Iterator[Candidate]:
        for campaign in self.book.campaigns:
            if campaign.needs == "nothing":
                candidate = Candidate(campaign, "nothing")
                try:
                    self._check_campaign(campaign)
                    self._check_profile_limit(campaign)
                except Refused as refused:
                    self._refuse(candidate, refused)
                else:
                    yield candidate

    # What comes of it.

    def _accept(self, trial: Trial) -> None:
        candidate, campaign = trial.candidate, trial.candidate.campaign
        if candidate.kind in ("coupon", "gift_card"):
            self._add(candidate, "acceptCoupon", {"value": candidate.code})
        if candidate.kind == "referral":
            self._add(candidate, "acceptReferral", {"value": candidate.code})
        for kind, props in trial.effects:
            self._add(candidate, kind, props)
        if campaign not in self.triggered:
            self.triggered.append(campaign)
        self.grants.campaigns.append(campaign.id)
        if candidate.kind in ("coupon", "gift_card", "referral"):
            self.grants.codes.append((candidate.kind, candidate.code, campaign.id))
        self.grants.spent[campaign.id] = self.grants.spent.get(campaign.id, ZERO) + trial.given
        if trial.balance:
            self.grants.balances[candidate.code] = trial.balance
        if trial.points:
            self.grants.points[candidate.code] = self.grants.points.get(candidate.code, ZERO) + trial.points

    def _refuse(self, candidate: Candidate, refused: Refused) -> None:
        campaign = candidate.campaign
        if candidate.kind in ("coupon", "gift_card"):
            self._reject("coupon", candidate.code, campaign, candidate.coupon_id, refused)
        if candidate.kind == "referral":
            self._reject("referral", candidate.code, campaign, None, refused)
        failure: Json = {
            "campaignID": campaign.id,
            "campaignName": campaign.name,
            "rulesetID": ruleset(campaign),
            "ruleIndex": 0,
            "ruleName": campaign.name,
            "details": refused.reason,
            "evaluationGroupID": 1,
            "evaluationGroupMode": "stackable",
        } | {
            name: refused.props[name] for name in ("conditionIndex", "effectIndex", "details") if name in refused.props
        }
        if candidate.coupon_id is not None:
            failure |= {"couponID": candidate.coupon_id, "couponValue": candidate.code}
        if candidate.kind == "referral":
            failure["referralValue"] = candidate.code
        self.failures.append(failure)

    def _reject(self, kind: str, code: str, campaign: Campaign | None, coupon_id: int | None, refused: Refused) -> None:
        coupon_word, referral_word = REASONS[refused.reason]
        candidate = None if campaign is None else Candidate(campaign, "coupon", code, coupon_id)
        effect = "rejectCoupon" if kind == "coupon" else "rejectReferral"
        word = coupon_word if kind == "coupon" else referral_word
        self._add(candidate, effect, {"value": code, "rejectionReason": word} | refused.props)

    def _add(self, candidate: Candidate | None, kind: str, props: Json) -> None:
        """An effect in its envelope. Effects of no campaign carry -1."""
        if candidate is None:
            envelope: Json = {"campaignId": -1, "rulesetId": -1, "ruleIndex": 0, "ruleName": ""}
        else:
            campaign = candidate.campaign
            envelope = {
                "campaignId": campaign.id,
                "rulesetId": ruleset(campaign),
                "ruleIndex": 0,
                "ruleName": campaign.name,
                "evaluationGroupID": 1,
                "evaluationGroupMode": "stackable",
            }
            if candidate.coupon_id is not None:
                envelope["triggeredByCoupon"] = candidate.coupon_id
        self.effects.append(envelope | {"effectType": kind, "props": props})
