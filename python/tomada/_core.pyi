"""The Rust core: :class:`Socket` is the base of :class:`tomada.socket.socket`."""

from asyncio import AbstractEventLoop, Handle, TimerHandle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import Context
from os import PathLike
from socket import _Address, _RetAddress
from typing import Any, Final, Literal, Self, TypeAlias, TypeVarTuple, Unpack, final, overload

from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "CONSTANTS",
    "OPENSSL_VERSION",
    "OPENSSL_VERSION_NUMBER",
    "Batch",
    "Datagram",
    "DatagramError",
    "DtlsContext",
    "DtlsEndpoint",
    "DtlsSession",
    "Guard",
    "GuardStats",
    "LinkCore",
    "LoopCore",
    "PathCore",
    "ReadHub",
    "ReceiveWindow",
    "ServerCore",
    "ServerCounters",
    "ServerStats",
    "SignalHandlers",
    "SinkCounters",
    "SinkStats",
    "Socket",
    "Stats",
    "TransportCore",
    "__version__",
    "end_with_parent",
    "kind_of",
    "proxy_header",
    "steer",
    "steer_by_key",
    "trust_proxies",
]

__version__: Final[str]

OPENSSL_VERSION: Final[str]
"""The version of OpenSSL in use, as text."""

OPENSSL_VERSION_NUMBER: Final[int]
"""The version of OpenSSL in use, as a number: ``0x30000000`` is 3.0.0."""

_Ts = TypeVarTuple("_Ts")
_CMSG: TypeAlias = tuple[int, int, bytes]
_CMSGArg: TypeAlias = tuple[int, int, ReadableBuffer]

CONSTANTS: Final[dict[str, int]]

def trust_proxies(
    socket: Socket | None, proxies: Iterable[object], idle: float | None = None, /
) -> None:
    """Make a socket read the PROXY protocol headers of proxies in trusted networks.

    Call this once, before you set the guard. With ``idle``, a header precedes only the first
    datagram of each flow; a flow ends when it has been idle for that many seconds. Without a
    socket, this only checks the networks.

    :raises ValueError: A network is not valid.
    :raises OSError: ``EAFNOSUPPORT``: the socket is not an IP socket. ``EALREADY``: the socket's
        proxies are already set.
    """

def proxy_header(client: tuple[str, int], server: tuple[str, int], /) -> bytes:
    """Return the PROXY protocol header (version 2) for a datagram from a client to a server.

    :raises ValueError: An address is not numeric.
    """

def kind_of(fileno: int, /) -> tuple[int, int]:
    """Return the family and type of an open socket.

    :raises OSError: ``EBADF`` or ``ENOTSOCK``: the descriptor is not an open socket.
    """

