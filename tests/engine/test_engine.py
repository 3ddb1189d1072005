"""Conversations over a scripted wire, on a test clock."""

import asyncio
import contextlib
import random
from collections.abc import Generator, Mapping, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest

from mapper.adapter import Account, Conversation, EngineReply, EngineRequest, together
from mapper.domain.errors import EngineRejected, EngineUnavailable
from mapper.engine import conversation as engine
from mapper.engine import transport
from mapper.engine.conversation import Attempt, BrokenContract, Engine, Redemption, replay, request_limit
from mapper.engine.transport import NotSent, Unknown

Step = int | EngineReply | BaseException
NOW = 1_800_000_000.0
ACCOUNTS = {
    "": Account("https://engine.test/base", (("Authorization", "key"),)),
    "second": Account("https://second.test", (("X-App-Token", "token"),)),
}


def reply(status: int = 200, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> EngineReply:
    return EngineReply(status=status, headers=headers or {}, body=body)


class World:
    """A clock, a wire that follows its script (200 after its end), and a record of what it saw."""

    def __init__(self, *script: Step, takes: float = 0.1) -> None:
        self.script = list(script)
        self.takes = takes
        self.now = 1000.0
        self.sent: list[tuple[str, str, dict[str, str], bytes]] = []
        self.timeouts: list[float] = []
        self.pauses: list[float] = []
        self.calls: list[Attempt] = []
        self.exchanges: list[tuple[str, int]] = []
        self.engine = self.make()

    def make(self, *, base_url: str = ACCOUNTS[""].base_url, luck: float = 0.5) -> Engine:
        return Engine(
            self,
            {**ACCOUNTS, "": Account(base_url, ACCOUNTS[""].headers)},
            clock=lambda: self.now,
            wall_clock=lambda: NOW,
            sleep=self.sleep,
            random=lambda: luck,
            on_attempt=self.calls.append,
            on_exchange=lambda request, reply: self.exchanges.append((request.operation, reply.status)),
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        self.sent.append((method, url, dict(headers), body))
        self.timeouts.append(timeout_s)
        step = self.script.pop(0) if self.script else 200
        self.now += min(self.takes, timeout_s)
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, EngineReply) else reply(step)

    async def aclose(self) -> None: ...

    def hold(self, conversation: Conversation[Any], *, within: float = 1.5) -> Any:
        return asyncio.run(self.engine.converse(conversation, self.now + within))

    def redeem(
        self, conversation: Conversation[Any], *, catch: tuple[type[BaseException], ...] = (BaseException,)
    ) -> tuple[bool, bool]:
        """Whether a redeeming request may have reached the engine, and whether it may have redeemed."""

        async def may_send() -> bool:
            return True

        redemption = Redemption(may_send)
        with contextlib.suppress(*catch):
            asyncio.run(self.engine.converse(conversation, self.now + 1.5, redemption))
        return redemption.sent, redemption.maybe_redeemed

    def failure(self, conversation: Conversation[Any], *, within: float = 1.5) -> EngineUnavailable:
        with pytest.raises(EngineUnavailable) as caught:
            self.hold(conversation, within=within)
        return caught.value


def request(path: str = "/x", **changes: Any) -> EngineRequest:
    fields: dict[str, Any] = {"operation": "ask", "method": "PUT", "path": path, "body": b"{}"}
    fields |= {"effect": "session", "repeatable": True, **changes}
    return EngineRequest(**fields)


def ask(*requests: EngineRequest) -> Conversation[list[int]]:
    """Sends the requests in turn and returns the statuses."""
    statuses = []
    for one in requests:
        answer = yield one
        statuses.append(answer.status)
    return statuses


ONCE = request(repeatable=False)
REDEEM = request(effect="redeems", repeatable=False)


# The conversation


def test_conversation_runs_to_its_end() -> None:
    world = World(200, 404)
    assert world.hold(ask(request("/a"), request("/b?q=1", method="GET", body=b"", account="second"))) == [200, 404]
    assert world.sent == [
        (
            "PUT",
            "https://engine.test/base/a",
            {"Authorization": "key", "Accept": "application/json", "Content-Type": "application/json"},
            b"{}",
        ),
        ("GET", "https://second.test/b?q=1", {"X-App-Token": "token", "Accept": "application/json"}, b""),
    ]
    assert world.hold(ask()) == []


def test_adapter_gets_every_reply_but_409_429_5xx_and_redirects() -> None:
    for status in range(200, 600):
        world = World(status)
        if status in (409, 429) or 300 <= status <= 399 or status >= 500:
            world.failure(ask(ONCE))
        else:
            assert world.hold(ask(ONCE)) == [status]


@pytest.mark.parametrize(
    ("body", "handed"),
    [
        (rb'{"name":"cut \ud83d"}', rb'{"name":"cut \ufffd"}'),
        (rb' ["\uDE00","\ud83d\ude00","\\ud83d"]', rb' ["\ufffd","\ud83d\ude00","\\ud83d"]'),
        (rb"<name>\ud83d</name>", rb"<name>\ud83d</name>"),
    ],
)
def test_lone_surrogates_in_json_are_replaced(body: bytes, handed: bytes) -> None:
    two, answer = together(request("/a"), request("/b")), reply(body=body)
    assert [one.body for one in replay(two, [answer, answer])[0]] == [handed, handed]
    assert [one.body for one in replay(together(request("/a")), [answer])[0]] == [handed]


def test_request_headers_override_defaults() -> None:
    world = World()
    world.hold(ask(request(headers=(("Idempotency-Key", "k"), ("accept", "text/plain"), ("content-type", "text/x")))))
    headers = {"Authorization": "key", "Idempotency-Key": "k", "accept": "text/plain", "content-type": "text/x"}
    assert world.sent[0][2] == headers


def test_all_requests_share_one_deadline() -> None:
    world = World(200, 503, 200)
    world.hold(ask(request(), request()), within=1.0)
    assert world.timeouts == pytest.approx([1.0, 0.9, 0.8 - world.pauses[0]])


def test_nothing_is_sent_after_deadline() -> None:
    world = World(takes=1.0)
    error = world.failure(ask(request(), request()), within=1.0)
    assert (error.reason, len(world.sent)) == ("timeout", 1)
    world = World()
    error = world.failure(ask(request()), within=0.0)
    assert (error.reason, world.sent, world.calls) == ("timeout", [], [])


# Where a request may go


def test_path_cannot_leave_base_url() -> None:
    good = [
        "/",
        "/v2/customer_sessions/a%2Fb",
        "/v2/customer_sessions/..%2Fx",
        "/v2/customer_sessions/.../x",
        "/v2/customer_sessions/a.b",
        "/v2/x/",
        "/v2/x?",
        "/v2/x?dry=true&filters[code]=a%20b&next=/../y?",
        "/v2/%2E%2E%2E",
        "/v1/a:b@c;d=e,f!$&'()*+~",
    ]
    bad = [
        *("", "v2/x", "?x", "//evil.test/x", "https://evil.test/x", "/v2//x", "/v2/customer_sessions//"),
        *("/..", "/../x", "/v2/../x", "/v2/..", "/v2/.", "/v2/./x", "/v2/..?dry=true"),
        *("/%2e%2e/x", "/v2/%2E%2e", "/v2/.%2e/x", "/v2/%2e./x", "/v2/%2e?x"),
        *("/a b", "/a\r\nX: 1", "/a\n", "/a\tb", "/a\x00", "/é", "/a#b", "/a\\b", "/a%", "/a%2", "/a%zz"),
        *('/a"b', "/<a>", "/{a}", "/a|b", "/a^b", "/a`b", "/a?b c", "/a?b#c", "/a[b]"),
    ]
    for path in good:
        world = World()
        world.hold(ask(request(path)))
        assert world.sent[0][1] == f"https://engine.test/base{path}"
    for path in bad:
        world = World()
        with pytest.raises(BrokenContract, match="percent-encoded") as caught:
            world.hold(ask(request(path)))
        assert world.sent == [], path
        assert not path or path not in str(caught.value) or path == "?x"


def test_trailing_slash_of_base_url_is_ignored() -> None:
    for base in ("https://engine.test", "https://engine.test/"):
        world = World()
        world.engine = world.make(base_url=base)
        world.hold(ask(request("/x")))
        assert world.sent[0][1] == "https://engine.test/x"


def test_request_for_unknown_account_is_not_sent() -> None:
    world = World()
    with pytest.raises(BrokenContract, match="account"):
        world.hold(ask(request(account="third")))
    assert world.sent == []


# Retries

REFUSED, RESET, SLOW = NotSent("connect"), Unknown("reset"), Unknown("timeout")


@pytest.mark.parametrize(
    ("script", "attempts", "outcome"),
    [
        ([200], 1, 200),
        ([REFUSED, 200], 2, 200),
        ([RESET, 200], 2, 200),
        ([409, 200], 2, 200),
        ([409, 409, 200], 3, 200),
        ([429, 200], 2, 200),
        ([500, 201], 2, 201),
        ([503, 404], 2, 404),
        ([REFUSED, REFUSED], 2, "connect"),
        ([RESET, SLOW], 2, "timeout"),
        ([409, 409, 409], 3, "conflict"),
        ([409, 500], 2, "server_error"),
        ([500, 409, 200], 3, 200),
        ([429, 429], 2, "rate_limited"),
        ([502, 504], 2, "server_error"),
        ([301], 1, "redirect"),
        ([304], 1, "redirect"),
        ([Unknown("too_large")], 1, "too_large"),
        ([TimeoutError(), 200], 2, 200),
    ],
)
def test_repeatable_request_is_retried_by_failure_kind(script: list[Step], attempts: int, outcome: int | str) -> None:
    world = World(*script)
    if isinstance(outcome, int):
        assert world.hold(ask(request())) == [outcome]
    else:
        assert world.failure(ask(request())).reason == outcome
    assert len(world.sent) == attempts
    assert len(set(map(str, world.sent))) == 1, "an attempt differs from the first"


@pytest.mark.parametrize(
    ("script", "attempts", "reason"),
    [
        ([REFUSED, 200], 2, None),
        ([REFUSED, REFUSED], 2, "connect"),
        ([REFUSED, RESET], 2, "reset"),
        ([RESET], 1, "reset"),
        ([SLOW], 1, "timeout"),
        ([409], 1, "conflict"),
        ([429], 1, "rate_limited"),
        ([500], 1, "server_error"),
        ([503], 1, "server_error"),
        ([307], 1, "redirect"),
        ([Unknown("truncated")], 1, "truncated"),
        ([TimeoutError()], 1, "timeout"),
    ],
)
def test_unrepeatable_request_is_retried_only_if_not_sent(
    script: list[Step], attempts: int, reason: str | None
) -> None:
    world = World(*script)
    if reason is None:
        assert world.hold(ask(ONCE)) == [200]
    else:
        assert world.failure(ask(ONCE)).reason == reason
    assert len(world.sent) == attempts


NEVER, NO_MORE, STANDS = (False, False), (True, False), (True, True)
"""Of redeeming requests: whether one may have reached the engine, and whether one may have redeemed."""


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize(
    ("script", "attempts", "came_to"),
    [
        ([200], 1, STANDS),
        ([201], 1, STANDS),
        ([204], 1, STANDS),
        ([REFUSED, REFUSED], 2, NEVER),
        ([REFUSED, 200], 2, STANDS),
        ([400], 1, NO_MORE),
        ([408], 1, STANDS),
        ([422], 1, NO_MORE),
        ([RESET, 200], 1, STANDS),
        ([REFUSED, RESET], 2, STANDS),
        ([SLOW, 200], 1, STANDS),
        ([TimeoutError(), 200], 1, STANDS),
        ([500, 200], 1, STANDS),
        ([503, 429], 1, STANDS),
        ([307], 1, STANDS),
        ([Unknown("truncated"), 200], 1, STANDS),
        ([Unknown("garbled"), 200], 1, STANDS),
        ([RuntimeError("a fault of our own")], 1, STANDS),
        ([asyncio.CancelledError()], 1, STANDS),
        ([ValueError("a header that HTTP cannot carry")], 1, NEVER),
    ],
)
def test_redeeming_request_is_resent_only_if_certainly_not_processed(
    script: list[Step], attempts: int, came_to: tuple[bool, bool], *, repeatable: bool
) -> None:
    world = World(*script)
    assert world.redeem(ask(request(effect="redeems", repeatable=repeatable))) == came_to
    assert len(world.sent) == attempts


@pytest.mark.parametrize("status", [409, 429])
def test_409_and_429_mean_not_processed(status: int) -> None:
    world = World(status, 200)
    assert (world.redeem(ask(REDEEM)), len(world.sent)) == (NO_MORE, 1)
    world = World(status, 200)
    assert (world.redeem(ask(request(effect="redeems"))), len(world.sent)) == (STANDS, 2)


@pytest.mark.parametrize(
    ("requests", "script", "came_to"),
    [
        ([request(), REDEEM], [200, REFUSED, REFUSED], NEVER),
        ([REDEEM, request()], [200, REFUSED, REFUSED], STANDS),
        ([REDEEM, REDEEM], [400, 200], STANDS),
        ([REDEEM, REDEEM], [400, REFUSED, REFUSED], NO_MORE),
        ([request(), request()], [RESET, 503], NEVER),
        ([], [], NEVER),
    ],
)
def test_only_redeeming_requests_count_and_each_does(
    requests: list[EngineRequest], script: list[Step], came_to: tuple[bool, bool]
) -> None:
    assert World(*script).redeem(ask(*requests)) == came_to


@pytest.mark.parametrize("status", [409, 429, 500, 503, 599])
def test_adapter_gets_error_statuses_it_asks_for(status: int) -> None:
    world = World(status)
    assert world.hold(ask(request(answers=frozenset({status})))) == [status]
    assert (len(world.sent), world.calls[0].failure) == (1, None)
    assert World(status).redeem(ask(request(effect="redeems", answers=frozenset({status})))) == (
        NO_MORE if status < 500 else STANDS
    )


# Invalid requests of an adapter


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("/x", "not str"),
        (None, "not NoneType"),
        ([request()], "not list"),
        ((request(), "/x"), "not str"),
        (request(account="third"), "account"),
        (request("no path"), "percent-encoded"),
        (request(effect="redeem"), "effect"),
        (request(answers=frozenset({404})), "answers"),
        (request(answers=frozenset({302})), "answers"),
        (request(answers=frozenset({600})), "answers"),
    ],
)
def test_invalid_request_of_adapter_is_not_sent(asked: Any, says: str) -> None:
    def asks() -> Generator[Any, Any, None]:
        yield asked

    world = World()
    with pytest.raises(BrokenContract, match=says):
        world.hold(asks())
    assert world.sent == []
    with pytest.raises(BrokenContract, match=says):
        replay(asks(), [reply()] * 2)


