"""The Rust core: :class:`Socket` is the base of :class:`tomada.socket.socket`."""

from collections.abc import Iterable, Iterator
from socket import _Address, _RetAddress
from typing import Any, Final, Literal, Self, TypeAlias, final, overload

from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "CONSTANTS",
    "Batch",
    "Datagram",
    "DatagramError",
    "Guard",
    "GuardStats",
    "ServerCore",
    "ServerCounters",
    "ServerStats",
    "Socket",
    "Stats",
    "TransportCore",
    "Turn",
    "__version__",
    "end_with_parent",
    "kind_of",
    "steer",
]

__version__: Final[str]

_CMSG: TypeAlias = tuple[int, int, bytes]
_CMSGArg: TypeAlias = tuple[int, int, ReadableBuffer]

CONSTANTS: Final[dict[str, int]]

def kind_of(fileno: int, /) -> tuple[int, int]:
    """Return the family and type of an open socket.

    :raises OSError: ``EBADF`` or ``ENOTSOCK``, where the descriptor is no open socket.
    """

class Socket:
    """A datagram socket of the families ``AF_INET``, ``AF_INET6`` and ``AF_UNIX``.

    Methods of the standard class have its arguments, results, exceptions and audit events. Where a
    method has to wait, it waits as the socket's timeout says: for ever (``None``), for some seconds
    (then :class:`TimeoutError`), or not at all (``0``; then :class:`BlockingIOError`). While it
    waits other threads run, signal handlers run in the main thread and the wait goes on after them
    (:pep:`475`), and a :meth:`close` in another thread ends it with an :class:`OSError`
    (``EBADF``). A wait that ends with an exception has taken no datagram.

    Every method may be called from several threads at once. Each datagram goes to one of them.
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

        With a descriptor, -1 for ``family``, ``type`` or ``proto`` asks the kernel. On failure the
        descriptor stays open, and the caller's. ``default_timeout`` becomes the timeout, unless
        ``type`` has ``SOCK_NONBLOCK``.
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
        """The timeout in seconds, as :meth:`gettimeout` returns it."""

    def _disconnect(self) -> None:
        """End the connection, and with it the local address and port that the kernel chose."""

    def _exchange(self, request: ReadableBuffer, /) -> bytes | None:
        """Throw away what is queued, send a request, and return the next datagram.

        It returns ``None`` where the request could not be sent, for whatever reason. What it raises
        comes from waiting for the reply.
        """

    def _accept(self) -> tuple[int, _RetAddress]:
        """Take a connection, and return its descriptor and the peer's address (``accept4(2)``)."""

    def bind(self, address: _Address, /) -> None:
        """Give the socket its local address (``bind(2)``).

        :param address: ``(host, port)`` for IPv4, ``(host, port[, flowinfo[, scope_id]])`` for
            IPv6, a path or an abstract name for ``AF_UNIX``. The host ``""`` is every local
            address, the port 0 any free one. A scope may also stand in the host:
            ``"fe80::1%eth0"``. A numeric host never asks the resolver; a name is resolved while
            other threads run.
        :raises OSError: ``EADDRINUSE``, ``EADDRNOTAVAIL``, ``EACCES``, ``EINVAL`` (bound before).
        :raises socket.gaierror: The host has no address of the socket's family.
        :raises OverflowError: The port is not in 0 to 65535.
        """

    def close(self) -> None:
        """Close the descriptor (``close(2)``). Closing again does nothing.

        Every call that waits on the socket in another thread ends with an :class:`OSError`. When
        this returns, no call is using the descriptor any more, so that its number and its port are
        free. The standard class leaves such a call waiting, and the next datagram to arrive lost.
        """

    def connect(self, address: _Address, /) -> None:
        """Set the peer (``connect(2)``): where :meth:`send` sends, and whose datagrams arrive.

        A datagram that a stranger sent before still waits to be received. After an ICMP error from
        the peer, the next call raises it (:class:`ConnectionRefusedError`), and a send has then
        sent nothing. The arguments and exceptions are those of :meth:`bind`.
        """

    def connect_ex(self, address: _Address, /) -> int:
        """Connect as :meth:`connect`, but return the errno, or 0, instead of raising it.

        A bad argument or a name without an address raises an exception all the same.
        """

    def detach(self) -> int:
        """Close the object without closing the descriptor, and return the descriptor, or -1.

        Calls that wait on the socket are ended as by :meth:`close`.
        """

    def fileno(self) -> int:
        """Return the descriptor's number, or -1 once closed."""

    def getblocking(self) -> bool:
        """Return whether the timeout is not 0."""

    def getpeername(self) -> _RetAddress:
        """Return the peer's address (``getpeername(2)``).

        :raises OSError: ``ENOTCONN``, where there is none.
        """

    def getsockname(self) -> _RetAddress:
        """Return the socket's own address (``getsockname(2)``)."""

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int:
        """Get an option (``getsockopt(2)``).

        :param buflen: How many bytes to read, 1 to 1024; without it the option is an ``int``.
        :return: The ``int``, or the bytes that the kernel gave.
        """

    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...
    def gettimeout(self) -> float | None:
        """Return the timeout in seconds; ``None`` waits for ever."""

    def listen(self, backlog: int = 128, /) -> None:
        """Let peers connect (``listen(2)``); a datagram socket raises ``EOPNOTSUPP``."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive one datagram (``recv(2)``).

        A datagram longer than ``bufsize`` bytes loses its end without a sign, but in
        ``stats().truncated``. An empty one is ``b""``. A large ``bufsize`` costs nothing.

        :raises TimeoutError: None came within the timeout.
        :raises BlockingIOError: None is there, and the timeout is 0 or, without a timeout, the
            kernel would not let the call wait: ``flags`` has ``MSG_DONTWAIT`` or ``MSG_ERRQUEUE``,
            ``O_NONBLOCK`` is set on the descriptor by whatever means, or the time of
            ``SO_RCVTIMEO`` has passed.
        :raises ConnectionRefusedError: The connected peer's host answered an earlier datagram with
            an ICMP error.
        :raises ValueError: ``bufsize`` is negative.
        """

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one datagram into a buffer, and return its length; otherwise as :meth:`recv`.

        After an exception the buffer is as it was. A datagram that the :attr:`guard` refuses is
        never in it.

        :param nbytes: How much of the buffer to use; 0 is all of it.
        """

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, _RetAddress]:
        """Receive one datagram and its sender's address; otherwise as :meth:`recv`.

        The address is ``(host, port)`` for IPv4, ``(host, port, flowinfo, scope_id)`` for IPv6, a
        ``str`` or, for an abstract name, ``bytes`` for ``AF_UNIX``; ``None`` for a sender without.
        """

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, _RetAddress]:
        """Receive one datagram into a buffer, as :meth:`recv_into`, and its sender's address."""

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[_CMSG], int, _RetAddress]:
        """Receive one datagram with control messages (``recvmsg(2)``).

        :param ancbufsize: Room for control messages, in bytes; see :func:`socket.CMSG_SPACE`.
        :return: The data; a list of ``(level, type, data)``; flags such as ``MSG_TRUNC`` (the
            datagram was longer) and ``MSG_CTRUNC`` (the control messages were); the sender.
        """

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[_CMSG], int, _RetAddress]:
        """Receive one datagram into several buffers in turn; otherwise as :meth:`recvmsg`."""

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Send one datagram to the connected peer (``send(2)``), and return its length.

        :raises OSError: ``EMSGSIZE``, where it is longer than the protocol or the path allows;
            ``EDESTADDRREQ``, where there is no peer.
        :raises ConnectionRefusedError: As in :meth:`recv`; nothing was sent.
        :raises TimeoutError: The socket's buffer had no room within the timeout.
        """

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send one datagram as :meth:`send`; a stream socket goes on until all is sent."""

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
        :param address: Where to; without it, to the connected peer.
        """

    @overload
    def sendto(self, data: ReadableBuffer, address: _Address, /) -> int:
        """Send one datagram to an address (``sendto(2)``), and return its length.

        The address is as in :meth:`bind`, the exceptions as in :meth:`send`.
        """

    @overload
    def sendto(self, data: ReadableBuffer, flags: int, address: _Address, /) -> int: ...
    @property
    def gro(self) -> bool:
        """Whether the kernel may hand over datagrams glued together (``UDP_GRO``, ``udp(7)``).

        Set it for a socket that receives much from few peers: one trip through the kernel then
        brings up to 64 datagrams of one size from one peer. Every receiving method takes them apart
        again, in order; nothing else changes for who calls them. What a call did not take waits in
        the socket (:attr:`pending`), where ``select`` and other processes do not see it: that is
        why it is off by default. A loop around ``select`` looks at :attr:`pending` first.

        Switching it off takes over what the kernel has queued, which is then :attr:`pending` too. A
        run that arrives in that very moment may come as one datagram.

        :raises OSError: ``EOPNOTSUPP`` or ``ENOPROTOOPT``, where the socket is not UDP or the
            kernel older than 5.0.
        """

    @gro.setter
    def gro(self, is_on: bool) -> None: ...
    @property
    def guard(self) -> Guard | None:
        """The :class:`Guard` of what arrives, if any; several sockets may have the same.

        Every receiving method passes over what it refuses, as if it had not come. After 1024
        refusals in a row one that does not wait raises :class:`BlockingIOError`, although there may
        be more, as ``select`` then says: so that a flood does not hold the caller up. What waits in
        the socket when it is given a guard is checked too.

        Setting it attaches the guard's kernel filter to the socket, unless a filter was set with
        ``SO_ATTACH_FILTER``, or the kernel refuses it; then the guard does its work.

        :raises OSError: ``EAFNOSUPPORT``; it is for ``AF_INET`` and ``AF_INET6``.
        """

    @guard.setter
    def guard(self, guard: Guard | None) -> None: ...
    @property
    def pending(self) -> int:
        """How many datagrams were taken from the kernel and wait for the next receive of any kind.

        There are some only with :attr:`gro`, when a call wanted fewer than came glued together.
        They come first, in order, and end the wait of another thread. :meth:`close` drops them.
        """

    @property
    def spin(self) -> float:
        """How long a receive stays awake and tries again before it sleeps, in seconds; 0 at first.

        A thread that sleeps needs 30 to 70 µs to wake up; one that spins has the datagram within a
        few. Other Python threads run meanwhile. The price is one processor core, fully used for as
        long as no datagram comes, up to this time for each wait: for who has a core to spare.

        :raises ValueError: It is negative or not a number.
        """

    @spin.setter
    def spin(self, seconds: float) -> None: ...
    def errors(self) -> list[DatagramError]:
        """Take what the kernel has noted about datagrams that failed on their way.

        It notes them once it was told to, by ``setsockopt(IPPROTO_IP, IP_RECVERR, 1)`` or
        ``setsockopt(IPPROTO_IPV6, IPV6_RECVERR, 1)`` (``ip(7)``, ``ipv6(7)``). With that option the
        next call on the socket also raises such an error, even where it is not connected.

        The call never waits, and takes at most 1024 entries of the queue. While it returns errors,
        there may be more: call it again. Calls that wait for datagrams, and transports, empty the
        kernel's queue into one of 256 entries. If that is full, the oldest entry is dropped;
        ``stats().errors`` has counted it. Entries that are not errors, such as timestamps of
        datagrams that were sent, stay for :meth:`recvmsg` with ``MSG_ERRQUEUE``: the latest 256.
        """

    def join_group(
        self, group: str, interface: str | int | None = None, source: str | None = None
    ) -> None:
        """Join a multicast group (``MCAST_JOIN_GROUP``, ``MCAST_JOIN_SOURCE_GROUP``, :rfc:`3678`).

        From the first on, the socket gets only what is sent to groups that it joined itself, and
        not what other sockets of this machine joined (``IP_MULTICAST_ALL`` off), unless the option
        was set before. Bind the socket to the group's port. For sending, the options
        ``IP_MULTICAST_LOOP`` (do own sockets of this machine hear it), ``IP_MULTICAST_TTL`` (how
        far it goes; 1 stays on the link) and ``IP_MULTICAST_IF``, or those of IPv6, hold.

        :param group: The group's address.
        :param interface: By name, by index, or by an address that it has; without it, the routes
            decide.
        :param source: The only sender to hear, by address; without it, every one.
        :raises ValueError: The group is none, or the source of another family.
        :raises OSError: With what to do: ``ENOBUFS`` (too many groups), ``ENODEV`` (no such
            interface, or no route), ``EADDRINUSE`` (joined before), …
        """

    def leave_group(
        self, group: str, interface: str | int | None = None, source: str | None = None
    ) -> None:
        """Leave a multicast group that was joined with the same arguments. Closing leaves all."""

    def recv_batch(self, batch: Batch, flags: int = 0) -> int:
        """Receive into a :class:`Batch`, over what it holds, and return how many datagrams.

        Waits for one datagram, then takes all that are there, as far as the batch has slots
        (``recvmmsg(2)``); or those that are :attr:`pending`, where there are some. No Python object
        is made for a datagram. Nothing is truncated, as long as the batch's slots are as long as
        the datagrams: they are for every datagram of IP.

        After an exception the batch is empty, unless it is one of these:

        :raises RuntimeError: Another call is using the batch.
        :raises ValueError: ``flags`` has ``MSG_PEEK`` or ``MSG_ERRQUEUE``.
        """

    def recv_datagram(self, flags: int = 0) -> Datagram:
        """Receive one datagram with all that is known of it, as :meth:`recv_datagrams`."""

    def recv_datagrams(self, max_datagrams: int = 64, flags: int = 0) -> list[Datagram]:
        """Receive datagrams with all that the kernel tells about each; else as :meth:`recv_many`.

        The first call makes the kernel tell it (``SO_TIMESTAMPNS``, ``IP_PKTINFO``, ``IP_RECVTTL``,
        ``IP_RECVTOS``, ``SO_RXQ_OVFL``, and IPv6's). An option that was set before, on or off,
        stays as it is. Of datagrams that were in the queue before, the interface is not known.
        """

    def recv_many(self, max_datagrams: int = 64, flags: int = 0) -> list[tuple[bytes, _RetAddress]]:
        """Wait for one datagram, then take all that are there, up to a maximum (``recvmmsg(2)``).

        Returns at least one, each as :meth:`recvfrom` would, but never truncated. It does not wait
        for the maximum to come together, and where datagrams come as fast as it takes them, it
        returns after 50 ms.

        :raises ValueError: The maximum is less than 1, or ``flags`` has ``MSG_PEEK`` or
            ``MSG_ERRQUEUE``.
        :raises OSError: As :meth:`recvfrom`; an error that comes after a datagram is kept for the
            next call. ``ESHUTDOWN``, without a timeout, where the socket is shut down for
            receiving: :meth:`recv` returns ``b""`` there, which in a list would be an empty
            datagram.
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

        One without an address goes to the connected peer. Otherwise as :meth:`send_many`.

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
    @overload
    def send_many(
        self,
        datagrams: Iterable[ReadableBuffer] | Iterable[tuple[ReadableBuffer, _Address]],
        address: _Address | None = None,
        flags: int = 0,
        *,
        errors: Literal["raise"] = "raise",
    ) -> int:
        """Send many datagrams, in order, and return how many (``sendmmsg(2)``).

        :param datagrams: Bytes-like objects for ``address`` or, without it, for the connected peer;
            or pairs ``(bytes-like, address)``. An IPv4 address will do on an IPv6 socket too.
            Consecutive ones of one size to one peer leave as one send that the kernel splits
            (``UDP_SEGMENT``), where it can. With ``UDP_CORK`` or ``MSG_MORE`` the kernel joins the
            datagrams instead. An iterable is read up to 4096 items ahead.
        :param errors: With ``"raise"``, the first datagram that fails ends the call with its
            exception, whose ``index`` says which it was, and ``sent`` how many left before it. With
            ``"continue"`` all are tried, and the call returns a list of ``(index, exception)``;
            where several leave as one send, ``ENOBUFS`` and ``ENOMEM`` are about all of them. An
            exception of a signal handler's, of an audit hook's or of the iterable's own ends the
            call in either case, as it is; so does a close.
        :raises BlockingIOError: With the timeout 0, where there was no room for the first. Where
            there was room for some, the call returns how many.
        :raises TimeoutError: There was no room for the next within the timeout, which holds for the
            whole call. ``sent`` says how many left.
        :raises TypeError: An item is no datagram. Those before it have left, as ``sent`` says.
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
        """Return the socket's counters since it was opened. They outlive :meth:`close`."""

    def setblocking(self, flag: bool, /) -> None:
        """Set the timeout to ``None`` (true) or 0 (false)."""

    @overload
    def setsockopt(
        self, level: int, optname: int, value: int | ReadableBuffer, optlen: None = None, /
    ) -> None:
        """Set an option (``setsockopt(2)``) to an ``int``, to bytes, or to nothing with a length.

        Where the kernel gives a smaller ``SO_RCVBUF`` or ``SO_SNDBUF`` than was asked for, which
        it does in silence, a :class:`RuntimeWarning` names the limit.
        """

    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int, /) -> None: ...
    def settimeout(self, timeout: float | None, /) -> None:
        """Set the timeout in seconds; ``None`` waits for ever, 0 does not wait.

        :raises ValueError: It is negative or not a number.
        """

    def shutdown(self, how: int, /) -> None:
        """Shut down receiving, sending or both (``shutdown(2)``), as ``SHUT_RD``, … say.

        :raises OSError: ``ENOTCONN``, where the socket is not connected.
        """

