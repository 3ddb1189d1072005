"""django-oscar-api, emulated as far as a basket and its checkout go: written from its documentation and compared with
the real one (tests/test_shop.py), never from the adapter; neither imports the other.

`promotions-mapper sandbox` serves it at /oscar. Products: MUG, SHIRT, POSTER, PEN; of three pens or more, one is
free. Vouchers: TEN-PERCENT, SAVE-5, ONCE-5 (works once), MIN-100 (from 100.00), OLD-5 (expired),
MEMBERS-5 (once for each customer).
"""

import asyncio
import itertools
import re
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mapper.sandbox.emulator import PAUSE, Now
from mapper.sandbox.rulebook import RuleBook

CENT = Decimal("0.01")
PRODUCTS = {"MUG": "12.50", "SHIRT": "20.00", "POSTER": "9.99", "PEN": "1.00"}
SESSION = re.compile(r"^SID:(ANON|AUTH):(.*?):(.+?)(?:[-:][0-9a-fA-F]+){0,2}$")
NO_BASKET = {"detail": "No Basket matches the given query."}
TOO_MANY = "Due to technical limitations we are not able to ship more than 10000 items in one order."
QUALIFY = "Your basket does not qualify for a voucher discount"


@dataclass
class Promotion:
    """An offer; with a code, it is a voucher's."""

    name: str
    code: str = ""
    percent: int = 0
    amount: Decimal = Decimal(0)
    minimum: Decimal = Decimal(0)
    one_of_three: str = ""
    once: bool = False
    members: bool = False
    expired: bool = False


PROMOTIONS = (
    Promotion("3 pens for 2", one_of_three="PEN"),
    Promotion("5 off", "SAVE-5", amount=Decimal(5)),
    Promotion("5 off, once", "ONCE-5", amount=Decimal(5), once=True),
    Promotion("10 off from 100", "MIN-100", amount=Decimal(10), minimum=Decimal(100)),
    Promotion("5 off, last year", "OLD-5", amount=Decimal(5), expired=True),
    Promotion("5 off, once for each customer", "MEMBERS-5", amount=Decimal(5), members=True),
    Promotion("10 % off", "TEN-PERCENT", percent=10),
)


@dataclass
class Basket:
    id: int
    owner: str | None
    lines: dict[int, int] = field(default_factory=dict)
    """Quantities by product."""
    vouchers: list[str] = field(default_factory=list)
    frozen: bool = False


@dataclass
class Priced:
    off: dict[int, Decimal]
    """By product."""
    promotions: list[tuple[Promotion, Decimal]]


