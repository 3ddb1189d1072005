"""The adapter's options: read once, every fault reported at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from mapper.adapter import Account, EngineRejected, Misconfigured, Option

OPTIONS = (
    Option("APP_ID", "the application id of the project's server-side keys", None, secret=True, kind="secret"),
    Option("APP_TOKEN", "the application token beside it", None, secret=True, kind="secret"),
    Option("BASE_URL", "the cluster, such as `https://us1.api.voucherify.io`", "https://api.voucherify.io", kind="url"),
    Option(
        "PROMOTIONS",
        "promotions without a code: `off`, `qualify`, or ids of promotion tiers (`promo_…`), comma-separated",
        "off",
    ),
    Option(
        "PROMOTIONS_ORDER",
        "`codes_first` or `promotions_first`: what goes first may keep the other from applying",
        "codes_first",
        kind="choice",
        choices=("codes_first", "promotions_first"),
    ),
    Option(
        "EXPONENT",
        "decimal places of amounts in Voucherify, whatever the currency",
        "2",
        kind="int",
        choices=("0", "4"),
    ),
    Option(
        "CODE_CASE",
        "`insensitive` or `sensitive`: whether codes that differ in case alone are one code, as in the project",
        "insensitive",
        kind="choice",
        choices=("insensitive", "sensitive"),
    ),
    Option("ITEM_ID", "what `source_id` of an item is: `sku`, `variant_id` or `product_id`", "sku"),
    Option("CUSTOMER_ID_PATH", "where the customer's id stands", "/customer/id", kind="pointer"),
    Option(
        "SHIPPING_PATH",
        "where the checkout's shipping price stands, for free shipping",
        "/shipping_rate/price",
        kind="pointer",
    ),
    Option(
        "SESSION_LOCK_TTL",
        "seconds for which validate reserves the codes for this checkout; `0`: not at all",
        "0",
        kind="int",
        choices=("0", "604800"),
    ),
    Option(
        "GIFT_CREDITS",
        "where, within `promotions.meta`, the amounts to take from gift cards stand, by code",
        "/gift_credits",
        kind="pointer",
    ),
    Option("REWARD_ID", "the reward that loyalty cards are used with, where `promotions.meta.reward` names none"),
    Option(
        "ORDER_METADATA",
        "metadata of the order to send: `name=/json/pointer`; only what is named here is sent",
        kind="map",
    ),
    Option("ITEM_METADATA", "the same of each line, pointers within the line", kind="map"),
    Option("CUSTOMER_METADATA", "the same of the customer", kind="map"),
    Option("REDEMPTION_METADATA", "the same of validations and redemptions", kind="map"),
    Option("CHANNEL", "the label of our calls in Voucherify's audit log", "promotions-mapper"),
)

MAX_REDEEMABLES = 30
TIER_ID = re.compile(r"promo_[0-9A-Za-z]{1,64}", re.ASCII)

_KEY = re.compile(r"[!-~]+")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)+")
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")

MetadataList = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the account, read. Paths are JSON pointers."""

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

    def to_engine(self, minor: int, digits: int) -> int:
        """Minor units of the currency as the engine's units; an amount that the engine cannot express is refused."""
        if self.exponent >= digits:
            return int(minor * 10 ** (self.exponent - digits))
        units, rest = divmod(minor, 10 ** (digits - self.exponent))
        if rest:
            message = f"An amount has more digits than the {self.exponent} of the Voucherify project."
            raise EngineRejected(message, reason="inexact_amount")
        return int(units)


