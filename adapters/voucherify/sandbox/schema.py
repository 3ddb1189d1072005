"""Validates requests by the vendor's OpenAPI files, with the vendor's error messages.

The real API's answer to a field that it does not document is not known; here it is refused where the rule book says so,
so that a misspelled name does not pass unseen.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

import msgspec

Json = dict[str, Any]


class Invalid(Exception):
    """The first problem, in the words of `details` of the key `invalid_payload`."""


Check = Callable[[Any, str], None]
"""Checks a value at a place (".order.items[0].price"). Raises `Invalid`."""


def _text(least: int = 1) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, str):
            raise Invalid(f"Property {place} should be string")
        if len(value) < least:
            raise Invalid(f"Property {place} should NOT be shorter than {least} characters")

    return check


def _integer(least: int = 0) -> Check:
    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid(f"Property {place} should be integer")
        if value < least:
            raise Invalid(f"Property {place} should be >= {least}")

    return check


def _number(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise Invalid(f"Property {place} should be number")
    if value < 0:
        raise Invalid(f"Property {place} should be >= 0")


def _boolean(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        raise Invalid(f"Property {place} should be boolean")


def _object(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise Invalid(f"Property {place} should be object")


def _one_of(*words: str) -> Check:
    def check(value: Any, place: str) -> None:
        if value not in words:
            raise Invalid(f"Property {place} should be equal to one of the allowed values: {', '.join(words)}")

    return check


def _nullable(inner: Check) -> Check:
    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def _each(element: Check, least: int = 0, most: int | None = None) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise Invalid(f"Property {place} should be array")
        if len(value) < least:
            raise Invalid(f"Property {place} should NOT have fewer than {least} items")
        if most is not None and len(value) > most:
            raise Invalid(f"Property {place} should NOT have more than {most} items")
        for i, part in enumerate(value):
            element(part, f"{place}[{i}]")

    return check


def _record(fields: dict[str, Check], required: Iterable[str] = (), *, strict: bool) -> Check:
    def check(value: Any, place: str) -> None:
        _object(value, place)
        for name in required:
            if name not in value:
                raise Invalid(f"Property {place} should have required property '{name}'")
        for name, part in value.items():
            if name in fields:
                fields[name](part, f"{place}.{name}")
            elif strict:
                raise Invalid(f"Property {place} should NOT have additional property '{name}'")

    return check


_UNITS: Final = ("DAYS", "HOURS", "MICROSECONDS", "MILLISECONDS", "MINUTES", "NANOSECONDS", "SECONDS")
_SCENARIOS: Final = (
    *("ALL", "CUSTOMER_WALLET", "AUDIENCE_ONLY", "PRODUCTS", "PRODUCTS_DISCOUNT", "PROMOTION_STACKS"),
    *("PRODUCTS_BY_CUSTOMER", "PRODUCTS_DISCOUNT_BY_CUSTOMER"),
)
_CONDITIONS: Final = ("$is", "$is_not", "$in", "$not_in")


_COUNTS: Final = ("quantity", "initial_quantity", "discount_quantity")


def _plain(value: Any, name: str = "") -> Any:
    """The value without nulls, and with counts as numbers; metadata are kept.

    The vendor's client sends null for unset fields, and the vendor's examples have "quantity": "1".
    """
    if name in _COUNTS and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if not isinstance(value, dict) or name == "metadata":
        return value
    return {key: _plain(part, key) for key, part in value.items() if part is not None}


class Schema:
    """The schemas of all request bodies."""

    def __init__(self, redeemables_limit: int, *, strict: bool) -> None:
        self._strict = strict
        self._decoder = msgspec.json.Decoder(float_hook=Decimal)
        order, customer = self._order(), self._customer()
        metadata = {"metadata": _object}
        about = {"order": order, "customer": customer, "tracking_id": _text(), **metadata}
        expand = _each(_one_of("order", "redemption", "redeemable", "category"))
        include_orders = {"include_orders": _boolean}
        session = {"key": _text(), "type": _one_of("LOCK"), "ttl": _number, "ttl_unit": _one_of(*_UNITS)}
        self.stacked = self._named(
            {
                **about,
                "redeemables": _each(self._redeemable(), 1, redeemables_limit),
                "session": self._named(session),
                "options": self._named({"expand": expand, **include_orders}),
            },
            "redeemables",
        )
        self.order = order
        self.rollback = self._named({**about, "reason": _text(0)})
        self.qualification = self._named(
            {
                **about,
                "scenario": _one_of(*_SCENARIOS),
                "session": self._named({"type": _one_of("LOCK")}),
                "options": self._qualification_options(),
            }
        )

    def read(self, body: bytes, check: Check) -> Json:
        """The validated body. Raises `Invalid`."""
        try:
            given = _plain(self._decoder.decode(body))
        except (msgspec.DecodeError, ArithmeticError, RecursionError):
            raise Invalid("The body is not valid JSON") from None
        check(given, "")
        return dict(given)

    def _named(self, fields: dict[str, Check], *required: str) -> Check:
        return _record(fields, required, strict=self._strict)

    def _redeemable(self) -> Check:
        named = {"object": _one_of("voucher", "promotion_tier", "promotion_stack"), "id": _text()}
        simple = self._named(named, "object", "id")
        gift = self._named({"credits": _integer(1)})
        reward = self._named({"id": _text(), "points": _integer(1)})
        voucher = self._named({**named, "gift": gift, "reward": reward}, "object", "id")

        def check(value: Any, place: str) -> None:
            is_voucher = isinstance(value, dict) and value.get("object") == "voucher"
            (voucher if is_voucher else simple)(value, place)

        return check

    def _customer(self) -> Check:
        lines = ("city", "state", "line_1", "line_2", "country", "postal_code")
        address: dict[str, Check] = dict.fromkeys(lines, _text(0))
        texts = ("name", "description", "email", "phone", "birthday", "birthdate")
        return self._named(
            {
                "id": _text(),
                "source_id": _text(),
                **dict.fromkeys(texts, _text(0)),
                "address": _nullable(self._named(address)),
                "metadata": _object,
            }
        )

    def _order(self) -> Check:
        product = {
            **dict.fromkeys(("id", "source_id", "name"), _text()),
            "override": _boolean,
            "metadata": _object,
            "price": _number,
        }
        sku = {name: check for name, check in product.items() if name != "name"} | {"sku": _text()}
        amounts = ("amount", "discount_amount", "initial_amount", "price")
        item = self._named(
            {
                **dict.fromkeys(("sku_id", "product_id", "source_id"), _text()),
                "object": _one_of("order_item"),
                "related_object": _one_of("product", "sku"),
                # The specification sets no minimum. Assumed: 0 is a mistake.
                "quantity": _integer(1),
                **dict.fromkeys(("discount_quantity", "initial_quantity"), _integer()),
                **dict.fromkeys(amounts, _integer()),
                "product": self._named(product),
                "sku": self._named(sku),
                "metadata": _object,
            }
        )

        def line(value: Any, place: str) -> None:
            item(value, place)
            if ("source_id" in value) != ("related_object" in value):
                missing = "source_id" if "related_object" in value else "related_object"
                raise Invalid(f"Property {place} should have required property '{missing}'")

        return self._named(
            {
                "id": _text(),
                "source_id": _nullable(_text()),
                "status": _one_of("CREATED", "PAID", "CANCELED", "FULFILLED"),
                **dict.fromkeys(("amount", "initial_amount", "discount_amount"), _integer()),
                "items": _each(line, 0, 500),
                "metadata": _object,
            }
        )

    def _qualification_options(self) -> Check:
        conditions: dict[str, Check] = dict.fromkeys(_CONDITIONS, _each(_text()))
        field = self._named({"conditions": self._named(conditions)})
        names = ("category_id", "campaign_id", "campaign_type", "resource_id", "resource_type")
        more = ("voucher_type", "code", "holder_role")
        filters = {"junction": _one_of("and", "or"), **dict.fromkeys((*names, *more), field)}

        def limit(value: Any, place: str) -> None:
            _integer(1)(value, place)
            if value > 50:
                raise Invalid(f"Property {place} should be <= 50")

        return self._named(
            {
                "limit": limit,
                "starting_after": _nullable(_text()),
                "filters": self._named(filters),
                "expand": _each(_one_of("redeemable", "category", "validation_rules")),
                "sorting_rule": _one_of("BEST_DEAL", "LEAST_DEAL", "DEFAULT"),
            }
        )
