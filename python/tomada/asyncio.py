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
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, Unpack

from tomada import _core
from tomada._address import check_address
from tomada._advice import OF_BINDING, OF_OPENING, OF_SENDING, advised
from tomada._asyncio.client import Client, ClientStats
from tomada._asyncio.context_managers import Opening
from tomada._asyncio.endpoint import Endpoint
from tomada._asyncio.events import Events
from tomada._asyncio.handles import StandardLoop
from tomada._asyncio.loop_sockets import LoopSockets
from tomada._asyncio.maker import Maker
from tomada._asyncio.transport import DatagramTransport
from tomada._socket_options import SocketOptions, check_server_hostname

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer, WriteableBuffer

    from tomada._core import DtlsContext, Guard
    from tomada._socket_options import Secured

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
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

_DEFAULTS = SocketOptions()


class _Options(TypedDict, total=False):
    family: int
    proto: int
    flags: int
    reuse_port: bool | None
    allow_broadcast: bool | None
    sock: _std.socket | None


class _EndpointOptions(_Options, total=False):
    gro: bool | None
    coalesce: float
    guard: Guard | None
    pacing: int | None
    dtls: DtlsContext | None
    server_hostname: str | None


# The core does their work instead of the standard loop, unless a subclass overrides one of them.
_POLLING: Final = ("_process_events", "_add_callback")
# The core's properties, with the names of the standard loop's attributes.
_FIELDS: Final = ("_ready", "_scheduled", "_selector", "_debug", "_closed", "_stopping")


class EventLoop(_core.LoopCore, asyncio.SelectorEventLoop):
    """A faster version of the standard selector event loop, with tomada's datagram transports.

    It polls, and runs callbacks and timers, in Rust. In debug mode, or with a ``selector`` that is
    not a :class:`selectors.EpollSelector`, the standard loop's own code does that.

    Use it with ``asyncio.run(main(), loop_factory=tomada.asyncio.EventLoop)`` or, before Python
    3.12, ``asyncio.Runner(loop_factory=tomada.asyncio.EventLoop)``.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _FIELDS:
            if getattr(cls, name) is not getattr(_core.LoopCore, name):
                raise TypeError(f"{cls.__name__} must not replace {name} of the event loop")

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        selector = selectors.DefaultSelector() if selector is None else selector
        super().__init__(selector)
        own = type(self)
        if type(selector) is selectors.EpollSelector and all(
            getattr(own, name) is getattr(StandardLoop, name) for name in _POLLING
        ):
            self._poll_directly(selector)
        self._sockets = LoopSockets(self)

    # typeshed's base class still has reuse_address, which CPython removed in 3.11.
    async def create_datagram_endpoint(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], ProtocolT],
        local_addr: tuple[str, int] | str | None = None,
        remote_addr: tuple[str, int] | str | None = None,
        **options: Unpack[_EndpointOptions],
    ) -> tuple[DatagramTransport, ProtocolT]:
        """Create a datagram endpoint: see :func:`tomada.asyncio.create_datagram_endpoint`."""
        return await create_datagram_endpoint(
            self, protocol_factory, local_addr, remote_addr, **options
        )

    async def sock_recvfrom(self, sock: _std.socket, bufsize: int) -> tuple[bytes, _RetAddress]:
        """Receive a datagram, like :meth:`asyncio.loop.sock_recvfrom`. Cancelling loses nothing."""
        if not isinstance(sock, _core.Socket):
            return await super().sock_recvfrom(sock, bufsize)
        return await self._sockets.receive(sock, sock.recvfrom, bufsize)

    async def sock_recvfrom_into(
        self, sock: _std.socket, buf: WriteableBuffer, nbytes: int = 0
    ) -> tuple[int, _RetAddress]:
        """Receive a datagram into a buffer, like :meth:`asyncio.loop.sock_recvfrom_into`."""
        if not isinstance(sock, _core.Socket):
            return await super().sock_recvfrom_into(sock, buf, nbytes)
        return await self._sockets.receive(sock, sock.recvfrom_into, buf, nbytes or len(buf))

    async def sock_sendto(self, sock: _std.socket, data: ReadableBuffer, address: _Address) -> int:
        """Send a datagram, like :meth:`asyncio.loop.sock_sendto`."""
        if isinstance(sock, _core.Socket) and not (self.get_debug() and sock.gettimeout() != 0):
            with contextlib.suppress(BlockingIOError, InterruptedError):
                return sock.sendto(data, address)
        return await super().sock_sendto(sock, data, address)


def run(
    main: Coroutine[Any, Any, Result],
    *,
    debug: bool | None = None,
    loop: Literal["asyncio", "auto", "uvloop"] = "asyncio",
) -> Result:
    """Run a coroutine on a new event loop with tomada's transports, like :func:`asyncio.run`.

    :param loop: ``"asyncio"`` is an :class:`EventLoop`. ``"uvloop"`` is uvloop's loop (``pip
        install 'tomada[uvloop]'``) with tomada's datagram transports. ``"auto"`` is uvloop's loop
        if uvloop is installed, and otherwise an :class:`EventLoop`. The event loop policy, which
        ``uvloop.install()`` sets, has no effect.
    :raises ModuleNotFoundError: ``loop`` is ``"uvloop"``, and uvloop is not installed.
    :raises RuntimeError: An event loop is already running in this thread.
    :raises ValueError: ``loop`` is not one of these.
    """
    try:
        factory = _factory(loop)
    except BaseException:
        if asyncio.iscoroutine(main):
            main.close()  # without a warning that it was never awaited
        raise
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if asyncio._get_running_loop() is not None:
        # Checked before there is a loop, because this one could not be closed again.
        raise RuntimeError("tomada.asyncio.run() cannot be called from a running event loop")
    if name not in ("asyncio", "auto", "uvloop"):
        raise ValueError(
            f'loop must be "asyncio" (tomada\'s own loop), "auto" or "uvloop", not {name!r}'
        )
    if name == "asyncio":
        return EventLoop
    try:
        import uvloop  # noqa: PLC0415 - only for programs that ask for it
    except ModuleNotFoundError:
        if name == "auto":
            return EventLoop
        raise ModuleNotFoundError(
            "loop=\"uvloop\" needs uvloop, which is not installed: pip install 'tomada[uvloop]'",
            name="uvloop",
        ) from None

    def factory() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        install(loop)
        return loop

    return factory


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Replace a loop's ``create_datagram_endpoint`` with tomada's.

    Use it for loops that are not an :class:`EventLoop`, such as uvloop. Existing endpoints stay
    unchanged. A loop that is not a :class:`asyncio.SelectorEventLoop` also gets tomada's
    ``sock_recvfrom``, ``sock_recvfrom_into`` and ``sock_sendto``, which uvloop's loop lacks; they
    accept both tomada's sockets and the standard library's.
    """
    endpoint = functools.partial(create_datagram_endpoint, loop)
    loop.create_datagram_endpoint = endpoint  # type: ignore[method-assign]
    if not isinstance(loop, asyncio.SelectorEventLoop):
        LoopSockets(loop).install()


