"""The commands: parse the arguments, call one function, return an exit code."""

import argparse
import asyncio
import errno
import io
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from mapper import __version__, settings
from mapper.commands import read_input, whole_number
from mapper.domain import signature

MODULES = ("ledger", "cancel", "ingest", "doctor", "explain", "replay", "new_adapter")
"""The commands with a module of their own. It is loaded when it is called for: `serve` starts without them."""
PORT = whole_number("a port is", 0, 65535)
WORKERS = whole_number("workers are", 1, 64)
FD = whole_number("a file descriptor is", 0, 1_000_000)


def main(arguments: list[str] | None = None) -> None:
    """`python -m mapper`, also installed as `promotions-mapper`.

    Exit code 2: the arguments or settings are wrong; 130: Ctrl-C; 1 also where nobody reads what is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no arrows gets question marks
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser([name for name in MODULES if name in given[:1]] if _is_command(given) else MODULES)
    chosen = parser.parse_args(given)
    if chosen.command is None:
        parser.print_help()
        sys.exit(2)
    try:
        code = chosen.run(chosen)
        sys.stdout.flush()
    except settings.InvalidSettings as error:
        code = _tell_wrong(error)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        code = _tell_unread(error)
    sys.exit(code)


def _is_command(given: Sequence[str]) -> bool:
    return bool(given) and given[0] in ("serve", "sandbox", "demo", "sign", "hash", *MODULES)


def _parser(modules: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="promotions-mapper", description="Nacelle's promotions mapper.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service; settings come from the environment")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=PORT, default=8080, help="port to listen on (default: %(default)s)")
    serve.add_argument("--workers", type=WORKERS, default=1, help="processes (default: %(default)s)")
    serve.add_argument("--fd", type=FD, metavar="N", help="listen on this inherited socket instead (systemd: 3)")
    serve.add_argument(
        "--drain",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="on SIGTERM, seconds to go on while /readyz says no (default: %(default)s)",
    )
    serve.add_argument(
        "--keep-alive",
        type=_seconds,
        default=75.0,
        metavar="S",
        help="seconds an idle connection is kept; longer than the load balancer keeps it (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)

    sandbox = commands.add_parser("sandbox", help="run the engines and Nacelle, emulated over HTTP, on a rule book")
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sandbox.add_argument("--port", type=PORT, default=8090, help="port to listen on (default: %(default)s)")
    sandbox.add_argument("--rulebook", type=Path, help="a rule book of your own (TOML) instead of the default one")
    sandbox.set_defaults(run=_sandbox)

    demo = commands.add_parser("demo", help="run both, and a shopper's journey through them with each engine")
    demo.add_argument("--keep", action="store_true", help="leave sandbox and service running until Ctrl-C")
    demo.add_argument("--json", type=Path, metavar="DIR", help="write the JSON of each step to files in this folder")
    demo.set_defaults(run=_demo)

    for name in modules:
        import_module(f"mapper.commands.{name}").add(commands)

    sign = commands.add_parser("sign", help="print the signature header of a body, with the first signing secret")
    sign.add_argument("file", nargs="?", metavar="FILE", help="the body; standard input where none is named")
    sign.set_defaults(run=_sign)

    hashing = commands.add_parser("hash", help="print a code as it stands in the log")
    hashing.add_argument("code", metavar="CODE")
    hashing.set_defaults(run=_hash)
    return parser


def _seconds(text: str) -> float:
    if not text.replace(".", "", 1).isdigit() or not 0 <= float(text) <= 3600:
        raise argparse.ArgumentTypeError("seconds are a number from 0 to 3600")
    return float(text)


def _serve(chosen: argparse.Namespace) -> int:
    configured = settings.load(os.environ)
    from mapper.http import app, server
    from mapper.nacelle.products import FileSource
    from mapper.ops import logs
    from mapper.orders.rows import LedgerUnusable

    if configured.products and configured.products.file:
        try:
            FileSource(configured.products.file)
        except (ValueError, OSError) as error:
            wrong = f"the file cannot be used: {error}"
            raise settings.InvalidSettings([("MAPPER_PRODUCT_DATA", wrong)]) from None
    if configured.record is not None:
        from mapper.recording import recorder

        try:
            recorder.prepare(configured.record)
        except OSError as error:
            wrong = f"the folder {configured.record} cannot be written: {error.strerror}"
            raise settings.InvalidSettings([("MAPPER_RECORD", wrong)]) from None
    if chosen.workers > 1:
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            print("Several workers need a folder for metrics: mount /tmp, or name one in TMPDIR.", file=sys.stderr)
            return 1
    logs.configure(configured.log_level, configured.log_format)
    try:
        asyncio.run(app.check_ledger(configured))
    except LedgerUnusable as problem:
        print(f"MAPPER_LEDGER_URL: {problem.message} (reason: {problem.reason})", file=sys.stderr)
        return 2
    listeners: list[socket.socket] = []
    where = ""
    try:
        where = f"{chosen.host} port {chosen.port}" if chosen.fd is None else f"the inherited socket {chosen.fd}"
        listeners += [server.listening(chosen.host, chosen.port) if chosen.fd is None else server.inherited(chosen.fd)]
        if configured.admin_port is not None:
            where = f"{chosen.host} port {configured.admin_port} (MAPPER_ADMIN_PORT)"
            listeners += [server.listening(chosen.host, configured.admin_port)]
    except OSError as error:
        print(f"Cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    return app.run(listeners, chosen.workers, drain_s=chosen.drain, keep_alive_s=chosen.keep_alive)


def _sandbox(chosen: argparse.Namespace) -> int:
    from mapper.sandbox import host as sandbox

    return sandbox.run(chosen.host, chosen.port, chosen.rulebook)


def _demo(chosen: argparse.Namespace) -> int:
    from mapper.commands import demo

    return demo.run(keep=chosen.keep, folder=chosen.json)


def _hash(chosen: argparse.Namespace) -> int:
    from mapper.ops.logs import CodeNames

    configured = settings.load(os.environ)
    print(CodeNames("hash", configured.code_secret)(chosen.code.strip()))
    return 0


def _sign(chosen: argparse.Namespace) -> int:
    reader = settings.Reader(os.environ)
    shared, by_space = reader.secrets("NACELLE_SIGNING_SECRETS", reader.spaces(), needed=True)
    secrets = (*shared, *(secret for secrets in by_space.values() for secret in secrets))
    if reader.problems:
        raise settings.InvalidSettings(reader.problems)
    try:
        body = read_input(chosen.file or "-")
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{signature.SIGNATURE.decode()}: {signature.sign(body, secrets[0])}")
    return 0


def _tell_unread(error: OSError) -> int:
    """Standard output takes no more: its reader has gone, as with `| head`, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written when Python ends
    if error.errno == errno.ENOSPC:
        print(f"The output cannot be written: {error.strerror}", file=sys.stderr)
    return 1


def _tell_wrong(error: settings.InvalidSettings) -> int:
    print(f"The settings are wrong in {len(error.problems)} place(s):", file=sys.stderr)
    for name, expected in error.problems:
        print(f"  {name}: {expected}", file=sys.stderr)
    for warning in error.warnings:
        print(f"  {warning}", file=sys.stderr)
    print("docs/settings.md lists every setting.", file=sys.stderr)
    return 2
