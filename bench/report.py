"""From figures to words: the table on the screen, the aims, docs/performance.md."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Final

from bench.contenders import BY_KEY
from bench.results import Judged, Results, aims_table, table, verdicts
from bench.rounds import middle, quartiles

Series = dict[str, list[float]]

MOST_BUSY: Final = 0.7
"""Of a worker: beyond, calls begin to wait for each other."""
WHERE: Final = Path(__file__).with_name("where.md")
"""What the time is spent on, and what was tried: written by people."""


def case(results: Results, lines: int, wait_ms: int, in_flight: int) -> dict[str, Series]:
    """The contenders' figures in a case; empty where it was not measured."""
    for found in results["cases"]:
        if (found["lines"], found["wait_ms"], found["in_flight"]) == (lines, wait_ms, in_flight):
            contenders: dict[str, Series] = found["contenders"]
            return contenders
    return {}


def ratio(one: Series | None, other: Series | None, what: str) -> tuple[float, float, float] | None:
    """The medians' ratio, and the quartiles of the ratios round by round; None where it cannot be told.

    Where an answer was refused it is no figure. Of two cases, which are no pairs, as many rounds as both have.
    """
    if not one or not other or max([*one["refused"], *other["refused"]]) > 0 or not middle(other[what]):
        return None
    pairs = [a / b for a, b in zip(one[what], other[what], strict=False) if b]
    return middle(one[what]) / middle(other[what]), *quartiles(pairs)


def _spread(figures: tuple[float, float, float], digits: int = 2, unit: str = "") -> str:
    value, lower, upper = (f"{figure:.{digits}f}" for figure in figures)
    return f"{value}{unit} [{lower} to {upper}]"


def _least(
    aim: str, figures: tuple[float, float, float] | None, least: float, digits: int = 2, unit: str = "x"
) -> Judged:
    if figures is None:
        return Judged(aim, "no figure: somebody was refused, or it was not measured", f"at least {least:g}{unit}", None)
    return Judged(aim, _spread(figures, digits, unit), f"at least {least:g}{unit}", figures[0] >= least)


def _most(
    aim: str, figures: tuple[float, float, float] | None, most: float, digits: int = 2, unit: str = "x"
) -> Judged:
    if figures is None:
        return Judged(aim, "not measured", f"at most {most:g}{unit}", None)
    return Judged(aim, _spread(figures, digits, unit), f"at most {most:g}{unit}", figures[0] <= most)


