"""The commands: parse the arguments, call one function, return an exit code."""

import argparse
import asyncio
import errno
import io
import os
import re
import socket
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from mapper import __version__, settings
from mapper.commands import add_command, fail, has_temporary_folder, read_input, utf8, whole_number
from mapper.domain import signature
from mapper.settings import Settings

MODULES = ("ledger", "cancel", "ingest", "doctor", "explain", "replay", "new_adapter")
"""The modules of commands that `serve` does not import, so that it starts faster."""
PORT = whole_number("a port is", 0, 65535)
WORKERS = whole_number("workers are", 1, 64)
FD = whole_number("a file descriptor is", 0, 1_000_000)


def main(arguments: list[str] | None = None) -> None:
    """Runs `python -m mapper`, which is also installed as `promotions-mapper`.

    Exits with 2 if the arguments or settings are wrong, with 130 after Ctrl-C, and with 1 if the output's reader has
    gone.
    """
    _prepare_output()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(given)
        sys.stdout.flush()
    except settings.InvalidSettings as error:
        code = _report_settings(error)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        code = _discard_output(error)
    sys.exit(code)


def _run(given: Sequence[str]) -> int:
    parser = _parser(() if given[:1] == ["serve"] else MODULES)
    try:
        chosen = parser.parse_args(given)
    except SystemExit as stopped:  # after --help, --version, or wrong arguments
        return int(stopped.code or 0)
    if chosen.command is None:
        parser.print_help()
        return 2
    code: int = chosen.run(chosen)
    return code


def _prepare_output() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: a socket would get its number, and libuv would abort when it closes that
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if os.environ.get("COLUMNS") == "0":  # as in some containers; tables of this width are empty
        del os.environ["COLUMNS"]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - stays open
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows shows question marks


def _discard_output(error: OSError) -> int:
    """Discards all further output, since its reader has gone (as with `| head`) or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes the rest when it exits
    return 1 if error.errno == errno.EPIPE else fail(f"The output cannot be written: {error.strerror}")


def _parser(modules: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="promotions-mapper", description="Nacelle's promotions mapper.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = add_command(commands, "serve", "run the service with the settings in the environment")
    serve.add_argument("--host", type=utf8, default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=PORT, default=8080, help="port to listen on (default: %(default)s)")
    serve.add_argument("--workers", type=WORKERS, default=1, metavar="N", help="processes (default: %(default)s)")
    serve.add_argument("--fd", type=FD, metavar="N", help="listen on this inherited socket instead (systemd: 3)")
    serve.add_argument(
        "--drain",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="seconds of service after SIGTERM, during which /readyz answers 503 (default: %(default)s)",
    )
    serve.add_argument(
        "--keep-alive",
        type=_seconds,
        default=75.0,
        metavar="S",
        help="seconds until an idle connection is closed; more than the load balancer's (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)

    sandbox = add_command(
        commands, "sandbox", "emulate the engines and Nacelle over HTTP, with the rules of a rule book"
    )
    sandbox.add_argument("--host", type=utf8, default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sandbox.add_argument("--port", type=PORT, default=8090, help="port to listen on (default: %(default)s)")
    sandbox.add_argument("--rulebook", type=Path, metavar="FILE", help="your own rule book (TOML)")
    sandbox.set_defaults(run=_sandbox)

    demo = add_command(commands, "demo", "run both, and send a shopper's calls through them with each engine")
    demo.add_argument("--keep", action="store_true", help="leave sandbox and service running until Ctrl-C")
    demo.add_argument("--json", type=Path, metavar="DIR", help="write the JSON of each step to files in this folder")
    demo.set_defaults(run=_demo)

    for name in modules:
        import_module(f"mapper.commands.{name}").add(commands)

    sign = add_command(commands, "sign", "print the signature header of a body, with the first signing secret")
    sign.add_argument("file", nargs="?", metavar="FILE", help="the body (default: standard input)")
    sign.set_defaults(run=_sign)

    hashing = add_command(commands, "hash", "print a code as the log shows it")
    hashing.add_argument("code", metavar="CODE", help="the code, in any case")
    hashing.set_defaults(run=_hash)
    return parser


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?", text) or float(text) > 3600:
        raise argparse.ArgumentTypeError("seconds are a number from 0 to 3600")
    return float(text)


def _serve(chosen: argparse.Namespace) -> int:
    configured = settings.load(os.environ)
    from mapper.http import app, server
    from mapper.ops import logs
    from mapper.orders.rows import LedgerUnusable

    _check_files(configured)
    if chosen.workers > 1 and not has_temporary_folder():  # for the metrics
        return 1
    logs.configure(configured.log_level, configured.log_format)
    try:
        asyncio.run(app.check_ledger(configured))
    except LedgerUnusable as problem:
        return fail(f"MAPPER_LEDGER_URL: {problem.message} (reason: {problem.reason})", 2)
    listeners: list[socket.socket] = []
    address = ""
    try:
        address = f"{chosen.host} port {chosen.port}" if chosen.fd is None else f"the inherited socket {chosen.fd}"
        listeners += [server.listening(chosen.host, chosen.port) if chosen.fd is None else server.inherited(chosen.fd)]
        if configured.admin_port is not None:
            address = f"{chosen.host} port {configured.admin_port} (MAPPER_ADMIN_PORT)"
            listeners += [server.listening(chosen.host, configured.admin_port)]
    except OSError as error:
        return fail(f"Cannot listen on {address}: {error.strerror}")
    return app.run(listeners, chosen.workers, drain_s=chosen.drain, keep_alive_s=chosen.keep_alive)


def _check_files(configured: Settings) -> None:
    """Opens the file of product data and the folder for records. Raises `InvalidSettings`."""
    name, expected = "MAPPER_PRODUCT_DATA", "the file cannot be used"
    try:
        if configured.products and configured.products.file:
            from mapper.nacelle.products import FileSource

            FileSource(configured.products.file)
        if configured.record is not None:
            from mapper.recording import recorder

            name, expected = "MAPPER_RECORD", f"the folder {configured.record} cannot be written"
            recorder.prepare(configured.record)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise settings.InvalidSettings([(name, f"{expected}: {reason}")]) from None


def _sandbox(chosen: argparse.Namespace) -> int:
    from mapper.commands import sandbox

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
    secrets = reader.credentials("NACELLE_SIGNING_SECRETS", reader.spaces(), needed=True).all_secrets
    reader.check()
    try:
        body = read_input(chosen.file or "-")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", 2)
    print(f"{signature.SIGNATURE.decode()}: {signature.sign(body, secrets[0])}")
    return 0


def _report_settings(error: settings.InvalidSettings) -> int:
    lines = [f"  {name}: {expected}" for name, expected in error.problems]
    lines += [f"  {warning}" for warning in error.warnings]
    head = f"The settings are wrong in {len(error.problems)} place(s):"
    return fail("\n".join([head, *lines, "docs/settings.md lists every setting."]), 2)
