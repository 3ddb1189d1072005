"""Conversations over a scripted wire, on a clock that only the test moves."""

import asyncio
import contextlib
import random
from collections.abc import Generator, Mapping, Sequence
from email.utils import formatdate
from typing import Any

import pytest

from mapper.adapter import Account, Conversation, EngineReply, EngineRequest
from mapper.domain.errors import EngineRejected, EngineUnavailable
from mapper.engine import conversation as engine
from mapper.engine import transport
from mapper.engine.conversation import Call, Engine, replay
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
    """A clock, a wire that follows its script (200 when it is at its end), and what was seen on it."""

    def __init__(self, *script: Step, takes: float = 0.1) -> None:
        self.script = list(script)
        self.takes = takes
        self.now = 1000.0
        self.sent: list[tuple[str, str, dict[str, str], bytes]] = []
        self.timeouts: list[float] = []
        self.pauses: list[float] = []
        self.calls: list[Call] = []
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
            on_call=self.calls.append,
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

    def failure(self, conversation: Conversation[Any], *, within: float = 1.5) -> EngineUnavailable:
        with pytest.raises(EngineUnavailable) as caught:
            self.hold(conversation, within=within)
        return caught.value


def request(path: str = "/x", **changes: Any) -> EngineRequest:
    fields: dict[str, Any] = {"operation": "ask", "method": "PUT", "path": path, "body": b"{}"}
    fields |= {"effect": "session", "repeatable": True, **changes}
    return EngineRequest(**fields)


def ask(*requests: EngineRequest) -> Conversation[list[int]]:
    """Asks these, one after the other, and returns the statuses."""
    statuses = []
    for one in requests:
        answer = yield one
        statuses.append(answer.status)
    return statuses


ONCE = request(effect="redeems", repeatable=False)


# The conversation


def test_a_conversation_is_held_to_its_end() -> None:
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


def test_every_reply_but_409_429_5xx_and_redirects_goes_to_the_adapter() -> None:
    for status in range(200, 600):
        world = World(status)
        if status in (409, 429) or 300 <= status <= 399 or status >= 500:
            world.failure(ask(ONCE))
        else:
            assert world.hold(ask(ONCE)) == [status]


def test_headers_of_a_request_go_along_and_take_the_place_of_defaults() -> None:
    world = World()
    world.hold(ask(request(headers=(("Idempotency-Key", "k"), ("accept", "text/plain"), ("content-type", "text/x")))))
    headers = {"Authorization": "key", "Idempotency-Key": "k", "accept": "text/plain", "content-type": "text/x"}
    assert world.sent[0][2] == headers


def test_all_requests_share_one_deadline() -> None:
    world = World(200, 503, 200)
    world.hold(ask(request(), request()), within=1.0)
    assert world.timeouts == pytest.approx([1.0, 0.9, 0.8 - world.pauses[0]])


def test_nothing_is_sent_when_the_time_is_up() -> None:
    world = World(takes=1.0)
    error = world.failure(ask(request(), request()), within=1.0)
    assert (error.reason, len(world.sent)) == ("timeout", 1)
    world = World()
    error = world.failure(ask(request()), within=0.0)
    assert (error.reason, error.sent, world.sent, world.calls) == ("timeout", False, [], [])


# Where a request may lead


def test_a_path_leads_nowhere_but_below_the_base_url() -> None:
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
        with pytest.raises(ValueError, match="percent-encoded") as caught:
            world.hold(ask(request(path)))
        assert world.sent == [], path
        assert not path or path not in str(caught.value) or path == "?x"


def test_a_slash_at_the_end_of_the_base_url_makes_no_difference() -> None:
    for base in ("https://engine.test", "https://engine.test/"):
        world = World()
        world.engine = world.make(base_url=base)
        world.hold(ask(request("/x")))
        assert world.sent[0][1] == "https://engine.test/x"


def test_a_request_for_an_account_that_is_not_there_is_not_sent() -> None:
    world = World()
    with pytest.raises(ValueError, match="account"):
        world.hold(ask(request(account="third")))
    assert world.sent == []


