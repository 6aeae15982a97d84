"""asyncio with tomada's datagram transports.

Replace ``asyncio.run(main())`` with ``tomada.asyncio.run(main())``. The program's protocols, and
everything they call, stay the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
import socket as _std
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from tomada import _core
from tomada._address import check_address
from tomada._advice import OF_BINDING, OF_OPENING, OF_SENDING, advised
from tomada._asyncio.client import Client, ClientStats
from tomada._asyncio.endpoint import AsyncContextManager, Endpoint
from tomada._asyncio.events import Events
from tomada._asyncio.given_socket import Given
from tomada._asyncio.handles import StandardLoop
from tomada._asyncio.loop_sockets import LoopSockets
from tomada._asyncio.opening import open_directly
from tomada._asyncio.read_watch import ReadWatch
from tomada._asyncio.readiness import Readiness
from tomada._asyncio.sessions import Sessions, connect
from tomada._asyncio.transport import DatagramTransport
from tomada._socket_options import SocketOptions, check_dtls, check_shared
from tomada.socket import socket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence

    from tomada._core import DtlsContext, DtlsEndpoint, Guard, Turn

__all__ = [
    "Client",
    "ClientStats",
    "DatagramTransport",
    "Endpoint",
    "EventLoop",
    "create_datagram_endpoint",
    "install",
    "open_endpoint",
    "run",
]


Result = TypeVar("Result")

_DEFAULTS = SocketOptions()


class _Options(TypedDict, total=False):
    family: int
    proto: int
    flags: int
    reuse_port: bool | None
    allow_broadcast: bool | None
    sock: _std.socket | None


# The core does their work instead of the standard loop, unless a subclass overrides one of them.
_POLLING: Final = ("_process_events", "_add_callback")


class EventLoop(_core.LoopCore, asyncio.SelectorEventLoop):
    """The standard selector event loop, with tomada's datagram transports, and faster.

    It polls, and runs callbacks and timers, in Rust. In debug mode, and with a ``selector`` that is
    not a :class:`selectors.EpollSelector`, the standard loop's own code does that.

    Use it with ``asyncio.run(main(), loop_factory=tomada.asyncio.EventLoop)`` or, before Python
    3.12, ``asyncio.Runner(loop_factory=tomada.asyncio.EventLoop)``.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        selector = selectors.DefaultSelector() if selector is None else selector
        super().__init__(selector)
        own = type(self)
        if type(selector) is selectors.EpollSelector and all(
            getattr(own, name) is getattr(StandardLoop, name) for name in _POLLING
        ):
            self._poll_directly(selector)
        # By descriptor: the readiness that tasks wait for in the socket methods below.
        self._readiness: dict[int, Readiness] = {}

    async def create_datagram_endpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Create a datagram endpoint: see :func:`tomada.asyncio.create_datagram_endpoint`."""
        return await create_datagram_endpoint(self, *args, **kwargs)

    async def sock_recvfrom(self, sock: _std.socket, bufsize: int) -> Any:
        """Receive a datagram, like :meth:`asyncio.loop.sock_recvfrom`. Cancelling loses nothing."""
        if not isinstance(sock, _core.Socket):
            return await super().sock_recvfrom(sock, bufsize)
        return await self._when_readable(sock, sock.recvfrom, bufsize)

    async def sock_recvfrom_into(self, sock: _std.socket, buf: Any, nbytes: int = 0) -> Any:
        """Receive a datagram into a buffer, like :meth:`asyncio.loop.sock_recvfrom_into`."""
        if not isinstance(sock, _core.Socket):
            return await super().sock_recvfrom_into(sock, buf, nbytes)
        return await self._when_readable(sock, sock.recvfrom_into, buf, nbytes or len(buf))

    async def sock_sendto(self, sock: _std.socket, data: Any, address: Any) -> Any:
        """Send a datagram, like :meth:`asyncio.loop.sock_sendto`."""
        if isinstance(sock, _core.Socket) and not (self.get_debug() and sock.gettimeout() != 0):
            with contextlib.suppress(BlockingIOError, InterruptedError):
                return sock.sendto(data, address)
        return await super().sock_sendto(sock, data, address)

    async def _when_readable(
        self, sock: _core.Socket, receive: Callable[..., Any], *args: Any
    ) -> Any:
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        while True:
            try:
                received = receive(*args)
            except (BlockingIOError, InterruptedError):
                pass
            else:
                if sock.pending and (others := self._readiness.get(sock.fileno())):
                    others.wake()  # the kernel does not report datagrams in the backlog
                return received
            fd = sock.fileno()
            self._ensure_fd_no_transport(fd)  # type: ignore[attr-defined]
            if fd not in self._readiness:
                self._readiness[fd] = Readiness(self, ReadWatch(self, fd), lasts=False)
            readiness = self._readiness[fd]
            try:
                await readiness.wait()
            finally:
                if not readiness.waiters and self._readiness.get(fd) is readiness:
                    del self._readiness[fd]


def run(
    main: Coroutine[Any, Any, Result],
    *,
    debug: bool | None = None,
    loop: Literal["asyncio", "auto", "uvloop"] = "asyncio",
) -> Result:
    """Run a coroutine on a new event loop with tomada's transports, like :func:`asyncio.run`.

    :param loop: ``"asyncio"`` is an :class:`EventLoop`. ``"uvloop"`` is the loop of uvloop
        (``pip install tomada[uvloop]``) with tomada's datagram transports. ``"auto"`` is uvloop's
        if it is installed, and otherwise an :class:`EventLoop`.
    :raises ModuleNotFoundError: ``loop`` is ``"uvloop"``, and uvloop is not installed.
    :raises ValueError: ``loop`` is not one of these.
    """
    try:
        factory = _factory(loop)
    except BaseException:
        main.close()  # without a warning that it was never awaited
        raise
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name not in ("asyncio", "auto", "uvloop"):
        raise ValueError(f'loop must be "asyncio", "auto" or "uvloop", not {name!r}')
    if name == "asyncio":
        return EventLoop
    try:
        import uvloop  # noqa: PLC0415 - only for programs that ask for it
    except ModuleNotFoundError:
        if name == "auto":
            return EventLoop
        raise ModuleNotFoundError(
            'loop="uvloop" needs uvloop, which is not installed: pip install tomada[uvloop]',
            name="uvloop",
        ) from None

    def factory() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        install(loop)
        return loop

    return factory


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Replace a loop's ``create_datagram_endpoint`` by tomada's.

    Use it for loops that are not an :class:`EventLoop`, such as uvloop. Existing endpoints stay
    unchanged. A loop that is not a :class:`asyncio.SelectorEventLoop` also gets tomada's
    ``sock_recvfrom``, ``sock_recvfrom_into`` and ``sock_sendto``, which uvloop's lacks; they take
    sockets of tomada's and the standard library's.
    """
    endpoint = functools.partial(create_datagram_endpoint, loop)
    loop.create_datagram_endpoint = endpoint  # type: ignore[method-assign]
    if not isinstance(loop, asyncio.SelectorEventLoop):
        LoopSockets(loop).install()


