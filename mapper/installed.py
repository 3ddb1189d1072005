"""Loads an installed adapter by its entry point, and checks it against the contract before the service starts."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, get_args

from mapper.adapter import CONTRACT, Account, Adapter, Capabilities, Misconfigured
from mapper.domain import options
from mapper.domain.options import ENGINE_NAME, RESERVED, Problems

_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t -~]*")


class BrokenAdapter(Exception):
    """The message names the adapter, its distribution, and the fault."""


def load(point: EntryPoint) -> Any:
    """Returns the adapter's class, with its declared options checked. Raises `BrokenAdapter`."""
    if not ENGINE_NAME.fullmatch(point.name) or point.name.split("_")[0] in RESERVED:
        raise _broken(
            point, f"has no valid name: a name is [a-z][a-z0-9_]* and does not begin with {' or '.join(RESERVED)}"
        )
    try:
        factory = point.load()
    except Exception as error:
        raise _broken(point, f"cannot be loaded: {type(error).__name__}: {error}") from error
    if getattr(factory, "contract", None) != CONTRACT:
        written = getattr(factory, "contract", "none")
        raise _broken(point, f"is written for contract {written}; this service has contract {CONTRACT}")
    declared = getattr(factory, "options", None)
    if not isinstance(declared, tuple):
        raise _broken(point, "declares no options: a tuple of Option")
    if fault := next(filter(None, map(options.fault, declared)), ""):
        raise _broken(point, f"is declared wrongly: {fault}")
    all_names = [name for option in declared for name in option.names]
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise _broken(point, f"is declared wrongly: two options are named {twice[0]}")
    return factory


def build(point: EntryPoint, factory: Any, given: Mapping[str, str]) -> tuple[Adapter | None, Problems]:
    """Returns the adapter with these options, or the faults of the options. Raises `BrokenAdapter`."""
    values, problems = options.read(factory.options, given)
    try:
        adapter: Adapter = factory(values)
    except Misconfigured as error:
        named = {name for name, _ in problems}
        return None, problems + [problem for problem in error.problems if problem[0] not in named]
    except Exception as error:
        if problems:  # they may have caused the exception
            return None, problems
        raise _broken(point, f"cannot be made: {type(error).__name__}: {error}") from error
    if problems:
        return None, problems
    if fault := next(filter(None, _faults(point.name, adapter)), ""):
        raise _broken(point, fault)
    return adapter, []


def _broken(point: EntryPoint, what: str) -> BrokenAdapter:
    where = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
    return BrokenAdapter(f"the adapter {point.name!r} of {where} {what}")


def _faults(name: str, adapter: Any) -> Iterable[str]:
    if getattr(adapter, "name", None) != name:
        yield f"calls itself {getattr(adapter, 'name', None)!r}"
    able = getattr(adapter, "capabilities", None)
    yield _capabilities_fault(able)
    # The number of positional arguments and the keyword arguments of each method.
    methods: dict[str, tuple[int, tuple[str, ...]]] = {"validate": (2, ()), "redeem": (2, ()), "look_up": (3, ())}
    optional: dict[str, tuple[int, tuple[str, ...]]] = {"check": (2, ()), "undo": (3, ("final",)), "repair": (3, ())}
    methods |= {method: arguments for method, arguments in optional.items() if getattr(able, method)}
    for method, (count, named) in methods.items():
        yield _method_fault(method, getattr(adapter, method, None), count, named)
    accounts = getattr(adapter, "accounts", None)
    if not isinstance(accounts, Mapping) or not accounts:
        yield "has no accounts: at least one Account by name"
        return
    for key, account in accounts.items():
        yield _account_fault(key, account)


def _capabilities_fault(able: object) -> str:
    if not isinstance(able, Capabilities):
        return "declares no capabilities: Capabilities(…)"
    flags = (able.check, able.undo, able.repair, able.referral, able.loyalty, able.gift_cards, able.automatic)
    if not all(isinstance(flag, bool) for flag in flags):
        return "declares capabilities that are neither True nor False"
    if able.currencies not in get_args(Capabilities.__annotations__["currencies"]):
        return "declares currencies that are neither one nor many"
    if able.most_codes is not None and (type(able.most_codes) is not int or able.most_codes < 0):
        return "declares a most_codes that is not a whole number"
    return ""


def _method_fault(method: str, found: Callable[..., object] | None, count: int, named: tuple[str, ...]) -> str:
    if not callable(found):
        return f"has no method {method}"
    try:
        inspect.signature(found).bind(*range(count), **dict.fromkeys(named))
    except TypeError as error:
        return f"has a method {method} that is not called as the contract says: {error}"
    return ""


def _account_fault(name: object, account: object) -> str:
    if not isinstance(name, str) or not isinstance(account, Account):
        return "has accounts that are not Accounts by name"
    if fault := options.url_fault(account.base_url):
        return f"has an account whose base URL is not {fault}"
    for header, value in account.headers:
        if not _HEADER.fullmatch(header) or not _HEADER_VALUE.fullmatch(value):
            return f"has an account with a header {header!r} that HTTP cannot carry"
    return ""
