"""The client of `bench.overload`: what it records of each request, and the figures made from it."""

import asyncio

import pytest

from bench import load, overload
from bench.flood import NEVER_S, Fate, Flood, flood

MS = 1_000_000


def made(*requests: tuple[float, Fate, float]) -> Flood:
    """(due in s, fate, time in ms)"""
    return Flood(
        [due for due, _, _ in requests],
        [fate for _, fate, _ in requests],
        [int(ms * MS) for _, _, ms in requests],
        [0] * len(requests),
    )


def test_goodput_counts_by_answer_time_and_latency_by_due_time() -> None:
    found = made(
        (0.5, Fate.GOOD, 600.0),
        (0.7, Fate.GOOD, 600.0),
        (1.0, Fate.GOOD, 10.0),
        (1.2, Fate.REFUSED, 3.0),
        (1.3, Fate.SHED, 290.0),
        (1.3, Fate.LEFT_ALONE, 2.0),
        (1.4, Fate.OTHER, 900.0),
        (1.6, Fate.UNANSWERED, 0.0),
        (1.9, Fate.GOOD, 200.0),
    )
    phase = found.between(1.0, 2.0)
    assert (phase.rate, phase.goodput) == (7.0, 3.0)
    assert (phase.p50_ms, phase.p99_ms) == (200.0, 200.0)
    assert (phase.refused, phase.refused_p99_ms, phase.shed, phase.shed_p99_ms) == (1, 3.0, 1, 290.0)
    assert (phase.left_alone, phase.others, phase.unanswered) == (1, 1, 1)
    assert phase.longest_ms == 900.0


def test_longest_answer_counts_from_sending() -> None:
    found = Flood([0.1, 0.2, 0.3], [Fate.GOOD] * 3, [70 * MS, 90 * MS, 80 * MS], [0, 30 * MS, 5 * MS])
    assert found.between(0.0, 1.0).longest_ms == 75.0


@pytest.mark.parametrize(
    ("spoilt", "after_s"),
    [
        ([], 0.0),
        ([(0.05, Fate.GOOD, 31.0)], 0.1),
        ([(0.45, Fate.REFUSED, 1.0)], 0.5),
        ([(0.65, Fate.GOOD, 31.0)], 0.0),
        ([(0.15, Fate.UNANSWERED, 0.0), (0.55, Fate.OTHER, 1.0)], 0.6),
        ([(moment / 10 + 0.05, Fate.REFUSED, 1.0) for moment in range(0, 20, 4)], NEVER_S),
    ],
)
def test_flood_is_settled_after_five_good_windows(spoilt: list[tuple[float, Fate, float]], after_s: float) -> None:
    good = [(moment / 50, Fate.GOOD, 10.0) for moment in range(100)]
    assert made(*sorted([*good, *spoilt])).settled(0.0, 2.0, 30.0) == after_s


