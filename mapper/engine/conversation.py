"""Holds an adapter's conversation over HTTP: the only place that repeats or gives up.

An adapter yields requests and is handed replies (`mapper.adapter`). What happens in between is the same for every
engine and stands here once: one deadline for the whole conversation, repeats where a request says that it may be
repeated, and where it is wanted a circuit breaker for each account. It knows no log and no
metric: `on_call` is told of every attempt, `on_breaker` of every change.

What a failure means for the order is in `EngineUnavailable.sent`: False only if nothing that was sent in this
conversation, in this attempt or an earlier one, can have changed anything.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain, count
from typing import Generic

import msgspec

from mapper.adapter import Account, Conversation, EngineReply, EngineRequest, T
from mapper.domain.errors import EngineUnavailable, Problem
from mapper.engine.breaker import Breaker, State
from mapper.engine.transport import NotSent, Transport, Unknown
from mapper.threads import run_in_thread

RETRIES = {"conflict": 2, "redirect": 0, "too_large": 0, "breaker_open": 0}
"""How often a failure of this reason is tried again; others once. Where trying again changes nothing: never."""
JITTER_S = (0.020, 0.080)
MIN_LEFT_S = 0.050
"""With less time than this an attempt is not worth starting."""
BUDGET_PER_CALL, BUDGET_MAX = 0.1, 10.0
"""A repeat costs 1: when the engine is down, repeats add a tenth to the load, and not a multiple."""
MAX_REQUESTS = 40
"""Of one conversation: above anything an adapter needs, so what asks for more is a loop."""
MAX_REPLY_BYTES = 2 * 1024 * 1024
MAX_RETRY_AFTER_S = 3600.0

NOT_EXECUTED = {409: "conflict", 429: "rate_limited"}
"""Statuses whose documentation says that the request was not carried out."""

DOWN = frozenset({"timeout", "connect", "dns", "tls", "reset", "truncated", "server_error"})
"""The failures that tell the circuit breaker that the engine is in trouble. In all others it has answered."""

MESSAGES = {
    "connect": "The promotion engine could not be reached: no connection to its address",
    "dns": "The promotion engine could not be reached: its host name is not known here",
    "tls": "The promotion engine could not be reached: its certificate was not accepted",
    "timeout": "The promotion engine did not answer in time",
    "reset": "The promotion engine closed the connection without an answer",
    "garbled": "The promotion engine's answer is not HTTP",
    "truncated": "The promotion engine's answer ended early",
    "undecodable": "The promotion engine's answer is compressed in a way that cannot be read",
    "too_large": "The promotion engine's answer is too large",
    "redirect": "The promotion engine answered with a redirect, which is not followed; check the base URL",
    "rate_limited": "The promotion engine is over its quota of calls",
    "conflict": "The promotion engine was busy with another change of the same session",
    "server_error": "The promotion engine failed on its side",
    "breaker_open": "The promotion engine has failed too often just now and is left alone for a few seconds",
    "paused": "This service was paused just before it could ask the promotion engine",
    "adapter_error": "The promotion engine's answer could not be made use of; the log says why",
}

# A path is data from an adapter, and may hold data of a shopper: it must not lead anywhere but below the base URL.
_PLAIN, _ENCODED = r"A-Za-z0-9\-._~!$&'()*+,;=:@", r"%[0-9A-Fa-f]{2}"
_SEGMENT = rf"(?:[{_PLAIN}]++|{_ENCODED})++"
_PATH = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*+/?)?(?:\?(?:[{_PLAIN}/?\[\]]++|{_ENCODED})*+)?")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]{1,12}")


Gate = Callable[[], Awaitable[bool]] | None
Headers = tuple[tuple[str, str], ...]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one request, for logs and metrics: no data of a shopper, no secret."""

    operation: str
    account: str
    method: str
    status: int | None
    """None where no reply came."""
    failure: str | None
    """The reason, a key of `MESSAGES`; None for a reply that went to the adapter."""
    seconds: float
    attempt: int
    """1 for the first."""


class _Line:
    """The way to one account: what all requests to it have in common."""

    def __init__(self, account: Account) -> None:
        self.base_url = account.base_url.rstrip("/")
        self._account = account
        self._reading, self._writing = self._with((), body=False), self._with((), body=True)

    def headers(self, request: EngineRequest) -> Headers:
        if request.headers:
            return self._with(request.headers, body=bool(request.body))
        return self._writing if request.body else self._reading

    def _with(self, own: Headers, *, body: bool) -> Headers:
        headers = (*self._account.headers, *own)
        given = {name.lower() for name, _ in headers}
        if "accept" not in given:
            headers = (*headers, ("Accept", "application/json"))
        if body and "content-type" not in given:
            headers = (*headers, ("Content-Type", "application/json"))
        return headers


