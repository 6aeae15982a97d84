"""Requests of asyncio tasks, each over its own port."""

from __future__ import annotations

import asyncio
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
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._client.connection import LONGEST, Connection, RefusedError, has_no_room
from tomada._client.pool import Pool
from tomada._client.retry import Retry
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from tomada._client.exchange import Exchange
    from tomada._client.round_trip import RoundTrip
    from tomada._core import Socket

# The number of ports that a client uses at once. Further requests wait; their timeouts start later.
MOST_IN_FLIGHT = 64

# The number of datagrams to handle before other callbacks of the loop run.
MANY = 16

# The options that decide how datagrams travel, where a socket has them.
_INHERITED = (
    (SOL_SOCKET, SO_BINDTODEVICE),
    (SOL_SOCKET, SO_BROADCAST),
    (SOL_SOCKET, SO_MARK),
    (SOL_SOCKET, SO_PRIORITY),
)
_INHERITED_INET = ((IPPROTO_IP, IP_TOS), (IPPROTO_IP, IP_TTL))
_INHERITED_INET6 = ((IPPROTO_IPV6, IPV6_TCLASS), (IPPROTO_IPV6, IPV6_UNICAST_HOPS))


class SeparatePorts:
    """Sends requests over sockets that are like a connected one, except for their ports."""

    def __init__(self, model: Socket, peer: Any, round_trip: RoundTrip) -> None:
        host, _, *scope = (None, 0) if model.family == AF_UNIX else model.getsockname()
        self._pool = Pool(
            model.family,
            peer,
            Retry(),  # of which nothing is used: each request has a timeout of its own
            tells_apart=False,
            prepare=partial(_make_alike, model),
            local=(host, *scope),
        )
        self._pool.round_trip = round_trip
        #: Limits the requests in flight. Acquire it before calling :meth:`request`.
        self.turns = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._waiting: set[_Wait] = set()

    async def request(self, data: Any, exchange: Exchange, peer: Any) -> bytes:
        """Make the attempts of a request, and return its reply."""
        connection = self._pool.take()
        connection.request_timeout = exchange.timeout
        try:
            while exchange.attempt(monotonic()):
                self._send(connection, data, exchange)
                reply = await self._reply(connection, exchange)
                if reply is not None:
                    exchange.complete(monotonic())
                    return reply
            raise exchange.timed_out(peer, monotonic())
        finally:
            if exchange.may_reuse_port:
                self._pool.put(connection)
            else:
                self._pool.retire(connection)

    @staticmethod
    def _send(connection: Connection, data: Any, exchange: Exchange) -> None:
        try:
            connection.ask(data, 0.0)
        except RefusedError as refused:
            exchange.refuse(refused.args[0])
        except OSError as error:
            if not has_no_room(error):
                raise
            # Treat it as a datagram that was lost in the network.

    async def _reply(self, connection: Connection, exchange: Exchange) -> bytes | None:
        """Wait for the reply until the next attempt is due."""
        wait = _Wait(connection, exchange)
        self._waiting.add(wait)
        try:
            return await wait.result
        finally:
            self._waiting.discard(wait)
            wait.stop()

    def close(self) -> None:
        """Fail the requests in flight with :class:`OSError`, and close the sockets."""
        for wait in list(self._waiting):
            wait.fail(OSError(errno.EBADF, "the endpoint is closed"))
        self._pool.close()

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.close()


class _Wait:
    """Receives datagrams from a connection until its next attempt is due."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._connection = connection
        self._exchange = exchange
        self.result: asyncio.Future[bytes | None] = loop.create_future()
        self._timer = loop.call_later(max(exchange.due - monotonic(), 0.0), self._expire)
        # The watched descriptor, or -1.
        self._number = -1
        self._watch()

    def stop(self) -> None:
        """Stop watching the descriptor: it may be closed then."""
        self._timer.cancel()
        if self._number >= 0:
            self._loop.remove_reader(self._number)
            self._number = -1

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception."""
        self.stop()
        if not self.result.done():
            self.result.set_exception(error)

    def _watch(self) -> None:
        self._number = self._connection.number
        self._loop.add_reader(self._number, self._receive)

    def _expire(self) -> None:
        left = self._exchange.due - monotonic()
        if left > 0:  # the loop's clock has a coarser resolution
            self._timer = self._loop.call_later(left, self._expire)
            return
        self._receive()  # a reply that arrived while the loop was delayed is still in time
        if not self.result.done():
            self.result.set_result(None)

    def _receive(self) -> None:
        connection, exchange = self._connection, self._exchange
        for _ in range(MANY):
            if self.result.done():
                return
            try:
                reply, sender = connection.recvfrom(LONGEST)
                if sender == connection.peer and exchange.accepts(reply):
                    self.result.set_result(reply)
            except BlockingIOError:
                return
            except BaseException as error:  # noqa: BLE001 - the task raises it
                if is_from_peer(error):
                    self._refuse(error)
                else:
                    self.fail(error)

    def _refuse(self, error: OSError) -> None:
        try:
            self._exchange.refuse(error)
        except OSError as refusal:
            self.fail(refusal)
            return
        if self._exchange.due <= monotonic():
            self.result.set_result(None)
            return
        if not isinstance(self._loop, asyncio.SelectorEventLoop):
            self._loop.remove_reader(self._number)  # libuv stops watching after an error
            self._watch()


def _make_alike(model: Socket, connection: Connection) -> None:
    """Bind and configure a new connection like another socket, except for the port."""
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
        pass  # not every kernel supports it, and it may need privileges
