"""A client's sockets: each connected to the server, and at rest while a reply may be late."""

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
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM
from time import monotonic
from typing import TYPE_CHECKING

from tomada._address import HIGHEST_PORT, check_address
from tomada._advice import OF_OPENING, advise, advised
from tomada._client.exchange import is_refusal
from tomada._client.round_trip import RoundTrip
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer

    from tomada._client.retry import Retry
    from tomada._core import Socket

    # A type checker takes tomada's class for the standard one.
    class socket(Socket, _std.socket): ...  # type: ignore[misc] # noqa: N801

else:
    from tomada.socket import socket

# Why one could not be sent from the address that the kernel has chosen on connecting. This machine
# may have it no more, and another in its place.
_UNROUTED = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})

# How often to repeat a send that may have reported an ICMP message about an earlier datagram, and
# how many such reports to read once the time of an attempt is over.
MOST_REPORTS = 8

# linux/in.h and linux/in6.h: the options that the socket module does not have.
IP_MTU = 14
IPV6_MTU = 24

# Bytes of the headers of IP and UDP.
HEADERS = 28
HEADERS_V6 = 48

# More than any datagram has. Room costs nothing, as only what a datagram fills is touched.
LONGEST = 1 << 20

# Why a datagram was not even sent: an earlier one was refused, or there is no connection.
_UNASKED = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ})

# How many sockets over which a reply may still come rest; beyond that the oldest is closed, to
# spare descriptors, and its port is not taken again.
MOST_RESTING = 64

