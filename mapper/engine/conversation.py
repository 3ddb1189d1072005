"""Runs an adapter's conversation over HTTP. Deadlines, retries and the circuit breaker are here and nowhere else.

An adapter yields requests and receives replies (`mapper.adapter`). One deadline covers the whole conversation. A
request is retried if it says that it may be repeated. Each account may have a circuit breaker. This module neither logs
nor counts: it reports every attempt to `on_attempt`, and every change of a breaker to `on_breaker`.

**The requests that redeem decide what came of a redemption, not the exception that an adapter raises.** A conversation
that may redeem runs with a `Redemption`, which allows these requests and records their outcomes:

| the redeeming requests | what an error means then |
|---|---|
| none was sent (no connection, no time, not allowed) | certainly not done |
| all were refused (4xx but 408; 409 and 429 are never executed) | not done, if the error is about that refusal |
| one got another reply (2xx, 3xx, 5xx, 408), or none | in doubt: only the engine knows |

A redeeming request is retried only if the attempt before was certainly not executed, `repeatable` or not.
`mapper.engine.promotion_engine.PromotionEngine.redeem` turns this into a verdict, and is what the rest of the mapper
calls.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Generic, cast

import msgspec

from mapper.adapter import Account, Conversation, EngineReply, EngineRequest, T
from mapper.domain import document
from mapper.domain.errors import EngineUnavailable
from mapper.engine.breaker import Breaker, State
from mapper.engine.transport import NotSent, Transport, Unknown
from mapper.threads import run_in_thread

RETRIES = {"conflict": 2, "redirect": 0, "too_large": 0, "breaker_open": 0}
"""Retries by the reason of the failure; 1 for all others."""
JITTER_S = (0.020, 0.080)
"""The pause before a request is repeated: a random time between these. `orders.redeem` repeats whole redemptions."""
MIN_LEFT_S = 0.050
"""No retry starts with less time left than this."""
BUDGET_PER_REQUEST, BUDGET_MAX = 0.1, 10.0
"""The retry budget: each request adds a tenth, each retry takes 1. So an engine that is down gets a tenth more load."""
BASE_REQUESTS, REQUESTS_PER_LINE = 100, 4
"""The limit of one conversation. No adapter needs more, even with a request per code or line: more is a loop."""
MAX_CONCURRENT = 8
"""How many of the requests that an adapter yields together are in flight at a time."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The upper limit of `EngineRequest.reply_bytes`."""
MAX_RETRY_AFTER_S = 3600.0

NOT_EXECUTED = {409: "conflict", 429: "rate_limited"}
"""Statuses that both vendors document as "not executed"."""

DOWN = frozenset({"timeout", "connect", "dns", "tls", "reset", "truncated", "server_error"})
"""The failures that the circuit breaker counts against the engine. In all others the engine has answered."""

MESSAGES = {
    "connect": "The promotion engine could not be reached: no connection to its address",
    "dns": "The promotion engine could not be reached: its host name cannot be resolved",
    "tls": "The promotion engine could not be reached: its certificate was not accepted",
    "timeout": "The promotion engine did not answer in time",
    "reset": "The promotion engine closed the connection without an answer",
    "garbled": "The promotion engine's answer is not HTTP",
    "truncated": "The promotion engine's answer ended early",
    "undecodable": "The promotion engine's answer has a content encoding that cannot be read",
    "too_large": "The promotion engine's answer is too large",
    "redirect": "The promotion engine answered with a redirect, which is not followed; check the base URL",
    "rate_limited": "The promotion engine is over its quota of calls",
    "conflict": "The promotion engine was busy with another change of the same session",
    "server_error": "The promotion engine failed on its side",
    "breaker_open": "The promotion engine has failed too often, and is not called for a few seconds",
    "paused": "This service was paused just before it could ask the promotion engine",
}

