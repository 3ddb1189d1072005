"""Adapters of other packages: the start of the service reports a broken one, with its package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from sysconfig import get_path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import mapper
from mapper import settings
from mapper.adapter import Account, Conversation, Misconfigured, Option, Outcome
from mapper.commands import cli
from mapper.settings import InvalidSettings, load
from tests.fakes import CAPABILITIES, FakeAdapter

SERVICE = {"MAPPER_ENGINE": "acme", "NACELLE_SIGNING_SECRETS": "a signing secret that is not short"}
GOOD = {**SERVICE, "ACME_BASE_URL": "https://acme.example", "ACME_API_KEY": "key"}


class Acme(FakeAdapter):
    name = "acme"
    options: tuple[Option, ...] = (
        Option("BASE_URL", "where Acme answers", None, kind="url"),
        Option("API_KEY", "the key of the shop", None, secret=True, kind="secret", suffixes=("EUR",)),
        Option("MODE", "fast or safe", "safe", kind="choice", choices=("fast", "safe")),
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__()
        self.given = dict(options)
        if options["MODE"] == "fast" and "API_KEY_EUR" in options:
            raise Misconfigured([("MODE", "safe, where there is a key for euros"), ("BASE_URL", "another one")])


class Point:
    """An entry point."""

    def __init__(self, name: str, factory: Callable[..., object] | Exception | None) -> None:
        self.name, self.factory = name, factory
        self.dist = SimpleNamespace(name="promotions-acme", version="1.2.3")

    def load(self) -> object:
        if isinstance(self.factory, Exception):
            raise self.factory
        return self.factory


def install(monkeypatch: pytest.MonkeyPatch, **factories: Any) -> None:
    monkeypatch.setattr(settings, "known", lambda: {name: Point(name, one) for name, one in factories.items()})


def problems(environment: Mapping[str, str]) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        load(environment)
    assert len(dict(caught.value.problems)) == len(caught.value.problems)
    return dict(caught.value.problems)


def test_adapter_gets_checked_options_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, acme=Acme)
    adapter = load({**GOOD, "ACME_BASE_URL": " https://acme.example/ ", "ACME_API_KEY_EUR": "euro"}).adapter
    assert isinstance(adapter, Acme)
    assert adapter.given == {
        "BASE_URL": "https://acme.example", "API_KEY": "key", "API_KEY_EUR": "euro", "MODE": "safe",
    }  # fmt: skip


def test_service_and_adapter_errors_are_reported_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, acme=Acme)
    assert problems({**SERVICE, "MAPPER_RECEIPT": "x", "ACME_BASE_URL": "ftp://x"}).keys() == {
        "MAPPER_RECEIPT", "ACME_BASE_URL", "ACME_API_KEY",
    }  # fmt: skip
    found = problems({**GOOD, "ACME_BASE_URL": "ftp://x", "ACME_MODE": "fast", "ACME_API_KEY_EUR": "euro"})
    assert found.keys() == {"ACME_BASE_URL", "ACME_MODE"}
    assert "https" in found["ACME_BASE_URL"], "the first that is wrong with an option is told"


def test_only_secret_options_are_read_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    install(monkeypatch, acme=Acme)
    file = tmp_path / "key"
    file.write_text("from the file\n".replace(" ", "-"))
    adapter = load(
        {**GOOD, "ACME_API_KEY": "", "ACME_API_KEY_FILE": str(file), "ACME_API_KEY_EUR_FILE": str(file)}
    ).adapter
    assert isinstance(adapter, Acme)
    assert (adapter.given["API_KEY"], adapter.given["API_KEY_EUR"]) == ("from-the-file",) * 2
    assert problems({**GOOD, "ACME_API_KEY": "", "ACME_API_KEY_FILE": "/no/such"}).keys() == {
        "ACME_API_KEY_FILE", "ACME_API_KEY",
    }  # fmt: skip
    (warning,) = load({**GOOD, "ACME_MODE_FILE": str(file)}).warnings
    assert "ACME_MODE_FILE" in warning


def test_unknown_option_warning_suggests_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, acme=Acme)
    (warning,) = load({**GOOD, "ACME_API_KEY_USD": "x"}).warnings
    assert "ACME_API_KEY_USD" in warning
    assert "did you mean ACME_API_KEY" in warning


def test_adapter_gets_no_settings_of_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foo(Acme):
        name = "foo"
        options = (*Acme.options, Option("BAR_BASE_URL", "a name that looks like that of foo_bar"))

    class FooBar(Acme):
        name = "foo_bar"

    install(monkeypatch, foo=Foo, foo_bar=FooBar)
    both = {**SERVICE, "FOO_BASE_URL": "https://foo.example", "FOO_API_KEY": "foo"}
    both |= {"FOO_BAR_BASE_URL": "https://bar.example", "FOO_BAR_API_KEY": "bar", "FOO_BAR_MODES": "x"}
    got = load({**both, "MAPPER_ENGINE": "foo"})
    assert isinstance(got.adapter, Foo)
    assert (got.adapter.given["API_KEY"], got.adapter.given["BAR_BASE_URL"], got.warnings) == ("foo", "", ())
    got = load({**both, "MAPPER_ENGINE": "foo_bar"})
    assert isinstance(got.adapter, FooBar)
    assert (got.adapter.given["API_KEY"], len(got.warnings)) == ("bar", 1)


def changed(**changes: Any) -> type[Acme]:
    return type("Changed", (Acme,), changes)


def with_accounts(accounts: Any) -> type[Acme]:
    class Changed(Acme):
        def __init__(self, options: Mapping[str, str]) -> None:
            super().__init__(options)
            self.accounts = accounts

    return Changed


def with_capabilities(**changes: Any) -> type[Acme]:
    class Changed(Acme):
        def __init__(self, options: Mapping[str, str]) -> None:
            super().__init__(options)
            self.capabilities = msgspec.structs.replace(CAPABILITIES, **changes)

    return Changed


def breaks(self: object, options: object) -> None:
    raise KeyError("HOST")


def takes_less(self: object, order: object, session: object) -> Conversation[Outcome]:
    raise AssertionError


BROKEN: dict[str, tuple[Any, str]] = {
    "cannot be imported": (ImportError("No module named 'acme_sdk'"), "cannot be loaded: ImportError"),
    "breaks when imported": (ZeroDivisionError(), "cannot be loaded: ZeroDivisionError"),
    "wrong contract": (changed(contract=2), "written for contract 2; this service has contract 1"),
    "no contract": (changed(contract=None), "written for contract None"),
    "wrong name": (changed(name="other"), "calls itself 'other'"),
    "no options": (changed(options=None), "declares no options"),
    "options that are names": (changed(options=("BASE_URL",)), "declared wrongly"),
    "two options of one name": (
        changed(options=(*Acme.options, Option("API_KEY_EUR", "x"))),
        "two options are named",
    ),
    "cannot be made": (changed(__init__=breaks), "cannot be made: KeyError"),
    "no accounts": (with_accounts(None), "no accounts"),
    "empty accounts": (with_accounts({}), "no accounts"),
    "account of a wrong type": (with_accounts({"": "https://a.b"}), "not Accounts"),
    "account without TLS": (with_accounts({"": Account("http://a.b", ())}), "base URL"),
    "header with a line break": (with_accounts({"": Account("https://a.b", (("X-Key", "a\nb"),))}), "header 'X-Key'"),
    "no capabilities": (changed(__init__=lambda self, _: setattr(self, "capabilities", None)), "no capabilities"),
    "capability that is no bool": (with_capabilities(undo="perhaps"), "neither True nor False"),
    "unknown currencies": (with_capabilities(currencies="all"), "currencies"),
    "negative most_codes": (with_capabilities(most_codes=-1), "most_codes"),
    "no look_up": (changed(look_up=None), "no method look_up"),
    "look_up without handle": (changed(look_up=takes_less), "look_up that is not called as the contract says"),
    "undo without final": (changed(undo=takes_less), "undo that is not called as the contract says"),
    "no check": (changed(check=None), "no method check"),
}


@pytest.mark.parametrize(("factory", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_adapter_error_names_adapter_and_distribution(
    factory: Any, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, acme=factory)
    ((name, sentence),) = problems(GOOD).items()
    assert name == "MAPPER_ENGINE"
    assert sentence.startswith("the adapter 'acme' of promotions-acme 1.2.3 ")
    assert says in sentence
    for setting, value in GOOD.items():
        monkeypatch.setenv(setting, value)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve"])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Acme", "ac-me", "1acme", "_acme", "acme.x", "mapper", "nacelle_two", "noms"])
def test_invalid_engine_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, **{name: Acme})
    assert "a name is [a-z][a-z0-9_]*" in problems({**GOOD, "MAPPER_ENGINE": name})["MAPPER_ENGINE"]


def test_setting_belongs_to_the_engine_with_the_longest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ACME_API_KEY_EUR` belongs to the engine `acme_api_key` if installed, although `acme` has such an option, too."""
    install(monkeypatch, acme=Acme)
    given = {**GOOD, "ACME_API_KEY_EUR": "another"}  # pragma: allowlist secret
    adapter = load(given).adapter
    assert isinstance(adapter, Acme)
    assert adapter.given["API_KEY_EUR"] == "another"  # pragma: allowlist secret
    install(monkeypatch, acme=Acme, acme_api_key=Acme)
    loaded = load(given)
    assert isinstance(loaded.adapter, Acme)
    assert "API_KEY_EUR" not in {name for name, value in loaded.adapter.given.items() if value}
    assert not any("ACME_API_KEY_EUR" in warning for warning in loaded.warnings)


@pytest.mark.parametrize("method", ["check", "undo", "repair"])
def test_undeclared_method_may_be_missing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = with_capabilities(**{method: False})
    setattr(factory, method, None)
    install(monkeypatch, acme=factory)
    assert load(GOOD).adapter.name == "acme"


@pytest.mark.parametrize(
    ("setting", "value"), [("MAPPER_CANCEL_SECRETS", "a secret for cancelling"), ("MAPPER_ON_DRIFT", "refuse")]
)
def test_setting_that_needs_undo_gives_a_warning_without_it(
    setting: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, acme=with_capabilities(undo=False))
    (warning,) = load({**GOOD, setting: value}).warnings
    assert warning.startswith(setting)
    install(monkeypatch, acme=Acme)
    assert load({**GOOD, setting: value}).warnings == ()


def test_editable_install_uses_a_path_file() -> None:
    """Type checkers follow no import hook. `make types` tries both of them, and the wheel."""
    root = Path(mapper.__file__).parents[1]
    found = [line for file in Path(get_path("purelib")).glob("*.pth") for line in file.read_text("utf-8").splitlines()]
    assert str(root) in found, "make test installs it anew"
