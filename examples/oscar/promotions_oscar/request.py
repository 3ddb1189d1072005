"""Questions to django-oscar-api. Each says what it does (`effect`), and whether twice does no more than once.

Oscar keeps one open basket for each session of its own, or for each account. A session is named in the header
`Session-Id: SID:<ANON or AUTH>:<host>:<name>`, and the name is ours to choose.
https://django-oscar-api.readthedocs.io/en/latest/topics/session.html
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from mapper.adapter import EngineRequest

_encode = msgspec.json.encode
_PRODUCTS_AT_ONCE = 40
"""So many UPCs in one address: 100 characters each, quoted, stay within what servers read."""


Effect = Literal["none", "session", "redeems"]


class Who:
    """In whose name a request is made: a guest with a basket of his own, or the account that an order has."""

    def __init__(self, options: Mapping[str, str], purpose: str, session: str) -> None:
        # A digest: the header takes no other letters, and a name that ends in "-12" would be read without its end.
        self._name = hashlib.sha256(f"{purpose}\n{session}".encode()).hexdigest()
        self._realm = (urlsplit(options["BASE_URL"]).hostname or "").partition(":")[0]
        self.email = f"{self._name}@orders.invalid"
        self.password = hmac.new(options["ACCOUNTS_SECRET"].encode(), self._name.encode(), "sha256").hexdigest()

    def header(self, kind: Literal["ANON", "AUTH"]) -> str:
        return f"SID:{kind}:{self._realm}:{self._name}"


def products(names: Iterable[str]) -> list[EngineRequest]:
    """Which products have these UPCs; the shop's own addition to the API (see README)."""
    wanted = [f"upc={quote(name, safe='')}" for name in sorted(set(names))]
    pages = [wanted[start : start + _PRODUCTS_AT_ONCE] for start in range(0, len(wanted), _PRODUCTS_AT_ONCE)]
    return [_request("find products", "GET", f"/products/?{'&'.join(page)}", "none", repeatable=True) for page in pages]


class Basket:
    """Requests in one session."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id

    def opened(self) -> EngineRequest:
        """Oscar makes a basket where the session has none."""
        return self._ask("open basket", "GET", "/basket/", "session", repeatable=True)

    def dropped(self, number: int) -> EngineRequest:
        return self._ask("drop basket", "DELETE", f"/baskets/{number}/", "session", repeatable=True)

    def added(self, product: str, quantity: int) -> EngineRequest:
        """Adds to what is there: twice is twice as many."""
        body = {"url": product, "quantity": quantity}
        return self._ask("add product", "POST", "/basket/add-product/", "session", repeatable=False, body=body)

    def with_voucher(self, code: str) -> EngineRequest:
        body = {"vouchercode": code}
        return self._ask("add voucher", "POST", "/basket/add-voucher/", "session", repeatable=True, body=body)

    def lines(self, number: int) -> EngineRequest:
        return self._ask("read lines", "GET", f"/baskets/{number}/lines/", "none", repeatable=True)

    def shipping(self) -> EngineRequest:
        return self._ask("read shipping", "GET", "/basket/shipping-methods/", "none", repeatable=True)

    def checkout(self, basket: str, total: Decimal, shipping: str | None) -> EngineRequest:
        """The redemption: an order is placed, its vouchers are used up, the basket is frozen.

        Oscar compares the total: what came into the basket after it was read, a lost request for a product, stops it.
        """
        body = {"basket": basket, "total": total} | ({"shipping_method_code": shipping} if shipping else {})
        return self._ask("check out", "POST", "/checkout/", "redeems", repeatable=False, body=body)

    def orders(self) -> EngineRequest:
        return self._ask("read orders", "GET", "/orders/", "none", repeatable=True)

    def order_lines(self, number: int) -> EngineRequest:
        return self._ask("read order lines", "GET", f"/orders/{number}/lines/", "none", repeatable=True)

    def _ask(
        self, operation: str, method: str, path: str, effect: Effect, *, repeatable: bool, body: Any = None
    ) -> EngineRequest:
        return _request(operation, method, path, effect, repeatable=repeatable, body=body, session=self._session_id)


def registered(who: Who) -> EngineRequest:
    body = {"email": who.email, "password1": who.password, "password2": who.password}
    return _request("make account", "POST", "/register/", "session", repeatable=True, body=body)


def signed_in(who: Who) -> EngineRequest:
    """A guest's session becomes the account's, of the same name."""
    body = {"username": who.email, "password": who.password}
    return _request("sign in", "POST", "/login/", "session", repeatable=True, body=body, session=who.header("ANON"))


def _request(
    operation: str,
    method: str,
    path: str,
    effect: Effect,
    *,
    repeatable: bool,
    body: Any = None,
    session: str = "",
) -> EngineRequest:
    headers = [("Accept", "application/json"), ("Accept-Language", "en")]
    if body is not None:
        headers.append(("Content-Type", "application/json"))
    if session:
        headers.append(("Session-Id", session))
    return EngineRequest(
        operation=operation,
        method=method,
        path=path,
        body=b"" if body is None else _encode(body),
        headers=tuple(headers),
        effect=effect,
        repeatable=repeatable,
    )
