"""Talon.One: a cart is a customer session, promotions come as effects, closing the session redeems them.

- `validate` updates the session in state `open`: https://docs.talon.one/docs/dev/tutorials/integrating-talon-one
- `check` sends the close as a dry request: https://docs.talon.one/docs/dev/integration-api/dry-requests
- `redeem` closes the session, `look_up` reads it, `undo` reopens it, or cancels it for good

This module holds the conversations. `options` reads the settings, `request` builds the customer session, `replies` and
`effects` read the reply, and `stored` compares the session that Talon.One stores with the one that is sent. Each reply
holds the complete set of effects, so the adapter keeps nothing between two calls.
"""

import hashlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import msgspec

from adapters.talon_one import effects, replies, stored
from adapters.talon_one import options as settings
from adapters.talon_one.request import MAX_REPLY_BYTES, SessionRequest, session_request
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
    Notice,
    NotRedeemed,
    OrderMismatch,
    Outcome,
    Reason,
    Redeemed,
)

_JSON = ("Content-Type", "application/json")
_PATH = "/v2/customer_sessions/"
_CANCEL_BODY = b'{"customerSession":{"state":"cancelled"},"responseContent":["customerSession"]}'
_CLOSED = ("closed", "partially_returned")
_NO_SESSION = replies.StoredSession()
_LIMIT_REASONS = (
    Reason.USED_UP,
    Reason.CUSTOMER_LIMIT_REACHED,
    Reason.BUDGET_USED_UP,
    Reason.ALREADY_REFERRED,
)
"""The reasons that a redemption of this very order may have caused."""
# An order moves to another session only where the last one holds stale values; more than two moves are not tried.
_MAX_SESSIONS = 3


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
        self.cost_pointers: tuple[str, ...] = tuple(self._options.additional_costs.values())

    def validate(self, checkout: Checkout, session: str) -> Conversation[Outcome]:
        """Creates or updates the open session. The PUT replaces every field that it names, so it is repeatable.

        Raises `EngineRejected` with the reason `session_closed` where the caller must use another session: this one is
        closed, or holds stale values that would count.
        """
        request = session_request(checkout, session, self._options)
        reply, request = yield from _update(session, request, "open session", state="open")
        if replies.blocking_state(reply) is not None:
            raise _session_closed()
        state = replies.state_of(reply)
        if state.session is not None and stored.stale_after_update(state.session, session, request):
            raise _session_closed()
        return effects.read(_require_effects(state), request, strict=True)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Asks what closing would grant. A dry request reads its own payload alone and stores nothing.

        It therefore rejects a code or a budget that this order itself has used up. That happens where the ledger was
        lost, so the session is looked up then.
        """
        request = session_request(order, session, self._options)
        reply, request = yield from _update(session, request, "check session", state="closed", dry=True)
        if replies.blocking_state(reply) is not None:
            return (yield from _already_redeemed(session, request)).outcome
        outcome = effects.read(_require_effects(replies.state_of(reply)), request, strict=False)
        if any(rejection.reason in _LIMIT_REASONS for rejection in outcome.rejected):
            looked_up = yield from self.look_up(order, session)
            if looked_up.state == "redeemed":
                return msgspec.structs.replace(looked_up.outcome, redeemed=True)
        return outcome

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Closes the session. Talon.One runs the rules once more, on list prices, and redeems what they accept.

        The request is not repeatable, although it carries an idempotency key: Talon.One honours the key since August
        2026, and an older deployment ignores it. `look_up` tells what happened.
        """
        request = session_request(order, session, self._options)
        session = yield from _session_to_close(session, request)
        reply, request = yield from _update(session, request, "close session", state="closed", attempt=order.attempt)
        if replies.blocking_state(reply) is not None:
            return (yield from _already_redeemed(session, request))
        if replies.is_mute(reply):
            raise replies.unreadable_reply()  # the request may have been delivered twice
        state = replies.state_of(reply)
        current = state.session or _NO_SESSION
        if current.state not in _CLOSED:
            # The reply may be a stored one, or one without the session: read the session itself.
            current = yield from _read_session(session, request.account)
        if current.state not in _CLOSED:
            raise EngineUnavailable("Talon.One has not closed the session.", reason="not_closed")
        outcome = effects.read(_require_effects(state), request, strict=False)
        stale = stored.stale_after_update(current, session, request)
        return Redeemed(_with_stale_notice(outcome, stale), _handle(request.account, session))

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the session. Raises `OrderMismatch` where it was closed with another cart or other codes."""
        request = session_request(order, session, self._options)
        for name in _sessions(session, handle, request):
            looked_up = yield from _look_up(name, request)
            if looked_up.state != "absent":
                return looked_up
        return LookedUp("absent")

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Reopens the session, or cancels it if `final`. Both roll the redemption back.

        https://docs.talon.one/integration-api#tag/Customer-sessions/operation/reopenCustomerSession. No idempotency key
        is sent: Talon.One would answer a later undo of the same order from its store, without doing it.
        """
        undo = _cancel if final else _reopen
        if handle:
            account, name = handle.split("/", 1)
            if account not in self.accounts:
                message = f"Talon.One's Application of this order ({account or 'no suffix'}) is no longer configured."
                raise EngineRejected(message, reason="currency_not_served")
            yield from undo(account, name)
        elif order is None:  # the currency, which names the Application, is not known: try all
            for account in self.accounts:
                yield from undo(account, session)
        else:
            request = session_request(order, session, self._options)
            for name in _sessions(session, handle, request):
                yield from undo(request.account, name)


