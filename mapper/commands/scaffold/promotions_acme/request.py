"""Requests to Acme. Each says what it does (`effect`), and whether it may be sent twice (`repeatable`)."""

from decimal import Decimal
from urllib.parse import quote

import msgspec

from mapper.adapter import Checkout, EngineRequest, money

# Amounts are numbers with all their digits, never floats.
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Row(msgspec.Struct, frozen=True):
    """A line in Acme's form."""

    sku: str
    count: int
    price: Decimal


def rows(checkout: Checkout) -> list[Row]:
    """Returns the lines at list prices; `cart` has none of quantity 0. Acme names a row by its position."""
    return [Row(line.name, line.quantity, money.to_major(line.list_price, checkout.digits)) for line in checkout.cart]


def prices(checkout: Checkout) -> EngineRequest:
    return EngineRequest(
        operation="price cart",
        method="POST",
        path="/prices",
        body=_question(checkout),
        effect="none",
        repeatable=True,
    )


def redemption(order: Checkout, session: str) -> EngineRequest:
    """Acme answers 409 if it has redeemed the order before; the adapter reads this itself."""
    return EngineRequest(
        operation="redeem order",
        method="PUT",
        path=_order(session),
        body=_question(order),
        effect="redeems",
        repeatable=False,
        answers=frozenset({409}),
    )


def stored_order(session: str) -> EngineRequest:
    return EngineRequest(operation="read order", method="GET", path=_order(session), effect="none", repeatable=True)


def undo(session: str, *, final: bool) -> EngineRequest:
    path = _order(session) + ("?final=true" if final else "")
    return EngineRequest(operation="undo order", method="DELETE", path=path, effect="session", repeatable=True)


def _question(checkout: Checkout) -> bytes:
    body = {"currency": checkout.currency, "rows": rows(checkout), "codes": checkout.promotions.coupon_codes}
    return _encode(body)


def _order(session: str) -> str:
    """Ids are untrusted data: always quoted."""
    return f"/orders/{quote(session, safe='')}"
