"""An order is created at Nacelle once, or not at all, wherever a process dies and whatever the answer was."""

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
from mapper.nacelle.journal import Journal, open_journal
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
    """The process ended here."""


class Nacelle:
    """Creates whatever arrives, and then answers as it is told to."""

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
    """A database on which the process dies before, or right after, a statement is done."""

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
    """One journal, and as many processes at it as are asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.slept: list[float] = []

    def with_journal(self, story: Callable[[Journal], Awaitable[T]]) -> T:
        async def told() -> T:
            journal = await open_journal(self.url)
            try:
                return await story(journal)
            finally:
                await journal.close()

        return asyncio.run(told())

    def ingest(self, nacelle: Nacelle, order: object = ORDER, *, dies: tuple[str, bool] | None = None) -> Ingested:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        async def story(journal: Journal) -> Ingested:
            own = Journal(Dying(journal.database, dies[0], before=dies[1])) if dies else journal
            noms = Noms("https://noms.test", "Bearer the-token", "space-1", nacelle, sleep)
            return await Ingestion(noms, own).ingest(json.dumps(order).encode())

        return self.with_journal(story)


@pytest.fixture(params=STORES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(Home(request.param, tmp_path).url)


def test_an_order_is_created_with_the_documented_request(shop: Shop) -> None:
    nacelle = Nacelle()
    done = shop.ingest(nacelle)
    assert (done.state, done.key, done.answer, done.again) == ("created", "c-1", b'{"id":"n-1"}', False)
    assert nacelle.url == "https://noms.test/orders"
    assert nacelle.headers["Authorization"] == "Bearer the-token"
    assert nacelle.headers["X-Nacelle-Space-Id"] == "space-1"
    assert "order_items" in json.loads(nacelle.created[0])


def test_the_same_order_again_is_not_sent_again(shop: Shop) -> None:
    nacelle = Nacelle()
    shop.ingest(nacelle)
    again = shop.ingest(nacelle)
    assert (again.state, again.again, again.answer, nacelle.requests) == ("created", True, b'{"id":"n-1"}', 1)


def test_another_order_under_the_same_id_is_not_sent(shop: Shop) -> None:
    nacelle = Nacelle()
    shop.ingest(nacelle)
    assert shop.ingest(nacelle, {**ORDER, "note": 1}).state == "other_content"
    assert nacelle.requests == 1


@pytest.mark.parametrize("failure", [429, NotSent("connect")])
def test_what_created_nothing_is_sent_again_a_few_times(shop: Shop, failure: int | Exception) -> None:
    nacelle = Nacelle(failure, failure)
    assert shop.ingest(nacelle).state == "created"
    assert (nacelle.requests, shop.slept) == (3, [max(pause, failure == 429) for pause in PAUSES_S[:2]])
    stubborn = Nacelle(*[failure] * 10)
    assert shop.ingest(stubborn, {**ORDER, "id": "c-2"}).state == "not_sent"
    assert stubborn.requests == len(PAUSES_S) + 1
    assert shop.ingest(Nacelle(), {**ORDER, "id": "c-2"}).state == "created"


@pytest.mark.parametrize("failure", [500, 502, 302, Unknown("timeout"), Unknown("reset"), Unknown("garbled")])
def test_what_may_have_created_it_is_never_sent_again_until_a_person_says_so(
    shop: Shop, failure: int | Exception
) -> None:
    nacelle = Nacelle(failure)
    assert shop.ingest(nacelle).state == "unknown"
    assert (shop.ingest(nacelle).state, nacelle.requests) == ("unknown", 1)
    assert shop.with_journal(lambda journal: journal.settle("space-1", "c-1", created=False))
    assert (shop.ingest(nacelle).state, nacelle.requests) == ("created", 2)
    assert not shop.with_journal(lambda journal: journal.settle("space-1", "c-1", created=False))


@pytest.mark.parametrize("body", [b"<html>", b'"ok"', b"", b"[]"])
def test_an_answer_that_tells_of_no_order_is_no_success(shop: Shop, body: bytes) -> None:
    nacelle = Nacelle(200, body=body)
    assert (shop.ingest(nacelle).state, shop.ingest(nacelle).state, nacelle.requests) == ("unknown", "unknown", 1)
    empty = Nacelle(201, body=b"")
    assert shop.ingest(empty, {**ORDER, "id": "c-2"}).state == "created"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_nacelle_refuses_may_be_mended_and_sent_again(shop: Shop, status: int) -> None:
    nacelle = Nacelle(status)
    assert (shop.ingest(nacelle).state, nacelle.requests, nacelle.created) == ("refused", 1, [])
    assert shop.ingest(nacelle, {**ORDER, "note": "mended"}).state == "created"


@pytest.mark.parametrize(
    ("dies", "on_the_wire", "then"),
    [
        (("INSERT", True), False, "created"),  # before it is written down: nothing was sent
        (("INSERT", False), False, "unknown"),  # written down, not sent: nobody can tell
        (None, True, "unknown"),  # sent, no answer
        (("UPDATE", True), False, "unknown"),  # created, not written down
        (("UPDATE", False), False, "created"),  # created and written down
    ],
)
def test_a_process_that_dies_never_makes_two_orders(
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


def test_two_processes_with_one_order_create_it_once(shop: Shop) -> None:
    nacelle = Nacelle()

    async def story(journal: Journal) -> list[Ingested]:
        ingestion = Ingestion(Noms("https://noms.test", "Bearer t", "space-1", nacelle), journal)
        return await asyncio.gather(*(ingestion.ingest(json.dumps(ORDER).encode()) for _ in range(8)))

    states = sorted(done.state for done in shop.with_journal(story))
    assert states.count("created") >= 1
    assert set(states) <= {"created", "unknown"}
    assert len(nacelle.created) == 1
