"""The redeemables of a request: the vouchers whose codes the shopper entered, and promotion tiers."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from adapters.voucherify.options import MAX_REDEEMABLES, TIER_ID, Settings
from adapters.voucherify.reading import mapping, objects, text
from mapper.adapter import Checkout, InvalidRequest, Reason, Rejection

MAX_CODE = 100

# Voucherify accepts the internal id of a voucher in place of its code.
# https://docs.voucherify.io/guides/manage-stackable-discounts (2026-08)
_INTERNAL_ID = re.compile(r"v_[0-9A-Za-z]{6,}", re.ASCII)


class Redeemable(msgspec.Struct, frozen=True, eq=False):
    """https://docs.voucherify.io/guides/manage-stackable-discounts; `order` stands for a whole stored order.

    One that is requested is made once, in `arrange`, and compared by identity.
    """

    object: Literal["voucher", "promotion_tier", "order"]
    id: str
    position: int = 0
    """The index in the request. Voucherify applies redeemables in this order."""
    payment: dict[str, Any] = {}
    """The credits to take from a gift card, or the reward of a loyalty card, as Voucherify's API has them."""

    @property
    def code(self) -> str:
        return self.id if self.object == "voucher" else ""

    def body(self) -> dict[str, Any]:
        return {"object": self.object, "id": self.id, **self.payment}


def vouchers(
    checkout: Checkout, settings: Settings, leave_out: frozenset[str]
) -> tuple[list[Redeemable], list[Rejection]]:
    """The vouchers to send, and the codes that are rejected without being sent.

    Where the project ignores case, of codes that differ in case alone only the first is sent: Voucherify refuses a
    request with duplicates.
    """
    vouchers: list[Redeemable] = []
    rejected: list[Rejection] = []
    seen: set[str] = set()
    credits_by_code = gift_credits(checkout, settings)
    for code in checkout.promotions.codes:
        key = settings.fold_case(code)
        if key in seen or code in leave_out:
            continue
        seen.add(key)
        payment = _payment(code, checkout, settings, credits_by_code)
        if payment is None:
            # A loyalty card without a reward may fail the whole request.
            rejected.append(Rejection(code, Reason.REWARD_REQUIRED, "missing_reward"))
        elif len(vouchers) == MAX_REDEEMABLES:
            rejected.append(Rejection(code, Reason.TOO_MANY_CODES, ""))
        else:
            vouchers.append(Redeemable("voucher", code, payment=payment))
    return vouchers, rejected


def arrange(vouchers: Sequence[Redeemable], tiers: Iterable[str], settings: Settings) -> list[Redeemable]:
    """Vouchers and promotion tiers in the order in which Voucherify shall apply them."""
    promotions = [Redeemable("promotion_tier", tier) for tier in dict.fromkeys(tiers)]
    order = [*promotions, *vouchers] if settings.promotions_first else [*vouchers, *promotions]
    return [Redeemable(one.object, one.id, position, one.payment) for position, one in enumerate(order)]


# --- Finding a redeemable by a name in a reply -----------------------------------------------------------------------


def find(redeemables: Sequence[Redeemable], names: Iterable[object], kind: str = "") -> Redeemable | None:
    """The redeemable with one of these ids: the same spelling first, else the only one that differs in case alone."""
    ids = {name for name in names if isinstance(name, str) and name}
    for redeemable in redeemables:
        if redeemable.id in ids and kind in ("", redeemable.object):
            return redeemable
    for fold in _FOLDS:
        folded = {fold(name) for name in ids}
        matches = [redeemable for redeemable in redeemables if fold(redeemable.id) in folded]
        if len(matches) == 1:
            return matches[0]
    return None


def may_be_internal_id(name: object) -> bool:
    """Whether this may be the internal id of a voucher, which finds the voucher but is not its code."""
    return isinstance(name, str) and bool(_INTERNAL_ID.fullmatch(name))


def _dotless(code: str) -> str:
    """The code in lower case, İ, I and i as one letter: `İNDİRİM` may come back as `i̇ndi̇ri̇m` or `INDIRIM`."""
    return unicodedata.normalize("NFKD", code).casefold().replace("\u0307", "").replace("\u0131", "i")


_FOLDS: tuple[Callable[[str], str], ...] = (str.casefold, _dotless)