class Socket:
    """A datagram socket of the family ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.

    Methods that also exist in the standard class have the same arguments, results, exceptions and
    audit events. A method that has to wait follows the socket's timeout: with ``None``, it waits
    forever; with a number of seconds, it raises :class:`TimeoutError` after that time; with 0, it
    raises :class:`BlockingIOError` at once. While it waits, other threads run. Signal handlers run
    in the main thread, and the wait then continues (:pep:`475`). If another thread calls
    :meth:`close`, the waiting method raises :class:`OSError` (``EBADF``). A receive that raises an
    exception does not consume a datagram.

    Any number of threads may call methods at the same time. Each datagram is returned to exactly
    one of them.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self: ...
    def _open(
        self,
        family: int,
        type: int,
        proto: int,
        fileno: int | None,
        default_timeout: float | None,
        /,
    ) -> None:
        """Open a new socket, or take over the descriptor ``fileno``.

        With a descriptor, a ``family``, ``type`` or ``proto`` of -1 is read from the kernel. On
        failure, the descriptor stays open, and the caller still owns it. ``default_timeout``
        becomes the timeout, unless ``type`` includes ``SOCK_NONBLOCK``.
        """

    def __del__(self) -> None: ...
    @property
    def family(self) -> int:
        """The address family, such as ``AF_INET``."""

    @property
    def type(self) -> int:
        """The type, such as ``SOCK_DGRAM``, without flags."""

    @property
    def proto(self) -> int:
        """The protocol; 0 is the family's default."""

    @property
    def timeout(self) -> float | None:
        """The timeout in seconds, as returned by :meth:`gettimeout`."""

    def _disconnect(self) -> None:
        """Disconnect the socket, and release the local address and port that the kernel chose."""

    def _exchange(self, request: ReadableBuffer, /) -> bytes | None:
        """Discard queued datagrams, send a request, and return the next datagram received.

        This returns ``None`` if the request could not be sent, for whatever reason, and raises only
        exceptions that occur while it waits for the reply.
        """

    def _send_payloads(self, payloads: list[ReadableBuffer], /) -> list[tuple[int, OSError]]:
        """Send datagrams to the connected peer without waiting, as :meth:`send_many` does.

        A tuple is not an item with an address, but raises a :class:`TypeError`. Failures are
        returned, as with ``errors="continue"``.
        """

    def _is_readable(self) -> bool:
        """Return whether a receive would finish without waiting.

        That is the case if there is a datagram or an error, or if the socket is closed.
        """

    def _has_datagram(self) -> bool:
        """Return whether a receive would return a datagram without waiting."""

    @staticmethod
    def _close_all(sockets: Sequence[Socket], /) -> None:
        """Close several sockets, releasing the interpreter's lock only once."""

    def _accept(self) -> tuple[int, _RetAddress]:
        """Accept a connection; return its descriptor and the peer's address (``accept4(2)``)."""

    def bind(self, address: _Address, /) -> None:
        """Bind the socket to a local address (``bind(2)``).

        :param address: ``(host, port)`` for IPv4, ``(host, port[, flowinfo[, scope_id]])`` for
            IPv6, a path or an abstract name for ``AF_UNIX``. The host ``""`` means every local
            address; port 0 means any free port. The host may contain a scope: ``"fe80::1%eth0"``. A
            numeric host bypasses the resolver; while a name is being resolved, other threads run.
        :raises OSError: ``EADDRINUSE``, ``EADDRNOTAVAIL``, ``EACCES``, or ``EINVAL`` (the socket is
            already bound).
        :raises socket.gaierror: The host has no address of the socket's family.
        :raises OverflowError: The port is not between 0 and 65535.
        """

    def close(self) -> None:
        """Close the descriptor (``close(2)``). Closing again does nothing.

        Calls that are waiting on the socket in other threads raise :class:`OSError`. When this
        returns, no call uses the descriptor any longer, so its number and its port are free. (With
        the standard class, such calls keep waiting, and the next datagram is lost.)
        """

    def connect(self, address: _Address, /) -> None:
        """Set the peer to send to and receive from (``connect(2)``).

        Datagrams that have already arrived from other senders stay queued. If the peer's host
        reports an ICMP error, the next call raises it (:class:`ConnectionRefusedError`); if that
        call is a send, it has not sent anything. The arguments and exceptions are the same as for
        :meth:`bind`.
        """

    def connect_ex(self, address: _Address, /) -> int:
        """Connect like :meth:`connect`, but return the errno (0 for success) instead of raising it.

        A wrong argument, or a name that does not resolve, still raises an exception.
        """

    def detach(self) -> int:
        """Close the object without closing the descriptor; return the descriptor, or -1 if closed.

        Waiting calls end as with :meth:`close`.
        """

    def _descriptor(self) -> int: ...
    def fileno(self) -> int:
        """Return the descriptor's number, or -1 if the socket is closed."""

    def getblocking(self) -> bool:
        """Return whether the timeout is not 0."""

    def getpeername(self) -> _RetAddress:
        """Return the peer's address (``getpeername(2)``).

        :raises OSError: ``ENOTCONN``: the socket has no peer.
        """

    def getsockname(self) -> _RetAddress:
        """Return the socket's local address (``getsockname(2)``)."""

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int:
        """Return an option's value (``getsockopt(2)``).

        :param buflen: The number of bytes to read, 1 to 1024. Without it, the value is an ``int``.
        :return: The ``int``, or the bytes that the kernel returned.
        """

    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...
    def gettimeout(self) -> float | None:
        """Return the timeout in seconds; ``None`` means to wait forever."""

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections (``listen(2)``). A datagram socket raises ``EOPNOTSUPP``."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive one datagram (``recv(2)``).

        A datagram longer than ``bufsize`` bytes is truncated; only ``stats().truncated`` shows
        this. An empty datagram is ``b""``. A large ``bufsize`` costs nothing.

        :raises TimeoutError: No datagram arrived within the timeout.
        :raises BlockingIOError: No datagram is queued, and the timeout is 0. Also raised with the
            timeout ``None`` if the kernel does not let the call wait: ``flags`` includes
            ``MSG_DONTWAIT`` or ``MSG_ERRQUEUE``, something has set ``O_NONBLOCK`` on the
            descriptor, or the ``SO_RCVTIMEO`` timeout has expired.
        :raises ConnectionRefusedError: The connected peer's host answered an earlier datagram with
            an ICMP error.
        :raises ValueError: ``bufsize`` is negative.
        """

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one datagram into a buffer and return its length; otherwise like :meth:`recv`.

        If this raises an exception, the buffer is unchanged. Datagrams that the :attr:`guard`
        refuses are never written to it.

        :param nbytes: How many bytes of the buffer to use; 0 means all.
        """

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, _RetAddress]:
        """Receive one datagram and its sender's address; otherwise like :meth:`recv`.

        The address is ``(host, port)`` for IPv4 and ``(host, port, flowinfo, scope_id)`` for IPv6.
        For ``AF_UNIX``, it is a ``str`` for a path, ``bytes`` for an abstract name, or ``None`` if
        the sender has no address.
        """

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, _RetAddress]:
        """Receive one datagram into a buffer, like :meth:`recv_into`; also return the sender."""

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[_CMSG], int, _RetAddress]:
        """Receive one datagram with control messages (``recvmsg(2)``).

        :param ancbufsize: The space for control messages, in bytes; see :func:`socket.CMSG_SPACE`.
        :return: The data; a list of ``(level, type, data)``; flags such as ``MSG_TRUNC`` (the data
            is truncated) and ``MSG_CTRUNC`` (the control messages are truncated); the sender.
        """

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[_CMSG], int, _RetAddress]:
        """Receive one datagram into a sequence of buffers; otherwise like :meth:`recvmsg`."""

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Send one datagram to the connected peer (``send(2)``) and return its length.

        :raises OSError: ``EMSGSIZE``: the datagram is longer than the protocol or the path allows;
            ``EDESTADDRREQ``: the socket has no peer.
        :raises ConnectionRefusedError: As in :meth:`recv`; nothing was sent.
        :raises TimeoutError: The socket's buffer stayed full for the whole timeout.
        """

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send one datagram, like :meth:`send`.

        On a stream socket, this repeats until all data has been sent.
        """

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[_CMSGArg] = ...,
        flags: int = 0,
        address: _Address | None = None,
        /,
    ) -> int:
        """Send one datagram gathered from several buffers, with control messages (``sendmsg(2)``).

        :param ancdata: Tuples ``(level, type, data)``.
        :param address: The destination; without it, the connected peer.
        """

    @overload
    def sendto(self, data: ReadableBuffer, address: _Address, /) -> int:
        """Send one datagram to an address (``sendto(2)``) and return its length.

        The address has the form described in :meth:`bind`; the exceptions are the same as for
        :meth:`send`.
        """

    @overload
    def sendto(self, data: ReadableBuffer, flags: int, address: _Address, /) -> int: ...
    @property
    def gro(self) -> bool:
        """Whether the kernel may deliver coalesced datagrams (``UDP_GRO``, ``udp(7)``).

        Switch it on for a socket that receives many datagrams from a few peers: a single system
        call can then receive up to 128 datagrams of equal size from one peer. Every receiving
        method splits them again, in order, so callers see no difference. Datagrams that a call does
        not return wait in the socket's backlog (:attr:`pending`), which ``select``, duplicates of
        the socket and other processes cannot see. For that reason, ``gro`` is off by default, and a
        loop around ``select`` must check :attr:`pending` first.

        Switching ``gro`` off moves the datagrams in the kernel's queue into the backlog. Datagrams
        that the kernel is coalescing at that very moment may be received as one. Even after ``gro``
        has been switched off, ``MSG_PEEK`` moves the datagram that it returns into the backlog, as
        it does while ``gro`` is on.

        :raises OSError: ``EOPNOTSUPP`` or ``ENOPROTOOPT``: the socket is not a UDP socket, or the
            kernel is older than 5.0.
        """

    @gro.setter
    def gro(self, is_on: bool) -> None: ...
    @property
    def guard(self) -> Guard | None:
        """The :class:`Guard` that checks received datagrams, or None. Sockets may share a guard.

        Every receiving method skips the datagrams that the guard refuses. After 1024 consecutive
        refusals, a method that does not wait raises :class:`BlockingIOError`, so that a flood
        cannot keep the caller busy; ``select`` still reports the socket as readable. A new guard
        also checks the datagrams already in the backlog.

        Setting a guard attaches its kernel filter to the socket. If a filter was already set with
        ``SO_ATTACH_FILTER``, or the kernel rejects the guard's filter, the guard itself checks the
        networks instead.

        :raises OSError: ``EAFNOSUPPORT``: the family is neither ``AF_INET`` nor ``AF_INET6``.
        """

    @guard.setter
    def guard(self, guard: Guard | None) -> None: ...
    @property
    def pacing(self) -> int | None:
        """The maximum send rate in bytes per second; ``None`` means no limit.

        This is ``SO_MAX_PACING_RATE`` (``socket(7)``). The device's queueing discipline ``fq``
        (``tc-fq(8)``) spaces out the datagrams; without it, the option has no effect (``tomada
        info`` shows which devices have it). Header bytes count towards the rate. You can only lower
        a UDP socket's rate: to send faster, open another socket.

        :raises ValueError: The rate is less than 1.
        """

    @pacing.setter
    def pacing(self, rate: int | None) -> None: ...
    @property
    def pending(self) -> int:
        """The number of datagrams in the backlog: received from the kernel, not yet handed out.

        The backlog is used only with :attr:`gro`, when a call returns fewer datagrams than the
        kernel coalesced. The next receive of any kind returns the remaining ones first, in order,
        and a thread that is waiting for a datagram wakes up to receive them. :meth:`close` drops
        them.
        """

    @property
    def spin(self) -> float:
        """How long a receive polls before it sleeps, in seconds. The default is 0.

        A sleeping thread needs 30 to 70 µs to wake up; a polling one receives a datagram within a
        few microseconds. Other Python threads run in the meantime. The cost is a busy processor
        core: while no datagram arrives, each wait polls for up to this time. Set this only if you
        have a core to spare.

        :raises ValueError: The time is negative or not a number.
        """

    @spin.setter
    def spin(self, seconds: float) -> None: ...
    @property
    def coalesce(self) -> float:
        """How long a receive collects datagrams after the first one, in seconds, up to 60.

        With the default of 0, receives do not collect. Otherwise, a call that can return many
        datagrams (:meth:`recv_many`, :meth:`recv_datagrams`, :meth:`recv_batch`) waits for the
        first one, and then for this much longer, so that one wake-up returns many datagrams. This
        saves CPU time but adds latency. Once a call is waiting, it delays a datagram by at most
        this time plus the kernel's timer slack of up to 50 µs (``PR_SET_TIMERSLACK`` in
        ``prctl(2)``).

        A wait ends early if recent receives suggest that 64 messages have already arrived, because
        waiting longer would save nothing more. (A message is one datagram or, with :attr:`gro`,
        several coalesced ones.) If the last receive returned as many datagrams as it could, the
        next one does not wait. Timeouts, signals and closing the socket end the wait as usual. A
        new value also applies to calls that are already waiting.

        It has no effect on calls that receive a single datagram, or on calls that do not wait at
        all. Calls that collect ignore :attr:`spin`.

        Servers, and transports and endpoints on event loops, have an option of the same name that
        works in the same way. If you pass them a socket, set this attribute on it first.

        :raises ValueError: The time is negative, more than 60, or not a number.
        """

    @coalesce.setter
    def coalesce(self, seconds: float) -> None: ...
    @property
    def _collects(self) -> bool: ...
    def errors(self) -> list[DatagramError]:
        """Return the kernel's reports about sent datagrams that failed, and remove them.

        The kernel records them only if the program has requested this with ``setsockopt(IPPROTO_IP,
        IP_RECVERR, 1)`` or ``setsockopt(IPPROTO_IPV6, IPV6_RECVERR, 1)`` (``ip(7)``, ``ipv6(7)``).
        With that option, the next call on the socket also raises such an error, even if the socket
        is not connected.

        The call never waits, and reads at most 1024 entries of the queue. As long as it returns
        errors, there may be more: call it until it returns none. Transports, and calls that wait
        for datagrams, move entries from the kernel's queue into tomada's own, which holds 256. When
        that is full, the oldest entry is dropped; ``stats().errors`` still includes it. The latest
        256 entries that are not errors, such as timestamps of sent datagrams, remain available to
        :meth:`recvmsg` with ``MSG_ERRQUEUE``.
        """

    def join_group(
        self, group: str, interface: str | int | None = None, source: str | None = None
    ) -> None:
        """Join a multicast group (``MCAST_JOIN_GROUP``, ``MCAST_JOIN_SOURCE_GROUP``, :rfc:`3678`).

        The first join switches off ``IP_MULTICAST_ALL``, unless you have set that option yourself:
        the socket then receives only from groups that it has joined itself, not from groups that
        other sockets on this machine have joined. Bind the socket to the group's port. For sending,
        set ``IP_MULTICAST_LOOP`` (whether sockets on this machine receive the datagrams),
        ``IP_MULTICAST_TTL`` (how many hops a datagram may travel; 1 keeps it on the link) and
        ``IP_MULTICAST_IF``, or their IPv6 equivalents.

        :param group: The group's address.
        :param interface: The interface's name, its index, or one of its addresses; without it, the
            routing table decides.
        :param source: The address of the only sender to receive from; without it, any sender.
        :raises ValueError: The group is not a multicast address, or the source belongs to a
            different family.
        :raises OSError: ``ENOBUFS`` (too many groups), ``ENODEV`` (the interface does not exist, or
            there is no route), ``EADDRINUSE`` (already joined), and others. The message says what
            to do.
        """

    def leave_group(
        self, group: str, interface: str | int | None = None, source: str | None = None
    ) -> None:
        """Leave a multicast group that was joined with the same arguments.

        Closing the socket leaves all groups.
        """

    def recv_batch(self, batch: Batch, flags: int = 0) -> int:
        """Receive into a :class:`Batch`, replacing its contents; return the number of datagrams.

        The call waits for one datagram, then receives all that are queued, up to the batch's number
        of slots (``recvmmsg(2)``). If the backlog (:attr:`pending`) is not empty, it returns the
        backlog instead. It does not create a Python object per datagram. A datagram that does not
        fit into a slot is truncated; the default slot size fits every IP datagram.

        If the call raises an exception other than the two below, the batch is empty afterwards.

        :raises RuntimeError: Another call is using the batch.
        :raises ValueError: ``flags`` includes ``MSG_PEEK`` or ``MSG_ERRQUEUE``.
        """

    def recv_datagram(self, flags: int = 0) -> Datagram:
        """Receive one datagram with its metadata, like :meth:`recv_datagrams`."""

    def recv_datagrams(self, max_datagrams: int = 64, flags: int = 0) -> list[Datagram]:
        """Receive datagrams with the kernel's metadata; otherwise like :meth:`recv_many`.

        The first call enables the metadata (``SO_TIMESTAMPNS``, ``IP_PKTINFO``, ``IP_RECVTTL``,
        ``IP_RECVTOS``, ``SO_RXQ_OVFL``, and the IPv6 equivalents). Options that you have already
        set, whether on or off, are left unchanged. For datagrams queued before the first call, the
        interface is unknown.
        """

    def recv_many(self, max_datagrams: int = 64, flags: int = 0) -> list[tuple[bytes, _RetAddress]]:
        """Wait for a datagram, then receive all that are queued, up to a maximum (``recvmmsg(2)``).

        The call returns at least one datagram, but does not wait for the maximum. Each item has the
        same form as the result of :meth:`recvfrom`, but is never truncated. If datagrams keep
        arriving as fast as the call receives them, it returns after 50 ms.

        :raises ValueError: The maximum is less than 1, or ``flags`` includes ``MSG_PEEK`` or
            ``MSG_ERRQUEUE``.
        :raises OSError: As in :meth:`recvfrom`; an error that occurs after the first datagram is
            raised by the next call. ``ESHUTDOWN``: the socket has no timeout and is shut down for
            receiving. (In that case, :meth:`recv` returns ``b""``, which in a list would mean an
            empty datagram.)
        """

    @overload
    def send_batch(
        self,
        batch: Batch,
        address: _Address | None = None,
        flags: int = 0,
        *,
        errors: Literal["raise"] = "raise",
    ) -> int:
        """Send the datagrams of a :class:`Batch`, each to its own address, or all to ``address``.

        A datagram without an address is sent to the connected peer. Otherwise, this works like
        :meth:`send_many`.

        :raises RuntimeError: Another call is using the batch.
        """

    @overload
    def send_batch(
        self,
        batch: Batch,
        address: _Address | None = None,
        flags: int = 0,
        *,
        errors: Literal["continue"],
    ) -> list[tuple[int, OSError]]: ...
    def send_datagram(self, datagram: Datagram, flags: int = 0) -> int | None:
        """Send one :class:`Datagram` with its metadata; otherwise like :meth:`send_datagrams`.

        :return: With :attr:`transmit_timestamps`, the datagram's id, by which :meth:`timestamps`
            identifies the datagram; otherwise ``None``. Ids run from 1 to 2**32 - 1 and then start
            again; a call that raises an exception also uses one up.
        """

    @overload
    def send_datagrams(
        self,
        datagrams: Iterable[Datagram],
        flags: int = 0,
        *,
        errors: Literal["raise"] = "raise",
    ) -> int:
        """Send many datagrams, each with its metadata, and return how many were sent.

        Each is sent to its ``address``, from its ``source``, over its ``interface``, with its
        ``ttl`` and ``tos`` (``IP_PKTINFO``, ``IP_TTL``, ``IP_TOS`` in ``ip(7)``, and their IPv6
        equivalents in :rfc:`3542`). A received datagram is sent with the metadata that it arrived
        with, unless :meth:`Datagram.replace` changes it. Consecutive datagrams of equal size with
        the same peer and metadata are sent in one system call. ``flags``, ``errors``, the timeout
        and the exceptions work as in :meth:`send_many`.

        A ``transmit_time_ns`` takes effect on a device with the queueing discipline ``fq``
        (``tc-fq(8)``). A datagram whose time has passed is sent at once. If the time is more than
        ten seconds ahead (the option ``horizon`` of ``fq``), the datagram is dropped or sent
        earlier. Other disciplines, and devices without one, send at once and report no error;
        ``tomada info`` shows which disciplines the devices have. For ``etf``, set ``SO_TXTIME``
        yourself; the clock that you choose there then applies.

        :raises OSError: ``EINVAL`` or ``ENETUNREACH``: the source is not an address of this
            machine, or has no route to the destination; ``ENODEV``: there is no such interface;
            ``EOPNOTSUPP``: a datagram has metadata, but the socket is an ``AF_UNIX`` socket.
        :raises ValueError: A source and its destination belong to different families.
        """

    @overload
    def send_datagrams(
        self,
        datagrams: Iterable[Datagram],
        flags: int = 0,
        *,
        errors: Literal["continue"],
    ) -> list[tuple[int, OSError]]: ...
    @property
    def transmit_timestamps(self) -> bool:
        """Whether the kernel reports when datagrams sent by :meth:`send_datagram` have left.

        False by default. Other methods of sending are not affected. The reports share the receive
        buffer with datagrams, and are lost if it is full. Until they are read, ``select`` reports
        an error (``POLLERR``). Calls that wait, and every 32nd :meth:`send_datagram`, remove them
        from the kernel's queue; the latest 65,536 are stored for :meth:`timestamps`. They are not
        errors: :meth:`errors` and ``MSG_ERRQUEUE`` do not return them, and ``stats().transmitted``
        counts them. Duplicates of a socket (``dup``, ``fork``) share the kernel's queue, and any of
        them may remove a report.

        This is ``SO_TIMESTAMPING`` with ``SCM_TS_OPT_ID`` (the kernel's
        ``networking/timestamping.rst``). If the program sets ``SO_TIMESTAMPING`` itself, the
        reports stop.

        :raises OSError: ``EOPNOTSUPP``: the kernel is older than 6.13, or the socket is an
            ``AF_UNIX`` socket; ``EBUSY``: the program itself has requested timestamps for all
            datagrams.
        """

    @transmit_timestamps.setter
    def transmit_timestamps(self, is_on: bool) -> None: ...
    def timestamps(self, timeout: float = 0.0) -> list[tuple[int, int | None, int | None]]:
        """Return the transmit timestamps that have arrived since the last call.

        :param timeout: How many seconds to wait for the first one.
        :return: A possibly empty list of tuples: the datagram's id; the time at which the kernel
            passed it to the device, in nanoseconds since 1970 UTC (see :func:`time.time_ns`); and
            the time at which the device sent it, in nanoseconds on the device's clock. Each item
            has only one of the two times; the other is ``None``. A device with hardware timestamps
            (see :meth:`tomada.socket.socket.enable_hardware_timestamps`) adds a second item with
            the same id. A datagram that never left, or that the kernel joined to another
            (``MSG_MORE``, ``UDP_CORK``), gets no item.
        :raises ValueError: The timeout is negative or not a number.
        """

    def _request_hardware_timestamps(self) -> None: ...
    @overload
    def send_many(
        self,
        datagrams: Iterable[ReadableBuffer] | Iterable[tuple[ReadableBuffer, _Address]],
        address: _Address | None = None,
        flags: int = 0,
        *,
        errors: Literal["raise"] = "raise",
    ) -> int:
        """Send many datagrams in order and return how many were sent (``sendmmsg(2)``).

        :param datagrams: Either bytes-like objects, all for ``address`` or, without it, for the
            connected peer; or pairs ``(bytes-like, address)``. An IPv6 socket also accepts IPv4
            addresses. Consecutive datagrams of equal size to one peer are passed to the kernel in
            one system call, and the kernel splits them (``UDP_SEGMENT``), if it supports that. With
            ``UDP_CORK`` or ``MSG_MORE``, the kernel joins the datagrams instead. Up to 4096
            items are read ahead from an iterable.
        :param errors: With ``"raise"``, the first datagram that fails ends the call with its
            exception. The exception's ``index`` says which datagram it was, and ``sent`` how many
            were sent before it. With ``"continue"``, the call tries every datagram and returns a
            list of ``(index, exception)`` pairs, one for each failure; if a system call that sends
            several datagrams fails with ``ENOBUFS`` or ``ENOMEM``, the error is reported for each
            of them. In either case, an exception from a signal handler, an audit hook or the
            iterable ends the call and is raised unchanged. Closing the socket also ends the call.
        :raises BlockingIOError: The timeout is 0, and there was no room for the first datagram. If
            there was room for at least one, the call returns how many were sent.
        :raises TimeoutError: The timeout, which applies to the whole call, expired before there was
            room for the next datagram. ``sent`` says how many were sent.
        :raises TypeError: An item is not a datagram. The items before it were sent; ``sent`` says
            how many.
        """

    @overload
    def send_many(
        self,
        datagrams: Iterable[ReadableBuffer] | Iterable[tuple[ReadableBuffer, _Address]],
        address: _Address | None = None,
        flags: int = 0,
        *,
        errors: Literal["continue"],
    ) -> list[tuple[int, OSError]]: ...
    def stats(self) -> Stats:
        """Return the socket's counters since it was opened; this also works once it is closed."""

    def setblocking(self, flag: bool, /) -> None:
        """Set the timeout to ``None`` (true) or 0 (false)."""

    @overload
    def setsockopt(
        self, level: int, optname: int, value: int | ReadableBuffer, optlen: None = None, /
    ) -> None:
        """Set an option (``setsockopt(2)``) to an ``int``, to bytes, or to None with a length.

        If the kernel silently grants a smaller ``SO_RCVBUF`` or ``SO_SNDBUF`` than requested, this
        issues a :class:`RuntimeWarning` that names the limit.
        """

    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int, /) -> None: ...
    def settimeout(self, timeout: float | None, /) -> None:
        """Set the timeout in seconds; ``None`` means to wait forever, and 0 not to wait.

        :raises ValueError: The timeout is negative or not a number.
        """

    def shutdown(self, how: int, /) -> None:
        """Shut down receiving, sending or both (``shutdown(2)``).

        :param how: ``SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR``.
        :raises OSError: ``ENOTCONN``: the socket is not connected.
        """

