"""The sandbox's start page: what it sends, what it shows of the answer, and that it escapes input.

Its look is tested in a browser, in tests/http.
"""

import json
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from mapper.sandbox import host as sandbox
from mapper.sandbox.nacelle import Reply

ANSWER: dict[str, Any] = {
    "items": [
        {
            "price": "105.00",
            "discounts": [{"name": "<b>35</b> off", "amount": "35.00", "effect_type": "off", "meta": {}}],
        },
        {"price": "25.00", "discounts": []},
        {"price": "20.00", "discounts": []},
    ],
    "discounts": [{"name": "Free shipping", "amount": "15.00", "effect_type": "ship", "meta": {}}],
    "total_discount": "50.00",
    "promotions": {"meta": {"mapper": {"engine": "some_engine", "rejected": [], "notices": []}}},
}


REFUSED = {"code": "X", "message": "Too late.", "reason": "expired", "engine_reason": ""}


class Try:
    """The page, with a mapper that gives a fixed answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: int = 200, answer: object = None) -> None:
        application = sandbox.create()
        self.asked: list[Any] = []
        body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)

        async def validate(_space: str, sent: bytes) -> Reply:
            self.asked.append(json.loads(sent))
            return Reply(status, body if status else b"")

        monkeypatch.setattr(application.state.sandbox.nacelle, "validate", validate)
        self.http = TestClient(application)

    def page(self, code: str) -> str:
        response = self.http.get("/", params={"code": code})
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        return " ".join(response.text.split())


@pytest.mark.parametrize(
    ("code", "sent_promotions"),
    [
        ("XMAS-2021-25", {"coupon_codes": ["XMAS-2021-25"]}),
        (" NOPE ", {"coupon_codes": ["NOPE"]}),
        ("", {"coupon_codes": []}),
        ("FRIEND-OF-JANE", {"referral_code": "FRIEND-OF-JANE"}),
        ("CARD-SPEND", {"loyalty_card": "CARD-SPEND"}),
        ("GIFT-50", {"coupon_codes": ["GIFT-50"], "meta": {"gift_credits": {"GIFT-50": "10.00"}}}),
    ],
)
def test_code_is_sent_in_the_field_of_its_kind(
    code: str, sent_promotions: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Try(monkeypatch, 200, {"checkout": ANSWER})
    tried.page(code)
    assert [asked["promotions"] for asked in tried.asked] == [sent_promotions]


def test_page_shows_cart_before_and_after_discounts(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Try(monkeypatch, 200, {"checkout": ANSWER}).page("XMAS-2021-25")
    for text in ("XMAS-2021-25: 50.00 off, says some_engine", "Winter boots", "&minus;35.00", "105.00", "&minus;15.00"):
        assert text in page, text
    assert "&lt;b&gt;35&lt;/b&gt; off" in page
    assert 'width="75"' in page


@pytest.mark.parametrize(
    ("status", "answer", "shown"),
    [
        (0, None, "No mapper answers there."),
        (401, {"checkout": {}, "error": {"error": "Not signed.", "details": {}}}, "Not signed."),
        (200, {"checkout": {}}, "What came back is no answer of a mapper."),
        (502, b"<html>", "What came back is no answer of a mapper."),
        (200, b"[]", "What came back is no answer of a mapper."),
        (
            422,
            {"error": {"details": {"codes": [REFUSED]}}},
            "<strong>X</strong>: Too late.",
        ),
    ],
)
def test_page_shows_the_error(status: int, answer: object, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown in Try(monkeypatch, status, answer).page("XMAS-2021-25")


def test_page_escapes_markup_in_code_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "</pre><script>alert(1)</script>"
    page = Try(monkeypatch, 200, {"checkout": {**ANSWER, "evil": evil}}).page(evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_mapper_is_not_called_without_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Try(monkeypatch)
    assert "Codes to try" in tried.http.get("/").text
    assert tried.asked == []
