"""The command line: ``tomada``, or ``python -m tomada``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import tomada
from tomada._cli import bench, impair, info, listen, send, serve
from tomada._cli.common import FAILURE, INTERRUPTED, CommandError

DESCRIPTION = """
UDP for Python on Linux, with a Rust core. To begin, start a server in one terminal,

  tomada serve

and talk to it from another:

  tomada send 127.0.0.1:1234 hello --expect-reply
  tomada bench 127.0.0.1:1234

tomada COMMAND --help describes each command.
"""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="tomada",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"tomada {tomada.__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (serve, send, listen, bench, impair, info):
        command.add(commands)
    _add_demo(commands)
    return root


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="run a server and a client, with tomada and with plain sockets",
        description="Send the lines of a text to a server in another process, and check the "
        "replies: first with tomada at both ends, then with the standard socket module at one end.",
    )
    demo.add_argument("file", nargs="?", help="a UTF-8 text (default: tomada's README)")
    demo.add_argument("--port", type=int, default=1234, help="the server's port (default: 1234)")
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    # Commands import their modules on first use, so "tomada --help" responds at once.
    from tomada import demo

    try:
        return demo.main(arguments.file, arguments.port)
    except demo.DemoError as error:
        return _fail(arguments, error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    root = parser()
    parsed, rest = root.parse_known_args(arguments)
    # In "send HOST:PORT --hex ff00", argparse does not parse the words after the option.
    if rest and (not hasattr(parsed, "text") or any(word.startswith("-") for word in rest)):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.text += rest
    return parsed


def _fail(arguments: argparse.Namespace, error: Exception) -> int:
    print(f"tomada {arguments.command}: {error}", file=sys.stderr)
    return error.status if isinstance(error, CommandError) else FAILURE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 for a failure, 130 for Ctrl-C.

    Wrong arguments end the program with status 2.
    """
    parsed = _parse(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as head, has exited. Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (OSError, CommandError) as error:
        return _fail(parsed, error)
    return status
