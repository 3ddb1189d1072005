"""Questions to Acme. Each says what it does (`effect`), and whether twice does no more than once (`repeatable`)."""

from decimal import Decimal
from urllib.parse import quote

import msgspec

from mapper.adapter import Checkout, EngineRequest, money

# Amounts are numbers with all their digits, never floats.
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Row(msgspec.Struct, frozen=True):
    """A line, as Acme knows it."""

    sku: str
    count: int
    price: Decimal


def rows(checkout: Checkout) -> list[Row]:
    """At list prices; lines of quantity 0 are not in `cart`. Acme names a row by its position in this list."""
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
    """Acme answers 409 where it has redeemed the order before; the adapter wants to read that itself."""
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
    told = {"currency": checkout.currency, "rows": rows(checkout), "codes": checkout.promotions.coupon_codes}
    return _encode(told)


def _order(session: str) -> str:
    """Ids are data of strangers: always quoted."""
    return f"/orders/{quote(session, safe='')}"
