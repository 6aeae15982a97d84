"""A client's sockets, which are connected to the server and rest while a late reply may arrive."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import socket as _std
import threading
import weakref
from collections import deque
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._address import HIGHEST_PORT, check_address
from tomada._advice import OF_OPENING, advise, advise_if_known
from tomada._client.connection import Connection, close_all
from tomada._client.ports import PORTS
from tomada._client.round_trip import RESTING_SAMPLE_INTERVAL, SAMPLE_INTERVAL, RoundTrip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address

    from tomada._client.retry import Retry

# How many sockets that may still get a late reply stay open for the timeout. While one is open, the
# server does not get an ICMP message, and no other process can get the port. Beyond this number,
# the oldest is closed to save descriptors. Open or closed, their ports are avoided.
MOST_RESTING = 64

# The minimum and maximum number of idle sockets, whose last request was sent once and answered
# once. Beyond the maximum, the oldest is closed.
LEAST_IDLE = 32
MOST_IDLE = min(512, max(LEAST_IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

# For this many requests, a new client assumes that the network duplicates datagrams, and watches
# for duplicates.
WATCHED = 256

# The minimum rest of a socket after a duplicate was seen, in seconds.
LEAST_REST = 0.1

# How many long-rested sockets of each kind to close at once: cleaning up after many requests must
# not delay a single one.
TRIMMED = 4

# A socket is not needed, because fewer would do, if it has rested for this many times the necessary
# rest and for at least this many seconds, or for the timeout. If sockets do not have to rest, those
# that stay idle for LEAST_LONG seconds are not needed.
LONG_RESTS = 4
LEAST_LONG = 1.0

# The local address of a socket before it is connected, without a port.
_ANY = dict[int, tuple[str]]({AF_INET: ("0.0.0.0",), AF_INET6: ("::",)})  # noqa: S104 - the default


def resolve(address: _Address, family: int = 0) -> tuple[int, _Address]:
    """Return the family and the numeric form of an address.

    If a name has several addresses, an IPv4 address is preferred, as with an ``AF_INET`` socket,
    unless `family` says otherwise.
    """
    question = ask_for(address, family)
    if question is None:
        return AF_UNIX, address
    try:
        found = _std.getaddrinfo(*question)
    except _std.gaierror as error:
        advise(error, str(question[0]))
        raise
    return choose(found, address)


def ask_for(address: _Address, family: int) -> tuple[str | None, int, int, int] | None:
    """Return the arguments of ``getaddrinfo`` for a server's address; None for ``AF_UNIX``."""
    check_address(address)
    if not isinstance(address, tuple):
        return None
    host, port, *_ = address
    if not 0 < port <= HIGHEST_PORT:
        raise ValueError(f"the address's port must be from 1 to {HIGHEST_PORT}, not {port}")
    return host or None, port, family, SOCK_DGRAM


def choose(found: Sequence[Any], address: _Address) -> tuple[int, _Address]:
    """Return one of the results of ``getaddrinfo``, as :func:`resolve` does."""
    scope: tuple[Any, ...] = address[2:] if isinstance(address, tuple) else ()
    chosen = min(found, key=lambda info: info[0] != AF_INET)
    return chosen[0], (*chosen[4][:2], *scope) if scope else chosen[4]


