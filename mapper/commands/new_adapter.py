"""`promotions-mapper new-adapter NAME`: writes a package for one more engine, whose tests pass at once.

It is a copy of the package in `scaffold/`, with the engine's name in place of `acme`. The scaffold itself is linted,
typed and tested.
"""

import argparse
from pathlib import Path

from mapper import adapter
from mapper.adapter import ADAPTERS, known
from mapper.commands import Commands, add_command, fail
from mapper.domain.options import ENGINE_NAME, RESERVED

SCAFFOLD = Path(__file__).with_name("scaffold")


def add(commands: Commands) -> None:
    parser = add_command(commands, "new-adapter", "write a package for one more engine, with tests that pass")
    parser.add_argument("name", metavar="NAME", help="the engine's name: [a-z][a-z0-9_]*; its settings start with it")
    parser.add_argument(
        "--into", type=Path, default=Path(), metavar="DIR", help="the folder to write to (default: this one)"
    )
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    if not ENGINE_NAME.fullmatch(chosen.name) or chosen.name.split("_")[0] in RESERVED:
        return fail(f"{chosen.name}: a name is [a-z][a-z0-9_]* and does not start with {', '.join(RESERVED)}", 2)
    if chosen.name in known(ADAPTERS):
        return fail(f"{chosen.name}: an adapter of this name is installed; choose another", 2)
    folder = chosen.into / renamed("promotions-acme", chosen.name)
    try:
        write(chosen.name, folder)
    except OSError as error:
        return fail(f"{folder}: {error.strerror}", 2)
    print(f"{folder}/ is a package for the engine {chosen.name}. Next:\n")
    print(f"  cd {folder}\n  make install test   # passes\n  make serve          # the service, with calls to try\n")
    print("Its README lists the questions to answer first. Then change its files for your engine, one by one.")
    return 0


def write(name: str, folder: Path) -> None:
    """Writes the scaffold's package under another name to a folder that must not exist. Raises `OSError`."""
    folder.mkdir(parents=True)
    for file in sorted(SCAFFOLD.rglob("*")):
        place = file.relative_to(SCAFFOLD)
        if not file.is_file() or "__pycache__" in place.parts:
            continue
        target = folder / renamed(str(place), name)
        if place.name == "gitignore":
            target = target.with_name(".gitignore")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(renamed(file.read_text("utf-8"), name), "utf-8")


def renamed(text: str, name: str) -> str:
    """Replaces `acme`, in any spelling, with the engine's name."""
    distribution = f"promotions-{name.replace('_', '-').rstrip('-')}"  # a distribution's name ends in a letter or digit
    of_class = "".join(part.capitalize() for part in name.split("_"))
    if hasattr(adapter, of_class):  # as `Checkout`, which the package imports
        of_class += "Engine"
    for old, new in (
        ("promotions-acme", distribution),
        ("Acme", of_class),
        ("ACME", name.upper()),
        ("acme", name),
    ):
        text = text.replace(old, new)
    return text