@final
class Batch:
    """A reusable container of datagrams, in one piece of memory.

    ``Batch(slots=64, *, slot_size=65536)``

    Made for :meth:`Socket.recv_batch` and :meth:`Socket.send_batch`. It has the buffer protocol:
    ``memoryview(batch)`` is the memory, writable, and with :attr:`offsets` and :attr:`lengths` says
    where each payload lies; numpy reads all three without a copy. They stay valid while the batch
    exists, and show what it holds by then: the next receive overwrites the last one's payloads.

    One call at a time may use a batch, so that each thread wants its own: while one receives or
    sends, those of others raise :class:`RuntimeError`.

    :param slots: How many of the kernel's messages a receive takes at the most, 1 to 4096. A
        message is one datagram or, with :attr:`Socket.gro`, up to 64 of one size. A slot takes
        address space, and memory as far as datagrams reach into it.
    :param slot_size: The longest message, in bytes. The default holds any datagram of IP; a
        longer one of ``AF_UNIX`` is truncated.
    :raises ValueError: An argument is out of range.
    :raises MemoryError: There is not so much address space.
    """

    def __new__(cls, slots: int = 64, *, slot_size: int = 65536) -> Self: ...
    @property
    def slots(self) -> int:
        """How many of the kernel's messages a receive takes at the most."""

    @property
    def offsets(self) -> memoryview:
        """Where each payload starts, in bytes: read-only, in the format ``"I"``."""

    @property
    def lengths(self) -> memoryview:
        """How long each payload is, in bytes: read-only, in the format ``"I"``."""

    @property
    def addresses(self) -> list[_RetAddress]:
        """Each datagram's address: its sender's, or that given to :meth:`append`, or None."""

    @property
    def truncated(self) -> list[int]:
        """The indexes of received datagrams whose end was cut off, for want of ``slot_size``."""

    def append(self, data: ReadableBuffer, address: _Address | None = None) -> None:
        """Copy a datagram in behind the others.

        After a receive, :meth:`clear` the batch first.

        :param address: Where :meth:`Socket.send_batch` sends it; without it, to its own ``address``
            argument, or to the connected peer.
        :raises ValueError: There is no room.
        """

    def extend(self, data: ReadableBuffer, size: int, address: _Address | None = None) -> None:
        """Cut a buffer into datagrams of ``size`` bytes, the last perhaps shorter, and append them.

        :raises ValueError: There is no room for all of them, and none was appended; or ``size`` is
            0.
        """

    def clear(self) -> None:
        """Take all datagrams out."""

    def __len__(self) -> int:
        """Return how many datagrams there are."""

    def __getitem__(self, index: int, /) -> memoryview:
        """Return a payload, as a view of the batch's memory."""

    def __iter__(self) -> Iterator[tuple[memoryview, _RetAddress]]:
        """Go through payloads and addresses."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Datagram:
    """A received datagram with all that the kernel tells about it. Immutable."""

    @property
    def data(self) -> bytes:
        """The payload."""

    @property
    def address(self) -> _RetAddress:
        """The sender's address, as :meth:`Socket.recvfrom` gives it."""

    @property
    def host(self) -> str | None:
        """The sender's IP address; that of an IPv4 peer of an IPv6 socket as plain IPv4."""

    @property
    def port(self) -> int | None:
        """The sender's port."""

    @property
    def destination(self) -> str | None:
        """The IP address that was asked: one of this machine, a group's, or a broadcast address."""

    @property
    def interface(self) -> int | None:
        """The index of the interface that it came by; see :func:`socket.if_indextoname`."""

    @property
    def timestamp_ns(self) -> int | None:
        """When the kernel received it, in nanoseconds since 1970 UTC (as :func:`time.time_ns`)."""

    @property
    def ttl(self) -> int | None:
        """Its time to live (IPv4) or hop limit (IPv6) on arrival."""

    @property
    def tos(self) -> int | None:
        """Its type of service (IPv4) or traffic class (IPv6): six bits of DSCP, two of ECN."""

    @property
    def ecn(self) -> int | None:
        """Its explicit congestion notification, 0 to 3 (:rfc:`3168`)."""

    @property
    def truncated(self) -> bool:
        """Whether the end of the payload was cut off."""

    @property
    def kernel_drops(self) -> int:
        """How many datagrams the kernel had dropped for the socket when this one was queued.

        Those that a filter refused are among them: the kernel does not tell them apart here.
        """

    def reply(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Send an answer from the address that was asked, and return its length.

        On a machine of several addresses a plain ``sendto`` answers from the address that the route
        prefers, and a peer that is connected to another one never hears it. An answer to a group or
        a broadcast leaves from the interface's own address. Errors are those of
        :meth:`Socket.sendto`.
        """

    def __len__(self) -> int:
        """Return the payload's length."""

@final
class DatagramError:
    """What the kernel noted about a datagram that failed on its way. Immutable."""

    @property
    def peer(self) -> _RetAddress:
        """Where the datagram was sent to; the port is 0 where the kernel does not tell it."""

    @property
    def errno(self) -> int:
        """Why it failed, as ``ECONNREFUSED``, ``EHOSTUNREACH`` or ``EMSGSIZE``."""

    @property
    def offender(self) -> str | None:
        """The IP address of the router or host that said so; ``None`` for this machine itself."""

    @property
    def mtu(self) -> int | None:
        """With ``EMSGSIZE``, the longest packet that the path takes, in bytes, headers included."""

    @property
    def origin(self) -> int:
        """Who found out: a constant ``SO_EE_ORIGIN_…``."""

    @property
    def type(self) -> int:
        """The ICMP type."""

    @property
    def code(self) -> int:
        """The ICMP code."""

    @property
    def data(self) -> bytes:
        """The beginning of the datagram, as far as the ICMP message quotes it."""

def end_with_parent(signal: int, /) -> None:
    """Have the kernel send this process a signal when its parent ends (``PR_SET_PDEATHSIG``)."""

def steer(socket: Socket, how: str, sockets: int, /) -> None:
    """Steer the datagrams for a group of sockets that share a port (``SO_REUSEPORT``).

    :param how: ``"hash"``, ``"cpu"`` or ``"random"``: see :class:`tomada.Server`.
    :param sockets: How many sockets the group will have.
    """

@final
class ServerCore:
    """The inside of :class:`tomada.Server`. Its interface is not public."""

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
        """Whether the calling thread is in the handler."""

    def prepare(self) -> None:
        """Take the memory that receiving needs, for the calling thread, which is to :meth:`run`.

        :raises MemoryError: There is none.
        """

    def run(self, wakeup_fd: int | None = None) -> int:
        """Receive, call the handler and send its answers until :meth:`stop` is called.

        :param wakeup_fd: What :func:`signal.set_wakeup_fd` writes to can be read from it. It must
            be open until this returns.
        :return: How many received datagrams had to be left unhandled, for lack of time.
        """

    def stop(self, drain: float | None = None) -> None:
        """End :meth:`run`.

        After what was received or, given the seconds that this may take at the most, after all that
        is queued.
        """

    def sendto(self, data: ReadableBuffer, address: _Address) -> None:
        """Send a datagram: from a handler together with the replies, from elsewhere at once."""

@final
class ServerCounters:
    """Counters that a server's processes share. Its interface is not public."""

    def __new__(cls, workers: int) -> ServerCounters: ...
    def add_restart(self, worker: int) -> None:
        """Count that a worker died and is started again."""

    def stats(self, kernel_drops: int, filter_drops: int) -> ServerStats:
        """Add up what all workers have counted."""

@final
class ServerStats:
    """What all workers of a server have counted since it was started. Immutable."""

    @property
    def received(self) -> int:
        """Datagrams received."""

    @property
    def received_bytes(self) -> int:
        """Their payload, in bytes."""

    @property
    def receive_calls(self) -> int:
        """System calls that brought them: the number of batches."""

    @property
    def sent(self) -> int:
        """Datagrams sent: taken by the kernel, which does not mean that they arrived."""

    @property
    def sent_bytes(self) -> int:
        """Their payload, in bytes."""

    @property
    def send_calls(self) -> int:
        """System calls that took them."""

    @property
    def truncated(self) -> int:
        """Received datagrams whose end was cut off, which a server's buffers rule out."""

    @property
    def refused(self) -> int:
        """Datagrams that the workers' guards refused; they count as nothing else here."""

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel dropped since the start: see :attr:`Stats.kernel_drops`.

        What was sent is ``received + refused + kernel_drops + filter_drops``, once nothing waits in
        the queue.
        """

    @property
    def filter_drops(self) -> int:
        """Datagrams that the guard's kernel filter refused: see :attr:`Stats.filter_drops`."""

    @property
    def handler_errors(self) -> int:
        """Replies that the handler failed to make: exceptions, wrong types, too many bytes.

        Datagrams, too, that there was no memory to call it with.
        """

    @property
    def send_errors(self) -> int:
        """Datagrams that the kernel refused, or that waited too long for room."""

    @property
    def receive_errors(self) -> int:
        """Errors that receiving reported, on a connected socket or one with ``IP_RECVERR``.

        Most are ICMP messages about datagrams that were sent earlier. They are logged once in a
        while, and stop nothing.
        """

    @property
    def handler_time(self) -> float:
        """Seconds spent in the handler, and in making its arguments."""

    @property
    def restarts(self) -> int:
        """Workers that died and were started again."""

    @property
    def batch_sizes(self) -> dict[int, int]:
        """How many batches had up to 1, 2, 4, … datagrams, and more than half as many."""

@final
class Stats:
    """A socket's counters since it was opened. Immutable."""

    @property
    def received(self) -> int:
        """Datagrams received, those that are :attr:`Socket.pending` included."""

    @property
    def received_bytes(self) -> int:
        """Their payload, in bytes."""

    @property
    def receive_calls(self) -> int:
        """System calls that brought them."""

    @property
    def sent(self) -> int:
        """Datagrams sent: taken by the kernel, which does not mean that they arrived."""

    @property
    def sent_bytes(self) -> int:
        """Their payload, in bytes."""

    @property
    def send_calls(self) -> int:
        """System calls that took them."""

    @property
    def truncated(self) -> int:
        """Received datagrams whose end was cut off, because the buffer was too small.

        They are among those that :attr:`received` counts.
        """

    @property
    def refused(self) -> int:
        """Datagrams that :attr:`Socket.guard` refused; they count as nothing else here."""

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel dropped (``SO_MEMINFO``), up to this moment.

        Because the socket's buffer was full or a checksum was wrong; and those that this process
        had no memory to keep, which then do not count as received. What was sent is ``received +
        refused + kernel_drops + filter_drops``, once nothing waits in the queue, except with
        :attr:`Socket.gro`: of a run that was glued together, the kernel counts one, and so each
        drop stands for 1 to 128 datagrams.

        The kernel counts since it opened the socket, which duplicates share. Its counter has 32
        bits; counting goes on beyond, if this is read now and then.
        """

    @property
    def filter_drops(self) -> int:
        """Datagrams that the socket's filter in the kernel refused (``SO_ATTACH_FILTER``).

        The filter of a :class:`Guard` with ``allow`` or ``deny``, or your own. The kernel counts
        them together with those that it had no room for. They are told apart at each call of
        ``stats()``, by the counters of the network namespace (``RcvbufErrors`` and ``InErrors`` in
        ``/proc/net/snmp``): while another socket of the namespace overflows, some count in
        :attr:`kernel_drops`. All do before Linux 5.14, without ``/proc``, and where the socket is
        in another namespace than the calling thread.
        """

    @property
    def errors(self) -> int:
        """Entries that came out of the error queue."""

    @property
    def send_errors(self) -> int:
        """Datagrams that a transport, an endpoint or a server accepted and could not send.

        A call that sends a datagram itself, such as ``sendto`` of a socket, raises instead.
        """

    def __eq__(self, other: object, /) -> bool: ...

@final
class Guard:
    """A check on what arrives, made before Python hears of it.

    For a socket (``sock.guard = guard``), an endpoint of :mod:`tomada.asyncio` or a server
    (``guard=``). Each part that is given is a check; they are made in this order, and a datagram is
    refused by the first that fails. A refused datagram is counted, and nobody is told.

    A *source* is an address without its port, or its network: see ``prefixes``. IPv4 addresses
    mapped to IPv6 are IPv4 addresses.

    **Memory.** The table of sources has a fixed size (32 bytes each, 8 MiB as it comes), and a key
    of its own, so that nobody can choose whom he displaces. A source becomes *known* when it is
    heard over at least a second; half of the table is for the known, and one keeps its place there
    as long as it is heard within every minute, whatever else arrives. The other half is for
    strangers. A stranger who finds it full takes the place of one that used its rate least, and
    what that one had used counts against the newcomer: so none gets more than its rate by being
    forgotten in a flood, and strangers may be refused in one, but known peers are not.

    :param allow: Networks (``"192.0.2.0/24"``, an address, or objects of :mod:`ipaddress`). If
        given, others are refused.
    :param deny: Networks to refuse. Where both have a source, the longest prefix decides.
    :param max_size: The longest payload to let pass, in bytes.
    :param ceiling: How many datagrams a second may come in all, a tenth of a second's worth at
        once. Strangers leave half of that to the known, who so have the first turn.
    :param rate: How many datagrams a second may come from one source.
    :param burst: How many at once; a second's worth if not given.
    :param prefixes: How many leading bits make a source, for IPv4 and IPv6. With ``(24, 56)`` the
        rate is that of a network. A single machine has a /64 of IPv6 addresses, so that a rate for
        longer prefixes limits nobody.
    :param amplification: How many bytes of payload may go to an address for each that was let in
        from it; 3 in QUIC (:rfc:`9000#section-8`). It may have another's address in its datagrams,
        who would get the answers. More raises :class:`PermissionError`, in transports by
        ``error_received``. An address that was not heard from may be sent nothing. Hearing from it
        again proves nothing; see :meth:`validate`. The peer that a socket is connected to is not
        limited.
    :param sources: How many sources the table has, 8 to 16,777,216, rounded up to a power of two.
        Make it eight times as many as there are known peers.
    :param kernel_filter: Have the kernel drop what ``allow`` and ``deny`` refuse, before it takes
        time or room (``SO_ATTACH_FILTER``). It then counts in ``filter_drops`` of the socket's
        :class:`Stats`, and not here.
    :raises ValueError: A network is none, has host bits set, or is in both lists; a number makes no
        sense.
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

        ``None`` where there is no list, or ``kernel_filter=False``, or the program would be longer
        than the kernel's limit of 4096 instructions: lists of about a thousand networks that do not
        touch. Then the guard alone decides.
        """

    def attach(self, sock: Any, /) -> None:
        """Attach :attr:`kernel_filter` alone to a socket of any module (``SO_ATTACH_FILTER``).

        :raises ValueError: There is none.
        :raises OSError: ``ENOMEM``, where it is longer than ``net.core.optmem_max`` allows.
        """

    def stats(self) -> GuardStats:
        """Return what became of the datagrams so far, on all sockets that have this guard.

        In this process and in all that were forked from the one that made the guard, such as the
        workers of a server, those that have ended included.
        """

    def validate(self, address: str | tuple[Any, ...], /) -> None:
        """Vouch for an address: it is known, and ``amplification`` does not hold for it any more.

        Call it when a peer has sent something that it can only know from what it was sent, such as
        a random number out of the first answer. Only that proves that it has the address. The word
        holds until the address was silent for ten minutes and its place is wanted.

        :param address: A numeric host, or an address as a receive gives it; the port is ignored.
        """

@final
class GuardStats:
    """A guard's counters. Immutable."""

    @property
    def admitted(self) -> int:
        """Datagrams that were let in."""

    @property
    def refused(self) -> int:
        """Datagrams that came and were not: the sum of the four that follow."""

    @property
    def denied(self) -> int:
        """Of a network that ``allow`` and ``deny`` keep out, unless the kernel has dropped them."""

    @property
    def oversized(self) -> int:
        """Longer than ``max_size``."""

    @property
    def over_rate(self) -> int:
        """More than the ``rate`` of their source."""

    @property
    def over_ceiling(self) -> int:
        """More than the ``ceiling``."""

    @property
    def over_amplification(self) -> int:
        """Datagrams that were to be sent, and not, for ``amplification``."""

    def __eq__(self, other: object, /) -> bool: ...

@final
class Turn:
    """A counter that an event loop raises once for each of its turns."""

    def __new__(cls) -> Turn: ...
    def advance(self) -> None:
        """Begin the next turn."""

@final
class TransportCore:
    """The inside of :class:`tomada.asyncio.DatagramTransport`. Its interface is not public."""

    def __new__(
        cls,
        socket: Socket,
        event_loop: Any,
        transport: Any,
        *,
        peer: Any,
        is_connected: bool,
        turn: Turn | None,
    ) -> TransportCore: ...

    reading: bool
    """Whether datagrams are delivered."""

    @property
    def buffered(self) -> int:
        """How many bytes wait to be sent."""

    @property
    def queued(self) -> int:
        """How many datagrams wait to be sent."""

    def set_high_water(self, bytes: int) -> None:
        """Set from how many bytes on the transport is told that the buffer is too long."""

    def set_protocol(self, protocol: Any) -> None:
        """Set the protocol that datagrams are delivered to."""

    def clear(self) -> None:
        """Forget what waits to be sent."""

    def raise_mistakes(self) -> None:
        """From now on, raise the caller's own mistakes instead of telling the protocol."""

    def lose(self) -> None:
        """From now on, sending only warns."""

    def restore_options(self) -> None:
        """Undo what was changed of a socket that others use too."""

    def unlink(self) -> None:
        """Let go of the loop, the transport and the protocol."""

    def datagram(self) -> Datagram | None:
        """Return the datagram that is being delivered, with its metadata."""

    def read_ready(self) -> None:
        """Deliver the datagrams that are there, for a while, and send what the protocol answers."""

    def resume(self) -> None:
        """Go on where the last drain stopped for lack of time."""

    def recvfrom(self) -> tuple[bytes, _RetAddress]:
        """Take a datagram and its sender's address."""

    def recv_many(self, max_datagrams: int) -> list[tuple[bytes, _RetAddress]]:
        """Take all datagrams that are there, up to a maximum, with their senders' addresses."""

    def read_errors(self) -> bool:
        """Tell the protocol of errors in the error queue, and return whether there were any.

        It is told of at most 16 in a turn of the loop, and of the others in the next turns.
        """

    def read_all_errors(self) -> None:
        """Tell the protocol at once of all errors that are stored."""

    def resume_errors(self) -> None:
        """Go on to tell the protocol of errors."""

    def limit_backlog(self) -> None:
        """From now on, limit the datagrams that wait for room in the socket's buffer."""

    def sendto(self, data: ReadableBuffer, addr: _Address | None = None) -> None:
        """Send a datagram: at once, or with others at the end of the turn."""

    def sendto_many(self, datagrams: Iterable[Any], addr: _Address | None = None) -> None:
        """Send many datagrams, all for one address, or each a pair with its own."""

    def flush(self) -> None:
        """Send what waits for the end of the turn."""

    def write_ready(self) -> None:
        """Send what waits for room in the socket's buffer."""