def _plain(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    return _figures(values) if values else None


def _figures(values: Sequence[float]) -> tuple[float, float, float]:
    return (middle(values), *quartiles(values))


def aims(results: Results) -> list[Judged]:
    alone, hundred = case(results, 20, 0, 1), case(results, 100, 0, 8)
    steady = results["open"]["contenders"]
    nginx, service = steady.get("nginx"), steady.get("service")

    def over_nginx(what: str) -> tuple[float, float, float] | None:
        if not nginx or not service:
            return None
        pairs = [mine - theirs for mine, theirs in zip(service[what], nginx[what], strict=True)]
        return middle(service[what]) - middle(nginx[what]), *quartiles(pairs)

    def rps(found: dict[str, Series], key: str, other: str) -> tuple[float, float, float] | None:
        return ratio(found.get(key), found.get(other), "rps")

    def local(lines: int, in_flight: int) -> tuple[float, float, float] | None:
        """What is left of both without the server that both have."""
        found = case(results, lines, 0, in_flight)
        if not {"canned", "libraries", "own"} <= found.keys():
            return None
        service, floor, server = (found[key]["cpu_us"] for key in ("canned", "libraries", "own"))
        pairs = [(a - c) / (b - c) for a, b, c in zip(service, floor, server, strict=True) if b > c]
        return (middle(service) - middle(server)) / (middle(floor) - middle(server)), *quartiles(pairs)

    longest = sorted(results["holds_ms"])
    nearly = longest[int(0.95 * (len(longest) - 1))]
    waits = ratio(alone.get("service"), alone.get("nginx"), "p50_ms")
    return [
        *(
            _least(
                f"Requests a second, 20 lines, {in_flight} in flight, beside FastAPI + SDK",
                rps(case(results, 20, 0, in_flight), "service", "sdk"),
                least,
                1,
            )
            for in_flight, least in ((8, 4), (32, 5.5), (128, 5))
        ),
        _least("Requests a second, 100 lines, 8 in flight, beside FastAPI + SDK", rps(hundred, "service", "sdk"), 6, 1),
        *(
            _most(f"Own processor time beside the libraries alone, {lines} lines", local(lines, 8), 2.2, 1)
            for lines in (20, 100)
        ),
        _most("Engine at 30 ms, 150 requests a second: median beyond nginx", over_nginx("p50_ms"), 1.5, 2, " ms"),
        _most("The same, 99th percentile beyond nginx", over_nginx("p99_ms"), 4, 2, " ms"),
        _most("One request at a time: median time beside nginx", waits, 3.5),
        _most("Processor time of 1,000 lines beside 10", _of_lines(results), 80, 1),
        _most("Event loop held by 1,000 lines (95 of 100 carts)", (nearly, longest[0], longest[-1]), 10, 1, " ms"),
        _most("Ready after start", _plain(results["start"]["ready_s"]), 0.5, 2, " s"),
        _most("Memory when ready", _plain(results["start"]["memory_mb"]), 60, 0, " MB"),
    ]


def _of_lines(results: Results) -> tuple[float, float, float] | None:
    many, few = (case(results, lines, 0, 8).get("service") for lines in (1000, 10))
    return ratio(many, few, "cpu_us")


# ---------------------------------------------------------------------------------------------------------------------
# On the screen


def screen(results: Results) -> Iterator[str]:
    for found in results["cases"]:
        yield ""
        yield f"{found['lines']} lines, engine {found['wait_ms']} ms, {found['in_flight']} in flight"
        yield from _columns(found["contenders"])
    yield ""
    yield f"20 lines, engine 30 ms, {results['open']['rate']:g} requests a second"
    yield from _columns(results["open"]["contenders"])
    yield ""
    yield from verdicts(aims(results))


def _columns(contenders: dict[str, Series]) -> Iterator[str]:
    yield (
        f"  {'':26}{'requests/s':>12}{'CPU us':>10}{'p50 ms':>9}{'p99 ms':>9}{'x echo':>8}{'x SDK':>8}"
        f"{'refused':>9}{'noise':>7}"
    )
    for key, series in contenders.items():
        beside = [ratio(series, contenders.get(other), "rps") for other in ("echo", "sdk")]
        ratios = "".join(f"{figure[0]:8.3g}" if figure else f"{'':8}" for figure in beside)
        yield (
            f"  {BY_KEY[key].name:26}{middle(series['rps']):12,.0f}{middle(series['cpu_us']):10,.0f}"
            f"{middle(series['p50_ms']):9.2f}{middle(series['p99_ms']):9.2f}{ratios}"
            f"{max(series['refused']):9.1%}{middle(series['noise']):7.2f}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# docs/performance.md


_PAGE = """\
# How fast it is

<!-- Written by `make bench`; the words stand in bench/report.py and bench/where.md. -->

{shop}

{setting}

## The aims

{aims}

{where}
## Good answers a second

An engine that answers at once. Where anybody was refused in any round it says so, and there is no figure:
[operations](operations.md) says who is.

{absolute}

Beside FastAPI with the vendor's SDK (1 = as many as it):

{beside_sdk}

Beside an echo on the usual stack:

{beside_echo}

20 lines and an engine that takes 30 ms, beside nginx passing through (1 = as many as if nothing stood in between):

{beside_nginx}

## Time to answer

20 lines, an engine that takes 30 ms, {rate:g} requests a second at random moments, each counted from the moment at
which it should have gone out, so that waiting counts:

{open}

## Processor time by the size of the cart

Beside the same contender with 10 lines; linear would be 0.1, 1, 2, 10, 100:

{growth}

## Starting, and what is held

Ready to serve after {ready} s (the first good answer of `/readyz`, over {starts} starts), holding {memory} MB. At the
end of this run, after carts of up to 1,000 lines:

{held}

{more}## Who is who

{glossary}

## To repeat it

`make bench` measures all of this on Linux in about 15 minutes, best with nothing else running (it measures that, too,
and says so). It writes this page and `bench/results/full.json`, which holds every round. `make bench-quick` takes a
minute and prints the aims alone. The sections on overload, memory and consume say which target repeats them;
`make figures` does it all. Absolute figures belong to one machine; what carries over is the ratios.
"""

_GLOSSARY = {
    "service": "`promotions-mapper serve` as it is installed, signature, receipt, logs and metrics included",
    "echo": "Starlette and uvicorn, answering with the body they were sent: the most that the usual stack can do",
    "own": "the same without Starlette, on the server that this service brings with it: the most that it could do",
    "nginx": "hands the same bytes to the engine, and the engine's answer back: what a hop costs",
    "libraries": "what msgspec and decimal need for such a cart, on that server, with no check: `bench/libraries.py`",
    "voucherify": "a promotion on every line, a code on the whole; Voucherify's answer repeats the order three times",
    "sdk": "`talon-one-sdk` in the thread pool, no receipt, no deadline, no logs: `bench/sdk_app.py`",
    "httpx": "with `MAPPER_HTTP_CLIENT=httpx`",
    "canned": "with the engine's answer from memory: all of its own work, no HTTP call",
}


def page(results: Results, more: Sequence[str] = ()) -> str:
    """docs/performance.md. `more`: sections of other measurements."""
    held: dict[str, dict[str, float]] = results["memory_mb"]
    return _PAGE.format(
        shop=_shop(results),
        where=WHERE.read_text("utf-8"),
        absolute=_grid(
            results, 0, lambda found, key: ratio(found.get(key), found.get(key), "rps") and _plain(found[key]["rps"])
        ),
        setting=_setting(results),
        aims=aims_table(aims(results)),
        beside_echo=_grid(results, 0, lambda found, key: ratio(found.get(key), found.get("echo"), "rps")),
        beside_sdk=_grid(results, 0, lambda found, key: ratio(found.get(key), found.get("sdk"), "rps")),
        beside_nginx=_grid(results, 30, lambda found, key: ratio(found.get(key), found.get("nginx"), "rps")),
        rate=results["open"]["rate"],
        open=_open_table(results),
        growth=_growth(results),
        ready=_spread(_figures(results["start"]["ready_s"])),
        starts=len(results["start"]["ready_s"]),
        memory=_spread(_figures(results["start"]["memory_mb"]), 0),
        held=table(
            ["", "MB now", "MB at most"],
            [[BY_KEY[key].name, *(f"{mb['Vm' + what]:.0f}" for what in ("RSS", "HWM"))] for key, mb in held.items()],
        ),
        more="".join(f"{section}\n" for section in more),
        glossary="\n".join(f"- **{BY_KEY[key].name}**: {text}" for key, text in _GLOSSARY.items()),
    )


def _shop(results: Results) -> str:
    """What to expect, in two sentences."""
    usual, steady = case(results, 20, 0, 32), results["open"]["contenders"]["service"]
    each_s = middle(usual["service"]["cpu_us"]) / 1e6
    workers = ceil(1000 * each_s / MOST_BUSY)
    sdk = [ratio(found.get("service"), found.get("sdk"), "rps") for found in (case(results, 20, 0, 8), usual)]
    few, many = (f"{one[0]:.1f}" if one else "?" for one in sdk)
    wait_ms = middle(steady["p50_ms"]) - 30
    ten, hundred = 10 * each_s, 100 * each_s
    return f"""\
On a processor like this one, 10 checkouts of 20 lines a second keep one worker {ten:.0%} busy, and 100 keep it
{hundred:.0%} busy, each answered about {wait_ms:.0f} ms after the engine has. 1,000 a second want {workers} workers
(`--workers {workers}`), each with a processor of its own, and an engine that keeps up.

It answers {few} times as many as FastAPI with the promotion engine's own SDK on the same machine with 8 calls at once,
{many} times with 32."""


def _setting(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    told = [
        f"Measured on {results['date']}, commit {results['commit']}, on {machine['processor']}; load average at the",
        f"start {machine['load']:.2f}, processors busy with other things meanwhile {machine['noise']:.2f} (median).",
        "Everything on loopback, one worker each; the contender on a processor of its own, engine and client together",
        "on another. Contenders took turns in short rounds, in changing order. Figures are medians, [in brackets] the",
        "quartiles over the rounds.",
    ]
    if not results["quiet"]:
        told.append("**The machine was not quiet: do not rely on these figures.**")
    return "\n".join(told) + f"\n\nVersions: {', '.join(f'{name} {version}' for name, version in versions.items())}."


def _grid(
    results: Results,
    wait_ms: int,
    figure: Callable[[dict[str, Series], str], tuple[float, float, float] | None],
) -> str:
    """A row per case of that engine, a column per contender."""
    cases = [found for found in results["cases"] if found["wait_ms"] == wait_ms]
    keys = [key for key in BY_KEY if any(key in found["contenders"] for found in cases)]
    rows = []
    for found in cases:
        contenders = found["contenders"]
        cells = [_cell(figure(contenders, key), contenders.get(key)) for key in keys]
        rows.append([f"{found['lines']:,}", f"{found['in_flight']}", *cells])
    return table(["lines", "in flight", *(BY_KEY[key].name for key in keys)], rows)


def _cell(figures: tuple[float, float, float] | None, series: Series | None) -> str:
    if series is None:
        return ""
    if figures is None:
        most = max(series["refused"])
        return f"up to {most:.1%} refused" if most else ""
    value, lower, upper = (f"{figure:.2g}" if figure < 10 else f"{figure:,.0f}" for figure in figures)
    spread = "" if figures == (1, 1, 1) else f" [{lower} to {upper}]"
    return f"{value}{spread}"


def _open_table(results: Results) -> str:
    rows = []
    for key, series in results["open"]["contenders"].items():
        p50, p99 = _plain(series["p50_ms"]), _plain(series["p99_ms"])
        assert p50 is not None
        assert p99 is not None
        rows.append([BY_KEY[key].name, _spread(p50, 1), _spread(p99, 1)])
    return table(["", "median, ms", "99th percentile, ms"], rows)


def _growth(results: Results) -> str:
    cases = [found for found in results["cases"] if found["wait_ms"] == 0 and found["in_flight"] == 8]
    few = case(results, 10, 0, 8)
    rows = []
    for found in cases:
        own = found["contenders"]
        shown = (_cell(ratio(own.get(key), few.get(key), "cpu_us"), own.get(key)) for key in BY_KEY)
        rows.append([f"{found['lines']:,}", *shown])
    return table(["lines", *(contender.name for contender in BY_KEY.values())], rows)