# ---------------------------------------------------------------------------------------------------------------------
# Requests


def _update(
    session: str, request: SessionRequest, operation: str, *, state: str, dry: bool = False, attempt: str = ""
) -> Conversation[tuple[EngineReply, SessionRequest]]:
    """Sends the session; returns the reply and the request that it answers.

    https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2. A rejected loyalty
    card fails the whole request, so the session is sent once more without the card. Open, check and close all do this,
    hence the check predicts the close.
    """
    reply = yield _update_request(session, request, operation, state, dry=dry, attempt=attempt)
    if request.loyalty_card and replies.rejects_loyalty_card(reply, request.loyalty_card):
        request = request.without_loyalty_card()
        reply = yield _update_request(session, request, operation, state, dry=dry, attempt=attempt)
    return reply, request


def _update_request(
    session: str, request: SessionRequest, operation: str, state: str, *, dry: bool, attempt: str
) -> EngineRequest:
    body = request.body(state)
    closing = state == "closed" and not dry
    headers: list[tuple[str, str]] = [_JSON]
    if closing:
        # The key covers the attempt, so that a reopened session can be closed again, and the body, so that Talon.One
        # never answers with the reply to other content.
        key = hashlib.sha256(b"\0".join((session.encode(), attempt.encode(), body))).hexdigest()
        headers.append(("Idempotency-Key", key))
    return EngineRequest(
        operation=operation,
        method="PUT",
        path=_path(session) + ("?dry=true" if dry else ""),
        body=body,
        headers=tuple(headers),
        account=request.account,
        effect="redeems" if closing else "none" if dry else "session",
        repeatable=not closing,
        reply_bytes=request.reply_bytes,
    )


def _path(session: str) -> str:
    return f"{_PATH}{quote(session, safe='')}"


def _read(session: str, account: str) -> Conversation[replies.State]:
    """The stored session and its effects; empty where Talon.One has no such session."""
    reply = yield EngineRequest(
        operation="read session",
        method="GET",
        path=_path(session),
        account=account,
        effect="none",
        repeatable=True,
        reply_bytes=MAX_REPLY_BYTES,  # the stored cart may be another one
    )
    if reply.status == 404:  # not in the specification, which does not say how an unknown session is answered
        return replies.State([], (), _NO_SESSION)
    state = replies.state_of(reply)
    if state.session is None or (state.session.state is None and state.effects is None):  # of another shape
        raise replies.unreadable_reply()
    return state


def _read_session(session: str, account: str) -> Conversation[replies.StoredSession]:
    return (yield from _read(session, account)).session or _NO_SESSION


def _require_effects(state: replies.State) -> replies.State:
    """Raises `EngineUnavailable` where the reply has no effects that can be read."""
    if state.effects is None:
        raise replies.unreadable_reply()
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Which session


