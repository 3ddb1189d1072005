"""Decodes replies leniently.

Unknown fields and values of an unexpected type are ignored. An amount that cannot be read raises `EngineUnavailable`.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from mapper.adapter import EngineReply, EngineUnavailable, money

_SAFE_AMOUNT = 10**12

_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def document(reply: EngineReply) -> dict[str, Any]:
    """The reply's JSON object, numbers exact."""
    try:
        body = _decode(reply.body)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        not_understood("no JSON")
    if not isinstance(body, dict):
        not_understood("no object")
    return body


def not_understood(why: str) -> NoReturn:
    message = f"Voucherify's answer cannot be understood ({why})."
    raise EngineUnavailable(message, reason="reply_not_understood")


def amount(parent: Mapping[str, Any], key: str, *, signed: bool = False) -> int:
    """An amount or a count, 0 where it is absent: Voucherify leaves zeros out."""
    value = parent.get(key)
    if value is None:
        return 0
    if type(value) is int and 0 <= value < _SAFE_AMOUNT:
        return value  # the fast path
    try:
        number = money.from_engine(value)
    except money.NotMoney as error:
        not_understood(f"{key} {error}")
    if number != number.to_integral_value() or (number < 0 and not signed):
        not_understood(f"{key} is no whole amount")
    return int(number)


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in listed(value) if isinstance(entry, dict)]
