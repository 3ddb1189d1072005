"""The real shop: what the adapter makes of it, and whether the emulator is like it."""

import asyncio
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from promotions_oscar import Oscar
from promotions_oscar.sandbox import OscarSandbox
from shop_server import KEY, Shop, needed, running

from mapper.adapter import EngineRejected, EngineRequest, NotRedeemed, OrderMismatch, Reason, Redeemed, checkout
from mapper.conformance.lab import Lab, call
from mapper.sandbox import rulebook

ORDER = {
    "id": "order-1",
    "currency": "USD",
    "order_items": [
        {"sku": "MUG", "quantity": 2, "price": "12.50"},
        {"sku": "PEN", "quantity": 7, "price": "1.00"},
        {"sku": "MUG", "quantity": 1, "price": "12.50"},
    ],
    "promotions": {"coupon_codes": ["ten-percent", "ONCE-5"]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    needed()
    with running(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def lab(server: Shop) -> Iterator[Lab]:
    """An adapter, and the real shop with empty books."""
    options = {"BASE_URL": server.base_url, "API_KEY": KEY, "ACCOUNTS_SECRET": "the-secret-of-the-accounts"}
    lab = Lab(Oscar(options), server.reset())
    yield lab
    lab.close()


def order(**changes: Any) -> checkout.Checkout:
    return checkout.parse(msgspec.json.encode({**ORDER, **changes}), "validate")


def with_codes(*codes: str) -> checkout.Checkout:
    return order(promotions={"coupon_codes": list(codes)})


def test_order_is_redeemed_once_and_looked_up(lab: Lab, server: Shop) -> None:
    validated = lab.validate(order(), "session-1")
    assert [(one.line, one.amount) for one in validated.discounts] == [(0, 531), (1, 248), (2, 266)]
    assert validated.discounts[0].name == "10 % off + 3 pens for 2 + 5 off, once"
    assert lab.check(order(), "session-1") == validated
    assert lab.look_up(order(), "session-1").state == "absent"
    assert server.books() == {"orders": [], "used": {}}
    done = lab.redeem(order(), "session-1")
    assert isinstance(done, Redeemed)
    assert [(one.line, one.amount) for one in done.outcome.discounts] == [(0, 531), (1, 248), (2, 266)]
    name = hashlib.sha256(b"order\nsession-1").hexdigest()
    booked = {"email": f"{name}@orders.invalid", "number": done.handle, "total": "34.05"}
    assert server.books() == {"orders": [booked], "used": {"TEN-PERCENT": 1, "ONCE-5": 1}}
    again = lab.redeem(order(), "session-1")
    assert isinstance(again, Redeemed)
    assert (again.outcome.redeemed, again.handle) == (True, done.handle)
    found = lab.look_up(order(), "session-1", done.handle)
    assert (found.state, found.outcome.discounts) == ("redeemed", done.outcome.discounts)
    assert len(server.books()["orders"]) == 1


def test_other_cart_codes_or_currency_raise_order_mismatch(lab: Lab, server: Shop) -> None:
    lab.redeem(order(), "session-1")
    less = [{**ORDER["order_items"][0], "quantity": 1}]
    others = (order(order_items=less), with_codes("TEN-PERCENT"), with_codes("SAVE-5"), order(currency="EUR"))
    for other in others:
        with pytest.raises(OrderMismatch):
            lab.look_up(other, "session-1")
        with pytest.raises(OrderMismatch):
            lab.redeem(other, "session-1")
    assert len(server.books()["orders"]) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("NOPE", Reason.NOT_FOUND),
        ("OLD-5", Reason.EXPIRED),
        ("MIN-100", Reason.CONDITIONS_NOT_MET),
        ("MEMBERS-5", Reason.SIGN_IN_REQUIRED),
        ("ONCE-5", Reason.USED_UP),
    ],
)
def test_refused_voucher_has_its_reason(lab: Lab, server: Shop, code: str, reason: Reason) -> None:
    lab.redeem(with_codes("ONCE-5"), "another session")
    for method in (lab.validate, lab.check):
        assert [(one.code, one.reason) for one in method(with_codes(code), "session-1").rejected] == [(code, reason)]
    declined = lab.redeem(with_codes(code), "session-1")
    assert isinstance(declined, NotRedeemed)
    assert [(one.code, one.reason) for one in declined.rejected] == [(code, reason)]
    assert len(server.books()["orders"]) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"order_items": [{"sku": "MUG", "quantity": 1, "price": "12.49"}]}, "price_differs"),
        ({"order_items": [{"sku": "HAT", "quantity": 1, "price": "12.49"}]}, "unknown_product"),
        ({"order_items": [{"sku": "MUG", "quantity": 10001, "price": "12.50"}]}, "not_for_sale"),
        ({"currency": "EUR"}, "currency_differs"),
    ],
)
def test_cart_that_differs_from_the_catalogue_is_refused(lab: Lab, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineRejected) as refused:
        lab.validate(order(**changes), "session-1")
    assert refused.value.reason == reason


def test_wrong_key_raises_engine_rejected(server: Shop) -> None:
    options = {"BASE_URL": server.base_url, "API_KEY": "another-key", "ACCOUNTS_SECRET": "secret"}
    lab = Lab(Oscar(options), server.reset())
    with pytest.raises(EngineRejected) as refused:
        lab.validate(order(), "session-1")
    lab.close()
    assert refused.value.reason == "engine_key"


# -- Is the emulator like the shop?