async def create_datagram_endpoint(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], ProtocolT],
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    gro: bool | None = None,
    coalesce: float = 0.0,
    guard: Guard | None = None,
    pacing: int | None = None,
    dtls: DtlsContext | None = None,
    server_hostname: str | None = None,
    **options: Unpack[_Options],
) -> tuple[DatagramTransport, ProtocolT]:
    """Create a datagram endpoint on any loop that has ``add_reader`` and ``add_writer``.

    The other arguments (``family``, ``proto``, ``flags``, ``reuse_port``, ``allow_broadcast``,
    ``sock``), the name resolution and the exceptions are the same as for
    :meth:`asyncio.loop.create_datagram_endpoint`, because tomada runs that method's own code.

    :param sock: A tomada socket or a standard one. Closing the transport also closes the socket.
        The transport first restores the settings that it has changed, because duplicates of the
        socket share them: ``gro``, the filter of ``guard``, and which metadata the kernel adds to
        each datagram. If other transports or servers in this process rely on a setting, the last of
        them to close restores it; other processes are not taken into account. A forked child does
        not undo its parent's changes.

        The socket and its duplicates become non-blocking and stay non-blocking, as with the
        standard transport: a blocking call on a duplicate raises :class:`BlockingIOError` at once.
        If the transport made the socket blocking again, another event loop that uses a duplicate
        would hang. Once no event loop uses the socket any longer, you can call
        ``sock.setblocking(True)`` on a duplicate.
    :param gro: Whether the kernel may deliver coalesced datagrams (``UDP_GRO``). By default, this
        is switched on only once datagrams arrive faster than they are delivered, because it makes a
        socket more expensive to open and close. With a ``sock``, it is off by default, because
        other holders of that socket would receive several datagrams coalesced into one.
    :param coalesce: How long to collect datagrams, after the first one, before calling the
        protocol, in seconds, up to 60. This saves CPU time when there are many datagrams, at the
        cost of latency: see :attr:`tomada.socket.socket.coalesce`. By default, a tomada ``sock``
        keeps its own value.
    :param guard: A :class:`tomada.Guard` for received datagrams and replies. A ``sock`` may already
        have one.
    :param pacing: The maximum send rate, in bytes per second: see
        :attr:`tomada.socket.socket.pacing`.
    :param dtls: A :class:`tomada.dtls.Context`. With a ``remote_addr``, its protocol must be
        ``PROTOCOL_DTLS_CLIENT``; this returns when the handshake is complete, and the transport
        closes when the session ends. Otherwise, it must be ``PROTOCOL_DTLS_SERVER``, and the
        transport has a session with each peer. The protocol receives and sends plaintext. If its
        type has the method ``session_established(address, session)`` or ``session_lost(address,
        exception)``, the transport calls it. Cannot be combined with ``sock``.
    :param server_hostname: The host name or address that the server's certificate must match. By
        default, the host of ``remote_addr``.
    :return: A :class:`DatagramTransport` and the protocol.
    :raises tomada.dtls.DTLSError: The handshake failed.
    """
    chosen = _DEFAULTS
    if not (gro is None and guard is None and pacing is None) or coalesce:
        chosen = SocketOptions(gro=gro, coalesce=coalesce, guard=guard, pacing=pacing)
    secured = None
    if not (dtls is None and server_hostname is None):
        secured = _secured(dtls, server_hostname)
    maker = Maker(loop, chosen, secured)
    return await maker.make(protocol_factory, local_addr, remote_addr, **options)


