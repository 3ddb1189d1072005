"""A pytest plugin: each mutant's tests run in a fork of the session, the quickest first, until one fails.

Collecting the tests takes longer than most mutants live, so it is done once. The folder that it runs in has the files:
`NAMES`, the mutants that are to run; `REACHED`, what each test reached and how many seconds it took, with nothing
broken (made where it is missing, unless a test fails); `ENDED`, what each mutant's tests ended with, a line each.
"""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

NAMES, REACHED, ENDED = "names.json", "reached.json", "ended.jsonl"
SURVIVED, FAILED, NO_TEST = 0, 1, 5
"""As pytest's exit codes: no test noticed the mutant, a test did, no test reaches it."""
CPU_S, TIMES = 10, 4
"""A mutant may take this many seconds of the processor plus this many times its tests' seconds; more is a loop."""
WAITS_S = 90
"""And this many seconds of real time, plus three times that limit; more is a hang."""

Reached = dict[str, tuple[float, list[str]]]
"""By test: seconds, and functions."""


def ended(folder: Path) -> dict[str, int]:
    """By mutant, the exit code of its tests."""
    file = folder / ENDED
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return {found["name"]: found["code"] for found in map(json.loads, lines)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if "postgres_home" not in getattr(item, "fixturenames", ())]


def pytest_runtestloop(session: pytest.Session) -> bool:
    folder = Path.cwd()
    items = {item.nodeid: item for item in session.items}
    gc.collect()
    gc.freeze()  # else each fork's collector copies memory
    if not (folder / REACHED).exists():
        _fork("stats", lambda: _measure([*items.values()], folder / REACHED))
        os.wait()
    if not (folder / REACHED).exists():
        return True
    reached: Reached = json.loads((folder / REACHED).read_text("utf-8"))
    tests: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for test, (seconds, functions) in reached.items():
        for function in functions if test in items else ():
            tests[function].append((seconds, test))
    running: dict[int, tuple[str, str]] = {}
    known = ended(folder)

    with (folder / ENDED).open("a", encoding="utf-8") as file:

        def write(name: str, code: int, cpu_s: float) -> None:
            file.write(json.dumps({"name": name, "code": code, "cpu_s": round(cpu_s, 2)}) + "\n")
            file.flush()

        def wait() -> None:
            pid, status, used = os.wait4(-1, 0)
            name, scratch = running.pop(pid)
            shutil.rmtree(scratch, ignore_errors=True)
            write(name, os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)

        for name in json.loads((folder / NAMES).read_text("utf-8")):
            found = sorted(tests[name.rpartition("__mutmut_")[0]])
            if name in known:
                continue
            if not found:
                write(name, NO_TEST, 0)
                continue
            while len(running) >= int(os.environ["MUTANT_JOBS"]):
                wait()
            scratch = tempfile.mkdtemp(prefix="mutant-")
            os.environ["PYTEST_DEBUG_TEMPROOT"] = scratch
            chosen, seconds = [items[test] for _, test in found], sum(seconds for seconds, _ in found)
            running[_fork(name, lambda chosen=chosen, seconds=seconds: _try(chosen, seconds))] = name, scratch  # type: ignore[misc]
        while running:
            wait()
    return True


def _fork(mutant: str, work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        os.environ["MUTANT_UNDER_TEST"] = mutant
        code = FAILED
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def _try(items: list[pytest.Item], seconds: float) -> int:
    """Runs tests until one fails. A signal ends it if it takes too long."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    limit_s = CPU_S + round(TIMES * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    signal.alarm(WAITS_S + 3 * limit_s)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if item.session.testsfailed:
            return FAILED
    return SURVIVED


def _measure(items: list[pytest.Item], file: Path) -> int:
    from mutmut.mutation import trampoline  # noqa: PLC0415 - this module is a plugin of tests that need no mutmut

    hits: set[str] = set()
    reached: Reached = {}
    with patch.object(trampoline, "record_trampoline_hit", lambda name, **_: hits.add(name)):
        for item, following in zip(items, [*items[1:], None], strict=True):
            hits.clear()
            began = time.perf_counter()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                return FAILED
            reached[item.nodeid] = round(time.perf_counter() - began, 4), sorted(hits)
    file.write_text(json.dumps(reached), "utf-8")
    return SURVIVED