# A path may hold a shopper's data. It must not lead out of the base URL.
_PLAIN, _ENCODED = r"A-Za-z0-9\-._~!$&'()*+,;=:@", r"%[0-9A-Fa-f]{2}"
_SEGMENT = rf"(?:[{_PLAIN}]++|{_ENCODED})++"
_PATH = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*+/?)?(?:\?(?:[{_PLAIN}/?\[\]]++|{_ENCODED})*+)?")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
EFFECTS = ("none", "session", "redeems")
_DIGITS = re.compile(r"[0-9]{1,12}")
_JSON = re.compile(rb"\s*[{\[]")


Headers = tuple[tuple[str, str], ...]
Requests = EngineRequest | tuple[EngineRequest, ...]
"""What a conversation yields: one request, or several at once."""
Replies = EngineReply | tuple[EngineReply, ...]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one request, for logs and metrics. It holds no shopper's data and no secret."""

    operation: str
    account: str
    method: str
    status: int | None
    """None without a reply."""
    failure: str | None
    """A key of `MESSAGES`; None for a reply that went to the adapter."""
    seconds: float
    number: int
    """1 for the first."""


def _no_trace(request: EngineRequest) -> AbstractContextManager[Headers]:
    return nullcontext(())


class BrokenContract(Exception):
    """An adapter violates the contract. The message holds no shopper's data."""


class Redemption:
    """Gates the redeeming requests of one conversation, and records what came of them.

    `may_send` is awaited before each attempt, which is made only if it returns True. An exception that it raises ends
    the conversation, and is kept in `stopped_by`.
    """

    def __init__(self, may_send: Callable[[], Awaitable[bool]]) -> None:
        self._may_send = may_send
        self.sent = False
        """Whether any attempt may have reached the engine."""
        self.maybe_redeemed = False
        """Whether the engine may have redeemed something."""
        self.stopped_by: Exception | None = None
        self.not_executed: EngineUnavailable | None = None
        """The last redeeming request's error, if all attempts so far were certainly not executed."""

    async def may_send(self) -> bool:
        try:
            return await self._may_send()
        except Exception as error:
            self.stopped_by = error
            raise

    def record_reply(self, status: int) -> None:
        self.sent = True
        self.maybe_redeemed |= not 400 <= status <= 499 or status == 408

    def record_failure(self, failure: "_AttemptFailed") -> None:
        """A failure with a status (409, 429) reached the engine, which did not execute it."""
        self.sent |= failure.maybe_executed or failure.status is not None
        self.maybe_redeemed |= failure.maybe_executed


@lru_cache(maxsize=64)
def _headers(of_account: Headers, own: Headers, *, has_body: bool) -> Headers:
    """Returns the headers of a request. Cached, since nearly all requests to an account have the same."""
    headers = (*of_account, *own)
    given = {name.lower() for name, _ in headers}
    if "accept" not in given:
        headers = (*headers, ("Accept", "application/json"))
    if has_body and "content-type" not in given:
        headers = (*headers, ("Content-Type", "application/json"))
    return headers