def test_only_redeem_conversation_may_redeem() -> None:
    world = World()
    with pytest.raises(BrokenContract, match="only `redeem` may"):
        world.hold(ask(request(effect="redeems")))
    assert world.sent == []


# Concurrent requests


def test_concurrent_requests_return_replies_in_order() -> None:
    paths = [f"/{number}" for number in range(20)]
    under_way, most = 0, 0
    world = World(takes=0)
    sends = world.send

    async def slowly(method: str, url: str, *arguments: Any) -> EngineReply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(21 - int(url.rsplit("/", 1)[-1])):  # the last gets its reply first
            await asyncio.sleep(0)
        under_way -= 1
        await sends(method, url, *arguments)
        return reply(body=url.rsplit("/", 1)[-1].encode())

    world.send = slowly  # type: ignore[method-assign, assignment]

    def asks() -> Conversation[list[str]]:
        replies = yield from together(*(request(path) for path in paths))
        none = yield from together()
        return [f"/{one.body.decode()}" for one in (*replies, *none)]

    assert world.hold(asks()) == paths
    assert most == engine.MAX_CONCURRENT


def test_concurrent_requests_cannot_redeem_and_fail_together() -> None:
    world = World()
    with pytest.raises(BrokenContract, match="redeem"):
        world.redeem(together(request(), REDEEM), catch=())
    assert world.sent == []
    world = World(404, 302, takes=0)
    sends = world.send

    async def slowly(*arguments: Any) -> EngineReply:
        answer = asyncio.ensure_future(sends(*arguments))
        await asyncio.sleep(0)
        return await answer

    world.send = slowly  # type: ignore[method-assign, assignment]
    assert world.failure(together(*(request(f"/{number}") for number in range(99)))).reason == "redirect"
    assert len(world.sent) < 99, "those that had not begun are not sent any more"


