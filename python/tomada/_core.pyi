"""The Rust core: :class:`Socket` is the base of :class:`tomada.socket.socket`."""

from collections.abc import Iterable
from socket import _Address, _RetAddress
from typing import Final, Self, TypeAlias, overload

from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["CONSTANTS", "Socket", "kind_of"]

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
        :raises BlockingIOError: None is there, and the timeout is 0.
        :raises ConnectionRefusedError: The connected peer's host answered an earlier datagram with
            an ICMP error.
        :raises ValueError: ``bufsize`` is negative.
        """

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one datagram into a buffer, and return its length; otherwise as :meth:`recv`.

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
