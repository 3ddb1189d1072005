"""A pytest plugin: each mutant's tests run in a fork of the session, the quick ones first, until one fails.

Collecting the tests takes longer than most mutants live, so it is done once. `chaos.mutants` says what is to run, in
the file that `MUTANT_JOBS` names: by mutant, its tests in order, and how many seconds they take. What a fork ended with
goes to the file beside it, one JSON line each.
"""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

ENDED = "ended.jsonl"
WHOLE = "whole.x_nothing__mutmut_0"
"""No mutant: what fails with nothing broken would notice nothing. It alone says what it does."""
CPU_S, TIMES = 10, 4
"""A mutant may take so many seconds of the processor, and so many times what its tests take; it loops for ever else."""
WAITS_S = 90
"""And so long altogether; it waits for ever else."""


def pytest_runtestloop(session: pytest.Session) -> bool:
    jobs = Path(os.environ["MUTANT_JOBS"])
    items = {item.nodeid: item for item in session.items}
    running: dict[int, tuple[str, str]] = {}

    def wait() -> None:
        pid, status, used = os.wait4(-1, 0)
        name, folder = running.pop(pid)
        shutil.rmtree(folder, ignore_errors=True)
        code, cpu_s = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        ended.write(json.dumps({"name": name, "code": code, "cpu_s": round(cpu_s, 2)}) + "\n")
        ended.flush()

    gc.collect()
    gc.freeze()  # else each fork copies what its collector looks at
    with jobs.with_name(ENDED).open("a", encoding="utf-8") as ended:
        for name, (tests, seconds) in json.loads(jobs.read_text("utf-8")).items():
            while len(running) >= (os.cpu_count() or 1):
                wait()
            folder = tempfile.mkdtemp(prefix="mutant-")
            pid = os.fork()
            if pid == 0:
                os.environ |= {"MUTANT_UNDER_TEST": name, "PYTEST_DEBUG_TEMPROOT": folder}
                _run([items[test] for test in tests], seconds, quiet=name != WHOLE)
            running[pid] = name, folder
        while running:
            wait()
    return True


def _run(items: list[pytest.Item], seconds: float, *, quiet: bool) -> None:
    """Does not return: exit code 1 where a test fails, 0 where none does, a signal where it takes too long."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2) if quiet else ():
        os.dup2(nowhere, stream)
    limit_s = CPU_S + round(TIMES * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    signal.alarm(WAITS_S + 3 * limit_s)
    code = 1
    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                break
        else:
            code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)
