"""The DTLS sessions of a datagram transport."""

from __future__ import annotations

import asyncio
import os
from socket import dup
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada.socket import socket

if TYPE_CHECKING:
    import socket as _std
    from collections.abc import Callable
    from typing import TypeAlias

    from tomada._core import DtlsContext, DtlsEndpoint, DtlsSession

    # The name of an event, the peer, and the new session or the reason for the end of one.
    _Event: TypeAlias = tuple[str, Any, DtlsSession | OSError]


async def connect(
    loop: asyncio.AbstractEventLoop,
    sock: _std.socket,
    context: DtlsContext,
    server_hostname: str | None,
) -> DtlsEndpoint:
    """Open a session with the server that a socket is connected to; return after the handshake.

    :raises OSError: The handshake failed; the message says why.
    """
    # Our own object, on a duplicate descriptor; the transport takes over the session later.
    ours: Any = socket(sock.family, sock.type, sock.proto, dup(sock.fileno()))
    try:
        ours.setblocking(False)
        endpoint = _core.DtlsEndpoint(
            context, ours, server_hostname=server_hostname, keeps_events=True
        )
        endpoint.begin()
        await _complete(loop, ours, endpoint)
    finally:
        ours.close()
    return endpoint


async def _complete(loop: asyncio.AbstractEventLoop, sock: Any, endpoint: DtlsEndpoint) -> None:
    done = loop.create_future()
    timer: asyncio.TimerHandle | None = None

    def step() -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
        if done.done():
            return
        try:
            endpoint.handshake(0)
        except BlockingIOError:
            timer = loop.call_later(endpoint.tick() or 0, step)
        except OSError as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    # A separate descriptor, because the loop may watch the other one later.
    fd = os.dup(sock.fileno())
    loop.add_reader(fd, step)
    try:
        step()
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        if timer is not None:
            timer.cancel()


class Sessions:
    """Runs the sessions of a transport and reports them to its protocol.

    :param sock: The transport's socket.
    :param context: The settings of sessions that peers begin.
    :param connected: The session of a connected socket, which is moved to ``sock``.
    :param server_hostname: The name that the server's certificate must match in that session.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: _core.Socket,
        context: DtlsContext,
        connected: DtlsEndpoint | None = None,
        server_hostname: str | None = None,
    ) -> None:
        self._loop = loop
        #: The context, and the name that the server's certificate must match.
        self.secured = context, server_hostname
        #: Called with the reason when the session of a connected socket has ended.
        self.ended: Callable[[Any], object] = self._close_transport
        if connected is None:
            self._endpoint = _core.DtlsEndpoint(context, sock, keeps_events=True)
        else:
            self._endpoint = connected.move(sock)
        self._has_one_peer = connected is not None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Any = None
        # Events that the protocol has not been told about.
        self._events: list[_Event] = []

    def attach(self, transport: Any) -> None:
        """Set the transport whose sessions these are."""
        self._transport = transport

    def tell_begun(self) -> None:
        """Tell the protocol about new sessions, before their datagrams are delivered.

        The end of a session is usually reported after its datagrams. But if the peer has begun
        another session, the old one's datagrams were dropped, so its end is reported now.
        """
        self._events += self._endpoint.events()
        begun: set[Any] = set()
        now: list[_Event] = []
        later: list[_Event] = []
        for event in reversed(self._events):
            what, address, _ = event
            if what == "established":
                begun.add(address)
            (now if address in begun else later).append(event)
        self._events = later[::-1]
        self._tell(now[::-1])

    def tell_ended(self) -> None:
        """Set the timer and report events. Call this after each receive.

        While datagrams wait to be delivered, the ends of sessions wait too, because they came
        later.
        """
        self._set_timer()
        sock = self._transport._sock
        if sock is not None and sock.pending and not self._transport.is_closing():
            return  # the next delivery calls this again
        events, self._events = self._events + self._endpoint.events(), []
        self._tell(events)

    def _set_timer(self) -> None:
        due = self._endpoint.tick()
        if due is None or self._transport.is_closing():
            return
        when = self._loop.time() + due
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._transport.is_closing():
            self.tell_ended()

    def _tell(self, events: list[_Event]) -> None:
        """Call the protocol's methods for these events, if its type has them."""
        for what, address, session_or_error in events:
            protocol = self._transport.get_protocol()
            if what == "established":
                self._call(protocol, "session_established", address, session_or_error)
            elif what == "lost":
                self._call(protocol, "session_lost", address, session_or_error)
                if self._has_one_peer:
                    self.ended(session_or_error)

    def _close_transport(self, _: OSError) -> None:
        self._transport.close()

    def _call(self, protocol: Any, name: str, *args: Any) -> None:
        method = getattr(type(protocol), name, None)
        if method is None:
            return
        try:
            method(protocol, *args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as for all callbacks of the loop
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": error,
                    "transport": self._transport,
                    "protocol": protocol,
                }
            )

    def session(self, address: Any = None) -> Any:
        """Return the session with a peer (by default, the only one), or ``None``."""
        return self._endpoint.session(address)

    def stats(self) -> dict[str, int]:
        """Return the counters."""
        return self._endpoint.stats()

    def close(self) -> None:
        """End all sessions and notify the peers."""
        if self._timer is not None:
            self._timer.cancel()
        self._endpoint.close_all()
