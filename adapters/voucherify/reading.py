"""How an answer is read: by hand and leniently.

Unknown fields and unknown words never cost an answer; an amount that cannot be read always does: `EngineUnavailable`.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from mapper.adapter import EngineReply, EngineUnavailable, money

_SURELY_MONEY = 10**12

_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def document(reply: EngineReply) -> dict[str, Any]:
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


def amount(holder: Mapping[str, Any], key: str, *, signed: bool = False) -> int:
    """An amount or a count; Voucherify leaves zeros out."""
    value = holder.get(key)
    if value is None:
        return 0
    if type(value) is int and 0 <= value < _SURELY_MONEY:
        return value  # what nearly all are
    try:
        found = money.from_engine(value)
    except money.NotMoney as error:
        not_understood(f"{key} {error}")
    if found != found.to_integral_value() or (found < 0 and not signed):
        not_understood(f"{key} is no whole amount")
    return int(found)


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in listed(value) if isinstance(entry, dict)]
