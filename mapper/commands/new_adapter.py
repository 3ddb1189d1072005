"""`new-adapter NAME`: a package for one more engine, outside of here, whose tests are green from the first run.

It is the package in `scaffold/` under another name. That one is linted, typed and tested as it stands, with the name
`acme` in it wherever the engine's has to be.
"""

import argparse
import sys
from pathlib import Path

from mapper.domain.options import ENGINE_NAME, RESERVED

BUILT_IN = ("talon_one", "voucherify")
SCAFFOLD = Path(__file__).with_name("scaffold")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("new-adapter", help="write a package for one more engine, with tests that are green")
    parser.add_argument("name", metavar="NAME", help="the engine's: [a-z][a-z0-9_]*; settings have it as their prefix")
    parser.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    if not ENGINE_NAME.fullmatch(chosen.name) or chosen.name.split("_")[0] in RESERVED:
        reserved = ", ".join(RESERVED)
        print(f"{chosen.name}: a name is [a-z][a-z0-9_]* and does not begin with {reserved}", file=sys.stderr)
        return 2
    if chosen.name in BUILT_IN:
        print(f"{chosen.name}: the mapper has an adapter of this name; choose another", file=sys.stderr)
        return 2
    folder = chosen.into / _named("promotions-acme", chosen.name)
    try:
        write(chosen.name, folder)
    except OSError as error:
        print(f"{folder}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{folder}/ is a package for the engine {chosen.name}. Next:\n")
    print(f"  cd {folder}\n  make install test   # green\n  make serve          # the service, with calls to try\n")
    print("Its README has the questions to answer first; make its files your engine's, one after the other.")
    return 0


def write(name: str, folder: Path) -> None:
    """The scaffold's package under another name, in a folder that must not exist. Raises `OSError`."""
    folder.mkdir(parents=True)
    for file in sorted(SCAFFOLD.rglob("*")):
        place = file.relative_to(SCAFFOLD)
        if not file.is_file() or "__pycache__" in place.parts:
            continue
        target = folder / _named(str(place), name)
        if place.name == "gitignore":
            target = target.with_name(".gitignore")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_named(file.read_text("utf-8"), name), "utf-8")


def _named(text: str, name: str) -> str:
    """With this engine's name instead of `acme`, in whatever form it stands there."""
    distribution = f"promotions-{name.replace('_', '-')}"
    for old, new in (
        ("promotions-acme", distribution),
        ("Acme", "".join(part.capitalize() for part in name.split("_"))),
        ("ACME", name.upper()),
        ("acme", name),
    ):
        text = text.replace(old, new)
    return text
