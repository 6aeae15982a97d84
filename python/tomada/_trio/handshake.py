"""The DTLS handshake, for trio tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tomada import _core

if TYPE_CHECKING:
    from tomada._core import DtlsContext, DtlsEndpoint


async def connect(sock: Any, context: DtlsContext, server_hostname: str | None) -> DtlsEndpoint:
    """Open a session with the server that a socket is connected to; return after the handshake.

    :raises OSError: The handshake failed; the message says why.
    """
    endpoint = _core.DtlsEndpoint(context, sock, server_hostname=server_hostname, keeps_events=True)
    endpoint.begin()
    while True:
        try:
            endpoint.handshake(0)
        except BlockingIOError:
            due = endpoint.tick()
            with trio.move_on_after(float("inf") if due is None else due):
                await trio.lowlevel.wait_readable(sock)
        else:
            return endpoint
