"""The customer profile that is sent for guests."""

from typing import Any

import pytest

from mapper.adapter import Misconfigured
from tests.adapters.talon_one.talk import adapter, cart, sent


@pytest.mark.parametrize(
    ("customer", "profile"),
    [
        ({"id": "c-1"}, "c-1"), ({"id": 7}, "7"), ({"id": ""}, "guest-s1"), ({"id": None}, "guest-s1"),
        ({}, "guest-s1"), (None, "guest-s1"),
    ],
)  # fmt: skip
def test_shopper_without_id_gets_a_guest_profile_per_checkout(customer: Any, profile: str) -> None:
    for options in ({}, {"GUESTS": "own_profile"}):
        for conversation in (adapter(**options).validate, adapter(**options).check, adapter(**options).redeem):
            assert sent(conversation(cart(customer=customer), "s1"))["profileId"] == profile
    assert sent(adapter(PROFILE_PREFIX="de-").validate(cart(customer=customer), "s1"))["profileId"] == f"de-{profile}"


@pytest.mark.parametrize("prefix", ["", "de-"])
def test_anonymous_guest_has_no_profile(prefix: str) -> None:
    talon = adapter(GUESTS="anonymous", PROFILE_PREFIX=prefix)
    assert sent(talon.validate(cart(), "s1"))["profileId"] == ""
    assert sent(talon.validate(cart(customer={"id": "c-1"}), "s1"))["profileId"] == f"{prefix}c-1"


def test_unknown_guests_option_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match="GUESTS"):
        adapter(GUESTS="nobody")