@pytest.mark.parametrize(("luck", "pause"), [(0.0, 0.02), (0.5, 0.05), (1.0, 0.08)])
def test_retry_pause_has_jitter(luck: float, pause: float) -> None:
    world = World(503, 200)
    world.engine = world.make(luck=luck)
    world.hold(ask(request()))
    assert world.pauses == pytest.approx([pause])


@pytest.mark.parametrize(("within", "attempts"), [(0.19, 1), (0.201, 2), (0.5, 2)])
def test_retry_needs_enough_time_left(within: float, attempts: int) -> None:
    world = World(503, 503)  # the first takes 0.1 s, the pause 0.05 s, and 0.05 s must be left
    world.failure(ask(request()), within=within)
    assert len(world.sent) == attempts


@pytest.mark.parametrize(
    ("headers", "pause", "retry_after"),
    [
        ({"retry-after": "1"}, 1.0, None),
        ({"retry-after": " 0 "}, 0.05, None),
        ({"retry-after": formatdate(NOW + 1, usegmt=True)}, 1.0, None),
        ({"retry-after": formatdate(NOW - 60, usegmt=True)}, 0.05, None),
        ({"x-rate-limit-retry": str(int(NOW) + 1)}, 1.0, None),
        ({"retry-after": "1", "x-rate-limit-retry": str(int(NOW) + 30)}, 1.0, None),
        ({"retry-after": "2"}, None, 2),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, None, 30),
        ({"x-rate-limit-retry": str(int(NOW) + 30)}, None, 30),
        ({"retry-after": "999999999999"}, None, 3600),
        *(({"retry-after": text}, 0.05, None) for text in ("", "soon", "-1", "1.5", "1e9", "NaN", "\u0661", "9" * 400)),
    ],
)
@pytest.mark.parametrize("status", [409, 429, 503])
def test_retry_after_is_obeyed_within_deadline(
    headers: dict[str, str], pause: float | None, retry_after: int | None, status: int
) -> None:
    world = World(reply(status, headers=headers), 200)
    if pause is not None:
        world.hold(ask(request()))
        assert world.pauses == pytest.approx([pause])
    else:
        error = world.failure(ask(request()))
        assert (error.retry_after, world.pauses, world.now) == (retry_after, [], 1000.1)


