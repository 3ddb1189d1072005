"""A shopper's calls through Nacelle, with one engine, as the demo shows them and the tests check them.

A cart is validated, changed and validated again; a code is refused; the engine is down; a payment is cancelled; the
order is paid and delivered twice. A second order meets an engine that is down, and then one whose reply is lost. At
last the first order is cancelled. `World` runs the services on this machine. `Journey.run` raises `Unexpected` for a
wrong answer. Its last steps check that the shopper paid what was shown, and that each code is redeemed at most once.
"""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from mapper import settings
from mapper.adapter import SANDBOXES, known
from mapper.domain import money, signature
from mapper.http import app
from mapper.nacelle.convert import order_of
from mapper.sandbox import host as sandbox

Json = dict[str, Any]

# The checkout of Nacelle's page on the promotions mapper, with the shipping that its answer names.
CHECKOUT: Final[Json] = {
    "id": "1001",
    "currency": "USD",
    "customer": {"id": "shopper-7"},
    "items": [
        {
            "product_id": "my-product-id",
            "variant_id": "my-variant-id",
            "sku": "SKU1234",
            "quantity": 1,
            "price": "140.00",
        }
    ],
    "shipping_rate": {"name": "Standard", "price": "15.00"},
    "promotions": {
        "coupon_codes": ["XMAS-2021-25"],
        "referral_code": "",
        "loyalty_card": "",
        "identifiers": ["91.11.156.141"],
        "meta": {},
    },
}
CODE: Final = "XMAS-2021-25"
REFUSED: Final = "EXPIRED-10"
SINGLE: Final = "SINGLE-0001"
ANOTHER_ADDRESS: Final = "203.0.113.7"


@dataclass(frozen=True)
class Connection:
    """The settings that connect the service to an engine's sandbox at `{url}`, and the request that redeems."""

    settings: Mapping[str, str]
    redeems: str


ENGINES: Final[dict[str, Connection]] = {
    "talon_one": Connection(
        {
            "TALON_ONE_BASE_URL": "{url}/talon_one",
            "TALON_ONE_API_KEY": "sandbox-key",
            "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
        },
        "close",
    ),
    "voucherify": Connection(
        {
            "VOUCHERIFY_BASE_URL": "{url}/voucherify",
            "VOUCHERIFY_APP_ID": "sandbox-id",
            "VOUCHERIFY_APP_TOKEN": "sandbox-token",
            "VOUCHERIFY_PROMOTIONS": "qualify",
        },
        "redeem",
    ),
}


class Unexpected(Exception):
    """An answer, or the sandbox's state, is not as expected."""


@dataclass(frozen=True)
class Exchange:
    """One call and its answer, as JSON."""

    call: str
    sent: Any
    status: int
    answer: Any


@dataclass(frozen=True)
class Step:
    """One step. `title` and `shows` are the same for each engine; `result` is of this one."""

    title: str
    result: str
    shows: str
    exchanges: tuple[Exchange, ...]


class World(AbstractContextManager["World"]):
    """The sandbox, and a service in front of each engine, on free ports of this machine."""

    def __init__(self, ledgers: Mapping[str, str]) -> None:
        """`ledgers`: `MAPPER_LEDGER_URL` by engine."""
        self.engines = [name for name in ENGINES if name in known(SANDBOXES) and name in ledgers]
        self.secret, self.cancel_secret = secrets.token_hex(16), secrets.token_hex(16)
        self.services: dict[str, str] = {}
        self.url = ""
        self._ledgers = ledgers
        self._running = ExitStack()

    def environment(self, engine: str) -> dict[str, str]:
        """Returns the settings of an engine's service."""
        own = {name: value.format(url=self.url) for name, value in ENGINES[engine].settings.items()}
        return own | {
            "MAPPER_ENGINE": engine,
            "NACELLE_SIGNING_SECRETS": self.secret,
            "NACELLE_SPACE_IDS": space_of(engine),
            "MAPPER_LEDGER_URL": self._ledgers[engine],
            "MAPPER_CANCEL_SECRETS": self.cancel_secret,
            "MAPPER_CONSUME_REQUIRES": "/payments/0",
            "MAPPER_RECEIPT": "required",
        }

    def __enter__(self) -> Self:
        with ExitStack() as running:
            self.url = running.enter_context(sandbox.running(sandbox.create()))
            for engine in self.engines:
                service = app.create(settings.load(self.environment(engine)))
                self.services[engine] = running.enter_context(sandbox.running(service))
            self.connect()
            self._running = running.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.close()

    def connect(self, **given: object) -> None:
        """Connects Nacelle's sandbox to the mapper of each space. `given`: further options of the spaces."""
        spaces = {
            space_of(engine): {"mapper_url": url, "secret": self.secret, **given}
            for engine, url in self.services.items()
        }
        self.control("nacelle", {"spaces": spaces})

    def control(self, name: str, body: object = None) -> Any:
        return _send(f"{self.url}/_sandbox/{name}", body, {}).answer

    def journey(self, engine: str) -> "Journey":
        return Journey(self, engine)


