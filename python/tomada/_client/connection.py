"""A socket of a client: connected to the server, at a port that no late reply may come to."""

from __future__ import annotations

import contextlib
import errno
import math
import socket as _std
from socket import AF_INET6, AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, SOCK_NONBLOCK
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._client.exchange import is_refusal
from tomada._client.ports import PORTS, late_for, unique_name
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer

    from tomada._core import DtlsContext, DtlsEndpoint, Socket

    # A type checker takes tomada's class for the standard one.
    class socket(Socket, _std.socket): ...  # type: ignore[misc] # noqa: N801

else:
    from tomada.socket import socket

# Why a datagram could not be sent from the address that the kernel chose on connecting. The machine
# may have lost it, and have another one.
_UNROUTED = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})

# More than any datagram has. Room costs nothing, as only what a datagram fills is touched.
LONGEST = 1 << 20

# Why a datagram was not even sent: an earlier one was refused, or there is no connection.
_UNASKED = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ})

# A timeout that no caller sets.
UNKNOWN = -1.0

# How often to repeat a send that may have reported an ICMP message about an earlier datagram, and
# how many such reports to read after the time of an attempt is over.
MOST_REPORTS = 8

# linux/in.h and linux/in6.h: options that the socket module does not have.
IP_MTU = 14
IPV6_MTU = 24

# Bytes of the headers of IP and UDP.
HEADERS = 28
HEADERS_V6 = 48

# How many datagrams to look at after the time of an attempt is over: a reply that came while this
# process was held up has come in time.
MOST_HELD_UP = 256


class RefusedError(Exception):
    """An attempt is lost: there is no server, or an ICMP message said that it was not reached.

    The argument is the :class:`OSError` that said so.
    """


class SecuringError(TimeoutError):
    """The handshake with the server is under way: the request can be sent when it is complete."""


