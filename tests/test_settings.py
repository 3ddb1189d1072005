from collections.abc import Mapping
from pathlib import Path

import pytest

from mapper import settings
from mapper.settings import InvalidSettings, load

GOOD = {
    "MAPPER_ENGINE": "talon_one",
    "NACELLE_SIGNING_SECRETS": "a signing secret that is not short",
    "TALON_ONE_BASE_URL": "https://example.europe-west1.talon.one",
    "TALON_ONE_API_KEY": "integration-key-1",
}


def wrong(**changes: str) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as error:
        load({**GOOD, **changes})
    return dict(error.value.problems)


def test_minimal_settings_get_the_defaults() -> None:
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


@pytest.mark.parametrize("name", ["NACELLE_SIGNING_SECRETS", "MAPPER_ON_DRIFT", "TALON_ONE_PROFILE_PREFIX"])
def test_value_that_is_not_utf8_is_wrong(name: str) -> None:
    with pytest.raises(InvalidSettings) as error:
        load({**GOOD, name: "se\udcffcret"})
    assert (name, "expected text in UTF-8") in error.value.problems
    assert load({**GOOD, "VOUCHERIFY_APP_ID": "\udcff", "OTHER": "\udcff", "MAPPER_RECORD": "/tmp/\udcff"}).record


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
        ("MAPPER_CUSTOMER_PATH", "customer/id"),
        ("MAPPER_CONSUME_REQUIRES", "payments"),
        ("MAPPER_AFTER_FAILURE", "redeem"),
        ("MAPPER_HTTP_CLIENT", "requests"),
        ("MAPPER_MAX_BODY_BYTES", "10"),
    ],
)
def test_invalid_setting_error_names_it(name: str, value: str) -> None:
    assert set(wrong(**{name: value})) == {name}


def test_all_invalid_settings_are_reported_together() -> None:
    with pytest.raises(InvalidSettings) as error:
        load({"MAPPER_ENGINE": "talon_one", "MAPPER_ON_DRIFT": "x", "TALON_ONE_BASE_URL": "ftp://x"})
    assert {name for name, _ in error.value.problems} == {
        "NACELLE_SIGNING_SECRETS", "MAPPER_ON_DRIFT", "TALON_ONE_BASE_URL", "TALON_ONE_API_KEY",
    }  # fmt: skip
    assert all(expected for _, expected in error.value.problems)


def test_secret_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("the secret in a file\n")
    key = tmp_path / "key"
    key.write_text("engine-key-2\n")
    environment = {**GOOD, "NACELLE_SIGNING_SECRETS": "", "NACELLE_SIGNING_SECRETS_FILE": str(file)}
    environment |= {"TALON_ONE_API_KEY": "", "TALON_ONE_API_KEY_FILE": str(key)}
    got = load(environment)
    assert got.credentials.secrets == (b"the secret in a file",)
    assert ("Authorization", "ApiKey-v1 engine-key-2") in got.adapter.accounts[""].headers


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfthe secret in a file\r\n", b"\n the secret in a file\n\n"])
def test_secret_file_ignores_bom_and_line_ends(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    path = f" {tmp_path}/secret\n"
    got = load({**GOOD, "NACELLE_SIGNING_SECRETS": " ", "NACELLE_SIGNING_SECRETS_FILE": path})
    assert got.credentials.secrets == (b"the secret in a file",)


def test_empty_secret_file_gives_one_warning(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("\n")
    (warning,) = load({**GOOD, "MAPPER_LEDGER_URL_FILE": f"{tmp_path}/url", "MAPPER_PRODUCT_DATA": "off"}).warnings
    assert "MAPPER_LEDGER_URL_FILE" in warning
    assert "empty" in warning


def test_unreadable_or_duplicate_secret_file_is_an_error(tmp_path: Path) -> None:
    assert set(wrong(TALON_ONE_API_KEY="", TALON_ONE_API_KEY_FILE=str(tmp_path / "no"))) >= {"TALON_ONE_API_KEY_FILE"}
    file = tmp_path / "secret"
    file.write_text("the secret in a file")
    assert "both" in wrong(NACELLE_SIGNING_SECRETS_FILE=str(file))["NACELLE_SIGNING_SECRETS"]


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ("a header's secret, with comma", [("secret", "a header's secret, with comma")]),
        ("X-Mapper-Key: a header's secret", [("x-mapper-key", "a header's secret")]),
        (
            "X-Key: the first one of two\n  X-Shop: the second one of two\n",
            [("x-key", "the first one of two"), ("x-shop", "the second one of two")],
        ),
    ],
)
@pytest.mark.parametrize("auth", ["signature", "secret_header", "both"])
def test_secret_header_is_a_value_or_named_values(auth: str, given: str, headers: list[tuple[str, str]]) -> None:
    got = load({**GOOD, "NACELLE_AUTH": auth, "NACELLE_SECRET_HEADER": given})
    assert got.credentials.headers == tuple((name.encode(), value.encode()) for name, value in headers)


