"""A client's socket: connected to the server, on a port at which no late reply can arrive."""

from __future__ import annotations

import contextlib
import errno
import math
import socket as _std
from socket import AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._client.exchange import is_end_of_session, is_refusal
from tomada._client.ports import PORTS, late_for, unique_name
from tomada._dtls_errors import DTLSZeroReturnError
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer

    from tomada._core import DtlsContext, DtlsEndpoint, Socket

    # For type checkers, tomada's class is a standard socket.
    class socket(Socket, _std.socket): ...  # type: ignore[misc] # noqa: N801

else:
    from tomada.socket import socket

# Errors from sending from the local address that the kernel chose on connecting. This machine may
# have lost that address and have another one.
_UNROUTED = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})

# Longer than any datagram, in bytes. This costs nothing, because memory that a datagram does not
# fill is not touched.
LONGEST = 1 << 20

# Errors that mean that a datagram was not even sent: an earlier one was refused, or there is no
# connection.
_UNASKED = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ})

# A timeout that no caller sets.
UNKNOWN = -1.0

# How often to repeat a send whose error may be an ICMP message about an earlier datagram, and how
# many such errors to read after the time of an attempt is over.
MOST_REPORTS = 8

# linux/in.h and linux/in6.h: options that the socket module lacks.
IP_MTU = 14
IPV6_MTU = 24

# The length of the IP and UDP headers, in bytes.
HEADERS = 28
HEADERS_V6 = 48

# How many datagrams to check after the time of an attempt is over: a reply that arrived while this
# process was delayed has arrived in time.
MOST_HELD_UP = 256


class RefusedError(Exception):
    """An attempt is lost: there is no server, or an ICMP message says that it was not reached.

    The argument is the :class:`OSError` that reported this.
    """


class SecuringError(TimeoutError):
    """The handshake with the server is under way: the request can be sent when it is complete."""