@pytest.mark.parametrize(("text", "retry_after"), [("7", 7), ("0", None), (formatdate(NOW - 60, usegmt=True), None)])
def test_retry_after_is_returned_without_retry(text: str, retry_after: int | None) -> None:
    assert World(reply(503, headers={"retry-after": text})).failure(ask(ONCE)).retry_after == retry_after


def test_retries_stay_within_a_tenth_of_calls() -> None:
    world = World(takes=0.0)

    async def repeats(*script: int) -> int:
        world.script, before, calls = list(script), len(world.sent), 0
        while world.script:
            with contextlib.suppress(EngineUnavailable):
                await world.engine.converse(ask(request()), world.now + 1.5)
            calls += 1
        return len(world.sent) - before - calls

    async def story() -> None:
        assert 105 <= await repeats(*[503] * 1100) <= 112, "ten in stock, and a tenth of a thousand"
        assert await repeats(*[200] * 20) == 0
        assert await repeats(503, 200, 503, 503) == 2, "earned by the twenty"
        assert await repeats(*[200] * 1000) == 0
        assert 25 <= await repeats(*[503] * 200) <= 29, "again ten in stock, and not a hundred"

    asyncio.run(story())


# Failures


def test_every_reason_has_message_without_engine_data() -> None:
    reasons = ["connect", "dns", "tls"], ["timeout", "reset", "garbled", "truncated", "undecodable", "too_large"]
    failures: list[Step] = [NotSent(reason, "detail") for reason in reasons[0]]
    failures += [Unknown(reason, "detail") for reason in reasons[1]]
    failures += [reply(status, b"text of the engine") for status in (302, 409, 429, 500)]
    seen = set()
    for failed in failures:
        error = World(failed).failure(ask(ONCE if not isinstance(failed, NotSent) else request()), within=0.12)
        assert error.message.endswith(" (ask).")
        assert "detail" not in error.message
        assert "text" not in error.message
        assert error.message.startswith(engine.MESSAGES[error.reason])
        seen.add(error.reason)
    assert seen == engine.MESSAGES.keys() - {"breaker_open", "paused"}
    for reason in (*reasons[0], *reasons[1]):
        assert reason in (transport.NotSent.__doc__ or "") + (transport.Unknown.__doc__ or "")


