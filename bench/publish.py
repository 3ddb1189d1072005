"""Writes docs/performance.md, from all that has been measured and may be published."""

from bench import consume, memory, overload, report, results

PAGE = results.ROOT / "docs" / "performance.md"

SECTIONS = {
    "overload": overload.section,
    "memory": memory.section,
    "consume": consume.section,
}


def performance() -> None:
    """Without the comparison there is no page; of the other sections, those that have been measured."""
    full = results.read("full")
    if full is None:
        print("docs/performance.md waits for `make bench`.")
        return
    found = {name: results.read(name) for name in SECTIONS}
    more = [SECTIONS[name](one) for name, one in found.items() if one is not None]
    PAGE.write_text(report.page(full, more), "utf-8")
    print(f"{PAGE.relative_to(results.ROOT)} is written.")
