"""The rule engine: selects the campaigns that apply to a session, and accepts or rejects each code."""

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from adapters.talon_one.sandbox.cart import ZERO
from adapters.talon_one.sandbox.context import Context
from adapters.talon_one.sandbox.effects import attempt
from adapters.talon_one.sandbox.trial import REASONS, Candidate, Rejected, Trial
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import Campaign, Coupon, GiftCard, LoyaltyCard, Referral

Json = dict[str, Any]


def ruleset(campaign: Campaign) -> int:
    return 1000 + campaign.id


class Run:
    """One run of the rule engine over a session. It stores nothing; the caller records `context.grants` at close."""

    def __init__(self, context: Context) -> None:
        self.context = context
        context.grants.profile = context.cart.profile
        self.effects: list[Json] = []
        self.failures: list[Json] = []
        self.triggered: list[Campaign] = []
        self.coupons: list[tuple[str, Coupon | GiftCard]] = []
        self.referral: Referral | None = None

    def execute(self) -> "Run":
        candidates = [*self._by_coupon(), *self._by_referral(), *self._by_card(), *self._automatic()]
        candidates.sort(key=lambda candidate: (candidate.campaign.priority, candidate.campaign.id))
        best = self._best(candidates)
        remaining = self.context.at_list_price.copy()
        applied: list[Candidate] = []
        for candidate in candidates:
            trial = Trial(candidate, self.context, remaining.copy())
            try:
                self._check_exclusion(candidate, applied, best)
                attempt(trial)
            except Rejected as rejected:
                self._reject_candidate(candidate, rejected)
                continue
            remaining = trial.remaining
            applied.append(candidate)
            self._accept(trial)
        # The order of effects has no meaning in the API, so it is shuffled.
        random.Random(self.context.session.integration_id).shuffle(self.effects)  # noqa: S311 - repeatable, nothing secret
        return self

    def _check_exclusion(self, candidate: Candidate, applied: list[Candidate], best: dict[str, int]) -> None:
        """Raises `Rejected` where another campaign excludes the candidate's."""
        campaign = candidate.campaign
        if campaign.best_of and best.get(campaign.best_of, campaign.id) != campaign.id:
            raise Rejected("excluded", campaignExclusionReason="CampaignGaveLowerDiscount")
        rivals = [other for other in applied if other.competes] if candidate.competes else []
        if rivals and not (campaign.combinable and all(rival.campaign.combinable for rival in rivals)):
            raise Rejected("excluded", campaignExclusionReason="CampaignIsNotFirst")

    def _best(self, candidates: list[Candidate]) -> dict[str, int]:
        """For each group (`best_of`), the id of the campaign that grants the most on its own."""
        granted: dict[str, dict[int, Decimal]] = {}
        for candidate in candidates:
            if candidate.campaign.best_of:
                try:
                    trial = attempt(Trial(candidate, self.context, self.context.at_list_price.copy()))
                except Rejected:
                    continue
                group = granted.setdefault(candidate.campaign.best_of, {})
                group[candidate.campaign.id] = max(trial.granted, group.get(candidate.campaign.id, ZERO))
        return {word: max(group, key=lambda id_: group[id_]) for word, group in granted.items()}

    def _by_coupon(self) -> Iterator[Candidate]:
        by_case = self.context.options.case_sensitive_codes
        seen = set()
        for entered in self.context.session.data["couponCodes"]:
            key = entered if by_case else entered.casefold()
            if key in seen:
                continue
            seen.add(key)
            found = self.context.book.find(entered, by_case=by_case)
            if found is None or not isinstance(found[1], Coupon | GiftCard):
                self._reject("coupon", entered, None, None, Rejected("unknown"))
                continue
            code, entry = found
            assert isinstance(entry, Coupon | GiftCard)
            kind: rulebook.Needs = "coupon" if isinstance(entry, Coupon) else "gift_card"
            candidate = Candidate(self.context.book.campaign[entry.campaign], kind, code, self.coupon_id(code, entry))
            self.coupons.append((code, entry))
            try:
                self._check_coupon(candidate, entry)
            except Rejected as rejected:
                self._reject_candidate(candidate, rejected)
            else:
                yield candidate

    def coupon_id(self, code: str, entry: Coupon | GiftCard) -> int:
        """The id of a coupon. Each code of a family of coupons has its own."""
        if isinstance(entry, GiftCard):
            return 900_000_000 + self.context.book.gift_cards.index(entry)
        base = (self.context.book.coupons.index(entry) + 1) * 1_000_000
        return base + (int(code[-entry.family.width :]) if entry.family else 0)

    def _check_coupon(self, candidate: Candidate, entry: Coupon | GiftCard) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if isinstance(entry, GiftCard) and self.context.books.balances[candidate.code] <= 0:
            # Like a coupon at its limit. In a real account a rule of the merchant decides the reason.
            raise Rejected("used up")
        if isinstance(entry, Coupon):
            profile = self.context.cart.profile
            if entry.customer and entry.customer != profile:
                raise Rejected("recipient")
            used = self.context.books.uses[candidate.code] + (entry.used if entry.family else 0)
            if entry.uses is not None and used >= entry.uses:
                raise Rejected("used up")
            if entry.uses_per_customer is not None:
                self._check_profile(self.context.books.uses_by[candidate.code, profile], entry.uses_per_customer)
        self._check_profile_limit(candidate.campaign)

    def _check_campaign(self, campaign: Campaign) -> None:
        if self.context.evaluable is not None:
            if campaign.id not in self.context.evaluable:
                raise Rejected("excluded", campaignExclusionReason="CampaignNotInEvaluationSet")
        elif not campaign.running(self.context.now):
            raise Rejected("not running")

    def _check_dates(self, entry: Coupon | GiftCard | Referral) -> None:
        if entry.starts and self.context.now < entry.starts:
            raise Rejected("future")
        if entry.ends and self.context.now >= entry.ends:
            raise Rejected("expired")

    def _check_profile(self, used: int, limit: int) -> None:
        if not self.context.cart.profile:
            raise Rejected("profile missing")
        if used >= limit:
            raise Rejected("profile used up")

    def _check_profile_limit(self, campaign: Campaign) -> None:
        limit = campaign.limits.redemptions_per_customer
        if limit is not None:
            self._check_profile(self.context.books.redeemed_by[campaign.id, self.context.cart.profile], limit)

    def _by_referral(self) -> Iterator[Candidate]:
        entered = self.context.session.data["referralCode"]
        if not entered:
            return
        found = self.context.book.find(entered, by_case=self.context.options.case_sensitive_codes)
        if found is None or not isinstance(found[1], Referral):
            self._reject("referral", entered, None, None, Rejected("unknown"))
            return
        code, entry = found
        assert isinstance(entry, Referral)
        self.referral = entry
        candidate = Candidate(self.context.book.campaign[entry.campaign], "referral", code)
        try:
            self._check_referral(candidate, entry)
        except Rejected as rejected:
            self._reject_candidate(candidate, rejected)
        else:
            yield candidate

    def _check_referral(self, candidate: Candidate, entry: Referral) -> None:
        self._check_campaign(candidate.campaign)
        self._check_dates(entry)
        if entry.uses is not None and self.context.books.uses[candidate.code] >= entry.uses:
            raise Rejected("used up")
        if self.context.cart.profile and self.context.cart.profile == entry.advocate:
            raise Rejected("own")
        if entry.friend and entry.friend != self.context.cart.profile:
            raise Rejected("recipient")
        if self.context.books.referred[self.context.cart.profile]:
            raise Rejected("referred")
        self._check_profile_limit(candidate.campaign)

    def _by_card(self) -> Iterator[Candidate]:
        for entered in self.context.session.data["loyaltyCards"]:
            found = self.context.book.find(entered)
            if found is None or not isinstance(found[1], LoyaltyCard):
                continue
            code, card = found
            assert isinstance(card, LoyaltyCard)
            if not card.active or (card.customer and card.customer != self.context.cart.profile):
                continue
            for id_ in self.context.book.program[card.program].campaigns:
                candidate = Candidate(self.context.book.campaign[id_], "loyalty_card", code)
                try:
                    self._check_campaign(candidate.campaign)
                    self._check_profile_limit(candidate.campaign)
                except Rejected as rejected:
                    self._reject_candidate(candidate, rejected)
                else:
                    yield candidate

    def _automatic(self) -> Iterator[Candidate]:
        for campaign in self.context.book.campaigns:
            if campaign.needs == "nothing":
                candidate = Candidate(campaign, "nothing")
                try:
                    self._check_campaign(campaign)
                    self._check_profile_limit(campaign)
                except Rejected as rejected:
                    self._reject_candidate(candidate, rejected)
                else:
                    yield candidate

    # Results

    def _accept(self, trial: Trial) -> None:
        candidate, campaign, grants = trial.candidate, trial.candidate.campaign, self.context.grants
        if candidate.kind in ("coupon", "gift_card"):
            self._add(candidate, "acceptCoupon", {"value": candidate.code})
        if candidate.kind == "referral":
            self._add(candidate, "acceptReferral", {"value": candidate.code})
        for kind, props in trial.effects:
            self._add(candidate, kind, props)
        if campaign not in self.triggered:
            self.triggered.append(campaign)
        grants.campaigns.append(campaign.id)
        if candidate.kind in ("coupon", "gift_card", "referral"):
            grants.codes.append((candidate.kind, candidate.code, campaign.id))
        grants.spent[campaign.id] = grants.spent.get(campaign.id, ZERO) + trial.granted
        grants.giveaways += trial.giveaways
        if trial.balance:
            grants.balances[candidate.code] = trial.balance
        if trial.points:
            grants.points[candidate.code] = grants.points.get(candidate.code, ZERO) + trial.points

    def _reject_candidate(self, candidate: Candidate, rejected: Rejected) -> None:
        campaign = candidate.campaign
        if candidate.kind in ("coupon", "gift_card"):
            self._reject("coupon", candidate.code, campaign, candidate.coupon_id, rejected)
        if candidate.kind == "referral":
            self._reject("referral", candidate.code, campaign, None, rejected)
        failure: Json = {
            "campaignID": campaign.id,
            "campaignName": campaign.name,
            "rulesetID": ruleset(campaign),
            "ruleIndex": 0,
            "ruleName": campaign.name,
            "details": rejected.reason,
            "evaluationGroupID": 1,
            "evaluationGroupMode": "stackable",
        } | {
            name: rejected.props[name]
            for name in ("conditionIndex", "effectIndex", "details")
            if name in rejected.props
        }
        if candidate.coupon_id is not None:
            failure |= {"couponID": candidate.coupon_id, "couponValue": candidate.code}
        if candidate.kind == "referral":
            failure["referralValue"] = candidate.code
        self.failures.append(failure)

    def _reject(
        self, kind: str, code: str, campaign: Campaign | None, coupon_id: int | None, rejected: Rejected
    ) -> None:
        coupon_word, referral_word = REASONS[rejected.reason]
        candidate = None if campaign is None else Candidate(campaign, "coupon", code, coupon_id)
        effect = "rejectCoupon" if kind == "coupon" else "rejectReferral"
        word = coupon_word if kind == "coupon" else referral_word
        self._add(candidate, effect, {"value": code, "rejectionReason": word} | rejected.props)

    def _add(self, candidate: Candidate | None, kind: str, props: Json) -> None:
        """Adds an effect with its ids; -1 where it belongs to no campaign."""
        if candidate is None:
            ids: Json = {"campaignId": -1, "rulesetId": -1, "ruleIndex": 0, "ruleName": ""}
        else:
            campaign = candidate.campaign
            ids = {
                "campaignId": campaign.id,
                "rulesetId": ruleset(campaign),
                "ruleIndex": 0,
                "ruleName": campaign.name,
                "evaluationGroupID": 1,
                "evaluationGroupMode": "stackable",
            }
            if candidate.coupon_id is not None:
                ids["triggeredByCoupon"] = candidate.coupon_id
        self.effects.append(ids | {"effectType": kind, "props": props})