# Repeating

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
def test_a_repeatable_request_is_tried_again_as_often_as_the_table_says(
    script: list[Step], attempts: int, outcome: int | str
) -> None:
    world = World(*script)
    if isinstance(outcome, int):
        assert world.hold(ask(request())) == [outcome]
    else:
        assert world.failure(ask(request())).reason == outcome
    assert len(world.sent) == attempts
    assert len(set(map(str, world.sent))) == 1, "an attempt differs from the first"


@pytest.mark.parametrize(
    ("script", "attempts", "reason", "sent"),
    [
        ([REFUSED, 200], 2, None, None),
        ([REFUSED, REFUSED], 2, "connect", False),
        ([REFUSED, RESET], 2, "reset", True),
        ([RESET], 1, "reset", True),
        ([SLOW], 1, "timeout", True),
        ([409], 1, "conflict", False),
        ([429], 1, "rate_limited", False),
        ([500], 1, "server_error", True),
        ([503], 1, "server_error", True),
        ([307], 1, "redirect", True),
        ([Unknown("truncated")], 1, "truncated", True),
        ([TimeoutError()], 1, "timeout", True),
    ],
)
def test_a_request_that_may_not_be_repeated_is_tried_again_only_if_it_never_left(
    script: list[Step], attempts: int, reason: str | None, sent: bool | None
) -> None:
    world = World(*script)
    if reason is None:
        assert world.hold(ask(ONCE)) == [200]
    else:
        error = world.failure(ask(ONCE))
        assert (error.reason, error.sent) == (reason, sent)
    assert len(world.sent) == attempts


@pytest.mark.parametrize(
    ("requests", "script", "sent"),
    [
        # An earlier attempt may have arrived.
        ([request()], [RESET, REFUSED], True),
        ([request()], [503, 429], True),
        ([request()], [409, 429], False),
        ([request()], [429, REFUSED], False),
        # An earlier request of the conversation has arrived.
        ([request(), request()], [200, REFUSED, REFUSED], True),
        ([request(), ONCE], [200, 429], True),
        # But reading changes nothing.
        ([request(method="GET", body=b""), request()], [200, REFUSED, REFUSED], False),
    ],
)
def test_a_failure_counts_as_sent_if_anything_that_went_before_may_have_acted(
    requests: list[EngineRequest], script: list[Step], sent: bool
) -> None:
    assert World(*script).failure(ask(*requests)).sent is sent


@pytest.mark.parametrize(("luck", "pause"), [(0.0, 0.02), (0.5, 0.05), (1.0, 0.08)])
def test_the_pause_before_a_repeat_is_a_matter_of_luck(luck: float, pause: float) -> None:
    world = World(503, 200)
    world.engine = world.make(luck=luck)
    world.hold(ask(request()))
    assert world.pauses == pytest.approx([pause])


