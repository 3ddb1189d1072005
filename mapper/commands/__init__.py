"""The commands, one a module; what several share."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path


def read_input(path: str) -> bytes:
    """The bytes of a file; `-`: of standard input. Raises `OSError`, whose `filename` says which it is."""
    if path != "-":
        return Path(path).read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input")
    return sys.stdin.buffer.read()


def whole_number(subject: str, least: int, most: int) -> Callable[[str], int]:
    """The `type` of an argument. `subject` begins the sentence of the error, such as "a port is"."""

    def read(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{subject} a number from {least} to {most}")
        return int(text)

    return read