def test_problem_raised_by_adapter_passes_through() -> None:
    problem = EngineRejected("The key is wrong.", reason="unauthorized")

    def conversation() -> Conversation[None]:
        yield request()
        raise problem

    with pytest.raises(EngineRejected) as caught:
        World().hold(conversation())
    assert caught.value is problem


def test_bug_in_adapter_passes_through() -> None:
    def breaks() -> Conversation[None]:
        answer = yield request()
        raise KeyError(answer.status)

    with pytest.raises(KeyError, match="200"):
        World().hold(breaks())


@pytest.mark.parametrize("lines", [0, 1, 1000])
def test_request_limit_grows_with_cart_lines(lines: int) -> None:
    def endless() -> Conversation[None]:
        while True:
            yield request()

    most = request_limit(lines)
    assert most >= 40 + lines
    world = World(takes=0)
    with pytest.raises(BrokenContract, match=f"more than {most} requests"):
        asyncio.run(world.engine.converse(endless(), world.now + 1, limit=most))
    assert len(world.sent) == most
    with pytest.raises(BrokenContract, match=f"more than {most} requests"):
        replay(endless(), [reply()] * (most + 1), lines=lines)
    assert replay(ask(*[request()] * most), [reply()] * most, lines=lines)[0] == [200] * most


