"""Nacelle's order orchestration, emulated: it calls the promotions mapper as Nacelle does, and takes orders.

    POST /v1/credential/token             a bearer token for client id and secret (also /v1/token)
    POST /api/v1/checkout/validate        one checkout, in the names of the mapper page or of the order model
    POST /api/v1/multicart/validate       a cart with `orders`
    POST /api/v1/multiorders              a paid order: consume, then it is stored
    POST /api/v1/orders, /v1/orders       order ingestion: stored as it comes, the mapper is not called
    /graphql/v1/spaces/<space>            product data: `mapper.sandbox.storefront`

Nacelle documents the paths, the headers, the signature, the required fields of an order, and the statuses (201,
but 200 for ingestion). An error of validate is returned to the client; one of consume stops the creation of the
order.

Nacelle does **not document** these, which are decided here: the mapper gets the space's id; the names in which it is
called are an option (`family`); the client gets the mapper's status and body (`mapper_unreachable` without a usable
answer); an order can be delivered again, from another address (`deliveries`, `retries`, `retry_ip`); the other steps of
a checkout (inventory, shipping, taxes, payments) do nothing.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mapper.sandbox import rulebook
from mapper.sandbox.emulator import PAUSE, Now
from mapper.sandbox.rulebook import RuleBook, RuleBookError, Table
from mapper.sandbox.storefront import Storefront, query_of_get

Json = dict[str, Any]
Members = dict[str, msgspec.Raw]
"""A JSON object whose values keep their bytes."""

MULTI_ORDER_NEEDS: Final = ("billing_address", "currency", "email", "payments", "price", "subtotal", "tax_amount")
"""The members that the reference of "Create a multi-order" marks as required, beside `orders`."""
ORDER_NEEDS: Final = ("currency", "payments")
"""The members that an order without `orders` needs. Nacelle has no list: its page shows orders with these."""

# From the names of the mapper page to those of the order model.
_ROOT: Final = {"items": "order_items", "total_discount": "discounts", "discounts": "applied_discounts"}
_LINE: Final = {"price": "price_amount", "total_discount": "discounts_amount", "discounts": "applied_discounts"}
_FAMILY: Final = {"items": "A", "order_items": "B", "orders": "C"}
_AT_ROOT: Final = frozenset(
    {"applied_discounts", "billing_address", "client_data", "comment", "currency", "customer", "discounts", "email",
     "id", "metadata", "payments", "phone", "price", "promotion", "promotions", "status", "subtotal", "tax_amount"}
)  # fmt: skip
"""The members at the root of a cart with `orders`, by Nacelle's model; the others belong to each order."""
_AMOUNTS: Final = frozenset({"applied_discounts", "discounts", "price", "subtotal", "tax_amount"})
"""Those that are sums over all orders."""


class Space(Table, frozen=True, kw_only=True):
    """A space of Nacelle, and the mapper that is connected to it."""

    mapper_url: str = "http://127.0.0.1:8080"
    secret: str = "a-secret-for-trying-out"  # noqa: S105 - of a sandbox
    """The key of the signature of its calls; "" for no signature."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """The optional authentication headers, such as `{"Secret": "…"}`."""
    family: Literal["as_sent", "A", "B", "C"] = "as_sent"
    """The family of names in which the mapper is called."""
    several: Literal["one_call", "each_order"] = "one_call"
    """How often the mapper is called for a cart with `orders`: once, or once for each. Nacelle documents neither."""
    deliveries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    """How often each order is delivered to consume, one after the other, whatever is answered."""
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    """How often it is delivered again after a 5xx, or without an answer."""
    retry_ip: str = ""
    """The address in `promotions.identifiers` of every delivery but the first: a phone that has changed its network."""


class Options(Table, frozen=True, kw_only=True):
    """`[engines.nacelle]` of the rule book."""

    spaces: dict[str, Space] = msgspec.field(default_factory=lambda: {"sandbox": Space()})
    clients: dict[str, str] = msgspec.field(default_factory=dict)
    """The secrets by client id of the clients that may have a token; empty for any client."""
    tokens: tuple[str, ...] = ("sandbox-token",)
    """Tokens that are valid without a request for one."""
    token_s: Annotated[int, msgspec.Meta(ge=1)] = 3600
    timeout_s: Annotated[int, msgspec.Meta(ge=1, le=120)] = 20
    """The time-out of a call to the mapper. Nacelle documents none."""


class _Refused(Exception):
    def __init__(self, status: int, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.details = status, message, details or {}


async def _refusal(_request: Request, refused: Exception) -> Response:
    assert isinstance(refused, _Refused), "it is registered for these"
    return _json(refused.status, {"code": refused.status, "message": refused.message, **refused.details})


class Reply(msgspec.Struct, frozen=True):
    """The mapper's answer; status 0 if there is none."""

    status: int
    body: bytes


