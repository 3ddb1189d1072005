"""Every request of the Talon.One adapter, checked by the vendor's own client.

It checks requests only: one unknown word makes it reject a whole answer. Importing it takes two to three seconds.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.talon_one import TalonOne
from mapper.adapter import Conversation, EngineRequest
from mapper.domain import checkout as documents
from tests.adapters.talon_one.talk import adapter, first, one_request, parse, reply

HOST = "https://shop.europe-west1.talon.one"
KEY = "0123456789abcdef"
OPTIONS = {
    "BASE_URL": HOST,
    "API_KEY": KEY,
    "PROFILE_PREFIX": "shop-",
    "STORE_PATH": "/store",
    "ADDITIONAL_COSTS": "shipping=/shipping,fee=/fee",
    "ITEM_ADDITIONAL_COSTS": "wrap=/wrap",
    "SESSION_ATTRIBUTES": "City=/city,Meta=/promotions/meta",
    "ITEM_ATTRIBUTES": "size=/size,tags=/tags",
    "ITEM_FIELDS": "name=/title,category=/category,product=/product,weight=/weight,height=/height",
    "GUESTS": "anonymous",
    "CODE_CASE": "sensitive",
    "RESPONSE_CONTENT": "ruleFailureReasons,coupons,customerProfile,loyalty",
}


class Sdk(NamedTuple):
    """The vendor's model of a request body, and the requests that its client would send: (method, url, headers)."""

    model: Any
    put: Callable[[str, bool], tuple[str, str, dict[str, str]]]
    get: Callable[[str], tuple[str, str, dict[str, str]]]
    reopen: Callable[[str], tuple[str, str, dict[str, str]]]


@pytest.fixture(scope="module")
def sdk() -> Sdk:
    import talon_one  # noqa: PLC0415 slow to import
    from talon_one.api.integration_api import IntegrationApi  # noqa: PLC0415
    from talon_one.models.integration_request import IntegrationRequest  # noqa: PLC0415

    configuration = talon_one.Configuration(
        host=HOST, api_key={"api_key_v1": KEY}, api_key_prefix={"api_key_v1": "ApiKey-v1"}
    )
    api: Any = IntegrationApi(talon_one.ApiClient(configuration))
    rest: tuple[Any, ...] = (None, None, {}, 0)
    return Sdk(
        model=IntegrationRequest,
        put=lambda session, dry: api._update_customer_session_v2_serialize(session, None, dry or None, None, *rest)[:3],
        get=lambda session: api._get_customer_session_serialize(session, *rest)[:3],
        reopen=lambda session: api._reopen_customer_session_serialize(session, *rest)[:3],
    )


# -- Checkouts, options, sessions --------------------------------------------------------------------------------------

text = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="\x00"), min_size=1, max_size=120)
maybe_text = st.one_of(st.just(""), text)
# The vendor's model holds doubles, which are exact to 15 digits.
amount = st.one_of(
    st.integers(0, 10**11).map(lambda minor: f"{minor // 100}.{minor % 100:02d}"), st.integers(0, 10**9).map(str)
)
some_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), text), lambda inner: st.lists(inner, max_size=3)
)
line = st.fixed_dictionaries(
    {"sku": text, "quantity": st.integers(0, 2_000), "price": amount},
    optional={
        "size": some_json,
        "tags": some_json,
        "wrap": amount,
        "title": some_json,
        "category": some_json,
        "weight": some_json,
        "height": amount,
        "product": some_json,
    },
)
body = st.fixed_dictionaries(
    {"items": st.lists(line, max_size=5)},
    optional={
        "customer": st.fixed_dictionaries({"id": st.one_of(maybe_text, st.integers(0), st.none())}),
        "store": maybe_text,
        "shipping": amount,
        "fee": st.none(),
        "city": some_json,
        "promotions": st.fixed_dictionaries(
            {},
            optional={
                "coupon_codes": st.lists(text, max_size=8),
                "referral_code": maybe_text,
                "loyalty_card": maybe_text,
                "identifiers": st.lists(text, max_size=8),
                "meta": st.dictionaries(text, some_json, max_size=3),
            },
        ),
    },
)
options = st.lists(st.sampled_from(sorted(set(OPTIONS) - {"BASE_URL", "API_KEY"})), unique=True).map(
    lambda names: {name: OPTIONS[name] for name in ("BASE_URL", "API_KEY", *names)}
)
session_id = text.filter(lambda session: session not in (".", "..") and session.isprintable())


