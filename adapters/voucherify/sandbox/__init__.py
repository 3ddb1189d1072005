"""Voucherify's API, emulated: validations, redemptions, qualifications and orders on the sandbox's rule book.

Written from the vendor's documentation and OpenAPI files alone. It never imports the adapter, so that a field that one
of them misreads is not misread by both.

    POST   /v1/validations
    POST   /v1/redemptions
    GET    /v1/redemptions/{id}
    POST   /v1/redemptions/{id}/rollbacks, /v1/redemptions/{id}/rollback
    POST   /v1/qualifications
    GET    /v1/orders/{id or source id}
    PUT    /v1/orders/{id or source id}
    GET    /v1/vouchers/{code or id}
    DELETE /v1/vouchers/{code or id}/sessions/{key}

Documented at https://docs.voucherify.io. Where the documentation is silent, a comment says what is assumed. `catalog`
turns the rule book into vouchers and tiers, `orders` computes discounts, `stacking` decides which redeemables apply,
`project` handles the requests, `qualifications` finds candidates, `schema` validates requests, `state` is what is
stored.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.voucherify.sandbox.catalog import Catalog, Options
from adapters.voucherify.sandbox.errors import MESSAGES, Refused
from adapters.voucherify.sandbox.orders import with_nulls
from adapters.voucherify.sandbox.project import Call, Project
from adapters.voucherify.sandbox.schema import Check, Invalid, Schema
from mapper.sandbox import rulebook
from mapper.sandbox.emulator import PAUSE, Now
from mapper.sandbox.rulebook import RuleBook, RuleBookError

Json = dict[str, Any]

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_KEYS: Final = {
    400: "invalid_payload",
    401: "unauthorized",
    402: "missing_required_feature",
    403: "forbidden",
    404: "not_found",
    409: "duplicate_found",
}
_TEXTS: Final = {
    402: "Payment Required",
    403: "Forbidden",
    405: "HTTP Method Not Allowed",
    415: "Unsupported Media Type",
    429: "Too many requests hit the API too quickly.",
}


class _Error(Exception):
    """An error about path, method, credentials, media type or rate limit."""

    def __init__(self, status: int, details: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(details)
        self.status = status
        self.details = details
        self.headers = headers or {}


# The names of the operations in faults and logs, by method and path ("*" is one segment).
_ROUTES: Final = {
    "POST /v1/validations": "validate",
    "POST /v1/redemptions": "redeem",
    "GET /v1/redemptions/*": "redemption",
    "POST /v1/redemptions/*/rollbacks": "rollback",
    "POST /v1/redemptions/*/rollback": "rollback",
    "POST /v1/qualifications": "qualify",
    "GET /v1/orders/*": "order",
    "PUT /v1/orders/*": "update order",
    "GET /v1/vouchers/*": "voucher",
    "DELETE /v1/vouchers/*/sessions/*": "release",
}


def _pattern(path: str) -> str:
    """The path with its ids replaced by "*"."""
    segments = path.split("/")[1:]
    # Ids stand at the second and fourth place behind the version.
    return "".join(f"/{'*' if i in (2, 4) and segment else segment}" for i, segment in enumerate(segments))


class VoucherifySandbox:
    """The emulator; see `mapper.sandbox.emulator.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        problems: list[rulebook.Problem] = []
        options = rulebook.read(book.engines.get("voucherify", {}), Options, "engines.voucherify", problems=problems)
        if not problems:
            problems = [
                (f"engines.voucherify.stacks.{id_}", f"there is no campaign {number} without a code")
                for id_, numbers in options.stacks.items()
                for number in numbers
                if number not in book.campaign or book.campaign[number].needs != "nothing"
            ]
        if problems:
            raise RuleBookError(problems)
        self._keys = book.settings.api_keys
        self._options: Options = options
        self._catalog = Catalog(book, options)
        self._schema = Schema(options.redeemables_limit, strict=options.unknown_fields == "refuse")
        self._now = now
        self.reset()

    def reset(self) -> None:
        self._project = Project(self._catalog)
        self._in_flight: set[str] = set()
        self._requests = 0
        self._minute = (0, 0)
        """The current minute, and the number of calls in it."""

    # Called by the host.

    def books(self) -> dict[str, Any]:
        books = self._project.books
        return {
            "orders": {
                order.head.get("source_id") or id_: {
                    "id": id_,
                    "status": order.head["status"],
                    "amount": order.amount,
                    "discount": order.total_discount,
                    "redemptions": order.head["redemptions"],
                }
                for id_, order in books.orders.items()
            },
            "redemptions": [*books.log],
            "sessions": [
                {"id": id_, "key": key, "until": lock.until, "credits": lock.credits, "points": lock.points}
                for id_, locks in books.locks.items()
                for key, lock in locks.items()
            ],
            "codes": {code: uses for code, uses in books.uses.items() if uses},
            "campaigns": {
                str(id_): {"redemptions": count, "discount": Decimal(books.spent[id_]) / 100}
                for id_, count in books.redeemed.items()
            },
            "gift_cards": {code: Decimal(balance) / 100 for code, balance in books.balances.items()},
            "loyalty_cards": dict(books.points),
        }

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """One of the names in `_ROUTES`; "other" for any other request."""
        _, _, rest = path.partition("/v1/")
        return _ROUTES.get(f"{method} {_pattern(f'/v1/{rest}')}", "other")

    def error(self, status: int) -> Any:
        return self._error_body(status, "")

    def _error_body(self, status: int, details: str) -> Json:
        key = {"key": _KEYS[status]} if status in _KEYS else {}
        message = MESSAGES.get(_KEYS.get(status, ""), _TEXTS.get(status, "Internal Server Error"))
        return {"code": status, **key, "message": message, "details": details, "request_id": self._request_id()}

    def _request_id(self) -> str:
        return f"v-{self._requests:018x}"

    def unknown_effect(self, reply: Any) -> Any:
        """The reply with an unknown effect in every discount. The amounts do not change."""
        return _with_unknown_effects(reply)

    # HTTP.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self._requests += 1
        headers: dict[str, str] = {}
        try:
            headers = self._count()
            status, reply = await self._answer(request)
        except Refused as refused:
            status, reply = refused.status, refused.body(self._request_id())
        except Invalid as invalid:
            status, reply = 400, self._error_body(400, str(invalid))
        except _Error as error:
            status, reply = error.status, self._error_body(error.status, error.details)
            headers |= error.headers
        if self._options.absent_amounts == "null":
            reply = with_nulls(reply)
        body = b"" if status == 204 else _ENCODER.encode(reply)
        await Response(body, status, headers, media_type="application/json")(scope, receive, send)

    def _count(self) -> dict[str, str]:
        """Counts a call and returns the rate limit headers. Raises `_Error` 429."""
        now = int(self._now().timestamp())
        minute, calls = self._minute
        calls = calls + 1 if minute == now // 60 else 1
        self._minute = (now // 60, calls)
        limit, end = self._options.calls_per_minute, (now // 60 + 1) * 60
        headers = {
            "X-Rate-Limit-Limit": str(limit),
            "X-Rate-Limit-Remaining": str(max(0, limit - calls)),
            "X-Rate-Limit-Retry": str(end),
        }
        if calls > limit:
            raise _Error(429, headers=headers | {"Retry-After": str(end - now)})
        return headers

    async def _answer(self, request: Request) -> tuple[int, Any]:
        operation, ids = self._route(request)
        app_id = self._authenticated(request)
        payload = await self._payload(request, operation)
        pause: float = request.scope.get(PAUSE, 0)
        with self._lock(payload, ids if operation == "rollback" else []):
            await asyncio.sleep(pause)
            call = Call(self._now(), self._request_id(), app_id)
            return self._handle(operation, ids, payload, call, request)

    def _handle(self, operation: str, ids: list[str], payload: Json, call: Call, request: Request) -> tuple[int, Any]:
        project = self._project
        if operation == "release":
            project.release(ids[0], ids[1], call)
            return 204, None
        replies: dict[str, Callable[[], Json]] = {
            "validate": lambda: project.validate(payload, call),
            "redeem": lambda: project.redeem(payload, call),
            "qualify": lambda: project.qualify(payload, call),
            "redemption": lambda: project.redemption(ids[0]),
            "order": lambda: project.order(ids[0]),
            "update order": lambda: project.update_order(ids[0], payload),
            "voucher": lambda: project.voucher(ids[0]),
            "rollback": lambda: project.rollback(ids[0], payload, call, single=_path(request).endswith("/rollback")),
        }
        return 200, replies[operation]()

    def _route(self, request: Request) -> tuple[str, list[str]]:
        """The operation, and the ids in the path, each decoded from exactly one segment."""
        path = _path(request)
        pattern = _pattern(path)
        allowed = {
            method: name
            for route, name in _ROUTES.items()
            for method in [route.split()[0]]
            if route.endswith(f" {pattern}")
        }
        if not allowed:
            raise _Error(404, f"There is nothing at {path}")
        if request.method not in allowed:
            hint = " or ".join(allowed)
            raise _Error(405, f"{request.method} is not supported by this endpoint. Did you mean {hint}?")
        segments = path.split("/")[1:]
        try:
            ids = [unquote(segments[i], errors="strict") for i in (2, 4) if i < len(segments)]
        except UnicodeDecodeError:
            raise _Error(404, f"There is nothing at {path}") from None
        return allowed[request.method], ids

    def _authenticated(self, request: Request) -> str:
        """The application's id. Raises `_Error` 401."""
        app_id, token = request.headers.get("x-app-id", ""), request.headers.get("x-app-token", "")
        if not app_id or not token or (self._keys and token not in self._keys):
            raise _Error(401, "Pass a valid X-App-Id and X-App-Token.")
        return app_id

    async def _payload(self, request: Request, operation: str) -> Json:
        """The validated body; of a rollback, with the query's parameters."""
        checks: dict[str, Check] = {
            "validate": self._schema.stacked,
            "redeem": self._schema.stacked,
            "rollback": self._schema.rollback,
            "qualify": self._schema.qualification,
            "update order": self._schema.order,
        }
        if operation not in checks:
            return {}
        body = await request.body()
        if operation == "rollback":
            pairs = parse_qsl(request.scope["query_string"].decode("ascii", "replace"))
            query = {name: value for name, value in pairs if name in ("reason", "tracking_id")}
            return query | (self._schema.read(body, checks[operation]) if body else {})
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise _Error(415, "Only application/json is supported.")
        return self._schema.read(body, checks[operation])

    @contextmanager
    def _lock(self, payload: Json, redemptions: list[str]) -> Iterator[None]:
        """Locks the request's order, or the redemption to roll back and its order. Raises `Refused` if it is locked."""
        books, order = self._project.books, payload.get("order", {})
        ids = [str(order[name]) for name in ("id", "source_id") if order.get(name)]
        for redemption in redemptions:
            known = books.redemptions.get(redemption)
            ids += [redemption, known.order] if known and known.order else [redemption]
        stored = {id_: books.find_order(id_) for id_ in ids}
        # A stored order is locked under its own id, whichever id the request has.
        keys = {known_order.head["id"] if known_order else id_ for id_, known_order in stored.items()}
        if keys & self._in_flight:
            raise Refused("multiple_requests", "Another request uses this order at the same time.")
        self._in_flight |= keys
        try:
            yield
        finally:
            self._in_flight -= keys


def _path(request: Request) -> str:
    raw: str = request.scope["raw_path"].decode("ascii", "replace")
    return raw[len(request.scope.get("root_path", "")) :]


def _with_unknown_effects(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_unknown_effects(element) for element in value]
    if not isinstance(value, dict):
        return value
    changed = {name: _with_unknown_effects(part) for name, part in value.items()}
    if "type" in changed and "effect" in changed:
        changed |= {"type": "SANDBOX", "effect": "SANDBOX_TELEPORT_SHOPPER", "sandbox_where": ["up", None]}
    return changed
