"""The command line: ``tomada``, or ``python -m tomada``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import tomada


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="tomada", description="UDP sockets for Python on Linux, with a Rust core."
    )
    root.add_argument("--version", action="version", version=f"tomada {tomada.__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="a server and a client exchange a text, with tomada and with plain sockets",
        description="Send the lines of a text to a server and check its answers: between two "
        "processes, with tomada at both ends, then with the standard socket module at either.",
    )
    demo.add_argument("file", nargs="?", help="a UTF-8 text (default: tomada's README)")
    demo.add_argument("--port", type=int, default=1234, help="the server's port (default: 1234)")
    demo.set_defaults(run=_demo)
    return root


def _demo(arguments: argparse.Namespace) -> int:
    # Each command imports what it needs: "tomada --help" answers at once.
    from tomada import demo

    try:
        return demo.main(arguments.file, arguments.port)
    except demo.DemoError as error:
        return _fail(arguments, error)


def _fail(arguments: argparse.Namespace, error: Exception) -> int:
    print(f"tomada {arguments.command}: {error}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status: 0, 1 for a failure, 130 for Ctrl-C."""
    parsed = parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _fail(parsed, error)
    return status
