"""A small Voucherify project for the tests of stacking: it knows stacking rules, but no orders.

Made from https://docs.voucherify.io/orchestrate/stacking-rules (2026-08). Where the documents leave something open, a
field selects the behaviour (`spoils`, `tells_all`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mapper.adapter import Conversation, EngineReply, EngineRequest
from tests.adapters.voucherify.talk import (
    applies,
    body_of,
    discount,
    fails,
    failure,
    redeemed,
    redemption,
    reply,
    share,
)

TIER_OBJECT = "promotion_tier"


@dataclass
class Project:
    mode: str = "PARTIAL"
    bad: Mapping[str, str] = field(default_factory=dict)
    """The redeemables that do not apply, with the engine's key."""
    exclusive: frozenset[str] = frozenset()
    """The redeemables that never stack: the first of them applies, all others are skipped."""
    most: int = 30
    """`redeemables_limit`"""
    most_applied: int = 5
    """`applicable_redeemables_limit`"""
    offers: tuple[str, ...] = ()
    """The promotions that a qualification names."""
    worth: Mapping[str, int] = field(default_factory=dict)
    """The discount of each redeemable, in minor units; 100 if absent."""
    spoils: bool = True
    """In mode ALL, a skipped redeemable makes the answer invalid, as a bad one does."""
    tells_all: bool = False
    """In mode ALL, an answer lists the redeemables after the first bad one as skipped; else it omits them."""
    asked: list[EngineRequest] = field(default_factory=list)
    turns: int = 0
    """The number of round trips: concurrent requests count as one."""

    def hold(self, conversation: Conversation[Any]) -> Any:
        """Return the result of the conversation; `asked` keeps its requests."""
        try:
            asked: EngineRequest | tuple[EngineRequest, ...] = next(conversation)
            while True:
                at_once = asked if isinstance(asked, tuple) else (asked,)
                self.asked += at_once
                self.turns += 1
                answers = tuple(map(self.answer, at_once))
                sent: Any = answers if isinstance(asked, tuple) else answers[0]
                asked = conversation.send(sent)
        except StopIteration as end:
            return end.value

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.asked]

    def bodies(self, path: str) -> list[list[str]]:
        return [names(request) for request in self.asked if request.path == path]

    def answer(self, request: EngineRequest) -> EngineReply:
        if request.path == "/v1/qualifications":
            offered = [{"id": name, "object": TIER_OBJECT} for name in self.offers]
            return reply({"redeemables": {"data": offered}, "stacking_rules": self.rules})
        if request.path == "/v1/validations":
            return self.validated(request)
        if request.path == "/v1/redemptions":
            return self.redeemed(request)
        return failure("not_found", 404)

    @property
    def rules(self) -> dict[str, Any]:
        return {
            "redeemables_limit": self.most,
            "applicable_redeemables_limit": self.most_applied,
            "redeemables_application_mode": self.mode,
        }

    def validated(self, request: EngineRequest) -> EngineReply:
        asked = names(request)
        if len(asked) > self.most:
            return failure("invalid_redeemables")
        told, is_valid = self._judge(asked)
        fine = [one for one in told if one["status"] == "APPLICABLE"]
        body: dict[str, Any] = {"valid": is_valid, "redeemables": told, "stacking_rules": self.rules}
        if is_valid:
            total = sum(one["order"]["total_applied_discount_amount"] for one in fine)
            body["order"] = {"total_applied_discount_amount": total}
        return reply(body)

    def redeemed(self, request: EngineRequest) -> EngineReply:
        if len(names(request)) > self.most:
            return failure("invalid_redeemables")
        told, is_valid = self._judge(names(request))
        fine = [one for one in told if one["status"] == "APPLICABLE"]
        first_bad = next((one for one in told if one not in fine), None)
        if not is_valid and first_bad is not None:
            key = (
                "no_applicable_redeemables"
                if self.mode == "PARTIAL"
                else first_bad["result"].get("error", {}).get("key")
            )
            return failure(key or "exclusion_rules_not_met", resource_type="redemption", resource_id="rf_1")
        done = [self._redemption(one, number) for number, one in enumerate(fine, 1)]
        return reply(redeemed(*done, inapplicable_redeemables=[one for one in told if one not in fine]))

    def _redemption(self, one: dict[str, Any], number: int) -> dict[str, Any]:
        off = one["order"]["total_applied_discount_amount"]
        if one["object"] == "voucher":
            return redemption(one["id"], off, number)
        return redemption(one["id"], off, number, voucher=None, promotion_tier={"id": one["id"]})

    def _judge(self, asked: list[str]) -> tuple[list[dict[str, Any]], bool]:
        alone = bool(self.exclusive & {name for name in asked if name not in self.bad})
        told: list[dict[str, Any]] = []
        spoilt = False
        for name in asked:
            if spoilt and self.mode == "ALL" and not self.tells_all:
                continue
            one = self._one(name, told, alone=alone, spoilt=spoilt and self.mode == "ALL")
            told.append(one)
            spoilt = spoilt or one["status"] == "INAPPLICABLE" or (one["status"] == "SKIPPED" and self.spoils)
        some = any(one["status"] == "APPLICABLE" for one in told)
        return told, some if self.mode == "PARTIAL" else not spoilt

    def _one(self, name: str, told: list[dict[str, Any]], *, alone: bool, spoilt: bool) -> dict[str, Any]:
        kind = TIER_OBJECT if name.startswith("promo_") else "voucher"
        applied = sum(one["status"] == "APPLICABLE" for one in told)
        exclusives = sum(one["status"] == "APPLICABLE" and one["id"] in self.exclusive for one in told)
        if spoilt:
            return fails(name, "preceding_validation_failed", kind, "SKIPPED")
        if name in self.bad:
            return fails(name, self.bad[name], kind)
        if alone and name not in self.exclusive:
            return fails(name, "exclusion_rules_not_met", kind, "SKIPPED")
        if name in self.exclusive and exclusives:
            return fails(name, "applicable_exclusive_redeemables_limit_exceeded", kind, "SKIPPED")
        if applied >= self.most_applied:
            return fails(name, "applicable_redeemables_limit_exceeded", kind, "SKIPPED")
        return applies(name, share(self.worth.get(name, 100)), kind, **discount("APPLY_TO_ORDER"))


def names(request: EngineRequest) -> list[str]:
    return [one["id"] for one in body_of(request)["redeemables"]]
