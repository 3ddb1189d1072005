"""Talon.One: carts are customer sessions, promotions come as effects, closing the session redeems.

- `validate` puts the session, state `open`: https://docs.talon.one/docs/dev/tutorials/integrating-talon-one
- `check` puts it with `dry=true`, state `closed`: https://docs.talon.one/docs/dev/integration-api/dry-requests
- `redeem` puts it, state `closed`; `look_up` reads it; `undo` reopens it, or for good cancels it

Here are the conversations; `options` reads the settings, `request` writes the question, `replies` and `effects` read
the answer, `held` compares what the engine holds with what it is told. Every answer is the complete set of effects, so
nothing is ever accumulated.
"""

import hashlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import msgspec

from adapters.talon_one import effects, held, replies
from adapters.talon_one import options as settings
from adapters.talon_one.request import REPLY_BYTES_AT_MOST, SessionRequest, session_request
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
_CANCELLED = b'{"customerSession":{"state":"cancelled"},"responseContent":["customerSession"]}'
_CLOSED = ("closed", "partially_returned")
_NOT_THERE = replies.StoredSession()
_USED = (Reason.USED_UP, Reason.CUSTOMER_LIMIT_REACHED)
# How many sessions of one order are looked at: each new one was needed because the last held what must not count.
_MOST_SESSIONS = 3


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
        """Opens the session, or updates it. PUT replaces what it names, so it may be sent any number of times.

        `EngineRejected` with the reason `session_closed` asks for another session: this one is closed, or holds what
        must not count any more.
        """
        request = session_request(checkout, session, self._options)
        reply, request = yield from _put(session, request, "open session", state="open")
        if replies.cannot_move_from(reply) is not None:
            raise _session_closed()
        state = replies.state_of(reply)
        if state.session is not None and held.left_by_update(state.session, request):
            raise _session_closed()
        return effects.read(_with_effects(state), request, strict=True)

    def check(self, order: Checkout, session: str) -> Conversation[Outcome]:
        """Asks what closing would grant: a dry request considers its own payload alone, and stores nothing.

        So it refuses a code that this very order has used up, where the ledger that would know has been lost.
        """
        request = session_request(order, session, self._options)
        reply, request = yield from _put(session, request, "check session", state="closed", dry=True)
        if replies.cannot_move_from(reply) is not None:
            return (yield from _redeemed_before(session, request)).outcome
        outcome = effects.read(_with_effects(replies.state_of(reply)), request, strict=False)
        if any(one.reason in _USED for one in outcome.rejected):
            before = yield from self.look_up(order, session)
            if before.state == "redeemed":
                return msgspec.structs.replace(before.outcome, redeemed=True)
        return outcome

    def redeem(self, order: Checkout, session: str) -> Conversation[Redeemed | NotRedeemed]:
        """Closes the session: the rules run once more, on list prices, and what they accept is redeemed.

        Not repeatable, although an idempotency key is sent: the key is honoured since August 2026, and a deployment
        that does not know it ignores it. Then only `look_up` can tell what happened.
        """
        request = session_request(order, session, self._options)
        session = yield from _clean_session(session, request)
        reply, request = yield from _put(session, request, "close session", state="closed", attempt=order.attempt)
        if replies.cannot_move_from(reply) is not None:
            return (yield from _redeemed_before(session, request))
        state = replies.state_of(reply)
        stored = state.session or _NOT_THERE
        if stored.state not in _CLOSED:
            # A stored answer, an answer to something else, or one that does not say: only the session itself can.
            stored = (yield from _read(session, request.account)).session or _NOT_THERE
        if stored.state not in _CLOSED:
            raise EngineUnavailable("Talon.One has not closed the session.", reason="not_closed")
        outcome = effects.read(_with_effects(state), request, strict=False)
        return Redeemed(
            _with_leftovers(outcome, held.left_by_update(stored, request)), _handle(request.account, session)
        )

    def look_up(self, order: Checkout, session: str, handle: str = "") -> Conversation[LookedUp]:
        """Reads the session. Raises `OrderMismatch` where it was closed with another cart or other codes."""
        request = session_request(order, session, self._options)
        for name in _sessions(session, handle, request):
            if (found := (yield from _look_up(name, request))).state != "absent":
                return found
        return LookedUp("absent")

    def undo(
        self, order: Checkout | None, session: str, handle: str = "", *, final: bool = False
    ) -> Conversation[None]:
        """Reopens the session, which rolls the redemption back, or cancels it; one that is not closed has nothing to
        undo.

        https://docs.talon.one/integration-api#tag/Customer-sessions/operation/reopenCustomerSession. Without an
        idempotency key: the stored answer would keep a later undo of the same order from happening.
        """
        if handle:
            account, name = handle.split("/", 1)
            yield from _undo(account, name, final=final)
        elif order is None:  # nobody knows which Application it was: there is one for each currency
            for account in self.accounts:
                yield from _undo(account, session, final=final)
        else:
            request = session_request(order, session, self._options)
            for name in _sessions(session, handle, request):
                yield from _undo(request.account, name, final=final)


# ---------------------------------------------------------------------------------------------------------------------
# Requests


def _put(
    session: str, request: SessionRequest, operation: str, *, state: str, dry: bool = False, attempt: str = ""
) -> Conversation[tuple[EngineReply, SessionRequest]]:
    """The answer, and to what: a loyalty card that the engine refuses is left out, and the rest asked again.

    https://docs.talon.one/integration-api#tag/Customer-sessions/operation/updateCustomerSessionV2. So what is checked,
    what is closed and what is shown before is the same question.
    """
    reply = yield _update(session, request, operation, state, dry=dry, attempt=attempt)
    if request.card and replies.refuses_card(reply):
        request = request.without_card()
        reply = yield _update(session, request, operation, state, dry=dry, attempt=attempt)
    return reply, request


