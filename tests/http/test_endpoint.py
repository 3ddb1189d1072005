"""One call through an endpoint and its limiter, over plain ASGI without a server."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from mapper import promotions
from mapper.domain.errors import EngineUnavailable
from mapper.http import app, endpoint, limiter
from mapper.http.endpoint import Endpoint
from mapper.http.protocol import RECEIVED
from mapper.ops.telemetry import Telemetry
from mapper.orders.rows import Answer
from mapper.promotions import Call, Service
from mapper.threads import LARGE_BYTES
from tests import fakes, virtual_time

WHOLE = (b"x",)


class Callers:
    """Clients of a service with a capacity of two validates and one consume, and 4 KiB of bodies for each."""

    def __init__(self, patch: pytest.MonkeyPatch, took_s: float = 0.0, max_body_bytes: int = 1024) -> None:
        self.go = asyncio.Event()
        self.rest = asyncio.Event()
        """Set when the second part of each body arrives."""
        self.statuses: Counter[int] = Counter()
        self.left_s: list[float] = []
        """Seconds to each call's deadline when it began."""
        self.state: dict[str, Any] = {}
        """The `state` in the scope of each call, as the server sets it."""
        self.tasks: list[asyncio.Task[None]] = []
        patch.setattr(limiter, "VALIDATE_CAPACITY", 2)
        patch.setattr(limiter, "CONSUME_CAPACITY", 1)
        patch.setattr(endpoint, "IN_FLIGHT_BYTES", 0)
        for operation in ("validate", "consume"):
            patch.setattr(promotions, operation, self.work)
        environment = {"MAPPER_MAX_BODY_BYTES": str(max_body_bytes), "MAPPER_LEDGER_URL": fakes.new_ledger()}
        configured = fakes.settings(fakes.FakeAdapter(), **environment)
        self.service: Any = app.create(configured, engine_transport=fakes.FakeTransport())
        for made in self.service._endpoints.values():
            made._limiter._service_s = made._large._service_s = took_s

    async def work(self, service: Service, call: Call) -> Answer:
        self.left_s.append(call.deadline - service.clock())
        await self.go.wait()
        return Answer(200, b"{}", "ok")

    async def arrive(self, operation: str, *parts: bytes, query: bytes = b"") -> None:
        unsent = iter(parts)

        async def receive() -> Message:
            part = next(unsent)
            if part is not parts[0]:
                await self.rest.wait()
            return {"type": "http.request", "body": part, "more_body": part is not parts[-1]}

        async def send(message: Message) -> None:
            self.statuses[message.get("status", 0)] += 1

        path = f"/promotions/{operation}"
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query,
            "headers": [],
            "state": self.state,
        }
        self.tasks.append(asyncio.ensure_future(self.service(scope, receive, send)))
        for _ in range(8):
            await asyncio.sleep(0)

    def answered(self) -> dict[int, int]:
        return {status: count for status, count in self.statuses.items() if status}

    async def finish(self) -> None:
        """Half of them are answered, the others disconnect."""
        for task in self.tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        self.go.set()
        self.rest.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for made in self.service._endpoints.values():
            assert (made._limiter.admitted, made._large.admitted, made._limiter.in_flight_bytes) == (0, 0, 0)


def run_scenario(scenario: Callable[[Callers], Awaitable[None]], took_s: float = 0.0) -> None:
    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            callers = Callers(patch, took_s)
            async with callers.service.router.lifespan_context(callers.service):
                await scenario(callers)
                await callers.finish()

    asyncio.run(run())


def parts(size: int) -> tuple[bytes, ...]:
    return b"x" * size, b"y"


@pytest.mark.parametrize(
    ("arrivals", "refused"),
    [
        ([("validate", WHOLE)] * 2, {}),
        ([("validate", WHOLE)] * 3, {422: 1}),
        ([*[("validate", WHOLE)] * 9, ("consume", WHOLE)], {422: 7}),
        ([("consume", WHOLE)] * 3, {500: 2}),
        # A call whose body is incomplete takes no capacity; the bytes of all bodies are counted.
        ([*[("validate", parts(1))] * 9, *[("validate", WHOLE)] * 2], {}),
        ([("validate", parts(900))] * 4, {}),
        ([("validate", parts(900))] * 5, {422: 1}),
        ([*[("validate", parts(1024))] * 5, *[("consume", parts(1024))] * 3, ("consume", WHOLE)], {422: 1}),
    ],
)
def test_each_endpoint_has_its_own_limiter(
    arrivals: list[tuple[str, tuple[bytes, ...]]], refused: dict[int, int]
) -> None:
    """Calls take their whole deadline here, so no call can wait for another."""

    async def scenario(callers: Callers) -> None:
        for operation, bodies in arrivals:
            await callers.arrive(operation, *bodies)
        assert callers.answered() == refused

    run_scenario(scenario, took_s=9.0)


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_time_in_the_queue_counts_towards_the_deadline(operation: str) -> None:
    async def scenario(callers: Callers) -> None:
        for _ in range(3):
            await callers.arrive(operation, *WHOLE)
        assert callers.answered() == {}
        await asyncio.sleep(0.05)
        callers.go.set()
        await asyncio.gather(*callers.tasks)
        assert callers.answered() == {200: 3}
        assert callers.left_s[-1] <= {"validate": 1.5, "consume": 8.0}[operation] - 0.05

    run_scenario(scenario)


