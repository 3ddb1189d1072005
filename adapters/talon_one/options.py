"""The adapter's options. All problems are reported at once.

A Talon.One Application has one currency and its own API keys, so there is one pair of base URL and key per currency.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mapper import adapter
from mapper.adapter import Account, EngineRejected, Misconfigured, Option, money

_CURRENCIES = tuple(money.DIGITS)

# Talon.One refuses the whole session over a cost or an attribute that the Campaign Manager does not have.
OPTIONS = (
    Option(
        "BASE_URL",
        "your deployment, such as `https://yourbaseurl.talon.one`; with a currency, the deployment for it",
        kind="url",
        suffixes=_CURRENCIES,
    ),
    Option(
        "API_KEY",
        "an Integration API key of the Application; with a currency, of the Application for it:"
        " a currency without a key is refused",
        secret=True,
        kind="secret",
        suffixes=_CURRENCIES,
    ),
    Option("CURRENCY", "the currency of the pair without a suffix; not set: any"),
    Option(
        "ADDITIONAL_COSTS",
        "additional costs to send: `name=/json/pointer`, comma-separated, such as `shipping=/shipping_rate/price`;"
        " `*` adds up the costs of all orders",
        kind="map",
    ),
    Option("ITEM_ADDITIONAL_COSTS", "the same for each line, with pointers within the line", kind="map"),
    Option(
        "SESSION_ATTRIBUTES",
        "attributes to send: `Name=/json/pointer`; no others are sent",
        kind="map",
    ),
    Option("ITEM_ATTRIBUTES", "the same for each line, with pointers within the line", kind="map"),
    Option(
        "ITEM_FIELDS",
        "fields of a cart item that Talon.One defines: `category=/category,name=/title,…`, any of `name`, `category`,"
        " `product`, `weight` (grams), `height`, `width`, `length` (mm);"
        " not set: `name` from `/name` or `/title`, `category`, `weight`",
        kind="map",
    ),
    Option(
        "GUESTS",
        "the profile of a shopper without an id: `own_profile`, one for each checkout, or `anonymous`, none:"
        " then limits per customer do not apply",
        "own_profile",
        kind="choice",
        choices=("own_profile", "anonymous"),
    ),
    Option(
        "CODE_CASE",
        "whether case distinguishes codes, as in the Application: `sensitive`, or `insensitive`",
        "insensitive",
        kind="choice",
        choices=("insensitive", "sensitive"),
    ),
    Option(
        "RESPONSE_CONTENT",
        "what replies shall have beside the effects, comma-separated: `ruleFailureReasons` (why a rule did not apply,"
        " for the log), `coupons`, `customerProfile`, `loyalty` (notices for the storefront)",
    ),
    Option("PROFILE_PREFIX", "a prefix for every profile id"),
    Option("STORE_PATH", "a pointer to the store's integration id", kind="pointer"),
    Option(
        "SKU_FIELD",
        "the id to send as a SKU: `sku`, `variant_id` or `product_id`; not set: the first that a line has",
        kind="choice",
        choices=("", "sku", "variant_id", "product_id"),
    ),
    Option(
        "IDENTIFIERS_KEY",
        "a secret: identifiers (such as IP addresses) are sent as keyed hashes; not set: in clear text",
        secret=True,
    ),
)

# https://docs.talon.one/docs/dev/concepts/entities/customer-sessions: weights in grams, sizes in mm.
_ITEM_FIELDS = ("name", "category", "product", "weight", "height", "width", "length")
_DEFAULT_ITEM_FIELDS = (("name", "/name"), ("name", "/title"), ("category", "/category"), ("weight", "/weight"))
_RESPONSE_CONTENT = ("ruleFailureReasons", "coupons", "customerProfile", "loyalty")


@dataclass(frozen=True)
class Options:
    """The options as read. A map has Talon.One's names and JSON pointers into the body, or for items into the line."""

    accounts: dict[str, Account]
    by_currency: dict[str, str]
    """The account name by currency; empty where one Application serves every currency."""
    profile_prefix: str
    guests: str
    code_case: str
    response_content: tuple[str, ...]
    store_path: str
    identifiers_key: bytes = field(repr=False)
    sku_field: str
    additional_costs: dict[str, str]
    item_additional_costs: dict[str, str]
    cost_names: dict[str, str]
    """For each name of an additional cost, the first that has the same pointer: several names of one cost."""
    item_cost_names: dict[str, str]
    session_attributes: dict[str, str]
    item_attributes: dict[str, str]
    item_fields: tuple[tuple[str, str], ...]
    """Pairs of field and pointer. Of several pointers for one field, the first with a value counts."""

    def account(self, currency: str) -> str:
        """The name of the account for this currency. Raises `EngineRejected` where no Application serves it."""
        if not self.by_currency:
            return ""
        if currency not in self.by_currency:
            served, requested = ", ".join(sorted(self.by_currency)), currency or "a cart that names no currency"
            raise EngineRejected(
                f"No Talon.One Application is configured for {requested}; served: {served}.",
                reason="currency_not_served",
                served=sorted(self.by_currency),
            )
        return self.by_currency[currency]


