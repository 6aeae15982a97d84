"""A client's sockets: connected to the server, and rested while a late reply may arrive."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import select
import socket as _std
import threading
import weakref
from collections import deque
from socket import AF_INET, AF_UNIX, SOCK_DGRAM
from time import monotonic
from typing import TYPE_CHECKING

from tomada._address import HIGHEST_PORT, check_address
from tomada._advice import OF_OPENING, advise, advised
from tomada._client.round_trip import RoundTrip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer

    from tomada._client.retry import Retry
    from tomada._core import Socket

    # Type checkers need the standard class as a base.
    class socket(Socket, _std.socket): ...  # type: ignore[misc] # noqa: N801

else:
    from tomada.socket import socket

# The errors of a send whose source address, chosen by the kernel on connecting, cannot be used. The
# address may no longer belong to this machine, which may have another one instead.
_UNROUTED = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})

# Larger than any datagram. The room is free: only the part that a datagram fills is touched.
LONGEST = 1 << 20

# The errors after which a datagram was not sent: an earlier one was refused, or there is no
# connection.
_UNASKED = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ})

# The number of sockets that may rest while a late reply can still arrive. Beyond it, the oldest is
# closed to save descriptors, and its port is not used again for a while.
MOST_RESTING = 64

# The number of idle sockets whose last request was sent once and answered once: at least (when
# requests come fast), and at most. Beyond that, the oldest is closed and its port is avoided.
LEAST_IDLE = 32
MOST_IDLE = min(512, max(LEAST_IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

# How many requests a client makes at first as if the network duplicated datagrams, while watching.
WATCHED = 256

# How long to avoid the port of a socket that was closed early, in seconds, and how many times to
# try for another port.
AVOIDED = 10.0
MOST_TRIES = 8


class RefusedError(Exception):
    """There is no server. The argument is the :class:`OSError` that reported it."""


def resolve(address: _Address, family: int = 0) -> tuple[int, _Address]:
    """Return the family and the numeric form of an address.

    If a name has several addresses, an IPv4 address is preferred, as with an ``AF_INET`` socket,
    unless `family` says otherwise.
    """
    check_address(address)
    if not isinstance(address, tuple):
        return AF_UNIX, address
    host, port, *scope = address
    if not 0 < port <= HIGHEST_PORT:
        raise ValueError(f"the address's port must be from 1 to {HIGHEST_PORT}, not {port}")
    try:
        found = _std.getaddrinfo(host or None, port, family, SOCK_DGRAM)
    except _std.gaierror as error:
        advise(error, str(host))
        raise
    chosen = min(found, key=lambda info: info[0] != AF_INET)
    return chosen[0], (*chosen[4][:2], *scope) if scope else chosen[4]


class Connection(socket):
    """A socket that is connected to the server and returns only datagrams from the server."""

    __slots__ = ("_avoided", "_to", "number", "peer", "poll", "used_at", "wait")

    def __init__(
        self,
        family: int,
        to: _Address,
        avoided: dict[int, float],
        prepare: Callable[[Connection], None],
    ) -> None:
        super().__init__(family, SOCK_DGRAM)
        self._to = to
        # Ports, and until when each is to be avoided.
        self._avoided = avoided
        #: When its last request was answered.
        self.used_at = 0.0
        #: Its timeout between requests, in seconds.
        self.wait = 0.0
        #: The server's address, in the form in which the kernel reports it with a datagram.
        self.peer: _RetAddress = None
        try:
            if family == AF_UNIX:
                self.bind("")  # a free abstract name, so that the server can reply
            prepare(self)
            #: The descriptor. Another thread may close it at any time.
            self.number = self.fileno()
            poll = select.poll()
            poll.register(self.number, select.POLLIN)
            #: Call with 0 to learn whether the queue has a datagram.
            self.poll = poll.poll
        except BaseException:
            self.close()
            raise

    def ask(self, data: ReadableBuffer, until: float) -> None:
        """Send a request, waiting for room until a moment.

        :raises RefusedError: There is no server.
        """
        self.wait_until(until)
        try:
            try:
                self.send(data)
            except OSError as error:
                if error.errno in _UNROUTED and self.family != AF_UNIX:
                    self._disconnect()
                elif error.errno not in _UNASKED:
                    raise
                # The error is about an earlier datagram, and this one was not sent. An AF_UNIX
                # server may also have been replaced by another one with the same name.
                self.reconnect()
                self.send(data)
        except OSError as error:
            if _is_refusal(error):
                raise RefusedError(error) from None
            raise

    def ask_many(self, requests: Sequence[ReadableBuffer]) -> list[tuple[int, OSError]]:
        """Send requests while there is room; return the index and error of each one not sent."""
        self.settimeout(0)
        failed = self.send_many(requests, errors="continue")
        unsure = _UNASKED if self.family == AF_UNIX else _UNASKED | _UNROUTED
        again = [index for index, error in failed if error.errno in unsure]
        if again:
            is_unrouted = any(error.errno in _UNROUTED for _, error in failed)
            failed = [item for item in failed if item[1].errno not in unsure]
            try:
                if is_unrouted and self.family != AF_UNIX:
                    self._disconnect()
                self.reconnect()
            except OSError as error:
                raise (RefusedError(error) if _is_refusal(error) else error) from None
            unsent = [requests[index] for index in again]
            second = self.send_many(unsent, errors="continue")
            failed += [(again[index], error) for index, error in second]
        return failed

    def reconnect(self) -> None:
        """Connect to the socket that has the server's address now."""
        self.peer = None
        self.connect(self._to)
        if self._avoided and self.family != AF_UNIX:
            for _ in range(MOST_TRIES):
                if self._avoided.get(self.getsockname()[1], 0.0) <= monotonic():
                    break
                self._disconnect()  # which releases the port
                self.connect(self._to)
        self.peer = self.getpeername()

    def wait_until(self, moment: float) -> float:
        """Let calls wait until a moment; return the timeout in seconds."""
        left = max(moment - monotonic(), 0.0)
        self.settimeout(left)
        return left

    def answer(self, until: float, is_answer: Callable[[bytes], bool]) -> bytes | None:
        """Wait for a reply until a moment; return it, or None.

        :raises RefusedError: There is no server.
        """
        self.wait_until(until)
        while True:
            try:
                data, sender = self.recvfrom(LONGEST)
            except (TimeoutError, BlockingIOError):
                return None
            except ConnectionRefusedError as error:
                raise RefusedError(error) from None
            # Another sender's datagram may have arrived between bind and connect.
            if sender == self.peer and is_answer(data):
                return data
            if not self.wait_until(until):
                return None

    def empty(self) -> None:
        """Discard the queued datagrams: they are late, or belong to no request."""
        while self.poll(0):
            self.settimeout(0)
            try:
                self.recv_many()
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                pass


