"""Holds an adapter's conversation over HTTP: the only place that repeats or gives up.

An adapter yields requests and is handed replies (`mapper.adapter`). What happens in between is the same for every
engine and stands here once: one deadline for the whole conversation, repeats where a request says that it may be
repeated, and where it is wanted a circuit breaker for each account. It knows no log and no
metric: `on_call` is told of every attempt, `on_breaker` of every change.

**What a redemption came to is told by the requests that redeem, never by the exception that an adapter chooses.** A
conversation that may redeem is held with a `Redemption`, which lets these requests out and notes what they came to.

| the redeeming requests | when something goes wrong then |
|---|---|
| none went out (no connection, no time, no permit) | certainly not done |
| all were refused (4xx but 408; 409 and 429 are never carried out) | not done, if that is what the refusal was for |
| one was answered otherwise (2xx, 3xx, 5xx, 408), or not at all | in doubt: only the engine knows |

A redeeming request is sent again only where the attempt before was certainly not carried out, `repeatable` or not.
The verdicts that this comes to, `Done | Declined | NotDone | InDoubt`, are those of
`mapper.engine.promotion_engine.PromotionEngine.redeem`, which is what the rest of the mapper calls.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Generic, cast

import msgspec

from mapper.adapter import Account, Conversation, EngineReply, EngineRequest, T
from mapper.domain.errors import EngineUnavailable
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
BASE_REQUESTS, REQUESTS_PER_LINE = 100, 4
"""Of one conversation: above what any adapter needs, code by code or line by line; what asks for more is a loop."""
AT_ONCE = 8
"""Of several requests that an adapter yields together, so many are on their way at a time."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Whatever a request says that its answer may have."""
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
}

# A path is data from an adapter, and may hold data of a shopper: it must not lead anywhere but below the base URL.
_PLAIN, _ENCODED = r"A-Za-z0-9\-._~!$&'()*+,;=:@", r"%[0-9A-Fa-f]{2}"
_SEGMENT = rf"(?:[{_PLAIN}]++|{_ENCODED})++"
_PATH = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*+/?)?(?:\?(?:[{_PLAIN}/?\[\]]++|{_ENCODED})*+)?")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
EFFECTS = ("none", "session", "redeems")
_DIGITS = re.compile(r"[0-9]{1,12}")


Headers = tuple[tuple[str, str], ...]
Asked = EngineRequest | tuple[EngineRequest, ...]
Answered = EngineReply | tuple[EngineReply, ...]


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


def _nothing_around(request: EngineRequest) -> AbstractContextManager[Headers]:
    return nullcontext(())


class BrokenContract(Exception):
    """An adapter does what the contract does not allow. The message names no data of a shopper."""


