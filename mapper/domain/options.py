"""The options of an adapter. One declaration serves to read, validate and document them.

The option `BASE_URL` of the engine `acme` is the setting `ACME_BASE_URL`; a secret may also be given as the path of a
file, `ACME_API_KEY_FILE`. An adapter gets the values by name: trimmed, validated, with defaults. A variant with a
suffix (`Option.suffixes`) that is not set is absent.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args
from urllib.parse import urlsplit

import msgspec

Kind = Literal["text", "url", "choice", "pointer", "map", "int", "secret"]
Problems = list[tuple[str, str]]
"""Pairs of (option name, without prefix; what is expected)."""

ENGINE_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("mapper", "nacelle", "noms")
"""Prefixes of the service's own settings, with which no engine's name may begin."""

_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_VISIBLE = re.compile(r"[!-~]+")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)+")
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_INT = re.compile(r"[0-9]{1,15}")


class Misconfigured(Exception):
    """The problems with an adapter's options: pairs of (option name without prefix, what is expected)."""

    def __init__(self, problems: Problems) -> None:
        super().__init__("; ".join(f"{name}: {expected}" for name, expected in problems))
        self.problems = problems


class Option(msgspec.Struct, frozen=True):
    """One setting of an adapter. Its environment variable has the engine's name as its prefix: `ACME_BASE_URL`."""

    name: str
    """Without the prefix: capitals, digits and underscores."""
    meaning: str
    """A line for the table of settings."""
    default: str | None = ""
    """None: required."""
    secret: bool = False
    """Never shown, and may be given as a file (`ACME_API_KEY_FILE`)."""
    kind: Kind = "text"
    """- `url`: https, or http to this machine
    - `choice`: one of `choices`
    - `pointer`: a JSON pointer
    - `map`: comma-separated `name=/json/pointer`
    - `int`: a whole number, from the first of `choices` to the last
    - `secret`: printable ASCII without blanks
    """
    choices: tuple[str, ...] = ()
    """For `choice`: all values. For `int`: the least and the greatest."""
    suffixes: tuple[str, ...] = ()
    """Optional variants, such as one for each currency: "EUR" adds `BASE_URL_EUR`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, and the names with a suffix."""
        return (self.name, *(f"{self.name}_{suffix}" for suffix in self.suffixes))


def names(options: Iterable[Option]) -> frozenset[str]:
    """All names of these options, without the engine's prefix."""
    return frozenset(name for option in options for name in option.names)


def read(options: Iterable[Option], given: Mapping[str, str]) -> tuple[dict[str, str], Problems]:
    """The values of these options by name, and their problems. A wrong value is returned unchanged."""
    values: dict[str, str] = {}
    problems: Problems = []
    for option in options:
        for name in option.names:
            value = given.get(name, "").strip()
            fault = _fault(option, value) if value else _missing(option, name)
            if fault:
                problems.append((name, fault))
            if value:
                values[name] = value.rstrip("/") if option.kind == "url" else value
            elif name == option.name:
                values[name] = option.default or ""
    return values, problems


def pairs(value: str) -> dict[str, str]:
    """The value of an option of the kind `map`: JSON pointers by name."""
    entries = [entry.partition("=") for entry in value.split(",") if entry.strip()]
    return {name.strip(): pointer.strip() for name, _, pointer in entries}


def fault(option: object) -> str:
    """The problem with a declaration; "" for none."""
    if not isinstance(option, Option):
        return f"an option is an Option, not {type(option).__name__}"
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in option.names):
        return f"an option's name is like BASE_URL, not {option.name!r}"
    if option.kind not in get_args(Kind):
        return f"the option {option.name} has a kind that is not one of {', '.join(get_args(Kind))}"
    if option.kind == "choice" and not option.choices:
        return f"the option {option.name} is a choice of nothing: choices"
    if option.kind == "int" and not (len(option.choices) == 2 and all(map(_INT.fullmatch, option.choices))):
        return f"the option {option.name} is an int from where to where: choices=(least, greatest)"
    if option.default and _fault(option, option.default):
        return f"the option {option.name} has a default that is not {_fault(option, option.default)}"
    return ""


def url_fault(url: str) -> str:
    """What is expected instead of this URL, for requests that carry a key; "" where it is right."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    local = parts.scheme == "http" and _LOOPBACK.fullmatch(host)
    if not host or not _VISIBLE.fullmatch(url) or "\\" in url or not (parts.scheme == "https" or local):
        return "an https address (http is for this very machine only: the key would be sent in the open)"
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        return "an address without user name, query and fragment"
    return ""


def _missing(option: Option, name: str) -> str:
    return option.meaning if option.default is None and name == option.name else ""


def _fault(option: Option, value: str) -> str:
    """What is expected instead of the value, without showing it; "" where it is right."""
    match option.kind:
        case "url":
            return url_fault(value)
        case "choice":
            return "" if value in option.choices else f"one of {', '.join(filter(None, option.choices))}"
        case "pointer":
            return "" if _POINTER.fullmatch(value) else "a JSON pointer such as /customer/id"
        case "map":
            return _map_fault(value)
        case "int":
            least, most = (int(choice) for choice in option.choices)
            right = _INT.fullmatch(value) and least <= int(value) <= most
            return "" if right else f"a whole number from {least} to {most}"
        case "secret":
            return "" if _VISIBLE.fullmatch(value) else "the secret alone: printable ASCII without blanks"
        case "text":
            return ""


def _map_fault(value: str) -> str:
    names: set[str] = set()
    for entry in filter(None, map(str.strip, value.split(","))):
        name, _, pointer = map(str.strip, entry.partition("="))
        if not name or not _POINTER.fullmatch(pointer):
            return f"a comma-separated list of name=/json/pointer; {entry!r} is none"
        if name in names:
            return f"each name once; {name!r} is there twice"
        names.add(name)
    return ""