async def create_datagram_endpoint(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    gro: bool | None = None,
    guard: Guard | None = None,
    dtls: DtlsContext | None = None,
    server_hostname: str | None = None,
    **options: Unpack[_Options],
) -> tuple[DatagramTransport, Any]:
    """Create a datagram endpoint on any loop that has ``add_reader`` and ``add_writer``.

    The other arguments (``family``, ``proto``, ``flags``, ``reuse_port``, ``allow_broadcast``,
    ``sock``), the name resolution and the exceptions are those of
    :meth:`asyncio.loop.create_datagram_endpoint`: tomada runs its code for them.

    :param sock: A socket of tomada's or the standard library's. The transport closes it at the
        end. Before that, it restores the settings that it has changed, because duplicates of the
        socket share them: ``gro``, the filter of ``guard``, and which metadata the kernel adds to
        each datagram. A setting that other transports or servers of this process rely on stays
        until the last of them closes; other processes are not considered. A forked child does not
        undo the changes of its parent.

        The socket and its duplicates become non-blocking and stay non-blocking, as with the
        standard transport: a blocking call on a duplicate raises :class:`BlockingIOError` at once.
        If the socket became blocking again, another event loop that uses a duplicate would hang.
        Call ``sock.setblocking(True)`` on a duplicate when no event loop uses it any more.
    :param gro: Whether the kernel may deliver coalesced datagrams (``UDP_GRO``). By default, this
        is switched on when datagrams arrive faster than they are delivered, because it makes a
        socket more expensive to open and close. With a ``sock`` it is off by default: other holders
        of that socket would receive several datagrams merged into one.
    :param guard: A :class:`tomada.Guard` for received datagrams and replies. A ``sock`` may
        already have one.
    :param dtls: A :class:`tomada.dtls.Context`. With a ``remote_addr`` it must be of
        ``PROTOCOL_DTLS_CLIENT``; this returns when the session is complete, and the transport
        closes when it ends. Otherwise it must be of ``PROTOCOL_DTLS_SERVER``, and the transport has
        a session with each peer. A protocol gets and sends plaintext. If its type has the method
        ``session_established(address, session)`` or ``session_lost(address, exception)``, the
        transport calls it. Not available with ``sock``.
    :param server_hostname: The name, or the address, that the server's certificate must be for. By
        default, the host of ``remote_addr``.
    :return: A :class:`DatagramTransport` and the protocol.
    :raises tomada.dtls.DTLSError: The handshake failed.
    """
    chosen = _DEFAULTS if gro is None and guard is None else SocketOptions(gro=gro, guard=guard)
    maker = _Maker(loop, chosen, _secured(dtls, server_hostname))
    return await maker.make(protocol_factory, local_addr, remote_addr, **options)


