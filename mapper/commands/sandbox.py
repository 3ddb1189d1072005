"""`promotions-mapper sandbox`: runs the emulated engines and Nacelle, and lists the codes to try."""

import sys
from pathlib import Path

import uvicorn

from mapper.commands import fail
from mapper.http.server import listening
from mapper.sandbox import host as sandbox
from mapper.sandbox.rulebook import RuleBookError


def run(host: str, port: int, rulebook: Path | None) -> int:
    """Serves the sandbox until it is stopped. Returns 2 for an invalid rule book, 1 if the port is taken."""
    try:
        app = sandbox.create(rulebook)
    except RuleBookError as error:
        return fail(f"The rule book cannot be used:\n{error}", 2)
    try:
        listener = listening(host, port)
    except OSError as error:
        return fail(f"Cannot listen on {host} port {port}: {error.strerror}")
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"The sandbox listens on {address}/ (the front page tells more).\n")
    for name in app.state.sandbox.emulators:
        print(f"  {name:14} {address}/{name}")
    print("\nCodes to try:")
    for code, note in app.state.sandbox.book.codes_to_try():
        print(f"  {code:26} {note}")
    sys.stdout.flush()
    with listener:
        uvicorn.Server(sandbox.config(app)).run(sockets=[listener])
    return 0
