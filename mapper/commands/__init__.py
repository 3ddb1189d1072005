"""One module for each command, and what they share."""

import argparse
import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mapper.ops.logs import printable
from mapper.settings import is_text

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def add_command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Adds a command. `text` says what it does, in the list of commands and in its own help."""
    return commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")


def read_input(path: str) -> bytes:
    """Returns the bytes of a file, or of standard input for `-`. Raises `OSError`, whose `filename` names it."""
    if path != "-":
        return Path(path).read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input")
    return sys.stdin.buffer.read()


def whole_number(subject: str, least: int, most: int) -> Callable[[str], int]:
    """Returns the `type` of an argument. `subject` starts the error's sentence, such as "a port is"."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{subject} a number from {least} to {most}")
        return int(text)

    return read


def utf8(value: str) -> str:
    """The `type` of an argument that is no path."""
    if not is_text(value):
        raise argparse.ArgumentTypeError("it is not UTF-8")
    return value


def print_columns(columns: Mapping[str, Sequence[str]]) -> None:
    """Prints a table that is never wrapped or cut, so that other programs can read it."""
    padded = []
    for name, cells in columns.items():
        column = [name, *map(printable, cells)]
        width = max(map(len, column))
        padded.append([cell.ljust(width) for cell in column])
    for line in zip(*padded, strict=True):
        print("  ".join(line).rstrip())


def fail(message: str, code: int = 1) -> int:
    """Prints an error, and returns the exit code."""
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return code


def has_temporary_folder() -> bool:
    """Whether temporary files can be written; prints what to do if not."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        fail("This command needs a folder for temporary files: mount /tmp, or name a writable folder in TMPDIR.")
        return False
    return True
