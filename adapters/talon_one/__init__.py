"""Talon.One: carts are customer sessions, promotions come as effects, closing the session redeems.

- `validate` puts the session, state `open`: https://docs.talon.one/docs/dev/tutorials/integrating-talon-one
- `check` puts it with `dry=true`, state `closed`: https://docs.talon.one/docs/dev/integration-api/dry-requests
- `redeem` puts it, state `closed`; `look_up` reads it; `undo` reopens it

Here are the conversations; `options` reads the settings, `session` writes the question, `effects` reads the answer.
Every answer is the complete set of effects, so nothing is ever accumulated.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import quote

import msgspec

from adapters.talon_one import effects, wire
from adapters.talon_one import options as settings
from adapters.talon_one.session import SessionRequest, session_request
from mapper.adapter import (
    Account,
    Adapter,
    Capabilities,
    Checkout,
    Conversation,
    EngineRejected,
    EngineReply,
    EngineRequest,
    EngineUnavailable,
    LookedUp,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Redeemed,
)

_JSON = ("Content-Type", "application/json")
_PATH = "/v2/customer_sessions/"

# The one message that is switched on; the vendor's own Salesforce cartridge does the same.
_CANNOT_MOVE = re.compile(r"cannot move session to state\W+\w+\W+from state\W+(\w+)", re.IGNORECASE)
_LOYALTY_CARD = re.compile(r"loyalty\W?cards?", re.IGNORECASE)
# A place in our own request. What is longer or stranger is not passed on.
_POINTER = re.compile(r"(/[A-Za-z0-9_.-]{1,64}){1,8}", re.ASCII)
_CLOSED = ("closed", "partially_returned")


class TalonOne(Adapter):
    name = "talon_one"
    contract = 1
    options = settings.OPTIONS
    capabilities = Capabilities(
        check=True,
        undo=True,
        repair=False,  # a session is closed once
        referral=True,
        loyalty=True,
        gift_cards=False,
        automatic=True,
        currencies="many",
        most_codes=None,
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = settings.read(options)
        self.accounts: Mapping[str, Account] = self._options.accounts

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """Opens the session, or updates it. PUT replaces what it names, so it may be sent any number of times."""
        request = session_request(checkout, session, self._options)
        reply = yield _put("open session", session, request, state="open")
        if _refuses_card(reply, request):
            request = request.without_card()
            reply = yield _put("open session", session, request, state="open")
        if (state := _cannot_move_from(reply)) is not None:
            ended = "cancelled" if state == "cancelled" else "completed"
            raise EngineRejected(
                f"This order has been {ended} already; a new checkout is needed.", reason="session_closed"
            )
        return _outcome(reply, request, strict=True)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Asks what closing would grant: a dry request considers its own payload alone, and stores nothing."""
        request = session_request(order, session, self._options)
        reply = yield _put("check session", session, request, state="closed", dry=True)
        if _refuses_card(reply, request):
            request = request.without_card()
            reply = yield _put("check session", session, request, state="closed", dry=True)
        if _cannot_move_from(reply) is not None:
            return (yield from _redeemed_before(session, request))
        return _outcome(reply, request, strict=False)

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Closes the session: the rules run once more, on list prices, and what they accept is redeemed.

        Not repeatable, although an idempotency key is sent: the key is honoured since August 2026, and a deployment
        that does not know it ignores it. Then only `look_up` can tell what happened.
        """
        request = session_request(order, session, self._options)
        reply = yield _put("close session", session, request, state="closed")
        if _cannot_move_from(reply) is not None:
            return Redeemed((yield from _redeemed_before(session, request)), request.account)
        return Redeemed(_outcome(reply, request, strict=False), request.account)

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the session. Raises `OrderMismatch` where it was closed with another cart or other codes."""
        return (yield from _look_up(session, session_request(order, session, self._options)))

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Reopens the session, which rolls the redemption back; a session that is not closed has nothing to undo.

        https://docs.talon.one/integration-api#tag/Customer-sessions/operation/reopenCustomerSession. Without an
        idempotency key: the stored answer would keep a later undo of the same order from happening.
        """
        account = handle if order is None else self._options.account(order.currency)
        path = f"{_PATH}{quote(session, safe='')}/reopen"
        reply = yield EngineRequest(
            operation="reopen session", method="PUT", path=path, account=account, effect="session", repeatable=True
        )
        if reply.status in (400, 404):
            again = yield _get(session, account)
            if again.status == 404 or (again.status == 200 and _session(again).state not in _CLOSED):
                return
        _insist(reply)


def _put(operation: str, session: str, request: SessionRequest, *, state: str, dry: bool = False) -> EngineRequest:
    """https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2"""
    body = request.body(state)
    closing = state == "closed" and not dry
    headers: list[tuple[str, str]] = [_JSON]
    if closing:
        headers.append(("Idempotency-Key", hashlib.sha256(b"\0".join((session.encode(), b"close", body))).hexdigest()))
    return EngineRequest(
        operation=operation,
        method="PUT",
        path=f"{_PATH}{quote(session, safe='')}{'?dry=true' if dry else ''}",
        body=body,
        headers=tuple(headers),
        account=request.account,
        effect="redeems" if closing else "none" if dry else "session",
        repeatable=not closing,
    )


def _get(session: str, account: str) -> EngineRequest:
    path = f"{_PATH}{quote(session, safe='')}"
    return EngineRequest(
        operation="read session", method="GET", path=path, account=account, effect="none", repeatable=True
    )


def _outcome(reply: EngineReply, request: SessionRequest, *, strict: bool) -> Outcome:
    _insist(reply)
    state = wire.read(reply.body)
    if state is None or state.effects is None:
        raise _bad_reply()
    return effects.read(state, request, strict=strict)


# ---------------------------------------------------------------------------------------------------------------------
# Did it happen?


def _look_up(session: str, request: SessionRequest) -> Conversation[LookedUp]:
    reply = yield _get(session, request.account)
    if reply.status == 404:  # not in the specification; an unknown session may as well come as an empty one
        return LookedUp("absent")
    _insist(reply)
    state = wire.read(reply.body)
    if state is None or (stored := state.session) is None:
        raise _bad_reply()
    if stored.state in (None, "", "open"):
        return LookedUp("absent")
    if stored.state == "cancelled":
        # Nothing is redeemed by it, and it can never be closed again.
        raise EngineRejected("The Talon.One session of this order has been cancelled.", reason="session_cancelled")
    if stored.state not in _CLOSED:
        raise _bad_reply()
    if not _same(stored, request):
        raise OrderMismatch(
            "The Talon.One session of this order was closed with another cart or other codes.", reason="other_content"
        )
    return LookedUp("redeemed", effects.read(state, request, strict=False))


def _redeemed_before(session: str, request: SessionRequest) -> Conversation[Outcome]:
    """After "cannot move": the session is closed already. By this very order, if it has the same content."""
    found = yield from _look_up(session, request)
    if found.state != "redeemed":
        raise EngineUnavailable(
            "Talon.One contradicts itself about the session's state.", reason="session_state", sent=True
        )
    return msgspec.structs.replace(found.outcome, redeemed=True)


def _session(reply: EngineReply) -> wire.StoredSession:
    state = wire.read(reply.body)
    if state is None or state.session is None:
        raise _bad_reply()
    return state.session


def _same(stored: wire.StoredSession, request: SessionRequest) -> bool:
    """Whether a stored session has the order's cart (compared numerically) and its codes (whatever their case)."""
    items = wire.items(stored.cart_items)
    if items is None:
        raise _bad_reply()
    theirs = [(i.sku, i.quantity, i.price) for i in items if i.price is not None and i.price.is_finite()]
    return (
        len(theirs) == len(items)
        and theirs == [(item.sku, item.quantity, item.price) for item in request.session.cart_items]
        and _folded(*(stored.coupon_codes or ())) == _folded(*request.session.coupon_codes)
        and _folded(stored.referral_code or "") == _folded(request.session.referral_code)
        and (not stored.loyalty_cards or _folded(*stored.loyalty_cards) == _folded(request.card))
    )