class _Failed(Exception):
    """An attempt that brought no reply for the adapter. `retry_after` in seconds, 0 where none is known."""

    def __init__(self, reason: str, *, sent: bool, retry_after: float = 0.0, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.sent, self.retry_after, self.status = reason, sent, retry_after, status

    def final(self, request: EngineRequest, *, acted: bool) -> EngineUnavailable:
        return EngineUnavailable(
            f"{MESSAGES[self.reason]} ({request.operation}).",
            reason=self.reason,
            sent=self.sent or acted,
            retry_after=math.ceil(self.retry_after) or None,
        )


class Engine:
    """The engine's end of the telephone. Several may share one transport."""

    def __init__(
        self,
        transport: Transport,
        accounts: Mapping[str, Account],
        *,
        breaker: bool = False,
        on_call: Callable[[Call], object] | None = None,
        on_exchange: Callable[[EngineRequest, EngineReply], object] | None = None,
        on_breaker: Callable[[str, State], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`breaker`: whether to stop asking an account that is down (`mapper.engine.breaker`), for a while.

        `random` gives numbers from 0 to 1. `on_exchange` sees every reply, for recording; `on_breaker` is told the
        account and the new state of its breaker; no hook may raise.
        """
        self._transport = transport
        self._lines = {name: _Line(account) for name, account in accounts.items()}
        self._on_call = on_call
        self._on_exchange = on_exchange
        self._clock, self._wall_clock, self._sleep, self._random = clock, wall_clock, sleep, random
        self._budget = BUDGET_MAX
        self._breakers: dict[str, Breaker] = {}
        if breaker:
            for name in accounts:
                told = None if on_breaker is None else partial(on_breaker, name)
                self._breakers[name] = Breaker(clock, random, told)

    async def converse(self, conversation: Conversation[T], deadline: float, before_effect: Gate = None) -> T:
        """What the conversation returns. `deadline` is a moment on `clock`, for the conversation as a whole.

        `before_effect` is awaited right before each attempt at a request that redeems; the request goes out only if it
        says True, and what it raises is passed on.

        Raises `EngineUnavailable`, whatever `Problem` the adapter raises, and
        `ValueError` for a request that no adapter should make (it is not sent).
        """
        try:
            return await self._hold(conversation, deadline, before_effect)
        finally:
            with suppress(ValueError):  # it runs in a thread, for a call that has been cancelled meanwhile
                conversation.close()

    async def _hold(self, conversation: Conversation[T], deadline: float, before_effect: Gate) -> T:
        reply: EngineReply | None = None
        acted = False
        for asked in count():
            try:
                request = await run_in_thread(len(reply.body) if reply else 0, _step, conversation, reply)
            except Problem:
                raise
            except Exception as error:
                raise _adapter_error() from error
            if isinstance(request, _Returned):
                return request.value
            if asked == MAX_REQUESTS:
                break
            reply = await self._ask(request, deadline, before_effect, acted=acted)
            acted = acted or request.method not in ("GET", "HEAD")
        raise _adapter_error()

    async def _ask(self, request: EngineRequest, deadline: float, before_effect: Gate, *, acted: bool) -> EngineReply:
        """The reply to one request, after as many attempts as it may have."""
        url, headers = self._outgoing(request)
        self._budget = min(BUDGET_MAX, self._budget + BUDGET_PER_CALL)
        attempt = 1
        while True:
            try:
                await _pass(before_effect, request)
                return await self._attempt(request, url, headers, deadline, attempt)
            except _Failed as failed:
                pause = self._pause(request, failed, attempt, deadline)
                if pause is None:
                    raise failed.final(request, acted=acted) from None
                acted = acted or failed.sent
            await self._sleep(pause)
            attempt += 1

    def _pause(self, request: EngineRequest, failed: _Failed, attempt: int, deadline: float) -> float | None:
        """How long to wait before the next attempt; None where there is to be none."""
        never_sent = not failed.sent and failed.status is None
        if not (request.repeatable or never_sent) or attempt > RETRIES.get(failed.reason, 1):
            return None
        shortest, longest = JITTER_S
        pause = max(failed.retry_after, shortest + (longest - shortest) * self._random())
        if deadline - self._clock() - pause < MIN_LEFT_S or self._budget < 1:
            return None
        self._budget -= 1
        return pause

    async def _attempt(
        self, request: EngineRequest, url: str, headers: Headers, deadline: float, attempt: int
    ) -> EngineReply:
        """One attempt, if there is time for it and the circuit breaker lets it through."""
        left_s = deadline - self._clock()
        if left_s <= 0:
            raise _Failed("timeout", sent=False)
        breaker = self._breakers.get(request.account)
        if breaker is None:
            return await self._timed(request, url, headers, left_s, attempt)
        entered = breaker.enter()
        if entered is None:
            raise _Failed("breaker_open", sent=False, retry_after=breaker.wait_s())
        good: bool | None = None
        try:
            reply = await self._timed(request, url, headers, left_s, attempt)
            good = True
        except _Failed as failed:
            good = failed.reason not in DOWN
            raise
        finally:
            breaker.leave(entered, good=good)
        return reply

    async def _timed(
        self, request: EngineRequest, url: str, headers: Headers, timeout_s: float, attempt: int
    ) -> EngineReply:
        started = self._clock()
        try:
            reply = await self._send(request, url, headers, timeout_s)
        except _Failed as failed:
            self._tell(request, attempt, started, failed.status, failed.reason)
            raise
        self._tell(request, attempt, started, reply.status, None)
        return reply

    async def _send(self, request: EngineRequest, url: str, headers: Headers, timeout_s: float) -> EngineReply:
        try:
            reply = await self._transport.send(request.method, url, headers, request.body, timeout_s, MAX_REPLY_BYTES)
        except NotSent as error:
            raise _Failed(error.reason, sent=False) from None
        except Unknown as error:
            raise _Failed(error.reason, sent=True) from None
        except TimeoutError:
            raise _Failed("timeout", sent=True) from None
        if self._on_exchange is not None:
            self._on_exchange(request, reply)
        if 300 <= reply.status <= 399:
            raise _Failed("redirect", sent=True, status=reply.status)
        if reply.status in NOT_EXECUTED or reply.status >= 500:
            reason = NOT_EXECUTED.get(reply.status, "server_error")
            wait = _retry_after(reply.headers, self._wall_clock())
            raise _Failed(reason, sent=reply.status not in NOT_EXECUTED, retry_after=wait, status=reply.status)
        return reply

    def _tell(
        self, request: EngineRequest, attempt: int, started: float, status: int | None, failure: str | None
    ) -> None:
        if self._on_call is not None:
            call = Call(
                operation=request.operation,
                account=request.account,
                method=request.method,
                status=status,
                failure=failure,
                seconds=self._clock() - started,
                attempt=attempt,
            )
            self._on_call(call)

    def _outgoing(self, request: EngineRequest) -> tuple[str, Headers]:
        """URL and headers. Raises `ValueError`, which names no data, for what would not stay below the base URL."""
        line = self._lines.get(request.account)
        if line is None:
            raise ValueError(f"the request {request.operation!r} is for an account that the adapter does not have")
        if not _PATH.fullmatch(request.path) or _DOTS.search(request.path.partition("?")[0]):
            raise ValueError(f"the request {request.operation!r} has a path that is not properly percent-encoded")
        return line.base_url + request.path, line.headers(request)


async def _pass(before_effect: Gate, request: EngineRequest) -> None:
    if before_effect is not None and request.effect == "redeems" and not await before_effect():
        raise _Failed("paused", sent=False)


@dataclass(frozen=True)
class _Returned(Generic[T]):
    """What a conversation has returned. (A `StopIteration` does not get out of a thread.)"""

    value: T


def _step(conversation: Conversation[T], reply: EngineReply | None) -> EngineRequest | _Returned[T]:
    """The adapter's next request, or its result."""
    try:
        request = next(conversation) if reply is None else conversation.send(reply)
    except StopIteration as stop:
        return _Returned(stop.value)
    if not isinstance(request, EngineRequest):
        raise TypeError(f"an adapter yields EngineRequest, not {type(request).__name__}")
    return request


def _adapter_error() -> EngineUnavailable:
    return EngineUnavailable(f"{MESSAGES['adapter_error']}.", reason="adapter_error", sent=True)


def _retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds until the engine wants to be asked again, 0 where it does not say."""
    after, at = headers.get("retry-after", "").strip(), headers.get("x-rate-limit-retry", "").strip()
    seconds = 0.0
    if _DIGITS.fullmatch(after):
        seconds = float(after)
    elif after:
        with suppress(ValueError, OverflowError):
            seconds = parsedate_to_datetime(after).timestamp() - now
    elif _DIGITS.fullmatch(at):
        seconds = float(at) - now  # Voucherify: a moment, in unix seconds
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def replay(conversation: Conversation[T], replies: Iterable[EngineReply]) -> tuple[T, list[EngineRequest]]:
    """Holds a conversation with replies at hand, without HTTP: its result, and what it asked.

    What the adapter raises comes out as it is. Raises `ValueError` where the conversation asks for more.
    """
    requests: list[EngineRequest] = []
    for reply in chain([None], replies):
        step = _step(conversation, reply)
        if isinstance(step, _Returned):
            return step.value, requests
        requests.append(step)
    conversation.close()
    raise ValueError(f"there is no reply to request {len(requests)}, {requests[-1].operation!r}")
