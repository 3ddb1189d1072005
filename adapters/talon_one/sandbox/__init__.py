"""Talon.One's Integration API, emulated: customer sessions on the sandbox's rule book.

Written from the vendor's documentation alone. It never imports the adapter, so that a field that one of them misreads
is not misread by both.

    PUT /v2/customer_sessions/{id}[?dry=true]    update, close, cancel
    GET /v2/customer_sessions/{id}
    PUT /v2/customer_sessions/{id}/reopen
    POST /v2/customer_sessions/{id}/returns[?dry=true]

Documented at https://docs.talon.one/integration-api. Where the documentation is silent, a comment says what is assumed.
`schema` validates requests, `sessions` handles them. `rules`, `trial` and `effects` are the rule engine, `returns`
handles partial returns, `state` is what is stored, `replies` writes it as JSON.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.talon_one.sandbox.cart import ZERO, Cart, number_of
from adapters.talon_one.sandbox.errors import MESSAGES, ApiError, error_body
from adapters.talon_one.sandbox.locks import RequestLocks
from adapters.talon_one.sandbox.options import Options
from adapters.talon_one.sandbox.schema import Requests, time_of
from adapters.talon_one.sandbox.sessions import FieldPath, Sessions
from mapper.sandbox import rulebook
from mapper.sandbox.emulator import PAUSE, Now
from mapper.sandbox.rulebook import RuleBook, RuleBookError

Json = dict[str, Any]

_IDEMPOTENCY_TTL: Final = timedelta(hours=24)


class _SessionState(msgspec.Struct, frozen=True):
    state: str = "open"


class _StateOnly(msgspec.Struct, frozen=True):
    customerSession: _SessionState = _SessionState()  # noqa: N815 - the wire's spelling


_STATE: Final = msgspec.json.Decoder(_StateOnly)
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
_SESSIONS: Final = "/v2/customer_sessions/"
_ACTIONS: Final = {
    ("GET", ""): "read",
    ("PUT", ""): "update",
    ("PUT", "reopen"): "reopen",
    ("POST", "returns"): "return",
}
_NULLABLE_MAPS: Final = ("attributes", "additionalCosts")


class TalonOneSandbox:
    """The emulator; see `mapper.sandbox.emulator.Emulator`."""

    def __init__(self, book: RuleBook, now: Now) -> None:
        problems: list[rulebook.Problem] = []
        options = rulebook.read(book.engines.get("talon_one", {}), Options, "engines.talon_one", problems=problems)
        if problems:
            raise RuleBookError(problems)
        self._book = book
        self._now = now
        self._options: Options = options
        self._requests = Requests(book, strict=options.unknown_fields == "refuse")
        self.reset()

    def reset(self) -> None:
        self._sessions = Sessions(self._book, self._options, self._now)
        self._locks = RequestLocks()
        self._stored_replies: dict[tuple[str, str], tuple[datetime, int, bytes]] = {}
        """(expiry, status, body) by path and idempotency key."""

    # Called by the host.

    def books(self) -> dict[str, Any]:
        books = self._sessions.books
        return {
            "sessions": {
                id_: {
                    "state": session.state,
                    "updates": session.updates,
                    "closes": session.closes,
                    "profile": session.data["profileId"],
                    "coupons": session.data["couponCodes"],
                    "items_total": number_of(Cart(session.data).items_total),
                    "effects": session.effects,
                }
                for id_, session in books.sessions.items()
            },
            "redemptions": list(books.log),
            "codes": {code: uses for code, uses in books.uses.items() if uses},
            "campaigns": {
                str(id_): {"redemptions": count, "discount": number_of(books.spent.get(id_, ZERO))}
                for id_, count in books.redeemed.items()
            },
            "gift_cards": {code: number_of(balance) for code, balance in books.balances.items()},
            "loyalty_cards": {code: number_of(points) for code, points in books.points.items()},
        }

    def operation(self, method: str, path: str, query: str, body: bytes) -> str:
        """read, reopen, return, dry, open, close or cancel; "other" for any other request."""
        if _SESSIONS not in path:
            return "other"
        if method == "GET":
            return "read"
        if path.endswith("/reopen"):
            return "reopen"
        if path.endswith("/returns"):
            return "return"
        if "dry=true" in query:
            return "dry"
        try:
            state = _STATE.decode(body).customerSession.state
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return "other"
        return {"closed": "close", "cancelled": "cancel"}.get(state, "open")

    def error(self, status: int) -> Any:
        return error_body(status, MESSAGES.get(status, "Internal server error"))

    def unknown_effect(self, reply: Any) -> Any:
        effect = {
            "campaignId": 1,
            "rulesetId": 1001,
            "ruleIndex": 0,
            "ruleName": "A rule of tomorrow",
            "effectType": "sandboxTeleportShopper",
            "props": {"name": "beam", "value": 12.5, "position": 0, "where": ["up", None]},
        }
        if isinstance(reply, dict) and isinstance(reply.get("effects"), list):
            return reply | {"effects": [effect, *reply["effects"]]}
        return reply

    # HTTP.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            status, body = await self._answer(request)
        except ApiError as error:
            status, body = error.status, _ENCODER.encode(error.body)
        await Response(body, status, media_type="application/json")(scope, receive, send)

    async def _answer(self, request: Request) -> tuple[int, bytes]:
        id_, action = self._route(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        keys = self._book.settings.api_keys
        if scheme != "ApiKey-v1" or not key.strip() or (keys and key not in keys):
            raise ApiError(401, MESSAGES[401])
        pause: float = request.scope.get(PAUSE, 0)
        if action == "read":
            await asyncio.sleep(pause)
            return 200, _ENCODER.encode(self._sessions.read(id_))
        if action == "reopen":
            return await self._handle(request, id_, "", pause, dry=False, work=partial(self._sessions.reopen, id_))
        query = self._query(request, action)
        dry = query.get("dry") == "true" or self._options.testing_key
        payload, cleared = self._decode(await request.body(), action)
        if action == "return":
            work = partial(self._sessions.return_items, id_, payload, dry=dry)
            return await self._handle(request, id_, "", pause, dry=dry, work=work)
        now = time_of(query["now"]) if "now" in query else None
        work = partial(self._sessions.update, id_, payload, cleared, now, dry=dry)
        profile = self._sessions.profile_of(id_, payload["customerSession"])
        return await self._handle(request, id_, profile, pause, dry=dry, work=work)

    def _route(self, request: Request) -> tuple[str, str]:
        """The session's id, which is one segment of the path, and the action. Raises `ApiError` 404 or 405."""
        raw = request.scope["raw_path"].decode("ascii", "replace")
        path = raw[len(request.scope.get("root_path", "")) :]
        id_, slash, rest = path.removeprefix(_SESSIONS).partition("/")
        try:
            decoded = unquote(id_, errors="strict")
        except UnicodeDecodeError:
            decoded = ""
        if (
            not path.startswith(_SESSIONS)
            or decoded in ("", ".", "..")
            or (slash and rest not in ("reopen", "returns"))
        ):
            raise ApiError(404, MESSAGES[404])
        action = _ACTIONS.get((request.method, rest))
        if action is None:
            raise ApiError(405, MESSAGES[405])
        return decoded, action

    def _query(self, request: Request, action: str) -> dict[str, str]:
        pairs = parse_qsl(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
        query = dict(pairs)
        problems = []
        known = ("dry", "now") if action == "update" else ("dry", "runRuleEngine")
        for name, value in pairs:
            wrong = (
                name not in known
                or (name != "now" and value not in ("true", "false"))
                or (name == "now" and (query.get("dry") != "true" or not self._is_future(value)))
            )
            if wrong:
                problems.append({"title": "Invalid parameter", "details": value, "source": {"parameter": name}})
        if problems:
            raise ApiError(400, "The submitted data was invalid", problems)
        return query

    def _is_future(self, text: str) -> bool:
        moment = time_of(text)
        return moment is not None and moment > self._now()

    def _decode(self, body: bytes, action: str) -> tuple[Json, list[FieldPath]]:
        """The validated payload without nulls, and the fields that a null clears.

        Raises `ApiError` 400 with all problems.
        """
        try:
            payload = _DECODER.decode(body)
        except (msgspec.DecodeError, ArithmeticError, RecursionError, UnicodeDecodeError):
            raise ApiError(400, "The request body is not valid JSON") from None
        nulls: list[FieldPath] = []
        if action == "update" and self._options.nulls != "refuse":
            payload, nulls = _without_nulls(payload)
        problems = self._requests.problems(payload) if action == "update" else self._requests.return_problems(payload)
        if problems:
            raise ApiError(400, "The submitted data was invalid", problems)
        return dict(payload), nulls if self._options.nulls == "clear" else []

    async def _handle(
        self, request: Request, id_: str, profile: str, pause: float, *, dry: bool, work: Callable[[], Json]
    ) -> tuple[int, bytes]:
        """Does the work once its locks are free, or returns the stored reply of the same idempotency key.

        The documentation says that replies are stored for 24 hours, but not which. Here it is every reply of the rule
        engine, 200 or 400, and the body of the repeated request does not matter.
        """
        key = request.headers.get("idempotency-key", "")
        if len(key) > 255:
            raise ApiError(400, "The idempotency key is longer than 255 characters")
        keyed = bool(key) and self._options.idempotency_keys and not dry
        reply_key = (request.scope["raw_path"].decode("ascii", "replace"), key)
        async with self._locks.acquire([("session", id_)] + ([("profile", profile)] if profile else [])):
            await asyncio.sleep(pause)
            stored = self._stored_replies.get(reply_key)
            if keyed and stored is not None and stored[0] > self._now():
                return stored[1], stored[2]
            try:
                status, body = 200, _ENCODER.encode(work())
            except ApiError as error:
                status, body = error.status, _ENCODER.encode(error.body)
            if keyed:
                self._stored_replies[reply_key] = (self._now() + _IDEMPOTENCY_TTL, status, body)
            return status, body


def _without_nulls(payload: Any) -> tuple[Any, list[FieldPath]]:
    """The payload without the nulls in its session and in the maps of the session; and the fields that were null.

    The vendor does not document what a null does.
    """
    session = payload.get("customerSession") if isinstance(payload, dict) else None
    if not isinstance(session, dict):
        return payload, []
    nulls: list[FieldPath] = [(name,) for name, value in session.items() if value is None]
    kept = {name: value for name, value in session.items() if value is not None}
    for name in _NULLABLE_MAPS:
        if isinstance(kept.get(name), dict):
            nulls += [(name, key) for key, value in kept[name].items() if value is None]
            kept[name] = {key: value for key, value in kept[name].items() if value is not None}
    return payload | {"customerSession": kept}, nulls
