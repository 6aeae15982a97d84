"""Code that the commands share: arguments, exit statuses, and printing datagrams."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import socket as _std
import sys
from collections.abc import Callable
from typing import Any

from tomada._address import parse_address

# Exit statuses that a script can distinguish. argparse exits with 2 for wrong arguments.
SUCCESS, FAILURE, MISUSE, INTERRUPTED = 0, 1, 2, 130

HOST, PORT = "127.0.0.1", 1234

Address = tuple[str, int] | str


class CommandError(Exception):
    """A command failed; the message says why, in one line, for the user."""

    status = FAILURE


class UsageError(CommandError):
    """An option is wrong."""

    status = MISUSE


def address(text: str) -> Address:
    """Parse an address argument, for ``argparse``."""
    try:
        return parse_address(text, host=HOST)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(text: str, kind: Callable[[str], Any], least: float, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def count(text: str) -> int:
    value: int = number(text, int, 1, "a whole number from 1 up")
    return value


def count_or_none(text: str) -> int:
    value: int = number(text, int, 0, "a whole number from 0 up")
    return value


def seconds(text: str) -> float:
    value: float = number(text, float, 1e-6, "a number of seconds greater than 0")
    return value


def rate(text: str) -> float:
    value: float = number(text, float, 1e-6, "a number greater than 0")
    return value


def add_address(parser: argparse.ArgumentParser, what: str, *, has_default: bool) -> None:
    """Add the address argument."""
    default = f"{HOST}:{PORT}"
    parser.add_argument(
        "address",
        metavar="HOST:PORT",
        type=address,
        nargs="?" if has_default else None,
        default=default if has_default else None,
        help=f"{what}; also [::1]:PORT, a path, or @name (AF_UNIX)"
        + (f" (default: {default})" if has_default else ""),
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def family_and_name(where: Address, *, is_local: bool = False) -> tuple[int, Any]:
    """Resolve an address to bind or connect to, to IPv4 if a name has such an address."""
    if isinstance(where, str):
        return _std.AF_UNIX, where
    host, port = where
    flags = _std.AI_PASSIVE if is_local else 0
    found = _std.getaddrinfo(host or None, port, 0, _std.SOCK_DGRAM, 0, flags)
    chosen = min(found, key=lambda info: info[0] != _std.AF_INET)
    return chosen[0], chosen[4]


def text_of(data: bytes) -> str | None:
    """Return a datagram as text, or ``None`` if it is not text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\t\n\r" for char in text) else None


def shown(data: bytes) -> str:
    """Format a datagram on one line: as text if it is text, otherwise in hexadecimal."""
    text = text_of(data)
    if text is None:
        return f"0x{data.hex()}"
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def described(data: bytes) -> dict[str, Any]:
    """Describe a datagram for JSON: its text, or its bytes in hexadecimal if it is not text."""
    try:
        return {"size": len(data), "text": data.decode()}
    except UnicodeDecodeError:
        return {"size": len(data), "hex": data.hex()}


def put_json(item: dict[str, Any]) -> None:
    """Print an object on one line, and flush it for the reader of a pipe."""
    print(json.dumps(item), flush=True)


def note(line: str) -> None:
    """Print a line for the user to standard error, apart from the results; ignore failures."""
    with contextlib.suppress(OSError):  # a full disk must not end the command
        put_line(line, sys.stderr)


def put_line(line: str, file: Any) -> None:
    """Write a line in one call, so that other threads and processes cannot split it."""
    file.write(f"{line}\n")
    file.flush()


def console() -> Any:
    """Return rich's console; ``None`` if there is no terminal, or rich is not installed."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)
