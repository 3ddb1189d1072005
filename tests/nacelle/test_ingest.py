"""An order is created at Nacelle at most once, wherever a process dies and whatever the answer is."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mapper.adapter import EngineReply
from mapper.engine.transport import NotSent, Unknown
from mapper.nacelle.database import Database
from mapper.nacelle.ingest import Ingested, Ingestion
from mapper.nacelle.journal import Journal, journal_in
from mapper.nacelle.noms import PAUSES_S, Noms
from tests.orders.ledgers import STORES, Home

T = TypeVar("T")

ORDER = {
    "id": "c-1",
    "currency": "USD",
    "items": [{"sku": "A", "quantity": 1, "price": "5.00", "total_discount": "0.00", "discounts": []}],
    "payments": [{"id": 1}],
}


class Died(BaseException):
    """Simulates the end of the process."""


class Nacelle:
    """Creates each order that arrives, and gives the scripted answers."""

    def __init__(self, *answers: int | Exception, body: bytes = b'{"id":"n-1"}', dies: bool = False) -> None:
        self.answers = list(answers)
        self.body = body
        self.dies = dies
        self.created: list[bytes] = []
        self.requests = 0
        self.headers: dict[str, str] = {}
        self.url = ""

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        self.requests += 1
        self.url, self.headers = url, dict(headers)
        answer = self.answers.pop(0) if self.answers else 201
        if isinstance(answer, NotSent):
            raise answer
        if not isinstance(answer, int) or answer in (200, 201) or answer >= 500:
            self.created.append(body)
        if self.dies:
            raise Died
        if isinstance(answer, Exception):
            raise answer
        return EngineReply(status=answer, headers={"retry-after": "1"}, body=self.body)

    async def aclose(self) -> None: ...


class Dying:
    """A database whose process dies before or right after a statement."""

    def __init__(self, inner: Database, word: str, *, before: bool) -> None:
        self.inner, self.word, self.before = inner, word, before

    async def run(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        here = statement.lstrip().startswith(self.word)
        if here and self.before:
            raise Died
        rows = await self.inner.run(statement, *values)
        if here:
            raise Died
        return rows

    async def close(self) -> None: ...


class Shop:
    """One journal, shared by any number of processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.slept: list[float] = []

    def with_journal(self, work: Callable[[Journal], Awaitable[T]]) -> T:
        async def run() -> T:
            journal = journal_in(self.url)
            try:
                return await work(journal)
            finally:
                await journal.close()

        return asyncio.run(run())

    def ingest(self, nacelle: Nacelle, order: object = ORDER, *, dies: tuple[str, bool] | None = None) -> Ingested:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        async def work(journal: Journal) -> Ingested:
            own = Journal(Dying(journal.database, dies[0], before=dies[1])) if dies else journal
            noms = Noms("https://noms.test", "Bearer the-token", "space-1", nacelle, sleep)
            return await Ingestion(noms, own).ingest(json.dumps(order).encode())

        return self.with_journal(work)