def _update(
    session: str, request: SessionRequest, operation: str, state: str, *, dry: bool, attempt: str
) -> EngineRequest:
    body = request.body(state)
    closing = state == "closed" and not dry
    headers: list[tuple[str, str]] = [_JSON]
    if closing:
        # It names the attempt, so that the session can be closed again once it has been reopened; and the content,
        # since the answer to another question must not come back.
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
    """The session as it is stored; an empty one where there is none."""
    reply = yield EngineRequest(
        operation="read session",
        method="GET",
        path=_path(session),
        account=account,
        effect="none",
        repeatable=True,
        reply_bytes=REPLY_BYTES_AT_MOST,  # it may hold another cart than the one that is asked for
    )
    if reply.status == 404:  # not in the specification; an unknown session may as well come as an empty one
        return replies.State(b"", [], (), _NOT_THERE)
    state = replies.state_of(reply)
    if state.session is None:
        raise replies.bad_reply()
    return state


def _with_effects(state: replies.State) -> replies.State:
    """Without effects it is no answer to a question."""
    if state.effects is None:
        raise replies.bad_reply()
    return state


# ---------------------------------------------------------------------------------------------------------------------
# In which session?


def _sessions(session: str, handle: str, request: SessionRequest) -> Iterator[str]:
    """The sessions that `redeem` may have closed, in its own order."""
    if handle:
        yield handle.split("/", 1)[1]
        return
    yield session
    if held.may_be_left(request):
        yield from (f"{session}~clean{number}" for number in range(1, _MOST_SESSIONS))


def _clean_session(session: str, request: SessionRequest) -> Conversation[str]:
    """The session to close: the first that holds nothing but what this order tells.

    The check was asked without a session; what is closed must be the same question. Where the order tells all that is
    configured, as it mostly does, nothing can be left over and nothing is read.
    """
    if not held.may_be_left(request):
        return session
    name = session
    for name in _sessions(session, "", request):
        stored = (yield from _read(name, request.account)).session or _NOT_THERE
        if stored.state in _CLOSED or not held.leftovers(stored, request):
            break  # of a closed one the close itself says what it means
    return name


def _handle(account: str, session: str) -> str:
    """Where an order was redeemed. Names of accounts are currencies, or nothing."""
    return f"{account}/{session}"


def _with_leftovers(outcome: Outcome, names: list[str]) -> Outcome:
    if not names:
        return outcome
    text = "Talon.One's session held values that this order does not have; they may have counted."
    notice = Notice("held_by_session", text, {"fields": names})
    return msgspec.structs.replace(outcome, notices=(*outcome.notices, notice))


def _session_closed() -> EngineRejected:
    return EngineRejected("This checkout has ended; a new one is needed.", reason="session_closed")


# ---------------------------------------------------------------------------------------------------------------------
# Did it happen? And back.


def _look_up(session: str, request: SessionRequest) -> Conversation[LookedUp]:
    state = yield from _read(session, request.account)
    stored = state.session or _NOT_THERE
    if stored.state in (None, "", "open"):
        return LookedUp("absent")
    if stored.state == "cancelled":
        # Nothing is redeemed by it, and it can never be closed again.
        raise EngineRejected("The Talon.One session of this order has been cancelled.", reason="session_cancelled")
    if stored.state not in _CLOSED:
        raise replies.bad_reply()
    if not held.same(stored, request):
        raise OrderMismatch(
            "The Talon.One session of this order was closed with another cart or other codes.", reason="other_content"
        )
    return LookedUp("redeemed", effects.read(state, request, strict=False))


def _redeemed_before(session: str, request: SessionRequest) -> Conversation[Redeemed]:
    """After "cannot move": the session is closed already. By this very order, if it has the same content."""
    found = yield from _look_up(session, request)
    if found.state != "redeemed":
        raise EngineUnavailable("Talon.One contradicts itself about the session's state.", reason="session_state")
    outcome = msgspec.structs.replace(found.outcome, redeemed=True)
    return Redeemed(outcome, _handle(request.account, session))


def _undo(account: str, session: str, *, final: bool) -> Conversation[None]:
    return (yield from (_cancel if final else _reopen)(account, session))


def _reopen(account: str, session: str) -> Conversation[None]:
    reply = yield _change(f"{_path(session)}/reopen", account, "reopen session")
    if reply.status in (400, 404):
        stored = (yield from _read(session, account)).session or _NOT_THERE
        if stored.state not in _CLOSED:
            return
    replies.insist(reply)


def _cancel(account: str, session: str) -> Conversation[None]:
    """https://docs.talon.one/docs/dev/concepts/entities/customer-sessions: what is cancelled is never opened again.

    Read first: to cancel a session that is not there would make one.
    """
    stored = (yield from _read(session, account)).session or _NOT_THERE
    if stored.state in (None, "", "cancelled"):
        return
    reply = yield _change(_path(session), account, "cancel session", _CANCELLED)
    if replies.cannot_move_from(reply) != "cancelled":
        stored = replies.state_of(reply).session or _NOT_THERE
        if stored.state != "cancelled":
            raise EngineUnavailable("Talon.One has not cancelled the session.", reason="not_cancelled")


def _change(path: str, account: str, operation: str, body: bytes = b"") -> EngineRequest:
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
