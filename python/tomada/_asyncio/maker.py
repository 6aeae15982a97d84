"""Creates transports with the standard library's ``create_datagram_endpoint``."""

from __future__ import annotations

import asyncio
import socket as _std
from functools import partial
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._asyncio.given_socket import Given
from tomada._asyncio.opening import look_up, open_directly
from tomada._asyncio.sessions import Sessions, connect
from tomada._asyncio.transport import DatagramTransport
from tomada._socket_options import SocketOptions, check_dtls, check_shared
from tomada.socket import socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._core import DtlsEndpoint
    from tomada._socket_options import Secured

_standard_endpoint: Any = asyncio.BaseEventLoop.create_datagram_endpoint


class Maker:
    """Takes the place of the loop in the standard library's ``create_datagram_endpoint``."""

    _ensure_resolved: Any = asyncio.BaseEventLoop._ensure_resolved  # type: ignore[attr-defined]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: SocketOptions,
        secured: Secured | None = None,
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
        # asyncio's exception does not name the host; an endpoint's does.
        self.getaddrinfo: Any = loop.getaddrinfo if delivers else partial(look_up, loop)
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
        direct = self._open_directly(local_addr, remote_addr, options)
        if direct is not None:
            # A socket without a peer raises an exception when asked for it, which takes longer.
            extra = {"peername": None} if remote_addr is None else None
            return await self._make_of(direct, protocol_factory, extra)
        sock: Any = options.get("sock")
        if self._secured is not None:
            if sock is not None:
                raise ValueError("dtls cannot be combined with sock")
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

    def _open_directly(
        self, local_addr: Any, remote_addr: Any, options: dict[str, Any]
    ) -> socket | None:
        if self._secured is not None or self._debug:
            return None
        given = {name: value for name, value in options.items() if not _is_default(name, value)}
        if not given.keys() <= {"family", "proto"}:
            return None
        return open_directly(self._loop, local_addr, remote_addr, **given)

    async def _make_of(
        self, sock: socket, protocol_factory: Callable[[], Any], extra: dict[str, Any] | None
    ) -> tuple[DatagramTransport, Any]:
        """Create a transport and a protocol for a socket that was opened for them."""
        try:
            protocol = protocol_factory()
        except BaseException:
            sock.close()
            raise
        waiter = self._loop.create_future()
        transport = self._make_transport(sock, sock, protocol, None, waiter, extra)
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
            # The standard library would leave a socket that it has created to the garbage
            # collector.
            if sock is not self._sock:
                sock.close()
            raise protocol.error
        if not _is_socket(sock):
            # A test double that only has a socket's methods: the loop's own transport calls those.
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
        extra: dict[str, Any] | None = None,
    ) -> DatagramTransport:
        restore = None
        try:
            if self._given is not None:
                restore = self._given.set_up(ours, self._options.guard)
                self._options.collect(ours)
                self._options.pace(ours)
                self._options.join(ours)
            else:
                self._options.apply(ours, gro=False)
            sessions = None
            if self._secured is not None:
                context, name = self._secured
                sessions = Sessions(self._loop, ours, context, self._connected, name)
            transport = DatagramTransport(
                self._loop,
                ours,
                protocol,
                address,
                waiter,
                extra,
                shown=shown,
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


def _is_default(name: str, value: object) -> bool:
    """Return whether an option of ``create_datagram_endpoint`` does nothing."""
    match name:
        case "family" | "proto":
            return value == 0
        case "flags" | "reuse_port" | "allow_broadcast":
            return not value
        case "sock":
            return value is None
        case _:
            return False


class _Failed:
    """Takes the place of a protocol whose factory raised an exception."""

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
        # The user's object keeps working, on its own descriptor.
        ours = socket(sock.family, sock.type, sock.proto, _std.dup(sock.fileno()))
        shown = sock
    ours.setblocking(False)
    return ours, shown