def read(options: Mapping[str, str]) -> Options:
    """Raises `Misconfigured` with all faults."""
    return _Reader(options).read()


class _Reader:
    def __init__(self, options: Mapping[str, str]) -> None:
        self.options, self.problems = adapter.read(OPTIONS, options)

    def read(self) -> Options:
        accounts, by_currency = self._accounts()
        costs, item_costs = [adapter.pairs(self._get(name)) for name in ("ADDITIONAL_COSTS", "ITEM_ADDITIONAL_COSTS")]
        options = Options(
            accounts=accounts,
            by_currency=by_currency,
            profile_prefix=self._get("PROFILE_PREFIX"),
            guests=self._get("GUESTS"),
            code_case=self._get("CODE_CASE"),
            response_content=self._response_content(),
            store_path=self._get("STORE_PATH"),
            identifiers_key=self._get("IDENTIFIERS_KEY").encode(),
            sku_field=self._get("SKU_FIELD"),
            additional_costs=costs,
            item_additional_costs=item_costs,
            cost_names=_first_names(costs),
            item_cost_names=_first_names(item_costs),
            session_attributes=adapter.pairs(self._get("SESSION_ATTRIBUTES")),
            item_attributes=adapter.pairs(self._get("ITEM_ATTRIBUTES")),
            item_fields=self._item_fields(),
        )
        if self.problems:
            raise Misconfigured(self.problems)
        return options

    def _get(self, name: str) -> str:
        return self.options.get(name, "")

    def _report(self, name: str, expected: str) -> None:
        if all(name != other for other, _ in self.problems):
            self.problems.append((name, expected))

    def _accounts(self) -> tuple[dict[str, Account], dict[str, str]]:
        currencies = sorted(
            code for code in money.DIGITS if f"API_KEY_{code}" in self.options or f"BASE_URL_{code}" in self.options
        )
        accounts = {code: self._account(f"BASE_URL_{code}", f"API_KEY_{code}") for code in currencies}
        by_currency = {code: code for code in currencies}
        if self._get("API_KEY") or self._get("CURRENCY") or not currencies:
            accounts[""] = self._account("BASE_URL", "API_KEY")
            own = self._currency(by_currency)
            by_currency |= {own: ""} if own else {}
        return accounts, by_currency

    def _currency(self, taken: Mapping[str, str]) -> str:
        """The currency of the pair without a suffix, which is required beside pairs with one."""
        own = self._get("CURRENCY").upper()
        if own and own not in money.DIGITS:
            self._report("CURRENCY", "an ISO 4217 code such as USD")
        elif own in taken:
            self._report(
                "CURRENCY", f"a currency that has no pair of its own: API_KEY_{own} or BASE_URL_{own} is set too"
            )
        elif taken and not own:
            self._report("CURRENCY", "the currency of API_KEY's Application, since other keys are given per currency")
        return own

    def _account(self, url_name: str, key_name: str) -> Account:
        key, url_from = self._get(key_name), url_name if self._get(url_name) else "BASE_URL"
        if not key:
            self._report(key_name, "an Integration API key (Campaign Manager: Settings, Developer settings, API keys)")
        if not self._get(url_from):
            self._report(url_from, "the deployment's address, such as https://yourbaseurl.talon.one")
        if self._get(url_from).rstrip("/").endswith(("/v1", "/v2")):
            self._report(url_from, "the deployment's address alone: the paths of its API begin with /v1 and /v2")
        return Account(self._get(url_from), (("Authorization", f"ApiKey-v1 {key}"),))

    def _item_fields(self) -> tuple[tuple[str, str], ...]:
        fields = adapter.pairs(self._get("ITEM_FIELDS"))
        if unknown := [name for name in fields if name not in _ITEM_FIELDS]:
            self._report("ITEM_FIELDS", f"fields of {', '.join(_ITEM_FIELDS)}; {unknown[0]!r} is none")
        return tuple(fields.items()) or _DEFAULT_ITEM_FIELDS

    def _response_content(self) -> tuple[str, ...]:
        content = tuple(filter(None, map(str.strip, self._get("RESPONSE_CONTENT").split(","))))
        if not set(content) <= set(_RESPONSE_CONTENT):
            self._report("RESPONSE_CONTENT", f"some of {', '.join(_RESPONSE_CONTENT)}, comma-separated")
        return tuple(dict.fromkeys(content))


def _first_names(costs: Mapping[str, str]) -> dict[str, str]:
    """`Options.cost_names` of a map of costs."""
    first: dict[str, str] = {}
    return {name: first.setdefault(pointer, name) for name, pointer in costs.items()}