class Server(asyncio.Protocol):
    """Answers by the request's first word; `/silent` never."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for path, answer in (
            (b"GET /good", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            (b"GET /livez", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            (b"GET /full", b'HTTP/1.1 422 No\r\nContent-Length: 12\r\n\r\n"overloaded"'),
            (b"GET /queue", b'HTTP/1.1 422 No\r\nContent-Length: 12\r\nx-request-id: 1\r\n\r\n"overloaded"'),
            (b"GET /alone", b'HTTP/1.1 422 No\r\nContent-Length: 14\r\n\r\n"breaker_open"'),
            (b"GET /wrong", b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno"),
        ):
            if data.startswith(path):
                self.transport.write(answer)
        if data.startswith(b"GET /close"):
            self.transport.abort()


def sent(paths: list[str], connections: int, due: list[float] | None = None) -> Flood:
    async def send_all() -> Flood:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        async with server:
            requests = [f"GET {path} HTTP/1.1\r\n\r\n".encode() for path in paths]
            moments = due or [number / 500 for number in range(len(paths))]
            return await flood(server.sockets[0].getsockname()[1], requests, moments, connections, patience_s=0.1)

    return asyncio.run(send_all())


def test_every_answer_is_classified() -> None:
    found = sent(["/good", "/full", "/queue", "/alone", "/wrong", "/silent", "/close", "/good"], 8)
    names = ["GOOD", "REFUSED", "SHED", "LEFT_ALONE", "OTHER", "UNANSWERED", "UNANSWERED", "GOOD"]
    assert [fate.name for fate in found.fates] == names


def test_client_without_free_connection_records_lateness() -> None:
    found = sent(["/silent", "/good"], 1, [0.0, 0.01])
    assert found.fates == [Fate.UNANSWERED, Fate.UNANSWERED]
    found = sent(["/good"] * 40, 1, [0.0] * 40)
    assert found.fates == [Fate.GOOD] * 40
    assert found.late_ns[-1] > found.late_ns[0]
    assert found.between(0, 1).late_p99_ms == pytest.approx(found.late_ns[-1] / MS, abs=0.01)


def test_refused_connection_of_closed_loop_pauses() -> None:
    async def turn(path: str, pause_s: float) -> int:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            request = f"GET {path} HTTP/1.1\r\n\r\n".encode()
            window = await load.closed_loop(port, [request], 1, 0.1, 0.2, lambda: None, refused_pause_s=pause_s)
        return window.others + len(window.times_ns)

    assert asyncio.run(turn("/full", 0.05)) <= 5
    assert asyncio.run(turn("/good", 0.05)) > 50
    assert asyncio.run(turn("/full", 0.0)) > 50


def hang(*, longest_ms: float = 1540.0, opened: bool = False, settled_s: float = 0.1) -> dict[str, object]:
    during = {"longest_ms": longest_ms, "unanswered": 0, "rate": 10.0, "late_p99_ms": 1.0, "left_alone": int(opened)}
    return {"at_once": 9, "hang_s": 3.0, "during": during, "after": {"left_alone": 0}, "settled_s": settled_s}


@pytest.mark.parametrize(
    ("hangs", "kept"),
    [
        ([hang(), hang(opened=True, settled_s=5.5)], [True, True, True]),
        ([hang(longest_ms=1551.0), hang(opened=True)], [False, True, True]),
        ([hang(settled_s=2.1), hang(opened=True)], [True, False, True]),
        ([hang(), hang(opened=True, settled_s=7.5)], [True, True, False]),
    ],
)
def test_hang_aims_use_the_slowest_answer(hangs: list[object], kept: list[bool | None]) -> None:
    assert [one.kept for one in overload.aims(found([round_of()], hangs))][7:] == kept


def round_of(
    *, share: float = 1.0, p99_ms: float = 60.0, late_ms: float = 1.0, end_mb: float = 90.0, alone: int = 0
) -> dict[str, object]:
    rush = {
        "goodput": 500.0 * share, "p99_ms": p99_ms, "refused_p99_ms": 9.0, "others": 0, "unanswered": 0,
        "left_alone": alone, "late_p99_ms": late_ms,
    }  # fmt: skip
    capacity = {"rps": 500.0, "cpu_us": 2000.0}
    return {"capacity": capacity, "rush": rush, "settled_s": 0.2, "memory_mb": [90.0, end_mb]}


def found(rounds: list[dict[str, object]], hangs: list[object], times: float = 5.0) -> dict[str, object]:
    case = {"wait_ms": 30, "times": times, "rounds": rounds}
    return {"overload": [case], "hang": hangs, "refusal_us": 30.0}


@pytest.mark.parametrize(
    ("rounds", "kept"),
    [
        ([round_of()], [True] * 6),
        ([round_of(share=0.4)], [False, True, True, True, True, True]),
        ([round_of(p99_ms=610.0)], [True, False, True, True, True, True]),
        ([round_of(alone=1)], [True, True, True, False, True, True]),
        ([round_of(end_mb=93.0)], [True, True, True, True, True, False]),
        ([round_of(), round_of(share=0.1, late_ms=20.0)], [True] * 6),
        ([round_of(late_ms=20.0)], [None] * 6),
    ],
)
def test_rounds_with_a_late_client_are_not_judged(rounds: list[dict[str, object]], kept: list[bool | None]) -> None:
    assert [one.kept for one in overload.aims(found(rounds, []))] == [*kept, True]


@pytest.mark.parametrize(("times", "kept"), [(2.0, False), (5.0, True)])
def test_smaller_rush_must_keep_more_goodput(times: float, kept: bool) -> None:
    assert overload.aims(found([round_of(share=0.6)], [], times))[0].kept is kept