@pytest.fixture(params=STORES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(Home(request.param, tmp_path).url)


def test_order_is_created_with_the_documented_request(shop: Shop) -> None:
    nacelle = Nacelle()
    done = shop.ingest(nacelle)
    assert (done.state, done.key, done.answer, done.again) == ("created", "c-1", b'{"id":"n-1"}', False)
    assert nacelle.url == "https://noms.test/orders"
    assert nacelle.headers["Authorization"] == "Bearer the-token"
    assert nacelle.headers["X-Nacelle-Space-Id"] == "space-1"
    assert "order_items" in json.loads(nacelle.created[0])


def test_same_order_is_not_sent_twice(shop: Shop) -> None:
    nacelle = Nacelle()
    shop.ingest(nacelle)
    again = shop.ingest(nacelle)
    assert (again.state, again.again, again.answer, nacelle.requests) == ("created", True, b'{"id":"n-1"}', 1)


def test_other_content_under_the_same_id_is_not_sent(shop: Shop) -> None:
    nacelle = Nacelle()
    shop.ingest(nacelle)
    assert shop.ingest(nacelle, {**ORDER, "note": 1}).state == "other_content"
    assert nacelle.requests == 1


@pytest.mark.parametrize("failure", [429, NotSent("connect")])
def test_unsent_or_rate_limited_order_is_retried_a_few_times(shop: Shop, failure: int | Exception) -> None:
    nacelle = Nacelle(failure, failure)
    assert shop.ingest(nacelle).state == "created"
    assert (nacelle.requests, shop.slept) == (3, [max(pause, failure == 429) for pause in PAUSES_S[:2]])
    stubborn = Nacelle(*[failure] * 10)
    assert shop.ingest(stubborn, {**ORDER, "id": "c-2"}).state == "not_sent"
    assert stubborn.requests == len(PAUSES_S) + 1
    assert shop.ingest(Nacelle(), {**ORDER, "id": "c-2"}).state == "created"


@pytest.mark.parametrize("failure", [500, 502, 302, Unknown("timeout"), Unknown("reset"), Unknown("garbled")])
def test_unknown_order_is_not_resent_until_it_is_settled(shop: Shop, failure: int | Exception) -> None:
    nacelle = Nacelle(failure)
    assert shop.ingest(nacelle).state == "unknown"
    assert (shop.ingest(nacelle).state, nacelle.requests) == ("unknown", 1)
    assert shop.with_journal(lambda journal: journal.settle("space-1", "c-1", created=False))
    assert (shop.ingest(nacelle).state, nacelle.requests) == ("created", 2)
    assert not shop.with_journal(lambda journal: journal.settle("space-1", "c-1", created=False))


@pytest.mark.parametrize("body", [b"<html>", b'"ok"', b"", b"[]"])
def test_200_without_an_order_is_unknown(shop: Shop, body: bytes) -> None:
    nacelle = Nacelle(200, body=body)
    assert (shop.ingest(nacelle).state, shop.ingest(nacelle).state, nacelle.requests) == ("unknown", "unknown", 1)
    empty = Nacelle(201, body=b"")
    assert shop.ingest(empty, {**ORDER, "id": "c-2"}).state == "created"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refused_order_can_be_corrected_and_sent_again(shop: Shop, status: int) -> None:
    nacelle = Nacelle(status)
    assert (shop.ingest(nacelle).state, nacelle.requests, nacelle.created) == ("refused", 1, [])
    assert shop.ingest(nacelle, {**ORDER, "note": "mended"}).state == "created"


@pytest.mark.parametrize(
    ("dies", "on_the_wire", "then"),
    [
        (("INSERT", True), False, "created"),  # before the row is written: nothing was sent
        (("INSERT", False), False, "unknown"),  # row written, not sent: this cannot be known
        (None, True, "unknown"),  # sent, no answer
        (("UPDATE", True), False, "unknown"),  # created, row not updated
        (("UPDATE", False), False, "created"),  # created, row updated
    ],
)
def test_dying_process_never_creates_two_orders(
    shop: Shop, dies: tuple[str, bool] | None, on_the_wire: bool, then: str
) -> None:
    nacelle = Nacelle(dies=on_the_wire)
    with pytest.raises(Died):
        shop.ingest(nacelle, dies=dies)
    nacelle.dies = False
    assert shop.ingest(nacelle).state == then
    assert len(nacelle.created) <= 1
    if then == "unknown":
        assert [entry.state for entry in shop.with_journal(Journal.not_created)] == ["sending"]


def test_concurrent_ingests_create_an_order_once(shop: Shop) -> None:
    nacelle = Nacelle()

    async def work(journal: Journal) -> list[Ingested]:
        ingestion = Ingestion(Noms("https://noms.test", "Bearer t", "space-1", nacelle), journal)
        return await asyncio.gather(*(ingestion.ingest(json.dumps(ORDER).encode()) for _ in range(8)))

    states = sorted(done.state for done in shop.with_journal(work))
    assert states.count("created") >= 1
    assert set(states) <= {"created", "unknown"}
    assert len(nacelle.created) == 1