@pytest.mark.parametrize(
    ("script", "path", "error"),
    [
        ([200], "/x", None),
        ([404], "/x", EngineRejected),
        ([307], "/x", EngineUnavailable),
        ([asyncio.CancelledError()], "/x", asyncio.CancelledError),
        ([], "no path", BrokenContract),
    ],
)
def test_conversation_is_always_closed(script: list[Any], path: str, error: type[BaseException] | None) -> None:
    closed: list[bool] = []

    def conversation() -> Conversation[int]:
        try:
            answer = yield request(path)
            if answer.status == 404:
                raise EngineRejected("no", reason="no")
            yield request()
        finally:
            closed.append(True)
        return answer.status

    async def story() -> None:
        kept = conversation()  # kept, so that garbage collection does not close it
        try:
            await World(*script).engine.converse(kept, 1001.5)
        finally:
            assert closed == [True]

    if error is None:
        asyncio.run(story())
    else:
        with pytest.raises(error):
            asyncio.run(story())


# Hooks


def test_hooks_get_every_attempt_with_its_result() -> None:
    world = World(503, REFUSED, 200, 404)
    world.failure(ask(request(operation="close session")))
    world.hold(ask(request(operation="read", method="GET", account="second"), request()))
    seen = [(call.operation, call.account, call.method, call.status, call.failure, call.number) for call in world.calls]
    assert seen == [
        ("close session", "", "PUT", 503, "server_error", 1),
        ("close session", "", "PUT", None, "connect", 2),
        ("read", "second", "GET", 200, None, 1),
        ("ask", "", "PUT", 404, None, 1),
    ]
    assert [call.seconds for call in world.calls] == pytest.approx([0.1] * 4)
    assert world.exchanges == [("close session", 503), ("read", 200), ("ask", 404)]