def put_of(conversation: Conversation[Any]) -> EngineRequest:
    """Return the first request that writes; a read before it finds no session."""
    request = first(conversation)
    return request if request.method == "PUT" else one_request(conversation.send(reply({"message": "no"}, 404)))


def requests(talon: TalonOne, checkout: documents.Checkout, session: str) -> list[EngineRequest]:
    puts = [put_of(conversation(checkout, session)) for conversation in (talon.validate, talon.check, talon.redeem)]
    return [*puts, first(talon.look_up(checkout, session)), first(talon.undo(checkout, session))]


def numbers(value: Any) -> Any:
    """Decode JSON with exact numbers, so that 60.00 equals 60.0 and 60."""
    return json.loads(value, parse_float=Decimal, parse_int=Decimal)


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(body=body, options=options, key=st.sampled_from(["", "a secret"]), session=session_id)
def test_vendor_model_round_trips_every_request_body(
    sdk: Sdk, body: dict[str, Any], options: dict[str, str], key: str, session: str
) -> None:
    talon = TalonOne({**options, "IDENTIFIERS_KEY": key})
    checkout = parse(body)
    bodies = [request.body for request in requests(talon, checkout, session) if request.body]
    assert len(bodies) == 3, "open, check and close"
    for sent in bodies:
        # The model drops fields that it does not know, so this also finds names that are not the vendor's.
        assert numbers(sdk.model.from_json(sent).to_json()) == numbers(sent)


@quick
@given(session=session_id)
def test_requests_match_method_path_and_headers_of_vendor_client(sdk: Sdk, session: str) -> None:
    checkout = parse({"items": []})
    talon = TalonOne(OPTIONS)
    (account,) = talon.accounts.values()
    puts = [sdk.put(session, dry) for dry in (False, True, False)]
    theirs = [*puts, sdk.get(session), sdk.reopen(session)]
    for ours, (method, url, headers) in zip(requests(talon, checkout, session), theirs, strict=True):
        assert ours.method == method
        path, _, query = (account.base_url + ours.path).partition("?")
        their_path, _, their_query = url.partition("?")
        assert (path, query.lower()) == (their_path, their_query.lower())
        assert unquote(path.removeprefix(HOST).split("/")[3]) == session
        assert dict(account.headers)["Authorization"] == headers["Authorization"]
        assert ours.body == b"" or dict(ours.headers)["Content-Type"] == headers["Content-Type"]


def test_cancel_body_fits_the_vendor_model(sdk: Sdk) -> None:
    conversation = adapter().undo(None, "s", "/s", final=True)
    assert first(conversation).method == "GET"
    cancel = one_request(conversation.send(reply({"customerSession": {"state": "closed"}, "effects": []})))
    assert numbers(sdk.model.from_json(cancel.body).to_json()) == numbers(cancel.body)
    assert json.loads(cancel.body)["customerSession"] == {"state": "cancelled"}


def test_vendor_model_rejects_invalid_sessions(sdk: Sdk) -> None:
    for wrong in (
        {"identifiers": ["a"] * 6},
        {"couponCodes": ["x" * 101]},
        {"referralCode": "x" * 101},
        {"loyaltyCards": ["card-1", "card-2"]},
        {"cartItems": [{"sku": "A", "quantity": 0}]},
        {"cartItems": [{"sku": "A", "quantity": 1, "price": "1.00"}]},
    ):
        with pytest.raises(ValueError, match="validation error"):
            sdk.model.from_json(json.dumps({"customerSession": wrong}))