@pytest.mark.parametrize(("within", "attempts"), [(0.19, 1), (0.201, 2), (0.5, 2)])
def test_no_repeat_is_begun_without_the_time_for_it(within: float, attempts: int) -> None:
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
def test_the_engine_says_when_to_come_back_and_is_obeyed_within_the_deadline(
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
def test_when_to_come_back_is_handed_on_where_there_is_no_repeat(text: str, retry_after: int | None) -> None:
    assert World(reply(503, headers={"retry-after": text})).failure(ask(ONCE)).retry_after == retry_after


def test_repeats_stay_within_a_tenth_of_the_calls() -> None:
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


def test_every_reason_has_a_sentence_without_data_of_the_engine() -> None:
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
    assert seen == engine.MESSAGES.keys() - {"adapter_error", "breaker_open", "paused"}
    for reason in (*reasons[0], *reasons[1]):
        assert reason in (transport.NotSent.__doc__ or "") + (transport.Unknown.__doc__ or "")


def test_what_an_adapter_raises_itself_passes_through() -> None:
    problem = EngineRejected("The key is wrong.", reason="unauthorized")

    def conversation() -> Conversation[None]:
        yield request()
        raise problem

    with pytest.raises(EngineRejected) as caught:
        World().hold(conversation())
    assert caught.value is problem


def test_an_adapter_that_breaks_leaves_the_outcome_unknown() -> None:
    def breaks() -> Conversation[None]:
        answer = yield request()
        raise KeyError(answer.status)

    def yields_nonsense() -> Generator[Any, Any, None]:
        yield "/x"

    for conversation, cause in ((breaks(), KeyError), (yields_nonsense(), TypeError)):
        error = World().failure(conversation)
        assert (error.reason, error.sent) == ("adapter_error", True)
        assert isinstance(error.__cause__, cause)


def test_an_adapter_that_asks_without_end_is_stopped() -> None:
    def endless() -> Conversation[None]:
        while True:
            yield request()

    world = World()
    assert world.failure(endless(), within=60.0).reason == "adapter_error"
    assert len(world.sent) == engine.MAX_REQUESTS
    most = [request()] * engine.MAX_REQUESTS
    assert World().hold(ask(*most), within=60.0) == [200] * engine.MAX_REQUESTS


@pytest.mark.parametrize(
    ("script", "path", "error"),
    [
        ([200], "/x", None),
        ([404], "/x", EngineRejected),
        ([307], "/x", EngineUnavailable),
        ([asyncio.CancelledError()], "/x", asyncio.CancelledError),
        ([], "no path", ValueError),
    ],
)
def test_a_conversation_is_always_closed(script: list[Any], path: str, error: type[BaseException] | None) -> None:
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
        kept = conversation()  # kept, so that it is not closed for being forgotten
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


def test_every_attempt_is_told_with_what_became_of_it() -> None:
    world = World(503, REFUSED, 200, 404)
    world.failure(ask(request(operation="close session")))
    world.hold(ask(request(operation="read", method="GET", account="second"), request()))
    seen = [
        (call.operation, call.account, call.method, call.status, call.failure, call.attempt) for call in world.calls
    ]
    assert seen == [
        ("close session", "", "PUT", 503, "server_error", 1),
        ("close session", "", "PUT", None, "connect", 2),
        ("read", "second", "GET", 200, None, 1),
        ("ask", "", "PUT", 404, None, 1),
    ]
    assert [call.seconds for call in world.calls] == pytest.approx([0.1] * 4)
    assert world.exchanges == [("close session", 503), ("read", 200), ("ask", 404)]


def test_hooks_are_told_no_secret() -> None:
    world = World()
    world.hold(ask(request("/sessions/SUMMER?code=SUMMER", body=b"SUMMER")))
    assert "SUMMER" not in repr(world.calls)
    assert "key" not in repr(world.calls)


# Replay


def test_replay_holds_a_conversation_without_http() -> None:
    first, second = request("/a"), request("/b")
    assert replay(ask(first, second), [reply(200), reply(409)]) == ([200, 409], [first, second])
    assert replay(ask(), []) == ([], [])
    with pytest.raises(ValueError, match="no reply to request 2, 'ask'"):
        replay(ask(first, second), [reply(200)])


def test_replay_lets_out_what_the_adapter_raises() -> None:
    def breaks() -> Conversation[None]:
        yield request()
        raise KeyError("x")

    with pytest.raises(KeyError):
        replay(breaks(), [reply()])


def test_luck_is_random_by_default() -> None:
    assert Engine(World(), {})._random is random.random


# ---------------------------------------------------------------------------------------------------------------------
# Before something that cannot be taken back


@pytest.mark.parametrize(
    ("answers", "attempts", "sent"),
    [([True], 1, 1), ([False, True], 2, 1), ([False, False], 2, 0)],
)
def test_what_may_not_be_repeated_goes_out_only_if_it_may(answers: list[bool], attempts: int, sent: int) -> None:
    world, asked = World(), list(answers)

    async def may() -> bool:
        return asked.pop(0)

    async def hold() -> object:
        return await world.engine.converse(ask(ONCE), world.now + 5, may)

    if sent:
        asyncio.run(hold())
    else:
        with pytest.raises(EngineUnavailable) as error:
            asyncio.run(hold())
        assert (error.value.reason, error.value.sent) == ("paused", False)
    assert (len(world.sent), len(answers) - len(asked)) == (sent, attempts)


def test_what_may_be_repeated_is_not_asked_about() -> None:
    world = World()

    async def never() -> bool:
        raise AssertionError

    async def hold() -> object:
        return await world.engine.converse(ask(request()), world.now + 5, never)

    asyncio.run(hold())
    assert len(world.sent) == 1
