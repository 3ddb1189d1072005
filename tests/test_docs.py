"""The docs are up to date: their tables match the program, and the README's commands work as printed.

`python -m tests.test_docs` regenerates the tables.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from starlette.routing import Route

from adapters.talon_one import TalonOne, effects
from adapters.talon_one import reasons as words
from adapters.voucherify import Voucherify
from adapters.voucherify import effects as voucherify
from adapters.voucherify import reasons as keys
from mapper import settings
from mapper.adapter import Capabilities, Option
from mapper.commands import cli
from mapper.domain import errors
from mapper.domain.languages import HINTS
from mapper.domain.reasons import Reason
from mapper.http import app
from mapper.ops import metrics
from tests import fakes

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = {
    "settings": ROOT / "docs" / "settings.md",
    "reasons": ROOT / "docs" / "reasons.md",
    "effects": ROOT / "docs" / "effects.md",
    "metrics": ROOT / "docs" / "operations.md",
    "voucherify_effects": ROOT / "docs" / "effects.md",
    "talon_one": ROOT / "docs" / "settings.md",
    "voucherify": ROOT / "docs" / "settings.md",
    "capabilities": ROOT / "adapters" / "README.md",
}
WORDS: dict[object, str] = {True: "yes", False: "no", None: "no limit known"}
ENGINES = {"talon_one": TalonOne.options, "voucherify": Voucherify.options}

BECOMES = {
    "order": "order",
    "item": "line; with `scope` `additionalCosts`: cost; `itemTotal`: line, and cost for what exceeds it",
    "cost": "cost",
    "item_cost": "cost, with the line's position",
    "accept": "notice; its code earned what it triggered",
    "reject": "a refused code",
    "notice": "notice",
}


def tables() -> dict[str, list[str]]:
    from_engine: dict[str, list[str]] = {}
    of_voucherify: dict[str, list[str]] = {}
    for word, reason in sorted({**words.COUPON, **words.REFERRAL}.items()):
        from_engine.setdefault(reason, []).append(f"`{word}`")
    for key in sorted(keys.FAULTS):
        if (word := keys.reason(key)) is not Reason.OTHER:
            of_voucherify.setdefault(word, []).append(f"`{key}`")
    plain: dict[str, Sequence[Sequence[str]]] = {
        "settings": [("name", "meaning", "default")]
        + [(f"`{name}`", meaning, default and f"`{default}`") for name, (default, meaning) in settings.TABLE.items()],
        "metrics": [("metric", "labels", "says")]
        + [(f"`{row.name}`", ", ".join(f"`{label}`" for label in row.labels), row.meaning) for row in metrics.TABLE],
        **{engine: _options(engine, options) for engine, options in ENGINES.items()},
        "capabilities": _capabilities(),
        "reasons": [("reason", "message", "a hint for the merchant", "Talon.One's words", "Voucherify's words")]
        + [
            (
                f"`{word}`",
                word.message,
                HINTS[word],
                ", ".join(from_engine.get(word, [])),
                ", ".join(of_voucherify.get(word, [])),
            )
            for word in Reason
        ],
        "voucherify_effects": [("effect", "becomes")] + [(f"`{name}`", _becomes(name)) for name in voucherify.EFFECTS],
        "effects": [("effect", "becomes")] + [(f"`{name}`", BECOMES[row.kind]) for name, row in effects.TABLE.items()],
    }
    return {name: markdown(rows) for name, rows in plain.items()}


def _options(engine: str, options: Iterable[Option]) -> list[tuple[str, str, str]]:
    rows = [("name", "meaning", "default")]
    for option in options:
        names = f"`{engine.upper()}_{option.name}`"
        if option.suffixes:
            names += (
                f", `{engine.upper()}_{option.name}_{'EUR' if 'EUR' in option.suffixes else option.suffixes[0]}`, …"
            )
        default = "must be set" if option.default is None else option.default and f"`{option.default}`"
        rows.append((names, option.meaning, default))
    return rows


def _capabilities() -> list[tuple[str, ...]]:
    engines = (TalonOne.capabilities, Voucherify.capabilities)
    rows: list[tuple[str, ...]] = [("capability", "Talon.One", "Voucherify")]
    for name in Capabilities.__struct_fields__:
        values = (getattr(able, name) for able in engines)
        rows.append((f"`{name}`", *(WORDS.get(value, str(value)) for value in values)))
    return rows


def _becomes(effect: str) -> str:
    if effect == voucherify.FREE_SHIPPING:
        return "cost: the checkout's own shipping price"
    if effect.startswith(("ADD_", "REPLACE_")):
        return "line, for units that are in the cart; notice, for what would be added"
    return "line" if effect.startswith(voucherify.APPLY_TO_ITEMS) else "order"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def section(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"there is no table {name}"
    return found[1]


@pytest.mark.parametrize("name", PAGES)
def test_generated_tables_are_up_to_date(name: str) -> None:
    assert section(PAGES[name].read_text("utf-8"), name).splitlines() == tables()[name]


def test_readme_lists_every_error_category_with_its_status() -> None:
    rows = re.findall(r"^\|[^|]*\| *(\d*) *\| *(\d*) *\| `(\w+)` \|$", README.read_text("utf-8"), re.MULTILINE)
    listed = {category: (validate, consume) for validate, consume, category in rows}
    assert set(listed) == set(errors.STATUS)
    for category, (validate, consume) in errors.STATUS.items():
        assert listed[category][1] == str(consume)
        assert listed[category][0] in ("", str(validate))


def operations() -> str:
    return (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_operations_lists_every_route() -> None:
    application = app.create(
        fakes.settings(
            fakes.FakeAdapter(),
            MAPPER_EXPLAIN="on",
            MAPPER_EXPLAIN_TOKEN="x" * 16,
            MAPPER_CANCEL_SECRETS="a secret for cancelling",
            **fakes.INGESTING,
        ),
        engine_transport=fakes.FakeTransport(),
    )
    served = {route.path for route in application.routes if isinstance(route, Route)}
    assert set(re.findall(r"^\| `(?:GET|POST) (/[^ `]*)`", operations(), re.MULTILINE)) == served


def test_operations_lists_every_command() -> None:
    actions = cli._parser()._actions
    (commands,) = [set(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction)]
    assert set(re.findall(r"^\| `promotions-mapper ([a-z-]+)", operations(), re.MULTILINE)) == commands


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
def test_readme_commands_work(tmp_path: Path) -> None:
    """Paste them into a shell in an empty folder, with free ports instead of the README's."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    script = "set -eu\n" + "\n".join(block for block in blocks if "promotions-mapper serve" in block or "curl" in block)
    script = script.replace("promotions-mapper serve", "promotions-mapper serve --port 8080")
    script = script.replace("promotions-mapper sandbox", "promotions-mapper sandbox --port 8090")
    for port, free in zip(("8080", "8090"), free_ports(2), strict=True):
        script = script.replace(port, str(free))
    script = script.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        timeout=180,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    printed = done.stdout.decode()
    assert '{"checkout":' in printed, done.stderr
    checkout = json.JSONDecoder().raw_decode(printed, printed.index('{"checkout":'))[0]["checkout"]
    order = json.JSONDecoder().raw_decode(printed, printed.index('{"order":'))[0]
    assert (checkout["order_items"][0]["price"], checkout["discounts"]) == ("105.00", "50.00"), done.stderr
    assert order == {"order": {**checkout, "promotions": order["order"]["promotions"]}}
    assert "state  redeemed (DONE)" in printed


def free_ports(count: int) -> list[int]:
    """Return unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def write() -> None:
    for name, rows in tables().items():
        text = PAGES[name].read_text("utf-8")
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = text.replace(start + section(text, name) + end, start + "".join(f"{row}\n" for row in rows) + end)
        PAGES[name].write_text(text, "utf-8")


if __name__ == "__main__":
    write()
