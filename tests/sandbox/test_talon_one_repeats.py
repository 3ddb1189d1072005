"""Talon.One's sandbox: parallel and repeated requests."""

import asyncio
import json
from datetime import timedelta

from tests.sandbox.talon_one_shop import Shop, call, cart


def test_fourth_parallel_request_of_session_or_profile_gets_409() -> None:
    async def statuses(paths: list[str], profile: str) -> list[int]:
        body = json.dumps({"customerSession": {"profileId": profile}}).encode()
        engine = Shop().engine
        calls = [call(engine, f"/v2/customer_sessions/{path}", body, pause=0.02) for path in paths]
        first = [status for status, _ in await asyncio.gather(*calls)]
        # Afterwards the session accepts requests again.
        assert (await call(engine, "/v2/customer_sessions/a", body))[0] == 200
        return sorted(first)

    for paths, profile, expected in (
        (["a"] * 4, "", [200, 200, 200, 409]),
        (["a"] * 3, "", [200] * 3),
        (["a", "b", "c", "d"], "", [200] * 4),
        (["a", "b", "c", "d"], "joe", [200, 200, 200, 409]),
    ):
        assert asyncio.run(statuses(paths, profile)) == expected


def test_refused_parallel_request_has_the_vendors_message() -> None:
    async def replies() -> list[tuple[int, bytes]]:
        engine = Shop().engine
        return await asyncio.gather(*(call(engine, "/v2/customer_sessions/a", pause=0.02) for _ in range(4)))

    (refused,) = [json.loads(body) for status, body in asyncio.run(replies()) if status == 409]
    assert refused == {
        "message": "Too many requests are updating this session at the same time",
        "errors": [],
        "StatusCode": 409,
    }


def test_idempotency_key_replays_the_first_answer() -> None:
    shop = Shop()
    closing = cart("SINGLE-0007", state="closed")
    first = shop.put(closing, idempotency_key="k1")
    assert first[0] == 200
    assert shop.put(closing, idempotency_key="k1") == first
    assert shop.put(cart(state="closed"), idempotency_key="k1") == first
    assert shop.books["sessions"]["s1"]["closes"] == 1
    assert shop.put(closing, idempotency_key="k2")[0] == 400
    assert shop.put(closing)[0] == 400
    # A key belongs to its session; a dry request ignores it; it expires after a day; a long one is refused.
    assert shop.put(cart(), "s2", idempotency_key="k1")[1] != first[1]
    assert shop.put(cart("TEN-PERCENT"), "s1", "?dry=true", idempotency_key="k1")[1] != first[1]
    shop.now += timedelta(hours=24)
    assert shop.put(closing, idempotency_key="k1")[0] == 400
    assert shop.put(cart(), "s3", idempotency_key="k" * 256)[0] == 400


def test_idempotency_key_replays_a_close_even_after_reopen() -> None:
    """So a 200 does not prove that the session is still closed."""
    shop = Shop()
    closing = cart("SINGLE-0007", state="closed")
    first = shop.put(closing, idempotency_key="k1")
    shop.reopen()
    assert shop.put(closing, idempotency_key="k1") == first
    assert shop.get()[1]["customerSession"]["state"] == "open"
    assert shop.books["codes"].get("SINGLE-0007") is None
    assert shop.put(closing, idempotency_key="k2")[0] == 200
    assert shop.books["codes"]["SINGLE-0007"] == 1


def test_older_deployment_ignores_idempotency_key() -> None:
    shop = Shop(("idempotency_keys = true", "idempotency_keys = false"))
    closing = cart("SINGLE-0007", state="closed")
    assert shop.put(closing, idempotency_key="k1")[0] == 200
    assert shop.put(closing, idempotency_key="k1")[0] == 400


def test_reset_clears_everything_but_the_rule_book() -> None:
    shop = Shop()
    before = shop.books
    shop.ok(cart("SINGLE-0001", "GIFT-50", profileId="joe", state="closed"), idempotency_key="k")
    assert shop.books != before
    shop.engine.reset()
    assert shop.books == before
    assert shop.put(cart(), idempotency_key="k")[1]["effects"] == []