SPACES = {**GOOD, "NACELLE_SPACE_IDS": "one, two"}
OF_ONE, OF_TWO = "the first space's own secret", "the second space's own secret"


def test_secret_may_belong_to_one_space() -> None:
    got = load({**SPACES, "NACELLE_SIGNING_SECRETS": f"one:{OF_ONE},two: {OF_TWO},one:{OF_ONE}, rotated"})
    assert got.credentials.secrets == (b"rotated",)
    assert got.credentials.by_space == {"one": (OF_ONE.encode(), OF_ONE.encode()), "two": (OF_TWO.encode(),)}
    assert got.credentials.of("one") == (OF_ONE.encode(), OF_ONE.encode(), b"rotated")


def test_space_ids_are_separated_by_commas() -> None:
    with pytest.raises(InvalidSettings, match="separated by commas"):
        load({**GOOD, "NACELLE_SPACE_IDS": "one two"})


def test_colon_after_unknown_space_is_part_of_the_secret() -> None:
    secret = "three:a signing secret that is not short"
    of_spaces, of_any = (load({**one, "NACELLE_SIGNING_SECRETS": secret}) for one in (SPACES, GOOD))
    assert of_spaces.credentials.secrets == of_any.credentials.secrets == (secret.encode(),)
    assert any("number 1, has a colon" in warning for warning in of_spaces.warnings), "a space that is mistyped"
    assert not any("colon" in warning for warning in of_any.warnings)


@pytest.mark.parametrize(
    ("spaces", "secrets", "warned"),
    [
        ("one,two", f"one:{OF_ONE},two:{OF_TWO}", False),
        ("one,two", "a secret that both of them share", True),
        ("one,two", f"one:{OF_ONE},two:{OF_TWO},a secret that both of them share", True),
        ("one", "the secret of the only space", False),
        ("", "the secret of the only space", False),
    ],
)
def test_spaces_sharing_a_secret_give_a_warning(spaces: str, secrets: str, warned: bool) -> None:
    got = load({**GOOD, "NACELLE_SPACE_IDS": spaces, "NACELLE_SIGNING_SECRETS": secrets})
    assert any("share a secret" in warning for warning in got.warnings) is warned


def test_zero_quarantine_gives_a_warning() -> None:
    (warning,) = load({**GOOD, "MAPPER_QUARANTINE_MS": "0"}).warnings
    assert "twice" in warning


def test_cancel_secrets_differ_from_signing_secrets() -> None:
    assert load(GOOD).cancel_credentials is None
    cancel = load({**SPACES, "MAPPER_CANCEL_SECRETS": f"a secret for cancelling,two:{OF_TWO}"}).cancel_credentials
    assert cancel is not None
    assert (cancel.auth, cancel.secrets, cancel.by_space) == (
        "signature", (b"a secret for cancelling",), {"two": (OF_TWO.encode(),)},
    )  # fmt: skip
    assert set(wrong(MAPPER_CANCEL_SECRETS=GOOD["NACELLE_SIGNING_SECRETS"])) == {"MAPPER_CANCEL_SECRETS"}


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("MAPPER_VALIDATE_DEADLINE_MS", 100, 60_000),
        ("MAPPER_CONSUME_DEADLINE_MS", 500, 120_000),
        ("MAPPER_QUARANTINE_MS", 0, 3_600_000),
        ("MAPPER_RECEIPT_TTL_S", 60, 31_536_000),
        ("MAPPER_KEEP_BODIES_S", 3600, 31_536_000),
        ("MAPPER_MAX_BODY_BYTES", 1024, 104_857_600),
    ],
)
def test_numbers_are_accepted_within_their_limits(name: str, least: int, most: int) -> None:
    for allowed in (least, most):
        load({**GOOD, name: str(allowed)})
    for refused in (least - 1, most + 1):
        assert set(wrong(**{name: str(refused)})) == {name}


