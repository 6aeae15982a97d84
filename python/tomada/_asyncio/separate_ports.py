"""Requests of an endpoint, each from its own port."""

from __future__ import annotations

import errno
from functools import partial
from socket import (
    AF_INET6,
    AF_UNIX,
    IP_TOS,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    IPV6_UNICAST_HOPS,
    SO_BINDTODEVICE,
    SO_BROADCAST,
    SO_MARK,
    SO_PRIORITY,
    SOL_SOCKET,
)
from typing import TYPE_CHECKING, Any

from tomada._asyncio.requests import TaskRequests
from tomada._client.own_sockets import Returning
from tomada._client.pool import Pool
from tomada._client.retry import Retry

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractAsyncContextManager

    from tomada._client.connection import Connection
    from tomada._client.round_trip import RoundTrip
    from tomada._core import Socket
    from tomada._socket_options import Secured

# The number of ports that an endpoint uses at once. Further requests wait; their timeouts start
# later.
MOST_IN_FLIGHT = 64

# The socket options that affect how a datagram travels. Options that are 0 are not copied.
_INHERITED = (
    (SOL_SOCKET, SO_BINDTODEVICE),
    (SOL_SOCKET, SO_BROADCAST),
    (SOL_SOCKET, SO_MARK),
    (SOL_SOCKET, SO_PRIORITY),
)
_INHERITED_INET = ((IPPROTO_IP, IP_TOS), (IPPROTO_IP, IP_TTL))
_INHERITED_INET6 = ((IPPROTO_IPV6, IPV6_TCLASS), (IPPROTO_IPV6, IPV6_UNICAST_HOPS))


class SeparatePorts:
    """Sends requests over sockets that resemble a connected one, but have other ports."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        model: Socket,
        peer: Any,
        round_trip: RoundTrip,
        turns: AbstractAsyncContextManager[Any],
        secured: Secured | None = None,
    ) -> None:
        host, _, *scope = (None, 0) if model.family == AF_UNIX else model.getsockname()
        retry = Retry()  # a placeholder: each request has its own options
        self._pool = Pool(
            model.family,
            peer,
            retry,
            tells_apart=False,
            prepare=partial(_make_alike, model, secured),
            local=(host, *scope),
            is_secured=secured is not None,
        )
        self._pool.round_trip = round_trip
        in_flight = Returning(self._pool, retry, peer)
        self._requests = TaskRequests(loop, in_flight, retry, None, MOST_IN_FLIGHT)
        #: Limits the requests in flight. Acquire it before calling :meth:`request`.
        self.turns = turns

    async def request(self, data: Any, retry: Retry) -> bytes:
        """Send a request and return its reply."""
        return await self._requests.request(data, retry)

    def close(self) -> None:
        """Fail the requests in flight with :class:`OSError`, and close the sockets."""
        try:
            self._requests.close(OSError(errno.EBADF, "the endpoint is closed"))
        finally:
            self._pool.close()

    def __del__(self) -> None:
        if hasattr(self, "_requests"):
            self.close()
        elif hasattr(self, "_pool"):
            self._pool.close()


def _make_alike(model: Socket, secured: Secured | None, connection: Connection) -> None:
    """Configure a new connection like another socket."""
    connection.dtls = secured
    if model.family == AF_UNIX:
        return
    is_inet6 = model.family == AF_INET6
    for level, name in (*_INHERITED, *(_INHERITED_INET6 if is_inet6 else _INHERITED_INET)):
        _copy_option(model, connection, level, name)
    connection.guard = model.guard
    connection.spin = model.spin


def _copy_option(model: Socket, connection: Connection, level: int, name: int) -> None:
    try:
        value = model.getsockopt(level, name, 256)
        if value.strip(b"\0"):
            connection.setsockopt(level, name, value)
    except OSError:
        pass  # unsupported by this kernel, or privileged