def has_no_room(error: OSError) -> bool:
    """Return whether a send failed because a queue was full, so that a retry may succeed."""
    return isinstance(error, TimeoutError | BlockingIOError) or error.errno == errno.ENOBUFS


def _is_refusal(error: OSError) -> bool:
    return isinstance(error, ConnectionRefusedError | FileNotFoundError)


class Pool:
    """The sockets of one client: one for each concurrent request, and idle ones.

    Each request has a socket of its own, so that the port identifies its reply. Without a
    ``match``, a socket rests after each request, and the socket that has rested longest is used
    first. Sockets rest longer while the first requests are watched for duplicates, and after a
    duplicate was seen. A socket whose request was sent twice, was not answered, or was cancelled
    is not reused: it stays open for a while, so that no other socket gets the port before a late
    reply arrives.
    """

    def __init__(
        self,
        family: int,
        address: _Address,
        retry: Retry,
        *,
        tells_apart: bool,
        prepare: Callable[[Connection], None],
    ) -> None:
        self._family = family
        self._address = address
        self._retry = retry
        # AF_UNIX names are rarely reused and datagrams are never duplicated; and a queue that
        # nobody reads would block the server's sends.
        self._rest = 0.0 if family == AF_UNIX else retry.timeout
        #: How long a socket rests before the next request, in seconds: always, and while few
        #: sockets rest.
        self.rest = self.long_rest = 0.0 if tells_apart else self._rest
        #: How many more requests to watch for duplicates; infinite once there was one.
        self.watched = WATCHED if self.rest else 0.0
        #: A socket that has not rested for long is used only if at least this many others rest.
        self.few = LEAST_IDLE - 1 if self.rest else 0
        self._prepare = prepare
        self._avoided: dict[int, float] = {}
        #: The round-trip estimate of the server.
        self.round_trip = RoundTrip()
        #: The earliest time at which calling :meth:`sample` is useful.
        self.sample_due = 0.0
        #: The timeout of idle connections: approximately the first wait of a request.
        self.wait = retry.first_wait
        # Reentrant, because a signal handler may close the client inside any of these methods.
        self._lock = threading.RLock()
        self._all: set[Connection] = set()
        self._resting: deque[tuple[float, Connection]] = deque()
        #: Connections that may be used again, longest-rested first.
        self.idle: deque[Connection] = deque()
        #: Called when the pool is closed, to wake callers that wait on several connections.
        self.wakers: set[Callable[[], None]] = set()
        self.is_closed = False
        _pools.add(self)

    def take(self) -> Connection:
        """Return a connection with an empty queue."""
        try:
            connection = self.idle.popleft()
        except IndexError:
            return self._open()
        if self.has_rested(connection, len(self.idle), monotonic()):
            if self.look_for_duplicate(connection):
                connection.empty()
            return connection
        if len(self.idle) < MOST_IDLE:
            self.idle.appendleft(connection)
        else:
            self.discard(connection, connection.used_at + self.rest)
        return self._open()

    def admits(self, connection: Connection, now: float) -> bool:
        """Return whether an idle connection may be used, as in :meth:`take`; otherwise keep it."""
        if self.has_rested(connection, len(self.idle), now):
            self.look_for_duplicate(connection)
            return True
        self.idle.appendleft(connection)
        return False

    def look_for_duplicate(self, connection: Connection) -> bool:
        """Return whether an idle socket has received a datagram; if so, rest longer from now on."""
        if self.watched:
            self.watched = max(self.watched - 1, 0)
        if not connection.poll(0):
            return False
        if self.long_rest:
            self.watched = math.inf
            self.adapt()
        return True

    def has_rested(self, connection: Connection, others: int, now: float) -> bool:
        """Return whether a socket may be used again, given how many others rest."""
        rest = self.rest if others >= self.few else self.long_rest
        return connection.used_at + rest <= now

    def _open(self) -> Connection:
        with self._lock:
            if self.is_closed:
                raise OSError(errno.EBADF, "the client is closed")
            with advised(self._address, OF_OPENING):
                connection = Connection(self._family, self._address, self._avoided, self._prepare)
            self._all.add(connection)
            if self.is_closed:  # a signal handler may have just closed it
                self._forget()
        return connection

    def put(self, connection: Connection) -> None:
        """Put back a connection that may be used again."""
        self.adapt()
        with contextlib.suppress(OSError):  # the pool may have just been closed
            connection.wait = self.wait
            connection.settimeout(connection.wait)
            connection.used_at = monotonic()
            if self.watched or len(self.idle) < 4 * LEAST_IDLE:
                self.idle.append(connection)
            else:
                self.discard(connection, connection.used_at + AVOIDED)

    def retire(self, connection: Connection) -> None:
        """Put back a connection on which a late reply may still arrive."""
        now = monotonic()
        self.adapt()
        with self._lock:
            self._resting.append((now + self._rest, connection))
            resting = self._resting
            while resting and (resting[0][0] <= now or len(resting) > MOST_RESTING):
                _, rested = resting.popleft()
                self.discard(rested, now + AVOIDED)

    def discard(self, connection: Connection, until: float) -> None:
        """Close a connection, and avoid its port until a moment."""
        with self._lock:
            self._all.discard(connection)
            if self._family != AF_UNIX:
                with contextlib.suppress(OSError):  # the pool was closed
                    self._avoided[connection.getsockname()[1]] = until
            connection.close()

    def sample(self, elapsed: float, now: float) -> None:
        """Record the round-trip time of a reply, in seconds."""
        self.round_trip.sample(elapsed, now)
        self.adapt()
        if self.long_rest:
            self._look_at_oldest()

    def adapt(self) -> None:
        """Apply the current round-trip estimate to the timeouts."""
        self.sample_due = self.round_trip.sample_due
        wait = self.round_trip.first_wait(self._retry)
        if abs(wait - self.wait) > self.wait / 8:  # each change costs one call per connection
            self.wait = wait
        if self.long_rest:
            self.rest = min(self.round_trip.spread, self.long_rest) if self.watched else 0.0

    def _look_at_oldest(self) -> None:
        """Check whether the longest-rested socket has a duplicate, and whether it still works."""
        try:
            oldest = self.idle.popleft()  # so that no other thread uses it
        except IndexError:
            return
        if oldest.poll(0):
            self.watched = math.inf
        is_old = oldest.used_at + self.long_rest < monotonic()
        if len(self.idle) >= (MOST_IDLE if self.watched and not is_old else LEAST_IDLE):
            self.discard(oldest, oldest.used_at + AVOIDED)
        else:
            self.idle.appendleft(oldest)

    def add_waker(self, waker: Callable[[], None]) -> None:
        """Register a function that :meth:`close` calls."""
        with self._lock:
            if self.is_closed:
                raise OSError(errno.EBADF, "the client is closed")
            self.wakers.add(waker)

    def remove_waker(self, waker: Callable[[], None]) -> None:
        """Unregister a function. When this returns, the function is not running."""
        with self._lock:
            self.wakers.discard(waker)

    def close(self) -> None:
        """Close all connections; calls that wait on one of them raise :class:`OSError`."""
        with self._lock:
            self.is_closed = True
            for waker in list(self.wakers):
                waker()
            self._forget()

    def start_anew(self) -> None:
        """After a fork, forget the connections: they and their replies belong to the parent."""
        self._lock = threading.RLock()
        self.wakers.clear()
        self._forget()

    def _forget(self) -> None:
        while self._all:
            self._all.pop().close()
        self.idle.clear()
        self._resting = deque()  # a new one, because the parent's may have been in use


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.start_anew()


os.register_at_fork(after_in_child=_after_fork)