@dataclass
class Journey:
    world: World
    engine: str
    shown: dict[str, int] = field(default_factory=dict)
    """The cost of each order as last shown to the shopper, in cents, by order id."""
    before: Json = field(default_factory=dict)
    """The first order's cart at list prices."""
    after: Json = field(default_factory=dict)
    """The first order's cart as last validated."""
    token: str = ""
    second: Json = field(default_factory=dict)
    """The second order's validated cart."""
    _exchanges: list[Exchange] = field(default_factory=list)

    def run(self) -> Iterator[Step]:
        """Runs the steps one by one. Raises `Unexpected`."""
        yield self._step("A token from Nacelle", self._get_token(), "client credentials, as documented")
        yield self._step("Validate the cart", self._validate(), "signed, then asked of the engine")
        yield self._step("One more of it: validate", self._change(), "nothing is discounted twice")
        yield self._step(f"The code {REFUSED}", self._refused(), "422, and the shopper is told why")
        yield self._step("Validate, the engine down", self._outage(), "422 is handed to the shop")
        yield self._step("The payment is cancelled", self._unpaid(), "consume is never called")
        yield self._step("Paid; delivered twice", self._order_twice(), "the second from another address")
        yield self._step("2nd order, the engine down", self._order_in_outage(), "no order without its promotions")
        yield self._step("Again; the answer is lost", self._order_again(), "the engine is asked what happened")
        yield self._step("1st order cancelled later", self._cancel(), "by the merchant, and for good")
        yield self._step("Paid is what was shown", self._paid_as_shown(), "in the orders that Nacelle stored")
        yield self._step("Codes, by the books", self._redeemed_once(), f"{CODE}, {SINGLE}, {REFUSED}")

    # -- The steps: each returns its result in a few words -------------------------------------------------------------

    def _get_token(self) -> str:
        given = {
            "client_id": "shop",
            "client_secret": "secret",
            "audience": "noms.api.nacelle.com",
            "grant_type": "client_credentials",
        }
        answer = self._nacelle("v1/credential/token", given)
        _expect(answer, 200)
        self.token = answer.answer["access_token"]
        return f"good for {answer.answer['expires_in']} s"

    def _validate(self) -> str:
        self.before = CHECKOUT
        self.after = self._validated(CHECKOUT)
        item = self.after["items"][0]
        prices = (item["price"], item["total_discount"], self.after["total_discount"])
        _must(prices == ("105.00", "35.00", "50.00"), f"the prices are {prices}")
        return f"{_text(cost(self.before))} to {_text(cost(self.after))}"

    def _change(self) -> str:
        """Sends the validated cart, with its reduced prices, with one more of the item."""
        changed = {**self.after, "items": [{**self.after["items"][0], "quantity": 2}]}
        self.before = {**CHECKOUT, "items": [{**CHECKOUT["items"][0], "quantity": 2}]}
        self.after = self._validated(changed)
        item = self.after["items"][0]
        prices = (item["price"], item["total_discount"], self.after["total_discount"])
        _must(prices == ("105.00", "70.00", "85.00"), f"the prices are {prices}")
        again = self._validated(self.after)
        _must(_without_receipt(again) == _without_receipt(self.after), "the same cart gets another answer")
        self.after = again
        self.shown["1001"] = cost(self.after)
        return f"{_text(cost(self.before))} to {_text(cost(self.after))}"

    def _refused(self) -> str:
        promotions = {**self.after["promotions"], "coupon_codes": [CODE, REFUSED]}
        answer = self._nacelle("api/v1/checkout/validate", {**self.after, "promotions": promotions})
        _expect(answer, 422)
        details = answer.answer["error"]["details"]
        _must(details["invalid-code"] == REFUSED, f"refused is {details['invalid-code']}")
        reason = next(entry["reason"] for entry in details["codes"] if entry["code"] == REFUSED)
        return f"refused: {reason}"

    def _outage(self) -> str:
        self._break([{"name": "status", "value": 503, "engine": self.engine}])
        answer = self._nacelle("api/v1/checkout/validate", self.after)
        self._break([])
        _expect(answer, 422)
        _must(answer.answer["error"]["category"] == "engine_unavailable", "an outage has another category")
        return str(answer.answer["error"]["category"])

    def _unpaid(self) -> str:
        asked = len(self._books("nacelle")["deliveries"])
        answer = self._nacelle("api/v1/multiorders", {**self._order(self.after), "payments": []})
        _expect(answer, 400)
        _must(len(self._books("nacelle")["deliveries"]) == asked, "an unpaid order came to the mapper")
        _must(self._redeemed(CODE) == 0, "a code was redeemed without an order")
        return "nothing redeemed"

    def _order_twice(self) -> str:
        self.world.connect(deliveries=2, retry_ip=ANOTHER_ADDRESS)
        answer = self._nacelle("api/v1/multiorders", self._order(self.after))
        self.world.connect()
        _expect(answer, 201)
        deliveries = self._books("nacelle")["deliveries"][-2:]
        _must([each["status"] for each in deliveries] == [200, 200], f"consume answers {deliveries}")
        _must(ANOTHER_ADDRESS in json.dumps(deliveries[1]["sent"]), "the second delivery is the first")
        _must(self._redeemed(CODE) == 1, f"the code was redeemed {self._redeemed(CODE)} times")
        return "redeemed once"

    def _order_in_outage(self) -> str:
        cart = {**CHECKOUT, "id": "1002", "promotions": {**CHECKOUT["promotions"], "coupon_codes": [SINGLE]}}
        self.second = self._validated(cart)
        self.shown["1002"] = cost(self.second)
        self._break([{"name": "status", "value": 503, "engine": self.engine}])
        answer = self._nacelle("api/v1/multiorders", self._order(self.second))
        self._break([])
        _expect(answer, 500)
        _must("1002" not in [order["id"] for order in self._orders()], "there is an order without its promotions")
        _must(self._redeemed(SINGLE) == 0, "a code was redeemed without an order")
        return str(answer.answer["error"]["category"])

    def _order_again(self) -> str:
        """The engine redeems, but its reply is lost: the service asks it what happened."""
        redeems = ENGINES[self.engine].redeems
        self._break([{"name": "close_after", "engine": self.engine, "operation": redeems, "count": 1}])
        answer = self._nacelle("api/v1/multiorders", self._order(self.second))
        self._break([])
        _expect(answer, 201)
        _must(self._redeemed(SINGLE) == 1, f"the code was redeemed {self._redeemed(SINGLE)} times")
        return "redeemed once"

    def _cancel(self) -> str:
        """The merchant cancels the first order twice, then Nacelle sends it once more."""
        self._mapper("cancel", {"cancel": {"id": "1001"}}, self.world.cancel_secret)
        answer = self._mapper("cancel", {"cancel": {"id": "1001"}}, self.world.cancel_secret)
        _expect(answer, 200)
        _must(self._redeemed(CODE) == 0, "the code is still used up")
        again = self._mapper("consume", self._order(self.after), self.world.secret)
        _expect(again, 400)
        return "code free again"

    def _paid_as_shown(self) -> str:
        paid = {order["id"]: cost(order["order"]) for order in self._orders()}
        _must(paid == self.shown, f"shown was {self.shown}, paid was {paid}")
        return ", ".join(_text(amount) for amount in paid.values())

    def _redeemed_once(self) -> str:
        """The first order was cancelled, so that its code is not redeemed any more."""
        used = {code: self._redeemed(code) for code in (CODE, SINGLE, REFUSED)}
        _must(used == {CODE: 0, SINGLE: 1, REFUSED: 0}, f"the engine's books say {used}")
        return ", ".join(f"{code.partition('-')[0]} {used[code]}" for code in (CODE, SINGLE))

    # -- Parts of the steps --------------------------------------------------------------------------------------------

    def _step(self, title: str, result: str, shows: str) -> Step:
        exchanges, self._exchanges = tuple(self._exchanges), []
        return Step(title, result, shows, exchanges)

    def _validated(self, checkout: Json) -> Json:
        answer = self._nacelle("api/v1/checkout/validate", checkout)
        _expect(answer, 201)
        return dict(answer.answer)

    def _order(self, checkout: Json) -> Json:
        """Returns the paid order of a validated checkout, as Nacelle sends it to consume."""
        paid = {"checkout": checkout, "payments": [{"id": f"pay-{checkout['id']}", "amount": _text(cost(checkout))}]}
        order: Json = json.loads(order_of(json.dumps(paid).encode()).body)
        return order

    def _orders(self) -> list[Json]:
        """Returns the orders that Nacelle has stored for this engine's space."""
        return [order for order in self._books("nacelle")["orders"] if order["space"] == space_of(self.engine)]

    def _redeemed(self, code: str) -> int:
        return int(self._books(self.engine)["codes"].get(code, 0))

    def _books(self, name: str) -> Any:
        return self.world.control("books")[name]

    def _break(self, faults: list[Json]) -> None:
        self.world.control("faults", faults)

    def _nacelle(self, path: str, body: Json) -> Exchange:
        headers = {"authorization": f"Bearer {self.token}", "x-nacelle-space-id": space_of(self.engine)}
        return self._record(_send(f"{self.world.url}/nacelle/{path}", body, headers))

    def _mapper(self, operation: str, body: Json, secret: str) -> Exchange:
        """Calls the mapper directly, signed with one of its secrets."""
        data = json.dumps(body).encode()
        headers = {signature.SIGNATURE.decode(): signature.sign(data, secret.encode())}
        headers[signature.SPACE.decode()] = space_of(self.engine)
        return self._record(_send(f"{self.world.services[self.engine]}/promotions/{operation}", data, headers))

    def _record(self, exchange: Exchange) -> Exchange:
        self._exchanges.append(exchange)
        return exchange


