"""The simulator of `docs/capacity.md`, held against formulas that are older than it."""

import random
from itertools import islice
from statistics import fmean

import pytest

from bench import simulate
from bench.simulate import Fixed, Turnstile, Worker

WORK_S = 0.001
ALWAYS = Fixed(10**9)


def at_once(source: random.Random) -> float:
    return 0.0


def tenth(source: random.Random) -> float:
    return 0.1


def exponential(source: random.Random) -> float:
    return source.expovariate(1)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
@pytest.mark.parametrize(("vary", "squared"), [(simulate._always_the_same, 0), (exponential, 1)])
def test_the_queue_is_as_long_as_pollaczek_and_khinchine_say(busy: float, vary: simulate.Draw, squared: float) -> None:
    # All work comes after an engine that takes no time: what is left is one queue before one server (M/D/1, M/M/1).
    rate = busy / WORK_S
    found = simulate.simulate(
        Worker(0.0, WORK_S, vary=vary), ALWAYS, simulate.at_random(rate, 1), at_once, 120.0, seed=2
    )
    waited = fmean(one.took for one in found.good) - WORK_S
    assert found.goodput == pytest.approx(rate, rel=0.02)
    assert found.busy_s / 120 == pytest.approx(busy, rel=0.03)
    assert waited == pytest.approx(simulate.waiting(rate, WORK_S, squared), rel=0.08)


def test_where_nothing_costs_time_as_many_are_refused_as_erlang_says() -> None:
    for load, servers in ((8.0, 10), (20.0, 20), (60.0, 40)):
        found = simulate.simulate(
            Worker(0.0, 0.0), Fixed(servers), simulate.at_random(load / 0.1, 3), tenth, 60, seed=4
        )
        assert found.shed == pytest.approx(simulate.erlang_b(load, servers), abs=0.01)


def rush(admission: simulate.Admission, work_s: float, engine_s: float, times: float = 5.0) -> simulate.Outcome:
    worker = Worker(0.6 * work_s, 0.4 * work_s, read_s=5e-6, refuse_s=10e-6, turn_s=10e-6)
    arrivals = simulate.at_random(times / worker.call_s, 5)
    return simulate.simulate(worker, admission, arrivals, simulate.lognormal(engine_s, 1.2 * engine_s), 3.0, seed=6)


@pytest.mark.parametrize("engine_s", [0.03, 0.3])
@pytest.mark.parametrize("work_s", [0.0008, 0.004])
def test_who_lets_in_what_can_be_done_in_time_keeps_every_engine_and_machine_fast(
    work_s: float, engine_s: float
) -> None:
    found = rush(Turnstile(), work_s, engine_s)
    assert found.took(0.95) < 2.1 * engine_s
    first = 1.2 * engine_s + 0.060 + 3 * work_s  # who comes in the first moment may be a burst
    assert found.took(0.99) < max(first, 2 * engine_s)
    assert found.goodput * work_s > 0.85 * (1 - engine_s / 3)  # what the engine had at the end does not count
    assert simulate.quantile(found.refused_s, 0.99) < 0.020


def test_a_number_of_calls_that_suits_one_machine_suits_no_other() -> None:
    suits, slow_machine, slow_engine = (
        rush(Fixed(48), work_s, engine_s) for work_s, engine_s in ((0.0008, 0.03), (0.004, 0.03), (0.0008, 0.3))
    )
    assert suits.took(0.99) < 0.075
    assert slow_machine.took(0.99) > 0.150
    assert slow_engine.goodput * 0.0008 < 0.2


def test_a_worker_of_several_sees_its_share() -> None:
    for arrivals in (
        simulate.at_random(1000, 7),
        simulate.in_bursts(1000, 7),
        simulate.every(simulate.at_random(4000, 7), 4),
    ):
        moments = list(islice(arrivals, 20_000))
        assert moments == sorted(moments)
        assert 20_000 / moments[-1] == pytest.approx(1000, rel=0.05)


def test_the_engine_takes_what_it_is_said_to_take() -> None:
    source, draw = random.Random(8), simulate.lognormal(0.150, 0.600)
    drawn = [draw(source) for _ in range(20_000)]
    assert simulate.quantile(drawn, 0.5) == pytest.approx(0.150, rel=0.03)
    assert simulate.quantile(drawn, 0.99) == pytest.approx(0.600, rel=0.08)
