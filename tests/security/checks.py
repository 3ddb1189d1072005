"""The security checks, by id: what each requires, and which tests prove it. `python -m tests.security` runs them."""

# ruff: noqa: E501, ISC004 - a table: each row is one check

from typing import Final, NamedTuple


class Check(NamedTuple):
    """`tests`: a file of tests and names in it, blank-separated. `note`: how it differs from the original list."""

    says: str
    tests: tuple[str, ...] = ()
    note: str = ""


SIGNATURE = "tests/domain/test_signature.py"
SERVER = "tests/http/test_server.py"
APP = "tests/http/test_app.py"
DOCUMENT = "tests/domain/test_document.py"
CHECKOUT = "tests/domain/test_checkout.py"
MONEY = "tests/domain/test_money.py"
TRANSPORT = "tests/engine/test_transport.py"
STORY = "tests/test_promotions.py"
LIVE = "tests/security/test_live.py"
SUPPLY = "tests/security/test_supply_chain.py"
OTHERS_READ = f"{SERVER} test_ambiguous_request_gets_400_and_smuggled_request_is_not_run"

CHECKS: Final = {
    "S1": Check("published vectors verify", (f"{SIGNATURE} test_published_test_vectors_verify",)),
    "S2": Check(
        "hex in either case, with and without `sha256=`",
        (f"{SIGNATURE} test_signature_is_accepted_in_any_case_with_or_without_prefix",),
    ),
    "S3": Check("no header: 401", (f"{APP} test_401_is_identical_for_every_signature_fault",)),
    "S4": Check(
        "every other spelling: 401",
        (f"{SIGNATURE} test_invalid_signatures_get_the_same_message",),
    ),
    "S5": Check("non-ASCII bytes: 401, no internal error", (f"{APP} test_401_is_identical_for_every_signature_fault",)),
    "S6": Check(
        "a doubled header: 401",
        (
            f"{SIGNATURE} test_invalid_signatures_get_the_same_message",
            f"{APP} test_401_is_identical_for_every_signature_fault",
        ),
    ),
    "S7": Check("one changed byte: 401", (f"{SIGNATURE} test_one_changed_byte_invalidates_the_signature",)),
    "S8": Check("the signature before the JSON", (f"{STORY} test_signature_is_checked_before_the_body_is_parsed",)),
    "S9": Check("all 401 are the same bytes", (f"{APP} test_401_is_identical_for_every_signature_fault",)),
    "S10": Check("two secrets at once, then one", (f"{SIGNATURE} test_secret_is_valid_until_it_is_removed",)),
    "S11": Check(
        "no start without a secret",
        ("tests/test_settings.py test_auth_mode_without_its_secret_is_an_error",),
        "A secret under 16 bytes is warned about, not refused: Nacelle gives it out, and a shop cannot choose it.",
    ),
    "S12": Check(
        "a checkout at consume: 400, no engine call",
        (f"{STORY} test_checkout_at_consume_is_refused test_unpaid_order_is_refused_when_consume_requires_payment",),
        "An order at validate is answered: families B and C are valid there. `MAPPER_CONSUME_REQUIRES` tells them apart.",
    ),
    "S13": Check("a consume sent again redeems once", (f"{STORY} test_concurrent_equal_orders_are_redeemed_once",)),
    "S14": Check(
        "validate after consume reopens nothing",
        (
            "tests/orders/test_redeem.py test_cart_gets_new_session_after_its_order",
            f"{LIVE} test_validate_after_consume_leaves_engine_session_closed",
        ),
    ),
    "S15": Check(
        "one space's secret opens no other",
        (
            f"{SIGNATURE} test_secret_of_one_space_is_refused_for_another",
            f"{STORY} test_spaces_have_separate_orders_and_sessions",
        ),
        "Where each space has a secret of its own; a shared one is warned about at start.",
    ),
    "S16": Check(
        "secrets are compared in one place, in constant time",
        ("tests/test_house.py test_secrets_are_compared_in_one_place test_digests_are_never_compared_with_equals",),
    ),
    "H1": Check("`Content-Length` with `Transfer-Encoding`", (OTHERS_READ,)),
    "H2": Check("two or odd lengths", (OTHERS_READ,)),
    "H3": Check("odd encodings and chunks", (OTHERS_READ, f"{SERVER} test_malformed_chunks_get_400")),
    "H4": Check("bare line feeds, NUL", (OTHERS_READ,)),
    "H5": Check(
        "heads that are too large",
        (f"{SERVER} test_too_large_request_is_refused_at_once_and_gets_the_answer test_floods_leave_no_memory_behind",),
    ),
    "H6": Check("silence and half a head", (f"{SERVER} test_slow_client_is_cut_off",)),
    "H7": Check("a dripping body", (f"{SERVER} test_slow_client_is_cut_off",)),
    "H8": Check("silent connections do not block others", (f"{SERVER} test_silent_connections_do_not_block_others",)),
    "H9": Check(
        "bodies that are too large",
        (f"{APP} test_body_over_the_limit_gets_413", f"{SERVER} test_floods_leave_no_memory_behind"),
    ),
    "H10": Check("compressed bodies: 415", (f"{APP} test_media_type_is_checked",)),
    "H11": Check("other media types: 415", (f"{APP} test_media_type_is_checked",)),
    "H12": Check("no `Host`, or two: 400", (OTHERS_READ,)),
    "H13": Check(
        "other methods: 405 with `Allow`",
        (
            f"{APP} test_other_paths_and_methods_get_an_error",
            f"{LIVE} test_wrong_methods_get_405_and_unknown_paths_404",
        ),
    ),
    "H14": Check("other ways to write a path: 404", (f"{SERVER} test_other_forms_of_a_target_are_refused",)),
    "H15": Check("`X-Forwarded-For` is ignored", (f"{LIVE} test_forwarded_headers_are_ignored",)),
    "H16": Check(
        "headers of every answer",
        (
            f"{APP} test_signed_call_gets_200 test_body_over_the_limit_gets_413",
            f"{LIVE} test_wrong_methods_get_405_and_unknown_paths_404",
        ),
    ),
    "H17": Check("`Upgrade`, HTTP/2, TLS", (f"{SERVER} test_connection_closes_after_an_upgrade_request", OTHERS_READ)),
    "H18": Check(
        "`Expect: 100-continue`",
        (
            f"{SERVER} test_expect_gets_100_continue_unless_the_body_is_too_large test_body_is_not_buffered_while_the_application_does_not_read",
        ),
    ),
    "J1": Check("depth", (f"{DOCUMENT} test_deep_nesting_is_accepted_or_refused_as_too_deep",)),
    "J2": Check(
        "the JSON grammar",
        (
            f"{DOCUMENT} test_valid_json_is_accepted_and_kept test_invalid_json_is_refused",
            f"{LIVE} test_json_grammar_holds_for_signed_calls",
        ),
        "A table of our own by the categories of JSONTestSuite, whose files are in no package.",
    ),
    "J3": Check(
        "`NaN`, `Infinity`",
        (f"{MONEY} test_other_texts_are_not_money", f"{LIVE} test_price_other_than_a_number_is_refused"),
    ),
    "J4": Check("huge exponents and digits", (f"{MONEY} test_other_texts_are_not_money",)),
    "J5": Check(
        "quantities",
        (f"{CHECKOUT} test_invalid_line_of_family_a_is_refused_with_its_pointer",),
        "Quantity 0 is valid: the line is carried along.",
    ),
    "J6": Check("doubled keys: 400", (f"{DOCUMENT} test_duplicate_key_is_refused_with_its_pointer",)),
    "J7": Check(
        "numbers of lines, codes, identifiers",
        (
            f"{CHECKOUT} test_1000_lines_are_accepted_and_1001_refused",
            "tests/domain/test_codes.py test_100_codes_over_all_orders_are_accepted_and_101_refused",
            "tests/adapters/talon_one/test_requests.py test_five_identifiers_are_sent_hashed_and_the_rest_noticed",
        ),
        "100 codes over all orders, not 30.",
    ),
    "J8": Check(
        "codes with NUL, half a surrogate pair, invisible characters",
        (
            f"{LIVE} test_malformed_codes_are_refused",
            "tests/domain/test_codes.py test_malformed_code_is_refused_as_entered_and_others_stay",
        ),
        "Refused as codes (422, `malformed`), not 400; characters that nobody sees are taken out.",
    ),
    "J9": Check("other spellings of money", (f"{MONEY} test_other_texts_are_not_money",)),
    "J10": Check("bad UTF-8, BOM, comments", (f"{DOCUMENT} test_body_other_than_a_utf_8_json_object_is_refused",)),
    "J11": Check("unknown fields come back", (f"{STORY} test_consume_returns_the_order_byte_for_byte",)),
    "J12": Check("money adds up", (f"{MONEY} test_split_parts_add_up_and_are_within_one_unit",)),
    "O1": Check(
        "an id is never a path",
        (
            f"{STORY} test_id_that_is_unsafe_in_a_path_is_refused",
            "tests/engine/test_engine.py test_path_cannot_leave_base_url",
        ),
    ),
    "O2": Check(
        "the engine's address",
        ("tests/adapters/talon_one/test_options.py test_api_key_is_sent_to_https_or_loopback_only",),
        "`http://` for this machine alone; private addresses are the merchant's own business.",
    ),
    "O3": Check("redirects are not followed", (f"{TRANSPORT} test_redirect_is_returned_and_not_followed",)),
    "O4": Check("proxies and .netrc are ignored", (f"{TRANSPORT} test_proxies_and_netrc_of_environment_are_ignored",)),
    "O5": Check("certificates", (f"{TRANSPORT} test_certificates_are_verified_before_sending",)),
    "O6": Check("bombs", (f"{TRANSPORT} test_zip_bomb_is_not_held_in_memory",)),
    "O7": Check("a dripping engine", (f"{TRANSPORT} test_deadline_covers_whole_reply",)),
    "O8": Check(
        "hostile answers",
        (
            "tests/adapters/talon_one/test_answers.py test_any_answer_ends_in_an_outcome_or_a_problem"
            " test_any_text_ends_in_an_outcome_or_a_problem",
        ),
    ),
    "O9": Check("hostile headers", (f"{TRANSPORT} test_failure_after_connecting_is_unknown_and_client_recovers",)),
    "O10": Check(
        "a changed session in the note",
        (f"{STORY} test_forged_receipt_is_refused_at_consume_and_ignored_at_validate",),
    ),
    "O11": Check("keys go to their host alone", (f"{TRANSPORT} test_redirect_is_returned_and_not_followed",)),
    "L1": Check(
        "no secret and no code in logs, errors, metrics",
        (
            f"{APP} test_request_log_line_has_facts_and_no_secret",
            f"{TRANSPORT} test_logs_errors_and_reprs_hide_secrets_and_urls",
            f"{LIVE} test_secrets_and_codes_are_not_in_logs_or_operator_routes",
        ),
        "Codes are there as keyed hashes (`MAPPER_LOG_CODES`), so that support can find one.",
    ),
    "L2": Check("data cannot forge a log line", ("tests/ops/test_telemetry.py test_data_cannot_forge_a_log_line",)),
    "L3": Check("an internal error reveals nothing", (f"{APP} test_internal_error_names_only_the_request_id",)),
    "L4": Check("operators' routes", (f"{LIVE} test_secrets_and_codes_are_not_in_logs_or_operator_routes",)),
    "A1": Check(
        "guessed codes",
        (f"{LIVE} test_each_guessed_code_is_counted_and_logged_with_its_checkout",),
        "Not limited here: see *Guessed codes*.",
    ),
    "A2": Check(
        "validate's rush and consume",
        ("tests/http/test_endpoint.py test_rush_of_validates_does_not_delay_consume",),
    ),
    "P1": Check(
        "the container's rights", ("tests/test_deploy.py test_containers_have_no_capabilities_and_read_only_root",)
    ),
    "P2": Check(
        "stopping loses no request", (f"{SERVER} test_stopping_process_is_unready_first_and_loses_no_request",)
    ),
    "P3": Check("several processes on one ledger", ("tests/orders/test_ledger_sqlite.py",)),
    "P4": Check(
        "known holes",
        (f"{SUPPLY} test_audit_exits_2_if_packages_were_not_audited test_vulnerable_versions_are_not_pinned",),
        "`make audit`; it needs the network, and exits with 2 where there is none.",
    ),
    "P5": Check(
        "the SBOM", (f"{SUPPLY} test_sbom_equals_the_lock",), "`make sbom` writes it from the lock and compares."
    ),
    "P6": Check(
        "the base image",
        (f"{SUPPLY} test_image_has_one_base_that_can_be_pinned_by_digest",),
        "By tag in the Dockerfile, which says how to pin it by digest; releases are built from one. No CI workflows are here.",
    ),
    "P7": Check(
        "no secrets in the sources",
        (f"{SUPPLY} test_no_file_holds_a_key_of_known_form",),
        "`make secrets`; keys that tests need are made when they run.",
    ),
}
