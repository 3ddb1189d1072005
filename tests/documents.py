"""Random checkouts and orders as JSON text, in every spelling that JSON allows, and an independent reader.

The reader keeps each token as spelled, so that two documents can be compared byte for byte, node by node.
"""

import json
import re
from typing import Any

from hypothesis import strategies as st

from mapper.domain import money

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[-+0-9.eE]+|true|false|null|[{}\[\]:,])\s*', re.DOTALL)


def read(text: bytes) -> Any:
    """Return a tree of dicts and lists whose leaves and keys are the tokens as spelled."""
    tokens = _TOKEN.findall(text.decode())
    assert "".join(_TOKEN.sub("", text.decode()).split()) == ""
    value, end = _read(tokens, 0)
    assert end == len(tokens)
    return value


def _read(tokens: list[str], at: int) -> tuple[Any, int]:
    token = tokens[at]
    if token not in "{[":
        return token, at + 1
    at += 1
    members: dict[str, Any] = {}
    items: list[Any] = []
    while tokens[at] not in "}]":
        if token == "{":
            key = tokens[at]
            value, at = _read(tokens, at + 2)
            members[key] = value
        else:
            value, at = _read(tokens, at)
            items.append(value)
        at += tokens[at] == ","
    return (members if token == "{" else items), at + 1


# -- Texts ---------------------------------------------------------------------------------------------------------

space = st.sampled_from(["", "", "", " ", "\n  ", "\t"])
_escapes = st.sampled_from(
    ['"\\u00e9t\\u00e9"', '"a\\/b"', '"\\n\\t"', '"é"', '"\\ud83d\\ude00"', '"{\\"price\\": 1}"', '":,]}"']
)
_numbers = st.sampled_from(["1.10", "1e3", "-0", "12345678901234567890", "1E-7", "0.1000", "1e999999999"])
_scalars = st.one_of(_escapes, _numbers, st.sampled_from(["true", "false", "null", '""']))


@st.composite
def _object(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    """Members in random order, with random white space around every token."""
    shuffled = draw(st.permutations(members))
    parts = [
        f"{draw(space)}{json.dumps(key)}{draw(space)}:{draw(space)}{value}{draw(space)}" for key, value in shuffled
    ]
    return "{" + ",".join(parts) + draw(space) * (not parts) + "}"


@st.composite
def unknown_members(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Members that the contract does not name; some contain names that it does, one level down."""
    inner = draw(_object([("price", '"1"'), ("discounts", "[]"), ("meta", draw(_scalars))]))
    value = st.one_of(
        _scalars, st.just(inner), st.lists(_scalars, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
    )
    keys = draw(
        st.lists(
            st.sampled_from(["title", "available", "x-ünknown", 'quo"te', "a/b~c", "tax_amount"]),
            unique=True,
            max_size=4,
        )
    )
    return [(key, draw(value)) for key in keys]


def amount_text(minor: int, digits: int) -> str:
    return f'"{money.text(minor, digits)}"'


@st.composite
def line(draw: st.DrawFn, family: str, digits: int) -> str:
    price = amount_text(draw(st.integers(0, 50_000)), digits)
    price = draw(st.sampled_from([price, price.strip('"')]))
    names = draw(st.sampled_from([["sku"], ["variant_id"], ["product_id", "sku"]]))
    members = [(name, json.dumps(f"{name}-{draw(st.integers(0, 9))}")) for name in names]
    members += [
        ("quantity", str(draw(st.integers(0, 7)))),
        ("price" if family == "A" else draw(st.sampled_from(["price", "price_amount"])), price),
    ]
    listed = draw(st.sampled_from(["", "", "[]", "null"]))
    if listed:
        members.append(("discounts" if family == "A" else "applied_discounts", listed))
    return draw(_object(members + draw(unknown_members())))


@st.composite
def promotions(draw: st.DrawFn) -> str:
    meta = draw(st.sampled_from(["", "null", "{}", "[]", '{"keep": 1.10}', '{"a":1,"mapper":{"old":1}}']))
    members = [("coupon_codes", draw(st.sampled_from(["[]", '["A", "B"]', "null"]))), ("referral_code", '""')]
    return draw(_object([*members, *([("meta", meta)] if meta else []), *draw(unknown_members())]))


@st.composite
def checkouts(draw: st.DrawFn, families: str = "ABC") -> bytes:
    """A whole body of one of the three families."""
    family = draw(st.sampled_from(families))
    currency, digits = draw(st.sampled_from([("USD", 2), ("JPY", 0), ("KWD", 3)]))
    members = [("currency", f'"{currency}"'), ("id", '"c-1"'), *draw(unknown_members())]
    if draw(st.booleans()):
        members.append(("promotions" if family == "A" else "promotion", draw(promotions())))
    if family == "A":
        members.append(("items", _lines(draw, family, digits)))
    elif family == "B":
        members.append(("order_items", _lines(draw, family, digits)))
    else:
        orders = [
            draw(_object([("order_items", _lines(draw, "B", digits)), *draw(unknown_members())]))
            for _ in range(draw(st.integers(0, 3)))
        ]
        members.append(("orders", f"[{', '.join(orders)}]"))
    return (draw(space) + draw(_object(members)) + draw(space)).encode()


def _lines(draw: st.DrawFn, family: str, digits: int) -> str:
    lines = draw(st.lists(line(family, digits), max_size=4))
    return "[" + draw(space) + f"{draw(space)},{draw(space)}".join(lines) + "]"
