"""Writes docs/performance.md, from all that has been measured and may be published."""

from bench import consume, memory, overload, parts, plot, report, results

PAGE, PICTURE = results.ROOT / "docs" / "performance.md", results.ROOT / "docs" / "performance.svg"

SECTIONS = {
    "parts": parts.section,
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
    PICTURE.write_text(plot.picture(full), "utf-8")
    PAGE.write_text(report.page(full, PICTURE.name, more), "utf-8")
    print(f"{PAGE.relative_to(results.ROOT)} is written.")