def _sessions(session: str, handle: str, request: SessionRequest) -> Iterator[str]:
    """The sessions that `redeem` may have closed, in the order in which it tries them."""
    if handle:
        yield handle.split("/", 1)[1]
        return
    yield session
    if stored.may_hold_stale_values(request):
        yield from (f"{session}~clean{number}" for number in range(1, _MAX_SESSIONS))


def _session_to_close(session: str, request: SessionRequest) -> Conversation[str]:
    """The first session without stale values, so that the close grants what the check granted.

    Most orders send every configured field. Then no stale value can remain, and no session is read.
    """
    if not stored.may_hold_stale_values(request):
        return session
    name = session
    for name in _sessions(session, "", request):
        current = yield from _read_session(name, request.account)
        # The reply to the close tells whether a closed session is this order's.
        if current.state in _CLOSED or not stored.stale_fields(current, name, request):
            break
    return name


def _handle(account: str, session: str) -> str:
    """Names a redemption. The account is a currency or empty, so the first slash ends it."""
    return f"{account}/{session}"


def _with_stale_notice(outcome: Outcome, fields: list[str]) -> Outcome:
    if not fields:
        return outcome
    text = "Talon.One's session held values that this order does not have; they may have counted."
    notice = Notice("held_by_session", text, {"fields": fields})
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, notice))


def _session_closed() -> EngineRejected:
    return EngineRejected("This checkout has ended; a new one is needed.", reason="session_closed")


# ---------------------------------------------------------------------------------------------------------------------
# Look-up and undo


def _look_up(session: str, request: SessionRequest) -> Conversation[LookedUp]:
    state = yield from _read(session, request.account)
    current = state.session or _NO_SESSION
    if current.state in (None, "", "open"):
        return LookedUp("absent")
    if current.state == "cancelled":
        # It redeems nothing and cannot be closed again.
        raise EngineRejected("The Talon.One session of this order has been cancelled.", reason="session_cancelled")
    if current.state not in _CLOSED:
        raise replies.unreadable_reply()
    if not stored.has_same_content(current, request):
        raise OrderMismatch(
            "The Talon.One session of this order was closed with another cart or other codes.", reason="other_content"
        )
    return LookedUp("redeemed", effects.read(state, request, strict=False))


def _already_redeemed(session: str, request: SessionRequest) -> Conversation[Redeemed]:
    """The outcome of a session that was closed before. Raises `OrderMismatch` where another order closed it."""
    looked_up = yield from _look_up(session, request)
    if looked_up.state != "redeemed":
        raise EngineUnavailable("Talon.One contradicts itself about the session's state.", reason="session_state")
    outcome = msgspec.structs.replace(looked_up.outcome, redeemed=True)
    return Redeemed(outcome, _handle(request.account, session))


def _reopen(account: str, session: str) -> Conversation[None]:
    reply = yield _state_change(f"{_path(session)}/reopen", account, "reopen session")
    if reply.status in (400, 404):
        current = yield from _read_session(session, account)
        if current.state not in _CLOSED:
            return
    _require_effects(replies.state_of(reply))  # a 200 without them is another object's


def _cancel(account: str, session: str) -> Conversation[None]:
    """Cancels the session, which can then never be opened again.

    https://docs.talon.one/docs/dev/concepts/entities/customer-sessions. The session is read first, because a PUT to an
    unknown session creates it.
    """
    current = yield from _read_session(session, account)
    if current.state in (None, "", "cancelled"):
        return
    reply = yield _state_change(_path(session), account, "cancel session", _CANCEL_BODY)
    if replies.blocking_state(reply) != "cancelled":
        current = replies.state_of(reply).session or _NO_SESSION
        if current.state != "cancelled":
            raise EngineUnavailable("Talon.One has not cancelled the session.", reason="not_cancelled")


def _state_change(path: str, account: str, operation: str, body: bytes = b"") -> EngineRequest:
    return EngineRequest(
        operation=operation,
        method="PUT",
        path=path,
        body=body,
        headers=(_JSON,) if body else (),
        account=account,
        effect="session",
        repeatable=True,
    )
