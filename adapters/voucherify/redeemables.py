"""What Voucherify is asked to apply: the codes that a shopper typed in, and promotions that need none."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.voucherify.options import MAX_REDEEMABLES, TIER_ID, Settings
from adapters.voucherify.reading import mapping, objects, text
from mapper.adapter import Checkout, InvalidRequest, Reason, Rejection

MAX_CODE = 100

# Voucherify takes the internal id of a voucher in place of its code.
# https://docs.voucherify.io/guides/manage-stackable-discounts (2026-08)
_INTERNAL_ID = re.compile(r"v_[0-9A-Za-z]{6,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Redeemable:
    """Something Voucherify is asked to apply."""

    object: Literal["voucher", "promotion_tier", "order"]
    id: str
    position: int = 0
    """Its place in the request: the place decides what is applied first."""
    spend: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """How much of a gift card, or which reward of a loyalty card."""

    @property
    def code(self) -> str:
        return self.id if self.object == "voucher" else ""

    def body(self) -> dict[str, Any]:
        return {"object": self.object, "id": self.id, **self.spend}


def codes(
    checkout: Checkout, settings: Settings, leave_out: frozenset[str]
) -> tuple[list[Redeemable], list[Rejection]]:
    """The codes to send, and those that need no engine to be refused.

    Where the project ignores case, codes that differ in case alone are one: else Voucherify refuses the whole call.
    """
    asked: list[Redeemable] = []
    refused: list[Rejection] = []
    seen: set[str] = set()
    credits_by_code = gift_credits(checkout, settings)
    for code in checkout.promotions.codes:
        same = code.casefold() if settings.ignores_case else code
        if same in seen or code in leave_out:
            continue
        seen.add(same)
        spend = _spend(code, checkout, settings, credits_by_code)
        if spend is None:
            # Sent without a reward, a loyalty card may cost the shopper the answer about all other codes.
            refused.append(Rejection(code, Reason.REWARD_REQUIRED, "missing_reward"))
        elif len(asked) == MAX_REDEEMABLES:
            refused.append(Rejection(code, Reason.TOO_MANY_CODES, ""))
        else:
            asked.append(Redeemable("voucher", code, spend=spend))
    return asked, refused


def arrange(coded: Sequence[Redeemable], tiers: Iterable[str], settings: Settings) -> list[Redeemable]:
    """Codes and promotions in the order in which they shall be applied."""
    chosen = [Redeemable("promotion_tier", tier) for tier in dict.fromkeys(tiers)]
    order = [*chosen, *coded] if settings.promotions_first else [*coded, *chosen]
    return [Redeemable(one.object, one.id, position, one.spend) for position, one in enumerate(order)]


# --- Which one an answer means ---------------------------------------------------------------------------------------


def named(asked: Sequence[Redeemable], names: Iterable[object], kind: str = "") -> Redeemable | None:
    """The redeemable that one of these names means: exactly, else in another case, where only one can be meant."""
    called = {name for name in names if isinstance(name, str) and name}
    for one in asked:
        if one.id in called and kind in ("", one.object):
            return one
    for compare in _COMPARISONS:
        found = [one for one in asked if compare(one.id) in {compare(name) for name in called}]
        if len(found) == 1:
            return found[0]
    return None


def looks_internal(name: object) -> bool:
    """Whether this may be the internal id of a voucher, by which Voucherify finds it, and which no shopper knows."""
    return isinstance(name, str) and bool(_INTERNAL_ID.fullmatch(name))


def _dotless(code: str) -> str:
    """Small letters, whatever was made of the dots on İ and I: `İNDİRİM` comes back as `i̇ndi̇ri̇m` or `INDIRIM`."""
    return unicodedata.normalize("NFKD", code).casefold().replace("\u0307", "").replace("\u0131", "i")


_COMPARISONS: tuple[Callable[[str], str], ...] = (str.casefold, _dotless)


# --- What the shopper was shown --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What the body says the shopper was shown at validate: noted by us in the discounts and in the notices."""

    tiers: tuple[str, ...]
    refused: frozenset[str]
    """Codes that were refused then, and so earned nothing."""


