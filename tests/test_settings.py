from collections.abc import Mapping
from pathlib import Path

import pytest

from mapper import settings
from mapper.settings import Wrong, load

GOOD = {
    "MAPPER_ENGINE": "talon_one",
    "NACELLE_SIGNING_SECRETS": "a signing secret that is not short",
    "TALON_ONE_BASE_URL": "https://example.europe-west1.talon.one",
    "TALON_ONE_API_KEY": "integration-key-1",
}


def wrong(**changes: str) -> dict[str, str]:
    with pytest.raises(Wrong) as error:
        load({**GOOD, **changes})
    return dict(error.value.problems)


def test_the_least_that_is_needed_and_every_default() -> None:
    got = load({**GOOD, "NACELLE_SIGNING_SECRETS": "the first secret of two,  the second secret "})
    assert got.credentials.secrets == (b"the first secret of two", b"the second secret")
    assert (got.adapter.name, got.validate_deadline_s, got.consume_deadline_s, got.quarantine_s) == (
        "talon_one",
        1.5,
        8,
        60,
    )
    assert (got.on_rejected, got.on_engine_failure, got.on_drift, got.receipt_required) == (
        "refuse",
        "refuse",
        "report",
        False,
    )
    assert (got.max_body_bytes, got.http_client, got.overload_status, got.receipt_ttl_s) == (
        1_048_576,
        "aiohttp",
        None,
        86_400,
    )
    assert (got.ledger_url, got.warnings) == ("sqlite:///mapper-ledger.db", ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAPPER_ENGINE", ""),
        ("MAPPER_ENGINE", "talonone"),
        ("NACELLE_SIGNING_SECRETS", ""),
        ("NACELLE_SIGNING_SECRETS", " , "),
        ("NACELLE_AUTH", "none"),
        ("MAPPER_LEDGER_URL", "mysql://x"),
        ("MAPPER_LEDGER_URL", "sqlite:///"),
        ("MAPPER_VALIDATE_DEADLINE_MS", "0"),
        ("MAPPER_VALIDATE_DEADLINE_MS", "1.5"),
        ("MAPPER_CONSUME_DEADLINE_MS", "-1"),
        ("MAPPER_QUARANTINE_MS", "soon"),
        ("MAPPER_ON_REJECTED", "ignore"),
        ("MAPPER_ON_ENGINE_FAILURE", "apply"),
        ("MAPPER_ON_DRIFT", "ignore"),
        ("MAPPER_RECEIPT", "yes"),
        ("MAPPER_RECEIPT_TTL_S", "٣٠٠"),
        ("MAPPER_OVERLOAD_STATUS", "500"),
        ("MAPPER_DEFAULT_CURRENCY", "DOLLAR"),
        ("MAPPER_SESSION_ID_PATH", "metadata/cart"),
        ("MAPPER_ORDER_KEY_PATH", "/a~2"),
        ("MAPPER_HTTP_CLIENT", "requests"),
        ("MAPPER_MAX_BODY_BYTES", "10"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    assert set(wrong(**{name: value})) == {name}


def test_all_wrong_settings_are_reported_at_once_also_the_engines_own() -> None:
    with pytest.raises(Wrong) as error:
        load({"MAPPER_ENGINE": "talon_one", "MAPPER_ON_DRIFT": "x", "TALON_ONE_BASE_URL": "ftp://x"})
    assert {name for name, _ in error.value.problems} == {
        "NACELLE_SIGNING_SECRETS", "MAPPER_ON_DRIFT", "TALON_ONE_BASE_URL", "TALON_ONE_API_KEY",
    }  # fmt: skip
    assert all(expected for _, expected in error.value.problems)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("the secret in a file\n")
    key = tmp_path / "key"
    key.write_text("engine-key-2\n")
    environment = {**GOOD, "NACELLE_SIGNING_SECRETS": "", "NACELLE_SIGNING_SECRETS_FILE": str(file)}
    environment |= {"TALON_ONE_API_KEY": "", "TALON_ONE_API_KEY_FILE": str(key)}
    got = load(environment)
    assert got.credentials.secrets == (b"the secret in a file",)
    assert ("Authorization", "ApiKey-v1 engine-key-2") in got.adapter.accounts[""].headers


def test_a_secret_file_that_cannot_be_read_or_competes_is_named(tmp_path: Path) -> None:
    assert set(wrong(TALON_ONE_API_KEY="", TALON_ONE_API_KEY_FILE=str(tmp_path / "no"))) >= {"TALON_ONE_API_KEY_FILE"}
    file = tmp_path / "secret"
    file.write_text("the secret in a file")
    assert "both" in wrong(NACELLE_SIGNING_SECRETS_FILE=str(file))["NACELLE_SIGNING_SECRETS"]


@pytest.mark.parametrize(
    ("given", "header", "values"),
    [
        ("a header's secret, with comma", b"secret", (b"a header's secret, with comma",)),
        ("X-Mapper-Key: a header's secret", b"x-mapper-key", (b"a header's secret",)),
    ],
)
def test_the_secret_header_is_a_value_or_a_name_and_a_value(given: str, header: bytes, values: tuple[bytes]) -> None:
    got = load({**GOOD, "NACELLE_SIGNING_SECRETS": "", "NACELLE_AUTH": "secret_header", "NACELLE_SECRET_HEADER": given})
    assert (got.credentials.header, got.credentials.header_values, got.receipt_secrets) == (header, values, values)


@pytest.mark.parametrize(
    ("auth", "missing"),
    [
        ("signature", {"NACELLE_SIGNING_SECRETS"}),
        ("secret_header", {"NACELLE_SECRET_HEADER"}),
        ("both", {"NACELLE_SIGNING_SECRETS", "NACELLE_SECRET_HEADER"}),
    ],
)
def test_no_mode_starts_without_its_secret(auth: str, missing: set[str]) -> None:
    assert set(wrong(NACELLE_AUTH=auth, NACELLE_SIGNING_SECRETS="")) == missing


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MAPPER_ONREJECTED", "MAPPER_ON_REJECTED"),
        ("NACELLE_SPACE_ID", "NACELLE_SPACE_IDS"),
        ("TALON_ONE_ADITIONAL_COSTS", "TALON_ONE_ADDITIONAL_COSTS"),
        ("MAPPER_PORT", ""),
    ],
)
def test_a_name_that_is_no_setting_is_pointed_out_but_stops_nothing(name: str, hint: str) -> None:
    # An orchestrator may set names of its own, such as MAPPER_PORT beside a service called "mapper".
    (warning,) = load({**GOOD, name: "x"}).warnings
    assert name in warning
    assert hint in warning


def test_a_short_secret_is_pointed_out_but_not_refused() -> None:
    (warning,) = load({**GOOD, "NACELLE_SIGNING_SECRETS": "a signing secret that is long,short"}).warnings
    assert "number 2" in warning
    assert "short secret" in warning


def test_secrets_do_not_show() -> None:
    environment: Mapping[str, str] = {**GOOD, "MAPPER_LEDGER_URL": "postgresql://user:hunter2@db/x"}
    shown = repr(load(environment))
    for secret in (*GOOD["NACELLE_SIGNING_SECRETS"].split(","), GOOD["TALON_ONE_API_KEY"], "hunter2"):
        assert secret not in shown


def test_every_setting_has_a_meaning() -> None:
    assert all(meaning for _, meaning in settings.TABLE.values())