def _folded(*codes: str) -> set[str]:
    return {code.casefold() for code in codes}


# ---------------------------------------------------------------------------------------------------------------------
# Refusals: https://docs.talon.one/docs/dev/getting-started/errors


def _errors(reply: EngineReply) -> wire.ErrorReply:
    return wire.decode(wire.ERROR, reply.body) or wire.ErrorReply()


def _cannot_move_from(reply: EngineReply) -> str | None:
    """The state that keeps the session from being opened or closed; None where that is not the trouble."""
    match = _CANNOT_MOVE.search(_errors(reply).message or "") if reply.status == 400 else None
    return match[1].lower() if match else None


def _refuses_card(reply: EngineReply, request: SessionRequest) -> bool:
    """Whether the loyalty card is the trouble: there is no effect that refuses one, so it comes as an error."""
    if reply.status not in (400, 404) or not request.card:
        return False
    found = _errors(reply)
    texts = [found.message]
    for error in found.errors or ():
        texts += [error.title, error.details, error.source.pointer if error.source else None]
    return any(_LOYALTY_CARD.search(text) for text in texts if text)


def _insist(reply: EngineReply) -> None:
    """Raises unless the answer is 200. The engine's text is not passed on: it may tell what is nobody's business."""
    if reply.status == 200:
        return
    if reply.status in (401, 403):
        raise EngineRejected(
            "Talon.One does not accept the API key: it is wrong, expired, or of another Application.",
            reason="engine_key",
        )
    if reply.status == 404:
        raise EngineRejected("Talon.One does not know this address: check the base URL.", reason="not_found_at_engine")
    if 400 <= reply.status < 500:
        _refused(reply)
    raise _bad_reply()


def _refused(reply: EngineReply) -> NoReturn:
    pointers = [error.source.pointer for error in _errors(reply).errors or () if error.source and error.source.pointer]
    safe = [pointer for pointer in pointers if _POINTER.fullmatch(pointer)][:5]
    if not safe:
        raise EngineRejected("Talon.One refuses the request.", reason="request_rejected")
    raise EngineRejected(
        f"Talon.One refuses the request at {', '.join(safe)}."
        " Attributes and additional costs must exist in the Campaign Manager before they are sent.",
        reason="request_rejected",
        engine_pointers=safe,
    )


def _bad_reply() -> EngineUnavailable:
    return EngineUnavailable("Talon.One's answer cannot be read.", reason="bad_reply", sent=True)
