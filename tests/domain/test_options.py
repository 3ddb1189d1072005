"""Options are declared once; reading and checking use the declaration."""

from typing import Any

import pytest

from mapper.domain.options import Option, fault, names, pairs, read

GOOD_AND_WRONG: list[tuple[Option, list[str], list[str]]] = [
    (Option("X", "x"), ["anything, at all"], []),
    (
        Option("X", "x", kind="url"),
        ["https://a.b", "https://a.b:8443/c", "http://localhost:1", "http://127.0.0.2", "http://[::1]:1"],
        [
            *("a.b", "ftp://a.b", "http://a.b", "http://localhost.a.b", "https://", "https://u@a.b", "https://:p@a.b"),
            *("https://a.b?x", "https://a.b#x", "https://a.b:port", "https://[::1", "https://a b", "https://a.b\\c"),
        ],
    ),
    (Option("X", "x", kind="choice", choices=("", "one", "two")), ["one", "two"], ["three", "ONE", "one,two"]),
    (Option("X", "x", kind="pointer"), ["/a", "/a/b", "/a~1b/~0", "/"], ["a", "/a~2", "a/b"]),
    (Option("X", "x", kind="map"), ["a=/b", "a=/b, c=/d,"], ["a", "=/b", "a=b", "a=/b,a=/c"]),
    (
        Option("X", "x", kind="int", choices=("3", "17")),
        ["3", "17", "05"],
        ["2", "18", "-3", "4.0", "four", "٤", "1e1"],
    ),
    (Option("X", "x", kind="secret", secret=True), ["abc-123"], ["a b", "a\nb", "é"]),
]


@pytest.mark.parametrize(("option", "good", "wrong"), GOOD_AND_WRONG, ids=lambda one: getattr(one, "kind", ""))
def test_value_is_checked_by_the_options_kind(option: Option, good: list[str], wrong: list[str]) -> None:
    assert fault(option) == ""
    for value in good:
        assert read([option], {"X": f" {value} "}) == ({"X": value}, []), value
    for value in wrong:
        _, problems = read([option], {"X": value})
        assert [name for name, _ in problems] == ["X"], value
        assert not option.secret or value not in problems[0][1]


def test_defaults_apply_and_all_problems_are_listed_at_once() -> None:
    options = [
        Option("URL", "where it is", None, kind="url", suffixes=("EUR",)),
        Option("KEY", "its key", None, secret=True),
        Option("N", "a number", "4", kind="int", choices=("0", "9")),
        Option("T", "a text"),
    ]
    assert names(options) == {"URL", "URL_EUR", "KEY", "N", "T"}
    values, problems = read(options, {"N": " ", "URL_EUR": "x", "OTHER": "y"})
    assert [name for name, _ in problems] == ["URL", "URL_EUR", "KEY"]
    assert dict(problems)["KEY"] == "its key"
    assert values == {"URL": "", "URL_EUR": "x", "KEY": "", "N": "4", "T": ""}
    right = {"URL": "https://a.b/", "KEY": "k"}
    assert read(options, right) == ({"URL": "https://a.b", "KEY": "k", "N": "4", "T": ""}, [])


def test_map_is_parsed_into_pointers_by_name() -> None:
    assert pairs(" a = /b ,c=/d=e, ") == {"a": "/b", "c": "/d=e"}
    assert pairs("") == {}


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("BASE_URL", "not str"),
        (Option("base_url", "x"), "base_url"),
        (Option("_X", "x"), "_X"),
        (Option("X", "x", suffixes=("eur",)), "X"),
        (Option("X", "x", kind="url list"), "kind"),  # type: ignore[arg-type]
        (Option("X", "x", kind="choice"), "choice of nothing"),
        (Option("X", "x", kind="int"), "from where to where"),
        (Option("X", "x", kind="int", choices=("0", "many")), "from where to where"),
        (Option("X", "x", "12", kind="int", choices=("0", "9")), "default"),
        (Option("X", "x", "three", kind="choice", choices=("one",)), "default"),
    ],
)
def test_invalid_option_declaration_is_reported(option: Any, problem: str) -> None:
    assert problem in fault(option)