class NacelleSandbox:
    """The emulator; see `mapper.sandbox.emulator.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        problems: list[rulebook.Problem] = []
        options = rulebook.read(book.engines.get("nacelle", {}), Options, "engines.nacelle", problems=problems)
        if problems:
            raise RuleBookError(problems)
        self._configured: Options = options
        self.now = now
        self._app = Starlette(
            routes=[
                Route("/v1/credential/token", self._token, methods=["POST"]),
                Route("/v1/token", self._token, methods=["POST"]),
                Route("/api/v1/checkout/validate", self._validate, methods=["POST"]),
                Route("/api/v1/multicart/validate", self._validate, methods=["POST"]),
                Route("/api/v1/multiorders", self._create, methods=["POST"]),
                Route("/api/v1/orders", self._ingest, methods=["POST"]),
                Route("/v1/orders", self._ingest, methods=["POST"]),
                Route("/graphql/v1/spaces/{space}", self._graphql, methods=["GET", "POST"]),
            ],
            exception_handlers={_Refused: _refusal},
        )
        self.reset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if pause := scope.get(PAUSE):
            await asyncio.sleep(pause)
        await self._app(scope, receive, send)

    def reset(self) -> None:
        self.options = self._configured
        self._issued: dict[str, datetime] = {}
        self._deliveries: list[Json] = []
        self._orders: list[Json] = []
        self._ingested: list[Json] = []
        self._storefront = Storefront()

    def configure(self, given: Mapping[str, Any]) -> Json:
        """Changes some options, among them `spaces`, until the reset; returns all of them. Raises `ValueError`."""
        self.options = msgspec.convert(msgspec.to_builtins(self.options) | dict(given), Options)
        shown: Json = msgspec.to_builtins(self.options)
        return shown

    def books(self) -> Json:
        """The `deliveries` to the mapper, the `orders` that it accepted, and those that were `ingested`, unchanged."""
        return {"deliveries": self._deliveries, "orders": self._orders, "ingested": self._ingested}

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """Returns token, validate, create, ingest or graphql; "other" for an unknown path."""
        words = {"token": "token", "validate": "validate", "multiorders": "create", "orders": "ingest"}
        return "graphql" if "/graphql/" in path else words.get(path.rpartition("/")[2], "other")

    def error(self, status: int) -> Json:
        return {"code": status, "message": "The sandbox was told to answer this."}

    def unknown_effect(self, reply: Any) -> Any:
        return reply

    # -- Who calls -----------------------------------------------------------------------------------------------------

    async def _token(self, request: Request) -> Response:
        given = await _object(request)
        client = str(given.get("client_id") or "")
        if given.get("grant_type") != "client_credentials" or given.get("audience") != "noms.api.nacelle.com":
            raise _Refused(400, 'grant_type is "client_credentials", audience is "noms.api.nacelle.com".')
        known = self.options.clients
        if not client or not given.get("client_secret") or (known and known.get(client) != given["client_secret"]):
            raise _Refused(401, "Client id and secret are wrong.")
        token = secrets.token_urlsafe(24)
        self._issued[token] = self.now() + timedelta(seconds=self.options.token_s)
        return _json(200, {"access_token": token, "expires_in": self.options.token_s})

    def _caller(self, request: Request, *, bare: bool = False) -> Space:
        """Returns the space of a call with a valid token. `bare`: the ingestion page shows a key without `Bearer`."""
        given = request.headers.get("authorization", "")
        token = given.removeprefix("Bearer ") if bare or given.startswith("Bearer ") else ""
        expires = self._issued.get(token)
        if token not in self.options.tokens and (expires is None or self.now() >= expires):
            raise _Refused(401, "A bearer token is needed; POST /v1/credential/token gives one.")
        space = request.headers.get("x-nacelle-space-id", "")
        if not space:
            raise _Refused(400, "The header X-Nacelle-Space-Id is required.")
        if space not in self.options.spaces:
            raise _Refused(403, "The token is not for this space.")
        return self.options.spaces[space]

    # -- Checkouts and orders ------------------------------------------------------------------------------------------

    async def _validate(self, request: Request) -> Response:
        self._caller(request)
        body = await request.body()
        members = _members(body)
        wants = ("orders",) if "multicart" in request.url.path else ("items", "order_items")
        if not any(key in members for key in wants):
            raise _Refused(400, f"The checkout needs {' or '.join(wants)}.")
        checkout = await self._call_mapper(request, "validate", members, body)
        return checkout if isinstance(checkout, Response) else _bytes(201, checkout)

    async def _call_mapper(self, request: Request, step: str, members: Members, body: bytes) -> msgspec.Raw | Response:
        """Returns the mapper's checkout or order, or the response for its first error."""
        name, subject = request.headers["x-nacelle-space-id"], {"validate": "checkout", "consume": "order"}[step]
        each = "orders" in members and self.options.spaces[name].several == "each_order"
        orders = msgspec.json.decode(members["orders"], type=list[msgspec.Raw]) if each else []
        parts = [_single_order(members, _members(own), number) for number, own in enumerate(orders)] if each else [body]
        answered = []
        for part in parts:
            reply = await self._deliver(name, step, part)
            if (found := _subject(reply, subject)) is None:
                return _error_response(reply, subject)
            answered.append(found)
        return msgspec.Raw(msgspec.json.encode(members | {"orders": answered})) if each else answered[0]

    async def _deliver(self, name: str, step: str, body: bytes) -> Reply:
        """Sends one checkout or order in the space's family of names; an order as often as the options say."""
        space = self.options.spaces[name]
        sent = _in_family(_members(body), body, space.family)
        reply = await self._send(name, space, step, sent)
        for number in range(1, space.deliveries + space.retries if step == "consume" else 1):
            if number >= space.deliveries and 0 < reply.status < 500:
                break
            again = _with_address(sent, space.retry_ip) if space.retry_ip else sent
            reply = await self._send(name, space, step, again)
        return reply

    async def _create(self, request: Request) -> Response:
        self._caller(request)
        body = await request.body()
        members = _members(body)
        needs = MULTI_ORDER_NEEDS if "orders" in members else ORDER_NEEDS
        absent = [name for name in needs if bytes(members.get(name, b"")) in (b"", b"null", b'""', b"[]")]
        if "orders" not in members and "order_items" not in members:
            absent.insert(0, "orders")
        if absent:
            raise _Refused(400, f"The order needs {', '.join(absent)}.", {"missing": absent})
        order = await self._call_mapper(request, "consume", members, body)
        if isinstance(order, Response):
            return order
        id_ = _id(members) or str(uuid.uuid4())
        self._orders.append({"id": id_, "space": request.headers["x-nacelle-space-id"], "order": order})
        return _json(201, {"id": id_})

    async def _ingest(self, request: Request) -> Response:
        self._caller(request, bare=True)
        body = await request.body()
        members = _members(body)
        if "currency" not in members:
            raise _Refused(400, "The order needs currency.", {"missing": ["currency"]})
        kept = members if "id" in members else {"id": msgspec.Raw(msgspec.json.encode(str(uuid.uuid4())))} | members
        order = msgspec.Raw(msgspec.json.encode(kept))
        space = request.headers["x-nacelle-space-id"]
        self._ingested.append({"id": _id(kept), "space": space, "order": order})
        return _bytes(200, order)

    async def validate(self, name: str, body: bytes) -> Reply:
        """Sends a checkout unchanged to the mapper of a space."""
        return await self._send(name, self.options.spaces[name], "validate", body)

    async def _send(self, name: str, space: Space, step: str, body: bytes) -> Reply:
        """Calls the mapper once. Status 0: it could not be reached, or took too long."""
        headers = {"content-type": "application/json", **space.headers, "x-nacelle-space-id": name}
        if space.secret:
            digest = hmac.new(space.secret.encode(), body, hashlib.sha256).hexdigest()
            headers["x-nacelle-signature-sha256"] = f"sha256={digest}"
        url = f"{space.mapper_url.rstrip('/')}/promotions/{step}"
        began = time.monotonic()
        reply = await asyncio.to_thread(_post, url, body, headers, self.options.timeout_s)
        self._deliveries.append(
            {
                "space": name,
                "step": step,
                "id": _id(_members(body)),
                "status": reply.status,
                "milliseconds": round(1000 * (time.monotonic() - began)),
                "sent": msgspec.Raw(body),
                "answered": reply.body.decode("utf-8", "replace"),
            }
        )
        return reply

    # -- Product data --------------------------------------------------------------------------------------------------

    async def _graphql(self, request: Request) -> Response:
        if request.path_params["space"] not in self.options.spaces:
            raise _Refused(404, "There is no such space.")
        try:
            asked = query_of_get(request.query_params) if request.method == "GET" else await _object(request)
        except ValueError as error:
            raise _Refused(400, f"The query cannot be read: {error}.") from None
        status, body = self._storefront.answer(asked)
        return _json(status, body)