@pytest.mark.parametrize(
    ("auth", "missing"),
    [
        ("signature", {"NACELLE_SIGNING_SECRETS"}),
        ("secret_header", {"NACELLE_SECRET_HEADER"}),
        ("both", {"NACELLE_SIGNING_SECRETS", "NACELLE_SECRET_HEADER"}),
    ],
)
def test_auth_mode_without_its_secret_is_an_error(auth: str, missing: set[str]) -> None:
    assert set(wrong(NACELLE_AUTH=auth, NACELLE_SIGNING_SECRETS="")) == missing


def test_warnings_are_given_with_the_errors() -> None:
    with pytest.raises(InvalidSettings) as error:
        load({**GOOD, "MAPPER_ON_DRIFT": "x", "MAPPER_ON_REJECTD": "apply_rest"})
    assert error.value.warnings == (
        "MAPPER_ON_REJECTD is not a setting and is ignored; did you mean MAPPER_ON_REJECTED?",
    )


def test_unknown_engine_hides_no_other_error() -> None:
    assert set(wrong(MAPPER_ENGINE="talonone", TALON_ONE_BASE_URL="nowhere", MAPPER_ON_DRIFT="x")) == {
        "MAPPER_ENGINE",
        "TALON_ONE_BASE_URL",
        "MAPPER_ON_DRIFT",
    }


@pytest.mark.parametrize("path", ["/v2", "/v1/", "/sandbox/v2"])
def test_base_url_with_api_version_is_refused(path: str) -> None:
    assert "alone" in wrong(TALON_ONE_BASE_URL=GOOD["TALON_ONE_BASE_URL"] + path)["TALON_ONE_BASE_URL"]


@pytest.mark.parametrize("name", ["NACELLE_SIGNING_SECRETS", "TALON_ONE_API_KEY", "MAPPER_LEDGER_URL"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quoted_secret_gives_a_warning(name: str, quote: str) -> None:
    given = {**GOOD, "MAPPER_LEDGER_URL": "sqlite:///x.db"}
    try:
        warnings = load({**given, name: quote + given[name] + quote}).warnings
    except InvalidSettings as error:
        warnings = error.warnings
    assert [warning for warning in warnings if "quotes" in warning and warning.startswith(name)]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MAPPER_ONREJECTED", "MAPPER_ON_REJECTED"),
        ("NACELLE_SPACE_ID", "NACELLE_SPACE_IDS"),
        ("TALON_ONE_ADITIONAL_COSTS", "TALON_ONE_ADDITIONAL_COSTS"),
        ("MAPPER_PORT", ""),
    ],
)
def test_unknown_setting_gives_a_warning(name: str, hint: str) -> None:
    # An orchestrator may set names of its own, such as MAPPER_PORT for a service called "mapper".
    (warning,) = load({**GOOD, name: "x"}).warnings
    assert name in warning
    assert hint in warning


def test_short_secret_gives_a_warning() -> None:
    (warning,) = load({**GOOD, "NACELLE_SIGNING_SECRETS": "a signing secret that is long,short"}).warnings
    assert "number 2" in warning
    assert "short secret" in warning


def test_repr_of_settings_shows_no_secret() -> None:
    environment: Mapping[str, str] = {**GOOD, "MAPPER_LEDGER_URL": "postgresql://user:hunter2@db/x"}
    shown = repr(load(environment))
    for secret in (*GOOD["NACELLE_SIGNING_SECRETS"].split(","), GOOD["TALON_ONE_API_KEY"], "hunter2"):
        assert secret not in shown


def test_every_setting_has_a_meaning() -> None:
    assert all(meaning for _, meaning in settings.TABLE.values())