def read(options: Mapping[str, str]) -> tuple[Account, Settings]:
    """The options as account and settings. Raises `Misconfigured` with everything that is wrong."""
    reader = _Reader(options)
    account = Account(
        reader.get("BASE_URL", _base_url, "https://api.voucherify.io"),
        (
            ("X-App-Id", reader.get("APP_ID", _key)),
            ("X-App-Token", reader.get("APP_TOKEN", _key)),
            ("X-Voucherify-API-Version", "v2018-08-01"),
            ("X-Voucherify-Channel", reader.get("CHANNEL", _key, "promotions-mapper")),
        ),
    )
    promotions, tiers = reader.get("PROMOTIONS", _promotions, "off")
    item_id, related_object = reader.get("ITEM_ID", _item_id, "sku")
    settings = Settings(
        exponent=reader.get("EXPONENT", _whole(0, 4), "2"),
        promotions=promotions,
        tiers=tiers,
        promotions_first=reader.get("PROMOTIONS_ORDER", _promotions_first, "codes_first"),
        ignores_case=reader.get("CODE_CASE", _ignores_case, "insensitive"),
        lock_ttl=reader.get("SESSION_LOCK_TTL", _whole(0, 604_800), "0"),
        item_id=item_id,
        related_object=related_object,
        customer_id_path=reader.get("CUSTOMER_ID_PATH", _pointer, "/customer/id"),
        shipping_path=reader.get("SHIPPING_PATH", _pointer, "/shipping_rate/price"),
        gift_credits=reader.get("GIFT_CREDITS", _pointer, "/gift_credits"),
        reward_id=reader.get("REWARD_ID", _reward_id, ""),
        order_metadata=reader.get("ORDER_METADATA", _metadata, ""),
        item_metadata=reader.get("ITEM_METADATA", _metadata, ""),
        customer_metadata=reader.get("CUSTOMER_METADATA", _metadata, ""),
        redemption_metadata=reader.get("REDEMPTION_METADATA", _metadata, ""),
    )
    if reader.problems:
        raise Misconfigured(reader.problems)
    return account, settings


class _Expected(Exception):
    """What an option should have been."""


class _Reader:
    """Reads options one by one and gathers what is wrong with them."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = options
        self.problems: list[tuple[str, str]] = []

    def get(self, name: str, parse: Callable[[str], Any], default: str | None = None) -> Any:
        """The option; where it is wrong, its default. An empty one counts as not given."""
        try:
            return parse(self.options.get(name, "").strip() or default or "")
        except _Expected as expected:
            self.problems.append((name, str(expected)))
            return "" if default is None else parse(default)


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    local = parts.scheme == "http" and _LOOPBACK.fullmatch(host)
    plain = _KEY.fullmatch(value) and parts.username is None and parts.password is None and not set("?#\\") & set(value)
    if not host or not plain or not (parts.scheme == "https" or local):
        raise _Expected("an https address such as https://us1.api.voucherify.io (http is for this very machine only)")
    return value.rstrip("/")


def _key(value: str) -> str:
    if not _KEY.fullmatch(value):
        raise _Expected("printable ASCII without blanks, as Voucherify shows it (Project Settings, Application Keys)")
    return value


def _reward_id(value: str) -> str:
    if value and not _KEY.fullmatch(value):
        raise _Expected("the id of a reward (rew_…)")
    return value


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise _Expected(f"a whole number from {least} to {most}")
        return int(value)

    return parse


def _promotions(value: str) -> tuple[str, tuple[str, ...]]:
    if value in ("off", "qualify"):
        return value, ()
    tiers = tuple(tier.strip() for tier in value.split(","))
    if len(tiers) > MAX_REDEEMABLES or not all(TIER_ID.fullmatch(tier) for tier in tiers):
        raise _Expected("off, qualify, or up to 30 ids of promotion tiers (promo_…) with commas between them")
    return "listed", tiers


def _promotions_first(value: str) -> bool:
    if value not in ("codes_first", "promotions_first"):
        raise _Expected("codes_first or promotions_first")
    return value == "promotions_first"


def _ignores_case(value: str) -> bool:
    if value not in ("insensitive", "sensitive"):
        raise _Expected("insensitive or sensitive, as the Voucherify project has been set up")
    return value == "insensitive"


def _item_id(value: str) -> tuple[str, str]:
    name, colon, related = value.partition(":")
    if not colon:
        related = "product" if name == "product_id" else "sku"
    if name not in ("sku", "variant_id", "product_id") or related not in ("sku", "product"):
        raise _Expected("sku, variant_id or product_id; it may end in :sku or :product, as the catalogue knows it")
    return name, related


def _pointer(value: str) -> str:
    if not _POINTER.fullmatch(value):
        raise _Expected("a JSON pointer such as /customer/id")
    return value


def _metadata(value: str) -> MetadataList:
    found: dict[str, str] = {}
    for entry in filter(None, map(str.strip, value.split(","))):
        name, _, pointer = map(str.strip, entry.partition("="))
        if not name or name in found or not _POINTER.fullmatch(pointer):
            raise _Expected("a comma-separated list of name=/json/pointer, each name once")
        found[name] = pointer
    return tuple(found.items())