class Connection(socket):
    """A socket that is connected to the server and returns only the server's datagrams."""

    __slots__ = (
        "_local",
        "_sessions",
        "_to",
        "dtls",
        "is_closing",
        "number",
        "peer",
        "request_timeout",
        "used_at",
        "wait",
    )

    def __init__(
        self,
        family: int,
        to: _Address,
        local: tuple[Any, ...] | None,
        prepare: Callable[[Connection], None],
    ) -> None:
        super().__init__(family, SOCK_DGRAM | SOCK_NONBLOCK)
        self._to = to
        #: The context of the sessions and the name that the server's certificate must match, or
        #: ``None``.
        self.dtls: tuple[DtlsContext, str | None] | None = None
        self._sessions: DtlsEndpoint | None = None
        #: Whether this side is ending the session, to close the connection.
        self.is_closing = False
        # The local address without a port, or None if the kernel may choose any port.
        self._local = local
        #: When its last request was answered.
        self.used_at = 0.0
        #: The timeout of its last request as a whole, in seconds.
        self.request_timeout = 0.0
        #: The timeout that :meth:`set_wait` has set, in seconds.
        self.wait = 0.0
        #: The server's address, in the form in which a receive returns it.
        self.peer: _RetAddress = None
        try:
            if family == AF_UNIX:
                self.bind(unique_name())  # the server needs an address to reply to
            prepare(self)
            if local is not None:
                PORTS.bind(self, local, to)
            #: The descriptor, which another thread may close at any time.
            self.number = self._descriptor()
        except BaseException:
            super().close()  # nothing was sent
            raise

    def avoid(self, until: float | None = None) -> None:
        """Keep other requests to this server from using the port until a given time.

        Call this before another socket can get the port.

        :param until: By default, for as long as a late reply may arrive.
        """
        now = monotonic()
        if until is None:
            until = now + late_for(self.request_timeout)
        if until > now and isinstance(self._to, tuple):
            with contextlib.suppress(OSError):  # closed already
                if port := self.getsockname()[1]:
                    PORTS.avoid(self._to, port, until)

    def close(self) -> None:
        """Close the socket, and avoid its port, which may still get a late reply."""
        self.avoid()
        close_all([self])

    def ask(self, data: ReadableBuffer, until: float) -> None:
        """Send a request; wait until a given time for its session, if it needs one, and for room.

        :raises RefusedError: There is no server.
        :raises SecuringError: The handshake takes longer.
        """
        self.wait_until(until)
        try:
            if self.peer is not None:
                try:
                    self._send_after_reports(data)
                except OSError as error:
                    if error.errno in _UNROUTED and self.family != AF_UNIX:
                        self._leave()
                    elif error.errno not in _UNASKED and self.session_lost() is None:
                        raise
                else:
                    return
                # A refusal is about an earlier datagram, and this one was not sent. With AF_UNIX,
                # another server may also have taken over the name.
            if self.peer is None or not self._is_securing():
                self.reconnect()
                if self.dtls is None:  # a session drops datagrams that do not belong to it
                    self.empty()  # from now on, the kernel drops datagrams from other addresses
            self.secure(until)
            self.wait_until(until)
            self._send_after_reports(data)
        except OSError as error:
            if is_refusal(error) or is_end_of_session(error):
                raise RefusedError(error) from None
            raise

    def _send_after_reports(self, data: ReadableBuffer) -> None:
        """Send a request; raise only errors about this request, not about an earlier datagram."""
        for _ in range(MOST_REPORTS if self.family != AF_UNIX else 0):
            try:
                self.send(data)
            except OSError as error:
                if not is_from_peer(error):
                    raise
            else:
                return
        self.send(data)

    def ask_many(self, requests: list[ReadableBuffer]) -> list[tuple[int, OSError]]:
        """Send requests like :meth:`ask`, but without waiting; return those that failed.

        They are returned as pairs of an index and an error. :class:`SecuringError` means that a
        handshake is under way.
        """
        failed = self._send_many_after_reports(requests)
        if not failed:
            return failed
        unsure = _UNASKED if self.family == AF_UNIX else _UNASKED | _UNROUTED
        is_lost = self.peer is None or self.session_lost() is not None
        again = [index for index, error in failed if is_lost or error.errno in unsure]
        if again:
            is_unrouted = any(error.errno in _UNROUTED for _, error in failed)
            failed = [] if is_lost else [item for item in failed if item[1].errno not in unsure]
            try:
                if is_unrouted and self.family != AF_UNIX:
                    self._leave()
                if self.peer is None or not self._is_securing():
                    self.reconnect()
                self.secure(0.0)
            except OSError as error:
                return failed + [(index, error) for index in again]
            second = self._send_many_after_reports([requests[index] for index in again])
            failed += [(again[index], error) for index, error in second]
        return failed

    def _send_many_after_reports(self, requests: list[ReadableBuffer]) -> list[tuple[int, OSError]]:
        failed = self._send_payloads(requests)
        for _ in range(MOST_REPORTS if failed and self.family != AF_UNIX else 0):
            again = [index for index, error in failed if is_from_peer(error)]
            if not again:
                break
            failed = [item for item in failed if not is_from_peer(item[1])]
            unsent = [requests[index] for index in again]
            second = self._send_payloads(unsent)
            failed += [(again[index], error) for index, error in second]
        return failed

    def exceeds_path(self, data: ReadableBuffer) -> bool:
        """Return whether a request exceeds the path MTU, so that a router may have dropped it.

        Once the kernel knows the path MTU, it fragments such requests.
        """
        is_inet6 = self.family == AF_INET6
        level, name = (_std.IPPROTO_IPV6, IPV6_MTU) if is_inet6 else (_std.IPPROTO_IP, IP_MTU)
        try:
            room = self.getsockopt(level, name)
        except OSError:
            return True  # the route has just changed
        return memoryview(data).nbytes + (HEADERS_V6 if is_inet6 else HEADERS) > room

    def reconnect(self) -> None:
        """Connect, for the first time or again, to the server's address."""
        self.peer = None
        try:
            self.connect(self._to)
            self.peer = self.getpeername()
            if self.dtls is not None:
                context, name = self.dtls
                self._sessions = _core.DtlsEndpoint(
                    context, self, server_hostname=name, on_end="fail"
                )
                self._sessions.begin()
        except BaseException:
            if self.dtls is not None:
                self.peer = None
                self._disconnect()  # otherwise, requests would be sent in plain text
            raise

    def _failure(self) -> OSError | None:
        """Return the error that ended the session or prevented it, or ``None``."""
        try:
            if (sessions := self._sessions) is not None:
                sessions.status()
        except OSError as error:
            return error
        return None

    def _is_securing(self) -> bool:
        """Return whether a handshake is under way that an earlier attempt has begun."""
        sessions = self._sessions
        if sessions is None or self._failure() is not None:
            return False
        return sessions.status() is None

    def session_lost(self) -> DTLSZeroReturnError | None:
        """Return the error if a session has ended, or the server has ended the handshake."""
        sessions, failure = self._sessions, self._failure()
        if sessions is None or failure is None or self.is_closing:
            return None
        if isinstance(failure, DTLSZeroReturnError):
            return failure
        if not sessions.stats()["established"]:
            return None
        # Such as a server's that ends while it resumes a session.
        return DTLSZeroReturnError(
            errno.ECONNRESET, f"the session has ended: {failure.strerror or failure}"
        )

    def is_unsecured(self, error: OSError) -> bool:
        """Return whether a receive has failed because of a handshake whose end was reported."""
        is_about_server = is_end_of_session(error) or is_from_peer(error)
        return self.dtls is not None and self.peer is None and is_about_server

    def secure(self, until: float) -> None:
        """If requests are encrypted, wait until a given time for the end of the handshake.

        :raises SecuringError: It takes longer.
        :raises OSError: The handshake failed; see :meth:`session_lost`. The next
            :meth:`ask` begins another one.
        """
        if (sessions := self._sessions) is None:
            return
        try:
            sessions.handshake(max(until - monotonic(), 0.0))
        except OSError as error:
            if self._is_securing() and isinstance(error, TimeoutError | BlockingIOError):
                raise SecuringError(*error.args) from None
            self.peer = None
            raise self.session_lost() or error from None

    def tick(self) -> float:
        """Make a handshake's due retransmissions; return the seconds until the next call."""
        due = None if (sessions := self._sessions) is None else sessions.tick()
        return math.inf if due is None else due

    def end_session(self) -> None:
        """End a session in which the server no longer answers; the next request begins another."""
        if (sessions := self._sessions) is not None:
            sessions.close()

    def forget_session(self) -> None:
        """Free the memory of the session without waiting for the garbage collector."""
        self._sessions = None  # it refers to this object

    def _leave(self) -> None:
        """Give up the local address, which may no longer belong to this machine."""
        self.avoid()
        self._disconnect()  # this keeps a port that was bound by number
        if self._local is not None and not self.getsockname()[1]:
            PORTS.bind(self, self._local, self._to)

    def wait_until(self, moment: float) -> float:
        """Let calls wait until a given time; return the remaining seconds."""
        left = max(moment - monotonic(), 0.0)
        self.set_wait(left)
        return left

    def set_wait(self, seconds: float) -> None:
        """Let calls wait for a number of seconds. Only a change costs a system call."""
        if seconds != self.wait:
            self.wait = UNKNOWN  # a signal handler may raise before the next line, or after it
            self.settimeout(seconds)
            self.wait = seconds

    def answer(self, until: float, is_answer: Callable[[bytes], bool]) -> bytes | None:
        """Wait until a given time for the reply; return it, or ``None`` if there is none.

        :raises RefusedError: An ICMP message has arrived. The answer may still arrive.
        """
        self.wait_until(until)
        held_up = 0
        while held_up < MOST_HELD_UP:
            try:
                data, sender = self.recvfrom(LONGEST)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                lost = self.session_lost()
                if lost is not None and self.peer is not None:
                    raise RefusedError(lost) from None
                if self.is_unsecured(error):
                    held_up += not self.wait_until(until)
                    continue
                if is_from_peer(error) and self._failure() is None:
                    raise RefusedError(error) from None
                self.peer = None if self._failure() is not None else self.peer
                raise
            # Another sender's datagram may have arrived between bind and connect.
            if sender == self.peer and is_answer(data):
                return data
            if not self.wait_until(until):
                held_up += 1
        return None

    def empty(self) -> None:
        """Discard the datagrams in the queue: they are late, or answer no request."""
        while self._is_readable():
            self.set_wait(0.0)
            try:
                self.recv_many()
            except BlockingIOError:
                return
            except OSError as error:
                if self.session_lost() is not None:
                    return  # the next request begins another
                if not is_from_peer(error):
                    raise


def close_all(connections: Sequence[Connection]) -> None:
    """Close sockets. The caller has avoided their ports where necessary.

    The thread releases the interpreter's lock only once for all of them: if others compete for the
    lock, it may get the lock back late, and a request that has ended waits for this.
    """
    for connection in connections:
        connection.is_closing = True
        with contextlib.suppress(OSError):  # closed already
            connection.end_session()
    socket._close_all(connections)  # noqa: SLF001 - made for this purpose
    for connection in connections:
        connection.forget_session()


def has_no_room(error: OSError) -> bool:
    """Return whether a send failed because a queue was full, so that it may succeed later."""
    if error.errno == errno.ETIMEDOUT:
        return False  # the server did not answer a handshake
    return isinstance(error, TimeoutError | BlockingIOError) or error.errno == errno.ENOBUFS
