"""Requests in flight that have a socket each: the port tells which request a reply answers."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from tomada._client.connection import (
    LONGEST,
    Connection,
    RefusedError,
    SecuringError,
)
from tomada._client.in_flight import InFlight
from tomada._client.pool import LEAST_IDLE, MOST_IDLE, Pool
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import _Address

    from tomada._client.retry import Retry

# The number of sockets to receive from in one batch.
MANY = 64

# The number to add to an eventfd.
ONE = (1).to_bytes(8, sys.byteorder)


class Separate(InFlight):
    """Uses a connection for each request: the port identifies the request of a reply."""

    def __init__(self, pool: Pool, retry: Retry, address: _Address) -> None:
        super().__init__(pool, retry, address)
        # All connections, and the requests that were sent over them, by descriptor.
        self._connections: dict[int, Connection] = {}
        self._asked: dict[int, int] = {}
        # The connection of each request, and the requests that were sent more than once.
        self._own: dict[int, Connection] = {}
        self._repeated: set[int] = set()
        self._free: deque[Connection] = deque()
        self._epoll = select.epoll()
        # Wakes the epoll when the pool closes, because the epoll does not report connections that
        # another thread closes. A file object instead of a descriptor: once it is closed, the waker
        # cannot write to another file with the same number.
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._closing = os.fdopen(os.eventfd(0, flags), "wb", buffering=0)
        try:
            self._epoll.register(self._closing, select.EPOLLIN)
            pool.add_waker(self._wake)
        except BaseException:
            self._end()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to receive."""
        return self._epoll.fileno()

    def _wake(self) -> None:
        with contextlib.suppress(ValueError):  # closed
            self._closing.write(ONE)

    def _send(self, indices: Sequence[int]) -> None:
        free, own, requests = self._free, self._own, self.requests
        if not self.pool.watched:
            self._borrow(len(indices) + LEAST_IDLE - 1 - len(free))
        if free:
            self._drop_late()
        for index in indices:
            connection = own.get(index)
            if connection is not None:
                if connection not in self.securing:
                    self._repeated.add(index)
            elif len(free) >= LEAST_IDLE and not self.pool.watched:
                # Assign it at once, so that an exception cannot leave it without an owner.
                connection = own[index] = free.popleft()
                self._asked[connection.number] = index
            else:
                try:
                    connection = self._assign(index)
                except OSError as error:  # no port is left, or no descriptor
                    self._fail(index, error)
                    continue
            try:
                connection.send(requests[index])
            except OSError:
                self._send_slowly(connection, index)

    def _borrow(self, count: int) -> None:
        """Put idle connections of the pool before the free ones: they have rested longer."""
        borrowed = self.pool.take_idle(count) if count > 0 else []
        self._free.extendleft(reversed(borrowed))
        for connection in borrowed:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        connection.set_wait(0.0)
        self._connections[connection.number] = connection
        self._epoll.register(connection.number, select.EPOLLIN)

    def _drop_late(self) -> None:
        """Discard datagrams that have arrived on idle connections."""
        for number, _ in self._epoll.poll(0):
            if number not in self._asked and number != self._closing.fileno():
                self._late(self._connections[number])

    def _late(self, connection: Connection) -> None:
        """Discard datagrams that have arrived on an idle connection."""
        self.unexpected += self.pool.look_for_duplicate(connection)
        connection.empty()

    def _assign(self, index: int) -> Connection:
        """Give a request a free connection that has rested long enough, or one from the pool."""
        free, pool = self._free, self.pool
        if free and pool.has_rested(free[0], len(free) - 1, monotonic()):
            connection = self._own[index] = free.popleft()
            if pool.watched and pool.look_for_duplicate(connection):
                self.unexpected += 1
                connection.empty()
        else:
            if len(free) > MOST_IDLE:
                self._discard(free.popleft())
            connection = self._own[index] = pool.take()
            self._watch(connection)
        connection.request_timeout = self._groups[index].exchange.timeout
        self._asked[connection.number] = index
        return connection

    def _discard(self, connection: Connection) -> None:
        self._unwatch(connection)
        self.pool.discard(connection)

    def _unwatch(self, connection: Connection) -> None:
        self._connections.pop(connection.number, None)
        with contextlib.suppress(OSError):  # the client was just closed
            self._epoll.unregister(connection.number)

    def _send_slowly(self, connection: Connection, index: int) -> None:
        """Send a request alone, because its connection is new or its batched send failed."""
        try:
            connection.ask(self.requests[index], 0.0)
            self.securing.pop(connection, None)  # or it would be sent again
        except RefusedError as refused:
            self._not_sent(index, refused.args[0])
        except SecuringError:
            self._wait_for_session(connection, index)
        except OSError as error:
            self._not_sent(index, error)

    def _lost(self, connection: Connection, index: int, error: OSError) -> None:
        """Handle the end of a session, or another error of a receive."""
        if connection.is_unsecured(error):
            return
        if (lost := connection.session_lost()) is not None:
            self._refused([index], lost)
        elif is_from_peer(error):
            self._refused([index], error)
        else:
            self._fail(index, error)

    def _connection_of(self, index: int) -> Connection | None:
        return self._own.get(index)

    def _send_at_last(self, connection: Connection, indices: Sequence[int]) -> None:
        for index in indices:
            self._send_slowly(connection, index)

    def receive(self, until: float) -> bool:
        """Wait for datagrams until a given time; return whether any arrived."""
        events = self._epoll.poll(max(until - monotonic(), 0.0), MANY)
        if self.pool.sample_due != self.pool.round_trip.sample_due:
            self.pool.adapt()
        now = monotonic()
        replies: dict[int, bytes] = {}
        try:
            self._take_replies(events, replies, now)
        finally:  # also if another connection raises an error
            if replies:
                self._complete(replies, now)
        return bool(events)

    def _take_replies(
        self, events: list[tuple[int, int]], replies: dict[int, bytes], now: float
    ) -> None:
        """Receive from connections, and take the requests of replies out of `requests`."""
        asked, connections = self._asked, self._connections
        for number, _ in events:
            index = asked.get(number)
            if index is None:
                if number == self._closing.fileno():
                    raise OSError(errno.EBADF, "the client is closed")
                self._late(connections[number])
                continue
            connection = connections[number]
            if connection in self.securing:
                self._secure(connection, 0.0)
                continue
            try:
                reply = connection.recv(LONGEST)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lost(connection, index, error)
                continue
            if connection.peer is not None:  # connected, so the server sent it
                connection.used_at = now
                replies[index] = reply
                del self.requests[index]
                self.refusal = None
                self._release(index, is_answered=True)

    def _release(self, index: int, *, is_answered: bool) -> None:
        """Take the connection from a request; keep it if no late reply can arrive."""
        connection, pool = self._own.pop(index), self.pool
        self.securing.pop(connection, None)
        self._asked.pop(connection.number, None)
        if is_answered and index not in self._repeated:
            self._keep(connection)
        else:
            self._repeated.discard(index)
            self._unwatch(connection)
            pool.retire(connection)

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        self.pool.count_watched()  # the epoll watches idle connections
        self._free.append(connection)

    def _stop_expecting(self, index: int) -> None:
        if index in self._own:
            self._release(index, is_answered=False)

    def close(self) -> None:
        """Return the connections to the pool."""
        self._end()
        self.pool.put(*self._free)
        for connection in self._own.values():
            self.pool.retire(connection)

    def _end(self) -> None:
        self.pool.remove_waker(self._wake)
        self._epoll.close()
        self._closing.close()


class Returning(Separate):
    """Returns each connection to the pool after its request.

    This is for clients that keep requests in flight for their whole life: the pool closes
    connections that are no longer needed.
    """

    def _borrow(self, count: int) -> None:
        """Leave idle connections in the pool, which checks whether one has rested long enough."""

    def _keep(self, connection: Connection) -> None:
        self._unwatch(connection)
        self.pool.put(connection)