def test_hooks_get_no_secrets() -> None:
    world = World()
    world.hold(ask(request("/sessions/SUMMER?code=SUMMER", body=b"SUMMER")))
    assert "SUMMER" not in repr(world.calls)
    assert "key" not in repr(world.calls)


# Replay


def test_replay_runs_conversation_without_http() -> None:
    first, second = request("/a"), request("/b")
    assert replay(ask(first, second), [reply(200), reply(404)]) == ([200, 404], [first, second])
    assert replay(ask(), []) == ([], [])
    with pytest.raises(ValueError, match="no reply to request 2, 'ask'"):
        replay(ask(first, second), [reply(200)])
    with pytest.raises(ValueError, match="1 replies were not asked for"):
        replay(ask(first), [reply(200), reply(200)])
    replies = [reply(body=b"1"), reply(body=b"2")]
    assert replay(together(first, second), replies) == (tuple(replies), [first, second])


def test_replay_is_as_strict_as_the_engine() -> None:
    for status in range(200, 600):
        failed: list[str] = []
        for hold in (World(status).hold, partial(replay, replies=[reply(status)])):
            try:
                hold(ask(ONCE))
            except EngineUnavailable as error:
                failed.append(error.message)
        assert len(failed) in (0, 2), status
        assert len(set(failed)) <= 1, status
    other = request(account="second")
    with pytest.raises(BrokenContract, match="account"):
        replay(ask(other), [reply()])
    assert replay(ask(other), [reply()], accounts=ACCOUNTS)[1] == [other]
    closed: list[bool] = []

    def conversation() -> Conversation[None]:
        try:
            yield request("no path")
        finally:
            closed.append(True)

    with pytest.raises(BrokenContract, match="percent-encoded"):
        replay(conversation(), [reply()])
    assert closed == [True]


def test_replay_raises_errors_of_adapter() -> None:
    def breaks() -> Conversation[None]:
        yield request()
        raise KeyError("x")

    with pytest.raises(KeyError):
        replay(breaks(), [reply()])


def test_jitter_is_random_by_default() -> None:
    assert Engine(World(), {})._random is random.random


# Permits to redeem


@pytest.mark.parametrize(
    ("answers", "attempts", "sent"),
    [([True], 1, 1), ([False, True], 2, 1), ([False, False], 2, 0)],
)
@pytest.mark.parametrize("repeatable", [False, True])
def test_redeeming_request_needs_permit(answers: list[bool], attempts: int, sent: int, *, repeatable: bool) -> None:
    world, asked = World(), list(answers)

    async def may() -> bool:
        return asked.pop(0)

    async def hold() -> object:
        redeems = ask(request(effect="redeems", repeatable=repeatable))
        return await world.engine.converse(redeems, world.now + 5, Redemption(may))

    if sent:
        asyncio.run(hold())
    else:
        with pytest.raises(EngineUnavailable) as error:
            asyncio.run(hold())
        assert error.value.reason == "paused"
    assert (len(world.sent), len(answers) - len(asked)) == (sent, attempts)


def test_other_requests_need_no_permit() -> None:
    world = World()

    async def never() -> bool:
        raise AssertionError

    async def hold() -> object:
        return await world.engine.converse(ask(ONCE, request(effect="none")), world.now + 5, Redemption(never))

    asyncio.run(hold())
    assert len(world.sent) == 2