# -- Bodies ------------------------------------------------------------------------------------------------------------


def _in_family(members: Members, body: bytes, family: str) -> bytes:
    """Returns the body in another family of names; unchanged if that family cannot express it."""
    came = next((_FAMILY[key] for key in ("orders", "order_items", "items") if key in members), "")
    if came == "A" and family in ("B", "C"):
        lines = [
            _renamed(_members(line), _LINE) for line in msgspec.json.decode(members["items"], type=list[msgspec.Raw])
        ]
        members = _renamed(members | {"items": msgspec.Raw(msgspec.json.encode(lines))}, _ROOT)
    elif came == "B" and family == "A":
        lines = [
            _renamed(_members(line), {new: old for old, new in _LINE.items()})
            for line in msgspec.json.decode(members["order_items"], type=list[msgspec.Raw])
        ]
        back = {"order_items": "items", "applied_discounts": "discounts", "discounts": "total_discount"}
        members = _renamed(members | {"order_items": msgspec.Raw(msgspec.json.encode(lines))}, back)
    if came in ("A", "B") and family == "C":
        root = {key: value for key, value in members.items() if key in _AT_ROOT}
        own = {key: value for key, value in members.items() if key not in _AT_ROOT}
        members = root | {"orders": msgspec.Raw(msgspec.json.encode([own]))}
    elif came == "C" and family == "B":
        orders = msgspec.json.decode(members["orders"], type=list[msgspec.Raw])
        if len(orders) != 1:  # only family C can express several orders
            return body
        members = _members(orders[0]) | {key: value for key, value in members.items() if key != "orders"}
    elif family in ("as_sent", came):
        return body
    return msgspec.json.encode(members)