def open_endpoint(
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    gro: bool | None = None,
    guard: Guard | None = None,
    groups: Sequence[Any] = (),
    dtls: DtlsContext | None = None,
    server_hostname: str | None = None,
    **options: Unpack[_Options],
) -> _Opening:
    """Open an :class:`Endpoint` on the running event loop, whichever loop that is.

    ``async with open_endpoint(...) as endpoint`` closes it at the end of the block. If you write
    ``endpoint = await open_endpoint(...)``, close it with :meth:`Endpoint.aclose`.

    The other arguments are those of :func:`create_datagram_endpoint`.

    :param groups: Multicast groups to join, each an address, or the arguments of
        :meth:`tomada.socket.socket.join_group`.
    :raises OSError: The endpoint cannot be opened; the text says what to do.
    """
    options_of_socket = SocketOptions(gro=gro, guard=guard, groups=groups)
    secured = _secured(dtls, server_hostname)
    return _Opening(local_addr, remote_addr, options_of_socket, secured, options)


# The settings of sessions, and the name that the server must have.
_Secured: TypeAlias = "tuple[DtlsContext, str | None] | None"


def _secured(context: DtlsContext | None, server_hostname: str | None) -> _Secured:
    return None if context is None else (context, server_hostname)


_NOT_OPEN = (
    "the endpoint is not open yet: write async with open_endpoint(...) as endpoint, or endpoint = "
    "await open_endpoint(...)"
)


class _Opening(AsyncContextManager):
    """Opens an endpoint when it is awaited, or entered as a context manager."""

    def __init__(
        self,
        local_addr: Any,
        remote_addr: Any,
        options: SocketOptions,
        secured: _Secured,
        standard: _Options,
    ) -> None:
        self._secured = secured
        self._local_addr = local_addr
        self._remote_addr = remote_addr
        self._options = options
        self._standard = standard
        self._endpoint: Endpoint | None = None

    def __await__(self) -> Generator[Any, Any, Endpoint]:
        return self._open().__await__()

    async def __aenter__(self) -> Endpoint:
        self._endpoint = await self._open()
        return self._endpoint

    async def __aexit__(self, *_: object) -> None:
        if self._endpoint is not None:
            await self._endpoint.aclose()

    if not TYPE_CHECKING:  # for type checkers, these stay mistakes

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"{_NOT_OPEN}, before endpoint.{name}")

        def __aiter__(self) -> Any:
            raise TypeError(f"{_NOT_OPEN}, before async for data, address in endpoint")

    async def _open(self) -> Endpoint:
        loop = asyncio.get_running_loop()
        maker = _Maker(loop, self._options, self._secured, delivers=False)
        local_addr, remote_addr = self._local_addr, self._remote_addr
        where = remote_addr if local_addr is None else local_addr
        advice = (OF_SENDING if local_addr is None else OF_BINDING) | OF_OPENING
        try:
            with advised(where, advice):
                transport, events = await maker.make(
                    Events, local_addr, remote_addr, **self._standard
                )
        except TypeError:
            for address in (local_addr, remote_addr):
                if address is not None:
                    _check_address(address, self._standard.get("family", 0))
            raise
        return Endpoint(transport, events)


def _check_address(address: Any, family: int) -> None:
    """Explain what is wrong with an address that the standard library has refused."""
    check_address(address)
    if not isinstance(address, tuple) and family != _std.AF_UNIX:
        raise TypeError(f"the address {address!r} is a path: pass family=socket.AF_UNIX with it")


_standard_endpoint: Any = asyncio.BaseEventLoop.create_datagram_endpoint