GUEST, OWNER, SIGNING_IN = "SID:ANON:{host}:guest", "SID:AUTH:{host}:owner", "SID:ANON:{host}:owner"
ACCOUNT = {"username": "a@orders.invalid", "password": "0123456789abcdefx"}
NEW = {"email": "a@orders.invalid", "password1": "0123456789abcdefx", "password2": "0123456789abcdefx"}
QUESTIONS: list[tuple[str, str, str, Any]] = [
    ("GET", "/products/?upc=MUG&upc=NOPE", "", None),
    ("GET", "/basket/", GUEST, None),
    *(("POST", "/basket/add-product/", GUEST, {"url": "{product}", "quantity": count}) for count in (2, 1, 10_000)),
    *(
        ("POST", "/basket/add-voucher/", GUEST, {"vouchercode": code})
        for code in ("TEN-PERCENT", "save-5", "MIN-100", "OLD-5", "MEMBERS-5", "NOPE", "TEN-PERCENT")
    ),
    ("GET", "/basket/", GUEST, None),
    ("GET", "/baskets/{basket}/lines/", GUEST, None),
    ("GET", "/basket/shipping-methods/", GUEST, None),
    ("DELETE", "/baskets/{basket}/", GUEST, None),
    ("GET", "/baskets/{basket}/lines/", GUEST, None),
    ("GET", "/basket/", GUEST, None),
    ("GET", "/basket/", GUEST + "-12:ab", None),  # the same session: what follows is cut off
    ("GET", "/orders/", OWNER, None),
    ("GET", "/orders/", GUEST, None),
    ("POST", "/login/", SIGNING_IN, ACCOUNT),
    ("POST", "/register/", "", NEW),
    ("POST", "/register/", "", NEW),
    ("POST", "/login/", SIGNING_IN, ACCOUNT),
    ("POST", "/login/", SIGNING_IN, ACCOUNT),
    ("GET", "/orders/", OWNER, None),
    ("GET", "/basket/", OWNER, None),
    ("POST", "/checkout/", OWNER, {"basket": "{basket}"}),
    ("POST", "/basket/add-product/", OWNER, {"url": "{product}", "quantity": 3}),
    *(("POST", "/basket/add-voucher/", OWNER, {"vouchercode": code}) for code in ("TEN-PERCENT", "ONCE-5")),
    ("GET", "/products/?upc=PEN", "", None),
    ("POST", "/basket/add-product/", OWNER, {"url": "{product}", "quantity": 7}),
    ("GET", "/basket/", OWNER, None),
    ("GET", "/baskets/{basket}/lines/", OWNER, None),
    ("POST", "/checkout/", GUEST, {"basket": "{basket}"}),
    ("POST", "/checkout/", OWNER, {"basket": "{basket}", "total": "44.50"}),
    ("POST", "/checkout/", OWNER, {"basket": "{basket}", "total": "34.05"}),
    ("POST", "/checkout/", OWNER, {"basket": "{basket}", "total": "34.05"}),
    ("GET", "/orders/", OWNER, None),
    ("GET", "/orders/{order}/lines/", OWNER, None),
    ("POST", "/basket/add-voucher/", GUEST, {"vouchercode": "ONCE-5"}),
    ("GET", "/basket/", OWNER, None),
]


def test_emulator_answers_like_the_shop(server: Shop) -> None:
    emulated = OscarSandbox(rulebook.load(), lambda: datetime(2026, 1, 1, tzinfo=UTC))
    real = asyncio.run(_answers(server.reset(), "127.0.0.1"))
    ours = asyncio.run(_answers(emulated, "oscar.test"))
    for question, (status, answer), (expected_status, expected) in zip(QUESTIONS, ours, real, strict=True):
        assert status == expected_status, f"{question}: {answer} instead of {expected}"
        assert _like(answer, expected), f"{question}: {answer} instead of {expected}"


async def _answers(application: Any, host: str) -> list[tuple[int, Any]]:
    """To all questions, asked one after the other; what an answer named last stands in later ones."""
    names, answers = {"host": host}, []

    def filled(text: str, form: str = "{value}") -> str:
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", form.format(host=host, name=name, value=value))
        return text

    for method, path, session, body in QUESTIONS:
        headers = [("Authorization", KEY), ("Accept", "application/json"), ("Accept-Language", "en")]
        headers += [("Content-Type", "application/json"), ("Session-Id", filled(session))]
        text = "" if body is None else filled(msgspec.json.encode(body).decode(), "http://{host}/api/{name}s/{value}/")
        reply = await call(
            application,
            EngineRequest(
                operation="ask",
                method=method,
                path=filled(path),
                body=text.encode(),
                headers=tuple(headers),
                effect="none",
                repeatable=False,
            ),
        )
        answers.append((reply.status, msgspec.json.decode(reply.body) if reply.body else None))
        names |= dict(re.findall(r'"url":"[^"]*/(product|basket|order)s/([0-9]+)/"', reply.body.decode()))
    return answers


def _like(ours: Any, real: Any) -> bool:
    """What the emulator says, the shop says, too; numbers of its own apart, and "coupon" for "voucher"."""
    match ours, real:
        case dict(), dict():
            return all(name in real and _like(each, real[name]) for name, each in ours.items() if name != "number")
        case list(), list():
            pairs = zip(sorted(ours, key=_name), sorted(real, key=_name), strict=False)
            return len(ours) == len(real) and all(_like(*pair) for pair in pairs)
        case str(), str():
            return _plain(ours) == _plain(real)
        case int(), int():
            return True
    return ours == real


def _name(one: Any) -> str:
    return str(one.get("name", "")) if isinstance(one, dict) else ""


def _plain(text: str) -> str:
    text = text.lower().replace("coupon", "voucher").replace("cart", "basket")
    return re.sub(r"https?://[^/]+(/[a-z/]*)[0-9]+/", r"\1#/", text)
