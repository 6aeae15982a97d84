"""asyncio with tomada's datagrams.

``tomada.asyncio.run(main())`` in place of ``asyncio.run(main())`` is all that a program needs: its
protocols, and what they call, stay as they are.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import socket as _std
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._transport import DatagramTransport
from tomada.socket import socket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tomada._core import Turn

__all__ = [
    "DatagramTransport",
    "EventLoop",
    "create_datagram_endpoint",
    "install",
    "run",
]


# How long a transport may deliver datagrams in one turn of the loop, in seconds: while nothing else
# is to be done, and when a timer is due.
LONGEST_DRAIN = 200e-6
SOON = 1e-6


class _CountingSelector(selectors.DefaultSelector):
    """Counts the turns of a loop, each of which asks the selector once."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = _core.Turn()

    def select(self, timeout: float | None = None) -> Any:
        self.turn.advance()
        return super().select(timeout)


class EventLoop(asyncio.SelectorEventLoop):
    """The standard selector event loop, with tomada's datagram transports.

    For ``asyncio.run(main(), loop_factory=tomada.asyncio.EventLoop)`` or, before Python 3.12,
    ``asyncio.Runner(loop_factory=tomada.asyncio.EventLoop)``.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        super().__init__(_CountingSelector() if selector is None else selector)

    def _spare_time(self) -> float:
        """Return how long a transport may deliver datagrams before others must have their turn."""
        if self._ready:  # type: ignore[attr-defined]
            return 0.0
        if timers := self._scheduled:  # type: ignore[attr-defined]
            return max(SOON, min(LONGEST_DRAIN, timers[0].when() - self.time()))
        return LONGEST_DRAIN

    async def create_datagram_endpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Make a datagram endpoint: see :func:`tomada.asyncio.create_datagram_endpoint`."""
        return await create_datagram_endpoint(self, *args, **kwargs)


def run(main: Coroutine[Any, Any, Any], *, debug: bool | None = None) -> Any:
    """Run a coroutine on a new :class:`EventLoop`, as :func:`asyncio.run` does on a standard one."""
    with asyncio.Runner(debug=debug, loop_factory=EventLoop) as runner:
        return runner.run(main)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop's own ``create_datagram_endpoint`` tomada's.

    For loops that are not an :class:`EventLoop`, uvloop's among them. Endpoints that exist already
    stay as they are.
    """
    endpoint = functools.partial(create_datagram_endpoint, loop)
    loop.create_datagram_endpoint = endpoint  # type: ignore[method-assign, assignment]


async def create_datagram_endpoint(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: _std.socket | None = None,
) -> tuple[DatagramTransport, Any]:
    """Make a datagram endpoint on any loop that has ``add_reader`` and ``add_writer``.

    The arguments, the resolution of names, and the exceptions are those of
    :meth:`asyncio.loop.create_datagram_endpoint`, whose own code does this part.

    :param sock: A socket of tomada's or the standard library's, which becomes the transport's.
    :return: A :class:`DatagramTransport` and the protocol.
    """
    maker: Any = _Maker(loop, sock)
    result: tuple[DatagramTransport, Any] = await _standard_endpoint(
        maker,
        protocol_factory,
        local_addr,
        remote_addr,
        family=family,
        proto=proto,
        flags=flags,
        reuse_port=reuse_port,
        allow_broadcast=allow_broadcast,
        sock=sock,
    )
    return result


_standard_endpoint: Any = asyncio.BaseEventLoop.create_datagram_endpoint


class _Maker:
    """Stands in for the loop in the standard library's ``create_datagram_endpoint``."""

    _ensure_resolved: Any = asyncio.BaseEventLoop._ensure_resolved  # type: ignore[attr-defined]

    def __init__(self, loop: asyncio.AbstractEventLoop, given: _std.socket | None) -> None:
        self._loop = loop
        self._given = given
        self._debug = loop.get_debug()
        self.getaddrinfo = loop.getaddrinfo
        self.create_future = loop.create_future

    async def sock_connect(self, sock: _std.socket, address: Any) -> None:
        sock.connect(address)  # a datagram socket connects at once

    def _make_datagram_transport(
        self, sock: _std.socket, protocol: Any, address: Any, waiter: asyncio.Future[None]
    ) -> DatagramTransport:
        ours, shown = _adopt(sock, sock is self._given)
        try:
            return DatagramTransport(
                self._loop, ours, protocol, address, waiter, shown=shown, turn=_turn(self._loop)
            )
        except BaseException:
            ours.close()
            raise


def _adopt(sock: _std.socket, is_users: bool) -> tuple[socket, _std.socket]:
    """Return a socket of tomada's, and the one to show to the user."""
    if isinstance(sock, _core.Socket):
        return sock, sock  # type: ignore[return-value]
    if not is_users:
        ours = socket(sock.family, sock.type, sock.proto, sock.detach())
        ours.setblocking(False)
        return ours, ours
    # The user's object stays in working order, and has a descriptor of its own.
    ours = socket(sock.family, sock.type, sock.proto, _std.dup(sock.fileno()))
    ours.setblocking(False)
    return ours, sock


def _turn(loop: asyncio.AbstractEventLoop) -> Turn | None:
    selector = getattr(loop, "_selector", None)
    return selector.turn if isinstance(selector, _CountingSelector) else None