class _AttemptFailed(Exception):
    """An attempt without a reply for the adapter. `retry_after` is in seconds, 0 if unknown."""

    def __init__(
        self, reason: str, *, maybe_executed: bool, retry_after: float = 0.0, status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.maybe_executed, self.retry_after, self.status = reason, maybe_executed, retry_after, status

    def problem(self, request: EngineRequest) -> EngineUnavailable:
        return EngineUnavailable(
            f"{MESSAGES[self.reason]} ({request.operation}).",
            reason=self.reason,
            retry_after=math.ceil(self.retry_after) or None,
        )


class Engine:
    """Sends the requests of conversations to the engine. Several may share one transport."""

    def __init__(
        self,
        transport: Transport,
        accounts: Mapping[str, Account],
        *,
        breaker: bool = False,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_exchange: Callable[[EngineRequest, EngineReply], object] | None = None,
        trace: Callable[[EngineRequest], AbstractContextManager[Headers]] = _no_trace,
        on_breaker: Callable[[str, State], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`breaker`: whether each account gets a circuit breaker (`mapper.engine.breaker`).

        Hooks, none of which may raise: `on_attempt` receives every attempt, `on_exchange` every request with its reply,
        `on_breaker` an account and the new state of its breaker. `trace` is entered around each attempt, and returns
        headers to add to it. `random` returns numbers from 0 to 1.
        """
        self._transport = transport
        self._accounts = accounts
        self._on_attempt = on_attempt
        self._on_exchange = on_exchange
        self._trace = trace
        self._clock, self._wall_clock, self._sleep, self._random = clock, wall_clock, sleep, random
        self._budget = BUDGET_MAX
        self._breakers: dict[str, Breaker] = {}
        if breaker:
            for name in accounts:
                on_change = None if on_breaker is None else partial(on_breaker, name)
                self._breakers[name] = Breaker(clock, random, on_change)

    async def converse(
        self,
        conversation: Conversation[T],
        deadline: float,
        redemption: Redemption | None = None,
        *,
        limit: int = BASE_REQUESTS,
    ) -> T:
        """Runs the conversation and returns its result.

        `deadline` is a time on `clock`. Without a `redemption`, a request that redeems is not sent. `limit`: how many
        requests the conversation may make (`request_limit`).

        Raises `EngineUnavailable`, `BrokenContract` for a request that the contract forbids (it is not sent), and
        whatever the adapter raises.
        """
        replies: Replies | None = None
        count = 0
        try:
            while True:
                step = await run_in_thread(_body_bytes(replies), _resume, conversation, replies)
                if isinstance(step, _Returned):
                    return step.value
                count += len(_checked(step, self._accounts, may_redeem=redemption is not None))
                if count > limit:
                    raise BrokenContract(f"more than {limit} requests in one conversation")
                if isinstance(step, EngineRequest):
                    replies = await self._send_with_retries(step, deadline, redemption)
                else:
                    replies = await self._send_together(step, deadline)
        finally:
            with suppress(ValueError):  # cancelled while the generator runs in a thread, it cannot be closed
                conversation.close()

    async def _send_together(self, requests: Sequence[EngineRequest], deadline: float) -> tuple[EngineReply, ...]:
        """Returns the replies in the order of the requests. The first failure cancels the other requests."""
        slots = asyncio.Semaphore(MAX_CONCURRENT)

        async def send(request: EngineRequest) -> EngineReply:
            async with slots:
                return await self._send_with_retries(request, deadline, None)

        tasks = [asyncio.ensure_future(send(request)) for request in requests]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_with_retries(
        self, request: EngineRequest, deadline: float, redemption: Redemption | None
    ) -> EngineReply:
        """Sends one request, and returns the first reply that is for the adapter. Raises `EngineUnavailable`."""
        account = self._accounts[request.account]
        url = account.base_url.rstrip("/") + request.path
        headers = _headers(tuple(account.headers), tuple(request.headers), has_body=bool(request.body))
        if request.effect != "redeems":
            redemption = None
        self._budget = min(BUDGET_MAX, self._budget + BUDGET_PER_REQUEST)
        number = 1
        while True:
            try:
                if redemption is not None and not await redemption.may_send():
                    raise _AttemptFailed("paused", maybe_executed=False)  # noqa: TRY301 - a failed attempt like any other
                reply = await self._attempt(request, url, headers, deadline, number)
            except _AttemptFailed as failed:
                if redemption is not None:
                    redemption.record_failure(failed)
                pause = self._pause(request, failed, number, deadline)
                if pause is None:
                    raise self._give_up(request, failed, redemption) from None
            except BrokenContract:
                raise
            except BaseException:
                # Cancelled, or a bug of ours: the request may have been sent.
                if redemption is not None and redemption.stopped_by is None:
                    redemption.record_failure(_AttemptFailed("reset", maybe_executed=True))
                raise
            else:
                if redemption is not None:
                    redemption.record_reply(reply.status)
                return reply
            await self._sleep(pause)
            number += 1

    @staticmethod
    def _give_up(request: EngineRequest, failed: _AttemptFailed, redemption: Redemption | None) -> EngineUnavailable:
        problem = failed.problem(request)
        if redemption is not None and not redemption.maybe_redeemed:
            redemption.not_executed = problem
        return problem

    def _pause(self, request: EngineRequest, failed: _AttemptFailed, number: int, deadline: float) -> float | None:
        """Returns the seconds to wait before the next attempt, or None if there must be none."""
        never_sent = not failed.maybe_executed and failed.status is None
        harmless = request.repeatable and not (request.effect == "redeems" and failed.maybe_executed)
        if not (harmless or never_sent) or number > RETRIES.get(failed.reason, 1):
            return None
        shortest, longest = JITTER_S
        pause = max(failed.retry_after, shortest + (longest - shortest) * self._random())
        if deadline - self._clock() - pause < MIN_LEFT_S or self._budget < 1:
            return None
        self._budget -= 1
        return pause

    async def _attempt(
        self, request: EngineRequest, url: str, headers: Headers, deadline: float, number: int
    ) -> EngineReply:
        """Makes one attempt, if there is time left and the circuit breaker allows it."""
        left_s = deadline - self._clock()
        if left_s <= 0:
            raise _AttemptFailed("timeout", maybe_executed=False)
        breaker = self._breakers.get(request.account)
        if breaker is None:
            return await self._traced(request, url, headers, left_s, number)
        entered = breaker.enter()
        if entered is None:
            raise _AttemptFailed("breaker_open", maybe_executed=False, retry_after=breaker.wait_s())
        good: bool | None = None
        try:
            reply = await self._traced(request, url, headers, left_s, number)
            good = True
        except _AttemptFailed as failed:
            good = failed.reason not in DOWN
            raise
        finally:
            breaker.leave(entered, good=good)
        return reply

    async def _traced(
        self, request: EngineRequest, url: str, headers: Headers, timeout_s: float, number: int
    ) -> EngineReply:
        started = self._clock()
        with self._trace(request) as more:
            try:
                reply = await self._send(request, url, (*headers, *more) if more else headers, timeout_s)
            except _AttemptFailed as failed:
                self._report(request, number, started, failed.status, failed.reason)
                raise
            self._report(request, number, started, reply.status, None)
            return reply

    async def _send(self, request: EngineRequest, url: str, headers: Headers, timeout_s: float) -> EngineReply:
        try:
            max_bytes = min(request.reply_bytes, MAX_REPLY_BYTES)
            reply = await self._transport.send(request.method, url, headers, request.body, timeout_s, max_bytes)
        except NotSent as error:
            raise _AttemptFailed(error.reason, maybe_executed=False) from None
        except Unknown as error:
            raise _AttemptFailed(error.reason, maybe_executed=True) from None
        except TimeoutError:
            raise _AttemptFailed("timeout", maybe_executed=True) from None
        except ValueError as error:  # nothing was sent
            raise BrokenContract(f"the request {request.operation!r} cannot be sent: {error}") from None
        if self._on_exchange is not None:
            self._on_exchange(request, reply)
        if (failed := _failure(request, reply, self._wall_clock())) is not None:
            raise failed
        return reply

    def _report(
        self, request: EngineRequest, number: int, started: float, status: int | None, failure: str | None
    ) -> None:
        if self._on_attempt is not None:
            attempt = Attempt(
                operation=request.operation,
                account=request.account,
                method=request.method,
                status=status,
                failure=failure,
                seconds=self._clock() - started,
                number=number,
            )
            self._on_attempt(attempt)


class _Returned(msgspec.Struct, Generic[T], frozen=True):
    """A conversation's result. (A `StopIteration` cannot leave a thread.)"""

    value: T


def _resume(conversation: Conversation[T], replies: Replies | None) -> Requests | _Returned[T]:
    """Returns the adapter's next requests, or its result. The cast: `Conversation` is typed for one at a time."""
    try:
        return next(conversation) if replies is None else conversation.send(cast("EngineReply", _readable(replies)))
    except StopIteration as stop:
        return _Returned(stop.value)


def _readable(replies: Replies) -> Replies:
    """The replies as the adapter is handed them: JSON without lone surrogates, as in a name that was cut in an emoji.

    Few decoders take these, and no answer of ours could pass them on.
    """
    if isinstance(replies, tuple):
        return tuple([_readable_reply(reply) for reply in replies])
    return _readable_reply(replies)


def _readable_reply(reply: EngineReply) -> EngineReply:
    if not _JSON.match(reply.body) or (body := document.without_lone_surrogates(reply.body)) is reply.body:
        return reply
    return msgspec.structs.replace(reply, body=body)


def _body_bytes(replies: Replies | None) -> int:
    if replies is None:
        return 0
    return len(replies.body) if isinstance(replies, EngineReply) else sum(len(reply.body) for reply in replies)


def request_limit(lines: int) -> int:
    """How many requests a conversation about a cart of so many lines may make."""
    return BASE_REQUESTS + REQUESTS_PER_LINE * lines


def _checked(step: object, accounts: Container[str], *, may_redeem: bool) -> tuple[EngineRequest, ...]:
    """Returns what an adapter has yielded as a tuple of valid requests. Raises `BrokenContract`."""
    requests: tuple[object, ...] = step if isinstance(step, tuple) else (step,)
    checked: list[EngineRequest] = []
    for request in requests:
        if not isinstance(request, EngineRequest):
            raise BrokenContract(
                f"a conversation yields EngineRequest, or a tuple of them, not {type(request).__name__}"
            )
        if fault := _fault(request, accounts, may_redeem=may_redeem and not isinstance(step, tuple)):
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


def _failure(request: EngineRequest, reply: EngineReply, now: float) -> _AttemptFailed | None:
    """Returns the failure that a reply's status means; None for a reply that goes to the adapter."""
    if 300 <= reply.status <= 399:
        return _AttemptFailed("redirect", maybe_executed=True, status=reply.status)
    if reply.status in request.answers or not (reply.status in NOT_EXECUTED or reply.status >= 500):
        return None
    reason = NOT_EXECUTED.get(reply.status, "server_error")
    return _AttemptFailed(
        reason,
        maybe_executed=reply.status not in NOT_EXECUTED,
        retry_after=_retry_after(reply.headers, now),
        status=reply.status,
    )


def _retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds from the headers `Retry-After` and `X-Rate-Limit-Retry`; 0 without them."""
    after, at = headers.get("retry-after", "").strip(), headers.get("x-rate-limit-retry", "").strip()
    seconds = 0.0
    if _DIGITS.fullmatch(after):
        seconds = float(after)
    elif after:
        with suppress(ValueError, OverflowError):
            seconds = parsedate_to_datetime(after).timestamp() - now
    elif _DIGITS.fullmatch(at):
        seconds = float(at) - now  # Voucherify: Unix time
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


class RepliesDiffer(ValueError):
    """A replayed conversation makes more or fewer requests than there are replies."""


def replay(
    conversation: Conversation[T], replies: Iterable[EngineReply], *, accounts: Container[str] = ("",), lines: int = 0
) -> tuple[T, list[EngineRequest]]:
    """Runs a conversation with given replies, without HTTP. Returns its result, and the requests it made.

    It is as strict as `Engine`: the requests must be valid for the adapter's `accounts`, their number must fit a cart
    of so many `lines`, and a reply that is not for the adapter (409, 429, 5xx, a redirect) fails as it does there.
    Raises `BrokenContract`, `EngineUnavailable`, `RepliesDiffer`, and whatever the adapter raises.
    """
    requests: list[EngineRequest] = []
    remaining = list(replies)
    sent_back: Replies | None = None
    try:
        while not isinstance(step := _resume(conversation, sent_back), _Returned):
            asked = _checked(step, accounts, may_redeem=True)
            requests += asked
            if len(requests) > request_limit(lines):
                raise BrokenContract(f"more than {request_limit(lines)} requests in one conversation")
            if len(remaining) < len(asked):
                raise RepliesDiffer(f"there is no reply to request {len(requests)}, {requests[-1].operation!r}")
            batch, remaining = remaining[: len(asked)], remaining[len(asked) :]
            for request, reply in zip(asked, batch, strict=True):
                if failed := _failure(request, reply, 0.0):
                    raise failed.problem(request)
            sent_back = tuple(batch) if isinstance(step, tuple) else batch[0]
    finally:
        conversation.close()
    if remaining:
        raise RepliesDiffer(f"{len(remaining)} replies were not asked for")
    return step.value, requests