def space_of(engine: str) -> str:
    """Returns the Nacelle space that is connected to an engine's service."""
    return f"shop-{engine.replace('_', '-')}"


def cost(document: Json) -> int:
    """Returns what a checkout or order costs in cents: lines and shipping, less the discounts at the root."""
    lines = document.get("items") or document.get("order_items") or []
    goods = sum(int(line["quantity"]) * cents(line.get("price") or line["price_amount"]) for line in lines)
    listed: list[Json] = next((document[key] for key in ("applied_discounts", "discounts") if key in document), [])
    return goods + cents(document["shipping_rate"]["price"]) - sum(cents(entry["amount"]) for entry in listed)


def cents(text: str) -> int:
    return money.parse(text, 2)


def _text(amount: int) -> str:
    return money.text(amount, 2)


def _without_receipt(checkout: Json) -> Json:
    copy: Json = json.loads(json.dumps(checkout))
    copy["promotions"]["meta"]["mapper"].pop("receipt")
    return copy


def _must(expected: bool, otherwise: str) -> None:
    if not expected:
        raise Unexpected(otherwise)


def _expect(exchange: Exchange, status: int) -> None:
    _must(exchange.status == status, f"{exchange.call} answers {exchange.status}: {json.dumps(exchange.answer)}")


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _send(url: str, body: object, headers: Mapping[str, str]) -> Exchange:
    """POSTs a body (bytes unchanged, anything else as JSON), or GETs without one."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})  # noqa: S310 - our own
    try:
        with _OPENER.open(request, timeout=60) as response:
            status, answer = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, answer = error.code, error.read()
    call = f"{request.get_method()} {url}"
    return Exchange(call, None if data is None else json.loads(data), status, json.loads(answer))
