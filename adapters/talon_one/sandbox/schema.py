"""Validates requests by the schemas of the vendor's specification, and by the names in the rule book."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from mapper.domain import money
from mapper.sandbox import rulebook
from mapper.sandbox.rulebook import LoyaltyCard, RuleBook

Json = dict[str, Any]


class Problems(list[Json]):
    """The problems of a request, as the API lists them."""

    def add(self, title: str, pointer: str, details: str) -> None:
        self.append({"title": title, "details": details, "source": {"pointer": pointer}})

    def wrong_type(self, pointer: str, expected: str) -> None:
        self.add("Invalid type", pointer, f"must be {expected}")

    def wrong_value(self, pointer: str, expected: str) -> None:
        self.add("Invalid value", pointer, f"must {expected}")


Check = Callable[[Any, str, Problems], None]


def _text(least: int = 0, most: int | None = None, pattern: str = "") -> Check:
    def check(value: Any, pointer: str, problems: Problems) -> None:
        if not isinstance(value, str):
            problems.wrong_type(pointer, "a string")
        elif len(value) < least:
            problems.wrong_value(pointer, f"have at least {least} characters")
        elif most is not None and len(value) > most:
            problems.wrong_value(pointer, f"have at most {most} characters")
        elif pattern and not re.fullmatch(pattern, value):
            problems.wrong_value(pointer, f"match {pattern}")

    return check


def _integer(least: int | None = None) -> Check:
    def check(value: Any, pointer: str, problems: Problems) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            problems.wrong_type(pointer, "an integer")
        elif least is not None and value < least:
            problems.wrong_value(pointer, f"be at least {least}")

    return check


def _number(value: Any, pointer: str, problems: Problems) -> None:
    try:
        money.from_engine(value)
    except money.NotMoney:
        problems.wrong_type(pointer, "a number")


def _boolean(value: Any, pointer: str, problems: Problems) -> None:
    if not isinstance(value, bool):
        problems.wrong_type(pointer, "a boolean")


def _moment(value: Any, pointer: str, problems: Problems) -> None:
    if not isinstance(value, str) or time_of(value) is None:
        problems.wrong_type(pointer, "an RFC3339 time")


def _object(value: Any, pointer: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(pointer, "an object")


def _one_of(*words: str) -> Check:
    def check(value: Any, pointer: str, problems: Problems) -> None:
        if value not in words:
            problems.wrong_value(pointer, f"be one of {', '.join(words)}")

    return check


def _each(element: Check, most: int | None = None) -> Check:
    def check(value: Any, pointer: str, problems: Problems) -> None:
        if not isinstance(value, list):
            problems.wrong_type(pointer, "an array")
        elif most is not None and len(value) > most:
            problems.wrong_value(pointer, f"have at most {most} elements")
        else:
            for i, part in enumerate(value):
                element(part, f"{pointer}/{i}", problems)

    return check


def _named(fields: dict[str, Check]) -> Check:
    """An object whose keys must have been created in the account."""

    def check(value: Any, pointer: str, problems: Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(pointer, "an object")
            return
        for name, part in value.items():
            member_pointer = f"{pointer}/{_escaped(name)}"
            if name in fields:
                fields[name](part, member_pointer, problems)
            else:
                problems.add("Unknown", member_pointer, f"{name} does not exist")

    return check


def _record(fields: dict[str, Check], required: Iterable[str] = (), *, strict: bool) -> Check:
    def check(value: Any, pointer: str, problems: Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(pointer, "an object")
            return
        for name in required:
            if name not in value:
                problems.add("Missing", f"{pointer}/{name}", "is required")
        for name, part in value.items():
            member_pointer = f"{pointer}/{_escaped(name)}"
            if name in fields:
                fields[name](part, member_pointer, problems)
            elif strict:
                problems.add("Unknown", member_pointer, "this field is not documented")

    return check


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


_ATTRIBUTE: Final[dict[str, Check]] = {
    "string": _text(),
    "number": _number,
    "boolean": _boolean,
    "time": _moment,
    "list of strings": _each(_text()),
}
_CONTENT: Final = (
    "customerSession", "customerProfile", "coupons", "triggeredCampaigns", "referral", "loyalty", "event",
    "awardedGiveaways", "ruleFailureReasons", "previousReturns", "campaignEligibility", "achievements",
)  # fmt: skip
_MAX_UNITS: Final = 10_000
_STATES: Final = ("open", "closed", "partially_returned", "cancelled")
_CARD: Final = r"[A-Za-z0-9._%+@-]+"


class Requests:
    """Validates the bodies of session updates and returns."""

    def __init__(self, book: RuleBook, *, strict: bool) -> None:
        """`strict`: whether a field that is not documented is a problem."""
        self._book = book
        self._wrapper = _record(
            {"customerSession": _object, "responseContent": _each(_one_of(*_CONTENT))},
            ("customerSession",),
            strict=strict,
        )
        self._session = _session_check(book, strict=strict)
        item = _record({"position": _integer(0), "quantity": _integer(1), "sku": _text(1)}, strict=strict)
        back = _record({"returnedCartItems": _each(item)}, ("returnedCartItems",), strict=strict)
        self._return = _record(
            {"return": back, "responseContent": _each(_one_of(*_CONTENT))}, ("return",), strict=strict
        )

    def return_problems(self, payload: Any) -> Problems:
        problems = Problems()
        self._return(payload, "", problems)
        return problems

    def problems(self, payload: Any) -> Problems:
        """All problems. Pointers start at the session, as in the documentation: "/attributes/X", "/state"."""
        problems = Problems()
        self._wrapper(payload, "", problems)
        if problems:
            return problems
        session = payload["customerSession"]
        self._session(session, "", problems)
        if problems:
            return problems
        if sum(item["quantity"] for item in session.get("cartItems", [])) > _MAX_UNITS:
            problems.wrong_value("/cartItems", f"not exceed {_MAX_UNITS} units in all")
        for i, code in enumerate(session.get("loyaltyCards", [])):
            found = self._book.find(code)
            if found is None or not isinstance(found[1], LoyaltyCard):
                problems.add("Unknown", f"/loyaltyCards/{i}", "this loyalty card does not exist")
        return problems


def _session_check(book: RuleBook, *, strict: bool) -> Check:
    """The schema NewCustomerSessionV2, with the names in the rule book."""
    settings = book.settings

    def costs(scope: str) -> Check:
        cost = _record({"price": _number}, ("price",), strict=strict)
        return _named({name: cost for name, where in settings.costs.items() if where in (scope, "both")})

    def attributes(types: dict[str, Any]) -> Check:
        return _named({name: _ATTRIBUTE[kind] for name, kind in types.items()})

    item = _record(
        {
            "name": _text(),
            "sku": _text(1),
            "quantity": _integer(1),
            "price": _number,
            "category": _text(),
            "product": _record({"name": _text()}, ("name",), strict=strict),
            **dict.fromkeys(("weight", "height", "width", "length", "position"), _number),
            **dict.fromkeys(("returnedQuantity", "remainingQuantity", "catalogItemID"), _integer()),
            "attributes": attributes(settings.item_attributes),
            "additionalCosts": costs("item"),
        },
        # Without a catalog, the price is required.
        ("sku", "quantity", "price"),
        strict=strict,
    )
    allocation = _record(
        {"experimentID": _integer(), "variantID": _integer()}, ("experimentID", "variantID"), strict=strict
    )
    return _record(
        {
            "profileId": _text(most=1000),
            "storeIntegrationId": _one_of(*settings.stores) if settings.stores else _text(1, 1000),
            "evaluableCampaignIds": _each(_integer()),
            "couponCodes": _each(_text(most=100)),
            "referralCode": _text(most=100),
            "loyaltyCards": _each(_text(4, 108, _CARD), most=1),
            "state": _one_of(*_STATES),
            "cartItems": _each(item, most=1000),
            "experimentVariantAllocations": _each(allocation),
            "additionalCosts": costs("order"),
            "identifiers": _each(_text(), most=5),
            "attributes": attributes(settings.session_attributes),
        },
        strict=strict,
    )


def time_of(text: str) -> datetime | None:
    """The time in RFC 3339 format; None for any other text."""
    try:
        return msgspec.convert(text, rulebook.Moment)
    except msgspec.ValidationError:
        return None