class OscarSandbox:
    """See `mapper.sandbox.emulator.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        self.currency = "USD"
        self.catalogue: dict[str, int] = {}
        """The number of each product, by its UPC."""
        self._prices: dict[int, Decimal] = {}
        self.reset()
        for upc, price in PRODUCTS.items():
            self.stock(upc, Decimal(price))

    def stock(self, upc: str, price: Decimal) -> None:
        """Puts a product into the catalogue, or changes its price."""
        number = self.catalogue.setdefault(upc, len(self.catalogue) + 1)
        self._prices[number] = price

    def reset(self) -> None:
        self._ids = itertools.count(1)
        self._baskets: dict[int, Basket] = {}
        self._sessions: dict[str, int] = {}
        """The basket of a guest's session."""
        self._accounts: dict[str, str] = {}
        """Passwords by address."""
        self._signed_in: dict[str, str] = {}
        """Who is signed in under the name of a session."""
        self._orders: dict[int, dict[str, Any]] = {}
        self._used: list[tuple[str, str]] = []
        """Vouchers, and who used them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        await asyncio.sleep(scope.get(PAUSE, 0))
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        status, answer = self._answer(request, path, msgspec.json.decode(body) if body else {})
        text = b"" if status == 204 else msgspec.json.encode(answer)
        await Response(text, status, media_type="application/json")(scope, receive, send)

    # -- The API

    def _answer(self, request: Request, path: str, body: Any) -> tuple[int, Any]:
        if not request.headers.get("authorization"):
            return 403, self.error(403)
        kind, name = self._session(request)
        if kind == "AUTH" and name not in self._signed_in:
            return 401, {"reason": "Authentication credentials were not provided."}
        owner = self._signed_in[name] if kind == "AUTH" else None
        parts = path.strip("/").split("/")
        match request.method, parts:
            case "GET", ["products"]:
                wanted = parse_qs(request.url.query, keep_blank_values=True).get("upc", [])
                found = [self._product(upc) for upc in self.catalogue if not wanted or upc in wanted]
                return 200, found
            case "GET", ["basket"]:
                return 200, self._shown(self._open(name, owner))
            case "DELETE", ["baskets", number]:
                return self._dropped(self._open(name, owner), int(number))
            case "GET", ["baskets", number, "lines"]:
                basket = self._open(name, owner)
                return (200, self._lines(basket)) if basket.id == int(number) else (404, NO_BASKET)
            case "POST", ["basket", "add-product"]:
                return self._add(self._open(name, owner), body)
            case "POST", ["basket", "add-voucher"]:
                return self._add_voucher(self._open(name, owner), body["vouchercode"].upper())
            case "GET", ["basket", "shipping-methods"]:
                free = {"currency": self.currency, "excl_tax": "0.00", "incl_tax": "0.00", "tax": "0.00"}
                return 200, [{"code": "no-shipping-required", "name": "No shipping required", "price": free}]
            case "POST", ["register"]:
                if body["email"] in self._accounts:
                    return 400, {"non_field_errors": ["A user with this email already exists"]}
                self._accounts[body["email"]] = body["password1"]
                return 201, body["email"]
            case "POST", ["login"]:
                if self._accounts.get(body["username"]) != body["password"]:
                    return 401, {"non_field_errors": ["invalid login"]}
                self._signed_in[name] = body["username"]
                return 200, ""
            case "POST", ["checkout"]:
                return self._check_out(owner, body)
            case "GET", ["orders", *_] if owner is None:
                return 403, {"detail": "Authentication credentials were not provided."}
            case "GET", ["orders"]:
                return 200, [order["shown"] for order in self._orders.values() if order["owner"] == owner]
            case "GET", ["orders", number, "lines"]:
                order = self._orders.get(int(number))
                return 200, order["lines"] if order and order["owner"] == owner else []
            case _:
                return 404, self.error(404)

    @staticmethod
    def _session(request: Request) -> tuple[str, str]:
        """As the real one reads it: without up to two endings of hexadecimal digits after a "-" or a ":"."""
        found = SESSION.match(request.headers.get("session-id", ""))
        return (found[1], f"{found[2]}:{found[3]}") if found else ("ANON", "")

    def _open(self, name: str, owner: str | None) -> Basket:
        """The open basket of an account or of a session; a new one where there is none."""
        if owner is not None:
            mine = (basket for basket in self._baskets.values() if basket.owner == owner and not basket.frozen)
            return next(mine, None) or self._made(owner)
        basket = self._baskets.get(self._sessions.get(name, 0)) or self._made(None)
        self._sessions[name] = basket.id
        return basket

    def _made(self, owner: str | None) -> Basket:
        basket = Basket(next(self._ids), owner)
        self._baskets[basket.id] = basket
        return basket

    def _dropped(self, basket: Basket, number: int) -> tuple[int, Any]:
        if basket.id != number:
            return (403, self.error(403)) if number in self._baskets else (404, NO_BASKET)
        del self._baskets[number]
        return 204, None

    def _add(self, basket: Basket, body: Any) -> tuple[int, Any]:
        product = _tail(body["url"])
        if product not in self._prices:
            return 406, {"reason": {"url": ["Invalid hyperlink - Object does not exist."]}}
        if sum(basket.lines.values()) + body["quantity"] > 10_000:
            return 406, {"reason": TOO_MANY}
        basket.lines[product] = basket.lines.get(product, 0) + body["quantity"]
        return 200, self._shown(basket)

    def _add_voucher(self, basket: Basket, code: str) -> tuple[int, Any]:
        refusal = self._refusal(code, basket.owner)
        if refusal:
            return 406, {"non_field_errors": [refusal]}
        with_it = Basket(basket.id, basket.owner, basket.lines, list(dict.fromkeys([*basket.vouchers, code])))
        if all(promotion.code != code for promotion, _ in self._price(with_it).promotions):
            basket.vouchers = [one for one in basket.vouchers if one != code]
            return 406, {"reason": QUALIFY}
        basket.vouchers = with_it.vouchers
        return 200, {"name": code, "code": code}

    def _check_out(self, owner: str | None, body: Any) -> tuple[int, Any]:
        basket = self._baskets.get(_tail(body["basket"]))
        if basket is None:
            return 400, ["Invalid hyperlink - Object does not exist."]
        if owner is None or basket.owner != owner or basket.frozen:
            return 401, "Unauthorized"
        if not basket.lines:
            return 406, {"non_field_errors": ["Cannot checkout with empty basket"]}
        number = len(self._orders) + 1
        shown = self._shown(basket)
        if Decimal(body.get("total", shown["total_incl_tax"])) != Decimal(shown["total_incl_tax"]):
            return 406, {"non_field_errors": [f"Total incorrect {body['total']} != {shown['total_incl_tax']}"]}
        order = {
            "number": str(100_000 + basket.id),
            "basket": shown["url"],
            "url": f"http://oscar.test/api/orders/{number}/",
            "lines": f"http://oscar.test/api/orders/{number}/lines/",
            "status": "new",
            "email": owner,
        }
        order |= {name: shown[name] for name in ("currency", "total_incl_tax", "offer_discounts", "voucher_discounts")}
        for entry in (*order["offer_discounts"], *order["voucher_discounts"]):
            entry["description"] = entry["voucher"]["name"] if "voucher" in entry else entry["name"]
        self._orders[number] = {"owner": owner, "shown": order, "lines": self._lines(basket)}
        self._used += [(code, owner) for code in basket.vouchers]
        basket.frozen = True
        return 200, order

    # -- How it looks

    def _product(self, upc: str) -> dict[str, Any]:
        number = self.catalogue[upc]
        return {"url": _url("products", number), "id": number, "upc": upc, "title": upc.title()}

    def _shown(self, basket: Basket) -> dict[str, Any]:
        priced, prices = self._price(basket), self._prices
        before = sum((prices[product] * count for product, count in basket.lines.items()), Decimal(0))
        discounts: dict[str, list[dict[str, Any]]] = {"offer_discounts": [], "voucher_discounts": []}
        for promotion, off in priced.promotions:
            entry: dict[str, Any] = {"description": None, "name": promotion.name, "amount": _text(off)}
            if promotion.code:
                entry["voucher"] = {"name": promotion.code, "code": promotion.code}
            discounts["voucher_discounts" if promotion.code else "offer_discounts"].append(entry)
        return {
            "id": basket.id,
            "status": "Open",
            "lines": _url("baskets", basket.id) + "lines/",
            "url": _url("baskets", basket.id),
            "total_incl_tax": _text(before - sum(priced.off.values(), Decimal(0))),
            "total_incl_tax_excl_discounts": _text(before),
            "currency": self.currency if basket.lines else None,
            **discounts,
        }

    def _lines(self, basket: Basket) -> list[dict[str, Any]]:
        priced, prices = self._price(basket), self._prices
        return [
            {
                "product": _url("products", product),
                "quantity": count,
                "attributes": [],
                "price_currency": self.currency,
                "price_incl_tax": _text(prices[product] * count - priced.off.get(product, Decimal(0))),
                "price_incl_tax_excl_discounts": _text(prices[product] * count),
            }
            for product, count in basket.lines.items()
        ]

    # -- The rules

    def _refusal(self, code: str, owner: str | None) -> str:
        found = next((one for one in PROMOTIONS if one.code == code and code), None)
        if found is None:
            return "Voucher code unknown"
        if found.expired:
            return f"The '{code}' voucher has expired"
        if found.once and any(used == code for used, _ in self._used):
            return "This voucher has already been used"
        if found.members and owner is None:
            return "This voucher is only available to signed in users"
        if found.members and (code, owner) in self._used:
            return "You have already used this voucher in a previous order"
        return ""

    def _price(self, basket: Basket) -> Priced:
        full = {product: self._prices[product] * count for product, count in basket.lines.items()}
        off = dict.fromkeys(full, Decimal(0))
        granted: list[tuple[Promotion, Decimal]] = []
        for promotion in PROMOTIONS:
            code = promotion.code
            absent = bool(code) and (code not in basket.vouchers or bool(self._refusal(code, basket.owner)))
            if absent or sum(full.values(), Decimal(0)) < promotion.minimum:
                continue
            shares = self._shares(promotion, basket, full, off)
            if total := sum(shares.values(), Decimal(0)):
                granted.append((promotion, total.quantize(CENT, ROUND_DOWN)))
                off = {product: off[product] + shares.get(product, Decimal(0)) for product in off}
        return Priced({product: value.quantize(CENT, ROUND_HALF_UP) for product, value in off.items()}, granted)

    def _shares(
        self, promotion: Promotion, basket: Basket, full: dict[int, Decimal], off: dict[int, Decimal]
    ) -> dict[int, Decimal]:
        if promotion.one_of_three:
            product = self.catalogue[promotion.one_of_three]
            return {product: self._prices[product] * (basket.lines.get(product, 0) >= 3)}
        if promotion.percent:
            parts = {product: price * promotion.percent / 100 for product, price in full.items()}
            return {product: min(full[product] - off[product], part) for product, part in parts.items()}
        cheapest_first = sorted(full, key=lambda product: self._prices[product])
        total = sum(full.values(), Decimal(0))
        left = amount = min(promotion.amount, total - sum(off.values(), Decimal(0)))
        shares = {}
        for product in cheapest_first:  # the last one gets what the others leave
            share = (amount * full[product] / (total or 1)).quantize(CENT, ROUND_DOWN)
            share = left if product == cheapest_first[-1] else share
            shares[product] = min(share, full[product] - off[product])
            left -= shares[product]
        return shares

    # -- How it looks from the host

    def books(self) -> dict[str, Any]:
        return {"orders": [{"email": order["owner"], **order["shown"]} for order in self._orders.values()]}

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        words = {"checkout": "check-out", "orders": "read-orders", "products": "find"}
        return words.get(path.strip("/").split("/")[0], "basket")

    def error(self, status: int) -> Any:
        return {"detail": f"error {status}"}

    def unknown_effect(self, reply: Any) -> Any:
        """A promotion that lowers nothing here, as those on shipping or after the order do."""
        if not isinstance(reply, dict) or "offer_discounts" not in reply:
            return reply
        balloon = {"description": "A balloon", "name": "A balloon", "amount": "0.00"}
        return {**reply, "offer_discounts": [*reply["offer_discounts"], balloon]}


def _url(kind: str, number: int) -> str:
    return f"http://oscar.test/api/{kind}/{number}/"


def _tail(url: str) -> int:
    found = re.search(r"/([0-9]+)/$", url)
    return int(found[1]) if found else 0


def _text(amount: Decimal) -> str:
    return str(amount.quantize(CENT))
