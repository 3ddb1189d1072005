"""Makes a package of `new-adapter` importable as if it were installed."""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapper.conformance import lab


def describe(folder: Path) -> None:
    """Write the package's metadata with its entry points, as an installation would."""
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Make the package in this folder importable within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        lab.find.cache_clear()
        try:
            yield
        finally:
            lab.find.cache_clear()
            for name in [name for name in sys.modules if name.split(".")[0].startswith("promotions_")]:
                del sys.modules[name]