# How many sockets rest whose request was sent once and answered once; at the least, where requests
# come fast, and at the most. Beyond that the oldest is closed, and its port is not taken again.
LEAST_IDLE = 32
MOST_IDLE = min(512, max(LEAST_IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

# How many of a client's first requests are watched for duplicates, with care as if there were some.
WATCHED = 256

# For how long the port of a socket that was closed early is not taken again, in seconds, and how
# often to look for another one.
AVOIDED = 10.0
MOST_TRIES = 8


class RefusedError(Exception):
    """An attempt is lost: there is no server, or an ICMP message said that it was not reached.

    The argument is the :class:`OSError` that said so.
    """


def resolve(address: _Address, family: int = 0) -> tuple[int, _Address]:
    """Return the family and the numeric form of an address.

    Of a name's addresses one of IPv4 is preferred, as with a socket of ``AF_INET``, unless a family
    was asked for.
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
    """A socket that is connected to the server and hands out nothing but the server's datagrams."""

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
        # Ports by the moment up to which they are not to be used.
        self._avoided = avoided
        #: When its last request was answered.
        self.used_at = 0.0
        #: The timeout that it has between requests.
        self.wait = 0.0
        #: The server's address, as the kernel gives it with a datagram.
        self.peer: _RetAddress = None
        try:
            if family == AF_UNIX:
                self.bind("")  # a free abstract name, where the reply can be sent
            prepare(self)
            #: The descriptor, which another thread may close at any time.
            self.number = self.fileno()
            poll = select.poll()
            poll.register(self.number, select.POLLIN)
            #: Says whether there is something in the queue; called with 0.
            self.poll = poll.poll
        except BaseException:
            self.close()
            raise

    def ask(self, data: ReadableBuffer, until: float) -> None:
        """Send a request, and wait for room up to a moment.

        :raises RefusedError: There is no server.
        """
        self.wait_until(until)
        try:
            try:
                self._send_after_reports(data)
            except OSError as error:
                if error.errno in _UNROUTED and self.family != AF_UNIX:
                    self._disconnect()
                elif error.errno not in _UNASKED:
                    raise
                # A refusal is about an earlier datagram, and this one was not sent. A server of
                # AF_UNIX may also have made way for another one, by the same name.
                self.reconnect()
                self._send_after_reports(data)
        except OSError as error:
            if is_refusal(error):
                raise RefusedError(error) from None
            raise

    def _send_after_reports(self, data: ReadableBuffer) -> None:
        """Send a request; an error that it raises is its own, and not of an earlier datagram."""
        for _ in range(MOST_REPORTS if self.family != AF_UNIX else 0):
            try:
                self.send(data)
            except OSError as error:
                if not is_from_peer(error):
                    raise
            else:
                return
        self.send(data)

    def ask_many(self, requests: Sequence[ReadableBuffer]) -> list[tuple[int, OSError]]:
        """Send requests as :meth:`ask`, as far as there is room; return which were not, and why."""
        self.settimeout(0)
        failed = self._send_many_after_reports(requests)
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
                return failed + [(index, error) for index in again]
            second = self._send_many_after_reports([requests[index] for index in again])
            failed += [(again[index], error) for index, error in second]
        return failed

    def _send_many_after_reports(
        self, requests: Sequence[ReadableBuffer]
    ) -> list[tuple[int, OSError]]:
        failed = self.send_many(requests, errors="continue")
        for _ in range(MOST_REPORTS if failed and self.family != AF_UNIX else 0):
            again = [index for index, error in failed if is_from_peer(error)]
            if not again:
                break
            failed = [item for item in failed if not is_from_peer(item[1])]
            second = self.send_many([requests[index] for index in again], errors="continue")
            failed += [(again[index], error) for index, error in second]
        return failed

    def exceeds_path(self, data: ReadableBuffer) -> bool:
        """Say whether a request takes more than one packet, so that the way to the server drops it.

        The kernel splits it from then on, once it knows how long a packet may be.
        """
        is_inet6 = self.family == AF_INET6
        level, name = (_std.IPPROTO_IPV6, IPV6_MTU) if is_inet6 else (_std.IPPROTO_IP, IP_MTU)
        try:
            room = self.getsockopt(level, name)
        except OSError:
            return True  # the route has just changed
        return memoryview(data).nbytes + (HEADERS_V6 if is_inet6 else HEADERS) > room

    def reconnect(self) -> None:
        """Connect to what has the server's address now."""
        self.peer = None
        self.connect(self._to)
        if self._avoided and self.family != AF_UNIX:
            for _ in range(MOST_TRIES):
                if self._avoided.get(self.getsockname()[1], 0.0) <= monotonic():
                    break
                self._disconnect()  # which gives the port up
                self.connect(self._to)
        self.peer = self.getpeername()

    def wait_until(self, moment: float) -> float:
        """Let calls wait up to a moment, and return how long that is."""
        left = max(moment - monotonic(), 0.0)
        self.settimeout(left)
        return left

    def answer(self, until: float, is_answer: Callable[[bytes], bool]) -> bytes | None:
        """Wait up to a moment for an answer, and return it, if there is one.

        :raises RefusedError: An ICMP message has come. The answer may still come.
        """
        self.wait_until(until)
        while True:
            try:
                data, sender = self.recvfrom(LONGEST)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise (RefusedError(error) if is_from_peer(error) else error) from None
            # A stranger's may have come in between bind and connect.
            if sender == self.peer and is_answer(data):
                return data
            if not self.wait_until(until):
                return None

    def empty(self) -> None:
        """Throw away what is in the queue: it is late, or belongs to nothing."""
        while self.poll(0):
            self.settimeout(0)
            try:
                self.recv_many()
            except BlockingIOError:
                return
            except OSError as error:
                if not is_from_peer(error):
                    raise


def has_no_room(error: OSError) -> bool:
    """Say whether a send failed because a queue was full, so that it will do later."""
    return isinstance(error, TimeoutError | BlockingIOError) or error.errno == errno.ENOBUFS


class Pool:
    """The sockets of one client: as many as there are requests at once, and some that rest.

    A request has a socket of its own, so that the port says whose reply a datagram is. Where
    nothing else does, a socket rests after each request, and those that have rested longest are
    used first; longer while the first requests are watched for duplicates, and where there were
    some. One that was sent twice, not answered or cancelled is not used again: it stays open
    for a while, so that no other has the port when a late reply comes.
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
        # Names of AF_UNIX are seldom used twice, and nothing there duplicates; and what waits in a
        # queue there keeps the server from sending.
        self._rest = 0.0 if family == AF_UNIX else retry.timeout
        #: How long a socket rests before the next request, in seconds: in any case, and where
        #: there are few.
        self.rest = self.long_rest = 0.0 if tells_apart else self._rest
        #: How many requests are left to watch for duplicates; for ever where there was one.
        self.watched = WATCHED if self.rest else 0.0
        #: So many others rest at least when one is used that has not rested for long.
        self.few = LEAST_IDLE - 1 if self.rest else 0
        self._prepare = prepare
        self._avoided: dict[int, float] = {}
        #: What is known of the server.
        self.round_trip = RoundTrip()
        #: From when on :meth:`sample` is worth calling.
        self.sample_due = 0.0
        #: The timeout of idle connections: the first wait of a request, more or less.
        self.wait = retry.first_wait
        # Not a plain lock: a signal handler may close the client in the middle of any of this.
        self._lock = threading.RLock()
        self._all: set[Connection] = set()
        self._resting: deque[tuple[float, Connection]] = deque()
        #: Connections that may be used again, the one that has rested longest first.
        self.idle: deque[Connection] = deque()
        #: Called when the pool is closed, by who waits for something else than one connection.
        self.wakers: set[Callable[[], None]] = set()
        self.is_closed = False
        _pools.add(self)

    def take(self) -> Connection:
        """Return a connection to use, with nothing in its queue."""
        try:
            connection = self.idle.popleft()
        except IndexError:
            return self._open()
        if self.has_rested(connection, len(self.idle), monotonic()):
            try:
                if self.look_for_duplicate(connection):
                    connection.empty()
            except BaseException:
                self.retire(connection)
                raise
            return connection
        if len(self.idle) < MOST_IDLE:
            self.idle.appendleft(connection)
        else:
            self.discard(connection, connection.used_at + self.rest)
        return self._open()

    def admits(self, connection: Connection, now: float) -> bool:
        """Say whether an idle connection may be used, as :meth:`take` would; else keep it."""
        if self.has_rested(connection, len(self.idle), now):
            self.look_for_duplicate(connection)
            return True
        self.idle.appendleft(connection)
        return False

    def look_for_duplicate(self, connection: Connection) -> bool:
        """Say whether a datagram has come to a socket that rests, and take more care then."""
        if self.watched:
            self.watched = max(self.watched - 1, 0)
        if not connection.poll(0):
            return False
        if self.long_rest:
            self.watched = math.inf
            self.adapt()
        return True

    def has_rested(self, connection: Connection, others: int, now: float) -> bool:
        """Say whether a socket may be used again, given how many others rest."""
        rest = self.rest if others >= self.few else self.long_rest
        return connection.used_at + rest <= now

    def _open(self) -> Connection:
        with self._lock:
            if self.is_closed:
                raise OSError(errno.EBADF, "the client is closed")
            with advised(self._address, OF_OPENING):
                connection = Connection(self._family, self._address, self._avoided, self._prepare)
            self._all.add(connection)
            if self.is_closed:  # by a signal handler, just now
                self._forget()
        return connection

    def put(self, connection: Connection) -> None:
        """Give back a connection that may be used again."""
        self.adapt()
        with contextlib.suppress(OSError):  # closed with the pool, perhaps just now
            connection.wait = self.wait
            connection.settimeout(connection.wait)
            connection.used_at = monotonic()
            if self.watched or len(self.idle) < 4 * LEAST_IDLE:
                self.idle.append(connection)
            else:
                self.discard(connection, connection.used_at + AVOIDED)

    def retire(self, connection: Connection) -> None:
        """Give back a connection for which a reply may still come."""
        now = monotonic()
        self.adapt()
        with self._lock:
            self._resting.append((now + self._rest, connection))
            resting = self._resting
            while resting and (resting[0][0] <= now or len(resting) > MOST_RESTING):
                _, rested = resting.popleft()
                self.discard(rested, now + AVOIDED)

    def discard(self, connection: Connection, until: float) -> None:
        """Close a connection, and do not take its port again up to a moment."""
        with self._lock:
            self._all.discard(connection)
            if self._family != AF_UNIX:
                with contextlib.suppress(OSError):  # closed with the pool
                    self._avoided[connection.getsockname()[1]] = until
            connection.close()

    def sample(self, elapsed: float, now: float) -> None:
        """Take note of how long a reply took."""
        self.round_trip.sample(elapsed, now)
        self.adapt()
        if self.long_rest:
            self._look_at_oldest()

    def adapt(self) -> None:
        """Take over what the round trip has become."""
        self.sample_due = self.round_trip.sample_due
        wait = self.round_trip.first_wait(self._retry)
        if abs(wait - self.wait) > self.wait / 8:  # every change costs each connection a call
            self.wait = wait
        if self.long_rest:
            self.rest = min(self.round_trip.spread, self.long_rest) if self.watched else 0.0

    def _look_at_oldest(self) -> None:
        """See whether the socket that has rested longest has a duplicate, and is still of use."""
        try:
            oldest = self.idle.popleft()  # no other thread has it then
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
        """Have a function called by :meth:`close`."""
        with self._lock:
            if self.is_closed:
                raise OSError(errno.EBADF, "the client is closed")
            self.wakers.add(waker)

    def remove_waker(self, waker: Callable[[], None]) -> None:
        """Have a function not called any more; when this returns, it is not running either."""
        with self._lock:
            self.wakers.discard(waker)

    def close(self) -> None:
        """Close all connections; who waits on one of them gets an :class:`OSError`."""
        with self._lock:
            self.is_closed = True
            for waker in list(self.wakers):
                waker()
            self._forget()

    def start_anew(self) -> None:
        """Forget the connections after a fork: they are the parent's, and so are the replies."""
        self._lock = threading.RLock()
        self.wakers.clear()
        self._forget()

    def _forget(self) -> None:
        while self._all:
            self._all.pop().close()
        self.idle.clear()
        self._resting = deque()  # the old one may be in use


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.start_anew()


os.register_at_fork(after_in_child=_after_fork)
