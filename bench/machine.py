"""What the machine says of a process and of itself: Linux, by /proc. Elsewhere the bench does not run."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = (
    "promotions-mapper", "starlette", "uvicorn", "httptools", "uvloop", "msgspec", "aiohttp", "httpx2", "fastapi",
    "pydantic", "talon-one-sdk", "urllib3",
)  # fmt: skip


_libc = ctypes.CDLL(None)


def missing() -> str:
    """Why this machine cannot measure; empty where it can."""
    return "" if Path("/proc/self/status").exists() else "this needs Linux, with /proc"


def processor_ns(pid: int) -> int:
    """The time that a process has spent on a processor: all its threads, also those that have ended."""
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, f"the clock of process {pid}")
    return time.clock_gettime_ns(clock.value)


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """VmRSS: what is held in memory now; VmHWM: the most that ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) / 1024


def _busy_s() -> float:
    """Processor time spent by everybody, other virtual machines included, since the machine started."""
    user, nice, system, _, _, _, _, stolen, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + stolen) / _TICKS


class Others:
    """How much processor time went to processes that are none of ours: the noise itself, not a sign of it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [*pids, os.getpid()]
        self._busy, self._ours = _busy_s(), self._own_s()

    def _own_s(self) -> float:
        return sum(map(processor_ns, self._pids)) / 1e9

    def share(self, seconds: float) -> float:
        """Since this was made, in processors: 0.5 is half of one."""
        foreign = (_busy_s() - self._busy) - (self._own_s() - self._ours)
        return round(max(0.0, foreign / seconds), 3)


@dataclass(frozen=True)
class Places:
    """Which processors do what: what is measured has one for itself."""

    contender: set[int]
    rest: set[int]


@cache
def places() -> Places:
    """To be asked before this process takes its own place."""
    own = sorted(os.sched_getaffinity(0))
    return Places({own[-1]}, set(own[:-1])) if len(own) > 1 else Places({own[0]}, {own[0]})


@contextmanager
def in_place() -> Iterator[None]:
    """This process, which is the client, stays off the contender's processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, places().rest)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load() -> float:
    return os.getloadavg()[0]


def nginx() -> str:
    """The path of the program; empty where it is not installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or ""


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "linux": platform.release().split("-")[0]}
    found |= {package: metadata.version(package) for package in _PACKAGES}
    if program := nginx():
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
        found["nginx"] = told.rpartition("/")[2].split()[0]
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} x {model}"


def commit() -> str:
    """The commit that is measured, with a plus where files have been changed since."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def python() -> str:
    return sys.executable
