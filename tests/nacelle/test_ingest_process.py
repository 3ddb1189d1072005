"""`promotions-mapper ingest` against Nacelle's sandbox: killed and restarted, it never creates two orders."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper.sandbox import host
from tests.nacelle.nacelle import send
from tests.orders.ledgers import STORES, Home

COUNT = 10


class Shop:
    """A folder of paid orders, and the command that ingests it."""

    def __init__(self, url: str, ledger: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "MAPPER_LEDGER_URL": ledger,
            "NOMS_BASE_URL": f"{url}/nacelle/api/v1",
            "NOMS_TOKEN": "sandbox-token",
            "NOMS_SPACE_ID": "sandbox",
        }
        folder.mkdir()
        for number in range(COUNT):
            line = {"sku": "A", "quantity": 1, "price": "1.00", "total_discount": "0.00", "discounts": []}
            order = {"id": f"o-{number}", "currency": "USD", "items": [line], "payments": [{"id": "p"}]}
            (folder / f"{number}.json").write_text(json.dumps(order))

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "mapper", "ingest", *(arguments or [str(self.folder)])]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ingest(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        printed, errors = process.communicate(timeout=60)
        return process.returncode, (printed + errors).decode()

    def faults(self, *faults: dict[str, Any]) -> None:
        assert send(f"{self.url}/_sandbox/faults", list(faults)).status == 200

    def created(self) -> Counter[str]:
        return Counter(order["id"] for order in send(f"{self.url}/_sandbox/books").json["nacelle"]["ingested"])


@pytest.fixture(params=STORES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with host.running(host.create()) as url:
        yield Shop(url, Home(request.param, tmp_path).url, tmp_path / "orders")


def test_lost_answers_create_no_second_order(shop: Shop) -> None:
    shop.faults(
        {"name": "close_after", "skip": 2, "count": 2},
        {"name": "status_after", "value": 502, "skip": 5, "count": 1},
        {"name": "status", "value": 429, "skip": 6, "count": 1},
    )
    code, output = shop.ingest()
    assert (code, output.count("UNKNOWN"), f"{COUNT - 3} of {COUNT} created." in output) == (1, 3, True)
    assert "order ingestion" not in output, "the log of each attempt says nothing more"
    shop.faults()
    code, output = shop.ingest()
    assert (code, output.count("UNKNOWN"), output.count(", as before")) == (1, 3, COUNT - 3)
    assert shop.created() == Counter(f"o-{number}" for number in range(COUNT))


def test_killed_process_resumes_and_creates_no_second_order(shop: Shop) -> None:
    shop.faults({"name": "latency", "value": 150})
    process = shop.start()
    while len(shop.created()) < 3:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    shop.faults()
    code, output = shop.ingest()
    left = output.count("UNKNOWN")
    assert (code, left <= 1) == (1 if left else 0, True), output
    created = shop.created()
    assert set(created.values()) == {1}
    assert len(created) >= COUNT - left
