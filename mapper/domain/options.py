"""The options of an adapter: declared once, and read, checked and listed from that.

An option `BASE_URL` of the engine `acme` is the setting `ACME_BASE_URL`; one that is secret may also be given as the
path of a file, `ACME_BASE_URL_FILE`. An adapter is handed plain text by name, trimmed, checked, and with defaults in
place; only a variant (`Option.suffixes`) that is not set is left out.
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
"""No engine's name begins with one of these: their prefixes are the service's own settings."""

_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_VISIBLE = re.compile(r"[!-~]+")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)+")
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_INT = re.compile(r"[0-9]{1,15}")


class Misconfigured(Exception):
    """What is wrong with an adapter's options: pairs of (option name without prefix, what is expected)."""

    def __init__(self, problems: Problems) -> None:
        super().__init__("; ".join(f"{name}: {expected}" for name, expected in problems))
        self.problems = problems


class Option(msgspec.Struct, frozen=True):
    """One setting of an adapter. Its name in the environment has the engine's before it: `ACME_BASE_URL`."""

    name: str
    """Without that prefix: capitals, digits and underscores."""
    meaning: str
    """A line for the table of settings."""
    default: str | None = ""
    """None: it must be set."""
    secret: bool = False
    """It is never shown, and may be given as a file (`ACME_API_KEY_FILE`)."""
    kind: Kind = "text"
    """url: https, or http to this machine. choice: one of `choices`. pointer: a JSON pointer. map: comma-separated
    `name=/json/pointer`. int: a whole number, from the first of `choices` to the last. secret: printable, no blanks."""
    choices: tuple[str, ...] = ()
    """For `choice`: all values. For `int`: the least and the greatest."""
    suffixes: tuple[str, ...] = ()
    """Variants of the option, such as one for each currency: "EUR" makes `BASE_URL_EUR`. None of them must be set."""

    @property
    def names(self) -> tuple[str, ...]:
        """The option's own name, and those with a suffix."""
        return (self.name, *(f"{self.name}_{suffix}" for suffix in self.suffixes))


def names(options: Iterable[Option]) -> frozenset[str]:
    """All names, without the engine's prefix, that these options have."""
    return frozenset(name for option in options for name in option.names)


def read(options: Iterable[Option], given: Mapping[str, str]) -> tuple[dict[str, str], Problems]:
    """The values of these options by name, and all that is wrong with them; a wrong one is as it was given."""
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
    """What an option of the kind `map` holds: JSON pointers by name."""
    entries = [entry.partition("=") for entry in value.split(",") if entry.strip()]
    return {name.strip(): pointer.strip() for name, _, pointer in entries}


def fault(option: object) -> str:
    """What is wrong with a declaration; "" where nothing is."""
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
    """Why requests with a key in them cannot go there; "" where they can."""
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
    """What is expected instead of the value, which may be a secret and is not shown; "" where it is right."""
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
    found: set[str] = set()
    for entry in filter(None, map(str.strip, value.split(","))):
        name, _, pointer = map(str.strip, entry.partition("="))
        if not name or not _POINTER.fullmatch(pointer):
            return f"a comma-separated list of name=/json/pointer; {entry!r} is none"
        if name in found:
            return f"each name once; {name!r} stands twice"
        found.add(name)
    return ""
