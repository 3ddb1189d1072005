"""The commands, one a module; what several share."""

import errno
import os
import sys
from pathlib import Path


def read_input(path: str) -> bytes:
    """The bytes of a file; `-`: of standard input. Raises `OSError`, whose `filename` says which it is."""
    if path != "-":
        return Path(path).read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input")
    return sys.stdin.buffer.read()
