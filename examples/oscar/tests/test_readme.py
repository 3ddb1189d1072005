"""The README's table of settings equals the options."""

from pathlib import Path

from promotions_oscar.options import OPTIONS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_readme_lists_the_adapters_settings() -> None:
    table = README.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
    defaults = {option.name: "must be set" if option.default is None else option.default for option in OPTIONS}
    rows = [f"| `OSCAR_{option.name}` | {option.meaning} | {defaults[option.name]} |" for option in OPTIONS]
    assert table.splitlines()[2:] == rows