# --- What validate showed the shopper --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What validate answered, as the body's discounts and notices still say."""

    tiers: tuple[str, ...]
    """The promotion tiers that applied, in the order in which they were applied."""
    rejected: frozenset[str]
    """The codes that did not apply."""


def shown(order: Checkout, settings: Settings) -> Shown:
    """Reads what validate wrote into the body.

    The body came through the merchant's front end, so it is not trusted to add anything: only tiers that the settings
    allow are taken, and a code with a discount in the order is never left out.
    """
    discounts, notices = _discount_metas(order), _notice_payloads(order)
    positions: dict[str, int] = {}
    for meta in (*discounts, *notices):
        if meta.get("object") == "promotion_tier":
            tier, position = text(meta.get("redeemable")), meta.get("position")
            if TIER_ID.fullmatch(tier):
                positions.setdefault(tier, position if isinstance(position, int) else MAX_REDEEMABLES)
    allowed = {"off": set[str](), "listed": positions.keys() & set(settings.tiers), "qualify": set(positions)}
    entered = [text(entry.get("code")) for entry in objects(_notes(order).get("rejected"))]
    rejected = {order.promotions.codes_as_entered.get(code, code) for code in entered}
    return Shown(
        tiers=tuple(sorted(allowed[settings.promotions], key=lambda tier: (positions[tier], tier))),
        rejected=frozenset(rejected - {text(meta.get("code")) for meta in discounts}),
    )


def applied_before(checkout: Checkout) -> list[str]:
    """The codes that applied at the validate before, by the discounts and notices in the body. They may be locked."""
    entries = [*_discount_metas(checkout), *_notice_payloads(checkout)]
    found = [text(meta.get("code")) for meta in entries if meta.get("object") == "voucher"]
    return [code for code in dict.fromkeys(found) if 0 < len(code) <= MAX_CODE][:MAX_REDEEMABLES]


def _notes(checkout: Checkout) -> dict[str, Any]:
    return mapping(checkout.promotions.meta.get("mapper"))


def _discount_metas(checkout: Checkout) -> list[dict[str, Any]]:
    return [meta for _, entry in checkout.discount_entries() if isinstance(meta := entry.get("meta"), dict)]


def _notice_payloads(checkout: Checkout) -> list[dict[str, Any]]:
    notices = objects(_notes(checkout).get("notices"))
    return [payload for notice in notices if isinstance(payload := notice.get("payload"), dict)]


# --- Gift cards and loyalty cards ------------------------------------------------------------------------------------


def gift_credits(checkout: Checkout, settings: Settings) -> dict[str, int]:
    """The amount to take from each gift card, in the engine's units by code (`fold_case`), where the body names one."""
    result: dict[str, int] = {}
    for path in reversed(checkout.promotion_paths if checkout.promotions.meta else ()):
        parent = "".join(f"/{key}" for key in path) + f"/meta{settings.gift_credits}"
        amounts = checkout.at(parent)
        if not isinstance(amounts, dict | None):
            raise InvalidRequest("The gift credits are not an object of code and amount.", parent)
        for code in (code for code, amount in (amounts or {}).items() if amount is not None):
            pointer = f"{parent}/{code.replace('~', '~0').replace('/', '~1')}"
            minor = checkout.amount_at(pointer)
            if not minor:
                raise InvalidRequest("The amount to spend from a gift card is not above zero.", pointer)
            sent = checkout.promotions.codes_as_entered.get(code, code)
            result[settings.fold_case(sent)] = settings.to_engine(minor, checkout.digits)
    return result


def _payment(
    code: str, checkout: Checkout, settings: Settings, credits_by_code: Mapping[str, int]
) -> dict[str, Any] | None:
    """`Redeemable.payment` of a code; None for a loyalty card without a reward."""
    key = settings.fold_case(code)
    if key == settings.fold_case(checkout.promotions.loyalty_card):
        chosen = mapping(checkout.promotions.meta.get("reward"))
        reward: dict[str, Any] = {"id": text(chosen.get("id")) or settings.reward_id}
        points = chosen.get("points")
        if isinstance(points, int) and not isinstance(points, bool) and points > 0:
            reward["points"] = points
        return {"reward": reward} if reward["id"] else None
    return {"gift": {"credits": credits_by_code[key]}} if key in credits_by_code else {}