class Connection(socket):
    """A socket that is connected to the server and hands out nothing but the server's datagrams."""

    __slots__ = (
        "_local",
        "_sessions",
        "_to",
        "dtls",
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
        #: The context of the sessions with the server, and the name that it must have, if any.
        self.dtls: tuple[DtlsContext, str | None] | None = None
        self._sessions: DtlsEndpoint | None = None
        # The local address, without a port, where the port must not be one that is avoided.
        self._local = local
        #: When its last request was answered.
        self.used_at = 0.0
        #: The timeout of its last request as a whole, in seconds.
        self.request_timeout = 0.0
        #: The timeout that :meth:`set_wait` has set, in seconds.
        self.wait = 0.0
        #: The server's address, as the kernel gives it with a datagram.
        self.peer: _RetAddress = None
        try:
            if family == AF_UNIX:
                self.bind(unique_name())  # where the reply can be sent
            prepare(self)
            if local is not None:
                PORTS.bind(self, local, to)
            #: The descriptor, which another thread may close at any time.
            self.number = self._descriptor()
        except BaseException:
            super().close()  # nothing was sent
            raise

    def avoid(self, until: float | None = None) -> None:
        """Let no other request to this server use the port up to a moment.

        Call it before the port can be another socket's.

        :param until: The moment. By default, as long as a late reply may arrive.
        """
        now = monotonic()
        if until is None:
            until = now + late_for(self.request_timeout)
        if until > now and isinstance(self._to, tuple):
            with contextlib.suppress(OSError):  # closed already
                if port := self.getsockname()[1]:
                    PORTS.avoid(self._to, port, until)

    def close(self) -> None:
        """Close the socket, whose port may still get a late reply."""
        self.avoid()
        close_all([self])

    def ask(self, data: ReadableBuffer, until: float) -> None:
        """Send a request, and wait up to a moment for its session, if it has one, and for room.

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
                    elif error.errno not in _UNASKED and not self.has_lost_session():
                        raise
                else:
                    return
                # A refusal is about an earlier datagram, and this one was not sent. A server of
                # AF_UNIX may also have made way for another one, by the same name.
            if self.peer is None or not self._is_securing():
                self.reconnect()
                if self.dtls is None:  # a session drops datagrams that do not belong to it
                    self.empty()  # from now on, the kernel drops datagrams from other addresses
            self.secure(until)
            self.wait_until(until)
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
        """Send requests as :meth:`ask`, as far as there is room; return which were not, and why.

        It does not wait for a handshake: :class:`SecuringError` says that one is under way.
        """
        failed = self._send_many_after_reports(requests)
        if not failed:
            return failed
        unsure = _UNASKED if self.family == AF_UNIX else _UNASKED | _UNROUTED
        is_lost = self.peer is None or self.has_lost_session()
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

    def _send_many_after_reports(
        self, requests: Sequence[ReadableBuffer]
    ) -> list[tuple[int, OSError]]:
        failed = self.send_many(requests, None, MSG_DONTWAIT, errors="continue")
        for _ in range(MOST_REPORTS if failed and self.family != AF_UNIX else 0):
            again = [index for index, error in failed if is_from_peer(error)]
            if not again:
                break
            failed = [item for item in failed if not is_from_peer(item[1])]
            unsent = [requests[index] for index in again]
            second = self.send_many(unsent, None, MSG_DONTWAIT, errors="continue")
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
        try:
            self.connect(self._to)
            self.peer = self.getpeername()
            if self.dtls is not None:
                context, name = self.dtls
                self._sessions = _core.DtlsEndpoint(
                    context, self, server_hostname=name, reports_end=True
                )
                self._sessions.begin()
        except BaseException:
            if self.dtls is not None:
                self.peer = None
                self._disconnect()  # or requests would be sent in plain text
            raise

    def _failure(self) -> OSError | None:
        """Return the error that ended the session or kept it from beginning, or ``None``."""
        try:
            if self._sessions is not None:
                self._sessions.status()
        except OSError as error:
            return error
        return None

    def _is_securing(self) -> bool:
        """Say whether a handshake is under way, which an earlier attempt has begun."""
        if self._sessions is None or self._failure() is not None:
            return False
        return self._sessions.status() is None

    def has_lost_session(self) -> bool:
        """Say whether there was a session with the server, which has ended."""
        return (
            self._sessions is not None
            and self._failure() is not None
            and self._sessions.stats()["established"] > 0
        )

    def secure(self, until: float) -> None:
        """If requests are encrypted, wait up to a moment for the end of the handshake.

        :raises SecuringError: It takes longer.
        :raises OSError: The handshake failed. The next :meth:`ask` begins another one.
        """
        if self._sessions is None:
            return
        try:
            self._sessions.handshake(max(until - monotonic(), 0.0))
        except OSError as error:
            if self._is_securing() and isinstance(error, TimeoutError | BlockingIOError):
                raise SecuringError(*error.args) from None
            self.peer = None
            raise

    def tick(self) -> float:
        """Retransmit what a handshake must; return in how many seconds to call this again."""
        due = None if self._sessions is None else self._sessions.tick()
        return math.inf if due is None else due

    def end_session(self) -> None:
        """End a session that the server no longer answers in; the next request begins another."""
        if self._sessions is not None:
            self._sessions.close()

    def _leave(self) -> None:
        """Give up the local address, as this machine may not have it any longer."""
        self.avoid()
        self._disconnect()  # which keeps a port that was bound by its number
        if self._local is not None and not self.getsockname()[1]:
            PORTS.bind(self, self._local, self._to)

    def wait_until(self, moment: float) -> float:
        """Let calls wait up to a moment, and return how long that is."""
        left = max(moment - monotonic(), 0.0)
        self.set_wait(left)
        return left

    def set_wait(self, seconds: float) -> None:
        """Let calls wait for this long. Only a change takes a system call."""
        if seconds != self.wait:
            self.wait = UNKNOWN  # a signal handler may raise before the next line, or after it
            self.settimeout(seconds)
            self.wait = seconds

    def answer(self, until: float, is_answer: Callable[[bytes], bool]) -> bytes | None:
        """Wait up to a moment for an answer, and return it, if there is one.

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
                if self.has_lost_session():
                    raise RefusedError(session_lost()) from None
                if is_from_peer(error) and self._failure() is None:
                    raise RefusedError(error) from None
                self.peer = None if self._failure() is not None else self.peer
                raise
            # A stranger's may have come in between bind and connect.
            if sender == self.peer and is_answer(data):
                return data
            if not self.wait_until(until):
                held_up += 1
        return None

    def empty(self) -> None:
        """Throw away what is in the queue: it is late, or belongs to nothing."""
        while self._is_readable():
            self.set_wait(0.0)
            try:
                self.recv_many()
            except BlockingIOError:
                return
            except OSError as error:
                if self.has_lost_session():
                    return  # the next request begins another
                if not is_from_peer(error):
                    raise


def close_all(connections: Sequence[Connection]) -> None:
    """Close sockets whose ports are avoided where necessary.

    A thread gives up the interpreter's lock once for all of them: where others want it too, it may
    get it back late, and here a request that has ended waits for it.
    """
    for connection in connections:
        with contextlib.suppress(OSError):  # closed already
            connection.end_session()
    socket._close_all(connections)  # noqa: SLF001 - made for this purpose


def session_lost() -> OSError:
    """Return the error of an attempt whose session the server has ended."""
    return OSError(errno.ESHUTDOWN, "the server has ended the session")


def has_no_room(error: OSError) -> bool:
    """Say whether a send failed because a queue was full, so that it will do later."""
    if error.errno == errno.ETIMEDOUT:
        return False  # the server did not answer a handshake
    return isinstance(error, TimeoutError | BlockingIOError) or error.errno == errno.ENOBUFS