def _single_order(members: Members, own: Members, number: int) -> bytes:
    """Returns one of several orders as an order of its own, with the members of the root that it does not have."""
    root = {key: value for key, value in members.items() if key in _AT_ROOT and key not in _AMOUNTS}
    if any(key in own for key in ("promotion", "promotions")):
        root = {key: value for key, value in root.items() if key not in ("promotion", "promotions")}
    if "id" in root:
        root["id"] = msgspec.Raw(msgspec.json.encode(f"{_id(members)}-{number}"))
    return msgspec.json.encode(root | own)


def _renamed(members: Members, names: Mapping[str, str]) -> Members:
    return {names.get(key, key): value for key, value in members.items()}


def _with_address(body: bytes, address: str) -> bytes:
    """Returns the body with another IP address in `promotions.identifiers`."""
    members = _members(body)
    for key in ("promotions", "promotion"):
        if bytes(members.get(key, b"")).startswith(b"{"):
            given = _members(members[key])
            if bytes(given.get("identifiers", b"")).startswith(b"["):
                identifiers = msgspec.json.decode(given["identifiers"], type=list[Any])
                moved = [address if _IP.fullmatch(str(each)) else each for each in identifiers] or [address]
                given["identifiers"] = msgspec.Raw(msgspec.json.encode(moved))
                members[key] = msgspec.Raw(msgspec.json.encode(given))
    return msgspec.json.encode(members)


_IP: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:]+")


def _members(body: bytes | msgspec.Raw) -> Members:
    """Raises `_Refused`."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise _Refused(400, "The body is no JSON object.") from None


async def _object(request: Request) -> Json:
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise _Refused(400, "The body is no JSON object.") from None


def _id(members: Members) -> str:
    value = msgspec.json.decode(members["id"]) if "id" in members else ""
    return str(value or "")


def _subject(reply: Reply, name: str) -> msgspec.Raw | None:
    """Returns the checkout or order of the mapper's answer; None for an error."""
    if reply.status != 200:
        return None
    try:
        members = msgspec.json.decode(reply.body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return None
    return None if "error" in members else members.get(name)


def _error_response(reply: Reply, name: str) -> Response:
    """Returns the response to the client for an error of the mapper."""
    try:
        members = msgspec.json.decode(reply.body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        members = {}
    if reply.status >= 400 and "error" in members:
        return _bytes(reply.status, reply.body)
    error = {"error": "The promotions mapper gave no answer that can be used.", "category": "mapper_unreachable"}
    return _json(500, {name: {}, "error": {**error, "details": {"status": reply.status}}})


def _json(status: int, value: Any) -> Response:
    return _bytes(status, msgspec.json.encode(value, enc_hook=str))


def _bytes(status: int, body: bytes | msgspec.Raw) -> Response:
    return Response(bytes(body), status, media_type="application/json")


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Reply:
    try:
        request = urllib.request.Request(url, body, dict(headers))  # noqa: S310 - the sandbox's own setting
        with _OPENER.open(request, timeout=timeout_s) as response:
            return Reply(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read())
    except (OSError, ValueError):
        return Reply(0, b"")