def shown(order: Checkout, settings: Settings) -> Shown:
    """Reads our own notes back. They travelled through the merchant's front end, so they may only narrow.

    A code whose discount stands in the order is redeemed whatever the notes say, and only promotions are taken that
    validate would have offered.
    """
    discounts, notices = _discount_metas(order), _notice_payloads(order)
    found: dict[str, int] = {}
    for meta in (*discounts, *notices):
        if meta.get("object") == "promotion_tier":
            tier, position = text(meta.get("redeemable")), meta.get("position")
            if TIER_ID.fullmatch(tier):
                found.setdefault(tier, position if isinstance(position, int) else MAX_REDEEMABLES)
    allowed = {"off": set[str](), "listed": found.keys() & set(settings.tiers), "qualify": set(found)}
    entered = [text(entry.get("code")) for entry in objects(_notes(order).get("rejected"))]
    refused = {order.promotions.codes_as_entered.get(code, code) for code in entered}
    return Shown(
        tiers=tuple(sorted(allowed[settings.promotions], key=lambda tier: (found[tier], tier))),
        refused=frozenset(refused - {text(meta.get("code")) for meta in discounts}),
    )


def applied_before(checkout: Checkout) -> list[str]:
    """The codes that an earlier answer of ours, which this body brings along, has applied (and so perhaps locked)."""
    entries = [*_discount_metas(checkout), *_notice_payloads(checkout)]
    found = [text(meta.get("code")) for meta in entries if meta.get("object") == "voucher"]
    return [code for code in dict.fromkeys(found) if 0 < len(code) <= MAX_CODE][:MAX_REDEEMABLES]


def _notes(checkout: Checkout) -> dict[str, Any]:
    return mapping(checkout.promotions.meta.get("mapper"))


def _discount_metas(checkout: Checkout) -> list[dict[str, Any]]:
    return [meta for _, entry in checkout.applied() if isinstance(meta := entry.get("meta"), dict)]


def _notice_payloads(checkout: Checkout) -> list[dict[str, Any]]:
    notices = objects(_notes(checkout).get("notices"))
    return [payload for notice in notices if isinstance(payload := notice.get("payload"), dict)]


# --- Cards -----------------------------------------------------------------------------------------------------------


def gift_credits(checkout: Checkout, settings: Settings) -> dict[str, int]:
    """How much of which gift card to spend, in the engine's units, where the shopper chose."""
    here = "".join(f"/{key}" for key in checkout.promotions_at) + f"/meta{settings.gift_credits}"
    chosen = checkout.at(here) if checkout.promotions.meta else None
    if chosen is None:
        return {}
    if not isinstance(chosen, dict):
        raise InvalidRequest("The gift credits are not an object of code and amount.", here)
    result: dict[str, int] = {}
    for code in chosen:
        pointer = f"{here}/{code.replace('~', '~0').replace('/', '~1')}"
        minor = checkout.amount_at(pointer)
        if not minor:
            raise InvalidRequest("The amount to spend from a gift card is not above zero.", pointer)
        result[checkout.promotions.codes_as_entered.get(code, code)] = settings.to_engine(minor, checkout.digits)
    return result


def _spend(
    code: str, checkout: Checkout, settings: Settings, credits_by_code: Mapping[str, int]
) -> dict[str, Any] | None:
    """What a card needs beside its code; None where a loyalty card lacks its reward."""
    if code.casefold() == checkout.promotions.loyalty_card.casefold():
        chosen = mapping(checkout.promotions.meta.get("reward"))
        reward: dict[str, Any] = {"id": text(chosen.get("id")) or settings.reward_id}
        points = chosen.get("points")
        if isinstance(points, int) and not isinstance(points, bool) and points > 0:
            reward["points"] = points
        return {"reward": reward} if reward["id"] else None
    return {"gift": {"credits": credits_by_code[code]}} if code in credits_by_code else {}