class Redemption:
    """The redeeming requests of one conversation: who lets them out, and what they came to.

    `permit` is awaited right before each attempt; the request goes out only if it says True, and what it raises is
    passed on (and is `stopped_by`).
    """

    def __init__(self, permit: Callable[[], Awaitable[bool]]) -> None:
        self._permit = permit
        self.sent = False
        """Whether any attempt may have reached the engine."""
        self.may_stand = False
        """Whether something may be redeemed by one."""
        self.stopped_by: Exception | None = None
        self.not_carried_out: EngineUnavailable | None = None
        """The failure of a redeeming request of which every attempt was certainly not carried out."""

    async def let_out(self) -> bool:
        try:
            return await self._permit()
        except Exception as error:
            self.stopped_by = error
            raise

    def answered(self, status: int) -> None:
        self.sent = True
        self.may_stand |= not 400 <= status <= 499 or status == 408

    def failed(self, failure: "_Failed") -> None:
        """Without an answer for the adapter; a status of 409 or 429 says that it was not carried out."""
        self.sent |= failure.sent or failure.status is not None
        self.may_stand |= failure.sent


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

    def final(self, request: EngineRequest) -> EngineUnavailable:
        return EngineUnavailable(
            f"{MESSAGES[self.reason]} ({request.operation}).",
            reason=self.reason,
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
        around: Callable[[EngineRequest], AbstractContextManager[Headers]] = _nothing_around,
        on_breaker: Callable[[str, State], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`breaker`: whether to stop asking an account that is down (`mapper.engine.breaker`), for a while.

        `random` gives numbers from 0 to 1. `on_exchange` sees every reply, for recording; `on_breaker` is told the
        account and the new state of its breaker; each attempt is made within `around`, which says what headers are sent
        along (a trace's); no hook may raise.
        """
        self._transport = transport
        self._lines = {name: _Line(account) for name, account in accounts.items()}
        self._on_call = on_call
        self._on_exchange = on_exchange
        self._around = around
        self._clock, self._wall_clock, self._sleep, self._random = clock, wall_clock, sleep, random
        self._budget = BUDGET_MAX
        self._breakers: dict[str, Breaker] = {}
        if breaker:
            for name in accounts:
                told = None if on_breaker is None else partial(on_breaker, name)
                self._breakers[name] = Breaker(clock, random, told)

    async def converse(
        self,
        conversation: Conversation[T],
        deadline: float,
        redemption: Redemption | None = None,
        *,
        most: int = BASE_REQUESTS,
    ) -> T:
        """What the conversation returns. `deadline` is a moment on `clock`, for the conversation as a whole.

        Without a `redemption`, a request that redeems is not sent. `most`: so many requests it may make (`limit`).

        Raises `EngineUnavailable`, `BrokenContract` for a request that no adapter should make (it is not sent), and
        whatever the adapter raises.
        """
        try:
            return await self._hold(conversation, deadline, redemption, most)
        finally:
            with suppress(ValueError):  # it runs in a thread, for a call that has been cancelled meanwhile
                conversation.close()

    async def _hold(
        self, conversation: Conversation[T], deadline: float, redemption: Redemption | None, most: int
    ) -> T:
        answered: Answered | None = None
        asked = 0
        while True:
            step = await run_in_thread(_size(answered), _step, conversation, answered)
            if isinstance(step, _Returned):
                return step.value
            asked += len(_check(step, self._lines, may_redeem=redemption is not None))
            if asked > most:
                raise BrokenContract(f"more than {most} requests in one conversation")
            if isinstance(step, EngineRequest):
                answered = await self._ask(step, deadline, redemption)
            else:
                answered = await self._ask_together(step, deadline)

    async def _ask_together(self, requests: Sequence[EngineRequest], deadline: float) -> tuple[EngineReply, ...]:
        """The replies in the order of the requests. One that fails is the failure of all."""
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(request: EngineRequest) -> EngineReply:
            async with room:
                return await self._ask(request, deadline, None)

        tasks = [asyncio.ensure_future(ask(request)) for request in requests]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, request: EngineRequest, deadline: float, redemption: Redemption | None) -> EngineReply:
        """The reply to one request, after as many attempts as it may have."""
        line = self._lines[request.account]
        url, headers = line.base_url + request.path, line.headers(request)
        watched = redemption if request.effect == "redeems" else None
        self._budget = min(BUDGET_MAX, self._budget + BUDGET_PER_CALL)
        attempt = 1
        while True:
            try:
                if watched is not None and not await watched.let_out():
                    raise _Failed("paused", sent=False)  # noqa: TRY301 - a failed attempt like any other
                reply = await self._attempt(request, url, headers, deadline, attempt)
            except _Failed as failed:
                if watched is not None:
                    watched.failed(failed)
                pause = self._pause(request, failed, attempt, deadline)
                if pause is None:
                    raise self._failure(request, failed, watched) from None
            except BrokenContract:
                raise
            except BaseException:
                # Cancelled on its way, or a fault of ours: it may have gone out.
                if watched is not None and watched.stopped_by is None:
                    watched.failed(_Failed("reset", sent=True))
                raise
            else:
                if watched is not None:
                    watched.answered(reply.status)
                return reply
            await self._sleep(pause)
            attempt += 1

    @staticmethod
    def _failure(request: EngineRequest, failed: _Failed, watched: Redemption | None) -> EngineUnavailable:
        failure = failed.final(request)
        if watched is not None and not watched.may_stand:
            watched.not_carried_out = failure
        return failure

    def _pause(self, request: EngineRequest, failed: _Failed, attempt: int, deadline: float) -> float | None:
        """How long to wait before the next attempt; None where there is to be none."""
        never_sent = not failed.sent and failed.status is None
        harmless = request.repeatable and not (request.effect == "redeems" and failed.sent)
        if not (harmless or never_sent) or attempt > RETRIES.get(failed.reason, 1):
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
        with self._around(request) as along:
            try:
                reply = await self._send(request, url, (*headers, *along) if along else headers, timeout_s)
            except _Failed as failed:
                self._tell(request, attempt, started, failed.status, failed.reason)
                raise
            self._tell(request, attempt, started, reply.status, None)
            return reply

    async def _send(self, request: EngineRequest, url: str, headers: Headers, timeout_s: float) -> EngineReply:
        try:
            most = min(request.reply_bytes, MAX_REPLY_BYTES)
            reply = await self._transport.send(request.method, url, headers, request.body, timeout_s, most)
        except NotSent as error:
            raise _Failed(error.reason, sent=False) from None
        except Unknown as error:
            raise _Failed(error.reason, sent=True) from None
        except TimeoutError:
            raise _Failed("timeout", sent=True) from None
        except ValueError as error:  # nothing was sent
            raise BrokenContract(f"the request {request.operation!r} cannot be sent: {error}") from None
        if self._on_exchange is not None:
            self._on_exchange(request, reply)
        if (failed := _failure(request, reply, self._wall_clock())) is not None:
            raise failed
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


@dataclass(frozen=True)
class _Returned(Generic[T]):
    """What a conversation has returned. (A `StopIteration` does not get out of a thread.)"""

    value: T


def _step(conversation: Conversation[T], answered: Answered | None) -> Asked | _Returned[T]:
    """The adapter's next request, or its result. To the type checker a conversation asks one at a time (`together`)."""
    try:
        return next(conversation) if answered is None else conversation.send(cast("EngineReply", answered))
    except StopIteration as stop:
        return _Returned(stop.value)


def _size(answered: Answered | None) -> int:
    if answered is None:
        return 0
    return len(answered.body) if isinstance(answered, EngineReply) else sum(len(reply.body) for reply in answered)


def limit(lines: int) -> int:
    """How many requests a conversation about a cart of so many lines may make."""
    return BASE_REQUESTS + REQUESTS_PER_LINE * lines


def _check(asked: object, accounts: Container[str], *, may_redeem: bool) -> tuple[EngineRequest, ...]:
    """The requests that an adapter yields at a time. Raises `BrokenContract`, which names no data."""
    requests: tuple[object, ...] = asked if isinstance(asked, tuple) else (asked,)
    checked: list[EngineRequest] = []
    for request in requests:
        if not isinstance(request, EngineRequest):
            raise BrokenContract(
                f"a conversation yields EngineRequest, or a tuple of them, not {type(request).__name__}"
            )
        if fault := _fault(request, accounts, may_redeem=may_redeem and not isinstance(asked, tuple)):
            raise BrokenContract(f"the request {request.operation!r} {fault}")
        checked.append(request)
    return tuple(checked)


def _fault(request: EngineRequest, accounts: Container[str], *, may_redeem: bool) -> str:
    if request.account not in accounts:
        return "is for an account that the adapter does not have"
    if not _PATH.fullmatch(request.path) or _DOTS.search(request.path.partition("?")[0]):
        return "has a path that is not properly percent-encoded"
    if request.effect not in EFFECTS:
        return f"has an effect that is not one of {', '.join(EFFECTS)}"
    if request.effect == "redeems" and not may_redeem:
        return "redeems: only `redeem` may, one request after the other"
    if not all(status in NOT_EXECUTED or 500 <= status <= 599 for status in request.answers):
        return "asks for answers other than 409, 429 and 5xx: all others come anyway"
    return ""


def _failure(request: EngineRequest, reply: EngineReply, now: float) -> _Failed | None:
    """What is wrong with a reply that is not for the adapter."""
    if 300 <= reply.status <= 399:
        return _Failed("redirect", sent=True, status=reply.status)
    if reply.status in request.answers or not (reply.status in NOT_EXECUTED or reply.status >= 500):
        return None
    reason = NOT_EXECUTED.get(reply.status, "server_error")
    wait = _retry_after(reply.headers, now)
    return _Failed(reason, sent=reply.status not in NOT_EXECUTED, retry_after=wait, status=reply.status)


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


class RepliesDiffer(ValueError):
    """A conversation asks for more or less than there are replies at hand."""


def replay(
    conversation: Conversation[T], replies: Iterable[EngineReply], *, accounts: Container[str] = ("",), lines: int = 0
) -> tuple[T, list[EngineRequest]]:
    """Holds a conversation with replies at hand, without HTTP: its result, and what it asked.

    As strict as the engine: requests must be proper ones for the adapter's `accounts`, no more than a cart of so many
    `lines` may need, and what is no answer for the adapter (409, 429, 5xx, redirects) fails as it does at the engine.
    What the adapter raises comes out as it is. Raises `BrokenContract`, `EngineUnavailable`, and `RepliesDiffer` where
    the conversation asks for more or less than there are replies.
    """
    requests: list[EngineRequest] = []
    left = list(replies)
    answered: Answered | None = None
    try:
        while not isinstance(step := _step(conversation, answered), _Returned):
            asked = _check(step, accounts, may_redeem=True)
            requests += asked
            if len(requests) > limit(lines):
                raise BrokenContract(f"more than {limit(lines)} requests in one conversation")
            if len(left) < len(asked):
                raise RepliesDiffer(f"there is no reply to request {len(requests)}, {requests[-1].operation!r}")
            came, left = left[: len(asked)], left[len(asked) :]
            for request, reply in zip(asked, came, strict=True):
                if failed := _failure(request, reply, 0.0):
                    raise failed.final(request)
            answered = tuple(came) if isinstance(step, tuple) else came[0]
    finally:
        conversation.close()
    if left:
        raise RepliesDiffer(f"{len(left)} replies were not asked for")
    return step.value, requests
