"""Datagram endpoints on trio: ``pip install 'tomada[trio]'``."""

from __future__ import annotations

import contextlib
import socket as _std
from typing import TYPE_CHECKING, Any

import trio

from tomada._address import check_address
from tomada._advice import OF_BINDING, OF_OPENING, OF_SENDING, advise, advised
from tomada._asyncio.context_managers import Opening
from tomada._asyncio.events import Events
from tomada._asyncio.sessions import Sessions
from tomada._asyncio.transport import DatagramTransport
from tomada._socket_options import (
    SocketOptions,
    check_dtls,
    check_server_hostname,
    secured_by,
)
from tomada._trio.endpoint import Endpoint
from tomada._trio.handshake import connect
from tomada._trio.loop import Loop
from tomada.socket import socket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tomada._core import DtlsContext, Guard
    from tomada._socket_options import Secured

__all__ = ["Endpoint", "open_endpoint"]


def open_endpoint(
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    family: int = 0,
    reuse_port: bool = False,
    allow_broadcast: bool = False,
    gro: bool | None = None,
    coalesce: float = 0.0,
    guard: Guard | None = None,
    groups: Sequence[Any] = (),
    pacing: int | None = None,
    dtls: DtlsContext | None = None,
    server_hostname: str | None = None,
) -> Opening[Endpoint]:
    """Open an :class:`Endpoint` in a program that runs on trio.

    ``async with open_endpoint(...) as endpoint`` closes it at the end of the block. If you write
    ``endpoint = await open_endpoint(...)``, close it with :meth:`Endpoint.aclose`.

    :param local_addr: The address to bind to; port 0 means any free port.
    :param remote_addr: The peer, if the endpoint has only one.
    :param family: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``; by default, the family of the address.
    :param reuse_port: Whether other sockets may bind to the same address (``SO_REUSEPORT``).
    :param allow_broadcast: Whether to allow broadcast addresses (``SO_BROADCAST``).
    :param gro: Whether the kernel may deliver coalesced datagrams (``UDP_GRO``). By default, this
        is switched on once datagrams arrive faster than they are received.
    :param coalesce: How long to collect datagrams after the first one, in seconds, up to 60: see
        :attr:`tomada.socket.socket.coalesce`.
    :param guard: A :class:`tomada.Guard` for received datagrams and replies.
    :param groups: Multicast groups to join, each an address or the arguments of
        :meth:`tomada.socket.socket.join_group`.
    :param pacing: The maximum send rate, in bytes per second: see
        :attr:`tomada.socket.socket.pacing`.
    :param dtls: A :class:`tomada.dtls.Context`. With a ``remote_addr``, its protocol must be
        ``PROTOCOL_DTLS_CLIENT``; this returns when the handshake is complete, and the endpoint
        closes when the session ends. Otherwise, it must be ``PROTOCOL_DTLS_SERVER``, and the
        endpoint has a session with each peer. The endpoint sends and receives plaintext.
    :param server_hostname: The host name or address that the server's certificate must match. By
        default, the host of ``remote_addr``.
    :raises OSError: The endpoint cannot be opened; the message says what to do.
    :raises tomada.dtls.DTLSError: The handshake failed.
    :raises TypeError: An argument has the wrong type.
    :raises ValueError: Neither an address nor a family was given.
    """
    for address in (local_addr, remote_addr):
        if address is not None:
            check_address(address)
    if local_addr is None and remote_addr is None and not family:
        raise ValueError("open_endpoint needs an address to bind to, a peer, or a family")
    options = SocketOptions(gro=gro, coalesce=coalesce, guard=guard, groups=groups, pacing=pacing)
    secured = None
    if remote_addr is not None:
        secured = secured_by(dtls, server_hostname, remote_addr)
    else:
        check_server_hostname(dtls, server_hostname)
        if dtls is not None:
            check_dtls(dtls, is_server=True)
            secured = dtls, None
    flags = [_std.SO_REUSEPORT] * bool(reuse_port) + [_std.SO_BROADCAST] * bool(allow_broadcast)
    return Opening(lambda: _open(local_addr, remote_addr, family, flags, options, secured))


async def _open(
    local_addr: Any,
    remote_addr: Any,
    family: int,
    flags: list[int],
    options: SocketOptions,
    secured: Secured | None,
) -> Endpoint:
    where = remote_addr if local_addr is None else local_addr
    advice = (OF_SENDING if local_addr is None else OF_BINDING) | OF_OPENING
    with advised(where, advice), contextlib.ExitStack() as stack:
        family, local, remote = await _resolve(local_addr, remote_addr, family)
        sock: Any = stack.enter_context(socket(family, _std.SOCK_DGRAM))
        sock.setblocking(False)
        for flag in flags:
            sock.setsockopt(_std.SOL_SOCKET, flag, 1)
        if local is not None:
            sock.bind(local)
        if remote is not None:
            sock.connect(remote)
        options.apply(sock, gro=False)
        loop: Any = Loop.running()
        events = Events()
        events.create_future = loop.create_future
        sessions = None
        if secured is not None:
            context, name = secured
            connected = None if remote is None else await connect(sock, context, name)
            sessions = Sessions(loop, sock, context, connected, name)
        transport = DatagramTransport(
            loop, sock, events, remote, delivers=False, gro=options.gro, sessions=sessions
        )
        stack.pop_all()
    return Endpoint(transport, events)


async def _resolve(local_addr: Any, remote_addr: Any, family: int) -> tuple[int, Any, Any]:
    """Return the family, and the addresses in numeric form."""
    found = [
        {} if address is None else await _look_up(address, family)
        for address in (local_addr, remote_addr)
    ]
    given = [each for each in found if each]
    families = list(given[0]) if given else [family]
    for one in families:
        if all(one in each for each in given):
            return one, found[0].get(one), found[1].get(one)
    raise ValueError("local_addr and remote_addr have different families")


async def _look_up(address: Any, family: int) -> dict[int, Any]:
    if not isinstance(address, tuple):
        await trio.lowlevel.checkpoint()
        return {_std.AF_UNIX: address}
    host, port, *scope = address
    try:
        infos = await trio.socket.getaddrinfo(
            host or None, port, family, _std.SOCK_DGRAM, flags=_std.AI_PASSIVE
        )
    except _std.gaierror as error:
        advise(error, str(host))
        raise
    found: dict[int, Any] = {}
    for each, _, _, _, resolved in infos:
        found.setdefault(each, (*resolved[:2], *scope) if scope else resolved)
    return found
