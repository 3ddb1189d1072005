"""The adapter's options. All problems are reported at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mapper import adapter
from mapper.adapter import Account, EngineRejected, Misconfigured, Option

OPTIONS = (
    Option("APP_ID", "the application id of the project's server-side keys", None, secret=True, kind="secret"),
    Option("APP_TOKEN", "the application token that belongs to it", None, secret=True, kind="secret"),
    Option("BASE_URL", "the cluster, such as `https://us1.api.voucherify.io`", "https://api.voucherify.io", kind="url"),
    Option(
        "PROMOTIONS",
        "promotions without a code: `off`, `qualify`, or ids of promotion tiers (`promo_…`), comma-separated",
        "off",
    ),
    Option(
        "PROMOTIONS_ORDER",
        "`codes_first` or `promotions_first`: those that are applied first may exclude the others",
        "codes_first",
        kind="choice",
        choices=("codes_first", "promotions_first"),
    ),
    Option(
        "EXPONENT",
        "the decimal places of amounts in the Voucherify project, for every currency",
        "2",
        kind="int",
        choices=("0", "4"),
    ),
    Option(
        "CODE_CASE",
        "whether case distinguishes codes, as in the project: `sensitive`, or `insensitive`",
        "insensitive",
        kind="choice",
        choices=("insensitive", "sensitive"),
    ),
    Option("ITEM_ID", "the id to send as the `source_id` of an item: `sku`, `variant_id` or `product_id`", "sku"),
    Option("CUSTOMER_ID_PATH", "a pointer to the customer's id", "/customer/id", kind="pointer"),
    Option(
        "SHIPPING_PATH",
        "a pointer to the checkout's shipping price, for free shipping",
        "/shipping_rate/price",
        kind="pointer",
    ),
    Option(
        "SESSION_LOCK_TTL",
        "seconds for which validate locks the codes for this checkout; `0`: no lock. A code that leaves the cart is"
        " unlocked if the checkout has our last answer in it, else when the lock expires",
        "0",
        kind="int",
        choices=("0", "604800"),
    ),
    Option(
        "GIFT_CREDITS",
        "a pointer within `promotions.meta` to the amounts to take from gift cards, by code",
        "/gift_credits",
        kind="pointer",
    ),
    Option("REWARD_ID", "the reward for loyalty cards, where `promotions.meta.reward` names none"),
    Option(
        "ORDER_METADATA",
        "metadata of the order to send: `name=/json/pointer`; no other is sent",
        kind="map",
    ),
    Option("ITEM_METADATA", "the same for each line, with pointers within the line", kind="map"),
    Option("CUSTOMER_METADATA", "the same for the customer", kind="map"),
    Option("REDEMPTION_METADATA", "the same for validations and redemptions", kind="map"),
    Option("CHANNEL", "the label of our calls in Voucherify's audit log", "promotions-mapper"),
)

MAX_REDEEMABLES = 30
TIER_ID = re.compile(r"promo_[0-9A-Za-z]{1,64}", re.ASCII)

# What these options may be, beyond their kinds.
_PATTERNS = {
    "PROMOTIONS": (
        re.compile(rf"off|qualify|{TIER_ID.pattern}(\s*,\s*{TIER_ID.pattern}){{0,{MAX_REDEEMABLES - 1}}}", re.ASCII),
        f"off, qualify, or up to {MAX_REDEEMABLES} ids of promotion tiers (promo_…) with commas between them",
    ),
    "ITEM_ID": (
        re.compile("(sku|variant_id|product_id)(:(sku|product))?"),
        "sku, variant_id or product_id; it may end in :sku or :product, as the catalogue knows it",
    ),
    "REWARD_ID": (re.compile("[!-~]*"), "the id of a reward (rew_…)"),
    "CHANNEL": (re.compile("[!-~]+"), "printable ASCII without blanks"),
}

MetadataList = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options as read. Paths are JSON pointers."""

    exponent: int = 2
    promotions: Literal["off", "qualify", "listed"] = "off"
    tiers: tuple[str, ...] = ()
    promotions_first: bool = False
    ignores_case: bool = True
    lock_ttl: int = 0
    """Seconds; 0: no lock."""
    item_id: str = "sku"
    related_object: str = "sku"
    customer_id_path: str = "/customer/id"
    shipping_path: str = "/shipping_rate/price"
    gift_credits: str = "/gift_credits"
    """Within `promotions.meta`: an object of code and amount."""
    reward_id: str = ""
    order_metadata: MetadataList = ()
    item_metadata: MetadataList = ()
    customer_metadata: MetadataList = ()
    redemption_metadata: MetadataList = ()

    def fold_case(self, code: str) -> str:
        """The code without its case, where the project ignores it."""
        return code.casefold() if self.ignores_case else code

    def to_engine_floor(self, minor: int, digits: int) -> int:
        """Minor units as the engine's units, rounded down; for comparisons only."""
        return int(minor * 10**self.exponent // 10**digits)

    def to_engine(self, minor: int, digits: int) -> int:
        """Minor units as the engine's units. Raises `EngineRejected` where the project's exponent is too small."""
        if self.exponent >= digits:
            return int(minor * 10 ** (self.exponent - digits))
        units, remainder = divmod(minor, 10 ** (digits - self.exponent))
        if remainder:
            message = f"An amount has more digits than the {self.exponent} of the Voucherify project."
            raise EngineRejected(message, reason="inexact_amount")
        return int(units)


def read(options: Mapping[str, str]) -> tuple[Account, Settings]:
    """The account and the settings. Raises `Misconfigured` with all problems."""
    values, problems = adapter.read(OPTIONS, options)
    problems += [
        (name, expected) for name, (pattern, expected) in _PATTERNS.items() if not pattern.fullmatch(values[name])
    ]
    if problems:
        raise Misconfigured(problems)
    account = Account(
        values["BASE_URL"],
        (
            ("X-App-Id", values["APP_ID"]),
            ("X-App-Token", values["APP_TOKEN"]),
            ("X-Voucherify-API-Version", "v2018-08-01"),
            ("X-Voucherify-Channel", values["CHANNEL"]),
        ),
    )
    promotions = values["PROMOTIONS"]
    listed = promotions not in ("off", "qualify")
    item_id, _, related_object = values["ITEM_ID"].partition(":")
    return account, Settings(
        exponent=int(values["EXPONENT"]),
        promotions="listed" if listed else "qualify" if promotions == "qualify" else "off",
        tiers=tuple(tier.strip() for tier in promotions.split(",")) if listed else (),
        promotions_first=values["PROMOTIONS_ORDER"] == "promotions_first",
        ignores_case=values["CODE_CASE"] == "insensitive",
        lock_ttl=int(values["SESSION_LOCK_TTL"]),
        item_id=item_id,
        related_object=related_object or ("product" if item_id == "product_id" else "sku"),
        customer_id_path=values["CUSTOMER_ID_PATH"],
        shipping_path=values["SHIPPING_PATH"],
        gift_credits=values["GIFT_CREDITS"],
        reward_id=values["REWARD_ID"],
        order_metadata=_metadata(values["ORDER_METADATA"]),
        item_metadata=_metadata(values["ITEM_METADATA"]),
        customer_metadata=_metadata(values["CUSTOMER_METADATA"]),
        redemption_metadata=_metadata(values["REDEMPTION_METADATA"]),
    )


def _metadata(value: str) -> MetadataList:
    return tuple(adapter.pairs(value).items())
