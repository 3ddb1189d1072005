"""`/metrics` of a real process with two workers: either worker reports the figures of both."""

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper.sandbox import host as sandbox
from tests.http.raw_http import exchange, request
from tests.http.test_server import SECRET, process, signed

CALLS = 40
COUNTED = re.compile(
    r'^mapper_requests_total\{[^}]*operation="validate"[^}]*status="200"[^}]*\} ([0-9.]+)$', re.MULTILINE
)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with sandbox.running(sandbox.create()) as url:
        yield url


def test_metrics_are_summed_over_all_workers(tmp_path: Path, engine: str) -> None:
    settings = {"MAPPER_VALIDATE_DEADLINE_MS": "30000", "TMPDIR": str(tmp_path)}
    with process(tmp_path, engine, "--workers", "2", "--drain", "0", **settings) as service:
        service.wait_for(lambda: service.logged("ready"))

        def call() -> None:
            for _ in range(CALLS // 4):
                answer = exchange(service.address, signed(secret=SECRET.encode()), expect=1, wait_s=10)
                assert answer.statuses == [200]

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        seen = set()
        for _ in range(12):
            (answer,) = exchange(service.address, request("GET", "/metrics"), expect=1).responses
            counted = COUNTED.search(answer.body.decode())
            assert counted
            seen.add(float(counted[1]))
        assert seen == {float(CALLS)}
        service.send_signal(signal.SIGHUP)
        service.wait_for(lambda: service.logged("renewed"))
        (folder,) = tmp_path.glob("promotions-mapper-*")
        gauges = {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}
        assert gauges == service.workers()  # the gauge of an ended process would stay for ever
        assert service.stop() == 0
