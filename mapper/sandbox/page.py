"""The sandbox's start page: campaigns, and codes to try, each one click away.

A click does what a storefront does: Nacelle's sandbox has the mapper of a space validate an example cart with the
code, and the page shows the cart before and after. Nothing is redeemed.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mapper import pages
from mapper.pages import Row
from mapper.sandbox.faults import FAULTS
from mapper.sandbox.nacelle import NacelleSandbox, Reply
from mapper.sandbox.rulebook import Coupon, Entry, GiftCard, LoyaltyCard, Referral, RuleBook

STYLE: Final = "/page.css"
ITEMS: Final = (
    {"sku": "SKU1234", "title": "Winter boots", "category": "shoes", "quantity": 1, "price": "140.00"},
    {"sku": "CUP-LARGE", "title": "Large cup", "category": "cups", "quantity": 2, "price": "25.00"},
    {"sku": "CUP-SMALL", "title": "Small cup", "category": "cups", "quantity": 3, "price": "20.00"},
)
"""The lines of the example cart: something for most campaigns."""


@dataclass(frozen=True)
class Code:
    shown: str
    try_this: str
    """The code, or the first of a family of codes."""
    note: str


@dataclass(frozen=True)
class Shown:
    """A campaign, and the codes that it takes."""

    name: str
    description: str
    running: bool
    codes: tuple[Code, ...]


@dataclass(frozen=True)
class Tried:
    """The result of one try. Bodies are indented JSON."""

    code: str
    status: int
    sent: str
    answered: str
    verdict: str
    problem: str = ""
    refused: tuple[Mapping[str, Any], ...] = ()
    notices: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[Row, ...] = ()


async def show(
    request: Request, book: RuleBook, nacelle: NacelleSandbox, engines: list[str], controls: str
) -> Response:
    """Returns the page; with the query `code`, it shows the result of trying that code."""
    space = next(iter(nacelle.options.spaces), "")
    tried = None
    if space and (code := request.query_params.get("code")) is not None:
        body = msgspec.json.encode(_checkout(book, code.strip()))
        tried = _tried(code.strip(), body, await nacelle.validate(space, body))
    return pages.page(
        "sandbox.html",
        css=STYLE,
        campaigns=[*_campaigns(book, nacelle)],
        tried=tried,
        mapper_url=nacelle.options.spaces[space].mapper_url if space else "",
        address=str(request.base_url).rstrip("/"),
        engines=engines,
        faults=FAULTS,
        controls=controls,
    )


def _campaigns(book: RuleBook, nacelle: NacelleSandbox) -> Iterator[Shown]:
    codes: dict[int, list[Code]] = {}
    for entry in book.entries:
        for campaign in _campaigns_of(book, entry):
            codes.setdefault(campaign, []).append(_code(entry))
    for one in sorted(book.campaigns, key=lambda campaign: campaign.id not in codes):
        yield Shown(one.name, one.description, one.running(nacelle.now()), tuple(codes.get(one.id, ())))


def _campaigns_of(book: RuleBook, entry: Entry) -> tuple[int, ...]:
    if isinstance(entry, LoyaltyCard):
        return book.program[entry.program].campaigns
    return (entry.campaign,)


def _code(entry: Entry) -> Code:
    if isinstance(entry, Coupon) and entry.family is not None:
        return Code(entry.codes, entry.family.code(entry.family.first), entry.note)
    return Code(entry.code or "", entry.code or "", entry.note)


def _checkout(book: RuleBook, code: str) -> dict[str, Any]:
    """Returns the example cart with a code, in the field of its kind."""
    found = book.find(code)
    entry = found[1] if found else None
    promotions: dict[str, Any] = {"coupon_codes": [code] if code else []}
    if isinstance(entry, Referral):
        promotions = {"referral_code": code}
    elif isinstance(entry, LoyaltyCard):
        promotions = {"loyalty_card": code}
    elif isinstance(entry, GiftCard):
        promotions["meta"] = {"gift_credits": {code: "10.00"}}
    return {
        "id": f"try-{secrets.token_hex(4)}",
        "currency": book.settings.currency,
        "items": ITEMS,
        "shipping_rate": {"price": "15.00"},
        "promotions": promotions,
    }


def _tried(code: str, sent: bytes, reply: Reply) -> Tried:
    answered = _indented(reply.body)
    seen = code or "No code", reply.status, _indented(sent), answered
    if not reply.status:
        problem = "No mapper answers there. `promotions-mapper serve` starts one; the README has its settings."
        return Tried(*seen, "not tried", problem)
    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, Any])
        if error := answer.get("error"):
            refused = tuple(error["details"].get("codes", ()))
            return Tried(*seen, "refused" if refused else "no answer", "" if refused else error["error"], refused)
        checkout = answer["checkout"]
        note = checkout["promotions"]["meta"]["mapper"]
        rows = tuple(_rows(checkout))
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, ArithmeticError):
        return Tried(*seen, "no answer", "What came back is no answer of a mapper.")
    refused, notices = tuple(note["rejected"]), tuple(note["notices"])
    verdict = f"{checkout['total_discount']} off, says {note['engine']}"
    return Tried(*seen, verdict, refused=refused, notices=notices, rows=rows)


def _indented(body: bytes) -> str:
    try:
        return msgspec.json.format(body, indent=2).decode()
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")


def _rows(checkout: Mapping[str, Any]) -> Iterator[Row]:
    """Reads the answer as a storefront would: family A, amounts as texts."""
    for own, line in zip(ITEMS, checkout["items"], strict=True):
        price, quantity = Decimal(str(own["price"])), int(str(own["quantity"]))
        gross = left = price * quantity
        yield Row("line", str(own["title"]), "", str(quantity), str(price), str(gross), 100)
        for discount in line["discounts"]:
            left -= Decimal(discount["amount"])
            yield _step(discount, left=round(100 * left / gross))
        if line["discounts"]:
            yield Row("net", "net", price=line["price"], amount=str(left))
    for discount in checkout["discounts"]:
        yield _step(discount, "order: ")
    yield Row("total", "total discount", amount=checkout["total_discount"])


def _step(discount: Mapping[str, Any], before: str = "", left: int | None = None) -> Row:
    return Row("step", f"{before}{discount['name']}", discount["effect_type"], amount=discount["amount"], left=left)