@final
class Batch:
    """A reusable container of datagrams in one block of memory.

    ``Batch(slots=64, *, slot_size=65536)``

    Use it with :meth:`Socket.recv_batch` and :meth:`Socket.send_batch`. It supports the buffer
    protocol: ``memoryview(batch)`` is its writable memory, and :attr:`offsets` and :attr:`lengths`
    say where each payload is; numpy can use all three without copying. They stay valid as long as
    the batch exists, and always show its current contents: the next receive overwrites the previous
    payloads. :meth:`rows`, :attr:`addresses_array` and :attr:`timestamps` return copies.

    Only one call at a time may use a batch, so give each thread its own. While one thread receives
    or sends, calls in other threads raise :class:`RuntimeError`.

    :param slots: The maximum number of kernel messages per receive, 1 to 4096. A message is one
        datagram or, with :attr:`Socket.gro`, up to 128 of equal size. A slot reserves address
        space, but uses memory only for datagrams that are actually stored.
    :param slot_size: The longest message in bytes. The default fits every IP datagram; a longer
        ``AF_UNIX`` datagram is truncated.
    :raises ValueError: An argument is out of range.
    :raises MemoryError: There is not enough address space.
    """

    def __new__(cls, slots: int = 64, *, slot_size: int = 65536) -> Self: ...
    @property
    def slots(self) -> int:
        """The maximum number of kernel messages per receive."""

    @property
    def offsets(self) -> memoryview:
        """The offset of each payload in bytes: a read-only view in the format ``"I"``."""

    @property
    def lengths(self) -> memoryview:
        """The length of each payload in bytes: a read-only view in the format ``"I"``."""

    @property
    def addresses(self) -> list[_RetAddress]:
        """Each datagram's address: the sender's, the one passed to :meth:`append`, or None."""

    @property
    def addresses_array(self) -> Any:
        """The addresses as a :class:`numpy.ndarray` of records, without an object per address.

        The fields of a record are ``family`` (``AF_INET`` or ``AF_INET6``), ``port``, ``scope``
        (the interface index of a link-local address) and ``address`` (16 bytes, of which IPv4 uses
        the first four). A datagram that was appended without an address has all zeros. An IPv4 peer
        of an IPv6 socket has a mapped address, as in :attr:`addresses`. The array is a copy that
        the next receive does not change.

        :raises ValueError: A datagram has an ``AF_UNIX`` address.
        :raises ModuleNotFoundError: numpy is not installed.
        """

    @property
    def timestamps(self) -> memoryview:
        """When the kernel received each datagram: nanoseconds since 1970, in the format ``"q"``.

        On IPv4 and IPv6 sockets, the kernel reports timestamps if the ``SOL_SOCKET`` option
        ``SO_TIMESTAMPNS`` (or ``SO_TIMESTAMP``, or ``SO_TIMESTAMPING``) is set; otherwise, they are
        0. Coalesced datagrams share a timestamp. The result is a read-only copy that the next
        receive does not change.
        """

    def rows(self, dtype: Any, *, errors: Literal["raise", "skip"] = "raise") -> Any:
        """Return the payloads as a :class:`numpy.ndarray` with one ``dtype`` item per datagram.

        The array is a copy in contiguous memory that the next receive does not change.

        :param dtype: A numpy dtype, or anything that :class:`numpy.dtype` accepts. It must not
            contain Python objects.
        :param errors: With ``"skip"``, datagrams whose length is not ``dtype.itemsize`` are left
            out; :attr:`lengths` shows which. Use this if strangers can send to the socket.
        :raises ValueError: A datagram has a different length, and ``errors`` is ``"raise"``; or
            ``dtype`` does not have a size, or contains Python objects.
        :raises ModuleNotFoundError: numpy is not installed.
        """

    @property
    def truncated(self) -> list[int]:
        """The indexes of the datagrams that were truncated because ``slot_size`` was too small."""

    def append(self, data: ReadableBuffer, address: _Address | None = None) -> None:
        """Append a copy of a datagram.

        After a receive, :meth:`clear` the batch first.

        :param address: The destination for :meth:`Socket.send_batch`. Without it, the datagram is
            sent to the ``address`` passed to that method, or else to the connected peer.
        :raises ValueError: The batch has no room for it.
        """

    def extend(self, data: ReadableBuffer, size: int, address: _Address | None = None) -> None:
        """Split a buffer into datagrams of ``size`` bytes and append them; the last may be shorter.

        :raises ValueError: The batch does not have room for all of them, in which case none is
            appended; or ``size`` is 0.
        """

    def clear(self) -> None:
        """Remove all datagrams."""

    def __len__(self) -> int:
        """Return the number of datagrams."""

    def __getitem__(self, index: int, /) -> memoryview:
        """Return a payload, as a view of the batch's memory."""

    def __iter__(self) -> Iterator[tuple[memoryview, _RetAddress]]:
        """Iterate over pairs of payload and address."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Datagram:
    """A datagram with metadata, either received or to be sent. Immutable.

    ``Datagram(data, address=None, *, ttl=None, tos=None, ecn=None, source=None, interface=None,
    transmit_time_ns=None)``

    :meth:`Socket.send_datagram` and :meth:`Socket.send_datagrams` send it. If a field is ``None``,
    the socket's options and the routing table decide.

    :param data: The payload, a bytes-like object, which is copied unless it is ``bytes``.
    :param address: The destination; without it, the connected peer.
    :param ttl: The time to live (IPv4) or hop limit (IPv6), 1 to 255.
    :param tos: The type of service (IPv4) or traffic class (IPv6), 0 to 255.
    :param ecn: The last two bits of ``tos``, 0 to 3 (:rfc:`3168`). Without ``tos``, the other bits
        are 0.
    :param source: The IP address to send from, which must belong to this machine.
    :param interface: The interface to send over: its name, its index, or one of its addresses.
    :param transmit_time_ns: When to transmit the datagram, in nanoseconds on the clock of
        :func:`time.monotonic_ns`. This needs a queueing discipline that supports such times: see
        :meth:`Socket.send_datagrams`.
    :raises ValueError: A number is out of range, or ``source`` is not a numeric address.
    :raises OSError: ``ENODEV``: there is no such interface.
    """

    def __new__(
        cls,
        data: ReadableBuffer,
        address: _Address | None = None,
        *,
        ttl: int | None = None,
        tos: int | None = None,
        ecn: int | None = None,
        source: str | None = None,
        interface: str | int | None = None,
        transmit_time_ns: int | None = None,
    ) -> Self: ...
    def replace(
        self,
        *,
        data: ReadableBuffer = ...,
        address: _Address | None = ...,
        ttl: int | None = ...,
        tos: int | None = ...,
        ecn: int | None = ...,
        source: str | None = ...,
        interface: str | int | None = ...,
        transmit_time_ns: int | None = ...,
    ) -> Datagram:
        """Return a datagram to send, with new values for some fields.

        The arguments are the same as for the class. To reply to a received datagram, replace its
        ``data`` and set ``ttl`` to ``None``: the reply should keep the request's ``address``,
        ``source`` and ``interface``, but the request's remaining TTL may be too small for the
        return path.
        """

    @property
    def data(self) -> bytes:
        """The payload."""

    @property
    def address(self) -> _RetAddress:
        """The peer's address.

        For a received datagram, this is the sender's address in the form that
        :meth:`Socket.recvfrom` returns; otherwise, it is the one that you passed.
        """

    @property
    def host(self) -> str | None:
        """The peer's IP address. For an IPv4 peer of an IPv6 socket, it is a plain IPv4 address."""

    @property
    def port(self) -> int | None:
        """The peer's port."""

    @property
    def source(self) -> str | None:
        """The local IP address to send from.

        For a received datagram, this is the address to reply from: its :attr:`destination` or, if
        that is a group or a broadcast address, the interface's own address.
        """

    @property
    def transmit_time_ns(self) -> int | None:
        """When to transmit the datagram, in nanoseconds; ``None`` if it was received."""

    @property
    def destination(self) -> str | None:
        """The destination address: an address of this machine, a group, or a broadcast address."""

    @property
    def interface(self) -> int | None:
        """The index of the interface that the datagram arrived on, or will be sent over.

        See :func:`socket.if_indextoname`.
        """

    @property
    def timestamp_ns(self) -> int | None:
        """When the kernel received it, in nanoseconds since 1970 UTC (see :func:`time.time_ns`).

        ``None`` if the socket had not requested timestamps. With ``SO_TIMESTAMPING``, this can also
        be ``None`` at first: if no other socket on the machine uses timestamps, the kernel takes a
        moment to start recording them.
        """

    @property
    def hardware_timestamp_ns(self) -> int | None:
        """When the device received it, in nanoseconds on the device's clock.

        ``None`` without :meth:`tomada.socket.socket.enable_hardware_timestamps`.
        """

    @property
    def ttl(self) -> int | None:
        """The time to live (IPv4) or hop limit (IPv6), as received or for sending."""

    @property
    def tos(self) -> int | None:
        """The type of service (IPv4) or traffic class (IPv6): six bits of DSCP, two of ECN."""

    @property
    def ecn(self) -> int | None:
        """The explicit congestion notification, 0 to 3 (:rfc:`3168`)."""

    @property
    def truncated(self) -> bool:
        """Whether the payload was truncated."""

    @property
    def kernel_drops(self) -> int:
        """How many of the socket's datagrams the kernel had dropped when it queued this one.

        This includes datagrams that a filter refused: the kernel does not count them separately.
        """

    @property
    def session(self) -> DtlsSession | None:
        """The :class:`tomada.dtls.Session` that it arrived over, or ``None``.

        That session may have ended since then, and the peer may have begun another one.
        """

    def reply(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Send a reply from the address that the datagram was sent to, and return its length.

        On a machine with several addresses, a plain ``sendto`` replies from the address that the
        routing table prefers, and a peer that is connected to a different one never receives the
        reply. A reply to a multicast or broadcast datagram is sent from the interface's own
        address. The exceptions are the same as for :meth:`Socket.sendto`.

        :raises ValueError: The datagram was created for sending, not received.
        :raises OSError: ``ENOTCONN``: the datagram's DTLS session has ended.
        """

    def __len__(self) -> int:
        """Return the payload's length."""

class DtlsContext:
    """The base of :class:`tomada.dtls.Context`."""

    check_hostname: bool
    """Whether the server's certificate must match its host name or address.

    True by default for a client, which then needs a ``server_hostname``. A client that has a
    pre-shared key, but trusts no certificates or has no ``server_hostname``, offers only ciphers
    that authenticate with that key.
    """

    mtu: int
    """The maximum UDP payload in bytes: 1400 by default.

    Neither records nor handshake fragments are longer. A session's
    :attr:`~tomada.dtls.Session.max_datagram_size` is derived from it.
    """

    max_sessions: int
    """The maximum number of established sessions per socket: 65,536 by default.

    Beyond this limit, the session that has been idle longest is ended.
    """

    max_handshakes: int
    """The maximum number of handshakes in progress: 1024 by default.

    Beyond this limit, the oldest handshake is ended. Only clients that have proved their address
    count towards the limit.
    """

    handshake_timeout: float
    """How long a handshake may take, in seconds: 30 by default."""

    idle_timeout: float
    """How long a session may be idle, in seconds: 600 by default in a server, no limit in a client.

    A session that is idle for longer is ended, and its peer is notified.
    """

    _verify: int
    _minimum: int
    _maximum: int

    def __new__(cls, is_server: bool, /) -> Self: ...
    @property
    def keylog_filename(self) -> str | None:
        """The file to which session secrets are appended, or ``None``.

        With this file, Wireshark and tshark can decrypt captured datagrams. So can anyone else who
        can read the file, so use it for debugging only. If the file does not exist, it is created
        so that only its owner can read it.

        :raises OSError: The file cannot be opened.
        """

    @keylog_filename.setter
    def keylog_filename(self, path: str | PathLike[str] | None) -> None: ...
    def load_cert_chain(
        self,
        certfile: str | PathLike[str],
        keyfile: str | PathLike[str] | None = None,
        password: Callable[[], str | bytes | bytearray] | str | bytes | bytearray | None = None,
    ) -> None:
        """Load a certificate with its chain, and its private key.

        A server may have one certificate for each kind of key, such as ECDSA and RSA.

        :param certfile: A PEM file with the certificate, followed by those of its issuers.
        :param keyfile: A PEM file with the key; by default, ``certfile``.
        :param password: The password of an encrypted key, or a function that returns it.
        :raises OSError: A file cannot be read.
        :raises ValueError: A file contains no certificate or key, the key belongs to another
            certificate, or its password is missing or wrong. The message names the file.
        """

    def load_verify_locations(
        self,
        cafile: str | PathLike[str] | None = None,
        capath: str | PathLike[str] | None = None,
        cadata: str | ReadableBuffer | None = None,
    ) -> None:
        """Trust certificate authorities: the issuers of peers' certificates.

        :param cafile: A PEM file.
        :param capath: A directory of PEM files, all of which are read.
        :param cadata: Certificates in PEM, or one in DER.
        :raises OSError: A file or directory cannot be read.
        :raises ValueError: No certificate was found.
        """

    def set_default_verify_paths(self) -> None:
        """Trust the certificates that the system trusts."""

    def set_ciphers(self, ciphers: str, /) -> None:
        """Choose the ciphers, in the format of ``openssl-ciphers(1)``.

        The default is OpenSSL's list without anonymous and unencrypted ciphers, and without CBC,
        3DES, RC4, MD5 and DSS.

        :raises ValueError: No cipher can be selected.
        """

    def set_alpn_protocols(self, alpn_protocols: Sequence[str], /) -> None:
        """Offer or accept application protocols (:rfc:`7301`), in order of preference.

        A server selects the first of its protocols that the client also offers. If the client
        offers none of them, the session has no protocol.

        :raises ValueError: A name is empty or longer than 255 bytes.
        """

    def set_srtp_profiles(self, profiles: Sequence[str], /) -> None:
        """Offer or accept SRTP profiles (:rfc:`5764`), in order of preference.

        A session's :meth:`~tomada.dtls.Session.selected_srtp_profile` returns the first of the
        server's profiles that the client also offers, or ``None``.
        ``session.export_keying_material("EXTRACTOR-dtls_srtp", length)`` returns the SRTP keys. The
        media must be sent over another socket: this one receives only DTLS records.

        :param profiles: OpenSSL's names: ``"SRTP_AEAD_AES_256_GCM"``, ``"SRTP_AEAD_AES_128_GCM"``,
            ``"SRTP_AES128_CM_SHA1_80"``, ``"SRTP_AES128_CM_SHA1_32"``. An empty list means none.
        :raises ValueError: A name is unknown.
        """

    def session_stats(self) -> dict[str, int]:
        """Return OpenSSL's session counters, as :meth:`ssl.SSLContext.session_stats` does.

        The counters restart from zero when you change one of the context's settings.
        """

    def _choose_by_name(
        self, callback: Callable[[str | None], DtlsContext | int | None] | None, /
    ) -> None: ...
    def set_psk_client_callback(
        self, callback: Callable[[str | None], tuple[str | None, ReadableBuffer]] | None, /
    ) -> None:
        """Let a function choose a client's identity and pre-shared key.

        :param callback: Called during a handshake with the server's identity hint, or ``None``. It
            returns the identity and the key. If it raises an exception, the handshake fails, and
            :func:`sys.unraisablehook` reports the exception. The callback cannot close the socket
            that is performing the handshake: closing it raises :class:`OSError` with ``EDEADLK``.
            If the callback refers to the context (for example, a bound method of the object that
            holds the context), neither is ever freed.
        """

    def set_psk_server_callback(
        self,
        callback: Callable[[str], ReadableBuffer | None] | None,
        /,
        identity_hint: str | None = None,
    ) -> None:
        """Let a function find the pre-shared keys of clients.

        :param callback: Called during a handshake with the client's identity. It returns the key,
            or ``None`` or ``b""`` for an unknown identity. Bytes in the identity that are not UTF-8
            become lone surrogates. Exceptions are handled as in :meth:`set_psk_client_callback`,
            and a reference to the context has the same effect.
        :param identity_hint: At most 128 bytes that tell clients which identity to use.
        """

    def _prepare(self, is_server: bool, /) -> None:
        """Check that the context is complete and belongs to the given side.

        :raises ValueError: The context is incomplete, or belongs to the other side.
        """

@final
class DtlsEndpoint:
    """A socket's DTLS sessions. Creating this object makes the socket encrypt and decrypt.

    A connected socket has a single session.
    """

    def __new__(
        cls,
        context: DtlsContext,
        socket: Socket,
        *,
        server_hostname: str | None = None,
        on_end: Literal["wait", "empty", "fail"] = "wait",
        keeps_events: bool = False,
    ) -> Self: ...
    def begin(self) -> None:
        """Begin the session with the server."""

    def handshake(self, timeout: float | None = None) -> None:
        """Wait until the handshake with the only peer is complete.

        With a timeout of 0, do not wait.
        """

    def move(self, socket: Socket) -> DtlsEndpoint:
        """Move this socket's sessions, and the data that they have received, to another socket.

        Return the object for that socket.
        """

    def tick(self) -> float | None:
        """Retransmit messages that are due; return the seconds until the next call, or ``None``."""

    def events(self) -> list[tuple[str, Any, DtlsSession | OSError]]:
        """Return what has happened since the last call.

        Each event consists of its name, the peer, and either the session that has begun or the
        reason why one has ended.
        """

    def status(self) -> Literal[True] | None:
        """Return ``True`` once the handshake with the only peer is complete, ``None`` until then.

        :raises OSError: The session has ended.
        """

    def close(self, address: _Address | None = None) -> bool:
        """End the session with a peer, or with the only peer; return whether there was one."""

    def close_all(self) -> None:
        """End all sessions."""

    def session(self, address: _Address | None = None) -> DtlsSession | None:
        """Return the session with a peer, or with the only peer, or ``None``."""

    def stats(self) -> dict[str, int]:
        """Return the counters."""

@final
class DtlsSession:
    """A session with a peer: :class:`tomada.dtls.Session`.

    The object always describes the same session, even after that session has ended or the peer has
    begun another one. In a forked child, its methods raise :class:`OSError` (``ENOTCONN``).
    """

    @property
    def psk_identity(self) -> str | None:
        """The identity of the pre-shared key, or ``None`` if no such key was used."""

    @property
    def server_name(self) -> str | None:
        """The host name that the client asked for, or ``None``."""

    @property
    def session_reused(self) -> bool:
        """Whether the session resumes an earlier one."""

    @property
    def max_datagram_size(self) -> int:
        """The maximum length of a datagram in bytes. Sending a longer one raises ``EMSGSIZE``."""

    def version(self) -> str:
        """Return the version, such as ``"DTLSv1.2"``."""

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher's name, its version and its strength in bits."""

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """Return the peer's certificate, or ``None`` if the peer has not sent one.

        :param binary_form: Return the certificate in DER form, even if it was not verified.
            Otherwise, the result is a dict like that of :meth:`ssl.SSLSocket.getpeercert`; it is
            empty if the certificate was not verified.
        """

    def selected_alpn_protocol(self) -> str | None:
        """Return the application protocol that both sides support, or ``None``."""

    def selected_srtp_profile(self) -> str | None:
        """Return the SRTP profile that both sides support (:rfc:`5764`), or ``None``."""

    def export_keying_material(
        self, label: str, length: int, context: bytes | None = None
    ) -> bytes:
        """Return key material that both sides derive from the session (:rfc:`5705`).

        :param label: Identifies the purpose of the key material.
        :param length: The number of bytes, up to 65,536.
        :param context: Additional input, which must be the same on both sides.
        """

@final
class DatagramError:
    """The kernel's report about a sent datagram that failed. Immutable."""

    @property
    def peer(self) -> _RetAddress:
        """The datagram's destination; the port is 0 if the kernel does not report one."""

    @property
    def errno(self) -> int:
        """The error number, such as ``ECONNREFUSED``, ``EHOSTUNREACH`` or ``EMSGSIZE``."""

    @property
    def offender(self) -> str | None:
        """The IP address of the router or host that sent the report; ``None`` for this machine."""

    @property
    def mtu(self) -> int | None:
        """With ``EMSGSIZE``, the path's maximum packet size in bytes, including headers."""

    @property
    def origin(self) -> int:
        """The origin of the report: a constant ``SO_EE_ORIGIN_…``."""

    @property
    def type(self) -> int:
        """The ICMP type."""

    @property
    def code(self) -> int:
        """The ICMP code."""

    @property
    def data(self) -> bytes:
        """The beginning of the datagram: as much as the ICMP message quotes."""

@final
class SignalHandlers:
    """A context manager that installs signal handlers, and restores the previous ones.

    ``fileno`` is the descriptor for :func:`signal.set_wakeup_fd`, and ``owner`` the object that
    closes it when it is freed: it is kept until the previous descriptor is restored. Only the main
    thread can install handlers; in other threads this does nothing. The previous handlers are
    restored even if signal handlers raise exceptions meanwhile; the first of them is then raised.
    """

    def __new__(
        cls, handlers: dict[int, Callable[..., Any]], fileno: int, owner: object, /
    ) -> Self: ...
    def install(self) -> None:
        """Install the handlers for good."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

def end_with_parent(signal: int, /) -> None:
    """Have the kernel send this process a signal when its parent ends (``PR_SET_PDEATHSIG``)."""

def steer_by_key(socket: Socket, key: tuple[int, int], sockets: int, has_header: bool, /) -> None:
    """Steer datagrams within a socket's reuseport group by bytes of the payload.

    ``key`` is the offset of these bytes and their number (at most 64), ``sockets`` is the number of
    sockets in the group, and ``has_header`` says whether a PROXY header may precede the payload.

    :raises OSError: The kernel rejects the BPF program that steers the datagrams.
    """

def steer(socket: Socket, how: str, sockets: int, /) -> None:
    """Steer datagrams within a reuseport group (``SO_REUSEPORT``).

    :param how: ``"hash"``, ``"cpu"`` or ``"random"``: see :class:`tomada.Server`.
    :param sockets: The number of sockets that the group will have.
    """

@final
class ServerCore:
    """The internals of :class:`tomada.Server`. Not a public interface."""

    def __new__(
        cls,
        socket: Socket,
        handler: Any,
        takes: str,
        counters: ServerCounters,
        worker: int,
        report: Any,
    ) -> ServerCore: ...
    @property
    def is_delivering(self) -> bool:
        """Whether the calling thread is inside the handler."""

    def prepare(self) -> None:
        """Allocate the memory for receiving, in the thread that will call :meth:`run`.

        :raises MemoryError: Allocation failed.
        """

    def run(
        self,
        wakeup_fd: int | None = None,
        on_exit: Callable[[BaseException], object] | None = None,
    ) -> int:
        """Receive, call the handler and send its replies until told to end.

        :param wakeup_fd: The read end of the socket pair whose write end was passed to
            :func:`signal.set_wakeup_fd`. It must stay open until this returns.
        :param on_exit: Called with each :class:`SystemExit` and :class:`KeyboardInterrupt` that the
            handler raises; it must call :meth:`retire` or :meth:`stop`. Without it, such an
            exception ends this call, and the other datagrams of the batch stay in the socket's
            backlog.
        :return: How many received datagrams were not handled because time ran out.
        """

    def retire(self, limit: float) -> None:
        """End :meth:`run` once the datagrams received so far are handled.

        This changes nothing if :meth:`run` has already been told to end.

        :param limit: The maximum time for handling them, in seconds.
        """

    def stop(self, drain: float, *, is_last: bool = False) -> None:
        """End :meth:`run` once all queued datagrams are handled.

        :param drain: The maximum time for handling them, in seconds.
        :param is_last: Whether the socket is closed afterwards. If it is, and time runs out, the
            datagrams left in its queue are received and counted.
        """

    def sendto(self, data: ReadableBuffer, address: _Address) -> None:
        """Send a datagram: inside a handler, together with the replies; elsewhere, at once."""

    @property
    def worker(self) -> int:
        """The worker's number."""

    def attach(
        self,
        event_loop: AbstractEventLoop,
        task_options: dict[str, Any],
        most: int,
        on_reply: Callable[[], object],
        on_stop: Callable[[], object],
        on_exit: Callable[[BaseException], object],
    ) -> None:
        """Run on an event loop instead of :meth:`run`, in the loop's thread.

        :param task_options: The keyword arguments of :class:`asyncio.Task`.
        :param most: How many calls to the handler may run at once.
        :param on_reply: Called when something is queued to be sent: the loop then calls
            :meth:`end_turn` at the end of its iteration.
        :param on_stop: Called in the loop after :meth:`retire` and :meth:`stop`.
        :param on_exit: As for :meth:`run`.
        """

    def receive_once(self) -> int:
        """Receive once without waiting, call the handler, and send its replies.

        :return: The next step. 0: wait, because there is nothing to receive. 1: there may be more.
            2: receive again, because there are datagrams in the backlog. 3: the maximum number of
            calls is running. 4: pause, because of errors. 5: everything was received.
        """

    def end_turn(self) -> bool:
        """Send the queued datagrams; return whether any are still waiting for room."""

    def tick(self) -> None:
        """Count and log drops, handshakes and error-queue entries, about once per second."""

    def tick_sessions(self) -> float | None:
        """Retransmit the handshake messages that are due; return the seconds until the next call.

        This returns ``None`` if no call is needed before the next receive.
        """

    def cancel_tasks(self) -> None:
        """Cancel the running tasks; from now on, count cancelled tasks."""

    def detach(self) -> int:
        """Send the remaining replies and stop running on the loop.

        Datagrams whose handler has not returned count as cancelled.

        :return: How many received datagrams were not handled, or are still being handled.
        """

    @property
    def under_way(self) -> int:
        """How many calls to the handler are running."""

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`retire` or :meth:`stop` was called."""

    @property
    def time_left(self) -> float | None:
        """The seconds until draining must end, if there is a limit."""

@final
class ServerCounters:
    """Counters that a server's processes share. Not a public interface."""

    def __new__(cls, workers: int) -> ServerCounters: ...
    @staticmethod
    def descriptions() -> dict[str, str]:
        """Return the counters' names and descriptions."""

    def add_restart(self, worker: int) -> None:
        """Count a worker that died and is restarted."""

    def received(self, worker: int) -> int:
        """Return how many datagrams a worker and its predecessors have received."""

    def progress(self, worker: int) -> int:
        """Return a number that grows as a worker and its predecessors receive."""

    def stats(self, kernel_drops: int, filter_drops: int) -> ServerStats:
        """Return the sums over all workers."""

@final
class ServerStats:
    """A server's counters since it was started, summed over all workers. Immutable."""

    @property
    def received(self) -> int:
        """Datagrams received."""

    @property
    def received_bytes(self) -> int:
        """The payload bytes received."""

    @property
    def receive_calls(self) -> int:
        """System calls that received datagrams: the number of batches."""

    @property
    def sent(self) -> int:
        """Datagrams sent: accepted by the kernel, which does not mean that they arrived."""

    @property
    def sent_bytes(self) -> int:
        """The payload bytes sent."""

    @property
    def send_calls(self) -> int:
        """System calls that sent datagrams."""

    @property
    def truncated(self) -> int:
        """Datagrams truncated. A server's buffers are large enough to avoid this."""

    @property
    def refused(self) -> int:
        """Datagrams that the workers' guards refused. No other counter includes them."""

    @property
    def proxy_untrusted(self) -> int:
        """Datagrams refused because their PROXY header did not come from a trusted proxy.

        No other counter includes them.
        """

    @property
    def proxy_malformed(self) -> int:
        """Datagrams from trusted proxies that were refused because they had no valid PROXY header.

        No other counter includes them. If the proxies add a header only to the first datagram of a
        flow, this includes the datagrams of flows whose first datagram this process did not
        receive, and of flows in which another client's header appeared later.
        """

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel dropped since the start: see :attr:`Stats.kernel_drops`.

        Once the server's queue is empty, the number of datagrams sent to it is ``received + refused
        + kernel_drops + filter_drops``; behind proxies, add ``proxy_untrusted + proxy_malformed``.
        """

    @property
    def filter_drops(self) -> int:
        """Datagrams that the guard's kernel filter refused: see :attr:`Stats.filter_drops`."""

    @property
    def handler_errors(self) -> int:
        """Replies that the handler failed to produce: exceptions, wrong types, overlong replies.

        This includes datagrams for which there was not enough memory to call the handler, and
        datagrams whose source is the server's own address, which the server does not pass to the
        handler.
        """

    @property
    def cancelled(self) -> int:
        """Datagrams whose async handler was cancelled because draining took too long."""

    @property
    def send_errors(self) -> int:
        """Datagrams that could not be sent: the kernel refused them, or they waited too long."""

    @property
    def receive_errors(self) -> int:
        """Errors that receive calls returned, on a connected socket or one with ``IP_RECVERR``.

        Most are ICMP messages about datagrams that were sent earlier. They are logged at a limited
        rate and do not stop the server.
        """

    @property
    def handler_time(self) -> float:
        """Seconds spent in the handler, and in creating its arguments.

        For an async handler, this is the total duration of all calls, which may overlap.
        """

    @property
    def restarts(self) -> int:
        """Workers that died and were restarted."""

    @property
    def dtls_established(self) -> int:
        """DTLS handshakes that were completed."""

    @property
    def dtls_failed(self) -> int:
        """DTLS handshakes that have failed.

        The log (level ``INFO``) says why, at most once per second.

        This and the other counters of DTLS are up to a second late.
        """

    @property
    def dtls_evicted(self) -> int:
        """DTLS sessions and handshakes that made room for others, or were idle for too long."""

    @property
    def dtls_cookies_sent(self) -> int:
        """Cookies sent to DTLS clients whose addresses were not verified yet."""

    @property
    def dtls_invalid(self) -> int:
        """Datagrams to a DTLS server that were not DTLS, or did not belong to a session.

        No other counter includes them.
        """

    @property
    def batch_sizes(self) -> dict[int, int]:
        """The number of batches by size, with sizes rounded up to a power of two."""

@final
class SinkCounters:
    """Counters of a sink, in memory that a server's processes share. Not a public interface."""

    def __new__(cls) -> SinkCounters: ...
    def add(self, *, received: int = 0, published: int = 0, dropped: int = 0) -> None:
        """Count datagrams."""

    def stats(self) -> SinkStats:
        """Return the counters."""

@final
class SinkStats:
    """The counters of a sink, summed over all workers. Immutable.

    At any moment, ``received == published + dropped + in_flight``.
    """

    @property
    def published(self) -> int:
        """Datagrams that the broker has acknowledged."""

    @property
    def dropped(self) -> int:
        """Datagrams dropped: the sink was full, the broker rejected them, or ``linger`` ran out."""

    @property
    def received(self) -> int:
        """Datagrams received from the server."""

    @property
    def in_flight(self) -> int:
        """Datagrams that the sink holds: received, but neither published nor dropped yet.

        This may briefly include a batch that is about to be dropped. Datagrams that were lost
        because a worker was killed stay in this count.
        """

    def __eq__(self, other: object, /) -> bool: ...

@final
class Stats:
    """A socket's counters since it was opened. Immutable."""

    @property
    def received(self) -> int:
        """Datagrams received, including the backlog (:attr:`Socket.pending`)."""

    @property
    def received_bytes(self) -> int:
        """The payload bytes received."""

    @property
    def receive_calls(self) -> int:
        """System calls that received datagrams."""

    @property
    def sent(self) -> int:
        """Datagrams sent: accepted by the kernel, which does not mean that they arrived."""

    @property
    def sent_bytes(self) -> int:
        """The payload bytes sent."""

    @property
    def send_calls(self) -> int:
        """System calls that sent datagrams."""

    @property
    def truncated(self) -> int:
        """Datagrams that were truncated because the buffer was too small.

        :attr:`received` includes them.
        """

    @property
    def refused(self) -> int:
        """Datagrams that :attr:`Socket.guard` refused. No other counter includes them."""

    @property
    def proxy_untrusted(self) -> int:
        """Datagrams refused because their PROXY header did not come from a trusted proxy.

        No other counter includes them.
        """

    @property
    def proxy_malformed(self) -> int:
        """Datagrams from trusted proxies that were refused because they had no valid PROXY header.

        No other counter includes them. If the proxies add a header only to the first datagram of a
        flow, this includes the datagrams of flows whose first datagram this process did not
        receive, and of flows in which another client's header appeared later.
        """

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel has dropped so far (``SO_MEMINFO``).

        The kernel drops a datagram if the socket's buffer is full or the datagram's checksum is
        wrong. This also includes datagrams that this process could not store because it was out of
        memory, and those that it dropped because their peer had begun another DTLS session;
        :attr:`received` includes none of these. Once the queue is empty, the number of datagrams
        sent to the socket is ``received + refused + kernel_drops + filter_drops``; for a server
        behind proxies, add ``proxy_untrusted + proxy_malformed``. With :attr:`Socket.gro`, this sum
        is not exact: the kernel counts coalesced datagrams as one, so each drop stands for 1 to 128
        datagrams.

        The kernel counts from the socket's creation, and duplicates share the count. The kernel's
        counter has 32 bits; this one does not overflow as long as you read it now and then.
        """

    @property
    def filter_drops(self) -> int:
        """Datagrams that the socket's kernel filter refused (``SO_ATTACH_FILTER``).

        The filter is your own or belongs to a :class:`Guard` with ``allow`` or ``deny``. The kernel
        counts these datagrams together with those that did not fit into the buffer. To separate the
        two, each call to ``stats()`` compares the socket's counter with the network namespace's
        counters (``RcvbufErrors`` and ``InErrors`` in ``/proc/net/snmp``). While another socket in
        the namespace overflows, some datagrams that the filter refused are counted in
        :attr:`kernel_drops` instead. Before Linux 5.14, without ``/proc``, or if the socket is in a
        different namespace from the calling thread, all of them are counted there.
        """

    @property
    def errors(self) -> int:
        """Entries read from the error queue."""

    @property
    def send_errors(self) -> int:
        """Datagrams that a transport, an endpoint or a server accepted but could not send.

        A call that sends directly, such as a socket's ``sendto``, raises an exception instead.
        """

    @property
    def transmitted(self) -> int:
        """The kernel's reports that datagrams have left (:attr:`Socket.transmit_timestamps`)."""

    def __eq__(self, other: object, /) -> bool: ...

@final
class LinkCore:
    """The thread of :class:`tomada.testing.Link`. Direction 0 is towards the server.

    A script's number is its direction; 2 means both directions.
    """

    def __new__(
        cls,
        family: int,
        listen: Any,
        upstream: Any,
        seed: int,
        log_size: int,
        impairments: tuple[Any, Any],
        scripts: list[tuple[int, Any]],
        captures: bool,
    ) -> Self: ...
    @property
    def address(self) -> Any: ...
    def stop(self) -> None: ...
    def change(self, impairments: tuple[Any, Any], scripts: list[tuple[int, Any]]) -> None: ...
    def cut(self, directions: tuple[bool, bool]) -> None: ...
    def heal(self, directions: tuple[bool, bool]) -> None: ...
    def rebind(self) -> None: ...
    def stats(self, number: int) -> dict[str, int]: ...
    def log(self, number: int) -> list[tuple[Any, ...]]: ...
    def clients(self) -> list[tuple[int, Any, Any]]: ...
    def kernel_drops(self) -> int: ...
    def icmp_errors(self) -> tuple[int, int]: ...
    def take_captured(self) -> tuple[list[tuple[int, Any, Any, bytes]], int]: ...

@final
class PathCore:
    """One direction of a link, without sockets; the caller passes the time, in nanoseconds."""

    def __new__(cls, seed: int, log_size: int) -> Self: ...
    def set(self, impaired: Any) -> None: ...
    @staticmethod
    def check_steps(script: Any) -> None: ...
    def accept(
        self, now: int, flow: int, data: ReadableBuffer, headers: int, step: str | None = None
    ) -> None: ...
    def next_due(self) -> int | None: ...
    def pop(self, now: int) -> tuple[int, bytes] | None: ...
    def undeliver(self) -> None: ...
    def cut(self) -> None: ...
    def heal(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def log(self) -> list[tuple[Any, ...]]: ...

@final
class Guard:
    """Checks datagrams before they reach Python and limits what is sent in reply.

    Use it with a socket (``sock.guard = guard``), or with an endpoint of :mod:`tomada.asyncio` or a
    server (``guard=``). Each parameter that you pass adds a check. The checks run in the order
    below, and the first that fails refuses the datagram. A refused datagram is counted, and its
    sender gets no answer.

    A *source* is an address without its port, or a network: see ``prefixes``. IPv4-mapped IPv6
    addresses count as IPv4 addresses.

    **Memory.** The table of sources has a fixed size (32 bytes per source, 8 MiB by default). It is
    hashed with a secret key, so an attacker cannot choose which source to displace. A source
    becomes *known* once it has sent datagrams over a period of at least one second. Half of the
    table is for known sources. Each of them keeps its entry as long as it sends at least one
    datagram per minute, whatever else arrives. The other half is for strangers. If that half is
    full, a new stranger replaces the one that has used the least of its rate, and inherits that
    usage, so a flood cannot make the guard forget how much a source has sent. During a flood,
    strangers may be refused, but known sources are not.

    :param allow: Networks to admit (``"192.0.2.0/24"``, an address, or an :mod:`ipaddress` object).
        If given, all others are refused.
    :param deny: Networks to refuse. If both lists match a source, the longest prefix wins.
    :param max_size: The maximum payload size in bytes.
    :param ceiling: The maximum number of datagrams per second from all sources together, with
        bursts of up to a tenth of a second's worth. Strangers may use only half of it, so known
        sources have priority.
    :param rate: The maximum number of datagrams per second from one source.
    :param burst: The maximum number of datagrams in a burst; by default, one second's worth.
    :param prefixes: The prefix lengths that define a source, for IPv4 and IPv6. With ``(24, 56)``,
        the rate applies to networks. A single machine has a whole IPv6 /64, so a rate for longer
        prefixes limits nobody.
    :param amplification: How many payload bytes may be sent to an address for each byte admitted
        from it; 3 in QUIC (:rfc:`9000#section-8`). A sender can forge its source address; the
        victim would receive your replies. Sending more than this limit raises
        :class:`PermissionError`; a transport calls ``error_received`` instead. Nothing can be sent
        to an address that has not sent anything. Further datagrams from an address do not prove
        that it is genuine: see :meth:`validate`. A connected socket's peer is not limited.
    :param sources: The size of the table, 8 to 16,777,216 sources, rounded up to a power of two.
        Choose eight times the number of known peers.
    :param kernel_filter: Have the kernel drop datagrams that ``allow`` and ``deny`` refuse, before
        they cost time or buffer space (``SO_ATTACH_FILTER``). They are counted in ``filter_drops``
        of the socket's :class:`Stats`, not in the guard's.
    :raises ValueError: A network is invalid, has host bits set, or is in both lists; or a number is
        out of range.
    """

    def __new__(
        cls,
        *,
        allow: Iterable[object] | None = None,
        deny: Iterable[object] | None = None,
        rate: float | None = None,
        burst: int | None = None,
        prefixes: tuple[int, int] = (32, 64),
        ceiling: float | None = None,
        amplification: float | None = None,
        max_size: int | None = None,
        sources: int = 262_144,
        kernel_filter: bool = True,
    ) -> Guard: ...
    @property
    def kernel_filter(self) -> bytes | None:
        """The networks as an array of ``struct sock_filter`` (classic BPF).

        ``None`` if neither ``allow`` nor ``deny`` was given, if ``kernel_filter`` is false, or if
        the program would exceed the kernel's limit of 4096 instructions (about a thousand networks
        that are not adjacent). The guard itself then checks the networks.
        """

    def attach(self, sock: Any, /) -> None:
        """Attach :attr:`kernel_filter`, but not the guard, to any socket (``SO_ATTACH_FILTER``).

        :raises ValueError: This guard does not have a kernel filter.
        :raises OSError: ``ENOMEM``: the filter is larger than ``net.core.optmem_max`` allows.
        """

    def stats(self) -> GuardStats:
        """Return the counters, summed over all sockets that have this guard.

        They cover the process that created the guard and all processes forked from it, such as a
        server's workers, including processes that have ended.
        """

    def validate(self, address: str | tuple[Any, ...], /) -> None:
        """Mark an address as genuine: it becomes known, and ``amplification`` no longer limits it.

        Call this method when a peer has sent something that it can know only from a datagram that
        was sent to this address, such as a random number from the first reply. Nothing else proves
        that the address is the peer's own. The mark lasts at least until the address has been
        silent for ten minutes; after that, a newer source may displace the address from the table.

        :param address: A numeric host, or an address as returned by a receive; the port is ignored.
        """

@final
class GuardStats:
    """A guard's counters. Immutable."""

    @property
    def admitted(self) -> int:
        """Datagrams that were admitted."""

    @property
    def refused(self) -> int:
        """Received datagrams that were refused: the sum of the next four counters."""

    @property
    def denied(self) -> int:
        """Datagrams that ``allow`` or ``deny`` refused, except those that the kernel dropped."""

    @property
    def oversized(self) -> int:
        """Datagrams longer than ``max_size``."""

    @property
    def over_rate(self) -> int:
        """Datagrams above the ``rate`` of their source."""

    @property
    def over_ceiling(self) -> int:
        """Datagrams above the ``ceiling``."""

    @property
    def over_amplification(self) -> int:
        """Datagrams that were not sent because of ``amplification``."""

    def __eq__(self, other: object, /) -> bool: ...

class LoopCore:
    """The internals of :class:`tomada.asyncio.EventLoop`. Not a public interface.

    It overrides methods of the standard loop and works on that loop's queues.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def _poll_directly(self, selector: Any) -> None: ...
    def _run_once(self) -> None: ...
    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Handle:
        """Call a function soon, like :meth:`asyncio.loop.call_soon`."""

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        """Call a function after a delay in seconds, like :meth:`asyncio.loop.call_later`."""

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        """Call a function at a given time, like :meth:`asyncio.loop.call_at`."""

    def _add_reader(
        self, fd: Any, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle: ...
    def _remove_reader(self, fd: Any) -> bool: ...

@final
class ReadHub:
    """Watches many descriptors for an event loop, which watches only the hub."""

    def __new__(cls) -> ReadHub: ...
    def fileno(self) -> int:
        """Return the descriptor for the loop to watch."""

    def add(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Call a function whenever a descriptor is readable or has an error."""

    def remove(self, fd: int) -> bool:
        """Stop watching a descriptor; return whether it was watched."""

    def ready(self) -> None:
        """Call the functions of the descriptors that are ready."""

@final
class ReceiveWindow:
    """The timer of a socket that collects datagrams on an event loop."""

    def __new__(cls) -> ReceiveWindow: ...
    def fileno(self) -> int:
        """Return the descriptor, which becomes readable at the end of the window."""

    def open(self, socket: Socket) -> bool:
        """Begin a window after a first datagram, unless the caller should receive it at once.

        This returns False, without beginning a window, if the last receive returned as many
        datagrams as it could, or if the window has already begun and ended.
        """

    def renew(self, socket: Socket) -> bool:
        """Begin the next window, or return False if the caller should wait for a datagram first."""

    def close(self) -> None:
        """End the window; the descriptor does not become readable."""

@final
class TransportCore:
    """The internals of :class:`tomada.asyncio.DatagramTransport`. Not a public interface."""

    def __new__(
        cls,
        socket: Socket,
        event_loop: Any,
        transport: Any,
        act: Callable[[Any], object],
        *,
        delivers: bool,
        peer: Any,
        is_connected: bool,
        is_shared: bool,
        gro: bool | None,
    ) -> TransportCore: ...
    def start_reading(self) -> bool:
        """Deliver datagrams from now on, unless the transport was already paused or closed.

        Like the other methods that change the transport's phase, this returns whether the phase
        changed.
        """

    def pause_reading(self) -> bool:
        """Stop delivering datagrams."""

    def resume_reading(self) -> bool:
        """Deliver datagrams again after :meth:`pause_reading`."""

    def close(self) -> bool:
        """Stop delivering datagrams.

        When the send backlog is empty, the next step is the call to ``connection_lost``.
        """

    def abort(self) -> bool:
        """Drop the send backlog; from now on, only warn when a datagram is sent."""

    def is_reading(self) -> bool:
        """Return whether the protocol wants datagrams."""

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""

    @property
    def is_delivering(self) -> bool:
        """Whether datagrams are delivered."""

    @property
    def is_full(self) -> bool:
        """Whether the send backlog is waiting because the socket's buffer is full."""

    @property
    def buffered(self) -> int:
        """The number of bytes in the send backlog."""

    @property
    def queued(self) -> int:
        """The number of datagrams in the send backlog."""

    @property
    def limits(self) -> tuple[int, int]:
        """The low-water and high-water marks in bytes."""

    def set_limits(self, high: float | None, low: float | None) -> None:
        """Set the marks in bytes, like :meth:`asyncio.WriteTransport.set_write_buffer_limits`."""

    def set_protocol(self, protocol: Any, takes_batches: bool) -> None:
        """Set the protocol that datagrams are delivered to."""

    def raise_mistakes(self) -> None:
        """Raise exceptions for the caller's mistakes from now on.

        Before this call, mistakes are reported to the protocol instead.
        """

    def restore_options(self) -> None:
        """On a shared socket, restore the options that no other transport or server relies on."""

    def unlink(self) -> None:
        """Drop the references to the loop, the transport and the protocol."""

    def datagram(self) -> Datagram | None:
        """Return the datagram being delivered, with its metadata."""

    def read_ready(self) -> None:
        """Deliver queued datagrams for a limited time and send the protocol's replies."""

    def resume(self) -> None:
        """Continue a delivery that ran out of time."""

    def recvfrom(self) -> tuple[bytes, _RetAddress]:
        """Receive a datagram and its sender's address."""

    def recv_datagram(self) -> Datagram:
        """Receive a datagram with its metadata; raise ``BlockingIOError`` if none is queued."""

    def recv_batch(self, batch: Batch) -> int:
        """Receive as many queued datagrams as a batch has room for."""

    def recv_many(self, max_datagrams: int) -> list[tuple[bytes, _RetAddress]]:
        """Receive all queued datagrams, up to a maximum, with their senders' addresses."""

    def read_errors(self) -> bool:
        """Report errors in the error queue to the protocol and return whether there were any.

        At most 16 are reported per iteration of the loop; the others follow in later iterations.
        """

    def read_all_errors(self) -> None:
        """Report all stored errors to the protocol now, however many there are."""

    def resume_errors(self) -> None:
        """Continue to report errors to the protocol."""

    def limit_backlog(self) -> None:
        """From now on, limit the datagrams that wait for room in the socket's buffer."""

    def sendto(self, data: ReadableBuffer, addr: _Address | None = None) -> None:
        """Send a datagram: at once, or with others at the end of the iteration."""

    def sendto_many(self, datagrams: Iterable[Any], addr: _Address | None = None) -> None:
        """Send many datagrams: all to one address or the peer, or ``(data, address)`` pairs."""

    def flush(self) -> None:
        """Send the datagrams that wait for the end of the iteration."""

    def write_ready(self) -> bool:
        """Send datagrams that are waiting for room; return whether any left the backlog."""
