"""Opens sockets at numeric addresses directly, and looks up the names of others."""

from __future__ import annotations

import socket as _std
from asyncio import base_events
from typing import TYPE_CHECKING, Any

from tomada._advice import advise
from tomada._sockets import socket

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_KIND = _std.SOCK_DGRAM | _std.SOCK_NONBLOCK
_CLASSES = (_std.socket, socket)
_FAMILIES = (_std.AF_INET, _std.AF_INET6)
_PROTOCOLS = (0, _std.IPPROTO_UDP)
# Resolves an address as the standard library does; returns None if that needs a resolver.
_resolve: Any = base_events._ipaddr_info  # type: ignore[attr-defined]


def open_directly(
    loop: Any, local_addr: Any, remote_addr: Any, family: int = 0, proto: int = 0
) -> socket | None:
    """Open, bind and connect a socket as ``create_datagram_endpoint`` does.

    This returns ``None`` if an address is not numeric or anything fails. The standard library's own
    code must then open the socket, because programs expect its exceptions. This also returns
    ``None`` if the program has replaced functions that that code calls.
    """
    if vars(base_events)["socket"] is not _std or _std.socket not in _CLASSES:
        return None
    if "sock_connect" in getattr(loop, "__dict__", ()):
        return None
    try:
        family, local = _numeric(local_addr, family, proto)
        family, remote = _numeric(remote_addr, family, proto)
        if remote is not None and not remote[1]:
            return None  # getpeername() fails on a socket that is connected to port 0
        if proto not in _PROTOCOLS or family not in _FAMILIES:
            return None  # an AF_UNIX socket, or an exception
        if local is not remote:  # otherwise, both are None
            proto = _std.IPPROTO_UDP
        return _open(family, proto, local, remote)
    except Exception:  # noqa: BLE001 - the standard library's code raises it again
        return None


async def look_up(
    loop: AbstractEventLoop, host: str | None, port: Any, **options: Any
) -> list[Any]:
    """Resolve a host name like :meth:`asyncio.loop.getaddrinfo`; an exception names the host."""
    try:
        return await loop.getaddrinfo(host, port, **options)
    except _std.gaierror as error:
        advise(error, str(host))
        raise


def _numeric(address: Any, family: int, proto: int) -> tuple[int, Any]:
    """Return the family and the socket module's form of an address, which may be ``None``."""
    if address is None:
        return family, None
    host, port = address
    if type(address) is not tuple or type(host) is not str or type(port) is not int:
        raise TypeError
    family, _, _, _, name = _resolve(host, port, family, _std.SOCK_DGRAM, proto)
    return family, name


def _open(family: int, proto: int, local: Any, remote: Any) -> socket:
    sock = socket(family, _KIND, proto)
    try:
        if local is not None:
            sock.bind(local)
        if remote is not None:
            sock.connect(remote)
    except BaseException:
        sock.close()
        raise
    return sock
