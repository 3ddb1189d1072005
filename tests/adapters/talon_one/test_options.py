"""The settings of the Talon.One adapter."""

import pytest

from adapters.talon_one import TalonOne
from mapper.adapter import (
    Misconfigured,
    names,
)
from mapper.domain.errors import EngineRejected
from tests.adapters.talon_one.talk import ONE, adapter, cart, first


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, {"BASE_URL", "API_KEY"}),
        ({"BASE_URL": "https://a.talon.one"}, {"API_KEY"}),
        ({"API_KEY": "k"}, {"BASE_URL"}),
        ({**ONE, "API_KEY": "ApiKey-v1 k"}, {"API_KEY"}),
        ({**ONE, "API_KEY": "k\r\nx: y"}, {"API_KEY"}),
        ({**ONE, "BASE_URL": "http://a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "http://localhost.example.com"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "ftp://a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://user@a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://:secret@a.talon.one"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one?x=1"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one#x"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://a.talon.one:port"}, {"BASE_URL"}),
        ({**ONE, "BASE_URL": "https://[::1"}, {"BASE_URL"}),
        ({**ONE, "STORE_PATH": "store"}, {"STORE_PATH"}),
        ({**ONE, "RESPONSE_CONTENT": "effects"}, {"RESPONSE_CONTENT"}),
        ({**ONE, "STORE_PATH": "/a~2b"}, {"STORE_PATH"}),
        ({**ONE, "ADDITIONAL_COSTS": "shipping"}, {"ADDITIONAL_COSTS"}),
        ({**ONE, "ADDITIONAL_COSTS": "a=/x,a=/y"}, {"ADDITIONAL_COSTS"}),
        ({**ONE, "ITEM_ATTRIBUTES": "=/x"}, {"ITEM_ATTRIBUTES"}),
        ({**ONE, "SKU_FIELD": "ean"}, {"SKU_FIELD"}),
        ({**ONE, "CURRENCY": "EURO"}, {"CURRENCY"}),
        ({**ONE, "API_KEY_EUR": "e"}, {"CURRENCY"}),
        ({**ONE, "CURRENCY": "EUR", "API_KEY_EUR": "e"}, {"CURRENCY"}),
        ({"CURRENCY": "EUR", "BASE_URL": "https://a.talon.one"}, {"API_KEY"}),
        ({"API_KEY_EUR": "e"}, {"BASE_URL"}),
        ({"BASE_URL_EUR": "https://a.talon.one"}, {"API_KEY_EUR"}),
        ({"API_KEY_EUR": "e", "BASE_URL_EUR": "http://a.b"}, {"BASE_URL_EUR"}),
        ({"SKU_FIELD": "x", "CURRENCY": "x", "STORE_PATH": "x"},
         {"BASE_URL", "API_KEY", "CURRENCY", "SKU_FIELD", "STORE_PATH"}),
    ],
)  # fmt: skip
def test_all_wrong_options_are_reported_together(options: dict[str, str], wrong: set[str]) -> None:
    with pytest.raises(Misconfigured) as caught:
        TalonOne(options)
    names = [name for name, _ in caught.value.problems]
    assert sorted(names) == sorted(wrong)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://a.talon.one/",
        "https://a.talon.one:8443/x",
        "http://localhost:8080",
        "http://127.0.0.2",
        "http://[::1]:1",
    ],
)
def test_api_key_is_sent_to_https_or_loopback_only(url: str) -> None:
    account = adapter(BASE_URL=url).accounts[""]
    assert account.base_url == url.rstrip("/")
    assert account.headers == (("Authorization", "ApiKey-v1 0123456789abcdef"),)


def test_option_names_include_currencies_of_three_letters_only() -> None:
    assert {*ONE, "CURRENCY", "API_KEY_EUR", "BASE_URL_KWD", "SESSION_ATTRIBUTES"} <= names(TalonOne.options)
    assert "API_KEY_EURO" not in names(TalonOne.options)


def test_repr_shows_no_secret() -> None:
    talon = adapter(IDENTIFIERS_KEY="very secret", API_KEY="secret-too")
    assert "secret" not in repr((talon.accounts, talon._options))


def test_currency_selects_the_application_or_is_rejected() -> None:
    many = TalonOne(
        {
            **ONE,
            "CURRENCY": "usd",
            "API_KEY_EUR": "euro",
            "API_KEY_KWD": "dinar",
            "BASE_URL_KWD": "https://kw.talon.one",
        }
    )
    served = {"USD": "", "EUR": "EUR", "KWD": "KWD"}
    for currency, account in served.items():
        assert first(many.validate(cart(currency=currency), "s")).account == account
    assert {name: account.base_url for name, account in many.accounts.items()} == {
        "": ONE["BASE_URL"], "EUR": ONE["BASE_URL"], "KWD": "https://kw.talon.one",
    }  # fmt: skip
    assert [account.headers[0][1] for account in many.accounts.values()] == [
        "ApiKey-v1 euro", "ApiKey-v1 dinar", "ApiKey-v1 0123456789abcdef",
    ]  # fmt: skip
    for other in ({"currency": "JPY"}, {}):
        for conversation in (many.validate, many.check, many.redeem, many.look_up, many.undo):
            with pytest.raises(EngineRejected, match=r"EUR, KWD, USD") as caught:
                first(conversation(cart(**other), "s"))
            assert caught.value.reason == "currency_not_served"


def test_single_application_without_currency_takes_any_currency() -> None:
    for body in ({"currency": "JPY"}, {}):
        assert first(adapter().validate(cart(**body), "s")).account == ""
