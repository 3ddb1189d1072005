"""The whole service with the Talon.One adapter and the sandbox, as a shop calls it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from mapper.adapter import EngineReply
from mapper.domain.signature import sign
from mapper.http import app
from mapper.settings import load
from tests.adapters.talon_one.emulated import Emulated
from tests.fakes import SECRET, new_ledger
from tests.sandbox.talon_one_shop import call

BASE = "https://engine.test"
LINE = {"sku": "SHIRT", "quantity": 1, "price": "140.00"}


class Wire:
    """The emulator as the service reaches it."""

    def __init__(self, engine: Emulated) -> None:
        self.engine = engine

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float, max_bytes: int
    ) -> EngineReply:
        named: dict[str, Any] = {name.lower(): value for name, value in headers}
        status, answer = await call(self.engine.engine, url.removeprefix(BASE), body, method, **named)
        return EngineReply(status=status, headers={}, body=answer)

    async def aclose(self) -> None: ...


@contextmanager
def shop(engine: Emulated, **environment: str) -> Iterator[Any]:
    """Calls of a shop: (operation, body) to (status, answer)."""
    service = app.create(
        load({
            "MAPPER_ENGINE": "talon_one", "NACELLE_SIGNING_SECRETS": SECRET.decode(), "MAPPER_LEDGER_URL": new_ledger(),
            "TALON_ONE_BASE_URL": BASE, "TALON_ONE_API_KEY": "key", **environment,
        }),
        engine_transport=Wire(engine),
    )  # fmt: skip
    with TestClient(service, raise_server_exceptions=False) as http:

        def ask(operation: str, body: dict[str, Any], secret: bytes = SECRET) -> tuple[int, Any]:
            data = json.dumps(body).encode()
            headers = {"x-nacelle-signature-sha256": sign(data, secret), "content-type": "application/json"}
            answer = http.post(f"/promotions/{operation}", content=data, headers=headers)
            return answer.status_code, answer.json()

        yield ask


def order_of(answer: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The order that a shop makes of a validated checkout."""
    checkout = answer["checkout"]
    lines = [
        {"sku": item["sku"], "quantity": item["quantity"], "price": item["price"], "discounts": item["total_discount"],
         "applied_discounts": item["discounts"]}
        for item in checkout["items"]
    ]  # fmt: skip
    return {"id": "order-1", "order_items": lines, "discounts": checkout["total_discount"],
            "promotions": checkout["promotions"], **more}  # fmt: skip


def test_refused_loyalty_card_is_left_out_of_validate_and_consume() -> None:
    engine = Emulated()
    with shop(engine, MAPPER_ON_REJECTED="apply_rest") as ask:
        promotions = {"coupon_codes": ["XMAS-2021-25"], "loyalty_card": "card-of-nobody"}
        status, shown = ask("validate", {"id": "c", "items": [LINE], "promotions": promotions})
        assert (status, shown["checkout"]["total_discount"]) == (200, "35.00")
        assert ask("consume", order_of(shown))[0] == 200
    assert engine.sessions() == {"c": "closed"}
    assert engine.books["codes"]["XMAS-2021-25"] == 1


def test_removed_store_moves_the_checkout_to_a_new_session() -> None:
    rule = ('conditions = { cart_over = "100.00" }', 'conditions = { stores = ["berlin"] }')
    engine = Emulated(rule)
    options = {"TALON_ONE_STORE_PATH": "/store", "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping"}
    with shop(engine, **options) as ask:
        body = {"id": "c", "items": [LINE], "promotions": {}, "shipping": "5.00"}
        assert ask("validate", {**body, "store": "berlin"})[1]["checkout"]["total_discount"] == "5.00"
        status, shown = ask("validate", body)
        assert (status, shown["checkout"]["total_discount"]) == (200, "0.00")
        assert shown["checkout"]["promotions"]["meta"]["mapper"]["session"] == "c~2"
        assert ask("consume", order_of(shown, shipping="5.00"))[0] == 200
    assert engine.sessions() == {"c": "open", "c~2": "closed"}


def test_cart_used_after_its_order_gets_a_new_session() -> None:
    engine = Emulated()
    with shop(engine) as ask:
        body = {"id": "c", "items": [LINE], "promotions": {"coupon_codes": ["XMAS-2021-25"]}}
        assert ask("consume", order_of(ask("validate", body)[1]))[0] == 200
        status, shown = ask("validate", body)
        assert (status, shown["checkout"]["promotions"]["meta"]["mapper"]["session"]) == (200, "c~2")
        assert ask("consume", order_of(shown, id="order-2"))[0] == 200
    assert engine.sessions() == {"c": "closed", "c~2": "closed"}


def test_reopened_session_is_never_left_open_after_a_200() -> None:
    engine = Emulated()
    with shop(engine, MAPPER_CANCEL_SECRETS="a secret of the merchant's own") as ask:
        body = {"id": "c", "items": [LINE], "promotions": {"coupon_codes": ["XMAS-2021-25"]}}
        order = order_of(ask("validate", body)[1])
        assert ask("consume", order)[0] == 200
        assert engine.reopen("c")[0] == 200
        assert ask("consume", {**order, "id": "order-2"})[0] == 400, "the session is the first order's"
        cancelled = ask("cancel", {"cancel": {"id": "order-1"}}, b"a secret of the merchant's own")
        assert (cancelled[0], engine.sessions()) == (200, {"c": "cancelled"})
        assert ask("consume", {**order, "id": "order-2"})[0] == 200
        assert ask("consume", order)[0] == 400, "a cancel is for good"
    assert sorted(engine.sessions().values()) == ["cancelled", "closed"]
    assert engine.books["codes"]["XMAS-2021-25"] == 1