class _Maker:
    """Replaces the loop in the standard library's ``create_datagram_endpoint``."""

    _ensure_resolved: Any = asyncio.BaseEventLoop._ensure_resolved  # type: ignore[attr-defined]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: SocketOptions,
        secured: _Secured = None,
        *,
        delivers: bool = True,
    ) -> None:
        self._secured = secured
        self._connected: DtlsEndpoint | None = None
        self._loop = loop
        self._options = options
        self._delivers = delivers
        self._sock: object = None  # the caller's
        self._given: Given | None = None
        self._is_made = False
        self._debug = loop.get_debug()
        self.getaddrinfo = loop.getaddrinfo
        self.create_future = loop.create_future

    async def sock_connect(self, sock: _std.socket, address: Any) -> None:
        await self._loop.sock_connect(sock, address)
        if self._secured is not None:
            context, name = self._secured
            self._connected = await connect(self._loop, sock, context, name)

    async def make(
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        **options: Any,
    ) -> tuple[DatagramTransport, Any]:
        if self._secured is None and not self._debug and options.keys() <= {"family"}:
            direct = open_directly(self._loop, local_addr, remote_addr, **options)
            if direct is not None:
                return await self._make_of(direct, protocol_factory)
        sock: Any = options.get("sock")
        if self._secured is not None:
            if sock is not None:
                raise ValueError("dtls is not available with sock")
            context, name = self._secured
            check_dtls(context, is_server=remote_addr is None)
            if name is None and isinstance(remote_addr, tuple):
                self._secured = context, remote_addr[0]
        self._sock = sock
        check_shared(sock)
        if _is_socket(sock):
            self._given = Given(sock)

        def factory() -> Any:
            try:
                return protocol_factory()
            except BaseException as error:  # noqa: BLE001 - it is re-raised below
                return _Failed(error)

        try:
            result: tuple[DatagramTransport, Any] = await _standard_endpoint(
                self, factory, local_addr, remote_addr, **options
            )
        finally:
            if self._given is not None and not self._is_made:
                self._given.restore_mode()
        return result

    async def _make_of(
        self, sock: socket, protocol_factory: Callable[[], Any]
    ) -> tuple[DatagramTransport, Any]:
        """Make an endpoint of a socket that was opened for it."""
        try:
            protocol = protocol_factory()
        except BaseException:
            sock.close()
            raise
        waiter = self._loop.create_future()
        transport = self._make_transport(sock, sock, protocol, None, waiter)
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    def _make_datagram_transport(
        self, sock: _std.socket, protocol: Any, address: Any, waiter: asyncio.Future[None]
    ) -> DatagramTransport:
        if isinstance(protocol, _Failed):
            # The standard library leaves a socket that it has created to the garbage collector.
            if sock is not self._sock:
                sock.close()
            raise protocol.error
        if not _is_socket(sock):
            # It is a test double that only looks like a socket, and works by its methods.
            double: Any = self._loop._make_datagram_transport(  # type: ignore[attr-defined]
                sock, protocol, address, waiter
            )
            return double  # type: ignore[no-any-return]
        ours, shown = _adopt(sock, sock is self._sock)
        return self._make_transport(ours, shown, protocol, address, waiter)

    def _make_transport(
        self,
        ours: _core.Socket,
        shown: _std.socket,
        protocol: Any,
        address: Any,
        waiter: asyncio.Future[None],
    ) -> DatagramTransport:
        restore = None
        try:
            if self._given is not None:
                restore = self._given.set_up(ours, self._options.guard)
                self._options.join(ours)
            else:
                self._options.apply(ours, gro=False)
            sessions = None
            if self._secured is not None:
                sessions = Sessions(self._loop, ours, self._secured[0], self._connected)
            transport = DatagramTransport(
                self._loop,
                ours,
                protocol,
                address,
                waiter,
                shown=shown,
                turn=_turn(self._loop),
                delivers=self._delivers,
                restore=restore,
                gro=self._options.gro,
                sessions=sessions,
            )
        except BaseException:
            if restore is not None:
                restore()
            if ours is not self._sock:
                ours.close()
            raise
        self._is_made = True
        return transport


class _Failed:
    """Replaces a protocol whose factory raised an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _is_socket(sock: object) -> bool:
    return issubclass(type(sock), _std.socket | _core.Socket)


def _adopt(sock: _std.socket, is_users: bool) -> tuple[_core.Socket, _std.socket]:
    """Return a tomada socket, and the socket to show to the user."""
    if isinstance(sock, _core.Socket):
        return sock, sock
    if not is_users:
        ours: Any = socket(sock.family, sock.type, sock.proto, sock.detach())
        shown = ours
    else:
        # The user's object keeps working, and has its own descriptor.
        ours = socket(sock.family, sock.type, sock.proto, _std.dup(sock.fileno()))
        shown = sock
    ours.setblocking(False)
    return ours, shown


def _turn(loop: asyncio.AbstractEventLoop) -> Turn | None:
    return loop._turn if isinstance(loop, EventLoop) else None
