"""The README's tables are those of the program. `python -m tests.test_readme` writes them anew."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.talon_one import effects
from adapters.talon_one import reasons as words
from adapters.talon_one.options import KNOWN
from adapters.voucherify import effects as voucherify
from adapters.voucherify import reasons as keys
from adapters.voucherify.options import KNOWN as VOUCHERIFY
from mapper import settings
from mapper.domain import errors
from mapper.domain.reasons import REASONS

README = Path(__file__).parent.parent / "README.md"

BECOMES = {
    "order": "order",
    "item": "line; with `scope` `additionalCosts`: cost; `itemTotal`: line, and cost for what exceeds it",
    "cost": "cost",
    "item_cost": "cost, with the line's position",
    "accept": "notice; its code earned what it triggered",
    "refuse": "a refused code",
    "notice": "notice",
}


def tables() -> dict[str, list[str]]:
    from_engine: dict[str, list[str]] = {}
    of_voucherify: dict[str, list[str]] = {}
    for word, reason in sorted({**words.COUPON, **words.REFERRAL}.items()):
        from_engine.setdefault(reason, []).append(f"`{word}`")
    for key, fault in sorted(keys.FAULTS.items()):
        if fault.kind == "code":
            of_voucherify.setdefault(fault.reason, []).append(f"`{key}`")
    plain: dict[str, Sequence[Sequence[str]]] = {
        "settings": [("name", "meaning", "default")]
        + [(f"`{name}`", meaning, default and f"`{default}`") for name, (default, meaning) in settings.TABLE.items()],
        "reasons": [("reason", "message", "Talon.One's words", "Voucherify's words")]
        + [
            (f"`{word}`", message, ", ".join(from_engine.get(word, [])), ", ".join(of_voucherify.get(word, [])))
            for word, message in REASONS.items()
        ],
        "voucherify": [("effect", "becomes")] + [(f"`{name}`", _becomes(name)) for name in voucherify.EFFECTS],
        "effects": [("effect", "becomes")]
        + [(f"`{name}`", BECOMES[row.becomes]) for name, row in effects.TABLE.items()],
    }
    return {name: markdown(rows) for name, rows in plain.items()}


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
    assert found, f"the README has no table {name}"
    return found[1]


@pytest.mark.parametrize("name", ["settings", "reasons", "effects", "voucherify"])
def test_the_readmes_tables_are_those_of_the_program(name: str) -> None:
    assert section(README.read_text("utf-8"), name).splitlines() == tables()[name]


def test_the_readme_lists_every_category_with_its_status() -> None:
    rows = re.findall(r"^\|[^|]*\| *(\d*) *\| *(\d*) *\| `(\w+)` \|$", README.read_text("utf-8"), re.MULTILINE)
    listed = {category: (validate, consume) for validate, consume, category in rows}
    assert set(listed) == set(errors.STATUS)
    for category, (validate, consume) in errors.STATUS.items():
        assert listed[category][1] == str(consume)
        assert listed[category][0] in ("", str(validate))


def test_the_readme_names_every_option_of_talon_one() -> None:
    text = README.read_text("utf-8")
    plain = {name for name in KNOWN if not re.search(r"_[A-Z]{3}$", name)} | {"API_KEY", "BASE_URL_EUR", "API_KEY_EUR"}
    for name in plain:
        assert f"`TALON_ONE_{name}`" in text


def test_the_readme_names_every_option_of_voucherify() -> None:
    text = README.read_text("utf-8")
    for name in VOUCHERIFY:
        assert f"`VOUCHERIFY_{name}`" in text


def write() -> None:
    text = README.read_text("utf-8")
    for name, rows in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = text.replace(start + section(text, name) + end, start + "".join(f"{row}\n" for row in rows) + end)
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
