"""The PROXY protocol header that a client sends when it acts as a proxy."""

from __future__ import annotations

from typing import Any

from tomada import _core

LAST_PORT = 65_535


def header_for(client: Any, server: Any) -> bytes:
    """Return the header of datagrams from a client's address to a server's.

    :raises TypeError: The client's address is not a tuple of a host and a port.
    :raises ValueError: The host is not numeric, the port is out of range, or the server does not
        have an IP address.
    """
    if isinstance(server, str | bytes):
        message = f"proxy_from needs a server with an IP address, not {server!r}"
        raise ValueError(message)  # noqa: TRY004 - an address of the wrong family
    if not (isinstance(client, tuple) and len(client) in (2, 4) and isinstance(client[0], str)):
        raise TypeError(f"proxy_from must be (host, port), not {client!r}")
    host, port = client[:2]
    if not (isinstance(port, int) and 0 <= port <= LAST_PORT):
        raise ValueError(f"the port of proxy_from must be from 0 to {LAST_PORT}, not {port!r}")
    return _core.proxy_header((host, port), server[:2])