@pytest.mark.parametrize("query", [b"", b"x=1", b"x=1&y=?"])
def test_query_and_middleware_do_not_change_admission(query: bytes) -> None:
    """The server does not call `shed` here: the endpoint alone refuses hundreds of calls."""

    async def scenario(callers: Callers) -> None:
        application = callers.service

        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await application(scope, receive, send)

        callers.service = middleware
        for _ in range(400):
            await callers.arrive("validate", *WHOLE, query=query)
        callers.service = application
        assert callers.answered() == {422: 398}
        target = b"/promotions/validate" + (b"?" + query if query else b"")
        assert application.shed(b"POST", target) is not None
        assert application.shed(b"GET", target) is None
        assert application.shed(b"POST", b"/promotions/consume") is None
        assert application.shed(b"POST", b"/livez") is None

    run_scenario(scenario, took_s=9.0)


def test_rush_of_validates_does_not_delay_consume() -> None:
    async def scenario(callers: Callers) -> None:
        for _ in range(200):
            await callers.arrive("validate", *WHOLE)
        await callers.arrive("consume", *WHOLE)
        callers.go.set()
        await callers.tasks[-1]
        assert callers.left_s[2] == pytest.approx(8.0, abs=0.1)

    run_scenario(scenario)


@pytest.mark.parametrize("operation", ["validate", "consume"])
def test_deadline_counts_from_when_the_call_was_received(operation: str) -> None:
    async def scenario(callers: Callers) -> None:
        callers.state = {RECEIVED: time.monotonic() - 0.4}
        await callers.arrive(operation, *WHOLE)
        assert callers.left_s[0] <= {"validate": 1.5, "consume": 8.0}[operation] - 0.4

    run_scenario(scenario)


def test_each_call_leaves_time_to_answer_those_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the engine hangs, they time out one after the other, not all at once."""
    monkeypatch.setattr(endpoint, "ANSWER_S", 0.5)

    async def scenario(callers: Callers) -> None:
        for _ in range(2):
            await callers.arrive("validate", *WHOLE)
        assert callers.left_s[0] <= 1.0
        assert callers.left_s[1] <= 0.5

    run_scenario(scenario)


def test_burst_of_large_carts_is_queued() -> None:
    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limiter, "LARGE_CAPACITY", 1)
            callers = Callers(patch, 0.0, 2**20)
            async with callers.service.router.lifespan_context(callers.service):
                for _ in range(6):
                    await callers.arrive("validate", b"x" * LARGE_BYTES)
                assert callers.answered() == {}
                callers.go.set()
                await asyncio.gather(*callers.tasks)
                assert callers.answered() == {200: 6}
                await callers.finish()

    asyncio.run(run())


class Hanging:
    """Validates whose engine hangs until their deadline, on a virtual clock."""

    READ_S, ANSWER_S = 0.0003, 0.0004

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(time, "monotonic", virtual_time.now)
        patch.setattr(promotions, "validate", self.validate)
        configured = fakes.settings(fakes.FakeAdapter(), MAPPER_LEDGER_URL=fakes.new_ledger())
        self.endpoint = Endpoint("validate", promotions.validate, 256, configured, Telemetry("fake"))
        self.endpoint._limiter._clock = virtual_time.now
        self.endpoint.service = SimpleNamespace(clock=virtual_time.now)  # type: ignore[assignment]
        self.statuses: Counter[int] = Counter()
        self.longest_s = 0.0

    async def validate(self, service: Service, call: Call) -> Answer:
        await asyncio.sleep(call.deadline - virtual_time.now())
        raise EngineUnavailable("It hangs.", reason="timeout")

    async def call(self, sent: float) -> None:
        async def receive() -> Message:
            virtual_time.running_loop().now += self.READ_S
            return {"type": "http.request", "body": b"x"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                virtual_time.running_loop().now += self.ANSWER_S
                self.statuses[message["status"]] += 1
                self.longest_s = max(self.longest_s, virtual_time.now() - sent)

        await self.endpoint({"type": "http", "headers": [], "state": {RECEIVED: sent}}, receive, send)


@pytest.mark.parametrize("at_once", [1, 64, 256, 600])
def test_hanging_engine_never_delays_validate_past_its_deadline(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        hanging = Hanging(monkeypatch)
        await asyncio.gather(*(hanging.call(virtual_time.now()) for _ in range(at_once)))
        assert hanging.statuses == {422: at_once}
        assert hanging.longest_s <= 1.5 + 0.05

    virtual_time.run(run)


def test_large_carts_have_their_own_capacity() -> None:
    """A rush of them takes no capacity from small carts, and is refused before its bodies are read."""
    large = (b"x" * LARGE_BYTES,)

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limiter, "LARGE_CAPACITY", 1)
            callers = Callers(patch, 9.0, 2**20)
            async with callers.service.router.lifespan_context(callers.service):
                for _ in range(4):
                    await callers.arrive("validate", *large)
                await callers.arrive("validate", *WHOLE)
                assert callers.answered() == {422: 3}

                async def never() -> Message:
                    raise AssertionError("its body is read")

                async def send(message: Message) -> None:
                    callers.statuses[message.get("status", 0)] += 1

                headers = [(b"content-length", b"%d" % LARGE_BYTES)]
                scope = {"type": "http", "method": "POST", "path": "/promotions/validate", "headers": headers}
                await callers.service({**scope, "query_string": b""}, never, send)
                assert callers.answered() == {422: 4}
                await callers.finish()

    asyncio.run(run())
