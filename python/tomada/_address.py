"""Addresses in text form: ``127.0.0.1:1234``, ``[::1]:1234``, ``/run/it``, ``@name``."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from socket import _Address, _RetAddress

HIGHEST_PORT = 65_535


def format_address(address: _Address | _RetAddress | None) -> str:
    """Format an address of any family; an abstract name of ``AF_UNIX`` begins with ``@``."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if not address:
        return "(no address)"
    text = bytes(address).decode(errors="replace") if not isinstance(address, str) else address
    return "@" + text[1:] if text.startswith("\0") else text


def check_address(address: Any) -> None:
    """Check that an address is a pair with a port, or a path or name of ``AF_UNIX``.

    :raises TypeError: It is neither; the message says what is required.
    :raises ValueError: It is empty, or a string that looks like a pair.
    """
    if isinstance(address, str | bytes | bytearray):
        _check_path(address)
    elif not isinstance(address, tuple) or not 2 <= len(address) <= 4:  # noqa: PLR2004
        raise TypeError(f"address must be (host, port), or an AF_UNIX path, not {address!r}")
    elif not isinstance(address[1], int):
        raise TypeError(f"the address's port must be an int, not {address[1]!r}")


def _check_path(path: str | bytes | bytearray) -> None:
    if not path:
        raise ValueError("address must not be empty: pass the server's address")
    if not isinstance(path, str):
        return
    host, _, port = path.rpartition(":")
    if re.fullmatch(r"[^/\0@:]*|\[.*\]", host) and port.isdecimal():
        pair = f"({host.strip('[]')!r}, {int(port)})"
    elif _is_numeric(path):
        pair = f"({path!r}, port)"
    else:
        return
    raise ValueError(
        f"address must be a pair, {pair}, not {path!r}, which would be an AF_UNIX path: pass the "
        f"pair, or write './{path}' if you mean a path"
    )


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_address(
    text: str, *, host: str = "127.0.0.1", port: int | None = None
) -> tuple[str, int] | str:
    """Parse an address: ``HOST:PORT``, ``[HOST]:PORT``, a path with a slash, or ``@`` and a name.

    :param host: The default host, for ``:PORT`` or a bare ``PORT``.
    :param port: The default port. Without it, a text without a port is refused.
    :raises ValueError: The text is invalid; the exception says why.
    """
    if text.startswith("@"):
        return "\0" + text[1:]
    if "/" in text:
        return text
    if text.startswith("["):
        found, bracket, digits = text[1:].partition("]")
        if not bracket or (digits and not digits.startswith(":")):
            raise ValueError(f"{text!r} is not an address: write an IPv6 address as [::1]:1234")
        digits = digits[1:]
    elif text.count(":") > 1:
        raise ValueError(f"{text!r} is not an address: write an IPv6 address as [::1]:1234")
    elif ":" in text:
        found, _, digits = text.partition(":")
    else:
        found, digits = ("", text) if text.isdecimal() else (text, "")
    if not digits and port is None:
        raise ValueError(f"{text!r} has no port: write HOST:PORT, such as 127.0.0.1:1234")
    if digits and not (digits.isascii() and digits.isdecimal() and int(digits) <= HIGHEST_PORT):
        raise ValueError(f"{digits!r} is not a port: use a number from 0 to {HIGHEST_PORT}")
    chosen = int(digits) if digits or port is None else port
    return found or host, chosen