class Pool:
    """The sockets of one client: one for each concurrent request, and idle ones.

    Each request has its own socket, so that the port identifies the request that a datagram
    answers. If nothing else identifies it, a socket rests after each request, and those that have
    rested longest are used first. They rest longer while the first requests are watched for
    duplicates, and after a duplicate was seen. A socket whose request was sent twice, not answered
    or cancelled is not used again: it stays open for the timeout if there are few such sockets, and
    its port is avoided until no late reply can arrive.

    If each request has its own timeout, set the connection's ``request_timeout`` to it before
    giving the connection back.

    :param local: The local address of the connections, without a port. By default, any.
    :param is_secured: Whether a new connection needs a handshake before it can send a request.
    """

    def __init__(  # noqa: PLR0913 - the settings of a client
        self,
        family: int,
        address: _Address,
        retry: Retry,
        *,
        tells_apart: bool,
        prepare: Callable[[Connection], None],
        local: tuple[Any, ...] | None = None,
        is_secured: bool = False,
    ) -> None:
        self._family = family
        self._address = address
        self._retry = retry
        # Whether sockets that may get a late reply stay open. Not with AF_UNIX: its names are not
        # reused, nothing duplicates datagrams, and those that wait in a queue would keep the server
        # from sending.
        self._is_late_kept = family != AF_UNIX
        #: Whether a socket rests before the next request: for the timeout if there are few. Not
        #: needed with DTLS either, which drops duplicates: a late record does not fit the keys of
        #: another socket's session.
        self.rests = not (tells_apart or is_secured) and family != AF_UNIX
        #: The minimum time that it rests, in seconds, unless the timeout is shorter.
        self.rest = math.inf if self.rests else 0.0
        #: How many more requests to watch for duplicates; infinite after a duplicate was seen.
        self.watched = WATCHED if self.rests else 0.0
        self._has_duplicates = False
        #: How many other sockets must be idle before one is used that has not rested for the
        #: timeout.
        self.few = LEAST_IDLE - 1 if self.rests else 0
        self._prepare = prepare
        self._is_secured = is_secured
        # With a match, late replies do no harm, and the kernel chooses the port.
        self._local = (local or _ANY[family]) if self.rests else None
        #: The round-trip estimate for the server.
        self.round_trip = RoundTrip()
        #: The earliest time at which calling :meth:`sample` is useful.
        self.sample_due = 0.0
        #: The timeout of idle connections: approximately the first wait of a request.
        self.wait = retry.first_wait
        # Reentrant, because a signal handler may close the client inside any of these methods. It
        # is not held while a socket is opened or closed: after a system call, a thread may get the
        # interpreter's lock back late, and all other threads would wait for it.
        self._lock = threading.RLock()
        # The open connections. Each is removed only after it was closed: otherwise, the garbage
        # collector could close it without its port being avoided.
        self._all: set[Connection] = set()
        self._resting: deque[tuple[float, Connection]] = deque()
        # The minimum number of idle sockets since the last count, how many of them to close
        # according to that count, and when the next count is due.
        self._unused = 0
        self._spare = 0
        self._count_due = 0.0
        # When the next sample also closes sockets.
        self._trim_due = 0.0
        #: Connections that may be used again, longest-rested first.
        self.idle: deque[Connection] = deque()
        #: Called when the pool is closed, to wake threads that wait for several connections.
        self.wakers: set[Callable[[], None]] = set()
        self.is_closed = False
        _pools.add(self)

    def take(self) -> Connection:
        """Return a connection with an empty queue."""
        try:
            connection = self.idle.popleft()
        except IndexError:
            self._unused = 0
            return self._open()
        self._unused = min(self._unused, len(self.idle))
        if self.has_rested(connection, len(self.idle), monotonic()):
            try:
                if self.look_for_duplicate(connection):
                    connection.empty()
            except BaseException:
                self.retire(connection)
                raise
            return connection
        self._keep_oldest(connection)
        return self._open()

    def take_new(self) -> Connection | None:
        """Open and connect a connection; return it with an empty queue, or ``None`` if that fails.

        The next attempt then raises the error. This also returns ``None`` if a connection needs a
        handshake first, which :meth:`Connection.ask` makes.
        """
        if self._is_secured:
            return None
        self._unused = min(self._unused, len(self.idle))
        try:
            connection = self._open()
        except OSError:
            return None
        try:
            connection.reconnect()
        except OSError:
            self.discard(connection)  # nothing was sent
            return None
        return connection

    def take_idle(self, count: int) -> list[Connection]:
        """Return up to `count` idle connections, the one that has rested longest first.

        Their queues may contain late datagrams.
        """
        taken: list[Connection] = []
        with contextlib.suppress(IndexError):
            while len(taken) < count:
                taken.append(self.idle.popleft())
        self._unused = min(self._unused, len(self.idle))
        return taken

    def admits(self, connection: Connection, now: float) -> bool:
        """Return whether an idle connection may be used, as in :meth:`take`; otherwise keep it."""
        if self.has_rested(connection, len(self.idle), now):
            self.look_for_duplicate(connection)
            return True
        self._keep_oldest(connection)
        return False

    def _keep_oldest(self, connection: Connection) -> None:
        """Put back an idle connection that may not be used yet; beyond the maximum, close it."""
        if len(self.idle) < MOST_IDLE:
            self.idle.appendleft(connection)
        else:
            self.discard(connection)

    def look_for_duplicate(self, connection: Connection) -> bool:
        """Return whether the queue of an idle socket is not empty.

        If a datagram is there, and not only an error, sockets rest longer from now on.
        """
        self.count_watched()
        if not connection._is_readable():  # noqa: SLF001 - made for this purpose
            return False
        if self.rests and connection._has_datagram():  # noqa: SLF001 - as above
            self._note_duplicate()
            self.adapt()
        return True

    def count_watched(self) -> None:
        """Record that a request was watched for duplicates."""
        if self.watched:
            left = max(self.watched - 1, 0)
            self.watched = math.inf if self._has_duplicates else left

    def _note_duplicate(self) -> None:
        self._has_duplicates = True
        self.watched = math.inf

    def has_rested(self, connection: Connection, others: int, now: float) -> bool:
        """Return whether a socket may be used again, given how many others rest."""
        if not self.rests:
            return True
        rest = self.rest if others >= self.few else math.inf
        return connection.used_at + min(rest, connection.request_timeout) <= now

    def _open(self) -> Connection:
        if self.is_closed:
            raise OSError(errno.EBADF, "the client is closed")
        try:
            connection = Connection(self._family, self._address, self._local, self._prepare)
        except OSError as error:
            advise_if_known(error, self._address, OF_OPENING)
            raise
        connection.request_timeout = self._retry.timeout
        self._all.add(connection)
        if self.is_closed:  # another thread, or a signal handler, may have just closed it
            self._forget()
        return connection

    def put(self, *connections: Connection) -> None:
        """Put back connections that may be used again, the one that has rested longest first."""
        self.adapt()
        now = monotonic()
        for connection in connections:
            connection.used_at = now
            if len(self.idle) >= MOST_IDLE:
                self.discard(connection)
            elif connection.fileno() >= 0:  # the pool may have just been closed
                self.idle.append(connection)
        if len(self.idle) > LEAST_IDLE or now >= self._trim_due:
            self.trim()

    def retire(self, connection: Connection) -> None:
        """Give back a connection that may still get a late reply."""
        self.adapt()
        until = monotonic() + connection.request_timeout if self._is_late_kept else 0.0
        with self._lock:
            self._resting.append((until, connection))
        self.trim()

    def trim(self) -> None:
        """Close a few of the sockets that have rested for long enough or exceed the limits."""
        now = monotonic()
        self._trim_due = now + SAMPLE_INTERVAL
        self._count_unused(now)
        ended: list[Connection] = []
        while len(ended) < TRIMMED and (rested := self._pop_rested(now)) is not None:
            rested.avoid()
            ended.append(rested)
        if self.rests or len(self.idle) > LEAST_IDLE:
            for _ in range(TRIMMED):
                oldest = self._pop_oldest(now)
                if oldest is None:
                    break
                self._avoid_at_rest(oldest)
                ended.append(oldest)
        self._close(ended)
        PORTS.expire()

    def _pop_rested(self, now: float) -> Connection | None:
        with self._lock:
            resting = self._resting
            is_due = resting and (resting[0][0] <= now or len(resting) > MOST_RESTING)
            return resting.popleft()[1] if is_due else None

    def discard(self, connection: Connection) -> None:
        """Close a connection whose last request was sent once and answered.

        At least 31 others rest and are used before the client opens a new socket. So its port is
        avoided only if duplicates are expected.
        """
        self._avoid_at_rest(connection)
        self._close([connection])

    def _avoid_at_rest(self, connection: Connection) -> None:
        """Avoid the port of a socket that was answered, until its rest would have ended."""
        rest = min(self.rest, connection.request_timeout) if self.rests else 0.0
        connection.avoid(connection.used_at + rest)

    def _close(self, connections: Sequence[Connection]) -> None:
        if connections:
            close_all(connections)
            self._all.difference_update(connections)

    def sample(self, elapsed: float, now: float) -> None:
        """Record the round-trip time of a reply, in seconds."""
        self.round_trip.sample(elapsed, now)
        self.adapt()
        if now >= self._trim_due:
            self.trim()

    def adapt(self) -> None:
        """Apply the current round-trip estimate to the timeouts."""
        if self._has_duplicates:
            self.watched = math.inf  # another thread may have counted meanwhile
        self.sample_due = self.round_trip.sample_due
        wait = self.round_trip.first_wait(self._retry)
        if abs(wait - self.wait) > self.wait / 8:  # each change costs one call per connection
            self.wait = wait
        if self.rests:
            self.rest = self._long_rest() if self.watched else 0.0
        self.round_trip.sample_interval = (
            RESTING_SAMPLE_INTERVAL if self.watched else SAMPLE_INTERVAL
        )

    def _long_rest(self) -> float:
        """Return how long a socket rests if duplicates are possible, in seconds."""
        spread = self.round_trip.spread
        # A network that duplicates datagrams may also delay the copies.
        return max(spread, LEAST_REST) if self.watched == math.inf else spread

    def _pop_oldest(self, now: float) -> Connection | None:
        """Remove and return the idle socket that has rested longest, unless it is needed.

        This also checks whether it has received a duplicate.
        """
        try:
            oldest = self.idle.popleft()  # so that no other thread uses it
        except IndexError:
            return None
        if self.rests and oldest._has_datagram():  # noqa: SLF001
            self._note_duplicate()
        long = min(max(LONG_RESTS * self.rest, LEAST_LONG), oldest.request_timeout)
        is_unused = self._spare > 0 or oldest.used_at + long < now
        if len(self.idle) >= (LEAST_IDLE if is_unused else MOST_IDLE):
            self._spare -= self._spare > 0
            return oldest
        self.idle.appendleft(oldest)
        return None

    def _count_unused(self, now: float) -> None:
        """Count the sockets that stayed idle since the last count, when the next one is due.

        While the pool watches for duplicates, none is counted, because each is needed while it
        rests.
        """
        self._unused = min(self._unused, len(self.idle))
        if now >= self._count_due:
            self._spare = 0 if self.watched else max(self._unused - LEAST_IDLE, 0)
            self._unused = len(self.idle)
            self._count_due = now + LEAST_LONG

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
        ended = []
        while self.rests and self.idle:
            try:
                connection = self.idle.popleft()  # so that no other thread uses it
            except IndexError:
                break
            rest = min(self._long_rest(), connection.request_timeout)
            connection.avoid(connection.used_at + rest)
            ended.append(connection)
        self._close(ended)
        while left := list(self._all):
            for connection in left:
                connection.avoid()
            self._close(left)
        self.idle.clear()
        self._resting = deque()  # a new one, because the parent's may have been in use


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.start_anew()


os.register_at_fork(after_in_child=_after_fork)