def open_endpoint(
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    gro: bool | None = None,
    coalesce: float = 0.0,
    guard: Guard | None = None,
    groups: Sequence[Any] = (),
    pacing: int | None = None,
    dtls: DtlsContext | None = None,
    server_hostname: str | None = None,
    **options: Unpack[_Options],
) -> Opening[Endpoint]:
    """Open an :class:`Endpoint` on the running event loop, which may be of any type.

    ``async with open_endpoint(...) as endpoint`` closes it at the end of the block. If you write
    ``endpoint = await open_endpoint(...)``, close it with :meth:`Endpoint.aclose`.

    The other arguments are the same as for :func:`create_datagram_endpoint`.

    :param coalesce: How long to collect datagrams, after the first one, before waking a task that
        is waiting for datagrams or for a reply: see :func:`create_datagram_endpoint`.
    :param groups: Multicast groups to join, each an address or the arguments of
        :meth:`tomada.socket.socket.join_group`.
    :raises OSError: The endpoint cannot be opened; the message says what to do.
    """
    chosen = SocketOptions(gro=gro, coalesce=coalesce, guard=guard, groups=groups, pacing=pacing)
    secured = _secured(dtls, server_hostname)
    return Opening(lambda: _open(local_addr, remote_addr, chosen, secured, options))


async def _open(
    local_addr: Any,
    remote_addr: Any,
    chosen: SocketOptions,
    secured: Secured | None,
    options: _Options,
) -> Endpoint:
    maker = Maker(asyncio.get_running_loop(), chosen, secured, delivers=False)
    if isinstance(local_addr, tuple) and local_addr[:1] == ("",):  # as sockets have it
        host = "::" if options.get("family") == _std.AF_INET6 else "0.0.0.0"  # noqa: S104
        local_addr = (host, *local_addr[1:])
    where = remote_addr if local_addr is None else local_addr
    advice = (OF_SENDING if local_addr is None else OF_BINDING) | OF_OPENING
    try:
        with advised(where, advice):
            transport, events = await maker.make(Events, local_addr, remote_addr, **options)
    except TypeError:
        for address in (local_addr, remote_addr):
            if address is not None:
                _check_address(address, options.get("family", 0))
        raise
    return Endpoint(transport, events)


def _secured(context: DtlsContext | None, server_hostname: str | None) -> Secured | None:
    check_server_hostname(context, server_hostname)
    return None if context is None else (context, server_hostname)


def _check_address(address: Any, family: int) -> None:
    """Explain what is wrong with an address that the standard library has refused."""
    check_address(address)
    if not isinstance(address, tuple) and family != _std.AF_UNIX:
        raise TypeError(f"the address {address!r} is a path: pass family=socket.AF_UNIX with it")
